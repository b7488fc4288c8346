"""The closed forms against automatic differentiation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sc_jax import ops
from sc_jax.ops.losses import smoothed_cross_entropy

ALPHAS = (-0.2, 0.0, 0.1, 0.6)


@pytest.fixture(scope="module")
def outputs():
    rng = np.random.default_rng(0)
    return rng.normal(size=(60, 5), scale=2).astype(np.float32), rng.integers(0, 5, 60)


@jax.jit
def gradient(logits, label, alpha):
    return jax.vmap(jax.grad(smoothed_cross_entropy), (0, 0, None))(logits, label, alpha)


@jax.jit
def extra_gradient(logits, label, alpha):
    def extra(v, y):
        return smoothed_cross_entropy(v, y, alpha) - smoothed_cross_entropy(v, y, 0.0)

    return jax.vmap(jax.grad(extra))(logits, label)


def test_cross_entropy_gradient_is_autodiff(outputs):
    logits, label = outputs
    value = ops.cross_entropy_gradient(logits, label)
    np.testing.assert_allclose(value, gradient(jnp.asarray(logits), jnp.asarray(label), 0.0), atol=1e-6)
    np.testing.assert_allclose(ops.cross_entropy_gradient(jnp.asarray(logits), jnp.asarray(label)), value, atol=1e-6)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_smoothing_adds_its_closed_form(outputs, alpha):
    logits, label = outputs
    autodiff = extra_gradient(jnp.asarray(logits), jnp.asarray(label), alpha)
    value = ops.smoothing_gradient(label, alpha, 5)
    np.testing.assert_allclose(value, autodiff, atol=1e-6)
    np.testing.assert_allclose(ops.smoothing_gradient(jnp.asarray(label), alpha, 5), autodiff, atol=1e-6)
    whole = ops.cross_entropy_gradient(logits, label) + value
    np.testing.assert_allclose(whole, gradient(jnp.asarray(logits), jnp.asarray(label), alpha), atol=1e-6)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_gradients_sum_to_zero_over_the_classes(outputs, alpha):
    logits, label = outputs
    np.testing.assert_allclose(ops.smoothing_gradient(label, alpha, 5).sum(axis=-1), 0, atol=1e-15)
    np.testing.assert_allclose(ops.cross_entropy_gradient(logits, label).sum(axis=-1), 0, atol=1e-14)


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("xp", [np, jnp])
def test_suppression_is_the_extra_gradient_at_the_maximum(outputs, alpha, xp):
    logits, label = map(xp.asarray, outputs)
    predicted = np.argmax(outputs[0], axis=-1)
    at_maximum = np.asarray(ops.smoothing_gradient(label, alpha, 5))[np.arange(60), predicted]
    value = ops.max_logit_suppression(logits, label, alpha)
    np.testing.assert_allclose(value, at_maximum, atol=1e-7)
    right = predicted == outputs[1]
    np.testing.assert_allclose(np.asarray(value)[right], alpha * (1 - 1 / 5), atol=1e-7)
    np.testing.assert_allclose(np.asarray(value)[~right], -alpha / 5, atol=1e-7)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_expected_suppression_is_the_mean_of_any_bin(outputs, alpha):
    logits, label = outputs
    wrong = ops.predicted_class(logits) != label
    value = ops.max_logit_suppression(logits, label, alpha)
    for part in (slice(None), slice(0, 7), slice(7, 8), np.flatnonzero(wrong)):
        expected = ops.expected_suppression(wrong[part].mean(), alpha, 5)
        np.testing.assert_allclose(value[part].mean(), expected, atol=1e-15)


def test_leading_axes(outputs):
    logits, label = outputs[0].reshape(3, 20, 5), outputs[1].reshape(3, 20)
    for i in range(3):
        row = ops.cross_entropy_gradient(logits[i], label[i])
        np.testing.assert_array_equal(ops.cross_entropy_gradient(logits, label)[i], row)
        row = ops.smoothing_gradient(label[i], 0.2, 5)
        np.testing.assert_array_equal(ops.smoothing_gradient(label, 0.2, 5)[i], row)
    one = ops.smoothing_gradient(np.asarray(2), 0.3, 4)
    np.testing.assert_allclose(one, [-0.075, -0.075, 0.225, -0.075])
