"""Augmentation of a batch in memory; what it is made of, and in which order, is tested by the training step."""

import jax
import numpy as np
import pytest

from sc_jax.data import augment, pipelines
from sc_jax.files import InputError

KEY = jax.random.key(3)


def images(n=6, side=16):
    return np.random.default_rng(0).integers(0, 256, (n, side, side, 3), np.uint8)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_crops_are_resized_by_the_interpolation_that_is_asked_for(interpolation):
    transform = pipelines.train_transform((0.5,), (0.25,), resized_crop=(0.2, 0.6), interpolation=interpolation)
    found, targets = transform(KEY, images(), np.arange(6))
    cut = augment.random_resized_crop(jax.random.split(KEY, 6)[5], images(), 16, (0.2, 0.6), method=interpolation)
    np.testing.assert_array_equal(found, augment.normalize(cut, (0.5,), (0.25,)))
    np.testing.assert_array_equal(targets.label, np.arange(6))


def test_interpolations_differ_and_bilinear_is_the_default():
    given = {
        name: np.asarray(
            pipelines.train_transform((0.5,), (0.25,), resized_crop=(0.2, 0.6), **options)(KEY, images(), np.arange(6))[
                0
            ]
        )
        for name, options in (
            ("", {}),
            ("bilinear", {"interpolation": "bilinear"}),
            ("bicubic", {"interpolation": "bicubic"}),
        )
    }
    np.testing.assert_array_equal(given[""], given["bilinear"])
    assert np.abs(given["bilinear"] - given["bicubic"]).max() > 0.1
    with pytest.raises(InputError, match="no method 'nearest'"):
        pipelines.train_transform((0.5,), (0.25,), resized_crop=(0.2, 0.6), interpolation="nearest")(
            KEY, images(), np.arange(6)
        )
