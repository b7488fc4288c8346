"""DeepLabV3+: shapes, the sum of its parameters, and what its parts are."""

from __future__ import annotations

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from timm_reference import import_timm

from sc_jax import models
from sc_jax.files import InputError
from sc_jax.models import deeplab, pretrained

TINY = (1, 1, 1, 2)


@pytest.fixture(autouse=True)
def _allow_flax_to_broadcast():
    with jax.numpy_rank_promotion("allow"):  # Flax's BatchNorm broadcasts its scale
        yield


@functools.cache
def build(classes: int = 19, side: int = 32, blocks: tuple[int, ...] = TINY, dtype: str = "float32") -> models.Model:
    return models.build(
        "deeplabv3plus_resnet101",
        input_shape=(side, side, 3),
        num_classes=classes,
        blocks=blocks,
        dtype=jnp.dtype(dtype),
    )


@functools.cache
def state() -> tuple[object, object]:
    """Random kernels that keep the size of what passes, γ and variances about 1, the rest about 0: nothing is trivial."""
    shapes = jax.eval_shape(build().init, jax.random.key(0))
    rng = np.random.default_rng(0)

    def draw(path: tuple[object, ...], leaf: jax.ShapeDtypeStruct) -> jax.Array:
        noise = rng.standard_normal(leaf.shape)
        if len(leaf.shape) == 4:
            return jnp.asarray(noise * np.prod(leaf.shape[:3]) ** -0.5, leaf.dtype)
        centre = 1 if "scale" in str(path) or "var" in str(path) else 0
        return jnp.asarray(centre + 0.1 * np.clip(noise, -3, 3), leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def resnet(blocks: tuple[int, ...]) -> int:
    """Parameters of a bottleneck ResNet without its head: each convolution and 2 per channel for its BN."""
    count, inputs = 7 * 7 * 3 * 64 + 2 * 64, 64
    for width, depth in zip((64, 128, 256, 512), blocks, strict=True):
        for i in range(depth):
            count += inputs * width + 9 * width * width + 4 * width * width + 2 * (width + width + 4 * width)
            count += (inputs * 4 * width + 2 * 4 * width) if i == 0 else 0
            inputs = 4 * width
    return count


def head(classes: int) -> int:
    """Parameters of pyramid and decoder."""
    pyramid = 2048 * 256 * (1 + 3 * 9 + 1) + 5 * 256 * 256 + 2 * 256 * 6
    decoder = 256 * 48 + 2 * 48 + 9 * (256 + 48) * 256 + 9 * 256 * 256 + 2 * 256 * 2
    return pyramid + decoder + 256 * classes + classes


@pytest.mark.parametrize("blocks", [TINY, (3, 4, 23, 3)])
def test_parameters_are_the_sum_over_the_layers(blocks: tuple[int, ...]) -> None:
    params, _ = jax.eval_shape(build(19, 32, blocks).init, jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == resnet(blocks) + head(19)
    assert resnet((3, 4, 23, 3)) == 44_549_160 - 2049 * 1000  # the published count, less its head


@pytest.mark.parametrize(("height", "width"), [(32, 32), (48, 80)])
def test_every_pixel_has_logits_at_any_multiple_of_16(height: int, width: int) -> None:
    params, model_state = state()
    images = jnp.zeros((2, height, width, 3))
    outputs, _ = jax.eval_shape(
        functools.partial(build().apply, train=True, key=jax.random.key(0)), params, model_state, images
    )
    assert {name: (leaf.shape, leaf.dtype) for name, leaf in outputs.items()} == {
        "logits": ((2, height, width, 19), jnp.float32)
    }


@pytest.mark.parametrize("shape", [(40, 32, 3), (32, 33, 3)])
def test_other_sizes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=rf"{shape[0]}×{shape[1]} pixels.*multiples of 16"):
        models.build("deeplabv3plus_resnet101", input_shape=shape, num_classes=2, blocks=TINY)
    with pytest.raises(InputError, match="multiples of 16"):
        build().apply(*state(), jnp.zeros((1, *shape)))


def test_logits_are_those_of_pytorchs_layers(tmp_path: Path) -> None:
    """The backbone is timm's ResNet of output stride 16, the rest the definition in PyTorch's functions."""
    timm = import_timm()
    import torch
    from torch.nn import functional

    pretrained.save(tmp_path / "w.safetensors", *state())
    tensors = {
        name: torch.from_numpy(tensor) for name, tensor in pretrained.read_tensors(tmp_path / "w.safetensors").items()
    }
    backbone = timm.models.resnet.ResNet(timm.models.resnet.Bottleneck, TINY, num_classes=0, output_stride=16).eval()
    inside = {
        name.removeprefix("backbone."): tensor for name, tensor in tensors.items() if name.startswith("backbone.")
    }
    counters = {name: tensor for name, tensor in backbone.state_dict().items() if name.endswith("num_batches_tracked")}
    backbone.load_state_dict(inside | counters)

    def conv_norm(x: torch.Tensor, name: str, dilation: int = 1) -> torch.Tensor:
        kernel = tensors[f"{name}.conv.weight"]
        x = functional.conv2d(x, kernel, padding=dilation * (kernel.shape[2] // 2), dilation=dilation)
        statistics = [tensors[f"{name}.bn.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
        return functional.batch_norm(x, *statistics, eps=1e-5).relu()

    images = np.random.default_rng(0).standard_normal((2, 64, 96, 3)).astype(np.float32)
    with torch.no_grad():
        x = backbone.maxpool(
            backbone.act1(backbone.bn1(backbone.conv1(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))))
        )
        low = backbone.layer1(x)
        high = backbone.layer4(backbone.layer3(backbone.layer2(low)))
        assert high.shape[2:] == (4, 6)
        maps = [conv_norm(high, f"aspp.branches.{i}", rate) for i, rate in enumerate((1, 6, 12, 18))]
        maps.append(conv_norm(high.mean((2, 3), keepdim=True), "aspp.pool").expand_as(maps[0]))
        x = conv_norm(torch.cat(maps, 1), "aspp.project")
        x = functional.interpolate(x, low.shape[2:], mode="bilinear")
        x = torch.cat([x, conv_norm(low, "low")], 1)
        x = conv_norm(conv_norm(x, "decoder.0"), "decoder.1")
        x = functional.conv2d(x, tensors["head.weight"], tensors["head.bias"])
        expected = functional.interpolate(x, images.shape[1:3], mode="bilinear").numpy().transpose(0, 2, 3, 1)
    ours = jax.jit(lambda images: build().apply(*state(), images)[0]["logits"])(images)
    assert np.abs(ours - expected).max() < 1e-4 * np.abs(expected).max()


def test_maps_are_enlarged_by_lines_between_pixel_centres() -> None:
    """The centre of pixel j of 4n lies at (j + ½)/4 − ½ of n; beyond the outer centres the value stays."""
    x = np.random.default_rng(0).standard_normal((2, 3, 5, 2)).astype(np.float32)

    def lines(values: np.ndarray) -> np.ndarray:
        return np.interp((np.arange(4 * len(values)) + 0.5) / 4 - 0.5, np.arange(len(values)), values)

    expected = np.apply_along_axis(lines, 2, np.apply_along_axis(lines, 1, x))
    np.testing.assert_allclose(deeplab._enlarge(jnp.asarray(x), jnp.zeros((2, 12, 20, 3))), expected, atol=1e-6)


def test_gradients_reach_every_parameter() -> None:
    params, model_state = state()
    images = jax.random.normal(jax.random.key(1), (2, 32, 32, 3))

    @jax.jit
    def gradients(p: object) -> object:
        forward = functools.partial(build().apply, train=True, key=jax.random.key(2))
        return jax.grad(lambda q: jnp.sum(forward(q, model_state, images)[0]["logits"] ** 2))(p)

    for path, leaf in jax.tree_util.tree_leaves_with_path(gradients(params)):
        assert np.isfinite(leaf).all(), path
        assert np.abs(leaf).max() > 0, path


def test_bfloat16_gives_float32_logits_and_float32_state() -> None:
    params, model_state = state()
    outputs, after = jax.eval_shape(
        functools.partial(build(dtype="bfloat16").apply, train=True, key=jax.random.key(0)),
        params,
        model_state,
        jnp.zeros((2, 32, 32, 3)),
    )
    assert outputs["logits"].dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves((params, after))} == {jnp.dtype("float32")}
