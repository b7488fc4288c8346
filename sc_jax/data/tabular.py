"""Three tables of two classes: Adult, Bank Marketing and Online Shoppers, all from UCI (CC BY 4.0).

    dataset = load_adult(directory)
    dataset.splits["train"].inputs      # float32 [29305, 107]

`adult`: does a person of the US census of 1994 earn more than 50,000 dollars a year? 107 columns; `adult.data` is train
and validation, `adult.test` is test; groups are sex and race. B. Becker and R. Kohavi, 1996, doi:10.24432/C5XW20,
archive.ics.uci.edu/dataset/2/adult. "?" (missing) is a category of its own. All 14 attributes are kept: also sex and
race, which a study of groups may want to know, and the sampling weight `fnlwgt`.

`bank_marketing`: does a client take the deposit that a bank offers by telephone? 62 columns of
`bank-additional-full.csv`, 41,188 calls. S. Moro, P. Cortez and P. Rita, "A data-driven approach to predict the success
of bank telemarketing", Decision Support Systems 62, 2014, doi:10.24432/C5K306,
archive.ics.uci.edu/dataset/222/bank+marketing. `duration` is known only when the call is over, so no forecast could use
it: a leak, kept because the published figures have it.

`online_shoppers`: does a visit to a shop end in a purchase? 28 columns of `online_shoppers_intention.csv`, 12,330
visits. C. O. Sakar and others, "Real-time prediction of online shoppers' purchasing intention", Neural Computing and
Applications 31, 2019, doi:10.24432/C5F88Q,
archive.ics.uci.edu/dataset/468/online+shoppers+purchasing+intention+dataset.

The last two follow Xia et al. (ICLR 2025, arXiv:2403.14715), whose code takes both from torch-uncertainty with
`test_split=0.8`: four fifths are *test*, one fifth is for training. The columns are theirs (with hidden layers of 4d
and 2d, d = 62 and 28 give the 46.6 K and 9.6 K parameters that their notebooks print), with these differences:

- They draw the test rows by PyTorch's generator, we by `sources.hash_order`: other rows. A fifth of 12,330 is 2,466,
  theirs rounds to 2,465.
- A tenth of the rows that are not for test is our validation split; they have none, and validate on the test rows.
- They standardise by the mean and SD of all rows, test included; we by those of the train split.
- Their `contact` is 0 in every row, as neither "cellular" nor "telephone" equals "yes"; ours tells them apart.

Encoding: a number is one column, an attribute of two categories is one column (1: the second), one of k > 2 is k
columns. Then every column, 0/1 or not, becomes (x − mean) / SD of the train split (SD with divisor n; 1 where it is 0),
in float64, kept as float32. The categories are those that UCI documents or the file has, so that d is a constant; any
other is refused.

The id of a row is its place in the files, from 0, `adult.test` after `adult.data`.
"""

from __future__ import annotations

import csv
import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from sc_jax import files
from sc_jax.data import Dataset, Split, sources
from sc_jax.data.sources import Origin
from sc_jax.files import InputError

Rows = list[tuple[str, ...]]

_SHOWN = 40  # characters of a wrong field in a message


@dataclasses.dataclass(frozen=True)
class Table:
    """The format of the files of one data set.

    Attributes:
      origin: where they come from; `origin.dataset` is the name.
      train: the file of the rows to learn from; without `test`, of all rows.
      test: the file of the test rows, or None: then four fifths of all rows are test.
      delimiter: between fields.
      header: the first line names the columns.
      columns: attribute -> its categories, or () for a number; in the order of the file, where the class comes last.
      class_column: the name of the class.
      classes: the class i at place i, as written in the files.
      counts: file -> how often each class is there in the official one.
    """

    origin: Origin
    train: str
    test: str | None
    delimiter: str
    header: bool
    columns: Mapping[str, tuple[str, ...]]
    class_column: str
    classes: tuple[str, str]
    counts: Mapping[str, tuple[int, int]]

    @property
    def width(self) -> int:
        """d, the number of columns after encoding."""
        return sum(len(categories) if len(categories) > 2 else 1 for categories in self.columns.values())


