"""The selective gap against its definition in exact fractions, its budget against the identity and the paper's bound."""

import itertools
import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from brute_force import SOFT_LOSSES, expected, reproducible, samples, selective_risks
from hypothesis import given
from hypothesis import strategies as st

from sc_jax.ops.areas import aurc, e_aurc, optimal_aurc
from sc_jax.ops.selective_gap import (
    GapBudget,
    conditional_risks,
    perfect_ordering_accuracy,
    selective_gap,
    selective_gap_budget,
    statistical_width,
)


@pytest.fixture(params=["jax.numpy", "torch", "array_api_strict"])
def device(request):
    return pytest.importorskip(request.param)


def close(value, exact, rtol=1e-12):
    np.testing.assert_allclose(np.asarray(value), np.asarray(exact, np.float64), rtol=rtol, atol=rtol / 10)


# The gap


@given(samples())
@reproducible
def test_gap_is_perfect_less_actual_accuracy_over_tie_orders(sample):
    score, error = sample
    n, right = len(error), int((1 - error).sum())
    accuracy = [1 - risk for risk in expected(selective_risks, score, error)]
    bound = [Fraction(min(k, right), k) for k in range(1, n + 1)]
    gap = selective_gap(score, error)
    close(gap.coverage, [k / n for k in range(1, n + 1)])
    close(gap.accuracy, accuracy)
    close(gap.upper_bound, bound)
    close(gap.gap, [b - a for b, a in zip(bound, accuracy, strict=True)])


@given(samples(max_size=40))
@reproducible
def test_area_of_the_gap_is_excess_aurc(sample):
    close(selective_gap(*sample).gap.mean(), e_aurc(*sample))
    close(1 - selective_gap(*sample).upper_bound.mean(), optimal_aurc(sample[1]))


@given(samples(max_size=40))
@reproducible
def test_gap_is_never_negative_and_closes_at_full_coverage(sample):
    gap = selective_gap(*sample).gap
    assert (gap > -1e-14).all()
    assert gap[-1] == 0


@given(st.lists(st.sampled_from((0, 1)), min_size=1, max_size=40).map(np.array))
@reproducible
def test_perfect_ranking_has_no_gap_and_constant_score_that_of_the_error_rate(error):
    n, wrong = len(error), int(error.sum())
    close(selective_gap(1 - error, error).gap, np.zeros(n))
    bound = np.minimum(1, (n - wrong) / np.arange(1, n + 1))
    close(selective_gap(np.zeros(n), error).gap, bound - (n - wrong) / n)


@given(samples(max_size=30))
@reproducible
def test_monotone_maps_of_the_score_leave_the_gap(sample):
    score, error = sample
    levels = np.unique(score, return_inverse=True)[1]
    np.testing.assert_array_equal(selective_gap(levels**3 - 7.0, error).gap, selective_gap(score, error).gap)


def test_bound_integrates_to_its_closed_form():
    coverage = (np.arange(100_000) + 0.5) / 100_000
    for a in (0.05, 0.5, 0.93, 1.0):
        close(perfect_ordering_accuracy(a, coverage).mean(), a * (1 - math.log(a)), rtol=1e-8)


def test_gap_counts_weights_as_rows():
    rng = np.random.default_rng(0)
    score, error, weight = rng.integers(0, 5, 30), rng.integers(0, 2, 30), rng.integers(0, 4, 30)
    weighted = selective_gap(score, error, weight=weight)
    repeated = selective_gap(np.repeat(score, weight), np.repeat(error, weight))
    for coverage, gap in zip(weighted.coverage, weighted.gap, strict=True):
        close(np.interp(coverage, repeated.coverage, repeated.gap * repeated.coverage) / coverage, gap)


def test_gap_leaves_out_what_where_leaves_out():
    rng = np.random.default_rng(1)
    score, error, where = rng.normal(size=30), rng.integers(0, 2, 30), rng.random(30) < 0.6
    for value, other in zip(
        selective_gap(np.where(where, score, np.nan), error, where=where),
        selective_gap(score[where], error[where]),
        strict=True,
    ):
        np.testing.assert_array_equal(value, other)


@pytest.mark.parametrize("loss", [np.array([0.0, 0.5]), jnp.array([0.0, 1.0])])
def test_soft_losses_have_no_accuracy(loss):
    with pytest.raises(ValueError, match="0/1 errors"):
        selective_gap(0 * loss, loss)


