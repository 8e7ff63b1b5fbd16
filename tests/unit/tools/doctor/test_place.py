import pytest

from restomod.tools.doctor.place import Place, find_place, is_even, name_places

NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "NODE_RANK")


@pytest.fixture
def launched(monkeypatch):
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)

    def launch(**variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, str(value))
        place = find_place()
        return place.rank, place.node, place.local_rank, place.ranks_per_node, place.nodes

    return launch


def test_alone(launched):
    assert launched() == (0, 0, 0, 1, 1)


def test_under_a_launcher(launched):
    assert launched(RANK=3, WORLD_SIZE=4, LOCAL_RANK=1, LOCAL_WORLD_SIZE=2, NODE_RANK=1) == (
        3,
        1,
        1,
        2,
        2,
    )


def test_node_is_counted_where_nobody_numbers_it(launched):
    assert launched(RANK=5, WORLD_SIZE=8, LOCAL_WORLD_SIZE=2) == (5, 2, 1, 2, 4)


def test_whole_nodes_are_named_as_such():
    places = [Place(n, n // 2, n % 2, 2, 8, f"host{n // 2}") for n in range(8)]
    assert name_places([places[4], places[5], places[1]]) == (
        "rank 1 on node 0 (host0), node 2 (host2)"
    )


def test_of_many_only_some_are_named():
    places = [Place(n, n, 0, 1, 20, f"host{n}") for n in range(19)]
    assert name_places(places).endswith("node 7 (host7), 11 more")


def test_nodes_with_other_numbers_of_ranks_are_not_even():
    places = [Place(n, n // 2, n % 2, 2, 4) for n in range(4)]
    assert is_even(places)
    assert not is_even([*places[:3], Place(3, 2, 0, 1, 4)])
    assert not is_even([places[0], Place(1, 1, 0, 2, 4), Place(2, 0, 1, 2, 4), places[3]])
