"""EfficientNet, and the network of inverted residuals that it shares with MobileNetV2."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from sc_jax.models.dropout import Dropout
from sc_jax.models.resnet import batch_norm, convolution, spatial_mean

Activation = Callable[[jax.Array], jax.Array]


class Stage(NamedTuple):
    """Blocks of one width, the first of which may halve the image."""

    expansion: int
    kernel: int
    stride: int
    channels: int
    repeats: int


def divisible(channels: float) -> int:
    """The multiple of 8 nearest to `channels`, at least 8, and the next one where that lost more than a tenth."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * channels else rounded + 8


def depthwise(channels: int, size: int, stride: int, *, dtype: jnp.dtype, rngs: nnx.Rngs) -> nnx.Conv:
    """One size×size kernel for each channel, without bias, padded by (size − 1)/2 on all sides.

    The kernels are drawn from N(0, 2 / size²), the fan-out of one channel, as Tan & Le's code and timm's draw them.

    Args:
      channels: that enter and leave.
      size: of the kernel, odd.
      stride: between outputs, in pixels.
      dtype: the convolution is computed in; the kernel is float32.
      rngs: stream "params" draws the kernel.

    Returns:
      The layer, [b, h, w, channels] → [b, ⌈h/stride⌉, ⌈w/stride⌉, channels].
    """
    margin = (size - 1) // 2
    return nnx.Conv(
        channels,
        channels,
        (size, size),
        strides=stride,
        padding=((margin, margin), (margin, margin)),
        feature_group_count=channels,
        use_bias=False,
        dtype=dtype,
        kernel_init=nnx.initializers.variance_scaling(2.0, "fan_in", "normal"),  # fan-in of a [size, size, 1, c] kernel
        rngs=rngs,
    )


