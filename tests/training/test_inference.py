"""Batch statistics are recomputed as brute force has them; masks of dropout depend on the example, not on its batch."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sc_jax import config as config_lib
from sc_jax import models
from sc_jax.config import Backbone, Config, Ensemble, MemberGrid
from sc_jax.data import pipelines
from sc_jax.training import ensembles, inference, optimizers, parallel, state
from sc_jax.training import job as job_lib

CONFIG = "experiments/label_smoothing/config.py:smoke"
N, BATCH, STEPS = 40, 8, 7


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A ResNet of depth 8 and few channels; Flax's normalisations broadcast their scales."""
    monkeypatch.setitem(
        models.BACKBONES,
        "tiny",
        ("sc_jax.models.resnet_cifar:ResNetCIFAR", {"depth": 8, "hidden": (2, 2, 16)}),
    )
    with jax.numpy_rank_promotion("allow"):
        yield


def configured(name: str, ensemble: Ensemble, seeds: tuple[int, ...] = (3, 5), **training: Any) -> Config:
    config = config_lib.load(CONFIG)
    changed = {"batch_size": BATCH, "steps": STEPS, "statistics_every": 0, "warmup_epochs": 0.0, **training}
    return dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, train_examples=N),
        augmentation=dataclasses.replace(config.augmentation, flip=True),
        model=Backbone(name, hidden=(9,) if name == "mlp" else (), dropout=0.4),
        members=MemberGrid((0.0,), seeds),
        training=dataclasses.replace(config.training, **changed),
        ensemble=ensemble,
    )


def trained(job: job_lib.Job) -> tuple[state.TrainState, list[Any], parallel.Mesh]:
    """The last state, and the parameters after each step."""
    mesh = parallel.data_mesh()
    current = parallel.replicate(state.initial_state(job.model, job.optimizer, job.members), mesh)
    path = []
    with job_lib.stepping(job, mesh, 0) as advance:
        for step in range(job.total_steps):
            current, _ = advance(current, step)
            path.append(jax.tree.map(np.array, current.params))
    return current, path, mesh


