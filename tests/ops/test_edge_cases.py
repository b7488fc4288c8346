"""What metrics are where they could crash or lie: no sample, one, all right, all wrong, no order, huge counts."""

import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from brute_force import SOFT_LOSSES, quickly, reproducible, samples
from hypothesis import given
from hypothesis import strategies as st
from test_battery import METRICS, SOFT

from sc_jax import ops

nan = math.nan
ERRORS_ONLY = (
    *("failure_auroc", "auroc", "average_precision", "fpr_at_tpr", "aurc_at_error", "summarise", "selective_gap"),
    *("expected_calibration_error", "smooth_ece", "reliability_table"),
)
OF_SCORE_AND_LOSS = [name for name in METRICS if name in SOFT or name.split("[")[0] in ERRORS_ONLY]


def columns(score, error):
    """What the metrics of the battery ask for, of these scores and errors."""
    n = len(score)
    zero = np.zeros(n, int)
    return {"score": score, "error": error, "other": score, "group": zero, "is_ood": zero}


def ln(n):
    return sum(math.log((n + 1) / k) for k in range(1, n + 1)) / n


def of_equal_losses(loss, n):
    """Every metric of n samples with the same loss; the score plays no part in most."""
    areas = {
        "mean": loss,
        "trapezoid_from_zero": loss * (1 - 1 / (2 * n)),
        "torch_uncertainty": loss if n > 1 else nan,  # no two points, no trapezoid
        "fd_shifts": loss,
        "ln": loss * ln(n),
        "sele": loss * (n + 1) / (2 * n),
    }
    values = {}
    for estimator, area in areas.items():
        values |= {f"aurc[{estimator}]": area, f"optimal_aurc[{estimator}]": area, f"e_aurc[{estimator}]": 0 * area}
        values |= {f"naurc[{estimator}]": nan, f"prr[{estimator}]": nan}  # no ranking is better than another
    return values | {
        "augrc": loss / 2,
        "e_augrc": 0,
        "partial_aurc": loss if n > 1 else nan,  # no k/1 between 0.2 and 0.7
        "partial_augrc": loss * 0.45,
        "achievable_aurc": loss,
        "risk_at_coverage": loss,
        "coverage_at_risk": float(loss <= 0.4),
        "selective_accuracy_constraint": float(loss <= 0.4),
        "coverage_at_risk_nearest": nan if n < 3 else None,  # fewer than asked for
        "threshold_at_risk": None,
        "failure_auroc": nan,
        "auroc": nan,
        "average_precision[expect]": loss or nan,
        "average_precision[collapse]": loss or nan,
        "fpr_at_tpr": nan,
        "ood_fpr_at_tpr[id]": nan,
        "ood_fpr_at_tpr[ood]": nan,
        "aurc_at_error": nan,
        "threshold_at_coverage": None,
        "realisable_coverage": None,
        "expected_calibration_error[width]": None,
        "expected_calibration_error[mass]": None,
        "smooth_ece": None,
        "negative_log_likelihood": None,
        "brier_score": None,
        "classwise_calibration_error": None,
        "adaptive_calibration_error": None,
    }


SEVERAL_PARTS = {
    *("risk_coverage_curve[expect]", "risk_coverage_curve[collapse]", "scod_aurc", "scod_curve", "selective_gap"),
    *("selective_gap_budget", "group_report", "summarise", "delong", "delong_interval", "reliability_table"),
    "brier_decomposition",
}


@pytest.mark.parametrize("n", [1, 2, 9])
@pytest.mark.parametrize("loss", [0, 1])
def test_all_right_and_all_wrong(loss, n):
    expected = of_equal_losses(loss, n)
    assert set(expected) | SEVERAL_PARTS == set(METRICS)
    score = np.arange(n) // 2
    for given_score in (score, np.zeros(n), score[::-1] * 1.0, np.full(n, np.inf)):
        given_columns = columns(given_score, np.full(n, loss))
        for name, value in expected.items():
            if value is not None:
                got = METRICS[name].call(given_columns)
                np.testing.assert_allclose(got, value, rtol=1e-12, atol=1e-15, err_msg=name)
        threshold = ops.threshold_at_risk(given_score, np.full(n, loss), 0.4)
        np.testing.assert_equal(float(threshold), nan if loss else given_score.min())  # nothing, or all
        curve = ops.risk_coverage_curve(given_score, np.full(n, loss))
        np.testing.assert_allclose(curve.risk, loss, rtol=1e-15)
        gap = ops.selective_gap(given_score, np.full(n, loss))
        np.testing.assert_allclose(gap.gap, 0, atol=1e-15)


