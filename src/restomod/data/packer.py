"""Best-fit packing of chunks into rows over a bounded buffer.

A row begins with the chunk that has waited longest, so that none waits for ever; goes on with any
others, drawn evenly from the buffer by the caller's generator (by age without one), until about two
mean chunks have room left; and is closed by the two that fit best. So rows keep the mixture in
which documents were drawn, and mix the chunks of long documents with others. Rows of longest-first
picks would do neither: they begin a run with the longest documents of the buffer, and let short
ones wait for thousands of rows.

The next row is a function of the set of waiting chunks and the generator alone, which is what makes
a packer's state canonical. Adding or taking a chunk costs the same whatever waits and however long
rows are. `data/lanes.py` packs a lane's rows with it; `pack` is the same for arrays at hand.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Generic, TypeVar

import numpy as np

Item = TypeVar("Item")

CLOSING_CHUNKS = 2.5
"""Mean chunks of room from which on a row is closed."""
TRIES = 64
"""Waiting chunks, from the oldest on, for which a partner is looked for."""
DRAWN_FROM = 2048
"""Oldest waiting chunks from which a row's are drawn; two rows' worth where that is more."""
WORD = 256
"""Lengths that share an integer of the index: large enough that one look at the integer above
finds the next used one, small enough that shifting it is cheap."""


class Packer(Generic[Item]):
    """Waiting chunks, by age and by length."""

    def __init__(self) -> None:
        self.tokens = 0
        """Tokens of all waiting chunks."""
        self._by_age: OrderedDict[int, tuple[int, Item]] = OrderedDict()
        self._ages: dict[int, OrderedDict[int, None]] = {}
        """Ages of the waiting chunks of each length, the oldest first; no length is empty."""
        self._used: dict[int, int] = {}
        """Word n has bit b set where chunks of length n x WORD + b wait; no word is zero."""
        self._used_words = 0
        """Bit n is set where word n is not zero."""

    def __len__(self) -> int:
        return len(self._by_age)

    def add(self, age: int, length: int, item: Item) -> None:
        """Add a chunk of `length` tokens; ages only grow."""
        self._by_age[age] = (length, item)
        self.tokens += length
        ages = self._ages.get(length)
        if ages is not None:
            ages[age] = None
            return
        self._ages[length] = OrderedDict({age: None})
        word, bit = divmod(length, WORD)
        self._used[word] = self._used.get(word, 0) | 1 << bit
        self._used_words |= 1 << word

    def row(
        self, row_tokens: int, documents: int, generator: np.random.Generator | None = None
    ) -> list[Item]:
        """Take the next row: at most `row_tokens` tokens in at most `documents` chunks.

        Empty when nothing waits.
        """
        if not self._by_age:
            return []
        closing = CLOSING_CHUNKS * self.tokens / len(self._by_age)
        taken: list[Item] = []
        room = row_tokens
        for age in self._candidates(row_tokens, generator):
            length = self._by_age[age][0]
            if length > room or len(taken) == documents or (taken and room <= closing):
                break
            taken.append(self._take(length, age))
            room -= length
        lengths = self._closing_pair(room)
        while lengths and len(taken) < documents:
            for length in lengths[: documents - len(taken)]:
                taken.append(self._take(length, next(iter(self._ages[length]))))
                room -= length
            lengths = (length,) if (length := self._longest(room)) else ()
        self.tokens -= row_tokens - room
        return taken

    def _candidates(self, row_tokens: int, generator: np.random.Generator | None) -> Iterator[int]:
        """Yield the ages of waiting chunks in the order in which a row takes them."""
        if generator is None:
            while self._by_age:
                yield next(iter(self._by_age))
            return
        rows_worth = row_tokens * len(self._by_age) // self.tokens
        ages = list(islice(self._by_age, max(DRAWN_FROM, 2 * rows_worth)))
        yield ages[0]
        for n in generator.permutation(len(ages) - 1).tolist():
            yield ages[n + 1]

    def _closing_pair(self, room: int) -> tuple[int, ...]:
        """Return the lengths of the one or two chunks that fill `room` best; one of two is among
        the oldest. Empty where none fits."""
        best = self._longest(room)
        closing: tuple[int, ...] = (best,) if best else ()
        for length, _ in islice(self._by_age.values(), TRIES):
            if best == room:
                break
            other = self._longest(room - length)
            if other == length and len(self._ages[length]) < 2:
                other = self._longest(length - 1)
            if other and length + other > best:
                best, closing = length + other, (length, other)
        return closing

    def waiting(self) -> Iterator[Item]:
        """Yield the waiting chunks, the oldest first."""
        return (item for _, item in self._by_age.values())

    def _longest(self, room: int) -> int:
        """Return the length of the longest waiting chunk that fits, 0 if none does."""
        if room <= 0:
            return 0
        word, bit = divmod(room, WORD)
        fitting = self._used.get(word, 0) & ((2 << bit) - 1)
        if not fitting:
            words = self._used_words & ((1 << word) - 1)
            if not words:
                return 0
            word = words.bit_length() - 1
            fitting = self._used[word]
        return word * WORD + fitting.bit_length() - 1

    def _take(self, length: int, age: int) -> Item:
        """Take one chunk."""
        ages = self._ages[length]
        del ages[age]
        if not ages:
            del self._ages[length]
            word, bit = divmod(length, WORD)
            left = self._used[word] ^ 1 << bit
            if left:
                self._used[word] = left
            else:
                del self._used[word]
                self._used_words ^= 1 << word
        return self._by_age.pop(age)[1]


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
    ValueError for a document longer than a row (chunk first), or of more than one dimension.
    """
    packer: Packer[np.ndarray] = Packer()

    def row() -> PackedRow:
        taken = packer.row(row_tokens, row_tokens)
        bounds = np.cumsum([0] + [len(document) for document in taken], dtype=np.int32)
        return PackedRow(np.concatenate(taken), bounds)

    for age, document in enumerate(map(np.asarray, documents)):
        if document.ndim != 1:
            raise ValueError(f"document {age} has shape {document.shape}: one dimension is wanted")
        if len(document) > row_tokens:
            raise ValueError(
                f"document {age} has {len(document)} tokens, a row {row_tokens}: chunk it first"
            )
        if len(document):
            packer.add(age, len(document), document)
        while packer.tokens >= max(buffer_tokens, row_tokens):
            yield row()
    while len(packer):
        yield row()
