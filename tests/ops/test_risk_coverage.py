"""AURC and its kin against their definitions over all orders of the tied samples, and their invariants."""

import functools
import itertools
import math
from fractions import Fraction

import brute_force
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from brute_force import SOFT_LOSSES, reproducible, samples
from hypothesis import given, settings
from hypothesis import strategies as st

from sc_jax import ops
from sc_jax.ops.risk_coverage import as_fraction, loss_of_accepted

AREAS = {
    "aurc": (ops.aurc, brute_force.aurc),
    "augrc": (ops.augrc, brute_force.augrc),
    "e_aurc": (ops.e_aurc, brute_force.e_aurc),
    "naurc": (ops.naurc, brute_force.naurc),
}
TARGETS = (0, 0.05, "0.25", Fraction(1, 3), 0.5, 1 / 3, 2 / 3, 0.123456789, 1, 1.5)
COVERAGES = (0.001, "0.2", 0.25, Fraction(1, 3), 1 / 3, 2 / 3, 0.7, 0.999999999, 1)


@functools.cache
def jitted(xp, metric):
    return metric if xp is np else jax.jit(metric)


def areas(score, loss):
    return {
        "aurc": ops.aurc(score, loss),
        "augrc": ops.augrc(score, loss),
        "e_aurc": ops.e_aurc(score, loss),
        "naurc": ops.naurc(score, loss),
        "optimal_aurc": ops.optimal_aurc(loss),
        "risk_at_coverage": ops.risk_at_coverage(score, loss, 0.8),
    }


