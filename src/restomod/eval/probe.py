"""Labelled tasks on frozen features: what a logistic regression makes of a model's vectors.

In: a model and the examples of `data/labelled.py`. Out: the accuracy on those that were not learned
from, beside that of always naming the commonest label. The evaluations of training and
`restomod eval` call it; it reads no random generator.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import torch
from torch.distributed import all_reduce

from restomod.data.labelled import LabelledTexts
from restomod.data.tokenizer import Tokenizer
from restomod.model.encoder import MaskedLM
from restomod.vectors.texts import BATCH_TOKENS, by_length, hidden_states, pool, token_ids


class Probe:
    """One task, tokenised once."""

    def __init__(self, examples: LabelledTexts, tokenizer: Tokenizer) -> None:
        self._examples = examples
        self._ids = token_ids(tokenizer, examples.texts, examples.tokens)

    def judge(self, model: MaskedLM, rank: int = 0, world_size: int = 1) -> dict[str, float]:
        """Return `accuracy`, `majority` (of naming the commonest label) and `examples` judged by,
        on rank 0; nothing on the others, which compute their share of the features. All ranks
        call it."""
        features = self._features(model, rank, world_size)
        return {} if rank else self._fit(features)

    def _features(self, model: MaskedLM, rank: int, world_size: int) -> np.ndarray:
        """[examples, D]; ranks that share a model compute equally many batches."""
        device = next(model.parameters()).device
        batches = list(by_length([len(ids) for ids in self._ids], BATCH_TOKENS))
        features = torch.zeros(len(self._ids), model.config.hidden_size, device=device)
        for n in range(rank, -(-len(batches) // world_size) * world_size, world_size):
            order = batches[n % len(batches)]
            hidden, bounds = hidden_states(model, [self._ids[i] for i in order])
            if n < len(batches):
                features[order] = pool(hidden, bounds, "mean")
        if world_size > 1:
            all_reduce(features)
        return features.cpu().numpy()

    def _fit(self, features: np.ndarray) -> dict[str, float]:
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        fit, labels = self._examples.fit, np.array(self._examples.labels)
        regression = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
        regression.fit(features[:fit], labels[:fit])
        commonest = Counter(labels[:fit].tolist()).most_common(1)[0][0]
        return {
            "accuracy": float((regression.predict(features[fit:]) == labels[fit:]).mean()),
            "majority": float((labels[fit:] == commonest).mean()),
            "examples": len(labels) - fit,
        }
