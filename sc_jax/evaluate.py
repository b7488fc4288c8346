"""`python -m sc_jax.evaluate`: predictions files → metrics with intervals, for a study or for your own logits.

python -m sc_jax.evaluate --predictions=test.npz [--calibration=validation.npz] [--selector=selector.json] [--workdir=DIR]
python -m sc_jax.evaluate --config=experiments/label_smoothing/config.py [--workdir=DIR]
"""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sc_jax import cli, files, ops, predictions, tables
from sc_jax import config as config_lib
from sc_jax.config import Config
from sc_jax.files import InputError
from sc_jax.methods import cascade_study, evaluation, guarantees, streaming, study
from sc_jax.methods import scores as scores_lib
from sc_jax.methods import selector as selector_lib
from sc_jax.methods.cascade import Task
from sc_jax.methods.selector import Selector
from sc_jax.predictions import Predictions
from sc_jax.training.logs import Progress

PICTURE_COVERAGE = 0.9
"""Of the pixels of the calibration split, the share that is accepted where pictures of segmentation are drawn."""


def _error_rate(test: Predictions) -> float:
    known = evaluation.Split.of(test).known.combined
    return float(np.average(ops.predicted_class(known.logits) != known.label, weights=known.weight))


def evaluate_files(
    tests: Sequence[Predictions],
    tuning: Predictions | None,
    settings: evaluation.Settings,
    progress: Callable[[int], None] = lambda done: None,
) -> dict[str, Any]:
    """Metrics of each file, with intervals over its examples.

    Args:
      tests, tuning: of `predictions.read_files`; settings: how; progress: receives the number of files done.

    Returns:
      What `metrics.json` holds, with the risk-coverage curves under "curves" and the reliability tables under "reliability".
    """
    document = study.document_of_files(settings)
    for done, test in enumerate(tests, 1):
        study.add_file(document, test, tuning, settings)
        progress(done)
    return document


def _selected(path: str, chosen: Selector, test: Predictions) -> list[dict[str, Any]]:
    """Rows of a selector on a file: one, and one more for each group or class that its promise is within."""
    about = {"predictions": test.source, "selector": path, "method": chosen.method, "score": chosen.score}
    about |= {"promise": str(chosen.promise), **dataclasses.asdict(chosen.promise)}
    about |= {"fitted_on": chosen.fitted_on.about.get("split") or chosen.fitted_on.source, "target": about.pop("risk")}
    return [{**about, **row._asdict()} for row in guarantees.realised(chosen, chosen(test), test)]


def evaluate_long(
    opened: predictions.Stream | predictions.Scored,
    tuning: Predictions | None,
    settings: evaluation.Settings,
    progress: Callable[[int, int, str], None] = lambda done, total, what: None,
) -> dict[str, Any]:
    """Metrics of a file of scores, or of one too long to be held in memory: one score at a time.

    Args:
      opened: scores, or predictions as a stream; tuning: another split of the same model; settings: how.
      progress: receives how much is done, of how many, and of what.

    Returns:
      As `evaluate_files`.
    """
    document = study.document_of_files(settings)
    with tempfile.TemporaryDirectory(prefix="sc_jax-scores-") as folder:
        if isinstance(opened, predictions.Scored):
            streamed = streaming.Streamed(opened, {}, {}, {}, {})
        else:
            n = len(opened)
            streamed = streaming.score_stream(
                opened, tuning, settings, Path(folder), lambda done: progress(done, n, "scoring examples")
            )
        m = len(streamed.scored.score)
        rows = streaming.evaluate_scored(streamed.scored, settings, lambda done: progress(done, m, "evaluating scores"))
    provenance, covered = opened.provenance, evaluation.covered(opened.cluster)
    for row in rows:
        score, fitted = row["score"], streamed.fitted.get(row["score"])
        document["curves"].append(study.curve_row(opened.source, score, row.pop("curve"), None, None))
        if score == "msp":
            row["metrics"] |= streamed.classifier
        about = {"predictions": opened.source, "split": provenance.get("split"), "tags": provenance.get("tags", {})}
        how = {
            "intervals_cover": covered,
            **streamed.about,
            "fitted_on": fitted and fitted["on"],
            "fitted": fitted,
        }
        document["runs"].append({**about, **row, **how})
    document["left_out"] = [study.left_out_row(opened, *item) for item in streamed.left_out.items()]
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
    if _is_built_from(target, built_from):
        print("evaluate: done")
        return
    runs = _load_runs(config, workdir)
    if config.evaluation.repair and runs[0].test.num_classes < 3:
        raise InputError("evaluation.repair: logit normalisation is not defined for two classes; leave it out")
    progress = Progress(len(runs), 0, "evaluating")
    try:
        document = study.evaluate(
            runs,
            settings_of(config),
            config.primary,
            lambda done: progress.update(done, "files"),
            with_repair=config.evaluation.repair,
        )
    finally:
        progress.close()
    document |= _segmented(config, workdir) | _cascades(config, workdir, runs)
    files.write_json(target, {"schema": evaluation.SCHEMA, "built_from": built_from, **document}, seal=True)
    print(f"evaluate: {len(document['runs'])} rows, {len(document['contrasts'])} contrasts → {target}")


