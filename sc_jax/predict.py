"""`python -m sc_jax.predict`: every member's last checkpoint on every named split → `predictions/<member>/<split>.npz`.

Of segmentation that file holds a sample of pixels; beside it stand all pixels, the images, and some pictures.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import itertools
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import sc_jax
from sc_jax import cli, files, ops, predictions
from sc_jax.config import Config
from sc_jax.files import InputError
from sc_jax.methods import pixels
from sc_jax.models import member_heads
from sc_jax.training import inference, parallel, processes, state
from sc_jax.training import job as job_lib
from sc_jax.training.logs import Progress, Silent

_SHARES, _UNFINISHED = ".shares", ".unfinished"
"""Folders in `predictions/`, while a split is predicted."""


def predict(config: Config, workdir: Path) -> None:
    """Predicts what is not predicted yet; every example id comes out exactly once, which is checked on write.

    Raises:
      InputError: training has not ended, or the checkpoint is damaged.
    """
    job = job_lib.build(config)
    mesh, sharding = job.mesh, config.devices.sharding
    processes.require_same("the data set", job.dataset.fingerprint)
    parallel.meet(mesh)
    _end_if_told()

    with job_lib.open_checkpoints(job, workdir) as saved:
        latest = processes.from_first(saved.latest_step)
        if latest != job.total_steps:
            raise InputError(
                f"{saved.folder}: training is at step {latest or 0} of {job.total_steps}; "
                "run `python -m sc_jax.train` with the same config and workdir first"
            )
        step = saved.best_step() if config.prediction.checkpoint == "best" else job.total_steps
        step = processes.from_first(lambda: step)
        if step is None:
            raise InputError(
                f"{saved.folder}: no checkpoint that was judged is whole; train again into another --workdir"
            )
        content = saved.content(step)

        def undone() -> list[str]:
            _remove_unfinished(workdir)
            return [split for split in job.predicted_splits if not _done(job, workdir, split, content)]

        missing = processes.from_first(undone)
        if not missing:
            processes.say(f"predict: done ({len(job.tags)} members × {len(job.predicted_splits)} splits)")
            return
        made = job.model, job.optimizer, job.members, job.examples_with_targets
        like = parallel.placed(state.shape_of_state(*made), mesh, sharding)
        trained = saved.restore(step, like)

    networks = inference.networks(job, trained, mesh)
    outputs_of = inference.outputs_of(job)

    def measured(weights: inference.Weights, batch: tuple[jax.Array, jax.Array, jax.Array]) -> pixels.Measured:
        inputs, label, places = batch
        return pixels.measure(outputs_of(weights, (inputs, label))["logits"], label, places)

    segmentation = job.ignore_label is not None
    cost = job.cost
    heads = parallel.to_host(member_heads(job.model, networks[0].params)) if config.prediction.features else None
    mapped = parallel.map_over_devices(measured if segmentation else outputs_of, mesh)
    together = jax.jit(lambda each: jax.numpy.stack(each, 2))

    def of_batch(batch: Any) -> Any:
        """Of an ensemble logits [M, b, m, k]: every network sees the batch before the next one is read."""
        _end_if_told()
        batch = parallel.divide(batch, mesh, axis=0)
        if len(networks) == 1:
            return mapped(networks[0], batch)
        return {"logits": together([mapped(one, batch)["logits"] for one in networks])}

    write = _write_segmented if segmentation else functools.partial(_write, heads=heads)
    for split in missing:
        about = [
            {
                "dataset": job.dataset.name,
                "split": split,
                "tags": tags,
                "study": config.study,
                "variant": config.variant,
                "step": step,
                "checkpoint": content,
                "data_fingerprint": job.dataset.fingerprint,
                "weights_hash": job.weights_hash,
                **cost,
                "versions": versions(),
                **({"ensemble": config.ensemble.kind} if config.ensemble.kind else {}),
            }
            for tags in job.tags
        ]
        n = write(job, workdir, split, of_batch, about)
        processes.say(f"predict: {len(job.tags)} members on {split} ({n} {'images' if segmentation else 'examples'})")
        _end_if_told()


def _end_if_told() -> None:
    if processes.preempted():  # alone, SIGTERM raises this by itself
        raise cli.Terminated


def _remove_unfinished(workdir: Path) -> None:
    """What a job that was killed left of a split."""
    for folder in (_SHARES, _UNFINISHED):
        shutil.rmtree(workdir / "predictions" / folder, ignore_errors=True)


def _write(
    job: job_lib.Job,
    workdir: Path,
    split: str,
    outputs_of: Callable[[tuple[np.ndarray, np.ndarray]], dict[str, Any]],
    about: Sequence[dict[str, Any]],
    heads: tuple[np.ndarray, np.ndarray] | None,
) -> int:
    """Predicts a split and writes a file for each member, logits [n, k], or [m, n, k] of an ensemble; how many examples it has.

    Each process predicts its rows of every batch; the first puts them together and writes.
    """
    examples = job.dataset.splits[split] if job.streamed else job.examples(split)
    own = _outputs(job, split, examples, outputs_of)
    folder = workdir / "predictions" / _SHARES
    if processes.several():
        _write_share(folder / f"{jax.process_index()}.npz", own)
        processes.wait_for_all(f"shares of {split}")

    def merge() -> None:
        shares = _read_shares(folder) if processes.several() else iter([own])
        _merge(job, workdir, split, examples, shares, about, heads)
        shutil.rmtree(folder, ignore_errors=True)

    processes.from_first(merge)
    return len(examples)


def _merge(
    job: job_lib.Job,
    workdir: Path,
    split: str,
    source: Any,
    shares: Iterator[Share],
    about: Sequence[dict[str, Any]],
    heads: tuple[np.ndarray, np.ndarray] | None,
) -> None:
    """Puts the shares of all processes together and writes a file for each member."""
    examples, further = _whole(job, source, shares)
    for i, (name, logits, provenance) in enumerate(zip(job.names, examples.logits, about, strict=True)):
        own: dict[str, Any] = {"logits": np.moveaxis(logits, 1, 0) if logits.ndim == 3 else logits}
        own |= {"features": further["features"][i]} if "features" in further else {}
        own |= _confidence(job, i, logits, further)
        own |= {} if heads is None else {"head_kernel": heads[0][i], "head_bias": heads[1][i]}
        predictions.save(
            _path(workdir, name, split),
            dataclasses.replace(examples, **own, provenance=provenance),
            expected_id=source.example_id,
        )


def _confidence(job: job_lib.Job, member: int, logits: np.ndarray, heads: dict[str, np.ndarray]) -> dict[str, Any]:
    """The confidence that a member's objective trained, from the head that has it; nothing where there is none."""
    which = int(job.members.objective[member])
    head = job.objectives[which - 1].objective.confidence if which else ""
    if not head:
        return {}
    of_member = heads[head][member].astype(np.float64)
    return {"confidence": ops.abstention_log_odds(logits, of_member) if head == "abstain_logit" else of_member}


