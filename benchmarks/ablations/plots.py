"""One plot of a comparison: each arm's paired differences by seed, their mean and its interval.

In: losses by arm and seed. Out: an SVG file, the same bytes for the same losses.
"""

from __future__ import annotations

import math
import textwrap
from pathlib import Path

from benchmarks.ablations.arms import ARMS, Comparison
from benchmarks.ablations.results import Losses, difference

INK, DOT, GRID = "#1f2933", "#d9822b", "#c5ced6"
"""Of means and text, of seeds, of the line of no difference."""


def draw(comparison: Comparison, of: Losses, out: Path) -> None:
    """Write `out`/NAME.svg, the first arm's mean in words and the others below each other."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    reference, *others = comparison.arms
    known = of[reference]
    with plt.rc_context({"svg.hashsalt": comparison.name, "font.size": 10, "svg.fonttype": "none"}):
        figure, axes = plt.subplots(figsize=(7.2, 1.5 + 0.5 * len(others)), layout="constrained")
        axes.axvline(0, color=GRID, linewidth=1.5, zorder=0)
        for place, name in enumerate(others):
            d = difference(of[name], known)
            seeds = list(d.by_seed.values())
            axes.plot(seeds, [place] * len(seeds), "o", color=DOT, markersize=5, alpha=0.9)
            bar = None if math.isinf(d.half) else d.half
            axes.errorbar(
                d.mean, place - 0.22, xerr=bar, fmt="D", color=INK, markersize=5, capsize=4
            )
        names = [textwrap.fill(ARMS[name].what, 26) for name in others]
        axes.set_yticks(range(len(others)), names)
        axes.set_ylim(len(others) - 0.5, -0.6)
        axes.locator_params(axis="x", nbins=6)
        mean, what = sum(known.values()) / len(known), ARMS[reference].what
        axes.set_xlabel(f"nats above {mean:.3f}, held-out loss of {what} (left is better)")
        axes.set_title(comparison.title, loc="left", fontsize=11)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(axis="y", length=0)
        figure.savefig(out / f"{comparison.name}.svg", metadata={"Date": None, "Creator": None})
        plt.close(figure)
