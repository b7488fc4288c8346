"""The confidence scores that `evaluate` knows by name. To add one: a function in `sc_jax.ops`, a line here."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from sc_jax import ops
from sc_jax.files import InputError
from sc_jax.methods import confidence_head
from sc_jax.methods import temperature as temperature_scaling
from sc_jax.predictions import Predictions


class Score(NamedTuple):
    """A score by name: one of `of`, `of_members`, `of_features`, `fit` with `apply`, or `tuned`.

    Attributes:
      of: logits [n, k] → [n], for scores that need no fitting.
      of_members: logits [m, n, k] of an ensemble → [n].
      of_features: predictions with features, or with a confidence of the model's own → [n], for scores of those that need no fitting.
      fit: calibration split → state; apply: state, predictions → [n].
      tuned: a logit norm, whose p is chosen on the calibration split (see `methods.logit_norm`), MSP among the candidates
        where there is a `fallback`.
      needs: of "true_logits", "stored_probabilities", "three_classes", "finite", "features", "rectified"
        (features ≥ 0), "head", "confidence".
    """

    of: Callable[[np.ndarray], np.ndarray] | None = None
    of_members: Callable[[np.ndarray], np.ndarray] | None = None
    of_features: Callable[[Predictions], np.ndarray] | None = None
    fit: Callable[[Predictions], Any] | None = None
    apply: Callable[[Any, Predictions], np.ndarray] | None = None
    tuned: bool = False
    fallback: bool = False
    needs: tuple[str, ...] = ()

    @property
    def needs_calibration(self) -> bool:
        """Whether something is fitted."""
        return self.tuned or self.fit is not None


class MspPnorm(NamedTuple):
    """What `msp_pnorm` was fitted to: the norm, the temperature, and their AURC on the calibration split."""

    p: int
    temperature: float
    aurc: float


def _fit_msp_pnorm(calibration: Predictions) -> MspPnorm:
    error = ops.predicted_class(calibration.logits) != calibration.label
    grid, temperatures = (1, 2, 3, 4, 5, 8), (0.02, 0.05, 0.1, 0.3, 1.0)
    scores = ops.msp_pnorm(calibration.logits, grid, temperatures)
    fits = [
        MspPnorm(p, temperature, float(ops.aurc(s, error, weight=calibration.weight)))
        for temperature, of_temperature in zip(temperatures, scores, strict=True)
        for p, s in zip(grid, of_temperature, strict=True)
    ]
    return min(fits, key=lambda fit: fit.aurc)


def _principal(features: np.ndarray) -> int:
    """Dimensions of the principal space: 1000 from 2048 features, 512 from 768, else half (Wang et al., CVPR 2022)."""
    d = features.shape[1]
    return 1000 if d >= 2048 else 512 if d >= 768 else max(1, d // 2)


def _fit_residual(calibration: Predictions) -> Any:
    c = calibration
    return ops.fit_residual(c.features, c.head_kernel, c.head_bias, _principal(c.features))


def _fit_vim(calibration: Predictions) -> Any:
    c = calibration
    return ops.fit_vim(c.features, c.logits, c.head_kernel, c.head_bias, _principal(c.features))


def _fit_sirc(calibration: Predictions) -> tuple[Any, Any]:
    state = _fit_residual(calibration)
    return state, ops.sirc_parameters(ops.residual(calibration.features, state))


_ASH = {"prune": 60.0, "binarise": 65.0, "scale": 90.0}
"""The percentile of each shaping (Djurisic et al., ICLR 2023, for ResNet-50 on ImageNet; from memory)."""


def _ash(shaping: str) -> Score:
    return Score(
        of_features=lambda p: ops.ash(p.features, p.head_kernel, p.head_bias, _ASH[shaping], shaping),
        needs=("features", "head") if shaping == "prune" else ("features", "rectified", "head"),
    )


_NEIGHBOUR = 50
"""The k of `knn_distance` (Sun et al., ICML 2022, for CIFAR), or a tenth of a small bank."""

SCORES = {
    "msp": Score(ops.msp),
    "max_probability_as_stored": Score(
        lambda log_probabilities: ops.max_probability_as_stored(np.exp(log_probabilities)),
        needs=("stored_probabilities",),
    ),
    "margin": Score(ops.margin),
    "logit_margin": Score(ops.logit_margin),
    "negative_entropy": Score(ops.negative_entropy),
    "negative_gini": Score(ops.negative_gini),
    "doctor_alpha": Score(ops.doctor_alpha),
    "doctor_beta": Score(ops.doctor_beta),
    "max_logit": Score(ops.max_logit, needs=("true_logits",)),
    "energy": Score(ops.energy, needs=("true_logits",)),
    "msp_temperature": Score(fit=temperature_scaling.fit, apply=temperature_scaling.apply, needs=("finite",)),
    "max_logit_pnorm": Score(tuned=True, needs=("three_classes", "finite")),
    "max_logit_pnorm_or_msp": Score(tuned=True, fallback=True, needs=("three_classes", "finite")),
    "msp_pnorm": Score(
        fit=_fit_msp_pnorm,
        apply=lambda state, p: ops.msp_pnorm(p.logits, state.p, state.temperature),
        needs=("three_classes", "finite"),
    ),
    "mahalanobis": Score(
        fit=lambda c: ops.fit_mahalanobis(c.features, c.label),
        apply=lambda state, p: ops.mahalanobis(p.features, state),
        needs=("features",),
    ),
    "knn_distance": Score(
        fit=lambda c: ops.fit_knn(c.features),
        apply=lambda bank, p: ops.knn_distance(p.features, bank, min(_NEIGHBOUR, max(1, len(bank.unit) // 10))),
        needs=("features",),
    ),
    "residual": Score(
        fit=_fit_residual, apply=lambda state, p: ops.residual(p.features, state), needs=("features", "head")
    ),
    "vim": Score(
        fit=_fit_vim,
        apply=lambda state, p: ops.vim(p.features, p.logits, state),
        needs=("true_logits", "features", "head"),
    ),
    "sirc": Score(
        fit=_fit_sirc,
        apply=lambda fitted, p: ops.sirc(p.logits, ops.residual(p.features, fitted[0]), *fitted[1]),
        needs=("features", "head"),
    ),
    "react": Score(
        fit=lambda c: ops.fit_react(c.features),
        apply=lambda state, p: ops.react(p.features, p.head_kernel, p.head_bias, state),
        needs=("features", "head"),
    ),
    "ash_prune": _ash("prune"),
    "ash_binarise": _ash("binarise"),
    "ash_scale": _ash("scale"),
    "gradnorm": Score(of_features=lambda p: ops.gradnorm(p.features, p.logits), needs=("features",)),
    "confidnet": Score(
        fit=confidence_head.fit, apply=lambda state, p: confidence_head.apply(state, p), needs=("features",)
    ),
    "model_confidence": Score(of_features=lambda p: p.confidence.astype(np.float64), needs=("confidence",)),
    "sparsemax": Score(lambda logits: ops.entmax_confidence(logits, 2.0), needs=("true_logits",)),
    "entmax15": Score(lambda logits: ops.entmax_confidence(logits, 1.5), needs=("true_logits",)),
    "expected_entropy": Score(of_members=ops.expected_entropy),
    "mutual_information": Score(of_members=ops.mutual_information),
    "variation_ratio": Score(of_members=ops.variation_ratio),
    "disagreement": Score(of_members=ops.disagreement),
    "mean_max_probability": Score(of_members=ops.mean_max_probability),
}


def named(names: Sequence[str]) -> dict[str, Score]:
    """The scores of these names.

    Raises:
      InputError: a name is unknown; the nearest is named.
    """
    for name in names:
        if name not in SCORES:
            near = difflib.get_close_matches(name, SCORES, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(SCORES)}"
            raise InputError(f"scores: there is no score {name!r}; {hint}")
    return {name: SCORES[name] for name in names}


def obstacle(score: Score, predictions: Predictions, calibration: Predictions | None) -> str | None:
    """Why `score` cannot be computed here, or None if it can.

    Args:
      predictions: as in the file, [n, k] or [m, n, k]; calibration: another split of the same model.
    """
    probabilities = predictions.log_probabilities or predictions.logits.ndim == 3
    if "true_logits" in score.needs and probabilities:
        return "needs true logits; the file has " + (
            "probabilities" if predictions.log_probabilities else "members, whose mean is one of probabilities"
        )
    if "stored_probabilities" in score.needs and not (predictions.log_probabilities and predictions.logits.ndim == 2):
        return "needs stored probabilities; the file has logits"
    if score.of_members is not None and (predictions.logits.ndim == 2 or len(predictions.logits) < 2):
        return "needs two members or more: logits [m, n, k]"
    if "three_classes" in score.needs and predictions.num_classes < 3:
        return f"not defined for k = {predictions.num_classes} classes"
    if "finite" in score.needs and not np.isfinite(predictions.logits).all():
        return "not defined where a probability is exactly 0"
    if "features" in score.needs and predictions.features is None:
        return "needs features; the file has none"
    if "features" in score.needs and not np.isfinite(predictions.features).all():
        return "not defined where a feature is NaN or infinite"
    if "confidence" in score.needs and predictions.confidence is None:
        return "needs a confidence of the model's own; the file has none"
    if "confidence" in score.needs and calibration is not None and calibration.confidence is None:
        return "needs a confidence of the model's own; the calibration file has none"
    if "rectified" in score.needs and (predictions.features < 0).any():
        return "needs features that are not negative, as after a ReLU"
    if "head" in score.needs and (predictions.head_kernel is None or predictions.head_bias is None):
        return "needs head_kernel and head_bias; the file has none"
    if not score.needs_calibration:
        return None
    if calibration is None:
        return "needs fitting: give --calibration=FILE.npz, another split of the same model"
    if "finite" in score.needs and not np.isfinite(calibration.logits).all():
        return "not defined where a probability of the calibration file is exactly 0"
    if "features" in score.needs and calibration.features is None:
        return "needs features; the calibration file has none"
    if "features" in score.needs and predictions.features.shape[1] != calibration.features.shape[1]:
        widths = predictions.features.shape[1], calibration.features.shape[1]
        return f"needs the same features; there are {widths[0]}, of the calibration file {widths[1]}"
    if "features" in score.needs and not np.isfinite(calibration.features).all():
        return "not defined where a feature of the calibration file is NaN or infinite"
    if "head" in score.needs and (calibration.head_kernel is None or calibration.head_bias is None):
        return "needs head_kernel and head_bias; the calibration file has none"
    return None
