"""What a sweep has tried and tries next: an Optuna study in a journal file.

In: a sweep file and its folder. Out: trials, and what became of them. Optuna draws the values
(grid, random, TPE) and judges trials that may be stopped early; all else that must outlive the
process (how a trial ended) is kept in the journal as well. `run.py` and `control.py` drive it,
`page.py` reads it.
"""

from __future__ import annotations

import fcntl
import math
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import optuna
from optuna.pruners import NopPruner, SuccessiveHalvingPruner
from optuna.samplers import GridSampler, RandomSampler, TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from restomod.errors import UserError
from restomod.sweep.file import SweepFile
from restomod.sweep.space import distribution, grid

JOURNAL, LOCK = "optuna.journal", "sweep.lock"
SEED = 17
"""Of what is drawn: the same file tries the same values."""
RANDOM_TRIALS = 10
"""Trials that bayes draws at random first, but no more than a third of run_cap."""
DONE, STOPPED, IMPOSSIBLE, DIVERGED = "done", "stopped early", "impossible", "diverged"
FAILED, UNFINISHED = "failed", "unfinished"
STATES = {
    DONE: TrialState.COMPLETE,
    STOPPED: TrialState.PRUNED,
    DIVERGED: TrialState.PRUNED,  # which TPE takes for bad, where it does not look at a FAIL
    IMPOSSIBLE: TrialState.FAIL,
}
"""How a trial ends for good. Those that failed are tried again by the next command."""


@dataclass
class Trial:
    """One set of values, and what became of it."""

    number: int
    values: dict[str, Any]
    state: str
    value: float | None
    """The metric's last value."""
    note: str
    """Why the trial ended as it did."""
    facts: dict[str, Any]
    """What else was noted: steps, time_s, readings."""


class _Grid(GridSampler):
    def after_trial(self, *arguments: Any, **named: Any) -> None:
        """Do not stop `Study.optimize`, which nobody runs."""


