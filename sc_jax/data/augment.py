"""Augmentations of the recipes, on the device: pure functions of a key and a batch, each example with its own draws.

All are for `jax.jit`, and for `jax.vmap` over keys: what a batch becomes is decided by its key alone. The same key moves
images and masks of the same size alike, whatever their channels and types. uint8 stays uint8, so that augmenting comes
before `normalize`; only `mixup` returns floats.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sc_jax.files import InputError


def normalize(images: jax.Array, mean: tuple[float, ...], std: tuple[float, ...]) -> jax.Array:
    """uint8 images → float32, (x/255 − mean)/std.

    Args:
      images: uint8 [b, h, w, c].
      mean, std: of each channel, in units where white is 1.

    Returns:
      float32 [b, h, w, c].
    """
    unit, offset = 255 * np.asarray(std, np.float64), np.asarray(mean, np.float64) / np.asarray(std, np.float64)
    unit, offset = (jnp.asarray(a, jnp.float32)[None, None, None] for a in (unit, offset))
    return images.astype(jnp.float32) / unit - offset


def random_flip(key: jax.Array, images: jax.Array) -> jax.Array:
    """Mirrors each image left to right with probability 1/2.

    Args:
      key: of the batch.
      images: [b, h, w, c].

    Returns:
      Images of the same shape and type.
    """
    flipped = jax.random.bernoulli(key, 0.5, (len(images), 1, 1, 1))
    return jnp.where(flipped, images[:, :, ::-1], images)


def random_crop(key: jax.Array, images: jax.Array, padding: int) -> jax.Array:
    """Pads each side with zeros and cuts the first size out again, at a place uniform over the (2·padding + 1)² there are.

    Args:
      key: of the batch.
      images: [b, h, w, c]; zero is black in uint8, so crop before `normalize`.
      padding: pixels on each side; 4 is usual for CIFAR.

    Returns:
      Images of the same shape and type.

    Source: He et al. (2016), Deep Residual Learning, sec. 4.2.
    """
    b, h, w, c = images.shape
    padded = jnp.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    top, left = jax.random.randint(key, (2, b), 0, 2 * padding + 1)
    return jax.vmap(lambda image, y, x: jax.lax.dynamic_slice(image, (y, x, 0), (h, w, c)))(padded, top, left)


class Boxes(NamedTuple):
    """Rectangles of whole pixels, one an example: int32 [b] each; rows top..top+height−1, columns left..left+width−1."""

    top: jax.Array
    left: jax.Array
    height: jax.Array
    width: jax.Array


def random_boxes(
    key: jax.Array, count: int, height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float]
) -> Boxes:
    """Rectangles inside an image, of random area and shape, as the Inception recipe cuts them.

    A share of the area uniform over `scale` and a width/height log-uniform over `ratio` are drawn up to ten times; the first
    pair that fits is placed uniformly. If none fits, the largest centred rectangle within `ratio` is taken.

    Args:
      key: of the batch.
      count: b.
      height, width: of the image, in pixels.
      scale: smallest and largest share of the image's area.
      ratio: smallest and largest width/height.

    Returns:
      b boxes.

    Source: Szegedy et al. (2015), Going Deeper with Convolutions, sec. 6; the ten draws and what follows them as in
    torchvision's RandomResizedCrop (from memory).
    """
    area_key, ratio_key, place_key = jax.random.split(key, 3)
    area = height * width * jax.random.uniform(area_key, (count, 10), minval=scale[0], maxval=scale[1])
    log_ratio = jax.random.uniform(ratio_key, (count, 10), minval=math.log(ratio[0]), maxval=math.log(ratio[1]))
    heights = jnp.round(jnp.sqrt(area * jnp.exp(-log_ratio))).astype(jnp.int32)
    widths = jnp.round(jnp.sqrt(area * jnp.exp(log_ratio))).astype(jnp.int32)
    fits = (heights >= 1) & (heights <= height) & (widths >= 1) & (widths <= width)
    first, found = jnp.argmax(fits, axis=1), jnp.any(fits, axis=1)
    centred_height = min(height, round(width / ratio[0]))
    centred_width = min(width, round(height * ratio[1]))
    rows = jnp.arange(count)
    box_height = jnp.where(found, heights[rows, first], centred_height)
    box_width = jnp.where(found, widths[rows, first], centred_width)
    free = jnp.stack([height - box_height, width - box_width])
    placed = jnp.floor(jax.random.uniform(place_key, (2, count)) * (free + 1)).astype(jnp.int32)
    top, left = jnp.where(found, jnp.minimum(placed, free), free // 2)
    return Boxes(top, left, box_height, box_width)


def resized_crop(images: jax.Array, boxes: Boxes, size: int, method: str = "bilinear") -> jax.Array:
    """Cuts a box out of each image and resizes it to a square, with antialiasing, as Pillow does.

    Output pixel i is a weighted mean of the box's pixels j with weights K((j + ½ − s·(i + ½))/max(s, 1)), s the box's side
    over `size`: bilinear K(t) = 1 − |t| up to 1, bicubic Keys' kernel with a = −½ up to 2. Columns,
    then rows, are one matrix product each. Pixels outside the box count for nothing.

    Args:
      images: [b, h, w, c].
      boxes: inside the images.
      size: side of what is returned, in pixels.
      method: "bilinear" or "bicubic".

    Returns:
      Images [b, size, size, c] of the same type; uint8 is rounded after each direction.

    Raises:
      InputError: an unknown method.

    Source: Keys (1981), Cubic Convolution Interpolation, with the usual a = −½.
    """
    if method not in _KERNELS:
        raise InputError(f"resized_crop: no method {method!r}; it is one of {', '.join(_KERNELS)}")

    def weights(start: jax.Array, length: jax.Array, pixels: int) -> jax.Array:
        step = length / size
        centre = step * (jnp.arange(size) + 0.5)  # in pixels from the box's edge
        place = jnp.arange(pixels) - start
        t = (place[None] + 0.5 - centre[:, None]) / jnp.maximum(step, 1)
        w = jnp.where(((place >= 0) & (place < length))[None], _KERNELS[method](jnp.abs(t)), 0)
        return w / w.sum(axis=1, keepdims=True)

    def product(equation: str, factors: jax.Array, image: jax.Array) -> jax.Array:
        # A level of a byte is 1/255: bfloat16 or TF32 would show.
        values = jnp.einsum(equation, factors, image.astype(jnp.float32), precision=jax.lax.Precision.HIGHEST)
        return _to_uint8(jnp.floor(values + 0.5)) if image.dtype == jnp.uint8 else values.astype(image.dtype)

    def one(image: jax.Array, box: Boxes) -> jax.Array:
        narrow = product("xw,hwc->hxc", weights(box.left, box.width, image.shape[1]), image)
        return product("yh,hxc->yxc", weights(box.top, box.height, image.shape[0]), narrow)

    return jax.vmap(one)(images, boxes)


_KERNELS = {
    "bilinear": lambda t: jnp.maximum(1 - t, 0),
    "bicubic": lambda t: jnp.where(
        t < 1, (1.5 * t - 2.5) * t**2 + 1, jnp.where(t < 2, ((-0.5 * t + 2.5) * t - 4) * t + 2, 0)
    ),
}


def random_resized_crop(
    key: jax.Array,
    images: jax.Array,
    size: int,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    method: str = "bilinear",
) -> jax.Array:
    """`resized_crop` of `random_boxes`: the crop of ImageNet training, for images of one size.

    Args:
      key: of the batch.
      images: [b, h, w, c].
      size: side of what is returned, in pixels.
      scale, ratio: of `random_boxes`.
      method: of `resized_crop`.

    Returns:
      Images [b, size, size, c] of the same type.
    """
    b, h, w, _ = images.shape
    return resized_crop(images, random_boxes(key, b, h, w, scale, ratio), size, method)


class Mixed(NamedTuple):
    """A batch of pairs: the loss of example i is weight·L(images, label_a) + (1 − weight)·L(images, label_b).

    Attributes:
      images: [b, h, w, c].
      label_a: int [b], the examples' own labels.
      label_b: int [b], those of their partners.
      weight: float32 [b] in [0, 1].
    """

    images: jax.Array
    label_a: jax.Array
    label_b: jax.Array
    weight: jax.Array


def mixup(key: jax.Array, images: jax.Array, labels: jax.Array, alpha: float) -> Mixed:
    """Mixes each image with that of a partner: λ·x_i + (1 − λ)·x_j, λ ~ Beta(alpha, alpha).

    Partners are a random permutation of the batch (an example may get itself); each pair has its own λ.

    Args:
      key: of the batch.
      images: [b, h, w, c]; mixing before `normalize` or after comes to the same.
      labels: int [b].
      alpha: above 0.

    Returns:
      float32 images with both labels and the weight λ.

    Raises:
      InputError: alpha is not above 0.

    Source: Zhang et al. (2018), mixup, eq. 1.
    """
    weight, partner = _pairs(key, len(images), alpha)
    mixed = images.astype(jnp.float32)
    share = weight[:, None, None, None]
    return Mixed(share * mixed + (1 - share) * mixed[partner], labels, labels[partner], weight)


def cutmix(key: jax.Array, images: jax.Array, labels: jax.Array, alpha: float) -> Mixed:
    """Pastes a rectangle of a partner's image into each image, at the same place.

    With λ ~ Beta(alpha, alpha) the rectangle has the sides h·√(1 − λ) and w·√(1 − λ), cut to an even number of pixels, and a
    centre uniform over the image; what sticks out is cut off. The weight is the share of pixels that stay the image's own.

    Args:
      key: of the batch.
      images: [b, h, w, c].
      labels: int [b].
      alpha: above 0; 1 in the paper.

    Returns:
      Images of the same type with both labels and the exact weight.

    Raises:
      InputError: alpha is not above 0.

    Source: Yun et al. (2019), CutMix, eq. 1 and 2; the correction of λ as in the authors' code (from memory).
    """
    b, h, w, _ = images.shape
    pair_key, place_key = jax.random.split(key)
    lam, partner = _pairs(pair_key, b, alpha)
    inside = []
    for axis_key, side in zip(jax.random.split(place_key), (h, w), strict=True):
        half = (side * jnp.sqrt(1 - lam)).astype(jnp.int32) // 2
        centre = jax.random.randint(axis_key, (b,), 0, side)
        place = jnp.arange(side)[None]
        inside.append((place >= (centre - half)[:, None]) & (place < (centre + half)[:, None]))
    pasted = inside[0][:, :, None] & inside[1][:, None]
    weight = 1 - jnp.sum(pasted, axis=(1, 2)).astype(jnp.float32) / (h * w)
    return Mixed(jnp.where(pasted[..., None], images[partner], images), labels, labels[partner], weight)


def _pairs(key: jax.Array, count: int, alpha: float) -> tuple[jax.Array, jax.Array]:
    if not alpha > 0:
        raise InputError(
            f"mixup and cutmix: alpha is {alpha!r}; it must be above 0 (leave the augmentation out instead)"
        )
    weight_key, partner_key = jax.random.split(key)
    return jax.random.beta(weight_key, alpha, alpha, (count,), jnp.float32), jax.random.permutation(partner_key, count)


# RandAugment. Three passes serve all operations, each doing nothing for those it does not concern: one affine gather, one
# blend with a degenerate image, one look-up table. A switch under vmap would compute all fourteen for every example.

OPERATIONS = (
    "identity",
    "auto_contrast",
    "equalize",
    "rotate",
    "solarize",
    "color",
    "posterize",
    "contrast",
    "brightness",
    "sharpness",
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
)
_GREY = 128  # fills what a shift or turn uncovers


def rand_augment(key: jax.Array, images: jax.Array, layers: int, magnitude: float) -> jax.Array:
    """Applies `layers` operations to each image, drawn from the 14 with replacement, all of one magnitude.

    Those with a sign (rotate, shears, translations, and the four enhancements) get it at random.

    Args:
      key: of the batch.
      images: uint8 [b, h, w, c], c 1 or 3.
      layers: N of the paper.
      magnitude: M, from 0 to 30, on the scale of `operate`.

    Returns:
      uint8 [b, h, w, c].

    Raises:
      InputError: images that are not uint8 with 1 or 3 channels, or a magnitude outside 0..30.

    Source: Cubuk et al. (2020), RandAugment, Figure 2.
    """
    operation_key, sign_key = jax.random.split(key)
    operations = jax.random.randint(operation_key, (layers, len(images)), 0, len(OPERATIONS))
    signs = jax.random.rademacher(sign_key, (layers, len(images)), jnp.float32)
    return jax.lax.scan(lambda x, draw: (operate(x, draw[0], magnitude, draw[1]), None), images, (operations, signs))[0]


def operate(images: jax.Array, operation: jax.Array, magnitude: float, sign: jax.Array) -> jax.Array:
    """Applies to each image its operation of RandAugment, with Pillow's arithmetic on bytes.

    With m = magnitude/30 and the sign s: rotation by 30·m·s degrees about the centre, counter-clockwise; shears by 0.3·m·s
    about the upper left corner; translations by 150/331·m·s of the side, cut to whole pixels; enhancement factors
    1 + 0.9·m·s; posterize to 8 − round(4·m) bits; solarize from 256·(1 − m) upwards. Moved pixels take the nearest neighbour, uncovered ones grey 128.
    The scale is torchvision's of 31 bins (from memory), but for solarize, which there starts from 255, so that here nothing
    happens at magnitude 0.

    Args:
      images: uint8 [b, h, w, c], c 1 or 3.
      operation: int [b], places in `OPERATIONS`.
      magnitude: from 0 to 30.
      sign: float32 [b], −1 or 1; operations without a sign ignore it.

    Returns:
      uint8 [b, h, w, c].

    Raises:
      InputError: images that are not uint8 with 1 or 3 channels, or a magnitude outside 0..30.
    """
    if images.dtype != jnp.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3):
        found = f"{images.dtype} {list(images.shape)}"
        raise InputError(f"rand_augment: images are {found}; they must be uint8 [b, h, w, 1 or 3]")
    if not 0 <= magnitude <= 30:
        raise InputError(f"rand_augment: magnitude is {magnitude!r}; it must be from 0 to 30")
    images = jax.vmap(lambda i, o, s: _move(i, o, s * magnitude / 30))(images, operation, sign)
    factor = jnp.where(sign > 0, 1 + 0.9 * magnitude / 30, 1 - 0.9 * magnitude / 30)
    images = jax.vmap(_enhance)(images, operation, factor)
    return jax.vmap(lambda i, o: _recolour(i, o, magnitude / 30))(images, operation)


def _is(operation: jax.Array, *names: str) -> jax.Array:
    return jnp.any(operation == np.array([OPERATIONS.index(name) for name in names]))


def _move(image: jax.Array, operation: jax.Array, level: jax.Array) -> jax.Array:
    """Rotation, shears and translations by a signed level in −1..1; other operations leave the image."""
    h, w, _ = image.shape
    angle = jnp.where(_is(operation, "rotate"), jnp.deg2rad(30.0) * level, 0)
    x_by_y = jnp.where(_is(operation, "shear_x"), 0.3 * level, -jnp.sin(angle))
    y_by_x = jnp.where(_is(operation, "shear_y"), 0.3 * level, jnp.sin(angle))
    dx = jnp.where(_is(operation, "translate_x"), jnp.trunc(150 / 331 * w * level), 0)
    dy = jnp.where(_is(operation, "translate_y"), jnp.trunc(150 / 331 * h * level), 0)
    turned = _is(operation, "rotate")
    cx, cy = jnp.where(turned, w / 2, 0), jnp.where(turned, h / 2, 0)
    x, y = (jnp.arange(w) + 0.5 - cx)[None], (jnp.arange(h) + 0.5 - cy)[:, None]
    column = jnp.floor(jnp.cos(angle) * x + x_by_y * y + cx - dx).astype(jnp.int32)
    row = jnp.floor(y_by_x * x + jnp.cos(angle) * y + cy - dy).astype(jnp.int32)
    inside = (column >= 0) & (column < w) & (row >= 0) & (row < h)
    moved = image[jnp.clip(row, 0, h - 1), jnp.clip(column, 0, w - 1)]
    return jnp.where(inside[..., None], moved, jnp.uint8(_GREY))


def _enhance(image: jax.Array, operation: jax.Array, factor: jax.Array) -> jax.Array:
    """Brightness, colour, contrast and sharpness: d + factor·(x − d), d black, grey, its mean or smoothed; cut to bytes."""
    x = image.astype(jnp.int32)
    grey = _grey(x)
    mean = jnp.broadcast_to(_rounded_ratio(jnp.sum(grey), grey.size), x.shape)
    degenerate = jnp.select(
        [_is(operation, name) for name in ("brightness", "color", "contrast", "sharpness")],
        [jnp.zeros_like(x), jnp.broadcast_to(grey, x.shape), mean, _smooth(x)],
        x,
    )
    blend = degenerate.astype(jnp.float32) + factor * (x - degenerate).astype(jnp.float32)
    return _to_uint8(blend)


def _grey(x: jax.Array) -> jax.Array:
    """Luma of ITU-R 601 in Pillow's 16-bit fixed point: int32 [h, w, c] → [h, w, 1]."""
    if x.shape[-1] == 1:
        return x
    return (jnp.sum(x * np.array([19595, 38470, 7471])[None, None], axis=-1, keepdims=True) + 2**15) >> 16


