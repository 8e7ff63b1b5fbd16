"""Near copies are found and the first of them stays, however the work was divided."""

import os
import random
from dataclasses import replace

import numpy as np
import pytest

from restomod.errors import UserError
from restomod.prepare.minhash import NearDuplicateConfig
from restomod.prepare.near_duplicates import (
    cluster,
    impossible,
    match_bucket,
    read_drops,
    write_signatures,
)

CONFIG = NearDuplicateConfig()
WORDS = [f"{a}{b}{c}" for a in "bdfgklm" for b in "aeiou" for c in "nrst"]


def prose(rng, length=300):
    return " ".join(rng.choices(WORDS, k=length))


def changed(rng, text, number):
    said = text.split()
    for place in rng.sample(range(len(said)), number):
        said[place] = "altered"
    return " ".join(said)


def run(folder, units, config=CONFIG, seed=0):
    """Do all tasks of every step, in a random order; return what was found and the drops."""
    numbers, buckets = list(range(len(units))), list(range(config.buckets))
    order = random.Random(seed)
    order.shuffle(numbers)
    order.shuffle(buckets)
    for unit in numbers:
        assert write_signatures(folder, unit, iter(units[unit]), config) == len(units[unit])
    for bucket in buckets:
        match_bucket(folder, bucket, len(units), config)
    found = cluster(folder, len(units), config)
    return found, [read_drops(folder, unit) for unit in range(len(units))]


@pytest.fixture(scope="module")
def corpus():
    """Three units of unrelated documents; two of them end in changed copies of the first's."""
    rng = random.Random(7)
    originals = [prose(rng) for _ in range(120)]
    units = [originals, [prose(rng) for _ in range(60)], [prose(rng) for _ in range(60)]]
    for n, text in enumerate(originals[:100]):
        units[1 + n % 2].append(changed(rng, text, 3))
    return units


def test_copies_with_a_few_words_changed_are_found_and_nothing_else_is(tmp_path, corpus):
    found, drops = run(tmp_path / "work", corpus)
    assert len(drops[0]) == 0
    dropped = np.concatenate(drops[1:])
    assert len(dropped) >= 97
    assert all(drop[0] >= 60 for drop in dropped)
    for unit, of_unit in enumerate(drops):
        for index, kept_unit, kept_index in of_unit:
            assert (kept_unit, kept_index) == (0, 2 * (index - 60) + unit - 1)
    assert found.documents == 340
    assert found.compared == 340
    assert found.dropped == found.clusters == len(dropped)
    assert found.dropped_by_unit == [len(of_unit) for of_unit in drops]


def test_the_result_depends_neither_on_the_order_of_tasks_nor_on_repeated_ones(tmp_path, corpus):
    one, drops = run(tmp_path / "one", corpus, seed=1)
    write_signatures(tmp_path / "two", 0, corpus[0], CONFIG)
    other, others = run(tmp_path / "two", corpus, seed=2)
    match_bucket(tmp_path / "two", 3, len(corpus), CONFIG)
    assert cluster(tmp_path / "two", len(corpus), CONFIG) == one == other
    for mine, yours in zip(drops, others, strict=True):
        np.testing.assert_array_equal(mine, yours)
    assert not list((tmp_path / "two").rglob(".partial*"))


def test_how_documents_are_cut_into_units_does_not_change_which_are_dropped(tmp_path, corpus):
    documents = [text for unit in corpus for text in unit]
    kept = []
    for name, size in (("coarse", 200), ("fine", 9)):
        units = [documents[start : start + size] for start in range(0, len(documents), size)]
        _, drops = run(tmp_path / name, units)
        numbers = [drop[0] + size * unit for unit, of_unit in enumerate(drops) for drop in of_unit]
        assert numbers == sorted(numbers)
        kept.append(numbers)
    assert kept[0] == kept[1]


def test_the_first_of_a_cluster_stays_even_where_another_one_is_like_more_of_them(tmp_path):
    """The middle document is the root of datatrove's tree; the first is like few of the rest."""
    rng = random.Random(3)
    middle = prose(rng)
    first = changed(rng, middle, 2)
    units = [["unrelated " + prose(rng), first], [middle, *[middle + f" end{n}" for n in range(9)]]]
    found, drops = run(tmp_path / "work", units)
    assert len(drops[0]) == 0
    assert drops[1].tolist() == [[index, 0, 1] for index in range(10)]
    assert found.clusters == 1


def test_short_and_empty_documents_are_kept_and_numbers_are_not_all_alike(tmp_path):
    rng = random.Random(5)
    table = [" ".join(str(rng.randrange(10**6)) for _ in range(60)) for _ in range(20)]
    units = [["", " \n", "one", "two words", "a b c d", "a b c d", "?!", *table], []]
    found, drops = run(tmp_path / "work", units)
    assert [len(of_unit) for of_unit in drops] == [0, 0]
    assert (found.documents, found.compared, found.clusters) == (27, 20, 0)


