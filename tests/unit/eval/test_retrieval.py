import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_matrix
from sklearn.metrics import ndcg_score

from restomod.eval.items import RetrievalItems, from_plain, to_plain
from restomod.eval.mteb_tasks import max_sim
from restomod.eval.retrieval import METRICS, score_retrieval


def items(relevant, documents=4):
    return RetrievalItems(["q"] * len(relevant), ["d"] * documents, relevant)


def test_ranks_and_scores_by_hand():
    documents = np.eye(4)
    queries = np.array([[4.0, 3, 2, 1], [4.0, 3, 2, 1], [1.0, 0, 0, 0]])
    found = score_retrieval(items([{0: 1}, {2: 1}, {0: 1, 3: 1}]), queries, documents)
    assert found["mrr"].tolist() == pytest.approx([1, 1 / 3, 1])
    assert found["recall_at_1"].tolist() == [1, 0, 0.5]
    assert found["recall_at_10"].tolist() == [1, 1, 1]
    # The third query: document 3 shares the ranks 2 to 4 with two others.
    best, shared = 1 + 1 / np.log2(3), np.mean(1 / np.log2([3, 4, 5]))
    assert found["ndcg_at_10"].tolist() == pytest.approx([1, 0.5, (1 + shared) / best])


@pytest.mark.parametrize("equals", [False, True])
def test_ndcg_with_grades_is_sklearns_with_equals_and_without(equals):
    generator = np.random.default_rng(0)
    queries, documents = generator.normal(size=(5, 8)), generator.normal(size=(30, 8))
    if equals:
        documents = np.eye(8)[np.arange(30) % 3]
    grades = generator.integers(0, 4, size=(5, 30))
    relevant = [{n: int(g) for n, g in enumerate(row) if g} for row in grades]
    found = score_retrieval(items(relevant, 30), queries, documents)
    unit = documents / np.linalg.norm(documents, axis=1, keepdims=True)
    theirs = [ndcg_score([g], [q @ unit.T], k=10) for q, g in zip(queries, grades, strict=True)]
    np.testing.assert_allclose(found["ndcg_at_10"], theirs)


def test_vectors_without_information_score_as_chance_does():
    found = score_retrieval(items([{n: 1} for n in range(9)], 9), np.ones((9, 3)), np.ones((9, 3)))
    assert found["mrr"].tolist() == pytest.approx([np.mean(1 / np.arange(1, 10))] * 9)
    assert found["recall_at_1"].tolist() == pytest.approx([1 / 9] * 9)
    assert found["recall_at_10"].tolist() == [1] * 9


@settings(max_examples=40)
@given(
    st.lists(st.integers(0, 2), min_size=1, max_size=5),
    st.sets(st.integers(0, 4), min_size=1, max_size=3),
)
def test_scores_with_equals_are_the_means_over_all_their_orders(similarities, answers):
    count = len(similarities)
    answers = {n % count: n % 3 + 1 for n in answers}

    def scores(values):
        lengths = np.sqrt(10.0**2 - np.square(values))  # so that all documents are as long
        found = score_retrieval(
            items([answers], count), np.array([[1.0, 0]]), np.stack([values, lengths], 1)
        )
        return [found[name][0] for name in METRICS]

    values = np.array(similarities, float)
    orders = [
        scores(values + 0.01 * np.array(order)) for order in itertools.permutations(range(count))
    ]
    assert scores(values) == pytest.approx(np.mean(orders, 0).tolist())


def test_sparse_and_dense_vectors_score_alike_and_length_does_not_count():
    generator = np.random.default_rng(1)
    queries, documents = generator.random((6, 5)), generator.random((7, 5))
    documents[3] = 0
    task = items([{n: 1} for n in range(6)], 7)
    dense = score_retrieval(task, queries, documents * 3)
    sparse = score_retrieval(task, csr_matrix(queries), csr_matrix(documents))
    for name, values in dense.items():
        np.testing.assert_allclose(values, sparse[name])


def test_max_sim_is_the_sum_of_the_best_cosines():
    generator = np.random.default_rng(2)
    queries = [generator.normal(size=(n, 4)) for n in (2, 5)]
    documents = [generator.normal(size=(n, 4)) for n in (3, 1, 6)]

    def cosine(a, b):
        return a @ b / np.linalg.norm(a) / np.linalg.norm(b)

    by_hand = [[sum(max(cosine(t, u) for u in d) for t in q) for d in documents] for q in queries]
    np.testing.assert_allclose(max_sim(queries, documents), by_hand)


def test_reversed_items_ask_with_documents_and_survive_json():
    task = RetrievalItems(["a", "b"], ["x", "y"], [{0: 1}, {1: 1}], ["g", "h"], {"items": 2})
    assert from_plain(to_plain(task)) == task
    back = task.reversed()
    assert (back.queries, back.documents) == (["x", "y"], ["a", "b"])
    assert back.fingerprint != task.fingerprint
