"""Ensembles of stored members: combining, weighting, merging files, diversity, and metrics against the number of members.

Members are the leading axis of `logits` [m, n, k]; nothing here trains. "probability" averages the members' probabilities (an
arithmetic mean, the prediction of a deep ensemble), "logit" averages their logits (up to normalisation a geometric mean).
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple, NoReturn

import numpy as np
from array_api_compat import array_namespace, is_numpy_namespace
from scipy.special import logsumexp

from sc_jax import ops
from sc_jax.files import InputError
from sc_jax.ops import resampling
from sc_jax.ops.ranking import Array, real
from sc_jax.ops.summary import RISKS
from sc_jax.predictions import Predictions, by_id, require_ids, select

Space = Literal["probability", "logit"]
"""Where members are averaged."""


def combine(logits: Array, weights: Array | None = None, space: Space = "probability") -> Array:
    """Members as one classifier: ln Σ_m w_m softmax(v_m) in probability space, Σ_m w_m v_m in logit space.

    Both stay in the log domain: nothing saturates or underflows. A shift of a member's logits changes no probability of either.

    Args:
      logits: [m, n, k], NumPy (computed in float64) or another library (JAX: in at least float32).
      weights: [m] of the same library, ≥ 0 and summing to 1; by default all are 1/m. A member of weight 0 plays no part.
      space: "probability" or "logit".

    Returns:
      [n, k]: log-probabilities, or logits.

    Raises:
      ValueError: not [m, n, k], (host) weights that do not lie on the simplex, an unknown space, or in logit space a row where
        every class has probability exactly 0 for some member.

    Source: Lakshminarayanan, Pritzel & Blundell, NeurIPS 2017 (probabilities); Wood et al., JMLR 2023, section 4 (the normalised
    geometric mean is the combination that belongs to log loss; the section is from memory).

    >>> p = np.array([[[0.8, 0.2]], [[0.5, 0.5]]])
    >>> [round(float(value), 12) for value in np.exp(combine(np.log(p)))[0]]
    [0.65, 0.35]
    >>> geometric = np.exp(ops.log_softmax(combine(np.log(p), space="logit")))[0]  # √(0.8·0.5) : √(0.2·0.5) = 2 : 1
    >>> [round(float(value), 12) for value in geometric]
    [0.666666666667, 0.333333333333]
    """
    _check_space(space)
    if logits.ndim != 3 or 0 in logits.shape:
        raise ValueError(f"the logits of members must be [m, n, k], none of them 0; they are {list(logits.shape)}")
    weights = None if weights is None else _on_simplex(weights, logits.shape[0])
    if space == "probability":
        return ops.ensemble_log_probabilities(logits, weights)
    xp, v = array_namespace(logits), real(logits)
    if weights is None:
        mean = xp.mean(v, axis=0)
    else:
        w = xp.reshape(xp.astype(weights, v.dtype), (-1, 1, 1))
        mean = xp.sum(xp.where(w > 0, w * xp.where(w > 0, v, 0.0), 0.0), axis=0)
    if is_numpy_namespace(xp) and np.isneginf(mean.max(axis=-1)).any():
        raise ValueError(
            "in some rows each class has probability 0 for some member: a mean of logits is not defined there"
        )
    return mean


def _check_space(space: str) -> None:
    if space not in ("probability", "logit"):
        raise ValueError(f"space must be 'probability' or 'logit'; it is {space!r}")


def _on_simplex(weights: Array, m: int) -> Array:
    if weights.shape != (m,):
        raise ValueError(f"weights must be [m] = [{m}]; they are {list(weights.shape)}")
    if is_numpy_namespace(array_namespace(weights)) and not ((weights >= 0).all() and abs(weights.sum() - 1) < 1e-6):
        raise ValueError(f"weights must be ≥ 0 and sum to 1; they are {weights.tolist()}")
    return weights


class EnsembleWeights(NamedTuple):
    """What was fitted.

    Attributes:
      weights: [m], on the simplex; space: where the weighted mean is taken.
      log_loss: of the weighted ensemble on the calibration split, in nats; equal_log_loss: of equal weights.
      gap: by how much at most, in nats, any weights could be better there.
      members: what tells the members apart (tags), where the file says it, else None.
      fitted_on: the split.
    """

    weights: np.ndarray
    space: Space
    log_loss: float
    equal_log_loss: float
    gap: float
    members: list[Any] | None
    fitted_on: str


def fit_weights(calibration: Predictions, space: Space = "probability") -> EnsembleWeights:
    """Weights w on the simplex of least log loss L(w) on `calibration`, with its survey weights u where it has them.

        probability:  L(w) = −Σ_i u_i ln Σ_m w_m p_im(y_i)           logit:  L(w) = Σ_i u_i (logsumexp_k(v̄_ik) − v̄_i,y), v̄ = Σ_m w_m v_m

    with u scaled to sum to 1. Both are convex in w, so a point that meets the conditions of Karush, Kuhn and Tucker is a global
    minimum: with g = ∇L, g_m is the same for all members of positive weight and not less for the others. Solved in float64 by Newton's
    method with a logarithmic barrier (an interior-point method). By convexity L(w) − min L ≤ g·w − min_m g_m, the `gap` that is
    returned; weights below 1e-9 are set to 0 where that costs nothing. Expectation maximisation for mixture weights ends at the same
    point in probability space, but needs very many steps where members are alike. Copies of a member share a weight equally.

    Args:
      calibration: logits [m, n, k] of a named split that is not the one reported on. `is_ood` examples are left out.
      space: where the weighted mean is taken.

    Raises:
      InputError: there are no members; an example's true class has probability 0 for all members (in logit space: any probability is 0).

    Source: Boyd & Vandenberghe, Convex Optimization, 2004, ch. 11 (the barrier method, from memory); the rest is derived here.
    """
    _check_space(space)
    given = _members_of(calibration)
    if given.is_ood is not None and given.is_ood.any():
        if given.is_ood.all():
            _refuse(given, "is_ood", "all examples are from outside", "calibrate on the training distribution")
        given = select(given, ~given.is_ood)
    u = np.ones(len(given)) if given.weight is None else given.weight.astype(np.float64)
    if u.sum() == 0:
        _refuse(given, "weight", "all examples that are not is_ood have weight 0", "weigh at least one")
    u = u / u.sum()
    objective = _probability_loss(given, u) if space == "probability" else _logit_loss(given, u)
    m = len(given.logits)
    equal = np.full(m, 1 / m)
    weights, loss, gap = _minimise_on_simplex(objective, equal)
    split = calibration.provenance.get("split", calibration.source)
    return EnsembleWeights(weights, space, loss, objective(equal)[0], gap, _identities(calibration), split)


_Objective = Callable[[np.ndarray], tuple[float, np.ndarray, np.ndarray]]  # weights → value, gradient, Hessian


def _probability_loss(given: Predictions, u: np.ndarray) -> _Objective:
    own = np.stack([-ops.log_loss(member, given.label) for member in given.logits], axis=1)
    best = own.max(axis=1)
    bad = np.isneginf(best) & (u > 0)
    if bad.any():
        problem = (
            f"all members give the true class of {bad.sum()} examples probability 0 (first {given.example_id[bad][0]})"
        )
        _refuse(given, "probs", problem, "no weights have a finite log loss; smooth the probabilities")
    own, best, u = own[u > 0], best[u > 0], u[u > 0]
    p = np.exp(own - best[:, None])  # relative to the best member

    def objective(w: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
        mixed = p @ w
        if (mixed == 0).any():
            return math.inf, np.zeros_like(w), np.zeros((len(w), len(w)))
        ratio = p / mixed[:, None]
        return float(-(u @ (np.log(mixed) + best))), -(u @ ratio), (ratio * u[:, None]).T @ ratio

    return objective


def _logit_loss(given: Predictions, u: np.ndarray) -> _Objective:
    if not np.isfinite(given.logits).all():
        _refuse(given, "probs", "some probabilities are exactly 0", "average in probability space")
    m, n, k = given.logits.shape
    rows = max(1, (1 << 21) // (m * k))

    def objective(w: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
        value, gradient, hessian = 0.0, np.zeros(m), np.zeros((m, m))
        for start in range(0, n, rows):
            part = slice(start, min(start + rows, n))
            v = given.logits[:, part].astype(np.float64)
            label = given.label[part]
            v = v - v[:, np.arange(len(label)), label][..., None]  # the true class has logit 0
            log_p = ops.log_softmax(np.tensordot(w, v, 1))
            p = np.exp(log_p) * u[part, None]
            mean = np.einsum("mnk,nk->mn", v, np.exp(log_p))
            value -= u[part] @ log_p[np.arange(len(label)), label]
            gradient += mean @ u[part]
            spread = (v - mean[..., None]).reshape(m, -1)
            hessian += (spread * p.reshape(-1)) @ spread.T
        return float(value), gradient, hessian

    return objective


def _minimise_on_simplex(objective: _Objective, start: np.ndarray) -> tuple[np.ndarray, float, float]:
    """The minimum of a convex function over the simplex: weights, value, and how far above the minimum it may be.

    Newton's method on L(w) − μ Σ_m ln w_m with Σ_m w_m = 1, for smaller and smaller μ; at the minimum of each, m·μ bounds the distance.
    """
    w, m = start, len(start)
    now = objective(w)
    scale = max(1.0, float(np.ptp(now[1])))
    mu = scale
    while mu * m > 1e-13 * scale:
        mu /= 8
        for _step in range(200):
            value, gradient, hessian = now
            # In s with dw = w·s, so that weights of all sizes are alike to the linear solver.
            system = np.zeros((m + 1, m + 1))
            system[:m, :m] = w[:, None] * hessian * w + mu * np.eye(m)
            system[m, :m] = system[:m, m] = w
            slope = w * (gradient - gradient @ w) - mu
            s = np.linalg.solve(system, np.append(-slope, 0.0))[:m]
            decrement = -float(slope @ s)
            if decrement <= 1e-4 * mu:
                break
            length = min(1.0, 0.95 / max(1e-300, float(-s.min())))
            while length > 1e-14:
                there = w * (1 + length * s)
                there /= there.sum()
                now = objective(there)
                fall = value - now[0] + mu * float(np.log(there / w).sum())
                if fall >= 1e-4 * length * decrement - 1e-15 * abs(value):
                    break
                length /= 2
            else:
                now = value, gradient, hessian
                break
            w = there

    def distance(gradient: np.ndarray, at: np.ndarray) -> float:
        return max(0.0, float(gradient @ at - gradient.min()))

    gap = distance(now[1], w)
    kept = np.where(w < 1e-9, 0.0, w)  # what the barrier alone keeps from 0
    kept /= kept.sum()
    value, gradient, _hessian = objective(kept)
    if math.isfinite(value) and distance(gradient, kept) <= max(gap, 1e-10 * scale):
        return kept, value, distance(gradient, kept)
    return w, now[0], gap


def apply(state: EnsembleWeights, predictions: Predictions) -> Predictions:
    """The weighted ensemble as one classifier, logits [n, k]; `provenance["ensemble"]` says of which members, with which weights.

    Log-probabilities in probability space. In logit space logits, or, where the members have log-probabilities, those of their
    normalised geometric mean.

    Args:
      state: what was fitted; predictions: the same members, in the same order, on another split.

    Raises:
      InputError: other members, or another number of them.
    """
    given = _members_of(predictions)
    if len(given.logits) != len(state.weights):
        problem = f"has {len(given.logits)} members, weights were fitted for {len(state.weights)}"
        _refuse(given, "logits", problem, "give the same members")
    members = _identities(given)
    if state.members is not None and members is not None and members != state.members:
        problem = f"are {members}, weights were fitted for {state.members}"
        _refuse(given, "members", problem, "stack the same members in the same order")
    logits = combine(given.logits, state.weights, state.space)
    if state.space == "logit" and given.log_probabilities:
        logits = ops.log_softmax(logits)
    ensemble = {
        "space": state.space,
        "weights": [float(w) for w in state.weights],
        "members": members if members is not None else list(range(len(state.weights))),
        "fitted_on": state.fitted_on,
    }
    return dataclasses.replace(
        given,
        logits=logits,
        log_probabilities=state.space == "probability" or given.log_probabilities,
        provenance={**given.provenance, "ensemble": ensemble},
    )


def _members_of(predictions: Predictions) -> Predictions:
    if predictions.logits.ndim != 3:
        problem = f"has shape {predictions.logits.shape}, one model"
        _refuse(predictions, "logits", problem, "give members [m, n, k]; `stack` merges files of single models")
    return predictions


def _identities(predictions: Predictions) -> list[Any] | None:
    """The tags of each member, where the file says them."""
    members = predictions.provenance.get("members")
    if not isinstance(members, list) or not all(isinstance(one, dict) and "tags" in one for one in members):
        return None
    return [one["tags"] for one in members]


def _refuse(predictions: Predictions, field: str, problem: str, remedy: str) -> NoReturn:
    raise InputError(f"{predictions.source}, field {field!r}: {problem}; {remedy}")


def stack(parts: Sequence[Predictions], space: Space = "probability") -> Predictions:
    """Files of several models on the same examples as members of one: logits [m, n, k], examples in order of id.

    Rows of a file without ids are known by their number; labels are all that tells then whether two files have the same order.

    Where some files have logits and others probabilities, all become log-probabilities, which serves probability space; in
    logit space that is refused. Features and last layers stay behind: each model has its own. `weight`, `group`, `cluster` and
    `is_ood` come from the files that have them.

    Args:
      parts: of [n, k] or [m, n, k], whose members come one after the other; space: where they will be averaged.

    Returns:
      `Predictions`. Its provenance keeps what all files agree on; "members" lists the provenance of each.

    Raises:
      InputError: names the file whose ids, labels, number of classes, split or other columns are not those of the first, or
        which has probabilities among logits.

    >>> a = Predictions(np.array([0, 1]), np.array([[2.0, 0.0], [0.0, 1.0]]), np.array([7, 3]))
    >>> b = Predictions(np.array([1, 0]), np.array([[0.5, 4.0], [3.0, 0.0]]), np.array([3, 7]))
    >>> stack([a, b]).logits[:, 0].tolist()  # of example 3
    [[0.0, 1.0], [0.5, 4.0]]
    """
    _check_space(space)
    if not parts:
        raise ValueError("stack needs at least one Predictions")
    first, *others = parts = [by_id(part) for part in parts]
    columns = {name: getattr(first, name) for name in ("is_ood", "weight", "group", "cluster")}
    for part in others:
        require_ids(part, first.example_id, first.source)
        if len(part) != len(first):
            _refuse(part, "example_id", "some are repeated", "write every example exactly once")
        if part.num_classes != first.num_classes:
            problem = f"has k = {part.num_classes} classes, {first.source} has {first.num_classes}"
            _refuse(part, "logits", problem, "stack models of the same classes")
        _require_equal(part, "label", part.label, first)
        mine, wanted = (one.provenance.get("split") for one in (part, first))
        if mine is not None and wanted is not None and mine != wanted:
            _refuse(part, "split", f"is {mine!r}, of {first.source} {wanted!r}", "stack one split")
        for name, column in columns.items():
            if column is None:
                columns[name] = getattr(part, name)
            elif getattr(part, name) is not None:
                _require_equal(part, name, getattr(part, name), dataclasses.replace(first, **{name: column}))
        if space == "logit" and part.log_probabilities != first.log_probabilities:
            said, other = ("probabilities", "logits") if part.log_probabilities else ("logits", "probabilities")
            remedy = "a mean of logits needs logits of all; average in probability space"
            _refuse(
                part, "probs" if part.log_probabilities else "logits", f"has {said}, {first.source} {other}", remedy
            )
    as_probabilities = any(part.log_probabilities for part in parts)
    logits = [
        ops.log_softmax(part.logits) if as_probabilities and not part.log_probabilities else part.logits
        for part in parts
    ]
    members = [about for part in parts for about in _members_about(part)]
    common = {
        key: value
        for key, value in first.provenance.items()
        if key not in ("fingerprint", "members") and all(part.provenance.get(key) == value for part in others)
    }
    return Predictions(
        first.label,
        np.concatenate([one.reshape(-1, *one.shape[-2:]) for one in logits]),
        first.example_id,
        **columns,
        log_probabilities=as_probabilities,
        ids_given=any(part.ids_given for part in parts),
        provenance={**common, "members": members},
        source=f"{first.source} and {len(others)} more" if others else first.source,
    )


def _members_about(part: Predictions) -> list[dict[str, Any]]:
    """The provenance of each member, which a stacked file knows."""
    m = len(part.logits) if part.logits.ndim == 3 else 1
    known = part.provenance.get("members")
    return known if isinstance(known, list) and len(known) == m else [{"source": part.source, **part.provenance}] * m


def _require_equal(part: Predictions, field: str, column: np.ndarray, first: Predictions) -> None:
    different = column != getattr(first, field)
    if different.any():
        example = part.example_id[different][0]
        problem = f"differs from that of {first.source} for {different.sum()} examples (first example_id {example})"
        _refuse(part, field, problem, "stack files of the same examples")


class Diversity(NamedTuple):
    """How members differ, and what their average gains. Matrices [m, m] are symmetric; undefined values are NaN.

    With N_ab the share of examples on which member i is right (a = 1) or wrong (0) and member j right or wrong (b):

    Attributes:
      disagreement: share of examples on which the two predict different classes.
      kappa: Cohen's κ of the two predictions, (agreement − chance)/(1 − chance); chance from how often each predicts each class.
      error_disagreement: N_10 + N_01, exactly one is wrong.
      q_statistic: Yule's Q, (N_11 N_00 − N_10 N_01)/(N_11 N_00 + N_10 N_01).
      error_correlation: Pearson's of the two errors, (N_11 N_00 − N_10 N_01)/√(product of both members' rates right and wrong).
      double_fault: N_00, both are wrong.
      error_kappa: Cohen's κ of the two errors.
      member_error, member_nll, member_brier: [m]; ensemble_error, ensemble_nll, ensemble_brier: of the combination.
      nll_gap, brier_gap: weighted mean of the members' loss − loss of the ensemble.
    """

    disagreement: np.ndarray
    kappa: np.ndarray
    error_disagreement: np.ndarray
    q_statistic: np.ndarray
    error_correlation: np.ndarray
    double_fault: np.ndarray
    error_kappa: np.ndarray
    member_error: np.ndarray
    member_nll: np.ndarray
    member_brier: np.ndarray
    ensemble_error: float
    ensemble_nll: float
    ensemble_brier: float
    nll_gap: float
    brier_gap: float

    def pair_means(self) -> dict[str, float]:
        """Mean of each matrix over the pairs i < j; NaN for one member, and where the value of any pair is NaN."""
        above = np.triu_indices(len(self.disagreement), 1)
        means = {}
        for name in PAIRWISE:
            pairs = getattr(self, name)[above]
            means[name] = float(pairs.mean()) if len(pairs) else math.nan
        return means


PAIRWISE = (
    "disagreement",
    "kappa",
    "error_disagreement",
    "q_statistic",
    "error_correlation",
    "double_fault",
    "error_kappa",
)
"""The fields of `Diversity` that are matrices over pairs of members."""


def diversity(
    logits: np.ndarray,
    label: np.ndarray,
    space: Space = "probability",
    *,
    member_weights: np.ndarray | None = None,
    weight: np.ndarray | None = None,
) -> Diversity:
    """How the members differ in what they predict and in what they get wrong, and what that is worth.

    The gaps are never negative, up to rounding, but for Brier in logit space:
    - NLL, probability: Jensen's gap, the mean over examples of ln Σ_m w_m e^{d_m}, d_m = ln p_m(y) − Σ_j w_j ln p_j(y).
    - NLL, logit: −ln Σ_k Π_m p_m(k)^{w_m} = Σ_m w_m KL(p̄ ‖ p_m), which needs no labels.
    - Brier, probability: the ambiguity Σ_m w_m ‖p_m − p̄‖², which needs no labels either.

    Args:
      logits: [m, n, k]; label: int [n]; space: how members are combined.
      member_weights: [m], on the simplex; equal by default. They enter the combination and the gaps, not the pairs.
      weight: [n] survey weights.

    Returns:
      `Diversity`.

    Raises:
      ValueError: as `combine`; labels that are none; all weights are 0.

    Source: Kuncheva & Whitaker, Machine Learning 2003 (Q, correlation, disagreement, double fault, of errors); Margineantu &
    Dietterich, ICML 1997 (κ of predictions); Krogh & Vedelsby, NIPS 1995 (ambiguity); Wood et al., "A unified theory of diversity
    in ensemble learning", JMLR 2023 (log loss). All from memory; the identities are derived, and held by tests.
    """
    combined = combine(logits, member_weights, space)
    m, n, k = logits.shape
    u = np.ones(n) if weight is None else np.asarray(weight, np.float64)
    w = np.full(m, 1 / m) if member_weights is None else np.asarray(member_weights, np.float64)
    total = u.sum()
    if not total > 0:
        raise ValueError("weights must not all be 0")
    predicted = ops.predicted_class(logits)
    wrong = (predicted != label).astype(np.float64)
    right = 1 - wrong
    both_wrong, both_right, first_alone = (wrong * u) @ wrong.T, (right * u) @ right.T, (right * u) @ wrong.T
    second_alone = first_alone.T
    same = np.stack([(predicted == one) @ u for one in predicted])
    votes = np.stack([np.bincount(one, u, k) for one in predicted])
    rates = np.stack([wrong @ u, right @ u], axis=1)
    product, cross = both_right * both_wrong, first_alone * second_alone
    spread = np.sqrt(rates.prod(axis=1)[:, None] * rates.prod(axis=1))

    losses = [(ops.log_loss(one, label), ops.brier_loss(one, label)) for one in (*logits, combined)]
    nll, brier = (np.array([_mean(one[i], u) for one in losses]) for i in (0, 1))
    log_p = np.stack([ops.log_softmax(one) for one in logits])
    if space == "probability":
        p = np.exp(log_p)
        brier_gap = _mean(w @ ((p - np.tensordot(w, p, 1)) ** 2).sum(axis=-1), u)
    else:
        brier_gap = w @ brier[:-1] - brier[-1]
    return Diversity(
        disagreement=(total - same) / total,
        kappa=_cohen(same, votes @ votes.T, total),
        error_disagreement=(first_alone + second_alone) / total,
        q_statistic=_ratio(product - cross, product + cross),
        error_correlation=_ratio(product - cross, spread),
        double_fault=both_wrong / total,
        error_kappa=_cohen(both_right + both_wrong, rates @ rates.T, total),
        member_error=rates[:, 0] / total,
        member_nll=nll[:-1],
        member_brier=brier[:-1],
        ensemble_error=float(_mean(ops.predicted_class(combined) != label, u)),
        ensemble_nll=float(nll[-1]),
        ensemble_brier=float(brier[-1]),
        nll_gap=float(_mean(_nll_gap(log_p, label, w, space), u)),
        brier_gap=float(brier_gap),
    )


def _cohen(agree: np.ndarray, chance: np.ndarray, total: float) -> np.ndarray:
    """κ of weighted counts: agree [m, m], chance = Σ_c counts_i(c) counts_j(c)."""
    return _ratio(agree / total - chance / total**2, 1 - chance / total**2, 1e-12)


def _ratio(part: np.ndarray, whole: np.ndarray, least: float = 0.0) -> np.ndarray:
    known = whole > least
    return np.where(known, part / np.where(known, whole, 1), np.nan)


def _nll_gap(log_p: np.ndarray, label: np.ndarray, w: np.ndarray, space: Space) -> np.ndarray:
    """Of each example [n]; +inf where a member, and NaN where every one, gives the true class probability 0."""
    log_p, w = log_p[w > 0], w[w > 0]
    own = log_p[:, np.arange(len(label)), label]
    impossible = np.isneginf(own)
    if space == "logit":  # the mean has probability 0 where any member has
        gap = np.maximum(0.0, -logsumexp(np.tensordot(w, log_p, 1), axis=-1))
        return np.where(impossible.any(axis=0), np.nan, gap)
    finite = np.where(impossible, 0.0, own)
    d = finite - w @ finite
    near = (np.abs(d) < 1).all(axis=0)
    small = np.where(near, d, 0.0)
    close = np.log1p(w @ np.maximum(np.expm1(small) - small, 0.0))  # Σ_m w_m d_m = 0
    top = np.where(impossible.all(axis=0), 0.0, own.max(axis=0))
    mixed = np.where(impossible.all(axis=0), 1.0, w @ np.exp(own - top))
    apart = top + np.log(mixed) - w @ finite
    gap = np.where(near, close, np.maximum(apart, 0.0))
    return np.where(impossible.all(axis=0), np.nan, np.where(impossible.any(axis=0), np.inf, gap))


def _mean(values: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Weighted mean of values [n], which may be infinite; weight [..., n]. What has weight 0 plays no part."""
    infinite = np.isposinf(values)
    undefined = np.isnan(values)
    with np.errstate(invalid="ignore", divide="ignore"):  # a resample may draw no weight at all
        mean = weight @ np.where(infinite | undefined, 0.0, values) / weight.sum(axis=-1)
    mean = np.where((weight[..., infinite] > 0).any(axis=-1), np.inf, mean)
    return np.where((weight[..., undefined] > 0).any(axis=-1), np.nan, mean)


