"""Rejectors compared on the predictions of a run: AUC-RC by cost and mix with intervals, and joint risk curves.

    .venv/bin/python experiments/scod/compare.py --workdir=runs/scod-default     # scod.json, scod.md and a picture for each kind of outliers there

What is fitted is fitted on `validation`, which has inliers alone, and on the `outliers` of CLINC150. Of `test` every other example by id is the
unlabelled wild mixture; the other half is reported on. Its share of inliers is taken as known, but in one rejector, which estimates it. Plug-in rules are made
for the costs and the share of each cell.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sc_jax import figures, files, ops, predictions
from sc_jax.methods import scod
from sc_jax.methods.scod_table import joint_risk_band, scod_table
from sc_jax.predictions import Predictions, select

COSTS = ((0.5, 0.5), (0.75, 0.25), (0.25, 0.75))
SHARES = (0.05, 0.2, 0.5)
SHOWN = scod.JointRisk(0.5, 0.5, 0.2)
"""Of the curves."""

STRICT = 0.1
"""The share of the validation inliers, the least like outliers by ViM, from which the share of inliers in the wild is estimated."""

DRAWN = ("msp", "vim", "sirc", "black-box (ViM)", "loss-based (features)")
RESAMPLES = 200
COVERAGES = [round(0.05 * i, 2) for i in range(1, 21)]
PLAIN = ("msp", "max_logit", "energy", "react", "ash_scale", "gradnorm", "mahalanobis", "knn_distance", "vim")

Rejector = Callable[[scod.JointRisk], np.ndarray]
"""A rule → the score [n] of what is reported on; those without a rule do not look at it."""


def rejectors(
    calibration: Predictions, wild: Predictions, test: Predictions, outliers: Predictions | None
) -> tuple[dict[str, Rejector], float]:
    """Name → rejector, fitted, and the share of inliers in the wild as it was estimated. What is fitted does not depend on the rule, but for POSCOD."""

    def fixed(score: np.ndarray) -> Rejector:
        return lambda rule: score

    def plugin(state: scod.Plugin) -> Rejector:
        d, r = scod.estimates(state, test)
        return lambda rule: ops.joint_scod_score(d, r, **rule._asdict())

    fits = {name: scod.fit_score(name, calibration) for name in PLAIN}
    found = {name: fixed(scod.score_of(fit, test)) for name, fit in fits.items()}
    residual = scod.Named("residual", fits["vim"].state.residual)
    found["sirc"] = fixed(scod.apply(scod.fit_sirc(calibration, second=residual), test))
    for ood in ("energy", "vim"):
        name = figures.SCORE_NAMES[ood]
        found[f"black-box ({name})"] = plugin(scod.fit_black_box(calibration, SHOWN, ood=fits[ood]))
        if outliers is not None:
            with_them = scod.fit_black_box(calibration, SHOWN, ood=fits[ood], outliers=outliers)
            found[f"black-box ({name}, {len(outliers)} outliers)"] = plugin(with_them)
    if outliers is not None:
        found[f"POSCOD ({figures.SCORE_NAMES['energy']}, {len(outliers)} outliers)"] = linear(
            calibration, outliers, test
        )
    mixing = float(np.mean(~wild.is_ood))
    for on in ("features", "vim"):
        state = scod.fit_loss_based(calibration, wild, SHOWN, on=fits.get(on, on), mixing=mixing)
        found[f"loss-based ({figures.SCORE_NAMES.get(on, on)})"] = plugin(state)
    vim = scod.score_of(fits["vim"], calibration)
    strict = select(calibration, vim >= ops.threshold_at_coverage(vim, STRICT))
    state = scod.fit_loss_based(calibration, wild, SHOWN, on=fits["vim"], strict=strict)
    found[f"loss-based ({figures.SCORE_NAMES['vim']}, π_mix estimated)"] = plugin(state)
    return found, state.ratio.mixing


def linear(calibration: Predictions, outliers: Predictions, test: Predictions) -> Rejector:
    """POSCOD's selector with energy: fitted on half of the inliers (every other one) and the outliers, for each rule."""
    fitted, reference = (select(calibration, np.arange(len(calibration)) % 2 == half) for half in (0, 1))
    parts = {
        name: np.concatenate([getattr(fitted, name), getattr(outliers, name)])
        for name in ("label", "logits", "example_id", "features")
    }
    is_ood = np.arange(len(fitted) + len(outliers)) >= len(fitted)
    both = dataclasses.replace(fitted, **parts, is_ood=is_ood)
    return lambda rule: scod.apply(scod.fit_linear(both, target=rule, reference=reference), test)


