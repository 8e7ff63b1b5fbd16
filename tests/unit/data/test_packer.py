from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from restomod.data import pack
from restomod.data.packer import Packer


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 64), max_size=80), st.integers(64, 300))
def test_every_document_is_in_exactly_one_row_unbroken(lengths, buffer_tokens):
    documents = [np.full(length, n) for n, length in enumerate(lengths)]
    packed: Counter = Counter()
    for row in pack(documents, row_tokens=64, buffer_tokens=buffer_tokens):
        assert 0 < len(row.tokens) <= 64
        assert row.cu_seqlens[0] == 0
        assert row.cu_seqlens[-1] == len(row.tokens)
        for begin, end in zip(row.cu_seqlens[:-1], row.cu_seqlens[1:], strict=True):
            (number,) = set(row.tokens[begin:end].tolist())
            packed[number] += end - begin
    assert packed == Counter({n: length for n, length in enumerate(lengths) if length})


def test_rows_of_27_mean_documents_are_full():
    generator = np.random.default_rng(0)
    documents = [
        np.zeros(min(1024, max(1, int(n))), np.uint16) for n in generator.lognormal(5.3, 0.9, 6000)
    ]
    mean = np.mean([len(document) for document in documents])
    row_tokens = int(27 * mean)
    rows = list(pack(documents, row_tokens, buffer_tokens=4 * row_tokens))[:-4]
    assert sum(len(row.tokens) for row in rows) / (len(rows) * row_tokens) >= 0.999


def test_longer_document_is_refused_with_its_length():
    with pytest.raises(ValueError, match="document 1 has 9 tokens, a row 8"):
        list(pack([np.zeros(3), np.zeros(9)], row_tokens=8, buffer_tokens=8))


def test_a_row_starts_with_the_oldest_and_goes_on_with_the_longest_that_fits():
    packer: Packer[str] = Packer()
    for age, (name, length) in enumerate([("old", 3), ("a", 6), ("b", 5), ("c", 5), ("d", 2)]):
        packer.add(age, length, name)
    assert packer.row(10, 99) == ["old", "a"]
    assert packer.row(10, 99) == ["b", "c"]
    assert packer.row(10, 99) == ["d"]
    assert packer.row(10, 99) == []
    assert packer.tokens == 0


def test_next_row_depends_on_the_set_of_waiting_chunks_only():
    generator = np.random.default_rng(1)
    lengths = generator.integers(1, 60, 50).tolist()
    first: Packer[int] = Packer()
    for age, length in enumerate(lengths):
        first.add(age, length, age)
    taken = first.row(100, 99)
    second: Packer[int] = Packer()
    for age in first.waiting():
        second.add(age, lengths[age], age)
    assert not set(taken) & set(second.waiting())
    assert [first.row(100, 99) for _ in range(5)] == [second.row(100, 99) for _ in range(5)]


def test_documents_per_row_are_bounded():
    packer: Packer[int] = Packer()
    for age in range(10):
        packer.add(age, 1, age)
    assert len(packer.row(100, documents=4)) == 4
