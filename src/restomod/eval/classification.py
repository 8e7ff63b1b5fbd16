"""Logistic regression on frozen features (scikit-learn).

In: `LabelledItems` and the features of both parts, dense or sparse. Out: whether each text was
labelled rightly. `tasks.py` calls this.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from restomod.eval.items import LabelledItems

INVERSE_PENALTIES = (0.01, 0.1, 1.0)
FOLDS = 3


def score_classification(items: LabelledItems, train: Any, test: Any) -> dict[str, np.ndarray]:
    """Return {"accuracy": [texts], 1 or 0}. Vectors are scaled to unit variance; the penalty is
    chosen by cross-validation on the training part, or is 1 where a label has too few texts."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, StratifiedKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    scaling = [StandardScaler()] if isinstance(train, np.ndarray) else []  # TF-IDF has its own
    model = make_pipeline(*scaling, LogisticRegression(max_iter=500))
    smallest = min(items.train_labels.count(label) for label in set(items.train_labels))
    if smallest >= FOLDS:
        folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0)
        grid = {"logisticregression__C": INVERSE_PENALTIES}
        model = GridSearchCV(model, grid, cv=folds)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # convergence: the penalty that needs more is not chosen
        predicted = model.fit(train, items.train_labels).predict(test)
    return {"accuracy": (predicted == np.asarray(items.test_labels)).astype(float)}


def majority(items: LabelledItems) -> float:
    """Return the accuracy of always saying the commonest label, of equals the first by name."""
    common = max(sorted(set(items.train_labels)), key=items.train_labels.count)
    return items.test_labels.count(common) / len(items.test_labels)
