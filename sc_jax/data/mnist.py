"""MNIST: 28x28 grey images of handwritten digits (LeCun, Bottou, Bengio and Haffner, 1998, Proc. IEEE 86(11)).

Official training image i has the id i, official test image i the id 60000 + i. MNIST has no validation split; ours are the
5,000 training images whose SHA-256 of "mnist/<i>" is smallest.
"""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np

from sc_jax import files
from sc_jax.data import Dataset, idx, sources
from sc_jax.data.small import made_up_images

ORIGIN = sources.Origin(
    "mnist",
    ", ".join(f"{name}.gz" for name in idx.NAMES),
    "http://yann.lecun.com/exdb/mnist/",
    "mnist",
)

TRAIN_COUNTS = (5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949)
TEST_COUNTS = (980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009)
"""How often each digit is there in the official files."""

_VALIDATION_SHARE = 12  # 5,000 of 60,000


def load(directory: Path) -> Dataset:
    """55,000 train, 5,000 validation and 10,000 test images, uint8 [n, 28, 28], from `directory`/mnist.npz.

    Raises:
      InputError: it is not prepared, or the file is damaged.
    """
    return sources.read_prepared("mnist", directory)


def prepare(source: Path | None, directory: Path) -> Path:
    """Writes `directory`/mnist.npz from the idx files in `source`, gzipped or not, or from TFDS; returns the path.

    Raises:
      InputError: nothing is there, or the digits are not as often there as in the official files.
    """
    arrays = _read(source)
    for part, counts in (("train", TRAIN_COUNTS), ("t10k", TEST_COUNTS)):
        name = f"{part}-labels-idx1-ubyte"
        sources.require_counts(f"mnist: {name}", arrays[name], counts)
    return _write(arrays, directory)


def write_small(directory: Path) -> Path:
    """Writes 240 training and 60 test images as gzipped idx files in `directory`/originals, and prepares them."""
    for part, size in (("train", 240), ("t10k", 60)):
        label = np.arange(size, dtype=np.uint8) % 10
        image = made_up_images(label, (28, 28), seed=size)
        for name, array in ((f"{part}-images-idx3-ubyte", image), (f"{part}-labels-idx1-ubyte", label)):
            files.write_bytes(directory / "originals" / f"{name}.gz", gzip.compress(idx.idx_bytes(array)))
    return _write(_read(directory / "originals"), directory)


def _read(source: Path | None) -> dict[str, np.ndarray]:
    return sources.read(ORIGIN, source, idx.read_folder, idx.read_tfds)


def _write(arrays: dict[str, np.ndarray], directory: Path) -> Path:
    train, test = (
        (arrays[f"{part}-images-idx3-ubyte"], arrays[f"{part}-labels-idx1-ubyte"]) for part in ("train", "t10k")
    )
    digits = tuple(map(str, range(10)))
    dataset = sources.image_dataset("mnist", digits, train, test, len(train[1]) // _VALIDATION_SHARE)
    return sources.write_prepared(dataset, directory)
