"""A lane's state is what its rows changed, and comes back from a checkpoint."""

import json

import numpy as np
import pytest

from restomod.data.state import COUNTERS, LaneDelta, LaneState

NAMES = ["a", "b"]
SIZE = len(COUNTERS)


def delta(added=(), taken=(), pending=(), skipped=(), first=1):
    return LaneDelta(
        (first, first + 1, first + 2, first + 3, first + 4),
        [0.25, 0.75],
        [(first, 10), (0, 20)],
        np.arange(2 * SIZE).reshape(2, SIZE) + first,
        list(pending),
        list(added),
        list(taken),
        list(skipped),
    )


def state():
    lane = LaneState(NAMES)
    lane.apply(
        delta(
            added=[(0, 0, 5, 6, 0, 7, 1), (1, 1, 8, 9, 0, 4, 3), (2, 0, 5, 6, 7, 2, 2)],
            taken=[1],
            pending=(0, 1, 3, 2, 64, 30, 0),
            skipped=[(1, 4, 0, 2)],
        )
    )
    return lane


def test_a_new_lane_has_done_nothing():
    assert LaneState(["a"]).plain() == {
        "rows": 0, "masked_tokens": 0, "real_tokens": 0, "draws": 0, "chunks": 0,
        "weights": [], "names": ["a"], "pending": [], "waiting": [], "skipped": [],
        "streams": {"a": {"epoch": 0, "position": 0, **dict.fromkeys(COUNTERS, 0)}},
    }  # fmt: skip


def test_rows_are_stepped_past_one_by_one():
    lane = state()
    lane.apply(delta(added=[(3, 1, 0, 0, 0, 5, 3)], taken=[0, 3], skipped=[(0, 1, 1, 1)], first=50))
    assert lane.plain() == {
        "rows": 50, "masked_tokens": 51, "real_tokens": 52, "draws": 53, "chunks": 54,
        "weights": [0.25, 0.75],
        "names": NAMES,
        "streams": {
            "a": {"epoch": 50, "position": 10,
                  **{name: 50 + n for n, name in enumerate(COUNTERS)}},
            "b": {"epoch": 0, "position": 20,
                  **{name: 50 + SIZE + n for n, name in enumerate(COUNTERS)}},
        },
        "pending": [],
        "waiting": [[2, 0, 5, 6, 7, 2, 2]],
        "skipped": [[1, 4, 0, 2], [0, 1, 1, 1]],
    }  # fmt: skip
    assert lane.counter("documents").tolist() == [50, 50 + SIZE]
    assert lane.counter(COUNTERS[-1]).tolist() == [49 + SIZE, 49 + 2 * SIZE]


def test_a_state_comes_back_from_a_checkpoint():
    stored = json.loads(json.dumps(state().plain()))
    again = LaneState.from_plain(stored, NAMES)
    assert again.plain() == state().plain()
    assert list(again.waiting) == [0, 2]
    assert again.counters.dtype == np.int64


def test_streams_keep_what_is_theirs_when_others_come_before_them():
    stored = json.loads(json.dumps(state().plain()))
    grown = LaneState.from_plain(stored, ["0", "a", "aa", "b"])
    plain = grown.plain()
    assert plain["streams"]["a"] == stored["streams"]["a"]
    assert plain["streams"]["b"] == stored["streams"]["b"]
    assert set(plain["streams"]["aa"].values()) == {0}
    assert plain["waiting"] == [[0, 1, 5, 6, 0, 7, 1], [2, 1, 5, 6, 7, 2, 2]]
    assert plain["pending"] == [0, 3, 3, 2, 64, 30, 0]
    assert plain["skipped"] == [[3, 4, 0, 2]]
    assert plain["weights"] == [0.0, 0.25, 0.0, 0.75]
    for key in ("rows", "masked_tokens", "real_tokens", "draws", "chunks"):
        assert plain[key] == stored[key]


def test_a_stream_may_go_when_nothing_of_it_waits():
    stored = json.loads(json.dumps(state().plain()))
    with pytest.raises(ValueError, match="chunks of stream b wait to be delivered, but no phase"):
        LaneState.from_plain(stored, ["a"])
    stored["pending"] = []
    rest = LaneState.from_plain(stored, ["a"])
    assert rest.plain()["streams"] == {"a": stored["streams"]["a"]}
    assert rest.skipped == []
    assert rest.weights == []
    with pytest.raises(ValueError, match="chunks of stream a wait"):
        LaneState.from_plain(stored, ["b"])


def test_odds_are_kept_where_a_stream_goes_of_which_nothing_was_to_be_drawn():
    stored = json.loads(json.dumps(state().plain()))
    stored |= {"pending": [], "weights": [1.0, 0.0]}
    assert LaneState.from_plain(stored, ["a"]).weights == [1.0]
    assert LaneState.from_plain(stored, ["a", "c"]).weights == [1.0, 0.0]


def test_a_new_lane_comes_back_without_odds():
    again = LaneState.from_plain(LaneState(NAMES).plain(), NAMES)
    assert again.weights == []
    assert again.plain() == LaneState(NAMES).plain()
