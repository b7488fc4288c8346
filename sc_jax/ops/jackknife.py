"""Leave-one-out values of ranking metrics, all n of them from cumulative sums: O(n) after the sort.

They give the acceleration of BCa intervals.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from sc_jax.ops.areas import augrc, aurc, e_augrc, e_aurc, naurc, normalised
from sc_jax.ops.detection import failure_auroc
from sc_jax.ops.ranking import Array, blocks, harmonic_difference, harmonic_rest


def leave_one_out(statistic: Callable[..., Array], score: np.ndarray, loss: np.ndarray) -> np.ndarray:
    """The value of a metric without each sample in turn.

    Args:
      statistic: one of `SMOOTH`; score, loss: [n] on the host, n ≥ 2.

    Returns:
      [n].

    Raises:
      ValueError: the metric is not smooth, so its leave-one-out values do not say how it varies.
    """
    for known, values in SMOOTH.items():
        if statistic is known:
            return values(np.asarray(score), np.asarray(loss))
    names = ", ".join(known.__name__ for known in SMOOTH)
    raise ValueError(f"{getattr(statistic, '__name__', statistic)}: BCa needs one of {names}; use method='percentile'")


def _without(score: np.ndarray, loss: np.ndarray, part: Callable[..., np.ndarray]) -> np.ndarray:
    """Leave-one-out of Σ_blocks e·part(K, w, n), K weight above, w of the block.

    Without a sample the blocks above it keep their place among n − 1, those below move up by one, its own loses it.
    """
    points = blocks(score, loss)
    above, weight, total = points.ranking.before, points.ranking.weight, points.ranking.block_loss.astype(np.float64)
    n = len(score) - 1
    before = total * part(above, weight, n)
    after = total * part(np.maximum(above - 1, 0), weight, n)
    others = np.cumsum(before) - before + np.sum(after) - np.cumsum(after)
    block = len(above) - 1 - np.searchsorted(points.score[::-1], score, side="left")
    own = np.where(weight > 1, part(above, np.maximum(weight - 1, 1), n), 0.0)
    return others[block] + (total[block] - loss) * own[block]


def _mean_risk(above: np.ndarray, weight: np.ndarray, n: int) -> np.ndarray:
    end = np.minimum(above + weight, n)  # a block that ends beyond n − 1 is not asked for without its sample
    return (harmonic_difference(end, np.full_like(end, n)) + harmonic_rest(above, weight)) / n


def _area_under_generalized_risk(above: np.ndarray, weight: np.ndarray, n: int) -> np.ndarray:
    return (n - above - weight / 2) / n**2


def _mean_loss(score: np.ndarray, loss: np.ndarray) -> np.ndarray:
    return (np.sum(loss, dtype=np.float64) - loss) / (len(loss) - 1)


def _aurc(score: np.ndarray, loss: np.ndarray) -> np.ndarray:
    return _without(score, loss, _mean_risk)


def _optimal(loss: np.ndarray) -> np.ndarray:
    return _aurc(-loss.astype(np.float64), loss)


def _e_aurc(score: np.ndarray, loss: np.ndarray) -> np.ndarray:
    return _aurc(score, loss) - _optimal(loss)


def _naurc(score: np.ndarray, loss: np.ndarray) -> np.ndarray:
    return normalised(_aurc(score, loss), _optimal(loss), _mean_loss(score, loss))


def _augrc(score: np.ndarray, loss: np.ndarray) -> np.ndarray:
    return _without(score, loss, _area_under_generalized_risk)


def _e_augrc(score: np.ndarray, loss: np.ndarray) -> np.ndarray:
    return _augrc(score, loss) - _augrc(-loss.astype(np.float64), loss)


def _failure_auroc(score: np.ndarray, loss: np.ndarray) -> np.ndarray:
    """Without a sample, the pairs it is in are gone: (S − its part)/(pairs that are left)."""
    error = loss.astype(bool)
    right, wrong = np.sort(score[~error]), np.sort(score[error])

    def below(sample: np.ndarray, other: np.ndarray) -> np.ndarray:
        return (np.searchsorted(other, sample, side="left") + np.searchsorted(other, sample, side="right")) / 2

    part = np.where(error, len(right) - below(score, right), below(score, wrong))
    pairs = np.where(error, (len(wrong) - 1) * len(right), len(wrong) * (len(right) - 1))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(pairs > 0, (np.sum(part) / 2 - part) / pairs, np.nan)


SMOOTH: dict[Callable[..., Array], Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    aurc: _aurc,
    e_aurc: _e_aurc,
    naurc: _naurc,
    augrc: _augrc,
    e_augrc: _e_augrc,
    failure_auroc: _failure_auroc,
}
"""The metrics with leave-one-out values, and how these are found."""
