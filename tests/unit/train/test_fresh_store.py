"""Ranks that torchrun has started anew meet each other, and nothing of those before them."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from torch.distributed import HashStore

from restomod.errors import UserError
from restomod.train.fresh_store import ask_start, name_start


def start(store, world_size):
    """Return the names that the ranks of a start have for it."""
    with ThreadPoolExecutor(world_size) as pool:
        others = [pool.submit(ask_start, store, rank, 20.0) for rank in range(1, world_size)]
        first = pool.submit(name_start, store, world_size, 20.0)
        return [future.result() for future in (first, *others)]


def test_each_start_has_a_name_of_its_own():
    store = HashStore()
    names = [start(store, ranks) for ranks in (3, 3, 2, 4)]
    assert all(len(set(of_ranks)) == 1 for of_ranks in names)
    assert len({of_ranks[0] for of_ranks in names}) == 4


def test_rank_that_ended_before_it_heard_counts_as_absent():
    store = HashStore()
    store.set("asks/1", "of an earlier start")
    with pytest.raises(UserError, match="1 of 2 ranks, rank 1 first, did not come"):
        name_start(store, 2, 0.3)
    assert len(set(start(store, 2))) == 1


def test_rank_alone_gives_up():
    store = HashStore()
    with pytest.raises(UserError, match="rank 0 did not come"):
        ask_start(store, 1, 0.3)
