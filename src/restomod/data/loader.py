"""This rank's batches of a run, phase by phase, from its lanes in worker processes.

Row n of the run comes from lane n mod lanes, and lane l is run by rank l mod world size. A rank's
lanes are dealt out to its workers; the main process takes each row from the worker whose turn it
is, so that rows arrive in order whatever the workers' speed. The loader's state is the state of its
lanes after the last row that was delivered: what workers have prepared ahead is not part of it.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import select
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, islice
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset

from restomod.config import PhaseConfig, Recipe
from restomod.data.batch import Batch, collate
from restomod.data.lanes import Lane, LaneSetting
from restomod.data.rows import Row
from restomod.data.sources import Sources
from restomod.data.state import COUNTERS, LaneDelta, LaneState
from restomod.errors import UserError
from restomod.timeline import Span, Timeline

MESSAGE_TOKENS = 65_536
"""Slots that a worker hands over at once: a message costs as much as some thousand tokens."""
PREFETCHED_MESSAGES = 8
"""What each worker prepares ahead."""
POLL_S = 1
"""How often a wait for a worker asks whether to go on."""


class StoppedWaiting(Exception):
    """A wait for rows was given up, since the run is to stop."""


@dataclass
class BatchFacts:
    """What one rank's share of a batch holds."""

    rows: int = 0
    slots: int = 0
    real_tokens: int = 0
    """Slots that are not padding: ordinary tokens and their [CLS] and [SEP]."""
    masked_tokens: int = 0
    lengths: list[int] = field(default_factory=list)
    """Tokens of every chunk, [CLS] and [SEP] included."""
    digest: int = 0
    """Sum of the rows' digests modulo 2^64: the same whatever order and rank they come in."""
    stream_tokens: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    """[streams] ordinary tokens by stream, in the order of `Loader.streams`."""
    wait_s: float = 0.0
    """Seconds that the main process waited for rows."""

    def add(self, row: Row) -> None:
        self.rows += 1
        self.slots += len(row.input_ids)
        self.real_tokens += int(row.cu_seqlens[-1])
        self.masked_tokens += len(row.positions)
        self.lengths += np.diff(row.cu_seqlens).tolist()
        self.digest = (self.digest + row.digest) % 2**64
        self.stream_tokens = (
            self.stream_tokens + row.stream_tokens if self.rows > 1 else row.stream_tokens.copy()
        )


@dataclass
class Totals:
    """What lanes have done since the run began."""

    counters: np.ndarray
    """[streams, COUNTERS] int64."""
    real_tokens: int = 0
    masked_tokens: int = 0


