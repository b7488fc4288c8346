"""Augmentations by their definitions and invariants; the operations of RandAugment, and resizing, against Pillow."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from sc_jax.data import augment
from sc_jax.files import InputError

KEY = jax.random.key(3)


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


JITTED = {
    name: jax.jit(getattr(augment, name), static_argnames=static)
    for name, static in {
        "random_boxes": ("count", "height", "width", "scale", "ratio"),
        "resized_crop": ("size", "method"),
        "random_resized_crop": ("size", "scale", "ratio"),
        "rand_augment": ("layers", "magnitude"),
    }.items()
}


def pictures(count: int = 8, side: int = 32, seed: int = 0) -> np.ndarray:
    """Smooth images with some noise, of differing ranges: flat histograms would hide what equalize does."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side] / side
    waves = [np.sin(2 * np.pi * (a * x + b * y)) for a, b in rng.uniform(-2, 2, (count * 3, 2))]
    images = np.stack(waves, -1).reshape(side, side, count, 3).transpose(2, 0, 1, 3)
    low, high = rng.uniform(0, 90, (count, 1, 1, 3)), rng.uniform(120, 255, (count, 1, 1, 3))
    images = low + (high - low) * (images + 1) / 2 + rng.normal(0, 4, images.shape)
    return np.clip(images, 0, 255).astype(np.uint8)


# What holds of all


AUGMENTATIONS: dict[str, Callable[[jax.Array, Any], Any]] = {
    "random_flip": augment.random_flip,
    "random_crop": lambda key, images: augment.random_crop(key, images, 2),
    "random_resized_crop": lambda key, images: augment.random_resized_crop(key, images, 8),
    "rand_augment": lambda key, images: augment.rand_augment(key, images, 2, 20),
    "mixup": lambda key, images: augment.mixup(key, images, jnp.arange(len(images)), 0.4),
    "cutmix": lambda key, images: augment.cutmix(key, images, jnp.arange(len(images)), 1.0),
}


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_the_key_alone_decides(name: str) -> None:
    function = jax.jit(AUGMENTATIONS[name])
    images, keys = noise(16, 8, 8, 3), jax.random.split(KEY, 2)
    alone = [function(key, images) for key in keys]
    chex.assert_trees_all_equal(alone[0], function(keys[0], images))  # same key, same bits
    pixels = [one.images if isinstance(one, augment.Mixed) else one for one in alone]
    assert not np.array_equal(*pixels)
    together = jax.jit(jax.vmap(AUGMENTATIONS[name], in_axes=(0, None)))(keys, images)
    for i, one in enumerate(alone):
        chex.assert_trees_all_close(jax.tree.map(lambda a, i=i: a[i], together), one, atol=1e-4)
    assert pixels[0].dtype == (jnp.float32 if name == "mixup" else jnp.uint8)
    assert pixels[0].shape == images.shape
    # Each example has its own draws: of the same image many times come different ones, of pairs different weights.
    same = function(KEY, np.broadcast_to(images[:1], images.shape))
    draws = same.weight if isinstance(same, augment.Mixed) else same
    assert len(np.unique(np.asarray(draws).reshape(16, -1), axis=0)) > 1


# Normalisation, flip, crop


def test_normalize_is_its_definition() -> None:
    images, mean, std = noise(2, 4, 4, 3), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    expected = (images / 255 - np.array(mean)) / np.array(std)
    found = augment.normalize(jnp.asarray(images), mean, std)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, atol=2e-6)


def test_flip_mirrors_half_of_the_images() -> None:
    n = 4000
    images = np.broadcast_to(noise(1, 3, 4, 1), (n, 3, 4, 1))
    found = np.asarray(augment.random_flip(KEY, jnp.asarray(images)))
    mirrored = (found == images[:, :, ::-1]).all((1, 2, 3))
    assert ((found == images).all((1, 2, 3)) ^ mirrored).all()
    assert abs(mirrored.mean() - 0.5) < 4 * 0.5 / math.sqrt(n)
    np.testing.assert_array_equal(augment.random_flip(KEY, jnp.asarray(found)), images)  # its own inverse


