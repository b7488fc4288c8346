"""Split conformal prediction sets, and acceptance where the set is a single class.

The promise is marginal: coverage ≥ 1 − α on average over calibration sets, of the population or of each stratum. It holds for
exchangeable examples and any score that was not fitted to them. Accepting where the set is a singleton makes P(accepted and wrong) ≤ α: an accepted
answer is wrong only if the set misses the true class. It says nothing of the selective risk P(wrong | accepted), which may be many times α.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from sc_jax import ops
from sc_jax.files import InputError
from sc_jax.methods import selector as selector_lib
from sc_jax.methods.evaluation import Split
from sc_jax.methods.guarantees import independent
from sc_jax.methods.selector import Promise, Selector, nonconformity_of
from sc_jax.ops.ranking import Array
from sc_jax.ops.targets import Target, as_fraction
from sc_jax.predictions import Examples, Predictions, known_by, refuse_fitted_on, refuse_shared

DEFAULTS: dict[str, dict[str, float]] = {"raps": {"penalty": 0.1, "free": 1}, "saps": {"weight": 0.1}}
"""Numbers of the nonconformity scores that have any. They change the size of sets, never their validity, if they are fixed beforehand."""

QUANTILES = (0.5, 0.6, 0.7, 0.8, 0.9)
"""Of the scores of a class; with the 1 − α quantile they are what classes are clustered by."""


class ConformalSets(NamedTuple):
    """Prediction sets {k : nonconformity of k ≤ quantile}.

    Attributes:
      score: name of the nonconformity score; state: its numbers; alpha: α.
      by: "all", "group", "predicted_class" or "label", as in `Selector`.
      quantile: stratum → quantile; +∞ takes every class in.
      fitted_on: the calibration split, and that of the clusters of classes.
    """

    score: str
    state: Mapping[str, float]
    alpha: float
    by: str
    quantile: Mapping[str, float]
    fitted_on: tuple[Examples, ...] = ()


class Clusters(NamedTuple):
    """Classes that share a quantile.

    Attributes:
      index: int [k], the cluster of each class; fitted_on: the split they were found on, () where they were fixed beforehand.
    """

    index: np.ndarray
    fitted_on: tuple[Examples, ...] = ()


def fit(
    calibration: Predictions,
    score: str,
    alpha: Target,
    *,
    by: str = "all",
    state: Mapping[str, float] | None = None,
    cluster: Clusters | None = None,
    u: Array = 0.0,
) -> ConformalSets:
    """Quantiles of the scores of the true classes, the ⌈(n + 1)(1 − α)⌉-th smallest in each stratum (Mondrian).

    Args:
      calibration: a split that the score was not fitted on; score: of `selector.NONCONFORMITY`; alpha: α in (0, 1), a decimal.
      by: "all": coverage of the population; "group" or "predicted_class": of each; "label": of each true class.
      state: numbers of the score, by default those of `DEFAULTS`; cluster: of `cluster_classes`, or fixed beforehand, for
        by="label": classes of one cluster share a quantile, and coverage is that of each cluster.
      u: one uniform number for each example that is not OOD, or one number for all (then give `sets` the same).

    Returns:
      `ConformalSets`. A class without calibration examples is in every set; a group without any has every class in its sets.

    Raises:
      InputError: the examples cannot be taken for exchangeable, or clusters were found on them; groups are asked for and not there; the score is
        unknown.
      ValueError: clusters without by="label", or of another number of classes; α outside (0, 1).

    Source: Vovk 2012 (Mondrian); Ding, Angelopoulos, Bates, Jordan & Tibshirani, "Class-conditional conformal prediction with many
    classes", NeurIPS 2023 (clusters).
    """
    if cluster is not None and by != "label":
        raise ValueError(f"classes are clustered for by='label'; it is {by!r}")
    if cluster is not None and np.shape(cluster.index) != (calibration.num_classes,):
        raise ValueError(
            f"clusters of shape {np.shape(cluster.index)}: one is needed for each of {calibration.num_classes} classes"
        )
    found_on = () if cluster is None else cluster.fitted_on
    refuse_fitted_on(calibration, found_on, "the clustering of classes")
    known = independent(calibration)
    state = dict(DEFAULTS.get(score, {}) if state is None else state)
    probabilities = np.exp(ops.log_softmax(known.logits))
    own = nonconformity_of(score, state, probabilities, u)[np.arange(len(known)), known.label]
    if by == "label":
        index = np.arange(known.num_classes) if cluster is None else np.asarray(cluster.index)
        names = index[known.label]
        quantile = {str(k): float(ops.conformal_quantile(own[names == index[k]], alpha)) for k in range(len(index))}
    else:
        names = selector_lib.strata(known, by, ops.predicted_class(probabilities))
        quantile = {str(name): float(ops.conformal_quantile(own[names == name], alpha)) for name in np.unique(names)}
    return ConformalSets(score, state, float(as_fraction(alpha)), by, quantile, (known_by(calibration), *found_on))


def sets(fitted: ConformalSets, predictions: Predictions, u: Array = 0.0) -> np.ndarray:
    """Prediction sets.

    Args:
      fitted: of `fit`; predictions: of the same model; u: as for `fit`, drawn anew: [n], or the same one number.

    Returns:
      bool [n, k], true for the classes in the set.

    Raises:
      InputError: the sets were fitted on some of these examples, or on the same split, or to another model.
    """
    refuse_fitted_on(predictions, fitted.fitted_on, "what these sets are of")
    probabilities = np.exp(ops.log_softmax(Split.of(predictions).combined.logits))
    nonconformity = nonconformity_of(fitted.score, fitted.state, probabilities, u)
    if fitted.by == "label":
        limit = np.array([fitted.quantile.get(str(k), math.inf) for k in range(predictions.num_classes)])
    else:
        names = selector_lib.strata(predictions, fitted.by, ops.predicted_class(probabilities))
        unique, index = np.unique(names, return_inverse=True)
        limit = np.array([fitted.quantile.get(str(name), math.inf) for name in unique])[index][:, None]
    return nonconformity <= limit


def cluster_classes(
    tuning: Predictions,
    score: str,
    alpha: float,
    clusters: int,
    *,
    state: Mapping[str, float] | None = None,
    seed: int = 0,
    u: Array = 0.0,
) -> Clusters:
    """Groups classes whose scores are distributed alike, so that rare classes borrow from others.

    k-means, each class weighted by √n_y, of the quantiles at `QUANTILES` and 1 − α of its scores. Classes with fewer than 1/α − 1 tuning
    examples go into one more cluster together. (The paper gives these the quantile of all classes, which keeps no promise for
    them; here they share one of their own.)

    Args:
      tuning: examples that are in neither the calibration nor the test split; score, alpha, state, u: as for `fit`.
      clusters: of k-means, ≥ 1; seed: of its start.

    Returns:
      `Clusters`; `fit` refuses the examples they were found on.

    Source: Ding et al., NeurIPS 2023; the smallest class and the weights from memory of it.
    """
    known = Split.of(tuning).known.combined
    state = DEFAULTS.get(score, {}) if state is None else state
    probabilities = np.exp(ops.log_softmax(known.logits))
    own = nonconformity_of(score, state, probabilities, u)[np.arange(len(known)), known.label]
    count = np.bincount(known.label, minlength=known.num_classes)
    common = np.flatnonzero(count >= max(1, math.ceil(1 / as_fraction(alpha)) - 1))
    cluster = np.full(known.num_classes, clusters)
    if len(common):
        levels = (*QUANTILES, 1 - float(as_fraction(alpha)))
        points = np.stack([np.quantile(own[known.label == k], levels) for k in common])
        cluster[common] = _k_means(points, np.sqrt(count[common]), min(clusters, len(common)), seed)
    return Clusters(cluster, (known_by(tuning),))


def _k_means(points: np.ndarray, weight: np.ndarray, clusters: int, seed: int) -> np.ndarray:
    """Lloyd's algorithm from a k-means++ start."""
    rng = np.random.default_rng(seed)
    centres = points[[rng.integers(len(points))]]
    while len(centres) < clusters:
        nearest = ((points[:, None] - centres) ** 2).sum(axis=-1).min(axis=-1) * weight
        if not nearest.any():  # fewer different points than clusters
            break
        centres = np.concatenate([centres, points[[rng.choice(len(points), p=nearest / nearest.sum())]]])
    index = np.full(len(points), -1)
    while True:
        nearest = ((points[:, None] - centres) ** 2).sum(axis=-1).argmin(axis=-1)
        if (nearest == index).all():
            return index
        index = nearest
        for k in np.unique(index):
            mine = index == k
            centres[k] = np.average(points[mine], axis=0, weights=weight[mine])


