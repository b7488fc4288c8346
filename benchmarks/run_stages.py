"""Seconds of `make run` by stage, and peak memory: the default study in a fresh workdir, then once more.

make bench        # or: python -m benchmarks.run_stages
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import machine
from sc_jax import files

CONFIG = "experiments/label_smoothing/config.py"


def main() -> None:
    """Measures and writes `results/run_stages.json`."""
    with tempfile.TemporaryDirectory() as folder:
        workdir = Path(folder) / "run"
        command = [sys.executable, "-m", "sc_jax.run", f"--config={CONFIG}", f"--workdir={workdir}"]
        seconds = []
        for _ in range(2):
            start = time.perf_counter()
            subprocess.run(command, check=True)
            seconds.append(time.perf_counter() - start)
        timings = files.read_json(workdir / "timings.json")
        size = sum(path.stat().st_size for path in workdir.rglob("*") if path.is_file())
    figures = {
        "config": CONFIG,
        "seconds": {name: stage["seconds"] for name, stage in timings.items()},
        "seconds_total": seconds[0],
        "seconds_again": seconds[1],
        "peak_bytes": max(stage["peak_bytes"] for stage in timings.values()),
        "workdir_bytes": size,
    }
    print(figures)
    machine.write("run_stages", figures)


if __name__ == "__main__":
    main()
