"""Which distributions are held out, and what would leak between the two sides.

In: how many bytes of every domain each distribution gave, and the documents. Out: the distributions
to hold out, and the documents without near duplicates across the split. `data_prep/harvest.py`
calls it.
"""

from __future__ import annotations

import zlib
from array import array
from collections import Counter
from collections.abc import Sequence
from typing import Protocol, TypeVar

from restomod.harvest.installed import hash_key

HELDOUT_SHARE = 0.065
MAX_HELDOUT_SHARE = 0.08
"""Of a domain's bytes; what held-out distributions hold above it is dropped."""
LINE_CHARACTERS = 25
"""Shorter lines say nothing about where a text comes from."""
NEAR_DUPLICATE_SHARE = 0.5


class Lines(Protocol):
    """A document, as far as near duplicates are concerned."""

    lines: array[int]


AnyDocument = TypeVar("AnyDocument", bound=Lines)


def line_hashes(text: str) -> array[int]:
    """Return the hashes of the text's longer lines, normalised, each once and sorted."""
    lines = (" ".join(line.split()).lower() for line in text.split("\n"))
    found = {zlib.crc32(line.encode()) for line in lines if len(line) >= LINE_CHARACTERS}
    return array("I", sorted(found))


def choose_heldout(
    sizes: dict[str, dict[str, int]], share: float = HELDOUT_SHARE
) -> frozenset[str]:
    """Choose distributions that hold about `share` of every domain's bytes.

    `sizes` is distribution -> domain -> bytes. Small distributions are taken first, in the order of
    a hash of their names, so that many are held out rather than one; then single ones are added,
    removed or exchanged as long as that brings the shares nearer.
    """
    names = sorted(sizes, key=lambda name: hash_key("heldout", name))
    totals: Counter[str] = Counter()
    for of_domain in sizes.values():
        totals.update(of_domain)
    domains = sorted(domain for domain, total in totals.items() if total)
    own = {n: [sizes[n].get(domain, 0) / totals[domain] for domain in domains] for n in names}

    def cost(shares: list[float]) -> float:
        # A domain without a training or a held-out part is worse than any imbalance.
        return sum(abs(s - share) + (10.0 if s < 1e-9 or s > 1 - 1e-9 else 0.0) for s in shares)

    def after(shares: list[float], *moved: str) -> list[float]:
        for name in moved:
            sign = -1 if name in chosen else 1
            shares = [s + sign * o for s, o in zip(shares, own[name], strict=True)]
        return shares

    chosen: set[str] = set()
    held = [0.0] * len(domains)
    for name in names:
        more = after(held, name)
        if max(own[name], default=0.0) <= 0.4 * share and max(more, default=0.0) <= share:
            chosen.add(name)
            held = more
    while True:
        moves: list[tuple[str, ...]] = [(name,) for name in names]
        moves += [(a, b) for a in sorted(chosen) for b in names if b not in chosen]
        costs = [(cost(after(held, *move)), move) for move in moves]
        lowest, move = min(costs, default=(cost(held), ()))
        if lowest >= cost(held) - 1e-6:
            return frozenset(chosen)
        held = after(held, *move)
        chosen ^= set(move)


def drop_near_duplicates(
    train: list[AnyDocument], heldout: list[AnyDocument]
) -> tuple[list[AnyDocument], list[AnyDocument], dict[str, int]]:
    """Drop documents that share half of their longer lines or more with the other side: first
    those held out, then those of training that repeat what is still held out."""
    kept_heldout = _without_lines_of(heldout, train)
    kept_train = _without_lines_of(train, kept_heldout)
    dropped = {
        "heldout": len(heldout) - len(kept_heldout),
        "train": len(train) - len(kept_train),
    }
    return kept_train, kept_heldout, dropped


def _without_lines_of(documents: list[AnyDocument], others: Sequence[Lines]) -> list[AnyDocument]:
    import numpy as np

    if not documents or not others:
        return documents
    known = np.unique(np.concatenate([np.array(d.lines, np.uint32) for d in others]))
    lengths = np.array([len(d.lines) for d in documents])
    lines = np.concatenate([np.array(d.lines, np.uint32) for d in documents])
    owner = np.repeat(np.arange(len(documents)), lengths)
    shared = np.bincount(owner, weights=np.isin(lines, known), minlength=len(documents))
    repeated = shared >= NEAR_DUPLICATE_SHARE * np.maximum(lengths, 1)
    return [d for d, is_repeated in zip(documents, repeated, strict=True) if not is_repeated]
