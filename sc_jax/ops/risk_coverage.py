"""Risk-coverage metrics of (score[n], loss[n]); higher score = more confident; exact at ties.

Accept the k most confident of n samples: coverage k/n, selective risk r_k = the mean loss of the accepted, generalised
risk g_k = (k/n)·r_k. At ties every metric is the expectation over the orders of the tied samples, except where a
threshold is asked for (`coverage_at_risk`): a threshold accepts a whole block of tied samples or none of it.
"""

from __future__ import annotations

from fractions import Fraction
from typing import NamedTuple

from array_api_compat import array_namespace

from sc_jax.ops.ranking import (
    Array,
    Ranking,
    harmonic_difference,
    harmonic_rest,
    metric_of_ranking,
    nan_if_nan,
    rank,
)


class RiskCoverageCurve(NamedTuple):
    """Points of the curve, at coverage 1/n … 1: `coverage`, `risk`, `generalized_risk`, each [n]."""

    coverage: Array
    risk: Array
    generalized_risk: Array


def as_fraction(target: float | str | Fraction) -> Fraction:
    """A target read as the decimal it is written as, so that 1 error in 100 meets 0.01.

    >>> as_fraction(0.07)
    Fraction(7, 100)
    """
    return Fraction(str(target))


def floor_of_share(share: Fraction, count: Array) -> Array:
    """⌊share · count⌋ of whole counts [...], exactly: for counts up to 2⁴⁰ in int64, 2²⁰ in int32.

    Up to such a bound the share may give way to the largest fraction below it with a denominator within the bound; then
    the product, in two limbs, does not overflow.
    """
    limb = 2**20 if count.dtype.itemsize == 8 else 2**10
    whole, part = divmod(share, 1)
    near = part.limit_denominator(limb**2)
    if near > part:  # its left neighbour a/b among these fractions: a · near.denominator = b · near.numerator − 1
        inverse = pow(near.numerator, -1, near.denominator)
        b = limb**2 - (limb**2 - inverse) % near.denominator
        near = Fraction((b * near.numerator - 1) // near.denominator, b)
    a, b = near.numerator, near.denominator
    high, low = count % b // limb, count % b % limb
    return whole * count + count // b * a + high * a // b * limb + (high * a % b * limb + low * a) // b


def risk_coverage_curve(score: Array, loss: Array) -> RiskCoverageCurve:
    """The expected curve over tie orders: within a block the expected total loss grows linearly.

    Args:
      score: [n]; loss: [n], non-negative.

    Returns:
      A `RiskCoverageCurve` with n points.

    Source: El-Yaniv & Wiener, "On the foundations of noise-free selective classification", JMLR 2010.
    """
    ranking = rank(score, loss)
    xp = array_namespace(ranking.before)
    accepted = xp.arange(1, score.shape[0] + 1)
    total = loss_of_accepted(ranking, accepted)
    total = nan_if_nan(score, total)
    return RiskCoverageCurve(accepted / score.shape[0], total / accepted, total / score.shape[0])


def loss_of_accepted(ranking: Ranking, accepted: Array) -> Array:
    """Expected total loss of the most confident: linear in their number within each block.

    Args:
      ranking: [..., g]; leading axes (resamples) on the host only.
      accepted: int [c], how many are accepted, in 0..n.

    Returns:
      [..., c].
    """
    xp = array_namespace(ranking.before)
    if ranking.before.ndim > 1:
        rows = [Ranking(*(field[i] for field in ranking)) for i in range(ranking.before.shape[0])]
        return xp.stack([loss_of_accepted(row, accepted) for row in rows])
    if ranking.before.shape[0] == 0:
        return xp.zeros(accepted.shape)
    end = ranking.before + ranking.weight
    row = xp.clip(xp.searchsorted(end, accepted, side="left"), 0, end.shape[0] - 1)
    share = xp.clip((accepted - ranking.before[row]) / xp.maximum(ranking.weight[row], 1), 0, 1)
    return ranking.loss_before[row] + share * ranking.block_loss[row]


@metric_of_ranking
def aurc(ranking: Ranking) -> Array:
    """Area under the risk-coverage curve: AURC = (1/n) Σ_k r_k, expected over tie orders.

    Computed block by block: a block of loss e and weight w with K samples above adds e·φ(K, w) to n·AURC, with
    φ = (H_n − H_{K+w}) + 1 − (K/w)(H_{K+w} − H_K); without ties φ = H_n − H_K.

    Args:
      score: [n]; loss: [n], non-negative; weight: [..., n].

    Returns:
      [...], in the unit of the loss; the error rate for a constant score.

    Source: Geifman, Uziel & El-Yaniv, "Bias-reduced uncertainty estimation", ICLR 2019 (the plug-in mean of selective
    risks); the closed form at ties is ours.

    >>> import numpy as np
    >>> score, error = np.array([0.9, 0.8, 0.7, 0.6, 0.5]), np.array([0, 0, 0, 1, 1])
    >>> round(float(aurc(score, error)), 12)  # (0 + 0 + 0 + 1/4 + 2/5) / 5
    0.13
    """
    xp = array_namespace(ranking.loss)
    n, above, weight = ranking.total_weight, ranking.before, ranking.weight
    through = above + weight
    within = harmonic_rest(above, weight)
    rest = harmonic_difference(through, xp.broadcast_to(n[..., None], through.shape))
    untied = harmonic_difference(above, xp.broadcast_to(n[..., None], through.shape))
    share = xp.where(weight == 1, untied, rest + within)
    return xp.sum(ranking.loss * share, axis=-1) / n


@metric_of_ranking
def augrc(ranking: Ranking) -> Array:
    """Area under the generalised risk-coverage curve, by the trapezoid from (0, 0): Σ_g e_g (n − K_g − w_g/2) / n².

    Args:
      score: [n]; loss: [n], non-negative; weight: [..., n].

    Returns:
      [...], in the unit of the loss, in [0, ½] for errors. For 0/1 losses equal to (1 − AUROC_f)·acc·err + err²/2.

    Source: Traub et al., "Overcoming common flaws in the evaluation of selective classification systems", NeurIPS 2024.

    >>> import numpy as np
    >>> round(float(augrc(np.array([0.9, 0.8, 0.7, 0.6, 0.5]), np.array([0, 0, 0, 1, 1]))), 12)
    0.08
    """
    xp = array_namespace(ranking.loss)
    n = ranking.total_weight
    later = n[..., None] - ranking.before - ranking.weight / 2
    return xp.sum(ranking.loss * (later / n[..., None]), axis=-1) / n


def optimal_aurc(loss: Array, *, weight: Array | None = None) -> Array:
    """The smallest AURC that a ranking of these very losses can have: the samples in increasing order of loss.

    Args:
      loss: [n], non-negative; weight: [..., n].

    Returns:
      [...]; the exact optimum of the sample, not its limit err + (1 − err) ln(1 − err), so that E-AURC ≥ 0.
    """
    xp = array_namespace(loss)
    loss = xp.asarray(loss)
    return aurc(-(loss * 1.0), loss, weight=weight)


def e_aurc(score: Array, loss: Array, *, weight: Array | None = None) -> Array:
    """Excess AURC: AURC − optimal AURC ≥ 0; 0 for a perfect ranking. Arguments and source as for `aurc`."""
    return aurc(score, loss, weight=weight) - optimal_aurc(loss, weight=weight)


def naurc(score: Array, loss: Array, *, weight: Array | None = None) -> Array:
    """Normalised AURC: (AURC − optimal) / (mean loss − optimal); 0 is perfect, 1 is random; NaN if all losses are equal.

    Arguments as for `aurc`. Source: Cattelan & Silva, "How to fix a broken confidence estimator", UAI 2024.
    """
    ranking = rank(score, loss, weight)
    return nan_if_nan(score, normalised(aurc.of_ranking(ranking), optimal_aurc(loss, weight=weight), ranking))


def normalised(value: Array, optimum: Array, ranking: Ranking) -> Array:
    """(value − optimum) / (mean loss − optimum), NaN where random and perfect rankings do not differ."""
    xp = array_namespace(value)
    mean = ranking.total_loss / ranking.total_weight
    room = mean - optimum
    known = room > mean * (1e-12 if value.dtype == xp.float64 else 1e-6)
    return xp.where(known, (value - optimum) / xp.where(known, room, 1), xp.nan)


@metric_of_ranking
def coverage_at_risk(ranking: Ranking, risk: float | str | Fraction) -> Array:
    """The largest coverage at which a threshold keeps the selective risk at or below `risk`; 0 if none does.

    Only realisable points count: a threshold accepts whole blocks of tied samples. Errors are compared as integers,
    errors ≤ ⌊risk · accepted⌋, with `risk` read as a decimal.

    Args:
      score: [n]; loss: [n], non-negative; risk: the target, e.g. 0.05; weight: [..., n].

    Returns:
      [...], in [0, 1]. Computed on the data it is reported for, it is a description, not a guarantee.

    >>> import numpy as np
    >>> float(coverage_at_risk(np.array([0.9, 0.8, 0.7, 0.6, 0.5]), np.array([0, 0, 0, 1, 1]), 0.25))
    0.8
    """
    xp = array_namespace(ranking.before)
    # Risk falls between losses: the largest feasible coverage lies just before a block that carries loss, or at the end.
    accepted = xp.concat([ranking.before, ranking.total_weight[..., None]], axis=-1)
    loss = xp.concat([ranking.loss_before, ranking.total_loss[..., None]], axis=-1)
    target = as_fraction(risk)
    feasible = loss <= floor_of_share(target, accepted)
    if not xp.isdtype(loss.dtype, "integral"):
        feasible = xp.where(loss == xp.floor(loss), feasible, loss <= accepted * float(target))
    return xp.max(xp.where(feasible, accepted, 0), axis=-1) / ranking.total_weight


@metric_of_ranking
def risk_at_coverage(ranking: Ranking, coverage: float | str | Fraction) -> Array:
    """Selective risk of the k = ⌈coverage · n⌉ most confident, expected over tie orders.

    Args:
      score: [n]; loss: [n], non-negative; coverage: in (0, 1], read as a decimal; weight: [..., n].

    Returns:
      [...], in the unit of the loss.

    Raises:
      ValueError: coverage outside (0, 1].
    """
    target = as_fraction(coverage)
    if not 0 < target <= 1:
        raise ValueError(f"coverage must lie in (0, 1]; it is {coverage}")
    xp = array_namespace(ranking.before)
    accepted = ranking.total_weight - floor_of_share(1 - target, ranking.total_weight)
    share = xp.clip((accepted[..., None] - ranking.before) / xp.maximum(ranking.weight, 1), 0, 1)
    return xp.sum(ranking.loss * share, axis=-1) / accepted
