"""Confidence scores against exact arithmetic, and their invariants."""

import decimal
import itertools
from fractions import Fraction

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import scipy.special
import scipy.stats
from brute_force import reproducible
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from sc_jax import ops
from sc_jax.ops import scores

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


def test_ensemble_of_weighted_members_is_their_weighted_mean_on_devices_too():
    logits, weight = np.random.default_rng(0).normal(size=(3, 20, 4)), np.array([0.6, 0.0, 0.4])
    mean = np.tensordot(weight, scipy.special.softmax(logits, axis=-1), 1)
    np.testing.assert_allclose(ops.ensemble_log_probabilities(logits, weight), np.log(mean), rtol=1e-12)
    on_device = jax.jit(ops.ensemble_log_probabilities)(
        jnp.asarray(logits, jnp.float32), jnp.asarray(weight, jnp.float32)
    )
    np.testing.assert_allclose(on_device, np.log(mean), rtol=2e-5)


def test_ensemble_keeps_what_underflows_and_what_is_impossible():
    logits = np.array([[[0.0, -2000.0, -np.inf]], [[0.0, -2001.0, -np.inf]]])
    value = ops.ensemble_log_probabilities(logits)
    np.testing.assert_allclose(value, [[0, -2000 + np.log1p(np.exp(-1)) - np.log(2), -np.inf]], rtol=1e-13, atol=1e-15)
    one_member = ops.ensemble_log_probabilities(np.array([[[1.0, 2.0, 3.0]]]))
    np.testing.assert_allclose(one_member, scipy.special.log_softmax([[1.0, 2.0, 3.0]], axis=-1), rtol=1e-13)


def exact_probabilities(row) -> list[decimal.Decimal]:
    exact = [decimal.Decimal(float(v)) for v in row]
    e = [(v - max(exact)).exp() for v in exact]
    return [value / sum(e) for value in e]


def entropy(p: list[decimal.Decimal]) -> decimal.Decimal:
    return -sum(value * value.ln() for value in p if value)


def log(value: decimal.Decimal) -> decimal.Decimal:
    return value.ln() if value else decimal.Decimal("-Infinity")


def impurity(p: list[decimal.Decimal]) -> decimal.Decimal:
    return 1 - sum(value * value for value in p)


DEFINITIONS = {
    "msp": lambda p: log(max(p)) - log(1 - max(p)),
    "doctor_beta": lambda p: log(max(p)) - log(1 - max(p)),
    "margin": lambda p: -log(1 - (max(p) - sorted(p)[-2])),
    "negative_entropy": lambda p: -log(entropy(p)),
    "negative_gini": lambda p: -log(impurity(p)),
    "doctor_alpha": lambda p: log(1 - impurity(p)) - log(impurity(p)),
    "logit_margin": lambda p: log(max(p)) - log(sorted(p)[-2]),
}
"""The scores of one row of probabilities as they are written in papers; cancellation is met by digits."""

MEMBER_DEFINITIONS = {
    "expected_entropy": lambda p: -log(sum(map(entropy, p)) / len(p)),
    "mean_max_probability": lambda p: -log(1 - sum(map(max, p)) / len(p)),
    "mutual_information": lambda p: -log(entropy(mean_of(p)) - sum(map(entropy, p)) / len(p)),
}


def mean_of(p: list[list[decimal.Decimal]]) -> list[decimal.Decimal]:
    return [sum(column) / len(p) for column in zip(*p, strict=True)]


@pytest.mark.parametrize("name", DEFINITIONS)
@given(logits=logit_rows())
@reproducible
def test_scores_of_a_row_are_their_definitions(name, logits):
    expected = [float(DEFINITIONS[name](exact_probabilities(row))) for row in logits]
    np.testing.assert_allclose(getattr(scores, name)(logits), expected, rtol=1e-13, atol=1e-13)


FAR = [
    [800.0, 0.0, -1.0, -1500.0],
    [750.0, 0.0, 749.0],
    [2.0, -1e4, 2.0],
    [0.0, -104.0],  # where the smallest float32 ends
    [-90.0, 0.0, -90.0],
    [40.0, 3.0, 2.0],
    [5.0, 5.0],
    [-6.5, -6.5, -6.5],
]


