"""The training log: what was written is read, a resumed log is the log of a run that was never killed."""

import builtins
import errno
import json
import os
import re
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer.record_writer import RecordWriter

from sc_jax.files import InputError
from sc_jax.training import logs
from sc_jax.training.logs import Progress, TrainingLog, read_log

MEMBERS = ["alpha=0-seed=0", "alpha=0.2-seed=0"]


def line(step, shift=0.0):
    return {"step": step, "epoch": step / 10, "loss": [1 / step + shift, 2 / step], "accuracy": [0.5, 0.25 + shift]}


def write(folder, steps, resumed_step=0, shift=0.0):
    log = TrainingLog(folder, MEMBERS, resumed_step)
    for step in steps:
        log.write(line(step, shift))
    log.close()


def events(folder):
    """Tag → [(step, value)] as TensorBoard shows them."""
    board = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0})
    board.Reload()
    return {tag: [(event.step, event.value) for event in board.Scalars(tag)] for tag in board.Tags()["scalars"]}


# --- the lines --------------------------------------------------------------------------------------------------------


def test_a_log_is_a_header_and_lines(tmp_path):
    write(tmp_path, [1, 2, 3])
    first, *rest = (tmp_path / "train.jsonl").read_text().splitlines()
    assert json.loads(first) == {"members": MEMBERS}
    assert [json.loads(text) for text in rest] == [line(1), line(2), line(3)]
    assert read_log(tmp_path / "train.jsonl") == [line(1), line(2), line(3)]


def test_a_line_can_be_read_as_soon_as_it_is_written(tmp_path):
    log = TrainingLog(tmp_path, MEMBERS, 0)
    log.write(line(1))
    assert read_log(tmp_path / "train.jsonl") == [line(1)]
    log.close()


def test_no_log_has_no_lines(tmp_path):
    assert read_log(tmp_path / "train.jsonl") == []


@pytest.mark.parametrize("resumed_step", [0, 2, 3, 9])
def test_resuming_drops_the_lines_after_the_checkpoint_and_leaves_the_log_of_one_run(tmp_path, resumed_step):
    write(tmp_path / "killed", [1, 2, 3], shift=0.0)
    TrainingLog(tmp_path / "killed", MEMBERS, resumed_step).close()
    kept = [step for step in (1, 2, 3) if step <= resumed_step]
    assert read_log(tmp_path / "killed" / "train.jsonl") == [line(step) for step in kept]
    write(tmp_path / "killed", [step for step in (1, 2, 3, 4) if step > resumed_step], resumed_step)
    write(tmp_path / "whole", [step for step in (1, 2, 3, 4) if step in kept or step > resumed_step])
    assert (tmp_path / "killed" / "train.jsonl").read_bytes() == (tmp_path / "whole" / "train.jsonl").read_bytes()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000))
def test_a_log_cut_anywhere_keeps_its_whole_lines(tmp_path_factory, cut):
    folder = tmp_path_factory.mktemp("cut")
    log = folder / "train.jsonl"
    lines = [json.dumps({"members": MEMBERS}), *(json.dumps(line(step)) for step in (1, 2, 3))]
    whole = "\n".join(lines) + "\n"
    cut %= len(whole) + 1
    log.write_text(whole[:cut])
    ends = np.cumsum([len(text) + 1 for text in lines])[1:] - 1  # a line without its line break is whole
    kept = int((ends <= cut).sum())
    assert read_log(log) == [line(step) for step in range(1, kept + 1)]
    write(folder, range(kept + 1, 4), resumed_step=kept)
    assert log.read_text() == whole


# --- TensorBoard ------------------------------------------------------------------------------------------------------


def test_tensorboard_shows_what_the_log_says(tmp_path):
    write(tmp_path, [1, 2, 3])
    shown = events(tmp_path)
    assert set(shown) == {f"{name}/{member}" for name in ("loss", "accuracy") for member in MEMBERS}
    for i, member in enumerate(MEMBERS):
        for name in ("loss", "accuracy"):
            told = [(row["step"], row[name][i]) for row in read_log(tmp_path / "train.jsonl")]
            assert [step for step, _ in shown[f"{name}/{member}"]] == [step for step, _ in told]
            values = np.array([value for _, value in shown[f"{name}/{member}"]], np.float32)
            np.testing.assert_array_equal(values, np.array([value for _, value in told], np.float32))


@pytest.mark.parametrize("resumed_step", [0, 2])
def test_tensorboard_shows_a_resumed_run_as_one(tmp_path, resumed_step):
    """What came after the checkpoint is gone, also where the run was killed before its first one."""
    write(tmp_path, [1, 2, 3], shift=0.25)
    write(tmp_path, [step for step in (1, 2, 3, 4) if step > resumed_step], resumed_step)
    log = read_log(tmp_path / "train.jsonl")
    assert [row["step"] for row in log] == [1, 2, 3, 4]
    told = [(row["step"], np.float32(row["loss"][0])) for row in log]
    assert events(tmp_path)[f"loss/{MEMBERS[0]}"] == told


def test_a_disk_that_refuses_tensorboards_copy_ends_it_with_one_line(tmp_path, capfd):
    log = TrainingLog(tmp_path, MEMBERS, 0)
    log.write(line(1))
    with open("/dev/full", "wb", buffering=0) as full:
        log._board._records = RecordWriter(full)
        for step in (2, 3):
            log.write(line(step))
        log.close()
    said = capfd.readouterr().err
    assert said == f"{tmp_path}/tensorboard: TensorBoard's copy of train.jsonl ends here (No space left on device)\n"
    assert read_log(tmp_path / "train.jsonl") == [line(step) for step in (1, 2, 3)]
    assert {step for told in events(tmp_path).values() for step, _ in told} == {1}