def test_crop_without_padding_is_the_identity() -> None:
    images = noise(5, 6, 7, 3)
    np.testing.assert_array_equal(augment.random_crop(KEY, jnp.asarray(images), 0), images)


def test_crop_is_a_translate_with_zeros_at_places_drawn_uniformly() -> None:
    n, p, h, w = 5000, 2, 5, 6
    image = noise(1, h, w, 1) | 1  # no zeros of its own
    found = np.asarray(augment.random_crop(KEY, jnp.asarray(np.broadcast_to(image, (n, h, w, 1))), p))
    padded = np.pad(image[0], ((p, p), (p, p), (0, 0)))
    places = [padded[y : y + h, x : x + w] for y in range(2 * p + 1) for x in range(2 * p + 1)]
    hits = np.stack([(found == place).all((1, 2, 3)) for place in places], 1)
    assert (hits.sum(1) == 1).all()
    expected = n / len(places)
    chi_square = ((hits.sum(0) - expected) ** 2 / expected).sum()
    assert chi_square < 60  # 24 degrees of freedom: beyond 60 with probability 6e-5


def test_images_and_masks_move_alike() -> None:
    images = noise(16, 6, 6, 3)
    masks = images[..., :1].astype(np.float32)
    for function in (augment.random_flip, functools.partial(augment.random_crop, padding=2)):
        moved, moved_masks = function(KEY, jnp.asarray(images)), function(KEY, jnp.asarray(masks))
        np.testing.assert_array_equal(moved[..., :1].astype(jnp.float32), moved_masks)


# Random resized crop


def test_boxes_lie_inside_with_area_and_ratio_as_asked() -> None:
    n, h, w, scale, ratio = 4000, 200, 240, (0.08, 1.0), (3 / 4, 4 / 3)
    box = jax.tree.map(np.asarray, JITTED["random_boxes"](KEY, n, h, w, scale, ratio))
    assert (box.top >= 0).all()
    assert (box.left >= 0).all()
    assert (box.top + box.height <= h).all()
    assert (box.left + box.width <= w).all()
    share, shape = box.height * box.width / (h * w), box.width / box.height
    assert share.min() > 0.07
    assert (shape > ratio[0] * 0.97).all()  # sides are rounded to pixels
    assert (shape < ratio[1] * 1.03).all()
    small = share < 0.6  # these fit at any ratio: area is uniform and log ratio symmetric
    assert abs(share[small].mean() - 0.34) < 4 * 0.15 / math.sqrt(small.sum())
    assert abs(np.log(shape[small]).mean()) < 4 * 0.166 / math.sqrt(small.sum())
    free = h - box.height
    assert abs(np.mean(box.top[free > 20] / free[free > 20]) - 0.5) < 4 * 0.3 / math.sqrt((free > 20).sum())


def test_boxes_that_never_fit_fall_back_on_the_centre() -> None:
    """Nothing of ratio 1 covers more than a tenth of a strip of 10 × 100."""
    box = JITTED["random_boxes"](KEY, 3, 10, 100, (0.5, 1.0), (1.0, 1.0))
    chex.assert_trees_all_equal(box, augment.Boxes(*(np.full(3, v, np.int32) for v in (0, 45, 10, 10))))


@pytest.mark.parametrize("method", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [9, 31])
def test_resized_crop_equals_pillow(method: str, size: int) -> None:
    images = noise(4, 24, 30, 3)
    box = augment.Boxes(*(jnp.array(v) for v in ([0, 3, 10, 5], [0, 4, 1, 20], [24, 20, 9, 1], [30, 11, 25, 2])))
    found = np.asarray(JITTED["resized_crop"](jnp.asarray(images), box, size, method)).astype(int)
    for i in range(4):
        top, left, height, width = (int(v[i]) for v in box)
        cut = Image.fromarray(images[i]).crop((left, top, left + width, top + height))
        kernel = getattr(Image, method.upper())
        wide = cut.resize((size, height), kernel)  # which direction Pillow takes first depends on shape and version
        expected = np.asarray(wide.resize((size, size), kernel)).astype(int)
        assert np.abs(found[i] - expected).max() <= 1  # where a half is rounded up or down
        assert (found[i] == expected).mean() > 0.95


