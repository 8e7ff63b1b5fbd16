"""Lanes and loader: what DESIGN calls the global batch as a function, and every token counted
once."""

import dataclasses
import itertools
import json
import shutil
from collections import Counter

import numpy as np
import pytest

from restomod.data.loader import Loader
from restomod.data.mlm import IGNORED
from restomod.data.order import StreamCursor, StreamOrder
from restomod.data.sources import open_sources
from restomod.data.state import COUNTERS
from restomod.errors import UserError
from restomod.recipe import load_recipe
from restomod.timeline import Origin, Timeline


@pytest.fixture
def opened(tiny, tmp_path):
    """The tiny recipe with its sources."""

    def open_it(**changes):
        recipe = load_recipe([tiny.write(tmp_path / "recipe.yaml", **changes)])
        return recipe, open_sources(recipe)

    return open_it


def digests(recipe, sources, steps, world_size=1, states=None, origin=None):
    """Return the digests of some steps, and the merged state after them."""
    timeline = Timeline(recipe.phases, origin or Origin())
    loaders = [
        Loader(recipe, sources, rank, world_size, states, timeline=timeline)
        for rank in range(world_size)
    ]
    batches = [iter(loader) for loader in loaders]
    found = []
    for _ in range(steps):
        for batch in batches:
            next(batch)
        found.append(sum(loader.facts.digest for loader in loaders) % 2**64)
    parts = [loader.state_dict() for loader in loaders]
    lanes = {lane: state for part in parts for lane, state in part["lanes"].items()}
    return found, {"rows": parts[0]["rows"], "lanes": lanes}


def as_stored(state):
    """What a checkpoint makes of a state."""
    return json.loads(json.dumps(state))


@pytest.mark.parametrize("world_size", [1, 2, 4, 8])
@pytest.mark.parametrize(("workers", "rows"), [(0, 1), (1, 2), (3, 4)])
def test_digest_depends_on_no_rank_worker_or_micro_batch(opened, world_size, workers, rows):
    common = {"data__lanes": 24, "phases__batch_rows": 32, "phases__micro_batch_rows": rows}
    recipe, sources = opened(data__workers=0, **common)
    expected, _ = digests(recipe, sources, 9)
    recipe, sources = opened(data__workers=workers, **common)
    assert digests(recipe, sources, 9, world_size)[0] == expected
    assert len(set(expected)) == 9


def test_state_goes_on_twice_on_other_world_sizes(opened):
    recipe, sources = opened(data__workers=0, phases__batch_rows=12)
    expected, _ = digests(recipe, sources, 15)
    first, state = digests(recipe, sources, 4, world_size=2)
    second, state = digests(recipe, sources, 5, world_size=4, states=as_stored(state))
    third, _ = digests(recipe, sources, 6, world_size=1, states=as_stored(state))
    assert first + second + third == expected


def test_batch_that_lanes_do_not_divide(opened):
    recipe, sources = opened(data__workers=2, phases__batch_rows=6)
    expected, _ = digests(recipe, sources, 6)
    first, state = digests(recipe, sources, 3, world_size=2)
    assert first == expected[:3]
    assert digests(recipe, sources, 3, states=as_stored(state))[0] == expected[3:]


@pytest.mark.parametrize("world_size", [1, 2, 3, 6])
def test_a_phase_may_begin_at_a_row_that_the_ranks_do_not_divide(opened, world_size):
    """As a phase alone does after batches of another run (train.py --from)."""
    recipe, sources = opened(data__workers=0, data__lanes=6, phases__batch_rows=6)
    recipe.phases[0].batch_rows = 1
    _, state = digests(recipe, sources, 5)
    recipe.phases[0].batch_rows = 6
    expected, _ = digests(recipe, sources, 4, 1, as_stored(state), Origin(5, 5, 5 * 512))
    found, _ = digests(recipe, sources, 4, world_size, as_stored(state), Origin(5, 5, 5 * 512))
    assert found == expected