def member_subsets(m: int, size: int, most: int, rng: np.random.Generator) -> list[tuple[int, ...]]:
    """Subsets of 0..m − 1 in increasing order: all of that size if there are no more than `most`, else `most` distinct ones, drawn.

    Args:
      m, size: 1 ≤ size ≤ m; most: ≥ 1; rng: of the draws.
    """
    if math.comb(m, size) <= most:
        return list(itertools.combinations(range(m), size))
    drawn: set[tuple[int, ...]] = set()
    while len(drawn) < most:
        drawn.add(tuple(sorted(rng.choice(m, size, replace=False).tolist())))
    return sorted(drawn)


class SubsetCurve(NamedTuple):
    """Metrics against the number of members; see `subset_curve` for what the intervals cover.

    Attributes:
      metrics: their names; sizes: int [s], numbers of members.
      subsets: for each size the subsets of members, int [c, size]; complete: bool [s], whether these are all there are.
      values: for each size the metrics of its subsets, [metrics, c].
      mean: [metrics, s], over the subsets.
      between_subsets, over_examples, crossed: [metrics, s, 2], intervals; NaN where there are none.
    """

    metrics: tuple[str, ...]
    sizes: np.ndarray
    subsets: tuple[np.ndarray, ...]
    complete: np.ndarray
    values: tuple[np.ndarray, ...]
    mean: np.ndarray
    between_subsets: np.ndarray
    over_examples: np.ndarray
    crossed: np.ndarray

    def rows(
        self, name: str, interval: Literal["between_subsets", "over_examples", "crossed"] = "between_subsets"
    ) -> list[dict[str, Any]]:
        """A row per metric and size, ready for JSON and for `figures.members`; `name` is how the line is called."""
        covers = {
            "between_subsets": "subsets of these members",
            "over_examples": "test examples",
            "crossed": "subsets of these members × test examples",
        }
        ends = getattr(self, interval)
        return [
            {
                "name": name,
                "metric": metric,
                "members": int(size),
                "subsets": len(self.subsets[place]),
                "mean": float(self.mean[row, place]),
                "interval": [float(end) for end in ends[row, place]],
                "interval_covers": covers[interval],
            }
            for row, metric in enumerate(self.metrics)
            for place, size in enumerate(self.sizes)
        ]