def test_resizing_a_whole_image_to_its_size_is_the_identity() -> None:
    images = noise(2, 12, 12, 3)
    found = JITTED["random_resized_crop"](KEY, jnp.asarray(images), 12, (1.0, 1.0), (1.0, 1.0))
    np.testing.assert_array_equal(found, images)
    with pytest.raises(InputError, match="no method 'nearest'"):
        augment.resized_crop(jnp.asarray(images), augment.Boxes(*jnp.ones((4, 2), jnp.int32)), 12, "nearest")


# Mixtures


def test_mixup_is_convex_and_commutes_with_normalisation() -> None:
    images, labels = noise(16, 6, 6, 3), jnp.arange(16)
    mixed = augment.mixup(KEY, jnp.asarray(images), labels, 0.4)
    np.testing.assert_array_equal(mixed.label_a, labels)
    np.testing.assert_array_equal(np.sort(mixed.label_b), labels)  # a permutation of the batch
    own, other = images.astype(np.float32), images[np.asarray(mixed.label_b)].astype(np.float32)
    share = np.asarray(mixed.weight)[:, None, None, None]
    np.testing.assert_allclose(mixed.images, share * own + (1 - share) * other, atol=1e-4)
    normalized = augment.normalize(jnp.asarray(images), (0.4, 0.5, 0.6), (0.2, 0.3, 0.2))
    after = augment.mixup(KEY, normalized, labels, 0.4)
    before = augment.normalize(mixed.images, (0.4, 0.5, 0.6), (0.2, 0.3, 0.2))
    np.testing.assert_allclose(after.images, before, atol=1e-5)


def test_the_weight_is_beta_distributed() -> None:
    n, alpha = 4000, 0.2
    weight = np.asarray(augment.mixup(KEY, jnp.zeros((n, 1, 1, 1)), jnp.zeros(n, jnp.int32), alpha).weight)
    assert ((weight >= 0) & (weight <= 1)).all()
    variance = 1 / (4 * (2 * alpha + 1))
    assert abs(weight.mean() - 0.5) < 4 * math.sqrt(variance / n)
    np.testing.assert_allclose(weight.var(), variance, rtol=0.06)


