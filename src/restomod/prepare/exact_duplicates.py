"""Exact duplicates: documents with the same hash, of which the first is kept.

In: the sorted hashes that `documents.py` leaves for every unit. Out: per unit, which documents to
drop. The space of hashes is cut into as many parts as it takes for each to fit in memory; a task
takes its part of every unit's file, which is one stretch of it, and sorts them together. The first
document in the order of (unit, index) stays, whatever the tasks' order.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from restomod.prepare.atomic import replacing
from restomod.prepare.documents import hashes_file
from restomod.prepare.job import Job

STAGE = "exact_duplicates"
DOCUMENTS_PER_PART = 4_000_000
"""Costs about 300 MB of memory."""


def parts_for(documents: int) -> int:
    """Return into how many parts the hashes of this many documents are cut."""
    return max(1, -(-documents // DOCUMENTS_PER_PART))


def find_in_part(job: Job, part: int, parts: int, units: int) -> dict[str, Any]:
    """Find the duplicates among the hashes of one part; return how many there are by unit.

    Writes [n, 4] int64, sorted: unit and index of a document to drop, and of the one that stays.
    """
    edges = [np.uint64(((1 << 64) - 1) * n // parts) for n in range(parts + 1)]
    low, high = edges[part], edges[part + 1]
    chunks, unit_of = [], []
    for unit in range(units):
        hashes = np.load(hashes_file(job, unit), mmap_mode="r")
        begin = np.searchsorted(hashes["high"], low, "left")
        last = part == parts - 1
        end = len(hashes) if last else np.searchsorted(hashes["high"], high, "left")
        chunks.append(np.array(hashes[begin:end]))
        unit_of.append(np.full(end - begin, unit, np.int64))
    found = np.concatenate(chunks)
    unit_of_found = np.concatenate(unit_of)
    order = np.lexsort((found["index"], unit_of_found, found["low"], found["high"]))
    found, unit_of_found = found[order], unit_of_found[order]
    same = np.zeros(len(found), bool)
    same[1:] = (found["high"][1:] == found["high"][:-1]) & (found["low"][1:] == found["low"][:-1])
    first = np.maximum.accumulate(np.where(same, 0, np.arange(len(found))))[same]
    index = found["index"].astype(np.int64)
    drops = np.column_stack([unit_of_found[same], index[same], unit_of_found[first], index[first]])
    drops = drops[np.lexsort((drops[:, 1], drops[:, 0]))]
    with replacing(_part_file(job, part)) as partial, partial.open("wb") as file:
        np.save(file, drops)
    return {"by_unit": np.bincount(drops[:, 0], minlength=units).tolist()}


def exact_drops(job: Job, unit: int, parts: int) -> np.ndarray:
    """Return a unit's duplicates, [n, 3] int64, sorted: index, and unit and index of what stays."""
    found = []
    for part in range(parts):
        drops = np.load(_part_file(job, part), mmap_mode="r")
        begin, end = np.searchsorted(drops[:, 0], [unit, unit + 1])
        found.append(np.array(drops[begin:end, 1:]))
    joined = np.concatenate(found)
    return joined[np.argsort(joined[:, 0])]


def _part_file(job: Job, part: int) -> Path:
    return job.stage(STAGE) / "drops" / f"{part:06d}.npy"
