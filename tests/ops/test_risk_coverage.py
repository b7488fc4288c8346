"""The curve and its operating points against their definitions."""

import math
from fractions import Fraction

import brute_force
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from brute_force import SCORES, SOFT_LOSSES, reproducible, samples
from hypothesis import given, settings
from hypothesis import strategies as st

from sc_jax import ops
from sc_jax.ops.risk_coverage import loss_of_accepted

TARGETS = (0, 0.05, "0.25", Fraction(1, 3), 0.5, 1 / 3, 2 / 3, 0.123456789, 1, 1.5)
COVERAGES = (0.001, "0.2", 0.25, Fraction(1, 3), 1 / 3, 2 / 3, 0.7, 0.999999999, 1)


def close(value, exact):
    np.testing.assert_allclose(value, float(exact), rtol=1e-12, atol=1e-14)


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


@pytest.mark.parametrize(("xp", "hundreds"), [(np, 1), (np, 137), (jnp, 137)])
def test_one_error_in_a_hundred_meets_one_percent(xp, hundreds):
    n = 100 * hundreds
    score, error = xp.arange(n)[::-1] / n, xp.arange(n) < hundreds  # the errors first
    ranking = ops.rank(score, error)
    assert float(ops.coverage_at_risk.of_ranking(ranking, 0.01)) == 1
    assert float(ops.coverage_at_risk.of_ranking(ranking, "0.00999")) == 0


@pytest.mark.parametrize("xp", [np, jnp])
def test_every_percentage_is_met_exactly(xp):
    score = xp.asarray(np.arange(100, 0, -1).repeat(3))
    for percent in range(1, 100) if xp is np else (1, 7, 28, 57):  # many of these err in floats
        error = np.arange(300) < 3 * percent
        assert float(ops.coverage_at_risk(score, xp.asarray(error), percent / 100)) == 1
        error[-1] = True  # one error more, and the whole does not meet it
        assert float(ops.coverage_at_risk(score, xp.asarray(error), percent / 100)) < 1


@pytest.mark.parametrize("xp", [np, jnp])
def test_long_targets_do_not_overflow(xp):
    rng = np.random.default_rng(0)
    n = 20_000
    score, error = rng.permutation(n).astype(np.float32), rng.random(n) < 0.4
    errors = np.cumsum(error[np.argsort(-score)])
    ranking = ops.rank(xp.asarray(score), xp.asarray(error))
    for target in (1 / 3, 0.123456789, 0.3721983712, Fraction(1, 7), 0.30000000000000004):
        exact = Fraction(str(target))
        feasible = [k for k in range(1, n + 1) if int(errors[k - 1]) * exact.denominator <= exact.numerator * k]
        value = float(ops.coverage_at_risk.of_ranking(ranking, target))
        assert value == pytest.approx(max(feasible, default=0) / n, rel=1e-6)
        k = math.ceil(exact * n)
        assert float(ops.risk_at_coverage.of_ranking(ranking, target)) == pytest.approx(errors[k - 1] / k, rel=1e-6)


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


def test_threshold_takes_whole_tie_blocks():
    score, error = np.array([3, 2, 2, 2, 2, 1]), np.array([0, 0, 0, 0, 1, 1])
    assert ops.coverage_at_risk(score, error, 0.1) == 1 / 6  # four of six without error exist, no threshold has them
    assert ops.coverage_at_risk(score, error, 0.2) == 5 / 6


def test_coverage_at_risk_does_not_exceed_the_target_where_the_nearest_crossing_would():
    score, error = -np.arange(10), np.array([0, 0, 0, 1, 0, 0, 0, 0, 1, 0])  # r_10 = 0.2, r_8 = 0.125, r_9 = 0.222
    assert ops.coverage_at_risk(score, error, 0.19) == 0.8


@given(st.lists(st.sampled_from(SOFT_LOSSES), min_size=1, max_size=30).map(np.array))
@reproducible
def test_constant_score_has_the_mean_loss_everywhere(loss):
    score = np.full(len(loss), 0.7)
    curve = ops.risk_coverage_curve(score, loss)
    for value in (
        curve.risk,
        ops.risk_at_coverage(score, loss, 0.4),
    ):
        np.testing.assert_allclose(value, loss.mean(), rtol=1e-13)


