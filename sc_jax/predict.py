"""`python -m sc_jax.predict`: every member's last checkpoint on every named split → `predictions/<member>/<split>.npz`."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

import sc_jax
from sc_jax import cli, files, predictions
from sc_jax.config import Config
from sc_jax.data.pipelines import scale
from sc_jax.files import InputError
from sc_jax.models import Model, map_members
from sc_jax.training import job as job_lib
from sc_jax.training import parallel, state


def member_logits(model: Model, params: Any, model_state: Any, images: jax.Array) -> jax.Array:
    """Logits of every member: images uint8 [b, …] → float32 [m, b, k]."""

    def one(params: Any, model_state: Any) -> jax.Array:
        return model.apply(params, model_state, scale(images))[0]["logits"]

    return map_members(one, model.member_mapping)(params, model_state)


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
        missing = [split for split in config.prediction.splits if not _done(job, workdir, split, content)]
        if not missing:
            print(f"predict: done ({len(job.tags)} members × {len(config.prediction.splits)} splits)")
            return
        like = parallel.replicate(state.initial_state(job.model, job.optimizer, job.members), mesh)
        trained = saved.restore(job.total_steps, like)

    mapped = parallel.map_over_devices(lambda weights, images: member_logits(job.model, *weights, images), mesh)
    weights = (trained.params, trained.model_state)
    for split in missing:
        examples = job.dataset.splits[split]
        logits = parallel.in_batches(
            lambda images: mapped(weights, images), examples.image, config.prediction.batch_size, axis=1
        )
        for member, tags in enumerate(job.tags):
            predictions.save(
                _path(workdir, job.names[member], split),
                predictions.Predictions(
                    label=np.asarray(examples.label),
                    logits=logits[member],
                    example_id=examples.example_id,
                    provenance={
                        "dataset": job.dataset.name,
                        "split": split,
                        "tags": tags,
                        "study": config.study,
                        "variant": config.variant,
                        "step": job.total_steps,
                        "checkpoint": content,
                        "data_fingerprint": job.dataset.fingerprint,
                        "versions": versions(),
                    },
                ),
                expected_id=examples.example_id,
            )
        print(f"predict: {len(job.tags)} members on {split} ({len(examples.label)} examples)")


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    others = ("jax", "flax", "optax", "orbax-checkpoint", "numpy")
    return {"sc_jax": sc_jax.__version__, **{name: importlib.metadata.version(name) for name in others}}


def _path(workdir: Path, member: str, split: str) -> Path:
    return workdir / "predictions" / member / f"{split}.npz"


def _done(job: job_lib.Job, workdir: Path, split: str, content: str) -> bool:
    """Whether every member's file is there, whole, and from this checkpoint."""
    for member in job.names:
        path = _path(workdir, member, split)
        try:
            sidecar = files.read_json(path.with_suffix(".json"))
            if sidecar.get("checkpoint") != content or sidecar["fingerprint"] != files.fingerprint(
                files.read_npz(path)
            ):
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
