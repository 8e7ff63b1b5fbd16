"""The learning rate as a closed form of the token slots trained on."""

import math

from restomod.config import PhaseConfig, ScheduleConfig


def trapezoid(slots: float, total: float, schedule: ScheduleConfig) -> float:
    """Return the share of the peak rate after `slots` of a phase of `total` slots.

    Linear warm-up from 0, then 1, then a decay to final_factor f over the last `decay` slots, with
    x the share of them that has passed: linear f + (1 - f)(1 - x), or f + (1 - f)(1 - sqrt(x))
    (paper, section 2.2.2).
    """
    slots = min(max(slots, 0.0), total)
    warmup, decay = schedule.warmup_slots, schedule.decay_slots
    if slots < warmup:
        return slots / warmup
    passed = (slots - (total - decay)) / decay if decay else 0.0
    if passed <= 0:
        return 1.0
    left = 1 - (math.sqrt(passed) if schedule.decay_shape == "one_minus_sqrt" else passed)
    return schedule.final_factor + (1 - schedule.final_factor) * left


def step_factor(step: int, phase: PhaseConfig) -> float:
    """Return the share of the peak rate for step `step` of the phase (the first is 0): the
    schedule's value in the middle of the step's slots."""
    total = phase.steps * phase.batch_slots
    return trapezoid((step + 0.5) * phase.batch_slots, total, phase.schedule)
