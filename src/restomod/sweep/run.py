"""`restomod sweep`: everything checked, then trials until all have ended, then what they came to.

In: a sweep file, where trials run, how many at a time. Out: run folders in RUNS_DIR/NAME/, beside
them the study's journal, logs and sweep.html. `commands.py` calls this.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path

import yaml

from restomod.config import Recipe
from restomod.errors import UserError
from restomod.interrupts import Interrupts
from restomod.recipe import load_recipe
from restomod.strict import split_words
from restomod.sweep.control import Control
from restomod.sweep.file import COPY, SweepFile, load_sweep
from restomod.sweep.jobs import Jobs, Setting
from restomod.sweep.page import PAGE, write_sweep_page
from restomod.sweep.study import DONE, Study, draws
from restomod.sweep.table import as_json, text_table
from restomod.train.faults.stopping import REQUEUE_CODE

log = logging.getLogger(__name__)

FREE = ("description", "run_cap", "project", "entity")
"""What may change when a sweep goes on."""
PROBES = 16
"""Combinations that are checked before anything runs."""


def run_sweep(
    path: Path,
    at_a_time: int,
    in_json: bool,
    write: Callable[[str], object],
    jobs_of: Callable[[Setting], Jobs],
    here: bool = True,
) -> int:
    """Run a sweep, or go on with it; return the exit code.

    `jobs_of` makes what runs trials, given what they share; `here` says whether that sees the data
    as this process does. Raises UserError.
    """
    sweep = load_sweep(path)
    base = _base(sweep, path)
    _check_points(sweep, path, here)
    folder = Path(base.runs_dir) / sweep.name
    jobs = jobs_of(_setting(sweep, base, folder))
    _begin_folder(sweep, folder)
    study = Study(sweep, folder)
    try:
        with Interrupts().listening() as interrupts:
            control = Control(
                sweep,
                folder,
                study,
                jobs,
                at_a_time,
                interrupts,
                lambda: _write_page(sweep, study, folder),
            )
            try:
                complete = control.run()
            finally:
                _write_page(sweep, study, folder)
        trials = study.trials()
    finally:
        study.close()
    if in_json:
        write(json.dumps(as_json(sweep, trials, folder)) + "\n")
    else:
        write(text_table(sweep, trials, folder) + f"{folder / PAGE}\n")
    if not complete:
        log.info("stopped; the same command goes on")
        return REQUEUE_CODE
    return 0 if any(trial.state == DONE for trial in trials) else 2


def _setting(sweep: SweepFile, base: Recipe, folder: Path) -> Setting:
    return Setting(
        sweep.name,
        folder,
        sweep.before_program(),
        base.faults.grace,
        {"WANDB_ENTITY": sweep.entity} if sweep.entity else {},
        sweep.foreseen,
    )


def _write_page(sweep: SweepFile, study: Study, folder: Path) -> None:
    write_sweep_page(sweep, study.trials(), folder)


def _base(sweep: SweepFile, path: Path) -> Recipe:
    """Return the recipe that all trials change; raise UserError if it cannot be compared by the
    sweep's metric."""
    if not Path(sweep.program).is_file():
        raise UserError(f"{path}: program: {sweep.program}: no such file below {os.getcwd()}")
    # What W&B's agent alone sets is given when a trial starts.
    words = [*sweep.words({}), f"run_name={sweep.name}"]
    recipe = _recipe(words)
    event, *keys = sweep.metric.name.split("/")
    if event == "eval":
        streams = recipe.evaluation.streams
        domains = {stream.domain or name for name, stream in streams.items()}
        if keys[0] not in domains | {"all"} or not domains:
            raise UserError(
                f"{path}: metric.name: the recipe evaluates no {keys[0]}; there is "
                f"{', '.join(sorted(domains | {'all'})) if domains else 'nothing evaluated'}"
            )
    return recipe


def _recipe(words: list[str]) -> Recipe:
    return load_recipe(*split_words(words))


def _check_points(sweep: SweepFile, path: Path, here: bool) -> None:
    """Raise UserError if none of some combinations can be trained, or the data is not `here`."""
    first: tuple[list[str], UserError] | None = None
    for values in draws(sweep, PROBES):
        try:
            recipe = _recipe([*sweep.words(values), f"run_name={sweep.name}"])
        except UserError as error:
            first = first or (sweep.given(values), error)
            continue
        if here:
            from restomod.data.sources import open_sources

            open_sources(recipe)
        return
    assert first is not None
    raise UserError(
        f"{path}: parameters: no combination that was looked at can be trained, for instance "
        f"{' '.join(first[0])}:\n{first[1]}"
    )


def _begin_folder(sweep: SweepFile, folder: Path) -> None:
    """Create the sweep's folder; raise UserError if it holds a run, or another sweep."""
    if (folder / "metrics.jsonl").exists():
        raise UserError(f"{folder}: is a run's folder; give the sweep another name")
    now = json.loads(json.dumps(dataclasses.asdict(sweep)))
    copy = folder / COPY
    if copy.exists():
        then = yaml.safe_load(copy.read_text())
        changed = [
            f"{key}: was {then.get(key)!r}, is {now[key]!r}"
            for key in now
            if key not in FREE and then.get(key) != now[key]
        ]
        if changed:
            raise UserError(
                f"{folder}: the sweep cannot go on with another file:\n  "
                + "\n  ".join(changed)
                + "\nundo the change, or choose another name"
            )
    folder.mkdir(parents=True, exist_ok=True)
    partial = copy.with_name(f".{COPY}.{os.getpid()}")
    partial.write_text(yaml.safe_dump(now, sort_keys=False))
    partial.replace(copy)
