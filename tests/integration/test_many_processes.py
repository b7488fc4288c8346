"""Several processes as one job, through the doors: killed, stopped, restarted with another number, and refused.

What they compute is compared with one process of one device; `test_many_devices.py` does so step by step.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from conftest import CONFIG, ROOT

from sc_jax import files, predictions
from sc_jax.training.logs import read_log

STEPS = 30
OTHERS = {
    "texts": ["--config=experiments/label_smoothing/trec.py:smoke"],
    "an ensemble in the network": [
        f"--config={CONFIG}:smoke",
        "--config.training.steps=6",
        "--config.training.warmup_epochs=0",
        "--config.training.statistics_every=0",
        "--config.ensemble.kind=packed",
        "--config.ensemble.members=2",
        "--config.ensemble.alpha=1.5",
    ],
    "the best checkpoint": [
        f"--config={CONFIG}:smoke",
        "--config.training.steps=6",
        "--config.training.warmup_epochs=0",
        "--config.training.checkpoint_every=2",
        "--config.training.checkpoints_best=1",
        "--config.prediction.checkpoint=best",
    ],
}
"""What trains and predicts by other ways through the code; with --devices=all."""
TOLERANCE = 2e-4
"""Of losses and logits after 30 steps of Adam, since sums over a batch are added in another order."""

UNOPTIMISED = "--xla_backend_optimization_level=0"  # each process compiles every program
MLP = [
    f"--config={CONFIG}:smoke",
    "--config.model.hidden=(24,)",
    "--config.model.dropout=0.1",
    "--config.training.batch_size=2000",
    "--config.training.epochs=5",
    "--config.training.log_every=4",
    "--config.training.checkpoint_every=2",
    "--config.prediction.splits=('test','validation')",
    "--config.prediction.batch_size=768",  # 10,000 and 2,000 examples: the last batches are padded
]
TRAIN_AND_PREDICT = """
import sys
from sc_jax import cli
from sc_jax.predict import predict
from sc_jax.train import train
def door(argv):
    config, workdir = cli.study_arguments("train", "", sys.argv[1:], devices=True)
    with cli.open_workdir(workdir, config):
        train(config, workdir)
        predict(config, workdir)
cli.main(door)
"""
KILLED_IN_PREDICTION = f"""
import os, signal
from sc_jax import predict as door_of
written, write = [], door_of._write_share
def killed(path, share):
    write(path, share)
    written.append(path)
    if len(written) == 2 and path.name == "0.npz":
        os.kill(os.getpid(), signal.SIGKILL)
door_of._write_share = killed
{TRAIN_AND_PREDICT}
"""
"""Process 0 dies when the first split is written, and its share of the second is."""
TOLD_TO_END_AFTERWARDS = """
import os, signal, sys, time
from sc_jax import cli
from sc_jax.predict import predict
from sc_jax.training import processes
def door(argv):
    config, workdir = cli.study_arguments("predict", "", sys.argv[1:], devices=True)
    with cli.open_workdir(workdir, config):
        predict(config, workdir)
        if processes.first():
            (workdir / "predictions/.shares").mkdir()
        predict(config, workdir)
        first = processes.first()
        processes.leave()
        if first:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(20)
cli.main(door)
"""
"""What a killed process left is there when all is done; then SIGTERM to process 0 alone, where `run` evaluates and reports."""
SKEWED_THEN_KILLED = """
import os, signal, sys, time
import jax, numpy as np
from sc_jax import cli
from sc_jax.training import parallel, processes
def door(argv):
    cli.study_arguments("train", "", sys.argv[1:], devices=True)
    meshes = [parallel.data_mesh(rows) for rows in (1, 2)]
    for mesh in meshes:
        parallel.meet(mesh)
    if processes.first():
        time.sleep(35)
    for mesh in meshes:
        x = parallel.place(np.ones((2, 1024), np.float32), mesh, "fsdp")
        print(float(jax.jit(lambda x: parallel.keep_whole(x.sum(), mesh))(x)), flush=True)
    if not processes.first():
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(100)
cli.main(door)
"""
ENTER_TWICE = """
import sys
from sc_jax import cli
from sc_jax.files import InputError
def door(argv):
    config, workdir = cli.study_arguments("train", "", sys.argv[2:], devices=True)
    other = cli.study_arguments("train", "", [*sys.argv[2:4], f"--config.training.batch_size={1000 + int(sys.argv[1])}"])[0]
    try:
        with cli.open_workdir(workdir, other):
            raise AssertionError("they differ")
    except InputError as error:
        print("first", error)
    with cli.open_workdir(workdir, config):
        raise AssertionError("it is held")
