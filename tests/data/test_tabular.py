"""Adult, Bank Marketing and Online Shoppers: encoding, standardisation, splits, and what is refused."""

import csv
import os
from pathlib import Path

import numpy as np
import pytest

from sc_jax import data
from sc_jax.data import sources, tabular
from sc_jax.files import InputError

SETS = {
    "adult": (tabular.ADULT, tabular.prepare_adult, tabular.write_small_adult),
    "bank_marketing": (tabular.BANK_MARKETING, tabular.prepare_bank_marketing, tabular.write_small_bank_marketing),
    "online_shoppers": (tabular.ONLINE_SHOPPERS, tabular.prepare_online_shoppers, tabular.write_small_online_shoppers),
}
REAL = Path(os.environ.get("SC_JAX_EXTRA_DATA", ""), "tabular")
needs_real = pytest.mark.skipif(
    not os.environ.get("SC_JAX_EXTRA_DATA") or not REAL.is_dir(), reason="SC_JAX_EXTRA_DATA/tabular is not there"
)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Name -> the folder of its small set."""
    folders = {}
    for name, (*_, write_small) in SETS.items():
        folders[name] = tmp_path_factory.mktemp(name)
        write_small(folders[name])
    return folders


@pytest.fixture
def anything_is_official(monkeypatch):
    """The number of examples of each class is not looked at."""
    monkeypatch.setattr(sources, "require_counts", lambda *_: None)


def read_plainly(table, folder):
    """Attribute -> its fields in all rows, and the classes; by a reader that knows the formats by heart."""
    lines = []
    for name in filter(None, (table.train, table.test)):
        text = (folder / name).read_text().strip().splitlines()
        if table.header or name == "adult.test":
            text = text[1:]
        lines += csv.reader(text, delimiter=table.delimiter, skipinitialspace=True)
    *fields, label = zip(*lines, strict=True)
    return dict(zip(table.columns, fields, strict=True)), [name.rstrip(".") for name in label]


def test_width_gives_the_parameters_that_the_papers_notebooks_print():
    # Hidden layers of 4d and 2d and one logit: 46.6 K and 9.6 K.
    def parameters(d):
        return d * 4 * d + 4 * d + 4 * d * 2 * d + 2 * d + 2 * d + 1

    assert (tabular.BANK_MARKETING.width, round(parameters(62), -2)) == (62, 46_600)
    assert (tabular.ONLINE_SHOPPERS.width, round(parameters(28), -2)) == (28, 9_600)
    # 6 numbers; 9, 16, 7, 15, 6, 5 and 42 categories; sex.
    assert tabular.ADULT.width == 6 + 9 + 16 + 7 + 15 + 6 + 5 + 42 + 1


def test_encoding_by_hand():
    columns = {"age": (), "sex": ("Female", "Male"), "race": ("a", "b", "?")}
    rows = [("39", "Male", "b"), ("-1.5", "Female", "?")]
    np.testing.assert_array_equal(tabular.encode(rows, columns), [[39, 1, 0, 1, 0], [-1.5, 0, 0, 0, 1]])


def test_standardisation_by_hand():
    train = np.array([[1.0, 0.1], [3.0, 0.1], [2.0, 0.1]])
    expected = [[(5 - 2) / np.sqrt(2 / 3), 1.1 - 0.1], [0, 0]]
    made = tabular.standardise(np.array([[5.0, 1.1], [2.0, 0.1]]), train)
    np.testing.assert_allclose(made, expected, rtol=1e-6, atol=1e-7)
    assert made.dtype == np.float32


@pytest.mark.parametrize("name", SETS)
def test_small_set_is_what_the_definitions_give(name, small):
    table = SETS[name][0]
    made = data.load(name, small[name])
    fields, classes = read_plainly(table, small[name] / "originals")
    columns = []
    for attribute, categories in table.columns.items():
        if not categories:
            columns.append([float(field) for field in fields[attribute]])
        for category in categories[1:] if len(categories) == 2 else categories:
            columns.append([float(field == category) for field in fields[attribute]])
    encoded = np.array(columns).T
    assert encoded.shape[1] == table.width
    size = 320 if name == "adult" else 1_600
    order = sources.hash_order(name, size)
    learn = order if name == "adult" else order[: size // 5]
    ids = {
        "train": sorted(learn[32:]),
        "validation": sorted(learn[:32]),
        "test": range(320, 416) if name == "adult" else sorted(order[size // 5 :]),
    }
    mean, deviation = encoded[ids["train"]].mean(0), encoded[ids["train"]].std(0)
    deviation[deviation < 1e-9] = 1
    for split, index in ids.items():
        part = made.splits[split]
        np.testing.assert_array_equal(part.example_id, index)
        np.testing.assert_array_equal([made.class_names[y] for y in part.label], [classes[i] for i in index])
        np.testing.assert_allclose(part.inputs, (encoded[list(index)] - mean[None]) / deviation[None], 1e-5, 1e-6)
        if name == "adult":
            groups = [f"{fields['sex'][i]}, {fields['race'][i]}" for i in index]
            np.testing.assert_array_equal([made.group_names[g] for g in part.group], groups)
        else:
            assert part.group is None
    assert len(ids["train"]) == 288


@pytest.mark.parametrize("name", SETS)
def test_small_set_is_the_same_each_time_and_can_be_learned(name, small, tmp_path):
    SETS[name][2](tmp_path)
    made = data.load(name, tmp_path)
    assert made.fingerprint == data.load(name, small[name]).fingerprint
    train, test = made.splits["train"], made.splits["test"]
    means = np.stack([train.inputs[train.label == y].mean(0) for y in (0, 1)])
    distance = np.square(test.inputs[:, None] - means[None]).sum(-1)
    assert np.mean(distance.argmin(1) == test.label) > 0.8


def test_test_rows_change_nothing_in_the_train_split(small, tmp_path, anything_is_official):
    before = data.load("online_shoppers", small["online_shoppers"])
    path = small["online_shoppers"] / "originals" / "online_shoppers_intention.csv"
    lines = path.read_text().splitlines()
    for index in before.splits["test"].example_id:
        lines[1 + index] = "999," + lines[1 + index].partition(",")[2]
    (tmp_path / path.name).write_text("\n".join(lines))
    tabular.prepare_online_shoppers(tmp_path, tmp_path)
    after = data.load("online_shoppers", tmp_path)
    np.testing.assert_array_equal(after.splits["train"].inputs, before.splits["train"].inputs)
    assert (after.splits["test"].inputs[:, 0] != before.splits["test"].inputs[:, 0]).any()


@pytest.mark.parametrize("name", SETS)
def test_small_set_is_refused_as_the_official_one(name, small, tmp_path):
    table, prepare, _ = SETS[name]
    with pytest.raises(InputError, match=rf"^{small[name]}/originals/{table.train}: .* examples of class 0 "):
        prepare(small[name] / "originals", tmp_path / "to")
    assert not (tmp_path / "to").exists()


GOOD = (
    "39, State-gov, 77516, Bachelors, 13, Never-married, Adm-clerical, Not-in-family, White, Male, "
    "2174, 0, 40, Cuba, <=50K"
)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (GOOD + ", 1", r"adult\.data:3: 16 fields, expected 15"),
        ("39", r"adult\.data:3: 1 fields, expected 15"),
        (GOOD.replace("<=50K", "50K"), r"adult\.data:3, income: '50K' is none of <=50K, >50K"),
        (GOOD.replace("Cuba", "Atlantis"), r"adult\.data:3, native-country: 'Atlantis' is none of \?, Cambodia"),
        (GOOD.replace("39", "old"), r"adult\.data:3, age: 'old' is not a number"),
        (GOOD.replace("2174", "nan"), r"adult\.data:3, capital-gain: 'nan' is not a number"),
        ("|1x3 Cross validator", r"adult\.data:3: 1 fields"),
        (GOOD.replace("13", "1\xb3"), r"adult\.data:3, education-num: '1³' is not a number"),
    ],
)
def test_wrong_lines_are_refused(line, reason, tmp_path):
    (tmp_path / "adult.data").write_text(f"{GOOD}\n\n{line}\n", encoding="utf-8")
    with pytest.raises(InputError, match=reason):
        tabular.prepare_adult(tmp_path, tmp_path / "to")
    assert not (tmp_path / "to").exists()


def test_wrong_files_are_named(tmp_path):
    with pytest.raises(InputError, match=r"bank-additional-full\.csv: no such file; get .* from https://archive"):
        tabular.prepare_bank_marketing(tmp_path, tmp_path)
    with pytest.raises(InputError, match=r"get adult\.data and adult\.test from .*sc_jax\.data\.prepare adult"):
        tabular.prepare_adult(None, tmp_path)
    path = tmp_path / "bank-additional-full.csv"
    names = (*tabular.BANK_MARKETING.columns, "y")
    path.write_text(";".join(names).replace("contact", "telephone"))
    with pytest.raises(InputError, match=r"csv:1: column 8 is 'telephone', expected 'contact'"):
        tabular.prepare_bank_marketing(tmp_path, tmp_path)
    path.write_text(";".join(names))
    with pytest.raises(InputError, match="no rows"):
        tabular.prepare_bank_marketing(tmp_path, tmp_path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="cannot be read"):
        tabular.prepare_bank_marketing(tmp_path, tmp_path)


def test_quoted_fields_as_in_the_official_bank_file(tmp_path):
    names = (*tabular.BANK_MARKETING.columns, "y")
    header = ";".join(f'"{name}"' for name in names)
    row = (
        '56;"housemaid";"married";"basic.4y";"no";"no";"no";"telephone";"may";"mon";261;1;999;0;"nonexistent";'
        '1.1;93.994;-36.4;4.857;5191;"no"'
    )
    (tmp_path / "bank-additional-full.csv").write_text(f"{header}\r\n{row}\r\n")
    rows, label = tabular.read_table(tmp_path / "bank-additional-full.csv", tabular.BANK_MARKETING)
    np.testing.assert_array_equal(label, [0])
    encoded = dict(enumerate(tabular.encode(rows, tabular.BANK_MARKETING.columns)[0]))
    # age; job 1-12, housemaid the fourth; marital 13-16; education 17-24; default, housing, loan 25-33; contact 34;
    # month 35-44; day 45-49; duration, campaign, pdays, previous 50-53; poutcome 54-56; five numbers.
    hot = {0: 56, 4: 1, 14: 1, 17: 1, 25: 1, 28: 1, 31: 1, 34: 1, 37: 1, 45: 1, 50: 261, 51: 1, 52: 999, 55: 1}
    hot |= {57: 1.1, 58: 93.994, 59: -36.4, 60: 4.857, 61: 5191}
    assert {place: value for place, value in encoded.items() if value} == hot


def test_counts_are_those_of_uci():
    assert {name: [sum(count) for count in table.counts.values()] for name, (table, *_) in SETS.items()} == {
        "adult": [32_561, 16_281],
        "bank_marketing": [41_188],
        "online_shoppers": [12_330],
    }


@needs_real
def test_real_adult(tmp_path):
    tabular.prepare_adult(REAL, tmp_path)
    made = data.load("adult", tmp_path)
    assert {name: part.inputs.shape for name, part in made.splits.items()} == {
        "train": (29_305, 107),
        "validation": (3_256, 107),
        "test": (16_281, 107),
    }
    fields, classes = read_plainly(tabular.ADULT, REAL)
    test = made.splits["test"]
    np.testing.assert_array_equal(test.label, np.array(classes)[test.example_id] == ">50K")
    assert [made.group_names[g].partition(", ")[0] for g in test.group] == list(
        np.array(fields["sex"])[test.example_id]
    )
    # adult.names: 23.93 % of all earn more than 50,000.
    assert round(100 * np.concatenate([part.label for part in made.splits.values()]).mean(), 2) == 23.93
    inputs = made.splits["train"].inputs.astype(np.float64)
    np.testing.assert_allclose(inputs.mean(0), 0, atol=1e-5)
    spread = inputs.std(0)
    np.testing.assert_allclose(spread[spread > 0], 1, rtol=1e-4)
