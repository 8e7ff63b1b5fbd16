"""Runs one task of a suite over all systems.

In: a task, systems, what was held out. Out: `TaskScores`; a UserError where no system has the
vectors that a task needs, or some are not finite. `run.py` calls this.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from restomod.errors import UserError
from restomod.eval.classification import majority, score_classification
from restomod.eval.encoders import Encoder, Reading, System
from restomod.eval.folders import labelled_items, retrieval_items
from restomod.eval.items import LabelledItems, RetrievalItems
from restomod.eval.offline.build import offline_items
from restomod.eval.offline.packages import Packages
from restomod.eval.results import TaskScores
from restomod.eval.retrieval import score_retrieval
from restomod.eval.suite import ClassificationTask, RetrievalTask, Suite

PROBE = ", probe"
Scores = dict[str, list[dict[str, np.ndarray]]]
"""System -> for each seed, metric -> [queries]."""


def run_retrieval(
    name: str, task: RetrievalTask, suite: Suite, systems: list[System], packages: Packages | None
) -> TaskScores:
    """Score single-vector retrieval of every system."""
    folder = Path(suite.data_dir) / task.folder
    if absent := _absent(task, folder):
        return TaskScores(name, "retrieval", {}, skipped=absent)
    if task.offline:
        assert packages is not None
        found = offline_items(task.offline, task.most, packages, Path(suite.cache_dir))
        assert isinstance(found, RetrievalItems)
        items = found.reversed() if task.reverse else found
    else:
        items = retrieval_items(folder, task.split)
    scores: Scores = {}
    for system in systems:
        for encoder in system.encoders:
            how = Reading(items.documents, task.whole, query=task.reverse)
            documents = _features(name, system, encoder, items.documents, how)
            asking = replace(how, query=not task.reverse)
            queries = _features(name, system, encoder, items.queries, asking)
            scored = score_retrieval(items, queries, documents)
            scores.setdefault(system.name, []).append(scored)
    count = len(items.documents)
    chance = float(np.mean(1 / np.arange(1, count + 1)))  # of one right answer
    about = items.about | {"fingerprint": items.fingerprint, "documents": count, "chance": chance}
    return TaskScores(name, "retrieval", about, items.groups, stacked(name, scores))


def run_classification(
    name: str,
    task: ClassificationTask,
    suite: Suite,
    systems: list[System],
    packages: Packages | None,
) -> TaskScores:
    """Score logistic regression on every system's features, but probes: they are linear maps, which
    the regression finds itself."""
    folder = Path(suite.data_dir) / task.folder
    if absent := _absent(task, folder):
        return TaskScores(name, "classification", {}, skipped=absent)
    if task.offline:
        assert packages is not None
        found = offline_items(task.offline, task.most, packages, Path(suite.cache_dir))
        assert isinstance(found, LabelledItems)
        items = found
    else:
        items = labelled_items(folder, task.most, task.labels)
    scores: Scores = {}
    for system in systems:
        for encoder in [] if system.name.endswith(PROBE) else system.encoders:
            how = Reading(items.train_texts)
            train, test = (
                _features(name, system, encoder, texts, how)
                for texts in (items.train_texts, items.test_texts)
            )
            scored = score_classification(items, train, test)
            scores.setdefault(system.name, []).append(scored)
    about: dict[str, Any] = items.about | {
        "fingerprint": items.fingerprint,
        "labels": len(set(items.train_labels)),
        "train_texts": len(items.train_texts),
        "majority": majority(items),
    }
    return TaskScores(name, "classification", about, items.groups, stacked(name, scores))


def _features(
    name: str, system: System, encoder: Encoder, texts: Sequence[str], how: Reading
) -> Any:
    """Return a system's features of texts; raise UserError where they are not finite, of which any
    score would be one of nothing."""
    features = encoder.encode(texts, how)
    if isinstance(features, np.ndarray) and not np.isfinite(features).all():
        raise UserError(
            f"tasks.{name}: {system.name}: its vectors hold numbers that are not finite, as of a "
            "model that diverged; judge an earlier checkpoint"
        )
    return features


def _absent(task: RetrievalTask | ClassificationTask, folder: Path) -> str:
    """Return why a task that may be left out is; empty where it is not."""
    left_out = task.folder and task.optional and not folder.is_dir()
    return f"{folder} is not there" if left_out else ""


def stacked(name: str, scores: Scores) -> dict[str, dict[str, np.ndarray]]:
    """Return system -> metric -> [seeds, queries]; raise UserError where no system was scored."""
    if not scores:
        raise UserError(
            f"tasks.{name}: no model here has one vector a text, which this task needs (PyLate's "
            "have one a token): take the task out, or judge another model"
        )
    return {
        system: {metric: np.stack([one[metric] for one in seeds]) for metric in seeds[0]}
        for system, seeds in scores.items()
    }
