"""Processes of one job: how they find each other, what the first does for all, and how all end when one of them dies.

JAX's coordination service knows within `heartbeat` seconds that a process has gone, and then aborts the others, wherever they
wait. It does so with a stack trace; a helper beside each process says in one line what that means.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, NoReturn, TextIO, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from sc_jax.files import InputError

HEARTBEAT = 30
"""Seconds without a sign of life after which a process counts as dead."""

JOINING = 300
"""Seconds that processes wait for each other at the start."""

_GOES_ON = "the same command, also with another number of processes, goes on from the last checkpoint"

_BLOCK = 4096  # bytes; what is told to all is padded to a multiple, so that few programs are compiled

_T = TypeVar("_T")

_AFTERWARDS = """
import os, select, signal, sys
for name in ("SIGINT", "SIGTERM", "SIGHUP"):
    signal.signal(getattr(signal, name), signal.SIG_IGN)
told = b""
while True:
    ready = select.select([0], [], [], 1)[0]
    got = os.read(0, 65536) if ready else b""
    told += got
    if (ready and not got) or (not ready and os.getppid() != int(sys.argv[1])):
        break
os.write(2, told.split(b"\\0")[-1])
"""


class Asked(NamedTuple):
    """How a process is to find the others.

    Attributes:
      processes: how many there are, or "auto": what the cluster says.
      coordinator: HOST:PORT of process 0, or None; process: which one this is, or None. Both of a number alone.
      heartbeat: seconds; see `HEARTBEAT`.
    """

    processes: int | str
    coordinator: str | None = None
    process: int | None = None
    heartbeat: int = HEARTBEAT


def in_cluster(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether the launcher of this process says that it is one of several: SLURM's `srun`, Open MPI, or a TPU pod (GKE)."""

    def count(name: str) -> int:
        return int(environment[name]) if environment.get(name, "").isdecimal() else 1

    slurm = "SLURM_STEP_NODELIST" in environment and "SLURM_PROCID" in environment
    if slurm and count("SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in environment else "SLURM_NTASKS") > 1:
        return True
    if count("OMPI_COMM_WORLD_SIZE") > 1:
        return True
    return "," in environment.get("TPU_WORKER_HOSTNAMES", "") or count("MEGASCALE_NUM_SLICES") > 1


def start(asked: Asked) -> None:
    """Joins the other processes, before JAX does anything else; with one process nothing happens.

    Raises:
      InputError: the arguments do not fit together, or the address cannot be used.
    """
    several = asked.processes == "auto" or int(asked.processes) > 1
    _check(asked, several)
    if not several:
        return
    if asked.process == 0 and asked.coordinator is not None:
        _require_free(asked.coordinator)
    mine = f"process {asked.process} of {asked.processes}" if asked.process is not None else "this process"
    _last_words(
        f"error: {mine} did not find all others within {JOINING} s (what JAX says of it stands above); start all of them at "
        "once, with the same --coordinator and --processes\n"
    )
    try:
        jax.distributed.initialize(
            asked.coordinator,
            None if asked.processes == "auto" else int(asked.processes),
            asked.process,
            heartbeat_timeout_seconds=asked.heartbeat,
            initialization_timeout=JOINING,
        )
    except (
        RuntimeError,
        ValueError,
        TypeError,
        KeyError,
    ) as error:  # what JAX finds in a cluster's variables may not fit
        _last_words("")
        raise _cannot_join(error) from error
    _last_words(
        f"error: process {jax.process_index()} of {jax.process_count()} was ended: it was killed, or another process died or could "
        f"not be reached (what JAX says of it stands above); {_GOES_ON}\n"
    )


def _cannot_join(error: Exception) -> InputError:
    reason = " ".join(str(error).split())[:200]
    return InputError(
        f"--coordinator, --processes: the processes cannot be joined ({reason}); name a free port of the first process's "
        "host, or give all three of --coordinator, --processes and --process"
    )


def _require_free(coordinator: str) -> None:
    """Refuses a port that another program has: JAX at times ends by SIGSEGV there."""
    port = int(coordinator.rpartition(":")[2])
    both = socket.has_dualstack_ipv6()
    try:
        socket.create_server(
            ("", port), family=socket.AF_INET6 if both else socket.AF_INET, dualstack_ipv6=both
        ).close()
    except OSError as error:
        raise _cannot_join(error) from error


def _check(asked: Asked, several: bool) -> None:
    given = asked.coordinator is not None or asked.process is not None
    if asked.processes == "auto":
        if given:
            raise InputError(
                "--coordinator, --process: the cluster says what they are; give --processes=P, or leave them out"
            )
        return
    if not several:
        if given:
            raise InputError("--coordinator, --process: there is one process; give --processes=P, or leave them out")
        return
    if asked.coordinator is None or asked.process is None:
        raise InputError(f"--processes = {asked.processes}: give --coordinator=HOST:PORT and --process=I too")
    if not re.fullmatch(r".+:\d{1,5}", asked.coordinator) or int(asked.coordinator.rpartition(":")[2]) > 65535:
        raise InputError(
            f"--coordinator = {asked.coordinator!r}; it should be HOST:PORT of process 0, e.g. node1:12345"
        )
    if not 0 <= asked.process < int(asked.processes):
        raise InputError(
            f"--process = {asked.process}; it should be in 0..{int(asked.processes) - 1}, one for each process"
        )


def several() -> bool:
    """Whether this is one of several processes; does not start JAX's devices."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def first() -> bool:
    """Whether this is the process that writes logs, predictions and messages: the first, or the only one."""
    return not several() or jax.process_index() == 0


def say(text: str, file: TextIO | None = None) -> None:
    """Prints a line, in the first process."""
    if first():
        print(text, file=file, flush=True)  # a job that is killed has said it, and a log that is followed shows it


def from_first(function: Callable[[], _T]) -> _T:
    """What `function` returns, called in the first process alone; all have to ask for it, and wait.

    Args:
      function: returns a JSON value.

    Raises:
      InputError: that which it raised, in every process.
    """
    if not several():
        return function()
    outcome: dict[str, Any] = {}
    if first():
        try:
            outcome = {"value": function()}
        except InputError as error:
            outcome = {"error": str(error)}
    text = json.dumps(outcome).encode()
    length = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
    padded = np.zeros(-(-length // _BLOCK) * _BLOCK, np.uint8)
    if first():
        padded[:length] = np.frombuffer(text, np.uint8)
    outcome = json.loads(np.asarray(multihost_utils.broadcast_one_to_all(padded))[:length].tobytes())
    if "error" in outcome:
        raise InputError(outcome["error"])
    return outcome["value"]


def lost(error: Exception) -> bool:
    """Whether an error may mean that another process has gone: no collective can be asked for any more."""
    return several() and _is_of_jax(error)


def _is_of_jax(error: BaseException) -> bool:
    """A collective that fails while it is dispatched is a bare ValueError with XLA's status before its text."""
    if isinstance(error, ValueError):
        return re.match(r"[A-Z_]+: ", str(error)) is not None and not isinstance(error, InputError)
    return isinstance(error, jax.errors.JaxRuntimeError)


def all_say(holds: bool) -> bool:
    """Whether it holds in every process; all have to ask for it, and wait."""
    return bool(np.all(multihost_utils.process_allgather(np.bool_(holds)))) if several() else holds


_asked = itertools.count(1)


def preempted() -> bool:
    """Whether a process was sent SIGTERM and all are to stop here; all have to ask as often, and none waits for another.

    JAX picks the ask after the last that any process has made, so that asks are counted from 1, at whichever step training goes on.
    """
    return several() and multihost_utils.reached_preemption_sync_point(next(_asked))


def require_same(what: str, value: Any) -> None:
    """Refuses to go on, in every process, where processes differ in a JSON value.

    Raises:
      InputError: names the processes that are not as the first.
    """
    if not several():
        return
    digest = np.frombuffer(hashlib.sha256(json.dumps(value, sort_keys=True).encode()).digest(), np.uint8)
    all_of_them = np.asarray(multihost_utils.process_allgather(digest))
    other = np.flatnonzero((all_of_them != all_of_them[0]).any(axis=1)).tolist()
    if other:
        raise InputError(f"{what} differs between processes ({other} from the first): start all of them with the same")


def wait_for_all(where: str) -> None:
    """Returns when every process is here; `where` names the place, and has to be the same in all."""
    if several():
        multihost_utils.sync_global_devices(where)


def leave() -> None:
    """Takes leave of the other processes, when every one of them has come so far; each is alone afterwards."""
    if jax.distributed.is_initialized():
        wait_for_all("leave")
        jax.distributed.shutdown()
        if (
            threading.current_thread() is threading.main_thread()
        ):  # JAX took SIGTERM from Python, and does not give it back
            signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))
    _last_words("")


