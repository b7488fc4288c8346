"""SIGKILL at seeded random times; the run goes on where it was and ends with the same bits as one never killed."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from pathlib import Path

from conftest import CONFIG, ROOT, run_door

from sc_jax.training.logs import read_log

# A checkpoint after every step, so that most of the time goes into writing them.
STEPS = 120
TINY = [
    f"--config={CONFIG}:smoke",
    "--config.model.hidden=(32,)",
    "--config.model.dropout=0.1",
    "--config.members.objectives=('self_adaptive=0.9',)",  # with running targets, which move in the second half
    "--config.training.statistics_every=0",
    "--config.training.batch_size=2000",
    f"--config.training.epochs={STEPS // 6}",
    "--config.training.log_every=4",
    "--config.training.checkpoint_every=1",
]
INSIDE_A_WRITE = 5
AT_MOST = 40


def latest(workdir: Path) -> int:
    return max((int(path.name) for path in (workdir / "checkpoints").glob("*") if path.name.isdigit()), default=0)


def half_written(workdir: Path) -> set[str]:
    return {path.name for path in (workdir / "checkpoints").rglob("*orbax-checkpoint-tmp*")}


def hashes(workdir: Path) -> dict[str, str]:
    """Content hash of every leaf of the final checkpoint, as restored (a restore checks them against what was saved)."""
    code = (
        "import sys, json; from pathlib import Path; from sc_jax import cli; from sc_jax.training import checkpoints, job as job_lib, state\n"
        "config, workdir = cli.study_arguments('train', None, sys.argv[1:])\n"
        "job = job_lib.build(config)\n"
        "with job_lib.open_checkpoints(job, workdir) as saved:\n"
        "    step = saved.latest_step()\n"
        "    like = state.initial_state(job.model, job.optimizer, job.members, job.examples_with_targets)\n"
        "    print(json.dumps({'step': step, **checkpoints.leaf_hashes(saved.restore(step, like))}))\n"
    )
    out = subprocess.run(
        [sys.executable, "-c", code, *TINY, f"--workdir={workdir}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(out.stdout.splitlines()[-1])


def test_killed_runs_end_with_the_same_bits(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    result = run_door("train", *TINY, f"--workdir={whole}")
    assert result.returncode == 0, result.stderr

    rng = random.Random(0)
    kills = inside = 0
    while inside < INSIDE_A_WRITE:
        assert kills < AT_MOST, f"only {inside} of {kills} kills fell inside a write"
        before = latest(killed)
        assert before < STEPS, f"the run ended after {kills} kills, {inside} of them inside a write; make it longer"
        process = subprocess.Popen(
            [sys.executable, "-m", "sc_jax.train", *TINY, f"--workdir={killed}"],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            deadline = time.monotonic() + 300
            while latest(killed) == before:  # a new checkpoint: what an earlier kill left is gone by then
                assert process.poll() is None, "training ended by itself before it was killed"
                assert time.monotonic() < deadline, "no checkpoint within a minute"
                time.sleep(0.002)
            time.sleep(rng.uniform(0, 0.4))
            assert process.poll() is None, "training ended by itself before it was killed"
        finally:
            process.kill()
            process.wait()
        kills += 1
        inside += bool(half_written(killed))
    print(f"{kills} kills, {inside} inside a checkpoint write, at step {latest(killed)} of {STEPS}")

    step = latest(killed)
    result = run_door("train", *TINY, f"--workdir={killed}")
    assert result.returncode == 0, result.stderr
    assert f"resuming from step {step} of {STEPS}" in result.stdout
    assert not half_written(killed), "what a kill left is replaced"
    assert hashes(killed) == hashes(whole)
    assert read_log(killed / "train.jsonl") == read_log(whole / "train.jsonl")
    assert (killed / "train.jsonl").read_bytes() == (whole / "train.jsonl").read_bytes()