class Loader:
    """Endless iterator over this rank's batches, each a list of micro-batches.

    `state` is what `state_dict` returned, merged over the ranks of whatever world size wrote it.
    """

    def __init__(
        self,
        recipe: Recipe,
        sources: Sources,
        rank: int = 0,
        world_size: int = 1,
        state: dict[str, Any] | None = None,
        pin_memory: bool = False,
        timeline: Timeline | None = None,
    ) -> None:
        self._recipe = recipe
        self._sources = sources
        self._timeline = timeline or Timeline(recipe.trained_phases)
        self._rank = rank
        self._world_size = world_size
        self._pin_memory = pin_memory
        self.streams = sorted(sources.streams)
        self.facts = BatchFacts()
        """Facts of the batch last delivered."""
        self.give_up: Callable[[], object] = bool
        """Asked while the main process waits for a worker's rows; if true, StoppedWaiting is
        raised."""
        self._skipped: list[dict[str, Any]] = []
        self._delivered: tuple[int, list[tuple[int, LaneDelta]]] = (0, [])
        """Rows of the global batch last delivered, and what this rank's share of them changed in
        its lanes: no part of the lanes' states yet."""
        self._rows = int(state["rows"]) if state else self._timeline.origin.row
        lanes = state["lanes"] if state else {}
        try:
            self._lanes = {
                int(lane): LaneState.from_plain(value, self.streams)
                for lane, value in lanes.items()
                if int(lane) % world_size == rank
            }
        except ValueError as error:
            raise UserError(str(error)) from error

    def __iter__(self) -> Iterator[list[Batch]]:
        step = self._timeline.step_of(self._rows)
        while True:
            span = self._timeline.at(step)
            with closing(self._in_order(span)) as rows:
                while self._timeline.at(step) is span:
                    yield self._next_batch(rows, span.batch_rows(step), span.phase)
                    self._step_past()
                    step += 1

    def _next_batch(self, rows: Iterator[Row], count: int, phase: PhaseConfig) -> list[Batch]:
        """Return this rank's share of a global batch of `count` rows."""
        for_rank = count // self._world_size
        started = time.perf_counter()
        try:
            batch = [next(rows) for _ in range(for_rank)]
        except UserError as error:
            error.alone = True  # other ranks read other shards
            raise
        facts = BatchFacts(wait_s=time.perf_counter() - started)
        deltas = []
        for row in batch:
            assert row.delta is not None
            facts.add(row)
            deltas.append((row.lane, row.delta))
        micro_batches = [
            collate(
                batch[n : n + phase.micro_batch_rows], phase, self._recipe.data, self._pin_memory
            )
            for n in range(0, for_rank, phase.micro_batch_rows)
        ]
        self._delivered = count, deltas
        self.facts = facts
        return micro_batches

    def put_back(self) -> None:
        """Leave the batch last delivered out of the state: it was not trained on. Iteration ends
        with it."""
        self._delivered = 0, []

    @property
    def skipped(self) -> list[dict[str, Any]]:
        """Shards that lanes of this rank left out in the batch last delivered: lane, stream, file,
        epoch and position."""
        self._step_past()
        return self._skipped

    def state_dict(self) -> dict[str, Any]:
        """Return the run's row count and the states of this rank's lanes that have begun, after the
        batch last delivered."""
        self._step_past()
        lanes = {lane: state.plain() for lane, state in self._lanes.items()}
        return {"rows": self._rows, "lanes": lanes}

    def totals(self) -> Totals:
        """Return what this rank's lanes have delivered since the run began."""
        self._step_past()
        totals = Totals(np.zeros((len(self.streams), len(COUNTERS)), np.int64))
        for state in self._lanes.values():
            totals.counters += state.counters
            totals.real_tokens += state.real_tokens
            totals.masked_tokens += state.masked_tokens
        return totals

    def _step_past(self) -> None:
        """Take the delivered rows into their lanes' states."""
        rows, deltas = self._delivered
        if not rows:
            return
        self._delivered = 0, []
        self._rows += rows
        self._skipped = []
        for lane, delta in deltas:
            self._lanes.setdefault(lane, LaneState(self.streams)).apply(delta)
            for stream, shard, epoch, position in delta.skipped:
                dataset = self._sources.streams[self.streams[stream]]
                self._skipped.append(
                    {
                        "lane": lane,
                        "stream": dataset.name,
                        "file": dataset.file(shard),
                        "epoch": epoch,
                        "position": position,
                    }
                )

    def _in_order(self, span: Span) -> Generator[Row, None, None]:
        """Yield this rank's rows of a phase in the run's order, from its workers in turn."""
        local_lanes = self._recipe.data.lanes // self._world_size
        workers = min(self._recipe.data.workers, local_lanes)
        self._sources.open_shards.close()  # processes that are begun below would keep them open
        together = max(1, MESSAGE_TOKENS // span.phase.row_tokens) if workers else 1
        sources = [
            _LaneRows(
                self._recipe,
                span,
                self._sources,
                self._rank,
                self._world_size,
                self._rows,
                n,
                max(1, workers),
                self._lanes,
                together,
            )
            for n in range(max(1, workers))
        ]
        with ExitStack() as running:
            iterators = [
                chain.from_iterable(
                    running.enter_context(closing(_in_worker(source, self.give_up)))
                    if workers
                    else source
                )
                for source in sources
            ]
            number = _first_row(self._rows, self._rank, self._world_size)
            while True:
                local_lane = number % self._recipe.data.lanes // self._world_size
                row = next(iterators[local_lane % len(iterators)])
                assert row.number == number, (row.number, number)
                yield row
                number += self._world_size


def _first_row(begin: int, rank: int, world_size: int) -> int:
    """Return the first row from `begin` on that a rank reads: `begin` is no multiple of the world
    size where the run before had other batches."""
    return begin + (rank - begin) % world_size


def _in_worker(
    source: _LaneRows, give_up: Callable[[], object]
) -> Generator[list[Row], None, None]:
    """Run a source in a process of its own; an exception there is raised here, StoppedWaiting if
    `give_up` holds while nothing comes."""
    messages = DataLoader(
        _Told(source),
        batch_size=None,
        num_workers=1,
        prefetch_factor=PREFETCHED_MESSAGES,
        collate_fn=_as_is,
        generator=torch.Generator(),  # the default would draw from torch's global one
        timeout=POLL_S,
        worker_init_fn=partial(_end_with, os.getpid()),
    )
    iterator = iter(messages)
    while True:
        try:
            message = next(iterator)
        except RuntimeError as error:
            # torch's own words, not those of an error of the worker's. It asks again next time.
            if str(error).startswith("DataLoader timed out"):
                if give_up():
                    raise StoppedWaiting from None
                continue
            explain(error)
            raise
        if isinstance(message, UserError):
            raise message
        yield message


def _end_with(parent: int, worker: int) -> None:
    """End this process when the main one has ended, however it did. torch's own watch lets it wait
    for ever to write what nobody reads. Requests to stop are the main process's to answer, also
    where a launcher sends SIGTERM to a whole process group; from the main process it ends this
    one."""
    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)

    def obey() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
            pass
        os._exit(0)

    if hasattr(signal, "sigwaitinfo"):  # not on a Mac
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # threads begun later, too
        threading.Thread(target=obey, daemon=True, name="obey").start()

    def watch() -> None:
        try:
            ended = select.poll()  # select() knows no descriptor above 1,023, and ranks have more
            ended.register(os.pidfd_open(parent), select.POLLIN)
            ended.poll()
        except ProcessLookupError:
            pass
        except (AttributeError, OSError):  # no Linux, or one that forbids it
            multiprocessing.parent_process().join()  # type: ignore[union-attr]
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="watch").start()


