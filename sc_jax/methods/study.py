"""A study of label smoothing from its predictions: members α × seed, every score, contrasts, and the reason.

All of it is computed on the test split; p is chosen per member on the calibration split; nothing else is fitted.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

from sc_jax import ops
from sc_jax.config import Contrast
from sc_jax.files import InputError
from sc_jax.methods import contrasts, evaluation
from sc_jax.methods import repair as repair_lib
from sc_jax.methods import scores as scores_lib
from sc_jax.methods.evaluation import COVERAGES, ScoreResult, Settings
from sc_jax.ops import resampling
from sc_jax.ops.losses import smoothed_cross_entropy
from sc_jax.predictions import Predictions, Scored, Stream

EXPLORATORY_METRICS = (
    "error",
    "aurc",
    "e_aurc",
    "naurc",
    "augrc",
    "failure_auroc",
    "coverage_at_risk_0.05",
    "nll",
    "brier",
    "ece",
)
"""Metrics of the exploratory contrasts."""


@dataclasses.dataclass(frozen=True)
class Run:
    """One member: what it was trained for, an α of label smoothing or the name of another objective, and its predictions on the two
    splits, examples in order of id: logits [n, k], or [m, n, k] where each member is an ensemble."""

    alpha: float | str
    seed: int
    test: Predictions
    calibration: Predictions


Cells = dict[tuple[float | str, str], list[ScoreResult]]
"""(α or objective, score) → one result per seed, in the order of the seeds."""


def refuse_unknown(scores: Sequence[str], primary: Sequence[Contrast], *, ensemble: bool = False) -> None:
    """Refuses, before anything is trained, names that the evaluation would not find.

    Args:
      scores, primary: of the config; ensemble: whether each member of the run is an ensemble, logits [m, n, k].

    Raises:
      InputError: a score is unknown, or a primary contrast is of a metric that one of its scores does not have, or of a score that
        its members do not have.
    """
    scores_lib.named(scores)
    ranking = tuple(ops.summarise(np.zeros(2), np.arange(2)))
    for i, contrast in enumerate(primary):
        for side in ("treatment_score", "control_score"):
            score = scores_lib.SCORES[getattr(contrast, side)]
            if ensemble and "true_logits" in score.needs:
                raise InputError(
                    f"primary[{i}].{side}: {getattr(contrast, side)} needs true logits, which the mean of an ensemble has not"
                )
            if score.of_members and not ensemble:
                raise InputError(
                    f"primary[{i}].{side}: {getattr(contrast, side)} is of an ensemble's members; name an ensemble.kind that has some"
                )
        of_msp = contrast.treatment_score == contrast.control_score == "msp"
        known = ranking + (evaluation.CLASSIFIER_METRICS if of_msp else ())
        if contrast.metric not in known:
            near = difflib.get_close_matches(contrast.metric, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
            raise InputError(f"primary[{i}].metric: there is no metric {contrast.metric!r} of these scores; {hint}")


def evaluate(
    runs: Sequence[Run],
    settings: Settings,
    primary: Sequence[Contrast],
    progress: Callable[[int], None] = lambda done: None,
    *,
    with_repair: bool = False,
) -> dict[str, Any]:
    """Everything the report shows, ready for JSON.

    Args:
      runs: every α with every seed; all test splits hold the same examples in the same order, and so do the others.
      settings: how; primary: the contrasts fixed beforehand.
      progress: receives the number of runs done; with_repair: whether the analyses of `methods.repair` are made.

    Returns:
      {"level", "runs", "left_out", "aggregates", "contrasts", "curves", "suppression", "max_logit_gap"}, and, where there are
      other objectives than label smoothing, "objectives": {"aggregates", "curves", "contrasts"} of them, the latter exploratory; "repair": of
      `repair`, if asked for. "suppression" and "max_logit_gap" are empty where no α but 0 is, and of ensembles: the mean of probabilities has no logits of its own;
      "max_logit_gap" is of two classes too: there equal MSP is equal centred max logit.
    """
    known = [_known(run) for run in runs]
    counts = evaluation.resampled(known[0].test, settings, settings.seed)
    calibration_counts = evaluation.resampled(known[0].calibration, settings, settings.seed + 1)
    seeds = sorted({run.seed for run in runs})
    seed_counts = resampling.resample_counts(settings.seed + 2, len(seeds), settings.resamples)

    results = []
    with ThreadPoolExecutor(2) as pool:  # NumPy works outside the interpreter lock
        work = pool.map(
            lambda run: evaluation.evaluate(run.test, run.calibration, settings, counts, calibration_counts), runs
        )
        for done, result in enumerate(work, 1):
            results.append(result)
            progress(done)

    cells: Cells = {}
    smoothed = sorted(
        (i for i, run in enumerate(runs) if not isinstance(run.alpha, str)), key=lambda i: _place(runs[i])
    )
    given = [run.alpha for run in runs]
    others = sorted(  # in the order of the config, and seeds as above, which pairs them
        (i for i, alpha in enumerate(given) if isinstance(alpha, str)),
        key=lambda i: (given.index(given[i]), runs[i].seed),
    )
    order = smoothed + others
    for i in order:
        for score, result in results[i][0].items():
            cells.setdefault((runs[i].alpha, score), []).append(result)
    of_others = {key: cell for key, cell in cells.items() if isinstance(key[0], str)}
    of_smoothing = {key: cell for key, cell in cells.items() if key not in of_others}
    level, by_alpha = settings.level, [known[i] for i in smoothed]
    of_logits = [known[i] for i in smoothed if runs[i].test.logits.ndim == 2]
    smoothing = any(run.alpha for run in of_logits)
    gapped = smoothing and of_logits[0].test.num_classes > 2
    contrasted = _Contrasts(cells, seed_counts, level)
    document = {
        "level": level,
        "runs": [row for i in order for row in run_rows(evaluation.combined(runs[i].test), results[i][0])],
        "left_out": [left_out_row(runs[i].test, *item) for i in order for item in results[i][1].items()],
        "aggregates": _aggregates(of_smoothing, seed_counts, level),
        "contrasts": contrasted.primary(primary) + contrasted.exploratory(_pairs(of_smoothing)),
        "curves": _curves(of_smoothing, seed_counts, level),
        "suppression": _suppression(of_logits),
        "max_logit_gap": _max_logit_gap(of_logits, counts, seed_counts, level) if gapped else [],
    }
    if of_others:
        document["objectives"] = {
            "aggregates": _aggregates(of_others, seed_counts, level),
            "curves": _curves(of_others, seed_counts, level),
            "contrasts": contrasted.exploratory(_pairs_of_objectives(cells, primary)),
        }
    if with_repair:
        document["repair"] = repair(by_alpha, settings, counts, calibration_counts, seed_counts)
    return document


CALIBRATION_SIZES = (50, 100, 200, 500, 1000, 2000, 5000)
"""Numbers of calibration examples at which it is asked how well p is chosen."""


def repair(
    runs: Sequence[Run],
    settings: Settings,
    counts: np.ndarray,
    calibration_counts: np.ndarray,
    seed_counts: np.ndarray,
) -> dict[str, Any]:
    """The analyses of `methods.repair` of all α.

    Args:
      runs: logits [n, k] of three classes or more; settings: how; counts, calibration_counts, seed_counts: the resamples of the study.

    Returns:
      {"norms", "shifts", "learning_curve", "ensembles", "subsets"}.
    """
    grid, level, few = settings.p_grid, settings.level, slice(0, 200)  # resamples, where many intervals are drawn
    return {
        "norms": repair_lib.norms(runs, grid, counts[few], seed_counts[few], level),
        "shifts": repair_lib.shifts(runs, grid, counts[few], seed_counts[few], level),
        "learning_curve": repair_lib.learning_curve(
            runs, grid, CALIBRATION_SIZES, 100, settings.seed + 3, seed_counts, level
        ),
        "ensembles": repair_lib.ensembles(runs, grid, counts, calibration_counts, level),
        "subsets": repair_lib.subsets(runs, grid, settings.seed + 4),
    }


def _place(run: Run) -> tuple[float, int]:
    return run.alpha, run.seed


def _side(treatment: float | str) -> dict[str, Any]:
    """How a row says what it is of."""
    return {"objective": treatment} if isinstance(treatment, str) else {"alpha": treatment}


def run_rows(predictions: Predictions, results: dict[str, ScoreResult]) -> list[dict[str, Any]]:
    """The rows of `metrics.json` for one file: one per score.

    Args:
      predictions: as one classifier, logits [n, k]; results: by score.
    """
    logits = predictions.logits
    about = {
        "argmax_ties": evaluation.argmax_ties(logits),
        "infinite_log_losses": evaluation.infinite_log_losses(predictions),
    }
    return [
        {
            "predictions": predictions.source,
            "split": predictions.provenance.get("split"),
            "tags": predictions.provenance.get("tags", {}),
            "score": score,
            "n": len(predictions),
            "metrics": result.metrics,
            "intervals": result.intervals,
            "intervals_cover": evaluation.covered(predictions.cluster),
            "resamples_at_coverage_0": evaluation.resamples_at_coverage_0(result.replicates),
            **about,
            "fitted_on": result.fitted and result.fitted["on"],
            "fitted": result.fitted,
            **({} if result.groups is None else {"groups": result.groups}),
        }
        for score, result in results.items()
    ]


def document_of_files(settings: evaluation.Settings) -> dict[str, Any]:
    """What `metrics.json` holds of files, before there is any; `add_file` fills it."""
    document: dict[str, Any] = {
        "schema": evaluation.SCHEMA,
        "level": settings.level,
        "match_error": settings.match_error,
    }
    return document | {name: [] for name in ("runs", "left_out", "curves", "reliability")}


def add_file(
    document: dict[str, Any], test: Predictions, tuning: Predictions | None, settings: evaluation.Settings
) -> None:
    """Evaluates a file and adds its rows, curves and reliability table.

    Args:
      document: of `document_of_files`; test: what is reported on; tuning: another split of the same model; settings: how.
    """
    known = evaluation.Split.of(test).known.combined
    counts = evaluation.resampled(known, settings, settings.seed)
    with ThreadPoolExecutor(1) as beside:
        reliability = beside.submit(evaluation.reliability, known, settings.ece_bins)
        results, left_out = evaluation.evaluate(test, tuning, settings, counts, None, workers=2)
    document["runs"] += run_rows(known, results)
    document["left_out"] += [left_out_row(test, *item) for item in left_out.items()]
    for score, result in results.items():
        low, high = resampling.percentile_interval(result.curve_replicates, settings.level)
        document["curves"].append(curve_row(test.source, score, result.curve, low, high))
    document["reliability"].append({"predictions": test.source, **reliability.result()})


def curve_row(source: str, score: str, risk: np.ndarray, low: Any, high: Any) -> dict[str, Any]:
    """A risk-coverage curve of a file, with its band or None."""
    curve = {"coverage": evaluation.COVERAGES, "risk": risk, "low": low, "high": high}
    return {"predictions": source, "score": score, **curve}


def left_out_row(predictions: Predictions | Stream | Scored, score: str, reason: str) -> dict[str, str]:
    """Says which score was left out of which file, and why."""
    return {"predictions": predictions.source, "score": score, "reason": reason}


def _cell(cells: Cells, alpha: float | str, score: str, metric: str) -> tuple[np.ndarray, np.ndarray]:
    results = cells[alpha, score]
    return np.array([r.metrics[metric] for r in results]), np.stack([r.replicates[metric] for r in results])


def _covers(*scores: str) -> str:
    tuned = any(score.startswith("max_logit_pnorm") for score in scores)
    return "test examples, seeds" + (", choice of p" if tuned else "")


def _chosen(fitted: dict[str, Any]) -> int | str:
    """What was fitted for a seed, in a word: p, or MSP for it, or a temperature."""
    if "p" in fitted:
        return fitted["p"] or "msp"
    return f"T {fitted['temperature']:.2f}" if "temperature" in fitted else "fitted"


def _known(run: Run) -> Run:
    """The run on the examples from the training distribution alone."""
    test, calibration = (evaluation.Split.of(split).known.combined for split in (run.test, run.calibration))
    return dataclasses.replace(run, test=test, calibration=calibration)


def _aggregates(cells: Cells, seed_counts: np.ndarray, level: float) -> list[dict[str, Any]]:
    """Mean over seeds of every metric, by α and score.

    A coverage at risk is `unstable` where, for some seed, more than 1 % of the resamples fall below a coverage of 5 %: then
    a few errors at the very top decide whether the target is met at all, and its interval does not keep its level.
    """
    rows = []
    for (alpha, score), results in cells.items():
        metrics = {}
        for metric in results[0].replicates:
            values, replicates = _cell(cells, alpha, score, metric)
            metrics[metric] = contrasts.describe(resampling.crossed(values, replicates, seed_counts), level)
            if metric.startswith("coverage_at_risk"):
                metrics[metric]["unstable"] = bool((replicates < 0.05).mean(axis=1).max() > 0.01)
        fitted = [result.fitted for result in results]
        rows.append(
            {
                **_side(alpha),
                "score": score,
                "seeds": len(results),
                "metrics": metrics,
                "intervals_cover": _covers(score),
                "fitted": None if fitted[0] is None else [_chosen(f) for f in fitted],
            }
        )
    return rows


Side = tuple[float | str, str]
"""α or objective, and score."""


def _pairs(cells: Cells) -> list[tuple[Side, Side]]:
    """Every α with α = 0, and every tuned score with MSP."""
    pairs = [((alpha, score), (0.0, score)) for alpha, score in cells if alpha != 0 and (0.0, score) in cells]
    pairs += [((alpha, score), (alpha, "msp")) for alpha, score in cells if score != "msp" and (alpha, "msp") in cells]
    return pairs + [
        ((alpha, score), (0.0, "msp"))
        for alpha, score in cells
        if score != "msp" and alpha != 0 and (0.0, "msp") in cells
    ]


def _pairs_of_objectives(cells: Cells, primary: Sequence[Contrast]) -> list[tuple[Side, Side]]:
    """Every objective with cross-entropy by MSP, and every tuned score with MSP; by MSP every objective with each α, and those that the
    primary contrasts treat with every other objective."""
    others = {side: None for side in cells if isinstance(side[0], str)}
    by_msp = [side for side in cells if side[1] == "msp"]
    treated = [contrast.treatment_objective for contrast in primary]
    pairs = [(side, (0.0, "msp")) for side in others]
    pairs += [(side, (side[0], "msp")) for side in others if side[1] != "msp"]
    pairs += [(side, control) for side in others if side in by_msp for control in by_msp if control not in others]
    pairs += [((name, "msp"), side) for name in treated for side in others if side in by_msp and side[0] != name]
    known: dict[tuple[Side, Side], None] = {}
    for treatment, control in pairs:
        if treatment in cells and control in cells and (control, treatment) not in known:
            known[treatment, control] = None
    return list(known)


class _Contrasts:
    """Rows of contrasts between cells; what is primary is not repeated among the exploratory ones."""

    def __init__(self, cells: Cells, seed_counts: np.ndarray, level: float) -> None:
        self._cells, self._seed_counts, self._level = cells, seed_counts, level
        self._told: set[tuple[str, Side, Side]] = set()

    def _row(self, metric: str, treatment: Side, control: Side) -> tuple[dict[str, Any], np.ndarray]:
        (a, a_replicates), (b, b_replicates) = (_cell(self._cells, *side, metric) for side in (treatment, control))
        difference = resampling.crossed(a - b, a_replicates - b_replicates, self._seed_counts)
        described = {
            "metric": metric,
            "treatment": {**_side(treatment[0]), "score": treatment[1]},
            "control": {**_side(control[0]), "score": control[1]},
            **contrasts.describe(difference, self._level),
            "intervals_cover": _covers(treatment[1], control[1]),
            "includes_0": None,
            "p": resampling.two_sided_p(difference.replicates),
        }
        low, high = described["interval"]
        described["includes_0"] = bool(low <= 0 <= high) if np.isfinite(low) and np.isfinite(high) else None
        return described, difference.replicates

    def primary(self, primary: Sequence[Contrast]) -> list[dict[str, Any]]:
        """The contrasts fixed beforehand, with Holm's correction over them and verdicts."""
        rows, p_values = [], []
        for contrast in primary:
            treatment = (contrast.treatment_objective or contrast.treatment_alpha, contrast.treatment_score)
            control = (contrast.control_objective or contrast.control_alpha, contrast.control_score)
            described, replicates = self._row(contrast.metric, treatment, control)
            if contrast.expect == "not_worse_by_margin":
                described["p"] = contrasts.not_worse_p(replicates, contrast.margin)
            p_values.append(described["p"])
            self._told.add((contrast.metric, treatment, control))
            rows.append({"kind": "primary", **dataclasses.asdict(contrast), **described})
        for row, p_holm in zip(rows, resampling.holm(np.array(p_values)), strict=True):
            row["p_holm"] = float(p_holm)
            row["verdict"] = contrasts.verdict(row["expect"], row["interval"], p_holm, self._level, row["margin"])
        return rows

    def exploratory(self, pairs: Sequence[tuple[Side, Side]]) -> list[dict[str, Any]]:
        """Every metric of these pairs of cells; the error is of the classifier, whatever the score."""
        rows = []
        for treatment, control in pairs:
            for metric in EXPLORATORY_METRICS:
                known = all(metric in self._cells[side][0].metrics for side in (treatment, control))
                told = (metric, treatment, control) in self._told or (metric == "error" and treatment[1] != "msp")
                if known and not told:
                    rows.append({"kind": "exploratory", **self._row(metric, treatment, control)[0]})
        return rows


