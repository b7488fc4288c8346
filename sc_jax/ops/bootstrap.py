"""Bootstrap: resampled counts shared by everything that is compared, so that all contrasts pair.

A resample of n examples is a row of counts (how often each was drawn); every metric of `sc_jax.ops` takes such rows as
`weight` and needs one sort for all of them.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np


def resample_counts(seed: int, n: int, resamples: int) -> np.ndarray:
    """How often each example is drawn in `resamples` resamples of n out of n.

    Returns:
      uint8 [resamples, n]; rows sum to n. (A count beyond 255 has probability below n·10⁻⁵⁰⁰.)
    """
    rng = np.random.default_rng(seed)
    counts = np.empty((resamples, n), np.uint8)
    for row in counts:
        row[:] = np.bincount(rng.integers(0, n, size=n), minlength=n)
    return counts


def chunks(counts: np.ndarray, entries: int = 500_000) -> Iterator[slice]:
    """Slices of the rows of `counts`, each of about `entries` entries, so that the work on a slice stays in cache."""
    rows = max(1, entries // counts.shape[1])
    for start in range(0, len(counts), rows):
        yield slice(start, start + rows)


def percentile_interval(replicates: np.ndarray, level: float = 0.95) -> np.ndarray:
    """The percentile interval: quantiles (1 ± level)/2 over the first axis; replicates that are no finite numbers are left out.

    Args:
      replicates: [b, …]; level: e.g. 0.95.

    Returns:
      [2, …]; NaN where fewer than half of the replicates are finite.

    Source: Efron & Tibshirani, "An introduction to the bootstrap", 1993, ch. 13.
    """
    replicates = np.asarray(replicates, np.float64)
    tails = [(1 - level) / 2, (1 + level) / 2]
    valid = np.isfinite(replicates)
    if valid.all():
        return np.quantile(replicates, tails, axis=0)
    enough = valid.mean(axis=0) >= 0.5
    filled = np.where(enough, replicates, 0.0)
    return np.where(enough, np.nanquantile(np.where(np.isfinite(filled), filled, np.nan), tails, axis=0), np.nan)


def holm(p: np.ndarray) -> np.ndarray:
    """Holm's adjusted p-values: sorted ascending, p̃_(i) = max_{j≤i} min(1, (m − j + 1)·p_(j)).

    Args:
      p: [m].

    Returns:
      [m]; rejecting where p̃ ≤ level controls the family-wise error at that level under any dependence.

    Source: Holm, Scandinavian Journal of Statistics, 1979.

    >>> [round(float(q), 12) for q in holm(np.array([0.01, 0.04, 0.03]))]
    [0.03, 0.06, 0.06]
    """
    p = np.asarray(p, np.float64)
    order = np.argsort(p, kind="stable")
    adjusted = np.maximum.accumulate(np.minimum(1.0, (len(p) - np.arange(len(p))) * p[order]))
    result = np.empty_like(p)
    result[order] = adjusted
    return result
