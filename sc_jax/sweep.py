"""`python -m sc_jax.sweep`: the runs of a sweep, some at once; a second call finishes what is unfinished.

python -m sc_jax.sweep --sweep=experiments/label_smoothing/sweep.py[:variant] --workdir=DIR [--parallel=N] [--launcher=local|slurm]

A sweep file defines `get_configs(variant)`, which yields {"config": "config.py[:variant]" beside it, field: value, …} and where it
likes the "name" of the run; without, it is named by its variant and fields. Every run is
`python -m sc_jax.run` in a workdir of its own, DIR/runs/<name>, with its output in DIR/runs/<name>.log; DIR/sweep.csv and
DIR/sweep.json are the table of all, and DIR/states.json is what is known of each whenever one is started or ends. A run that was killed
(SIGKILL, SIGTERM, preemption) is started again and goes on from its last checkpoint; one that ended with an error is not.
"""

from __future__ import annotations

import collections
import contextlib
import csv
import dataclasses
import hashlib
import io
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from sc_jax import cli, files, ops, predictions
from sc_jax import config as config_lib
from sc_jax.config import Config
from sc_jax.files import InputError
from sc_jax.methods import evaluation

SCHEMA = 1
"""Of `sweep.json`."""

PREEMPTED = tuple(
    status for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGUSR2) for status in (-number, 128 + number)
)
"""Exit statuses of a run that was ended from outside; SIGUSR2 is what some clusters send before they do."""

GRACE = 60.0
"""Seconds a run has to write a checkpoint when it is told to end."""

NOTICE = 120
"""Seconds before the end of a job at which SLURM tells it to end; of a job of less than four minutes, half of its time."""


@dataclasses.dataclass(frozen=True)
class Run:
    """One run of a sweep.

    Attributes:
      name: of its folder; reference: of its config, `file[:variant]`; overrides: dotted field → text; config: what they amount to.
    """

    name: str
    reference: str
    overrides: dict[str, str]
    config: Config

    def command(self, workdir: Path) -> list[str]:
        """What starts it, and goes on with it."""
        fields = [f"--config.{field}={text}" for field, text in self.overrides.items()]
        return [sys.executable, "-m", "sc_jax.run", f"--config={self.reference}", f"--workdir={workdir}", *fields]


def load(reference: str) -> list[Run]:
    """The runs of `path/to/sweep.py[:variant]`, every config checked.

    Raises:
      InputError: names the file and what is wrong: no runs, the same one twice, or a config that does not fit the schema.
    """
    path, _, variant = reference.partition(":")
    try:
        wanted = list(config_lib.called(path, "get_configs", variant or "default"))
    except InputError:
        raise
    except Exception as error:  # of the generator, a user's code, which runs here
        raise InputError(f"{path}: {type(error).__name__}: {error}") from error
    if not wanted:
        raise InputError(f"{path}: yields no run")
    runs: dict[str, Run] = {}
    for number, fields in enumerate(wanted, 1):
        if not isinstance(fields, Mapping) or not isinstance(fields.get("config"), str):
            raise InputError(f'{path}: run {number} is {fields!r}; yield {{"config": "config.py", field: value, …}}')
        called = fields.get("name")
        if called is not None and not isinstance(called, str):
            raise InputError(f"{path}: run {number} has the name {called!r}; it should be a text")
        config = str(Path(path).parent / fields["config"])
        given = {name: _plain(value) for name, value in fields.items() if name not in ("config", "name")}
        overrides = {name: value if isinstance(value, str) else repr(value) for name, value in given.items()}
        name = _name(called, fields["config"].partition(":")[2] or "default", given)
        if name in runs:
            raise InputError(
                f"{path}: run {number} has the name of an earlier one, {name}; let a field tell them apart"
            )
        try:
            runs[name] = Run(name, config, overrides, config_lib.load(config, overrides))
        except InputError as error:
            raise InputError(f"run {name}: {error}") from error
    return list(runs.values())


def _plain(value: Any) -> Any:
    """The same without NumPy's types, whose text is no literal."""
    if isinstance(value, (tuple, list)):
        return (list if isinstance(value, list) else tuple)(map(_plain, value))
    return value.tolist() if isinstance(value, (np.generic, np.ndarray)) else value


_LONGEST = 200  # bytes of a name; a file system takes 255, with what is added to it


