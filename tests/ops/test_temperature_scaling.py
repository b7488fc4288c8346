"""Temperature scaling is the minimum of the log loss."""

import numpy as np
import pytest
import scipy.special

from sc_jax import ops
from sc_jax.ops.temperature_scaling import LARGEST

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(400, 5), scale=2)
LABEL = np.where(RNG.random(400) < 0.6, LOGITS.argmax(axis=-1), RNG.integers(0, 5, 400))


def log_loss(logits, label, temperature, weight=None):
    log_p = scipy.special.log_softmax(logits / temperature, axis=-1)
    return np.average(-log_p[np.arange(len(label)), label], weights=weight)


@pytest.mark.parametrize("scale", [0.1, 1.0, 8.0])
def test_no_other_temperature_has_less_log_loss(scale):
    found = ops.fit_temperature(scale * LOGITS, LABEL)
    least = log_loss(scale * LOGITS, LABEL, found)
    for other in np.geomspace(0.01, 100, 401):
        assert least <= log_loss(scale * LOGITS, LABEL, other) + 1e-12
    np.testing.assert_allclose(found, scale * ops.fit_temperature(LOGITS, LABEL), rtol=1e-4)


def test_at_the_minimum_the_logits_expected_are_those_of_the_labels():
    """The derivative by 1/T is 0: Σ_i (Σ_k p_k v_k − v_y) = 0."""
    p = scipy.special.softmax(LOGITS / ops.fit_temperature(LOGITS, LABEL), axis=-1)
    np.testing.assert_allclose((p * LOGITS).sum(), LOGITS[np.arange(400), LABEL].sum(), rtol=1e-5)


def test_it_recovers_the_temperature_labels_were_drawn_with():
    logits = RNG.normal(size=(40_000, 4), scale=2)
    gumbel = RNG.gumbel(size=logits.shape)
    label = (logits / 2.5 + gumbel).argmax(axis=-1)
    np.testing.assert_allclose(ops.fit_temperature(logits, label), 2.5, rtol=0.04)


def test_weights_are_repeated_rows_and_shifts_do_nothing():
    counts = RNG.integers(0, 4, 400)
    repeated = ops.fit_temperature(np.repeat(LOGITS, counts, axis=0), np.repeat(LABEL, counts))
    shifted = LOGITS + RNG.normal(size=(400, 1), scale=100)
    np.testing.assert_allclose(ops.fit_temperature(shifted, LABEL, weight=counts), repeated, rtol=1e-5)


@pytest.mark.parametrize("scale", [0.01, 1.0, 50.0])
def test_separable_data_end_at_the_smallest(scale):
    found = ops.fit_temperature(scale * LOGITS, LOGITS.argmax(axis=-1))
    np.testing.assert_allclose(found, 1 / LARGEST, rtol=1e-3)


def test_labels_that_contradict_the_logits_end_at_the_largest():
    found = ops.fit_temperature(LOGITS, LOGITS.argmin(axis=-1))
    np.testing.assert_allclose(found, LARGEST, rtol=1e-6)


def test_logits_that_say_nothing_end_at_the_smallest():
    assert ops.fit_temperature(np.zeros((7, 3)), np.zeros(7, int)) == 1 / LARGEST


def test_blocks_of_rows_give_the_same_temperature(monkeypatch):
    whole = ops.fit_temperature(LOGITS, LABEL)
    monkeypatch.setattr("sc_jax.ops.scores._BLOCK", 50)
    np.testing.assert_allclose(ops.fit_temperature(LOGITS, LABEL), whole, rtol=1e-9)
