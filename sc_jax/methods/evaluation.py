"""One predictions file → every score, every metric, with intervals over its examples, and the replicates behind them.

Resampled counts are drawn by the caller and shared by all files of a split, so that replicates of different files pair.
Metrics of the classifier and of its ranking are of the examples from the training distribution; `is_ood` ones enter the
metrics of OOD detection alone.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np

from sc_jax import files, ops
from sc_jax.files import InputError
from sc_jax.methods import logit_norm
from sc_jax.methods import scores as scores_lib
from sc_jax.methods.temperature import Temperature
from sc_jax.ops import resampling
from sc_jax.ops.calibration_error import losses_and_probabilities
from sc_jax.ops.risk_coverage import loss_of_accepted
from sc_jax.ops.scores import shares_rivals, together
from sc_jax.ops.summary import RISKS, summarise_ranking
from sc_jax.ops.targets import floor_of_share
from sc_jax.predictions import Predictions, select

COVERAGES = np.arange(1, 101) / 100
"""Coverages at which curves are kept."""

CLASSIFIER_METRICS = ("nll", "brier", "ece")
"""Metrics of the probabilities that have intervals; all of those stand beside `msp`, the score that is one."""

OPERATING_COVERAGES = (0.8, 0.9)
"""Coverages whose thresholds are taken from the calibration split."""


SCHEMA = 1
"""Of `metrics.json`."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """How files are evaluated; see `config.Evaluation` for the meaning of each.

    `match_error` is the error rate at which AURC is compared between classifiers of different accuracy; None for no such metric.
    """

    scores: tuple[str, ...]
    p_grid: tuple[int, ...]
    ece_bins: int
    resamples: int
    level: float
    seed: int
    match_error: float | None = None


@dataclasses.dataclass(frozen=True)
class ScoreResult:
    """One score of one file.

    Attributes:
      metrics: name → value; intervals: name → (low, high) over test examples, with what was fitted held fixed, for those
        metrics that have one.
      replicates: name → [b] bootstrap replicates over test examples; for logit norms the calibration examples are
        resampled too and p is chosen anew in each, so that contrasts carry the uncertainty of the choice.
      curve: selective risk at `COVERAGES`; curve_replicates: float32 [b, coverages], with what was fitted held fixed.
      fitted: what was chosen on the calibration split, or None.
      groups: rows of the group report, where the file has groups.
    """

    metrics: dict[str, float]
    intervals: dict[str, list[float]]
    replicates: dict[str, np.ndarray]
    curve: np.ndarray
    curve_replicates: np.ndarray
    fitted: dict[str, Any] | None
    groups: list[dict[str, Any]] | None = None


def combined(predictions: Predictions) -> Predictions:
    """Ensembles as one classifier: [m, n, k] logits become log of the mean probabilities; others stay as they are."""
    if predictions.logits.ndim == 2:
        return predictions
    logits = ops.ensemble_log_probabilities(predictions.logits)
    return dataclasses.replace(predictions, logits=logits, log_probabilities=True)


def resampled(known: Predictions, settings: Settings, seed: int) -> np.ndarray:
    """Counts uint8 [resamples, n] of the examples `known`, drawn singly, or by whole clusters where the file has them.

    Raises:
      InputError: all are of one cluster.
    """
    if known.cluster is not None and (known.cluster == known.cluster[0]).all():
        raise InputError(
            f"{known.source}, field 'cluster': all examples are of one cluster, which gives no interval; "
            "predict more, or leave the field out"
        )
    return resampling.resample_counts(seed, len(known), settings.resamples, known.cluster)


def covered(cluster: np.ndarray | None) -> str:
    """What intervals over examples cover, in words."""
    if cluster is None:
        return "test examples"
    names = np.unique(
        np.concatenate([np.unique(part) for part in files.chunks(cluster)])
    )  # there may be very many rows
    return f"{len(names)} clusters of test examples"


def evaluate(
    predictions: Predictions,
    calibration: Predictions | None,
    settings: Settings,
    counts: np.ndarray,
    calibration_counts: np.ndarray | None,
    *,
    workers: int = 1,
) -> tuple[dict[str, ScoreResult], dict[str, str]]:
    """Every score that can be computed, and the reason for each that cannot.

    Args:
      predictions: logits [n, k] or [m, n, k], reported on; calibration: another split of the same model, for what is fitted.
      settings: how.
      counts: uint8 [b, examples from the training distribution], resamples of them.
      calibration_counts: [b, n_calibration] to choose p anew in each resample, or None to hold it fixed.
      workers: threads over which scores are divided.

    Returns:
      name → `ScoreResult`, and name → why it was left out.
    """
    tuning = None if calibration is None else Split.of(calibration).known
    left_out: dict[str, str] = {}
    usable = {}
    for name, score in scores_lib.named(settings.scores).items():
        reason = scores_lib.obstacle(score, predictions, calibration)
        if reason is None:
            usable[name] = score
        else:
            left_out[name] = reason
    with ThreadPoolExecutor(workers) as pool:  # NumPy works outside the interpreter lock
        # What is fitted takes longest and begins first; then the scores that share one sort of the classes.
        tuned = any(score.tuned for score in usable.values())
        choices = pool.submit(_Choices, tuning.combined, calibration_counts, settings.p_grid) if tuned else None
        fits = {name: pool.submit(scorer, score, tuning) for name, score in usable.items() if score.fit is not None}
        test = _Sample(Split.of(predictions), counts, tuning, settings.match_error)
        shared = _shared_scores({name: score for name, score in usable.items() if score.of is not None}, test, pool)
        running = {}
        if tuned:
            fallbacks = {name: score.fallback for name, score in usable.items() if score.tuned}
            norms = pool.submit(_tuned_results, test, choices.result(), fallbacks, settings)
        # The longest first, so that both threads end together: `msp` has the classifier's metrics, and what is not shared is computed there.
        for name in sorted(usable, key=lambda name: (name != "msp", name in shared)):
            score = usable[name]
            if score.tuned:
                continue
            try:
                of, fitted = fits[name].result() if name in fits else scorer(score, tuning)
            except (
                ValueError
            ) as error:  # what it is fitted to does not allow it: a class without examples, no residual space
                left_out[name] = str(error)
                continue
            running[name] = pool.submit(_result, test, shared.get(name, of), fitted, settings, name == "msp")
        results = {name: work.result() for name, work in running.items()} | (norms.result() if tuned else {})
    return {name: results[name] for name in usable if name in results}, {
        name: left_out[name] for name in settings.scores if name in left_out
    }


class _Values(NamedTuple):
    """A score [n] of the examples reported on that are known, of all of them, and of the calibration split, if there is one."""

    known: np.ndarray
    whole: np.ndarray
    tuning: np.ndarray | None


def _shared_scores(wanted: dict[str, scores_lib.Score], test: _Sample, pool: ThreadPoolExecutor) -> dict[str, _Values]:
    """The scores of logits that share one sort of the classes, each part of the rows by a thread."""
    names = {name: score.of for name, score in wanted.items() if shares_rivals(score.of)}
    if not names:
        return {}

    def of(logits: np.ndarray) -> list[Any]:
        parts = np.array_split(np.arange(len(logits)), 2)
        bounds = [slice(part[0], part[-1] + 1) for part in parts if len(part)]
        return [pool.submit(together, logits[at], tuple(names.values())) for at in bounds]

    def joined(running: list[Any]) -> list[np.ndarray]:
        return [np.concatenate(parts) for parts in zip(*(work.result() for work in running), strict=True)]

    whole_running = of(test.whole.combined.logits)
    tuning_running = None if test.tuning is None else of(test.tuning.combined.logits)
    whole = joined(whole_running)
    tuning = [None] * len(whole) if tuning_running is None else joined(tuning_running)
    is_ood = test.whole.combined.is_ood
    kept = slice(None) if test.whole is test.known else ~is_ood
    return {name: _Values(w[kept], w, t) for name, w, t in zip(names, whole, tuning, strict=True)}


class Split(NamedTuple):
    """Examples as one classifier, beside the members it is made of.

    Attributes:
      combined: logits [n, k]; members: logits [m, n, k], or None for a single model.
    """

    combined: Predictions
    members: np.ndarray | None

    @classmethod
    def of(cls, predictions: Predictions) -> Split:
        """The split of a file."""
        return cls(combined(predictions), predictions.logits if predictions.logits.ndim == 3 else None)

    @property
    def known(self) -> Split:
        """The examples from the training distribution."""
        if self.combined.is_ood is None or not self.combined.is_ood.any():
            return self
        keep = ~self.combined.is_ood
        return Split(select(self.combined, keep), None if self.members is None else self.members[:, keep])


Scorer = Callable[[Split], np.ndarray]
"""A score of a split, [n]."""


def scorer(score: scores_lib.Score, tuning: Split | None) -> tuple[Scorer, dict[str, Any] | None]:
    """How the score is computed, and what was fitted for it."""
    if score.of is not None:
        return (lambda split: score.of(split.combined.logits)), None
    if score.of_members is not None:
        return (lambda split: score.of_members(split.members)), None
    if score.of_features is not None:
        return (lambda split: score.of_features(split.combined)), None
    state = score.fit(tuning.combined)
    fitted: dict[str, Any] = {"on": _split(tuning.combined)}
    if isinstance(state, scores_lib.MspPnorm):
        fitted |= {"p": state.p, "temperature": state.temperature}
    elif isinstance(state, Temperature):
        fitted |= {"temperature": state.temperature}
    return (lambda split: score.apply(state, split.combined)), fitted


def logit_norm_fitted(state: logit_norm.LogitNorm, tuning: Split) -> dict[str, Any]:
    """What `metrics.json` says of a logit norm; p is None where MSP is used."""
    uses = "msp" if state.p == 0 else "max_logit_pnorm"
    return {"p": state.p or None, "uses": uses, "on": _split(tuning.combined), "aurc": state.aurc}


def _split(calibration: Predictions) -> str:
    return calibration.provenance.get("split", calibration.source)


class _Sample:
    """A split with its resamples, and what does not depend on the score."""

    def __init__(self, whole: Split, counts: np.ndarray, tuning: Split | None, match_error: float | None) -> None:
        self.whole, self.known, self.counts, self.tuning = whole, whole.known, counts, tuning
        self.match_error = match_error
        inside = self.known.combined
        self.logits, self.label, self.weight = inside.logits, inside.label, inside.weight
        self.error = ops.predicted_class(inside.logits) != inside.label
        self.accepted = accepted_at_coverages(len(self.error))
        self.tuning_error = tuning and ops.predicted_class(tuning.combined.logits) != tuning.combined.label
        self.optimum = float(ops.optimal_aurc(self.error, weight=self.weight))
        self.optimum_replicates = np.concatenate(
            [ops.optimal_aurc(self.error, weight=rows) for rows in self.weights(counts)]
        )

    def weights(self, counts: np.ndarray) -> list[np.ndarray]:
        """The resamples as weights, in parts that stay in cache."""
        parts = [counts[part] for part in resampling.chunks(counts)]
        return parts if self.weight is None else [part * self.weight for part in parts]

    def replicates(
        self, score: np.ndarray, rows: np.ndarray | slice = slice(None)
    ) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Metrics [b] and curve [b, coverages] of the resamples `rows`."""
        counts, optimum = self.counts[rows], self.optimum_replicates[rows]
        summaries, curves, done = [], [], 0
        order = np.argsort(score, kind="stable")[::-1]  # once for all resamples
        score, error = score[order], self.error[order]
        for weight in self.weights(counts):
            ranking = ops.rank(score, error, np.take(weight, order, axis=1))
            summaries.append(self.summary(ranking, optimum[done : done + len(weight)]))
            curves.append(self.curve(ranking).astype(np.float32))
            done += len(weight)
        metrics = {name: np.concatenate([summary[name] for summary in summaries]) for name in summaries[0]}
        return metrics, np.concatenate(curves)

    def summary(self, ranking: ops.Ranking, optimum: np.ndarray) -> dict[str, np.ndarray]:
        """Every metric of the ranking."""
        metrics = summarise_ranking(ranking, optimum)
        if self.match_error is not None:
            metrics["aurc_at_matched_error"] = ops.aurc_at_error.of_ranking(ranking, self.match_error)
        return metrics

    def curve(self, ranking: ops.Ranking) -> np.ndarray:
        """Selective risk at `COVERAGES`."""
        if self.weight is None:
            return loss_of_accepted(ranking, self.accepted) / self.accepted
        accepted = accepted_at_coverages(ranking.total_weight)
        with np.errstate(invalid="ignore"):  # a resample may draw no weight at all
            if accepted.ndim == 1:
                return loss_of_accepted(ranking, accepted) / accepted
            rows = [ops.Ranking(*(field[i] for field in ranking)) for i in range(len(accepted))]
            return np.stack([loss_of_accepted(row, at) / at for row, at in zip(rows, accepted, strict=True)])


