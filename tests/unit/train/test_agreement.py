"""What ranks decide alike, each by itself."""

import pytest

from restomod.train import agreement


@pytest.mark.parametrize(
    ("ranks", "of_nodes", "one"),
    [(1, [None], True), (4, [4], True), (4, [2, 2], False), (7, [4, 3], False), (4, [3, 1], False)],
)
def test_ranks_of_all_nodes_know_alike_whether_there_is_one(monkeypatch, ranks, of_nodes, one):
    """Else some of them wait for the others, who do not come."""
    monkeypatch.setattr(agreement, "world_size", lambda: ranks)
    for own in of_nodes:
        if own is None:
            monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
        else:
            monkeypatch.setenv("LOCAL_WORLD_SIZE", str(own))
        assert agreement.on_one_node() == one
