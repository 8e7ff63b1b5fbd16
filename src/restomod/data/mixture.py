"""What a phase draws from its streams: odds per document, shares of tokens, and whether it lasts.

In: a phase and the opened data sets. Out: the numbers that the lanes draw by, and that `restomod
plan` and the report show. A mixture asks for tokens, but documents are drawn: a stream's odds are
its share over the mean tokens of its documents.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from restomod.config import DataConfig, PhaseConfig
from restomod.data.dataset import Dataset
from restomod.data.random import keyed_generator

ASSUMED_DOCUMENTS = 256
"""Documents that an estimated mean counts as, beside those that a lane has drawn itself."""

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
"""The golden ratio's fraction in units of 2^-64."""


class Odds:
    """Odds of drawing each stream's next document.

    Where a stream's mean is an estimate (no manifest, or short documents are left out), what the
    lane has drawn so far corrects it, so that the share of tokens becomes what was asked for.
    """

    def __init__(
        self,
        phase: PhaseConfig,
        data: DataConfig,
        datasets: Mapping[str, Dataset],
        names: Sequence[str],
    ) -> None:
        self._asked = np.array([phase.mixture.get(name, 0.0) for name in names])
        self._by = phase.mixture_by
        self._documents = np.array([datasets[name].documents for name in names], np.float64)
        self._means = np.array([datasets[name].mean_tokens for name in names])
        self._estimated = np.array(
            [not datasets[name].attributes.exact or data.skip_shorter_than > 1 for name in names]
        )

    def weights(self, documents: np.ndarray, tokens: np.ndarray) -> list[float]:
        """Return the odds, [streams], adding up to 1, after so many `documents` drawn of each
        stream and `tokens` of them that were not left out."""
        if self._by == "repeat":
            odds = self._asked * self._documents
        elif self._by == "choose":
            odds = self._asked
        else:
            seen = (self._means * ASSUMED_DOCUMENTS + tokens) / (ASSUMED_DOCUMENTS + documents)
            means = np.where(self._estimated, seen, self._means)
            odds = self._asked / np.maximum(means, 1e-9)
        return (odds / odds.sum()).tolist()


def stream_draws(
    seed: int, lane: int, first: int, count: int, weights: Sequence[float]
) -> np.ndarray:
    """Return the streams of a lane's documents `first` to `first + count`, [count] int64.

    The draws are a Weyl sequence of the golden ratio from the lane's own random start: in any
    stretch of n documents, each stream is drawn about as often as its odds say, to a few documents,
    where independent draws would differ by the root of n.
    """
    start = keyed_generator(seed, "mixture", lane).integers(2**64, dtype=np.uint64)
    numbers = np.arange(first, first + count, dtype=np.uint64)
    places = (start + numbers * GOLDEN).astype(np.float64) / 2.0**64
    edges = np.cumsum(weights)
    drawn = np.searchsorted(edges, places * edges[-1], side="right")
    return np.minimum(drawn, np.flatnonzero(weights)[-1])


def token_shares(phase: PhaseConfig, datasets: Mapping[str, Dataset]) -> dict[str, float]:
    """Return the share of tokens that is asked of each stream, adding up to 1."""
    asked = {name: share for name, share in phase.mixture.items() if share > 0}
    if phase.mixture_by == "repeat":
        asked = {name: share * datasets[name].attributes.tokens for name, share in asked.items()}
    elif phase.mixture_by == "choose":
        asked = {name: share * datasets[name].mean_tokens for name, share in asked.items()}
    total = sum(asked.values())
    return {name: share / total for name, share in asked.items()}


def epochs(phases: Sequence[PhaseConfig], datasets: Mapping[str, Dataset]) -> dict[str, float]:
    """Return how often the phases together read each stream: at most, special tokens and padding
    taken for ordinary tokens."""
    read = dict.fromkeys(datasets, 0.0)
    for phase in phases:
        for name, share in token_shares(phase, datasets).items():
            read[name] += share * phase.total_slots / datasets[name].attributes.tokens
    return read


def exhausted(phases: Sequence[PhaseConfig], datasets: Mapping[str, Dataset]) -> list[str]:
    """Return a message for each stream that the phases would read more often than `max_epochs`."""
    return [
        f"data.streams.{name}: {datasets[name].attributes.tokens:,} tokens would be read "
        f"{times:.2f} times, max_epochs is {datasets[name].max_epochs:g}; shorten a phase, lower "
        "the stream's share, add data, or raise max_epochs"
        for name, times in epochs(phases, datasets).items()
        if times > datasets[name].max_epochs
    ]
