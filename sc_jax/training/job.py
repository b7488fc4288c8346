"""What a config amounts to: data, model, members and optimiser, built but not run; training and prediction start here."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import optax

from sc_jax import config as config_lib
from sc_jax import data, models
from sc_jax.config import Config
from sc_jax.files import InputError
from sc_jax.training import checkpoints, parallel, state, step


@dataclasses.dataclass(frozen=True)
class Job:
    """What a config amounts to: everything that training and prediction need, built but not run."""

    config: Config
    dataset: data.Dataset
    model: models.Model
    members: state.Members
    tags: list[dict[str, Any]]
    optimizer: optax.GradientTransformation
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
    for split in config.prediction.splits:
        if split not in dataset.splits:
            raise InputError(f"prediction.splits: there is no split {split!r}; there are {', '.join(dataset.splits)}")
    mesh = parallel.data_mesh()
    parallel.require_divisible(config.training.batch_size, mesh, "training.batch_size")
    parallel.require_divisible(config.prediction.batch_size, mesh, "prediction.batch_size")
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
        raise InputError(f"training.batch_size = {t.batch_size} exceeds the {len(images)} images of the train split")
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
