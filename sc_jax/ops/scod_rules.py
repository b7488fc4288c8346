"""Whom to reject where inputs may be OOD: the Bayes rules of SCOD as scores, from two numbers of an input x.

d(x) = 1 − max_y P_in(y|x), the doubt that an inlier is classified right, and r(x) = P_out(x)/P_in(x). Neither alone is
enough: the best rejector weighs them against each other. Both are given as logarithms, so that nothing rounds to a tie;
of a classifier, ln d = −ln(1 + e^msp).

Scores are −ln of a cost of accepting: higher = rather accept. NumPy is computed in float64, JAX in at least float32.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from array_api_compat import array_namespace

from sc_jax.ops.ranking import Array
from sc_jax.ops.scores import _floating, _softplus


class ScodCosts(NamedTuple):
    """Costs against which `plugin_scod_score` weighs, in the unit of a wrong answer and a rejection and a leak together.

    Attributes:
      c_in: of rejecting an inlier; c_out: of accepting an outlier. Accepting a wrong inlier costs 1 − c_in − c_out ≥ 0.
    """

    c_in: float
    c_out: float


def _check_costs(costs: ScodCosts) -> float:
    """What accepting a wrong inlier costs."""
    error = 1 - costs.c_in - costs.c_out
    if not (costs.c_in >= 0 and costs.c_out >= 0 and error >= -1e-9):
        raise ValueError(f"costs must be ≥ 0 with c_in + c_out ≤ 1; they are {costs.c_in}, {costs.c_out}")
    return 0.0 if error < 1e-15 else error


def scod_costs_at_multiplier(multiplier: float, id_share: float, c_fn: float) -> ScodCosts:
    """The costs whose Bayes rule solves the Lagrangian of the budgeted problem.

    min (1 − c_fn)·P_in(wrong, accepted) + c_fn·P_out(accepted) + λ·(π*·P_in(rejected) + (1 − π*)·P_out(rejected)) has
    c_in = λπ*/T, c_out = (c_fn − λ(1 − π*))/T with T = 1 − λ(1 − 2π*); without T the rule is another one.

    Args:
      multiplier: λ ≥ 0, of the rejection budget; at most c_fn/(1 − π*), beyond which accepting outliers would be a gain.
      id_share: π*, the share of inliers at test time, in [0, 1]; c_fn: in [0, 1].

    Returns:
      `ScodCosts`.

    Raises:
      ValueError: an argument is out of range, or T is 0 (all costs vanish).

    Source: Narasimhan, Menon, Jitkrittum & Kumar, "Plugin estimators for selective classification with out-of-distribution
    detection", ICLR 2024 (from memory); the factor T is derived here.

    >>> scod_costs_at_multiplier(0.5, 0.5, 0.75)
    ScodCosts(c_in=0.25, c_out=0.5)
    """
    if not (0 <= id_share <= 1 and 0 <= c_fn <= 1):
        raise ValueError(f"id_share and c_fn must be in [0, 1]; they are {id_share} and {c_fn}")
    if not (0 <= multiplier < math.inf and multiplier * (1 - id_share) <= c_fn * (1 + 1e-12)):
        raise ValueError(f"the multiplier must be in [0, c_fn/(1 − id_share)]; it is {multiplier}")
    total = 1 - multiplier * (1 - 2 * id_share)
    if total <= 0:
        raise ValueError("all costs vanish: c_fn = 1 without inliers, where nothing is worth accepting")
    return ScodCosts(multiplier * id_share / total, max(0.0, c_fn - multiplier * (1 - id_share)) / total)


def plugin_scod_score(log_doubt: Array, log_outlier_ratio: Array, costs: ScodCosts) -> Array:
    """−ln[(1 − c_in − c_out)·d + c_out·r]; the Bayes rule accepts where it is ≥ −ln c_in.

    With P_in and P_out it minimises (1 − c_in − c_out)·P_in(wrong, accepted) + c_in·P_in(rejected) +
    c_out·P_out(accepted). c_out = 0 ranks by MSP (Chow's rule), c_in + c_out = 1 by the density ratio; the ranking
    depends on the ratio of the two weights alone.

    Args:
      log_doubt: [n], ln d ≤ 0, −inf where the classifier is certain; log_outlier_ratio: [n], ln r, up to ±inf.
      costs: of both mistakes, see `ScodCosts`.

    Returns:
      [n]; +inf where accepting costs nothing.

    Raises:
      ValueError: costs out of range, or shapes disagree.

    Source: Narasimhan et al., ICLR 2024 (from memory, checked here against all rejectors of discrete problems). Their
    black-box form, reject ⟺ (1 − c_in − c_out)·s_sc − c_out/s_ood < 1 − 2c_in − c_out, is the same rule.

    >>> import numpy as np
    >>> log_doubt, log_ratio = np.log([0.5, 0.1]), np.log([0.1, 2.0])
    >>> (plugin_scod_score(log_doubt, log_ratio, ScodCosts(0.3, 0.2)) >= -np.log(0.3)).tolist()
    [True, False]
    """
    error = _check_costs(costs)
    d, r, xp = _pair(log_doubt, log_outlier_ratio)
    terms = [
        math.log(cost) + log for cost, log in ((error, d), (costs.c_out, r)) if cost > 0
    ]  # 0 · inf is 0: a cost of 0 does not count
    if not terms:
        return xp.full_like(d, xp.inf)
    return -(terms[0] if len(terms) == 1 else xp.logaddexp(*terms))


def joint_scod_score(
    log_doubt: Array, log_outlier_ratio: Array, *, ood_cost: float, id_cost: float, ood_share: float
) -> Array:
    """−ln E[loss | x] of accepting x: id_cost·(1 − q)·d + ood_cost·q, q = P(OOD | x) at this share of OOD inputs.

    logit q = ln r + logit π. Accepting in the order of this score has the least joint risk at every coverage of the
    mixture, so it solves the problem with any rejection budget. With id_cost = (1 − c_fn)/π* and ood_cost =
    c_fn/(1 − π*), π* = 1 − π, accepting where it is ≥ −ln λ is `plugin_scod_score`'s rule at
    `scod_costs_at_multiplier(λ, π*, c_fn)`, for every λ.

    Args:
      log_doubt: [n], ln d ≤ 0; log_outlier_ratio: [n], ln r, up to ±inf.
      ood_cost, id_cost, ood_share: as for `scod_curve`; the costs finite and ≥ 0, the share π in [0, 1].

    Returns:
      [n]; +inf where accepting costs nothing.

    Raises:
      ValueError: an argument out of range, or shapes disagree.

    Source: derived here: accepting the cheapest first is the fractional knapsack.

    >>> import numpy as np
    >>> score = joint_scod_score(np.log([0.2]), np.log([1.0]), ood_cost=1.0, id_cost=1.0, ood_share=0.5)
    >>> round(float(np.exp(-score)[0]), 12)
    0.6
    """
    for name, cost in (("ood_cost", ood_cost), ("id_cost", id_cost)):
        if not 0 <= cost < math.inf:
            raise ValueError(f"{name} must be finite and ≥ 0; it is {cost}")
    if not 0 <= ood_share <= 1:
        raise ValueError(f"ood_share must lie in [0, 1]; it is {ood_share}")
    d, r, xp = _pair(log_doubt, log_outlier_ratio)
    if ood_share in (0, 1):
        cost, log = (ood_cost, xp.zeros_like(r)) if ood_share else (id_cost, d)
        return -log - math.log(cost) if cost > 0 else xp.full_like(d, xp.inf)
    logit = r + math.log(ood_share) - math.log1p(-ood_share)
    terms = [
        math.log(cost) + log
        for cost, log in ((id_cost, d - _softplus(logit)), (ood_cost, -_softplus(-logit)))
        if cost > 0
    ]
    if not terms:
        return xp.full_like(d, xp.inf)
    return -(terms[0] if len(terms) == 1 else xp.logaddexp(*terms))


def log_outlier_ratio(log_inlier_ratio: Array, mixing: float) -> Array:
    """ln(P_out/P_in) from ln g = ln(P_in/P_mix), where P_mix = π_mix·P_in + (1 − π_mix)·P_out.

    P_out/P_in = (1/g − π_mix)/(1 − π_mix), clipped at 0: an estimated g may say more than 1/π_mix.

    Args:
      log_inlier_ratio: [n]; mixing: π_mix in [0, 1), the share of inliers in the mixture.

    Returns:
      [n]; −inf where clipped; −ln g for π_mix = 0.

    Raises:
      ValueError: mixing is not in [0, 1).

    Source: Narasimhan et al., ICLR 2024 (from memory; it follows from the mixture).

    >>> import numpy as np
    >>> g = 1 / (0.25 + 0.75 * 2.0)  # where P_out = 2 P_in
    >>> round(float(np.exp(log_outlier_ratio(np.log(np.array([g])), 0.25))[0]), 12)
    2.0
    """
    if not 0 <= mixing < 1:
        raise ValueError(f"mixing must be in [0, 1): a mixture of inliers alone shows no outlier; it is {mixing}")
    log_g, xp = _floating(log_inlier_ratio)
    if mixing == 0:
        return -log_g
    known = math.log(mixing) + log_g  # of the mixture at x, the logarithm of the share of inliers: above 0 it cannot be
    below = known < 0
    left = xp.log1p(-xp.exp(xp.where(below, known, -1.0))) - xp.where(below, log_g, 0.0)
    return xp.where(below, left, -xp.inf) - math.log1p(-mixing)


def inlier_mixing(log_inlier_ratio: Array) -> Array:
    """π_mix as the mean of 1/g over inputs that no outlier looks like: where P_out = 0, P_mix/P_in = π_mix.

    Over inliers at large the mean of 1/g is 1 whatever π_mix is, so the sample must be of strict inliers.

    Args:
      log_inlier_ratio: [s], ln g of the strict inliers, s ≥ 1.

    Returns:
      A number > 0; at 1 or above the sample is not strictly of inliers, or the ratio is no good.

    Raises:
      ValueError: not [s] with s ≥ 1.

    Source: Narasimhan et al., ICLR 2024 (from memory).

    >>> import numpy as np
    >>> round(float(inlier_mixing(np.log(np.array([10.0, 10.0])))), 12)
    0.1
    """
    log_g, xp = _floating(log_inlier_ratio)
    if log_g.ndim != 1 or log_g.shape[0] == 0:
        raise ValueError(f"strict inliers must be [s] with s ≥ 1; they are {list(log_g.shape)}")
    return xp.mean(xp.exp(-log_g))


def _pair(log_doubt: Array, log_ratio: Array) -> tuple[Array, Array, object]:
    if log_doubt.shape != log_ratio.shape:
        raise ValueError(
            f"doubt and ratio must be of the same shape; they are {list(log_doubt.shape)} and {list(log_ratio.shape)}"
        )
    (d, _), (r, _) = _floating(log_doubt), _floating(log_ratio)
    return d, r, array_namespace(d, r)
