"""`python -m sc_jax.cascade`: predictions of several models with their costs → the best early-exit cascade, and the whole trade-off.

python -m sc_jax.cascade --calibration=A_val.npz,B_val.npz --predictions=A_test.npz,B_test.npz --costs=40.8,126.5 --risk=0.05 --budget=1.5x --workdir=DIR

Models are named in the order in which they run. What is fitted is fitted on the calibration files and reported on the others. With `--budget` the best
policy for the task is searched on one half of the calibration files, over every order of every subset of up to three models, certified on the other half, and
written whole; without, `policy.json` is the window policy of all models in the order given.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sc_jax import cascade_pages, cli, files, predictions
from sc_jax.files import InputError
from sc_jax.methods import cascade, cascade_study, evaluation
from sc_jax.methods.cascade import Task
from sc_jax.predictions import Predictions


def read(
    calibration: Sequence[str], tests: Sequence[str], shifted: Mapping[str, Sequence[str]] | None = None
) -> cascade_study.Candidates:
    """The files of each model, checked against each other.

    Args:
      calibration, tests: a file of each model, in order; shifted: name of a shifted set → a file of each model.

    Raises:
      InputError: not as many files of either kind, or what `predictions.read_files` and `predictions.require_ids` refuse.
    """
    if len(calibration) != len(tests):
        raise InputError(
            f"--calibration names {len(calibration)} files, --predictions {len(tests)}; give both of each model, in the same order"
        )
    if len(tests) < 2:
        raise InputError("--predictions: a cascade has two models or more; name the cheapest first")
    pairs = [predictions.read_files([test], tuning) for test, tuning in zip(tests, calibration, strict=True)]
    sets = {}
    for name, paths in (shifted or {}).items():
        if len(paths) != len(tests):
            raise InputError(f"--shifted={name}: names {len(paths)} files of {len(tests)} models; give one of each")
        sets[name] = [
            predictions.read_files([path], tuning)[0][0] for path, tuning in zip(paths, calibration, strict=True)
        ]
    given = cascade_study.Candidates(
        tuple(_names(tests)), [tuning for _, tuning in pairs], [test for (test,), _ in pairs], sets
    )
    for split in (given.calibration, given.test, *sets.values()):
        for model in split[1:]:
            predictions.require_ids(model, split[0].example_id, split[0].source)
    return given


def _names(paths: Sequence[str]) -> list[str]:
    """What tells the files apart: the parts of their paths that differ."""
    parts = [Path(path).with_suffix("").parts for path in paths]
    if len({len(one) for one in parts}) > 1:
        return [Path(path).stem for path in paths]
    differ = [i for i, column in enumerate(zip(*parts, strict=True)) if len(set(column)) > 1]
    return ["/".join(one[i] for i in differ) for one in parts]


def evaluate(
    given: cascade_study.Candidates, cost: Sequence[float], unit: str, settings: cascade_study.Settings
) -> dict[str, Any]:
    """What `metrics.json` holds: a row for each model and policy, and the study under "cascades".

    Args:
      given: of `read`; cost: of each model, in `unit`; settings: how.
    """
    study = cascade_study.evaluate([given], cost, settings)
    runs = []
    for row in study["policies"]:
        metrics = {name: described["estimate"] for name, described in row["metrics"].items()}
        intervals = {name: described["interval"] for name, described in row["metrics"].items()}
        about = {
            "predictions": given.name,
            "split": given.test[0].provenance.get("split"),
            "tags": {"policy": row["policy"]},
        }
        runs.append(
            {**about, "score": settings.score, "n": study["n"], "metrics": metrics, "intervals": intervals}
            | {"intervals_cover": evaluation.covered(None), "fitted_on": given.calibration[0].provenance.get("split")}
        )
    return {"schema": evaluation.SCHEMA, "level": settings.level, "runs": runs, "cascades": {**study, "unit": unit}}


def _costs(text: str | None, unit: str | None, models: Sequence[Predictions]) -> tuple[list[float], str]:
    if text is None:
        return [cascade_study.cost_in_sidecar(model) for model in models], "MACs"
    try:
        values = [float(cost) for cost in text.split(",")]
    except ValueError:
        raise InputError(f"--costs={text}: numbers, one for each model, e.g. --costs=1,3") from None
    if len(values) != len(models):
        raise InputError(f"--costs={text}: {len(values)} of {len(models)} models; give one for each")
    if not all(math.isfinite(value) and value > 0 for value in values):
        raise InputError(f"--costs={text}: each is positive and finite")
    return values, unit or "units of cost"


def _task(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> Task:
    named = [kind for kind in TASKS if getattr(arguments, kind) is not None]
    if len(named) > 1:
        parser.error(f"--{named[0]} and --{named[1]}: name one task")
    kind = named[0] if named else "risk"
    target = 0.05 if not named else getattr(arguments, kind)
    if kind != "threshold" and not 0 < target < 1:
        parser.error(f"--{kind}={target:g}: in (0, 1)")
    return Task(kind, target)


TASKS = {
    "risk": "accept as many as keep this selective risk (the default, 0.05)",
    "coverage": "accept this share with the least risk",
    "tpr": "accept this share of in-distribution inputs and as few OOD ones as can be",
    "scod": "accept this share of in-distribution inputs; an accepted OOD input counts as an error",
    "threshold": "accept where the score is at least this",
}
"""Kind of task → what it asks for."""


def _budget(text: str | None, cost: Sequence[float], task: Task) -> float | None:
    """`--budget` in multiples of the first model's cost."""
    if text is None:
        return None
    try:
        budget = float(text.removesuffix("x")) / (1 if text.endswith("x") else cost[0])
    except ValueError:
        budget = math.nan
    if not 0 < budget < math.inf:
        raise InputError(
            f"--budget={text}: a multiple of the first model's cost such as 1.5x, or a mean cost in the unit of the costs"
        )
    if budget * cost[0] < min(cost):
        raise InputError(
            f"--budget={text}: {budget * cost[0]:g} is less than the cheapest model's {min(cost):g}; give that or more "
            "(1.5x is a multiple of the first model's cost)"
        )
    if task.kind not in cascade_study.TASKS:
        raise InputError("--budget: nothing is searched for --threshold; name --risk, --coverage, --tpr or --scod")
    return budget


