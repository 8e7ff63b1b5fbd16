"""A verdict of `restomod doctor`, and how ranks are compared and named in it.

Something is *failed* if the run could not go on with it, or would at half its speed; what only
costs time or may become a problem is a *warning*. Ranks are compared with the median: one of a few
bad nodes does not move it. `nodes.py` and `network.py` judge with this.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from restomod.tools.doctor.place import NAMED, name_places
from restomod.tools.doctor.probe import Facts

OK, WARNING, FAILED = "ok", "warning", "failed"
HALF = 0.5
"""So far below the median is broken rather than slow."""


@dataclass(frozen=True)
class Check:
    """A verdict."""

    name: str
    state: str
    """ok, warning or failed."""
    measured: str
    advice: str = ""
    """What to do, if it is not ok."""


def outliers(values: Sequence[float], tolerance: float) -> list[int]:
    """Return the indices of values that lie more than `tolerance` (a share) below the median."""
    if not values:
        return []
    least = (1 - tolerance) * statistics.median(values)
    return [n for n, value in enumerate(values) if value < least]


def problems(name: str, facts: Sequence[Facts], advice: str, nodes: bool = False) -> Check | None:
    """Return a failed check naming the ranks (or `nodes`) that have a problem of this name; None if
    none has."""
    broken = [fact for fact in facts if name in fact.problems]
    if not broken:
        return None
    grouped = (by_node if nodes else by_value)(broken, lambda fact: fact.problems[name])
    return Check(name, FAILED, grouped, advice)


def unlike_most(facts: Sequence[Facts], value: Callable[[Facts], str]) -> tuple[str, list[Facts]]:
    """Return the most frequent value, the first rank's in a draw, and the facts with another."""
    common = Counter(map(value, facts)).most_common(1)[0][0]
    return common, [fact for fact in facts if value(fact) != common]


def by_value(facts: Sequence[Facts], value: Callable[[Facts], str]) -> str:
    """Return `value on places` for each value, with the ranks, or whole nodes, that have it."""
    return _grouped(facts, value, lambda group: name_places(fact.place for fact in group))


def by_node(leaders: Sequence[Facts], value: Callable[[Facts], str]) -> str:
    """Return `value on nodes` for each value, where each fact speaks for its node."""
    return _grouped(leaders, value, node_names)


def node_names(leaders: Sequence[Facts]) -> str:
    """Return the names of the facts' nodes."""
    return some([fact.place.node_name for fact in leaders])


def names(facts: Sequence[Facts]) -> str:
    """Return the names of the facts' ranks, or whole nodes."""
    return name_places(fact.place for fact in facts)


def some(texts: Sequence[str]) -> str:
    """Return the first few texts and how many more there are."""
    return ", ".join(texts[:NAMED]) + (
        f" and {len(texts) - NAMED} more" if len(texts) > NAMED else ""
    )


def gigabytes(size: float) -> str:
    """Return a number of bytes in GB, or in MB if it is small."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


def _grouped(
    facts: Sequence[Facts],
    value: Callable[[Facts], str],
    name: Callable[[Sequence[Facts]], str],
) -> str:
    groups: dict[str, list[Facts]] = {}
    for fact in facts:
        groups.setdefault(value(fact), []).append(fact)
    return some([f"{text} on {name(group)}" for text, group in groups.items()])
