"""Where a process stands among the ranks of a run, and how ranks and nodes are named.

In: the environment that a launcher sets. Out: a `Place`, which travels as JSON; names for messages.
The other modules of `tools/doctor/` call this.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

NAMED = 8
"""Ranks or nodes that a message names; of more it gives the number."""


@dataclass(frozen=True)
class Place:
    """One rank, its node and its place on it."""

    rank: int = 0
    node: int = 0
    local_rank: int = 0
    ranks_per_node: int = 1
    world_size: int = 1
    host: str = ""
    """Empty for a rank that nothing is known of."""

    @property
    def leader(self) -> bool:
        """Whether it speaks for its node."""
        return self.local_rank == 0

    @property
    def nodes(self) -> int:
        """Nodes of the run, if all have as many ranks as this one."""
        return -(-self.world_size // self.ranks_per_node)

    @property
    def node_name(self) -> str:
        """Number and host of the node."""
        return f"node {self.node} ({self.host})" if self.host else f"node {self.node}"


def find_place() -> Place:
    """Return this process's place from the environment, as `adopt_launcher` completes it; without
    a launcher it is the only rank."""

    def number(name: str, default: int) -> int:
        return int(os.environ.get(name, default))

    rank, world_size = number("RANK", 0), number("WORLD_SIZE", 1)
    per_node = number("LOCAL_WORLD_SIZE", 1)
    return Place(
        rank,
        number("NODE_RANK", rank // per_node),
        number("LOCAL_RANK", rank % per_node),
        per_node,
        world_size,
        socket.gethostname(),
    )


def is_even(places: Sequence[Place]) -> bool:
    """Return whether all nodes run as many ranks, numbered node by node."""
    each = places[0].ranks_per_node
    return all(
        place.ranks_per_node == each and place.rank == place.node * each + place.local_rank
        for place in places
    )


def name_places(places: Iterable[Place]) -> str:
    """Return the names of nodes all of whose ranks are given, and of the ranks of other nodes."""
    by_node: dict[int, list[Place]] = {}
    for place in sorted(places, key=lambda place: place.rank):
        by_node.setdefault(place.node, []).append(place)
    names = []
    for group in by_node.values():
        first = next((place for place in group if place.host), group[0])
        if len(group) == first.ranks_per_node and len(group) < first.world_size:
            names.append(first.node_name)
        else:
            names += [f"rank {place.rank} on {first.node_name}" for place in group]
    if len(names) > NAMED:
        names = [*names[:NAMED], f"{len(names) - NAMED} more"]
    return ", ".join(names)
