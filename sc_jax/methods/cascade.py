"""Early-exit cascades: an example goes on to a dearer stage only where that may change the decision about it.

Stage j answers with a prediction and a score. A binary decision "accept iff score ≥ τ" is settled where the score lies far
from τ; only examples within a window around τ go on:

    window:            leave at stage j iff s_j > hi_j or s_j < lo_j
    single threshold:  leave at stage j iff s_j > t_j, a window from −∞

Ends of a window belong to it. Everything is fitted on one split and frozen; the last stage always answers. With
`combine="ensemble"` stage j is the ensemble of all models up to it, whose outputs are there already; with "replace" it is its own model alone.

    fitted = fit(stages(calibration, cost), Task("risk", 0.05), half_width=0.1)
    outcome = apply(fitted, stages(test, cost))

Source: Xia & Bouganis, "Window-based early-exit cascades for uncertainty estimation", ICCV 2023 (arXiv 2303.08010). Cascades that
leave by a single threshold: Wang et al., ICLR 2022 ("Wisdom of committees").
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from sc_jax import ops
from sc_jax.files import InputError
from sc_jax.methods import scores as scores_lib
from sc_jax.ops.targets import Target, as_fraction
from sc_jax.predictions import Predictions, same_ids

MEAN_OF_SCORES = ("max_logit", "energy")
"""Scores of true logits: of an ensemble they are the mean of its members' scores; all others are those of its mean probabilities."""

COMBINE = ("ensemble", "replace")

EMPTY = (math.inf, -math.inf)
"""The window that nothing lies in."""

WHOLE = (-math.inf, math.inf)
"""The window that everything lies in."""


class Stages(NamedTuple):
    """What M stages say about n examples.

    Attributes:
      score: float64 [M, n], higher is more confident; prediction: int [M, n]; error: bool [M, n], also of OOD examples.
      cost: float64 [M], of running the stage's own model on one example, in any unit.
      example_id: [n]; is_ood: bool [n], or None; score_name, combine: what was asked for.
    """

    score: np.ndarray
    prediction: np.ndarray
    error: np.ndarray
    cost: np.ndarray
    example_id: np.ndarray
    is_ood: np.ndarray | None
    score_name: str
    combine: str


class Task(NamedTuple):
    """Which binary decision is to be made: "accept iff score ≥ τ", with τ from the calibration split.

    Attributes:
      kind: "risk" (the largest coverage with selective risk ≤ target), "coverage" (⌈target · n⌉ accepted), "tpr" (the share
        `target` of in-distribution examples accepted, for OOD detection), "scod" (as "coverage"; an accepted OOD example counts as an
        error), or "threshold" (τ = target).
      target: in (0, 1), or τ.
    """

    kind: str
    target: float

    def threshold(self, score: np.ndarray, error: np.ndarray, is_ood: np.ndarray | None) -> float:
        """τ of in-distribution examples.

        Args:
          score: [n]; error: [n]; is_ood: [n] or None.

        Raises:
          ValueError: no threshold meets the risk, τ lies outside the scores, or the kind is unknown.
        """
        if is_ood is not None:
            score, error = score[~is_ood], error[~is_ood]
        if self.kind == "threshold":
            if not score.min() <= self.target <= score.max():
                raise ValueError(
                    f"τ = {self.target:g} lies outside the calibration scores, {score.min():g} to {score.max():g}; "
                    "give one within"
                )
            return float(self.target)
        if self.kind in ("coverage", "tpr", "scod"):
            return float(ops.threshold_at_coverage(score, self.target))
        if self.kind != "risk":
            raise ValueError(f"task {self.kind!r}: there are 'risk', 'coverage', 'tpr', 'scod' and 'threshold'")
        found = float(ops.threshold_at_risk(score, error, self.target))
        if math.isnan(found):
            raise ValueError(
                f"no threshold has a risk of {self.target:g} or less on the calibration split; ask for more"
            )
        return found


