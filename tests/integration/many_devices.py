"""Run in a process of its own by test_many_devices.py: `many_devices.py DEVICES OUT.npz`.

The number of devices must be set before JAX starts.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import jax

jax.config.update("jax_num_cpu_devices", int(sys.argv[1]))

import jax.numpy as jnp
import numpy as np
import shared_metrics

from sc_jax import models, ops
from sc_jax.config import MemberGrid
from sc_jax.data.pipelines import epoch_order, evaluation_transform, train_transform
from sc_jax.methods import cascade
from sc_jax.models import member_logits
from sc_jax.ops.ranking import rank_over_axis
from sc_jax.predictions import Predictions
from sc_jax.training import optimizers, parallel, state, step
from sc_jax.training.objectives import named

N, BATCH, STEPS = 203, 32, 12
scale = evaluation_transform((0.5,), (0.5,))


def main() -> None:
    assert jax.device_count() == int(sys.argv[1])
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (N, 8, 8)).astype(np.uint8)
    labels = rng.integers(0, 4, N).astype(np.int32)
    mesh = parallel.data_mesh()
    results = {}
    hidden = {"hidden": (12, 9), "dropout": 0.1}
    abstaining = (
        "self_adaptive=0.9",
        "selective_net=0.8",
        "aurc=0.5",
    )  # with targets by example, and losses of whole batches
    for name, network, options, augmentation, sam in (
        ("mlp", "mlp", hidden, {}, 0.0),
        ("cnn", "cnn", hidden, {}, 0.0),
        ("abstaining", "mlp", {**hidden, "heads": ("abstain_logit", "auxiliary_logits", "selection_logit")}, {}, 0.0),
        ("augmented", "mlp", hidden, {"crop_padding": 1, "flip": True, "mixup": 0.2}, 0.0),
        ("streamed", "densenet_bc_100", {"blocks": (1,), "growth": 4}, {}, 0.5),
    ):
        model = models.build(network, input_shape=(8, 8, 1), num_classes=4, **options)
        optimizer = optimizers.make_optimizer(
            # Of a scale or shift with next to no gradient, Adam's step is one of rounding.
            optimizer="sgd" if name == "streamed" else "adamw",
            learning_rate=0.01,
            weight_decay=0.1,
            warmup_steps=2,
            total_steps=STEPS,
        )
        grid = MemberGrid((0.0,) if name == "streamed" else (0.0, 0.3), (0, 1))
        grid = MemberGrid((0.0,), (0,), abstaining) if name == "abstaining" else grid
        wanted = named(grid.objectives, 4)
        members = state.make_members(grid.tags)
        members, data, target = parallel.replicate((members, images, labels), mesh)
        current = parallel.replicate(state.initial_state(model, optimizer, members, N if wanted else 0), mesh)
        how = {"log_every": 4, "sam": sam, "objectives": wanted, "total_steps": STEPS}
        one = step.make_step(model, optimizer, train_transform((0.5,), (0.5,), **augmentation), mesh, **how)
        advance = step.from_stream(one) if name == "streamed" else step.from_memory(one, mesh, BATCH)
        losses = []
        for s in range(STEPS):
            order = epoch_order(members.seed_key, s // (N // BATCH), N)
            if name == "streamed":  # from the host
                start = s % (N // BATCH) * BATCH
                index = np.asarray(order)[:, start : start + BATCH]
                batch = parallel.divide((images[index], labels[index]), mesh, axis=1)
                current, meters = advance(current, members, *batch)
            else:
                current, meters = advance(current, members, order, data, target)
            losses.append(np.asarray(meters.loss / meters.examples))
        results[f"{name}_loss"] = np.stack(losses)

        weights = (current.params, current.model_state)
        mapped = parallel.map_over_devices(lambda w, x, model=model: member_logits(model, *w, scale(x)), mesh)
        results[f"{name}_logits"] = parallel.in_batches(lambda x: mapped(weights, x), images, BATCH, axis=1)  # noqa: B023
        if name == "mlp":
            results |= cascade_of(lambda x: mapped(weights, x), images, results["mlp_logits"])  # noqa: B023
        if wanted:
            results["abstaining_target"] = np.asarray(current.target)
        if name == "streamed":
            leaves = jax.tree.leaves(current.model_state)
            results["streamed_statistics"] = np.concatenate([np.asarray(leaf).ravel() for leaf in leaves])
            continue
        if jax.device_count() > 1:
            shares = jnp.asarray(images[:BATCH]).reshape(jax.device_count(), -1, 8, 8)
            pmapped = jax.pmap(lambda w, x, model=model: member_logits(model, *w, scale(x)), in_axes=(None, 0))(
                weights, shares
            )
            results[f"{name}_pmap"] = np.moveaxis(np.asarray(pmapped), 0, 1).reshape(4, BATCH, 4)
    results |= metrics_of_shares(mesh)
    np.savez(sys.argv[2], **results)


def cascade_of(
    network: Callable[[np.ndarray], jax.Array], images: np.ndarray, logits: np.ndarray
) -> dict[str, np.ndarray]:
    """A cascade whose stages are mapped over the devices: one member, then the others; and what their logits say it decides."""
    outputs = [Predictions(np.zeros(N, int), part, np.arange(N)) for part in (logits[:1], logits[1:])]
    given = cascade.stages(outputs, (1.0, 3.0))
    window = cascade.window_around(given.score[0], float(np.median(given.score[0])), 0.2)
    policy = cascade.frozen(given, cascade.Task("coverage", 0.5), [window])
    stages = [lambda x: network(x)[:1], lambda x: network(x)[1:]]
    ran, wanted = cascade.predict(policy, stages, images, (1.0, 3.0), batch_size=BATCH), cascade.follow([window], given)
    return {
        "cascade_stage": ran.stage,
        "cascade_score": ran.score,
        "decided_stage": wanted.stage,
        "decided_score": wanted.score,
    }


def metrics_of_shares(mesh: jax.sharding.Mesh) -> dict[str, np.ndarray]:
    """Metrics of scores divided over the devices."""
    divided = ops.Ranking(True, True, True, True, True, False, False)
    merge = parallel.map_shares(
        lambda score, loss, where: rank_over_axis(score, loss, "data", where=where), mesh, divided
    )
    results = {}
    for name, sample in shared_metrics.samples().items():
        ranking = merge(*map(jnp.asarray, sample))
        for metric_name, metric in shared_metrics.of(name).items():
            results[f"shares_{name}_{metric_name}"] = jax.jit(metric)(ranking)
    return results


if __name__ == "__main__":
    main()
