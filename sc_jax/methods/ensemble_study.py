"""What an ensemble of stored members buys: every score of each member and of their combinations, weights, diversity, and metrics against
the number of members.

Weights, and scores that are fitted, take the calibration split; everything is reported on the test split.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from sc_jax import ops
from sc_jax.methods import ensemble, evaluation, study
from sc_jax.methods.ensemble import Space
from sc_jax.predictions import Predictions, select

MEMBER_MEANS = ("member_error", "member_nll", "member_brier")
"""Fields of `ensemble.Diversity` of which a report gives the mean over members."""


def evaluate(
    tests: Sequence[Predictions],
    calibrations: Sequence[Predictions] | None,
    settings: evaluation.Settings,
    *,
    most: int = 20,
    progress: Callable[[int], None] = lambda done: None,
) -> tuple[dict[str, Any], dict[str, Predictions]]:
    """Everything that the report shows, ready for JSON.

    Rows are of each member alone, of the mean of the probabilities (with the scores that need members), of the mean of the logits where all
    members have logits, and, with calibration files, of both with the weights of least log loss there.

    Args:
      tests: files of the members, [n, k] or [m, n, k], of the same examples; calibrations: those of another split, in the same order, or None.
      settings: of the metrics; most: subsets of each size; progress: receives the number of rows of files done.

    Returns:
      What `metrics.json` holds, with {"members", "n", "diversity", "weights", "curves"} under "ensemble"; and the combinations on the test split by
      space, weighted where there are calibration files.

    Raises:
      InputError: as for `ensemble.stack` and `ensemble.fit_weights`, or fewer than two members.
    """
    test = ensemble.stack(tests)
    tuning = None if calibrations is None else ensemble.stack(calibrations)
    spaces: tuple[Space, ...] = ("probability",) if test.log_probabilities else ("probability", "logit")
    names = [f"{part.source}{one}" for part in tests for one in _places(part)]
    singles = [one for part in tests for one in _single(part)]
    tuned = [None] * len(singles) if calibrations is None else [one for part in calibrations for one in _single(part)]
    todo: list[tuple[str, Predictions, Predictions | None]] = [
        (f"member {i}", *pair) for i, pair in enumerate(zip(singles, tuned, strict=True), 1)
    ]
    combined: dict[str, Predictions] = {}
    weights = []
    for space in spaces:
        equal = [_equal(split, space) for split in (test, tuning)]
        todo.append((f"mean, {space}", *equal))
        combined[space] = _flat(equal[0])
        if tuning is not None:
            state = ensemble.fit_weights(tuning, space)
            combined[space] = ensemble.apply(state, test)
            todo.append((f"weighted, {space}", combined[space], ensemble.apply(state, tuning)))
            weights.append({**state._asdict(), "weights": state.weights.tolist()})
    document = study.document_of_files(settings)
    for done, (name, predicted, calibration) in enumerate(todo, 1):
        provenance = {**predicted.provenance, "tags": {"of": name}}
        study.add_file(
            document, dataclasses.replace(predicted, source=name, provenance=provenance), calibration, settings
        )
        progress(done)
    known = test if test.is_ood is None else select(test, ~test.is_ood)
    document["ensemble"] = {
        "members": names,
        "n": len(known),
        "diversity": [_diversity(known, space) for space in spaces],
        "weights": weights,
        "curves": [row for space in spaces for row in _curve(known, space, most, settings)],
    }
    return document, combined


def _places(part: Predictions) -> list[str]:
    """What tells the members of a file apart."""
    return [""] if part.logits.ndim == 2 else [f", member {i}" for i in range(1, len(part.logits) + 1)]


def _single(part: Predictions) -> list[Predictions]:
    """The members of a file, each as one classifier."""
    return [part] if part.logits.ndim == 2 else [dataclasses.replace(part, logits=one) for one in part.logits]


def _equal(members: Predictions | None, space: Space) -> Predictions | None:
    """The combination with equal weights; in probability space the members themselves, whose mean `evaluation` takes."""
    if members is None or space == "probability":
        return members
    return dataclasses.replace(members, logits=ensemble.combine(members.logits, space="logit"))


def _flat(predicted: Predictions) -> Predictions:
    return evaluation.combined(predicted) if predicted.logits.ndim == 3 else predicted


def _diversity(known: Predictions, space: Space) -> dict[str, Any]:
    told = ensemble.diversity(known.logits, known.label, space, weight=known.weight)
    means = {name: float(np.mean(getattr(told, name))) for name in MEMBER_MEANS}
    ensembles = {name: getattr(told, name) for name in ("ensemble_error", "ensemble_nll", "ensemble_brier")}
    return {
        "space": space,
        **told.pair_means(),
        **means,
        **ensembles,
        "nll_gap": told.nll_gap,
        "brier_gap": told.brier_gap,
    }


def _curve(known: Predictions, space: Space, most: int, settings: evaluation.Settings) -> list[dict[str, Any]]:
    curve = ensemble.subset_curve(
        known.logits,
        known.label,
        space=space,
        score=ops.msp,
        most=most,
        seed=settings.seed,
        weight=known.weight,
        level=settings.level,
    )
    return curve.rows({"probability": "mean of probabilities", "logit": "mean of logits"}[space])