class Study:
    """All trials of a sweep, in its folder; one process at a time."""

    def __init__(self, sweep: SweepFile, folder: Path) -> None:
        """Open the study, or begin it; raises UserError if another process has it."""
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._lock = (folder / LOCK).open("a")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"{folder}: another process runs this sweep") from error
        journal = folder / JOURNAL
        _drop_cut_line(journal)
        self._sweep = sweep
        self._distributions = {k: distribution(p) for k, p in sweep.parameters.items()}
        self._study = optuna.create_study(
            storage=JournalStorage(JournalFileBackend(str(journal))),
            study_name=sweep.name,
            direction=StudyDirection[sweep.metric.goal.upper()],
            sampler=self._sampler(0),
            pruner=self._pruner(),
            load_if_exists=True,
        )

    def close(self) -> None:
        """Let another process have the sweep."""
        self._lock.close()

    @property
    def most(self) -> int:
        """Trials that the sweep makes."""
        if self._sweep.method != "grid":
            return self._sweep.run_cap
        size = math.prod(len(values) for values in grid(self._sweep.parameters).values())
        return min(size, self._sweep.run_cap or size)

    def _sampler(self, number: int) -> optuna.samplers.BaseSampler:
        """Return what draws trial `number`: anew for each, or a sweep that goes on would draw what
        it had drawn at its beginning. A grid's order must stay."""
        if self._sweep.method == "grid":
            return _Grid(grid(self._sweep.parameters), seed=SEED)
        if self._sweep.method == "random":
            return RandomSampler(seed=SEED + number)
        random_trials = min(RANDOM_TRIALS, -(-self._sweep.run_cap // 3))
        return TPESampler(seed=SEED + number, n_startup_trials=random_trials)

    def _pruner(self) -> optuna.pruners.BasePruner:
        stop = self._sweep.early_terminate
        if stop is None:
            return NopPruner()
        return SuccessiveHalvingPruner(
            min_resource=stop.first, reduction_factor=stop.eta, min_early_stopping_rate=0
        )

    def judged_at(self, readings: int) -> bool:
        """Return whether a trial is judged when its metric has been logged so many times."""
        stop = self._sweep.early_terminate
        at = stop.first if stop else readings + 1
        while stop and at < readings:
            at *= stop.eta
        return at == readings

    def unfinished(self) -> list[Trial]:
        """Return the trials that were begun and have not ended for good, in order."""
        running = self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        return [_trial(frozen) for frozen in running]

    def next(self) -> Trial | None:
        """Begin another trial; None if there are as many as there may be."""
        number = len(self._study.get_trials(deepcopy=False))
        if number >= self.most:
            return None
        self._study.sampler = self._sampler(number)
        asked = self._study.ask(self._distributions)
        return self._find(asked.number)

    def worse(self, trial: Trial, readings: int, value: float) -> bool:
        """Note a trial's value when it is judged; return whether it is not worth going on."""
        asked = optuna.Trial(self._study, self._frozen(trial.number)._trial_id)
        if readings in self._frozen(trial.number).intermediate_values:
            return False  # a resumed trial comes by again, of which Optuna would warn
        asked.report(value, readings)
        return asked.should_prune()

    def note(self, trial: Trial, **facts: Any) -> None:
        """Keep facts about a trial that has not ended for good."""
        asked = optuna.Trial(self._study, self._frozen(trial.number)._trial_id)
        for key, fact in facts.items():
            trial.facts[key] = fact
            asked.set_user_attr(key, fact)

    def finish(self, trial: Trial, state: str, value: float | None, note: str) -> None:
        """End a trial; one that has failed may be tried again."""
        self.note(trial, state=state, value=value, note=note)
        if state in STATES:
            told = value if state == DONE else None
            self._study.tell(trial.number, told, state=STATES[state])

    def trials(self) -> list[Trial]:
        """Return all trials so far, in order."""
        return [_trial(frozen) for frozen in self._study.get_trials(deepcopy=False)]

    def _find(self, number: int) -> Trial:
        return _trial(self._frozen(number))

    def _frozen(self, number: int) -> FrozenTrial:
        return self._study.get_trials(deepcopy=False)[number]


def draws(sweep: SweepFile, count: int) -> Iterator[dict[str, Any]]:
    """Yield some of the combinations that a sweep may try: a grid's first, or random ones."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    distributions = {key: distribution(p) for key, p in sweep.parameters.items()}
    points = grid(sweep.parameters) if sweep.method == "grid" else {}
    sampler = _Grid(points, seed=SEED) if points else RandomSampler(seed=SEED)
    study = optuna.create_study(sampler=sampler)
    size = math.prod(len(values) for values in points.values()) if points else count
    for _ in range(min(count, size)):
        yield study.ask(distributions).params


def recorded_trials(sweep: SweepFile, folder: Path) -> list[Trial]:
    """Return the trials so far of a sweep that another process may be running; raises UserError if
    the journal cannot be read."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with TemporaryDirectory() as temporary:
        journal = Path(temporary) / JOURNAL
        try:
            shutil.copyfile(folder / JOURNAL, journal)
            _drop_cut_line(journal)
            storage = JournalStorage(JournalFileBackend(str(journal)))
            study = optuna.load_study(study_name=sweep.name, storage=storage)
            return [_trial(frozen) for frozen in study.get_trials(deepcopy=False)]
        except (OSError, KeyError, ValueError) as error:
            raise UserError(
                f"{folder / JOURNAL}: the sweep's journal cannot be read: {error}"
            ) from error


def _trial(frozen: FrozenTrial) -> Trial:
    facts = dict(frozen.user_attrs)
    state, value = facts.pop("state", UNFINISHED), facts.pop("value", None)
    return Trial(frozen.number, dict(frozen.params), state, value, facts.pop("note", ""), facts)


def _drop_cut_line(journal: Path) -> None:
    """Take off what a killed process has not finished writing: Optuna could not read on."""
    if not journal.exists():
        return
    text = journal.read_bytes()
    whole = text.rfind(b"\n") + 1
    if whole < len(text):
        os.truncate(journal, whole)
