"""Where and with what a figure was measured; stands in every result."""

from __future__ import annotations

import contextlib
import datetime
import os
import platform
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np

import sc_jax
from sc_jax import files

RESULTS = Path(__file__).with_name("results")


def describe(packages: Sequence[str] = ()) -> dict[str, Any]:
    """Processor, cores, memory, devices, versions (of `packages` too) and date."""
    cpu = next(
        (line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")),
        platform.processor(),
    )
    memory = next(
        (int(line.split()[1]) * 1024 for line in _lines("/proc/meminfo") if line.startswith("MemTotal")), None
    )
    return {
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "simd": np.show_config(mode="dicts").get("SIMD Extensions", {}).get("found", []),
        "memory_bytes": memory,
        "devices": [device.device_kind for device in jax.devices()],
        "python": platform.python_version(),
        "jax": jax.__version__,
        "numpy": np.__version__,
        "sc_jax": sc_jax.__version__,
        **({"peers": {name: metadata.version(name) for name in packages}} if packages else {}),
        "date": datetime.date.today().isoformat(),
    }


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []


@contextlib.contextmanager
def cores(count: int) -> Iterator[None]:
    """Keeps this process, and those it starts, to `count` of its cores (on Linux; elsewhere to no fewer)."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[:count])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def write(name: str, figures: dict[str, Any], packages: Sequence[str] = ()) -> None:
    """Writes `results/<name>.json`; the versions of `packages` stand in it."""
    path = RESULTS / f"{name}.json"
    files.write_json(path, {**figures, "machine": describe(packages)})
    print(f"→ {path}")
