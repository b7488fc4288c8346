"""A job on images that are decoded on the way: the same wherever it is stopped, and what it refuses."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from sc_jax import config as config_lib
from sc_jax import data, files, models
from sc_jax.config import Augmentation, Config
from sc_jax.files import InputError
from sc_jax.models import pretrained
from sc_jax.predict import predict
from sc_jax.predictions import load
from sc_jax.train import train
from sc_jax.training import job as job_lib
from sc_jax.training import optimizers, parallel, state

RECIPES = Path(__file__).parents[2] / "experiments" / "label_smoothing"


@pytest.fixture(autouse=True, scope="module")
def small_data(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SC_JAX_DATA", str(tmp_path_factory.mktemp("data")))
        yield


def streaming(**training: Any) -> Config:
    """The ImageNet recipe with a small network, small images and two seeds."""
    config = config_lib.load(f"{RECIPES}/imagenet_resnet50.py:smoke")
    return dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, train_size=12, test_size=12, threads=3),
        model=config_lib.Backbone("mlp", hidden=(5,)),
        members=config_lib.MemberGrid((0.0, 0.2), (3, 4)),
        training=dataclasses.replace(config.training, **{"steps": 4, **training}),
    )


def trained(config: Config, stops: tuple[int, ...] = ()) -> state.TrainState:
    job, mesh = job_lib.build(config), parallel.data_mesh()
    current = parallel.replicate(state.initial_state(job.model, job.optimizer, job.members), mesh)
    bounds = (0, *stops, job.total_steps)
    for first, last in itertools.pairwise(bounds):
        with job_lib.stepping(job, mesh, first) as advance:
            for step in range(first, last):
                current, _ = advance(current, step)
    return current


def test_a_stream_taken_up_again_ends_with_the_same_bits() -> None:
    whole, parts = (jax.tree.leaves(trained(streaming(), stops)) for stops in ((), (1, 3)))
    for a, b in zip(whole, parts, strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def test_members_of_a_seed_get_the_same_images_and_members_of_other_seeds_do_not() -> None:
    job = job_lib.build(streaming())
    inputs, labels = next(job_lib._training_batches(job, job.mesh, 0, job.total_steps))
    assert inputs.shape == (2, 8, 12, 12, 3)
    assert labels.shape == (2, 8)
    assert not np.array_equal(labels[0], labels[1])


def test_every_image_of_a_split_comes_once_and_padding_says_so() -> None:
    job = job_lib.build(streaming())
    batches = list(job_lib.evaluation_batches(job, "test_report"))
    assert {batch["image"].shape for batch in batches} == {(8, 12, 12, 3)}
    ids = np.concatenate([batch["example_id"] for batch in batches])
    np.testing.assert_array_equal(np.sort(ids[ids >= 0]), np.sort(job.dataset.splits["test_report"].example_id))


def test_averaged_parameters_follow_behind() -> None:
    config = streaming(ema=0.5, steps=1)
    job = job_lib.build(config)
    start = state.initial_state(job.model, job.optimizer, job.members)
    after = trained(config)
    for a, b, c in zip(
        *map(jax.tree.leaves, (start.params, after.params, optimizers.averaged(after.opt_state))), strict=True
    ):
        np.testing.assert_allclose((np.asarray(a) + np.asarray(b)) / 2, c, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "augmentation", "problem"),
    [
        ("imagenet", Augmentation(), "differ in size"),
        ("cityscapes", Augmentation(resized_crop=(0.5, 2.0), mixup=0.2), "move labels too"),
        ("bank_marketing", Augmentation(flip=True), "holds no images"),
        ("imagenet", Augmentation(resized_crop=(0.5, 2.0)), "shares of the area, at most 1"),
        ("cifar10", Augmentation(resized_crop=(0.5, 2.0)), "shares of the area, at most 1"),
    ],
)
def test_augmentations_that_the_data_cannot_have_are_refused(
    name: str, augmentation: Augmentation, problem: str
) -> None:
    row = {"imagenet": "imagenet_resnet50"}.get(name, name)
    config = config_lib.load(f"{RECIPES}/{row}.py:smoke")
    with pytest.raises(InputError, match=problem):
        job_lib.build(dataclasses.replace(config, augmentation=augmentation))


def test_an_option_that_the_network_does_not_take_is_refused() -> None:
    config = config_lib.load(f"{RECIPES}/bank_marketing.py:smoke", {"model.name": "resnet18", "model.hidden": "(3,)"})
    with pytest.raises(InputError, match="resnet18 does not take"):
        job_lib.build(config)


@pytest.mark.parametrize(
    ("row", "overrides", "problem"),
    [
        (
            "bank_marketing",
            {"model.name": "resnet18"},
            r"resnet18 does not take the inputs of bank_marketing at training",
        ),
        (
            "cifar10",
            {"model.name": "deeplabv3plus_resnet101"},
            r"deeplabv3plus_resnet101 gives logits \[b, 32, 32, 10\]",
        ),
        ("imagenet_vit_s16", {"data.test_size": "256"}, r"vit_small_patch16 does not take .* at test, 256×256×3"),
        ("cityscapes", {"data.train_size": "500"}, r"500×500 pixels; crop or pad to multiples of 16"),
    ],
)
def test_a_network_that_does_not_fit_the_data_is_refused_before_any_work(
    row: str, overrides: dict[str, str], problem: str
) -> None:
    config = config_lib.load(f"{RECIPES}/{row}.py:smoke", overrides)
    with pytest.raises(InputError, match=problem):
        job_lib.build(config)


def test_colours_are_scaled_by_as_many_numbers_as_there_are() -> None:
    config = config_lib.load(f"{RECIPES}/config.py:smoke", {"data.mean": "(0.4, 0.5, 0.6)"})
    with pytest.raises(InputError, match=r"data\.mean: .* have 1 channel"):
        job_lib.build(config)


@pytest.mark.parametrize(
    ("row", "field", "text"),
    [
        ("cifar10", "data.train_size", "32"),
        ("cifar10", "data.test_size", "32"),
        ("cifar10", "data.crop_pct", "1.0"),
        ("cifar10", "data.interpolation", "bicubic"),
        ("cifar10", "data.threads", "2"),
        ("cifar10", "prediction.pixels", "10"),
        ("bank_marketing", "data.mean", "(0.4,)"),
        ("bank_marketing", "data.std", "(0.4,)"),
        ("cityscapes", "data.test_size", "512"),
        ("cityscapes", "data.interpolation", "bicubic"),
        ("imagenet_resnet50", "prediction.pixels", "10"),
    ],
)
def test_a_field_that_does_nothing_with_the_data_is_refused(row: str, field: str, text: str) -> None:
    config = config_lib.load(f"{RECIPES}/{row}.py:smoke", {field: text})
    with pytest.raises(InputError, match=f"field {field}: .* does nothing; it acts where"):
        job_lib.build(config)


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        ({"training.milestones": "(0.001,)"}, r"training\.milestones = \(0\.001,\) fall on steps \(0,\)"),
        ({"training.milestones": "(1.0, 1.001)"}, r"training\.milestones .* must differ"),
        (
            {"training.milestones": "(2.0,)", "training.warmup_epochs": "1.0"},
            r"training\.warmup_epochs = 1 is \d+ steps",
        ),
    ],
)
def test_schedules_that_the_steps_cannot_have_name_the_configs_fields(overrides: dict[str, str], problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        job_lib.build(config_lib.load(f"{RECIPES}/cifar10.py:smoke", overrides))


def weights_of(tmp_path: Path, name: str, **options: Any) -> str:
    params, model_state = models.build(name, **options).init(jax.random.key(7))
    pretrained.save(tmp_path / "weights.safetensors", params, model_state)
    return str(tmp_path / "weights.safetensors")


def untrained(row: str, weights: str, **fields: str) -> Config:
    overrides = {"model.weights": weights, "training.epochs": "0", "training.steps": "0", "primary": "()"}
    overrides |= {"members.alphas": "(0.0,)", "members.seeds": "(0,)"}
    return config_lib.load(f"{RECIPES}/{row}.py:smoke", overrides | fields)


def test_published_weights_bring_their_preprocessing() -> None:
    options = {"model.name": "resnet18", "data.preprocessing": "timm"}
    config = untrained("imagenet_resnet50", "resnet18.safetensors", **options)
    d = job_lib._preprocessed(config).data
    found = (d.test_size, d.crop_pct, d.interpolation, d.mean, d.std)
    assert found == dataclasses.astuple(pretrained.preprocessing("resnet18", "timm"))[:5]
    with pytest.raises(InputError, match=r"data\.interpolation: 'bicubic', but torchvision resnet18 wants 'bilinear'"):
        job_lib.build(dataclasses.replace(config, data=dataclasses.replace(config.data, preprocessing="torchvision")))


def test_training_starts_from_a_backbone_with_a_head_of_its_own(tmp_path: Path) -> None:
    weights = weights_of(tmp_path, "mlp", input_shape=(32, 32, 3), num_classes=7, hidden=(5,))
    config = config_lib.load(
        f"{RECIPES}/cifar10.py:smoke",
        {
            "model.name": "mlp",
            "model.hidden": "(5,)",
            "model.weights": weights,
            "model.weights_part": "backbone",
            "members.seeds": "(0, 1)",
        },
    )
    job = job_lib.build(config)
    start = state.initial_state(job.model, job.optimizer, job.members)
    found = pretrained.read_tensors(weights)
    np.testing.assert_array_equal(start.params["hidden"][0]["kernel"][1], found["hidden.0.weight"].T, "the file's")
    head = np.asarray(start.params["head"]["kernel"])
    assert head.shape == (4, 5, 10)
    assert not np.array_equal(head[0], head[1]), "of another seed"
    np.testing.assert_array_equal(head[0], head[2], "of the same seed, with another α")


def test_a_file_of_weights_that_was_replaced_is_another_run(tmp_path: Path) -> None:
    shape = {"input_shape": (32, 32, 3), "num_classes": 10, "hidden": (5,)}
    fields = {"data.preprocessing": "given", "model.name": "mlp", "model.hidden": "(5,)", "model.dtype": "float32"}
    config = untrained("cifar10", weights_of(tmp_path, "mlp", **shape), **fields)
    train(config, tmp_path / "run")
    predict(config, tmp_path / "run")
    told = files.read_json(tmp_path / "run/predictions/alpha=0-seed=0/test.json")
    assert told["weights_hash"] == files.fingerprint_file(config.model.weights)
    params, model_state = models.build("mlp", **shape).init(jax.random.key(8))
    pretrained.save(config.model.weights, params, model_state)
    for door in (train, predict):
        with pytest.raises(InputError, match="was written for another config"):
            door(config, tmp_path / "run")


def test_a_split_that_is_not_there_is_refused() -> None:
    with pytest.raises(InputError, match=r"data\.train_split: there is no split 'trian'"):
        job_lib.build(config_lib.load(f"{RECIPES}/bank_marketing.py:smoke", {"data.train_split": "trian"}))


def test_weights_from_a_file_predict_as_they_are(tmp_path: Path) -> None:
    config = config_lib.load(f"{RECIPES}/cifar10.py:smoke")
    options = {"input_shape": (32, 32, 3), "num_classes": 10}
    params, model_state = models.build("resnet20_cifar", **options).init(jax.random.key(7))
    pretrained.save(tmp_path / "weights.safetensors", params, model_state)
    config = dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, preprocessing="given"),
        model=config_lib.Backbone("resnet20_cifar", weights=str(tmp_path / "weights.safetensors")),
        members=config_lib.MemberGrid((0.0,), (0,)),
        training=dataclasses.replace(config.training, epochs=0, steps=0),
        prediction=dataclasses.replace(config.prediction, splits=("test",), batch_size=30),
        primary=(),
    )
    train(config, tmp_path / "run")
    predict(config, tmp_path / "run")
    train(config, tmp_path / "run")  # done
    found = load(tmp_path / "run/predictions/alpha=0-seed=0/test.npz")
    split = job_lib.build(config).dataset.splits["test"]
    inputs = (split.inputs / 255 - np.asarray(config.data.mean)) / np.asarray(config.data.std)
    logits = models.build("resnet20_cifar", **options).apply(params, model_state, inputs.astype(np.float32))[0][
        "logits"
    ]
    np.testing.assert_allclose(found.logits, logits, atol=1e-4)


def test_training_for_no_epoch_needs_weights() -> None:
    with pytest.raises(InputError, match=r"training\.epochs: 0; it must be positive, or 0 with model\.weights"):
        config_lib.load(
            f"{RECIPES}/cifar10.py:smoke",
            {"training.epochs": "0", "training.steps": "0", "data.preprocessing": "given", "members.alphas": "(0.0,)"},
        )


# Objectives beside label smoothing


def table(**members: Any) -> Config:
    config = config_lib.load(f"{RECIPES}/adult.py:smoke")
    return dataclasses.replace(config, members=config_lib.MemberGrid((0.0,), (0,), **members), primary=())


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (lambda: with_members(streaming(), ("left_out=1",)), "decoded on the way"),
        (lambda: with_members(streaming(), ("label_noise=0.1",)), "decoded on the way"),
        (lambda: with_members(config_lib.load(f"{RECIPES}/cityscapes.py:smoke"), ("focal=2",)), "labels pixels"),
        (lambda: table(objectives=("mixup=0.2",)), "mixes images"),
        (lambda: table(objectives=("cutmix=0.2",)), "mixes images"),
        (lambda: table(objectives=("distillation=2",)), "training.teacher"),
        (lambda: table(objectives=("nothing=2",)), "no objective 'nothing'"),
    ],
)
def test_objectives_that_the_data_do_not_allow_are_refused(config: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        job_lib.build(config())


def with_members(config: Config, objectives: tuple[str, ...]) -> Config:
    members = dataclasses.replace(config.members, objectives=objectives)
    return dataclasses.replace(config, members=members)


def test_the_repair_of_two_classes_is_refused_before_training() -> None:
    config = table()
    with pytest.raises(InputError, match=r"evaluation\.repair: adult has 2 classes"):
        job_lib.build(dataclasses.replace(config, evaluation=dataclasses.replace(config.evaluation, repair=True)))


def test_a_teacher_nobody_learns_from_is_refused() -> None:
    config = table(objectives=("focal=2",))
    training = dataclasses.replace(config.training, teacher="runs/earlier")
    with pytest.raises(InputError, match=r"training\.teacher: no objective learns from it"):
        job_lib.build(dataclasses.replace(config, training=training))


def test_losses_go_with_streams_and_tables() -> None:
    streamed = with_members(streaming(), ("focal=2",))
    assert len(job_lib.build(streamed).names) == 6
    assert np.isfinite(jax.tree.leaves(trained(with_members(streaming(steps=1), ("focal=2",))).params)[0]).all()
    job = job_lib.build(table(objectives=("left_out=2", "label_noise=0.1")))
    assert job.names == ["alpha=0-seed=0", "left_out=2-seed=0", "label_noise=0.1-seed=0"]
    assert len(job.known.fold) == len(job.dataset.splits["train"])


def test_what_is_known_belongs_to_the_run(tmp_path: Path) -> None:
    """A workdir is bound to the teacher's predictions: others are another run."""
    config = table(objectives=("left_out=2",))
    job = job_lib.build(config)
    with job_lib.open_checkpoints(job, tmp_path) as saved:
        current = state.initial_state(job.model, job.optimizer, job.members)
        saved.save(1, current)
    other = dataclasses.replace(job, known=job.known._replace(fold=job.known.fold[::-1].copy()))
    with job_lib.open_checkpoints(job, tmp_path) as saved:
        saved.restore(1, current)
    with pytest.raises(InputError), job_lib.open_checkpoints(other, tmp_path) as saved:
        saved.restore(1, current)


