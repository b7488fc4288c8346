"""Where and with what a figure was measured; stands in every result."""

from __future__ import annotations

import datetime
import os
import platform
from pathlib import Path
from typing import Any

import jax
import numpy as np

import sc_jax
from sc_jax import files

RESULTS = Path(__file__).with_name("results")


def describe() -> dict[str, Any]:
    """Processor, cores, memory, devices, versions and date."""
    cpu = next(
        (line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")),
        platform.processor(),
    )
    memory = next(
        (int(line.split()[1]) * 1024 for line in _lines("/proc/meminfo") if line.startswith("MemTotal")), None
    )
    return {
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": memory,
        "devices": [device.device_kind for device in jax.devices()],
        "python": platform.python_version(),
        "jax": jax.__version__,
        "numpy": np.__version__,
        "sc_jax": sc_jax.__version__,
        "date": datetime.date.today().isoformat(),
    }


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []


def write(name: str, figures: dict[str, Any]) -> None:
    """Writes `results/<name>.json`."""
    path = RESULTS / f"{name}.json"
    files.write_json(path, {"machine": describe(), **figures})
    print(f"→ {path}")
