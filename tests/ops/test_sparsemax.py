"""α-entmax and its losses against their definitions: the projection, optimality, derivatives, limiting cases."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.special

from sc_jax.ops import losses
from sc_jax.ops.sparsemax import entmax, entmax_loss, sparsemax

ALPHAS = (1.0, 1.2, 1.5, 2.0, 3.0)
each_alpha = pytest.mark.parametrize("alpha", ALPHAS)


@pytest.fixture(scope="module")
def logits():
    return np.random.default_rng(0).normal(size=(30, 6), scale=1.5)


def tsallis(p, alpha):
    if alpha == 1:
        return scipy.special.entr(p).sum(axis=-1)
    return (p - p**alpha).sum(axis=-1) / (alpha * (alpha - 1))


def by_root(row, alpha):
    """The definition, τ by Brent's method."""
    if alpha == 1:
        return scipy.special.softmax(row)
    u = (alpha - 1) * row
    of = lambda tau: np.maximum(u - tau, 0) ** (1 / (alpha - 1))  # noqa: E731
    tau = scipy.optimize.brentq(lambda tau: of(tau).sum() - 1, u.max() - 1, u.max(), xtol=1e-15)
    return of(tau)


@each_alpha
def test_entmax_is_its_definition(logits, alpha):
    with jax.enable_x64(True):
        p = entmax(jnp.asarray(logits), alpha)
    np.testing.assert_allclose(p, [by_root(row, alpha) for row in logits], atol=1e-12)
    np.testing.assert_allclose(entmax(jnp.asarray(logits, jnp.float32), alpha), p, atol=3e-6)


def test_sparsemax_is_the_nearest_point_of_the_simplex(logits):
    p = np.asarray(sparsemax(jnp.asarray(logits)))
    np.testing.assert_allclose(p.sum(axis=-1), 1, rtol=1e-6)
    assert (p >= 0).all()
    other = np.random.default_rng(1).dirichlet(np.ones(6), size=2000)
    nearest = ((p - logits) ** 2).sum(axis=-1)
    assert (nearest[:, None] <= ((other - logits[:, None]) ** 2).sum(axis=-1) + 1e-6).all()
    np.testing.assert_allclose(sparsemax(jnp.asarray(other)), other, atol=1e-6)  # what lies on it stays


@each_alpha
def test_entmax_maximises_what_it_is_said_to(logits, alpha):
    p = np.asarray(entmax(jnp.asarray(logits), alpha), np.float64)
    best = (p * logits).sum(axis=-1) + tsallis(p, alpha)
    other = np.random.default_rng(1).dirichlet(np.full(6, 0.5), size=2000)
    assert (best[:, None] >= logits @ other.T + tsallis(other, alpha) - 1e-5).all()


@each_alpha
def test_entmax_knows_no_shift_and_follows_the_classes(logits, alpha):
    v = jnp.asarray(logits, jnp.float32)
    p = entmax(v, alpha)
    np.testing.assert_allclose(entmax(v + 300.0, alpha), p, atol=1e-4)
    order = np.random.default_rng(0).permutation(6)
    np.testing.assert_allclose(entmax(v[:, order], alpha), p[:, order], atol=1e-6)


def test_two_classes_have_a_closed_form():
    gap = np.linspace(-2, 2, 41)
    p = sparsemax(jnp.stack([jnp.asarray(gap), jnp.zeros(41)], axis=-1))[:, 0]
    np.testing.assert_allclose(p, np.clip((gap + 1) / 2, 0, 1), atol=1e-6)


@pytest.mark.parametrize("alpha", [1.2, 1.5, 2.0, 3.0])
def test_impossible_classes_have_probability_0(alpha):
    row = jnp.array([0.3, -jnp.inf, 0.1, -jnp.inf])
    p = entmax(row, alpha)
    np.testing.assert_allclose(p[jnp.array([0, 2])], entmax(row[jnp.array([0, 2])], alpha), atol=1e-6)
    assert p[1] == p[3] == 0
    value, gradient = jax.value_and_grad(lambda v: entmax_loss(v, jnp.asarray(2), alpha))(row)
    assert jnp.isfinite(value)
    np.testing.assert_allclose(gradient, p - jnp.array([0, 0, 1, 0]), atol=1e-6)


@each_alpha
def test_the_jacobian_is_that_of_differences_and_keeps_the_sum(logits, alpha):
    step = 1e-6
    with jax.enable_x64(True):
        rows = jnp.asarray(logits)
        of = jax.jit(jax.vmap(lambda v: entmax(v, alpha)))
        by_hand = [(of(rows + step * e[None]) - of(rows - step * e[None])) / (2 * step) for e in jnp.eye(6)]
        jacobian = jax.jit(jax.vmap(jax.jacrev(lambda v: entmax(v, alpha))))(rows)
        np.testing.assert_allclose(jacobian, np.stack(by_hand, axis=-1), atol=1e-6)
        np.testing.assert_allclose(jacobian.sum(axis=-1), 0, atol=1e-12)
        forward = jax.jit(jax.vmap(jax.jacfwd(lambda v: entmax(v, alpha))))(rows)
        np.testing.assert_allclose(forward, jacobian, atol=1e-12)


# The loss