def _is_built_from(target: Path, built_from: str) -> bool:
    """Whether `metrics.json` is there, whole, and of these predictions and this code."""
    if not target.exists():
        return False
    try:
        document = files.read_json(target, sealed=True)
    except InputError as error:
        print(f"evaluate: {error}; it is computed again", file=sys.stderr)
        return False
    return isinstance(document, dict) and document.get("built_from") == built_from


def _cascades(config: Config, workdir: Path, runs: Sequence[study.Run]) -> dict[str, Any]:
    """The study of cascades of the members, where the config asks for one."""
    if not config.cascade.stages:
        return {}
    how = config.cascade
    settings = cascade_study.Settings(
        Task("risk", how.risk),
        how.score,
        half_width=how.half_width,
        resamples=config.evaluation.resamples,
        level=config.evaluation.level,
        seed=config.evaluation.seed,
    )
    members = []
    for run, tag in zip(runs, config.members.tags, strict=True):
        folder = _paths(config, workdir, tag)[0].parent
        shifted = {
            f"{family} {severity}".replace("_", " "): predictions.by_id(predictions.load(folder / f"{name}.npz"))
            for name, (family, severity) in config.corrupted.items()
        }
        members.append((f"seed {run.seed}", run.calibration, run.test, shifted))
    candidates = cascade_study.disjoint(members, how.stages)
    progress = Progress(len(candidates), 0, "evaluating cascades")
    try:
        cost = [cascade_study.cost_in_sidecar(test) for test in candidates[0].test]
        found = cascade_study.evaluate(candidates, cost, settings, lambda done: progress.update(done, "cascades"))
    finally:
        progress.close()
    return {"cascades": {**found, "unit": "MACs"}}


def _paths(config: Config, workdir: Path, tag: dict[str, Any]) -> tuple[Path, Path]:
    folder = workdir / "predictions" / config_lib.member_name(tag)
    return folder / f"{config.evaluation.test_split}.npz", folder / f"{config.evaluation.calibration_split}.npz"


def _beside(path: Path, kind: str) -> Path:
    """The file of `kind` that segmentation has beside the sample of pixels."""
    return path.with_name(f"{path.stem}_{kind}.npz")


def _segmented(config: Config, workdir: Path) -> dict[str, Any]:
    """Of segmentation: metrics of all pixels and of images, and the threshold its pictures are drawn with; else nothing."""
    settings, document = settings_of(config), {}
    for tag in config.members.tags:
        test, calibration = _paths(config, workdir, tag)
        for kind in ("pixels", "images"):
            path = _beside(test, kind)
            if path.exists():
                print(f"evaluate: {path.relative_to(workdir)}")
                found = evaluate_long(predictions.load_scored(path), None, settings)
                part = document.setdefault(kind, {"runs": [], "curves": []})
                for name, rows in part.items():
                    rows += found[name]
        path = _beside(test, "pictures")
        if path.exists():
            tuning = predictions.load(calibration)
            threshold = ops.threshold_at_coverage(ops.msp(tuning.logits), PICTURE_COVERAGE, weight=tuning.weight)
            row = {**tag, "predictions": str(path), "score": "msp"}
            row |= {"threshold": float(threshold), "coverage": PICTURE_COVERAGE}
            document.setdefault("pictures", []).append({**row, "fitted_on": config.evaluation.calibration_split})
    return document


