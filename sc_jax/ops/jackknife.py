"""Leave-one-out values of ranking metrics, all n of them from cumulative sums: O(n) after the sort.

They give the acceleration of BCa intervals, and the standard errors of files too long for a bootstrap.
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
    others, own = _others_and_own(above, weight, total, part, len(score) - 1)
    block = len(above) - 1 - np.searchsorted(points.score[::-1], score, side="left")
    return others[block] + (total[block] - loss) * own[block]


def _others_and_own(
    above: np.ndarray, weight: np.ndarray, total: np.ndarray, part: Callable[..., np.ndarray], n: int
) -> tuple[np.ndarray, np.ndarray]:
    """For a sample of each block: what the other blocks are worth without it, and what a loss of 1 in its own is."""
    before = total * part(above, weight, n)
    after = total * part(np.maximum(above - 1, 0), weight, n)
    others = np.cumsum(before) - before + np.sum(after) - np.cumsum(after)
    return others, np.where(weight > 1, part(above, np.maximum(weight - 1, 1), n), 0.0)


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


def standard_errors(score: np.ndarray, error: np.ndarray) -> dict[str, float]:
    """The jackknife's standard error √((n − 1)/n Σ (θ_i − mean θ)²) of each metric in `SMOOTH`, from one sort.

    Samples of one block that are alike, right or wrong, have the same leave-one-out value: no array is in the order of the samples.

    Args:
      score: [n]; error: bool [n], on the host, n ≥ 2.

    Returns:
      Name → standard error; NaN where a leave-one-out value is undefined.
    """
    ranking = blocks(score, error).ranking
    above, weight, wrong = ranking.before, ranking.weight, ranking.block_loss
    n, all_wrong = len(score), int(ranking.total_loss)
    count = np.stack([weight - wrong, wrong])  # of the right, of the wrong, in each block
    loss = np.array([[0], [1]])

    def without(part: Callable[..., np.ndarray]) -> np.ndarray:
        others, own = _others_and_own(above, weight, wrong.astype(np.float64), part, n - 1)
        return others + (wrong - loss) * own

    mean = (all_wrong - loss) / (n - 1)
    perfect = np.array([[_perfect(n - 1, all_wrong)], [_perfect(n - 1, all_wrong - 1)]])
    aurc_left = without(_mean_risk)
    right, own_right, right_above = n - all_wrong, weight - wrong, above - ranking.loss_before

    def auroc_left() -> np.ndarray:
        lost = np.stack(
            [all_wrong - ranking.loss_before - wrong / 2, right_above + own_right / 2]
        )  # pairs won, with it
        pairs = np.array([[all_wrong * (right - 1)], [(all_wrong - 1) * right]])
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(pairs > 0, (np.sum(wrong * lost[1]) - lost) / pairs, np.nan)

    def error_of(value: np.ndarray) -> float:
        value[count == 0] = 0.0
        centre = np.sum(count * value) / n
        value -= centre
        np.square(value, out=value)
        return float(np.sqrt((n - 1) / n * np.sum(count * value)))

    values = {  # one after the other: each is two numbers per block
        "aurc": lambda: aurc_left.copy(),
        "e_aurc": lambda: aurc_left - perfect,
        "naurc": lambda: normalised(aurc_left, perfect + 0 * aurc_left, mean + 0 * aurc_left),
        "augrc": lambda: without(_area_under_generalized_risk),
        "e_augrc": lambda: without(_area_under_generalized_risk) - mean**2 / 2,
        "failure_auroc": auroc_left,
    }
    return {name: error_of(value()) for name, value in values.items()}


def _perfect(n: int, wrong: int) -> float:
    """AURC of the perfect ranking of `wrong` errors among n."""
    if wrong > n:  # no such sample
        return np.nan
    if wrong <= 0:
        return 0.0
    return wrong * float(_mean_risk(np.array([n - wrong]), np.array([wrong]), n)[0])