# Fewer examples


def test_fewer_examples_are_trained_on_drawn_from_all_of_the_split(monkeypatch: pytest.MonkeyPatch) -> None:
    config, load = table(), data.load

    def sorted_by_class(*args: Any) -> data.Dataset:
        found = load(*args)
        split = found.splits["train"]
        order = np.argsort(split.label, kind="stable")
        ordered = dataclasses.replace(
            split, inputs=split.inputs[order], label=split.label[order], example_id=split.example_id[order]
        )
        return dataclasses.replace(found, splits={**found.splits, "train": ordered})

    monkeypatch.setattr(data, "load", sorted_by_class)
    whole, short = (
        job_lib.build(dataclasses.replace(config, data=dataclasses.replace(config.data, train_examples=n)))
        for n in (0, 20)
    )
    kept = np.isin(whole.dataset.splits["train"].example_id, short.dataset.splits["train"].example_id)
    assert kept.sum() == len(short.dataset.splits["train"]) == 20
    assert np.flatnonzero(kept)[-1] > 20, "not the first, which are of one class"
    assert set(short.dataset.splits["train"].label) == set(whole.dataset.splits["train"].label)
    for field in ("inputs", "label", "example_id"):
        mine, theirs = (getattr(job.dataset.splits["train"], field) for job in (short, whole))
        np.testing.assert_array_equal(mine, theirs[kept])
        np.testing.assert_array_equal(
            getattr(short.dataset.splits["test"], field), getattr(whole.dataset.splits["test"], field)
        )
    assert short.steps_per_epoch == 20 // config.training.batch_size < whole.steps_per_epoch
    assert short.dataset.fingerprint != whole.dataset.fingerprint


