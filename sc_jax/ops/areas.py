"""Areas under risk-coverage curves of (score[n], loss[n]); higher score = more confident; exact at ties.

Accept the k most confident of n samples: selective risk r_k = the mean loss of the accepted, generalised risk
g_k = (k/n)·r_k. An area is a sum Σ_k a_k ℓ_(k) over the losses in order; at ties it is the expectation over the orders of
the tied samples, for which a block of loss e with K samples above and w in it adds e·mean(a_{K+1} … a_{K+w}).
"""

from __future__ import annotations

import functools
from fractions import Fraction

import numpy as np
from array_api_compat import array_namespace, is_jax_array, is_numpy_namespace

from sc_jax.ops.ranking import (
    Array,
    Blocks,
    Ranking,
    beside,
    blocks,
    fits_in_integers,
    harmonic_difference,
    harmonic_rest,
    harmonic_rest_of_counts,
    harmonic_tail,
    mean_log_ratio,
    metric_of_ranking,
    nan_if_nan,
    rank,
    real,
    share,
)
from sc_jax.ops.targets import Target, as_fraction, floor_of_share

ESTIMATORS = ("mean", "trapezoid_from_zero", "torch_uncertainty", "fd_shifts", "ln", "sele")
"""The estimators of AURC in use; see `aurc`."""


def aurc(
    score: Array,
    loss: Array,
    estimator: str = "mean",
    *,
    weight: Array | None = None,
    where: Array | None = None,
) -> Array:
    """Area under the risk-coverage curve, by one of the estimators in use.

    - `mean`: (1/n) Σ_k r_k. A block of loss e and weight w with K samples above adds e·φ(K, w), with
      φ = (H_n − H_{K+w}) + 1 − (K/w)(H_{K+w} − H_K); without ties φ = H_n − H_K.
    - `trapezoid_from_zero`: trapezoids through (0, 0), (k/n, r_k) = mean − r_n/(2n).
    - `torch_uncertainty`: trapezoids through (k/n, r_k), k ≥ 1, over 1 − 1/n; NaN for n = 1.
    - `fd_shifts`: trapezoids through the realisable points only (ties collapsed), the first risk held to coverage 0.
    - `ln`: (1/n) Σ_i ℓ_i·(−ln(1 − a_i/(n + 1))), a_i the rank from the least confident.
    - `sele`: (1/n²) Σ_i ℓ_i·#{j: s_j ≤ s_i}, where another sample with the same score counts ½.

    All but `fd_shifts` are expectations over tie orders.

    Args:
      score: [n]; loss: [n], non-negative; estimator: one of the above.
      weight: [..., n]; where: bool [n], which samples there are.

    Returns:
      [...], in the unit of the loss. A constant score has AURC = error rate (`trapezoid_from_zero`: times 1 − 1/2n; `ln`:
      tends to it; `sele`: half of it, times 1 + 1/n). NaN where no sample is left.

    Raises:
      ValueError: an unknown estimator; see `rank` for the rest.

    Source: Geifman, Uziel & El-Yaniv, "Bias-reduced uncertainty estimation", ICLR 2019 (`mean`); Xia & Bouganis, ICCV 2023,
    and Cattelan & Silva, UAI 2024 (`trapezoid_from_zero`); the packages of these names; Zhou et al., ICML 2025 (`ln`); Franc,
    Průša & Voráček, JMLR 2023 (`sele`). The closed forms at ties are ours.

    >>> score, error = np.array([0.9, 0.8, 0.7, 0.6, 0.5]), np.array([0, 0, 0, 1, 1])
    >>> [round(float(aurc(score, error, estimator)), 6) for estimator in ("mean", "trapezoid_from_zero", "ln", "sele")]
    [0.13, 0.09, 0.117557, 0.12]
    """
    if estimator == "fd_shifts":
        return nan_if_nan(score, _collapsed_area(blocks(score, loss, weight, where)), where)
    return nan_if_nan(score, _aurc(rank(score, loss, weight, where), estimator), where)


