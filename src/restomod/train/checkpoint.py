"""Checkpoints: written by torch.distributed.checkpoint, complete once their manifest is there.

A checkpoint is `checkpoints/step-00001000/` with `state/` (model and optimizer, independent of the
parallelism that wrote it), `loader.json` (the lanes' state by lane number), `model.json` (the
encoder's shape) and, written last, `manifest.json`: sizes and hashes of all of these, the step, and
what the run was trained with. Nothing of a checkpoint is read that its manifest does not cover;
`train/manifest.py` reads it.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import shutil
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed.checkpoint as dcp
from composer import Callback, Logger, State
from composer.utils import dist
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

from restomod.config import Recipe
from restomod.data.loader import Loader
from restomod.timeline import Timeline
from restomod.train.clock import RunClock
from restomod.train.manifest import FORMAT, guarded, hash_file, place
from restomod.train.metrics import MetricsLog
from restomod.train.module import unwrap
from restomod.train.start import Start

log = logging.getLogger(__name__)


class Checkpointing(Callback):
    """Saves every `every_steps` steps and at the end of every phase; loads what the run begins
    from."""

    def __init__(
        self,
        recipe: Recipe,
        timeline: Timeline,
        loader: Loader,
        identity: dict[str, str],
        clock: RunClock,
        metrics: MetricsLog,
        start: Start,
    ) -> None:
        self._recipe = recipe
        self._timeline = timeline
        self._loader = loader
        self._identity = identity
        self._clock = clock
        self._metrics = metrics
        self._start = start

    def fit_start(self, state: State, logger: Logger) -> None:
        folder, manifest = self._start.folder, self._start.manifest
        if folder is None:
            return
        module = unwrap(state)
        weights, moments = get_state_dict(module.model, state.optimizers)
        parts: dict[str, Any] = {"model": weights, "optimizer": moments}
        dcp.load(parts, checkpoint_id=folder / "state", no_dist=dist.get_world_size() == 1)
        set_state_dict(
            module.model,
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
        step = state.timestamp.batch.value
        if step % self._recipe.checkpoint.every_steps == 0 or self._timeline.ends_phase(step):
            with self._clock.pause():
                self._save(state, step)

    def _save(self, state: State, step: int) -> None:
        started = time.perf_counter()
        folder = self._recipe.run_folder / "checkpoints" / f"step-{step:08d}"
        if dist.get_global_rank() == 0 and folder.exists():
            shutil.rmtree(
                folder
            )  # what is there was found broken, or the run would have resumed from it
        dist.barrier()
        module = unwrap(state)
        weights, moments = get_state_dict(module.model, state.optimizers)
        dcp.save(
            {"model": weights, "optimizer": moments},
            checkpoint_id=folder / "state",
            no_dist=dist.get_world_size() == 1,
        )
        loader_states = dist.all_gather_object(self._loader.state_dict())
        if dist.get_global_rank() == 0:
            merged = {
                "rows": loader_states[0]["rows"],
                "lanes": {
                    lane: value for part in loader_states for lane, value in part["lanes"].items()
                },
            }
            _write(folder / "loader.json", json.dumps(merged, default=_plain))
            _write(folder / "model.json", json.dumps(dataclasses.asdict(module.model.config)))
            size = self._finish(folder, state, step)
            self._metrics.write(
                "checkpoint", step=step, seconds=time.perf_counter() - started, bytes=size
            )
        dist.barrier()

    def _finish(self, folder: Path, state: State, step: int) -> int:
        """Write the manifest, which makes the checkpoint count, then delete what is too old."""
        files: dict[str, dict[str, Any]] = {
            str(path.relative_to(folder)): {"bytes": path.stat().st_size, "sha256": hash_file(path)}
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }
        manifest = {
            "format": FORMAT,
            "step": step,
            **place(self._timeline, step),
            "time_s": self._clock.now_s(),
            "world_size": dist.get_world_size(),
            "timestamp": state.timestamp.state_dict(),
            "fingerprint": self._identity,
            "recipe": guarded(self._recipe),
            "files": files,
        }
        _write(folder / "manifest.json", json.dumps(manifest, indent=1, default=_plain))
        older = sorted(folder.parent.glob("step-*"))[: -self._recipe.checkpoint.keep]
        for old in older:
            (old / "manifest.json").unlink(missing_ok=True)
            shutil.rmtree(old)
        return sum(entry["bytes"] for entry in files.values())


def _write(path: Path, text: str) -> None:
    """Write a file so that it is either whole or not there."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray | torch.Tensor):
        return value.tolist()
    if isinstance(value, timedelta):
        return value.total_seconds()
    raise TypeError(f"{type(value)} does not go into a checkpoint")
