"""Writes one checkpoint, in the background, by all ranks; deletes what is too old.

In: a snapshot that training no longer touches. Out: a folder that counts from the moment at which
its manifest is there. Each rank writes and hashes its own files, rank 0 the rest. Runs in the
saving thread of `checkpoint.py`, on a gloo group that nothing else uses; `tools/average.py` writes
through it too.
"""

from __future__ import annotations

import errno
import json
import logging
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException

from restomod.errors import UserError
from restomod.train.agreement import Group, leads_node, on_first, rank, together
from restomod.train.checkpoints.manifest import (
    LOADER,
    MANIFEST,
    METADATA,
    MODEL,
    STATE,
    checkpoint_folder,
    describe_file,
    local_steps,
    read_manifest,
    write_durably,
)
from restomod.train.checkpoints.retention import Saved, saved

log = logging.getLogger(__name__)

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
UNWRITTEN = "The checkpoint is not written, those before it are as they were"


@dataclass
class Snapshot:
    """All that goes into a checkpoint, copied out of training."""

    step: int
    parts: dict[str, Any]
    """What torch.distributed.checkpoint stores: model, optimizer."""
    loader: dict[str, Any]
    """This rank's lanes."""
    model: dict[str, Any]
    """The encoder's shape."""
    about: dict[str, Any]
    """The manifest's fields, `files` excepted; rank 0's count."""
    started: float
    """Value of time.perf_counter at the save's beginning."""


@dataclass
class Written:
    """A checkpoint that counts."""

    step: int
    files: list[str]
    """What this rank wrote of it, the manifest excepted."""
    bytes: int
    """Of all ranks' files."""
    seconds: float
    """From the save's beginning until its manifest was there."""


def write_checkpoint(snapshot: Snapshot, folder: Path, group: Group) -> Written:
    """Write a checkpoint with all ranks; raises UserError on every rank if a disk is full or
    refuses, with what was written removed."""
    on_first(lambda: remove(folder), group)  # a whole one is what the run would have gone on from
    together(lambda: _remove_on_nodes(folder), group)
    try:
        together(lambda: _make_folder(folder / STATE), group)
        save_state(snapshot.parts, folder, group)
        described = together(lambda: _own_files(folder), group)
        loaders = together(lambda: snapshot.loader, group)
        finished = on_first(lambda: _finish(snapshot, folder, described, loaders), group)
    except Exception:
        if leads_node():
            shutil.rmtree(folder, ignore_errors=True)
        raise
    mine = [*described[rank()], *((LOADER, MODEL) if rank() == 0 else ())]
    return Written(snapshot.step, mine, *finished)


def save_state(parts: dict[str, Any], folder: Path, group: Group) -> None:
    """Write `state/` with all ranks of a group; raises UserError on all if a disk refuses."""
    writer = _Writer(folder / STATE)
    try:
        dcp.save(parts, storage_writer=writer, process_group=group, no_dist=group is None)
    except CheckpointException as error:  # which is no Exception
        causes = [failure[0] for failure in error.failures.values()]
        raise next((c for c in causes if isinstance(c, UserError)), RuntimeError(error)) from error


class _Writer(dcp.FileSystemWriter):
    """Says on the rank where it happens that a disk is full: torch tells in the error's context
    only, which other ranks do not get to see."""

    def write_data(self, plan: Any, planner: Any) -> Any:
        with disk_errors(Path(self.path)):
            return super().write_data(plan, planner)

    def finish(self, metadata: Any, results: Any) -> None:
        with disk_errors(Path(self.path)):
            super().finish(metadata, results)