def accepted_at_coverages(total: np.ndarray | int) -> np.ndarray:
    """How much is accepted at `COVERAGES`: ⌈c·total⌉ of whole totals [...], c·total of real ones; [..., coverages]."""
    total = np.asarray(total)
    return np.stack([-floor_of_share(Fraction(-c, 100), total) for c in range(1, 101)], axis=-1)


class _Choices:
    """Which p the calibration split chooses, and which each resample of it, with and without the fallback.

    Attributes:
      scores: p → the score of the calibration split.
    """

    def __init__(self, calibration: Predictions, counts: np.ndarray | None, p_grid: Sequence[int]):
        error = ops.predicted_class(calibration.logits) != calibration.label
        self.scores = logit_norm.candidates(calibration.logits, p_grid, fallback=True)
        weight = calibration.weight
        self._value = {p: float(ops.aurc(score, error, weight=weight)) for p, score in self.scores.items()}
        self._aurc = None
        if counts is None:
            return
        self._ps = np.array(list(self.scores))
        parts = [counts[rows] if weight is None else counts[rows] * weight for rows in resampling.chunks(counts)]
        aurc = [
            np.concatenate([ops.aurc(score, error, weight=part) for part in parts]) for score in self.scores.values()
        ]
        self._aurc = np.stack(aurc, axis=-1)

    def of(self, fallback: bool) -> tuple[logit_norm.LogitNorm, np.ndarray | None]:
        """What is fitted, and the p that each resample chooses [b] (0 for MSP; None where it is held fixed)."""
        first = 0 if fallback else 1
        fitted = logit_norm.best(dict(list(self._value.items())[first:]))
        return fitted, None if self._aurc is None else self._ps[first:][logit_norm.choose(self._aurc[:, first:])]


