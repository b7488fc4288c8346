"""Training speed: many members in one program against one after the other, each network against PyTorch, and what input costs.

    make bench        # or: python -m benchmarks.training [--parts=study,members,networks] [--only=mlp,cnn]

- study: the 25 members of the default study against 25 runs one after the other, in alternating rounds, and with compilation for a whole
  study of its length; again with one batch for all members, and with a batch each.
- members: M = 1 … 32 members of MLP, CNN and ResNet-20 by each mapping (`models.map_members`) against M runs one after the other; "sharded"
  is the backbone's own mapping on one device for each core, which divide the members among them, in a process of its own. More members are not tried of a
  mapping that took longer than a minute to compile, or ran at less than a quarter of the rate of one after the other.
- networks: one member of each network, AdamW, against a plain PyTorch loop; input of small images is a gather inside the program, whose share
  is that of the time without it; of ImageNet's size, the time the loop waits for JPEGs decoded by threads.

Rates are after compilation, on float32. The measure of arithmetic is 6 MACs for each example of a step (forward 2, backward 4) over the machine's rate at a
2048³ matrix product. GPUs: not measured.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from benchmarks import input as benchmark_of_input
from benchmarks import machine, networks
from sc_jax import config as config_lib
from sc_jax import files
from sc_jax.config import MemberGrid
from sc_jax.data.pipelines import epoch_order, train_transform
from sc_jax.training import job as job_lib
from sc_jax.training import optimizers, parallel, state, step

CONFIG = "experiments/label_smoothing/config.py"
STEPS, ROUNDS = 40, 5
COUNTS, MAPPINGS = (1, 2, 4, 8, 16, 32), ("vmap", "unroll", "map")
LONGEST_COMPILATION, LEAST_SPEEDUP = 60.0, 0.25
CORES = len(os.sched_getaffinity(0))


def program(job: job_lib.Job) -> tuple[Callable[[], float], float]:
    """A function that takes `STEPS` steps of the job's members as the door does and returns the seconds; and the seconds to compile."""
    mesh = parallel.data_mesh()
    split = job.dataset.splits["train"]
    members, images, labels = parallel.replicate((job.members, split.inputs, split.label), mesh)
    transform = train_transform(job.config.data.mean, job.config.data.std)
    one = step.make_step(job.model, job.optimizer, transform, mesh, log_every=STEPS)
    advance = step.from_memory(one, mesh, job.config.training.batch_size, at_once=job.at_once, marks=(STEPS,))
    current = parallel.replicate(state.initial_state(job.model, job.optimizer, members), mesh)
    order = epoch_order(members.seed_key, 0, len(images))

    def run() -> float:
        nonlocal current
        start = time.perf_counter()
        for _ in range(-(-STEPS // job.at_once)):
            current, meters = advance(current, members, order, images, labels)
        jax.block_until_ready((current, meters))
        return time.perf_counter() - start

    with_compilation = run()
    return run, with_compilation - run()


def of_members(job: job_lib.Job, grid: MemberGrid) -> job_lib.Job:
    """The job with other members of label smoothing."""
    return dataclasses.replace(job, members=state.make_members(grid.tags), tags=grid.tags)


def study() -> dict[str, Any]:
    """The 25 members of the default study."""
    config = config_lib.load(CONFIG)
    job = job_lib.build(config)
    count, batch = len(job.tags), config.training.batch_size
    together, compile_together = program(job)
    alone_job = of_members(job, MemberGrid(config.members.alphas[:1], config.members.seeds[:1]))
    alone, compile_alone = program(alone_job)
    # As many members that all have one batch, and as many with a batch each.
    shared, _ = program(of_members(job, MemberGrid(tuple(i / count for i in range(count)), (0,))))
    each, _ = program(of_members(job, MemberGrid((0.0,), tuple(range(count)))))
    ways = {"one_program": together, "shared_batch": shared, "batch_each": each}
    ways["one_after_the_other"] = lambda: sum(alone() for _ in range(count))  # 25 runs in a row, each round
    rounds = [{name: way() for name, way in ways.items()} for _ in range(ROUNDS)]
    seconds = {name: statistics.median(one[name] for one in rounds) for name in ways}
    rates = {name: count * batch * STEPS / value for name, value in seconds.items()}
    parameters = sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(job.model.init, jax.random.key(0))[0]))
    flops = 6 * parameters  # forward 2, backward 4 per parameter and example
    rate = networks.matmul_flops()
    speedups = [one["one_after_the_other"] / one["one_program"] for one in rounds]
    pair = ("one_program", "one_after_the_other")
    return {
        "model": f"{config.model.name} {config.model.hidden}",
        "members": count,
        "batch_size": batch,
        "steps_of_a_program": {"one_program": job.at_once, "one_after_the_other": alone_job.at_once},
        "members_examples_per_second": rates,
        "speedup": statistics.median(speedups),
        "speedup_of_each_round": speedups,
        "compile_seconds": {"one_program": compile_together, "one_member": compile_alone},
        "study_seconds": {
            name: compiling + job.total_steps * seconds[name] / STEPS
            for name, compiling in zip(pair, (compile_together, compile_alone), strict=True)
        },
        "matmul_2048_flops_per_second": rate,
        "share_of_matmul_rate": {name: value * flops / rate for name, value in rates.items()},
        "aims": {"speedup": 1.0, "shared_batch": 0.4, "batch_each": 0.55},
    }


