"""Areas under the curve against their definitions over all orders of the tied samples, and their invariants."""

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
from scipy.special import digamma

from sc_jax import ops
from sc_jax.ops.areas import ESTIMATORS

AREAS = {
    "augrc": (ops.augrc, brute_force.augrc),
    "e_aurc": (ops.e_aurc, brute_force.e_aurc),
    "naurc": (ops.naurc, brute_force.naurc),
    "achievable_aurc": (ops.achievable_aurc, brute_force.achievable_aurc),
}
RANGES = ((0, 1), (0, "0.5"), (0.2, 0.7), (Fraction(1, 3), Fraction(2, 3)), (0.9, 1), ("0.5", "0.5000001"))
ORDERED = [name for name in ESTIMATORS if name != "fd_shifts"]  # the estimators that are sums over ranks

each_estimator = pytest.mark.parametrize("estimator", ESTIMATORS)
each_ordered = pytest.mark.parametrize("estimator", ORDERED)
either = st.one_of(samples(), samples(SOFT_LOSSES))
many = st.one_of(samples(max_size=30), samples(SOFT_LOSSES, max_size=30))


@functools.cache
def jitted(xp, metric):
    return metric if xp is np else jax.jit(metric)


def areas(score, loss):
    return {
        **{name: ops.aurc(score, loss, name) for name in ESTIMATORS},
        "augrc": ops.augrc(score, loss),
        "e_aurc": ops.e_aurc(score, loss),
        "naurc": ops.naurc(score, loss),
        "optimal_aurc": ops.optimal_aurc(loss),
        "partial_aurc": ops.partial_aurc(score, loss, 0.2, 0.7),
        "partial_augrc": ops.partial_augrc(score, loss, 0.2, 0.7),
    }


def close(value, exact, rtol=1e-12):
    np.testing.assert_allclose(value, float(exact), rtol=rtol, atol=1e-14)


def test_the_estimators_differ_on_the_worked_example():
    score, error = np.array([0.9, 0.8, 0.7, 0.6, 0.5]), np.array([0, 0, 0, 1, 1])  # risks 0, 0, 0, 1/4, 2/5
    exact = {
        "mean": Fraction(13, 100),
        "trapezoid_from_zero": Fraction(9, 100),  # 0.13 − 0.4/10
        "torch_uncertainty": Fraction(9, 80),  # (0.65 − 0/2 − 0.4/2)/4
        "fd_shifts": Fraction(9, 100),  # the first risk is 0, so that held to coverage 0 it is a trapezoid from zero
        "ln": (math.log(6 / 4) + math.log(6 / 5)) / 5,  # 0.117557
        "sele": Fraction(3, 25),  # the wrong ones have 2 and 1 samples at or below them
    }
    assert set(exact) == set(ESTIMATORS)
    for estimator, value in exact.items():
        close(ops.aurc(score, error, estimator), value)
        close(float(brute_force.ESTIMATORS[estimator](score, error)), value)
    assert float(exact["ln"]) == pytest.approx(0.117557, abs=5e-7)


@each_estimator
@given(sample=either)
@reproducible
def test_estimators_are_expectations_over_tie_orders(estimator, sample):
    close(ops.aurc(*sample, estimator), brute_force.ESTIMATORS[estimator](*sample))


@pytest.mark.parametrize("name", AREAS)
@given(sample=either)
@reproducible
def test_areas_are_by_definition(name, sample):
    metric, definition = AREAS[name]
    close(metric(*sample), definition(*sample))


@pytest.mark.parametrize("ends", RANGES)
@given(sample=either)
@settings(reproducible, max_examples=30)
def test_partial_areas_are_by_definition(ends, sample):
    low, high = (Fraction(str(end)) for end in ends)
    close(ops.partial_aurc(*sample, *ends), brute_force.partial_aurc(*sample, low, high))
    # a difference of two areas of which a narrow range keeps few digits
    close(ops.partial_augrc(*sample, *ends), brute_force.partial_augrc(*sample, low, high), 1e-13 / float(high - low))


@given(many)
@reproducible
def test_the_whole_range_is_the_area(sample):
    close(ops.partial_aurc(*sample), ops.aurc(*sample))
    close(ops.partial_augrc(*sample), ops.augrc(*sample))