def _tuned_results(
    test: _Sample, choices: _Choices, fallbacks: dict[str, bool], settings: Settings
) -> dict[str, ScoreResult]:
    """The results of logit norms: {name: whether it has a fallback} → {name: result}. What two of them share is computed once."""
    of_test = functools.lru_cache(maxsize=None)(lambda p: _norm_of(test, p))
    shared: dict[int, ScoreResult] = {}
    results = {}
    for name, fallback in fallbacks.items():
        state, p_replicates = choices.of(fallback)
        p = state.p
        if p not in shared:
            shared[p] = _result(test, _Values(*of_test(p), choices.scores[p]), None, settings, False)
        replicates = {key: values.copy() for key, values in shared[p].replicates.items()}
        for other in () if p_replicates is None else np.unique(p_replicates[p_replicates != p]):
            rows = np.flatnonzero(p_replicates == other)
            metrics, _ = test.replicates(of_test(int(other))[0], rows)
            for key, values in metrics.items():
                replicates[key][rows] = values
        fitted = logit_norm_fitted(state, test.tuning)
        results[name] = dataclasses.replace(shared[p], replicates=replicates, fitted=fitted)
    return results


def _norm_of(test: _Sample, p: int) -> tuple[np.ndarray, np.ndarray]:
    """The norm p (0: MSP) of the examples reported on that are known, and of all of them."""
    state = logit_norm.LogitNorm(p, {})
    known = logit_norm.apply(state, test.known.combined)
    return known, known if test.whole is test.known else logit_norm.apply(state, test.whole.combined)


