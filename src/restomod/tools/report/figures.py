"""Turn curves of one run or of several into figures: a legend, two plots, a table.

In: buckets of logged values, and what all figures of a page share. Out: HTML strings, every name in
them escaped. Each figure is drawn twice, against token slots and against wall time; the page shows
one of them. `run_figures.py` (one run) and `compare_figures.py` (several) say which curves.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

from restomod.tools.pages.charts import Line, Plot, Point, XAxis, si, svg, x_axis
from restomod.tools.pages.markup import key, table
from restomod.tools.record.downsampled import Bucket, merged
from restomod.tools.record.metrics_log import Mark, PhaseSpan, RunLog
from restomod.units import duration

TABLE_ROWS = 16
TABLE_PLACES = 6
MOST_MARKS = 120
KINDS = ("tokens", "time")


@dataclass(frozen=True)
class Curve:
    """One curve of a figure; values are multiplied by `scale`; `raw` adds their range. One that is
    not `listed` is in the table, but not in the legend."""

    label: str
    key: Hashable
    style: str
    buckets: Sequence[Bucket]
    raw: bool = False
    smooth: bool = True
    dots: bool = False
    scale: float = 1.0
    listed: bool = True


@dataclass(frozen=True)
class Level:
    """A value that was asked for in some phases, drawn dashed."""

    style: str
    spans: Sequence[tuple[PhaseSpan, float]]


@dataclass(frozen=True)
class Figure:
    """A titled set of curves over a shared vertical axis, "%" when they are scaled to percent.
    `by_curve`: each curve is a run's, and a row of the table."""

    slug: str
    title: str
    unit: str
    curves: Sequence[Curve]
    wide: bool = False
    y_limits: tuple[float, float] | None = None
    log_from: float = math.inf
    levels: Sequence[Level] = field(default_factory=tuple)
    note: str = ""
    by_curve: bool = False


@dataclass(frozen=True)
class Canvas:
    """What all figures of a page share: both horizontal axes, and the events on them."""

    axes: dict[str, XAxis]
    resumes: Sequence[tuple[Mark, str]] = ()
    """Each with the CSS class of its run's colour."""
    checkpoints: Sequence[Mark] = ()
    phases: Sequence[PhaseSpan] = ()


def axes(logs: Iterable[RunLog]) -> dict[str, XAxis]:
    """Choose axes that hold all that the runs logged."""
    buckets = [b for log in logs for b in (*log.train.buckets(), *log.evals.buckets())]
    found = {}
    for kind in KINDS:
        ends = [_ends(bucket, kind) for bucket in buckets]
        found[kind] = x_axis(kind, min(low for low, _ in ends), max(high for _, high in ends))
    return found


def draw(figure: Figure, canvas: Canvas) -> str:
    """Write one figure: legend, both plots, table; nothing when no curve has a point."""
    curves = [c for c in figure.curves if any(c.key in b.spreads for b in c.buckets)]
    if not curves:
        return ""
    drawn = [_lines(curve, "tokens")[0].segments for curve in curves]
    ends = [
        (value_text(line[0][0][1], figure.unit), value_text(line[-1][-1][1], figure.unit))
        for line in drawn
    ]
    plots = [
        f'<div class="frame by-{kind}">{svg(_plot(figure, curves, ends, canvas, kind))}</div>'
        for kind in KINDS
    ]
    note = f'<p class="note">{escape(figure.note)}</p>' if figure.note else ""
    below = _table_by_curve if figure.by_curve else _table_by_place
    return (
        f'<figure id="{figure.slug}" class="chart{" wide" if figure.wide else ""}" '
        f'data-unit="{escape(figure.unit)}">'
        f"<figcaption><h3>{escape(figure.title)}</h3>{_legend(figure, curves, ends)}</figcaption>"
        f"{note}{''.join(plots)}<details><summary>Table</summary>{below(figure, curves)}</details>"
        "</figure>"
    )


def draw_all(shown: Sequence[Figure], canvas: Canvas) -> tuple[str, list[str]]:
    """Return the figures, and the titles of those without data."""
    drawn = [(figure, draw(figure, canvas)) for figure in shown]
    missing = [figure.title for figure, html in drawn if not html]
    return "\n".join(html for _, html in drawn if html), missing


