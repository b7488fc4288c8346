"""What preparing a data set takes, whatever the data set: where its originals are read, and how the result is kept.

    origin = Origin("cifar10", "cifar-10-binary.tar.gz", "https://www.cs.toronto.edu/~kriz/cifar.html", "cifar10")
    content = read(origin, source, from_folder, from_tfds)      # in `prepare_cifar10(source, directory)`
    write_prepared(dataset, directory)                          # directory/cifar10.npz, one file
    read_prepared("cifar10", directory)                         # in `load_cifar10(directory)`
    write_tfds("cifar10", folder, {"train": […], "test": […]})  # a small made-up set, as the real TFDS builder writes it

`source` is the folder given with --from, or None. It may hold the original files, or, where the data set is in TFDS, a TFDS
data directory with this data set in it, known by its `dataset_info.json`: `from_folder` and `from_tfds` give the same
content in the same order.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import itertools
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np

from sc_jax import files
from sc_jax.data import Dataset, Split, data_directory, from_arrays
from sc_jax.files import InputError

Content = TypeVar("Content")

_NAMES = ("class_names", "group_names", "vocabulary")


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where a data set comes from.

    Attributes:
      dataset: the name that `sc_jax.data.prepare` knows it by.
      files: the original files that --from takes, in words.
      page: the home page that has them.
      tfds: its name in TFDS ("cifar10", "imdb_reviews/plain_text"), or None if TFDS is not read.
      manual: the archives that TFDS's builder does not fetch itself, in words.
    """

    dataset: str
    files: str
    page: str
    tfds: str | None = None
    manual: str = ""


def prepare_command(dataset: str, directory: Path | None = None) -> str:
    """The command that prepares `dataset`, into `directory` where that is not the usual one."""
    to = "" if directory in (None, data_directory()) else f" --to {shlex.quote(str(directory))}"
    return f"python -m sc_jax.data.prepare {dataset}{to}"


def read(
    origin: Origin,
    source: Path | None,
    from_folder: Callable[[Path], Content],
    from_tfds: Callable[[Any], Content] | None = None,
) -> Content:
    """The original content: of the files in `source`, of a TFDS folder in it, or, without `source`, of TFDS's usual folder.

    Args:
      origin: what to name when nothing is found.
      source: what was given with --from, or None.
      from_folder: reads the original files; it says which are missing.
      from_tfds: reads a prepared TFDS builder (`as_data_source` needs no TensorFlow).

    Raises:
      InputError: nothing is there (the message names files, page and commands), or what is there is not as it should be.
    """
    in_tfds = origin.tfds is not None and from_tfds is not None
    remedy = f"get {origin.files} from {origin.page} and run: {prepare_command(origin.dataset)} --from DIR"
    if source is not None:
        if not source.exists():
            raise InputError(f"{source}: no such folder; {remedy}")
        if in_tfds and is_in_tfds(origin.tfds, source):
            return _read_tfds(origin, source, from_tfds)
        if in_tfds and (is_of_tfds(source) or any(map(is_of_tfds, source.glob("*")))):
            raise InputError(
                f"{source}: a folder within a TFDS data directory; give --from that directory, in which {origin.tfds} is"
            )
        return from_folder(source)
    if not in_tfds:
        raise InputError(f"{origin.dataset}: where are its files? {remedy}")
    try:
        return _read_tfds(origin, None, from_tfds)
    except InputError as error:
        raise InputError(f"{error}; or {remedy}") from error


def _read_tfds(origin: Origin, folder: Path | None, from_tfds: Callable[[Any], Content]) -> Content:
    builder = tfds_builder(origin.tfds, folder, origin.manual)
    try:
        return from_tfds(builder)
    except InputError:
        raise
    except Exception as error:  # TFDS, and what it calls, raise anything
        build = _build(origin.tfds, folder, origin.manual)
        raise InputError(f"{builder.data_path}: TFDS cannot read it ({reason(error)}); {build}") from error


def reason(error: Exception) -> str:
    """The kind and the first line of what a library raised."""
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"


def place(origin: Origin, source: Path | None) -> str:
    """Where `read` has read, for messages about what it gave."""
    return f"TFDS's {origin.tfds}" if source is None else str(source)


def _build(name: str, folder: Path | None, manual: str) -> str:
    first = f"put {manual} into {folder or '~/tensorflow_datasets'}/downloads/manual and " if manual else ""
    to = f" --data_dir={shlex.quote(str(folder))}" if folder else ""
    return f"where TensorFlow is installed, {first}run: tfds build {name} --file_format=array_record{to}"


def is_of_tfds(folder: Path) -> bool:
    """Whether TFDS has written a version of a data set into `folder`, whatever the folder is called."""
    return (folder / "dataset_info.json").is_file()


def is_in_tfds(name: str, folder: Path) -> bool:
    """Whether `folder` is a TFDS data directory with some version of `name` in it."""
    return any(map(is_of_tfds, (folder / name).glob("*")))


def tfds_builder(name: str, folder: Path | None = None, manual: str = "") -> Any:
    """The TFDS builder of a data set that is prepared as array_record in `folder`, by default TFDS's own.

    Args:
      name: in TFDS.
      folder: a TFDS data directory.
      manual: as in `Origin`, for the message.

    Raises:
      InputError: it is not there, or in another format.
    """
    import tensorflow_datasets as tfds
    from absl import logging

    # Else TFDS warns that the folder is not there, and that OpenCV is not.
    logging.set_verbosity(logging.ERROR)
    build = _build(name, folder, manual)
    try:
        builder = tfds.builder(name, file_format="array_record", data_dir=folder)
        prepared = builder.is_prepared()
    except Exception as error:  # TFDS raises anything
        raise InputError(f"TFDS cannot read {name} ({reason(error)}); {build}") from error
    if not prepared:
        raise InputError(f"{builder.data_path}: no data set prepared by TFDS; {build}")
    if builder.info.file_format.value != "array_record":
        raise InputError(f"{builder.data_path}: is {builder.info.file_format.value}, not array_record; {build}")
    return builder


