from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from restomod.data import pack
from restomod.data import packer as packer_module
from restomod.data.packer import Packer


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 64), max_size=80), st.integers(64, 300))
def test_every_document_is_in_exactly_one_row_unbroken(lengths, buffer_tokens):
    documents = [np.full(length, n) for n, length in enumerate(lengths)]
    packed: Counter = Counter()
    for row in pack(documents, row_tokens=64, buffer_tokens=buffer_tokens):
        assert 0 < len(row.tokens) <= 64
        assert row.cu_seqlens[0] == 0
        assert row.cu_seqlens.dtype == np.int32
        assert row.cu_seqlens[-1] == len(row.tokens)
        for begin, end in zip(row.cu_seqlens[:-1], row.cu_seqlens[1:], strict=True):
            (number,) = set(row.tokens[begin:end].tolist())
            packed[number] += end - begin
    assert packed == Counter({n: length for n, length in enumerate(lengths) if length})


SHAPES = {
    "web": lambda g, n: g.lognormal(5.3, 0.9, n),
    "cut at 1,024": lambda g, n: np.minimum(1024, g.lognormal(6.2, 1.2, n)),
    "uniform": lambda g, n: g.uniform(100, 500, n),
    "exponential": lambda g, n: g.exponential(300, n),
}


def documents(shape, count=6000, seed=0):
    lengths = np.clip(SHAPES[shape](np.random.default_rng(seed), count), 1, 2048)
    return [np.full(int(length), n % 65_536, np.uint16) for n, length in enumerate(lengths)]


@pytest.mark.parametrize("shape", SHAPES)
def test_rows_of_27_mean_documents_are_full(shape):
    chunks = documents(shape)
    row_tokens = int(27 * np.mean([len(chunk) for chunk in chunks]))
    rows = list(pack(chunks, row_tokens, buffer_tokens=4 * row_tokens))[:-4]
    assert sum(len(row.tokens) for row in rows) / (len(rows) * row_tokens) >= 0.999


@pytest.mark.parametrize("shape", SHAPES)
def test_rows_keep_the_order_in_which_documents_came(shape):
    """No document waits for long, and the first rows hold no longer documents than later ones."""
    chunks = documents(shape)
    mean = np.mean([len(chunk) for chunk in chunks])
    row_tokens, buffered = int(40 * mean), 160
    firsts = [
        row.tokens[row.cu_seqlens[:-1]].astype(int)
        for row in pack(chunks, row_tokens, buffer_tokens=4 * row_tokens)
    ]
    for n, numbers in enumerate(firsts[:100]):
        assert np.abs(numbers - 40 * n).max() < 4 * buffered
    lengths = np.array([len(chunk) for chunk in chunks])
    early = np.concatenate([lengths[numbers] for numbers in firsts[:10]])
    assert abs(early.mean() - mean) < 3.5 * lengths.std() / len(early) ** 0.5


def test_rows_begin_when_the_buffer_is_full_and_leave_it_less_than_full():
    drawn = []

    def documents():
        for n in range(10):
            drawn.append(n)
            yield np.full(4, n)

    rows = pack(documents(), row_tokens=8, buffer_tokens=16)
    assert [(len(next(rows).tokens), len(drawn)) for _ in range(4)] == [
        (8, 4),
        (8, 6),
        (8, 8),
        (8, 10),
    ]
    assert len(list(rows)) == 1
    assert len(list(pack([np.zeros(8)], row_tokens=8, buffer_tokens=1))) == 1


def test_longer_document_is_refused_with_its_length():
    with pytest.raises(ValueError, match="document 1 has 9 tokens, a row 8"):
        list(pack([np.zeros(3), np.zeros(9)], row_tokens=8, buffer_tokens=8))


def test_document_of_more_than_one_dimension_is_refused():
    with pytest.raises(ValueError, match=r"document 1 has shape \(2, 3\)"):
        list(pack([np.arange(4), np.zeros((2, 3), int)], row_tokens=8, buffer_tokens=8))


def test_a_row_takes_the_oldest_and_is_closed_by_the_two_that_fit_best():
    packer: Packer[str] = Packer()
    lengths = [4, 4, 4, 9, 5, 3, 8]
    for age, length in enumerate(lengths):
        packer.add(age, length, f"{age}:{length}")
    # 13 slots of room are 2.5 mean chunks: 0 and 1 are taken by age, then 9 and 4 fill 13.
    assert packer.row(21, 99) == ["0:4", "1:4", "2:4", "3:9"]
    assert packer.row(13, 99) == ["4:5", "6:8"]
    assert packer.row(13, 99) == ["5:3"]
    assert packer.row(13, 99) == []
    assert packer.tokens == 0


