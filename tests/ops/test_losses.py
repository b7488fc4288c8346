"""Training losses against their formulas, against each other and against optax."""

import decimal
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.special

from sc_jax.data.pipelines import Targets
from sc_jax.ops import losses
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


# Every loss: its definition, what it is for special parameters, and how it behaves


def softmax(logits):
    return scipy.special.softmax(logits, axis=-1)


def at(values, label):
    return np.take_along_axis(values, label[:, None], axis=-1)[:, 0]


def minus_log(logits, label):
    return -at(scipy.special.log_softmax(logits, axis=-1), label)


def entropy(logits):
    return scipy.special.entr(softmax(logits)).sum(axis=-1)


def unit(logits):
    return logits / (np.linalg.norm(logits, axis=-1, keepdims=True) + 1e-7)


def gaps(logits):
    return logits.max(axis=-1, keepdims=True) - logits


def beyond_others(logits, margin):
    """Σ over all classes but the first of the largest logits."""
    squares = np.maximum(0, gaps(logits) - margin) ** 2
    return squares.sum(axis=-1) - at(squares, logits.argmax(axis=-1))


# name → parameters to try, and the formula in NumPy
LABELLED = {
    "smoothed_cross_entropy": (
        [{"alpha": alpha} for alpha in (-0.3, 0.0, 0.2, 0.9)],
        lambda v, y, alpha: minus_log(v, y) + alpha * (at(v, y) - v.mean(axis=-1)),
    ),
    "focal_loss": (
        [{"gamma": gamma} for gamma in (0.0, 0.5, 2.0, 5.0)],
        lambda v, y, gamma: (1 - at(softmax(v), y)) ** gamma * minus_log(v, y),
    ),
    "logit_norm_cross_entropy": (
        [{"temperature": temperature} for temperature in (0.04, 0.5, 1.0)],
        lambda v, y, temperature: minus_log(unit(v) / temperature, y),
    ),
    "confidence_penalty": (
        [{"beta": beta} for beta in (-0.3, 0.0, 0.2, 0.9)],
        lambda v, y, beta: minus_log(v, y) - beta * entropy(v),
    ),
    "max_suppression": (
        [{"alpha": alpha} for alpha in (-0.3, 0.0, 0.2, 0.9)],
        lambda v, y, alpha: minus_log(v, y) + alpha * (v.max(axis=-1) - v.mean(axis=-1)),
    ),
    "margin_label_smoothing": (
        [{"margin": margin, "weight": weight} for margin in (0.0, 2.0, 10.0) for weight in (0.0, 0.1)],
        lambda v, y, margin, weight: minus_log(v, y) + weight * np.maximum(0, gaps(v) - margin).sum(axis=-1),
    ),
    "acls": (
        [
            {"weight": w, "margin": m, "others": o}
            for w, m, o in ((0.0, 1, 1), (0.1, 10, 0.1), (0.3, 1, 2), (1, -2, 0.1))
        ],
        lambda v, y, weight, margin, others: (
            minus_log(v, y)
            + weight * np.maximum(0, v.max(axis=-1) - margin) ** 2
            + weight * others * beyond_others(v, margin) / (v.shape[-1] - 1)
        ),
    ),
}
each_setting = pytest.mark.parametrize(
    ("name", "parameters"), [(name, parameters) for name, (settings, _) in LABELLED.items() for parameters in settings]
)
each_labelled = pytest.mark.parametrize("name", LABELLED)


