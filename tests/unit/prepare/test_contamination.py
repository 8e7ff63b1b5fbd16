"""Whatever of an evaluation text is in a document is found, and nothing else."""

import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from restomod.errors import UserError
from restomod.prepare.contamination import NOTHING, ContaminationConfig, NgramIndex, impossible

CONFIG = ContaminationConfig()
SMALL = ContaminationConfig(ngram=4, shortest_words=2)


def numbered(prefix, count):
    return [f"{prefix}{n}" for n in range(count)]


QUESTION = "Which of these rivers, at its mouth, carries more water than all the others together?"


def test_a_copy_is_found_in_any_layout_and_named_with_its_set():
    sets = {"quiz": [QUESTION], "other": [" ".join(numbered("o", 40))]}
    index = NgramIndex.build(sets, CONFIG)
    copy = QUESTION.upper().replace(" ", "\n").replace(",", " —")
    words_before, words_after = numbered("before", 30), numbered("after", 55)
    found = index.overlap(" ".join([*words_before, copy, *words_after]))
    assert found.evaluation_set == "quiz"
    assert found.first == "which of these rivers at its mouth carries more water than all the"
    assert found.share == pytest.approx(15 / 100)
    assert index.overlap(" ".join(words_before + words_after)) == NOTHING
    assert index.overlap("") == NOTHING


def test_thirteen_words_in_a_row_are_a_copy_and_twelve_are_not():
    text = numbered("w", 40)
    index = NgramIndex.build({"e": [" ".join(text)]}, CONFIG)
    assert index.overlap(" ".join(["x", *text[5:18], "y"])).share == pytest.approx(13 / 15)
    assert index.overlap(" ".join(["x", *text[5:17], "y"])) == NOTHING
    assert index.overlap(" ".join([*text[5:17], "x", *text[17:29]])) == NOTHING


def test_texts_shorter_than_an_ngram_are_looked_for_as_a_whole_and_very_short_ones_not_at_all():
    short, very_short = numbered("s", 9), numbered("v", 7)
    sets = {"e": [" ".join(numbered("long", 20)), " ".join(short), " ".join(very_short)]}
    index = NgramIndex.build(sets, CONFIG)
    assert (index.lengths, index.texts, index.texts_too_short) == ((9, 13), 2, 1)
    assert index.overlap(" ".join(short)).share == 1.0
    assert index.overlap(" ".join(["x", *short, *numbered("y", 20)])).first == " ".join(short)
    assert index.overlap(" ".join([*short[:8], "x", *numbered("y", 20)])) == NOTHING
    assert index.overlap(" ".join(very_short * 3)) == NOTHING


def test_only_short_texts_make_an_index_too():
    index = NgramIndex.build({"e": ["one two three four five six seven eight"]}, CONFIG)
    assert index.lengths == (8,)
    assert index.overlap("zero one two three four five six seven eight").share == 8 / 9


def naive(evaluation_sets, document, config):
    """Return share, first n-gram and set, word by word."""
    grams = {}
    for name, texts in evaluation_sets.items():
        for text in texts:
            said = text.split()
            n = min(config.ngram, len(said))
            if n >= config.shortest_words:
                for i in range(len(said) - n + 1):
                    grams.setdefault(tuple(said[i : i + n]), name)
    said = document.split()
    covered, first = set(), ("", "")
    for start in range(len(said)):
        for n in range(1, config.ngram + 1):
            gram = tuple(said[start : start + n])
            if len(gram) == n and gram in grams:
                first = first if covered else (" ".join(gram), grams[gram])
                covered.update(range(start, start + n))
    return len(covered) / len(said) if said else 0.0, *first


sentences = st.lists(st.sampled_from("abc"), max_size=14).map(" ".join)


@settings(max_examples=200)
@given(st.lists(st.lists(sentences, max_size=4), min_size=1, max_size=3), sentences)
def test_it_agrees_with_a_search_word_by_word(texts, document):
    sets = {f"set{n}": of_set for n, of_set in enumerate(texts)}
    if all(len(text.split()) < 2 for of_set in texts for text in of_set):
        with pytest.raises(UserError, match="no text of 2 words"):
            NgramIndex.build(sets, SMALL)
        return
    found = NgramIndex.build(sets, SMALL).overlap(document)
    share, first, evaluation_set = naive(sets, document, SMALL)
    assert found.share == pytest.approx(share)
    assert (found.first, found.evaluation_set) == (first, evaluation_set)


def test_a_large_index_finds_every_text_of_its_own_and_no_other():
    rng = random.Random(2)
    texts = [" ".join(f"{rng.getrandbits(24):x}" for _ in range(30)) for _ in range(2000)]
    index = NgramIndex.build({"a": texts[:500], "b": texts[500:1000]}, CONFIG)
    assert len(index.hashes) == 1000 * 18
    assert np.all(np.diff(index.hashes.astype(object)) > 0)
    for number, text in enumerate(texts):
        found = index.overlap(text)
        expected = (1.0, "a" if number < 500 else "b") if number < 1000 else (0.0, "")
        assert (found.share, found.evaluation_set) == expected


def test_a_hash_beyond_the_last_of_the_index_is_not_found():
    index = NgramIndex.build({"quiz": [QUESTION]}, CONFIG)
    beyond = index.hashes[-1:] + np.uint64(1)
    starts, _ = index._find(np.concatenate([beyond, index.hashes]))
    assert starts.tolist() == [1, 2, 3]


def test_a_saved_index_is_mapped_and_answers_as_before(tmp_path):
    index = NgramIndex.build({"quiz": [QUESTION], "ü": [" ".join(numbered("o", 40))]}, CONFIG)
    folder = tmp_path / "made" / "index"
    index.save(folder)
    index.save(folder)
    loaded = NgramIndex.load(folder)
    assert isinstance(loaded.hashes, np.memmap)
    assert isinstance(loaded.filter, np.memmap)
    for text in (QUESTION, " ".join(numbered("o", 20)), "nothing of the kind"):
        assert loaded.overlap(text) == index.overlap(text)
    for name in ("ngram", "lengths", "sets", "texts", "texts_too_short"):
        assert getattr(loaded, name) == getattr(index, name)
    assert [path.name for path in folder.parent.iterdir()] == ["index"]


def test_what_is_no_index_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds no index"):
        NgramIndex.load(tmp_path / "nowhere")
    NgramIndex.build({"quiz": [QUESTION]}, CONFIG).save(tmp_path / "i")
    attributes = tmp_path / "i" / "index.json"
    attributes.write_text(attributes.read_text().replace('"format": 1', '"format": 0'))
    with pytest.raises(UserError, match="another version"):
        NgramIndex.load(tmp_path / "i")
    with pytest.raises(UserError, match="no text of 8 words or more"):
        NgramIndex.build({"e": ["too short", ""]}, CONFIG)
    with pytest.raises(UserError, match="no text of 8 words or more"):
        NgramIndex.build({}, CONFIG)


@pytest.mark.parametrize(
    ("name", "value"),
    [("ngram", 0), ("shortest_words", 0), ("shortest_words", 14), ("max_share", 1.0)],
)
def test_values_that_cannot_work_are_named(name, value):
    assert name in [key for key, _ in impossible(replace(CONFIG, **{name: value}))]
    assert impossible(CONFIG) == []
