"""Promises are kept, and variants that break them are caught: a sample of `python -m benchmarks.validity`."""

import dataclasses
import itertools
import os
from pathlib import Path

import numpy as np
import pytest
from made_up import errors, predictions
from scipy import stats

from benchmarks import patterns, validity
from sc_jax import ops
from sc_jax import select as select_door
from sc_jax.methods import conformal, guarantees
from sc_jax.predictions import Predictions, known_by, select

FOLDER = os.environ.get("SC_JAX_EXTRA_DATA")
LTT = ("fixed_sequence", "bonferroni", "holm")


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
        "sets_lac under a shift that is not known",
        f"sgr, {patterns.CHOSEN[0]}",
    }
    promised = {row["method"] for row in judged if not row["broken"]}
    assert {*select_door.METHODS, "conformal quantile", "monitor"} - {f"ltt_{p}" for p in LTT} <= promised
    assert {f"ltt_{procedure}, sampled thresholds" for procedure in LTT} <= promised
    for within in list(patterns.WITHIN.values())[1:]:
        assert {f"singleton_lac{within}", f"sets_lac{within}", f"crc{within}"} <= promised


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
    outputs = validity.pools(Path(FOLDER))
    assert len(outputs) == 4
    for o in outputs:
        for s in o.settings():
            assert len(s.population.mass) > 9000  # scores as they are, not in steps
            assert abs(s.population.mass.sum() - 1) < 1e-9
            assert abs(s.population.wrong[-1] - o.error.mean()) < 1e-9
            met = s.population.selective_risk <= s.risk
            assert 0.3 < s.population.coverage[met].max() < 1  # a target that tells something
    found = validity.judged(validity.pool_rows([outputs[0]._replace(targets=((500, 0.05),))], 200))
    assert len(found) == len(validity.PAC) + 3
    assert not [row for row in found if row["fails"]]


def pool_of(given):
    return validity.Outputs("made up", given.logits, given.label, ((60, 0.1), (60, None)))


def test_a_pool_has_the_risk_of_its_examples_at_every_threshold():
    given = predictions(0, 300, signal=2.6, digits=1)
    (s, near) = pool_of(given).settings()
    score, wrong = ops.msp(given.logits), errors(given)
    thresholds = np.unique(score)[::-1]
    for cell in range(0, len(thresholds), 13):
        accept = score >= thresholds[cell]
        assert s.population.coverage[cell] == pytest.approx(accept.mean())
        assert s.population.selective_risk[cell] == pytest.approx(wrong[accept].mean())
    assert near.risk == round(0.98 * wrong.mean(), 4)


def test_many_cells_are_drawn_as_few_are():
    """By either way of drawing, counts have the mean and the variance of n draws, and errors those of the risks."""
    mass, risk = np.array([0.5, 0.2, 0.3]), np.array([0.0, 1.0, 0.25])
    few = validity.Population(mass, risk).draw(np.random.default_rng(0), 4, 40_000)
    many = validity.Population(mass, risk).draw(np.random.default_rng(0), 2, 40_000)
    for (count, wrong), n in ((few, 4), (many, 2)):
        assert (count.sum(axis=1) == n).all()
        np.testing.assert_allclose(count.mean(axis=0), n * mass, atol=0.03)
        np.testing.assert_allclose(np.cov(count.T), n * (np.diag(mass) - np.outer(mass, mass)), atol=0.03)
        np.testing.assert_allclose(wrong.mean(axis=0), n * mass * risk, atol=0.03)
        assert (wrong <= count).all()


def test_rates_of_lac_on_a_pool_are_those_of_its_examples():
    pool = predictions(0, 400, signal=2.6, digits=1)
    miss, wrong = validity.lac_rates(pool_of(pool))
    elsewhere = known_by(predictions(1, ids_given=False))  # calibration sets are of the pool, which is refused as such
    rng = np.random.default_rng(0)
    for _ in range(5):
        drawn = dataclasses.replace(select(pool, rng.choice(400, 60)), example_id=np.arange(60))
        fitted = conformal.fit(drawn, "lac", 0.1)._replace(fitted_on=())
        q = np.array(fitted.quantile["all"])
        members = conformal.sets(fitted, pool)
        assert miss(q) == pytest.approx((~members[np.arange(400), pool.label]).mean())
        chosen = conformal.fit_selector(drawn, "lac", risk=0.1)
        decision = dataclasses.replace(chosen, fitted_on=elsewhere, tuned_on=())(pool)
        assert wrong(q) == pytest.approx((decision.accept & (decision.prediction != pool.label)).mean())


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


def of_population(population):
    """One example of each pattern, with labels that nothing looks at."""
    size = len(population.logits)
    about = {"group": population.group, "provenance": patterns.ORIGIN}
    return Predictions(np.zeros(size, int), population.logits, 10**6 + np.arange(size), **about)