_SEXES = ("Female", "Male")
_RACES = ("Amer-Indian-Eskimo", "Asian-Pac-Islander", "Black", "Other", "White")
_COUNTRIES = (
    "?, Cambodia, Canada, China, Columbia, Cuba, Dominican-Republic, Ecuador, El-Salvador, England, France, "
    "Germany, Greece, Guatemala, Haiti, Holand-Netherlands, Honduras, Hong, Hungary, India, Iran, Ireland, Italy, "
    "Jamaica, Japan, Laos, Mexico, Nicaragua, Outlying-US(Guam-USVI-etc), Peru, Philippines, Poland, Portugal, "
    "Puerto-Rico, Scotland, South, Taiwan, Thailand, Trinadad&Tobago, United-States, Vietnam, Yugoslavia"
)
_NUMBER = ()


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split(", "))


ADULT = Table(
    origin=Origin("adult", "adult.data and adult.test", "https://archive.ics.uci.edu/dataset/2/adult"),
    train="adult.data",
    test="adult.test",
    delimiter=",",
    header=False,
    columns={
        "age": _NUMBER,
        "workclass": _words(
            "?, Federal-gov, Local-gov, Never-worked, Private, Self-emp-inc, Self-emp-not-inc, State-gov, Without-pay"
        ),
        "fnlwgt": _NUMBER,
        "education": _words(
            "10th, 11th, 12th, 1st-4th, 5th-6th, 7th-8th, 9th, Assoc-acdm, Assoc-voc, Bachelors, Doctorate, HS-grad, "
            "Masters, Preschool, Prof-school, Some-college"
        ),
        "education-num": _NUMBER,
        "marital-status": _words(
            "Divorced, Married-AF-spouse, Married-civ-spouse, Married-spouse-absent, Never-married, Separated, Widowed"
        ),
        "occupation": _words(
            "?, Adm-clerical, Armed-Forces, Craft-repair, Exec-managerial, Farming-fishing, Handlers-cleaners, "
            "Machine-op-inspct, Other-service, Priv-house-serv, Prof-specialty, Protective-serv, Sales, Tech-support, "
            "Transport-moving"
        ),
        "relationship": _words("Husband, Not-in-family, Other-relative, Own-child, Unmarried, Wife"),
        "race": _RACES,
        "sex": _SEXES,
        "capital-gain": _NUMBER,
        "capital-loss": _NUMBER,
        "hours-per-week": _NUMBER,
        "native-country": _words(_COUNTRIES),
    },
    class_column="income",
    classes=("<=50K", ">50K"),
    counts={"adult.data": (24_720, 7_841), "adult.test": (12_435, 3_846)},
)
"""Adult. In `adult.test` the first line is a remark, and a full stop follows the class."""

BANK_MARKETING = Table(
    origin=Origin(
        "bank_marketing",
        "bank-additional-full.csv (in bank-additional.zip)",
        "https://archive.ics.uci.edu/dataset/222/bank+marketing",
    ),
    train="bank-additional-full.csv",
    test=None,
    delimiter=";",
    header=True,
    columns={
        "age": _NUMBER,
        "job": _words(
            "admin., blue-collar, entrepreneur, housemaid, management, retired, self-employed, services, student, "
            "technician, unemployed, unknown"
        ),
        "marital": _words("divorced, married, single, unknown"),
        "education": _words(
            "basic.4y, basic.6y, basic.9y, high.school, illiterate, professional.course, university.degree, unknown"
        ),
        "default": _words("no, unknown, yes"),
        "housing": _words("no, unknown, yes"),
        "loan": _words("no, unknown, yes"),
        "contact": _words("cellular, telephone"),
        "month": _words("mar, apr, may, jun, jul, aug, sep, oct, nov, dec"),
        "day_of_week": _words("mon, tue, wed, thu, fri"),
        "duration": _NUMBER,
        "campaign": _NUMBER,
        "pdays": _NUMBER,
        "previous": _NUMBER,
        "poutcome": _words("failure, nonexistent, success"),
        "emp.var.rate": _NUMBER,
        "cons.price.idx": _NUMBER,
        "cons.conf.idx": _NUMBER,
        "euribor3m": _NUMBER,
        "nr.employed": _NUMBER,
    },
    class_column="y",
    classes=("no", "yes"),
    counts={"bank-additional-full.csv": (36_548, 4_640)},
)
"""Bank Marketing. No call was made in January or February."""