@pytest.mark.parametrize(("config", "message"), [(streaming, "decoded on the way"), (table, "exceeds the")])
def test_fewer_examples_than_there_are_of_what_lies_in_memory(config: Any, message: str) -> None:
    given = config()
    with pytest.raises(InputError, match=rf"data\.train_examples.*{message}"):
        job_lib.build(dataclasses.replace(given, data=dataclasses.replace(given.data, train_examples=10**6)))


@pytest.mark.parametrize(
    ("ensemble", "training", "problem"),
    [
        ({"kind": "swa", "every": 0.001}, {}, r"ensemble\.every = 0\.001 is no step, of 93 in an epoch"),
        ({"kind": "swa", "start": 0.9, "every": 0.1}, {"steps": 50}, r"of 50 are 0; swa needs 1 at least"),
        (
            {"kind": "swag", "members": 2, "start": 0.5, "every": 0.1, "rank": 6},
            {},
            r"steps 46, 55, … of 93 are 6; swag needs 7",
        ),
        (
            {"kind": "snapshot", "members": 2},
            {"schedule": "cyclic", "cycles": 60},
            r"training\.cycles = 60, of 47 steps after the warm-up",
        ),
        ({"kind": "mc_dropout", "members": 2}, {}, r"model\.dropout: mlp has none by default, mc_dropout needs some"),
    ],
)
def test_an_ensemble_that_the_steps_or_the_network_do_not_give_is_refused(
    ensemble: dict[str, Any], training: dict[str, Any], problem: str
) -> None:
    config = config_lib.load(f"{RECIPES}/config.py:smoke")
    config = dataclasses.replace(
        config,
        model=config_lib.Backbone("mlp", hidden=(4,)),
        training=dataclasses.replace(config.training, **training),
        ensemble=config_lib.Ensemble(**ensemble),
    )
    with pytest.raises(InputError, match=problem):
        job_lib.build(config)