# The budget


def exact_means(score, loss):
    """Mean loss of the k first, over tie orders, for k = 1 … n."""
    return expected(selective_risks, score, loss)


@st.composite
def cases(draw, losses=(0, 1), max_size=5):
    """(score, loss, conditional risk, bayes risk) with ties in all of them."""
    score, loss = draw(samples(losses, max_size=max_size))
    quarters = st.integers(0, 4)
    n = len(score)
    conditional = np.array(draw(st.lists(quarters, min_size=n, max_size=n))) / 4
    bayes = np.minimum(conditional, np.array(draw(st.lists(quarters, min_size=n, max_size=n))) / 4)
    return score, loss, conditional, bayes


@given(st.one_of(cases(), cases(SOFT_LOSSES)))
@reproducible
def test_parts_are_their_definitions(case):
    score, loss, conditional, bayes = case
    n = len(loss)
    order = {"oracle": -conditional, "accepted": score}
    risk, perfect = exact_means(score, loss), exact_means(-loss, loss)
    accepted, least = exact_means(score, conditional), exact_means(-conditional, conditional)
    for region in order:
        noise, of_bayes = exact_means(order[region], conditional), exact_means(order[region], bayes)
        exact = GapBudget(
            gap=[a - b for a, b in zip(risk, perfect, strict=True)],
            perfect=perfect,
            noise=noise,
            bayes=of_bayes,
            approximation=[a - b for a, b in zip(noise, of_bayes, strict=True)],
            ranking=[a - b for a, b in zip(accepted, least, strict=True)],
            sampling=[a - b for a, b in zip(risk, accepted, strict=True)],
        )
        curve = selective_gap_budget(score, loss, conditional, bayes, "curve", region)
        area = selective_gap_budget(score, loss, conditional, bayes, region=region)
        at = selective_gap_budget(score, loss, conditional, bayes, 0.6, region)
        for name in GapBudget._fields:
            close(getattr(curve, name), getattr(exact, name))
            close(getattr(area, name), sum(getattr(exact, name)) / n)
            close(getattr(at, name), getattr(exact, name)[math.ceil(Fraction(6, 10) * n) - 1])


@given(st.one_of(cases(max_size=30), cases(SOFT_LOSSES, max_size=30)), st.sampled_from(("area", "curve", 0.3)))
@reproducible
def test_parts_add_up_to_the_gap(case, coverage):
    budget = selective_gap_budget(*case, coverage)
    parts = budget.bayes + budget.approximation + budget.ranking + budget.sampling - budget.perfect
    close(parts, budget.gap)
    accepted = selective_gap_budget(*case, coverage, "accepted")
    close(accepted.bayes + accepted.approximation + accepted.sampling - accepted.perfect, budget.gap)
    for part in (budget.bayes, budget.approximation, budget.ranking, budget.perfect, accepted.approximation):
        assert np.all(np.asarray(part) > -1e-14)


@given(samples(max_size=30))
@reproducible
def test_budget_of_errors_is_that_of_the_gap(sample):
    score, error = sample
    gap = selective_gap(score, error)
    curve = selective_gap_budget(score, error, error, coverage="curve")
    close(curve.gap, gap.gap)
    close(curve.perfect, 1 - gap.upper_bound)
    close(selective_gap_budget(score, error, error).gap, e_aurc(score, error))


@given(st.one_of(samples(max_size=20), samples(SOFT_LOSSES, max_size=20)))
@reproducible
def test_with_the_losses_themselves_all_of_the_gap_is_ranking(sample):
    budget = selective_gap_budget(*sample, sample[1])
    close(budget.ranking, budget.gap)
    close(budget.sampling, 0)
    close(budget.noise, budget.perfect)
    assert budget.bayes is None
    assert budget.approximation is None


@given(cases(max_size=20))
@reproducible
def test_the_best_score_has_no_ranking_error_and_the_best_classifier_no_approximation_error(case):
    _, loss, conditional, bayes = case
    for coverage in ("area", "curve", 0.5):
        best = selective_gap_budget(-conditional, loss, conditional, bayes, coverage)
        close(best.ranking, np.zeros_like(best.ranking))
        close(selective_gap_budget(loss, loss, bayes, bayes, coverage).approximation, 0 * best.ranking)


