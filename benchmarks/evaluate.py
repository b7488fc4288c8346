"""Seconds and memory of `evaluate` on predictions of ImageNet's size, all scores and 1,000 resamples.

    make bench        # or: python -m benchmarks.evaluate

Made-up float32 logits [50,000, 1,000] of which about 22 % are wrong: the true class is raised by a normal draw, and 8 classes like it by less. The
calibration file, where temperatures and norms are fitted, is as long. The door runs in a process of its own, from reading the files to `metrics.json`; the
memory is that process's largest resident set, in which mapped files count. Of several runs, one after the other, the median of the
seconds is reported, and the largest memory.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks import machine
from sc_jax import files, predictions
from sc_jax.predictions import Predictions

EXAMPLES, CLASSES, RESAMPLES, RUNS = 50_000, 1000, 1000, 3
AIM_SECONDS, AIM_BYTES = 30.0, 2 * 2**30


def made_up(seed: int, n: int = EXAMPLES, k: int = CLASSES) -> Predictions:
    """Predictions of a network on its own split, ids from seed·n on."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, k, n)
    logits = rng.normal(size=(n, k)).astype(np.float32)
    rows = np.arange(n)
    easy = rng.normal(6.0, 2.0, n)
    for shift in range(1, 9):  # classes that look like the true one
        logits[rows, (label + shift) % k] += rng.normal(0.45, 0.15, n) * easy
    logits[rows, label] += easy
    return Predictions(label, logits, seed * n + rows)


def write(paths: Sequence[str]) -> None:
    """The files that are evaluated."""
    for seed, path in enumerate(paths):
        predictions.save(path, made_up(seed))


def main() -> None:
    """Measures and writes `results/evaluate.json`."""
    with tempfile.TemporaryDirectory() as folder, machine.cores(2):
        paths = [Path(folder) / f"{name}.npz" for name in ("test", "validation")]
        # Elsewhere: what this process once held would count as memory of those it starts.
        write = "import sys; from benchmarks import evaluate; evaluate.write(sys.argv[1:])"
        subprocess.run([sys.executable, "-c", write, *map(str, paths)], check=True)
        load = os.getloadavg()[0]
        command = [sys.executable, "-m", "sc_jax.evaluate", f"--predictions={paths[0]}", f"--calibration={paths[1]}"]
        command += [f"--resamples={RESAMPLES}", f"--workdir={folder}/run"]
        runs = [measured(command) for _ in range(RUNS)]
        document = files.read_json(Path(folder) / "run/metrics.json")
    each, processor, peaks = zip(*runs, strict=True)
    seconds, peak = statistics.median(each), max(peaks)
    scores = [row["score"] for row in document["runs"]]
    figures = {
        "examples": EXAMPLES,
        "classes": CLASSES,
        "calibration_examples": EXAMPLES,
        "resamples": RESAMPLES,
        "error": document["runs"][0]["metrics"]["error"],
        "scores": scores,
        "left_out": {row["score"]: row["reason"] for row in document["left_out"]},
        "seconds": seconds,
        "seconds_of_each_run": each,
        "processor_seconds": statistics.median(processor),
        "peak_bytes": peak,
        "load": load,
        "aim": {"seconds": AIM_SECONDS, "bytes": AIM_BYTES, "met": seconds <= AIM_SECONDS and peak <= AIM_BYTES},
    }
    for name, value in figures.items():
        print(f"{name}: {value}")
    machine.write("evaluate", figures)


def measured(command: list[str]) -> tuple[float, float, int]:
    """Seconds of a command, seconds of processor it took, and the largest resident set of its process in bytes.

    Raises:
      RuntimeError: it failed.
    """
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{command} ended with {process.returncode}")
    return time.perf_counter() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024


if __name__ == "__main__":
    main()
