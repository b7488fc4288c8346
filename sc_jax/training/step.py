"""One optimisation step of all members, as one compiled program."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from sc_jax.data.pipelines import Transform
from sc_jax.models import Model, map_members
from sc_jax.training import objectives as objectives_lib
from sc_jax.training import parallel
from sc_jax.training.objectives import Beside, Known, Named
from sc_jax.training.optimizers import sam_gradient
from sc_jax.training.state import Members, Meters, TrainState


class _OneMember(NamedTuple):
    """What a member's step depends on beside state and batch; with a leading member axis outside of it."""

    alpha: jax.Array
    objective: jax.Array
    key: jax.Array
    progress: jax.Array


Step = Callable[..., tuple[Any, Any]]
"""See what `make_step` and `make_measurement` return."""


class Measured(NamedTuple):
    """Batch statistics as the mean over batches, and whose they are; every leaf but the first two has a leading member axis.

    Attributes:
      step: int32 [], of the batch that comes next; taken: int32 [], batches so far.
      params: as they are; model_state: the mean over the batches so far.
    """

    step: jax.Array
    taken: jax.Array
    params: Any
    model_state: Any


def make_step(
    model: Model,
    optimizer: optax.GradientTransformation,
    transform: Transform,
    mesh: parallel.Mesh,
    *,
    log_every: int,
    sharding: str = "replicated",
    sam: float = 0.0,
    ignore_label: int | None = None,
    objectives: Sequence[Named] = (),
    total_steps: int = 0,
) -> Step:
    """Builds the step.

    Args:
      model, optimizer: as built.
      transform: a seed's raw inputs and labels → what the model takes and its targets (`sc_jax.data.pipelines`).
      mesh: the devices; a batch is divided over them.
      log_every: meters start anew after this many steps.
      sharding: of parameters and optimiser state, of `parallel.place`. Divided ones are put together for the gradient.
      sam: ρ of sharpness-aware minimisation, 0 for none.
      ignore_label: of segmentation, the label of pixels that do not count.
      objectives: that members may have beside label smoothing; total_steps: of the training, for those that change on the way.

    Returns:
      (state, members, inputs [s, b, …], labels [s, b, …], known [s, b, …], index int32 [s, b]) → (state, meters), to be jitted by
      `from_memory` or `from_stream`; `known`, and `index`, the places of the examples in the train split, may be left out where no
      objective asks for them.
      `members` are data: other α or seeds do not compile anew. Members of a seed see the same batch, augmented alike.

    Raises:
      ValueError: an objective has a warm-up, and `total_steps` is not given.
    """
    if total_steps == 0 and any(one.objective.warm_up for one in objectives):
        raise ValueError("make_step: an objective has a warm-up, a share of total_steps; give them")
    wanted = objectives_lib.heads(objectives)

    def member_loss(
        params: Any,
        model_state: Any,
        one: _OneMember,
        inputs: jax.Array,
        targets: Any,
        known: Known,
        target: jax.Array | None,
    ) -> tuple[jax.Array, tuple[Any, jax.Array, jax.Array | None]]:
        outputs, model_state = model.apply(params, model_state, inputs, train=True, key=one.key)
        if target is not None:
            target = objectives_lib.moved_targets(
                objectives, one.objective, outputs["logits"], targets.label, target, one.progress
            )
        beside = Beside(**{name: outputs[name] for name in wanted}, target=target, progress=one.progress)

        def loss(logits: jax.Array) -> jax.Array:
            values = objectives_lib.loss(objectives, one.objective, logits, targets, one.alpha, known, beside)
            return jnp.mean(values) if ignore_label is None else _mean_where(values, targets.label, ignore_label)

        exits, members = outputs.get("exit_logits"), outputs.get("member_logits")
        if members is not None:
            total = jnp.mean(jax.vmap(loss)(members))
        else:
            total = loss(outputs["logits"]) if exits is None else sum(loss(logits) for logits in exits)
        hits = jnp.argmax(outputs["logits"], axis=-1) == targets.label
        if ignore_label is not None:  # an image counts by the share of its batch's labelled pixels that are right
            hits = len(inputs) * _mean_where(hits, targets.label, ignore_label)
        return total, (model_state, jnp.sum(hits).astype(jnp.float32), target)

    def member_step(
        params: Any,
        model_state: Any,
        opt_state: Any,
        one: _OneMember,
        inputs: jax.Array,
        targets: Any,
        known: Known,
        target: jax.Array | None,
    ) -> tuple[Any, ...]:
        value_and_grad = jax.value_and_grad(member_loss, has_aux=True)
        if sam:
            value_and_grad = sam_gradient(value_and_grad, sam)
        whole = parallel.keep_member(params, mesh, "replicated") if sharding == "fsdp" else params
        (loss, (model_state, correct, target)), grads = value_and_grad(
            whole, model_state, one, inputs, targets, known, target
        )
        if sharding == "fsdp":
            grads = parallel.keep_member(grads, mesh, sharding)
        finite = jnp.isfinite(loss) & _has_norm(grads)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), model_state, opt_state, loss, correct, finite, target

    all_members = parallel.over_members(map_members(member_step, model.member_mapping), mesh)
    batch_of = _batches(transform, mesh, objectives)

    def step(
        state: TrainState,
        members: Members,
        inputs: jax.Array,
        labels: jax.Array,
        known: Known = objectives_lib.NOTHING,
        index: jax.Array | None = None,
    ) -> tuple[TrainState, Meters]:
        batch_size = inputs.shape[1]
        keys, batch, targets, known = batch_of(state.step, members, inputs, labels, known)
        progress = jnp.full(members.alpha.shape, state.step / max(total_steps, 1), jnp.float32)
        each = _OneMember(members.alpha, members.objective, keys, progress)
        target, place = state.target, None
        if target is not None:
            place = jnp.arange(len(target))[:, None], index[members.seed_index]
            target = target[place]
        params, model_state, opt_state, loss, correct, finite, target = all_members(
            state.params, state.model_state, state.opt_state, each, batch, targets, known, target
        )
        if target is not None:
            target = state.target.at[place].set(target)
        past = jnp.where(state.step % log_every == 0, 0, 1)
        meters = Meters(
            loss=state.meters.loss * past + loss * batch_size,
            correct=state.meters.correct * past + correct,
            examples=state.meters.examples * past + batch_size,
            bad_step=jnp.where((state.meters.bad_step == 0) & ~finite, state.step + 1, state.meters.bad_step),
        )
        state = TrainState(state.step + 1, params, model_state, opt_state, meters, target)
        return parallel.keep(state, mesh, sharding), parallel.keep_whole(meters, mesh)

    return step