def _name(given: str | None, variant: str, fields: Mapping[str, Any]) -> str:
    """What the sweep calls it, or the variant and the fields by the last part of their names, in characters that a folder may have."""

    def text(value: Any) -> str:
        return "x".join(map(text, value)) if isinstance(value, (tuple, list)) else str(value)

    parts = [f"{name.rpartition('.')[2]}={text(value)}" for name, value in fields.items()]
    name = re.sub(r"[^\w.=,+-]", "_", given or ",".join([variant, *parts]))
    name = name if name.strip(".") else f"_{name}"
    if len(whole := name.encode()) <= _LONGEST:
        return name
    return f"{whole[: _LONGEST - 13].decode(errors='ignore')}-{hashlib.sha256(whole).hexdigest()[:12]}"


class Process(Protocol):
    """A run that was started."""

    def poll(self) -> int | None:
        """The exit status, negative for a signal, or None while it runs."""
        ...

    def stop(self, force: bool = False) -> None:
        """Tells it to end, by force if it has been told before."""
        ...


class Local:
    """A run as a process of this machine, in a session of its own: it ends when this program tells it to."""

    def __init__(self, command: Sequence[str], log: Path, devices: Sequence[int] | None) -> None:
        """Args: `command`; `log`, where its output goes; `devices`, the GPUs it sees, all by default.

        Raises:
          InputError: the log cannot be written.
        """
        environment = dict(os.environ)
        if devices is not None:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, devices))
        try:
            file = open(log, "ab")  # noqa: SIM115 (closed below)
        except OSError as error:
            raise InputError(f"{log}: cannot write it ({error.strerror})") from error
        with file:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=environment, start_new_session=True
            )

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def poll(self) -> int | None:
        """The exit status, negative for a signal, or None while it runs."""
        return self._process.poll()

    def stop(self, force: bool = False) -> None:
        """SIGTERM, or SIGKILL, to it and all that it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL if force else signal.SIGTERM)


class Slurm:
    """A run as a job of SLURM, submitted by submitit: what is pickled is a command, by us and for us."""

    def __init__(self, executor: Any, command: Sequence[str], log: Path, status: Path) -> None:
        """Args: `executor`, submitit's; `command`; `log`, where its output goes; `status`, where its exit status is kept."""
        from submitit.helpers import CommandFunction

        status.unlink(missing_ok=True)
        # A signal is for all of a step; the shell outlives it, as does submitit, and tells how the run has ended.
        line = (
            f"trap : TERM USR2; {shlex.join(command)} >> {shlex.quote(str(log))} 2>&1; "
            f"code=$?; echo $code > {shlex.quote(str(status))}; exit $code"
        )
        self._status = status
        self._job = executor.submit(CommandFunction(["sh", "-c", line], verbose=False, cwd=os.getcwd()))

    def poll(self) -> int | None:
        """The exit status; that of SIGKILL for a job that has gone without one, 130 for one that somebody cancelled."""
        gone = self._job.done()
        with contextlib.suppress(FileNotFoundError, ValueError):  # none yet, or not yet whole
            return int(self._status.read_text())
        if not gone:
            return None
        return 130 if self._job.state.startswith("CANCELLED") else -signal.SIGKILL

    def stop(self, force: bool = False) -> None:
        """Cancels the job; SLURM sends SIGTERM, then SIGKILL."""
        self._job.cancel(check=False)


Launch = Callable[[Run, int], Process]
"""(run, slot) → the run, started; `slot` is one of 0 … N − 1 that no other running run has."""


def launcher(
    kind: str, workdir: Path, *, minutes: int = 60, partition: str | None = None, gpus: int = 0, cpus: int = 1
) -> Launch:
    """How runs are started.

    Args:
      kind: "local", processes of this machine; "slurm", jobs of the cluster this machine belongs to.
      workdir: of the sweep. minutes, partition: of a job. cpus: of a job. gpus: of a run; on this machine slot i sees i·gpus, i·gpus + 1, …

    Raises:
      InputError: there is no SLURM here, or it does not take an option.
    """
    if kind == "local":

        def start(run: Run, slot: int) -> Process:
            devices = range(slot * gpus, (slot + 1) * gpus) if gpus else None
            return Local(run.command(workdir / "runs" / run.name), workdir / "runs" / f"{run.name}.log", devices)

        return start
    import submitit

    try:
        executor = submitit.SlurmExecutor(folder=workdir / "slurm")
        options = {"time": minutes, "cpus_per_task": cpus, "job_name": f"sweep-{workdir.name}"}
        options |= {"partition": partition} if partition else {}
        options |= {"gpus_per_node": gpus} if gpus else {}
        # submitit's own choice is SIGUSR2, which kills a run without a checkpoint. What starts a run again is the sweep alone.
        signalled = {"signal": f"TERM@{min(NOTICE, 30 * minutes)}", "no_requeue": True}
        executor.update_parameters(**options, additional_parameters=signalled)
    except (RuntimeError, ValueError) as error:
        raise InputError(f"--launcher=slurm: {error}; on a machine without SLURM take --launcher=local") from error

    def submit(run: Run, slot: int) -> Process:
        place = workdir / "runs" / run.name
        try:
            return Slurm(
                executor, run.command(place), place.with_name(f"{run.name}.log"), place.with_name(f"{run.name}.status")
            )
        except submitit.core.utils.FailedJobError as error:
            raise InputError(f"--launcher=slurm: sbatch refused {run.name}: {str(error).strip()}") from error

    return submit


