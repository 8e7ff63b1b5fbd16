"""Treatments of an untuned encoder's features, the same for a model and for random initialisation.

In: features of queries and documents out of packages that are in no task. Out: maps for either
side. `run.py` calls this.

An encoder trained on masked tokens alone is no text encoder yet: its mean vectors share one large
direction, and differ little from text to text. Whitening takes that out without labels (Su et al.,
arXiv 2103.15316, which also takes the first and the last layer together). The probe then learns a
linear map for queries and one for documents from pairs: for retrieval what logistic regression on
frozen features is for classification. Neither changes the encoder.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from restomod.data.random import keyed_generator
from restomod.eval.suite import ProbeConfig

SMALLEST = 1e-3
"""Of the largest variance: directions with less are not stretched further."""
DEV_SHARE = 0.1
"""Of the pairs, by which the probe's length of training is chosen."""
CHECK_EVERY = 20


@dataclass(frozen=True)
class Side:
    """What is done with the features of queries, or of documents: (x - mean) @ map."""

    mean: np.ndarray
    map: np.ndarray

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """Return treated features."""
        return (features - self.mean) @ self.map


def whitening(queries: np.ndarray, documents: np.ndarray) -> tuple[Side, Side]:
    """Return the maps that take each side's mean out and give all directions equal variance, one
    rotation for both sides. No use is made of which query belongs to which document."""
    covariance = (np.cov(queries.T) + np.cov(documents.T)) / 2
    variances, directions = np.linalg.eigh(covariance)
    scales = 1 / np.sqrt(np.maximum(variances, 0) + SMALLEST * variances.max())
    symmetric = (directions * scales) @ directions.T
    return Side(queries.mean(0), symmetric), Side(documents.mean(0), symmetric)


def probe(
    queries: np.ndarray, documents: np.ndarray, how: ProbeConfig, seed: int
) -> tuple[Side, Side]:
    """Return linear maps learned on pairs (row n of both), from whitening on: each query is to be
    nearer to its document than to the batch's others, and the other way round (InfoNCE).

    Training ends where a tenth of the pairs, which it does not see, is served best.
    """
    white = whitening(queries, documents)
    treated = [
        torch.from_numpy(side(x).astype(np.float32))
        for side, x in zip(white, (queries, documents), strict=True)
    ]
    generator = keyed_generator(seed, "probe")
    order = generator.permutation(len(queries))
    dev, train = np.split(order, [max(2, round(DEV_SHARE * len(order)))])
    maps = [torch.eye(treated[0].shape[1]).requires_grad_() for _ in treated]
    optimizer = torch.optim.Adam(maps, lr=how.lr)
    best, kept = np.inf, [m.detach().clone() for m in maps]
    for step in range(how.steps + 1):
        if step % CHECK_EVERY == 0:
            with torch.no_grad():
                loss = float(_loss(treated, maps, dev, how.temperature))
            if loss < best:
                best, kept = loss, [m.detach().clone() for m in maps]
        batch = generator.choice(train, min(how.batch, len(train)), replace=False)
        optimizer.zero_grad()
        _loss(treated, maps, batch, how.temperature).backward()
        optimizer.step()
    first, second = (
        Side(side.mean, side.map @ own.numpy().astype(side.map.dtype))
        for side, own in zip(white, kept, strict=True)
    )
    return first, second


def _loss(
    treated: list[Tensor], maps: list[Tensor], batch: np.ndarray, temperature: float
) -> Tensor:
    chosen = torch.from_numpy(batch)
    own, other = (F.normalize(x[chosen] @ m, dim=1) for x, m in zip(treated, maps, strict=True))
    similar = own @ other.T / temperature
    target = torch.arange(len(batch))
    return (F.cross_entropy(similar, target) + F.cross_entropy(similar.T, target)) / 2
