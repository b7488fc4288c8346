"""What a process is asked, what it is told by a cluster, and how it ends; several of them are in tests/integration."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys

import jax
import pytest

from sc_jax import cli
from sc_jax.files import InputError
from sc_jax.training import processes
from sc_jax.training.processes import Asked

SRUN = {"SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "node[1-2]", "SLURM_PROCID": "1", "SLURM_LOCALID": "0"}


@pytest.mark.parametrize(
    ("environment", "several"),
    [
        ({}, False),
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "8"}, False),  # the batch script itself, outside srun
        ({**SRUN, "SLURM_NTASKS": "8"}, True),
        ({**SRUN, "SLURM_NTASKS": "1"}, False),
        ({**SRUN, "SLURM_NTASKS": "8", "SLURM_STEP_NUM_TASKS": "1"}, False),  # srun --ntasks=1 in a job of 8
        ({**SRUN, "SLURM_NTASKS": "1", "SLURM_STEP_NUM_TASKS": "8"}, True),
        ({"OMPI_COMM_WORLD_SIZE": "1"}, False),
        ({"OMPI_COMM_WORLD_SIZE": "4"}, True),
        ({"OMPI_COMM_WORLD_SIZE": "²"}, False),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, False),
        ({"TPU_WORKER_HOSTNAMES": "t1k-0,t1k-1"}, True),
        ({"TPU_WORKER_HOSTNAMES": "t1k-0", "MEGASCALE_NUM_SLICES": "2"}, True),
    ],
)
def test_a_cluster_is_known_by_what_it_says(environment: dict[str, str], several: bool) -> None:
    assert processes.in_cluster(environment) is several


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (Asked("1", "node:1234", None), "there is one process"),
        (Asked("1", None, 0), "there is one process"),
        (Asked("auto", "node:1234", None), "the cluster says what they are"),
        (Asked("2", "node:1234", None), "--processes = 2: give --coordinator=HOST:PORT and --process=I too"),
        (Asked("2", None, 1), "--processes = 2: give --coordinator=HOST:PORT and --process=I too"),
        (Asked("2", "node", 1), "'node'; it should be HOST:PORT"),
        (Asked("2", "node:99999", 1), "it should be HOST:PORT"),
        (Asked("2", "node:1234", 2), r"--process = 2; it should be in 0\.\.1"),
        (Asked("2", "node:1234", -1), r"--process = -1; it should be in 0\.\.1"),
    ],
)
def test_what_does_not_fit_together_is_refused(asked: Asked, message: str) -> None:
    with pytest.raises(InputError, match=message):
        processes.start(asked)


def test_one_process_is_the_first_and_waits_for_nobody(capsys: pytest.CaptureFixture[str]) -> None:
    processes.start(Asked("1"))
    assert not processes.several()
    assert processes.first()
    assert processes.from_first(lambda: {"value": [1, None]}) == {"value": [1, None]}
    assert processes.all_say(True) is True
    assert processes.all_say(False) is False
    assert not processes.preempted()
    assert not processes.lost(RuntimeError("anything"))
    processes.require_same("the config", {})
    processes.wait_for_all("here")
    processes.say("told")
    assert capsys.readouterr().out == "told\n"
    processes.leave()


@pytest.mark.parametrize("first_step", [1, 500])
def test_sigterm_before_the_first_step_stops_a_job_at_it(first_step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As JAX agrees on a step: the one after the last that any process had asked about when the signal came, and no later one."""
    monkeypatch.setattr(processes, "several", lambda: True)
    monkeypatch.setattr(processes, "_asked", itertools.count(1))
    monkeypatch.setattr(processes.multihost_utils, "reached_preemption_sync_point", lambda asked: asked == 1)
    block = cli.noting_sigterm()
    told = block.__enter__()
    assert told(first_step)
    assert told(first_step), "once it stops, it stops"
    with pytest.raises(cli.Terminated):
        block.__exit__(None, None, None)


def test_a_job_that_saves_asks_once_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(processes, "several", lambda: True)
    monkeypatch.setattr(processes.multihost_utils, "reached_preemption_sync_point", lambda count: asked.append(count))
    with cli.noting_sigterm() as told:
        assert [told(7), told(7), told(8)] == [False] * 3
    assert len(asked) == 2


@pytest.mark.parametrize(
    ("error", "gone"),
    [
        (ValueError("UNKNOWN: Gloo AllGather failed: Connection reset by peer"), True),  # at dispatch
        (jax.errors.JaxRuntimeError("UNKNOWN: Gloo AllGather failed: Connection reset by peer"), True),
        (ValueError("shapes do not fit"), False),
        (InputError("X: no such file"), False),
        (OSError("UNKNOWN: "), False),
    ],
)
def test_a_collective_that_fails_may_mean_that_a_process_has_gone(error, gone, monkeypatch) -> None:
    monkeypatch.setattr(processes, "several", lambda: True)
    assert processes.lost(error) is gone


def test_an_error_of_one_process_passes_as_it_is() -> None:
    with pytest.raises(ZeroDivisionError), processes.ending():
        raise ZeroDivisionError
    with pytest.raises(SystemExit) as ended, processes.ending():
        sys.exit(2)
    assert ended.value.code == 2


def run(code: str) -> subprocess.CompletedProcess[str]:
    code = f"import os, signal, sys\nfrom sc_jax.training import processes\n{code}"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ}, timeout=120)


@pytest.mark.parametrize("end", ["os.abort()", "os.kill(os.getpid(), signal.SIGKILL)", "os._exit(3)"])
def test_last_words_are_said_however_a_process_ends(end: str) -> None:
    done = run(f"processes._last_words('never\\n')\nprocesses._last_words('it ended\\n')\n{end}")
    assert done.returncode != 0
    assert done.stderr.splitlines()[-1] == "it ended"
    assert "never" not in done.stderr


def test_a_process_that_ends_well_leaves_no_words() -> None:
    done = run("processes._last_words('it ended\\n')\nprocesses._last_words('')")
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "")


def test_an_address_that_cannot_be_used_is_refused() -> None:
    code = (
        "import socket; s = socket.socket(socket.AF_INET6); s.bind(('::', 0)); s.listen()\n"
        "try: processes.start(processes.Asked('2', f'127.0.0.1:{s.getsockname()[1]}', 0))\n"
        "except processes.InputError as error: print(error)"
    )
    done = run(code)
    assert done.returncode == 0, done.stderr
    assert "the processes cannot be joined" in done.stdout
    assert "did not find all others" not in done.stderr