def _write_segmented(
    job: job_lib.Job,
    workdir: Path,
    split: str,
    measure: Callable[[tuple[np.ndarray, np.ndarray, np.ndarray]], pixels.Measured],
    about: Sequence[dict[str, Any]],
) -> int:
    """The same of segmentation, images for examples, with the logits of one batch in memory at a time.

    What each process found out of a batch goes to all at once; the first keeps it.
    """
    source, ignore, wanted = job.dataset.splits[split], job.ignore_label, job.config.prediction.pixels
    if source.example_id.min() < 0 or source.example_id.max() >= 1 << 31:
        raise InputError(
            f"{job.dataset.name}: an image id of {split} lies outside 0..2³¹ − 1, which ids of pixels need"
        )
    unfinished = workdir / "predictions" / _UNFINISHED
    kinds, first = _kinds(job, split), processes.first()
    kept = unfinished if first and "_pixels" in kinds else None
    collectors = [pixels.Collector(kept and kept / name, ignore) for name in job.names]
    pictures: list[dict[str, np.ndarray]] = [{} for _ in job.names]
    shown = pixels.PICTURES if "_pictures" in kinds else 0
    seen: list[int] = []
    progress = Progress(len(source), 0, f"predicting {split}") if first else Silent()

    def sampled(batch: dict[str, np.ndarray]) -> list[np.ndarray]:
        ids = np.maximum(batch["example_id"], 0).tolist()
        return [pixels.sample(label, ignore, i, wanted) for label, i in zip(batch["label"], ids, strict=True)]

    try:
        rows = parallel.local_rows(job.config.prediction.batch_size, job.mesh)
        for batch in job_lib.evaluation_batches(job, split, rows):
            drawn = sampled(batch)
            # Of one shape, so that there is one program; images with fewer labelled pixels fill less of it.
            places = np.zeros((len(drawn), wanted), np.int32)
            for row, place in zip(places, drawn, strict=True):
                row[: len(place)] = place
            outputs = parallel.to_host(measure((batch["image"], batch["label"], places)))
            if processes.several():
                batch = parallel.to_host(parallel.divide(batch, job.mesh, axis=0))
                if not first:
                    continue
                drawn = sampled(batch)
            for i, example_id in enumerate(batch["example_id"].tolist()):
                if example_id < 0:
                    continue
                for member, collector in enumerate(collectors):
                    one = jax.tree.map(lambda array, at=(member, i): array[at], outputs)
                    collector.add(example_id, batch["label"][i], drawn[i], one)
                    if len(seen) < shown:
                        kept = pixels.picture(batch["image"][i], batch["label"][i], ignore, one)
                        pictures[member] |= {f"{name}_{len(seen)}": array for name, array in kept.items()}
                seen.append(example_id)
            progress.update(len(seen))
        if not first:
            return len(source)
        if collectors[0].empty:
            raise InputError(f"{job.dataset.name}: no pixel of {split} has a label; nothing can be evaluated on it")
        if sorted(seen) != sorted(source.example_id.tolist()):
            raise InputError(f"{job.dataset.name}: not every image of {split} came out exactly once; predict again")
        for name, collector, shots, provenance in zip(job.names, collectors, pictures, about, strict=True):
            path = {kind: _path(workdir, name, f"{split}{kind}") for kind in kinds}
            if shots:
                files.write_npz(path["_pictures"], shots)
                stated = {**provenance, "fingerprint": files.fingerprint(shots)}
                files.write_json(path["_pictures"].with_suffix(".json"), stated, seal=True)
            of_kind = {"_pixels": collector.pixels, "_images": collector.images, "": collector.sampled}
            for kind, written in of_kind.items():
                if kind in kinds:
                    predictions.save(path[kind], dataclasses.replace(written(), provenance=provenance))
    finally:
        progress.close()
        if first:
            shutil.rmtree(unfinished, ignore_errors=True)
    return len(seen)


