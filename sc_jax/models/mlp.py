"""Multi-layer perceptron."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import prod

import jax
from flax import nnx


class MLP(nnx.Module):
    """Flattened image → hidden layers with ReLU and dropout → logits; features are the last hidden layer.

    784-256-256-10 has 784·256 + 256 + 256·256 + 256 + 256·10 + 10 = 269,322 parameters.
    """

    member_mapping = "vmap"

    def __init__(
        self,
        *,
        image_shape: tuple[int, ...],
        num_classes: int,
        hidden: Sequence[int] = (256, 256),
        dropout: float = 0.0,
        rngs: nnx.Rngs,
    ):
        widths = (prod(image_shape), *hidden)
        self.hidden = nnx.List([nnx.Linear(a, b, rngs=rngs) for a, b in pairwise(widths)])
        self.dropout = nnx.Dropout(dropout)
        self.head = nnx.Linear(widths[-1], num_classes, rngs=rngs)

    def __call__(self, images: jax.Array, *, train: bool, key: jax.Array | None = None) -> dict[str, jax.Array]:
        x = images.reshape(images.shape[0], -1)
        streams = None if key is None else nnx.Rngs(dropout=key)
        for layer in self.hidden:
            x = self.dropout(jax.nn.relu(layer(x)), deterministic=not train, rngs=streams)
        return {"logits": self.head(x), "features": x}
