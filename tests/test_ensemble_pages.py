"""The section on ensembles: its tables hold what the study found."""

from __future__ import annotations

import json
import math

import numpy as np

from sc_jax import ensemble_pages
from sc_jax.methods import ensemble_study
from sc_jax.methods.evaluation import Settings
from sc_jax.predictions import Predictions


def test_tables_hold_every_classifier_space_and_weight() -> None:
    n, k = 120, 3

    def split(first_id: int) -> list[Predictions]:
        label = np.random.default_rng(first_id).integers(0, k, n)
        return [
            Predictions(
                label,
                2 * np.eye(k)[label] + np.random.default_rng([first_id, i]).normal(size=(n, k)),
                np.arange(first_id, first_id + n),
                source=f"{i}.npz",
            )
            for i in range(2)
        ]

    document, _ = ensemble_study.evaluate(split(500), split(0), Settings(("msp",), (1,), 10, 20, 0.9, 0))
    document = json.loads(json.dumps(document, default=np.ndarray.tolist))
    told = document["ensemble"]
    combined = ensemble_pages.combination_table(document)
    assert [row[0] for row in combined.rows] == [
        *("member 1", "member 2"),
        *(f"{what}, {space}" for space in ("probability", "logit") for what in ("mean", "weighted")),
    ]
    assert "[" in combined.rows[0][1]
    diversity = ensemble_pages.diversity_table(told)
    assert [row[0] for row in diversity.rows] == ["probability", "logit"]
    assert f"{told['diversity'][0]['nll_gap']:.3f}" in diversity.rows[0]
    for row, weights in zip(ensemble_pages.weight_table(told).rows, told["weights"], strict=True):
        assert math.isclose(sum(map(float, row[1].split(", "))), 1, abs_tol=2e-3)
        assert row[2] == f"{weights['log_loss']:.3f}"
    pictures, _, text = ensemble_pages.section(document)
    assert tuple(pictures) == ensemble_pages.PICTURES
    assert "Members: 1: 0.npz; 2: 1.npz." in text
    told["weights"] = []
    assert "## Weights" not in ensemble_pages.section(document)[2]
