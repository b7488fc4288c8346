"""How far a selective classifier is from a perfect ordering of its own errors, and why.

The selective gap is the accuracy of a classifier of the same overall accuracy that accepts all its right predictions first,
less the accuracy that the score reaches. Its area is E-AURC. Score and loss alone say how large it is; what part of it noise
in the labels, the classifier and the score have in it takes a posterior: of a simulation, of repeated labels, or of a
stronger model that is taken for the truth.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from array_api_compat import array_namespace, is_jax_array, is_numpy_namespace

from sc_jax.ops.areas import aurc
from sc_jax.ops.ranking import Array, require_errors, share
from sc_jax.ops.risk_coverage import risk_at_coverage, risk_coverage_curve
from sc_jax.ops.targets import Target

_ROUNDING = 1e-6  # posteriors may come in float32


class SelectiveGap(NamedTuple):
    """The accuracy-coverage curve under its bound, in increasing order of coverage, each [c].

    Attributes:
      coverage, accuracy: of the accepted.
      upper_bound: the accuracy of a perfect ordering of as many errors.
      gap: upper_bound − accuracy ≥ 0, up to rounding.
    """

    coverage: Array
    accuracy: Array
    upper_bound: Array
    gap: Array


def selective_gap(
    score: Array, loss: Array, *, weight: Array | None = None, where: Array | None = None
) -> SelectiveGap:
    """The selective gap at coverages 1/n … 1: Δ(c) = min(1, a/c) − acc(c), a the accuracy at coverage 1.

    Accuracies are expectations over tie orders. The mean of the gap over the n coverages is E-AURC.

    Args:
      score: [n]; loss: [n], 0/1 errors as bool or integers (0.0/1.0 on the host); weight: [n]; where: bool [n].

    Returns:
      A `SelectiveGap`. It does not change under a strictly increasing map of the score.

    Raises:
      ValueError: the losses are not 0/1 errors; see `rank` for the rest.

    Source: Rabanser & Papernot, "What does it take to build a performant selective classifier?", NeurIPS 2025 (Δ and its
    bound); that its mean is E-AURC of the sample is derived.

    >>> gap = selective_gap(np.array([0.9, 0.8, 0.7, 0.6]), np.array([0, 1, 0, 0]))
    >>> [round(float(x), 4) for x in gap.gap]  # one error of four; a perfect ordering has it last
    [0.0, 0.5, 0.3333, 0.0]
    """
    require_errors(loss, "selective_gap", where)
    curve = risk_coverage_curve(score, loss, weight=weight, where=where)
    accuracy = 1 - curve.risk
    bound = perfect_ordering_accuracy(accuracy[-1:], curve.coverage)
    return SelectiveGap(curve.coverage, accuracy, bound, bound - accuracy)


def perfect_ordering_accuracy(accuracy: Array, coverage: Array) -> Array:
    """Accuracy at a coverage if all right predictions are accepted before any wrong one: min(1, a/c).

    Args:
      accuracy: a, at coverage 1, in [0, 1]; coverage: c in (0, 1]; numbers or arrays [...] that broadcast.

    Returns:
      [...]. Its mean over c in (0, 1) is a(1 − ln a); over the coverages k/n of a sample it is 1 − `optimal_aurc`.

    Source: Rabanser & Papernot, NeurIPS 2025; the integral is that of Geifman, Uziel & El-Yaniv, ICLR 2019, the sum derived.

    >>> float(perfect_ordering_accuracy(0.75, 0.5)), float(perfect_ordering_accuracy(0.75, 0.8))
    (1.0, 0.9375)
    """
    ratio = accuracy / coverage
    xp = array_namespace(ratio) if hasattr(ratio, "dtype") else np
    return xp.minimum(ratio, xp.ones_like(ratio))


class ConditionalRisks(NamedTuple):
    """What a posterior says of predictions, each [..., n].

    Attributes:
      conditional_risk: P(label ≠ prediction | x).
      bayes_risk: 1 − max_y P(y | x), the least that any prediction has there.
    """

    conditional_risk: Array
    bayes_risk: Array


def conditional_risks(posterior: Array, prediction: Array) -> ConditionalRisks:
    """The probability of error of each prediction, and the least possible, from a posterior over the classes.

    Both are sums over the other classes, so that small ones keep their digits.

    Args:
      posterior: [..., n, k] ≥ 0, proportional to P(y | x): probabilities, or how many annotators gave each label.
      prediction: int [..., n], the predicted classes.

    Returns:
      `ConditionalRisks`; NaN where a row is all 0. With m annotators the largest share overstates max_y P(y | x), the more so the
      smaller m: the Bayes noise comes out too small and the approximation error too large. Annotations that also gave the
      labels of the loss make the sampling part of the budget too small.

    Raises:
      ValueError: shapes disagree.

    >>> risks = conditional_risks(np.array([[8, 1, 1], [3, 5, 2]]), np.array([0, 0]))
    >>> [[round(float(x), 4) for x in risk] for risk in risks]
    [[0.2, 0.7], [0.2, 0.5]]
    """
    xp = array_namespace(posterior, prediction)
    if posterior.shape[:-1] != prediction.shape:
        raise ValueError(
            "posterior must be [..., n, k] and prediction [..., n]; "
            f"they are {tuple(posterior.shape)} and {tuple(prediction.shape)}"
        )
    posterior = _working(posterior)
    k = posterior.shape[-1]
    classes = xp.reshape(xp.arange(k, dtype=prediction.dtype), (1,) * prediction.ndim + (k,))
    best = xp.astype(xp.argmax(posterior, axis=-1), prediction.dtype)
    total = xp.sum(posterior, axis=-1)

    def of_others(own: Array) -> Array:
        return share(xp.sum(xp.where(classes == own[..., None], 0.0 * posterior, posterior), axis=-1), total)

    return ConditionalRisks(of_others(prediction), of_others(best))


class GapBudget(NamedTuple):
    """Where a selective gap comes from; all in the unit of the loss. A is the set that the score accepts, A* the set of the
    smallest conditional risks, as large.

    Attributes:
      gap: risk of A − `perfect`.
      perfect: the risk of the perfect ordering of the realised losses, 1 − min(1, a/c) for errors. It knows the labels.
      noise: mean conditional risk over the region (A* or A, as asked for).
      bayes: the part of `noise` that no classifier could avoid, mean Bayes risk over the region; None if not known.
      approximation: the rest of `noise`, by which the classifier's predictions are worse than the best; None if not known.
      ranking: mean conditional risk over A − over A* ≥ 0; what a better score for the same classifier would gain.
      sampling: risk of A − mean conditional risk over A; the luck of these labels, of mean 0.
    """

    gap: Array
    perfect: Array
    noise: Array
    bayes: Array | None
    approximation: Array | None
    ranking: Array
    sampling: Array


def selective_gap_budget(
    score: Array,
    loss: Array,
    conditional_risk: Array,
    bayes_risk: Array | None = None,
    coverage: Target = "area",
    region: str = "oracle",
    *,
    weight: Array | None = None,
    where: Array | None = None,
) -> GapBudget:
    """Splits the selective gap into Bayes noise, approximation error, ranking error and sampling noise.

    With ρ the conditional risk E[loss | x], ρ* ≤ ρ the Bayes risk and E[· | A] means over accepted samples, exactly

        gap = E[ρ* | A*] + E[ρ − ρ* | A*] + (E[ρ | A] − E[ρ | A*]) + (risk(A) − E[ρ | A]) − perfect
            =    bayes   +  approximation +        ranking         +      sampling        − perfect.

    - `region="oracle"`: noise, bayes and approximation over A*, as above: the parts add up.
    - `region="accepted"`: over A, the terms of the paper. There they contain the ranking error: gap = bayes + approximation +
      sampling − perfect. The paper's bound (its Theorem 1) adds the ranking error once more, drops `perfect` and bounds `sampling`:
      gap ≤ bayes + approximation + ranking + `statistical_width`; its slack for optimisation and shift is 0 where ρ is true.

    From score and loss alone, pass the loss for ρ: then ranking = gap, the rest cancels.

    Args:
      score: [n]; loss: [n], non-negative.
      conditional_risk: ρ [n]; bayes_risk: ρ* [n]; see `conditional_risks`.
      coverage: a target in (0, 1], for the ⌈c·n⌉ most confident; "curve", for the coverages 1/n … 1; "area", for means over these,
        so that gap is E-AURC, perfect `optimal_aurc`.
      region: as above; weight: [..., n] ([n] for a curve); where: bool [n].

    Returns:
      A `GapBudget` of numbers [...], or [c] for a curve. Expectations over tie orders. With rows of weights for resamples it has
      bootstrap distributions.

    Raises:
      ValueError: shapes disagree; ρ* > ρ somewhere (on the host); an unknown region; see `rank` for the rest.

    Source: Rabanser & Papernot, NeurIPS 2025, for the terms (there for errors, as an upper bound; known to us from secondary
    sources). The exact sum, any loss, areas and ties are ours.

    >>> score, loss = np.array([0.9, 0.8, 0.7, 0.6]), np.array([0, 1, 0, 0])
    >>> rho, best = np.array([0.1, 0.5, 0.1, 0.2]), np.array([0.1, 0.1, 0.1, 0.2])
    >>> budget = selective_gap_budget(score, loss, rho, best, coverage=0.5)
    >>> {name: round(float(value), 4) for name, value in budget._asdict().items()}  # doctest: +NORMALIZE_WHITESPACE
    {'gap': 0.5, 'perfect': 0.0, 'noise': 0.1, 'bayes': 0.1, 'approximation': 0.0, 'ranking': 0.2, 'sampling': 0.2}
    """
    if region not in ("oracle", "accepted"):
        raise ValueError(f"region {region!r}: there are 'oracle' and 'accepted'")
    conditional_risk = _checked(loss, conditional_risk, bayes_risk, where)
    mean = _mean_loss(coverage, weight, where)
    oracle = -conditional_risk
    risk, perfect = mean(score, loss), mean(-_working(loss), loss)
    accepted, least = mean(score, conditional_risk), mean(oracle, conditional_risk)
    order, noise = (oracle, least) if region == "oracle" else (score, accepted)
    bayes = None if bayes_risk is None else mean(order, bayes_risk)
    return GapBudget(
        gap=risk - perfect,
        perfect=perfect,
        noise=noise,
        bayes=bayes,
        approximation=None if bayes is None else noise - bayes,
        ranking=accepted - least,
        sampling=risk - accepted,
    )


def _checked(loss: Array, conditional: Array, bayes: Array | None, where: Array | None) -> Array:
    """The conditional risk as a number that can be negated."""
    for name, risk in (("conditional_risk", conditional), ("bayes_risk", bayes)):
        if risk is not None and risk.shape != loss.shape:
            raise ValueError(f"{name} must be [n] = {tuple(loss.shape)}, as the loss; it is {tuple(risk.shape)}")
    if bayes is not None and is_numpy_namespace(array_namespace(loss, conditional, bayes)):
        above = bayes > _working(conditional) + _ROUNDING
        if (above if where is None else above & where).any():
            raise ValueError("bayes_risk exceeds conditional_risk: it is the risk of the best prediction at the same x")
    return _working(conditional)


def _working(values: Array) -> Array:
    """float64; on JAX the dtype of the values, or float32 if that is less."""
    xp = array_namespace(values)
    dtype = xp.result_type(values.dtype, xp.float32) if is_jax_array(values) else xp.float64
    return xp.astype(values, dtype, copy=False)


def _mean_loss(coverage: Target, weight: Array | None, where: Array | None) -> Callable[[Array, Array], Any]:
    """What a score makes of a loss: its mean over the accepted at a coverage, at all, or on average over all."""
    if coverage == "area":
        return lambda score, loss: aurc(score, loss, weight=weight, where=where)
    if coverage == "curve":
        return lambda score, loss: risk_coverage_curve(score, loss, weight=weight, where=where).risk
    return lambda score, loss: risk_at_coverage(score, loss, coverage, weight=weight, where=where)


def statistical_width(accepted: Array, delta: float = 0.05, points: int = 1) -> Array:
    """How far the sampling part of a gap can exceed 0: √(ln(points/δ) / (2k)) for k accepted, with probability 1 − δ or more.

    Given the inputs, the labels are independent and which are accepted is fixed, so the sampling part is a mean of k centred
    variables in an interval of length 1 (Hoeffding). It is the paper's C·√(ln(1/δ)/n) with C = 1/√(2c).

    Args:
      accepted: [...] k > 0, how many rows are accepted; a row counted twice by a weight is one.
      delta: in (0, 1); points: at how many coverages at once (union bound); n for all.

    Returns:
      [...], for losses in [0, 1].

    Raises:
      ValueError: delta or points out of range.

    Source: Hoeffding, 1963; the form is that of Rabanser & Papernot, NeurIPS 2025, the constant is derived.

    >>> round(float(statistical_width(1000)), 4), round(float(statistical_width(1000, points=1000)), 4)
    (0.0387, 0.0704)
    """
    if not (0 < delta < 1 and points >= 1):
        raise ValueError(f"delta must lie in (0, 1) and points be 1 or more; they are {delta} and {points}")
    accepted = accepted if hasattr(accepted, "dtype") else np.asarray(accepted)
    return (math.log(points / delta) / (2.0 * accepted)) ** 0.5
