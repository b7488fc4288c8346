"""Verdicts on contrasts, by their rules."""

import json
import math

import numpy as np
import pytest

from sc_jax.methods import contrasts
from sc_jax.ops import resampling


@pytest.fixture
def study():
    """(values [s], replicates [s, b], seed_counts [b, s])"""
    rng = np.random.default_rng(0)
    values = rng.normal(size=5)
    return values, values[:, None] + rng.normal(size=(5, 60)) / 3, resampling.resample_counts(1, 5, 60)


@pytest.mark.parametrize(
    ("replicates", "p"),
    [
        ([0.1, 0.2, 0.3, 0.4], 1 / 5),
        ([0.1, 0.2, 0.3, 0.5], 2 / 5),  # worse by just the margin counts as worse
        ([0.1, 0.2, 0.3, math.nan], 2 / 5),
        ([0.6, 0.7, 0.8, math.nan], 1),
        ([-9, -9, -9, 0.6], 2 / 5),
    ],
)
def test_not_worse_p_by_counting(replicates, p):
    assert contrasts.not_worse_p(np.array(replicates), 0.5) == pytest.approx(p)


NO_HOLM = "not shown (does not survive Holm)"


@pytest.mark.parametrize(
    ("expect", "interval", "p", "verdict"),
    [
        ("greater", (1, 2), 0.049, "confirmed"),
        ("greater", (1, 2), 0.051, NO_HOLM),
        ("greater", (0, 2), 0.01, "not shown"),
        ("greater", (-1, 2), 0.01, "not shown"),
        ("greater", (-2, -1), 0.01, "contradicted"),
        ("less", (-2, -1), 0.01, "confirmed"),
        ("less", (-2, -1), 0.2, NO_HOLM),
        ("less", (-2, 0), 0.01, "not shown"),
        ("less", (1, 2), 0.01, "contradicted"),
        ("not_worse_by_margin", (-1, 0.4), 0.01, "confirmed"),
        ("not_worse_by_margin", (0.1, 0.4), 0.01, "confirmed"),  # worse, but by less than the margin
        ("not_worse_by_margin", (0.1, 0.4), 0.2, NO_HOLM),
        ("not_worse_by_margin", (0.1, 0.5), 0.01, "not shown"),
        ("not_worse_by_margin", (0.1, 0.9), 0.01, "not shown"),
        ("not_worse_by_margin", (0.6, 0.9), 0.9, "contradicted"),
        ("greater", (math.nan, math.nan), 0.01, "not shown"),
        ("greater", (1, 2), math.nan, NO_HOLM),
    ],
)
def test_verdict_follows_its_rule(expect, interval, p, verdict):
    assert contrasts.verdict(expect, list(interval), p, 0.95, 0.5) == verdict


def test_verdict_needs_p_strictly_below():
    assert contrasts.verdict("less", [-2, -1], 0.5, 0.5) == NO_HOLM
    assert contrasts.verdict("less", [-2, -1], 0.499, 0.5) == "confirmed"


def test_verdict_knows_three_expectations():
    with pytest.raises(KeyError):
        contrasts.verdict("better", [1, 2], 0.01, 0.95)


def test_description_is_plain_data(study):
    difference = resampling.crossed(*study)
    described = contrasts.describe(difference, 0.9)
    assert json.loads(json.dumps(described)) == described
    assert described["estimate"] == difference.estimate
    np.testing.assert_allclose(described["interval"], np.quantile(difference.replicates, [0.05, 0.95]))
    assert described["t_interval"] == difference.t_interval(0.9)
    assert described["per_seed"] == study[0].tolist()
    assert (described["se_seeds"], described["se_examples"]) == (difference.se_seeds, difference.se_examples)
