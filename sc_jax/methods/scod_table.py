"""Scores compared under SCOD: the area under the joint risk at several costs and mixes, with intervals.

An area is of one cost and one share of OOD inputs, and is compared with those of other scores in the same cell alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from sc_jax import ops
from sc_jax.ops import resampling
from sc_jax.ops.targets import Target, as_fraction


class ScodTable(NamedTuple):
    """Areas by score, cost and mix, as plain arrays.

    Attributes:
      scores: [s] names; costs: [c] pairs (ood_cost, id_cost); ood_shares: [p].
      area: [s, c, p], in the unit of the loss.
      interval: [2, s, c, p], lower and upper ends over test examples; None without resamples.
    """

    scores: tuple[str, ...]
    costs: tuple[tuple[float, float], ...]
    ood_shares: tuple[Target, ...]
    area: np.ndarray
    interval: np.ndarray | None


def scod_table(
    scores: Mapping[str, np.ndarray],
    loss: np.ndarray,
    is_ood: np.ndarray,
    costs: Sequence[tuple[float, float]],
    ood_shares: Sequence[Target],
    *,
    resamples: int = 0,
    level: float = 0.95,
    seed: int = 0,
) -> ScodTable:
    """AUC-RC of every score at every cost and share: `ops.scod_aurc`.

    Intervals are percentiles of a bootstrap that draws ID and OOD examples apart, each as many as there are, since the
    share is set and not drawn. All scores see the same resamples.

    Args:
      scores: name → [n]; loss: [n], that of OOD examples not looked at; is_ood: bool [n], both kinds.
      costs: (ood_cost, id_cost) of each row, such as (c_fn, 1 − c_fn); ood_shares: the share of OOD of each column.
      resamples: of the bootstrap; 0 for none. level: of the intervals; seed: of the draws.

    Returns:
      `ScodTable`.

    Raises:
      ValueError: nothing to compare, no examples of a kind, or as `ops.scod_aurc`.

    >>> score, error, is_ood = np.array([0.9, 0.8, 0.7]), np.array([0, 0, 1]), np.array([False, True, False])
    >>> scod_table({"msp": score}, error, is_ood, [(1, 1), (2, 0)], [0, 0.5]).area.round(3).tolist()
    [[[0.224, 0.498], [0.0, 0.854]]]
    """
    if not (len(scores) and len(costs) and len(ood_shares)):
        raise ValueError("a table needs a score, a cost and a share at least")
    if resamples:
        counts = _drawn_apart(is_ood, resamples, seed)

    def areas(weight: np.ndarray | None) -> np.ndarray:
        return np.array(
            [
                [
                    [
                        ops.scod_aurc(
                            score, loss, is_ood, ood_cost=ood, id_cost=wrong, ood_share=share, weight=weight
                        ).area
                        for share in ood_shares
                    ]
                    for ood, wrong in costs
                ]
                for score in scores.values()
            ]
        )

    names, area = (tuple(scores), tuple(costs), tuple(ood_shares)), areas(None)
    if not resamples:
        return ScodTable(*names, area, None)
    replicates = np.concatenate([areas(counts[rows]) for rows in resampling.chunks(counts)], axis=-1)
    return ScodTable(*names, area, resampling.percentile_interval(np.moveaxis(replicates, -1, 0), level))


class JointRiskBand(NamedTuple):
    """The joint risk at some coverages of a mix, with intervals: [c] each."""

    coverage: np.ndarray
    risk: np.ndarray
    low: np.ndarray
    high: np.ndarray


def joint_risk_band(
    score: np.ndarray,
    loss: np.ndarray,
    is_ood: np.ndarray,
    coverages: Sequence[Target],
    *,
    ood_cost: float,
    id_cost: float,
    ood_share: Target,
    resamples: int,
    level: float = 0.95,
    seed: int = 0,
) -> JointRiskBand:
    """`ops.scod_curve` at given coverages, with an interval at each.

    Args:
      score, loss, is_ood: [n], as for `scod_table`; coverages: in (0, 1].
      ood_cost, id_cost, ood_share: of the cell; resamples: of the bootstrap, as in `scod_table`; level, seed: of it.

    Returns:
      `JointRiskBand`; an interval is of its coverage alone, not of the whole curve.

    Raises:
      ValueError: as `scod_table`, `ops.scod_loss` and `ops.risk_at_coverage`.
    """
    loss = ops.scod_loss(loss, is_ood, ood_cost, id_cost)
    counts = _drawn_apart(is_ood, resamples, seed)
    risk, ends = [], []
    for c in coverages:
        parts = [
            ops.risk_at_coverage(score, loss, c, weight=ops.mixture_weight(is_ood, ood_share, weight=weight))
            for weight in (np.ones((1, len(is_ood))), *(counts[rows] for rows in resampling.chunks(counts)))
        ]
        risk.append(parts[0][0])
        ends.append(resampling.percentile_interval(np.concatenate(parts[1:]), level))
    return JointRiskBand(np.array([float(as_fraction(c)) for c in coverages]), np.array(risk), *np.array(ends).T)


def _drawn_apart(is_ood: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """Counts uint8 [resamples, n], as many of each kind as there are."""
    if not (is_ood.any() and not is_ood.all()):
        raise ValueError("ID and OOD examples are drawn apart: there must be both")
    counts = np.empty((resamples, len(is_ood)), np.uint8)
    for i, kind in enumerate((~is_ood, is_ood)):
        counts[:, kind] = resampling.resample_counts(seed + i, int(kind.sum()), resamples)
    return counts
