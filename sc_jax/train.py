"""`python -m sc_jax.train`: trains every member of a study; a second call finishes what the first began."""

from __future__ import annotations

import contextlib
import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

from sc_jax import cli, files, ops
from sc_jax.config import Config
from sc_jax.methods import logit_statistics
from sc_jax.models import member_logits
from sc_jax.training import inference, logs, loop, parallel, processes, state
from sc_jax.training import job as job_lib


def train(config: Config, workdir: Path) -> None:
    """Trains to the end, from the last checkpoint if there is one."""
    job = job_lib.build(config)
    mesh, sharding = job.mesh, config.devices.sharding
    processes.require_same("the data set", job.dataset.fingerprint)
    parallel.meet(mesh)
    with job_lib.open_checkpoints(job, workdir) as saved:
        made = job.model, job.optimizer, job.members, job.examples_with_targets
        found = saved.restore_newest(parallel.placed(state.shape_of_state(*made), mesh, sharding))
        if found is None:
            divided = sharding == "fsdp" or config.devices.member_rows > 1
            with parallel.on_host() if divided else contextlib.nullcontext():
                drawn = state.initial_state(*made)
            first, current = 0, parallel.place(drawn, mesh, sharding)
        else:
            first, current, damaged = found
            for what in damaged:
                processes.say(f"train: {what}; it was moved to {saved.folder.name}-damaged", file=sys.stderr)
            stamps = saved.meta(first)["logs"]
            processes.from_first(lambda: [logs.require(workdir / name, stamp) for name, stamp in stamps.items()])
            if first == job.total_steps:
                processes.from_first(lambda: _write_stamps(workdir, stamps))
                processes.say(f"train: done ({job.total_steps} steps)")
                return
            processes.say(f"train: resuming from step {first} of {job.total_steps}")
        stamps, judge = {}, judging(job, mesh) if config.training.checkpoints_best else None
        if job.total_steps == 0:  # weights from elsewhere, as they are
            saved.save(0, current)
        log = logs.TrainingLog(workdir, job.names, first) if processes.first() else logs.Silent()
        what = f"training {len(job.tags)} × {config.model.name}"
        progress = logs.Progress(job.total_steps, first, what) if processes.first() else logs.Silent()
        try:
            with (
                job_lib.stepping(job, mesh, first, job.at_once) as advance,
                watching(job, mesh, workdir, first) as (hooks, settle),
                cli.noting_sigterm() as terminated,
            ):

                def save(step: int, reached: state.TrainState) -> None:
                    stamps.update({"train.jsonl": log.sync(), **settle()})  # on disk before the checkpoint is
                    regular = step % config.training.checkpoint_every == 0 or step == job.total_steps
                    saved.save(step, reached, stamps, judge(reached) if judge and regular else None)
                    if terminated(step):
                        processes.say(f"train: stopped at step {step} of {job.total_steps}, with a checkpoint")

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
                    save=save,
                    progress=progress.update,
                    hooks=hooks,
                    stop=terminated,
                    steps_at=job.steps_at,
                )
        finally:
            progress.close()
            log.close()
        processes.from_first(lambda: _write_stamps(workdir, stamps))


def _write_stamps(workdir: Path, stamps: dict[str, Any]) -> None:
    """Writes what the logs of a run hold that is done, so that whoever reads them later sees whether they are whole."""
    path = workdir / "logs.json"
    if not path.exists() or files.read_json(path) != stamps:
        files.write_json(path, stamps, seal=True)


def judging(job: job_lib.Job, mesh: parallel.Mesh) -> Callable[[state.TrainState], float]:
    """What tells checkpoints apart: the accuracy on the calibration split, as the networks would predict, in the mean over members."""
    split = job.dataset.splits[job.config.evaluation.calibration_split]
    outputs_of = parallel.map_over_devices(inference.outputs_of(job), mesh)

    def judge(reached: state.TrainState) -> float:
        (weights,) = inference.networks(job, reached, mesh)
        size, right = job.config.prediction.batch_size, 0
        batches = parallel.in_batches((split.inputs, split.example_id), size, parallel.local_rows(size, mesh))
        for start, batch in zip(itertools.count(0, size), batches, strict=False):
            logits = parallel.to_host(outputs_of(weights, parallel.divide(batch, mesh, axis=0)))["logits"]
            label = split.label[start : start + size]
            right += int((logits.argmax(-1)[:, : len(label)] == label).sum())
        return right / (len(job.tags) * len(split))

    return judge


@contextlib.contextmanager
def watching(
    job: job_lib.Job,
    mesh: parallel.Mesh,
    workdir: Path,
    first_step: int,
    fetch: Callable[[Any], Any] = jax.device_get,
) -> Iterator[tuple[list[loop.Hook], Callable[[], dict[str, Any]]]]:
    """The hook that writes statistics of the logits to `logit_statistics.jsonl`, if the config asks for them.

    What is measured at a step is fetched, by `fetch`, when the next one is, so that dispatch does not wait for it, or before a
    checkpoint: beside the hooks comes the function that does it, and stamps the file.
    """
    t = job.config.training
    if not t.statistics_every:
        yield [], dict
        return
    splits = (job.config.data.train_split, job.config.evaluation.calibration_split)
    batches = [job_lib.first_examples(job, split, t.statistics_examples, mesh) for split in splits]

    def measured(
        weights: Any, alpha: jax.Array, inputs: jax.Array, label: jax.Array, where: jax.Array
    ) -> tuple[Any, ...]:
        logits = member_logits(job.model, *weights, job.evaluation_transform(inputs))
        sums = logit_statistics.measure(logits, label, alpha, where, p=t.statistics_p)
        told = sums, ops.msp(logits), ops.predicted_class(logits) != label[None], where
        return parallel.keep_whole(told, mesh)

    measure, alpha = jax.jit(measured), parallel.replicate(job.members.alpha, mesh)
    alphas = [tag["alpha"] for tag in job.tags]
    header = {"members": job.names, "alphas": alphas, "splits": splits, "edges": logit_statistics.EDGES}
    header["p"] = t.statistics_p
    path = workdir / "logit_statistics.jsonl"
    lines = logs.Lines(path, header, first_step) if processes.first() else logs.Silent()
    pending: list[tuple[int, Any]] = []

    def settle() -> dict[str, Any]:
        for step, found in pending:
            told = {}
            for split, (one, score, wrong, where) in zip(splits, fetch(found), strict=True):
                ranking = logit_statistics.ranking(score[:, where], wrong[:, where])
                told[split] = {**logit_statistics.means(one), "ranking": ranking}
            lines.write({"step": step, "epoch": step / job.steps_per_epoch, **told})
        pending.clear()
        return {path.name: lines.sync()}

    def hook(step: int, current: state.TrainState) -> None:
        if step % t.statistics_every and step != job.total_steps:
            return
        settle()
        weights = current.params, current.model_state
        pending.append((step, [measure(weights, alpha, *batch) for batch in batches]))

    try:
        yield [hook], settle
    finally:
        lines.close()


def main(argv: Sequence[str] | None = None) -> None:
    """The door."""
    config, workdir = cli.study_arguments("train", __doc__, argv, devices=True)
    with cli.open_workdir(workdir, config, lambda: job_lib.build(config)):
        train(config, workdir)


if __name__ == "__main__":
    cli.main(main)
