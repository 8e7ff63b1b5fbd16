"""`restomod import` and `restomod tile`: from other models to where training starts."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import yaml

from restomod.config import ModelConfig
from restomod.model.encoder import MaskedLM
from restomod.model.hf import load_transformers, save_transformers
from restomod.model.tile import tile
from restomod.tools.runs import load_model


def describe_import(folder: Path) -> str:
    """Load a transformers folder; return the part of a recipe that starts from its weights."""
    model = load_transformers(folder)
    config = model.config
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return (
        f"# {folder}: {parameters:,} parameters, vocabulary {config.vocab_size:,}, documents of up "
        f"to {config.max_sequence_length:,} tokens.\n"
        "# The part of a recipe that trains it further; RoPE bases belong to the phase.\n"
        + yaml.safe_dump(_recipe_part(model, folder), sort_keys=False)
    )


def _recipe_part(model: MaskedLM, folder: Path) -> dict[str, object]:
    plain = ModelConfig()
    names = [field.name for field in dataclasses.fields(ModelConfig)]
    changed = {
        name: getattr(model.config, name)
        for name in names
        if name != "attention_dropout" and getattr(model.config, name) != getattr(plain, name)
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
