"""Sweeps: what is run, run again, left alone and collected; by processes, by jobs, and by made-up launchers."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import hashlib
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT, run_door

from benchmarks import sweep as benchmark
from sc_jax import config as config_lib
from sc_jax import files
from sc_jax import sweep as sweep_lib
from sc_jax.files import InputError

SWEEP = str(ROOT / "experiments/label_smoothing/sweep.py")


@pytest.fixture
def runs():
    return sweep_lib.load(f"{SWEEP}:four")


def finish(run, workdir):
    """What a run leaves at its end, as far as a sweep looks."""
    folder = workdir / "runs" / run.name
    files.write_json(folder / "config.json", config_lib.as_dict(run.config))
    files.write_json(folder / "metrics.json", {"runs": []}, seal=True)
    files.write_json(folder / "timings.json", {})


class Script:
    """A launcher of made-up runs: each start of a run ends with the next of its statuses, after two looks; 0 once there are none."""

    def __init__(self, workdir, statuses=None):
        self.workdir, self.statuses = workdir, statuses or {}
        self.starts, self.alive, self.most = [], 0, 0
        self.stopped = []

    def __call__(self, run, slot):
        self.starts.append((run.name, slot))
        self.alive += 1
        self.most = max(self.most, self.alive)
        left = self.statuses.get(run.name, [])
        return self.Process(self, run, left.pop(0) if left else 0)

    class Process:
        def __init__(self, script, run, status):
            self.script, self.run, self.status, self.looks, self.gone = script, run, status, 0, False

        def poll(self):
            self.looks += 1
            if self.status == "never":
                return None if not self.gone else -15
            if self.looks < 2:
                return None
            if not self.gone:
                self.gone = True
                self.script.alive -= 1
                if self.status == 0:
                    finish(self.run, self.script.workdir)
            return self.status

        def stop(self, force=False):
            self.script.stopped.append(self.run.name)
            self.gone = True


def go(runs, workdir, script, **options):
    lines = []
    table = sweep_lib.sweep(runs, workdir, script, say=lines.append, pause=0.0, **options)
    return {run["name"]: run for run in table["runs"]}, lines


@pytest.mark.parametrize("parallel", [1, 3, 9])
def test_every_run_is_started_once_and_no_more_than_so_many_at_once(runs, tmp_path, parallel):
    script = Script(tmp_path)
    table, lines = go(runs, tmp_path, script, parallel=parallel)
    assert sorted(name for name, _ in script.starts) == sorted(run.name for run in runs)
    assert script.most == min(parallel, len(runs))
    assert {slot for _, slot in script.starts} <= set(range(parallel))
    assert all(run["state"] == "done" and run["starts"] == 1 for run in table.values())
    assert lines[0] == "sweep: 0 of 4 runs are done"


@pytest.mark.parametrize("status", [-9, -15, -12, 137, 143, 140])
def test_what_was_killed_is_started_again(runs, tmp_path, status):
    script = Script(tmp_path, {runs[1].name: [status, status]})
    table, _ = go(runs, tmp_path, script, parallel=2)
    assert [name for name, _ in script.starts].count(runs[1].name) == 3
    assert (table[runs[1].name]["state"], table[runs[1].name]["kills"]) == ("done", 2)
    assert len(script.starts) == 4 + 2


@pytest.mark.parametrize("status", [1, 2, -11, 130])
def test_what_ended_with_an_error_is_not(runs, tmp_path, status):
    (tmp_path / "runs").mkdir()
    (tmp_path / f"runs/{runs[2].name}.log").write_text("training\nerror: data.name: there is no data set\n\n")
    script = Script(tmp_path, {runs[2].name: [status]})
    table, _ = go(runs, tmp_path, script)
    assert [name for name, _ in script.starts].count(runs[2].name) == 1
    assert table[runs[2].name]["state"] == "failed: error: data.name: there is no data set"
    assert [table[run.name]["state"] for run in runs].count("done") == 3


def test_a_run_that_is_always_killed_is_given_up(runs, tmp_path):
    script = Script(tmp_path, {runs[0].name: [-9] * 10})
    table, _ = go(runs, tmp_path, script, retries=2)
    assert table[runs[0].name]["state"] == "failed: killed 3 times"
    assert len(script.starts) == 3 + 3


def test_a_second_call_does_what_is_left(runs, tmp_path):
    go(runs, tmp_path, Script(tmp_path, {runs[3].name: [2]}))
    script = Script(tmp_path)
    table, lines = go(runs, tmp_path, script)
    assert [name for name, _ in script.starts] == [runs[3].name]
    assert lines[0] == "sweep: 3 of 4 runs are done"
    assert (table[runs[3].name]["state"], table[runs[3].name]["starts"]) == ("done", 2)
    script = Script(tmp_path)
    go(runs, tmp_path, script)
    assert script.starts == []


def test_a_run_left_over_from_another_sweep_is_waited_for(runs, tmp_path):
    """Its workdir is held; it is neither started twice nor given up."""
    script = Script(tmp_path)
    code = (
        "import sys, time; from sc_jax import files\n"
        "with files.lock(sys.argv[1]):\n    print('held', flush=True); time.sleep(1.5)\n"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "runs" / runs[0].name)], stdout=subprocess.PIPE
    )
    try:
        assert holder.stdout.readline() == b"held\n"
        begin = time.monotonic()
        table, _ = go(runs, tmp_path, script)
        assert script.starts[-1][0] == runs[0].name
        assert holder.poll() is not None or time.monotonic() - begin > 1
        assert table[runs[0].name]["state"] == "done"
    finally:
        holder.kill()
        holder.wait()


def test_a_run_that_another_process_took_first_is_waited_for(runs, tmp_path):
    """A sweep that is killed leaves processes that do not hold their workdirs yet."""
    script = Script(tmp_path, {runs[0].name: [2]})
    held = contextlib.ExitStack()

    def taken(run, slot):
        if run.name == runs[0].name and len(script.starts) == 0:
            held.enter_context(files.lock(tmp_path / "runs" / run.name))
        elif len(script.starts) == 3:
            held.close()
        return script(run, slot)

    table, lines = go(runs, tmp_path, taken)
    assert [name for name, _ in script.starts] == [run.name for run in (*runs, runs[0])]
    assert (table[runs[0].name]["state"], table[runs[0].name]["kills"]) == ("done", 0)
    assert [line for line in lines if "waited for" in line] == [
        f"[0/4] {runs[0].name}: is run by another process; it is waited for"
    ]


@pytest.mark.parametrize("after", ["before it starts", "after it was refused"])
def test_a_run_whose_folder_cannot_be_held_is_not_waited_for(runs, tmp_path, after):
    """No permission, a quota, a read-only disk: nobody holds it."""
    folder = tmp_path / "runs" / runs[0].name
    script = Script(tmp_path, {runs[0].name: [2]})
    said = f"error: {folder}: cannot be used as a workdir (Disk quota exceeded); name another --workdir"

    def launch(run, slot):
        if run.name == runs[0].name:
            (folder / ".lock").mkdir(parents=True)  # which cannot be opened, whoever tries
            folder.with_name(f"{folder.name}.log").write_text(said)
        return script(run, slot)

    if after == "before it starts":
        folder.parent.mkdir()
        folder.write_text("in the way")
    table, lines = go(runs, tmp_path, launch)
    assert table[runs[0].name]["state"].startswith("failed: ")
    assert "cannot be used as a workdir" in table[runs[0].name]["state"]
    assert [table[run.name]["state"] for run in runs].count("done") == 3
    assert not any("waited for" in line for line in lines)


def test_a_done_run_whose_folder_was_deleted_is_undone_until_it_is_done_again(runs, tmp_path):
    go(runs, tmp_path, Script(tmp_path))
    shutil.rmtree(tmp_path / "runs" / runs[0].name)
    _, lines = go(runs, tmp_path, Script(tmp_path, {runs[0].name: [-9]}))
    assert lines == [
        "sweep: 3 of 4 runs are done",
        f"[3/4] {runs[0].name}: was killed; it goes on",
        f"[4/4] {runs[0].name}: done",
    ]


def damage(run, workdir, name="metrics.json"):
    """What a run leaves of which something was damaged later."""
    finish(run, workdir)
    folder = workdir / "runs" / run.name
    if name == "predictions":
        row = {"tags": {"alpha": 0.0, "seed": 0}, "score": "msp"}
        files.write_json(folder / "metrics.json", {"runs": [row]}, seal=True)
    elif name == "no metrics.json":
        (folder / "metrics.json").unlink()
    else:
        (folder / name).write_text((folder / name).read_text()[:-3])


@pytest.mark.parametrize("name", ["metrics.json", "no metrics.json", "config.json", "predictions"])
def test_one_damaged_run_takes_nothing_else_with_it(runs, tmp_path, name):
    """It stands in the table as failed, and the next call starts it again."""
    damage(runs[1], tmp_path, name)
    table, _ = go(runs, tmp_path, Script(tmp_path, {runs[1].name: [2]}))
    assert table[runs[1].name]["state"].startswith("failed: ")
    assert table[runs[1].name]["rows"] == []
    assert [table[run.name]["state"] for run in runs].count("done") == 3
    assert [line["state"] == "done" for line in csv.DictReader((tmp_path / "sweep.csv").open())] == [
        True,
        False,
        True,
        True,
    ]

    script = Script(tmp_path)
    table, _ = go(runs, tmp_path, script)
    assert [name for name, _ in script.starts] == [runs[1].name]
    assert table[runs[1].name]["state"] == "done"


def test_a_failed_run_that_is_killed_while_it_is_mended_is_started_again(runs, tmp_path):
    """What an earlier end left says nothing of the mending."""
    damage(runs[0], tmp_path)
    go(runs, tmp_path, Script(tmp_path))
    script = Script(tmp_path, {runs[0].name: [-9]})
    table, lines = go(runs, tmp_path, script)
    assert [name for name, _ in script.starts] == [runs[0].name] * 2
    assert f"[3/4] {runs[0].name}: was killed; it goes on" in lines
    assert {field: table[runs[0].name][field] for field in ("state", "starts", "kills")} == {
        "state": "done",
        "starts": 2,
        "kills": 1,
    }


def test_a_failed_run_that_fails_anew_has_the_new_reason(runs, tmp_path):
    damage(runs[0], tmp_path)
    go(runs, tmp_path, Script(tmp_path))
    (tmp_path / f"runs/{runs[0].name}.log").write_text("error: data.name: there is no data set\n")
    table, _ = go(runs, tmp_path, Script(tmp_path, {runs[0].name: [2]}))
    assert table[runs[0].name]["state"] == "failed: error: data.name: there is no data set"


@pytest.mark.parametrize("how", ["the sweep is interrupted", "the sweep is killed", "the run is given up"])
def test_a_failed_run_whose_mending_ended_early_is_mended_by_the_next_call(runs, tmp_path, how):
    """What its folder has of an earlier end does not make it done."""
    run, other = runs[:2]
    workdir, killed = tmp_path / "w", tmp_path / "killed"
    damage(run, workdir)
    go([run], workdir, Script(workdir))
    script = Script(workdir, {run.name: [-9 if how == "the run is given up" else "never"]})

    def launch(run, slot):
        shutil.copytree(workdir, killed, dirs_exist_ok=True)  # what SIGKILL would leave
        return script(run, slot)

    def interrupt(line):
        if line.endswith(f"{other.name}: done") and how != "the run is given up":
            raise KeyboardInterrupt

    with contextlib.suppress(KeyboardInterrupt):
        sweep_lib.sweep([run, other], workdir, launch, parallel=2, retries=0, say=interrupt, pause=0.0)
    workdir = killed if how == "the sweep is killed" else workdir
    script = Script(workdir)
    table, _ = go([run], workdir, script)
    assert [name for name, _ in script.starts] == [run.name]
    assert (table[run.name]["state"], table[run.name]["starts"]) == ("done", 2)


def test_starts_and_kills_outlive_a_sweep_that_is_killed(runs, tmp_path):
    """What is on the disk when a run is started is what SIGKILL would leave; another call counts on from there."""
    workdir = tmp_path / "w"
    script = Script(workdir, {runs[1].name: [-9, -9]})

    def launch(run, slot):
        shutil.copytree(workdir, tmp_path / f"killed {len(script.starts)}")
        return script(run, slot)

    go(runs, workdir, launch)
    started = [name for name, _ in script.starts]
    assert len(started) == 4 + 2
    for number in range(len(started)):
        place = tmp_path / f"killed {number}"
        done = [run.name for run in runs if sweep_lib.finished(run, place)]
        table, _ = go(runs, place, Script(place))
        for run in runs:
            assert table[run.name]["starts"] == started[: number + 1].count(run.name) + (run.name not in done)
        assert table[runs[1].name]["kills"] == min(2, started[:number].count(runs[1].name))
        assert {run["state"] for run in table.values()} == {"done"}


def test_runs_of_another_variant_keep_their_counts(runs, tmp_path):
    go(runs, tmp_path, Script(tmp_path))
    go(runs[:1], tmp_path, Script(tmp_path))
    table, _ = go(runs, tmp_path, Script(tmp_path))
    assert [run["starts"] for run in table.values()] == [1] * 4


@pytest.mark.parametrize(
    "text", ['{"rans": []}', '{"runs": 3}', "[]", '{"runs": [{"name": "one"}]}', "{", '{"runs": []}', None]
)
def test_damaged_states_are_said_and_counted_anew(runs, tmp_path, text):
    go(runs[:1], tmp_path, Script(tmp_path, {runs[0].name: [-9]}))
    path = tmp_path / "states.json"
    path.write_text(path.read_text().replace('"kills": 1', '"kills": 7') if text is None else text)
    table, lines = go(runs, tmp_path, Script(tmp_path))
    assert "states.json" in lines[0]
    assert "counted from 0 again" in lines[0]
    assert table[runs[0].name] | {"state": "done", "starts": 0, "kills": 0} == table[runs[0].name]
    assert [table[run.name]["state"] for run in runs] == ["done"] * 4
    assert "counted" not in go(runs, tmp_path, Script(tmp_path))[1][0]


def test_an_interruption_stops_the_children_and_keeps_the_table(runs, tmp_path):
    script = Script(tmp_path, {runs[1].name: ["never"], runs[2].name: ["never"]})

    def interrupt(line):
        if line.startswith("[1/4]"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sweep_lib.sweep(runs, tmp_path, script, parallel=3, say=interrupt, pause=0.0)
    assert {runs[1].name, runs[2].name} <= set(script.stopped)
    states = [run["state"] for run in files.read_json(tmp_path / "sweep.json")["runs"]]
    assert states.count("done") >= 1
    assert set(states) == {"done", "waiting"}


def test_a_workdir_of_another_config_is_refused(runs, tmp_path):
    there = config_lib.as_dict(runs[0].config) | {"study": "other"}
    files.write_json(tmp_path / "runs" / runs[0].name / "config.json", there)
    with pytest.raises(InputError, match=r"another config than the sweep asks for.*study is 'other' there"):
        go(runs, tmp_path, Script(tmp_path))


def test_how_a_job_lies_on_its_devices_may_change(runs, tmp_path):
    """As in `run`; what is done stays done."""
    go(runs, tmp_path, Script(tmp_path, {runs[3].name: [2]}))
    devices = dataclasses.replace(runs[0].config.devices, member_mapping="map")
    other = [dataclasses.replace(run, config=dataclasses.replace(run.config, devices=devices)) for run in runs]
    script = Script(tmp_path)
    go(other, tmp_path, script)
    assert [name for name, _ in script.starts] == [runs[3].name]


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ("def get_configs(variant):\n    return []", "yields no run"),
        ("def get_configs(variant):\n    yield {'training.epochs': 1}", 'yield {"config"'),
        (
            "def get_configs(variant):\n    yield {'config': 'config.py:smoke', 'training.epoch': 1}",
            "did you mean training.epochs",
        ),
        (
            "def get_configs(variant):\n    for _ in range(2):\n        yield {'config': 'config.py:smoke'}",
            "name of an earlier one",
        ),
        ("def get_configs(variant):\n    yield {'config': 'nothing.py'}", "no such config file"),
        ("def get_configs(variant):\n    raise ValueError('there is no variant')\n    yield", "there is no variant"),
        ("def get_configs(variant):\n    yield {'config': 'config.py:smoke', 'name': 3}", "run 1 has the name 3"),
        ("def get_configs(variant):\n    yield 1 / 0", "sweep.py: ZeroDivisionError: division by zero"),
        ("import numpy\ndef get_configs(variant):\n    yield numpy.nothing", "sweep.py: AttributeError"),
        ("x = 1", "get_configs"),
        ("import nothing_of_the_kind", "nothing_of_the_kind"),
    ],
)
def test_a_bad_sweep_is_refused_before_any_work(tmp_path, body, problem):
    for name in ("config.py", "recipe.py"):
        (tmp_path / name).write_text((ROOT / "experiments/label_smoothing" / name).read_text())
    (tmp_path / "sweep.py").write_text(body)
    with pytest.raises(InputError, match=problem):
        sweep_lib.load(str(tmp_path / "sweep.py"))


def test_a_sweep_that_is_not_there_is_refused_by_the_door(tmp_path):
    done = run_door("sweep", f"--sweep={tmp_path}/nothing.py", f"--workdir={tmp_path}/w")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "no such" in done.stderr
    assert not (tmp_path / "w").exists()


def test_names_tell_runs_apart_and_stay_in_their_folder(tmp_path):
    default = sweep_lib.load(SWEEP)
    assert default[0].name == "few,learning_rate=0.0003,hidden=64x64"
    hundred = sweep_lib.load(f"{SWEEP}:hundred")
    assert len({run.name for run in hundred}) == 100
    assert sweep_lib._name("../../etc", "v", {}) == ".._.._etc"
    assert sweep_lib._name("..", "v", {}) == "_.."
    assert sweep_lib._name(None, "v", {"a.b": "x/../y"}) == "v,b=x_.._y"


def test_long_names_are_cut_and_still_tell_runs_apart():
    """A file system takes 255 bytes, of which endings and temporary names need some."""
    for letter in "xé語":
        names = [sweep_lib._name(None, "v", {"a": 300 * letter, "b": last}) for last in (1, 2)]
        assert names[0] != names[1]
        for name, last in zip(names, (1, 2), strict=True):
            assert len(name.encode()) <= 200
            assert name.endswith(hashlib.sha256(f"v,a={300 * letter},b={last}".encode()).hexdigest()[:12])
    assert sweep_lib._name("x" * 200, "v", {}) == "x" * 200
    assert len(sweep_lib._name("x" * 201, "v", {})) == 200


def test_values_of_numpy_are_those_of_python(tmp_path):
    for name in ("config.py", "recipe.py"):
        (tmp_path / name).write_text((ROOT / "experiments/label_smoothing" / name).read_text())
    (tmp_path / "sweep.py").write_text(
        "import numpy as np\ndef get_configs(variant):\n"
        "    for rate in np.logspace(-4, -3, 2):\n"
        "        widths = np.array([8, 16])\n"
        "        yield {'config': 'config.py:smoke', 'training.learning_rate': rate, 'model.hidden': (widths[0], widths[1]),\n"
        "               'members.alphas': np.array([0, 0.2])}\n"
    )
    runs = sweep_lib.load(str(tmp_path / "sweep.py"))
    assert [run.config.training.learning_rate for run in runs] == [1e-4, 1e-3]
    assert {run.config.model.hidden for run in runs} == {(8, 16)}
    assert {run.config.members.alphas for run in runs} == {(0.0, 0.2)}
    assert runs[0].name == "smoke,learning_rate=0.0001,hidden=8x16,alphas=0.0x0.2"


def test_a_log_that_cannot_be_written_fails_its_run_alone(runs, tmp_path):
    (tmp_path / f"runs/{runs[0].name}.log").mkdir(parents=True)
    script, local = Script(tmp_path), sweep_lib.launcher("local", tmp_path)
    table, _ = go(runs, tmp_path, lambda run, slot: (local if run == runs[0] else script)(run, slot))
    assert table[runs[0].name]["state"].startswith(f"failed: {tmp_path}/runs/{runs[0].name}.log: cannot write it")
    assert [table[run.name]["state"] for run in runs].count("done") == 3


def test_a_second_sigterm_does_not_keep_runs_from_being_ended(runs, tmp_path, monkeypatch):
    """The first is the end of all; a run that does not listen is killed, and the table is written."""
    monkeypatch.setattr(sweep_lib, "GRACE", 0.5)
    stops = []

    class Deaf:
        def poll(self):
            if not stops:
                os.kill(os.getpid(), signal.SIGTERM)

        def stop(self, force=False):
            stops.append(force)
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), sweep_lib._told_to_end():
        sweep_lib.sweep(runs, tmp_path, lambda run, slot: Deaf(), say=lambda line: None, pause=0.0)
    assert stops == [False, True]
    assert {run["state"] for run in files.read_json(tmp_path / "sweep.json")["runs"]} == {"waiting"}
    assert signal.getsignal(signal.SIGTERM) is before


def test_ctrl_c_while_a_run_is_being_started_ends_that_run_too(runs, tmp_path):
    """It comes when the process is there and the sweep has not heard of it yet."""
    script = Script(tmp_path, {runs[0].name: ["never"]})

    def launch(run, slot):
        process = script(run, slot)
        signal.raise_signal(signal.SIGINT)
        return process

    outside = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job of a shell ignores it
    try:
        with pytest.raises(KeyboardInterrupt):
            go(runs[:1], tmp_path, launch)
        assert script.stopped == [runs[0].name]
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, outside)


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """Four small runs; one is killed, and the sweep itself once."""
    workdir = tmp_path_factory.mktemp("sweep") / "killed"
    figures = benchmark.survive("four", workdir, parallel=2, kills=2, of_the_sweep=1, seed=1)
    return workdir, figures


def test_a_sweep_survives_kills(killed):
    _, figures = killed
    assert sorted(kill["what"] for kill in figures["kills"]) == ["run", "sweep"]
    assert (figures["exit_status"], figures["done"], figures["lost"], figures["wrong"]) == (0, 4, [], [])
    assert figures["starts"] >= figures["runs"]  # those before the sweep was killed count too


def test_the_table_has_every_run_with_its_metrics_and_what_differs(killed):
    workdir, _ = killed
    lines = list(csv.DictReader((workdir / "sweep.csv").open()))
    runs = sweep_lib.load(f"{SWEEP}:four")
    for run in runs:
        metrics = files.read_json(workdir / "runs" / run.name / "metrics.json")["runs"]
        mine = [line for line in lines if line["run"] == run.name]
        assert len(mine) == len(metrics) > 0
        for line, row in zip(mine, metrics, strict=True):
            assert line["score"] == row["score"]
            assert float(line["alpha"]) == row["tags"]["alpha"]
            assert float(line["error"]) == row["metrics"]["error"]
            assert float(line["training.learning_rate"]) == run.config.training.learning_rate
            assert json.loads(line["members.seeds"]) == list(run.config.members.seeds)
            assert 0 < float(line["error_on_validation"]) < 1


SBATCH = """#!/bin/bash
# Takes the job as SLURM does: an id at once, the work in the background. A signal is for the steps, not for the script.
id=$(( $(cat {folder}/last 2>/dev/null || echo 100) + 1 )); echo $id > {folder}/last
cp "$1" {folder}/$id.sh
SLURM_JOB_ID=$id SLURM_JOBID=$id SLURM_PROCID=0 SLURM_LOCALID=0 SLURM_NODEID=0 SLURM_NTASKS=1 SLURM_JOB_NUM_NODES=1 \\
    setsid bash -c 'trap : TERM USR2; . "$1"' sh "$1" > {folder}/$id.out 2>&1 < /dev/null &