@pytest.fixture(scope="module")
def small_samples():
    rng = np.random.default_rng(0)
    score = rng.choice(np.array(SCORES), (40, 6))
    return score, rng.integers(0, 2, (40, 6)), rng.choice(np.array(SOFT_LOSSES), (40, 6))


def test_operating_points_on_devices_by_definition(small_samples):
    score, error = small_samples[0].astype(np.float32), small_samples[1]
    risks, coverages = (0.0, "0.25", 1 / 3, 0.5, 1), (0.1, "0.5", 2 / 3, 1)

    @jax.jit
    @jax.vmap
    def points(score, error):
        ranking = ops.rank(score, error)
        return (
            [ops.coverage_at_risk.of_ranking(ranking, risk) for risk in risks],
            [ops.threshold_at_risk(score, error, risk) for risk in risks],
            [ops.coverage_at_risk_nearest(score, error, risk, min_count=2) for risk in (0.1, "1/3", 0.4)],
            [ops.risk_at_coverage.of_ranking(ranking, coverage) for coverage in coverages],
            [ops.threshold_at_coverage(score, coverage) for coverage in coverages],
            [ops.realisable_coverage(score, coverage) for coverage in (0.1, "0.5", "2/3", 1)],
            ops.risk_coverage_curve(score, error),
        )

    def by_definition(score, error):
        risk, coverage = ([Fraction(str(target)) for target in targets] for targets in (risks, coverages))
        sample = score, error
        return (
            [brute_force.coverage_at_risk(*sample, r) for r in risk],
            [brute_force.threshold_at_risk(*sample, r) for r in risk],
            [brute_force.coverage_at_risk_nearest(*sample, Fraction(r), 2) for r in ("0.1", "1/3", "0.4")],
            [brute_force.risk_at_coverage(*sample, c) for c in coverage],
            [brute_force.threshold_at_coverage(score, c) for c in coverage],
            [brute_force.realisable_coverage(score, Fraction(c)) for c in ("0.1", "0.5", "2/3", 1)],
        )

    *values, curve = points(jnp.asarray(score), jnp.asarray(error))
    for i, sample in enumerate(zip(score, error, strict=True)):
        for value, exact in zip(values, by_definition(*sample), strict=True):
            np.testing.assert_allclose([v[i] for v in value], [float(e) for e in exact], rtol=1e-6)
        np.testing.assert_allclose(curve.risk[i], ops.risk_coverage_curve(*sample).risk, rtol=1e-6)


@pytest.mark.parametrize("risk", TARGETS)
@given(sample=st.one_of(samples(max_size=12), samples((0, 1, 2, 5), max_size=12)))
@settings(reproducible, max_examples=30)
def test_thresholds_and_nearest_coverage_at_a_risk_by_definition(risk, sample):
    exact = Fraction(str(risk))
    np.testing.assert_array_equal(ops.threshold_at_risk(*sample, risk), brute_force.threshold_at_risk(*sample, exact))
    for min_count in (0, 1, 4):
        np.testing.assert_array_equal(
            ops.coverage_at_risk_nearest(*sample, risk, min_count=min_count),
            float(brute_force.coverage_at_risk_nearest(*sample, exact, min_count)),
        )
    accuracy = ops.selective_accuracy_constraint(*sample, 1 - exact)
    assert accuracy == ops.coverage_at_risk(*sample, risk)


@pytest.mark.parametrize("coverage", [0.001, "0.2", 0.25, Fraction(1, 3), "2/3", 0.7, 0.999999999, 1])
@given(sample=samples(max_size=12))
@settings(reproducible, max_examples=30)
def test_thresholds_and_realisable_coverage_by_definition(coverage, sample):
    exact = Fraction(str(coverage))
    assert ops.threshold_at_coverage(sample[0], coverage) == brute_force.threshold_at_coverage(sample[0], exact)
    assert ops.realisable_coverage(sample[0], coverage) == float(brute_force.realisable_coverage(sample[0], exact))


