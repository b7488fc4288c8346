"""Values on the published outputs of a WRN-16-4 on the CIFAR-10 test set; a fifth of its confidences round to 1."""

import os
from pathlib import Path

import numpy as np
import pytest

from sc_jax import ops

FOLDER = os.environ.get("SC_JAX_EXTRA_DATA")
pytestmark = pytest.mark.skipif(FOLDER is None, reason="SC_JAX_EXTRA_DATA is not set: the folder of published outputs")


@pytest.fixture(scope="module")
def outputs():
    with np.load(Path(FOLDER) / "cifar10_test_outputs.npz") as file:
        return file["probs_wrn16_4"], file["labels"]


@pytest.fixture(scope="module")
def error(outputs):
    return outputs[0].argmax(axis=1) != outputs[1]


def test_metrics_of_the_stored_confidence(outputs, error):
    confidence = outputs[0].max(axis=1)
    assert confidence.dtype == np.float32
    assert (confidence == 1).sum() == 2469
    assert ops.aurc(confidence, error) == pytest.approx(0.0127102025, abs=1e-7)
    assert ops.augrc(confidence, error) == pytest.approx(0.010884945, abs=1e-7)
    assert ops.failure_auroc(confidence, error) == pytest.approx(0.9147925258, abs=1e-7)
    assert ops.expected_calibration_error(confidence, error, bins=15) == pytest.approx(0.0537162954, abs=1e-7)


def test_areas_through_the_realisable_points(outputs, error):
    confidence = outputs[0].max(axis=1)
    assert ops.aurc(confidence, error, "fd_shifts") == pytest.approx(0.0127053760, abs=1e-7)
    points = ops.risk_coverage_curve(confidence, error, ties="collapse")
    from_zero = np.trapezoid(np.append(0, points.risk), np.append(0, points.coverage))
    assert from_zero == pytest.approx(0.0126553760, abs=1e-7)
    n = len(error)
    exact = ops.aurc(confidence, error) - error.mean() / (2 * n)
    assert ops.aurc(confidence, error, "trapezoid_from_zero") == pytest.approx(exact, rel=1e-12)


def test_proper_losses_of_the_stored_probabilities(outputs):
    probabilities, label = outputs
    with np.errstate(divide="ignore"):
        log_p = np.log(probabilities.astype(np.float64))
    assert ops.log_loss(log_p, label).mean() == pytest.approx(0.3781695864, abs=1e-7)
    assert ops.brier_loss(log_p, label).mean() == pytest.approx(0.1438710917, abs=1e-7)


def test_the_order_of_the_samples_does_not_move_aurc(outputs, error):
    confidence = outputs[0].max(axis=1)
    value = ops.aurc(confidence, error)
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(len(error))
        assert ops.aurc(confidence[order], error[order]) == value
    for order in (
        np.lexsort((error, -confidence)),
        np.lexsort((~error, -confidence)),
    ):  # the errors of a tie last, or first
        assert ops.aurc(confidence[order], error[order]) == value


def test_log_odds_do_not_saturate(outputs, error):
    with np.errstate(divide="ignore"):
        score = ops.msp(np.log(outputs[0].astype(np.float64)))
    assert ops.aurc(score, error) == pytest.approx(0.012940, abs=1e-6)
    assert (score == score.max()).sum() < 2469
