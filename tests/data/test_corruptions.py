"""Each corruption is what its name says; labels stay, an image's draws are its own, severities rise."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from sc_jax import data
from sc_jax.data import Split, corruptions
from sc_jax.data.corruptions import CORRUPTIONS, corrupt, corrupt_split
from sc_jax.files import InputError

KEY = jax.random.key(0)
RANDOM = ("gaussian_noise", "shot_noise", "impulse_noise", "motion_blur")
IMAGE = np.random.default_rng(0).random((28, 28, 3)).astype(np.float32)
SEVERITIES = range(1, 6)


@pytest.fixture(scope="module")
def clothes():
    split = data.load("fashion_mnist").splits["test"]
    return Split(split.inputs[:64], split.label[:64], split.example_id[:64])


@functools.cache
def in_colour(name):
    """The program for a batch of images, keys and severities."""
    return jax.jit(jax.vmap(functools.partial(corrupt, name=name)))


@pytest.fixture(scope="module")
def corrupted(clothes):
    """Every family at every severity."""
    return {(name, s): corrupt_split(clothes, name, s, 0, batch_size=64) for name in CORRUPTIONS for s in SEVERITIES}


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_severities_rise_and_labels_stay(clothes, corrupted, name):
    changed = []
    for severity in SEVERITIES:
        copy = corrupted[name, severity]
        assert copy.inputs.dtype == np.uint8
        assert copy.inputs.shape == clothes.inputs.shape
        for field in ("label", "example_id", "group"):
            assert getattr(copy, field) is getattr(clothes, field)
        changed.append(((copy.inputs.astype(float) - clothes.inputs) ** 2).mean())
    assert changed[0] > 0
    assert (np.diff(changed) > 0).all(), changed


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_what_is_random_depends_on_the_seed_and_the_id_alone(clothes, corrupted, name):
    rows = np.array([40, 3, 17])
    few = Split(clothes.inputs[rows], clothes.label[rows], clothes.example_id[rows])
    np.testing.assert_array_equal(corrupt_split(few, name, 3, 0, batch_size=64).inputs, corrupted[name, 3].inputs[rows])
    other = corrupt_split(few, name, 3, 1, batch_size=64).inputs
    assert (other != corrupted[name, 3].inputs[rows]).any() == (name in RANDOM)
    same = Split(clothes.inputs[[0, 0]], clothes.label[:2], clothes.example_id[:2])
    copies = corrupt_split(same, name, 3, 0, batch_size=64).inputs
    assert (copies[0] != copies[1]).any() == (name in RANDOM)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_colour_images_are_jitted_and_mapped(name):
    images = np.random.default_rng(1).integers(0, 256, (5, 12, 10, 3), np.uint8)
    keys = jax.random.split(KEY, 5)
    mapped = in_colour(name)(keys, images, severity=jnp.arange(1, 6))
    assert mapped.dtype == jnp.uint8
    assert mapped.shape == images.shape
    one = np.asarray(corrupt(keys[3], jnp.asarray(images[3]), name, 4)).astype(int)
    assert np.abs(one - mapped[3]).max() <= 1  # rounding
    if name not in RANDOM:  # of three equal channels each is the grey image
        grey = corrupt(KEY, jnp.asarray(images[0, ..., 0]), name, 4)
        three = corrupt(KEY, jnp.asarray(images[0, ..., :1].repeat(3, axis=-1)), name, 4)
        np.testing.assert_array_equal(three, np.asarray(grey)[..., None].repeat(3, axis=-1))


@pytest.mark.parametrize("severity", SEVERITIES)
def test_blurs_are_the_filters_of_scipy(severity):
    deviation = CORRUPTIONS["gaussian_blur"].levels[severity - 1]
    expected = ndimage.gaussian_filter(IMAGE, (deviation, deviation, 0), mode="nearest", radius=(6, 6, 0))
    np.testing.assert_allclose(corruptions.gaussian_blur(KEY, jnp.asarray(IMAGE), deviation), expected, atol=1e-5)

    radius = CORRUPTIONS["defocus_blur"].levels[severity - 1]
    y, x = np.mgrid[-4:5, -4:5]
    disc = np.clip(radius + 0.5 - np.sqrt(y**2 + x**2), 0, 1)
    expected = ndimage.correlate(IMAGE, (disc / disc.sum())[..., None], mode="nearest")
    np.testing.assert_allclose(corruptions.defocus_blur(KEY, jnp.asarray(IMAGE), radius), expected, atol=1e-5)


@pytest.mark.parametrize("name", ["gaussian_blur", "defocus_blur", "motion_blur", "pixelate", "contrast"])
def test_a_plain_image_stays_plain(name):
    plain = jnp.full((5, 12, 10, 3), 137, jnp.uint8)
    corrupted = in_colour(name)(jax.random.split(KEY, 5), plain, severity=jnp.arange(1, 6))
    np.testing.assert_array_equal(corrupted, plain)


def test_motion_blur_is_a_line_of_its_length_at_any_angle():
    point = jnp.zeros((31, 31, 1)).at[15, 15].set(1)
    y, x = np.mgrid[-15:16, -15:16]
    keys = jax.vmap(functools.partial(jax.random.fold_in, KEY))(jnp.arange(200))
    lines = jax.vmap(lambda key: corruptions.motion_blur(key, point, 9))(keys)
    angles = []
    for line in np.asarray(lines)[..., 0]:
        assert line.sum() == pytest.approx(1, abs=1e-5)
        mixed = (line * x * y).sum()
        value, vector = np.linalg.eigh(np.array([[(line * y * y).sum(), mixed], [mixed, (line * x * x).sum()]]))
        assert value[0] < 0.6  # about a pixel wide
        assert 81 / 12 * 0.7 < value[1] < 81 / 12 * 1.4  # the variance of a uniform line of length 9
        angles.append(np.arctan2(*vector[:, 1]) % np.pi)
    counts = np.histogram(angles, 4, (0, np.pi))[0]
    assert counts.min() > 25


def test_noise_has_the_moments_it_should_have():
    grey = jnp.full((200, 200, 1), 0.4)
    noisy = np.asarray(corruptions.gaussian_noise(KEY, grey, 0.1))
    assert noisy.mean() == pytest.approx(0.4, abs=0.002)
    assert noisy.std() == pytest.approx(0.1, abs=0.002)
    shot = np.asarray(corruptions.shot_noise(KEY, grey, 25))
    assert shot.mean() == pytest.approx(0.4, abs=0.003)
    assert shot.std() == pytest.approx((0.4 / 25) ** 0.5, rel=0.03)
    np.testing.assert_allclose(shot * 25, np.round(shot * 25), atol=1e-4)
    impulses = np.asarray(corruptions.impulse_noise(KEY, grey, 0.1))
    assert (impulses == 0).mean() == pytest.approx(0.05, abs=0.005)
    assert (impulses == 1).mean() == pytest.approx(0.05, abs=0.005)
    assert set(np.unique(impulses)) == {np.float32(0), np.float32(0.4), np.float32(1)}


def test_contrast_and_brightness_by_their_formulas():
    image = jnp.asarray(IMAGE)
    changed = np.asarray(corruptions.contrast(KEY, image, 0.4))
    np.testing.assert_allclose(changed.mean(axis=(0, 1)), IMAGE.mean(axis=(0, 1)), rtol=1e-5)
    np.testing.assert_allclose(changed.std(axis=(0, 1)), 0.4 * IMAGE.std(axis=(0, 1)), rtol=1e-4)
    from matplotlib.colors import rgb_to_hsv

    before, after = rgb_to_hsv(IMAGE), rgb_to_hsv(np.asarray(corruptions.brightness(KEY, image, 0.25)))
    np.testing.assert_allclose(after[..., 2], np.minimum(before[..., 2] + 0.25, 1), atol=1e-5)
    np.testing.assert_allclose(after[..., 1], before[..., 1], atol=1e-4)
    black = corruptions.brightness(KEY, jnp.zeros((2, 2, 3)), 0.25)
    np.testing.assert_allclose(black, 0.25)


def test_pixels_are_means_of_boxes():
    halves = np.asarray(corruptions.pixelate(KEY, jnp.asarray(IMAGE), 0.25))
    expected = IMAGE.reshape(7, 4, 7, 4, 3).mean(axis=(1, 3)).repeat(4, axis=0).repeat(4, axis=1)
    np.testing.assert_allclose(halves, expected, atol=1e-5)
    again = corruptions.pixelate(KEY, jnp.asarray(halves), 0.25)
    np.testing.assert_allclose(again, halves, atol=1e-5)
    uneven = np.asarray(corruptions.pixelate(KEY, jnp.asarray(IMAGE[:5, :5]), 0.5))  # two boxes of 2½ pixels a side
    weight = np.array([1, 1, 0.5, 0, 0]) / 2.5
    np.testing.assert_allclose(uneven[0, 0], np.einsum("h,w,hwc->c", weight, weight, IMAGE[:5, :5]), atol=1e-5)


def test_bad_input_is_refused(clothes):
    image = jnp.zeros((4, 4), jnp.uint8)
    for arguments, message in (
        ((image, "jpeg", 1), "no corruption is called 'jpeg'; there are gaussian_noise"),
        ((image, "contrast", 0), "severity 0"),
        ((image, "contrast", 6), "severity 6"),
        ((image.astype(jnp.float32), "contrast", 1), "float32"),
        ((image[0], "contrast", 1), r"uint8 \[4\]"),
    ):
        with pytest.raises(InputError, match=message):
            corrupt(KEY, *arguments)
    with pytest.raises(InputError, match="severity 9"):
        corrupt_split(clothes, "contrast", 9, 0)
    table = Split(np.zeros((2, 3), np.float32), clothes.label[:2], clothes.example_id[:2])
    with pytest.raises(InputError, match="not images"):
        corrupt_split(table, "contrast", 1, 0)
    empty = Split(clothes.inputs[:0], clothes.label[:0], clothes.example_id[:0])
    assert len(corrupt_split(empty, "contrast", 1, 0)) == 0
