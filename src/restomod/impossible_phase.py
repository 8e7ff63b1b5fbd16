"""What no phase of a recipe may say: sizes, shares, rates and places that cannot be trained.

In: a phase and its recipe, whose keys and types are right. Out: (key, reason) for what is wrong.
`impossible.py` calls it for every phase. Imports no torch.
"""

from __future__ import annotations

import difflib

from restomod import extensions
from restomod.config import MaskConfig, PhaseConfig, Recipe
from restomod.units import counted, parse_slots

MOST_ROWS = 1 << 24
MOST_TOKENS = 2**31 - 1
"""Of a micro-batch, and of a lane's buffer: bounds of documents are of 32 bits."""
RATES = "must be positive, and at most 1: a step moves a weight by about so much"


def is_rate(lr: float, recipe: Recipe) -> bool:
    """Return whether a learning rate can be; an optimizer of the user's own may want more."""
    return lr > 0 and (lr <= 1 or extensions.is_extension(recipe.optimizer.name))


def phase_problems(phase: PhaseConfig, recipe: Recipe) -> list[tuple[str, str]]:
    """Return (key, reason) for what cannot be trained of a phase; keys are those of the phase."""
    bad: list[tuple[str, str]] = []
    slots, data = {}, recipe.data
    for key, text in (
        ("slots", phase.slots),
        ("schedule.warmup", phase.schedule.warmup),
        ("schedule.decay", phase.schedule.decay),
        ("batch_warmup.slots", phase.batch_warmup.slots),
    ):
        try:
            slots[key] = parse_slots(text)
        except ValueError as error:
            bad.append((key, str(error)))
    if slots.get("slots") == 0:
        bad.append(("slots", "is missing: the phase's length, for instance 50B"))
    for key in ("batch_rows", "micro_batch_rows"):
        if getattr(phase, key) <= 0:
            bad.append((key, "must be positive"))
        elif getattr(phase, key) > MOST_ROWS:
            bad.append((key, f"must be at most {MOST_ROWS:,}"))
    if phase.sequence_length < 3:
        bad.append(("sequence_length", "must hold [CLS], a token and [SEP]: at least 3"))
    if phase.row_tokens < phase.sequence_length:
        bad.append(
            (
                "row_tokens",
                f"{phase.row_tokens} is less than sequence_length {phase.sequence_length}",
            )
        )
    elif phase.row_tokens < data.tokens_per_document_min:
        bad.append(("row_tokens", "is less than data.tokens_per_document_min"))
    for key, rows, what in (
        ("micro_batch_rows", phase.micro_batch_rows, "a micro-batch"),
        ("row_tokens", data.buffer_rows, "a buffer (data.buffer_rows)"),
    ):
        if rows * phase.row_tokens > MOST_TOKENS:
            size = f"{what} of {rows} rows of {phase.row_tokens}"
            bad.append((key, f"{size} slots: at most {MOST_TOKENS:,} can be numbered"))
    for key in ("rope_base_global", "rope_base_local"):
        if getattr(phase, key) < 1:
            bad.append((key, f"{getattr(phase, key)}: must be positive, and at least 1"))
    if phase.lr is not None and not is_rate(phase.lr, recipe):
        bad.append(("lr", f"{phase.lr}: {RATES}"))
    if phase.weight_decay is not None and not 0 <= phase.weight_decay < 1:
        bad.append(("weight_decay", f"{phase.weight_decay}: must lie in [0, 1)"))
    if not 0 <= phase.z_loss <= 1:
        bad.append(("z_loss", f"{phase.z_loss}: must not be negative, nor above 1"))
    if not phase.mixture:
        bad.append(("mixture", "is missing: what is drawn of each stream"))
    for name, share in phase.mixture.items():
        if name not in data.streams:
            near = difflib.get_close_matches(name, data.streams, n=1, cutoff=0)
            hint = f"; did you mean `{near[0]}`?" if near else ""
            bad.append((f"mixture.{name}", f"no such stream in data.streams{hint}"))
        if share < 0:
            bad.append((f"mixture.{name}", f"{share}: must not be negative"))
    if phase.mixture_by == "choose" and any(n != int(n) for n in phase.mixture.values()):
        bad.append(("mixture", "documents are chosen in whole numbers"))
    if phase.mixture and sum(phase.mixture.values()) <= 0:
        bad.append(("mixture", "at least one share must be positive"))
    mask = phase.mask
    bad += _rates(mask, slots.get("slots", 0))
    if min(mask.mask_share, mask.random_share) < 0 or mask.mask_share + mask.random_share > 1:
        bad.append(
            ("mask.mask_share", "mask_share and random_share lie in [0, 1] and add up to <= 1")
        )
    schedule = phase.schedule
    if slots.get("batch_warmup.slots"):
        bad += _batches(phase, slots.get("slots", 0), slots["batch_warmup.slots"])
    elif phase.batch_warmup.first_rows or phase.batch_warmup.increment_rows:
        bad.append(("batch_warmup.slots", "is missing: the slots that the smaller batches take"))
    if {"slots", "schedule.warmup", "schedule.decay"} <= slots.keys() and (
        slots["schedule.warmup"] + slots["schedule.decay"] > slots["slots"]
    ):
        bad.append(
            (
                "schedule",
                f"warmup {schedule.warmup} and decay {schedule.decay} exceed {phase.slots}",
            )
        )
    if not 0 <= schedule.final_factor <= 1:
        bad.append(("schedule.final_factor", "must lie in [0, 1]"))
    return bad


def _rates(mask: MaskConfig, phase_slots: int) -> list[tuple[str, str]]:
    bad = []
    if not 0 < mask.rate < 1:
        bad.append(("mask.rate", f"{mask.rate}: must lie in (0, 1)"))
    before = 0
    for n, step in enumerate(mask.later):
        if not 0 < step.rate < 1:
            bad.append((f"mask.later.{n}.rate", f"{step.rate}: must lie in (0, 1)"))
        try:
            at = parse_slots(step.at)
        except ValueError as error:
            bad.append((f"mask.later.{n}.at", str(error)))
            continue
        if at <= before:
            bad.append((f"mask.later.{n}.at", f"{step.at}: must lie behind the step before it"))
        elif phase_slots and at > phase_slots:
            bad.append((f"mask.later.{n}.at", f"{step.at}: the phase ends before it"))
        before = at
    return bad


def _batches(phase: PhaseConfig, phase_slots: int, warmup_slots: int) -> list[tuple[str, str]]:
    bad = []
    warmup = phase.batch_warmup
    if not 0 < warmup.first_rows < phase.batch_rows:
        bad.append(
            ("batch_warmup.first_rows", f"{warmup.first_rows}: must lie in 1 .. batch_rows - 1")
        )
    if warmup.increment_rows <= 0:
        bad.append(("batch_warmup.increment_rows", "must be positive"))
    if not bad and warmup_slots >= phase_slots > 0:
        bad.append(("batch_warmup.slots", f"{warmup.slots}: the phase ends before it"))
    if not bad and 0 < phase_slots < phase.batches.warmup_rows * phase.row_tokens:
        sizes = counted(len(phase.batches.warmup), "size")
        steps = counted(phase.batches.steps_each, "step")
        bad.append(
            (
                "batch_warmup",
                f"its {sizes}, {steps} each, take {phase.batches.warmup_rows * phase.row_tokens:,} "
                "slots, more than the phase has; use larger increment_rows or fewer slots",
            )
        )
    return bad
