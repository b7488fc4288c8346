"""Temperature scaling as a score."""

import numpy as np
from made_up import predictions

from sc_jax import ops
from sc_jax.methods import scores, temperature


def test_the_score_is_msp_at_the_fitted_temperature():
    calibration, test = predictions(1), predictions(2)
    state = temperature.fit(calibration)
    assert state.temperature == ops.fit_temperature(calibration.logits, calibration.label)
    top = np.sort(test.logits / state.temperature, axis=-1)
    expected = -np.log(np.exp(top[:, :-1] - top[:, -1:]).sum(axis=-1))
    np.testing.assert_allclose(temperature.apply(state, test), expected, rtol=1e-9)


def test_it_is_a_score_by_name():
    score = scores.named(["msp_temperature"])["msp_temperature"]
    calibration, test = predictions(1), predictions(2)
    found = score.apply(score.fit(calibration), test)
    np.testing.assert_array_equal(found, temperature.apply(temperature.fit(calibration), test))
