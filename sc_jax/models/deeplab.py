"""DeepLabV3+: semantic segmentation by a dilated ResNet, a pyramid of dilated convolutions and a small decoder."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from sc_jax.files import InputError
from sc_jax.models.dropout import Dropout
from sc_jax.models.resnet import ResNet, batch_norm, convolution, require_image, spatial_mean

WIDTH, LOW_WIDTH, RATES, STRIDE = 256, 48, (6, 12, 18), 16
"""Channels of pyramid and decoder, and of what the decoder takes from the first stage; dilations at output stride 16."""


class ConvNorm(nnx.Module):
    """ReLU(BN(conv(x)))."""

    def __init__(
        self, in_features: int, features: int, size: int, *, dilation: int = 1, dtype: jnp.dtype, rngs: nnx.Rngs
    ):
        self.conv = convolution(in_features, features, size, dilation=dilation, dtype=dtype, rngs=rngs)
        self.bn = batch_norm(features, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        return jax.nn.relu(self.bn(self.conv(x), use_running_average=not train))


class ASPP(nnx.Module):
    """Atrous spatial pyramid pooling: 1×1, three dilated 3×3 and the mean of the whole image, side by side, then projected by 1×1.

    The statistics of the image's mean are over the batch alone: in training a batch should not be one image.
    """

    def __init__(self, in_features: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        options = {"dtype": dtype, "rngs": rngs}
        self.branches = nnx.List([ConvNorm(in_features, WIDTH, 1, **options)])
        for rate in RATES:
            self.branches.append(ConvNorm(in_features, WIDTH, 3, dilation=rate, **options))
        self.pool = ConvNorm(in_features, WIDTH, 1, **options)
        self.project = ConvNorm((len(RATES) + 2) * WIDTH, WIDTH, 1, **options)

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        mean = spatial_mean(x, keepdims=True).astype(x.dtype)
        maps = [branch(x, train=train) for branch in self.branches]
        maps.append(jnp.broadcast_to(self.pool(mean, train=train), maps[0].shape))
        return self.project(jnp.concatenate(maps, axis=-1), train=train)


class DeepLabV3Plus(nnx.Module):
    """ResNet of output stride 16 → ASPP → beside 48 channels of the first stage, two 3×3 convolutions → logits of every pixel.

    Maps are enlarged bilinearly (pixel centres at half-integers: ×4 into the decoder, ×4 to the input's size), by weighted
    sums and not by products of matrices, so that `costs.macs` leaves it out, as published figures do. Logits are [b, h, w, k],
    and there are no features. With ResNet-101, 3 colours and 19 classes 59,343,795 parameters.

    Source: Chen et al. 2018, "Encoder-decoder with atrous separable convolution for semantic image segmentation", ECCV, sections
    3.1–3.2 and 4.1, with plain convolutions; dropout after the ASPP and the logits' N(0, .01²), truncated, are of the authors'
    code (tensorflow/models, research/deeplab/model.py). There corners are aligned when maps are enlarged; here centres.

    Args:
      input_shape: (h, w, c), h and w multiples of 16; other sizes of that kind may be given when it is called.
      num_classes: k.
      blocks: of each of the ResNet's four stages of bottlenecks.
      dropout: rate after the ASPP.
      dtype: of the computation; parameters, batch statistics and the last convolution are float32.
      rngs: stream "params".

    Raises:
      InputError: the inputs are no images, or a side is no multiple of 16.
    """

    member_mapping = "unroll"
    head_parts = ("aspp", "low", "decoder", "head", "fc")  # fc: of the ResNet whose file fills the backbone

    def __init__(
        self,
        *,
        input_shape: tuple[int, ...],
        num_classes: int,
        blocks: Sequence[int],
        dropout: float = 0.1,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        require_image(input_shape)
        _check_sides(input_shape)
        options = {"dtype": dtype, "rngs": rngs}
        self.backbone = ResNet(
            input_shape=input_shape, num_classes=0, blocks=blocks, bottleneck=True, output_stride=STRIDE, **options
        )
        self.aspp = ASPP(2048, **options)
        self.dropout = Dropout(dropout)
        self.low = ConvNorm(256, LOW_WIDTH, 1, **options)
        self.decoder = nnx.List(
            [ConvNorm(WIDTH + LOW_WIDTH, WIDTH, 3, **options), ConvNorm(WIDTH, WIDTH, 3, **options)]
        )
        self.head = nnx.Conv(
            WIDTH,
            num_classes,
            (1, 1),
            kernel_init=nnx.initializers.truncated_normal(0.01),
            dtype=jnp.float32,
            rngs=rngs,
        )

    def __call__(self, images: jax.Array, *, train: bool, key: jax.Array | None = None) -> dict[str, jax.Array]:
        _check_sides(images.shape[1:])
        low, high = self.backbone.stages(images, train=train)
        x = self.aspp(high, train=train)
        x = self.dropout(x, deterministic=not train, rngs=None if key is None else nnx.Rngs(dropout=key))
        x = jnp.concatenate([_enlarge(x, low), self.low(low, train=train)], axis=-1)
        for convolve in self.decoder:
            x = convolve(x, train=train)
        return {"logits": _enlarge(self.head(x), images)}


def _enlarge(x: jax.Array, like: jax.Array) -> jax.Array:
    """x as large as `like`, a multiple of it, bilinearly; beyond the edge lies the edge."""
    for axis in (1, 2):
        size, margins = x.shape[axis], [(0, 0)] * 4
        factor, margins[axis] = like.shape[axis] // size, (1, 1)
        padded = jnp.pad(x, margins, "edge")
        before, after = (lax.slice_in_dim(padded, start, start + size, axis=axis) for start in (0, 2))
        phases = []
        for phase in range(factor):
            offset = (phase + 0.5) / factor - 0.5  # of the centre of a new pixel from that of the old one it lies in
            phases.append((1 - abs(offset)) * x + abs(offset) * (before if offset < 0 else after))
        x = jnp.stack(phases, axis + 1).reshape(*x.shape[:axis], factor * size, *x.shape[axis + 1 :])
    return x


def _check_sides(shape: tuple[int, ...]) -> None:
    if shape[0] % STRIDE or shape[1] % STRIDE:
        raise InputError(f"model.input_shape: {shape[0]}×{shape[1]} pixels; crop or pad to multiples of {STRIDE}")
