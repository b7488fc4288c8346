"""Nonconformity scores of every class, and the order statistics that turn them into prediction sets.

A nonconformity score is low for a class that fits. With q the ⌈(n + 1)(1 − α)⌉-th smallest score of the true classes of n
calibration examples, {k : score of k ≤ q} holds the true class of a new, exchangeable example with probability ≥ 1 − α. That is so for any
score that was fixed without the calibration examples, and on average over calibration sets, not for each.

On the host, in float64. `u` is one uniform number per example, the same for all its classes, drawn anew for calibration and test; a
constant `u` is a score of its own, as valid and without chance.
"""

from __future__ import annotations

import numpy as np

from sc_jax.ops.ranking import Array
from sc_jax.ops.targets import Target, as_fraction, floor_of_share


def lac(probabilities: Array) -> np.ndarray:
    """LAC (also THR): 1 − p_k. Smallest sets on average where probabilities are right.

    Args:
      probabilities: [..., k].

    Returns:
      [..., k], in [0, 1].

    Source: Sadinle, Lei & Wasserman, "Least ambiguous set-valued classifiers with bounded error levels", JASA 2019.
    """
    return 1 - np.asarray(probabilities, np.float64)


def aps(probabilities: Array, u: Array) -> np.ndarray:
    """APS: the probability of all classes more probable than k, and u times its own.

    S_k = Σ_{j before k} p_j + u p_k; of equally probable classes the lower index stands first.

    Args:
      probabilities: [..., k]; u: [...], in [0, 1], one per example.

    Returns:
      [..., k], in [0, 1] up to rounding. The set is {k : S_k ≤ q}, which may be empty.

    Source: Romano, Sesia & Candès, "Classification with valid and adaptive coverage", NeurIPS 2020.

    >>> aps(np.array([0.2, 0.5, 0.3]), 0.5).round(2)
    array([0.9 , 0.25, 0.65])
    """
    p, order, place = _ordered(probabilities)
    ranked = np.take_along_axis(p, order, axis=-1)
    before = np.cumsum(ranked, axis=-1) - ranked
    return np.take_along_axis(before, place, axis=-1) + np.asarray(u, np.float64)[..., None] * p


def raps(probabilities: Array, u: Array, penalty: float, free: int) -> np.ndarray:
    """RAPS: APS with a penalty for every class of a rank beyond the first `free`, which keeps sets small.

    S_k + λ (o_k − k_reg)⁺, o_k the rank of class k, 1 for the most probable.

    Args:
      probabilities: [..., k]; u: [...], in [0, 1], one per example; penalty: λ ≥ 0; free: k_reg ≥ 0.

    Returns:
      [..., k], ≥ 0.

    Source: Angelopoulos, Bates, Malik & Jordan, "Uncertainty sets for image classifiers using conformal prediction", ICLR 2021.
    """
    _, _, place = _ordered(probabilities)
    return aps(probabilities, u) + penalty * np.maximum(place + 1 - free, 0)


def saps(probabilities: Array, u: Array, weight: float) -> np.ndarray:
    """SAPS: of the probabilities only the largest is used, and beyond it the rank.

    u p_max for the most probable class, p_max + (o_k − 2 + u) λ for the others, o_k the rank of class k.

    Args:
      probabilities: [..., k]; u: [...], in [0, 1], one per example; weight: λ > 0, of a rank.

    Returns:
      [..., k], ≥ 0.

    Source: Huang, Xi, Zhang, Yao, Qiu & Wei, "Conformal prediction for deep classifier via label ranking", ICML 2024.
    """
    p, _, place = _ordered(probabilities)
    u, top = np.asarray(u, np.float64)[..., None], p.max(axis=-1, keepdims=True)
    return np.where(place == 0, u * top, top + (place - 1 + u) * weight)


