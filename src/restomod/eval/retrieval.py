"""Rank documents by cosine for each query, and score the ranks.

In: `RetrievalItems` and vectors, dense or sparse. Out: metrics of every query. Single vectors only:
MaxSim over token vectors is mteb's and PyLate's (`mteb_tasks.py`).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from restomod.eval.items import RetrievalItems

METRICS = ("mrr", "recall_at_1", "recall_at_10", "ndcg_at_10")
CUT = 10
CHUNK = 512
"""Queries whose similarities are in memory at a time."""


def score_retrieval(items: RetrievalItems, queries: Any, documents: Any) -> dict[str, np.ndarray]:
    """Return each metric of each query, [queries]: mrr is the reciprocal rank of the first right
    answer among all documents. Equal similarities share the mean of their ranks, so that vectors
    without information score as chance does."""
    queries, documents = unit(queries), unit(documents)
    scores = {name: np.zeros(len(items.queries)) for name in METRICS}
    for begin in range(0, len(items.queries), CHUNK):
        similar = queries[begin : begin + CHUNK] @ documents.T
        similar = np.asarray(similar.todense() if hasattr(similar, "todense") else similar)
        for row, n in zip(similar, range(begin, len(items.queries)), strict=False):
            answers = items.relevant[n]
            ranks = [expected_rank(row, document) for document in answers]
            _score(scores, n, ranks, list(answers.values()))
    return scores


def _score(scores: dict[str, np.ndarray], n: int, ranks: list[float], grades: list[int]) -> None:
    if not ranks:
        return
    scores["mrr"][n] = 1 / min(ranks)
    scores["recall_at_1"][n] = sum(rank <= 1 for rank in ranks) / len(ranks)
    scores["recall_at_10"][n] = sum(rank <= CUT for rank in ranks) / len(ranks)
    gains = sum(
        grade / np.log2(rank + 1) for rank, grade in zip(ranks, grades, strict=True) if rank <= CUT
    )
    best = sorted(grades, reverse=True)[:CUT]
    scores["ndcg_at_10"][n] = gains / sum(g / np.log2(r + 2) for r, g in enumerate(best))


def expected_rank(similarities: np.ndarray, document: int) -> float:
    """Return the rank, from 1, of a document by its similarity; the mean rank of its equals."""
    own = similarities[document]
    above = int((similarities > own).sum())
    equal = int((similarities == own).sum())
    return above + (equal + 1) / 2


def unit(vectors: Any) -> Any:
    """Return vectors of length 1; those of length 0 stay."""
    if isinstance(vectors, np.ndarray):
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors / np.where(lengths > 0, lengths, 1)
    from sklearn.preprocessing import normalize

    return normalize(vectors)