@each_setting
def test_loss_is_its_definition(outputs, name, parameters):
    logits, label = outputs[0].astype(np.float64), outputs[1]
    with jax.enable_x64(True):
        value = getattr(losses, name)(jnp.asarray(logits), jnp.asarray(label), **parameters)
    np.testing.assert_allclose(value, LABELLED[name][1](logits, label, **parameters), rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("alpha", [-0.3, 0.0, 0.2, 0.9])
def test_binary_loss_is_that_of_two_logits_the_first_of_them_zero(alpha):
    z, label = jnp.linspace(-9, 9, 31), jnp.arange(31) % 2
    value = losses.smoothed_binary_cross_entropy(z, label, alpha)
    two = smoothed_cross_entropy(jnp.stack([jnp.zeros(31), z], axis=-1), label, alpha)
    np.testing.assert_allclose(value, two, rtol=1e-5, atol=1e-6)
    by_optax = optax.sigmoid_binary_cross_entropy(z, (1 - alpha) * label + alpha / 2)
    np.testing.assert_allclose(value, by_optax, rtol=1e-5, atol=1e-6)


def test_soft_targets_are_smoothing_and_mixing(outputs):
    logits, label = map(jnp.asarray, outputs)
    one_hot, other = jax.nn.one_hot(label, 6), (label + 2) % 6
    smoothed = losses.soft_cross_entropy(logits, 0.8 * one_hot + 0.2 / 6)
    np.testing.assert_allclose(smoothed, smoothed_cross_entropy(logits, label, 0.2), rtol=1e-5, atol=1e-6)
    weight = jnp.linspace(0.5, 1.0, 20)
    target = weight[:, None] * one_hot + (1 - weight[:, None]) * jax.nn.one_hot(other, 6)
    mixed = Targets(label, other, weight).loss(lambda y: smoothed_cross_entropy(logits, y, 0.0))
    np.testing.assert_allclose(losses.soft_cross_entropy(logits, target), mixed, rtol=1e-5, atol=1e-6)
    by_optax = optax.softmax_cross_entropy(logits, target)
    np.testing.assert_allclose(losses.soft_cross_entropy(logits, target), by_optax, rtol=1e-5, atol=1e-6)


def test_distillation_is_least_where_the_student_is_the_teacher(outputs):
    logits = jnp.asarray(outputs[0])
    target = jax.nn.softmax(logits)
    gradient = jax.grad(lambda v: losses.soft_cross_entropy(v, target).sum())(logits)
    np.testing.assert_allclose(gradient, 0, atol=1e-6)
    np.testing.assert_allclose(losses.soft_cross_entropy(logits, target), entropy(logits), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("focal_loss", {"gamma": 0.0}),
        ("confidence_penalty", {"beta": 0.0}),
        ("max_suppression", {"alpha": 0.0}),
        ("margin_label_smoothing", {"margin": 1.0, "weight": 0.0}),
        ("margin_label_smoothing", {"margin": 1e3, "weight": 0.5}),
        ("acls", {"weight": 0.0}),
        ("acls", {"weight": 0.5, "margin": 1e3}),
    ],
)
def test_without_its_term_a_loss_is_cross_entropy(outputs, name, parameters):
    logits, label = map(jnp.asarray, outputs)
    value = getattr(losses, name)(logits, label, **parameters)
    np.testing.assert_allclose(value, smoothed_cross_entropy(logits, label, 0.0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("alpha", [-0.3, 0.2, 0.9])
def test_max_suppression_is_smoothing_of_right_predictions(outputs, alpha):
    logits, label = map(jnp.asarray, outputs)
    suppressed, smoothed = losses.max_suppression(logits, label, alpha), smoothed_cross_entropy(logits, label, alpha)
    right = np.argmax(outputs[0], axis=-1) == outputs[1]
    assert 0 < right.sum() < 20
    np.testing.assert_allclose(suppressed[right], smoothed[right], rtol=1e-5, atol=1e-5)
    assert (np.sign(suppressed - smoothed)[~right] == np.sign(alpha)).all()
    as_predicted = smoothed_cross_entropy(logits, label, 0.0) + (
        smoothed_cross_entropy(logits, jnp.argmax(logits, axis=-1), alpha)
        - smoothed_cross_entropy(logits, jnp.argmax(logits, axis=-1), 0.0)
    )
    np.testing.assert_allclose(suppressed, as_predicted, rtol=1e-5, atol=1e-5)


def test_a_margin_of_zero_is_max_suppression(outputs):
    logits, label = map(jnp.asarray, outputs)
    value = losses.margin_label_smoothing(logits, label, 0.0, 0.05)
    np.testing.assert_allclose(value, losses.max_suppression(logits, label, 6 * 0.05), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_loss_of_two_classes_is_the_binary_one(gamma):
    z, label = jnp.linspace(-9, 9, 31), jnp.arange(31) % 2
    value = losses.focal_loss(jnp.stack([jnp.zeros(31), z], axis=-1), label, gamma)
    np.testing.assert_allclose(value, optax.sigmoid_focal_loss(z, label, gamma=gamma), rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("gap", [-30, 0, 10, 25, 40])
@pytest.mark.parametrize("gamma", [0, 1, 2])
def test_focal_loss_has_its_digits_where_the_probability_rounds_to_one(gap, gamma):
    with decimal.localcontext(prec=60):
        rest = 2 * (-decimal.Decimal(gap)).exp()  # of two rivals; p = 1/(1 + rest)
        exact = float((rest / (1 + rest)) ** gamma * (1 + rest).ln())
    with jax.enable_x64(True):
        value = losses.focal_loss(jnp.array([float(gap), 0.0, 0.0]), jnp.asarray(0), gamma)
    np.testing.assert_allclose(value, exact, rtol=1e-13)


def test_logit_normalisation_takes_the_direction_alone(outputs):
    logits, label = map(jnp.asarray, outputs)
    value = losses.logit_norm_cross_entropy(logits, label, 0.1)
    np.testing.assert_allclose(losses.logit_norm_cross_entropy(50 * logits, label, 0.1), value, rtol=1e-4)
    low, high = np.log1p(5 * np.exp(np.array([-1, 1]) * np.sqrt(2) / 0.1))
    assert low <= value.min() < value.max() <= high
    even = losses.logit_norm_cross_entropy(jnp.zeros(6), jnp.asarray(2), 0.1)
    np.testing.assert_allclose(even, np.log(6), rtol=1e-6)


@each_labelled
def test_parameters_are_data(outputs, name):
    logits, label = map(jnp.asarray, outputs)
    settings = LABELLED[name][0]
    columns = {key: jnp.array([settings[i % len(settings)][key] for i in range(20)]) for key in settings[0]}
    value = getattr(losses, name)(logits, label, **columns)
    each = [
        float(getattr(losses, name)(logits[i], label[i], **{key: column[i] for key, column in columns.items()}))
        for i in range(20)
    ]
    np.testing.assert_allclose(value, each, rtol=1e-5, atol=1e-6)
    mapped = jax.vmap(lambda v, y, of: getattr(losses, name)(v, y, **of))(logits, label, columns)
    np.testing.assert_allclose(mapped, each, rtol=1e-5, atol=1e-6)


@each_labelled
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_every_loss_of_half_precision_is_computed_in_float32(outputs, name, dtype):
    logits, label = jnp.asarray(outputs[0], dtype), jnp.asarray(outputs[1])
    loss, parameters = getattr(losses, name), LABELLED[name][0][-1]
    assert loss(logits, label, **parameters).dtype == jnp.float32
    wide = loss(logits.astype(jnp.float32), label, **parameters)
    np.testing.assert_array_equal(loss(logits, label, **parameters), wide)


EXTREME = np.array(list(itertools.product((1e4, -1e4, 0.0, 1e-30), repeat=3)), np.float32)


@each_labelled
def test_losses_and_gradients_of_extreme_logits_are_finite(name):
    logits, label = jnp.asarray(np.repeat(EXTREME, 3, axis=0)), jnp.asarray(np.tile(np.arange(3), len(EXTREME)))
    value_and_grad = jax.jit(
        jax.vmap(jax.value_and_grad(lambda v, y, of: getattr(losses, name)(v, y, **of)), (0, 0, None))
    )
    for parameters in LABELLED[name][0]:
        for array in value_and_grad(logits, label, parameters):
            assert np.isfinite(array).all(), parameters


def test_losses_without_a_label_are_finite_at_extremes():
    z = jnp.array([1e4, -1e4, 0.0])
    for label, alpha in itertools.product((0, 1), (-0.3, 0.0, 0.9)):
        value, gradient = jax.vmap(jax.value_and_grad(losses.smoothed_binary_cross_entropy), (0, None, None))(
            z, label, alpha
        )
        target = (1 - alpha) * label + alpha / 2
        np.testing.assert_allclose(gradient, np.array([1, 0, 0.5]) - target, atol=1e-6)
        np.testing.assert_allclose(value, [1e4 * (1 - target), 1e4 * target, np.log(2)], rtol=1e-5, atol=1e-6)
    logits = jnp.asarray(EXTREME)
    for target in np.array([[0, 1, 0], [0.2, 0.3, 0.5]], np.float32):
        value, gradient = jax.vmap(jax.value_and_grad(losses.soft_cross_entropy), (0, None))(logits, target)
        assert np.isfinite(value).all()
        assert np.isfinite(gradient).all()