echo $! > {folder}/$id.pid
echo "Submitted batch job $id"
"""
SRUN = """#!/bin/bash
while [[ "$1" == --* ]]; do case "$1" in --output|--error) shift 2;; *) shift;; esac; done
exec "$@"
"""
SACCT = """#!/bin/bash
echo "JobID|State|NodeList"
for pid in {folder}/*.pid; do
    id=$(basename $pid .pid)
    # Asked twice: on a busy machine the first answer was at times that it had gone, while it ran.
    if kill -0 $(cat $pid) 2>/dev/null || { sleep 0.1; kill -0 $(cat $pid) 2>/dev/null; }; then echo "$id|RUNNING|here"; else echo "$id|$(cat {folder}/$id.state 2>/dev/null || echo COMPLETED)|here"; fi
done
"""


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """`sbatch`, `srun`, `sacct` and `scancel` that work on this machine."""
    folder = tmp_path / "cluster"
    folder.mkdir()
    cancel = "#!/bin/bash\necho $1 >> {folder}/cancelled; kill -TERM -- -$(cat {folder}/$1.pid) 2>/dev/null; exit 0\n"
    for name, text in {"sbatch": SBATCH, "srun": SRUN, "sacct": SACCT, "scancel": cancel}.items():
        path = folder / name
        path.write_text(text.replace("{folder}", str(folder)))
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


def quick(run, code):
    """The run with a command of a moment in place of its own."""

    class Quick(sweep_lib.Run):
        def command(self, workdir):
            return [sys.executable, "-c", code, str(workdir), json.dumps(config_lib.as_dict(self.config))]

    return Quick(run.name, run.reference, run.overrides, run.config)


WORKS = (
    "import sys, json, os, pathlib; w = pathlib.Path(sys.argv[1]); w.mkdir(parents=True, exist_ok=True); print('works')\n"
    "from sc_jax import files; files.write_json(w / 'metrics.json', {'runs': []}, seal=True)\n"
    "(w / 'config.json').write_text(sys.argv[2]); (w / 'timings.json').write_text('{}')\n"
)
KILLED_ONCE = (
    "import sys, os, signal, pathlib; w = pathlib.Path(sys.argv[1]); w.mkdir(parents=True, exist_ok=True)\n"
    "seen = w / 'seen'\n"
    "if not seen.exists():\n    seen.touch(); os.kill(os.getppid(), signal.SIGKILL); os.kill(os.getpid(), signal.SIGKILL)\n"
) + WORKS
TOLD_ONCE = (
    "import sys, os, signal, time, pathlib; w = pathlib.Path(sys.argv[1]); w.mkdir(parents=True, exist_ok=True)\n"
    "def end(*_):\n    time.sleep(1); (w / 'checkpoint').touch(); print('written', flush=True); sys.exit(143)\n"
    "signal.signal(signal.SIGTERM, end)\n"
    "seen = w / 'seen'\n"
    "if not seen.exists():\n    seen.touch(); os.killpg(os.getpgrp(), signal.{signal}); time.sleep(60)\n"
) + WORKS


@pytest.mark.parametrize(("name", "written"), [("SIGTERM", True), ("SIGUSR2", False)])
def test_a_job_of_slurm_that_is_told_to_end_writes_a_checkpoint_and_goes_on(
    runs, tmp_path, cluster, monkeypatch, name, written
):
    """SLURM's signal is for every process of the step: the shell and submitit outlive it, until the run has ended."""
    monkeypatch.setattr("submitit.core.core.InfoWatcher.is_done", _without_delay)
    workdir = tmp_path / "w"
    launch = sweep_lib.launcher("slurm", workdir)
    statuses = []
    job = quick(runs[0], TOLD_ONCE.replace("{signal}", name))
    table, _ = go([job], workdir, lambda run, slot: Told(launch(run, slot), statuses))
    assert statuses[0] in ({143} if written else sweep_lib.PREEMPTED)
    assert statuses[-1] == 0
    assert (table[runs[0].name]["state"], table[runs[0].name]["kills"]) == ("done", 1)
    assert (workdir / "runs" / runs[0].name / "checkpoint").exists() == written
    log = (workdir / f"runs/{runs[0].name}.log").read_text()
    assert log.startswith("written\n") == written
    assert log.endswith("works\n")


class Told:
    """A process whose exit statuses are kept."""

    def __init__(self, process, statuses):
        self.process, self.statuses = process, statuses

    def poll(self):
        status = self.process.poll()
        self.statuses += [] if status is None else [status]
        return status

    def stop(self, force=False):
        self.process.stop(force)


@pytest.mark.parametrize(("minutes", "seconds"), [(1, 30), (4, 120), (90, 120)])
def test_slurm_tells_a_job_to_end_by_sigterm_before_it_does(runs, tmp_path, cluster, minutes, seconds):
    (tmp_path / "w/runs").mkdir(parents=True)
    job = sweep_lib.launcher("slurm", tmp_path / "w", minutes=minutes)(quick(runs[0], "pass"), 0)
    script = (cluster / "101.sh").read_text().splitlines()
    assert [line for line in script if "signal" in line] == [f"#SBATCH --signal=TERM@{seconds}"]
    assert "#SBATCH --no-requeue" in script
    job.stop()


def test_jobs_of_slurm_ask_for_what_was_given_and_end_in_the_table(runs, tmp_path, cluster, monkeypatch):
    monkeypatch.setattr("submitit.core.core.InfoWatcher.is_done", _without_delay)
    workdir = tmp_path / "w"
    launch = sweep_lib.launcher("slurm", workdir, minutes=90, partition="gpu-long", gpus=2, cpus=8)
    wrong = "import sys; sys.exit('error: data.name: there is no such data set') if False else (print('error: no', file=sys.stderr), sys.exit(2))"
    jobs = [quick(runs[0], WORKS), quick(runs[1], KILLED_ONCE), quick(runs[2], wrong)]
    table, _ = go(jobs, workdir, launch, parallel=2)
    assert table[runs[0].name]["state"] == "done"
    assert (table[runs[1].name]["state"], table[runs[1].name]["kills"]) == ("done", 1)
    assert table[runs[2].name]["state"] == "failed: error: no"
    assert (workdir / f"runs/{runs[0].name}.log").read_text() == "works\n"

    script = (cluster / "101.sh").read_text().splitlines()
    for flag in ("--time=90", "--partition=gpu-long", "--gpus-per-node=2", "--cpus-per-task=8", "--job-name=sweep-w"):
        assert f"#SBATCH {flag}" in script
    assert any("submitit.core._submit" in line for line in script)


def _without_delay(self, job_id, mode="standard"):
    """As it is, but asked anew every time."""
    state = self.get_state(job_id, mode="force")
    return state.upper() not in ("READY", "PENDING", "RUNNING", "UNKNOWN", "REQUEUED", "COMPLETING")


def test_jobs_of_slurm_are_cancelled_with_the_sweep(runs, tmp_path, cluster):
    workdir = tmp_path / "w"
    (workdir / "runs").mkdir(parents=True)
    launch = sweep_lib.launcher("slurm", workdir)
    job = launch(quick(runs[0], "import time; time.sleep(600)"), 0)
    assert job.poll() is None
    job.stop()
    assert (cluster / "cancelled").read_text() == "101\n"


def test_without_slurm_the_launcher_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="take --launcher=local"):
        sweep_lib.launcher("slurm", tmp_path)


def test_runs_of_this_machine_have_gpus_of_their_own(runs, tmp_path):
    (tmp_path / "runs").mkdir()
    launch = sweep_lib.launcher("local", tmp_path, gpus=2)
    job = launch(quick(runs[0], "import os; print(os.environ['CUDA_VISIBLE_DEVICES'])"), 3)
    while job.poll() is None:
        time.sleep(0.01)
    assert (tmp_path / f"runs/{runs[0].name}.log").read_text() == "6,7\n"


def test_a_run_of_this_machine_ends_when_told_with_all_it_started(runs, tmp_path):
    (tmp_path / "runs").mkdir()
    code = "import subprocess, sys; p = subprocess.Popen(['sleep', '600']); print(p.pid, flush=True); p.wait()"
    job = sweep_lib.launcher("local", tmp_path)(quick(runs[0], code), 0)
    log = tmp_path / f"runs/{runs[0].name}.log"
    while not log.read_text().strip():
        time.sleep(0.01)
    child = int(log.read_text())
    sweep_lib._stop([job])
    assert job.poll() == -signal.SIGTERM
    deadline = time.monotonic() + 5
    while Path(f"/proc/{child}").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    state = (
        Path(f"/proc/{child}/stat").read_text().split(")")[1].split()[0] if Path(f"/proc/{child}").exists() else "gone"
    )
    assert state in ("gone", "Z")


def test_ctrl_c_ends_the_runs_and_says_how_to_go_on(tmp_path):
    command = [sys.executable, "-m", "sc_jax.sweep", f"--sweep={SWEEP}:four", f"--workdir={tmp_path}/w", "--parallel=2"]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background job of a shell ignores it
    )
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    deadline = time.monotonic() + 120
    while len(started := children.read_text().split()) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "0 of 4 runs are done" in told
    assert "the same command goes on" in told
    assert not any(Path(f"/proc/{child}").exists() for child in started)
