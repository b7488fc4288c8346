"""Heads beside the classifier, for networks that are trained to abstain."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from sc_jax.files import InputError

HEADS = ("abstain_logit", "selection_logit", "auxiliary_logits")
"""The heads, by what they give."""
MOST_UNITS = 512
"""Of the hidden layer of selection."""


class Heads(nnx.Module):
    """Further outputs of a network, of the same input as its last layer.

    `abstain_logit`: one linear unit, which with the K of the classifier is a layer of K + 1. `selection_logit`: a hidden layer as wide as the
    input but of 512 units at most, ReLU, one linear unit; its sigmoid is SelectiveNet's g. `auxiliary_logits`: a second classifier, SelectiveNet's h. For d
    features and w = min(d, 512): d + 1, dw + 2w + 1 and dK + K parameters.

    Source: Geifman & El-Yaniv, ICML 2019, whose selection head has 512 units, BatchNorm and a division by 10 before the last; the last two are left out here.

    Args:
      names: some of `HEADS`.
      width: d; num_classes: K.
      rngs: stream "params". Made after all else of a network, heads change nothing of what it starts from.

    Raises:
      InputError: a name is unknown.
    """

    def __init__(self, names: Sequence[str], width: int, num_classes: int, *, rngs: nnx.Rngs):
        for name in names:
            if name not in HEADS:
                raise InputError(f"heads: there is no head {name!r}; there are {', '.join(HEADS)}")
        self.names = tuple(names)
        if "abstain_logit" in names:
            self.abstain = nnx.Linear(width, 1, rngs=rngs)
        if "selection_logit" in names:
            hidden = min(width, MOST_UNITS)
            self.selection_hidden = nnx.Linear(width, hidden, rngs=rngs)
            self.selection = nnx.Linear(hidden, 1, rngs=rngs)
        if "auxiliary_logits" in names:
            self.auxiliary = nnx.Linear(width, num_classes, rngs=rngs)

    def __call__(self, features: jax.Array) -> dict[str, jax.Array]:
        """[b, d] → "abstain_logit" [b], "selection_logit" [b], "auxiliary_logits" [b, K], those that there are, in float32."""
        x, found = features.astype(jnp.float32), {}
        if "abstain_logit" in self.names:
            found["abstain_logit"] = self.abstain(x)[..., 0]
        if "selection_logit" in self.names:
            found["selection_logit"] = self.selection(jax.nn.relu(self.selection_hidden(x)))[..., 0]
        if "auxiliary_logits" in self.names:
            found["auxiliary_logits"] = self.auxiliary(x)
        return found


def beside(names: Sequence[str], width: int, num_classes: int, in_members: bool, *, rngs: nnx.Rngs) -> Heads | None:
    """The heads of a network, or None where no name is given.

    Args:
      names, width, num_classes, rngs: as of `Heads`; in_members: whether the network has members of its own.

    Raises:
      InputError: the network has members of its own, whose heads would have no one confidence.
    """
    if not names:
        return None
    if in_members:
        raise InputError(
            "members.objectives: heads of abstention are of networks without members of their own; leave ensemble.kind out"
        )
    return Heads(names, width, num_classes, rngs=rngs)
