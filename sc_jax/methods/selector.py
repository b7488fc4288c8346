"""One contract for every rejector: a frozen `Selector` that states its promise, and the `Decision` it takes.

A selector is fitted on one named split and applied to others of the same model; it knows the examples it was fitted on and refuses them.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sc_jax import files, ops
from sc_jax.files import InputError
from sc_jax.methods import logit_norm, scod, temperature
from sc_jax.methods import scores as scores_lib
from sc_jax.methods.confidence_head import ConfidenceHead
from sc_jax.methods.evaluation import Split
from sc_jax.ops.activation_scores import React
from sc_jax.ops.feature_scores import KnnBank, Mahalanobis, Residual, Vim
from sc_jax.ops.scores import SircParameters
from sc_jax.predictions import Examples, Predictions, refuse_fitted_on

SCHEMA = 3

KINDS = ("pac", "marginal", "time-uniform")
QUANTITIES = ("selective risk", "accepted and wrong")
STRATA = ("all", "group", "predicted_class", "label")


@dataclasses.dataclass(frozen=True)
class Promise:
    """What holds, of which quantity, how surely.

    Attributes:
      kind: "pac": with probability ≥ 1 − δ over calibration sets the population's quantity is ≤ `risk`; "marginal": its mean over calibration
        sets is ≤ `risk`, and nothing is said of this one; "time-uniform": an alarm is false with probability ≤ δ, however long one looks.
      quantity: "selective risk", P(wrong | accepted), or "accepted and wrong", P(accepted, wrong).
      risk: r, or α of a marginal promise.
      delta: δ; None for a marginal promise, which has none.
      within: "all": of the whole population; "group", "predicted_class", "label": within each group, predicted or true class; those of a
        "pac" promise hold for all of them at once.
      assumption: in words.
    """

    kind: str
    quantity: str
    risk: float
    delta: float | None
    within: str = "all"
    assumption: str = "calibration and test examples are independent draws from one population"

    def __post_init__(self) -> None:
        """Raises ValueError for a promise that no method can make."""
        for name, known in (("kind", KINDS), ("quantity", QUANTITIES), ("within", STRATA)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} {getattr(self, name)!r}: there are {', '.join(known)}")
        if not 0 < self.risk < 1:
            raise ValueError(f"risk must lie in (0, 1); it is {self.risk}")
        if self.kind == "marginal" and self.delta is not None:
            raise ValueError("a marginal promise holds on average over calibration sets and has no δ; leave delta out")
        if self.kind != "marginal" and (self.delta is None or not 0 < self.delta < 1):
            raise ValueError(f"delta must lie in (0, 1); it is {self.delta}")

    def __str__(self) -> str:
        of = {"selective risk": "P(wrong | accepted)", "accepted and wrong": "P(accepted and wrong)"}[self.quantity]
        where = "" if self.within == "all" else f" within each {self.within.replace('_', ' ')}"
        how = {
            "pac": f"with probability ≥ {_one_less(self.delta or 0.0)} over calibration sets",
            "marginal": "on average over calibration sets",
            "time-uniform": f"or an alarm, false with probability ≤ {self.delta} at all times together",
        }[self.kind]
        return f"{of} ≤ {self.risk}{where}, {how}"


def _one_less(delta: float) -> str:
    """1 − δ without rounding up to 1."""
    return f"1 − {delta}" if delta < 1e-6 else str(1 - Decimal(str(delta)))


class Decision(NamedTuple):
    """What is done with n examples.

    Attributes:
      accept: bool [n]; score: float [n], higher is more confident; prediction: int [n], the class that is answered where accepted.
    """

    accept: np.ndarray
    score: np.ndarray
    prediction: np.ndarray


@dataclasses.dataclass(frozen=True)
class Selector:
    """A rejector with its promise. Call it with predictions.

    Attributes:
      method: its name; promise: what holds.
      rule: "threshold": accept iff score ≥ threshold; "singleton": accept iff exactly one class has a nonconformity ≤ threshold.
      score: name in `methods.scores`, of `REJECTORS`, or of the nonconformity score; state: what the score was fitted to, by dotted name.
      by: which threshold an example has: "all", one; "group" or "predicted_class", that of its group or predicted class; "label" (of
        singletons), each class its own.
      thresholds: stratum → threshold, in the unit of the score; NaN accepts nothing. A stratum that is not there accepts nothing.
      fitted_on: the calibration split; tuned_on: those that the score was fitted on, or candidate thresholds taken from.
      about: what the fit saw, by stratum: examples, accepted, errors, and the certified bound; None where nothing is certified, as by a marginal
        method.
    """

    method: str
    promise: Promise
    rule: str
    score: str
    state: Mapping[str, float | str | np.ndarray]
    by: str
    thresholds: Mapping[str, float]
    fitted_on: Examples
    tuned_on: tuple[Examples, ...] = ()
    about: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raises ValueError for rules that cannot be followed: a threshold by label would need the labels it is to do without."""
        if self.rule not in ("threshold", "singleton"):
            raise ValueError(f"rule {self.rule!r}: there are threshold and singleton")
        if self.by not in STRATA or (self.by == "label" and self.rule == "threshold"):
            raise ValueError(f"by {self.by!r}: a {self.rule} cannot depend on it")

    def __call__(self, predictions: Predictions) -> Decision:
        """Decides.

        Args:
          predictions: of the same model, logits [n, k] or [m, n, k].

        Raises:
          InputError: it was fitted on some of these examples, or on the same split, or to another model; what the score or the strata need is
            not there.
        """
        refuse_fitted_on(predictions, (self.fitted_on, *self.tuned_on), "this selector")
        if self.rule == "singleton":
            return self._singletons(predictions)
        score = score_of(self.score, self.state, predictions)
        prediction = ops.predicted_class(Split.of(predictions).combined.logits)
        threshold = self._of_stratum(strata(predictions, self.by, prediction))
        return Decision(score >= threshold, score, prediction)

    def _of_stratum(self, names: np.ndarray) -> np.ndarray:
        unique, index = np.unique(names, return_inverse=True)
        return np.array([self.thresholds.get(str(name), math.nan) for name in unique])[index]

    def _singletons(self, p: Predictions) -> Decision:
        probabilities = np.exp(ops.log_softmax(Split.of(p).combined.logits))
        nonconformity = nonconformity_of(self.score, self.state, probabilities)
        likeliest = ops.predicted_class(probabilities)
        if self.by == "label":
            threshold = np.array([self.thresholds.get(str(k), math.nan) for k in range(p.num_classes)])
        else:
            threshold = self._of_stratum(strata(p, self.by, likeliest))[:, None]
        members = nonconformity <= threshold
        accept = members.sum(axis=-1) == 1
        runner_up = np.partition(nonconformity, 1, axis=-1)[:, 1]
        return Decision(accept, runner_up, np.where(accept, members.argmax(axis=-1), likeliest))