def test_a_folder_that_tensorboards_copy_cannot_have_is_said(tmp_path, capfd):
    (tmp_path / "tensorboard").write_text("mine")
    write(tmp_path, [1])
    assert read_log(tmp_path / "train.jsonl") == [line(1)]
    assert capfd.readouterr().err.count("\n") == 1


def test_without_tensorboard_the_log_is_written_all_the_same(tmp_path, monkeypatch):
    real = builtins.__import__

    def without(name, *rest):
        if name.startswith("tensorboard"):
            raise ImportError(f"No module named {name!r}")
        return real(name, *rest)

    for name in [name for name in sys.modules if name.partition(".")[0] == "tensorboard"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", without)
    write(tmp_path, [1, 2])
    assert read_log(tmp_path / "train.jsonl") == [line(1), line(2)]
    assert not (tmp_path / "tensorboard").exists()


# --- progress ---------------------------------------------------------------------------------------------------------


class Clock:
    def __init__(self):
        self.now = 100.0

    def monotonic(self):
        return self.now

    def time(self):
        return self.now


def test_progress_says_a_line_every_ten_seconds_where_there_is_no_terminal(capsys, monkeypatch):
    clock = Clock()
    monkeypatch.setattr(logs, "time", clock)
    progress = Progress(1000, 100, "training")
    for second in range(1, 31):
        clock.now += 1
        progress.update(100 + 5 * second, f"loss {second}")
    progress.close()
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 3
    assert re.fullmatch(r"training: 150/1000, 5\.0/s, 2:50 left +loss 10", said[0])
    assert said[2].startswith("training: 250/1000, 5.0/s, 2:30 left")


def test_progress_is_a_bar_on_a_terminal(monkeypatch):
    class Terminal:
        encoding = "utf-8"

        def __init__(self):
            self.text = ""

        def isatty(self):
            return True

        def write(self, text):
            self.text += text

        def flush(self):
            pass

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "160")
    progress = Progress(50, 20, "training")
    progress.update(35, "loss 0.5")
    progress.close()
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", terminal.text)
    for part in ("training", "35/50", "/s", "loss 0.5"):
        assert part in shown


# --- damage -----------------------------------------------------------------------------------------------------------


def test_a_stamp_holds_for_what_was_there_and_allows_more(tmp_path):
    path = tmp_path / "train.jsonl"
    log = TrainingLog(tmp_path, MEMBERS, 0)
    log.write(line(1))
    stamp = log.sync()
    assert stamp["bytes"] == path.stat().st_size
    log.write(line(2))
    log.close()
    logs.require(path, stamp)
    whole = path.read_bytes()
    for place in range(stamp["bytes"]):
        damaged = bytearray(whole)
        damaged[place] ^= 4
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=r"train\.jsonl: damaged"):
            logs.require(path, stamp)
    path.write_bytes(whole[: stamp["bytes"] - 1])
    with pytest.raises(InputError, match=r"train\.jsonl: damaged"):
        logs.require(path, stamp)
    path.unlink()
    logs.require(path, stamp)


@pytest.mark.parametrize("damaged", [b"{", b"[]", b'{"epoch": 1}', b'{"step": "1"}', b"\xff", b"[" * 5000])
def test_a_line_in_the_middle_that_is_none_is_refused(tmp_path, damaged):
    write(tmp_path, [1, 2, 3])
    path = tmp_path / "train.jsonl"
    lines = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join([*lines[:2], damaged, *lines[3:]]))
    with pytest.raises(InputError, match=r"train\.jsonl, line 3: damaged"):
        read_log(path)
    path.write_bytes(damaged + b"\n")
    if damaged not in (b'{"epoch": 1}', b'{"step": "1"}'):
        with pytest.raises(InputError, match=r"train\.jsonl, line 1: damaged"):
            logs.read_header(path)


def test_a_full_disk_is_said_in_one_line(tmp_path):
    log = logs.Lines(tmp_path / "x.jsonl", {}, 0)
    log._file.close()
    with open("/dev/full", "wb", buffering=0) as log._file, pytest.raises(InputError, match="No space left"):
        log.write({"step": 1})


def test_lines_that_do_not_reach_the_disk_are_said(tmp_path, monkeypatch):
    def fsync(_):
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    log = logs.Lines(tmp_path / "x.jsonl", {}, 0)
    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(InputError, match=r"x\.jsonl: cannot write it \(Disk quota exceeded\)"):
        log.sync()


@pytest.mark.parametrize("read", [read_log, logs.read_header, lambda path: logs.require(path, {"bytes": 1})])
def test_a_log_that_cannot_be_read_is_not_called_damaged(tmp_path, read):
    (tmp_path / "x.jsonl").mkdir()
    with pytest.raises(InputError, match=r"x\.jsonl: cannot be read \(Is a directory\)$"):
        read(tmp_path / "x.jsonl")


def test_a_last_line_without_a_step_is_left_out(tmp_path):
    write(tmp_path, [1, 2])
    path = tmp_path / "train.jsonl"
    path.write_bytes(path.read_bytes() + b'{"epoch": 1}')
    assert read_log(path) == [line(1), line(2)]
