"""What predicts after training: the weights of every member of the run, or, of an ensemble, several of each.

Keys are `fold_in`s of the seed: 5 Monte-Carlo dropout, 6 draws from SWAG; members of a seed share them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sc_jax import models
from sc_jax.config import IN_NETWORK
from sc_jax.training import ensembles, optimizers, parallel
from sc_jax.training import job as job_lib
from sc_jax.training.state import TrainState
from sc_jax.training.step import Measured


class Weights(NamedTuple):
    """One network of every member of the run, with a leading axis [M] of them.

    Attributes:
      params, model_state: of the networks.
      key: [M], what their dropout is drawn by, or None where none is.
    """

    params: Any
    model_state: Any
    key: jax.Array | None = None


def networks(job: job_lib.Job, trained: TrainState, mesh: parallel.Mesh) -> list[Weights]:
    """The networks that predict: one, or of an ensemble one for each of its members.

    Parameters collected on the way get batch statistics of their own, by one more pass over the training batches; what is drawn
    from SWAG gets them draw by draw. Networks without batch statistics need none.

    Args:
      job: as built; trained: the state at the end of training; mesh: the devices.

    Returns:
      m `Weights`.

    Source: Izmailov et al. (2018) and Maddox et al. (2019), who recompute batch statistics so; Huang et al. (2017) keep those
    of each snapshot's time instead.
    """
    e, opt_state = job.config.ensemble, trained.opt_state
    averaged = optimizers.averaged(opt_state)
    params = trained.params if averaged is None else averaged
    if e.kind == "mc_dropout":
        return [Weights(params, trained.model_state, _keys(job, 5, i)) for i in range(e.members)]
    if e.kind == "snapshot":
        kept = ensembles.collected(opt_state, ensembles.Snapshots).params
        each = [jax.tree.map(lambda leaf, i=i: leaf[:, i], kept) for i in range(e.members)]
    elif e.kind == "swa":
        each = [ensembles.collected(opt_state, ensembles.Mean).mean]
    elif e.kind == "swag":
        gaussian = ensembles.collected(opt_state, ensembles.Gaussian)
        draw = jax.jit(jax.vmap(ensembles.draw))
        each = [draw(gaussian, _keys(job, 6, i)) for i in range(e.members)]
    else:
        return [Weights(params, trained.model_state)]
    return with_statistics(job, mesh, each, trained.model_state)


def _keys(job: job_lib.Job, purpose: int, i: int) -> jax.Array:
    of_one = jax.vmap(lambda key: jax.random.fold_in(jax.random.fold_in(key, purpose), i))
    return of_one(job.members.key)


def with_statistics(job: job_lib.Job, mesh: parallel.Mesh, each: list[Any], model_state: Any) -> list[Weights]:
    """Parameters with the batch statistics that they have on the training batches of one epoch more.

    The batches are those that training would have gone on with, from the next whole epoch: drawn and augmented alike, dropout
    on; all networks get the same. Statistics are the mean over batches (`sc_jax.training.step.make_measurement`).

    Args:
      job: as built; mesh: the devices; each: parameters [M, …] of every network; model_state: its form, [M, …].

    Returns:
      `Weights` of each.
    """
    if not jax.tree.leaves(model_state):
        return [Weights(params, model_state) for params in each]
    first = -(-job.total_steps // job.steps_per_epoch) * job.steps_per_epoch
    # A step donates what it is given: copies, so that nobody else's arrays go.
    measured = [
        Measured(
            jnp.asarray(first, jnp.int32),
            jnp.zeros((), jnp.int32),
            jax.tree.map(jnp.copy, params),
            jax.tree.map(jnp.zeros_like, model_state),
        )
        for params in each
    ]
    measured = [parallel.replicate(one, mesh) for one in measured]
    with job_lib.measuring(job, mesh, first) as advance:
        for step in range(first, first + job.steps_per_epoch):
            measured = advance(measured, step)
    return [Weights(one.params, one.model_state) for one in measured]


def outputs_of(job: job_lib.Job) -> Callable[[Weights, tuple[jax.Array, jax.Array]], dict[str, jax.Array]]:
    """What the networks say of a batch, for `jax.jit`.

    Returns:
      (`Weights`, (raw inputs [b, …], ids int [b])) → {"logits"}: [M, b, k], of segmentation [M, b, h, w, k], of networks that have m
      members of their own [M, b, m, k]; with `prediction.features` also "features" [M, b, d], and the heads [M, b] by which
      objectives rank. Masks of Monte-Carlo
      dropout depend on the seed, the network and the example's id alone, not on the batch that it comes in.
    """
    heads = dict.fromkeys(one.objective.confidence for one in job.objectives if one.objective.confidence)
    names = ("logits", *(("features",) if job.config.prediction.features else ()), *heads)

    def plain(weights: Weights, batch: tuple[jax.Array, jax.Array]) -> dict[str, jax.Array]:
        inputs = job.evaluation_transform(batch[0])
        return models.member_outputs(job.model, weights.params, weights.model_state, inputs, names)

    def dropped(weights: Weights, batch: tuple[jax.Array, jax.Array]) -> dict[str, jax.Array]:
        inputs, example_id = job.evaluation_transform(batch[0]), batch[1].astype(jnp.uint32)

        def one_member(params: Any, model_state: Any, key: jax.Array) -> jax.Array:
            def one_example(x: jax.Array, example_id: jax.Array) -> jax.Array:
                key_of_it = jax.random.fold_in(key, example_id)
                return job.model.apply(params, model_state, x[None], key=key_of_it, dropout=True)[0]["logits"][0]

            return jax.vmap(one_example)(inputs, example_id)

        return {"logits": models.map_members(one_member, job.model.member_mapping)(*weights)}

    def of_their_members(weights: Weights, batch: tuple[jax.Array, jax.Array]) -> dict[str, jax.Array]:
        inputs = job.evaluation_transform(batch[0])

        def one(params: Any, model_state: Any) -> jax.Array:
            return jnp.moveaxis(job.model.apply(params, model_state, inputs)[0]["member_logits"], 0, 1)

        return {"logits": models.map_members(one, job.model.member_mapping)(weights.params, weights.model_state)}

    kind = job.config.ensemble.kind
    return dropped if kind == "mc_dropout" else of_their_members if kind in IN_NETWORK else plain
