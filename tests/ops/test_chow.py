"""Chow's rule is the best of all rules, by trying all; posteriors by scipy."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from sc_jax import ops


@pytest.mark.parametrize("cost", [0.0, 0.05, 0.2, 0.5, 1.0])
def test_no_rule_on_a_finite_space_costs_less(cost):
    rng = np.random.default_rng(0)
    posterior, share = rng.dirichlet(np.full(3, 0.4), size=6), rng.dirichlet(np.ones(6))

    def mean_cost(accept, answer):
        wrong = 1 - posterior[np.arange(6), answer]
        return share @ np.where(accept, wrong, cost)

    mine = mean_cost(ops.chow_accepts(np.log(posterior), cost), posterior.argmax(axis=1))
    for accept in itertools.product((False, True), repeat=6):
        for answer in itertools.product(range(3), repeat=6) if sum(accept) <= 2 else [posterior.argmax(axis=1)]:
            assert mine <= mean_cost(np.array(accept), np.array(answer)) + 1e-12


def test_no_set_of_the_same_size_has_less_risk():
    posterior = np.random.default_rng(1).dirichlet(np.full(3, 0.5), size=8)
    risk, score = 1 - posterior.max(axis=1), ops.msp(np.log(posterior))
    for size in range(1, 9):
        mine = risk[np.argsort(-score)[:size]].mean()
        assert mine <= min(risk[list(chosen)].mean() for chosen in itertools.combinations(range(8), size)) + 1e-12


def test_the_oracle_ranks_better_than_any_other_score():
    posterior = np.random.default_rng(2).dirichlet(np.full(4, 0.4), size=500)
    risk = 1 - posterior.max(axis=1)
    best = ops.aurc(ops.msp(np.log(posterior)), risk)
    assert best == pytest.approx(float(ops.optimal_aurc(risk)))
    for other in (ops.margin, ops.negative_entropy, ops.logit_margin):
        assert best < ops.aurc(other(np.log(posterior)), risk)


def test_the_bound_itself_is_accepted_and_costs_have_their_ends():
    certain, even = np.array([[0.0, -np.inf]]), np.log([[0.5, 0.5]])
    assert ops.chow_accepts(even, 0.5).tolist() == [True]
    assert ops.chow_accepts(even, 0.49).tolist() == [False]
    assert ops.chow_accepts(certain, 0.0).tolist() == [True]
    assert ops.chow_accepts(even, 0.0).tolist() == [False]
    assert ops.chow_accepts(even, 1.0).tolist() == [True]
    for cost in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="cost must lie"):
            ops.chow_accepts(even, cost)


@pytest.mark.parametrize("prior", [None, np.array([0.7, 0.2, 0.1])])
def test_posteriors_are_those_of_the_densities(prior):
    rng = np.random.default_rng(3)
    x, means = rng.normal(size=(20, 2), scale=3), rng.normal(size=(3, 2), scale=2)
    weight = np.ones(3) if prior is None else prior
    joint = weight * np.stack(
        [scipy.stats.multivariate_normal(mean, 1.7**2 * np.eye(2)).pdf(x) for mean in means], axis=1
    )
    found = ops.gaussian_log_posterior(x, means, 1.7, prior)
    np.testing.assert_allclose(np.exp(found), joint / joint.sum(axis=1, keepdims=True), atol=1e-12)
    given = None if prior is None else jnp.asarray(prior)
    on_device = ops.gaussian_log_posterior(jnp.asarray(x), jnp.asarray(means), 1.7, given)
    np.testing.assert_allclose(on_device, found, rtol=1e-4, atol=1e-4)
