"""CLINC150: what does a user of an assistant want? 150 intents, and requests for something else.

    dataset = load(directory)
    dataset.splits["test"].is_ood       # bool [5500], true for the 1,000 requests of no intent

S. Larson and others, "An evaluation dataset for intent classification and out-of-scope prediction", EMNLP-IJCNLP 2019,
github.com/clinc/oos-eval, CC BY 3.0. Of each intent there are 100 / 20 / 30 requests in the official splits. Of those outside
1,000 are in the test split; the official 100 + 100 for training and validation are a split of their own, `outliers`, so that what is
trained and fitted sees none unless it asks for them. Texts, tokens and ids are as in `sc_jax.data.text`, 40 tokens a row.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from sc_jax import files
from sc_jax.data import Dataset, sources, text
from sc_jax.data.text import OUTSIDE, Texts
from sc_jax.files import InputError

ORIGIN = sources.Origin("clinc150", "data_full.json", "https://github.com/clinc/oos-eval (folder data)")

NAMES = ("data_full.json", "clinc150_data_full.json")
"""What the file may be called."""

LENGTH = 40

CLASSES = 150

PER_CLASS = {"train": 100, "validation": 20, "test": 30}

_PARTS = {
    "train": ("train",),
    "validation": ("val",),
    "test": ("test", "oos_test"),
    "outliers": ("oos_train", "oos_val"),
}
"""Split → the parts of the file that it takes."""


def load(directory: Path) -> Dataset:
    """15,000 train, 3,000 validation, 5,500 test requests, of which 1,000 are OOD, and 200 `outliers`, of 40 tokens.

    Raises:
      InputError: it is not prepared, or its file is damaged.
    """
    return sources.read_prepared("clinc150", directory)


def prepare(source: Path | None, directory: Path) -> Path:
    """Writes `directory`/clinc150.npz from `data_full.json` in the folder `source`; returns the path.

    Raises:
      InputError: the file is missing or not the official one, or `directory` cannot be written.
    """
    class_names, content = sources.read(ORIGIN, source, read)
    where = sources.place(ORIGIN, source)
    if len(class_names) != CLASSES:
        raise InputError(f"{where}: {len(class_names)} intents, the official data have {CLASSES}; get the file again")
    outside = {"test": 1_000, "outliers": 200}
    for split, texts in content.items():
        label = np.array([label for _, label in texts], np.int64)
        count = int((label == OUTSIDE).sum())
        if count != outside.get(split, 0):
            raise InputError(
                f"{where}, {split}: {count} requests out of scope, the official data have {outside.get(split, 0)}; get the file again"
            )
        sources.require_counts(f"{where}, {split}", label[label != OUTSIDE], (PER_CLASS.get(split, 0),) * CLASSES)
    return text.write("clinc150", class_names, LENGTH, content, directory)


def read(folder: Path) -> tuple[tuple[str, ...], dict[str, Texts]]:
    """The intents in alphabetical order, and the requests of each split.

    Raises:
      InputError: the file is missing, or is not of that form.
    """
    path = next((folder / name for name in NAMES if (folder / name).is_file()), None)
    if path is None:
        raise InputError(f"{folder / NAMES[0]}: no such file; get it from {ORIGIN.page}")
    content = files.read_json(path)
    try:
        parts = {
            split: [(str(request).strip(), str(intent)) for part in parts for request, intent in content[part]]
            for split, parts in _PARTS.items()
        }
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: is not as CLINC150's file is ({error!r}); get the file again") from error
    names = tuple(sorted({intent for _, intent in parts["train"]}))
    place = {name: index for index, name in enumerate(names)} | {"oos": OUTSIDE}
    unknown = next((intent for texts in parts.values() for _, intent in texts if intent not in place), None)
    if "oos" in names or unknown is not None:
        found = "oos is an intent" if "oos" in names else f"there is no intent {unknown!r}"
        raise InputError(f"{path}: {found} in its train part; get the file again")
    return names, {split: [(request, place[intent]) for request, intent in texts] for split, texts in parts.items()}


def write_small(directory: Path) -> None:
    """Prepares 240 train, 40 validation and 120 test requests of 8 intents and none, and 20 outliers, made up."""
    rng = np.random.default_rng(0)
    shared = [f"word{index}" for index in range(60)]

    def request(intent: int | None) -> str:
        own = shared if intent is None else [f"intent{intent}word{index}" for index in range(10)]
        return " ".join(rng.choice(own if rng.random() < 1 / 3 else shared) for _ in range(rng.integers(4, 13)))

    content = {
        part: [(request(index % 8), f"intent{index % 8}") for index in range(size)]
        for part, size in (("train", 240), ("val", 40), ("test", 80))
    }
    content |= {
        f"oos_{part}": [(request(None), "oos") for _ in range(size)]
        for part, size in (("train", 10), ("val", 10), ("test", 40))
    }
    files.write_json(directory / "originals" / NAMES[0], content)
    class_names, texts = read(directory / "originals")
    text.write("clinc150", class_names, LENGTH, texts, directory)