def _chosen(document: dict[str, Any], asked: str) -> dict[str, Any]:
    """The policies of the budget that was asked for.

    Raises:
      InputError: there are none.
    """
    study = document["cascades"]
    if not study["search"]:
        few = study["settings"]["task"]["kind"] in ("risk", "coverage")
        wrong = "too few examples to divide" if few else "no OOD examples to choose by"
        remedy = "give more" if few else "give such, or take --risk or --coverage"
        raise InputError(f"--budget={asked}: the calibration files have {wrong}; {remedy}")
    chosen = study["chosen"][0]
    if chosen["best"] is None:
        raise InputError(
            f"--budget={asked}: no policy within it meets the task on the half of the calibration files that is searched; "
            "ask for less, or give more examples"
        )
    return chosen


def _print(document: dict[str, Any]) -> None:
    study = document["cascades"]
    print(cascade_pages.claim(study))
    for table in (cascade_pages.policy_table(study), cascade_pages.ood_table(study) if study["ood"] else None):
        if table is not None:
            print(table.markdown())
    if study["shifts"]:
        print(cascade_pages.shift_table(study).markdown())
    if study["search"]:
        print(cascade_pages.search_table(study).markdown())
    if study["chosen"]:
        print(cascade_pages.chosen_table(study).markdown())


