"""Cross-entropy with smoothed targets."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.special

from sc_jax.ops.losses import smoothed_cross_entropy


@pytest.fixture(scope="module")
def outputs():
    rng = np.random.default_rng(0)
    return rng.normal(size=(20, 6), scale=4).astype(np.float32), rng.integers(0, 6, 20)


@pytest.mark.parametrize("alpha", [-0.3, 0.0, 0.1, 0.5, 1.0])
def test_loss_is_cross_entropy_against_the_smoothed_target(outputs, alpha):
    logits, label = outputs
    target = (1 - alpha) * np.eye(6)[label] + alpha / 6
    expected = -(target * scipy.special.log_softmax(logits.astype(np.float64), axis=-1)).sum(axis=-1)
    value = smoothed_cross_entropy(jnp.asarray(logits), jnp.asarray(label), alpha)
    np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-5)
    by_optax = optax.softmax_cross_entropy(jnp.asarray(logits), jnp.asarray(target, jnp.float32))
    np.testing.assert_allclose(value, by_optax, rtol=1e-5, atol=1e-5)


def test_no_smoothing_is_cross_entropy(outputs):
    logits, label = map(jnp.asarray, outputs)
    expected = optax.softmax_cross_entropy_with_integer_labels(logits, label)
    np.testing.assert_allclose(smoothed_cross_entropy(logits, label, 0.0), expected, rtol=1e-6, atol=1e-7)


def test_alpha_may_differ_by_example_and_by_member(outputs):
    logits, label = map(jnp.asarray, outputs)
    alpha = jnp.linspace(-0.2, 0.6, 20)
    each = [float(smoothed_cross_entropy(logits[i], label[i], alpha[i])) for i in range(20)]
    np.testing.assert_allclose(smoothed_cross_entropy(logits, label, alpha), each, rtol=1e-6)
    np.testing.assert_allclose(jax.vmap(smoothed_cross_entropy)(logits, label, alpha), each, rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_half_precision_logits_are_computed_in_float32(outputs, dtype):
    logits, label = jnp.asarray(outputs[0], dtype), jnp.asarray(outputs[1])
    value = smoothed_cross_entropy(logits, label, 0.1)
    assert value.dtype == jnp.float32
    np.testing.assert_array_equal(value, smoothed_cross_entropy(logits.astype(jnp.float32), label, 0.1))


def test_loss_of_far_apart_logits_is_finite():
    value = smoothed_cross_entropy(jnp.array([1e4, 0.0, 0.0]), jnp.asarray(1), 0.3)
    np.testing.assert_allclose(value, 0.7 * 1e4 + 0.3 * 2e4 / 3, rtol=1e-6)