def test_a_chunk_is_no_partner_of_itself():
    packer: Packer[int] = Packer()
    for age, length in enumerate([1, 5, 3]):
        packer.add(age, length, length)
    assert sorted(packer.row(11, 99)) == [1, 3, 5]
    packer.add(3, 5, 5)
    packer.add(4, 1, 1)
    assert sorted(packer.row(10, 99)) == [1, 5]


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
    for n in range(5):
        generators = [np.random.default_rng(n) for _ in range(2)]
        assert first.row(100, 99, generators[0]) == second.row(100, 99, generators[1])


def test_chunks_of_a_long_document_are_mixed_with_others():
    """30 chunks of one length arrive between 100 of the same length: rows hold a few of them."""
    packer: Packer[bool] = Packer()
    for age in range(130):
        packer.add(age, 10, 50 <= age < 80)
    rows = [packer.row(100, 99, np.random.default_rng(n)) for n in range(8)]
    assert {len(row) for row in rows} == {10}
    assert max(sum(row) for row in rows) <= 6
    assert sum(sum(row) > 0 for row in rows) >= 6


def test_a_row_of_many_chunks_keeps_the_mixture_in_which_they_came():
    """One chunk of 100 comes with every 50 of length 2, and a row holds thousands of chunks."""
    packer: Packer[int] = Packer()
    for age in range(60_000):
        length = 100 if age % 51 == 0 else 2
        packer.add(age, length, length)
    row = packer.row(20_000, 20_000, np.random.default_rng(0))
    assert sum(row) == 20_000
    assert abs(row.count(100) - 100) < 30


def test_documents_per_row_are_bounded():
    packer: Packer[int] = Packer()
    for age in range(10):
        packer.add(age, 1, age)
    assert len(packer.row(100, documents=4)) == 4


def defined_row(waiting, row_tokens, most, order):
    """The ages that a row takes of `waiting` chunks (age to length, the oldest first), as the
    packer's documentation defines it, looking at all of them each time."""
    left, taken, room = dict(waiting), [], row_tokens
    closing = packer_module.CLOSING_CHUNKS * sum(left.values()) / len(left)

    def take(age):
        taken.append(age)
        return left.pop(age)

    for age in order:
        if left[age] > room or len(taken) == most or (taken and room <= closing):
            break
        room -= take(age)

    best, lengths = 0, ()
    for length in left.values():
        if best < length <= room:
            best, lengths = length, (length,)
    for age in list(left)[: packer_module.TRIES]:
        others = [n for other, n in left.items() if other != age and n <= room - left[age]]
        if others and left[age] + max(others) > best:
            best, lengths = left[age] + max(others), (left[age], max(others))
    while lengths and len(taken) < most:
        for length in lengths[: most - len(taken)]:
            room -= take(next(age for age, n in left.items() if n == length))
        lengths = tuple(sorted(n for n in left.values() if n <= room))[-1:]
    return taken


@pytest.mark.parametrize("drawn", [True, False])
def test_rows_are_as_defined_whatever_waits(drawn, monkeypatch):
    """With bounds small enough for a few chunks to reach all of them."""
    for name, value in {"TRIES": 4, "DRAWN_FROM": 12, "WORD": 4}.items():
        monkeypatch.setattr(packer_module, name, value)
    generator = np.random.default_rng(0)
    rows = 0
    for case in range(150):
        row_tokens = int(generator.integers(9, 40))
        lengths = generator.choice([1, 2, 3, 4, 5, 8, 9, 12, 17], size=generator.integers(1, 80))
        waiting = dict(enumerate(lengths.tolist()))
        packer: Packer[int] = Packer()
        for age, length in waiting.items():
            packer.add(age, length, age)
        while waiting:
            most = int(generator.integers(1, 12))
            order = list(waiting)
            if drawn:
                worth = row_tokens * len(waiting) // sum(waiting.values())
                ages = order[: max(12, 2 * worth)]
                permutation = np.random.default_rng(case).permutation(len(ages) - 1)
                order = [ages[0], *(ages[n + 1] for n in permutation)]
            expected = defined_row(waiting, row_tokens, most, order)
            assert packer.row(row_tokens, most, np.random.default_rng(case) if drawn else None) == (
                expected
            )
            for age in expected:
                del waiting[age]
            assert list(packer.waiting()) == list(waiting)
            assert packer.tokens == sum(waiting.values())
            rows += bool(expected)
            if not expected:  # only chunks longer than a row are left
                assert min(waiting.values()) > row_tokens
                break
    assert rows > 500
