"""`python -m sc_jax.predict`: every member's last checkpoint on every named split → `predictions/<member>/<split>.npz`.

Of segmentation that file holds a sample of pixels; beside it stand all pixels, the images, and some pictures.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

import sc_jax
from sc_jax import cli, files, ops, predictions
from sc_jax.config import Config
from sc_jax.files import InputError
from sc_jax.methods import pixels
from sc_jax.models import member_heads
from sc_jax.training import inference, parallel, state
from sc_jax.training import job as job_lib
from sc_jax.training.logs import Progress


def predict(config: Config, workdir: Path) -> None:
    """Predicts what is not predicted yet; every example id comes out exactly once, which is checked on write.

    Raises:
      InputError: training has not ended, or the checkpoint is damaged.
    """
    job = job_lib.build(config)
    mesh = parallel.data_mesh()

    with job_lib.open_checkpoints(job, workdir) as saved:
        if saved.latest_step() != job.total_steps:
            raise InputError(
                f"{saved.folder}: training is at step {saved.latest_step() or 0} of {job.total_steps}; "
                "run `python -m sc_jax.train` with the same config and workdir first"
            )
        content = saved.content(job.total_steps)
        missing = [split for split in job.predicted_splits if not _done(job, workdir, split, content)]
        if not missing:
            print(f"predict: done ({len(job.tags)} members × {len(job.predicted_splits)} splits)")
            return
        made = job.model, job.optimizer, job.members, job.examples_with_targets
        like = parallel.replicated(state.shape_of_state(*made), mesh)
        trained = saved.restore(job.total_steps, like)

    networks = inference.networks(job, trained, mesh)
    outputs_of = inference.outputs_of(job)

    def measured(weights: inference.Weights, batch: tuple[jax.Array, jax.Array, jax.Array]) -> pixels.Measured:
        inputs, label, places = batch
        return pixels.measure(outputs_of(weights, (inputs, label))["logits"], label, places)

    segmentation = job.ignore_label is not None
    cost = job.cost
    heads = jax.device_get(member_heads(job.model, networks[0].params)) if config.prediction.features else None
    mapped = parallel.map_over_devices(measured if segmentation else outputs_of, mesh)

    def of_batch(batch: Any) -> Any:
        """Of an ensemble logits [M, b, m, k]: every network sees the batch before the next one is read."""
        if len(networks) == 1:
            return mapped(networks[0], batch)
        return {"logits": np.stack([mapped(one, batch)["logits"] for one in networks], 2)}

    write = _write_segmented if segmentation else functools.partial(_write, heads=heads)
    for split in missing:
        about = [
            {
                "dataset": job.dataset.name,
                "split": split,
                "tags": tags,
                "study": config.study,
                "variant": config.variant,
                "step": job.total_steps,
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
        print(f"predict: {len(job.tags)} members on {split} ({n} {'images' if segmentation else 'examples'})")


def _write(
    job: job_lib.Job,
    workdir: Path,
    split: str,
    outputs_of: Callable[[tuple[np.ndarray, np.ndarray]], dict[str, Any]],
    about: Sequence[dict[str, Any]],
    heads: tuple[np.ndarray, np.ndarray] | None,
) -> int:
    """Predicts a split and writes a file for each member, logits [n, k], or [m, n, k] of an ensemble; how many examples it has."""
    examples, further = _outputs(job, split, outputs_of)
    for i, (name, logits, provenance) in enumerate(zip(job.names, examples.logits, about, strict=True)):
        own: dict[str, Any] = {"logits": np.moveaxis(logits, 1, 0) if logits.ndim == 3 else logits}
        own |= {"features": further["features"][i]} if "features" in further else {}
        own |= _confidence(job, i, logits, further)
        own |= {} if heads is None else {"head_kernel": heads[0][i], "head_bias": heads[1][i]}
        predictions.save(
            _path(workdir, name, split),
            dataclasses.replace(examples, **own, provenance=provenance),
            expected_id=examples.example_id,
        )
    return len(examples)


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
    """The same of segmentation, images for examples, with the logits of one batch in memory at a time."""
    source, ignore, wanted = job.dataset.splits[split], job.ignore_label, job.config.prediction.pixels
    if source.example_id.min() < 0 or source.example_id.max() >= 1 << 31:
        raise InputError(
            f"{job.dataset.name}: an image id of {split} lies outside 0..2³¹ − 1, which ids of pixels need"
        )
    unfinished = workdir / "predictions" / ".unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)  # of a process that was killed
    kinds = _kinds(job, split)
    collectors = [pixels.Collector(unfinished / name if "_pixels" in kinds else None, ignore) for name in job.names]
    pictures: list[dict[str, np.ndarray]] = [{} for _ in job.names]
    shown = pixels.PICTURES if "_pictures" in kinds else 0
    seen: list[int] = []
    progress = Progress(len(source), 0, f"predicting {split}")
    try:
        for batch in job_lib.evaluation_batches(job, split):
            drawn = [
                pixels.sample(label, ignore, max(0, int(i)), wanted)
                for label, i in zip(batch["label"], batch["example_id"], strict=True)
            ]
            # Of one shape, so that there is one program; images with fewer labelled pixels fill less of it.
            places = np.zeros((len(drawn), wanted), np.int32)
            for row, place in zip(places, drawn, strict=True):
                row[: len(place)] = place
            outputs = jax.device_get(measure((batch["image"], batch["label"], places)))
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
        if collectors[0].empty:
            raise InputError(f"{job.dataset.name}: no pixel of {split} has a label; nothing can be evaluated on it")
        if sorted(seen) != sorted(source.example_id.tolist()):
            raise InputError(f"{job.dataset.name}: not every image of {split} came out exactly once; predict again")
        for name, collector, shots, provenance in zip(job.names, collectors, pictures, about, strict=True):
            path = {kind: _path(workdir, name, f"{split}{kind}") for kind in kinds}
            if shots:
                files.write_npz(path["_pictures"], shots)
                stated = {**provenance, "fingerprint": files.fingerprint(shots)}
                files.write_json(path["_pictures"].with_suffix(".json"), stated)
            of_kind = {"_pixels": collector.pixels, "_images": collector.images, "": collector.sampled}
            for kind, written in of_kind.items():
                if kind in kinds:
                    predictions.save(path[kind], dataclasses.replace(written(), provenance=provenance))
    finally:
        progress.close()
        shutil.rmtree(unfinished, ignore_errors=True)
    return len(seen)


def _outputs(
    job: job_lib.Job, split: str, outputs_of: Callable[[tuple[np.ndarray, np.ndarray]], dict[str, Any]]
) -> tuple[predictions.Predictions, dict[str, np.ndarray]]:
    """What all members say about a split, logits [M, n, k] or [M, n, m, k], and what else was asked for, features [M, n, d] and heads
    [M, n]; whether it lies in memory or is decoded on the way."""
    if not job.streamed:
        examples = job.examples(split)
        batches = examples.inputs, examples.example_id
        outputs = parallel.in_batches(outputs_of, batches, job.config.prediction.batch_size, axis=1)
        names = getattr(job.dataset, "group_names", ())
        group = None if examples.group is None else np.asarray(names)[examples.group]
        label, is_ood = np.asarray(examples.label), examples.is_ood
        made = predictions.Predictions(label, outputs["logits"], examples.example_id, group=group, is_ood=is_ood)
        return made, outputs
    parts = []
    examples = job.dataset.splits[split]
    progress = Progress(len(examples), 0, f"predicting {split}")
    try:
        for batch in job_lib.evaluation_batches(job, split):
            real = batch["example_id"] >= 0
            outputs = jax.device_get(outputs_of((batch["image"], batch["example_id"])))
            parts.append((batch["label"][real], {k: v[:, real] for k, v in outputs.items()}, batch["example_id"][real]))
            progress.update(sum(len(part[0]) for part in parts))
    finally:
        progress.close()
    labels, found, ids = zip(*parts, strict=True)
    whole = {name: np.concatenate([one[name] for one in found], axis=1) for name in found[0]}
    made = predictions.Predictions(np.concatenate(labels), whole["logits"], np.concatenate(ids))
    return made, whole


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
            sidecar = files.read_json(path.with_suffix(".json"))
            with files.open_npz(path) as arrays:
                if sidecar.get("checkpoint") != content or sidecar["fingerprint"] != files.fingerprint(arrays):
                    return False
        except (InputError, KeyError, AttributeError):
            return False
    return True


def main(argv: Sequence[str] | None = None) -> None:
    """The door."""
    config, workdir = cli.study_arguments("predict", __doc__, argv)
    with cli.open_workdir(workdir, config, lambda: job_lib.build(config)):
        predict(config, workdir)


if __name__ == "__main__":
    cli.main(main)