@pytest.mark.parametrize("n", [1, 9])
def test_all_right_and_all_wrong_on_devices(n):
    summary = jax.jit(lambda score, error: (ops.summarise(score, error), ops.risk_coverage_curve(score, error).risk))
    for loss in (0, 1):
        score, error = np.arange(n) // 2, np.full(n, loss)
        values, risk = summary(jnp.asarray(score), jnp.asarray(error))
        for name, value in ops.summarise(score, error).items():
            np.testing.assert_allclose(values[name], value, rtol=2e-6, atol=1e-6, err_msg=name)
        np.testing.assert_allclose(risk, loss, rtol=1e-6)


@given(samples(min_size=2, max_size=12))
@reproducible
def test_a_constant_score_tells_nothing(sample):
    error = sample[1]
    n, err = len(error), error.mean()
    areas = {"mean": err, "trapezoid_from_zero": err * (1 - 1 / (2 * n)), "torch_uncertainty": err, "fd_shifts": err}
    areas |= {"ln": err * ln(n), "sele": err * (n + 1) / (2 * n)}
    expected = {
        **{f"aurc[{estimator}]": area for estimator, area in areas.items()},
        **{f"naurc[{estimator}]": 1 if 0 < err < 1 else nan for estimator in areas},
        **{f"prr[{estimator}]": 0 if 0 < err < 1 else nan for estimator in areas},
        "augrc": err / 2,
        "e_augrc": err / 2 - err**2 / 2,
        "partial_augrc": err * 0.45,
        "achievable_aurc": err,
        "risk_at_coverage": err,
        "coverage_at_risk": float(err <= 0.4),
        "threshold_at_risk": 0.5 if err <= 0.4 else nan,
        "threshold_at_coverage": 0.5,
        "realisable_coverage": 1,
        "failure_auroc": 0.5 if 0 < err < 1 else nan,
        "auroc": 0.5 if 0 < err < 1 else nan,
        "average_precision[collapse]": err or nan,
        "fpr_at_tpr": 1 if 0 < err < 1 else nan,
    }
    for constant in (0.5, np.inf, -np.inf):
        given_columns = columns(np.full(n, constant), error)
        for name, value in expected.items():
            exact = constant if value == 0.5 and name.startswith("threshold") else value
            np.testing.assert_allclose(METRICS[name].call(given_columns), exact, rtol=1e-11, atol=1e-14, err_msg=name)


@pytest.mark.parametrize("xp", [np, jnp])
@pytest.mark.parametrize("name", OF_SCORE_AND_LOSS)
def test_no_sample_is_refused(name, xp):
    nothing = {"group": xp.zeros(0, dtype=int), "is_ood": xp.zeros(0, dtype=int)}
    nothing |= {"score": xp.zeros(0), "other": xp.zeros(0), "error": xp.zeros(0, dtype=int)}
    with pytest.raises(ValueError, match=r"empty|n = 0|at least one"):
        METRICS[name].call(nothing)


@pytest.mark.parametrize("name", [name for name in OF_SCORE_AND_LOSS if name not in SOFT])
def test_soft_losses_are_refused_where_errors_are_counted(name):
    given_columns = columns(np.array([0.9, 0.5, 0.1]), np.array([0.0, 0.5, 1.0]))
    with pytest.raises(ValueError, match=r"0/1|soft"):
        METRICS[name].call(given_columns)
    with pytest.raises(ValueError, match=r"0/1|soft"):  # of floats on devices the values are not known
        METRICS[name].call({key: jnp.asarray(column) for key, column in given_columns.items()})
    METRICS[name].call(given_columns | {"error": np.array([0.0, 1.0, 1.0])})


