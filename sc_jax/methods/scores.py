"""The confidence scores that `evaluate` knows by name. To add one: a function in `sc_jax.ops.scores`, a line here."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from sc_jax import ops
from sc_jax.files import InputError
from sc_jax.predictions import Predictions


class Score(NamedTuple):
    """A score by name.

    Attributes:
      of: logits [n, k] → [n], for scores that need no fitting; None for logit norm, whose p is tuned.
      fallback: for logit norm, whether MSP is a candidate.
      true_logits: log-probabilities will not do.
    """

    of: Callable[[np.ndarray], np.ndarray] | None = None
    fallback: bool = False
    true_logits: bool = False

    @property
    def tuned(self) -> bool:
        """Whether it needs a calibration split."""
        return self.of is None


SCORES = {
    "msp": Score(ops.msp),
    "max_logit": Score(ops.max_logit, true_logits=True),
    "max_logit_pnorm": Score(),
    "max_logit_pnorm_or_msp": Score(fallback=True),
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
    """Why `score` cannot be computed here, or None if it can."""
    if score.true_logits and predictions.log_probabilities:
        return "needs true logits; the file has probabilities"
    if not score.tuned:
        return None
    if predictions.num_classes < 3:
        return f"not defined for k = {predictions.num_classes} classes"
    if not np.isfinite(predictions.logits).all():
        return "not defined where a probability is exactly 0"
    if calibration is None:
        return "needs tuning: give --calibration=FILE.npz, another split of the same model"
    if not np.isfinite(calibration.logits).all():
        return "not defined where a probability of the calibration file is exactly 0"
    return None
