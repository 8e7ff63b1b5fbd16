"""The device that a run trains on, the FLOP/s it could reach at best, and whether its memory may
suffice.

`builder.py` calls it, and the doctor.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

import torch
from composer.utils.reproducibility import configure_deterministic_mode

from restomod.config import PhaseConfig, Recipe
from restomod.cpu import measured_peak, memory_bytes
from restomod.errors import UserError
from restomod.gpus import peak_flops_of
from restomod.model.memory import phase_memory, resident
from restomod.units import counted

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


def warn_of_memory(
    recipe: Recipe, phases: Iterable[PhaseConfig], vocab_size: int, ranks: int, node_ranks: int
) -> None:
    """Warn of each phase whose micro-batches are estimated to need more memory than a rank has:
    on a CPU the kernel kills such a run without a word."""
    device = choose_device(recipe)
    if device == "cuda":
        limit = float(torch.cuda.get_device_properties().total_memory)
    else:
        limit = memory_bytes() / node_ranks
    shards = recipe.parallel.shards(ranks, node_ranks)
    for phase in phases:
        memory = phase_memory(recipe, phase, vocab_size, device, shards, ranks)
        if (needed := resident(memory, device)) > limit:
            log.warning(
                "phase %s: steps with micro-batches of %s of %s slots need about %.1f GB, and a "
                "rank has %.1f GB here: the run may be killed for it. `restomod plan` shows what "
                "fits; see micro_batch_rows and compute.recompute_every",
                phase.name,
                counted(phase.micro_batch_rows, "row"),
                f"{phase.row_tokens:,}",
                needed / 1e9,
                limit / 1e9,
            )
