"""SCOD: rejecting wrong predictions and OOD inputs at once, with what was fitted on named splits.

    rule = scod.budgeted(c_fn=0.75, id_share=0.5)
    state = scod.fit_black_box(calibration, rule, selective="msp", ood="vim")
    score = scod.apply(state, test)                       # [n], higher = rather accept

A plug-in rejector estimates the doubt d(x) = 1 − max_y P(y|x) and the ratio r(x) = P_out(x)/P_in(x), and puts both into a
Bayes rule of `sc_jax.ops.scod_rules`. The rule is either `ops.ScodCosts` (costs that are known) or `JointRisk` (the best
joint risk at every coverage of a mix). What is fitted on inliers takes the examples of a split that are not `is_ood`.

Source: Narasimhan, Menon, Jitkrittum & Kumar, "Plugin estimators for selective classification with out-of-distribution
detection", ICLR 2024 (formulas from memory).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import minimize

from sc_jax import ops
from sc_jax.files import InputError
from sc_jax.methods import evaluation, logit_norm
from sc_jax.methods import scores as scores_lib
from sc_jax.methods.logit_norm import P_GRID
from sc_jax.ops.targets import Target, as_fraction
from sc_jax.predictions import Examples, Predictions, known_by, select

PROBABILITIES = ("msp", "msp_temperature")
"""Scores that are log-odds of being right as they stand; others are calibrated."""


class JointRisk(NamedTuple):
    """A rule: the joint risk of `ops.scod_curve` with these costs and this share, least at every coverage."""

    ood_cost: float
    id_cost: float
    ood_share: float


def budgeted(c_fn: float, id_share: float) -> JointRisk:
    """The rule of the problem with a rejection budget, whatever the budget is.

    min (1 − c_fn)·P_in(wrong, accepted) + c_fn·P_out(accepted) with π*·P_in(rejected) + (1 − π*)·P_out(rejected) ≤ b.
    Its solution accepts where E[loss | x] ≤ λ, with the costs (1 − c_fn)/π* and c_fn/(1 − π*) at the share 1 − π* of
    outliers; only λ depends on b (see `at_budget`).

    Args:
      c_fn: in [0, 1], how much an accepted outlier weighs; id_share: π* in (0, 1).

    Returns:
      `JointRisk`.

    Raises:
      ValueError: an argument is out of range.

    Source: Narasimhan et al., ICLR 2024 (the problem, from memory); that one score serves all budgets is derived.
    """
    if not (0 <= c_fn <= 1 and 0 < id_share < 1):
        raise ValueError(f"c_fn must be in [0, 1] and id_share in (0, 1); they are {c_fn} and {id_share}")
    return JointRisk(c_fn / (1 - id_share), (1 - c_fn) / id_share, 1 - id_share)


class Named(NamedTuple):
    """A score of `methods.scores`, and what was fitted for it (None if nothing is)."""

    name: str
    state: Any


class Doubt(NamedTuple):
    """How ln(1 − P(right | x)) is computed: −ln(1 + exp(intercept + slope · score))."""

    score: Named
    slope: float
    intercept: float


class OutlierRatio(NamedTuple):
    """How ln(P_out/P_in) is computed, from ln g = intercept + weight · (input − mean)/scale.

    Attributes:
      score: what the input is; None for the features.
      mean, scale, weight: [d], d = 1 for a score; intercept: a number.
      mixing: π_mix, the share of inliers in what stood for outliers when g was fitted.
    """

    score: Named | None
    mean: np.ndarray
    scale: np.ndarray
    weight: np.ndarray
    intercept: float
    mixing: float


class Plugin(NamedTuple):
    """A plug-in rejector: the two estimates, the rule that weighs them, and the splits behind it, on which nothing is certified."""

    doubt: Doubt
    ratio: OutlierRatio
    rule: ops.ScodCosts | JointRisk
    fitted_on: tuple[Examples, ...] = ()


class Sirc(NamedTuple):
    """What `fit_sirc` found: the second score (None for ‖features‖₁), the first one's name, where SIRC turns; and the splits behind it."""

    second: Named | None
    first: str
    a: float
    b: float
    fitted_on: tuple[Examples, ...] = ()


class AtBudget(NamedTuple):
    """What `at_budget` found.

    Attributes:
      threshold: accept where the score is at least this.
      multiplier: λ = exp(−threshold). No `ScodCosts` exist for λ > c_fn/(1 − π*), where accepting an outlier would be a gain:
        `ops.scod_costs_at_multiplier` refuses it. A small budget may need such a λ; the threshold holds all the same.
      rejected: the share of the mixture that is rejected, ≤ the budget.
    """

    threshold: float
    multiplier: float
    rejected: float


