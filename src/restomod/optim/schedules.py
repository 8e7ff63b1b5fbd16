"""The learning rate as a closed form of the token slots trained on."""

import math

from restomod.config import OptimizerConfig, PhaseConfig, ScheduleConfig


def trapezoid(slots: float, total: float, schedule: ScheduleConfig) -> float:
    """Return the share of the peak rate after `slots` of a phase of `total` slots.

    Linear warm-up from 0, then 1, then a decay to final_factor f over the last `decay` slots, with
    x the share of them that has passed: f + (1 - f) d, where d is 1 - x (linear), 1 - sqrt(x)
    (paper, section 2.2.2) or (1 + cos(pi x)) / 2 (cosine).
    """
    slots = min(max(slots, 0.0), total)
    warmup, decay = schedule.warmup_slots, schedule.decay_slots
    if slots < warmup:
        return slots / warmup
    passed = (slots - (total - decay)) / decay if decay else 0.0
    if passed <= 0:
        return 1.0
    left = {
        "linear": 1 - passed,
        "one_minus_sqrt": 1 - math.sqrt(passed),
        "cosine": (1 + math.cos(math.pi * passed)) / 2,
    }[schedule.decay_shape]
    return schedule.final_factor + (1 - schedule.final_factor) * left


def step_factor(step: int, phase: PhaseConfig) -> float:
    """Return the share of the peak rate for step `step` of the phase (the first is 0): the
    schedule's value in the middle of the step's slots."""
    middle = (phase.slots_before(step) + phase.slots_before(step + 1)) / 2
    return trapezoid(middle, phase.total_slots, phase.schedule)


def peak_lr(phase: PhaseConfig, optimizer: OptimizerConfig) -> float:
    """Return the phase's peak learning rate."""
    return optimizer.lr if phase.lr is None else phase.lr


def decay_of_weights(phase: PhaseConfig, optimizer: OptimizerConfig) -> float:
    """Return the phase's weight decay."""
    return optimizer.weight_decay if phase.weight_decay is None else phase.weight_decay
