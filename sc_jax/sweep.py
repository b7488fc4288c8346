"""`python -m sc_jax.sweep`: the runs of a sweep, some at once; a second call finishes what is unfinished.

python -m sc_jax.sweep --sweep=experiments/label_smoothing/sweep.py[:variant] --workdir=DIR [--parallel=N] [--launcher=local|slurm]

A sweep file defines `get_configs(variant)`, which yields {"config": "config.py[:variant]" beside it, field: value, …} and where it
likes the "name" of the run; without, it is named by its variant and fields. Every run is
`python -m sc_jax.run` in a workdir of its own, DIR/runs/<name>, with its output in DIR/runs/<name>.log; DIR/sweep.csv and
DIR/sweep.json are the table of all. A run that was killed (SIGKILL, SIGTERM, preemption) is started again and goes on from its last
checkpoint; one that ended with an error is not.
"""

from __future__ import annotations

import collections
import contextlib
import csv
import dataclasses
import io
import os
import re
import shlex
import signal
import subprocess
import sys
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

PREEMPTED = (-signal.SIGKILL, -signal.SIGTERM, 128 + signal.SIGKILL, 128 + signal.SIGTERM)
"""Exit statuses of a run that was ended from outside."""

GRACE = 60.0
"""Seconds a run has to write a checkpoint when it is told to end."""


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
    except (TypeError, ValueError, LookupError) as error:  # of the generator, which runs here
        raise InputError(f"{path}: {error}") from error
    if not wanted:
        raise InputError(f"{path}: yields no run")
    runs: dict[str, Run] = {}
    for number, fields in enumerate(wanted, 1):
        if not isinstance(fields, Mapping) or not isinstance(fields.get("config"), str):
            raise InputError(f'{path}: run {number} is {fields!r}; yield {{"config": "config.py", field: value, …}}')
        config = str(Path(path).parent / fields["config"])
        given = {name: value for name, value in fields.items() if name not in ("config", "name")}
        overrides = {name: value if isinstance(value, str) else repr(value) for name, value in given.items()}
        name = _name(fields.get("name"), fields["config"].partition(":")[2] or "default", given)
        if name in runs:
            raise InputError(
                f"{path}: run {number} has the name of an earlier one, {name}; let a field tell them apart"
            )
        try:
            runs[name] = Run(name, config, overrides, config_lib.load(config, overrides))
        except InputError as error:
            raise InputError(f"run {name}: {error}") from error
    return list(runs.values())


