"""Held-out rows: one pass over a data set from its start, with the same rows and masks every
time.

In: an opened data set, a shape. Out: `Row`s. `train/evaluation.py` calls it, also for `restomod
eval`.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from restomod.config import DataConfig, PhaseConfig
from restomod.data.dataset import Dataset
from restomod.data.packer import Packer
from restomod.data.random import keyed_generator
from restomod.data.rows import (
    CLOSES,
    OPENS,
    ForeignTokenError,
    Row,
    RowBuilder,
    SpecialTokens,
)
from restomod.data.tokenizer import Tokenizer
from restomod.errors import UserError


def heldout_rows(
    dataset: Dataset,
    phase: PhaseConfig,
    data: DataConfig,
    tokenizer: Tokenizer,
    seed: int,
    rows: int,
) -> Iterator[Row]:
    """Yield at most `rows` rows.

    Chunks are packed over a buffer of four rows, which is flushed at the end: within the rows that
    are read, every chunk is delivered exactly once. Masks are keyed by (seed, stream, row). Raises
    UserError naming a document that another tokenizer has made.
    """
    special = SpecialTokens(data.special_tokens)
    builder = RowBuilder(phase, tokenizer, special)
    packer: Packer[tuple[np.ndarray, int, int, int]] = Packer()
    chunks = _chunks(dataset, phase.sequence_length - special.reserved)
    row_chunks = phase.row_tokens // data.tokens_per_document_min
    age = 0
    for number in range(rows):
        while packer.tokens < 4 * phase.row_tokens and (chunk := next(chunks, None)) is not None:
            packer.add(age, len(chunk[0]) + special.count(chunk[1]), chunk)
            age += 1
        taken = packer.row(phase.row_tokens, row_chunks)
        if not taken:
            return
        pieces = [(piece, ends) for piece, ends, *_ in taken]
        generator = keyed_generator(seed, "heldout", dataset.name, number)
        tokens = np.array([sum(len(piece) for piece, _ in pieces)], np.int64)
        try:
            row = builder(number, 0, pieces, generator, phase.mask.rate, tokens)
        except ForeignTokenError as error:
            _, _, shard, document = taken[error.chunk]
            raise UserError(f"{dataset.place(shard, document)}: {error}") from error
        yield row


def _chunks(dataset: Dataset, length: int) -> Iterator[tuple[np.ndarray, int, int, int]]:
    """Yield all documents' chunks: tokens, ends, and the document's shard and number in it."""
    for shard, documents in enumerate(dataset.shard_documents):
        for document in range(documents):
            tokens = dataset.tokens(shard, document)
            for start in range(0, len(tokens), length):
                ends = (OPENS if start == 0 else 0) | (
                    CLOSES if start + length >= len(tokens) else 0
                )
                yield tokens[start : start + length].copy(), ends, shard, document
