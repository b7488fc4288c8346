"""One battery over every exported metric: permutation, ties, mask, weight, dtype, backend, brute force.

A metric is registered in `METRICS` with how to call it; what is exported and no metric stands in `NO_METRIC` with the
reason. An export in neither fails.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import brute_calibration
import brute_force
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from sc_jax import ops
from sc_jax.ops.areas import ESTIMATORS
from sc_jax.ops.risk_coverage import RiskCoverageCurve

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")  # no division by 0 nor overflow on the way
N = 12


def sample(seed: int, n: int = N) -> dict[str, np.ndarray]:
    """Columns [n] that any metric may ask for, with ties; all numbers are floats of any width."""
    rng = np.random.default_rng(seed)
    columns = {
        "score": rng.integers(0, 5, n) / 8 + 0.25,
        "other": rng.integers(0, 9, n) / 8,
        "error": rng.integers(0, 2, n),
        "soft": rng.choice([0.0, 0.25, 0.5, 1.0, 2.75], n),
        "group": rng.integers(0, 3, n),
        "is_ood": rng.integers(0, 2, n),
        "probabilities": rng.choice([[0.25, 0.25, 0.5], [0.125, 0.75, 0.125], [0.0, 0.0, 1.0]], n),
        "logits": rng.integers(-4, 5, (n, 3)) / 4,
        "label": rng.integers(0, 3, n),
    }
    for name in ("error", "is_ood"):  # both kinds
        columns[name][:2] = [0, 1]
    return columns


class Metric(NamedTuple):
    """How to call a metric, and what it promises.

    `call(columns, weight=…, where=…)` returns an array, or a tuple, dict or NamedTuple of arrays. `definition` is a function
    of columns, or names the test that holds the metric to its definition.
    """

    call: Callable[..., Any]
    definition: Callable[..., Any] | str
    orders: bool | tuple[str, ...] = True  # an expectation over tie orders: all of it, or these parts
    rows: bool = True  # takes weights [..., n]
    weighted: bool = True  # takes weights
    ranks: bool = True  # a strictly increasing map of the score changes nothing
    drawn: Callable[..., tuple[Any, Any]] | None = None  # of a curve: coverages and what is linear between its points
    real: str | None = None  # the part that is NaN where nothing is left; None for all


def of_score(
    metric: Callable[..., Any], *options: Any, loss: str = "error", definition: Any = None, **named: Any
) -> Metric:
    """A metric of (score, loss, …)."""
    promises = {key: named.pop(key) for key in Metric._fields if key in named}

    def call(columns: dict[str, Any], **kw: Any) -> Any:
        return metric(columns["score"], columns[loss], *options, **named, **kw)

    def by_definition(columns: dict[str, np.ndarray]) -> Any:
        return definition(columns["score"], columns[loss])

    return Metric(call, by_definition if callable(definition) else definition, **promises)


def generalized(curve: RiskCoverageCurve) -> tuple[Any, Any]:
    return curve.coverage, curve.generalized_risk


def exact(target: Any) -> Fraction:
    return Fraction(*target) if isinstance(target, tuple) else Fraction(str(target))


def register(loss: str) -> dict[str, Metric]:
    """The metrics that take any loss."""
    metrics: dict[str, Metric] = {}
    for name in ESTIMATORS:
        brute, orders = brute_force.ESTIMATORS[name], name != "fd_shifts"

        def optimum(losses: np.ndarray, brute: Callable = brute) -> float:
            return float(brute(-losses.astype(float), losses))

        def excess(score: np.ndarray, losses: np.ndarray, brute: Callable = brute, best: Callable = optimum) -> float:
            return float(brute(score, losses)) - best(losses)

        def normalised(
            score: np.ndarray, losses: np.ndarray, brute: Callable = brute, over: Callable = excess
        ) -> float:
            room = over(np.zeros(len(losses)), losses)
            return over(score, losses) / room if room else math.nan

        def ratio(score: np.ndarray, losses: np.ndarray, normal: Callable = normalised) -> float:
            return 1 - normal(score, losses)

        metrics |= {
            f"aurc[{name}]": of_score(ops.aurc, name, loss=loss, definition=brute, orders=orders),
            f"e_aurc[{name}]": of_score(ops.e_aurc, name, loss=loss, definition=excess, orders=orders),
            f"naurc[{name}]": of_score(ops.naurc, name, loss=loss, definition=normalised, orders=orders),
            f"prr[{name}]": of_score(ops.prr, name, loss=loss, definition=ratio, orders=orders),
            f"optimal_aurc[{name}]": Metric(
                lambda columns, name=name, **kw: ops.optimal_aurc(columns[loss], name, **kw),
                lambda columns, optimum=optimum: optimum(columns[loss]),
            ),
        }
    ranges = Fraction(1, 5), Fraction(7, 10)
    return metrics | {
        "augrc": of_score(ops.augrc, loss=loss, definition=brute_force.augrc),
        "e_augrc": of_score(
            ops.e_augrc,
            loss=loss,
            definition=lambda s, e: brute_force.augrc(s, e) - brute_force.augrc(-e.astype(float), e),
        ),
        "partial_aurc": of_score(
            ops.partial_aurc, 0.2, 0.7, loss=loss, definition=lambda s, e: brute_force.partial_aurc(s, e, *ranges)
        ),
        "partial_augrc": of_score(
            ops.partial_augrc, 0.2, 0.7, loss=loss, definition=lambda s, e: brute_force.partial_augrc(s, e, *ranges)
        ),
        "achievable_aurc": of_score(
            ops.achievable_aurc, loss=loss, definition=brute_force.achievable_aurc, orders=False
        ),
        "risk_at_coverage": of_score(
            ops.risk_at_coverage, 0.7, loss=loss, definition=lambda s, e: brute_force.risk_at_coverage(s, e, exact(0.7))
        ),
        "coverage_at_risk": of_score(
            ops.coverage_at_risk,
            0.4,
            loss=loss,
            definition=lambda s, e: brute_force.coverage_at_risk(s, e, exact(0.4)),
            orders=False,
        ),
        "coverage_at_risk_nearest": of_score(
            ops.coverage_at_risk_nearest,
            0.4,
            min_count=3,
            loss=loss,
            definition=lambda s, e: brute_force.coverage_at_risk_nearest(s, e, exact(0.4), 3),
            orders=False,
        ),
        "selective_accuracy_constraint": of_score(
            ops.selective_accuracy_constraint,
            0.6,
            loss=loss,
            definition=lambda s, e: brute_force.coverage_at_risk(s, e, exact(0.4)),
            orders=False,
        ),
        "threshold_at_risk": of_score(
            ops.threshold_at_risk,
            0.4,
            loss=loss,
            definition=lambda s, e: brute_force.threshold_at_risk(s, e, exact(0.4)),
            orders=False,
            rows=False,
            ranks=False,
        ),
        "risk_coverage_curve[expect]": of_score(
            ops.risk_coverage_curve,
            loss=loss,
            definition="test_risk_coverage.py::test_curve_is_the_expectation_over_tie_orders",
            orders=("coverage", "risk", "generalized_risk"),
            rows=False,
            ranks=False,
            drawn=generalized,
            real="risk",
        ),
        "risk_coverage_curve[collapse]": of_score(
            ops.risk_coverage_curve,
            ties="collapse",
            loss=loss,
            definition="test_risk_coverage.py::test_the_collapsed_curve_has_the_points_of_thresholds",
            orders=False,
            rows=False,
            ranks=False,
            drawn=generalized,
            real="risk",
        ),
        "scod_aurc": Metric(
            lambda c, **kw: ops.scod_aurc(c["score"], c[loss], c["is_ood"], ood_cost=2, **kw),
            "test_scod.py::test_areas_state_their_mix",
        ),
        "scod_curve": Metric(
            lambda c, **kw: ops.scod_curve(c["score"], c[loss], c["is_ood"], ood_cost=2, **kw),
            "test_scod.py::test_risks_at_counts_are_expectations_over_tie_orders",
            orders=("coverage", "risk", "generalized_risk"),
            rows=False,
            ranks=False,
            drawn=generalized,
            real="risk",
        ),
        "selective_gap_budget": Metric(
            lambda c, **kw: ops.selective_gap_budget(c["score"], c[loss], c["other"], c["other"] / 2, **kw),
            "test_selective_gap.py::test_parts_are_their_definitions",
        ),
        "group_report": Metric(
            lambda c, **kw: ops.group_report(c["score"], c[loss], c["group"], 0.7, groups=3, **kw),
            "test_groups.py::test_report_counts_by_hand",
            orders=("aurc", "failure_auroc", "risk_at_coverage"),
            rows=False,
            ranks=False,
            real="error",
        ),
    }


def mean_of_losses(losses: Callable) -> Callable:
    return lambda columns: float(np.mean(losses(columns["logits"], columns["label"])))


SOFT = register("soft")
METRICS = register("error") | {
    "aurc_at_error": of_score(
        ops.aurc_at_error,
        0.3,
        definition="test_areas.py::test_aurc_at_error_of_a_sample_has_real_weights",
        orders=False,  # right and wrong rows count differently
    ),
    "summarise": of_score(
        ops.summarise,
        definition="test_summary.py::test_summary_is_each_metric",
        orders=("error", "aurc", "e_aurc", "naurc", "augrc", "failure_auroc", "risk_at_coverage_0.8"),
    ),
    "failure_auroc": of_score(ops.failure_auroc, definition=brute_force.failure_auroc),
    "auroc": of_score(ops.auroc, definition=lambda s, e: brute_force.failure_auroc(s, 1 - e)),
    "average_precision[expect]": of_score(
        ops.average_precision, definition="test_detection.py::test_average_precision_is_the_expectation_over_tie_orders"
    ),
    "average_precision[collapse]": of_score(
        ops.average_precision,
        "collapse",
        definition="test_detection.py::test_collapsed_average_precision_equals_scikit_learn",
        orders=False,
    ),
    "fpr_at_tpr": of_score(
        ops.fpr_at_tpr, 0.7, definition="test_detection.py::test_fpr_at_tpr_by_definition", orders=False
    ),
    "ood_fpr_at_tpr[id]": of_score(
        ops.ood_fpr_at_tpr, 0.7, definition="test_detection.py::test_ood_fpr_at_tpr_by_definition", orders=False
    ),
    "ood_fpr_at_tpr[ood]": of_score(
        ops.ood_fpr_at_tpr, 0.7, "ood", definition="test_detection.py::test_ood_fpr_at_tpr_by_definition", orders=False
    ),
    "delong_interval": of_score(
        ops.delong_interval,
        definition="test_detection.py::test_delong_is_the_covariance_of_placements",
        orders=("auroc",),
        weighted=False,
    ),
    "delong": Metric(
        lambda c, **kw: ops.delong(c["score"], c["other"], c["error"], **kw),
        "test_detection.py::test_delong_is_the_covariance_of_placements",
        orders=("auroc_a", "auroc_b", "difference"),
        weighted=False,
    ),
    "realisable_coverage": Metric(
        lambda c, **kw: ops.realisable_coverage(c["score"], 0.4, **kw),
        lambda c: brute_force.realisable_coverage(c["score"], exact(0.4)),
        orders=False,
    ),
    "threshold_at_coverage": Metric(
        lambda c, **kw: ops.threshold_at_coverage(c["score"], 0.4, **kw),
        lambda c: brute_force.threshold_at_coverage(c["score"], exact(0.4)),
        orders=False,
        rows=False,
        ranks=False,
    ),
    "selective_gap": of_score(
        ops.selective_gap,
        definition="test_selective_gap.py::test_gap_is_perfect_less_actual_accuracy_over_tie_orders",
        rows=False,
        drawn=lambda gap: (gap.coverage, gap.coverage * (1 - gap.accuracy)),
        real="gap",
    ),
    **{
        f"expected_calibration_error[{scheme}]": of_score(
            ops.expected_calibration_error,
            bins=4,
            scheme=scheme,
            definition=lambda s, e, scheme=scheme: brute_calibration.calibration_error(s.tolist(), 1 - e, 4, scheme, 1),
            orders=False,
            ranks=False,
        )
        for scheme in ("width", "mass")
    },
    "reliability_table": of_score(
        ops.reliability_table,
        bins=4,
        definition="test_calibration_error.py::test_ece_follows_from_the_table",
        orders=False,
        ranks=False,
        real="accuracy",
    ),
    "smooth_ece": of_score(
        ops.smooth_ece,
        grid=256,
        definition="test_calibration_error.py::test_smooth_ece_is_the_bandwidth_that_equals_the_area_of_the_smoothed_residuals",
        orders=False,
        ranks=False,
    ),
    **{
        name: Metric(
            lambda c, metric=metric, **kw: metric(c["probabilities"], c["label"], bins=4, **kw),
            f"test_calibration_error.py::{test}",
            orders=False,
            ranks=False,
        )
        for name, metric, test in (
            (
                "classwise_calibration_error",
                ops.classwise_calibration_error,
                "test_classwise_ece_is_the_mean_over_classes_of_the_loop_over_bins",
            ),
            (
                "adaptive_calibration_error",
                ops.adaptive_calibration_error,
                "test_adaptive_ece_is_the_mean_over_classes_and_ranges_where_there_are_no_ties",
            ),
            ("brier_decomposition", ops.brier_decomposition, "test_the_brier_score_decomposes_exactly"),
        )
    },
    "negative_log_likelihood": Metric(
        lambda c, **kw: ops.negative_log_likelihood(c["logits"], c["label"], **kw),
        mean_of_losses(ops.log_loss),
        orders=False,
        ranks=False,
    ),
    "brier_score": Metric(
        lambda c, **kw: ops.brier_score(c["logits"], c["label"], **kw),
        mean_of_losses(ops.brier_loss),
        orders=False,
        ranks=False,
    ),
}
EVERY = {name: METRICS[name] for name in METRICS} | {f"{name}-soft": metric for name, metric in SOFT.items()}
WEIGHTED = {name: metric for name, metric in EVERY.items() if metric.weighted}

NO_METRIC = {
    "what metrics are computed from": ("Ranking", "RiskCoverageCurve", "rank", "rank_over_axis", "harmonic_difference"),
    "scores of logits, one example at a time": (
        *(
            "abstention_log_odds",
            "disagreement",
            "doctor_alpha",
            "doctor_beta",
            "energy",
            "ensemble_log_probabilities",
            "expected_entropy",
        ),
        *("log_softmax", "logit_margin", "margin", "max_logit", "max_logit_pnorm", "max_probability"),
        *("max_probability_as_stored", "mean_max_probability", "msp", "msp_pnorm", "mutual_information"),
        *("negative_entropy", "negative_gini", "predicted_class", "sirc", "variation_ratio", "entmax_confidence"),
    ),
    "scores that shape features, and the gradient of the last layer": ("ash", "fit_react", "gradnorm", "react"),
    "fitted scores and their states": (
        *(
            "fit_knn",
            "fit_mahalanobis",
            "fit_residual",
            "fit_temperature",
            "fit_vim",
            "knn_distance",
            "mahalanobis",
            "residual",
        ),
        *("sirc_parameters", "vim"),
    ),
    "rules that weigh doubt against outlyingness, one example at a time": (
        *("ScodCosts", "inlier_mixing", "joint_scod_score", "log_outlier_ratio", "plugin_scod_score"),
        "scod_costs_at_multiplier",
    ),
    "a rule and a posterior, one example at a time": ("chow_accepts", "gaussian_log_posterior"),
    "losses and weights, one per example": (
        *("brier_loss", "class_balanced_loss", "conditional_risks", "log_loss", "mixture_weight", "scod_loss"),
    ),
    "to train with": ("aurc_loss",),
    "gradients, and what losses do to the max logit": (
        *("acls_gradient", "confidence_penalty_gradient", "cross_entropy_gradient", "expected_extra_gradient_on_max"),
        *("expected_suppression", "extra_gradient_on_max", "focal_loss_gradient", "log_score_shift_derivative"),
        *("logit_norm_cross_entropy_gradient", "margin_label_smoothing_gradient", "max_logit_suppression"),
        *("max_suppression_gradient", "mixed_cross_entropy_gradient", "smoothed_binary_cross_entropy_gradient"),
        *("smoothed_cross_entropy_gradient", "smoothing_gradient", "soft_cross_entropy_gradient"),
    ),
    "intervals of a metric": ("bootstrap", "crossed_bootstrap", "paired_bootstrap"),
    "a bound, without data": ("perfect_ordering_accuracy",),
    "nonconformity of classes, and its quantiles": (
        *("aps", "conformal_quantile", "lac", "raps", "saps", "top_k_rank", "weighted_conformal_quantile"),
    ),
    "bounds of counts and means": (
        *("betting_interval", "betting_upper", "binomial_p_value", "clopper_pearson_interval", "clopper_pearson_lower"),
        *(
            "clopper_pearson_upper",
            "confidence_sequence",
            "empirical_bernstein_interval",
            "empirical_bernstein_upper",
            "hoeffding_bentkus_p_value",
        ),
        *("hoeffding_bentkus_upper", "log_evidence", "wilson_interval"),
    ),
    "a contrast of two groups, without a loss": ("difference_at_equal",),
}

each = pytest.mark.parametrize("name", EVERY)
each_weighted = pytest.mark.parametrize("name", WEIGHTED)


def parts_of(value: Any) -> dict[str, Any]:
    """The arrays of a value by their names."""
    value = value._asdict() if hasattr(value, "_asdict") else value
    value = value if isinstance(value, dict) else {"": value}
    return {name: part for name, part in value.items() if part is not None}


def parts(value: Any) -> dict[str, np.ndarray]:
    return {name: on_host(part) for name, part in parts_of(value).items()}


def on_host(array: Any) -> np.ndarray:
    array = array if isinstance(array, (np.ndarray, np.generic, jax.Array)) else np.from_dlpack(array)
    return np.asarray(array, np.float64)


def assert_same(value: Any, expected: Any, rtol: float = 1e-12, atol: float = 1e-13) -> None:
    value, expected = parts(value), parts(expected)
    assert set(value) == set(expected)
    for name, part in expected.items():
        np.testing.assert_allclose(value[name], part, rtol=rtol, atol=atol, err_msg=name)


def assert_same_metric(name: str, value: Any, expected: Any, rtol: float = 1e-12, atol: float = 1e-13) -> None:
    """Curves may have other points: those of the one must lie on the other."""
    drawn = EVERY[name].drawn
    if drawn is None:
        assert_same(value, expected, rtol, atol)
        return
    (x, y), (x_fine, y_fine) = ([on_host(axis) for axis in drawn(curve)] for curve in (value, expected))
    on_curve = np.interp(x, np.append(0, x_fine), np.append(0, y_fine))
    np.testing.assert_allclose(y, on_curve, rtol=rtol, atol=max(atol, 2e-15))
    assert len(y) > 0


def take(columns: dict[str, np.ndarray], rows: np.ndarray) -> dict[str, np.ndarray]:
    return {name: column[rows] for name, column in columns.items()}


def convert(columns: dict[str, np.ndarray], convert_one: Callable[[np.ndarray], Any]) -> dict[str, Any]:
    return {name: convert_one(column) for name, column in columns.items()}


def test_every_export_is_registered():
    registered = {name.split("[")[0] for name in METRICS}
    elsewhere = [name for names in NO_METRIC.values() for name in names]
    assert len(elsewhere) == len(set(elsewhere))
    assert not registered & set(elsewhere)
    exports = set(ops.__all__)
    assert not exports - registered - set(elsewhere), "neither in METRICS nor in NO_METRIC"
    assert not (registered | set(elsewhere)) - exports, "not exported"


def test_every_definition_is_tested():
    for name, metric in EVERY.items():
        if isinstance(metric.definition, str):
            file, test = metric.definition.split("::")
            assert f"def {test}(" in (Path(__file__).parent / file).read_text(), name


# Brute force


@pytest.mark.parametrize("name", [name for name, metric in EVERY.items() if callable(metric.definition)])
def test_brute_force(name):
    metric = EVERY[name]
    for seed in range(25):
        columns = sample(seed, 2 + seed % 5)
        value = metric.call(columns)
        np.testing.assert_allclose(value, float(metric.definition(columns)), rtol=1e-12, atol=1e-14)


# Permutation and ties


@each
def test_permutation(name):
    metric = EVERY[name]
    for seed in range(5):
        columns, rng = sample(seed, 40), np.random.default_rng(seed)
        value = metric.call(columns)
        by_loss = np.lexsort(
            (columns["soft"], columns["error"], columns["score"])
        )  # within ties the best first, or last
        for order in (rng.permutation(40), np.arange(40)[::-1], by_loss, by_loss[::-1]):
            assert_same(metric.call(take(columns, order)), value)
            if metric.weighted:
                weight = rng.integers(0, 4, 40)
                assert_same(
                    metric.call(take(columns, order), weight=weight[order]), metric.call(columns, weight=weight)
                )


HARD_RANKS = [
    name for name in METRICS if name.split("[")[0] in ("aurc", "augrc", "failure_auroc", "summarise", "naurc")
]


@pytest.mark.parametrize("name", HARD_RANKS)
def test_the_order_of_errors_does_not_matter_at_all(name):
    metric = METRICS[name]
    for seed in range(5):
        columns = sample(seed, 200)
        value = metric.call(columns)
        order = np.random.default_rng(seed).permutation(200)
        assert_same(metric.call(take(columns, order)), value, 0, 0)  # bit for bit


@pytest.mark.parametrize("name", [name for name, metric in EVERY.items() if metric.orders])
def test_ties_are_the_expectation_over_their_orders(name):
    metric = EVERY[name]
    for seed in range(6):
        columns = sample(seed, 6)
        value = parts(metric.call(columns))
        broken = []
        for order in brute_force.orders(columns["score"].tolist()):
            rank = np.empty(6)
            rank[order] = -np.arange(6.0)
            broken.append(parts(metric.call(columns | {"score": rank})))
        for part in value if metric.orders is True else metric.orders:
            mean = np.mean([one[part] for one in broken], axis=0)
            np.testing.assert_allclose(value[part], mean, rtol=1e-12, atol=1e-13, err_msg=part)


@pytest.mark.parametrize("name", [name for name, metric in EVERY.items() if metric.ranks])
def test_only_the_ranking_counts(name):
    metric = EVERY[name]
    for seed in range(5):
        columns = sample(seed, 30)
        value = metric.call(columns)
        for increasing in (lambda s: s**3 - 7, lambda s: 1e-300 * s, np.exp, lambda s: (8 * s).astype(int)):
            assert_same(metric.call(columns | {"score": increasing(columns["score"])}), value)


# Weight


@each_weighted
def test_weight_is_repeated_rows(name):
    metric = WEIGHTED[name]
    for seed in range(12):
        columns = sample(seed)
        weight = np.random.default_rng(seed).integers(0, 4, N)
        repeated = metric.call(take(columns, np.repeat(np.arange(N), weight)))
        assert_same_metric(name, metric.call(columns, weight=weight), repeated)


@each_weighted
def test_weight_0_is_a_deleted_row(name):
    metric = WEIGHTED[name]
    for seed in range(5):
        columns = sample(seed)
        weight = np.random.default_rng(seed).integers(0, 2, N)
        weight[:2] = 1
        columns["score"][2] = 0.875  # above all others, without weight
        weight[2] = 0
        deleted = metric.call(take(columns, weight > 0))
        assert_same_metric(name, metric.call(columns, weight=weight), deleted)


@pytest.mark.parametrize("name", [name for name, metric in WEIGHTED.items() if metric.rows])
def test_rows_of_weights(name):
    metric = WEIGHTED[name]
    columns = sample(3)
    weight = np.random.default_rng(0).integers(0, 3, (2, 3, N))
    weight[1, 1] = 0
    values = parts(metric.call(columns, weight=weight))
    for index in np.ndindex(2, 3):
        row = parts(metric.call(columns, weight=weight[index]))
        for part, value in values.items():
            np.testing.assert_allclose(value[index], row[part], rtol=1e-12, atol=1e-13, err_msg=part)


@each_weighted
def test_dtype_of_weights(name):
    metric = WEIGHTED[name]
    columns = sample(4)
    weight = np.random.default_rng(1).integers(0, 2, N)
    value = metric.call(columns, weight=weight)
    for dtype in (bool, "uint8", "int8", "uint16", "int32", "int64", "uint64", "float16", "float64"):
        assert_same(metric.call(columns, weight=weight.astype(dtype)), value)
    weight[2:5] = 120  # more of them than the narrow ones can count to
    value = metric.call(columns, weight=weight)
    for dtype in ("uint8", "int8", "float16"):
        assert_same(metric.call(columns, weight=weight.astype(dtype)), value)


# Mask


def masked(columns: dict[str, np.ndarray], where: np.ndarray) -> dict[str, np.ndarray]:
    """The columns with anything where nothing is."""
    return {
        name: np.where(where.reshape(-1, *(1,) * (column.ndim - 1)), column, np.nan)
        if column.dtype.kind == "f"
        else column
        for name, column in columns.items()
    }


@each
def test_where_is_deletion(name):
    metric = EVERY[name]
    for seed in range(5):
        columns, rng = sample(seed), np.random.default_rng(seed)
        where = rng.integers(0, 2, N).astype(bool)
        where[:2] = True
        for options in [{}] + [{"weight": rng.integers(1, 4, N)}] * metric.weighted:
            value = metric.call(masked(columns, where), where=where, **options)
            deleted = metric.call(take(columns, where), **{key: w[where] for key, w in options.items()})
            assert_same(value, deleted)


@each
def test_nothing_left_is_nan(name):
    metric = EVERY[name]
    columns = sample(5)
    ways = [{"where": np.zeros(N, bool)}] + ([{"weight": np.zeros(N)}] if metric.weighted else [])
    for options in ways:
        value = parts(metric.call(columns, **options))
        for part in [metric.real] if metric.real else value:
            assert np.isnan(value[part]).all(), part


# Dtype


@each
def test_dtype_of_scores(name):
    metric = EVERY[name]
    columns = sample(6)
    for dtype in (np.float16, np.float32, ml_dtypes.bfloat16):
        assert_same(metric.call(convert(columns, lambda x, dtype=dtype: narrowed(x, dtype))), metric.call(columns))


def narrowed(column: np.ndarray, dtype: Any) -> np.ndarray:
    return column.astype(dtype) if column.dtype.kind == "f" else column


@each
def test_dtype_of_losses(name):
    metric = EVERY[name]
    columns = sample(7)
    value = metric.call(columns)
    for dtype in (bool, "int8", "uint8", "uint64", "float16", ml_dtypes.bfloat16, "float64"):
        assert_same(metric.call(columns | {key: columns[key].astype(dtype) for key in ("error", "is_ood")}), value)


# Backends


def counted(columns: dict[str, np.ndarray], weight: Any = None, where: Any = None) -> dict[str, np.ndarray]:
    """The rows that weight and mask stand for."""
    times = np.ones(N, int) if weight is None else weight
    return take(columns, np.repeat(np.arange(N), times if where is None else times * where))


@each
@pytest.mark.parametrize("library", ["torch", "array_api_strict"])
def test_other_libraries(name, library):
    xp = pytest.importorskip(library)
    metric = EVERY[name]
    columns, rng = sample(8), np.random.default_rng(8)
    where, weight = rng.integers(0, 3, N) > 0, rng.integers(0, 4, N)
    for options in [{}, {"where": where}] + [{"weight": weight}, {"weight": weight, "where": where}] * metric.weighted:
        value = metric.call(convert(columns, xp.asarray), **convert(options, xp.asarray))
        assert type(jax.tree.leaves(value)[0]).__module__.split(".")[0] == library
        if not options and not name.startswith("risk_coverage_curve[collapse]"):  # there a block is repeated
            assert_same(value, metric.call(columns))
        assert_same_metric(name, value, metric.call(counted(columns, **options)))
    if metric.rows and metric.weighted:
        rows = rng.integers(0, 4, (2, 2, N))
        assert_same(
            metric.call(convert(columns, xp.asarray), weight=xp.asarray(rows)), metric.call(columns, weight=rows)
        )


DEFAULT_DEVICE = ("scod", "group_report", "delong")  # these make their constants there


@pytest.mark.parametrize("name", [name for name in METRICS if not name.startswith(DEFAULT_DEVICE)])
def test_values_are_where_the_arrays_are(name):
    strict = pytest.importorskip("array_api_strict")
    place = strict.Device("device1")
    metric = METRICS[name]
    columns, weight = sample(8), np.random.default_rng(8).integers(0, 4, N)
    options = {"where": weight > 0} | ({"weight": weight} if metric.weighted else {})
    for given in ({}, options):
        value = metric.call(
            convert(columns, lambda column: strict.asarray(column, device=place)),
            **convert(given, lambda column: strict.asarray(column, device=place)),
        )
        assert all(part.device == place for part in parts_of(value).values())
    if metric.weighted and metric.rows and metric.ranks:  # weights may come from the host: resamples do
        metric.call(convert(columns, lambda column: strict.asarray(column, device=place)), weight=weight)


DEVICE = {"rtol": 3e-6, "atol": 1e-6}
DERIVED = ("e_aurc", "naurc", "prr", "optimal_aurc")
ON_JAX = [name for name in METRICS if not name.startswith(DERIVED) or name.endswith("[mean]")]  # one estimator will do
COMPILED = [
    *ON_JAX,
    *(f"{name}-soft" for name in ("aurc[mean]", "augrc", "achievable_aurc", "risk_coverage_curve[expect]")),
]


@pytest.mark.parametrize("name", ON_JAX)
def test_jax(name):
    metric = EVERY[name]
    columns = sample(9)
    value = metric.call(convert(columns, jnp.asarray))
    if not name.startswith("risk_coverage_curve[collapse]"):
        assert_same(value, metric.call(columns), **DEVICE)
    assert_same_metric(name, value, metric.call(columns), **DEVICE)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(value))


@pytest.mark.parametrize("name", COMPILED)
def test_jax_compiled_mapped_masked_and_narrow(name):
    metric = EVERY[name]
    cases, rng = [sample(seed) for seed in (10, 11, 12)], np.random.default_rng(10)
    options = {"where": rng.integers(0, 4, (3, N)) > 0}
    options |= {"weight": rng.integers(0, 4, (3, N)).astype(np.uint8)} if metric.weighted else {}
    anything = [masked(case, where) for case, where in zip(cases, options["where"], strict=True)]
    stacked = {key: np.stack([case[key] for case in anything]) for key in cases[0]}
    stacked["error"] = stacked["error"].astype(bool)
    given = convert(stacked, lambda column: jnp.asarray(narrowed(column, ml_dtypes.bfloat16)))
    call = jax.vmap(lambda columns, options: metric.call(columns, **options))
    values = brute_force.quickly(call, given, convert(options, jnp.asarray))
    for key, leaf in parts_of(values).items():
        assert key == "threshold" or leaf.dtype in (jnp.float32, jnp.int32)  # a threshold is one of the scores
    for i, case in enumerate(cases):
        value = jax.tree.map(lambda leaf, i=i: leaf[i], values)
        rows = counted(case, **{key: option[i] for key, option in options.items()})
        assert_same_metric(name, value, metric.call(rows), **DEVICE)


NOT_OF_THE_SCORE = {
    "scod_aurc": ("ood_share",),
    "selective_gap_budget": ("perfect", "noise", "bayes", "approximation"),
    "delong": ("auroc_b",),
}


@pytest.mark.parametrize("name", [name for name, m in METRICS.items() if m.ranks and "optimal" not in name])
def test_nan_scores_are_refused_or_make_nan(name):
    metric = METRICS[name]
    columns = sample(15)
    columns["score"][4] = np.nan
    with pytest.raises(ValueError, match=r"1 scores are NaN \(first at 4\)"):
        metric.call(columns)
    value = parts(metric.call(convert(columns, jnp.asarray)))
    for part in [metric.real] if metric.real else set(value) - set(NOT_OF_THE_SCORE.get(name, ())):
        assert np.isnan(value[part]).all(), part


@pytest.mark.parametrize("name", [name for name, metric in EVERY.items() if metric.ranks])
def test_infinite_scores_are_the_ends_of_the_ranking(name):
    metric = EVERY[name]
    columns = sample(16)
    score = columns["score"]
    infinite = np.where(score == score.max(), np.inf, np.where(score == score.min(), -np.inf, score))
    assert_same(metric.call(columns | {"score": infinite}), metric.call(columns))


def test_the_battery_draws_what_it_promises():
    for seed in range(17):
        columns = sample(seed)
        assert 1 < len(np.unique(columns["score"])) < N
        assert 0 < columns["error"].mean() < 1
        for column in columns.values():
            np.testing.assert_array_equal(column.astype(ml_dtypes.bfloat16).astype(float), column)
