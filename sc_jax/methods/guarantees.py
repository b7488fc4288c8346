"""Thresholds with a stated promise: SGR, learn-then-test, conformal risk control, and a monitor after deployment.

Each choice is a function of counts in the cells of a score, from the most confident cell on: `n[..., g]` examples and `errors[..., g]` among them. A
threshold accepts whole cells, so tied examples are never divided. Leading axes are calibration sets, so that the promise of a method
can be simulated with the code that makes it. `fit` turns a calibration split into a `Selector`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from sc_jax import ops
from sc_jax.files import InputError
from sc_jax.methods import scod
from sc_jax.methods import selector as selector_lib
from sc_jax.methods.evaluation import Split
from sc_jax.methods.selector import Decision, Promise, Selector
from sc_jax.ops.ranking import Array
from sc_jax.ops.targets import as_fraction, floor_of_share
from sc_jax.predictions import (
    Predictions,
    ids_among,
    known_by,
    refuse_fitted_on,
    refuse_shared,
    refuse_unknown_only,
    select,
)

METHODS = ("sgr", "ltt_fixed_sequence", "ltt_bonferroni", "ltt_holm", "crc")
P_VALUES: dict[str, Callable[[Array, Array, Array], np.ndarray]] = {
    "binomial": lambda errors, n, risk: ops.binomial_p_value(errors, n, risk),
    "hoeffding_bentkus": lambda loss, n, risk: ops.hoeffding_bentkus_p_value(loss / np.maximum(n, 1), n, risk),
}
"""(total loss, n, risk) → p-value of "the mean loss is `risk` or more"; the exact one is for 0/1 losses alone."""

_MONOTONE = "; the selective risk falls as the threshold rises"


class Chosen(NamedTuple):
    """A threshold as the last cell that is accepted.

    Attributes:
      last: int [...], −1 where nothing is accepted.
      bound: [...], the certified bound of the risk of what is accepted; NaN where nothing is.
    """

    last: np.ndarray
    bound: np.ndarray


def sgr(n: Array, errors: Array, risk: float, delta: float) -> Chosen:
    """Selection with guaranteed risk: a binary search for a large coverage whose Clopper–Pearson bound is ≤ r.

    Examples are in order of score, least confident first. From lo = 0, hi = m − 1, ⌈log₂ m⌉ times: mid = ⌈(lo + hi)/2⌉, all with the score of
    example mid or more are accepted, and B is the upper bound of their risk at δ/⌈log₂ m⌉. If B > r, lo = mid, else hi = mid. The answer
    is the last *feasible* threshold, or to accept nothing. (The authors' code returns the last one probed, feasible or not.)

    That need not be the largest feasible coverage. Rounding up, the search never probes all examples where m > 1: of 1,000 with different
    scores it accepts 999 at most. And bounds are not monotone along the path, where few are accepted above all.

    The union bound is over the ⌈log₂ m⌉ thresholds of one path. Which path is taken depends on the errors, so that it
    covers them only if risk is monotone in the threshold; `learn_then_test` needs no such assumption.

    Args:
      n: [..., g], examples in each cell, most confident cell first, at least one example in all; errors: [..., g], counts.
      risk: r in (0, 1); delta: δ in (0, 1).

    Returns:
      `Chosen`, `bound` at δ/⌈log₂ m⌉.

    Raises:
      ValueError: there are no examples; see `ops.clopper_pearson_upper`.

    Source: Geifman & El-Yaniv, "Selective classification for deep neural networks", NeurIPS 2017, Algorithm 2.
    """
    n, errors = np.broadcast_arrays(np.asarray(n), np.asarray(errors))
    accepted, wrong = np.cumsum(n, axis=-1), np.cumsum(errors, axis=-1)
    m = accepted[..., -1]
    if (m == 0).any():
        raise ValueError("there are no examples")
    steps = np.maximum(np.array([(int(size) - 1).bit_length() for size in m.flat]).reshape(m.shape), 1)  # ⌈log₂ m⌉
    low, high = np.zeros_like(m), m - 1
    last, bound = np.full(m.shape, -1), np.full(m.shape, np.nan)
    for step in range(int(steps.max())):
        middle = (low + high + 1) // 2
        cell = (accepted < (m - middle)[..., None]).sum(axis=-1)  # holds the (m − mid)-th most confident
        k, size = (np.take_along_axis(counts, cell[..., None], axis=-1)[..., 0] for counts in (wrong, accepted))
        upper = ops.clopper_pearson_upper(k, size, delta / steps)
        feasible, active = upper <= risk, step < steps
        better = active & feasible & (cell >= last)
        last, bound = np.where(better, cell, last), np.where(better, upper, bound)
        low, high = np.where(active & ~feasible, middle, low), np.where(active & feasible, middle, high)
    return Chosen(last, bound)


def learn_then_test(
    p: Array, delta: float, procedure: str = "fixed_sequence", starts: Sequence[int] = (0,)
) -> np.ndarray:
    """The last threshold that a test with family-wise error ≤ δ finds safe.

    - "fixed_sequence": from each of S starts the walk goes on to larger coverage while p ≤ δ/S; the last one passed by any walk.
    - "bonferroni": the last with p ≤ δ/g. "holm": the last that Holm's step-down rejects; never fewer than Bonferroni.

    Args:
      p: [..., g], of "the risk of threshold j is r or more", in order of coverage. Thresholds are fixed without the calibration labels they
        are tested on: beforehand, or on another split. Each p is valid given the number that its threshold accepts.
      delta: δ in (0, 1); procedure: as above; starts: indices, fixed as the thresholds are; for a fixed sequence only.

    Returns:
      int [...], −1 where nothing is found safe.

    Raises:
      ValueError: an unknown procedure; starts for a procedure that has none, none for one that has, or one outside 0..g − 1; δ outside (0, 1).

    Source: Angelopoulos, Bates, Candès, Jordan & Lei, "Learn then test: calibrating predictive algorithms to achieve risk control", 2021.

    >>> p = np.array([0.02, 0.01, 0.04, 0.2])
    >>> int(learn_then_test(p, 0.05)), int(learn_then_test(p, 0.05, "bonferroni")), int(learn_then_test(p, 0.05, "holm"))
    (2, 1, 1)
    """
    p = np.asarray(p, np.float64)
    g = p.shape[-1]
    if not 0 < delta < 1:
        raise ValueError(f"delta must lie in (0, 1); it is {delta}")
    if not starts or not all(0 <= start < g for start in starts):
        raise ValueError(f"starts {tuple(starts)}: one index or more in 0..{g - 1} is needed")
    if procedure != "fixed_sequence" and tuple(starts) != (0,):
        raise ValueError(f"procedure {procedure!r} tests all thresholds at once; it has no starts")
    if procedure == "fixed_sequence":
        last = np.full(p.shape[:-1], -1)
        for start in starts:
            passed = np.cumprod(p[..., start:] <= delta / len(starts), axis=-1).sum(axis=-1)
            last = np.maximum(last, np.where(passed > 0, start + passed - 1, -1))
        return last
    if procedure == "bonferroni":
        rejected = p <= delta / g
    elif procedure == "holm":
        order = np.argsort(p, axis=-1, kind="stable")
        small = np.take_along_axis(p, order, axis=-1) <= delta / (g - np.arange(g))
        rejected = np.take_along_axis(np.cumprod(small, axis=-1).astype(bool), np.argsort(order, axis=-1), axis=-1)
    else:
        raise ValueError(f"procedure {procedure!r}: there are 'fixed_sequence', 'bonferroni' and 'holm'")
    return np.where(rejected, np.arange(g), -1).max(axis=-1)


def conformal_risk_control(n: Array, errors: Array, alpha: float) -> np.ndarray:
    """The largest coverage with E P(accepted and wrong) ≤ α: the smallest attained score with (errors of the accepted + 1)/(n + 1) ≤ α.

    The loss 1[accepted and wrong] grows with coverage, as conformal risk control needs; selective risk, a ratio, does not. Whole cells are
    accepted or not: the infimum over all thresholds would stop within a tied group, and accept it all.

    Args:
      n: [..., g], examples in each cell, most confident cell first; errors: [..., g], their total loss, of losses in [0, 1].
      alpha: α in (0, 1), read as a decimal.

    Returns:
      int [...], the last cell that is accepted, one that has examples; −1 where none can be.

    Raises:
      ValueError: α is outside (0, 1).

    Source: Angelopoulos, Bates, Fisch, Lei & Schuster, "Conformal risk control", ICLR 2024.

    >>> int(conformal_risk_control(np.array([8, 1, 10]), np.array([0, 1, 1]), 0.1))  # (1 + 1)/20 ≤ 0.1, (2 + 1)/20 is not
    1
    """
    n, errors = np.broadcast_arrays(np.asarray(n), np.asarray(errors))
    if not 0 < alpha < 1:
        raise ValueError(f"alpha must lie in (0, 1); it is {alpha}")
    allowed = floor_of_share(as_fraction(alpha), np.asarray(n.sum(axis=-1) + 1)) - 1
    if errors.dtype.kind == "f":
        allowed = float(as_fraction(alpha)) * (n.sum(axis=-1) + 1) - 1
    met = (np.cumsum(errors, axis=-1) <= allowed[..., None]) & (n > 0)
    return np.where(met, np.arange(n.shape[-1]), -1).max(axis=-1, initial=-1)


class Cells(NamedTuple):
    """A sample by cells of the score.

    Attributes:
      score: [g], the least score of each cell, decreasing; n, errors: int [g].
    """

    score: np.ndarray
    n: np.ndarray
    errors: np.ndarray

    @classmethod
    def attained(cls, score: np.ndarray, error: np.ndarray) -> Cells:
        """One cell for each score that is attained: [n], bool [n]."""
        value, index = np.unique(score, return_inverse=True)
        n, errors = np.bincount(index, minlength=len(value)), np.bincount(index[error], minlength=len(value))
        return cls(value[::-1], n[::-1], errors[::-1])

    @classmethod
    def between(cls, thresholds: np.ndarray, score: np.ndarray, error: np.ndarray) -> Cells:
        """Cells between given thresholds [g], decreasing; what lies below the last is in none."""
        index = len(thresholds) - np.searchsorted(thresholds[::-1], score, side="right")
        keep = index < len(thresholds)
        count = len(thresholds)
        return cls(
            thresholds, np.bincount(index[keep], minlength=count), np.bincount(index[keep & error], minlength=count)
        )


def thresholds_at(score: np.ndarray, coverages: Sequence[float]) -> np.ndarray:
    """Thresholds that accept these shares of a sample, each once, in decreasing order.

    Args:
      score: [n], of a split on which nothing is certified; coverages: in (0, 1].
    """
    found = {float(ops.threshold_at_coverage(score, coverage)) for coverage in coverages}
    return np.array(sorted(found, reverse=True))


def _coverages(method: str, starts: Sequence[float]) -> tuple[float, ...]:
    """Coverages whose thresholds are tested: many for a walk, which costs nothing by their number; few where δ is divided."""
    if method != "ltt_fixed_sequence":
        return tuple(c / 20 for c in range(1, 21))
    return tuple(c / 100 for c in range(max(1, math.ceil(as_fraction(min(starts)) * 100)), 101))


def divide(calibration: Predictions, share: float, seed: int) -> tuple[Predictions, Predictions]:
    """Draws a share of the examples to tune on: (these, the rest).

    Args:
      calibration: a split; share: in (0, 1); seed: of the draw.

    Raises:
      InputError: one of the two parts would be empty.
    """
    n = len(calibration)
    count = int(floor_of_share(as_fraction(share), np.asarray(n)))
    if not 0 < count < n:
        raise InputError(
            f"{calibration.source}: {n} examples cannot be divided at {share}; give more, or --tuning=FILE.npz"
        )
    mine = np.zeros(n, bool)
    mine[np.random.default_rng(seed).permutation(n)[:count]] = True
    return select(calibration, mine), select(calibration, ~mine)


def independent(calibration: Predictions) -> Predictions:
    """The examples from the training distribution, if they can be taken for independent draws from the population.

    Raises:
      InputError: they are of the training split, or all OOD; they have survey weights that differ, or clusters of several examples: no bound
        here is for those.
    """
    refuse_unknown_only(calibration)
    if calibration.provenance.get("split") == "train":
        raise InputError(
            f"{calibration.source}, split 'train': the network was trained on these examples, where it errs less than on others; "
            "give a split that it has not seen"
        )
    known = Split.of(calibration).known.combined
    if known.weight is not None and (known.weight != known.weight[0]).any():
        raise InputError(
            f"{calibration.source}, field 'weight': weights differ, and guarantees are for independent draws from the population; "
            "give such a sample"
        )
    if known.cluster is not None and len(np.unique(known.cluster)) < len(known):
        raise InputError(
            f"{calibration.source}, field 'cluster': examples come together, and guarantees are for independent ones; "
            "give one example of each cluster"
        )
    return known


def fit(
    calibration: Predictions,
    method: str,
    score: str | scod.Plugin | scod.Sirc = "msp",
    *,
    risk: float,
    delta: float | None = None,
    tuning: Predictions | None = None,
    within: str = "all",
    starts: Sequence[float] = (0.5,),
    p_value: str = "binomial",
    whole: Predictions | None = None,
) -> Selector:
    """A threshold on a score, certified on a calibration split.

    Args:
      calibration: the split that certifies; method: of `METHODS`; score: name in `methods.scores`, or a fitted rejector of
        `methods.scod`, which knows the splits behind it; promises are of the examples that are not OOD.
      risk: r of the selective risk; for "crc" α of P(accepted and wrong). delta: δ; not for "crc", which has none.
      tuning: a third split, which shares no example with `calibration`. Scores that are fitted by name, and the thresholds of learn-then-test,
        are taken from it.
      within: "all"; "group" or "predicted_class", a threshold for each, at δ/strata so that all hold at once; "label", one threshold under
        which the promise holds within each true class (not for "sgr").
      starts: of "ltt_fixed_sequence": coverages at which walks begin, each at δ/starts. Elsewhere not used.
      p_value: of `P_VALUES`, for learn-then-test; whole: the file of which `calibration` and `tuning` are the parts, if they are (see `divide`).

    Returns:
      A `Selector`; a threshold of NaN accepts nothing.

    Raises:
      InputError: the examples cannot be taken for independent, or the score was fitted on them, or something that is needed is not there.
      ValueError: the promise is none that the method can make (δ for a marginal one, r outside (0, 1), an unknown name).
    """
    if method not in METHODS:
        raise ValueError(f"method {method!r}: there are {', '.join(METHODS)}")
    quantity = "accepted and wrong" if method == "crc" else "selective risk"
    promise = Promise("marginal" if method == "crc" else "pac", quantity, risk, delta, within)
    if method == "sgr":
        promise = Promise(**{**vars(promise), "assumption": promise.assumption + _MONOTONE})
        if within == "label":
            raise ValueError("sgr searches along one path, which true classes do not share; take ltt_fixed_sequence")
    if p_value not in P_VALUES:
        raise ValueError(f"p_value {p_value!r}: there are {', '.join(P_VALUES)}")
    if not starts or not all(0 < start <= 1 for start in starts):
        raise ValueError(f"starts {tuple(starts)}: one coverage or more in (0, 1] is needed")
    known, tuned_on = independent(calibration), ()
    if tuning is not None:
        _refuse_tuning(calibration, tuning, whole)
        tuned_on = (known_by(tuning) if whole is None else known_by(tuning, rows=False)._replace(example_id=None),)
    if isinstance(score, str):
        state = selector_lib.fit_score(score, tuning)
        tuned_on = tuned_on if state or method.startswith("ltt") else ()
    else:
        refuse_fitted_on(calibration, score.fitted_on, "the rejector")
        tuned_on = (*score.fitted_on, *(tuned_on if method.startswith("ltt") else ()))
        score, state = selector_lib.of_rejector(score)
    kept = calibration if calibration.is_ood is None else select(calibration, ~calibration.is_ood)
    values = selector_lib.score_of(score, state, kept)
    if np.isnan(values).any():
        raise InputError(f"{calibration.source}: score {score!r} is NaN for some examples; find out why")
    prediction = ops.predicted_class(known.logits)
    error = prediction != known.label
    by = "all" if within == "label" else within
    names = selector_lib.strata(known, by, prediction)
    tuned: Mapping[str, np.ndarray] = {}
    if method.startswith("ltt"):
        tuned = _tuned(tuning, score, state, by)
    thresholds, about = {}, {}
    present = np.unique(names)
    for name in present:
        mine = names == name
        classes = [np.full(mine.sum(), True)]
        if within == "label":  # one without examples certifies nothing
            classes = [known.label[mine] == k for k in range(known.num_classes)]
        how = _How(method, risk, None if delta is None else delta / len(present), tuple(starts), p_value)
        thresholds[str(name)], about[str(name)] = _threshold(
            how, values[mine], error[mine], classes, tuned.get(str(name), np.zeros(0))
        )
    fitted_on = known_by(calibration if whole is None else whole)._replace(n=len(known))
    return Selector(method, promise, "threshold", score, state, by, thresholds, fitted_on, tuned_on, about)


def _refuse_tuning(calibration: Predictions, tuning: Predictions, whole: Predictions | None) -> None:
    """Refuses a tuning split that shares examples with the calibration split; parts of one file are of one split, and told by their ids."""
    if whole is None:
        refuse_shared(calibration, tuning, "tuning")
    elif len(shared := np.unique(tuning.example_id[ids_among(tuning.example_id, calibration.example_id)])):
        raise InputError(
            f"{tuning.source}, field 'example_id': {len(shared)} ids are in both parts of {whole.source} (first {shared[0]}); "
            "give the parts that `divide` makes"
        )


class _How(NamedTuple):
    method: str
    risk: float
    delta: float | None
    starts: tuple[float, ...]
    p_value: str


def _tuned(
    tuning: Predictions | None, score: str, state: Mapping[str, float | str | np.ndarray], by: str
) -> dict[str, np.ndarray]:
    """The scores of the tuning split by stratum."""
    if tuning is None:
        raise InputError(
            "learn-then-test: needs thresholds that are not taken from the examples they are tested on: give "
            "--tuning=FILE.npz, a third split of the same model"
        )
    kept = tuning if tuning.is_ood is None else select(tuning, ~tuning.is_ood)
    values = selector_lib.score_of(score, state, kept)
    names = selector_lib.strata(kept, by, ops.predicted_class(Split.of(kept).combined.logits))
    return {str(name): values[names == name] for name in np.unique(names)}


def _threshold(
    how: _How, score: np.ndarray, error: np.ndarray, classes: Sequence[np.ndarray], tuned: np.ndarray
) -> tuple[float, dict[str, Any]]:
    """The threshold of one stratum under which the promise holds in each class (bool [n]), and what is known of it."""
    bound = math.nan
    if how.method.startswith("ltt"):
        if not len(tuned):  # no example to take thresholds from
            cells, last = Cells.attained(score, error), -1
        else:
            fixed = how.method == "ltt_fixed_sequence"
            ladder = thresholds_at(tuned, _coverages(how.method, how.starts))
            cells = Cells.between(ladder, score, error)
            p = np.max([_p_values(ladder, score[c], error[c], how) for c in classes], axis=0)
            at = sorted({int(np.argmax(ladder <= ops.threshold_at_coverage(tuned, s))) for s in how.starts})
            last = int(learn_then_test(p, how.delta, how.method.removeprefix("ltt_"), at if fixed else (0,)))
            bound = math.nan if last < 0 else how.risk
    else:
        cells = Cells.attained(score, error)
        if how.method == "sgr":
            chosen = sgr(cells.n, cells.errors, how.risk, how.delta)
            last, bound = int(chosen.last), float(chosen.bound)
        else:
            lasts = []
            for c in classes:
                own = Cells.attained(score[c], error[c])
                at = int(conformal_risk_control(own.n, own.errors, how.risk))
                lasts.append(-1 if at < 0 else int(np.flatnonzero(cells.score == own.score[at])[0]))
            last = min(lasts)
    accepted, wrong = int(cells.n[: last + 1].sum()), int(cells.errors[: last + 1].sum())
    threshold = math.nan if last < 0 else float(cells.score[last])
    about = {"n": len(score), "accepted": accepted, "errors": wrong, "bound": None if math.isnan(bound) else bound}
    return threshold, about


def _p_values(ladder: np.ndarray, score: np.ndarray, error: np.ndarray, how: _How) -> np.ndarray:
    cells = Cells.between(ladder, score, error)
    return P_VALUES[how.p_value](np.cumsum(cells.errors), np.cumsum(cells.n), how.risk)


class Realised(NamedTuple):
    """What a selector's decisions came to on a split: a description of it. The promise is of the population.

    Attributes:
      stratum: "all", or a group or class of a promise within each.
      n, accepted, errors: examples that are not OOD.
      coverage: share accepted; risk: share of the accepted that are wrong, NaN where there are none; accepted_and_wrong: share of all.
      risk_interval, accepted_and_wrong_interval: exact at 95 % (Clopper–Pearson), of the population behind this split; NaN where
        examples have weights that differ, or come in clusters.
      verdict: of `VERDICTS`.
    """

    stratum: str
    n: int
    accepted: int
    errors: int
    coverage: float
    risk: float
    risk_interval: tuple[float, float]
    accepted_and_wrong: float
    accepted_and_wrong_interval: tuple[float, float]
    verdict: str


VERDICTS = ("held", "did not hold", "open", "nothing accepted")
"""Whether the interval of the promised quantity lies at or below the target, above it, or on both sides."""


def realised(selector: Selector, decision: Decision, predictions: Predictions) -> list[Realised]:
    """Coverage and risk of decisions with intervals, and whether the promise held here.

    A promise with δ may fail with that probability, and a marginal one is an average over calibration sets; that one selector misses
    its target on one population refutes neither.

    Args:
      selector: with its promise; decision, predictions: of the same rows.

    Returns:
      One of all examples; of a promise within each group or class also one for each that is there.
    """
    known = np.ones(len(predictions), bool) if predictions.is_ood is None else ~predictions.is_ood
    within = selector.promise.within
    rows = [_realised("all", known, selector.promise, decision, predictions)]
    if within == "all":
        return rows
    names = selector_lib.strata(predictions, within, decision.prediction)
    return rows + [
        _realised(str(name), known & (names == name), selector.promise, decision, predictions)
        for name in np.unique(names[known])
    ]


def _realised(stratum: str, mine: np.ndarray, promise: Promise, decision: Decision, p: Predictions) -> Realised:
    accept = decision.accept & mine
    wrong = accept & (decision.prediction != p.label)
    n, accepted, errors = int(mine.sum()), int(accept.sum()), int(wrong.sum())
    weight = np.ones(len(p)) if p.weight is None else p.weight
    total, kept, lost = (float(weight[which].sum()) for which in (mine, accept, wrong))
    alike = n == 0 or np.ptp(weight[mine]) == 0
    single = p.cluster is None or len(np.unique(p.cluster[mine])) == n
    missing = (math.nan, math.nan)
    intervals = [
        tuple(float(end) for end in ops.clopper_pearson_interval(errors, of)) if alike and single else missing
        for of in (accepted, n)
    ]
    low, high = intervals[promise.quantity == "accepted and wrong"]
    verdict = "open"
    if not accepted:
        verdict = "nothing accepted"
    elif high <= promise.risk:
        verdict = "held"
    elif low > promise.risk:
        verdict = "did not hold"
    return Realised(
        stratum,
        n,
        accepted,
        errors,
        kept / total if total else math.nan,
        lost / kept if kept else math.nan,
        intervals[0],
        lost / total if total else math.nan,
        intervals[1],
        verdict,
    )


class Monitor(NamedTuple):
    """A watch over losses after deployment, as explicit state; see `update`.

    Attributes:
      risk: r, what was promised; delta: δ, the chance of a false alarm, ever.
      n, total: examples seen, and their total loss.
      evidence: the largest log evidence so far against "the risk is at most r".
      alarm_at: how many had been seen at the first alarm; 0 while there is none.
    """

    risk: float
    delta: float
    n: int = 0
    total: float = 0.0
    evidence: float = 0.0
    alarm_at: int = 0

    @property
    def alarm(self) -> bool:
        """Whether the evidence ever reached ln(1/δ). It stays so."""
        return self.alarm_at > 0

    @property
    def interval(self) -> np.ndarray:
        """[2], the confidence sequence of the mean loss at 1 − δ, valid at all times.

        It needs more than the alarm does: each loss has the same mean given those before it (`ops.confidence_sequence`). After a change
        it is of no one mean. Interval and alarm each spend δ: with probability ≥ 1 − 2δ both are right.
        """
        return ops.confidence_sequence(self.total, self.n, self.delta)

    @property
    def promise(self) -> Promise:
        """What an alarm means."""
        return Promise(
            "time-uniform",
            "selective risk",
            self.risk,
            self.delta,
            assumption="the mean loss of each accepted example given those before it is at most r, unless the promise is broken",
        )


def monitor(risk: float, delta: float) -> Monitor:
    """A monitor that has seen nothing.

    Args:
      risk: r in (0, 1), what was promised; delta: δ in (0, 1).

    Raises:
      ValueError: one is outside (0, 1).
    """
    fresh = Monitor(float(risk), float(delta))
    _ = fresh.promise  # checks both
    return fresh


def update(state: Monitor, losses: Array) -> Monitor:
    """Takes in the losses of accepted examples as their labels become known, in the order in which they do.

    The log evidence against "the risk is at most r" (`ops.log_evidence`) is looked at after every loss. It reaches ln(1/δ) ever with
    probability ≤ δ if each loss has a mean ≤ r given those before it: independence is not needed, nor that risk is constant.
    Batches only group the losses: any division of a stream into batches gives the same state.

    Args:
      state: of `monitor` or `update`; losses: [b], in [0, 1], of accepted examples alone, none chosen for its loss.

    Returns:
      The new state.

    Raises:
      ValueError: a loss is outside [0, 1].

    >>> state = update(monitor(risk=0.05, delta=0.01), [0, 0, 1, 0, 0])
    >>> state.n, state.alarm, update(state, [1, 1, 1]).alarm_at
    (5, False, 8)
    """
    losses = np.asarray(losses, np.float64)
    if not ((losses >= 0) & (losses <= 1)).all():
        raise ValueError("losses must lie in [0, 1]")
    if not losses.size:
        return state
    n = state.n + np.arange(1, len(losses) + 1)
    total = np.cumsum(np.concatenate([[state.total], losses]))[1:]
    evidence = ops.log_evidence(np.minimum(total, n), n, state.risk)
    crossed = evidence >= math.log(1 / state.delta)
    alarm_at = state.alarm_at or (int(n[np.argmax(crossed)]) if crossed.any() else 0)
    most = max(state.evidence, float(evidence.max()))
    return state._replace(n=int(n[-1]), total=float(total[-1]), evidence=most, alarm_at=alarm_at)
