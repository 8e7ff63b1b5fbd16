"""Draw line charts as accessible inline SVG that stretches with the page and needs no script.

In: lines of (x, y) points. Out: an `<svg>` string whose plot area is the SVG itself: curves live in
a nested SVG stretched to 1000 x 1000 units, and tick labels sit around it at percentages, so that
text keeps its size on a phone. The page's script reads the attributes back for its cursor.
Reports, a plan's page, a sweep's and the data card call this.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

Point = tuple[float, float]

SI_UNITS = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K"))
WIDE_PX, PHONE_PX = 900, 270  # widths of a wide plot, which decide whether a phase's name fits
LONGEST_TICK = 6  # characters beside the plot, a percent sign not counted
CURVES = (
    '<svg class="curves" width="100%" height="100%" viewBox="0 0 1000 1000" '
    'preserveAspectRatio="none">'
)
"""Opens the part of a chart that is stretched: 1000 x 1000 units, whatever its size."""
TIME_UNITS = ((86400.0, "days"), (3600.0, "hours"), (60.0, "minutes"), (1.0, "seconds"))


@dataclass(frozen=True)
class Line:
    """One curve in `segments`; `style` lists CSS classes; labelled lines answer the cursor, others
    may have a title, which the pointer shows."""

    label: str
    style: str
    segments: Sequence[Sequence[Point]]
    dots: bool = False
    title: str = ""


@dataclass(frozen=True)
class XAxis:
    """The horizontal axis: its range, its unit as a divisor, and its label."""

    kind: str
    low: float
    high: float
    divisor: float
    label: str


@dataclass(frozen=True)
class Plot:
    """All that one SVG shows; the unit is the y axis's, "%" for values already in percent."""

    name: str
    title: str
    description: str
    unit: str
    lines: Sequence[Line]
    x: XAxis
    resumes: Sequence[tuple[float, str]] = ()
    """Where a run went on, and the CSS class of the run's colour."""
    checkpoints: Sequence[float] = ()
    phases: Sequence[tuple[str, float]] = ()
    name_phases: bool = False
    y_limits: tuple[float, float] | None = None
    log_from: float = math.inf


@dataclass(frozen=True)
class YScale:
    """A linear or logarithmic scale with its ticks."""

    low: float
    high: float
    log: bool
    ticks: list[float] = field(default_factory=list)

    def __call__(self, value: float) -> float:
        """Return the height of a value in plot units, 0 at the top and 1000 at the bottom."""
        low, high = self.low, self.high
        if self.log:
            low, high, value = math.log10(low), math.log10(high), math.log10(max(value, low))
        return 1000.0 * (high - value) / (high - low)


def si(value: float, digits: int = 3) -> str:
    """Write a count as recipes do: 1.72T, 50B, 98.3K."""
    if abs(value) >= 1e16:
        return f"{value:.{digits}g}"
    for factor, suffix in SI_UNITS:
        if abs(value) >= factor * (1 - 0.5 * 10**-digits):
            return f"{_trim(f'{value / factor:.{digits}g}', value / factor)}{suffix}"
    return _trim(f"{value:.{digits}g}", value)


