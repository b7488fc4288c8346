"""p is the one with the smallest AURC on the calibration split, and nothing else enters."""

import dataclasses

import numpy as np
import pytest

from sc_jax import ops
from sc_jax.methods import logit_norm
from sc_jax.predictions import Predictions


def outputs(seed: int, n: int = 300, k: int = 5) -> Predictions:
    """Logits whose scale varies, so that their norm matters."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, k, n)
    logits = rng.normal(size=(n, k)) + 2 * np.eye(k)[label] * (rng.random((n, 1)) < 0.8)
    return Predictions(label, logits * rng.gamma(2, size=(n, 1)), np.arange(n))


def errors(predictions: Predictions) -> np.ndarray:
    return predictions.logits.argmax(axis=1) != predictions.label


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("grid", [(1, 2, 3, 4, 5, 6, 7, 8, 9, 10), (7, 3, 1), (4,)])
def test_fit_takes_the_smallest_aurc_of_the_grid(seed, grid):
    calibration = outputs(seed)
    state = logit_norm.fit(calibration, grid, fallback=False)
    by_hand = {p: float(ops.aurc(ops.max_logit_pnorm(calibration.logits, p), errors(calibration))) for p in grid}
    assert state.aurc == {f"p={p}": value for p, value in by_hand.items()}
    assert list(state.aurc) == [f"p={p}" for p in grid]
    assert by_hand[state.p] == min(by_hand.values())


def test_several_p_are_chosen_over_the_seeds():
    assert len({logit_norm.fit(outputs(seed), range(1, 11), fallback=False).p for seed in range(8)}) > 1


def test_ties_go_to_the_first_candidate():
    n = 20
    label = np.zeros(n, int)
    right = Predictions(label, np.random.default_rng(0).normal(size=(n, 4)) + 9 * np.eye(4)[label], np.arange(n))
    for grid in ((3, 1, 2), (9, 10), (5,)):
        assert logit_norm.fit(right, grid, fallback=False).p == grid[0]  # no error: every AURC is 0
    assert logit_norm.fit(right, (3, 1, 2), fallback=True).p == 0
    np.testing.assert_array_equal(logit_norm.choose(np.array([[2, 1, 1], [0, 0, 0], [3, 2, 1]])), [1, 0, 2])


@pytest.mark.parametrize("seed", range(6))
def test_fallback_leaves_msp_only_for_strictly_less(seed):
    calibration = outputs(seed, n=40)
    grid = (1, 2, 4)
    state = logit_norm.fit(calibration, grid, fallback=True)
    without = logit_norm.fit(calibration, grid, fallback=False)
    msp = float(ops.aurc(ops.msp(calibration.logits), errors(calibration)))
    assert state.aurc == {"msp": msp, **without.aurc}
    assert state.p == (without.p if min(without.aurc.values()) < msp else 0)


def test_fallback_is_kept_on_some_samples_and_left_on_others():
    kept = {logit_norm.fit(outputs(seed, n=40), (1, 2, 4), fallback=True).p == 0 for seed in range(6)}
    assert kept == {True, False}


def test_apply_uses_the_state_alone():
    test = outputs(10)
    for p in (1, 2, 9):
        score = logit_norm.apply(logit_norm.LogitNorm(p, {}), test)
        np.testing.assert_array_equal(score, ops.max_logit_pnorm(test.logits, p))
    np.testing.assert_array_equal(logit_norm.apply(logit_norm.LogitNorm(0, {}), test), ops.msp(test.logits))
    state = logit_norm.fit(outputs(0), (1, 2, 4), fallback=True)
    relabelled = Predictions((test.label + 1) % 5, test.logits, test.example_id)
    np.testing.assert_array_equal(logit_norm.apply(state, test), logit_norm.apply(state, relabelled))


def test_candidates_are_the_scores_in_their_order():
    logits = outputs(0).logits
    scores = logit_norm.candidates(logits, (5, 2), fallback=True)
    assert list(scores) == [0, 5, 2]
    np.testing.assert_array_equal(scores[0], ops.msp(logits))
    np.testing.assert_array_equal(scores[5], ops.max_logit_pnorm(logits, 5))
    assert list(logit_norm.candidates(logits, (5, 2), fallback=False)) == [5, 2]


def test_two_classes_are_refused():
    with pytest.raises(ValueError, match="not defined for k = 2 classes"):
        logit_norm.fit(outputs(0, k=2), (1, 2), fallback=True)


def test_rounding_does_not_decide_a_tie():
    assert logit_norm.choose(np.array([0.1, 0.1 - 1e-16, 0.2])) == 0
    assert logit_norm.choose(np.array([0.1, 0.1 - 1e-9, 0.2])) == 1


def test_calibration_weights_are_repeated_rows():
    calibration = outputs(3, n=40)
    weight = np.random.default_rng(0).integers(0, 4, 40)
    rows = np.repeat(np.arange(40), weight)
    weighted = logit_norm.fit(dataclasses.replace(calibration, weight=weight.astype(float)), (1, 2, 5), fallback=True)
    repeated = logit_norm.fit(
        dataclasses.replace(
            calibration, label=calibration.label[rows], logits=calibration.logits[rows], example_id=np.arange(len(rows))
        ),
        (1, 2, 5),
        fallback=True,
    )
    assert weighted.p == repeated.p
    for name, value in repeated.aurc.items():
        assert weighted.aurc[name] == pytest.approx(value, rel=1e-11)
