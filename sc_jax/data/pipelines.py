"""What happens to examples on their way to a model: order and scaling, on the device."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp


@functools.partial(jax.jit, static_argnames="n")
def epoch_order(seed_key: jax.Array, epoch: jax.Array, n: int) -> jax.Array:
    """The order of examples in an epoch, for each seed: a function of (seed, epoch) alone, so it needs no saving.

    Args:
      seed_key: keys [s]; epoch: int []; n: examples.

    Returns:
      int32 [s, n], each row a permutation of 0..n-1.
    """

    def order(key: jax.Array) -> jax.Array:
        return jax.random.permutation(jax.random.fold_in(jax.random.fold_in(key, 1), epoch), n)

    return jax.vmap(order)(seed_key).astype(jnp.int32)


def scale(images: jax.Array) -> jax.Array:
    """uint8 images [b, h, w] (grey) or [b, h, w, c] in 0..255 → float32 [b, h, w, c] in [-1, 1]."""
    images = images[..., None] if images.ndim == 3 else images
    return images.astype(jnp.float32) / 127.5 - 1
