"""Every notebook runs from top to bottom on the files of a real (smoke) run."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from conftest import ROOT, run_door
from nbclient import NotebookClient

RUNS = {
    "label_smoothing": ("smoke_run", "α = 0.2", 4),
    "cascades": ("cascade_run", "window", 3),
    "abstention": ("abstention_run", "Chow accepts", 3),
}
"""Notebook → the run it reads, something that it prints, and how many pictures it shows at least."""


@pytest.mark.parametrize("name", RUNS)
def test_notebook_runs(name: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    fixture, told, shown = RUNS[name]
    monkeypatch.setenv("SC_JAX_WORKDIR", str(request.getfixturevalue(fixture)))
    path = ROOT / "notebooks" / f"{name}.ipynb"
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(path.parent)}}
    ).execute()
    outputs = [o for cell in notebook.cells if cell.cell_type == "code" for o in cell.outputs]
    assert told in "".join(o.get("text", "") for o in outputs)
    assert len([o for o in outputs if "image/png" in o.get("data", {})]) >= shown


def test_every_notebook_is_run() -> None:
    assert {path.stem for path in (ROOT / "notebooks").glob("*.ipynb")} == set(RUNS)


@pytest.fixture(scope="session")
def cascade_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workdir of the cascades' `:smoke`, run through the door from data to report."""
    workdir: Path = tmp_path_factory.mktemp("cascades") / "run"
    result = run_door("run", f"--config={ROOT}/experiments/cascades/config.py:smoke", f"--workdir={workdir}")
    assert result.returncode == 0, result.stderr
    return workdir


@pytest.fixture(scope="session")
def abstention_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workdir of the `:smoke` of classifiers that are trained to abstain, run through the door from data to report."""
    workdir: Path = tmp_path_factory.mktemp("abstention") / "run"
    result = run_door("run", f"--config={ROOT}/experiments/abstention/config.py:smoke", f"--workdir={workdir}")
    assert result.returncode == 0, result.stderr
    return workdir
