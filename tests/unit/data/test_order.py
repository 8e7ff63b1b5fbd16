import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from restomod.config import DataConfig
from restomod.data.order import StreamCursor, StreamOrder


def order(shards, lanes=4, block=16, pieces=4, seed=0):
    config = DataConfig(lanes=lanes, shuffle_block_documents=block, shuffle_shards=pieces)
    return StreamOrder(seed, "stream", np.array(shards), config)


def epoch_of_lane(a, epoch, lane):
    cursor = StreamCursor(a, lane, epoch=epoch)
    return [cursor.next() for _ in range(a.length(epoch, lane))]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=12),
    st.integers(1, 9),
    st.integers(1, 50),
    st.integers(1, 6),
)
def test_every_epoch_has_every_document_once_over_the_lanes(shards, lanes, block, pieces):
    a = order(shards, lanes, block, pieces)
    everything = sorted((shard, n) for shard, count in enumerate(shards) for n in range(count))
    for epoch in (0, 1, 7):
        seen = [pair for lane in range(lanes) for pair in epoch_of_lane(a, epoch, lane)]
        assert sorted(seen) == everything


def test_epochs_lanes_and_seeds_differ():
    shards = [50] * 10
    first = epoch_of_lane(order(shards), 0, 1)
    assert first == epoch_of_lane(order(shards), 0, 1)
    assert first != epoch_of_lane(order(shards), 1, 1)
    assert first != epoch_of_lane(order(shards), 0, 2)
    assert first != epoch_of_lane(order(shards, seed=1), 0, 1)


def test_cursor_goes_on_from_any_position():
    a = order([30, 20, 45], lanes=2, block=7)
    whole = StreamCursor(a, 1)
    expected = [whole.next() for _ in range(200)]
    for start in (0, 1, 6, 7, 46, 47, 48, 120):
        before = StreamCursor(a, 1)
        for _ in range(start):
            before.next()
        resumed = StreamCursor(
            order([30, 20, 45], lanes=2, block=7), 1, before.epoch, before.position
        )
        assert [resumed.next() for _ in range(50)] == expected[start : start + 50]


def test_more_lanes_than_documents_still_read_everything():
    a = order([3], lanes=8)
    seen = {StreamCursor(a, lane).next() for lane in range(8)}
    assert seen <= {(0, 0), (0, 1), (0, 2)}
    cursor = StreamCursor(a, 5)
    assert {cursor.next() for _ in range(40)} == {(0, 0), (0, 1), (0, 2)}


def test_a_block_draws_from_several_shards():
    a = order([100] * 8, lanes=1, block=80, pieces=4)
    shards = {shard for shard, _ in epoch_of_lane(a, 0, 0)[:80]}
    assert len(shards) >= 4
