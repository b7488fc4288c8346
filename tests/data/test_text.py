"""IMDB, SST-2 and TREC: tokens, vocabulary, splits, and what is refused."""

import hashlib
import os
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from sc_jax import data
from sc_jax.data import sources, text
from sc_jax.files import InputError

SETS = {
    "imdb": (text.IMDB, text.read_imdb, text.prepare_imdb, text.write_small_imdb),
    "sst2": (text.SST2, text.read_sst2, text.prepare_sst2, text.write_small_sst2),
    "trec": (text.TREC, text.read_trec, text.prepare_trec, text.write_small_trec),
}
REAL = Path(os.environ.get("SC_JAX_EXTRA_DATA", ""), "text")
needs_real = pytest.mark.skipif(
    not os.environ.get("SC_JAX_EXTRA_DATA") or not REAL.is_dir(), reason="SC_JAX_EXTRA_DATA/text is not there"
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


def write_sst2(folder, train, dev, test):
    folder.mkdir()
    for name, lines in (("train", train), ("dev", dev), ("test", test)):
        (folder / f"stsa.binary.{name}").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return folder


def tokens_of(string):
    return re.findall(r"\w+|[^\w\s]+", string.replace("<br />", " ").lower())


def rows(strings, vocabulary, length):
    """Tokens of strings by the definition."""
    place = {token: index for index, token in enumerate(vocabulary)}
    out = np.zeros((len(strings), length), np.int32)
    for row, string in zip(out, strings, strict=True):
        found = [place.get(token, 1) for token in tokens_of(string)][:length]
        row[: len(found)] = found
    return out


def by_hash(texts):
    return sorted(texts, key=lambda example: (hashlib.sha256(example[0].encode()).hexdigest(), example[1]))


def test_tokens_by_hand(tmp_path, anything_is_official):
    folder = write_sst2(
        tmp_path / "from",
        ["1 The cat sat.", "0 the cat, the<br />dog"],
        ["1 sat sat dog"],
        ["0 <unknown> zebra CAT", "1 " + "the " * 70],
    )
    text.prepare_sst2(folder, tmp_path)
    made = data.load("sst2", tmp_path)
    # Of the train split, "the" comes three times, "cat" twice, all else once; that of the others does not count.
    assert made.vocabulary == ("<padding>", "<unknown>", "the", "cat")
    train = {
        int(label): row for row, label in zip(made.splits["train"].inputs, made.splits["train"].label, strict=True)
    }
    np.testing.assert_array_equal(train[1], [2, 3, 1, 1] + 60 * [0])
    np.testing.assert_array_equal(train[0], [2, 3, 1, 2, 1] + 59 * [0])
    np.testing.assert_array_equal(made.splits["validation"].inputs, [[1, 1, 1] + 61 * [0]])
    test = {int(label): row for row, label in zip(made.splits["test"].inputs, made.splits["test"].label, strict=True)}
    np.testing.assert_array_equal(test[0], [1, 1, 1, 1, 3] + 59 * [0])  # "<" "unknown" ">" are three
    np.testing.assert_array_equal(test[1], 64 * [2])


def test_vocabulary_is_cut_at_its_size_and_ties_are_alphabetical(monkeypatch):
    monkeypatch.setattr(text, "VOCABULARY_SIZE", 4)
    vocabulary = text.fit_tokenizer(["c b a c b a", "d d d", "<padding>"], 8).get_vocab()
    assert vocabulary == {"<padding>": 0, "<unknown>": 1, "d": 2, "a": 3}


@pytest.mark.parametrize("name", SETS)
def test_small_set_is_what_the_definitions_give(name, small):
    corpus, read, *_ = SETS[name]
    made = data.load(name, small[name])
    content = {split: by_hash(texts) for split, texts in read(small[name] / "originals").items()}
    if name != "sst2":
        train = content["train"]
        content |= {"train": train[len(train) // 10 :], "validation": train[: len(train) // 10]}
    count = Counter(token for string, _ in content["train"] for token in tokens_of(string))
    frequent = sorted((token for token in count if count[token] >= 2), key=lambda token: (-count[token], token))
    assert made.vocabulary == ("<padding>", "<unknown>", *frequent)
    assert made.class_names == corpus.class_names
    first = 0
    for split in ("train", "validation", "test"):
        strings, label = zip(*content[split], strict=True)
        np.testing.assert_array_equal(made.splits[split].inputs, rows(strings, made.vocabulary, corpus.length))
        np.testing.assert_array_equal(made.splits[split].label, label)
        np.testing.assert_array_equal(made.splits[split].example_id, first + np.arange(len(strings)))
        first += len(strings)
    assert {split: len(part) for split, part in made.splits.items()} == {"train": 288, "validation": 32, "test": 96}


@pytest.mark.parametrize("name", SETS)
def test_small_set_is_the_same_each_time_and_can_be_learned(name, small, tmp_path):
    SETS[name][-1](tmp_path)
    made = data.load(name, tmp_path)
    assert made.fingerprint == data.load(name, small[name]).fingerprint
    test = made.splits["test"]
    told = np.zeros((len(test), made.num_classes))
    for index, token in enumerate(made.vocabulary):
        if token.startswith("class"):
            told[:, int(token[5])] += (test.inputs == index).sum(1)
    assert np.mean(told.argmax(1) == test.label) > 0.9


@pytest.mark.parametrize("name", SETS)
def test_small_set_is_refused_as_the_official_one(name, small, tmp_path):
    with pytest.raises(InputError, match=rf"^{small[name]}/originals, train: .* examples of class 0 "):
        SETS[name][2](small[name] / "originals", tmp_path / "to")
    assert not (tmp_path / "to").exists()


def test_tfds_gives_what_the_files_give(small, tmp_path, anything_is_official):
    reviews = text.read_imdb(small["imdb"] / "originals")
    questions = text.read_trec(small["trec"] / "originals")
    # TFDS leaves the blanks at the ends that are not ASCII.
    sources.write_tfds(
        "imdb_reviews/plain_text",
        tmp_path,
        {s: [(i, {"text": t + "\xa0", "label": y}) for i, (t, y) in enumerate(part)] for s, part in reviews.items()},
    )
    names = text.TREC.class_names  # TFDS counts them in another order
    sources.write_tfds(
        "trec",
        tmp_path,
        {
            s: [(i, {"text": t, "label-coarse": names[y], "label-fine": "other"}) for i, (t, y) in enumerate(part)]
            for s, part in questions.items()
        },
    )
    for name in ("imdb", "trec"):
        SETS[name][2](tmp_path, tmp_path / "to")
        made, expected = data.load(name, tmp_path / "to"), data.load(name, small[name])
        assert made.fingerprint == expected.fingerprint
        assert made.vocabulary == expected.vocabulary


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("2 good", r"stsa\.binary\.dev:2: class '2', expected 0\.\.1; get the file again"),
        (1_000 * "x", r"stsa\.binary\.dev:2: class 'x{20}', expected"),
        ("good film", r"stsa\.binary\.dev:2: class 'good'"),
        ("", r"stsa\.binary\.dev:2: class ''"),
        ("1 ", r"stsa\.binary\.dev:2: no text after the class"),
    ],
)
def test_wrong_lines_are_refused(line, reason, tmp_path):
    folder = write_sst2(tmp_path / "from", ["1 a"], ["0 b", line], ["1 c"])
    with pytest.raises(InputError, match=reason):
        text.prepare_sst2(folder, tmp_path / "to")
    assert not (tmp_path / "to").exists()


def test_missing_and_damaged_files_are_named(tmp_path, anything_is_official):
    folder = write_sst2(tmp_path / "sst2", ["1 a"], ["0 b"], ["1 c"])
    (folder / "stsa.binary.dev").unlink()
    with pytest.raises(InputError, match=r"stsa\.binary\.dev: no such file; get stsa\.binary\.train, .*harvardnlp"):
        text.prepare_sst2(folder, tmp_path)
    (folder / "stsa.binary.dev").write_bytes(b"1 cr\xe8me\n")
    with pytest.raises(InputError, match=r"stsa\.binary\.dev: cannot be read .*utf-8"):
        text.prepare_sst2(folder, tmp_path)
    with pytest.raises(InputError, match=r"get stsa\.binary\.train, .* and run: python -m sc_jax\.data\.prepare sst2"):
        text.prepare_sst2(None, tmp_path)
    reviews = tmp_path / "aclImdb"
    for part in ("train/neg", "train/pos", "test/neg"):
        (reviews / part).mkdir(parents=True)
        (reviews / part / "0_1.txt").write_text(" \n")
    with pytest.raises(InputError, match=r"test/pos: no \*\.txt there; get aclImdb_v1"):
        text.prepare_imdb(reviews, tmp_path)
    (reviews / "test" / "pos").mkdir()
    (reviews / "test" / "pos" / "0_1.txt").write_text("good")
    with pytest.raises(InputError, match="imdb: train has an empty text"):
        text.prepare_imdb(reviews, tmp_path)


def test_the_byte_of_trec_that_is_not_ascii_is_a_space(tmp_path):
    (tmp_path / "TREC.train.all").write_bytes(b"4 a sister\xf0city ?\n")
    (tmp_path / "TREC.test.all").write_bytes(b"5 When ?\n")
    assert text.read_trec(tmp_path) == {"train": [("a sister city ?", 4)], "test": [("When ?", 5)]}


def test_counts_are_those_of_the_papers():
    sums = {name: {split: sum(count) for split, count in SETS[name][0].counts.items()} for name in SETS}
    assert sums == {
        "imdb": {"train": 25_000, "test": 25_000},
        "sst2": {"train": 6_920, "validation": 872, "test": 1_821},
        "trec": {"train": 5_452, "test": 500},
    }


@needs_real
@pytest.mark.parametrize("name", ["sst2", "trec"])
def test_real_files(name, tmp_path):
    corpus, read, prepare, _ = SETS[name]
    prepare(REAL, tmp_path)
    made = data.load(name, tmp_path)
    sizes = {"sst2": (6_920, 872, 1_821), "trec": (4_907, 545, 500)}[name]
    assert tuple(len(made.splits[split]) for split in ("train", "validation", "test")) == sizes
    for split in made.splits.values():
        assert split.inputs.shape == (len(split), corpus.length)
        assert (split.inputs[:, 0] > 0).all()
    test = by_hash(read(REAL)["test"])
    np.testing.assert_array_equal(
        made.splits["test"].inputs, rows([string for string, _ in test], made.vocabulary, corpus.length)
    )
    np.testing.assert_array_equal(made.splits["test"].label, [label for _, label in test])
