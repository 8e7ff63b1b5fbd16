"""How fast the ranks of a run exchange data: all together, within each node, and node by node.

Enters: a store that all ranks are connected to. Leaves: each rank's `Network`, which
`network.py` judges together. Values are checked on arrival: a link that changes bits is
worse than a slow one. Every step has a deadline of its own, and a rank whose step does not end says
which one it was.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor

from restomod.tools.doctor.place import Place
from restomod.tools.doctor.probe import rank_device, within

SIZES = {"cuda": (8 * 2**20, 256 * 2**20), "cpu": (2**20, 16 * 2**20)}
"""Bytes that are reduced over all ranks."""
PAIR_BYTES = {"cuda": 64 * 2**20, "cpu": 4 * 2**20}
"""Bytes that two ranks send each other."""
REPEATS = 3
ROUNDS = 16
"""Most partners that a node exchanges data with: a slow node is slow with each of them."""
PATIENCE = 4
"""The process group's timeout in ours: NCCL ends the process on its own, and shall not before we
have told what we waited for."""


@dataclass
class Network:
    """Bandwidths as one rank has measured them, in bytes/s."""

    all_reduce: dict[str, float] = field(default_factory=dict)
    """Bus bandwidth over all ranks, by bytes reduced."""
    in_node: float = 0.0
    """Bus bandwidth over the ranks of the node; 0 where it has one."""
    pairs: dict[str, float] = field(default_factory=dict)
    """With the rank of another node in the same place, in each direction, by that rank."""
    problem: str = ""
    stuck: bool = False
    """Whether a step did not end."""


def bus_bandwidth(size: int, ranks: int, seconds: float) -> float:
    """Return what each rank's link carries in each direction, in bytes/s, while a ring reduces
    `size` bytes over `ranks` in so many seconds: 2 (n - 1) / n of them."""
    return 2 * (ranks - 1) / ranks * size / seconds


def pairings(nodes: int, most: int = ROUNDS) -> list[list[tuple[int, int]]]:
    """Return rounds in each of which every node has one partner (one rests if their number is odd):
    a round robin, of which at most `most` rounds are taken, evenly spread."""
    count = nodes + nodes % 2
    rounds = []
    for turn in range(count - 1):
        circle = [0, *((n + turn) % (count - 1) + 1 for n in range(count - 1))]
        met = [(circle[n], circle[-1 - n]) for n in range(count // 2)]
        rounds.append([(min(pair), max(pair)) for pair in met if max(pair) < nodes])
    if len(rounds) <= most:
        return rounds
    return [rounds[n * len(rounds) // most] for n in range(most)]


def measure_network(
    place: Place, store: dist.Store, device: str, timeout_s: float, even: bool
) -> Network:
    """Form a process group over `store` and measure; all ranks call it at about the same time.
    Where nodes do not run `even` numbers of ranks, only all ranks together.

    What goes wrong is told in the result. The group stays: leaving it could hang as well.
    """
    network = Network()
    where = rank_device(device, place)
    doing = ""

    def step(name: str, action: Callable[[], float]) -> float:
        nonlocal doing
        doing = name

        def run() -> float:
            if device == "cuda":
                torch.cuda.set_device(where)  # each thread has its own
            return action()

        return within(timeout_s, run)

    def form() -> float:
        dist.init_process_group(
            "nccl" if device == "cuda" else "gloo",
            store=dist.PrefixStore("doctor/group", store),
            rank=place.rank,
            world_size=place.world_size,
            timeout=timedelta(seconds=PATIENCE * timeout_s),
        )
        return _all_reduce(where, SIZES[device][0], None)

    try:
        step("forming the process group", form)
        for size in SIZES[device]:
            network.all_reduce[str(size)] = step(
                "all-reduce over all ranks", partial(_all_reduce, where, size, None)
            )
        if even and place.nodes > 1:
            if place.ranks_per_node > 1:
                network.in_node = step(
                    "all-reduce within the node", partial(_in_node, place, where, device)
                )
            for partner in _partners(place):
                network.pairs[str(partner)] = step(
                    f"exchange with rank {partner}",
                    partial(_exchange, where, PAIR_BYTES[device], place.rank, partner),
                )
    except TimeoutError:
        network.stuck = True
        network.problem = f"{doing} did not end within {timeout_s:g} s"
    except Exception as error:  # torch's, gloo's and NCCL's have no common class
        network.problem = f"{doing}: {error}"
    return network


def _partners(place: Place) -> list[int]:
    """Return the ranks that this one exchanges data with, in order."""
    partners = []
    for pairs in pairings(place.nodes):
        for pair in pairs:
            if place.node in pair:
                other = pair[0] + pair[1] - place.node
                partners.append(place.rank + (other - place.node) * place.ranks_per_node)
    return partners


def _in_node(place: Place, where: torch.device, device: str) -> float:
    first = place.rank - place.local_rank
    ranks = list(range(first, first + place.ranks_per_node))
    group = dist.new_group(ranks, use_local_synchronization=True)
    return _all_reduce(where, SIZES[device][-1], group)


def _all_reduce(where: torch.device, size: int, group: dist.ProcessGroup | None) -> float:
    ranks = dist.get_world_size(group)
    values = torch.empty(size // 4, device=where)

    def reduce() -> None:
        dist.all_reduce(values, group=group)

    seconds = _fastest(where, lambda: values.fill_(1), reduce)
    _expect(values, ranks, "all-reduce")
    return bus_bandwidth(size, ranks, seconds)


def _exchange(where: torch.device, size: int, rank: int, partner: int) -> float:
    outgoing = torch.full((size // 4,), float(rank), device=where)
    incoming = torch.empty_like(outgoing)

    def swap() -> None:
        operations = [
            dist.P2POp(dist.isend, outgoing, partner),
            dist.P2POp(dist.irecv, incoming, partner),
        ]
        for work in dist.batch_isend_irecv(operations):
            work.wait()

    seconds = _fastest(where, lambda: incoming.zero_(), swap)
    _expect(incoming, partner, f"what rank {partner} sent")
    return size / seconds


def _fastest(
    where: torch.device, prepare: Callable[[], Tensor], action: Callable[[], None]
) -> float:
    """Return the seconds of the fastest of some repeats, the first of which only connects."""
    best = float("inf")
    for n in range(1 + REPEATS):
        prepare()
        _wait(where)
        started = time.perf_counter()
        action()
        _wait(where)
        if n:
            best = min(best, time.perf_counter() - started)
    return best


def _wait(where: torch.device) -> None:
    if where.type == "cuda":
        torch.cuda.synchronize(where)


def _expect(values: Tensor, value: float, what: str) -> None:
    wrong = int((values != value).sum())
    if wrong:
        raise RuntimeError(f"{what} arrived changed, in {wrong} of {values.numel()} values")
