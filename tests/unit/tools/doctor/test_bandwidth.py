from itertools import chain, combinations

import pytest

from restomod.tools.doctor.bandwidth import bus_bandwidth, pairings


@pytest.mark.parametrize("nodes", [2, 3, 4, 7, 16])
def test_each_node_meets_each_other_once_and_one_at_a_time(nodes):
    rounds = pairings(nodes)
    assert sorted(chain.from_iterable(rounds)) == list(combinations(range(nodes), 2))
    for met in rounds:
        assert len(set(chain.from_iterable(met))) == 2 * len(met)


def test_many_nodes_meet_some_of_the_others():
    rounds = pairings(128, most=16)
    assert len(rounds) == 16
    assert len(set(chain.from_iterable(rounds))) == 16 * 64


def test_bus_bandwidth_is_what_a_ring_sends_in_the_time():
    # Each of 4 ranks sends 3 quarters to reduce and 3 to gather.
    assert bus_bandwidth(400, 4, 2.0) == pytest.approx((300 + 300) / 2.0)
