"""Whole-or-nothing writes, readers that refuse, fingerprints that see everything, locks that end with their process."""

import io
import json
import os
import pickle
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

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


@pytest.mark.parametrize(
    ("content", "message"),
    [(b'{"a": 1', "not readable as JSON"), (b"", "not readable as JSON"), (b"\xff\xfe", "not readable as JSON")],
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

    A bit in a time stamp may flip unnoticed, and one in the zip's directory may lose a member whole (whoever needs it
    will miss it), but nothing that is read has another name, type, shape or content.
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
                there = {name: array for name, array in ARRAYS.items() if name in arrays}
                assert same(arrays, there), f"bit {bit} of byte {position} went unseen"
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


def test_a_workdir_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match="file: cannot be used as a workdir"), files.lock(tmp_path / "file"):
        pass
    assert (tmp_path / "file").read_text() == "mine"
