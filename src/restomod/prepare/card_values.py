"""Read the values of a data card's manifest, and write them as HTML.

In: a manifest as read from JSON, any part of which may be absent or of another type. Out: its
records and numbers; counts, sizes, shares as the card shows them. `card_sections` and
`card_figures` call this.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from restomod.tools.pages.markup import NONE, bar
from restomod.tools.record.metrics_log import number

Manifest = Mapping[str, object]
COUNTS = ("documents", "tokens", "text_bytes")
UNNAMED = "unnamed"


def text(record: Manifest, key: str) -> str:
    """Return a value as text, empty when it is absent."""
    value = record.get(key)
    return "" if value is None else str(value)


def records(manifest: Manifest, key: str) -> Iterator[Manifest]:
    """Yield the mappings of a list; anything else in it is passed over."""
    value = manifest.get(key)
    for record in value if isinstance(value, list | tuple) else ():
        if isinstance(record, Mapping):
            yield record


def counts_of(record: Manifest, key: str) -> dict[str, float]:
    """Return a mapping's entries that are numbers."""
    value = record.get(key)
    found = {}
    for name, count in value.items() if isinstance(value, Mapping) else ():
        if (amount := number(count)) is not None:
            found[str(name)] = amount
    return found


def total_of(records: Sequence[Manifest], key: str) -> float | None:
    """Return the sum of what the records say, None when none of them says it."""
    said = [amount for record in records if (amount := number(record.get(key))) is not None]
    return sum(said) if said else None


def by_domain(manifest: Manifest) -> dict[str, list[Manifest]]:
    found: dict[str, list[Manifest]] = {}
    for source in records(manifest, "sources"):
        domain = text(source, "domain") or text(source, "name") or UNNAMED
        found.setdefault(domain, []).append(source)
    return found


def measure_of(sources: Sequence[Manifest]) -> str:
    """Return what shares are of: tokens where every source says how many, else bytes."""
    return "tokens" if all(number(s.get("tokens")) is not None for s in sources) else "text_bytes"


def share_bar(value: float | None, total: float | None) -> str:
    """Write a share as a bar and in percent."""
    if value is None or not total:
        return NONE
    share = min(1.0, max(0.0, value / total))
    return f"{bar(share)}{share:.1%}"


def ratio(value: float | None, per: float | None, digits: int = 2) -> str:
    return NONE if value is None or not per else f"{value / per:,.{digits}f}"