def _plot(
    figure: Figure,
    curves: Sequence[Curve],
    ends: Sequence[tuple[str, str]],
    canvas: Canvas,
    kind: str,
) -> Plot:
    x = canvas.axes[kind]
    order = reversed(curves) if figure.by_curve else curves  # the first run on top
    lines = [line for curve in order for line in _lines(curve, kind)]
    for level in figure.levels:
        spans = [(_ends(span, kind), value) for span, value in level.spans]
        segments = [[(first, value), (last, value)] for (first, last), value in spans]
        lines.append(Line("", f"{level.style} asked", segments))
    several = len(canvas.phases) > 1
    return Plot(
        name=f"{figure.slug}-{kind}",
        title=f"{figure.title} against {x.label}",
        description=_description(figure, curves, ends),
        unit=figure.unit,
        lines=sorted(lines, key=lambda line: bool(line.label)),
        x=x,
        resumes=[(_place(mark, kind), style) for mark, style in _thinned(canvas.resumes)],
        checkpoints=[_place(mark, kind) for mark in _thinned(canvas.checkpoints)],
        phases=[(p.name, _ends(p, kind)[0]) for p in canvas.phases] if several else (),
        name_phases=figure.wide,
        y_limits=figure.y_limits,
        log_from=figure.log_from,
    )


def _ends(span: Bucket | PhaseSpan, kind: str) -> tuple[float, float]:
    return span.tokens if kind == "tokens" else span.time_s


def _place(mark: Mark, kind: str) -> float:
    return mark.tokens if kind == "tokens" else mark.time_s