def close(value, exact):
    np.testing.assert_allclose(value, float(exact), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", AREAS)
@given(sample=st.one_of(samples(), samples(SOFT_LOSSES)))
@reproducible
def test_areas_are_expectations_over_tie_orders(name, sample):
    metric, definition = AREAS[name]
    close(metric(*sample), definition(*sample))


@given(st.one_of(samples(), samples(SOFT_LOSSES)))
@reproducible
def test_curve_is_the_expectation_over_tie_orders(sample):
    score, loss = sample
    curve = ops.risk_coverage_curve(score, loss)
    n = len(score)
    np.testing.assert_array_equal(curve.coverage, np.arange(1, n + 1) / n)
    risks = brute_force.expected(brute_force.selective_risks, score, loss)
    np.testing.assert_allclose(curve.risk, [float(r) for r in risks], rtol=1e-12, atol=1e-15)
    joint = brute_force.expected(brute_force.generalized_risks, score, loss)
    np.testing.assert_allclose(curve.generalized_risk, [float(g) for g in joint], rtol=1e-12, atol=1e-15)


@given(st.one_of(samples(), samples(SOFT_LOSSES)))
@reproducible
def test_loss_of_accepted_is_the_expectation_over_tie_orders(sample):
    score, loss = sample
    accepted = np.array([len(score), 0, *range(len(score) + 1)])  # in any order, 0 among them
    joint = [0, *brute_force.expected(brute_force.generalized_risks, score, loss)]
    value = loss_of_accepted(ops.rank(score, loss), accepted)
    np.testing.assert_allclose(value, [float(joint[k] * len(score)) for k in accepted], rtol=1e-12, atol=1e-15)


def test_loss_of_accepted_of_weights_is_that_of_repeated_rows():
    rng = np.random.default_rng(0)
    score, loss = rng.integers(0, 5, 12) / 2, rng.integers(0, 3, 12)
    weight = rng.multinomial(12, np.full(12, 1 / 12), size=(2, 3))
    accepted = np.arange(13)
    value = loss_of_accepted(ops.rank(score, loss, weight), accepted)
    assert value.shape == (2, 3, 13)
    for index in np.ndindex(2, 3):
        repeated = ops.rank(np.repeat(score, weight[index]), np.repeat(loss, weight[index]))
        np.testing.assert_allclose(value[index], loss_of_accepted(repeated, accepted), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("coverage", COVERAGES)
@given(sample=st.one_of(samples(), samples(SOFT_LOSSES)))
@reproducible
def test_risk_at_coverage_by_definition(coverage, sample):
    close(ops.risk_at_coverage(*sample, coverage), brute_force.risk_at_coverage(*sample, Fraction(str(coverage))))


@pytest.mark.parametrize("risk", TARGETS)
@given(sample=st.one_of(samples(max_size=12), samples((0, 1, 2, 5), max_size=12)))
@reproducible
def test_coverage_at_risk_by_definition(risk, sample):
    assert ops.coverage_at_risk(*sample, risk) == float(brute_force.coverage_at_risk(*sample, Fraction(str(risk))))


@pytest.mark.parametrize("risk", ["0.25", Fraction(1, 2), 1, 2.75])  # sums and products are exact: no rounding decides
@given(sample=samples(SOFT_LOSSES, max_size=12))
@reproducible
def test_coverage_at_risk_of_soft_losses_by_definition(risk, sample):
    assert ops.coverage_at_risk(*sample, risk) == float(brute_force.coverage_at_risk(*sample, Fraction(str(risk))))


@given(st.lists(st.sampled_from(SOFT_LOSSES), min_size=1, max_size=6).map(np.array))
@reproducible
def test_optimal_aurc_is_the_smallest_over_permutations(loss):
    close(ops.optimal_aurc(loss), brute_force.optimal_aurc(loss))
    close(ops.optimal_aurc(np.floor(loss).astype(int)), brute_force.optimal_aurc(np.floor(loss)))


def test_optimal_aurc_of_errors_in_closed_form():
    for n, wrong in ((1, 0), (1, 1), (7, 3), (1000, 1), (1000, 999), (10_000, 812)):
        exact = sum(Fraction(i - (n - wrong), i) for i in range(n - wrong + 1, n + 1)) / n
        close(ops.optimal_aurc(np.arange(n) < wrong), exact)


@pytest.mark.parametrize("xp", [np, jnp])
@pytest.mark.parametrize("hundreds", [1, 137])
def test_one_error_in_a_hundred_meets_one_percent(xp, hundreds):
    n = 100 * hundreds
    score, error = xp.arange(n)[::-1] / n, xp.arange(n) < hundreds  # the errors first
    ranking = ops.rank(score, error)
    assert float(ops.coverage_at_risk.of_ranking(ranking, 0.01)) == 1
    assert float(ops.coverage_at_risk.of_ranking(ranking, "0.00999")) == 0


@pytest.mark.parametrize("xp", [np, jnp])
def test_every_percentage_is_met_exactly(xp):
    score = xp.asarray(np.arange(100, 0, -1).repeat(3))
    for percent in range(1, 100) if xp is np else (1, 7, 14, 28, 29, 55, 57, 58):  # many of these err in floats
        error = np.arange(300) < 3 * percent
        assert float(ops.coverage_at_risk(score, xp.asarray(error), percent / 100)) == 1
        error[-1] = True  # one error more, and the whole does not meet it
        assert float(ops.coverage_at_risk(score, xp.asarray(error), percent / 100)) < 1


@pytest.mark.parametrize("xp", [np, jnp])
@pytest.mark.parametrize("target", [1 / 3, 0.123456789, 0.3721983712, Fraction(1, 7), 0.30000000000000004])
def test_long_targets_do_not_overflow(xp, target):
    rng = np.random.default_rng(0)
    n = 20_000
    score, error = rng.permutation(n).astype(np.float32), rng.random(n) < 0.4
    exact = Fraction(str(target))
    errors = np.cumsum(error[np.argsort(-score)])
    feasible = [k for k in range(1, n + 1) if int(errors[k - 1]) * exact.denominator <= exact.numerator * k]
    score, error = xp.asarray(score), xp.asarray(error)
    assert float(ops.coverage_at_risk(score, error, target)) == pytest.approx(max(feasible, default=0) / n, rel=1e-6)
    k = math.ceil(exact * n)
    assert float(ops.risk_at_coverage(score, error, target)) == pytest.approx(errors[k - 1] / k, rel=1e-6)


def test_coverage_is_rounded_up_in_integers():
    # In floats ceil(n * (k / n)) is not k for hundreds of pairs below n = 200.
    assert sum(math.ceil(n * (k / n)) != k for n in range(1, 200) for k in range(1, n + 1)) > 500
    for n in range(1, 200):
        ranking = ops.rank(-np.arange(n), np.arange(n) == 0)  # the first is wrong: r_k = 1/k
        for k in range(1, n + 1):
            assert ops.risk_at_coverage.of_ranking(ranking, Fraction(k, n)) == 1 / k


def test_decimal_coverages_are_read_as_written():
    for n in (100, 200, 1000):
        ranking = ops.rank(-np.arange(n), np.arange(n) == 0)
        for percent in range(1, 101):
            k = percent * n // 100
            assert ops.risk_at_coverage.of_ranking(ranking, percent / 100) == 1 / k
            assert ops.risk_at_coverage.of_ranking(ranking, np.float32(percent / 100)) == 1 / k


@pytest.mark.parametrize("coverage", [0, -0.1, 1.0000001, 2])
def test_coverage_outside_its_range_is_refused(coverage):
    with pytest.raises(ValueError, match=rf"coverage must lie in \(0, 1\]; it is {coverage}"):
        ops.risk_at_coverage(np.arange(3.0), np.array([0, 1, 0]), coverage)


@pytest.mark.parametrize("target", ["a lot", math.nan, math.inf])
def test_targets_that_are_no_numbers_are_refused(target):
    with pytest.raises(ValueError, match="Fraction"):
        as_fraction(target)


def test_threshold_takes_whole_tie_blocks():
    score, error = np.array([3, 2, 2, 2, 2, 1]), np.array([0, 0, 0, 0, 1, 1])
    assert ops.coverage_at_risk(score, error, 0.1) == 1 / 6  # four of six without error exist, no threshold has them
    assert ops.coverage_at_risk(score, error, 0.2) == 5 / 6


def test_coverage_at_risk_does_not_exceed_the_target_where_the_nearest_crossing_would():
    score, error = -np.arange(10), np.array([0, 0, 0, 1, 0, 0, 0, 0, 1, 0])  # r_10 = 0.2, r_8 = 0.125, r_9 = 0.222
    assert ops.coverage_at_risk(score, error, 0.19) == 0.8


@given(samples(max_size=30), st.randoms(use_true_random=False))
@reproducible
def test_the_order_of_the_samples_does_not_matter_at_all(sample, random):
    order = np.array(random.sample(range(len(sample[0])), len(sample[0])))
    given_order, other = ops.summarise(*sample), ops.summarise(sample[0][order], sample[1][order])
    for name, value in given_order.items():
        np.testing.assert_array_equal(other[name], value, err_msg=name)  # bit for bit


@given(samples(SOFT_LOSSES, max_size=30), st.randoms(use_true_random=False))
@reproducible
def test_the_order_of_soft_losses_matters_by_rounding_only(sample, random):
    order = np.array(random.sample(range(len(sample[0])), len(sample[0])))
    for metric, _ in AREAS.values():
        np.testing.assert_allclose(metric(sample[0][order], sample[1][order]), metric(*sample), rtol=1e-13, atol=1e-15)


@given(samples(max_size=30))
@reproducible
def test_only_the_ranking_counts(sample):
    score, error = sample
    increasing = np.unique(score, return_inverse=True)[1]
    summary = ops.summarise(score, error)
    for transformed in (increasing**3 - 7, 1e-300 * increasing):
        other = ops.summarise(transformed, error)
        for name, value in summary.items():
            np.testing.assert_array_equal(other[name], value, err_msg=name)


@given(st.lists(st.sampled_from(SOFT_LOSSES), min_size=1, max_size=30).map(np.array))
@reproducible
def test_constant_score_has_the_mean_loss_everywhere(loss):
    score = np.full(len(loss), 0.7)
    curve = ops.risk_coverage_curve(score, loss)
    for value in (
        ops.aurc(score, loss),
        2 * ops.augrc(score, loss),
        curve.risk,
        ops.risk_at_coverage(score, loss, 0.4),
    ):
        np.testing.assert_allclose(value, loss.mean(), rtol=1e-13)


@given(st.lists(st.sampled_from(SOFT_LOSSES), min_size=1, max_size=5).map(np.array))
@settings(reproducible, max_examples=15)
def test_random_scores_have_the_mean_loss_in_expectation(loss):
    permutations = [loss[list(order)] for order in itertools.permutations(range(len(loss)))]
    ranks = -np.arange(len(loss))
    mean = loss.mean()
    np.testing.assert_allclose(np.mean([ops.aurc(ranks, p) for p in permutations]), mean, rtol=1e-12)
    np.testing.assert_allclose(np.mean([ops.augrc(ranks, p) for p in permutations]), mean / 2, rtol=1e-12)
    if len(set(loss.tolist())) > 1:
        np.testing.assert_allclose(np.mean([ops.naurc(ranks, p) for p in permutations]), 1, rtol=1e-12)


@given(st.one_of(samples(max_size=30, min_size=2), samples(SOFT_LOSSES, max_size=30, min_size=2)))
@reproducible
def test_perfect_ranking_is_zero_above_the_optimum(sample):
    _, loss = sample
    assert ops.e_aurc(-loss, loss) == 0
    if len(set(loss.tolist())) > 1:
        assert ops.naurc(-loss, loss) == 0
    if set(loss.tolist()) == {0, 1}:
        np.testing.assert_allclose(ops.augrc(-loss, loss), loss.mean() ** 2 / 2, rtol=1e-13)
        assert ops.failure_auroc(-loss, loss) == 1
        assert ops.coverage_at_risk(-loss, loss, 0) == (loss == 0).mean()


@given(st.one_of(samples(max_size=30), samples(SOFT_LOSSES, max_size=30)))
@reproducible
def test_no_ranking_is_better_than_the_optimum(sample):
    assert ops.e_aurc(*sample) >= -1e-15


@given(samples(max_size=30))
@reproducible
def test_areas_are_areas_under_the_curve(sample):
    curve = ops.risk_coverage_curve(*sample)
    error, n = sample[1].mean(), len(sample[0])
    np.testing.assert_allclose(ops.aurc(*sample), curve.risk.mean(), rtol=1e-12, atol=1e-15)
    from_zero = np.trapezoid(np.append(0, curve.generalized_risk), np.append(0, curve.coverage))
    np.testing.assert_allclose(ops.augrc(*sample), from_zero, rtol=1e-12, atol=1e-15)
    from_zero = np.trapezoid(np.append(0, curve.risk), np.append(0, curve.coverage))
    np.testing.assert_allclose(ops.aurc(*sample) - error / (2 * n), from_zero, rtol=1e-12, atol=1e-15)
    assert curve.risk[-1] == ops.risk_at_coverage(*sample, 1) == error
    assert ops.coverage_at_risk(*sample, Fraction(int(sample[1].sum()), n)) == 1


@given(st.permutations(range(25)), st.integers(0, 25))
@reproducible
def test_harmonic_identity_without_ties(score, wrong):
    error = np.arange(25) < wrong
    position = np.empty(25, int)
    position[np.argsort(-np.array(score))] = np.arange(1, 26)
    harmonic = np.append(0, np.cumsum(1 / np.arange(1, 26)))
    value = (error * (harmonic[25] - harmonic[position - 1])).sum() / 25
    np.testing.assert_allclose(ops.aurc(np.array(score), error), value, rtol=1e-12, atol=1e-15)


@given(samples(max_size=30))
@reproducible
def test_augrc_is_a_function_of_auroc_and_error_with_ties_too(sample):
    error = sample[1].mean()
    if 0 < error < 1:
        value = (1 - ops.failure_auroc(*sample)) * (1 - error) * error + error**2 / 2
        np.testing.assert_allclose(ops.augrc(*sample), value, rtol=1e-12)


@given(samples(max_size=30, min_size=2), st.data())
@reproducible
def test_moving_an_error_below_a_right_answer_lowers_the_areas(sample, data):
    error = sample[1].copy()
    score = -np.arange(len(error))
    places = np.flatnonzero((error[:-1] == 1) & (error[1:] == 0))
    if len(places) == 0:
        return
    at = data.draw(st.sampled_from(places.tolist()))
    swapped = error.copy()
    swapped[[at, at + 1]] = 0, 1
    n, k = len(error), at + 1
    # one more error among the first k, and nowhere else
    np.testing.assert_allclose(ops.aurc(score, error) - ops.aurc(score, swapped), 1 / (n * k), rtol=1e-9)
    np.testing.assert_allclose(ops.augrc(score, error) - ops.augrc(score, swapped), 1 / n**2, rtol=1e-9)


@pytest.mark.parametrize("scale", [1e-13, 0.5, 3.0, 1e9])
@pytest.mark.parametrize("xp", [np, jnp])
def test_metrics_are_in_the_unit_of_the_loss(xp, scale):
    score, loss = np.array([0.1, 0.9, 0.5, 0.5, 0.3]), np.array([0.25, 0.75, 0.0, 1.0, 0.5])
    unit = jitted(xp, areas)(xp.asarray(score), xp.asarray(loss))
    other = jitted(xp, areas)(xp.asarray(score), xp.asarray(scale * loss))
    for name, value in unit.items():
        np.testing.assert_allclose(other[name], value * (1 if name == "naurc" else scale), rtol=3e-6, err_msg=name)


@pytest.mark.parametrize("xp", [np, jnp])
@pytest.mark.parametrize("n", [1, 9])
def test_all_right(xp, n):
    score, error = xp.arange(n) // 2, xp.zeros(n, dtype=bool)
    summary = {name: float(value) for name, value in jitted(xp, ops.summarise)(score, error).items()}
    assert math.isnan(summary.pop("naurc"))
    assert math.isnan(summary.pop("failure_auroc"))
    for name, value in summary.items():
        assert value == (1 if name.startswith("coverage_at") else 0), name
    np.testing.assert_array_equal(jitted(xp, ops.risk_coverage_curve)(score, error).risk, 0)


@pytest.mark.parametrize("xp", [np, jnp])
@pytest.mark.parametrize("n", [1, 9])
def test_all_wrong(xp, n):
    score, error = xp.arange(n) // 2, xp.ones(n, dtype=bool)
    summary = {name: float(value) for name, value in jitted(xp, ops.summarise)(score, error).items()}
    assert math.isnan(summary.pop("naurc"))
    assert math.isnan(summary.pop("failure_auroc"))
    for name, value in summary.items():
        expected = 0 if name.startswith(("e_aurc", "coverage_at")) else 0.5 if name == "augrc" else 1
        assert value == pytest.approx(expected, abs=5e-7), name
    np.testing.assert_allclose(jitted(xp, ops.risk_coverage_curve)(score, error).risk, 1, rtol=1e-6)


@pytest.mark.parametrize("xp", [np, jnp])
@pytest.mark.parametrize("n", [1, 7, 100_000])
def test_naurc_of_equal_soft_losses_is_nan(xp, n):
    score = np.random.default_rng(n).random(n).astype(np.float32)
    assert math.isnan(float(jitted(xp, ops.naurc)(xp.asarray(score), xp.full(n, 0.3))))


@pytest.mark.parametrize("xp", [np, jnp])
def test_naurc_where_all_but_one_are_wrong(xp):
    n = 100_000  # random is err = 1 − 1/n, perfect is 1 − H_n/n: little room, but room
    error = xp.arange(n) > 0
    for score, value in ((-xp.arange(n), 0), (xp.zeros(n), 1)):
        assert float(jitted(xp, ops.naurc)(score, error)) == pytest.approx(value, abs=1e-9 if xp is np else 2e-3)


def test_infinite_scores_are_the_ends_of_the_ranking():
    error = np.array([1, 0, 1, 0])
    finite, infinite = np.array([5.0, 5.0, -5.0, 0.0]), np.array([np.inf, np.inf, -np.inf, 0.0])
    assert ops.summarise(infinite, error) == ops.summarise(finite, error)
    device = jax.jit(ops.aurc)(jnp.asarray(infinite), jnp.asarray(error))
    np.testing.assert_allclose(device, ops.aurc(finite, error), rtol=1e-6)


def test_one_score_serves_several_metrics_with_one_sort():
    rng = np.random.default_rng(0)
    score, error = rng.integers(0, 9, 50), rng.random(50) < 0.3
    ranking = ops.rank(score, error)
    for metric in (ops.aurc, ops.augrc, ops.failure_auroc):
        assert metric.of_ranking(ranking) == metric(score, error)


@pytest.fixture(scope="module")
def small_samples():
    rng = np.random.default_rng(0)
    score = rng.choice(np.array(brute_force.SCORES), (40, 6))
    return score, rng.integers(0, 2, (40, 6)), rng.choice(np.array(SOFT_LOSSES), (40, 6))


@pytest.mark.parametrize("soft", [False, True])
def test_areas_on_devices_are_expectations_over_tie_orders(small_samples, soft):
    score, loss = small_samples[0], small_samples[2 if soft else 1]
    values = jax.jit(jax.vmap(areas))(jnp.asarray(score), jnp.asarray(loss))
    for name, (_, definition) in AREAS.items():
        exact = [float(definition(*pair)) for pair in zip(score.astype(np.float32), loss, strict=True)]
        np.testing.assert_allclose(values[name], exact, rtol=2e-6, atol=5e-7, err_msg=name)


def test_operating_points_on_devices_by_definition(small_samples):
    score, error = small_samples[0].astype(np.float32), small_samples[1]
    risks, coverages = (0.0, "0.25", 1 / 3, 0.5, 1), (0.1, "0.5", 2 / 3, 1)

    @jax.jit
    @jax.vmap
    def points(score, error):
        ranking = ops.rank(score, error)
        return (
            [ops.coverage_at_risk.of_ranking(ranking, risk) for risk in risks],
            [ops.risk_at_coverage.of_ranking(ranking, coverage) for coverage in coverages],
            ops.risk_coverage_curve(score, error),
        )

    at_risk, at_coverage, curve = points(jnp.asarray(score), jnp.asarray(error))
    for i, pair in enumerate(zip(score, error, strict=True)):
        for risk, value in zip(risks, at_risk, strict=True):
            exact = brute_force.coverage_at_risk(*pair, Fraction(str(risk)))
            np.testing.assert_allclose(value[i], float(exact), rtol=1e-6)
        for coverage, value in zip(coverages, at_coverage, strict=True):
            exact = brute_force.risk_at_coverage(*pair, Fraction(str(coverage)))
            np.testing.assert_allclose(value[i], float(exact), rtol=1e-6)
        np.testing.assert_allclose(curve.risk[i], ops.risk_coverage_curve(*pair).risk, rtol=1e-6)


def realistic(n: int, ties: bool, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Scores [n] float32 with a fifth of them equal at the top if `ties`, and errors [n] that they predict."""
    rng = np.random.default_rng(seed)
    score = rng.normal(size=n).astype(np.float32)
    if ties:
        score = np.where(np.arange(n) % 5 == 0, np.float32(4), np.round(score, 2))
    return score, rng.random(n) < 1 / (1 + np.exp(2 * score + 2))


def agree(device: dict, host: dict) -> None:
    for name, value in host.items():
        np.testing.assert_allclose(device[name], value, rtol=1e-6, err_msg=name)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("dtype", [bool, np.int32])
def test_float32_on_devices_agrees_with_float64_on_the_host(ties, dtype):
    score, error = realistic(100_000, ties)
    agree(jitted(jnp, ops.summarise)(jnp.asarray(score), jnp.asarray(error, dtype)), ops.summarise(score, error))


def test_float32_agrees_at_a_million():
    score, error = realistic(1_000_000, True, seed=1)
    agree(jitted(jnp, ops.summarise)(jnp.asarray(score), jnp.asarray(error)), ops.summarise(score, error))


@pytest.mark.parametrize(("ties", "dtype"), [(False, np.float32), (True, np.float32), (True, np.float16)])
def test_float32_agrees_for_soft_losses(ties, dtype):
    score, error = realistic(100_000, ties)
    loss = (error * np.random.default_rng(2).random(len(error))).astype(dtype)
    agree(jitted(jnp, areas)(jnp.asarray(score), jnp.asarray(loss)), areas(score, loss))


@pytest.mark.parametrize("error_rate", [1e-3, 1e-2, 0.1])
@pytest.mark.parametrize("n", [1000, 100_000])
def test_float32_agrees_where_errors_are_rare_and_well_ranked(n, error_rate):
    rng = np.random.default_rng(3)
    error = rng.random(n) < error_rate
    error[0] = True
    score = np.round(rng.normal(size=n) * 0.15 - error, 2).astype(np.float32)
    for metric, given_score in ((ops.aurc, score), (ops.aurc, -error.astype(np.float32))):
        np.testing.assert_allclose(
            jitted(jnp, metric)(jnp.asarray(given_score), jnp.asarray(error)), metric(given_score, error), rtol=1e-6
        )


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_scores_beyond_the_range_of_float16(dtype):
    score, error = realistic(100_000, False)
    score = score.astype(dtype)  # ties by the thousand, but no count in half precision
    exact = areas(score.astype(np.float64), error)
    assert areas(score, error) == exact
    agree(jitted(jnp, areas)(jnp.asarray(score), jnp.asarray(error)), exact)
    constant = jitted(jnp, areas)(jnp.full(100_000, 0.5, dtype), jnp.asarray(error))
    np.testing.assert_allclose(constant["aurc"], error.mean(), rtol=1e-6)
