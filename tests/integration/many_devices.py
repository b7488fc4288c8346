"""Run in processes of its own by test_many_devices.py: `many_devices.py OUT.npz CASE,CASE… DEVICES PROCESSES PROCESS PORT`.

The number of devices (of each process) must be set before JAX starts. The first process writes OUT.npz.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax

DEVICES, PROCESSES, PROCESS, PORT = map(int, sys.argv[3:])
jax.config.update("jax_num_cpu_devices", DEVICES)

import jax.numpy as jnp
import numpy as np
import shared_metrics

from sc_jax import models, ops
from sc_jax.config import MemberGrid
from sc_jax.data import streams
from sc_jax.data.pipelines import epoch_order, evaluation_transform, train_transform
from sc_jax.methods import cascade
from sc_jax.models import member_logits
from sc_jax.ops.ranking import rank_over_axis
from sc_jax.predictions import Predictions
from sc_jax.training import optimizers, parallel, processes, state, step
from sc_jax.training.objectives import named

N, BATCH, STEPS = 203, 32, 12
scale = evaluation_transform((0.5,), (0.5,))
rng = np.random.default_rng(0)
images = rng.integers(0, 256, (N, 8, 8)).astype(np.uint8)
labels = rng.integers(0, 4, N).astype(np.int32)

HIDDEN = {"hidden": (24, 9), "dropout": 0.1}
AUGMENTED = {"crop_padding": 1, "flip": True, "mixup": 0.2}
HEADS = {"heads": ("abstain_logit", "auxiliary_logits", "selection_logit")}
ABSTAINING = (
    "self_adaptive=0.9",
    "selective_net=0.8",
    "aurc=0.5",
)  # with targets by example, and losses of whole batches
# name → network, its options, augmentation, ρ of SAM, rows of devices, sharding
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any], float, int, str]] = {
    "mlp": ("mlp", HIDDEN, {}, 0.0, 1, "replicated"),
    "cnn": ("cnn", HIDDEN, {}, 0.0, 1, "replicated"),
    "augmented": ("mlp", HIDDEN, AUGMENTED, 0.0, 1, "replicated"),
    "divided": ("mlp", HIDDEN, AUGMENTED, 0.0, 1, "fsdp"),
    "unrolled": ("cnn", HIDDEN, {}, 0.0, 4, "replicated"),
    "spread_and_divided": ("mlp", HIDDEN, AUGMENTED, 0.0, 2, "fsdp"),
    "abstaining": ("mlp", {**HIDDEN, **HEADS}, {}, 0.0, 2, "replicated"),
    "streamed": ("densenet_bc_100", {"blocks": (1,), "growth": 4}, {}, 0.5, 1, "replicated"),
}


class Images:
    """The images as a stream."""

    example_id = np.arange(N)

    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int) -> streams.Record:
        return {"image": images[index], "label": labels[index], "example_id": index}

    def describe(self, index: int) -> str:
        return f"image {index}"


def shifted(record: streams.Record, generator: np.random.Generator) -> streams.Record:
    return {**record, "image": np.roll(record["image"], generator.integers(3), axis=0)}


def main() -> None:
    if PROCESSES > 1:
        processes.start(processes.Asked(PROCESSES, f"127.0.0.1:{PORT}", PROCESS))
    assert jax.device_count() == DEVICES * PROCESSES
    assert jax.process_count() == PROCESSES
    results = {}
    for name in sys.argv[2].split(","):
        results |= {f"{name}_{what}": value for what, value in trained(name, *CASES[name]).items()}
    results |= metrics_of_shares(parallel.data_mesh())
    if processes.first():
        np.savez(sys.argv[1], **results)


def trained(
    name: str, network: str, options: dict[str, Any], augmentation: dict[str, Any], sam: float, rows: int, sharding: str
) -> dict[str, Any]:
    """The loss of each step, the logits afterwards, and what the case is there for."""
    mesh = parallel.data_mesh(rows if jax.device_count() > 1 else 1)
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
    grid = MemberGrid((0.0,), (0,), ABSTAINING) if name == "abstaining" else grid
    wanted = named(grid.objectives, 4)
    members = state.make_members(grid.tags)
    members, data, target = parallel.replicate((members, images, labels), mesh)
    drawn = state.initial_state(model, optimizer, state.make_members(grid.tags), N if wanted else 0)
    current = parallel.place(drawn, mesh, sharding)
    one = step.make_step(
        model,
        optimizer,
        train_transform((0.5,), (0.5,), **augmentation),
        mesh,
        log_every=4,
        sam=sam,
        sharding=sharding,
        objectives=wanted,
        total_steps=STEPS,
    )
    losses = []
    with streamed(mesh) as batches:
        advance = step.from_stream(one) if name == "streamed" else step.from_memory(one, mesh, BATCH)
        for s in range(STEPS):
            if name == "streamed":
                current, meters = advance(current, members, *parallel.divide(next(batches), mesh, axis=1))
            else:
                order = epoch_order(members.seed_key, s // (N // BATCH), N)
                current, meters = advance(current, members, order, data, target)
            losses.append(np.asarray(meters.loss / meters.examples))

    weights = (current.params, current.model_state)
    mapped = parallel.map_over_devices(lambda w, x: member_logits(model, *w, scale(x)), mesh)

    def network_of(x: np.ndarray) -> jax.Array:
        return mapped(weights, parallel.divide(x, mesh, axis=0))

    batches = parallel.in_batches(images, BATCH, parallel.local_rows(BATCH, mesh))
    logits = np.concatenate([parallel.to_host(network_of(batch)) for batch in batches], axis=1)[:, :N]
    told: dict[str, Any] = {"loss": np.stack(losses), "logits": logits}
    held = [jax.device_get(leaf.addressable_data(0)).size for leaf in jax.tree.leaves(weights[0])]
    told["share_of_parameters"] = sum(held) / sum(leaf.size for leaf in jax.tree.leaves(weights[0]))
    if wanted:
        told["target"] = parallel.to_host(current.target)
    if name == "streamed":
        leaves = jax.tree.leaves(parallel.to_host(current.model_state))
        told["statistics"] = np.concatenate([leaf.ravel() for leaf in leaves])
    if name == "mlp" and PROCESSES == 1:
        told |= cascade_of(network_of, logits)
    if name in ("mlp", "cnn") and jax.local_device_count() == jax.device_count() > 1:
        shares = jnp.asarray(images[:BATCH]).reshape(jax.device_count(), -1, 8, 8)
        pmapped = jax.pmap(lambda w, x: member_logits(model, *w, scale(x)), in_axes=(None, 0))(weights, shares)
        told["pmap"] = np.moveaxis(np.asarray(pmapped), 0, 1).reshape(4, BATCH, 4)
    return told


@contextlib.contextmanager
def streamed(mesh: jax.sharding.Mesh) -> Iterator[Iterator[tuple[np.ndarray, np.ndarray]]]:
    """Batches (images [s, b, …], labels [s, b]) of two seeds, of which this process reads its rows."""
    with contextlib.ExitStack() as stack:
        rows = parallel.local_rows(BATCH, mesh)
        options = {"batch_size": BATCH, "total_steps": STEPS, "rows": rows, "threads": 1}
        each = [
            stack.enter_context(contextlib.closing(streams.batches(Images(), shifted, seed=seed, **options)))
            for seed in (0, 1)
        ]
        yield (
            tuple(np.stack([batch[field] for batch in batches]) for field in ("image", "label"))
            for batches in zip(*each, strict=True)
        )


def cascade_of(network: Callable[[np.ndarray], jax.Array], logits: np.ndarray) -> dict[str, np.ndarray]:
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
    samples = shared_metrics.samples()
    if PROCESSES > 1:  # each compiles every program
        samples = {name: samples[name] for name in ("tied_error", "untied_soft")}
    for name, sample in samples.items():
        rows = parallel.local_rows(len(sample[0]), mesh)
        ranking = merge(*parallel.divide(tuple(array[rows] for array in sample), mesh, axis=0))
        for metric_name, metric in shared_metrics.of(name).items():
            results[f"shares_{name}_{metric_name}"] = parallel.to_host(jax.jit(metric)(ranking))
    return results


if __name__ == "__main__":
    with processes.ending():
        main()