def _result(
    test: _Sample,
    of: Scorer | _Values,
    fitted: dict[str, Any] | None,
    settings: Settings,
    with_probabilities: bool,
) -> ScoreResult:
    if isinstance(of, _Values):
        values = of
    else:
        known = of(test.known)
        values = _Values(
            known,
            known if test.whole is test.known else of(test.whole),
            None if test.tuning is None else of(test.tuning),
        )
    score = values.known
    ranking = ops.rank(score, test.error, test.weight)
    metrics = {name: float(value) for name, value in test.summary(ranking, np.float64(test.optimum)).items()}
    replicates, curves = test.replicates(score)
    if with_probabilities:
        more, more_replicates = _classifier_metrics(test, settings.ece_bins)
        metrics |= more
        replicates |= more_replicates
    metrics |= _without_intervals(test, score)
    more_intervals: dict[str, list[float]] = {}
    if test.tuning is not None:
        accepted, accepted_intervals = _at_calibrated_thresholds(test, score, values.tuning, settings.level)
        metrics |= accepted
        more_intervals |= accepted_intervals
    if test.whole is not test.known:
        whole = test.whole.combined
        error = ops.predicted_class(whole.logits) != whole.label
        metrics |= ood_metrics(values.whole, error, whole.is_ood, whole.weight)
    intervals = {
        name: [float(end) for end in resampling.percentile_interval(values, settings.level)]
        for name, values in replicates.items()
    } | more_intervals
    return ScoreResult(metrics, intervals, replicates, test.curve(ranking), curves, fitted, _group_rows(test, score))


