"""`python -m sc_jax.train`: trains every member of a study; a second call finishes what the first began."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

from sc_jax import cli, ops
from sc_jax.config import Config
from sc_jax.methods import logit_statistics
from sc_jax.models import member_logits
from sc_jax.training import job as job_lib
from sc_jax.training import logs, loop, parallel, state


def train(config: Config, workdir: Path) -> None:
    """Trains to the end, from the last checkpoint if there is one."""
    job = job_lib.build(config)
    mesh = parallel.data_mesh()
    with job_lib.open_checkpoints(job, workdir) as saved:
        first = saved.latest_step() or 0
        if saved.latest_step() == job.total_steps:
            saved.meta(first)  # refuses a checkpoint that is damaged or of another config
            print(f"train: done ({job.total_steps} steps)")
            return
        made = job.model, job.optimizer, job.members, job.examples_with_targets
        if first:
            current = saved.restore(first, parallel.replicated(state.shape_of_state(*made), mesh))
            print(f"train: resuming from step {first} of {job.total_steps}")
        else:
            current = parallel.replicate(state.initial_state(*made), mesh)
        if job.total_steps == 0:  # weights from elsewhere, as they are
            saved.save(0, current)
        log = logs.TrainingLog(workdir, job.names, first)
        progress = logs.Progress(job.total_steps, first, f"training {len(job.tags)} × {config.model.name}")
        try:
            with job_lib.stepping(job, mesh, first) as advance, watching(job, mesh, workdir, first) as hooks:
                loop.fit(
                    current,
                    advance,
                    first_step=first,
                    total_steps=job.total_steps,
                    steps_per_epoch=job.steps_per_epoch,
                    log_every=config.training.log_every,
                    save_every=config.training.checkpoint_every,
                    names=job.names,
                    log=log.write,
                    save=saved.save,
                    progress=progress.update,
                    hooks=hooks,
                )
        finally:
            progress.close()
            log.close()


@contextlib.contextmanager
def watching(
    job: job_lib.Job,
    mesh: parallel.Mesh,
    workdir: Path,
    first_step: int,
    fetch: Callable[[Any], Any] = jax.device_get,
) -> Iterator[list[loop.Hook]]:
    """The hook that writes statistics of the logits to `logit_statistics.jsonl`, if the config asks for them.

    What is measured at a step is fetched, by `fetch`, when the next one is, so that dispatch does not wait for it.
    """
    t = job.config.training
    if not t.statistics_every:
        yield []
        return
    splits = (job.config.data.train_split, job.config.evaluation.calibration_split)
    batches = [job_lib.first_examples(job, split, t.statistics_examples, mesh) for split in splits]

    def measured(
        weights: Any, alpha: jax.Array, inputs: jax.Array, label: jax.Array, where: jax.Array
    ) -> tuple[Any, ...]:
        logits = member_logits(job.model, *weights, job.evaluation_transform(inputs))
        sums = logit_statistics.measure(logits, label, alpha, where)
        return sums, ops.msp(logits), ops.predicted_class(logits) != label[None], where

    measure, alpha = jax.jit(measured), parallel.replicate(job.members.alpha, mesh)
    alphas = [tag["alpha"] for tag in job.tags]
    header = {"members": job.names, "alphas": alphas, "splits": splits, "edges": logit_statistics.EDGES}
    lines = logs.Lines(workdir / "logit_statistics.jsonl", header, first_step)
    pending: list[tuple[int, Any]] = []

    def settle() -> None:
        for step, found in pending:
            told = {}
            for split, (one, score, wrong, where) in zip(splits, fetch(found), strict=True):
                ranking = logit_statistics.ranking(score[:, where], wrong[:, where])
                told[split] = {**logit_statistics.means(one), "ranking": ranking}
            lines.write({"step": step, "epoch": step / job.steps_per_epoch, **told})
        pending.clear()

    def hook(step: int, current: state.TrainState) -> None:
        if step % t.statistics_every and step != job.total_steps:
            return
        settle()
        weights = current.params, current.model_state
        pending.append((step, [measure(weights, alpha, *batch) for batch in batches]))
        if step == job.total_steps or step % t.checkpoint_every == 0:
            settle()  # what lies before a checkpoint is on disk when the checkpoint is

    try:
        yield [hook]
    finally:
        lines.close()


def main(argv: Sequence[str] | None = None) -> None:
    """The door."""
    config, workdir = cli.study_arguments("train", __doc__, argv)
    with cli.open_workdir(workdir, config, lambda: job_lib.build(config)):
        train(config, workdir)


if __name__ == "__main__":
    cli.main(main)
