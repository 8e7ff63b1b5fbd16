"""The device that a run trains on, and the FLOP/s it could reach at best.

`builder.py` calls it, and the doctor.
"""

from __future__ import annotations

import logging

import torch
from composer.utils.reproducibility import configure_deterministic_mode

from restomod.config import Recipe
from restomod.cpu import measured_peak
from restomod.errors import UserError
from restomod.gpus import peak_flops_of

log = logging.getLogger(__name__)


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
    measured on the CPU by small float32 products."""
    if device == "cuda":
        name = torch.cuda.get_device_name()
        peak = peak_flops_of(name)
        if not peak:
            log.warning("the peak of %s is not known: mfu is logged as 0", name)
        return peak
    return measured_peak(torch.get_num_threads())
