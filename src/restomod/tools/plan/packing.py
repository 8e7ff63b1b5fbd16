"""How full a phase's rows will be: the real packer on lengths drawn from the data's.

In: a phase and its opened streams. Out: the share of slots that hold tokens, and the lengths of
chunks, of which `cost.py` counts FLOPs. Reads no document where lengths are recorded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from restomod.config import PhaseConfig, Recipe
from restomod.data.dataset import Dataset
from restomod.data.lengths import document_lengths
from restomod.data.mixture import Odds, stream_draws
from restomod.data.packer import Packer
from restomod.data.random import keyed_generator
from restomod.data.rows import CLOSES, OPENS, SpecialTokens

PACKED_TOKENS, PACKED_CHUNKS = 1 << 21, 20_000
"""Packing ends after so many tokens or mean chunks, whichever is less."""
ROWS_MIN = 8
LENGTHS = 4096
"""Lengths drawn of each stream, which the lane's documents take in turn."""


@dataclass(frozen=True)
class Packing:
    """What rows of a phase hold."""

    efficiency: float
    """Share of slots that are not padding."""
    chunks: list[int]
    """Slots of each chunk that was packed, [CLS] and [SEP] included."""
    special: int
    """Of these slots, [CLS] and [SEP]."""
    rows: int
    source: str
    """Where the lengths are from, in words."""

    @property
    def mean_chunk(self) -> float:
        return sum(self.chunks) / len(self.chunks)


def full_chunks(phase: PhaseConfig, special: SpecialTokens) -> Packing:
    """Return what rows of whole chunks would be, for data whose lengths are not known."""
    return Packing(
        1.0, [phase.sequence_length], special.reserved, 0, "chunks taken as full: no lengths known"
    )


def expected_packing(
    recipe: Recipe, phase: PhaseConfig, streams: Mapping[str, Dataset]
) -> Packing | None:
    """Pack rows of a phase as a lane does; None where the lengths of a stream cannot be told."""
    data = recipe.data
    names = sorted(name for name, share in phase.mixture.items() if share > 0)
    lengths: list[np.ndarray] = []
    sources = set()
    for name in names:
        generator = keyed_generator(recipe.seed, "plan", phase.name, name)
        found = document_lengths(streams[name], LENGTHS, generator)
        if found is None:
            return None
        lengths.append(found.values[generator.permutation(len(found.values))])
        sources.add(found.source)
    if not any((values >= max(1, data.skip_shorter_than)).any() for values in lengths):
        return None
    none = np.zeros(len(names))
    weights = Odds(phase, data, dict(streams), names).weights(none, none)
    lane = _Lane(recipe, phase, lengths, weights)
    return lane.pack("; ".join(sorted(sources)))


class _Lane:
    """Draws, cuts and packs as `data/lanes.py` does, lengths alone."""

    def __init__(
        self, recipe: Recipe, phase: PhaseConfig, lengths: list[np.ndarray], weights: list[float]
    ) -> None:
        self._recipe, self._phase = recipe, phase
        self._lengths, self._weights = lengths, weights
        self._special = SpecialTokens(recipe.data.special_tokens)
        self._packer: Packer[tuple[int, int]] = Packer()
        self._drawn = [0] * len(lengths)
        self._draws: list[int] = []
        self._age = 0

    def pack(self, source: str) -> Packing:
        """Pack rows until there are enough to tell."""
        phase, data = self._phase, self._recipe.data
        row_chunks = phase.row_tokens // data.tokens_per_document_min
        filled, special, rows = 0, 0, 0
        chunks: list[int] = []
        while rows < ROWS_MIN or (filled < PACKED_TOKENS and len(chunks) < PACKED_CHUNKS):
            while self._packer.tokens < data.buffer_rows * phase.row_tokens:
                self._draw_document()
            generator = keyed_generator(self._recipe.seed, "row", 0, rows)
            for slots, ends in self._packer.row(phase.row_tokens, row_chunks, generator):
                chunks.append(slots)
                special += self._special.count(ends)
                filled += slots
            rows += 1
        return Packing(filled / (rows * phase.row_tokens), chunks, special, rows, source)

    def _draw_document(self) -> None:
        if not self._draws:
            seed, first = self._recipe.seed, sum(self._drawn)
            self._draws = stream_draws(seed, 0, first, 1024, self._weights).tolist()[::-1]
        stream = self._draws.pop()
        values = self._lengths[stream]
        length = int(values[self._drawn[stream] % len(values)])
        self._drawn[stream] += 1
        if length < max(1, self._recipe.data.skip_shorter_than):
            return
        content = self._phase.sequence_length - self._special.reserved
        for start in range(0, length, content):
            ordinary = min(content, length - start)
            ends = OPENS if start == 0 else 0
            ends |= CLOSES if start + ordinary == length else 0
            slots = ordinary + self._special.count(ends)
            self._packer.add(self._age, slots, (slots, ends))
            self._age += 1
