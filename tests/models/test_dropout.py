"""Monte-Carlo dropout: on in prediction, with its mean, and nothing else of training with it; and statistics of a batch alone."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from sc_jax import models
from sc_jax.models.dropout import Dropout

OPTIONS = {
    "mlp": ((6, 6, 1), {"hidden": (16, 12)}),
    "resnet20_cifar": ((8, 8, 3), {"depth": 8, "hidden": (4, 4, 8)}),
    "wide_resnet16_4": ((8, 8, 3), {"depth": 10, "widen": 1}),
}


@pytest.fixture(autouse=True)
def flax_broadcasts() -> object:
    """Flax's normalisations broadcast their scales."""
    with jax.numpy_rank_promotion("allow"):
        yield


def built(name: str, dropout: float = 0.5) -> tuple[models.Model, object, object, jax.Array]:
    shape, options = OPTIONS[name]
    model = models.build(name, input_shape=shape, num_classes=3, dropout=dropout, **options)
    inputs = jnp.asarray(np.random.default_rng(0).standard_normal((4, *shape)), jnp.float32)
    return model, *model.init(jax.random.key(0)), inputs


@pytest.mark.parametrize("name", OPTIONS)
def test_it_draws_by_its_key_and_leaves_batch_statistics_alone(name: str) -> None:
    model, params, model_state, inputs = built(name)
    draw = jax.jit(lambda key: model.apply(params, model_state, inputs, key=key, dropout=True))
    (one, after), (again, _), (other, _) = (draw(jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one["logits"], again["logits"])
    assert not np.allclose(one["logits"], other["logits"], atol=1e-3)
    plain = jax.jit(model.apply)(params, model_state, inputs)[0]["logits"]
    assert not np.allclose(one["logits"], plain, atol=1e-3)
    for before, now in zip(jax.tree.leaves(model_state), jax.tree.leaves(after), strict=True):
        np.testing.assert_array_equal(before, now)


@pytest.mark.parametrize("name", OPTIONS)
def test_at_rate_0_it_is_plain_prediction(name: str) -> None:
    """So batch normalisation predicts as it does without, by its running statistics."""
    model, params, model_state, inputs = built(name, 0.0)
    apply = jax.jit(model.apply, static_argnames="dropout")
    dropped, plain = (
        apply(params, model_state, inputs, key=jax.random.key(0), dropout=dropout)[0]["logits"]
        for dropout in (True, False)
    )
    np.testing.assert_array_equal(dropped, plain)


def test_the_mean_over_masks_of_a_linear_network_is_the_network() -> None:
    """Within five standard errors of 4,000 masks."""
    model, params, model_state, inputs = built("resnet20_cifar")  # dropout before the head: linear in what is dropped
    keys = jax.random.split(jax.random.key(3), 4000)
    one = jax.jit(jax.vmap(lambda key: model.apply(params, model_state, inputs, key=key, dropout=True)[0]["logits"]))
    drawn = np.asarray(one(keys), np.float64)
    error = drawn.std(0) / np.sqrt(len(drawn))
    expected = np.asarray(jax.jit(model.apply)(params, model_state, inputs)[0]["logits"])
    assert error.max() > 0
    assert (np.abs(drawn.mean(0) - expected) < 5 * error + 1e-6).all()


@pytest.mark.parametrize(
    ("name", "rate"), [("mlp", 0.0), ("lstm", 0.2), ("efficientnet_b1", 0.2), ("efficientnet_b4", 0.4)]
)
def test_a_model_knows_its_rate(name: str, rate: float) -> None:
    shape = (9,) if name == "lstm" else (32, 32, 3)
    options = {"vocabulary_size": 20} if name == "lstm" else {}
    assert models.build(name, input_shape=shape, num_classes=3, **options).dropout == rate
    assert models.build(name, input_shape=shape, num_classes=3, dropout=0.3, **options).dropout == 0.3


def test_statistics_are_of_the_batch_alone() -> None:
    """Of the first normalisation: mean and biased variance of what its convolution gives, whatever stood there before."""
    model, params, model_state, inputs = built("resnet20_cifar")
    before = jax.tree.map(lambda leaf: leaf + 7, model_state)
    found = jax.jit(model.statistics)(params, before, inputs, jax.random.key(0))
    kernel = params["conv1"]["kernel"][...]
    x = jax.lax.conv_general_dilated(inputs, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    np.testing.assert_allclose(found["bn1"]["mean"][...], x.mean((0, 1, 2)), atol=1e-5)
    np.testing.assert_allclose(found["bn1"]["var"][...], x.var((0, 1, 2)), atol=1e-5)
    # One step of training takes a tenth of them, in every layer.
    training = jax.jit(model.apply, static_argnames="train")
    _, after = training(params, before, inputs, train=True, key=jax.random.key(0))
    expected = jax.tree.map(lambda old, new: 0.9 * old + 0.1 * new, before, found)
    for a, b in zip(jax.tree.leaves(after), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_the_layer_is_flax_s_until_it_stays_on() -> None:
    layer, x = Dropout(0.5), jnp.ones((3, 50))
    rngs = nnx.Rngs(dropout=0)
    np.testing.assert_array_equal(layer(x, deterministic=True, rngs=rngs), x)
    assert set(np.unique(layer(x, deterministic=False, rngs=rngs))) == {0.0, 2.0}
    layer.stays_on = True
    assert set(np.unique(layer(x, deterministic=True, rngs=rngs))) == {0.0, 2.0}


def test_stochastic_depth_stays_off() -> None:
    options = {"width": 0.25, "depth": 0.1, "drop_path": 0.5, "dropout": 0.0}
    model = models.build("efficientnet_b0", input_shape=(32, 32, 3), num_classes=3, **options)
    params, model_state = model.init(jax.random.key(0))
    inputs = jnp.asarray(np.random.default_rng(0).standard_normal((2, 32, 32, 3)), jnp.float32)

    @functools.partial(jax.jit, static_argnums=0, compiler_options={"xla_backend_optimization_level": 0})
    def logits(dropout: bool) -> jax.Array:
        return model.apply(params, model_state, inputs, key=jax.random.key(0), dropout=dropout)[0]["logits"]

    np.testing.assert_array_equal(logits(False), logits(True))
