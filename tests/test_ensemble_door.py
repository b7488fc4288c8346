"""The door for ensembles of any predictions files, to the report."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from sc_jax import ensemble, predictions
from sc_jax.files import InputError
from sc_jax.methods import ensemble as methods
from sc_jax.predictions import Predictions
from sc_jax.report import report


def write(folder: Path, name: str, seed: int, first_id: int, members: int = 0) -> str:
    n, k = 200, 3
    label = np.random.default_rng(first_id).integers(0, k, n)
    shape = (members, n, k) if members else (n, k)
    logits = 2 * np.eye(k)[label] + np.random.default_rng([first_id, seed]).normal(size=shape)
    about = {"split": "test" if first_id else "validation", "tags": {"seed": seed}, "dataset": "made-up"}
    path = folder / f"{name}.npz"
    predictions.save(path, Predictions(label, logits, np.arange(first_id, first_id + n), provenance=about))
    return str(path)


@pytest.fixture
def files_of(tmp_path: Path) -> list[str]:
    """--predictions and --calibration of three members, two of them in one file."""
    tests = [write(tmp_path, "a_test", 0, 1000), write(tmp_path, "b_test", 1, 1000, members=2)]
    calibration = [write(tmp_path, "a_val", 0, 0), write(tmp_path, "b_val", 1, 0, members=2)]
    return [f"--predictions={','.join(tests)}", f"--calibration={','.join(calibration)}"]


def test_it_writes_metrics_combinations_and_is_drawn(
    files_of: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workdir = tmp_path / "out"
    ensemble.main([*files_of, "--resamples=20", f"--workdir={workdir}"])
    out = capsys.readouterr().out
    assert "| weighted, logit |" in out
    assert "| probability |" in out
    document = json.loads((workdir / "metrics.json").read_text())
    assert len(document["ensemble"]["members"]) == 3
    test = methods.stack([predictions.load(tmp_path / f"{name}_test.npz") for name in "ab"])
    for told in document["ensemble"]["weights"]:
        written = predictions.load(workdir / f"{told['space']}.npz")
        combined = methods.combine(test.logits, np.array(told["weights"]), told["space"])
        np.testing.assert_allclose(written.logits, combined, rtol=1e-6, atol=1e-6)
        assert written.provenance["split"] == "test"
    report(workdir)
    text = (workdir / "report.md").read_text()
    for words in ("## Diversity", "## Weights", "## Metrics against the number of members"):
        assert words in text
    assert (workdir / "figures" / "members.png").stat().st_size > 10_000


def test_without_a_workdir_it_only_prints(
    files_of: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(tmp_path.iterdir())
    ensemble.main([files_of[0], "--scores=msp,energy", "--resamples=20"])
    assert sorted(tmp_path.iterdir()) == before
    assert "weighted" not in capsys.readouterr().out


def test_mistakes_are_refused_in_a_line(files_of: list[str], tmp_path: Path) -> None:
    one = f"--predictions={tmp_path / 'a_test.npz'}"
    with pytest.raises(InputError, match="two members or more"):
        ensemble.main([one])
    with pytest.raises(InputError, match="named twice"):
        ensemble.main([f"{one},{tmp_path / 'a_test.npz'}"])
    with pytest.raises(InputError, match="names 1 files, --predictions 2"):
        ensemble.main([files_of[0], files_of[1].partition(",")[0]])
    with pytest.raises(InputError, match="same split"):
        ensemble.main([files_of[0], files_of[0].replace("--predictions", "--calibration")])
    with pytest.raises(InputError, match="did you mean 'msp'"):
        ensemble.main([files_of[0], "--scores=mps"])
    with pytest.raises(SystemExit):
        ensemble.main([files_of[0], "--resamples=5"])