def one_step(
    network: networks.Network, count: int, mapping: str | None = None, *, batch_each: bool = True
) -> tuple[Callable[[], Any], float]:
    """A step of `count` members on a batch that is given, AdamW; and the seconds to compile it. Devices divide the members."""
    mesh = parallel.data_mesh(jax.device_count())
    model = network.build()
    model = dataclasses.replace(model, member_mapping=mapping or model.member_mapping)
    optimizer = optimizers.make_optimizer(
        optimizer="adamw", learning_rate=1e-4, weight_decay=1e-4, warmup_steps=1, total_steps=1_000_000
    )
    grid = (
        MemberGrid((0.0,), tuple(range(count))) if batch_each else MemberGrid(tuple(np.linspace(0, 0.5, count)), (0,))
    )
    members = parallel.replicate(state.make_members(grid.tags), mesh)
    batch = parallel.replicate(made_up_batch(network, len(grid.seeds)), mesh)
    advance = step.from_stream(step.make_step(model, optimizer, train_transform((0.5,), (0.5,)), mesh, log_every=100))
    current = parallel.place(state.initial_state(model, optimizer, state.make_members(grid.tags)), mesh)
    start = time.perf_counter()
    current, _ = jax.block_until_ready(advance(current, members, *batch))
    compile_seconds = time.perf_counter() - start

    def run(batch: Any = batch) -> None:
        nonlocal current
        current, meters = advance(current, members, *batch)
        jax.block_until_ready(meters)

    return run, compile_seconds


def made_up_batch(network: networks.Network, streams: int) -> tuple[np.ndarray, np.ndarray]:
    """(images uint8 [s, b, …], labels int32 [s, b])."""
    rng = np.random.default_rng(0)
    shape = network.shape[:2] if network.shape[-1] == 1 else network.shape
    images = rng.integers(0, 256, (streams, network.batch, *shape), np.uint8)
    return images, rng.integers(0, network.classes, images.shape[:2]).astype(np.int32)


def members(only: list[str]) -> Iterator[dict[str, Any]]:
    """A row for each network, way of sharing batches, mapping and M."""
    chosen = [n for n in networks.NETWORKS[:3] if not only or n.backbone in only]
    for network, batch_each in itertools.product(chosen, (True, False)):
        if not batch_each and network.backbone != "mlp":
            continue
        alone, compile_alone = one_step(network, 1)
        given_up: set[str] = set()
        for count in COUNTS:
            ways: dict[str, Callable[[], Any]] = {"one_after_the_other": lambda: [alone() for _ in range(count)]}  # noqa: B023
            compiling = {"one_after_the_other": compile_alone}
            for mapping in MAPPINGS:
                if mapping in given_up:
                    continue
                ways[mapping], compiling[mapping] = one_step(network, count, mapping, batch_each=batch_each)
            rates = networks.median_rates(networks.rounds(ways), count * network.batch)
            if count % CORES == 0 and "sharded" not in given_up:
                rates["sharded"], compiling["sharded"] = sharded(network, count, batch_each)
            speedup = {name: rate / rates["one_after_the_other"] for name, rate in rates.items()}
            given_up |= {n for n in rates if compiling[n] > LONGEST_COMPILATION or speedup[n] < LEAST_SPEEDUP}
            yield {
                "network": network.name,
                "members": count,
                "batch": "each" if batch_each else "shared",
                "batch_size": network.batch,
                "members_examples_per_second": rates,
                "speedup": speedup,
                "compile_seconds": compiling,
                **networks.stamp(),
            }


def sharded(network: networks.Network, count: int, batch_each: bool) -> tuple[float, float]:
    """Members·examples per second, and seconds to compile, where each core is a device."""
    command = [sys.executable, "-m", "benchmarks.training", f"--sharded={network.backbone},{count},{int(batch_each)}"]
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": str(CORES)}
    return tuple(json.loads(subprocess.run(command, env=environment, capture_output=True, check=True).stdout))


