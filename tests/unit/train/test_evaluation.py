"""Evaluation asks the same number of forward passes of every rank."""

import pytest

from restomod.data.sources import open_sources
from restomod.recipe import load_recipe
from restomod.train.evaluation import heldout_batches


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_ranks_evaluate_equally_many_rows_and_every_token_once(tiny, tmp_path, world_size):
    path = tiny.write(tmp_path / "recipe.yaml", evaluation__rows=3, phases__row_tokens=256)
    recipe = load_recipe([path])
    sources = open_sources(recipe)

    def batches(rank: int, ranks: int):
        return heldout_batches(recipe, recipe.phases[0], sources, rank=rank, world_size=ranks)[
            "prose"
        ]

    def predicted(parts):
        return sum(int((batch["labels"] >= 0).sum()) for batch in parts)

    whole = batches(0, 1)
    ranks = [batches(rank, world_size) for rank in range(world_size)]
    assert len(whole) == 3
    assert {len(parts) for parts in ranks} == {-(-3 // world_size)}
    assert sum(predicted(parts) for parts in ranks) == predicted(whole) > 0
    found = [int(n) for parts in ranks for b in parts if predicted([b]) for n in b["row_ids"]]
    assert sorted(found) == [0, 1, 2]
