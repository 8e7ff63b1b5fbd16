"""Which documents of a unit are dropped as duplicates, and the tasks that find near duplicates.

In: what `exact_duplicates.py` found, and the texts of `documents.py`. Out: indices to drop, for
tokenisation and the manifest. Near duplicates are looked for among what exact ones leave; their
module counts documents without the exact duplicates, here they count as in the unit again.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from restomod.prepare import near_duplicates
from restomod.prepare.documents import stored_documents
from restomod.prepare.exact_duplicates import exact_drops
from restomod.prepare.job import Job

FOLDER = "near_duplicates"
SIGN, MATCH, CLUSTER = "near_signatures", "near_matches", "near_clusters"


def sign_unit(job: Job, unit: int, parts: int) -> dict[str, Any]:
    """Write the MinHash signatures of a unit's documents that are no exact duplicates."""
    counted = near_duplicates.write_signatures(
        job.stage(FOLDER), unit, _survivors(job, unit, parts), job.recipe.deduplicate.near
    )
    return {"documents": counted}


def _survivors(job: Job, unit: int, parts: int) -> Iterator[str]:
    dropped = _exact(job, unit, parts)[:, 0]
    for batch in stored_documents(job, unit, dropped):
        for document in batch:
            yield document.text


def match_bucket(job: Job, bucket: int, units: int) -> dict[str, Any]:
    """Find the documents whose hashes agree in one bucket."""
    near_duplicates.match_bucket(job.stage(FOLDER), bucket, units, job.recipe.deduplicate.near)
    return {}


def cluster(job: Job, units: int) -> dict[str, Any]:
    """Join near duplicates into clusters; return how many documents are dropped by unit."""
    found = near_duplicates.cluster(job.stage(FOLDER), units, job.recipe.deduplicate.near)
    return {"clusters": found.clusters, "by_unit": found.dropped_by_unit}


def _exact(job: Job, unit: int, parts: int) -> np.ndarray:
    if not job.recipe.deduplicate.exact:
        return np.empty((0, 3), np.int64)
    return exact_drops(job, unit, parts)


def drops(job: Job, unit: int, documents: int, parts: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a unit's exact and its near duplicates, [n, 3] int64 each: the index of a document to
    drop, sorted, and unit and index of the one that stays. A unit's near duplicates may name
    another unit's document by its index among what exact duplicates leave."""
    exact = _exact(job, unit, parts)
    if not job.recipe.deduplicate.near.enabled:
        return exact, np.empty((0, 3), np.int64)
    near = near_duplicates.read_drops(job.stage(FOLDER), unit).copy()
    near[:, 0] = _places(exact, documents)[near[:, 0]]
    return exact, near


def _places(exact: np.ndarray, documents: int) -> np.ndarray:
    """Return the index in the unit of every document that is no exact duplicate."""
    return np.setdiff1d(np.arange(documents), exact[:, 0], assume_unique=True)


def kept_place(job: Job, unit: int, documents: int, parts: int, index: int) -> int:
    """Return the index in its unit of a document that near duplicates name."""
    return int(_places(_exact(job, unit, parts), documents)[index])
