"""The schedules of a run: learning rate, batch size, mask rate, RoPE bases; drawn with characters.

Enters: the run's timeline. Leaves: their values, which `page.py` draws as charts, and lines of
text for `restomod plan`. Each is a function of the token slots trained on, sampled in the middle of
equal parts of the run's slots.
"""

from __future__ import annotations

from dataclasses import dataclass

from restomod.config import OptimizerConfig
from restomod.data.mlm import mask_rate
from restomod.optim.schedules import peak_lr, step_factor
from restomod.timeline import Span, Timeline

COLUMNS, ROWS = 60, 6


@dataclass(frozen=True)
class Schedule:
    """One value over the run."""

    title: str
    form: str
    """How a value is written."""
    values: list[float]


@dataclass(frozen=True)
class Schedules:
    """All of them, and where they were sampled."""

    spans: list[Span]
    """The phase of each sample."""
    slots: list[int]
    """Slots trained on before the step of each sample."""
    each: list[Schedule]


def schedules(timeline: Timeline, optimizer: OptimizerConfig, samples: int) -> Schedules:
    """Return the values of all schedules at the steps that `samples` equal parts' middles fall
    into."""
    steps = _steps(timeline, min(samples, timeline.end_step - timeline.origin.step))
    places = [(timeline.at(step), step) for step in steps]
    spans = [span for span, _ in places]
    return Schedules(
        spans,
        [span.slots_before(step) for span, step in places],
        [
            Schedule("learning rate", "{:.3g}", [_lr(*place, optimizer) for place in places]),
            Schedule(
                "slots of a batch",
                "{:,.0f}",
                [span.batch_rows(step) * float(span.phase.row_tokens) for span, step in places],
            ),
            Schedule("mask rate", "{:.1%}", [_rate(*place) for place in places]),
            Schedule(
                "RoPE base of global layers",
                "{:,.0f}",
                [span.phase.rope_base_global for span in spans],
            ),
            Schedule(
                "RoPE base of local layers",
                "{:,.0f}",
                [span.phase.rope_base_local for span in spans],
            ),
        ],
    )


def schedule_plots(timeline: Timeline, optimizer: OptimizerConfig) -> list[str]:
    """Return the schedules over the whole run as text; those that never change in one line each."""
    found = schedules(timeline, optimizer, COLUMNS)
    lines = []
    for schedule in found.each:
        lines += _plot(schedule.title, schedule.values, schedule.form)
    return lines + _names(timeline, found.spans)


def _steps(timeline: Timeline, columns: int) -> list[int]:
    """Return the steps that the middles of so many equal parts of the run's slots fall into."""
    begin = timeline.origin.slots
    slots = timeline.spans[-1].slots_before(timeline.end_step) - begin
    steps = []
    for column in range(columns):
        middle = begin + slots * (2 * column + 1) // (2 * columns)
        span = [span for span in timeline.spans if span.first_slot <= middle][-1]
        row = (middle - span.first_slot) // span.phase.row_tokens
        steps.append(span.first_step + span.phase.batches.step_of(row))
    return steps


def _lr(span: Span, step: int, optimizer: OptimizerConfig) -> float:
    return peak_lr(span.phase, optimizer) * step_factor(step - span.first_step, span.phase)


def _rate(span: Span, step: int) -> float:
    if span.phase.objective == "clm":
        return 1.0
    return mask_rate(span.phase.mask, span.slots_before(step) - span.first_slot)


def _plot(title: str, values: list[float], form: str) -> list[str]:
    highest = max(values)
    if min(values) == highest:
        return [f"{title}: {form.format(highest)} throughout"]
    lines = [f"{title}, 0 to {form.format(highest)}:"]
    for row in range(ROWS, 0, -1):
        level = highest * (row - 0.5) / ROWS
        low = "." if row == 1 else " "
        lines.append("|" + "".join("#" if value >= level else low for value in values).rstrip())
    return [*lines, "+" + "-" * len(values)]


def _names(timeline: Timeline, spans: list[Span]) -> list[str]:
    """Return a ruler that marks where each phase begins, where there are several."""
    if len(timeline.spans) == 1:
        return []
    marks = "".join(
        "^" if n == 0 or span is not spans[n - 1] else " " for n, span in enumerate(spans)
    )
    names = ", ".join(span.phase.name for span in timeline.spans)
    return [" " + marks.rstrip(), f" phases begin at ^: {names}"]