def _classifier_metrics(test: _Sample, ece_bins: int) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    nll, brier, confidence, probabilities = losses_and_probabilities(test.logits, test.label)
    losses = {"nll": nll, "brier": brier}
    one = np.ones((1, len(test.error))) if test.weight is None else test.weight[None]
    metrics = {name: float(_weighted_mean(loss[:, None], one)[0, 0]) for name, loss in losses.items()}
    how = {"bins": ece_bins, "weight": test.weight}
    metrics["ece"] = float(ops.expected_calibration_error(confidence, test.error, **how))
    metrics["ece_equal_mass"] = float(ops.expected_calibration_error(confidence, test.error, scheme="mass", **how))
    metrics["ece_root_mean_square"] = float(ops.expected_calibration_error(confidence, test.error, norm=2, **how))
    metrics["maximum_calibration_error"] = float(
        ops.expected_calibration_error(confidence, test.error, norm="max", **how)
    )
    metrics["smooth_ece"] = float(ops.smooth_ece(confidence, test.error, weight=test.weight))
    metrics["classwise_ece"] = float(ops.classwise_calibration_error(probabilities, test.label, **how))
    metrics["adaptive_ece"] = float(ops.adaptive_calibration_error(probabilities, test.label, **how))
    parts_of_brier = ops.brier_decomposition(probabilities, test.label, **how)
    for name in ("reliability", "resolution", "uncertainty", "within_bin"):
        metrics[f"brier_{name}"] = float(getattr(parts_of_brier, name))
    parts: dict[str, list[np.ndarray]] = {name: [] for name in CLASSIFIER_METRICS}
    for rows in test.weights(test.counts):
        weight = rows.astype(np.float64)
        for name, mean in zip(losses, _weighted_mean(np.stack(list(losses.values()), 1), weight).T, strict=True):
            parts[name].append(mean)
        parts["ece"].append(ops.expected_calibration_error(confidence, test.error, bins=ece_bins, weight=weight))
    return metrics, {name: np.concatenate(values) for name, values in parts.items()}