def top_k_rank(probabilities: Array) -> np.ndarray:
    """The rank of each class, 1 for the most probable: sets of one size, the k that covers.

    Args:
      probabilities: [..., k].

    Returns:
      [..., k], whole numbers 1..k as floats.
    """
    return _ordered(probabilities)[2] + 1.0


def _ordered(probabilities: Array) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Probabilities, classes from the most probable on, and the place of each class in that order."""
    p = np.asarray(probabilities, np.float64)
    order = np.argsort(-p, axis=-1, kind="stable")
    return p, order, np.argsort(order, axis=-1)


def conformal_quantile(scores: Array, alpha: Target) -> np.ndarray:
    """The ⌈(n + 1)(1 − α)⌉-th smallest of n scores; +∞, which takes everything in, where that is more than n.

    α is read as a decimal: at α = 0.1 and n = 9 it is the 9th smallest, exactly.

    Args:
      scores: [..., n], of the true classes of calibration examples, not NaN; alpha: α in (0, 1).

    Returns:
      [...]. Scores of new examples are ≤ it with probability ≥ 1 − α, and < 1 − α + 1/(n + 1) if scores have no ties.

    Raises:
      ValueError: a score is NaN; α is outside (0, 1).

    Source: Vovk, Gammerman & Shafer, "Algorithmic learning in a random world", 2005; Papadopoulos et al. 2002 (split conformal).

    >>> float(conformal_quantile(np.arange(1, 10), 0.1)), float(conformal_quantile(np.arange(1, 9), 0.1))
    (9.0, inf)
    """
    scores = _scores(scores)
    n = scores.shape[-1]
    rank = n + 1 - int(floor_of_share(_alpha(alpha), np.asarray(n + 1)))
    if rank > n:
        return np.full(scores.shape[:-1], np.inf)
    return np.partition(scores, rank - 1, axis=-1)[..., rank - 1]


def weighted_conformal_quantile(scores: Array, weight: Array, test_weight: Array, alpha: Target) -> np.ndarray:
    """The 1 − α quantile of the scores under a known covariate shift, one for each test example.

    The least s with Σ_{i : s_i ≤ s} w_i ≥ (1 − α)(Σ_i w_i + w), w = w(x) of the test example; +∞ where there is none. w(x) is proportional to
    the density of test inputs over that of calibration inputs. With equal weights it is `conformal_quantile`.

    Args:
      scores: [n], of the true classes of calibration examples; weight: [n], w(x_i), finite and ≥ 0; test_weight: [m], w(x), finite and
        ≥ 0; alpha: α in (0, 1).

    Returns:
      [m].

    Raises:
      ValueError: a score is NaN; a weight is negative or not finite; α is outside (0, 1).

    Source: Tibshirani, Foygel Barber, Candès & Ramdas, "Conformal prediction under covariate shift", NeurIPS 2019. The promise needs w
    to be known; of estimated weights it is approximate.
    """
    scores = _scores(scores)
    weight, test_weight = np.asarray(weight, np.float64), np.asarray(test_weight, np.float64)
    for w in (weight, test_weight):
        if not (np.isfinite(w) & (w >= 0)).all():
            raise ValueError("weights must be finite and ≥ 0")
    if weight.shape != scores.shape:
        raise ValueError(f"weight has shape {weight.shape}, scores {scores.shape}")
    order = np.argsort(scores, kind="stable")
    reached = np.cumsum(weight[order])
    total = (reached[-1] if len(reached) else 0.0) + test_weight
    needed = float(1 - _alpha(alpha)) * total
    place = np.searchsorted(reached, needed * (1 - 1e-12), side="left")  # sums of weights are rounded
    return np.append(scores[order], np.inf)[place]


def _scores(scores: Array) -> np.ndarray:
    scores = np.asarray(scores, np.float64)
    if np.isnan(scores).any():
        raise ValueError("scores must not be NaN")
    return scores


def _alpha(alpha: Target) -> Target:
    alpha = as_fraction(alpha)
    if not 0 < alpha < 1:
        raise ValueError("alpha must lie in (0, 1)")
    return alpha
