"""A sample of the fuzzer's inputs; `make chaos` gives every reader thousands, in bounded memory."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest

from tests.chaos import fuzz


@pytest.mark.parametrize("name", fuzz.READERS)
def test_whatever_comes_is_valid_or_refused(name: str, tmp_path: Path) -> None:
    count = 5 if name in fuzz.SLOW else 60
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        row = fuzz.fuzz(name, range(10**6, 10**6 + count), tmp_path / "input", memory=None)
    assert row["failed"] == []
    assert row["loaded"] + row["refused"] == count


def test_an_input_is_a_function_of_its_number() -> None:
    name = "files.read_npz"
    first, second = (dict(fuzz.inputs(name, [number])) for number in (7, 7))
    assert first == second != dict(fuzz.inputs(name, [8]))


def test_what_goes_wrong_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that lets an error through, one that answers nonsense, and one that never answers."""

    def broken(folder: Path) -> None:
        content = (folder / "x").read_bytes()
        if content != b"abc":
            assert content[:1] == b"a", "nonsense"
            raise KeyError("x") if len(content) % 2 else fuzz.Hang

    monkeypatch.setitem(fuzz.READERS, "broken", fuzz.Reader(lambda: [{"x": b"abc"}], broken))
    row = fuzz.fuzz("broken", range(200), tmp_path / "input", memory=None)
    said = "".join(failed["error"] for failed in row["failed"])
    assert all(word in said for word in ("KeyError", "AssertionError: nonsense", "Hang"))
