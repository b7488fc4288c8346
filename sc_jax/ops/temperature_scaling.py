"""Temperature scaling: the one number by which logits are divided so that their log loss is least."""

from __future__ import annotations

import math

import numpy as np
from scipy.optimize import minimize_scalar

LARGEST = 100.0
"""Temperatures are sought between 1/LARGEST and LARGEST."""


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
    v = np.asarray(logits, np.float64)
    v = v - v.max(axis=-1, keepdims=True)
    own = v[np.arange(len(v)), label]

    def log_loss(log_temperature: float) -> float:
        scale = math.exp(-log_temperature)
        return float(np.average(np.log(np.exp(scale * v).sum(axis=-1)) - scale * own, weights=weight))

    end = math.log(LARGEST)
    found = minimize_scalar(log_loss, bounds=(-end, end), method="bounded", options={"xatol": 1e-7})
    return (
        1 / LARGEST if log_loss(-end) <= found.fun else math.exp(found.x)
    )  # where the loss has rounded to 0 it is flat
