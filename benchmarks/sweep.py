"""A sweep of 100 small runs that is killed 10 times.

    make bench        # or: python -m benchmarks.sweep

At seeded random moments SIGKILL goes to a run, or, for some of the kills, to the sweep itself, which leaves its runs behind and is called again. In the end every
run has to be done, and those that were killed have to have the metrics of a run of the same config that nobody killed.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import machine
from sc_jax import files
from sc_jax import sweep as sweep_lib

SWEEP = "experiments/label_smoothing/sweep.py"
PARALLEL, KILLS, OF_THE_SWEEP, SEED = 2, 10, 2, 0


def survive(variant: str, workdir: Path, *, parallel: int, kills: int, of_the_sweep: int, seed: int) -> dict[str, Any]:
    """Runs a sweep and kills it.

    Args:
      variant: of `SWEEP`; workdir: a new one; parallel: runs at once.
      kills: in all; of_the_sweep: how many of them hit the sweep itself; seed: of the moments.

    Returns:
      What was killed and what became of it: "lost" runs are not done, "wrong" ones have other metrics than a run that was not killed.
    """
    runs = sweep_lib.load(f"{SWEEP}:{variant}")
    rng = random.Random(seed)
    # So many runs are done before each kill; the moment after that is random too.
    moments = sorted(rng.sample(range(len(runs) - 1), kills))
    whole = set(rng.sample(range(kills), of_the_sweep))
    log = open(workdir.with_suffix(".log"), "ab")  # noqa: SIM115 (closed below)
    killed, started = [], time.perf_counter()

    def start() -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "sc_jax.sweep", f"--sweep={SWEEP}:{variant}", f"--workdir={workdir}"]
        return subprocess.Popen([*command, f"--parallel={parallel}"], stdout=log, stderr=log)

    process = start()
    try:
        for number, moment in enumerate(moments):
            while sum(sweep_lib.finished(run, workdir) for run in runs) < moment:
                if process.poll() is not None:
                    raise RuntimeError(f"the sweep ended by itself with {process.returncode}; see {log.name}")
                time.sleep(0.1)
            time.sleep(rng.uniform(0, 10))
            if number in whole:
                process.kill()
                process.wait()
                killed.append({"what": "sweep"})
                process = start()
                continue
            name, child = _running(process.pid, workdir, rng)
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
                killed.append({"what": "run", "name": name})
        status = process.wait()
    finally:
        process.terminate()
        process.wait()
        log.close()
    seconds = time.perf_counter() - started
    table = files.read_json(workdir / "sweep.json")
    names = sorted({kill["name"] for kill in killed if kill["what"] == "run"})
    wrong = [run.name for run in runs if run.name in names and _metrics(workdir, run) != _unkilled(run, workdir)]
    return {
        "sweep": f"{SWEEP}:{variant}",
        "runs": len(runs),
        "parallel": parallel,
        "seed": seed,
        "kills": killed,
        "starts": sum(run["starts"] for run in table["runs"]),
        "exit_status": status,
        "done": sum(run["state"] == "done" for run in table["runs"]),
        "lost": [run["name"] for run in table["runs"] if run["state"] != "done"],
        "compared": len(names),
        "wrong": wrong,
        "seconds": seconds,
    }


def _running(parent: int, workdir: Path, rng: random.Random) -> tuple[str, int]:
    """A run that the sweep has started and that is not at its end: its name and process."""
    while True:
        children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
        rng.shuffle(children)
        for child in children:
            with contextlib.suppress(OSError):
                command = Path(f"/proc/{child}/cmdline").read_bytes().decode().split("\0")
                folder = [Path(part.removeprefix("--workdir=")) for part in command if part.startswith("--workdir=")]
                if (
                    "sc_jax.run" in command
                    and folder
                    and not (workdir / "runs" / folder[0].name / "timings.json").exists()
                ):
                    return folder[0].name, int(child)
        time.sleep(0.1)


def _metrics(workdir: Path, run: sweep_lib.Run) -> Any:
    rows = files.read_json(workdir / "runs" / run.name / "metrics.json")["runs"]
    return [{name: row[name] for name in ("tags", "score", "metrics", "intervals")} for row in rows]


def _unkilled(run: sweep_lib.Run, workdir: Path) -> Any:
    again = workdir.with_name(f"{workdir.name}-again")
    subprocess.run(run.command(again / "runs" / run.name), check=True, stdout=subprocess.DEVNULL)
    return _metrics(again, run)


def main() -> None:
    """Measures and writes `results/sweep.json`."""
    with tempfile.TemporaryDirectory() as folder:
        # The runs compile the same few programs.
        os.environ["JAX_COMPILATION_CACHE_DIR"] = f"{folder}/compiled"
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"
        figures = survive(
            "hundred", Path(folder) / "sweep", parallel=PARALLEL, kills=KILLS, of_the_sweep=OF_THE_SWEEP, seed=SEED
        )
    for name, value in figures.items():
        print(f"{name}: {value}")
    machine.write("sweep", figures)
    if figures["lost"] or figures["wrong"] or figures["exit_status"]:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
