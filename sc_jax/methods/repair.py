"""Why logit normalisation repairs label smoothing, and how far, from the predictions of a study.

`norms`: over which p the gain comes, with or without centring. `shifts`: what a shift of the logits does to the uncentred score.
`learning_curve`: how many calibration examples the choice of p needs. `ensembles` and `subsets`: what is left of damage and
repair in deep ensembles. All take the runs of a study: the same seeds for every α, the same examples in the same order in all
test splits, and in all calibration splits; every row can be written as JSON.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from sc_jax import ops
from sc_jax.methods import contrasts, logit_norm
from sc_jax.methods.ensemble import combine, member_subsets
from sc_jax.ops import resampling
from sc_jax.ops.areas import normalised
from sc_jax.ops.ranking import share
from sc_jax.predictions import Predictions

if TYPE_CHECKING:
    from sc_jax.methods.study import Run

Metrics = dict[str, np.ndarray]
"""Name → value [...] of "error", "aurc", "naurc" and "failure_auroc"."""


def norms(
    runs: Sequence[Run], p_grid: Sequence[int], counts: np.ndarray, seed_counts: np.ndarray, level: float
) -> list[dict[str, Any]]:
    """AURC and NAURC on the test split of every p, with and without centring, and less those of MSP; nothing is chosen.

    Args:
      runs: logits [n, k], k ≥ 3; p_grid: integers ≥ 1.
      counts: uint8 [b, n], resamples of test examples; seed_counts: [b, seeds]; level: of the intervals.

    Returns:
      By α a row of MSP ("centred" and "p" None), then one for each centring and p.
    """
    rows = []
    for alpha, members in _by_alpha(runs).items():
        cells: dict[tuple[bool | None, int | None], list[tuple[Metrics, Metrics]]] = {}
        for run in members:
            scores = {(None, None): ops.msp(run.test.logits)}
            for centred in (True, False):
                each = ops.max_logit_pnorm(run.test.logits, tuple(p_grid), center=centred)
                scores |= {(centred, p): score for p, score in zip(p_grid, each, strict=True)}
            error = ops.predicted_class(run.test.logits) != run.test.label
            for key, score in scores.items():
                cells.setdefault(key, []).append(_evaluated(score, error, run.test.weight, counts))
        msp = cells[None, None]
        for (centred, p), cell in cells.items():
            rows.append(
                {
                    "alpha": alpha,
                    "score": "msp" if p is None else "max_logit_pnorm",
                    "centred": centred,
                    "p": p,
                    "seeds": len(members),
                    "metrics": _over_seeds(cell, None, seed_counts, level),
                    "minus_msp": None if p is None else _over_seeds(cell, msp, seed_counts, level),
                    "intervals_cover": "test examples, seeds",
                }
            )
    return rows


def shifts(
    runs: Sequence[Run], p_grid: Sequence[int], counts: np.ndarray, seed_counts: np.ndarray, level: float
) -> list[dict[str, Any]]:
    """How the uncentred log-score moves with a shift of the logits, for right and for wrong predictions, and what shift there is.

    Means over test examples of `ops.log_score_shift_derivative`; where v_max ≤ 0 there is no logarithm, and the example is left out
    of them and counted. The shift is the mean logit of an example.

    Args:
      runs, p_grid, counts, seed_counts, level: as for `norms`.

    Returns:
      A row per α: "norms", for each p the mean derivative of "right", "wrong" and "right_minus_wrong"; "mean_logit" of "all", "right"
      and "wrong"; "share_undefined" and, by seed, how many examples it is.
    """
    rows = []
    for alpha, members in _by_alpha(runs).items():
        values, replicates, undefined = [], [], []
        for run in members:
            logits = run.test.logits.astype(np.float64)
            right, defined = ops.predicted_class(logits) == run.test.label, ops.max_logit(logits) > 0
            derivative = ops.log_score_shift_derivative(logits, tuple(p_grid))
            shift, whole = logits.mean(axis=-1), np.ones(len(right), bool)
            columns = [~defined, shift, shift, shift, *np.repeat(derivative, 2, axis=0)]
            among = [whole, whole, right, ~right, *[right & defined, ~right & defined] * len(p_grid)]
            survey = np.ones(len(right)) if run.test.weight is None else run.test.weight
            drawn = [_means(columns, among, counts[part] * survey) for part in resampling.chunks(counts)]
            values.append(_means(columns, among, survey[None])[0])
            replicates.append(np.concatenate(drawn))
            undefined.append(int((~defined).sum()))
        x, drawn_x = np.stack(values), np.stack(replicates)

        def told(i: int, less: int | None = None, x: np.ndarray = x, drawn_x: np.ndarray = drawn_x) -> dict[str, Any]:
            pair = (x[:, i], drawn_x[:, :, i])
            if less is not None:
                pair = (pair[0] - x[:, less], pair[1] - drawn_x[:, :, less])
            return contrasts.describe(resampling.crossed(*pair, seed_counts), level)

        rows.append(
            {
                "alpha": alpha,
                "seeds": len(members),
                "norms": [
                    {"p": p, "right": told(i), "wrong": told(i + 1), "right_minus_wrong": told(i, i + 1)}
                    for p, i in zip(p_grid, itertools.count(4, 2))
                ],
                "mean_logit": {"all": told(1), "right": told(2), "wrong": told(3)},
                "share_undefined": told(0),
                "undefined": undefined,
                "intervals_cover": "test examples, seeds",
            }
        )
    return rows


def learning_curve(
    runs: Sequence[Run],
    p_grid: Sequence[int],
    sizes: Sequence[int],
    draws: int,
    seed: int,
    seed_counts: np.ndarray,
    level: float,
) -> list[dict[str, Any]]:
    """What choosing p on few calibration examples costs: test AURC of the chosen p less that of the best candidate.

    p is chosen as by `logit_norm.fit` on examples drawn without replacement from the calibration split, the same for every run; those
    of a smaller size are among those of a larger one. A draw without errors chooses the first candidate.

    Args:
      runs: logits [n, k], k ≥ 3; p_grid: integers ≥ 1; sizes: numbers of calibration examples; those beyond the split are left out.
      draws: how many for each size; seed: of the draws; seed_counts: [b, seeds]; level: of the intervals.

    Returns:
      A row per α, fallback and size: "regret" ≥ 0 and "minus_msp", means over seeds and draws; "quartiles" of the regret over all
      pairs of seed and draw; "chosen", the share of each candidate. Intervals cover seeds and draws, for the test split and
      the pool of calibration examples as they are: towards the size of the pool all draws become one, and the spread 0.
    """
    n = len(runs[0].calibration)
    sizes = [size for size in sizes if size <= n]
    if not sizes:
        return []
    place = np.random.default_rng(seed).permuted(np.tile(np.arange(n), (draws, 1)), axis=1)
    drawn = (place < np.array(sizes, int)[:, None, None]).reshape(-1, n)
    draw_share = resampling.resample_counts(seed + 1, draws, len(seed_counts)) / draws
    rows = []
    for alpha, members in _by_alpha(runs).items():
        aurc, on_test = zip(*(_candidate_areas(run, p_grid, drawn) for run in members), strict=True)
        calibration = np.stack(aurc).reshape(len(members), len(sizes), draws, -1)
        for fallback, (i, size) in itertools.product((False, True), enumerate(sizes)):
            first = 0 if fallback else 1  # MSP is the first candidate
            choice = first + logit_norm.choose(calibration[:, i, :, first:])  # [s, draws]
            regret, gain = {}, {}
            for metric in ("aurc", "naurc"):
                test = np.stack([areas[metric] for areas in on_test])  # [s, candidates]
                chosen = np.take_along_axis(test, choice, axis=1)
                regret[metric] = chosen - test[:, first:].min(axis=1, keepdims=True)
                gain[metric] = chosen - test[:, :1]
            rows.append(
                {
                    "alpha": alpha,
                    "fallback": fallback,
                    "size": size,
                    "draws": draws,
                    "seeds": len(members),
                    "regret": {m: _over_draws(v, draw_share, seed_counts, level) for m, v in regret.items()},
                    "minus_msp": {m: _over_draws(v, draw_share, seed_counts, level) for m, v in gain.items()},
                    "quartiles": {m: np.quantile(v, [0.25, 0.5, 0.75]).tolist() for m, v in regret.items()},
                    "chosen": {
                        "msp" if j == 0 else f"p={p_grid[j - 1]}": float((choice == j).mean())
                        for j in range(first, 1 + len(p_grid))
                    },
                    "intervals_cover": "seeds, draws of calibration examples",
                }
            )
    return rows


def _candidate_areas(run: Run, p_grid: Sequence[int], drawn: np.ndarray) -> tuple[np.ndarray, Metrics]:
    """AURC of MSP and of each p on the drawn calibration examples [rows, 1 + p], and their metrics on test [1 + p]."""
    scores = logit_norm.candidates(run.calibration.logits, p_grid, fallback=True).values()
    error = ops.predicted_class(run.calibration.logits) != run.calibration.label
    areas = np.stack([_aurc(score, error, run.calibration.weight, drawn) for score in scores], axis=-1)
    wrong = ops.predicted_class(run.test.logits) != run.test.label
    of_test = logit_norm.candidates(run.test.logits, p_grid, fallback=True).values()
    metrics = [_metrics(score, wrong, run.test.weight) for score in of_test]
    return areas, {name: np.stack([of[name] for of in metrics]) for name in metrics[0]}


def mean_normalised(member_logits: np.ndarray, p: int, center: bool = True) -> np.ndarray:
    """The mean over members of their normalised logits: (1/m) Σ_j v'_j/‖v'_j‖_p, with v' = v − mean_k v_k (or v' = v).

    Each member has the same say, whatever the scale of its logits; of one member the maximum is `ops.max_logit_pnorm`.

    Args:
      member_logits: [m, n, k]; p: an integer ≥ 1; center: subtract each member's mean over classes first.

    Returns:
      [n, k]; a member adds 0 where its v' is 0.
    """
    v = member_logits.astype(np.float64)
    if center:
        v = v - v.max(axis=-1, keepdims=True)  # equal logits become 0 exactly
        v = v - v.mean(axis=-1, keepdims=True)
    largest = np.abs(v).max(axis=-1, keepdims=True)
    unit = v / np.where(largest == 0, 1.0, largest)  # no power overflows
    if p == 1 and center:  # as in `ops.max_logit_pnorm`: exactly ½ where the maximum alone is positive
        norm = 2 * np.maximum(unit, 0).sum(axis=-1, keepdims=True)
    else:
        norm = (np.abs(unit) ** p).sum(axis=-1, keepdims=True) ** (1 / p)
    return (unit / np.where(largest == 0, 1.0, norm)).mean(axis=0)


PREDICTIONS = {
    "mean_probabilities": "argmax of the mean probabilities",
    "mean_logits": "argmax of the mean logits",
    "mean_normalised": "argmax of the mean normalised logits",
    "single_members": "argmax of each member",
}
"""Way of averaging → what is predicted; ways that predict differently have different errors."""

WAYS = (
    ("mean_probabilities", "msp"),
    ("mean_logits", "msp"),
    ("mean_logits", "max_logit_pnorm"),
    ("mean_normalised", "max_logit_pnorm"),
    ("mean_probabilities", "max_logit_pnorm"),
)
"""(what is averaged, score of the average) of an ensemble; p is chosen for the ensemble on its calibration split."""


def ensembles(
    runs: Sequence[Run], p_grid: Sequence[int], counts: np.ndarray, calibration_counts: np.ndarray, level: float
) -> list[dict[str, Any]]:
    """The ensemble of all seeds of each α by each of `WAYS`, beside the mean of its single members.

    Args:
      runs: logits [n, k], k ≥ 3; p_grid: integers ≥ 1.
      counts: uint8 [b, n], resamples of test examples; calibration_counts: [b, n_calibration], to choose p anew in each; level: of
        the intervals.

    Returns:
      A row per α and way. "metrics": estimate and interval, p held fixed, and where there is a p "interval_p_chosen_anew"; the latter
      replicates are those of "minus_alpha_0" (the same way at α = 0), "minus_alpha_0_msp" and "minus_msp" (MSP of the mean
      probabilities at α = 0, and at the same α), and "minus_after" (of p-norm before averaging: p-norm of the mean logits at the
      same α); each None where there is nothing to compare. There is one ensemble per α: no interval covers seeds.
    """
    cells: dict[tuple[float, str, str], _Cell] = {}
    groups = _by_alpha(runs)
    for alpha, members in groups.items():
        for average, score in WAYS:
            cells[alpha, average, score] = _cell(average, score, members, p_grid, counts, calibration_counts)
        for score in ("msp", "max_logit_pnorm"):
            single = [_cell("mean_logits", score, [run], p_grid, counts, calibration_counts) for run in members]
            cells[alpha, "single_members", score] = _mean_cell(single)
    rows = []
    for (alpha, average, score), cell in cells.items():
        metrics = {
            metric: {"estimate": float(cell.values[metric]), "interval": _interval(cell.fixed[metric], level)}
            for metric in cell.values
        }
        if score != "msp":
            for metric, told in metrics.items():
                told["interval_p_chosen_anew"] = _interval(cell.replicates[metric], level)
        controls = {
            "minus_alpha_0": (0.0, average, score),
            "minus_alpha_0_msp": (0.0, "mean_probabilities", "msp"),
            "minus_msp": (alpha, "mean_probabilities", "msp"),
            "minus_after": (alpha, "mean_logits", score) if average == "mean_normalised" else None,
        }
        known = {name: cells[key] for name, key in controls.items() if key in cells and cells[key] is not cell}
        rows.append(
            {
                "alpha": alpha,
                "average": average,
                "score": score,
                "prediction": PREDICTIONS[average],
                "members": len(groups[alpha]),
                "p": cell.p,
                "metrics": metrics,
                **{name: _difference(cell, known[name], level) if name in known else None for name in controls},
                "intervals_cover": "test examples",
                "contrasts_cover": "test examples" + (", choice of p" if score != "msp" else ""),
            }
        )
    return rows


def subsets(runs: Sequence[Run], p_grid: Sequence[int], seed: int, most: int = 20) -> list[dict[str, Any]]:
    """AURC and NAURC on the test split against the number of members, over subsets of the seeds, the same for every α.

    Args:
      runs: logits [n, k], k ≥ 3; p_grid: integers ≥ 1, chosen from on the calibration split for each subset.
      seed: of the subsets; most: how many of a size, drawn without repetition; all of them where there are no more.

    Returns:
      A row per α, score ("msp" of the mean probabilities, "max_logit_pnorm" of the mean logits) and number of members, with the mean,
      quartiles and range over subsets. They share members, so their spread is less than that of independent ensembles.
    """
    rows, groups = [], _by_alpha(runs)
    m, rng = len(next(iter(groups.values()))), np.random.default_rng(seed)
    drawn = {size: member_subsets(m, size, most, rng) for size in range(1, m + 1)}
    for alpha, members in groups.items():
        for (average, score), (size, chosen) in itertools.product((WAYS[0], WAYS[2]), drawn.items()):
            metrics = []
            for subset in chosen:
                part = [members[i] for i in subset]
                p = _choose_p(average, part, p_grid, None)[0] if score != "msp" else 0
                error, values = _candidates(average, [run.test for run in part], (p,))[p]
                metrics.append(_metrics(values, error, part[0].test.weight))
            told = {name: np.array([float(of[name]) for of in metrics]) for name in ("aurc", "naurc")}
            rows.append(
                {
                    "alpha": alpha,
                    "average": average,
                    "score": score,
                    "members": size,
                    "subsets": len(chosen),
                    "metrics": {
                        name: {
                            "mean": float(values.mean()),
                            "quartiles": np.quantile(values, [0.25, 0.75]).tolist(),
                            "range": [float(values.min()), float(values.max())],
                        }
                        for name, values in told.items()
                    },
                }
            )
    return rows


class _Cell(NamedTuple):
    """One ensemble: p (None for MSP), metrics, their replicates with p held fixed, and with p chosen anew in each."""

    p: int | list[int] | None
    values: Metrics
    fixed: Metrics
    replicates: Metrics


def _cell(
    average: str,
    score: str,
    members: Sequence[Run],
    p_grid: Sequence[int],
    counts: np.ndarray,
    calibration_counts: np.ndarray,
) -> _Cell:
    tests = [run.test for run in members]
    survey = tests[0].weight
    if score == "msp":
        error, confidence = _candidates(average, tests, (0,))[0]
        values, fixed = _evaluated(confidence, error, survey, counts)
        return _Cell(None, values, fixed, fixed)
    p, anew = _choose_p(average, members, p_grid, calibration_counts)
    candidates = _candidates(average, tests, tuple(int(q) for q in np.unique([p, *anew])))
    values, fixed = _evaluated(candidates[p][1], candidates[p][0], survey, counts)
    replicates = {name: of.copy() for name, of in fixed.items()}
    for q in candidates.keys() - {p}:
        rows = np.flatnonzero(anew == q)
        for name, of in _replicates(candidates[q][1], candidates[q][0], survey, counts[rows]).items():
            replicates[name][rows] = of
    return _Cell(p, values, fixed, replicates)


def _mean_cell(cells: Sequence[_Cell]) -> _Cell:
    def mean(field: str) -> Metrics:
        each = [getattr(cell, field) for cell in cells]
        return {name: np.mean([of[name] for of in each], axis=0) for name in each[0]}

    p = None if cells[0].p is None else [cell.p for cell in cells]
    return _Cell(p, mean("values"), mean("fixed"), mean("replicates"))


def _candidates(
    average: str, splits: Sequence[Predictions], grid: tuple[int, ...]
) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """p → (error [n], score [n]) of the ensemble of these members; p = 0 is MSP, of the grid (0,) alone."""
    logits, label = np.stack([split.logits for split in splits]), splits[0].label
    if average == "mean_normalised":
        means = {p: mean_normalised(logits, p) for p in grid}
        return {p: (ops.predicted_class(mean) != label, ops.max_logit(mean)) for p, mean in means.items()}
    # Centring the members would not change what follows: MSP, the centred norm and the argmax do not see a shift.
    mean = combine(logits, None, "logit" if average == "mean_logits" else "probability")
    scores = ops.msp(mean)[None] if grid == (0,) else ops.max_logit_pnorm(mean, grid)
    error = ops.predicted_class(mean) != label
    return {p: (error, score) for p, score in zip(grid, scores, strict=True)}


def _choose_p(
    average: str, members: Sequence[Run], p_grid: Sequence[int], counts: np.ndarray | None
) -> tuple[int, np.ndarray]:
    """The p of smallest AURC of this ensemble on its calibration split, and in each resample of it [b]."""
    splits = [run.calibration for run in members]
    candidates = _candidates(average, splits, tuple(p_grid)).values()
    survey, ps = splits[0].weight, np.array(p_grid)
    whole = np.array([float(ops.aurc(score, error, weight=survey)) for error, score in candidates])
    if counts is None:
        return int(ps[logit_norm.choose(whole)]), ps[:0]
    drawn = np.stack([_aurc(score, error, survey, counts) for error, score in candidates], axis=-1)
    return int(ps[logit_norm.choose(whole)]), ps[logit_norm.choose(drawn)]


def _by_alpha(runs: Sequence[Run]) -> dict[float, list[Run]]:
    """α → its runs in the order of their seeds, α ascending."""
    groups: dict[float, list[Run]] = {}
    for run in sorted(runs, key=lambda run: (run.alpha, run.seed)):
        groups.setdefault(run.alpha, []).append(run)
    return groups


def _metrics(score: np.ndarray, error: np.ndarray, weight: np.ndarray | None) -> Metrics:
    ranking = ops.rank(score, error, weight)
    wrong, total = ranking.total_loss, ranking.total_weight
    value, rate = ops.aurc.of_ranking(ranking), share(wrong, total)
    two = np.stack([np.maximum(total - wrong, 0), wrong], axis=-1)  # all that are right, all that are wrong
    optimum = ops.optimal_aurc(np.array([False, True]), weight=two)
    return {
        "error": rate,
        "aurc": value,
        "naurc": normalised(value, optimum, rate),
        "failure_auroc": ops.failure_auroc.of_ranking(ranking),
    }


def _weights(counts: np.ndarray, survey: np.ndarray | None) -> list[np.ndarray]:
    """The resamples as weights, in parts that stay in cache."""
    return [counts[rows] if survey is None else counts[rows] * survey for rows in resampling.chunks(counts)]


def _replicates(score: np.ndarray, error: np.ndarray, survey: np.ndarray | None, counts: np.ndarray) -> Metrics:
    parts = [_metrics(score, error, part) for part in _weights(counts, survey)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _evaluated(
    score: np.ndarray, error: np.ndarray, survey: np.ndarray | None, counts: np.ndarray
) -> tuple[Metrics, Metrics]:
    return _metrics(score, error, survey), _replicates(score, error, survey, counts)


def _aurc(score: np.ndarray, error: np.ndarray, survey: np.ndarray | None, counts: np.ndarray) -> np.ndarray:
    return np.concatenate([ops.aurc(score, error, weight=part) for part in _weights(counts, survey)])


def _means(columns: Sequence[np.ndarray], among: Sequence[np.ndarray], weight: np.ndarray) -> np.ndarray:
    """Weighted mean of each column [n] over the examples `among` [n] that count for it: [rows, columns]."""
    counted = np.stack(among)
    with np.errstate(invalid="ignore"):  # a resample may draw none of them
        total = weight @ counted.T.astype(np.float64)
        return weight @ np.where(counted, np.stack(columns), 0.0).T / total


def _over_seeds(
    cell: Sequence[tuple[Metrics, Metrics]],
    control: Sequence[tuple[Metrics, Metrics]] | None,
    seed_counts: np.ndarray,
    level: float,
) -> dict[str, dict[str, Any]]:
    """Means over seeds of AURC and NAURC, less those of the control where there is one."""
    told = {}
    for metric in ("aurc", "naurc"):
        pair = [np.stack([of[i][metric] for of in cell]) for i in (0, 1)]
        if control is not None:
            pair = [mine - np.stack([of[i][metric] for of in control]) for i, mine in enumerate(pair)]
        told[metric] = contrasts.describe(resampling.crossed(*pair, seed_counts), level)
    return told


def _over_draws(values: np.ndarray, draw_share: np.ndarray, seed_counts: np.ndarray, level: float) -> dict[str, Any]:
    """Mean over seeds and draws of values [s, draws]; what is crossed with the seeds is the draws."""
    told = contrasts.describe(resampling.crossed(values.mean(axis=1), values @ draw_share.T, seed_counts), level)
    return {"se_draws" if name == "se_examples" else name: value for name, value in told.items()}


def _interval(replicates: np.ndarray, level: float) -> list[float]:
    return [float(end) for end in resampling.percentile_interval(replicates, level)]


def _difference(cell: _Cell, control: _Cell, level: float) -> dict[str, dict[str, Any]]:
    """Metric → estimate, interval and p-value of cell − control, on the same resamples."""
    told = {}
    for metric in cell.values:
        replicates = cell.replicates[metric] - control.replicates[metric]
        told[metric] = {
            "estimate": float(cell.values[metric] - control.values[metric]),
            "interval": _interval(replicates, level),
            "p": resampling.two_sided_p(replicates),
        }
    return told
