"""What frozen rejectors do under covariate shift: every corruption at five severities, on the networks of a run.

    .venv/bin/python experiments/scod/shifts.py --config=experiments/scod/config.py --workdir=runs/scod-default     # shifts.json and shifts.png there

Thresholds are fitted on the clean validation split and frozen: of MSP by SGR, with a promise of its risk, and of the black-box rejector (MSP and ViM) at a
coverage of 80 %. Then every image of the test split is corrupted, inliers and held-out classes alike. A corrupted image keeps its label: it is to be refused where the
answer would be wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from sc_jax import cli, figures, files, ops, predictions
from sc_jax.config import Config
from sc_jax.data import Split
from sc_jax.data.corruptions import CORRUPTIONS, corrupt_split
from sc_jax.methods import guarantees, scod
from sc_jax.models import member_heads
from sc_jax.ops import resampling
from sc_jax.predictions import Predictions
from sc_jax.training import inference, parallel, state
from sc_jax.training import job as job_lib

RISK, DELTA, COVERAGE = 0.05, 0.05, 0.8
RULE = scod.JointRisk(0.5, 0.5, 0.2)
RESAMPLES = 500
METRICS = ("coverage", "risk", "outliers_accepted", "joint_risk")


class Outcome(NamedTuple):
    """Of one rejector, one network and one corrupted split: bool [n] each."""

    accept: np.ndarray
    wrong: np.ndarray


def networks_of(config: Config, workdir: Any) -> Callable[[Split], list[Predictions]]:
    """Every member of the run as a function: split → predictions with features."""
    job = job_lib.build(config)
    mesh = job.mesh
    with job_lib.open_checkpoints(job, workdir) as saved:
        made = job.model, job.optimizer, job.members, job.examples_with_targets
        trained = saved.restore(job.total_steps, parallel.placed(state.shape_of_state(*made), mesh))
    (weights,) = inference.networks(job, trained, mesh)
    mapped = parallel.map_over_devices(inference.outputs_of(job), mesh)
    kernel, bias = jax.device_get(member_heads(job.model, weights.params))

    def of(split: Split) -> list[Predictions]:
        batches = parallel.in_batches((split.inputs, split.example_id), config.prediction.batch_size)
        each = [parallel.to_host(mapped(weights, parallel.divide(batch, mesh, axis=0))) for batch in batches]
        found = {name: np.concatenate([one[name] for one in each], axis=1)[:, : len(split)] for name in each[0]}
        return [
            Predictions(split.label, logits, split.example_id, features, kernel[i], bias[i], is_ood=split.is_ood)
            for i, (logits, features) in enumerate(zip(found["logits"], found["features"], strict=True))
        ]

    return of


def frozen(calibration: Predictions) -> dict[str, Callable[[Predictions], np.ndarray]]:
    """Name → rejector with its threshold: predictions → accept [n]."""
    chosen = guarantees.fit(calibration, "sgr", risk=RISK, delta=DELTA)
    plugin = scod.fit_black_box(calibration, RULE, ood="vim")
    threshold = float(ops.threshold_at_coverage(scod.apply(plugin, calibration), COVERAGE))
    return {
        "MSP by SGR": lambda given: chosen(given).accept,
        "black-box (ViM)": lambda given: scod.apply(plugin, given) >= threshold,
    }


def described(outcomes: list[list[Outcome]], is_ood: np.ndarray, counts: np.ndarray) -> dict[str, Any]:
    """Means over networks and families, with intervals over examples: all networks and families see the same resamples.

    Args:
      outcomes: [families][networks]; is_ood: bool [n]; counts: [b, n], resamples within each kind, the first of them the sample itself.
    """
    values = {name: [] for name in METRICS}
    weight = counts.astype(np.float32)
    inliers, outliers = weight[:, ~is_ood], weight[:, is_ood]
    for family in outcomes:
        for accept, wrong in family:
            kept = inliers @ accept[~is_ood] / inliers.sum(axis=1)
            lost = inliers @ (accept & wrong)[~is_ood] / inliers.sum(axis=1)
            taken = outliers @ accept[is_ood] / outliers.sum(axis=1)
            share = RULE.ood_share
            joint = RULE.id_cost * (1 - share) * lost + RULE.ood_cost * share * taken
            with np.errstate(invalid="ignore"):  # nothing accepted has no risk
                found = (kept, lost / kept, taken, joint / ((1 - share) * kept + share * taken))
            for name, value in zip(METRICS, found, strict=True):
                values[name].append(value)
    made = {}
    for name, parts in values.items():
        mean = np.mean(parts, axis=0)
        made[name] = float(mean[0])
        made[f"{name}_interval"] = [float(end) for end in resampling.percentile_interval(mean[1:], 0.95)]
    return made


def main() -> None:
    """Writes `shifts.json` and `shifts.png` into the workdir."""
    config, workdir = cli.study_arguments("shifts", __doc__, None)
    networks = networks_of(config, workdir)
    clean = job_lib.build(config).dataset.splits[config.evaluation.test_split]
    keep = clean.example_id < 70_000  # without the images of other data sets
    test = Split(*(getattr(clean, name)[keep] for name in ("inputs", "label", "example_id")), is_ood=clean.is_ood[keep])
    folders = sorted(path for path in (workdir / "predictions").iterdir() if path.is_dir())
    rejectors = [frozen(predictions.by_id(predictions.load(folder / "validation.npz"))) for folder in folders]
    counts = np.ones((1 + RESAMPLES, len(test)), np.uint8)
    for kind in (False, True):
        mine = test.is_ood == kind
        counts[1:, mine] = resampling.resample_counts(int(kind), int(mine.sum()), RESAMPLES)

    def outcomes(split: Split, name: str) -> list[Outcome]:
        return [
            Outcome(own[name](given), ops.predicted_class(given.logits) != given.label)
            for own, given in zip(rejectors, networks(split), strict=True)
        ]

    rows = []
    for severity in range(6):
        families = CORRUPTIONS if severity else ["clean"]
        splits = {name: corrupt_split(test, name, severity, seed=0) if severity else test for name in families}
        for name in rejectors[0]:
            found = {family: outcomes(split, name) for family, split in splits.items()}
            for family, own in found.items():
                rows.append({"rejector": name, "corruption": family, "severity": severity})
                rows[-1] |= described([own], test.is_ood, counts)
            if severity:
                rows.append({"rejector": name, "corruption": "mean", "severity": severity})
                rows[-1] |= described(list(found.values()), test.is_ood, counts)
        print(f"severity {severity} done", flush=True)
    about = {"risk": RISK, "delta": DELTA, "coverage": COVERAGE, "rule": RULE._asdict(), "resamples": RESAMPLES}
    files.write_json(workdir / "shifts.json", {**about, "networks": len(folders), "rows": rows})
    figures.save_png(figures.severities(rows, RISK), workdir / "shifts.png")
    print(f"{workdir / 'shifts.json'}")


if __name__ == "__main__":
    main()
