"""Scores of shaped features against their definitions row by row, and GradNorm against automatic differentiation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import logsumexp, softmax

from sc_jax import ops
from sc_jax.ops import activation_scores as shaped

RNG = np.random.default_rng(0)
D, K = 9, 4
TRAIN = np.maximum(RNG.normal(size=(70, D), scale=2), 0)
TEST = np.maximum(RNG.normal(size=(40, D), scale=3), 0)
KERNEL, BIAS = RNG.normal(size=(D, K)), RNG.normal(size=K)
OTHERS = ["torch", "array_api_strict"]


def energy(x):
    return logsumexp(x @ KERNEL + BIAS, axis=-1)


@pytest.mark.parametrize("percentile", [0, 10, 62.5, 90, 100])
def test_react_clips_at_the_percentile_of_all_activations(percentile):
    state = shaped.fit_react(TRAIN, percentile)
    np.testing.assert_allclose(state.threshold, np.percentile(TRAIN, percentile), rtol=1e-13)
    expected = energy(np.minimum(TEST, np.percentile(TRAIN, percentile)))
    np.testing.assert_allclose(shaped.react(TEST, KERNEL, BIAS, state), expected, rtol=1e-12)


def test_react_of_a_threshold_above_everything_is_energy():
    state = shaped.React(np.array(TEST.max()))
    np.testing.assert_allclose(shaped.react(TEST, KERNEL, BIAS, state), energy(TEST), rtol=1e-12)
    lower = shaped.react(TEST, np.abs(KERNEL), BIAS, shaped.React(np.array(0.5)))
    assert (lower <= shaped.react(TEST, np.abs(KERNEL), BIAS, shaped.React(np.array(1.0)))).all()  # weights ≥ 0


def test_one_activation_is_its_own_percentile():
    assert float(shaped.fit_react(np.array([[3.0]]), 90).threshold) == 3.0


def by_hand(x, percentile, shaping):
    """One example at a time: sort, drop the smallest, refill."""
    rows = []
    for row in x:
        keep = len(row) - int(np.floor(len(row) * percentile / 100 + 0.5))
        threshold = sorted(row, reverse=True)[keep - 1]
        kept = [value if value >= threshold else 0.0 for value in row]
        alive = sum(value != 0 for value in kept)
        if shaping == "binarise" and alive:
            kept = [sum(row) / alive if value else 0.0 for value in kept]
        if shaping == "scale" and sum(kept):
            kept = [value * np.exp(sum(row) / sum(kept)) for value in kept]
        rows.append(kept)
    return energy(np.array(rows))


@pytest.mark.parametrize("shaping", shaped.SHAPINGS)
@pytest.mark.parametrize("percentile", [0, 5, 34, 60, 90])
def test_ash_is_its_definition(shaping, percentile):
    zeros = np.vstack([TEST, np.zeros((1, D)), np.ones((1, D)), np.eye(1, D)])
    value = shaped.ash(zeros, KERNEL, BIAS, percentile, shaping)
    np.testing.assert_allclose(value, by_hand(zeros, percentile, shaping), rtol=1e-11)
    assert value[40] == pytest.approx(logsumexp(BIAS))  # no activation, no evidence


@pytest.mark.parametrize("shaping", shaped.SHAPINGS)
def test_ash_does_not_depend_on_the_order_of_features_even_where_they_tie(shaping):
    tied = RNG.integers(0, 3, (30, D)).astype(float)
    order = RNG.permutation(D)
    value = shaped.ash(tied, KERNEL, BIAS, 60, shaping)
    np.testing.assert_allclose(shaped.ash(tied[:, order], KERNEL[order], BIAS, 60, shaping), value, rtol=1e-12)


def test_shaping_keeps_what_it_says():
    """ASH-B keeps the sum of activations; pruning nothing is energy, scaling nothing multiplies by e."""
    one = np.ones((D, 1))
    total = shaped.ash(TEST, one, np.zeros(1), 60, "binarise")
    np.testing.assert_allclose(total, TEST.sum(axis=1), rtol=1e-12)
    np.testing.assert_allclose(shaped.ash(TEST, KERNEL, BIAS, 0, "prune"), energy(TEST), rtol=1e-12)
    np.testing.assert_allclose(shaped.ash(TEST, KERNEL, BIAS, 0, "scale"), energy(np.e * TEST), rtol=1e-12)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_gradnorm_is_the_l1_norm_of_the_gradient(temperature):

    def divergence(kernel, x):
        log_p = jax.nn.log_softmax((x @ kernel + BIAS) / temperature)
        return jnp.mean(-jnp.log(float(K)) - log_p)  # KL(u ‖ p) = Σ (1/k) ln((1/k)/p)

    x = np.vstack([TEST, -TEST[:5]])
    with jax.enable_x64(True):
        gradient = jax.vmap(jax.grad(divergence), (None, 0))(jnp.asarray(KERNEL), jnp.asarray(x))
        expected = np.abs(np.asarray(gradient)).sum(axis=(1, 2))
    np.testing.assert_allclose(shaped.gradnorm(x, x @ KERNEL + BIAS, temperature), expected, rtol=1e-10)


def test_gradnorm_of_log_probabilities_and_at_the_ends():
    logits = TEST @ KERNEL + BIAS
    np.testing.assert_allclose(
        shaped.gradnorm(TEST, np.log(softmax(logits, axis=1))), shaped.gradnorm(TEST, logits), rtol=1e-11
    )
    certain = np.where(np.arange(K) == 1, 0.0, -np.inf)[None]
    assert shaped.gradnorm(np.ones((1, D)), certain)[0] == pytest.approx(D * 2 * (1 - 1 / K))
    assert shaped.gradnorm(np.ones((1, D)), np.zeros((1, K)))[0] == pytest.approx(0, abs=1e-15)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: shaped.fit_react(TRAIN, 101), r"percentile must be in \[0, 100\]"),
        (lambda: shaped.fit_react(TRAIN, np.nan), r"percentile must be in \[0, 100\]"),
        (lambda: shaped.fit_react(TRAIN[:0]), "n ≥ 1 to fit"),
        (lambda: shaped.fit_react(np.where(TRAIN > 3, np.inf, TRAIN)), "finite"),
        (lambda: shaped.react(TEST[:, 1:], KERNEL, BIAS, shaped.React(1.0)), "fitted on 9"),
        (lambda: shaped.react(TEST, KERNEL, BIAS[1:], shaped.React(1.0)), "head must be"),
        (lambda: shaped.react(TEST, KERNEL * np.nan, BIAS, shaped.React(1.0)), "head_kernel and head_bias"),
        (lambda: shaped.ash(TEST, KERNEL, BIAS, 60, "s"), "prune, binarise, scale"),
        (lambda: shaped.ash(TEST, KERNEL, BIAS, 99, "prune"), "leaves none"),
        (lambda: shaped.ash(TEST, KERNEL, BIAS, -1, "prune"), "percentile"),
        (lambda: shaped.ash(TEST - 1, KERNEL, BIAS, 60, "scale"), "≥ 0"),
        (lambda: shaped.ash(TEST - 1, KERNEL, BIAS, 60, "binarise"), "≥ 0"),
        (lambda: shaped.gradnorm(TEST, np.zeros((3, K))), "logits must be"),
        (lambda: shaped.gradnorm(TEST, np.zeros((40, K)), 0.0), "temperature"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def all_scores(train, test, kernel, bias):
    """Fits and applies every score."""
    return {
        "react": shaped.react(test, kernel, bias, shaped.fit_react(train, 80)),
        "gradnorm": shaped.gradnorm(test, test @ kernel + bias[None, :]),
        **{shaping: shaped.ash(test, kernel, bias, 60, shaping) for shaping in shaped.SHAPINGS},
    }


def test_devices_agree_with_the_host():
    arguments = (TRAIN, TEST, KERNEL, BIAS)
    host = all_scores(*arguments)
    for name, value in jax.jit(all_scores)(*map(jnp.asarray, arguments)).items():
        assert value.dtype == jnp.float32
        assert host[name].dtype == np.float64
        np.testing.assert_allclose(value, host[name], rtol=1e-4, atol=1e-4, err_msg=name)
    narrow = jax.eval_shape(all_scores, *(jnp.asarray(part, jnp.bfloat16) for part in arguments))
    assert {value.dtype for value in narrow.values()} == {jnp.dtype(jnp.float32)}


@pytest.mark.parametrize("library", OTHERS)
def test_other_libraries_agree_with_numpy(library):
    xp = pytest.importorskip(library)
    host = all_scores(TRAIN, TEST, KERNEL, BIAS)
    for name, value in all_scores(*map(xp.asarray, (TRAIN, TEST, KERNEL, BIAS))).items():
        np.testing.assert_allclose(np.asarray(value), host[name], rtol=1e-9, atol=1e-12, err_msg=name)


def test_no_example_has_no_score():
    for value in (
        ops.react(TEST[:0], KERNEL, BIAS, ops.fit_react(TRAIN)),
        ops.ash(TEST[:0], KERNEL, BIAS, 50, "scale"),
        ops.gradnorm(TEST[:0], np.zeros((0, K))),
    ):
        assert value.shape == (0,)
