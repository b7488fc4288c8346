"""Every ranking metric that the reports show, from one sort. To add one, add a line to `summarise_ranking`."""

from __future__ import annotations

from sc_jax.ops.areas import augrc, aurc, normalised, optimal_aurc, sele_of_augrc, torch_uncertainty_of_mean
from sc_jax.ops.detection import failure_auroc
from sc_jax.ops.ranking import Array, Ranking, nan_if_nan, rank, require_errors, share
from sc_jax.ops.risk_coverage import coverage_at_risk, risk_at_coverage

RISKS = (0.01, 0.02, 0.05)
"""Targets of risk that the reports show."""


def summarise_ranking(ranking: Ranking, optimum: Array) -> dict[str, Array]:
    """Name → value [...] of each ranking metric.

    Args:
      ranking: of (score, 0/1 error), possibly with weights [..., n].
      optimum: [...], `optimal_aurc` of the same errors and weights.
    """
    value = aurc.of_ranking(ranking)
    area = augrc.of_ranking(ranking)
    error = share(ranking.total_loss, ranking.total_weight)
    return {
        "error": error,
        "aurc": value,
        "e_aurc": value - optimum,
        "naurc": normalised(value, optimum, error),
        "augrc": area,
        "e_augrc": area - error**2 / 2,
        "failure_auroc": failure_auroc.of_ranking(ranking),
        **{f"coverage_at_risk_{risk}": coverage_at_risk.of_ranking(ranking, risk) for risk in RISKS},
        "risk_at_coverage_0.8": risk_at_coverage.of_ranking(ranking, 0.8),
        "risk_at_coverage_0.9": risk_at_coverage.of_ranking(ranking, 0.9),
        "aurc_trapezoid_from_zero": value - share(error, 2 * ranking.total_weight),
        "aurc_torch_uncertainty": torch_uncertainty_of_mean(ranking, value),
        "aurc_ln": aurc.of_ranking(ranking, "ln"),
        "aurc_sele": sele_of_augrc(ranking, area),
    }


def summarise(
    score: Array, error: Array, *, weight: Array | None = None, where: Array | None = None
) -> dict[str, Array]:
    """Name → value of each ranking metric of a score.

    Args:
      score: [n], higher = more confident; error: [n], 0/1 as bool or integers; weight: [..., n]; where: bool [n].

    Returns:
      A dict of [...]; see each metric for its definition.

    Raises:
      ValueError: the losses are not 0/1 errors; see `rank` for the rest.
    """
    require_errors(error, "summarise", where)
    optimum = optimal_aurc(error, weight=weight, where=where)
    summary = summarise_ranking(rank(score, error, weight, where), optimum)
    return {name: nan_if_nan(score, value, where) for name, value in summary.items()}