@dataclasses.dataclass(frozen=True)
class Policy:
    """A fitted cascade, frozen.

    Attributes:
      windows: ((lo, hi), …) of the stages but the last, in the unit of the score.
      centers: τ_j that window j lies around, on the scores of stage j; empty for single thresholds and for windows of a search.
      half_widths: of the windows, in shares of the calibration split; empty where there are no centers.
      threshold: τ of the decision, refitted on the merged scores of the calibration split.
      task: what it decides; score, combine: of the stages.
      fitted_on: SHA-256 of the calibration ids, so that it is not reported on them.
      models: the name of what runs at each stage, in order; empty where nobody said.
    """

    windows: tuple[tuple[float, float], ...]
    centers: tuple[float, ...]
    half_widths: tuple[float, ...]
    threshold: float
    task: Task
    score: str
    combine: str
    fitted_on: str
    models: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Plain values; an open end of a window is null, an empty window []."""
        windows = [
            [] if window == EMPTY else [None if math.isinf(end) else end for end in window] for window in self.windows
        ]
        return {**dataclasses.asdict(self), "windows": windows, "task": self.task._asdict()}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Policy:
        """What `as_json` wrote.

        Raises:
          InputError: it is not that.
        """
        try:
            windows = tuple(
                EMPTY
                if not pair
                else tuple(end if given is None else float(given) for given, end in zip(pair, WHOLE, strict=True))
                for pair in values["windows"]
            )
            return cls(
                windows,
                tuple(map(float, values["centers"])),
                tuple(map(float, values["half_widths"])),
                float(values["threshold"]),
                Task(str(values["task"]["kind"]), float(values["task"]["target"])),
                str(values["score"]),
                str(values["combine"]),
                str(values["fitted_on"]),
                tuple(map(str, values["models"])),
            )
        except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
            raise InputError(f"not a cascade's policy: {error!r}; fit it again") from None


class Outcome(NamedTuple):
    """What a cascade says about n examples: score, prediction, error [n] of the stage at which each left, that stage [n] from 0, its cost [n]."""

    score: np.ndarray
    prediction: np.ndarray
    error: np.ndarray
    stage: np.ndarray
    cost: np.ndarray


# --- stages -----------------------------------------------------------------------------------------------------------


def stages(
    models: Sequence[Predictions], cost: Sequence[float], *, score: str = "msp", combine: str = "ensemble"
) -> Stages:
    """The outputs of models, in the order they are run in, as stages of a cascade.

    Args:
      models: one or more, of the same examples in the same order, logits [n, k] or [m, n, k] of a group of members.
      cost: [M] > 0, of each model on one example: multiply-accumulates, seconds, anything that adds up.
      score: one of `methods.scores` that needs no fitting; combine: "ensemble" or "replace".

    Returns:
      `Stages`.

    Raises:
      InputError: names the file and what is wrong: other examples, labels or classes; a cost that is missing or not positive; weights; a
        score that does not apply.
    """
    cost = _checked_cost(cost, len(models))
    first = models[0]
    for model in models:
        _require_same(first, model)
    if combine not in COMBINE:
        raise InputError(f"combine {combine!r}: there are {', '.join(COMBINE)}")
    of = scorer(score)
    found, predicted = [], []
    for outputs in _outputs([_members(model, score) for model in models], score, of, combine):
        found.append(outputs[0])
        predicted.append(outputs[1])
    prediction = np.stack(predicted)
    return Stages(
        np.stack(found), prediction, prediction != first.label, cost, first.example_id, first.is_ood, score, combine
    )


def scorer(score: str) -> Callable[[Any], Any]:
    """Logits [n, k] → the score [n] of that name.

    Raises:
      InputError: there is none, or it is fitted, or of members.
    """
    of = scores_lib.named([score])[score].of
    if of is None:
        raise InputError(f"score {score!r} is fitted or of members; take one of logits alone, such as msp or energy")
    return of


def _outputs(
    members: Sequence[np.ndarray], score: str, of: Callable[[Any], Any], combine: str
) -> Iterator[tuple[Any, Any]]:
    """Score and prediction [n] of each stage, from the members' logits [m, n, k] of each model; NumPy or JAX."""
    for j in range(len(members)):
        group = members[j : j + 1] if combine == "replace" else members[: j + 1]
        yield _of_group(group, score, of)


def _of_group(group: Sequence[Any], score: str, of: Callable[[Any], Any]) -> tuple[Any, Any]:
    each = [logits for model in group for logits in model]
    if len(each) == 1:
        return of(each[0]), ops.predicted_class(each[0])
    stacked = each[0].__array_namespace__().stack(each)
    mean = ops.ensemble_log_probabilities(stacked)
    if score in MEAN_OF_SCORES:
        return sum(of(logits) for logits in each) / len(each), ops.predicted_class(mean)
    return of(mean), ops.predicted_class(mean)


def _members(model: Predictions, score: str) -> np.ndarray:
    """Logits float64 [m, n, k]."""
    if score in MEAN_OF_SCORES and model.log_probabilities:
        raise InputError(f"{model.source}: score {score!r} needs logits, the file has probabilities; take msp")
    return np.asarray(model.logits if model.logits.ndim == 3 else model.logits[None], np.float64)


def _checked_cost(cost: Sequence[float], models: int) -> np.ndarray:
    if models < 1:
        raise InputError("a cascade has a stage at least; name a model")
    values = np.asarray(cost, np.float64)
    if values.shape != (models,):
        raise InputError(f"cost: {values.size} for {models} models; give one for each")
    if not (np.isfinite(values) & (values > 0)).all():
        raise InputError(f"cost: {values.tolist()}; each is positive and finite")
    return values


def _require_same(first: Predictions, model: Predictions) -> None:
    at = f"{model.source}: compared with {first.source}"
    if not same_ids(model.example_id, first.example_id):
        raise InputError(f"{at}, field 'example_id' differs; give predictions of the same examples in the same order")
    if not np.array_equal(model.label, first.label):
        raise InputError(f"{at}, field 'label' differs; give predictions of the same split")
    if model.num_classes != first.num_classes:
        raise InputError(f"{at}, field 'logits': {model.num_classes} classes, not {first.num_classes}")
    if (model.is_ood is None) != (first.is_ood is None) or (
        model.is_ood is not None and not np.array_equal(model.is_ood, first.is_ood)
    ):
        raise InputError(f"{at}, field 'is_ood' differs; give predictions of the same split")
    if model.weight is not None:
        raise InputError(f"{model.source}, field 'weight': cascades take no weights; leave them out")


