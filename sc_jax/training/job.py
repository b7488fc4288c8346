"""What a config amounts to: data, model, members and optimiser, built but not run; training and prediction start here."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from sc_jax import config as config_lib
from sc_jax import data, models
from sc_jax.config import Config
from sc_jax.data import images, pipelines, small, streams
from sc_jax.data.streams import StreamedDataset
from sc_jax.files import InputError
from sc_jax.models import pretrained
from sc_jax.training import checkpoints, optimizers, parallel, state, step


@dataclasses.dataclass(frozen=True)
class Job:
    """What a config amounts to: everything that training and prediction need, built but not run."""

    config: Config
    dataset: data.Dataset | StreamedDataset
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

    @property
    def streamed(self) -> bool:
        """Whether examples are decoded on the way, rather than lying in memory."""
        return isinstance(self.dataset, StreamedDataset)

    @property
    def ignore_label(self) -> int | None:
        """Of segmentation, the label of pixels that do not count."""
        return self.dataset.ignore_label if self.streamed else None

    @property
    def evaluation_transform(self) -> Callable[[jax.Array], jax.Array]:
        """Raw inputs → what the model takes, at test."""
        return pipelines.evaluation_transform(self.config.data.mean, self.config.data.std)


def build(config: Config) -> Job:
    """Loads the data and builds model, members and optimiser.

    Raises:
      InputError: the data set is not there, or a field does not fit it.
    """
    d, b, t = config.data, config.model, config.training
    dataset = data.load(d.name, small.small(d.name) if d.small else None)
    for field, splits in (("data.train_split", (d.train_split,)), ("prediction.splits", config.prediction.splits)):
        for split in splits:
            if split not in dataset.splits:
                raise InputError(f"{field}: there is no split {split!r}; there are {', '.join(dataset.splits)}")
    mesh = parallel.data_mesh()
    parallel.require_divisible(t.batch_size, mesh, "training.batch_size")
    parallel.require_divisible(config.prediction.batch_size, mesh, "prediction.batch_size")
    train = dataset.splits[d.train_split]
    _require_augmentation(config, dataset)
    options: dict[str, Any] = {"hidden": b.hidden} if b.hidden else {}
    options |= {} if b.dropout is None else {"dropout": b.dropout}
    options |= {} if b.dtype == "float32" else {"dtype": jax.numpy.dtype(b.dtype)}
    options |= {"vocabulary_size": len(dataset.vocabulary)} if getattr(dataset, "vocabulary", ()) else {}
    shape = {"input_shape": _input_shape(config, dataset), "num_classes": dataset.num_classes}
    try:
        model = models.build(b.name, **shape, **options)
    except TypeError as error:  # an option that the backbone's constructor does not have
        raise InputError(f"model: {b.name} does not take what the config gives it: {error}") from error
    if b.weights:
        start = pretrained.load(b.weights, b.name, **shape, **options)
        model = dataclasses.replace(model, init=lambda key: start)
    members, tags = state.make_members(config.members.alphas, config.members.seeds)
    steps_per_epoch = len(train) // t.batch_size
    if steps_per_epoch == 0:
        raise InputError(f"training.batch_size = {t.batch_size} exceeds the {len(train)} examples of {d.train_split}")
    total_steps = t.steps or steps_per_epoch * t.epochs
    return Job(
        config,
        dataset,
        model,
        members,
        tags,
        _optimizer(config, steps_per_epoch, total_steps),
        steps_per_epoch,
        total_steps,
    )


def _input_shape(config: Config, dataset: data.Dataset | StreamedDataset) -> tuple[int, ...]:
    if isinstance(dataset, StreamedDataset):
        return (config.data.train_size, config.data.train_size, 3)
    inputs = dataset.splits[config.data.train_split].inputs
    return (*inputs.shape[1:], 1) if inputs.dtype == np.uint8 and inputs.ndim == 3 else inputs.shape[1:]


def _require_augmentation(config: Config, dataset: data.Dataset | StreamedDataset) -> None:
    """Refuses augmentations that the inputs cannot have."""
    a = config.augmentation
    if isinstance(dataset, StreamedDataset):
        if not a.resized_crop:
            raise InputError(
                f"augmentation.resized_crop: images of {dataset.name} differ in size; give (smallest, largest)"
            )
        if dataset.ignore_label is not None and dataclasses.replace(a, resized_crop=(), flip=False) != type(a)():
            raise InputError(f"augmentation: {dataset.name} labels pixels; resized_crop and flip alone move labels too")
    elif dataset.splits[config.data.train_split].inputs.dtype != np.uint8 and a != type(a)():
        raise InputError(f"augmentation: {dataset.name} holds no images; leave the group out")


def _optimizer(config: Config, steps_per_epoch: int, total_steps: int) -> optax.GradientTransformation:
    t = config.training
    return optimizers.make_optimizer(
        optimizer=t.optimizer,
        learning_rate=t.learning_rate,
        weight_decay=t.weight_decay,
        decay=t.decay,
        momentum=t.momentum,
        betas=t.betas,
        schedule=t.schedule,
        warmup_steps=round(t.warmup_epochs * steps_per_epoch),
        warmup_factor=t.warmup_factor,
        milestones=tuple(round(epoch * steps_per_epoch) for epoch in t.milestones),
        decay_factor=t.decay_factor,
        power=t.power,
        total_steps=max(total_steps, 1),
        gradient_clip=t.gradient_clip,
        ema=t.ema,
    )


def open_checkpoints(job: Job, workdir: Path) -> checkpoints.Checkpoints:
    """The run's checkpoints; they belong to what shapes the training, and to the data it saw."""
    whole = config_lib.as_dict(job.config)
    shaping = {name: whole[name] for name in ("data", "augmentation", "model", "members", "training")}
    return checkpoints.Checkpoints(
        workdir / "checkpoints",
        {**shaping, "data_fingerprint": job.dataset.fingerprint},
        job.config.training.checkpoints_kept,
    )