cli.main(door)
"""


class Job:
    """Processes that run `code` as one job on this machine; a heartbeat of 5 s, or the `heartbeat` that is named."""

    def __init__(
        self,
        folder: Path,
        code: str,
        processes: int,
        devices: int,
        arguments: Callable[[int], list[str]],
        heartbeat: Sequence[str] = ("--heartbeat=5",),
    ):
        folder.mkdir(parents=True, exist_ok=True)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        join = [f"--processes={processes}", f"--coordinator=127.0.0.1:{port}", *heartbeat] if processes > 1 else []
        self.out = [folder / f"{number}-{time.monotonic_ns()}.out" for number in range(processes)]
        self.processes = []
        for number, out in enumerate(self.out):
            own = [f"--process={number}"] if processes > 1 else []
            with out.open("wb") as file:
                self.processes.append(
                    subprocess.Popen(
                        [sys.executable, "-c", code, *arguments(number), *join, *own],
                        cwd=ROOT,
                        env={**os.environ, "JAX_NUM_CPU_DEVICES": str(devices), "XLA_FLAGS": UNOPTIMISED},
                        stdout=file,
                        stderr=subprocess.STDOUT,
                    )
                )

    def __enter__(self) -> Job:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            process.kill()
            process.wait()

    def ended(self, seconds: float) -> list[int]:
        """Exit statuses, when all have ended."""
        deadline = time.monotonic() + seconds
        return [process.wait(max(0.1, deadline - time.monotonic())) for process in self.processes]

    def said(self, number: int) -> str:
        """What a process has printed."""
        return self.out[number].read_text(errors="replace")


def step_of(workdir: Path, place: int) -> int:
    """The step of a checkpoint by its place, −1 for the newest; 0 where there is none."""
    steps = [int(path.name) for path in (workdir / "checkpoints").glob("*") if path.name.isdigit()]
    return sorted([0, *steps])[place]


def latest(workdir: Path) -> int:
    return step_of(workdir, -1)


def wait_for_step(job: Job, workdir: Path, step: int) -> None:
    deadline = time.monotonic() + 300
    while latest(workdir) < step:
        for number, process in enumerate(job.processes):
            assert process.poll() is None, job.said(number)
        assert time.monotonic() < deadline, "no checkpoint within five minutes"
        time.sleep(0.01)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workdir of one process with one device."""
    folder = tmp_path_factory.mktemp("alone")
    with Job(folder, TRAIN_AND_PREDICT, 1, 1, lambda _: [*MLP, f"--workdir={folder / 'run'}"]) as job:
        assert job.ended(300) == [0], job.said(0)
    return folder / "run"


def assert_same_run(workdir: Path, alone: Path) -> None:
    """The same loss curve, the same ids in the same order, and the same predictions within the tolerance."""
    ours, theirs = (read_log(folder / "train.jsonl") for folder in (workdir, alone))
    assert [line["step"] for line in ours] == [line["step"] for line in theirs]
    np.testing.assert_allclose([line["loss"] for line in ours], [line["loss"] for line in theirs], atol=TOLERANCE)
    assert np.mean(theirs[0]["loss"]) > np.mean(theirs[-1]["loss"]) + 0.1, "something is learned"
    paths = sorted(path.relative_to(alone) for path in alone.glob("predictions/*/*.npz"))
    assert len(paths) == 8
    assert paths == sorted(path.relative_to(workdir) for path in workdir.glob("predictions/**/*.npz"))
    for path in paths:
        one, many = predictions.load(alone / path), predictions.load(workdir / path)
        np.testing.assert_array_equal(many.example_id, one.example_id)
        np.testing.assert_array_equal(many.label, one.label)
        np.testing.assert_allclose(many.logits, one.logits, atol=10 * TOLERANCE)


def assert_said_that_it_was_ended(job: Job, number: int) -> None:
    """The line of a process that another's death has ended: its helper outlives it by a moment, and JAX may print after it."""
    begins = f"error: process {number} of {len(job.processes)} was ended"
    deadline = time.monotonic() + 60
    while not (lines := [line for line in job.said(number).splitlines() if line.startswith(begins)]):
        assert time.monotonic() < deadline, job.said(number)
        time.sleep(0.1)
    assert "goes on from the last checkpoint" in lines[-1]