@pytest.mark.parametrize("name", [name for name in OF_SCORE_AND_LOSS if name in SOFT and "optimal" not in name])
def test_shapes_must_agree(name):
    given_columns = columns(np.array([0.9, 0.5, 0.1]), np.array([0, 0, 1]))
    for short in ("score", "error"):
        with pytest.raises(ValueError, match=r"must|shape"):
            METRICS[name].call(given_columns | {short: given_columns[short][:2]})


@given(st.one_of(samples(max_size=30), samples(SOFT_LOSSES, max_size=30)))
@reproducible
def test_at_full_coverage_there_is_the_mean_loss(sample):
    score, loss = sample
    curve, points = (ops.risk_coverage_curve(score, loss, ties=ties) for ties in ("expect", "collapse"))
    for risk in (curve.risk[-1], points.risk[-1], ops.risk_at_coverage(score, loss, 1)):
        np.testing.assert_allclose(risk, loss.mean(), rtol=1e-14)  # divided by n, not by n ± 1
    assert curve.coverage[-1] == points.coverage[-1] == 1
    assert curve.threshold[-1] == points.threshold[-1] == score.min()
    total = sum((Fraction(float(value)) for value in loss), Fraction(0))
    assert ops.coverage_at_risk(score, loss, total / len(loss)) == 1
    assert ops.coverage_at_risk(score, loss, max(SOFT_LOSSES)) == 1


@given(samples(max_size=30), st.integers(0, 100))
@reproducible
def test_coverage_at_risk_never_exceeds_the_risk_asked_for(sample, percent):
    score, error = sample
    threshold = ops.threshold_at_risk(score, error, percent / 100)
    accepted = score >= threshold
    assert 100 * int(error[accepted].sum()) <= percent * int(accepted.sum())
    assert accepted.mean() == ops.coverage_at_risk(score, error, percent / 100)


@given(samples(max_size=12), st.integers(2, 5))
@reproducible
def test_copies_of_all_samples(sample, copies):
    score, error = (np.repeat(column, copies) for column in sample)
    for metric in (ops.augrc, ops.failure_auroc, ops.achievable_aurc):  # which do not know n
        np.testing.assert_allclose(metric(score, error), metric(*sample), rtol=1e-12, atol=1e-15)
    for metric in (ops.coverage_at_risk, ops.threshold_at_risk):
        np.testing.assert_array_equal(metric(score, error, 0.3), metric(*sample, 0.3))
    np.testing.assert_allclose(ops.aurc(score, error, "fd_shifts"), ops.aurc(*sample, "fd_shifts"), rtol=1e-12)


def test_aurc_of_saturated_confidences_does_not_depend_on_the_order():
    rng = np.random.default_rng(0)
    confidence = np.minimum(1, 0.6 + 0.5 * rng.random(10_000)).astype(np.float32)  # a fifth of them exactly 1
    error = rng.random(10_000) < 1.05 - confidence
    assert (confidence == 1).sum() > 1500
    stable = np.cumsum(error[np.lexsort((error, -confidence))]) / np.arange(1, 10_001)
    unlucky = np.cumsum(error[np.lexsort((~error, -confidence))]) / np.arange(1, 10_001)
    value = ops.aurc(confidence, error)
    assert stable.mean() + 0.005 < value < unlucky.mean() - 0.005  # what an unstable order makes of it
    for order in (np.lexsort((error, -confidence)), np.lexsort((~error, -confidence)), rng.permutation(10_000)):
        assert ops.aurc(confidence[order], error[order]) == value


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_counts_beyond_the_range_of_narrow_scores(dtype):
    n = 70_000  # beyond 65,504; float16 counts end there, those of bfloat16 at 256
    score = jnp.asarray(np.random.default_rng(0).random(n), dtype)
    error = np.arange(n) % 8 == 0
    exact = ops.summarise(np.asarray(score, np.float64), error)
    host = ops.summarise(np.asarray(score), error)
    assert host == exact
    area = quickly(ops.aurc, score, jnp.asarray(error))
    assert area.dtype == jnp.float32
    np.testing.assert_allclose(area, exact["aurc"], rtol=1e-6)
    narrow_loss = jnp.asarray(error, dtype)
    np.testing.assert_allclose(quickly(ops.augrc, score, narrow_loss), exact["augrc"], rtol=1e-6)