ONLINE_SHOPPERS = Table(
    origin=Origin(
        "online_shoppers",
        "online_shoppers_intention.csv",
        "https://archive.ics.uci.edu/dataset/468/online+shoppers+purchasing+intention+dataset",
    ),
    train="online_shoppers_intention.csv",
    test=None,
    delimiter=",",
    header=True,
    columns={
        "Administrative": _NUMBER,
        "Administrative_Duration": _NUMBER,
        "Informational": _NUMBER,
        "Informational_Duration": _NUMBER,
        "ProductRelated": _NUMBER,
        "ProductRelated_Duration": _NUMBER,
        "BounceRates": _NUMBER,
        "ExitRates": _NUMBER,
        "PageValues": _NUMBER,
        "SpecialDay": _NUMBER,
        "Month": _words("Feb, Mar, May, June, Jul, Aug, Sep, Oct, Nov, Dec"),
        "OperatingSystems": _NUMBER,
        "Browser": _NUMBER,
        "Region": _NUMBER,
        "TrafficType": _NUMBER,
        "VisitorType": _words("New_Visitor, Other, Returning_Visitor"),
        "Weekend": _words("FALSE, TRUE"),
    },
    class_column="Revenue",
    classes=("FALSE", "TRUE"),
    counts={"online_shoppers_intention.csv": (10_422, 1_908)},
)
"""Online Shoppers. Operating system, browser, region and traffic type are codes, taken for numbers as in the paper."""


def load_adult(directory: Path) -> Dataset:
    """29,305 train, 3,256 validation and 16,281 test rows of Adult, in ten groups of sex and race.

    Raises:
      InputError: it is not prepared, or its file is damaged.
    """
    return sources.read_prepared("adult", directory)


def load_bank_marketing(directory: Path) -> Dataset:
    """7,414 train, 823 validation and 32,951 test rows of Bank Marketing.

    Raises:
      InputError: it is not prepared, or its file is damaged.
    """
    return sources.read_prepared("bank_marketing", directory)


def load_online_shoppers(directory: Path) -> Dataset:
    """2,220 train, 246 validation and 9,864 test rows of Online Shoppers.

    Raises:
      InputError: it is not prepared, or its file is damaged.
    """
    return sources.read_prepared("online_shoppers", directory)


def prepare_adult(source: Path | None, directory: Path) -> Path:
    """Writes Adult to `directory` from `adult.data` and `adult.test` in the folder `source`; returns the file.

    Raises:
      InputError: a file is missing or not the official one, or `directory` cannot be written.
    """
    return _write(ADULT, _verified(ADULT, read(ADULT, source), source), directory)


def prepare_bank_marketing(source: Path | None, directory: Path) -> Path:
    """Writes Bank Marketing to `directory` from `bank-additional-full.csv` in the folder `source`; returns the file.

    Raises:
      InputError: the file is missing or not the official one, or `directory` cannot be written.
    """
    return _write(BANK_MARKETING, _verified(BANK_MARKETING, read(BANK_MARKETING, source), source), directory)


def prepare_online_shoppers(source: Path | None, directory: Path) -> Path:
    """Writes Online Shoppers to `directory` from `online_shoppers_intention.csv` in `source`; returns the file.

    Raises:
      InputError: the file is missing or not the official one, or `directory` cannot be written.
    """
    return _write(ONLINE_SHOPPERS, _verified(ONLINE_SHOPPERS, read(ONLINE_SHOPPERS, source), source), directory)


def write_small_adult(directory: Path) -> None:
    """Prepares 288 train, 32 validation and 96 test rows of a made-up Adult."""
    _write_small(ADULT, {"adult.data": 320, "adult.test": 96}, directory)


