"""The learning rate as a closed form of the token slots trained on.

In: a phase and a step. Out: the learning rate's share of its peak, the peak, the weight decay.
`train/phases.py` sets them; `restomod plan` draws them.
"""

import math
from collections.abc import Callable

from restomod.config import OptimizerConfig, PhaseConfig, ScheduleConfig
from restomod.extensions import USE, shared

SHAPES: dict[str, Callable[[float], float]] = {
    "linear": lambda passed: 1 - passed,
    "one_minus_sqrt": lambda passed: 1 - math.sqrt(passed),
    "cosine": lambda passed: (1 + math.cos(math.pi * passed)) / 2,
}
"""How much of the decay is left when a share of it has passed, from 1 to 0."""


def trapezoid(slots: float, total: float, schedule: ScheduleConfig) -> float:
    """Return the share of the peak rate after `slots` of a phase of `total` slots.

    Linear warm-up from 0, then 1, then a decay to final_factor f over the last `decay` slots, with
    x the share of them that has passed: f + (1 - f) d, where d is 1 - x (linear), 1 - sqrt(x)
    (paper, section 2.2.2), (1 + cos(pi x)) / 2 (cosine), or what a shape of the user's own says.
    """
    slots = min(max(slots, 0.0), total)
    warmup, decay = schedule.warmup_slots, schedule.decay_slots
    if slots < warmup:
        return slots / warmup
    passed = (slots - (total - decay)) / decay if decay else 0.0
    if passed <= 0:
        return 1.0
    name = schedule.decay_shape
    shape = SHAPES.get(name) or shared({USE: name, **schedule.decay_options})
    return schedule.final_factor + (1 - schedule.final_factor) * float(shape(passed))


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