@contextmanager
def disk_errors(folder: Path, result: str = UNWRITTEN) -> Iterator[None]:
    """Turn an error of the disk that holds `folder` into a UserError that says what has become of
    the run and what to do."""
    try:
        yield
    except Exception as error:
        cause = _os_error(error)
        if cause is None:
            raise
        if cause.errno not in FULL:
            raise UserError(
                f"{folder}: cannot be written: {cause.strerror}. {result}: get the right to write "
                "there or choose another folder, and start again"
            ) from error
        there = next((path for path in (folder, *folder.parents) if path.exists()), Path("/"))
        raise UserError(
            f"{folder}: the disk is full: {cause.strerror}; {shutil.disk_usage(there).free:,} "
            f"bytes are free there. {result}: make room or choose another runs_dir "
            "(checkpoint.keep says how many stay), and start again"
        ) from error


def _os_error(error: BaseException | None) -> OSError | None:
    """Return the error of the operating system that led to `error`, if one did."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, OSError) and error.errno is not None:
            return error
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return None


def _make_folder(folder: Path) -> None:
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)


def _own_files(folder: Path) -> dict[str, dict[str, Any]]:
    """Return by name the manifest's entries of what this rank wrote into `state/`."""
    names = [f"{STATE}/{path.name}" for path in sorted((folder / STATE).glob(f"__{rank()}_*"))]
    names += [METADATA] if rank() == 0 else []
    return {name: describe_file(folder / name) for name in names}


def _finish(
    snapshot: Snapshot,
    folder: Path,
    described: list[dict[str, dict[str, Any]]],
    loaders: list[dict[str, Any]],
) -> tuple[int, float]:
    """Write rank 0's own files, then the manifest; return bytes and seconds."""
    merged = {
        "rows": loaders[0]["rows"],
        "lanes": {lane: value for part in loaders for lane, value in part["lanes"].items()},
    }
    files = {name: entry for part in described for name, entry in part.items()}
    with disk_errors(folder):
        for name, content in ((LOADER, merged), (MODEL, snapshot.model)):
            write_durably(folder / name, json.dumps(content, default=_as_json))
            files[name] = describe_file(folder / name)
        manifest = json.dumps({**snapshot.about, "files": files}, indent=1, default=_as_json)
        write_durably(folder / MANIFEST, manifest)  # from here on the checkpoint counts
    size = sum(entry["bytes"] for entry in files.values())
    return size, time.perf_counter() - snapshot.started


def _as_json(value: Any) -> Any:
    if isinstance(value, np.ndarray | torch.Tensor):
        return value.tolist()
    if isinstance(value, timedelta):
        return value.total_seconds()
    raise TypeError(f"{type(value)} does not go into a checkpoint")


def prune(
    run_folder: Path, step: int, stay: Callable[[list[Saved]], set[int]], group: Group
) -> None:
    """Delete the run's checkpoints before `step` that `stay` does not name among the whole ones;
    what is left of unfinished ones goes too."""
    steps = on_first(lambda: stay(_whole(run_folder, step)) | {step}, group)

    def delete() -> None:
        for old in local_steps(run_folder):
            if old < step and old not in steps and leads_node():
                try:
                    remove(checkpoint_folder(run_folder, old))
                except FileNotFoundError:  # another node's leader was faster, on a shared disk
                    pass
                except OSError as error:
                    log.warning("an old checkpoint cannot be deleted: %s", error)

    on_first(delete, group)
    together(delete, group)


def _whole(run_folder: Path, step: int) -> list[Saved]:
    """Return the checkpoints up to `step` that have a manifest."""
    found = []
    for old in local_steps(run_folder):
        path = checkpoint_folder(run_folder, old) / MANIFEST
        if old <= step and path.is_file():
            problem, manifest = read_manifest(path.read_bytes())
            if not problem:
                found.append(saved(manifest))
    return found


def remove(folder: Path) -> None:
    """Delete a checkpoint, its manifest first: half of one must not count. Raises OSError."""
    if folder.exists():
        (folder / MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(folder)


def _remove_on_nodes(folder: Path) -> None:
    if leads_node():
        shutil.rmtree(folder, ignore_errors=True)
