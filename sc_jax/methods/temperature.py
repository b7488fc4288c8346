"""Temperature scaling as a score: MSP of v/T, T of least log loss on a calibration split.

T changes the order of MSP where there are three classes or more, since it weighs the rivals of the predicted class anew.
Source: Guo et al., ICML 2017; as a score for selective classification: Cattelan & Silva, UAI 2024.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from sc_jax import ops
from sc_jax.predictions import Predictions


class Temperature(NamedTuple):
    """What was fitted: T."""

    temperature: float


def fit(calibration: Predictions) -> Temperature:
    """T of least log loss on `calibration`, with its survey weights where it has them."""
    return Temperature(ops.fit_temperature(calibration.logits, calibration.label, weight=calibration.weight))


def apply(state: Temperature, predictions: Predictions) -> np.ndarray:
    """MSP of v/T: [n]."""
    return ops.msp(predictions.logits / state.temperature)
