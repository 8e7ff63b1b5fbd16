"""What measurements between ranks mean: pure functions from values to verdicts.

Enters: who came, and the `Network` of each rank by number, with the `Facts` that say where it is.
Leaves: a `Check` each. `tools/doctor/doctor.py` calls them.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from restomod.tools.doctor.bandwidth import Network
from restomod.tools.doctor.place import Place, name_places
from restomod.tools.doctor.probe import Facts
from restomod.tools.doctor.verdict import (
    FAILED,
    HALF,
    OK,
    WARNING,
    Check,
    by_node,
    by_value,
    gigabytes,
    names,
    node_names,
    outliers,
    some,
)

SLOW_LINK = 0.3
"""Links vary more than devices do."""
SKEW_WARNING_S, SKEW_FAILED_S = 1.0, 600.0
"""Logs of nodes cannot be put in order from a second on; object stores refuse requests of clocks
that are 15 minutes off."""


def check_ranks(here: Mapping[int, Place], answered: Sequence[int], world: Place) -> Check:
    """Judge who came at all, and who of them gave its measurements; `world` is rank 0's place."""
    absent = [expected_place(n, here, world) for n in range(world.world_size) if n not in here]
    silent = [place for n, place in sorted(here.items()) if n not in answered]
    hosts = sorted({place.host for place in here.values()})
    measured = f"{len(here)} of {world.world_size} ranks, on {some(hosts)}"
    if not absent and not silent:
        return Check("ranks", OK, measured)
    if absent:
        measured += f"; never came: {name_places(absent)}"
    if silent:
        measured += f"; came and fell silent: {name_places(silent)}"
    return Check(
        "ranks",
        FAILED,
        measured,
        "look at these nodes first: were they started, with the same MASTER_ADDR and number of "
        "nodes, and do they reach rank 0's? What needs all ranks was not checked",
    )


def expected_place(rank: int, here: Mapping[int, Place], world: Place) -> Place:
    """Return where a rank that never came should be; its host is known if another rank of the node
    came."""
    node = rank // world.ranks_per_node
    host = next((place.host for place in here.values() if place.node == node), "")
    local = rank % world.ranks_per_node
    return Place(rank, node, local, world.ranks_per_node, world.world_size, host)


def check_clocks(offsets: Mapping[int, tuple[float, float]], leaders: Sequence[Facts]) -> Check:
    """Judge the clocks of the nodes against rank 0's; `offsets` by leader: (seconds ahead of rank
    0, uncertainty in seconds)."""
    found = [(fact, *offsets[f]) for fact in leaders if (f := fact.place.rank) in offsets]
    lost = [fact for fact in leaders if fact.place.rank not in offsets]
    if lost:
        return Check("clocks", FAILED, f"no answer from {node_names(lost)}", "look at that node")
    worst = max(found, key=lambda entry: abs(entry[1]))
    measured = f"at most {abs(worst[1]) * 1e3:.1f} ms apart (+- {worst[2] * 1e3:.1f} ms)"
    off = [entry for entry in found if abs(entry[1]) - entry[2] > SKEW_WARNING_S]
    if off:
        failed = any(abs(offset) > SKEW_FAILED_S for _, offset, _ in off)
        named = ", ".join(f"{fact.place.node_name}: {offset:+.1f} s" for fact, offset, _ in off)
        return Check(
            "clocks",
            FAILED if failed else WARNING,
            f"off by more than {SKEW_WARNING_S:g} s: {named}",
            "start chrony or ntpd there; object stores refuse requests from clocks that are "
            "15 minutes off",
        )
    return Check("clocks", OK, measured)


def check_shared(sees: Mapping[int, bool], leaders: Sequence[Facts], store: str) -> Check | None:
    """Judge whether all nodes have the run folder that rank 0 has, or a store instead; `sees` is by
    rank. None for a single node."""
    if len(leaders) < 2:
        return None
    blind = [fact for fact in leaders if not sees.get(fact.place.rank, True)]
    if not blind:
        return Check("shared run folder", OK, "all nodes see the one of rank 0")
    measured = f"not there on {node_names(blind)}"
    if store:
        return Check("shared run folder", OK, f"{measured}; checkpoints go to {store}")
    return Check(
        "shared run folder",
        FAILED,
        measured,
        "put runs_dir on a file system that all nodes share, or set store to an object store: "
        "checkpoints are written by all nodes and read by all",
    )