def test_of_coverages_as_near_the_larger_and_of_risks_as_near_the_smaller_coverage():
    # |0.1 − 0.2| and |0.3 − 0.2| differ in floats.
    score = np.arange(10.0)
    for low, middle in ((1, 2), (2, 3), (6, 7), (7, 8)):
        tied = np.where(score >= 10 - low, score, np.where(score >= 10 - low - 2, 10.0 - low - 2, score))
        assert ops.realisable_coverage(tied, middle / 10) == (low + 2) / 10
    error = np.array([0, 0, 0, 0, 0, 0, 1, 0, 1, 1])  # of the first five none, of all three
    assert ops.coverage_at_risk_nearest(np.repeat([2.0, 1.0], [5, 5]), error, 0.15, min_count=1) == 0.5  # 0 and 0.3
    error = np.repeat([0, 1, 0, 1], [9, 1, 5, 5])  # of the first ten one, of all six: 0.1 and 0.3
    assert ops.coverage_at_risk_nearest(np.repeat([2.0, 1.0], 10), error, 0.2, min_count=1) == 0.5


@given(samples(max_size=30), st.sampled_from([0.05, 0.1, 0.3, 0.5]))
@reproducible
def test_thresholds_accept_what_they_say(sample, target):
    score, error = sample
    threshold = ops.threshold_at_risk(score, error, target)
    accepted = score >= threshold
    assert accepted.mean() == ops.coverage_at_risk(score, error, target)
    assert error[accepted].sum() <= target * accepted.sum() + 1e-9
    accepted = score >= ops.threshold_at_coverage(score, target)
    assert accepted.mean() >= target - 1e-12
    assert (score > score[accepted].min()).mean() < target  # any higher threshold accepts too few


def weighted(losses=(0, 1), min_size=1):
    """(score, loss, weight) with weights 0 among them, and not only those."""
    return samples(losses, min_size=min_size, max_size=8).flatmap(
        lambda sample: (
            st.lists(st.integers(0, 4), min_size=len(sample[0]), max_size=len(sample[0]))
            .filter(any)
            .map(lambda weight: (*sample, np.array(weight)))
        )
    )


def operating_points(score, error, weight=None):
    return [
        *(
            metric(score, c, weight=weight)
            for metric in (ops.threshold_at_coverage, ops.realisable_coverage)
            for c in (0.05, "0.4", 1)
        ),
        *(ops.threshold_at_risk(score, error, r, weight=weight) for r in (0, "0.3", 0.5)),
        *(ops.coverage_at_risk_nearest(score, error, r, min_count=0, weight=weight) for r in (0, "0.3", 0.5)),
    ]


@pytest.mark.parametrize("xp", [np, jnp])
def test_operating_points_of_weights_are_those_of_repeated_rows(xp):
    function = operating_points if xp is np else jax.jit(operating_points)

    @given(case=weighted(min_size=8 if xp is jnp else 1))
    @reproducible
    def holds(case):
        score, error, weight = case
        values = function(*(xp.asarray(array) for array in case))
        rows = operating_points(np.repeat(score, weight), np.repeat(error, weight))
        np.testing.assert_allclose([float(v) for v in values], [float(v) for v in rows], rtol=1e-6)

    holds()


