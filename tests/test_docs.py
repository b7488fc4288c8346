"""The docs say what the results say, and their code runs."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from conftest import ROOT
from made_up import ALPHAS, PRIMARY, SETTINGS, errors, runs

from sc_jax import ops
from sc_jax.config import Contrast
from sc_jax.methods import study

DOCUMENTS = [
    "README.md",
    "docs/metrics.md",
    "docs/formats.md",
    "docs/guarantees.md",
    "docs/house.md",
    "docs/data.md",
    "docs/recipes.md",
    "docs/losses.md",
    "docs/ensembles.md",
    "docs/cascades.md",
    "docs/scod.md",
    "docs/scaling.md",
    "docs/survival.md",
    "docs/speed.md",
    "docs/abstention.md",
    "experiments/abstention/README.md",
    "experiments/label_smoothing/README.md",
    "experiments/cascades/README.md",
    "experiments/scod/README.md",
]


@pytest.fixture(scope="module")
def build() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_build", ROOT / "docs/build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", DOCUMENTS)
def test_numbers_are_those_of_the_results(build: ModuleType, name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    assert build.filled(text) == text, "run `make docs`"
    assert ("generated:" in text) == (ROOT / name in build.DOCUMENTS)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_lead_somewhere(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", text):
        assert (ROOT / name).parent.joinpath(target).exists(), target


def test_the_readme_s_code_runs_as_it_stands(tmp_path: Path) -> None:
    """The Python of "bring your own logits", then its commands, in an empty folder."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    section = text[text.index("## Bring your own logits") : text.index("## Backbones and weights")]
    code = "\n".join(re.findall(r"```python\n(.*?)```", section, re.S))
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    commands = re.findall(r"^    \.venv/bin/python (-m sc_jax\..*)$", section, re.M)
    assert len(commands) == 2
    for command in commands:
        done = subprocess.run([sys.executable, *command.split()], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "runs/mine/metrics.json").read_text())["runs"]

    assert rows[0]["score"] == "msp"
    assert 0.5 < rows[0]["metrics"]["error"] < 1
    assert (tmp_path / "runs/mine/report.html").exists()


def test_the_code_of_the_guarantees_runs_as_it_stands(tmp_path: Path) -> None:
    """Files are made, commands run, then the Python."""
    text = (ROOT / "docs/guarantees.md").read_text(encoding="utf-8")
    files, code = re.findall(r"```python\n(.*?)```", text, re.S)
    commands = re.findall(r"^    \.venv/bin/python (-m sc_jax\..*)$", text, re.M)
    assert [command.split()[1] for command in commands] == ["sc_jax.select"] * 4 + ["sc_jax.evaluate", "sc_jax.report"]
    run = [["-c", files], *(command.split() for command in commands), ["-c", code]]
    here = {**os.environ, "PYTHONPATH": str(ROOT)}
    for arguments in run:
        done = subprocess.run([sys.executable, *arguments], cwd=tmp_path, env=here, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        print(done.stdout)
    (decided,) = json.loads((tmp_path / "runs/sgr/decisions.json").read_text())["test"]
    assert "## Selectors" in (tmp_path / "runs/kept/report.md").read_text()
    assert 0 < decided["coverage"] <= 1
    assert decided["risk"] < 0.1


@pytest.mark.parametrize("name", ["docs/ensembles.md", "docs/cascades.md", "docs/scod.md", "docs/abstention.md"])
def test_the_code_of_a_page_runs_from_top_to_bottom(tmp_path: Path, name: str) -> None:
    code = "\n".join(re.findall(r"```python\n(.*?)```", (ROOT / name).read_text(encoding="utf-8"), re.S))
    here = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=here, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_commands_of_the_readme_exist() -> None:
    readme, makefile = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "Makefile"))
    for target in set(re.findall(r"make (\w+)", readme)):
        assert re.search(rf"^{target}:", makefile, re.M), target
    for module in set(re.findall(r"-m (sc_jax\.[\w.]+)", readme)):
        assert importlib.util.find_spec(module) is not None, module


def test_the_contrasts_of_objectives_are_told_once_they_are_made(
    build: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    shuffled = "shuffled_error_smoothing=0.2"
    primary = [
        Contrast("", "naurc", 0.0, "msp", 0.0, "msp", "less", 0.0, treatment_objective=name) for name in build.SPARING
    ]
    given = runs((*ALPHAS, *build.SPARING, *build.BESIDE, shuffled))
    document = study.evaluate(given, SETTINGS, primary)
    monkeypatch.setattr(build, "_metrics", lambda variant: document)
    lines = build.objective_contrasts().splitlines()[2:]
    assert len(lines) == len(build.SPARING) * len(build.BESIDE) + 3
    naurc = {
        name: np.mean(
            [float(ops.naurc(ops.msp(run.test.logits), errors(run.test))) for run in given if run.alpha == name]
        )
        for name in ("error_smoothing=0.2", "max_suppression=0.2")
    }
    difference = naurc["error_smoothing=0.2"] - naurc["max_suppression=0.2"]
    assert lines[0].split(" | ")[2].startswith(f"{difference:+.3f}".replace("-", "−"))
    document["objectives"]["contrasts"].clear()
    assert build.objective_contrasts() == "Not run."


def test_the_contrasts_of_ensembles_are_told_once_they_are_made(
    build: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = study.evaluate(runs(), SETTINGS, PRIMARY, with_repair=True)
    monkeypatch.setattr(build, "_metrics", lambda variant: document)
    lines = build.ensemble_contrasts("full").splitlines()[2:]
    assert [line.endswith("|  |") for line in lines].count(False) == 1, "p-norm before averaging is one way"
    for row in document["repair"]["ensembles"]:
        del row["minus_after"]
    assert build.ensemble_contrasts("full") == "Not run."


def test_the_last_statistics_of_a_run_are_kept_by_alpha(build: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "logit_statistics.jsonl"
    header = {"alphas": [0.2, 0.0, 0.2], "splits": ["train"], "edges": [0.0], "p": 3.0}
    counts = [[[1, 2], [0, 1]], [[4, 0], [0, 0]], [[3, 0], [0, 1]]]
    norms = [[[1.0, 2.0], [None, 5.0]], [[3.0, None], [None, None]], [[2.0, None], [None, 7.0]]]
    lines = [{"step": step, "epoch": step / 10, "train": {"count": counts, "norm": norms}} for step in (1, 2)]
    path.write_text("".join(json.dumps(line) + "\n" for line in (header, *lines)))
    kept = build._last_statistics(path)
    assert (kept["step"], kept["p"]) == (2, 3.0)
    assert kept["splits"]["train"] == [
        {"alpha": 0.0, "count": counts[1], "norm": norms[1]},
        {"alpha": 0.2, "count": [[4, 2], [0, 2]], "norm": [[1.75, 2.0], [None, 6.0]]},
    ]


def test_paths_into_a_run_are_those_of_its_place_wherever_it_was_made(build: ModuleType) -> None:
    row = {
        "predictions": "/elsewhere/x-default/predictions/a/test.npz",
        "n": [3, "x-default/", "/elsewhere/y/test.npz"],
    }
    there = {"predictions": "runs/x-default/predictions/a/test.npz", "n": [3, "x-default/", "/elsewhere/y/test.npz"]}
    assert build._at_home(row, "x-default") == there
