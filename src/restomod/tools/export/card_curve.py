"""The loss of a run as a picture that a model card shows: an SVG file that needs nothing else.

In: a run's log. Out: SVG text. `card.py` is the caller.
"""

from __future__ import annotations

from collections.abc import Hashable
from html import escape

from restomod.tools.pages.charts import (
    Point,
    XAxis,
    YScale,
    nice_ticks,
    tick_labels,
    x_axis,
    y_scale,
)
from restomod.tools.record.downsampled import Bucket
from restomod.tools.record.metrics_log import RunLog

WIDTH, HEIGHT = 720, 360
LEFT, RIGHT, TOP, BOTTOM = 56, 20, 36, 48
FEW = 60
"""Evaluations up to which each gets a dot."""
HEAD = f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" \
aria-label="Loss by token slots" font-family="sans-serif" font-size="12">
<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>
"""


def loss_curve(log: RunLog) -> str:
    """Draw training and held-out loss over token slots; nothing if no loss was logged."""
    curves = [
        ("training", "#4477aa", _points(log.train.buckets(), "loss")),
        ("held out", "#cc3311", _points(log.evals.buckets(), ("loss", "all"))),
    ]
    points = [point for _, _, curve in curves for point in curve]
    if not points:
        return ""
    x = x_axis("tokens", 0.0, max(x for x, _ in points))
    y = y_scale(sorted(value for _, value in points))
    parts = [HEAD, *_frame(x, y)]
    for n, (label, colour, curve) in enumerate(curves):
        if curve:
            placed = [(_across(px, x), _down(py, y)) for px, py in curve]
            line = " ".join(f"{px:.1f},{py:.1f}" for px, py in placed)
            parts.append(
                f'<polyline fill="none" stroke="{colour}" stroke-width="1.6" points="{line}"/>'
            )
            dots = placed if n and len(placed) <= FEW else []
            parts += [
                f'<circle cx="{px:.1f}" cy="{py:.1f}" r="3" fill="{colour}"/>' for px, py in dots
            ]
            parts.append(
                f'<text x="{WIDTH - RIGHT - 8}" y="{TOP + 12 + 16 * n}" text-anchor="end" '
                f'fill="{colour}">{label}</text>'
            )
    return "\n".join([*parts, "</svg>\n"])


def _points(buckets: list[Bucket], key: Hashable) -> list[Point]:
    return [(b.tokens[1], b.spreads[key].mean) for b in buckets if key in b.spreads]


def _across(value: float, x: XAxis) -> float:
    return LEFT + (WIDTH - LEFT - RIGHT) * (value - x.low) / (x.high - x.low)


def _down(value: float, y: YScale) -> float:
    return TOP + (HEIGHT - TOP - BOTTOM) * y(value) / 1000


def _frame(x: XAxis, y: YScale) -> list[str]:
    parts = [
        f'<text x="{LEFT}" y="20" fill="#333">loss, nats a predicted token</text>',
        f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 10}" text-anchor="end" fill="#333">'
        f"{escape(x.label)}</text>",
    ]
    for tick, label in zip(y.ticks, tick_labels(y.ticks), strict=True):
        at = _down(tick, y)
        parts.append(
            f'<path d="M{LEFT},{at:.1f}H{WIDTH - RIGHT}" stroke="#ddd"/>'
            f'<text x="{LEFT - 8}" y="{at + 4:.1f}" text-anchor="end" fill="#333">{label}</text>'
        )
    ticks = nice_ticks(x.low / x.divisor, x.high / x.divisor, 6)
    shown = [t for t in ticks if x.low <= t * x.divisor <= x.high * (1 + 1e-9)]
    for tick, label in zip(shown, tick_labels(shown), strict=True):
        parts.append(
            f'<text x="{_across(tick * x.divisor, x):.1f}" y="{HEIGHT - BOTTOM + 18}" '
            f'text-anchor="middle" fill="#333">{label}</text>'
        )
    return parts
