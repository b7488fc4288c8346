"""Fashion-MNIST: 28x28 grey images of ten kinds of clothing (Xiao, Rasul and Vollgraf, 2017, arXiv:1708.07747).

`fashion_mnist` is a fixed subset inside the package; `fashion_mnist_full` is all of it, fetched by
`python -m sc_jax.data.prepare fashion_mnist`. Both have the same 2,000 validation images and the official test set.
Official training image i has the id i, official test image i the id 60000 + i.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from sc_jax import files
from sc_jax.data import Dataset, from_arrays, idx, sources
from sc_jax.files import InputError

PREPARE = "python -m sc_jax.data.prepare fashion_mnist"
BUILD = "python -m sc_jax.data.build_fashion_mnist"

CLASS_NAMES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)

OFFICIAL = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
"""The official idx files and the SHA-256 of their decompressed content."""

SUBSET_FINGERPRINT = "b31b2c0e8d494be764913176e07c2f7d74bcdd9cd976483e885ae8dc890b5e7c"
FULL_FINGERPRINT = "770a5a428499a5176ad5a20a0919c05916ea7c8118051cb430c2dacc485231c5"

SUBSET_FILE = Path(__file__).parent / "embedded" / "fashion_mnist.npz"
FULL_NAME = "fashion_mnist_full.npz"

_VALIDATION = 2_000
_SUBSET_TRAIN = 12_000
_OFFICIAL_TRAIN = 60_000


def load_subset(directory: Path) -> Dataset:
    """12,000 train, 2,000 validation and 10,000 test images from inside the package; `directory` is not looked at.

    Raises:
      InputError: the file is damaged.
    """
    return _load("fashion_mnist", SUBSET_FILE, SUBSET_FINGERPRINT, f"reinstall sc_jax, or run: {BUILD} --from DIR")


def load_full(directory: Path) -> Dataset:
    """58,000 train, 2,000 validation and 10,000 test images from `directory`/fashion_mnist_full.npz.

    Raises:
      InputError: it is not prepared, or the file is damaged.
    """
    path = directory / FULL_NAME
    remedy = f"run: {sources.prepare_command('fashion_mnist', directory)}"
    if not path.exists():
        raise InputError(f"{path}: the data set is not prepared; {remedy}")
    return _load("fashion_mnist_full", path, FULL_FINGERPRINT, remedy)


def _load(name: str, path: Path, fingerprint: str, remedy: str) -> Dataset:
    try:
        dataset = from_arrays(name, CLASS_NAMES, files.read_npz(path))
    except InputError as error:
        raise InputError(f"{path}: not readable ({error}); {remedy}") from error
    if dataset.fingerprint != fingerprint:
        raise InputError(
            f"{path}: fingerprint {dataset.fingerprint[:12]}… of the arrays, expected {fingerprint[:12]}…; {remedy}"
        )
    return dataset


def subset_arrays(official: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays of `fashion_mnist`, by their names on disk, from the official arrays by file name."""
    return _arrange(official, _SUBSET_TRAIN)


def full_arrays(official: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays of `fashion_mnist_full`, by their names on disk, from the official arrays by file name."""
    return _arrange(official, _OFFICIAL_TRAIN - _VALIDATION)


def _arrange(official: Mapping[str, np.ndarray], train: int) -> dict[str, np.ndarray]:
    order = selection_order()
    rows = {
        "train": ("train", np.sort(order[_VALIDATION : _VALIDATION + train]), 0),
        "validation": ("train", np.sort(order[:_VALIDATION]), 0),
        "test": ("t10k", np.arange(len(official["t10k-labels-idx1-ubyte"])), _OFFICIAL_TRAIN),
    }
    arrays = {}
    for split, (part, row, first_id) in rows.items():
        arrays[f"{split}_image"] = official[f"{part}-images-idx3-ubyte"][row]
        arrays[f"{split}_label"] = official[f"{part}-labels-idx1-ubyte"][row].astype(np.int32)
        arrays[f"{split}_example_id"] = first_id + row.astype(np.int64)
    return arrays


def selection_order() -> np.ndarray:
    """int64 [60000], the official training indices in order of SHA-256 of "fashion_mnist/<index>".

    The first 2,000 are the validation split; the subset trains on the next 12,000, the full set on all others.
    """
    return sources.hash_order("fashion_mnist", _OFFICIAL_TRAIN)


def read_official(folder: str | Path) -> dict[str, np.ndarray]:
    """The four official idx files in `folder`, gzipped or not, by name; their content is verified.

    Raises:
      InputError: a file is missing, is not idx, or is not the official one.
    """
    return verified(idx.read_folder(folder, OFFICIAL), str(folder))


def verified(official: Mapping[str, np.ndarray], origin: str) -> dict[str, np.ndarray]:
    """Returns `official` if it is, bit for bit, what the official idx files hold; `origin` is for the message.

    Raises:
      InputError: names the file whose content differs.
    """
    return idx.verified(official, OFFICIAL, origin)
