"""Checkpoints by Orbax, with a content hash of every leaf that is checked on restore. The only importer of Orbax.

Orbax writes `<step>/` under a temporary name and renames it, so a kill leaves whole checkpoints and a folder
`*.orbax-checkpoint-tmp`, which is ignored and later replaced. It restores a flipped bit in array data silently; hence
the hashes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import itertools
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from orbax import checkpoint as ocp

from sc_jax.files import InputError, fingerprint_json
from sc_jax.training import parallel, processes

_ELSEWHERE = "in another process"

_OF_DAMAGE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG)
"""What the file system says where a checkpoint lacks a file, or where a damaged one names another."""


class CannotReadError(InputError):
    """A checkpoint cannot be read now, for a reason that says nothing of what it holds."""


def leaf_hashes(tree: Any) -> dict[str, str]:
    """Path of each leaf → SHA-256 over its dtype, shape and bytes."""
    hashes = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = np.ascontiguousarray(parallel.to_host(leaf))
        digest = hashlib.sha256(f"{array.dtype.str}|{array.shape}|".encode())
        digest.update(array.reshape(-1).view(np.uint8).data if array.size else b"")
        hashes[jax.tree_util.keystr(path)] = digest.hexdigest()
    return hashes


class Checkpoints:
    """The checkpoints of one run in one folder; use as a context manager.

    Args:
      folder: where the steps lie.
      config: what the run was asked for; saved with each checkpoint, compared on restore.
      keep: how many of the newest are kept.
      best: how many are kept beside them, those of the highest quality.
    """

    def __init__(self, folder: str | Path, config: dict[str, Any], keep: int = 2, best: int = 0):
        self.folder = Path(folder).absolute()
        self._config = config
        kept = _Kept(keep, best, self._quality)
        try:
            self._manager = ocp.CheckpointManager(
                self.folder,
                options=ocp.CheckpointManagerOptions(
                    preservation_policy=kept, enable_async_checkpointing=False, create=True
                ),
                item_handlers={"state": ocp.StandardCheckpointHandler(), "meta": ocp.JsonCheckpointHandler()},
            )
        except Exception as error:  # of a damaged `_CHECKPOINT_METADATA` Orbax raises a ValueError
            if _passes(error):
                raise CannotReadError(
                    f"{self.folder}: cannot be read now ({_first_line(error)}); it is left as it is"
                ) from error
            raise InputError(
                f"{self.folder}: cannot be used for checkpoints ({_first_line(error)}); move the newest away if it is damaged, "
                "or name another --workdir"
            ) from error

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *_: object) -> None:
        self._manager.close()

    def latest_step(self) -> int | None:
        """The newest whole checkpoint, or None."""
        return self._manager.latest_step()

    def best_step(self) -> int | None:
        """The whole checkpoint of the highest quality, the earliest of several; None where none was judged."""
        judged = {step: self._quality(step) for step in sorted(self._manager.all_steps())}
        return max((step for step in judged if judged[step] is not None), key=judged.__getitem__, default=None)

    def _quality(self, step: int) -> float | None:
        """None of a damaged one. Not agreed upon: Orbax asks for it where a process may be alone.

        Raises:
          CannotReadError: it may be the best, so that nothing can be chosen or removed.
        """
        try:
            meta = self._read_meta(step)
            sealed = meta.pop("seal") == fingerprint_json(meta)
            return meta["quality"] if sealed and meta["config"] == self._config else None
        except Exception as error:  # Orbax raises whatever the damaged file makes it stumble over
            if _passes(error):
                raise self._cannot_read(step, _first_line(error)) from error
            if processes.lost(error):
                raise
            return None

    def _read_meta(self, step: int) -> dict[str, Any]:
        with _quiet():
            return self._manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore())).meta

    def save(self, step: int, state: Any, logs: Mapping[str, Any] | None = None, quality: float | None = None) -> None:
        """Writes `state` as checkpoint `step` and returns when it is whole on disk.

        Args:
          step: its number; state: a tree of arrays.
          logs: JSON that goes with it; `meta` has it under "logs".
          quality: by which the best ones are kept; None for one that is not among them.

        Raises:
          InputError: the disk is full or cannot be written; earlier checkpoints are untouched.
        """
        state = parallel.to_host(state)  # copies: nothing may change between the hash and the write
        meta = {"step": step, "hashes": leaf_hashes(state), "config": self._config, "logs": dict(logs or {})}
        meta |= {"quality": quality}
        meta |= {"seal": fingerprint_json(meta)}
        try:
            with _quiet():
                self._manager.save(
                    step, args=ocp.args.Composite(state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(meta))
                )
                self._manager.wait_until_finished()
        except Exception as error:  # Orbax raises whatever its storage raises: of a full disk a ValueError
            if processes.lost(error):
                raise
            raise InputError(
                f"{self.folder}: cannot write checkpoint {step} ({_first_line(error)}); earlier ones are intact: make room, "
                "the same command goes on from the last"
            ) from error

    def meta(self, step: int) -> dict[str, Any]:
        """What was saved beside the state: step, hash of each leaf, config, logs, quality.

        Raises:
          InputError: it is damaged, or belongs to another config; `CannotReadError` if it cannot be read now.
        """
        with self._everywhere(step, "its metadata cannot be read"):
            meta = self._read_meta(step)
            sealed = meta.pop("seal") == fingerprint_json(meta)
        if not processes.all_say(sealed):
            raise self._damaged(step, "its metadata are not what was saved")
        if meta["step"] != step:
            raise self._damaged(step, f"it was saved as step {meta['step']}")
        if meta["config"] != self._config:
            raise InputError(f"{self.folder / str(step)}: was written for another config; name another --workdir")
        return meta

    def content(self, step: int) -> str:
        """One hash over the hashes of all leaves: names the content of a checkpoint without reading it."""
        return fingerprint_json(self.meta(step)["hashes"])

    def restore(self, step: int, like: Any) -> Any:
        """Reads checkpoint `step` and checks the hash of every leaf.

        Args:
          step: one that exists.
          like: a tree of arrays with the structure, shapes and dtypes to expect; the result is placed as it is.

        Raises:
          InputError: structure, shape, dtype or content differ from what was saved; the leaf is named. `CannotReadError` if
            memory, the file system or another passing thing is in the way.
        """
        wanted = self.meta(step)["hashes"]
        with self._everywhere(step, "its arrays cannot be read"):
            template = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
            with _quiet():
                wanted_state = ocp.args.Composite(state=ocp.args.StandardRestore(template))
                state = self._manager.restore(step, args=wanted_state).state
            found = leaf_hashes(state)
        wrong = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
        if not processes.all_say(not wrong):
            told = (
                f"{len(wrong)} of {len(found)} leaves are not what was saved (first: {wrong[0]})"
                if wrong
                else _ELSEWHERE
            )
            raise self._damaged(step, told)
        return state

    @contextlib.contextmanager
    def _everywhere(self, step: int, problem: str) -> Iterator[None]:
        """What one process cannot read counts as damaged, or as not to be read now, in all of them, so that they stay together."""
        caught = None
        try:
            yield
        except Exception as error:  # Orbax raises whatever its storage raises
            of_storage = isinstance(error, ValueError) and str(self.folder) in str(error)  # with the form of XLA's
            if processes.lost(error) and not _passes(error) and not of_storage:
                raise
            caught = error
        told = _ELSEWHERE if caught is None else _first_line(caught)
        if not processes.all_say(caught is None or not _passes(caught)):
            raise self._cannot_read(step, told) from caught
        if not processes.all_say(caught is None):
            raise self._damaged(step, f"{problem} ({told})") from caught

    def restore_newest(self, like: Any) -> tuple[int, Any, list[str]] | None:
        """The newest checkpoint that is whole; those after it that are not are moved to `<folder>-damaged`.

        Args:
          like: as for `restore`.

        Returns:
          Its step, its state, and what was wrong with each one that was moved; None where there is no checkpoint at all.

        Raises:
          InputError: none is whole, or one cannot be read now (`CannotReadError`); they are left as they are, and what is wrong with
            the newest, or with that one, is said.
        """
        refused: list[tuple[int, InputError]] = []
        for step in processes.from_first(lambda: sorted(self._manager.all_steps(), reverse=True)):
            try:
                state = self.restore(step, like)
            except CannotReadError:  # the next one that can be read may be far behind
                raise
            except InputError as error:
                refused.append((step, error))
                continue
            if refused:
                processes.from_first(lambda: [self._set_aside(other) for other, _ in refused])
                self._manager.reload()
            return step, state, [str(error) for _, error in refused]
        if refused:
            raise refused[0][1]
        return None

    def _set_aside(self, step: int) -> None:
        there = self.folder.with_name(f"{self.folder.name}-damaged")
        try:
            there.mkdir(exist_ok=True)
            numbers = (f"{step}.{i}" if i else str(step) for i in itertools.count())
            (self.folder / str(step)).rename(next(there / n for n in numbers if not (there / n).exists()))
        except OSError as error:
            raise InputError(f"{self.folder / str(step)}: damaged, and cannot be moved to {there} ({error})") from error

    def _cannot_read(self, step: int, what: str) -> CannotReadError:
        return CannotReadError(
            f"{self.folder / str(step)}: cannot be read now ({what}); the checkpoint is left as it is"
        )

    def _damaged(self, step: int, what: str) -> InputError:
        earlier = [other for other in self._manager.all_steps() if other < step]
        remedy = f"train again, from step {max(earlier)}" if earlier else "delete it to train again"
        return InputError(f"{self.folder / str(step)}: checkpoint damaged: {what}; {remedy}")


@dataclasses.dataclass(frozen=True)
class _Kept:
    """Which checkpoints Orbax keeps: the `newest`, and the `best` of those that have a quality."""

    newest: int
    best: int
    quality: Callable[[int], float | None]

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """As Orbax asks, of checkpoints in increasing order of step."""
        steps = [info.step for info in checkpoints]
        kept = set(sorted(steps)[-self.newest :])
        if self.best:
            judged = {step: self.quality(step) for step in steps}
            ranked = sorted(
                (step for step in steps if judged[step] is not None), key=lambda step: (-judged[step], step)
            )
            kept |= set(ranked[: self.best])
        return [step in kept for step in steps]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Orbax logs what it raises, with its stack, and leaves reads and writes behind that end after it; what is raised becomes a line of ours."""
    log, told = logging.getLogger("absl"), sys.unraisablehook
    before = log.level

    def tell(left: Any) -> None:
        code = getattr(left.object, "cr_code", None)  # of a coroutine
        theirs = code is not None and f"{os.sep}orbax{os.sep}" in code.co_filename
        if not theirs and str(left.exc_value) != "Event loop is closed":
            told(left)

    log.setLevel(logging.CRITICAL)
    sys.unraisablehook = tell
    try:
        yield
        sys.unraisablehook = told  # else not yet: the others are still to end
    finally:
        log.setLevel(before)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__


def _passes(error: BaseException | None) -> bool:
    """Whether what went wrong lies in memory or the file system rather than in what was read: of this error or one that it came of."""
    while error is not None:
        if isinstance(error, (MemoryError, CannotReadError)) or "RESOURCE_EXHAUSTED" in str(error):
            return True
        code = re.search(r"os_error_code='(\d+)'", str(error))  # TensorStore raises ValueErrors
        number = int(code[1]) if code else error.errno if isinstance(error, OSError) else None
        if number is not None and number not in _OF_DAMAGE:
            return True
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return False
