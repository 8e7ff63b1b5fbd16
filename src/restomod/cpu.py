"""What this machine's CPU has: the FLOP/s that it could reach at best, from which MFU and planned
times are taken, and memory; `gpus.py` has both of GPUs.

NumPy measures, so that `restomod plan` loads no torch.
"""

from __future__ import annotations

import contextlib
import os
import time
from functools import cache
from pathlib import Path

import numpy as np

MEASURED_S = 0.1
"""How long products are measured."""
SMALL, SMALL_SHARE = 80, 0.75
"""Rows and columns of these, and the share of large products' speed that they reach."""
SEVERAL = 0.85
"""Share of its speed alone that a thread reaches beside others."""


@cache
def measured_peak(threads: int = 0) -> float:
    """Return the FLOP/s of large float32 products on so many threads; 0: on those that torch would
    take here.

    What is measured are products that BLAS leaves to one thread. Larger ones wait for threads that
    other processes keep off a core: on a busy machine they ran at a tenth to a hundredth of the
    speed.
    """
    n = SMALL
    a, b = np.ones((n, n), np.float32), np.ones((n, n), np.float32)
    out = np.empty_like(a)
    np.matmul(a, b, out=out)
    best = float("inf")
    begun = now = time.perf_counter()
    while now < begun + MEASURED_S:
        np.matmul(a, b, out=out)
        before, now = now, time.perf_counter()
        best = min(best, now - before)
    threads = threads or _threads()
    return 2 * n**3 / best / SMALL_SHARE * threads * (SEVERAL if threads > 1 else 1)


def memory_bytes(proc: Path = Path("/proc"), mounted: Path = Path("/sys/fs/cgroup")) -> int:
    """Return the memory that processes here may use: the machine's, or what the control group of a
    container or a job allows, if that is less."""
    lines = (proc / "meminfo").read_text().splitlines()
    allowed = [1024 * int(line.split()[1]) for line in lines if line.startswith("MemTotal")]
    for line in (proc / "self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            top, name = mounted / "memory", "memory.limit_in_bytes"
        elif not controllers:
            top, name = mounted, "memory.max"
        else:
            continue
        group = top / path.strip("/")
        for folder in (group, *group.parents):
            with contextlib.suppress(OSError, ValueError):  # ValueError: "max"
                allowed.append(int((folder / name).read_text()))
            if folder == top:
                break
    return min(allowed)


def _threads() -> int:
    cores = len(os.sched_getaffinity(0))
    asked = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    return min(cores, int(asked)) if asked.isdigit() and int(asked) else cores
