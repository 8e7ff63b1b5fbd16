"""Shipped recipes at toy width, on made data, a few steps a phase: the same phases, schedules,
optimizer and options."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

from restomod.config import PhaseConfig, Recipe
from restomod.units import parse_slots
from tests.conftest import STREAMS

STEPS = 3
"""Of each phase."""
ROWS, FIRST_ROWS = 2, 1
"""Of a batch, and of the first one where it warms up."""
SHORTENED = 32
"""Times that sequences are shorter."""


def shrunk(recipe: Recipe, data: Path, folder: Path) -> dict[str, Any]:
    """Return a recipe's plain form, made small, with the streams of the `tiny` fixture's folder
    `data`, for a run below `folder`."""
    toy = dataclasses.asdict(recipe)
    toy |= {
        "runs_dir": str(folder / "runs"),
        "cache_dir": str(folder / "cache"),
        "tokenizer": str(data / "tokenizer"),
    }
    toy["model"] |= {
        "layers": min(recipe.model.layers, recipe.model.global_every + 1),
        "hidden_size": 32,
        "heads": 2,
        "intermediate_size": 48,
        "local_window": 8,
    }
    there = itertools.cycle(STREAMS)
    for stream, name in zip(toy["data"]["streams"].values(), there, strict=False):
        stream["path"] = f"{data}/mds/{name}"
    for stream in toy["evaluation"]["streams"].values():
        stream["path"] = f"{data}/mds/heldout"
    toy["data"] |= {"lanes": ROWS, "workers": 0, "buffer_rows": 2}
    toy["evaluation"] |= {"rows": 1, "samples": 0}
    lengths = [length // SHORTENED for length in recipe.evaluation.sequence_lengths]
    toy["evaluation"]["sequence_lengths"] = lengths
    toy["logging"]["wandb"]["mode"] = "disabled"
    toy["phases"] = [_shrunk_phase(phase) for phase in recipe.phases]
    return toy


def _shrunk_phase(phase: PhaseConfig) -> dict[str, Any]:
    length = phase.sequence_length // SHORTENED
    row = 8 * length
    batches = [ROWS] * STEPS
    warmup = parse_slots(phase.batch_warmup.slots) > 0
    if warmup:
        batches[0] = FIRST_ROWS
    slots = sum(batches) * row
    scale = slots / parse_slots(phase.slots)

    def small(text: str) -> int:
        return int(parse_slots(text) * scale)

    toy = dataclasses.asdict(phase)
    toy |= {
        "slots": slots,
        "sequence_length": length,
        "row_tokens": row,
        "batch_rows": ROWS,
        "micro_batch_rows": 1,
    }
    if warmup:
        toy["batch_warmup"] = {"slots": row, "first_rows": FIRST_ROWS, "increment_rows": FIRST_ROWS}
    for key in ("warmup", "decay"):
        toy["schedule"][key] = small(getattr(phase.schedule, key))
    for step, later in zip(phase.mask.later, toy["mask"]["later"], strict=True):
        later["at"] = small(step.at)
    return toy
