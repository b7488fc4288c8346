"""A perceptron on which words a text has, whatever their order."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from sc_jax.models.dropout import Dropout


class BagOfWords(nnx.Module):
    """Tokens → sum of their embeddings over √(number of tokens) → hidden layers with ReLU → logits.

        x = max(0, b + Σ_t E[token_t]/√n),   n the number of tokens

    This is a perceptron on counts of words, over √n, whose first layer is E: a text in which no word comes twice has an input of L2 norm 1.
    Token 0 is padding and counts for nothing. Features are the last hidden layer. With v tokens, hidden widths h₁ … h_l
    and k classes it has v h₁ + h₁ + Σ (h_i h_{i+1} + h_{i+1}) + h_l k + k parameters.

    E is N(0, 1/h₁): words that were rarely seen add little. Dropout acts after every hidden layer.
    """

    member_mapping = "vmap"
    head_parts = ("head",)

    def __init__(
        self,
        *,
        input_shape: tuple[int, ...],
        num_classes: int,
        vocabulary_size: int,
        hidden: Sequence[int] = (256,),
        dropout: float = 0.0,
        dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        del input_shape  # any number of tokens
        if not hidden:
            raise ValueError("a bag of words needs a hidden layer")
        self.embedding = nnx.Embed(vocabulary_size, hidden[0], dtype=dtype, rngs=rngs)
        self.bias = nnx.Param(jnp.zeros(hidden[0]))
        self.hidden = nnx.List([nnx.Linear(a, b, dtype=dtype, rngs=rngs) for a, b in pairwise(hidden)])
        self.dropout = Dropout(dropout)
        self.head = nnx.Linear(hidden[-1], num_classes, dtype=jnp.float32, rngs=rngs)

    def __call__(self, inputs: jax.Array, *, train: bool, key: jax.Array | None = None) -> dict[str, jax.Array]:
        streams = None if key is None else nnx.Rngs(dropout=key)
        there = (inputs != 0)[..., None]
        count = jnp.maximum(jnp.sum(there, axis=1), 1)
        total = jnp.sum(jnp.where(there, self.embedding(inputs), 0), axis=1)
        x = jax.nn.relu(total / jnp.sqrt(count).astype(total.dtype) + self.bias[...].astype(total.dtype)[None])
        dropped = self.dropout(x, deterministic=not train, rngs=streams)
        for layer in self.hidden:
            x = jax.nn.relu(layer(dropped))
            dropped = self.dropout(x, deterministic=not train, rngs=streams)
        return {"logits": self.head(dropped), "features": x.astype(jnp.float32)}
