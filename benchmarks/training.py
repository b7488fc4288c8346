"""Training throughput: the 25-member program against 25 runs one after the other.

    make bench        # or: python -m benchmarks.training

Members·examples per second after compilation, in alternating rounds, and with compilation for a whole study of the
default length. The floor is the machine's own rate at a 2048³ matrix product in float32.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp

from benchmarks import machine
from sc_jax import config as config_lib
from sc_jax.data.pipelines import epoch_order, train_transform
from sc_jax.training import job as job_lib
from sc_jax.training import parallel, state, step

CONFIG = "experiments/label_smoothing/config.py"
STEPS, ROUNDS = 40, 5


def program(job: job_lib.Job, members: state.Members) -> tuple[Callable[[], float], float]:
    """A function that takes `STEPS` steps of these members and returns the seconds; and the seconds to compile."""
    mesh = parallel.data_mesh()
    split = job.dataset.splits["train"]
    members, images, labels = parallel.replicate((members, split.inputs, split.label), mesh)
    transform = train_transform(job.config.data.mean, job.config.data.std)
    one = step.make_step(job.model, job.optimizer, transform, mesh, log_every=STEPS)
    advance = step.from_memory(one, mesh, job.config.training.batch_size)
    start = time.perf_counter()
    current = parallel.replicate(state.initial_state(job.model, job.optimizer, members), mesh)
    order = epoch_order(members.seed_key, 0, len(images))
    current, _ = jax.block_until_ready(advance(current, members, order, images, labels))
    compile_seconds = time.perf_counter() - start

    def run() -> float:
        nonlocal current
        start = time.perf_counter()
        for _ in range(STEPS):
            current, meters = advance(current, members, order, images, labels)
        jax.block_until_ready((current, meters))
        return time.perf_counter() - start

    return run, compile_seconds


def matmul_flops() -> float:
    """The machine's rate at a 2048³ float32 matrix product, best of 10."""
    a = jnp.ones((2048, 2048))
    product = jax.jit(jnp.matmul)
    product(a, a).block_until_ready()
    best = min(_seconds(lambda: product(a, a).block_until_ready()) for _ in range(10))
    return 2 * 2048**3 / best


def _seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def main() -> None:
    """Measures and writes `results/training.json`."""
    config = config_lib.load(CONFIG)
    job = job_lib.build(config)
    count, batch = len(job.tags), config.training.batch_size
    together, compile_together = program(job, job.members)
    alone, compile_alone = program(job, state.make_members(config.members.tags[:1]))
    rounds = [(together(), sum(alone() for _ in range(count))) for _ in range(ROUNDS)]  # 25 runs in a row, each round
    rate_together = [count * batch * STEPS / seconds for seconds, _ in rounds]
    rate_alone = [count * batch * STEPS / seconds for _, seconds in rounds]
    parameters = sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(job.model.init, jax.random.key(0))[0]))
    flops = 6 * parameters  # forward 2, backward 4 per parameter and example
    rate = matmul_flops()
    steps = job.total_steps
    figures = {
        "model": f"{config.model.name} {config.model.hidden}",
        "members": count,
        "batch_size": batch,
        "members_examples_per_second": {
            "one_program": statistics.median(rate_together),
            "one_after_the_other": statistics.median(rate_alone),
        },
        "speedup": statistics.median(a / b for a, b in zip(rate_together, rate_alone, strict=True)),
        "speedup_of_each_round": [a / b for a, b in zip(rate_together, rate_alone, strict=True)],
        "compile_seconds": {"one_program": compile_together, "one_member": compile_alone},
        "study_seconds": {
            "one_program": compile_together + steps * statistics.median(s for s, _ in rounds) / STEPS,
            "one_after_the_other": compile_alone + steps * statistics.median(s for _, s in rounds) / STEPS,
        },
        "matmul_2048_flops_per_second": rate,
        "share_of_matmul_rate": {
            "one_program": statistics.median(rate_together) * flops / rate,
            "one_after_the_other": statistics.median(rate_alone) * flops / rate,
        },
    }
    for name, value in figures.items():
        print(f"{name}: {value}")
    machine.write("training", figures)


if __name__ == "__main__":
    main()
