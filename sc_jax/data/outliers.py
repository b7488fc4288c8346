"""Test sets with OOD examples among them: classes that were held out, or images of another data set.

    dataset = hold_out(load("fashion_mnist"), (8, 9))                # trains on eight classes, is tested on all ten
    dataset = with_outliers(dataset, images("sklearn_digits"))       # and on handwritten digits

`Split.is_ood` says which they are. Held-out classes look like the others (near OOD); digits among clothes do not (far OOD),
and a detector that tells those apart has shown little. Corrupted copies are neither: see `sc_jax.data.corruptions`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from PIL import Image

from sc_jax import data
from sc_jax.data import Dataset, Split
from sc_jax.files import InputError

DIGITS = "sklearn_digits"
"""The 1,797 digits of scikit-learn."""


def hold_out(dataset: Dataset, classes: Sequence[int], test_split: str = "test") -> Dataset:
    """The data set without some classes; the test split keeps their examples as OOD.

    The other classes are numbered anew in the same order. All other splits lose the examples.

    Args:
      dataset: in memory; classes: labels, at least one, leaving at least two; test_split: its name.

    Returns:
      `Dataset` with `is_ood` in its test split; the label of OOD examples is 0 and counts for nothing.

    Raises:
      InputError: a class or the split is not there, a class is named twice, or fewer than two are left.
    """
    _require_split(dataset, test_split)
    held = sorted(set(classes))
    if not held or len(held) != len(classes) or not 0 <= held[0] <= held[-1] < dataset.num_classes:
        raise InputError(
            f"{dataset.name}: classes {tuple(classes)} cannot be held out; name some of 0..{dataset.num_classes - 1}, each once"
        )
    kept = [i for i in range(dataset.num_classes) if i not in held]
    if len(kept) < 2:
        raise InputError(f"{dataset.name}: {len(kept)} classes are left without {tuple(classes)}; hold out fewer")
    number = np.zeros(dataset.num_classes, np.int32)
    number[kept] = np.arange(len(kept))
    splits = {}
    for name, split in dataset.splits.items():
        known = np.zeros(len(split), bool) if split.is_ood is None else split.is_ood
        outside = np.isin(split.label, held) & ~known
        relabelled = dataclasses.replace(split, label=number[split.label])
        if name == test_split:
            splits[name] = dataclasses.replace(relabelled, is_ood=outside | known)
        else:
            splits[name] = rows(relabelled, ~outside)
    return dataclasses.replace(
        dataset,
        name=f"{dataset.name} without {', '.join(map(str, held))}",
        class_names=tuple(dataset.class_names[i] for i in kept),
        splits=splits,
    )


def with_outliers(dataset: Dataset, outliers: np.ndarray, split: str = "test") -> Dataset:
    """The data set with more images in one of its splits, as OOD; their ids follow the largest there is.

    Args:
      dataset: of images; outliers: uint8 [m, …] of the same shape, not seen in training; split: its name.

    Returns:
      `Dataset`; the label of OOD examples is 0 and counts for nothing.

    Raises:
      InputError: there is no such split, it has groups, or the images have another shape or type.
    """
    _require_split(dataset, split)
    there, m = dataset.splits[split], len(outliers)
    if there.inputs.dtype != outliers.dtype or there.inputs.shape[1:] != outliers.shape[1:]:
        raise InputError(
            f"{dataset.name}: its inputs are {there.inputs.dtype} {list(there.inputs.shape[1:])}, the outliers "
            f"{outliers.dtype} {list(outliers.shape[1:])}; give outliers of the same shape"
        )
    if there.group is not None:
        raise InputError(f"{dataset.name}: the examples of {split} have groups, outliers have none")
    first = 1 + max(int(one.example_id.max(initial=-1)) for one in dataset.splits.values())
    known = np.zeros(len(there), bool) if there.is_ood is None else there.is_ood
    joined = Split(
        np.concatenate([there.inputs, outliers]),
        np.append(there.label, np.zeros(m, np.int32)),
        np.append(there.example_id, first + np.arange(m)),
        is_ood=np.append(known, np.ones(m, bool)),
    )
    return dataclasses.replace(dataset, splits={**dataset.splits, split: joined})


def images(name: str) -> np.ndarray:
    """Images to be outliers: the test split of a data set by its name, or "sklearn_digits".

    Fashion-MNIST's usual outliers are `mnist`, which must be prepared; scikit-learn's digits are in its package, and are
    resized from 8×8 to 28×28 here (bilinear), so that they are smoother than any photograph.

    Args:
      name: of `sc_jax.data.LOADERS`, or `DIGITS`.

    Returns:
      uint8 [m, h, w] or [m, h, w, c].

    Raises:
      InputError: no data set has this name, it is not prepared, or holds no images in memory.
    """
    if name == DIGITS:
        return _digits()
    if name not in data.LOADERS:
        raise data.unknown_name(name, [*data.LOADERS, DIGITS])
    dataset = data.load(name)
    if not isinstance(dataset, Dataset) or dataset.splits["test"].inputs.dtype != np.uint8:
        raise InputError(f"{name}: its test split is not of images that lie in memory; name another data set")
    return dataset.splits["test"].inputs


def _digits() -> np.ndarray:
    from sklearn.datasets import load_digits  # slow to import

    small = np.round(load_digits().images * (255 / 16)).astype(np.uint8)
    return np.stack([np.asarray(Image.fromarray(one).resize((28, 28), Image.Resampling.BILINEAR)) for one in small])


def _require_split(dataset: Dataset, split: str) -> None:
    if split not in dataset.splits:
        raise InputError(f"{dataset.name}: there is no split {split!r}; there are {', '.join(dataset.splits)}")


def rows(split: Split, keep: np.ndarray) -> Split:
    """Some examples of a split.

    Args:
      split: n examples; keep: bool [n], or their rows.
    """
    fields = {field.name: getattr(split, field.name) for field in dataclasses.fields(split)}
    return Split(**{name: None if array is None else array[keep] for name, array in fields.items()})
