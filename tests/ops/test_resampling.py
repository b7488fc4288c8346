"""Resampled counts, intervals, and Holm's adjustment."""

import itertools
import math
from fractions import Fraction
from math import factorial

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from brute_force import reproducible
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from sc_jax import ops
from sc_jax.ops import resampling


@pytest.mark.parametrize("n", [1, 2, 5, 1000])
def test_a_resample_draws_n_of_n(n):
    counts = resampling.resample_counts(0, n, 30)
    assert counts.shape == (30, n)
    assert counts.dtype == np.uint8
    np.testing.assert_array_equal(counts.sum(axis=1), n)


def test_resamples_come_from_the_seed_alone():
    first = resampling.resample_counts(7, 50, 20)
    np.testing.assert_array_equal(resampling.resample_counts(7, 50, 20), first)
    np.testing.assert_array_equal(resampling.resample_counts(7, 50, 40)[:20], first)  # more extends, and changes none
    assert (resampling.resample_counts(8, 50, 20) != first).any()
    assert len(np.unique(first, axis=0)) == 20


def test_resamples_are_multinomial():
    n, draws = 3, 20_000
    counts = resampling.resample_counts(1, n, draws)
    outcomes = [c for c in itertools.product(range(n + 1), repeat=n) if sum(c) == n]
    expected = [draws * factorial(n) / np.prod([factorial(c) for c in outcome]) / n**n for outcome in outcomes]
    observed = [(counts == outcome).all(axis=1).sum() for outcome in outcomes]
    assert sum(observed) == draws
    assert scipy.stats.chisquare(observed, expected).pvalue > 1e-4


def test_every_example_is_drawn_alike():
    n, draws = 40, 5000
    counts = resampling.resample_counts(2, n, draws).astype(float)
    mean, variance = counts.mean(axis=0), counts.var(axis=0)
    assert np.abs(mean - 1).max() < 5 * np.sqrt((1 - 1 / n) / draws)
    assert np.abs(variance / (1 - 1 / n) - 1).max() < 0.15  # standard error of a variance here: √(3/draws) = 0.024
    covariance = np.cov(counts, rowvar=False)[~np.eye(n, dtype=bool)]
    np.testing.assert_allclose(covariance.mean(), -1 / n, atol=0.001)  # rows have a fixed sum