def write_small_bank_marketing(directory: Path) -> None:
    """Prepares 288 train, 32 validation and 1,280 test rows of a made-up Bank Marketing."""
    _write_small(BANK_MARKETING, {BANK_MARKETING.train: 1_600}, directory)


def write_small_online_shoppers(directory: Path) -> None:
    """Prepares 288 train, 32 validation and 1,280 test rows of made-up Online Shoppers."""
    _write_small(ONLINE_SHOPPERS, {ONLINE_SHOPPERS.train: 1_600}, directory)


def read(table: Table, source: Path | None) -> dict[str, tuple[Rows, np.ndarray]]:
    """What `read_table` gives for each file of `table`, from the folder `source`.

    Raises:
      InputError: a file is missing, or a line is not as it should be.
    """

    def from_folder(folder: Path) -> dict[str, tuple[Rows, np.ndarray]]:
        return {name: read_table(folder / name, table) for name in (table.train, table.test) if name}

    return sources.read(table.origin, source, from_folder)


def read_table(path: Path, table: Table) -> tuple[Rows, np.ndarray]:
    """The fields of each row as text, checked against `table.columns`, and the classes int32 [n].

    Raises:
      InputError: the file is missing, or a line has too many or too few fields, a word where a number should be, or an
        unknown category or class.
    """
    if not path.is_file():
        origin = table.origin
        raise InputError(f"{path}: no such file; get {origin.files} from {origin.page}")
    names = (*table.columns, table.class_column)
    rows, label = [], []
    try:
        with open(path, encoding="utf-8", newline="") as file:
            lines = csv.reader(file, delimiter=table.delimiter, skipinitialspace=True)
            for fields in lines:
                at = f"{path}:{lines.line_num}"
                if not fields or (not table.header and lines.line_num == 1 and fields[0].startswith("|")):
                    continue
                if len(fields) != len(names):
                    raise InputError(f"{at}: {len(fields)} fields, expected {len(names)}; get the file again")
                if table.header and lines.line_num == 1:
                    if tuple(fields) != names:
                        wrong = next(i for i, name in enumerate(names) if fields[i] != name)
                        raise InputError(
                            f"{at}: column {wrong + 1} is {fields[wrong][:_SHOWN]!r}, expected {names[wrong]!r}; "
                            "get the file again"
                        )
                    continue
                label.append(_class(fields.pop(), table, at))
                for (name, categories), field in zip(table.columns.items(), fields, strict=True):
                    _check(field, categories, f"{at}, {name}")
                rows.append(tuple(fields))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read ({error}); get the file again") from error
    if not rows:
        raise InputError(f"{path}: no rows; get the file again")
    return rows, np.array(label, np.int32)


def _class(field: str, table: Table, at: str) -> int:
    name = field.removesuffix(".")
    if name not in table.classes:
        raise InputError(
            f"{at}, {table.class_column}: {field[:_SHOWN]!r} is none of {', '.join(table.classes)}; get the file again"
        )
    return table.classes.index(name)


def _check(field: str, categories: tuple[str, ...], at: str) -> None:
    if categories:
        if field not in categories:
            raise InputError(f"{at}: {field[:_SHOWN]!r} is none of {', '.join(categories)}; get the file again")
        return
    try:
        finite = math.isfinite(float(field))
    except ValueError:
        finite = False
    if not finite:
        raise InputError(f"{at}: {field[:_SHOWN]!r} is not a number; get the file again")


