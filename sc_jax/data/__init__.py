"""Data sets: named splits of inputs, labels and example ids.

    dataset = load("fashion_mnist")
    dataset.splits["test"].inputs       # uint8 [10000, 28, 28]

What fits in memory is a `Dataset` of arrays; ImageNet and Cityscapes are a `streams.StreamedDataset`, decoded on the way.
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
from typing import Any

import numpy as np

from sc_jax import files
from sc_jax.files import InputError

LOADERS = {
    "fashion_mnist": "sc_jax.data.fashion_mnist:load_subset",
    "fashion_mnist_full": "sc_jax.data.fashion_mnist:load_full",
    "mnist": "sc_jax.data.mnist:load",
    "cifar10": "sc_jax.data.cifar:load_cifar10",
    "cifar10_jpeg": "sc_jax.data.cifar:load_cifar10_jpeg",
    "cifar10_jpeg_halves": "sc_jax.data.cifar:load_cifar10_jpeg_halves",
    "cifar100": "sc_jax.data.cifar:load_cifar100",
    "imdb": "sc_jax.data.text:load_imdb",
    "sst2": "sc_jax.data.text:load_sst2",
    "trec": "sc_jax.data.text:load_trec",
    "clinc150": "sc_jax.data.clinc150:load",
    "adult": "sc_jax.data.tabular:load_adult",
    "bank_marketing": "sc_jax.data.tabular:load_bank_marketing",
    "online_shoppers": "sc_jax.data.tabular:load_online_shoppers",
    "imagenet": "sc_jax.data.imagenet:load",
    "cityscapes": "sc_jax.data.cityscapes:load",
}
"""Name -> "module:function" of a directory; the module is imported when the data set is asked for."""


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """One split: what goes into a model, the classes, and the names of the examples.

    Attributes:
      inputs: uint8 [n, h, w] or [n, h, w, c], images in 0..255; int32 [n, t], tokens of texts, 0 after the end; or
        float32 [n, d], rows of a table, standardised by the train split.
      label: int32 [n], 0..num_classes-1.
      example_id: int64 [n], unique over the whole data set.
      group: int32 [n], which group an example is of, for reports by group; or None.
      is_ood: bool [n], true where the example is of none of the classes (its label then counts for nothing); or None.
    """

    inputs: np.ndarray
    label: np.ndarray
    example_id: np.ndarray
    group: np.ndarray | None = None
    is_ood: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.label)

    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays by the names they have on disk: inputs are called image, token or row."""
        named = {_KINDS[self.inputs.dtype][0]: self.inputs, "label": self.label, "example_id": self.example_id}
        named |= {"group": self.group, "is_ood": self.is_ood}
        return {name: array for name, array in named.items() if array is not None}


_KINDS = {
    np.dtype(np.uint8): ("image", (3, 4)),
    np.dtype(np.int32): ("token", (2,)),
    np.dtype(np.float32): ("row", (2,)),
}
_INPUTS = [name for name, _ in _KINDS.values()]


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """A data set by name, checked when it is made.

    Attributes:
      name: the name it is loaded by.
      class_names: the name of class i at place i.
      splits: "train", "validation" and "test", or those of them there are.
      group_names: the name of group i at place i, if the splits have groups.
      vocabulary: the token i at place i, of texts.

    Raises:
      InputError: an array has the wrong type or length, a label, group or token has no name, or an example id comes twice.
    """

    name: str
    class_names: tuple[str, ...]
    splits: Mapping[str, Split]
    group_names: tuple[str, ...] = ()
    vocabulary: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, split in self.splits.items():
            kind = _KINDS.get(split.inputs.dtype)
            if kind is None or split.inputs.ndim not in kind[1]:
                found = f"{split.inputs.dtype} {list(split.inputs.shape)}"
                raise InputError(f"{self.name}: inputs of {name} are {found}; see sc_jax.data.Split")
            for field, dtype in (
                ("label", np.int32),
                ("example_id", np.int64),
                ("group", np.int32),
                ("is_ood", np.bool_),
            ):
                array = getattr(split, field)
                if array is None:
                    continue
                if array.dtype != dtype or array.ndim != 1:
                    found = f"{array.dtype} {list(array.shape)}"
                    raise InputError(f"{self.name}: {name}_{field} is {found}; see sc_jax.data.Split")
                if len(array) != len(split.inputs):
                    raise InputError(f"{self.name}: inputs and {field} of {name} differ in length")
            for what, array, names in (
                ("label", split.label, self.class_names),
                ("group", split.group, self.group_names),
                ("token", split.inputs if kind[0] == "token" else None, self.vocabulary),
            ):
                if array is not None and array.size and not 0 <= array.min() <= array.max() < len(names):
                    raise InputError(f"{self.name}: a {what} of {name} is outside 0..{len(names) - 1}")
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
        return {
            f"{name}_{field}": array for name, split in self.splits.items() for field, array in split.arrays().items()
        }


def from_arrays(name: str, class_names: tuple[str, ...], arrays: Mapping[str, np.ndarray], **names: Any) -> Dataset:
    """The data set that `Dataset.arrays` was taken of; `names` are its `group_names` and `vocabulary`.

    Raises:
      InputError: an array of a split is missing, or `Dataset` refuses them.
    """
    splits = {}
    for split in dict.fromkeys(array_name.partition("_")[0] for array_name in arrays):
        found = [kind for kind in _INPUTS if f"{split}_{kind}" in arrays] or _INPUTS[:1]
        missing = [f"{split}_{f}" for f in (found[0], "label", "example_id") if f"{split}_{f}" not in arrays]
        if missing:
            raise InputError(f"{name}: no array {missing[0]!r}")
        fields = (arrays[f"{split}_{field}"] for field in (found[0], "label", "example_id"))
        splits[split] = Split(*fields, group=arrays.get(f"{split}_group"), is_ood=arrays.get(f"{split}_is_ood"))
    return Dataset(name, class_names, splits, **names)


def data_directory() -> Path:
    """The folder of prepared data sets: the environment variable SC_JAX_DATA, else ~/.cache/sc_jax."""
    return Path(os.path.expanduser(os.environ.get("SC_JAX_DATA") or "~/.cache/sc_jax"))


def load(name: str, directory: str | Path | None = None) -> Any:
    """The data set `name`, a `Dataset` or a `streams.StreamedDataset`; a prepared one is read from `directory`, by default `data_directory()`.

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
