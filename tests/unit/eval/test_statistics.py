import json
import math
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from restomod.eval.statistics import (
    bootstrap_interval,
    clustered_error,
    compare,
    mcnemar_p,
    permutation_p,
    standard_error,
    welch_p,
)


@pytest.fixture
def scores():
    return np.random.default_rng(0).random((1, 200))


def test_the_error_of_one_seed_is_that_of_the_mean_over_queries(scores):
    assert standard_error(scores) == pytest.approx(stats.sem(scores[0]))


def test_seeds_add_their_variance_to_that_of_queries(scores):
    shifted = np.concatenate([scores, scores + 0.2, scores + 0.4])
    seeds = stats.sem(shifted.mean(1))
    assert standard_error(shifted) == pytest.approx(math.hypot(stats.sem(scores[0]), seeds))


def test_the_interval_is_scipys(scores):
    found = bootstrap_interval(scores)
    theirs = stats.bootstrap((scores[0],), np.mean, method="percentile", random_state=1)
    np.testing.assert_allclose(found, theirs.confidence_interval, atol=0.004)
    assert bootstrap_interval(scores) == found
    assert bootstrap_interval(np.concatenate([scores, scores + 1]))[1] > found[1] + 0.5


def test_sign_flips_agree_with_scipy_and_find_what_is_there():
    differences = np.random.default_rng(1).normal(0.1, 1, 120)
    theirs = stats.permutation_test(
        (differences, np.zeros(120)),
        lambda x, y, axis=0: np.mean(x - y, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=4000,
        rng=0,
    )
    assert permutation_p(differences) == pytest.approx(theirs.pvalue, abs=0.03)
    assert permutation_p(differences + 1) == pytest.approx(1 / 2001)
    assert permutation_p(np.zeros(50)) == 1.0


def test_mcnemar_counts_only_questions_that_one_side_got_right():
    ours = np.array([1] * 9 + [0] * 1 + [1] * 40 + [0] * 7)
    theirs = np.array([0] * 9 + [1] * 1 + [1] * 40 + [0] * 7)
    by_hand = 2 * sum(math.comb(10, k) for k in (0, 1)) / 2**10
    assert mcnemar_p(ours, theirs) == pytest.approx(by_hand)
    assert mcnemar_p(ours, ours) == 1.0


def test_groups_of_equal_queries_count_as_one_draw():
    values = np.repeat([0.0, 0.2, 0.9, 0.4], 25)
    groups = np.repeat(list("abcd"), 25).tolist()
    assert clustered_error(values, groups) == pytest.approx(stats.sem([0.0, 0.2, 0.9, 0.4]))
    assert clustered_error(values, groups) > 4 * standard_error(values[None])
    alone = [str(n) for n in range(100)]
    assert clustered_error(values, alone) == pytest.approx(standard_error(values[None]))
    assert clustered_error(values, ["one"] * 100) is None


def test_one_group_leaves_results_that_json_can_hold(scores):
    found = compare(scores, scores - 0.05, ["one"] * scores.shape[1])
    assert found.clustered_error is None
    json.dumps(asdict(found), allow_nan=False)


def test_a_difference_is_of_the_same_queries(scores):
    worse = scores - 0.05
    found = compare(scores, worse, [])
    assert found.mean == pytest.approx(0.05)
    assert found.error == pytest.approx(0, abs=1e-12)  # all queries differ by as much
    assert found.clustered_error is None
    assert found.test == "paired sign flips over queries"
    seeds = np.concatenate([worse, worse + 0.02])
    assert compare(scores, seeds, []).error == pytest.approx(stats.sem([0.0, 0.02]))


def test_answers_of_one_seed_each_are_compared_by_mcnemar():
    ours, theirs = np.array([[1.0, 0, 1, 1]]), np.array([[1.0, 0, 0, 0]])
    assert compare(ours, theirs, [], answers=True).test == "McNemar, exact"
    both = np.concatenate([theirs, theirs])
    assert compare(ours, both, [], answers=True).test == "paired sign flips over queries"


def test_scores_of_seeds_alone_are_compared_by_welch():
    ours, theirs = np.array([[0.8], [0.82], [0.81]]), np.array([[0.7], [0.75]])
    found = compare(ours, theirs, [])
    theirs_p = stats.ttest_ind(ours[:, 0], theirs[:, 0], equal_var=False).pvalue
    assert (found.test, found.p_value) == ("Welch's t over seeds", pytest.approx(theirs_p))
    assert welch_p(ours[:, 0], theirs[:1, 0]) == 1.0
    assert welch_p(np.ones(3), np.ones(3)) == 1.0


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=40))
def test_p_values_are_symmetric_and_between_zero_and_one(values):
    differences = np.array(values)
    p_value = permutation_p(differences)
    assert 0 < p_value <= 1
    assert permutation_p(-differences) == p_value
