"""ResNet: published sizes, names, and dilated stages against strided ones."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from random_weights import abstract, count, filled, shapes

from sc_jax.files import InputError
from sc_jax.models import BACKBONES
from sc_jax.models.resnet import BasicBlock, Bottleneck, ResNet, batch_norm, convolution, linear_head

IMAGES = jax.random.normal(jax.random.key(0), (2, 64, 64, 3))


def preset(name: str, num_classes: int = 1000, **options: object) -> nnx.Module:
    return abstract(ResNet, input_shape=(64, 64, 3), num_classes=num_classes, **BACKBONES[name][1], **options)


@pytest.mark.parametrize(
    ("name", "published"),  # of torchvision's and timm's model cards
    [("resnet18", 11_689_512), ("resnet34", 21_797_672), ("resnet50", 25_557_032), ("wide_resnet50_2", 68_883_240)],
)
def test_parameters_are_as_many_as_published(name: str, published: int) -> None:
    assert count(preset(name)) == published


def test_each_further_block_of_the_third_stage_adds_its_convolutions_and_norms() -> None:
    """ResNet-101 is ResNet-50 with 17 more: 1024·256 + 9·256² + 256·1024 weights, and γ and β of 256, 256 and 1024."""
    each = 1024 * 256 + 9 * 256**2 + 256 * 1024 + 2 * (256 + 256 + 1024)
    assert count(preset("resnet101")) == 25_557_032 + 17 * each == 44_549_160


def test_tensors_are_named_as_published() -> None:
    found = shapes(preset("resnet50"))
    assert found["conv1.kernel"] == (7, 7, 3, 64)
    assert found["layer1.0.downsample.0.kernel"] == (1, 1, 64, 256)
    assert found["layer1.0.downsample.1.scale"] == (256,)
    assert found["layer3.5.conv2.kernel"] == (3, 3, 256, 256)
    assert found["fc.kernel"] == (2048, 1000)
    assert not any(name.startswith("layer1.1.downsample") for name in found)
    assert not any("downsample" in name for name in shapes(preset("resnet18")) if name.startswith("layer1"))


@pytest.mark.parametrize("output_stride", [8, 16, 32])
def test_stages_have_the_strides_they_promise(output_stride: int) -> None:
    module = preset("resnet50", num_classes=0, output_stride=output_stride)
    low, high = nnx.eval_shape(lambda m, x: m.stages(x, train=False), module, IMAGES)
    assert low.shape == (2, 16, 16, 256)
    assert high.shape == (2, 64 // output_stride, 64 // output_stride, 2048)


def test_a_dense_extractor_has_the_tensors_of_the_classifier_but_the_head() -> None:
    classifier = shapes(preset("resnet50"))
    extractor = shapes(preset("resnet50", num_classes=0, output_stride=16))
    assert extractor == {name: shape for name, shape in classifier.items() if not name.startswith("fc.")}


@pytest.mark.parametrize(("bottleneck", "output_stride"), [(True, 16), (False, 8)])
def test_dilated_stages_are_the_strided_ones_at_more_places(bottleneck: bool, output_stride: int) -> None:
    """Every 32nd pixel sees the same pixels through the same weights, whether strides or dilations bring it there."""
    options = {"input_shape": (64, 64, 3), "num_classes": 0, "blocks": (1, 1, 2, 2), "bottleneck": bottleneck}

    @nnx.jit
    def high(module: nnx.Module) -> jax.Array:
        return module.stages(IMAGES, train=False)[1]

    strided, dilated = high(filled(ResNet, **options)), high(filled(ResNet, output_stride=output_stride, **options))
    step = 32 // output_stride
    np.testing.assert_allclose(dilated[:, ::step, ::step], strided, rtol=1e-4, atol=1e-4 * float(jnp.max(strided)))
    assert dilated.shape[1] == step * strided.shape[1]


@pytest.mark.parametrize("block", [BasicBlock, Bottleneck])
def test_a_fresh_block_passes_its_input_through(block: type[nnx.Module]) -> None:
    options = {"base_width": 64, "dilations": (1, 1), "dtype": jnp.float32}
    module = block(8 * block.expansion, 8, 1, rngs=nnx.Rngs(0), **options)
    x = jax.random.normal(jax.random.key(1), (2, 5, 5, 8 * block.expansion))
    np.testing.assert_array_equal(module(x, train=False), jax.nn.relu(x))


def test_the_convolution_is_the_sum_over_a_window_padded_alike_on_all_sides() -> None:
    module = convolution(2, 3, 3, 2, dilation=2, dtype=jnp.float32, rngs=nnx.Rngs(0))
    x = np.random.default_rng(0).normal(size=(1, 6, 7, 2)).astype(np.float32)
    padded = np.pad(x, ((0, 0), (2, 2), (2, 2), (0, 0)))
    expected = [
        [np.einsum("hwc,hwcf->f", padded[0, i : i + 5 : 2, j : j + 5 : 2], module.kernel[...]) for j in (0, 2, 4, 6)]
        for i in (0, 2, 4)
    ]
    np.testing.assert_allclose(module(x)[0], expected, atol=1e-5)


def test_kernels_are_drawn_by_fan_out_and_heads_within_their_bounds() -> None:
    kernel = convolution(16, 64, 3, dtype=jnp.float32, rngs=nnx.Rngs(0)).kernel[...]
    np.testing.assert_allclose(jnp.std(kernel), (2 / (9 * 64)) ** 0.5, rtol=0.05)  # 5 standard errors: 9,216 draws
    head = linear_head(400, 50, rngs=nnx.Rngs(0))
    assert 0.99 / 20 < jnp.max(jnp.abs(head.kernel[...])) <= 1 / 20
    assert not head.bias[...].any()


def test_batch_norm_in_bfloat16_keeps_its_statistics_in_float32() -> None:
    """257 is no bfloat16: rounded to 256 it would normalise 256 to 0 in place of −1/√(1 + ε)."""
    module = batch_norm(1, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    x = jnp.full((2, 1, 1, 1), 256, jnp.bfloat16)
    module.mean[...] = jnp.array([257.0])
    normalised = module(x, use_running_average=True)
    assert normalised.dtype == jnp.bfloat16
    np.testing.assert_array_equal(normalised.astype(jnp.float32), np.full((2, 1, 1, 1), -1, np.float32))
    module(x, use_running_average=False)
    assert module.mean[...].dtype == jnp.float32
    np.testing.assert_allclose(module.mean[...], [0.9 * 257 + 0.1 * 256], rtol=1e-6)


def test_another_output_stride_is_refused() -> None:
    with pytest.raises(InputError, match=r"model\.output_stride: 4; take 8, 16 or 32"):
        preset("resnet18", output_stride=4)


def test_another_number_of_stages_is_refused() -> None:
    with pytest.raises(InputError, match=r"model\.blocks: \(2, 2\); name the blocks of each of the four stages"):
        abstract(ResNet, input_shape=(64, 64, 3), num_classes=10, blocks=(2, 2), bottleneck=False)
