"""A lane: an endless, deterministic sequence of packed and masked rows.

A lane reads every stream of the mixture through a cursor of its own, draws each next document's
stream by (seed, lane, document number), cuts the document into chunks of the
phase's sequence length, and packs the chunks best-fit. Its `LaneState` describes it completely:
(epoch, position) of each stream's cursor, the chunks that wait, the rest of the document being cut,
and counters with, per stream and at all times,

    documents drawn = documents cut + empty + short + damaged
    tokens drawn = delivered + waiting + pending + skipped

A new phase keeps cursors and counters; chunks that wait are delivered as they were cut, or, where
they are longer than the new sequence length, cut again. `data/loader.py` runs lanes in worker
processes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from restomod.batches import BatchSizes
from restomod.config import DataConfig, PhaseConfig
from restomod.data.dataset import Dataset
from restomod.data.files import DamagedShardError
from restomod.data.mixture import Odds, stream_draws
from restomod.data.mlm import mask_rate
from restomod.data.order import StreamCursor, StreamOrder
from restomod.data.packer import Packer
from restomod.data.prefetch import Prefetcher
from restomod.data.random import keyed_generator
from restomod.data.rows import (
    CLOSES,
    OPENS,
    Chunk,
    ForeignTokenError,
    Row,
    RowBuilder,
    SpecialTokens,
)
from restomod.data.state import COUNTERS, LaneDelta, LaneState
from restomod.data.tokenizer import Tokenizer
from restomod.errors import UserError

log = logging.getLogger(__name__)

DRAWS = 1024
"""Stream draws made at once."""
DOCUMENTS, EMPTY, SHORT, DAMAGED, CHUNKED, DRAWN, SKIPPED, DELIVERED, CHUNKS = range(len(COUNTERS))


@dataclass
class LaneSetting:
    """What all lanes of a phase in one process share."""

    seed: int
    data: DataConfig
    phase: PhaseConfig
    batches: BatchSizes
    first_row: int
    """Row with which the phase begins."""
    names: list[str]
    """All streams that the run may draw from, sorted."""
    datasets: list[Dataset]
    orders: list[StreamOrder]
    odds: Odds
    special: SpecialTokens
    builder: RowBuilder
    prefetcher: Prefetcher

    @classmethod
    def of(
        cls,
        seed: int,
        data: DataConfig,
        phase: PhaseConfig,
        first_row: int,
        datasets: dict[str, Dataset],
        tokenizer: Tokenizer,
    ) -> LaneSetting:
        """Make the parts of a phase that begins with row `first_row`."""
        names = sorted(datasets)
        special = SpecialTokens(data.special_tokens)
        return cls(
            seed,
            data,
            phase,
            phase.batches,
            first_row,
            names,
            [datasets[name] for name in names],
            [StreamOrder(seed, name, datasets[name].shard_documents, data) for name in names],
            Odds(phase, data, datasets, names),
            special,
            RowBuilder(phase, tokenizer, special),
            Prefetcher(),
        )


class Lane:
    """Lane `number` of a run, from its beginning or from a state."""

    def __init__(self, number: int, setting: LaneSetting, state: LaneState | None = None) -> None:
        self._number = number
        self._setting = setting
        phase, data = setting.phase, setting.data
        self._content = phase.sequence_length - setting.special.reserved
        self._row_chunks = phase.row_tokens // data.tokens_per_document_min
        self._buffer_tokens = data.buffer_rows * phase.row_tokens
        state = state or LaneState(setting.names)
        self._rows, self._masked, self._real = state.rows, state.masked_tokens, state.real_tokens
        self._draws, self._age = state.draws, state.chunks
        begins_phase = state.rows * data.lanes + number < setting.first_row + data.lanes
        self._weights = [] if begins_phase else list(state.weights)
        self._counters = state.counters.copy()
        self._skipped = {(stream, shard) for stream, shard, *_ in state.skipped}
        self._cursors = [
            StreamCursor(order, number, *place, prefetch=self._prefetch(stream))
            for stream, (order, place) in enumerate(zip(setting.orders, state.places, strict=True))
        ]
        self._packer: Packer[tuple[Chunk, np.ndarray]] = Packer()
        self._pending: list[int] = []
        """Stream, shard, document, start and length of what is not cut yet of a document."""
        self._pending_tokens: np.ndarray
        """That document's tokens, all of them."""
        self._drawn: list[int]
        self._drawn_block = -1
        """Number of the block of draws that `_drawn` holds."""
        self._added: list[Chunk] = []
        self._taken: list[int] = []
        self._newly_skipped: list[tuple[int, int, int, int]] = []
        self._load(state)

    def next_row(self) -> Row:
        """Return the lane's next row, with what it changes in the lane's state."""
        setting, counters = self._setting, self._counters
        self._fill()
        generator = keyed_generator(setting.seed, "row", self._number, self._rows)
        taken = self._packer.row(setting.phase.row_tokens, self._row_chunks, generator)
        tokens = np.zeros(len(setting.names), np.int64)
        for chunk, _ in taken:
            tokens[chunk.stream] += chunk.length
            counters[chunk.stream, CHUNKS] += 1
            self._taken.append(chunk.age)
        counters[:, DELIVERED] += tokens
        number = self._rows * setting.data.lanes + self._number
        batches = setting.batches
        rows_before = batches.before(batches.step_of(number - setting.first_row))
        try:
            row = setting.builder(
                number,
                self._number,
                [(piece, chunk.ends) for chunk, piece in taken],
                generator,
                mask_rate(setting.phase.mask, rows_before * setting.phase.row_tokens),
                tokens,
            )
        except ForeignTokenError as error:
            chunk = taken[error.chunk][0]
            dataset = setting.datasets[chunk.stream]
            raise UserError(f"{dataset.place(chunk.shard, chunk.document)}: {error}") from error
        self._rows += 1
        self._masked += len(row.positions)
        self._real += int(row.cu_seqlens[-1])
        row.delta = self._delta()
        return row

    def _delta(self) -> LaneDelta:
        """Return what changed since the last call."""
        delta = LaneDelta(
            (self._rows, self._masked, self._real, self._draws, self._age),
            self._weights,
            [(cursor.epoch, cursor.position) for cursor in self._cursors],
            self._counters.copy(),
            [0, *self._pending, 0] if self._pending else [],
            [tuple(chunk) for chunk in self._added],
            self._taken,
            self._newly_skipped,
        )
        self._added, self._taken, self._newly_skipped = [], [], []
        return delta

    def _load(self, state: LaneState) -> None:
        """Read what waits."""
        too_long: list[tuple[Chunk, np.ndarray]] = []
        for fields in state.waiting.values():
            chunk = Chunk(*fields)
            tokens = self._read_again(chunk.stream, chunk.shard, chunk.document)
            if tokens is None:
                self._taken.append(chunk.age)
                self._counters[chunk.stream, SKIPPED] += chunk.length
            elif chunk.length > self._content:
                self._taken.append(chunk.age)
                too_long.append((chunk, tokens))
            else:
                self._wait(chunk, tokens)
        for chunk, tokens in too_long:
            for start in range(0, chunk.length, self._content):
                length = min(self._content, chunk.length - start)
                ends = OPENS if start == 0 else 0
                ends |= CLOSES if start + length == chunk.length else 0
                self._cut(*chunk[1:4], chunk.start + start, length, ends & chunk.ends, tokens)
        if state.pending:
            _, stream, shard, document, start, length, _ = state.pending
            rest = self._read_again(stream, shard, document)
            if rest is None:
                self._counters[stream, SKIPPED] += length
            else:
                self._pending = [stream, shard, document, start, length]
                self._pending_tokens = rest

    def _fill(self) -> None:
        """Cut documents into chunks until the buffer holds enough to pack from."""
        unread = 0
        while self._packer.tokens < self._buffer_tokens:
            if self._pending:
                stream, shard, document, start, rest = self._pending
                length = min(rest, self._content)
                ends = (OPENS if start == 0 else 0) | (CLOSES if length == rest else 0)
                self._cut(stream, shard, document, start, length, ends, self._pending_tokens)
                rest -= length
                self._pending = [stream, shard, document, start + length, rest] if rest else []
            elif self._begin_document():
                unread = 0
            else:
                unread += 1
                if unread > 2 * sum(d.documents for d in self._setting.datasets) + DRAWS:
                    raise UserError(
                        f"streams {', '.join(self._without_tokens())} hold no document of "
                        f"{self._setting.data.skip_shorter_than} tokens or more that can be read"
                    )

    def _without_tokens(self) -> list[str]:
        """Return the streams of whose documents nothing could be used, so that ever more of them
        were drawn."""
        taken = self._counters[:, DRAWN] - self._counters[:, SKIPPED]
        drawn = self._counters[:, DOCUMENTS] > 0
        return [self._setting.names[n] for n in np.flatnonzero(drawn & (taken == 0))]

    def _begin_document(self) -> bool:
        """Draw the next document; return whether there is something in it to cut."""
        stream = self._draw()
        counters = self._counters[stream]
        shard, document = self._cursors[stream].next()
        counters[DOCUMENTS] += 1
        tokens = self._read(stream, shard, document)
        if tokens is None:
            counters[DAMAGED] += 1
            return False
        length = len(tokens)
        counters[DRAWN] += length
        if length < max(1, self._setting.data.skip_shorter_than):
            counters[EMPTY if length == 0 else SHORT] += 1
            counters[SKIPPED] += length
            return False
        if length > self._content:
            counters[CHUNKED] += 1
        self._pending = [stream, shard, document, 0, length]
        self._pending_tokens = tokens
        return True

    def _cut(
        self,
        stream: int,
        shard: int,
        document: int,
        start: int,
        length: int,
        ends: int,
        tokens: np.ndarray,
    ) -> None:
        """Make a chunk of a document and let it wait."""
        chunk = Chunk(self._age, stream, shard, document, start, length, ends)
        self._age += 1
        self._added.append(chunk)
        self._wait(chunk, tokens)

    def _wait(self, chunk: Chunk, tokens: np.ndarray) -> None:
        # A copy: a view would keep its whole shard mapped.
        piece = tokens[chunk.start : chunk.start + chunk.length].copy()
        slots = chunk.length + self._setting.special.count(chunk.ends)
        self._packer.add(chunk.age, slots, (chunk, piece))

    def _draw(self) -> int:
        """Return the stream of the next document."""
        block, n = divmod(self._draws, DRAWS)
        if block != self._drawn_block:
            if n == 0 or not self._weights:
                tokens = self._counters[:, DRAWN] - self._counters[:, SKIPPED]
                self._weights = self._setting.odds.weights(self._counters[:, DOCUMENTS], tokens)
            self._drawn = stream_draws(
                self._setting.seed, self._number, block * DRAWS, DRAWS, self._weights
            ).tolist()
            self._drawn_block = block
        self._draws += 1
        return self._drawn[n]

    def _read(self, stream: int, shard: int, document: int) -> np.ndarray | None:
        """Return a document's tokens, None if its shard is skipped."""
        if (stream, shard) in self._skipped:
            return None
        return self._read_again(stream, shard, document)

    def _read_again(self, stream: int, shard: int, document: int) -> np.ndarray | None:
        """Return a document's tokens though its shard may have been skipped since it was drawn;
        None, and the shard is skipped from here on, if it proves damaged."""
        try:
            return self._setting.datasets[stream].tokens(shard, document)
        except DamagedShardError as error:
            if self._setting.data.on_damaged_shard == "stop":
                raise
            if (stream, shard) not in self._skipped:
                log.warning("%s; it is skipped from here on", error)
                cursor = self._cursors[stream]
                self._skipped.add((stream, shard))
                self._newly_skipped.append((stream, shard, cursor.epoch, cursor.position))
            return None

    def _prefetch(self, stream: int) -> Callable[[int], None]:
        dataset, prefetcher = self._setting.datasets[stream], self._setting.prefetcher

        def ask(shard: int) -> None:
            prefetcher.ask(partial(dataset.prefetch, shard))

        return ask
