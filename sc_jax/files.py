"""Whole-or-nothing writes, safe readers, fingerprints and locks: what touches the disk, and nothing else.

A file is written under a temporary name in its own folder, flushed, and renamed: after a crash at any moment the old file
or the new one is there, never half of one. Readers never unpickle.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import hashlib
import io
import json
import math
import mmap
import os
import struct
import sys
import tempfile
import weakref
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np


class InputError(ValueError):
    """Something the user gave is wrong; the message names the file and the field, and says what to do."""


class InUse(InputError):
    """Another process holds a workdir."""


def write_bytes(path: str | Path, data: bytes) -> None:
    """Writes `data` to `path`, whole or not at all; missing folders are made.

    Raises:
      InputError: the folder cannot be written, or the disk is full; what stood at `path` is untouched.
    """
    with _replacing(Path(path)) as file:
        file.write(data)


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[IO[bytes]]:
    """A new file that takes the place of `path` when the block ends well, and leaves no trace when it does not."""
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _clear(path)
        handle, temporary = _temporary(path)
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            os.chmod(temporary, 0o666 & ~_umask())
            os.replace(
                temporary, path
            )  # while it is locked: another writer of `path` takes an unlocked one for left over
            temporary = None
        _sync_folder(path.parent)
    except OSError as error:
        raise InputError(f"{path}: cannot write it ({error.strerror or error}); nothing was changed there") from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)


def _temporary(path: Path) -> tuple[int, str]:
    """A new file beside `path`, locked for as long as it is open."""
    while True:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        if os.fstat(handle).st_nlink:
            return handle, temporary
        os.close(handle)  # taken for left over before it was locked


def _clear(path: Path) -> None:
    """Removes what writers of `path` left that were killed: their files are not locked any more."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.????????.tmp"):
        with contextlib.suppress(OSError), open(left, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.unlink(left)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: str | Path, text: str) -> None:
    """Writes `text` as UTF-8, whole or not at all."""
    write_bytes(path, text.encode())


_SEAL = "content_sha256"


def write_json(path: str | Path, value: Any, *, seal: bool = False) -> None:
    """Writes `value` as JSON, whole or not at all; NaN and infinities become null, since JSON has no word for them.

    Args:
      path: of the file; value: what JSON can hold.
      seal: adds the hash of all else to an object, so that `read_json` refuses it once anything in it has changed.
    """
    if seal:
        value = {name: item for name, item in value.items() if name != _SEAL}
        value[_SEAL] = fingerprint_json(value)
    write_text(path, json.dumps(_finite(value), indent=1, allow_nan=False) + "\n")


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if isinstance(value, np.ndarray):
        return _finite(value.tolist())
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def read_json(path: str | Path, *, sealed: bool = False) -> Any:
    """Reads a JSON file, and checks the seal of `write_json` where it has one; the seal itself is left out.

    Args:
      path: of the file.
      sealed: it has to have one.

    Raises:
      InputError: it is missing, is not JSON, or is not what was written.
    """
    remedy = "restore it or delete it and run again"
    try:
        text = Path(path).read_text(encoding="utf-8")
        value = json.loads(text)
        if _is_deep(value):
            raise RecursionError(f"it is nested more than {_DEPTH} deep")
        if "\\ud" in text.lower():  # halves of characters, of which no text can be written
            json.dumps(value, ensure_ascii=False).encode()
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    # A ValueError also where bytes are no text, or a number has thousands of digits.
    except (OSError, ValueError, RecursionError, MemoryError) as error:
        raise InputError(f"{path}: not readable as JSON ({error}); {remedy}") from error
    stated = value.pop(_SEAL, None) if isinstance(value, dict) else None
    if (stated is not None or sealed) and stated != fingerprint_json(value):
        raise InputError(f"{path}: damaged, or changed by hand: it is not what was written; {remedy}")
    return value


_DEPTH = 100  # of JSON


