"""What statistics of the logits cost while training, at the cadence of the default study.

    make bench        # or: python -m benchmarks.logit_statistics

A step of the 25-member program after compilation, and one measurement with all it entails: two splits predicted, sums, fetch and
line. Its share of the training time is that over the steps between two of them. Medians of alternating rounds.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

import jax

from benchmarks import machine
from benchmarks.training import CONFIG
from sc_jax import config as config_lib
from sc_jax import train
from sc_jax.training import job as job_lib
from sc_jax.training import parallel, state

STEPS, ROUNDS = 30, 7


def main() -> None:
    """Measures and writes `results/logit_statistics.json`."""
    config = config_lib.load(CONFIG)
    every = config.training.statistics_every
    job, mesh = job_lib.build(config), parallel.data_mesh()
    current = parallel.replicate(state.initial_state(job.model, job.optimizer, job.members), mesh)
    of_steps, of_hooks = [], []
    with (
        tempfile.TemporaryDirectory() as folder,
        job_lib.stepping(job, mesh, 0) as advance,
        train.watching(job, mesh, Path(folder), 0) as ((hook,), settle),
    ):
        taken = 0
        for _ in range(ROUNDS + 1):  # the first compiles
            start = time.perf_counter()
            for _ in range(STEPS):
                current, _ = advance(current, taken)
                taken += 1
            jax.block_until_ready(current)
            middle = time.perf_counter()
            hook(job.total_steps, current)
            settle()  # fetches and writes
            of_steps.append((middle - start) / STEPS)
            of_hooks.append(time.perf_counter() - middle)
    step_seconds, hook_seconds = statistics.median(of_steps[1:]), statistics.median(of_hooks[1:])
    figures = {
        "model": f"{config.model.name} {config.model.hidden}",
        "members": len(job.tags),
        "statistics_every": every,
        "statistics_examples": config.training.statistics_examples,
        "step_seconds": step_seconds,
        "measurement_seconds": hook_seconds,
        "share_of_training": hook_seconds / (every * step_seconds),
    }
    for name, value in figures.items():
        print(f"{name}: {value}")
    machine.write("logit_statistics", figures)


if __name__ == "__main__":
    main()
