"""The schedules of a run, drawn with characters: learning rate, batch size, mask rate, RoPE base.

Enters: the run's timeline. Leaves: lines of text for `restomod plan`. Each is a function of the
token slots trained on, sampled in the middle of every column's slots.
"""

from __future__ import annotations

from restomod.config import OptimizerConfig
from restomod.data.mlm import mask_rate
from restomod.optim.schedules import peak_lr, step_factor
from restomod.timeline import Span, Timeline

COLUMNS, ROWS = 60, 6


def schedule_plots(timeline: Timeline, optimizer: OptimizerConfig) -> list[str]:
    """Return the four schedules over the whole run; those that never change in one line each."""
    total = timeline.end_step - timeline.origin.step
    steps = _steps(timeline, min(COLUMNS, total))
    places = [(timeline.at(step), step) for step in steps]
    lines = []
    for title, values, form in (
        ("learning rate", [_lr(*place, optimizer) for place in places], "{:.3g}"),
        (
            "slots of a batch",
            [s.batch_rows(n) * float(s.phase.row_tokens) for s, n in places],
            "{:,.0f}",
        ),
        ("mask rate", [_rate(*place) for place in places], "{:.1%}"),
        ("RoPE base of global layers", [s.phase.rope_base_global for s, _ in places], "{:,.0f}"),
        ("RoPE base of local layers", [s.phase.rope_base_local for s, _ in places], "{:,.0f}"),
    ):
        lines += _plot(title, values, form)
    return lines + _names(timeline, [span for span, _ in places])


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