def score_of(name: str, state: Mapping[str, float | str | np.ndarray], predictions: Predictions) -> np.ndarray:
    """A score [n] by name, with what it was fitted to; see `fit_score`.

    Raises:
      InputError: what the score needs is not there.
    """
    if name in REJECTORS:
        return scod.apply(_assembled(REJECTORS[name], state), predictions)
    score = scores_lib.named([name])[name]
    _require(name, score, predictions, predictions)
    split = Split.of(predictions)
    if score.of_members is not None:
        return score.of_members(split.members)
    if score.of is not None:
        return score.of(split.combined.logits)
    if score.of_features is not None:
        return score.of_features(split.combined)
    if score.tuned:
        return logit_norm.apply(logit_norm.LogitNorm(int(state["p"]), {}), split.combined)
    try:
        return score.apply(_assembled(_STATES[name], state), split.combined)
    except ValueError as error:  # other features than it was fitted to
        raise InputError(f"{predictions.source}: score {name!r}: {error}") from error


_STATES = {
    "msp_temperature": temperature.Temperature,
    "msp_pnorm": scores_lib.MspPnorm,
    "mahalanobis": Mahalanobis,
    "knn_distance": KnnBank,
    "residual": Residual,
    "vim": Vim,
    "sirc": (Residual, SircParameters),
    "react": React,
    "confidnet": ConfidenceHead,
}
"""What each fitted score is fitted to: a named tuple of numbers, arrays and named tuples, or a tuple of such."""

