"""A lane: an endless, deterministic sequence of packed and masked rows.

A lane reads every stream of the mixture through a cursor of its own, draws each next document's
stream by a generator keyed by (seed, lane, document number), cuts the document into chunks of the
phase's sequence length, and packs the chunks best-fit. `state` describes it completely: (stream,
epoch, position) cursors, the chunks that wait, the rest of the document being cut, and counters
with

    documents drawn = documents cut + documents skipped, tokens drawn = delivered + waiting +
    pending

per stream at all times. `data/loader.py` runs lanes in worker processes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import xxhash

from restomod.config import DataConfig, PhaseConfig
from restomod.data.mlm import IGNORED, Masker
from restomod.data.order import StreamCursor, StreamOrder
from restomod.data.packer import Packer
from restomod.data.random import keyed_generator
from restomod.data.shards import ShardedDataset
from restomod.data.tokenizer import Tokenizer
from restomod.errors import UserError

DRAWS = 1024
"""Stream draws made at once."""
COUNTERS = ("documents", "skipped", "drawn_tokens", "delivered_tokens", "delivered_chunks")
"""Per stream: documents taken from the cursor, those of them without a token, tokens of all of
them, and tokens and chunks that rows have delivered. Special tokens are not counted."""


class Chunk(NamedTuple):
    """A piece of a document that fits the sequence length."""

    age: int
    stream: int
    shard: int
    document: int
    start: int
    length: int
    """Ordinary tokens; [CLS] and [SEP] come on top."""


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
    """64-bit hash of the row's number, inputs and labels."""
    stream_tokens: np.ndarray
    """[streams] int64, ordinary tokens from each stream."""
    lane_state: dict[str, Any] = field(default_factory=dict)
    """State of the lane after this row."""


class RowBuilder:
    """Turns chunks' tokens into a `Row`: adds special tokens, pads, masks, digests."""

    def __init__(self, phase: PhaseConfig, tokenizer: Tokenizer) -> None:
        self._row_tokens = phase.row_tokens
        self._tokenizer = tokenizer
        self._masker = None
        if phase.objective == "mlm":
            self._masker = Masker(
                phase.mask, tokenizer.vocab_size, tokenizer.reserved_ids, tokenizer.mask_id
            )

    def __call__(
        self,
        number: int,
        lane: int,
        pieces: list[np.ndarray],
        generator: np.random.Generator,
        stream_tokens: np.ndarray,
    ) -> Row:
        tokens = np.full(self._row_tokens, self._tokenizer.pad_id, np.int32)
        bounds = np.zeros(len(pieces) + 1, np.int32)
        end = 0
        for n, piece in enumerate(pieces):
            begin, end = end, end + len(piece) + 2
            tokens[begin] = self._tokenizer.cls_id
            tokens[begin + 1 : end - 1] = piece
            tokens[end - 1] = self._tokenizer.sep_id
            bounds[n + 1] = end
        if int(tokens.max()) >= self._tokenizer.vocab_size or int(tokens.min()) < 0:
            raise UserError(
                f"row {number}: token {tokens.max()} does not exist in the tokenizer, whose "
                f"vocabulary is {self._tokenizer.vocab_size}: the data was made with another one"
            )
        if self._masker:
            inputs, positions = self._masker(tokens, generator)
            targets = positions
        else:
            inputs, positions = tokens, np.delete(np.arange(end), bounds[1:] - 1)
            targets = positions + 1
        labels = np.full(self._row_tokens, IGNORED, np.int32)
        labels[positions] = tokens[targets]
        digest = xxhash.xxh64(np.int64(number).tobytes())
        digest.update(inputs.data)
        digest.update(labels.data)
        return Row(
            number,
            lane,
            inputs,
            bounds,
            positions.astype(np.int32),
            labels[positions],
            digest.intdigest(),
            stream_tokens,
        )


