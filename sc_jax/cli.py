"""What the doors share: arguments, the workdir with its lock and config, and errors as one line and an exit status."""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from sc_jax import config as config_lib
from sc_jax import files
from sc_jax.config import Config
from sc_jax.files import InputError


def parser(door: str, description: str) -> argparse.ArgumentParser:
    """An argument parser that refuses abbreviations; add the door's own arguments to it."""
    return argparse.ArgumentParser(prog=f"python -m sc_jax.{door}", description=description, allow_abbrev=False)


def study_arguments(
    door: str, description: str, argv: Sequence[str] | None, *, devices: bool = False
) -> tuple[Config, Path]:
    """Parses `--config=FILE[:variant] [--workdir=DIR] [--config.field=value …]`.

    With `devices` also `--processes`, `--coordinator`, `--process` and `--heartbeat`; this process then joins the others
    (`sc_jax.training.processes.start`).

    Returns:
      The checked config and the workdir, by default `runs/<study>-<variant>`.
    """
    from sc_jax.methods import cascade, study
    from sc_jax.training import processes

    arguments = parser(door, description)
    arguments.add_argument(
        "--config", required=True, metavar="FILE[:VARIANT]", help="experiments/<study>/config.py[:variant]"
    )
    arguments.add_argument("--workdir", metavar="DIR", help="default: runs/<study>-<variant>")
    if devices:
        group = arguments.add_argument_group(
            "several processes", "each is started with the same command; see docs/scaling.md"
        )
        group.add_argument(
            "--processes",
            default="auto" if processes.in_cluster() else "1",
            metavar="P|auto",
            help="how many; auto is what SLURM, Open MPI or a TPU pod says, and the default there",
        )
        group.add_argument("--coordinator", metavar="HOST:PORT", help="of process 0, at a free port")
        group.add_argument("--process", type=int, metavar="I", help="which one this is, from 0")
        group.add_argument(
            "--heartbeat",
            type=int,
            default=processes.HEARTBEAT,
            metavar="SECONDS",
            help="without a sign of life, after which a process counts as dead and ends the others (default: %(default)s)",
        )
    arguments.epilog = "Any field of the config can be set: --config.training.epochs=3"
    given, rest = arguments.parse_known_args(argv)
    overrides = {}
    for argument in rest:
        name, equals, value = argument.partition("=")
        if not (name.startswith("--config.") and equals):
            arguments.error(f"unknown argument {argument}; a field of the config is set by --config.field=value")
        overrides[name.removeprefix("--config.")] = value
    config = config_lib.load(given.config, overrides)
    study.refuse_unknown(config.evaluation.scores, config.primary, ensemble=config.ensemble.members > 0)
    cascade.scorer(config.cascade.score)
    if devices:
        if given.processes != "auto" and not (given.processes.isdecimal() and int(given.processes) > 0):
            arguments.error(f"--processes = {given.processes!r}; it should be a positive number, or auto")
        if given.heartbeat < 1:
            arguments.error(f"--heartbeat = {given.heartbeat}; it should be 1 s or more")
        asked = processes.Asked(given.processes, given.coordinator, given.process, given.heartbeat)
        processes.start(asked)
    return config, Path(given.workdir or f"runs/{config.study}-{config.variant}")


@contextlib.contextmanager
def open_workdir(workdir: Path, config: Config, check: Callable[[], object] = lambda: None) -> Iterator[None]:
    """Holds `workdir` for this process, or for the job that it is one of, and this config.

    Args:
      workdir: made if it is not there; config: what is asked for.
      check: raises if the config cannot be run; called before a new workdir is bound to it.

    Raises:
      InputError: another job holds it, or it belongs to a config that differs (the fields are named), or the processes of this
        job were started with different ones.
    """
    from sc_jax.training import processes

    asked = config_lib.as_dict(config)
    processes.require_same("the config", asked)
    processes.require_same("--workdir", str(workdir))
    path = workdir / "config.json"

    def bind() -> None:
        held.enter_context(files.lock(workdir))
        if path.exists():
            there = files.read_json(path)
            different = differences(there, asked)
            if different:
                raise InputError(
                    f"{path}: this workdir belongs to another config ({'; '.join(different[:5])}); "
                    f"name another --workdir, or delete {workdir} to start anew"
                )
        else:
            check()
            files.write_json(path, asked, seal=True)

    with contextlib.ExitStack() as held:
        processes.from_first(bind)
        if not path.exists():
            raise InputError(
                f"{workdir}: the first process has written there, and this one sees nothing: name a shared folder"
            )
        yield


def differences(there: Any, asked: Any) -> list[str]:
    """Where the config of a workdir is not the one that is asked for, a line a field; `devices` is no part of what is trained, and may change."""
    return [one for one in _differences(there, asked, "") if not one.startswith("devices")]


def _differences(there: Any, asked: Any, field: str) -> Iterator[str]:
    if isinstance(there, dict) and isinstance(asked, dict):
        for name in sorted(there.keys() | asked.keys()):
            yield from _differences(there.get(name), asked.get(name), f"{field}.{name}" if field else name)
    elif isinstance(there, list) and isinstance(asked, list) and len(there) == len(asked):
        for i, pair in enumerate(zip(there, asked, strict=True)):
            yield from _differences(*pair, f"{field}[{i}]")
    elif there != asked:
        yield f"{field} is {there!r} there, {asked!r} was asked for"


class Terminated(BaseException):
    """SIGTERM came. Everything unwinds, so that no half of a file stays; see `main`."""


@contextlib.contextmanager
def noting_sigterm() -> Iterator[Callable[[int], bool]]:
    """In the block SIGTERM is not raised but noted: the function that is yielded says, at a step, whether to stop after it.

    Where several processes are one job, a signal to one of them stops all, after the same step.

    Raises:
      Terminated: at the end of the block, if it was to stop.
    """
    from sc_jax.training import processes

    came = threading.Event()
    if processes.several():  # JAX hears the signal, and agrees on a step
        asked = 0

        def agreed(step: int) -> bool:
            nonlocal asked
            if step != asked and not came.is_set() and processes.preempted():
                came.set()
            asked = step
            return came.is_set()

        yield agreed
    elif threading.current_thread() is not threading.main_thread():  # where no signal arrives
        yield lambda step: False
        return
    else:
        before = signal.signal(signal.SIGTERM, lambda *_: came.set())
        try:
            yield lambda step: came.is_set()
        finally:
            signal.signal(signal.SIGTERM, before)
    if came.is_set():
        raise Terminated


def _terminate(*_: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough: what cleans up is not interrupted
    raise Terminated


def main(door: Callable[[Sequence[str] | None], None]) -> None:
    """Runs a door; a user's mistake, or a disk that gives no more, becomes one line on stderr and exit status 2, Ctrl-C becomes 130, SIGTERM 143."""
    from sc_jax.training import processes
    from sc_jax.training.loop import DivergedError

    before = signal.signal(signal.SIGTERM, _terminate)
    with processes.ending():
        try:
            door(None)
        except (InputError, DivergedError) as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)
        except OSError as error:
            refused = files.refused_by_disk(error)
            if refused is None:
                raise
            print(f"error: {refused}", file=sys.stderr)
            sys.exit(2)
        except KeyboardInterrupt:
            print("interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
            sys.exit(130)
        except Terminated:
            print("terminated; the same command goes on where this one was", file=sys.stderr)
            sys.exit(143)
        finally:
            signal.signal(signal.SIGTERM, before)
