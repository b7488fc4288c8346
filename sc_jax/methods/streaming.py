"""Files too long for a bootstrap, and files of scores alone: one score at a time, in memory that does not grow with their number.

Up to `MOST_COUNTS` resampled counts the intervals are percentile bootstrap ones; beyond, they are estimate ± z·SE with the
jackknife's standard error, for smooth metrics: at such n the two do not differ.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from sc_jax import ops
from sc_jax.methods import evaluation, logit_norm
from sc_jax.methods import scores as scores_lib
from sc_jax.methods.evaluation import COVERAGES, Settings, Split
from sc_jax.ops import resampling
from sc_jax.ops.jackknife import leave_one_out
from sc_jax.ops.risk_coverage import loss_of_accepted
from sc_jax.ops.summary import summarise_ranking
from sc_jax.predictions import Predictions, Scored, Stream

MOST_COUNTS = 200_000_000
"""Resamples times examples up to which a bootstrap is made."""

_JACKKNIFED = {
    "aurc": ops.aurc,
    "e_aurc": ops.e_aurc,
    "naurc": ops.naurc,
    "augrc": ops.augrc,
    "e_augrc": ops.e_augrc,
    "failure_auroc": ops.failure_auroc,
}


def evaluate_scored(
    scored: Scored, settings: Settings, progress: Callable[[int], None] = lambda done: None
) -> list[dict[str, Any]]:
    """A row for each score of the file: metrics, intervals, curve.

    Args:
      scored: 0/1 or soft losses; settings: how; progress: receives the number of scores done.

    Returns:
      [{"score", "n", "metrics", "intervals", "intervals_by", "curve"}]; soft losses have no metric that needs errors.
    """
    loss = np.asarray(scored.loss)
    known = None if scored.is_ood is None or not np.any(scored.is_ood) else ~np.asarray(scored.is_ood)
    weight = None if scored.weight is None else np.asarray(scored.weight)
    inside = loss if known is None else loss[known]
    inside_weight = weight if weight is None or known is None else weight[known]
    hard = inside.dtype == bool or bool(((inside == 0) | (inside == 1)).all())
    inside = inside.astype(bool) if hard else inside
    rows = []
    for done, name in enumerate(scored.score, 1):
        score = np.asarray(scored.score[name])
        row = _row(name, score if known is None else score[known], inside, inside_weight, hard, settings)
        if known is not None:
            row["metrics"] |= evaluation.ood_metrics(score, loss, ~known, weight)
        rows.append(row)
        progress(done)
    return rows


def _row(
    name: str, score: np.ndarray, loss: np.ndarray, weight: np.ndarray | None, hard: bool, settings: Settings
) -> dict[str, Any]:
    ranking = ops.rank(score, loss, weight)
    optimum = ops.optimal_aurc(loss, weight=weight)
    metrics = _metrics(ranking, optimum, hard)
    n = len(loss)
    if n * settings.resamples <= MOST_COUNTS:
        by = "percentile bootstrap over examples"
        replicates: dict[str, list[np.ndarray]] = {key: [] for key in metrics}
        for counts in resampling.draws(n, settings.resamples, settings.seed):
            rows = counts if weight is None else counts * weight
            drawn = _metrics(ops.rank(score, loss, rows), ops.optimal_aurc(loss, weight=rows), hard)
            for key, values in drawn.items():
                replicates[key].append(values)
        intervals = {
            key: resampling.percentile_interval(np.concatenate(values), settings.level)
            for key, values in replicates.items()
        }
    elif weight is None:
        by = "jackknife over examples"
        z = stats.norm.ppf((1 + settings.level) / 2)
        intervals = {
            key: metrics[key] + np.array([-z, z]) * _jackknife_error(metric, score, loss)
            for key, metric in _JACKKNIFED.items()
            if key in metrics
        }
    else:
        by, intervals = "none: a bootstrap of so many weighted examples is not made; give fewer --resamples", {}
    accepted = ranking.total_weight * COVERAGES
    if weight is None:
        accepted = -(-n * np.arange(1, 101) // 100)
    return {
        "score": name,
        "n": n,
        "metrics": {key: float(value) for key, value in metrics.items()},
        "intervals": {key: [float(end) for end in ends] for key, ends in intervals.items()},
        "intervals_by": by,
        "curve": loss_of_accepted(ranking, accepted) / accepted,
    }


def _metrics(ranking: ops.Ranking, optimum: np.ndarray, hard: bool) -> dict[str, np.ndarray]:
    metrics = summarise_ranking(ranking, optimum)
    return (
        metrics if hard else {key: value for key, value in metrics.items() if key not in ("failure_auroc", "e_augrc")}
    )


def _jackknife_error(metric: Callable[..., np.ndarray], score: np.ndarray, loss: np.ndarray) -> float:
    """√((n − 1)/n Σ (θ_i − mean θ)²) of the leave-one-out values θ_i."""
    values = leave_one_out(metric, score, loss)
    return float(np.sqrt((len(values) - 1) * np.mean((values - values.mean()) ** 2)))


def score_stream(
    stream: Stream,
    calibration: Predictions | None,
    settings: Settings,
    folder: Path,
    progress: Callable[[int], None] = lambda done: None,
) -> tuple[Scored, dict[str, float], dict[str, str]]:
    """Every score of a long file, computed chunk by chunk and kept on disk.

    Args:
      stream: logits; calibration: another split of the same model, for what is fitted; settings: how.
      folder: where the scores are put, float64 [n] each; progress: receives the number of examples done.

    Returns:
      The scores; NLL, Brier score and ECE of the examples from the training distribution; and why scores were left out.
    """
    tuning = None if calibration is None else Split.of(calibration).known
    scorers: dict[str, Callable[[Split], np.ndarray]] = {}
    left_out: dict[str, str] = {}
    first = next(iter(stream.chunks(1)))
    for name, score in scores_lib.named(settings.scores).items():
        reason = scores_lib.obstacle(score, first, calibration)
        if reason is None:
            try:
                scorers[name] = _scorer(score, tuning, settings)
            except ValueError as error:
                reason = str(error)
        if reason is not None:
            left_out[name] = reason
    n = len(stream)

    def column(name: str, dtype: type) -> np.ndarray:
        return np.lib.format.open_memmap(folder / f"{name}.npy", mode="w+", dtype=dtype, shape=(n,))

    columns = {name: column(name, np.float64) for name in scorers}
    error, confidence = column("error", bool), column("confidence", np.float32)
    totals, done = np.zeros(3), 0
    for chunk in stream.chunks():
        split, here = Split.of(chunk), slice(done, done + len(chunk))
        for name, scorer in scorers.items():
            columns[name][here] = scorer(split)
        error[here] = ops.predicted_class(split.combined.logits) != chunk.label
        confidence[here] = ops.max_probability(split.combined.logits)
        weight = np.ones(len(chunk)) if chunk.weight is None else chunk.weight
        weight = weight if chunk.is_ood is None else weight * ~chunk.is_ood
        losses = (ops.log_loss(split.combined.logits, chunk.label), ops.brier_loss(split.combined.logits, chunk.label))
        totals += [weight.sum(), *(np.sum(weight * loss, where=weight > 0) for loss in losses)]
        done += len(chunk)
        progress(done)
    known = None if stream.is_ood is None else ~stream.is_ood
    ece = ops.expected_calibration_error(confidence, error, bins=settings.ece_bins, weight=stream.weight, where=known)
    classifier = {"nll": totals[1] / totals[0], "brier": totals[2] / totals[0], "ece": float(ece)}
    shared = {name: getattr(stream, name) for name in ("group", "is_ood", "weight", "provenance", "source")}
    return Scored(error, columns, stream.example_id, **shared), classifier, left_out


def _scorer(score: scores_lib.Score, tuning: Split | None, settings: Settings) -> Callable[[Split], np.ndarray]:
    if not score.tuned:
        return evaluation.scorer(score, tuning)[0]
    state = logit_norm.fit(tuning.combined, settings.p_grid, fallback=score.fallback)
    return lambda split: logit_norm.apply(state, split.combined)


def is_long(n: int, settings: Settings) -> bool:
    """Whether a file of n examples is read as a stream."""
    return n * settings.resamples > MOST_COUNTS
