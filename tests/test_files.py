"""Whole-or-nothing writes, readers that refuse, fingerprints that see everything, locks that end with their process."""

import errno
import gc
import io
import json
import mmap
import os
import pickle
import re
import signal
import struct
import subprocess
import sys
import tracemalloc
import warnings
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sc_jax import files
from sc_jax.files import InputError

ARRAYS = {"label": np.arange(5), "logits": np.linspace(-1, 1, 15, dtype=np.float32).reshape(5, 3)}


def same(a, b):
    return a.keys() == b.keys() and all(
        a[name].dtype == b[name].dtype and np.array_equal(a[name], b[name]) for name in a
    )


# --- writing ----------------------------------------------------------------------------------------------------------

WRITERS = {
    "bytes": lambda path: files.write_bytes(path, b"new"),
    "text": lambda path: files.write_text(path, "new"),
    "json": lambda path: files.write_json(path, {"new": 1}),
    "npz": lambda path: files.write_npz(path, ARRAYS),
}


def disk_full(*_):
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("stage", ["replace", "fsync", "fdopen"])
@pytest.mark.parametrize("writer", WRITERS)
def test_a_failing_write_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch, writer, stage):
    path = tmp_path / "out"
    path.write_bytes(b"old")
    with monkeypatch.context() as patch:
        patch.setattr(os, stage, disk_full)
        with pytest.raises(InputError, match=r"out: cannot write it \(No space left on device\)"):
            WRITERS[writer](path)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["out"]


def test_a_write_that_is_interrupted_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    path = tmp_path / "out"
    path.write_bytes(b"old")
    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        files.write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["out"]


def test_a_value_that_json_cannot_hold_is_refused_before_the_file_is_touched(tmp_path):
    path = tmp_path / "out.json"
    files.write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        files.write_json(path, {"a": object()})
    assert files.read_json(path) == {"a": 1}
    assert os.listdir(tmp_path) == ["out.json"]


def test_what_is_written_appears_under_its_name_at_once(tmp_path, monkeypatch):
    """At the moment of the rename the temporary file, in the same folder, already holds everything."""
    seen = []
    replace = os.replace

    def watched(source, target):
        seen.append((os.path.dirname(source) == str(tmp_path), Path(source).read_bytes(), os.path.exists(target)))
        replace(source, target)

    monkeypatch.setattr(os, "replace", watched)
    files.write_bytes(tmp_path / "out", b"all of it")
    assert seen == [(True, b"all of it", False)]


def test_missing_folders_are_made_and_a_file_in_the_way_is_named(tmp_path):
    files.write_text(tmp_path / "a" / "b" / "out", "é")
    assert (tmp_path / "a" / "b" / "out").read_text(encoding="utf-8") == "é"
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file/out: cannot write it"):
        files.write_text(tmp_path / "file" / "out", "")
    with pytest.raises(InputError, match="a/b: cannot write it"):
        files.write_text(tmp_path / "a" / "b", "")
    assert (tmp_path / "a" / "b" / "out").exists()


def test_files_have_the_permissions_that_the_umask_gives(tmp_path):
    before = os.umask(0o027)
    try:
        files.write_text(tmp_path / "out", "")
    finally:
        os.umask(before)
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o640


def test_json_has_null_for_what_is_not_finite_and_plain_numbers_for_numpy(tmp_path):
    value = {
        "nan": float("nan"),
        "infinite": [np.float32("inf"), (-np.inf,)],
        "array": np.array([[1.5, np.nan]]),
        "scalar": np.int64(3),
        "flag": np.bool_(True),
        1: "key",
    }
    files.write_json(tmp_path / "out.json", value)
    text = (tmp_path / "out.json").read_text()
    assert "NaN" not in text
    assert "Infinity" not in text
    assert json.loads(text) == {
        "nan": None,
        "infinite": [None, [None]],
        "array": [[1.5, None]],
        "scalar": 3,
        "flag": True,
        "1": "key",
    }


def test_another_writer_of_a_path_leaves_a_finished_file_alone(tmp_path, monkeypatch):
    """Up to the rename it is locked, and so not left over."""
    replace = os.replace

    def after_another_has_begun(temporary, path):
        files._clear(path)
        replace(temporary, path)

    monkeypatch.setattr(os, "replace", after_another_has_begun)
    files.write_text(tmp_path / "x.txt", "whole")
    assert (tmp_path / "x.txt").read_text() == "whole"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": 1', "not readable as JSON"),
        (b"", "not readable as JSON"),
        (b"\xff\xfe", "not readable as JSON"),
        (b'{"a": "\\uD800"}', "not readable as JSON .*surrogates"),
    ],
)
def test_json_that_is_none_is_refused(tmp_path, content, message):
    path = tmp_path / "broken.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=f"broken.json: {message}"):
        files.read_json(path)
    with pytest.raises(InputError, match=r"none\.json: no such file"):
        files.read_json(tmp_path / "none.json")