class Share(NamedTuple):
    """What one process predicted of a split.

    Attributes:
      read: int [r], the places in the split that the process read; label: of those; example_id: of those.
      parts: (first of its members, places int [p], outputs [m, p, …]); places beyond the end of the split are padding.
    """

    read: np.ndarray
    label: np.ndarray
    example_id: np.ndarray
    parts: list[tuple[int, np.ndarray, dict[str, np.ndarray]]]


def _outputs(
    job: job_lib.Job,
    split: str,
    examples: Any,
    outputs_of: Callable[[tuple[np.ndarray, np.ndarray]], dict[str, Any]],
) -> Share:
    """What all members say about this process's rows of a split, whether it lies in memory or is decoded on the way."""
    batch_size = job.config.prediction.batch_size
    rows = parallel.local_rows(batch_size, job.mesh)
    if job.streamed:
        batches: Iterable[Any] = job_lib.evaluation_batches(job, split, rows)
        batches = ((batch["image"], batch["label"], batch["example_id"]) for batch in batches)
    else:
        arrays = examples.inputs, examples.label, examples.example_id
        batches = parallel.in_batches(arrays, batch_size, rows)
    progress = Progress(len(examples), 0, f"predicting {split}") if processes.first() else Silent()
    parts, read = [], []
    try:
        for start, (inputs, label, example_id) in zip(itertools.count(0, batch_size), batches, strict=False):
            for part in parallel.parts(outputs_of((inputs, example_id))):
                of_any = next(iter(part.outputs.values()))
                parts.append((part.member, start + part.row + np.arange(of_any.shape[1]), part.outputs))
            read.append((start + rows, label, example_id))
            progress.update(min(start + batch_size, len(examples)))
    finally:
        progress.close()
    place, label, example_id = (np.concatenate(column) for column in zip(*read, strict=True))
    return Share(*(column[place < len(examples)] for column in (place, label, example_id)), parts)


