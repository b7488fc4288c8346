"""Multi-scale dense network: one network with a classifier at several depths."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import ceil
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from sc_jax.files import InputError
from sc_jax.models.dropout import Dropout
from sc_jax.models.resnet import batch_norm, convolution, spatial_mean


class MSDNet(nnx.Module):
    """Dense layers at several scales at once, and an exit after every block, which classifies from the coarsest scale.

    Layer l adds to every scale s the channels growth · factors[s]: half by a bottleneck (1×1, then 3×3) of the scale's own
    features, half by one of stride 2 of the next finer scale's; the finest scale has its own alone. A bottleneck's inner
    width is at most factors[s] times its outer. The L layers fall into as many equal stretches as there are scales; at
    the end of each the finest scale is dropped, and 1×1 transitions halve the channels of the others. An exit is two
    3×3 convolutions of stride 2, the mean over places and a linear layer; every convolution is followed by batch
    normalisation and ReLU.

    Defaults are the CIFAR network of three scales, growth 6 and 16 initial channels with exits after 4, 6, …, 16 layers.
    ImageNet's of five exits is blocks=(4, 4, 4, 4, 4), channels=32, growth=16, factors=(1, 2, 4, 4), stem="imagenet" (7×7
    convolution and 3×3 max-pooling, both of stride 2; exits as wide as their input). Initialisation: `convolution`,
    `batch_norm` of `sc_jax.models.resnet`; heads LeCun normal.

    Outputs: "logits" and "features" of the last exit, and "exit_logits" [e, b, k] of all, in order of depth.

    Source: Huang et al. 2018, "Multi-Scale Dense Networks for Resource Efficient Image Classification", sections 4 and 5.
    The paper prints no parameter count and leaves widths of bottlenecks open; these, the exits' places and the ImageNet exits
    follow the PyTorch code that the authors point to (kalviny/MSDNet-PyTorch), whose CIFAR-100 network has the same
    3,067,960 parameters, and whose ImageNet network 32 more than these 23,958,408.

    Raises:
      InputError: another stem.
    """

    member_mapping = "unroll"
    head_parts = ("exits.*.head",)

    def __init__(
        self,
        *,
        input_shape: tuple[int, ...],
        num_classes: int,
        blocks: Sequence[int] = (4, 2, 2, 2, 2, 2, 2),
        channels: int = 16,
        growth: int = 6,
        factors: Sequence[int] = (1, 2, 4),
        stem: Literal["cifar", "imagenet"] = "cifar",
        dropout: float = 0.0,
        dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if stem not in ("cifar", "imagenet"):
            raise InputError(f"model.stem: {stem!r}; take 'cifar' or 'imagenet'")
        self.pool = stem == "imagenet"
        options = {"dtype": dtype, "rngs": rngs}
        widths = [channels * factor for factor in factors]
        first = Convolution(input_shape[-1], widths[0], 7 if self.pool else 3, 2 if self.pool else 1, **options)
        self.stem = nnx.List([first, *(Convolution(a, b, 3, 2, **options) for a, b in pairwise(widths))])

        stretch = ceil(sum(blocks) / len(factors))
        depth, dropped = 0, 0
        self.blocks, self.exits = nnx.List([]), nnx.List([])
        for block in blocks:
            layers = nnx.List([])
            for _ in range(block):
                drop = depth // stretch > dropped
                layers.append(DenseLayer(channels, growth, factors[dropped:], drop=drop, **options))
                channels += growth
                depth += 1
                if drop:
                    dropped += 1
                    layers.append(Transition(channels, channels // 2, factors[dropped:], **options))
                    channels //= 2
            self.blocks.append(layers)
            coarsest = channels * factors[-1]
            self.exits.append(Exit(coarsest, coarsest if self.pool else 128, num_classes, dropout=dropout, **options))

    def __call__(self, inputs: jax.Array, *, train: bool, key: jax.Array | None = None) -> dict[str, jax.Array]:
        streams = None if key is None else nnx.Rngs(dropout=key)
        x = self.stem[0](inputs, train)
        if self.pool:
            x = nnx.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        scales = [x]
        for shrink in self.stem[1:]:
            scales.append(shrink(scales[-1], train))
        exits = []
        for layers, classify in zip(self.blocks, self.exits, strict=True):
            for layer in layers:
                scales = layer(scales, train)
            exits.append(classify(scales[-1], train, streams))
        logits = jnp.stack([one["logits"] for one in exits])
        return {"logits": logits[-1], "features": exits[-1]["features"], "exit_logits": logits}


class Convolution(nnx.Module):
    """Convolution → batch normalisation → ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, *, dtype: Any, rngs: nnx.Rngs):
        self.conv = convolution(inputs, outputs, kernel, stride, dtype=dtype, rngs=rngs)
        self.norm = batch_norm(outputs, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        return jax.nn.relu(self.norm(self.conv(x), use_running_average=not train))


class Bottleneck(nnx.Module):
    """1×1 convolution to at most factor · outputs channels, then 3×3."""

    def __init__(self, inputs: int, outputs: int, factor: int, stride: int, *, dtype: Any, rngs: nnx.Rngs):
        inner = min(inputs, factor * outputs)
        self.narrow = Convolution(inputs, inner, 1, 1, dtype=dtype, rngs=rngs)
        self.wide = Convolution(inner, outputs, 3, stride, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        return self.wide(self.narrow(x, train), train)


class DenseLayer(nnx.Module):
    """One layer over all scales, finest first; with `drop` the finest gives to the next and is not carried on."""

    def __init__(self, channels: int, growth: int, factors: Sequence[int], *, drop: bool, dtype: Any, rngs: nnx.Rngs):
        self.drop = drop
        self.same, self.down = nnx.List([]), nnx.List([])
        for scale, factor in enumerate(factors):
            outputs = growth * factor if scale == 0 else growth * factor // 2
            if scale or not drop:
                self.same.append(Bottleneck(channels * factor, outputs, factor, 1, dtype=dtype, rngs=rngs))
            if scale:
                finer = factors[scale - 1]
                self.down.append(Bottleneck(channels * finer, outputs, finer, 2, dtype=dtype, rngs=rngs))

    def __call__(self, scales: list[jax.Array], train: bool) -> list[jax.Array]:
        kept = scales[1:] if self.drop else scales
        parts = [[x, same(x, train)] for x, same in zip(kept, self.same, strict=True)]
        for part, finer, down in zip(parts[-len(self.down) :], scales, self.down, strict=False):
            part.insert(1, down(finer, train))
        return [jnp.concatenate(part, axis=-1) for part in parts]


class Transition(nnx.Module):
    """A 1×1 convolution of every scale."""

    def __init__(self, inputs: int, outputs: int, factors: Sequence[int], *, dtype: Any, rngs: nnx.Rngs):
        self.convolutions = nnx.List(
            [Convolution(inputs * f, outputs * f, 1, 1, dtype=dtype, rngs=rngs) for f in factors]
        )

    def __call__(self, scales: list[jax.Array], train: bool) -> list[jax.Array]:
        return [convolution(x, train) for convolution, x in zip(self.convolutions, scales, strict=True)]


class Exit(nnx.Module):
    """Two convolutions of stride 2 → mean over places → dropout → logits."""

    def __init__(self, inputs: int, width: int, num_classes: int, *, dropout: float, dtype: Any, rngs: nnx.Rngs):
        self.first = Convolution(inputs, width, 3, 2, dtype=dtype, rngs=rngs)
        self.second = Convolution(width, width, 3, 2, dtype=dtype, rngs=rngs)
        self.dropout = Dropout(dropout)
        self.head = nnx.Linear(width, num_classes, dtype=jnp.float32, rngs=rngs)

    def __call__(self, x: jax.Array, train: bool, streams: nnx.Rngs | None) -> dict[str, jax.Array]:
        features = spatial_mean(self.second(self.first(x, train), train))
        dropped = self.dropout(features, deterministic=not train, rngs=streams)
        return {"logits": self.head(dropped), "features": features}
