"""The scores known by name: each is what its name says, and says why it cannot be computed where it cannot."""

import dataclasses

import numpy as np
import pytest

from sc_jax import ops
from sc_jax.files import InputError
from sc_jax.methods import scores as scores_lib
from sc_jax.methods.scores import SCORES, obstacle
from sc_jax.predictions import Predictions


def predictions(k=4, n=40, seed=0, **changes):
    rng = np.random.default_rng(seed)
    label = rng.integers(0, k, n)
    logits = rng.normal(size=(n, k)) + 1.5 * (np.arange(k) == label[:, None])
    return dataclasses.replace(Predictions(label, logits, np.arange(n)), **changes)


def as_probabilities(given, zero=False):
    logits = ops.log_softmax(given.logits)
    if zero:
        logits[0, np.argmin(logits[0])] = -np.inf
    return dataclasses.replace(given, logits=logits, log_probabilities=True)


def test_untuned_scores_are_the_functions_of_their_name():
    logits = predictions().logits
    np.testing.assert_array_equal(SCORES["msp"].of(logits), ops.msp(logits))
    np.testing.assert_array_equal(SCORES["max_logit"].of(logits), logits.max(axis=1))
    assert {name for name, score in SCORES.items() if score.tuned} == {"max_logit_pnorm", "max_logit_pnorm_or_msp"}


def test_named_keeps_the_order_asked_for():
    assert list(scores_lib.named(("max_logit", "msp"))) == ["max_logit", "msp"]


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("mps", "did you mean 'msp'"),
        ("max_logits", "did you mean 'max_logit'"),
        ("max_logit_pnorm_msp", "did you mean 'max_logit_pnorm_or_msp'"),
        ("zzz", "there are msp, max_logit"),
        ("", "there are msp, max_logit"),
    ],
)
def test_an_unknown_score_names_the_nearest(name, hint):
    with pytest.raises(InputError) as caught:
        scores_lib.named(("msp", name))
    assert f"there is no score {name!r}" in str(caught.value)
    assert hint in str(caught.value)


@pytest.mark.parametrize("name", SCORES)
def test_nothing_stands_in_the_way_of_two_splits_of_true_logits(name):
    assert obstacle(SCORES[name], predictions(), predictions(seed=1)) is None


def test_what_stands_in_the_way_is_said():
    good, other = predictions(), predictions(seed=1)
    tuned = SCORES["max_logit_pnorm"]
    assert "--calibration" in obstacle(tuned, good, None)
    assert "k = 2" in obstacle(tuned, predictions(k=2), predictions(k=2, seed=1))
    assert "probability is exactly 0" in obstacle(tuned, as_probabilities(good, zero=True), other)
    assert "calibration file" in obstacle(tuned, good, as_probabilities(other, zero=True))
    assert obstacle(tuned, as_probabilities(good), as_probabilities(other)) is None
    assert "true logits" in obstacle(SCORES["max_logit"], as_probabilities(good), None)
    assert obstacle(SCORES["msp"], as_probabilities(good, zero=True), None) is None
    assert obstacle(SCORES["msp"], predictions(k=2), None) is None
