"""Confidence scores that shape the features before the last layer and compute its logits anew, and the last layer's gradient.

Features are those of a ReLU or of something like it; logits are x W + b. As elsewhere, higher = more like the training
data, NumPy is computed in float64, JAX in at least float32.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from array_api_compat import is_numpy_namespace

from sc_jax.ops.feature_scores import _features, _head, _matmul
from sc_jax.ops.ranking import Array
from sc_jax.ops.scores import energy, log_softmax

SHAPINGS = ("prune", "binarise", "scale")
"""What `ash` can do with the activations it keeps: ASH-P, ASH-B and ASH-S."""


class React(NamedTuple):
    """What `fit_react` found.

    Attributes:
      threshold: c, in the unit of the features.
    """

    threshold: Array


def fit_react(features: Array, percentile: float = 90.0) -> React:
    """The level c that `percentile` per cent of all activations of all examples lie below, interpolated linearly.

    Args:
      features: [n, d], of in-distribution examples.
      percentile: in [0, 100]; 100 is the largest activation there is.

    Returns:
      `React`.

    Raises:
      ValueError: the features are not [n, d], percentile is outside [0, 100], or (host) a feature is not finite.

    Source: Sun, Guo & Li, "ReAct: out-of-distribution detection with rectified activations", NeurIPS 2021, with its 90.

    >>> float(fit_react(np.array([[0.0, 1.0], [2.0, 4.0]]), 50).threshold)
    1.5
    """
    x, xp = _features(features)
    _check_percentile(percentile)
    ordered = xp.sort(xp.reshape(x, (-1,)))
    place = percentile / 100 * (ordered.shape[0] - 1)
    below = min(int(place), ordered.shape[0] - 2) if ordered.shape[0] > 1 else 0
    above = min(below + 1, ordered.shape[0] - 1)
    part = place - below
    return React(ordered[below] * (1 - part) + ordered[above] * part)


def react(features: Array, head_kernel: Array, head_bias: Array, state: React) -> Array:
    """logsumexp of the logits of rectified activations: energy(min(x, c) W + b).

    Args:
      features: [n, d]; head_kernel: W [d, k] and head_bias: b [k] of the last layer; state: of `fit_react`.

    Returns:
      [n], in the unit of the logits; with c above all features it is `energy` of the logits.

    Raises:
      ValueError: shapes disagree, or (host) a value is not finite.

    Source: Sun, Guo & Li, NeurIPS 2021 (with the energy score).

    >>> x, kernel, bias = np.array([[1.0, 9.0]]), np.array([[1.0], [1.0]]), np.zeros(1)
    >>> float(react(x, kernel, bias, React(np.array(3.0)))[0])
    4.0
    """
    x, xp = _features(features, head_kernel.shape[0])
    threshold = xp.asarray(state.threshold, dtype=x.dtype)
    return energy(_logits(xp.where(x > threshold, threshold, x), head_kernel, head_bias, xp))


def ash(features: Array, head_kernel: Array, head_bias: Array, percentile: float, shaping: str) -> Array:
    """Activation shaping: of each example's d activations all but the largest go to 0; energy of the logits of the rest.

    With t the (d − r)-th largest activation, r = ⌊d·percentile/100 + ½⌋, and kept = {j : x_j ≥ t}:

    - "prune" (ASH-P): x_j stays;
    - "binarise" (ASH-B): Σ_all x / |kept| for each that is kept and not 0;
    - "scale" (ASH-S): x_j · exp(Σ_all x / Σ_kept x).

    Activations that tie with t are all kept, so that the order of the features does not matter. An example whose features
    are all 0 stays as it is.

    Args:
      features: [n, d]; ≥ 0 unless `shaping` is "prune", as after a ReLU. head_kernel: W [d, k]; head_bias: b [k].
      percentile: in [0, 100), the share that is removed; 0 removes nothing.
      shaping: of `SHAPINGS`.

    Returns:
      [n], in the unit of the logits.

    Raises:
      ValueError: an unknown shaping, a percentile out of range or that leaves nothing, shapes that disagree, or (host) a
        value that is not finite, or negative where it must not be.

    Source: Djurisic, Bozanic, Ashok & Liu, "Extremely simple activation shaping for out-of-distribution detection", ICLR
    2023 (how the number of kept ones is rounded is from memory; keeping ties is ours).

    >>> x, kernel, bias = np.array([[1.0, 2.0, 3.0, 4.0]]), np.ones((4, 1)), np.zeros(1)
    >>> [float(ash(x, kernel, bias, 50, shaping)[0]) for shaping in ("prune", "binarise")]
    [7.0, 10.0]
    """
    if shaping not in SHAPINGS:
        raise ValueError(f"shaping must be one of {', '.join(SHAPINGS)}; it is {shaping!r}")
    x, xp = _features(features, head_kernel.shape[0])
    _check_percentile(percentile)
    d = x.shape[1]
    keep = d - int(d * percentile / 100 + 0.5)
    if keep < 1:
        raise ValueError(f"percentile {percentile} of {d} features leaves none; lower it")
    if shaping != "prune" and is_numpy_namespace(xp) and (x < 0).any():
        raise ValueError(f"{shaping!r} needs features ≥ 0, as after a ReLU")
    kept = x >= xp.sort(x, axis=-1)[:, d - keep, None]
    pruned = xp.where(kept, x, 0.0)
    if shaping != "prune":
        total = xp.sum(x, axis=-1, keepdims=True)
        if shaping == "binarise":
            alive = kept & (x != 0)
            count = xp.sum(xp.astype(alive, x.dtype), axis=-1, keepdims=True)
            pruned = xp.where(alive, total / xp.where(count > 0, count, 1.0), 0.0)
        else:
            left = xp.sum(pruned, axis=-1, keepdims=True)
            pruned = pruned * xp.exp(total / xp.where(left > 0, left, 1.0))
    return energy(_logits(pruned, head_kernel, head_bias, xp))


def gradnorm(features: Array, logits: Array, temperature: float = 1.0) -> Array:
    """‖∂ KL(u ‖ softmax(v/T)) / ∂W‖₁ over the kernel of the last layer, u uniform and v = x W + b.

    The gradient is the outer product of x and (softmax(v/T) − 1/k)/T, so its norm is
    (1/T) · ‖x‖₁ · Σ_k |softmax(v/T)_k − 1/k|. The bias is left out.

    Args:
      features: [n, d]; logits: [n, k], true logits or log-probabilities (at T = 1 only the softmax counts).
      temperature: T > 0.

    Returns:
      [n], ≥ 0.

    Raises:
      ValueError: shapes disagree, T is not positive and finite, or (host) a feature is not finite.

    Source: Huang, Geng & Li, "On the importance of gradients for detecting distributional shifts in the wild", NeurIPS
    2021 (the factorisation is theirs).

    >>> round(float(gradnorm(np.array([[1.0, -3.0]]), np.log(np.array([[0.75, 0.25]])))[0]), 12)
    2.0
    """
    x, xp = _features(features, features.shape[-1])
    if logits.ndim != 2 or logits.shape[0] != x.shape[0]:
        raise ValueError(f"logits must be [n, k] with n = {x.shape[0]}; they are {list(logits.shape)}")
    if not 0 < temperature < np.inf:
        raise ValueError(f"temperature must be positive and finite; it is {temperature}")
    away = xp.abs(xp.exp(log_softmax(logits / temperature)) - 1 / logits.shape[1])
    return xp.sum(xp.abs(x), axis=-1) * xp.sum(away, axis=-1) / temperature


def _check_percentile(percentile: float) -> None:
    if not 0 <= percentile <= 100:
        raise ValueError(f"percentile must be in [0, 100]; it is {percentile}")


def _logits(x: Array, head_kernel: Array, head_bias: Array, xp: Any) -> Array:
    kernel, bias = _head(x, head_kernel, head_bias, xp)
    return _matmul(x, kernel, xp) + bias[None, :]
