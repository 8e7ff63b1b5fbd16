"""Rank documents by cosine for each query, and score the ranks.

In: `RetrievalItems` and vectors, dense or sparse. Out: metrics of every query. `tasks.py` calls
this. Single vectors only: MaxSim over token vectors is mteb's and PyLate's (`mteb_tasks.py`).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from restomod.eval.items import RetrievalItems

METRICS = ("mrr", "recall_at_1", "recall_at_10", "ndcg_at_10")
CUT = 10
DISCOUNTS = 1 / np.log2(np.arange(2, CUT + 2))
"""What a gain counts at each rank up to `CUT` (Järvelin and Kekäläinen 2002)."""
CHUNK = 512
"""Queries whose similarities are in memory at a time."""


def score_retrieval(items: RetrievalItems, queries: Any, documents: Any) -> dict[str, np.ndarray]:
    """Return each metric of each query, [queries]: mrr is the reciprocal rank of the first right
    answer among all documents. Documents of equal similarity may stand in any order, and a score is
    the mean over all orders, so that vectors without information score as chance does."""
    queries, documents = unit(queries), unit(documents)
    scores = {name: np.zeros(len(items.queries)) for name in METRICS}
    for begin in range(0, len(items.queries), CHUNK):
        similar = queries[begin : begin + CHUNK] @ documents.T
        similar = np.asarray(similar.todense() if hasattr(similar, "todense") else similar)
        for row, n in zip(similar, range(begin, len(items.queries)), strict=False):
            if items.relevant[n]:
                for name, value in _score(row, items.relevant[n]).items():
                    scores[name][n] = value
    return scores


def _score(similarities: np.ndarray, answers: dict[int, int]) -> dict[str, float]:
    """Return the metrics of one query, whose right answers have these grades."""
    places = [place(similarities, document) for document in answers]
    first = min(above for above, _ in places)
    equal = next(equal for above, equal in places if above == first)
    right = sum(above == first for above, _ in places)
    ideal = sorted(answers.values(), reverse=True)[:CUT]
    gains = sum(
        grade * DISCOUNTS[above : above + equal].sum() / equal
        for (above, equal), grade in zip(places, answers.values(), strict=True)
    )
    return {
        "mrr": mean_reciprocal(first, equal, right),
        "recall_at_1": _within(1, places),
        "recall_at_10": _within(CUT, places),
        "ndcg_at_10": float(gains / np.dot(ideal, DISCOUNTS[: len(ideal)])),
    }


def place(similarities: np.ndarray, document: int) -> tuple[int, int]:
    """Return how many documents are more similar than this one, and how many as similar as it,
    itself among them."""
    own = similarities[document]
    return int((similarities > own).sum()), int((similarities == own).sum())


def mean_reciprocal(above: int, equal: int, right: int) -> float:
    """Return the mean reciprocal rank of the first of `right` answers, over the orders in which
    `equal` documents, they among them, may stand behind `above` others."""
    # It is the n-th of them, counted from 1, in orders as C(equal - n, right - 1).
    n = np.arange(1, equal - right + 1)
    next_to_this = (equal - n - right + 1) / (equal - n)
    odds = right / equal * np.cumprod([1.0, *next_to_this])
    return float((odds / np.arange(above + 1, above + 1 + len(odds))).sum())


def _within(cut: int, places: list[tuple[int, int]]) -> float:
    """Return the share of answers among the first `cut` documents."""
    return float(np.mean([min(max((cut - above) / equal, 0), 1) for above, equal in places]))


def unit(vectors: Any) -> Any:
    """Return vectors of length 1; those of length 0 stay."""
    if isinstance(vectors, np.ndarray):
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors / np.where(lengths > 0, lengths, 1)
    from sklearn.preprocessing import normalize

    return normalize(vectors)
