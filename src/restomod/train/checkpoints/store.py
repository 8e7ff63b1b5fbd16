"""A run's place in an object store, or any file system that fsspec reaches.

In: files of the run folder. Out: the same below `STORE/RUN_NAME/`, and back. A checkpoint there
counts like one on disk once its manifest is there, which goes up last. Imports no torch;
`train/checkpoints/upload.py` writes, `train/checkpoints/resume.py` and `tools/average.py` read.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from restomod.data.cache import retried
from restomod.errors import UserError
from restomod.train.checkpoints.manifest import (
    MANIFEST,
    READERS,
    STATE,
    damages,
    read_manifest,
    step_of,
    write_durably,
)

log = logging.getLogger(__name__)

ATTEMPTS = 6
"""Tries of each transfer, with pauses of 1, 2, 4, 8 and 16 s between them."""
PART = ".part"
PROBE = ".writable"


class ArrivedDamagedError(Exception):
    """A transfer that came to its end with other bytes than it should have."""


class Store:
    """`url`/`run_name`. Raises UserError where fsspec knows no such file system."""

    def __init__(
        self, url: str, run_name: str, pause: Callable[[float], None] = time.sleep
    ) -> None:
        import fsspec

        local = "://" not in url or url.startswith(("file:", "local:"))
        options = {"auto_mkdir": True} if local else {}
        try:
            self._system, root = fsspec.core.url_to_fs(url, **options)
        except (ImportError, ValueError) as error:
            raise UserError(f"store: {url} cannot be opened: {error}") from error
        self._root = f"{root.rstrip('/')}/{run_name}"
        self._url = f"{url.rstrip('/')}/{run_name}"
        self._pause = pause

    def check(self) -> None:
        """Raise UserError if nothing can be written: better now than after hours."""
        try:
            self._system.pipe_file(f"{self._root}/{PROBE}", b"-")
            self._system.rm_file(f"{self._root}/{PROBE}")
        except Exception as error:  # each store's library has its own
            raise UserError(f"store: {self._url} cannot be written: {error}") from error

    def address(self, step: int) -> str:
        """Return the full name of a checkpoint, for a message."""
        return f"{self._url}/{_folder(step)}"

    def steps(self) -> list[int]:
        """Return the steps of the checkpoints whose manifest is there, newest first."""

        def listed() -> list[str]:
            self._system.invalidate_cache()
            return self._system.glob(f"{self._root}/checkpoints/step-*/{MANIFEST}")

        steps = [step_of(path.split("/")[-2]) for path in self._reached(listed)]
        return sorted((step for step in steps if step is not None), reverse=True)

    def manifest(self, step: int) -> tuple[str, dict[str, Any]]:
        """Return what is wrong with a checkpoint's manifest (nothing: an empty text), and what it
        says."""
        content = self._reached(lambda: self._read(f"{_folder(step)}/{MANIFEST}"))
        return (f"{MANIFEST} is missing", {}) if content is None else read_manifest(content)

    def text(self, name: str) -> bytes | None:
        """Return the content of one of the run's files; None if it is not there."""
        return self._reached(lambda: self._read(name))

    def put(self, local: Path, name: str) -> None:
        """Upload a file, tried again while that fails or fewer bytes arrive; raises the last
        error."""
        size = local.stat().st_size

        def send() -> None:
            self._system.put_file(str(local), f"{self._root}/{name}")
            self._system.invalidate_cache()
            arrived = self._system.info(f"{self._root}/{name}")["size"]
            if arrived != size:
                raise ArrivedDamagedError(f"{self._url}/{name}: {arrived} bytes arrived of {size}")

        retried(ATTEMPTS, self._pause, send)

    def remove(self, step: int) -> None:
        """Delete a checkpoint, its manifest first; what is not there is no error."""

        def delete() -> None:
            self._system.invalidate_cache()
            for path in (f"{_folder(step)}/{MANIFEST}", _folder(step)):
                if self._system.exists(f"{self._root}/{path}"):
                    self._system.rm(f"{self._root}/{path}", recursive=True)

        retried(ATTEMPTS, self._pause, delete)

    def fetch(self, step: int, manifest: dict[str, Any], folder: Path) -> str:
        """Make `folder` the checkpoint that `manifest` describes: files that are there and right
        stay, others are downloaded; return what is wrong with one (nothing: an empty text).

        Raises UserError if the store cannot be reached or the disk refuses.
        """
        from restomod.train.checkpoints.saving import disk_errors

        files = manifest["files"]
        with disk_errors(folder):
            (folder / STATE).mkdir(parents=True, exist_ok=True)
            (folder / MANIFEST).unlink(missing_ok=True)  # it counts again when it is whole
            for path in (folder / STATE).iterdir():
                if f"{STATE}/{path.name}" not in files:
                    path.unlink()
            wanted = [name for name, problem in damages(folder, files).items() if problem]
            with ThreadPoolExecutor(READERS) as pool:
                problems = list(
                    pool.map(lambda name: self._fetch(step, name, files[name], folder), wanted)
                )
            problem = next((text for text in problems if text), "")
            if not problem:
                log.info("%s: %d files came from %s", folder, len(wanted), self._url)
                write_durably(folder / MANIFEST, json.dumps(manifest, indent=1))
        return problem

    def _fetch(self, step: int, name: str, entry: dict[str, Any], folder: Path) -> str:
        """Download one file of a checkpoint; return what is wrong with it."""
        path, part = folder / name, folder / (name + PART)

        def receive() -> str:
            try:
                self._system.get_file(f"{self._root}/{_folder(step)}/{name}", str(part))
            except FileNotFoundError:
                return f"{name} is missing in {self._url}"
            problem = damages(folder, {name + PART: entry})[name + PART]
            if problem:
                raise ArrivedDamagedError(problem.replace(PART, ""))
            os.replace(part, path)
            return ""

        try:
            return self._reached(receive)
        except ArrivedDamagedError as error:
            part.unlink(missing_ok=True)
            return f"{error} (of {self._url})"

    def _read(self, name: str) -> bytes | None:
        try:
            self._system.invalidate_cache()
            return self._system.cat_file(f"{self._root}/{name}")
        except FileNotFoundError:
            return None

    def _reached(self, what: Callable[[], Any]) -> Any:
        """Return what `what` does, tried again while it fails; UserError if it keeps failing."""
        try:
            return retried(ATTEMPTS, self._pause, what)
        except (UserError, ArrivedDamagedError):
            raise
        except Exception as error:  # each store's library has its own
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise UserError(f"store: {self._url} cannot be reached: {error}") from error


def open_store(url: str, run_name: str) -> Store | None:
    """Return a run's place in the store that a recipe names; None if it names none."""
    return Store(url, run_name) if url else None


def _folder(step: int) -> str:
    return f"checkpoints/step-{step:08d}"
