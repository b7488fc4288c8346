"""Data sets: named splits of images, labels and example ids, as NumPy arrays.

    dataset = load("fashion_mnist")
    dataset.splits["test"].image        # uint8 [10000, 28, 28]

To add a data set, write a module with a loader `(directory) -> Dataset` and name it in `LOADERS`. `Dataset` checks what
the loader built. If the data must be fetched first, add a function to `sc_jax.data.prepare`.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import os
import pkgutil
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from sc_jax import files
from sc_jax.files import InputError

LOADERS = {
    "fashion_mnist": "sc_jax.data.fashion_mnist:load_subset",
    "fashion_mnist_full": "sc_jax.data.fashion_mnist:load_full",
}
"""Name -> "module:function"; the module is imported when the data set is asked for."""


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """One split: the images, their classes, and the names of the examples.

    Attributes:
      image: uint8 [n, h, w] or [n, h, w, c], 0..255.
      label: int32 [n], 0..num_classes-1.
      example_id: int64 [n], unique over the whole data set.
    """

    image: np.ndarray
    label: np.ndarray
    example_id: np.ndarray

    def __len__(self) -> int:
        return len(self.label)


_DTYPES = {"image": np.uint8, "label": np.int32, "example_id": np.int64}


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """A data set by name, checked when it is made.

    Attributes:
      name: the name it is loaded by.
      class_names: the name of class i at place i.
      splits: "train", "validation" and "test", or those of them there are.

    Raises:
      InputError: an array has the wrong type or length, a label is out of range, or an example id comes twice.
    """

    name: str
    class_names: tuple[str, ...]
    splits: Mapping[str, Split]

    def __post_init__(self) -> None:
        for name, array in self.arrays().items():
            dtype = _DTYPES[name.partition("_")[2]]
            if array.dtype != dtype or (array.ndim not in (3, 4) if dtype == np.uint8 else array.ndim != 1):
                raise InputError(f"{self.name}: {name} is {array.dtype} {list(array.shape)}; see sc_jax.data.Split")
        for name, split in self.splits.items():
            if not len(split.image) == len(split.label) == len(split.example_id):
                raise InputError(f"{self.name}: image, label and example_id of {name} differ in length")
            if len(split) and not 0 <= split.label.min() <= split.label.max() < self.num_classes:
                raise InputError(f"{self.name}: a label of {name} is outside 0..{self.num_classes - 1}")
        ids = np.concatenate([split.example_id for split in self.splits.values()])
        if len(np.unique(ids)) != len(ids):
            raise InputError(f"{self.name}: an example id comes twice; ids are unique over all splits")

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return len(self.class_names)

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the arrays, independent of how they are stored."""
        return files.fingerprint(self.arrays())

    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays by the names they have on disk: `train_image`, `train_label`, `train_example_id`, …"""
        return {f"{name}_{field}": getattr(split, field) for name, split in self.splits.items() for field in _DTYPES}


def from_arrays(name: str, class_names: tuple[str, ...], arrays: Mapping[str, np.ndarray]) -> Dataset:
    """The data set that `Dataset.arrays` was taken of.

    Raises:
      InputError: an array of a split is missing, or `Dataset` refuses them.
    """
    splits = dict.fromkeys(array_name.partition("_")[0] for array_name in arrays)
    missing = [f"{split}_{field}" for split in splits for field in _DTYPES if f"{split}_{field}" not in arrays]
    if missing:
        raise InputError(f"{name}: no array {missing[0]!r}")
    return Dataset(
        name, class_names, {split: Split(*(arrays[f"{split}_{field}"] for field in _DTYPES)) for split in splits}
    )


def data_directory() -> Path:
    """The folder of prepared data sets: the environment variable SC_JAX_DATA, else ~/.cache/sc_jax."""
    return Path(os.path.expanduser(os.environ.get("SC_JAX_DATA") or "~/.cache/sc_jax"))


def load(name: str, directory: str | Path | None = None) -> Dataset:
    """The data set `name`; a prepared one is read from `directory`, by default `data_directory()`.

    Raises:
      InputError: no data set has this name, it is not prepared, or its file is damaged.
    """
    if name not in LOADERS:
        raise unknown_name(name, LOADERS)
    return pkgutil.resolve_name(LOADERS[name])(Path(directory) if directory else data_directory())


def unknown_name(name: str, known: Iterable[str]) -> InputError:
    """The error for a data set that is not among `known`; it lists them and the nearest match."""
    near = difflib.get_close_matches(name, known, n=1)
    return InputError(
        f"no data set is called {name!r}{f'; did you mean {near[0]!r}?' if near else ''} (known: {', '.join(known)})"
    )
