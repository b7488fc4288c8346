"""Contrasts between two settings of a study, over seeds and test examples alike: the crossed bootstrap.

Each resample draws seeds and test examples, the same for both settings; the contrast is the mean over the drawn seeds of
metric(treatment) − metric(control) on the drawn examples. (The "pigeonhole" bootstrap of Owen, Annals of Applied
Statistics, 2007, for data crossed in two ways; its variance is never too small in expectation.)
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from sc_jax.ops import bootstrap


@dataclasses.dataclass(frozen=True)
class Difference:
    """An estimate with its replicates.

    Attributes:
      per_seed: [s], metric(treatment) − metric(control) on the whole test split; the estimate is their mean.
      replicates: [b], of the estimate.
    """

    per_seed: np.ndarray
    replicates: np.ndarray

    @property
    def estimate(self) -> float:
        """Mean over seeds."""
        return float(np.mean(self.per_seed))


def crossed(values: np.ndarray, replicates: np.ndarray, seed_counts: np.ndarray) -> Difference:
    """Mean over seeds with replicates over seeds × examples.

    Args:
      values: [s], on the whole test split; replicates: [s, b], on each resample of it.
      seed_counts: [b, s], how often each seed is drawn.
    """
    drawn = np.einsum("bs,sb->b", seed_counts.astype(np.float64), replicates) / seed_counts.sum(axis=1)
    return Difference(np.asarray(values, np.float64), drawn)


def two_sided_p(replicates: np.ndarray) -> float:
    """p of "the contrast is 0" by inverting the percentile interval: 2·min(#{Δ* ≤ 0}, #{Δ* ≥ 0} + 1 each)/(b + 1).

    Args:
      replicates: [b]; NaN ones count for both sides.
    """
    unknown = np.isnan(replicates).sum()
    below, above = (replicates <= 0).sum() + unknown, (replicates >= 0).sum() + unknown
    return float(min(1.0, 2 * (min(below, above) + 1) / (len(replicates) + 1)))


def not_worse_p(replicates: np.ndarray, margin: float) -> float:
    """One-sided p of "worse by at least `margin`": (#{Δ* ≥ margin} + 1)/(b + 1); small means not inferior."""
    return float(((replicates >= margin).sum() + np.isnan(replicates).sum() + 1) / (len(replicates) + 1))


def verdict(expect: str, estimate: float, p_adjusted: float, level: float) -> str:
    """Confirmed, contradicted or not shown, by a rule fixed beforehand: p (after Holm) < 1 − level, and the sign."""
    if not p_adjusted < 1 - level:
        return "not shown"
    if expect == "not_worse_by_margin":
        return "confirmed"
    return "confirmed" if (estimate > 0) == (expect == "greater") else "contradicted"


def describe(difference: Difference, level: float) -> dict[str, Any]:
    """Estimate, interval and value per seed, ready for JSON."""
    return {
        "estimate": difference.estimate,
        "interval": [float(end) for end in bootstrap.percentile_interval(difference.replicates, level)],
        "per_seed": [float(value) for value in difference.per_seed],
    }
