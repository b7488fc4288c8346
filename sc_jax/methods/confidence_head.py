"""ConfidNet: a head on the frozen features of a trained network that learns how likely its true class was.

Source: Corbière et al., NeurIPS 2019. There it is five layers of 400 units, fitted to the train split; here one hidden layer, fitted to a split that the network
has not seen, where it still makes errors.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sc_jax.ops.abstention_losses import true_class_probability_loss
from sc_jax.predictions import Predictions


class ConfidenceHead(NamedTuple):
    """What was fitted: c = w₂·relu(W₁ᵀ(x − μ)/σ + b₁) + b₂ of features x [d].

    Attributes:
      mean, scale: float64 [d], μ and σ of the features; σ = 1 where they do not vary.
      kernel, bias: float64 [d, h] and [h], W₁ and b₁; last_kernel, last_bias: [h] and [], w₂ and b₂.
    """

    mean: np.ndarray
    scale: np.ndarray
    kernel: np.ndarray
    bias: np.ndarray
    last_kernel: np.ndarray
    last_bias: np.ndarray


def fit(
    calibration: Predictions,
    *,
    hidden: int = 100,
    steps: int = 300,
    learning_rate: float = 3e-3,
    weight_decay: float = 1e-2,
    seed: int = 0,
) -> ConfidenceHead:
    """Regresses σ(c) on the probability of the true class, by AdamW on all examples at each step.

    Args:
      calibration: a named split that is not the one reported on, with features and logits [n, k]; survey weights count.
      hidden: h; steps, learning_rate, weight_decay: of AdamW, the rate falling to 0 by a cosine; seed: of the first weights.

    Returns:
      `ConfidenceHead`.

    Raises:
      ValueError: there are no features, or the logits are of an ensemble's members.
    """
    if calibration.features is None:
        raise ValueError("confidence_head: the predictions have no features; predict with prediction.features = True")
    if calibration.logits.ndim != 2:
        raise ValueError("confidence_head: logits [n, k] of one network are needed; they are of members")
    x = calibration.features.astype(np.float64)
    mean, spread = x.mean(axis=0), x.std(axis=0)
    scale = np.where(spread > 0, spread, 1)
    weight = np.ones(len(x)) if calibration.weight is None else calibration.weight / calibration.weight.mean()
    given = ((x - mean) / scale, calibration.logits, calibration.label, weight)
    layers = _trained(jax.random.key(seed), *map(_on_device, given), hidden, steps, learning_rate, weight_decay)
    return ConfidenceHead(mean, scale, *(np.asarray(layer, np.float64) for layer in layers))


def _on_device(array: np.ndarray) -> jax.Array:
    return jnp.asarray(array, jnp.float32 if array.dtype.kind == "f" else jnp.int32)


@functools.partial(jax.jit, static_argnums=(5, 6, 7, 8))
def _trained(
    key: jax.Array,
    x: jax.Array,
    logits: jax.Array,
    label: jax.Array,
    weight: jax.Array,
    hidden: int,
    steps: int,
    learning_rate: float,
    weight_decay: float,
) -> Any:
    first, last = jax.random.split(key)
    d = x.shape[1]
    layers = (
        jax.random.normal(first, (d, hidden)) * jnp.sqrt(2 / d),
        jnp.zeros(hidden),
        jax.random.normal(last, (hidden,)) / jnp.sqrt(1.0 * hidden),
        jnp.zeros(()),
    )
    optimizer = optax.adamw(optax.cosine_decay_schedule(learning_rate, steps), weight_decay=weight_decay)

    def loss(layers: Any) -> jax.Array:
        kernel, bias, last_kernel, last_bias = layers
        c = jax.nn.relu(x @ kernel + bias[None, :]) @ last_kernel + last_bias
        return jnp.mean(weight * true_class_probability_loss(c, logits, label))

    def step(_: int, carried: Any) -> Any:
        layers, state = carried
        updates, state = optimizer.update(jax.grad(loss)(layers), state, layers)
        return optax.apply_updates(layers, updates), state

    return jax.lax.fori_loop(0, steps, step, (layers, optimizer.init(layers)))[0]


def apply(state: ConfidenceHead, predictions: Predictions) -> np.ndarray:
    """The logit c [n] of the true class's probability as the head has it; higher = more confident, without ties where σ(c) rounds to 1.

    Args:
      state: fitted on another split of the same network; predictions: with features [n, d].
    """
    x = (predictions.features.astype(np.float64) - state.mean) / state.scale
    return np.maximum(x @ state.kernel + state.bias, 0) @ state.last_kernel + state.last_bias
