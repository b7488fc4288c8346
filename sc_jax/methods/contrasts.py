"""Contrasts between two settings of a study, over seeds and test examples alike: the crossed bootstrap.

Each resample draws seeds and test examples, the same for both settings; the contrast is the mean over the drawn seeds of
metric(treatment) − metric(control) on the drawn examples: the "pigeonhole" bootstrap of Owen, Annals of Applied
Statistics, 2007, for data crossed in two ways. It counts the interaction of seeds and examples more than once, and the
seeds alone (S − 1)/S times: with few seeds that dominate, its interval is too short. Beside it stands an interval from t
with the degrees of freedom of the seeds, and the standard error of each source.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from scipy import stats

from sc_jax.ops import bootstrap


@dataclasses.dataclass(frozen=True)
class Difference:
    """An estimate with its replicates.

    Attributes:
      per_seed: [s], metric(treatment) − metric(control) on the whole test split; the estimate is their mean.
      replicates: [b], of the estimate, over drawn seeds and drawn examples.
      se_seeds: standard error from seeds, s/√S with s the standard deviation of `per_seed` (it holds the interaction
        of seeds and examples too); NaN for one seed.
      se_examples: standard deviation of the replicates of the mean over the seeds as they are.
    """

    per_seed: np.ndarray
    replicates: np.ndarray
    se_seeds: float
    se_examples: float

    @property
    def estimate(self) -> float:
        """Mean over seeds."""
        return float(np.mean(self.per_seed))

    def t_interval(self, level: float) -> list[float]:
        """estimate ± t_df √(se_seeds² + se_examples²), df = (se_seeds² + se_examples²)² / (se_seeds⁴/(S − 1)).

        Source: Satterthwaite, Biometrics Bulletin, 1946; the examples count as having no cost in degrees of freedom.
        """
        variance = self.se_seeds**2 + self.se_examples**2
        if variance == 0:  # the two settings are the same thing
            return [self.estimate, self.estimate]
        df = variance**2 * (len(self.per_seed) - 1) / max(self.se_seeds**4, 1e-300)
        half = stats.t.ppf((1 + level) / 2, df) * np.sqrt(variance)
        return [self.estimate - float(half), self.estimate + float(half)]


def crossed(values: np.ndarray, replicates: np.ndarray, seed_counts: np.ndarray) -> Difference:
    """Mean over seeds with replicates over seeds × examples.

    Args:
      values: [s], on the whole test split; replicates: [s, b], on each resample of it.
      seed_counts: [b, s], how often each seed is drawn.
    """
    values = np.asarray(values, np.float64)
    drawn = np.einsum("bs,sb->b", seed_counts.astype(np.float64), replicates) / seed_counts.sum(axis=1)
    se_seeds = float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else float("nan")
    return Difference(values, drawn, se_seeds, float(np.std(np.mean(replicates, axis=0), ddof=1)))


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


def verdict(expect: str, interval: list[float], p_adjusted: float, level: float, margin: float = 0.0) -> str:
    """Whether the data carry a claim, by a rule fixed beforehand.

    Args:
      expect: "greater", "less" or "not_worse_by_margin"; interval: of the contrast; p_adjusted: after Holm.
      level: of the interval; claims are judged at 1 − level; margin: for "not_worse_by_margin".

    Returns:
      "confirmed" or "contradicted" where p survives Holm and the interval lies on the side of the claim or on the other;
      "not shown (does not survive Holm)" where the interval alone excludes 0 (or the margin); else "not shown". A margin
      is tested from one side only, so there an interval beyond it suffices to contradict.
    """
    low, high = interval
    holds, fails = {
        "greater": (low > 0, high < 0),
        "less": (high < 0, low > 0),
        "not_worse_by_margin": (high < margin, low > margin),
    }[expect]
    survives = p_adjusted + level < 1
    if fails and (survives or expect == "not_worse_by_margin"):
        return "contradicted"
    if holds and survives:
        return "confirmed"
    return "not shown (does not survive Holm)" if holds or fails else "not shown"


def describe(difference: Difference, level: float) -> dict[str, Any]:
    """Estimate, intervals, standard errors by source and value per seed, ready for JSON."""
    return {
        "estimate": difference.estimate,
        "interval": [float(end) for end in bootstrap.percentile_interval(difference.replicates, level)],
        "t_interval": difference.t_interval(level),
        "se_seeds": difference.se_seeds,
        "se_examples": difference.se_examples,
        "per_seed": [float(value) for value in difference.per_seed],
    }
