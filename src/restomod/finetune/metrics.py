"""Scores of predictions, by scikit-learn and SciPy, and of entities.

In: labels and predictions of a validation set. Out: the metrics of the task by name. `tasks.py`
calls this.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from restomod.finetune.data import require
from restomod.finetune.examples import Example, Examples

TAG = re.compile(r"O|[BI]-.+")


def text_scores(examples: Sequence[Example], logits: Sequence[Tensor]) -> dict[str, float]:
    """Return accuracy, F1 (of class 1 where there are two, else the mean over classes) and
    Matthews' correlation of texts' classes."""
    metrics = require("sklearn.metrics")
    labels = [int(example.labels[0]) for example in examples]
    found = [int(part[0].argmax()) for part in logits]
    average = "binary" if logits[0].shape[1] == 2 else "macro"
    return {
        "accuracy": float(metrics.accuracy_score(labels, found)),
        "f1": float(metrics.f1_score(labels, found, average=average, zero_division=0.0)),
        "matthews": float(metrics.matthews_corrcoef(labels, found)),
    }


def number_scores(examples: Sequence[Example], logits: Sequence[Tensor]) -> dict[str, float]:
    """Return the correlations of predicted numbers; zero where either side never varies."""
    stats = require("scipy.stats")
    labels = np.array([float(example.labels[0]) for example in examples])
    found = np.array([float(part[0, 0]) for part in logits])
    if np.ptp(labels) == 0 or np.ptp(found) == 0:
        return {"spearman": 0.0, "pearson": 0.0}
    return {
        "spearman": float(stats.spearmanr(labels, found).statistic),
        "pearson": float(stats.pearsonr(labels, found).statistic),
    }


def word_scores(data: Examples, logits: Sequence[Tensor]) -> dict[str, float]:
    """Return accuracy and mean F1 over all words, those without a token among them, and the F1 of
    entities where tags are B-, I- and O."""
    metrics = require("sklearn.metrics")
    labels = [example.labels.tolist() for example in data.validation]
    found = []
    for example, part in zip(data.validation, logits, strict=True):
        assert example.firsts is not None
        tags = np.full(len(example.firsts), data.fallback)
        tags[example.firsts >= 0] = part.argmax(1).numpy()
        found.append(tags.tolist())
    flat, flat_found = (list(itertools.chain.from_iterable(tags)) for tags in (labels, found))
    scores = {
        "accuracy": float(metrics.accuracy_score(flat, flat_found)),
        "f1": float(metrics.f1_score(flat, flat_found, average="macro", zero_division=0.0)),
    }
    if has_entities(data.names):
        scores["entity_f1"] = entity_f1(
            [[data.names[n] for n in tags] for tags in labels],
            [[data.names[n] for n in tags] for tags in found],
        )
    return scores


def majority_scores(data: Examples) -> dict[str, float]:
    """Return the scores of always predicting the class that training sees most."""
    seen = np.concatenate([example.labels for example in data.train])
    majority = int(np.bincount(seen, minlength=len(data.names)).argmax())
    constant = functional.one_hot(torch.tensor([majority]), len(data.names)).float()
    firsts = [example.firsts for example in data.validation if example.firsts is not None]
    if not firsts:
        return text_scores(data.validation, [constant] * len(data.validation))
    logits = [constant.expand(int((places >= 0).sum()), -1) for places in firsts]
    return word_scores(dataclasses.replace(data, fallback=majority), logits)


def has_entities(names: Sequence[str]) -> bool:
    """Return whether tags are B-, I- and O."""
    return all(TAG.fullmatch(name) for name in names) and set(names) != {"O"}


def entities(tags: Sequence[str]) -> set[tuple[int, int, str]]:
    """Return (first word, last word, label) of every entity; an I- that continues none begins one,
    as CoNLL's script counts."""
    found = set()
    start = 0
    for n, tag in enumerate(tags):
        kind, _, label = tag.partition("-")
        before = tags[n - 1].partition("-")[2] if n else ""
        if kind == "B" or label != before:
            start = n
        after = tags[n + 1] if n + 1 < len(tags) else "O"
        if label and after != f"I-{label}":
            found.add((start, n, label))
    return found


def entity_f1(labels: Sequence[Sequence[str]], found: Sequence[Sequence[str]]) -> float:
    """Return the F1 of whole entities over texts; 0 if there are none."""
    right = total = 0
    for true_tags, tags in zip(labels, found, strict=True):
        true, guessed = entities(true_tags), entities(tags)
        right += len(true & guessed)
        total += len(true) + len(guessed)
    return 2 * right / total if total else 0.0