@pytest.mark.parametrize("n", [1, 3, 10, 11])
@pytest.mark.parametrize("entries", [1, 10, 25, 1000])
def test_chunks_hold_every_row_once_in_order(n, entries):
    counts = np.arange(7 * n).reshape(7, n)
    parts = [counts[part] for part in resampling.chunks(counts, entries)]
    np.testing.assert_array_equal(np.concatenate(parts), counts)
    assert all(0 < len(part) <= max(1, entries // n) for part in parts)


@pytest.mark.parametrize("level", [0.5, 0.9, 0.95])
@pytest.mark.parametrize("shape", [(100,), (100, 4), (37, 2, 3)])
def test_interval_is_of_quantiles(level, shape):
    replicates = np.random.default_rng(0).normal(size=shape)
    low, high = resampling.percentile_interval(replicates, level)
    np.testing.assert_allclose(low, np.quantile(replicates, (1 - level) / 2, axis=0))
    np.testing.assert_allclose(high, np.quantile(replicates, (1 + level) / 2, axis=0))


def test_nan_replicates_are_left_out_of_the_interval():
    replicates = np.random.default_rng(0).normal(size=(100, 4))
    replicates[:50, 1] = np.nan
    replicates[:51, 2] = np.nan
    replicates[:, 3] = np.nan
    interval = resampling.percentile_interval(replicates)
    np.testing.assert_allclose(interval[:, 0], np.quantile(replicates[:, 0], [0.025, 0.975]))
    np.testing.assert_allclose(interval[:, 1], np.quantile(replicates[50:, 1], [0.025, 0.975]))
    assert np.isnan(interval[:, 2:]).all()
    np.testing.assert_array_equal(resampling.percentile_interval(replicates[:, 1]), interval[:, 1])
    assert np.isnan(resampling.percentile_interval(replicates[:, 2])).all()


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
    adjusted = [Fraction(float(q)) for q in resampling.holm(np.array(p))]  # products of k/64 are exact
    for i, q in enumerate(adjusted):
        if q < 1:
            assert i in rejected(exact, q)
        if q > 0:
            assert i not in rejected(exact, q - Fraction(1, 10**6))


def test_holm_by_hand():
    # sorted .005 .01 .03 .04: 4 · .005 = .02, 3 · .01 = .03, 2 · .03 = .06, 1 · .04 = .04 → .06
    np.testing.assert_allclose(resampling.holm(np.array([0.01, 0.04, 0.03, 0.005])), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_array_equal(resampling.holm(np.array([0.7, 0.6])), [1, 1])
    np.testing.assert_array_equal(resampling.holm(np.array([0.2])), [0.2])
    assert resampling.holm(np.array([])).shape == (0,)


def test_replicates_by_weights_are_those_of_the_resamples():
    rng = np.random.default_rng(0)
    score, error = rng.integers(0, 25, 80) / 10, rng.random(80) < 0.25
    counts = resampling.resample_counts(3, 80, 25)
    replicates = np.concatenate(
        [ops.aurc(score, error, weight=counts[rows]) for rows in resampling.chunks(counts, 80 * 7)]
    )
    for count, replicate in zip(counts, replicates, strict=True):
        drawn = np.repeat(np.arange(80), count)
        rng.shuffle(drawn)
        np.testing.assert_allclose(replicate, ops.aurc(score[drawn], error[drawn]), rtol=1e-12)


@pytest.fixture
def study():
    """(values [s], replicates [s, b], seed_counts [b, s])"""
    rng = np.random.default_rng(0)
    values = rng.normal(size=5)
    return values, values[:, None] + rng.normal(size=(5, 60)) / 3, resampling.resample_counts(1, 5, 60)


def test_crossed_is_the_mean_over_the_drawn_seeds(study):
    values, replicates, seed_counts = study
    difference = resampling.crossed(values, replicates, seed_counts)
    assert difference.estimate == pytest.approx(sum(values) / 5)
    np.testing.assert_array_equal(difference.per_seed, values)
    for b in range(60):
        drawn = [replicates[s, b] for s in range(5) for _ in range(seed_counts[b, s])]
        assert difference.replicates[b] == pytest.approx(sum(drawn) / len(drawn))


def test_crossed_of_means_resamples_the_table():
    # The metric is a mean over examples: a replicate is the mean of the table of drawn seeds × drawn examples.
    rng = np.random.default_rng(0)
    table, counts = rng.normal(size=(4, 30)), resampling.resample_counts(2, 30, 20)
    seed_counts = resampling.resample_counts(3, 4, 20)
    difference = resampling.crossed(table.mean(axis=1), table @ counts.T / 30, seed_counts)
    assert difference.estimate == pytest.approx(table.mean())
    for b in range(20):
        drawn = np.repeat(np.repeat(table, seed_counts[b], axis=0), counts[b], axis=1)
        assert difference.replicates[b] == pytest.approx(drawn.mean())


def test_standard_errors_are_by_source(study):
    values, replicates, seed_counts = study
    difference = resampling.crossed(values, replicates, seed_counts)
    assert difference.se_seeds == pytest.approx(stats.sem(values))
    assert difference.se_examples == pytest.approx(np.std([np.mean(column) for column in replicates.T], ddof=1))


def test_t_interval_of_seeds_alone_is_students(study):
    values, _, seed_counts = study
    constant = np.repeat(values[:, None], 60, axis=1)  # the examples add nothing
    difference = resampling.crossed(values, constant, seed_counts)
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.9)
    np.testing.assert_allclose(difference.t_interval(0.9), expected)


def test_t_interval_of_examples_alone_is_normal():
    replicates = np.tile(np.random.default_rng(0).normal(size=60), (5, 1))
    difference = resampling.crossed(np.full(5, 2.0), replicates, resampling.resample_counts(1, 5, 60))
    expected = stats.norm(2.0, difference.se_examples).interval(0.95)
    np.testing.assert_allclose(difference.t_interval(0.95), expected)


def test_t_interval_widens_with_either_source(study):
    values, replicates, seed_counts = study
    both = resampling.crossed(values, replicates, seed_counts)
    low, high = both.t_interval(0.95)
    assert (low + high) / 2 == pytest.approx(both.estimate)
    variance = both.se_seeds**2 + both.se_examples**2
    df = variance**2 / (both.se_seeds**4 / 4)
    assert df > 4
    np.testing.assert_allclose([low, high], stats.t(df, both.estimate, math.sqrt(variance)).interval(0.95))


def test_one_seed_has_no_error_from_seeds():
    replicates = np.random.default_rng(0).normal(size=(1, 50))
    difference = resampling.crossed(np.array([0.4]), replicates, np.ones((50, 1), np.uint8))
    np.testing.assert_array_equal(difference.replicates, replicates[0])
    assert difference.estimate == 0.4
    assert math.isnan(difference.se_seeds)
    assert all(math.isnan(end) for end in difference.t_interval(0.95))


@pytest.mark.parametrize(
    ("replicates", "p"),
    [
        ([1, 2, 3, 4], 2 * 1 / 5),  # none at or below 0
        ([-1, -2, -3, -4], 2 * 1 / 5),
        ([-1, 2, 3, 4, 5, 6, 7, 8, 9], 2 * 2 / 10),
        ([0, 2, 3, 4, 5, 6, 7, 8, 9], 2 * 2 / 10),  # 0 speaks for both sides
        ([math.nan, 2, 3, 4, 5, 6, 7, 8, 9], 2 * 2 / 10),  # so does what is not known
        ([math.nan, -1, 3, 4, 5, 6, 7, 8, 9], 2 * 3 / 10),
        ([-1, -1, 1, 1], 1),
        ([0, 0, 0, 0], 1),
        ([math.nan] * 4, 1),
    ],
)
def test_two_sided_p_by_counting(replicates, p):
    assert resampling.two_sided_p(np.array(replicates, float)) == pytest.approx(p)
    assert resampling.two_sided_p(-np.array(replicates, float)) == pytest.approx(p)


# --- bootstrap of a metric -------------------------------------------------------------------------------------------


def sample(n=200, seed=0, levels=None):
    rng = np.random.default_rng(seed)
    error = rng.random(n) < 0.25
    score = rng.normal(size=n) - error
    return (np.round(score * levels) if levels else score), error


@pytest.mark.parametrize("levels", [None, 2])
@pytest.mark.parametrize("metric", [ops.aurc, ops.naurc, ops.augrc, ops.failure_auroc], ids=lambda m: m.__name__)
def test_a_replicate_is_the_metric_of_the_drawn_rows(metric, levels):
    score, error = sample(60, levels=levels)
    interval = ops.bootstrap(metric, score, error, resamples=25, seed=3)
    order = np.argsort(score, kind="stable")[::-1]
    for value, counts in zip(interval.replicates, resampling.resample_counts(3, 60, 25), strict=True):
        rows = np.repeat(order, counts)
        np.testing.assert_allclose(value, metric(score[rows], error[rows]), rtol=1e-11)
    np.testing.assert_allclose([interval.low, interval.high], np.quantile(interval.replicates, [0.025, 0.975]))
    assert interval.estimate == metric(score, error)


def test_options_reach_the_metric():
    score, error = sample()
    interval = ops.bootstrap(ops.coverage_at_risk, score, error, "0.1", resamples=30, level=0.5)
    assert interval.estimate == ops.coverage_at_risk(score, error, "0.1")
    np.testing.assert_allclose([interval.low, interval.high], np.quantile(interval.replicates, [0.25, 0.75]))


def test_devices_draw_from_the_same_distribution():
    score, error = sample(400)
    host = ops.bootstrap(ops.aurc, score, error, resamples=4000).replicates
    device = ops.bootstrap(ops.aurc, jnp.asarray(score), jnp.asarray(error), resamples=4001).replicates
    assert device.shape == (4001,)
    assert stats.ks_2samp(host, device).pvalue > 1e-3


def test_strata_keep_their_sizes():
    _, error = sample(50)
    strata = np.arange(50) % 3

    def sizes(score, loss, *, weight=None):
        weight = np.ones((1, 50)) if weight is None else weight
        return (weight * (score % 3 == 1)).sum(axis=-1).squeeze() * 1.0

    replicates = ops.bootstrap(sizes, np.arange(50.0), error, resamples=40, strata=strata).replicates
    np.testing.assert_array_equal(replicates, (strata == 1).sum())


def test_clusters_are_drawn_whole():
    groups = np.repeat(np.arange(25), 4)

    def uneven(score, loss, *, weight=None):
        weight = np.ones((1, 100)) if weight is None else weight
        by_cluster = weight[:, np.argsort(score)].reshape(-1, 25, 4)
        return np.ptp(by_cluster, axis=-1).max(axis=-1).squeeze() * 1.0

    replicates = ops.bootstrap(uneven, np.arange(100.0), np.zeros(100, int), resamples=40, groups=groups).replicates
    np.testing.assert_array_equal(replicates, 0)


def test_clusters_widen_the_interval_where_their_samples_are_alike():
    score, error = sample(40, seed=1)
    alike = [np.repeat(array, 10) for array in (score, error)]
    single = ops.bootstrap(ops.aurc, score, error, resamples=3000).replicates.std()
    whole = ops.bootstrap(ops.aurc, *alike, resamples=3000, groups=np.repeat(np.arange(40), 10)).replicates.std()
    apart = ops.bootstrap(ops.aurc, *alike, resamples=3000).replicates.std()
    assert whole == pytest.approx(single, rel=0.15)
    assert apart < 0.6 * whole


def test_few_clusters_warn():
    score, error = sample(30)
    with pytest.warns(UserWarning, match="only 5 clusters"):
        ops.bootstrap(ops.aurc, score, error, resamples=20, groups=np.arange(30) % 5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "basic"}, "there are 'percentile' and 'bca'"),
        ({"method": "bca", "groups": np.arange(30)}, "without strata or groups"),
        ({"method": "bca", "weight": np.ones(30)}, "unweighted"),
        ({"groups": np.zeros(30)}, "at least 2"),
        ({"groups": np.arange(30), "strata": np.arange(30)}, "not both"),
    ],
)
def test_bootstraps_that_make_no_sense_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        ops.bootstrap(ops.aurc, *sample(30), resamples=20, **changes)


