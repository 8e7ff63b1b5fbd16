"""How many shards a recipe's order keeps open, and how much cache they take.

A lane draws from every stream, and a block of a stream lies in `shuffle_shards` to twice as many
shards; while it is read, those of the next block are fetched. `restomod plan` prints the figures,
and a recipe whose limits are below them is refused.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from restomod.config import DataConfig, Recipe
from restomod.data.dataset import Dataset
from restomod.data.shards import ShardedDataset

NODE_RANKS = 8
"""Ranks of a node, where the launcher does not say."""


@dataclass
class WorkingSet:
    """What the largest rank and its node need at once."""

    open_shards: int
    """Shards that a rank has open: all are needed before the first rows are out."""
    cached_bytes: int
    """Unpacked size of the shards in a node's cache that are open or fetched ahead; 0 where all
    data is local and raw."""

    def problems(self, data: DataConfig) -> list[str]:
        """Return a message for each limit of the recipe that is too low."""
        found = []
        if self.open_shards > data.shards_open_per_rank:
            found.append(
                f"data.shards_open_per_rank: {data.shards_open_per_rank} are fewer than the "
                f"{self.open_shards} shards that a rank's lanes draw from at once; raise it, or "
                "use more ranks, or, for a new run, fewer lanes or a lower data.shuffle_shards"
            )
        if self.cached_bytes > data.cache_limit_gb * 1e9:
            found.append(
                f"data.cache_limit_gb: {data.cache_limit_gb:g} GB do not hold the "
                f"{self.cached_bytes / 1e9:.3g} GB of shards that a node's lanes need at once; "
                "raise it, or, for a new run, use fewer lanes or a lower data.shuffle_shards"
            )
        return found


def working_set(recipe: Recipe, streams: Mapping[str, Dataset], world_size: int) -> WorkingSet:
    """Return what a rank and a node need at once, over all phases."""
    data = recipe.data
    lanes = -(-data.lanes // world_size)
    node_ranks = int(os.environ.get("LOCAL_WORLD_SIZE", min(world_size, NODE_RANKS)))
    processes = max(1, min(data.workers, lanes))
    most = WorkingSet(0, 0)
    for phase in recipe.trained_phases:
        drawn = [streams[name] for name, share in phase.mixture.items() if share > 0]
        drawn = [dataset for dataset in drawn if isinstance(dataset, ShardedDataset)]
        shards = [len(dataset.shard_documents) for dataset in drawn]
        opened = sum(min(lanes * 2 * data.shuffle_shards, processes * count) for count in shards)
        cached = sum(
            min(lanes * node_ranks * 3 * data.shuffle_shards, count)
            * int(dataset.shard_bytes.max())
            for dataset, count in zip(drawn, shards, strict=True)
            if dataset.cached
        )
        most = WorkingSet(max(most.open_shards, opened), max(most.cached_bytes, cached))
    return most