def statistics_by_hand(job: job_lib.Job, params: Any, first: int) -> list[Any]:
    """For each member the mean over the batches of an epoch of ten times what a training step from statistics of 0 leaves."""
    split = job.dataset.splits["train"]
    transform = pipelines.train_transform(job.config.data.mean, job.config.data.std, flip=True)
    found = []

    @jax.jit
    def of_batch(params: Any, zeros: Any, key: jax.Array, step: jax.Array, images: jax.Array, labels: jax.Array) -> Any:
        augmented, dropped = (jax.random.fold_in(jax.random.fold_in(key, purpose), step) for purpose in (3, 2))
        inputs, _ = transform(augmented, images, labels)
        return job.model.apply(params, zeros, inputs, train=True, key=dropped)[1]

    for m, seed in enumerate(job.config.members.seeds):
        key = jax.random.key(seed)
        one = jax.tree.map(lambda leaf, m=m: leaf[m], params)
        zeros = jax.tree.map(jnp.zeros_like, job.model.init(key)[1])
        order = jax.random.permutation(jax.random.fold_in(jax.random.fold_in(key, 1), first // (N // BATCH)), N)
        batches = []
        for i in range(N // BATCH):
            rows = np.asarray(order[i * BATCH : (i + 1) * BATCH])
            batches.append(of_batch(one, zeros, key, first + i, split.inputs[rows], split.label[rows].astype(np.int32)))
        found.append(jax.tree.map(lambda *leaves: 10 * np.mean(leaves, 0), *batches))
    return found


def test_batch_statistics_are_those_of_one_epoch_more() -> None:
    """Of an averaged network, two seeds; training ended within an epoch, so that the pass begins with the next one."""
    job = job_lib.build(configured("tiny", Ensemble("swa", start=0.2, every=0.4)))
    assert (job.steps_per_epoch, job.total_steps) == (5, STEPS)
    current, path, mesh = trained(job)
    (weights,) = inference.networks(job, current, mesh)
    mean = jax.tree.map(lambda *leaves: np.mean(leaves, 0), *(path[step - 1] for step in (1, 3, 5, 7)))
    for a, b in zip(jax.tree.leaves(weights.params), jax.tree.leaves(mean), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    expected = statistics_by_hand(job, weights.params, 10)
    for m, one in enumerate(expected):
        for a, b in zip(jax.tree.leaves(weights.model_state), jax.tree.leaves(one), strict=True):
            np.testing.assert_allclose(a[m], b, rtol=1e-4, atol=1e-5)
    # They differ from those that training left, and the state is still there after the pass.
    left = [np.asarray(leaf) for leaf in jax.tree.leaves(current.model_state)]
    assert any(not np.allclose(a, b, rtol=0.1) for a, b in zip(left, jax.tree.leaves(weights.model_state), strict=True))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(current.params))


def test_snapshots_come_in_their_order_each_with_statistics_of_its_own() -> None:
    """Which are measured in one program, traced once."""
    job = job_lib.build(configured("tiny", Ensemble("snapshot", members=2), (3,), schedule="cyclic", cycles=3))
    traces = []

    def counted(*arguments: Any) -> Any:
        traces.append(1)
        return measure(*arguments)

    measure = job.model.statistics
    job = dataclasses.replace(job, model=dataclasses.replace(job.model, statistics=counted))
    current, path, mesh = trained(job)
    ends = optimizers.cycle_ends(STEPS, 0, 3)[-2:]
    networks = inference.networks(job, current, mesh)
    for step, weights in zip(ends, networks, strict=True):
        for a, b in zip(jax.tree.leaves(weights.params), jax.tree.leaves(path[step - 1]), strict=True):
            np.testing.assert_array_equal(a, b)
    one, two = (jax.tree.leaves(weights.model_state) for weights in networks)
    assert len(traces) == 1
    assert all(not np.array_equal(a, b) for a, b in zip(one, two, strict=True))


def test_images_that_are_decoded_on_the_way_are_passed_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An epoch of the streams that training would go on with, for each of two networks."""
    monkeypatch.setenv("SC_JAX_DATA", str(tmp_path))
    config = config_lib.load("experiments/label_smoothing/imagenet_resnet50.py:smoke")
    config = dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, train_size=8, test_size=8, threads=2),
        model=Backbone("tiny"),
        members=MemberGrid((0.0,), (4,)),
        training=dataclasses.replace(config.training, steps=2, schedule="cyclic", cycles=2, warmup_epochs=0.0),
        ensemble=Ensemble("snapshot", 2),
    )
    job = job_lib.build(config)
    job = dataclasses.replace(job, steps_per_epoch=3)
    current, _, mesh = trained(job)
    networks = inference.networks(job, current, mesh)
    transform = pipelines.train_transform(job.config.data.mean, job.config.data.std)
    for weights in networks:
        params = jax.tree.map(lambda leaf: leaf[0], weights.params)
        zeros = jax.tree.map(lambda leaf: jnp.zeros_like(leaf[0]), weights.model_state)
        each, apply = [], jax.jit(job.model.apply, static_argnames="train")
        for images, labels in job_lib._training_batches(job, mesh, 3, 6):
            inputs, _ = transform(jax.random.key(0), images[0], labels[0])
            after = apply(params, zeros, inputs, train=True, key=jax.random.key(0))[1]
            each.append(jax.tree.map(lambda leaf: 10 * leaf, after))
        assert len(each) == 3
        expected = jax.tree.map(lambda *leaves: np.mean(leaves, 0), *each)
        for a, b in zip(jax.tree.leaves(weights.model_state), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(a[0], b, rtol=1e-4, atol=1e-4)


def test_without_batch_statistics_nothing_is_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    job = job_lib.build(
        configured("mlp", Ensemble("swag", members=2, start=0.2, every=0.2, rank=3), schedule="constant")
    )
    current, _, mesh = trained(job)
    monkeypatch.setattr(job_lib, "measuring", None)
    one, two = inference.networks(job, current, mesh)
    again, _ = inference.networks(job, current, mesh)
    for a, b, c in zip(*(jax.tree.leaves(weights.params) for weights in (one, two, again)), strict=True):
        np.testing.assert_array_equal(a, c)
        assert not np.array_equal(a, b)
    gaussian = ensembles.collected(current.opt_state, ensembles.Gaussian)
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(5), 6), 1)
    drawn = ensembles.draw(jax.tree.map(lambda leaf: leaf[1], gaussian), key)
    for a, b in zip(jax.tree.leaves(two.params), jax.tree.leaves(drawn), strict=True):
        np.testing.assert_allclose(a[1], b, atol=1e-6)


@pytest.mark.parametrize("name", ["mlp", "tiny"])
def test_masks_depend_on_seed_network_and_example_and_not_on_the_batch(name: str) -> None:
    job = job_lib.build(configured(name, Ensemble("mc_dropout", members=2)))
    mesh = parallel.data_mesh()
    current = state.initial_state(job.model, job.optimizer, job.members)
    current = current._replace(params=jax.tree.map(lambda leaf: leaf.at[:].set(leaf[:1]), current.params))  # of seed 3
    one, two = inference.networks(job, current, mesh)
    outputs_of = inference.outputs_of(job)
    logits_of = jax.jit(lambda *given: outputs_of(*given)["logits"])
    images, ids = job.dataset.splits["test"].inputs[:6], np.arange(10, 16)
    whole = np.asarray(logits_of(one, (images, ids)))
    assert whole.shape == (2, 6, 10)
    order = np.array([4, 1, 3])
    np.testing.assert_allclose(logits_of(one, (images[order], ids[order])), whole[:, order], atol=1e-5)
    for other in (
        logits_of(two, (images, ids)),  # another network
        logits_of(one, (images, ids + 1)),  # other examples
        whole[::-1],  # the other seed
    ):
        assert (np.abs(other - whole).max(-1) > 1e-4).all()
    plain = models.member_logits(job.model, current.params, current.model_state, job.evaluation_transform(images))
    assert not np.allclose(plain, whole, atol=1e-3)


def test_of_no_ensemble_the_one_network_is_the_averaged_one_if_there_is_one() -> None:
    for ema in (0.0, 0.5):
        job = job_lib.build(configured("mlp", Ensemble(), ema=ema))
        current, _, mesh = trained(job)
        (weights,) = inference.networks(job, current, mesh)
        expected = optimizers.averaged(current.opt_state) if ema else current.params
        assert jax.tree.leaves(weights.params)[0] is jax.tree.leaves(expected)[0]
        assert weights.key is None