def _trim(text: str, value: float) -> str:
    return f"{value:.0f}" if "e+" in text else text


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Return about `count` round numbers, the first and last just outside [low, high]."""
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [n * step for n in range(first, last + 1)]


def x_axis(kind: str, low: float, high: float) -> XAxis:
    """Choose the horizontal axis for values from `low` to `high` (token slots or seconds)."""
    low = low if low > 0.5 * high and low < high else 0.0
    high = high if high > low else low + 1.0
    if kind == "tokens":
        factor, suffix = next((unit for unit in SI_UNITS if high >= unit[0]), (1.0, ""))
        names = {"T": "trillions", "B": "billions", "M": "millions", "K": "thousands"}
        label = f"token slots ({names[suffix]})" if suffix else "token slots"
        return XAxis(kind, low, high, factor, label)
    factor, suffix = next((unit for unit in TIME_UNITS if high >= 2 * unit[0]), (1.0, "seconds"))
    return XAxis(kind, low, high, factor, f"wall time ({suffix})")


def y_scale(
    values: Sequence[float],
    limits: tuple[float, float] | None = None,
    log_from: float = math.inf,
) -> YScale:
    """Choose a scale that holds all values, logarithmic if they span a factor of `log_from`.

    The axis stays within `limits` unless a value lies outside.
    """
    low, high = min(values), max(values)
    if low > 0 and high / low >= log_from:
        return _log_scale(low, high)
    if low >= 0 and low < 0.4 * high:
        low = 0.0
    if high - low <= 1e-9 * max(abs(high), abs(low)):
        margin = 0.05 * abs(high) or 1.0
        low, high = low - margin, high + margin
    ticks = nice_ticks(low, high)
    if limits and limits[0] <= min(values) and max(values) <= limits[1]:
        ticks = [tick for tick in ticks if limits[0] <= tick <= limits[1]]
        return YScale(max(limits[0], ticks[0]), min(limits[1], ticks[-1]), False, ticks)
    return YScale(ticks[0], ticks[-1], False, ticks)


def _log_scale(low: float, high: float) -> YScale:
    """Choose the most round ticks, up to seven of them, between [low, high] and a little margin."""
    margin = (high / low) ** 0.04
    low, high = low / margin, high * margin
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    ticks: list[float] = []
    for mantissas in ((1, 1.5, 2, 3, 4, 6, 8), (1, 2, 3, 5), (1, 2, 5), (1, 3), (1,)):
        every = [m * 10.0**power for power in range(first, last + 1) for m in mantissas]
        ticks = [tick for tick in every if low <= tick <= high]
        if len(ticks) <= 7:
            break
    return YScale(low, high, True, ticks[:: -(-len(ticks) // 7) or 1])


def tick_labels(ticks: Sequence[float]) -> list[str]:
    """Label ticks with just enough digits to tell them apart; zeros that find no room beside the
    plot are left out."""
    top = max(map(abs, ticks))
    if top >= 10_000:
        return [si(tick) if tick else "0" for tick in ticks]
    if 0 < top < 0.01:
        return [_scientific(tick) for tick in ticks]
    decimals = 0
    while decimals < 6 and any(abs(t - round(t, decimals)) > 1e-9 * top for t in ticks):
        decimals += 1
    labels = [f"{tick:.{decimals}f}" for tick in ticks]
    return [_trimmed(label) if len(label) > LONGEST_TICK else label for label in labels]


def _trimmed(label: str) -> str:
    return label.rstrip("0").rstrip(".") if "." in label else label


def _scientific(value: float) -> str:
    if value == 0:
        return "0"
    mantissa, exponent = f"{value:.3e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def svg(plot: Plot) -> str:
    """Draw the plot, or return nothing when it has no points."""
    values = [y for line in plot.lines for segment in line.segments for _, y in segment]
    if not values:
        return ""
    x, y = plot.x, y_scale(values, plot.y_limits, plot.log_from)
    read = (
        f'data-kind="{x.kind}" data-x0="{x.low:.9g}" data-x1="{x.high:.9g}" '
        f'data-y0="{y.low:.9g}" data-y1="{y.high:.9g}" data-log="{int(y.log)}"'
    )
    return "\n".join(
        [
            opening(plot.name, plot.title, plot.description, read),
            *_frame(plot, y),
            CURVES,
            *(_path(line, x, y) for line in plot.lines),
            "</svg>",
            *_phase_names(plot),
            "</svg>",
        ]
    )


def opening(name: str, title: str, description: str, attributes: str = "") -> str:
    """Open a chart whose name is unique on the page; text takes its place where it is not seen."""
    return (
        f'<svg class="plot" role="img" aria-labelledby="{name}-t {name}-d" {attributes}>\n'
        f'<title id="{name}-t">{escape(title)}</title>\n'
        f'<desc id="{name}-d">{escape(description)}</desc>'
    )


def y_grid(scale: YScale, labels: Sequence[str]) -> list[str]:
    """Draw a line and a label for each of the scale's ticks."""
    out = []
    for tick, label in zip(scale.ticks, labels, strict=True):
        at = f"{scale(tick) / 10:.2f}%"
        out.append(f'<line class="grid" x2="100%" y1="{at}" y2="{at}"/>')
        out.append(f'<text class="y" x="0" y="{at}" dx="-8" dy=".33em">{label}</text>')
    return out


