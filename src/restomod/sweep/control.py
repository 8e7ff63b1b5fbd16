"""Runs a sweep's trials to their ends, some at a time.

In: a study, where trials run, and how many at a time. Out: every trial of the study ended, or all
that ran stopped and saved. `run.py` calls this.
"""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from restomod.errors import UserError
from restomod.interrupts import Interrupts
from restomod.recipe import load_recipe
from restomod.strict import split_words
from restomod.sweep.file import SweepFile
from restomod.sweep.jobs import Job, Jobs, Task
from restomod.sweep.readings import Readings
from restomod.sweep.study import (
    DIVERGED,
    DONE,
    FAILED,
    IMPOSSIBLE,
    STOPPED,
    UNFINISHED,
    Study,
    Trial,
)
from restomod.train.faults.stopping import REQUEUE, REQUEUE_CODE, STOP, read_requeue
from restomod.units import counted

log = logging.getLogger(__name__)

POLL_S, LOOKS_PER_S = 0.5, 100
"""Between two looks at trials; and how many, at most: of an array they are on a shared disk."""
FAILURES_IN_A_ROW = 3
"""Trials that fail one after the other and end the sweep: something is wrong with all of them."""
LOG_TAIL_BYTES = 20_000


@dataclass
class Running:
    """A trial and its job."""

    trial: Trial
    job: Job
    readings: Readings
    judged: int = 0
    """Readings that were looked at."""
    worse: bool = False
    """Whether it was told to stop for good."""


