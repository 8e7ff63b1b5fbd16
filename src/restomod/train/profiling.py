"""A torch.profiler trace and a memory snapshot of some steps, in the run folder's profile/.

`builder.py` makes the callback.
"""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from composer import Callback, Logger, State
from composer.utils import dist
from torch.profiler import ProfilerActivity, profile

from restomod.config import ProfileConfig

log = logging.getLogger(__name__)

ALLOCATIONS = 200_000
"""Allocations that a snapshot of CUDA memory remembers."""


class Profiling(Callback):
    """Profiles `profile.steps` on `profile.ranks`.

    Writes trace-rank-N.json.gz (for chrome://tracing or Perfetto), and, on CUDA,
    memory-rank-N.pickle (for pytorch.org/memory_viz); on the CPU memory is part of the trace.
    """

    def __init__(self, config: ProfileConfig, folder: Path) -> None:
        self._steps = range(*config.steps) if config.steps else range(0)
        self._takes_part = dist.get_global_rank() in config.ranks
        self._folder = folder / "profile"
        self._profile: profile | None = None

    def batch_start(self, state: State, logger: Logger) -> None:
        step = state.timestamp.batch.value
        if not self._takes_part or self._profile or step not in self._steps:
            return
        activities = [ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(ProfilerActivity.CUDA)
            torch.cuda.memory._record_memory_history(max_entries=ALLOCATIONS)
        self._profile = profile(activities=activities, record_shapes=True, profile_memory=True)
        self._profile.start()

    def batch_end(self, state: State, logger: Logger) -> None:
        if self._profile and state.timestamp.batch.value not in self._steps:
            self._write()

    def close(self, state: State, logger: Logger) -> None:
        """Write what there is, however training ended: at a roll-back, say, or on request."""
        if self._profile:
            self._write()

    def _write(self) -> None:
        assert self._profile
        self._profile.stop()
        self._folder.mkdir(parents=True, exist_ok=True)
        rank = dist.get_global_rank()
        trace = self._folder / f"trace-rank-{rank:05d}.json.gz"
        self._profile.export_chrome_trace(str(trace))
        if torch.cuda.is_available():
            snapshot = self._folder / f"memory-rank-{rank:05d}.pickle"
            torch.cuda.memory._dump_snapshot(str(snapshot))
            torch.cuda.memory._record_memory_history(enabled=None)
        log.info("profile: %s", trace)
        self._profile = None
