"""SIGTERM, full and read-only disks, and two runs at once in one workdir."""

from __future__ import annotations

import contextlib
import dataclasses
import random
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.chaos.runs import EVERY, STEPS, Door, Place, content, half_written, latest, resumed_at

NEXT = {"train": "predict", "predict": "evaluate", "evaluate": "report", "report": "end"}


def terminate(place: Place, seed: int, stage: str) -> dict[str, Any]:
    """SIGTERM at a seeded moment: status 143, nothing half-written, of training a checkpoint at the step it had reached.

    Returns:
      {"stage", "seed", "status", "at", "between_checkpoints", "outcome", "why"}; outcomes as of `kills.trial`.
    """
    rng = random.Random(f"{stage} {seed}")
    for _ in range(20):
        place.begin(stage)
        door = place.start(stage)
        if stage == "train":
            wanted = rng.randint(1, STEPS // EVERY - 1) * EVERY
            while latest(place.workdir) < wanted and door.running:
                time.sleep(0.001)
            time.sleep(rng.uniform(0, 0.02))
        else:
            time.sleep(rng.uniform(0.2, 1) * place.seconds[stage])
        door.send(signal.SIGTERM)
        ended = door.wait()
        if ended.status != 0:
            break
    at = latest(place.workdir)
    row = {"stage": stage, "seed": seed, "status": ended.status, "at": at, "between_checkpoints": bool(at % EVERY)}
    left = half_written(place.workdir)
    if ended.status != 143 or left or "Traceback" in ended.said:
        return {**row, "outcome": "crashed", "why": f"left {left}; {ended.said[-2000:]}"}
    if stage == "train" and f"stopped at step {at} of {STEPS}, with a checkpoint" not in ended.said:
        return {**row, "outcome": "crashed", "why": f"no checkpoint at step {at}: {ended.said[-2000:]}"}
    ended = place.run("run")
    if ended.status:
        return {**row, "outcome": "crashed" if ended.crashed else "refused", "why": ended.said[-2000:]}
    different = place.differences()
    if stage == "train" and resumed_at(ended.said) != at:
        different.append(f"resumed from step {resumed_at(ended.said)}, not {at}")
    return {**row, "outcome": "silently wrong" if different else "recovered", "why": ", ".join(different)}


def can_mount(folder: Path) -> bool:
    """Whether file systems can be mounted here: as root, and where the kernel lets one."""
    folder.mkdir(exist_ok=True)
    if subprocess.run(["mount", "-t", "tmpfs", "tmpfs", folder], capture_output=True).returncode:
        return False
    subprocess.run(["umount", folder], check=True)
    return True


@contextlib.contextmanager
def small_disk(place: Place, stage: str, kibibytes: int) -> Iterator[None]:
    """The workdir on a file system of this size, as `stage` begins."""
    shutil.rmtree(place.workdir, ignore_errors=True)
    place.workdir.mkdir()
    options = ["-t", "tmpfs", "-o", f"size={kibibytes}k", "tmpfs"]
    subprocess.run(["mount", *options, place.workdir], check=True)
    try:
        if (place.folder / stage).exists():
            shutil.copytree(place.folder / stage, place.workdir, dirs_exist_ok=True)
        yield
    finally:
        subprocess.run(["umount", "--lazy", place.workdir], check=True)


def _remount(place: Place, option: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{option}", place.workdir], check=True)


def _kibibytes(folder: Path) -> int:
    """On a tmpfs, whose pages are of 4 KiB."""
    return sum(4 * -(-path.stat().st_size // 4096) for path in folder.rglob("*") if path.is_file())


def _intact(place: Place, stage: str) -> list[str]:
    """What `stage` began with and is no longer so; logs may have grown, checkpoints been joined by others."""
    if not (place.folder / stage).exists():
        return []
    before, now = content(place.folder / stage), content(place.workdir)
    return [
        n for n, what in before.items() if n != "checkpoint" and n.endswith(".jsonl") is False and now.get(n) != what
    ]


def fill(place: Place, seed: int, stage: str) -> dict[str, Any]:
    """A disk that is full somewhere within `stage`; then it gets room.

    Returns:
      {"stage", "seed", "kibibytes", "outcome", "why"}: "refused" if it ended with status 2 and one line, all that was there intact, and
      then ran to the same end; else "crashed", "lost" or "silently wrong"; "no effect" if there was room enough.
    """
    rng = random.Random(f"{stage} {seed}")
    start = _kibibytes(place.folder / stage) if (place.folder / stage).exists() else 0
    size = max(8, round(start + rng.uniform(0, 0.95) * (_kibibytes(place.folder / NEXT[stage]) - start)))
    with small_disk(place, stage, size):
        return {
            "stage": stage,
            "seed": seed,
            "kibibytes": size,
            **_refused(place, stage, lambda: _remount(place, "size=1g")),
        }


def protect(place: Place, seed: int, stage: str) -> dict[str, Any]:
    """A workdir that is read-only, from before `stage`, or from a moment within it on; as `fill`."""
    rng = random.Random(f"{stage} {seed}")
    with small_disk(place, stage, 1 << 20):
        if seed % 2 == 0:
            _remount(place, "ro")
        row = {"stage": stage, "seed": seed, "from": "before" if seed % 2 == 0 else "within"}
        later = None if seed % 2 == 0 else rng.uniform(0, 0.8) * place.seconds[stage]
        return {**row, **_refused(place, stage, lambda: _remount(place, "rw"), later)}


def _refused(place: Place, stage: str, mend: Any, protect_after: float | None = None) -> dict[str, Any]:
    door = place.start(stage)
    if protect_after is not None:
        time.sleep(protect_after)
        while door.running:
            with contextlib.suppress(subprocess.CalledProcessError):  # busy: a file is open for writing
                subprocess.run(["mount", "-o", "remount,ro", place.workdir], check=True, capture_output=True)
                break
    ended = door.wait()
    if ended.crashed:
        return {"outcome": "crashed", "why": ended.said[-2000:]}
    if ended.status == 0:
        return {"outcome": "no effect", "why": ""}
    changed = _intact(place, stage)
    mend()
    if changed:
        return {"outcome": "lost", "why": ", ".join(changed)}
    after = place.run("run")
    if after.status:
        return {"outcome": "crashed", "why": after.said[-2000:]}
    different = place.differences()
    said = ended.said.strip().splitlines()[-1]
    return {"outcome": "silently wrong" if different else "refused", "why": ", ".join(different) or said}


@dataclasses.dataclass(frozen=True)
class FileLimit:
    """A fault: no file can be longer than this. Stands for a full disk where nothing can be mounted."""

    size: int

    def __call__(self) -> None:
        """Puts the limit in place."""
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, self.size))


def limit(place: Place, stage: str, size: int) -> dict[str, Any]:
    """A run of `stage` that cannot write files longer than `size` bytes; then one that can. As `fill`."""
    place.begin(stage)
    ended = place.run(stage, FileLimit(size))
    row = {"stage": stage, "bytes": size}
    if ended.status != 2 or ended.crashed:
        return {**row, "outcome": "crashed", "why": ended.said[-2000:]}
    if changed := _intact(place, stage):
        return {**row, "outcome": "lost", "why": ", ".join(changed)}
    after = place.run("run")
    different = [after.said[-2000:]] if after.status else place.differences()
    return {**row, "outcome": "silently wrong" if different else "refused", "why": ", ".join(different)}


def collide(place: Place, seed: int, second: str) -> dict[str, Any]:
    """A run, and `second` in the same workdir while it is at work: the second is refused, the first is not disturbed.

    Returns:
      {"second", "seed", "outcome", "why"}, "refused" or "crashed" or "silently wrong".
    """
    rng = random.Random(f"{second} {seed}")
    place.begin("train")
    first = place.start("run")
    while not (place.workdir / "config.json").exists() and first.running:
        time.sleep(0.005)
    time.sleep(rng.uniform(0, 0.5) * place.seconds["train"])
    ended = Door(second, place.arguments(second), place.folder / "second.txt").wait()
    alive = first.running
    whole = first.wait()
    row = {"second": second, "seed": seed}
    if whole.status or ended.crashed or not alive:
        return {**row, "outcome": "crashed", "why": f"{whole.said[-1000:]} {ended.said[-1000:]}"}
    if ended.status != 2 or "another run is using this workdir" not in ended.said:
        return {**row, "outcome": "silently wrong", "why": ended.said[-1000:]}
    different = place.differences()
    return {**row, "outcome": "silently wrong" if different else "refused", "why": ", ".join(different)}
