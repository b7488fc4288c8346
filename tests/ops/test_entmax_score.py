"""The confidence of α-entmax: the order of p_max where that is below 1, the margin where it is 1, continuous between."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from sc_jax import ops
from sc_jax.ops import entmax_score
from sc_jax.ops.sparsemax import entmax

ALPHAS = (1.2, 1.5, 2.0, 3.0)


def exact_sparsemax_max(row: np.ndarray) -> Fraction:
    """max p of sparsemax in rational arithmetic."""
    ordered = sorted((Fraction(float(v)) for v in row), reverse=True)
    size = max(k for k in range(1, len(ordered) + 1) if 1 + k * ordered[k - 1] > sum(ordered[:k]))
    return ordered[0] - (sum(ordered[:size]) - 1) / size


@given(arrays(np.float64, (6, 4), elements=st.integers(-64, 64).map(lambda i: i / 32)))
def test_it_ranks_as_the_exact_maximum_probability_of_sparsemax(logits):
    score, exact = ops.entmax_confidence(logits), [exact_sparsemax_max(row) for row in logits]
    for i, j in np.ndindex(6, 6):
        if exact[i] < exact[j]:
            assert score[i] < score[j]
        elif exact[i] == exact[j] < 1:
            assert score[i] == pytest.approx(score[j], abs=1e-14)
        elif exact[i] == exact[j] == 1:  # the ties that the margin breaks
            assert np.sign(score[i] - score[j]) == np.sign(ops.logit_margin(logits)[i] - ops.logit_margin(logits)[j])


@pytest.mark.parametrize("alpha", ALPHAS)
def test_it_is_its_definition_by_p_max_below_1_and_the_margin_above(alpha):
    logits = np.random.default_rng(0).normal(size=(400, 5), scale=2.5 / (alpha - 1))
    with jax.enable_x64(True):
        p = np.asarray(entmax(jnp.asarray(logits), alpha).max(axis=-1))
    score, margin = ops.entmax_confidence(logits, alpha), (alpha - 1) * ops.logit_margin(logits)
    sure = margin >= 1
    assert 20 < sure.sum() < 400
    doubt = np.maximum(1 - p[~sure], 0)  # of 16 digits
    np.testing.assert_allclose((1 - score[~sure]) ** (1 / min(alpha - 1, 1)), doubt, atol=1e-13)
    assert (score[~sure] < 1).all()
    np.testing.assert_allclose(p[sure], 1, atol=1e-12)
    np.testing.assert_allclose(score[sure], margin[sure], rtol=1e-12)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_the_parts_meet_at_1(alpha):
    gap = (1 + np.array([-1e-9, 0, 1e-9])) / (alpha - 1)
    score = ops.entmax_confidence(np.stack([gap, np.zeros(3), np.full(3, -1.0)], axis=-1), alpha)
    np.testing.assert_allclose(score, 1, atol=1e-8)
    assert (np.diff(score) > 0).all()  # p_max is 1 − 10⁻¹⁸ of α = 1.5, and rounds to 1


def test_what_was_one_tie_is_ranked():
    gap = np.linspace(1, 50, 300)
    logits = np.stack([gap, np.zeros(300), np.zeros(300)], axis=-1)
    assert len(np.unique(np.asarray(entmax(jnp.asarray(logits, jnp.float32), 2.0)).max(axis=-1))) == 1
    assert len(np.unique(ops.entmax_confidence(logits))) == 300
    wrong = np.arange(300) < 30  # those of the smallest margin
    assert ops.aurc(np.ones(300), wrong) == pytest.approx(0.1)
    assert ops.naurc(ops.entmax_confidence(logits), wrong) == pytest.approx(0)


@pytest.mark.parametrize("alpha", [1.0, *ALPHAS])
def test_on_devices_it_is_that_of_the_host(alpha):
    logits = np.random.default_rng(1).normal(size=(50, 7), scale=2).astype(np.float32)
    on_device = jax.jit(lambda v: ops.entmax_confidence(v, alpha))(jnp.asarray(logits))
    np.testing.assert_allclose(
        on_device, ops.entmax_confidence(logits, alpha), rtol=2e-5, atol=5e-4
    )  # the root of what is 1e-7 wrong


@pytest.mark.parametrize("alpha", [1.0, *ALPHAS])
def test_the_order_of_the_classes_changes_no_bit_and_a_shift_nothing(alpha):
    rng = np.random.default_rng(2)
    logits = rng.integers(-40, 40, (50, 6)) / 16
    score = ops.entmax_confidence(logits, alpha)
    np.testing.assert_array_equal(ops.entmax_confidence(rng.permuted(logits, axis=1), alpha), score)
    np.testing.assert_allclose(ops.entmax_confidence(logits + 8.0, alpha), score, rtol=1e-12)


def test_edge_cases():
    ties = ops.entmax_confidence(np.array([[2.0, 2.0, 2.0], [2.0, 2.0, -9.0]]))
    np.testing.assert_allclose(ties, [1 / 3, 1 / 2], rtol=1e-15)
    np.testing.assert_array_equal(ops.entmax_confidence(np.array([[0.0, -np.inf]])), [np.inf])
    np.testing.assert_array_equal(ops.entmax_confidence(np.zeros((2, 1))), [np.inf, np.inf])
    rows = np.array([[0.3, 0.1, -np.inf], [0.3, 0.1, -50.0]])
    np.testing.assert_allclose(*ops.entmax_confidence(rows, 1.5), rtol=1e-12)
    np.testing.assert_array_equal(ops.entmax_confidence(rows, 1.0), ops.msp(rows))
    with pytest.raises(ValueError, match="alpha must be ≥ 1"):
        ops.entmax_confidence(rows, 0.9)
    with pytest.raises(ValueError, match="NaN"):
        ops.entmax_confidence(np.full((1, 3), np.nan))


def test_how_many_rows_are_worked_on_together_changes_no_bit(monkeypatch):
    logits = np.random.default_rng(3).normal(size=(60, 9))
    score = ops.entmax_confidence(logits, 1.5)
    monkeypatch.setattr(entmax_score, "_AT_ONCE", 40)
    np.testing.assert_array_equal(ops.entmax_confidence(logits, 1.5), score)


def test_nearly_equal_logits_keep_their_digits_in_float32():
    logits = np.random.default_rng(4).normal(size=(20, 1000)).astype(np.float32) * np.float32(1e-4)
    on_device = np.asarray(ops.entmax_confidence(jnp.asarray(logits)))
    np.testing.assert_allclose(on_device, ops.entmax_confidence(logits), atol=1e-6)