@each_alpha
def test_loss_is_its_definition_and_its_gradient_that_of_differences(logits, alpha):
    label = np.arange(30) % 6
    with jax.enable_x64(True):
        v, y = jnp.asarray(logits), jnp.asarray(label)
        value = entmax_loss(v, y, alpha)
        p = np.asarray(entmax(v, alpha))
        expected = (p * logits).sum(axis=-1) + tsallis(p, alpha) - logits[np.arange(30), label]
        np.testing.assert_allclose(value, expected, atol=1e-12)
        gradient = jax.grad(lambda v: entmax_loss(v, y, alpha).sum())(v)
        np.testing.assert_allclose(gradient, p - np.eye(6)[label], atol=1e-12)
        step, of = 1e-6, jax.jit(lambda v: entmax_loss(v, y, alpha))
        for k in range(6):
            shift = step * jnp.eye(6)[k : k + 1]
            by_hand = (of(v + shift) - of(v - shift)) / (2 * step)
            np.testing.assert_allclose(gradient[:, k], by_hand, atol=1e-7)


def test_loss_of_sparsemax_is_the_formula_of_its_paper(logits):
    label = np.arange(30) % 6
    p = np.asarray(sparsemax(jnp.asarray(logits)), np.float64)
    tau = (logits - p).max(axis=-1, where=p > 0, initial=-np.inf)
    inside = np.where(p > 0, logits**2 - tau[:, None] ** 2, 0).sum(axis=-1)
    expected = -logits[np.arange(30), label] + inside / 2 + 0.5
    np.testing.assert_allclose(entmax_loss(jnp.asarray(logits), jnp.asarray(label), 2.0), expected, atol=1e-5)


def test_at_alpha_1_it_is_cross_entropy(logits):
    v, y = jnp.asarray(logits, jnp.float32), jnp.arange(30) % 6
    np.testing.assert_array_equal(entmax_loss(v, y, 1.0), losses.smoothed_cross_entropy(v, y, 0.0))
    with jax.enable_x64(True):
        near = entmax_loss(jnp.asarray(logits), y, 1.001)
    np.testing.assert_allclose(near, losses.smoothed_cross_entropy(v, y, 0.0), rtol=5e-3, atol=2e-3)


@pytest.mark.parametrize("alpha", [1.2, 1.5, 2.0, 3.0])
def test_beyond_its_margin_the_loss_is_0(alpha):
    margin = 1 / (alpha - 1)
    for gap, zero in ((0.9 * margin, False), (1.0001 * margin, True), (1e4, True)):
        row = jnp.array([gap, 0.0, -1.0])
        value, gradient = jax.value_and_grad(lambda v: entmax_loss(v, jnp.asarray(0), alpha))(row)
        assert (float(value) == 0) == zero
        assert bool((gradient == 0).all()) == zero


def test_a_gap_of_nine_tenths():
    np.testing.assert_allclose(entmax_loss(jnp.array([0.9, 0, 0]), jnp.asarray(0), 2.0), 1 / 300, rtol=1e-4)
    np.testing.assert_allclose(entmax_loss(jnp.array([0.9, 0.0]), jnp.asarray(0), 2.0), 1 / 400, rtol=1e-4)


@each_alpha
def test_loss_is_not_negative_and_convex_along_segments(logits, alpha):
    a, b, y = jnp.asarray(logits), jnp.asarray(logits[::-1].copy()), jnp.arange(30) % 6
    for share in (0.25, 0.5, 0.9):
        between = entmax_loss(share * a + (1 - share) * b, y, alpha)
        assert (between <= share * entmax_loss(a, y, alpha) + (1 - share) * entmax_loss(b, y, alpha) + 1e-5).all()
    assert (entmax_loss(a, y, alpha) >= -1e-6).all()


@each_alpha
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
def test_far_logits_have_finite_losses_and_gradients(alpha, dtype):
    rows = jnp.asarray([[1e4, -1e4, 0.0], [0.0, 0.0, 0.0], [1e4, 1e4, -1e4], [1e-30, 0.0, 1.0]], dtype)
    for label in range(3):
        of = lambda v, label=label: entmax_loss(v, jnp.full(4, label), alpha).sum()  # noqa: E731
        value, gradient = jax.value_and_grad(of)(rows)
        assert value.dtype == jnp.float32
        assert jnp.isfinite(value)
        assert jnp.isfinite(gradient.astype(jnp.float32)).all()


@pytest.mark.parametrize("alpha", [0.5, float("nan"), float("inf")])
def test_other_alphas_are_refused(alpha):
    for of in (lambda: entmax(jnp.zeros(3), alpha), lambda: entmax_loss(jnp.zeros(3), jnp.asarray(0), alpha)):
        with pytest.raises(ValueError, match="alpha must be ≥ 1"):
            of()


def test_it_works_under_jit_and_vmap(logits):
    v, y = jnp.asarray(logits), jnp.arange(30) % 6
    for alpha in (1.3, 1.5, 2.0):
        mapped = jax.jit(jax.vmap(lambda v, y, alpha=alpha: entmax_loss(v, y, alpha)))(v, y)
        np.testing.assert_allclose(mapped, entmax_loss(v, y, alpha), atol=1e-5)
