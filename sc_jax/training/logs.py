"""Training logs: one JSON line per interval, TensorBoard events where TensorBoard is installed, and progress.

A log can be cut back to the step that training resumes from, so that a run that was killed leaves the same lines as one
that was not.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from sc_jax import files
from sc_jax.files import InputError


class Lines:
    """A file of JSON lines: a header, then one line per chosen step.

    Args:
      path: of the file.
      header: of the first line, without a "step".
      resumed_step: lines after this step are dropped before the first write.

    Raises:
      InputError: it cannot be written, or what is there is not as it was written.
    """

    def __init__(self, path: str | Path, header: dict[str, Any], resumed_step: int):
        self.path = Path(path)
        kept = [header, *(line for line in read_log(self.path) if line["step"] <= resumed_step)]
        files.write_text(self.path, "".join(json.dumps(line) + "\n" for line in kept))
        with self._writing():  # unbuffered: what a full disk refuses is not tried again on closing
            self._file = open(self.path, "ab", buffering=0)  # noqa: SIM115 (closed by close)

    def write(self, line: dict[str, Any]) -> None:
        """Appends a line with its `step`.

        Raises:
          InputError: the disk is full or cannot be written.
        """
        data = json.dumps(line).encode() + b"\n"
        with self._writing():
            if self._file.write(data) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def sync(self) -> dict[str, Any]:
        """Waits until all lines are on disk; how many bytes the file has, and their SHA-256, for `require`.

        Raises:
          InputError: they cannot be written.
        """
        with self._writing():
            os.fsync(self._file.fileno())
            size = self.path.stat().st_size
        return {"bytes": size, "sha256": files.fingerprint_file(self.path)}

    def close(self) -> None:
        """Closes the file."""
        with self._writing():
            self._file.close()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise InputError(
                f"{self.path}: cannot write it ({error.strerror}); make room, the same command goes on from the last checkpoint"
            ) from error


class TrainingLog:
    """`train.jsonl` in a folder: a header line with the members' names, then one line per interval.

    TensorBoard's copy is given up, with one line, when it cannot be written.

    Args:
      folder: where the log lies.
      members: names, in the order of the lists in each line.
      resumed_step: lines after this step are dropped before the first write.
    """

    def __init__(self, folder: str | Path, members: list[str], resumed_step: int):
        self._lines = Lines(Path(folder) / "train.jsonl", {"members": members}, resumed_step)
        self._folder, self._members = Path(folder) / "tensorboard", members
        self._board: _Board | None = None
        self._on_board(lambda: _board(self._folder, resumed_step))

    def write(self, line: dict[str, Any]) -> None:
        """Appends a line: `step`, `epoch`, and lists over members for the rest."""
        self._lines.write(line)
        lists = {name: values for name, values in line.items() if isinstance(values, list)}
        scalars = {
            f"{name}/{member}": value
            for name, values in lists.items()
            for member, value in zip(self._members, values, strict=True)
        }
        if self._board is not None:
            self._on_board(lambda: self._board.write(scalars, line["step"]))

    def sync(self) -> dict[str, Any]:
        """As `Lines.sync`."""
        return self._lines.sync()

    def close(self) -> None:
        """Closes the files."""
        self._lines.close()
        if self._board is not None:
            self._on_board(self._board.close)

    def _on_board(self, act: Callable[[], _Board | None]) -> None:
        try:
            self._board = act()
        except OSError as error:
            self._board = None
            print(
                f"{self._folder}: TensorBoard's copy of train.jsonl ends here ({error.strerror or error})",
                file=sys.stderr,
            )


def require(path: str | Path, stamp: Mapping[str, Any]) -> None:
    """Refuses a log that no longer begins with what it held when it was stamped; a log that is not there is begun anew.

    Args:
      path: of the log; stamp: what `Lines.sync` gave.

    Raises:
      InputError: its beginning has changed, or it is shorter, or it cannot be read.
    """
    if not Path(path).exists():
        return
    with _reading(path), open(path, "rb") as file:
        begin = file.read(stamp["bytes"])
    if len(begin) != stamp["bytes"] or hashlib.sha256(begin).hexdigest() != stamp["sha256"]:
        raise InputError(
            f"{path}: damaged, or changed by hand: it does not begin with what it held at the last checkpoint; restore it, or "
            "delete it to go on without its earlier lines"
        )


@contextlib.contextmanager
def _reading(path: str | Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error


def read_header(path: str | Path) -> dict[str, Any]:
    """The first line of a log.

    Raises:
      InputError: it is not as it was written, or cannot be read.
    """
    with _reading(path):
        content = Path(path).read_bytes()
    try:
        header = json.loads(content.partition(b"\n")[0])
        if not isinstance(header, dict):
            raise ValueError("no header")
        return header
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}, line 1: damaged ({error}); restore the file or delete it") from error


def read_log(path: str | Path) -> list[dict[str, Any]]:
    """The whole lines of a log, without its header; a last line that a kill cut short is left out.

    Raises:
      InputError: another line is not as it was written, or the file cannot be read.
    """
    if not Path(path).exists():
        return []
    with _reading(path):
        *whole, last = Path(path).read_bytes().split(b"\n")
    lines = []
    for number, text in enumerate([*whole, last], 1):
        try:
            line = json.loads(text)
            if number > 1 or "step" in line:
                if not isinstance(line["step"], int):
                    raise TypeError("its step is no number")
                lines.append(line)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            if number <= len(whole):
                raise InputError(f"{path}, line {number}: damaged ({error}); restore the file or delete it") from error
    return lines


class _Board:
    """Scalars as TensorBoard events, written in the thread that calls: what TensorBoard's own thread raises, it prints too.

    Raises:
      OSError: they cannot be written.
    """

    def __init__(self, folder: Path, resumed_step: int, writer: Any, event: Any, summary: Any):
        folder.mkdir(parents=True, exist_ok=True)
        now = time.time_ns()  # TensorBoard reads files in the order of their names
        name = f"events.out.tfevents.{now // 10**9:010d}.{now % 10**9:09d}.{socket.gethostname()}.{os.getpid()}"
        self._file = open(folder / name, "xb", buffering=0)  # noqa: SIM115 (closed by close)
        self._records, self._event, self._summary = writer(self._file), event, summary
        self._add(file_version="brain.Event:2")
        # TensorBoard drops what it had after `resumed_step`.
        self._add(step=resumed_step + 1, session_log=event.SessionLog(status=event.SessionLog.START))

    def _add(self, **fields: Any) -> None:
        self._records.write(self._event.Event(wall_time=time.time(), **fields).SerializeToString())

    def write(self, scalars: Mapping[str, float], step: int) -> _Board:
        """One event with all of them."""
        values = [self._summary.Value(tag=tag, simple_value=value) for tag, value in scalars.items()]
        self._add(step=step, summary=self._summary(value=values))
        return self

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def _board(folder: Path, resumed_step: int) -> _Board | None:
    try:
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter
    except ImportError:
        return None
    return _Board(folder, resumed_step, RecordWriter, event_pb2, summary_pb2.Summary)


class Silent:
    """In place of a log or of progress where another process writes it."""

    def write(self, line: dict[str, Any]) -> None:
        """Writes nothing."""

    def sync(self) -> None:
        """Nothing is there to be stamped."""

    def update(self, done: int, note: str = "") -> None:
        """Shows nothing."""

    def close(self) -> None:
        """Nothing is open."""


class Progress:
    """A bar with rate and time left on a terminal; elsewhere a line every ten seconds.

    Args:
      total: steps in all; done: steps already taken; what: the name shown.
    """

    def __init__(self, total: int, done: int, what: str):
        self._total, self._first, self._what = total, done, what
        self._start = self._said = time.monotonic()
        self._bar = None
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"))
            self._bar = Bar(
                *columns, TimeRemainingColumn(), TextColumn("{task.fields[note]}"), console=Console(stderr=True)
            )
            self._task = self._bar.add_task(what, total=total, completed=done, rate="", note="")
            self._bar.start()

    def update(self, done: int, note: str = "") -> None:
        """Shows that `done` steps are taken."""
        now = time.monotonic()
        rate = (done - self._first) / max(now - self._start, 1e-9)
        if self._bar is not None:
            self._bar.update(self._task, completed=done, rate=f"{rate:.1f}/s", note=note)
        elif now - self._said >= 10:
            self._said = now
            left = (self._total - done) / max(rate, 1e-9)
            print(
                f"{self._what}: {done}/{self._total}, {rate:.1f}/s, {int(left) // 60}:{int(left) % 60:02d} left {note}",
                file=sys.stderr,
                flush=True,
            )

    def close(self) -> None:
        """Takes the bar down."""
        if self._bar is not None:
            self._bar.stop()
