"""Wide ResNet: published sizes, pre-activation, and dropout between the convolutions."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from random_weights import abstract, count, filled, shapes

from sc_jax.files import InputError
from sc_jax.models.wide_resnet import Block, WideResNet


def network(depth: int, widen: int) -> nnx.Module:
    return abstract(WideResNet, input_shape=(32, 32, 3), num_classes=10, depth=depth, widen=widen)


@pytest.mark.parametrize(("depth", "widen", "published"), [(28, 10, 36.5e6), (40, 4, 8.9e6), (16, 4, None)])
def test_parameters_are_the_closed_form(depth: int, widen: int, published: float | None) -> None:
    """Zagoruyko and Komodakis 2016, table 4 (from memory), round what the layers add up to; 16-4 is derived alone."""
    expected, before = 9 * 3 * 16, 16
    for w in (16 * widen, 32 * widen, 64 * widen):
        first = 2 * before + 9 * before * w + 2 * w + 9 * w * w + before * w
        expected += first + ((depth - 4) // 6 - 1) * (4 * w + 18 * w * w)
        before = w
    expected += 2 * before + before * 10 + 10
    assert count(network(depth, widen)) == expected
    assert published is None or abs(expected - published) <= 0.05e6


def test_tensors_are_named_as_published() -> None:
    found = shapes(network(16, 2))
    assert found["block1.layer.0.convShortcut.kernel"] == (1, 1, 16, 32)
    assert found["block3.layer.1.conv2.kernel"] == (3, 3, 128, 128)
    assert found["block2.layer.0.bn1.scale"] == (32,)
    assert found["bn1.bias"] == (128,)
    assert found["fc.kernel"] == (128, 10)
    assert "block1.layer.1.convShortcut.kernel" not in found


def test_dropout_lies_between_the_convolutions() -> None:
    """All dropped, x passes unchanged, by no activation; half dropped, every sum over 3×3×4 values has some left."""
    x = jax.random.normal(jax.random.key(0), (2, 6, 6, 4))
    for rate, unchanged in ((1.0, True), (0.5, False)):
        block = filled(Block, in_features=4, features=4, stride=1, dropout=rate, dtype=jnp.float32)
        y = block(x, train=True, streams=nnx.Rngs(dropout=0))
        np.testing.assert_array_equal(y == x, unchanged)


def test_a_projection_sees_the_activated_input() -> None:
    block = filled(Block, in_features=4, features=6, stride=2, dropout=1.0, dtype=jnp.float32)
    x = jax.random.normal(jax.random.key(0), (2, 6, 6, 4))
    activated = np.maximum(block.bn1(x, use_running_average=False), 0)
    expected = np.einsum("bhwc,cf->bhwf", activated[:, ::2, ::2], block.convShortcut.kernel[0, 0])
    np.testing.assert_allclose(block(x, train=True, streams=nnx.Rngs(dropout=0)), expected, atol=1e-5)


def test_features_are_rectified_means_and_logits_the_head_on_them() -> None:
    module = filled(WideResNet, input_shape=(32, 32, 3), num_classes=10, depth=10, widen=1)
    images = jax.random.normal(jax.random.key(0), (2, 32, 32, 3))
    outputs = nnx.jit(lambda m, x: m(x, train=False))(module, images)
    assert outputs["features"].shape == (2, 64)
    assert outputs["features"].min() >= 0
    np.testing.assert_allclose(outputs["logits"], module.fc(outputs["features"]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("depth", [4, 18, 27])
def test_another_depth_is_refused(depth: int) -> None:
    with pytest.raises(InputError, match=rf"model\.depth: {depth} is not 6n \+ 4"):
        network(depth, 1)
