"""`python -m sc_jax.train`: trains every member of a study; a second call finishes what the first began."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sc_jax import cli
from sc_jax.config import Config
from sc_jax.data.pipelines import epoch_order
from sc_jax.training import job as job_lib
from sc_jax.training import logs, loop, parallel, state, step


def train(config: Config, workdir: Path) -> None:
    """Trains to the end, from the last checkpoint if there is one."""
    job = job_lib.build(config)
    mesh = parallel.data_mesh()
    with job_lib.open_checkpoints(job, workdir) as saved:
        first = saved.latest_step() or 0
        if first == job.total_steps:
            saved.meta(first)  # refuses a checkpoint that is damaged or of another config
            print(f"train: done ({job.total_steps} steps)")
            return
        current = parallel.replicate(state.initial_state(job.model, job.optimizer, job.members), mesh)
        if first:
            current = saved.restore(first, current)
            print(f"train: resuming from step {first} of {job.total_steps}")
        split = job.dataset.splits["train"]
        images, labels, members = parallel.replicate((split.image, split.label.astype(np.int32), job.members), mesh)
        log_every = config.training.log_every
        advance = step.make_step(
            job.model, job.optimizer, mesh, batch_size=config.training.batch_size, log_every=log_every
        )
        log = logs.TrainingLog(workdir, job.names, first)
        progress = logs.Progress(job.total_steps, first, f"training {len(job.tags)} × {config.model.name}")
        try:
            loop.fit(
                current,
                lambda current, order: advance(current, members, order, images, labels),
                lambda epoch: epoch_order(members.seed_key, epoch, len(images)),
                first_step=first,
                total_steps=job.total_steps,
                steps_per_epoch=job.steps_per_epoch,
                log_every=log_every,
                save_every=config.training.checkpoint_every,
                names=job.names,
                log=log.write,
                save=saved.save,
                progress=progress.update,
            )
        finally:
            progress.close()
            log.close()


def main(argv: Sequence[str] | None = None) -> None:
    """The door."""
    config, workdir = cli.study_arguments("train", __doc__, argv)
    with cli.open_workdir(workdir, config, lambda: job_lib.build(config)):
        train(config, workdir)


if __name__ == "__main__":
    cli.main(main)
