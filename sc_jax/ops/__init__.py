"""Pure functions on arrays: scores, metrics, losses, gradients. No files, no configuration, no models."""

from sc_jax.ops.calibration_error import brier_loss, expected_calibration_error, log_loss, max_probability
from sc_jax.ops.detection import failure_auroc
from sc_jax.ops.logit_gradients import (
    cross_entropy_gradient,
    expected_suppression,
    max_logit_suppression,
    smoothing_gradient,
)
from sc_jax.ops.ranking import Ranking, harmonic_difference, rank
from sc_jax.ops.risk_coverage import (
    RiskCoverageCurve,
    augrc,
    aurc,
    coverage_at_risk,
    e_aurc,
    naurc,
    optimal_aurc,
    risk_at_coverage,
    risk_coverage_curve,
)
from sc_jax.ops.scores import (
    ensemble_log_probabilities,
    log_softmax,
    max_logit,
    max_logit_pnorm,
    msp,
    predicted_class,
)
from sc_jax.ops.stratified import difference_at_equal
from sc_jax.ops.summary import summarise

__all__ = [
    "Ranking",
    "RiskCoverageCurve",
    "augrc",
    "aurc",
    "brier_loss",
    "coverage_at_risk",
    "cross_entropy_gradient",
    "difference_at_equal",
    "e_aurc",
    "ensemble_log_probabilities",
    "expected_calibration_error",
    "expected_suppression",
    "failure_auroc",
    "harmonic_difference",
    "log_loss",
    "log_softmax",
    "max_logit",
    "max_logit_pnorm",
    "max_logit_suppression",
    "max_probability",
    "msp",
    "naurc",
    "optimal_aurc",
    "predicted_class",
    "rank",
    "risk_at_coverage",
    "risk_coverage_curve",
    "smoothing_gradient",
    "summarise",
]
