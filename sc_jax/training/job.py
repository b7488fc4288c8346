"""What a config amounts to: data, model, members and optimiser, built but not run; training and prediction start here."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from sc_jax import config as config_lib
from sc_jax import data, files, models
from sc_jax.config import Config
from sc_jax.data import corruptions, images, outliers, pipelines, small, sources, streams
from sc_jax.data.streams import StreamedDataset
from sc_jax.files import InputError
from sc_jax.models import costs, ensemble_layers, pretrained
from sc_jax.training import checkpoints, ensembles, objectives, optimizers, parallel, state, step

_MOST_STEPS, _FLOPS_OF_A_PROGRAM = 32, 10**11
"""Of one program: a second's work on two cores."""


@dataclasses.dataclass(frozen=True)
class Job:
    """What a config amounts to: everything that training and prediction need, built but not run.

    The config has the numbers of `data.preprocessing` in place; `weights_hash` is the SHA-256 of the file of weights, if any.
    """

    config: Config
    dataset: data.Dataset | StreamedDataset
    model: models.Model
    weights_hash: str | None
    members: state.Members
    tags: list[dict[str, Any]]
    objectives: list[objectives.Named]
    known: objectives.Known
    optimizer: optax.GradientTransformation
    steps_per_epoch: int
    total_steps: int

    @property
    def names(self) -> list[str]:
        """One name per member; see `config.member_name`."""
        return [config_lib.member_name(tag) for tag in self.tags]

    @functools.cached_property
    def at_once(self) -> int:
        """How many steps one program may take: so many that it has work for a while, few enough that a signal is soon heard.

        Of networks whose members are mapped at once, with data in memory, in one process: processes agree on every single step.
        """
        if self.streamed or self.total_steps == 0 or jax.process_count() > 1 or self.model.member_mapping != "vmap":
            return 1
        takes = self.model, _input_shape(self.config, self.dataset), _input_dtype(self.config, self.dataset)
        if jax.default_backend() == "cpu" and costs.convolves(*takes):  # slow in a loop
            return 1
        macs = costs.macs(*takes)
        flops = 6 * macs * len(self.tags) * self.config.training.batch_size  # a MAC is two, and backward twice forward
        return max(1, min(_MOST_STEPS, _FLOPS_OF_A_PROGRAM // flops))

    def steps_at(self, taken: int) -> int:
        """How many steps the program takes after `taken`: never past an epoch, a line of the log, a checkpoint or a statistic."""
        return step.steps_ahead(taken, self.at_once, self.marks)

    @property
    def marks(self) -> tuple[int, ...]:
        """A program ends at every multiple of any of these counts of steps."""
        t = self.config.training
        every = (self.total_steps, self.steps_per_epoch, t.log_every, t.checkpoint_every, t.statistics_every)
        return tuple(sorted({count for count in every if count}))

    @property
    def examples_with_targets(self) -> int:
        """How many training examples have running targets; 0 where no objective keeps any."""
        return len(self.dataset.splits[self.config.data.train_split]) if objectives.has_targets(self.objectives) else 0

    @property
    def streamed(self) -> bool:
        """Whether examples are decoded on the way, rather than lying in memory."""
        return isinstance(self.dataset, StreamedDataset)

    @property
    def predicted_splits(self) -> tuple[str, ...]:
        """The names of all splits that are predicted, corrupted copies of the test split among them."""
        return *self.config.prediction.splits, *self.config.corrupted

    def examples(self, split: str) -> data.Split:
        """The examples of one of `predicted_splits` that lie in memory; a corrupted copy is made here, of the images that are not OOD."""
        if split not in self.config.corrupted:
            return self.dataset.splits[split]
        given = self.dataset.splits[self.config.evaluation.test_split]
        if given.is_ood is not None:
            given = outliers.rows(given, ~given.is_ood)
        return corruptions.corrupt_split(given, *self.config.corrupted[split], self.config.evaluation.seed)

    @property
    def ignore_label(self) -> int | None:
        """Of segmentation, the label of pixels that do not count."""
        return self.dataset.ignore_label if self.streamed else None

    @property
    def mesh(self) -> parallel.Mesh:
        """The devices, as `devices` of the config wants them."""
        return parallel.data_mesh(self.config.devices.member_rows)

    @property
    def evaluation_transform(self) -> Callable[[jax.Array], jax.Array]:
        """Raw inputs → what the model takes, at test."""
        return pipelines.evaluation_transform(self.config.data.mean, self.config.data.std)

    @property
    def cost(self) -> dict[str, int]:
        """Of one member of the run with all that it predicts: "macs", multiply-accumulates for one example at test, and "parameters"."""
        macs = costs.macs(self.model, _test_shape(self.config, self.dataset), _input_dtype(self.config, self.dataset))
        e = self.config.ensemble
        passes = e.members if e.kind in ("mc_dropout", "snapshot", "swag") else 1  # else one pass, whatever comes of it
        copies = 1 if e.kind == "mc_dropout" else passes
        return {"macs": passes * macs, "parameters": copies * costs.parameters(self.model)}


def build(config: Config) -> Job:
    """Loads the data and builds model, members and optimiser.

    Raises:
      InputError: the data set is not there, or a field does not fit it.
    """
    config = _preprocessed(config)
    d, b, t = config.data, config.model, config.training
    dataset = data.load(d.name, small.small(d.name) if d.small else None)
    if d.held_out or d.outliers:
        dataset = _with_outliers(dataset, config)
    for field, splits in (("data.train_split", (d.train_split,)), ("prediction.splits", config.prediction.splits)):
        for split in splits:
            if split not in dataset.splits:
                raise InputError(f"{field}: there is no split {split!r}; there are {', '.join(dataset.splits)}")
    if d.train_examples:
        dataset = _shortened(dataset, d.train_split, d.train_examples)
    _require_corruptions(config, dataset)
    mesh = parallel.data_mesh(config.devices.member_rows)
    parallel.require_members(len(config.members.tags), mesh)
    parallel.require_divisible(t.batch_size, mesh, "training.batch_size")
    parallel.require_divisible(config.prediction.batch_size, mesh, "prediction.batch_size")
    train = dataset.splits[d.train_split]
    _refuse_idle(config, dataset)
    _require_augmentation(config, dataset)
    options: dict[str, Any] = {"hidden": b.hidden} if b.hidden else {}
    options |= {} if b.dropout is None else {"dropout": b.dropout}
    options |= {} if b.dtype == "float32" else {"dtype": jax.numpy.dtype(b.dtype)}
    options |= {"vocabulary_size": len(dataset.vocabulary)} if getattr(dataset, "vocabulary", ()) else {}
    options |= _members(config)
    wanted = objectives.named(config.members.objectives, dataset.num_classes)
    options |= _heads(config, wanted)
    shape = {"input_shape": _input_shape(config, dataset), "num_classes": dataset.num_classes}
    model = models.build(b.name, **shape, **options)
    model = dataclasses.replace(model, member_mapping=config.devices.member_mapping or model.member_mapping)
    if b.weights:
        model = dataclasses.replace(
            model, init=pretrained.initializer(b.weights, b.name, part=b.weights_part, **shape, **options)
        )
    _require_fit(config, dataset, model)
    if config.evaluation.repair and dataset.num_classes < 3:
        raise InputError(
            f"evaluation.repair: {d.name} has {dataset.num_classes} classes, where logit normalisation is not defined; leave it out"
        )
    if config.training.statistics_every and getattr(dataset, "ignore_label", None) is not None:
        raise InputError(
            f"training.statistics_every: {d.name} labels pixels, of which there are no statistics; leave it out"
        )
    if config.training.checkpoints_best and isinstance(dataset, StreamedDataset):
        raise InputError(
            f"training.checkpoints_best: images of {d.name} are decoded on the way, where none is judged; leave it out"
        )
    _require_ensemble(config, dataset, model)
    known = _known(config, dataset, wanted)
    steps_per_epoch = len(train) // t.batch_size
    if steps_per_epoch == 0:
        raise InputError(f"training.batch_size = {t.batch_size} exceeds the {len(train)} examples of {d.train_split}")
    total_steps = t.steps or steps_per_epoch * t.epochs
    return Job(
        config,
        dataset,
        model,
        files.fingerprint_file(b.weights) if b.weights else None,
        state.make_members(config.members.tags),
        config.members.tags,
        wanted,
        known,
        _optimizer(config, steps_per_epoch, total_steps),
        steps_per_epoch,
        total_steps,
    )


def _with_outliers(dataset: data.Dataset | StreamedDataset, config: Config) -> data.Dataset:
    """The data set with classes held out of all but its test split, and other data sets' images there."""
    d, split = config.data, config.evaluation.test_split
    field = "data.held_out" if d.held_out else "data.outliers"
    if isinstance(dataset, StreamedDataset):
        raise InputError(f"{field}: images of {dataset.name} are decoded on the way; leave it out")
    if d.held_out:
        dataset = outliers.hold_out(dataset, d.held_out, split)
    for name in d.outliers:
        dataset = outliers.with_outliers(dataset, outliers.images(name), split)
    return dataset


def _require_corruptions(config: Config, dataset: data.Dataset | StreamedDataset) -> None:
    """Refuses corruptions that are unknown, or of what is no image in memory."""
    for family in config.prediction.corruptions:
        if family not in corruptions.CORRUPTIONS:
            known = ", ".join(corruptions.CORRUPTIONS)
            raise InputError(f"prediction.corruptions: no corruption is called {family!r}; there are {known}")
        if isinstance(dataset, StreamedDataset):
            raise InputError(f"prediction.corruptions: images of {dataset.name} are decoded on the way; leave it out")
        if dataset.splits[config.evaluation.test_split].inputs.dtype != np.uint8:
            raise InputError(f"prediction.corruptions: {dataset.name} holds no images; leave it out")


def _shortened(dataset: data.Dataset | StreamedDataset, name: str, count: int) -> data.Dataset:
    """The data set with `count` examples alone in one of its splits: drawn by hash, since a file may be sorted by class."""
    if isinstance(dataset, StreamedDataset):
        raise InputError(f"data.train_examples: images of {dataset.name} are decoded on the way; leave it out")
    split = dataset.splits[name]
    if count > len(split):
        raise InputError(f"data.train_examples = {count} exceeds the {len(split)} examples of {name}")
    drawn = np.sort(sources.hash_order(f"{dataset.name}/{name}", len(split))[:count])
    group = None if split.group is None else split.group[drawn]
    fewer = data.Split(split.inputs[drawn], split.label[drawn], split.example_id[drawn], group)
    return dataclasses.replace(dataset, splits={**dataset.splits, name: fewer})


def _preprocessed(config: Config) -> Config:
    """The config with the numbers of `data.preprocessing` in the fields they belong to."""
    d = config.data
    if d.preprocessing in ("", "given"):
        return config
    published = pretrained.preprocessing(config.model.name, d.preprocessing)
    theirs = {
        "mean": published.mean,
        "std": published.std,
        "test_size": published.size,
        "crop_pct": published.crop_pct,
        "interpolation": published.interpolation,
    }
    default = {field.name: field.default for field in dataclasses.fields(d)}
    for name, value in theirs.items():
        if getattr(d, name) not in (default[name], value):
            raise InputError(
                f"data.{name}: {getattr(d, name)!r}, but {published.weights} wants {value!r}: set it to that or leave it out, or say "
                "data.preprocessing = given"
            )
    return dataclasses.replace(config, data=dataclasses.replace(d, **theirs))


def _input_shape(config: Config, dataset: data.Dataset | StreamedDataset) -> tuple[int, ...]:
    """Of one input of the network when it is made: at training, or at test if it is not trained."""
    if isinstance(dataset, StreamedDataset):
        side = config.data.train_size if config.training.epochs else config.data.test_size
        return (side, side, 3)
    inputs = dataset.splits[config.data.train_split].inputs
    return (*inputs.shape[1:], 1) if inputs.dtype == np.uint8 and inputs.ndim == 3 else inputs.shape[1:]


def _test_shape(config: Config, dataset: data.Dataset | StreamedDataset) -> tuple[int, ...]:
    """Of one input at test; of segmentation that of the first image of the test split."""
    if not isinstance(dataset, StreamedDataset):
        return _input_shape(config, dataset)
    if dataset.ignore_label is None:
        return (config.data.test_size, config.data.test_size, 3)
    return images.eval_pair_record(dataset.splits[config.evaluation.test_split][0])["image"].shape


def _raw_dtype(config: Config, dataset: data.Dataset | StreamedDataset) -> np.dtype:
    streamed = isinstance(dataset, StreamedDataset)
    return np.dtype(np.uint8) if streamed else dataset.splits[config.data.train_split].inputs.dtype


def _input_dtype(config: Config, dataset: data.Dataset | StreamedDataset) -> np.dtype:
    """Of what the network takes: images come to it as float32."""
    raw = _raw_dtype(config, dataset)
    return np.dtype(np.float32) if raw == np.uint8 else raw


def _require_fit(config: Config, dataset: data.Dataset | StreamedDataset, model: models.Model) -> None:
    """Refuses a network that does not take the inputs, by its shapes alone."""
    d = config.data
    shapes = {"training": _input_shape(config, dataset), "test": _test_shape(config, dataset)}
    dtype = _input_dtype(config, dataset)
    if _raw_dtype(config, dataset) == np.uint8:
        channels = shapes["training"][-1]
        for name in ("mean", "std"):
            if len(getattr(d, name)) not in (1, channels):
                raise InputError(f"data.{name}: {getattr(d, name)!r}, but images of {d.name} have {channels} channel")
    params, model_state = jax.eval_shape(model.init, jax.random.key(0))
    for when, shape in shapes.items():
        inputs = jax.ShapeDtypeStruct((2, *shape), dtype)
        try:
            outputs, _ = jax.eval_shape(model.apply, params, model_state, inputs)
        except InputError:
            raise
        except (AssertionError, IndexError, TypeError, ValueError) as error:  # whatever layer is the first not to fit
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise InputError(
                f"model.name: {config.model.name} does not take the inputs of {d.name} at {when}, {'×'.join(map(str, shape))} "
                f"({reason[:160]}); name another network, or change data.train_size and data.test_size"
            ) from error
        segmented = isinstance(dataset, StreamedDataset) and dataset.ignore_label is not None
        wanted = (*shape[: 2 * segmented], dataset.num_classes)
        if outputs["logits"].shape[1:] != wanted:
            found, needed = (", ".join(map(str, ("b", *s))) for s in (outputs["logits"].shape[1:], wanted))
            raise InputError(
                f"model.name: {config.model.name} gives logits [{found}], {d.name} has labels for [{needed}]; "
                "name another network"
            )


def _members(config: Config) -> dict[str, Any]:
    """The option of a network that has members of its own, if it is to have any."""
    e, name = config.ensemble, config.model.name
    if e.kind not in config_lib.IN_NETWORK:
        return {}
    if name in models.BACKBONES and not models.takes(name, "ensemble"):
        taking = ", ".join(other for other in models.BACKBONES if models.takes(other, "ensemble"))
        raise InputError(f"ensemble.kind: {name} has no {e.kind} layers; name a network that has: {taking}")
    extra = {"packed": {"alpha": e.alpha, "groups": e.groups}, "masksembles": {"scale": e.scale}}.get(e.kind, {})
    return {"ensemble": ensemble_layers.InNetwork(e.kind, e.members, **extra)}


def _heads(config: Config, wanted: Sequence[objectives.Named]) -> dict[str, Any]:
    """The option of a network with heads beside its classifier, where an objective needs some; all members have them."""
    for one in wanted:
        if (one.objective.by_batch or one.objective.heads) and (
            config.augmentation.mixup or config.augmentation.cutmix
        ):
            raise InputError(
                f"augmentation.mixup: {one.name} is of examples with one label each; leave mixup and cutmix out"
            )
    heads, name = objectives.heads(wanted), config.model.name
    if not heads:
        return {}
    if config.ensemble.kind not in ("", "swa"):
        raise InputError(
            f"ensemble.kind: {config.ensemble.kind}, but heads of abstention are of one network; leave it out, or the objectives"
        )
    if name in models.BACKBONES and not models.takes(name, "heads"):
        taking = ", ".join(other for other in models.BACKBONES if models.takes(other, "heads"))
        raise InputError(
            f"model.name: {name} has no heads {', '.join(heads)}; name a network that takes them: {taking}"
        )
    return {"heads": heads}


def _require_ensemble(config: Config, dataset: data.Dataset | StreamedDataset, model: models.Model) -> None:
    """Refuses an ensemble that the network or the data do not give."""
    kind = config.ensemble.kind
    if kind not in ("", "swa") and getattr(dataset, "ignore_label", None) is not None:
        raise InputError(
            f"ensemble.kind: {dataset.name} labels pixels, of which one network's predictions are kept: take swa, or leave it out"
        )
    if kind == "mc_dropout" and model.dropout == 0:
        raise InputError(f"model.dropout: {config.model.name} has none by default, mc_dropout needs some; give a rate")


def _known(config: Config, dataset: data.Dataset | StreamedDataset, wanted: list[objectives.Named]) -> objectives.Known:
    """What the objectives ask to know of the train split."""
    streamed = isinstance(dataset, StreamedDataset)
    fields = objectives.needs(wanted)
    if wanted and getattr(dataset, "ignore_label", None) is not None:
        raise InputError(
            f"members.objectives: {dataset.name} labels pixels, for which there is label smoothing alone; leave them out"
        )
    if streamed and (fields or objectives.has_targets(wanted) or any(one.objective.change for one in wanted)):
        raise InputError(
            f"members.objectives: {config.members.objectives}; images of {dataset.name} are decoded on the way, where batches "
            "are not changed and nothing more is known of an example: leave out what needs it"
        )
    train = dataset.splits[config.data.train_split]
    mixes = [one.name for one in wanted if one.name in ("mixup", "cutmix")]
    if mixes and train.inputs.dtype != np.uint8:
        raise InputError(f"members.objectives: {mixes[0]} mixes images; {dataset.name} holds none")
    from_teacher = fields & {"teacher", "error"}
    if config.training.teacher and not from_teacher:
        raise InputError("training.teacher: no objective learns from it; leave it out")
    if not fields:
        return objectives.Known()
    split = config.data.train_split
    seeds = config.members.seeds
    return objectives.known_of(
        fields, config.training.teacher, split, seeds, train.label, train.example_id, dataset.fingerprint
    )


def _refuse_idle(config: Config, dataset: data.Dataset | StreamedDataset) -> None:
    """Refuses fields that would do nothing with this data set."""
    streamed = isinstance(dataset, StreamedDataset)
    segmented = streamed and dataset.ignore_label is not None
    pictures = streamed or dataset.splits[config.data.train_split].inputs.dtype == np.uint8
    decoded, single = "images are decoded on the way", "images that are decoded on the way have one label each"
    published = config.data.preprocessing not in ("", "given")
    cropped = not segmented and config.augmentation.resized_crop != ()
    for group, field, acts, where in (
        ("data", "train_size", streamed, decoded),
        ("data", "threads", streamed, decoded),
        ("data", "test_size", (streamed and not segmented) or published, single),
        ("data", "crop_pct", (streamed and not segmented) or published, single),
        ("data", "interpolation", (streamed and not segmented) or published or cropped, f"{single}, or are resized"),
        ("data", "mean", pictures, "inputs are images"),
        ("data", "std", pictures, "inputs are images"),
        ("prediction", "pixels", segmented, "pixels are labelled"),
        ("prediction", "features", not segmented, "an example has one label"),
    ):
        if not acts:
            config_lib.refuse_idle(config.study, group, getattr(config, group), field, where)


def _require_augmentation(config: Config, dataset: data.Dataset | StreamedDataset) -> None:
    """Refuses augmentations that the inputs cannot have."""
    a = config.augmentation
    if isinstance(dataset, StreamedDataset):
        if not a.resized_crop:
            raise InputError(
                f"augmentation.resized_crop: images of {dataset.name} differ in size; give (smallest, largest)"
            )
        if dataset.ignore_label is None and a.resized_crop[1] > 1:
            raise InputError(
                f"augmentation.resized_crop: {a.resized_crop!r}; of {dataset.name} they are shares of the area, at most 1"
            )
        if dataset.ignore_label is not None and dataclasses.replace(a, resized_crop=(), flip=False) != type(a)():
            raise InputError(f"augmentation: {dataset.name} labels pixels; resized_crop and flip alone move labels too")
    elif dataset.splits[config.data.train_split].inputs.dtype != np.uint8 and a != type(a)():
        raise InputError(f"augmentation: {dataset.name} holds no images; leave the group out")
    elif a.resized_crop and a.resized_crop[1] > 1:
        raise InputError(f"augmentation.resized_crop: {a.resized_crop!r}; they are shares of the area, at most 1")


def _optimizer(config: Config, steps_per_epoch: int, total_steps: int) -> optax.GradientTransformation:
    t = config.training
    if total_steps == 0:
        return optax.identity()
    warmup_steps = round(t.warmup_epochs * steps_per_epoch)
    milestones = tuple(round(epoch * steps_per_epoch) for epoch in t.milestones)
    if warmup_steps >= total_steps:
        raise InputError(
            f"training.warmup_epochs = {t.warmup_epochs:g} is {warmup_steps} steps, of {total_steps} in all: shorten it"
        )
    knots = (warmup_steps, *milestones)
    if any(a >= b for a, b in itertools.pairwise(knots)):
        raise InputError(
            f"training.milestones = {t.milestones} fall on steps {milestones}; they must differ, and come after the "
            f"{warmup_steps} of the warm-up"
        )
    if t.schedule == "cyclic" and t.cycles > total_steps - warmup_steps:
        raise InputError(
            f"training.cycles = {t.cycles}, of {total_steps - warmup_steps} steps after the warm-up: take fewer, or train longer"
        )
    return optimizers.make_optimizer(
        optimizer=t.optimizer,
        learning_rate=t.learning_rate,
        weight_decay=t.weight_decay,
        decay=t.decay,
        momentum=t.momentum,
        betas=t.betas,
        schedule=t.schedule,
        warmup_steps=warmup_steps,
        warmup_factor=t.warmup_factor,
        milestones=milestones,
        decay_factor=t.decay_factor,
        power=t.power,
        cycles=t.cycles,
        total_steps=total_steps,
        gradient_clip=t.gradient_clip,
        ema=t.ema,
        collect=_collection(config, steps_per_epoch, warmup_steps, total_steps),
    )


def _collection(
    config: Config, steps_per_epoch: int, warmup_steps: int, total_steps: int
) -> optax.GradientTransformation | None:
    """What keeps parameters on the way, where the ensemble is made of them."""
    e = config.ensemble
    if e.kind == "snapshot":
        ends = optimizers.cycle_ends(total_steps, warmup_steps, config.training.cycles)
        return ensembles.keep_snapshots(ends[-e.members :])
    if e.kind not in ("swa", "swag"):
        return None
    start, every = round(e.start * steps_per_epoch), round(e.every * steps_per_epoch)
    if every == 0:
        raise InputError(f"ensemble.every = {e.every:g} is no step, of {steps_per_epoch} in an epoch: make it longer")
    # The first deviation from the mean so far is 0, and should not be among those that are kept.
    found, needed = ensembles.collections(start, every, total_steps), 1 if e.kind == "swa" else e.rank + 1
    if found < needed:
        raise InputError(
            f"ensemble.start, ensemble.every: steps {start}, {start + every}, … of {total_steps} are {found}; {e.kind} needs "
            f"{needed} at least: start earlier, collect more often, or train longer"
        )
    return ensembles.keep_mean(start, every) if e.kind == "swa" else ensembles.keep_gaussian(start, every, e.rank)


def open_checkpoints(job: Job, workdir: Path) -> checkpoints.Checkpoints:
    """The run's checkpoints; they belong to what shapes the training, and to the data it saw."""
    whole = config_lib.as_dict(job.config)
    shaping = {name: whole[name] for name in ("data", "augmentation", "model", "members", "training", "ensemble")}
    known = {name: array for name, array in job.known._asdict().items() if array is not None}
    return checkpoints.Checkpoints(
        workdir / "checkpoints",
        {
            **shaping,
            "data_fingerprint": job.dataset.fingerprint,
            "weights_hash": job.weights_hash,
            "known": files.fingerprint(known) if known else None,
        },
        job.config.training.checkpoints_kept,
        job.config.training.checkpoints_best,
    )


Advance = Callable[[state.TrainState, int], tuple[state.TrainState, state.Meters]]


@contextlib.contextmanager
def stepping(job: Job, mesh: parallel.Mesh, first_step: int, at_once: int = 1) -> Iterator[Advance]:
    """Training: (state, steps taken) → (state, meters), to be called for steps `first_step`, `first_step` + 1, …, or, with `at_once` = `job.at_once`, for those
    that `job.steps_at` leaves.

    Data in memory lie whole on every device, and a step finds its batch there by the epoch's order; images are decoded ahead
    of the step by threads, one stream for each distinct seed, of which each process decodes what its devices need.
    """
    t = job.config.training
    one = step.make_step(
        job.model,
        job.optimizer,
        _train_transform(job),
        mesh,
        log_every=t.log_every,
        sharding=job.config.devices.sharding,
        sam=t.sam,
        ignore_label=job.ignore_label,
        objectives=job.objectives,
        total_steps=job.total_steps,
    )
    with _batches(job, mesh, one, first_step, job.total_steps, at_once) as (program, batch_of):
        yield lambda current, taken: program(current, *batch_of(taken))


@contextlib.contextmanager
def measuring(
    job: Job, mesh: parallel.Mesh, first_step: int
) -> Iterator[Callable[[Sequence[step.Measured], int], list[step.Measured]]]:
    """One step of measuring batch statistics of several networks, on the batches that training would go on with for an epoch.

    ([`step.Measured`], steps taken) → [`step.Measured`], for steps `first_step`, `first_step` + 1, …; all see the same batch.
    """
    one = step.make_measurement(job.model, _train_transform(job), mesh, job.objectives)
    with _batches(job, mesh, one, first_step, first_step + job.steps_per_epoch) as (program, batch_of):

        def advance(each: Sequence[step.Measured], taken: int) -> list[step.Measured]:
            batch = batch_of(taken)
            return [program(measured, *batch)[0] for measured in each]

        yield advance


def _train_transform(job: Job) -> pipelines.Transform:
    config, a = job.config, job.config.augmentation
    return pipelines.train_transform(
        config.data.mean,
        config.data.std,
        crop_padding=a.crop_padding,
        resized_crop=() if job.streamed else a.resized_crop,  # a stream crops and flips where it decodes
        flip=a.flip and not job.streamed,
        interpolation=config.data.interpolation,
        rand_augment=a.rand_augment,
        mixup=a.mixup,
        cutmix=a.cutmix,
    )


@contextlib.contextmanager
def _batches(
    job: Job, mesh: parallel.Mesh, one: step.Step, first_step: int, last_step: int, at_once: int = 1
) -> Iterator[tuple[step.Step, Callable[[int], tuple[Any, ...]]]]:
    """A step's jitted program, and steps taken → what it takes beside the state, for steps `first_step` to `last_step` in turn."""
    if job.streamed:
        members = parallel.replicate(job.members, mesh)
        with contextlib.closing(_training_batches(job, mesh, first_step, last_step)) as batches:
            yield step.from_stream(one), lambda taken: (members, *parallel.divide(next(batches), mesh, axis=1))
        return
    split = job.dataset.splits[job.config.data.train_split]
    inputs, labels, members, known = parallel.replicate(
        (split.inputs, split.label.astype(np.int32), job.members, job.known), mesh
    )

    @functools.lru_cache(maxsize=1)
    def order_of(epoch: int) -> jax.Array:
        return pipelines.epoch_order(members.seed_key, epoch, len(split))

    program = step.from_memory(one, mesh, job.config.training.batch_size, at_once=at_once, marks=job.marks)
    yield program, lambda taken: (members, order_of(taken // job.steps_per_epoch), inputs, labels, known)


def _training_batches(
    job: Job, mesh: parallel.Mesh, first_step: int, last_step: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(inputs [s, b, …], labels [s, b, …]) from `first_step` to `last_step`: one stream for each distinct seed, decoded ahead; of
    each batch the rows of this process."""
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
                        total_steps=last_step,
                        rows=parallel.local_rows(t.batch_size, mesh),
                        threads=d.threads,
                    )
                )
            )
            for seed in job.config.members.seeds
        ]
        for batches in zip(*each, strict=True):
            yield tuple(np.stack([batch[field] for batch in batches]) for field in ("image", "label"))


def first_examples(job: Job, split: str, count: int, mesh: parallel.Mesh) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The first examples of a split, as they are at test, on the devices: (inputs [b, …], label int32 [b], which of them count).

    Args:
      job: as built, of one label for each example; split: its name; count: how many are wanted; mesh: the devices, over
        which the batch is divided.
    """
    source = job.dataset.splits[split]
    count = min(count, len(source))
    if job.streamed:
        head = itertools.islice(
            evaluation_batches(job, split), -(-count // job.config.prediction.batch_size)
        )  # all rows
        parts = list(head)
        inputs, label = (np.concatenate([part[name] for part in parts])[:count] for name in ("image", "label"))
    else:
        inputs, label = source.inputs[:count], source.label[:count]
    rows = parallel.local_rows(count + -count % mesh.shape["data"], mesh)
    index = np.minimum(rows, count - 1)
    return parallel.divide((inputs[index], label[index].astype(np.int32), rows < count), mesh, axis=0)


def evaluation_batches(job: Job, split: str, rows: np.ndarray | None = None) -> Iterator[dict[str, np.ndarray]]:
    """A split in order, in batches of one size: {"image" or inputs, "label", "example_id"}, id −1 where it is padding.

    Args:
      job: as built; split: its name; rows: which rows of each batch, all by default.
    """
    d, source = job.config.data, job.dataset.splits[split]
    transform = images.eval_pair_record
    if job.ignore_label is None:
        options = {"size": d.test_size, "crop_pct": d.crop_pct, "interpolation": d.interpolation}
        transform = functools.partial(images.eval_record, **options)
    batch_size = job.config.prediction.batch_size
    with contextlib.closing(
        streams.evaluation_batches(source, transform, batch_size=batch_size, rows=rows, threads=d.threads)
    ) as batches:
        yield from batches
