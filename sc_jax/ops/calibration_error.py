"""How honest the probabilities are: proper losses per example, and the expected calibration error."""

from __future__ import annotations

from array_api_compat import array_namespace, is_numpy_namespace

from sc_jax.ops.ranking import Array
from sc_jax.ops.scores import log_softmax, one_hot, predicted_class


def log_loss(logits: Array, label: Array) -> Array:
    """−ln p_y of each example; its mean is the negative log-likelihood (NLL), in nats.

    Args:
      logits: [n, k] (or log-probabilities); label: int [n].

    Returns:
      [n]; +inf where the true class has probability 0.
    """
    xp = array_namespace(logits)
    return -xp.take_along_axis(log_softmax(logits), label[:, None], axis=-1)[:, 0]


def brier_loss(logits: Array, label: Array) -> Array:
    """Σ_k (p_k − 1[k = y])² of each example; its mean is the multiclass Brier score, in [0, 2].

    Args:
      logits: [n, k] (or log-probabilities); label: int [n].

    Returns:
      [n].

    Source: Brier, 1950 (the sum over classes, not its half).
    """
    xp = array_namespace(logits)
    p = xp.exp(log_softmax(logits))
    return xp.sum((p - one_hot(label, p.shape[-1])) ** 2, axis=-1)


def max_probability(logits: Array) -> Array:
    """p_ŷ, the probability of the predicted class, [n, k] → [n]. For calibration; to rank, use `scores.msp`."""
    xp = array_namespace(logits)
    return xp.take_along_axis(xp.exp(log_softmax(logits)), predicted_class(logits)[:, None], axis=-1)[:, 0]


def expected_calibration_error(
    confidence: Array, error: Array, *, bins: int = 15, weight: Array | None = None
) -> Array:
    """ECE = Σ_b (n_b/n) |accuracy_b − mean confidence_b| over equal-width bins (lo, hi], the first closed.

    Args:
      confidence: [n] probabilities in [0, 1]; 1.0 belongs to the last bin.
      error: [n], 0/1 as bool or integers.
      bins: number of bins on [0, 1].
      weight: [..., n], 1 for all by default.

    Returns:
      [...], in [0, 1].

    Raises:
      ValueError: shapes disagree, n = 0, the errors are soft, or a confidence lies outside [0, 1]. (On devices, where
        values are not known when the program is built, errors must be bool or integers, and confidences are not checked.)

    Source: Naeini, Cooper & Hauskrecht, AAAI 2015; bins as in Guo et al., ICML 2017.

    >>> import numpy as np
    >>> round(float(expected_calibration_error(np.array([1.0, 0.5, 0.45]), np.array([0, 0, 1]))), 12)
    0.316666666667
    """
    xp = array_namespace(confidence)
    if confidence.shape != error.shape or confidence.ndim != 1:
        raise ValueError(f"confidence and error must both be [n]; they are {confidence.shape} and {error.shape}")
    if confidence.shape[0] == 0:
        raise ValueError("confidence and error are empty: a calibration error needs at least one example")
    on_host = is_numpy_namespace(xp)
    if on_host and not ((confidence >= 0) & (confidence <= 1)).all():
        raise ValueError("confidences must lie in [0, 1]")
    if not (((error == 0) | (error == 1)).all() if on_host else xp.isdtype(error.dtype, ("bool", "integral"))):
        raise ValueError("the calibration error is defined for 0/1 errors, given as bool or integers; these are soft")
    dtype = xp.float64 if on_host else xp.result_type(confidence.dtype, xp.float32)
    confidence = confidence.astype(dtype)
    edges = xp.arange(1, bins) / bins
    index = xp.searchsorted(edges, confidence, side="left")
    member = one_hot(index, bins) * (1 - error.astype(dtype) - confidence)[:, None]
    weight = xp.ones(confidence.shape, dtype=dtype) if weight is None else weight.astype(dtype)
    return xp.sum(xp.abs(weight @ member), axis=-1) / xp.sum(weight, axis=-1)