def fit_selector(
    calibration: Predictions,
    score: str,
    *,
    risk: float,
    within: str = "all",
    state: Mapping[str, float] | None = None,
) -> Selector:
    """Acceptance where the prediction set is a single class: P(accepted and wrong) ≤ α on average over calibration sets.

    u is 0, so that the decision has no chance in it, and APS, RAPS and SAPS have no empty sets. (LAC has: where no class is probable enough.)

    Args:
      calibration, score, state: as for `fit`; risk: α.
      within: where the promise holds; with "label" each class has its own quantile, and the answer is the one class in the set, which need not be
        the most probable.

    Returns:
      A `Selector`.

    Raises:
      InputError, ValueError: as `fit`.
    """
    if score not in selector_lib.NONCONFORMITY:
        raise InputError(f"nonconformity score {score!r}: there are {', '.join(selector_lib.NONCONFORMITY)}")
    assumption = "calibration and test examples are exchangeable"
    if within != "all":
        assumption += f" within each {within.replace('_', ' ')}"
    promise = Promise("marginal", "accepted and wrong", risk, None, within, assumption)
    fitted = fit(calibration, score, risk, by=within, state=state)
    return Selector(
        f"singleton_{score}", promise, "singleton", score, fitted.state, within, fitted.quantile, fitted.fitted_on[0]
    )


