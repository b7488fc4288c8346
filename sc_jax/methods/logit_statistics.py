"""What happens to the logits while a network learns: means by confidence, apart for right and wrong predictions, and the ranking.

A stream: `measure` a batch, `merge` what was measured, `means` at the end, `by_alpha` of members together. Everything is a sum, so that batches, devices and
processes merge in any order. How errors are ranked is no sum: `ranking` takes a whole sample.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sc_jax import ops

EDGES = (-2.0, 0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0)
"""Inner edges of the bins of confidence, in log-odds of the MSP: 0 is one half, 3 is .953, 8 is .99966."""

BINS = len(EDGES) + 1


class Sums(NamedTuple):
    """Sums over examples, float32 [m, 2, bins]: right predictions at place 0 of the second axis, wrong ones at 1.

    Attributes:
      count: examples.
      max_logit: v_max; centred_max_logit: v_max − mean_k v_k, which no shift of the logits moves.
      msp: the maximum softmax probability.
      extra_gradient: what smoothing adds to the gradient on the max logit, α(1[right] − 1/K).
      gradient: all of that gradient, p_max − (1 − α)·1[right] − α/K.
      norm: ‖v‖_p.
    """

    count: jax.Array
    max_logit: jax.Array
    centred_max_logit: jax.Array
    msp: jax.Array
    extra_gradient: jax.Array
    gradient: jax.Array
    norm: jax.Array


def measure(logits: jax.Array, label: jax.Array, alpha: jax.Array, where: jax.Array, *, p: float = 2.0) -> Sums:
    """The sums of a batch; for `jax.jit`.

    Args:
      logits: float [m, b, k] of every member; label: int [b]; alpha: [m], the smoothing of each; where: bool [b], examples that
        count; p: of the norm.

    Returns:
      `Sums`; bin i of confidence holds log-odds in (EDGES[i − 1], EDGES[i]].
    """
    top, mean = logits.max(-1), logits.mean(-1)
    label, where = (jnp.broadcast_to(array, top.shape) for array in (label, where))
    right = ops.predicted_class(logits) == label
    log_odds = ops.msp(logits)
    cell = jnp.searchsorted(jnp.asarray(EDGES), log_odds) + BINS * ~right
    extra = ops.max_logit_suppression(logits, label, alpha[:, None])
    msp = jax.nn.sigmoid(log_odds)
    columns = Sums(
        count=jnp.ones_like(top),
        max_logit=top,
        centred_max_logit=top - mean,
        msp=msp,
        extra_gradient=extra,
        gradient=msp - right + extra,
        norm=jnp.linalg.norm(logits, ord=p, axis=-1),
    )

    def summed(column: jax.Array) -> jax.Array:
        counted = jnp.where(where, column, 0)
        total = jax.vmap(functools.partial(jax.ops.segment_sum, num_segments=2 * BINS))(counted, cell)
        return total.reshape(-1, 2, BINS)

    return jax.tree.map(summed, columns)


def merge(a: Sums, b: Sums) -> Sums:
    """The sums of both: associative and commutative."""
    return jax.tree.map(lambda x, y: x + y, a, b)


def means(sums: Sums) -> dict[str, Any]:
    """Counts, and means by bin, as JSON values.

    Args:
      sums: on the host.

    Returns:
      {"count": [m][2][bins], name: [m][2][bins] for each other field}, None where a bin is empty.
    """
    count = np.asarray(sums.count)
    result: dict[str, Any] = {"count": count.astype(int).tolist()}
    for name, total in sums._asdict().items():
        if name != "count":
            with np.errstate(invalid="ignore"):
                mean = np.asarray(total, np.float64) / count
            result[name] = np.where(count > 0, mean, None).tolist()
    return result


def by_alpha(told: dict[str, Any], alphas: Sequence[float]) -> list[dict[str, Any]]:
    """The statistics of all members of the same α taken together, as JSON values.

    Args:
      told: of `means`; alphas: [m], of each member.

    Returns:
      By α ascending {"alpha", "count": [2][bins], name: [2][bins] for each other field}: means over all their examples, None where there
      are none.
    """
    rows = []
    count, of = np.array(told["count"], float), np.array(alphas)
    for alpha in sorted(set(alphas)):
        total = count[of == alpha].sum(axis=0)
        row = {"alpha": alpha, "count": total.astype(int).tolist()}
        for name, values in told.items():
            if name not in ("count", "ranking"):
                summed = np.nansum(count[of == alpha] * np.array(values, float)[of == alpha], axis=0)
                row[name] = np.where(total > 0, summed / np.maximum(total, 1), None).tolist()
        rows.append(row)
    return rows


def ranking(score: np.ndarray, wrong: np.ndarray) -> dict[str, list[float]]:
    """How each member ranks its errors, as JSON values.

    Args:
      score: [m, n], of confidence; wrong: bool [m, n].

    Returns:
      {"error", "aurc", "naurc" (None without right or without wrong predictions), "coverage_at_risk_0.05", "risk_at_coverage_0.8": [m]}.
    """
    rows = [_ranking(*one) for one in zip(score, wrong, strict=True)]
    return {name: [row[name] for row in rows] for name in rows[0]}


def _ranking(score: np.ndarray, wrong: np.ndarray) -> dict[str, float | None]:
    naurc = float(ops.naurc(score, wrong)) if 0 < wrong.sum() < len(wrong) else None
    return {
        "error": float(np.mean(wrong)),
        "aurc": float(ops.aurc(score, wrong)),
        "naurc": naurc,
        "coverage_at_risk_0.05": float(ops.coverage_at_risk(score, wrong, 0.05)),
        "risk_at_coverage_0.8": float(ops.risk_at_coverage(score, wrong, 0.8)),
    }
