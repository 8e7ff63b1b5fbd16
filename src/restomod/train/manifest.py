"""What a checkpoint's manifest says: whether it is whole, and whether a run may go on from it.

In: checkpoint folders, a recipe, the opened data. Out: the checkpoint to resume from, the guarded
keys that changed. Imports no torch. `train/builder.py`, `tools/` and `train/checkpoint.py` call it.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import logging
from pathlib import Path
from typing import Any

from restomod.config import Recipe
from restomod.data.sources import Sources
from restomod.errors import UserError
from restomod.recipe import flatten

log = logging.getLogger(__name__)

FORMAT = 2
LOADER = "loader.json"
FREE_KEYS = (
    "run_name",
    "runs_dir",
    "cache_dir",
    "device",
    "tokenizer",  # its content is guarded by the fingerprint
    "data.streams.*",  # likewise
    "data.workers",
    "data.shards_open_per_rank",
    "data.cache_limit_gb",
    "data.download_*",
    "data.on_damaged_shard",
    "phases.*.slots",
    "phases.*.micro_batch_rows",
    "compute.*",
    "parallel.*",
    "evaluation.*",
    "checkpoint.*",
    "logging.*",
    "resume.*",
)
"""Keys that a resumed run may change; all others are guarded."""


def fingerprint(sources: Sources) -> dict[str, str]:
    """Return what identifies the data: hashes of every stream's index and of the tokenizer, and of
    every stream the column that is read and the tokens that its odds are worked out from."""
    identity = {"tokenizer": sources.tokenizer.fingerprint}
    for name, dataset in sources.streams.items():
        key = f"data.streams.{name}"
        identity[key] = dataset.fingerprint
        identity[f"{key}.column"] = dataset.column.name
        identity[f"{key}.tokens"] = str(dataset.attributes.tokens)
    return identity


def guarded(recipe: Recipe) -> dict[str, Any]:
    """Return the recipe's keys that a resumed run must not change."""
    return {
        key: value
        for key, value in flatten(recipe).items()
        if not any(fnmatch.fnmatch(key, free) for free in FREE_KEYS)
    }


def check_unchanged(
    manifest: dict[str, Any], recipe: Recipe, identity: dict[str, str]
) -> list[str]:
    """Return the guarded keys that changed and are allowed to; raise UserError for any other."""
    now = {**guarded(recipe), **identity}
    then = {**manifest["recipe"], **manifest["fingerprint"]}
    changed = [key for key in sorted(now.keys() | then.keys()) if now.get(key) != then.get(key)]
    refused = [
        key
        for key in changed
        if not any(key == allow or key.startswith(allow + ".") for allow in recipe.resume.allow)
    ]
    if refused:
        lines = [f"{key}: was {then.get(key)!r}, is {now.get(key)!r}" for key in refused]
        raise UserError(
            f"{recipe.run_folder}: the run cannot go on with another recipe or other data:\n  "
            + "\n  ".join(lines)
            + "\nundo the change, choose another run_name, or list the key in resume.allow"
        )
    return changed


def newest_checkpoint(run_folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """Return the newest whole checkpoint and its manifest; broken ones are named and passed
    over."""
    for folder in sorted((run_folder / "checkpoints").glob("step-*"), reverse=True):
        problem, manifest = verify(folder)
        if not problem:
            return folder, manifest
        log.warning("%s is not used: %s", folder, problem)
    return None


def verify(folder: Path, only: str = "") -> tuple[str, dict[str, Any]]:
    """Return what is wrong with a checkpoint (nothing: an empty text), and its manifest; `only` one
    of its files is looked at if named."""
    try:
        manifest = json.loads((folder / "manifest.json").read_bytes())
        if manifest["format"] != FORMAT:
            return f"its format is {manifest['format']}, not {FORMAT}", {}
        for name, entry in manifest["files"].items():
            if only and name != only:
                continue
            path = folder / name
            if path.stat().st_size != entry["bytes"] or hash_file(path) != entry["sha256"]:
                return f"{name} is damaged", {}
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing", {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"its manifest cannot be read: {error!r}", {}
    return "", manifest


def hash_file(path: Path) -> str:
    """Return the sha256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load_loader_state(folder: Path) -> dict[str, Any]:
    """Return the loader's state of a checkpoint, all lanes of it."""
    return json.loads((folder / LOADER).read_bytes())


def state_before(
    run_folder: Path, step: int, recipe: Recipe, identity: dict[str, str]
) -> tuple[int, dict[str, Any]] | None:
    """Return the step and the loader's state of the run's last checkpoint at or before `step` that
    was written with this recipe and this data; weights are not looked at."""
    for folder in sorted((run_folder / "checkpoints").glob("step-*"), reverse=True):
        problem, manifest = verify(folder, only=LOADER)
        if problem or manifest["step"] > step:
            continue
        if {**manifest["recipe"], **manifest["fingerprint"]} == {**guarded(recipe), **identity}:
            return manifest["step"], load_loader_state(folder)
    return None