@pytest.mark.parametrize("name", DEFINITIONS)
@pytest.mark.parametrize("row", FAR, ids=str)
def test_scores_of_far_apart_logits_are_their_definitions(name, row):
    with decimal.localcontext(prec=400):  # e^−800 has 347 zeros
        expected = float(DEFINITIONS[name](exact_probabilities(row)))
    np.testing.assert_allclose(getattr(scores, name)(np.array(row)), expected, rtol=1e-14, atol=1e-14)
    device = getattr(scores, name)(jnp.asarray(row, jnp.float32))
    assert device.dtype == jnp.float32
    np.testing.assert_allclose(device, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("xp", [np, jnp])
def test_scores_at_a_gap_of_10_000_nats_are_their_limits(xp):
    """For logits (g, 0, 0) and q = e^−g: 1 − p_max = 2q, H = 2q(1 + g), 1 − Σ p² = 4q, all times 1 + O(q)."""
    g, ln = 1e4, np.log
    limits = {
        "msp": g - ln(2),
        "margin": g - ln(3),
        "logit_margin": g,
        "negative_entropy": g - ln(2 * (1 + g)),
        "negative_gini": g - ln(4),
        "doctor_alpha": g - ln(4),
    }
    rtol = 1e-15 if xp is np else 1e-7
    for name, expected in limits.items():
        score = jax.jit(ops_of(name)) if xp is jnp else ops_of(name)
        np.testing.assert_allclose(score(xp.asarray([0.0, g, 0.0])), expected, rtol=rtol, err_msg=name)
    # Members at g and g + 5: I = 2q(mean of r ln(r/r̄)) with r = 1, e^−5 and r̄ their mean.
    r = np.exp([0.0, -5.0])
    expected = g - ln(2 * np.mean(r * ln(r / r.mean())))
    members = xp.asarray([[[0.0, g, 0.0]], [[0.0, g + 5, 0.0]]])
    information = jax.jit(ops_of("mutual_information")) if xp is jnp else ops_of("mutual_information")
    np.testing.assert_allclose(information(members)[0], expected, rtol=rtol)


@pytest.mark.parametrize("gap", [1e-15, 1e-9, 1e-4, 0.3, 0.7, 1.0])
def test_small_margins_keep_their_digits(gap):
    for row in ([gap, 0.0], [0.0, gap, -3.0]):
        expected = float(DEFINITIONS["margin"](exact_probabilities(row)))
        np.testing.assert_allclose(ops_of("margin")(np.array(row)), expected, rtol=1e-14, atol=0)


@pytest.mark.parametrize("name", DEFINITIONS)
@pytest.mark.parametrize("xp", [np, jnp])
def test_gaps_up_to_10_000_nats_still_rank(name, xp):
    gap = np.geomspace(0.1, 1e4, 400, dtype=np.float32)[:, None]
    for logits in (np.hstack([gap, 0 * gap, 0 * gap - 1]), np.hstack([-gap, 0 * gap, -2 * gap, -gap])):
        assert (np.diff(ops_of(name)(xp.asarray(logits))) > 0).all()


@pytest.mark.parametrize("xp", [np, jnp])
def test_two_classes_have_one_ranking_with_its_ties(xp):
    rng = np.random.default_rng(0)
    gap = np.concatenate([rng.integers(0, 80, 300) / 16, rng.integers(1, 160_000, 300) / 16])
    logits = np.stack([gap, 0 * gap], axis=1)
    logits = np.where(rng.random(600)[:, None] < 0.5, logits, logits[:, ::-1])
    expected = scipy.stats.rankdata(gap)
    assert len(set(expected)) < 450  # there are ties
    for name in DEFINITIONS:
        value = ops_of(name)(xp.asarray(logits, xp.float32))
        np.testing.assert_array_equal(scipy.stats.rankdata(value), expected, err_msg=name)


@given(logit_rows(elements=st.one_of(moderate, st.floats(-2000, 2000), st.just(-np.inf))).filter(
    lambda v: np.isfinite(v).any(axis=-1).all()
))  # fmt: skip
@reproducible
def test_the_plain_value_comes_back(logits):
    p = scipy.special.softmax(logits, axis=-1)
    top = np.sort(p, axis=-1)
    plain = {
        "margin": 1 - (top[:, -1] - top[:, -2]),
        "negative_entropy": scipy.special.entr(p).sum(axis=-1),
        "negative_gini": 1 - (p**2).sum(axis=-1),
    }
    for name, u in plain.items():
        np.testing.assert_allclose(np.exp(-ops_of(name)(logits)), u, rtol=1e-9, atol=1e-14)
    np.testing.assert_allclose(1 / (1 + np.exp(-ops_of("msp")(logits))), p.max(axis=-1), rtol=1e-12)
    ratio = np.exp(-ops_of("doctor_alpha")(logits))
    np.testing.assert_allclose(ratio, (1 - (p**2).sum(axis=-1)) / (p**2).sum(axis=-1), rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("name", DEFINITIONS)
@pytest.mark.parametrize("xp", [np, jnp])
def test_impossible_classes_count_for_nothing(name, xp):
    log_p = np.array([[-np.inf, 0.0, -np.inf], [np.log(0.25), -np.inf, np.log(0.75)], [np.log(0.5)] * 2 + [-np.inf]])
    value = ops_of(name)(xp.asarray(log_p))
    assert value[0] == np.inf
    np.testing.assert_allclose(value[1], ops_of(name)(log_p[1, [0, 2]]), rtol=1e-6)
    np.testing.assert_allclose(value[2], ops_of(name)(log_p[2, :2]), rtol=1e-6, atol=1e-7)


def test_gini_and_doctor_alpha_are_one_statistic():
    logits = np.random.default_rng(0).normal(size=(200, 6), scale=3)
    u = np.exp(-ops_of("negative_gini")(logits))
    np.testing.assert_allclose(ops_of("doctor_alpha")(logits), np.log((1 - u) / u), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", [*DEFINITIONS, "energy", "max_logit"])
@pytest.mark.parametrize("xp", [np, jnp])
def test_a_single_class_is_certain(name, xp):
    value = ops_of(name)(xp.asarray([[3.0], [-2.0]]))
    np.testing.assert_array_equal(value, [3.0, -2.0] if name in ("energy", "max_logit") else [np.inf, np.inf])
    assert ops_of(name)(xp.zeros((0, 4))).shape == (0,)


@pytest.mark.parametrize("name", [*DEFINITIONS, "energy", "max_logit", "max_logit_pnorm", "msp_pnorm"])
def test_the_order_of_the_classes_changes_no_bit(name):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(300, 40), scale=4).astype(np.float16)  # few values, so that rounding would show
    score = ops_of(name) if "pnorm" not in name else lambda v: ops_of(name)(v, (1, 2, 5))
    shuffled = rng.permuted(logits, axis=1)
    np.testing.assert_array_equal(score(shuffled), score(logits))
    np.testing.assert_allclose(
        score(jnp.asarray(shuffled, jnp.float32)), score(jnp.asarray(logits, jnp.float32)), rtol=2e-6, atol=1e-6
    )


SMOOTH = [*DEFINITIONS, "energy"]


@pytest.mark.parametrize("name", SMOOTH)
def test_gradients_are_those_of_the_host_by_differences(name):
    logits = np.random.default_rng(0).normal(size=(20, 5), scale=3)
    gradient = jax.jit(jax.grad(lambda v: ops_of(name)(v).sum()))(jnp.asarray(logits, jnp.float32))
    step = 1e-6 * np.eye(5)[:, None, :]
    expected = (ops_of(name)(logits + step) - ops_of(name)(logits - step)).T / 2e-6
    np.testing.assert_allclose(gradient, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", SMOOTH)
def test_gradients_are_never_nan(name):
    rows = [
        [1e4, 0.0, -1e4],
        [2.0, -jnp.inf, 0.0],
        [1.0, 1.0, 0.0],
        [1.0, 1.0, 1.0],
        [60.0, 0.0, -60.0],
        [0.0, -1e-6, -9],
    ]
    assert jnp.isfinite(jax.jit(jax.grad(lambda v: ops_of(name)(v).sum()))(jnp.asarray(rows))).all()


@pytest.mark.parametrize("name", MEMBER_DEFINITIONS)
def test_gradients_of_members_are_those_of_the_host_by_differences(name):
    logits = np.random.default_rng(0).normal(size=(3, 5, 4)).astype(np.float32)
    logits[:, 1] = logits[0, 1] + 1e-3 * logits[:, 1]  # members that nearly agree
    logits[:, 2] *= 100
    logits[0, 3, 1] = logits[:, 4, 2] = -np.inf
    gradient = jax.jit(jax.grad(lambda v: ops_of(name)(v).sum()))(jnp.asarray(logits))
    expected = np.zeros(logits.shape)
    for index in zip(*np.nonzero(np.isfinite(logits)), strict=True):
        step = np.zeros(logits.shape)
        step[index] = 1e-6
        expected[index] = (ops_of(name)(logits + step) - ops_of(name)(logits - step)).sum() / 2e-6
    np.testing.assert_allclose(gradient, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["max_logit_pnorm", "msp_pnorm"])
def test_gradients_of_the_pnorm_are_never_nan(name):
    rows = jnp.asarray([[1.0, 1.0, 1.0], [2.0, 2.0, -1.0], [0.0, 1e4, 3.0]])
    assert jnp.isfinite(jax.grad(lambda v: ops_of(name)(v, (1, 2, 5)).sum())(rows)).all()


@given(arrays(np.float64, (3, 4), elements=moderate), st.floats(0.01, 100))
@reproducible
def test_energy_equals_scipy(logits, temperature):
    expected = temperature * scipy.special.logsumexp(logits / temperature, axis=-1)
    np.testing.assert_allclose(ops_of("energy")(logits, temperature), expected, rtol=1e-12, atol=1e-12)


def test_energy_of_log_probabilities_is_0_and_of_a_cold_row_the_max_logit():
    energy = ops_of("energy")
    with np.errstate(divide="ignore"):
        log_p = np.log(np.array([[0.7, 0.3, 0.0], [0.2, 0.4, 0.4]]))
    np.testing.assert_allclose(energy(log_p), 0, atol=1e-15)
    logits = np.array([[1e4, 9999.0, -1e5], [-3.0, -3.5, -np.inf]])
    np.testing.assert_allclose(energy(logits, 1e-3), [1e4, -3.0], rtol=1e-15)
    np.testing.assert_allclose(energy(jnp.asarray(logits)), [1e4 + np.log1p(np.exp(-1)), np.log1p(np.exp(-0.5)) - 3])


@pytest.mark.parametrize("temperature", [0, -1.0, np.nan, np.inf, np.float32(0)])
def test_temperatures_that_are_not_positive_are_refused(temperature):
    for score in (lambda v: ops_of("energy")(v, temperature), lambda v: ops_of("msp_pnorm")(v, 2, temperature)):
        with pytest.raises(ValueError, match="temperature must be positive and finite"):
            score(np.ones((2, 3)))


@pytest.mark.parametrize("center", [True, False])
@given(logits=pnorm_rows, p=st.integers(1, 10), temperature=st.sampled_from([0.01, 0.5, 1.0, 7.0]))
@reproducible
def test_msp_pnorm_is_its_formula(center, logits, p, temperature):
    v = logits - logits.mean(axis=-1, keepdims=True) if center else logits
    unit = v / (np.abs(v) ** p).sum(axis=-1, keepdims=True) ** (1 / p)
    expected = [float(log_odds(row)) for row in unit / temperature]
    value = ops_of("msp_pnorm")(logits, p, temperature, center=center)
    np.testing.assert_allclose(value, expected, rtol=1e-9, atol=1e-9)


def test_msp_pnorm_lies_between_the_max_logit_and_the_gap():
    logits = np.random.default_rng(0).normal(size=(300, 6))
    hot, cold = ops_of("msp_pnorm")(logits, 3, 1e5), ops_of("msp_pnorm")(logits, 3, 1e-5)
    np.testing.assert_array_equal(np.argsort(hot), np.argsort(ops.max_logit_pnorm(logits, 3)))
    centred = logits - logits.mean(axis=1, keepdims=True)
    gap = np.diff(np.sort(centred, axis=1)[:, -2:])[:, 0] / (np.abs(centred) ** 3).sum(axis=1) ** (1 / 3)
    np.testing.assert_allclose(cold * 1e-5, gap, atol=1e-5 * np.log(5))


@pytest.mark.parametrize("xp", [np, jnp])
def test_msp_pnorm_of_a_sequence_of_equal_logits_and_of_two_classes(xp):
    logits = xp.asarray(np.random.default_rng(0).normal(size=(4, 6)))
    values = ops_of("msp_pnorm")(logits, (4, 1), 0.3)
    for row, p in zip(values, (4, 1), strict=True):
        np.testing.assert_array_equal(row, ops_of("msp_pnorm")(logits, p, 0.3))
    np.testing.assert_allclose(
        ops_of("msp_pnorm")(xp.full((2, 5), 0.1), (1, 7)), -np.log(4) * np.ones((2, 2)), rtol=1e-6
    )
    for center in (True, False):
        with pytest.raises(ValueError, match="msp_pnorm is not defined for k = 2 classes"):
            ops_of("msp_pnorm")(xp.ones((4, 2)), 2, center=center)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
def test_max_probability_as_stored_keeps_what_is_stored(dtype):
    p = np.array([[1 - 1e-12, 1e-12], [0.3, 0.7], [1.0, 0.0]]).astype(dtype)
    value = ops_of("max_probability_as_stored")(p)
    assert value.dtype == dtype
    np.testing.assert_array_equal(value, [max(row) for row in p])
    assert (value[0] == value[2]) == (dtype != np.float64)  # saturates as stored
    device = ops_of("max_probability_as_stored")(jnp.asarray(p, p.dtype if dtype != np.float64 else np.float32))
    np.testing.assert_allclose(device.astype(np.float32), value.astype(np.float32))


@pytest.mark.parametrize("bad", [[[3.0, -1.0]], [[np.nan, 1.0]], [[0.5, 1.5]]])
def test_probabilities_that_are_none_are_refused(bad):
    with pytest.raises(ValueError, match="probabilities must lie in"):
        ops_of("max_probability_as_stored")(np.array(bad))
    with pytest.raises(ValueError, match="k ≥ 1"):
        ops_of("max_probability_as_stored")(np.zeros((2, 0)))


FIRST = {
    "msp": lambda p: 1 - max(p),
    "negative_entropy": entropy,
    "negative_gini": impurity,
}


@pytest.mark.parametrize("first", FIRST)
@given(logits=logit_rows(), second=arrays(np.float64, 3, elements=st.floats(-20, 20)), b=st.floats(0.01, 10))
@reproducible
def test_sirc_is_its_formula(first, logits, second, b):
    a = decimal.Decimal("0.5")
    expected = [
        float(
            -log(FIRST[first](exact_probabilities(row)) * (1 + (-decimal.Decimal(b) * (decimal.Decimal(s) - a)).exp()))
        )
        for row, s in zip(logits, second, strict=True)
    ]
    np.testing.assert_allclose(ops_of("sirc")(logits, second, 0.5, b, first=first), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("xp", [np, jnp])
def test_sirc_of_extremes(xp):
    sirc = ops_of("sirc")
    logits = xp.asarray([[1e4, 0.0, 0.0], [0.0, -np.inf, -np.inf], [1.0, 1.0, 1.0]])
    value = sirc(logits, xp.asarray([-5000.0, 7.0, 1e6]), 0.0, 1.0)
    np.testing.assert_allclose(value, [5000 - np.log(2), np.inf, np.log(1.5)], rtol=1e-6)
    ordinary = xp.asarray(np.random.default_rng(0).normal(size=(50, 4)))
    same = sirc(ordinary, xp.zeros(50), 0.3, 2.0)  # equal second scores leave the order of the first
    np.testing.assert_array_equal(np.argsort(same), np.argsort(ops.msp(ordinary)))


def test_sirc_parameters_are_mean_and_deviation():
    second = np.random.default_rng(0).normal(size=500, loc=40, scale=3)
    a, b = ops_of("sirc_parameters")(second)
    np.testing.assert_allclose([a, b], [second.mean() - 3 * second.std(), 1 / second.std()], rtol=1e-12)
    np.testing.assert_allclose(jax.jit(ops_of("sirc_parameters"))(jnp.asarray(second)), (a, b), rtol=1e-4)


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ([1.0], "n ≥ 2"),
        ([[1.0, 2.0]], "n ≥ 2"),
        ([0.1] * 3, "constant"),
        ([1.0, np.nan], "finite"),
        ([1.0, np.inf], "finite"),
    ],
)
def test_second_scores_that_have_no_scale_are_refused(second, message):
    with pytest.raises(ValueError, match=message):
        ops_of("sirc_parameters")(np.array(second))


def test_sirc_refuses_bad_input():
    sirc, logits = ops_of("sirc"), np.ones((3, 4))
    with pytest.raises(ValueError, match="first must be one of msp, negative_entropy, negative_gini; it is 'energy'"):
        sirc(logits, np.ones(3), 0, 1, first="energy")
    for xp in (np, jnp):
        with pytest.raises(ValueError, match="one per row"):
            sirc(xp.ones((3, 4)), xp.ones((3, 1)), 0, 1)
    with pytest.raises(ValueError, match="b must be positive"):
        sirc(logits, np.ones(3), 0, -1.0)
    with pytest.raises(ValueError, match="finite"):
        sirc(logits, np.array([0, 1, -np.inf]), 0, 1.0)


def member_rows(elements=moderate):
    shape = st.tuples(st.integers(1, 4), st.just(2), st.integers(2, 5))
    return shape.flatmap(lambda s: arrays(np.float64, s, elements=elements))


def exact_members(logits: np.ndarray, name: str) -> list[float]:
    return [
        float(MEMBER_DEFINITIONS[name]([exact_probabilities(row) for row in logits[:, i]]))
        for i in range(logits.shape[1])
    ]


@pytest.mark.parametrize("name", ["expected_entropy", "mean_max_probability"])
@given(logits=member_rows())
@reproducible
def test_scores_of_members_are_their_definitions(name, logits):
    np.testing.assert_allclose(ops_of(name)(logits), exact_members(logits, name), rtol=1e-13, atol=1e-13)


@given(member_rows(), st.sampled_from([1.0, 1e-3, 1e-8, 1e-14]))
@reproducible
def test_mutual_information_is_its_definition(logits, scale):
    logits = logits[:1] + scale * (logits - logits[:1])  # members that nearly agree, too
    p = [[exact_probabilities(row) for row in logits[:, i]] for i in range(2)]
    exact = [entropy(mean_of(rows)) - sum(map(entropy, rows)) / len(rows) for rows in p]
    value = ops_of("mutual_information")(logits)
    for got, expected in zip(value, exact, strict=True):
        if expected < decimal.Decimal("1e-50"):  # 60 digits hold no more of a difference of entropies
            assert got > 100
        else:
            np.testing.assert_allclose(got, float(-expected.ln()), rtol=1e-6, atol=1e-6)


MEMBERS = [
    [[800.0, 0.0, 0.0], [800.0, 0.5, 0.0]],
    [[800.0, 0.0], [0.0, 800.0]],
    [[1000.0, 0.0, 1.0], [1001.0, 2.0, 0.0], [1000.0, 300.0, 40.0]],
    [[30.0, 0.0, -1.0], [-30.0, 0.0, 1.0]],
    [[0.0, 1e-9, 0.0], [0.0, 0.0, 1e-9]],
    [[5.0, 1e-12, -700.0], [5.0, 0.0, -720.0]],
    [[-np.inf, 0.0, 1.0], [0.0, 0.0, 1.0]],
    [[0.0, -np.inf, -np.inf], [-np.inf, 0.0, -np.inf]],
    [[-np.inf, 0.0, 1.0], [-np.inf, 0.0, 1.5]],
    [[0.0, -np.inf, 3.0], [1.0, -np.inf, -np.inf], [-np.inf, -np.inf, 0.0]],
]


@pytest.mark.parametrize("rows", MEMBERS, ids=str)
@pytest.mark.parametrize("name", MEMBER_DEFINITIONS)
def test_scores_of_extreme_members_are_their_definitions(name, rows):
    logits = np.array(rows)[:, None, :]
    with decimal.localcontext(prec=700):
        expected = exact_members(logits, name)
    np.testing.assert_allclose(ops_of(name)(logits), expected, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(ops_of(name)(logits[::-1]), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", [*DEFINITIONS, *MEMBER_DEFINITIONS, "energy", "ensemble_log_probabilities"])
def test_extremes_raise_no_warning(name):
    with np.errstate(all="raise", under="ignore"):
        for rows in [*MEMBERS, [[1e300, 0.0, 0.0], [0.0, 1e300, -1e300]], [[2.0], [3.0]]]:
            assert not np.isnan(ops_of(name)(np.array(rows)[:, None, :])).any()


@pytest.mark.parametrize("name", MEMBER_DEFINITIONS)
def test_devices_agree_with_the_host_on_extreme_members(name):
    alike = [rows for rows in MEMBERS if np.shape(rows) == (2, 3)]
    assert len(alike) >= 7
    logits = np.moveaxis(np.array(alike, np.float32), 0, 1)
    value = jax.jit(ops_of(name))(jnp.asarray(logits))
    np.testing.assert_allclose(value, ops_of(name)(logits), rtol=1e-5, atol=1e-5)


def test_members_that_agree_have_no_mutual_information():
    rows = np.array([[0.1, -3.7, 2.2], [-np.inf, 0.3, 0.9], [900.0, 0.0, -np.inf], [1.0, 5.0, -3.0]])
    logits = np.stack([rows, rows, rows])
    logits[:, 3] += np.array([[0.0], [4.0], [-64.0]])  # a shift is no disagreement
    np.testing.assert_array_equal(ops_of("mutual_information")(logits), [np.inf] * 4)
    np.testing.assert_array_equal(jax.jit(ops_of("mutual_information"))(jnp.asarray(logits)), [np.inf] * 4)
    np.testing.assert_array_equal(ops_of("mutual_information")(logits[:1]), [np.inf] * 4)  # one member agrees


@given(member_rows(), st.integers(0, 5))
@reproducible
def test_mutual_information_lies_between_0_and_the_logarithm_of_the_members(logits, shift):
    value = ops_of("mutual_information")(logits)
    assert not np.isnan(value).any()
    assert (np.exp(-value) <= np.log(max(len(logits), 1)) + 1e-12).all()
    shifted = logits + shift * np.arange(len(logits))[:, None, None]
    np.testing.assert_allclose(np.exp(-ops_of("mutual_information")(shifted)), np.exp(-value), rtol=1e-9, atol=1e-12)


@given(st.integers(2, 5).flatmap(lambda m: arrays(np.int64, (m, 3, 4), elements=st.integers(0, 2))))
@reproducible
def test_votes_are_counted(logits):
    m = len(logits)
    for i in range(3):
        votes = [min(k for k in range(4) if row[k] == max(row)) for row in logits[:, i]]
        pairs = list(itertools.combinations(votes, 2))
        differ = Fraction(sum(x != y for x, y in pairs), len(pairs))
        modal = Fraction(max(map(votes.count, votes)), m)
        for xp, tolerance in ((np, 1e-15), (jnp, 1e-6)):
            value = [ops_of(name)(xp.asarray(logits))[i] for name in ("disagreement", "variation_ratio")]
            np.testing.assert_allclose(value, [float(-differ), float(modal - 1)], atol=tolerance)


@pytest.mark.parametrize("xp", [np, jnp])
def test_members_that_are_none_are_refused(xp):
    for name in MEMBERS_SCORES:
        for shape in ((3,), (0, 2, 3)):
            with pytest.raises(ValueError, match="members must be"):
                ops_of(name)(xp.zeros(shape))
    with pytest.raises(ValueError, match="at least two members"):
        ops_of("disagreement")(xp.zeros((1, 2, 3)))


@pytest.mark.parametrize("bad", [[np.nan, 0.0, 0.0], [np.inf, 0.0, 0.0], [-np.inf] * 3])
def test_logits_that_are_none_are_refused_on_the_host(bad):
    logits = np.stack([np.zeros((4, 3))] * 2)
    logits[1, 2] = bad
    for name in SCORES:
        with pytest.raises(ValueError, match="1 rows of logits hold"):
            SCORES[name](logits)
        assert np.isfinite(SCORES[name](np.zeros((2, 4, 3))) + 0).all() or name == "mutual_information"


@pytest.mark.parametrize("xp", [np, jnp])
def test_logits_without_classes_are_refused(xp):
    for name in SCORES:
        for shape in ((), (2, 4, 0)):
            with pytest.raises(ValueError, match="k ≥ 1"):
                SCORES[name](xp.zeros(shape))


@pytest.mark.parametrize("name", ["max_logit_pnorm", "msp_pnorm"])
def test_pnorm_of_impossible_classes_is_refused_on_the_host(name):
    with pytest.raises(ValueError, match=f"{name} needs finite logits"):
        ops_of(name)(np.array([[0.0, 1.0, -np.inf]]), 2)


def ops_of(name):
    return getattr(scores, name)


MEMBERS_SCORES = [
    "ensemble_log_probabilities", "expected_entropy", "mean_max_probability", "mutual_information", "variation_ratio",
    "disagreement",
]  # fmt: skip
SCORES = {
    **{name: ops_of(name) for name in [*DEFINITIONS, "max_logit", "energy", "log_softmax"]},
    "max_logit_pnorm": lambda logits: ops.max_logit_pnorm(logits, (1, 3, 8)),
    "msp_pnorm": lambda logits: ops_of("msp_pnorm")(logits, (1, 3, 8), 0.5),
    "sirc": lambda logits: ops_of("sirc")(logits, ops_of("energy")(logits), 1.0, 0.5, first="negative_entropy"),
    **{name: ops_of(name) for name in MEMBERS_SCORES},
}


def _array_of(library):
    if library in ("numpy", "jax"):
        return {"numpy": np.asarray, "jax": jnp.asarray}[library]
    return pytest.importorskip(library).asarray


@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize("library", ["torch", "array_api_strict"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32])
def test_other_libraries_agree_with_numpy(name, library, dtype):
    array = _array_of(library)
    logits = np.random.default_rng(0).normal(size=(3, 50, 10), scale=5).astype(dtype)
    value = SCORES[name](array(logits))
    assert isinstance(value, type(array([0.0])))
    assert "float64" in str(value.dtype)
    np.testing.assert_allclose(np.asarray(value), SCORES[name](logits), rtol=1e-12, atol=1e-13)
    if name not in ("max_logit_pnorm", "msp_pnorm"):
        with np.errstate(divide="ignore"):
            log_p = np.log(np.random.default_rng(0).integers(0, 3, (2, 20, 10)) / 1.0)
        value = SCORES[name](array(log_p))
        np.testing.assert_allclose(np.asarray(value), SCORES[name](log_p), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("library", ["numpy", "jax", "torch", "array_api_strict"])
def test_classes_and_stored_probabilities_in_every_library(library):
    array = _array_of(library)
    p = np.array([[0.25, 0.5, 0.25], [0.5, 0.0, 0.5]], np.float32)
    np.testing.assert_array_equal(np.asarray(ops.predicted_class(array(p))), [1, 0])
    index = array(np.array([[2, 0]]))
    np.testing.assert_array_equal(np.asarray(scores.one_hot(index, 3)), [[[0, 0, 1], [1, 0, 0]]])
    stored = ops_of("max_probability_as_stored")(array(p))
    assert "float32" in str(stored.dtype)
    np.testing.assert_array_equal(np.asarray(stored), [0.5, 0.5])


@pytest.mark.parametrize("name", SCORES)
def test_devices_agree_with_the_host(name):
    logits = np.random.default_rng(0).normal(size=(2, 3, 50, 10), scale=5).astype(np.float32)
    value = jax.jit(jax.vmap(SCORES[name]))(jnp.asarray(logits))
    assert value.dtype == jnp.float32
    for i in range(2):
        np.testing.assert_allclose(value[i], SCORES[name](logits[i]), rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.int32])
def test_narrow_logits_are_computed_wide(name, dtype):
    logits = (np.random.default_rng(0).normal(size=(3, 5, 4)) * 9).astype(dtype)
    value = SCORES[name](logits)
    assert value.dtype == np.float64
    np.testing.assert_array_equal(value, SCORES[name](logits.astype(np.float64)))
    assert jax.eval_shape(SCORES[name], jnp.asarray(logits)).dtype == jnp.float32
    if name in ("msp", "disagreement"):
        np.testing.assert_allclose(SCORES[name](jnp.asarray(logits)), value, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("name", [name for name in SCORES if name not in MEMBERS_SCORES])
def test_one_row_and_many_axes(name):
    logits = np.random.default_rng(0).normal(size=(2, 3, 4))
    values = SCORES[name](logits)
    axis = 1 if "pnorm" in name else 0
    for i in range(2):
        np.testing.assert_allclose(np.take(values, i, axis), SCORES[name](logits[i]), rtol=1e-14)
        row = SCORES[name](logits[i, 0])
        np.testing.assert_allclose(np.take(np.take(values, i, axis), 0, axis), row, rtol=1e-14)


ROW_WISE = {
    **{f.__name__: f for f in scores._OF_RIVALS},
    "energy at 2": lambda v: ops.energy(v, 2.0),
    "max_logit_pnorm": lambda v: ops.max_logit_pnorm(v, (1, 3)),
    "msp_pnorm": lambda v: ops.msp_pnorm(v, (1, 3), (0.1, 1.0)),
    "msp_pnorm, one": lambda v: ops.msp_pnorm(v, 2, 0.5),
    "max_probability": lambda v: ops.max_probability(v) if v.ndim == 2 else ops.msp(v),
    "log_loss": lambda v: ops.log_loss(v, np.arange(len(v)) % v.shape[-1]) if v.ndim == 2 else ops.msp(v),
    "expected_entropy": lambda v: ops.expected_entropy(v) if v.ndim == 3 else ops.msp(v),
}


@pytest.mark.parametrize("name", ROW_WISE)
@pytest.mark.parametrize("shape", [(41, 6), (3, 17, 5), (40, 1)])
def test_blocks_of_rows_change_no_bit(monkeypatch, name, shape):
    if shape[-1] == 1 and "pnorm" in name:
        return
    logits = np.random.default_rng(0).normal(size=shape).astype(np.float32) * 5
    logits[..., 3, 0] = logits[..., 3, -1] = 20.0  # a tie at the top
    whole = np.asarray(ROW_WISE[name](logits))
    for block in (1, 8, 40):
        monkeypatch.setattr(scores, "_BLOCK", block)
        parts = np.asarray(ROW_WISE[name](logits))
        assert parts.shape == whole.shape
        np.testing.assert_array_equal(parts, whole)


def test_what_is_refused_in_blocks_is_counted_over_all(monkeypatch):
    logits = np.zeros((50, 4))
    logits[[3, 30, 45], 1] = np.nan
    monkeypatch.setattr(scores, "_BLOCK", 16)
    with pytest.raises(ValueError, match="3 rows of logits hold NaN"):
        ops.msp(logits)
    with pytest.raises(ValueError, match="reach from 0 to 7"):
        ops.log_loss(np.zeros((50, 4)), np.arange(50) % 8)


@pytest.mark.parametrize(
    "convert", [np.asarray, lambda v: v.astype(np.float64), jnp.asarray], ids=["f32", "f64", "jax"]
)
def test_scores_together_are_those_alone(monkeypatch, convert):
    logits = np.random.default_rng(1).normal(size=(60, 7)).astype(np.float32) * 8
    logits[5] = 0.0
    logits[6, 1:] = -np.inf
    given = convert(logits)
    monkeypatch.setattr(scores, "_BLOCK", 64)
    functions = tuple(scores._OF_RIVALS)
    for function, value in zip(functions, scores.together(given, functions), strict=True):
        assert scores.shares_rivals(function)
        np.testing.assert_array_equal(value, function(given), err_msg=function.__name__)
    assert not scores.shares_rivals(ops.expected_entropy)


def test_msp_pnorm_of_several_temperatures_is_each_of_them():
    logits = np.random.default_rng(2).normal(size=(30, 6))
    several = ops.msp_pnorm(logits, (1, 2, 5), [0.05, 0.3, 1.0])
    assert several.shape == (3, 3, 30)
    for row, temperature in zip(several, (0.05, 0.3, 1.0), strict=True):
        np.testing.assert_array_equal(row, ops.msp_pnorm(logits, (1, 2, 5), temperature))
        np.testing.assert_allclose(
            ops.msp_pnorm(jnp.asarray(logits), (1, 2, 5), temperature), row, rtol=2e-5, atol=2e-5
        )
    with pytest.raises(ValueError, match="temperature"):
        ops.msp_pnorm(logits, 1, (1.0, 0.0))


def test_the_temperature_of_msp_pnorm_may_be_one_of_each_row():
    rng = np.random.default_rng(0)
    logits, temperature = rng.normal(size=(4, 5)), np.array([1.0, 2.0, 3.0, 4.0])
    each = [ops.msp_pnorm(row, 2, t) for row, t in zip(logits, temperature.tolist(), strict=True)]
    np.testing.assert_allclose(ops.msp_pnorm(logits, 2, temperature), each, rtol=1e-12)