def _aurc(ranking: Ranking, estimator: str = "mean") -> Array:
    """AURC of a `Ranking`, which `fd_shifts` cannot have: it needs the blocks without loss too."""
    xp = array_namespace(ranking.loss)
    n, above, weight = ranking.total_weight, ranking.before, ranking.weight
    if estimator in ("mean", "trapezoid_from_zero", "torch_uncertainty"):
        mean = share(xp.sum(ranking.loss * _mean_tail(above, weight, n), axis=-1), n)
        if estimator == "mean":
            return mean
        error = share(ranking.total_loss, n)
        if estimator == "trapezoid_from_zero":
            return mean - share(error, 2 * n)
        return torch_uncertainty_of_mean(ranking, mean)
    if estimator == "ln":
        return share(xp.sum(ranking.loss * _mean_log_ratio(above, weight, n), axis=-1), n)
    if estimator == "sele":
        return sele_of_augrc(ranking, augrc.of_ranking(ranking))
    known = "needs `blocks`, not a `Ranking`" if estimator == "fd_shifts" else f"there are {', '.join(ESTIMATORS)}"
    raise ValueError(f"estimator {estimator!r}: {known}")


aurc.of_ranking = _aurc


def torch_uncertainty_of_mean(ranking: Ranking, mean: Array) -> Array:
    """The `torch_uncertainty` estimator of AURC from the `mean` one: (n·mean − r_1/2 − r_n/2)/(n − 1)."""
    xp, before, loss, weight = array_namespace(ranking.loss), ranking.before, ranking.loss, ranking.weight
    if is_numpy_namespace(xp):  # in order, so that those with nothing above come first
        heads = int(np.max(np.count_nonzero(before == 0, axis=-1), initial=0))
        before, loss, weight = (field[..., :heads] for field in (before, loss, weight))
    first = xp.where(before == 0, loss / _positive(weight, xp), 0.0)
    n = ranking.total_weight
    ends = (xp.sum(first, axis=-1) + share(ranking.total_loss, n)) / 2
    return share(n * mean - ends, n - 1)


def sele_of_augrc(ranking: Ranking, area: Array) -> Array:
    """The `sele` estimator of AURC from AUGRC: a sample counts itself wholly, not by half, which adds r_n/(2n)."""
    return area + share(share(ranking.total_loss, ranking.total_weight), 2 * ranking.total_weight)


def _positive(weight: Array, xp: object) -> Array:
    return xp.where(weight > 0, weight, xp.ones_like(weight))


def _mean_tail(above: Array, weight: Array, n: Array) -> Array:
    """The mean of H_n − H_{k−1} over k = K + 1 … K + w, K = above: what a sample of a block adds to n·AURC."""
    xp = array_namespace(above)
    if is_numpy_namespace(xp) and above.dtype.kind == "i":
        return _mean_tail_of_counts(above, weight, n)
    end = xp.broadcast_to(n[..., None], above.shape)
    tied = harmonic_difference(above + weight, end) + harmonic_rest(above, weight)
    return xp.where(weight == 1, harmonic_difference(above, end), tied)


def _mean_tail_of_counts(above: np.ndarray, weight: np.ndarray, n: np.ndarray) -> np.ndarray:
    """The same on the host, where most blocks are single samples; blocks of weight 0 have no loss to count."""
    if last := _shared_total(above, n):
        return _mean_between(_sums_of_tails(last), above, weight)
    tied = np.flatnonzero(weight > 1)
    if len(tied) == 0:
        return harmonic_tail(above, n)
    tail = harmonic_tail(np.where(weight == 1, above, above + weight), n)
    tail.flat[tied] += harmonic_rest_of_counts(above.flat[tied], weight.flat[tied])
    return tail


def _mean_log_ratio(above: Array, weight: Array, n: Array) -> Array:
    """The mean of ln((n + 1)/k) over k = K + 1 … K + w, K = above; on the host most blocks are single samples."""
    xp = array_namespace(above)
    if not (is_numpy_namespace(xp) and above.dtype.kind == "i"):
        return mean_log_ratio(above, weight, n[..., None])
    if last := _shared_total(above, n):
        return _mean_between(_sums_of_log_ratios(last), above, weight)
    n = n[..., None]
    mean = np.log1p((n - above) / (above + 1.0))
    tied = np.flatnonzero(weight > 1)
    last = np.broadcast_to(n, above.shape).flat[tied]
    mean.flat[tied] = mean_log_ratio(above.flat[tied], weight.flat[tied], last)
    return mean


