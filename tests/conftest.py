"""Shared by all tests: strict JAX settings, and one run of the smoke variant."""

from __future__ import annotations

import atexit
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    # The doors are run in many processes that compile the same programs; workers and doors inherit this.
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="sc_jax-compiled-")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)

import jax
import pytest

ROOT = Path(__file__).resolve().parent.parent
CONFIG = str(ROOT / "experiments/label_smoothing/config.py")

jax.config.update("jax_numpy_rank_promotion", "raise")  # a shape that broadcasts by accident is an error


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--recipes=all` runs the smoke variant of every recipe, not of those alone that take seconds; `--devices=all` every case on
    every number of devices and processes."""
    parser.addoption("--recipes", choices=("short", "all"), default="short", help="smoke runs: short ones, or all")
    parser.addoption("--devices", choices=("short", "all"), default="short", help="cases on many devices: some, or all")


def run_door(door: str, *arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    """Runs `python -m sc_jax.<door>` in a process of its own."""
    command = [sys.executable, "-m", f"sc_jax.{door}", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, **options)


@pytest.fixture(scope="module", autouse=True)
def forget_programs() -> Iterator[None]:
    """What a module compiled is dropped after it: thousands of programs slow every collection of garbage, and fill the memory."""
    yield
    jax.clear_caches()


@pytest.fixture(scope="session")
def smoke_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workdir of `:smoke`, run through the door from data to report."""
    workdir = tmp_path_factory.mktemp("smoke") / "run"
    result = run_door("run", f"--config={CONFIG}:smoke", f"--workdir={workdir}")
    assert result.returncode == 0, result.stderr
    return workdir
