"""Held-out rows: one pass over a data set from its start, with the same rows and masks every
time."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from restomod.config import PhaseConfig
from restomod.data.lanes import Row, RowBuilder
from restomod.data.packer import Packer
from restomod.data.random import keyed_generator
from restomod.data.shards import ShardedDataset
from restomod.data.tokenizer import Tokenizer


def heldout_rows(
    dataset: ShardedDataset,
    phase: PhaseConfig,
    tokenizer: Tokenizer,
    seed: int,
    rows: int,
    documents: int,
) -> Iterator[Row]:
    """Yield at most `rows` rows of at most `documents` chunks each.

    Chunks are packed over a buffer of four rows, which is flushed at the end: within the rows that
    are read, every chunk is delivered exactly once. Masks are keyed by (seed, stream, row).
    """
    builder = RowBuilder(phase, tokenizer)
    packer: Packer[np.ndarray] = Packer()
    chunks = _chunks(dataset, phase.sequence_length - 2)
    age = 0
    for number in range(rows):
        while packer.tokens < 4 * phase.row_tokens and (chunk := next(chunks, None)) is not None:
            packer.add(age, len(chunk) + 2, chunk)
            age += 1
        pieces = packer.row(phase.row_tokens, documents)
        if not pieces:
            return
        generator = keyed_generator(seed, "heldout", dataset.name, number)
        tokens = np.array([sum(len(piece) for piece in pieces)], np.int64)
        yield builder(number, 0, pieces, generator, tokens)


def _chunks(dataset: ShardedDataset, length: int) -> Iterator[np.ndarray]:
    for shard, documents in enumerate(dataset.shard_documents):
        for document in range(documents):
            tokens = dataset.tokens(shard, document)
            for start in range(0, len(tokens), length):
                yield tokens[start : start + length]