def main(argv: Sequence[str] | None = None) -> None:
    """The door."""
    parser = cli.parser("cascade", "Predictions of several models with their costs → the best early-exit cascade.")
    parser.add_argument("--calibration", required=True, metavar="A_val.npz,B_val.npz…", help="one of each model")
    parser.add_argument("--predictions", required=True, metavar="A_test.npz,B_test.npz…", help="in the same order")
    parser.add_argument(
        "--costs", metavar="1,3…", help="of each model on one example; without, the MACs in the sidecars"
    )
    parser.add_argument("--unit", metavar="NAME", help="of --costs, for tables")
    for kind, words in TASKS.items():
        parser.add_argument(f"--{kind}", type=float, metavar=kind[0].upper(), help=f"task: {words}")
    parser.add_argument(
        "--budget",
        metavar="B",
        help="mean cost per example of the policy to be found: 1.5x of the first model's, or in its unit",
    )
    parser.add_argument(
        "--certified", action="store_true", help="also the policy whose risk and mean cost the other half certifies"
    )
    parser.add_argument(
        "--shifted", action="append", default=[], metavar="NAME=A.npz,B.npz…", help="a shifted set; may be given again"
    )
    parser.add_argument("--score", default="msp", help="one that needs no fitting: msp, negative_entropy, energy …")
    parser.add_argument("--combine", default="ensemble", choices=cascade.COMBINE, help="stages average, or replace")
    parser.add_argument("--half-width", type=float, default=0.1, metavar="W", help="share on either side of τ (0.1)")
    parser.add_argument("--delta", type=float, default=0.1, help="of the certified policies (0.1)")
    parser.add_argument("--resamples", type=int, default=1000, help="bootstrap resamples (at least 20)")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap")
    parser.add_argument("--workdir", metavar="DIR", help="writes metrics.json, policy.json, certified.json there")
    given = parser.parse_args(argv)
    task = _task(given, parser)
    if given.resamples < 20:
        parser.error(f"--resamples={given.resamples}: at least 20")
    if given.seed < 0:
        parser.error(f"--seed={given.seed}: at least 0")
    if not 0 <= given.half_width <= 1:
        parser.error(f"--half-width={given.half_width:g}: in [0, 1]")
    if not 0 < given.delta < 1:
        parser.error(f"--delta={given.delta:g}: in (0, 1)")
    cascade.scorer(given.score)
    if given.certified and (given.budget is None or task.kind != "risk"):
        parser.error("--certified: is for --risk with a --budget")
    models = read(given.calibration.split(","), given.predictions.split(","), _sets(given.shifted, parser))
    cost, unit = _costs(given.costs, given.unit, models.test)
    settings = cascade_study.Settings(
        task,
        given.score,
        given.combine,
        given.half_width,
        delta=given.delta,
        resamples=given.resamples,
        seed=given.seed,
        budget=_budget(given.budget, cost, task),
    )

    def found() -> tuple[dict[str, Any], dict[str, Any]]:
        document = evaluate(models, cost, unit, settings)
        written = {"policy": document["cascades"]["fitted"][0]["policies"]["window"]}
        if given.budget is not None:
            chosen = _chosen(document, given.budget)
            written = {"policy": chosen["best"]} | ({"certified": chosen["certified"]} if given.certified else {})
        _print(document)
        return document, written

    if not given.workdir:
        found()
        return
    workdir = Path(given.workdir)
    with files.lock(workdir):
        if (workdir / "config.json").exists():
            raise InputError(f"{workdir}: holds the run of a study; name another --workdir")
        document, written = found()
        files.write_json(workdir / "metrics.json", document)
        for name, policy in written.items():
            if policy is None:
                (workdir / f"{name}.json").unlink(missing_ok=True)
            else:
                files.write_json(workdir / f"{name}.json", policy)
    print(f"metrics: {workdir / 'metrics.json'}; `python -m sc_jax.report --workdir={workdir}` draws them")
    for name, policy in written.items():
        if policy is None:
            print(
                f"{name}: no policy keeps the risk and the budget with probability {1 - given.delta:g}; none is written"
            )
        else:
            runs = " → ".join(policy["models"])
            print(f"{name}: {workdir / f'{name}.json'} ({runs}), for `sc_jax.methods.cascade.Policy.from_json`")


def _sets(arguments: Sequence[str], parser: argparse.ArgumentParser) -> dict[str, list[str]]:
    sets = {}
    for argument in arguments:
        name, equals, paths = argument.partition("=")
        if not (name and equals and paths) or name in sets:
            parser.error(f"--shifted={argument}: NAME=A.npz,B.npz, every name once")
        sets[name] = paths.split(",")
    return sets


if __name__ == "__main__":
    cli.main(main)
