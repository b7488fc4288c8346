"""The door for cascades of any predictions files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from sc_jax import cascade, files, predictions
from sc_jax.files import InputError
from sc_jax.methods import cascade as methods
from sc_jax.methods.cascade import Policy
from sc_jax.predictions import Predictions


def write(folder: Path, name: str, seed: int, first_id: int, **changes: object) -> str:
    n, k = 300, 4
    label = np.random.default_rng(first_id).integers(0, k, n)
    logits = 2.5 * np.eye(k)[label] + 1.5 * np.random.default_rng([first_id, seed]).normal(size=(n, k))
    path = folder / f"{name}.npz"
    about = {
        "split": "test" if first_id else "validation",
        "tags": {"seed": seed},
        "dataset": "made-up",
        "macs": seed + 1,
    }
    predictions.save(path, Predictions(label, logits, np.arange(first_id, first_id + n), provenance=about, **changes))
    return str(path)


@pytest.fixture
def two(tmp_path: Path) -> list[str]:
    """--calibration and --predictions of two models."""
    calibration = [write(tmp_path, f"val{seed}", seed, 0) for seed in range(2)]
    tests = [write(tmp_path, f"test{seed}", seed, 10_000) for seed in range(2)]
    return [f"--calibration={','.join(calibration)}", f"--predictions={','.join(tests)}"]


def test_it_writes_metrics_and_a_policy_that_can_be_read(
    two: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workdir = tmp_path / "out"
    cascade.main([*two, "--risk=0.1", "--resamples=20", f"--workdir={workdir}"])
    document = json.loads((workdir / "metrics.json").read_text())
    assert document["cascades"]["cost"] == [1.0, 2.0]
    assert document["cascades"]["unit"] == "MACs"
    assert [row["tags"]["policy"] for row in document["runs"]] == [
        *("single", "ensemble", "single_threshold", "window", "oracle")
    ]
    policy = Policy.from_json(files.read_json(workdir / "policy.json"))
    assert policy.task == ("risk", 0.1)
    assert "window" in capsys.readouterr().out


@pytest.mark.parametrize("budget", ["1x", "1.5x", "2.5"])
def test_the_best_policy_of_a_budget_is_written_and_runs(two: list[str], tmp_path: Path, budget: str) -> None:
    workdir = tmp_path / "out"
    cascade.main([*two, "--risk=0.1", f"--budget={budget}", "--certified", "--resamples=20", f"--workdir={workdir}"])
    study = json.loads((workdir / "metrics.json").read_text())["cascades"]
    multiple = {"1x": 1.0, "1.5x": 1.5, "2.5": 2.5}[budget]  # the first costs 1
    row = next(row for row in study["search"] if row["budget"] == multiple)
    tests = {f"test{seed}": predictions.by_id(predictions.load(tmp_path / f"test{seed}.npz")) for seed in range(2)}
    cost = {"test0": 1.0, "test1": 2.0}
    for name, split in (("policy", "test"), ("certified", "certified")):
        if name == "certified" and not row["certified_share"]:
            assert not (workdir / "certified.json").exists()
            continue
        policy = Policy.from_json(files.read_json(workdir / f"{name}.json"))
        networks = [lambda rows, one=tests[model]: one.logits[rows] for model in policy.models]
        ran = methods.predict(policy, networks, np.arange(300), [cost[model] for model in policy.models], batch_size=32)
        accept = ran.score >= policy.threshold
        wrong = ran.prediction != tests["test0"].label
        assert row[f"{split}_coverage"] == pytest.approx(accept.mean())
        assert row[f"{split}_risk"] == pytest.approx(wrong[accept].mean())
        assert row[f"{split}_cost_multiple"] == pytest.approx(ran.cost.mean())
    again = workdir / "certified.json"
    again.write_text("{}")  # of an earlier call: what is not found anew does not stay
    cascade.main([*two, "--risk=0.1", f"--budget={budget}", "--certified", "--resamples=20", f"--workdir={workdir}"])
    assert again.exists() == bool(row["certified_share"])
    assert not again.exists() or files.read_json(again)["models"]


def test_a_budget_within_which_nothing_meets_the_task_is_refused() -> None:
    with pytest.raises(InputError, match="no policy within it meets the task"):
        cascade._chosen({"cascades": {"search": [{}], "chosen": [{"best": None}]}}, "1x")


def test_shifted_sets_are_reported(two: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fog = ",".join(write(tmp_path, f"fog{seed}", seed, 20_000) for seed in range(2))
    cascade.main([*two, "--risk=0.1", f"--shifted=fog={fog}", "--resamples=20"])
    assert "| fog | first network alone |" in capsys.readouterr().out
    with pytest.raises(InputError, match="--shifted=fog: names 1 files of 2 models"):
        cascade.main([*two, f"--shifted=fog={fog.partition(',')[0]}"])
    with pytest.raises(InputError, match="same split"):
        cascade.main([*two, f"--shifted=fog={tmp_path / 'val0.npz'},{tmp_path / 'val1.npz'}"])
    with pytest.raises(SystemExit):
        cascade.main([*two, "--shifted=fog"])


def test_without_a_workdir_it_only_prints(two: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(tmp_path.iterdir())
    cascade.main([*two, "--coverage=0.7", "--costs=1,4", "--unit=ms", "--resamples=20"])
    assert sorted(tmp_path.iterdir()) == before
    assert "| ensemble |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--costs=1"], "1 of 2 models"),
        (["--costs=1,-2"], "positive"),
        (["--costs=1,x"], "numbers"),
        (["--score=max_logit_pnorm"], "fitted or of members"),
        (["--score=mps"], "did you mean 'msp'"),
        (["--threshold=99"], "99 lies outside the calibration scores"),
        (["--budget=0.5x"], "less than the cheapest model's 1"),
        (["--budget=2y"], "a multiple of the first model's cost"),
        (["--budget=nan"], "a multiple of the first model's cost"),
        (["--threshold=1", "--budget=2x"], "nothing is searched for --threshold"),
        (["--tpr=0.9", "--budget=2x", "--resamples=20"], "no OOD examples to choose by"),
    ],
)
def test_mistakes_are_refused_in_a_line(two: list[str], arguments: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        cascade.main([*two, *arguments])


@pytest.mark.parametrize("argument", ["--risk=0", "--half-width=2", "--delta=1", "--resamples=5", "--combine=mean"])
def test_numbers_out_of_range_are_refused(two: list[str], argument: str) -> None:
    with pytest.raises(SystemExit):
        cascade.main([*two, argument])
    with pytest.raises(SystemExit):
        cascade.main([*two, "--risk=0.1", "--coverage=0.5"])
    with pytest.raises(SystemExit):
        cascade.main([*two, "--risk=0.1", "--certified"])


def test_files_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    val = [write(tmp_path, f"val{seed}", seed, 0) for seed in range(2)]
    test = [write(tmp_path, f"test{seed}", seed, 10_000) for seed in range(2)]
    other = write(tmp_path, "other", 1, 20_000)
    with pytest.raises(InputError, match="same split"):
        cascade.read(test, test)  # fitted on the test split
    with pytest.raises(InputError, match=r"example_id.*ids are missing"):
        cascade.read(val, [test[0], other])
    with pytest.raises(InputError, match="another model"):
        cascade.read(val[::-1], test)
    with pytest.raises(InputError, match="names 1 files"):
        cascade.read(val[:1], test)
    with pytest.raises(InputError, match="two models"):
        cascade.read(val[:1], test[:1])


def test_costs_that_nobody_told_are_asked_for(tmp_path: Path) -> None:
    made = cascade.read(
        [write(tmp_path, f"val{seed}", seed, 0) for seed in range(2)],
        [write(tmp_path, f"test{seed}", seed, 10_000) for seed in range(2)],
    )
    del made.test[1].provenance["macs"]
    with pytest.raises(InputError, match="give --costs"):
        cascade._costs(None, None, made.test)


def test_models_are_called_by_what_tells_their_files_apart() -> None:
    assert cascade._names(["runs/a/test.npz", "runs/b/test.npz"]) == ["a", "b"]
    assert cascade._names(["x/small.npz", "large.npz"]) == ["small", "large"]
