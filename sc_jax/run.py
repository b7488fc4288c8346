"""`python -m sc_jax.run`: train, predict, evaluate, report, in a row; what is done is skipped."""

from __future__ import annotations

import resource
import time
from collections.abc import Sequence
from pathlib import Path

from sc_jax import cli, files
from sc_jax.config import Config
from sc_jax.evaluate import evaluate_study
from sc_jax.predict import predict
from sc_jax.report import report
from sc_jax.train import train
from sc_jax.training import job as job_lib
from sc_jax.training import processes


def run(config: Config, workdir: Path) -> Path | None:
    """All stages; seconds of each and the peak memory so far go to `timings.json`, for the stages that did work.

    Of several processes all train and predict, and the first alone goes on.

    Returns:
      The path of the report; None in other processes than the first.
    """
    path = workdir / "timings.json"
    first = processes.first()
    timings = files.read_json(path, sealed=True) if first and path.exists() else {}
    stages = {
        "train": lambda: train(config, workdir),
        "predict": lambda: predict(config, workdir),
        "evaluate": lambda: evaluate_study(config, workdir),
        "report": lambda: report(workdir),
    }
    for name, stage in stages.items():
        if name == "evaluate":
            processes.leave()
            if not first:
                return None
        start = time.perf_counter()
        stage()
        seconds = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        if seconds > timings.get(name, {}).get("seconds", 0):  # a skipped stage takes less than its work did
            timings[name] = {"seconds": seconds, "peak_bytes": peak}
    files.write_json(path, timings, seal=True)
    return workdir / "report.html"


def main(argv: Sequence[str] | None = None) -> None:
    """The door."""
    config, workdir = cli.study_arguments("run", __doc__, argv, devices=True)
    with cli.open_workdir(workdir, config, lambda: job_lib.build(config)):
        page = run(config, workdir)
    if page is not None:
        print(f"\nreport: {page.resolve()}\n        {page.with_suffix('.md').resolve()}")


if __name__ == "__main__":
    cli.main(main)
