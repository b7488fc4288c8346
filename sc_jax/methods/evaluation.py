"""One predictions file → every score, every metric, with intervals over its examples, and the replicates behind them.

Resampled counts are drawn by the caller and shared by all files of a split, so that replicates of different files pair.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from sc_jax import ops
from sc_jax.methods import logit_norm
from sc_jax.methods import scores as scores_lib
from sc_jax.ops import resampling
from sc_jax.ops.risk_coverage import loss_of_accepted
from sc_jax.ops.summary import summarise_ranking
from sc_jax.predictions import Predictions

COVERAGES = np.arange(1, 101) / 100
"""Coverages at which curves are kept."""

CLASSIFIER_METRICS = ("nll", "brier", "ece")
"""Metrics of the probabilities; they stand beside `msp`, the score that is one."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """How files are evaluated; see `config.Evaluation` for the meaning of each."""

    scores: tuple[str, ...]
    p_grid: tuple[int, ...]
    ece_bins: int
    resamples: int
    level: float
    seed: int


@dataclasses.dataclass(frozen=True)
class ScoreResult:
    """One score of one file.

    Attributes:
      metrics: name → value; intervals: name → (low, high) over test examples, with what was fitted held fixed.
      replicates: name → [b] bootstrap replicates over test examples; for tuned scores the calibration examples are
        resampled too and p is chosen anew in each, so that contrasts carry the uncertainty of the choice.
      curve: selective risk at `COVERAGES`; curve_replicates: float32 [b, coverages], with what was fitted held fixed.
      fitted: what was chosen on the calibration split, or None.
    """

    metrics: dict[str, float]
    intervals: dict[str, list[float]]
    replicates: dict[str, np.ndarray]
    curve: np.ndarray
    curve_replicates: np.ndarray
    fitted: dict[str, Any] | None


def combined(predictions: Predictions) -> Predictions:
    """Ensembles as one classifier: [m, n, k] logits become log of the mean probabilities; others stay as they are."""
    if predictions.logits.ndim == 2:
        return predictions
    logits = ops.ensemble_log_probabilities(predictions.logits)
    return dataclasses.replace(predictions, logits=logits, log_probabilities=True)


def evaluate(
    predictions: Predictions,
    calibration: Predictions | None,
    settings: Settings,
    counts: np.ndarray,
    calibration_counts: np.ndarray | None,
) -> tuple[dict[str, ScoreResult], dict[str, str]]:
    """Every score that can be computed, and the reason for each that cannot.

    Args:
      predictions: logits [n, k], reported on; calibration: another split of the same model, for tuned scores.
      settings: how.
      counts: uint8 [b, n], resamples of the examples; calibration_counts: [b, n_calibration].

    Returns:
      name → `ScoreResult`, and name → why it was left out.
    """
    test = _Sample(predictions, counts)
    results: dict[str, ScoreResult] = {}
    left_out: dict[str, str] = {}
    chosen: _Choices | None = None
    for name, score in scores_lib.named(settings.scores).items():
        reason = scores_lib.obstacle(score, predictions, calibration)
        if reason is not None:
            left_out[name] = reason
            continue
        if not score.tuned:
            results[name] = _result(
                test, score.of(predictions.logits), None, settings, with_probabilities=name == "msp"
            )
            continue
        chosen = chosen or _Choices(calibration, calibration_counts, settings.p_grid)
        results[name] = _tuned_result(test, chosen, score.fallback, settings)
    return results, left_out


class _Sample:
    """A split with its resamples, and what does not depend on the score."""

    def __init__(self, predictions: Predictions, counts: np.ndarray):
        self.predictions, self.logits, self.counts = predictions, predictions.logits, counts
        self.label = predictions.label
        self.error = ops.predicted_class(predictions.logits) != predictions.label
        self.optimum = float(ops.optimal_aurc(self.error))
        self.optimum_replicates = np.concatenate(
            [ops.optimal_aurc(self.error, weight=counts[rows]) for rows in resampling.chunks(counts)]
        )

    def replicates(
        self, score: np.ndarray, rows: np.ndarray | slice = slice(None)
    ) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Metrics [b] and curve [b, coverages] of the resamples `rows`."""
        counts, optimum = self.counts[rows], self.optimum_replicates[rows]
        accepted = _accepted(len(self.error))
        summaries, curves = [], []
        for part in resampling.chunks(counts):
            ranking = ops.rank(score, self.error, counts[part])
            summaries.append(summarise_ranking(ranking, optimum[part]))
            curves.append((loss_of_accepted(ranking, accepted) / accepted).astype(np.float32))
        metrics = {name: np.concatenate([summary[name] for summary in summaries]) for name in summaries[0]}
        return metrics, np.concatenate(curves)


