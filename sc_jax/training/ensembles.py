"""Ensembles from one run: what is kept of the parameters on the way (snapshots, SWA, SWAG), and what is drawn from it.

Each is the last transformation of an optimiser's chain, where updates are what is added to the parameters: it passes them on as
they are, so that a run with it and one without learn the same. Its state is in the checkpoint with that of the optimiser.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import optax


class Snapshots(NamedTuple):
    """The state of `keep_snapshots`.

    Attributes:
      count: int32 [], steps done.
      params: the parameters' tree, leaves [m, …]: after each of the m steps, zeros until then.
    """

    count: jax.Array
    params: Any


class Mean(NamedTuple):
    """The state of `keep_mean`.

    Attributes:
      count: int32 [], steps done; taken: int32 [], how many parameters were averaged.
      mean: the parameters' tree, zeros before the first.
    """

    count: jax.Array
    taken: jax.Array
    mean: Any


class Gaussian(NamedTuple):
    """The state of `keep_gaussian`, with θ_1..θ_n what was collected and θ̄_i the mean of the first i.

    Attributes:
      count: int32 [], steps done; taken: int32 [], n.
      mean: θ̄_n, the parameters' tree.
      squares: Σ_i (θ_i − θ̄_n)², elementwise.
      deviations: leaves [r, …]: θ_i − θ̄_i of the last r, in whatever order.
    """

    count: jax.Array
    taken: jax.Array
    mean: Any
    squares: Any
    deviations: Any


State = TypeVar("State", Snapshots, Mean, Gaussian)


def keep_snapshots(steps: tuple[int, ...]) -> optax.GradientTransformation:
    """Keeps copies of the parameters as they are after these steps.

    Args:
      steps: m numbers of steps done, ascending, from 1.

    Returns:
      An optax transformation with the state `Snapshots`.

    Source: Huang et al. (2017), Snapshot ensembles, section 3, at the ends of the cycles of the learning rate.
    """

    def init(params: Any) -> Snapshots:
        return Snapshots(
            jnp.zeros((), jnp.int32), jax.tree.map(lambda p: jnp.zeros((len(steps), *p.shape), p.dtype), params)
        )

    def update(updates: Any, state: Snapshots, params: Any) -> tuple[Any, Snapshots]:
        count = state.count + 1
        due = jnp.asarray(steps, jnp.int32) == count[None]
        new = optax.apply_updates(params, updates)
        kept = jax.tree.map(lambda k, p: _placed(k, jnp.argmax(due), due.any(), p), state.params, new)
        return updates, Snapshots(count, kept)

    return optax.GradientTransformation(init, update)


def keep_mean(start: int, every: int) -> optax.GradientTransformation:
    """Keeps the mean of the parameters after the steps start, start + every, … (0 excepted).

    θ̄ ← θ̄ + (θ − θ̄)/(n + 1).

    Args:
      start, every: in steps.

    Returns:
      An optax transformation with the state `Mean`.

    Source: Izmailov et al. (2018), "Averaging weights leads to wider optima and better generalization", Algorithm 1.
    """

    def init(params: Any) -> Mean:
        return Mean(jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32), jax.tree.map(jnp.zeros_like, params))

    def update(updates: Any, state: Mean, params: Any) -> tuple[Any, Mean]:
        count, due = _counted(state.count, start, every)
        taken = state.taken + due
        new = optax.apply_updates(params, updates)
        return updates, Mean(count, taken, _moved(state.mean, new, due, taken))

    return optax.GradientTransformation(init, update)


def keep_gaussian(start: int, every: int, rank: int) -> optax.GradientTransformation:
    """Keeps mean, squares around it and the last `rank` deviations of the parameters after the steps start, start + every, …

    The squares are summed around the mean (Welford), where the paper takes the mean of θ² less θ̄²: the same, without the
    cancellation of float32.

    Args:
      start, every: in steps; rank: r, the paper's K.

    Returns:
      An optax transformation with the state `Gaussian`; draw from it with `draw`.

    Source: Maddox et al. (2019), "A simple baseline for Bayesian uncertainty in deep learning", Algorithm 1.
    """

    def init(params: Any) -> Gaussian:
        deviations = jax.tree.map(lambda p: jnp.zeros((rank, *p.shape), p.dtype), params)
        mean, squares = (jax.tree.map(jnp.zeros_like, params) for _ in range(2))
        return Gaussian(jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32), mean, squares, deviations)

    def update(updates: Any, state: Gaussian, params: Any) -> tuple[Any, Gaussian]:
        count, due = _counted(state.count, start, every)
        taken = state.taken + due
        new = optax.apply_updates(params, updates)
        mean = _moved(state.mean, new, due, taken)
        squares = jax.tree.map(
            lambda s, p, before, after: s + jnp.where(due, (p - before) * (p - after), 0),
            state.squares,
            new,
            state.mean,
            mean,
        )
        slot = state.taken % rank
        deviations = jax.tree.map(lambda d, p, m: _placed(d, slot, due, p - m), state.deviations, new, mean)
        return updates, Gaussian(count, taken, mean, squares, deviations)

    return optax.GradientTransformation(init, update)


def draw(gaussian: Gaussian, key: jax.Array) -> Any:
    """Draws parameters from SWAG's normal distribution.

        θ = θ̄ + Σ_diag^½ z₁/√2 + D z₂/√(2(r − 1)),  z₁, z₂ standard normal,

    with Σ_diag = (1/n) Σ_i (θ_i − θ̄)² and D the r deviations as columns. Its covariance is ½(Σ_diag + D Dᵀ/(r − 1)).

    Args:
      gaussian: of one member, r ≥ 2; key: for z₁ and z₂.

    Returns:
      The parameters' tree.

    Source: Maddox et al. (2019), eq. 1 (after section 3.3).
    """
    of_diagonal, of_deviations = jax.random.split(key)
    leaves, tree = jax.tree.flatten(gaussian.mean)
    squares, deviations = jax.tree.leaves(gaussian.squares), jax.tree.leaves(gaussian.deviations)
    rank = deviations[0].shape[0]
    z2 = jax.random.normal(of_deviations, (rank,)) / math.sqrt(2 * (rank - 1))
    # All of z₁ in one call: of many, the generator of random numbers would take a CPU long to compile.
    z1_of_all = jax.random.normal(of_diagonal, (sum(leaf.size for leaf in leaves),))
    drawn, start = [], 0
    for mean, square, deviation in zip(leaves, squares, deviations, strict=True):
        scale = jnp.sqrt(jnp.maximum(square, 0) / (2 * gaussian.taken))  # rounding may leave a square below 0
        z1 = z1_of_all[start : start + mean.size].reshape(mean.shape)
        start += mean.size
        drawn.append(mean + scale * z1 + jnp.tensordot(z2, deviation, 1))
    return jax.tree.unflatten(tree, drawn)


def collected(opt_state: Any, kind: type[State]) -> State:
    """What was collected, in the state of an optimiser (of one member or of many).

    Args:
      opt_state: of a chain with a transformation of this module; kind: `Snapshots`, `Mean` or `Gaussian`.

    Raises:
      ValueError: the chain has none of that kind.
    """
    for state in jax.tree.leaves(opt_state, is_leaf=lambda node: isinstance(node, kind)):
        if isinstance(state, kind):
            return state
    raise ValueError(f"collected: the optimiser's state has no {kind.__name__}")


def collections(start: int, every: int, total_steps: int) -> int:
    """How many of the steps start, start + every, … (0 excepted) there are up to `total_steps`.

    >>> collections(0, 4, 9), collections(1, 4, 9), collections(10, 4, 9)
    (2, 3, 0)
    """
    return len(range(start or every, total_steps + 1, every))


def _counted(count: jax.Array, start: int, every: int) -> tuple[jax.Array, jax.Array]:
    count = count + 1
    return count, (count >= start) & ((count - start) % every == 0)


def _moved(mean: Any, new: Any, due: jax.Array, taken: jax.Array) -> Any:
    """The mean with `new` in it, where it is due."""
    weight = jnp.where(due, 1 / jnp.maximum(taken, 1), 0)
    return jax.tree.map(lambda m, p: m + weight * (p - m), mean, new)


def _placed(rows: jax.Array, slot: jax.Array, due: jax.Array, row: jax.Array) -> jax.Array:
    """`rows` with `row` at `slot`, where it is due: one row is written at each step, not all of them."""
    return rows.at[slot].set(jnp.where(due, row, rows[slot]))