# --- npz --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compress", [False, True])
def test_npz_comes_back_as_it_went(tmp_path, compress):
    arrays = {
        **ARRAYS,
        "empty": np.zeros((0, 3)),
        "scalar": np.array(2.5),
        "text": np.array(["a", "bß"]),
        "columns": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    }
    files.write_npz(tmp_path / "x.npz", arrays, compress=compress)
    assert same(files.read_npz(tmp_path / "x.npz"), arrays)
    with zipfile.ZipFile(tmp_path / "x.npz") as archive:
        kinds = {item.compress_type for item in archive.infolist()}
    assert kinds == {zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED}


def test_missing_and_empty_npz_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"none\.npz: no such file"):
        files.read_npz(tmp_path / "none.npz")
    with pytest.raises(InputError, match="no such file"):
        files.read_npz(tmp_path)
    (tmp_path / "empty.npz").write_bytes(b"")
    with pytest.raises(InputError, match=r"empty\.npz: the file is empty"):
        files.read_npz(tmp_path / "empty.npz")


@pytest.mark.parametrize("compress", [False, True])
def test_an_npz_cut_anywhere_is_refused(tmp_path, compress):
    path = tmp_path / "cut.npz"
    files.write_npz(path, ARRAYS, compress=compress)
    whole = path.read_bytes()
    cuts = np.random.default_rng(0).integers(1, len(whole), 60).tolist()
    for cut in [1, 2, 4, len(whole) - 1, *cuts]:
        path.write_bytes(whole[:cut])
        with pytest.raises(InputError, match=r"cut\.npz.*truncated, corrupt or not an npz"):
            files.read_npz(path)


@pytest.mark.parametrize("compress", [False, True])
def test_no_flipped_bit_changes_what_is_read(tmp_path, compress):
    """Two bits of every byte of the file: of the data, of the arrays' headers, and of the zip around them.

    A bit in a time stamp may flip unnoticed, but nothing that is read has another name, type, shape or content, and
    nothing is missing.
    """
    path = tmp_path / "bit.npz"
    files.write_npz(path, ARRAYS, compress=compress)
    whole = path.read_bytes()
    refused = 0
    for position in range(len(whole)):
        for bit in (position % 8, (position + 3) % 8):
            damaged = bytearray(whole)
            damaged[position] ^= 1 << bit
            path.write_bytes(damaged)
            try:
                arrays = files.read_npz(path)
            except InputError:
                refused += 1
            else:
                assert same(arrays, ARRAYS), f"bit {bit} of byte {position} went unseen"
    assert refused > len(whole)


def test_a_long_array_whose_header_says_fewer_rows_is_refused(tmp_path):
    """Readers that stop at the length in the header never reach the CRC at the end of the member."""
    path = tmp_path / "rows.npz"
    files.write_npz(path, {"label": np.arange(50_000)})
    content = path.read_bytes()
    assert content.count(b"(50000,)") == 1
    path.write_bytes(content.replace(b"(50000,)", b"(10000,)"))
    with pytest.raises(InputError, match=r"rows\.npz, field 'label': truncated, corrupt"):
        files.read_npz(path)