def fit_black_box(
    calibration: Predictions,
    rule: ops.ScodCosts | JointRisk,
    *,
    selective: str = "msp",
    ood: str | Named = "energy",
    outliers: Predictions | None = None,
    reference: Predictions | None = None,
) -> Plugin:
    """The black-box plug-in rejector of any two scores.

    The doubt is that of the softmax for `PROBABILITIES`; of any other score it is a logistic regression of being right on
    the score, with Platt's targets. The OOD score z becomes a ratio in one of two ways. With examples of outliers, by
    logistic regression of inliers against them. Without, P_out/P_in = exp(−z')/mean exp(−z') with z' standardised on
    the inliers: its mean over inliers is 1, as that of a true ratio is, its slope is a guess.

    Args:
      calibration: a named split that is not the one reported on.
      rule: `ops.ScodCosts` or `JointRisk`.
      selective, ood: names of scores; higher is more confident, and more of an inlier. Of `ood` also what `fit_score` found.
      outliers: examples all of which are outliers, of another kind of data than those reported on.
      reference: the split that the scores themselves are fitted on, where they have a fit; by default the inliers of
        `calibration`, on which a fitted score (k-NN, Mahalanobis) then flatters itself.

    Returns:
      `Plugin`.

    Raises:
      InputError: a score has no such name, or cannot be computed of a file.
      ValueError: the scores are NaN, or no example is left.

    Source: Narasimhan et al., ICLR 2024, black-box estimator (from memory, with −1/s_ood for the ratio); the scale without
    outliers and the calibration of scores that are no probabilities are ours.
    """
    inliers, fitted_on = _inliers(calibration), _known_by(calibration, outliers, reference)
    reference = inliers if reference is None else _inliers(reference)
    named = _fitted(ood, reference)
    if outliers is not None:
        ratio = _fit_ratio(named, inliers, outliers)
    else:
        z, weight = _finite(score_of(named, inliers)), _normalised(inliers)
        mean = weight @ z
        scale = np.sqrt(weight @ (z - mean) ** 2) or 1.0
        intercept = float(np.log(weight @ np.exp(-(z - mean) / scale)))
        ratio = OutlierRatio(named, np.array([mean]), np.array([scale]), np.ones(1), intercept, 0.0)
    return Plugin(_fit_doubt(selective, inliers, reference), ratio, rule, fitted_on)


def fit_loss_based(
    calibration: Predictions,
    wild: Predictions,
    rule: ops.ScodCosts | JointRisk,
    *,
    selective: str = "msp",
    on: str | Named = "features",
    mixing: float | None = None,
    strict: Predictions | None = None,
    reference: Predictions | None = None,
    ridge: float = 1e-3,
) -> Plugin:
    """The loss-based plug-in rejector: the ratio from unlabelled examples, some of which are inliers.

    A logistic head s minimises E_in[ln(1 + e^−s)] + E_wild[ln(1 + e^s)] + ridge/2·‖weight‖², both means, so that e^s is
    P_in/P_mix whatever the sizes; P_out/P_in = (e^−s − π_mix)/(1 − π_mix), clipped at 0. Here the head is linear in the
    standardised features, or in a score, and is fitted after training.

    Args:
      calibration: a named split of inliers, not the one reported on; wild: the mixture, whose labels are not looked at.
      rule, selective, reference: as for `fit_black_box`.
      on: "features", the name of a score, or what `fit_score` found.
      mixing: π_mix, if it is known; else
      strict: inliers that no outlier looks like, from which π_mix is the mean of e^−s. One of the two is needed.
      ridge: of the standardised weights, ≥ 0.

    Returns:
      `Plugin`; `state.ratio.mixing` is π_mix.

    Raises:
      InputError: as `fit_black_box`; a file has no features.
      ValueError: both or none of `mixing` and `strict`; π_mix comes out at 1 or above; as `fit_black_box`.

    Source: Narasimhan et al., ICLR 2024, loss-based estimator with its own head (from memory).
    """
    if (mixing is None) == (strict is None):
        raise ValueError("give mixing, or strict inliers to estimate it from, and not both")
    inliers, fitted_on = _inliers(calibration), _known_by(calibration, wild, strict, reference)
    reference = inliers if reference is None else _inliers(reference)
    named = None if on == "features" else _fitted(on, reference)
    ratio = _fit_ratio(named, inliers, wild, ridge)
    if strict is not None:
        mixing = float(ops.inlier_mixing(_log_inlier_ratio(ratio, strict)))
    if not 0 <= mixing < 1:
        raise ValueError(f"the share of inliers in the mixture must be in [0, 1); it is {mixing:.3g}")
    return Plugin(_fit_doubt(selective, inliers, reference), ratio._replace(mixing=mixing), rule, fitted_on)