def explain(error: RuntimeError) -> None:
    """Raise an error that says more, where a loader's process was killed; torch raises its own at
    any point of the main process."""
    found = re.search(r"DataLoader worker \(pid\(?s?\)? ([\d, ]+)\) (.*)", str(error))
    if found:
        raise RuntimeError(
            f"data loader process {found[1]} {found[2].strip().rstrip('.')}. If nobody killed it, "
            "the machine was probably short of memory: use fewer data.workers. The same command "
            "continues the run"
        ) from error


def _as_is(rows: Any) -> Any:
    return rows


class _Told(IterableDataset):
    """A source that hands the user's mistakes over as they are; torch would wrap their message in
    its worker's traceback."""

    def __init__(self, source: _LaneRows) -> None:
        self._source = source

    def __iter__(self) -> Iterator[list[Row] | UserError]:
        try:
            yield from self._source
        except UserError as error:
            yield error


class _LaneRows(IterableDataset):
    """The rows of one worker's lanes, in the run's order, several at a time."""

    def __init__(
        self,
        recipe: Recipe,
        span: Span,
        sources: Sources,
        rank: int,
        world_size: int,
        next_row: int,
        worker: int,
        workers: int,
        states: dict[int, LaneState],
        together: int,
    ) -> None:
        self._recipe = recipe
        self._span = span
        self._sources = sources
        self._rank = rank
        self._world_size = world_size
        self._next_row = next_row
        self._worker = worker
        self._workers = workers
        self._states = dict(states)
        self._together = together

    def __iter__(self) -> Iterator[list[Row]]:
        rows = self._rows()
        while True:
            yield list(islice(rows, self._together))

    def _rows(self) -> Iterator[Row]:
        recipe, sources, data = self._recipe, self._sources, self._recipe.data
        span = self._span
        setting = LaneSetting.of(
            recipe.seed, data, span.phase, span.first_row, sources.streams, sources.tokenizer
        )
        sources.open_shards.limit = max(1, data.shards_open_per_rank // self._workers)
        own = len(range(self._worker, data.lanes // self._world_size, self._workers))
        for dataset in sources.streams.values():
            dataset.shards_open = own * 2 * data.shuffle_shards
        lanes: dict[int, Lane] = {}
        number = _first_row(self._next_row, self._rank, self._world_size)
        while True:
            lane = number % data.lanes
            if lane // self._world_size % self._workers == self._worker:
                if lane not in lanes:
                    lanes[lane] = Lane(lane, setting, self._states.pop(lane, None))
                yield lanes[lane].next_row()
            number += self._world_size