def sets_under_shift(
    calibration: Predictions,
    predictions: Predictions,
    score: str,
    alpha: Target,
    weight: Array,
    test_weight: Array,
    *,
    state: Mapping[str, float] | None = None,
    u: tuple[Array, Array] = (0.0, 0.0),
) -> np.ndarray:
    """Prediction sets under a known covariate shift: inputs are distributed otherwise, labels given inputs are not.

    Args:
      calibration, score, alpha, state: as for `fit`; predictions: the shifted examples.
      weight, test_weight: [n] (without OOD examples), [m], proportional to the density of test inputs over calibration inputs.
      u: of calibration and test examples, as for `fit`.

    Returns:
      bool [m, k]: with exact weights the true class is in with probability ≥ 1 − α over calibration sets and test examples.

    Raises:
      InputError: the two share examples, or are of different models; ValueError: see `ops.weighted_conformal_quantile`.

    Source: Tibshirani, Foygel Barber, Candès & Ramdas, NeurIPS 2019.
    """
    refuse_shared(predictions, calibration)
    state = DEFAULTS.get(score, {}) if state is None else state
    known = independent(calibration)
    before, after = (np.exp(ops.log_softmax(p.logits)) for p in (known, Split.of(predictions).combined))
    own = nonconformity_of(score, state, before, u[0])[np.arange(len(known)), known.label]
    limit = ops.weighted_conformal_quantile(own, weight, test_weight, alpha)
    return nonconformity_of(score, state, after, u[1]) <= limit[:, None]
