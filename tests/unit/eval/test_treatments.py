import numpy as np
import pytest

from restomod.eval.retrieval import unit
from restomod.eval.suite import ProbeConfig
from restomod.eval.treatments import probe, whitening


@pytest.fixture
def sides():
    """Documents that share a large direction, and queries that are other directions of theirs."""
    generator = np.random.default_rng(0)
    hidden = generator.normal(size=(600, 6))
    mixing = generator.normal(size=(6, 6))
    queries = hidden + 0.1 * generator.normal(size=hidden.shape) + 20
    documents = hidden @ mixing + 5 + 0.1 * generator.normal(size=hidden.shape)
    return queries, documents


def found_first(queries, documents):
    similar = unit(queries) @ unit(documents).T
    return float((similar.argmax(1) == np.arange(len(queries))).mean())


def test_whitened_features_have_no_mean_and_equal_variance(sides):
    queries, documents = (side(x) for side, x in zip(whitening(*sides), sides, strict=True))
    np.testing.assert_allclose(queries.mean(0), 0, atol=1e-9)
    np.testing.assert_allclose(documents.mean(0), 0, atol=1e-9)
    together = (np.cov(queries.T) + np.cov(documents.T)) / 2
    np.testing.assert_allclose(together, np.eye(6), atol=0.1)


def test_whitening_does_not_look_at_what_belongs_together(sides):
    queries, documents = sides
    shuffled = whitening(queries, documents[::-1])
    np.testing.assert_allclose(shuffled[0].map, whitening(queries, documents)[0].map)


def test_the_probe_finds_a_linear_map_that_holds_for_pairs_it_has_not_seen(sides):
    queries, documents = sides
    how = ProbeConfig(steps=300, batch=128, lr=1e-2)
    maps = probe(queries[:500], documents[:500], how, 0)
    new = [side(x[500:]) for side, x in zip(maps, sides, strict=True)]
    white = [side(x[500:]) for side, x in zip(whitening(*sides), sides, strict=True)]
    assert found_first(*new) > 0.9
    assert found_first(*white) < 0.5
    again = probe(queries[:500], documents[:500], how, 0)
    np.testing.assert_array_equal(maps[0].map, again[0].map)


def test_a_probe_that_only_learns_by_heart_ends_where_it_began():
    generator = np.random.default_rng(1)
    queries, documents = generator.normal(size=(60, 40)), generator.normal(size=(60, 40))
    first, _ = probe(queries, documents, ProbeConfig(steps=100, batch=32, lr=1e-2), 0)
    np.testing.assert_allclose(first.map, whitening(queries, documents)[0].map, rtol=1e-5)
