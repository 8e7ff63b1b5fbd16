"""This rank's batches of a phase, from its lanes in worker processes.

Row n of the run comes from lane n mod lanes, and lane l is run by rank l mod world size. A rank's
lanes are dealt out to its workers; the main process takes each row from the worker whose turn it
is, so that rows arrive in order whatever the workers' speed. The loader's state is the state of its
lanes after the last row that was delivered: what workers have prepared ahead is not part of it.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Generator
from torch.utils.data import DataLoader, IterableDataset

from restomod.config import PhaseConfig, Recipe
from restomod.data.batch import Batch, collate
from restomod.data.lanes import Lane, Row, RowBuilder
from restomod.data.order import StreamOrder
from restomod.data.sources import Sources

PREFETCHED_ROWS = 16
"""Rows that each worker prepares ahead."""


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

    documents: np.ndarray
    """[streams] int64, documents taken of each stream."""
    real_tokens: int = 0
    masked_tokens: int = 0


class Loader:
    """Endless iterator over this rank's batches, each a list of micro-batches.

    `state` is what `state_dict` returned, merged over the ranks of whatever world size wrote it.
    """

    def __init__(
        self,
        recipe: Recipe,
        phase: PhaseConfig,
        sources: Sources,
        rank: int = 0,
        world_size: int = 1,
        state: dict[str, Any] | None = None,
        pin_memory: bool = False,
    ) -> None:
        self._recipe = recipe
        self._phase = phase
        self._rank = rank
        self._world_size = world_size
        self._pin_memory = pin_memory
        self._parts = (recipe, phase, sources)
        self.streams = sorted(name for name, share in phase.mixture.items() if share > 0)
        self.facts = BatchFacts()
        """Facts of the batch last delivered."""
        self._rows = int(state["rows"]) if state else 0
        lanes = {int(lane): value for lane, value in state["lanes"].items()} if state else {}
        self._lane_states: dict[int, dict[str, Any]] = {
            lane: value for lane, value in lanes.items() if lane % world_size == rank
        }

    def __iter__(self) -> Iterator[list[Batch]]:
        phase = self._phase
        rows = self._in_order()
        for_rank = phase.batch_rows // self._world_size
        while True:
            started = time.perf_counter()
            batch = [next(rows) for _ in range(for_rank)]
            facts = BatchFacts(wait_s=time.perf_counter() - started)
            for row in batch:
                facts.add(row)
            micro_batches = [
                collate(
                    batch[n : n + phase.micro_batch_rows],
                    phase,
                    self._recipe.data,
                    self._pin_memory,
                )
                for n in range(0, for_rank, phase.micro_batch_rows)
            ]
            for row in batch:
                self._lane_states[row.lane] = row.lane_state
            self._rows += phase.batch_rows
            self.facts = facts
            yield micro_batches

    def state_dict(self) -> dict[str, Any]:
        """Return the run's row count and the states of this rank's lanes that have begun."""
        return {"rows": self._rows, "lanes": dict(self._lane_states)}

    def totals(self) -> Totals:
        """Return what this rank's lanes have delivered since the run began."""
        totals = Totals(np.zeros(len(self.streams), np.int64))
        for state in self._lane_states.values():
            streams = [state["streams"][name] for name in self.streams]
            totals.documents += [stream["documents"] for stream in streams]
            totals.real_tokens += sum(
                stream["delivered_tokens"] + 2 * stream["delivered_chunks"] for stream in streams
            )
            totals.masked_tokens += state["masked_tokens"]
        return totals

    def _in_order(self) -> Iterator[Row]:
        """Yield this rank's rows in the run's order, from its workers in turn."""
        local_lanes = self._recipe.data.lanes // self._world_size
        workers = min(self._recipe.data.workers, local_lanes)
        sources = [
            _LaneRows(
                self._parts,
                self._rank,
                self._world_size,
                self._rows,
                n,
                max(1, workers),
                self._lane_states,
            )
            for n in range(max(1, workers))
        ]
        iterators = [iter(_in_worker(source) if workers else source) for source in sources]
        number = self._rows + self._rank
        while True:
            local_lane = number % self._recipe.data.lanes // self._world_size
            row = next(iterators[local_lane % len(iterators)])
            assert row.number == number, (row.number, number)
            yield row
            number += self._world_size


def _in_worker(source: _LaneRows) -> Iterable[Row]:
    """Run a source in a process of its own; an exception there is raised here."""
    return DataLoader(
        source,
        batch_size=None,
        num_workers=1,
        prefetch_factor=PREFETCHED_ROWS,
        collate_fn=_as_is,
        generator=Generator(),  # the default would draw from torch's global one
    )


def _as_is(row: Any) -> Any:
    return row


class _LaneRows(IterableDataset):
    """The rows of one worker's lanes, in the run's order."""

    def __init__(
        self,
        parts: tuple[Recipe, PhaseConfig, Sources],
        rank: int,
        world_size: int,
        first_row: int,
        worker: int,
        workers: int,
        states: dict[int, dict[str, Any]],
    ) -> None:
        self._parts = parts
        self._rank = rank
        self._world_size = world_size
        self._first_row = first_row
        self._worker = worker
        self._workers = workers
        self._states = dict(states)

    def __iter__(self) -> Iterator[Row]:
        recipe, phase, sources = self._parts
        tokenizer, datasets = sources.tokenizer, sources.streams
        data = recipe.data
        builder = RowBuilder(phase, tokenizer)
        orders = {
            name: StreamOrder(recipe.seed, name, dataset.shard_documents, data)
            for name, dataset in datasets.items()
        }
        lanes: dict[int, Lane] = {}
        number = self._first_row + self._rank
        while True:
            lane = number % data.lanes
            if lane // self._world_size % self._workers == self._worker:
                if lane not in lanes:
                    state = self._states.pop(lane, None)
                    lanes[lane] = Lane(
                        lane, recipe.seed, data, phase, datasets, orders, builder, state
                    )
                yield lanes[lane].next_row()
            number += self._world_size