def _smooth(x: jax.Array) -> jax.Array:
    """Mean of 3×3 pixels, the middle one five times, rounded; the border stays."""
    h, w, _ = x.shape
    if h < 3 or w < 3:
        return x
    total = 4 * x[1:-1, 1:-1] + sum(x[i : h - 2 + i, j : w - 2 + j] for i in range(3) for j in range(3))
    return x.at[1:-1, 1:-1].set(_rounded_ratio(total, 13))


def _recolour(image: jax.Array, operation: jax.Array, level: float) -> jax.Array:
    """Auto-contrast, equalize, solarize and posterize, as one look-up table a channel."""
    h, w, c = image.shape
    pixels = image.reshape(-1, c).T.astype(jnp.int32)  # [c, n]
    value = jnp.broadcast_to(jnp.arange(256), (c, 256))
    bits = 8 - round(4 * level)
    table = jnp.select(
        [_is(operation, name) for name in ("auto_contrast", "equalize", "solarize", "posterize")],
        [
            _stretching(pixels, value),
            _equalizing(pixels, value),
            jnp.where(value < 256 * (1 - level), value, 255 - value),
            value & (256 - 2 ** (8 - bits)),
        ],
        value,
    )
    return jnp.take_along_axis(table, pixels, axis=1).T.reshape(h, w, c).astype(jnp.uint8)