class Lane:
    """Lane `number` of a run, from its beginning or from a state."""

    def __init__(
        self,
        number: int,
        seed: int,
        data: DataConfig,
        phase: PhaseConfig,
        datasets: dict[str, ShardedDataset],
        orders: dict[str, StreamOrder],
        builder: RowBuilder,
        state: dict[str, Any] | None = None,
    ) -> None:
        self._number = number
        self._lanes = data.lanes
        self._seed = seed
        self._names = sorted(name for name, share in phase.mixture.items() if share > 0)
        self._datasets = [datasets[name] for name in self._names]
        self._cursors = [StreamCursor(orders[name], number) for name in self._names]
        self._counters = np.zeros((len(self._names), len(COUNTERS)), np.int64)
        weights = [phase.mixture[name] / datasets[name].mean_tokens for name in self._names]
        self._edges = np.cumsum(weights)[:-1] / sum(weights)
        self._content = phase.sequence_length - 2
        self._row_tokens = phase.row_tokens
        self._row_chunks = phase.row_tokens // data.tokens_per_document_min
        self._buffer_tokens = data.buffer_rows * phase.row_tokens
        self._builder = builder
        self._packer: Packer[Chunk] = Packer()
        self._rows = 0
        self._masked = 0
        self._draws = 0
        self._age = 0
        self._pending: Chunk | None = None
        """The part of the current document that is not cut yet; its age has no meaning."""
        self._drawn: list[int] = []
        self._drawn_block = -1
        if state is not None:
            self._load(state)

    def next_row(self) -> Row:
        """Return the lane's next row, with the state that follows it."""
        self._fill()
        chunks = self._packer.row(self._row_tokens, self._row_chunks)
        tokens = np.zeros(len(self._names), np.int64)
        for chunk in chunks:
            tokens[chunk.stream] += chunk.length
            self._counters[chunk.stream, 4] += 1
        self._counters[:, 3] += tokens
        generator = keyed_generator(self._seed, "mask", self._number, self._rows)
        row = self._builder(
            self._rows * self._lanes + self._number,
            self._number,
            [self._read(chunk) for chunk in chunks],
            generator,
            tokens,
        )
        self._rows += 1
        self._masked += len(row.positions)
        row.lane_state = self.state()
        return row

    def state(self) -> dict[str, Any]:
        """Return everything that determines the rows to come, in plain numbers and arrays."""
        return {
            "rows": self._rows,
            "masked_tokens": self._masked,
            "draws": self._draws,
            "age": self._age,
            "streams": {
                name: {
                    "epoch": cursor.epoch,
                    "position": cursor.position,
                    **dict(zip(COUNTERS, counters, strict=True)),
                }
                for name, cursor, counters in zip(
                    self._names, self._cursors, self._counters.tolist(), strict=True
                )
            },
            "names": self._names,
            "pending": list(self._pending) if self._pending else [],
            "waiting": np.array(list(self._packer.waiting()), np.int64).reshape(-1, 6),
        }

    def _load(self, state: dict[str, Any]) -> None:
        if state["names"] != self._names:
            raise UserError(
                f"the checkpoint's lanes read streams {state['names']}, the recipe {self._names}"
            )
        self._rows, self._draws, self._age = state["rows"], state["draws"], state["age"]
        self._masked = state["masked_tokens"]
        for n, name in enumerate(self._names):
            stream = state["streams"][name]
            self._cursors[n].epoch, self._cursors[n].position = stream["epoch"], stream["position"]
            self._counters[n] = [stream[counter] for counter in COUNTERS]
        self._pending = Chunk(*state["pending"]) if state["pending"] else None
        for fields in np.asarray(state["waiting"], np.int64).reshape(-1, 6).tolist():
            chunk = Chunk(*fields)
            self._packer.add(chunk.age, chunk.length + 2, chunk)

    def _fill(self) -> None:
        """Cut documents into chunks until the buffer holds enough to pack from."""
        empty = 0
        while self._packer.tokens < self._buffer_tokens:
            if self._pending is None:
                stream = self._draw()
                shard, document = self._cursors[stream].next()
                length = len(self._datasets[stream].tokens(shard, document))
                self._counters[stream, 0] += 1
                self._counters[stream, 2] += length
                if length == 0:
                    self._counters[stream, 1] += 1
                    empty += 1
                    if empty > sum(dataset.documents for dataset in self._datasets):
                        raise UserError(f"streams {self._names} hold no tokens at all")
                    continue
                self._pending = Chunk(0, stream, shard, document, 0, length)
            rest = self._pending
            chunk = rest._replace(age=self._age, length=min(rest.length, self._content))
            self._age += 1
            self._packer.add(chunk.age, chunk.length + 2, chunk)
            if rest.length > chunk.length:
                self._pending = rest._replace(
                    start=rest.start + chunk.length, length=rest.length - chunk.length
                )
            else:
                self._pending = None

    def _draw(self) -> int:
        """Return the stream of the next document."""
        block, n = divmod(self._draws, DRAWS)
        if block != self._drawn_block:
            generator = keyed_generator(self._seed, "mixture", self._number, block)
            uniform = generator.random(DRAWS)
            self._drawn = np.searchsorted(self._edges, uniform, side="right").tolist()
            self._drawn_block = block
        self._draws += 1
        return self._drawn[n]

    def _read(self, chunk: Chunk) -> np.ndarray:
        document = self._datasets[chunk.stream].tokens(chunk.shard, chunk.document)
        return document[chunk.start : chunk.start + chunk.length]
