"""What training carries from step to step, as one pytree; every leaf but the step has a leading member axis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from sc_jax.models import Model


class Members(NamedTuple):
    """What differs between members: data, not code.

    Attributes:
      alpha: float32 [m], label smoothing; 0 under another objective.
      objective: int32 [m], 0 for label smoothing, else the place of the member's objective in the program's, from 1.
      key: [m], from the member's seed alone, so that all members of a seed share initialisation, batches and dropout.
      seed_index: int32 [m], row of the member's seed among the distinct seeds.
      seed_key: [s], the keys of the distinct seeds.
    """

    alpha: jax.Array
    objective: jax.Array
    key: jax.Array
    seed_index: jax.Array
    seed_key: jax.Array


class Meters(NamedTuple):
    """Sums since the last log line, and the first step that was not finite.

    Attributes:
      loss, correct: float32 [m], sums over examples.
      examples: int32 [], per member.
      bad_step: int32 [m], the first step (from 1) whose loss or gradient was not finite; 0 if none.
    """

    loss: jax.Array
    correct: jax.Array
    examples: jax.Array
    bad_step: jax.Array


class TrainState(NamedTuple):
    """All that a checkpoint holds: the position in the data is the step, since batches are a function of it.

    `target` float32 [m, n] are the running targets of the labels of all training examples, or None where no objective keeps any.
    """

    step: jax.Array
    params: Any
    model_state: Any
    opt_state: Any
    meters: Meters
    target: jax.Array | None = None


def make_members(tags: Sequence[Mapping[str, Any]]) -> Members:
    """The members that these tags name: {"alpha", "seed"}, or {"objective", "seed"}; see `sc_jax.config.MemberGrid`."""
    seeds = list(dict.fromkeys(tag["seed"] for tag in tags))
    names = list(dict.fromkeys(tag["objective"] for tag in tags if "objective" in tag))
    seed_key = jax.vmap(jax.random.key)(jnp.asarray(seeds, jnp.uint32))
    seed_index = jnp.asarray([seeds.index(tag["seed"]) for tag in tags], jnp.int32)
    alpha = jnp.asarray([tag.get("alpha", 0.0) for tag in tags], jnp.float32)
    objective = [1 + names.index(tag["objective"]) if "objective" in tag else 0 for tag in tags]
    return Members(alpha, jnp.asarray(objective, jnp.int32), seed_key[seed_index], seed_index, seed_key)


def initial_state(
    model: Model, optimizer: optax.GradientTransformation, members: Members, examples: int = 0
) -> TrainState:
    """State before the first step; members of one seed start from the same parameters.

    Args:
      model, optimizer, members: as built; examples: n, whose running targets are kept, 0 for none. They start at 1, the labels as given.
    """

    @jax.jit
    def of_members(of_seeds: list[Any], seed_index: jax.Array) -> TrainState:
        params, model_state = jax.tree.map(lambda *leaves: jnp.stack(leaves)[seed_index], *of_seeds)
        opt_state = jax.vmap(optimizer.init)(params)
        m = len(seed_index)
        meters = Meters(jnp.zeros(m), jnp.zeros(m), jnp.zeros((), jnp.int32), jnp.zeros(m, jnp.int32))
        target = jnp.ones((m, examples)) if examples else None
        return TrainState(jnp.zeros((), jnp.int32), params, model_state, opt_state, meters, target)

    # Seed by seed rather than under `vmap`: one program, compiled once.
    return of_members([model.init(jax.random.fold_in(key, 0)) for key in members.seed_key], members.seed_index)


def shape_of_state(
    model: Model, optimizer: optax.GradientTransformation, members: Members, examples: int = 0
) -> TrainState:
    """Shapes and dtypes of `initial_state`, without drawing it."""
    return jax.eval_shape(lambda one: initial_state(model, optimizer, one, examples), members)
