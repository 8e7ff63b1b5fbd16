"""Conversion from and to transformers' `ModernBertForMaskedLM` folders, without transformers.

Enters or leaves: a folder with config.json and safetensors weights. The weights are the same
numbers under other names. Called by `load_model` and by the export and import tools.
"""

import dataclasses
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from restomod.errors import UserError
from restomod.model.config import EncoderConfig
from restomod.model.encoder import MaskedLM, Origin

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
TIED = "decoder.weight"  # a second name of the embedding, which files may hold or leave out
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
)

# Ours -> theirs, with transformers' default where a config.json leaves the field out.
_FIELDS: dict[str, tuple[str, Any]] = {
    "layers": ("num_hidden_layers", 22),
    "hidden_size": ("hidden_size", 768),
    "heads": ("num_attention_heads", 12),
    "intermediate_size": ("intermediate_size", 1152),
    "global_every": ("global_attn_every_n_layers", 3),
    "local_window": ("local_attention", 128),
    "norm_eps": ("norm_eps", 1e-5),
    "norm_bias": ("norm_bias", False),
    "attention_bias": ("attention_bias", False),
    "mlp_bias": ("mlp_bias", False),
    "head_bias": ("classifier_bias", False),
    "decoder_bias": ("decoder_bias", True),
    "vocab_size": ("vocab_size", 50_368),
    "max_sequence_length": ("max_position_embeddings", 8192),
    "pad_id": ("pad_token_id", 50_283),
    "cls_id": ("cls_token_id", 50_281),
    "sep_id": ("sep_token_id", 50_282),
}

_ACTIVATIONS = {"gelu": "geglu", "silu": "swiglu"}

# Fields that have one value in our encoder.
_FIXED: dict[str, Any] = {
    "attention_dropout": 0.0,
    "classifier_activation": "gelu",
    "embedding_dropout": 0.0,
    "mlp_dropout": 0.0,
    "partial_rotary_factor": 1.0,
    "rope_scaling": None,
    "tie_word_embeddings": True,
}
_UNWRITTEN = ("partial_rotary_factor", "rope_scaling")  # not among transformers' own fields

# How transformers starts and classifies; read by it alone.
_EXPORT_ONLY: dict[str, Any] = {
    "bos_token_id": None,
    "classifier_dropout": 0.0,
    "classifier_pooling": "mean",
    "deterministic_flash_attn": False,
    "eos_token_id": None,
    "initializer_cutoff_factor": 2.0,
    "initializer_range": 0.02,
    "repad_logits_with_grad": False,
    "sparse_pred_ignore_index": -100,
    "sparse_prediction": False,
}

_CLASSIFIERS = ("ModernBertForSequenceClassification", "ModernBertForTokenClassification")
_OF_CLASSIFIERS = ("id2label", "label2id", "problem_type")


def load_transformers(folder: str | Path, *, backbone: bool = False) -> MaskedLM:
    """Load a ModernBERT masked-language model, in float32, on the CPU, in eval mode.

    `backbone` also takes a classifier's encoder and head, with zeros for the decoder's bias.

    Remembers the fields of config.json and the dtypes of the weights, so that saving the model
    unchanged gives the same. Raises UserError if the folder holds something else, or what our
    encoder cannot express.
    """
    folder = Path(folder)
    fields = _read_fields(folder)
    config = _encoder_config(folder, fields)
    theirs = _read_weights(folder)
    if backbone and (fields.get("architectures") or [""])[0] in _CLASSIFIERS:
        fields = {name: x for name, x in fields.items() if name not in _OF_CLASSIFIERS}
        fields["architectures"] = ["ModernBertForMaskedLM"]
        theirs = {name: x for name, x in theirs.items() if not name.startswith("classifier.")}
        if config.decoder_bias:
            theirs[transformers_name("head.bias")] = torch.zeros(config.vocab_size)
    model, dtypes = fill(config, theirs, transformers_name, folder, CONFIG, fields)
    model.origin = Origin(fields, dtypes)
    return model


