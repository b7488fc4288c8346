"""`python -m sc_jax.evaluate`: predictions files → metrics with intervals, for a study or for your own logits.

python -m sc_jax.evaluate --predictions=test.npz [--calibration=validation.npz] [--workdir=DIR]
python -m sc_jax.evaluate --config=experiments/label_smoothing/config.py [--workdir=DIR]
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sc_jax import cli, files, predictions
from sc_jax.config import Config
from sc_jax.files import InputError
from sc_jax.methods import evaluation, study
from sc_jax.methods import scores as scores_lib
from sc_jax.ops import resampling
from sc_jax.predictions import Predictions
from sc_jax.training.logs import Progress

SCHEMA = 1


def refuse_shared(test: Predictions, calibration: Predictions) -> None:
    """Refuses a calibration file that holds examples of the test file.

    Raises:
      InputError: the files are the same, name the same split or another model, or share examples: by id, or by rows of
        label and logits that are one of a kind in both.
    """
    here, there = test.provenance, calibration.provenance
    if Path(test.source).resolve() == Path(calibration.source).resolve() or (
        here.get("split") is not None and all(here.get(key) == there.get(key) for key in ("dataset", "split"))
    ):
        raise InputError(
            f"{calibration.source}: the calibration file is of the same split as {test.source}; "
            "what is fitted on a split is not reported on it: give another split of the same model"
        )
    for key in ("checkpoint", "tags"):
        if key in here and key in there and here[key] != there[key]:
            raise InputError(
                f"{calibration.source}: is of another model than {test.source} ({key} differ in their sidecars); "
                "give another split of the same model"
            )
    if test.num_classes != calibration.num_classes:
        raise InputError(
            f"{calibration.source}, field 'logits': k = {calibration.num_classes} classes, {test.source} has "
            f"{test.num_classes}; give another split of the same model"
        )
    if test.ids_given and calibration.ids_given:
        shared = np.intersect1d(test.example_id, calibration.example_id)
        if len(shared):
            raise InputError(
                f"{calibration.source}, field 'example_id': {len(shared)} ids are in {test.source} too (first "
                f"{shared[0]}); give a calibration file that shares no example, or, if these are other examples, other ids"
            )
    repeated = predictions.shared_rows(test, calibration)
    if repeated > max(1, len(calibration) // 100):
        raise InputError(
            f"{calibration.source}: {repeated} of its {len(calibration)} rows (label and logits) are in {test.source} too; "
            "give a calibration file that shares no example"
        )


def read_files(paths: Sequence[str], calibration: str | None) -> tuple[list[Predictions], Predictions | None]:
    """The files as one classifier each, in order of id, checked singly and against the calibration file."""
    tests = [predictions.by_id(evaluation.combined(predictions.load(path))) for path in paths]
    tuning = None if calibration is None else predictions.by_id(evaluation.combined(predictions.load(calibration)))
    if tuning is not None:
        for test in tests:
            refuse_shared(test, tuning)
    return tests, tuning


def evaluate_files(
    tests: Sequence[Predictions], tuning: Predictions | None, settings: evaluation.Settings
) -> dict[str, Any]:
    """Metrics of each file, with intervals over its examples.

    Args:
      tests, tuning: of `read_files`; settings: how.

    Returns:
      What `metrics.json` holds, with the risk-coverage curves under "curves".
    """
    document: dict[str, Any] = {
        "schema": SCHEMA,
        "level": settings.level,
        "runs": [],
        "left_out": [],
        "curves": [],
    }
    for test in tests:
        counts = resampling.resample_counts(settings.seed, len(test), settings.resamples)
        tuning_counts = (
            None if tuning is None else resampling.resample_counts(settings.seed + 1, len(tuning), settings.resamples)
        )
        results, left_out = evaluation.evaluate(test, tuning, settings, counts, tuning_counts)
        document["runs"] += study.run_rows(test, results)
        document["left_out"] += [study.left_out_row(test, *item) for item in left_out.items()]
        for score, result in results.items():
            low, high = resampling.percentile_interval(result.curve_replicates, settings.level)
            document["curves"].append(
                {
                    "predictions": test.source,
                    "score": score,
                    "coverage": evaluation.COVERAGES,
                    "risk": result.curve,
                    "low": low,
                    "high": high,
                }
            )
    return document


def settings_of(config: Config) -> evaluation.Settings:
    """The part of a config that says how files are evaluated."""
    e = config.evaluation
    return evaluation.Settings(e.scores, e.p_grid, e.ece_bins, e.resamples, e.level, e.seed)


def evaluate_study(config: Config, workdir: Path) -> None:
    """Evaluates the predictions in `workdir` and writes `metrics.json`, unless they are those it was written from."""
    scores_lib.named(config.evaluation.scores)
    target = workdir / "metrics.json"
    built_from = _built_from(config, workdir)
    if target.exists() and files.read_json(target).get("built_from") == built_from:
        print("evaluate: done")
        return
    runs = _load_runs(config, workdir)
    progress = Progress(len(runs), 0, "evaluating")
    try:
        document = study.evaluate(
            runs, settings_of(config), config.primary, lambda done: progress.update(done, "files")
        )
    finally:
        progress.close()
    files.write_json(target, {"schema": SCHEMA, "built_from": built_from, **document})
    print(f"evaluate: {len(document['runs'])} rows, {len(document['contrasts'])} contrasts → {target}")


def _members(config: Config) -> list[tuple[float, int]]:
    return [(alpha, seed) for alpha in config.members.alphas for seed in config.members.seeds]


def _paths(config: Config, workdir: Path, alpha: float, seed: int) -> tuple[Path, Path]:
    folder = workdir / "predictions" / f"alpha={alpha:g}-seed={seed}"
    return folder / f"{config.evaluation.test_split}.npz", folder / f"{config.evaluation.calibration_split}.npz"


def _built_from(config: Config, workdir: Path) -> str:
    """One hash over the fingerprints of all predictions that an evaluation reads, and how it reads them."""
    found = {}
    for member in _members(config):
        for path in _paths(config, workdir, *member):
            sidecar = path.with_suffix(".json")
            if not sidecar.exists():
                raise InputError(
                    f"{sidecar}: not predicted yet; run `python -m sc_jax.predict` with the same config first"
                )
            found[str(path.relative_to(workdir))] = files.read_json(sidecar).get("fingerprint")
    how = {
        "code": files.fingerprint_sources("ops", "methods", "predictions.py"),
        "settings": dataclasses.asdict(settings_of(config)),
        "primary": [dataclasses.asdict(c) for c in config.primary],
    }
    return files.fingerprint_json({"predictions": found, **how})


def _load_runs(config: Config, workdir: Path) -> list[study.Run]:
    runs = []
    for alpha, seed in _members(config):
        test, calibration = (predictions.by_id(predictions.load(path)) for path in _paths(config, workdir, alpha, seed))
        refuse_shared(test, calibration)
        runs.append(study.Run(alpha, seed, test, calibration))
        for this, first in ((test, runs[0].test), (calibration, runs[0].calibration)):
            predictions.require_ids(this, first.example_id, first.source)
            if not np.array_equal(this.label, first.label):
                raise InputError(
                    f"{this.source}, field 'label': differs from {first.source} for the same ids; predict again"
                )
    return runs


def main(argv: Sequence[str] | None = None) -> None:
    """The door: a study with `--config`, any files with `--predictions`."""
    argv = sys.argv[1:] if argv is None else argv
    if any(argument.split("=")[0] == "--config" for argument in argv):
        config, workdir = cli.study_arguments("evaluate", __doc__, argv)
        with cli.open_workdir(workdir, config):
            evaluate_study(config, workdir)
        return
    parser = cli.parser("evaluate", "Predictions files → metrics with intervals.")
    parser.epilog = "A study's own predictions: --config=FILE[:VARIANT] [--workdir=DIR] in place of all of these."
    parser.add_argument("--predictions", required=True, metavar="A.npz[,B.npz…]", help="label[n] and logits[n, k]")
    parser.add_argument(
        "--calibration", metavar="V.npz", help="another split of the same model, for scores that need tuning"
    )
    parser.add_argument(
        "--scores", default="msp,max_logit_pnorm,max_logit_pnorm_or_msp", help="of " + ", ".join(scores_lib.SCORES)
    )
    parser.add_argument("--resamples", type=int, default=1000, help="bootstrap resamples (at least 20)")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap")
    parser.add_argument(
        "--workdir", metavar="DIR", help="writes metrics.json there; without it the table is only printed"
    )
    given = parser.parse_args(argv)
    if given.resamples < 20:
        parser.error(f"--resamples={given.resamples}: at least 20")
    if given.seed < 0:
        parser.error(f"--seed={given.seed}: at least 0")
    scores = tuple(given.scores.split(","))
    scores_lib.named(scores)
    settings = evaluation.Settings(scores, tuple(range(1, 11)), 15, given.resamples, 0.95, given.seed)
    tests, tuning = read_files(given.predictions.split(","), given.calibration)
    if not given.workdir:
        _print_table(evaluate_files(tests, tuning, settings))
        return
    target = Path(given.workdir) / "metrics.json"
    with files.lock(given.workdir):
        if (Path(given.workdir) / "config.json").exists():
            raise InputError(f"{given.workdir}: holds the run of a study; name another --workdir")
        document = evaluate_files(tests, tuning, settings)
        _print_table(document)
        files.write_json(target, document)
    print(f"metrics: {target}; `python -m sc_jax.report --workdir={given.workdir}` draws them")


def _print_table(document: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Column, Table

    console = Console(markup=False, emoji=False, width=None if sys.stdout.isatty() else 120)  # names as they are
    for path in dict.fromkeys(row["predictions"] for row in document["runs"]):
        rows = [row for row in document["runs"] if row["predictions"] == path]
        console.print(f"\n{path}: n = {rows[0]['n']}, 95 % intervals over its examples")
        table = Table(Column("metric", no_wrap=True), *(row["score"] for row in rows))
        for name in dict.fromkeys(name for row in rows for name in row["metrics"]):
            cells = [
                f"{row['metrics'][name]:.4f} [{row['intervals'][name][0]:.4f}, {row['intervals'][name][1]:.4f}]"
                if name in row["metrics"]
                else ""
                for row in rows
            ]
            table.add_row(name, *cells)
        if any(row["fitted"] for row in rows):
            fitted = [row["fitted"] for row in rows]
            chosen = ["" if f is None else "MSP" if f["p"] is None else f"p = {f['p']}" for f in fitted]
            table.add_row("chosen on the calibration file", *chosen)
        console.print(table)
    for row in document["left_out"]:
        console.print(f"left out: {row['score']} of {row['predictions']}: {row['reason']}", style="yellow")


if __name__ == "__main__":
    cli.main(main)
