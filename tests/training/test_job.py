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
from sc_jax import models
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
    inputs, labels = next(job_lib._training_batches(job, 0))
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
    config = config_lib.load(
        f"{RECIPES}/bank_marketing.py:smoke", {"model.name": "resnet20_cifar", "model.hidden": "(3,)"}
    )
    with pytest.raises(InputError, match="resnet20_cifar does not take"):
        job_lib.build(config)


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
        config_lib.load(f"{RECIPES}/cifar10.py:smoke", {"training.epochs": "0"})