def fit_linear(
    calibration: Predictions,
    *,
    target: JointRisk,
    selective: str = "msp",
    ood: str | Named = "energy",
    reference: Predictions | None = None,
) -> Plugin:
    """A linear selector in (d, r) whose weight is chosen on examples: −ln(d + μ·r), μ of least area under the joint risk.

    A baseline that needs outliers in `calibration`. r is fitted to them too; μ is one of 0, 10⁻⁴, …, 10⁴ in steps of
    10^¼ and ∞, the first of the best.

    Args:
      calibration: a named split with `is_ood`, both kinds; target: costs and share of the area.
      selective, ood, reference: as for `fit_black_box`.

    Returns:
      `Plugin` with `ops.ScodCosts` of c_out/(1 − c_out) = μ and c_in = 0: a ranking, without a threshold.

    Raises:
      InputError: `calibration` has no `is_ood`, or examples of one kind alone; as `fit_black_box`.

    Source: after Franc et al., "SCOD: from heuristics to theory" (a selector linear in conditional risk and
    likelihood ratio; from its abstract). Choosing the weight by the area is ours.
    """
    is_ood = calibration.is_ood
    if is_ood is None or is_ood.all() or not is_ood.any():
        raise InputError(
            f"{calibration.source}, field 'is_ood': examples of both kinds are needed to choose a weight on; "
            "give a split that has them"
        )
    state = fit_black_box(
        calibration,
        ops.ScodCosts(0.0, 0.0),
        selective=selective,
        ood=ood,
        outliers=select(calibration, is_ood),
        reference=reference,
    )
    rules = [
        ops.ScodCosts(0.0, c_out) for c_out in (0.0, *(1 / (1 + 10 ** (-power / 4)) for power in range(-16, 17)), 1.0)
    ]
    error = ops.predicted_class(evaluation.combined(calibration).logits) != calibration.label
    options = {**target._asdict(), "weight": calibration.weight}
    estimated = estimates(state, calibration)
    area = [ops.scod_aurc(ops.plugin_scod_score(*estimated, rule), error, is_ood, **options).area for rule in rules]
    best = rules[logit_norm.choose(np.array(area))]
    return state._replace(rule=best, fitted_on=_known_by(calibration, reference))


def fit_sirc(
    calibration: Predictions,
    *,
    first: str = "msp",
    second: str | Named = "feature_norm",
    reference: Predictions | None = None,
) -> Sirc:
    """SIRC of two scores: where it turns from the first to the second is fitted to the second on inliers.

    Args:
      calibration: a named split; first: as for `ops.sirc`.
      second: "feature_norm" (‖x‖₁), the name of a score, or what `fit_score` found; reference: as for `fit_black_box`.

    Returns:
      `Sirc`.

    Raises:
      InputError: as `fit_black_box`; ValueError: the second score is constant or not finite.

    Source: Xia & Bouganis, ACCV 2022 (see `ops.sirc`).
    """
    inliers = _inliers(calibration)
    named = None
    if second != "feature_norm":
        named = _fitted(second, inliers if reference is None else _inliers(reference))
    a, b = ops.sirc_parameters(_second(named, inliers))
    return Sirc(named, first, float(a), float(b), _known_by(calibration, reference))


def apply(state: Plugin | Sirc, predictions: Predictions) -> np.ndarray:
    """The score [n] of `predictions` under what was fitted; higher = rather accept.

    Of a `Plugin` with `ops.ScodCosts` the Bayes rule accepts at −ln c_in or above; with `JointRisk`, exp(−score) is the
    expected loss of accepting.

    Raises:
      InputError: a file lacks what a score needs.
    """
    if isinstance(state, Sirc):
        second = _second(state.second, predictions)
        return ops.sirc(evaluation.combined(predictions).logits, second, state.a, state.b, first=state.first)
    d, r = estimates(state, predictions)
    if isinstance(state.rule, JointRisk):
        return ops.joint_scod_score(d, r, **state.rule._asdict())
    return ops.plugin_scod_score(d, r, state.rule)