class Control:
    """Starts, judges and ends trials."""

    def __init__(
        self,
        sweep: SweepFile,
        folder: Path,
        study: Study,
        jobs: Jobs,
        at_a_time: int,
        interrupts: Interrupts,
        on_change: Callable[[], None],
    ) -> None:
        self._sweep, self._folder, self._study = sweep, folder, study
        self._jobs, self._at_a_time = jobs, at_a_time
        self._interrupts, self._on_change = interrupts, on_change
        self._waiting = deque(study.unfinished())
        self._running: list[Running] = []
        self._failures = 0
        self._told: set[int] = set()
        """Trials of which was said that they wait."""

    @property
    def _stopping(self) -> bool:
        return bool(self._interrupts.asked) or self._failures >= FAILURES_IN_A_ROW

    def run(self) -> bool:
        """Return whether all trials have ended; False if a request to stop came first.

        Raises UserError when trial after trial fails.
        """
        told = False
        while True:
            while not self._stopping and self._room:
                if not self._start_some():
                    break
            if self._stopping and not told:
                told = True
                self._stop_all()
            if not self._running and (self._stopping or not self._waiting):
                break
            if told and not self._jobs.stops:
                break
            time.sleep(max(POLL_S, len(self._running) / LOOKS_PER_S))
            for running in list(self._running):
                self._look(running)
        if self._failures >= FAILURES_IN_A_ROW:
            raise UserError(
                f"{FAILURES_IN_A_ROW} trials failed one after the other, so the sweep ends; the "
                "same command tries them again and goes on"
            )
        return not self._interrupts.asked

    def _stop_all(self) -> None:
        if not self._running:
            return
        if not self._jobs.stops:
            if not self._interrupts.asked:
                self._jobs.withdraw()
                log.info("jobs that have begun go on; the same command follows them")
                return
            going = counted(len(self._running), "trial goes on", "trials go on")
            log.info("the jobs of %s; the same command follows them", going)
            return
        why = self._interrupts.asked or "too many failures"
        saving = counted(len(self._running), "trial saves and stops", "trials save and stop")
        log.info("%s: %s", why, saving)
        for running in self._running:
            running.job.stop()

    @property
    def _room(self) -> int:
        """Trials that may be started now."""
        if self._jobs.together:
            return 0 if self._running else self._jobs.together
        return self._at_a_time - len(self._running)

    def _start_some(self) -> bool:
        """Start the next trials that there is room for; return whether others can be tried now."""
        ready: list[tuple[Trial, Task]] = []
        while len(ready) < self._room and not self._stopping:
            trial = self._waiting.popleft() if self._waiting else self._study.next()
            if trial is None:
                break
            if task := self._task(trial):
                ready.append((trial, task))
        jobs = self._jobs.start([task for _, task in ready]) if ready else []
        for (trial, task), job in zip(ready, jobs, strict=True):
            if job is None:
                if trial.number not in self._told:
                    log.info("%s: waits for what runs to end", task.name)
                self._told.add(trial.number)
                self._waiting.append(trial)
                continue
            self._study.note(trial, state=UNFINISHED, note="")
            log.info("%s: %s", task.name, " ".join(self._sweep.given(trial.values)))
            self._running.append(Running(trial, job, Readings(task.run_folder, self._metric)))
        return bool(jobs) and None not in jobs

    def _task(self, trial: Trial) -> Task | None:
        """Return what a trial runs; None if it has ended without that."""
        if trial.facts.get("worse"):  # told to stop by a process that did not see it stop
            self._finish(trial, STOPPED, self._readings(trial), "")
            return None
        words = self._words(trial)
        try:
            load_recipe(*split_words(words))
        except UserError as error:
            self._finish(trial, IMPOSSIBLE, None, str(error))
            return None
        command = [*self._sweep.before_program(), self._sweep.program, *words]
        (self._run_folder(trial) / STOP).unlink(missing_ok=True)
        return Task(
            trial.number, self.name(trial), command, self.log(trial), self._run_folder(trial)
        )

    @property
    def _metric(self) -> str:
        return self._sweep.metric.name

    def name(self, trial: Trial) -> str:
        return self._sweep.run_name(trial.number)

    def log(self, trial: Trial) -> Path:
        return self._folder / "logs" / f"{self.name(trial)}.log"

    def _run_folder(self, trial: Trial) -> Path:
        return self._folder / self.name(trial)

    def _readings(self, trial: Trial) -> Readings:
        readings = Readings(self._run_folder(trial), self._metric)
        readings.read()
        return readings

    def _words(self, trial: Trial) -> list[str]:
        words = self._sweep.words(trial.values)
        words += [f"runs_dir={self._folder}", f"run_name={self.name(trial)}"]
        if self._sweep.project:
            words.append(f"logging.wandb.project={self._sweep.project}")
        return words

    def _look(self, running: Running) -> None:
        """Judge a trial by what it has logged since the last time; see to its end."""
        code = running.job.code()
        running.readings.read()
        values = running.readings.values
        while code is None and not running.worse and running.judged < len(values):
            running.judged += 1
            value = values[running.judged - 1]
            if self._study.judged_at(running.judged) and self._study.worse(
                running.trial, running.judged, value
            ):
                running.worse = True
                self._study.note(running.trial, worse=True)
                log.info(
                    "%s: stops early, %s is %.4f after %d evaluations or log lines",
                    self.name(running.trial), self._metric, value, running.judged,
                )  # fmt: skip
                running.job.stop()
        running.judged = min(running.judged, len(values))  # a resume takes values back
        if code is not None:
            self._running.remove(running)
            self._ended(running, code)

    def _ended(self, running: Running, code: int) -> None:
        trial, readings = running.trial, running.readings
        folder = self._run_folder(trial)
        requeue = read_requeue(folder)
        stopped = requeue is not None or code == REQUEUE_CODE
        if code == 0 and not stopped:
            self._complete(trial, readings)
        elif running.worse or (requeue or {}).get("reason") == "STOP file":
            (folder / REQUEUE).unlink(missing_ok=True)
            (folder / STOP).unlink(missing_ok=True)
            note = "" if running.worse else "by a STOP file"
            self._finish(trial, STOPPED, readings, note)
        elif self._stopping:
            log.info("%s: stopped at step %d", self.name(trial), readings.step)
        elif stopped:
            self._go_on(trial, readings, requeue or {})
        elif (folder / "nonfinite").is_dir():
            self._finish(trial, DIVERGED, readings, _last_line(self.log(trial)))
        else:
            why = _last_line(self.log(trial)) or f"exit code {code}"
            self._finish(trial, FAILED, readings, why)

    def _complete(self, trial: Trial, readings: Readings) -> None:
        if not readings.values:
            self._finish(trial, FAILED, readings, f"it has logged no {self._metric}")
        elif math.isnan(readings.values[-1]):
            self._finish(trial, DIVERGED, readings, f"{self._metric} is no number at its end")
        else:
            self._finish(trial, DONE, readings, "")

    def _go_on(self, trial: Trial, readings: Readings, requeue: dict[str, Any]) -> None:
        """Start a trial that wants to go on once more, unless it gets nowhere."""
        step, reason = requeue.get("step", readings.step), requeue.get("reason", "a signal")
        if step <= trial.facts.get("stopped_at", -1):
            note = f"was stopped twice after step {step} ({reason})"
            self._finish(trial, FAILED, readings, note)
            return
        log.info("%s: was stopped after step %d (%s), goes on", self.name(trial), step, reason)
        self._study.note(trial, stopped_at=step)
        self._waiting.appendleft(trial)

    def _finish(self, trial: Trial, state: str, readings: Readings | None, note: str) -> None:
        values = readings.values if readings else []
        finite = [value for value in values[-1:] if not math.isnan(value)]
        value = finite[0] if finite else None
        if readings:
            self._study.note(
                trial, steps=readings.step, time_s=readings.time_s, readings=len(values)
            )
        self._study.finish(trial, state, value, note)
        self._failures = self._failures + 1 if state == FAILED else 0
        where = f"; see {self.log(trial)}" if state == FAILED else ""
        shown = "" if value is None else f", {self._metric} {value:.4f}"
        why = f": {note}" if note else ""
        log.info("%s: %s%s%s%s", self.name(trial), state, shown, why, where)
        self._on_change()


def _last_line(path: Path) -> str:
    """Return what a process that failed said last: its one message, or a traceback's last line."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - LOG_TAIL_BYTES))
            lines = file.read().decode(errors="replace").strip().splitlines()
    except FileNotFoundError:
        return ""
    told = next((n for n in reversed(range(len(lines))) if lines[n].startswith("error: ")), None)
    if told is not None:
        return "\n".join(lines[told:]).removeprefix("error: ")
    return lines[-1] if lines else ""