def _stretching(pixels: jax.Array, value: jax.Array) -> jax.Array:
    """Maps the darkest pixel of a channel to 0 and the brightest to 255: ⌊255·(v − low)/(high − low)⌋."""
    low, high = jnp.min(pixels, axis=1, keepdims=True), jnp.max(pixels, axis=1, keepdims=True)
    stretched = jnp.clip(255 * (value - low) // jnp.maximum(high - low, 1), 0, 255)
    return jnp.where(high > low, stretched, value)


def _equalizing(pixels: jax.Array, value: jax.Array) -> jax.Array:
    """Maps a level to the number of darker pixels, in steps of 1/255 of all pixels but those of the brightest level."""
    c = len(pixels)
    count = jnp.zeros((c, 256), jnp.int32).at[jnp.arange(c)[:, None], pixels].add(1)
    brightest = jnp.max(pixels, axis=1, keepdims=True)
    step = jnp.sum(count * (value != brightest), axis=1, keepdims=True) // 255
    darker = jnp.cumsum(count, axis=1) - count
    equalized = jnp.clip((step // 2 + darker) // jnp.maximum(step, 1), 0, 255)
    return jnp.where(step > 0, equalized, value)


def _rounded_ratio(numerator: jax.Array, denominator: int) -> jax.Array:
    return (2 * numerator + denominator) // (2 * denominator)


def _to_uint8(values: jax.Array) -> jax.Array:
    return jnp.clip(values, 0, 255).astype(jnp.uint8)