def _write_share(path: Path, share: Share) -> None:
    """A file with what one process predicted: arrays `read`, `label`, `example_id`, and of members i, i + 1, … `i.place` and `i.<output>`."""
    arrays = {"read": share.read, "label": share.label, "example_id": share.example_id}
    for member in {member for member, _, _ in share.parts}:
        mine = [(place, outputs) for first, place, outputs in share.parts if first == member]
        arrays[f"{member}.place"] = np.concatenate([place for place, _ in mine])
        for name in mine[0][1]:
            arrays[f"{member}.{name}"] = np.concatenate([outputs[name] for _, outputs in mine], axis=1)
    files.write_npz(path, arrays)


def _read_shares(folder: Path) -> Iterator[Share]:
    """The shares of all processes, one after the other."""
    for process in range(jax.process_count()):
        arrays = files.read_npz(folder / f"{process}.npz")
        parts: dict[str, dict[str, np.ndarray]] = {}
        for name in arrays:
            member, dot, field = name.partition(".")
            if dot:
                parts.setdefault(member, {})[field] = arrays[name]
        each = [(int(member), part.pop("place"), part) for member, part in parts.items()]
        yield Share(arrays["read"], arrays["label"], arrays["example_id"], each)


def _whole(
    job: job_lib.Job, examples: Any, shares: Iterator[Share]
) -> tuple[predictions.Predictions, dict[str, np.ndarray]]:
    """Logits [M, n, k] or [M, n, m, k] of all members, and what else was asked for, features [M, n, d] and heads [M, n]."""
    n = len(examples)
    rows = parallel.Rows(len(job.tags), n)
    label, example_id = None, np.full(n, -1, np.int64)
    for share in shares:
        label = np.zeros((n, *share.label.shape[1:]), share.label.dtype) if label is None else label
        label[share.read], example_id[share.read] = share.label, share.example_id
        for part in share.parts:
            rows.add(*part)
    outputs = rows.whole()
    if job.streamed:
        group = is_ood = None
    else:
        names = getattr(job.dataset, "group_names", ())
        group = None if examples.group is None else np.asarray(names)[examples.group]
        is_ood = examples.is_ood
    made = predictions.Predictions(label, outputs["logits"], example_id, group=group, is_ood=is_ood)
    return made, outputs


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    others = ("jax", "flax", "optax", "orbax-checkpoint", "numpy")
    return {"sc_jax": sc_jax.__version__, **{name: importlib.metadata.version(name) for name in others}}


def _path(workdir: Path, member: str, split: str) -> Path:
    return workdir / "predictions" / member / f"{split}.npz"


def _kinds(job: job_lib.Job, split: str) -> list[str]:
    """The files of a split; of segmentation the test split has more than the sample, which is all that is calibrated on."""
    more = job.ignore_label is not None and split == job.config.evaluation.test_split
    return ["", "_pixels", "_images", "_pictures"] if more else [""]


def _done(job: job_lib.Job, workdir: Path, split: str, content: str) -> bool:
    """Whether every member's files are there, whole, and from this checkpoint."""
    kinds = _kinds(job, split)
    for path in [_path(workdir, member, f"{split}{kind}") for member in job.names for kind in kinds]:
        try:
            sidecar = files.read_json(path.with_suffix(".json"), sealed=True)
            with files.open_npz(path) as arrays:
                if sidecar.get("checkpoint") != content or sidecar["fingerprint"] != files.fingerprint(arrays):
                    return False
        except (InputError, KeyError, AttributeError):
            return False
    return True


def main(argv: Sequence[str] | None = None) -> None:
    """The door."""
    config, workdir = cli.study_arguments("predict", __doc__, argv, devices=True)
    with cli.open_workdir(workdir, config, lambda: job_lib.build(config)):
        predict(config, workdir)


if __name__ == "__main__":
    cli.main(main)