# --- policies ---------------------------------------------------------------------------------------------------------


def exit_stage(windows: Sequence[tuple[float, float]], score: Any) -> Any:
    """The stage at which each example leaves: the first whose window it lies outside of, else the last.

    Args:
      windows: M − 1 pairs (lo, hi); score: [M, n], or a sequence of M arrays; only stages that an example reaches count.

    Returns:
      int [n], 0 … M − 1.

    >>> exit_stage([(0.4, 0.6)], np.array([[0.3, 0.4, 0.5, 0.7], [0.9, 0.9, 0.9, 0.9]])).tolist()
    [0, 1, 1, 0]
    """
    xp = score[0].__array_namespace__()
    stage = xp.zeros(score[0].shape, dtype=xp.int32)
    going = xp.ones(score[0].shape, dtype=bool)
    for (low, high), of_stage in zip(windows, score, strict=False):
        going = going & (of_stage >= low) & (of_stage <= high)
        stage = stage + xp.astype(going, xp.int32)
    return stage


def merged(stage: np.ndarray, values: np.ndarray) -> np.ndarray:
    """values[stage_i, i]: of each example what the stage says at which it left.

    Args:
      stage: int [n]; values: [M, n].

    Returns:
      [n].
    """
    return np.take_along_axis(values, stage[None].astype(np.intp), axis=0)[0]


def follow(windows: Sequence[tuple[float, float]], given: Stages) -> Outcome:
    """What a cascade with these windows says.

    Args:
      windows: M − 1 pairs; given: M stages.

    Returns:
      An `Outcome`, whose cost is Σ_{j ≤ stage} cost_j.
    """
    stage = exit_stage(windows, given.score)
    return _left_at(stage, given)


def _left_at(stage: np.ndarray, given: Stages) -> Outcome:
    scores, predictions, errors = (merged(stage, values) for values in (given.score, given.prediction, given.error))
    return Outcome(scores, predictions, errors, stage, np.cumsum(given.cost)[stage])


def window_around(score: np.ndarray, center: float, half_width: Target) -> tuple[float, float]:
    """The window that holds the share `half_width` of the scores on either side of `center`.

    With k = #{s < center} and the order statistics s_(0) ≤ …: from s_(⌈k − wn⌉) to s_(⌊k + wn⌋ − 1), so that 2w of the
    scores lie in it at most where none are tied; less where an end is clipped, and then that end is open: "the whole
    ensemble" is (−∞, ∞), whatever the calibration scores were. At w = 0 it is empty.

    Args:
      score: [n], of the calibration split; center: τ; half_width: w ≥ 0, read as a decimal.

    Returns:
      (lo, hi).

    >>> window_around(np.arange(10.0), 5.0, 0.2)
    (3.0, 6.0)
    """
    width = as_fraction(half_width)
    if width < 0:
        raise ValueError(f"half_width {half_width}: it is ≥ 0")
    ordered, n = np.sort(score), len(score)
    below = int(np.searchsorted(ordered, center, side="left"))
    first, end = math.ceil(below - width * n), math.floor(below + width * n)
    if first >= end:
        return EMPTY
    low = -math.inf if first <= 0 else float(ordered[first])
    high = math.inf if end >= n else float(ordered[end - 1])
    return low, high


def least_confident(score: np.ndarray, share: Target) -> tuple[float, float]:
    """The window of the `share` of the scores that are lowest: (−∞, s_(⌊share · n⌋ − 1)), which passes on all that are tied at its end.

    Args:
      score: [n], of the calibration split; share: in [0, 1].

    Returns:
      (lo, hi).
    """
    count = math.floor(as_fraction(share) * len(score))
    if count <= 0:
        return EMPTY
    return -math.inf, math.inf if count >= len(score) else float(np.sort(score)[count - 1])


def fit(
    calibration: Stages, task: Task, half_width: Target | Sequence[Target] = 0.1, *, kind: str = "window"
) -> Policy:
    """Windows around τ of each stage, or single thresholds, on one split; then τ of the merged scores on the same split.

    Window j lies around τ_j, the threshold of the task on the scores of stage j, with its quantiles over the whole split. In-distribution
    examples alone count.

    Args:
      calibration: of a named split that nothing is reported on; task: the decision.
      half_width: w of every stage or one for each but the last; of "single_threshold" the share that is passed on.
      kind: "window" or "single_threshold".

    Returns:
      A `Policy`.

    Raises:
      ValueError: an unknown kind, not as many widths as stages but the last, or a task that cannot be met.
    """
    if kind not in ("window", "single_threshold"):
        raise ValueError(f"kind {kind!r}: there are 'window' and 'single_threshold'")
    between = len(calibration.score) - 1
    widths = [half_width] * between if isinstance(half_width, (int, float)) else list(half_width)
    if len(widths) != between:
        raise ValueError(f"{len(widths)} half_widths for {between + 1} stages; give one for each but the last")
    known = in_distribution(calibration)
    centers: list[float] = []
    windows: list[tuple[float, float]] = []
    for score, error, width in zip(known.score, known.error, widths, strict=False):
        if kind == "window":
            centers.append(task.threshold(score, error, None))
            windows.append(window_around(score, centers[-1], width))
        else:
            windows.append(least_confident(score, width))
    return frozen(calibration, task, windows, centers, widths if kind == "window" else ())


