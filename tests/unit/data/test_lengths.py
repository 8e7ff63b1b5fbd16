import json
import shutil

import numpy as np

from restomod.config import StreamConfig
from restomod.data.lengths import document_lengths
from restomod.data.shards import ShardedDataset
from restomod.data.tokenizer import load_tokenizer


def opened(tiny, folder):
    return ShardedDataset(
        "code",
        StreamConfig(path=str(folder)),
        tiny.folder / "cache",
        load_tokenizer(tiny.recipe["tokenizer"]),
    )


def true_lengths(dataset):
    return np.array(
        [
            len(dataset.tokens(shard, document))
            for shard, documents in enumerate(dataset.shard_documents)
            for document in range(documents)
        ]
    )


def test_lengths_drawn_from_a_histogram_are_those_of_the_documents(tiny):
    dataset = opened(tiny, tiny.folder / "mds" / "prose")
    lengths = document_lengths(dataset, 20_000, np.random.default_rng(0))
    assert lengths.source == "histograms of lengths"
    assert not dataset.opened  # no shard was read
    true = true_lengths(dataset)
    assert abs(lengths.values.mean() / true.mean() - 1) < 0.05
    bins = np.bincount(np.log2(lengths.values).astype(int)) / 20_000
    expected = np.bincount(np.log2(true).astype(int)) / len(true)
    assert np.abs(bins - expected).max() < 0.02


def test_lengths_are_sampled_where_no_histogram_is_recorded(tiny, tmp_path):
    folder = tmp_path / "mds"
    shutil.copytree(tiny.folder / "mds" / "code", folder)
    recorded = json.loads((folder / "restomod.json").read_text())
    del recorded["length_histogram"]
    (folder / "restomod.json").write_text(json.dumps(recorded))
    dataset = opened(tiny, folder)
    first, second = (document_lengths(dataset, 100, np.random.default_rng(seed)) for seed in (0, 1))
    assert first.source.startswith("a sample of ")
    places = dataset.sample()
    if dataset.cached:
        places = [place for place in places if place[0] == places[0][0]]
    assert first.values.tolist() == [len(dataset.tokens(*place)) for place in places]
    assert first.values.tolist() == second.values.tolist()
    for shard in folder.rglob("shard.*"):
        shard.unlink()
    shutil.rmtree(tiny.folder / "cache", ignore_errors=True)
    assert document_lengths(opened(tiny, folder), 100, np.random.default_rng(0)) is None
