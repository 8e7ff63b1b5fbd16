"""`restomod import` and `restomod tile`: from other models to where training starts.

In: a transformers folder, a checkpoint of AnswerDotAI/ModernBERT, or a smaller model. Out: a
transformers folder, and the part of a recipe that starts from it. `commands.py` calls it.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from restomod.config import ModelConfig
from restomod.data.tokenizer import load_tokenizer
from restomod.errors import UserError
from restomod.model.encoder import MaskedLM
from restomod.model.flexbert import load_flexbert, unwrapped
from restomod.model.hf import TOKENIZER_FILES, load_transformers, save_transformers
from restomod.model.tile import tile
from restomod.tools.runs import load_model
from restomod.train.checkpoints.loading import load_foreign


def describe_import(folder: Path) -> str:
    """Load a transformers folder; return the part of a recipe that starts from its weights."""
    return _describe(load_transformers(folder), folder)


def import_checkpoint(file: Path, out: Path, config: Path | None, tokenizer: Path | None) -> str:
    """Write a Composer checkpoint of AnswerDotAI/ModernBERT to `out` as a transformers folder, and
    return the part of a recipe that starts from its weights.

    `config` is the YAML that it was trained with; without it the configuration that Composer stored
    is read. `tokenizer` is a folder; without it the stored one is taken. Raises UserError for other
    files, for models that our encoder is not, and where something is missing or contradictory.
    """
    whole = load_foreign(file)
    state = _inner(whole, "state") or (whole if isinstance(whole, Mapping) else {})
    weights = unwrapped(_inner(state, "model") or state, file)
    stored = _inner(_inner(state, "integrations"), "huggingface")
    settings = dict(_inner(_inner(_inner(stored, "model"), "config"), "content"))
    asked, length = _read_yaml(config) if config else ({}, 8192)
    for name, value in asked.items():
        if settings.setdefault(name, value) != value and name != "vocab_size":
            raise UserError(
                f"{config}: {name} is {value!r}, but the checkpoint was written with "
                f"{settings[name]!r}"
            )
    with TemporaryDirectory() as unpacked:
        folder = tokenizer or _unpack_tokenizer(_inner(stored, "tokenizer"), Path(unpacked))
        if folder is None:
            raise UserError(
                f"{file}: no tokenizer is stored in it; give the folder of its tokenizer.json: "
                "--tokenizer FOLDER"
            )
        words = load_tokenizer(folder)
        ids = {name: getattr(words, name) for name in ("pad_id", "cls_id", "sep_id")}
        model = load_flexbert(weights, settings, ids, length, file)
        if words.size > model.config.vocab_size:
            raise UserError(
                f"{folder}: the tokenizer has {words.size:,} tokens, the model's vocabulary "
                f"{model.config.vocab_size:,}; it is another model's"
            )
        save_transformers(model, out, folder)
    return _describe(model, out, also=("attention_dropout",))


def _inner(value: Any, key: str) -> Mapping[str, Any]:
    """Return what lies under `key`, or nothing."""
    found = value.get(key) if isinstance(value, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def _read_yaml(file: Path) -> tuple[dict[str, Any], int]:
    """Return the model's settings and the longest sequence of a training YAML of theirs."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        content = OmegaConf.to_container(OmegaConf.load(file), resolve=True)
    except FileNotFoundError:
        raise UserError(f"{file}: no such file") from None
    except (OSError, yaml.YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"{file}: cannot be read: {error}") from None
    settings = dict(_inner(_inner(content, "model"), "model_config"))
    if not settings:
        raise UserError(f"{file}: has no model.model_config, so is no YAML of that repository's")
    assert isinstance(content, dict)
    length = content.get("max_seq_len", 8192)
    if not isinstance(length, int) or length < 1:
        raise UserError(f"{file}: max_seq_len is {length!r}, a number of tokens is expected")
    return settings, length


def _unpack_tokenizer(files: Mapping[str, Any], folder: Path) -> Path | None:
    """Write the tokenizer that Composer stored; return the folder, or nothing without one."""
    for name in TOKENIZER_FILES:
        content = _inner(files, name).get("content")
        if isinstance(content, list):
            (folder / name).write_text("\n".join(map(str, content)))
        elif content is not None:
            (folder / name).write_text(json.dumps(content))
    return folder if (folder / "tokenizer.json").is_file() else None


def _describe(model: MaskedLM, folder: Path, also: tuple[str, ...] = ()) -> str:
    config = model.config
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return (
        f"# {folder}: {parameters:,} parameters, vocabulary {config.vocab_size:,}, documents of up "
        f"to {config.max_sequence_length:,} tokens.\n"
        "# The part of a recipe that trains it further; RoPE bases belong to the phase.\n"
        + yaml.safe_dump(_recipe_part(model, folder, also), sort_keys=False)
    )


def _recipe_part(model: MaskedLM, folder: Path, also: tuple[str, ...]) -> dict[str, object]:
    """`also` are keys that a transformers folder does not tell."""
    plain = ModelConfig()
    names = [field.name for field in dataclasses.fields(ModelConfig)]
    changed = {
        name: getattr(model.config, name)
        for name in names
        if (name != "attention_dropout" or name in also)
        and getattr(model.config, name) != getattr(plain, name)
    }
    tokenizer = {"tokenizer": str(folder)} if (folder / "tokenizer.json").is_file() else {}
    return {
        **tokenizer,
        "model": changed,
        "init": {"weights": str(folder)},
        "phases": [
            {
                "rope_base_global": model.config.rope_base_global,
                "rope_base_local": model.config.rope_base_local,
            }
        ],
    }


def tile_model(
    source: Path,
    out: Path,
    layers: int | None,
    hidden_size: int | None,
    intermediate_size: int | None,
) -> str:
    """Tile the model of `source` to larger sizes, write it to `out` as a transformers folder, and
    return what it is and how to train it."""
    model = tile(load_model(source), layers, hidden_size, intermediate_size)
    # In a transformers folder, a run, or the run of a checkpoint.
    run = source.parent.parent if (source / "manifest.json").is_file() else source
    folders = (source, run / "tokenizer")
    tokenizer = next((f for f in folders if (f / "tokenizer.json").is_file()), None)
    save_transformers(model, out, tokenizer)
    config = model.config
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return (
        f"{out}: {config.layers} layers of {config.hidden_size}, {config.heads} heads, "
        f"intermediate size {config.intermediate_size}, {parameters:,} parameters\n"
        f"train it with init.weights={out} and a `model` section of these sizes "
        f"(`restomod import {out}` prints it)\n"
    )
