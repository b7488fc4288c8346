"""Chow's rule, the best that any classifier with a reject option can do, where P(y | x) is known."""

from __future__ import annotations

import math

from array_api_compat import array_namespace

from sc_jax.ops.ranking import Array
from sc_jax.ops.scores import _floating, log_softmax, msp


def chow_accepts(log_posterior: Array, cost: float) -> Array:
    """Accept iff max_k P(k | x) ≥ 1 − c, and answer the most probable class.

    Of all rules it has the least mean cost of 1 for a wrong answer and c for abstaining. Hence of all rules that accept as much
    it has the least risk, and no score ranks better than max_k P(k | x), which is `msp` of the log-posterior. Where max_k P = 1 − c either is best.

    Args:
      log_posterior: ln P(k | x) up to a constant of each x, [..., k]; cost: c in [0, 1].

    Returns:
      bool [...].

    Raises:
      ValueError: the cost lies outside [0, 1].

    Source: Chow, "On optimum recognition error and reject tradeoff", IEEE Transactions on Information Theory, 1970.

    >>> import numpy as np
    >>> chow_accepts(np.log([[0.7, 0.3], [0.95, 0.05]]), 0.1).tolist()
    [False, True]
    """
    if not 0 <= cost <= 1:
        raise ValueError(f"cost must lie in [0, 1]; it is {cost}")
    # p ≥ 1 − c as log-odds ≥ ln((1 − c)/c), which keeps its digits near 1.
    needed = -math.inf if cost == 1 else math.inf if cost == 0 else math.log1p(-cost) - math.log(cost)
    return msp(log_posterior) >= needed


def gaussian_log_posterior(x: Array, means: Array, scale: float, prior: Array | None = None) -> Array:
    """ln P(k | x) of classes that are normal around means, all with the covariance σ²·I.

    Args:
      x: [n, d]; means: [k, d]; scale: σ > 0; prior: [k], positive; equal without.

    Returns:
      [n, k], normalised.

    Source: Bayes' rule.

    >>> import numpy as np
    >>> gaussian_log_posterior(np.zeros((1, 2)), np.array([[1.0, 0.0], [-1.0, 0.0]]), 1.0).round(4).tolist()  # ln ½
    [[-0.6931, -0.6931]]
    """
    x, xp = _floating(x)
    means, _ = _floating(means)
    square = xp.sum((x[:, None, :] - means[None, :, :]) ** 2, axis=-1)
    logits = -square / (2 * scale**2)
    if prior is not None:
        weight = _floating(prior)[0]
        logits = logits + array_namespace(weight).log(weight)[None, :]
    return log_softmax(logits)
