"""`python -m sc_jax.train`: trains every member of a study; a second call finishes what the first began."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sc_jax import cli
from sc_jax.config import Config
from sc_jax.training import job as job_lib
from sc_jax.training import logs, loop, parallel, state


def train(config: Config, workdir: Path) -> None:
    """Trains to the end, from the last checkpoint if there is one."""
    job = job_lib.build(config)
    mesh = parallel.data_mesh()
    with job_lib.open_checkpoints(job, workdir) as saved:
        first = saved.latest_step() or 0
        if saved.latest_step() == job.total_steps:
            saved.meta(first)  # refuses a checkpoint that is damaged or of another config
            print(f"train: done ({job.total_steps} steps)")
            return
        current = parallel.replicate(state.initial_state(job.model, job.optimizer, job.members), mesh)
        if first:
            current = saved.restore(first, current)
            print(f"train: resuming from step {first} of {job.total_steps}")
        if job.total_steps == 0:  # weights from elsewhere, as they are
            saved.save(0, current)
        log = logs.TrainingLog(workdir, job.names, first)
        progress = logs.Progress(job.total_steps, first, f"training {len(job.tags)} × {config.model.name}")
        try:
            with job_lib.stepping(job, mesh, first) as advance:
                loop.fit(
                    current,
                    advance,
                    first_step=first,
                    total_steps=job.total_steps,
                    steps_per_epoch=job.steps_per_epoch,
                    log_every=config.training.log_every,
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
