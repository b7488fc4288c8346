"""The risk-coverage curve of (score[n], loss[n]) and its operating points; higher score = more confident.

Accept the k most confident of n samples: coverage k/n, selective risk r_k = the mean loss of the accepted, generalised
risk g_k = (k/n)·r_k. A threshold t accepts every sample with score ≥ t, so a whole block of tied samples or none of it.
"""

from __future__ import annotations

from fractions import Fraction
from typing import NamedTuple

import numpy as np
from array_api_compat import array_namespace, is_numpy_namespace

from sc_jax.ops.ranking import (
    Array,
    Blocks,
    Ranking,
    beside,
    blocks,
    metric_of_ranking,
    nan_if_nan,
    real,
    share,
)
from sc_jax.ops.targets import Target, as_fraction, floor_of_share, within_share


class RiskCoverageCurve(NamedTuple):
    """Points of the curve in increasing order of coverage, each [c].

    Attributes:
      coverage, risk, generalized_risk: of the accepted; generalized_risk = coverage · risk.
      threshold: accepts at least as many as the point does, and no fewer if raised (a whole block where it is tied).
    """

    coverage: Array
    risk: Array
    generalized_risk: Array
    threshold: Array


def risk_coverage_curve(
    score: Array, loss: Array, *, ties: str = "expect", weight: Array | None = None, where: Array | None = None
) -> RiskCoverageCurve:
    """The risk-coverage curve.

    - `ties="expect"`: n points at coverage 1/n … 1, the expectation over tie orders: within a block the expected total
      loss grows linearly.
    - `ties="collapse"`: the realisable points only, one for each distinct score (on devices n points, those of a block repeated).

    Args:
      score: [n]; loss: [n], non-negative; weight: [n] ≥ 0; where: bool [n].

    Returns:
      A `RiskCoverageCurve`.

    Raises:
      ValueError: an unknown `ties`; see `rank` for the rest.

    Source: El-Yaniv & Wiener, "On the foundations of noise-free selective classification", JMLR 2010.

    >>> import numpy as np
    >>> curve = risk_coverage_curve(np.array([0.9, 0.5, 0.5]), np.array([0, 1, 0]), ties="collapse")
    >>> [[round(float(x), 4) for x in column] for column in curve]
    [[0.3333, 1.0], [0.0, 0.3333], [0.0, 0.3333], [0.9, 0.5]]
    """
    points = _one_row(blocks(score, loss, weight, where))
    xp = array_namespace(points.accepted)
    everything = points.ranking.total_weight
    if ties == "collapse":
        accepted, total, threshold = points.accepted, points.loss, points.score
    elif ties == "expect":
        left = where is not None and is_numpy_namespace(xp)
        n = int(np.count_nonzero(where)) if left else score.shape[0]
        accepted = beside(points.accepted, np.arange(1, n + 1), points.accepted.dtype)
        if weight is not None or (where is not None and not left):
            accepted = _of_total(accepted, everything)
        total, threshold = loss_of_accepted(points.ranking, accepted), _threshold_of_accepted(points, accepted)
    else:
        raise ValueError(f"ties {ties!r}: there are 'expect' and 'collapse'")
    total = nan_if_nan(score, total, where)
    return RiskCoverageCurve(share(accepted, everything), share(total, accepted), share(total, everything), threshold)


def _one_row(points: Blocks) -> Blocks:
    if points.accepted.ndim != 1:
        raise ValueError("curves and thresholds take one row of weights [n]; map over rows for more")
    return points


def _of_total(k: Array, total: Array) -> Array:
    """k/n of the total for k = 1 … n; a whole number where it is one up to rounding, so that it falls into the right block."""
    xp = array_namespace(k)
    accepted = real(k) * real(total) / max(k.shape[0], 1)
    whole = xp.round(accepted)
    return xp.where(xp.abs(accepted - whole) <= 4 * xp.finfo(accepted.dtype).eps * whole, whole, accepted)


