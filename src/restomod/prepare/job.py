"""The state of a job: its work folder, and which tasks of which stage are done.

In: a recipe and its plan. Out: folders for the stages, and the results of tasks, each a small JSON
file that appears when the task is done. A job that is started again does what is left; one whose
recipe or input has changed is refused, or begun anew if the user asks for it. `pipeline.py` is the
caller, and a `Job` travels to every worker.
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from restomod.errors import UserError
from restomod.prepare.atomic import read_json, write_json
from restomod.prepare.config import Preparation, identity
from restomod.prepare.files import InputFile
from restomod.recipe import flatten

logger = logging.getLogger(__name__)
FORMAT = 1
STATE = "job.json"


@dataclass(frozen=True)
class Job:
    """A recipe being carried out."""

    recipe: Preparation
    folder: Path
    """Work folder, which every worker sees."""

    @property
    def output(self) -> Path:
        """Where the output is put together before it is moved into place."""
        return self.folder / "out"

    def stage(self, name: str) -> Path:
        """Return a stage's folder."""
        return self.folder / name

    def result_file(self, stage: str, task: int) -> Path:
        """Return the file that says a task is done, and what it counted."""
        return self.folder / stage / "done" / f"{task:06d}.json"


def describe_inputs(files: dict[str, list[InputFile]]) -> list[dict[str, Any]]:
    """Return path, size and version of each input, in order."""
    return [
        {"source": source, "path": file.path, "bytes": file.size, "version": file.version}
        for source, of_source in files.items()
        for file in of_source
    ]


def fingerprint(recipe: Preparation, inputs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what must agree for a job to go on, or an output to be current."""
    content = {"format": FORMAT, "recipe": identity(recipe), "inputs": inputs}
    return json.loads(json.dumps(content))


def differences(recorded: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """Say how two fingerprints differ; empty if they agree."""
    found = []
    if recorded.get("format") != wanted["format"]:
        found.append(f"format {recorded.get('format')} -> {wanted['format']}")
    before, after = flatten(recorded.get("recipe") or {}), flatten(wanted["recipe"])
    found += [
        f"{key} {before.get(key)!r} -> {after.get(key)!r}"
        for key in dict.fromkeys([*before, *after])
        if before.get(key) != after.get(key)
    ]
    old = {json.dumps(entry, sort_keys=True) for entry in recorded.get("inputs") or []}
    new = {json.dumps(entry, sort_keys=True) for entry in wanted["inputs"]}
    changed = [json.loads(entry)["path"] for entry in sorted(old ^ new)]
    if changed:
        found.append(f"inputs changed: {', '.join(dict.fromkeys(changed[:3]))}")
    return found


@contextmanager
def open_job(recipe: Preparation, wanted: dict[str, Any], refresh: bool) -> Iterator[Job]:
    """Open the work folder, new or as a killed run left it, for one process at a time.

    Raises UserError when it is in use, belongs to something else, or holds a job of another recipe
    or input and `refresh` is not set.
    """
    folder = recipe.work_folder.absolute()
    state = folder / STATE
    if folder.is_dir() and any(folder.iterdir()) and not state.is_file():
        raise UserError(f"{folder}: is not empty and holds no job; choose another work_dir")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written: {error.strerror}") from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"{folder}: another process works in it") from error
        if state.is_file():
            changed = differences(read_json(state), wanted)
            if changed and not refresh:
                raise UserError(
                    f"{folder}: holds a job that was begun with another recipe or input "
                    f"({'; '.join(changed[:5])}); pass --refresh to begin anew, or choose another "
                    "out or work_dir"
                )
            if changed:
                logger.info("%s: begun anew, because of %s", folder, "; ".join(changed[:5]))
                _empty(folder)
        write_json(state, wanted)
        yield Job(dataclasses.replace(recipe, work_dir=str(folder)), folder)
    finally:
        os.close(lock)


def _empty(folder: Path) -> None:
    """Remove what a job left; its state goes last, so that a kill in between leaves a job."""
    for entry in folder.iterdir():
        if entry.name != STATE:
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


def close_job(job: Job) -> None:
    """Remove the work folder of a job that is done, while it is still open."""
    _empty(job.folder)
    shutil.rmtree(job.folder)


def remove_leftover(folder: Path) -> None:
    """Remove what a job left that was killed when it was done, unless somebody works there."""
    if not (folder / STATE).is_file():
        return
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _empty(folder)
        shutil.rmtree(folder)
    except BlockingIOError:
        return
    finally:
        os.close(lock)
