"""Two thousand million documents in 40,000 shards: nothing of that size is ever held."""

import json
import tracemalloc

import numpy as np
import pytest

from restomod.config import DataConfig, StreamConfig
from restomod.data.lanes import Lane, LaneSetting
from restomod.data.order import StreamCursor, StreamOrder
from restomod.data.shards import ShardedDataset
from restomod.data.sources import open_sources
from restomod.recipe import load_recipe

SHARDS, DOCUMENTS = 40_000, 50_000


@pytest.fixture(scope="module")
def huge(tmp_path_factory):
    """A data set whose index names one shard of 50,000 documents 40,000 times."""
    from streaming import MDSWriter

    folder = tmp_path_factory.mktemp("huge")
    with MDSWriter(
        out=str(folder), columns={"tokens": "ndarray:uint16"}, hashes=["xxh64"], size_limit=1 << 30
    ) as writer:
        for n in range(DOCUMENTS):
            writer.write({"tokens": np.full(1 + n % 40, 300, np.uint16)})
    index = json.loads((folder / "index.json").read_text())
    (entry,) = index["shards"]
    (folder / "index.json").write_text(json.dumps({**index, "shards": [entry] * SHARDS}))
    return folder


def test_index_is_kept_in_a_few_megabytes(huge, tmp_path):
    tracemalloc.start()
    try:
        dataset = ShardedDataset("huge", StreamConfig(path=str(huge)), tmp_path)
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert dataset.documents == SHARDS * DOCUMENTS
    assert kept < 60e6
    # The stored token count is estimated from sizes: 20.5 tokens a document.
    assert dataset.mean_tokens == pytest.approx(20.5, rel=0.01)


def test_order_holds_a_block_and_no_more():
    tracemalloc.start()
    try:
        order = StreamOrder(17, "huge", np.full(SHARDS, DOCUMENTS), DataConfig(lanes=64))
        cursors = [StreamCursor(order, lane) for lane in range(8)]
        for cursor in cursors:
            for _ in range(2000):
                cursor.next()
        last = order.length(0, 3) - 5
        late = StreamCursor(order, 3, 0, last)
        seen = [late.next() for _ in range(20)]
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert late.epoch == 1
    assert len(set(seen)) == 20
    assert most < 20e6
    lengths = [order.length(0, lane) for lane in range(64)]
    assert sum(lengths) == SHARDS * DOCUMENTS
    assert max(lengths) - min(lengths) <= 1


def test_first_rows_need_a_few_shards(huge, tiny, tmp_path):
    recipe = load_recipe(
        [
            tiny.write(
                tmp_path / "recipe.yaml",
                data__streams={"huge": {"path": str(huge)}},
                phases__mixture={"huge": 1},
                data__lanes=64,
                data__workers=0,
                evaluation__streams={},
            )
        ]
    )
    sources = open_sources(recipe, world_size=8)
    phase, dataset = recipe.phases[0], sources.streams["huge"]
    setting = LaneSetting.of(recipe.seed, recipe.data, phase, 0, sources.streams, sources.tokenizer)
    for lane in range(0, 64, 8):
        assert Lane(lane, setting).next_row().cu_seqlens[-1] > 0.9 * phase.row_tokens
    assert len(dataset.opened) <= 8 * 2 * recipe.data.shuffle_shards
