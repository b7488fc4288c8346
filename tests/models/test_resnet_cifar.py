"""ResNet for CIFAR: published sizes, and shortcuts without parameters."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from random_weights import abstract, count, filled, shapes

from sc_jax.files import InputError
from sc_jax.models.resnet_cifar import Block, ResNetCIFAR


def network(depth: int) -> nnx.Module:
    return abstract(ResNetCIFAR, input_shape=(32, 32, 3), num_classes=10, depth=depth)


@pytest.mark.parametrize(
    ("depth", "published"),  # .27, .46, .66, .85 and 1.7 M in He et al. 2016, table 6
    [(20, 269_722), (32, 464_154), (44, 658_586), (56, 853_018), (110, 1_727_962)],
)
def test_parameters_are_the_closed_form(depth: int, published: int) -> None:
    """Stem 9·3·16 + 32; blocks of width w: 18·w² + 4·w, less 9·w²/2 where the width doubles; head 65·10."""
    n = (depth - 2) // 6
    blocks = n * sum(18 * w**2 + 4 * w for w in (16, 32, 64)) - 9 * (32**2 + 64**2) // 2
    assert 464 + blocks + 650 == published
    if depth < 50:  # the deeper ones only take longer
        assert count(network(depth)) == published


def test_tensors_are_named_as_published_and_shortcuts_have_none() -> None:
    found = shapes(network(8))
    layers = [f"{layer}.0.{tensor}" for layer in ("layer1", "layer2", "layer3") for tensor in ("conv1", "conv2")]
    norms = ["bn1", *(name.replace("conv", "bn") for name in layers)]
    expected = {f"{name}.kernel" for name in ("conv1", *layers, "linear")} | {"linear.bias"}
    assert set(found) == expected | {f"{name}.{tensor}" for name in norms for tensor in ("scale", "bias")}


def test_a_shortcut_takes_every_second_pixel_and_adds_zeros_on_both_sides() -> None:
    block = filled(Block, in_features=4, features=8, stride=2, dtype=jnp.float32)
    block.bn2.scale[...] = block.bn2.bias[...] = jnp.zeros(8)
    x = jax.random.normal(jax.random.key(0), (2, 6, 5, 4))
    zeros = np.zeros((2, 3, 3, 2), np.float32)
    expected = np.concatenate([zeros, jax.nn.relu(x[:, ::2, ::2]), zeros], axis=-1)
    np.testing.assert_array_equal(block(x, train=False), expected)


def test_features_are_the_mean_over_64_maps_of_a_quarter_and_logits_the_head_on_them() -> None:
    module = filled(ResNetCIFAR, input_shape=(32, 32, 3), num_classes=10, depth=8)
    images = jax.random.normal(jax.random.key(0), (2, 32, 32, 3))
    outputs = nnx.jit(lambda m, x: m(x, train=False))(module, images)
    assert outputs["features"].shape == (2, 64)
    np.testing.assert_allclose(outputs["logits"], module.linear(outputs["features"]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("depth", [2, 18, 21])
def test_another_depth_is_refused(depth: int) -> None:
    with pytest.raises(InputError, match=rf"model\.depth: {depth} is not 6n \+ 2"):
        network(depth)


def test_narrower_stages_have_their_parameters_and_their_shortcuts() -> None:
    narrow = {"input_shape": (32, 32, 3), "num_classes": 10, "depth": 20, "hidden": (4, 8, 16)}
    blocks = 3 * sum(18 * w**2 + 4 * w for w in (4, 8, 16)) - 9 * (8**2 + 16**2) // 2
    assert count(abstract(ResNetCIFAR, **narrow)) == 9 * 3 * 4 + 8 + blocks + 170
    module = filled(ResNetCIFAR, **{**narrow, "depth": 8})
    assert module(jnp.zeros((1, 32, 32, 3)), train=False)["features"].shape == (1, 16)


@pytest.mark.parametrize("hidden", [(16, 32), (16, 8, 4), (16, 33, 64)])
def test_widths_a_shortcut_cannot_pad_to_are_refused(hidden: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"model\.hidden"):
        abstract(ResNetCIFAR, input_shape=(32, 32, 3), num_classes=10, depth=8, hidden=hidden)
