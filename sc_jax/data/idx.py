"""Idx files, the format of MNIST and Fashion-MNIST: four of them hold a data set (format: yann.lecun.com/exdb/mnist)."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import math
import os
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from sc_jax.data import sources
from sc_jax.files import InputError

NAMES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
"""The four files, as MNIST and Fashion-MNIST name them."""

_MOST, _SIDE = 60_000, 28  # images of a file, pixels of a side
_DEFLATE_RATIO = 1032  # DEFLATE cannot do better: at most 258 bytes from two bits


def read_folder(folder: str | Path, names: Iterable[str] = NAMES) -> dict[str, np.ndarray]:
    """The idx files of these names in `folder`, gzipped or not, by name: images uint8 [n, 28, 28], labels uint8 [n].

    Raises:
      InputError: a file is missing, is not idx, or holds arrays of another shape or more than 60,000 of them.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; it should hold {', '.join(names)}, gzipped or not")
    arrays = {}
    for name in names:
        path = next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)
        if path is None:
            raise InputError(f"{folder}: neither {name} nor {name}.gz is there; get it, all four idx files are needed")
        arrays[name] = read_idx(path, (_MOST, _SIDE, _SIDE) if "images" in name else (_MOST,))
    return arrays


def read_tfds(builder: Any) -> dict[str, np.ndarray]:
    """What the idx files hold, by name, from the TFDS builder of MNIST or Fashion-MNIST, in the official order."""
    arrays = {}
    for split, part in (("train", "train"), ("test", "t10k")):
        source = builder.as_data_source(split=split)
        image, label = np.empty((len(source), 28, 28), np.uint8), np.empty(len(source), np.uint8)
        for index, record in zip(sources.tfds_order(split, len(source)), source, strict=True):
            image[index], label[index] = record["image"][..., 0], record["label"]
        arrays |= {f"{part}-images-idx3-ubyte": image, f"{part}-labels-idx1-ubyte": label}
    return arrays


def verified(arrays: Mapping[str, np.ndarray], sha256: Mapping[str, str], origin: str) -> dict[str, np.ndarray]:
    """Returns `arrays` if they are, bit for bit, what the official idx files hold.

    Args:
      arrays: by the names of the files.
      sha256: of the decompressed content of each official file.
      origin: where they come from, for the message.

    Raises:
      InputError: names the file whose content differs.
    """
    for name, expected in sha256.items():
        found = hashlib.sha256(idx_bytes(arrays[name])).hexdigest()
        if found != expected:
            raise InputError(
                f"{origin}: {name} is not the official one: its decompressed content has SHA-256 {found[:12]}…, "
                f"expected {expected[:12]}…; get the file again"
            )
    return dict(arrays)


def read_idx(path: str | Path, most: tuple[int, ...] | None = None) -> np.ndarray:
    """uint8 [d1, …], the array in an idx file, gzipped or not (format: yann.lecun.com/exdb/mnist).

    No more is decompressed than the header says, and nothing if so much cannot be there.

    Args:
      path: the file.
      most: if given, the largest d1 and all other dimensions as they have to be.

    Raises:
      InputError: the file is missing, damaged, not idx, longer or shorter than its header says, or of another shape.
    """
    path = Path(path)
    with _opened(path) as (stream, largest):
        head = stream.read(4)
        if len(head) < 4 or head[:3] != b"\x00\x00\x08" or head[3] == 0:
            raise InputError(
                f"{path}: starts with {head.hex() or 'nothing'}; an idx file of bytes starts with 000008; get the file again"
            )
        lengths = stream.read(4 * head[3])
        if len(lengths) < 4 * head[3]:
            raise InputError(f"{path}: ends within the header of {4 + 4 * head[3]} bytes; get the file again")
        shape = struct.unpack(f">{head[3]}I", lengths)
        says = f"but the header says {' x '.join(map(str, shape))} = {math.prod(shape)}"
        if most is not None and (len(shape) != len(most) or shape[0] > most[0] or shape[1:] != most[1:]):
            raise InputError(
                f"{path}: of shape {' x '.join(map(str, shape))}, not {' x '.join(map(str, most))} or fewer; get the file again"
            )
        if math.prod(shape) > largest:
            raise InputError(f"{path}: at most {largest} bytes of data, {says}; get the file again")
        data = stream.read(math.prod(shape) + 1)
        if len(data) != math.prod(shape):
            found = "more bytes of data" if len(data) > math.prod(shape) else f"{len(data)} bytes of data"
            raise InputError(f"{path}: {found}, {says}; get the file again")
    try:
        return np.frombuffer(data, np.uint8).reshape(shape)
    except ValueError as error:  # NumPy has at most 64 dimensions
        raise InputError(f"{path}: {len(shape)} dimensions ({error}); get the file again") from error


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[IO[bytes], int]]:
    """A file, decompressed as it is read if it is gzipped, and how many bytes it can have at most."""
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            zipped = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            if zipped:
                with gzip.GzipFile(fileobj=file) as stream:
                    yield stream, _DEFLATE_RATIO * size
            else:
                yield file, size
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: cannot be read ({error}); get the file again") from error


def idx_bytes(array: np.ndarray) -> bytes:
    """A uint8 array of one or more dimensions as the content of an idx file; `read_idx` undoes it."""
    header = struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    return header + array.astype(np.uint8, casting="no").tobytes()
