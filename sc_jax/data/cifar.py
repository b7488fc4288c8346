"""CIFAR-10 and CIFAR-100: 32x32 colour images of ten and of a hundred kinds of things (Krizhevsky, 2009, technical report).

Official training image i (in the order of the files) has the id i, official test image i the id 50000 + i. CIFAR has no
validation split. As in the label-smoothing paper's CIFAR-10 recipe 5,000 of the training images are for validation; which,
it does not say, so ours are those whose SHA-256 of "cifar10/<i>" ("cifar100/<i>") is smallest. CIFAR-100 has its 100 fine
labels.

`cifar10_jpeg` is development data: JPEG copies of CIFAR-10, quality 75, on which a model of the originals meets a shift.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import itertools
import tarfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from sc_jax import files
from sc_jax.data import Dataset, Split, images, sources
from sc_jax.data.small import made_up_images
from sc_jax.files import InputError

CLASS_NAMES_10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_FINE_LABELS = (
    "apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can "
    "castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin "
    "elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster "
    "man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck "
    "pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk "
    "skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger "
    "tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm"
)
CLASS_NAMES_100 = tuple(_FINE_LABELS.split(" "))

Parts = dict[str, tuple[np.ndarray, np.ndarray]]
"""Official images uint8 [n, 32, 32, 3] and labels uint8 [n] of "train" and "test", in the order of the files."""

Records = dict[str, np.ndarray]
"""The same as records of the binary version, uint8 [n, labels + 3072]: labels, then the planes of red, green and blue."""

SIZES = {"train": 50_000, "test": 10_000}
"""How many images there are."""

_PAGE = "https://www.cs.toronto.edu/~kriz/cifar.html"
_SIDE = 32
_VALIDATION_SHARE = 10  # 5,000 of 50,000


@dataclasses.dataclass(frozen=True)
class Variant:
    """CIFAR-10 or CIFAR-100, in the binary version.

    Attributes:
      name: of the data set, here and in TFDS.
      class_names: of the labels.
      archive: the file that the home page calls the binary version.
      sha256: of that file, as in the checksums that TFDS 4.9.10 downloads it by.
      folder: what it unpacks to.
      parts: split -> its files, in order, each with its SHA-1: those by which Apache MXNet 1 read it. All of a split are
        of one length.
      label_bytes: labels before each image; the last of them is the one that is used.
    """

    name: str
    class_names: tuple[str, ...]
    archive: str
    sha256: str
    folder: str
    parts: dict[str, dict[str, str]]
    label_bytes: int

    @property
    def width(self) -> int:
        """Bytes of a record."""
        return self.label_bytes + 3 * _SIDE**2

    def records_of_a_file(self, split: str) -> int:
        """How many records each official file of a split has."""
        return SIZES[split] // len(self.parts[split])

    @property
    def origin(self) -> sources.Origin:
        """Where it comes from."""
        return sources.Origin(self.name, self.archive, _PAGE, self.name)


CIFAR10 = Variant(
    name="cifar10",
    class_names=CLASS_NAMES_10,
    archive="cifar-10-binary.tar.gz",
    sha256="c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
    folder="cifar-10-batches-bin",
    parts={
        "train": {
            "data_batch_1.bin": "aadd24acce27caa71bf4b10992e9e7b2d74c2540",
            "data_batch_2.bin": "c0ba65cce70568cd57b4e03e9ac8d2a5367c1795",
            "data_batch_3.bin": "1dd00a74ab1d17a6e7d73e185b69dbf31242f295",
            "data_batch_4.bin": "aab85764eb3584312d3c7f65fd2fd016e36a258e",
            "data_batch_5.bin": "26e2849e66a845b7f1e4614ae70f4889ae604628",
        },
        "test": {"test_batch.bin": "67eb016db431130d61cd03c7ad570b013799c88c"},
    },
    label_bytes=1,
)
CIFAR100 = Variant(
    name="cifar100",
    class_names=CLASS_NAMES_100,
    archive="cifar-100-binary.tar.gz",
    sha256="58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
    folder="cifar-100-binary",
    parts={
        "train": {"train.bin": "e207cd2e05b73b1393c74c7f5e7bea451d63e08e"},
        "test": {"test.bin": "8fb6623e830365ff53cf14adec797474f5478006"},
    },
    label_bytes=2,  # the superclass, then the class
)


def load_cifar10(directory: Path) -> Dataset:
    """45,000 train, 5,000 validation and 10,000 test images, uint8 [n, 32, 32, 3], from `directory`/cifar10.npz.

    Raises:
      InputError: it is not prepared, or the file is damaged.
    """
    return sources.read_prepared("cifar10", directory)


def load_cifar100(directory: Path) -> Dataset:
    """As `load_cifar10`, from `directory`/cifar100.npz.

    Raises:
      InputError: it is not prepared, or the file is damaged.
    """
    return sources.read_prepared("cifar100", directory)


def load_cifar10_jpeg(directory: Path) -> Dataset:
    """As `load_cifar10`, from `directory`/cifar10_jpeg.npz: the same test ids, but training ids of its own.

    Raises:
      InputError: it is not prepared, or the file is damaged.
    """
    return sources.read_prepared("cifar10_jpeg", directory)


def load_cifar10_jpeg_halves(directory: Path) -> Dataset:
    """The same images for networks that were trained on all 50,000 training images: validation are the test images of even id.

    Train is all training images, and test the test images of odd id; what is chosen on validation is chosen on images that
    such a network has not seen.

    Raises:
      InputError: it is not prepared, or the file is damaged.
    """
    whole = load_cifar10_jpeg(directory)
    train, validation, test = (whole.splits[name].arrays() for name in ("train", "validation", "test"))
    even = test["example_id"] % 2 == 0
    splits = {
        "train": Split(*(np.concatenate([train[name], validation[name]]) for name in train)),
        "validation": Split(*(array[even] for array in test.values())),
        "test": Split(*(array[~even] for array in test.values())),
    }
    return dataclasses.replace(whole, name="cifar10_jpeg_halves", splits=splits)


def prepare_cifar10(source: Path | None, directory: Path) -> Path:
    """Writes `directory`/cifar10.npz from the binary version in `source` (its folder or its archive), or from TFDS.

    Raises:
      InputError: nothing is there, it is another version, or it is not the official content.
    """
    return _prepare(CIFAR10, source, directory)


def prepare_cifar100(source: Path | None, directory: Path) -> Path:
    """Writes `directory`/cifar100.npz from the binary version in `source` (its folder or its archive), or from TFDS.

    Raises:
      InputError: nothing is there, it is another version, or it is not the official content.
    """
    return _prepare(CIFAR100, source, directory)


def prepare_cifar10_jpeg(source: Path | None, directory: Path) -> Path:
    """Writes `directory`/cifar10_jpeg.npz from two files in `source`, whose content is that of CIFAR-10 after JPEG.

    `cifar10_test_images.npz`: x uint8 [10000, 32, 32, 3], y [10000], in the official order.
    `cifar10_train_jpeg.npz`: JPEG files one after the other in blob uint8 [bytes], file i from offsets[i] to
    offsets[i + 1]; y [50000]. Their order is theirs, so that training id i is not the official image i.

    Raises:
      InputError: a file or an array is missing, or it is not all of CIFAR-10.
    """
    parts = _read_jpeg(source)
    for split, size in SIZES.items():
        sources.require_counts(f"{source}, {split}", parts[split][1], [size // 10] * 10)
    return _write("cifar10_jpeg", CLASS_NAMES_10, parts, directory)


def write_small_cifar10(directory: Path) -> Path:
    """Writes 240 training and 60 test images by TFDS's builder of CIFAR-10 in `directory`/tfds, and prepares them."""
    return _write_small(CIFAR10, directory)


