"""Turn a `RunLog` into the report's figures: which curves, smoothed how, beside which table.

In: the log, the phases of the recipe with the mixture they asked for. Out: HTML strings, every name
in them escaped. Each figure is drawn twice, against token slots and against wall time; the page
shows one of them. `tools/report.py` calls this.
"""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from html import escape

from restomod.tools.charts import Line, Plot, Point, XAxis, duration, si, svg, x_axis
from restomod.tools.metrics_log import Bucket, Mark, RunLog, merged

COLOURS = 8
TABLE_ROWS = 16
MOST_CHECKPOINT_MARKS = 120


@dataclass(frozen=True)
class AskedPhase:
    """One phase of the recipe: its length in token slots, its mixture as shares that sum to 1."""

    name: str
    slots: float | None
    mixture: dict[str, float]


@dataclass(frozen=True)
class Curve:
    """One curve of a figure; values are multiplied by `scale`; `raw` adds their range."""

    label: str
    key: Hashable
    style: str
    buckets: Sequence[Bucket]
    raw: bool = False
    smooth: bool = True
    dots: bool = False
    scale: float = 1.0


@dataclass(frozen=True)
class Figure:
    """A titled set of curves over a shared vertical axis, "%" when they are scaled to percent."""

    slug: str
    title: str
    unit: str
    curves: Sequence[Curve]
    wide: bool = False
    y_limits: tuple[float, float] | None = None
    log_from: float = math.inf
    asked: Sequence[tuple[str, str]] = field(default_factory=tuple)
    note: str = ""


def figures(log: RunLog, asked: Sequence[AskedPhase]) -> tuple[str, str, list[str]]:
    """Return the training figures, the mixture's figure, and the names of figures without data."""
    shown, missing = [], []
    *training, mixture = _figures(log, asked)
    for figure in training:
        html = _html(figure, log, asked)
        if html:
            shown.append(html)
        else:
            missing.append(figure.title)
    return "\n".join(shown), _html(mixture, log, asked), missing


def colours(log: RunLog, asked: Sequence[AskedPhase]) -> dict[str, str]:
    """Give every stream and domain its CSS class: a name has the same colour everywhere."""
    names = [name for phase in asked for name in phase.mixture]
    names += [name for streams in log.stream_tokens.values() for name in streams]
    names += _domains(log)
    names = [name for name in dict.fromkeys(names) if name != "all"]
    classes = {name: f"c{index % COLOURS + 1}" for index, name in enumerate(names)}
    return classes | {"all": "ink"}


def _domains(log: RunLog) -> list[str]:
    keys = {key: None for bucket in log.evals.buckets() for key in bucket.spreads}
    return list(dict.fromkeys(str(key[1]) for key in keys if isinstance(key, tuple)))


