"""Bootstrap: resampled counts shared by everything that is compared, so that all contrasts pair.

A resample of n examples is a row of counts (how often each was drawn); every metric of `sc_jax.ops` takes such rows as
`weight` and needs one sort for all of them. The unit that is drawn is the example, the pair of results on it for contrasts,
the cluster for grouped data; within strata each stratum keeps its size.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from array_api_compat import array_namespace, is_jax_array, is_numpy_namespace
from scipy import special

from sc_jax.ops.jackknife import leave_one_out
from sc_jax.ops.ranking import Array


class Interval(NamedTuple):
    """An estimate with its bootstrap interval.

    Attributes:
      estimate: on the sample itself; low, high: ends of the interval; replicates: [b], one per resample.
    """

    estimate: float
    low: float
    high: float
    replicates: np.ndarray


class Contrast(NamedTuple):
    """A difference between two scores on the same examples; p is two-sided, of "the difference is 0"."""

    estimate: float
    low: float
    high: float
    p: float
    replicates: np.ndarray


def bootstrap(
    statistic: Callable[..., Array],
    score: Array,
    loss: Array,
    *options: Any,
    resamples: int = 1000,
    level: float = 0.95,
    method: str = "percentile",
    seed: int = 0,
    weight: Array | None = None,
    strata: np.ndarray | None = None,
    groups: np.ndarray | None = None,
) -> Interval:
    """The interval of a metric over resampled examples.

    Args:
      statistic: a metric of `(score, loss, *options, weight=[b, n])`, such as every one in `sc_jax.ops`.
      score, loss: [n]; JAX arrays are resampled on their device, with draws of its own.
      options: of the metric, e.g. the risk of `coverage_at_risk`.
      resamples: how many; level: of the interval; seed: of the draws.
      method: "percentile", or "bca" for smooth metrics of unweighted, ungrouped samples (see `jackknife.SMOOTH`).
      weight: [n] survey weights; a draw of an example brings its weight.
      strata: [n], labels within which examples are drawn, so that each keeps its share.
      groups: [n], labels of clusters that are drawn whole.

    Returns:
      An `Interval`. At a few hundred examples, and where errors are few, it covers less than its level (docs/metrics.md says how
      much).

    Raises:
      ValueError: an unknown method, BCa where it does not apply, fewer than 2 clusters, both strata and groups.

    Source: Efron & Tibshirani, "An introduction to the bootstrap", 1993, ch. 13 (percentile) and 14 (BCa).

    >>> from sc_jax.ops import aurc
    >>> rng = np.random.default_rng(0)
    >>> error = rng.random(2000) < 0.1
    >>> interval = bootstrap(aurc, rng.random(2000) - error / 2, error)
    >>> bool(interval.low < interval.estimate < interval.high)
    True
    """
    if method not in ("percentile", "bca"):
        raise ValueError(f"method {method!r}: there are 'percentile' and 'bca'")
    if method == "bca" and (weight is not None or strata is not None or groups is not None):
        raise ValueError("method 'bca' is for unweighted samples without strata or groups; use method='percentile'")
    estimate = float(statistic(score, loss, *options, weight=weight))
    if is_jax_array(score) and strata is None and groups is None:
        replicates = _replicates_on_device(statistic, score, loss, options, weight, resamples, seed)
    else:
        replicates = _replicates(statistic, score, loss, options, weight, resamples, seed, strata, groups)
    if method == "bca":
        host = np.asarray(score), np.asarray(loss)
        low, high = bca_interval(replicates, estimate, leave_one_out(statistic, *host), level)
    else:
        low, high = percentile_interval(replicates, level)
    return Interval(estimate, float(low), float(high), replicates)


def _replicates(
    statistic: Callable[..., Array],
    score: Array,
    loss: Array,
    options: tuple[Any, ...],
    weight: Array | None,
    resamples: int,
    seed: int,
    strata: np.ndarray | None,
    groups: np.ndarray | None,
) -> np.ndarray:
    xp = array_namespace(score)
    if is_numpy_namespace(xp):  # sorted once, here: an order in the sample is no information to a resample
        order = np.argsort(score, kind="stable")[::-1]
        score, loss = score[order], loss[order]
        weight, strata, groups = (None if a is None else np.asarray(a)[order] for a in (weight, strata, groups))
    values = []
    for counts in draws(len(loss), resamples, seed, strata, groups):
        narrow = is_numpy_namespace(xp) and weight is None  # products with narrow weights would wrap around
        rows = xp.asarray(counts if narrow else counts.astype(np.int64))
        values.append(np.asarray(statistic(score, loss, *options, weight=rows if weight is None else rows * weight)))
    return np.concatenate(values).astype(np.float64)


def draws(
    n: int, resamples: int, seed: int, strata: np.ndarray | None = None, groups: np.ndarray | None = None
) -> Iterator[np.ndarray]:
    """Counts of `resample_counts`, chunk by chunk: the same ones whatever the size of a chunk.

    Args:
      n, resamples, seed: as there; strata, groups: [n], as for `bootstrap`.

    Returns:
      Chunks uint8 [rows, n].

    Raises:
      ValueError: fewer than 2 clusters, or both strata and groups.
    """
    if strata is not None and groups is not None:
        raise ValueError("give strata or groups, not both")
    rng = np.random.default_rng(seed)
    if groups is not None:
        cluster, sizes = np.unique(groups, return_inverse=True)[1], len(np.unique(groups))
        if sizes < 2:
            raise ValueError("groups: a bootstrap over clusters needs at least 2 of them")
        if sizes < 20:
            warnings.warn(f"only {sizes} clusters: an interval over fewer than 20 is too short", stacklevel=4)
        parts = [(cluster, sizes)]
    elif strata is not None:
        parts = [(np.flatnonzero(strata == label), None) for label in np.unique(strata)]
    rows = max(1, CHUNK // n)
    for start in range(0, resamples, rows):
        counts = np.empty((min(rows, resamples - start), n), np.uint8)
        for row in counts:
            if groups is not None:
                row[:] = _counts(rng, sizes)[cluster]
            elif strata is not None:
                for members, _ in parts:
                    row[members] = _counts(rng, len(members))
            else:
                row[:] = _counts(rng, n)
        yield counts


def _counts(rng: np.random.Generator, n: int) -> np.ndarray:
    return np.bincount(rng.integers(0, n, size=n), minlength=n)


def _replicates_on_device(
    statistic: Callable[..., Array],
    score: Array,
    loss: Array,
    options: tuple[Any, ...],
    weight: Array | None,
    resamples: int,
    seed: int,
) -> np.ndarray:
    import jax
    import jax.numpy as jnp

    n = score.shape[0]
    rows = max(1, min(resamples, _ON_DEVICE // n))
    chunks_needed = -(-resamples // rows)

    @jax.jit
    def all_values(score: Array, loss: Array, weight: Array | None, key: Array) -> Array:
        def chunk(key: Array) -> Array:
            drawn = jax.random.randint(key, (rows, n), 0, n)
            counts = jax.vmap(lambda index: jnp.zeros(n, jnp.int32).at[index].add(1))(drawn)
            return statistic(score, loss, *options, weight=counts if weight is None else counts * weight[None, :])

        return jax.lax.map(chunk, jax.random.split(key, chunks_needed))

    values = all_values(score, loss, weight, jax.random.key(seed))
    return np.asarray(values, np.float64).reshape(-1)[:resamples]


def paired_bootstrap(
    statistic: Callable[..., Array],
    score: np.ndarray,
    loss: np.ndarray,
    other_score: np.ndarray,
    other_loss: np.ndarray,
    *options: Any,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
    weight: np.ndarray | None = None,
    strata: np.ndarray | None = None,
    groups: np.ndarray | None = None,
) -> Contrast:
    """metric(score, loss) − metric(other_score, other_loss) on the same examples, with its interval over them.

    Both are computed on the same resamples: the unit is the pair of results on an example.

    Args:
      score, loss, other_score, other_loss: [n], row by row of the same examples; the rest as for `bootstrap`.

    Returns:
      A `Contrast`; its interval covers examples, not the training of the models.
    """
    if len(score) != len(other_score):
        raise ValueError(f"the two scores must be of the same examples; they have {len(score)} and {len(other_score)}")
    pairs = ((score, loss), (other_score, other_loss))
    a, b = (float(statistic(*pair, *options, weight=weight)) for pair in pairs)
    values: list[np.ndarray] = []
    for counts in draws(len(score), resamples, seed, strata, groups):
        rows = counts if weight is None else counts.astype(np.int64) * weight
        first, second = (np.asarray(statistic(*pair, *options, weight=rows)) for pair in pairs)
        values.append(first - second)
    replicates = np.concatenate(values).astype(np.float64)
    low, high = percentile_interval(replicates, level)
    return Contrast(a - b, float(low), float(high), two_sided_p(replicates), replicates)


def crossed_bootstrap(
    statistic: Callable[..., Array],
    score: np.ndarray,
    loss: np.ndarray,
    other_score: np.ndarray,
    other_loss: np.ndarray,
    *options: Any,
    resamples: int = 1000,
    seed: int = 0,
) -> Difference:
    """Mean over seeds of metric(score, loss) − metric(other_score, other_loss), over resampled seeds and examples alike.

    Each resample draws seeds and test examples, the same for both sides: the "pigeonhole" bootstrap for data crossed in two
    ways. It counts the interaction of seeds and examples more than once, and the seeds alone (S − 1)/S times: with few seeds
    that dominate, its interval is too short; see `Difference.t_interval`.

    Args:
      score, loss, other_score, other_loss: [s, n], one row per seed, columns of the same examples; the rest as for `bootstrap`.

    Returns:
      A `Difference`.

    Source: Owen, Annals of Applied Statistics, 2007.
    """
    counts = resample_counts(seed, score.shape[1], resamples)
    seed_counts = resample_counts(seed + 1, score.shape[0], resamples)

    def values(score: np.ndarray, loss: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        per_seed = [float(statistic(s, e, *options)) for s, e in zip(score, loss, strict=True)]
        drawn = [
            np.concatenate([statistic(s, e, *options, weight=counts[rows]) for rows in chunks(counts)])
            for s, e in zip(score, loss, strict=True)
        ]
        return np.array(per_seed), np.stack(drawn)

    (a, a_drawn), (b, b_drawn) = values(score, loss), values(other_score, other_loss)
    return crossed(a - b, a_drawn - b_drawn, seed_counts)


def resample_counts(seed: int, n: int, resamples: int, groups: np.ndarray | None = None) -> np.ndarray:
    """How often each example is drawn in `resamples` resamples of n out of n, or of its cluster in `groups` [n].

    Returns:
      uint8 [resamples, n]; rows sum to n, unless clusters are drawn. (A count beyond 255 has probability below n·10⁻⁵⁰⁰.)

    Raises:
      ValueError: fewer than 2 clusters.
    """
    return np.concatenate(list(draws(n, resamples, seed, groups=groups)))


_ON_DEVICE = 4_000_000  # draws depend on it
CHUNK = 4_000_000
"""Counts handled at a time: so many that threads seldom meet between two operations, so few that memory stays small."""


def chunks(counts: np.ndarray, entries: int = CHUNK) -> Iterator[slice]:
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


def bca_interval(replicates: np.ndarray, estimate: float, left_out: np.ndarray, level: float = 0.95) -> np.ndarray:
    """The bias-corrected and accelerated interval, for smooth metrics.

    Quantiles Φ(z₀ + (z₀ ± z)/(1 − a(z₀ ± z))) of the replicates, z₀ = Φ⁻¹(share of replicates below the estimate, ties half),
    a = Σ d³ / (6 (Σ d²)^{3/2}), d = mean − value of the leave-one-out values.

    Args:
      replicates: [b]; estimate: on the sample itself; left_out: [n], without each example in turn; level: e.g. 0.95.

    Returns:
      [2]; replicates that are no finite numbers are left out; NaN where fewer than half of them, or not all leave-one-out
      values, are finite.

    Source: Efron, JASA, 1987.
    """
    finite = np.isfinite(replicates)
    if finite.mean() < 0.5 or not np.isfinite(left_out).all():
        return np.full(2, np.nan)
    replicates = replicates[finite]
    share_below = np.mean(replicates < estimate) + np.mean(replicates == estimate) / 2
    bias = special.ndtri(np.clip(share_below, 0.5 / len(replicates), 1 - 0.5 / len(replicates)))
    d = left_out.mean() - left_out
    spread = np.sum(d**2)
    acceleration = np.sum(d**3) / (6 * spread**1.5) if spread > 0 else 0.0
    z = bias + special.ndtri([(1 - level) / 2, (1 + level) / 2])
    return np.quantile(replicates, special.ndtr(bias + z / (1 - acceleration * z)))


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
        half = special.stdtrit(df, (1 + level) / 2) * np.sqrt(variance)
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
