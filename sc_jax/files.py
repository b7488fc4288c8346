"""Whole-or-nothing writes, safe readers, fingerprints and locks: what touches the disk, and nothing else.

A file is written under a temporary name in its own folder, flushed, and renamed: after a crash at any moment the old file
or the new one is there, never half of one. Readers never unpickle.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import json
import math
import os
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np


class InputError(ValueError):
    """Something the user gave is wrong; the message names the file and the field, and says what to do."""


def write_bytes(path: str | Path, data: bytes) -> None:
    """Writes `data` to `path`, whole or not at all; missing folders are made.

    Raises:
      InputError: the folder cannot be written, or the disk is full; what stood at `path` is untouched.
    """
    path = Path(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
        temporary = None
        _sync_folder(path.parent)
    except OSError as error:
        raise InputError(f"{path}: cannot write it ({error.strerror or error}); nothing was changed there") from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)


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


def write_json(path: str | Path, value: Any) -> None:
    """Writes `value` as JSON, whole or not at all; NaN and infinities become null, since JSON has no word for them."""
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


def read_json(path: str | Path) -> Any:
    """Reads a JSON file.

    Raises:
      InputError: it is missing or is not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{path}: not readable as JSON ({error}); restore it or delete it and run again") from error


def write_npz(path: str | Path, arrays: Mapping[str, np.ndarray], *, compress: bool = False) -> None:
    """Writes named arrays as an npz, whole or not at all. Uncompressed by default, so that members can be mapped."""
    buffer = io.BytesIO()
    (np.savez_compressed if compress else np.savez)(
        buffer, **{name: np.asarray(array) for name, array in arrays.items()}
    )
    write_bytes(path, buffer.getvalue())


def read_npz(path: str | Path) -> dict[str, np.ndarray]:
    """Reads every array of an npz, checking each member's CRC. Never unpickles.

    Raises:
      InputError: the file is missing, empty, truncated or corrupt, or holds Python objects.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    if path.stat().st_size == 0:
        raise InputError(f"{path}: the file is empty (0 bytes)")
    arrays = {}
    name = ""
    try:
        with open(path, "rb") as file:
            single = file.read(6) == np.lib.format.MAGIC_PREFIX
        if single:
            raise InputError(f"{path}: a single array; an npz with named arrays is needed: np.savez(path, label=…)")
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                with archive.open(name) as member:
                    arrays[name.removesuffix(".npy")] = np.lib.format.read_array(member, allow_pickle=False)
                    if member.read(1):  # only a member read to its end has its CRC checked
                        raise ValueError("more bytes than its header says")
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{path}: cannot read it ({error.strerror or error})") from error
    except (ValueError, EOFError, KeyError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        field = f", field {name.removesuffix('.npy')!r}" if name else ""
        if "allow_pickle" in str(error):
            raise InputError(
                f"{path}{field}: holds pickled Python objects, which are never loaded; save plain numeric arrays"
            ) from error
        raise InputError(f"{path}{field}: truncated, corrupt or not an npz ({error}); write it again") from error
    return arrays


def fingerprint(arrays: Mapping[str, np.ndarray]) -> str:
    """SHA-256 over name, dtype, shape and bytes of each array, in order of name.

    >>> fingerprint({"a": np.arange(3)}) == fingerprint({"a": np.arange(3)})
    True
    >>> fingerprint({"a": np.arange(3)}) == fingerprint({"a": np.arange(3.0)})
    False
    """
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.asarray(arrays[name])
        digest.update(f"{name}|{array.dtype.str}|{array.shape}|".encode())
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data if array.size else b"")
    return digest.hexdigest()


def fingerprint_json(value: Any) -> str:
    """SHA-256 of a JSON value, independent of the order of keys."""
    return hashlib.sha256(json.dumps(_finite(value), sort_keys=True).encode()).hexdigest()


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
      InputError: another process holds it, or the folder cannot be made.
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
            raise InputError(
                f"{workdir}: another run is using this workdir; wait for it to end, or name another --workdir"
            ) from None
        yield