def _figures(log: RunLog, asked: Sequence[AskedPhase]) -> list[Figure]:
    train, evals, colour = log.train.buckets(), log.evals.buckets(), colours(log, asked)
    domains = [d for d in _domains(log) if d != "all"][:COLOURS]
    domains += ["all"] if "all" in _domains(log) else []

    def single(
        slug: str,
        key: str,
        title: str,
        unit: str,
        limits: tuple[float, float] | None = None,
        log_from: float = math.inf,
    ) -> Figure:
        scale = 100.0 if unit == "%" else 1.0
        measured = key != "lr"
        curve = Curve(title, key, "train", train, measured, measured, scale=scale)
        return Figure(slug, title, unit, [curve], y_limits=limits, log_from=log_from)

    def per_domain(name: str, scale: float = 1.0) -> list[Curve]:
        return [
            Curve(d, (name, d), colour[d], evals, smooth=False, dots=True, scale=scale)
            for d in domains
        ]

    percent = (0.0, 100.0)
    streams: dict[str, float] = {}
    for counts in log.stream_tokens.values():
        for stream, tokens in counts.items():
            streams[stream] = streams.get(stream, 0.0) + tokens
    largest = sorted(streams, key=lambda stream: -streams[stream])[:COLOURS]
    some = f"The {COLOURS} largest of {len(streams)} streams. " if len(streams) > COLOURS else ""
    return [
        Figure(
            "loss",
            "Loss",
            "nats per predicted token",
            [Curve("training", "loss", "train", train, raw=True), *per_domain("loss")],
            wide=True,
            log_from=3.0,
        ),
        Figure(
            "eval-loss",
            "Evaluation loss",
            "nats per predicted token",
            per_domain("loss"),
            log_from=3.0,
        ),
        Figure(
            "accuracy",
            "Masked-token accuracy",
            "%",
            [
                Curve("training", "accuracy", "train", train, scale=100.0),
                *per_domain("accuracy", 100.0),
            ],
            y_limits=percent,
        ),
        single("lr", "lr", "Learning rate", ""),
        single("grad-norm", "grad_norm", "Gradient norm", "L2 norm", log_from=30.0),
        single("throughput", "tokens_per_s", "Throughput", "token slots per second"),
        single("mfu", "mfu", "Model FLOPs utilisation", "%", percent),
        single("data-wait", "data_wait_fraction", "Waiting for data", "%", percent),
        single("packing", "packing_efficiency", "Packing efficiency", "%", percent),
        Figure(
            "mixture",
            "Share of real tokens",
            "%",
            [Curve(s, ("mixture", s), colour[s], train, scale=100.0) for s in largest],
            wide=True,
            y_limits=percent,
            asked=[(s, colour[s]) for s in largest],
            note=f"{some}Solid: realised, smoothed. Dashed: asked by the recipe.",
        ),
    ]


def _html(figure: Figure, log: RunLog, asked: Sequence[AskedPhase]) -> str:
    """Write one figure: legend, both plots, table; nothing when no curve has a point."""
    curves = [c for c in figure.curves if any(c.key in b.spreads for b in c.buckets)]
    if not curves:
        return ""
    drawn = [_lines(curve, "tokens")[0].segments for curve in curves]
    ends = [
        (value_text(line[0][0][1], figure.unit), value_text(line[-1][-1][1], figure.unit))
        for line in drawn
    ]
    legend = _legend(figure, curves, ends)
    plots = []
    for kind in ("tokens", "time"):
        x = _x_range(kind, log)
        lines = [line for curve in curves for line in _lines(curve, kind)]
        lines += _asked_lines(figure, log, asked, kind)
        plot = Plot(
            name=f"{figure.slug}-{kind}",
            title=f"{figure.title} against {x.label}",
            description=_description(figure, curves, ends),
            unit=figure.unit,
            lines=sorted(lines, key=lambda line: bool(line.label)),
            x=x,
            resumes=[_place(mark, kind) for mark in _thinned(log.resumes)],
            checkpoints=[_place(mark, kind) for mark in _thinned(log.checkpoints)],
            phases=[(p.name, (p.tokens if kind == "tokens" else p.time_s)[0]) for p in log.phases]
            if len(log.phases) > 1
            else (),
            name_phases=figure.wide,
            y_limits=figure.y_limits,
            log_from=figure.log_from,
        )
        plots.append(f'<div class="frame by-{kind}">{svg(plot)}</div>')
    note = f'<p class="note">{escape(figure.note)}</p>' if figure.note else ""
    return (
        f'<figure id="{figure.slug}" class="chart{" wide" if figure.wide else ""}" '
        f'data-unit="{escape(figure.unit)}">'
        f"<figcaption><h3>{escape(figure.title)}</h3>{legend}</figcaption>{note}"
        f"{''.join(plots)}{_table(figure, curves)}</figure>"
    )


