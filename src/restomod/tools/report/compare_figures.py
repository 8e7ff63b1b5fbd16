"""Which figures show several runs side by side: in each, a curve for every run.

In: the runs' logs, each with a name and the CSS class of its colour. Out: HTML strings, every name
in them escaped. `compare.py` and a sweep's page call this; `figures.py` draws.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from restomod.tools.record.downsampled import Bucket, merged
from restomod.tools.record.metrics_log import RunLog
from restomod.tools.report.figures import Canvas, Curve, Figure, axes, draw_all
from restomod.tools.report.run_figures import (
    COLOURS,
    LOG_FROM,
    LOSS_UNIT,
    MEASURED,
    OTHERS,
    PERCENT,
    SCHEDULES,
    constant_text,
    ends,
    evaluated,
    scale_of,
    slug,
)

DASHES = 3
MOST_RAW = 4
"""Runs whose lowest and highest values are drawn, too; of more they would hide each other."""
BUCKETS = 2400
"""Of all runs together, in each curve."""
FEWEST_BUCKETS = 60


@dataclass(frozen=True)
class Shown:
    """One run as figures show it."""

    name: str
    style: str
    log: RunLog
    listed: bool = True
    """Whether legends name it."""


def style_of(place: int) -> str:
    """Return the CSS classes of a run's colour and dashes."""
    dashes = place // COLOURS % DASHES
    return f"c{place % COLOURS + 1}" + (f" d{dashes + 1}" if dashes else "")


def figures(runs: Sequence[Shown]) -> tuple[str, list[str]]:
    """Return the figures, and what to say of those that were left out."""
    most = max(FEWEST_BUCKETS, BUCKETS // len(runs))
    train = {run.name: _fewer(run.log.train.buckets(), most) for run in runs}
    evals = {run.name: _fewer(run.log.evals.buckets(), most) for run in runs}
    raw = len(runs) <= MOST_RAW
    canvas = Canvas(
        axes(run.log for run in runs),
        [(mark, run.style) for run in runs if run.listed for mark in run.log.resumes],
    )

    def figure(
        key: str, title: str, unit: str, measured: bool = True, wide: bool = False
    ) -> Figure:
        curves = [
            Curve(
                run.name,
                key,
                run.style,
                train[run.name],
                raw and measured,
                measured,
                scale=scale_of(unit),
                listed=run.listed,
            )
            for run in runs
        ]
        log_from = 3.0 if key == "loss" else LOG_FROM.get(key, math.inf)
        limits = PERCENT if unit == "%" else None
        return Figure(slug(key), title, unit, curves, wide, limits, log_from, by_curve=True)

    def held_out(place: int, kind: str, name: str) -> Figure:
        title, unit = _title(kind, name)
        curves = [
            Curve(
                run.name,
                (kind, name),
                run.style,
                evals[run.name],
                smooth=False,
                dots=True,
                scale=scale_of(unit),
                listed=run.listed,
            )
            for run in runs
        ]
        without = [r.name for r in runs if r.listed and name not in evaluated(r.log, kind)]
        return Figure(
            f"eval-{place}",
            title,
            unit,
            curves,
            log_from=3.0 if unit == LOSS_UNIT else math.inf,
            note=f"Not evaluated by {', '.join(without)}." if without else "",
            by_curve=True,
        )

    shown = [figure("loss", "Training loss", LOSS_UNIT, wide=True)]
    kinds = ("loss", *(kind for kind, _, _ in OTHERS.values()))
    named = [(kind, name) for kind in kinds for name in _names(runs, kind)]
    shown += [held_out(n, kind, name) for n, (kind, name) in enumerate(named)]
    shown.append(figure("accuracy", "Masked-token accuracy in training", "%"))
    same = []
    for key, title, unit in SCHEDULES:
        schedule = figure(key, title, unit, measured=False)
        lows, highs = zip(*(ends(c, c.buckets) for c in schedule.curves), strict=True)
        if min(lows) == max(highs) < math.inf:
            same.append(f"{title} {constant_text(min(lows), unit)} throughout, in all runs.")
        else:
            shown.append(schedule)
    shown += [figure(key, title, unit) for key, title, unit in MEASURED]
    html, missing = draw_all(shown, canvas)
    return html, same + ([f"Logged by no run: {', '.join(missing)}."] if missing else [])


def _names(runs: Sequence[Shown], kind: str) -> list[str]:
    """Return the domains, views or probes that any run was evaluated on, `all` first."""
    names = {name for run in runs for name in evaluated(run.log, kind)}
    return sorted(names, key=lambda name: (name != "all", name))


def _title(kind: str, name: str) -> tuple[str, str]:
    """Return the title and the unit of a figure of held-out data."""
    if kind == "probe":
        return f"Accuracy of probe {name}", "%"
    return f"Evaluation loss, {'all domains' if name == 'all' else name}", LOSS_UNIT


def _fewer(buckets: list[Bucket], most: int) -> list[Bucket]:
    return merged(buckets, -(-len(buckets) // most)) if buckets else []
