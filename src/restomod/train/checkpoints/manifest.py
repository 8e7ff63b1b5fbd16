"""A checkpoint's files, and the manifest that says whether it is whole.

In: checkpoint folders. Out: what is wrong with one, the newest whole one, what manifests say.
Imports no torch. `train/` and `tools/` call it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

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


def newest_step(run_folder: Path) -> int:
    """Return the step of the newest checkpoint that was written to its end, unverified; 0 if there
    is none."""
    steps = local_steps(run_folder)
    return next((s for s in steps if (checkpoint_folder(run_folder, s) / MANIFEST).is_file()), 0)


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
    return problem, {} if problem else manifest


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