def outcomes(conditional):
    """Every vector of errors, with its probability where sample i is wrong with probability conditional[i]."""
    for error in itertools.product((0, 1), repeat=len(conditional)):
        yield np.array(error), math.prod(p if e else 1 - p for e, p in zip(error, conditional, strict=True))


def test_sampling_has_mean_zero_and_the_rest_of_the_budget_is_the_expected_gap():
    conditional = np.array([0.1, 0.3, 0.05, 0.5, 0.2, 0.4])
    score = np.array([5, 4, 4, 3, 2, 1])
    for coverage in ("area", 0.5):
        budgets = [(selective_gap_budget(score, e, conditional, None, coverage), p) for e, p in outcomes(conditional)]
        close(sum(p * b.sampling for b, p in budgets) + 1, 1)
        gap, perfect = (sum(p * getattr(b, name) for b, p in budgets) for name in ("gap", "perfect"))
        close(gap + perfect, budgets[0][0].noise + budgets[0][0].ranking)


@pytest.mark.parametrize("delta", [0.02, 0.1, 0.3])
@pytest.mark.parametrize("k", [1, 4, 9, 10])
def test_sampling_and_the_papers_bound_exceed_the_width_no_more_often_than_promised(delta, k):
    rng = np.random.default_rng(k)
    conditional = rng.beta(2, 3, 10)
    score = rng.normal(size=10) - 3 * conditional
    accepted = np.argsort(-score)[:k]
    budget = selective_gap_budget(score, np.zeros(10), conditional, None, Fraction(k, 10), "accepted")
    width = float(statistical_width(k, delta))
    beyond = beyond_bound = 0.0
    for error, probability in outcomes(conditional):
        risk, perfect = error[accepted].mean(), np.sort(error)[:k].mean()
        beyond += probability * (risk - budget.noise > width)
        beyond_bound += probability * (risk - perfect > budget.noise + budget.ranking + width)
    assert beyond_bound <= beyond <= delta


def test_width_is_hoeffdings():
    # For one label the width is the smallest w with exp(−2w²) ≤ δ; in general exp(−2kw²) = δ/points.
    for k, delta, points in ((1, 0.05, 1), (7, 0.2, 1), (1000, 0.01, 50)):
        w = float(statistical_width(k, delta, points))
        assert math.isclose(points * math.exp(-2 * k * w**2), delta, rel_tol=1e-12)
    close(statistical_width(np.array([4, 16])), [2 * float(statistical_width(16)), float(statistical_width(16))])


@pytest.mark.parametrize("options", [{"delta": 0}, {"delta": 1}, {"points": 0}])
def test_width_refuses_no_probability(options):
    with pytest.raises(ValueError, match="delta must lie"):
        statistical_width(10, **options)


def test_rows_of_weights_are_resamples():
    rng = np.random.default_rng(2)
    n = 25
    score, error = rng.integers(0, 6, n), rng.integers(0, 2, n)
    conditional = rng.random(n)
    bayes = conditional * rng.random(n)
    weight = rng.multinomial(n, np.full(n, 1 / n), size=(2, 3))
    for coverage in ("area", 0.7):
        budget = selective_gap_budget(score, error, conditional, bayes, coverage, weight=weight)
        for index in np.ndindex(2, 3):
            rows = np.repeat(np.arange(n), weight[index])
            one = selective_gap_budget(score[rows], error[rows], conditional[rows], bayes[rows], coverage)
            for name in GapBudget._fields:
                close(getattr(budget, name)[index], getattr(one, name), rtol=1e-11)


def test_budget_leaves_out_what_where_leaves_out():
    rng = np.random.default_rng(3)
    score, loss, conditional, bayes = rng.random((4, 30))
    where = rng.random(30) < 0.6
    bayes = np.where(where, bayes * conditional, 2.0)  # what is left out may hold anything
    for coverage in ("area", "curve", 0.4):
        budget = selective_gap_budget(score, loss, conditional, bayes, coverage, where=where)
        kept = selective_gap_budget(*(x[where] for x in (score, loss, conditional, bayes)), coverage)
        for value, other in zip(budget, kept, strict=True):
            close(value, other)


