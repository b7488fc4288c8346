"""Residual networks for CIFAR, of depth 6n + 2."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import jax
import jax.numpy as jnp
from flax import nnx

from sc_jax.files import InputError
from sc_jax.models import ensemble_layers as layers
from sc_jax.models.dropout import Dropout
from sc_jax.models.ensemble_layers import InNetwork
from sc_jax.models.resnet import batch_norm, convolution, linear_head, spatial_mean


def member_convolution(
    in_features: int,
    features: int,
    stride: int,
    ensemble: InNetwork | None,
    *,
    grouped: bool = True,
    dtype: jnp.dtype,
    rngs: nnx.Rngs,
) -> nnx.Module:
    """3×3 convolution without bias of every member, or the plain one where there is no ensemble.

    Args:
      in_features, features: channels of one member; stride: in pixels; ensemble: how there are members.
      grouped: whether a packed ensemble's groups divide it; dtype: of the computation; rngs: stream "params".
    """
    if ensemble is not None and ensemble.kind == "packed":
        how = {"size": 3, "strides": stride, "margin": 1, "groups": ensemble.groups if grouped else 1, "bias": False}
        init = nnx.initializers.variance_scaling(2.0, "fan_out", "normal", batch_axis=(0,))
        return layers.PackedConv(in_features, features, ensemble.members, **how, init=init, dtype=dtype, rngs=rngs)
    plain = convolution(in_features, features, 3, stride, dtype=dtype, rngs=rngs)
    if ensemble is not None and ensemble.kind == "batch_ensemble":
        return layers.BatchEnsemble(plain, ensemble.members, bias=False, rngs=rngs)
    return plain


def member_norm(features: int, ensemble: InNetwork | None, *, dtype: jnp.dtype, rngs: nnx.Rngs) -> nnx.Module:
    """Batch normalisation: of every member by its own statistics, of Masksembles one for all, which share all but masks.

    Args:
      features: channels of one member; ensemble, dtype, rngs: as of `member_convolution`.
    """
    if ensemble is None or ensemble.kind == "masksembles":
        return batch_norm(features, dtype=dtype, rngs=rngs)
    return layers.MemberNorm(batch_norm(ensemble.members * features, dtype=dtype, rngs=rngs), ensemble.members)


class Block(nnx.Module):
    """ReLU(x + BN(conv(ReLU(BN(conv(x)))))); where the shapes differ x is subsampled and padded with channels of zeros.

    Half of the zeros come before x and half behind, as in the published weights; the paper says nothing of it.
    """

    def __init__(
        self,
        in_features: int,
        features: int,
        stride: int,
        ensemble: InNetwork | None = None,
        *,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        self.stride, self.margin, self.ensemble = stride, (features - in_features) // 2, ensemble
        self.conv1 = member_convolution(in_features, features, stride, ensemble, dtype=dtype, rngs=rngs)
        self.bn1 = member_norm(features, ensemble, dtype=dtype, rngs=rngs)
        self.conv2 = member_convolution(features, features, 1, ensemble, dtype=dtype, rngs=rngs)
        self.bn2 = member_norm(features, ensemble, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        y = jax.nn.relu(self.bn1(self.conv1(x), use_running_average=not train))
        y = self.bn2(self.conv2(layers.masked(y, self.ensemble)), use_running_average=not train)
        x = x[..., :: self.stride, :: self.stride, :]
        x = jnp.pad(x, (*[(0, 0)] * (x.ndim - 1), (self.margin, self.margin)))
        return layers.masked(jax.nn.relu(y + x), self.ensemble)


class ResNetCIFAR(nnx.Module):
    """3×3 convolution, three stages of n residual blocks of 16, 32 and 64 channels or others, mean over pixels → logits.

    97,216·n − 21,926 parameters with 3 colours and 10 classes: depth 20: 269,722, 32: 464,154, 44: 658,586, 56:
    853,018, 110: 1,727,962. Tensors are named as in the weights of akamaster/pytorch_resnet_cifar10.

    Source: He et al. 2016, "Deep residual learning for image recognition", CVPR, section 4.2, shortcuts without
    parameters (option A).
    Initialisation: `convolution`, `batch_norm`, `linear_head` of `sc_jax.models.resnet`.

    With `ensemble` it has members (`sc_jax.models.ensemble_layers`), all layers being theirs and masks of channels behind every ReLU; each member
    of a packed ensemble or of BatchEnsemble is normalised by its own batch statistics.

    Args:
      input_shape: (h, w, c).
      num_classes: k.
      depth: 6n + 2.
      hidden: channels of the three stages, each as many more than those before that half of the difference is whole.
      dropout: rate before the head; the paper has none.
      dtype: of the computation; parameters, batch statistics and the head are float32.
      ensemble: how there are members; None for one network.
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
        ensemble: InNetwork | None = None,
        rngs: nnx.Rngs,
    ):
        n, rest = divmod(depth - 2, 6)
        if rest or n < 1:
            raise InputError(f"model.depth: {depth} is not 6n + 2; take 20, 32, 44, 56 or 110")

        self.ensemble = ensemble
        hidden = [layers.width_of(width, ensemble) for width in hidden]
        grows = len(hidden) == 3 and all(b >= a and (b - a) % 2 == 0 for a, b in pairwise(hidden))
        if not grows:
            raise InputError(
                f"model.hidden: {tuple(hidden)}; take three widths that grow by even numbers, as (16, 32, 64)"
            )

        def stage(in_features: int, features: int, stride: int) -> nnx.List:
            first = Block(in_features, features, stride, ensemble, dtype=dtype, rngs=rngs)
            more = [Block(features, features, 1, ensemble, dtype=dtype, rngs=rngs) for _ in range(n - 1)]
            return nnx.List([first, *more])

        first, second, third = hidden
        self.conv1 = member_convolution(input_shape[-1], first, 1, ensemble, grouped=False, dtype=dtype, rngs=rngs)
        self.bn1 = member_norm(first, ensemble, dtype=dtype, rngs=rngs)
        self.layer1, self.layer2, self.layer3 = stage(first, first, 1), stage(first, second, 2), stage(second, third, 2)
        self.dropout = Dropout(dropout)
        if ensemble is None:
            self.linear = linear_head(third, num_classes, rngs=rngs)
        else:
            self.linear = layers.linear(third, num_classes, ensemble, dtype=jnp.float32, rngs=rngs)

    def __call__(self, images: jax.Array, *, train: bool, key: jax.Array | None = None) -> dict[str, jax.Array]:
        x = layers.spread(images, self.ensemble)
        x = layers.masked(jax.nn.relu(self.bn1(self.conv1(x), use_running_average=not train)), self.ensemble)
        for block in (*self.layer1, *self.layer2, *self.layer3):
            x = block(x, train=train)
        features = spatial_mean(x)
        x = self.dropout(features, deterministic=not train, rngs=None if key is None else nnx.Rngs(dropout=key))
        return layers.outputs(self.linear(x), features, self.ensemble)
