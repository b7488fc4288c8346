"""Idx files, the format of MNIST and Fashion-MNIST: four of them hold a data set (format: yann.lecun.com/exdb/mnist)."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from sc_jax.data import sources
from sc_jax.files import InputError

NAMES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
"""The four files, as MNIST and Fashion-MNIST name them."""


def read_folder(folder: str | Path, names: Iterable[str] = NAMES) -> dict[str, np.ndarray]:
    """The idx files of these names in `folder`, gzipped or not, by name.

    Raises:
      InputError: a file is missing or is not idx.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; it should hold {', '.join(names)}, gzipped or not")
    arrays = {}
    for name in names:
        path = next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)
        if path is None:
            raise InputError(f"{folder}: neither {name} nor {name}.gz is there; all four idx files are needed")
        arrays[name] = read_idx(path)
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


def read_idx(path: str | Path) -> np.ndarray:
    """uint8 [d1, …], the array in an idx file, gzipped or not (format: yann.lecun.com/exdb/mnist).

    Raises:
      InputError: the file is missing, damaged, not idx, or longer or shorter than its header says.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
        if data[:2] == b"\x1f\x8b":
            data = gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: cannot be read ({error}); get the file again") from error
    if len(data) < 4 or data[:3] != b"\x00\x00\x08" or data[3] == 0:
        raise InputError(f"{path}: starts with {data[:4].hex() or 'nothing'}; an idx file of bytes starts with 000008")
    start = 4 + 4 * data[3]
    if len(data) < start:
        raise InputError(f"{path}: ends within the header of {start} bytes; get the file again")
    shape = struct.unpack(f">{data[3]}I", data[4:start])
    if len(data) - start != math.prod(shape):
        raise InputError(
            f"{path}: {len(data) - start} bytes of data, but the header says {' x '.join(map(str, shape))} = "
            f"{math.prod(shape)}; get the file again"
        )
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def idx_bytes(array: np.ndarray) -> bytes:
    """A uint8 array of one or more dimensions as the content of an idx file; `read_idx` undoes it."""
    header = struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    return header + array.astype(np.uint8, casting="no").tobytes()
