"""A small convolutional network that shrinks by strides, not by pooling."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import jax
import jax.numpy as jnp
from flax import nnx


class CNN(nnx.Module):
    """3×3 convolutions of stride 2 with ReLU → mean over space → dropout → logits; features are the means.

    Strides in place of max-pooling, whose gradient is 40 times slower than average pooling in XLA on a CPU.
    """

    member_mapping = "unroll"

    def __init__(
        self,
        *,
        image_shape: tuple[int, ...],
        num_classes: int,
        hidden: Sequence[int] = (16, 32, 64),
        dropout: float = 0.0,
        rngs: nnx.Rngs,
    ):
        widths = (image_shape[-1], *hidden)
        self.convolutions = nnx.List([nnx.Conv(a, b, (3, 3), strides=2, rngs=rngs) for a, b in pairwise(widths)])
        self.dropout = nnx.Dropout(dropout)
        self.head = nnx.Linear(widths[-1], num_classes, rngs=rngs)

    def __call__(self, images: jax.Array, *, train: bool, key: jax.Array | None = None) -> dict[str, jax.Array]:
        x = images
        for convolution in self.convolutions:
            x = jax.nn.relu(convolution(x))
        x = jnp.mean(x, axis=(1, 2))
        x = self.dropout(x, deterministic=not train, rngs=None if key is None else nnx.Rngs(dropout=key))
        return {"logits": self.head(x), "features": x}
