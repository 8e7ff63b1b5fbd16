"""Curves over a stream of unknown length, in bounded memory.

In: values, line by line. Out: a few hundred buckets that keep every bucket's lowest and highest
value, so that a spike of a single step survives. `metrics_log.py` and `following.py` call this.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

MAX_BUCKETS = 600


@dataclass(slots=True)
class Spread:
    """What a bucket keeps of one curve."""

    low: float
    high: float
    total: float
    count: int

    @property
    def mean(self) -> float:
        return self.total / self.count


@dataclass(slots=True)
class Bucket:
    """Consecutive log lines; `breaks` when a resume went back or a new phase began with them."""

    tokens: tuple[float, float]
    time_s: tuple[float, float]
    spreads: dict[Hashable, Spread]
    breaks: bool

    def merge(self, later: Bucket) -> Bucket:
        spreads = dict(self.spreads)
        for key, b in later.spreads.items():
            a = spreads.get(key)
            spreads[key] = (
                Spread(min(a.low, b.low), max(a.high, b.high), a.total + b.total, a.count + b.count)
                if a
                else b
            )
        tokens = (self.tokens[0], later.tokens[1])
        return Bucket(tokens, (self.time_s[0], later.time_s[1]), spreads, self.breaks)


class Downsampled:
    """Curves over a stream of unknown length: when buckets grow too many, pairs of them merge."""

    def __init__(self, max_buckets: int = MAX_BUCKETS) -> None:
        self._limit = max_buckets
        self._lines_per_bucket = 1
        self._buckets: list[Bucket] = []
        self._xs: list[tuple[float, float]] = []
        self._values: defaultdict[Hashable, list[float]] = defaultdict(list)
        self._breaks = False

    def add(
        self, tokens: float, time_s: float, values: Mapping[Any, float], breaks: bool = False
    ) -> None:
        if breaks:
            self._flush()
            self._breaks = True
        self._xs.append((tokens, time_s))
        for key, value in values.items():
            self._values[key].append(value)
        if len(self._xs) >= self._lines_per_bucket:
            self._flush()

    def buckets(self) -> list[Bucket]:
        self._flush()
        return self._buckets

    def _flush(self) -> None:
        if not self._xs:
            return
        (tokens_0, time_0), (tokens_1, time_1) = self._xs[0], self._xs[-1]
        spreads = {k: Spread(min(v), max(v), sum(v), len(v)) for k, v in self._values.items()}
        self._buckets.append(Bucket((tokens_0, tokens_1), (time_0, time_1), spreads, self._breaks))
        self._xs, self._values, self._breaks = [], defaultdict(list), False
        if len(self._buckets) > self._limit:
            self._buckets = merged(self._buckets, 2)
            self._lines_per_bucket *= 2
            # Breaks stay apart: very many of them may leave more buckets than asked for.
            self._limit = max(self._limit, 2 * len(self._buckets))


def merged(buckets: list[Bucket], group: int) -> list[Bucket]:
    """Merge up to `group` neighbours into one, never across a break."""
    out: list[Bucket] = []
    size = 0
    for bucket in buckets:
        if out and size < group and not bucket.breaks:
            out[-1] = out[-1].merge(bucket)
            size += 1
        else:
            out.append(bucket)
            size = 1
    return out


class Thinned:
    """Keeps the first of a stream of items, the newest, and some evenly between."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._every = 1
        self._seen = 0
        self._kept: list[Any] = []
        self._newest: Any = None

    def add(self, item: Any) -> None:
        self._newest = item
        if self._seen % self._every == 0:
            self._kept.append(item)
            if len(self._kept) > self._most:
                self._kept = self._kept[::2]
                self._every *= 2
        self._seen += 1

    def items(self) -> list[Any]:
        """Return them in order: at most one more than asked for."""
        if not self._kept or self._kept[-1] is self._newest:
            return self._kept
        return [*self._kept, self._newest]
