"""α-entmax: maps from logits to probabilities that may be exactly 0, and their losses, with exact derivatives.

With u = (α − 1)v: p_k = [u_k − τ]₊^{1/(α−1)}, τ such that Σ_k p_k = 1. α = 1 is the softmax (the limit), α = 2 sparsemax, the
Euclidean projection of v onto the simplex. α is code, not data. p_max is exactly 1 as soon as the logit margin is 1/(α − 1): to rank, use
`sc_jax.ops.entmax_confidence`.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from sc_jax.ops.entmax_score import HALVINGS, check_alpha
from sc_jax.ops.losses import _at, _wide, smoothed_cross_entropy


def _below_top(v: jax.Array, alpha: float) -> jax.Array:
    """u − max u of u = (α − 1)v, at least −2: below −1 a class has probability 0, however far."""
    return jnp.maximum((alpha - 1) * (v - jnp.max(v, axis=-1, keepdims=True)), -2)


@functools.partial(jax.jit, static_argnums=1)  # a loop outside of a program is compiled at each call
def _threshold(u: jax.Array, alpha: float) -> jax.Array:
    """τ in [−1, 0), of u [..., k] with maximum 0: by sorting for α = 1.5 and 2, by bisection for others; [..., 1]."""
    if alpha not in (1.5, 2):
        return _by_bisection(u, 1 / (alpha - 1))
    ordered = jnp.flip(jnp.sort(u, axis=-1), axis=-1)
    rank = jnp.cumsum(jnp.ones_like(u), axis=-1)
    mean = jnp.cumsum(ordered, axis=-1) / rank
    if alpha == 2:
        candidate = mean - 1 / rank
        inside = ordered > candidate
    else:
        spread = jnp.cumsum(ordered**2, axis=-1) - rank * mean**2
        candidate = mean - jnp.sqrt(jax.nn.relu((1 - spread) / rank))
        inside = ordered >= candidate
    support = jnp.sum(inside, axis=-1, keepdims=True)
    return jnp.take_along_axis(candidate, support - 1, axis=-1)


def _by_bisection(u: jax.Array, power: float) -> jax.Array:
    def step(i: int, low: jax.Array) -> jax.Array:
        middle = low + 2.0**-i
        return jnp.where(jnp.sum(jax.nn.relu(u - middle) ** power, axis=-1, keepdims=True) >= 1, middle, low)

    return jax.lax.fori_loop(1, HALVINGS + 1, step, jnp.full_like(u[..., :1], -1))


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def entmax(logits: jax.Array, alpha: float) -> jax.Array:
    """Probabilities p_k = [(α − 1)v_k − τ]₊^{1/(α−1)}: argmax_p p·v + H_α(p) over the simplex, H_α Tsallis' entropy.

    H_α(p) = Σ_k (p_k − p_k^α)/(α(α − 1)). The Jacobian is Diag(s) − s sᵀ/Σs with s_k = p_k^{2−α} where p_k > 0, else 0.

    Args:
      logits: [..., K], of which some may be −inf.
      alpha: ≥ 1; 1 is the softmax, 2 `sparsemax`.

    Returns:
      [..., K], each ≥ 0, with the sum 1.

    Raises:
      ValueError: alpha below 1.

    Source: Peters, Niculae & Martins, "Sparse sequence-to-sequence models", ACL 2019 (α = 1.5 by sorting, others by
    bisection); Martins & Astudillo, ICML 2016 (α = 2).

    >>> [round(float(p), 3) for p in entmax(jnp.array([-1.0, 2.0, 1.9]), 1.5)]
    [0.0, 0.535, 0.465]
    """
    check_alpha(alpha)
    v = _wide(logits)
    if alpha == 1:
        return jax.nn.softmax(v, axis=-1)
    u = _below_top(v, alpha)
    p = jax.nn.relu(u - _threshold(u, alpha)) ** (1 / (alpha - 1))
    return p / jnp.sum(p, axis=-1, keepdims=True)


@entmax.defjvp
def _entmax_jvp(alpha: float, primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    p = entmax(primals[0], alpha)
    inside = p > 0
    s = jnp.where(inside, jnp.where(inside, p, 1) ** (2 - alpha), 0)
    change = jnp.where(inside, tangents[0].astype(p.dtype), 0)
    mean = jnp.sum(s * change, axis=-1, keepdims=True) / jnp.sum(s, axis=-1, keepdims=True)
    return p, s * (change - mean)


def sparsemax(logits: jax.Array) -> jax.Array:
    """The point of the simplex nearest to v: p = [v − τ]₊.

    Args:
      logits: [..., K].

    Returns:
      [..., K]; see `entmax`.

    Source: Martins & Astudillo, "From softmax to sparsemax", ICML 2016.

    >>> sparsemax(jnp.array([1.0, 0.5, -3.0])).tolist()  # of two classes (v₁ − v₂ + 1)/2
    [0.75, 0.25, 0.0]
    """
    return entmax(logits, 2.0)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def entmax_loss(logits: jax.Array, label: jax.Array, alpha: float) -> jax.Array:
    """The loss whose gradient is p − onehot(y), p = `entmax` of v: L = p·v + H_α(p) − v_y.

    L ≥ 0, convex in v, and exactly 0, with gradient 0, where v_y exceeds all others by 1/(α − 1). α = 1 is cross-entropy; α = 2 is
    −v_y + ½Σ_{p_k>0}(v_k² − τ²) + ½.

    Args:
      logits: [..., K]; label: int [...]; alpha: ≥ 1.

    Returns:
      [...], in the unit of the logits.

    Raises:
      ValueError: alpha below 1.

    Source: Blondel, Martins & Niculae, "Learning with Fenchel-Young losses", JMLR 2020; Martins & Astudillo, ICML 2016
    (α = 2).

    >>> [round(float(entmax_loss(jnp.array([gap, 0.0]), jnp.asarray(0), 2.0)), 5) for gap in (0.9, 1.0)]
    [0.0025, 0.0]
    """
    check_alpha(alpha)
    if alpha == 1:
        return smoothed_cross_entropy(logits, label, 0.0)
    v = _wide(logits)
    p = entmax(v, alpha)
    gained = jnp.sum(jnp.where(p > 0, p * (v - _at(v, label)[..., None]), 0), axis=-1)
    return gained + jnp.sum(p - p**alpha, axis=-1) / (alpha * (alpha - 1))


@entmax_loss.defjvp
def _entmax_loss_jvp(
    alpha: float, primals: tuple[jax.Array, jax.Array], tangents: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    logits, label = primals
    value = entmax_loss(logits, label, alpha)
    p = entmax(logits, alpha)
    gradient = p - jax.nn.one_hot(label, p.shape[-1], dtype=p.dtype)
    return value, jnp.sum(jnp.where(gradient != 0, gradient * tangents[0], 0), axis=-1)
