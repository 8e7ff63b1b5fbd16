"""A text has the same words however it is laid out, and n-grams differ when a word does."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from restomod.prepare.ngrams import ngram_hashes, ngrams_of_length, word_hashes, words


def test_words_are_lower_case_without_punctuation_in_every_script():
    assert words("  The quick—brown fox's_tail,\n\t3.5 kg! ") == [
        "the", "quick", "brown", "fox", "s", "tail", "3", "5", "kg",
    ]  # fmt: skip
    assert words("हिन्दी में लिखा") == ["हिन्दी", "में", "लिखा"]
    assert words("日本語です OK") == ["日", "本", "語", "で", "す", "ok"]
    assert words("\uff26\uff55\uff4c\uff4c, \ufb01ne") == ["full", "fine"]
    assert words("e\u0301te\u0301") == words("\u00e9t\u00e9")
    assert words("") == words(" .,;\n") == []


@given(st.lists(st.text("abcdefghij0123", min_size=1, max_size=6), max_size=30), st.randoms())
def test_layout_case_and_punctuation_change_no_word(said, random):
    separators = [" ", "\n", ", ", " - ", "...", "\t", " “", "_", "\u2014"]
    text = "".join(
        (word.upper() if random.random() < 0.5 else word) + random.choice(separators)
        for word in said
    )
    assert words(text) == said


@given(st.lists(st.integers(0, 3), max_size=25), st.integers(1, 6))
def test_equal_ngrams_have_equal_hashes_and_others_differ(numbers, n):
    said = [f"w{number}" for number in numbers]
    grams = [tuple(said[i : i + n]) for i in range(len(said) - n + 1)]
    hashes = ngrams_of_length(word_hashes(said), n)
    assert hashes.dtype == np.uint64
    assert len(hashes) == len(grams)
    assert len(set(hashes.tolist())) == len(set(grams))
    assert len({*zip(grams, hashes.tolist(), strict=True)}) == len(set(grams))


def test_the_order_of_words_counts_and_lengths_come_in_turn():
    forth, back = (word_hashes(said) for said in (["a", "b", "c"], ["c", "b", "a"]))
    assert ngrams_of_length(forth, 3) != ngrams_of_length(back, 3)
    assert [len(of_length) for of_length in ngram_hashes(forth, 5)] == [3, 2, 1, 0, 0]
    assert len(ngrams_of_length(word_hashes([]), 4)) == 0


def test_hashes_are_the_same_on_every_machine():
    """A saved index is read elsewhere, and units are signed on many machines."""
    hashes = ngrams_of_length(word_hashes(words("The cat sat on the mat")), 3)
    assert hashes.tolist() == [
        2518156795271155520,
        10402968463935646139,
        3450030065183868958,
        14207783917287323733,
    ]
