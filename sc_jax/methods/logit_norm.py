"""Logit normalisation: the max logit over the p-norm of the centred logits, p chosen on a calibration split.

Source: Xia, Laurent, Franchi & Bouganis, ICLR 2025; the fallback to MSP is Cattelan & Silva's, UAI 2024.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from sc_jax import ops
from sc_jax.predictions import Predictions

P_GRID = tuple(range(1, 11))
"""The p that are chosen from where nothing else is said."""


class LogitNorm(NamedTuple):
    """What was fitted.

    Attributes:
      p: the chosen norm; 0 means the fallback, MSP.
      aurc: candidate → its AURC on the calibration split ("msp" among them where there is a fallback).
    """

    p: int
    aurc: dict[str, float]


def candidates(logits: np.ndarray, p_grid: Sequence[int], fallback: bool) -> dict[int, np.ndarray]:
    """p → score [n] of each candidate, MSP (as 0) first where there is a fallback.

    Args:
      logits: [n, k], k ≥ 3; p_grid: integers ≥ 1, tried in this order.
      fallback: whether MSP is a candidate.
    """
    scores = dict(zip(p_grid, ops.max_logit_pnorm(logits, tuple(p_grid)), strict=True))
    return {0: ops.msp(logits), **scores} if fallback else scores


def choose(aurc: np.ndarray) -> np.ndarray:
    """Index of the smallest AURC along the last axis; ties go to the first candidate, so MSP is left only if beaten.

    Equal to 12 digits is a tie: rounding is not to decide.

    Args:
      aurc: [..., candidates].
    """
    return np.argmin(np.round(aurc, 12), axis=-1)


def fit(calibration: Predictions, p_grid: Sequence[int], *, fallback: bool) -> LogitNorm:
    """Chooses p by the AURC of the errors on `calibration`, with its survey weights where it has them.

    Args:
      calibration: a named split that is not the one reported on.
      p_grid: the candidates; fallback: MSP is one too, and stays unless a p is strictly better.

    Raises:
      ValueError: k < 3, where the score is not defined.
    """
    error = ops.predicted_class(calibration.logits) != calibration.label
    scores = candidates(calibration.logits, p_grid, fallback)
    return best({p: float(ops.aurc(score, error, weight=calibration.weight)) for p, score in scores.items()})


def best(aurc: dict[int, float]) -> LogitNorm:
    """The candidate of smallest AURC: {p, or 0 for MSP: AURC}."""
    p = list(aurc)[choose(np.array(list(aurc.values())))]
    return LogitNorm(p, {"msp" if p == 0 else f"p={p}": value for p, value in aurc.items()})


def apply(state: LogitNorm, predictions: Predictions) -> np.ndarray:
    """The score [n] of `predictions` under what was fitted."""
    return ops.msp(predictions.logits) if state.p == 0 else ops.max_logit_pnorm(predictions.logits, state.p)