def test_delivered_waiting_and_skipped_make_up_the_cursor(opened):
    """Two epochs of the smallest stream, counted token by token."""
    recipe, sources = opened(data__workers=0)
    loader = Loader(recipe, sources)
    batches = iter(loader)
    delivered: Counter = Counter()
    while min(s["streams"]["science"]["epoch"] for s in _states(loader)) < 2:
        next(batches)
        delivered.update(dict(zip(loader.streams, loader.facts.stream_tokens, strict=True)))
    for n, name in enumerate(loader.streams):
        streams = [state["streams"][name] for state in _states(loader)]
        total = {counter: sum(stream[counter] for stream in streams) for counter in COUNTERS}
        waiting = sum(
            chunk[5] for state in _states(loader) for chunk in state["waiting"] if chunk[1] == n
        )
        pending = sum(s["pending"][5] for s in _states(loader) if s["pending"][1:2] == [n])
        assert total["delivered_tokens"] == delivered[name]
        assert (
            total["delivered_tokens"] + waiting + pending + total["skipped_tokens"]
            == total["drawn_tokens"]
        )
        assert total["documents"] == sum(
            _cursor(recipe, sources, name, lane, state)
            for lane, state in enumerate(_states(loader))
        )


def _states(loader):
    states = loader.state_dict()["lanes"]
    return [states[lane] for lane in sorted(states)] or [{"streams": {"science": {"epoch": 0}}}]


def _cursor(recipe, sources, name, lane, state):
    """Return how many documents lie before a lane's cursor."""
    order = StreamOrder(recipe.seed, name, sources.streams[name].shard_documents, recipe.data)
    place = state["streams"][name]
    return place["position"] + sum(order.length(epoch, lane) for epoch in range(place["epoch"]))


def test_rows_are_whole_and_padding_is_neither_masked_nor_counted(opened):
    recipe, sources = opened(data__workers=0, phases__row_tokens=512)
    phase, tokenizer = recipe.phases[0], sources.tokenizer
    loader = Loader(recipe, sources)
    for _, (batch,) in zip(range(40), ([b] for bs in loader for b in bs), strict=False):
        ids, ends = batch["input_ids"].numpy(), batch["cu_seqlens"].numpy()
        lengths = np.diff(ends)
        assert lengths.max() <= phase.sequence_length
        assert ends[-1] == len(ids) == phase.row_tokens
        assert (batch["position_ids"].numpy() < phase.sequence_length).all()
        positions = batch["masked_positions"].numpy()[batch["labels"].numpy() != IGNORED]
        assert len(set(positions)) == len(positions)
        originals = ids.copy()
        originals[positions] = batch["labels"].numpy()[: len(positions)]
        assert not np.isin(originals[positions], tokenizer.special_ids).any()
        documents = [originals[a:b] for a, b in itertools.pairwise(ends) if b > a]
        real = [d for d in documents if d[0] != tokenizer.pad_id]
        for document in real:
            assert document[0] == tokenizer.cls_id
            assert document[-1] == tokenizer.sep_id
            assert not np.isin(document[1:-1], tokenizer.special_ids).any()
        assert (
            np.concatenate([d for d in documents if d[0] == tokenizer.pad_id] or [[]])
            == tokenizer.pad_id
        ).all()


def test_next_tokens_are_predicted_within_documents_only(opened):
    recipe, sources = opened(data__workers=0, phases__objective="clm")
    loader = Loader(recipe, sources)
    for _, (batch,) in zip(range(10), ([b] for bs in loader for b in bs), strict=False):
        ids, labels = batch["input_ids"].numpy(), batch["labels"].numpy()
        positions = batch["masked_positions"].numpy()[labels != IGNORED]
        expected = [
            n
            for begin, end in itertools.pairwise(batch["cu_seqlens"].tolist())
            if begin < end and ids[begin] != sources.tokenizer.pad_id
            for n in range(begin, end - 1)
        ]
        assert positions.tolist() == expected
        assert (labels[labels != IGNORED] == ids[positions + 1]).all()
        assert len(labels) == len(ids)
        assert not (ids == sources.tokenizer.mask_id).any()


