"""Draw a sweep in parallel coordinates: an axis for each parameter and one for the metric, a line
for each trial.

In: the sweep file and its trials. Out: an `<svg>` that stretches with the page, built as those of
`tools/pages/charts.py`, and style rules that light up a line with its table row. `page.py` is the
caller.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from restomod.sweep.file import SweepFile
from restomod.sweep.space import Parameter
from restomod.sweep.study import DONE, Trial
from restomod.sweep.table import ranked, short_names, show
from restomod.tools.pages.charts import CURVES, opening, tick_labels, y_scale

LOG_FROM = 20.0
"""Factor from which an axis of drawn numbers is logarithmic."""
AXIS_REM = 10
"""Least distance of two axes; a narrower page scrolls."""


@dataclass(frozen=True)
class Axis:
    """One vertical axis: 0 is its top, 1000 its bottom."""

    title: str
    label: str
    ticks: Sequence[tuple[float, str]]
    height: Callable[[Any], float]


def parallel_coordinates(sweep: SweepFile, trials: list[Trial]) -> str:
    """Draw the trials that have a value of the metric; nothing if there are fewer than two."""
    shown = [trial for trial in ranked(sweep, trials) if trial.value is not None]
    if len(shown) < 2:
        return ""
    axes = [
        _axis(key, label, sweep.parameters[key], [trial.values[key] for trial in shown])
        for key, label in short_names(sweep).items()
    ]
    axes.append(_measured(sweep.metric.name, [trial.value for trial in shown], LOG_FROM))
    out = [
        opening(
            "parallel",
            f"{sweep.name}: parameters and {sweep.metric.name}",
            "A line for each trial; the table below has the numbers.",
            f'style="min-width:{AXIS_REM * (len(axes) - 1)}rem"',
        ),
        CURVES,
    ]
    for place in reversed(range(len(shown))):  # the best on top
        out.append(_line(shown[place], place / (len(shown) - 1), axes, sweep))
    out.append("</svg>")
    for n, axis in enumerate(axes):
        out += _frame(axis, _across(n, axes) / 10, last=n == len(axes) - 1)
    return "\n".join([*out, "</svg>"])


def highlights(trials: Sequence[Trial]) -> str:
    """Return style rules by which a table row and its lines light each other up."""
    return "".join(
        f"body:has(#row-{t.number}:hover) :is(#line-{t.number},.curves .trial-{t.number})"
        "{--stroke:var(--alarm);--width:4;opacity:1}"
        f"body:has(#line-{t.number}:hover) #row-{t.number}{{background:var(--tint)}}"
        for t in trials
    )


def _across(n: int, axes: Sequence[Axis]) -> float:
    return 1000.0 * n / (len(axes) - 1)


def _axis(key: str, label: str, parameter: Parameter, values: list[Any]) -> Axis:
    if parameter.kind == "categorical":
        return _listed(key, label, parameter.choices)
    logarithmic = parameter.kind.startswith("log_")
    axis = _measured(label, values, 1.0 + 1e-9 if logarithmic else LOG_FROM)
    return Axis(key, label, axis.ticks, axis.height)


def _listed(key: str, label: str, choices: list[Any]) -> Axis:
    """Return an axis of listed values, evenly spaced: numbers from low to high, others as listed
    from top to bottom."""
    if all(isinstance(choice, int | float) for choice in choices):
        choices = sorted(choices, reverse=True)
    heights = {
        choice: 1000.0 * n / (len(choices) - 1) if len(choices) > 1 else 500.0
        for n, choice in enumerate(choices)
    }
    ticks = [(height, show(choice)) for choice, height in heights.items()]
    return Axis(key, label, ticks, heights.__getitem__)


def _measured(label: str, values: list[Any], log_from: float) -> Axis:
    scale = y_scale(values, log_from=log_from)
    texts = [show(float(t)) for t in scale.ticks] if scale.log else tick_labels(scale.ticks)
    ticks = [(scale(tick), text) for tick, text in zip(scale.ticks, texts, strict=True)]
    return Axis(label, label, ticks, scale)


def _frame(axis: Axis, across: float, last: bool) -> list[str]:
    at = f"{across:.2f}%"
    anchor = "end" if last else "start" if across == 0 else "middle"
    shift = 8 if last else -8
    out = [
        f'<line class="axis" x1="{at}" x2="{at}" y2="100%"/>',
        f'<text class="axis" style="text-anchor:{anchor}" x="{at}" y="0" dy="-16">'
        f"<title>{escape(axis.title)}</title>{escape(axis.label)}</text>",
    ]
    side = "start" if last else "end"
    for height, text in axis.ticks:
        out.append(
            f'<text style="text-anchor:{side}" x="{at}" y="{height / 10:.2f}%" dx="{shift}" '
            f'dy=".33em">{escape(text)}</text>'
        )
    return out


def _line(trial: Trial, share: float, axes: Sequence[Axis], sweep: SweepFile) -> str:
    """Draw one trial, the paler the worse it is; dashed if it was stopped early. The wider path
    below it is there for the pointer."""
    values = [*(trial.values[key] for key in short_names(sweep)), trial.value]
    path = "M" + "L".join(
        f"{_across(n, axes):.1f},{axis.height(value):.1f}"
        for n, (axis, value) in enumerate(zip(axes, values, strict=True))
    )
    words = " ".join(sweep.given(trial.values))
    title = f"{trial.number:03d} {trial.state}: {sweep.metric.name} {trial.value:.4f} with {words}"
    dashed = "" if trial.state == DONE else " stopped"
    mix = f"color-mix(in oklab,var(--accent) {100 * (1 - share):.0f}%,var(--faded))"
    return (
        f'<g id="line-{trial.number}" class="trial{dashed}" style="--stroke:{mix}">'
        f"<title>{escape(title)}</title>"
        f'<path class="hit" d="{path}"/><path d="{path}"/></g>'
    )