def _curves(cells: Cells, seed_counts: np.ndarray, level: float) -> list[dict[str, Any]]:
    weight = seed_counts / seed_counts.sum(axis=1, keepdims=True)
    rows = []
    for (alpha, score), results in cells.items():
        replicates = sum(
            weight[:, s, None].astype(np.float32) * result.curve_replicates for s, result in enumerate(results)
        )
        low, high = resampling.percentile_interval(replicates, level)
        rows.append(
            {
                **_side(alpha),
                "score": score,
                "coverage": COVERAGES.tolist(),
                "risk": np.mean([result.curve for result in results], axis=0).tolist(),
                "low": low.tolist(),
                "high": high.tolist(),
            }
        )
    return rows


def _suppression(runs: Sequence[Run], bins: int = 10) -> list[dict[str, Any]]:
    """The gradient identity, in bins of confidence: autodiff's extra gradient on the max logit against the error rate.

    For each α > 0, over all seeds: test examples in `bins` bins of MSP, as many in each; means with their weights.
    """
    rows = []
    for alpha in sorted({run.alpha for run in runs if run.alpha != 0}):
        tests = [run.test for run in runs if run.alpha == alpha]
        logits, label = np.concatenate([t.logits for t in tests]), np.concatenate([t.label for t in tests])
        weight = np.concatenate([np.ones(len(t)) if t.weight is None else t.weight for t in tests])

        def extra(v: jax.Array, y: jax.Array, alpha: float = alpha) -> jax.Array:
            return smoothed_cross_entropy(v, y, alpha) - smoothed_cross_entropy(v, y, 0.0)

        gradient = np.asarray(jax.jit(jax.vmap(jax.grad(extra)))(logits.astype(np.float32), label))
        predicted = ops.predicted_class(logits)
        autodiff = gradient[np.arange(len(label)), predicted]
        wrong = predicted != label
        order = np.array_split(np.argsort(ops.msp(logits), kind="stable"), bins)
        error = np.array([np.average(wrong[part], weights=weight[part]) for part in order])
        rows.append(
            {
                "alpha": alpha,
                "error": error.tolist(),
                "autodiff": [float(np.average(autodiff[part], weights=weight[part])) for part in order],
                "closed_form": ops.expected_suppression(error, alpha, logits.shape[-1]).tolist(),
                "largest_difference_per_example": float(
                    np.abs(autodiff - ops.max_logit_suppression(logits, label, alpha)).max()
                ),
            }
        )
    return rows


