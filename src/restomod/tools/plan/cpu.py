"""How long a step takes on this machine's CPU: its matrix products are measured, the rest is in
proportion.

In: a phase's work per slot. Out: seconds. NumPy measures, so that no torch is loaded. The constants
were fitted to `benchmarks/results/encoder-step-cpu.txt` and `encoder-step-cpu-150m.txt` (5 to 150 M
parameters, documents of 258 to 8,192 tokens) and hold within 15 % of these; tests/systems compares
whole runs.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from functools import cache

import numpy as np

LINEAR, ATTENTION = 0.9, 0.65
"""Shares of the measured products' speed that linear layers and attention reach."""
KEPT_BYTE, LOGIT, PARAMETER = 155.0, 850.0, 240.0
"""What else is computed, as multiply-adds' FLOPs that take as long: for each byte that a layer
keeps for the backward pass, for each logit, for each parameter in the optimizer."""
LAYER_S, STEP_S = 1.5e-3, 15e-3
"""What a layer takes in a micro-batch, and a step, however small."""
MEASURED_S = 0.1
"""How long products are measured."""
SMALL, SMALL_SHARE = 80, 0.75
"""Rows and columns of these, and the share of large products' speed that they reach."""
SEVERAL = 0.85
"""Share of its speed alone that a thread reaches beside others."""


@dataclass(frozen=True)
class Work:
    """A rank's step."""

    linear_flops: float
    attention_flops: float
    kept_bytes: float
    logits: float
    parameters: float
    layers: float
    """Layers of all micro-batches."""


def step_seconds(work: Work, peak_flops: float) -> float:
    """Return the seconds of a rank's step where products run at `peak_flops`."""
    products = work.linear_flops / LINEAR + work.attention_flops / ATTENTION
    others = KEPT_BYTE * work.kept_bytes + LOGIT * work.logits + PARAMETER * work.parameters
    return (products + others) / peak_flops + LAYER_S * work.layers + STEP_S


@cache
def measured_peak() -> float:
    """Return the FLOP/s of large float32 products here, on the threads that torch would take.

    What is measured are products that BLAS leaves to one thread. Larger ones wait for threads that
    other processes keep off a core: on a busy machine they ran at a hundredth of the speed.
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
    cores = len(os.sched_getaffinity(0))
    asked = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    threads = min(cores, int(asked)) if asked.isdigit() and int(asked) else cores
    return 2 * n**3 / best / SMALL_SHARE * threads * (SEVERAL if threads > 1 else 1)