def _measure_sharded(given: str) -> None:
    backbone, count, batch_each = given.split(",")
    network = next(network for network in networks.NETWORKS if network.backbone == backbone)
    run, compile_seconds = one_step(network, int(count), batch_each=batch_each == "1")
    rates = networks.median_rates(networks.rounds({"sharded": run}), int(count) * network.batch)
    print(json.dumps([rates["sharded"], compile_seconds]))


def of_networks(only: list[str], rate: float) -> Iterator[dict[str, Any]]:
    """A row for each network: one member, against PyTorch, and the share of input."""
    for network in networks.NETWORKS:
        if only and network.backbone not in only:
            continue
        run, compile_seconds = one_step(network, 1)
        ways = {"sc_jax": run, "torch": torch_step(network)}
        taken = networks.rounds(ways)
        rates = networks.median_rates(taken, network.batch)
        yield {
            "network": network.name,
            "batch_size": network.batch,
            "compile_seconds": compile_seconds,
            "examples_per_second": rates,
            "share_of_matmul_rate": {name: 6 * network.macs() * value / rate for name, value in rates.items()},
            "share_of_input": _share_of_input(network, run, statistics.median(taken["sc_jax"])),
            **networks.stamp(),
        }


def _share_of_input(network: networks.Network, run: Callable[..., None], seconds: float) -> float:
    """Of small images 1 − (step on a batch that is there)/(step that finds its batch); else the share of the time spent waiting."""
    if not network.streamed:
        mesh = parallel.data_mesh()
        images, labels = made_up_batch(network._replace(batch=12_000), 1)
        images, labels = parallel.replicate((images[0], labels[0]), mesh)
        model, transform = network.build(), train_transform((0.5,), (0.5,))
        optimizer = optimizers.make_optimizer(
            optimizer="adamw", learning_rate=1e-4, weight_decay=1e-4, warmup_steps=1, total_steps=1_000_000
        )
        of_one = parallel.replicate(state.make_members(MemberGrid((0.0,), (0,)).tags), mesh)
        one = step.make_step(model, optimizer, transform, mesh, log_every=100)
        advance = step.from_memory(one, mesh, network.batch)
        current = parallel.replicate(state.initial_state(model, optimizer, of_one), mesh)
        order = epoch_order(of_one.seed_key, 0, len(images))

        def with_input() -> None:
            nonlocal current
            current, meters = advance(current, of_one, order, images, labels)
            jax.block_until_ready(meters)

        taken = networks.rounds({"given": run, "found": with_input})
        given, found = (statistics.median(taken[name]) for name in ("given", "found"))
        return max(0.0, 1 - given / found)
    steps = max(3, round(4 / seconds))
    mesh = parallel.data_mesh()
    with contextlib.closing(benchmark_of_input.stream(network.batch, steps + 1)) as batches:
        next(batches)
        start, waited = time.perf_counter(), 0.0
        for _ in range(steps):
            asked = time.perf_counter()
            batch = next(batches)
            waited += time.perf_counter() - asked
            run(parallel.divide((batch["image"][None], batch["label"][None]), mesh, axis=1))
        return waited / (time.perf_counter() - start)


def torch_step(network: networks.Network) -> Callable[[], None]:
    """A step of a plain PyTorch loop, AdamW, on a batch that is given."""
    import torch

    model = networks.torch_model(network).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=1e-4)
    images, labels = made_up_batch(network, 1)
    images = images[0].reshape(network.batch, *network.shape)
    label = torch.from_numpy(labels[0].astype(np.int64))

    def run() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss = torch.nn.functional.cross_entropy(model(networks.torch_input(network, images)), label)
        loss.backward()
        optimizer.step()

    return run


def main() -> None:
    """Measures and writes `results/training.json`; parts and networks that are not measured stay as they were, each with its date."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--parts", default="study,members,networks")
    parser.add_argument("--only", default="")
    parser.add_argument("--sharded", help=argparse.SUPPRESS)  # a process that this program starts
    given = parser.parse_args()
    if given.sharded:
        _measure_sharded(given.sharded)
        return
    parts, only = given.parts.split(","), [name for name in given.only.split(",") if name]
    path = machine.RESULTS / "training.json"
    figures = files.read_json(path) if path.exists() else {}
    if "study" in parts:
        figures["study"] = study() | networks.stamp()
    rate = networks.matmul_flops()
    for part, rows in (("members", lambda: members(only)), ("networks", lambda: of_networks(only, rate))):
        if part not in parts:
            continue
        figures[f"rows_of_{part}"] = networks.others(figures.get(f"rows_of_{part}", []), only)
        for row in rows():
            figures[f"rows_of_{part}"].append(row)
            print({key: value for key, value in row.items() if key != "machine"}, flush=True)
            machine.write("training", figures)  # rows take minutes each: one that is interrupted keeps what it has
    machine.write("training", figures)


if __name__ == "__main__":
    main()