def _max_logit_gap(
    runs: Sequence[Run], counts: np.ndarray, seed_counts: np.ndarray, level: float
) -> list[dict[str, Any]]:
    """Max logit of right minus wrong test predictions at equal MSP, by α, in units of its spread at equal MSP.

    A negative gap says: at the same MSP a right prediction has the lower max logit. `centred` is the max logit minus the
    mean logit, which no shift of the logits can move; `raw` is the max logit itself, whose shift is a leftover of the
    initialisation (gradients sum to 0 over the classes).
    """
    rows = []
    baseline: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for alpha in sorted({run.alpha for run in runs}):
        members = sorted((run for run in runs if run.alpha == alpha), key=lambda run: run.seed)
        row: dict[str, Any] = {"alpha": alpha, "intervals_cover": "test examples, seeds"}
        for kind in ("centred", "raw"):
            gaps = [_gap(run.test, kind, counts) for run in members]
            values, replicates = np.array([gap[0] for gap in gaps]), np.stack([gap[1] for gap in gaps])
            row[kind] = contrasts.describe(resampling.crossed(values, replicates, seed_counts), level)
            if alpha == 0:
                baseline[kind] = (values, replicates)
            elif kind in baseline:
                paired = resampling.crossed(values - baseline[kind][0], replicates - baseline[kind][1], seed_counts)
                row[f"{kind}_minus_alpha_0"] = contrasts.describe(paired, level)
        profiles = [_profile(run.test) for run in members]
        row["profile"] = {name: np.mean([profile[name] for profile in profiles], axis=0) for name in profiles[0]}
        rows.append(row)
    return rows


