"""What ranks do together outside of training: decide once, fail as one.

In: an action of each rank, a gloo group. Out: every rank's result on every rank, or one error on
all of them, so that none waits for another that has given up. `checkpoints/`, `faults/` and what
starts a run call it; each caller has a group of its own, as a group's messages have no names.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from restomod.errors import UserError

Result = TypeVar("Result")
Group = dist.ProcessGroup | None
"""None in a run of one rank."""

TIMEOUT = timedelta(hours=2)
"""How long a rank waits for the slowest one's disk or store."""


def gloo_group() -> Group:
    """Return a new group of all ranks that exchanges CPU data; every rank calls this."""
    if world_size() == 1:
        return None
    return dist.new_group(backend="gloo", timeout=TIMEOUT)


def world_size() -> int:
    """Return the number of ranks."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Return this rank's number."""
    return dist.get_rank() if dist.is_initialized() else 0


def on_one_node() -> bool:
    """Return whether all ranks run on one machine: on each the same, also where nodes run unequal
    numbers of them."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) >= world_size()


def leads_node() -> bool:
    """Return whether this rank does what each node does once."""
    return int(os.environ.get("LOCAL_RANK", "0")) == 0


def together(action: Callable[[], Result], group: Group) -> list[Result]:
    """Return what `action` returned on every rank, in order.

    If it raised on any, every rank raises: a UserError where it was one, RuntimeError elsewhere.
    """
    if group is None:
        return [action()]
    result, mine, sent = None, None, None
    try:
        result = action()
    except Exception as error:
        mine, sent = error, (isinstance(error, UserError), str(error) or repr(error))
    gathered: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(gathered, (result, sent), group=group)
    failed = [(number, text) for number, (_, text) in enumerate(gathered) if text is not None]
    if failed:
        number, (is_users, text) = next((f for f in failed if f[1][0]), failed[0])
        raise UserError(text) if is_users else RuntimeError(f"rank {number}: {text}") from mine
    return [result for result, _ in gathered]


def on_first(action: Callable[[], Result], group: Group) -> Result:
    """Return on every rank what `action` returned, or raise what it raised, on rank 0 alone."""
    first = rank() == 0
    return together(lambda: action() if first else None, group)[0]  # type: ignore[return-value]


def everywhere(holds: bool, group: Group) -> bool:
    """Return whether something holds on all ranks."""
    if group is None:
        return holds
    flag = torch.tensor([holds], dtype=torch.int32)
    dist.all_reduce(flag, dist.ReduceOp.MIN, group=group)
    return bool(flag.item())


def until(holds: Callable[[], bool], seconds: float) -> bool:
    """Return whether something comes to hold within some time: a shared file system may be slow to
    show a file."""
    end = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True
