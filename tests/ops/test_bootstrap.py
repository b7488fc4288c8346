"""Resampled counts, intervals, and Holm's adjustment."""

import itertools
from fractions import Fraction
from math import factorial

import numpy as np
import pytest
import scipy.stats
from brute_force import reproducible
from hypothesis import given, settings
from hypothesis import strategies as st

from sc_jax import ops
from sc_jax.ops import bootstrap


@pytest.mark.parametrize("n", [1, 2, 5, 1000])
def test_a_resample_draws_n_of_n(n):
    counts = bootstrap.resample_counts(0, n, 30)
    assert counts.shape == (30, n)
    assert counts.dtype == np.uint8
    np.testing.assert_array_equal(counts.sum(axis=1), n)


def test_resamples_come_from_the_seed_alone():
    first = bootstrap.resample_counts(7, 50, 20)
    np.testing.assert_array_equal(bootstrap.resample_counts(7, 50, 20), first)
    np.testing.assert_array_equal(bootstrap.resample_counts(7, 50, 40)[:20], first)  # more extends, and changes none
    assert (bootstrap.resample_counts(8, 50, 20) != first).any()
    assert len(np.unique(first, axis=0)) == 20


def test_resamples_are_multinomial():
    n, draws = 3, 20_000
    counts = bootstrap.resample_counts(1, n, draws)
    outcomes = [c for c in itertools.product(range(n + 1), repeat=n) if sum(c) == n]
    expected = [draws * factorial(n) / np.prod([factorial(c) for c in outcome]) / n**n for outcome in outcomes]
    observed = [(counts == outcome).all(axis=1).sum() for outcome in outcomes]
    assert sum(observed) == draws
    assert scipy.stats.chisquare(observed, expected).pvalue > 1e-4


def test_every_example_is_drawn_alike():
    n, draws = 40, 5000
    counts = bootstrap.resample_counts(2, n, draws).astype(float)
    mean, variance = counts.mean(axis=0), counts.var(axis=0)
    assert np.abs(mean - 1).max() < 5 * np.sqrt((1 - 1 / n) / draws)
    assert np.abs(variance / (1 - 1 / n) - 1).max() < 0.15  # standard error of a variance here: √(3/draws) = 0.024
    covariance = np.cov(counts, rowvar=False)[~np.eye(n, dtype=bool)]
    np.testing.assert_allclose(covariance.mean(), -1 / n, atol=0.001)  # rows have a fixed sum


@pytest.mark.parametrize("n", [1, 3, 10, 11])
@pytest.mark.parametrize("entries", [1, 10, 25, 1000])
def test_chunks_hold_every_row_once_in_order(n, entries):
    counts = np.arange(7 * n).reshape(7, n)
    parts = [counts[part] for part in bootstrap.chunks(counts, entries)]
    np.testing.assert_array_equal(np.concatenate(parts), counts)
    assert all(0 < len(part) <= max(1, entries // n) for part in parts)


@pytest.mark.parametrize("level", [0.5, 0.9, 0.95])
@pytest.mark.parametrize("shape", [(100,), (100, 4), (37, 2, 3)])
def test_interval_is_of_quantiles(level, shape):
    replicates = np.random.default_rng(0).normal(size=shape)
    low, high = bootstrap.percentile_interval(replicates, level)
    np.testing.assert_allclose(low, np.quantile(replicates, (1 - level) / 2, axis=0))
    np.testing.assert_allclose(high, np.quantile(replicates, (1 + level) / 2, axis=0))


def test_nan_replicates_are_left_out_of_the_interval():
    replicates = np.random.default_rng(0).normal(size=(100, 4))
    replicates[:50, 1] = np.nan
    replicates[:51, 2] = np.nan
    replicates[:, 3] = np.nan
    interval = bootstrap.percentile_interval(replicates)
    np.testing.assert_allclose(interval[:, 0], np.quantile(replicates[:, 0], [0.025, 0.975]))
    np.testing.assert_allclose(interval[:, 1], np.quantile(replicates[50:, 1], [0.025, 0.975]))
    assert np.isnan(interval[:, 2:]).all()
    np.testing.assert_array_equal(bootstrap.percentile_interval(replicates[:, 1]), interval[:, 1])
    assert np.isnan(bootstrap.percentile_interval(replicates[:, 2])).all()


def rejected(p: list[Fraction], level: Fraction) -> set[int]:
    """Holm's procedure: from the smallest p on, reject while p ≤ level over the number of hypotheses left."""
    left = sorted(range(len(p)), key=lambda i: p[i])
    found = set()
    while left and p[left[0]] <= level / len(left):
        found.add(left.pop(0))
    return found


@given(st.lists(st.integers(0, 64).map(lambda k: k / 64), min_size=1, max_size=7))
@settings(reproducible, max_examples=300)
def test_holm_is_the_smallest_level_that_rejects(p):
    exact = [Fraction(q) for q in p]
    adjusted = [Fraction(float(q)) for q in bootstrap.holm(np.array(p))]  # products of k/64 are exact
    for i, q in enumerate(adjusted):
        if q < 1:
            assert i in rejected(exact, q)
        if q > 0:
            assert i not in rejected(exact, q - Fraction(1, 10**6))


def test_holm_by_hand():
    # sorted .005 .01 .03 .04: 4 · .005 = .02, 3 · .01 = .03, 2 · .03 = .06, 1 · .04 = .04 → .06
    np.testing.assert_allclose(bootstrap.holm(np.array([0.01, 0.04, 0.03, 0.005])), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_array_equal(bootstrap.holm(np.array([0.7, 0.6])), [1, 1])
    np.testing.assert_array_equal(bootstrap.holm(np.array([0.2])), [0.2])
    assert bootstrap.holm(np.array([])).shape == (0,)


def test_replicates_by_weights_are_those_of_the_resamples():
    rng = np.random.default_rng(0)
    score, error = rng.integers(0, 25, 80) / 10, rng.random(80) < 0.25
    counts = bootstrap.resample_counts(3, 80, 25)
    replicates = np.concatenate(
        [ops.aurc(score, error, weight=counts[rows]) for rows in bootstrap.chunks(counts, 80 * 7)]
    )
    for count, replicate in zip(counts, replicates, strict=True):
        drawn = np.repeat(np.arange(80), count)
        rng.shuffle(drawn)
        np.testing.assert_allclose(replicate, ops.aurc(score[drawn], error[drawn]), rtol=1e-12)