def fill(
    config: EncoderConfig,
    theirs: dict[str, Tensor],
    name_of: Callable[[str], str],
    where: Path,
    asks: str,
    fields: dict[str, Any],
) -> tuple[MaskedLM, dict[str, torch.dtype]]:
    """Return a model of `theirs`, in float32, on the CPU, in eval mode, and the dtypes of what was
    read, by our names.

    `name_of` gives their name of ours; `where` and `asks` are the files that messages name.
    Empties `theirs`. Raises UserError unless it holds each weight, in its shape, and no other.
    """
    with torch.device("meta"):
        model = MaskedLM(config)
    weights = {}
    dtypes = {}
    for name, parameter in model.state_dict().items():
        tensor = theirs.pop(name_of(name), None)
        if tensor is None:
            raise UserError(
                f"{where}: the weights lack {name_of(name)}; a whole masked-language model is "
                "needed, encoder and head"
                + (f", and this is {fields['architectures']}" if "architectures" in fields else "")
            )
        if tensor.shape != parameter.shape:
            raise UserError(
                f"{where}: {name_of(name)} has shape {list(tensor.shape)}, "
                f"but {asks} asks for {list(parameter.shape)}"
            )
        if not tensor.is_floating_point() or tensor.dtype == torch.float64:
            raise UserError(
                f"{where}: {name_of(name)} holds {tensor.dtype}; weights of float32 or "
                "fewer bits are read"
            )
        weights[name] = tensor.to(torch.float32)
        dtypes[name] = tensor.dtype
    decoder = theirs.pop(TIED, None)
    if decoder is not None and not torch.equal(
        decoder.float(), weights["encoder.embedding.weight"]
    ):
        raise UserError(f"{where}: {TIED} differs from the embedding; they must be tied")
    if decoder is not None:
        dtypes[TIED] = decoder.dtype
    if theirs:
        raise UserError(f"{where}: weights that a ModernBERT does not have: {_few(theirs)}")
    model.load_state_dict(weights, assign=True)
    return model.requires_grad_(True).eval(), dtypes


def save_transformers(
    model: MaskedLM, folder: str | Path, tokenizer_folder: str | Path | None = None
) -> None:
    """Write config.json and model.safetensors for transformers, and copy the tokenizer's files.

    A model that came from such a folder keeps its fields, and its dtypes where no bit is lost.
    Raises UserError for what transformers' ModernBERT cannot express, if tokenizer_folder has no
    tokenizer.json, or an id is not in the vocabulary.
    """
    config = model.config
    foreign = inexpressible(config)
    if foreign:
        raise UserError(
            f"transformers' ModernBERT cannot express this model's {', '.join(foreign)}"
        )
    folder, origin = Path(folder), model.origin
    came = _encoder_config(folder, origin.fields) if origin else None
    for field in ("pad_id", "cls_id", "sep_id"):
        known = came and getattr(came, field) == getattr(config, field)
        if not known and not 0 <= getattr(config, field) < config.vocab_size:
            raise UserError(
                f"{field} {getattr(config, field)} is not in the vocabulary of "
                f"{config.vocab_size}; set the tokenizer's ids in the model's configuration"
            )
    if tokenizer_folder is not None and not (Path(tokenizer_folder) / "tokenizer.json").is_file():
        raise UserError(f"{tokenizer_folder}: no tokenizer.json to export with the model")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be made a folder ({error.strerror})") from None
    if tokenizer_folder is not None and Path(tokenizer_folder).resolve() != folder.resolve():
        for name in TOKENIZER_FILES:
            if (Path(tokenizer_folder) / name).is_file():
                shutil.copyfile(Path(tokenizer_folder) / name, folder / name)
    weights = {name: x.detach().cpu().contiguous() for name, x in model.state_dict().items()}
    if origin and all(
        torch.equal(x, x.to(origin.dtypes[name]).to(x.dtype)) for name, x in weights.items()
    ):
        weights = {name: x.to(origin.dtypes[name]) for name, x in weights.items()}
    named = {transformers_name(name): x for name, x in weights.items()}
    if origin and TIED in origin.dtypes:
        named[TIED] = weights["encoder.embedding.weight"].clone()
    save_file(named, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / INDEX).unlink(missing_ok=True)  # of an earlier, sharded export
    fields = transformers_config(config)
    if origin:
        plain = dataclasses.replace(config, seed=EncoderConfig.seed, attention_dropout=0.0)
        unchanged = came == plain
        ours = {name: value for name, value in fields.items() if name not in _EXPORT_ONLY}
        fields |= origin.fields if unchanged else origin.fields | ours
    dtype = str(weights["encoder.embedding.weight"].dtype).removeprefix("torch.")
    for name in {"dtype", "torch_dtype"} & fields.keys() or {"torch_dtype"}:
        fields[name] = dtype
    (folder / CONFIG).write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n")
    shutil.copymode(folder / CONFIG, folder / WEIGHTS)  # safetensors lets only their owner read


