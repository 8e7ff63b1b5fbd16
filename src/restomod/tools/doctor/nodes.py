"""What the measurements of single ranks and nodes mean: pure functions from values to verdicts.

Enters: the `Facts` of the ranks that answered, or of the nodes' leaders (`leaders`) for what only
one rank of each node measures. Leaves: a `Check` each. `tools/doctor/doctor.py` calls them.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Sequence

from restomod.gpus import peak_flops_of
from restomod.tools.doctor.probe import WRITTEN_BYTES, Facts, Folder
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
    outliers,
    problems,
    unlike_most,
)

SLOW = 0.15
"""A device this far below the median slows every step down by about as much."""
CHECKPOINT_S = 120.0
"""Time that writing a checkpoint may take."""
USED_BY_OTHERS = 0.1
"""Share of a GPU's memory that drivers and contexts take."""
SHARED_PER_RANK = 64 * 2**20
"""Bytes of shared memory for NCCL's buffers between two GPUs that do not reach each other
directly."""
OTHER_FILES = 256
"""Files, sockets and pipes that a process has open beside shards."""


def check_recipe(facts: Sequence[Facts]) -> Check | None:
    """Judge whether all ranks read the same recipe; None if there is none."""
    if bad := problems("recipe", facts, "give every node the same recipe files"):
        return bad
    if not any(fact.recipe_digest for fact in facts):
        return None
    common, different = unlike_most(facts, lambda fact: fact.recipe_digest)
    if different:
        return Check(
            "recipe",
            FAILED,
            f"another recipe on {names(different)}",
            "give every node the same recipe files and overrides",
        )
    return Check("recipe", OK, f"the same everywhere ({common})")


def check_devices(facts: Sequence[Facts]) -> Check:
    """Judge whether each rank has a device, all of the same kind and size."""
    if bad := problems("devices", facts, "mend the driver, or start fewer ranks per node"):
        return bad

    def kind(fact: Facts) -> str:
        return f"{fact.device_name}, {fact.memory_bytes / 2**30:.0f} GiB"

    taken = Counter((fact.place.node, fact.device_id) for fact in facts if fact.device_id)
    doubled = [fact for fact in facts if taken[fact.place.node, fact.device_id] > 1]
    if doubled:
        return Check(
            "devices",
            FAILED,
            f"several ranks have the same GPU: {names(doubled)}",
            "start one rank per GPU",
        )
    common, different = unlike_most(facts, kind)
    cuda = facts[0].device == "cuda"
    measured = f"{len(facts)} x {common}" if cuda else f"CPU: {common}"
    if different:
        return Check(
            "devices",
            WARNING,
            f"{measured}; others: {by_value(different, kind)}",
            "the slowest device sets the pace of all, and the smallest the micro-batch",
        )
    return Check("devices", OK, measured)


def check_versions(facts: Sequence[Facts]) -> Check:
    """Judge whether all ranks run the same software."""
    if bad := problems("versions", facts, "mend the installation there"):
        return bad
    wrong, harmless = [], True
    for package in facts[0].versions:

        def version(fact: Facts, package: str = package) -> str:
            return fact.versions.get(package, "absent")

        common, different = unlike_most(facts, version)
        if different:
            wrong.append(f"{package} is {common}, but {by_value(different, version)}")
            harmless &= package == "driver"
    if wrong:
        return Check(
            "versions",
            WARNING if harmless else FAILED,
            "; ".join(wrong),
            "install the same on all nodes, from the same image or lock file",
        )
    shown: tuple[str, ...] = (
        "torch",
        "CUDA of torch",
        "driver",
        "triton",
        "mosaicml",
        "mosaicml-streaming",
    )
    shown += ("flash-attn", "flash-attn-3", "restomod")
    found = {name: facts[0].versions.get(name, "absent") for name in shown}
    return Check("versions", OK, ", ".join(f"{k} {v}" for k, v in found.items() if v != "absent"))


