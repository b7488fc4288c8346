"""What every part of the chaos needs: doors in processes that can be killed, one undisturbed run, and a comparison with it."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import itertools
import json
import multiprocessing
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
STAGES = ("train", "predict", "evaluate", "report")
STEPS, EVERY = 30, 3  # steps of training, and between checkpoints
SMALL = (
    f"--config={ROOT / 'experiments/label_smoothing/config.py'}:smoke",
    "--config.model.hidden=(32,)",
    "--config.model.dropout=0.1",
    "--config.training.batch_size=2000",
    f"--config.training.epochs={STEPS // 6}",
    "--config.training.log_every=4",
    "--config.training.statistics_every=5",
    f"--config.training.checkpoint_every={EVERY}",
    "--config.evaluation.resamples=20",
)
"""Four members that take seconds from data to report; log lines, statistics and checkpoints fall on different steps."""

context = multiprocessing.get_context("forkserver")
# A door's imports are done once; every process is then forked before JAX has started in it.
context.set_forkserver_preload(["sc_jax.run", "orbax.checkpoint", "matplotlib.figure", "tests.chaos.runs"])


def _open_door(door: str, arguments: Sequence[str], said: str, fault: Callable[[], None] | None) -> None:
    """In the process: output to a file, the fault in place, then the door as from the command line."""
    output = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
    os.chdir(ROOT)
    sys.argv = [f"sc_jax.{door}", *arguments]
    if fault is not None:
        fault()
    from sc_jax import cli

    try:
        cli.main(importlib.import_module(f"sc_jax.{door}").main)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


@dataclasses.dataclass(frozen=True)
class Ended:
    """How a door ended: its exit status (−9 of SIGKILL) and all that it said."""

    status: int
    said: str

    @property
    def crashed(self) -> bool:
        """It ended by an error that nobody had thought of."""
        return "Traceback" in self.said or self.status not in (0, 2, 143, -signal.SIGKILL)


class Door:
    """A door that runs in a process of its own.

    Args:
      door: its name; arguments: its command line; said: the file for its output; fault: called in the process beforehand.
    """

    def __init__(
        self, door: str, arguments: Sequence[str], said: Path, fault: Callable[[], None] | None = None
    ) -> None:
        self._said = said
        said.unlink(missing_ok=True)
        self._process = context.Process(target=_open_door, args=(door, list(arguments), str(said), fault))
        self._process.start()

    @property
    def running(self) -> bool:
        """It has not ended."""
        return self._process.is_alive()

    def send(self, number: signal.Signals) -> None:
        """Sends a signal, unless it has ended."""
        with contextlib.suppress(ProcessLookupError):  # of one that ends at this moment
            if self.running:
                os.kill(self._process.pid, number)

    def said(self) -> str:
        """What it has said so far."""
        return self._said.read_text(encoding="utf-8", errors="replace") if self._said.exists() else ""

    def wait(self, seconds: float = 300) -> Ended:
        """Waits for its end."""
        self._process.join(seconds)
        if self.running:
            self._process.kill()
            self._process.join()
            raise TimeoutError(f"a door hangs: {self.said()}")
        return Ended(self._process.exitcode, self.said())


class Place:
    """A folder with one workdir under one name, so that paths in files agree, and copies of it at every stage of one whole run.

    Args:
      folder: where; made anew.
    """

    def __init__(self, folder: Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self.folder, self.workdir, self.said = folder, folder / "run", folder / "said.txt"
        self.seconds: dict[str, float] = {}

    def arguments(self, door: str) -> list[str]:
        """The command line of a door on the workdir."""
        where = f"--workdir={self.workdir}"
        return [where] if door == "report" else [*SMALL, where]

    def start(self, door: str, fault: Callable[[], None] | None = None) -> Door:
        """Starts a door on the workdir."""
        return Door(door, self.arguments(door), self.said, fault)

    def run(self, door: str, fault: Callable[[], None] | None = None) -> Ended:
        """Runs a door on the workdir to its end."""
        return self.start(door, fault).wait()

    def undisturbed(self) -> None:
        """Runs all stages, and keeps what each begins with; the whole is compared with from then on."""
        for stage in STAGES:
            self.keep(stage)
            start = time.monotonic()
            ended = self.run(stage)
            if ended.status:
                raise RuntimeError(f"{stage} failed undisturbed: {ended.said}")
            self.seconds[stage] = time.monotonic() - start
        self.run("run")  # adds its timings
        self.keep("end")
        self.whole = content(self.workdir)

    def keep(self, stage: str) -> None:
        """Keeps a copy of the workdir as it is, for `begin`."""
        shutil.rmtree(self.folder / stage, ignore_errors=True)
        if self.workdir.exists():
            shutil.copytree(self.workdir, self.folder / stage)

    def begin(self, stage: str) -> None:
        """Puts the workdir back to what `stage` begins with; "end": to the whole."""
        shutil.rmtree(self.workdir, ignore_errors=True)
        if (self.folder / stage).exists():
            shutil.copytree(self.folder / stage, self.workdir)

    def differences(self) -> list[str]:
        """What in the workdir is not as in the whole: missing, left over, or of other content."""
        found = content(self.workdir)
        return sorted(name for name in found.keys() | self.whole.keys() if found.get(name) != self.whole.get(name))


def content(workdir: Path) -> dict[str, Any]:
    """Name → bytes of every file of a run; of checkpoints the hashes of the newest one's leaves, which restoring compares.

    Left out: seconds (`timings.json`), TensorBoard's copies of the log, which hold times, and checkpoints that were set aside.
    """
    found: dict[str, Any] = {}
    for path in sorted(path for path in workdir.rglob("*") if path.is_file()):
        name = path.relative_to(workdir)
        if name.parts[0] not in ("checkpoints", "checkpoints-damaged", "tensorboard", "timings.json", ".lock"):
            found[str(name)] = path.read_bytes()
    step = latest(workdir)
    if step:
        meta = json.loads((workdir / f"checkpoints/{step}/meta/metadata").read_text())
        found["checkpoint"] = (step, meta["hashes"])
    for name in half_written(workdir):
        found[name] = "half-written"
    return found


def latest(workdir: Path) -> int:
    """The step of the newest whole checkpoint; 0 without one."""
    return max((int(path.name) for path in (workdir / "checkpoints").glob("*") if path.name.isdigit()), default=0)


def half_written(workdir: Path) -> list[str]:
    """What writers were at work on: files and checkpoints under their temporary names."""
    temporary = re.compile(r"\.tmp$|orbax-checkpoint-tmp")
    there = (  # by os.walk, which passes over folders that are renamed meanwhile
        os.path.join(folder, name) for folder, *names in os.walk(workdir) for name in itertools.chain(*names)
    )
    return sorted(os.path.relpath(path, workdir) for path in there if temporary.search(os.path.basename(path)))


def resumed_at(said: str) -> int:
    """The step that training says it goes on from; 0 from the beginning."""
    found = re.search(r"resuming from step (\d+)", said)
    return int(found[1]) if found else 0
