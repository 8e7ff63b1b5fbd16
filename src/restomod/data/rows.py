"""Rows: chunks laid end to end, with special tokens, padding, masks and a digest.

In: the tokens of a row's chunks and a generator. Out: a `Row`. `data/lanes.py` builds training's
rows with it, `data/heldout.py` evaluation's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import xxhash

from restomod.config import PhaseConfig
from restomod.data.mlm import Masker
from restomod.data.state import LaneDelta
from restomod.data.tokenizer import Tokenizer
from restomod.errors import UserError

OPENS, CLOSES = 1, 2
"""Bits of `Chunk.ends`: the chunk begins its document, ends it."""


class Chunk(NamedTuple):
    """A piece of a document that fits the sequence length."""

    age: int
    """Chunks of the lane before this one."""
    stream: int
    """Number among the lane's stream names."""
    shard: int
    document: int
    """Number within the shard."""
    start: int
    length: int
    """Ordinary tokens; [CLS] and [SEP] come on top."""
    ends: int
    """OPENS, CLOSES, both or neither."""


class ForeignTokenError(UserError):
    """A document holds an id that the tokenizer does not have."""

    chunk = 0
    """Of the row's, the one that holds it."""


class SpecialTokens:
    """Where [CLS] and [SEP] stand (`data.special_tokens`)."""

    def __init__(self, where: str) -> None:
        self._around = {"each_chunk": OPENS | CLOSES, "document_ends": 0, "none": 0}[where]
        self._at_ends = 0 if where == "none" else OPENS | CLOSES
        self.reserved = 0 if where == "none" else 2
        """Slots of a chunk that ordinary tokens leave free."""

    def around(self, ends: int) -> int:
        """Return OPENS where a chunk gets [CLS], CLOSES where it gets [SEP]."""
        return self._around | (ends & self._at_ends)

    def count(self, ends: int) -> int:
        """Return how many a chunk gets."""
        return self.around(ends).bit_count()


@dataclass
class Row:
    """One packed row, with what is to be predicted."""

    number: int
    """Number in the run; in one-pass evaluation, in the stream."""
    lane: int
    input_ids: np.ndarray
    """[row_tokens] int32, [PAD] at the tail."""
    cu_seqlens: np.ndarray
    """[chunks + 1] int32, the chunks' bounds; the tail behind the last one is padding."""
    positions: np.ndarray
    """[predicted] int32, from where tokens are predicted: masked ones from their own place, next
    ones from the place before them."""
    labels: np.ndarray
    """[predicted] int32, the tokens to predict."""
    digest: int
    """64-bit hash of the row's number, inputs, places and labels."""
    stream_tokens: np.ndarray
    """[streams] int64, ordinary tokens from each stream."""
    delta: LaneDelta | None = None
    """What this row changes in the state of its lane; None in evaluation."""


class RowBuilder:
    """Turns chunks' tokens into a `Row`."""

    def __init__(self, phase: PhaseConfig, tokenizer: Tokenizer, special: SpecialTokens) -> None:
        self._row_tokens = phase.row_tokens
        self._tokenizer = tokenizer
        self._special = special
        self._masker = Masker(phase.mask, tokenizer) if phase.objective == "mlm" else None

    def __call__(
        self,
        number: int,
        lane: int,
        pieces: list[tuple[np.ndarray, int]],
        generator: np.random.Generator,
        rate: float,
        stream_tokens: np.ndarray,
    ) -> Row:
        """Build row `number` of (tokens, ends) pieces, its tokens masked at `rate`."""
        tokenizer = self._tokenizer
        # Stored ids may be wider than what they become: none may be wrapped into the vocabulary.
        fits = all(np.can_cast(dtype, np.int32) for dtype in {piece.dtype for piece, _ in pieces})
        tokens: np.ndarray = np.full(
            self._row_tokens, tokenizer.pad_id, np.int32 if fits else np.int64
        )
        bounds = np.zeros(len(pieces) + 1, np.int32)
        end = 0
        for n, (piece, ends) in enumerate(pieces):
            around = self._special.around(ends)
            if around & OPENS:
                tokens[end] = tokenizer.cls_id
                end += 1
            tokens[end : end + len(piece)] = piece
            end += len(piece)
            if around & CLOSES:
                tokens[end] = tokenizer.sep_id
                end += 1
            bounds[n + 1] = end
        if int(tokens.max()) >= tokenizer.vocab_size or int(tokens.min()) < 0:
            place = int(np.argmax((tokens >= tokenizer.vocab_size) | (tokens < 0)))
            error = ForeignTokenError(
                f"token {tokens[place]} does not exist in the tokenizer, whose vocabulary is "
                f"{tokenizer.vocab_size}: the data was made with another one"
            )
            error.chunk = int(np.searchsorted(bounds, place, side="right")) - 1
            raise error
        tokens = tokens.astype(np.int32, copy=False)
        if self._masker:
            inputs, positions = self._masker(tokens, generator, rate)
            labels = tokens[positions]
        else:
            inputs, positions = tokens, np.delete(np.arange(end), bounds[1:] - 1)
            labels = tokens[positions + 1]
        positions = positions.astype(np.int32)
        digest = xxhash.xxh64(np.int64(number).tobytes())
        for part in (inputs, bounds, positions, labels):
            digest.update(part.data)
        return Row(
            number, lane, inputs, bounds, positions, labels, digest.intdigest(), stream_tokens
        )