class _Outputs(NamedTuple):
    """Of one subset, [n] each: whether it is wrong, its score, its losses; None where no metric asks for it."""

    error: np.ndarray | None
    score: np.ndarray | None
    nll: np.ndarray | None
    brier: np.ndarray | None


def _of_ranking(metric: Callable[..., np.ndarray], *options: Any) -> Callable[..., np.ndarray]:
    return lambda of, weight: metric(of.score, of.error, *options, weight=weight)


def _mean_of(field: str) -> Callable[[_Outputs, np.ndarray | None], np.ndarray]:
    def mean(of: _Outputs, weight: np.ndarray | None) -> np.ndarray:
        values = getattr(of, field)
        return _mean(values, np.ones(len(values)) if weight is None else weight)

    return mean


SUBSET_METRICS: dict[str, Callable[[_Outputs, np.ndarray | None], np.ndarray]] = {
    "nll": _mean_of("nll"),
    "brier": _mean_of("brier"),
    "error": _mean_of("error"),
    "aurc": _of_ranking(ops.aurc),
    "naurc": _of_ranking(ops.naurc),
    "failure_auroc": _of_ranking(ops.failure_auroc),
    **{f"coverage_at_risk_{risk}": _of_ranking(ops.coverage_at_risk, risk) for risk in RISKS},
}
"""What `subset_curve` knows: name → function of the outputs of a subset and weights [..., n]."""