def _name(given: str | None, variant: str, fields: Mapping[str, Any]) -> str:
    """What the sweep calls it, or the variant and the fields by the last part of their names, in characters that a folder may have."""

    def text(value: Any) -> str:
        return "x".join(map(text, value)) if isinstance(value, (tuple, list)) else str(value)

    parts = [f"{name.rpartition('.')[2]}={text(value)}" for name, value in fields.items()]
    name = re.sub(r"[^\w.=,+-]", "_", given or ",".join([variant, *parts]))
    return name if name.strip(".") else f"_{name}"


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
        """Args: `command`; `log`, where its output goes; `devices`, the GPUs it sees, all by default."""
        environment = dict(os.environ)
        if devices is not None:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, devices))
        with open(log, "ab") as file:
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
        line = f"{shlex.join(command)} >> {shlex.quote(str(log))} 2>&1; code=$?; echo $code > {shlex.quote(str(status))}; exit $code"
        self._status = status
        self._job = executor.submit(CommandFunction(["sh", "-c", line], verbose=False, cwd=os.getcwd()))

    def poll(self) -> int | None:
        """The exit status; that of SIGKILL for a job that has gone without one, 130 for one that somebody cancelled."""
        gone = self._job.done()
        with contextlib.suppress(FileNotFoundError, ValueError):
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
        executor.update_parameters(**options)
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
      InputError: a run's workdir holds another config.
    """
    (workdir / "runs").mkdir(parents=True, exist_ok=True)
    states = _earlier(workdir)
    queue: collections.deque[Run] = collections.deque()
    for run in runs:
        state = states.setdefault(run.name, {"state": "waiting", "starts": 0, "kills": 0})
        if finished(run, workdir):
            state["state"] = "done"
        else:
            state["state"] = "waiting"
            queue.append(run)
    say(f"sweep: {len(runs) - len(queue)} of {len(runs)} runs are done")
    running: dict[int, tuple[Run, Process]] = {}
    tries: collections.Counter[str] = collections.Counter()
    try:
        while queue or running:
            free = [slot for slot in range(parallel) if slot not in running]
            for _ in range(len(queue)):
                if not free:
                    break
                run = queue.popleft()
                if _held(
                    workdir / "runs" / run.name
                ):  # left over from a sweep that was itself killed: it may end by itself
                    queue.append(run)
                    continue
                slot = free.pop(0)
                running[slot] = run, launch(run, slot)
                states[run.name]["starts"] += 1
                states[run.name]["state"] = "running"
            for slot, (run, process) in list(running.items()):
                status = process.poll()
                if status is None:
                    continue
                del running[slot]
                state = states[run.name]
                if status == 0 or finished(run, workdir):
                    state["state"] = "done"
                elif status == 2 and _taken(workdir, run):
                    state["state"] = "waiting"
                    queue.append(run)
                elif status in PREEMPTED and tries[run.name] < retries:
                    state["kills"] += 1
                    tries[run.name] += 1
                    state["state"] = "waiting"
                    queue.append(run)
                else:
                    state["kills"] += status in PREEMPTED
                    state["state"] = (
                        f"killed {1 + tries[run.name]} times"
                        if status in PREEMPTED
                        else f"failed: {_last_line(workdir, run)}"
                    )
                done = sum(states[one.name]["state"] == "done" for one in runs)
                again = (
                    "was killed; it goes on" if status in PREEMPTED else "is run by another process; it is waited for"
                )
                what = again if state["state"] == "waiting" else state["state"]
                say(f"[{done}/{len(runs)}] {run.name}: {what}")
            time.sleep(pause)
            while running and not queue and all(process.poll() is None for _, process in running.values()):
                time.sleep(pause)
    finally:
        _stop([process for _, process in running.values()])
        for run, _ in running.values():
            states[run.name]["state"] = "done" if finished(run, workdir) else "waiting"
        table = collect(runs, states, workdir)
    return table


def _stop(processes: Sequence[Process]) -> None:
    for process in processes:
        process.stop()
    deadline = time.monotonic() + GRACE
    while any(process.poll() is None for process in processes) and time.monotonic() < deadline:
        time.sleep(0.1)
    for process in processes:
        if process.poll() is None:
            process.stop(force=True)


def _earlier(workdir: Path) -> dict[str, dict[str, Any]]:
    path = workdir / "sweep.json"
    told = files.read_json(path)["runs"] if path.exists() else []
    return {run["name"]: {field: run[field] for field in ("state", "starts", "kills")} for run in told}


def _held(workdir: Path) -> bool:
    if not workdir.exists():
        return False
    try:
        with files.lock(workdir):
            return False
    except InputError:
        return True


def _taken(workdir: Path, run: Run) -> bool:
    """Whether the run was refused since another process has its workdir: one that an earlier sweep had just started when it was killed."""
    return _held(workdir / "runs" / run.name) or "is using this workdir" in _last_line(workdir, run)


def finished(run: Run, workdir: Path) -> bool:
    """Whether the run got to its end, which writes `timings.json`.

    Raises:
      InputError: its workdir holds another config.
    """
    folder = workdir / "runs" / run.name
    path = folder / "config.json"
    if path.exists() and files.read_json(path) != config_lib.as_dict(run.config):
        raise InputError(f"{path}: another config than the sweep asks for; name another --workdir, or delete {folder}")
    return path.exists() and (folder / "timings.json").exists()


def _last_line(workdir: Path, run: Run) -> str:
    path = workdir / "runs" / f"{run.name}.log"
    lines = path.read_text(errors="replace").split("\n") if path.exists() else []
    return next((line.strip() for line in reversed(lines) if line.strip()), "it left no word")[-300:]


def collect(runs: Sequence[Run], states: Mapping[str, Mapping[str, Any]], workdir: Path) -> dict[str, Any]:
    """Writes the table of all runs, `sweep.json` and `sweep.csv`.

    Args:
      runs: of `load`; states: by name {"state", "starts", "kills"}; workdir: of the sweep.

    Returns:
      {"schema", "fields", "runs": [{"name", "config", "state", "starts", "kills", "values": {field: value}, "rows"}]}: `fields` are those
      that any run sets, `values` what they are in this one, `rows` those of its `metrics.json`, one for each member and score, with
      the member's error on the calibration split, by which to choose. The CSV has a line for each of these, and one for a run that has none.
    """
    fields = list(dict.fromkeys(field for run in runs for field in run.overrides))
    document: dict[str, Any] = {"schema": SCHEMA, "fields": fields, "runs": []}
    lines: list[dict[str, Any]] = []
    for run in runs:
        whole = config_lib.as_dict(run.config)
        values = {field: _value(whole, field) for field in fields}
        done, chosen_by = states[run.name]["state"] == "done", f"error_on_{run.config.evaluation.calibration_split}"
        told = _rows(run, workdir / "runs" / run.name, chosen_by) if done else []
        document["runs"].append(
            {"name": run.name, "config": run.reference, **states[run.name], "values": values, "rows": told}
        )
        first = {"run": run.name, "state": states[run.name]["state"], **values}
        of_rows = [
            row["tags"] | {name: row[name] for name in (chosen_by, "score", "n")} | row["metrics"] for row in told
        ]
        lines += [first | row for row in of_rows] or [first]
    files.write_json(workdir / "sweep.json", document)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(name for line in lines for name in line)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    files.write_text(workdir / "sweep.csv", text.getvalue())
    return document


def _rows(run: Run, folder: Path, chosen_by: str) -> list[dict[str, Any]]:
    path, split = folder / "metrics.json", run.config.evaluation.calibration_split
    rows, errors = [], {}
    for row in files.read_json(path)["runs"] if path.exists() else []:
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
            told = _earlier(workdir).values()
            print(f"sweep: {sum(one['state'] == 'done' for one in told)} of {len(runs)} runs are done", file=sys.stderr)
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
