"""Where each phase of a run lies: the steps, rows and slots with which it begins and ends.

Enters: a recipe's phases, and the place in another run from which this one goes on, if it does.
Leaves: for every step, its phase and how far that has come. The trainer, the loader and the tools
read it. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from restomod.config import PhaseConfig


@dataclass(frozen=True)
class Origin:
    """Where a run begins: at nothing, or, with a phase that is trained alone, where the run of its
    first checkpoint had come to."""

    step: int = 0
    row: int = 0
    slots: int = 0
    checkpoint: str = ""
    """The other run's checkpoint, as it was named."""


@dataclass(frozen=True)
class Span:
    """One phase's place in the run. Steps, rows and slots are counted from the run's beginning."""

    phase: PhaseConfig
    first_step: int
    first_row: int
    first_slot: int

    @property
    def end_step(self) -> int:
        """The step after the phase's last one."""
        return self.first_step + self.phase.steps

    def batch_rows(self, step: int) -> int:
        """Return the rows of the global batch of step `step` (the first of a run is 0)."""
        return self.phase.batches.at(step - self.first_step)

    def rows_before(self, step: int) -> int:
        return self.first_row + self.phase.batches.before(step - self.first_step)

    def slots_before(self, step: int) -> int:
        return self.first_slot + self.phase.slots_before(step - self.first_step)


class Timeline:
    """The phases of a run, one after the other from `origin` on."""

    def __init__(self, phases: Sequence[PhaseConfig], origin: Origin = Origin()) -> None:
        self.origin = origin
        self.spans: list[Span] = []
        step, row, slots = origin.step, origin.row, origin.slots
        for phase in phases:
            self.spans.append(Span(phase, step, row, slots))
            step += phase.steps
            row += phase.batches.before(phase.steps)
            slots += phase.total_slots
        self.end_step = step
        """Steps that are done when the run is complete."""

    def at(self, step: int) -> Span:
        """Return the phase of step `step` (the first of a run is 0); the last phase's for the steps
        behind its end."""
        for span in self.spans:
            if step < span.end_step:
                return span
        return self.spans[-1]

    def step_of(self, row: int) -> int:
        """Return the step that trains on row `row`, which is not before the origin's."""
        span = [span for span in self.spans if span.first_row <= row][-1]
        return span.first_step + span.phase.batches.step_of(row - span.first_row)

    def ends_phase(self, step: int) -> bool:
        """Return whether a phase is complete when `step` steps are done."""
        return any(span.end_step == step for span in self.spans)
