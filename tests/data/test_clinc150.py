"""CLINC150: which request goes where, and what is refused. Tokens and ids are those of test_text.py."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from sc_jax import data, files
from sc_jax.data import clinc150, text
from sc_jax.files import InputError

REAL = Path(os.environ.get("SC_JAX_EXTRA_DATA", ""))
needs_real = pytest.mark.skipif(
    not os.environ.get("SC_JAX_EXTRA_DATA") or not any((REAL / name).is_file() for name in clinc150.NAMES),
    reason="SC_JAX_EXTRA_DATA has no file of CLINC150",
)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clinc150")
    clinc150.write_small(folder)
    return folder


def changed(tmp_path, small, **parts):
    content = files.read_json(small / "originals/data_full.json")
    files.write_json(tmp_path / "data_full.json", {**content, **parts})
    return tmp_path


def test_requests_of_no_intent_are_ood_in_test_and_alone_in_outliers(small):
    made = data.load("clinc150", small)
    content = files.read_json(small / "originals/data_full.json")
    assert list(made.splits) == ["train", "validation", "test", "outliers"]
    assert made.class_names == tuple(sorted({intent for _, intent in content["train"]}))
    word = {token: index for index, token in enumerate(made.vocabulary)}
    for split, parts in (("train", ["train"]), ("validation", ["val"]), ("test", ["test", "oos_test"])):
        expected = sorted(
            ([word.get(token, 1) for token in request.split()], intent)
            for part in parts
            for request, intent in content[part]
        )
        of = made.splits[split]
        names = np.array(made.class_names)[of.label].tolist()
        outside = np.zeros(len(of), bool) if of.is_ood is None else of.is_ood
        found = sorted(
            (row[row > 0].tolist(), "oos" if ood else name)
            for row, name, ood in zip(of.inputs, names, outside, strict=True)
        )
        assert found == expected
    assert made.splits["train"].is_ood is None
    assert made.splits["validation"].is_ood is None
    assert made.splits["test"].is_ood.sum() == 40
    assert made.splits["outliers"].is_ood.all()
    ids = np.concatenate([split.example_id for split in made.splits.values()])
    np.testing.assert_array_equal(ids, np.arange(len(ids)))


def test_small_set_can_be_learned_and_is_the_same_each_time(small, tmp_path):
    clinc150.write_small(tmp_path)
    made = data.load("clinc150", tmp_path)
    assert made.fingerprint == data.load("clinc150", small).fingerprint
    test = made.splits["test"]
    told = np.zeros((len(test), made.num_classes))
    for index, token in enumerate(made.vocabulary):
        if token.startswith("intent"):
            told[:, int(token[6])] += (test.inputs == index).sum(1)
    assert np.mean(told.argmax(1)[~test.is_ood] == test.label[~test.is_ood]) > 0.9
    assert (told[test.is_ood] == 0).all()


def test_what_is_not_the_official_file_is_refused(small, tmp_path):
    with pytest.raises(InputError, match=r"8 intents, the official data have 150"):
        clinc150.prepare(small / "originals", tmp_path / "to")
    with pytest.raises(InputError, match=r"data_full\.json: no such file; get it from https"):
        clinc150.prepare(tmp_path, tmp_path / "to")
    with pytest.raises(InputError, match=r"where are its files\?"):
        clinc150.prepare(None, tmp_path / "to")
    for parts, message in (
        ({"val": None}, "is not as CLINC150's file is"),
        ({"val": [["no intent"]]}, "is not as CLINC150's file is"),
        ({"val": [["request", "unheard"]]}, "there is no intent 'unheard' in its train part"),
        ({"train": [["request", "oos"]]}, "oos is an intent"),
    ):
        with pytest.raises(InputError, match=message):
            clinc150.prepare(changed(tmp_path, small, **parts), tmp_path / "to")
    assert not (tmp_path / "to").exists()


def test_counts_are_those_of_the_paper(tmp_path):
    official = {
        part: [[f"{part} {k} {i}", f"intent{k}"] for k in range(150) for i in range(count)]
        for part, count in (("train", 100), ("val", 20), ("test", 30))
    }
    official |= {
        f"oos_{part}": [[f"outside {part} {i}", "oos"] for i in range(count)]
        for part, count in (("train", 100), ("val", 100), ("test", 1_000))
    }
    (tmp_path / "clinc150_data_full.json").write_text(json.dumps(official))
    clinc150.prepare(tmp_path, tmp_path)
    sizes = {name: len(split) for name, split in data.load("clinc150", tmp_path).splits.items()}
    assert sizes == {"train": 15_000, "validation": 3_000, "test": 5_500, "outliers": 200}
    for part, message in (("oos_val", "199 requests out of scope"), ("val", "19 examples of class 0")):
        less = {**official, part: official[part][1:]}
        (tmp_path / "clinc150_data_full.json").write_text(json.dumps(less))
        with pytest.raises(InputError, match=message):
            clinc150.prepare(tmp_path, tmp_path / "to")


@needs_real
def test_real_file(tmp_path):
    clinc150.prepare(REAL, tmp_path)
    made = data.load("clinc150", tmp_path)
    assert (made.splits["test"].is_ood.sum(), made.num_classes) == (1_000, 150)
    unknown = {name: np.mean(split.inputs[split.inputs > 0] == 1) for name, split in made.splits.items()}
    assert unknown["outliers"] > unknown["test"] > unknown["train"]
    assert text.OUTSIDE not in made.splits["test"].label