class _Bomb:
    """Pickles to a call that makes a file, if it is ever loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


def test_pickled_objects_are_refused_and_never_executed(tmp_path):
    mark = tmp_path / "executed"
    np.savez(tmp_path / "objects.npz", label=np.arange(3), logits=np.array([_Bomb(str(mark))], object))
    with pytest.raises(InputError, match=r"objects\.npz, field 'logits': holds pickled Python objects"):
        files.read_npz(tmp_path / "objects.npz")
    (tmp_path / "pickle.npz").write_bytes(pickle.dumps({"label": _Bomb(str(mark))}))
    with pytest.raises(InputError, match=r"pickle\.npz: .*not an npz"):
        files.read_npz(tmp_path / "pickle.npz")
    assert not mark.exists()


def test_a_single_array_is_refused_with_the_call_that_writes_named_ones(tmp_path):
    buffer = io.BytesIO()
    np.save(buffer, np.arange(3))
    (tmp_path / "single.npz").write_bytes(buffer.getvalue())
    with pytest.raises(InputError, match=r"single\.npz: a single array.*np\.savez"):
        files.read_npz(tmp_path / "single.npz")


def test_a_member_that_is_no_array_is_refused(tmp_path):
    """A zip from another tool may hold a file of the right name."""
    with zipfile.ZipFile(tmp_path / "other.npz", "w") as archive:
        archive.writestr("label", "0 1 2")
    with pytest.raises(InputError, match=r"other\.npz, field 'label'"):
        files.read_npz(tmp_path / "other.npz")


@given(st.binary(min_size=1, max_size=200))
def test_any_bytes_at_all_are_refused_as_an_input_error(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("any") / "any.npz"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"any\.npz"):
        files.read_npz(path)


def test_a_file_that_may_not_be_read_is_refused(tmp_path, monkeypatch):
    def forbidden(*_):
        raise PermissionError(13, "Permission denied")

    files.write_npz(tmp_path / "x.npz", ARRAYS)
    monkeypatch.setattr(files, "open", forbidden, raising=False)
    with pytest.raises(InputError, match=r"x\.npz: cannot read it \(Permission denied\)"):
        files.read_npz(tmp_path / "x.npz")


# --- npz, array by array ----------------------------------------------------------------------------------------------


def by_numpy(path, arrays):
    np.savez(path, **arrays)


def by_numpy_compressed(path, arrays):
    np.savez_compressed(path, **arrays)


def by_us(path, arrays):
    files.write_npz(path, arrays)


def by_zip(zip64, compression=zipfile.ZIP_STORED):
    """With extra fields before the data, or a zip64 header and none; with a comment."""

    def write(path, arrays):
        with zipfile.ZipFile(path, "w", compression) as archive:
            archive.comment = b"made elsewhere"
            for i, (name, array) in enumerate(arrays.items()):
                info = zipfile.ZipInfo(f"{name}.npy")
                info.compress_type = compression
                info.extra = b"" if zip64 else struct.pack("<HH", 0xCAFE, 3 * i) + bytes(3 * i)
                with archive.open(info, "w", force_zip64=zip64) as member:
                    np.lib.format.write_array(member, array, version=(2, 0) if i % 2 else (1, 0))

    return write


class Pipe(io.RawIOBase):
    """Takes bytes and cannot seek, so that the zip gives sizes after the data."""

    def __init__(self, file):
        self.file = file

    def writable(self):
        return True

    def write(self, data):
        return self.file.write(data)


def by_pipe(compression):
    def write(path, arrays):
        with open(path, "wb") as file, zipfile.ZipFile(Pipe(file), "w", compression) as archive:
            for name, array in arrays.items():
                with archive.open(f"{name}.npy", "w") as member:
                    np.lib.format.write_array(member, array)

    return write


def after_a_preface(path, arrays):
    """As in a self-extracting archive: every offset in the directory is short by the same length."""
    by_numpy(path, arrays)
    path.write_bytes(b"#!/bin/sh\nexit 0\n" + path.read_bytes())


STORED = {
    "numpy": by_numpy,
    "us": by_us,
    "extra fields": by_zip(zip64=False),
    "zip64": by_zip(zip64=True),
    "pipe": by_pipe(zipfile.ZIP_STORED),
    "preface": after_a_preface,
}
DEFLATED = {
    "numpy compressed": by_numpy_compressed,
    "us compressed": lambda path, arrays: files.write_npz(path, arrays, compress=True),
    "zip64 deflated": by_zip(zip64=True, compression=zipfile.ZIP_DEFLATED),
    "pipe deflated": by_pipe(zipfile.ZIP_DEFLATED),
}
ALL_WRITERS = STORED | DEFLATED

dtypes = st.sampled_from(
    ["?", "i1", "<i4", ">i8", "u2", "<f2", "<f4", ">f8", "g", "<c8", "<U3", "S2", "M8[ns]", "m8[s]"]
) | st.just([("a", "<f4"), ("b", "i1", (2,))])


@st.composite
def any_array(draw):
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5))
    dtype = np.dtype(draw(dtypes))
    content = np.random.default_rng(draw(st.integers(0, 9))).integers(0, 2, np.prod(shape, dtype=int) * dtype.itemsize)
    array = content.astype(np.uint8).view(dtype).reshape(shape)
    return draw(st.sampled_from([np.ascontiguousarray, np.asfortranarray]))(array)


def bits(array):
    return array.dtype, array.shape, np.ascontiguousarray(array).tobytes()


@settings(max_examples=80, deadline=None)
@given(
    st.dictionaries(st.text("ab_ß", min_size=1, max_size=3), any_array(), min_size=1, max_size=3),
    st.sampled_from(sorted(ALL_WRITERS)),
)
def test_every_way_to_read_gives_what_numpy_reads(tmp_path_factory, arrays, writer):
    path = tmp_path_factory.mktemp("any") / "x.npz"
    ALL_WRITERS[writer](path, arrays)
    expected = arrays
    if writer != "preface":  # which NumPy does not take for an npz
        with np.load(path) as loaded:
            expected = {name: loaded[name] for name in loaded}
    with files.open_npz(path) as npz:
        assert set(npz) == set(expected) == set(arrays)
        assert files.fingerprint(npz) == files.fingerprint(expected)
        for name, array in expected.items():
            member = npz[name]
            assert (member.dtype, member.shape, member.ndim, member.nbytes) == (
                array.dtype,
                array.shape,
                array.ndim,
                array.nbytes,
            )
            assert member.mapped == (writer in STORED)
            assert bits(member.read()) == bits(member.array()) == bits(array)
            assert member.read().flags.writeable
            assert not member.array().flags.writeable
            for axis in range(-array.ndim, array.ndim):
                if member.mapped or array.flags.c_contiguous:
                    parts = list(member.chunks(2, axis))
                    assert [part.shape[axis] for part in parts[:-1]] == [2] * (len(parts) - 1)
                    assert all(part.dtype == array.dtype for part in parts)
                    if parts:
                        np.testing.assert_array_equal(np.concatenate(parts, axis), array)
                    middle = np.moveaxis(np.moveaxis(array, axis, 0)[1:3], 0, axis)
                    start, stop = min(1, array.shape[axis]), min(3, array.shape[axis])
                    assert bits(member.rows(start, stop, axis)) == bits(middle)
                else:
                    with pytest.raises(InputError, match=r"compressed in Fortran order.*ascontiguousarray"):
                        member.rows(0, 0, axis)


@settings(max_examples=60, deadline=None)
@given(
    hnp.array_shapes(min_dims=3, max_dims=3, min_side=1, max_side=4),
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4), st.integers(0, 2)), max_size=8),
    st.sampled_from([by_numpy, by_numpy_compressed]),
)
def test_rows_may_be_read_in_any_order_and_by_readers_in_turn(tmp_path_factory, shape, wanted, write):
    path = tmp_path_factory.mktemp("any") / "x.npz"
    array = np.arange(np.prod(shape)).reshape(shape)
    write(path, {"x": array})
    member = files.open_npz(path)["x"]
    for a, b, axis in wanted:
        start, stop = sorted((min(a, shape[axis]), min(b, shape[axis])))
        np.testing.assert_array_equal(member.rows(start, stop, axis), np.take(array, range(start, stop), axis))
    for one, other in zip(member.chunks(1, 1), member.chunks(1, 1), strict=True):
        np.testing.assert_array_equal(one, other)


def test_an_npz_of_no_arrays_has_none_but_a_damaged_one_is_not_taken_for_it(tmp_path):
    for write in (by_numpy, by_us):
        write(tmp_path / "x.npz", {})
        assert files.read_npz(tmp_path / "x.npz") == {}
    end = (tmp_path / "x.npz").read_bytes()
    by_us(tmp_path / "x.npz", ARRAYS)
    content = (tmp_path / "x.npz").read_bytes()
    (tmp_path / "x.npz").write_bytes(content[: -len(end)] + end)
    with pytest.raises(InputError, match="its directory is empty"):
        files.read_npz(tmp_path / "x.npz")


def test_what_is_outside_an_array_is_no_row(tmp_path):
    by_us(tmp_path / "x.npz", ARRAYS)
    member = files.open_npz(tmp_path / "x.npz")["label"]
    for start, stop in ((-1, 2), (3, 2), (0, 6)):
        with pytest.raises(IndexError, match="of 5"):
            member.rows(start, stop)


@pytest.mark.parametrize("write", [by_us, by_numpy, after_a_preface])
def test_stored_arrays_are_mapped_and_ours_are_aligned(tmp_path, write):
    arrays = {name: np.arange(7.0) for name in ("a", "bc", "def", "ä")}
    write(tmp_path / "x.npz", arrays)
    npz = files.open_npz(tmp_path / "x.npz")
    for name in arrays:
        array = npz[name].array()
        assert isinstance(array.base, mmap.mmap)
        assert write is not by_us or array.ctypes.data % 64 == 0
    with zipfile.ZipFile(tmp_path / "x.npz") as archive:
        assert archive.testzip() is None


@pytest.mark.parametrize("write", [by_us, by_numpy_compressed])
def test_what_was_opened_is_read_whatever_takes_its_name(tmp_path, write):
    path = tmp_path / "x.npz"
    write(path, ARRAYS)
    npz = files.open_npz(path)
    mapped = npz["logits"].array()
    write(path.with_name("new"), {"label": np.zeros(5, int), "logits": np.zeros((5, 3), np.float32)})
    os.replace(path.with_name("new.npz") if path.with_name("new.npz").exists() else path.with_name("new"), path)
    assert same({name: npz[name].read() for name in npz}, ARRAYS)
    assert same({"logits": mapped}, {"logits": ARRAYS["logits"]})
    assert not files.read_npz(path)["logits"].any()


def test_a_closed_file_is_not_read_but_what_was_mapped_stays(tmp_path):
    by_us(tmp_path / "x.npz", ARRAYS)
    with files.open_npz(tmp_path / "x.npz") as npz:
        array = npz["logits"].array()
        assert npz["label"].check() is None
    np.testing.assert_array_equal(array, ARRAYS["logits"])
    for read in (npz["label"].read, lambda: npz["label"].rows(0, 1), lambda: list(npz["label"].chunks())):
        with pytest.raises(RuntimeError, match=r"x\.npz was closed"):
            read()


def test_a_file_is_closed_when_nobody_holds_it(tmp_path):
    by_us(tmp_path / "x.npz", ARRAYS)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        file = files.open_npz(tmp_path / "x.npz")._file
        gc.collect()
    assert file.closed
    assert not [warning for warning in caught if str(tmp_path) in str(warning.message)]


READERS = {
    "read": lambda path: files.read_npz(path),
    "array": lambda path: {name: member.array() for name, member in files.open_npz(path).items()},
    "rows": lambda path: {name: member.rows(0, len(member)) for name, member in files.open_npz(path).items()},
    "chunks": lambda path: {name: np.concatenate(list(m.chunks(2))) for name, m in files.open_npz(path).items()},
    "fingerprint": lambda path: files.fingerprint(files.open_npz(path)),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("writer", ["us", "numpy compressed", "zip64", "pipe", "pipe deflated"])
def test_damage_anywhere_is_refused_by_every_reader_before_a_row_leaves(tmp_path, writer, reader):
    """Flipped bits, cuts, and a byte lost or too many: what is read is right, or there is an InputError of one line."""
    path = tmp_path / "x.npz"
    ALL_WRITERS[writer](path, ARRAYS)
    whole = path.read_bytes()
    right = files.fingerprint(ARRAYS) if reader == "fingerprint" else ARRAYS
    rng = np.random.default_rng(zlib.crc32(f"{writer}{reader}".encode()))
    refused = []
    for trial in range(300):
        at, bit = int(rng.integers(len(whole))), int(rng.integers(8))
        damaged = [
            whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :],
            whole[:at],
            whole[:at] + whole[at + 1 :],
            whole[:at] + bytes([whole[at]]) + whole[at:],
            whole[:at] + bytes(min(64, len(whole) - at)) + whole[at + 64 :],
        ][trial % 5]
        path.write_bytes(damaged)
        try:
            got = READERS[reader](path)
        except InputError as error:
            refused.append(str(error))
        else:
            assert got == right if reader == "fingerprint" else same(got, right), (at, bit, trial % 5)
    assert len(refused) > 200
    assert all(message.startswith(str(path)) and "\n" not in message for message in refused)


def test_a_flipped_bit_in_a_large_array_is_found_before_its_first_row(tmp_path):
    path = tmp_path / "x.npz"
    for write in (by_us, by_numpy_compressed):
        write(path, {"x": np.random.default_rng(0).integers(0, 256, 6 << 20).astype(np.uint8)})
        damaged = bytearray(path.read_bytes())
        damaged[-(1 << 20)] ^= 16
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=r"x\.npz, field 'x': truncated, corrupt"):
            next(files.open_npz(path)["x"].chunks(10))


def test_a_file_cut_while_it_is_open_is_refused(tmp_path):
    path = tmp_path / "x.npz"
    by_us(path, {"x": np.arange(100_000)})
    member = files.open_npz(path)["x"]
    member.check()
    os.truncate(path, 1000)
    assert member.rows(0, 5).tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(InputError, match=r"field 'x': truncated, corrupt.*it ends too early"):
        member.rows(50_000, 50_005)


def with_header(path, header, data=bytes(800), compress=False, version=(1, 0)):
    """An npz of one member with this text as the header of its array."""
    text = header.encode("latin1")
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    length = struct.pack("<H" if version == (1, 0) else "<I", len(text))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED) as archive:
        archive.writestr("x.npy", b"\x93NUMPY" + bytes(version) + length + text + data)


def header(descr="<f8", shape="(100,)", fortran="False"):
    return f"{{'descr': {descr!r}, 'fortran_order': {fortran}, 'shape': {shape}, }}"


def test_the_headers_below_are_refused_for_what_they_say(tmp_path):
    with_header(tmp_path / "x.npz", header())
    assert files.read_npz(tmp_path / "x.npz")["x"].shape == (100,)


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (header(shape=f"({10**12},)"), "takes 8000000000000 bytes, 800 are there"),
        (header(shape=f"({10**30},)"), "dimension exceeded"),
        (header(shape=f"({2**32}, {2**32})"), "header"),
        (header(shape="(99,)"), "takes 792 bytes, 800 are there"),
        (header(shape="(101,)"), "takes 808 bytes, 800 are there"),
        (header(shape="(-100,)"), "shape"),
        (header(shape="(-10, -10)"), "shape"),
        (header(shape="(100.0,)"), "shape"),
        (header(shape="(True, 100)"), "shape"),
        (header(shape="100"), "shape"),
        (header(shape=f"(100, {'1, ' * 70})"), "dimension"),
        (header(shape=f"(0, {10**30})"), "dimension"),
        (header(shape=f"({10**12},)", fortran="True"), "bytes"),
        (header("<U0", f"({10**12},)"), "dtype"),
        (header("V0", f"({10**12},)"), "dtype"),
        (header("|O", "(100,)"), "holds pickled Python objects"),
        (header([("a", "|O")], "(100,)"), "holds pickled Python objects"),
        (header(("<f8", (100,)), "(1,)"), "dtype"),
        (header("<f8,,", "(100,)"), "header"),
        (header("nonsense"), "header"),
        (header(fortran="1"), "fortran_order"),
        ("{'descr': '<f8', 'shape': (100,)}", "keys"),
        ("__import__('os').abort()", "header"),
        ("(" * 5000, "header"),
        ("-" * 9000 + "1", "header"),
        ("[" * 150 + "]" * 150, "header"),
        (header() + " " * 20_000, "header"),
        ("", "header"),
    ],
)
def test_a_header_that_lies_is_refused_before_anything_is_allocated(tmp_path, text, problem, compress):
    path = tmp_path / "x.npz"
    with_header(path, text, compress=compress, data=b"" if "<U0" in text or "V0" in text else bytes(800))
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match=r"x\.npz, field 'x': .*" + re.escape(problem)) as caught:
            files.open_npz(path)
        assert tracemalloc.get_traced_memory()[1] < 20 << 20
    finally:
        tracemalloc.stop()
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError):
        files.read_npz(path)


def test_a_header_of_other_versions_is_read_or_refused(tmp_path):
    with_header(tmp_path / "x.npz", header(), version=(2, 0))
    assert files.read_npz(tmp_path / "x.npz")["x"].shape == (100,)
    for version in ((3, 0), (1, 1), (9, 0)):
        with_header(tmp_path / "x.npz", header(), version=version)
        with pytest.raises(InputError, match=r"npy version|format version"):
            files.open_npz(tmp_path / "x.npz")


@pytest.mark.parametrize("compress", [False, True])
def test_a_directory_that_lies_about_sizes_is_refused(tmp_path, compress):
    """The sizes in the zip's directory agree with the header of the array, on more than the file can hold."""
    path, size = tmp_path / "x.npz", 3 << 30
    with_header(path, header("|u1", f"({size},)"), np.random.default_rng(0).bytes(20_000), compress)
    content = bytearray(path.read_bytes())
    sizes = content.index(b"PK\1\2") + 20  # compressed, uncompressed
    stored, there = struct.unpack_from("<II", content, sizes)
    whole = there - 20_000 + size
    struct.pack_into("<II", content, sizes, stored if compress else whole, whole)
    path.write_bytes(content)
    with pytest.raises(InputError, match="cannot hold" if compress else "reach beyond the file"):
        files.open_npz(path)


