"""What the tools read of a run folder.

In: a run's, a checkpoint's or a model's folder. Out: the recipe, the tokenizer's folder, the model.
Everything that takes a model by its path calls it.
"""

from __future__ import annotations

import json
from pathlib import Path

from restomod.config import Recipe
from restomod.errors import UserError, within
from restomod.model.config import EncoderConfig
from restomod.model.encoder import MaskedLM
from restomod.model.hf import load_transformers
from restomod.recipe import load_recipe
from restomod.train.checkpoints.manifest import MANIFEST, MODEL, newest_checkpoint, verify


def run_recipe(folder: Path) -> Recipe:
    """Return the recipe that a run was started with."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder{within(folder)}")
    if not (folder / "config.yaml").is_file():
        raise UserError(f"{folder}: is no run folder: it has no config.yaml")
    return load_recipe([folder / "config.yaml"])


def run_of(path: Path) -> Path:
    """Return the run folder that a checkpoint or an average lies in; any other path as it is."""
    if not (path / MANIFEST).is_file():
        return path
    path = path.resolve()
    return path.parents[1] if path.parent.name == "checkpoints" else path.parent


def tokenizer_folder(path: Path) -> Path:
    """Return where the tokenizer of a run, a checkpoint, an average or a transformers folder lies.

    Raises UserError if there is none.
    """
    for folder in (run_of(path) / "tokenizer", path):
        if any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json")):
            return folder
    raise UserError(f"{path}: has no tokenizer: neither tokenizer/ of a run nor tokenizer.json")


def load_model(path: str | Path, *, backbone: bool = False) -> MaskedLM:
    """Load a model, in float32, on the CPU, in eval mode.

    `path` is a checkpoint folder, an average, a run folder (its newest whole checkpoint is taken)
    or a folder of transformers' ModernBertForMaskedLM; with `backbone`, also of a classifier, for
    its encoder. Raises UserError for anything else.
    """
    path = Path(path)
    if not path.is_dir():
        beside = sorted(other.name for other in path.parent.glob("step-*"))
        there = (
            f"; there is {', '.join(beside)}" if beside and path.name.startswith("step-") else ""
        )
        raise UserError(f"{path}: no such folder{within(path)}{there}")
    if (path / "model.safetensors").is_file() or (path / "model.safetensors.index.json").is_file():
        return load_transformers(path, backbone=backbone)
    if (path / MANIFEST).is_file():
        problem, _ = verify(path)
        if problem:
            raise UserError(f"{path}: the checkpoint cannot be used: {problem}")
        return _load_checkpoint(path)
    newest = newest_checkpoint(path) if (path / "checkpoints").is_dir() else None
    if newest is None:
        raise UserError(
            f"{path}: holds no whole checkpoint, and is no checkpoint or transformers folder itself"
        )
    return _load_checkpoint(newest[0])


def _load_checkpoint(folder: Path) -> MaskedLM:
    """Load the model alone of a checkpoint that was verified."""
    from restomod.train.checkpoints.loading import StateReader, load_state

    model = MaskedLM(EncoderConfig(**json.loads((folder / MODEL).read_bytes())))
    weights = model.state_dict()
    load_state({"model": weights}, StateReader(folder))
    model.load_state_dict(weights)
    return model.eval()