def encode(rows: Rows, columns: Mapping[str, tuple[str, ...]]) -> np.ndarray:
    """The rows as numbers: one column for a number or two categories (1: the second), k for k > 2 (one is 1).

    >>> encode([("3", "b", "x"), ("4", "a", "z")], {"n": (), "two": ("a", "b"), "three": ("x", "y", "z")}).tolist()
    [[3.0, 1.0, 1.0, 0.0, 0.0], [4.0, 0.0, 0.0, 0.0, 1.0]]

    Args:
      rows: n rows of text.
      columns: attribute -> its categories, or () for a number.

    Returns:
      float64 [n, d].
    """
    parts = []
    for categories, fields in zip(columns.values(), zip(*rows, strict=True), strict=True):
        if categories:
            index = np.array([categories.index(field) for field in fields])
            hot = np.eye(len(categories))[index]
            parts.append(hot if len(categories) > 2 else hot[:, 1:])
        else:
            parts.append(np.array(fields, np.float64)[:, None])
    return np.concatenate(parts, axis=1)


def standardise(rows: np.ndarray, train: np.ndarray) -> np.ndarray:
    """(rows − mean) / SD, with the mean and SD (divisor n; 1 where it is 0) of each column of `train`.

    Args:
      rows: float64 [n, d].
      train: float64 [m, d].

    Returns:
      float32 [n, d].
    """
    mean, deviation = train.mean(0), train.std(0)
    # A constant has an SD of 0 only up to rounding.
    deviation = np.where(np.ptp(train, axis=0) == 0, 1.0, deviation)
    return ((rows - mean[None]) / deviation[None]).astype(np.float32)


def _verified(
    table: Table, content: dict[str, tuple[Rows, np.ndarray]], source: Path | None
) -> dict[str, tuple[Rows, np.ndarray]]:
    for name, (_, label) in content.items():
        sources.require_counts(f"{sources.place(table.origin, source)}/{name}", label, table.counts[name])
    return content


def _write(table: Table, content: Mapping[str, tuple[Rows, np.ndarray]], directory: Path) -> Path:
    rows = [row for part, _ in content.values() for row in part]
    label = np.concatenate([part for _, part in content.values()])
    size = len(content[table.train][0])
    order = sources.hash_order(table.origin.dataset, size)
    if table.test:
        learn, test = order, np.arange(size, len(rows))
    else:
        learn, test = order[: size // 5], order[size // 5 :]
    validation = len(learn) // 10
    ids = {"train": learn[validation:], "validation": learn[:validation], "test": test}
    encoded = encode(rows, table.columns)
    standardised = standardise(encoded, encoded[np.sort(ids["train"])])
    group, group_names = _groups(rows, table)
    splits = {}
    for split, chosen in ids.items():
        index = np.sort(chosen).astype(np.int64)
        splits[split] = Split(standardised[index], label[index], index, None if group is None else group[index])
    return sources.write_prepared(Dataset(table.origin.dataset, table.classes, splits, group_names), directory)


def _groups(rows: Rows, table: Table) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """Sex and race of each row as one number, and their names; (None, ()) for a table without them."""
    if not {"sex", "race"} <= set(table.columns):
        return None, ()
    sex, race = (list(table.columns).index(name) for name in ("sex", "race"))
    names = [(a, b) for a in table.columns["sex"] for b in table.columns["race"]]
    place = {pair: index for index, pair in enumerate(names)}
    return np.array([place[row[sex], row[race]] for row in rows], np.int32), tuple(f"{a}, {b}" for a, b in names)


def _write_small(table: Table, sizes: Mapping[str, int], directory: Path) -> None:
    """Made-up files in the official format, with larger numbers in the second class, and the set prepared from them."""
    generator = np.random.default_rng(0)
    folder = directory / "originals"
    for name, size in sizes.items():
        label = generator.integers(0, 2, size)
        fields = [
            generator.choice(categories, size).tolist()
            if categories
            else (generator.integers(0, 50, size) + 25 * label).tolist()
            for categories in table.columns.values()
        ]
        stop = "." if name == table.test else ""
        fields.append([table.classes[y] + stop for y in label])
        lines = [] if not table.header else [table.delimiter.join((*table.columns, table.class_column))]
        lines += ["|1x3 Cross validator"] if name == table.test else []
        separator = table.delimiter if table.header else f"{table.delimiter} "
        lines += [separator.join(map(str, row)) for row in zip(*fields, strict=True)]
        files.write_text(folder / name, "\n".join(lines) + "\n")
    _write(table, read(table, folder), directory)