def test_data_that_end_before_their_length_are_refused_though_their_crc_is_right(tmp_path):
    """Else the end of the array would be whatever was in memory."""
    path = tmp_path / "x.npz"
    with_header(path, header(shape="(101,)"), np.random.default_rng(0).bytes(800), compress=True)
    content = bytearray(path.read_bytes())
    size = content.index(b"PK\1\2") + 24
    struct.pack_into("<I", content, size, struct.unpack_from("<I", content, size)[0] + 8)
    path.write_bytes(content)
    member = files.open_npz(path)["x"]
    for read in (member.read, member.array, member.check, lambda: member.rows(0, 1), lambda: next(member.chunks(1))):
        with pytest.raises(InputError, match=r"field 'x': .*it ends too early"):
            read()


def test_names_that_are_paths_touch_no_file_system(tmp_path):
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / "x.npz"
    names = ["../up.npy", "/tmp/absolute.npy", "a/b.npy", "..\\back.npy", "C:\\x.npy", "~/home.npy", "\x01.npy"]
    with zipfile.ZipFile(path, "w") as archive:
        for i, name in enumerate(names):
            buffer = io.BytesIO()
            np.save(buffer, np.full(3, i))
            archive.writestr(name, buffer.getvalue())
    before = sorted(tmp_path.rglob("*"))
    with files.open_npz(path) as npz:
        assert list(npz) == [name.removesuffix(".npy") for name in names]
        for i, name in enumerate(npz):
            assert npz[name].array().tolist() == npz[name].rows(0, 3).tolist() == [i] * 3
        files.fingerprint(npz)
    files.read_npz(path)
    assert sorted(tmp_path.rglob("*")) == before
    assert not os.path.exists("/tmp/absolute.npy")


