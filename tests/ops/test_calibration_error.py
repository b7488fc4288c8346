"""Calibration error by a loop over the bins; proper losses against scikit-learn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.metrics
from brute_force import reproducible
from hypothesis import given
from hypothesis import strategies as st

from sc_jax import ops


def naive_ece(confidence, error, bins=15):
    total = 0.0
    for b in range(bins):
        low, high = b / bins, (b + 1) / bins
        inside = [i for i, c in enumerate(confidence) if low < c <= high or (b == 0 and c == 0)]
        if inside:
            accuracy = sum(1 - int(error[i]) for i in inside) / len(inside)
            mean = sum(float(confidence[i]) for i in inside) / len(inside)
            total += len(inside) / len(confidence) * abs(accuracy - mean)
    return total


edges = st.integers(1, 20).flatmap(lambda bins: st.integers(0, bins).map(lambda k: k / bins))
confidences = st.one_of(edges, st.floats(0, 1), st.floats(0, 1, width=32))
rows = st.lists(st.tuples(confidences, st.booleans()), min_size=1, max_size=25)


@given(rows, st.integers(1, 20))
@reproducible
def test_ece_is_the_loop_over_bins(rows, bins):
    confidence, error = np.array([c for c, _ in rows]), np.array([e for _, e in rows])
    value = ops.expected_calibration_error(confidence, error, bins=bins)
    np.testing.assert_allclose(value, naive_ece(confidence, error, bins), rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("bins", [1, 2, 7, 10, 15, 100])
def test_a_confidence_on_an_edge_belongs_below_it(bins):
    # Two rows that cancel if they share a bin, and do not if they are in different ones.
    for k in range(1, bins + 1):
        edge, below = k / bins, (k - 0.5) / bins
        pair = np.array([edge, below])
        together = abs(1 - (edge + below)) / 2
        assert ops.expected_calibration_error(pair, np.array([0, 1]), bins=bins) == pytest.approx(together)
        if k < bins:
            pair = np.array([edge, np.nextafter(edge, 2)])
            apart = (abs(1 - edge) + edge) / 2
            assert ops.expected_calibration_error(pair, np.array([0, 1]), bins=bins) == pytest.approx(apart)


@pytest.mark.parametrize("xp", [np, jnp])
def test_confidence_one_is_in_the_last_bin_and_zero_in_the_first(xp):
    def ece(confidence, error):
        return float(ops.expected_calibration_error(xp.asarray(confidence), xp.asarray(error)))

    assert ece([1.0, 0.9375], [0, 1]) == pytest.approx(abs(1 - 1.9375) / 2)  # one bin, where they cancel
    assert ece([0.0, 0.0625], [0, 1]) == pytest.approx(abs(1 - 0.0625) / 2)
    assert ece([1.0], [0]) == 0
    assert ece([1.0], [1]) == 1
    assert ece([0.0], [1]) == 0


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float64])
def test_ece_weight_is_repeated_rows(dtype):
    rng = np.random.default_rng(0)
    confidence, error = rng.random(30), rng.random(30) < 0.3
    weight = rng.integers(0, 40, (2, 3, 30)).astype(dtype)
    values = ops.expected_calibration_error(confidence, error, weight=weight)
    device = ops.expected_calibration_error(jnp.asarray(confidence), jnp.asarray(error), weight=jnp.asarray(weight))
    assert values.shape == device.shape == (2, 3)
    for index in np.ndindex(2, 3):
        count = weight[index].astype(int)
        repeated = ops.expected_calibration_error(np.repeat(confidence, count), np.repeat(error, count))
        np.testing.assert_allclose(values[index], repeated, rtol=1e-12)
        np.testing.assert_allclose(device[index], repeated, rtol=1e-5)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("error_dtype", [bool, np.uint8, np.int32])
def test_ece_counts_beyond_the_range_of_float16(dtype, error_dtype):
    rng = np.random.default_rng(0)
    confidence = rng.random(100_000).astype(dtype)
    error = (rng.random(100_000) < 0.5).astype(error_dtype)
    exact = ops.expected_calibration_error(confidence.astype(np.float64), error.astype(bool))
    np.testing.assert_allclose(ops.expected_calibration_error(confidence, error), exact, rtol=1e-12)
    device = jax.jit(ops.expected_calibration_error)(jnp.asarray(confidence), jnp.asarray(error))
    np.testing.assert_allclose(device, exact, rtol=2e-5)


def test_ece_refuses_bad_input():
    ece = ops.expected_calibration_error
    with pytest.raises(ValueError, match=r"both be \[n\]; they are \(2,\) and \(3,\)"):
        ece(np.zeros(2), np.zeros(3))
    with pytest.raises(ValueError, match=r"both be \[n\]"):
        ece(np.zeros((2, 1)), np.zeros((2, 1)))
    for bad in (-1e-9, 1 + 1e-9, np.nan):
        with pytest.raises(ValueError, match=r"confidences must lie in \[0, 1\]"):
            ece(np.array([0.5, bad]), np.array([0, 1]))
    for xp in (np, jnp):
        with pytest.raises(ValueError, match="at least one example"):
            ece(xp.zeros(0), xp.zeros(0, dtype=bool))
        with pytest.raises(ValueError, match="0/1 errors, given as bool or integers; these are soft"):
            ece(xp.asarray([0.5, 0.5]), xp.asarray([0.5, 0.0]))
    with pytest.raises(ValueError, match="0/1 errors"):
        ece(np.array([0.5, 0.5]), np.array([0, 2]))


@pytest.fixture(scope="module")
def outputs():
    rng = np.random.default_rng(0)
    return rng.normal(size=(200, 5), scale=3), rng.integers(0, 5, 200)


def test_log_loss_equals_scikit_learn(outputs):
    logits, label = outputs
    probabilities = np.exp(ops.log_softmax(logits))
    expected = sklearn.metrics.log_loss(label, probabilities, labels=range(5))
    np.testing.assert_allclose(ops.log_loss(logits, label).mean(), expected, rtol=1e-9)
    np.testing.assert_allclose(ops.log_loss(np.log(probabilities), label).mean(), expected, rtol=1e-9)


def test_log_loss_of_probability_zero_is_infinite():
    with np.errstate(divide="ignore"):
        log_p = np.log(np.array([[1.0, 0.0], [1.0, 0.0], [0.5, 0.5]]))
    label = np.array([0, 1, 1])
    np.testing.assert_allclose(ops.log_loss(log_p, label), [0, np.inf, np.log(2)])
    np.testing.assert_allclose(ops.log_loss(jnp.asarray(log_p), jnp.asarray(label)), [0, np.inf, np.log(2)], rtol=1e-6)
    np.testing.assert_allclose(ops.brier_loss(log_p, label), [0, 2, 0.5])


def test_log_loss_of_tiny_probabilities_is_not():
    assert ops.log_loss(np.array([[0.0, 5000.0]]), np.array([0])) == 5000


def test_brier_loss_is_the_sum_over_classes(outputs):
    logits, label = outputs
    p = np.exp(ops.log_softmax(logits))
    one_hot = np.eye(5)[label]
    np.testing.assert_allclose(ops.brier_loss(logits, label), ((p - one_hot) ** 2).sum(axis=1), rtol=1e-12)
    two = np.stack([logits[:, 0], logits[:, 1]], axis=1)
    positive = np.exp(ops.log_softmax(two))[:, 1]
    half = sklearn.metrics.brier_score_loss(label % 2, positive, pos_label=1)
    np.testing.assert_allclose(ops.brier_loss(two, label % 2).mean(), 2 * half, rtol=1e-12)


def test_max_probability_is_that_of_the_predicted_class(outputs):
    logits, _ = outputs
    p = ops.max_probability(logits)
    np.testing.assert_allclose(p, np.exp(ops.log_softmax(logits)).max(axis=1), rtol=1e-15)
    np.testing.assert_allclose(p, 1 / (1 + np.exp(-ops.msp(logits))), rtol=1e-12)
    assert ops.max_probability(np.array([[900.0, 0.0, -900.0]])) == 1
    many = np.random.default_rng(0).normal(size=(20_000, 3), scale=40)
    assert ops.max_probability(many).max() <= 1  # never refused as a confidence


def test_losses_on_devices_agree_with_the_host(outputs):
    logits, label = outputs
    device = jnp.asarray(logits, jnp.float32), jnp.asarray(label)
    for loss in (ops.log_loss, ops.brier_loss):
        np.testing.assert_allclose(jax.jit(loss)(*device), loss(logits, label), rtol=2e-5, atol=1e-6)
    np.testing.assert_allclose(jax.jit(ops.max_probability)(device[0]), ops.max_probability(logits), rtol=1e-5)