def check_network(networks: Mapping[int, Network], facts: Sequence[Facts]) -> Check | None:
    """Judge whether the ranks reached each other; None if they did."""
    lost = [fact for fact in facts if fact.place.rank not in networks]
    broken = [f for f in facts if (n := networks.get(f.place.rank)) and n.problem]
    if not lost and not broken:
        return None
    parts = []
    if lost:
        parts.append(f"fell silent: {names(lost)}")
    # Those that have failed at a step without waiting for it are nearer to the cause.
    first = [fact for fact in broken if not networks[fact.place.rank].stuck] or broken
    if first:
        parts.append(by_value(first, lambda fact: networks[fact.place.rank].problem))
    return Check(
        "network",
        FAILED,
        "; ".join(parts),
        "run with NCCL_DEBUG=INFO; check that NCCL_SOCKET_IFNAME (or GLOO_SOCKET_IFNAME) names the "
        "network that joins the nodes, and firewalls between them",
    )


def check_all_reduce(networks: Mapping[int, Network], gradients: float) -> Check:
    """State the bus bandwidth over all ranks, and what reducing `gradients` bytes takes with it."""
    sizes = list(networks[0].all_reduce)
    slowest = {s: min(network.all_reduce[s] for network in networks.values()) for s in sizes}
    measured = ", ".join(
        f"{int(size) / 2**20:.0f} MiB at {speed / 1e9:.2f} GB/s" for size, speed in slowest.items()
    )
    measured += " of bus bandwidth"
    if gradients:
        n = len(networks)
        seconds = 2 * (n - 1) / n * gradients / slowest[sizes[-1]]
        measured += f"; {gigabytes(gradients)} of gradients take {seconds:.3g} s"
    return Check("all-reduce", OK, measured)


def check_in_node(networks: Mapping[int, Network], leaders: Sequence[Facts]) -> Check | None:
    """Judge the bandwidth within each node against the others'."""
    speeds = [networks[fact.place.rank].in_node for fact in leaders]
    if not any(speeds):
        return None

    def speed(fact: Facts) -> str:
        return _gb(networks[fact.place.rank].in_node)

    middle = statistics.median(speeds)
    measured = f"median {_gb(middle)}, slowest {_gb(min(speeds))} of bus bandwidth"
    slow = [leaders[n] for n in outliers(speeds, SLOW_LINK)]
    if slow:
        return Check(
            "links in a node",
            FAILED if outliers(speeds, HALF) and leaders[0].device == "cuda" else WARNING,
            f"{measured}; slow: {by_node(slow, speed)}",
            "look at its links (nvidia-smi nvlink --status, nvidia-smi topo -m)",
        )
    return Check("links in a node", OK, measured)


def check_pairs(networks: Mapping[int, Network], facts: Sequence[Facts]) -> Check | None:
    """Judge the links between nodes: a rank is slow if its best partner is, a pair if both are
    fine with others. None for a single node."""
    by_rank = {fact.place.rank: fact for fact in facts}
    pairs: dict[tuple[int, int], float] = {}
    for rank, network in networks.items():
        for partner, speed in network.pairs.items():
            pair = (min(rank, int(partner)), max(rank, int(partner)))
            pairs[pair] = min(speed, pairs.get(pair, speed))
    if not pairs:
        return None
    best: dict[int, float] = {}
    for pair, speed in pairs.items():
        for rank in pair:
            best[rank] = max(speed, best.get(rank, 0.0))
    ranks = sorted(best)

    def name(pair: tuple[int, int]) -> str:
        places = [by_rank[rank].place for rank in pair]
        ends = " and ".join(f"{place.node_name} rank {place.rank}" for place in places)
        return f"{ends}: {_gb(pairs[pair])}"

    slowest = min(pairs, key=lambda pair: pairs[pair])
    measured = f"median {_gb(statistics.median(pairs.values()))} each way, slowest {name(slowest)}"
    below_half = bool(outliers(list(best.values()), HALF)) and facts[0].device == "cuda"
    slow = [by_rank[ranks[n]] for n in outliers([best[rank] for rank in ranks], SLOW_LINK)]
    if slow:
        return Check(
            "links between nodes",
            FAILED if below_half else WARNING,
            f"{measured}; slow with every partner: "
            f"{by_value(slow, lambda fact: _gb(best[fact.place.rank]) + ' at best')}",
            "look at the network adapters there (ibstat, ethtool), or leave the nodes out",
        )
    order = list(pairs)
    between = [order[n] for n in outliers([pairs[pair] for pair in order], SLOW_LINK)]
    if between:
        return Check(
            "links between nodes",
            WARNING,
            f"{measured}; slow pairs: {some([name(pair) for pair in between])}",
            "their ends are fast with others: look at the switches between them",
        )
    return Check("links between nodes", OK, measured)


def _gb(value: float) -> str:
    return f"{value / 1e9:.2f} GB/s"