def _is_deep(value: Any) -> bool:
    level = [value]
    for _ in range(_DEPTH + 1):
        level = [
            item
            for one in level
            for item in (one.values() if isinstance(one, dict) else one if isinstance(one, list) else ())
        ]
        if not level:
            return False
    return True


_BLOCK = 1 << 20  # bytes read at a time
_ALIGNMENT = 64
_DEFLATE_RATIO = 1032  # DEFLATE cannot do better: at most 258 bytes from two bits
_HEADER = 10_000  # the longest array header that is parsed, as in NumPy
_STREAMS = 256  # open positions within one compressed member


def write_npz(path: str | Path, arrays: Mapping[str, np.ndarray], *, compress: bool = False) -> None:
    """Writes named arrays as an npz, whole or not at all, in memory that does not grow with them.

    Uncompressed by default, each array at a multiple of 64 bytes, so that it can be mapped.

    Raises:
      InputError: the folder cannot be written, or the disk is full; what stood at `path` is untouched.
      ValueError: an array holds Python objects.
    """
    with _replacing(Path(path)) as file, zipfile.ZipFile(file, "w") as archive:
        for name, array in arrays.items():
            info = zipfile.ZipInfo(f"{name}.npy")
            if compress:
                info.compress_type = zipfile.ZIP_DEFLATED
            else:
                info.extra = _padding(file.tell() + 30 + len(info.filename.encode()) + 20)  # 20: the zip64 field
            with archive.open(info, "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asarray(array), allow_pickle=False)


def _padding(position: int) -> bytes:
    """An extra field of a zip header, after which what would be at `position` is aligned (the field of `zipalign`)."""
    length = -(position + 6) % _ALIGNMENT
    return struct.pack("<HHH", 0xD935, 2 + length, _ALIGNMENT) + bytes(length)


@contextlib.contextmanager
def _refusing(path: Path, name: str = "") -> Iterator[None]:
    """What a damaged file makes the readers raise becomes one line with file and field."""
    at = f"{path}, field {name!r}" if name else str(path)
    try:
        yield
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{at}: cannot read it ({error.strerror or error})") from error
    except MemoryError as error:
        raise InputError(f"{at}: does not fit into memory; read it in chunks") from error
    except (ValueError, EOFError, LookupError, ArithmeticError, RuntimeError) as error:
        raise _corrupt(at, error) from error
    except (zipfile.BadZipFile, zlib.error, struct.error) as error:
        raise _corrupt(at, error) from error


def _corrupt(at: str, error: Exception) -> InputError:
    why = " ".join(str(error).split()) or "it ends too early"
    return InputError(f"{at}: truncated, corrupt or not an npz ({why}); write it again")


class Npz(Mapping[str, "Member"]):
    """The arrays of an npz by name, each read when asked for; see `open_npz`.

    The file stays open, so that a file which takes its place under the same name is not mixed up with it, until `close`,
    the end of a `with` block, or until nothing refers to it. A mapped array stays valid after that.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._members: dict[str, Member] = {}
        with _refusing(self.path):
            if not self.path.is_file():
                raise InputError(f"{path}: no such file")
            if self.path.stat().st_size == 0:
                raise InputError(f"{path}: the file is empty (0 bytes)")
            self._file = open(self.path, "rb")  # noqa: SIM115 (held)
            self._close = weakref.finalize(self, self._file.close)
            if self._file.read(6) == np.lib.format.MAGIC_PREFIX:
                raise InputError(f"{path}: a single array; an npz with named arrays is needed: np.savez(path, label=…)")
            self._archive = zipfile.ZipFile(self._file)
            if not self._archive.infolist() and self._size() > 22 + len(self._archive.comment):
                raise ValueError("its directory is empty, the file is not")
        for info in self._archive.infolist():
            name = info.filename.removesuffix(".npy")
            with _refusing(self.path, name):
                if name in self._members:
                    raise ValueError("two members of this name")
                if b"PK\1\2" in info.extra + info.comment:  # a damaged length has swallowed the entries after it
                    raise ValueError("damaged directory")
                self._members[name] = Member(self, name, info)
        with _refusing(self.path):
            if sum(info.compress_size for info in self._archive.infolist()) > self._size():
                raise ValueError("its members overlap")

    def __getitem__(self, name: str) -> Member:
        return self._members[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._members)

    def __len__(self) -> int:
        return len(self._members)

    def __enter__(self) -> Npz:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file; arrays that were mapped stay."""
        self._close()

    def _size(self) -> int:
        return os.fstat(self._file.fileno()).st_size

    def _require_open(self) -> None:
        if self._file.closed:
            raise RuntimeError(f"{self.path} was closed; read it within the `with` block")


class Member:
    """One array of an npz, which need not fit into memory.

    The CRC of a member covers its header and all its data, and is checked in one pass of bounded memory before its first
    row leaves (`check`). `shape` and `dtype` are what the header says; that its size agrees is known.

    Attributes:
      name: the field.
      shape, dtype: of the array.
      mapped: it is stored uncompressed, so that `array` maps it and any row can be read at once.
    """

    def __init__(self, npz: Npz, name: str, info: zipfile.ZipInfo) -> None:
        self._npz, self._info, self.name = npz, info, name
        with self._open() as stream:
            text = io.BytesIO(stream.read(_HEADER + 12))
        self.shape, self._fortran, self.dtype = _array_header(text)
        self._skip = text.tell()
        self.mapped = info.compress_type == zipfile.ZIP_STORED
        self._checked = False
        self._streams: dict[int, zipfile.ZipExtFile] = {}

        if self.dtype.hasobject:
            raise InputError(
                f"{npz.path}, field {name!r}: holds pickled Python objects, which are never loaded; "
                "save plain numeric arrays"
            )
        if self._skip + self.nbytes != info.file_size:
            raise ValueError(
                f"shape {self.shape} of {self.dtype} takes {self.nbytes} bytes, {info.file_size - self._skip} are there"
            )
        if self.mapped:
            self._start = _data_offset(npz._file.fileno(), info) + self._skip
            end = self._start + self.nbytes
            if info.compress_size != info.file_size or end > npz._size():
                raise ValueError("its data reach beyond the file")
        elif info.file_size > _DEFLATE_RATIO * info.compress_size:
            raise ValueError(f"{info.compress_size} bytes cannot hold {info.file_size}")

    def __repr__(self) -> str:
        return f"<{self.name}: {self.dtype}{list(self.shape)}, {'mapped' if self.mapped else 'compressed'}>"

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the array."""
        return math.prod(self.shape) * self.dtype.itemsize

    def check(self) -> None:
        """Checks the CRC, unless that was done, by reading everything once.

        Raises:
          InputError: the member is damaged.
        """
        if not self._checked:
            for _ in self._blocks():
                pass

    def read(self) -> np.ndarray:
        """The whole array in memory."""
        with _refusing(self._npz.path, self.name):
            if self.nbytes > _available():  # allocating more may succeed, and end the process when it is used
                raise MemoryError
            buffer = np.empty(self.nbytes, np.uint8)
        position = 0
        for block in self._blocks():
            buffer[position : position + len(block)] = np.frombuffer(block, np.uint8)
            position += len(block)
        return np.ndarray(self.shape, self.dtype, buffer, order="F" if self._fortran else "C")

    def array(self) -> np.ndarray:
        """The whole array, read-only: mapped where it is stored uncompressed, else read into memory.

        A map ends with its array, so that arrays which are looked at one after the other do not add up in memory. Whoever
        shortens the file in place while it is mapped ends this process (SIGBUS); replacing it does no harm.
        """
        if not self.mapped or not self.nbytes:
            array = self.read()
            array.flags.writeable = False
            return array
        self._npz._require_open()
        self.check()
        with _refusing(self._npz.path, self.name):
            skip = self._start % mmap.ALLOCATIONGRANULARITY
            page = mmap.mmap(
                self._npz._file.fileno(), skip + self.nbytes, access=mmap.ACCESS_READ, offset=self._start - skip
            )
            return np.ndarray(self.shape, self.dtype, page, skip, order="F" if self._fortran else "C")

    def rows(self, start: int, stop: int, axis: int = 0) -> np.ndarray:
        """Rows `start` to `stop` along `axis`, copied into memory; in a compressed member, best in increasing order.

        A compressed member is decompressed from its beginning, or from where the last such call ended. Along an axis
        other than the first, each index before it has a position of its own.

        Raises:
          InputError: the member is damaged, or is compressed and in Fortran order, where rows do not lie together.
          IndexError: not 0 ≤ start ≤ stop ≤ length.
        """
        length = self.shape[axis]
        if not 0 <= start <= stop <= length:
            raise IndexError(f"rows {start}:{stop} of {length}")
        if self._fortran and not self.mapped:
            raise InputError(
                f"{self._npz.path}, field {self.name!r}: compressed in Fortran order, which cannot be read by rows; "
                "save np.ascontiguousarray of it"
            )
        self._npz._require_open()
        self.check()
        before, after = self.shape[: axis % self.ndim], self.shape[axis % self.ndim + 1 :]
        if self._fortran:
            return np.ascontiguousarray(self.array()[(slice(None),) * len(before) + (slice(start, stop),)])
        width = math.prod(after) * self.dtype.itemsize
        out = np.empty((math.prod(before), (stop - start) * width), np.uint8)
        with _refusing(self._npz.path, self.name):
            for i, part in enumerate(out if out.size else ()):
                self._fill((i * length + start) * width, memoryview(part))
        return out.reshape(-1).view(self.dtype).reshape(*before, stop - start, *after)

    def chunks(self, rows: int | None = None, axis: int = 0) -> Iterator[np.ndarray]:
        """All rows along `axis` in order, `rows` at a time (without: about 1 MiB at a time)."""
        rows = rows or _rows_of_a_block(self, axis)
        for start in range(0, self.shape[axis], rows):
            yield self.rows(start, min(start + rows, self.shape[axis]), axis)

    def _open(self) -> zipfile.ZipExtFile:
        info = self._info
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(f"zip method {info.compress_type}; np.savez and np.savez_compressed use 0 and 8")
        return self._npz._archive.open(info)

    def _blocks(self) -> Iterator[bytes]:
        """The data as they lie in the file; the end is reached only if length and CRC are right."""
        self._npz._require_open()
        with _refusing(self._npz.path, self.name), self._open() as stream:
            stream.read(self._skip)
            left = self.nbytes
            while left:
                block = stream.read(min(left, _BLOCK))
                if not block:
                    raise EOFError
                left -= len(block)
                yield block
        self._checked = True

    def _fill(self, offset: int, out: memoryview) -> None:
        """Reads `out` from byte `offset` of the data."""
        stream = None if self.mapped else self._stream_at(offset)
        while out:
            size = min(len(out), _BLOCK)
            if stream is None:
                # Not copied from the map: its pages would pile up, and a file cut short would be a signal, not an error.
                block = os.pread(self._npz._file.fileno(), size, self._start + offset)
            else:
                block = stream.read(size)
            if not block:
                raise EOFError
            out[: len(block)] = block
            out, offset = out[len(block) :], offset + len(block)
        if stream is not None:
            self._streams[offset] = stream
            if len(self._streams) > _STREAMS:
                self._streams.pop(next(iter(self._streams))).close()

    def _stream_at(self, offset: int) -> zipfile.ZipExtFile:
        """The stream that stands at byte `offset` of the data, or a new one that is brought there."""
        stream = self._streams.pop(offset, None)
        if stream is None:
            stream = self._open()
            left = self._skip + offset
            while left:  # its own `seek` takes 16 MiB at a time
                left -= len(stream.read(min(left, _BLOCK))) or left
        return stream


def _available() -> int:
    """Bytes of memory that can be had without swapping, as the kernel estimates them."""
    with contextlib.suppress(OSError, ValueError, StopIteration), open("/proc/meminfo", encoding="ascii") as file:
        return 1024 * int(next(line for line in file if line.startswith("MemAvailable:")).split()[1])
    return 1 << 62  # nothing says so


def _array_header(text: io.BytesIO) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, whether columns lie together, and dtype, from the beginning of an npy; `text` is then at its data.

    Raises:
      ValueError: it is none, or no array can have this shape.
    """
    version = np.lib.format.read_magic(text)
    parsers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in parsers:
        raise ValueError(f"npy version {version}")
    try:
        shape, fortran, dtype = parsers[version](text)
        if any(type(length) is not int or length < 0 for length in shape):
            raise ValueError(f"shape {shape}")
        if dtype.itemsize == 0 or dtype.subdtype is not None:
            raise ValueError(f"dtype {dtype}")
        # Allocates nothing, and raises where NumPy has no such array.
        np.empty(shape, dtype) if 0 in shape else np.broadcast_to(np.int8(0), shape)
    except Exception as error:  # the parser evaluates a stranger's text: it may raise anything
        raise ValueError(f"array header: {error}") from error
    return shape, fortran and len(shape) > 1, dtype


def _data_offset(file: int, info: zipfile.ZipInfo) -> int:
    """Where the bytes of a member begin: its local header has a name and extra fields of its own length."""
    header = os.pread(file, 30, info.header_offset)
    name, extra = struct.unpack("<HH", header[26:30])
    return info.header_offset + 30 + name + extra


def _rows_of_a_block(array: np.ndarray | Member, axis: int = 0) -> int:
    return max(1, _BLOCK * array.shape[axis] // max(1, array.nbytes))


def open_npz(path: str | Path) -> Npz:
    """Opens an npz without reading its arrays: `Npz` maps names to `Member`s. Never unpickles, never extracts.

    An uncompressed member is mapped from its place in the zip; a compressed one is decompressed as it is read. A header
    that disagrees with the size of its member is refused here, before anything is allocated.

    Args:
      path: the file.

    Returns:
      `Npz`: a read-only mapping from name to `Member`, to be used in a `with` block or kept.

    Raises:
      InputError: the file is missing, empty, truncated or corrupt, or holds Python objects. Damage within a member is
        found by `Member.check`, before its first row is given out.
    """
    return Npz(path)


def read_npz(path: str | Path) -> dict[str, np.ndarray]:
    """Reads every array of an npz, checking each member's CRC. Never unpickles.

    Raises:
      InputError: the file is missing, empty, truncated or corrupt, or holds Python objects.
    """
    with open_npz(path) as npz:
        return {name: member.read() for name, member in npz.items()}


def chunks(array: np.ndarray | Member, rows: int | None = None) -> Iterator[np.ndarray]:
    """The rows of an array or `Member` in order, `rows` at a time (without: about 1 MiB at a time).

    >>> [part.tolist() for part in chunks(np.arange(5), 2)]
    [[0, 1], [2, 3], [4]]
    """
    if isinstance(array, Member):
        yield from array.chunks(rows)
        return
    rows = rows or _rows_of_a_block(array)
    for start in range(0, len(array), rows):
        yield array[start : start + rows]


def text_of(what: str, names: np.ndarray) -> str:
    """The lines of an array of text, or of UTF-8; an array in a file may hold numbers that are no characters.

    Raises:
      InputError: it does.
    """
    try:
        if names.dtype.kind == "S":
            return b"\n".join(names.tolist()).decode()
        points = np.ascontiguousarray(names).view(np.dtype(np.uint32).newbyteorder(names.dtype.byteorder))
        if points.max(initial=0) > sys.maxunicode:  # of which Python makes a text that fails wherever it is used
            raise ValueError(f"the code point {points.max():#x}")
        text = "\n".join(names.tolist())
        text.encode()
        return text
    except ValueError as error:
        raise InputError(f"{what} is no text ({error}); write it as str, or as bytes of UTF-8") from error


_REMEDIES = {
    **dict.fromkeys(
        (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ENOLCK),
        "make room or mend the disk, then the same command goes on",
    ),
    **dict.fromkeys((errno.EACCES, errno.EPERM), "give this user the right to it, or name another path"),
    **dict.fromkeys((errno.ENAMETOOLONG, errno.ELOOP), "name another path"),
}


def refused_by_disk(error: OSError) -> str | None:
    """What a door says of a disk that gives no more, or of a path that cannot be looked at, in one line; None for other errors."""
    if error.errno not in _REMEDIES:
        return None
    at = f"{error.filename}: " if error.filename else ""
    return f"{at}{error.strerror}; {_REMEDIES[error.errno]}"


def fingerprint(arrays: Mapping[str, np.ndarray | Member]) -> str:
    """SHA-256 over name, dtype, shape and bytes of each array, in order of name.

    The same for a `Member` as for its array, in bounded memory (unless that is compressed in Fortran order).

    >>> fingerprint({"a": np.arange(3)}) == fingerprint({"a": np.arange(3)})
    True
    >>> fingerprint({"a": np.arange(3)}) == fingerprint({"a": np.arange(3.0)})
    False

    Raises:
      InputError: a `Member` is damaged; the pass over its bytes checks its CRC too.
    """
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = arrays[name] if isinstance(arrays[name], Member) else np.asarray(arrays[name])
        digest.update(f"{name}|{array.dtype.str}|{array.shape}|".encode())
        for block in _bytes(array):
            digest.update(block)
    return digest.hexdigest()


def _bytes(array: np.ndarray | Member) -> Iterator[bytes | np.ndarray]:
    """The bytes of an array in C order."""
    if isinstance(array, Member):
        if not array._fortran:
            yield from array._blocks()
            return
        array = array.array()
    for part in [array] if array.flags.c_contiguous else chunks(array):
        if part.size:
            yield np.ascontiguousarray(part).reshape(-1).view(np.uint8)


def fingerprint_json(value: Any) -> str:
    """SHA-256 of a JSON value, independent of the order of keys."""
    return hashlib.sha256(json.dumps(_finite(value), sort_keys=True).encode()).hexdigest()


def fingerprint_file(path: str | Path) -> str:
    """SHA-256 of a file's bytes.

    Raises:
      InputError: the file cannot be read.
    """
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error})") from error


def fingerprint_sources(*places: str) -> str:
    """SHA-256 of our own modules at these places of the package ("ops", "pages.py" …): results of other code are stale."""
    digest = hashlib.sha256()
    for place in places:
        path = Path(__file__).parent / place
        for source in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            digest.update(source.read_bytes())
    return digest.hexdigest()


@contextlib.contextmanager
def lock(workdir: str | Path) -> Iterator[None]:
    """Holds `workdir` for this process; it is released when the process ends, however it ends.

    Raises:
      InUse: another process holds it.
      InputError: the folder cannot be made, or its file system has no locks.
    """
    path = Path(workdir) / ".lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "a+")  # noqa: SIM115 (held below)
    except OSError as error:
        raise InputError(
            f"{workdir}: cannot be used as a workdir ({error.strerror}); name another --workdir"
        ) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InUse(
                f"{workdir}: another run is using this workdir; wait for it to end, or name another --workdir"
            ) from None
        except OSError as error:
            raise InputError(
                f"{path}: cannot be locked ({error.strerror}), so that two runs could not be kept apart; name a --workdir on a "
                "file system with locks"
            ) from error
        yield
