"""Residual networks for CIFAR, of depth 6n + 2."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import jax
import jax.numpy as jnp
from flax import nnx

from sc_jax.files import InputError
from sc_jax.models.dropout import Dropout
from sc_jax.models.resnet import batch_norm, convolution, linear_head, spatial_mean


class Block(nnx.Module):
    """ReLU(x + BN(conv(ReLU(BN(conv(x)))))); where the shapes differ x is subsampled and padded with channels of zeros.

    Half of the zeros come before x and half behind, as in the published weights; the paper says nothing of it.
    """

    def __init__(self, in_features: int, features: int, stride: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.stride, self.margin = stride, (features - in_features) // 2
        self.conv1 = convolution(in_features, features, 3, stride, dtype=dtype, rngs=rngs)
        self.bn1 = batch_norm(features, dtype=dtype, rngs=rngs)
        self.conv2 = convolution(features, features, 3, dtype=dtype, rngs=rngs)
        self.bn2 = batch_norm(features, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        y = jax.nn.relu(self.bn1(self.conv1(x), use_running_average=not train))
        y = self.bn2(self.conv2(y), use_running_average=not train)
        x = x[:, :: self.stride, :: self.stride]
        x = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (self.margin, self.margin)))
        return jax.nn.relu(y + x)


class ResNetCIFAR(nnx.Module):
    """3×3 convolution, three stages of n residual blocks of 16, 32 and 64 channels or others, mean over pixels → logits.

    97,216·n − 21,926 parameters with 3 colours and 10 classes: depth 20: 269,722, 32: 464,154, 44: 658,586, 56:
    853,018, 110: 1,727,962. Tensors are named as in the weights of akamaster/pytorch_resnet_cifar10.

    Source: He et al. 2016, "Deep residual learning for image recognition", CVPR, section 4.2, shortcuts without
    parameters (option A).
    Initialisation: `convolution`, `batch_norm`, `linear_head` of `sc_jax.models.resnet`.

    Args:
      input_shape: (h, w, c).
      num_classes: k.
      depth: 6n + 2.
      hidden: channels of the three stages, each as many more than those before that half of the difference is whole.
      dropout: rate before the head; the paper has none.
      dtype: of the computation; parameters, batch statistics and the head are float32.
      rngs: stream "params".

    Raises:
      InputError: another depth, or other than three widths that do not shrink.
    """

    member_mapping = "unroll"
    head_parts = ("linear",)

    def __init__(
        self,
        *,
        input_shape: tuple[int, ...],
        num_classes: int,
        depth: int,
        hidden: Sequence[int] = (16, 32, 64),
        dropout: float = 0.0,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        n, rest = divmod(depth - 2, 6)
        if rest or n < 1:
            raise InputError(f"model.depth: {depth} is not 6n + 2; take 20, 32, 44, 56 or 110")

        grows = len(hidden) == 3 and all(b >= a and (b - a) % 2 == 0 for a, b in pairwise(hidden))
        if not grows:
            raise InputError(
                f"model.hidden: {tuple(hidden)}; take three widths that grow by even numbers, as (16, 32, 64)"
            )

        def stage(in_features: int, features: int, stride: int) -> nnx.List:
            first = Block(in_features, features, stride, dtype=dtype, rngs=rngs)
            return nnx.List([first] + [Block(features, features, 1, dtype=dtype, rngs=rngs) for _ in range(n - 1)])

        first, second, third = hidden
        self.conv1 = convolution(input_shape[-1], first, 3, dtype=dtype, rngs=rngs)
        self.bn1 = batch_norm(first, dtype=dtype, rngs=rngs)
        self.layer1, self.layer2, self.layer3 = stage(first, first, 1), stage(first, second, 2), stage(second, third, 2)
        self.dropout = Dropout(dropout)
        self.linear = linear_head(third, num_classes, rngs=rngs)

    def __call__(self, images: jax.Array, *, train: bool, key: jax.Array | None = None) -> dict[str, jax.Array]:
        x = jax.nn.relu(self.bn1(self.conv1(images), use_running_average=not train))
        for block in (*self.layer1, *self.layer2, *self.layer3):
            x = block(x, train=train)
        features = spatial_mean(x)
        x = self.dropout(features, deterministic=not train, rngs=None if key is None else nnx.Rngs(dropout=key))
        return {"logits": self.linear(x), "features": features}