def test_cutmix_weight_is_the_share_of_own_pixels_and_the_rest_a_rectangle() -> None:
    n, h, w = 16, 12, 17
    images = np.broadcast_to(np.arange(n, dtype=np.uint8)[:, None, None, None], (n, h, w, 3))
    mixed = augment.cutmix(KEY, jnp.asarray(images), jnp.arange(n), 1.0)
    found = np.asarray(mixed.images)
    assert found.dtype == np.uint8
    for i in range(n):
        a, b = int(mixed.label_a[i]), int(mixed.label_b[i])
        assert set(np.unique(found[i])) <= {a, b}
        own = (found[i] == a).mean() if a != b else float(mixed.weight[i])
        np.testing.assert_allclose(mixed.weight[i], own, atol=1e-6)
        if a != b and own < 1:
            rows, columns = np.nonzero(found[i, :, :, 0] == b)
            block = found[i, rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
            assert (block == b).all()
    assert float(np.min(mixed.weight)) >= 0


@pytest.mark.parametrize("mix", [augment.mixup, augment.cutmix])
def test_mixtures_need_a_positive_alpha(mix: Callable[..., Any]) -> None:
    with pytest.raises(InputError, match="alpha is 0"):
        mix(KEY, jnp.zeros((2, 3, 3, 1)), jnp.zeros(2, jnp.int32), 0)


# RandAugment


@functools.partial(jax.jit, static_argnums=2)
def run_operation(images: jax.Array, operation: jax.Array, magnitude: float, sign: jax.Array) -> jax.Array:
    return augment.operate(images, operation, magnitude, sign)


def operated(images: np.ndarray, name: str, magnitude: float, sign: int) -> np.ndarray:
    b = len(images)
    operation = jnp.full(b, augment.OPERATIONS.index(name))
    return np.asarray(run_operation(jnp.asarray(images), operation, magnitude, jnp.full(b, float(sign)))).astype(int)


def by_pillow(image: np.ndarray, name: str, magnitude: float, sign: int) -> np.ndarray:
    m, picture = magnitude / 30, Image.fromarray(image)
    h, w = image.shape[:2]
    shifts = {"translate_x": (150 / 331 * w, 0), "translate_y": (0, 150 / 331 * h)}
    shears = {"shear_x": (1, 0.3 * m * sign, 0, 0, 1, 0), "shear_y": (1, 0, 0, 0.3 * m * sign, 1, 0)}
    if name in ("brightness", "color", "contrast", "sharpness"):
        found = getattr(ImageEnhance, name.capitalize())(picture).enhance(1 + 0.9 * m * sign)
    elif name == "rotate":
        found = picture.rotate(30 * m * sign, fillcolor=(128,) * 3)
    elif name in shears:
        found = picture.transform((w, h), Image.AFFINE, shears[name], fillcolor=(128,) * 3)
    elif name in shifts:
        dx, dy = (int(full * m * sign) for full in shifts[name])
        found = picture.transform((w, h), Image.AFFINE, (1, 0, -dx, 0, 1, -dy), fillcolor=(128,) * 3)
    else:
        found = {
            "identity": lambda: picture,
            "auto_contrast": lambda: ImageOps.autocontrast(picture),
            "equalize": lambda: ImageOps.equalize(picture),
            "solarize": lambda: ImageOps.solarize(picture, 256 * (1 - m)),
            "posterize": lambda: ImageOps.posterize(picture, 8 - round(4 * m)),
        }[name]()
    return np.asarray(found).astype(int)


IMAGES = np.concatenate([pictures(), noise(2, 32, 32, 3), np.full((1, 32, 32, 3), 77, np.uint8)])


@pytest.mark.parametrize("name", augment.OPERATIONS)
def test_operations_equal_pillow(name: str) -> None:
    for magnitude, sign in ((30, 1), (30, -1), (9, 1), (9, -1)):
        found = operated(IMAGES, name, magnitude, sign)
        expected = np.stack([by_pillow(image, name, magnitude, sign) for image in IMAGES])
        if name in ("rotate", "shear_x", "shear_y"):  # Pillow's fixed point takes the other neighbour at some borders
            assert (found == expected).mean() > 0.98
        elif name in ("auto_contrast", "color", "contrast", "sharpness"):
            assert np.abs(found - expected).max() <= 1  # cut to a whole level, where rounding may take one off
            assert (found == expected).mean() > 0.98
        else:
            np.testing.assert_array_equal(found, expected)


def test_auto_contrast_is_exact_where_floats_round() -> None:
    images = IMAGES[:10]
    low, high = images.min((1, 2), keepdims=True).astype(int), images.max((1, 2), keepdims=True).astype(int)
    found = operated(IMAGES, "auto_contrast", 9, 1)[:10]
    np.testing.assert_array_equal(found, 255 * (images - low) // (high - low))
    assert (found.min((1, 2)) == 0).all()
    assert (found.max((1, 2)) == 255).all()


@pytest.mark.parametrize(("name", "sign"), [("rotate", 1), ("rotate", -1), ("shear_x", 1), ("shear_y", -1)])
def test_rotation_and_shear_are_their_definitions(name: str, sign: int) -> None:
    """Nearest neighbour of the inverse map, in float64; pixels within rounding of a border are left out."""
    side, angle = 32, sign * math.radians(30)
    y, x = np.mgrid[:side, :side] + 0.5
    if name == "rotate":
        u, v = x - side / 2, y - side / 2
        column = math.cos(angle) * u - math.sin(angle) * v + side / 2
        row = math.sin(angle) * u + math.cos(angle) * v + side / 2
    else:
        column, row = (x + 0.3 * sign * y, y) if name == "shear_x" else (x, y + 0.3 * sign * x)
    clear = np.ones((side, side), bool)
    for place, moves in ((column, name != "shear_y"), (row, name != "shear_x")):
        clear &= (np.abs(place - np.round(place)) > 1e-4) | (not moves)
    i, j = np.floor(row).astype(int), np.floor(column).astype(int)
    inside = (i >= 0) & (i < side) & (j >= 0) & (j < side)
    nearest = IMAGES[:, np.clip(i, 0, side - 1), np.clip(j, 0, side - 1)]
    expected = np.where(inside[..., None], nearest, 128)
    assert clear.mean() > 0.9
    np.testing.assert_array_equal(operated(IMAGES, name, 30, sign)[:, clear], expected[:, clear])


def test_magnitude_0_changes_nothing_but_histograms() -> None:
    for name in augment.OPERATIONS:
        if name not in ("auto_contrast", "equalize"):
            np.testing.assert_array_equal(operated(IMAGES, name, 0, 1), IMAGES)


def test_grey_images_are_augmented_as_colour_images_without_colour() -> None:
    grey = IMAGES[..., :1]
    colour = np.repeat(grey, 3, axis=-1)
    for name in augment.OPERATIONS:
        np.testing.assert_array_equal(operated(grey, name, 30, -1), operated(colour, name, 30, -1)[..., :1])


def test_layers_are_drawn_uniformly_and_applied_in_turn() -> None:
    n, count = 1400, len(augment.OPERATIONS)
    image = IMAGES[:1, 4:12, 4:12]
    operation, sign = np.repeat(np.arange(count), 2), np.tile([-1.0, 1.0], count)  # all 28 draws there are

    def candidates(images: np.ndarray) -> np.ndarray:
        """Each image by each draw."""
        each = np.repeat(images, 2 * count, axis=0)
        draws = (jnp.asarray(np.tile(column, len(images))) for column in (operation, sign))
        operation_of, sign_of = draws
        return np.asarray(run_operation(jnp.asarray(each), operation_of, 30, sign_of))

    def alike(found: jax.Array, results: np.ndarray) -> np.ndarray:
        """Whether found[i] is results[j], but for rounding."""
        apart = np.abs(np.asarray(found, np.int16)[:, None] - results.astype(np.int16)[None])
        return (apart <= 1).mean((2, 3, 4)) > 0.95

    once, augmented = candidates(np.repeat(image, 2 * count, 0))[: 2 * count], JITTED["rand_augment"]
    hits = alike(augmented(KEY, jnp.asarray(np.broadcast_to(image, (n, *image.shape[1:]))), 1, 30), once)
    assert hits.any(1).all()  # nothing but the 14 operations
    unlike_others = alike(once, once).sum(0) == 1
    assert unlike_others.sum() > 8
    assert np.abs(hits.mean(0)[unlike_others] - 1 / 28).max() < 4 * math.sqrt(1 / 28 / n)
    twice = augmented(KEY, jnp.asarray(np.broadcast_to(image, (64, *image.shape[1:]))), 2, 30)
    assert alike(twice, candidates(once)).any(1).all()


@pytest.mark.parametrize("images", [np.zeros((2, 4, 4, 3), np.float32), np.zeros((2, 4, 4, 2), np.uint8)])
def test_rand_augment_refuses_what_is_no_image_of_bytes(images: np.ndarray) -> None:
    with pytest.raises(InputError, match="must be uint8"):
        augment.rand_augment(KEY, jnp.asarray(images), 1, 9)


def test_rand_augment_refuses_a_magnitude_off_the_scale() -> None:
    with pytest.raises(InputError, match="from 0 to 30"):
        augment.rand_augment(KEY, jnp.zeros((1, 4, 4, 3), jnp.uint8), 1, 31)
