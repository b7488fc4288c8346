"""Names, folders and the checks of `Dataset`."""

import dataclasses
import pkgutil
from pathlib import Path

import numpy as np
import pytest

from sc_jax import data
from sc_jax.data import Dataset, Split
from sc_jax.files import InputError


def split(n=3, first=0, **changes):
    arrays = {
        "inputs": np.zeros((n, 2, 2), np.uint8),
        "label": np.arange(n, dtype=np.int32) % 2,
        "example_id": first + np.arange(n, dtype=np.int64),
    }
    return Split(**(arrays | changes))


def test_unknown_name_lists_the_known_and_the_nearest():
    with pytest.raises(InputError, match=r"'fashion-mnist'; did you mean 'fashion_mnist'\? \(known: fashion_mnist, "):
        data.load("fashion-mnist")


def test_every_name_has_a_loader():
    for name in data.LOADERS:
        assert callable(pkgutil.resolve_name(data.LOADERS[name]))


def test_missing_data_set_names_the_command(tmp_path, monkeypatch):
    with pytest.raises(InputError) as caught:
        data.load("fashion_mnist_full", tmp_path / "my data")
    assert "python -m sc_jax.data.prepare fashion_mnist" in str(caught.value)
    assert f"--to '{tmp_path}/my data'" in str(caught.value)
    monkeypatch.setenv("SC_JAX_DATA", str(tmp_path))
    with pytest.raises(InputError, match=r"run: python -m sc_jax\.data\.prepare fashion_mnist$"):
        data.load("fashion_mnist_full")


def test_data_directory(monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.delenv("SC_JAX_DATA", raising=False)
    assert data.data_directory() == Path("/home/someone/.cache/sc_jax")
    monkeypatch.setenv("SC_JAX_DATA", "")
    assert data.data_directory() == Path("/home/someone/.cache/sc_jax")
    monkeypatch.setenv("SC_JAX_DATA", "~/data")
    assert data.data_directory() == Path("/home/someone/data")


INPUTS = {
    "image": np.zeros((3, 2, 2), np.uint8),
    "token": np.ones((3, 4), np.int32),
    "row": np.ones((3, 4), np.float32),
}


@pytest.mark.parametrize("kind", INPUTS)
@pytest.mark.parametrize("group", [None, np.array([0, 1, 1], np.int32)])
def test_arrays_round_trip_with_the_same_fingerprint(kind, group):
    names = {"group_names": ("g", "h"), "vocabulary": ("", "word")}

    def make(first):
        changes = {"inputs": INPUTS[kind], "group": group}
        return Dataset("made", ("a", "b"), {"train": split(**changes), "test": split(first=first, **changes)}, **names)

    made = make(3)
    fields = {kind, "label", "example_id"} | (set() if group is None else {"group"})
    assert set(made.arrays()) == {f"{name}_{field}" for name in ("train", "test") for field in fields}
    again = data.from_arrays("made", ("a", "b"), dict(reversed(made.arrays().items())), **names)
    assert set(again.splits) == {"train", "test"}
    assert again.fingerprint == made.fingerprint != make(4).fingerprint
    np.testing.assert_array_equal(again.splits["test"].inputs, INPUTS[kind], strict=True)
    assert (again.splits["test"].group is None) == (group is None)


def test_outliers_are_kept_with_their_split():
    is_ood = np.array([False, True, False])
    made = Dataset("made", ("a", "b"), {"train": split(), "test": split(first=3, is_ood=is_ood)})
    again = data.from_arrays("made", ("a", "b"), made.arrays())
    assert again.splits["train"].is_ood is None
    np.testing.assert_array_equal(again.splits["test"].is_ood, is_ood)
    assert made.fingerprint != Dataset("made", ("a", "b"), {"train": split(), "test": split(first=3)}).fingerprint


@pytest.mark.parametrize("name", ["train_image", "train_label", "test_example_id"])
def test_a_missing_array_is_named(name):
    made = Dataset("made", ("a", "b"), {"train": split(), "test": split(first=3)})
    with pytest.raises(InputError, match=f"made: no array '{name}'"):
        data.from_arrays("made", ("a", "b"), {key: value for key, value in made.arrays().items() if key != name})


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"inputs": np.zeros((3, 2, 2), np.float32)}, r"inputs of train are float32 \[3, 2, 2\]"),
        ({"inputs": np.zeros((3, 4), np.uint8)}, r"inputs of train are uint8 \[3, 4\]"),
        ({"inputs": np.zeros((3, 4), np.float64)}, r"inputs of train are float64 \[3, 4\]"),
        ({"inputs": np.zeros((4, 2, 2), np.uint8)}, "train differ in length"),
        ({"group": np.zeros(3, np.int64)}, "train_group is int64"),
        ({"group": np.zeros(2, np.int32)}, "inputs and group of train differ in length"),
        ({"is_ood": np.zeros(3, np.int32)}, "train_is_ood is int32"),
        ({"is_ood": np.zeros(2, bool)}, "inputs and is_ood of train differ in length"),
        ({"label": np.zeros(3, np.int64)}, "train_label is int64"),
        ({"label": np.array([0, 1, 2], np.int32)}, r"label of train is outside 0\.\.1"),
        ({"label": np.array([0, 1, -1], np.int32)}, r"label of train is outside 0\.\.1"),
        ({"group": np.array([0, -1, 1], np.int32)}, r"group of train is outside 0\.\.1"),
        ({"group": np.array([0, 1, 2], np.int32)}, r"group of train is outside 0\.\.1"),
        ({"inputs": np.full((3, 4), 10**6, np.int32)}, r"token of train is outside 0\.\.2"),
        ({"inputs": np.full((3, 4), -1, np.int32)}, r"token of train is outside 0\.\.2"),
        ({"example_id": np.array([0, 1, 1])}, "an example id comes twice"),
        ({"example_id": np.array([0, 1, 5])}, "an example id comes twice"),
    ],
)
def test_inconsistent_arrays_are_refused(changes, reason):
    with pytest.raises(InputError, match=reason):
        Dataset("made", ("a", "b"), {"train": split(**changes), "test": split(first=4)}, ("g", "h"), ("", "x", "y"))


def test_a_split_does_not_change():
    with pytest.raises(dataclasses.FrozenInstanceError):
        split().label = np.zeros(3)
