"""The rows of each step's global batch, as closed forms: a phase may begin with smaller batches.

Enters: a phase's batch size and its warm-up. Leaves: rows of a step, rows before it, the step of a
row. `config.PhaseConfig` makes it; loader, schedules and `restomod plan` read it. Imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class BatchSizes:
    """Batches of `warmup[0]`, `warmup[1]`, ... rows for `steps_each` steps each (paper, A.1), and
    of `rows` from there on. Steps and rows are counted from the phase's beginning."""

    rows: int
    warmup: tuple[int, ...] = ()
    steps_each: int = 0

    @classmethod
    def warming_up(cls, rows: int, first: int, increment: int, warmup_rows: float) -> BatchSizes:
        """Return sizes first, first + increment, ... below `rows`, each for the same whole number
        of steps (one at least), together as near to `warmup_rows` rows as that allows."""
        sizes = tuple(range(first, rows, increment))
        return cls(rows, sizes, max(1, round(warmup_rows / sum(sizes)))) if sizes else cls(rows)

    @property
    def warmup_steps(self) -> int:
        return self.steps_each * len(self.warmup)

    @property
    def warmup_rows(self) -> int:
        """Rows that the smaller batches take together."""
        return self.steps_each * sum(self.warmup)

    @property
    def distinct(self) -> tuple[int, ...]:
        """All sizes, in order."""
        return (*self.warmup, self.rows)

    def at(self, step: int) -> int:
        """Return the rows of step `step` (the first is 0)."""
        return self.warmup[step // self.steps_each] if step < self.warmup_steps else self.rows

    def before(self, step: int) -> int:
        """Return the rows of all steps before `step`."""
        if step >= self.warmup_steps:
            return self.warmup_rows + (step - self.warmup_steps) * self.rows
        whole, rest = divmod(step, self.steps_each)
        return self.steps_each * sum(self.warmup[:whole]) + rest * self.warmup[whole]

    def step_of(self, row: int) -> int:
        """Return the step that trains on row `row` (the first is 0)."""
        if row >= self.warmup_rows:
            return self.warmup_steps + (row - self.warmup_rows) // self.rows
        n = 0
        while row >= self.steps_each * self.warmup[n]:
            row -= self.steps_each * self.warmup[n]
            n += 1
        return n * self.steps_each + row // self.warmup[n]

    def steps(self, rows: int) -> int:
        """Return the least number of steps that take `rows` rows or more."""
        return self.step_of(rows - 1) + 1 if rows > 0 else 0
