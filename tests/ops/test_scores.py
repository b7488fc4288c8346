"""Confidence scores against exact arithmetic, and their invariants."""

import decimal
import itertools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import scipy.special
from brute_force import reproducible
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from sc_jax import ops

decimal.getcontext().prec = 60

moderate = st.floats(-30, 30, width=32)


def logit_rows(elements=moderate):
    return st.integers(2, 6).flatmap(lambda k: arrays(np.float64, (3, k), elements=elements))


def log_odds(row: np.ndarray) -> decimal.Decimal:
    """ln(p_max / (1 − p_max)) to 60 digits: v_max − ln Σ of the others' exponentials."""
    exact = sorted(decimal.Decimal(float(v)) for v in row)
    return exact[-1] - sum(v.exp() for v in exact[:-1]).ln()


@given(logit_rows())
@reproducible
def test_msp_is_the_exact_log_odds(logits):
    np.testing.assert_allclose(ops.msp(logits), [float(log_odds(row)) for row in logits], rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("gap", [0.0, 1e-9, 1.0, 40.0, 800.0, 1e6, 1e300])
@pytest.mark.parametrize("shift", [0.0, -700.0, 5000.0])
def test_msp_does_not_saturate(gap, shift):
    for logits in ([gap, 0.0, 0.0], [-gap, -gap, 0.0]):
        value = ops.msp(np.array(logits) + (shift if gap < 1e6 else 0))
        np.testing.assert_allclose(value, gap - np.log(2), rtol=1e-9)


def test_msp_tells_apart_what_the_softmax_rounds_to_one():
    logits = np.array([[40.0, 0.0, 0.0], [41.0, 0.0, 0.0], [800.0, 0.0, 0.0], [800.0, 0.0, -1.0]])
    assert len(set(scipy.special.softmax(logits, axis=-1).max(axis=-1))) == 1
    assert (np.diff(ops.msp(logits)) > 0).all()
    assert (np.diff(ops.msp(jnp.asarray(logits, jnp.float32))) > 0).all()


@given(logit_rows(), st.randoms(use_true_random=False))
@reproducible
def test_msp_orders_as_the_exact_maximum_probability(logits, random):
    exact = [odds.exp() / (1 + odds.exp()) for odds in map(log_odds, logits)]
    value = ops.msp(logits)
    for i, j in itertools.combinations(range(3), 2):
        if exact[i] - exact[j] > decimal.Decimal("1e-12") * (1 - exact[i]):
            assert value[i] > value[j]


def test_msp_of_log_probabilities_with_zeros():
    log_p = np.array([[-np.inf, 0.0, -np.inf], [np.log(0.25), -np.inf, np.log(0.75)], [np.log(0.5)] * 2 + [-np.inf]])
    np.testing.assert_allclose(ops.msp(log_p), [np.inf, np.log(3), 0], atol=1e-15)
    np.testing.assert_allclose(ops.msp(jnp.asarray(log_p)), [np.inf, np.log(3), 0], rtol=1e-6)


@pytest.mark.parametrize("xp", [np, jnp])
def test_ties_at_the_maximum_go_to_the_lowest_class(xp):
    logits = xp.asarray([[1.0, 3.0, 3.0], [2.0, 2.0, 2.0], [0.0, 0.0, 1.0]])
    np.testing.assert_array_equal(ops.predicted_class(logits), [1, 0, 2])
    # the other of two equal classes counts as a rival: p_max/(1 − p_max) = e³/(e³ + e)
    np.testing.assert_allclose(ops.msp(logits), [-np.log1p(np.exp(-2)), -np.log(2), 1 - np.log(2)], rtol=1e-6)


@given(arrays(np.float64, (40, 2), elements=st.floats(-900, 900)))
@reproducible
def test_two_classes_make_msp_the_margin(logits):
    np.testing.assert_array_equal(ops.msp(logits), np.abs(logits[:, 0] - logits[:, 1]))
    p = scipy.special.softmax(logits, axis=-1)
    order = np.argsort(ops.msp(logits), kind="stable")
    entropy, gini = -scipy.special.entr(p).sum(axis=-1), (p**2).sum(axis=-1)
    for other in (p.max(axis=-1), np.abs(p[:, 0] - p[:, 1]), entropy, gini):
        assert (np.diff(other[order]) >= -1e-12).all()


@given(logit_rows(), st.floats(-100, 100))
@reproducible
def test_msp_does_not_depend_on_the_shift(logits, shift):
    np.testing.assert_allclose(ops.msp(logits + shift), ops.msp(logits), rtol=1e-10, atol=1e-10)


def naive_pnorm(logits: np.ndarray, p: int, center: bool) -> np.ndarray:
    v = logits - logits.mean(axis=-1, keepdims=True) if center else logits
    return v.max(axis=-1) / (np.abs(v) ** p).sum(axis=-1) ** (1 / p)


pnorm_rows = arrays(np.float64, (3, 5), elements=moderate).filter(lambda v: (np.ptp(v, axis=-1) > 0.01).all())


@pytest.mark.parametrize("center", [True, False])
@given(logits=pnorm_rows, p=st.integers(1, 10))
@reproducible
def test_pnorm_is_its_formula(center, logits, p):
    expected = naive_pnorm(logits, p, center)
    np.testing.assert_allclose(ops.max_logit_pnorm(logits, p, center=center), expected, rtol=1e-9, atol=1e-12)


@given(pnorm_rows, st.integers(1, 10), st.floats(0.01, 100), st.floats(-100, 100))
@reproducible
def test_centred_pnorm_depends_on_neither_scale_nor_shift(logits, p, scale, shift):
    value = ops.max_logit_pnorm(scale * logits + shift, p)
    np.testing.assert_allclose(value, ops.max_logit_pnorm(logits, p), rtol=1e-7, atol=1e-9)


def test_uncentred_pnorm_depends_on_the_shift_only():
    logits = np.array([[3.0, 1.0, -2.0], [0.5, 0.4, 0.1]])
    value = ops.max_logit_pnorm(logits, 2, center=False)
    np.testing.assert_allclose(ops.max_logit_pnorm(7 * logits, 2, center=False), value, rtol=1e-13)
    assert (np.abs(ops.max_logit_pnorm(logits + 1, 2, center=False) - value) > 0.01).all()


@pytest.mark.parametrize("xp", [np, jnp])
@pytest.mark.parametrize("grid", [(1,), (1, 2, 3), (10, 2, 5), [4, 4], np.array([3, 1])])
def test_a_sequence_of_p_is_each_p(xp, grid):
    logits = xp.asarray(np.random.default_rng(0).normal(size=(4, 6)))
    values = ops.max_logit_pnorm(logits, grid)
    assert values.shape == (len(grid), 4)
    for row, p in zip(values, grid, strict=True):
        np.testing.assert_array_equal(row, ops.max_logit_pnorm(logits, int(p)))


@pytest.mark.parametrize("xp", [np, jnp])
@pytest.mark.parametrize("logit", [0.0, 0.1, 1 / 3, -1e5, 1e30])
@pytest.mark.parametrize("k", [3, 10])
def test_pnorm_of_equal_logits_is_zero(xp, logit, k):
    np.testing.assert_array_equal(ops.max_logit_pnorm(xp.full((2, k), logit), (1, 2, 9)), np.zeros((3, 2)))


@pytest.mark.parametrize("power", [-300, -30, 30, 300])
def test_pnorm_of_huge_and_tiny_logits(power):
    logits = np.array([[4.0, 1.0, -2.0, 0.5]])
    expected = naive_pnorm(logits, 10, True)
    np.testing.assert_allclose(ops.max_logit_pnorm(logits * 10.0**power, 10), expected, rtol=1e-12)
    if abs(power) == 30:
        device = jnp.asarray(logits * 10.0**power, jnp.float32)
        np.testing.assert_allclose(ops.max_logit_pnorm(device, 10), expected, rtol=1e-6)


@pytest.mark.parametrize("xp", [np, jnp])
@pytest.mark.parametrize("k", [1, 2])
def test_pnorm_of_two_classes_is_refused(xp, k):
    with pytest.raises(ValueError, match=f"not defined for k = {k} classes: it needs at least 3"):
        ops.max_logit_pnorm(xp.ones((4, k)), 2)


@pytest.mark.parametrize("p", [0, -1, 2.5, 2.0, [], [0, 1], [2, 2.5], np.inf, [np.nan], "2", None])
def test_p_other_than_whole_numbers_from_1_is_refused(p):
    with pytest.raises(ValueError, match="p must be integers ≥ 1; it is"):
        ops.max_logit_pnorm(np.ones((4, 3)), p)


def test_max_logit_is_the_largest():
    logits = np.random.default_rng(0).normal(size=(2, 5, 4)).astype(np.float32)
    np.testing.assert_array_equal(ops.max_logit(logits), logits.max(axis=-1).astype(np.float64))
    np.testing.assert_array_equal(ops.max_logit(jnp.asarray(logits)), logits.max(axis=-1))


@given(logit_rows(elements=st.one_of(moderate, st.just(-np.inf))).filter(lambda v: np.isfinite(v).any(axis=-1).all()))
@reproducible
def test_log_softmax_equals_scipy(logits):
    np.testing.assert_allclose(
        ops.log_softmax(logits), scipy.special.log_softmax(logits, axis=-1), rtol=1e-13, atol=1e-15
    )


def test_log_softmax_of_far_apart_logits():
    np.testing.assert_array_equal(ops.log_softmax(np.array([[1e4, 0.0], [-1e300, 0.0]])), [[0, -1e4], [-1e300, 0]])


@given(arrays(np.float64, (3, 2, 4), elements=moderate))
@reproducible
def test_ensemble_is_the_mean_of_the_softmax(logits):
    mean = scipy.special.softmax(logits, axis=-1).mean(axis=0)
    np.testing.assert_allclose(ops.ensemble_log_probabilities(logits), np.log(mean), rtol=1e-12, atol=1e-14)


def test_ensemble_keeps_what_underflows_and_what_is_impossible():
    logits = np.array([[[0.0, -2000.0, -np.inf]], [[0.0, -2001.0, -np.inf]]])
    value = ops.ensemble_log_probabilities(logits)
    np.testing.assert_allclose(value, [[0, -2000 + np.log1p(np.exp(-1)) - np.log(2), -np.inf]], rtol=1e-13, atol=1e-15)
    one_member = ops.ensemble_log_probabilities(np.array([[[1.0, 2.0, 3.0]]]))
    np.testing.assert_allclose(one_member, scipy.special.log_softmax([[1.0, 2.0, 3.0]], axis=-1), rtol=1e-13)


SCORES = {
    "msp": ops.msp,
    "max_logit": ops.max_logit,
    "max_logit_pnorm": lambda logits: ops.max_logit_pnorm(logits, (1, 3, 8)),
    "log_softmax": ops.log_softmax,
    "ensemble": ops.ensemble_log_probabilities,
}


@pytest.mark.parametrize("name", SCORES)
def test_devices_agree_with_the_host(name):
    logits = np.random.default_rng(0).normal(size=(3, 50, 10), scale=5).astype(np.float32)
    value = jax.jit(SCORES[name])(jnp.asarray(logits))
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, SCORES[name](logits), rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.int32])
def test_narrow_logits_are_computed_wide(name, dtype):
    logits = (np.random.default_rng(0).normal(size=(3, 5, 4)) * 9).astype(dtype)
    value = SCORES[name](logits)
    assert value.dtype == np.float64
    np.testing.assert_array_equal(value, SCORES[name](logits.astype(np.float64)))
    device = SCORES[name](jnp.asarray(logits))
    assert device.dtype == jnp.float32
    np.testing.assert_allclose(device, value, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("name", [name for name in SCORES if name != "ensemble"])
def test_one_row_and_many_axes(name):
    logits = np.random.default_rng(0).normal(size=(2, 3, 4))
    values = SCORES[name](logits)
    axis = 1 if name == "max_logit_pnorm" else 0
    for i in range(2):
        np.testing.assert_allclose(np.take(values, i, axis), SCORES[name](logits[i]), rtol=1e-14)
        row = SCORES[name](logits[i, 0])
        np.testing.assert_allclose(np.take(np.take(values, i, axis), 0, axis), row, rtol=1e-14)
