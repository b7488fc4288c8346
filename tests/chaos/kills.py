"""SIGKILL at seeded moments, at seeded writes, and while a checkpoint is written; then the run goes on to its end."""

from __future__ import annotations

import dataclasses
import os
import random
import signal
import sys
import time
from typing import Any

from tests.chaos.runs import EVERY, STAGES, STEPS, Place, half_written, latest, resumed_at

_CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate")


@dataclasses.dataclass(frozen=True)
class KillAtWrite:
    """A fault: the process kills itself at the `at`-th time that it changes something in `workdir`.

    Changes are what opens a file there for writing, renames, removes, makes a folder (all seen by an audit hook, before they
    happen), and writes of `sc_jax.files`, of which then half is done. With `at` = 0 they are counted, into `count`.
    """

    workdir: str
    at: int
    count: str = ""

    def __call__(self) -> None:
        """Puts the fault in place."""
        seen = 0

        def due() -> bool:
            nonlocal seen
            seen += 1
            if self.count:
                with open(self.count, "w") as file:
                    file.write(str(seen))
            return seen == self.at

        def hook(event: str, arguments: tuple[Any, ...]) -> None:
            if event == "open":
                path, _, flags = arguments
                changes = bool(flags & (os.O_WRONLY | os.O_RDWR))
            else:
                path, changes = arguments[0] if arguments else None, event in _CHANGES
            here = isinstance(path, (str, os.PathLike)) and os.fspath(path).startswith(self.workdir)
            if changes and here and due():
                os.kill(os.getpid(), signal.SIGKILL)

        class Torn:
            """A file of which the write that is due is done by half."""

            def __init__(self, file: Any) -> None:
                self._file = file

            def write(self, data: Any) -> int:
                if due():
                    self._file.write(bytes(data)[: len(data) // 2])
                    self._file.flush()
                    os.kill(os.getpid(), signal.SIGKILL)
                return self._file.write(data)

            def __getattr__(self, name: str) -> Any:
                return getattr(self._file, name)

            def __enter__(self) -> Torn:
                return self

            def __exit__(self, *_: object) -> None:
                self._file.close()

        opened = os.fdopen
        os.fdopen = lambda handle, mode="r", *rest, **more: (
            Torn(opened(handle, mode, *rest, **more)) if mode == "wb" else opened(handle, mode, *rest, **more)
        )
        sys.addaudithook(hook)


def writes_of(place: Place) -> dict[str, int]:
    """How often each stage changes something in the workdir, undisturbed."""
    counts = {}
    count = place.folder / "count"
    for stage in STAGES:
        place.begin(stage)
        ended = place.run(stage, KillAtWrite(str(place.workdir), 0, str(count)))
        if ended.status:
            raise RuntimeError(ended.said)
        counts[stage] = int(count.read_text())
    return counts


def kill(place: Place, stage: str, how: str, rng: random.Random, writes: int) -> bool:
    """Runs `stage` from where the workdir stands, and kills it; whether it was killed before it ended by itself.

    Args:
      how: "moment", uniform over its duration; "write", see `KillAtWrite`, uniform over its `writes`; "checkpoint", a
        little after a new one has been begun.
    """
    if how == "write":
        at = rng.randint(1, writes)
        return place.run(stage, KillAtWrite(str(place.workdir), at)).status == -signal.SIGKILL
    door = place.start(stage)
    if how == "moment":
        time.sleep(rng.uniform(0, place.seconds[stage]))
    else:
        wanted = rng.randint(1, STEPS // EVERY - 1) * EVERY
        while door.running and latest(place.workdir) < wanted:
            time.sleep(0.001)
        while door.running and not half_written(place.workdir):
            time.sleep(0.0005)
        time.sleep(rng.uniform(0, 0.01))
    door.send(signal.SIGKILL)
    return door.wait().status == -signal.SIGKILL


def trial(place: Place, seed: int, stage: str, how: str, writes: int) -> dict[str, Any]:
    """One kill, one recovery, one comparison.

    Returns:
      {"stage", "how", "seed", "inside_a_write", "half_written": names, "steps_lost", "outcome", "why"}; "outcome" is one of
      "recovered", "refused", "crashed", "silently wrong".
    """
    rng = random.Random(f"{stage} {how} {seed}")
    for _ in range(20):
        place.begin(stage)
        if kill(place, stage, how, rng, writes):
            break
    else:
        raise RuntimeError(f"{stage}: it always ended before it was killed")
    inside, at = half_written(place.workdir), latest(place.workdir)
    ended = place.run("run")
    row = {"stage": stage, "how": how, "seed": seed, "inside_a_write": bool(inside), "half_written": inside}
    if ended.status:
        return {**row, "outcome": "crashed" if ended.crashed else "refused", "why": ended.said[-2000:]}
    different = place.differences()
    back = resumed_at(ended.said)
    if stage == "train" and at < STEPS and back != at:
        different.append(f"resumed from step {back}, the newest checkpoint was {at}")
    outcome = "silently wrong" if different else "recovered"
    return {**row, "resumed_at": at, "outcome": outcome, "why": ", ".join(different)}


def plan(count: int) -> list[tuple[str, str]]:
    """`count` pairs of stage and manner, the same for the same count; about half of them aim inside a write."""
    manners = [("train", "checkpoint"), ("predict", "write"), ("evaluate", "write"), ("report", "write")]
    manners += [("train", "moment"), ("train", "write"), ("predict", "moment"), ("evaluate", "moment")]
    manners += [("report", "moment"), ("predict", "write")]
    return [manners[i % len(manners)] for i in range(count)]