def test_pixels_have_ensembles_of_one_network_alone() -> None:
    config = config_lib.load(f"{RECIPES}/cityscapes.py:smoke")
    with pytest.raises(InputError, match=r"ensemble\.kind: cityscapes labels pixels"):
        job_lib.build(dataclasses.replace(config, ensemble=config_lib.Ensemble("mc_dropout", 2)))


def test_an_ensemble_belongs_to_the_run(tmp_path: Path) -> None:
    """Checkpoints hold what is collected: those of another ensemble are refused."""
    config = config_lib.load(f"{RECIPES}/config.py:smoke")
    one, other = (
        job_lib.build(dataclasses.replace(config, ensemble=ensemble))
        for ensemble in (config_lib.Ensemble(), config_lib.Ensemble("swa", start=0.5, every=0.1))
    )
    with job_lib.open_checkpoints(one, tmp_path) as saved:
        saved.save(1, {"x": np.zeros(1)})
    with (
        pytest.raises(InputError, match="was written for another config"),
        job_lib.open_checkpoints(other, tmp_path) as saved,
    ):
        saved.meta(1)


def test_a_network_without_layers_of_members_is_refused_and_those_with_are_named() -> None:
    config = config_lib.load(f"{RECIPES}/cifar10.py:smoke")
    ensemble = config_lib.Ensemble("packed", 4, alpha=2.0)
    model = dataclasses.replace(config.model, name="wide_resnet16_4")
    with pytest.raises(
        InputError, match=r"wide_resnet16_4 has no packed layers; .*: mlp, tabular_mlp, cnn, resnet20_cifar"
    ):
        job_lib.build(dataclasses.replace(config, ensemble=ensemble, model=model))


