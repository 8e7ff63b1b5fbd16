"""How sure a score is, and a difference between two systems on the same queries or texts.

In: scores of every query, [seeds, queries] (a system with one seed has one row). Out: means,
standard errors, intervals, p-values. `results.py` calls this.

The error of a mean has two parts that are added as variances: queries are a sample of queries,
seeds one of seeds. Queries of one package are alike; where groups are known, `clustered_error`
treats each group as one draw. Neither knows what another training run of the same recipe would have
scored.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from restomod.data.random import keyed_generator

RESAMPLES = 2_000
LEVEL = 0.95


@dataclass(frozen=True)
class Difference:
    """A system's score minus a baseline's."""

    mean: float
    error: float
    """Standard error over queries and seeds."""
    clustered_error: float | None
    """The same with groups as what is drawn; None where there are fewer than two."""
    p_value: float
    test: str


def standard_error(scores: np.ndarray) -> float:
    """Return the standard error of the mean of scores [seeds, queries], over both."""
    queries = scores.mean(0)
    variance = queries.var(ddof=1) / len(queries) if len(queries) > 1 else 0.0
    return math.sqrt(variance + _seed_variance(scores))


def _seed_variance(scores: np.ndarray) -> float:
    seeds = scores.mean(1)
    return float(seeds.var(ddof=1) / len(seeds)) if len(seeds) > 1 else 0.0


def clustered_error(values: np.ndarray, groups: Sequence[str]) -> float | None:
    """Return the standard error of the mean of `values` [queries] when groups of them are drawn
    (Liang and Zeger's, with the correction for few groups); None for fewer than two groups, which
    do not tell."""
    names, number = np.unique(np.asarray(groups), return_inverse=True)
    if len(names) < 2:
        return None
    sums = np.bincount(number, weights=values - values.mean())
    return math.sqrt(len(names) / (len(names) - 1) * (sums**2).sum()) / len(values)


def bootstrap_interval(scores: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """Return the percentile interval at 95 % of the mean of scores [seeds, queries]: seeds and
    queries are both drawn anew."""
    generator = keyed_generator(seed, "bootstrap")
    rows, columns = scores.shape
    means = np.empty(RESAMPLES)
    for n in range(RESAMPLES):
        drawn = scores[generator.integers(rows, size=rows)].mean(0) if rows > 1 else scores[0]
        means[n] = drawn[generator.integers(columns, size=columns)].mean()
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def permutation_p(differences: np.ndarray, seed: int = 0) -> float:
    """Return the two-sided p-value of a paired sign-flip test on the mean of differences
    [queries], from random flips, never below 1 / (flips + 1)."""
    generator = keyed_generator(seed, "permutation")
    seen = abs(differences.mean())
    signs = generator.integers(0, 2, size=(RESAMPLES, len(differences)), dtype=np.int8) * 2 - 1
    flipped = np.abs(signs @ differences) / len(differences)
    return float((1 + (flipped >= seen - 1e-12).sum()) / (RESAMPLES + 1))


def mcnemar_p(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Return the exact two-sided p-value of McNemar's test on right (1) and wrong (0) answers to
    the same questions."""
    wins = int(((ours == 1) & (theirs == 0)).sum())
    losses = int(((ours == 0) & (theirs == 1)).sum())
    decided = wins + losses
    if decided == 0:
        return 1.0
    from scipy.stats import binomtest

    return float(binomtest(wins, decided, 0.5).pvalue)


def welch_p(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Return the two-sided p-value of Welch's t-test on scores of seeds; 1 where a side has one
    seed, or all are equal."""
    if min(len(ours), len(theirs)) < 2 or len({*ours, *theirs}) == 1:
        return 1.0
    from scipy.stats import ttest_ind

    return float(ttest_ind(ours, theirs, equal_var=False).pvalue)


def compare(
    ours: np.ndarray, theirs: np.ndarray, groups: Sequence[str], *, answers: bool = False
) -> Difference:
    """Compare scores [seeds, queries] of two systems on the same queries.

    `answers`: the scores are right or wrong. McNemar's test is then made where both have one seed;
    means over seeds are no yes or no, and the sign-flip test takes them.
    """
    difference = ours.mean(0) - theirs.mean(0)
    seeds = _seed_variance(ours) + _seed_variance(theirs)
    error = standard_error(difference[None])
    clustered = clustered_error(difference, groups)
    if ours.shape[1] == 1:
        p_value, test = welch_p(ours[:, 0], theirs[:, 0]), "Welch's t over seeds"
    elif answers and len(ours) == len(theirs) == 1:
        p_value, test = mcnemar_p(ours[0], theirs[0]), "McNemar, exact"
    else:
        p_value, test = permutation_p(difference), "paired sign flips over queries"
    return Difference(
        float(difference.mean()),
        math.sqrt(error**2 + seeds),
        None if clustered is None else math.sqrt(clustered**2 + seeds),
        p_value,
        test,
    )