def _weighted_mean(losses: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Losses [n, c] and weights [b, n] → [b, c]; infinite where an infinite loss has weight."""
    infinite = ~np.isfinite(losses)
    with np.errstate(invalid="ignore"):  # a resample may draw no weight at all
        mean = weight @ np.where(infinite, 0, losses) / weight.sum(axis=-1, keepdims=True)
    return np.where(weight @ infinite > 0, np.inf, mean) if infinite.any() else mean


def _without_intervals(test: _Sample, score: np.ndarray) -> dict[str, float]:
    """Metrics shown for comparison with other packages and papers, without intervals of their own."""
    balanced = _class_balanced(test.error, test.label, test.weight)
    values = {
        "aurc_fd_shifts": ops.aurc(score, test.error, "fd_shifts", weight=test.weight),
        "achievable_aurc": ops.achievable_aurc(score, test.error, weight=test.weight),
        "aurc_class_balanced": ops.aurc(score, balanced, weight=test.weight),
        "augrc_class_balanced": ops.augrc(score, balanced, weight=test.weight),
    }
    for coverage in OPERATING_COVERAGES:
        values[f"realisable_coverage_{coverage}"] = ops.realisable_coverage(score, coverage, weight=test.weight)
    return {name: float(value) for name, value in values.items()}


def _class_balanced(error: np.ndarray, label: np.ndarray, weight: np.ndarray | None) -> np.ndarray:
    """`ops.class_balanced_loss`, with the weight of a class in place of its number of examples."""
    if weight is None:
        return ops.class_balanced_loss(error, label)
    mine = np.unique(label, return_inverse=True)[1]
    size = np.bincount(mine, weight)
    return error * np.divide(size.sum(), (size > 0).sum() * size, out=np.zeros_like(size), where=size > 0)[mine]


def _at_calibrated_thresholds(
    test: _Sample, score: np.ndarray, tuning_score: np.ndarray, level: float
) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Coverage and risk on the test split of thresholds fitted on the calibration split, with intervals over test examples.

    A coverage-at-risk of the test split is fitted there; these are what a threshold fixed beforehand does. It carries no guarantee.
    """
    weight = test.tuning.combined.weight
    thresholds = {
        f"threshold_at_risk_{risk}": ops.threshold_at_risk(tuning_score, test.tuning_error, risk, weight=weight)
        for risk in RISKS
    } | {
        f"threshold_at_coverage_{coverage}": ops.threshold_at_coverage(tuning_score, coverage, weight=weight)
        for coverage in OPERATING_COVERAGES
    }
    order = np.argsort(score)[::-1]
    ordered, wrong = score[order], test.error[order]
    # How many stand at or above each threshold, and how many wrong ones; NaN accepts nothing.
    most = [int(np.count_nonzero(ordered >= float(t))) for t in thresholds.values()]
    most_wrong = [int(np.count_nonzero(wrong[:count])) for count in most]

    def coverage_and_risk(weight: np.ndarray) -> np.ndarray:
        """[rows, n] → [rows, thresholds, 2]."""
        placed = np.take(weight, order, axis=1)
        accepted, of_wrong = _first_sums(placed, most), _first_sums(placed[:, wrong], most_wrong)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.stack([accepted / weight.sum(axis=1)[:, None], of_wrong / accepted], axis=-1)

    one = np.ones((1, len(score))) if test.weight is None else test.weight[None]
    values = coverage_and_risk(one)[0]
    replicates = np.concatenate([coverage_and_risk(rows) for rows in test.weights(test.counts)])
    ends = resampling.percentile_interval(replicates, level)
    metrics, intervals = {}, {}
    for i, name in enumerate(thresholds):
        for j, what in enumerate(("coverage", "risk")):
            metrics[f"{name}_{what}"] = float(values[i, j])
            intervals[f"{name}_{what}"] = [float(ends[0, i, j]), float(ends[1, i, j])]
    return metrics, intervals


def _first_sums(weight: np.ndarray, counts: Sequence[int]) -> np.ndarray:
    """Sums float64 [rows, counts] of the first of each row, for each of the counts. (Matrix products and cumulative sums would hold up the
    other threads.)"""
    ends = sorted({0, *counts})
    parts = [weight[:, a:b].sum(axis=1, dtype=np.float64) for a, b in itertools.pairwise(ends)]
    sums = dict(zip(ends, itertools.accumulate(parts, initial=np.zeros(len(weight))), strict=True))
    return np.stack([sums[count] for count in counts], axis=1)


def argmax_ties(logits: np.ndarray) -> int:
    """How many of logits [n, k] have their maximum more than once; the lowest class is predicted there."""
    return int(((logits == logits.max(-1, keepdims=True)).sum(-1) > 1).sum())


def infinite_log_losses(known: Predictions) -> int:
    """How many examples that count have a true class of probability 0."""
    logits, rows = known.logits, np.arange(len(known))
    # ln p_y is this gap less at most ln k, and infinite with it.
    infinite = np.isinf(logits[rows, known.label].astype(np.float64) - logits.max(axis=-1))
    return int((infinite if known.weight is None else infinite & (known.weight > 0)).sum())


def resamples_at_coverage_0(replicates: dict[str, np.ndarray]) -> dict[str, float]:
    """Of each coverage at risk, the share of resamples in which nothing meets the risk."""
    at_risk = {name: values for name, values in replicates.items() if name.startswith("coverage_at_risk")}
    return {name: float(np.mean(values == 0)) for name, values in at_risk.items()}


def reliability(known: Predictions, bins: int) -> dict[str, np.ndarray]:
    """The reliability table of the top label, by name of column; empty bins are NaN.

    Args:
      known: logits [n, k]; bins: of equal width.
    """
    error = ops.predicted_class(known.logits) != known.label
    table = ops.reliability_table(ops.max_probability(known.logits), error, bins=bins, weight=known.weight)
    return table._asdict()


def ood_metrics(score: np.ndarray, loss: np.ndarray, is_ood: np.ndarray, weight: np.ndarray | None) -> dict[str, float]:
    """How the score tells OOD inputs, and selective classification among a mix of both as the file has it.

    Args:
      score: [n]; loss: [n]; is_ood: bool [n]; weight: [n] or None.

    Returns:
      name → value.
    """
    area = ops.scod_aurc(score, loss, is_ood, weight=weight)
    values = {
        "ood_auroc": ops.auroc(score, ~is_ood, weight=weight),
        "ood_average_precision": ops.average_precision(-score, is_ood, "collapse", weight=weight),
        "ood_fpr_at_tpr_0.95": ops.ood_fpr_at_tpr(score, is_ood, 0.95, "id", weight=weight),
        "scod_aurc": area.area,
        "scod_augrc": ops.augrc(score, ops.scod_loss(loss, is_ood), weight=weight),
        "scod_ood_share": area.ood_share,
    }
    return {name: float(value) for name, value in values.items()}


def _group_rows(test: _Sample, score: np.ndarray) -> list[dict[str, Any]] | None:
    """Per group: size, error, ranking, and what one threshold at 90 % coverage of all does to it."""
    group = test.known.combined.group
    if group is None:
        return None
    report = ops.group_report(score, test.error, group, 0.9, weight=test.weight)
    names = [name for name in report._fields if name != "threshold"]
    return [
        {name: (str if name == "group" else float)(getattr(report, name)[i]) for name in names}
        for i in range(len(report.group))
    ]