def _accepted(n: int) -> np.ndarray:
    return -(-n * np.arange(1, 101) // 100)  # ceil(n c) in integers


class _Choices:
    """Which p the calibration split chooses, and which each resample of it, with and without the fallback."""

    def __init__(self, calibration: Predictions, counts: np.ndarray, p_grid: Sequence[int]):
        self._calibration, self._p_grid = calibration, p_grid
        error = ops.predicted_class(calibration.logits) != calibration.label
        candidates = logit_norm.candidates(calibration.logits, p_grid, fallback=True)
        self._ps = np.array(list(candidates))
        parts = list(resampling.chunks(counts))
        self._aurc = np.stack(
            [
                np.concatenate([ops.aurc(score, error, weight=counts[rows]) for rows in parts])
                for score in candidates.values()
            ],
            axis=-1,
        )
        self.split = calibration.provenance.get("split", calibration.source)

    def of(self, fallback: bool) -> tuple[logit_norm.LogitNorm, np.ndarray]:
        """What is fitted, and the p that each resample chooses [b] (0 for MSP)."""
        first = 0 if fallback else 1
        fitted = logit_norm.fit(self._calibration, self._p_grid, fallback=fallback)
        return fitted, self._ps[first:][logit_norm.choose(self._aurc[:, first:])]


def _tuned_result(test: _Sample, choices: _Choices, fallback: bool, settings: Settings) -> ScoreResult:
    state, p_replicates = choices.of(fallback)
    uses = "msp" if state.p == 0 else "max_logit_pnorm"
    fitted = {"p": state.p or None, "uses": uses, "on": choices.split, "aurc": state.aurc}
    result = _result(test, logit_norm.apply(state, test.predictions), fitted, settings)
    replicates = {name: values.copy() for name, values in result.replicates.items()}
    for p in np.unique(p_replicates[p_replicates != state.p]):
        rows = np.flatnonzero(p_replicates == p)
        metrics, _ = test.replicates(logit_norm.apply(state._replace(p=int(p)), test.predictions), rows)
        for name, values in metrics.items():
            replicates[name][rows] = values
    return dataclasses.replace(result, replicates=replicates)


def _result(
    test: _Sample,
    score: np.ndarray,
    fitted: dict[str, Any] | None,
    settings: Settings,
    with_probabilities: bool = False,
) -> ScoreResult:
    ranking = ops.rank(score, test.error)
    metrics = {name: float(value) for name, value in summarise_ranking(ranking, np.float64(test.optimum)).items()}
    replicates, curves = test.replicates(score)
    if with_probabilities:
        more, more_replicates = _classifier_metrics(test, settings.ece_bins)
        metrics |= more
        replicates |= more_replicates
    intervals = {
        name: [float(end) for end in resampling.percentile_interval(values, settings.level)]
        for name, values in replicates.items()
    }
    accepted = _accepted(len(test.error))
    return ScoreResult(metrics, intervals, replicates, loss_of_accepted(ranking, accepted) / accepted, curves, fitted)


def _classifier_metrics(test: _Sample, ece_bins: int) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    losses = {"nll": ops.log_loss(test.logits, test.label), "brier": ops.brier_loss(test.logits, test.label)}
    confidence = ops.max_probability(test.logits)
    metrics = {name: float(loss.mean()) for name, loss in losses.items()}
    metrics["ece"] = float(ops.expected_calibration_error(confidence, test.error, bins=ece_bins))
    parts: dict[str, list[np.ndarray]] = {name: [] for name in CLASSIFIER_METRICS}
    for rows in resampling.chunks(test.counts):
        weight = test.counts[rows].astype(np.float64)
        for name, loss in losses.items():
            parts[name].append(_weighted_mean(loss, weight))
        parts["ece"].append(ops.expected_calibration_error(confidence, test.error, bins=ece_bins, weight=weight))
    return metrics, {name: np.concatenate(values) for name, values in parts.items()}


def _weighted_mean(loss: np.ndarray, weight: np.ndarray) -> np.ndarray:
    if np.isfinite(loss).all():
        return weight @ loss / weight.sum(axis=-1)
    drawn_infinite = weight[:, ~np.isfinite(loss)].any(axis=-1)
    return np.where(drawn_infinite, np.inf, weight @ np.where(np.isfinite(loss), loss, 0) / weight.sum(axis=-1))
