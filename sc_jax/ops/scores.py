"""Confidence scores from logits: higher = more confident; none saturates.

On the host every score is computed in float64 whatever the dtype of the logits; on devices in at least float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from array_api_compat import array_namespace, is_numpy_namespace

from sc_jax.ops.ranking import Array


def _working(logits: Array) -> tuple[Array, Any]:
    xp = array_namespace(logits)
    if is_numpy_namespace(xp):
        return np.asarray(logits, np.float64), xp
    return logits.astype(xp.result_type(logits.dtype, xp.float32)), xp


def one_hot(index: Array, k: int) -> Array:
    """Whether each class is the one of `index`: int [...] → bool [..., k]."""
    xp = array_namespace(index)
    return xp.reshape(xp.arange(k), (1,) * index.ndim + (k,)) == index[..., None]


def predicted_class(logits: Array) -> Array:
    """argmax_k v_k; ties go to the lowest class index.

    Args:
      logits: [..., k].

    Returns:
      int [...].
    """
    return array_namespace(logits).argmax(logits, axis=-1)


def msp(logits: Array) -> Array:
    """Maximum softmax probability, as its log-odds ln(p_max / (1 − p_max)) = −logsumexp_{k≠ŷ}(v_k − v_ŷ).

    The same ranking as p_max, finite where the softmax rounds to 1; two classes of equal logits give 0.

    Args:
      logits: [..., k], k ≥ 2; log-probabilities serve as well, with −inf for a probability of 0.

    Returns:
      [...]; +inf where all other probabilities are exactly 0.

    Source: Hendrycks & Gimpel, ICLR 2017 (maximum softmax probability); the log-odds form is ours.

    >>> import numpy as np
    >>> p = 1 / (1 + np.exp(-msp(np.log(np.array([0.7, 0.2, 0.1])))))
    >>> round(float(p), 12)
    0.7
    """
    v, xp = _working(logits)
    winner = one_hot(predicted_class(v), v.shape[-1])
    others = xp.where(winner, -xp.inf, v - xp.max(v, axis=-1, keepdims=True))
    second = xp.max(others, axis=-1)
    alone = xp.isinf(second)
    anchor = xp.where(alone, 0.0, second)
    rest = xp.sum(xp.exp(others - anchor[..., None]), axis=-1)
    return xp.where(alone, xp.inf, -(anchor + xp.log(xp.where(alone, 1.0, rest))))


def max_logit(logits: Array) -> Array:
    """max_k v_k. Needs true logits: log-probabilities have lost the shift it lives on.

    Args:
      logits: [..., k].

    Returns:
      [...], in the unit of the logits.

    Source: Hendrycks et al., "Scaling out-of-distribution detection for real-world settings", ICML 2022.
    """
    v, xp = _working(logits)
    return xp.max(v, axis=-1)


def max_logit_pnorm(logits: Array, p: int | Sequence[int], *, center: bool = True) -> Array:
    """Logit normalisation: max_k v'_k / ‖v'‖_p with v' = v − mean_k v_k (or v' = v without centring).

    Centred, it is invariant to v → a·v + b for a > 0, so temperature plays no part in it.

    Args:
      logits: [..., k], k ≥ 3.
      p: an integer ≥ 1, or a sequence of them.
      center: subtract the mean over classes first.

    Returns:
      [...], or [len(p), ...] for a sequence; 0 where v' is 0: centred, where all logits are equal.

    Raises:
      ValueError: k < 3 (the centred score would be the constant 2^(−1/p)), or p is not an integer ≥ 1.

    Source: Xia, Laurent, Franchi & Bouganis, ICLR 2025 (logit normalisation); Cattelan & Silva, UAI 2024
    (MaxLogit-pNorm). Centring is explicit here because the published code tunes with it and reports without.
    """
    v, xp = _working(logits)
    single = np.ndim(p) == 0
    grid = [p] if single else list(p)
    if v.shape[-1] < 3:
        raise ValueError(f"max_logit_pnorm is not defined for k = {v.shape[-1]} classes: it needs at least 3")
    if not grid or any(not isinstance(q, (int, np.integer)) or q < 1 for q in grid):
        raise ValueError(f"p must be integers ≥ 1; it is {p}")
    if center:
        v = v - xp.max(v, axis=-1, keepdims=True)  # equal logits become 0 exactly
        v = v - xp.mean(v, axis=-1, keepdims=True)
    largest = xp.max(xp.abs(v), axis=-1)
    flat = largest == 0
    signed = v / xp.where(flat, 1.0, largest)[..., None]
    ratio, top = xp.abs(signed), xp.max(signed, axis=-1)  # in [0, 1]: no power overflows
    values, power = {}, xp.ones_like(ratio)
    for q in range(1, max(grid) + 1):
        power = power * ratio
        if q in grid:
            total = xp.sum(power, axis=-1)
            if q == 1 and center:
                # The centred logits sum to 0: ‖v'‖₁ is twice the sum of the positive ones. Where that is the max alone the
                # score is ½, a true tie, which the sum of all magnitudes would break by rounding.
                total = 2 * xp.sum(xp.where(signed > 0, ratio, 0.0), axis=-1)
            norm = total if q == 1 else total ** (1 / q)
            values[q] = xp.where(flat, 0.0, top / xp.where(flat, 1.0, norm))
    return values[p] if single else xp.stack([values[q] for q in grid])


def ensemble_log_probabilities(logits: Array) -> Array:
    """ln of the mean over members of their softmax probabilities (a deep ensemble's prediction).

    Args:
      logits: [m, n, k].

    Returns:
      Log-probabilities [n, k].

    Source: Lakshminarayanan, Pritzel & Blundell, NeurIPS 2017.
    """
    v, xp = _working(logits)
    return _logsumexp(log_softmax(logits), 0, xp) - xp.log(xp.asarray(float(v.shape[0]), dtype=v.dtype))


def _logsumexp(v: Array, axis: int, xp: Any) -> Array:
    largest = xp.max(v, axis=axis, keepdims=True)
    anchor = xp.where(xp.isinf(largest), 0.0, largest)
    total = xp.sum(xp.exp(v - anchor), axis=axis, keepdims=True)
    empty = total == 0
    value = anchor + xp.log(xp.where(empty, 1.0, total))
    return xp.squeeze(xp.where(empty, -xp.inf, value), axis=axis)


def log_softmax(logits: Array) -> Array:
    """ln softmax(v) = v − logsumexp(v) over the last axis, in float64 on the host; [..., k] → [..., k]."""
    v, xp = _working(logits)
    v = v - xp.max(v, axis=-1, keepdims=True)  # first, so that ln p near 0 keeps its digits
    return v - _logsumexp(v, -1, xp)[..., None]
