"""The order in which a lane reads a stream: endless, deterministic, computed block by block.

Epoch e of a stream permutes its shards by (seed, stream, e) and cuts their documents into one span
per lane, rotated by the epoch. A span is cut into `shuffle_shards` pieces; each block takes the
next slice of every piece and permutes what it took by (seed, stream, e, lane, block). A slice is
never longer than a mean shard, so a block lies in `shuffle_shards` to twice as many shards.
Everything is a closed form of the position: nothing of the size of the data set is ever held or
computed but the permuted shards' document counts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from restomod.config import DataConfig
from restomod.data.random import keyed_generator

WINDOW = 256
"""Documents that a cursor locates at once."""


@dataclass
class Block:
    """Documents of a lane's epoch that are permuted together."""

    number: int
    start: int
    """Position of its first document."""
    begins: np.ndarray
    """[pieces] int64, each slice's first document among the epoch's permuted shards."""
    ends: np.ndarray
    """[pieces + 1] int64, running count of the slices' documents, from 0."""

    @property
    def length(self) -> int:
        return int(self.ends[-1])


class StreamOrder:
    """Documents of one stream by (epoch, lane, position)."""

    def __init__(
        self, seed: int, stream: str, shard_documents: np.ndarray, config: DataConfig
    ) -> None:
        self._seed = seed
        self._stream = stream
        self._shard_documents = shard_documents
        self._documents = int(shard_documents.sum())
        self._lanes = config.lanes
        self._pieces = config.shuffle_shards
        mean_shard = -(-self._documents // len(shard_documents))
        self._slice = max(1, min(config.shuffle_block_documents // self._pieces, mean_shard))
        self._epochs: dict[int, tuple[np.ndarray, np.ndarray, int]] = {}

    def length(self, epoch: int, lane: int) -> int:
        """Return how many documents the lane reads in this epoch."""
        begin, end = self._span(epoch, lane)
        return end - begin

    def block(self, epoch: int, lane: int, position: int) -> Block:
        """Return the block that holds `position` of the lane's epoch."""
        sizes, blocks = self._cut(epoch, lane)
        number = min(blocks - 1, position * blocks // int(sizes.sum()))
        while self._start(sizes, blocks, number) > position:
            number -= 1
        while self._start(sizes, blocks, number + 1) <= position:
            number += 1
        return self.block_at(epoch, lane, number)

    def block_at(self, epoch: int, lane: int, number: int) -> Block:
        """Return block `number` of the lane's epoch."""
        begin, _ = self._span(epoch, lane)
        sizes, blocks = self._cut(epoch, lane)
        edges = begin + np.cumsum(sizes) - sizes
        taken = number * sizes // blocks
        lengths = (number + 1) * sizes // blocks - taken
        ends = np.concatenate([[0], np.cumsum(lengths)])
        return Block(number, self._start(sizes, blocks, number), edges + taken, ends)

    def blocks(self, epoch: int, lane: int) -> int:
        """Return how many blocks the lane's epoch has."""
        return self._cut(epoch, lane)[1]

    def permutation(self, epoch: int, lane: int, block: Block) -> np.ndarray:
        """Return the order of a block's documents, [length] uint32."""
        generator = keyed_generator(self._seed, "block", self._stream, epoch, lane, block.number)
        return generator.permutation(np.arange(block.length, dtype=np.uint32))

    def locate(
        self, epoch: int, block: Block, members: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return (shards, documents in them), both [n], of numbers that `permutation` gave."""
        members = members.astype(np.int64)
        piece = np.searchsorted(block.ends, members, side="right") - 1
        documents = block.begins[piece] + members - block.ends[piece]
        shards, ends, _ = self._epoch(epoch)
        places = np.searchsorted(ends, documents, side="right")
        chosen = shards[places]
        return chosen, documents - ends[places] + self._shard_documents[chosen]

    def shards(self, epoch: int, block: Block) -> np.ndarray:
        """Return the shards in which a block lies, [n]."""
        shards, ends, _ = self._epoch(epoch)
        lengths = np.diff(block.ends)
        first = np.searchsorted(ends, block.begins, side="right")
        last = np.searchsorted(ends, block.begins + lengths - 1, side="right")
        runs = [np.arange(a, b + 1) for a, b, n in zip(first, last, lengths, strict=True) if n]
        found = shards[np.unique(np.concatenate(runs))]
        return found[self._shard_documents[found] > 0]

    def _cut(self, epoch: int, lane: int) -> tuple[np.ndarray, int]:
        """Return the sizes of the pieces of a lane's span, [pieces], and the number of blocks."""
        length = self.length(epoch, lane)
        if length == 0:
            return np.zeros(0, np.int64), 0
        pieces = min(self._pieces, length)
        edges = np.arange(pieces + 1) * length // pieces
        return np.diff(edges), -(-length // (pieces * self._slice))

    @staticmethod
    def _start(sizes: np.ndarray, blocks: int, number: int) -> int:
        return int((number * sizes // blocks).sum())

    def _span(self, epoch: int, lane: int) -> tuple[int, int]:
        rotated = (lane + self._epoch(epoch)[2]) % self._lanes
        return (
            rotated * self._documents // self._lanes,
            (rotated + 1) * self._documents // self._lanes,
        )

    def _epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray, int]:
        """Return the epoch's shards in order, the running count of their documents, the
        rotation."""
        known = self._epochs.get(epoch)
        if known is None:
            generator = keyed_generator(self._seed, "epoch", self._stream, epoch)
            rotation = int(generator.integers(self._lanes))
            shards = generator.permutation(len(self._shard_documents))
            known = shards, np.cumsum(self._shard_documents[shards]), rotation
            while len(self._epochs) > 1:
                self._epochs.pop(next(iter(self._epochs)))
            self._epochs[epoch] = known
        return known


class StreamCursor:
    """A lane's place in a stream. `epoch` and `position` are the next document's.

    `prefetch` is called with the number of every shard that will be needed: those of the next block
    when one is begun.
    """

    def __init__(
        self,
        order: StreamOrder,
        lane: int,
        epoch: int = 0,
        position: int = 0,
        prefetch: Callable[[int], None] | None = None,
    ) -> None:
        self._order = order
        self._lane = lane
        self._prefetch = prefetch
        self.epoch = epoch
        self.position = position
        self._block: Block | None = None
        self._permutation = np.zeros(0, np.uint32)
        self._window: list[tuple[int, int]] = []
        self._window_start = 0

    def next(self) -> tuple[int, int]:
        """Return (shard, index in the shard) of the next document and step past it."""
        offset = self.position - self._window_start
        if not 0 <= offset < len(self._window):
            self._look_up()
            offset = 0
        self.position += 1
        return self._window[offset]

    def _look_up(self) -> None:
        """Locate the documents from `position` on, as far as the block and the window reach."""
        order, block = self._order, self._block
        while self.position >= order.length(self.epoch, self._lane):
            self.epoch, self.position = self.epoch + 1, 0
            block = None
        if block is None or not 0 <= self.position - block.start < block.length:
            if self._prefetch and self._block is None:
                self._announce(order.block(self.epoch, self._lane, self.position))
            block = self._block = order.block(self.epoch, self._lane, self.position)
            self._permutation = order.permutation(self.epoch, self._lane, block)
            if self._prefetch and block.number + 1 < order.blocks(self.epoch, self._lane):
                self._announce(order.block_at(self.epoch, self._lane, block.number + 1))
        begin = self.position - block.start
        shards, documents = order.locate(
            self.epoch, block, self._permutation[begin : begin + WINDOW]
        )
        self._window = list(zip(shards.tolist(), documents.tolist(), strict=True))
        self._window_start = self.position

    def _announce(self, block: Block) -> None:
        assert self._prefetch is not None
        for shard in self._order.shards(self.epoch, block).tolist():
            self._prefetch(shard)
