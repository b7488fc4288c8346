"""Data sets too large for memory: records read by index, transformed by threads, in batches that follow from the step.

    dataset = data.load("imagenet")
    crop = functools.partial(images.train_record, size=224)
    stream = batches(dataset.splits["train"], crop, batch_size=256, seed=0, first_step=1000, total_steps=5000)
    next(stream)    # {"image": uint8 [256, 224, 224, 3], "label": int32 [256], "example_id": int64 [256]}

Batch k is a function of the seed and k, whoever reads it and by how many threads, workers or processes, so a
restart needs no saved position; Grain's own `get_state` and `set_state` work too. Threads read ahead while the device
computes.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from sc_jax import files
from sc_jax.data import sources
from sc_jax.files import InputError

if TYPE_CHECKING:
    import grain

Record = dict[str, Any]
"""One example: "image", the bytes of its file; "label", an int or a uint8 [h, w] map of classes; "example_id", an int."""


class Source(Protocol):
    """One split: records by index. It can be pickled, for worker processes, and read by many threads at once."""

    example_id: np.ndarray
    """int64 [n], unique within the split."""

    def __len__(self) -> int:
        """The number of examples."""
        ...

    def __getitem__(self, index: int) -> Record:
        """The record at `index`; `InputError` if its file cannot be read."""
        ...

    def describe(self, index: int) -> str:
        """Which file that is, for messages."""
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class StreamedDataset:
    """A data set whose examples stay on disk, checked when it is made.

    Attributes:
      name: the name it is loaded by.
      class_names: the name of class i at place i.
      splits: by name; some may be parts of others. An example has the same id in every split it is in.
      fingerprint: SHA-256 of the names and labels of the files, independent of where and how they are stored.
      ignore_label: the label of pixels that are not scored, or None.

    Raises:
      InputError: an example id comes twice in a split, or a split is empty.
    """

    name: str
    class_names: tuple[str, ...]
    splits: Mapping[str, Source]
    fingerprint: str
    ignore_label: int | None = None

    def __post_init__(self) -> None:
        for name, source in self.splits.items():
            if not len(source):
                raise InputError(f"{self.name}: the split {name} is empty")
            if len(np.unique(source.example_id)) != len(source):
                raise InputError(f"{self.name}: an example id comes twice in {name}")

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return len(self.class_names)


def batches(
    source: Source,
    transform: Callable[[Record, np.random.Generator], Record],
    *,
    batch_size: int,
    seed: int,
    total_steps: int,
    first_step: int = 0,
    shuffle: bool = True,
    rows: np.ndarray | None = None,
    threads: int | None = None,
    workers: int = 0,
) -> grain.DatasetIterator[Record]:
    """Training batches of steps `first_step` to `total_steps` − 1: a new order every epoch, no example left out.

    Step k takes the places k·batch_size to (k + 1)·batch_size − 1 of the epochs written one after the other; a batch may
    lie in two. A process may take some `rows` of every batch and read no others. What `transform` draws depends on the
    seed, the epoch and the example.

    Args:
      source: the split, of n examples.
      transform: record, generator → record of equally shaped arrays; it must be picklable if there are workers.
      batch_size: examples per step in all processes together.
      seed: of the orders and of `transform`, 0 or more.
      total_steps: where the stream ends.
      first_step: where it begins.
      shuffle: whether the order is random.
      rows: int [r], places in every batch, increasing; all of them without.
      threads: that read and transform, in each worker; without, as many as the machine has cores.
      workers: processes that do it instead of this one. Threads suffice where `transform` lets go of the GIL.

    Returns:
      Grain's iterator over dicts of arrays [r, …], to be closed when it is left early. An error in a record is raised by
      `next`.

    Raises:
      InputError: a number is out of its range.
    """
    import grain

    rows = _checked_rows(batch_size, rows)
    if seed < 0:
        raise InputError(f"seed = {seed}; it should be 0 or more")
    if not 0 <= first_step <= total_steps:
        raise InputError(f"first_step = {first_step}; it should be in 0..total_steps = {total_steps}")
    order_seed, transform_seed = (int(word) for word in np.random.SeedSequence(seed).generate_state(2))
    # Drawn before it is shuffled: Grain counts the examples of epoch e from e·n on, and draws for that number.
    dataset = grain.MapDataset.range(len(source)).random_map(_Read(source, transform), seed=transform_seed)
    if shuffle:
        dataset = dataset.shuffle(seed=order_seed)
    dataset = _rows_of(dataset.repeat(), batch_size, rows)[first_step * len(rows) : total_steps * len(rows)]
    return _iterate(dataset, len(rows), threads, workers)


def evaluation_batches(
    source: Source,
    transform: Callable[[Record], Record],
    *,
    batch_size: int,
    rows: np.ndarray | None = None,
    threads: int | None = None,
    workers: int = 0,
) -> grain.DatasetIterator[Record]:
    """All examples once, in order, in ⌈n / batch_size⌉ batches of one shape: places beyond the end have the id −1.

    What else stands there is the last example again; leave out rows whose `example_id` is negative. Arguments and errors
    are those of `batches`; `transform` gets no generator.
    """
    import grain

    rows = _checked_rows(batch_size, rows)
    padded = -(-len(source) // batch_size) * batch_size
    dataset = grain.MapDataset.range(padded).map(_ReadPadded(source, transform))
    return _iterate(_rows_of(dataset, batch_size, rows), len(rows), threads, workers)


@dataclasses.dataclass(frozen=True)
class _Read:
    """Index → transformed record, with types that stack alike everywhere."""

    source: Source
    transform: Callable[..., Record]

    def __call__(self, index: int, *generator: np.random.Generator) -> Record:
        try:
            record = self.transform(self.source[index], *generator)
        except InputError as error:
            raise InputError(f"{self.source.describe(index)}: {error}") from error
        label = record["label"] if isinstance(record["label"], np.ndarray) else np.int32(record["label"])
        return {**record, "label": label, "example_id": np.int64(record["example_id"])}


class _ReadPadded(_Read):
    def __call__(self, index: int) -> Record:
        last = len(self.source) - 1
        record = super().__call__(min(index, last))
        return record if index <= last else {**record, "example_id": np.int64(-1)}


def _checked_rows(batch_size: int, rows: np.ndarray | None) -> list[int]:
    if batch_size < 1:
        raise InputError(f"batch_size = {batch_size}; it should be positive")
    rows = list(range(batch_size)) if rows is None else np.asarray(rows).tolist()
    if not rows or rows != sorted(set(rows)) or rows[0] < 0 or rows[-1] >= batch_size:
        raise InputError(f"rows = {rows}; they should be some of 0..{batch_size - 1}, increasing")
    return rows


def _rows_of(dataset: grain.MapDataset[Record], batch_size: int, rows: list[int]) -> grain.MapDataset[Record]:
    """The places of `dataset` that are among these rows of its batches, in order; its length is a multiple of `batch_size`."""
    import grain

    if len(rows) == batch_size:
        return dataset

    class Rows(grain.MapDataset):
        def __len__(self) -> int:
            return len(dataset) // batch_size * len(rows)

        def __getitem__(self, index: int | slice) -> Any:
            if isinstance(index, slice):
                return self.slice(index)
            batch, row = divmod(index, len(rows))
            return dataset[batch * batch_size + rows[row]]

    return Rows(dataset)


def _iterate(
    dataset: grain.MapDataset[Record], share: int, threads: int | None, workers: int
) -> grain.DatasetIterator[Record]:
    import grain

    for name, value, least in (("threads", 1 if threads is None else threads, 1), ("workers", workers, 0)):
        if value < least:
            raise InputError(f"{name} = {value}; it should be {least} or more")
    threads = threads or os.cpu_count() or 1
    stream = dataset.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads))
    if workers:  # before batches are made, or what is in a batch would depend on how many workers there are
        from absl import flags

        if not flags.FLAGS.is_parsed():  # Grain's workers ask for its flags, which absl refuses before; the defaults do
            flags.FLAGS.mark_as_parsed()
        stream = stream.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=threads))
    # One more thread stacks the next two batches while the caller is busy with this one.
    return iter(grain.experimental.ThreadPrefetchIterDataset(stream.batch(share), prefetch_buffer_size=2))


class TfdsSplit:
    """The records of a split that TFDS wrote as array_record, by index, images as the bytes of their files.

    It is opened when it is first read, and again in each process.
    """

    def __init__(self, folder: str | Path, split: str, images: tuple[str, ...]) -> None:
        """Args: `folder`, that of the version; `split`, TFDS's name of it; `images`, the features not to be decoded."""
        self.folder, self.split, self.images = str(folder), split, images
        self._records: Any = None

    def _opened(self) -> Any:
        if self._records is None:
            import tensorflow_datasets as tfds

            try:
                self._records = tfds.builder_from_directory(self.folder).as_data_source(
                    self.split, decoders={name: tfds.decode.SkipDecoding() for name in self.images}
                )
            except Exception as error:  # TFDS, and what it calls, raise anything
                raise InputError(
                    f"{self.folder}: no array_record of the split {self.split} ({sources.reason(error)}); prepare it with "
                    "--file_format=array_record"
                ) from error
        return self._records

    def __len__(self) -> int:
        return self._read(len)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._read(lambda records: records[int(index)])

    def _read(self, ask: Callable[[Any], Any]) -> Any:
        records = self._opened()
        try:
            return ask(records)
        except Exception as error:  # of TFDS, of array_record and of protobuf, which have no common base
            raise InputError(
                f"{self.folder}: the split {self.split} cannot be read ({sources.reason(error)}); prepare it again with "
                "--file_format=array_record"
            ) from error

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_records": None}