REJECTORS: dict[str, typing.Any] = {"scod_plugin": scod.Plugin, "scod_sirc": scod.Sirc}
"""Scores that are fitted rejectors of `methods.scod`; their states name the scores that they are made of."""


def fit_score(name: str, tuning: Predictions | None) -> dict[str, float | str | np.ndarray]:
    """The numbers and arrays that the score is fitted to, by dotted name ("residual.origin"); none for most.

    Args:
      name: in `methods.scores`; tuning: examples that are in neither the calibration nor the test split.

    Raises:
      InputError: the score cannot be fitted here.
    """
    score = scores_lib.named([name])[name]
    if not score.needs_calibration:
        return {}
    if tuning is None:
        raise InputError(
            f"score {name!r}: needs fitting on examples that the threshold is not certified on: give --tuning=FILE.npz, "
            "a third split of the same model"
        )
    _require(name, score, tuning, tuning)
    combined = Split.of(tuning).known.combined
    if score.tuned:
        return {"p": logit_norm.fit(combined, logit_norm.P_GRID, fallback=score.fallback).p}
    try:
        return _taken_apart(score.fit(combined))
    except ValueError as error:  # what it is fitted to does not allow it, such as features without a residual space
        raise InputError(f"{tuning.source}: score {name!r}: {error}") from error


def of_rejector(rejector: scod.Plugin | scod.Sirc) -> tuple[str, dict[str, float | str | np.ndarray]]:
    """A fitted rejector as the name of a score and its state; what it was fitted on is the selector's `tuned_on`."""
    bare = rejector._replace(fitted_on=())
    return next((name, _taken_apart(bare)) for name, kind in REJECTORS.items() if isinstance(bare, kind))


def _taken_apart(state: typing.Any, at: str = "") -> dict[str, float | str | np.ndarray]:
    if isinstance(state, logit_norm.LogitNorm):
        return {f"{at}.p".removeprefix("."): state.p}
    if isinstance(state, str):
        return {at.removeprefix("."): state}
    if state is None:
        return {}
    if isinstance(state, tuple):
        names = getattr(state, "_fields", range(len(state)))
        parts = [_taken_apart(part, f"{at}.{name}") for name, part in zip(names, state, strict=True)]
        return {name: value for part in parts for name, value in part.items()}
    value = np.asarray(state)
    whole = np.issubdtype(value.dtype, np.integer)
    return {at.removeprefix("."): value if value.ndim else int(value) if whole else float(value)}


def _assembled(form: typing.Any, state: Mapping[str, float | str | np.ndarray], at: str = "") -> typing.Any:
    """The inverse of `_taken_apart`, by a form of `_STATES` or `REJECTORS`; of several forms that whose first field is there, or None."""
    if form is scod.Named:
        name = state[f"{at}.name".removeprefix(".")]
        own = logit_norm.LogitNorm if scores_lib.named([name])[name].tuned else _STATES.get(name)
        return scod.Named(name, None if own is None else _assembled(own, state, f"{at}.state"))
    if form is logit_norm.LogitNorm:
        return logit_norm.LogitNorm(int(state[f"{at}.p".removeprefix(".")]), {})
    if isinstance(form, types.UnionType):
        fitting = (
            one
            for one in typing.get_args(form)
            if f"{at}.{getattr(one, '_fields', [''])[0]}".removeprefix(".") in state
        )
        one = next(fitting, None)
        return None if one is None else _assembled(one, state, at)
    if isinstance(form, tuple):
        return tuple(_assembled(part, state, f"{at}.{i}") for i, part in enumerate(form))
    if hasattr(form, "_fields"):
        kinds = typing.get_type_hints(form)
        kept = (name for name in form._fields if name != "fitted_on")
        return form(**{name: _assembled(kinds[name], state, f"{at}.{name}") for name in kept})
    return state[at.removeprefix(".")]


