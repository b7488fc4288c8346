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

OFFICIAL = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
"""The official idx files and the SHA-256 of their decompressed content.

Of the files whose compressed SHA-256 is that by which TFDS 4.9.10 downloads them.
"""

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
      InputError: nothing is there, or it is not the official content.
    """
    return _write(idx.verified(_read(source), OFFICIAL, sources.place(ORIGIN, source)), directory)


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
