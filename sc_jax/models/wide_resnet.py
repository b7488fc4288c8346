"""Wide residual networks for CIFAR, of depth 6n + 4."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from sc_jax.files import InputError
from sc_jax.models.dropout import Dropout
from sc_jax.models.resnet import batch_norm, convolution, linear_head, spatial_mean


class Block(nnx.Module):
    """x + conv(dropout(ReLU(BN(conv(a))))) with a = ReLU(BN(x)); where the shapes differ conv1×1(a) stands for x."""

    def __init__(
        self, in_features: int, features: int, stride: int, *, dropout: float, dtype: jnp.dtype, rngs: nnx.Rngs
    ):
        self.bn1 = batch_norm(in_features, dtype=dtype, rngs=rngs)
        self.conv1 = convolution(in_features, features, 3, stride, dtype=dtype, rngs=rngs)
        self.bn2 = batch_norm(features, dtype=dtype, rngs=rngs)
        self.dropout = Dropout(dropout)
        self.conv2 = convolution(features, features, 3, dtype=dtype, rngs=rngs)
        fits = stride == 1 and in_features == features
        self.convShortcut = None if fits else convolution(in_features, features, 1, stride, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array, *, train: bool, streams: nnx.Rngs | None) -> jax.Array:
        activated = jax.nn.relu(self.bn1(x, use_running_average=not train))
        if self.convShortcut is not None:
            x = self.convShortcut(activated)
        y = jax.nn.relu(self.bn2(self.conv1(activated), use_running_average=not train))
        return x + self.conv2(self.dropout(y, deterministic=not train, rngs=streams))


class Stage(nnx.Module):
    """Blocks of one width, the first with the stride."""

    def __init__(
        self,
        depth: int,
        in_features: int,
        features: int,
        stride: int,
        *,
        dropout: float,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        options = {"dropout": dropout, "dtype": dtype, "rngs": rngs}
        first = Block(in_features, features, stride, **options)
        self.layer = nnx.List([first] + [Block(features, features, 1, **options) for _ in range(depth - 1)])

    def __call__(self, x: jax.Array, *, train: bool, streams: nnx.Rngs | None) -> jax.Array:
        for block in self.layer:
            x = block(x, train=train, streams=streams)
        return x


class WideResNet(nnx.Module):
    """3×3 convolution, three stages of n pre-activated residual blocks of 16w, 32w, 64w channels, BN, mean → logits.

    Parameters with 10 classes: depth 28, widen 10: 36,479,194 (paper: 36.5 M); depth 16, widen 4: 2,748,890.
    Tensors are named as in xternalz/WideResNet-pytorch.

    Source: Zagoruyko and Komodakis 2016, "Wide residual networks", BMVC, table 1: blocks B(3, 3), section 2.4:
    dropout between their convolutions. Initialisation: `convolution`, `batch_norm`, `linear_head` of
    `sc_jax.models.resnet`.

    Args:
      input_shape: (h, w, c).
      num_classes: k.
      depth: 6n + 4.
      widen: w.
      dropout: rate within the blocks; the paper reports 0 and 0.3.
      dtype: of the computation; parameters, batch statistics and the head are float32.
      rngs: stream "params".

    Raises:
      InputError: another depth.
    """

    member_mapping = "unroll"
    head_parts = ("fc",)

    def __init__(
        self,
        *,
        input_shape: tuple[int, ...],
        num_classes: int,
        depth: int,
        widen: int,
        dropout: float = 0.0,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        n, rest = divmod(depth - 4, 6)
        if rest or n < 1:
            raise InputError(f"model.depth: {depth} is not 6n + 4; take 16, 22, 28, 34 or 40")
        options = {"dropout": dropout, "dtype": dtype, "rngs": rngs}
        self.conv1 = convolution(input_shape[-1], 16, 3, dtype=dtype, rngs=rngs)
        self.block1 = Stage(n, 16, 16 * widen, 1, **options)
        self.block2 = Stage(n, 16 * widen, 32 * widen, 2, **options)
        self.block3 = Stage(n, 32 * widen, 64 * widen, 2, **options)
        self.bn1 = batch_norm(64 * widen, dtype=dtype, rngs=rngs)
        self.fc = linear_head(64 * widen, num_classes, rngs=rngs)

    def __call__(self, images: jax.Array, *, train: bool, key: jax.Array | None = None) -> dict[str, jax.Array]:
        streams = None if key is None else nnx.Rngs(dropout=key)
        x = self.conv1(images)
        for stage in (self.block1, self.block2, self.block3):
            x = stage(x, train=train, streams=streams)
        x = jax.nn.relu(self.bn1(x, use_running_average=not train))
        features = spatial_mean(x)
        return {"logits": self.fc(features), "features": features}
