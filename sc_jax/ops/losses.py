"""Training losses: one example's logits to a scalar; `vmap` makes batches."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def smoothed_cross_entropy(logits: jax.Array, label: jax.Array, alpha: jax.Array | float) -> jax.Array:
    """Cross-entropy against the smoothed target (1 − α)·onehot(y) + α/K.

    L = (1 − α)·(−ln p_y) + α·mean_k(−ln p_k); α = 0 is plain cross-entropy, and α may be negative.

    Args:
      logits: [..., K]; label: int [...]; alpha: scalar or [...] (data, not code: members may differ in it).

    Returns:
      [...], in nats.

    Source: Szegedy et al., CVPR 2016; the form of Xia et al., ICLR 2025.

    >>> float(smoothed_cross_entropy(jnp.zeros(4), jnp.asarray(1), 0.3))  # ln 4, whatever α
    1.3862943649291992
    """
    log_p = jax.nn.log_softmax(logits.astype(jnp.promote_types(logits.dtype, jnp.float32)))
    true_class = jnp.take_along_axis(log_p, label[..., None], axis=-1)[..., 0]
    return -(1 - alpha) * true_class - alpha * jnp.mean(log_p, axis=-1)