def test_long_document_arrives_whole_and_empty_ones_are_counted(opened, tiny):
    """A stream with documents of 1 and 50,000 tokens: one epoch delivers each token once."""
    recipe, sources = opened(
        data__workers=0, data__lanes=1, phases__batch_rows=1, phases__mixture={"code": 1.0}
    )
    dataset = sources.streams["code"]
    expected: Counter = Counter()
    for shard, count in enumerate(dataset.shard_documents):
        for n in range(count):
            expected.update(dataset.tokens(shard, n).tolist())
    loader = Loader(recipe, sources)
    delivered: Counter = Counter()
    specials = set(sources.tokenizer.special_ids)
    for batches in loader:
        for batch in batches:
            ids = batch["input_ids"].numpy().copy()
            kept = batch["labels"].numpy() != IGNORED
            ids[batch["masked_positions"].numpy()[kept]] = batch["labels"].numpy()[kept]
            delivered.update(int(i) for i in ids if int(i) not in specials)
        (state,) = loader.state_dict()["lanes"].values()
        if state["streams"]["code"]["epoch"] == 1:
            break
    waiting: Counter = Counter()
    rest = [*state["waiting"], *([state["pending"]] if state["pending"] else [])]
    for _, _, shard, document, start, length, _ in rest:
        waiting.update(dataset.tokens(shard, document)[start : start + length].tolist())
    ahead = state["streams"]["code"]["drawn_tokens"] - sum(expected.values())
    assert sum((delivered + waiting).values()) - ahead == sum(expected.values())
    assert not expected - (delivered + waiting)


def test_resume_opens_only_the_shards_of_waiting_and_coming_chunks(opened):
    changes = {
        "data__workers": 0,
        "data__lanes": 1,
        "data__buffer_rows": 1,
        "data__shuffle_block_documents": 4,
        "data__shuffle_shards": 1,
        "phases__batch_rows": 1,
        "phases__mixture": {"code": 1.0},
    }
    _, state = digests(*opened(**changes), 30)
    recipe, sources = opened(**changes)
    dataset = sources.streams["code"]
    loader = Loader(recipe, sources, state=as_stored(state))
    next(iter(loader))
    (before,) = as_stored(state)["lanes"].values()
    (after,) = loader.state_dict()["lanes"].values()
    needed = {chunk[2] for chunk in [*before["waiting"], before["pending"]] if chunk}
    order = StreamOrder(recipe.seed, "code", dataset.shard_documents, recipe.data)
    place = before["streams"]["code"]
    cursor = StreamCursor(order, 0, place["epoch"], place["position"])
    coming = after["streams"]["code"]["documents"] - place["documents"]
    needed |= {cursor.next()[0] for _ in range(coming)}
    assert dataset.opened <= needed
    assert len(dataset.opened) < len(dataset.shard_documents)


def test_mixture_is_by_tokens(opened):
    recipe, sources = opened(data__workers=0, phases__mixture={"prose": 0.75, "science": 0.25})
    loader = Loader(recipe, sources)
    tokens = np.zeros(2)
    for _, _ in zip(range(150), loader, strict=False):
        tokens += loader.facts.stream_tokens
    assert tokens[0] / tokens.sum() == pytest.approx(0.75, abs=0.04)


def test_masks_are_fixed_by_seed_lane_and_row_not_by_what_came_before(opened):
    recipe, sources = opened(data__workers=0)
    other = dataclasses.replace(recipe, seed=18)
    first, _ = digests(recipe, sources, 3)
    assert digests(other, sources, 3)[0] != first
    assert digests(recipe, sources, 3)[0] == first


def test_exception_in_a_worker_reaches_the_user(opened, tiny, tmp_path):
    shutil.copytree(tiny.folder / "mds" / "prose", tmp_path / "damaged")
    for shard in (tmp_path / "damaged").glob("*.zstd"):
        shard.write_bytes(b"rubbish")
    recipe, sources = opened(
        data__workers=2,
        data__streams={"prose": {"path": str(tmp_path / "damaged")}},
        phases__mixture={"prose": 1.0},
        cache_dir=str(tmp_path / "cache"),
    )
    with pytest.raises(UserError, match=r"stream prose.*damaged"):
        next(iter(Loader(recipe, sources)))
