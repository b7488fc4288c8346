"""Samples and metrics that one device, many devices and the host must agree on."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from sc_jax import ops


def samples() -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(score, loss, where) by name: with ties and without, errors and soft losses."""
    rng = np.random.default_rng(1)
    n = 4800
    error, where = rng.random(n) < 0.2, np.arange(n) % 7 != 0
    untied = (rng.normal(size=n) - 2 * error).astype(np.float32)
    scores = {"untied": untied, "tied": np.round(untied), "constant": np.zeros(n, np.float32)}
    losses = {"error": error, "soft": (error * rng.random(n)).astype(np.float32)}
    return {f"{s}_{e}": (scores[s], losses[e], where) for s in scores for e in losses}


METRICS = {
    "aurc": ops.aurc.of_ranking,
    "augrc": ops.augrc.of_ranking,
    "failure_auroc": ops.failure_auroc.of_ranking,
    "coverage_at_risk": lambda ranking: ops.coverage_at_risk.of_ranking(ranking, 0.15),
    "risk_at_coverage": lambda ranking: ops.risk_at_coverage.of_ranking(ranking, 0.7),
}


def of(name: str) -> dict[str, Callable]:
    """The metrics of a sample: a failure AUROC needs errors."""
    return {metric: of for metric, of in METRICS.items() if name.endswith("error") or metric != "failure_auroc"}
