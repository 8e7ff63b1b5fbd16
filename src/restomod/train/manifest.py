"""What a checkpoint's manifest says: whether it is whole, and whether a run may go on from it.

In: checkpoint folders, a recipe, the opened data. Out: what is wrong with a checkpoint, the newest
whole one, the guarded keys that changed. Imports no torch. `train/` and `tools/` call it.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

from restomod.config import Recipe
from restomod.data.sources import Sources
from restomod.errors import UserError
from restomod.recipe import flatten

log = logging.getLogger(__name__)

FORMAT = 3
MANIFEST = "manifest.json"
LOADER = "loader.json"
MODEL = "model.json"
STATE = "state"
METADATA = f"{STATE}/.metadata"
"""DCP's own index: a pickle, which nothing may load unless a manifest covers it."""
READERS = 8
"""Files hashed at a time, at most."""
FREE_KEYS = (
    "run_name",
    "runs_dir",
    "store",
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


def checkpoint_folder(run_folder: Path, step: int) -> Path:
    """Return the folder of a run's checkpoint."""
    return run_folder / "checkpoints" / f"step-{step:08d}"


def step_of(name: str) -> int | None:
    """Return the step of a checkpoint's folder by its name; None for any other name."""
    digits = name.removeprefix("step-")
    return int(digits) if name.startswith("step-") and digits.isdigit() else None


def local_steps(run_folder: Path) -> list[int]:
    """Return the steps of the folders that may hold a run's checkpoints, newest first."""
    folder = run_folder / "checkpoints"
    names = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
    return sorted((step for name in names if (step := step_of(name)) is not None), reverse=True)


def newest_checkpoint(run_folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """Return the newest whole checkpoint and its manifest; broken ones are named and passed
    over."""
    for step in local_steps(run_folder):
        folder = checkpoint_folder(run_folder, step)
        problem, manifest = verify(folder)
        if not problem:
            return folder, manifest
        log.warning("%s is not used: %s", folder, problem)
    return None


def verify(folder: Path, only: str = "") -> tuple[str, dict[str, Any]]:
    """Return what is wrong with a checkpoint (nothing: an empty text), and its manifest; `only` one
    of its files is looked at if named.

    A whole checkpoint's manifest covers every file of its `state/`, of which some are pickles.
    """
    try:
        content = (folder / MANIFEST).read_bytes()
    except FileNotFoundError:
        return f"{MANIFEST} is missing: it was never finished, or is being deleted", {}
    except OSError as error:
        return f"{MANIFEST} cannot be read: {error}", {}
    problem, manifest = read_manifest(content)
    if problem:
        return problem, {}
    files = {only: manifest["files"].get(only)} if only else manifest["files"]
    if None in files.values():
        return f"{only} is not in its manifest", {}
    if not only:
        there = {f"{STATE}/{path.name}" for path in (folder / STATE).glob("*")}
        if uncovered := sorted(there - files.keys()):
            return f"{uncovered[0]} is not in its manifest", {}
    problem = next((text for text in damages(folder, files).values() if text), "")
    return (problem, {}) if problem else ("", manifest)


def read_manifest(content: bytes) -> tuple[str, dict[str, Any]]:
    """Return what is wrong with a manifest (nothing: an empty text), and what it says."""
    try:
        manifest = json.loads(content)
        if manifest["format"] != FORMAT:
            return f"its format is {manifest['format']}, not {FORMAT}", {}
        files = manifest["files"]
        for name, entry in files.items():
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts:
                return f"its manifest names {name}, outside of its folder", {}
            if not (isinstance(entry["bytes"], int) and isinstance(entry["sha256"], str)):
                return f"its manifest says nothing of {name}", {}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return f"its manifest cannot be read: {error!r}", {}
    for name in (METADATA, MODEL):
        if name not in files:
            return f"{name} is not in its manifest", {}
    return "", manifest


def damages(folder: Path, files: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Return by name what is wrong with each of a checkpoint's files (nothing: an empty text);
    several are read at a time."""

    def damage(name: str) -> str:
        path, entry = folder / name, files[name]
        try:
            size = path.stat().st_size
            if size != entry["bytes"]:
                return f"{name} is damaged: {size} bytes, {entry['bytes']} are recorded"
            if hash_file(path) != entry["sha256"]:
                return f"{name} is damaged: its sha256 is not as recorded"
        except FileNotFoundError:
            return f"{name} is missing"
        except OSError as error:
            return f"{name} cannot be read: {error}"
        return ""

    with ThreadPoolExecutor(min(READERS, os.cpu_count() or 1)) as pool:
        return dict(zip(files, pool.map(damage, files), strict=True))


def describe_file(path: Path) -> dict[str, Any]:
    """Return a file's entry in a manifest."""
    return {"bytes": path.stat().st_size, "sha256": hash_file(path)}


def hash_file(path: Path) -> str:
    """Return the sha256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_durably(path: Path, text: str) -> None:
    """Write a file so that it is either whole or not there, also after a power cut."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def load_loader_state(folder: Path) -> dict[str, Any]:
    """Return the loader's state of a checkpoint, all lanes of it."""
    return json.loads((folder / LOADER).read_bytes())


def state_before(
    run_folder: Path, step: int, recipe: Recipe, identity: dict[str, str]
) -> tuple[int, dict[str, Any]] | None:
    """Return the step and the loader's state of the run's last checkpoint at or before `step` that
    was written with this recipe and this data; weights are not looked at."""
    for newest in local_steps(run_folder):
        folder = checkpoint_folder(run_folder, newest)
        problem, manifest = verify(folder, only=LOADER)
        if problem or manifest["step"] > step:
            continue
        if {**manifest["recipe"], **manifest["fingerprint"]} == {**guarded(recipe), **identity}:
            return manifest["step"], load_loader_state(folder)
    return None
