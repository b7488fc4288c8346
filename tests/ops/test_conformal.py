"""Nonconformity by definition; quantiles by counting, and by coverage over all samples."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest

from sc_jax import ops

P = np.random.default_rng(0).dirichlet(np.ones(5), 20)
U = np.random.default_rng(1).random(20)


def by_definition(p, u):
    """APS and ranks, class by class."""
    scores, ranks = np.zeros(len(p)), np.zeros(len(p))
    for k in range(len(p)):
        before = [j for j in range(len(p)) if p[j] > p[k] or (p[j] == p[k] and j < k)]
        scores[k], ranks[k] = sum(p[j] for j in before) + u * p[k], len(before) + 1
    return scores, ranks


def test_scores_are_their_definitions():
    tied = np.array([[0.25, 0.25, 0.5, 0.0, 0.0]])
    p, u = np.concatenate([P, tied]), np.append(U, 0.5)
    aps, rank = (np.stack(x) for x in zip(*(by_definition(*row) for row in zip(p, u, strict=True)), strict=True))
    np.testing.assert_allclose(ops.aps(p, u), aps, atol=1e-15)
    np.testing.assert_array_equal(ops.top_k_rank(p), rank)
    np.testing.assert_allclose(ops.raps(p, u, 0.3, 2), aps + 0.3 * np.maximum(rank - 2, 0), atol=1e-15)
    top = p.max(axis=1, keepdims=True)
    saps = np.where(rank == 1, u[:, None] * top, top + (rank - 2 + u[:, None]) * 0.2)
    np.testing.assert_allclose(ops.saps(p, u, 0.2), saps, atol=1e-15)
    np.testing.assert_array_equal(ops.lac(p), 1 - p)


def test_aps_of_the_true_class_is_uniform_where_probabilities_are_right():
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(4), 20_000)
    label = (rng.random((20_000, 1)) > np.cumsum(p, axis=1)).sum(axis=1)
    score = ops.aps(p, rng.random(20_000))[np.arange(20_000), label]
    for q in (0.1, 0.5, 0.9):
        assert abs((score <= q).mean() - q) < 5 * math.sqrt(q * (1 - q) / 20_000)


def test_scores_ignore_the_place_of_a_class():
    order = np.random.default_rng(2).permutation(5)
    for of in (ops.lac, ops.top_k_rank, lambda p: ops.aps(p, U), lambda p: ops.saps(p, U, 0.1)):
        np.testing.assert_allclose(of(P[:, order]), of(P)[:, order], atol=1e-15)


@pytest.mark.parametrize("n", [1, 2, 8, 9, 10, 19, 99])
@pytest.mark.parametrize("alpha", ["0.1", "0.05", "0.3", "0.01", "0.5"])
def test_the_quantile_is_the_order_statistic(n, alpha):
    scores = np.random.default_rng(n).normal(size=(3, n))
    rank = math.ceil((n + 1) * (1 - Fraction(alpha)))
    expected = np.sort(scores, axis=-1)[:, rank - 1] if rank <= n else np.full(3, np.inf)
    np.testing.assert_array_equal(ops.conformal_quantile(scores, float(alpha)), expected)


@pytest.mark.parametrize(("n", "alpha"), [(4, "0.2"), (4, "0.3"), (3, "0.25"), (5, "0.5")])
def test_coverage_over_all_orders_is_exact(n, alpha):
    """n + 1 exchangeable scores without ties: the last is covered in ⌈(n + 1)(1 − α)⌉ of n + 1 orders; one off it would not be."""
    orders = np.array(list(itertools.permutations(range(n + 1))), float)
    covered = orders[:, -1] <= ops.conformal_quantile(orders[:, :-1], alpha)
    rank = math.ceil((n + 1) * (1 - Fraction(alpha)))
    assert Fraction(int(covered.sum()), len(orders)) == Fraction(rank, n + 1) >= 1 - Fraction(alpha)
    below = orders[:, -1] <= np.sort(orders[:, :-1], axis=-1)[:, rank - 2]
    assert Fraction(int(below.sum()), len(orders)) < 1 - Fraction(alpha)


def test_ties_cover_more_never_less():
    for scores in itertools.product((0.0, 1.0), repeat=5):
        orders = np.array(list(itertools.permutations(scores)))
        assert (orders[:, -1] <= ops.conformal_quantile(orders[:, :-1], 0.2)).mean() >= 0.8


def test_equal_weights_are_no_weights():
    rng = np.random.default_rng(0)
    for n, alpha in itertools.product((1, 9, 10, 57), (0.1, 0.3, 0.01)):
        scores = rng.integers(0, 20, n).astype(float)
        found = ops.weighted_conformal_quantile(scores, np.full(n, 0.7), np.array([0.7, 0.7]), alpha)
        np.testing.assert_array_equal(found, [ops.conformal_quantile(scores, alpha)] * 2)


def test_weighted_quantile_is_that_of_repeated_rows():
    """Whole weights of calibration examples, and of a test example the weight of as many points at infinity."""
    scores, weight = np.array([3.0, 1.0, 2.0, 5.0]), np.array([2.0, 0.0, 3.0, 1.0])
    for test, alpha in itertools.product((1, 2, 4), (0.1, 0.4, 0.5, 0.75)):
        rows = np.sort(np.append(np.repeat(scores, weight.astype(int)), [np.inf] * test))
        at = math.ceil((1 - Fraction(str(alpha))) * len(rows)) - 1
        assert ops.weighted_conformal_quantile(scores, weight, np.array([test]), alpha)[0] == rows[at]


def test_weights_carry_coverage_over_a_shift():
    """Scores depend on x, and test inputs are twice as often of the hard kind."""
    rng = np.random.default_rng(0)
    plain, weighted = [], []
    for _ in range(2000):
        hard = rng.random(60) < 0.3
        scores = rng.random(60) + hard
        hard_test = rng.random(20) < 0.6
        test = rng.random(20) + hard_test
        weight = np.where(hard, 0.6 / 0.3, 0.4 / 0.7)
        test_weight = np.where(hard_test, 0.6 / 0.3, 0.4 / 0.7)
        weighted.append((test <= ops.weighted_conformal_quantile(scores, weight, test_weight, 0.2)).mean())
        plain.append((test <= ops.conformal_quantile(scores, 0.2)).mean())
    assert np.mean(plain) < 0.75 < 0.79 < np.mean(weighted) < 0.83


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ops.conformal_quantile(np.array([1.0, np.nan]), 0.1), "must not be NaN"),
        (lambda: ops.conformal_quantile(np.ones(3), 0), "alpha must lie in"),
        (lambda: ops.conformal_quantile(np.ones(3), 1), "alpha must lie in"),
        (lambda: ops.weighted_conformal_quantile(np.ones(2), np.array([1, -1.0]), np.ones(1), 0.1), "finite and ≥ 0"),
        (lambda: ops.weighted_conformal_quantile(np.ones(2), np.ones(2), np.array([np.inf]), 0.1), "finite and ≥ 0"),
        (lambda: ops.weighted_conformal_quantile(np.ones(2), np.ones(3), np.ones(1), 0.1), "has shape"),
    ],
)
def test_what_has_no_quantile_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