def test_two_members_of_a_name_and_other_zip_methods_are_refused(tmp_path):
    path = tmp_path / "x.npz"
    for names in (("label.npy", "label.npy"), ("label.npy", "label")):
        with warnings.catch_warnings(), zipfile.ZipFile(path, "w") as archive:
            warnings.simplefilter("ignore")
            for name in names:
                buffer = io.BytesIO()
                np.save(buffer, np.arange(3))
                archive.writestr(name, buffer.getvalue())
        with pytest.raises(InputError, match=r"x\.npz, field 'label': .*two members of this name"):
            files.open_npz(path)
    for method in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        by_zip(zip64=False, compression=method)(path, ARRAYS)
        with pytest.raises(InputError, match=r"field 'label': .*zip method"):
            files.open_npz(path)
    by_us(path, ARRAYS)
    content = bytearray(path.read_bytes())
    for start, flags in ((0, 6), (content.index(b"PK\1\2"), 8)):
        content[start + flags] |= 1  # encrypted
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"field 'label': .*encrypted"):
        files.open_npz(path)


def test_objects_are_not_written_and_nothing_changes(tmp_path):
    by_us(tmp_path / "x.npz", ARRAYS)
    before = (tmp_path / "x.npz").read_bytes()
    with pytest.raises(ValueError, match="Object arrays"):
        files.write_npz(tmp_path / "x.npz", {"a": np.arange(3), "b": np.array([{}], object)})
    assert (tmp_path / "x.npz").read_bytes() == before
    assert os.listdir(tmp_path) == ["x.npz"]


