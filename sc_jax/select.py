"""`python -m sc_jax.select`: a threshold with a stated promise, and the decisions it takes.

python -m sc_jax.select --calibration=V.npz --predictions=T.npz --method=sgr --risk=0.02 --delta=0.05 [--workdir=DIR]
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from sc_jax import cli, files, predictions
from sc_jax.files import InputError
from sc_jax.methods import conformal, guarantees
from sc_jax.methods import scores as scores_lib
from sc_jax.methods import selector as selector_lib
from sc_jax.methods.guarantees import Realised
from sc_jax.methods.selector import Selector
from sc_jax.predictions import Predictions

METHODS = (*guarantees.METHODS, *(f"singleton_{score}" for score in selector_lib.NONCONFORMITY))

SEED = 0
"""Of the draw of examples to tune on, where no file of them is given."""


def fit(
    calibration: Predictions,
    method: str,
    score: str | None,
    *,
    risk: float,
    delta: float | None,
    tuning: Predictions | None,
    tuning_share: float,
    within: str,
    starts: Sequence[float],
) -> Selector:
    """The selector of a method by name; examples to tune on are drawn from the calibration file where they are needed and not given.

    Args:
      calibration, risk, delta, within, starts: see `guarantees.fit`; method: of `METHODS`; score: MSP where it is None.
      tuning: a third split, or None; tuning_share: of the calibration examples, drawn where there is none.

    Raises:
      InputError: names the argument that is wrong.
    """
    try:
        if method.startswith("singleton_"):
            if delta is not None:
                raise ValueError(
                    "a marginal promise holds on average over calibration sets and has no δ; leave delta out"
                )
            if score is not None:
                raise ValueError("a singleton has the nonconformity score in the method's name; leave the score out")
            return conformal.fit_selector(calibration, method.removeprefix("singleton_"), risk=risk, within=within)
        score = "msp" if score is None else score
        rest, whole = calibration, None
        needed = method.startswith("ltt") or scores_lib.named([score])[score].needs_calibration
        if needed and tuning is None:
            tuning, rest = guarantees.divide(calibration, tuning_share, SEED)
            whole = calibration
        return guarantees.fit(
            rest, method, score, risk=risk, delta=delta, tuning=tuning, within=within, starts=starts, whole=whole
        )
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"--method={method}: {error}") from error


def _print(chosen: Selector, found: Sequence[Realised]) -> None:
    print(f"{chosen.method}: {chosen.promise}")
    print(f"  if {chosen.promise.assumption}")
    print(f"  fitted on {chosen.fitted_on.source}, n = {chosen.fitted_on.n}")
    for name, threshold in chosen.thresholds.items():
        where = "" if name == "all" else f"{chosen.by.replace('_', ' ')} {name}: "
        if chosen.rule == "singleton":
            print(f"  {where}quantile of {chosen.score} {threshold:.6g}")
            continue
        about = chosen.about[name]
        if math.isnan(threshold):
            print(f"  {where}no threshold can be certified on {about['n']} examples: nothing is accepted")
            continue
        seen = f"{about['errors']} errors in {about['accepted']} accepted of {about['n']}"
        print(f"  {where}threshold {chosen.score} ≥ {threshold:.6g}, certified bound {about['bound']:.4g} ({seen})")
    for row in found:
        low, high = row.risk_interval
        risk = f"risk {row.risk:.4f} [{low:.4f}, {high:.4f}]" if row.accepted else "no risk"
        where = "" if row.stratum == "all" else f", {chosen.promise.within.replace('_', ' ')} {row.stratum}"
        print(
            f"test{where}: coverage {row.coverage:.4f} ({row.accepted} of {row.n}), realised {risk}, "
            f"accepted and wrong {row.accepted_and_wrong:.4f}: {row.verdict}"
        )


def main(argv: Sequence[str] | None = None) -> None:
    """The door."""
    parser = cli.parser("select", "A threshold with a stated promise, and the decisions it takes.")
    parser.add_argument("--calibration", required=True, metavar="V.npz", help="the split that certifies the threshold")
    parser.add_argument("--predictions", required=True, metavar="T.npz", help="another split of the same model")
    parser.add_argument("--method", required=True, choices=METHODS)
    parser.add_argument(
        "--risk", required=True, type=float, help="target r; for crc and singletons α of P(accepted and wrong)"
    )
    parser.add_argument(
        "--delta", type=float, help="δ, how often the calibration set may fail; not for crc and singletons"
    )
    parser.add_argument("--score", help="a score of `evaluate`; default: msp")
    parser.add_argument(
        "--tuning", metavar="U.npz", help="a third split, for scores that are fitted and the thresholds of ltt"
    )
    parser.add_argument(
        "--tuning-share",
        type=float,
        default=0.2,
        help="of the calibration file, drawn to tune on where there is no --tuning",
    )
    parser.add_argument(
        "--within", default="all", choices=selector_lib.STRATA, help="hold the promise within each group or class"
    )
    parser.add_argument(
        "--starts", default="0.5", metavar="C[,C…]", help="coverages where ltt_fixed_sequence begins, each at δ/starts"
    )
    parser.add_argument("--workdir", metavar="DIR", help="writes selector.json, decisions.npz and decisions.json there")
    given = parser.parse_args(argv)
    try:
        starts = tuple(float(start) for start in given.starts.split(","))
    except ValueError:
        parser.error(f"--starts={given.starts}: numbers in (0, 1], separated by commas")
    if not all(0 < start <= 1 for start in starts):
        parser.error(f"--starts={given.starts}: numbers in (0, 1], separated by commas")
    if not 0 < given.tuning_share < 1:
        parser.error(f"--tuning-share={given.tuning_share}: a number in (0, 1)")
    (test,), calibration = predictions.read_files([given.predictions], given.calibration)
    tuning = None
    if given.tuning is not None:
        tuning = predictions.by_id(predictions.load(given.tuning))
        predictions.refuse_unknown_only(tuning)
        for other in (test, calibration):
            predictions.refuse_shared(other, tuning, "tuning")
    chosen = fit(
        calibration,
        given.method,
        given.score,
        risk=given.risk,
        delta=given.delta,
        tuning=tuning,
        tuning_share=given.tuning_share,
        within=given.within,
        starts=starts,
    )
    decision = chosen(test)
    found = guarantees.realised(chosen, decision, test)
    _print(chosen, found)
    if given.workdir is None:
        return
    folder = Path(given.workdir)
    with files.lock(folder):
        if (folder / "config.json").exists():
            raise InputError(f"{folder}: holds the run of a study; name another --workdir")
        selector_lib.save(folder / "selector.json", chosen)
        arrays = {"example_id": test.example_id, **decision._asdict()}
        files.write_npz(folder / "decisions.npz", arrays)
        about = {"predictions": test.source, "selector": "selector.json", "promise": str(chosen.promise)}
        about |= {"test": [row._asdict() for row in found], "fingerprint": files.fingerprint(arrays)}
        files.write_json(folder / "decisions.json", about, seal=True)  # last: it says that all is there
    print(f"decisions: {folder / 'decisions.npz'}, selector: {folder / 'selector.json'}")


if __name__ == "__main__":
    cli.main(main)
