"""Corruptions of small images at five severities, on the device: covariate shift, under which labels stay what they are.

    corrupted = corrupt(key, image, "gaussian_noise", 3)                     # uint8 [28, 28] or [32, 32, 3]
    batch = jax.vmap(partial(corrupt, name="motion_blur", severity=5))(keys, images)
    split = corrupt_split(dataset.splits["test"], "contrast", 2, seed=0)     # a copy with the same labels and ids

The families are those of ImageNet-C by these names. The severities are ours, for images of about 28 to 64 pixels, and
numbers on them compare with no published table. JPEG, elastic, weather and zoom are left out. A corrupted image is
harder, not OOD: its class is still there, and refusing it is right only where the answer would be wrong.

Source: Hendrycks & Dietterich, "Benchmarking neural network robustness to common corruptions and perturbations", ICLR 2019
(the families, from memory).
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sc_jax.data import Split
from sc_jax.files import InputError


class Family(NamedTuple):
    """A kind of corruption.

    Attributes:
      of: (key, image float32 [h, w, c] in 0..1, level) → the same; values outside 0..1 are clipped afterwards.
      levels: of severity 1 to 5.
      unit: what a level is.
    """

    of: Callable[[jax.Array, jax.Array, float | jax.Array], jax.Array]
    levels: tuple[float, float, float, float, float]
    unit: str


def gaussian_noise(key: jax.Array, image: jax.Array, deviation: float | jax.Array) -> jax.Array:
    """Adds N(0, deviation²) to every value: [h, w, c] → [h, w, c], white = 1."""
    return image + deviation * jax.random.normal(key, image.shape)


def shot_noise(key: jax.Array, image: jax.Array, photons: float | jax.Array) -> jax.Array:
    """Poisson(photons · x)/photons: white is as many photons on average; [h, w, c] → [h, w, c]."""
    return jax.random.poisson(key, photons * image).astype(jnp.float32) / photons


def impulse_noise(key: jax.Array, image: jax.Array, share: float | jax.Array) -> jax.Array:
    """Makes this share of all values black or white, as many each on average: [h, w, c] → [h, w, c]."""
    draw = jax.random.uniform(key, image.shape)
    return jnp.where(draw < share / 2, 0.0, jnp.where(draw < share, 1.0, image))


def gaussian_blur(key: jax.Array, image: jax.Array, deviation: float | jax.Array) -> jax.Array:
    """Convolves with a Gaussian of this deviation, at most 2 pixels, cut at ±6; the key is not used. [h, w, c] → [h, w, c]."""
    kernel = jnp.exp(-0.5 * (jnp.arange(-6, 7) / deviation) ** 2)
    kernel = kernel / jnp.sum(kernel)
    return _filtered(_filtered(image, kernel[:, None]), kernel[None, :])


def defocus_blur(key: jax.Array, image: jax.Array, radius: float | jax.Array) -> jax.Array:
    """Convolves with a disc of this radius, at most 3 pixels, its rim a pixel soft; the key is not used.

    [h, w, c] → [h, w, c].
    """
    disc = jnp.clip(radius + 0.5 - jnp.hypot(*_grid(3)), 0, 1)
    return _filtered(image, disc / jnp.sum(disc))


def motion_blur(key: jax.Array, image: jax.Array, length: float | jax.Array) -> jax.Array:
    """Convolves with a line of this length, at most 9 pixels, through the middle, at an angle uniform over the circle.

    The line is a pixel wide with soft edges. ImageNet-C's has a tail to one side; this one has none. [h, w, c] → [h, w, c].
    """
    angle = jax.random.uniform(key, maxval=math.pi)
    y, x = _grid(5)
    along, across = x * jnp.cos(angle) + y * jnp.sin(angle), y * jnp.cos(angle) - x * jnp.sin(angle)
    line = jnp.clip(length / 2 + 0.5 - jnp.abs(along), 0, 1) * jnp.clip(1 - jnp.abs(across), 0, 1)
    return _filtered(image, line / jnp.sum(line))


def contrast(key: jax.Array, image: jax.Array, factor: float | jax.Array) -> jax.Array:
    """m + factor · (x − m), m the mean of the image in each channel; the key is not used. [h, w, c] → [h, w, c]."""
    mean = jnp.mean(image, axis=(0, 1), keepdims=True)
    return mean + factor * (image - mean)


def brightness(key: jax.Array, image: jax.Array, more: float | jax.Array) -> jax.Array:
    """Raises the value of HSV, the largest channel of a pixel, up to white; the key is not used. [h, w, c] → [h, w, c].

    Hue and saturation stay; of one channel it is x + more.
    """
    value = jnp.max(image, axis=-1, keepdims=True)
    raised = jnp.minimum(value + more, 1.0)
    return jnp.where(value > 0, image * (raised / jnp.where(value > 0, value, 1.0)), raised)


def pixelate(key: jax.Array, image: jax.Array, factor: float | jax.Array) -> jax.Array:
    """Averages over round(factor · side) boxes a side and fills each box with its mean; the key is not used.

    Boxes share the pixels that they cut. [h, w, c] → [h, w, c].
    """
    rows, columns = (_boxes(side, jnp.maximum(1, jnp.round(factor * side))) for side in image.shape[:2])
    return jnp.einsum("ih,jw,hwc->ijc", rows, columns, image, precision="highest")


CORRUPTIONS = {
    "gaussian_noise": Family(gaussian_noise, (0.04, 0.08, 0.14, 0.22, 0.32), "standard deviation, white = 1"),
    "shot_noise": Family(shot_noise, (100, 40, 16, 8, 4), "photons of white"),
    "impulse_noise": Family(impulse_noise, (0.01, 0.03, 0.07, 0.13, 0.22), "share of values"),
    "gaussian_blur": Family(gaussian_blur, (0.4, 0.7, 1.0, 1.4, 2.0), "standard deviation, pixels"),
    "defocus_blur": Family(defocus_blur, (0.7, 1.1, 1.6, 2.2, 3.0), "radius, pixels"),
    "motion_blur": Family(motion_blur, (2, 3, 5, 7, 9), "length, pixels"),
    "contrast": Family(contrast, (0.75, 0.55, 0.4, 0.25, 0.15), "factor"),
    "brightness": Family(brightness, (0.08, 0.16, 0.25, 0.35, 0.5), "added, white = 1"),
    "pixelate": Family(pixelate, (0.8, 0.6, 0.45, 0.35, 0.25), "boxes per pixel of a side"),
}
"""Name → family, with its five severities."""


def corrupt(key: jax.Array, image: jax.Array, name: str, severity: int | jax.Array) -> jax.Array:
    """An image under a corruption; one image, `jax.vmap` makes batches of images, keys and severities.

    Args:
      key: what is random about it depends on this alone.
      image: uint8 [h, w] or [h, w, c].
      name: of `CORRUPTIONS`; severity: 1 to 5, as a number or a scalar array (which is not checked).

    Returns:
      uint8 of the same shape, rounded.

    Raises:
      InputError: no such corruption or severity, or the image is none.

    >>> corrupt(jax.random.key(0), jnp.array([[0, 200]], jnp.uint8), "contrast", 1).tolist()
    [[25, 175]]
    """
    if name not in CORRUPTIONS:
        raise InputError(f"corruptions: no corruption is called {name!r}; there are {', '.join(CORRUPTIONS)}")
    if not isinstance(severity, jax.Array) and severity not in (1, 2, 3, 4, 5):
        raise InputError(f"corruptions: severity {severity!r} of {name}; it is 1, 2, 3, 4 or 5")
    if image.dtype != jnp.uint8 or image.ndim not in (2, 3):
        raise InputError(
            f"corruptions: an image is uint8 [h, w] or [h, w, c]; this is {image.dtype} {list(image.shape)}"
        )
    family = CORRUPTIONS[name]
    unit = image.reshape(*image.shape[:2], -1).astype(jnp.float32) / 255
    level = jnp.asarray(family.levels, jnp.float32)[severity - 1]
    changed = jnp.clip(family.of(key, unit, level), 0, 1)
    return jnp.round(255 * changed).astype(jnp.uint8).reshape(image.shape)


def corrupt_split(split: Split, name: str, severity: int, seed: int, *, batch_size: int = 1024) -> Split:
    """A copy of a split with every image corrupted; labels, ids and groups stay.

    The key of an image is the seed with its example id folded in, so that an image looks the same in every subset.

    Args:
      split: of images; name, severity: as for `corrupt`; seed: of the draws.
      batch_size: images on the device at a time.

    Returns:
      `Split`.

    Raises:
      InputError: as for `corrupt`.
    """
    if split.inputs.dtype != np.uint8:
        raise InputError(f"corruptions: the inputs are {split.inputs.dtype}, not images")
    if severity not in (1, 2, 3, 4, 5):
        raise InputError(f"corruptions: severity {severity!r} of {name}; it is 1, 2, 3, 4 or 5")
    n = len(split)
    images = np.empty_like(split.inputs)
    for start in range(0, n, batch_size):
        rows = np.minimum(np.arange(start, start + batch_size), n - 1)  # the last batch is filled up: one program
        known = min(batch_size, n - start)
        ids = jnp.asarray(split.example_id[rows] % 2**32, jnp.uint32)
        images[start : start + known] = _batch(split.inputs[rows], ids, seed, name, severity)[:known]
    return dataclasses.replace(split, inputs=images)


@functools.partial(jax.jit, static_argnames="name")
def _batch(images: jax.Array, ids: jax.Array, seed: int, name: str, severity: jax.Array) -> jax.Array:
    keys = jax.vmap(functools.partial(jax.random.fold_in, jax.random.key(seed)))(ids)
    return jax.vmap(lambda key, image: corrupt(key, image, name, severity))(keys, images)


def _grid(radius: int) -> tuple[jax.Array, jax.Array]:
    """Rows and columns [2·radius + 1, 2·radius + 1] around 0."""
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    return jnp.asarray(y, jnp.float32), jnp.asarray(x, jnp.float32)


def _filtered(image: jax.Array, kernel: jax.Array) -> jax.Array:
    """Σ_ij kernel_ij · image shifted by (i, j), the edge repeated: [h, w, c], [odd, odd] → [h, w, c].

    A loop over shifts rather than a convolution: kernels may differ between the images of a batch, and XLA's grouped
    convolutions on CPUs are slow.
    """
    h, w, c = image.shape
    rows, columns = kernel.shape
    padded = jnp.pad(image, ((rows // 2, rows // 2), (columns // 2, columns // 2), (0, 0)), mode="edge")

    def add(k: jax.Array, total: jax.Array) -> jax.Array:
        i, j = k // columns, k % columns
        return total + kernel[i, j] * jax.lax.dynamic_slice(padded, (i, j, 0), (h, w, c))

    return jax.lax.fori_loop(0, rows * columns, add, jnp.zeros_like(image))


def _boxes(side: int, count: jax.Array) -> jax.Array:
    """[side, side]: row i takes the mean over the one of `count` boxes that the centre of pixel i is in."""
    pixel = jnp.arange(side, dtype=jnp.float32)
    box = jnp.minimum(jnp.floor((pixel + 0.5) * count / side), count - 1)[:, None]
    low, high = box * side / count, (box + 1) * side / count
    shared = jnp.minimum(high, pixel[None, :] + 1) - jnp.maximum(low, pixel[None, :])
    return jnp.clip(shared, 0) * count / side