def sweep(
    runs: Sequence[Run],
    workdir: Path,
    launch: Launch,
    *,
    parallel: int = 1,
    retries: int = 5,
    say: Callable[[str], None] = print,
    pause: float = 0.2,
) -> dict[str, Any]:
    """Runs what is unfinished, `parallel` at once, and collects the table; the caller holds the workdir.

    Args:
      runs: of `load`; workdir: of the sweep; launch: of `launcher`.
      parallel: how many at once; retries: how often one run is started again after it was killed, in this call.
      say: receives a line for every end of a run; pause: seconds between looks at those that run.

    Returns:
      What `sweep.json` holds; see `collect`.

    Raises:
      InputError: a run's workdir holds another config, or the table or `states.json` cannot be written.
    """
    try:
        (workdir / "runs").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{workdir / 'runs'}: cannot be made ({error.strerror})") from error
    states = _earlier(workdir, say)

    def reached(run: Run, status: int | None = None) -> bool:
        # A failed run may have got to its end before it was damaged: that it is mended, its exit status alone tells.
        return status == 0 or (finished(run, workdir) and not failed(run))

    def failed(run: Run) -> bool:
        return states[run.name]["state"].startswith("failed")

    queue: collections.deque[Run] = collections.deque()
    for run in runs:
        state = states.setdefault(run.name, {"state": "waiting", "starts": 0, "kills": 0})
        if reached(run):
            state["state"] = "done"
            continue
        if not failed(run):
            state["state"] = "waiting"
        queue.append(run)
    say(f"sweep: {len(runs) - len(queue)} of {len(runs)} runs are done")
    running: dict[int, tuple[Run, Process]] = {}
    tries: collections.Counter[str] = collections.Counter()
    awaited: set[str] = set()

    def tell(run: Run, what: str) -> None:
        done = sum(states[one.name]["state"] == "done" for one in runs)
        say(f"[{done}/{len(runs)}] {run.name}: {what}")

    def wait_for(run: Run) -> None:
        queue.append(run)
        if run.name not in awaited:
            awaited.add(run.name)
            tell(run, "is run by another process; it is waited for")

    def become(run: Run, what: str) -> None:
        states[run.name]["state"] = what
        _keep(workdir, states)
        tell(run, what)

    def start(run: Run, slot: int) -> None:
        try:
            # Left over from a sweep that was itself killed: it may end by itself.
            if _held(workdir / "runs" / run.name):
                wait_for(run)
                return
        except InputError as error:
            become(run, f"failed: {error}")
            return
        states[run.name]["starts"] += 1
        _keep(workdir, states)  # before it is, so that no start is lost where this program is killed
        try:
            with _held_back():  # or it would run on, known to nobody
                running[slot] = run, launch(run, slot)
        except InputError as error:
            states[run.name]["starts"] -= 1
            become(run, f"failed: {error}")

    def ended(run: Run, status: int) -> None:
        if reached(run, status):
            become(run, "done")
        elif status in PREEMPTED:
            states[run.name]["kills"] += 1
            tries[run.name] += 1
            if tries[run.name] > retries:
                become(run, f"failed: killed {tries[run.name]} times")
                return
            _keep(workdir, states)
            queue.append(run)
            tell(run, "was killed; it goes on")
        elif status == 2 and _taken(workdir, run):
            wait_for(run)
        else:
            become(run, f"failed: {_last_line(workdir, run)}")

    def settle() -> dict[str, Any]:
        _stop([process for _, process in running.values()])
        for run, process in running.values():
            if reached(run, process.poll()):
                states[run.name]["state"] = "done"
        table = collect(runs, states, workdir)
        for row in table["runs"]:
            states[row["name"]]["state"] = row["state"]
        _keep(workdir, states)
        return table

    try:
        while queue or running:
            free = [slot for slot in range(parallel) if slot not in running]
            for _ in range(len(queue)):
                if not free:
                    break
                start(queue.popleft(), free[0])
                free = [slot for slot in free if slot not in running]
            for slot, (run, process) in list(running.items()):
                status = process.poll()
                if status is not None:
                    del running[slot]
                    ended(run, status)
            time.sleep(pause)
            while running and not queue and all(process.poll() is None for _, process in running.values()):
                time.sleep(pause)
    except BaseException:
        with _undisturbed(), contextlib.suppress(InputError):  # what was raised is told, and not that there is no table
            settle()
        raise
    return settle()