@pytest.fixture(scope="module")
def large():
    """24 MiB that compress, but not to nothing."""
    return np.random.default_rng(0).integers(0, 9, (3, 1 << 19, 4)).astype(np.float32)


@pytest.mark.parametrize("write", [by_us, by_numpy_compressed])
def test_memory_does_not_grow_with_the_array(tmp_path, large, write):
    path = tmp_path / "x.npz"
    write(path, {"x": large})
    expected = files.fingerprint({"x": large})
    tracemalloc.start()
    try:
        with files.open_npz(path) as npz:
            assert files.fingerprint(npz) == expected
            start = 0
            for part in npz["x"].chunks(1 << 14, axis=1):
                assert np.array_equal(part, large[:, start : start + (1 << 14)])
                start += part.shape[1]
        assert start == large.shape[1]
        assert tracemalloc.get_traced_memory()[1] < large.nbytes // 3
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("compress", [False, True])
def test_writing_needs_no_second_copy(tmp_path, compress):
    x = np.zeros(64 << 20, np.uint8)
    tracemalloc.start()
    try:
        files.write_npz(tmp_path / "x.npz", {"x": x}, compress=compress)
        assert tracemalloc.get_traced_memory()[1] < x.nbytes // 2
    finally:
        tracemalloc.stop()