def write_small_cifar100(directory: Path) -> Path:
    """Writes 300 training and 100 test images by TFDS's builder of CIFAR-100 in `directory`/tfds, and prepares them."""
    return _write_small(CIFAR100, directory)


def write_small_cifar10_jpeg(directory: Path) -> Path:
    """Writes 240 training and 60 test images in the two files of `prepare_cifar10_jpeg`, and prepares them."""
    from PIL import Image

    image, label = _made_up(240, 10)
    jpeg = []
    for pixels in image:
        content = io.BytesIO()
        Image.fromarray(pixels).save(content, "JPEG", quality=75)
        jpeg.append(content.getvalue())
    offsets = np.cumsum([0, *map(len, jpeg)])
    originals = directory / "originals"
    blob = np.frombuffer(b"".join(jpeg), np.uint8)
    files.write_npz(originals / "cifar10_train_jpeg.npz", {"blob": blob, "offsets": offsets, "y": label})
    files.write_npz(originals / "cifar10_test_images.npz", dict(zip("xy", _made_up(60, 10), strict=True)))
    return _write("cifar10_jpeg", CLASS_NAMES_10, _read_jpeg(originals), directory)


def read_binary(variant: Variant, source: Path) -> Records:
    """The records of the binary version, in the order of its files.

    Args:
      variant: which.
      source: the folder of its files, one that has this folder or the archive in it, or the archive, which is read without
        unpacking it to disk and must be the published one.

    Raises:
      InputError: names the file that is missing, or is not as it should be.
    """
    archive = source / variant.archive if source.is_dir() else source
    folder = source / variant.folder if (source / variant.folder).is_dir() else source
    names = [name for part in variant.parts.values() for name in part]
    if not source.is_dir() or (archive.is_file() and not (folder / names[0]).is_file()):
        content, where = _read_archive(variant, archive, names), archive
    else:
        content, where = _read_files(variant, folder), folder
    return {
        split: np.concatenate([_records(variant, f"{where}: {name}", content[name]) for name in files_of_split])
        for split, files_of_split in variant.parts.items()
    }


