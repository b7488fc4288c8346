"""Promises are kept, and variants that break them are caught: a sample of `python -m benchmarks.validity`."""

import dataclasses
import itertools
import os
from pathlib import Path

import numpy as np
import pytest
from made_up import errors, predictions
from scipy import stats

from benchmarks import validity
from sc_jax.methods import conformal, guarantees
from sc_jax.predictions import known_by, select

FOLDER = os.environ.get("SC_JAX_EXTRA_DATA")


@pytest.fixture(scope="module")
def judged():
    return validity.judged(validity.rows(draws=1000, monitored=300))


def test_methods_hold_and_broken_ones_fail(judged):
    wrong = [(row["method"], row["setting"], row["rate"]) for row in judged if row["fails"] != row["broken"]]
    assert not wrong
    assert {row["method"] for row in judged if row["broken"]} == {
        *validity.BROKEN_PAC,
        "crc, infimum under ties",
        "crc, without + 1",
        "conformal quantile, one too low",
        "a test at every step",
    }
    assert {"sgr", "ltt_holm", "crc", "conformal quantile", "monitor"} <= {
        row["method"] for row in judged if not row["broken"]
    }


def test_methods_are_not_vacuous(judged):
    """Each accepts something somewhere; no coverage is above the oracle's on average, where the promise is of the risk."""
    rows = [row for row in judged if "coverage" in row and not row["broken"]]
    for method in {row["method"] for row in rows}:
        assert max(row["coverage"] for row in rows if row["method"] == method) > 0.1, method
    nowhere = [row for row in rows if row["setting"] == "nothing feasible"]
    assert nowhere
    assert all(row["oracle_coverage"] == 0 for row in nowhere)


def test_a_test_of_many_settings_allows_for_their_number():
    rows = [{"p": p} for p in (0.5, 0.002, 0.0001, 0.004, 1.0)]
    assert [row["fails"] for row in validity.judged(rows)] == [False, True, True, False, False]  # .004 > .01/3


@pytest.mark.parametrize("setting", [3, 4], ids=lambda i: validity.MARGINAL_SETTINGS[i].name)
@pytest.mark.parametrize("correction", [0, 1])
def test_the_sum_over_calibration_sets_is_the_mean_of_many(setting, correction):
    s = validity.MARGINAL_SETTINGS[setting]
    rng, population = np.random.default_rng(0), s.population
    n, errors = population.draw(rng, s.n, 20_000)
    most = validity.allowed_errors(s, correction)
    met = (errors.cumsum(axis=1) <= most) & (n > 0)
    last = np.where(met, np.arange(n.shape[1]), -1).max(axis=1)
    if correction:
        np.testing.assert_array_equal(last, guarantees.conformal_risk_control(n, errors, s.risk))
    value = np.where(last >= 0, population.wrong[last], 0)
    found = validity.risk_control_exactly(s, correction)
    assert abs(found["rate"] - value.mean()) < 5 * value.std() / np.sqrt(20_000)
    assert abs(found["abstains"] - (last < 0).mean()) < 5 * np.sqrt(0.25 / 20_000)
    coverage = np.where(last >= 0, population.coverage[last], 0)
    assert abs(found["coverage"] - coverage.mean()) < 5 * coverage.std() / np.sqrt(20_000)
    infimum = np.minimum((errors.cumsum(axis=1) <= most).sum(axis=1), n.shape[1] - 1)
    wide = np.where((errors.cumsum(axis=1) <= most).all(axis=1), last, infimum)
    value = population.wrong[wide]
    found = validity.risk_control_exactly(s, correction, whole_cells=False)
    assert abs(found["rate"] - value.mean()) < 5 * value.std() / np.sqrt(20_000) + 1e-12


def test_the_sum_is_that_of_all_outcomes():
    """Three cells, n = 4, every calibration set written out."""
    population = validity.Population(np.array([0.5, 0.3, 0.2]), np.array([0.1, 0.5, 0.7]))
    s = validity.Setting("", population, 4, 0.4, np.nan)
    chance = np.stack([population.mass * (1 - population.risk), population.mass * population.risk]).ravel()
    mean = 0.0
    for counts in itertools.product(range(5), repeat=6):
        if sum(counts) == 4:
            right, wrong = np.array(counts).reshape(2, 3)
            last = int(guarantees.conformal_risk_control(right + wrong, wrong, 0.4))
            mean += stats.multinomial.pmf(counts, 4, chance) * (population.wrong[last] if last >= 0 else 0)
    np.testing.assert_allclose(validity.risk_control_exactly(s)["rate"], mean, rtol=1e-10)


def test_the_mean_coverage_is_that_of_order_statistics():
    """Without ties the miss rate is 1 − k/(n + 1), but for the width of a cell."""
    for name, mass, n, alpha in validity.CONFORMAL_SETTINGS[:4]:
        rank = np.ceil(np.round((n + 1) * (1 - alpha), 9))
        assert abs(validity.coverage_exactly(mass, n, alpha)["rate"] - (1 - rank / (n + 1))) < 1e-3, name


@pytest.mark.skipif(FOLDER is None, reason="SC_JAX_EXTRA_DATA is not set: the folder of published outputs")
def test_published_outputs_as_populations():
    settings = validity.pools(Path(FOLDER))
    assert len(settings) == 12
    for s in settings:
        assert abs(s.population.mass.sum() - 1) < 1e-9
    found = validity.judged(validity.pac_rows(settings[:3], 500))
    assert not [row for row in found if row["fails"]]


@pytest.mark.parametrize("method", ["sgr", "ltt_fixed_sequence", "ltt_holm", "crc", "singleton_lac"])
def test_from_predictions_to_decisions_the_promise_is_kept(method):
    """The whole way: calibration sets of 250 from a pool, with ties, a fifth of them to tune on; violations are of the pool."""
    pool = predictions(0, 5000, signal=2.6, digits=1)
    wrong = errors(pool)
    elsewhere = known_by(predictions(1, ids_given=False))  # calibration sets are of the pool, which is refused as such
    rng = np.random.default_rng(0)
    risks, marginal = [], method in ("crc", "singleton_lac")
    for _ in range(150):
        drawn = dataclasses.replace(select(pool, rng.choice(5000, 250)), example_id=np.arange(250))
        tuning, rest = guarantees.divide(drawn, 0.2, 0)
        if method == "singleton_lac":
            chosen = conformal.fit_selector(drawn, "lac", risk=0.05)
        elif method == "crc":
            chosen = guarantees.fit(drawn, method, risk=0.05)
        else:
            chosen = guarantees.fit(rest, method, risk=0.08, delta=0.2, tuning=tuning, whole=drawn)
        accept = dataclasses.replace(chosen, fitted_on=elsewhere, tuned_on=())(pool).accept
        risks.append((wrong & accept).mean() if marginal else wrong[accept].mean() if accept.any() else 0.0)
    if marginal:
        assert 0.01 < np.mean(risks) <= 0.05 + 3 * np.std(risks) / np.sqrt(150)
    else:
        bad = sum(risk > 0.08 for risk in risks)
        assert stats.binomtest(bad, 150, 0.2, alternative="greater").pvalue > 0.01
        assert sum(risk > 0 for risk in risks) > 10
