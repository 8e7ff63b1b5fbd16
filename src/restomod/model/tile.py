"""A larger model from a smaller one: centre tiling with wraparound (ModernBERT paper, A.2).

Enters: a trained model and larger sizes. Leaves: a model whose every tensor repeats the smaller
one's, which sits in its middle. `restomod tile` writes it where training starts from.

An index j of the new dimension of n takes the old one's (j - (n - m) // 2) mod m, m being the old
size. Dimensions of attention are tiled head by head, so that a head stays whole; queries, keys and
values, and the two halves of the GLU, each by themselves. New layer i of N takes the old layer
round(i M / N) of M (Gopher, arXiv 2112.11446, appendix G).
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from restomod.errors import UserError
from restomod.model.config import EncoderConfig
from restomod.model.encoder import MaskedLM


def tile(
    source: MaskedLM,
    layers: int | None = None,
    hidden_size: int | None = None,
    intermediate_size: int | None = None,
) -> MaskedLM:
    """Return a model of these sizes (None: the source's), in eval mode; the head size is kept.

    Raises UserError for a size below the source's, or a hidden size that its heads do not divide.
    """
    old = source.config
    sizes = {
        "layers": old.layers if layers is None else layers,
        "hidden_size": old.hidden_size if hidden_size is None else hidden_size,
        "intermediate_size": (
            old.intermediate_size if intermediate_size is None else intermediate_size
        ),
    }
    for name, size in sizes.items():
        if size < getattr(old, name):
            raise UserError(f"{name} {size} is less than the smaller model's {getattr(old, name)}")
    head_size = old.head_size
    if sizes["hidden_size"] % head_size:
        raise UserError(
            f"hidden_size {sizes['hidden_size']} is no whole number of heads of {head_size}, the "
            "smaller model's head size"
        )
    heads = sizes["hidden_size"] // head_size
    config = dataclasses.replace(old, **sizes, heads=heads)  # type: ignore[arg-type]
    with torch.device("meta"):
        model = MaskedLM(config)
    weights = source.state_dict()
    tiled = {}
    for name, parameter in model.state_dict().items():
        twin = _twin(name, config, old)
        if twin in weights:
            tiled[name] = _tile(name, weights[twin], parameter.shape, config, old)
        else:  # the attention norm that the old layer 0 does not have
            tiled[name] = torch.full(parameter.shape, float(name.endswith("weight")))
    model.load_state_dict(tiled, assign=True)
    return model.requires_grad_(True).eval()


def wrap(old: int, new: int) -> Tensor:
    """Return int64 [new]: which of `old` indices each of `new` ones takes."""
    return (torch.arange(new) - (new - old) // 2) % old


def layer_map(old: int, new: int) -> list[int]:
    """Return which of `old` layers each of `new` ones takes."""
    return [min(round(layer * old / new), old - 1) for layer in range(new)]


def _twin(name: str, config: EncoderConfig, old: EncoderConfig) -> str:
    """Return the old model's parameter that becomes `name`."""
    if not name.startswith("encoder.layers."):
        return name
    *prefix, layer, rest = name.split(".", 3)
    return ".".join([*prefix, str(layer_map(old.layers, config.layers)[int(layer)]), rest])


def _tile(
    name: str, weight: Tensor, shape: torch.Size, config: EncoderConfig, old: EncoderConfig
) -> Tensor:
    heads = _heads(config, old)
    kind = name.split(".", 3)[-1]
    for dim, (size, target) in enumerate(zip(weight.shape, shape, strict=True)):
        parts = 1
        if kind.startswith("attn.Wqkv") and dim == 0:
            index, parts = heads, 3
        elif kind.startswith("attn.Wo") and dim == 1:
            index = heads
        elif kind.startswith("mlp.Wi") and dim == 0:
            index, parts = wrap(old.intermediate_size, config.intermediate_size), 2
        else:
            index = wrap(size, target)
        index = torch.cat([index + part * (size // parts) for part in range(parts)])
        weight = weight.index_select(dim, index)
    return weight.contiguous()


def _heads(config: EncoderConfig, old: EncoderConfig) -> Tensor:
    """Return int64 [hidden]: old channels of the new heads' channels."""
    heads = wrap(old.heads, config.heads)
    return (heads[:, None] * old.head_size + torch.arange(old.head_size)).flatten()