def test_budget_refuses_what_is_no_budget():
    score, loss, conditional = np.arange(3.0), np.array([0, 1, 0]), np.array([0.1, 0.2, 0.3])
    with pytest.raises(ValueError, match="bayes_risk exceeds"):
        selective_gap_budget(score, loss, conditional, conditional + [0, 0.01, 0])
    with pytest.raises(ValueError, match=r"conditional_risk must be \[n\]"):
        selective_gap_budget(score, loss, conditional[:2])
    with pytest.raises(ValueError, match=r"bayes_risk must be \[n\]"):
        selective_gap_budget(score, loss, conditional, conditional[:, None])
    with pytest.raises(ValueError, match="region 'all'"):
        selective_gap_budget(score, loss, conditional, region="all")
    with pytest.raises(ValueError, match="finite and ≥ 0"):
        selective_gap_budget(score, loss, np.array([0.1, np.nan, 0.3]))
    with pytest.raises(ValueError, match="coverage must lie"):
        selective_gap_budget(score, loss, conditional, coverage=0)
    selective_gap_budget(score, loss, conditional, conditional + 1e-9)  # posteriors in float32 round


# Posteriors


def test_conditional_risks_are_those_of_a_simulation():
    rng = np.random.default_rng(4)
    posterior = rng.dirichlet(np.ones(5), size=(2, 20))
    prediction = rng.integers(0, 5, (2, 20))
    risks = conditional_risks(posterior, prediction)
    for index in np.ndindex(2, 20):
        p = posterior[index]
        close(risks.conditional_risk[index], sum(p[y] for y in range(5) if y != prediction[index]))
        close(risks.bayes_risk[index], 1 - p.max())
    best = conditional_risks(posterior, posterior.argmax(-1))
    np.testing.assert_array_equal(best.conditional_risk, best.bayes_risk)
    assert (risks.conditional_risk >= risks.bayes_risk).all()


def test_conditional_risks_of_counts_of_annotators():
    risks = conditional_risks(np.array([[7, 3, 0], [0, 0, 1], [2, 2, 2]], np.uint8), np.array([1, 2, 0]))
    close(risks.conditional_risk, [0.7, 0, 2 / 3])
    close(risks.bayes_risk, [0.3, 0, 2 / 3])


def test_small_risks_keep_their_digits():
    posterior = np.array([[1.0, 1e-20, 3e-20]])
    close(conditional_risks(posterior, np.array([0])).conditional_risk / 4e-20, [1])


def test_posteriors_in_half_precision_are_summed_wide():
    posterior = np.random.default_rng(10).random((3, 5000)).astype(np.float16)
    prediction = np.array([0, 4999, 7])
    for risk, wide in zip(
        conditional_risks(posterior, prediction),
        conditional_risks(posterior.astype(np.float64), prediction),
        strict=True,
    ):
        np.testing.assert_array_equal(risk, wide)


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.float16])
def test_errors_of_any_dtype(dtype):
    score, error = np.array([4, 3, 2, 1]), np.array([1, 0, 1, 0])
    expected_budget = selective_gap_budget(score, error, error, 0 * error)
    budget = selective_gap_budget(score, error.astype(dtype), error.astype(dtype), (0 * error).astype(dtype))
    np.testing.assert_array_equal(budget, expected_budget)
    np.testing.assert_array_equal(selective_gap(score, error.astype(dtype)), selective_gap(score, error))


def test_posterior_and_prediction_agree_in_shape():
    with pytest.raises(ValueError, match="posterior must be"):
        conditional_risks(np.ones((3, 2)), np.zeros((2,), int))


def test_a_posterior_explains_a_simulated_gap():
    """Two classes, noisy labels, a classifier that is wrong in one region, a score that is constant: each part is known."""
    posterior = np.array([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.2, 0.8]] * 5)
    prediction = np.zeros(20, int)  # wrong on the last of each four
    risks = conditional_risks(posterior, prediction)
    error = np.zeros(20)
    budget = selective_gap_budget(np.zeros(20), error, *risks, coverage=0.5)
    close(budget.bayes, 0.1)  # the best half are the 0.9s
    close(budget.approximation, 0)
    close(budget.ranking, (0.1 + 0.1 + 0.4 + 0.8) / 4 - 0.1)
    close(budget.sampling, -(0.1 + 0.1 + 0.4 + 0.8) / 4)
    full = selective_gap_budget(np.zeros(20), error, *risks, coverage=1)
    close(full.bayes, (0.1 + 0.1 + 0.4 + 0.2) / 4)
    close(full.approximation, 0.6 / 4)
    close(full.ranking, 0)


# Devices and dtypes


