"""From the recipe's `optimizer` section to the optimizer of a model. Called by the trainer."""

from typing import Any

from torch import nn

from restomod.config import OptimizerConfig
from restomod.extensions import USE, is_extension, make
from restomod.model.encoder import MaskedLM
from restomod.optim.adamw import AdamW
from restomod.optim.muon import Muon
from restomod.optim.own import Own
from restomod.optim.stable_adamw import StableAdamW, parameter_groups

PARTS = {"Wqkv.weight": 3, "Wi.weight": 2}
"""Matrices that a layer's parameter holds, one below the other: queries, keys and values, or the
halves of a gated unit; any other holds one."""


def build_optimizer(model: MaskedLM, config: OptimizerConfig, compiled: bool) -> StableAdamW:
    """Return the recipe's optimizer for the model's parameters; `compiled` is StableAdamW's.

    The groups hold `lr`, `lr_max`, `weight_decay` and `decays`, which a schedule may set at any
    step.
    """
    betas = (config.betas[0], config.betas[1])
    if is_extension(config.name):
        return Own(
            parameter_groups(model, config.weight_decay),
            lr=config.lr,
            lr_max=config.lr,
            rule=make({USE: config.name, **config.options}),
        )
    if config.name == "muon":
        return Muon(
            muon_groups(model, config.weight_decay),
            lr=config.lr,
            lr_max=config.lr,
            momentum=config.momentum,
            betas=betas,
            eps=config.eps,
            compiled=compiled,
        )
    if config.name == "adamw":
        return AdamW(
            parameter_groups(model, config.weight_decay),
            lr=config.lr,
            lr_max=config.lr,
            clip_norm=config.clip_norm,
            betas=betas,
            eps=config.eps,
        )
    return StableAdamW(
        parameter_groups(model, config.weight_decay),
        lr=config.lr,
        lr_max=config.lr,
        betas=betas,
        eps=config.eps,
        compiled=compiled,
    )


def muon_groups(model: MaskedLM, weight_decay: float) -> list[dict[str, Any]]:
    """Split parameters into StableAdamW's groups and one group of hidden matrices for each number
    of parts.

    Hidden matrices map features to features: the layers' four, and the head's dense layer. The
    embedding, which is the decoder too, has a row per token and goes to StableAdamW.
    """
    hidden: dict[int, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2 and parameter is not model.encoder.embedding.weight:
            parts = next((n for end, n in PARTS.items() if name.endswith(end)), 1)
            hidden.setdefault(parts, []).append(parameter)
    taken = {id(parameter) for members in hidden.values() for parameter in members}
    groups = parameter_groups(model, weight_decay)
    for group in groups:
        group["params"] = [p for p in group["params"] if id(p) not in taken]
    return groups + [
        {"params": members, "parts": parts, "weight_decay": weight_decay, "decays": True}
        for parts, members in sorted(hidden.items())
    ]
