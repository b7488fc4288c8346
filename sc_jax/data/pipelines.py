"""What happens to examples on their way to a model: order, augmentation and scaling, on the device."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sc_jax.data import augment


class Targets(NamedTuple):
    """What a batch is to be classified as; after mixup or CutMix each example has two labels.

    Attributes:
      label: int32 [b, …], the heavier of the two.
      other: int32 [b, …], or None.
      weight: float32 [b], of `label`, or None.
    """

    label: jax.Array
    other: jax.Array | None = None
    weight: jax.Array | None = None

    def loss(self, of_label: Callable[[jax.Array], jax.Array]) -> jax.Array:
        """The loss `of_label(label)` [b, …], or weight · of_label(label) + (1 − weight) · of_label(other)."""
        if self.other is None:
            return of_label(self.label)
        return self.weight * of_label(self.label) + (1 - self.weight) * of_label(self.other)


Transform = Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, Targets]]
"""(key, raw inputs [b, …], labels [b, …]) → (what a model takes, targets)."""


@functools.partial(jax.jit, static_argnames="n")
def epoch_order(seed_key: jax.Array, epoch: jax.Array, n: int) -> jax.Array:
    """The order of examples in an epoch, for each seed: a function of (seed, epoch) alone, so it needs no saving.

    Args:
      seed_key: keys [s]; epoch: int []; n: examples.

    Returns:
      int32 [s, n], each row a permutation of 0..n-1.
    """

    def order(key: jax.Array) -> jax.Array:
        return jax.random.permutation(jax.random.fold_in(jax.random.fold_in(key, 1), epoch), n)

    return jax.vmap(order)(seed_key).astype(jnp.int32)


def model_inputs(inputs: jax.Array, mean: Sequence[float], std: Sequence[float]) -> jax.Array:
    """Raw inputs as a model takes them: images normalised to (x / 255 − mean) / std, tokens and rows as they are.

    Args:
      inputs: uint8 [b, h, w] (grey) or [b, h, w, c] images, int32 [b, t] tokens, or float32 [b, d] rows.
      mean, std: in units of 0..1; one number, or one for each channel.

    Returns:
      float32 [b, h, w, c], or `inputs`.
    """
    if inputs.dtype != jnp.uint8:
        return inputs
    images = inputs[..., None] if inputs.ndim == 3 else inputs
    return augment.normalize(images, mean, std)


def evaluation_transform(mean: Sequence[float], std: Sequence[float]) -> Callable[[jax.Array], jax.Array]:
    """`model_inputs` with these constants."""
    return lambda inputs: model_inputs(inputs, mean, std)


def train_transform(
    mean: Sequence[float],
    std: Sequence[float],
    *,
    crop_padding: int = 0,
    resized_crop: Sequence[float] = (),
    flip: bool = False,
    rand_augment: Sequence[int] = (),
    mixup: float = 0.0,
    cutmix: float = 0.0,
    interpolation: str = "bilinear",
) -> Transform:
    """Augmentation and scaling of one seed's batch: crops, flip, RandAugment, normalisation, then mixup or CutMix.

    The arguments are fields of `sc_jax.config.Augmentation`, and `interpolation`, "bilinear" or "bicubic", that of
    `resized_crop`. Where both mixup and CutMix are on, a fair coin picks one of them at each step.
    """

    def transform(key: jax.Array, inputs: jax.Array, labels: jax.Array) -> tuple[jax.Array, Targets]:
        keys = jax.random.split(key, 6)
        images = inputs[..., None] if inputs.dtype == jnp.uint8 and inputs.ndim == 3 else inputs
        if crop_padding:
            images = augment.random_crop(keys[0], images, crop_padding)
        if resized_crop:
            side = images.shape[1]
            images = augment.random_resized_crop(keys[5], images, side, tuple(resized_crop), method=interpolation)
        if flip:
            images = augment.random_flip(keys[1], images)
        if rand_augment:
            images = augment.rand_augment(keys[2], images, *rand_augment)
        images = model_inputs(images, mean, std)
        mixers: list[Any] = [(augment.mixup, mixup)] if mixup else []
        mixers += [(augment.cutmix, cutmix)] if cutmix else []
        if not mixers:
            return images, Targets(labels)
        branches = [functools.partial(mixed, mix, parameter) for mix, parameter in mixers]
        which = jax.random.bernoulli(keys[3]).astype(jnp.int32) if len(branches) == 2 else 0
        return jax.lax.switch(which, branches, keys[4], images, labels)

    return transform


def mixed(
    mix: Callable[..., augment.Mixed], parameter: float, key: jax.Array, images: jax.Array, labels: jax.Array
) -> tuple[jax.Array, Targets]:
    """Images after mixup or CutMix (`mix`, with its parameter), and their two labels, the heavier first."""
    pictures, first, second, weight = mix(key, images, labels, parameter)
    weight = jnp.broadcast_to(weight, labels.shape).astype(jnp.float32)
    heavier = weight >= 0.5
    targets = Targets(
        jnp.where(heavier, first, second), jnp.where(heavier, second, first), jnp.maximum(weight, 1 - weight)
    )
    return pictures, targets