def loss_of_accepted(ranking: Ranking, accepted: Array) -> Array:
    """Expected total loss of the most confident: linear in their number within each block.

    Args:
      ranking: [..., g]; leading axes (resamples) on the host only.
      accepted: [c], how many are accepted, in 0..n; [..., c] where that differs.

    Returns:
      [..., c].
    """
    xp = array_namespace(ranking.before)
    if ranking.before.ndim > 1:
        return _loss_of_accepted_of_rows(ranking, accepted)
    if ranking.before.shape[0] == 0:
        return xp.zeros(accepted.shape)
    row = _row_of(ranking.before + ranking.weight, accepted)
    before, own, loss_before, block_loss = (
        xp.take(field, row) for field in (ranking.before, ranking.weight, ranking.loss_before, ranking.block_loss)
    )
    part = xp.clip((accepted - before) / xp.where(own > 0, own, xp.ones_like(own)), 0, 1)
    return loss_before + part * block_loss


def _loss_of_accepted_of_rows(ranking: Ranking, accepted: np.ndarray) -> np.ndarray:
    """The same for rows of weights: one look-up in all of them, each row moved beyond the one before."""
    shape, g = ranking.before.shape[:-1], ranking.before.shape[-1]
    if g == 0:
        return np.zeros((*shape, accepted.shape[-1]))
    before, weight, loss_before, block_loss = (field.reshape(-1, g) for field in ranking[:3] + ranking[4:5])
    accepted = np.broadcast_to(accepted, (*shape, accepted.shape[-1])).reshape(len(before), accepted.shape[-1])
    step = np.arange(len(before))[:, None] * (max(ranking.total_weight.max(initial=0), accepted.max(initial=0)) + 1)
    place = np.searchsorted((before + weight + step).ravel(), (accepted + step).ravel(), side="left")
    column = np.clip(place.reshape(accepted.shape) - np.arange(len(before))[:, None] * g, 0, g - 1)
    before, weight, loss_before, block_loss = (
        np.take_along_axis(field, column, axis=1) for field in (before, weight, loss_before, block_loss)
    )
    part = np.clip((accepted - before) / np.where(weight > 0, weight, 1), 0, 1)
    return (loss_before + part * block_loss).reshape(*shape, accepted.shape[-1])


def _row_of(through: Array, accepted: Array) -> Array:
    """The row in which the count is reached; the last one where rounding puts it beyond all."""
    xp = array_namespace(through)
    return xp.clip(xp.searchsorted(through, accepted, side="left"), 0, through.shape[0] - 1)


def _threshold_of_accepted(points: Blocks, accepted: Array) -> Array:
    xp = array_namespace(points.accepted)
    if points.accepted.shape[0] == 0:
        return xp.full(accepted.shape, xp.nan)
    return xp.take(points.score, _row_of(points.accepted, accepted))


@metric_of_ranking
def coverage_at_risk(ranking: Ranking, risk: Target) -> Array:
    """The largest coverage at which a threshold keeps the selective risk at or below `risk`; 0 if none does.

    Only realisable points count: a threshold accepts whole blocks of tied samples. Errors are compared as integers,
    errors ≤ ⌊risk · accepted⌋, with `risk` read as a decimal; with real weights or losses, up to rounding.

    Args:
      score: [n]; loss: [n], non-negative; risk: the target, e.g. 0.05, or a pair (1, 20); weight: [..., n]; where: bool [n].

    Returns:
      [...], in [0, 1]. Computed on the data it is reported for, it is a description, not a guarantee.

    >>> import numpy as np
    >>> float(coverage_at_risk(np.array([0.9, 0.8, 0.7, 0.6, 0.5]), np.array([0, 0, 0, 1, 1]), 0.25))
    0.8
    """
    xp = array_namespace(ranking.before)
    # Risk falls between losses: the largest feasible coverage lies just before a block that carries loss, or at the end.
    target, none = as_fraction(risk), xp.zeros_like(ranking.total_weight)
    most = none
    if ranking.before.shape[-1]:
        feasible = _feasible(ranking.loss_before, ranking.before, target)
        if is_numpy_namespace(xp):  # in order: the last one that is feasible
            last = feasible.shape[-1] - 1 - np.argmax(feasible[..., ::-1], axis=-1)[..., None]
            most = np.take_along_axis(ranking.before, last, -1) * np.take_along_axis(feasible, last, -1)
            most = most[..., 0]
        else:
            most = xp.max(xp.where(feasible, ranking.before, none[..., None]), axis=-1)
    most = xp.where(_feasible(ranking.total_loss, ranking.total_weight, target), ranking.total_weight, most)
    return share(most, ranking.total_weight)


