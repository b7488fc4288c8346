"""`python -m sc_jax.ensemble`: predictions of several members → every score of each and of their combinations, diversity, metrics against m.

python -m sc_jax.ensemble --predictions=A_test.npz,B_test.npz,C_test.npz [--calibration=A_val.npz,B_val.npz,C_val.npz] [--workdir=DIR]

A file may hold several members, logits [m, n, k]. With calibration files, in the same order, weights of least log loss are fitted in probability
and in logit space; the combinations are written as predictions of one classifier, for any other door.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sc_jax import cli, ensemble_pages, files, predictions
from sc_jax.files import InputError
from sc_jax.methods import ensemble_study, evaluation
from sc_jax.methods import scores as scores_lib
from sc_jax.predictions import Predictions
from sc_jax.training.logs import Progress


def read(
    tests: Sequence[str], calibrations: Sequence[str] | None
) -> tuple[list[Predictions], list[Predictions] | None]:
    """The files of the members, and those of the calibration split in the same order.

    Raises:
      InputError: not as many of either kind, a file that comes twice, fewer than two members, or what `predictions.read_files` refuses.
    """
    twice = [path for i, path in enumerate(tests) if path in tests[:i]]
    if twice:
        raise InputError(f"{twice[0]}: named twice in --predictions; a member counts once")
    if calibrations is not None and len(calibrations) != len(tests):
        raise InputError(
            f"--calibration names {len(calibrations)} files, --predictions {len(tests)}; give both of each member, in the same order"
        )
    paired = [
        predictions.read_files([test], None if calibrations is None else calibrations[i])
        for i, test in enumerate(tests)
    ]
    found = [test for (test,), _ in paired]
    if sum(1 if one.logits.ndim == 2 else len(one.logits) for one in found) < 2:
        raise InputError(
            "--predictions: an ensemble has two members or more; name more files, or one with logits [m, n, k]"
        )
    return found, None if calibrations is None else [tuning for _, tuning in paired]


def _print(document: dict[str, Any]) -> None:
    told = document["ensemble"]
    print(ensemble_pages.combination_table(document).markdown())
    print(ensemble_pages.diversity_table(told).markdown())
    if told["weights"]:
        print(ensemble_pages.weight_table(told).markdown())


def main(argv: Sequence[str] | None = None) -> None:
    """The door."""
    parser = cli.parser("ensemble", "Predictions of several members → what their combination buys.")
    parser.add_argument("--predictions", required=True, metavar="A.npz,B.npz…", help="of each member, or of several")
    parser.add_argument("--calibration", metavar="A_val.npz,B_val.npz…", help="another split, in the same order")
    parser.add_argument("--scores", default="all", help="all that can be computed, or some, divided by commas")
    parser.add_argument("--subsets", type=int, default=20, help="of each number of members (20)")
    parser.add_argument("--resamples", type=int, default=1000, help="bootstrap resamples (at least 20)")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap, and of the subsets")
    parser.add_argument("--workdir", metavar="DIR", help="writes metrics.json and the combinations there")
    given = parser.parse_args(argv)
    for name, least in (("resamples", 20), ("seed", 0), ("subsets", 1)):
        if getattr(given, name) < least:
            parser.error(f"--{name}={getattr(given, name)}: at least {least}")
    scores = tuple(scores_lib.SCORES) if given.scores == "all" else tuple(given.scores.split(","))
    scores_lib.named(scores)
    settings = evaluation.Settings(scores, tuple(range(1, 11)), 15, given.resamples, 0.95, given.seed)
    members = read(given.predictions.split(","), given.calibration.split(",") if given.calibration else None)

    def found() -> tuple[dict[str, Any], dict[str, Predictions]]:
        m = sum(1 if one.logits.ndim == 2 else len(one.logits) for one in members[0])
        spaces = 2 - any(one.log_probabilities for one in members[0])
        progress = Progress(m + spaces * (1 + (members[1] is not None)), 0, "evaluating")
        try:
            return ensemble_study.evaluate(
                *members, settings, most=given.subsets, progress=lambda done: progress.update(done, "classifiers")
            )
        finally:
            progress.close()

    if not given.workdir:
        _print(found()[0])
        return
    workdir = Path(given.workdir)
    with files.lock(workdir):
        if (workdir / "config.json").exists():
            raise InputError(f"{workdir}: holds the run of a study; name another --workdir")
        document, combined = found()
        _print(document)
        files.write_json(workdir / "metrics.json", document)
        for space, predicted in combined.items():
            predictions.save(workdir / f"{space}.npz", predicted)
    print(f"metrics: {workdir / 'metrics.json'}; `python -m sc_jax.report --workdir={workdir}` draws them")
    for space in combined:
        print(f"combined in {space} space: {workdir / f'{space}.npz'}")


if __name__ == "__main__":
    cli.main(main)