def _require(name: str, score: scores_lib.Score, p: Predictions, tuning: Predictions) -> None:
    reason = scores_lib.obstacle(score, p, tuning)
    if reason is not None:
        raise InputError(f"{p.source}: score {name!r} {reason}")


NONCONFORMITY = ("lac", "aps", "raps", "saps", "top_k")


def nonconformity_of(
    name: str, state: Mapping[str, float | str | np.ndarray], probabilities: np.ndarray, u: np.ndarray | float = 0.0
) -> np.ndarray:
    """A nonconformity score by name.

    Args:
      name: of `NONCONFORMITY`; state: "penalty" and "free" of RAPS, "weight" of SAPS.
      probabilities: [n, k]; u: [n] or one number for all. At 0 the most probable class has a score of 0 in APS, RAPS and SAPS and is in
        every set, so that no set is empty.

    Returns:
      [n, k].

    Raises:
      InputError: the name is unknown.
    """
    u = np.broadcast_to(u, probabilities.shape[:-1])
    if name == "lac":
        return ops.lac(probabilities)
    if name == "aps":
        return ops.aps(probabilities, u)
    if name == "raps":
        return ops.raps(probabilities, u, state["penalty"], int(state["free"]))
    if name == "saps":
        return ops.saps(probabilities, u, state["weight"])
    if name == "top_k":
        return ops.top_k_rank(probabilities)
    raise InputError(f"nonconformity score {name!r}: there are {', '.join(NONCONFORMITY)}")


def strata(predictions: Predictions, by: str, prediction: np.ndarray) -> np.ndarray:
    """The stratum of each example, as str [n]: its group, its predicted class, its label, or "all".

    Raises:
      InputError: groups are asked for and the file has none.
    """
    if by == "all":
        return np.full(len(predictions), "all")
    if by == "group":
        if predictions.group is None:
            raise InputError(f"{predictions.source}, field 'group': is missing; thresholds by group need it")
        return predictions.group.astype(str)
    return (prediction if by == "predicted_class" else predictions.label).astype(str)


def save(path: str | Path, selector: Selector) -> None:
    """Writes a selector as JSON, and beside it, as .npz, its arrays: what its score was fitted to, and what it knows examples by.

    Each file is written whole or not at all, the JSON last; it names the arrays and their fingerprint. Infinite thresholds and NaN are kept, as
    words.
    """
    path = Path(path)
    arrays = {name: value for name, value in selector.state.items() if isinstance(value, np.ndarray)}
    document = {field.name: getattr(selector, field.name) for field in dataclasses.fields(selector)}
    document["promise"] = dataclasses.asdict(selector.promise)
    document["state"] = {name: value for name, value in selector.state.items() if name not in arrays}
    kept = [_examples_apart(on, f"tuned_on.{i}", arrays) for i, on in enumerate(selector.tuned_on)]
    document |= {"fitted_on": _examples_apart(selector.fitted_on, "fitted_on", arrays), "tuned_on": kept}
    document["thresholds"] = {
        name: float(value) if math.isfinite(value) else str(float(value)) for name, value in selector.thresholds.items()
    }
    if arrays:
        files.write_npz(path.with_suffix(".npz"), arrays)
        document["arrays"] = files.fingerprint(arrays)
    files.write_json(path, {"schema": SCHEMA, **document, "says": str(selector.promise)}, seal=True)


_HELD = ("example_id", "rows")


