"""Best-fit packing of chunks into rows over a bounded buffer.

Every row starts with the chunk that has waited longest, so that none waits for ever; then the
longest chunk that still fits is added until none does. Equal lengths go by age. The next row is
thus a function of the set of waiting chunks alone, which is what makes a packer's state canonical.
`data/lanes.py` packs a lane's rows with it; `pack` is the same for arrays at hand.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

Item = TypeVar("Item")


class Packer(Generic[Item]):
    """Waiting chunks, by age and by length."""

    def __init__(self) -> None:
        self.tokens = 0
        """Tokens of all waiting chunks."""
        self._by_age: OrderedDict[int, tuple[int, Item]] = OrderedDict()
        self._by_length: list[tuple[int, int]] = []

    def __len__(self) -> int:
        return len(self._by_age)

    def add(self, age: int, length: int, item: Item) -> None:
        """Add a chunk of `length` tokens; ages only grow."""
        self._by_age[age] = (length, item)
        insort(self._by_length, (length, age))
        self.tokens += length

    def row(self, row_tokens: int, documents: int) -> list[Item]:
        """Take the next row: at most `row_tokens` tokens in at most `documents` chunks.

        Empty when nothing waits.
        """
        taken: list[Item] = []
        room = row_tokens
        by_length = self._by_length
        while by_length and len(taken) < documents:
            if not taken:
                age, (length, _) = next(iter(self._by_age.items()))
                n = bisect_left(by_length, (length, age))
            else:
                n = bisect_right(by_length, (room, 1 << 62))
                if n == 0:
                    break
                n = bisect_left(by_length, (by_length[n - 1][0], -1))
            length, age = by_length.pop(n)
            taken.append(self._by_age.pop(age)[1])
            room -= length
        self.tokens -= row_tokens - room
        return taken

    def waiting(self) -> Iterator[Item]:
        """Yield the waiting chunks, the oldest first."""
        return (item for _, item in self._by_age.values())


@dataclass
class PackedRow:
    """Documents laid end to end."""

    tokens: np.ndarray
    """[length] the documents' tokens; a row is not padded here."""
    cu_seqlens: np.ndarray
    """[documents + 1] int32, the documents' bounds in `tokens`."""


def pack(
    documents: Iterable[np.ndarray], row_tokens: int, buffer_tokens: int
) -> Iterator[PackedRow]:
    """Pack 1-D arrays into rows of at most `row_tokens`, best fit over a buffer.

    `buffer_tokens` (at least a row's) wait to be chosen from. Every document is in exactly one
    row, unbroken; empty ones take no room and are left out. Raises
    ValueError for a document longer than a row: chunk first.
    """
    packer: Packer[np.ndarray] = Packer()

    def row() -> PackedRow:
        taken = packer.row(row_tokens, row_tokens)
        bounds = np.cumsum([0] + [len(document) for document in taken], dtype=np.int32)
        return PackedRow(np.concatenate(taken), bounds)

    for age, document in enumerate(documents):
        if len(document) > row_tokens:
            raise ValueError(
                f"document {age} has {len(document)} tokens, a row {row_tokens}: chunk it first"
            )
        if len(document):
            packer.add(age, len(document), np.asarray(document))
        while packer.tokens >= max(buffer_tokens, row_tokens):
            yield row()
    while len(packer):
        yield row()
