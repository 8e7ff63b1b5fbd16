"""Finds the checkpoint that a run goes on from, and sees to it that every rank can read it.

In: the run folder of each node and the store, if there is one. Out: a whole checkpoint, the same on
all ranks, with all of its files on every node. Rank 0 looks and checks hashes, and says what it
found. `train/start.py` is the caller, before anything is built.
"""

from __future__ import annotations

import logging
import os
import uuid
from functools import partial
from pathlib import Path
from typing import Any

from restomod.config import Recipe
from restomod.errors import UserError
from restomod.train.agreement import (
    Group,
    leads_node,
    on_first,
    on_one_node,
    rank,
    together,
    until,
)
from restomod.train.checkpoints.manifest import (
    MANIFEST,
    checkpoint_folder,
    local_steps,
    step_of,
    verify,
)
from restomod.train.checkpoints.store import Store, open_store

log = logging.getLogger(__name__)

SLOW_DISK_S = 60.0
"""How long a shared file system may take to show a file to other nodes."""
REJECTED = "rejected.json"
"""What the manifest of a checkpoint that was passed over becomes: it counts no more."""


def find_checkpoint(
    recipe: Recipe, store: Store | None, group: Group
) -> tuple[Path, dict[str, Any]] | None:
    """Return the newest whole checkpoint of the run, over run folder and store, and its manifest.

    Broken ones are named in a warning. Raises UserError if the nodes share no run folder and there
    is no store, or if the store cannot be reached: an older checkpoint would be the wrong one.
    """
    shared = _is_shared(recipe.run_folder, group)
    if not shared and store is None:
        raise UserError(
            f"{recipe.run_folder}: not every node sees this folder, so a checkpoint could not be "
            "loaded again; put runs_dir on a shared file system, or set `store` to a remote folder"
        )
    passed_over: set[int] = set()
    while True:
        found = on_first(partial(_newest, recipe.run_folder, store, passed_over), group)
        if found is None:
            return None
        step, manifest, _ = found
        folder = checkpoint_folder(recipe.run_folder, step)
        problem = _complete(folder, found, store, shared, group)
        if not problem:
            on_first(partial(_reject, recipe.run_folder, step), group)
            return folder, manifest
        if rank() == 0:
            log.warning("%s is not used: %s", folder, problem)
        passed_over.add(step)


def complete(path: Path, recipe: Recipe, group: Group) -> dict[str, Any]:
    """Return the manifest of a checkpoint, of whatever run, with all of its files on every node.

    What is not there comes from the recipe's store, where a run has the name of its folder. Raises
    UserError if the checkpoint is nowhere, or damaged.
    """
    store = open_store(recipe.store, path.parent.parent.name)
    shared = _is_shared(recipe.run_folder, group)
    found = on_first(partial(_named, path, store), group)
    problem = _complete(path, found, store, shared, group)
    if problem:
        raise UserError(f"{path}: the checkpoint cannot be used: {problem}")
    return found[1]


def _named(path: Path, store: Store | None) -> Found:
    """Return what there is of a checkpoint; raises UserError if that is not enough."""
    problem, manifest = verify(path) if path.is_dir() else ("", {})
    if manifest and not problem:
        return manifest["step"], manifest, True
    step = step_of(path.name)
    if store and step in store.steps():
        problem, manifest = store.manifest(step)
        if not problem:
            return step, manifest, False
    if problem:
        raise UserError(f"{path}: the checkpoint cannot be used: {problem}")
    steps = {*local_steps(path.parent.parent), *(store.steps() if store else ())}
    near = ", ".join(checkpoint_folder(path, step).name for step in sorted(steps))
    raise UserError(f"{path}: no such checkpoint{f'; there is {near}' if near else ''}")


def _complete(folder: Path, found: Found, store: Store | None, shared: bool, group: Group) -> str:
    """Complete every node's copy of a checkpoint from the store; return what is wrong with it."""
    _, manifest, whole = found
    downloads = (rank() == 0 if shared else leads_node()) and not (rank() == 0 and whole)
    problems = together(partial(_bring, store if downloads else None, found, folder), group)
    problem = next((text for text in problems if text), "")
    if not problem:
        together(partial(_await, folder, manifest), group)
    return problem


Found = tuple[int, dict[str, Any], bool]
"""Step and manifest of a checkpoint, and whether rank 0's run folder has all of it."""


def _bring(store: Store | None, found: Found, folder: Path) -> str:
    """Complete a node's copy from the store; return what is wrong with it."""
    return store.fetch(found[0], found[1], folder) if store else ""


def _newest(run_folder: Path, store: Store | None, passed_over: set[int]) -> Found | None:
    """Return the newest checkpoint that seems whole."""
    here, there = set(local_steps(run_folder)), set(store.steps()) if store else set()
    for step in sorted((here | there) - passed_over, reverse=True):
        folder = checkpoint_folder(run_folder, step)
        if step in here:
            problem, manifest = verify(folder)
            if not problem:
                return step, manifest, True
            if step in there:
                log.info("%s: %s; it is completed from the store", folder, problem)
            else:
                log.warning("%s is not used: %s", folder, problem)
        if store and step in there:
            problem, manifest = store.manifest(step)
            if not problem:
                return step, manifest, False
            log.warning("%s is not used: %s", store.address(step), problem)
        passed_over.add(step)
    return None


def _is_shared(run_folder: Path, group: Group) -> bool:
    """Return whether all nodes see the same run folder."""
    if on_one_node():
        return True

    def write() -> str:
        run_folder.mkdir(parents=True, exist_ok=True)
        token = run_folder / f".seen-{uuid.uuid4().hex}"
        token.touch()
        return token.name

    name = on_first(write, group)
    # Nobody has looked for this name before, so no client has cached that it is missing.
    seen = together(lambda: until(lambda: (run_folder / name).exists(), 5.0), group)
    if rank() == 0:
        os.unlink(run_folder / name)
    return all(seen)


def _await(folder: Path, manifest: dict[str, Any]) -> None:
    """Return when this rank sees all files of a checkpoint that another rank has verified."""

    def complete() -> bool:
        files = manifest["files"].items()
        return all((folder / name).is_file() for name in (MANIFEST, *dict(files))) and all(
            (folder / name).stat().st_size == entry["bytes"] for name, entry in files
        )

    if not until(complete, SLOW_DISK_S):
        raise UserError(f"{folder}: rank {rank()} cannot see all files that rank 0 has verified")


def _reject(run_folder: Path, step: int) -> None:
    """Keep newer checkpoints, which were found broken, from being counted as whole."""
    for newer in local_steps(run_folder):
        manifest = checkpoint_folder(run_folder, newer) / MANIFEST
        if newer > step and manifest.is_file():
            manifest.rename(manifest.with_name(REJECTED))
