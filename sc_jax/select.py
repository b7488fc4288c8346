"""`python -m sc_jax.select`: a threshold with a stated promise, and the decisions it takes.

python -m sc_jax.select --calibration=V.npz --predictions=T.npz --method=sgr --risk=0.02 --delta=0.05 [--workdir=DIR]
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sc_jax import cli, files, predictions
from sc_jax.files import InputError
from sc_jax.methods import conformal, guarantees
from sc_jax.methods import scores as scores_lib
from sc_jax.methods import selector as selector_lib
from sc_jax.methods.guarantees import Realised
from sc_jax.methods.selector import Selector
from sc_jax.predictions import Predictions

METHODS = (*guarantees.METHODS, *(f"singleton_{score}" for score in selector_lib.NONCONFORMITY))

SEED, SHARE = 0, 0.2
"""Of the draw of examples to tune on, where no file of them is given."""


def fit(
    calibration: Predictions,
    method: str,
    score: str | None,
    *,
    risk: float,
    delta: float | None,
    tuning: Predictions | None = None,
    tuning_share: float | None = None,
    within: str = "all",
    starts: Sequence[float] | None = None,
    p_value: str | None = None,
) -> Selector:
    """The selector of a method by name; examples to tune on are drawn from the calibration file where they are needed and not given.

    Args:
      calibration, risk, delta, within: see `guarantees.fit`; method: of `METHODS`; score: MSP where it is None.
      tuning: a third split, or None; tuning_share: of the calibration examples, drawn where there is none, `SHARE` by default.
      starts, p_value: see `guarantees.fit`, whose defaults hold where they are None.

    Raises:
      InputError: names the argument that is wrong, or that the method does not use.
    """
    score_name = "msp" if score is None else score
    try:
        tunes = not method.startswith("singleton_") and (
            method.startswith("ltt") or scores_lib.named([score_name])[score_name].needs_calibration
        )
        for name, value, used in (
            ("tuning", tuning, tunes),
            ("tuning-share", tuning_share, tunes and tuning is None),
            ("starts", starts, method == "ltt_fixed_sequence"),
            ("p-value", p_value, method.startswith("ltt")),
        ):
            if value is not None and not used:
                beside = " --tuning" if name == "tuning-share" and tuning is not None else ""
                raise InputError(
                    f"--{name}: is not used with --method={method} --score={score_name}{beside}; leave it out"
                )
        if method.startswith("singleton_"):
            if delta is not None:
                raise ValueError(
                    "a marginal promise holds on average over calibration sets and has no δ; leave delta out"
                )
            if score is not None:
                raise ValueError("a singleton has the nonconformity score in the method's name; leave the score out")
            return conformal.fit_selector(calibration, method.removeprefix("singleton_"), risk=risk, within=within)
        rest, whole = calibration, None
        if tunes and tuning is None:
            tuning, rest = guarantees.divide(calibration, SHARE if tuning_share is None else tuning_share, SEED)
            whole = calibration
        chosen = {"starts": starts, "p_value": p_value}
        chosen = {name: value for name, value in chosen.items() if value is not None}
        return guarantees.fit(
            rest, method, score_name, risk=risk, delta=delta, tuning=tuning, within=within, whole=whole, **chosen
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
        print(f"  {where}threshold {chosen.score} ≥ {threshold:.6g}, {_reason(chosen, about)} ({seen})")
    for row in found:
        low, high = row.risk_interval
        risk = f"risk {row.risk:.4f} [{low:.4f}, {high:.4f}]" if row.accepted else "no risk"
        where = "" if row.stratum == "all" else f", {chosen.promise.within.replace('_', ' ')} {row.stratum}"
        print(
            f"test{where}: coverage {row.coverage:.4f} ({row.accepted} of {row.n}), realised {risk}, "
            f"accepted and wrong {row.accepted_and_wrong:.4f}: {row.verdict}"
        )


def _reason(chosen: Selector, about: Mapping[str, Any]) -> str:
    """Why this threshold: the bound of what was certified, or the inequality that a marginal promise rests on."""
    if about["bound"] is not None:
        return f"certified bound {about['bound']:.4g}"
    target = f"≤ {chosen.promise.risk}, on average over calibration sets"
    if chosen.promise.within == "label":
        return f"(errors + 1)/(n + 1) of each label {target}"
    return f"({about['errors']} + 1)/({about['n']} + 1) {target}"


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
        help=f"of the calibration file, drawn to tune on where there is no --tuning; default: {SHARE}",
    )
    parser.add_argument(
        "--within", default="all", choices=selector_lib.STRATA, help="hold the promise within each group or class"
    )
    parser.add_argument(
        "--starts", metavar="C[,C…]", help="coverages where ltt_fixed_sequence begins, each at δ/starts; default: 0.5"
    )
    parser.add_argument(
        "--p-value", choices=tuple(guarantees.P_VALUES), help="of ltt; default: binomial, which is exact for errors"
    )
    parser.add_argument("--workdir", metavar="DIR", help="writes selector.json, decisions.npz and decisions.json there")
    given = parser.parse_args(argv)
    try:
        starts = None if given.starts is None else tuple(float(start) for start in given.starts.split(","))
    except ValueError:
        parser.error(f"--starts={given.starts}: numbers in (0, 1], separated by commas")
    if not all(0 < start <= 1 for start in starts or ()):
        parser.error(f"--starts={given.starts}: numbers in (0, 1], separated by commas")
    if given.tuning_share is not None and not 0 < given.tuning_share < 1:
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
        p_value=given.p_value,
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
