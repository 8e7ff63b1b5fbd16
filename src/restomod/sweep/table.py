"""What became of a sweep's trials, as a table and as JSON.

In: trials and the sweep file. Out: rows in order of the metric, text for the terminal, a mapping
for `--json`. `run.py` and `page.py` call this.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from restomod.sweep.file import SweepFile
from restomod.sweep.study import DIVERGED, DONE, FAILED, IMPOSSIBLE, STOPPED, UNFINISHED, Trial
from restomod.units import duration

ORDER = (DONE, STOPPED, DIVERGED, UNFINISHED, FAILED, IMPOSSIBLE)
NOTE_COLUMNS = 60


def ranked(sweep: SweepFile, trials: list[Trial]) -> list[Trial]:
    """Return complete trials from the best to the worst, then the others by what became of them."""
    sign = 1 if sweep.metric.goal == "minimize" else -1

    def place(trial: Trial) -> tuple[int, bool, float, int]:
        value = trial.value
        return ORDER.index(trial.state), value is None, sign * (value or 0.0), trial.number

    return sorted(trials, key=place)


def best(sweep: SweepFile, trials: list[Trial]) -> Trial | None:
    """Return the best of the complete trials."""
    first = next(iter(ranked(sweep, trials)), None)
    return first if first and first.state == DONE else None


def short_names(sweep: SweepFile) -> dict[str, str]:
    """Return the parameters that differ between trials, each with a short name: the last two parts
    of its key where they are its own."""
    keys = [k for k, p in sweep.parameters.items() if p.kind != "constant"]
    ends = [".".join(key.split(".")[-2:]) for key in keys]
    return {key: end if ends.count(end) == 1 else key for key, end in zip(keys, ends, strict=True)}


def show(value: Any) -> str:
    """Write a value in few characters."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def cells(sweep: SweepFile, trial: Trial) -> list[str]:
    """Return a trial's row: number, state, metric, values, steps, wall time, note."""
    time_s = trial.facts.get("time_s")
    return [
        f"{trial.number:03d}",
        trial.state,
        "" if trial.value is None else f"{trial.value:.4f}",
        *(show(trial.values[key]) for key in short_names(sweep)),
        f"{trial.facts['steps']:,}" if "steps" in trial.facts else "",
        "" if time_s is None else duration(time_s),
        trial.note,
    ]


def head(sweep: SweepFile) -> list[str]:
    """Return the titles of the columns."""
    return ["trial", "state", sweep.metric.name, *short_names(sweep).values(), "steps", "time", ""]


def text_table(sweep: SweepFile, trials: list[Trial], folder: Path) -> str:
    """Write the table for a terminal."""
    rows = [head(sweep)]
    for trial in ranked(sweep, trials):
        *row, note = cells(sweep, trial)
        note = note.partition("\n")[0]
        rows.append([*row, note if len(note) <= NOTE_COLUMNS else note[: NOTE_COLUMNS - 1] + "…"])
    widths = [max(len(row[n]) for row in rows) for n in range(len(rows[0]))]
    lines = [
        "  ".join(
            cell.ljust(width) if n in (0, 1, len(row) - 1) else cell.rjust(width)
            for n, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    if first := best(sweep, trials):
        words = " ".join(sweep.given(first.values))
        lines += ["", f"best: {folder / sweep.run_name(first.number)}  {words}"]
    return "\n".join(lines) + "\n"


def as_json(sweep: SweepFile, trials: list[Trial], folder: Path) -> dict[str, Any]:
    """Return everything as plain values."""
    first = best(sweep, trials)
    return {
        "sweep": sweep.name,
        "folder": str(folder),
        "metric": {"name": sweep.metric.name, "goal": sweep.metric.goal},
        "best": first.number if first else None,
        "trials": [
            {
                "trial": trial.number,
                "run_folder": str(folder / sweep.run_name(trial.number)),
                "state": trial.state,
                "value": trial.value,
                "parameters": trial.values,
                "steps": trial.facts.get("steps"),
                "readings": trial.facts.get("readings"),
                "time_s": trial.facts.get("time_s"),
                "note": trial.note,
            }
            for trial in ranked(sweep, trials)
        ],
    }
