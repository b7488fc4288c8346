"""The verdict on contrasts between two settings of a study, by rules fixed beforehand; see `sc_jax.ops.resampling.crossed`."""

from __future__ import annotations

from typing import Any

import numpy as np

from sc_jax.ops import resampling
from sc_jax.ops.resampling import Difference


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
        "interval": [float(end) for end in resampling.percentile_interval(difference.replicates, level)],
        "t_interval": difference.t_interval(level),
        "se_seeds": difference.se_seeds,
        "se_examples": difference.se_examples,
        "per_seed": [float(value) for value in difference.per_seed],
    }
