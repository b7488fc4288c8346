"""One battery for every backbone of the registry."""

from __future__ import annotations

from itertools import pairwise
from math import prod

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from sc_jax import models
from sc_jax.files import InputError

SHAPE = (28, 28, 1)
HIDDEN = {"mlp": (256, 256), "cnn": (32, 64)}


def closed_form(name: str) -> int:
    """Number of parameters, by the definition of the layers."""
    if name == "mlp":
        widths = (prod(SHAPE), *HIDDEN[name], 10)
        return sum(a * b + b for a, b in pairwise(widths))
    widths = (SHAPE[-1], *HIDDEN[name])
    return sum(9 * a * b + b for a, b in pairwise(widths)) + 7 * 7 * widths[-1] * 10 + 10


@pytest.fixture(params=sorted(models.BACKBONES))
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def build(name: str, dropout: float = 0.0) -> models.Model:
    return models.build(name, image_shape=SHAPE, num_classes=10, hidden=HIDDEN[name], dropout=dropout)


def images(n: int = 4) -> jax.Array:
    return jax.random.uniform(jax.random.key(1), (n, *SHAPE), minval=-1, maxval=1)


def test_shapes_and_parameter_count(name: str) -> None:
    params, model_state = build(name).init(jax.random.key(0))
    outputs, _ = build(name).apply(params, model_state, images())
    assert outputs["logits"].shape == (4, 10)
    assert outputs["features"].shape == (4, {"mlp": 256, "cnn": 7 * 7 * 64}[name])
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == closed_form(name)


def test_logits_are_the_head_on_the_features(name: str) -> None:
    params, model_state = build(name).init(jax.random.key(0))
    outputs, _ = build(name).apply(params, model_state, images())
    head = params["head"]
    expected = outputs["features"] @ head["kernel"][...] + head["bias"][...][None]
    np.testing.assert_allclose(outputs["logits"], expected, atol=1e-5)


def test_gradients_are_finite_and_reach_every_parameter(name: str) -> None:
    model = build(name)
    params, model_state = model.init(jax.random.key(0))
    grads = jax.grad(lambda p: jnp.sum(model.apply(p, model_state, images(32))[0]["logits"] ** 2))(params)
    for path, leaf in jax.tree_util.tree_leaves_with_path(grads):
        assert np.isfinite(leaf).all(), path
        assert np.abs(leaf).max() > 0, path


def test_examples_do_not_mix(name: str) -> None:
    """Padding a batch changes nothing for the others."""
    model = build(name)
    params, model_state = model.init(jax.random.key(0))
    whole = model.apply(params, model_state, images())[0]["logits"]
    changed = model.apply(params, model_state, images().at[3].set(0))[0]["logits"]
    np.testing.assert_allclose(whole[:3], changed[:3], atol=1e-6)
    assert not np.allclose(whole[3], changed[3])


def test_dropout_acts_in_training_only_and_by_its_key(name: str) -> None:
    model = build(name, dropout=0.5)
    params, model_state = model.init(jax.random.key(0))

    def logits(train: bool, seed: int) -> np.ndarray:
        return np.asarray(
            model.apply(params, model_state, images(), train=train, key=jax.random.key(seed))[0]["logits"]
        )

    np.testing.assert_array_equal(logits(False, 0), logits(False, 1))
    np.testing.assert_array_equal(logits(True, 0), logits(True, 0))
    assert not np.array_equal(logits(True, 0), logits(True, 1))


@pytest.mark.parametrize("mapping", ["vmap", "unroll"])
def test_members_equal_each_alone(name: str, mapping: str) -> None:
    model = build(name)
    params, model_state = jax.vmap(model.init)(jax.random.split(jax.random.key(0), 3))
    together = models.map_members(lambda p, s: model.apply(p, s, images())[0]["logits"], mapping)(params, model_state)
    for m in range(3):
        alone = model.apply(*jax.tree.map(lambda leaf, m=m: leaf[m], (params, model_state)), images())[0]["logits"]
        np.testing.assert_allclose(together[m], alone, atol=2e-5)


class Normalised(nnx.Module):
    """A backbone with batch statistics and dropout: state that changes in the forward pass."""

    member_mapping = "vmap"

    def __init__(self, *, image_shape: tuple[int, ...], num_classes: int, rngs: nnx.Rngs):
        self.norm = nnx.BatchNorm(prod(image_shape), rngs=rngs)
        self.dropout = nnx.Dropout(0.3)
        self.head = nnx.Linear(prod(image_shape), num_classes, rngs=rngs)

    def __call__(self, images: jax.Array, *, train: bool, key: jax.Array | None = None) -> dict[str, jax.Array]:
        x = self.norm(images.reshape(len(images), -1), use_running_average=not train)
        x = self.dropout(x, deterministic=not train, rngs=None if key is None else nnx.Rngs(dropout=key))
        return {"logits": self.head(x), "features": x}


def test_batch_statistics_are_per_member_under_vmap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(models.BACKBONES, "normalised", Normalised)
    with jax.numpy_rank_promotion("allow"):  # Flax's BatchNorm broadcasts its scale
        model = models.build("normalised", image_shape=SHAPE, num_classes=10)
        params, model_state = jax.vmap(model.init)(jax.random.split(jax.random.key(0), 2))
        batches = jnp.stack([images(), 3 * images() + 1])

        def forward(p: object, s: object, x: jax.Array, key: jax.Array) -> object:
            return model.apply(p, s, x, train=True, key=key)[1]

        after = jax.vmap(forward)(params, model_state, batches, jax.random.split(jax.random.key(1), 2))
        for m in range(2):
            alone = forward(
                *jax.tree.map(lambda leaf, m=m: leaf[m], (params, model_state)), batches[m], jax.random.key(9)
            )
            for together, single in zip(jax.tree.leaves(after), jax.tree.leaves(alone), strict=True):
                np.testing.assert_allclose(together[m], single, atol=1e-5)
    means = next(leaf for path, leaf in jax.tree_util.tree_leaves_with_path(after) if "mean" in str(path))
    assert not np.allclose(means[0], means[1])


def test_an_unknown_backbone_names_the_nearest() -> None:
    with pytest.raises(InputError, match=r"model\.name.*'mpl'.*did you mean 'mlp'"):
        models.build("mpl", image_shape=SHAPE, num_classes=10)
