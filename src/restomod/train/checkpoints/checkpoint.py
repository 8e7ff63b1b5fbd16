"""Checkpoints: when they are taken, and how training goes on meanwhile.

A checkpoint is `checkpoints/step-00001000/` with `state/` (model and optimizer, independent of the
parallelism that wrote it), `loader.json` (the lanes' state by lane number), `model.json` (the
encoder's shape) and, written last, `manifest.json`: sizes and hashes of all of these, the step, and
what the run was trained with. Training stands still while its state is copied to CPU memory; a
thread does the rest (`saving.py`), another uploads (`upload.py`). `train/builder.py` is the caller.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from composer import Callback, Logger, State
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

from restomod.config import Recipe
from restomod.data.loader import Loader
from restomod.errors import UserError
from restomod.train.agreement import everywhere, gloo_group, world_size
from restomod.train.checkpoints.loading import StateReader, load_state
from restomod.train.checkpoints.manifest import FORMAT, checkpoint_folder
from restomod.train.checkpoints.retention import Saved, kept
from restomod.train.checkpoints.saving import Snapshot, Written, prune, write_checkpoint
from restomod.train.checkpoints.upload import Uploads
from restomod.train.clock import RunClock
from restomod.train.faults.stopping import is_lost_rank
from restomod.train.guards import guarded, place
from restomod.train.metrics import MetricsLog
from restomod.train.module import unwrap
from restomod.train.start import Start


class Checkpointing(Callback):
    """Saves every `every_steps` steps and when a phase ends; loads what the run begins from.

    `facts` returns what else a manifest says, `evaluation` where there was one among it. An
    error of the background is raised on all ranks at the end of the batch in which they see it.
    """

    def __init__(
        self,
        recipe: Recipe,
        loader: Loader,
        identity: dict[str, str],
        clock: RunClock,
        metrics: MetricsLog,
        start: Start,
        facts: Callable[[], dict[str, Any]],
        uploads: Uploads | None = None,
    ) -> None:
        self._recipe = recipe
        self._loader = loader
        self._identity = identity
        self._clock = clock
        self._metrics = metrics
        self._start = start
        self._timeline = start.timeline
        self._facts = facts
        self._uploads = uploads
        self._background = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: tuple[int, Future[Written], float] | None = None
        """Step of the save that goes on in the background, its end, its stall in seconds."""
        self.last_saved_step = start.step if start.resumes else -1
        """Step of the newest whole checkpoint; -1 before there is one."""
        pinned = torch.cuda.is_available()
        # Its buffers live as long as the run: allocating pinned memory takes longer than the copy.
        self._stager = DefaultStager(
            StagingOptions(
                use_pinned_memory=pinned,
                use_shared_memory=False,
                use_async_staging=False,
                use_non_blocking_copy=pinned,
            )
        )

    def fit_start(self, state: State, logger: Logger) -> None:
        self._saving_group = gloo_group()
        self._batch_group = gloo_group()
        if self._start.folder:
            self._load(state, self._start.folder, self._start.manifest)
            if self._start.resumes and self._uploads:
                self._uploads.add_whole(self._start.step, self._start.manifest)

    def _load(self, state: State, folder: Path, manifest: dict[str, Any]) -> None:
        """Load a checkpoint that was verified."""
        model = unwrap(state).model
        weights, moments = get_state_dict(model, state.optimizers)
        parts: dict[str, Any] = {"model": weights, "optimizer": moments}
        try:
            load_state(parts, StateReader(folder), self._saving_group)
        except (RuntimeError, ValueError) as error:
            if not self._start.changed or is_lost_rank(error):
                raise
            what = str(error).strip().splitlines()[-1]
            raise UserError(
                f"{folder}: does not hold what the recipe needs now that it differs in "
                f"{', '.join(self._start.changed)}: {what}\nundo that; init.weights takes a "
                "model's weights alone into a new run"
            ) from error
        set_state_dict(
            model,
            state.optimizers,
            model_state_dict=parts["model"],
            optim_state_dict=parts["optimizer"],
        )
        state.timestamp.load_state_dict(
            {
                key: timedelta(seconds=value) if key.endswith("_wct") else value
                for key, value in manifest["timestamp"].items()
            }
        )

    def batch_end(self, state: State, logger: Logger) -> None:
        if self._pending and everywhere(self._pending[1].done(), self._batch_group):
            self._collect()
        step = state.timestamp.batch.value
        if step % self._recipe.checkpoint.every_steps == 0 or self._timeline.ends_phase(step):
            self.save(state, step)

    def fit_end(self, state: State, logger: Logger) -> None:
        with self._clock.pause():
            self.wait()

    def close(self, state: State, logger: Logger) -> None:
        """Give up buffers and thread, however training ended."""
        self._background.shutdown(wait=False)
        self._stager.close()

    def save(self, state: State, step: int, wait: bool = False) -> None:
        """Save a checkpoint, on all ranks, after the one before it is whole; `wait` for its
        manifest, and for the store. A step that is saved already, or just being, is not saved
        again."""
        started = time.perf_counter()
        with self._clock.pause():
            if self._pending is None or self._pending[0] != step:
                self.wait()
            if self._pending is None and self.last_saved_step != step:
                snapshot = self._snapshot(state, step, started)
                folder = checkpoint_folder(self._recipe.run_folder, step)
                future = self._background.submit(self._write, snapshot, folder)
                self._pending = step, future, time.perf_counter() - started
            if wait:
                self.wait()
                if self._uploads:
                    self._uploads.wait()

    def wait(self) -> None:
        """Wait for the save in the background, if there is one; raises what went wrong in it."""
        if self._pending:
            self._collect()

    def _collect(self) -> None:
        assert self._pending is not None
        _, future, stall_s = self._pending
        self._pending = None
        written = future.result()
        self.last_saved_step = written.step
        self._metrics.write(
            "checkpoint",
            step=written.step,
            stall_s=stall_s,
            seconds=written.seconds,
            bytes=written.bytes,
        )
        if self._uploads:
            self._uploads.add(written.step, written.files)

    def _snapshot(self, state: State, step: int, started: float) -> Snapshot:
        """Copy everything that a checkpoint holds, so that training may change its own."""
        model = unwrap(state).model
        weights, moments = get_state_dict(model, state.optimizers)
        parts = self._stager.stage({"model": weights, "optimizer": moments})
        assert isinstance(parts, dict)  # a future in asynchronous staging alone
        about = {
            "format": FORMAT,
            "step": step,
            **place(self._timeline, step),
            "time_s": self._clock.now_s(),
            "world_size": world_size(),
            "timestamp": state.timestamp.state_dict(),
            "fingerprint": self._identity,
            "recipe": guarded(self._recipe),
            **self._facts(),
        }
        return Snapshot(
            step,
            parts,
            self._loader.state_dict(),
            dataclasses.asdict(model.config),
            about,
            started,
        )

    def _write(self, snapshot: Snapshot, folder: Path) -> Written:
        """Write a checkpoint and delete what is too old; in the background."""
        written = write_checkpoint(snapshot, folder, self._saving_group)
        prune(self._recipe.run_folder, snapshot.step, self._stay, self._saving_group)
        return written

    def _stay(self, checkpoints: list[Saved]) -> set[int]:
        if self._uploads:
            return self._uploads.local(checkpoints)
        return kept(checkpoints, self._recipe.checkpoint)
