"""Draw the data card's figures: columns over powers of two, as SVG without a script.

In: the manifest, or counts by length. Out: HTML strings. Scales, ticks and numbers are those of
`tools/pages/charts.py`, which draws curves only. `card.write_card` calls this.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape

from restomod.prepare.card_values import Manifest, by_domain, counts_of
from restomod.tools.pages.charts import opening, si, tick_labels, y_grid, y_scale

SHOWN_HISTOGRAMS = 12
MOST_DIGITS = 12
"""Of a length; what has more is no length."""
MOST_LABELS = 8
"""Labels of the horizontal axis, so that they do not meet on a phone."""


def lengths(manifest: Manifest) -> str:
    """Draw the histogram of lengths of every domain, all over the same lengths."""
    found = {name: _histogram(sources) for name, sources in by_domain(manifest).items()}
    domains = {name: counts for name, counts in found.items() if counts}
    if not domains:
        return ""
    everything: Counter[int] = Counter()
    for counts in domains.values():
        everything.update(counts)
    powers = range(min(everything).bit_length() - 1, max(everything).bit_length())
    largest = sorted(domains, key=lambda name: (-domains[name].total(), name))
    shown = [(name, domains[name]) for name in largest[:SHOWN_HISTOGRAMS]]
    if len(domains) > 1:
        shown.insert(0, ("all domains", everything))
    some = ""
    if len(domains) > SHOWN_HISTOGRAMS:
        some = f" The {SHOWN_HISTOGRAMS} largest of {len(domains)} domains."
    note = f"Documents by tokens; each column reaches from its number to the next.{some}"
    figures = "".join(
        columns(
            f"length-{place}",
            name,
            "documents",
            {1 << power: counts[1 << power] for power in powers},
        )
        for place, (name, counts) in enumerate(shown)
    )
    return f'<p class="note">{note}</p><div class="charts">{figures}</div>'


def _histogram(sources: Sequence[Manifest]) -> Counter[int]:
    """Add the sources' histograms; lengths are rounded down to powers of two."""
    found: Counter[int] = Counter()
    for source in sources:
        for key, count in counts_of(source, "length_histogram").items():
            if key.isdecimal() and len(key) <= MOST_DIGITS and int(key) >= 1 and count > 0:
                found[1 << (int(key).bit_length() - 1)] += round(count)
    return found


def columns(name: str, title: str, unit: str, counts: Mapping[int, float]) -> str:
    """Draw a figure with a column for every count, in order; `name` must be unique on the page."""
    scale = y_scale([0.0, *counts.values()])
    width = 100 / len(counts)
    every = -(-len(counts) // MOST_LABELS)
    total = sum(counts.values())
    top = max(counts, key=lambda length: counts[length])
    described = (
        f"{len(counts)} columns from {min(counts):,} to {max(counts):,}; the highest, at {top:,}, "
        f"is {counts[top]:,.0f} {unit}."
    )
    out = [
        opening(name, f"{title}: {unit} by length", described),
        *y_grid(scale, tick_labels(scale.ticks)),
    ]
    for place, (length, count) in enumerate(counts.items()):
        left, height = place * width, (1000 - scale(count)) / 10
        out.append(
            f'<rect class="column" x="{left + 0.08 * width:.2f}%" width="{0.84 * width:.2f}%" '
            f'y="{100 - height:.2f}%" height="{height:.2f}%">'
            f"<title>{length:,} to {2 * length - 1:,}: {count:,.0f} {unit}</title></rect>"
        )
        if place % every == 0:
            middle = f"{left + width / 2:.2f}%"
            out.append(f'<text class="x" x="{middle}" y="100%" dy="20">{_length(length)}</text>')
    out.append('<text class="label" x="100%" y="100%" dy="38">tokens</text></svg>')
    return (
        f'<figure class="chart"><figcaption><h3>{escape(title)}</h3>'
        f'<span class="at">{si(total)} {unit}</span></figcaption>'
        f'<div class="frame">{"".join(out)}</div></figure>'
    )


def _length(length: int) -> str:
    """Write a power of two as people do: 512, 8K, 1M."""
    if length >= 1 << 20:
        return f"{length >> 20}M"
    return f"{length >> 10}K" if length >= 1 << 10 else f"{length}"