def test_scripts_without_spaces_are_compared_too(tmp_path):
    rng = random.Random(6)
    text = "".join(chr(0x4E00 + rng.randrange(3000)) for _ in range(400))
    other = "".join(chr(0x4E00 + rng.randrange(3000)) for _ in range(400))
    _, drops = run(tmp_path / "work", [[text, other, text[:200] + "的" + text[201:]]])
    assert drops[0].tolist() == [[2, 0, 0]]


def test_a_long_document_is_signed_in_pieces_as_if_it_were_whole(tmp_path, monkeypatch):
    from restomod.prepare import minhash

    text = prose(random.Random(8), 5000)
    for name, pieces in (("whole", 1 << 20), ("pieces", 100)):
        monkeypatch.setattr(minhash, "SHINGLES_AT_ONCE", pieces)
        write_signatures(tmp_path / name, 0, [text], CONFIG)
    for file in sorted((tmp_path / "whole" / "signatures").rglob("*.sig")):
        other = tmp_path / "pieces" / file.relative_to(tmp_path / "whole")
        assert file.stat().st_size == 8 * 8 + 4
        assert file.read_bytes() == other.read_bytes()


def test_the_seed_decides_the_hashes_and_buckets_the_recall(tmp_path, corpus):
    strict = NearDuplicateConfig(buckets=1, hashes_per_bucket=32)
    found, _ = run(tmp_path / "strict", corpus, strict)
    assert found.dropped < 50
    assert strict.threshold == 1.0
    assert CONFIG.threshold == pytest.approx(0.719, abs=1e-3)
    one, other = (tmp_path / name for name in ("one", "other"))
    write_signatures(one, 0, corpus[0], CONFIG)
    write_signatures(other, 0, corpus[0], replace(CONFIG, seed=2))
    first = "signatures/bucket_000/00000.minhash.sig"
    assert (one / first).read_bytes() != (other / first).read_bytes()


def test_what_is_missing_left_over_or_made_otherwise_is_named(tmp_path, corpus):
    folder = tmp_path / "work"
    write_signatures(folder, 0, corpus[0], CONFIG)
    with pytest.raises(UserError, match=r"000001\.json: is missing"):
        match_bucket(folder, 0, 2, CONFIG)
    write_signatures(folder, 1, corpus[1], CONFIG)
    with pytest.raises(UserError, match="signatures of 2 units instead of 1"):
        match_bucket(folder, 0, 1, CONFIG)
    with pytest.raises(UserError, match="'ngram': 7"):
        match_bucket(folder, 0, 2, replace(CONFIG, ngram=7))
    match_bucket(folder, 0, 2, CONFIG)
    with pytest.raises(UserError, match="bucket 1 is missing"):
        cluster(folder, 2, CONFIG)
    with pytest.raises(UserError, match="not been clustered yet"):
        read_drops(folder, 0)


def test_a_failing_reader_leaves_no_signatures(tmp_path):
    def broken():
        yield "a document of enough words for one n-gram"
        raise OSError("no more")

    with pytest.raises(OSError, match="no more"):
        write_signatures(tmp_path / "work", 0, broken(), CONFIG)
    assert [path for path in (tmp_path / "work").rglob("*") if path.is_file()] == []


def test_the_limit_of_open_files_is_raised_for_the_step_and_then_restored(tmp_path):
    import resource

    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    held = [os.open("/dev/null", os.O_RDONLY) for _ in range(300)]
    few = len(os.listdir("/proc/self/fd")) + 60  # too few for 120 more
    resource.setrlimit(resource.RLIMIT_NOFILE, (few, limits[1]))
    try:
        units = [["the same ten words are in every one of them"] for _ in range(120)]
        found, _ = run(tmp_path / "work", units, NearDuplicateConfig(buckets=2))
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == few
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for descriptor in held:
            os.close(descriptor)
    assert (found.clusters, found.dropped) == (1, 119)


def test_nothing_is_said_on_the_way(tmp_path, corpus, capfd):
    from loguru import logger

    logged = []
    sink = logger.add(logged.append)
    try:
        run(tmp_path / "work", [corpus[0][:5]])
    finally:
        logger.remove(sink)
    assert logged == []
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("name", "value"), [("ngram", 0), ("buckets", 0), ("hashes_per_bucket", 2000), ("seed", -1)]
)
def test_values_that_cannot_work_are_named(name, value):
    assert [key for key, _ in impossible(replace(CONFIG, **{name: value}))] == [name]
    assert impossible(CONFIG) == []
