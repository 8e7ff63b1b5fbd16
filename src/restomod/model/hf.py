"""Conversion from and to transformers' `ModernBertForMaskedLM` folders, without transformers.

Enters or leaves: a folder with config.json and safetensors weights. The weights are the same
numbers under other names. Called by `load_model` and by the export and import tools.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from restomod.errors import UserError
from restomod.model.encoder import EncoderConfig, MaskedLM

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
    "vocab_size": ("vocab_size", 50_368),
    "max_sequence_length": ("max_position_embeddings", 8192),
    "pad_id": ("pad_token_id", 50_283),
    "cls_id": ("cls_token_id", 50_281),
    "sep_id": ("sep_token_id", 50_282),
}

# Fields that have one value in our encoder.
_FIXED: dict[str, Any] = {
    "attention_bias": False,
    "attention_dropout": 0.0,
    "classifier_activation": "gelu",
    "classifier_bias": False,
    "decoder_bias": True,
    "embedding_dropout": 0.0,
    "hidden_activation": "gelu",
    "mlp_bias": False,
    "mlp_dropout": 0.0,
    "norm_bias": False,
    "rope_scaling": None,
    "tie_word_embeddings": True,
}

# How transformers starts and classifies; read by it alone.
_EXPORT_ONLY: dict[str, Any] = {
    "classifier_dropout": 0.0,
    "classifier_pooling": "mean",
    "deterministic_flash_attn": False,
    "initializer_cutoff_factor": 2.0,
    "initializer_range": 0.02,
    "repad_logits_with_grad": False,
    "sparse_pred_ignore_index": -100,
    "sparse_prediction": False,
}


def load_transformers(folder: str | Path) -> MaskedLM:
    """Load a ModernBERT masked-language model, in float32, on the CPU, in eval mode.

    Raises UserError if the folder holds something else, or what our encoder cannot express.
    """
    folder = Path(folder)
    config = read_config(folder)
    theirs = _read_weights(folder)
    with torch.device("meta"):
        model = MaskedLM(config)
    weights = {}
    for name, parameter in model.state_dict().items():
        tensor = theirs.pop(transformers_name(name), None)
        if tensor is None:
            raise UserError(
                f"{folder}: the weights lack {transformers_name(name)}; "
                "a whole ModernBertForMaskedLM is needed, encoder and head"
            )
        if tensor.shape != parameter.shape:
            raise UserError(
                f"{folder}: {transformers_name(name)} has shape {list(tensor.shape)}, "
                f"but {CONFIG} asks for {list(parameter.shape)}"
            )
        weights[name] = tensor.to(torch.float32)
    decoder = theirs.pop(TIED, None)
    if decoder is not None and not torch.equal(
        decoder.float(), weights["encoder.embedding.weight"]
    ):
        raise UserError(f"{folder}: {TIED} differs from the embedding; they must be tied")
    if theirs:
        raise UserError(
            f"{folder}: weights that ModernBertForMaskedLM does not have: {_few(theirs)}"
        )
    model.load_state_dict(weights, assign=True)
    return model.requires_grad_(True).eval()


def save_transformers(
    model: MaskedLM, folder: str | Path, tokenizer_folder: str | Path | None = None
) -> None:
    """Write config.json and model.safetensors for transformers, and copy the tokenizer's files.

    Raises UserError if tokenizer_folder has no tokenizer.json, or an id is not in the vocabulary.
    """
    config = model.config
    for field in ("pad_id", "cls_id", "sep_id"):
        if not 0 <= getattr(config, field) < config.vocab_size:
            raise UserError(
                f"{field} {getattr(config, field)} is not in the vocabulary of "
                f"{config.vocab_size}; set the tokenizer's ids in the model's configuration"
            )
    if tokenizer_folder is not None and not (Path(tokenizer_folder) / "tokenizer.json").is_file():
        raise UserError(f"{tokenizer_folder}: no tokenizer.json to export with the model")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if tokenizer_folder is not None and Path(tokenizer_folder).resolve() != folder.resolve():
        for name in TOKENIZER_FILES:
            if (Path(tokenizer_folder) / name).is_file():
                shutil.copyfile(Path(tokenizer_folder) / name, folder / name)
    weights = {
        transformers_name(name): tensor.detach().cpu().contiguous()
        for name, tensor in model.state_dict().items()
    }
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / INDEX).unlink(missing_ok=True)  # of an earlier, sharded export
    fields = transformers_config(config)
    fields["torch_dtype"] = str(model.head.bias.dtype).removeprefix("torch.")
    (folder / CONFIG).write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n")


def transformers_name(name: str) -> str:
    """Return what transformers calls one of our parameters."""
    if name == "head.bias":
        return "decoder.bias"
    for ours, theirs in (
        ("encoder.embedding.", "model.embeddings.tok_embeddings."),
        ("encoder.embedding_norm.", "model.embeddings.norm."),
        ("encoder.", "model."),
    ):
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    return name


def transformers_config(config: EncoderConfig) -> dict[str, Any]:
    """Return the fields of config.json; layer_types repeats global_attn_every_n_layers."""
    return {
        "architectures": ["ModernBertForMaskedLM"],
        "model_type": "modernbert",
        **{theirs: getattr(config, ours) for ours, (theirs, _) in _FIELDS.items()},
        "bos_token_id": config.cls_id,
        "eos_token_id": config.sep_id,
        "global_rope_theta": config.rope_base_global,
        "local_rope_theta": config.rope_base_local,
        "layer_types": _layer_types(config),
        **{name: value for name, value in _FIXED.items() if name != "rope_scaling"},
        **_EXPORT_ONLY,
    }


def read_config(folder: Path) -> EncoderConfig:
    """Read config.json; raises UserError naming the field that is not ours."""
    try:
        fields = json.loads((folder / CONFIG).read_text())
    except FileNotFoundError:
        raise UserError(f"{folder}: no {CONFIG}; expected a transformers model's folder") from None
    except ValueError as error:
        raise UserError(f"{folder / CONFIG}: not JSON ({error})") from None
    if fields.get("model_type") != "modernbert":
        raise UserError(
            f"{folder / CONFIG}: model_type is {fields.get('model_type')!r}; "
            "only 'modernbert' can be loaded"
        )
    for name, value in _FIXED.items():
        if fields.get(name, value) != value:
            raise UserError(
                f"{folder / CONFIG}: {name} is {fields[name]!r}; this encoder has {value!r} only"
            )
    rope_global, rope_local = _rope_bases(folder, fields)
    config = EncoderConfig(
        **{ours: fields.get(theirs, default) for ours, (theirs, default) in _FIELDS.items()},
        rope_base_global=rope_global,
        rope_base_local=rope_local,
        attention_dropout=0.0,
    )
    if config.hidden_size % (2 * config.heads):
        raise UserError(
            f"{folder / CONFIG}: num_attention_heads {config.heads} does not divide "
            f"hidden_size {config.hidden_size} into heads of even size"
        )
    if fields.get("layer_types", _layer_types(config)) != _layer_types(config):
        raise UserError(
            f"{folder / CONFIG}: layer_types does not make every n-th layer global; "
            "this encoder needs layers 0, n, 2n, ... to be"
        )
    return config


def _rope_bases(folder: Path, fields: dict[str, Any]) -> tuple[float, float]:
    """Return the global and the local base, as transformers 4 or 5 writes them."""
    parameters = fields.get("rope_parameters")
    if not parameters:
        base = fields.get("global_rope_theta", 160_000.0)
        local = fields.get("local_rope_theta", 10_000.0)
        return float(base), float(base if local is None else local)
    bases = []
    for kind in ("full_attention", "sliding_attention"):
        entry = parameters.get(kind, {})
        if entry.get("rope_type", "default") != "default" or "rope_theta" not in entry:
            raise UserError(
                f"{folder / CONFIG}: rope_parameters.{kind} is {entry!r}; "
                "this encoder has rope_type 'default' with a rope_theta only"
            )
        bases.append(float(entry["rope_theta"]))
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
        files = sorted(set(json.loads((folder / INDEX).read_text())["weight_map"].values()))
    else:
        raise UserError(f"{folder}: neither {WEIGHTS} nor {INDEX}; save it as safetensors first")
    weights: dict[str, Tensor] = {}
    for name in files:
        if not (folder / name).is_file():
            raise UserError(f"{folder}: {name}, which {INDEX} lists, is missing")
        weights |= load_file(folder / name)
    return weights


def _few(names: dict[str, Tensor]) -> str:
    shown = sorted(names)[:3]
    return ", ".join(shown) + (" and others" if len(names) > len(shown) else "")