def inexpressible(config: EncoderConfig) -> list[str]:
    """Return what transformers' ModernBERT has no field for, as `name=value`."""
    plain = {"norm": "layernorm", "positions": "rope", "rope_fraction": 1.0, "causal": False}
    return [
        f"{name}={getattr(config, name)}"
        for name, value in plain.items()
        if getattr(config, name) != value
    ]


def transformers_name(name: str) -> str:
    """Return what transformers calls one of our parameters."""
    if name == "head.bias":
        return "decoder.bias"
    for ours, theirs in (
        ("encoder.embedding.norm.", "model.embeddings.norm."),
        ("encoder.embedding.", "model.embeddings.tok_embeddings."),
        ("encoder.", "model."),
    ):
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    return name


def transformers_config(config: EncoderConfig) -> dict[str, Any]:
    """Return the fields of config.json, in the words of transformers 4 and 5 at once."""
    bases = {"full_attention": config.rope_base_global, "sliding_attention": config.rope_base_local}
    return {
        "architectures": ["ModernBertForMaskedLM"],
        "model_type": "modernbert",
        **{theirs: getattr(config, ours) for ours, (theirs, _) in _FIELDS.items()},
        "hidden_activation": {ours: theirs for theirs, ours in _ACTIVATIONS.items()}[
            config.activation
        ],
        "global_rope_theta": config.rope_base_global,
        "local_rope_theta": config.rope_base_local,
        "layer_types": _layer_types(config),
        "rope_parameters": {
            kind: {"rope_type": "default", "rope_theta": base} for kind, base in bases.items()
        },
        **{name: value for name, value in _FIXED.items() if name not in _UNWRITTEN},
        **_EXPORT_ONLY,
        "bos_token_id": config.cls_id,
        "eos_token_id": config.sep_id,
    }


