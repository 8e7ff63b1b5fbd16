"""Who started this rank, told in torch's variables, before anything reads them.

Enters: the environment that `composer`, `torchrun`, `srun` or nothing at all has left. Leaves:
RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, NODE_RANK, MASTER_ADDR and MASTER_PORT, where there
are several ranks. Imports no torch. The command line calls it first of all.
"""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Mapping, MutableMapping
from pathlib import Path

from restomod.errors import UserError

FIRST_PORT, PORTS = 10_000, 20_000
"""Below those that systems give to outgoing connections."""
EXIT_CODE = "exit_code"
"""File beside a rank's logs: torchrun hides its workers' codes."""


def adopt_launcher(environment: MutableMapping[str, str]) -> None:
    """Complete the environment with what torch and Composer read; what is set stays.

    A task that srun has started becomes a rank. torchrun's name for a node's number becomes
    Composer's. A rank of whose node nothing is said is the only one there. Raises UserError if
    srun's tasks cannot find each other.
    """
    if "RANK" not in environment and _is_task(environment):
        for name, value in _task_as_rank(environment).items():
            environment.setdefault(name, value)
    if "GROUP_RANK" in environment:
        environment.setdefault("NODE_RANK", environment["GROUP_RANK"])
    if "RANK" in environment and "LOCAL_WORLD_SIZE" not in environment:
        environment["LOCAL_WORLD_SIZE"] = "1"
        environment.setdefault("LOCAL_RANK", "0")
        environment.setdefault("NODE_RANK", environment["RANK"])


def leave_code(code: int, environment: Mapping[str, str]) -> int:
    """Leave a rank's exit code beside the logs that torchrun keeps of it, for the node wrapper of
    `restomod launch`; return it."""
    reply = environment.get("TORCHELASTIC_ERROR_FILE")
    if reply:
        with contextlib.suppress(OSError):  # the disk may be what ended the rank
            Path(reply).with_name(EXIT_CODE).write_text(f"{code}\n")
    return code


def leave_message(text: str, environment: Mapping[str, str]) -> None:
    """Leave the message of a rank's mistake where torchrun looks for it: it prints it last, as the
    root cause, after pages of its own."""
    reply = environment.get("TORCHELASTIC_ERROR_FILE")
    if reply:
        extra = {"py_callstack": text, "timestamp": str(int(time.time()))}
        with contextlib.suppress(OSError):
            Path(reply).write_text(json.dumps({"message": {"message": text, "extraInfo": extra}}))


def hosts(nodes: str) -> list[str]:
    """Return the hosts of a Slurm node list, as `login,node[1-3,07]`."""
    found = []
    for word in re.findall(r"(?:[^,\[]|\[[^\]]*\])+", nodes):
        found += _expanded(word)
    return found


def _expanded(word: str) -> list[str]:
    """Expand the first brackets of a word, and those that follow in turn."""
    match = re.fullmatch(r"([^\[]*)\[([^\]]*)\](.*)", word)
    if match is None:
        return [word]
    before, ranges, after = match.groups()
    numbers = []
    for part in ranges.split(","):
        first, _, last = part.partition("-")
        for n in range(int(first), int(last or first) + 1):
            numbers.append(f"{n:0{len(first)}d}")
    return [before + number + rest for number in numbers for rest in _expanded(after)]


def _is_task(environment: MutableMapping[str, str]) -> bool:
    """Whether srun has started this process: a batch script itself looks like a first task."""
    batch_script = environment.get("ENVIRONMENT") == "BATCH" and "SLURM_STEP_ID" not in environment
    return "SLURM_PROCID" in environment and "SLURM_NTASKS" in environment and not batch_script


def _task_as_rank(environment: MutableMapping[str, str]) -> dict[str, str]:
    ranks = environment.get("SLURM_STEP_NUM_TASKS", environment["SLURM_NTASKS"])
    if ranks == "1":
        return {}
    node = int(environment.get("SLURM_NODEID", "0"))
    return {
        "RANK": environment["SLURM_PROCID"],
        "WORLD_SIZE": ranks,
        "LOCAL_RANK": environment["SLURM_LOCALID"],
        "LOCAL_WORLD_SIZE": str(_node_ranks(environment, node, int(ranks))),
        "NODE_RANK": str(node),
        "MASTER_ADDR": environment.get("MASTER_ADDR") or _first_host(environment),
        "MASTER_PORT": str(_port(environment)),
    }


def _node_ranks(environment: MutableMapping[str, str], node: int, ranks: int) -> int:
    """Return how many tasks the node runs, from counts by node such as `4(x2),3`."""
    text = environment.get("SLURM_STEP_TASKS_PER_NODE") or environment.get("SLURM_TASKS_PER_NODE")
    if text:
        counts: list[int] = []
        for part in text.split(","):
            count, _, times = part.rstrip(")").partition("(x")
            counts += [int(count)] * int(times or 1)
        return counts[node]
    nodes = int(environment.get("SLURM_NNODES", "1"))
    return int(environment.get("SLURM_NTASKS_PER_NODE", -(-ranks // nodes)))


def _first_host(environment: MutableMapping[str, str]) -> str:
    """Return where rank 0 runs. srun itself may run elsewhere, so its address is a last resort."""
    for name in ("SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST", "SLURM_NODELIST"):
        if environment.get(name):
            return hosts(environment[name])[0]
    if "SLURM_LAUNCH_NODE_IPADDR" in environment:
        return environment["SLURM_LAUNCH_NODE_IPADDR"]
    raise UserError(
        "srun's tasks cannot find each other: neither SLURM_JOB_NODELIST nor "
        "SLURM_LAUNCH_NODE_IPADDR is set; set MASTER_ADDR to the host of the first task"
    )


def _port(environment: MutableMapping[str, str]) -> int:
    """Return a port that all tasks of a step work out alike, and other steps likely do not."""
    job, step = (int(environment.get(f"SLURM_{name}_ID", "0")) for name in ("JOB", "STEP"))
    return FIRST_PORT + (job + step) % PORTS
