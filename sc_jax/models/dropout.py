"""Dropout that can be left on when a network predicts."""

from __future__ import annotations

from typing import Any

import jax
from flax import nnx


class Dropout(nnx.Dropout):
    """Flax's dropout; where `stays_on` it acts in prediction too, which is Monte-Carlo dropout.

    A kept value is divided by 1 − rate, in training and here alike, so that the mean over masks is the value itself.

    Source: Gal & Ghahramani 2016, "Dropout as a Bayesian approximation", ICML, section 4.
    """

    stays_on = False

    def __call__(self, inputs: jax.Array, *, deterministic: bool, rngs: Any = None) -> jax.Array:
        """Drops at random, unless `deterministic` and not `stays_on`; the arguments are Flax's."""
        return super().__call__(inputs, deterministic=deterministic and not self.stays_on, rngs=rngs)