def check_memory(facts: Sequence[Facts]) -> Check:
    """Judge whether each device's memory is free, and enough for a step as the plan estimates
    it."""
    facts = [fact for fact in facts if fact.device]
    need = max((fact.needs.step_memory for fact in facts), default=0.0)
    cuda = any(fact.device == "cuda" for fact in facts)

    def free(fact: Facts) -> float:
        return fact.memory_free_bytes / (1 if cuda else fact.place.ranks_per_node)

    def amount(fact: Facts) -> str:
        return gigabytes(free(fact))

    least = min(map(free, facts), default=0.0)
    measured = f"at least {gigabytes(least)} free per rank"
    if need:
        measured += f", a step needs about {gigabytes(need)}"
    short = [fact for fact in facts if free(fact) < need]
    if short:
        return Check(
            "memory",
            WARNING,
            f"{measured}; less than that: {by_value(short, amount)}",
            "use fewer micro_batch_rows, or compute.recompute_every; `restomod plan` prints "
            "where memory goes",
        )
    used = [f for f in facts if cuda and free(f) < (1 - USED_BY_OTHERS) * f.memory_bytes]
    if used:
        return Check(
            "memory",
            WARNING,
            f"{measured}; something uses the device already: {by_value(used, amount)} free",
            "end the processes that nvidia-smi shows there",
        )
    return Check("memory", OK, measured)


def check_matmul(facts: Sequence[Facts]) -> Check:
    """Judge the speed of matrix products against the median and the data sheet."""
    if bad := problems("matmul", facts, "the device or its driver is broken: leave the node out"):
        return bad
    facts = [fact for fact in facts if fact.matmul_flops]
    speeds = [fact.matmul_flops for fact in facts]
    middle = statistics.median(speeds) if speeds else 0.0
    measured = f"median {_flops(middle)}, slowest {_flops(min(speeds, default=0))}"
    cuda = any(fact.device == "cuda" for fact in facts)

    def speed(fact: Facts) -> str:
        return _flops(fact.matmul_flops)

    slow = [facts[n] for n in outliers(speeds, SLOW if cuda else HALF)]
    if slow:
        broken = cuda and outliers(speeds, HALF)
        return Check(
            "matmul",
            FAILED if broken else WARNING,
            f"{measured}; slow: {by_value(slow, speed)}",
            "look for throttling (nvidia-smi -q -d PERFORMANCE) or other processes there; "
            "leave the node out if it stays slow: all others wait for it",
        )
    name = facts[0].device_name if facts else ""
    peak = peak_flops_of(name) if cuda else 0.0
    if middle < HALF * peak:
        return Check(
            "matmul",
            WARNING,
            f"{measured}; the data sheet says {_flops(peak)}",
            "less than half of it: look at power limits and clocks (nvidia-smi -q -d CLOCK)",
        )
    return Check("matmul", OK, measured)


