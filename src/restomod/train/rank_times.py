"""How long each rank is busy by itself, so that the slowest can be named.

Ranks wait for each other in every step, so all steps take equally long on all of them. What differs
is the time in which a rank waits for nobody: for its rows, and in forward passes (which communicate
nothing under DDP; sharded ones wait for gathered weights, too, and tell less). `step_metrics.py`
logs it.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from composer import Callback, Logger, State
from composer.utils import dist


class RankTimes(Callback):
    """Times this rank's forward passes: on the CPU by the clock, on CUDA by events, which sync
    nothing."""

    def __init__(self, device: str) -> None:
        self._cuda = device == "cuda"
        self._forward_s = 0.0
        self._began = 0.0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def before_forward(self, state: State, logger: Logger) -> None:
        if self._cuda:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            self._events.append((begin, end))
        else:
            self._began = time.perf_counter()

    def after_forward(self, state: State, logger: Logger) -> None:
        if self._cuda:
            self._events[-1][1].record()
        else:
            self._forward_s += time.perf_counter() - self._began

    def take(self, wait_s: float, steps: int) -> dict[str, Any]:
        """Return what the ranks took per step since the last call: median and longest busy time in
        seconds, and the rank that took longest. All ranks call it; `wait_s` is this rank's wait for
        rows over these `steps`."""
        for begin, end in self._events:
            end.synchronize()
            self._forward_s += begin.elapsed_time(end) / 1000
        busy = (self._forward_s + wait_s) / steps
        self._forward_s = 0.0
        self._events = []
        every = torch.zeros(dist.get_world_size(), dtype=torch.float64)
        every[dist.get_global_rank()] = busy
        if dist.get_world_size() > 1:
            device = "cuda" if self._cuda else "cpu"
            every = every.to(device)
            torch.distributed.all_reduce(every)
        return {
            "rank_busy_s": float(every.median()),
            "slowest_rank_busy_s": float(every.max()),
            "slowest_rank": int(every.argmax()),
        }
