"""The order in which a lane reads a stream: endless, deterministic, computed block by block.

Epoch e of a stream permutes its shards by (seed, stream, e) and cuts their documents into one span
per lane, rotated by the epoch. A lane reads its span in blocks, each of which takes documents from
several places of the span and permutes them by (seed, stream, e, lane, block). Nothing of the size
of the data set is ever held: a block's documents and the shards' offsets are all.
"""

from __future__ import annotations

import numpy as np

from restomod.config import DataConfig
from restomod.data.random import keyed_generator


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
        self._block_documents = config.shuffle_block_documents
        self._pieces = config.shuffle_shards
        self._epochs: dict[int, tuple[np.ndarray, np.ndarray, int]] = {}

    def length(self, epoch: int, lane: int) -> int:
        """Return how many documents the lane reads in this epoch."""
        begin, end = self._span(epoch, lane)
        return end - begin

    def block(self, epoch: int, lane: int, position: int) -> tuple[int, np.ndarray]:
        """Return the block that holds `position` of the lane's epoch: its first position, and its
        documents as numbers into the epoch's permuted shards, [documents] int64."""
        begin, end = self._span(epoch, lane)
        length = end - begin
        blocks = -(-length // self._block_documents)
        pieces = min(self._pieces, length)
        edges = begin + np.arange(pieces + 1) * length // pieces
        sizes = np.diff(edges)
        starts = (np.arange(blocks + 1)[:, None] * sizes // blocks).sum(1)
        block = int(np.searchsorted(starts, position, side="right")) - 1
        documents = np.concatenate(
            [
                np.arange(edge + block * size // blocks, edge + (block + 1) * size // blocks)
                for edge, size in zip(edges[:-1], sizes, strict=True)
            ]
        )
        generator = keyed_generator(self._seed, "block", self._stream, epoch, lane, block)
        return int(starts[block]), generator.permutation(documents)

    def locate(self, epoch: int, document: int) -> tuple[int, int]:
        """Return (shard, index in the shard) of a document number that `block` gave."""
        shards, ends, _ = self._epoch(epoch)
        n = int(np.searchsorted(ends, document, side="right"))
        shard = int(shards[n])
        return shard, document - int(ends[n]) + int(self._shard_documents[shard])

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
    """A lane's place in a stream. `epoch` and `position` are the next document's."""

    def __init__(self, order: StreamOrder, lane: int, epoch: int = 0, position: int = 0) -> None:
        self._order = order
        self._lane = lane
        self.epoch = epoch
        self.position = position
        self._block: list[int] = []
        self._block_start = 0

    def next(self) -> tuple[int, int]:
        """Return (shard, index in the shard) of the next document and step past it."""
        offset = self.position - self._block_start
        if not 0 <= offset < len(self._block):
            while self.position >= self._order.length(self.epoch, self._lane):
                self.epoch += 1
                self.position = 0
            start, documents = self._order.block(self.epoch, self._lane, self.position)
            self._block_start, self._block = start, documents.tolist()
            offset = self.position - start
        self.position += 1
        if offset + 1 == len(self._block):
            document, self._block = self._block[offset], []
        else:
            document = self._block[offset]
        return self._order.locate(self.epoch, document)
