"""Rejectors compared on the predictions of `config.py`: AUC-RC by cost and mix with intervals, and joint risk curves.

    .venv/bin/python experiments/scod/compare.py --workdir=runs/scod-default     # scod.json, scod.md, scod_near.png, scod_far.png there

What is fitted is fitted on `validation`, which has inliers alone. Of `test` every other example by id is the unlabelled wild mixture, whose share of
inliers is taken as known; the other half is reported on.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from sc_jax import figures, files, ops, predictions
from sc_jax.methods import scod
from sc_jax.methods.scod_table import joint_risk_band, scod_table
from sc_jax.predictions import Predictions, select

COSTS = ((0.5, 0.5), (0.75, 0.25))
SHARES = (0.05, 0.2, 0.5)
SHOWN = scod.JointRisk(0.5, 0.5, 0.2)  # of the curves, and what plug-in rules are made for
RESAMPLES = 200
COVERAGES = [round(0.05 * i, 2) for i in range(1, 21)]


def rejectors(calibration: Predictions, wild: Predictions, test: Predictions) -> dict[str, np.ndarray]:
    """Name → score [n] of `test`."""
    names = ("msp", "max_logit", "energy", "react", "ash_scale", "gradnorm", "mahalanobis", "knn_distance", "vim")
    scores = {name: scod.score_of(scod.fit_score(name, calibration), test) for name in names}
    scores["sirc"] = scod.apply(scod.fit_sirc(calibration, second="residual"), test)
    for ood in ("energy", "vim"):
        state = scod.fit_black_box(calibration, SHOWN, ood=ood)
        scores[f"black-box ({figures.SCORE_NAMES[ood]})"] = scod.apply(state, test)
    mixing = float(np.mean(~wild.is_ood))
    for on in ("features", "vim"):
        state = scod.fit_loss_based(calibration, wild, SHOWN, on=on, mixing=mixing)
        scores[f"loss-based ({figures.SCORE_NAMES.get(on, on)})"] = scod.apply(state, test)
    return scores


def main() -> None:
    """Writes the comparison into the workdir."""
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    arguments.add_argument("--workdir", required=True, type=Path)
    workdir = arguments.parse_args().workdir
    folders = sorted(path for path in (workdir / "predictions").iterdir() if path.is_dir())
    tables: dict[str, list] = {"near": [], "far": []}
    for m, folder in enumerate(folders):
        calibration, test = (predictions.by_id(predictions.load(folder / f"{s}.npz")) for s in ("validation", "test"))
        wild, reported = (select(test, np.arange(len(test)) % 2 == half) for half in (0, 1))
        scores = rejectors(calibration, wild, reported)
        error = ops.predicted_class(reported.logits) != reported.label
        added = reported.example_id >= 70_000  # what follows the 70,000 of Fashion-MNIST
        for kind, left_out in (("near", added), ("far", reported.is_ood & ~added)):
            keep, resamples = ~left_out, RESAMPLES if m == 0 else 0
            of_kind = {name: score[keep] for name, score in scores.items()}
            given = error[keep], reported.is_ood[keep]
            tables[kind].append(scod_table(of_kind, *given, COSTS, SHARES, resamples=resamples))
            if m == 0:
                drawn = ("msp", "vim", "sirc", "black-box (ViM)", "loss-based (features)")
                bands = {
                    name: joint_risk_band(of_kind[name], *given, COVERAGES, **SHOWN._asdict(), resamples=RESAMPLES)
                    for name in drawn
                }
                rows = [{"score": name, "predictions": str(folder), **band._asdict()} for name, band in bands.items()]
                picture = figures.risk_coverage(rows)
                picture.axes[0].set_ylabel("joint risk (%), 20 % OOD, costs ½ and ½")
                figures.save_png(picture, workdir / f"scod_{kind}.png")
    files.write_json(
        workdir / "scod.json", {kind: [table._asdict() for table in of] for kind, of in _plain(tables).items()}
    )
    files.write_text(workdir / "scod.md", _markdown(tables))
    print(f"{workdir / 'scod.md'}")


def _plain(tables: dict[str, list]) -> dict[str, list]:
    return {
        kind: [
            table._replace(
                area=table.area.tolist(), interval=None if table.interval is None else table.interval.tolist()
            )
            for table in of
        ]
        for kind, of in tables.items()
    }


def _markdown(tables: dict[str, list]) -> str:
    text = []
    for kind, of in tables.items():
        mean, (low, high) = np.mean([table.area for table in of], axis=0), of[0].interval - of[0].area
        text.append(
            f"## {kind} OOD: AUC-RC × 100, mean of {len(of)} seeds, with the 95 % interval over examples (width of the first seed's)\n"
        )
        cells = [f"costs {ood:g}, {wrong:g}; {share:.0%} OOD" for ood, wrong in COSTS for share in SHARES]
        text.append("| rejector | " + " | ".join(cells) + " |\n|---|" + "---|" * len(cells))
        for s, name in enumerate(of[0].scores):
            parts = zip(mean[s].ravel(), low[s].ravel(), high[s].ravel(), strict=True)
            row = " | ".join(f"{100 * a:.2f} [{100 * (a + b):.2f}, {100 * (a + c):.2f}]" for a, b, c in parts)
            text.append(f"| {figures.SCORE_NAMES.get(name, name)} | {row} |")
        text.append("")
    return "\n".join(text)


if __name__ == "__main__":
    main()
