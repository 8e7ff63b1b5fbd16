"""The runs of all arms: which there are, what each waits for, and two processes that train them.

In: a folder for runs. Out: run folders in it. A run is the recipe of its arm through train.py's own
entry point; one that has ended is not made again, one that was stopped goes on. Processes are
forked from one that has imported torch already.
"""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from benchmarks.ablations.arms import (
    ARMS,
    RATES,
    SMALL,
    TUNING_SEED,
    Arm,
    words,
)
from restomod.errors import UserError
from restomod.recipe import load_recipe

SIZES = (3, 64, 128)
"""Layers, hidden and intermediate size of the base, to which the small model is tiled."""


@dataclass(frozen=True)
class Run:
    """One training, and the runs that must have ended before it can begin."""

    name: str
    arm: Arm
    seed: int
    slots: int
    """The base's; an arm may train on fewer."""
    lr: str = ""
    """Empty: the best of its optimizer's."""
    needs: tuple[str, ...] = ()


def tuning(optimizer: str, slots: int) -> list[Run]:
    """Return the runs that decide an optimizer's learning rate: of the first arm that has it."""
    first = next(arm for arm in ARMS.values() if arm.optimizer == optimizer)
    arm = dataclasses.replace(first, measures=())
    return [Run(f"tune-{optimizer}-{lr}", arm, TUNING_SEED, slots, lr) for lr in RATES[optimizer]]


def all_runs(seeds: Sequence[int], slots: int) -> list[Run]:
    """Return every run in the order in which they begin: arm by arm, each with all seeds, so that
    what there is when time runs out are whole comparisons."""
    runs: list[Run] = []
    for arm in ARMS.values():
        tunings = tuning(arm.optimizer, slots)
        needs = _names(tunings)
        runs += [run for run in tunings if run not in runs]
        smalls = [Run(f"small-{n}", SMALL, n, slots, "", needs) for n in map(small_seed, seeds)]
        runs += [run for run in smalls if arm.tiled and run not in runs]
        for seed in seeds:
            more = (f"small-{small_seed(seed)}",) if arm.tiled else ()
            runs.append(Run(f"{arm.name}-{seed}", arm, seed, slots, "", needs + more))
    return runs


def small_seed(seed: int) -> int:
    """Return the seed of the small model from which a run of `seed` starts: another one, so that
    the two read the corpus in different orders."""
    return seed + 1000


def _names(runs: Sequence[Run]) -> tuple[str, ...]:
    return tuple(run.name for run in runs)


def last_evaluation(folder: Path) -> dict[str, Any] | None:
    """Return the last evaluation of a run that has ended, with its last `start` and `train` lines;
    None where it has not."""
    try:
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    if not lines or lines[-1]["event"] != "end":
        return None
    last = {line["event"]: line for line in lines}
    return {**last["eval"], "start": last["start"], "train": last["train"]}


def loss(domains: Mapping[str, Mapping[str, float]], kind: str = "") -> float:
    """Return the mean loss over the held-out domains whose names begin with `kind`, each predicted
    token counting once; without one, over those of whole documents."""
    chosen = [
        value
        for name, value in domains.items()
        if name != "all" and name.startswith("joined_") == bool(kind)
    ]
    predicted = sum(value["masked_tokens"] for value in chosen)
    return sum(value["loss"] * value["masked_tokens"] for value in chosen) / predicted


def best_lr(optimizer: str, slots: int, folder: Path) -> str:
    """Return the rate whose trial has ended lowest."""

    def reached(run: Run) -> float:
        evaluation = last_evaluation(folder / run.name)
        assert evaluation, run.name
        return loss(evaluation["domains"])

    return min(tuning(optimizer, slots), key=reached).lr


def run_words(run: Run, folder: Path) -> list[str]:
    """Return train.py's words for a run whose needs have ended."""
    lr = run.lr or best_lr(run.arm.optimizer, run.slots, folder)
    weights = _tiled(folder, small_seed(run.seed)) if run.arm.tiled else None
    return words(run.arm, run.seed, run.slots, lr, folder, run.name, weights)


def _tiled(folder: Path, seed: int) -> Path:
    """Return where the tiled weights of a small model lie."""
    return folder / f"tiled-{seed}"


def has_ended(run: Run, folder: Path) -> bool:
    """Return whether a run is there and complete.

    Raises UserError where it is, but of another recipe than the arm's now.
    """
    if last_evaluation(folder / run.name) is None:
        return False
    if run.arm.name == SMALL.name and not _tiled(folder, run.seed).exists():
        return False
    path, *overrides = run_words(run, folder)
    recipe = dataclasses.asdict(load_recipe([path], overrides))
    # Keys that have come since then have their defaults.
    stored = dataclasses.asdict(load_recipe([folder / run.name / "config.yaml"]))
    differing = [key for key, value in recipe.items() if stored[key] != value]
    if differing:
        raise UserError(
            f"{folder / run.name}: was trained with another {', '.join(differing)} than "
            f"{run.arm.name} has now; delete it, or choose another --runs"
        )
    return True


class Queue:
    """Hands out runs in order, those whose needs have ended."""

    def __init__(self, runs: Sequence[Run], folder: Path) -> None:
        self._folder = folder
        self._waiting = list(runs)
        self._ended: set[str] = set()
        self._failed: set[str] = set()

    def next(self) -> Run | None:
        """Return a run that can be trained now; None when none can be before another ends."""
        self._waiting = [run for run in self._waiting if not self._failed & {*run.needs}]
        while ready := next((run for run in self._waiting if self._ended >= {*run.needs}), None):
            self._waiting.remove(ready)
            if not has_ended(ready, self._folder):
                return ready
            self._ended.add(ready.name)
        return None

    def end(self, run: Run, code: int) -> None:
        """Note that a run has ended, with an exit code."""
        (self._failed if code else self._ended).add(run.name)


def train_all(
    runs: Sequence[Run], folder: Path, jobs: int, on_end: Callable[[Run, int], None]
) -> int:
    """Train what has not ended, `jobs` at a time; return how many have failed.

    Calls `on_end` with each run and its exit code. One thread waits for all processes: two that
    did would read one's exit code twice, and the second time there is none.
    """
    os.environ["OMP_NUM_THREADS"] = "1"  # read when the server of processes loads torch
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["restomod.train.builder"])
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    queue, failed = Queue(runs, folder), 0
    running: dict[int, tuple[Run, Any]] = {}
    try:
        while True:
            while len(running) < jobs and (run := queue.next()):
                log = folder / "logs" / f"{run.name}.log"
                process = context.Process(target=_train, args=(run, folder, log))
                process.start()
                running[process.sentinel] = run, process
            if not running:
                return failed
            for sentinel in wait(list(running)):
                run, process = running.pop(sentinel)
                process.join()
                code = process.exitcode
                failed += code != 0
                queue.end(run, code)
                on_end(run, code)
    except BaseException:  # also Ctrl-C: runs save, and go on another time
        for _, process in running.values():
            process.terminate()
        raise


def _train(run: Run, folder: Path, log: Path) -> None:
    """Train one run; a process of its own, whose output goes to `log`."""
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    from restomod.cli import train_main

    code = train_main(run_words(run, folder))
    if code == 0 and run.arm.name == SMALL.name:
        from restomod.tools.convert import tile_model

        tile_model(folder / run.name, _tiled(folder, run.seed), *SIZES)
    sys.exit(code)
