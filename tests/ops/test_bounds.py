"""Bounds equal scipy or a sum over all outcomes, and fail no more often than they say, computed exactly."""

import itertools
import math

import numpy as np
import pytest
from scipy import integrate, stats

from sc_jax import ops

COUNTS = [(k, n) for n in (0, 1, 2, 7, 50) for k in sorted({0, 1, n // 2, n - 1, n}) if 0 <= k <= n]
RISKS = (0.001, 0.02, 0.3, 0.9)


def binomial(n, r):
    """Probabilities of 0..n errors."""
    return stats.binom.pmf(np.arange(n + 1), n, r)


@pytest.mark.parametrize("r", [*RISKS, 0.0, 1.0])
def test_binomial_p_value_equals_scipy(r):
    for k, n in COUNTS:
        expected = stats.binomtest(k, n, r, alternative="less").pvalue if n else 1.0
        np.testing.assert_allclose(ops.binomial_p_value(k, n, r), expected, rtol=1e-10, atol=1e-300)


def test_clopper_pearson_equals_scipy():
    for k, n in COUNTS:
        if n:
            expected = stats.binomtest(k, n).proportion_ci(0.9, "exact")
            np.testing.assert_allclose(ops.clopper_pearson_interval(k, n, 0.9), expected, rtol=1e-9, atol=1e-12)
            expected = stats.binomtest(k, n).proportion_ci(0.9, "wilson")
            np.testing.assert_allclose(ops.wilson_interval(k, n, 0.9), expected, rtol=1e-9, atol=1e-12)
            both = ops.clopper_pearson_lower(k, n, 0.05), ops.clopper_pearson_upper(k, n, 0.05)
            np.testing.assert_allclose(ops.clopper_pearson_interval(k, n, 0.9), both, rtol=1e-12)
    np.testing.assert_array_equal(ops.clopper_pearson_interval(0, 0), [0, 1])


@pytest.mark.parametrize("delta", [1e-9, 0.001, 0.05, 0.5])
def test_the_upper_bound_is_where_the_p_value_is_delta(delta):
    for k, n in COUNTS:
        bound = ops.clopper_pearson_upper(k, n, delta)
        if k < n:
            np.testing.assert_allclose(ops.binomial_p_value(k, n, bound), delta, rtol=1e-6)
        else:
            assert bound == 1
    np.testing.assert_allclose(ops.clopper_pearson_upper(0, 40, delta), 1 - delta ** (1 / 40), rtol=1e-9)


def test_counts_sizes_and_risks_broadcast():
    errors, n, risk = np.arange(4)[:, None, None], np.array([5, 9])[:, None], np.array([0.1, 0.2, 0.4])
    table = ops.binomial_p_value(errors, n, risk)
    assert table.shape == (4, 2, 3)
    for i, j, k in np.ndindex(table.shape):
        assert table[i, j, k] == ops.binomial_p_value(errors[i, 0, 0], n[j, 0], risk[k])
    assert ops.clopper_pearson_interval(errors, n).shape == (4, 2, 1, 2)
    assert ops.confidence_sequence(errors, n, risk).shape == (4, 2, 3, 2)
    assert ops.hoeffding_bentkus_upper(np.array([0.1, 0.2])[:, None], n[:, 0], 0.1).shape == (2, 2)


@pytest.mark.parametrize("n", [1, 3, 12, 60])
@pytest.mark.parametrize("r", RISKS)
def test_p_values_are_valid_at_every_level(n, r):
    """P(p ≤ u) ≤ u under the null, summed over all outcomes; the exact one is the smaller."""
    k, probability = np.arange(n + 1), binomial(n, r)
    exact, loose = ops.binomial_p_value(k, n, r), ops.hoeffding_bentkus_p_value(k / n, n, r)
    for p in (exact, loose):
        for u in (0.001, 0.01, 0.05, 0.1, 0.5, *p):
            assert probability[p <= u].sum() <= u * (1 + 1e-9)
    assert (loose >= exact * (1 - 1e-9)).all()


def test_hoeffding_bentkus_by_its_formula():
    def formula(mean, n, r):
        a = min(mean, r)
        h = (a * math.log(a / r) if a else 0) + ((1 - a) * math.log((1 - a) / (1 - r)) if a < 1 else 0)
        bentkus = math.e * sum(math.comb(n, j) * r**j * (1 - r) ** (n - j) for j in range(math.ceil(n * mean) + 1))
        return min(math.exp(-n * h), bentkus, 1)

    for mean, n, r in itertools.product((0.0, 0.015625, 0.25, 0.53125, 1.0), (1, 8, 64), (0.02, 0.3, 0.7)):
        np.testing.assert_allclose(ops.hoeffding_bentkus_p_value(mean, n, r), formula(mean, n, r), rtol=1e-9)


def test_a_mean_of_counts_is_not_rounded_up():
    """k/n · n may exceed k in floats; ⌈·⌉ would count an error too many. Past a certain n the Bentkus part decides."""
    n = np.arange(1, 400)
    for k in (1, 3, 7):
        size = n[n > 12 * k]
        at_k = np.minimum(1, math.e * ops.binomial_p_value(k, size, 0.5))
        assert (ops.hoeffding_bentkus_p_value(k / size, size, 0.5) <= at_k * (1 + 1e-12)).all()


@pytest.mark.parametrize("delta", [0.001, 0.05, 0.3])
def test_hoeffding_bentkus_upper_inverts_its_p_value(delta):
    for mean, n in itertools.product((0.0, 0.01, 0.5, 0.97, 1.0), (1, 30, 1000)):
        bound = float(ops.hoeffding_bentkus_upper(mean, n, delta))
        assert bound >= mean
        if bound < 1:
            assert ops.hoeffding_bentkus_p_value(mean, n, bound) <= delta
        assert ops.hoeffding_bentkus_p_value(mean, n, bound - 1e-9) > delta
        if mean * n == int(mean * n):
            assert bound >= ops.clopper_pearson_upper(int(mean * n), n, delta) - 1e-12


def violations(upper, n, values, probability, delta):
    """P(bound < mean) over all samples [values^n] in order, exactly."""
    mean = float(np.dot(values, probability))
    samples = np.array(list(itertools.product(range(len(values)), repeat=n)))
    losses, weight = np.asarray(values)[samples], np.asarray(probability)[samples].prod(axis=1)
    return weight[upper(losses, delta) < mean - 1e-12].sum()


def bernstein(losses, delta):
    return ops.empirical_bernstein_upper(losses.mean(axis=-1), losses.var(axis=-1, ddof=1), losses.shape[-1], delta)


@pytest.mark.parametrize(
    "upper",
    [ops.betting_upper, bernstein, lambda x, d: ops.hoeffding_bentkus_upper(x.mean(axis=-1), x.shape[-1], d)],
)
@pytest.mark.parametrize(
    ("values", "probability"),
    [
        ([0.0, 1.0], [0.4, 0.6]),
        ([0.0, 1.0], [0.05, 0.95]),
        ([0.0, 0.5, 1.0], [0.3, 0.1, 0.6]),
        ([0.2, 0.6], [0.1, 0.9]),
    ],
)
@pytest.mark.parametrize("delta", [0.05, 0.3])
def test_upper_bounds_of_means_fail_no_more_often_than_delta(upper, values, probability, delta):
    assert violations(upper, 8 if len(values) == 2 else 6, values, probability, delta) <= delta


def test_upper_bounds_can_fail_and_are_not_vacuous():
    """The battery above could see a bound that fails too often: the mean itself does."""
    assert violations(lambda x, d: x.mean(axis=-1), 8, [0.0, 1.0], [0.4, 0.6], 0.05) > 0.05
    rng = np.random.default_rng(0)
    losses = 0.1 * rng.random(2000)
    betting, hoeffding = ops.betting_upper(losses, 0.05), ops.hoeffding_bentkus_upper(losses.mean(), 2000, 0.05)
    assert losses.mean() < betting < bernstein(losses, 0.05) < hoeffding < 0.1


def test_betting_by_its_formula():
    losses, delta = np.array([0.0, 0.5, 0.1, 0.0, 1.0, 0.0, 0.0, 0.2]), 0.2

    def most(m):
        wealth, best, n = 1.0, 0.0, len(losses)
        for i in range(n):
            centre = [(0.5 + losses[: j + 1].sum()) / (j + 2) for j in range(i)]
            spread = (0.25 + sum((losses[j] - centre[j]) ** 2 for j in range(i))) / (i + 1)
            wealth *= 1 - min(1, math.sqrt(2 * math.log(1 / delta) / (n * spread))) * (losses[i] - m)
            best = max(best, wealth)
        return best

    bound = float(ops.betting_upper(losses, delta))
    assert most(bound) > 1 / delta >= most(bound - 1e-9)
    rows = np.random.default_rng(0).permuted(np.tile(losses, (5, 1)), axis=1)
    np.testing.assert_array_equal(ops.betting_upper(rows, delta), [ops.betting_upper(row, delta) for row in rows])
    assert len(set(ops.betting_upper(rows, delta))) > 1  # the order matters


def test_empirical_bernstein_by_its_formula():
    bound = ops.empirical_bernstein_upper(0.02, 0.01, 500, 0.05)
    np.testing.assert_allclose(bound, 0.02 + math.sqrt(0.02 * math.log(40) / 500) + 7 * math.log(40) / (3 * 499))


def both_of_bernstein(losses, level):
    return ops.empirical_bernstein_interval(losses.mean(axis=-1), losses.var(axis=-1, ddof=1), losses.shape[-1], level)


INTERVALS = pytest.mark.parametrize(
    ("interval", "upper"), [(both_of_bernstein, bernstein), (ops.betting_interval, ops.betting_upper)]
)


@INTERVALS
def test_an_interval_is_two_bounds_at_half_each(interval, upper):
    losses = np.random.default_rng(0).beta(0.3, 2, (20, 300))
    low, high = interval(losses, 0.9).T
    np.testing.assert_array_equal(high, upper(losses, (1 - 0.9) / 2))
    mirrored = interval(1 - losses, 0.9)
    np.testing.assert_allclose(low, 1 - mirrored[:, 1], rtol=1e-9)
    assert ((low > 0) & (low < losses.mean(axis=1)) & (losses.mean(axis=1) < high) & (high < 1)).all()
    wider = interval(losses, 0.99)
    assert ((wider[:, 0] < low) & (high < wider[:, 1])).all()


@INTERVALS
@pytest.mark.parametrize("level", [0.5, 0.9])
def test_intervals_cover(interval, upper, level):
    """2,000 samples of 100: missed no more often than 1 − level, but for what a binomial of that rate exceeds once in 1,000."""
    rng = np.random.default_rng(0)
    for losses, mean in (
        ((rng.random((2000, 100)) < 0.1) * 1.0, 0.1),
        ((rng.random((2000, 100)) < 0.9) * 1.0, 0.9),
        (rng.beta(0.5, 1.5, (2000, 100)), 0.25),
    ):
        low, high = interval(losses, level).T
        missed = int(((mean < low) | (high < mean)).sum())
        assert missed <= stats.binom.ppf(0.999, 2000, 1 - level)


@INTERVALS
def test_intervals_miss_less_often_than_level_by_enumeration(interval, upper):
    """Both sides over all samples of 8, exactly."""
    values, probability = np.array([0.0, 1.0]), np.array([0.3, 0.7])
    samples = np.array(list(itertools.product((0, 1), repeat=8)))
    losses, weight = values[samples], probability[samples].prod(axis=1)
    low, high = interval(losses, 0.6).T
    assert weight[(low > 0.7) | (high < 0.7)].sum() <= 0.4


def test_evidence_is_the_integral_it_says():
    for total, n, r in ((0, 5, 0.1), (3, 5, 0.1), (1.5, 6, 0.4), (7, 7, 0.9)):
        prior = stats.beta(0.5, 0.5)

        def integrand(q, total=total, n=n, r=r, prior=prior):
            return (q / r) ** total * ((1 - q) / (1 - r)) ** (n - total) * prior.pdf(q)

        expected = integrate.quad(integrand, r, 1)[0] / prior.sf(r)
        np.testing.assert_allclose(np.exp(ops.log_evidence(total, n, r)), expected, rtol=1e-5)
    assert ops.log_evidence(0, 0, 0.1) == 0
    assert ops.log_evidence(0, 10**6, 0.5) == -np.inf or ops.log_evidence(0, 10**6, 0.5) < -1e5


def ever(r, steps, crossed):
    """P(crossed(total, n) at some n ≤ steps) of independent errors with probability r, by dynamic programming."""
    alive, hit = np.ones(1), 0.0
    for n in range(1, steps + 1):
        alive = np.append(alive * (1 - r), 0) + np.append(0, alive * r)
        stop = crossed(np.arange(n + 1), n)
        hit += alive[stop].sum()
        alive = np.where(stop, 0, alive)
    return hit


@pytest.mark.parametrize("r", [0.02, 0.2, 0.7])
@pytest.mark.parametrize("delta", [0.05, 0.3])
def test_anytime_bounds_hold_at_all_times(r, delta):
    """The chance of ever failing, exactly; a bound for one n fails the same test."""
    assert ever(r, 300, lambda k, n: ops.log_evidence(k, n, r) >= math.log(1 / delta)) <= delta
    assert ever(r / 2, 300, lambda k, n: ops.log_evidence(k, n, r) >= math.log(1 / delta)) <= delta

    def left(k, n):
        low, high = ops.confidence_sequence(k, n, delta).T
        return (r < low) | (r > high)

    assert 0 < ever(r, 300, left) <= delta
    assert ever(r, 300, lambda k, n: ops.clopper_pearson_lower(k, n, delta) > r) > delta


def test_evidence_grows_where_the_risk_is_higher():
    rng = np.random.default_rng(0)
    wrong = np.cumsum(rng.random(2000) < 0.08)
    assert ops.log_evidence(wrong[-1], 2000, 0.02) > math.log(1e6)


@pytest.mark.parametrize("delta", [1e-6, 0.05])
def test_a_confidence_sequence_is_the_set_it_says(delta):
    for total, n in ((0, 4), (2, 9), (2.5, 9), (9, 9), (30, 10_000)):
        low, high = ops.confidence_sequence(total, n, delta)
        assert low <= total / n <= high
        for edge, inward in ((low, 1e-7), (high, -1e-7)):
            if 0 < edge < 1:
                log = math.lgamma(0.5 + total) + math.lgamma(0.5 + n - total) - math.lgamma(n + 1) - math.log(math.pi)
                at = [log - total * math.log(r) - (n - total) * math.log(1 - r) for r in (edge, edge + inward)]
                np.testing.assert_allclose(at[0], -math.log(delta), rtol=1e-6, atol=1e-6)
                assert at[1] < -math.log(delta)
    np.testing.assert_array_equal(ops.confidence_sequence(0, 0, 0.1), [0, 1])


def test_nothing_seen_bounds_nothing():
    assert ops.binomial_p_value(0, 0, 0.1) == ops.hoeffding_bentkus_p_value(np.nan, 0, 0.1) == 1
    assert ops.clopper_pearson_upper(0, 0, 0.1) == ops.hoeffding_bentkus_upper(np.nan, 0, 0.1) == 1
    assert ops.clopper_pearson_lower(0, 0, 0.1) == 0
    assert ops.empirical_bernstein_upper(0.0, np.nan, 1, 0.1) == ops.betting_upper(np.zeros(0), 0.1) == 1
    np.testing.assert_array_equal(ops.empirical_bernstein_interval(0.3, np.nan, 1), [0, 1])
    np.testing.assert_array_equal(ops.betting_interval(np.zeros((2, 0))), [[0, 1], [0, 1]])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ops.binomial_p_value(0.5, 10, 0.1), "a count of 0/1 errors"),
        (lambda: ops.binomial_p_value(11, 10, 0.1), "a count of 0/1 errors"),
        (lambda: ops.binomial_p_value(-1, 10, 0.1), "a count of 0/1 errors"),
        (lambda: ops.binomial_p_value(1, 10.5, 0.1), "n must be whole"),
        (lambda: ops.binomial_p_value(1, 10, 1.1), "risk must lie in"),
        (lambda: ops.binomial_p_value(np.nan, 10, 0.1), "a count of 0/1 errors"),
        (lambda: ops.hoeffding_bentkus_p_value(1.5, 10, 0.1), "mean must lie in"),
        (lambda: ops.clopper_pearson_upper(1, 10, 0.0), "delta must lie in"),
        (lambda: ops.clopper_pearson_upper(1, 10, 1.0), "delta must lie in"),
        (lambda: ops.clopper_pearson_interval(1, 10, 95), "level must lie in"),
        (lambda: ops.wilson_interval(0, 0), "not defined for n = 0"),
        (lambda: ops.empirical_bernstein_upper(0.1, -0.1, 10, 0.1), "negative or NaN"),
        (lambda: ops.betting_upper(np.array([0.5, 2.0]), 0.1), "losses must lie in"),
        (lambda: ops.empirical_bernstein_interval(1.2, 0.1, 10), "mean must lie in"),
        (lambda: ops.empirical_bernstein_interval(0.1, 0.1, 10, 1.0), "level must lie in"),
        (lambda: ops.betting_interval(np.array([0.5, -1.0])), "losses must lie in"),
        (lambda: ops.betting_interval(np.array([0.5]), 95), "level must lie in"),
        (lambda: ops.log_evidence(3, 2, 0.1), "total of n losses"),
        (lambda: ops.log_evidence(1, 2, 0.0), "risk must lie in"),
        (lambda: ops.confidence_sequence(np.nan, 2, 0.1), "total of n losses"),
    ],
)
def test_what_no_bound_can_take_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