def sample_of(seed, n=40):
    rng = np.random.default_rng(seed)
    conditional = (rng.integers(0, 9, n) / 8).astype(np.float32)
    return rng.integers(0, 7, n) / 4, rng.integers(0, 2, n), conditional, conditional * np.float32(0.5)


def everything(case):
    score, error, conditional, bayes = case
    budgets = [
        selective_gap_budget(score, error, conditional, bayes, coverage, region)
        for coverage, region in (("area", "oracle"), ("curve", "accepted"), (0.45, "oracle"))
    ]
    return selective_gap(score, error), *budgets


def test_devices_agree_with_the_host(device):
    case, prediction = sample_of(5), np.arange(9) % 4
    posterior = np.random.default_rng(6).dirichlet(np.ones(4), 9)
    on_device = [device.asarray(array) for array in case]
    values = jax.jit(everything)(on_device) if device is jnp else everything(on_device)
    for results, expected_results in zip(values, everything(case), strict=True):
        for value, other in zip(results, expected_results, strict=True):
            close(value, other, rtol=3e-6 if device is jnp else 1e-12)
    risks = conditional_risks(device.asarray(posterior), device.asarray(prediction))
    for value, other in zip(risks, conditional_risks(posterior, prediction), strict=True):
        close(value, other, rtol=1e-6 if device is jnp else 1e-12)


def test_vmap_over_weights_is_rows_of_weights():
    score, error, conditional, bayes = sample_of(7)
    case = [jnp.asarray(array) for array in (score, error, conditional, bayes)]
    weight = np.random.default_rng(8).integers(0, 3, (4, 40))
    mapped = jax.jit(jax.vmap(lambda w: selective_gap_budget(*case, weight=w)))(jnp.asarray(weight))
    for value, other in zip(mapped, selective_gap_budget(score, error, conditional, bayes, weight=weight), strict=True):
        close(value, other, rtol=1e-5)


def test_gradient_of_the_sampling_part_is_minus_the_weights_of_aurc():
    score, loss, conditional, _ = (jnp.asarray(array) for array in sample_of(7))
    slope = jax.jit(jax.grad(lambda rho: selective_gap_budget(score, loss, rho).sampling))(conditional)
    # sampling = AURC(loss) − AURC(ρ) is linear in ρ, and AURC of a constant loss is that constant
    close(-slope @ conditional, aurc(np.asarray(score), np.asarray(conditional)), rtol=1e-5)
    close(-slope.sum(), 1, rtol=1e-5)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_narrow_floats_are_computed_wide(dtype):
    rng = np.random.default_rng(9)
    n = 3000  # float16 cannot hold the counts
    score = rng.permutation(n)
    conditional = (rng.integers(0, 5, n) / 8).astype(dtype)
    bayes, error = (np.asarray(conditional, np.float64) / 2).astype(dtype), rng.integers(0, 2, n)
    wide = selective_gap_budget(score, error, np.asarray(conditional, np.float64), np.asarray(bayes, np.float64))
    for value, other in zip(selective_gap_budget(score, error, conditional, bayes), wide, strict=True):
        np.testing.assert_array_equal(value, other)
    narrow = [jnp.asarray(array) for array in (score, error, conditional, bayes)]
    for value, other in zip(jax.jit(selective_gap_budget)(*narrow), wide, strict=True):
        assert value.dtype == jnp.float32
        close(value, other, rtol=1e-5)


@pytest.mark.parametrize("compiled", [lambda f: f, jax.jit], ids=["host", "jit"])
def test_one_sample_and_infinite_scores(compiled):
    gap = compiled(selective_gap)(np.array([np.inf]), np.array([1]))
    assert (float(gap.accuracy[0]), float(gap.upper_bound[0]), float(gap.gap[0])) == (0, 0, 0)
    score, error = np.array([np.inf, -np.inf, 0.0]), np.array([1, 0, 0])
    close(compiled(selective_gap)(score, error).gap, [1, 0.5, 0], rtol=1e-6)


def test_nan_scores_are_refused_or_make_nan():
    score, error = np.array([0.1, np.nan]), np.array([0, 1])
    with pytest.raises(ValueError, match="NaN"):
        selective_gap(score, error)
    assert jnp.isnan(jax.jit(selective_gap)(score, error).gap).all()
    budget = jax.jit(selective_gap_budget)(score, error, np.array([0.1, 0.2]))
    assert jnp.isnan(budget.gap)
    assert jnp.isnan(budget.ranking)
