"""Leave-one-out values against leaving one out."""

import numpy as np
import pytest
from brute_force import SOFT_LOSSES, reproducible, samples
from hypothesis import given

from sc_jax import ops
from sc_jax.ops.jackknife import SMOOTH, leave_one_out, standard_errors

SOFT = [metric for metric in SMOOTH if metric is not ops.failure_auroc]


def by_leaving_out(metric, score, loss):
    return [metric(np.delete(score, i), np.delete(loss, i)) for i in range(len(score))]


@pytest.mark.parametrize("metric", SMOOTH, ids=lambda metric: metric.__name__)
@given(sample=samples(max_size=12, min_size=2))
@reproducible
def test_leave_one_out_leaves_one_out(metric, sample):
    expected = by_leaving_out(metric, *sample)
    np.testing.assert_allclose(leave_one_out(metric, *sample), expected, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("metric", SOFT, ids=lambda metric: metric.__name__)
@given(sample=samples(SOFT_LOSSES, max_size=12, min_size=2))
@reproducible
def test_leave_one_out_of_soft_losses(metric, sample):
    expected = by_leaving_out(metric, *sample)
    np.testing.assert_allclose(leave_one_out(metric, *sample), expected, rtol=1e-10, atol=1e-12)


def test_a_metric_that_jumps_is_refused():
    with pytest.raises(ValueError, match=r"coverage_at_risk: BCa needs one of aurc, .*; use method='percentile'"):
        leave_one_out(ops.coverage_at_risk, np.zeros(3), np.zeros(3, int))


@given(sample=samples(max_size=12, min_size=2))
@reproducible
def test_standard_errors_are_those_of_the_leave_one_out_values(sample):
    score, error = sample
    errors = standard_errors(score, error.astype(bool))
    assert errors.keys() == {metric.__name__ for metric in SMOOTH}
    n = len(score)
    for metric in SMOOTH:
        values = np.array(by_leaving_out(metric, score, error))
        expected = np.sqrt((n - 1) / n * np.sum((values - values.mean()) ** 2))
        np.testing.assert_allclose(errors[metric.__name__], expected, rtol=1e-7, atol=1e-9, err_msg=metric.__name__)
