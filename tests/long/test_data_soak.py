"""Two epochs of a million small documents through two worker processes, counted to the last token.

    python -m pytest tests/long/test_data_soak.py -s

About a minute.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from restomod.config import DataConfig, PhaseConfig, Recipe, StreamConfig
from restomod.data.loader import Loader
from restomod.data.mlm import IGNORED
from restomod.data.order import StreamCursor, StreamOrder
from restomod.data.sources import open_sources
from restomod.data.tokenizer import load_tokenizer
from tests.conftest import Tiny
from tests.long.corpus import write_stream

DOCUMENTS = {"large": 800_000, "small": 200_000}
LANES, WORLD = 16, 2


@pytest.mark.slow
def test_two_epochs_of_a_million_documents_add_up(tiny: Tiny, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(tiny.folder / "tokenizer")
    lengths = {name: write_stream(tmp_path / name, count, tokenizer.ordinary_ids)
               for name, count in DOCUMENTS.items()}  # fmt: skip
    recipe = Recipe(
        cache_dir=str(tmp_path / "cache"),
        tokenizer=str(tiny.folder / "tokenizer"),
        data=DataConfig(
            streams={name: StreamConfig(path=str(tmp_path / name)) for name in DOCUMENTS},
            lanes=LANES,
            workers=2,
            skip_shorter_than=4,
        ),
        phases=[
            PhaseConfig(
                slots="1B",
                sequence_length=48,
                row_tokens=4096,
                batch_rows=64,
                micro_batch_rows=8,
                mixture={"large": 0.75, "small": 0.25},
            )
        ],
    )
    sources = open_sources(recipe)
    loaders = [Loader(recipe, sources, rank, WORLD) for rank in range(WORLD)]
    iterators = [iter(loader) for loader in loaders]
    counted = np.zeros(tokenizer.vocab_size, np.int64)
    masked = real = steps = 0
    started = time.perf_counter()
    while not _epochs_done(loaders, 2):
        for loader, batches in zip(loaders, iterators, strict=True):
            for batch in next(batches):
                ids = batch["input_ids"].numpy().copy()
                kept = batch["labels"].numpy() != IGNORED
                ids[batch["masked_positions"].numpy()[kept]] = batch["labels"].numpy()[kept]
                counted += np.bincount(ids, minlength=len(counted))
            masked += loader.facts.masked_tokens
            real += loader.facts.real_tokens
        steps += 1
    seconds = time.perf_counter() - started
    states = {
        int(lane): state
        for loader in loaders
        for lane, state in loader.state_dict()["lanes"].items()
    }
    assert len(states) == LANES
    chunks = sum(s["delivered_chunks"] for st in states.values() for s in st["streams"].values())
    delivered = sum(s["delivered_tokens"] for st in states.values() for s in st["streams"].values())
    assert counted[tokenizer.cls_id] == counted[tokenizer.sep_id] == chunks
    assert real == delivered + 2 * chunks
    assert masked == sum(state["masked_tokens"] for state in states.values())
    expected = np.zeros(len(counted), np.int64)
    for number, name in enumerate(sorted(DOCUMENTS)):
        dataset = sources.streams[name]
        order = StreamOrder(recipe.seed, name, dataset.shard_documents, recipe.data)
        seen = np.zeros(DOCUMENTS[name], np.int64)
        begins = np.cumsum(dataset.shard_documents) - dataset.shard_documents
        for lane, state in states.items():
            stream = state["streams"][name]
            assert stream["epoch"] >= 2
            cursor = StreamCursor(order, lane)
            drawn = skipped = 0
            in_two_epochs = order.length(0, lane) + order.length(1, lane)
            for n in range(stream["documents"]):
                shard, document = cursor.next()
                length = int(lengths[name][begins[shard] + document])
                drawn += length
                skipped += length if length < 4 else 0
                if n < in_two_epochs:
                    seen[begins[shard] + document] += 1
                if length >= 4:
                    expected += _bins(dataset.tokens(shard, document), len(counted))
            assert (cursor.epoch, cursor.position) == (stream["epoch"], stream["position"])
            waiting = [c for c in [*state["waiting"], state["pending"]] if c and c[1] == number]
            assert drawn == stream["drawn_tokens"]
            assert skipped == stream["skipped_tokens"]
            assert stream["delivered_tokens"] + sum(c[5] for c in waiting) + skipped == drawn
            for _, _, shard, document, start, length, _ in waiting:
                piece = dataset.tokens(shard, document)[start : start + length]
                expected -= _bins(piece, len(counted))
        assert set(seen.tolist()) == {2}, f"{name}: documents of the first two epochs"
    for special in (tokenizer.cls_id, tokenizer.sep_id, tokenizer.pad_id):
        counted[special] = expected[special] = 0
    assert (counted == expected).all()
    print(
        f"\n{sum(DOCUMENTS.values()):,} documents, {sum(map(np.sum, lengths.values())):,} tokens; "
        f"{steps:,} steps, {delivered:,} tokens in {chunks:,} chunks delivered over two epochs of "
        f"each stream or more, in {seconds:.0f} s ({delivered / seconds / 1e6:.2f} M tokens/s with "
        f"{WORLD} ranks of 2 workers in one process); every document of both epochs seen twice, "
        "and the counts of all ids equal"
    )


def _bins(tokens: np.ndarray, size: int) -> np.ndarray:
    return np.bincount(tokens.astype(np.int64), minlength=size)


def _epochs_done(loaders: list[Loader], epochs: int) -> bool:
    lanes = [state for loader in loaders for state in loader._lanes.values()]
    return len(lanes) == LANES and all(
        epoch >= epochs for state in lanes for epoch, _ in state.places
    )