@pytest.mark.parametrize("masked", [False, True])
@given(case=weighted(SOFT_LOSSES))
@reproducible
def test_the_curve_of_weights_lies_on_that_of_repeated_rows(masked, case):
    score, loss, weight = case
    rows = np.repeat(score, weight), np.repeat(loss, weight)
    curve = ops.risk_coverage_curve(score, loss, weight=weight, where=weight > 0 if masked else None)
    n = (weight > 0).sum() if masked else len(score)
    np.testing.assert_allclose(curve.coverage, np.arange(1, n + 1) / n, rtol=1e-15)
    fine = ops.risk_coverage_curve(*rows)
    on_curve = np.interp(curve.coverage, np.append(0, fine.coverage), np.append(0, fine.generalized_risk))
    np.testing.assert_allclose(curve.generalized_risk, on_curve, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(curve.risk * curve.coverage, curve.generalized_risk, rtol=1e-12, atol=1e-15)
    for coverage, threshold in zip(curve.coverage, curve.threshold, strict=True):
        accepted = Fraction(int(weight[score >= threshold].sum()), int(weight.sum()))
        above = Fraction(int(weight[score > threshold].sum()), int(weight.sum()))
        exact = Fraction(round(coverage * n), int(n))
        assert above < exact <= accepted


@pytest.mark.parametrize(
    ("xp", "n", "total"),
    [(np, 6, 9), (np, 11, 33), (np, 49, 7), (np, 60, 45), (np, 93, 31), (jnp, 93, 31), (jnp, 29919, 19946)],
)
def test_thresholds_of_the_curve_do_not_slip_by_rounding(xp, n, total):
    # k/n of the total may be a whole number, which products of floats lie just beyond.
    score = -np.arange(n)
    weight = np.zeros(n, int)
    weight[:total] = 1 if total < n else 0
    weight[0] += total - weight.sum()
    curve_of = lambda score, weight: ops.risk_coverage_curve(score, 0 * score, weight=weight)  # noqa: E731
    curve = (curve_of if xp is np else jax.jit(curve_of))(xp.asarray(score), xp.asarray(weight))
    expected = score[np.searchsorted(np.cumsum(weight) * n, np.arange(1, n + 1) * total)]
    np.testing.assert_array_equal(curve.threshold, expected)


@given(samples(max_size=12))
@reproducible
def test_the_collapsed_curve_has_the_points_of_thresholds(sample):
    score, error = sample
    curve = ops.risk_coverage_curve(score, error, ties="collapse")
    points = brute_force.realisable(score, error)
    np.testing.assert_array_equal(curve.threshold, [t for t, _, _ in points])
    np.testing.assert_array_equal(curve.coverage, [k / len(score) for _, k, _ in points])
    np.testing.assert_array_equal(curve.risk, [float(total / k) for _, k, total in points])


@given(samples(min_size=8, max_size=8))
@settings(reproducible, max_examples=10)
def test_the_collapsed_curve_on_devices_repeats_a_block(sample):
    score, error = sample
    curve = ops.risk_coverage_curve(score, error, ties="collapse")
    device = collapsed(jnp.asarray(score), jnp.asarray(error))
    times = np.diff([0, *(k for _, k, _ in brute_force.realisable(score, error))])
    for value, host in zip(device, curve, strict=True):
        np.testing.assert_allclose(value, np.repeat(host, times), rtol=1e-6)


collapsed = jax.jit(lambda score, error: ops.risk_coverage_curve(score, error, ties="collapse"))


@pytest.mark.parametrize("xp", [np, jnp])
def test_nothing_left_has_no_operating_point(xp):
    score, error = xp.asarray([3.0, 2.0, 2.0]), xp.asarray([0, 1, 0])
    for options in ({"weight": xp.asarray([0, 0, 0])}, {"where": xp.asarray([False, False, False])}):
        for value in (
            ops.coverage_at_risk(score, error, 0.5, **options),
            ops.coverage_at_risk_nearest(score, error, 0.5, min_count=0, **options),
            ops.risk_at_coverage(score, error, 0.5, **options),
            ops.realisable_coverage(score, 0.5, **options),
            ops.threshold_at_coverage(score, 0.5, **options),
            ops.threshold_at_risk(score, error, 0.5, **options),
        ):
            assert value.shape == ()
            assert math.isnan(value)


def test_thresholds_and_curves_take_one_row_of_weights():
    score, error, rows = np.arange(3.0), np.array([0, 1, 0]), np.ones((2, 3))
    for call in (
        lambda: ops.threshold_at_coverage(score, 0.5, weight=rows),
        lambda: ops.threshold_at_risk(score, error, 0.5, weight=rows),
        lambda: ops.risk_coverage_curve(score, error, weight=rows),
    ):
        with pytest.raises(ValueError, match="one row of weights"):
            call()
    with pytest.raises(ValueError, match="ties 'ignore': there are 'expect' and 'collapse'"):
        ops.risk_coverage_curve(score, error, ties="ignore")
