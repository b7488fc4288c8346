"""MNIST from idx files; the same code reads Fashion-MNIST, whose files these tests need not have."""

import numpy as np
import pytest

from sc_jax import data
from sc_jax.data import idx, mnist, sources
from sc_jax.files import InputError


def official(**changes):
    """As many digits as in the official files; each image is its own index."""
    arrays = {}
    for part, counts in (("train", mnist.TRAIN_COUNTS), ("t10k", mnist.TEST_COUNTS)):
        label = np.random.default_rng(0).permutation(np.repeat(np.arange(10, dtype=np.uint8), counts))
        image = np.arange(len(label), dtype="<u4").view(np.uint8).reshape(-1, 2, 2)
        arrays |= {f"{part}-images-idx3-ubyte": image, f"{part}-labels-idx1-ubyte": label}
    return arrays | changes


def write(folder, arrays):
    for name, array in arrays.items():
        (folder / name).write_bytes(idx.idx_bytes(array))


def test_counts_are_those_of_all_digits():
    assert (sum(mnist.TRAIN_COUNTS), sum(mnist.TEST_COUNTS)) == (60_000, 10_000)


def test_splits_and_ids(tmp_path):
    write(tmp_path, official())
    assert mnist.prepare(tmp_path, tmp_path / "to") == tmp_path / "to" / "mnist.npz"
    splits = data.load("mnist", tmp_path / "to").splits
    sizes = {name: len(split) for name, split in splits.items()}
    assert sizes == {"train": 55_000, "validation": 5_000, "test": 10_000}
    np.testing.assert_array_equal(splits["validation"].example_id, np.sort(sources.hash_order("mnist", 60_000)[:5_000]))
    np.testing.assert_array_equal(splits["test"].example_id, 60_000 + np.arange(10_000))
    for name, split in splits.items():
        index = split.inputs.reshape(-1).view("<u4")
        np.testing.assert_array_equal(index, split.example_id % 60_000)
        label = official()[f"{'t10k' if name == 'test' else 'train'}-labels-idx1-ubyte"]
        np.testing.assert_array_equal(split.label, label[index])


def test_other_digits_are_refused(tmp_path):
    label = official()["t10k-labels-idx1-ubyte"].copy()
    label[label == 3] = 4
    write(tmp_path, official(**{"t10k-labels-idx1-ubyte": label}))
    with pytest.raises(InputError, match=r"t10k-labels-idx1-ubyte: 0 examples of class 3 .*have 1010"):
        mnist.prepare(tmp_path, tmp_path / "to")
    assert not (tmp_path / "to").exists()


def test_a_missing_file_is_named(tmp_path):
    arrays = official()
    del arrays["train-labels-idx1-ubyte"]
    write(tmp_path, arrays)
    with pytest.raises(InputError, match=r"neither train-labels-idx1-ubyte nor train-labels-idx1-ubyte\.gz"):
        mnist.prepare(tmp_path, tmp_path / "to")


def test_small_set_is_refused_as_the_official_one(tmp_path):
    mnist.write_small(tmp_path)
    assert data.load("mnist", tmp_path).splits["train"].inputs.shape == (220, 28, 28)
    with pytest.raises(InputError, match="24 examples of class 0"):
        mnist.prepare(tmp_path / "originals", tmp_path / "to")