def kinds(study: str, test: Predictions) -> dict[str, np.ndarray]:
    """Kind of outliers → bool [n], these and all inliers."""
    if study == "scod_clinc150":
        return {"outside": np.ones(len(test), bool)}
    added = test.example_id >= 70_000  # what follows the 70,000 of Fashion-MNIST
    return {"near": ~added, "far": ~test.is_ood | added}


def table(
    found: Mapping[str, Rejector], keep: np.ndarray, error: np.ndarray, is_ood: np.ndarray, resamples: int
) -> dict[str, Any]:
    """AUC-RC of every rejector in every cell: area [s, c, p], with resamples interval [2, s, c, p]."""
    cells = []
    for cost in COSTS:
        for share in SHARES:
            scores = {name: of(scod.JointRisk(*cost, share))[keep] for name, of in found.items()}
            cells.append(scod_table(scores, error[keep], is_ood[keep], [cost], [share], resamples=resamples))

    def joined(parts: list[np.ndarray]) -> list[Any]:
        whole = np.stack([part[..., 0, 0] for part in parts], axis=-1)
        return whole.reshape(*whole.shape[:-1], len(COSTS), len(SHARES)).tolist()

    made = {"scores": list(found), "costs": COSTS, "ood_shares": SHARES, "area": joined([cell.area for cell in cells])}
    made["interval"] = joined([cell.interval for cell in cells]) if resamples else None
    return made


def main() -> None:
    """Writes the comparison into the workdir."""
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    arguments.add_argument("--workdir", required=True, type=Path)
    workdir = arguments.parse_args().workdir
    study = files.read_json(workdir / "config.json")["study"]
    folders = sorted(path for path in (workdir / "predictions").iterdir() if path.is_dir())
    tables: dict[str, list[dict[str, Any]]] = {}
    curves: dict[str, list[dict[str, Any]]] = {}
    mixing: list[dict[str, float]] = []
    for m, folder in enumerate(folders):
        calibration, test = (predictions.by_id(predictions.load(folder / f"{s}.npz")) for s in ("validation", "test"))
        more = folder / "outliers.npz"
        outliers = predictions.load(more) if more.exists() else None
        wild, reported = (select(test, np.arange(len(test)) % 2 == half) for half in (0, 1))
        found, estimated = rejectors(calibration, wild, reported, outliers)
        mixing.append({"known": float(np.mean(~wild.is_ood)), "estimated": estimated})
        error = ops.predicted_class(reported.logits) != reported.label
        for kind, keep in kinds(study, reported).items():
            made = table(found, keep, error, reported.is_ood, RESAMPLES if m == 0 else 0)
            tables.setdefault(kind, []).append(made)
            if m == 0:
                given = error[keep], reported.is_ood[keep], COVERAGES
                bands = {
                    name: joint_risk_band(found[name](SHOWN)[keep], *given, **SHOWN._asdict(), resamples=RESAMPLES)
                    for name in DRAWN
                }
                curves[kind] = [
                    {"score": name, "predictions": folder.name, **{k: v.tolist() for k, v in band._asdict().items()}}
                    for name, band in bands.items()
                ]
                picture = figures.risk_coverage(curves[kind])
                picture.axes[0].set_ylabel("joint risk (%), 20 % OOD, costs ½ and ½")
                figures.save_png(picture, workdir / f"scod_{kind}.png")
    files.write_json(workdir / "scod.json", {"tables": tables, "curves": curves, "mixing": mixing})
    files.write_text(workdir / "scod.md", _markdown(tables))
    print(f"{workdir / 'scod.md'}")


def _markdown(tables: Mapping[str, list[dict[str, Any]]]) -> str:
    text = []
    for kind, of in tables.items():
        area = np.array([one["area"] for one in of])
        low, high = np.array(of[0]["interval"]) - area[0]
        text.append(
            f"## {kind} OOD: AUC-RC × 100, mean of {len(of)} seeds, with the 95 % interval over examples (width of the first seed's)\n"
        )
        cells = [f"costs {ood:g}, {wrong:g}; {share:.0%} OOD" for ood, wrong in COSTS for share in SHARES]
        text.append("| rejector | " + " | ".join(cells) + " |\n|---|" + "---|" * len(cells))
        for s, name in enumerate(of[0]["scores"]):
            parts = zip(area.mean(axis=0)[s].ravel(), low[s].ravel(), high[s].ravel(), strict=True)
            row = " | ".join(f"{100 * a:.2f} [{100 * (a + b):.2f}, {100 * (a + c):.2f}]" for a, b, c in parts)
            text.append(f"| {figures.SCORE_NAMES.get(name, name)} | {row} |")
        text.append("")
    return "\n".join(text)


if __name__ == "__main__":
    main()