def test_counts_beyond_those_of_float32():
    weight = np.array([2**30, 1, 2**30 - 1, 1])  # float32 counts to 2²⁴
    score, error = np.array([4.0, 3.0, 2.0, 1.0]), np.array([0, 1, 0, 1])
    value = ops.aurc(score, error, weight=weight)
    k, n = 2**30, 2**31 + 1
    exact = (math.log(n / (k + 0.5)) + 1 / n) / n  # H_n − H_k and 1/n: what the two errors add
    np.testing.assert_allclose(value, exact, rtol=1e-9)
    assert ops.coverage_at_risk(score, error, Fraction(1, n - 1), weight=weight) == (n - 1) / n
    assert ops.coverage_at_risk(score, error, Fraction(1, n), weight=weight) == k / n


def test_numbers_at_the_ends_of_the_floats():
    tiny, huge = np.finfo(np.float64).smallest_subnormal, np.finfo(np.float64).max
    score = np.array([-np.inf, -huge, -tiny, -0.0, 0.0, tiny, 2 * tiny, huge, np.inf])
    error = np.array([1, 0, 1, 1, 0, 1, 0, 0, 1])
    order = np.array([0, 1, 2, 3, 3, 4, 5, 6, 7])
    for dtype in (np.float64, np.longdouble):
        assert ops.summarise(score.astype(dtype), error)["aurc"] == ops.aurc(order, error)
    losses = np.array([0.0, tiny, 1e-300, 0.0])
    assert ops.aurc(np.arange(4), losses) == pytest.approx(ops.aurc(np.arange(4), losses * 1e290) / 1e290, rel=1e-9)


def test_draws_of_narrow_weights_do_not_wrap_around():
    score, error = np.arange(40.0) % 7, np.arange(40) % 3 == 0
    weight = np.arange(100, 140)  # a draw or two of it is more than a byte
    wide = ops.bootstrap(ops.augrc, score, error, resamples=20, weight=weight)
    narrow = ops.bootstrap(ops.augrc, score, error, resamples=20, weight=weight.astype(np.uint8))
    np.testing.assert_allclose(narrow.replicates, wide.replicates, rtol=1e-12)
    pair = score, error, score[::-1], error
    wide, narrow = (
        ops.paired_bootstrap(ops.augrc, *pair, resamples=20, weight=w) for w in (weight, weight.astype("u1"))
    )
    np.testing.assert_allclose(narrow.replicates, wide.replicates, rtol=1e-12)


def test_masks_may_be_integers():
    score, loss = np.array([0.9, 0.5, 0.4, 0.1]), np.array([0.0, 0.5, 1.0, 0.0])  # soft where nothing is
    for where in (np.array([1, 0, 1, 1]), np.array([True, False, True, True])):
        for metric in (ops.failure_auroc, ops.aurc, ops.selective_gap):
            value, deleted = metric(score, loss, where=where), metric(np.delete(score, 1), np.delete(loss, 1))
            np.testing.assert_array_equal(value, deleted)


def test_one_class_is_its_own_balance():
    loss = np.array([0.0, 1.0, 0.5])
    np.testing.assert_array_equal(ops.class_balanced_loss(loss, np.array([7, 7, 7])), loss)


@pytest.mark.parametrize("n", [100, 1000])
def test_a_score_of_noise_is_at_random_level(n):
    rng = np.random.default_rng(n)
    error = rng.random(n) < 0.2
    draws = np.array([[ops.naurc(s, error), ops.augrc(s, error) / error.mean()] for s in rng.random((300, n))])
    deviation = draws.std(axis=0, ddof=1) / np.sqrt(300)
    np.testing.assert_array_less(np.abs(draws.mean(axis=0) - [1, 0.5]), 4 * deviation)