def _stop(processes: Sequence[Process]) -> None:
    for process in processes:
        process.stop()
    deadline = time.monotonic() + GRACE
    while any(process.poll() is None for process in processes) and time.monotonic() < deadline:
        time.sleep(0.1)
    for process in processes:
        if process.poll() is None:
            process.stop(force=True)


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """SIGTERM, which has come before or may yet, ends nothing here."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _held_back() -> Iterator[None]:
    """Ctrl-C and SIGTERM, but where they are ignored, come at the end of it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    numbers = [s for s in (signal.SIGINT, signal.SIGTERM) if callable(signal.getsignal(s))]
    before = {number: signal.signal(number, lambda number, frame: came.append(number)) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for number in came:
            signal.raise_signal(number)


def _keep(workdir: Path, states: Mapping[str, Mapping[str, Any]]) -> None:
    files.write_json(workdir / "states.json", {"runs": states}, seal=True)


def _earlier(workdir: Path, say: Callable[[str], None]) -> dict[str, dict[str, Any]]:
    """What `_keep` kept, of all runs that were ever asked for in this workdir."""
    path = workdir / "states.json"
    if not path.exists():
        return {}
    try:
        return files.read_json(path, sealed=True)["runs"]
    except InputError as error:
        say(f"sweep: {error}; starts and kills are counted from 0 again")
        return {}


def _held(workdir: Path) -> bool:
    """Whether another process has the workdir of a run.

    Raises:
      InputError: it cannot be one.
    """
    if not workdir.exists():
        return False
    try:
        with files.lock(workdir):
            return False
    except files.InUse:
        return True


def _taken(workdir: Path, run: Run) -> bool:
    """Whether the run was refused since another process has its workdir: one that an earlier sweep had just started when it was killed."""
    try:
        return _held(workdir / "runs" / run.name)
    except InputError:
        return False


def finished(run: Run, workdir: Path) -> bool:
    """Whether the run got to its end, which writes `timings.json`.

    Raises:
      InputError: its workdir holds another config; `devices` may differ.
    """
    folder = workdir / "runs" / run.name
    path = folder / "config.json"
    if not path.exists():
        return False
    try:
        there = files.read_json(path)
    except InputError:  # damaged; the run says so when it is started
        return False
    if different := cli.differences(there, config_lib.as_dict(run.config)):
        raise InputError(
            f"{path}: another config than the sweep asks for ({'; '.join(different[:5])}); name another --workdir, or delete {folder}"
        )
    return (folder / "timings.json").exists()


def _last_line(workdir: Path, run: Run) -> str:
    path = workdir / "runs" / f"{run.name}.log"
    lines = path.read_text(errors="replace").split("\n") if path.exists() else []
    return next((line.strip() for line in reversed(lines) if line.strip()), "it left no word")[-300:]


def collect(runs: Sequence[Run], states: Mapping[str, Mapping[str, Any]], workdir: Path) -> dict[str, Any]:
    """Writes the table of all runs, `sweep.json` and `sweep.csv`.

    Args:
      runs: of `load`; states: by name {"state", "starts", "kills"}, the state "waiting", "done", or "failed: " and why; workdir: of the sweep.

    Returns:
      {"schema", "fields", "runs": [{"name", "config", "state", "starts", "kills", "values": {field: value}, "rows"}]}: `fields` are those
      that any run sets, `values` what they are in this one, `rows` those of its `metrics.json`, one for each member and score, with
      the member's error on the calibration split, by which to choose. The CSV has a line for each of these, and one for a run that has none.
      The state of a run whose results are damaged, or not there, is "failed: " and why.
    """
    fields = list(dict.fromkeys(field for run in runs for field in run.overrides))
    document: dict[str, Any] = {"schema": SCHEMA, "fields": fields, "runs": []}
    lines: list[dict[str, Any]] = []
    for run in runs:
        whole = config_lib.as_dict(run.config)
        values = {field: _value(whole, field) for field in fields}
        state, chosen_by = dict(states[run.name]), f"error_on_{run.config.evaluation.calibration_split}"
        try:
            told = _rows(run, workdir / "runs" / run.name, chosen_by) if state["state"] == "done" else []
        except InputError as error:
            state["state"], told = f"failed: {error}", []
        document["runs"].append({"name": run.name, "config": run.reference, **state, "values": values, "rows": told})
        first = {"run": run.name, "state": state["state"], **values}
        of_rows = [
            row["tags"] | {name: row[name] for name in (chosen_by, "score", "n")} | row["metrics"] for row in told
        ]
        lines += [first | row for row in of_rows] or [first]
    files.write_json(workdir / "sweep.json", document, seal=True)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(name for line in lines for name in line)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    files.write_text(workdir / "sweep.csv", text.getvalue())
    return document


def _rows(run: Run, folder: Path, chosen_by: str) -> list[dict[str, Any]]:
    path, split = folder / "metrics.json", run.config.evaluation.calibration_split
    rows, errors = [], {}
    for row in files.read_json(path, sealed=True)["runs"]:
        member = config_lib.member_name(row["tags"])
        if member not in errors:
            given = predictions.load(folder / "predictions" / member / f"{split}.npz")
            wrong = ops.predicted_class(evaluation.combined(given).logits) != given.label
            errors[member] = float(np.average(wrong, weights=given.weight))
        told = {field: row[field] for field in ("score", "split", "n", "metrics", "intervals")}
        rows.append({"tags": row["tags"], chosen_by: errors[member], **told})
    return rows


def _value(whole: Any, field: str) -> Any:
    for name in field.split("."):
        whole = whole[name]
    return whole


@contextlib.contextmanager
def _told_to_end() -> Iterator[None]:
    """SIGTERM ends this program as Ctrl-C does: its runs with it."""

    def end(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough: what ends the runs is not interrupted
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def main(argv: Sequence[str] | None = None) -> None:
    """The door."""
    parser = cli.parser("sweep", "Runs of a sweep, some at once; a second call finishes what is unfinished.")
    parser.add_argument(
        "--sweep", required=True, metavar="FILE[:VARIANT]", help="experiments/<study>/sweep.py[:variant]"
    )
    parser.add_argument("--workdir", required=True, metavar="DIR", help="runs/, sweep.csv and sweep.json are there")
    parser.add_argument("--launcher", choices=("local", "slurm"), default="local")
    parser.add_argument("--parallel", type=int, default=1, metavar="N", help="runs at once")
    parser.add_argument("--retries", type=int, default=5, help="starts again of one run after it was killed")
    parser.add_argument("--gpus", type=int, default=0, help="of each run; 0 leaves it to what is there")
    parser.add_argument("--minutes", type=int, default=60, help="slurm: longest time of a job")
    parser.add_argument("--partition", help="slurm: where jobs go")
    parser.add_argument("--cpus", type=int, default=1, help="slurm: cores of a job")
    given = parser.parse_args(argv)
    for name, least in (("parallel", 1), ("retries", 0), ("gpus", 0), ("minutes", 1), ("cpus", 1)):
        if getattr(given, name) < least:
            parser.error(f"--{name}={getattr(given, name)}: at least {least}")
    workdir = Path(given.workdir)
    runs = load(given.sweep)
    options = {"minutes": given.minutes, "partition": given.partition, "gpus": given.gpus, "cpus": given.cpus}
    with files.lock(workdir), _told_to_end():
        launch = launcher(given.launcher, workdir, **options)
        try:
            pause = 0.2 if given.launcher == "local" else 5.0
            table = sweep(runs, workdir, launch, parallel=given.parallel, retries=given.retries, pause=pause)
        except KeyboardInterrupt:
            told = _earlier(workdir, print)
            done = sum(run.name in told and told[run.name]["state"] == "done" for run in runs)
            print(f"sweep: {done} of {len(runs)} runs are done", file=sys.stderr)
            raise
    undone = [run for run in table["runs"] if run["state"] != "done"]
    print(f"table: {workdir / 'sweep.csv'}, with intervals {workdir / 'sweep.json'}")
    if undone:
        raise InputError(
            f"{workdir}: {len(undone)} of {len(runs)} runs did not end well, first {undone[0]['name']} ({undone[0]['state']}); their logs "
            "are beside them under runs/, and the same command tries them again"
        )


if __name__ == "__main__":
    cli.main(main)