def _built_from(config: Config, workdir: Path) -> str:
    """One hash over the fingerprints of all predictions that an evaluation reads, and how it reads them."""
    found = {}
    for tag in config.members.tags:
        read = _paths(config, workdir, tag)
        if config.cascade.stages:
            read = (*read, *(read[0].with_name(f"{name}.npz") for name in config.corrupted))
        for path in read:
            sidecar = path.with_suffix(".json")
            if not sidecar.exists():
                raise InputError(
                    f"{sidecar}: not predicted yet; run `python -m sc_jax.predict` with the same config first"
                )
            found[str(path.relative_to(workdir))] = files.read_json(sidecar).get("fingerprint")
        for kind in ("pixels", "images", "pictures"):
            sidecar = _beside(_paths(config, workdir, tag)[0], kind).with_suffix(".json")
            if sidecar.exists():
                found[str(sidecar.relative_to(workdir))] = files.read_json(sidecar).get("fingerprint")
    how = {
        "code": files.fingerprint_sources("ops", "methods", "predictions.py"),
        "settings": dataclasses.asdict(settings_of(config)),
        "repair": config.evaluation.repair,
        "primary": [dataclasses.asdict(c) for c in config.primary],
        "cascade": dataclasses.asdict(config.cascade),
    }
    return files.fingerprint_json({"predictions": found, **how})


def _load_runs(config: Config, workdir: Path) -> list[study.Run]:
    runs = []
    for tag in config.members.tags:
        test, calibration = (predictions.by_id(predictions.load(path)) for path in _paths(config, workdir, tag))
        predictions.refuse_shared(test, calibration)
        runs.append(study.Run(tag.get("objective") or tag["alpha"], tag["seed"], test, calibration))
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
        "--scores", default="all", help="all that can be computed, or some of " + ", ".join(scores_lib.SCORES)
    )
    parser.add_argument(
        "--selector",
        metavar="S.json[,…]",
        help="of `python -m sc_jax.select`, fitted on other examples: was its promise kept here?",
    )
    parser.add_argument("--resamples", type=int, default=1000, help="bootstrap resamples (at least 20)")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap")
    parser.add_argument(
        "--match-error",
        metavar="E",
        help="error rate at which the AURC of different classifiers is compared; with several files, their mean by default",
    )
    parser.add_argument(
        "--workdir", metavar="DIR", help="writes metrics.json there; without it the table is only printed"
    )
    given = parser.parse_args(argv)
    if given.resamples < 20:
        parser.error(f"--resamples={given.resamples}: at least 20")
    if given.seed < 0:
        parser.error(f"--seed={given.seed}: at least 0")
    selectors = {path: selector_lib.load(path) for path in given.selector.split(",")} if given.selector else {}
    scores = tuple(scores_lib.SCORES) if given.scores == "all" else tuple(given.scores.split(","))
    scores_lib.named(scores)
    match_error = None
    if given.match_error is not None:
        try:
            match_error = float(given.match_error)
        except ValueError:
            parser.error(f"--match-error={given.match_error}: a number in [0, 1]")
        if not 0 <= match_error <= 1:
            parser.error(f"--match-error={given.match_error}: a number in [0, 1]")
    settings = evaluation.Settings(scores, tuple(range(1, 11)), 15, given.resamples, 0.95, given.seed, match_error)
    paths = given.predictions.split(",")
    work = _opened(paths, given.calibration, settings, given.scores != "all", selectors)
    if not given.workdir:
        _print(work())
        return
    target = Path(given.workdir) / "metrics.json"
    with files.lock(given.workdir):
        if (Path(given.workdir) / "config.json").exists():
            raise InputError(f"{given.workdir}: holds the run of a study; name another --workdir")
        document = work()
        _print(document)
        files.write_json(target, document, seal=True)
    print(f"metrics: {target}; `python -m sc_jax.report --workdir={given.workdir}` draws them")


