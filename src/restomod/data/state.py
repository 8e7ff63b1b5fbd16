"""The state of a lane: everything that determines the rows to come, and counters that prove them.

A lane in a worker process tells what each row changed (`LaneDelta`), and the main process keeps
each lane's state by applying the deltas of the rows that were delivered (`LaneState`): what workers
prepare ahead is in no state, and the state's size costs nothing until a checkpoint asks for it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

COUNTERS = (
    "documents",
    "empty",
    "short",
    "damaged",
    "chunked",
    "drawn_tokens",
    "skipped_tokens",
    "delivered_tokens",
    "delivered_chunks",
)
"""Per stream: documents taken from the cursor; those of them that were left out because they are
empty, shorter than skip_shorter_than, or in a skipped shard; those cut into several chunks; tokens
of all that could be read, of those left out, and of those delivered; chunks delivered. Special
tokens are not counted."""


class LaneDelta(NamedTuple):
    """What one row changed."""

    numbers: tuple[int, int, int, int, int]
    """Rows, masked tokens, real tokens, stream draws and chunks of the lane so far."""
    weights: list[float]
    """Odds of each stream in the present block of draws."""
    places: list[tuple[int, int]]
    """Epoch and position of each stream's next document."""
    counters: np.ndarray
    """[streams, COUNTERS] int64."""
    pending: list[int]
    """Fields of the rest of the document being cut, empty if there is none."""
    added: list[tuple[int, ...]]
    """Fields of the chunks that were cut."""
    taken: list[int]
    """Ages of the chunks that the row holds."""
    skipped: list[tuple[int, int, int, int]]
    """(stream, shard, epoch, position) of shards that proved damaged and are left out from there
    on."""


class LaneState:
    """A lane's state after a row."""

    def __init__(self, names: list[str]) -> None:
        self.names = names
        """Streams, in the order of every array by stream."""
        self.rows = self.masked_tokens = self.real_tokens = self.draws = self.chunks = 0
        self.weights: list[float] = []
        self.places = [(0, 0)] * len(names)
        self.counters = np.zeros((len(names), len(COUNTERS)), np.int64)
        self.pending: list[int] = []
        self.waiting: dict[int, tuple[int, ...]] = {}
        """Fields of the waiting chunks by age, the oldest first."""
        self.skipped: list[tuple[int, int, int, int]] = []

    def apply(self, delta: LaneDelta) -> None:
        """Step past a row."""
        self.rows, self.masked_tokens, self.real_tokens, self.draws, self.chunks = delta.numbers
        self.weights, self.places, self.counters = delta.weights, delta.places, delta.counters
        self.pending = delta.pending
        for fields in delta.added:
            self.waiting[fields[0]] = fields
        for age in delta.taken:
            del self.waiting[age]
        self.skipped += delta.skipped

    def counter(self, name: str) -> np.ndarray:
        """Return one of COUNTERS, [streams] int64."""
        return self.counters[:, COUNTERS.index(name)]

    def plain(self) -> dict[str, Any]:
        """Return the state in numbers, lists and dicts, for a checkpoint."""
        return {
            "rows": self.rows,
            "masked_tokens": self.masked_tokens,
            "real_tokens": self.real_tokens,
            "draws": self.draws,
            "chunks": self.chunks,
            "weights": list(self.weights),
            "names": list(self.names),
            "streams": {
                name: {
                    "epoch": epoch,
                    "position": position,
                    **dict(zip(COUNTERS, counters, strict=True)),
                }
                for name, (epoch, position), counters in zip(
                    self.names, self.places, self.counters.tolist(), strict=True
                )
            },
            "pending": list(self.pending),
            "waiting": [list(fields) for fields in self.waiting.values()],
            "skipped": [list(entry) for entry in self.skipped],
        }

    @classmethod
    def from_plain(cls, plain: dict[str, Any], names: list[str]) -> LaneState:
        """Read what `plain` returned, for streams that may have grown since.

        Raises ValueError naming a stream that is gone while chunks of it wait.
        """
        state = cls(names)
        number = {n: names.index(name) for n, name in enumerate(plain["names"]) if name in names}
        state.rows, state.masked_tokens = plain["rows"], plain["masked_tokens"]
        state.real_tokens = plain["real_tokens"]
        state.draws, state.chunks = plain["draws"], plain["chunks"]
        # A stream that a later phase is to read changes nothing of the draws that have begun; they
        # are made anew where a stream is gone that they were to draw.
        odds = {n: w for n, w in zip(plain["names"], plain["weights"], strict=False) if w > 0}
        if odds.keys() <= set(names):
            state.weights = [odds.get(name, 0.0) for name in names] if odds else []
        for name, stream in plain["streams"].items():
            if name in names:
                n = names.index(name)
                state.places[n] = stream["epoch"], stream["position"]
                state.counters[n] = [stream[counter] for counter in COUNTERS]

        def renamed(fields: list[int]) -> tuple[int, ...]:
            if fields[1] not in number:
                raise ValueError(
                    f"chunks of stream {plain['names'][fields[1]]} wait to be delivered, but no "
                    "phase names it any more; name it in a mixture, with 0 if it is to end"
                )
            return (fields[0], number[fields[1]], *fields[2:])

        state.pending = list(renamed(plain["pending"])) if plain["pending"] else []
        state.waiting = {fields[0]: renamed(fields) for fields in plain["waiting"]}
        state.skipped = [(number[s], *rest) for s, *rest in plain["skipped"] if s in number]
        return state