def frozen(
    calibration: Stages,
    task: Task,
    windows: Sequence[tuple[float, float]],
    centers: Sequence[float] = (),
    half_widths: Sequence[Target] = (),
) -> Policy:
    """The policy of given windows, with τ fitted to the merged scores of the calibration split.

    Args:
      calibration, task: as for `fit`; windows: M − 1 pairs; centers, half_widths: what the windows came from, if from that.

    Returns:
      A `Policy`.
    """
    known = in_distribution(calibration)
    outcome = follow(windows, known)
    return Policy(
        tuple((float(low), float(high)) for low, high in windows),
        tuple(centers),
        tuple(float(as_fraction(width)) for width in half_widths),
        task.threshold(outcome.score, outcome.error, None),
        task,
        calibration.score_name,
        calibration.combine,
        fingerprint(calibration.example_id),
    )


def adapt(policy: Policy, unlabelled: Stages) -> Policy:
    """The policy with its windows moved to where τ_j lies among these examples, labels unseen: the budget holds under shift.

    Window j becomes the share `half_widths[j]` on either side of the same τ_j, of the scores at hand (a mix of in-distribution and
    OOD examples, say). τ of the decision stays.

    Args:
      policy: of `fit` with windows; unlabelled: what is to be decided, all of it at once.

    Returns:
      A `Policy`.

    Raises:
      ValueError: the windows do not lie around thresholds.

    Source: Xia & Bouganis, ICCV 2023, their released code's adjusted windows.
    """
    if not policy.centers:
        raise ValueError(
            "single thresholds, and windows of a search, lie around nothing and are not adapted; fit windows"
        )
    windows = tuple(
        window_around(score, center, width)
        for score, center, width in zip(unlabelled.score, policy.centers, policy.half_widths, strict=False)
    )
    return dataclasses.replace(policy, windows=windows)


def apply(policy: Policy, given: Stages) -> Outcome:
    """What the cascade says about examples that it was not fitted on.

    Args:
      policy: of `fit`; given: stages of another split, with the policy's score and combination.

    Returns:
      An `Outcome`; the decision is to accept where score ≥ `policy.threshold`.

    Raises:
      InputError: they are the examples it was fitted on, or other stages than it was fitted to.
    """
    if fingerprint(given.example_id) == policy.fitted_on:
        raise InputError("the cascade was fitted on these very examples; report it on another split")
    if (given.score_name, given.combine) != (policy.score, policy.combine):
        raise InputError(
            f"the cascade was fitted to {policy.score} ({policy.combine}); these stages have {given.score_name} ({given.combine})"
        )
    if len(policy.windows) != len(given.score) - 1:
        raise InputError(f"the cascade has {len(policy.windows) + 1} stages; {len(given.score)} were given")
    return follow(policy.windows, given)


def in_distribution(given: Stages) -> Stages:
    """The examples that are not OOD."""
    return given if given.is_ood is None else subset(given, ~given.is_ood)


def subset(given: Stages, keep: np.ndarray) -> Stages:
    """Some of the examples.

    Args:
      given: n examples; keep: bool [n], or their rows.
    """
    return given._replace(
        score=given.score[:, keep],
        prediction=given.prediction[:, keep],
        error=given.error[:, keep],
        example_id=given.example_id[keep],
        is_ood=None if given.is_ood is None else given.is_ood[keep],
    )


def reordered(given: Stages, order: Sequence[int]) -> Stages:
    """Some of the stages, in another order; only of stages that stand for themselves.

    Args:
      given: M stages with combine "replace"; order: rows of them.

    Raises:
      ValueError: the stages are ensembles of those before them; build them anew in that order.
    """
    if given.combine != "replace":
        raise ValueError(
            "stages that are running ensembles depend on their order; call `stages` with the models in that order"
        )
    rows = list(order)
    return given._replace(
        score=given.score[rows], prediction=given.prediction[rows], error=given.error[rows], cost=given.cost[rows]
    )


def fingerprint(example_id: np.ndarray) -> str:
    """SHA-256 of the ids of a split, whatever their order; what `Policy.fitted_on` holds.

    Args:
      example_id: [n].
    """
    return hashlib.sha256("\n".join(map(str, np.sort(example_id))).encode()).hexdigest()


def oracle(given: Stages, threshold: float) -> Outcome:
    """An upper bound: every example leaves at the cheapest stage at which it is decided best, labels seen.

    Best is to be accepted and right, then to be rejected, then to be accepted and wrong. No cascade of these stages with the same
    threshold accepts more right examples, or fewer wrong ones.

    Args:
      given: M stages; threshold: τ, accept iff score ≥ τ.

    Returns:
      An `Outcome`.
    """
    accept = given.score >= threshold
    value = np.where(accept & ~given.error, 2, np.where(accept, 0, 1))
    stage = np.argmax(value, axis=0).astype(np.int32)  # the first of the best
    return _left_at(stage, given)