def _read_files(variant: Variant, folder: Path) -> dict[str, bytes]:
    content = {}
    for split, names in variant.parts.items():
        most = variant.records_of_a_file(split) * variant.width
        for name in names:
            try:
                with open(folder / name, "rb") as file:
                    content[name] = file.read(most + 1)
            except OSError as error:
                raise InputError(f"{folder / name}: {error.strerror}; {_which_version(variant, folder)}") from error
            if len(content[name]) > most:
                raise InputError(f"{folder / name}: more than {most} bytes; {_which_version(variant)}")
    return content


def _records(variant: Variant, where: str, content: bytes) -> np.ndarray:
    if len(content) % variant.width or not content:
        raise InputError(f"{where}: {len(content)} bytes, not records of {variant.width}; {_which_version(variant)}")
    return np.frombuffer(content, np.uint8).reshape(-1, variant.width)


def unpacked(variant: Variant, records: Records) -> Parts:
    """The images and labels that records hold."""
    parts = {}
    for split, rows in records.items():
        planes = rows[:, variant.label_bytes :].reshape(-1, 3, _SIDE, _SIDE)
        parts[split] = np.ascontiguousarray(planes.transpose(0, 2, 3, 1)), rows[:, variant.label_bytes - 1]
    return parts


def verified(variant: Variant, records: Records, where: str) -> Records:
    """Returns `records` if they are, bit for bit, those of the official files; `where` is for the message.

    Raises:
      InputError: names the file whose records differ.
    """
    for split, names in variant.parts.items():
        if len(records[split]) != SIZES[split]:
            raise InputError(
                f"{where}: {len(records[split])} images of {split}, not {SIZES[split]}; {_which_version(variant)}"
            )
        for (name, expected), rows in zip(names.items(), np.split(records[split], len(names)), strict=True):
            found = hashlib.sha1(np.ascontiguousarray(rows).data, usedforsecurity=False).hexdigest()
            if found != expected:
                raise InputError(
                    f"{where}: {name} is not the official one: SHA-1 {found[:12]}…, expected {expected[:12]}…; "
                    + _which_version(variant)
                )
    return records


def _which_version(variant: Variant, folder: Path | None = None) -> str:
    pickled = folder and any((folder / name).exists() for name in ("batches.meta", "meta", "cifar-10-batches-py"))
    why = "this is the Python version, which is pickled and never read; " if pickled else ""
    return f"{why}get the binary version, {variant.archive}, from {_PAGE}"


