"""CIFAR-10 and CIFAR-100: 32x32 colour images of ten and of a hundred kinds of things (Krizhevsky, 2009, technical report).

Official training image i (in the order of the files) has the id i, official test image i the id 50000 + i. CIFAR has no
validation split. As in the label-smoothing paper 5,000 of the training images are for validation; the paper does not say
which, so ours are those whose SHA-256 of "cifar10/<i>" ("cifar100/<i>") is smallest. CIFAR-100 has its 100 fine labels.

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
from sc_jax.data import Dataset, sources
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

_PAGE = "https://www.cs.toronto.edu/~kriz/cifar.html"
_PIXELS = 3 * 32 * 32
_VALIDATION_SHARE = 10  # 5,000 of 50,000
_TRAIN, _TEST = 50_000, 10_000


@dataclasses.dataclass(frozen=True)
class Variant:
    """CIFAR-10 or CIFAR-100, in the binary version.

    Attributes:
      name: of the data set, here and in TFDS.
      class_names: of the labels.
      archive: the file that the home page calls the binary version.
      sha256: of that file, as in the checksums that TFDS 4.9.10 downloads it by.
      folder: what it unpacks to.
      parts: split -> its files, in order.
      label_bytes: labels before each image; the last of them is the one that is used.
    """

    name: str
    class_names: tuple[str, ...]
    archive: str
    sha256: str
    folder: str
    parts: dict[str, tuple[str, ...]]
    label_bytes: int

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
    parts={"train": tuple(f"data_batch_{i}.bin" for i in range(1, 6)), "test": ("test_batch.bin",)},
    label_bytes=1,
)
CIFAR100 = Variant(
    name="cifar100",
    class_names=CLASS_NAMES_100,
    archive="cifar-100-binary.tar.gz",
    sha256="58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
    folder="cifar-100-binary",
    parts={"train": ("train.bin",), "test": ("test.bin",)},
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
    _require_all(parts, 10, "cifar10_jpeg")
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


def read_binary(variant: Variant, source: Path) -> Parts:
    """The official images and labels of the binary version, in the order of its files.

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
        content, where = {}, folder
        for name in names:
            try:
                content[name] = (folder / name).read_bytes()
            except OSError as error:
                raise InputError(f"{folder / name}: {error.strerror}; {_which_version(variant, folder)}") from error
    parts = {}
    for split, split_names in variant.parts.items():
        rows = np.concatenate([_rows(variant, f"{where}: {name}", content[name]) for name in split_names])
        planes = rows[:, variant.label_bytes :].reshape(-1, 3, 32, 32)  # red, green, blue
        parts[split] = np.ascontiguousarray(planes.transpose(0, 2, 3, 1)), rows[:, variant.label_bytes - 1]
    return parts


def _rows(variant: Variant, where: str, content: bytes) -> np.ndarray:
    width = variant.label_bytes + _PIXELS
    if len(content) % width or not content:
        raise InputError(f"{where}: {len(content)} bytes, not records of {width}; {_which_version(variant)}")
    return np.frombuffer(content, np.uint8).reshape(-1, width)


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


def read_tfds(builder: Any) -> Parts:
    """The official images and labels from TFDS's builder, in the order of the files, which its ids tell ("train_16399").

    Raises:
      InputError: the ids of a split are not those of all its images.
    """
    parts = {}
    for split in ("train", "test"):
        source = builder.as_data_source(split=split)
        image, label = np.empty((len(source), 32, 32, 3), np.uint8), np.empty(len(source), np.uint8)
        seen = np.zeros(len(source), bool)
        for record in source:
            prefix, _, number = record["id"].decode().partition("_")
            if prefix != split or not number.isdigit() or int(number) >= len(seen):
                raise InputError(f"{builder.data_path}: id {record['id'].decode()!r} in {split}; build it again")
            index = int(number)
            image[index], label[index], seen[index] = record["image"], record["label"], True
        if not seen.all():
            raise InputError(f"{builder.data_path}: an id comes twice in {split}; build it again")
        parts[split] = image, label
    return parts


def _read(variant: Variant, source: Path | None) -> Parts:
    return sources.read(variant.origin, source, functools.partial(read_binary, variant), read_tfds)


def _prepare(variant: Variant, source: Path | None, directory: Path) -> Path:
    parts = _read(variant, source)
    _require_all(parts, len(variant.class_names), variant.name)
    return _write(variant.name, variant.class_names, parts, directory)


def _require_all(parts: Parts, num_classes: int, name: str) -> None:
    for split, size in (("train", _TRAIN), ("test", _TEST)):
        sources.require_counts(f"{name}: {split}", parts[split][1], [size // num_classes] * num_classes)


def _write(name: str, class_names: tuple[str, ...], parts: Parts, directory: Path) -> Path:
    validation = len(parts["train"][1]) // _VALIDATION_SHARE
    dataset = sources.image_dataset(name, class_names, parts["train"], parts["test"], validation)
    return sources.write_prepared(dataset, directory)


def _read_jpeg(source: Path | None) -> Parts:
    origin = sources.Origin("cifar10_jpeg", "cifar10_test_images.npz and cifar10_train_jpeg.npz", "whoever made them")
    return sources.read(origin, source, _read_jpeg_folder)


def _read_jpeg_folder(folder: Path) -> Parts:
    from PIL import Image

    arrays = {}
    for name, fields in (("cifar10_test_images.npz", ("x", "y")), ("cifar10_train_jpeg.npz", ("blob", "offsets", "y"))):
        arrays[name] = files.read_npz(folder / name)
        missing = [field for field in fields if field not in arrays[name]]
        if missing:
            raise InputError(f"{folder / name}: no array {missing[0]!r}; it should hold {', '.join(fields)}")
    test, train = arrays.values()
    if test["x"].shape != (len(test["y"]), 32, 32, 3):
        raise InputError(
            f"{folder}/cifar10_test_images.npz: x is {list(test['x'].shape)}, not [n, 32, 32, 3] for n labels"
        )
    if len(train["offsets"]) != len(train["y"]) + 1 or train["offsets"].dtype.kind not in "iu":
        raise InputError(f"{folder}/cifar10_train_jpeg.npz: offsets are not n + 1 integers for n labels")
    blob, offsets, label = train["blob"].tobytes(), train["offsets"].tolist(), train["y"]
    image = np.empty((len(label), 32, 32, 3), np.uint8)
    try:
        for i, (start, stop) in enumerate(itertools.pairwise(offsets)):
            image[i] = np.asarray(Image.open(io.BytesIO(blob[start:stop]), formats=["JPEG"]))
    except (OSError, ValueError) as error:
        raise InputError(f"{folder}/cifar10_train_jpeg.npz: image {i} cannot be decoded ({error})") from error
    return {"train": (image, label), "test": (test["x"], test["y"])}


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
    return _write(variant.name, variant.class_names, _read(variant, directory / "tfds"), directory)


def _made_up(size: int, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    label = np.arange(size) % num_classes
    return made_up_images(label, (32, 32, 3), seed=size), label.astype(np.uint8)