def make_measurement(model: Model, transform: Transform, mesh: parallel.Mesh, objectives: Sequence[Named] = ()) -> Step:
    """Builds the step that measures batch statistics on a batch of training, with parameters as they are.

    s̄ ← s̄ + (s − s̄)/(n + 1), with s the statistics of the batch alone: mean and biased variance, as they are in training. The
    mean over batches of one size weighs them alike, where the running statistics of training prefer the last.

    Args:
      model: as built; transform, mesh, objectives: of `make_step`, so that batches are those of training.

    Returns:
      (`Measured`, members, inputs [s, b, …], labels [s, b, …], known [s, b, …], index [s, b]) → (`Measured`, None), as of `make_step`.

    Source: Izmailov et al. (2018), "Averaging weights leads to wider optima and better generalization", section 3.2, the pass
    over the data that averaged weights need.
    """
    all_members = parallel.over_members(map_members(model.statistics, model.member_mapping), mesh)
    batch_of = _batches(transform, mesh, objectives)

    def measure(
        measured: Measured,
        members: Members,
        inputs: jax.Array,
        labels: jax.Array,
        known: Known = objectives_lib.NOTHING,
        index: jax.Array | None = None,
    ) -> tuple[Measured, None]:
        keys, batch, _, _ = batch_of(measured.step, members, inputs, labels, known)
        found = all_members(measured.params, measured.model_state, batch, keys)
        taken = measured.taken + 1
        mean = jax.tree.map(lambda old, new: old + (new - old) / taken, measured.model_state, found)
        return parallel.keep(Measured(measured.step + 1, taken, measured.params, mean), mesh), None

    return measure