@given(many, st.lists(st.integers(0, 20), min_size=3, max_size=3, unique=True).map(sorted))
@reproducible
def test_parts_of_a_range_add_up(sample, twentieths):
    n = len(sample[0])
    a, b, c = (Fraction(end, 20) for end in twentieths)
    for metric, size in ((ops.partial_augrc, lambda end: end), (ops.partial_aurc, lambda end: math.floor(end * n))):
        parts = [(size(high) - size(low), metric(*sample, low, high)) for low, high in ((a, b), (b, c), (a, c))]
        first, second, whole = (float(width) * float(value) if width else 0.0 for width, value in parts)
        np.testing.assert_allclose(first + second, whole, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("ends", [(0.5, 0.5), (0.6, 0.4), (-0.1, 1), (0, 1.01)])
@pytest.mark.parametrize("metric", [ops.partial_aurc, ops.partial_augrc])
def test_ranges_that_are_none_are_refused(metric, ends):
    with pytest.raises(ValueError, match="a range of coverages needs 0 ≤ low < high ≤ 1"):
        metric(np.arange(3.0), np.array([0, 1, 0]), *ends)


def test_a_range_without_a_point_has_no_risk():
    assert math.isnan(ops.partial_aurc(np.arange(3.0), np.array([0, 1, 0]), 0.4, 0.6))


# Optimum, excess, normalisation


@each_ordered
@given(loss=st.lists(st.sampled_from(SOFT_LOSSES), min_size=1, max_size=5).map(np.array))
@settings(reproducible, max_examples=30)
def test_the_optimum_is_the_smallest_over_permutations(estimator, loss):
    ranks = -np.arange(len(loss))
    values = [ops.aurc(ranks, loss[list(order)], estimator) for order in itertools.permutations(range(len(loss)))]
    close(ops.optimal_aurc(loss, estimator), min(values))
    close(ops.optimal_aurc(np.floor(loss).astype(int), estimator), ops.optimal_aurc(np.floor(loss), estimator))


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_the_collapsed_optimum_of_errors_is_the_smallest_over_rankings_with_ties(n):
    scores = [np.array(levels) for levels in itertools.product(range(n), repeat=n)]
    for wrong in range(n + 1):
        error = np.arange(n) < wrong
        smallest = min(brute_force.fd_shifts(score, error) for score in scores)
        assert smallest == (Fraction(wrong, n) ** 2 / 2 if wrong < n else 1)
        close(ops.optimal_aurc(error, "fd_shifts"), smallest)


def test_the_optimum_of_errors_in_closed_form():
    for n, wrong in ((1, 0), (1, 1), (7, 3), (1000, 1), (1000, 999), (10_000, 812)):
        exact = sum(Fraction(i - (n - wrong), i) for i in range(n - wrong + 1, n + 1)) / n
        close(ops.optimal_aurc(np.arange(n) < wrong), exact)


@each_estimator
@given(sample=st.one_of(samples(max_size=30), samples(SOFT_LOSSES, max_size=30)))
@reproducible
def test_excess_and_normalised_areas_are_of_one_estimator(estimator, sample):
    score, loss = sample
    value, optimum = ops.aurc(score, loss, estimator), ops.optimal_aurc(loss, estimator)
    random = ops.aurc(np.zeros(len(loss)), loss, estimator)
    np.testing.assert_allclose(ops.e_aurc(score, loss, estimator), value - optimum, rtol=1e-11, atol=1e-14)
    naurc = ops.naurc(score, loss, estimator)
    if math.isnan(random) or random - optimum < 1e-9:
        assert math.isnan(naurc)
    else:
        np.testing.assert_allclose(naurc, (value - optimum) / (random - optimum), rtol=1e-10, atol=1e-12)
    np.testing.assert_array_equal(ops.prr(score, loss, estimator), 1 - naurc)


@each_estimator
@given(sample=samples(max_size=30))
@reproducible
def test_no_ranking_of_errors_is_better_than_the_optimum(estimator, sample):
    excess = ops.e_aurc(*sample, estimator)
    assert excess >= -1e-15 or (estimator == "torch_uncertainty" and len(sample[0]) == 1)
    assert ops.e_augrc(*sample) >= -1e-15


@each_ordered
@given(sample=samples(SOFT_LOSSES, max_size=30, min_size=2))
@reproducible
def test_no_ranking_of_soft_losses_is_better_than_the_optimum(estimator, sample):
    assert ops.e_aurc(*sample, estimator) >= -1e-15
    assert ops.e_augrc(*sample) >= -1e-15


def test_the_asymptotic_optimum_would_make_excess_negative():
    error = np.arange(10) < 7
    limit = 0.7 + 0.3 * math.log(0.3)
    for estimator in ("trapezoid_from_zero", "fd_shifts"):
        assert ops.aurc(-1.0 * error, error, estimator) < limit
        assert ops.e_aurc(-1.0 * error, error, estimator) == 0


@given(st.one_of(samples(max_size=30, min_size=2), samples(SOFT_LOSSES, max_size=30, min_size=2)))
@reproducible
def test_a_perfect_ranking_is_zero_above_the_optimum(sample):
    _, loss = sample
    assert ops.e_augrc(-loss, loss) == 0
    for estimator in ESTIMATORS:
        assert ops.e_aurc(-loss, loss, estimator) == 0
        if len(set(loss.tolist())) > 1:
            assert abs(ops.naurc(-loss, loss, estimator)) < 1e-12
    if set(loss.tolist()) == {0, 1}:
        np.testing.assert_allclose(ops.augrc(-loss, loss), loss.mean() ** 2 / 2, rtol=1e-13)
        assert ops.failure_auroc(-loss, loss) == 1
        assert ops.coverage_at_risk(-loss, loss, 0) == (loss == 0).mean()


@given(st.lists(st.sampled_from(SOFT_LOSSES), min_size=1, max_size=4).map(np.array))
@settings(reproducible, max_examples=15)
def test_random_scores_have_the_mean_loss_in_expectation(loss):
    permutations = [loss[list(order)] for order in itertools.permutations(range(len(loss)))]
    ranks = -np.arange(len(loss))
    mean = loss.mean()
    np.testing.assert_allclose(np.mean([ops.aurc(ranks, p) for p in permutations]), mean, rtol=1e-12)
    np.testing.assert_allclose(np.mean([ops.augrc(ranks, p) for p in permutations]), mean / 2, rtol=1e-12)
    for estimator in ORDERED if len(set(loss.tolist())) > 1 else ():
        np.testing.assert_allclose(np.mean([ops.naurc(ranks, p, estimator) for p in permutations]), 1, rtol=1e-12)


@given(st.lists(st.sampled_from(SOFT_LOSSES), min_size=2, max_size=30).map(np.array))
@reproducible
def test_a_constant_score_has_the_mean_loss(loss):
    score, mean, n = np.full(len(loss), 0.7), loss.mean(), len(loss)
    exact = {
        "mean": mean,
        "trapezoid_from_zero": mean * (1 - 1 / (2 * n)),
        "torch_uncertainty": mean,
        "fd_shifts": mean,
        "ln": mean * np.log((n + 1) / np.arange(1, n + 1)).mean(),
        "sele": mean / 2 * (1 + 1 / n),
    }
    for estimator, value in exact.items():
        np.testing.assert_allclose(ops.aurc(score, loss, estimator), value, rtol=1e-12)
    np.testing.assert_allclose(ops.augrc(score, loss), mean / 2, rtol=1e-12)
    np.testing.assert_allclose(ops.achievable_aurc(score, loss), mean, rtol=1e-12)
    np.testing.assert_allclose(ops.partial_aurc(score, loss, 0, 0.5), mean, rtol=1e-12)


def test_ln_of_a_constant_score_tends_to_the_error():
    error = np.arange(5) < 2
    assert ops.aurc(np.zeros(5), error, "ln") / error.mean() == pytest.approx(0.834, abs=5e-4)
    error = np.arange(10**6) < 4 * 10**5
    assert ops.aurc(np.zeros(10**6), error, "ln") / error.mean() == pytest.approx(1, abs=1e-4)


# Identities


@given(samples(max_size=30))
@reproducible
def test_areas_are_areas_under_the_curve(sample):
    curve = ops.risk_coverage_curve(*sample)
    error, n = sample[1].mean(), len(sample[0])
    np.testing.assert_allclose(ops.aurc(*sample), curve.risk.mean(), rtol=1e-12, atol=1e-15)
    from_zero = np.trapezoid(np.append(0, curve.generalized_risk), np.append(0, curve.coverage))
    np.testing.assert_allclose(ops.augrc(*sample), from_zero, rtol=1e-12, atol=1e-15)
    from_zero = np.trapezoid(np.append(0, curve.risk), np.append(0, curve.coverage))
    np.testing.assert_allclose(ops.aurc(*sample, "trapezoid_from_zero"), from_zero, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(ops.aurc(*sample) - error / (2 * n), from_zero, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(ops.aurc(*sample, "sele"), curve.generalized_risk.mean(), rtol=1e-12, atol=1e-15)
    if n > 1:
        inner = np.trapezoid(curve.risk, curve.coverage) / (1 - 1 / n)
        np.testing.assert_allclose(ops.aurc(*sample, "torch_uncertainty"), inner, rtol=1e-12, atol=1e-15)
    points = ops.risk_coverage_curve(*sample, ties="collapse")
    held = np.trapezoid(np.append(points.risk[0], points.risk), np.append(0, points.coverage))
    np.testing.assert_allclose(ops.aurc(*sample, "fd_shifts"), held, rtol=1e-12, atol=1e-15)
    assert curve.risk[-1] == ops.risk_at_coverage(*sample, 1) == error


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
    np.testing.assert_allclose(ops.e_augrc(*sample), ops.augrc(*sample) - error**2 / 2, rtol=1e-11, atol=1e-15)


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
    for estimator in ESTIMATORS:
        assert ops.aurc(score, swapped, estimator) < ops.aurc(score, error, estimator)
    assert ops.achievable_aurc(score, swapped) <= ops.achievable_aurc(score, error) + 1e-15


@pytest.mark.parametrize("scale", [1e-13, 0.5, 3.0, 1e9])
@pytest.mark.parametrize("xp", [np, jnp])
def test_areas_are_in_the_unit_of_the_loss(xp, scale):
    score, loss = np.array([0.1, 0.9, 0.5, 0.5, 0.3]), np.array([0.25, 0.75, 0.0, 1.0, 0.5])
    unit = jitted(xp, areas)(xp.asarray(score), xp.asarray(loss))
    other = jitted(xp, areas)(xp.asarray(score), xp.asarray(scale * loss))
    for name, value in unit.items():
        np.testing.assert_allclose(other[name], value * (1 if name == "naurc" else scale), rtol=3e-6, err_msg=name)


@pytest.mark.parametrize(("xp", "n"), [(np, 1), (np, 7), (np, 100_000), (jnp, 1), (jnp, 100_000)])
def test_naurc_of_equal_soft_losses_is_nan(xp, n):
    score = np.random.default_rng(n).random(n).astype(np.float32)
    assert math.isnan(float(jitted(xp, ops.naurc)(xp.asarray(score), xp.full(n, 0.3))))


@pytest.mark.parametrize("xp", [np, jnp])
def test_naurc_where_all_but_one_are_wrong(xp):
    n = 100_000  # random is err = 1 − 1/n, perfect is 1 − H_n/n: little room, but room
    error = xp.arange(n) > 0
    for score, value in ((-1.0 * error, 0), (xp.zeros_like(1.0 * error), 1)):
        assert float(jitted(xp, ops.naurc)(score, error)) == pytest.approx(value, abs=1e-9 if xp is np else 2e-3)


def test_one_score_serves_several_metrics_with_one_sort():
    rng = np.random.default_rng(0)
    score, error = rng.integers(0, 9, 50), rng.random(50) < 0.3
    ranking = ops.rank(score, error)
    for metric in (ops.aurc, ops.augrc, ops.failure_auroc, ops.partial_aurc, ops.partial_augrc):
        assert metric.of_ranking(ranking) == metric(score, error)
    for estimator in ORDERED:
        assert ops.aurc.of_ranking(ranking, estimator) == ops.aurc(score, error, estimator)


def test_estimators_that_are_none_are_refused():
    score, error = np.arange(3.0), np.array([0, 1, 0])
    for metric in (ops.aurc, ops.e_aurc, ops.naurc, ops.prr):
        with pytest.raises(ValueError, match="estimator 'median': there are mean, trapezoid_from_zero"):
            metric(score, error, "median")
    with pytest.raises(ValueError, match="estimator 'median'"):
        ops.optimal_aurc(error, "median")
    with pytest.raises(ValueError, match="'fd_shifts': needs `blocks`"):
        ops.aurc.of_ranking(ops.rank(score, error), "fd_shifts")
    with pytest.raises(ValueError, match="aurc_loss knows mean, ln and sele"):
        ops.aurc_loss(jnp.asarray(score), jnp.asarray(error, float), "fd_shifts")


# The achievable area


def own_area(score, loss):
    """∫ g/c dc under the curve of the score itself, linear between realisable points."""
    points = [(0, Fraction(0)), *((k, total) for _, k, total in brute_force.realisable(score, loss))]
    area = 0.0
    for (a, low), (b, high) in itertools.pairwise(points):
        slope = float(high - low) / (b - a)
        area += slope * (b - a) + ((float(low) - slope * a) * math.log(b / a) if a else 0.0)
    return area / len(loss)


@given(many)
@reproducible
def test_mixing_thresholds_never_hurts(sample):
    assert ops.achievable_aurc(*sample) <= own_area(*sample) + 1e-13
    curve = ops.risk_coverage_curve(*sample, ties="collapse")
    if (np.diff(np.diff(np.append(0, curve.generalized_risk)) / np.diff(np.append(0, curve.coverage))) >= 0).all():
        close(ops.achievable_aurc(*sample), own_area(*sample))  # convex already


# Matched error


@given(samples(max_size=12, min_size=2), st.integers(0, 8))
@reproducible
def test_aurc_at_error_is_that_of_reweighted_rows(sample, eighths):
    score, error = sample
    n, wrong = len(error), int(error.sum())
    if not 0 < wrong < n:
        assert math.isnan(ops.aurc_at_error(score, error, 0.25))
        return
    # 8·wrong·(n − wrong) copies of all, or as many that the right and the wrong have their shares: whole numbers both
    copies = np.full(n, 8 * wrong * (n - wrong))
    weight = np.where(error == 1, eighths * n * (n - wrong), (8 - eighths) * n * wrong)
    assert weight.sum() == copies.sum()
    assert Fraction(int(weight @ error), int(weight.sum())) == Fraction(eighths, 8)
    value = ops.aurc_at_error(score, error, Fraction(eighths, 8), weight=copies)
    close(value, ops.aurc(score, error, weight=weight), 1e-11)


@given(samples(max_size=12, min_size=2), st.sampled_from([0.01, "0.1", (1, 3), 0.5, 0.9]))
@reproducible
def test_aurc_at_error_of_a_sample_has_real_weights(sample, target):
    score, error = sample
    n, wrong = len(error), error.sum()
    if 0 < wrong < n:
        t = float(Fraction(*target) if isinstance(target, tuple) else Fraction(str(target)))
        weight = np.where(error == 1, t * n / wrong, (1 - t) * n / (n - wrong))
        total, above, before = 0.0, 0.0, 0.0
        for s in np.unique(score)[::-1]:
            w, loss = weight[score == s].sum(), (weight * error)[score == s].sum()
            total += loss + (before - loss / w * above) * (digamma(above + w + 1) - digamma(above + 1))
            above, before = above + w, before + loss
        close(ops.aurc_at_error(score, error, target), total / n, 1e-10)
        close(ops.aurc_at_error(score, error, Fraction(int(wrong), n)), ops.aurc(score, error), 1e-11)


def test_aurc_at_error_tends_to_that_of_many_copies():
    rng = np.random.default_rng(0)
    score, error = rng.integers(0, 40, 200) / 4, rng.random(200) < 0.3
    wrong, right = int(error.sum()), int((~error).sum())
    limit = ops.aurc(score, error, weight=10_000 * np.where(error, right, 4 * wrong))  # one wrong in five
    distance = [
        abs(ops.aurc_at_error(np.repeat(score, m), np.repeat(error, m), 0.2) - limit) for m in (1, 10, 100, 1000)
    ]
    assert distance[0] < 2e-3
    for near, far in itertools.pairwise(distance[::-1]):
        assert near < far / 5  # as 1/m


def test_classifiers_of_different_error_with_one_ranking_compare_alike():
    rng = np.random.default_rng(1)
    right, wrong = np.round(rng.normal(1, 1, 4000), 1), np.round(rng.normal(0, 1, 1000), 1)
    score, error = np.concatenate([right, wrong]), np.arange(5000) >= 4000
    fewer = np.concatenate([right, right, wrong]), np.arange(9000) >= 8000  # the same distributions, less error
    assert ops.aurc(*fewer) < 0.7 * ops.aurc(score, error)
    close(ops.aurc_at_error(*fewer, 0.1), ops.aurc_at_error(score, error, 0.1), 2e-3)


def test_errors_that_are_no_rates_and_soft_losses_are_refused():
    score, error = np.arange(3.0), np.array([0, 1, 0])
    for target in (-0.1, 1.1):
        with pytest.raises(ValueError, match=r"an error rate lies in \[0, 1\]"):
            ops.aurc_at_error(score, error, target)
    with pytest.raises(ValueError, match="losses are soft"):
        ops.aurc_at_error(score, error / 2, 0.1)
    assert ops.aurc_at_error(score, error, 0) == 0
    assert ops.aurc_at_error(score, error, 1) == pytest.approx(1)


# Balanced classes


@pytest.mark.parametrize("library", ["numpy", "jax.numpy", "torch", "array_api_strict"])
def test_class_balanced_losses_have_the_mean_of_the_classes(library):
    xp = pytest.importorskip(library)
    rng = np.random.default_rng(0)
    label, loss = rng.choice([2, 3, 7], 50, p=[0.7, 0.2, 0.1]), rng.integers(0, 2, 50)
    means = [loss[label == y].mean() for y in (2, 3, 7)]
    for given_loss in (loss, loss.astype(bool), loss * 0.3):
        balanced = ops.class_balanced_loss(xp.asarray(given_loss), xp.asarray(label))
        scale = 0.3 if given_loss.dtype == float else 1
        rtol = 1e-6 if xp is jnp else 1e-13
        np.testing.assert_allclose(np.mean(np.from_dlpack(balanced)), scale * np.mean(means), rtol=rtol)
        np.testing.assert_allclose(
            np.from_dlpack(balanced)[label == 7], scale * loss[label == 7] * 50 / (3 * (label == 7).sum()), rtol=rtol
        )
    with pytest.raises(ValueError, match=r"loss and label must both be \[n\]; they are \(50,\) and \(1,\)"):
        ops.class_balanced_loss(xp.asarray(loss), xp.asarray(label[:1]))


# The training surrogate


def rank_weights(score, estimator):
    """What each sample's loss adds: the area of a sample that alone has a loss."""
    return np.array([ops.aurc(score, row, estimator) for row in np.eye(len(score))])


@pytest.mark.parametrize("estimator", ["mean", "ln", "sele"])
def test_gradient_of_the_surrogate_is_rank_weights(estimator):
    rng = np.random.default_rng(0)
    score, loss = rng.integers(0, 9, 20) / 4, rng.random(20)
    value, (by_score, by_loss) = jax.jit(jax.value_and_grad(ops.aurc_loss, (0, 1)), static_argnums=2)(
        jnp.asarray(score), jnp.asarray(loss), estimator
    )
    np.testing.assert_allclose(value, ops.aurc(score, loss, estimator), rtol=2e-6)
    np.testing.assert_allclose(by_loss, rank_weights(score, estimator), rtol=5e-6)
    np.testing.assert_array_equal(by_score, 0)  # ranks are constants
    assert rank_weights(score, estimator)[score.argmax()] > rank_weights(score, estimator)[score.argmin()]


@pytest.mark.parametrize("estimator", ["mean", "ln", "sele"])
def test_soft_ranks_tend_to_hard_ones(estimator):
    rng = np.random.default_rng(1)
    score, loss = rng.permutation(12) / 12, rng.random(12)
    soft = jax.jit(functools.partial(ops.aurc_loss, estimator=estimator))
    values = [soft(jnp.asarray(score), jnp.asarray(loss), temperature=tau) for tau in (0.3, 0.03, 3e-3)]
    distance = np.abs(np.array(values) - ops.aurc(score, loss, estimator))
    assert distance[0] > 1e-3
    assert distance[2] < 1e-6


@pytest.mark.parametrize("estimator", ["mean", "ln", "sele"])
def test_soft_ranks_have_the_derivatives_of_finite_differences(estimator):
    rng = np.random.default_rng(2)
    score, loss = rng.normal(size=8), rng.random(8)
    with jax.enable_x64(True):
        surrogate = functools.partial(ops.aurc_loss, estimator=estimator, temperature=0.5)
        gradient = jax.grad(surrogate)(jnp.asarray(score), jnp.asarray(loss))
        steps = [1e-6 * row for row in np.eye(8)]
        difference = [
            (
                surrogate(jnp.asarray(score + step), jnp.asarray(loss))
                - surrogate(jnp.asarray(score - step), jnp.asarray(loss))
            )
            / 2e-6
            for step in steps
        ]
        np.testing.assert_allclose(gradient, difference, rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(gradient.sum(), 0, atol=1e-12)  # shifting all scores moves no rank
        assert gradient[loss.argmax()] > 0  # more confidence in the largest loss costs


@pytest.mark.parametrize("temperature", [0, -1.0, math.nan])
def test_temperatures_that_are_none_are_refused(temperature):
    with pytest.raises(ValueError, match="temperature must be > 0"):
        ops.aurc_loss(jnp.arange(3.0), jnp.ones(3), temperature=temperature)


def test_derivatives_by_the_loss_are_rank_weights_for_every_area():
    rng = np.random.default_rng(3)
    score, loss = rng.integers(0, 9, 20) / 4, rng.random(20)
    metrics = {
        **{name: functools.partial(ops.aurc, estimator=name) for name in ESTIMATORS},
        "augrc": ops.augrc,
        "partial_aurc": lambda score, loss: ops.partial_aurc(score, loss, 0.2, 0.7),
        "partial_augrc": lambda score, loss: ops.partial_augrc(score, loss, 0.2, 0.7),
        "risk_at_coverage": lambda score, loss: ops.risk_at_coverage(score, loss, 0.7),
    }
    gradients = jax.jit(lambda s, e: {name: jax.grad(metric, 1)(s, e) for name, metric in metrics.items()})(
        jnp.asarray(score), jnp.asarray(loss)
    )
    for name, metric in metrics.items():
        weights = [metric(score, row) for row in np.eye(20)]
        np.testing.assert_allclose(gradients[name], weights, rtol=2e-5, atol=1e-7, err_msg=name)


# Devices: float32 against the host's float64


@pytest.mark.parametrize("soft", [False, True])
def test_areas_on_devices_are_by_definition(soft):
    rng = np.random.default_rng(0)
    score = rng.choice(np.array(brute_force.SCORES, np.float32), (40, 5))
    loss = rng.choice(np.array(SOFT_LOSSES), (40, 5)) if soft else rng.integers(0, 2, (40, 5))
    values = brute_force.quickly(jax.vmap(areas), jnp.asarray(score), jnp.asarray(loss))
    low, high = Fraction(1, 5), Fraction(7, 10)
    definitions = {
        **brute_force.ESTIMATORS,
        "augrc": brute_force.augrc,
        "e_aurc": brute_force.e_aurc,
        "naurc": brute_force.naurc,
        "optimal_aurc": lambda _, loss: brute_force.optimal_aurc(loss),
        "partial_aurc": lambda *sample: brute_force.partial_aurc(*sample, low, high),
        "partial_augrc": lambda *sample: brute_force.partial_augrc(*sample, low, high),
    }
    assert set(definitions) == set(values)
    for name, definition in definitions.items():
        exact = [float(definition(*sample)) for sample in zip(score, loss, strict=True)]
        np.testing.assert_allclose(values[name], exact, rtol=2e-6, atol=5e-7, err_msg=name)


def realistic(n: int, ties: bool, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Scores [n] float32 with a fifth of them equal at the top if `ties`, and errors [n] that they predict."""
    rng = np.random.default_rng(seed)
    score = rng.normal(size=n).astype(np.float32)
    if ties:
        score = np.where(np.arange(n) % 5 == 0, np.float32(4), np.round(score, 2))
    return score, rng.random(n) < 1 / (1 + np.exp(2 * score + 2))


def agree(device: dict, host: dict, rtol: float = 1e-6) -> None:
    for name, value in host.items():
        np.testing.assert_allclose(device[name], value, rtol=rtol, err_msg=name)


def main_areas(score, error):
    return {
        "aurc": ops.aurc(score, error),
        "augrc": ops.augrc(score, error),
        "failure_auroc": ops.failure_auroc(score, error),
    }


@pytest.mark.parametrize("ties", [False, True])
def test_float32_agrees_at_a_million(ties):
    score, error = realistic(1_000_000, ties, seed=1)
    agree(jitted(jnp, main_areas)(jnp.asarray(score), jnp.asarray(error)), main_areas(score, error))


def test_the_summary_in_float32_agrees():
    score, error = realistic(100_000, ties=True)
    agree(jitted(jnp, ops.summarise)(jnp.asarray(score), jnp.asarray(error)), ops.summarise(score, error), 3e-6)


@pytest.mark.parametrize("ties", [False, True])
def test_float32_agrees_for_soft_losses(ties):
    score, error = realistic(100_000, ties)
    loss = (error * np.random.default_rng(2).random(len(error))).astype(np.float16)
    agree(jitted(jnp, areas)(jnp.asarray(score), jnp.asarray(loss)), areas(score, loss), 3e-6)


@pytest.mark.parametrize("error_rate", [1e-3, 1e-2, 0.1])
def test_float32_agrees_where_errors_are_rare_and_well_ranked(error_rate):
    n = 100_000
    rng = np.random.default_rng(3)
    error = rng.random(n) < error_rate
    error[0] = True
    for score in (np.round(rng.normal(size=n) * 0.15 - error, 2), -1.0 * error, rng.random(n) - 2 * error):
        score = score.astype(np.float32)
        for estimator in ("mean", "ln"):
            value = jax.jit(ops.aurc, static_argnums=2)(jnp.asarray(score), jnp.asarray(error), estimator)
            np.testing.assert_allclose(value, ops.aurc(score, error, estimator), rtol=2e-6)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_scores_beyond_the_range_of_float16(dtype):
    score, error = realistic(100_000, False)
    score = score.astype(dtype)  # ties by the thousand, but no count in half precision
    exact = areas(score.astype(np.float64), error)
    assert areas(score, error) == exact
    agree(jitted(jnp, main_areas)(jnp.asarray(score), jnp.asarray(error)), main_areas(score.astype(np.float64), error))
    constant = jitted(jnp, main_areas)(jnp.full(100_000, 0.5, dtype), jnp.asarray(error))
    np.testing.assert_allclose(constant["aurc"], error.mean(), rtol=1e-6)


def test_counts_whose_squares_pass_64_bits():
    """AUGRC of (0.9 wrong, 0.8 right, 0.7 wrong), a third of the weight each: (1·(1 − 1/6) + 1·(1/6))/3 of n²/n²."""
    score, error = np.array([0.9, 0.8, 0.7]), np.array([1, 0, 1])
    for exponent in (3, 31, 33, 39):
        weight = np.full(3, 2**exponent)
        assert ops.augrc(score, error, weight=weight) == pytest.approx(1 / 3, rel=1e-12)
        assert ops.failure_auroc(score, error, weight=weight) == pytest.approx(0.5, rel=1e-12)


def test_one_table_of_sums_serves_rows_that_have_one_total():
    """Resampled counts, in rows enough that a table is used, against each row alone, which uses none."""
    rng = np.random.default_rng(0)
    score, error = np.round(rng.normal(size=300), 1), rng.random(300) < 0.3
    counts = rng.multinomial(300, np.full(300, 1 / 300), size=40)
    for estimator in ("mean", "ln", "sele", "torch_uncertainty"):
        alone = [ops.aurc(score, error, estimator, weight=row) for row in counts]
        np.testing.assert_allclose(ops.aurc(score, error, estimator, weight=counts), alone, rtol=1e-11)


def test_no_rows_of_weights_have_no_values():
    score, error = np.linspace(0, 1, 100), np.arange(100) % 3 == 0
    for dtype in (np.uint8, np.int64, np.float64):
        none = np.zeros((0, 100), dtype)
        for value in (
            ops.aurc(score, error, weight=none),
            ops.augrc(score, error, weight=none),
            ops.coverage_at_risk(score, error, 0.1, weight=none),
            ops.risk_at_coverage(score, error, 0.8, weight=none),
        ):
            assert value.shape == (0,)