def _feasible(loss: Array, accepted: Array, risk: Fraction) -> Array:
    """loss ≤ risk · accepted: exactly where both are whole, else up to rounding."""
    xp = array_namespace(loss, accepted)
    if xp.isdtype(loss.dtype, "integral"):
        return within_share(loss, risk, accepted)
    product = float(risk) * accepted
    counts = (loss == xp.floor(loss)) & (accepted == xp.floor(1.0 * accepted))
    return xp.where(counts, within_share(loss, risk, accepted), loss <= product * (1 + 8 * xp.finfo(loss.dtype).eps))


def selective_accuracy_constraint(
    score: Array, loss: Array, accuracy: Target, *, weight: Array | None = None, where: Array | None = None
) -> Array:
    """The largest coverage at which a threshold keeps the selective accuracy at or above `accuracy`; 0 if none does (SAC).

    Args:
      score: [n]; loss: [n], 0/1; accuracy: the target, e.g. 0.99; weight: [..., n]; where: bool [n].

    Returns:
      [...], in [0, 1]: `coverage_at_risk` at 1 − accuracy.

    Source: Galil, Dabbah & El-Yaniv, ICLR 2023.
    """
    return coverage_at_risk(score, loss, 1 - as_fraction(accuracy), weight=weight, where=where)


def coverage_at_risk_nearest(
    score: Array,
    loss: Array,
    risk: Target,
    *,
    min_count: int = 500,
    weight: Array | None = None,
    where: Array | None = None,
) -> Array:
    """The realisable coverage whose risk is nearest to `risk`, among those that accept `min_count` or more; for reproduction.

    It may exceed the risk asked for: `coverage_at_risk` does not. Of several as near, up to rounding, the smallest coverage.

    Args:
      score: [n]; loss: [n], non-negative; risk: the target; min_count: in weight; weight: [..., n]; where: bool [n].

    Returns:
      [...], in [0, 1]; NaN where nothing accepts as many.

    Source: Xia & Bouganis, ICCV 2023 (their evaluation skips the 500 most confident, where the curve is noisy).
    """
    points = blocks(score, loss, weight, where)
    xp = array_namespace(points.accepted)
    if points.accepted.shape[-1] == 0:
        return share(points.ranking.total_loss, points.ranking.total_weight)
    allowed = (points.accepted >= min_count) & (points.accepted > 0)
    nearest = _first_nearest(share(points.loss, points.accepted), float(as_fraction(risk)), allowed)
    accepted = xp.take_along_axis(points.accepted, nearest[..., None], axis=-1)[..., 0]
    value = xp.where(xp.any(allowed, axis=-1), share(accepted, points.ranking.total_weight), xp.nan)
    return nan_if_nan(score, value, where)


def _first_nearest(value: Array, target: float, allowed: Array) -> Array:
    """Where in the last axis the value nearest to the target is; of several as near up to rounding, the first."""
    xp = array_namespace(value)
    distance = xp.where(allowed, xp.abs(value - target), xp.inf)
    as_near = xp.min(distance, axis=-1)[..., None] + 4 * xp.finfo(value.dtype).eps * target
    return xp.argmax(xp.astype(distance <= as_near, xp.int32), axis=-1)


@metric_of_ranking
def risk_at_coverage(ranking: Ranking, coverage: Target) -> Array:
    """Selective risk of the k = ⌈coverage · n⌉ most confident, expected over tie orders.

    Args:
      score: [n]; loss: [n], non-negative; coverage: in (0, 1], read as a decimal; weight: [..., n]; where: bool [n].

    Returns:
      [...], in the unit of the loss. `realisable_coverage` says which coverage a threshold can have instead.

    Raises:
      ValueError: coverage outside (0, 1].
    """
    target = _coverage(coverage)
    xp = array_namespace(ranking.before)
    accepted = ranking.total_weight - floor_of_share(1 - target, ranking.total_weight)
    if is_numpy_namespace(xp) and ranking.before.dtype.kind == "i":
        return share(loss_of_accepted(ranking, accepted[..., None])[..., 0], accepted)
    own = xp.where(ranking.weight > 0, ranking.weight, xp.ones_like(ranking.weight))
    part = xp.clip((accepted[..., None] - ranking.before) / own, 0, 1)
    return share(xp.sum(ranking.loss * part, axis=-1), accepted)


