"""A small convolutional network that shrinks by strides, not by pooling."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from sc_jax.models import ensemble_layers as layers
from sc_jax.models import heads as heads_lib
from sc_jax.models.dropout import Dropout
from sc_jax.models.ensemble_layers import InNetwork
from sc_jax.models.resnet import require_image


class CNN(nnx.Module):
    """3×3 convolutions of stride 2 with ReLU → flattened → dropout → logits; features are what is flattened.

    With `ensemble` it has members (`sc_jax.models.ensemble_layers`), all layers being theirs and masks of channels behind every
    convolution. With `heads` it has those beside its last layer (`sc_jax.models.heads`).

    28×28 images through widths 32 and 64 have 9·32 + 32 + 9·32·64 + 64 + 7·7·64·10 + 10 = 50,186 parameters. Strides in
    place of max-pooling, whose gradient is 40 times slower than average pooling in XLA on a CPU.
    """

    member_mapping = "unroll"
    head_parts = ("head",)

    def __init__(
        self,
        *,
        input_shape: tuple[int, ...],
        num_classes: int,
        hidden: Sequence[int] = (32, 64),
        dropout: float = 0.0,
        dtype: Any = jnp.float32,
        ensemble: InNetwork | None = None,
        heads: Sequence[str] = (),
        rngs: nnx.Rngs,
    ):
        require_image(input_shape)
        layers.require_hidden(hidden, ensemble)
        self.ensemble = ensemble
        widths = (input_shape[-1], *(layers.width_of(width, ensemble) for width in hidden))
        self.convolutions = nnx.List(
            [
                layers.convolution(a, b, ensemble, size=3, strides=2, grouped=i > 0, dtype=dtype, rngs=rngs)
                for i, (a, b) in enumerate(pairwise(widths))
            ]
        )
        self.dropout = Dropout(dropout)
        height, width = (-(-side // 2 ** len(hidden)) for side in input_shape[:2])  # "same" padding: halves, rounded up
        self.head = layers.linear(height * width * widths[-1], num_classes, ensemble, dtype=jnp.float32, rngs=rngs)
        self.heads = heads_lib.beside(heads, height * width * widths[-1], num_classes, ensemble is not None, rngs=rngs)

    def __call__(self, inputs: jax.Array, *, train: bool, key: jax.Array | None = None) -> dict[str, jax.Array]:
        x = layers.spread(inputs, self.ensemble)
        for convolution in self.convolutions:
            x = layers.masked(jax.nn.relu(convolution(x)), self.ensemble)
        x = x.reshape(*x.shape[:-3], -1).astype(jnp.float32)
        dropped = self.dropout(x, deterministic=not train, rngs=None if key is None else nnx.Rngs(dropout=key))
        further = {} if self.heads is None else self.heads(dropped)
        return layers.outputs(self.head(dropped), x, self.ensemble) | further