@contextlib.contextmanager
def ending() -> Any:
    """Within it, a process that fails ends at once instead of waiting for the others, which then end too.

    What the command line makes of an error (`SystemExit`) stays the exit status; another error is printed and is 1. The first
    goes last, since the others are connected to it: what all of them refuse, all can say.
    """
    try:
        yield
        leave()
    except BaseException as error:
        if not jax.distributed.is_initialized():
            _last_words("")
            raise
        status = 1
        if isinstance(error, SystemExit):
            status = error.code if isinstance(error.code, int) else 1
        elif _is_of_jax(error):
            reason = (str(error).strip() or "no reason given").splitlines()[0][:300]
            print(
                f"error: process {jax.process_index()} of {jax.process_count()} was ended: {reason}; where another process died, "
                f"{_GOES_ON}",
                file=sys.stderr,
            )
        else:
            traceback.print_exc()
        _end_now(status)


def _end_now(status: int) -> NoReturn:
    if jax.process_index() == 0:
        time.sleep(2)
    _last_words("")
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


_helper: list[subprocess.Popen[bytes]] = []


def _last_words(text: str) -> None:
    """What is to be said if this process ends without another word; "" for nothing, and the helper goes."""
    if text and not _helper:
        command = [sys.executable, "-I", "-S", "-c", _AFTERWARDS, str(os.getpid())]
        _helper.append(subprocess.Popen(command, stdin=subprocess.PIPE))
    if not _helper:
        return
    with contextlib.suppress(OSError):
        _helper[0].stdin.write(b"\0" + text.encode())
        _helper[0].stdin.flush()
    if not text:
        helper = _helper.pop()
        with contextlib.suppress(OSError):
            helper.stdin.close()
        helper.wait()