def tfds_order(split: str, size: int) -> list[int]:
    """The official index of each of the `size` examples in the order in which TFDS stores `split`.

    TFDS sorts examples by a hash of the key that its builder gives them; this is for builders whose keys are the official
    indices, as those of MNIST and Fashion-MNIST are.
    """
    from tensorflow_datasets.core.hashing import Hasher

    return sorted(range(size), key=Hasher(split).hash_key)


def write_tfds(
    name: str,
    folder: Path,
    splits: Mapping[str, Iterable[tuple[int | str, dict[str, Any]]]],
    class_names: Iterable[str] = (),
) -> None:
    """Writes made-up examples as array_record with the features, name and version of the real TFDS builder `name`.

    Args:
      name: in TFDS.
      folder: a TFDS data directory, where `tfds_builder(name, folder)` then finds them.
      splits: split -> pairs of key and example; images as PIL images, since TFDS encodes arrays by TensorFlow only.
      class_names: of the feature "label", where the real builder reads them from its download.
    """
    import tensorflow_datasets as tfds
    from absl import logging

    class SmallBuilder(tfds.builder_cls(name.partition("/")[0]), skip_registration=True):
        """The real builder, told other examples."""

        url_infos: ClassVar[dict[str, Any]] = {}  # nothing is downloaded

        def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
            if class_names:
                self.info.features["label"].names = list(class_names)
            return {split: iter(examples) for split, examples in splits.items()}

    SmallBuilder.name, _, config = name.partition("/")
    logging.set_verbosity(logging.ERROR)
    tfds.disable_progress_bar()
    with contextlib.redirect_stdout(io.StringIO()):  # TFDS says that it downloads
        SmallBuilder(data_dir=folder, config=config or None, file_format="array_record").download_and_prepare()


def hash_order(name: str, size: int) -> np.ndarray:
    """int64 [size], the indices 0..size-1 in order of SHA-256 of "<name>/<index>": a choice that anyone can repeat."""
    digests = [hashlib.sha256(f"{name}/{index}".encode()).digest() for index in range(size)]
    return np.array(sorted(range(size), key=digests.__getitem__), np.int64)


def image_dataset(
    name: str,
    class_names: tuple[str, ...],
    train: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
    validation: int,
) -> Dataset:
    """The data set of official training and test images, with a validation split taken from the training images.

    Args:
      name, class_names: of the data set.
      train: images uint8 [n, h, w(, c)] and labels [n], in the official order; image i gets the id i.
      test: the same; image i gets the id n + i.
      validation: how many of the training images are for validation: the first in `hash_order`.

    Raises:
      InputError: there are more or fewer images than labels.
    """
    for part, (image, label) in (("training", train), ("test", test)):
        if len(image) != len(label):
            raise InputError(f"{name}: {len(image)} {part} images, but {len(label)} labels; get the files again")
    size = len(train[1])
    order = hash_order(name, size)
    rows = {"train": np.sort(order[validation:]), "validation": np.sort(order[:validation])}
    splits = {
        split: Split(train[0][row], train[1][row].astype(np.int32), row.astype(np.int64)) for split, row in rows.items()
    }
    ids = size + np.arange(len(test[1]), dtype=np.int64)
    return Dataset(name, class_names, splits | {"test": Split(test[0], test[1].astype(np.int32), ids)})


def require_counts(where: str, label: np.ndarray, expected: Sequence[int]) -> None:
    """Refuses labels that are not as often there as in the official data.

    Args:
      where: file or split, for the message.
      label: [n].
      expected: how often each class is there.

    Raises:
      InputError: names the first class whose count differs.
    """
    counts = np.bincount(label, minlength=len(expected))
    for k, (found, count) in enumerate(itertools.zip_longest(counts, expected, fillvalue=0)):
        if found != count:
            raise InputError(
                f"{where}: {found} examples of class {k} ({len(label)} in all), the official data have {count} "
                f"({sum(expected)}); get the files again"
            )


def write_prepared(dataset: Dataset, directory: Path) -> Path:
    """Writes `directory`/<name>.npz, whole or not at all: the arrays and the names of a data set; returns the path.

    Raises:
      InputError: the folder cannot be written.
    """
    path = directory / f"{dataset.name}.npz"
    names = {field: np.array(getattr(dataset, field), np.str_) for field in _NAMES}
    files.write_npz(path, dataset.arrays() | names)
    return path


def read_prepared(name: str, directory: Path) -> Dataset:
    """The data set that `write_prepared` wrote.

    Raises:
      InputError: it is not prepared, or its file is damaged; the message has the command.
    """
    path = directory / f"{name}.npz"
    remedy = f"run: {prepare_command(name, directory)}"
    if not path.exists():
        raise InputError(f"{path}: the data set is not prepared; {remedy}")
    try:
        arrays = files.read_npz(path)
        for field in _NAMES:
            if field not in arrays:
                raise InputError(f"no array {field!r}")
            if arrays[field].ndim != 1 or arrays[field].dtype.kind != "U":
                raise InputError(f"{field} is {arrays[field].dtype} {list(arrays[field].shape)}, not text of one axis")
            files.text_of(field, arrays[field])
        class_names, group_names, vocabulary = (tuple(arrays.pop(field).tolist()) for field in _NAMES)
        return from_arrays(name, class_names, arrays, group_names=group_names, vocabulary=vocabulary)
    except InputError as error:
        raise InputError(f"{path}: not readable ({error}); {remedy}") from error
