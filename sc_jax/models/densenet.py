"""Densely connected networks with bottlenecks and compression (DenseNet-BC), for CIFAR and ImageNet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from sc_jax.files import InputError
from sc_jax.models.dropout import Dropout
from sc_jax.models.resnet import batch_norm, convolution, linear_head, require_image, spatial_mean


class DenseLayer(nnx.Module):
    """x and beside it `growth` new channels, conv3×3(ReLU(BN(conv1×1(ReLU(BN(x)))))), with 4·growth in between."""

    def __init__(self, in_features: int, growth: int, *, dropout: float, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.norm1 = batch_norm(in_features, dtype=dtype, rngs=rngs)
        self.conv1 = convolution(in_features, 4 * growth, 1, dtype=dtype, rngs=rngs)
        self.norm2 = batch_norm(4 * growth, dtype=dtype, rngs=rngs)
        self.conv2 = convolution(4 * growth, growth, 3, dtype=dtype, rngs=rngs)
        self.dropout = Dropout(dropout)

    def __call__(self, x: jax.Array, *, train: bool, streams: nnx.Rngs | None) -> jax.Array:
        y = self.conv1(jax.nn.relu(self.norm1(x, use_running_average=not train)))
        y = self.dropout(y, deterministic=not train, rngs=streams)
        y = self.conv2(jax.nn.relu(self.norm2(y, use_running_average=not train)))
        y = self.dropout(y, deterministic=not train, rngs=streams)
        return jnp.concatenate([x, y], axis=-1)


class DenseBlock(nnx.Module):
    """Dense layers at one resolution, each a child by the name of its published tensors: denselayer1, denselayer2 …"""

    def __init__(self, layers: int, in_features: int, growth: int, **options: object):
        self.layers = layers
        for i in range(layers):
            setattr(self, f"denselayer{i + 1}", DenseLayer(in_features + i * growth, growth, **options))

    def __call__(self, x: jax.Array, *, train: bool, streams: nnx.Rngs | None) -> jax.Array:
        for i in range(self.layers):
            x = getattr(self, f"denselayer{i + 1}")(x, train=train, streams=streams)
        return x


class Transition(nnx.Module):
    """Half the channels and half the resolution: mean of 2×2 of conv1×1(ReLU(BN(x)))."""

    def __init__(self, in_features: int, *, dropout: float, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.norm = batch_norm(in_features, dtype=dtype, rngs=rngs)
        self.conv = convolution(in_features, in_features // 2, 1, dtype=dtype, rngs=rngs)
        self.dropout = Dropout(dropout)

    def __call__(self, x: jax.Array, *, train: bool, streams: nnx.Rngs | None) -> jax.Array:
        x = self.conv(jax.nn.relu(self.norm(x, use_running_average=not train)))
        x = self.dropout(x, deterministic=not train, rngs=streams)
        return nnx.avg_pool(x, (2, 2), strides=(2, 2))


class DenseFeatures(nnx.Module):
    """Stem, dense blocks with transitions between them, BN and ReLU: conv0, denseblock1, transition1, denseblock2 …, norm5."""

    def __init__(
        self,
        colours: int,
        blocks: Sequence[int],
        growth: int,
        stem: Literal["cifar", "imagenet"],
        *,
        dropout: float,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        options = {"dropout": dropout, "dtype": dtype, "rngs": rngs}
        self.blocks, features = len(blocks), 2 * growth
        size, stride = (3, 1) if stem == "cifar" else (7, 2)
        self.conv0 = convolution(colours, features, size, stride, dtype=dtype, rngs=rngs)
        self.norm0 = None if stem == "cifar" else batch_norm(features, dtype=dtype, rngs=rngs)
        for i, layers in enumerate(blocks, 1):
            setattr(self, f"denseblock{i}", DenseBlock(layers, features, growth, **options))
            features += layers * growth
            if i < self.blocks:
                setattr(self, f"transition{i}", Transition(features, **options))
                features //= 2
        self.norm5 = batch_norm(features, dtype=dtype, rngs=rngs)  # by this name whatever the number of blocks

    def __call__(self, images: jax.Array, *, train: bool, streams: nnx.Rngs | None) -> jax.Array:
        x = self.conv0(images)
        if self.norm0 is not None:
            x = jax.nn.relu(self.norm0(x, use_running_average=not train))
            x = nnx.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        for i in range(1, self.blocks + 1):
            x = getattr(self, f"denseblock{i}")(x, train=train, streams=streams)
            if i < self.blocks:
                x = getattr(self, f"transition{i}")(x, train=train, streams=streams)
        return jax.nn.relu(self.norm5(x, use_running_average=not train))


class DenseNet(nnx.Module):
    """Convolution, blocks of dense layers that see all before them in the block, mean over pixels → logits.

    DenseNet-BC of depth 100 and growth 12 (three blocks of 16): 769,162 parameters with 10 classes (paper: 0.8 M);
    densenet121: 7,978,856 with 1,000. Tensors are named as timm and torchvision name them.

    Source: Huang et al. 2017, "Densely connected convolutional networks", CVPR, tables 1 and 2: bottlenecks of
    4·growth channels, compression 0.5. Initialisation: `convolution`, `batch_norm`, `linear_head` of
    `sc_jax.models.resnet`.

    Args:
      input_shape: (h, w, c).
      num_classes: k.
      blocks: dense layers of each block.
      growth: channels that each layer adds.
      stem: "cifar": 3×3 convolution; "imagenet": 7×7 convolution of stride 2, BN, ReLU and max-pooling by 2; of
        2·growth channels both.
      dropout: rate after every convolution but the first; the paper has 0.2 where images are not augmented, else none.
      dtype: of the computation; parameters, batch statistics and the head are float32.
      rngs: stream "params".

    Raises:
      InputError: another stem, inputs that are no images, or images that the transitions shrink to nothing.
    """

    member_mapping = "unroll"
    head_parts = ("classifier",)

    def __init__(
        self,
        *,
        input_shape: tuple[int, ...],
        num_classes: int,
        blocks: Sequence[int],
        growth: int,
        stem: Literal["cifar", "imagenet"],
        dropout: float = 0.0,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if stem not in ("cifar", "imagenet"):
            raise InputError(f"model.stem: {stem!r}; take 'cifar' or 'imagenet'")
        require_image(input_shape)
        side = min(input_shape[:2])
        if -(-side // (1 if stem == "cifar" else 4)) < 2 ** (len(blocks) - 1):  # each transition halves, rounded down
            raise InputError(
                f"model.input_shape: {len(blocks)} blocks shrink {side} pixels to none; take larger images"
            )
        self.features = DenseFeatures(input_shape[-1], blocks, growth, stem, dropout=dropout, dtype=dtype, rngs=rngs)
        self.classifier = linear_head(self.features.norm5.num_features, num_classes, rngs=rngs)

    def __call__(self, images: jax.Array, *, train: bool, key: jax.Array | None = None) -> dict[str, jax.Array]:
        x = self.features(images, train=train, streams=None if key is None else nnx.Rngs(dropout=key))
        features = spatial_mean(x)
        return {"logits": self.classifier(features), "features": features}