# --- search -----------------------------------------------------------------------------------------------------------


class Table(NamedTuple):
    """Every policy of a search with what it does on the split that is searched.

    Attributes:
      threshold: [P], τ; windows: [P, M − 1, 2]; accepted, errors: int [P], counts; cost: [P], mean per example; accepted_ood: int [P],
        of OOD examples, which are in none of these; n, n_ood: examples.
    """

    threshold: np.ndarray
    windows: np.ndarray
    accepted: np.ndarray
    errors: np.ndarray
    cost: np.ndarray
    accepted_ood: np.ndarray
    n: int
    n_ood: int

    @property
    def coverage(self) -> np.ndarray:
        """[P]."""
        return self.accepted / self.n

    @property
    def risk(self) -> np.ndarray:
        """Selective risk [P]; 0 where nothing is accepted."""
        return self.errors / np.maximum(self.accepted, 1)


def window_grid(score: np.ndarray, points: int, *, around: np.ndarray | None = None) -> np.ndarray:
    """Windows between quantiles of the scores, all pairs of them, or those that are symmetric around given thresholds.

    Args:
      score: [n]; points: ends of windows at shares 0, 1/points … 1 of the scores, the outermost open.
      around: [t] thresholds; then windows of half-width i/(2·points) around each.

    Returns:
      [W, 2]; the empty window is the first, the whole one among them.
    """
    if around is not None:
        pairs = [
            window_around(score, float(center), (i, 2 * points)) for center in around for i in range(2 * points + 1)
        ]
    else:
        ordered, n = np.sort(score), len(score)
        edge = [n * i // points for i in range(points + 1)]
        lows = [-math.inf if i == 0 else float(ordered[edge[i]]) for i in range(points)]
        highs = [math.inf if i == points else float(ordered[edge[i] - 1]) for i in range(1, points + 1)]
        pairs = [(low, high) for i, low in enumerate(lows) for high in highs[i:]]
    return np.array([EMPTY, *dict.fromkeys(pair for pair in pairs if pair != EMPTY)])


def search(given: Stages, thresholds: np.ndarray, windows: Sequence[np.ndarray]) -> Table:
    """Every threshold with every combination of windows, exactly.

    The examples that a window of stage 1 passes on are consecutive in the order of its score, so that what they change is a
    difference of prefix sums: after O(T·n) work for each combination of the later windows, a policy takes O(1).

    Args:
      given: M stages of the split to search; OOD examples are counted apart. thresholds: [T], τ; windows: M − 1 arrays [W_j, 2].

    Returns:
      A `Table` of T · Π W_j policies.

    Raises:
      ValueError: not M − 1 arrays of windows.
    """
    if len(windows) != len(given.score) - 1:
        raise ValueError(
            f"{len(windows)} sets of windows for {len(given.score)} stages; give one for each but the last"
        )
    thresholds = np.asarray(thresholds, np.float64)
    accepted, errors, cost, n = _counted(in_distribution(given), thresholds, windows)
    accepted_ood, n_ood = np.zeros_like(accepted), 0
    if given.is_ood is not None and given.is_ood.any():
        accepted_ood, _, _, n_ood = _counted(subset(given, given.is_ood), thresholds, windows)
    every = np.empty((1, 0, 2))
    if windows:
        later = itertools.product(*windows[1:])
        every = np.concatenate([np.stack(np.broadcast_arrays(windows[0], *rest), axis=1) for rest in later])
    t, w = accepted.shape
    return Table(
        np.repeat(thresholds, w),
        np.tile(every, (t, 1, 1)),
        accepted.ravel(),
        errors.ravel(),
        np.tile(cost, t),
        accepted_ood.ravel(),
        n,
        n_ood,
    )


def _counted(
    known: Stages, thresholds: np.ndarray, windows: Sequence[np.ndarray]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Accepted and errors [T, Π W_j] and mean cost [Π W_j] of every policy, and the number of examples."""
    n = known.score.shape[1]
    order = np.argsort(known.score[0], kind="stable")
    accept = (known.score[:, None, order] >= thresholds[:, None]).astype(np.int8)  # [M, T, n]
    wrong = accept * known.error[:, None, order].astype(np.int8)
    alone = [part[0].sum(axis=1, dtype=np.int64)[:, None] for part in (accept, wrong)]
    if not windows:
        return *alone, np.full(1, known.cost[0]), n
    first = known.score[0, order]
    start = np.searchsorted(first, windows[0][:, 0], side="left")
    end = np.maximum(np.searchsorted(first, windows[0][:, 1], side="right"), start)
    counts: list[list[np.ndarray]] = [[], [], []]
    for later in itertools.product(*windows[1:]):
        accept_after, wrong_after, cost_after = accept[-1], wrong[-1], np.zeros(n)
        for j in range(len(known.score) - 2, 0, -1):
            low, high = later[j - 1]
            goes = (known.score[j, order] >= low) & (known.score[j, order] <= high)
            accept_after = np.where(goes, accept_after, accept[j])
            wrong_after = np.where(goes, wrong_after, wrong[j])
            cost_after = np.where(goes, known.cost[j + 1] + cost_after, 0.0)
        counts[0].append(alone[0] + _sums(accept_after - accept[0], start, end))
        counts[1].append(alone[1] + _sums(wrong_after - wrong[0], start, end))
        counts[2].append(known.cost[0] + _sums((known.cost[1] + cost_after)[None], start, end)[0] / n)
    return np.concatenate(counts[0], axis=1), np.concatenate(counts[1], axis=1), np.concatenate(counts[2]), n


def _sums(values: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Sums of values [t, n] over columns start to end − 1: [t, W]."""
    kind = np.int64 if values.dtype.kind == "i" else np.float64
    before = np.zeros((len(values), values.shape[1] + 1), kind)
    np.cumsum(values, axis=1, out=before[:, 1:])
    return before[:, end] - before[:, start]


def joined(tables: Sequence[Table]) -> Table:
    """The policies of several searches of as many stages on one split, one after the other."""
    columns = list(zip(*tables, strict=True))
    return Table(*(np.concatenate(column) for column in columns[:-2]), tables[0].n, tables[0].n_ood)


def value(table: Table, task: Task) -> np.ndarray:
    """How good each policy is at the task, more is better; −∞ where it misses the target.

    Args:
      table: P policies; task: "risk" (the coverage, where the risk is within the target), "coverage" (minus the risk, where at
        least as much is accepted), and of a split with OOD examples "tpr" (minus the share of them that is accepted) and "scod" (minus
        the share of the accepted that are errors or OOD), both where as much of the others is accepted.

    Returns:
      [P].

    Raises:
      ValueError: another task, or one of OOD examples where there are none.
    """
    if task.kind == "risk":
        target = as_fraction(task.target)
        meets = table.errors * target.denominator <= table.accepted * target.numerator
        return np.where(meets & (table.accepted > 0), table.coverage, -np.inf)
    if task.kind not in ("coverage", "tpr", "scod"):
        raise ValueError(f"task {task.kind!r}: a search is for 'risk', 'coverage', 'tpr' or 'scod'")
    if task.kind != "coverage" and table.n_ood == 0:
        raise ValueError(f"task {task.kind!r}: no example of the split that is searched is OOD")
    enough = table.accepted >= math.ceil(as_fraction(task.target) * table.n)
    lost = {
        "coverage": table.risk,
        "tpr": table.accepted_ood / max(1, table.n_ood),
        "scod": (table.errors + table.accepted_ood) / np.maximum(table.accepted + table.accepted_ood, 1),
    }
    return np.where(enough, -lost[task.kind], -np.inf)


def best(table: Table, task: Task, budget: float = math.inf) -> int | None:
    """The row of the best policy within the budget, of equally good ones the cheapest; None if none meets the target.

    It is the best of many on the split that was searched, and so looks better there than it is: report it on another.

    Args:
      table, task: as for `value`; budget: of the mean cost.
    """
    worth = np.where(table.cost <= budget * (1 + 1e-12), value(table, task), -np.inf)
    if not (worth > -np.inf).any():
        return None
    rows = np.flatnonzero(worth == worth.max())
    return int(rows[np.argmin(table.cost[rows])])


def front(table: Table, task: Task) -> np.ndarray:
    """Rows of the Pareto front: policies that no cheaper one equals, in order of cost.

    Args:
      table, task: as for `value`.

    Returns:
      int [F]; empty if none meets the target.
    """
    worth = value(table, task)
    order = np.lexsort((-worth, table.cost))
    reached = np.maximum.accumulate(worth[order])
    better = np.concatenate([[worth[order[0]] > -np.inf], reached[1:] > reached[:-1]])
    return order[better]


# --- a promise --------------------------------------------------------------------------------------------------------


class Certificate(NamedTuple):
    """What a split that chose nothing says about decisions that were fixed before.

    Attributes:
      certified: the first so many of them hold, all at once, with probability ≥ 1 − δ; p_risk, p_cost: [D] p-values of "risk ≥ r" and
        of "mean cost ≥ B" of each; accepted, errors: int [D].
    """

    certified: int
    p_risk: np.ndarray
    p_cost: np.ndarray
    accepted: np.ndarray
    errors: np.ndarray


def certify(
    decisions: Sequence[tuple[Sequence[tuple[float, float]], float]],
    given: Stages,
    risk: float,
    budget: float,
    delta: float,
) -> Certificate:
    """Which cascades keep both a selective risk and a mean cost: learn-then-test by a fixed sequence.

    Decision after decision is tested with p = max(p_risk, p_cost), the exact binomial p-value of the errors among the accepted, and
    the Hoeffding–Bentkus p-value of the cost in units of all stages together, until one has p > δ: those before it are certified. With probability
    ≥ 1 − δ over the split, risk < r and mean cost < B hold for each of them in the population, so that any may be taken. Examples have to be
    independent draws; exchangeable ones do not do for the cost.

    Args:
      decisions: (windows, τ) in the order in which they are tested, safest first; fixed on another split.
      given: M stages of a split that neither windows, thresholds nor the order were chosen on; in-distribution examples count.
      risk: r; budget: B, in the unit of the costs; delta: δ.

    Returns:
      A `Certificate`.

    Raises:
      ValueError: no decision.

    Source: Angelopoulos, Bates, Candès, Jordan & Lei, "Learn then test", 2021 (fixed sequences); search, then test on other data: Laufer-Goldshtein,
    Fisch, Barzilay & Jaakkola, "Efficiently controlling multiple risks with Pareto testing", ICLR 2023; early exits with risk control: Jazbec
    et al., "Fast yet safe", 2024 (arXiv 2405.20915).
    """
    if not decisions:
        raise ValueError("no decision to certify")
    known = in_distribution(given)
    outcomes = [(follow(windows, known), threshold) for windows, threshold in decisions]
    accept = np.stack([outcome.score >= threshold for outcome, threshold in outcomes])
    accepted = accept.sum(axis=1)
    errors = (accept & np.stack([outcome.error for outcome, _ in outcomes])).sum(axis=1)
    largest = known.cost.sum()
    share = np.array([outcome.cost.mean() for outcome, _ in outcomes]) / largest
    p_risk = ops.binomial_p_value(errors, accepted, risk)
    within = budget < largest  # no cost exceeds that of all stages
    p_cost = ops.hoeffding_bentkus_p_value(share, accept.shape[1], budget / largest) if within else np.zeros(len(share))
    fails = np.maximum(p_risk, p_cost) > delta
    return Certificate(int(np.argmax(fails)) if fails.any() else len(fails), p_risk, p_cost, accepted, errors)


# --- execution --------------------------------------------------------------------------------------------------------


def predict(
    policy: Policy,
    models: Sequence[Callable[[Any], Any]],
    inputs: Any,
    cost: Sequence[float],
    *,
    batch_size: int = 256,
) -> Outcome:
    """Runs stage j on what was passed on to it alone, in full batches of one shape.

    What is passed on waits until a batch is full; the last batch of each stage is padded with its first rows. So each model is
    called with one shape, and compiled once, whatever the window passes on; where it is mapped over devices, `batch_size` is what it takes. The result of one
    batch is fetched while the next is computed.

    Args:
      policy: of `fit`; models: M functions, inputs [batch_size, …] → logits [b, k] or [m, b, k], each row by itself.
      inputs: [n, …], an array or anything that a NumPy index picks rows of; cost: as for `stages`; batch_size: b.

    Returns:
      An `Outcome`, without errors (False), equal to `follow` on the same outputs.

    Raises:
      InputError: not as many models or costs as the policy has stages.
    """
    if len(models) != len(policy.windows) + 1:
        raise InputError(f"the cascade has {len(policy.windows) + 1} stages; {len(models)} models were given")
    cost = _checked_cost(cost, len(models))
    return _Runner(policy, models, inputs, batch_size).run(cost)


class _Runner:
    """The work of `predict`: rows that wait for each stage, with the members' logits that they bring."""

    def __init__(self, policy: Policy, models: Sequence[Callable[[Any], Any]], inputs: Any, batch_size: int) -> None:
        self._policy, self._models, self._inputs, self._batch_size = policy, models, inputs, batch_size
        self._of = scorer(policy.score)
        n = len(inputs)
        self._score, self._prediction, self._stage = np.zeros(n), np.zeros(n, np.int64), np.zeros(n, np.int32)
        self._waiting: list[list[tuple[np.ndarray, list[np.ndarray]]]] = [[] for _ in models]
        self._running: list[tuple[int, np.ndarray, list[np.ndarray], Any]] = []

    def run(self, cost: np.ndarray) -> Outcome:
        """Everything."""
        n, size, later = len(self._inputs), self._batch_size, range(1, len(self._models))
        for begin in range(0, n, size):
            self._start(0, np.arange(begin, min(begin + size, n)), [])
            for j in later:
                self._drain(j, everything=False)
        for j in later:
            self._finish(0)
            self._drain(j, everything=True)
        self._finish(0)
        return Outcome(self._score, self._prediction, np.zeros(n, bool), self._stage, np.cumsum(cost)[self._stage])

    def _start(self, j: int, rows: np.ndarray, heard: list[np.ndarray]) -> None:
        padded = np.resize(rows, self._batch_size)
        self._running.append((j, rows, heard, self._models[j](self._inputs[padded])))
        self._finish(1)

    def _finish(self, most: int) -> None:
        """Fetches results until `most` are left running."""
        while len(self._running) > most:
            j, rows, heard, outputs = self._running.pop(0)
            logits = np.asarray(outputs, np.float64)
            logits = (logits if logits.ndim == 3 else logits[None])[:, : len(rows)]
            heard = [*heard, logits] if self._policy.combine == "ensemble" else [logits]
            score, self._prediction[rows] = _of_group(heard, self._policy.score, self._of)
            self._score[rows], self._stage[rows] = score, j
            if j < len(self._models) - 1:
                low, high = self._policy.windows[j]
                goes = (score >= low) & (score <= high)
                self._waiting[j + 1].append((rows[goes], [part[:, goes] for part in heard]))

    def _drain(self, j: int, everything: bool) -> None:
        waiting = sum(len(rows) for rows, _ in self._waiting[j])
        if waiting == 0 or (waiting < self._batch_size and not everything):
            return
        rows = np.concatenate([rows for rows, _ in self._waiting[j]])
        heard = [np.concatenate(parts, axis=1) for parts in zip(*(h for _, h in self._waiting[j]), strict=True)]
        self._waiting[j] = []  # what `_start` finishes may wait for a later stage, not for this one
        brought = heard if self._policy.combine == "ensemble" else []
        for begin in range(0, waiting, self._batch_size):
            part = slice(begin, begin + self._batch_size)
            if waiting - begin < self._batch_size and not everything:
                self._waiting[j].append((rows[part], [h[:, part] for h in heard]))
                break
            self._start(j, rows[part], [h[:, part] for h in brought])


def as_function(
    policy: Policy, models: Sequence[Callable[[Any], Any]], capacities: Sequence[int]
) -> Callable[[Any], tuple[Any, Any, Any, Any]]:
    """The cascade as one jitted function, for batches of one size and stages of fixed capacity.

    Stage j runs on the first `capacities[j − 1]` rows of the batch that lie within the window. What finds no room stays with what the
    stage before said, and is counted.

    Args:
      policy: of `fit`; models: M functions, inputs [b, …] → logits [b, k] or [m, b, k]; capacities: M − 1 numbers of rows.

    Returns:
      inputs [b, …] → (score [b], prediction [b], stage [b], overflow [], how many found no room). In float32 on the device.
    """
    import jax
    import jax.numpy as jnp

    of = scorer(policy.score)

    def members(outputs: Any) -> Any:
        return outputs if outputs.ndim == 3 else outputs[None]

    def cascade(inputs: Any) -> tuple[Any, Any, Any, Any]:
        b = inputs.shape[0]
        logits = members(models[0](inputs))
        score, prediction = _of_group([logits], policy.score, of)
        stage, rows, heard, overflow = jnp.zeros(b, jnp.int32), jnp.arange(b), [logits], 0
        own = score
        for j, ((low, high), capacity) in enumerate(zip(policy.windows, capacities, strict=True), 1):
            goes = (own >= low) & (own <= high) & (rows < b)
            overflow += jnp.maximum(jnp.sum(goes) - capacity, 0)
            chosen = jnp.nonzero(goes, size=min(capacity, len(rows)), fill_value=len(rows))[0]
            rows = jnp.append(rows, b)[jnp.minimum(chosen, len(rows))]  # b where there is none
            heard = [jnp.take(part, chosen, axis=1, mode="clip") for part in heard]
            logits = members(models[j](jnp.take(inputs, rows, axis=0, mode="clip")))
            heard = [*heard, logits] if policy.combine == "ensemble" else [logits]
            own, predicted = _of_group(heard, policy.score, of)
            score = score.at[rows].set(own, mode="drop")
            prediction = prediction.at[rows].set(predicted, mode="drop")
            stage = stage.at[rows].set(j, mode="drop")
        return score, prediction, stage, overflow

    return jax.jit(cascade)


class Timing(NamedTuple):
    """Seconds per example, measured: in batches and one at a time, of each model alone ([M]) and of the cascade; `passed_on` the share that went on."""

    models_batched: np.ndarray
    batched: float
    models_single: np.ndarray
    single: float
    passed_on: float


def timed(
    policy: Policy,
    models: Sequence[Callable[[Any], Any]],
    inputs: Any,
    *,
    batch_size: int = 256,
    rounds: int = 3,
    single: int = 100,
) -> Timing:
    """How long the models and the cascade take by the clock, on these inputs.

    Medians over rounds that alternate, so that a busy machine slows all alike; the first round compiles and does not count. What a model
    takes is a cost in seconds, for `stages`, where multiply-accumulates mislead.

    Args:
      policy, models, inputs, batch_size: as for `predict`; rounds: that count; single: how many of the inputs are run one at a time.

    Returns:
      `Timing`.

    Raises:
      InputError: as for `predict`.
    """
    n, cost = len(inputs), [1.0] * len(models)
    few = min(single, n)

    def alone(model: Callable[[Any], Any], size: int, most: int) -> Callable[[], object]:
        def run() -> None:
            for begin in range(0, most, size):
                np.asarray(model(inputs[np.resize(np.arange(begin, min(begin + size, most)), size)]))

        return run

    def one_by_one() -> None:
        for i in range(few):
            predict(policy, models, inputs[np.arange(i, i + 1)], cost, batch_size=1)

    outcome = predict(policy, models, inputs, cost, batch_size=batch_size)
    ways = [alone(model, batch_size, n) for model in models]
    ways.append(lambda: predict(policy, models, inputs, cost, batch_size=batch_size))
    ways += [alone(model, 1, few) for model in models] + [one_by_one]
    seconds: list[list[float]] = [[] for _ in ways]
    for _ in range(rounds + 1):
        for way, taken in zip(ways, seconds, strict=True):
            start = time.perf_counter()
            way()
            taken.append(time.perf_counter() - start)
    median = np.array([np.median(taken[1:]) for taken in seconds])
    m = len(models)
    batched, alone_at_a_time = median[: m + 1] / n, median[m + 1 :] / few
    passed = float((outcome.stage > 0).mean())
    return Timing(batched[:m], float(batched[m]), alone_at_a_time[:m], float(alone_at_a_time[m]), passed)
