"""AUROC of failure detection."""

import brute_force
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from brute_force import SCORES, reproducible, samples
from hypothesis import given
from sklearn.metrics import roc_auc_score

from sc_jax import ops


@given(samples(max_size=12))
@reproducible
def test_failure_auroc_counts_pairs(sample):
    np.testing.assert_allclose(ops.failure_auroc(*sample), float(brute_force.failure_auroc(*sample)), rtol=1e-12)


@pytest.mark.parametrize("levels", [3, 20, 10**6])
def test_failure_auroc_equals_scikit_learn(levels):
    rng = np.random.default_rng(levels)
    score, error = rng.integers(0, levels, 2000), rng.random(2000) < 0.2
    expected = roc_auc_score(~error, score)
    np.testing.assert_allclose(ops.failure_auroc(score, error), expected, rtol=1e-12)
    np.testing.assert_allclose(ops.failure_auroc(jnp.asarray(score), jnp.asarray(error)), expected, rtol=1e-6)


def test_failure_auroc_on_devices_counts_pairs():
    rng = np.random.default_rng(0)
    score, error = rng.choice(np.array(SCORES, np.float32), (40, 6)), rng.integers(0, 2, (40, 6))
    values = jax.jit(jax.vmap(ops.failure_auroc))(jnp.asarray(score), jnp.asarray(error))
    expected = [float(brute_force.failure_auroc(*pair)) for pair in zip(score, error, strict=True)]
    np.testing.assert_allclose(values, expected, rtol=1e-6)


@given(samples(max_size=20))
@reproducible
def test_reversed_scores_have_the_complement(sample):
    score, error = sample
    value = ops.failure_auroc(score, error) + ops.failure_auroc(-score, error)
    assert np.isnan(value) or value == pytest.approx(1)


@pytest.mark.parametrize("loss", [[0.0, 0.5, 1.0], [0, 2, 1], [0, 0, 2], [0.0, 2.0, 0.0]])
def test_losses_other_than_errors_are_refused(loss):
    with pytest.raises(ValueError, match="0/1 errors"):
        ops.failure_auroc(np.zeros(3), np.array(loss))


def test_soft_losses_on_devices_are_refused():
    with pytest.raises(ValueError, match="bool or integers; the losses are soft"):
        ops.failure_auroc(jnp.zeros(2), jnp.array([0.0, 0.5]))


def test_errors_as_floats_are_errors_on_the_host():
    assert ops.failure_auroc(np.array([2.0, 1.0, 1.0]), np.array([0.0, 0.0, 1.0])) == 0.75