def _coverage(coverage: Target) -> Fraction:
    target = as_fraction(coverage)
    if not 0 < target <= 1:
        raise ValueError(f"coverage must lie in (0, 1]; it is {coverage}")
    return target


def realisable_coverage(
    score: Array, coverage: Target, *, weight: Array | None = None, where: Array | None = None
) -> Array:
    """The coverage nearest to `coverage` that a threshold can have; of two as near, up to rounding, the larger.

    Args:
      score: [n]; coverage: in (0, 1]; weight: [..., n]; where: bool [n].

    Returns:
      [...], in (0, 1].
    """
    xp = array_namespace(score)
    points = blocks(score, xp.zeros_like(score, dtype=xp.int32), weight, where)
    if points.accepted.shape[-1] == 0:
        return share(points.ranking.total_loss, points.ranking.total_weight)
    reached = xp.flip(share(points.accepted, points.ranking.total_weight[..., None]), axis=-1)
    nearest = _first_nearest(reached, float(_coverage(coverage)), reached > 0)
    return nan_if_nan(score, xp.take_along_axis(reached, nearest[..., None], axis=-1)[..., 0], where)


def threshold_at_coverage(
    score: Array, coverage: Target, *, weight: Array | None = None, where: Array | None = None
) -> Array:
    """The largest threshold t for which `score >= t` accepts ⌈coverage · n⌉ or more; a tied block is accepted whole.

    Args:
      score: [n]; coverage: in (0, 1]; weight: [n]; where: bool [n].

    Returns:
      A number, one of the scores; NaN, which accepts nothing, if weights leave nothing. Fit it on one split, apply it to
      another.

    >>> import numpy as np
    >>> float(threshold_at_coverage(np.array([0.9, 0.8, 0.7, 0.6]), 0.5))
    0.8
    """
    target = _coverage(coverage)
    xp = array_namespace(score)
    points = _one_row(blocks(score, xp.zeros_like(score, dtype=xp.int32), weight, where))
    total = points.ranking.total_weight
    accepted = (total - floor_of_share(1 - target, xp.asarray(total)))[..., None]
    threshold = _threshold_of_accepted(points, accepted)[..., 0]
    if weight is not None or where is not None:
        threshold = xp.where(total > 0, real(threshold), xp.nan)
    return nan_if_nan(score, threshold, where)


def threshold_at_risk(
    score: Array, loss: Array, risk: Target, *, weight: Array | None = None, where: Array | None = None
) -> Array:
    """The threshold t of `coverage_at_risk`: accepting `score >= t` has the largest coverage with risk ≤ `risk` on these data.

    Args:
      score: [n]; loss: [n], non-negative; risk: the target; weight: [n]; where: bool [n].

    Returns:
      A number, one of the scores; NaN, which accepts nothing, if no threshold meets the target. Fitted here and applied
      elsewhere it carries no guarantee.

    >>> import numpy as np
    >>> float(threshold_at_risk(np.array([0.9, 0.8, 0.7, 0.6, 0.5]), np.array([0, 0, 0, 1, 1]), 0.25))
    0.6
    """
    points = _one_row(blocks(score, loss, weight, where))
    xp = array_namespace(points.accepted)
    if points.accepted.shape[-1] == 0:
        return share(points.ranking.total_loss, points.ranking.total_weight)
    feasible = _feasible(points.loss, points.accepted, as_fraction(risk)) & (points.accepted > 0)
    accepted = xp.where(feasible, points.accepted, xp.zeros_like(points.accepted))
    best = xp.argmax(accepted, axis=-1)
    threshold = xp.where(xp.any(feasible), real(xp.take(points.score, best[None])[0]), xp.nan)
    return nan_if_nan(score, threshold, where)
