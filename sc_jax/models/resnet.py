"""Residual networks for ImageNet, and the layers that other convolutional networks share with them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from sc_jax.files import InputError
from sc_jax.models.dropout import Dropout


def convolution(
    in_features: int,
    features: int,
    size: int,
    stride: int = 1,
    *,
    dilation: int = 1,
    dtype: jnp.dtype,
    rngs: nnx.Rngs,
) -> nnx.Conv:
    """size×size convolution without bias, padded alike on all sides by dilation·(size − 1)/2, as in PyTorch's models.

    The kernel is drawn from N(0, 2 / (size²·features)): He et al. 2015, "Delving deep into rectifiers", section 2.2, backward.

    Args:
      in_features: channels that enter.
      features: channels that leave.
      size: of the kernel, odd.
      stride: between outputs, in pixels.
      dilation: between the kernel's taps, in pixels.
      dtype: the convolution is computed in; the kernel is float32.
      rngs: stream "params" draws the kernel.

    Returns:
      The layer, [b, h, w, in_features] → [b, ⌈h/stride⌉, ⌈w/stride⌉, features].
    """
    margin = dilation * (size - 1) // 2
    return nnx.Conv(
        in_features,
        features,
        (size, size),
        strides=stride,
        padding=((margin, margin), (margin, margin)),
        kernel_dilation=dilation,
        use_bias=False,
        dtype=dtype,
        kernel_init=nnx.initializers.variance_scaling(2.0, "fan_out", "normal"),
        rngs=rngs,
    )


class _Statistic(nnx.BatchStat):
    """A running statistic whose new value takes the old one's place; Flax asks first where the old one lies, and if it is traced walks
    all that was traced before it.
    """

    def __setitem__(self, index: Any, value: jax.Array) -> None:
        if index is not ...:
            raise TypeError("a statistic is replaced whole")
        self.set_value(value)


def _unchanged(arrays: tuple[jax.Array, ...], dtype: jnp.dtype) -> tuple[jax.Array, ...]:
    return arrays


def batch_norm(
    features: int,
    *,
    scale: jax.nn.initializers.Initializer = nnx.initializers.ones,
    dtype: jnp.dtype,
    rngs: nnx.Rngs,
) -> nnx.BatchNorm:
    """Batch normalisation as PyTorch's models have it: momentum .1 there is .9 here, ε = 10⁻⁵.

    Statistics, scale and bias enter as float32, whatever `dtype` comes in and goes out (Flax would round them to it).
    The running variance is of the biased variance of each batch, where PyTorch keeps the unbiased one: n/(n − 1)
    larger for n values per channel.

    Args:
      features: channels.
      scale: initialiser of the scale γ.
      dtype: of what comes out.
      rngs: stream "params".

    Returns:
      The layer; call it with `use_running_average=not train`.
    """
    norm = nnx.BatchNorm(
        features, momentum=0.9, epsilon=1e-5, scale_init=scale, dtype=dtype, promote_dtype=_unchanged, rngs=rngs
    )
    norm.mean, norm.var = _Statistic(norm.mean[...]), _Statistic(norm.var[...])
    return norm


def spatial_mean(x: jax.Array, *, keepdims: bool = False) -> jax.Array:
    """The mean over places in float32, [..., h, w, c] → [..., c], or [..., 1, 1, c] with `keepdims`.

    The barrier keeps XLA from fusing it with a convolution in bfloat16: on a CPU, jax 0.12.0 then gives wrong sums and NaN.
    """
    return jnp.mean(jax.lax.optimization_barrier(x), axis=(-3, -2), keepdims=keepdims, dtype=jnp.float32)


def require_image(input_shape: tuple[int, ...]) -> None:
    """Refuses inputs that are no images.

    Args:
      input_shape: of one input.

    Raises:
      InputError: it is not (height, width, channels).
    """
    if len(input_shape) != 3:
        raise InputError(f"model.input_shape: {input_shape}; this network takes images, (height, width, channels)")


def linear_head(features: int, num_classes: int, *, rngs: nnx.Rngs) -> nnx.Linear:
    """Last layer in float32: weights uniform on ±1/√features, as PyTorch's models are left, and bias zero.

    Args:
      features: d.
      num_classes: k.
      rngs: stream "params" draws the weights.

    Returns:
      The layer, [b, d] → [b, k].
    """
    uniform = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
    return nnx.Linear(features, num_classes, kernel_init=uniform, dtype=jnp.float32, rngs=rngs)


def projection(in_features: int, features: int, stride: int, *, dtype: jnp.dtype, rngs: nnx.Rngs) -> nnx.List | None:
    """What brings x to the shape of a block's result: 1×1 convolution of its stride and BN; None where x fits.

    Args:
      in_features: channels of x.
      features: channels of the block's result.
      stride: of the block, in pixels.
      dtype: of the computation.
      rngs: stream "params".

    Returns:
      [convolution, batch normalisation] (option B of He et al. 2016, section 3.3), or None: x itself.
    """
    if stride == 1 and in_features == features:
        return None
    convolve = convolution(in_features, features, 1, stride, dtype=dtype, rngs=rngs)
    return nnx.List([convolve, batch_norm(features, dtype=dtype, rngs=rngs)])


def shortcut(downsample: nnx.List | None, x: jax.Array, *, train: bool) -> jax.Array:
    """x as it is added to a block's result.

    Args:
      downsample: of `projection`.
      x: [b, h, w, c].
      train: whether BN takes the batch's statistics.

    Returns:
      x, projected if `downsample` is there.
    """
    if downsample is None:
        return x
    convolve, norm = downsample
    return norm(convolve(x), use_running_average=not train)


class BasicBlock(nnx.Module):
    """ReLU(x + BN(conv(ReLU(BN(conv(x)))))) of two 3×3 convolutions, the first with the stride.

    The last BN starts with γ = 0, so that the block starts as ReLU(x) (Goyal et al. 2017, section 5.1).
    """

    expansion = 1

    def __init__(
        self,
        in_features: int,
        width: int,
        stride: int,
        *,
        base_width: int,
        dilations: tuple[int, int],
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        first, second = dilations
        self.conv1 = convolution(in_features, width, 3, stride, dilation=first, dtype=dtype, rngs=rngs)
        self.bn1 = batch_norm(width, dtype=dtype, rngs=rngs)
        self.conv2 = convolution(width, width, 3, dilation=second, dtype=dtype, rngs=rngs)
        self.bn2 = batch_norm(width, scale=nnx.initializers.zeros, dtype=dtype, rngs=rngs)
        self.downsample = projection(in_features, width, stride, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        y = jax.nn.relu(self.bn1(self.conv1(x), use_running_average=not train))
        y = self.bn2(self.conv2(y), use_running_average=not train)
        return jax.nn.relu(y + shortcut(self.downsample, x, train=train))


class Bottleneck(nnx.Module):
    """ReLU(x + BN(conv(…))) of a 1×1, a 3×3 and a 1×1 convolution, the 3×3 with the stride ("v1.5") and the dilation.

    In between width·base_width/64 channels, out go 4·width. The last BN starts with γ = 0, as in `BasicBlock`.
    """

    expansion = 4

    def __init__(
        self,
        in_features: int,
        width: int,
        stride: int,
        *,
        base_width: int,
        dilations: tuple[int, int],
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        inner, features = width * base_width // 64, width * self.expansion
        self.conv1 = convolution(in_features, inner, 1, dtype=dtype, rngs=rngs)
        self.bn1 = batch_norm(inner, dtype=dtype, rngs=rngs)
        self.conv2 = convolution(inner, inner, 3, stride, dilation=dilations[0], dtype=dtype, rngs=rngs)
        self.bn2 = batch_norm(inner, dtype=dtype, rngs=rngs)
        self.conv3 = convolution(inner, features, 1, dtype=dtype, rngs=rngs)
        self.bn3 = batch_norm(features, scale=nnx.initializers.zeros, dtype=dtype, rngs=rngs)
        self.downsample = projection(in_features, features, stride, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        y = jax.nn.relu(self.bn1(self.conv1(x), use_running_average=not train))
        y = jax.nn.relu(self.bn2(self.conv2(y), use_running_average=not train))
        y = self.bn3(self.conv3(y), use_running_average=not train)
        return jax.nn.relu(y + shortcut(self.downsample, x, train=train))


class ResNet(nnx.Module):
    """7×7 convolution, max-pooling, four stages of residual blocks of widths 64 to 512, mean over pixels → logits.

    Parameters with 1,000 classes: resnet18 11,689,512, resnet34 21,797,672, resnet50 25,557,032, resnet101
    44,549,160, resnet152 60,192,808, wide_resnet50_2 68,883,240. Tensors are named as timm and torchvision name them.

    Source: He et al. 2016, "Deep residual learning for image recognition", CVPR, table 1, with the stride in the 3×3
    convolution of a bottleneck ("v1.5"); `base_width` 128: Zagoruyko and Komodakis 2016. Initialisation:
    `convolution`, `batch_norm`, `linear_head`.

    Args:
      input_shape: (h, w, c).
      num_classes: k; 0: no head, for `stages` alone.
      blocks: of each of the four stages.
      bottleneck: blocks of three convolutions in place of two.
      base_width: of the bottleneck's 3×3 convolution in the first stage.
      output_stride: 32, or 16 or 8 for dense prediction: from there on stages keep their resolution, and dilate their
        3×3 convolutions by the factor by which they would have shrunk (Chen et al. 2017, arXiv:1706.05587, section
        3.1).
      dropout: rate before the head; the paper has none.
      dtype: of the computation; parameters, batch statistics and the head are float32.
      rngs: stream "params".

    Raises:
      InputError: another output stride, or another number of stages.
    """

    member_mapping = "unroll"
    head_parts = ("fc",)

    def __init__(
        self,
        *,
        input_shape: tuple[int, ...],
        num_classes: int,
        blocks: Sequence[int],
        bottleneck: bool,
        base_width: int = 64,
        output_stride: int = 32,
        dropout: float = 0.0,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if output_stride not in (8, 16, 32):
            raise InputError(f"model.output_stride: {output_stride}; take 8, 16 or 32")
        if len(blocks) != 4:
            raise InputError(f"model.blocks: {tuple(blocks)}; name the blocks of each of the four stages")
        block = Bottleneck if bottleneck else BasicBlock
        self.conv1 = convolution(input_shape[-1], 64, 7, 2, dtype=dtype, rngs=rngs)
        self.bn1 = batch_norm(64, dtype=dtype, rngs=rngs)
        features, reduction, dilation = 64, 4, 1
        stages = []
        for width, depth, stride in zip((64, 128, 256, 512), blocks, (1, 2, 2, 2), strict=True):
            # The first block of a dilated stage still dilates as the stage before: its input is of that resolution.
            first_dilation = dilation
            if reduction * stride > output_stride:
                dilation, stride = dilation * stride, 1
            reduction *= stride
            stage = nnx.List([])
            for i in range(depth):
                dilations = (first_dilation if i == 0 else dilation, dilation)
                options = {"base_width": base_width, "dilations": dilations, "dtype": dtype, "rngs": rngs}
                stage.append(block(features, width, stride if i == 0 else 1, **options))
                features = width * block.expansion
            stages.append(stage)
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.dropout = Dropout(dropout)
        self.fc = linear_head(features, num_classes, rngs=rngs) if num_classes else None

    def stages(self, images: jax.Array, *, train: bool) -> tuple[jax.Array, jax.Array]:
        """The maps that dense prediction takes.

        Args:
          images: [b, h, w, c], normalised.
          train: whether BN takes the batch's statistics.

        Returns:
          low: after the first stage, [b, h/4, w/4, 64], with bottlenecks 256 channels.
          high: after the last, [b, h/output_stride, w/output_stride, 512], with bottlenecks 2048 channels; in `dtype`
            both.
        """
        x = jax.nn.relu(self.bn1(self.conv1(images), use_running_average=not train))
        x = nnx.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        for block in self.layer1:
            x = block(x, train=train)
        low = x
        for block in (*self.layer2, *self.layer3, *self.layer4):
            x = block(x, train=train)
        return low, x

    def __call__(self, images: jax.Array, *, train: bool, key: jax.Array | None = None) -> dict[str, jax.Array]:
        _, x = self.stages(images, train=train)
        features = spatial_mean(x)
        x = self.dropout(features, deterministic=not train, rngs=None if key is None else nnx.Rngs(dropout=key))
        return {"logits": self.fc(x), "features": features}