def _read_fields(folder: Path) -> dict[str, Any]:
    try:
        fields = json.loads((folder / CONFIG).read_text())
    except FileNotFoundError:
        raise UserError(f"{folder}: no {CONFIG}; expected a transformers model's folder") from None
    except OSError as error:
        raise UserError(f"{folder / CONFIG}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise UserError(f"{folder / CONFIG}: not JSON ({error})") from None
    if not isinstance(fields, dict):
        raise UserError(f"{folder / CONFIG}: not a mapping of fields")
    return fields


def _encoder_config(folder: Path, fields: dict[str, Any]) -> EncoderConfig:
    """Translate the fields of config.json; raises UserError naming the field that is not ours."""

    def refuse(reason: str) -> UserError:
        return UserError(f"{folder / CONFIG}: {reason}")

    if fields.get("model_type") != "modernbert":
        raise refuse(f"model_type is {fields.get('model_type')!r}; only 'modernbert' can be loaded")
    for name, value in _FIXED.items():
        if fields.get(name, value) != value:
            raise refuse(f"{name} is {fields[name]!r}; this encoder has {value!r} only")
    activation = fields.get("hidden_activation", "gelu")
    if not isinstance(activation, str) or activation not in _ACTIVATIONS:
        raise refuse(
            f"hidden_activation is {activation!r}; this encoder has {', '.join(_ACTIVATIONS)} only"
        )
    values = {ours: fields.get(theirs, default) for ours, (theirs, default) in _FIELDS.items()}
    for ours, (theirs, default) in _FIELDS.items():
        if ours.endswith("_id") and values[ours] is None:
            raise refuse(f"{theirs} is missing")
        if isinstance(values[ours], bool) != isinstance(default, bool) or not isinstance(
            values[ours], (int, float) if isinstance(default, float) else int
        ):
            raise refuse(f"{theirs} is {values[ours]!r}, a {type(default).__name__} is expected")
        if not isinstance(default, bool) and not ours.endswith("_id") and not values[ours] > 0:
            raise refuse(f"{theirs} is {values[ours]!r}; it must be positive")
    values["local_window"] = max(values["local_window"] // 2 * 2, 1)  # transformers halves it too
    layer_types = fields.get("layer_types")
    if layer_types is not None and not isinstance(layer_types, list):
        raise refuse(f"layer_types is {layer_types!r}, a list is expected")
    if layer_types and "global_attn_every_n_layers" not in fields:
        values["global_every"] = _period(layer_types)
    rope_global, rope_local = _rope_bases(folder, fields)
    config = EncoderConfig(
        **values,
        activation=_ACTIVATIONS[activation],
        rope_base_global=rope_global,
        rope_base_local=rope_local,
        attention_dropout=0.0,
    )
    if config.hidden_size % (2 * config.heads):
        raise refuse(
            f"num_attention_heads {config.heads} does not divide hidden_size "
            f"{config.hidden_size} into heads of even size"
        )
    if layer_types and layer_types != _layer_types(config):
        raise refuse(
            "layer_types does not make every n-th layer global; this encoder needs layers 0, n, "
            "2n, ... to be"
        )
    return config


def _period(layer_types: list[str]) -> int:
    """Return n where the second global layer is layer n."""
    later = [n for n, kind in enumerate(layer_types) if n and kind == "full_attention"]
    return later[0] if later else max(len(layer_types), 1)


def _rope_bases(folder: Path, fields: dict[str, Any]) -> tuple[float, float]:
    """Return the global and the local base, as transformers 4 or 5 writes them."""

    def base(name: str, value: Any) -> float:
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not math.isfinite(value) or value <= 0:
            raise UserError(f"{folder / CONFIG}: {name} is {value!r}; a RoPE base is positive")
        return float(value)

    parameters = fields.get("rope_parameters")
    if not parameters:
        whole = base("global_rope_theta", fields.get("global_rope_theta", 160_000.0))
        local = fields.get("local_rope_theta", 10_000.0)
        return whole, whole if local is None else base("local_rope_theta", local)
    plain = {"rope_type": "default", "rope_theta": None, "partial_rotary_factor": 1.0}  # None: any
    bases = []
    kinds = {"full_attention": "global_rope_theta", "sliding_attention": "local_rope_theta"}
    for kind, old_name in kinds.items():
        entry = parameters.get(kind) if isinstance(parameters, dict) else None
        if not isinstance(entry, dict) or any(
            name not in plain or plain[name] not in (None, value) for name, value in entry.items()
        ):
            raise UserError(
                f"{folder / CONFIG}: rope_parameters.{kind} is {entry!r}; "
                "this encoder has rope_type 'default' with a rope_theta only"
            )
        old = fields.get(old_name)
        bases.append(base(f"rope_theta of {kind}", entry.get("rope_theta", old)))
        if old is not None and old != bases[-1]:
            raise UserError(f"{folder / CONFIG}: {old_name} and rope_parameters disagree")
    return bases[0], bases[1]


def _layer_types(config: EncoderConfig) -> list[str]:
    return [
        "sliding_attention" if layer % config.global_every else "full_attention"
        for layer in range(config.layers)
    ]


def _read_weights(folder: Path) -> dict[str, Tensor]:
    if (folder / WEIGHTS).is_file():
        files = [WEIGHTS]
    elif (folder / INDEX).is_file():
        try:
            files = sorted(set(json.loads((folder / INDEX).read_text())["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError):
            raise UserError(f"{folder / INDEX}: is no index of safetensors files") from None
    else:
        raise UserError(f"{folder}: neither {WEIGHTS} nor {INDEX}; save it as safetensors first")
    weights: dict[str, Tensor] = {}
    for name in files:
        if not (folder / name).is_file():
            raise UserError(f"{folder}: {name}, which {INDEX} lists, is missing")
        try:
            weights |= load_file(folder / name)
        except SafetensorError as error:
            raise UserError(f"{folder / name}: cannot be read: {error}") from None
    return weights


def _few(names: dict[str, Tensor]) -> str:
    shown = sorted(names)[:3]
    return ", ".join(shown) + (" and others" if len(names) > len(shown) else "")
