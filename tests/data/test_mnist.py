"""MNIST from idx files; the same code reads Fashion-MNIST, whose files these tests need not have."""

import hashlib

import numpy as np
import pytest

from sc_jax import data
from sc_jax.data import idx, mnist, sources
from sc_jax.files import InputError


def made_up():
    """As many digits as in the official files; the first four pixels of each image are its own index."""
    arrays = {}
    for part, size in (("train", 60_000), ("t10k", 10_000)):
        image = np.zeros((size, 28 * 28), np.uint8)
        image[:, :4] = np.arange(size, dtype="<u4").view(np.uint8).reshape(-1, 4)
        arrays[f"{part}-images-idx3-ubyte"] = image.reshape(-1, 28, 28)
        arrays[f"{part}-labels-idx1-ubyte"] = np.random.default_rng(size).integers(0, 10, size, np.uint8)
    return arrays


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder of made-up files, which are taken for the official ones."""
    content = {name: idx.idx_bytes(array) for name, array in made_up().items()}
    monkeypatch.setattr(mnist, "OFFICIAL", {name: hashlib.sha256(data).hexdigest() for name, data in content.items()})
    for name, written in content.items():
        (tmp_path / name).write_bytes(written)
    return tmp_path


def test_the_official_files_are_the_four():
    assert tuple(mnist.OFFICIAL) == idx.NAMES
    assert len(set(mnist.OFFICIAL.values())) == 4


def test_splits_and_ids(folder):
    assert mnist.prepare(folder, folder / "to") == folder / "to" / "mnist.npz"
    splits = data.load("mnist", folder / "to").splits
    sizes = {name: len(split) for name, split in splits.items()}
    assert sizes == {"train": 55_000, "validation": 5_000, "test": 10_000}
    np.testing.assert_array_equal(splits["validation"].example_id, np.sort(sources.hash_order("mnist", 60_000)[:5_000]))
    np.testing.assert_array_equal(splits["test"].example_id, 60_000 + np.arange(10_000))
    official = made_up()
    for name, split in splits.items():
        index = split.inputs.reshape(len(split), -1)[:, :4].copy().view("<u4")[:, 0]
        np.testing.assert_array_equal(index, split.example_id % 60_000)
        label = official[f"{'t10k' if name == 'test' else 'train'}-labels-idx1-ubyte"]
        np.testing.assert_array_equal(split.label, label[index])


@pytest.mark.parametrize("name", idx.NAMES)
def test_one_other_byte_is_refused_and_what_was_prepared_stays(name, folder):
    (folder / "to").mkdir()
    (folder / "to" / "mnist.npz").write_bytes(b"prepared before")
    path = folder / name
    content = bytearray(path.read_bytes())
    content[-1], content[-2] = content[-2] ^ 1, content[-1]
    path.write_bytes(content)
    with pytest.raises(InputError, match=rf"^{folder}: {name} is not the official one: .*get the file again$"):
        mnist.prepare(folder, folder / "to")
    assert (folder / "to" / "mnist.npz").read_bytes() == b"prepared before"


def test_a_missing_file_is_named(folder):
    (folder / "train-labels-idx1-ubyte").unlink()
    with pytest.raises(InputError, match=r"neither train-labels-idx1-ubyte nor train-labels-idx1-ubyte\.gz"):
        mnist.prepare(folder, folder / "to")


def test_small_set_is_refused_as_the_official_one(tmp_path):
    mnist.write_small(tmp_path)
    assert data.load("mnist", tmp_path).splits["train"].inputs.shape == (220, 28, 28)
    with pytest.raises(InputError, match="train-images-idx3-ubyte is not the official one"):
        mnist.prepare(tmp_path / "originals", tmp_path / "to")
