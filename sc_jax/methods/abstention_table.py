"""Selective error at the coverages of the literature, from what a study's `metrics.json` holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

COVERAGES = (100, 95, 90, 85, 80, 75, 70)
"""In per cent: those of the tables of SelectiveNet and its successors."""


class SelectiveError(NamedTuple):
    """One method, ranked by one score.

    Attributes:
      treatment: {"alpha"} or {"objective"}, what was trained; score: what ranks.
      risk: error among the accepted at each coverage, mean over seeds; low, high: its interval.
    """

    treatment: dict[str, Any]
    score: str
    risk: list[float]
    low: list[float]
    high: list[float]


def selective_errors(document: Mapping[str, Any], coverages: Sequence[int] = COVERAGES) -> list[SelectiveError]:
    """Every method by every score it has, in the order of the document.

    Args:
      document: of `metrics.json`, of a study; coverages: whole per cent, 1 to 100.

    Raises:
      ValueError: a coverage is none of the curves'.
    """
    found = []
    for row in [*document["curves"], *document.get("objectives", {}).get("curves", [])]:
        at = [round(100 * c) for c in row["coverage"]]
        for coverage in coverages:
            if coverage not in at:
                raise ValueError(f"coverage {coverage} %: the curves are at {at[0]} to {at[-1]} %")
        places = [at.index(coverage) for coverage in coverages]
        treatment = {key: row[key] for key in ("alpha", "objective") if key in row}
        found.append(
            SelectiveError(
                treatment, row["score"], *([row[part][i] for i in places] for part in ("risk", "low", "high"))
            )
        )
    return found


OWN_SCORE = {"entmax=2": "sparsemax", "entmax=1.5": "entmax15"}
"""The confidence of objectives whose probabilities are not a softmax."""


def of_interest(row: SelectiveError) -> bool:
    """Whether the score is one that the method is meant for: MSP, the model's own, or that of its α; ConfidNet's, of cross-entropy."""
    objective = row.treatment.get("objective", "")
    return row.score in ("msp", "model_confidence", OWN_SCORE.get(objective, "msp" if objective else "confidnet"))
