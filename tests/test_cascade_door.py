"""The door for cascades of any predictions files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from sc_jax import cascade, files, predictions
from sc_jax.files import InputError
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
