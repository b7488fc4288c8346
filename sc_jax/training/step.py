"""One optimisation step of all members, as one compiled program."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from sc_jax.data.pipelines import scale
from sc_jax.models import Model, map_members
from sc_jax.ops.losses import smoothed_cross_entropy
from sc_jax.training import parallel
from sc_jax.training.state import Members, Meters, TrainState


def make_optimizer(
    *, learning_rate: float, weight_decay: float, warmup_steps: int, total_steps: int
) -> optax.GradientTransformation:
    """AdamW with linear warm-up and cosine decay to 0; biases and scales (arrays of rank < 2) are not decayed."""
    schedule = optax.warmup_cosine_decay_schedule(0.0, learning_rate, warmup_steps, total_steps)
    return optax.adamw(
        schedule, weight_decay=weight_decay, mask=lambda params: jax.tree.map(lambda p: p.ndim > 1, params)
    )


def make_step(
    model: Model,
    optimizer: optax.GradientTransformation,
    mesh: parallel.Mesh,
    *,
    batch_size: int,
    log_every: int,
) -> Callable[[TrainState, Members, jax.Array, jax.Array, jax.Array], tuple[TrainState, Meters]]:
    """Builds the jitted step.

    Args:
      model, optimizer: as built.
      mesh: the devices; a batch is divided over them.
      batch_size: examples per member and step.
      log_every: meters start anew after this many steps.

    Returns:
      (state, members, order, images, labels) → (state, meters). `members` are data: other α or seeds do not compile
      anew. `order` int32 [s, n] is the epoch's order for each distinct
      seed, `images` uint8 [n, …] and `labels` int32 [n] are on the device. `state` is donated; `meters` is a copy that
      outlives it.
    """

    def member_loss(
        params: Any, model_state: Any, alpha: jax.Array, key: jax.Array, images: jax.Array, labels: jax.Array
    ) -> tuple[jax.Array, tuple[Any, jax.Array]]:
        outputs, model_state = model.apply(params, model_state, scale(images), train=True, key=key)
        correct = jnp.sum(jnp.argmax(outputs["logits"], axis=-1) == labels).astype(jnp.float32)
        return jnp.mean(smoothed_cross_entropy(outputs["logits"], labels, alpha)), (model_state, correct)

    def member_step(
        params: Any,
        model_state: Any,
        opt_state: Any,
        alpha: jax.Array,
        key: jax.Array,
        images: jax.Array,
        labels: jax.Array,
    ) -> tuple[Any, ...]:
        value_and_grad = jax.value_and_grad(member_loss, has_aux=True)
        (loss, (model_state, correct)), grads = value_and_grad(params, model_state, alpha, key, images, labels)
        finite = jnp.isfinite(loss) & jnp.isfinite(optax.tree.norm(grads))
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), model_state, opt_state, loss, correct, finite

    all_members = map_members(member_step, model.member_mapping)

    def step(
        state: TrainState, members: Members, order: jax.Array, images: jax.Array, labels: jax.Array
    ) -> tuple[TrainState, Meters]:
        steps_per_epoch = order.shape[1] // batch_size
        start = (state.step % steps_per_epoch) * batch_size
        index = jax.lax.dynamic_slice_in_dim(order, start, batch_size, axis=1)  # [s, b]
        batch = parallel.split_batch(images[index], mesh, axis=1)[members.seed_index]  # [m, b, …]
        target = parallel.split_batch(labels[index], mesh, axis=1)[members.seed_index]
        keys = jax.vmap(lambda key: jax.random.fold_in(jax.random.fold_in(key, 2), state.step))(members.key)
        params, model_state, opt_state, loss, correct, finite = all_members(
            state.params, state.model_state, state.opt_state, members.alpha, keys, batch, target
        )
        past = jnp.where(state.step % log_every == 0, 0, 1)
        meters = Meters(
            loss=state.meters.loss * past + loss * batch_size,
            correct=state.meters.correct * past + correct,
            examples=state.meters.examples * past + batch_size,
            bad_step=jnp.where((state.meters.bad_step == 0) & ~finite, state.step + 1, state.meters.bad_step),
        )
        state = TrainState(state.step + 1, params, model_state, opt_state, meters)
        return parallel.keep_whole(state, mesh), parallel.keep_whole(meters, mesh)

    return jax.jit(step, donate_argnums=0)
