"""A store that the ranks of one start share with nobody, under torchrun.

torchrun's agent opens a store once and gives it to the ranks of every restart
(github.com/pytorch/pytorch/issues/135712). They would find the addresses that ranks of an earlier
start have left in it, connect to those and fail, or hear of its requests to stop. Nor do they know
which start theirs is: an agent counts its own node's restarts. So rank 0 makes up a name for the
start, and tells it to each rank in answer to a question that no earlier rank can have asked.
`train/parallel.py` is the caller.
"""

from __future__ import annotations

import os
import uuid
from datetime import timedelta

from torch.distributed import PrefixStore, Store, TCPStore

from restomod.errors import UserError
from restomod.train.agreement import until


def is_handed_down() -> bool:
    """Return whether the ranks share a store that may be older than they are."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def fresh_store(rank: int, world_size: int, timeout_s: float) -> Store:
    """Return this start's part of the agent's store; all ranks call it.

    Raises UserError where ranks do not come within `timeout_s`.
    """
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    agents: Store = TCPStore(
        address, port, is_master=False, timeout=timedelta(seconds=timeout_s), wait_for_workers=False
    )
    store = PrefixStore("restomod", agents)
    if rank == 0:
        return PrefixStore(name_start(store, world_size, timeout_s), store)
    return PrefixStore(ask_start(store, rank, timeout_s), store)


def name_start(store: Store, world_size: int, timeout_s: float) -> str:
    """Return a new name when all ranks have it; on rank 0."""
    name = uuid.uuid4().hex
    absent = list(range(1, world_size))
    answered: dict[int, str] = {}

    def all_know() -> bool:
        for rank in absent:
            if store.check([f"asks/{rank}"]):
                question = store.get(f"asks/{rank}").decode()
                if question != answered.get(rank):  # the first one may be an earlier rank's
                    store.set(f"answers/{question}", name)
                    answered[rank] = question
        absent[:] = [rank for rank in absent if not store.check([f"{name}/here/{rank}"])]
        return not absent

    if not until(all_know, timeout_s):
        raise UserError(
            f"{len(absent)} of {world_size} ranks, rank {absent[0]} first, did not come within "
            f"{timeout_s:g} s"
        )
    return name


def ask_start(store: Store, rank: int, timeout_s: float) -> str:
    """Return the name that rank 0 gives this start; on the others."""
    question = uuid.uuid4().hex
    store.set(f"asks/{rank}", question)
    if not until(lambda: store.check([f"answers/{question}"]), timeout_s):
        raise UserError(f"rank 0 did not come within {timeout_s:g} s")
    name = store.get(f"answers/{question}").decode()
    store.set(f"{name}/here/{rank}", "-")
    return name