def test_processes_that_are_stopped_or_killed_end_the_job_and_another_number_goes_on(
    tmp_path: Path, alone: Path
) -> None:
    workdir = tmp_path / "run"
    arguments = [*MLP, f"--workdir={workdir}"]
    with Job(tmp_path, TRAIN_AND_PREDICT, 2, 1, lambda _: arguments) as job:
        wait_for_step(job, workdir, 2)
        job.processes[1].send_signal(signal.SIGTERM)
        assert job.ended(60) == [143, 143], "SIGTERM to one stops both: " + job.said(0) + job.said(1)
        step = latest(workdir)
        assert f"train: stopped at step {step} of {STEPS}, with a checkpoint" in job.said(0)
    with Job(tmp_path, TRAIN_AND_PREDICT, 2, 2, lambda _: arguments) as job:
        wait_for_step(job, workdir, step + 2)
        job.processes[1].kill()
        assert 0 not in job.ended(60), job.said(0)
        assert_said_that_it_was_ended(job, 0)
        assert f"resuming from step {step} of {STEPS}" in job.said(0)
    damaged, step = (step_of(workdir, newest) for newest in (-1, -2))
    assert 4 <= damaged < STEPS
    for path in (workdir / f"checkpoints/{damaged}/state/d").iterdir():
        os.truncate(path, 20)
    rows = [*arguments, "--config.devices.member_rows=2"]
    with Job(tmp_path, KILLED_IN_PREDICTION, 4, 1, lambda _: rows) as job:
        ended = job.ended(300)
        assert ended[0] == -signal.SIGKILL, "\n".join(map(job.said, range(4)))
        assert 0 not in ended
        for other in (1, 2, 3):
            assert_said_that_it_was_ended(job, other)
        assert f"checkpoints/{damaged}: checkpoint damaged" in job.said(0)
        assert f"resuming from step {step} of {STEPS}" in job.said(0)
        assert all("train:" not in job.said(other) for other in (1, 2, 3)), "the first process speaks for all"
    assert len(list(workdir.glob("predictions/[!.]*/*.npz"))) == 4, "those of one split"
    assert (workdir / "predictions/.shares/0.npz").exists()
    with Job(tmp_path, TOLD_TO_END_AFTERWARDS, 2, 2, lambda _: arguments) as job:
        assert job.ended(300) == [143, 0], job.said(0) + job.said(1)
        said = [line for line in job.said(0).splitlines() if line.startswith("predict: ")]
        assert len(said) == 2, "the split that was whole is left alone, and then both"
        assert said[1].startswith("predict: done")
    assert_same_run(workdir, alone)
    assert not (workdir / "predictions/.shares").exists()


@pytest.mark.parametrize("what", OTHERS)
def test_two_processes_do_the_rest_as_one(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pytestconfig: pytest.Config
) -> None:
    if pytestconfig.getoption("--devices") != "all":
        pytest.skip("runs with --devices=all")
    monkeypatch.setenv("SC_JAX_DATA", str(tmp_path / "data"))
    for count, devices in ((1, 1), (2, 2)):
        arguments = [*OTHERS[what], f"--workdir={tmp_path / str(count)}"]
        with Job(tmp_path / "said", TRAIN_AND_PREDICT, count, devices, lambda _, a=arguments: a) as job:
            assert job.ended(600) == [0] * count, "\n".join(map(job.said, range(count)))
    one, two = tmp_path / "1", tmp_path / "2"
    curves = [[line["loss"] for line in read_log(folder / "train.jsonl")] for folder in (one, two)]
    np.testing.assert_allclose(*curves, rtol=1e-3)
    found = sorted(path.relative_to(one) for path in one.glob("predictions/**/*.npz"))
    assert found == sorted(path.relative_to(two) for path in two.glob("predictions/**/*.npz")) != []
    for path in found:
        with np.load(one / path) as alone, np.load(two / path) as shared:
            assert sorted(alone) == sorted(shared)
            for name in alone:
                if alone[name].dtype.kind == "f":
                    np.testing.assert_allclose(
                        shared[name], alone[name], rtol=0.01, atol=0.01, err_msg=f"{path} {name}"
                    )
                elif name in ("example_id", "label"):
                    np.testing.assert_array_equal(shared[name], alone[name], err_msg=f"{path} {name}")


def test_processes_that_have_met_wait_for_each_other_but_not_for_a_dead_one(
    tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    """One is 35 s late at its first step, over all devices and over rows of them; one that dies is noticed by the default heartbeat."""
    if pytestconfig.getoption("--devices") != "all":
        pytest.skip("runs with --devices=all")
    with Job(tmp_path, SKEWED_THEN_KILLED, 2, 2, lambda _: [MLP[0]], heartbeat=()) as job:
        assert job.processes[1].wait(100) == -signal.SIGKILL, job.said(0) + job.said(1)
        assert job.said(1).split("\n").count("2048.0") == 2
        assert 0 not in job.ended(60), job.said(0)
        assert_said_that_it_was_ended(job, 0)


def test_different_configs_and_a_workdir_in_use_are_refused_by_all(tmp_path: Path) -> None:
    workdir = tmp_path / "run"
    with (
        files.lock(workdir),
        Job(tmp_path, ENTER_TWICE, 2, 1, lambda i: [str(i), MLP[0], f"--workdir={workdir}"]) as job,
    ):
        assert job.ended(60) == [2, 2], job.said(0) + job.said(1)
        for number in (0, 1):
            assert "first the config differs between processes ([1] from the first)" in job.said(number)
            assert "another run is using this workdir" in job.said(number)
    assert [path.name for path in workdir.iterdir()] == [".lock"]