def _examples_apart(on: Examples, at: str, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """The rest, when the arrays were put where arrays go; their names say whose they are."""
    arrays |= {f"{at}.{name}": getattr(on, name) for name in _HELD if getattr(on, name) is not None}
    return {name: value for name, value in on._asdict().items() if name not in _HELD}


def _examples(document: Mapping[str, Any], at: str, arrays: dict[str, np.ndarray]) -> Examples:
    """The inverse of `_examples_apart`; takes its arrays away."""
    on = Examples(**document, **{name: arrays.pop(f"{at}.{name}", None) for name in _HELD})
    for name, kind in (("source", str), ("n", int), ("about", dict), ("num_classes", int), ("form", str)):
        if type(getattr(on, name)) is not kind:
            raise ValueError(f"{at}: {name} {getattr(on, name)!r} is none")
    if on.example_id is not None and (on.example_id.ndim != 1 or on.example_id.dtype.kind not in "iuUS"):
        raise ValueError(f"{at}: ids of type {on.example_id.dtype}")
    if on.rows is not None and (on.rows.ndim != 1 or on.rows.dtype != np.uint64):
        raise ValueError(f"{at}: rows of type {on.rows.dtype}")
    return on


def load(path: str | Path) -> Selector:
    """Reads what `save` wrote. Nothing in the files is run.

    Raises:
      InputError: it is no selector, or one of another schema; its arrays are missing, damaged or another selector's.
    """
    path = Path(path)
    document = files.read_json(path)
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        raise InputError(f"{path}, field 'schema': is not {SCHEMA}; fit the selector again with this version")
    arrays = _arrays_of(path, document["arrays"]) if "arrays" in document else {}
    try:
        document = {field.name: document[field.name] for field in dataclasses.fields(Selector)}
        document["promise"] = Promise(**document["promise"])
        document["fitted_on"] = _examples(document["fitted_on"], "fitted_on", arrays)
        document["tuned_on"] = tuple(
            _examples(on, f"tuned_on.{i}", arrays) for i, on in enumerate(document["tuned_on"])
        )
        document["state"] = {**document["state"], **arrays}
        document["thresholds"] = {name: float(value) for name, value in document["thresholds"].items()}
        return _checked(Selector(**document))
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise InputError(f"{path}: is not a selector ({error}); fit it again") from error


def _checked(selector: Selector) -> Selector:
    """Refuses, by ValueError, what a file may hold and no fit makes: the rest is checked by the classes themselves."""
    for name in ("method", "score"):
        if not isinstance(getattr(selector, name), str):
            raise ValueError(f"{name} {getattr(selector, name)!r} is no text")
    needed, forms = set(), {**_STATES, **REJECTORS}
    if selector.rule == "singleton":
        if selector.score not in NONCONFORMITY:
            raise ValueError(f"score {selector.score!r}: there are {', '.join(NONCONFORMITY)}")
        needed = {"raps": {"penalty", "free"}, "saps": {"weight"}}.get(selector.score, set())
    elif selector.score in forms:
        _assembled(forms[selector.score], selector.state)
    else:
        needed = {"p"} if scores_lib.named([selector.score])[selector.score].tuned else set()
    kinds = (str, np.ndarray) if selector.score in REJECTORS else np.ndarray
    numbers = [value for value in selector.state.values() if not isinstance(value, kinds)]
    finite = all(isinstance(value, (int, float)) and abs(value) < 1e300 for value in numbers)
    if not needed <= set(selector.state) or not finite:
        raise ValueError(f"state {sorted(selector.state)}: {selector.score} needs {sorted(needed)}, finite numbers")
    if not isinstance(selector.about, Mapping):
        raise ValueError("what the fit saw is not there")
    return selector


def _arrays_of(path: Path, fingerprint: str) -> dict[str, np.ndarray]:
    """The arrays beside a selector."""
    beside = path.with_suffix(".npz")
    if not beside.exists():
        raise InputError(f"{beside}: no such file; {path.name} has its arrays there: keep both, or fit it again")
    arrays = files.read_npz(beside)
    if files.fingerprint(arrays) != fingerprint:
        raise InputError(f"{beside}: holds other arrays than {path.name} was written with; fit the selector again")
    return arrays