def write_list(arrays: Mapping[str, np.ndarray], location: Path, directory: Path, origin: sources.Origin) -> Path:
    """Writes what is known of the files of a data set that stays where it is, to `directory`/<name>.npz.

    Args:
      arrays: what it lists.
      location: where the files are; kept relative if within `directory`, so that both can be moved together.
      directory: where to write.
      origin: of the data set.

    Returns:
      The path.

    Raises:
      InputError: `directory` cannot be written.
    """
    location, root = location.resolve(), directory.resolve()
    place = location.relative_to(root) if location.is_relative_to(root) else location
    path = directory / f"{origin.dataset}.npz"
    files.write_npz(path, {**arrays, "location": np.array([str(place)])})
    return path


def read_list(
    directory: Path,
    origin: sources.Origin,
    tables: Sequence[Mapping[str, str]],
    wrong: Callable[[Mapping[str, np.ndarray]], str | None] = lambda arrays: None,
) -> tuple[dict[str, np.ndarray], Path]:
    """The arrays that `write_list` wrote, and where the files are.

    Args:
      directory: where the list is.
      origin: of the data set.
      tables: name → NumPy's kind of the arrays [n] that are equally long: "b"; "i", of which none is negative; "S" or "U", of
        which each is the name of a file within its folder.
      wrong: what else is wrong with the arrays, or None.

    Raises:
      InputError: the data set is not prepared, its list is damaged or names files elsewhere, or its folder has gone.
    """
    path = directory / f"{origin.dataset}.npz"
    command = sources.prepare_command(origin.dataset, directory)
    if not path.exists():
        raise InputError(
            f"{path}: the data set is not prepared; get {origin.files} from {origin.page} and run: {command} --from DIR"
        )
    try:
        found = files.read_npz(path)
        for table in (*tables, {"location": "U"}):
            for name, kind in table.items():
                if name not in found:
                    raise InputError(f"no array {name!r}")
                _require_column(name, found[name], kind, len(np.atleast_1d(found[next(iter(table))])))
        if len(found["location"]) != 1 or "\0" in files.text_of("location", found["location"]):
            raise InputError(f"{len(found['location'])} locations, or one that no folder can have")
        arrays = {name: found[name] for table in tables for name in table}
        for name, array in arrays.items():
            if array.dtype.kind in "SU":
                _require_file_names(name, array)
        reason = wrong(arrays)
        if reason is not None:
            raise InputError(reason)
    except InputError as error:
        raise InputError(f"{path}: not readable ({error}); run: {command} --from DIR") from error
    location = directory / str(found["location"][0])
    if not location.is_dir():
        raise InputError(
            f"{location}: the files of {origin.dataset} have gone; run: {command} --from DIR, with their folder"
        )
    return arrays, location


def _require_column(name: str, array: np.ndarray, kind: str, length: int) -> None:
    if array.dtype.kind != kind or array.ndim != 1:
        raise InputError(f"{name} is {array.dtype} {list(array.shape)}, not of the kind {kind!r} and of one axis")
    if len(array) != length:
        raise InputError(f"{name} has {len(array)} entries, those beside it have {length}")
    if kind == "i" and array.min(initial=0) < 0:
        raise InputError(f"{name} holds {array.min()}, which is negative")


def _require_file_names(what: str, names: np.ndarray) -> None:
    """Refuses a name with a folder in it, or of a folder, or that no file can have; as text or as UTF-8."""
    text = files.text_of(what, names)
    if "/" in text or "\0" in text or not {".", ".."}.isdisjoint(text.split("\n")):
        raise InputError(f"{what} holds what is no name of a file: a path, '.', '..' or a zero byte")


def read_file(path: Path) -> bytes:
    """The bytes of a file of a record; the caller says which.

    Raises:
      InputError: it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror}); prepare the data set again") from error
