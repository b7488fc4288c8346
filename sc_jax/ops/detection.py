"""How well a score tells two kinds apart: right from wrong predictions, known inputs from OOD ones.

Detection takes (score[n], positive[n]): positives should have the higher score. For failure detection the positives are
the right predictions, for OOD detection the inputs known to the model. Tied samples form one block of `rank`, in which
the positives play the part of the loss.
"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from array_api_compat import array_namespace, is_jax_array, is_numpy_namespace

from sc_jax.ops.ranking import (
    Array,
    Ranking,
    blocks,
    fits_in_integers,
    harmonic_difference,
    harmonic_rest,
    metric_of_ranking,
    nan_if_nan,
    rank,
    share,
)
from sc_jax.ops.targets import Target, as_fraction, floor_of_share


@metric_of_ranking(errors_only=True)
def failure_auroc(ranking: Ranking) -> Array:
    """AUROC of failure detection: P(score of a right prediction > score of a wrong one) + ½ P(equal).

    Args:
      score: [n]; loss: [n], 0/1 errors as bool or integers (0.0/1.0 on the host); weight: [..., n]; where: bool [n].

    Returns:
      [...], in [0, 1]; NaN if all are right or all are wrong.

    Raises:
      ValueError: the losses are not 0/1 errors.

    >>> import numpy as np
    >>> float(failure_auroc(np.array([0.9, 0.8, 0.8, 0.1]), np.array([0, 0, 1, 1])))
    0.875
    """
    xp = array_namespace(ranking.loss)
    right_above = ranking.before - ranking.loss_before
    right_tied = ranking.weight - ranking.block_loss
    right = ranking.total_weight - ranking.total_loss
    if fits_in_integers(ranking):  # exactly
        right_above *= 2
        right_above += right_tied
        return share(share(np.einsum("...g,...g->...", ranking.loss, right_above), right), 2 * ranking.total_loss)
    pairs = share(right_above + right_tied / 2, right[..., None])
    return share(xp.sum(ranking.loss * pairs, axis=-1), ranking.total_loss)


def auroc(score: Array, positive: Array, *, weight: Array | None = None, where: Array | None = None) -> Array:
    """AUROC: P(score of a positive > score of a negative) + ½ P(equal).

    Args:
      score: [n]; positive: [n], 0/1 as bool or integers (0.0/1.0 on the host); weight: [..., n]; where: bool [n].

    Returns:
      [...], in [0, 1]; NaN if all are of one kind.

    Raises:
      ValueError: positive is not 0/1; see `rank` for the rest.

    >>> import numpy as np
    >>> float(auroc(np.array([0.9, 0.8, 0.8, 0.1]), np.array([1, 1, 0, 0])))
    0.875
    """
    positive = as_labels(positive, "positive", where)
    return nan_if_nan(score, _auroc(rank(score, positive, weight, where)), where)


def _auroc(ranking: Ranking) -> Array:
    xp = array_namespace(ranking.loss)
    negatives = (ranking.total_weight - ranking.total_loss)[..., None]
    above = ranking.before - ranking.loss_before
    tied = ranking.weight - ranking.block_loss
    pairs = share(negatives - above - tied / 2, negatives)
    return share(xp.sum(ranking.loss * pairs, axis=-1), ranking.total_loss)


auroc.of_ranking = _auroc


def average_precision(
    score: Array,
    positive: Array,
    ties: str = "expect",
    *,
    weight: Array | None = None,
    where: Array | None = None,
) -> Array:
    """Average precision: the mean, over positives, of the precision among all samples down to that positive (AUPR).

    - `ties="expect"`: the exact expectation over tie orders. In a block of w samples, p of them positive, below K
      samples, P of them positive, a positive at the i-th place has P + 1 + a(i − 1) positives down to it,
      a = (p − 1)/(w − 1), so the mean over the positives of the block is (1/w) Σ_i (P + 1 + a(i − 1))/(K + i)
      = a·(1 − (K/w)(H_{K+w} − H_K)) + (P + 1 − a)·(H_{K+w} − H_K)/w.
    - `ties="collapse"`: the precision of the threshold that accepts the whole block, (P + p)/(K + w).

    Args:
      score: [n]; positive: [n], 0/1 as bool or integers (0.0/1.0 on the host); ties: as above.
      weight: [..., n], counts; real weights with `ties="collapse"` only; where: bool [n].

    Returns:
      [...], in (0, 1]; of a random order about the share of positives; NaN if there are none.

    Raises:
      ValueError: an unknown `ties`; positive is not 0/1; real weights (on devices: of a float dtype) with
        `ties="expect"`.

    Source: scikit-learn's `average_precision_score` (`collapse`); the expectation is derived.

    >>> import numpy as np
    >>> score, positive = np.array([0.9, 0.5, 0.5]), np.array([0, 1, 0])
    >>> [round(float(average_precision(score, positive, ties)), 4) for ties in ("expect", "collapse")]  # (1/2 + 1/3)/2
    [0.4167, 0.3333]
    """
    positive = as_labels(positive, "positive", where)
    if ties == "expect" and weight is not None and not _are_counts(weight, where):
        raise ValueError("the order of tied samples is known for counts; real weights need ties='collapse'")
    value = _average_precision(rank(score, positive, weight, where), ties)
    return nan_if_nan(score, value, where)


def _average_precision(ranking: Ranking, ties: str = "expect") -> Array:
    xp = array_namespace(ranking.loss)
    above, weight, own = ranking.before, ranking.weight, ranking.block_loss
    if ties == "collapse":
        precision = share(ranking.loss_before + own, above + weight)
        precision = xp.where(ranking.loss > 0, precision, xp.zeros_like(precision))
    elif ties == "expect":
        slope = (own - 1) / xp.where(weight > 1, weight - 1, xp.ones_like(weight))
        mean_inverse = harmonic_difference(above, above + weight) / xp.where(weight > 0, weight, xp.ones_like(weight))
        precision = slope * harmonic_rest(above, weight) + (ranking.loss_before + 1 - slope) * mean_inverse
    else:
        raise ValueError(f"ties {ties!r}: there are 'expect' and 'collapse'")
    return share(xp.sum(ranking.loss * precision, axis=-1), ranking.total_loss)


average_precision.of_ranking = _average_precision


def fpr_at_tpr(
    score: Array,
    positive: Array,
    tpr: Target = 0.95,
    *,
    weight: Array | None = None,
    where: Array | None = None,
) -> Array:
    """The smallest false positive rate of a threshold whose true positive rate is `tpr` or more.

    A threshold t takes every sample with score ≥ t for positive, so a whole block of tied samples or none of it. The
    true positives are compared as integers with ⌈tpr · positives⌉, `tpr` read as a decimal; with real weights, up to
    rounding. (Others take the threshold whose rate is nearest to the target, and may miss it.)

    Args:
      score: [n]; positive: [n], 0/1 as bool or integers (0.0/1.0 on the host); tpr: in (0, 1], e.g. 0.95 or (19, 20).
      weight: [..., n]; where: bool [n].

    Returns:
      [...], in [0, 1]; NaN if all are of one kind.

    Raises:
      ValueError: tpr outside (0, 1]; positive is not 0/1.

    >>> import numpy as np
    >>> float(fpr_at_tpr(np.array([0.9, 0.8, 0.7, 0.7, 0.6]), np.array([1, 0, 1, 0, 0]), 0.95))
    0.6666666666666666
    """
    positive = as_labels(positive, "positive", where)
    return nan_if_nan(score, _fpr_at_tpr(rank(score, positive, weight, where), tpr), where)


def _fpr_at_tpr(ranking: Ranking, tpr: Target = 0.95) -> Array:
    target = as_fraction(tpr)
    if not 0 < target <= 1:
        raise ValueError(f"tpr must lie in (0, 1]; it is {tpr}")
    xp = array_namespace(ranking.loss)
    positives = ranking.total_loss[..., None]
    negatives = ranking.total_weight[..., None] - positives
    found = ranking.loss_before + ranking.block_loss
    if xp.isdtype(found.dtype, "integral"):
        needed = positives - floor_of_share(1 - target, positives)
    else:
        needed = positives * (float(target) * (1 - 8 * xp.finfo(found.dtype).eps))
    false = xp.where(found >= needed, ranking.before + ranking.weight - found, negatives)
    fewest = xp.min(xp.concat([false, negatives], axis=-1), axis=-1)
    return xp.where(positives[..., 0] > 0, share(fewest, negatives[..., 0]), xp.nan)


fpr_at_tpr.of_ranking = _fpr_at_tpr


def ood_fpr_at_tpr(
    score: Array,
    is_ood: Array,
    tpr: Target = 0.95,
    positive: str = "id",
    *,
    weight: Array | None = None,
    where: Array | None = None,
) -> Array:
    """FPR at a TPR of OOD detection, with the positives named.

    - `positive="id"`: the share of OOD inputs accepted by the threshold that keeps `tpr` of the ID inputs ("FPR95").
    - `positive="ood"`: the share of ID inputs flagged by the threshold that flags `tpr` of the OOD inputs.

    Args:
      score: [n], higher = more like ID, whichever is positive.
      is_ood: [n], 0/1 as bool or integers (0.0/1.0 on the host).
      tpr: in (0, 1]; positive: as above; weight: [..., n]; where: bool [n].

    Returns:
      [...], in [0, 1]; NaN if all are ID or all are OOD.

    Raises:
      ValueError: an unknown `positive`; tpr outside (0, 1]; is_ood is not 0/1.

    >>> import numpy as np
    >>> score, is_ood = np.array([0.9, 0.8, 0.7, 0.6, 0.5]), np.array([0, 0, 1, 0, 1])
    >>> [round(float(ood_fpr_at_tpr(score, is_ood, 0.95, positive)), 4) for positive in ("id", "ood")]
    [0.5, 0.3333]
    """
    is_ood = as_labels(is_ood, "is_ood", where)
    if positive == "id":
        return fpr_at_tpr(score, ~is_ood, tpr, weight=weight, where=where)
    if positive == "ood":
        return fpr_at_tpr(_reversed(score), is_ood, tpr, weight=weight, where=where)
    raise ValueError(f"positive {positive!r}: there are 'id' and 'ood'")


def _reversed(score: Array) -> Array:
    """The opposite order; ~ reverses all integers, where − would wrap."""
    xp = array_namespace(score)
    if is_numpy_namespace(xp) and score.dtype.kind not in "fiub":
        score = score.astype(np.float32)  # bfloat16 and its kin, exactly
    return ~score if xp.isdtype(score.dtype, ("bool", "integral")) else -score


class DeLongInterval(NamedTuple):
    """An AUROC and its precision.

    Attributes:
      auroc: []; NaN if all are of one kind.
      standard_error: []; NaN with fewer than two samples of a kind.
      interval: [2], within [0, 1]; NaN where the standard error is 0 or NaN.
    """

    auroc: Array
    standard_error: Array
    interval: Array


class DeLongComparison(NamedTuple):
    """Two AUROCs of the same samples, and their difference.

    Attributes:
      auroc_a, auroc_b, difference: []; difference = auroc_a − auroc_b.
      standard_error: [] of the difference; NaN with fewer than two samples of a kind.
      interval: [2] for the difference, within [−1, 1].
      p: [], two-sided, of no difference.
    """

    auroc_a: Array
    auroc_b: Array
    difference: Array
    standard_error: Array
    interval: Array
    p: Array


def delong_interval(
    score: Array, positive: Array, level: float = 0.95, *, where: Array | None = None
) -> DeLongInterval:
    """An AUROC with its standard error and interval over samples, by DeLong's method in O(n log n).

    The placement of a positive is the share of negatives below it, of a negative the share of positives above it, ties
    half; AUROC is the mean of either, its variance s²(placements of m positives)/m + s²(of n negatives)/n, s² with
    m − 1 and n − 1, and the interval AUROC ± z·√variance, cut to [0, 1].

    Args:
      score: [n]; positive: [n], 0/1 as bool or integers (0.0/1.0 on the host); level: e.g. 0.95; where: bool [n].

    Returns:
      A `DeLongInterval`. A variance of 0 (perfect separation, a constant score) is no certainty: the interval is NaN
      then. Close to 0 or 1 and with few samples of a kind, the interval covers less than its level.

    Raises:
      ValueError: level outside (0, 1); positive is not 0/1; see `rank` for the rest.

    Source: DeLong, DeLong & Clarke-Pearson, "Comparing the areas under two or more correlated receiver operating
    characteristic curves", Biometrics 1988.

    >>> import numpy as np
    >>> result = delong_interval(np.array([0.9, 0.7, 0.4, 0.6, 0.2, 0.1]), np.array([1, 1, 1, 0, 0, 0]))
    >>> round(float(result.auroc), 4), round(float(result.standard_error), 4)  # √(2 · (1/27)/3)
    (0.8889, 0.1571)
    """
    z = _quantile(level)
    positive = as_labels(positive, "positive", where)
    area, error = _mean_and_error(_half_pairs(score, positive, where), positive, where)
    result = DeLongInterval(area, error, _interval(area, error, z, 0.0))
    return DeLongInterval(*(nan_if_nan(score, value, where) for value in result))


def delong(
    score_a: Array, score_b: Array, positive: Array, level: float = 0.95, *, where: Array | None = None
) -> DeLongComparison:
    """Compares the AUROCs of two scores of the same samples, by DeLong's method in O(n log n).

    As `delong_interval`, with the difference of a sample's two placements in the place of its placement, so that what
    both scores have in common cancels; p = 2Φ(−|difference|/standard error).

    Args:
      score_a, score_b: [n]; positive: [n], 0/1 as bool or integers (0.0/1.0 on the host).
      level: e.g. 0.95; where: bool [n].

    Returns:
      A `DeLongComparison`. Where the variance is 0 the interval is NaN, and p is 1 if the difference is 0, else NaN.
      The test takes both scores as given: it does not cover their training, nor scores fitted on these very samples.

    Raises:
      ValueError: level outside (0, 1); positive is not 0/1; see `rank` for the rest.

    Source: DeLong, DeLong & Clarke-Pearson, Biometrics 1988.

    >>> import numpy as np
    >>> positive, score = np.array([1, 1, 1, 0, 0, 0]), np.array([0.9, 0.7, 0.4, 0.6, 0.2, 0.1])
    >>> result = delong(score, np.array([0.9, 0.1, 0.4, 0.6, 0.2, 0.7]), positive)
    >>> [round(float(value), 4) for value in (result.auroc_a, result.auroc_b, result.difference)]
    [0.8889, 0.4444, 0.4444]
    >>> round(float(result.p), 4)  # the difference is √2 standard errors: erfc(1)
    0.1573
    """
    z = _quantile(level)
    positive = as_labels(positive, "positive", where)
    a, b = _half_pairs(score_a, positive, where), _half_pairs(score_b, positive, where)
    difference, error = _mean_and_error(a - b, positive, where)
    result = DeLongComparison(
        auroc_a=_mean_and_error(a, positive, where)[0],
        auroc_b=_mean_and_error(b, positive, where)[0],
        difference=difference,
        standard_error=error,
        interval=_interval(difference, error, z, -1.0),
        p=_two_sided(difference, error),
    )
    known = (nan_if_nan(score_b, value, where) for value in result)
    return DeLongComparison(*(nan_if_nan(score_a, value, where) for value in known))


def _half_pairs(score: Array, positive: Array, where: Array | None) -> Array:
    """[n]: twice the samples of the other kind that a sample stands on the right side of, and those tied with it once."""
    xp = array_namespace(score)
    points = blocks(score, positive, where=where)
    if points.score.shape[0] == 0:
        return xp.zeros(score.shape, dtype=xp.int64)
    up = xp.flip(points.score)
    row = xp.searchsorted(up, xp.astype(score, up.dtype), side="left")
    row = up.shape[0] - 1 - xp.clip(row, 0, up.shape[0] - 1)
    ranking = points.ranking
    above, tied = ranking.loss_before, ranking.block_loss
    negatives_tied = ranking.weight - tied
    negatives_below = ranking.total_weight - ranking.total_loss - (ranking.before - above) - negatives_tied
    return xp.where(positive, xp.take(2 * negatives_below + negatives_tied, row), xp.take(2 * above + tied, row))


def _mean_and_error(half_pairs: Array, positive: Array, where: Array | None) -> tuple[Array, Array]:
    """The mean placement and its standard error; placements are half pairs over twice the samples of the other kind."""
    xp = array_namespace(half_pairs)
    there = xp.ones_like(positive) if where is None else xp.asarray(where, dtype=xp.bool)
    masks = positive & there, ~positive & there
    counts = [xp.sum(xp.astype(mask, half_pairs.dtype)) for mask in masks]

    def moments(mask: Array, count: Array, others: Array) -> tuple[Array, Array]:
        least = xp.min(
            xp.where(mask, half_pairs, xp.max(half_pairs))
        )  # so that equal placements have variance 0 exactly
        beyond = share(xp.where(mask, half_pairs - least, xp.zeros_like(half_pairs)), 2 * others)
        mean = share(xp.sum(beyond), count)
        square = xp.where(mask, beyond - mean, xp.zeros_like(beyond)) ** 2
        return share(least, 2 * others) + mean, share(share(xp.sum(square), count - 1), count)

    area, of_positives = moments(masks[0], *counts)
    _, of_negatives = moments(masks[1], *counts[::-1])
    return area, xp.sqrt(of_positives + of_negatives)


def _quantile(level: float) -> float:
    if not 0 < level < 1:
        raise ValueError(f"level must lie in (0, 1); it is {level}")
    return NormalDist().inv_cdf((1 + level) / 2)


def _interval(value: Array, error: Array, z: float, lowest: float) -> Array:
    xp = array_namespace(value)
    bounds = xp.clip(xp.stack([value - z * error, value + z * error]), lowest, 1.0)
    return xp.where(error > 0, bounds, xp.nan)


def _two_sided(value: Array, error: Array) -> Array:
    xp = array_namespace(value)
    z = xp.abs(value) / xp.where(error > 0, error, xp.nan) / math.sqrt(2)
    if is_jax_array(z):
        from jax.scipy.special import erfc

        p = erfc(z)
    else:
        p = xp.asarray(math.erfc(float(z)), dtype=z.dtype)
    return xp.where((error == 0) & (value == 0), 1.0, p)


def as_labels(labels: Array, name: str, where: Array | None = None) -> Array:
    """0/1 labels as bool.

    Args:
      labels: [n], bool or integers; on the host any dtype that holds 0 and 1. name: for the error. where: bool [n].

    Returns:
      bool [n].

    Raises:
      ValueError: there are other values (host), or they are floats (devices, where values are not known); shapes
        disagree.
    """
    xp = array_namespace(labels)
    if where is not None and where.shape != labels.shape:
        raise ValueError(f"where must have n = {labels.shape[0]} entries last; it is {tuple(where.shape)}")
    if is_numpy_namespace(xp):
        counted = labels if where is None else labels[where]
        hard = counted.dtype == bool or ((counted == 0) | (counted == 1)).all()
    else:
        hard = xp.isdtype(labels.dtype, ("bool", "integral"))
    if not hard:
        raise ValueError(f"{name} must be 0/1, given as bool or integers")
    return labels if labels.dtype == xp.bool else labels != 0


def _are_counts(weight: Array, where: Array | None) -> bool:
    """Whether weights are whole: known by value on the host, by dtype on devices."""
    xp = array_namespace(weight)
    if not is_numpy_namespace(xp):
        return xp.isdtype(weight.dtype, ("bool", "integral"))
    counted = weight if where is None else weight[..., where]
    return counted.dtype.kind in "iub" or bool((counted == xp.floor(counted)).all())