def _opened(
    paths: Sequence[str],
    calibration: str | None,
    settings: evaluation.Settings,
    scores_chosen: bool,
    selectors: Mapping[str, Selector],
) -> Callable[[], dict[str, Any]]:
    """Reads and checks the files; the work itself is left to the caller. Long files and files of scores come alone."""
    twice = [path for i, path in enumerate(paths) if Path(path).resolve() in [Path(p).resolve() for p in paths[:i]]]
    if twice:
        raise InputError(f"{twice[0]}: named twice in --predictions; name each file once")
    scored = [path for path in paths if predictions.is_scored(path)]
    alone = scored or [path for path in paths if streaming.is_long(_rows(path), settings)]
    if not alone:
        tests, tuning = predictions.read_files(paths, calibration)
        if len(tests) > 1 and settings.match_error is None:
            settings = dataclasses.replace(settings, match_error=float(np.mean([_error_rate(test) for test in tests])))
        decided = [row for test in tests for path, chosen in selectors.items() for row in _selected(path, chosen, test)]

        def work() -> dict[str, Any]:
            found = _watched(
                lambda say: evaluate_files(tests, tuning, settings, lambda d: say(d, len(tests), "evaluating files"))
            )
            return {**found, "selectors": decided} if selectors else found

        return work
    if len(paths) > 1:
        raise InputError(f"{alone[0]}: files of scores, and files as long as this, are evaluated one at a time")
    if selectors:
        raise InputError(
            f"{alone[0]}: a selector decides on files of logits that are held in memory; leave out --selector, or give a part of the file"
        )
    if settings.match_error is not None:
        raise InputError(
            f"{alone[0]}: --match-error is not computed for files of scores, nor for files as long as this"
        )
    if scored and (calibration is not None or scores_chosen):
        given = "--scores" if scores_chosen else "--calibration"
        raise InputError(f"{scored[0]}: holds scores, not logits: nothing is chosen or fitted; leave out {given}")
    opened = predictions.load_scored(paths[0]) if scored else predictions.open_stream(paths[0])
    predictions.refuse_unknown_only(opened)
    tuning = None
    if calibration is not None:
        tuning = predictions.by_id(predictions.load(calibration))
        predictions.refuse_unknown_only(tuning)
        predictions.refuse_shared(opened, tuning)
    return lambda: _watched(lambda say: evaluate_long(opened, tuning, settings, say))


def _watched(work: Callable[[Callable[[int, int, str], None]], dict[str, Any]]) -> dict[str, Any]:
    """Does the work, with a bar for each kind of thing that it counts."""
    with contextlib.ExitStack() as stack:
        bars: dict[str, Progress] = {}

        def say(done: int, total: int, what: str) -> None:
            if what not in bars:
                stack.close()
                bars[what] = Progress(total, 0, what)
                stack.callback(bars[what].close)
            bars[what].update(done)

        return work(say)


def _rows(path: str) -> int:
    with files.open_npz(path) as npz:
        label = npz.get("label")
        return 0 if label is None or not label.shape else label.shape[0]


SHOWN = ("aurc", "naurc", "augrc", "failure_auroc", "coverage_at_risk_0.05", "risk_at_coverage_0.8")
"""The metrics that are printed; metrics.json and the report have all of them."""


def _print(document: dict[str, Any]) -> None:
    """A table for each file, one row per score; and what was left out, by reason."""
    from rich.console import Console
    from rich.table import Column, Table

    console = Console(markup=False, emoji=False, width=None if sys.stdout.isatty() else 400)  # names as they are
    for path in dict.fromkeys(row["predictions"] for row in document["runs"]):
        rows = [row for row in document["runs"] if row["predictions"] == path]
        about = next((row["metrics"] for row in rows if "nll" in row["metrics"]), rows[0]["metrics"])
        whole = ", ".join(f"{name} {about[name]:.4f}" for name in ("error", "nll", "brier", "ece") if name in about)
        console.print(f"\n{path}: n = {rows[0]['n']}, {whole}; brackets: 95 % intervals over its examples")
        shown = [*SHOWN] + ["aurc_at_matched_error"] * ("aurc_at_matched_error" in rows[0]["metrics"])
        shown += ["ood_auroc"] * ("ood_auroc" in rows[0]["metrics"])
        shown = [name for name in shown if any(name in row["metrics"] for row in rows)]
        chosen = any(row["fitted"] for row in rows)
        headings = [Column(tables.heading(name)) for name in shown]
        table = Table(Column("score", no_wrap=True), *headings, *(["fitted"] if chosen else []))
        for row in rows:
            cells = [tables.cell(row, name) if name in row["metrics"] else "" for name in shown]
            table.add_row(row["score"], *cells, *([_fitted(row["fitted"])] if chosen else []))
        console.print(table)
    if document.get("selectors"):
        held = tables.selector_table(document["selectors"])
        table = Table(*held.headings, title="selectors")
        for row in held.rows:
            table.add_row(*row)
        console.print(table)
    by_reason: dict[tuple[str, str], list[str]] = {}
    for row in document["left_out"]:
        by_reason.setdefault((row["predictions"], row["reason"]), []).append(row["score"])
    for (path, reason), names in by_reason.items():
        console.print(f"left out: {', '.join(names)} of {path}: {reason}", style="yellow")


def _fitted(fitted: dict[str, Any] | None) -> str:
    if fitted is None:
        return ""
    if fitted.get("uses") == "msp":
        return "MSP"
    parts = [f"p = {fitted['p']}"] if fitted.get("p") else []
    parts += [f"T = {fitted['temperature']:g}"] if "temperature" in fitted else []
    return ", ".join(parts) or "yes"


if __name__ == "__main__":
    cli.main(main)