def check_folder(name: str, leaders: Sequence[Facts], place: Callable[[Facts], Folder]) -> Check:
    """Judge room and speed of the run folder or the cache folder on every node."""

    def room(fact: Facts) -> str:
        return gigabytes(place(fact).free_bytes)

    def speed(fact: Facts) -> str:
        return f"{place(fact).write_bytes_per_s / 1e6:.0f} MB/s"

    def why(fact: Facts) -> str:
        return fact.problems.get(name) or place(fact).problem

    path = place(leaders[0]).path
    broken = [fact for fact in leaders if why(fact)]
    if broken:
        return Check(
            name,
            FAILED,
            f"{path} cannot be written: {by_node(broken, why)}",
            f"choose another {_key(name)}, or make room or rights there",
        )
    speeds = [place(fact).write_bytes_per_s for fact in leaders]
    least = min(leaders, key=lambda fact: place(fact).free_bytes)
    measured = f"{path}: {room(least)} free, written at {min(speeds) / 1e6:.0f} MB/s" + (
        " at least" if len(leaders) > 1 else ""
    )

    def short_of(needed: Callable[[Facts], float]) -> list[Facts]:
        return [fact for fact in leaders if place(fact).free_bytes < needed(fact)]

    run = name == "run folder"
    needed = max(f.needs.checkpoint if run else f.needs.cache for f in leaders)
    wanted = max(
        (f.needs.checkpoints_kept + 1) * f.needs.checkpoint if run else f.needs.cache_all
        for f in leaders
    )
    what = "a checkpoint takes" if run else "shards in use at once take"
    if full := short_of(lambda fact: max(needed, WRITTEN_BYTES)):
        return Check(
            name,
            FAILED,
            f"{measured}; {what} {gigabytes(needed)}; full: {by_node(full, room)}",
            f"make room there, or choose another {_key(name)}",
        )
    if tight := short_of(lambda fact: wanted):
        return Check(
            name,
            WARNING,
            f"{measured}; {gigabytes(wanted)} are wanted; less: {by_node(tight, room)}",
            "use a lower checkpoint.keep, or make room"
            if run
            else "shards will be fetched again and again; make room",
        )
    slow = [leaders[n] for n in outliers(speeds, HALF)]
    if run:
        slow += [
            fact
            for fact in leaders
            if fact not in slow
            and fact.needs.checkpoint > CHECKPOINT_S * place(fact).write_bytes_per_s
        ]
    if slow:
        return Check(
            name,
            WARNING,
            f"{measured}; slow: {by_node(slow, speed)}",
            f"use a faster disk for {_key(name)}: training waits for it",
        )
    return Check(name, OK, measured)


def check_shared_memory(leaders: Sequence[Facts]) -> Check:
    """Judge /dev/shm. The loader's rows go through pipes; NCCL and locks are what needs it."""
    if bad := problems("shared memory", leaders, "mount /dev/shm", nodes=True):
        return bad

    def free(fact: Facts) -> str:
        return f"{fact.shm_free_bytes / 2**20:.0f} MiB"

    def needed(fact: Facts) -> int:
        ranks = fact.place.ranks_per_node
        return ranks * SHARED_PER_RANK if fact.device == "cuda" and ranks > 1 else 2**20

    least = min(leaders, key=lambda fact: fact.shm_free_bytes)
    measured = f"{free(least)} of /dev/shm free, {needed(least) / 2**20:.0f} MiB wanted"
    short = [fact for fact in leaders if fact.shm_free_bytes < needed(fact)]
    if short:
        return Check(
            "shared memory",
            WARNING,
            f"{measured}; less: {by_node(short, free)}",
            "start containers with --shm-size=1g or --ipc=host",
        )
    return Check("shared memory", OK, measured)


def check_open_files(facts: Sequence[Facts]) -> Check:
    """Judge the limit of open files against the shards that a rank keeps open."""
    needed = max(fact.needs.open_files for fact in facts) + OTHER_FILES
    allowed = max(fact.needs.open_files_allowed for fact in facts) + OTHER_FILES

    def limit(fact: Facts) -> str:
        return str(fact.open_files)

    least = min(fact.open_files for fact in facts)
    measured = f"{least} allowed to each process, {needed} needed"
    advice = "raise it with ulimit -n (or LimitNOFILE of the service that starts the ranks)"
    if short := [fact for fact in facts if fact.open_files < needed]:
        return Check("open files", FAILED, f"{measured}; too few: {by_value(short, limit)}", advice)
    if short := [fact for fact in facts if fact.open_files < allowed]:
        measured += f", {allowed} with all of data.shards_open_per_rank"
        return Check("open files", WARNING, f"{measured}; {by_value(short, limit)}", advice)
    return Check("open files", OK, measured)


def check_simple(name: str, leaders: Sequence[Facts], good: str, advice: str) -> Check:
    """Judge what either works on a node or says why not."""
    return problems(name, leaders, advice, nodes=True) or Check(name, OK, good)


def _key(name: str) -> str:
    return "runs_dir" if name == "run folder" else "cache_dir"


def _flops(value: float) -> str:
    return f"{value / 1e12:.0f} TFLOP/s" if value > 1e13 else f"{value / 1e9:.0f} GFLOP/s"
