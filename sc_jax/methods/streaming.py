"""Files too long for a bootstrap, and files of scores alone: one score at a time, in memory that does not grow with their number.

Up to `MOST_COUNTS` resampled counts the intervals are percentile bootstrap ones; beyond, they are estimate ± z·SE with the
jackknife's standard error, for smooth metrics: at such n the two do not differ.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import special

from sc_jax import ops
from sc_jax.files import InputError
from sc_jax.methods import evaluation, logit_norm
from sc_jax.methods import scores as scores_lib
from sc_jax.methods.evaluation import Settings, Split
from sc_jax.ops import resampling
from sc_jax.ops.jackknife import standard_errors
from sc_jax.ops.risk_coverage import loss_of_accepted
from sc_jax.ops.summary import summarise_ranking
from sc_jax.predictions import Predictions, Scored, Stream

MOST_COUNTS = 200_000_000
"""Resamples times examples up to which a bootstrap is made."""


class Streamed(NamedTuple):
    """What a long file holds, once read.

    Attributes:
      scored: its scores and errors; classifier: NLL, Brier score and ECE of the examples from the training distribution.
      about: counts that stand in every row; fitted: by score, what was chosen on the calibration split; left_out: why, by score.
    """

    scored: Scored
    classifier: dict[str, float]
    about: dict[str, int]
    fitted: dict[str, dict[str, Any]]
    left_out: dict[str, str]


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
    cluster = scored.cluster if scored.cluster is None or known is None else scored.cluster[known]
    hard = inside.dtype == bool or bool(((inside == 0) | (inside == 1)).all())
    inside = inside.astype(bool) if hard else inside
    rows = []
    for done, name in enumerate(scored.score, 1):
        score = np.asarray(scored.score[name])
        row = _row(name, score if known is None else score[known], inside, inside_weight, cluster, hard, settings)
        if known is not None:
            row["metrics"] |= evaluation.ood_metrics(score, loss, ~known, weight)
        rows.append(row)
        progress(done)
    return rows


def _row(
    name: str,
    score: np.ndarray,
    loss: np.ndarray,
    weight: np.ndarray | None,
    cluster: np.ndarray | None,
    hard: bool,
    settings: Settings,
) -> dict[str, Any]:
    ranking = ops.rank(score, loss, weight)
    optimum = ops.optimal_aurc(loss, weight=weight)
    metrics = _metrics(ranking, optimum, hard)
    n, at_0 = len(loss), {}
    if n * settings.resamples <= MOST_COUNTS:
        by = f"percentile bootstrap over {'examples' if cluster is None else 'clusters'}"
        replicates: dict[str, list[np.ndarray]] = {key: [] for key in metrics}
        for counts in resampling.draws(n, settings.resamples, settings.seed, groups=cluster):
            rows = counts if weight is None else counts * weight
            drawn = _metrics(ops.rank(score, loss, rows), ops.optimal_aurc(loss, weight=rows), hard)
            for key, values in drawn.items():
                replicates[key].append(values)
        joined = {key: np.concatenate(values) for key, values in replicates.items()}
        intervals = {key: resampling.percentile_interval(v, settings.level) for key, v in joined.items()}
        at_0 = {"resamples_at_coverage_0": evaluation.resamples_at_coverage_0(joined)}
    elif weight is None and cluster is None and hard and n > 1:
        by = "jackknife over examples"
        z = special.ndtri((1 + settings.level) / 2)
        errors = standard_errors(score, loss)
        intervals = {key: metrics[key] + np.array([-z, z]) * error for key, error in errors.items()}
    else:
        by = "none: so many examples with weights, clusters or soft losses are not resampled; give fewer --resamples"
        intervals = {}
    accepted = evaluation.accepted_at_coverages(ranking.total_weight)
    return {
        "score": name,
        "n": n,
        "metrics": {key: float(value) for key, value in metrics.items()},
        "intervals": {key: [float(end) for end in ends] for key, ends in intervals.items()},
        "intervals_by": by,
        **at_0,
        "curve": loss_of_accepted(ranking, accepted) / accepted,
    }


def _metrics(ranking: ops.Ranking, optimum: np.ndarray, hard: bool) -> dict[str, np.ndarray]:
    metrics = summarise_ranking(ranking, optimum)
    return (
        metrics if hard else {key: value for key, value in metrics.items() if key not in ("failure_auroc", "e_augrc")}
    )


def score_stream(
    stream: Stream,
    calibration: Predictions | None,
    settings: Settings,
    folder: Path,
    progress: Callable[[int], None] = lambda done: None,
) -> Streamed:
    """Every score of a long file, computed chunk by chunk and kept on disk.

    Args:
      stream: logits; calibration: another split of the same model, for what is fitted; settings: how.
      folder: where the scores are put, float64 [n] each; progress: receives the number of examples done.

    Returns:
      `Streamed`; a score that any chunk does not allow is left out.
    """
    tuning = None if calibration is None else Split.of(calibration).known
    asked = scores_lib.named(settings.scores)
    scorers: dict[str, evaluation.Scorer] = {}
    fitted: dict[str, dict[str, Any]] = {}
    left_out: dict[str, str] = {}
    first = next(iter(stream.chunks(1)))
    for name, score in asked.items():
        reason = scores_lib.obstacle(score, first, calibration)
        if reason is None:
            try:
                scorers[name], of_split = _scorer(score, tuning, settings)
                fitted |= {} if of_split is None else {name: of_split}
            except ValueError as error:
                reason = str(error)
        if reason is not None:
            left_out[name] = reason
    n = len(stream)

    def column(name: str, dtype: type) -> np.ndarray:
        return _column(folder / f"{name}.npy", dtype, n)

    columns = {name: column(name, np.float64) for name in scorers}
    error, confidence = column("error", bool), column("confidence", np.float64)
    totals, done = np.zeros(3), 0
    about = {"argmax_ties": 0, "infinite_log_losses": 0}
    for chunk in stream.chunks():
        split, here = Split.of(chunk), slice(done, done + len(chunk))
        for name in list(columns):
            reason = scores_lib.obstacle(asked[name], chunk, calibration)  # of these rows
            if reason is None:
                columns[name][here] = scorers[name](split)
            else:
                left_out[name] = reason
                del columns[name]
                fitted.pop(name, None)
        error[here] = ops.predicted_class(split.combined.logits) != chunk.label
        confidence[here] = ops.max_probability(split.combined.logits)
        known = split.known.combined
        if len(known):
            weight = np.ones(len(known)) if known.weight is None else known.weight
            losses = (ops.log_loss(known.logits, known.label), ops.brier_loss(known.logits, known.label))
            totals += [weight.sum(), *(weight[weight > 0] @ loss[weight > 0] for loss in losses)]
            about["argmax_ties"] += evaluation.argmax_ties(known.logits)
            about["infinite_log_losses"] += evaluation.infinite_log_losses(known)
        done += len(chunk)
        progress(done)
    where = None if stream.is_ood is None else ~stream.is_ood
    ece = ops.expected_calibration_error(confidence, error, bins=settings.ece_bins, weight=stream.weight, where=where)
    classifier = {"nll": totals[1] / totals[0], "brier": totals[2] / totals[0], "ece": float(ece)}
    shared = {name: getattr(stream, name) for name in ("group", "is_ood", "weight", "cluster", "provenance", "source")}
    return Streamed(Scored(error, columns, stream.example_id, **shared), classifier, about, fitted, left_out)


def _column(path: Path, dtype: type, n: int) -> np.ndarray:
    """A new array on disk that has its room there: where a mapped file has none, writing to it is a signal that ends the process.

    Raises:
      InputError: there is no room.
    """
    try:
        made = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=(n,))
        if hasattr(os, "posix_fallocate"):  # not on macOS
            with open(path, "r+b") as file:
                os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    except OSError as error:
        raise InputError(
            f"{path.parent}: cannot keep the scores of {n:,} examples there ({error.strerror}); make room, or name another folder: "
            "TMPDIR=…"
        ) from error
    return made


def _scorer(
    score: scores_lib.Score, tuning: Split | None, settings: Settings
) -> tuple[evaluation.Scorer, dict[str, Any] | None]:
    if not score.tuned:
        return evaluation.scorer(score, tuning)
    state = logit_norm.fit(tuning.combined, settings.p_grid, fallback=score.fallback)
    return (lambda split: logit_norm.apply(state, split.combined)), evaluation.logit_norm_fitted(state, tuning)


def is_long(n: int, settings: Settings) -> bool:
    """Whether a file of n examples is read as a stream."""
    return n * settings.resamples > MOST_COUNTS
