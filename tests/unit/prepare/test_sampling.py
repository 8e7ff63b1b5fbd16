"""A sample keeps to its budget and to its shares, and small sources leave theirs to the others."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from restomod.errors import UserError
from restomod.prepare.sampling import allot, sample_by_shares, sample_evenly


def size(texts):
    return sum(len(text.encode()) for text in texts)


def test_an_even_sample_reaches_to_both_ends_of_its_source():
    documents = [f"{n:05}" + "é" * (n % 50) for n in range(10_000)]
    budget = size(documents) // 20
    numbers = [int(text[:5]) for text in sample_evenly(iter(documents), budget)]
    assert numbers == sorted(set(numbers))
    for tenth in range(10):
        inside = [n for n in numbers if tenth * 1000 <= n < (tenth + 1) * 1000]
        assert len(inside) == pytest.approx(len(numbers) / 10, rel=0.15)


def test_every_source_gets_its_share_of_bytes_whatever_its_size_and_its_lengths():
    sources = {
        "web": ["w" * 50] * 20_000,
        "code": ["c" * 400] * 2000,
        "books": ["b" * 3000] * 300,
    }
    shares = {"web": 5, "code": 3, "books": 2}
    sample = sample_by_shares(sources, shares, 400_000)
    sizes = {name: size(texts) for name, texts in sample.items()}
    for name, share in shares.items():
        assert sizes[name] == pytest.approx(40_000 * share, abs=2 * len(sources[name][0]))


def test_a_small_source_is_taken_whole_and_leaves_its_share_to_the_others_by_theirs():
    sources = {
        "a": ["a" * 100] * 5000,
        "b": ["b" * 100] * 5000,
        "tiny": ["t" * 100] * 50,
    }
    sample = sample_by_shares(sources, {"a": 1, "b": 2, "tiny": 2}, 200_000)
    assert len(sample["tiny"]) == 50
    assert len(sample["a"]) == pytest.approx(650, abs=3)
    assert len(sample["b"]) == pytest.approx(1300, abs=3)


def test_it_does_not_depend_on_the_order_of_the_names_and_reads_every_source_once():
    def read(name, count):
        read.times[name] = read.times.get(name, 0) + 1
        yield from (f"{name}{n}" for n in range(count))

    read.times = {}
    counts = {"x": 3000, "y": 700, "z": 9000, "none": 500}
    shares = {"x": 0.2, "y": 0.5, "z": 0.3, "none": 0.0}
    one = sample_by_shares({name: read(name, n) for name, n in counts.items()}, shares, 9000)
    assert read.times == {"x": 1, "y": 1, "z": 1}
    turned = dict(reversed(counts.items()))
    assert one == sample_by_shares({n: read(n, c) for n, c in turned.items()}, shares, 9000)
    assert one["none"] == []


def test_memory_stays_below_twice_the_budget_for_equal_shares():
    alive, most = set(), 0

    class Text(str):
        def __del__(self):
            alive.discard(id(self))

    def source(letter):
        nonlocal most
        for _ in range(3000):
            text = Text(letter * 100)
            alive.add(id(text))
            most = max(most, len(alive))
            yield text

    shares = dict.fromkeys("abcdefgh", 1.0)
    sample_by_shares({name: source(name) for name in shares}, shares, 20_000)
    assert 200 <= most <= 2 * 200 + 3


@given(
    st.lists(st.tuples(st.floats(0, 1e6), st.floats(1e-3, 1e3)), min_size=1, max_size=8),
    st.floats(1, 1e6),
)
def test_a_budget_is_divided_so_that_nobody_who_could_take_more_has_less_per_share(given_, budget):
    sizes = {str(n): size for n, (size, _) in enumerate(given_)}
    shares = {str(n): share for n, (_, share) in enumerate(given_)}
    allotted = allot(sizes, shares, budget)
    assert sum(allotted.values()) == pytest.approx(min(budget, sum(sizes.values())))
    most = max(allotted[name] / shares[name] for name in sizes)
    for name, amount in allotted.items():
        assert amount <= sizes[name]
        if amount < sizes[name] * (1 - 1e-9):
            assert amount / shares[name] == pytest.approx(most)


@pytest.mark.parametrize(
    ("shares", "said"),
    [
        ({"a": 1.0}, "b has no share"),
        ({"a": 1.0, "b": 1.0, "c": 1.0}, "no source for c"),
        ({"a": 1.0, "b": -1.0}, "b has -1.0"),
        ({"a": 1.0, "b": float("nan")}, "b has nan"),
        ({"a": 0.0, "b": 0.0}, "none is above 0"),
    ],
)
def test_shares_that_mean_nothing_are_refused(shares, said):
    with pytest.raises(UserError, match=said):
        sample_by_shares({"a": ["x"], "b": ["y"]}, shares, 100)


def test_a_budget_of_nothing_is_refused():
    with pytest.raises(UserError, match="above 0"):
        sample_by_shares({"a": ["x"]}, {"a": 1}, 0)