def estimates(state: Plugin, predictions: Predictions) -> tuple[np.ndarray, np.ndarray]:
    """(ln d [n], ln r [n]): what a plug-in rejector puts into its rule.

    Raises:
      InputError: a file lacks what a score needs.
    """
    doubt = state.doubt
    log_doubt = -np.logaddexp(0, _line(score_of(doubt.score, predictions), doubt.slope, doubt.intercept))
    log_g = _log_inlier_ratio(state.ratio, predictions)
    return log_doubt, ops.log_outlier_ratio(log_g, state.ratio.mixing)


def at_budget(state: Plugin, mixture: Predictions, budget: Target) -> AtBudget:
    """The multiplier λ of a rejection budget: the smallest at which no more than `budget` of the mixture is rejected.

    Examples of equal score are rejected together. Since the score does not depend on λ, its quantile is the solution
    that a bisection over λ would come to. Of `budgeted`, λ is above c_fn/(1 − π*) where more of the mixture than the budget has a
    larger expected loss than that, the loss of a certain outlier: certain outliers are then accepted, and there are no
    `ops.ScodCosts` (`ops.scod_costs_at_multiplier` refuses λ).

    Args:
      state: with a `JointRisk` rule; mixture: a split that is not reported on. Where it says `is_ood`, its examples are
        weighted to the share of the rule; else it is taken to have that share.
      budget: b in [0, 1), read as a decimal.

    Returns:
      `AtBudget`.

    Raises:
      ValueError: the rule is no `JointRisk`, the budget is out of range, or a kind that has a share has no example.
    """
    if not isinstance(state.rule, JointRisk):
        raise ValueError(
            "a budget needs a JointRisk rule, as `budgeted` makes it; with fixed costs the threshold is −ln c_in"
        )
    share = as_fraction(budget)
    if not 0 <= share < 1:
        raise ValueError(f"the budget must be in [0, 1); it is {budget}")
    score, weight = apply(state, mixture), mixture.weight
    if mixture.is_ood is not None:
        weight = ops.mixture_weight(mixture.is_ood, state.rule.ood_share, weight=weight)
    threshold = float(ops.threshold_at_coverage(score, 1 - share, weight=weight))
    rejected = float(np.average(score < threshold, weights=weight))
    return AtBudget(threshold, float(np.exp(-threshold)), rejected)


def fit_score(name: str, reference: Predictions) -> Named:
    """A score by name, fitted on `reference` where it has a fit.

    Raises:
      InputError: no score has this name, or it cannot be computed of this file.
    """
    score = scores_lib.named([name])[name]
    _require(name, score, reference)
    whole = evaluation.combined(reference)
    if score.tuned:
        return Named(name, logit_norm.fit(whole, P_GRID, fallback=score.fallback))
    return Named(name, None if score.fit is None else score.fit(whole))


def _fitted(score: str | Named, reference: Predictions) -> Named:
    return score if isinstance(score, Named) else fit_score(score, reference)


def score_of(named: Named, predictions: Predictions) -> np.ndarray:
    """The score [n] of `predictions`.

    Raises:
      InputError: it cannot be computed of this file.
    """
    score = scores_lib.SCORES[named.name]
    _require(named.name, score, predictions)
    if score.of_members is not None:
        return score.of_members(predictions.logits)
    whole = evaluation.combined(predictions)
    if score.tuned:
        return logit_norm.apply(named.state, whole)
    if score.fit is not None:
        return score.apply(named.state, whole)
    return score.of(whole.logits) if score.of is not None else score.of_features(whole)


def _require(name: str, score: scores_lib.Score, predictions: Predictions) -> None:
    reason = scores_lib.obstacle(score, predictions, predictions)
    if reason is not None:
        raise InputError(
            f"{predictions.source}: the score {name!r} {reason}; name another one, or predict what it needs"
        )


def _known_by(*splits: Predictions | None) -> tuple[Examples, ...]:
    return tuple(known_by(split) for split in splits if split is not None)


def _inliers(predictions: Predictions) -> Predictions:
    inliers = predictions if predictions.is_ood is None else select(predictions, ~predictions.is_ood)
    if len(inliers) == 0:
        raise InputError(f"{predictions.source}, field 'is_ood': all examples are OOD; something is fitted on inliers")
    return inliers


def _normalised(predictions: Predictions) -> np.ndarray:
    """The weights of the examples, of sum 1."""
    weight = np.ones(len(predictions)) if predictions.weight is None else np.asarray(predictions.weight, np.float64)
    if not weight.sum() > 0:
        raise InputError(f"{predictions.source}, field 'weight': the examples to fit to weigh nothing; give others")
    return weight / weight.sum()