def _thinned(marks: Sequence[Any]) -> Sequence[Any]:
    return marks[:: -(-len(marks) // MOST_MARKS) or 1]


def _lines(curve: Curve, kind: str) -> list[Line]:
    segments: list[list[Bucket]] = []
    for bucket in curve.buckets:
        if bucket.breaks or not segments:
            segments.append([])
        if curve.key in bucket.spreads:
            segments[-1].append(bucket)
    segments = [segment for segment in segments if segment]
    count = sum(map(len, segments))
    reach = max(count // 50, min(4, count // 8)) if curve.smooth else 0
    smooth = [_smooth(segment, curve, kind, reach, n == 0) for n, segment in enumerate(segments)]
    label, title = (curve.label, "") if curve.listed else ("", curve.label)
    lines = [Line(label, curve.style, smooth, curve.dots and count <= 60, title)]
    if curve.raw:
        lines.append(Line("", f"{curve.style} raw", [_zigzag(s, curve, kind) for s in segments]))
    return lines


def _middle(bucket: Bucket, kind: str) -> float:
    first, last = _ends(bucket, kind)
    return (first + last) / 2


def _zigzag(segment: Sequence[Bucket], curve: Curve, kind: str) -> list[Point]:
    """Draw each bucket's lowest and highest value, so that no spike is averaged away."""
    points = []
    for bucket in segment:
        spread, x = bucket.spreads[curve.key], _middle(bucket, kind)
        points.append((x, spread.low * curve.scale))
        if spread.high > spread.low:
            points.append((x, spread.high * curve.scale))
    return points


def _smooth(
    segment: Sequence[Bucket], curve: Curve, kind: str, reach: int, first: bool
) -> list[Point]:
    """Average each bucket with `reach` neighbours on both sides, so that the curve does not lag.

    The window's lowest and highest are left out, so that a spike stays a spike. Where a run begins,
    values fall fast: there the window stays symmetric and shrinks.
    """
    means = [bucket.spreads[curve.key].mean * curve.scale for bucket in segment]
    points = []
    for n, bucket in enumerate(segment):
        right = min(reach, n) if first else reach
        window = sorted(means[max(0, n - reach) : n + right + 1])
        window = window[1:-1] if len(window) > 2 else window
        points.append((_middle(bucket, kind), sum(window) / len(window)))
    return points


def value_text(value: float, unit: str) -> str:
    """Write a value as the legend and the tables do; the page's script follows the same rule."""
    if unit == "%":
        return f"{value:.1f}%" if 1 <= value < 99 else f"{value:.2f}%"
    if 999.5 <= abs(value) < 1e9:
        return f"{value:,.0f}"
    if abs(value) < 0.01 or abs(value) >= 1e9:
        return f"{value:.2e}" if value else "0"
    return f"{value:#.4g}".removesuffix(".")


def _legend(figure: Figure, curves: Sequence[Curve], ends: Sequence[tuple[str, str]]) -> str:
    items = []
    for curve, (_, value) in zip(curves, ends, strict=True):
        if curve.listed:
            label = "" if curve.label == figure.title else escape(curve.label)
            items.append(
                f"<li>{key(curve.style)}{label} "
                f'<b data-value="{escape(curve.label)}">{value}</b></li>'
            )
    return f'<ul class="legend">{"".join(items)}</ul><span class="at" data-at>latest</span>'


def _description(figure: Figure, curves: Sequence[Curve], ends: Sequence[tuple[str, str]]) -> str:
    listed = [(c.label, *of) for c, of in zip(curves, ends, strict=True) if c.listed]
    parts = [f"{label}: from {first} to {last}" for label, first, last in listed]
    unit = f"In {figure.unit}. " if figure.unit not in ("", "%") else ""
    return (
        f"{unit}{'; '.join(parts)}. Arrow keys move a cursor along the curves; the table below has "
        "the numbers."
    )


def _table_by_place(figure: Figure, curves: Sequence[Curve]) -> str:
    """Write the same curves as short tables whose lowest and highest keep every spike."""
    sources = {id(curve.buckets): curve.buckets for curve in curves}
    tables = []
    for source, buckets in sources.items():
        columns = []
        for curve in curves:
            if id(curve.buckets) == source:
                columns.append((curve.label, curve, "mean"))
                if curve.raw:
                    columns += [("lowest", curve, "low"), ("highest", curve, "high")]
        rows = []
        for bucket in merged(list(buckets), -(-len(buckets) // TABLE_ROWS)):
            cells = [
                value_text(getattr(bucket.spreads[curve.key], part) * curve.scale, figure.unit)
                if curve.key in bucket.spreads
                else ""
                for _, curve, part in columns
            ]
            rows.append([si(bucket.tokens[1]), duration(bucket.time_s[1]), *cells])
        names = ["up to slots", "up to time", *(name for name, _, _ in columns)]
        about = columns[0][0] if len(sources) > 1 else ""
        tables.append(table(names, rows, _table_label(figure, about)))
    return "".join(tables)


def _table_label(figure: Figure, about: str) -> str:
    return f"{figure.title}{f', {about}' if about else ''}, as a table"


def _table_by_curve(figure: Figure, curves: Sequence[Curve]) -> str:
    """Write a row for each curve: as drawn after equally many slots and at its end, and its lowest
    and highest."""
    known = {n: [b for b in c.buckets if c.key in b.spreads] for n, c in enumerate(curves)}
    most = max(buckets[-1].tokens[1] for buckets in known.values())
    places = [most * (n + 1) / TABLE_PLACES for n in range(TABLE_PLACES - 1)]
    rows = []
    for n, curve in enumerate(curves):
        spreads = [bucket.spreads[curve.key] for bucket in known[n]]
        drawn = [point for segment in _lines(curve, "tokens")[0].segments for point in segment]
        first, last = known[n][0].tokens[0], known[n][-1].tokens[1]
        values = [_value_at(drawn, x) if first <= x <= last else None for x in places]
        values += [min(s.low for s in spreads) * curve.scale]
        values += [max(s.high for s in spreads) * curve.scale, drawn[-1][1]]
        rows.append(
            [
                f"{key(curve.style)}{escape(curve.label)}",
                *("" if v is None else value_text(v, figure.unit) for v in values),
            ]
        )
    head = ["run", *(f"at {si(place)} slots" for place in places), "lowest", "highest", "last"]
    return table(head, rows, _table_label(figure, ""), "named")


def _value_at(points: Sequence[Point], x: float) -> float:
    """Return a curve's value, between two of its points where it has none."""
    (x0, a) = max((p for p in points if p[0] <= x), default=points[0])
    (x1, b) = min((p for p in points if p[0] >= x), default=points[-1])
    return a if x1 <= x0 else a + (b - a) * (x - x0) / (x1 - x0)
