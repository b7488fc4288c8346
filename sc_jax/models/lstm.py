"""Bidirectional LSTM that classifies texts."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from sc_jax.models.dropout import Dropout


class LSTM(nnx.Module):
    """Tokens → embedding → LSTM of both directions → last states → hidden layers with ReLU → logits.

        i, f, g, o = W x_t + U h_{t-1} + b,   c_t = σ(f) c_{t-1} + σ(i) tanh(g),   h_t = σ(o) tanh(c_t)

    Token 0 is padding: it changes no state, so texts may be padded on either side and by any length. Features are the last
    hidden layer. With v tokens, embedding e, h hidden units, head widths 256 and 128 and k classes it has
    v e + 2 · 4h (e + h + 1) + 2h · 256 + 256 + 256 · 128 + 128 + 128 k + k parameters.

    The cell c_t and the gates are float32 whatever the rest is computed in: in bfloat16 a cell of 1 would not feel what adds
    less than 1/256 of it.

    Dropout acts on the embedded tokens, on the last states and after every hidden layer. Embedding N(0, 1) · e^(-1/2), input
    kernels LeCun normal, recurrent kernels orthogonal; biases are zero, but those of forget gates 1.

    The label smoothing paper's classifier of film reviews (Xia et al. 2025) has embedding 300, 256 hidden units, a head
    256-128 and one sigmoid output; ours has k logits, two for two classes. Where dropout acts is our choice.
    Sources: Hochreiter & Schmidhuber 1997; Gers et al. 2000 (forget gates); Schuster & Paliwal 1997 (both directions);
    Jozefowicz et al. 2015 (the forget gate's bias).
    """

    member_mapping = "vmap"
    head_parts = ("head",)

    def __init__(
        self,
        *,
        input_shape: tuple[int, ...],
        num_classes: int,
        vocabulary_size: int,
        embedding: int = 300,
        hidden: int = 256,
        bidirectional: bool = True,
        head: Sequence[int] = (256, 128),
        dropout: float = 0.2,
        dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        del input_shape  # any number of tokens
        self.embedding = nnx.Embed(vocabulary_size, embedding, dtype=dtype, rngs=rngs)
        directions = 2 if bidirectional else 1
        self.directions = nnx.List([Direction(embedding, hidden, dtype=dtype, rngs=rngs) for _ in range(directions)])
        widths = (directions * hidden, *head)
        self.hidden = nnx.List([nnx.Linear(a, b, dtype=dtype, rngs=rngs) for a, b in pairwise(widths)])
        self.dropout = Dropout(dropout)
        self.head = nnx.Linear(widths[-1], num_classes, dtype=jnp.float32, rngs=rngs)

    def __call__(self, inputs: jax.Array, *, train: bool, key: jax.Array | None = None) -> dict[str, jax.Array]:
        streams = None if key is None else nnx.Rngs(dropout=key)

        def drop(x: jax.Array) -> jax.Array:
            return self.dropout(x, deterministic=not train, rngs=streams)

        embedded = drop(self.embedding(inputs))
        states = [
            direction(embedded, inputs != 0, reverse=reverse)
            for direction, reverse in zip(self.directions, (False, True), strict=False)
        ]
        x = jnp.concatenate(states, axis=-1)
        for layer in self.hidden:
            x = jax.nn.relu(layer(drop(x)))
        return {"logits": self.head(drop(x)), "features": x.astype(jnp.float32)}


class Direction(nnx.Module):
    """An LSTM over [b, t, e] in one direction; gates in the order input, forget, cell, output."""

    def __init__(self, inputs: int, hidden: int, *, dtype: Any, rngs: nnx.Rngs):
        recurrent = jax.nn.initializers.orthogonal()

        def bias(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
            return jnp.zeros(shape, dtype).at[hidden : 2 * hidden].set(1)

        self.input = nnx.Linear(inputs, 4 * hidden, bias_init=bias, dtype=dtype, rngs=rngs)
        self.recurrent = nnx.Linear(hidden, 4 * hidden, use_bias=False, kernel_init=recurrent, dtype=dtype, rngs=rngs)

    def __call__(self, inputs: jax.Array, mask: jax.Array, *, reverse: bool) -> jax.Array:
        """The last state [b, h]: after the last token, or in reverse after the first; tokens outside `mask` [b, t] are passed over."""
        projected = jnp.swapaxes(self.input(inputs), 0, 1)  # all steps in one product
        recurrent = self.recurrent

        def step(carry: tuple[jax.Array, jax.Array], token: tuple[jax.Array, jax.Array]) -> tuple[Any, None]:
            h, c = carry
            x, keep = token
            i, f, g, o = jnp.split((x + recurrent(h)).astype(jnp.float32), 4, axis=-1)
            new_c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            new_h = (jax.nn.sigmoid(o) * jnp.tanh(new_c)).astype(h.dtype)
            keep = keep[:, None]
            return (jnp.where(keep, new_h, h), jnp.where(keep, new_c, c)), None

        start = jnp.zeros((len(inputs), recurrent.in_features), jnp.float32)
        (h, _), _ = lax.scan(step, (start.astype(projected.dtype), start), (projected, mask.T), reverse=reverse)
        return h