def test_bca_is_scipys():
    score, error = sample(80)

    def statistic(rows):
        return ops.aurc(score[rows], error[rows])

    mine = ops.bootstrap(ops.aurc, score, error, resamples=2000, method="bca")
    reference = stats.bootstrap(
        (np.arange(80),),
        statistic,
        method="BCa",
        vectorized=False,
        n_resamples=2,
        bootstrap_result=stats.bootstrap(
            (np.arange(80),), statistic, vectorized=False, n_resamples=2, method="percentile"
        ),
    )
    assert reference is not None
    left_out = [statistic(np.delete(np.arange(80), i)) for i in range(80)]
    expected = resampling.bca_interval(mine.replicates, statistic(np.arange(80)), np.array(left_out))
    np.testing.assert_allclose([mine.low, mine.high], expected, rtol=1e-9)
    symmetric = resampling.bca_interval(np.linspace(-1, 1, 2001), 0.0, np.array([-1.0, 1.0, 0.0]))
    np.testing.assert_allclose(symmetric, [-0.95, 0.95], atol=1e-9)  # no bias, no acceleration: the percentile interval


def test_a_paired_bootstrap_of_a_score_with_itself_is_zero():
    score, error = sample()
    contrast = ops.paired_bootstrap(ops.aurc, score, error, np.exp(score), error, resamples=50)
    assert contrast.estimate == 0
    np.testing.assert_array_equal(contrast.replicates, 0)
    assert contrast.p == 1


