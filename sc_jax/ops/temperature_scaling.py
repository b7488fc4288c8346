"""Temperature scaling: the one number by which logits are divided so that their log loss is least."""

from __future__ import annotations

import math

import numpy as np

from sc_jax.ops.scores import rows_of_blocks

LARGEST = 100.0
"""Temperatures are sought between 1/LARGEST and LARGEST."""

_MANY = 10_000


def fit_temperature(logits: np.ndarray, label: np.ndarray, *, weight: np.ndarray | None = None) -> float:
    """T = argmin of the log loss of v/T: mean over examples of ln Σ_k exp(v_k/T) − v_y/T.

    As a function of 1/T it is convex, so there is one minimum. On separable data it lies at T → 0, and the smallest T is returned.

    Args:
      logits: [n, k], finite; label: int [n]; weight: [n] of the examples, or None.

    Returns:
      T, from 1/`LARGEST` to `LARGEST`.

    Source: Guo et al., "On calibration of modern neural networks", ICML 2017.

    >>> logits = np.log(np.array([[0.9, 0.1]] * 10))
    >>> round(fit_temperature(3 * logits, np.array([0] * 9 + [1])), 4)  # right nine times out of ten, as 0.9 says
    3.0
    """
    end = math.log(LARGEST)
    if _slope(logits, label, weight, LARGEST)[0] <= 0:  # where the loss has rounded to 0 it is flat
        return 1 / LARGEST
    # Newton's method for the slope by s = 1/T, in ln s; a step that leaves the bracket is a bisection instead.
    low, high, at = -end, end, 0.0
    if len(logits) > _MANY:  # a part of them says nearly where
        some = slice(None, None, -(-len(logits) // (_MANY // 2)))
        at = -math.log(fit_temperature(logits[some], label[some], weight=None if weight is None else weight[some]))
    for _ in range(100):
        slope, curvature = _slope(logits, label, weight, math.exp(at))
        low, high = (low, at) if slope > 0 else (at, high)
        step = -slope / (math.exp(at) * curvature) if curvature > 0 else math.inf
        nearer = at + step if low <= at + step <= high else (low + high) / 2
        if abs(nearer - at) < 1e-10:
            break
        at = nearer
    return math.exp(-nearer)


def _slope(logits: np.ndarray, label: np.ndarray, weight: np.ndarray | None, scale: float) -> tuple[float, float]:
    """First and second derivative by s of the summed log loss of s·v: Σ_i w_i (E_p v − v_y) and Σ_i w_i Var_p v, p = softmax(s v)."""
    slope = curvature = 0.0
    for at in rows_of_blocks(logits):
        v = logits[at].astype(np.float64)
        v -= v.max(axis=-1, keepdims=True)
        own = v[np.arange(len(v)), label[at]]
        p = np.exp(scale * v)
        total = p.sum(axis=-1)
        p *= v
        mean = p.sum(axis=-1) / total
        variance = np.einsum("nk,nk->n", p, v) / total - mean**2
        w = np.ones(len(v)) if weight is None else weight[at]
        slope, curvature = slope + float(w @ (mean - own)), curvature + float(w @ variance)
    return slope, curvature