Advance = Callable[[state.TrainState, int], tuple[state.TrainState, state.Meters]]


@contextlib.contextmanager
def stepping(job: Job, mesh: parallel.Mesh, first_step: int) -> Iterator[Advance]:
    """One step of training: (state, steps taken) → (state, meters), to be called for steps `first_step`, `first_step` + 1, …

    Data in memory lie whole on the devices, and a step finds its batch there by the epoch's order; images are decoded ahead
    of the step by threads, one stream for each distinct seed.
    """
    config, t, a = job.config, job.config.training, job.config.augmentation
    transform = pipelines.train_transform(
        config.data.mean,
        config.data.std,
        crop_padding=a.crop_padding,
        resized_crop=() if job.streamed else a.resized_crop,  # a stream crops and flips where it decodes
        flip=a.flip and not job.streamed,
        rand_augment=a.rand_augment,
        mixup=a.mixup,
        cutmix=a.cutmix,
    )
    one = step.make_step(
        job.model, job.optimizer, transform, mesh, log_every=t.log_every, sam=t.sam, ignore_label=job.ignore_label
    )
    if not job.streamed:
        yield _from_memory(job, mesh, step.from_memory(one, mesh, t.batch_size))
        return
    program, members = step.from_stream(one), parallel.replicate(job.members, mesh)
    with contextlib.closing(_training_batches(job, first_step)) as batches:
        yield lambda current, taken: program(current, members, *parallel.divide(next(batches), mesh, axis=1))


def _from_memory(job: Job, mesh: parallel.Mesh, program: Callable[..., Any]) -> Advance:
    split = job.dataset.splits[job.config.data.train_split]
    inputs, labels, members = parallel.replicate((split.inputs, split.label.astype(np.int32), job.members), mesh)

    @functools.lru_cache(maxsize=1)
    def order_of(epoch: int) -> jax.Array:
        return pipelines.epoch_order(members.seed_key, epoch, len(split))

    return lambda current, taken: program(current, members, order_of(taken // job.steps_per_epoch), inputs, labels)


def _training_batches(job: Job, first_step: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(inputs [s, b, …], labels [s, b, …]) from `first_step` to the end: one stream for each distinct seed, decoded ahead."""
    d, a, t = job.config.data, job.config.augmentation, job.config.training
    read = images.train_record if job.ignore_label is None else images.train_pair_record
    options = {"scale": a.resized_crop} if a.resized_crop else {}
    options |= {"interpolation": d.interpolation} if job.ignore_label is None else {}
    transform = functools.partial(read, size=d.train_size, flip=a.flip, **options)
    with contextlib.ExitStack() as stack:
        each = [
            stack.enter_context(
                contextlib.closing(
                    streams.batches(
                        job.dataset.splits[d.train_split],
                        transform,
                        batch_size=t.batch_size,
                        seed=seed,
                        first_step=first_step,
                        total_steps=job.total_steps,
                        threads=d.threads,
                    )
                )
            )
            for seed in job.config.members.seeds
        ]
        for batches in zip(*each, strict=True):
            yield tuple(np.stack([batch[field] for batch in batches]) for field in ("image", "label"))


def evaluation_batches(job: Job, split: str) -> Iterator[dict[str, np.ndarray]]:
    """A split in order, in batches of one size: {"image" or inputs, "label", "example_id"}, id −1 where it is padding."""
    d, source = job.config.data, job.dataset.splits[split]
    transform = images.eval_pair_record
    if job.ignore_label is None:
        options = {"size": d.test_size, "crop_pct": d.crop_pct, "interpolation": d.interpolation}
        transform = functools.partial(images.eval_record, **options)
    batch_size = job.config.prediction.batch_size
    with contextlib.closing(
        streams.evaluation_batches(source, transform, batch_size=batch_size, threads=d.threads)
    ) as batches:
        yield from batches
