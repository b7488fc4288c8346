"""The pipe from data to report, through the doors, on the smoke variant."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import CONFIG, ROOT, run_door

from sc_jax import config as config_lib
from sc_jax import data, files, ops, predictions
from sc_jax.training.logs import read_log

MEMBERS = [f"alpha={alpha:g}-seed={seed}" for alpha in (0.0, 0.2) for seed in (0, 1)]
SMOKE = f"--config={CONFIG}:smoke"


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in (".lock", "timings.json")
    }


@pytest.fixture
def copy(smoke_run: Path, tmp_path: Path) -> Path:
    """A copy of the smoke run, to be damaged."""
    return Path(shutil.copytree(smoke_run, tmp_path / "copy"))


def test_every_stage_left_its_files(smoke_run: Path) -> None:
    for name in (
        "config.json",
        "train.jsonl",
        "metrics.json",
        "metrics.csv",
        "report.html",
        "report.md",
        "timings.json",
    ):
        assert (smoke_run / name).stat().st_size > 0
    assert sorted(path.name for path in (smoke_run / "predictions").iterdir()) == sorted(MEMBERS)
    timings = files.read_json(smoke_run / "timings.json", sealed=True)
    assert set(timings) == {"train", "predict", "evaluate", "report"}
    assert not list(smoke_run.rglob("*.tmp"))


def test_the_report_shows_what_happened_to_the_logits(smoke_run: Path) -> None:
    assert "While training" in (smoke_run / "report.html").read_text(encoding="utf-8")
    assert "](figures/logit_statistics.png)" in (smoke_run / "report.md").read_text(encoding="utf-8")
    assert (smoke_run / "figures/logit_statistics.png").exists()
    assert "](figures/logits_by_confidence.png)" in (smoke_run / "report.md").read_text(encoding="utf-8")
    assert (smoke_run / "figures/logits_by_confidence.png").exists()


def test_the_log_has_every_member(smoke_run: Path) -> None:
    assert json.loads((smoke_run / "train.jsonl").read_text().splitlines()[0]) == {"members": MEMBERS}
    lines = read_log(smoke_run / "train.jsonl")
    assert [line["step"] for line in lines] == [31, 62, 93]
    assert all(len(line["loss"]) == len(line["accuracy"]) == 4 for line in lines)
    assert np.mean(lines[-1]["loss"]) < np.mean(lines[0]["loss"])


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_predictions_hold_every_example_once(smoke_run: Path, split: str) -> None:
    expected = data.load("fashion_mnist").splits[split]
    for member in MEMBERS:
        p = predictions.load(smoke_run / "predictions" / member / f"{split}.npz")
        np.testing.assert_array_equal(np.sort(p.example_id), np.sort(expected.example_id))
        np.testing.assert_array_equal(p.label, expected.label)
        assert p.provenance["split"] == split
        assert f"alpha={p.provenance['tags']['alpha']:g}-seed={p.provenance['tags']['seed']}" == member


def test_logged_accuracy_is_that_of_the_predictions_roughly(smoke_run: Path) -> None:
    """After one epoch the model predicts its training images at least as well as it did on average during the last third."""
    last = read_log(smoke_run / "train.jsonl")[-1]
    for member, accuracy in zip(MEMBERS, last["accuracy"], strict=True):
        p = predictions.load(smoke_run / "predictions" / member / "train.npz")
        assert np.mean(ops.predicted_class(p.logits) == p.label) > accuracy - 0.02


def test_metrics_are_those_of_the_predictions(smoke_run: Path) -> None:
    rows = json.loads((smoke_run / "metrics.json").read_text())["runs"]
    assert len(rows) == 4 * 3
    for row in rows:
        p = predictions.load(row["predictions"])
        error = ops.predicted_class(p.logits) != p.label
        assert row["n"] == 10000
        assert row["split"] == "test"
        assert row["metrics"]["error"] == pytest.approx(error.mean(), abs=1e-12)
        if row["score"] == "msp":
            assert row["fitted_on"] is None
            assert row["metrics"]["aurc"] == pytest.approx(float(ops.aurc(ops.msp(p.logits), error)), rel=1e-12)
        else:
            assert row["fitted_on"] == "validation"
        low, high = row["intervals"]["aurc"]
        assert low < row["metrics"]["aurc"] < high


def test_a_second_run_changes_nothing(smoke_run: Path) -> None:
    before = contents(smoke_run)
    result = run_door("run", SMOKE, f"--workdir={smoke_run}")
    assert result.returncode == 0, result.stderr
    assert re.findall(r"^(\w+): done", result.stdout, re.M) == ["train", "predict", "evaluate", "report"]
    assert contents(smoke_run) == before


def test_the_same_config_gives_the_same_bits(smoke_run: Path, tmp_path: Path) -> None:
    """Another workdir, another process that compiles anew: same checkpoint contents, same predictions, same metrics."""
    afresh = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "compiled")}
    result = run_door("run", SMOKE, f"--workdir={tmp_path}", env=afresh)
    assert result.returncode == 0, result.stderr
    for member in MEMBERS:
        for split in ("train", "validation", "test"):
            one, two = (folder / "predictions" / member / f"{split}.npz" for folder in (smoke_run, tmp_path))
            assert one.read_bytes() == two.read_bytes()
            assert one.with_suffix(".json").read_bytes() == two.with_suffix(".json").read_bytes()
    one, two = ((folder / "metrics.csv").read_text().replace(str(folder), "") for folder in (smoke_run, tmp_path))
    assert one == two


def test_a_lost_prediction_is_made_again_and_nothing_else(copy: Path, smoke_run: Path) -> None:
    lost = copy / "predictions" / MEMBERS[1] / "validation.npz"
    lost.unlink()
    result = run_door("predict", SMOKE, f"--workdir={copy}")
    assert result.returncode == 0, result.stderr
    assert lost.read_bytes() == (smoke_run / "predictions" / MEMBERS[1] / "validation.npz").read_bytes()


def test_a_damaged_prediction_is_refused_by_evaluate_and_mended_by_predict(copy: Path, smoke_run: Path) -> None:
    path = copy / "predictions" / MEMBERS[0] / "test.npz"
    good = path.read_bytes()
    path.write_bytes(good[: len(good) // 2])
    (copy / "metrics.json").unlink()
    result = run_door("evaluate", SMOKE, f"--workdir={copy}")
    assert result.returncode == 2
    assert str(path) in result.stderr
    assert "Traceback" not in result.stderr
    assert not (copy / "metrics.json").exists()
    assert run_door("predict", SMOKE, f"--workdir={copy}").returncode == 0
    assert path.read_bytes() == good


def test_another_config_is_refused_and_nothing_is_touched(copy: Path) -> None:
    before = contents(copy)
    for door in ("run", "train", "predict", "evaluate"):
        result = run_door(door, SMOKE, f"--workdir={copy}", "--config.training.learning_rate=0.01")
        assert result.returncode == 2
        assert "training.learning_rate is 0.001 there, 0.01 was asked for" in result.stderr
    assert contents(copy) == before


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ("--config.model.name=mlpp", "did you mean 'mlp'"),
        ("--config.data.name=fashion", "fashion_mnist"),
        ("--config.training.batch_size=20000", "exceeds the 12000 examples of train"),
        ("--config.prediction.splits=('validation','test','tst')", "there is no split 'tst'"),
    ],
)
def test_a_config_that_cannot_run_leaves_the_workdir_free(tmp_path: Path, wrong: str, named: str) -> None:
    """Refused before the workdir is bound to it, so that the mended command is not refused in its turn."""
    workdir = tmp_path / "w"
    result = run_door("run", SMOKE, f"--workdir={workdir}", wrong)
    assert result.returncode == 2
    assert named in result.stderr
    assert "Traceback" not in result.stderr
    assert contents(workdir) == {}


def test_predict_before_the_end_of_training_is_refused(tmp_path: Path) -> None:
    result = run_door("predict", SMOKE, f"--workdir={tmp_path / 'new'}")
    assert result.returncode == 2
    assert "training is at step 0 of 93" in result.stderr


def test_divergence_stops_the_run_by_name(tmp_path: Path) -> None:
    result = run_door(
        "train",
        SMOKE,
        f"--workdir={tmp_path / 'w'}",
        "--config.training.learning_rate=1e30",
        "--config.training.log_every=5",
    )
    assert result.returncode == 2
    assert re.search(r"error: step \d+: loss or gradient is not finite in \d of 4 members: alpha=", result.stderr)
    assert "Traceback" not in result.stderr


def test_ctrl_c_ends_cleanly_and_the_same_command_goes_on(tmp_path: Path) -> None:
    """Interrupted twice: the second time what the first saved has been taken up and carried on."""
    endless = ["--config.training.epochs=5000", "--config.model.hidden=(32,)"]
    command = [sys.executable, "-m", "sc_jax.train", SMOKE, f"--workdir={tmp_path}", *endless]

    def saved() -> int:
        return max((int(path.name) for path in (tmp_path / "checkpoints").glob("*") if path.name.isdigit()), default=0)

    said = []
    for _ in range(2):
        before = saved()
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # As in a terminal: what a shell starts in the background would ignore the signal.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        deadline = time.monotonic() + 300
        while saved() <= before:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=300)
        assert process.returncode == 130
        assert "interrupted" in stderr
        assert "Traceback" not in stderr
        said.append(stdout)
    assert "resuming from step" not in said[0]
    assert "resuming from step" in said[1]


def test_a_data_set_that_is_not_there_names_the_command(tmp_path: Path) -> None:
    result = run_door(
        "train",
        f"--config={CONFIG}:full",
        f"--workdir={tmp_path / 'w'}",
        env={"PATH": "", "SC_JAX_DATA": str(tmp_path)},
    )
    assert result.returncode == 2
    assert "python -m sc_jax.data.prepare fashion_mnist" in result.stderr


def test_the_default_variant_is_the_study_of_the_paper() -> None:
    config = config_lib.load(CONFIG)
    assert config.members.alphas == (0.0, 0.1, 0.2, 0.4, 0.6)
    assert len(config.members.seeds) == 5
    assert config.evaluation.test_split == "test"
    assert config.evaluation.calibration_split == "validation"
