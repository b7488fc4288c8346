"""Parameters and multiply-accumulates of the backbones, from the tables of their papers and by no code of `sc_jax`."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import ceil


class Tally:
    """Adds up layers; `side` is that of a layer's square output."""

    def __init__(self) -> None:
        self.parameters = self.macs = 0

    def weights(self, number: int, uses: int = 1) -> None:
        self.parameters += number
        self.macs += number * uses

    def norm(self, channels: int) -> None:
        self.parameters += 2 * channels

    def conv(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        side: int,
        *,
        groups: int = 1,
        norm: bool = True,
        bias: bool = False,
    ) -> None:
        self.weights(kernel**2 * inputs // groups * outputs, side**2)
        self.parameters += 2 * outputs * norm + outputs * bias

    def linear(self, inputs: int, outputs: int, uses: int = 1) -> None:
        self.weights(inputs * outputs, uses)
        self.parameters += outputs


def mlp(widths: Sequence[int]) -> Tally:
    """Dense layers from the inputs to the classes."""
    t = Tally()
    for a, b in pairwise(widths):
        t.linear(a, b)
    return t


def cnn(side: int, widths: Sequence[int], classes: int) -> Tally:
    """3×3 of stride 2, without normalisation."""
    t = Tally()
    for a, b in pairwise(widths):
        side = ceil(side / 2)
        t.conv(a, b, 3, side, norm=False, bias=True)
    t.linear(side**2 * widths[-1], classes)
    return t


def bag_of_words(vocabulary: int, widths: Sequence[int], classes: int) -> Tally:
    """The first layer is a look-up with a bias."""
    t = mlp((*widths, classes))
    t.parameters += vocabulary * widths[0] + widths[0]
    return t


def lstm(vocabulary: int, embedding: int, hidden: int, head: Sequence[int], classes: int, tokens: int) -> Tally:
    """Four gates of the input, of the state and a bias, in both directions; the embedding is a look-up."""
    t = Tally()
    t.parameters += vocabulary * embedding
    for _ in range(2):
        t.linear(embedding + hidden, 4 * hidden, uses=tokens)
    for a, b in pairwise((2 * hidden, *head, classes)):
        t.linear(a, b)
    return t


def resnet_stages(t: Tally, blocks: Sequence[int], bottleneck: bool, base_width: int, side: int, stride: int) -> None:
    """Stem and stages; `side` of the image; stages beyond the output stride `stride` keep their resolution."""
    t.conv(3, 64, 7, side // 2)
    inputs = 64
    for stage, repeats in enumerate(blocks):
        width, out = 64 * 2**stage, (256 if bottleneck else 64) * 2**stage
        small = side // min(4 * 2**stage, stride)
        large = side // min(4 * 2 ** max(stage - 1, 0), stride)
        for i in range(repeats):
            if bottleneck:
                inner = width * base_width // 64
                t.conv(inputs, inner, 1, small if i else large)
                t.conv(inner, inner, 3, small)
                t.conv(inner, out, 1, small)
            else:
                t.conv(inputs, out, 3, small)
                t.conv(out, out, 3, small)
            if inputs != out:
                t.conv(inputs, out, 1, small)
            inputs = out


def resnet(blocks: Sequence[int], bottleneck: bool, base_width: int = 64) -> Tally:
    """He et al. 2016, table 1, with the stride in the bottleneck's 3×3, at 224×224."""
    t = Tally()
    resnet_stages(t, blocks, bottleneck, base_width, 224, 32)
    t.linear(2048 if bottleneck else 512, 1000)
    return t


def deeplab(side: int, classes: int) -> Tally:
    """Chen et al. 2018: ResNet-101 of output stride 16; ASPP; 48 channels of the first stage; two 3×3 of 256 channels."""
    t = Tally()
    resnet_stages(t, (3, 4, 23, 3), True, 64, side, 16)
    high, low = side // 16, side // 4
    t.conv(2048, 256, 1, high)
    for _ in range(3):
        t.conv(2048, 256, 3, high)
    t.conv(2048, 256, 1, 1)  # of the image's mean
    t.conv(5 * 256, 256, 1, high)
    t.conv(256, 48, 1, low)
    t.conv(256 + 48, 256, 3, low)
    t.conv(256, 256, 3, low)
    t.conv(256, classes, 1, low, norm=False, bias=True)
    return t


def resnet_cifar(depth: int) -> Tally:
    """He et al. 2016, section 4.2: 6n + 2 layers, shortcuts without parameters."""
    t = Tally()
    t.conv(3, 16, 3, 32)
    inputs = 16
    for width, side in ((16, 32), (32, 16), (64, 8)):
        for _ in range((depth - 2) // 6):
            t.conv(inputs, width, 3, side)
            t.conv(width, width, 3, side)
            inputs = width
    t.linear(64, 10)
    return t


def wide_resnet(depth: int, widen: int, classes: int) -> Tally:
    """Zagoruyko & Komodakis 2016, table 1: normalisation before the convolutions, and once at the end."""
    t = Tally()
    t.conv(3, 16, 3, 32, norm=False)
    inputs = 16
    for width, side in ((16 * widen, 32), (32 * widen, 16), (64 * widen, 8)):
        for _ in range((depth - 4) // 6):
            t.norm(inputs)
            t.conv(inputs, width, 3, side)
            t.conv(width, width, 3, side, norm=False)
            if inputs != width:
                t.conv(inputs, width, 1, side, norm=False)
            inputs = width
    t.norm(inputs)
    t.linear(inputs, classes)
    return t


def densenet(blocks: Sequence[int], growth: int, classes: int, *, cifar: bool) -> Tally:
    """Huang et al. 2017, table 1 and section 4.1: BC, normalisation before the convolutions."""
    t = Tally()
    channels, side = 2 * growth, 32 if cifar else 56
    t.conv(3, channels, 3 if cifar else 7, 32 if cifar else 112, norm=not cifar)
    for i, layers in enumerate(blocks):
        for _ in range(layers):
            t.norm(channels)
            t.conv(channels, 4 * growth, 1, side)
            t.conv(4 * growth, growth, 3, side, norm=False)
            channels += growth
        t.norm(channels)
        if i + 1 < len(blocks):
            t.conv(channels, channels // 2, 1, side, norm=False)
            channels, side = channels // 2, side // 2
    t.linear(channels, classes)
    return t


def vit(width: int) -> Tally:
    """Dosovitskiy et al. 2021, table 1: 12 layers, 196 patches of 16×16 and a class token."""
    t = Tally()
    t.linear(16 * 16 * 3, width, uses=196)
    t.parameters += width + 197 * width  # class token and positions
    for _ in range(12):
        for a, b in ((width, 3 * width), (width, width), (width, 4 * width), (4 * width, width)):
            t.linear(a, b, uses=197)
        t.macs += 2 * 197**2 * width  # scores, and the mean of values
        t.norm(width)
        t.norm(width)
    t.norm(width)
    t.linear(width, 1000)
    return t


def eights(channels: float) -> int:
    """To the nearest multiple of 8, losing at most a tenth."""
    nearest = int(channels / 8 + 0.5) * 8
    return nearest if nearest >= 0.9 * channels else nearest + 8


def inverted_residuals(
    stages: Sequence[tuple[int, ...]], width: float, depth: float, last: int, side: int, *, squeeze: bool
) -> Tally:
    """Stages of (expansion, channels, repeats, stride, kernel) between a 3×3 of stride 2 and a 1×1."""
    t = Tally()
    inputs, side = eights(32 * width), ceil(side / 2)
    t.conv(3, inputs, 3, side)
    for expansion, channels, repeats, stride, kernel in stages:
        out = eights(channels * width)
        for i in range(ceil(repeats * depth)):
            inner = expansion * inputs
            if expansion > 1:
                t.conv(inputs, inner, 1, side)
            side = ceil(side / stride) if i == 0 else side
            t.conv(inner, inner, kernel, side, groups=inner)
            if squeeze:
                t.linear(inner, inputs // 4)
                t.linear(inputs // 4, inner)
            t.conv(inner, out, 1, side)
            inputs = out
    t.conv(inputs, last, 1, side)
    t.linear(last, 1000)
    return t


def efficientnet(width: float, depth: float, side: int) -> Tally:
    """Tan & Le 2019, table 1, scaled."""
    stages = (
        (1, 16, 1, 1, 3),
        (6, 24, 2, 2, 3),
        (6, 40, 2, 2, 5),
        (6, 80, 3, 2, 3),
        (6, 112, 3, 1, 5),
        (6, 192, 4, 2, 5),
        (6, 320, 1, 1, 3),
    )
    return inverted_residuals(stages, width, depth, eights(1280 * width), side, squeeze=True)


def mobilenetv2(width: float) -> Tally:
    """Sandler et al. 2018, table 2, at 224×224; the last width grows with the others and does not shrink."""
    stages = (
        (1, 16, 1, 1, 3),
        (6, 24, 2, 2, 3),
        (6, 32, 3, 2, 3),
        (6, 64, 4, 2, 3),
        (6, 96, 3, 1, 3),
        (6, 160, 3, 2, 3),
        (6, 320, 1, 1, 3),
    )
    return inverted_residuals(stages, width, 1.0, eights(1280 * max(1.0, width)), 224, squeeze=False)


def msdnet(
    blocks: Sequence[int], channels: int, growth: int, factors: Sequence[int], classes: int, *, imagenet: bool
) -> list[Tally]:
    """Huang et al. 2018, section 4: after every exit, what has been spent on all up to it."""
    t, found = Tally(), []
    sides = [(56 if imagenet else 32) // 2**s for s in range(len(factors))]

    def bottleneck(inputs: int, outputs: int, factor: int, side_in: int, side_out: int) -> None:
        inner = min(inputs, factor * outputs)
        t.conv(inputs, inner, 1, side_in)
        t.conv(inner, outputs, 3, side_out)

    t.conv(3, channels * factors[0], 7 if imagenet else 3, 112 if imagenet else 32)
    for s in range(1, len(factors)):
        t.conv(channels * factors[s - 1], channels * factors[s], 3, sides[s])
    interval = ceil(sum(blocks) / len(factors))
    finest_before = layer = 0
    for block in blocks:
        for _ in range(block):
            finest = layer // interval
            for s in range(finest, len(factors)):
                if s == finest_before:  # no finer scale comes in
                    bottleneck(channels * factors[s], growth * factors[s], factors[s], sides[s], sides[s])
                else:
                    half = growth * factors[s] // 2
                    bottleneck(channels * factors[s], half, factors[s], sides[s], sides[s])
                    bottleneck(channels * factors[s - 1], half, factors[s - 1], sides[s - 1], sides[s])
            channels += growth
            if finest > finest_before:
                for s in range(finest, len(factors)):
                    t.conv(channels * factors[s], channels // 2 * factors[s], 1, sides[s])
                channels //= 2
            finest_before, layer = finest, layer + 1
        coarsest, side = channels * factors[-1], sides[-1]
        width = coarsest if imagenet else 128
        t.conv(coarsest, width, 3, ceil(side / 2))
        t.conv(width, width, 3, ceil(side / 4))
        t.linear(width, classes)
        found.append(Tally())
        found[-1].parameters, found[-1].macs = t.parameters, t.macs
    return found