def _top(logits: np.ndarray, kind: str) -> np.ndarray:
    return logits.max(axis=-1) - (logits.mean(axis=-1) if kind == "centred" else 0)


def _gap(test: Predictions, kind: str, counts: np.ndarray) -> tuple[float, np.ndarray]:
    logits = test.logits.astype(np.float64)
    given = (ops.msp(logits), _top(logits, kind), ops.predicted_class(logits) == test.label)
    survey = 1 if test.weight is None else test.weight
    replicates = [
        ops.difference_at_equal(*given, standardized=True, weight=counts[part] * survey)
        for part in resampling.chunks(counts)
    ]
    return float(ops.difference_at_equal(*given, standardized=True, weight=test.weight)), np.concatenate(replicates)


def _profile(test: Predictions, bins: int = 10) -> dict[str, np.ndarray]:
    """Mean centred max logit (standardised) of right and wrong predictions in bins of MSP; NaN below 5 examples."""
    logits = test.logits.astype(np.float64)
    confidence, right = ops.msp(logits), ops.predicted_class(logits) == test.label
    top = _top(logits, "centred")
    top = (top - top.mean()) / top.std()

    weight = np.ones(len(top)) if test.weight is None else test.weight

    def mean(rows: np.ndarray) -> float:
        return float(np.average(top[rows], weights=weight[rows])) if len(rows) >= 5 else float("nan")

    parts = np.array_split(np.argsort(confidence, kind="stable"), bins)
    return {
        "msp": np.array([np.median(1 / (1 + np.exp(-confidence[part]))) for part in parts]),
        "right": np.array([mean(part[right[part]]) for part in parts]),
        "wrong": np.array([mean(part[~right[part]]) for part in parts]),
    }
