"""Contrasts over seeds and examples: by repeating what was drawn, by counting, and against scipy."""

import json
import math

import numpy as np
import pytest
from scipy import stats

from sc_jax.methods import contrasts
from sc_jax.ops import bootstrap


@pytest.fixture
def study():
    """(values [s], replicates [s, b], seed_counts [b, s])"""
    rng = np.random.default_rng(0)
    values = rng.normal(size=5)
    return values, values[:, None] + rng.normal(size=(5, 60)) / 3, bootstrap.resample_counts(1, 5, 60)


def test_crossed_is_the_mean_over_the_drawn_seeds(study):
    values, replicates, seed_counts = study
    difference = contrasts.crossed(values, replicates, seed_counts)
    assert difference.estimate == pytest.approx(sum(values) / 5)
    np.testing.assert_array_equal(difference.per_seed, values)
    for b in range(60):
        drawn = [replicates[s, b] for s in range(5) for _ in range(seed_counts[b, s])]
        assert difference.replicates[b] == pytest.approx(sum(drawn) / len(drawn))


def test_crossed_of_means_resamples_the_table():
    # The metric is a mean over examples: a replicate is the mean of the table of drawn seeds × drawn examples.
    rng = np.random.default_rng(0)
    table, counts = rng.normal(size=(4, 30)), bootstrap.resample_counts(2, 30, 20)
    seed_counts = bootstrap.resample_counts(3, 4, 20)
    difference = contrasts.crossed(table.mean(axis=1), table @ counts.T / 30, seed_counts)
    assert difference.estimate == pytest.approx(table.mean())
    for b in range(20):
        drawn = np.repeat(np.repeat(table, seed_counts[b], axis=0), counts[b], axis=1)
        assert difference.replicates[b] == pytest.approx(drawn.mean())


def test_standard_errors_are_by_source(study):
    values, replicates, seed_counts = study
    difference = contrasts.crossed(values, replicates, seed_counts)
    assert difference.se_seeds == pytest.approx(stats.sem(values))
    assert difference.se_examples == pytest.approx(np.std([np.mean(column) for column in replicates.T], ddof=1))


def test_t_interval_of_seeds_alone_is_students(study):
    values, _, seed_counts = study
    constant = np.repeat(values[:, None], 60, axis=1)  # the examples add nothing
    difference = contrasts.crossed(values, constant, seed_counts)
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.9)
    np.testing.assert_allclose(difference.t_interval(0.9), expected)


def test_t_interval_of_examples_alone_is_normal():
    replicates = np.tile(np.random.default_rng(0).normal(size=60), (5, 1))
    difference = contrasts.crossed(np.full(5, 2.0), replicates, bootstrap.resample_counts(1, 5, 60))
    expected = stats.norm(2.0, difference.se_examples).interval(0.95)
    np.testing.assert_allclose(difference.t_interval(0.95), expected)


def test_t_interval_widens_with_either_source(study):
    values, replicates, seed_counts = study
    both = contrasts.crossed(values, replicates, seed_counts)
    low, high = both.t_interval(0.95)
    assert (low + high) / 2 == pytest.approx(both.estimate)
    variance = both.se_seeds**2 + both.se_examples**2
    df = variance**2 / (both.se_seeds**4 / 4)
    assert df > 4
    np.testing.assert_allclose([low, high], stats.t(df, both.estimate, math.sqrt(variance)).interval(0.95))


def test_one_seed_has_no_error_from_seeds():
    replicates = np.random.default_rng(0).normal(size=(1, 50))
    difference = contrasts.crossed(np.array([0.4]), replicates, np.ones((50, 1), np.uint8))
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
    assert contrasts.two_sided_p(np.array(replicates, float)) == pytest.approx(p)
    assert contrasts.two_sided_p(-np.array(replicates, float)) == pytest.approx(p)


@pytest.mark.parametrize(
    ("replicates", "p"),
    [
        ([0.1, 0.2, 0.3, 0.4], 1 / 5),
        ([0.1, 0.2, 0.3, 0.5], 2 / 5),  # worse by just the margin counts as worse
        ([0.1, 0.2, 0.3, math.nan], 2 / 5),
        ([0.6, 0.7, 0.8, math.nan], 1),
        ([-9, -9, -9, 0.6], 2 / 5),
    ],
)
def test_not_worse_p_by_counting(replicates, p):
    assert contrasts.not_worse_p(np.array(replicates), 0.5) == pytest.approx(p)


NO_HOLM = "not shown (does not survive Holm)"


@pytest.mark.parametrize(
    ("expect", "interval", "p", "verdict"),
    [
        ("greater", (1, 2), 0.049, "confirmed"),
        ("greater", (1, 2), 0.051, NO_HOLM),
        ("greater", (0, 2), 0.01, "not shown"),
        ("greater", (-1, 2), 0.01, "not shown"),
        ("greater", (-2, -1), 0.01, "contradicted"),
        ("less", (-2, -1), 0.01, "confirmed"),
        ("less", (-2, -1), 0.2, NO_HOLM),
        ("less", (-2, 0), 0.01, "not shown"),
        ("less", (1, 2), 0.01, "contradicted"),
        ("not_worse_by_margin", (-1, 0.4), 0.01, "confirmed"),
        ("not_worse_by_margin", (0.1, 0.4), 0.01, "confirmed"),  # worse, but by less than the margin
        ("not_worse_by_margin", (0.1, 0.4), 0.2, NO_HOLM),
        ("not_worse_by_margin", (0.1, 0.5), 0.01, "not shown"),
        ("not_worse_by_margin", (0.1, 0.9), 0.01, "not shown"),
        ("not_worse_by_margin", (0.6, 0.9), 0.9, "contradicted"),
        ("greater", (math.nan, math.nan), 0.01, "not shown"),
        ("greater", (1, 2), math.nan, NO_HOLM),
    ],
)
def test_verdict_follows_its_rule(expect, interval, p, verdict):
    assert contrasts.verdict(expect, list(interval), p, 0.95, 0.5) == verdict


def test_verdict_needs_p_strictly_below():
    assert contrasts.verdict("less", [-2, -1], 0.5, 0.5) == NO_HOLM
    assert contrasts.verdict("less", [-2, -1], 0.499, 0.5) == "confirmed"


def test_verdict_knows_three_expectations():
    with pytest.raises(KeyError):
        contrasts.verdict("better", [1, 2], 0.01, 0.95)


def test_description_is_plain_data(study):
    difference = contrasts.crossed(*study)
    described = contrasts.describe(difference, 0.9)
    assert json.loads(json.dumps(described)) == described
    assert described["estimate"] == difference.estimate
    np.testing.assert_allclose(described["interval"], np.quantile(difference.replicates, [0.05, 0.95]))
    assert described["t_interval"] == difference.t_interval(0.9)
    assert described["per_seed"] == study[0].tolist()
    assert (described["se_seeds"], described["se_examples"]) == (difference.se_seeds, difference.se_examples)