_LONGEST_TABLE = 1_000_000


def _shared_total(above: np.ndarray, n: np.ndarray) -> int:
    """The total that all rows have, where there are more blocks than that: one table then serves all. Else 0."""
    last = int(np.max(n, initial=0))
    return last if above.size > last and last <= _LONGEST_TABLE and (n == last).all() else 0


def _mean_between(sums: np.ndarray, above: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """The mean of a_{K+1} … a_{K+w}, K = above, from sums[k] = Σ_{j>k} a_j; 0 for w = 0.

    A difference of two sums: good to 1e-11 relative at n = 10⁵, where a ranking alone is computed to rounding.
    """
    total = np.take(sums, above)
    total -= np.take(sums, above + weight)
    total /= np.maximum(weight, 1)
    return total


@functools.lru_cache(maxsize=4)
def _sums_of_tails(n: int) -> np.ndarray:
    """Σ_{j>k} (H_n − H_{j−1}) for k = 0 … n, smallest terms first."""
    return _sums_from_the_end(np.cumsum(1 / np.arange(n, 0, -1)))


@functools.lru_cache(maxsize=4)
def _sums_of_log_ratios(n: int) -> np.ndarray:
    """Σ_{j>k} ln((n + 1)/j) for k = 0 … n, smallest terms first."""
    return _sums_from_the_end(np.log1p(np.arange(1, n + 1) / np.arange(n, 0, -1)))


def _sums_from_the_end(last_first: np.ndarray) -> np.ndarray:
    sums = np.concatenate([np.cumsum(last_first)[::-1], [0.0]])
    sums.flags.writeable = False  # it is kept for the next call
    return sums


def _collapsed_area(points: Blocks) -> Array:
    """Trapezoids over realisable points; blocks of weight 0 and repeated rows have no width."""
    xp = array_namespace(points.accepted)
    before, total = points.ranking.before, points.ranking.total_weight
    risk = share(points.loss, points.accepted)
    earlier = xp.where(before > 0, share(points.ranking.loss_before, before), risk)
    width = xp.where(points.first, points.ranking.weight, xp.zeros_like(before))
    area = xp.sum(xp.where(width > 0, width * (earlier + risk) / 2, xp.zeros_like(risk)), axis=-1)
    return share(area, total)


def optimal_aurc(
    loss: Array, estimator: str = "mean", *, weight: Array | None = None, where: Array | None = None
) -> Array:
    """The smallest AURC that a ranking of these very losses can have: the samples in increasing order of loss.

    Args:
      loss: [n], non-negative; estimator: see `aurc`; weight: [..., n]; where: bool [n].

    Returns:
      [...]; the exact optimum of the sample, not its limit err + (1 − err) ln(1 − err), so that E-AURC ≥ 0. (For
      `fd_shifts` that is the perfect ranking with equal losses tied: err²/2 for errors of which not all are wrong. Of soft
      losses a ranking with more ties can have a smaller area of that estimator.)
    """
    return aurc(-real(loss), loss, estimator, weight=weight, where=where)


def _optimum(ranking: Ranking, loss: Array, weight: Array | None, where: Array | None, estimator: str) -> Array:
    """`optimal_aurc`, without another sort where the losses are errors: all right ones, then all wrong ones."""
    if estimator == "fd_shifts" or not is_numpy_namespace(array_namespace(loss)) or ranking.loss.dtype.kind != "i":
        return optimal_aurc(loss, estimator, weight=weight, where=where)
    return _aurc(_perfect(ranking), estimator)


def _perfect(ranking: Ranking) -> Ranking:
    """The perfect ranking of as many errors."""
    wrong, zero = ranking.total_loss[..., None], 0 * ranking.total_loss[..., None]
    right = ranking.total_weight[..., None] - wrong
    return Ranking(right, wrong, zero, wrong, wrong, ranking.total_weight, ranking.total_loss)


def _constant(ranking: Ranking) -> Ranking:
    """All samples tied."""
    whole, total = ranking.total_weight[..., None], ranking.total_loss[..., None]
    return Ranking(0 * whole, whole, 0 * total, total, total, ranking.total_weight, ranking.total_loss)


def e_aurc(
    score: Array,
    loss: Array,
    estimator: str = "mean",
    *,
    weight: Array | None = None,
    where: Array | None = None,
) -> Array:
    """Excess AURC: AURC − optimal AURC ≥ 0, both by the same estimator; 0 for a perfect ranking.

    Args, Returns, Source: as for `aurc`; for `fd_shifts` of soft losses see `optimal_aurc`.
    """
    ranking = rank(score, loss, weight, where)
    value = (
        aurc(score, loss, estimator, weight=weight, where=where)
        if estimator == "fd_shifts"
        else _aurc(ranking, estimator)
    )
    return nan_if_nan(score, value - _optimum(ranking, loss, weight, where, estimator), where)


def naurc(
    score: Array,
    loss: Array,
    estimator: str = "mean",
    *,
    weight: Array | None = None,
    where: Array | None = None,
) -> Array:
    """Normalised AURC: (AURC − optimal) / (random − optimal); 0 is perfect, 1 is random; NaN if all losses are equal.

    Random is the AURC of a constant score, the mean loss for `mean`; all three are of the same estimator.

    Args and Returns as for `aurc`. Source: Cattelan & Silva, "How to fix a broken confidence estimator", UAI 2024.
    """
    ranking = rank(score, loss, weight, where)
    if estimator == "fd_shifts":
        value, random = (
            aurc(score, loss, estimator, weight=weight, where=where),
            share(ranking.total_loss, ranking.total_weight),
        )
    else:
        value, random = _aurc(ranking, estimator), _aurc(_constant(ranking), estimator)
    return nan_if_nan(score, normalised(value, _optimum(ranking, loss, weight, where, estimator), random), where)


def prr(
    score: Array,
    loss: Array,
    estimator: str = "mean",
    *,
    weight: Array | None = None,
    where: Array | None = None,
) -> Array:
    """Prediction rejection ratio: 1 − NAURC, its name in work on language models; 1 is perfect, 0 is random.

    Args and Returns as for `aurc`. Source: Malinin & Gales, ICLR 2021 (from memory).
    """
    return 1 - naurc(score, loss, estimator, weight=weight, where=where)


def normalised(value: Array, optimum: Array, random: Array) -> Array:
    """(value − optimum) / (random − optimum), NaN where random and perfect rankings do not differ.

    Args:
      value, optimum, random: [...].
    """
    xp = array_namespace(value)
    room = random - optimum
    known = room > random * (1e-12 if value.dtype == xp.float64 else 1e-6)
    return xp.where(known, (value - optimum) / xp.where(known, room, xp.ones_like(room)), xp.nan)


@metric_of_ranking
def augrc(ranking: Ranking) -> Array:
    """Area under the generalised risk-coverage curve, by the trapezoid from (0, 0): Σ_g e_g (n − K_g − w_g/2) / n².

    Args:
      score: [n]; loss: [n], non-negative; weight: [..., n]; where: bool [n].

    Returns:
      [...], in the unit of the loss, in [0, ½] for errors. For 0/1 losses equal to (1 − AUROC_f)·acc·err + err²/2.

    Source: Traub et al., "Overcoming common flaws in the evaluation of selective classification systems", NeurIPS 2024.

    >>> round(float(augrc(np.array([0.9, 0.8, 0.7, 0.6, 0.5]), np.array([0, 0, 0, 1, 1]))), 12)
    0.08
    """
    xp = array_namespace(ranking.loss)
    n = ranking.total_weight
    if fits_in_integers(ranking):  # exactly
        twice = n[..., None] - ranking.before
        twice *= 2
        twice -= ranking.weight
        return share(share(np.einsum("...g,...g->...", ranking.loss, twice), n), 2 * n)
    later = n[..., None] - ranking.before - ranking.weight / 2
    return share(xp.sum(ranking.loss * share(later, n[..., None]), axis=-1), n)


def e_augrc(score: Array, loss: Array, *, weight: Array | None = None, where: Array | None = None) -> Array:
    """Excess AUGRC: AUGRC − the AUGRC of the perfect ranking of these losses, err²/2 for errors.

    Args:
      score: [n]; loss: [n], non-negative; weight: [..., n]; where: bool [n].

    Returns:
      [...] ≥ 0, in the unit of the loss.
    """
    best = augrc(-real(loss), loss, weight=weight, where=where)
    return augrc(score, loss, weight=weight, where=where) - best


@metric_of_ranking
def partial_aurc(ranking: Ranking, low: Target = 0, high: Target = 1) -> Array:
    """Mean selective risk over a range of coverages: the mean of r_k over ⌊low·n⌋ < k ≤ ⌊high·n⌋.

    A block is cut in three, before, in and after the range; with a = ⌊low·n⌋, b = ⌊high·n⌋ a position k before the range adds
    H_b − H_a, one in it H_b − H_{k−1}.

    Args:
      score: [n]; loss: [n], non-negative; low, high: coverages, 0 ≤ low < high ≤ 1, read as decimals.
      weight: [..., n]; where: bool [n].

    Returns:
      [...], in the unit of the loss; AURC for the whole range; NaN where no k/n lies in it.

    Raises:
      ValueError: not 0 ≤ low < high ≤ 1.
    """
    xp = array_namespace(ranking.loss)
    low, high = _range(low, high)
    a, b = (floor_of_share(end, ranking.total_weight)[..., None] for end in (low, high))
    width = (b - a)[..., 0]
    none = xp.zeros_like(ranking.weight)
    in_first = xp.clip(a - ranking.before, none, ranking.weight)
    in_range = xp.clip(b - ranking.before, none, ranking.weight) - in_first
    start = ranking.before + in_first
    end = xp.broadcast_to(b, start.shape)
    start, a = xp.minimum(start, end), xp.minimum(xp.broadcast_to(a, start.shape), end)
    tail = harmonic_difference(xp.minimum(start + in_range, end), end) + harmonic_rest(start, in_range)
    part = in_first * harmonic_difference(a, end) + in_range * tail
    return share(xp.sum(ranking.loss / _positive(ranking.weight, xp) * part, axis=-1), width)


@metric_of_ranking
def partial_augrc(ranking: Ranking, low: Target = 0, high: Target = 1) -> Array:
    """Mean generalised risk over a range of coverages: ∫ g(c) dc over [low, high], over high − low; g is linear between points.

    Args:
      score: [n]; loss: [n], non-negative; low, high: coverages, 0 ≤ low < high ≤ 1, read as decimals.
      weight: [..., n]; where: bool [n].

    Returns:
      [...], in the unit of the loss; AUGRC for the whole range.

    Raises:
      ValueError: not 0 ≤ low < high ≤ 1.
    """
    xp = array_namespace(ranking.loss)
    low, high = _range(low, high)
    n = ranking.total_weight

    def accepted_area(coverage: Fraction) -> Array:
        """∫ over accepted = 0 … coverage·n of the accepted share of each block."""
        beyond = float(coverage) * n[..., None] - ranking.before
        inside = xp.clip(beyond, 0.0 * ranking.weight, 1.0 * ranking.weight)
        return inside**2 / (2 * _positive(ranking.weight, xp)) + xp.maximum(beyond - ranking.weight, 0.0 * inside)

    area = accepted_area(high) - accepted_area(low)
    return share(xp.sum(ranking.loss * share(area, n[..., None]), axis=-1), n) / float(high - low)


def _range(low: Target, high: Target) -> tuple[Fraction, Fraction]:
    low, high = as_fraction(low), as_fraction(high)
    if not 0 <= low < high <= 1:
        raise ValueError(f"a range of coverages needs 0 ≤ low < high ≤ 1; it is ({float(low):g}, {float(high):g})")
    return low, high


def achievable_aurc(score: Array, loss: Array, *, weight: Array | None = None, where: Array | None = None) -> Array:
    """AURC of the best rejector that mixes thresholds of this score: on the lower convex hull of the generalised-risk curve.

    Between hull points (c₁, g₁), (c₂, g₂) a mixture has g linear in c, so ∫ g/c dc = m(c₂ − c₁) + (g₁ − m c₁) ln(c₂/c₁) with
    slope m. The slopes are the isotonic regression of the blocks' mean losses.

    Args:
      score: [n]; loss: [n], non-negative; weight: [..., n]; where: bool [n].

    Returns:
      [...], in the unit of the loss; a lower bound of the score's own curve at every coverage. On devices the hull is found
      on the host, by a callback.

    Source: the ROC convex hull of Provost & Fawcett, 2001; its use for risk-coverage curves is fd-shifts'.
    """
    points = blocks(score, loss, weight, where)
    block_weight, block_loss = points.ranking.weight, points.ranking.block_loss
    xp = array_namespace(block_weight)
    block_weight = xp.where(points.first, block_weight, xp.zeros_like(block_weight))
    if is_jax_array(block_weight):
        import jax

        shape = jax.ShapeDtypeStruct(block_weight.shape[:-1], xp.result_type(block_loss.dtype, xp.float32))
        hull = functools.partial(_hull_areas, dtype=shape.dtype)
        value = jax.pure_callback(hull, shape, block_weight, block_loss, vmap_method="expand_dims")
        return nan_if_nan(score, value, where)
    if is_numpy_namespace(xp):
        return _hull_areas(block_weight, block_loss)
    area = _hull_areas(*(_on_host(array) for array in (block_weight, block_loss)))
    return nan_if_nan(score, beside(block_weight, area, xp.float64), where)


def _on_host(array: Array) -> np.ndarray:
    if hasattr(array, "get"):  # CuPy
        return array.get()
    return np.from_dlpack(array.cpu() if hasattr(array, "cpu") else array)


def _hull_areas(weight: np.ndarray, loss: np.ndarray, dtype: type = np.float64) -> np.ndarray:
    weight, loss = np.broadcast_arrays(np.asarray(weight, np.float64), np.asarray(loss, np.float64))
    areas = [_hull_area(weight[row], loss[row]) for row in np.ndindex(weight.shape[:-1])]
    return np.asarray(areas, dtype).reshape(weight.shape[:-1])


def _hull_area(weight: np.ndarray, loss: np.ndarray) -> float:
    from scipy.optimize import isotonic_regression

    there = weight > 0
    weight, loss = weight[there], loss[there]
    if len(weight) == 0:
        return np.nan
    slope = isotonic_regression(loss / weight, weights=weight).x
    start = np.flatnonzero(np.concatenate([[True], slope[1:] != slope[:-1]]))
    slope, width = slope[start], np.add.reduceat(weight, start)
    through = np.cumsum(width)
    before = through - width
    total = np.concatenate([[0.0], np.cumsum(slope * width)[:-1]])
    later = before > 0
    log = np.log1p(width[later] / before[later])
    return (np.sum(slope * width) + np.sum((total[later] - slope[later] * before[later]) * log)) / through[-1]


def class_balanced_loss(loss: Array, label: Array) -> Array:
    """Losses weighted so that every class counts alike: ℓ_i·n/(K·n_y), K the number of classes that occur.

    With it every metric here becomes class-balanced, by the true class if `label` is the true class:
    `aurc(score, class_balanced_loss(loss, label))`.

    Args:
      loss: [n]; label: int [n] (on devices classes 0 … max are found on the host: not under jit).

    Returns:
      [n] float; its mean is the mean of the classes' mean losses.

    Raises:
      ValueError: shapes disagree.

    Source: Traub et al., NeurIPS 2024 (class-weighted residuals).
    """
    xp = array_namespace(loss, label)
    if loss.shape != label.shape:
        raise ValueError(f"loss and label must both be [n]; they are {tuple(loss.shape)} and {tuple(label.shape)}")
    inverse, count = xp.unique_inverse(label)[1], xp.unique_counts(label)[1]
    n, classes = label.shape[0], count.shape[0]
    return real(loss) * (n / (classes * real(xp.take(count, inverse))))


def aurc_loss(score: Array, loss: Array, estimator: str = "mean", temperature: float | None = None) -> Array:
    """A differentiable surrogate of AURC, to train with: Σ_i a_i ℓ_i with a_i by the in-batch rank of the score.

    Without a temperature the value is AURC itself and the weights are constants: the gradient reaches the losses, so
    that confident examples weigh more. With one, ranks are soft, k_i = ½ + Σ_j σ((s_j − s_i)/τ), and the gradient reaches the scores
    too: weights are then H_n − H_{k−1} by ψ (`mean`), ln((n + 1)/k) (`ln`) or (n − k + 1)/n (`sele`).

    Args:
      score: [n]; loss: [n] ≥ 0, differentiable in the parameters (cross-entropy, say).
      estimator: `mean`, `ln` or `sele`; temperature: τ > 0 in the unit of the score, O(n²); None for hard ranks.

    Returns:
      A number, in the unit of the loss.

    Raises:
      ValueError: an unknown estimator; a temperature that is not positive; see `rank` for the rest.

    Source: Zhou et al., ICML 2025, and Franc, Průša & Voráček, JMLR 2023, for rank weights (from memory); the soft ranks are ours.
    """
    import jax
    import jax.numpy as jnp

    if estimator not in ("mean", "ln", "sele"):
        raise ValueError(f"estimator {estimator!r}: aurc_loss knows mean, ln and sele")
    if isinstance(temperature, (int, float)) and not temperature > 0:  # a traced one may be annealed
        raise ValueError(f"temperature must be > 0, or None for hard ranks; it is {temperature}")
    n = score.shape[0]
    if temperature is None:
        weights = jax.grad(lambda values: aurc(jax.lax.stop_gradient(score), values, estimator))(
            jnp.zeros(n, loss.dtype)
        )
        return jnp.sum(jax.lax.stop_gradient(weights) * loss)
    position = 0.5 + jnp.sum(jax.nn.sigmoid((score[None, :] - score[:, None]) / temperature), axis=1)
    weights = {
        "mean": lambda k: harmonic_difference(k - 1, jnp.full_like(k, n)),
        "ln": lambda k: jnp.log((n + 1) / k),
        "sele": lambda k: (n - k + 1) / n,
    }[estimator](position)
    return jnp.mean(weights * loss)


@metric_of_ranking(errors_only=True)
def aurc_at_error(ranking: Ranking, target: Target) -> Array:
    """AURC at a common error rate, to compare the rankings of classifiers of different accuracy.

    Right samples are reweighted by (1 − t)/(1 − err) and wrong ones by t/err, so that the error is t while the score's
    distributions among the right and among the wrong stay what they are; then AURC with real weights. In a bootstrap each
    resample is reweighted anew.

    Args:
      score: [n]; loss: [n], 0/1 as bool or integers; target: t in [0, 1]; weight: [..., n]; where: bool [n].

    Returns:
      [...]; NaN if all are right or all are wrong.

    Raises:
      ValueError: the losses are not 0/1 errors, or the target lies outside [0, 1].
    """
    return _aurc(reweighted_to_error(ranking, target))


def reweighted_to_error(ranking: Ranking, target: Target) -> Ranking:
    """The `Ranking` of 0/1 errors with right and wrong samples reweighted to an error rate; see `aurc_at_error`."""
    t = float(as_fraction(target))
    if not 0 <= t <= 1:
        raise ValueError(f"an error rate lies in [0, 1]; the target is {target}")
    n, wrong = 1.0 * ranking.total_weight, 1.0 * ranking.total_loss
    of_right, of_wrong = share((1 - t) * n, n - wrong), share(t * n, wrong)
    right, bad = of_right[..., None], of_wrong[..., None]
    return Ranking(
        before=right * (ranking.before - ranking.loss_before) + bad * ranking.loss_before,
        weight=right * (ranking.weight - ranking.block_loss) + bad * ranking.block_loss,
        loss_before=bad * ranking.loss_before,
        loss=bad * ranking.loss,
        block_loss=bad * ranking.block_loss,
        total_weight=n + 0 * (of_right + of_wrong),
        total_loss=of_wrong * wrong + 0 * of_right,
    )
