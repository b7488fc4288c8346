"""ConfidNet's head: what it is, what it learns, and on what."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from made_up import with_head

from sc_jax import ops
from sc_jax.methods import confidence_head, evaluation
from sc_jax.methods.scores import SCORES
from sc_jax.ops.abstention_losses import true_class_probability_loss


def probability_of_the_true_class(p):
    return scipy.special.softmax(p.logits, axis=1)[np.arange(len(p)), p.label]


@pytest.fixture(scope="module")
def splits():
    return with_head(1, n=1500), with_head(2, n=1500)


@pytest.fixture(scope="module")
def fitted(splits):
    return confidence_head.fit(splits[0])


def test_it_is_a_hidden_layer_on_standardised_features(splits, fitted):
    x = (splits[1].features - splits[0].features.mean(axis=0)) / splits[0].features.std(axis=0)
    hidden = np.maximum(x @ fitted.kernel + fitted.bias, 0)
    expected = hidden @ fitted.last_kernel + fitted.last_bias
    np.testing.assert_allclose(confidence_head.apply(fitted, splits[1]), expected, rtol=1e-10, atol=1e-10)


def test_it_regresses_on_the_probability_of_the_true_class(splits, fitted):
    """On its own split it does better than the mean does, and so it does on another."""
    for split in splits:
        c = jnp.asarray(confidence_head.apply(fitted, split), jnp.float32)
        loss = true_class_probability_loss(c, jnp.asarray(split.logits, jnp.float32), jnp.asarray(split.label)).mean()
        truth = probability_of_the_true_class(split)
        assert loss < 0.9 * ((truth - truth.mean()) ** 2).mean()
    error = ops.predicted_class(splits[1].logits) != splits[1].label
    assert ops.failure_auroc(confidence_head.apply(fitted, splits[1]), error) > 0.6


def test_with_no_hidden_signal_it_is_the_mean():
    """Features that do not vary leave the mean probability, the least squares of a constant."""
    given = with_head(3, n=400)
    flat = dataclasses.replace(given, features=np.ones_like(given.features))
    c = confidence_head.apply(confidence_head.fit(flat, steps=2000, learning_rate=1e-2), flat)
    np.testing.assert_allclose(c, c[0], atol=1e-9)
    np.testing.assert_allclose(scipy.special.expit(c[0]), probability_of_the_true_class(flat).mean(), atol=5e-3)


def test_the_same_seed_gives_the_same_bits_and_weights_count():
    given = with_head(4, n=200)
    a, b, c = (confidence_head.fit(given, steps=20, seed=seed) for seed in (0, 0, 1))
    jax.tree.map(np.testing.assert_array_equal, a, b)
    assert not np.allclose(a.kernel, c.kernel)
    ones = confidence_head.fit(dataclasses.replace(given, weight=np.full(200, 3.0)), steps=20)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), a, ones)
    weight = np.where(np.arange(200) < 100, 2.0, 0.0)
    half = confidence_head.fit(dataclasses.replace(given, weight=weight), steps=20)
    moved = dataclasses.replace(given, label=np.where(weight > 0, given.label, 0), weight=weight)
    jax.tree.map(np.testing.assert_array_equal, half, confidence_head.fit(moved, steps=20))


def test_what_it_cannot_be_fitted_to_is_refused(splits):
    with pytest.raises(ValueError, match="no features"):
        confidence_head.fit(dataclasses.replace(splits[0], features=None))
    with pytest.raises(ValueError, match="of members"):
        confidence_head.fit(dataclasses.replace(splits[0], logits=np.stack([splits[0].logits] * 2)))


def test_as_a_score_it_is_fitted_on_the_calibration_split_alone(splits):
    calibration, test = splits
    of, about = evaluation.scorer(SCORES["confidnet"], evaluation.Split.of(calibration))
    expected = confidence_head.apply(confidence_head.fit(calibration), test)
    np.testing.assert_array_equal(of(evaluation.Split.of(test)), expected)
    assert about == {"on": calibration.source}
