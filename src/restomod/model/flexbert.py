"""Models of AnswerDotAI/ModernBERT's own training code (FlexBERT), from its checkpoints.

Enters: the weights of a Composer checkpoint under that code's names, its model's settings, and the
tokenizer's ids. Leaves: our model. Called by `restomod import`. The weights are the same numbers
under other names; the settings are as that repository's `FlexBertConfig` has them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from restomod.errors import UserError
from restomod.model.config import EncoderConfig
from restomod.model.encoder import MaskedLM
from restomod.model.hf import TIED, fill, transformers_name

# Of a Composer model, of DDP, and of torch.compile, wherever they stand in a name.
_WRAPPERS = re.compile(r"(^|\.)_orig_mod(?=\.)|^module\.")

# What FlexBertConfig takes where a setting is not written, and what our encoder has.
_FIXED: dict[str, tuple[Any, Any]] = {
    "attention_layer": ("base", "rope"),
    "bert_layer": ("prenorm", "prenorm"),
    "embedding_layer": ("absolute_pos", "sans_pos"),
    "mlp_layer": ("mlp", "glu"),
    "normalization": ("rmsnorm", "layernorm"),
    "embed_norm": (True, True),
    "final_norm": (False, True),
    "skip_first_prenorm": (False, True),
    "head_pred_norm": (True, True),
    "head_pred_act": ("silu", "gelu"),
    "rotary_emb_interleaved": (False, False),
    "rotary_emb_scale_base": (None, None),
    "initial_attention_layer": (None, None),
    "initial_bert_layer": (None, None),
    "initial_mlp_layer": (None, None),
    "tie_word_embeddings": (True, True),
}
_VARIANTS = re.compile(r"^(unpadded_|padded_)?(compile_|triton_)?")
"""Of a layer's name: other kernels, the same arithmetic."""

# Which no shape tells.
_NEEDED = (
    "num_attention_heads",
    "global_attn_every_n_layers",
    "sliding_window",
    "rotary_emb_base",
)
_ACTIVATIONS = {"gelu": "geglu", "silu": "swiglu"}
_EMBEDDING = "bert.embeddings.tok_embeddings.weight"


def flexbert_name(name: str) -> str:
    """Return what FlexBERT calls a parameter of ours, without wrappers' prefixes."""
    theirs = transformers_name(name).replace("model.layers.", "model.encoder.layers.")
    return f"bert.{theirs.removeprefix('model.')}" if theirs.startswith("model.") else theirs


def unwrapped(weights: Mapping[str, Any], where: Path) -> dict[str, Tensor]:
    """Return weights by FlexBERT's names, without what Composer, DDP and torch.compile put before
    them. Raises UserError for what is no tensor, and for weights of another model."""
    named: dict[str, Tensor] = {}
    for name, value in weights.items():
        if not isinstance(value, Tensor):
            raise UserError(
                f"{where}: {name} is no tensor; a checkpoint that one file holds whole is needed, "
                "no sharded one"
            )
        named[_WRAPPERS.sub("", name).removeprefix(".").removeprefix("model.")] = value
    if _EMBEDDING not in named:
        raise UserError(
            f"{where}: holds no {_EMBEDDING}, so no FlexBERT masked-language model; it begins with "
            f"{', '.join(sorted(named)[:3]) or 'nothing'}"
        )
    return named


def load_flexbert(
    weights: dict[str, Tensor],
    settings: dict[str, Any],
    ids: dict[str, Any],
    max_sequence_length: int,
    where: Path,
) -> MaskedLM:
    """Return the model that `weights`, of `unwrapped`, and `settings` make.

    `ids` are pad_id, cls_id and sep_id. Raises UserError for settings that our encoder does not
    have, that are missing, or that the weights contradict, and for missing or unknown weights.
    """
    config = EncoderConfig(
        **_shape(weights, where),
        **_settings(settings, where),
        **ids,
        max_sequence_length=max_sequence_length,
    )
    _compare(config, settings, where)
    if config.hidden_size % (2 * config.heads):
        raise UserError(
            f"{where}: num_attention_heads {config.heads} does not divide hidden_size "
            f"{config.hidden_size} into heads of even size"
        )
    return fill(config, dict(weights), flexbert_name, where, "its configuration", {})[0]


