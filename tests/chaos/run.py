"""Everything that is survived, at length: `make chaos`, or

    python -m tests.chaos.run [--only=kills,damage,limits,fuzz]

writes `benchmarks/results/chaos.json` and `fuzz.json`, with the seed and the outcome of every trial. It takes about half an hour on two
cores. Full and read-only disks are file systems of their own, which root alone can mount; without them they are left out, and the file says so.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

KILLS, DAMAGES, INPUTS = 50, 210, 102_000
BAD = ("crashed", "lost", "silently wrong", "refused without the name")
"""Outcomes that must not be."""


def _rows(name: str, trials: Iterable[Callable[[], dict[str, Any]]]) -> list[dict[str, Any]]:
    rows = []
    for number, trial in enumerate(trials, 1):
        rows.append(trial())
        tell = rows[-1]["outcome"] in BAD or number % 10 == 0
        if tell:
            print(f"{name} {number}: {dict(Counter(row['outcome'] for row in rows))}", flush=True)
        if rows[-1]["outcome"] in BAD:
            print(rows[-1], flush=True)
    return rows


def kills(place: Any) -> list[dict[str, Any]]:
    """SIGKILLs; see `tests.chaos.kills`."""
    from tests.chaos import kills

    writes = kills.writes_of(place)
    return _rows(
        "kill",
        (
            lambda i=i, stage=stage, how=how: kills.trial(place, i, stage, how, writes[stage])
            for i, (stage, how) in enumerate(kills.plan(KILLS))
        ),
    )


def damages(place: Any) -> list[dict[str, Any]]:
    """Truncations and flipped bits; see `tests.chaos.damage`. One round in three over the files that a study reads, the rest over others."""
    from tests.chaos import damage

    damage.keep_the_middle(place)
    whole = place.folder / "examples"
    damage.write_examples(place, whole)
    kinds = list(damage.KINDS) * 5
    rows = _rows("damage", (lambda i=i, kind=kind: damage.trial(place, i, kind) for i, kind in enumerate(kinds)))
    more = list(damage.READ) * (-(-(DAMAGES - len(rows)) // len(damage.READ)))
    return rows + _rows(
        "damage of others", (lambda i=i, kind=kind: damage.read_trial(whole, i, kind) for i, kind in enumerate(more))
    )


def limits(place: Any) -> dict[str, list[dict[str, Any]]]:
    """SIGTERM, disks, two at once; see `tests.chaos.limits`."""
    from tests.chaos import limits
    from tests.chaos.runs import STAGES

    found = {
        "sigterm": _rows(
            "SIGTERM",
            (
                lambda i=i, stage=stage: limits.terminate(place, i, stage)
                for i, stage in enumerate((*STAGES, "train", "train", "train", "train"))
            ),
        ),
        "two_at_once": _rows(
            "two at once",
            (lambda i=i, door=door: limits.collide(place, i, door) for i, door in enumerate((*STAGES, "run"))),
        ),
    }
    if limits.can_mount(place.folder / "mount"):
        found["full_disk"] = _rows(
            "full disk",
            (lambda i=i, stage=stage: limits.fill(place, i, stage) for i, stage in enumerate(STAGES * 2)),
        )
        found["read_only"] = _rows(
            "read-only",
            (
                lambda i=i, stage=stage: limits.protect(place, i, stage)
                for i, stage in enumerate((*STAGES, *STAGES[::-1]))
            ),
        )
    else:
        print("full and read-only disks: left out, nothing can be mounted here")
    return found


def fuzz(folder: Path) -> list[dict[str, Any]]:
    """Every reader; see `tests.chaos.fuzz`."""
    from tests.chaos import fuzz

    shares = sum(reader.share for name, reader in fuzz.READERS.items() if name not in fuzz.SLOW)
    rows = []
    for name, reader in fuzz.READERS.items():
        count = fuzz.SLOW.get(name) or -(-INPUTS * reader.share // shares)
        rows.append(fuzz.in_a_process(name, range(count), folder / "input"))
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
    from tests.chaos import fuzz as fuzzing
    from tests.chaos.runs import Place

    bad = 0
    with tempfile.TemporaryDirectory(prefix="sc_jax-chaos-") as folder:
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", f"{folder}/compiled")  # of all processes
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
        path = machine.RESULTS / "chaos.json"
        document = files.read_json(path) if path.exists() else {}
        if set(only) & {"kills", "damage", "limits"}:
            place = Place(Path(folder) / "place")
            place.undisturbed()
            for name, part in (("kills", kills), ("damage", damages), ("limits", limits)):
                if name not in only:
                    continue
                found = part(place)
                document |= found if isinstance(found, dict) else {name: found}
                document["machine"] = machine.describe()
                files.write_json(path, document)
            rows = [row for name, part in document.items() if name != "machine" for row in part]
            bad += sum(row["outcome"] in BAD for row in rows)
        if "fuzz" in only:
            rows = fuzz(Path(folder) / "fuzz")
            bad += sum(len(row["failed"]) for row in rows)
            bounds = {"memory_bytes": fuzzing.MEMORY, "seconds": fuzzing.SECONDS}
            about = {"machine": machine.describe(), "bounds": bounds, "readers": rows}
            files.write_json(machine.RESULTS / "fuzz.json", about)
    print(f"{bad} went as they must not")
    return bool(bad)


if __name__ == "__main__":
    sys.exit(main())