def _fit_doubt(name: str, inliers: Predictions, reference: Predictions) -> Doubt:
    named = fit_score(name, reference)
    if name in PROBABILITIES:
        return Doubt(named, 1.0, 0.0)
    right = ops.predicted_class(evaluation.combined(inliers).logits) == inliers.label
    weight = len(right) * _normalised(inliers)
    # Platt's targets: as if one more right and one more wrong answer had been seen, so that there is always a minimum.
    target = np.where(right, (weight @ right + 1) / (weight @ right + 2), 1 / (weight @ ~right + 2))
    score = _finite(score_of(named, inliers))
    mean, scale = score.mean(), score.std() or 1.0
    slope, intercept = _logistic((score[:, None] - mean) / scale, target, weight / len(right), 0.0)
    return Doubt(named, float(slope[0] / scale), float(intercept - slope[0] * mean / scale))


def _fit_ratio(named: Named | None, inliers: Predictions, others: Predictions, ridge: float = 1e-3) -> OutlierRatio:
    """Inliers against others by logistic regression, the two weighing the same."""
    parts = [_input(named, part) for part in (inliers, others)]
    if parts[0].shape[1] != parts[1].shape[1] or len(parts[1]) == 0:
        raise InputError(
            f"{others.source}: {len(parts[1])} examples of {parts[1].shape[1]} features are of no use beside "
            f"{parts[0].shape[1]} features of {inliers.source}"
        )
    x = _finite(np.concatenate(parts))
    target = np.repeat([1.0, 0.0], [len(part) for part in parts])
    weight = np.concatenate([_normalised(inliers), _normalised(others)])
    mean, scale = x.mean(axis=0), x.std(axis=0)
    scale[scale == 0] = 1.0
    slope, intercept = _logistic((x - mean) / scale, target, weight, ridge)
    return OutlierRatio(named, mean, scale, slope, float(intercept), 0.0)


def _log_inlier_ratio(ratio: OutlierRatio, predictions: Predictions) -> np.ndarray:
    x = _input(ratio.score, predictions)
    if x.shape[1] != len(ratio.mean):
        raise InputError(
            f"{predictions.source}, field 'features': {x.shape[1]} of them, where the ratio was fitted to "
            f"{len(ratio.mean)}; give predictions of the same model"
        )
    x = (x - ratio.mean) / ratio.scale
    if ratio.score is None:
        return x @ ratio.weight + ratio.intercept
    return _line(x[:, 0], ratio.weight[0], ratio.intercept)


def _input(named: Named | None, predictions: Predictions) -> np.ndarray:
    """What the ratio is computed from, [n, d]."""
    if named is not None:
        return score_of(named, predictions)[:, None]
    if predictions.features is None or not np.isfinite(predictions.features).all():
        raise InputError(f"{predictions.source}, field 'features': finite features are needed; or name a score instead")
    return np.asarray(predictions.features, np.float64)


def _second(named: Named | None, predictions: Predictions) -> np.ndarray:
    return score_of(named, predictions) if named is not None else np.abs(_input(None, predictions)).sum(axis=1)


def _line(x: np.ndarray, slope: float, intercept: float) -> np.ndarray:
    """intercept + slope · x, with 0 · ∞ = 0."""
    return intercept + (slope * x if slope else np.zeros_like(x))


def _finite(x: np.ndarray) -> np.ndarray:
    """Infinities as the largest and smallest finite values of their column, to fit to."""
    if np.isnan(x).any():
        raise ValueError(f"{np.isnan(x).sum()} scores are NaN")
    finite = np.where(np.isfinite(x), x, np.nan)
    if np.isnan(finite).all(axis=0).any():
        return np.clip(x, -1.0, 1.0)
    return np.clip(x, np.nanmin(finite, axis=0), np.nanmax(finite, axis=0))


def _logistic(x: np.ndarray, target: np.ndarray, weight: np.ndarray, ridge: float) -> tuple[np.ndarray, float]:
    """Slope [d] and intercept of least Σ w (ln(1 + e^z) − t z) + ridge/2 ‖slope‖², z = x · slope + intercept."""

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        slope, intercept = parameters[:-1], parameters[-1]
        z = x @ slope + intercept
        gap = weight * (np.exp(-np.logaddexp(0, -z)) - target)
        value = weight @ (np.logaddexp(0, z) - target * z) + ridge / 2 * slope @ slope
        return float(value), np.append(gap @ x + ridge * slope, gap.sum())

    found = minimize(
        loss,
        np.zeros(x.shape[1] + 1),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": 500, "gtol": 1e-8, "ftol": 1e-14},
    )
    return found.x[:-1], float(found.x[-1])
