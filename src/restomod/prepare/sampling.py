"""Samples of documents that keep to a budget of bytes: even over a source, by shares over several.

In: documents, read once and in order. Out: lists of documents, the same every time and small
enough to hold. The tokenizer's training takes its text from here, so that the shares of a mixture
decide what the vocabulary is good at, not the sizes of the files.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from restomod.errors import UserError


def sample_evenly(documents: Iterable[str], budget_bytes: int) -> list[str]:
    """Return every n-th document, so that they come to about `budget_bytes` and never above it by
    more than one document. One pass; memory stays below twice the budget and a document."""
    kept: list[tuple[int, str]] = []
    stride, total = 1, 0
    for number, document in enumerate(documents):
        if number % stride:
            continue
        size = len(document.encode())
        kept.append((size, document))
        total += size
        while total > 2 * budget_bytes and len(kept) > 1:
            kept = kept[::2]
            stride *= 2
            total = sum(size for size, _ in kept)
    if total <= budget_bytes:
        return [document for _, document in kept]
    chosen, seen, taken = [], 0, 0
    for size, document in kept:
        seen += size
        if taken * total <= budget_bytes * (seen - size):
            chosen.append(document)
            taken += size
    return chosen


def sample_by_shares(
    sources: Mapping[str, Iterable[str]], shares: Mapping[str, float], budget_bytes: int
) -> dict[str, list[str]]:
    """Return documents of every source, evenly spread over it, so that the sources' bytes stand in
    the ratio of `shares` and come to about `budget_bytes`.

    A source too small for its share is taken whole, and the others divide the rest among them by
    their own shares. Shares need not add up to one; a source whose share is 0 is not read. Each is
    read once, one after the other in the order of their names, so the order of the mappings does
    not matter; memory stays below three times the budget and a document. Raises UserError when the
    names differ, a share is negative or not finite, or all are 0.
    """
    _check_shares(sources, shares)
    if budget_bytes <= 0:
        raise UserError(f"a sample of {budget_bytes} bytes: give a budget above 0")
    kept: dict[str, list[str]] = {}
    sizes: dict[str, float] = {}

    def keep(name: str, documents: Iterable[str], limit: float) -> None:
        kept[name] = sample_evenly(documents, round(limit))
        sizes[name] = sum(len(text.encode()) for text in kept[name])

    for name in sorted(sources):
        if shares[name] == 0:
            continue
        keep(name, sources[name], allot({**sizes, name: math.inf}, shares, budget_bytes)[name])
        # Sources that are still to be read can only lower these limits, so nothing is dropped
        # that would be wanted again.
        for other, limit in allot(sizes, shares, budget_bytes).items():
            largest = max((len(text.encode()) for text in kept[other]), default=0)
            if sizes[other] > limit + largest:  # less is a document over, which may stand
                keep(other, kept[other], limit)
    return {name: kept.get(name, []) for name in sources}


def allot(
    sizes: Mapping[str, float], shares: Mapping[str, float], budget: float
) -> dict[str, float]:
    """Divide a budget by shares among names that can take no more than their size each; what one
    cannot take goes to the others. The unit is that of the sizes; shares must be above 0."""
    allotted: dict[str, float] = {}
    left = float(budget)
    # Whoever needs least of its share is filled first; from the first that is not, none is.
    order = sorted(sizes, key=lambda name: (sizes[name] / shares[name], name))
    for place, name in enumerate(order):
        open_shares = math.fsum(shares[other] for other in order[place:])
        allotted[name] = min(sizes[name], left * (shares[name] / open_shares))
        left -= allotted[name]
    return allotted


def _check_shares(sources: Mapping[str, Iterable[str]], shares: Mapping[str, float]) -> None:
    missing, surplus = sorted(set(sources) - set(shares)), sorted(set(shares) - set(sources))
    if missing or surplus:
        what = f"{', '.join(missing)} has no share" if missing else ""
        what = what or f"there is a share but no source for {', '.join(surplus)}"
        raise UserError(f"shares of the sample: {what}; name every source once")
    for name, share in shares.items():
        if not 0 <= share < math.inf:
            raise UserError(f"shares of the sample: {name} has {share}; use a number from 0 up")
    if not any(shares.values()):
        raise UserError("shares of the sample: none is above 0, so nothing can be drawn")
