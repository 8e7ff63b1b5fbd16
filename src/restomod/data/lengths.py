"""How long a data set's documents are, as far as that can be told without reading all of them.

In: an opened data set. Out: lengths in ordinary tokens, drawn from the histogram that its
`restomod.json` holds, or of some of its documents. `restomod plan` calls this.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from restomod.data.dataset import Dataset
from restomod.errors import UserError


@dataclass(frozen=True)
class Lengths:
    """Lengths of documents to draw from."""

    values: np.ndarray
    """[n] int64, ordinary tokens; each as likely as any other."""
    source: str
    """Where they are from, in words."""


def document_lengths(
    dataset: Dataset, count: int, generator: np.random.Generator
) -> Lengths | None:
    """Return lengths of documents: `count` of them where a histogram is known, else those of
    documents spread over a few shards, or over one where shards have to be fetched. None where
    these cannot be read."""
    histogram = dataset.attributes.histogram
    if histogram:
        values = _from_histogram(histogram, dataset.attributes.tokens, count, generator)
        return Lengths(values, "histograms of lengths")
    places = dataset.sample()
    if dataset.cached:
        places = [place for place in places if place[0] == places[0][0]]
    try:
        read = [len(dataset.tokens(*place)) for place in places]
    except UserError:
        return None
    shards = len({shard for shard, _ in places})
    of_shards = f"{shards} shard{'s' if shards > 1 else ''}"
    return Lengths(np.array(read, np.int64), f"a sample of {len(read)} documents of {of_shards}")


def _from_histogram(
    histogram: dict[int, int], tokens: int, count: int, generator: np.random.Generator
) -> np.ndarray:
    """Draw lengths from documents counted by the power of two at or below their length.

    Within a bin, a length lies at low + low u^k with u uniform: k is such that all documents
    together have about `tokens` tokens.
    """
    low = np.array(sorted(histogram), np.int64)
    documents = np.array([histogram[int(length)] for length in low], np.float64)
    share = (tokens - (documents * low).sum()) / max((documents * (low - 1)).sum(), 1.0)
    exponent = 1.0 / min(max(share, 0.01), 0.99) - 1.0
    drawn = generator.choice(low, count, p=documents / documents.sum())
    within = np.floor(drawn * generator.random(count) ** exponent).astype(np.int64)
    return drawn + np.minimum(within, drawn - 1)
