from collections import Counter

import numpy as np
import pytest

from restomod.data.heldout import heldout_rows
from restomod.data.shards import ShardedDataset
from restomod.data.sources import open_sources
from restomod.errors import UserError
from restomod.recipe import load_recipe


def test_one_pass_delivers_every_token_once_with_the_same_masks(tiny, tmp_path):
    recipe = load_recipe([tiny.write(tmp_path / "recipe.yaml")])
    sources = open_sources(recipe)
    dataset = sources.heldout["heldout"]

    def rows(limit):
        return list(
            heldout_rows(dataset, recipe.phases[0], recipe.data, sources.tokenizer, 17, limit)
        )

    everything = rows(1000)
    delivered: Counter = Counter()
    for row in everything:
        ids = row.input_ids.copy()
        ids[row.positions] = row.labels
        delivered.update(ids[: row.cu_seqlens[-1]].tolist())
    for special in sources.tokenizer.special_ids:
        delivered.pop(special, None)
    expected: Counter = Counter()
    for shard, count in enumerate(dataset.shard_documents):
        for n in range(count):
            expected.update(dataset.tokens(shard, n).tolist())
    assert delivered == expected
    first = rows(2)
    assert [row.digest for row in first] == [row.digest for row in everything[:2]]
    assert np.concatenate([row.positions for row in first]).size > 0


def test_a_token_that_the_tokenizer_does_not_have_is_told_with_its_place(
    tiny, tmp_path, monkeypatch
):
    recipe = load_recipe([tiny.write(tmp_path / "recipe.yaml")])
    sources = open_sources(recipe)
    dataset, read = sources.heldout["heldout"], ShardedDataset.tokens

    def tokens(self, shard, document):
        found = read(self, shard, document)
        return np.append(found, 60_000) if (shard, document) == (1, 1) else found

    monkeypatch.setattr(ShardedDataset, "tokens", tokens)
    named = r"/heldout/shard\.00001\.mds \(stream heldout\): document 1: token 60000 does not exist"
    with pytest.raises(UserError, match=named):
        list(heldout_rows(dataset, recipe.phases[0], recipe.data, sources.tokenizer, 17, 1000))
