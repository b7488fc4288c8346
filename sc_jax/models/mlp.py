"""Multi-layer perceptrons: of images, and of the rows of a table."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from sc_jax.models import ensemble_layers as layers
from sc_jax.models import heads as heads_lib
from sc_jax.models.dropout import Dropout
from sc_jax.models.ensemble_layers import InNetwork


class MLP(nnx.Module):
    """Flattened image → hidden layers with ReLU and dropout → logits; features are the last hidden layer.

    With `ensemble` it has members (`sc_jax.models.ensemble_layers`), all layers being theirs and masks behind every hidden one. With
    `heads` it has those beside its last layer (`sc_jax.models.heads`).

    784-256-256-10 has 784·256 + 256 + 256·256 + 256 + 256·10 + 10 = 269,322 parameters.
    """

    member_mapping = "vmap"
    head_parts = ("head",)

    def __init__(
        self,
        *,
        input_shape: tuple[int, ...],
        num_classes: int,
        hidden: Sequence[int] = (256, 256),
        dropout: float = 0.0,
        dtype: Any = jnp.float32,
        ensemble: InNetwork | None = None,
        heads: Sequence[str] = (),
        rngs: nnx.Rngs,
    ):
        layers.require_hidden(hidden, ensemble)
        self.ensemble = ensemble
        widths = (prod(input_shape), *(layers.width_of(width, ensemble) for width in hidden))
        self.hidden = nnx.List(
            [
                layers.linear(a, b, ensemble, grouped=i > 0, dtype=dtype, rngs=rngs)
                for i, (a, b) in enumerate(pairwise(widths))
            ]
        )
        self.dropout = Dropout(dropout)
        self.head = layers.linear(widths[-1], num_classes, ensemble, dtype=jnp.float32, rngs=rngs)
        self.heads = heads_lib.beside(heads, widths[-1], num_classes, ensemble is not None, rngs=rngs)

    def __call__(self, inputs: jax.Array, *, train: bool, key: jax.Array | None = None) -> dict[str, jax.Array]:
        x = dropped = layers.spread(inputs.reshape(inputs.shape[0], -1), self.ensemble)
        streams = None if key is None else nnx.Rngs(dropout=key)
        for layer in self.hidden:
            x = layers.masked(jax.nn.relu(layer(dropped)), self.ensemble)
            dropped = self.dropout(x, deterministic=not train, rngs=streams)
        further = {} if self.heads is None else self.heads(dropped)
        return layers.outputs(self.head(dropped), x.astype(jnp.float32), self.ensemble) | further


class TabularMLP(MLP):
    """Row of d numbers → hidden layers of 4d and 2d with ReLU → logits.

    Has 12 d² + 6d + 2dk + k parameters for k classes. The network that the label smoothing paper (Xia et al. 2025,
    "Towards Understanding Why Label Smoothing Degrades Selective Classification and How to Fix It") trains on the
    tables of its appendix. Two classes are two logits here, as everywhere.
    """

    def __init__(
        self,
        *,
        input_shape: tuple[int, ...],
        num_classes: int,
        multiples: Sequence[int] = (4, 2),
        dropout: float = 0.0,
        dtype: Any = jnp.float32,
        ensemble: InNetwork | None = None,
        heads: Sequence[str] = (),
        rngs: nnx.Rngs,
    ):
        hidden = [multiple * prod(input_shape) for multiple in multiples]
        options = {"dropout": dropout, "dtype": dtype, "ensemble": ensemble, "heads": heads, "rngs": rngs}
        super().__init__(input_shape=input_shape, num_classes=num_classes, hidden=hidden, **options)
