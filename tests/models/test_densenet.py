"""DenseNet: published sizes, names, and what dense means."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from random_weights import abstract, count, filled, shapes

from sc_jax.files import InputError
from sc_jax.models.densenet import DenseBlock, DenseNet, Transition


def network(blocks: tuple[int, ...], growth: int, stem: str, classes: int, side: int = 32) -> nnx.Module:
    options = {"blocks": blocks, "growth": growth, "stem": stem}
    return abstract(DenseNet, input_shape=(side, side, 3), num_classes=classes, **options)


@pytest.mark.parametrize(
    (
        "blocks",
        "growth",
        "stem",
        "classes",
        "published",
    ),  # 0.8 M in Huang et al. 2017, table 2; torchvision's model card
    [((16, 16, 16), 12, "cifar", 10, 769_162), ((6, 12, 24, 16), 32, "imagenet", 1000, 7_978_856)],
)
def test_parameters_are_the_closed_form(
    blocks: tuple[int, ...], growth: int, stem: str, classes: int, published: int
) -> None:
    """A layer on c channels: BN 2c, 1×1 c·4g, BN 8g, 3×3 9·4g·g; a transition: BN 2c, 1×1 c·c/2."""
    c = 2 * growth
    expected = 9 * 3 * c if stem == "cifar" else 49 * 3 * c + 2 * c
    for i, layers in enumerate(blocks):
        expected += sum(2 * d + 4 * growth * d for d in range(c, c + layers * growth, growth))
        expected += layers * (8 * growth + 36 * growth**2)
        c += layers * growth
        if i < len(blocks) - 1:
            expected, c = expected + 2 * c + c * c // 2, c // 2
    expected += 2 * c + (c + 1) * classes
    assert count(network(blocks, growth, stem, classes)) == expected == published


def test_tensors_are_named_as_published() -> None:
    found = shapes(network((2, 1), 4, "imagenet", 10))
    layers = ("denseblock1.denselayer1", "denseblock1.denselayer2", "denseblock2.denselayer1")
    convolutions = ["conv0", "transition1.conv", *(f"{name}.{conv}" for name in layers for conv in ("conv1", "conv2"))]
    norms = [
        "norm0",
        "norm5",
        "transition1.norm",
        *(f"{name}.{norm}" for name in layers for norm in ("norm1", "norm2")),
    ]
    expected = {f"features.{name}.kernel" for name in convolutions} | {"classifier.kernel", "classifier.bias"}
    assert set(found) == expected | {f"features.{name}.{tensor}" for name in norms for tensor in ("scale", "bias")}


@pytest.mark.parametrize(("stem", "side"), [("cifar", 32 // 2**2), ("imagenet", 32 // (4 * 2**2))])
def test_stem_and_transitions_shrink_images(stem: str, side: int) -> None:
    module = network((1, 1, 1), 4, stem, 10)
    maps = nnx.eval_shape(lambda m, x: m.features(x, train=False, streams=None), module, jnp.ones((2, 32, 32, 3)))
    assert maps.shape == (2, side, side, 9)  # ((8 + 4)/2 + 4)/2 + 4 channels


def test_a_block_keeps_what_entered_and_each_layer_sees_those_before_it_only() -> None:
    options = {"dropout": 0.0, "dtype": jnp.float32}
    block = filled(DenseBlock, layers=3, in_features=4, growth=2, **options)
    x = jax.random.normal(jax.random.key(0), (2, 5, 5, 4))
    before = block(x, train=False, streams=None)
    np.testing.assert_array_equal(before[..., :4], x)
    block.denselayer2.conv2.kernel[...] *= 2
    after = block(x, train=False, streams=None)
    np.testing.assert_array_equal(before[..., :6], after[..., :6])
    np.testing.assert_allclose(2 * before[..., 6:8], after[..., 6:8], rtol=1e-6)
    assert not np.array_equal(before[..., 8:], after[..., 8:])


def test_a_transition_takes_means_of_four_pixels() -> None:
    transition = filled(Transition, in_features=4, dropout=0.0, dtype=jnp.float32)
    x = jax.random.normal(jax.random.key(0), (2, 4, 6, 4))
    activated = np.maximum(transition.norm(x, use_running_average=True), 0)
    means = activated.reshape(2, 2, 2, 3, 2, 4).mean(axis=(2, 4))
    expected = np.einsum("bhwc,cf->bhwf", means, transition.conv.kernel[0, 0])
    np.testing.assert_allclose(transition(x, train=False, streams=None), expected, atol=1e-5)


def test_logits_are_the_head_on_the_features() -> None:
    options = {"blocks": (1, 1, 1), "growth": 4, "stem": "cifar"}
    module = filled(DenseNet, input_shape=(32, 32, 3), num_classes=10, **options)
    images = jax.random.normal(jax.random.key(0), (2, 32, 32, 3))
    outputs = nnx.jit(lambda m, x: m(x, train=False))(module, images)
    assert outputs["features"].shape == (2, 9)
    np.testing.assert_allclose(outputs["logits"], module.classifier(outputs["features"]), rtol=1e-5, atol=1e-5)


def test_another_stem_and_too_small_images_are_refused() -> None:
    with pytest.raises(InputError, match=r"model\.stem: 'mnist'; take 'cifar' or 'imagenet'"):
        network((1, 1), 4, "mnist", 10)
    with pytest.raises(InputError, match=r"model\.input_shape: 4 blocks shrink 28 pixels to none"):
        network((1, 1, 1, 1), 4, "imagenet", 10, side=28)
    network((1, 1, 1, 1), 4, "imagenet", 10, side=29)