def key(log: RunLog) -> str:
    """Explain the marks that the figures of this run share."""
    items = [
        ('<path class="faint" d="M0 6h14M3 1v10M9 3v7"/>', "lowest and highest logged"),
        ('<path class="smooth" d="M0 6h14"/>', "smoothed"),
    ]
    if log.resumes:
        items.append(('<path class="r" d="M7 0v12"/>', "resume"))
    if log.checkpoints:
        items.append(('<circle class="k" cx="7" cy="6" r="2.5"/>', "checkpoint"))
    if len(log.phases) > 1:
        items.append(('<path class="p" d="M7 0v12"/>', "phase begins"))
    marks = "".join(
        f'<span><svg aria-hidden="true" viewBox="0 0 14 12">{mark}</svg>{name}</span>'
        for mark, name in items
    )
    return f'<p class="eventkey">{marks}</p>'


def _x_range(kind: str, log: RunLog) -> XAxis:
    buckets = [*log.train.buckets(), *log.evals.buckets()]
    ends = [b.tokens if kind == "tokens" else b.time_s for b in buckets]
    return x_axis(kind, min(low for low, _ in ends), max(high for _, high in ends))


def _place(mark: Mark, kind: str) -> float:
    return mark.tokens if kind == "tokens" else mark.time_s


def _thinned(marks: Sequence[Mark]) -> Sequence[Mark]:
    return marks[:: -(-len(marks) // MOST_CHECKPOINT_MARKS) or 1]


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
    lines = [Line(curve.label, curve.style, smooth, curve.dots and count <= 60)]
    if curve.raw:
        lines.append(Line("", f"{curve.style} raw", [_zigzag(s, curve, kind) for s in segments]))
    return lines


def _middle(bucket: Bucket, kind: str) -> float:
    first, last = bucket.tokens if kind == "tokens" else bucket.time_s
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


def _asked_lines(figure: Figure, log: RunLog, asked: Sequence[AskedPhase], kind: str) -> list[Line]:
    mixtures = {phase.name: phase.mixture for phase in asked}
    lines = []
    for stream, style in figure.asked:
        segments = []
        for span in log.phases:
            share = mixtures.get(span.name, {}).get(stream)
            if share is not None:
                first, last = span.tokens if kind == "tokens" else span.time_s
                segments.append([(first, 100 * share), (last, 100 * share)])
        if segments:
            lines.append(Line("", f"{style} asked", segments))
    return lines


def value_text(value: float, unit: str) -> str:
    """Write a value as the legend and the tables do; the page's script follows the same rule."""
    if unit == "%":
        return f"{value:.1f}%" if 1 <= value < 99 else f"{value:.2f}%"
    if abs(value) >= 999.5:
        return f"{value:,.0f}"
    if abs(value) < 0.01:
        return f"{value:.2e}" if value else "0"
    return f"{value:#.4g}"


def _legend(figure: Figure, curves: Sequence[Curve], ends: Sequence[tuple[str, str]]) -> str:
    items = []
    for curve, (_, value) in zip(curves, ends, strict=True):
        label = "" if len(figure.curves) == 1 else escape(curve.label)
        items.append(
            f'<li><span class="key {curve.style}"></span>{label} '
            f'<b data-value="{escape(curve.label)}">{value}</b></li>'
        )
    return f'<ul class="legend">{"".join(items)}</ul><span class="at" data-at>latest</span>'


def _description(figure: Figure, curves: Sequence[Curve], ends: Sequence[tuple[str, str]]) -> str:
    parts = [f"{c.label}: from {a} to {b}" for c, (a, b) in zip(curves, ends, strict=True)]
    unit = f"In {figure.unit}. " if figure.unit not in ("", "%") else ""
    return f"{unit}{'; '.join(parts)}. The table below has the numbers."


def _table(figure: Figure, curves: Sequence[Curve]) -> str:
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
        tables.append(table(names, rows, f"{figure.title}, as a table"))
    return f"<details><summary>Table</summary>{''.join(tables)}</details>"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], label: str, style: str = "") -> str:
    """Write a table that scrolls by itself on a narrow screen; `rows` are HTML, `head` is text."""
    columns = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(label)}">'
        f'<table class="{style}"><thead><tr>{columns}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )
