"""The rules against all rejectors of random discrete problems, their limits, and Gaussian mixtures with known densities."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

from sc_jax import ops
from sc_jax.ops.scod_rules import (
    ScodCosts,
    inlier_mixing,
    joint_scod_score,
    log_outlier_ratio,
    plugin_scod_score,
    scod_costs_at_multiplier,
)

POINTS = 7
REJECTORS = np.array(list(itertools.product([False, True], repeat=POINTS)))  # every subset that may be rejected


class Problem:
    """P_in(x), P_out(x) and P_in(y|x) on a few points, drawn at random; some points have no outliers."""

    def __init__(self, seed):
        self.rng = rng = np.random.default_rng(seed)
        self.inlier = rng.dirichlet(np.ones(POINTS))
        self.outlier = rng.dirichlet(np.full(POINTS, 0.7)) * (rng.random(POINTS) < 0.8)
        self.outlier[0] += 0.1
        self.outlier /= self.outlier.sum()
        self.doubt = 1 - rng.dirichlet(np.full(3, 0.5), POINTS).max(axis=1)
        with np.errstate(divide="ignore"):
            self.logs = np.log(self.doubt), np.log(self.outlier / self.inlier)

    def objective(self, rejected, c_in, c_out, c_error):
        """The expected cost of a rejector [..., points], by its definition."""
        return (
            c_error * (self.inlier * self.doubt * ~rejected).sum(axis=-1)
            + c_in * (self.inlier * rejected).sum(axis=-1)
            + c_out * (self.outlier * ~rejected).sum(axis=-1)
        )


def test_the_rule_is_the_best_of_all_rejectors():
    for seed in range(250):
        problem = Problem(seed)
        c_in, c_out, c_error = problem.rng.dirichlet(np.ones(3))
        rejected = ~(plugin_scod_score(*problem.logs, ScodCosts(c_in, c_out)) >= -math.log(c_in))
        best = problem.objective(REJECTORS, c_in, c_out, c_error).min()
        assert problem.objective(rejected, c_in, c_out, c_error) == pytest.approx(best, rel=1e-12)
        # The black-box form of the same rule.
        with np.errstate(divide="ignore"):
            black_box = c_error * (1 - problem.doubt) - c_out / (problem.inlier / problem.outlier)
        np.testing.assert_array_equal(rejected, black_box < 1 - 2 * c_in - c_out)


def lagrangian(problem, rejected, multiplier, id_share, c_fn):
    """(1 − c_fn)·P_in(wrong, accepted) + c_fn·P_out(accepted) + λ·P_test(rejected)."""
    budget = id_share * (problem.inlier * rejected).sum(-1) + (1 - id_share) * (problem.outlier * rejected).sum(-1)
    return problem.objective(rejected, 0, c_fn, 1 - c_fn) + multiplier * budget


def test_the_costs_at_a_multiplier_solve_the_lagrangian():
    for seed in range(250):
        problem = Problem(seed)
        id_share, c_fn = problem.rng.uniform(0.05, 0.95, 2)
        multiplier = problem.rng.uniform(0, 1) * c_fn / (1 - id_share)
        costs = scod_costs_at_multiplier(multiplier, id_share, c_fn)
        rejected = ~(plugin_scod_score(*problem.logs, costs) >= -math.log(costs.c_in))
        best = lagrangian(problem, REJECTORS, multiplier, id_share, c_fn).min()
        assert lagrangian(problem, rejected, multiplier, id_share, c_fn) == pytest.approx(best, rel=1e-12)
        joint = joint_scod_score(
            *problem.logs, ood_cost=c_fn / (1 - id_share), id_cost=(1 - c_fn) / id_share, ood_share=1 - id_share
        )
        np.testing.assert_array_equal(~(joint >= -math.log(multiplier)), rejected)


def test_no_rejector_of_the_same_budget_has_less_joint_risk():
    for seed in range(100):
        problem = Problem(seed)
        share, ood_cost, id_cost = problem.rng.uniform(0.1, 0.9), *problem.rng.uniform(0.1, 2, 2)
        score = joint_scod_score(*problem.logs, ood_cost=ood_cost, id_cost=id_cost, ood_share=share)
        mass = (1 - share) * problem.inlier + share * problem.outlier
        cost = id_cost * (1 - share) * problem.inlier * problem.doubt + ood_cost * share * problem.outlier
        np.testing.assert_allclose(np.exp(-score), cost / mass, rtol=1e-10)
        for threshold in score:
            accepted = score >= threshold
            as_much = (~REJECTORS * mass).sum(axis=1) >= accepted @ mass - 1e-12  # of all that reject no more
            assert cost @ accepted <= (~REJECTORS * cost).sum(axis=1)[as_much].min() + 1e-12


def test_without_an_outlier_cost_it_ranks_by_msp_and_without_an_error_cost_by_the_ratio():
    rng = np.random.default_rng(0)
    logits, ratio = rng.normal(size=(50, 4)) * 30, rng.normal(size=50)  # the softmax of many rounds to 1
    log_doubt = -np.logaddexp(0, ops.msp(logits))
    score = plugin_scod_score(log_doubt, ratio, ScodCosts(0.2, 0.0))
    np.testing.assert_array_equal(np.argsort(score), np.argsort(ops.msp(logits)))
    assert len(set(score)) == 50
    score = plugin_scod_score(log_doubt, ratio, ScodCosts(0.2, 0.8))
    np.testing.assert_array_equal(np.argsort(score), np.argsort(-ratio))
    chow = plugin_scod_score(log_doubt, np.full(50, np.inf), ScodCosts(0.3, 0.0)) >= -math.log(0.3)
    np.testing.assert_array_equal(chow, np.exp(log_doubt) <= 0.3 / 0.7)


def test_the_rejected_shrink_as_rejecting_an_inlier_costs_more():
    rng = np.random.default_rng(1)
    logs = np.log(rng.random(200)), rng.normal(size=200)
    rejected = np.ones(200, bool)
    for c_in in np.linspace(0.01, 0.6, 30):
        now = plugin_scod_score(*logs, ScodCosts(c_in, 0.3)) < -math.log(c_in)
        assert not (now & ~rejected).any()
        rejected = now


def test_a_threshold_of_the_score_has_the_least_cost_on_gaussian_mixtures():
    """Two Gaussian classes and a Gaussian of outliers beside one of them, integrated on a fine grid: nothing there beats the rule."""
    x = np.linspace(-12, 12, 4801)
    step = x[1] - x[0]
    classes = norm.pdf(x, -1, 1) / 2, norm.pdf(x, 1.5, 0.7) / 2
    inlier, outlier = sum(classes), norm.pdf(x, 4, 1.5)
    doubt = np.minimum(*classes) / inlier
    costs = ScodCosts(0.15, 0.3)

    def risk(rejected):
        accepted = ~rejected
        wrong = (1 - costs.c_in - costs.c_out) * inlier * doubt * accepted
        return (wrong + costs.c_in * inlier * rejected + costs.c_out * outlier * accepted).sum() * step

    ratio = norm.logpdf(x, 4, 1.5) - np.log(inlier)
    score = plugin_scod_score(np.log(doubt), ratio, costs)
    best = risk(score < -math.log(costs.c_in))
    assert best == pytest.approx(np.minimum(costs.c_in * inlier, np.exp(-score) * inlier).sum() * step, rel=1e-12)
    for other in (-np.log(doubt), -ratio):  # MSP alone and the density ratio alone, at their best thresholds
        alone = min(risk(other < threshold) for threshold in np.quantile(other, np.linspace(0, 1, 400)))
        assert best < 0.99 * alone


@pytest.mark.parametrize("mixing", [0.0, 0.1, 0.5, 0.95])
def test_the_outlier_ratio_is_that_of_the_mixture(mixing):
    rng = np.random.default_rng(0)
    inlier, outlier = rng.dirichlet(np.ones(30)), rng.dirichlet(np.full(30, 0.2))
    log_g = np.log(inlier) - np.log(mixing * inlier + (1 - mixing) * outlier)
    ratio = np.exp(log_outlier_ratio(log_g, mixing))
    np.testing.assert_allclose(ratio, outlier / inlier, rtol=1e-8, atol=1e-12)


def test_no_mixing_is_the_identity_and_too_much_is_clipped():
    log_g = np.linspace(-800, 800, 41)
    np.testing.assert_allclose(log_outlier_ratio(log_g, 0.0), -log_g, rtol=1e-13)
    value = log_outlier_ratio(log_g, 0.2)
    assert np.isneginf(value[log_g > math.log(5)]).all()
    np.testing.assert_allclose(value[0], 800 - math.log(0.8), rtol=1e-13)
    assert (np.diff(value[log_g < math.log(5)]) < 0).all()


def test_mixing_is_read_where_there_are_no_outliers():
    inlier, outlier = np.array([0.25, 0.25, 0.5]), np.array([0.0, 0.5, 0.5])
    log_g = np.log(inlier / (0.3 * inlier + 0.7 * outlier))
    assert inlier_mixing(log_g[:1]) == pytest.approx(0.3)
    assert (inlier * np.exp(-log_g)).sum() == pytest.approx(1)  # over all inliers it says nothing


def test_infinite_ratios_and_certain_answers_have_their_limits():
    log_doubt, ratio = np.array([-np.inf, -np.inf, -1.0, -1.0]), np.array([-np.inf, np.inf, -np.inf, np.inf])
    value = plugin_scod_score(log_doubt, ratio, ScodCosts(0.2, 0.3))
    np.testing.assert_allclose(value, [np.inf, -np.inf, 1 - math.log(0.5), -np.inf])
    value = joint_scod_score(log_doubt, ratio, ood_cost=2.0, id_cost=1.0, ood_share=0.3)
    np.testing.assert_allclose(value, [np.inf, -math.log(2), 1, -math.log(2)])
    for share, expected in ((0.0, [np.inf, np.inf, 1, 1]), (1.0, [-math.log(2)] * 4)):
        value = joint_scod_score(log_doubt, ratio, ood_cost=2.0, id_cost=1.0, ood_share=share)
        np.testing.assert_allclose(value, expected)
    nothing = joint_scod_score(log_doubt, ratio, ood_cost=0.0, id_cost=0.0, ood_share=0.3)
    assert np.isposinf(nothing).all()
    assert np.isposinf(plugin_scod_score(log_doubt, ratio, ScodCosts(1.0, 0.0))).all()


@pytest.mark.parametrize(
    "call",
    [
        lambda: plugin_scod_score(np.zeros(2), np.zeros(3), ScodCosts(0.1, 0.1)),
        lambda: plugin_scod_score(np.zeros(2), np.zeros(2), ScodCosts(0.6, 0.6)),
        lambda: plugin_scod_score(np.zeros(2), np.zeros(2), ScodCosts(-0.1, 0.6)),
        lambda: plugin_scod_score(np.zeros(2), np.zeros(2), ScodCosts(math.nan, 0.6)),
        lambda: joint_scod_score(np.zeros(2), np.zeros(2), ood_cost=-1.0, id_cost=1.0, ood_share=0.5),
        lambda: joint_scod_score(np.zeros(2), np.zeros(2), ood_cost=1.0, id_cost=math.inf, ood_share=0.5),
        lambda: joint_scod_score(np.zeros(2), np.zeros(2), ood_cost=1.0, id_cost=1.0, ood_share=1.5),
        lambda: scod_costs_at_multiplier(0.76, 0.0, 0.75),
        lambda: scod_costs_at_multiplier(-0.1, 0.5, 0.75),
        lambda: scod_costs_at_multiplier(0.1, 1.5, 0.75),
        lambda: scod_costs_at_multiplier(1.0, 0.0, 1.0),
        lambda: log_outlier_ratio(np.zeros(2), 1.0),
        lambda: log_outlier_ratio(np.zeros(2), -0.1),
        lambda: inlier_mixing(np.zeros(0)),
    ],
)
def test_bad_input_is_refused(call):
    with pytest.raises(ValueError, match=r"must|vanish"):
        call()


def all_rules(log_doubt, ratio):
    """Every function of arrays."""
    return {
        "plugin": plugin_scod_score(log_doubt, ratio, ScodCosts(0.2, 0.3)),
        "joint": joint_scod_score(log_doubt, ratio, ood_cost=1.0, id_cost=0.5, ood_share=0.2),
        "ratio": log_outlier_ratio(ratio, 0.3),
        "mixing": inlier_mixing(ratio),
    }


def test_devices_and_other_libraries_agree_with_the_host():
    rng = np.random.default_rng(0)
    given = np.log(rng.random(50)), rng.normal(size=50)
    host = all_rules(*given)
    for name, value in jax.jit(all_rules)(*map(jnp.asarray, given)).items():
        assert value.dtype == jnp.float32
        np.testing.assert_allclose(value, host[name], rtol=1e-4, atol=1e-5, err_msg=name)
    for library in ("torch", "array_api_strict"):
        xp = pytest.importorskip(library)
        for name, value in all_rules(*map(xp.asarray, given)).items():
            np.testing.assert_allclose(np.asarray(value), host[name], rtol=1e-12, atol=1e-14, err_msg=name)