def test_the_fingerprint_of_a_strided_array_needs_no_copy(large):
    strided = np.moveaxis(large, 0, 1)
    expected = files.fingerprint({"x": np.ascontiguousarray(strided)})
    tracemalloc.start()
    try:
        assert files.fingerprint({"x": strided}) == expected
        assert tracemalloc.get_traced_memory()[1] < large.nbytes // 8
    finally:
        tracemalloc.stop()


RESIDENT = """
import resource, sys
from sc_jax import files
unit = 1 if sys.platform == "darwin" else 1024
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
with files.open_npz(sys.argv[1]) as npz:
    files.fingerprint(npz)
    total = sum(float(part.sum()) for name in npz for part in npz[name].chunks())
    total += sum(float(npz[name].array().sum()) for name in npz)
print(total, unit * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before))
"""


def test_what_is_streamed_does_not_stay_resident(tmp_path):
    """Mapped pages count as resident too, and tracemalloc does not see them."""
    x = np.ones((2 << 20, 2))
    by_us(tmp_path / "x.npz", dict.fromkeys("abcd", x))
    out = subprocess.run(
        [sys.executable, "-c", RESIDENT, tmp_path / "x.npz"], capture_output=True, text=True, check=True
    ).stdout.split()
    assert float(out[0]) == 2 * 4 * x.sum()
    assert int(out[1]) < 2 * x.nbytes  # one that is mapped, of four


# --- fingerprints -----------------------------------------------------------------------------------------------------


def test_the_fingerprint_sees_name_dtype_shape_and_content():
    base = {"a": np.arange(6, dtype=np.int32), "b": np.zeros(2)}
    changed = [
        {"c": base["a"], "b": base["b"]},
        {"a": base["b"], "b": base["a"]},
        {"a": base["a"].view(np.uint32), "b": base["b"]},
        {"a": base["a"].reshape(2, 3), "b": base["b"]},
        {"a": base["a"].astype(">i4"), "b": base["b"]},
        {"a": base["a"][::-1], "b": base["b"]},
        {"a": base["a"]},
        {**base, "c": np.zeros(0)},
        {"a": base["a"], "b": -base["b"]},
    ]
    assert len({files.fingerprint(arrays) for arrays in [base, *changed]}) == len(changed) + 1


def test_the_fingerprint_does_not_see_order_or_layout():
    matrix = np.arange(12.0).reshape(3, 4)
    expected = files.fingerprint({"a": matrix, "b": np.ones(2)})
    assert files.fingerprint({"b": np.ones(2), "a": matrix}) == expected
    assert files.fingerprint({"a": np.asfortranarray(matrix), "b": np.ones(4)[::2]}) == expected


def test_the_fingerprint_of_json_does_not_see_the_order_of_keys_but_that_of_lists():
    assert files.fingerprint_json({"a": 1, "b": {"c": 2, "d": 3}}) == files.fingerprint_json(
        {"b": {"d": 3, "c": 2}, "a": 1}
    )
    assert files.fingerprint_json([1, 2]) != files.fingerprint_json([2, 1])
    assert files.fingerprint_json({"a": (1, np.float64(2))}) == files.fingerprint_json({"a": [1, 2.0]})


# --- locks ------------------------------------------------------------------------------------------------------------

