"""Selective classification with OOD inputs (SCOD): wrong predictions and OOD inputs are both to be rejected.

An accepted ID input costs its loss, an accepted OOD input a fixed cost. So SCOD is selective classification with
another loss, and every metric of (score, loss, weight) applies: `augrc(score, scod_loss(…), weight=mixture_weight(…))`;
the joint risk at abstention fraction ρ is `risk_at_coverage` at 1 − ρ. The values depend on how many OOD inputs there
are: name the share of OOD beside them.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from array_api_compat import array_namespace, is_jax_array, is_numpy_namespace

from sc_jax.ops.areas import aurc
from sc_jax.ops.detection import as_labels
from sc_jax.ops.ranking import Array, share
from sc_jax.ops.risk_coverage import RiskCoverageCurve, risk_coverage_curve
from sc_jax.ops.targets import Target, as_fraction


def scod_loss(loss: Array, is_ood: Array, ood_cost: float = 1, id_cost: float = 1) -> Array:
    """The loss of accepting each input: id_cost · loss for ID, ood_cost for OOD.

    Its mean over the accepted is the joint risk. With id_cost = 1 − c_fn and ood_cost = c_fn that is
    [(1 − c_fn)·#{ID, wrong, accepted} + c_fn·#{OOD, accepted}]/#{accepted}; with both 1 the share of what should have
    been rejected among the accepted.

    Args:
      loss: [n], non-negative; that of OOD inputs is not looked at and may be anything.
      is_ood: [n], 0/1 as bool or integers (0.0/1.0 on the host).
      ood_cost, id_cost: finite, ≥ 0, in the unit of the loss.

    Returns:
      [n]; integers if loss and costs are, so that errors stay errors.

    Raises:
      ValueError: a cost is negative or not finite; is_ood is not 0/1; shapes disagree.

    Source: Narasimhan, Menon, Jitkrittum & Kumar, "Plugin estimators for selective classification with
    out-of-distribution detection", ICLR 2024 (c_fn; from memory).

    >>> import numpy as np
    >>> scod_loss(np.array([0, 1, 0]), np.array([0, 0, 1]), ood_cost=0.75, id_cost=0.25).tolist()
    [0.0, 0.25, 0.75]
    """
    for name, cost in (("ood_cost", ood_cost), ("id_cost", id_cost)):
        if not (math.isfinite(cost) and cost >= 0):
            raise ValueError(f"{name} must be finite and ≥ 0; it is {cost}")
    if loss.shape != is_ood.shape:
        raise ValueError(f"loss and is_ood must both be [n]; they are {tuple(loss.shape)} and {tuple(is_ood.shape)}")
    xp = array_namespace(loss, is_ood)
    is_ood = as_labels(is_ood, "is_ood")
    whole = isinstance(ood_cost, int) and isinstance(id_cost, int) and _is_whole(loss, xp)
    if is_jax_array(loss):
        dtype = xp.int32 if whole else xp.result_type(loss.dtype, xp.float32)
    else:
        dtype = xp.int64 if whole else xp.float64
    return xp.where(is_ood, xp.asarray(ood_cost, dtype=dtype), xp.astype(loss, dtype) * id_cost)


def _is_whole(loss: Array, xp: object) -> bool:
    kind = getattr(loss.dtype, "kind", None)  # of NumPy dtypes, which may be of others' making
    return kind in "biu" if is_numpy_namespace(xp) else xp.isdtype(loss.dtype, ("bool", "integral"))


def mixture_weight(
    is_ood: Array, ood_share: Target, *, weight: Array | None = None, where: Array | None = None
) -> Array:
    """Weights that set the share of OOD inputs and leave the total: n·π/n_ood for OOD, n·(1 − π)/n_id for ID.

    Args:
      is_ood: [n], 0/1 as bool or integers (0.0/1.0 on the host); ood_share: π in [0, 1], read as a decimal.
      weight: [..., n] ≥ 0, to start from; n, n_ood and n_id are its sums (each resample is set to the share anew).
      where: bool [n], which inputs there are; the others have weight 0.

    Returns:
      [..., n], real.

    Raises:
      ValueError: ood_share outside [0, 1]; is_ood is not 0/1; shapes disagree; there is no input of a kind whose share
        is not 0 (on devices the weights are NaN then).

    >>> import numpy as np
    >>> mixture_weight(np.array([0, 0, 0, 1]), 0.5).round(4).tolist()
    [0.6667, 0.6667, 0.6667, 2.0]
    """
    target = as_fraction(ood_share)
    if not 0 <= target <= 1:
        raise ValueError(f"ood_share must lie in [0, 1]; it is {ood_share}")
    is_ood, weight, of_id, of_ood = _weighed(is_ood, weight, where)
    xp = array_namespace(weight)

    def factor(name: str, part: float, amount: Array) -> Array:
        if part == 0:
            return 0 * amount
        if is_numpy_namespace(xp) and not (amount > 0).all():
            raise ValueError(f"there is no {name} input, which cannot make up a share of {part}")
        return share(part * (of_id + of_ood), amount)

    for_id, for_ood = factor("ID", float(1 - target), of_id), factor("OOD", float(target), of_ood)
    unknown = 0 * (for_id + for_ood)  # NaN where a kind is missing, which no input of that kind could show
    return weight * (xp.where(is_ood, for_ood[..., None], for_id[..., None]) + unknown[..., None])


def _weighed(is_ood: Array, weight: Array | None, where: Array | None) -> tuple[Array, Array, Array, Array]:
    """is_ood [(1, …,) n], real weights [..., n] that are 0 where nothing is, and the totals [...] of ID and of OOD."""
    is_ood = as_labels(is_ood, "is_ood", where)
    xp = array_namespace(is_ood)
    if weight is not None and (weight.ndim == 0 or weight.shape[-1] != is_ood.shape[0]):
        raise ValueError(f"weight must have n = {is_ood.shape[0]} entries last; it is {tuple(weight.shape)}")
    weight = xp.ones(is_ood.shape, dtype=xp.int32) if weight is None else weight
    weight = xp.astype(weight, xp.result_type(weight.dtype, xp.float32) if is_jax_array(weight) else xp.float64)
    zero = xp.zeros_like(weight)
    row = (1,) * (weight.ndim - 1) + is_ood.shape
    weight = weight if where is None else xp.where(xp.reshape(xp.asarray(where, dtype=xp.bool), row), weight, zero)
    is_ood = xp.reshape(is_ood, row)
    return (
        is_ood,
        weight,
        xp.sum(xp.where(is_ood, zero, weight), axis=-1),
        xp.sum(xp.where(is_ood, weight, zero), axis=-1),
    )


def scod_curve(
    score: Array,
    loss: Array,
    is_ood: Array,
    *,
    ood_cost: float = 1,
    id_cost: float = 1,
    ood_share: Target | None = None,
    ties: str = "expect",
    weight: Array | None = None,
    where: Array | None = None,
) -> RiskCoverageCurve:
    """The joint risk against coverage: `risk_coverage_curve` of `scod_loss`, at a share of OOD inputs.

    At a threshold t and a share π, with P over the ID or the OOD inputs, the risk is
    (id_cost·(1 − π)·E_id[loss·1(s ≥ t)] + ood_cost·π·P_ood(s ≥ t)) / ((1 − π)·P_id(s ≥ t) + π·P_ood(s ≥ t)).

    Args:
      score: [n]; loss: [n], non-negative, that of OOD inputs not looked at; is_ood: [n], 0/1.
      ood_cost, id_cost: see `scod_loss`; ood_share: π, as in these data if None; ties: see `risk_coverage_curve`.
      weight: [n]; where: bool [n].

    Returns:
      A `RiskCoverageCurve`; coverage is that of the mixture, 1 − coverage its abstention fraction.

    Raises:
      ValueError: see `scod_loss`, `mixture_weight` and `risk_coverage_curve`.

    Source: as for `scod_loss`.

    >>> import numpy as np
    >>> score, error, is_ood = np.array([0.9, 0.8, 0.7]), np.array([0, 0, 1]), np.array([0, 1, 0])
    >>> scod_curve(score, error, is_ood, ood_cost=0.75, id_cost=0.25).risk.round(4).tolist()
    [0.0, 0.375, 0.3333]
    """
    loss, weight, _ = _mixed(loss, is_ood, ood_cost, id_cost, ood_share, weight, where)
    return risk_coverage_curve(score, loss, ties=ties, weight=weight, where=where)


class ScodArea(NamedTuple):
    """The area under the joint risk, which means nothing without the mix it is of.

    Attributes:
      area: [...], in the unit of the loss.
      ood_share: [...], the share of OOD inputs it is computed at.
    """

    area: Array
    ood_share: Array


def scod_aurc(
    score: Array,
    loss: Array,
    is_ood: Array,
    estimator: str = "mean",
    *,
    ood_cost: float = 1,
    id_cost: float = 1,
    ood_share: Target | None = None,
    weight: Array | None = None,
    where: Array | None = None,
) -> ScodArea:
    """Area under the joint risk against coverage (AUC-RC), with the share of OOD inputs that it is of.

    Args:
      score, loss, is_ood, ood_cost, id_cost, ood_share: as for `scod_curve`; estimator: see `aurc`.
      weight: [..., n]; where: bool [n].

    Returns:
      A `ScodArea`: `aurc(score, scod_loss(…), estimator, weight=mixture_weight(…))` and the share.

    Raises:
      ValueError: see `scod_loss`, `mixture_weight` and `aurc`.

    Source: as for `scod_loss`; they take trapezoids (from memory), here `estimator="fd_shifts"` or
    `"torch_uncertainty"`.
    """
    loss, weight, part = _mixed(loss, is_ood, ood_cost, id_cost, ood_share, weight, where)
    return ScodArea(aurc(score, loss, estimator, weight=weight, where=where), part)


def _mixed(
    loss: Array,
    is_ood: Array,
    ood_cost: float,
    id_cost: float,
    ood_share: Target | None,
    weight: Array | None,
    where: Array | None,
) -> tuple[Array, Array | None, Array]:
    """The losses, the weights and the share of OOD among them."""
    is_ood = as_labels(is_ood, "is_ood", where)
    if ood_share is not None:
        weight = mixture_weight(is_ood, ood_share, weight=weight, where=where)
    *_, of_id, of_ood = _weighed(is_ood, weight, where)
    return scod_loss(loss, is_ood, ood_cost, id_cost), weight, share(of_ood, of_id + of_ood)