class SqueezeExcite(nnx.Module):
    """x · sigmoid(conv_expand(activation(conv_reduce(mean of x over the image)))).

    Args:
      channels: of x.
      reduced: channels between the two convolutions.
      activation: between them.
      dtype: of the computation.
      rngs: of the initialisation.

    Source: Hu et al., Squeeze-and-Excitation Networks (CVPR 2018, arXiv:1709.01507), §3.
    """

    def __init__(self, channels: int, reduced: int, activation: Activation, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.activation = activation
        he = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")
        self.conv_reduce = nnx.Conv(channels, reduced, (1, 1), kernel_init=he, dtype=dtype, rngs=rngs)
        self.conv_expand = nnx.Conv(reduced, channels, (1, 1), kernel_init=he, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        squeezed = spatial_mean(x, keepdims=True).astype(x.dtype)
        return x * jax.nn.sigmoid(self.conv_expand(self.activation(self.conv_reduce(squeezed))))


class InvertedResidual(nnx.Module):
    """Expand by 1×1, convolve depthwise, squeeze and excite, project by 1×1 without activation; plus the input.

    Without expansion the first convolution is left out. The input is added where shapes agree; then the rest is dropped
    per example at rate `drop_path` in training (stochastic depth), and what is kept divided by 1 − `drop_path`.

    Args:
      channels: of the input.
      out: channels of the output.
      stage: expansion and kernel.
      stride: of the depthwise convolution.
      activation: after the first two convolutions.
      squeeze: whether to squeeze and excite, through a quarter of the input's channels.
      drop_path: rate of stochastic depth.
      dtype: of the computation.
      rngs: of the initialisation.

    Source: Sandler et al. (2018), §3.4; Tan & Le (2019), Table 1; stochastic depth: Huang et al. (2016, arXiv:1603.09382).
    """

    def __init__(
        self,
        channels: int,
        out: int,
        stage: Stage,
        stride: int,
        *,
        activation: Activation,
        squeeze: bool,
        drop_path: float,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        hidden = stage.expansion * channels
        self.activation = activation
        self.skip = stride == 1 and channels == out
        self.expands = stage.expansion > 1
        self.conv_dw = depthwise(hidden, stage.kernel, stride, dtype=dtype, rngs=rngs)
        self.bn1 = batch_norm(hidden, dtype=dtype, rngs=rngs)
        project = convolution(hidden, out, 1, dtype=dtype, rngs=rngs)
        if self.expands:
            self.conv_pw = convolution(channels, hidden, 1, dtype=dtype, rngs=rngs)
            self.bn2 = batch_norm(hidden, dtype=dtype, rngs=rngs)
            self.conv_pwl = project
            self.bn3 = batch_norm(out, dtype=dtype, rngs=rngs)
        else:  # without expansion timm calls the projection conv_pw
            self.conv_pw = project
            self.bn2 = batch_norm(out, dtype=dtype, rngs=rngs)
        self.se = SqueezeExcite(hidden, channels // 4, activation, dtype=dtype, rngs=rngs) if squeeze else None
        self.drop_path = nnx.Dropout(drop_path, broadcast_dims=(1, 2, 3))

    def __call__(self, x: jax.Array, *, train: bool, rngs: nnx.Rngs | None) -> jax.Array:
        def normalised(convolution: nnx.Conv, norm: nnx.BatchNorm, x: jax.Array) -> jax.Array:
            return norm(convolution(x), use_running_average=not train)

        shortcut = x
        if self.expands:
            x = self.activation(normalised(self.conv_pw, self.bn1, x))
            x = self.activation(normalised(self.conv_dw, self.bn2, x))
        else:
            x = self.activation(normalised(self.conv_dw, self.bn1, x))
        if self.se is not None:
            x = self.se(x)
        x = normalised(self.conv_pwl, self.bn3, x) if self.expands else normalised(self.conv_pw, self.bn2, x)
        return shortcut + self.drop_path(x, deterministic=not train, rngs=rngs) if self.skip else x


class InvertedResidualNetwork(nnx.Module):
    """3×3 convolution of stride 2 → stages of inverted residuals → 1×1 convolution → mean over the image → logits.

    Every convolution is followed by batch normalisation. Features are the means, before dropout. Weights of convolutions
    start as N(0, 2 / fan-out of a group), the head's uniformly within ±1/√k, biases at 0: Tan & Le's code and timm.

    Args:
      input_shape: (h, w, c).
      num_classes: k.
      stages: what follows the stem; their channels are final.
      stem_channels: of the first convolution.
      head_channels: of the last; so many features.
      activation: of all.
      squeeze: whether the blocks squeeze and excite.
      dropout: rate, before the head.
      drop_path: rate of stochastic depth; block i of n has i/n of it.
      dtype: of the computation; parameters, batch statistics, the mean and the head are float32.
      rngs: of the initialisation.
    """

    member_mapping = "unroll"
    head_parts = ("classifier",)

    def __init__(
        self,
        *,
        input_shape: tuple[int, ...],
        num_classes: int,
        stages: tuple[Stage, ...],
        stem_channels: int,
        head_channels: int,
        activation: Activation,
        squeeze: bool,
        dropout: float,
        drop_path: float,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        self.activation = activation
        self.conv_stem = convolution(input_shape[-1], stem_channels, 3, 2, dtype=dtype, rngs=rngs)
        self.bn1 = batch_norm(stem_channels, dtype=dtype, rngs=rngs)
        channels, index, blocks = stem_channels, 0, sum(stage.repeats for stage in stages)
        self.blocks = nnx.List()
        for stage in stages:
            self.blocks.append(nnx.List())
            for i in range(stage.repeats):
                block = InvertedResidual(
                    channels,
                    stage.channels,
                    stage,
                    stage.stride if i == 0 else 1,
                    activation=activation,
                    squeeze=squeeze,
                    drop_path=drop_path * index / blocks,
                    dtype=dtype,
                    rngs=rngs,
                )
                self.blocks[-1].append(block)
                channels, index = stage.channels, index + 1
        self.conv_head = convolution(channels, head_channels, 1, dtype=dtype, rngs=rngs)
        self.bn2 = batch_norm(head_channels, dtype=dtype, rngs=rngs)
        self.dropout = Dropout(dropout)
        uniform = nnx.initializers.variance_scaling(1 / 3, "fan_out", "uniform")
        self.classifier = nnx.Linear(head_channels, num_classes, kernel_init=uniform, rngs=rngs)

    def __call__(self, images: jax.Array, *, train: bool, key: jax.Array | None = None) -> dict[str, jax.Array]:
        rngs = None if key is None else nnx.Rngs(dropout=key)
        x = self.activation(self.bn1(self.conv_stem(images), use_running_average=not train))
        for stage in self.blocks:
            for block in stage:
                x = block(x, train=train, rngs=rngs)
        x = self.activation(self.bn2(self.conv_head(x), use_running_average=not train))
        features = spatial_mean(x)
        x = self.dropout(features, deterministic=not train, rngs=rngs)
        return {"logits": self.classifier(x), "features": features}


STAGES = (
    Stage(1, 3, 1, 16, 1),
    Stage(6, 3, 2, 24, 2),
    Stage(6, 5, 2, 40, 2),
    Stage(6, 3, 2, 80, 3),
    Stage(6, 5, 1, 112, 3),
    Stage(6, 5, 2, 192, 4),
    Stage(6, 3, 1, 320, 1),
)
"""Of B0 (Tan & Le, 2019, Table 1)."""


class EfficientNet(InvertedResidualNetwork):
    """Inverted residuals with squeeze-and-excitation and SiLU, scaled in width and depth together.

    B0 to B4, made for 224, 240, 260, 300 and 380 pixels, have at 1,000 classes 5,288,548, 7,794,184, 9,109,994, 12,233,232
    and 19,341,616 parameters. Padding is symmetric and batch normalisation has ε = 1e-5, momentum 0.1 as in timm's
    PyTorch-trained variants (those ported from TensorFlow, `tf_`, differ in both).

    Args:
      input_shape: (h, w, c).
      num_classes: k.
      width: factor of the channels, rounded to multiples of 8.
      depth: factor of the blocks of a stage, rounded up.
      dropout: rate, before the head: 0.2 for B0 and B1, 0.3 for B2 and B3, 0.4 for B4.
      drop_path: rate of stochastic depth; block i of n has i/n of it.
      dtype: of the computation.
      rngs: of the initialisation.

    Source: Tan & Le, EfficientNet (ICML 2019, arXiv:1905.11946), Table 1 and §5.2.
    """

    def __init__(
        self,
        *,
        input_shape: tuple[int, ...],
        num_classes: int,
        width: float,
        depth: float,
        dropout: float = 0.2,
        drop_path: float = 0.2,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        super().__init__(
            input_shape=input_shape,
            num_classes=num_classes,
            stages=tuple(
                stage._replace(channels=divisible(stage.channels * width), repeats=math.ceil(stage.repeats * depth))
                for stage in STAGES
            ),
            stem_channels=divisible(32 * width),
            head_channels=divisible(1280 * width),
            activation=jax.nn.silu,
            squeeze=True,
            dropout=dropout,
            drop_path=drop_path,
            dtype=dtype,
            rngs=rngs,
        )
