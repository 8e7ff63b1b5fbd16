"""The device that a run trains on, and the FLOP/s it could reach at best."""

from __future__ import annotations

import logging
import time

import torch
from composer.utils.reproducibility import configure_deterministic_mode

from restomod.config import Recipe
from restomod.errors import UserError

log = logging.getLogger(__name__)

BF16_PEAK_FLOPS = {
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "4090": 165e12,
    "L4": 121e12,
    "A10": 125e12,
}
"""Dense bf16 peaks by a part of the device's name, from the vendor's data sheets; first match
counts."""


def choose_device(recipe: Recipe) -> str:
    """Return `cpu` or `cuda`; raises UserError for a cuda that is not there."""
    if recipe.device == "cuda" and not torch.cuda.is_available():
        raise UserError("device: cuda is asked for, and torch sees none here; use auto or cpu")
    if recipe.device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return recipe.device


def compute_deterministically() -> None:
    """Have torch, its libraries and its compiler use deterministic kernels only, for the rest of
    the process; call it before anything is computed on a GPU.

    torch raises RuntimeError where it meets an operation that has none.
    """
    from torch._inductor import config

    configure_deterministic_mode()
    # What is read was written before.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    config.deterministic = True  # choose no kernel by timing it


def peak_flops(device: str) -> float:
    """Return the peak FLOP/s of one rank's device: the data sheet's on CUDA (0 for an unknown one),
    measured by float32 matrix products on the CPU, which takes about 0.3 s."""
    if device == "cuda":
        name = torch.cuda.get_device_name()
        for part, peak in BF16_PEAK_FLOPS.items():
            if part in name:
                return peak
        log.warning("the peak of %s is not known: mfu is logged as 0", name)
        return 0.0
    n = 1024
    a, b = torch.ones(n, n), torch.ones(n, n)
    a @ b
    best = float("inf")
    for _ in range(10):
        started = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - started)
    return 2 * n**3 / best
