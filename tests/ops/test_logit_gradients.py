"""The closed forms against automatic differentiation."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from brute_force import quickly

from sc_jax import ops
from sc_jax.data.pipelines import Targets
from sc_jax.ops import losses
from sc_jax.ops.losses import smoothed_cross_entropy

ALPHAS = (-0.2, 0.0, 0.1, 0.6)


@pytest.fixture(scope="module")
def outputs():
    rng = np.random.default_rng(0)
    return rng.normal(size=(60, 5), scale=2).astype(np.float32), rng.integers(0, 5, 60)


@jax.jit
def gradient(logits, label, alpha):
    return jax.vmap(jax.grad(smoothed_cross_entropy), (0, 0, None))(logits, label, alpha)


@jax.jit
def extra_gradient(logits, label, alpha):
    def extra(v, y):
        return smoothed_cross_entropy(v, y, alpha) - smoothed_cross_entropy(v, y, 0.0)

    return jax.vmap(jax.grad(extra))(logits, label)


def test_cross_entropy_gradient_is_autodiff(outputs):
    logits, label = outputs
    value = ops.cross_entropy_gradient(logits, label)
    np.testing.assert_allclose(value, gradient(jnp.asarray(logits), jnp.asarray(label), 0.0), atol=1e-6)
    np.testing.assert_allclose(ops.cross_entropy_gradient(jnp.asarray(logits), jnp.asarray(label)), value, atol=1e-6)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_smoothing_adds_its_closed_form(outputs, alpha):
    logits, label = outputs
    autodiff = extra_gradient(jnp.asarray(logits), jnp.asarray(label), alpha)
    value = ops.smoothing_gradient(label, alpha, 5)
    np.testing.assert_allclose(value, autodiff, atol=1e-6)
    np.testing.assert_allclose(ops.smoothing_gradient(jnp.asarray(label), alpha, 5), autodiff, atol=1e-6)
    whole = ops.cross_entropy_gradient(logits, label) + value
    np.testing.assert_allclose(whole, gradient(jnp.asarray(logits), jnp.asarray(label), alpha), atol=1e-6)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_gradients_sum_to_zero_over_the_classes(outputs, alpha):
    logits, label = outputs
    np.testing.assert_allclose(ops.smoothing_gradient(label, alpha, 5).sum(axis=-1), 0, atol=1e-15)
    np.testing.assert_allclose(ops.cross_entropy_gradient(logits, label).sum(axis=-1), 0, atol=1e-14)


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("xp", [np, jnp])
def test_suppression_is_the_extra_gradient_at_the_maximum(outputs, alpha, xp):
    logits, label = map(xp.asarray, outputs)
    predicted = np.argmax(outputs[0], axis=-1)
    at_maximum = np.asarray(ops.smoothing_gradient(label, alpha, 5))[np.arange(60), predicted]
    value = ops.max_logit_suppression(logits, label, alpha)
    np.testing.assert_allclose(value, at_maximum, atol=1e-7)
    right = predicted == outputs[1]
    np.testing.assert_allclose(np.asarray(value)[right], alpha * (1 - 1 / 5), atol=1e-7)
    np.testing.assert_allclose(np.asarray(value)[~right], -alpha / 5, atol=1e-7)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_expected_suppression_is_the_mean_of_any_bin(outputs, alpha):
    logits, label = outputs
    wrong = ops.predicted_class(logits) != label
    value = ops.max_logit_suppression(logits, label, alpha)
    for part in (slice(None), slice(0, 7), slice(7, 8), np.flatnonzero(wrong)):
        expected = ops.expected_suppression(wrong[part].mean(), alpha, 5)
        np.testing.assert_allclose(value[part].mean(), expected, atol=1e-15)


def test_leading_axes(outputs):
    logits, label = outputs[0].reshape(3, 20, 5), outputs[1].reshape(3, 20)
    for i in range(3):
        row = ops.cross_entropy_gradient(logits[i], label[i])
        np.testing.assert_array_equal(ops.cross_entropy_gradient(logits, label)[i], row)
        row = ops.smoothing_gradient(label[i], 0.2, 5)
        np.testing.assert_array_equal(ops.smoothing_gradient(label, 0.2, 5)[i], row)
    one = ops.smoothing_gradient(np.asarray(2), 0.3, 4)
    np.testing.assert_allclose(one, [-0.075, -0.075, 0.225, -0.075])


# Every loss: its closed form against automatic differentiation, in float64


def cross_entropy(logits, label):
    return smoothed_cross_entropy(logits, label, 0.0)


def mixed_cross_entropy(logits, label, other, weight):
    return Targets(label, other, weight).loss(lambda y: cross_entropy(logits, y))


# name → the values of its parameters; all of their combinations are tried
PARAMETERS = {
    "cross_entropy": {},
    "smoothed_cross_entropy": {"alpha": (-0.3, 0.0, 0.2, 0.9)},
    "focal_loss": {"gamma": (0.0, 0.5, 2.0, 5.0)},
    "logit_norm_cross_entropy": {"temperature": (0.04, 0.5, 1.0)},
    "confidence_penalty": {"beta": (-0.3, 0.0, 0.2, 0.9)},
    "max_suppression": {"alpha": (-0.3, 0.0, 0.2, 0.9)},
    "margin_label_smoothing": {"margin": (0.0, 2.0, 10.0), "weight": (-0.1, 0.0, 0.1)},
    "acls": {"weight": (0.0, 0.1, 1.0), "margin": (-1.0, 2.0), "others": (0.1, 2.0)},
}
each_loss = pytest.mark.parametrize("name", PARAMETERS)


def pair(name):
    """A loss and its closed form."""
    loss = cross_entropy if name == "cross_entropy" else getattr(losses, name)
    return loss, getattr(ops, f"{name}_gradient")


def draw(k, seed=0):
    """Logits [60, k] of spreads .1 to 30, no two equal, and labels, of which at least half are the predicted class."""
    rng = np.random.default_rng([seed, k])
    logits = rng.normal(size=(60, k)) * np.repeat([0.1, 1.0, 5.0, 30.0], 15)[:, None] + rng.normal(size=(60, 1))
    assert all(len(np.unique(row)) == k for row in logits)
    return logits, np.where(np.arange(60) % 2, rng.integers(0, k, 60), logits.argmax(axis=-1))


def draw_with_settings(name, k):
    """Logits and labels of `draw`, each with every combination of parameters, and the columns of these."""
    logits, label = draw(k)
    rows = list(itertools.product(*PARAMETERS[name].values()))
    columns = {key: np.tile([row[i] for row in rows], 60) for i, key in enumerate(PARAMETERS[name])}
    return np.repeat(logits, len(rows), axis=0), np.repeat(label, len(rows)), columns


def autodiff(loss, logits, *columns, **named):
    """∂loss/∂logits of each row, in float64."""
    with jax.enable_x64(True):
        gradient = jax.vmap(lambda v, args, named: jax.grad(loss)(v, *args, **named))
        return np.asarray(quickly(gradient, *jax.tree.map(jnp.asarray, (logits, columns, named))))


def close(value, expected, atol=2e-14):
    """Up to rounding, of the largest entry of each row."""
    scale = np.maximum(1, np.abs(expected).max(axis=-1, keepdims=True))
    np.testing.assert_allclose(value / scale, expected / scale, rtol=0, atol=atol)


@each_loss
@pytest.mark.parametrize("k", [2, 3, 10, 100, 1000])
def test_closed_form_is_autodiff(name, k):
    logits, label, columns = draw_with_settings(name, k)
    loss, closed = pair(name)
    if "margin" in columns:  # not at the kink
        gaps = logits.max(axis=-1, keepdims=True) - logits
        assert (np.abs(gaps - columns["margin"][:, None])[gaps > 0] > 1e-9).all()
    close(closed(logits, label, **columns), autodiff(loss, logits, label, **columns))


@pytest.mark.parametrize("k", [2, 10, 1000])
def test_closed_form_of_soft_and_mixed_targets_is_autodiff(k):
    logits, label = draw(k)
    rng = np.random.default_rng(k)
    target = rng.dirichlet(np.full(k, 0.3), 60)
    close(ops.soft_cross_entropy_gradient(logits, target), autodiff(losses.soft_cross_entropy, logits, target))
    other, weight = rng.integers(0, k, 60), rng.random(60)
    value = ops.mixed_cross_entropy_gradient(logits, label, other, weight)
    close(value, autodiff(mixed_cross_entropy, logits, label, other, weight))
    close(ops.mixed_cross_entropy_gradient(logits, label, other, 1.0), ops.cross_entropy_gradient(logits, label))


@pytest.mark.parametrize("alpha", [-0.3, 0.0, 0.2, 0.9])
def test_closed_form_of_one_logit_is_autodiff_and_that_of_two(alpha):
    z, label = np.linspace(-40, 40, 60), np.arange(60) // 2 % 2
    value = ops.smoothed_binary_cross_entropy_gradient(z, label, alpha)
    expected = autodiff(losses.smoothed_binary_cross_entropy, z, label, np.full(60, alpha))
    np.testing.assert_allclose(value, expected, rtol=0, atol=5e-15)
    two = ops.smoothed_cross_entropy_gradient(np.stack([0 * z, z], axis=-1), label, alpha)
    np.testing.assert_allclose(value, two[:, 1], rtol=0, atol=5e-15)
    extra = value - ops.smoothed_binary_cross_entropy_gradient(z, label, 0.0)
    np.testing.assert_allclose(extra, alpha * (label - 0.5), rtol=0, atol=5e-15)
    by_confidence = np.sign(z) * extra
    np.testing.assert_allclose(
        by_confidence, ops.max_logit_suppression(np.stack([0 * z, z], -1), label, alpha), atol=2e-15
    )


@pytest.mark.parametrize("temperature", [0.25, 1.0, 4.0])
def test_a_temperature_divides_the_gradient_at_the_scaled_logits(temperature):
    logits, label = draw(7)
    expected = autodiff(lambda v, y: smoothed_cross_entropy(v / temperature, y, 0.2), logits, label)
    close(ops.smoothed_cross_entropy_gradient(logits / temperature, label, 0.2) / temperature, expected)


@each_loss
@pytest.mark.parametrize("k", [2, 1000])
def test_a_shift_changes_no_loss_but_that_of_normalised_logits_and_acls(name, k):
    logits, label, columns = draw_with_settings(name, k)
    total = pair(name)[1](logits, label, **columns).sum(axis=-1)
    if name in ("logit_norm_cross_entropy", "acls"):
        assert (np.abs(total) > 1e-3).any()
    else:
        np.testing.assert_allclose(total, 0, atol=1e-12)


def test_a_target_that_is_no_distribution_is_seen_in_the_sum():
    logits, _ = draw(4)
    target = np.full((60, 4), 0.3)
    np.testing.assert_allclose(ops.soft_cross_entropy_gradient(logits, target).sum(axis=-1), 1 - 1.2, atol=1e-14)


def test_normalised_logits_gain_nothing_from_their_norm():
    logits, label = draw(6)
    gradient = ops.logit_norm_cross_entropy_gradient(logits, label, 0.1, epsilon=0.0)
    np.testing.assert_allclose((logits * gradient).sum(axis=-1), 0, atol=1e-13)
    close(ops.logit_norm_cross_entropy_gradient(4 * logits, label, 0.1, epsilon=0.0), gradient / 4)
    with_epsilon = ops.logit_norm_cross_entropy_gradient(logits, label, 0.1)
    np.testing.assert_allclose(with_epsilon, gradient, rtol=1e-4, atol=1e-4 * np.abs(gradient).max())
    at_zero = ops.logit_norm_cross_entropy_gradient(np.zeros((1, 6)), label[:1], 0.1)
    close(1e-8 * at_zero, (1 / 6 - np.eye(6)[label[:1]]))
    close(
        1e-8 * autodiff(losses.logit_norm_cross_entropy, np.zeros((1, 6)), label[:1], np.array([0.1])), 1e-8 * at_zero
    )


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("smoothed_cross_entropy", {"alpha": 0.0}),
        ("focal_loss", {"gamma": 0.0}),
        ("confidence_penalty", {"beta": 0.0}),
        ("max_suppression", {"alpha": 0.0}),
        ("margin_label_smoothing", {"margin": 1.0, "weight": 0.0}),
        ("margin_label_smoothing", {"margin": 1e3, "weight": 0.5}),
        ("acls", {"weight": 0.0}),
        ("acls", {"weight": 0.5, "margin": 1e3}),
    ],
)
def test_without_its_term_a_gradient_is_that_of_cross_entropy(name, parameters):
    logits, label = draw(9)
    close(pair(name)[1](logits, label, **parameters), ops.cross_entropy_gradient(logits, label))


def test_a_margin_of_zero_is_max_suppression_and_that_is_smoothing_where_right():
    logits, label = draw(9)
    suppressed = ops.max_suppression_gradient(logits, label, 0.2)
    close(ops.margin_label_smoothing_gradient(logits, label, 0.0, 0.2 / 9), suppressed)
    right = logits.argmax(axis=-1) == label
    smoothed = ops.smoothed_cross_entropy_gradient(logits, label, 0.2)
    close(suppressed[right], smoothed[right])
    difference = np.zeros((60, 9))
    difference[np.arange(60), logits.argmax(axis=-1)] += 0.2
    difference[np.arange(60), label] -= 0.2
    close(suppressed - smoothed, difference)


def test_focal_loss_scales_the_gradient_of_cross_entropy():
    logits, label = draw(5)
    p = scipy.special.softmax(logits, axis=-1)[np.arange(60), label]
    value = ops.focal_loss_gradient(logits, label, 2.0)
    close(value, focal_factor(p, 2.0)[:, None] * ops.cross_entropy_gradient(logits, label))


def focal_factor(p, gamma):
    """F(p) = (1 − p)^γ − γ p (1 − p)^(γ−1) ln p, for γ ≥ 1."""
    return (1 - p) ** gamma - gamma * p * (1 - p) ** (gamma - 1) * np.log(p)


@each_loss
def test_closed_forms_of_extreme_logits_are_finite(name):
    logits = np.repeat(list(itertools.product((1e4, -1e4, 0.0), repeat=3)), 3, axis=0)
    label = np.tile(np.arange(3), 27)
    for values in itertools.product(*PARAMETERS[name].values()):
        parameters = dict(zip(PARAMETERS[name], values, strict=True))
        with np.errstate(all="raise", under="ignore"):
            value = pair(name)[1](logits, label, **parameters)
        assert np.isfinite(value).all()
        device = pair(name)[1](jnp.asarray(logits, jnp.float32), jnp.asarray(label), **parameters)
        assert device.dtype == jnp.float32
        close(np.asarray(device, np.float64), value, atol=1e-6)


@each_loss
@pytest.mark.parametrize("library", ["torch", "array_api_strict", "jax.numpy"])
def test_closed_forms_in_other_libraries(name, library):
    xp = pytest.importorskip(library)
    logits, label, columns = draw_with_settings(name, 7)
    value = pair(name)[1](*map(xp.asarray, (logits, label)), **{key: xp.asarray(c) for key, c in columns.items()})
    expected = pair(name)[1](logits, label, **columns)
    atol = 3e-5 if library == "jax.numpy" else 1e-13
    np.testing.assert_allclose(np.from_dlpack(value), expected, rtol=0, atol=atol * np.abs(expected).max())
    assert type(value).__module__.split(".")[0] in (library, "jaxlib")
    if library != "jax.numpy":
        assert value.dtype == xp.float64


@pytest.mark.parametrize("library", ["torch", "array_api_strict", "jax.numpy"])
def test_other_gradients_in_other_libraries(library):
    xp = pytest.importorskip(library)
    logits, label = draw(7)
    target, other = np.full((60, 7), 1 / 7), (label + 1) % 7
    for closed, *arguments in (
        (ops.soft_cross_entropy_gradient, logits, target),
        (ops.mixed_cross_entropy_gradient, logits, label, other, np.linspace(0, 1, 60)),
        (ops.smoothed_binary_cross_entropy_gradient, logits[:, 0], label % 2, np.linspace(0, 1, 60)),
        (ops.max_logit_suppression, logits, label, np.linspace(0, 1, 60)),
        (ops.extra_gradient_on_max, logits, logits, label),
        (functools.partial(ops.expected_extra_gradient_on_max, ops.cross_entropy_gradient), logits, target),
        (functools.partial(ops.log_score_shift_derivative, p=(1, 3)), np.abs(logits) + 1),
    ):
        value = np.from_dlpack(closed(*map(xp.asarray, arguments)))
        expected = closed(*arguments)
        np.testing.assert_allclose(value, expected, atol=2e-6 * max(1, np.abs(expected).max()), rtol=0)


# What a loss does to the max logit


@pytest.mark.parametrize("alpha", [-0.3, 0.0, 0.2, 0.9])
def test_extra_gradient_of_smoothing_is_its_suppression(alpha):
    logits, label = draw(6)
    gradient = ops.smoothed_cross_entropy_gradient(logits, label, alpha)
    value = ops.extra_gradient_on_max(gradient, logits, label)
    np.testing.assert_allclose(value, ops.max_logit_suppression(logits, label, alpha), atol=1e-15)


def mean_by_autodiff(loss, logits, eta):
    """Σ_y η_y ∂(L(y) − L_CE(y))/∂v_max, with every term from automatic differentiation of the loss."""
    n, k = logits.shape

    def extra(v, label):
        return loss(v, label) - cross_entropy(v, label)

    gradient = autodiff(extra, np.repeat(logits, k, axis=0), np.tile(np.arange(k), n)).reshape(n, k, k)
    return (eta * gradient[np.arange(n), :, logits.argmax(axis=-1)]).sum(axis=-1)


def closed_means(logits, eta, prior):
    """name → (loss, its gradient, the conditional mean in closed form)."""
    k, rows, top = logits.shape[-1], np.arange(len(logits)), logits.argmax(axis=-1)
    p = scipy.special.softmax(logits, axis=-1)
    eta_top, p_top, prior_top = eta[rows, top], p[rows, top], prior[top]
    factor = focal_factor(p, 2.0) - 1
    gaps = logits.max(axis=-1, keepdims=True) - logits
    entropy = scipy.special.entr(p).sum(axis=-1)

    def mixed_target(y, xp):  # the mean over y′ is taken in the target
        return 0.7 * (xp.arange(k) == y[..., None]) + 0.3 * xp.asarray(prior)

    return {
        "smoothed_cross_entropy": (
            functools.partial(smoothed_cross_entropy, alpha=0.2),
            functools.partial(ops.smoothed_cross_entropy_gradient, alpha=0.2),
            0.2 * (eta_top - 1 / k),
        ),
        "mixing": (
            lambda v, y: losses.soft_cross_entropy(v, mixed_target(y, jnp)),
            lambda v, y: ops.soft_cross_entropy_gradient(v, mixed_target(y, np)),
            0.3 * (eta_top - prior_top),
        ),
        "focal_loss": (
            functools.partial(losses.focal_loss, gamma=2.0),
            functools.partial(ops.focal_loss_gradient, gamma=2.0),
            p_top * (eta * factor).sum(axis=-1) - eta_top * factor[rows, top],
        ),
        "max_suppression": (
            functools.partial(losses.max_suppression, alpha=0.2),
            functools.partial(ops.max_suppression_gradient, alpha=0.2),
            np.full(len(logits), 0.2 * (1 - 1 / k)),
        ),
        "confidence_penalty": (
            functools.partial(losses.confidence_penalty, beta=0.2),
            functools.partial(ops.confidence_penalty_gradient, beta=0.2),
            0.2 * p_top * (np.log(p_top) + entropy),
        ),
        "margin_label_smoothing": (
            functools.partial(losses.margin_label_smoothing, margin=1.5, weight=0.1),
            functools.partial(ops.margin_label_smoothing_gradient, margin=1.5, weight=0.1),
            0.1 * (gaps > 1.5).sum(axis=-1),
        ),
    }


MEANS = (
    *("smoothed_cross_entropy", "mixing", "focal_loss", "max_suppression", "confidence_penalty"),
    "margin_label_smoothing",
)


@pytest.mark.parametrize("name", MEANS)
def test_conditional_means_are_sums_over_the_labels(name):
    rng = np.random.default_rng(3)
    logits, eta, prior = (
        rng.normal(size=(30, 6), scale=2),
        rng.dirichlet(np.full(6, 0.5), 30),
        rng.dirichlet(np.ones(6)),
    )
    loss, gradient, closed = closed_means(logits, eta, prior)[name]
    brute = mean_by_autodiff(loss, logits, eta)
    np.testing.assert_allclose(ops.expected_extra_gradient_on_max(gradient, logits, eta), brute, atol=5e-15)
    np.testing.assert_allclose(closed, brute, atol=5e-15)


def test_expected_suppression_is_the_conditional_mean():
    rng = np.random.default_rng(4)
    logits, eta = rng.normal(size=(30, 6)), rng.dirichlet(np.ones(6), 30)
    error = 1 - eta[np.arange(30), logits.argmax(axis=-1)]
    smoothed = functools.partial(ops.smoothed_cross_entropy_gradient, alpha=0.4)
    mean = ops.expected_extra_gradient_on_max(smoothed, logits, eta)
    np.testing.assert_allclose(mean, ops.expected_suppression(error, 0.4, 6), atol=1e-15)


def test_mixing_with_a_uniform_second_label_is_smoothing_in_the_mean():
    logits, label = draw(6)
    mixed = [ops.mixed_cross_entropy_gradient(logits, label, np.full(60, other), 0.7) for other in range(6)]
    np.testing.assert_allclose(
        np.mean(mixed, axis=0), ops.smoothed_cross_entropy_gradient(logits, label, 0.3), atol=1e-15
    )


def test_conditional_mean_compiles():
    logits, eta = jnp.array([[2.0, 0.0, 1.0]]), jnp.array([[0.5, 0.25, 0.25]])
    focal = functools.partial(ops.focal_loss_gradient, gamma=2.0)
    value = jax.jit(functools.partial(ops.expected_extra_gradient_on_max, focal))(logits, eta)
    expected = ops.expected_extra_gradient_on_max(focal, np.asarray(logits), np.asarray(eta))
    np.testing.assert_allclose(value, expected, rtol=1e-5)


# The score under a shift of the logits


@pytest.mark.parametrize("p", [1, 2, 3, 8])
def test_shift_derivative_is_autodiff_and_finite_differences(p):
    logits, _ = draw(6, seed=1)
    logits = logits[logits.max(axis=-1) > 0.05]
    value = ops.log_score_shift_derivative(logits, p)
    with jax.enable_x64(True):

        def log_score(c, v, center):
            return jnp.log(ops.max_logit_pnorm(v + c, p, center=center))

        slope = jax.jit(jax.vmap(jax.grad(log_score), (None, 0, None)), static_argnums=2)
        np.testing.assert_allclose(value, slope(0.0, jnp.asarray(logits), False), rtol=1e-11, atol=1e-13)
        np.testing.assert_allclose(slope(0.0, jnp.asarray(logits), True), 0, atol=1e-12)
    step = 1e-6
    scores = [np.log(ops.max_logit_pnorm(logits + c, p, center=False)) for c in (step, -step)]
    np.testing.assert_allclose(value, (scores[0] - scores[1]) / (2 * step), rtol=1e-6, atol=1e-6)
    centred = [ops.max_logit_pnorm(logits + c, p) for c in (1.0, -1.0)]
    np.testing.assert_allclose(*centred, rtol=1e-12)


def test_shift_derivative_by_its_formula():
    v, p = np.array([2.0, 1.0, 0.0, -3.0]), 3
    expected = 1 / 2 - (2**2 + 1**2 - 3**2) / (2**3 + 1**3 + 3**3)
    np.testing.assert_allclose(ops.log_score_shift_derivative(v, p), expected, rtol=1e-14)
    np.testing.assert_allclose(ops.log_score_shift_derivative(8 * v, p), expected / 8, rtol=1e-14)
    np.testing.assert_allclose(ops.log_score_shift_derivative(1e200 * v, p), 1e-200 * expected, rtol=1e-13)
    assert ops.log_score_shift_derivative(np.array([3.0, 2.0, 1.0]), 2) < 0  # all positive: a shift evens them out


@pytest.mark.parametrize("xp", [np, jnp])
def test_shift_derivative_is_nan_where_the_score_has_no_logarithm(xp):
    value = ops.log_score_shift_derivative(
        xp.asarray([[-1.0, -2.0, -3.0], [0.0, -1.0, -1.0], [0.0, 0, 0], [1.0, 0, 0]]), 2
    )
    np.testing.assert_array_equal(np.isnan(value), [True, True, True, False])
    np.testing.assert_allclose(value[3], 0, atol=1e-15)


def test_shift_derivative_of_a_sequence_of_p_and_its_refusals():
    logits, _ = draw(5)
    values = ops.log_score_shift_derivative(logits, (1, 4, 2))
    for row, p in zip(values, (1, 4, 2), strict=True):
        np.testing.assert_array_equal(row, ops.log_score_shift_derivative(logits, p))
    with pytest.raises(ValueError, match="needs at least 3"):
        ops.log_score_shift_derivative(logits[:, :2], 2)
    with pytest.raises(ValueError, match="integers ≥ 1"):
        ops.log_score_shift_derivative(logits, 0)