def _shape(weights: dict[str, Tensor], where: Path) -> dict[str, Any]:
    """Return what names and shapes tell."""
    numbers = [re.match(r"bert\.encoder\.layers\.(\d+)\.", name) for name in weights]
    layers = 1 + max((int(number[1]) for number in numbers if number), default=0)
    last = f"bert.encoder.layers.{layers - 1}"
    down = weights.get(f"{last}.mlp.Wo.weight")
    if down is None or down.ndim != 2:
        raise UserError(f"{where}: the weights lack {last}.mlp.Wo.weight, [hidden, intermediate]")
    biases = {
        "norm_bias": "bert.final_norm",
        "attention_bias": f"{last}.attn.Wqkv",
        "mlp_bias": f"{last}.mlp.Wi",
        "head_bias": "head.dense",
        "decoder_bias": TIED.removesuffix(".weight"),
    }
    return {
        "layers": layers,
        "vocab_size": weights[_EMBEDDING].shape[0],
        "hidden_size": down.shape[0],
        "intermediate_size": down.shape[1],
    } | {ours: f"{theirs}.bias" in weights for ours, theirs in biases.items()}


def _settings(settings: dict[str, Any], where: Path) -> dict[str, Any]:
    """Return what only the settings tell."""
    missing = [name for name in _NEEDED if settings.get(name) is None]
    if missing:
        raise UserError(
            f"{where}: nothing says what {', '.join(missing)} is, and no shape of a weight tells; "
            "give the YAML that it was trained with: --config FILE"
        )
    for name in _NEEDED:
        if isinstance(settings[name], bool) or not isinstance(settings[name], (int, float)):
            raise UserError(f"{where}: {name} is {settings[name]!r}, a number is expected")
    for name, (unwritten, ours) in _FIXED.items():
        value = settings.get(name, unwritten)
        plain = _VARIANTS.sub("", value) if isinstance(value, str) else value
        if plain != ours:
            by = "" if name in settings else ", FlexBERT's default,"
            raise UserError(f"{where}: {name} is {value!r}{by} and this import reads {ours!r} only")
    for name in ("rotary_emb_dim", "local_attn_rotary_emb_dim"):
        size = settings.get("hidden_size", 0) // settings["num_attention_heads"]
        if settings.get(name) not in (None, size):
            raise UserError(
                f"{where}: {name} is {settings[name]}; this import turns whole heads only"
            )
    activation = settings.get("hidden_act", "gelu")
    if activation not in _ACTIVATIONS:
        raise UserError(
            f"{where}: hidden_act is {activation!r}; this encoder has {', '.join(_ACTIVATIONS)}"
        )
    window, every = settings["sliding_window"], settings["global_attn_every_n_layers"]
    if window == -1:
        window, every = EncoderConfig.local_window, 1
    elif every < 1:
        raise UserError(
            f"{where}: global_attn_every_n_layers is {every} with a sliding_window, so every layer "
            "is local; this encoder's first is global"
        )
    base = settings["rotary_emb_base"]
    local = settings.get("local_attn_rotary_emb_base")
    return {
        "heads": settings["num_attention_heads"],
        "global_every": every,
        "local_window": window,
        "norm_eps": float((settings.get("norm_kwargs") or {}).get("eps", 1e-5)),
        "activation": _ACTIVATIONS[activation],
        "attention_dropout": float(settings.get("attn_out_dropout_prob", 0.0)),
        "rope_base_global": float(base),
        "rope_base_local": float(base if local in (None, -1) else local),
    }


def _compare(config: EncoderConfig, settings: dict[str, Any], where: Path) -> None:
    """Raise UserError if settings and weights are of different models."""
    norm_bias = (settings.get("norm_kwargs") or {}).get("bias", config.norm_bias)
    pairs = {
        "num_hidden_layers": config.layers,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "attn_qkv_bias": config.attention_bias,
        "attn_out_bias": config.attention_bias,
        "mlp_in_bias": config.mlp_bias,
        "mlp_out_bias": config.mlp_bias,
        "head_pred_bias": config.head_bias,
        "decoder_bias": config.decoder_bias,
        "norm_kwargs.bias": config.norm_bias,
    }
    said = settings | {"norm_kwargs.bias": norm_bias}
    for name, value in pairs.items():
        if name in said and said[name] != value:
            raise UserError(
                f"{where}: the configuration says {name} {said[name]!r}, the weights say {value!r}"
            )
