"""Checkpoints: written by torch.distributed.checkpoint, complete once their manifest is there.

A checkpoint is `checkpoints/step-00001000/` with `state/` (model and optimizer, independent of the
parallelism that wrote it), `loader.json` (the lanes' state by lane number), `model.json` (the
encoder's shape) and, written last, `manifest.json`: sizes and hashes of all of these, the step, and
what the run was trained with. Nothing of a checkpoint is read that its manifest does not cover.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import hashlib
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
from restomod.data.sources import Sources
from restomod.errors import UserError
from restomod.recipe import flatten
from restomod.train.clock import RunClock
from restomod.train.metrics import MetricsLog
from restomod.train.module import unwrap

log = logging.getLogger(__name__)

FORMAT = 1
FREE_KEYS = (
    "run_name",
    "runs_dir",
    "cache_dir",
    "device",
    "tokenizer",  # its content is guarded by the fingerprint
    "data.streams.*",  # likewise
    "data.workers",
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
    """Return what identifies the data: {name: hash} of every stream's index and of the
    tokenizer."""
    return {
        **{f"data.streams.{name}": data.fingerprint for name, data in sources.streams.items()},
        "tokenizer": sources.tokenizer.fingerprint,
    }


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


def verify(folder: Path) -> tuple[str, dict[str, Any]]:
    """Return what is wrong with a checkpoint (nothing: an empty text), and its manifest."""
    try:
        manifest = json.loads((folder / "manifest.json").read_bytes())
        if manifest["format"] != FORMAT:
            return f"its format is {manifest['format']}, not {FORMAT}", {}
        for name, entry in manifest["files"].items():
            path = folder / name
            if path.stat().st_size != entry["bytes"] or _hash(path) != entry["sha256"]:
                return f"{name} is damaged", {}
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing", {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"its manifest cannot be read: {error!r}", {}
    return "", manifest


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load_loader_state(folder: Path) -> dict[str, Any]:
    """Return the loader's state of a checkpoint, all lanes of it."""
    return json.loads((folder / "loader.json").read_bytes())


class Checkpointing(Callback):
    """Saves every `every_steps` steps and at the end; loads what the run is resumed from."""

    def __init__(
        self,
        recipe: Recipe,
        loader: Loader,
        identity: dict[str, str],
        clock: RunClock,
        metrics: MetricsLog,
        resumed: tuple[Path, dict[str, Any]] | None,
    ) -> None:
        self._recipe = recipe
        self._loader = loader
        self._identity = identity
        self._clock = clock
        self._metrics = metrics
        self._resumed = resumed

    def fit_start(self, state: State, logger: Logger) -> None:
        if self._resumed is None:
            return
        folder, manifest = self._resumed
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
        if step % self._recipe.checkpoint.every_steps == 0 or state.get_elapsed_duration() >= 1:  # type: ignore[operator]
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
            str(path.relative_to(folder)): {"bytes": path.stat().st_size, "sha256": _hash(path)}
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }
        manifest = {
            "format": FORMAT,
            "step": step,
            "phase": self._recipe.phases[0].name,
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