def draws_of(case, count):
    rng = np.random.default_rng(5)
    return case.population.draw(rng, case.n // 5, count), case.population.draw(rng, case.n - case.n // 5, count)


def of_case(case):
    return f"{case.method}{patterns.WITHIN[case.within]}, {case.name}"


@pytest.mark.parametrize("case", patterns.MARGINAL + patterns.PROMISED, ids=of_case)
def test_what_is_fitted_to_counts_is_what_is_fitted_to_examples(case):
    population, (tuning, counts) = case.population, draws_of(case, 4)
    every, kind = of_population(population), case.method.partition("_")
    if kind[0] in ("singleton", "sets"):
        found = patterns.members(population, kind[2], counts, case.risk, population.strata(case.within))
        accepted, answer = patterns.singletons(population, found)
    else:
        last = patterns.thresholds(population, case.method, counts, tuning, case.risk, case.delta, case.within)
        accepted = patterns.accepted(population, last, case.within)
    for i in range(4):
        examples, tuned = population.written_out(counts[i]), population.written_out(tuning[i], 10**5)
        if kind[0] == "sets":
            fitted = conformal.fit(examples, kind[2], case.risk, by=case.within)
            for label in range(population.mass.shape[1]):  # sets by label are of no label's own: any will do
                of_label = dataclasses.replace(every, label=np.full(len(every.label), label))
                np.testing.assert_array_equal(found[i], conformal.sets(fitted, of_label))
        elif kind[0] == "singleton":
            decision = conformal.fit_selector(examples, kind[2], risk=case.risk, within=case.within)(every)
            np.testing.assert_array_equal(accepted[i], decision.accept)
            np.testing.assert_array_equal(answer[i][accepted[i]], decision.prediction[accepted[i]])
        else:
            given = {"risk": case.risk, "delta": case.delta, "within": case.within}
            chosen = guarantees.fit(examples, case.method, tuning=tuned, **given)
            np.testing.assert_array_equal(accepted[i], chosen(every).accept)


def test_sets_by_clusters_and_under_a_shift_are_those_of_the_examples():
    rng = np.random.default_rng(0)
    _, population, tuned, n, alpha = patterns.CLUSTERED
    tuning = population.written_out(population.draw(rng, tuned, 1)[0], 10**5)
    cluster = conformal.cluster_classes(tuning, "lac", alpha, 3)
    counts, every = population.draw(rng, n, 3), of_population(population)
    found = patterns.members(population, "lac", counts, alpha, np.broadcast_to(cluster.index, population.mass.shape))
    for i in range(3):
        fitted = conformal.fit(population.written_out(counts[i]), "lac", alpha, by="label", cluster=cluster)
        np.testing.assert_array_equal(found[i], conformal.sets(fitted, every))
    _, population, n, alpha = patterns.SHIFTED
    weight, every = patterns.shift(population), of_population(population)
    for drawn in population.draw(rng, n, 3):
        limit = patterns.shifted_limits(population, drawn, alpha, weight)
        examples = population.written_out(drawn)
        own = np.repeat(weight, drawn.sum(axis=1))
        np.testing.assert_array_equal(
            population.nonconformity("lac") <= limit[:, None],
            conformal.sets_under_shift(examples, every, "lac", alpha, own, weight),
        )


@pytest.mark.parametrize("within", patterns.WITHIN)
def test_rates_are_sums_over_patterns_and_labels(within):
    population = patterns.TIED
    rng = np.random.default_rng(0)
    accept, wrong = rng.random((2, 90)) < 0.5, rng.random((2, 90, 3)) < 0.5
    lost, kept = patterns.rates(population, accept, wrong, within)
    index = population.strata(within)
    for draw, stratum in itertools.product(range(2), range(index.max() + 1)):
        parts = [
            (population.mass[p, k], accept[draw, p], wrong[draw, p, k])
            for p, k in itertools.product(range(90), range(3))
            if index[p, k] == stratum
        ]
        whole = sum(mass for mass, _, _ in parts)
        assert lost[draw, stratum] == pytest.approx(sum(m for m, a, w in parts if a and w) / whole)
        assert kept[draw, stratum] == pytest.approx(sum(m for m, a, _ in parts if a) / whole)


def test_a_promise_in_strata_fails_where_one_of_them_does():
    rng = np.random.default_rng(0)
    fine = rng.uniform(0.05, 0.15, (2000, 3))
    assert patterns.marginal(fine, 0.1)["p"] > 0.01
    assert patterns.marginal(fine + np.array([0.0, 0.0, 0.01]), 0.1)["p"] < 1e-6
    assert patterns.marginal(np.zeros((5, 2)), 0.1)["p"] == 1
    assert patterns.marginal(np.full((5, 1), 0.2), 0.1)["p"] == 0


def test_the_best_thresholds_are_those_of_the_population():
    """As if the calibration set were the population, against every choice of thresholds of two strata."""
    population = patterns.made(6, 7, 2, 3.0)
    case = patterns.Case("sgr", "predicted_class", "", population, 1, 0.25, 0.1)
    mass, score = population.mass, -patterns.cells(population).of
    best = 0.0
    for least in itertools.product(range(-6, 2), repeat=2):
        accept = score >= np.array(least)[population.prediction]
        risks = [
            (mass * population.wrong)[own].sum() / mass[own].sum()
            for k in range(2)
            if (own := accept & (population.prediction == k)).any()
        ]
        if all(risk <= 0.25 for risk in risks):
            best = max(best, mass[accept].sum())
    none = np.zeros((3, 7), bool)
    assert patterns.tightness(case, none)["oracle_coverage"] == pytest.approx(best)
    assert best > 0
    assert patterns.tightness(case, none)["abstains"] == 1
