"""The one definition under every ranking metric: losses in order of score, tie block by tie block.

Samples that share a score form a block; within it every order is equally likely, and metrics are expectations over
those orders. All metrics here are sums over the blocks *that carry loss*, so nothing depends on how ties were sorted,
and a bootstrap of 1,000 resamples costs one sort.

A weight w means w repeated rows: copies of a row share its score and are tied with it. Weights may have leading axes
(one row of weights per resample); then every metric has them too.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from array_api_compat import array_namespace, is_jax_array

Array = Any


class Ranking(NamedTuple):
    """Blocks of equal score in decreasing order of score; blocks without loss may be left out.

    On devices shapes must not depend on values: there every sample is a row of its own, and the rows of a block share
    `before`, `weight` and `loss_before`. Every formula is linear in `loss`, so both forms give the same value.

    Attributes:
      before: [..., g] weight ranked strictly above the block.
      weight: [..., g] weight of the block.
      loss_before: [..., g] total loss ranked strictly above the block.
      loss: [..., g] total loss of the block (of the row, on devices).
      block_loss: [..., g] total loss of the block.
      total_weight, total_loss: [...] over all samples.
    """

    before: Array
    weight: Array
    loss_before: Array
    loss: Array
    block_loss: Array
    total_weight: Array
    total_loss: Array


def rank(score: Array, loss: Array, weight: Array | None = None) -> Ranking:
    """Sorts once and returns what every metric is computed from.

    Args:
      score: [n], higher = more confident; ±inf are allowed.
      loss: [n], non-negative; 0/1 (bool or integer) for errors.
      weight: [..., n], counts: whole numbers ≥ 0 (on devices integers or bool), 1 for all by default.

    Returns:
      A `Ranking`; leading axes are those of `weight`.

    Raises:
      ValueError: shapes disagree, n = 0, a score is NaN, a loss is negative or not finite, or a weight is no count. (On
        devices, where values are not known when the program is built, a NaN among the scores makes the metrics NaN.)
    """
    xp = array_namespace(score, loss)
    score, loss = xp.asarray(score), xp.asarray(loss)
    if score.ndim != 1 or score.shape != loss.shape:
        raise ValueError(f"score and loss must both be [n]; they are {score.shape} and {loss.shape}")
    if score.shape[0] == 0:
        raise ValueError("score and loss are empty: a risk needs at least one example")
    if weight is not None and weight.shape[-1:] != score.shape:
        raise ValueError(f"weight must be [..., n] with n = {score.shape[0]}; it is {weight.shape}")
    if is_jax_array(score) or is_jax_array(loss):
        return _rank_on_device(score, loss, weight)
    return _rank_on_host(score, loss, weight)


def _rank_on_host(score: np.ndarray, loss: np.ndarray, weight: np.ndarray | None) -> Ranking:
    if np.isnan(score).any():
        raise ValueError(f"{np.isnan(score).sum()} scores are NaN (first at {np.argmax(np.isnan(score))})")
    if not (np.isfinite(loss).all() and (loss >= 0).all()):
        raise ValueError("losses must be finite and ≥ 0")
    loss = loss.astype(np.int64 if ((loss == 0) | (loss == 1)).all() else np.float64)  # errors are counted, exactly

    order = np.argsort(score, kind="stable")[::-1]
    score, loss = score[order], loss[order]
    starts = np.flatnonzero(np.concatenate([[True], score[1:] != score[:-1]]))
    if weight is None:
        block_weight = np.diff(np.append(starts, len(score)))
        block_loss = np.add.reduceat(loss, starts)
        carries = block_loss > 0
    else:
        carries = np.add.reduceat(loss, starts) > 0
        weight = _counts(weight)[..., order]
        if len(starts) == len(score):
            block_weight = weight
            block_loss = weight[..., carries] * loss[carries]
        else:
            block_weight = np.add.reduceat(weight, starts, axis=-1)
            block_loss = np.add.reduceat(weight * loss, starts, axis=-1)[..., carries]
    above = np.cumsum(block_weight, axis=-1, dtype=_accumulator(block_weight))
    if weight is None:
        block_loss = block_loss[carries]
    kept_weight = block_weight[..., carries].astype(above.dtype, copy=False)
    block_loss = block_loss.astype(_accumulator(block_loss), copy=False)
    loss_through = np.cumsum(block_loss, axis=-1)
    return Ranking(
        before=above[..., carries] - kept_weight,
        weight=kept_weight,
        loss_before=loss_through - block_loss,
        loss=block_loss,
        block_loss=block_loss,
        total_weight=above[..., -1],
        total_loss=block_loss.sum(axis=-1),
    )


def _counts(weight: np.ndarray) -> np.ndarray:
    """Weights as integers wide enough to add up."""
    whole = weight.dtype.kind in "bui" or (np.isfinite(weight).all() and (weight == np.floor(weight)).all())
    if not whole or (weight.dtype.kind in "if" and (weight < 0).any()):
        raise ValueError("weights must be counts, whole numbers ≥ 0: a weight w means w repeated rows")
    return weight.astype(np.int32 if weight.dtype.itemsize < 4 else np.int64, copy=False)


def _accumulator(array: np.ndarray) -> type:
    return np.float64 if array.dtype.kind == "f" else np.int64


def _rank_on_device(score: Array, loss: Array, weight: Array | None) -> Ranking:
    import jax
    import jax.numpy as jnp

    counted = jnp.issubdtype(loss.dtype, jnp.integer) or loss.dtype == bool
    loss = loss.astype(jnp.int32 if counted else jnp.promote_types(loss.dtype, jnp.float32))
    if weight is not None and jnp.issubdtype(weight.dtype, jnp.floating):
        raise ValueError(f"weights must be counts, on devices integers or bool; they are {weight.dtype}")

    n = score.shape[0]
    descending = -score if jnp.issubdtype(score.dtype, jnp.floating) else ~score
    key, order = jax.lax.sort((descending, jnp.arange(n, dtype=jnp.int32)), num_keys=1)
    weight = jnp.ones(n, jnp.int32) if weight is None else jnp.asarray(weight, jnp.int32)[..., order]
    rows = (1,) * (weight.ndim - 1) + (n,)
    loss = loss[order].reshape(rows) * weight
    position = jnp.arange(n, dtype=jnp.int32)
    new = jnp.concatenate([jnp.ones(1, bool), key[1:] != key[:-1]])
    start = jax.lax.cummax(jnp.where(new, position, 0))
    end = jax.lax.cummin(jnp.where(jnp.concatenate([new[1:], jnp.ones(1, bool)]), position, n), reverse=True)

    def through(values: Array) -> tuple[Array, Array, Array]:
        total = jnp.cumsum(values, axis=-1)
        before = jnp.where((start > 0).reshape(rows), total[..., jnp.maximum(start - 1, 0)], 0)
        return before, total[..., end] - before, total[..., -1]

    before, block_weight, total_weight = through(weight)
    loss_before, block_loss, total_loss = through(loss)
    return Ranking(before, block_weight, loss_before, loss, block_loss, total_weight, total_loss)


def harmonic_difference(start: Array, stop: Array) -> Array:
    """H_stop − H_start with H_m = Σ_{j≤m} 1/j, for integers 0 ≤ start ≤ stop; exact to rounding also where they are close.

    H_m = ln(m + ½) + γ + c(m), c(m) = 1/(24 x²) − 7/(960 x⁴) + 31/(8064 x⁶) − …, x = m + ½; below 64 c(m) is tabulated.
    One logarithm of the ratio, never a difference of two large sums.

    Args:
      start, stop: [...], whole numbers.

    Returns:
      [...].

    >>> round(float(harmonic_difference(np.asarray(1), np.asarray(3))), 12)  # 1/2 + 1/3
    0.833333333333
    """
    xp = array_namespace(start, stop)
    start, stop = xp.asarray(start), xp.asarray(stop)
    ratio = xp.log1p((stop - start) / (start + 0.5))
    return ratio + _harmonic_remainder(stop, xp) - _harmonic_remainder(start, xp)


def harmonic_rest(start: Array, length: Array) -> Array:
    """1 − (K/w)(H_{K+w} − H_K), the mean of j/(K + j) over j = 1 … w, for integers K = start ≥ 0, w = length; 1 for w = 0 = K.

    A sum of positive terms, exact to rounding also where w is small against K: with u = w/(K + ½), K/w = 1/u − 1/(2w) and
    the c of `harmonic_difference` it is (1 − ln(1 + u)/u) + ln(1 + u)/(2w) + (K/w)(c(K) − c(K + w)); below u = ½ its first
    term is a series in z = u/(2 + u), since ln(1 + u) = 2(z + z³/3 + z⁵/5 + …).

    >>> round(float(harmonic_rest(np.asarray(1), np.asarray(2))), 12)  # (1/2 + 2/3)/2
    0.583333333333
    """
    xp = array_namespace(start, length)
    w = xp.maximum(length, 1)
    u = w / (start + 0.5)
    log = xp.log1p(u)
    z = u / (2 + u)
    tail = 0 * z
    for k in range(21, 1, -2):
        tail = z * z * (1 / k + tail)
    first = xp.where(u < 0.5, z - (1 - z) * tail, 1 - log / u)
    return first + log / (2 * w) + start / w * (_harmonic_remainder(start, xp) - _harmonic_remainder(start + w, xp))


_SMALL = 64
_HARMONIC = np.concatenate([[0.0], np.cumsum(1 / np.arange(1, _SMALL))])
_REMAINDER = _HARMONIC - np.log(np.arange(_SMALL) + 0.5) - np.euler_gamma


def _harmonic_remainder(m: Array, xp: Any) -> Array:
    square = 1 / (m + 0.5) ** 2
    series = square * (1 / 24 - square * (7 / 960 - square * (31 / 8064)))
    small = xp.asarray(_REMAINDER, dtype=series.dtype)[xp.clip(m, 0, _SMALL - 1).astype(int)]
    return xp.where(m < _SMALL, small, series)


def metric_of_ranking(definition: Callable[..., Array]) -> Callable[..., Array]:
    """Turns a definition on a `Ranking` into a metric of `(score, loss, weight=None)`, keeping it as `.of_ranking`.

    Several metrics of one score then share one sort: `r = rank(score, loss); aurc.of_ranking(r), augrc.of_ranking(r)`.
    """

    @functools.wraps(definition)
    def metric(score: Array, loss: Array, *options: Any, weight: Array | None = None, **named: Any) -> Array:
        return nan_if_nan(score, definition(rank(score, loss, weight), *options, **named))

    score, loss, *_, weight, _ = inspect.signature(metric, follow_wrapped=False).parameters.values()
    options = list(inspect.signature(definition).parameters.values())[1:]
    metric.__signature__ = inspect.Signature([score, loss, *options, weight])
    metric.of_ranking = definition
    return metric


def nan_if_nan(score: Array, value: Array) -> Array:
    """`value`, or NaN if a score on a device is NaN: there it cannot be refused."""
    if not is_jax_array(value):
        return value
    xp = array_namespace(value)
    return xp.where(xp.any(xp.isnan(xp.asarray(score))), xp.nan, value)