def _frame(plot: Plot, y: YScale) -> list[str]:
    """Draw gridlines, tick labels, axis labels, phases and events."""
    x = plot.x
    suffix = "%" if plot.unit == "%" else ""
    labels = [si(tick) for tick in y.ticks] if y.log else tick_labels(y.ticks)
    out = y_grid(y, [f"{label}{suffix}" for label in labels])
    ticks = nice_ticks(x.low / x.divisor, x.high / x.divisor, 6)
    shown = [t for t in ticks if x.low <= t * x.divisor * (1 + 1e-9) <= x.high * (1 + 2e-9)]
    for tick, label in zip(shown, tick_labels(shown) if shown else [], strict=True):
        at = _percent(tick * x.divisor, x)
        out.append(f'<line class="tick" x1="{at}" x2="{at}" y1="100%" y2="100%"/>')
        out.append(f'<text class="x" x="{at}" y="100%" dy="20">{label}</text>')
    out.append(f'<text class="label" x="100%" y="100%" dy="38">{escape(x.label)}</text>')
    unit = "" if plot.unit == "%" else plot.unit
    if unit or y.log:
        text = ", ".join(filter(None, (unit, "log scale" if y.log else "")))
        out.append(f'<text class="unit" x="0" y="0" dy="-14">{escape(text)}</text>')
    for at in (_percent(value, x) for value in plot.checkpoints):
        out.append(f'<circle class="checkpoint" cx="{at}" cy="100%" r="2.5"/>')
    for _, value in plot.phases[1:]:
        at = _percent(value, x)
        out.append(f'<line class="phase" x1="{at}" x2="{at}" y2="100%"/>')
    for value, style in plot.resumes:
        at, style = _percent(value, x), f"resume {style}".rstrip()
        out.append(f'<line class="{style}" x1="{at}" x2="{at}" y2="100%"/>')
    return out


def _phase_names(plot: Plot) -> list[str]:
    """Write the phases' names where there is room, over the curves; the narrow ones not on a
    phone."""
    x, out = plot.x, []
    for n, (name, value) in enumerate(plot.phases):
        end = plot.phases[n + 1][1] if n + 1 < len(plot.phases) else x.high
        room = (end - value) / (x.high - x.low) / (8 * len(name) + 12)
        if plot.name_phases and room > 1 / WIDE_PX:
            style = "phase" if room > 1 / PHONE_PX else "phase tight"
            text = f'<text class="{style}" x="{_percent(value, x)}" y="0" dx="6" dy="14">'
            out.append(f"{text}{escape(name)}</text>")
    return out


def _percent(value: float, x: XAxis) -> str:
    share = (value - x.low) / (x.high - x.low)
    return f"{100 * min(1.0, max(0.0, share)):.2f}%"


def _path(line: Line, x: XAxis, y: YScale) -> str:
    """Write a curve as one path; a labelled one can be read back by the page's cursor."""
    scale = 1000.0 / (x.high - x.low)
    parts = []
    for segment in line.segments:
        points = [f"{(px - x.low) * scale:.1f},{y(py):.1f}" for px, py in segment]
        # The tiny last stroke shows a segment of a single point.
        parts.append("M" + "L".join(points) + ("h.1" if len(points) == 1 else ""))
    label = f' data-label="{escape(line.label)}"' if line.label else ""
    shown = f"><title>{escape(line.title)}</title></path>" if line.title else "/>"
    path = f'<path class="{line.style}"{label} d="{"".join(parts)}"{shown}'
    if line.dots:
        marks = "".join(
            f"M{(px - x.low) * scale:.1f},{y(py):.1f}h.1"
            for segment in line.segments
            for px, py in segment
        )
        path += f'<path class="{line.style} dots" d="{marks}"/>'
    return path
