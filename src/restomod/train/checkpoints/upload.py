"""Takes checkpoints and the run's files to the store, in the background.

In: checkpoints of the run folder that are whole. Out: the same in the store, each rank having sent
its own files and rank 0 the manifest after all the others; what retention does not keep is deleted
there. What cannot be sent is tried again with the next checkpoint. Has a thread and a gloo group of
its own, so that a slow store holds up no save; `train/checkpoints/checkpoint.py` is the caller.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from restomod.config import CheckpointConfig
from restomod.errors import UserError
from restomod.train.agreement import Group, on_first, rank, together
from restomod.train.checkpoints.manifest import MANIFEST, checkpoint_folder
from restomod.train.checkpoints.retention import Saved, kept, saved
from restomod.train.checkpoints.store import Store

log = logging.getLogger(__name__)

LOG = "metrics.jsonl"
QUEUED = 2
"""Checkpoints on their way at most; another one waits, and training with it."""


class Uploads:
    """The run's way into its store. Every rank makes the same calls in the same order."""

    def __init__(
        self, store: Store, run_folder: Path, rules: CheckpointConfig, group: Group
    ) -> None:
        self._store = store
        self._run_folder = run_folder
        self._rules = rules
        self._group = group
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="upload")
        self._jobs: dict[int, Future[None]] = {}
        self._unsent: dict[int, list[str]] = {}
        """Steps that are not in the store, and what this rank has to send of them."""
        self._problem = ""
        self._stored: dict[int, Saved] = {}
        """What the store holds, on rank 0, since it was looked at."""
        self._described = False
        """Whether the store has what says what the run is."""

    def add(self, step: int, files: list[str]) -> None:
        """Send a whole checkpoint, of which this rank sends `files`; rank 0 its manifest too."""
        for old in [old for old, job in self._jobs.items() if job.done()]:
            self._jobs.pop(old).result()
        while len(self._jobs) >= QUEUED:
            self._jobs.pop(min(self._jobs)).result()
        self._jobs[step] = self._thread.submit(self._run, step, files)

    def add_whole(self, step: int, manifest: dict[str, Any]) -> None:
        """Send a checkpoint that an earlier process of the run may have left unsent, if it is not
        in the store; rank 0 has all of its files."""
        if not on_first(lambda: step in self._store.steps(), self._group):
            self.add(step, list(manifest["files"]) if rank() == 0 else [])

    def wait(self) -> None:
        """Wait until everything on its way has arrived, or was given up for now."""
        while self._jobs:
            self._jobs.pop(min(self._jobs)).result()

    def finish(self) -> None:
        """Send the run's files as they are at its end; raises UserError if the newest checkpoint is
        not in the store."""
        self.wait()

        def send() -> None:
            self._send_log()
            self._send_run_files()

        problem = on_first(partial(_failure, send), self._group)
        if self._unsent or problem:
            raise UserError(
                f"store: {self._problem or problem}; the run is complete in {self._run_folder}: "
                "start the same command again to upload it"
            )

    def local(self, checkpoints: list[Saved]) -> set[int]:
        """Return which checkpoints stay in the run folder: the newest ones, those on their way, and
        those that belong into the store but are not there."""
        steps = sorted(one.step for one in checkpoints)
        belong = kept(checkpoints, self._rules) - set(self._stored)
        return {*steps[-self._rules.keep_local :], *belong, *list(self._jobs)}

    def _run(self, step: int, files: list[str]) -> None:
        self._unsent[step] = files
        for one in sorted(self._unsent, reverse=True):
            folder = checkpoint_folder(self._run_folder, one)
            if not on_first((folder / MANIFEST).exists, self._group):
                del self._unsent[one]  # retention took it
                continue
            self._problem = self._send(one, folder)
            if self._problem:
                if rank() == 0:
                    log.warning(
                        "%s is not in the store: %s; it stays on disk and is tried again with the "
                        "next checkpoint",
                        folder,
                        self._problem,
                    )
                break
            del self._unsent[one]
        if not self._problem:
            problem = on_first(partial(_failure, partial(self._prune, step)), self._group)
            if problem and rank() == 0:
                log.warning("store: %s", problem)

    def _send(self, step: int, folder: Path) -> str:
        """Upload a checkpoint; return what failed on any rank (nothing: an empty text)."""
        target = f"checkpoints/{folder.name}"

        def own_files() -> None:
            for name in self._unsent[step]:
                self._store.put(folder / name, f"{target}/{name}")

        def manifest() -> None:
            if not self._described:
                self._send_run_files()
                self._described = True
            self._send_log()  # whoever goes on from this checkpoint finds the steps before it
            self._store.put(folder / MANIFEST, f"{target}/{MANIFEST}")

        def clear() -> None:
            self._store.remove(step)  # what an earlier try, or an abandoned end of the run, left

        first = rank() == 0
        for action in (clear if first else _nothing, own_files, manifest if first else _nothing):
            problems = together(partial(_failure, action), self._group)
            if any(problems):
                return next(text for text in problems if text)
        return ""

    def _prune(self, step: int) -> None:
        """Delete what retention does not keep, and what the run had written behind `step` before it
        went back; on rank 0."""
        for other in set(self._store.steps()) - self._stored.keys():
            problem, manifest = self._store.manifest(other)
            if not problem:
                self._stored[other] = saved(manifest)
        stay = kept([one for one in self._stored.values() if one.step <= step], self._rules)
        for other in self._stored.keys() - stay:
            self._store.remove(other)
            del self._stored[other]

    def _send_log(self) -> None:
        copy = self._run_folder / f".{LOG}.upload"  # training goes on writing
        shutil.copyfile(self._run_folder / LOG, copy)
        self._store.put(copy, LOG)
        copy.unlink()

    def _send_run_files(self) -> None:
        """Send what is small and says what the run is; on rank 0."""
        for name in ("config.yaml", "report.html", "tokenizer", "averaged"):
            path = self._run_folder / name
            for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
                if file.is_file():
                    self._store.put(file, file.relative_to(self._run_folder).as_posix())


def restore_log(store: Store, run_folder: Path) -> None:
    """Take the run's log from the store if it says more than the one here; on rank 0."""
    path = run_folder / LOG
    content = store.text(LOG)
    if content is not None and (not path.exists() or path.stat().st_size < len(content)):
        run_folder.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def _failure(action: Callable[[], None]) -> str:
    """Return why an action failed (it did not: an empty text)."""
    try:
        action()
    except Exception as error:  # each store's library has its own
        return str(error) or repr(error)
    return ""


def _nothing() -> None:
    pass
