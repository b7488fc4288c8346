"""`python -m sc_jax.train`: trains every member of a study; a second call finishes what the first began."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sc_jax import cli, data, models
from sc_jax import config as config_lib
from sc_jax.config import Config
from sc_jax.data.pipelines import epoch_order
from sc_jax.training import checkpoints, logs, loop, parallel, state, step


@dataclasses.dataclass(frozen=True)
class Job:
    """What a config amounts to: everything that training and prediction need, built but not run."""

    config: Config
    dataset: data.Dataset
    model: models.Model
    members: state.Members
    tags: list[dict[str, Any]]
    optimizer: Any
    steps_per_epoch: int
    total_steps: int

    @property
    def names(self) -> list[str]:
        """One name per member, e.g. `alpha=0.2-seed=3`: of its folder of predictions, and of its lines in the log."""
        return [f"alpha={tag['alpha']:g}-seed={tag['seed']}" for tag in self.tags]


def build(config: Config) -> Job:
    """Loads the data and builds model, members and optimiser.

    Raises:
      InputError: the data set is not there, or a field does not fit it.
    """
    dataset = data.load(config.data.name)
    images = dataset.splits["train"].image
    height, width, *channels = images.shape[1:]
    model = models.build(
        config.model.name,
        image_shape=(height, width, *(channels or [1])),
        num_classes=dataset.num_classes,
        hidden=config.model.hidden,
        dropout=config.model.dropout,
    )
    members, tags = state.make_members(config.members.alphas, config.members.seeds)
    t = config.training
    steps_per_epoch = len(images) // t.batch_size
    if steps_per_epoch == 0:
        raise cli.InputError(
            f"training.batch_size = {t.batch_size} exceeds the {len(images)} images of the train split"
        )
    total_steps = steps_per_epoch * t.epochs
    optimizer = step.make_optimizer(
        learning_rate=t.learning_rate,
        weight_decay=t.weight_decay,
        warmup_steps=round(t.warmup_epochs * steps_per_epoch),
        total_steps=total_steps,
    )
    return Job(config, dataset, model, members, tags, optimizer, steps_per_epoch, total_steps)


def open_checkpoints(job: Job, workdir: Path) -> checkpoints.Checkpoints:
    """The run's checkpoints; they belong to what shapes the training, and to the data it saw."""
    whole = config_lib.as_dict(job.config)
    shaping = {name: whole[name] for name in ("data", "model", "members", "training")}
    return checkpoints.Checkpoints(
        workdir / "checkpoints",
        {**shaping, "data_fingerprint": job.dataset.fingerprint},
        job.config.training.checkpoints_kept,
    )


def train(config: Config, workdir: Path, hooks: Sequence[loop.Hook] = ()) -> None:
    """Trains to the end, from the last checkpoint if there is one."""
    job = build(config)
    mesh = parallel.data_mesh()
    parallel.require_divisible(config.training.batch_size, mesh, "training.batch_size")
    with open_checkpoints(job, workdir) as saved:
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
            job.model, job.optimizer, members, mesh, batch_size=config.training.batch_size, log_every=log_every
        )
        log = logs.TrainingLog(workdir, job.names, first)
        progress = logs.Progress(job.total_steps, first, f"training {len(job.tags)} × {config.model.name}")
        try:
            loop.fit(
                current,
                lambda current, order: advance(current, order, images, labels),
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
                hooks=hooks,
            )
        finally:
            progress.close()
            log.close()


def main(argv: Sequence[str] | None = None) -> None:
    """The door."""
    config, workdir = cli.study_arguments("train", __doc__, argv)
    with cli.open_workdir(workdir, config):
        train(config, workdir)


if __name__ == "__main__":
    cli.main(main)