def test_a_paired_bootstrap_draws_pairs():
    score, error = sample(50)
    other, other_error = sample(50, seed=1)
    contrast = ops.paired_bootstrap(ops.aurc, score, error, other, other_error, resamples=20, seed=4)
    for value, counts in zip(contrast.replicates, resampling.resample_counts(4, 50, 20), strict=True):
        rows = np.repeat(np.arange(50), counts)
        expected = ops.aurc(score[rows], error[rows]) - ops.aurc(other[rows], other_error[rows])
        np.testing.assert_allclose(value, expected, rtol=1e-9, atol=1e-14)


def test_a_crossed_bootstrap_draws_seeds_and_examples():
    a, b = (
        [np.stack(rows) for rows in zip(*(sample(40, seed=s) for s in seeds), strict=True)]
        for seeds in ((0, 1, 2), (3, 4, 5))
    )
    difference = ops.crossed_bootstrap(ops.aurc, *a, *b, resamples=15, seed=2)
    counts, seed_counts = resampling.resample_counts(2, 40, 15), resampling.resample_counts(3, 3, 15)
    for r in range(15):
        rows, seeds = np.repeat(np.arange(40), counts[r]), np.repeat(np.arange(3), seed_counts[r])
        values = [ops.aurc(a[0][s, rows], a[1][s, rows]) - ops.aurc(b[0][s, rows], b[1][s, rows]) for s in seeds]
        np.testing.assert_allclose(difference.replicates[r], np.mean(values), rtol=1e-9, atol=1e-14)


def test_bca_leaves_out_replicates_that_are_undefined():
    rng = np.random.default_rng(0)
    replicates, left_out = rng.normal(size=400), rng.normal(size=30)
    expected = resampling.bca_interval(replicates, 0.1, left_out)
    with_nan = np.concatenate([replicates, np.full(300, np.nan)])
    np.testing.assert_array_equal(resampling.bca_interval(with_nan, 0.1, left_out), expected)
    mostly_nan = np.concatenate([replicates, np.full(500, np.nan)])
    assert np.isnan(resampling.bca_interval(mostly_nan, 0.1, left_out)).all()
    assert np.isnan(resampling.bca_interval(replicates, 0.1, np.append(left_out, np.nan))).all()