def _outputs(
    logits: np.ndarray,
    label: np.ndarray,
    subsets: Sequence[tuple[int, ...]],
    space: Space,
    score: Callable[[np.ndarray], np.ndarray],
    metrics: Sequence[str],
) -> dict[tuple[int, ...], _Outputs]:
    """Outputs of each subset, in chunks of examples."""
    m, n, k = logits.shape
    ranked = not {"nll", "brier", "error"}.issuperset(metrics)
    needed = {
        "error": (bool, lambda v, y: ops.predicted_class(v) != y, ranked or "error" in metrics),
        "score": (np.float64, lambda v, y: score(v), ranked),
        "nll": (np.float64, ops.log_loss, "nll" in metrics),
        "brier": (np.float64, ops.brier_loss, "brier" in metrics),
    }
    functions = {name: function for name, (_dtype, function, wanted) in needed.items() if wanted}
    columns = {
        subset: _Outputs(*(np.empty(n, dtype) if wanted else None for dtype, _function, wanted in needed.values()))
        for subset in sorted(subsets)
    }
    rows = max(1, (1 << 20) // (m * k))
    for start in range(0, n, rows):
        part = slice(start, min(start + rows, n))
        for subset, combined in _running(logits[:, part], list(columns), space):
            for name, function in functions.items():
                getattr(columns[subset], name)[part] = function(combined, label[part])
    return columns


_SMALLEST = 1e-290
"""Below this a running sum of relative probabilities has begun to underflow."""


def _running(
    logits: np.ndarray, subsets: Sequence[tuple[int, ...]], space: Space
) -> Iterator[tuple[tuple[int, ...], np.ndarray]]:
    """`combine` of each subset, by running sums; subsets in lexicographic order share what they begin with."""
    if space == "probability":
        log_p = ops.log_softmax(logits)
        best = log_p.max(axis=0)
        possible = best > -np.inf
        best = np.where(possible, best, 0.0)
        terms = np.exp(log_p - best)  # relative to the member that gives the class most
    else:
        terms = np.asarray(logits, np.float64)
    sums: list[np.ndarray] = []
    last: tuple[int, ...] = ()
    for subset in subsets:
        shared = next(
            (i for i, (a, b) in enumerate(zip(subset, last, strict=False)) if a != b), min(len(subset), len(last))
        )
        del sums[shared:]
        for member in subset[shared:]:
            sums.append(sums[-1] + terms[member] if sums else terms[member])
        last, total = subset, sums[-1]
        if space == "logit":
            yield subset, total / len(subset)
            continue
        with np.errstate(divide="ignore"):
            combined = best + np.log(total / len(subset))
        low = ((total < _SMALLEST) & possible).any(axis=-1)
        if low.any():
            combined[low] = combine(logits[list(subset)][:, low])
        yield subset, combined


def _resampled(
    metric: Callable[[_Outputs, np.ndarray | None], np.ndarray],
    of: _Outputs,
    weight: np.ndarray | None,
    counts: np.ndarray,
) -> np.ndarray:
    """The metric on each resample, [b]."""
    parts = [counts[rows] if weight is None else counts[rows] * weight for rows in resampling.chunks(counts)]
    return np.concatenate([metric(of, part) for part in parts])


def subset_curve(
    logits: np.ndarray,
    label: np.ndarray,
    metrics: Sequence[str] = ("nll", "brier", "error", "aurc", "naurc", "failure_auroc", "coverage_at_risk_0.05"),
    sizes: Sequence[int] | None = None,
    *,
    space: Space = "probability",
    score: Callable[[np.ndarray], np.ndarray] = ops.msp,
    most: int = 20,
    seed: int = 0,
    weight: np.ndarray | None = None,
    groups: np.ndarray | None = None,
    resamples: int = 0,
    level: float = 0.95,
) -> SubsetCurve:
    """Metrics of ensembles of s of the m stored members with equal weights, for each size s, over subsets of the members.

    One pass over the examples: subsets are taken in lexicographic order, so that each is a running sum of a shorter one and a
    member. Three intervals, percentile, of different things:
    - `between_subsets`: quantiles of the metric over the subsets, on these test examples. Subsets share members, the more the larger
      they are, so their spread is less than that of ensembles trained independently, and it shrinks to nothing at s = m
      whatever the noise of training. NaN for a single subset. Read it near s = m as no statement about new ensembles.
    - `over_examples`: bootstrap of the mean over these subsets, the subsets held fixed: of new test examples, not of new members.
    - `crossed`: quantiles over all pairs of a subset and a resample: one ensemble drawn from these members, on new test examples. It
      has the limits of the first.

    Args:
      logits: [m, n, k]; label: int [n].
      metrics: of "nll", "brier", "error", "aurc", "naurc", "failure_auroc" and "coverage_at_risk_0.01", "…_0.02", "…_0.05".
      sizes: numbers of members; by default 1 to m.
      space: where members are averaged.
      score: of the combined outputs [n, k] → [n], for the metrics of ranking; one that needs true logits has them in logit space alone.
      most: subsets of a size; seed: of drawing these where there are more, and seed + 1 of the resamples.
      weight: [n] survey weights; groups: [n], clusters of examples that are drawn whole.
      resamples: of the examples, 0 for none (the last two intervals are NaN); level: of the intervals.

    Returns:
      `SubsetCurve`. It holds the scores and losses of all subsets meanwhile: up to 25 bytes per example and subset.

    Raises:
      ValueError: an unknown metric, a size outside 1..m, `most` < 1.

    >>> rng = np.random.default_rng(0)
    >>> label = rng.integers(0, 3, 500)
    >>> logits = rng.normal(size=(4, 500, 3)) + 2 * np.eye(3)[label]
    >>> curve = subset_curve(logits, label, ["nll"])
    >>> [len(subsets) for subsets in curve.subsets]
    [4, 6, 4, 1]
    >>> bool((np.diff(curve.mean[0]) < 0).all())  # more members, less log loss: by Jensen's inequality, in the mean over subsets
    True
    """
    _check_space(space)
    m, n, _ = logits.shape
    metrics = tuple(metrics)
    unknown = [name for name in metrics if name not in SUBSET_METRICS]
    if unknown or not metrics:
        raise ValueError(f"metrics must be of {', '.join(SUBSET_METRICS)}; they are {list(metrics)}")
    sizes = range(1, m + 1) if sizes is None else sizes
    if len(sizes) == 0 or min(sizes) < 1 or max(sizes) > m or len(set(sizes)) < len(sizes):
        raise ValueError(f"sizes must be distinct numbers from 1 to m = {m}; they are {list(sizes)}")
    if most < 1:
        raise ValueError(f"most must be at least 1; it is {most}")
    rng = np.random.default_rng(seed)
    chosen = [member_subsets(m, int(size), most, rng) for size in sizes]
    outputs = _outputs(logits, label, [subset for subsets in chosen for subset in subsets], space, score, metrics)
    counts = None
    if resamples:
        counts = resampling.resample_counts(seed + 1, n, resamples, groups)
    shape = len(metrics), len(sizes)
    mean, intervals, values = np.empty(shape), np.full((3, *shape, 2), np.nan), []
    for place, subsets in enumerate(chosen):
        of = [outputs[subset] for subset in subsets]
        found = np.array([[SUBSET_METRICS[name](one, weight) for one in of] for name in metrics], np.float64)
        mean[:, place] = found.mean(axis=1)
        values.append(found)
        if len(subsets) > 1:
            intervals[0, :, place] = resampling.percentile_interval(found.T, level).T
        if counts is not None:
            for row, name in enumerate(metrics):
                drawn = np.stack([_resampled(SUBSET_METRICS[name], one, weight, counts) for one in of])
                intervals[1, row, place] = resampling.percentile_interval(drawn.mean(axis=0), level)
                intervals[2, row, place] = resampling.percentile_interval(drawn.reshape(-1), level)
    return SubsetCurve(
        metrics,
        np.array(sizes),
        tuple(np.array(subsets) for subsets in chosen),
        np.array([len(subsets) == math.comb(m, int(size)) for subsets, size in zip(chosen, sizes, strict=True)]),
        tuple(values),
        mean,
        *intervals,
    )
