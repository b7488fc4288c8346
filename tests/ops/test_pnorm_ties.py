"""p-norm of order 1 has true ties; rounding must not break them."""

import jax.numpy as jnp
import numpy as np

from sc_jax import ops


def test_pnorm_of_order_1_ties_where_one_logit_alone_is_above_the_mean():
    """Centred, ‖v'‖₁ = 2 Σ of the positive v': with one positive the score is ½ exactly, whatever else the logits are."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(500, 10))
    logits[:, 3] += 50 * rng.random(500) + 30
    assert (ops.max_logit_pnorm(logits, 1) == 0.5).all()
    assert (np.asarray(ops.max_logit_pnorm(jnp.asarray(logits), 1)) == 0.5).all()
    mixed = rng.normal(size=(500, 10))
    centred = mixed - mixed.mean(axis=1, keepdims=True)
    np.testing.assert_allclose(
        ops.max_logit_pnorm(mixed, 1), centred.max(axis=1) / np.abs(centred).sum(axis=1), rtol=1e-12
    )
