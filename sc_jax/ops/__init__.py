"""Pure functions on arrays: scores, metrics, losses, gradients. No files, no configuration, no models."""

from sc_jax.ops.areas import (
    achievable_aurc,
    augrc,
    aurc,
    aurc_at_error,
    aurc_loss,
    class_balanced_loss,
    e_augrc,
    e_aurc,
    naurc,
    optimal_aurc,
    partial_augrc,
    partial_aurc,
    prr,
)
from sc_jax.ops.calibration_error import brier_loss, expected_calibration_error, log_loss, max_probability
from sc_jax.ops.detection import failure_auroc
from sc_jax.ops.logit_gradients import (
    cross_entropy_gradient,
    expected_suppression,
    max_logit_suppression,
    smoothing_gradient,
)
from sc_jax.ops.ranking import Ranking, harmonic_difference, rank
from sc_jax.ops.resampling import bootstrap, crossed_bootstrap, paired_bootstrap
from sc_jax.ops.risk_coverage import (
    RiskCoverageCurve,
    coverage_at_risk,
    coverage_at_risk_nearest,
    realisable_coverage,
    risk_at_coverage,
    risk_coverage_curve,
    selective_accuracy_constraint,
    threshold_at_coverage,
    threshold_at_risk,
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
    "achievable_aurc",
    "augrc",
    "aurc",
    "aurc_at_error",
    "aurc_loss",
    "bootstrap",
    "brier_loss",
    "class_balanced_loss",
    "coverage_at_risk",
    "coverage_at_risk_nearest",
    "cross_entropy_gradient",
    "crossed_bootstrap",
    "difference_at_equal",
    "e_augrc",
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
    "paired_bootstrap",
    "partial_augrc",
    "partial_aurc",
    "predicted_class",
    "prr",
    "rank",
    "realisable_coverage",
    "risk_at_coverage",
    "risk_coverage_curve",
    "selective_accuracy_constraint",
    "smoothing_gradient",
    "summarise",
    "threshold_at_coverage",
    "threshold_at_risk",
]
