"""Everything that is survived, at length: `make chaos`, or

    python -m tests.chaos.run [--only=kills,damage,limits,fuzz]

writes `benchmarks/results/chaos.json` and `fuzz.json`, with the seed and the outcome of every trial. What was interrupted goes on with the same
command. It takes about half an hour on two idle cores. Full and read-only disks are file systems of their own, which root alone can mount; without them they are left out, and the file says so.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tests.chaos import damage
from tests.chaos import fuzz as fuzz_lib
from tests.chaos import kills as kills_lib
from tests.chaos import limits as limits_lib
from tests.chaos.runs import STAGES, Place

KILLS, DAMAGES, INPUTS = 50, 210, 102_000
BAD = ("crashed", "lost", "silently wrong", "refused without the name")
"""Outcomes that must not be."""


class Results:
    """`chaos.json`, written after every trial: what was interrupted goes on, unless the code of `sc_jax` has changed since.

    Args:
      path: of the file; folder: of the trials, which is not said where an outcome names a file in it.
    """

    def __init__(self, path: Path, folder: Path) -> None:
        from sc_jax import files

        self._path, self._folder, code = path, f"{folder}/", files.fingerprint_sources(".")
        there = files.read_json(path) if path.exists() else {}
        self.document = there if there.get("code") == code else {"code": code}

    def add(self, kind: str, trials: Sequence[Callable[[], dict[str, Any]]]) -> None:
        """Does the trials of a kind that are not done."""
        from benchmarks import machine
        from sc_jax import files

        rows = self.document.setdefault(kind, [])
        for number, trial in enumerate(trials[len(rows) :], len(rows) + 1):
            told = trial()
            rows.append({k: v.replace(self._folder, "") if isinstance(v, str) else v for k, v in told.items()})
            self.document["machine"] = machine.describe()
            files.write_json(self._path, self.document)
            if rows[-1]["outcome"] in BAD:
                print(rows[-1], flush=True)
            if rows[-1]["outcome"] in BAD or number % 10 == 0 or number == len(trials):
                print(f"{kind} {number}: {dict(Counter(row['outcome'] for row in rows))}", flush=True)

    def bad(self) -> int:
        """How many went as they must not."""
        rows = [row for part in self.document.values() if isinstance(part, list) for row in part]
        return sum(row["outcome"] in BAD for row in rows)


def kills(place: Place, results: Results) -> None:
    """SIGKILLs; see `tests.chaos.kills`."""
    writes = kills_lib.writes_of(place)
    plan = enumerate(kills_lib.plan(KILLS))
    trials = [partial(kills_lib.trial, place, i, stage, how, writes[stage]) for i, (stage, how) in plan]
    results.add("kills", trials)


def damages(place: Place, results: Results) -> None:
    """Truncations and flipped bits; see `tests.chaos.damage`: in files that a study reads again, and in others."""
    damage.keep_the_middle(place)
    whole = place.folder / "examples"
    damage.write_examples(place, whole)
    others = list(damage.READ) * (-(-(DAMAGES - 5 * len(damage.KINDS)) // len(damage.READ)))
    trials = [partial(damage.read_trial, whole, i, kind) for i, kind in enumerate(others)]
    trials += [partial(damage.trial, place, i, kind) for i, kind in enumerate([*damage.KINDS] * 5)]
    results.add("damage", trials)


def limits(place: Place, results: Results) -> None:
    """SIGTERM, two at once, full and read-only disks; see `tests.chaos.limits`."""
    stages = enumerate((*STAGES, *["train"] * 4))
    results.add("sigterm", [partial(limits_lib.terminate, place, i, stage) for i, stage in stages])
    results.add("two_at_once", [partial(limits_lib.collide, place, i, door) for i, door in enumerate((*STAGES, "run"))])
    if not limits_lib.can_mount(place.folder / "mount"):
        print("full and read-only disks: left out, nothing can be mounted here")
        return
    results.add("full_disk", [partial(limits_lib.fill, place, i, stage) for i, stage in enumerate(STAGES * 2)])
    twice = (*STAGES, *STAGES[::-1])
    results.add("read_only", [partial(limits_lib.protect, place, i, stage) for i, stage in enumerate(twice)])


def fuzz(folder: Path) -> list[dict[str, Any]]:
    """Every reader; see `tests.chaos.fuzz`."""
    shares = sum(reader.share for name, reader in fuzz_lib.READERS.items() if name not in fuzz_lib.SLOW)
    rows = []
    for name, reader in fuzz_lib.READERS.items():
        count = fuzz_lib.SLOW.get(name) or -(-INPUTS * reader.share // shares)
        rows.append(fuzz_lib.in_a_process(name, range(count), folder / "input"))
        row = rows[-1]
        print(
            f"{name}: {row['inputs']} inputs, {row['loaded']} loaded, {row['refused']} refused, {len(row['failed'])} failed",
            flush=True,
        )
        for failed in row["failed"][:3]:
            print(failed["number"], failed["error"], flush=True)
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Runs what is asked for, and writes the results; 1 if anything went as it must not."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.run", description=__doc__)
    parts = ("kills", "damage", "limits", "fuzz")
    parser.add_argument("--only", default=",".join(parts), help="some of " + ", ".join(parts))
    only = parser.parse_args(argv).only.split(",")

    from benchmarks import machine
    from sc_jax import files

    bad = 0
    with tempfile.TemporaryDirectory(prefix="sc_jax-chaos-") as folder:
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", f"{folder}/compiled")  # of all processes
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
        if set(only) & {"kills", "damage", "limits"}:
            results, place = Results(machine.RESULTS / "chaos.json", Path(folder)), Place(Path(folder) / "place")
            place.undisturbed()
            for name, part in (("damage", damages), ("kills", kills), ("limits", limits)):
                if name in only:
                    part(place, results)
            bad += results.bad()
        if "fuzz" in only:
            rows = fuzz(Path(folder) / "fuzz")
            bad += sum(len(row["failed"]) for row in rows)
            bounds = {"memory_bytes": fuzz_lib.MEMORY, "seconds": fuzz_lib.SECONDS}
            about = {"machine": machine.describe(), "bounds": bounds, "readers": rows}
            files.write_json(machine.RESULTS / "fuzz.json", about)
    print(f"{bad} went as they must not")
    return bool(bad)


if __name__ == "__main__":
    sys.exit(main())