def _read_archive(variant: Variant, path: Path, names: list[str]) -> dict[str, bytes]:
    """The content of the files `names` in the archive; nothing is unpacked to disk."""
    try:
        with open(path, "rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != variant.sha256:
            raise InputError(
                f"{path}: SHA-256 {found[:12]}…, the published archive has {variant.sha256[:12]}…; "
                + _which_version(variant)
            )
        with tarfile.open(path, "r:gz") as archive:
            return {name: archive.extractfile(f"{variant.folder}/{name}").read() for name in names}
    except (OSError, EOFError, KeyError, zlib.error, tarfile.TarError) as error:
        raise InputError(f"{path}: cannot be read ({error}); {_which_version(variant)}") from error


def read_tfds(variant: Variant, builder: Any) -> Records:
    """The official images from TFDS's builder, in the order of the files, which its ids tell ("train_16399"), as records.

    Raises:
      InputError: the ids of a split are not those of all its images.
    """
    records = {}
    for split in variant.parts:
        source = builder.as_data_source(split=split)
        rows, seen = np.empty((len(source), variant.width), np.uint8), np.zeros(len(source), bool)
        for example in source:
            prefix, _, number = example["id"].decode().partition("_")
            if prefix != split or not number.isdecimal() or int(number) >= len(seen):
                raise InputError(f"{builder.data_path}: id {example['id'].decode()!r} in {split}; build it again")
            index = int(number)
            labels = [example[name] for name in ("coarse_label", "label")[-variant.label_bytes :]]
            rows[index] = np.concatenate([labels, example["image"].transpose(2, 0, 1).reshape(-1)])
            seen[index] = True
        if not seen.all():
            raise InputError(f"{builder.data_path}: an id comes twice in {split}; build it again")
        records[split] = rows
    return records


def _read(variant: Variant, source: Path | None) -> Records:
    from_folder, from_tfds = (functools.partial(read, variant) for read in (read_binary, read_tfds))
    return sources.read(variant.origin, source, from_folder, from_tfds)


def _prepare(variant: Variant, source: Path | None, directory: Path) -> Path:
    records = verified(variant, _read(variant, source), sources.place(variant.origin, source))
    return _write(variant.name, variant.class_names, unpacked(variant, records), directory)


def _write(name: str, class_names: tuple[str, ...], parts: Parts, directory: Path) -> Path:
    validation = len(parts["train"][1]) // _VALIDATION_SHARE
    dataset = sources.image_dataset(name, class_names, parts["train"], parts["test"], validation)
    return sources.write_prepared(dataset, directory)


def _read_jpeg(source: Path | None) -> Parts:
    origin = sources.Origin("cifar10_jpeg", "cifar10_test_images.npz and cifar10_train_jpeg.npz", "whoever made them")
    return sources.read(origin, source, _read_jpeg_folder)


_JPEG_FILES = {"cifar10_test_images.npz": ("x", "y"), "cifar10_train_jpeg.npz": ("blob", "offsets", "y")}


def _read_jpeg_folder(folder: Path) -> Parts:
    arrays = {}
    for name, fields in _JPEG_FILES.items():
        if not (folder / name).is_file():
            raise InputError(f"{folder / name}: no such file; {' and '.join(_JPEG_FILES)} are needed")
        arrays[name] = files.read_npz(folder / name)
        missing = [field for field in fields if field not in arrays[name]]
        if missing:
            raise InputError(f"{folder / name}: no array {missing[0]!r}; it should hold {', '.join(fields)}")
    (test, train), (in_test, in_train) = arrays.values(), (folder / name for name in arrays)
    label = {"train": _labels(train["y"], in_train), "test": _labels(test["y"], in_test)}
    if test["x"].dtype != np.uint8 or test["x"].shape != (len(label["test"]), 32, 32, 3):
        raise InputError(
            f"{in_test}: x is {test['x'].dtype} {list(test['x'].shape)}, not uint8 [n, 32, 32, 3] for n labels"
        )
    blob, offsets = train["blob"], train["offsets"]
    if blob.dtype != np.uint8 or blob.ndim != 1:
        raise InputError(f"{in_train}: blob is {blob.dtype} {list(blob.shape)}, not uint8 [bytes]")
    if offsets.shape != (len(label["train"]) + 1,) or offsets.dtype.kind not in "iu":
        raise InputError(f"{in_train}: offsets are not n + 1 integers for n labels")
    if offsets[0] < 0 or offsets[-1] > len(blob) or np.any(offsets[1:] < offsets[:-1]):
        raise InputError(f"{in_train}: offsets do not rise from 0 or more to at most the {len(blob)} bytes of blob")
    image = np.empty((len(label["train"]), 32, 32, 3), np.uint8)
    for i, (start, stop) in enumerate(itertools.pairwise(offsets.tolist())):
        try:
            pixels = images.decode(blob[start:stop].tobytes(), most_pixels=32 * 32)
        except InputError as error:
            raise InputError(f"{in_train}: image {i} is {error}") from error
        if pixels.shape != (32, 32, 3):
            raise InputError(f"{in_train}: image {i} is of {pixels.shape[0]} x {pixels.shape[1]} pixels, not 32 x 32")
        image[i] = pixels
    return {"train": (image, label["train"]), "test": (test["x"], label["test"])}


def _labels(label: np.ndarray, path: Path) -> np.ndarray:
    if label.ndim != 1 or label.dtype.kind not in "iu" or (label.size and not 0 <= label.min() <= label.max() <= 9):
        raise InputError(f"{path}: y is {label.dtype} {list(label.shape)}, not integers [n] from 0 to 9")
    return label


def _write_small(variant: Variant, directory: Path) -> Path:
    from PIL import Image

    k = len(variant.class_names)
    splits = {}
    for split, size in (("train", max(240, 3 * k)), ("test", max(60, k))):
        examples = [
            {"id": f"{split}_{i:05d}", "image": Image.fromarray(pixels), "label": int(label)}
            for i, (pixels, label) in enumerate(zip(*_made_up(size, k), strict=True))
        ]
        if variant is CIFAR100:
            examples = [example | {"coarse_label": example["label"] // 5} for example in examples]
        splits[split] = list(enumerate(examples))
    sources.write_tfds(variant.name, directory / "tfds", splits, variant.class_names)
    parts = unpacked(variant, _read(variant, directory / "tfds"))
    return _write(variant.name, variant.class_names, parts, directory)


def _made_up(size: int, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    label = np.arange(size) % num_classes
    return made_up_images(label, (32, 32, 3), seed=size), label.astype(np.uint8)