HOLDER = """
import sys, time
from sc_jax import files
with files.lock(sys.argv[1]):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_workdir_is_held_by_one_process_and_free_when_that_is_killed(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(InputError, match=r"another run is using this workdir.*--workdir"), files.lock(tmp_path):
            pass
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        with files.lock(tmp_path):
            pass
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()


def test_a_lock_is_free_after_an_error_inside(tmp_path):
    with pytest.raises(ZeroDivisionError), files.lock(tmp_path):
        raise ZeroDivisionError
    with files.lock(tmp_path):
        pass


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP])
def test_a_file_system_without_locks_is_refused(tmp_path, monkeypatch, number):
    def flock(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(files.fcntl, "flock", flock)
    with pytest.raises(InputError, match=r"\.lock: cannot be locked .*; name a --workdir on"), files.lock(tmp_path):
        pytest.fail("it was held without a lock")


def test_a_workdir_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match="file: cannot be used as a workdir"), files.lock(tmp_path / "file"):
        pass
    assert (tmp_path / "file").read_text() == "mine"


# --- seals, and what killed writers leave -----------------------------------------------------------------------------


def test_a_sealed_document_reads_as_it_was_and_no_bit_of_it_changes_unseen(tmp_path):
    path = tmp_path / "x.json"
    value = {"a": [1, 2.5, None, float("nan")], "b": {"c": "é"}, "d": True}
    files.write_json(path, value, seal=True)
    read = files.read_json(path, sealed=True)
    assert read == {**value, "a": [1, 2.5, None, None]} == files.read_json(path)
    whole = path.read_bytes()
    for place in range(len(whole)):
        for bit in range(8):
            damaged = bytearray(whole)
            damaged[place] ^= 1 << bit
            path.write_bytes(damaged)
            try:
                found = files.read_json(path, sealed=True)
            except InputError:
                continue
            assert found == read


def test_a_document_without_a_seal_is_read_unless_one_is_asked_for(tmp_path):
    path = tmp_path / "x.json"
    for value in ({"a": 1}, [1], 3):
        files.write_json(path, value)
        assert files.read_json(path) == value
        with pytest.raises(InputError, match=r"x\.json: damaged, or changed by hand"):
            files.read_json(path, sealed=True)


@pytest.mark.parametrize(
    "content", [b"[" * 100_000, b"[" * 500 + b"]" * 500, b'{"a":' * 300 + b"1" + b"}" * 300, b"1" * 5000]
)
def test_json_that_is_too_deep_or_has_numbers_too_long_is_refused(tmp_path, content):
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(InputError, match=r"x\.json: not readable as JSON"):
        files.read_json(tmp_path / "x.json")
    (tmp_path / "x.json").write_bytes(b"[" * 100 + b"]" * 100)
    files.read_json(tmp_path / "x.json")


def test_what_a_killed_writer_left_goes_with_the_next_write_and_nobody_else_s_does(tmp_path):
    code = (
        "import os, signal, sys; from sc_jax import files\n"
        "os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "files.write_bytes(sys.argv[1], b'half')\n"
    )
    path = tmp_path / "out[1]"  # not a pattern
    for _ in range(2):
        assert subprocess.run([sys.executable, "-c", code, str(path)]).returncode == -signal.SIGKILL
    assert len(os.listdir(tmp_path)) == 1, "the second took away what the first left"
    others = [tmp_path / ".out[1].x.tmp", tmp_path / ".out1.abcdefgh.tmp", tmp_path / ".other.abcdefgh.tmp"]
    for other in others:
        other.write_bytes(b"")
    with files._replacing(path) as at_work:
        at_work.write(b"first")
        files.write_bytes(path, b"second")
        assert path.read_bytes() == b"second"
    assert path.read_bytes() == b"first"
    assert sorted(os.listdir(tmp_path)) == sorted(["out[1]", *(other.name for other in others)])


def test_members_that_overlap_are_refused(tmp_path):
    """One stretch of compressed data, named many times by the directory: a bomb that no single member is."""
    path = tmp_path / "x.npz"
    files.write_npz(path, {"a": np.zeros(100_000)}, compress=True)
    content = path.read_bytes()
    start, end = content.index(b"PK\1\2"), content.index(b"PK\5\6")
    entry = content[start:end]
    copies = b"".join(entry.replace(b"a.npy", b"%c.npy" % (98 + i)) for i in range(20))
    tail = bytearray(content[end:])
    struct.pack_into("<HHI", tail, 8, 21, 21, len(entry) + len(copies))
    path.write_bytes(content[:end] + copies + tail)
    with pytest.raises(InputError, match=r"x\.npz"):
        files.read_npz(path)


def test_what_is_larger_than_memory_is_refused_before_it_is_allocated(tmp_path, monkeypatch):
    path = tmp_path / "x.npz"
    files.write_npz(path, {"a": np.zeros(100_000)}, compress=True)
    assert files._available() > 1 << 20
    monkeypatch.setattr(files, "_available", lambda: 799_999)
    with pytest.raises(InputError, match=r"x\.npz, field 'a': does not fit into memory; read it in chunks"):
        files.read_npz(path)
    with files.open_npz(path) as npz:
        assert sum(len(part) for part in npz["a"].chunks(1000)) == 100_000