def _batches(transform: Transform, mesh: parallel.Mesh, objectives: Sequence[Named]) -> Callable[..., tuple[Any, ...]]:
    """(step, members, inputs [s, b, …], labels [s, b, …], known [s, b, …]) → (keys [m] for dropout, inputs, targets, known of the
    members [m, b, …])."""

    def batch_of(
        step: jax.Array, members: Members, inputs: jax.Array, labels: jax.Array, known: Known
    ) -> tuple[jax.Array, Any, Any, Known]:
        def keys_for(seed_keys: jax.Array, purpose: int) -> jax.Array:
            return jax.vmap(lambda key: jax.random.fold_in(jax.random.fold_in(key, purpose), step))(seed_keys)

        batch = jax.vmap(transform)(keys_for(members.seed_key, 3), inputs, labels)

        def of_members(array: jax.Array) -> jax.Array:
            return parallel.split_batch(array, mesh, axis=1)[members.seed_index]

        if any(one.objective.change for one in objectives):
            *batch, place = objectives_lib.changed(objectives, keys_for(members.seed_key, 4), *batch)
            which = place[members.objective]
            batch = jax.tree.map(
                lambda array: parallel.split_batch(array, mesh, axis=2)[which, members.seed_index], batch
            )
        else:
            batch = jax.tree.map(of_members, batch)
        batch, targets = batch
        return keys_for(members.key, 2), batch, targets, jax.tree.map(of_members, known)

    return batch_of


def _has_norm(grads: Any) -> jax.Array:
    """Whether the norm of a gradient is finite, in one pass that needs no sum: no entry may have more than its share of the largest square."""
    leaves = jax.tree.leaves(grads)
    largest = [float(jnp.finfo(leaf.dtype).max) ** 0.5 / sum(leaf.size for leaf in leaves) ** 0.5 for leaf in leaves]
    return functools.reduce(
        jnp.logical_and, (jnp.all(jnp.abs(leaf) < most) for leaf, most in zip(leaves, largest, strict=True))
    )


def _mean_where(values: jax.Array, label: jax.Array, ignore_label: int) -> jax.Array:
    """The mean over pixels that have a label; 0 if none has."""
    labelled = label != ignore_label
    return jnp.sum(jnp.where(labelled, values, 0)) / jnp.maximum(jnp.sum(labelled), 1)


def from_memory(
    step: Step, mesh: parallel.Mesh, batch_size: int, *, at_once: int = 1, marks: Sequence[int] = ()
) -> Step:
    """The jitted step on data that lie whole on the devices, or several of them as one program.

    Args:
      step, mesh: as of `make_step`; batch_size: of all devices together.
      at_once, marks: of `steps_ahead`, the number of steps that a call takes, which the program finds by itself: it is compiled once. With at_once = 1 it
        has no loop, in which XLA's convolutions on a CPU are slow.

    Returns:
      (state, members, order int32 [s, n], inputs [n, …], labels [n], known of all examples) → (state, meters): `order` is the
      epoch's order for each distinct seed. `state` is donated; `meters` is a copy that outlives it.
    """

    def advance(
        state: Any,
        members: Members,
        order: jax.Array,
        inputs: jax.Array,
        labels: jax.Array,
        known: Known = objectives_lib.NOTHING,
    ) -> tuple[Any, Any]:
        start = (state.step % (order.shape[1] // batch_size)) * batch_size
        index = jax.lax.dynamic_slice_in_dim(order, start, batch_size, axis=1)  # [s, b]
        batch = (parallel.split_batch(array[index], mesh, axis=1) for array in (inputs, labels))
        return step(state, members, *batch, known.at(index), index)

    def several(state: TrainState, *given: Any) -> tuple[TrainState, Meters]:
        taken = steps_ahead(state.step, at_once, marks)
        state = jax.lax.fori_loop(0, taken, lambda _, state: advance(state, *given)[0], state)
        return state, parallel.keep_whole(state.meters, mesh)

    return jax.jit(advance if at_once == 1 else several, donate_argnums=0)


def steps_ahead(taken: Any, at_once: int, marks: Sequence[int]) -> Any:
    """How many steps the next call takes: up to the next multiple of any of `marks`, and `at_once` at most.

    Args:
      taken: steps so far, an integer or int32 []; at_once: ≥ 1; marks: each ≥ 1.

    >>> [steps_ahead(taken, 8, (10, 12)) for taken in (0, 8, 10, 12)]
    [8, 2, 2, 8]
    """
    least = min if isinstance(taken, int) else lambda *counts: functools.reduce(jnp.minimum, counts)
    return least(at_once, *(mark - taken % mark for mark in marks))


def from_stream(step: Step) -> Step:
    """The jitted step on batches that come one by one: (state, members, inputs [s, b, …], labels [s, b, …]) → (state, meters)."""
    return jax.jit(step, donate_argnums=0)