SCOD = f"{RECIPES.parent}/scod/config.py:smoke"


def test_held_out_classes_and_outliers_are_predicted_with_their_features(tmp_path: Path) -> None:
    config = config_lib.load(SCOD, {"training.steps": "2", "training.warmup_epochs": "0.0", "members.seeds": "(0, 1)"})
    job = job_lib.build(config)
    assert job.dataset.num_classes == 8
    train(config, tmp_path)
    predict(config, tmp_path)
    for name in job.names:
        made = {split: load(tmp_path / "predictions" / name / f"{split}.npz") for split in config.prediction.splits}
        test = made["test"]
        assert len(test) == 10_000 + 1_797
        assert test.is_ood.sum() == 2_000 + 1_797
        assert test.num_classes == 8
        assert made["train"].is_ood is None
        assert len(made["validation"]) == len(job.dataset.splits["validation"])
        for given in made.values():
            expected = given.features @ given.head_kernel + given.head_bias
            np.testing.assert_allclose(given.logits, expected, rtol=1e-4, atol=1e-4)
    first, second = (load(tmp_path / "predictions" / name / "test.npz") for name in job.names)
    assert not np.array_equal(first.head_kernel, second.head_kernel)
    assert not np.array_equal(first.features, second.features)


def test_without_being_asked_for_no_features_are_kept(tmp_path: Path) -> None:
    config = config_lib.load(SCOD, {"training.steps": "1", "training.warmup_epochs": "0.0"})
    config = dataclasses.replace(
        config, prediction=dataclasses.replace(config.prediction, features=False, splits=("validation", "test"))
    )
    train(config, tmp_path)
    predict(config, tmp_path)
    made = load(tmp_path / "predictions" / job_lib.build(config).names[0] / "validation.npz")
    assert made.features is None
    assert made.head_kernel is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.held_out": "(10,)"}, "classes .* cannot be held out"),
        ({"data.outliers": "('mnits',)"}, "did you mean 'mnist'"),
        ({"data.outliers": "('adult',)"}, "adult"),
    ],
)
def test_outliers_that_are_not_there_are_refused(changes: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        job_lib.build(config_lib.load(SCOD, changes))


def test_outliers_of_images_decoded_on_the_way_are_refused() -> None:
    config = streaming()
    with pytest.raises(InputError, match=r"data\.held_out: images of imagenet are decoded on the way"):
        job_lib.build(dataclasses.replace(config, data=dataclasses.replace(config.data, held_out=(3,))))


def test_features_of_images_decoded_on_the_way(tmp_path: Path) -> None:
    config = streaming(steps=1)
    config = dataclasses.replace(config, prediction=dataclasses.replace(config.prediction, features=True))
    train(config, tmp_path)
    predict(config, tmp_path)
    split = config.evaluation.test_split
    given = load(tmp_path / "predictions" / job_lib.build(config).names[0] / f"{split}.npz")
    assert given.features.shape == (len(given), 5)
    np.testing.assert_allclose(given.logits, given.features @ given.head_kernel + given.head_bias, rtol=1e-4, atol=1e-4)


CASCADES = f"{RECIPES.parent}/cascades/config.py:smoke"


def test_corrupted_copies_of_the_test_images_are_predicted_with_their_labels() -> None:
    changes = {"prediction.corruptions": "('contrast',)"}
    job = job_lib.build(config_lib.load(CASCADES, changes))
    names = tuple(f"test_contrast_{severity}" for severity in range(1, 6))
    assert job.predicted_splits == ("validation", "test", *names)
    test, hard = job.examples("test"), job.examples("test_contrast_5")
    known = ~test.is_ood
    np.testing.assert_array_equal(hard.example_id, test.example_id[known])
    np.testing.assert_array_equal(hard.label, test.label[known])
    spread = [split.inputs.astype(float).std(axis=(1, 2)).mean() for split in (hard, job.examples("test_contrast_1"))]
    assert spread[0] < spread[1] < test.inputs[known].astype(float).std(axis=(1, 2)).mean()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prediction.corruptions": "('contrats',)"}, "no corruption is called 'contrats'; there are gaussian_noise"),
        ({"prediction.corruptions": "('contrast', 'contrast')"}, "without repetition"),
    ],
)
def test_corruptions_that_are_not_there_are_refused(changes: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        job_lib.build(config_lib.load(CASCADES, changes))


def test_corruptions_of_what_is_no_image_in_memory_are_refused() -> None:
    prediction = {"corruptions": ("contrast",)}
    for config, message in ((streaming(), "decoded on the way"), (table(), "holds no images")):
        changed = dataclasses.replace(config, prediction=dataclasses.replace(config.prediction, **prediction))
        with pytest.raises(InputError, match=message):
            job_lib.build(changed)


def test_the_best_checkpoint_predicts_where_it_is_not_the_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Told that earlier is better, `predict` takes the first checkpoint, whose logits differ from the last one's."""
    changes = {"training.steps": "6", "training.checkpoint_every": "2", "training.checkpoints_best": "1"}
    changes |= {"training.warmup_epochs": "0.0", "prediction.checkpoint": "best", "training.statistics_every": "0"}
    config = config_lib.load(f"{RECIPES}/config.py:smoke", changes)
    accuracies = iter((0.9, 0.5, 0.4))
    monkeypatch.setattr("sc_jax.train.judging", lambda *_: lambda reached: next(accuracies))
    train(config, tmp_path)
    predict(config, tmp_path)
    job, split = job_lib.build(config), config.prediction.splits[0]
    inputs = job.evaluation_transform(job.dataset.splits[split].inputs[:50])
    made = [load(tmp_path / "predictions" / name / f"{split}.npz").logits[:50] for name in job.names]
    logits = {}
    with job_lib.open_checkpoints(job, tmp_path) as saved:
        assert saved.best_step() == 2
        for step in (2, 6):
            like = state.shape_of_state(job.model, job.optimizer, job.members, 0)
            kept = saved.restore(step, parallel.placed(like, job.mesh, "replicated"))
            logits[step] = models.member_logits(job.model, kept.params, kept.model_state, inputs)
    np.testing.assert_allclose(made, logits[2], rtol=1e-4, atol=1e-4)
    assert np.abs(np.array(made) - np.asarray(logits[6])).max() > 0.01


@pytest.mark.parametrize(("given", "expected"), [("", "vmap"), ("map", "map")])
def test_how_members_run_is_the_backbone_s_choice_unless_the_config_says(given: str, expected: str) -> None:
    config = config_lib.load(f"{RECIPES}/config.py:smoke", {"devices.member_mapping": given})
    assert job_lib.build(config).model.member_mapping == expected


def test_programs_of_several_steps_end_at_every_mark() -> None:
    config = config_lib.load(
        f"{RECIPES}/config.py:smoke", {"training.statistics_every": "7", "training.log_every": "5"}
    )
    job = job_lib.build(config)
    ends, taken = [], 0
    while taken < job.total_steps:
        taken += job.steps_at(taken)
        ends.append(taken)
    assert max(np.diff(ends)) > 1
    marks = {m for every in (5, 7, job.steps_per_epoch) for m in range(every, job.total_steps + 1, every)}
    assert marks | {job.total_steps} <= set(ends)


def test_networks_that_take_long_or_are_not_mapped_at_once_take_single_steps() -> None:
    wide = {"model.hidden": "(8192, 8192)"}
    convolutional = {"model.name": "cnn", "model.hidden": "()", "devices.member_mapping": "vmap"}
    for changes in ({"devices.member_mapping": "unroll"}, wide, convolutional):
        assert job_lib.build(config_lib.load(f"{RECIPES}/config.py:smoke", changes)).at_once == 1


def test_another_mapping_of_members_is_refused() -> None:
    with pytest.raises(InputError, match=r"devices\.member_mapping"):
        config_lib.load(f"{RECIPES}/config.py:smoke", {"devices.member_mapping": "scan"})
