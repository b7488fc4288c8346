"""The study of cascades: contrasts by hand, searches that do not see the test split, certificates that hold."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math

import numpy as np
import pytest
from scipy import stats

from sc_jax import ops
from sc_jax.files import InputError
from sc_jax.methods import cascade, cascade_study
from sc_jax.methods.cascade import EMPTY, WHOLE, Task
from sc_jax.methods.cascade_study import Settings
from sc_jax.ops import resampling
from sc_jax.predictions import Predictions

SETTINGS = Settings(Task("risk", 0.1), resamples=40)
COST = (1.0, 2.0)


def split(first_id: int, seeds: range, n: int = 500, k: int = 4, is_ood: np.ndarray | None = None) -> list[Predictions]:
    """One file per seed, of the same examples."""
    label = np.random.default_rng(first_id).integers(0, k, n)
    hard = np.random.default_rng(first_id + 1).normal(size=(n, k))
    made = []
    for seed in seeds:
        noise = np.random.default_rng([first_id, seed]).normal(size=(n, k))
        logits = 2.5 * np.eye(k)[label] + hard + noise
        made.append(Predictions(label, logits, np.arange(first_id, first_id + n), is_ood=is_ood, source=f"{seed}.npz"))
    return made


def candidates(cascades: int = 3, **options: object) -> list[cascade_study.Candidates]:
    members = [
        (f"seed {i}", c, t, {})
        for i, (c, t) in enumerate(
            zip(split(0, range(2 * cascades)), split(10_000, range(2 * cascades), **options), strict=True)
        )
    ]
    return cascade_study.disjoint(members, 2)


@pytest.fixture(scope="module")
def document() -> dict:
    return json.loads(json.dumps(cascade_study.evaluate(candidates(), COST, SETTINGS)))


def test_no_member_is_in_two_cascades() -> None:
    made = candidates()
    assert [one.name for one in made] == ["seed 0 → seed 1", "seed 2 → seed 3", "seed 4 → seed 5"]
    with pytest.raises(InputError, match="3 stages of 2 members"):
        cascade_study.disjoint([(name, *split(0, range(2)), {}) for name in "ab"], 3)


def test_policies_are_those_of_the_method_with_their_metrics(document: dict) -> None:
    by_name = {row["policy"]: row["metrics"] for row in document["policies"]}
    expected: dict[str, list[dict[str, float]]] = {}
    for one in candidates():
        calibration, test = (cascade.stages(files, COST) for files in (one.calibration, one.test))
        window = cascade.fit(calibration, SETTINGS.task, 0.1)
        for name, windows in (
            ("single", [EMPTY]),
            ("ensemble", [WHOLE]),
            ("single_threshold", [cascade.least_confident(calibration.score[0], 0.2)]),
            ("window", window.windows),
        ):
            before, after = cascade.follow(windows, calibration), cascade.follow(windows, test)
            threshold = ops.threshold_at_risk(before.score, before.error, 0.1)
            accept = after.score >= threshold
            expected.setdefault(name, []).append(
                {
                    "coverage_at_risk": ops.coverage_at_risk(after.score, after.error, 0.1),
                    "risk_at_coverage": ops.risk_at_coverage(after.score, after.error, 0.8),
                    "aurc": ops.aurc(after.score, after.error),
                    "error": after.error.mean(),
                    "cost_multiple": 1 + 2 * (after.stage == 1).mean(),
                    "passed_on": (after.stage == 1).mean(),
                    "decided_coverage": accept.mean(),
                    "decided_risk": after.error[accept].mean(),
                }
            )
    assert set(by_name) == {*expected, "oracle"}
    for name, rows in expected.items():
        for metric in rows[0]:
            assert by_name[name][metric]["estimate"] == pytest.approx(np.mean([row[metric] for row in rows])), metric
            assert by_name[name][metric]["per_seed"] == pytest.approx([float(row[metric]) for row in rows])


def test_the_gain_kept_is_a_paired_difference(document: dict) -> None:
    of = {row["policy"]: np.array(row["metrics"]["coverage_at_risk"]["per_seed"]) for row in document["policies"]}
    gain, kept, _ = document["claims"]
    assert gain["per_seed"] == pytest.approx(of["ensemble"] - of["single"])
    expected = of["window"] - of["single"] - 0.8 * (of["ensemble"] - of["single"])
    assert kept["per_seed"] == pytest.approx(expected)
    assert kept["estimate"] == pytest.approx(expected.mean())


def test_resamples_of_a_policy_are_those_of_its_ranking() -> None:
    """Row by row, by examples repeated as often as they were drawn."""
    one = candidates(1)[0]
    calibration, test = (cascade.stages(files, COST) for files in (one.calibration, one.test))
    policy = cascade.fit(calibration, SETTINGS.task, 0.1)
    outcome = cascade.apply(policy, test)
    counts = resampling.resample_counts(0, 500, 5)
    measured = cascade_study._measured(outcome, policy.threshold, 1.0, SETTINGS, counts)
    for b, row in enumerate(counts):
        drawn = np.repeat(np.arange(500), row)
        score, error = outcome.score[drawn], outcome.error[drawn]
        assert measured["coverage_at_risk"].replicates[b] == pytest.approx(ops.coverage_at_risk(score, error, 0.1))
        assert measured["aurc"].replicates[b] == pytest.approx(ops.aurc(score, error))
        assert measured["cost"].replicates[b] == pytest.approx(outcome.cost[drawn].mean())
        accept = score >= policy.threshold
        assert measured["decided_risk"].replicates[b] == pytest.approx(error[accept].mean())


def test_nothing_is_kept_of_a_gain_that_is_not_shown() -> None:
    one = candidates(1)[0]
    alike = one._replace(test=[one.test[0]] * 2, calibration=[one.calibration[0]] * 2)
    document = cascade_study.evaluate([alike], COST, SETTINGS)
    assert document["claims"][0]["estimate"] == 0
    assert document["claims"][0]["verdict"] == "not shown"
    assert all(row["verdict"].startswith("not asked") for row in document["claims"][1:])


def test_a_sweep_goes_from_the_single_model_to_the_ensemble(document: dict) -> None:
    of = {row["policy"]: row["metrics"] for row in document["policies"]}
    for kind in ("window", "single_threshold"):
        rows = [row for row in document["sweep"] if row["kind"] == kind]
        assert rows[0]["cost_multiple"] == 1
        assert rows[0]["coverage_at_risk"] == pytest.approx(of["single"]["coverage_at_risk"]["estimate"])
        passed = [row["passed_on"] for row in rows]
        assert passed == sorted(passed)
    assert rows[-1]["aurc"] == pytest.approx(of["ensemble"]["aurc"]["estimate"])


def test_changes_add_up() -> None:
    one = candidates(1)[0]
    calibration, test = (cascade.stages(files, COST) for files in (one.calibration, one.test))
    policy = cascade.fit(calibration, SETTINGS.task, 0.1)
    changes = cascade_study.changed(test, policy)
    shares = dict(changes)
    passed = shares.pop("passed_on")
    assert sum(shares.values()) == pytest.approx(passed)
    outcome = cascade.apply(policy, test)
    before, after = test.score[0] >= policy.threshold, outcome.score >= policy.threshold
    assert changes["rejected_wrong"] == pytest.approx((before & ~after & test.error[0]).mean())
    assert changes["accepted_right"] == pytest.approx((~before & after & ~outcome.error).mean())
    assert cascade_study.changed(test, dataclasses.replace(policy, windows=(EMPTY,)))["passed_on"] == 0


def test_ood_inputs_are_reported_apart_and_not_ranked_among_the_others() -> None:
    is_ood = np.arange(500) % 5 == 0
    with_ood, without = candidates(1, is_ood=is_ood), candidates(1)
    kept = [dataclasses.replace(cascade_study.select(t, ~is_ood), is_ood=None) for t in without[0].test]
    document = cascade_study.evaluate(with_ood, COST, SETTINGS)
    same = cascade_study.evaluate([without[0]._replace(test=kept)], COST, SETTINGS)
    assert document["n"] == 400
    assert document["claims"][0]["estimate"] == same["claims"][0]["estimate"]
    assert same["ood"] == []
    rows = {row["policy"]: row for row in document["ood"]}
    assert rows["single"]["cost_multiple_ood"] == 1
    assert rows["ensemble"]["cost_multiple_ood"] == 3
    low, high = rows["window"]["cost_multiple_ood_interval"]
    assert 1 <= low <= rows["window"]["cost_multiple_ood"] <= high <= 3
    assert low < high
    moved = rows["window, moved"]
    assert moved["cost_multiple_all"] == pytest.approx(1 + 2 * 0.2, abs=0.01)


def test_costs_of_either_kind_and_of_the_mix_have_intervals() -> None:
    is_ood = np.arange(500) % 5 == 0
    document = cascade_study.evaluate(candidates(1, is_ood=is_ood), COST, SETTINGS)
    one = candidates(1, is_ood=is_ood)[0]
    test = cascade.stages(one.test, COST)
    policy = cascade.fit(cascade.stages(one.calibration, COST), SETTINGS.task, 0.1)
    for name, of in (("window", policy), ("window, moved", cascade.adapt(policy, test))):
        row = next(row for row in document["ood"] if row["policy"] == name)
        went = cascade.follow(of.windows, test).stage == 1
        for kind, which in (("", ~is_ood), ("_ood", is_ood), ("_all", np.ones(500, bool))):
            assert row[f"passed_on{kind}"] == pytest.approx(went[which].mean())
            assert row[f"cost_multiple{kind}"] == pytest.approx(1 + 2 * went[which].mean())
            for what in ("passed_on", "cost_multiple"):
                low, high = row[f"{what}{kind}_interval"]
                assert low <= row[f"{what}{kind}"] <= high
                assert low < high


# --- shifts ---


def shifted(one: cascade_study.Candidates) -> cascade_study.Candidates:
    """The test split again with less confidence, and with none."""
    halved = [dataclasses.replace(t, logits=t.logits / 2) for t in one.test]
    flat = [dataclasses.replace(t, logits=t.logits / 100) for t in one.test]
    return one._replace(shifted={"halved": halved, "flat": flat})


def test_shifted_sets_meet_the_frozen_policies_and_a_moved_window() -> None:
    one = shifted(candidates(1)[0])
    document = cascade_study.evaluate([one], COST, SETTINGS)
    assert list(dict.fromkeys(row["set"] for row in document["shifts"])) == ["test split", "halved", "flat"]
    calibration, given = cascade.stages(one.calibration, COST), cascade.stages(one.shifted["halved"], COST)
    window = cascade.fit(calibration, SETTINGS.task, 0.1)
    rows = {row["policy"]: row["metrics"] for row in document["shifts"] if row["set"] == "halved"}
    assert set(rows) == {"single", "ensemble", "single_threshold", "window", "window, moved"}
    for name, policy in (("window", window), ("window, moved", cascade.adapt(window, given))):
        outcome = cascade.follow(policy.windows, given)
        accept = outcome.score >= window.threshold
        for metric, value in (
            ("cost_multiple", 1 + 2 * (outcome.stage == 1).mean()),
            ("passed_on", (outcome.stage == 1).mean()),
            ("error", outcome.error.mean()),
            ("decided_coverage", accept.mean()),
            ("decided_risk", outcome.error[accept].mean()),
        ):
            told = rows[name][metric]
            assert told["estimate"] == pytest.approx(value), metric
            assert told["interval"][0] <= value <= told["interval"][1]
    flat = {row["policy"]: row["metrics"] for row in document["shifts"] if row["set"] == "flat"}
    assert flat["window"]["passed_on"]["estimate"] == 0  # τ lies above all of them
    assert flat["window, moved"]["passed_on"]["estimate"] == pytest.approx(0.1)
    test = {row["policy"]: row["metrics"] for row in document["shifts"] if row["set"] == "test split"}
    of = {row["policy"]: row["metrics"] for row in document["policies"]}
    assert test["window"]["decided_risk"]["estimate"] == of["window"]["decided_risk"]["estimate"]


def test_a_moved_window_does_not_see_labels() -> None:
    one = shifted(candidates(1)[0])
    blind = [dataclasses.replace(t, label=(t.label + 1) % 4) for t in one.shifted["halved"]]
    told, other = (
        {row["policy"]: row["metrics"] for row in cascade_study.evaluate([c], COST, SETTINGS)["shifts"]}
        for c in (one._replace(shifted={"x": one.shifted["halved"]}), one._replace(shifted={"x": blind}))
    )
    for metric in ("cost_multiple", "passed_on", "decided_coverage"):
        assert told["window, moved"][metric]["estimate"] == other["window, moved"][metric]["estimate"]
    assert told["window, moved"]["error"]["estimate"] != other["window, moved"]["error"]["estimate"]


# --- search ---


@pytest.mark.parametrize("budget", [1.0, 1.3])
def test_the_policy_of_a_budget_is_written_whole(budget: float) -> None:
    """Read again and followed on the test files that it names, it does what the row of the budget says."""
    members = zip(split(0, range(2), n=3000), split(10_000, range(2), n=3000), strict=True)
    (one,) = cascade_study.disjoint([(f"seed {i}", *pair, {}) for i, pair in enumerate(members)], 2)
    document = cascade_study.evaluate([one], COST, dataclasses.replace(SETTINGS, budget=budget))
    (chosen,), row = document["chosen"], next(row for row in document["search"] if row["budget"] == budget)
    for name, place in (("best", "test"), ("certified", "certified")):
        policy = cascade.Policy.from_json(json.loads(json.dumps(chosen[name])))
        order = [one.names.index(model) for model in policy.models]
        given = cascade.stages([one.test[i] for i in order], [COST[i] for i in order])
        outcome = cascade.apply(policy, given)
        accept = outcome.score >= policy.threshold
        assert row[f"{place}_coverage"] == pytest.approx(accept.mean())
        assert row[f"{place}_risk"] == pytest.approx(outcome.error[accept].mean())
        assert row[f"{place}_cost_multiple"] == pytest.approx(outcome.cost.mean())
        with pytest.raises(InputError, match="fitted on these very examples"):
            cascade.apply(policy, cascade.stages([one.calibration[i] for i in order], [COST[i] for i in order]))
    assert row["search_cost_multiple"] <= budget + 1e-9
    if budget == 1:
        assert list(chosen["best"]["models"]) == ["seed 0"]
    assert budget in {row["budget"] for row in document["search"]}


@pytest.mark.parametrize("kind", ["tpr", "scod"])
def test_tasks_of_ood_examples_are_searched_where_the_calibration_split_has_them(kind: str) -> None:
    is_ood = np.arange(500) % 4 == 0
    members = [
        (str(i), *pair, {})
        for i, pair in enumerate(
            zip(split(0, range(2), is_ood=is_ood), split(10_000, range(2), is_ood=is_ood), strict=True)
        )
    ]
    settings = dataclasses.replace(SETTINGS, task=Task(kind, 0.8), budget=1.4)
    with_ood = cascade_study.disjoint(members, 2)
    document = cascade_study.evaluate(with_ood, COST, settings)
    assert document["chosen"][0]["best"]["task"] == {"kind": kind, "target": 0.8}
    assert document["chosen"][0]["certified"] is None
    for row in document["search"]:
        assert row["search_coverage"] >= 0.8
        assert 0 <= row["test_accepted_ood"] <= 1
    lost = [row["search_accepted_ood" if kind == "tpr" else "search_scod_risk"] for row in document["search"]]
    assert lost == sorted(lost, reverse=True)
    assert lost[-1] < lost[0]
    without = cascade_study.evaluate(candidates(1), COST, settings)
    assert without["search"] == without["chosen"] == []


def test_halves_are_disjoint_and_whole() -> None:
    first, second = cascade_study.halves(np.arange(1000))
    assert sorted([*first, *second]) == list(range(1000))
    assert 400 < len(first) < 600
    again, _ = cascade_study.halves(np.arange(1000)[::-1])
    assert set(np.arange(1000)[::-1][again]) == set(first)  # a matter of the id, not of the row


def test_the_best_of_all_orders_by_brute_force() -> None:
    models = split(0, range(3), n=120)
    cost = (1.0, 2.0, 3.0)
    settings = dataclasses.replace(SETTINGS, task=Task("risk", 0.15))
    found = cascade_study.search_orders(models, cost, settings, most=3, thresholds=7, points=3)
    assert sorted(found.orders, key=lambda order: (len(order), order)) == [
        order for size in (1, 2, 3) for order in itertools.permutations(range(3), size)
    ]
    for budget in (1.0, 1.5, 2.5, 6.0):
        chosen = cascade_study.best_of(found, settings.task, budget)
        most = max(
            (
                float(value)
                for table in found.tables
                for value, spent in zip(cascade.value(table, settings.task), table.cost, strict=True)
                if spent <= budget
            ),
            default=-math.inf,
        )
        if most == -math.inf:
            assert chosen is None
            continue
        done = cascade_study._done("x", chosen, models, cost, settings)
        assert done["x_coverage"] == pytest.approx(most)
        assert done["x_risk"] <= 0.15
        assert done["x_cost_multiple"] <= budget + 1e-9


def test_a_search_does_not_see_the_test_split(document: dict) -> None:
    shuffled = []
    for one in candidates():
        other = [dataclasses.replace(t, logits=-t.logits) for t in one.test]
        shuffled.append(one._replace(test=other))
    again = cascade_study.evaluate(shuffled, COST, SETTINGS)
    for row, other in zip(document["search"], again["search"], strict=True):
        for split_name in ("search", "certify"):
            assert row[f"{split_name}_coverage"] == pytest.approx(other[f"{split_name}_coverage"])
        assert row["test_coverage"] != other["test_coverage"]


def test_searched_policies_keep_their_target_where_they_were_searched(document: dict) -> None:
    for row in document["search"]:
        assert row["search_risk"] <= 0.1
        assert row["search_cost_multiple"] <= row["budget"] + 1e-9
    coverage = [row["search_coverage"] for row in document["search"]]
    assert coverage == sorted(coverage)


@pytest.fixture(scope="module")
def searched() -> tuple[list[Predictions], cascade_study.Found]:
    models = split(50_000, range(2), n=400)
    return models, cascade_study.search_orders(models, COST, SETTINGS, points=10)


def test_bands_hold_every_estimate_and_are_wider_than_single_intervals(document: dict) -> None:
    """Where all budgets have the same policies there is one estimate, and the band is its normal interval nearly."""
    for row in document["search"]:
        for what in ("coverage", "risk", "cost_multiple"):
            low, high = row[f"test_{what}_band"]
            assert low <= row[f"test_{what}"] <= high
    one = candidates(1)[0]
    counts = resampling.resample_counts(0, 500, 400)
    drawn = np.ones((400, 1))
    rows, _ = cascade_study._searched(one, COST, SETTINGS, counts)
    single = {what: rows[-1]["test_replicates"][what] for what in ("coverage", "risk")}
    estimate = {what: rows[-1][f"test_{what}"] for what in single}
    told = cascade_study._with_bands([rows], drawn, 0.95)[-1]
    for what, replicates in single.items():
        low, high = told[f"test_{what}_band"]
        inside = np.mean((replicates >= low) & (replicates <= high))
        assert inside >= 0.95
        assert (low + high) / 2 == pytest.approx(estimate[what])


def test_replicates_of_a_decision_are_those_of_repeated_examples() -> None:
    models = split(0, range(2), n=60)
    chosen = cascade_study.Chosen((0, 1), ((0.5, 2.0),), 1.0)
    counts = resampling.resample_counts(3, 60, 4)
    told = cascade_study._done("x", chosen, models, COST, SETTINGS, counts)
    given = cascade.stages(models, COST)
    outcome = cascade.follow(chosen.windows, given)
    for b, row in enumerate(counts):
        rows = np.repeat(np.arange(60), row)
        accept = outcome.score[rows] >= 1.0
        assert told["x_replicates"]["coverage"][b] == pytest.approx(accept.mean())
        assert told["x_replicates"]["risk"][b] == pytest.approx(outcome.error[rows][accept].mean())
        assert told["x_replicates"]["cost_multiple"][b] == pytest.approx(outcome.cost[rows].mean())


def test_certified_cascades_keep_their_promise(searched: tuple) -> None:
    """Violations among draws from a population that is known: their share is not significantly above δ; where the estimate is trusted, it is."""
    models, found = searched
    whole, budget = split(0, range(2), n=20_000), 1.5
    rng, draws = np.random.default_rng(0), 150
    broken = {"certified": 0, "trusted": 0}
    given_up = 0
    naive = cascade_study.best_of(found, SETTINGS.task, budget)
    looser = [cascade_study.best_of(found, Task("risk", risk), budget) for risk in (0.09, 0.1, 0.11, 0.12)]

    def breaks(chosen: cascade_study.Chosen) -> bool:
        done = cascade_study._done("x", chosen, whole, COST, SETTINGS)
        return done["x_risk"] >= 0.1 or done["x_cost_multiple"] >= budget

    verdict = {chosen: breaks(chosen) for chosen in looser}
    assert any(verdict.values())
    assert naive in verdict
    for _ in range(draws):
        rows = rng.integers(0, 20_000, 500)
        drawn = [dataclasses.replace(cascade_study.select(m, rows), example_id=np.arange(500)) for m in whole]
        chosen = cascade_study.certified(found, models, drawn, COST, budget, SETTINGS)
        given_up += chosen is None
        if chosen is not None:
            if chosen not in verdict:
                verdict[chosen] = breaks(chosen)
            broken["certified"] += verdict[chosen]
        kept = [one for one in looser if cascade_study._done("x", one, drawn, COST, SETTINGS)["x_risk"] <= 0.1]
        broken["trusted"] += any(verdict[one] for one in kept)
    assert stats.binomtest(broken["certified"], draws, SETTINGS.delta, alternative="greater").pvalue > 0.01
    assert stats.binomtest(broken["trusted"], draws, SETTINGS.delta, alternative="greater").pvalue < 0.01
    assert given_up < draws / 2


def test_certificates_are_given_in_order_and_both_promises_count() -> None:
    given = cascade.stages(split(0, range(2), n=2000), COST)
    tight = ([WHOLE], float(np.quantile(given.score[1], 0.7)))
    loose = ([WHOLE], float(given.score.min()))
    certificate = cascade.certify([tight, loose, tight], given, 0.1, 3.0, 0.05)
    assert certificate.certified == 1  # nothing after the first failure
    assert (certificate.p_cost == 0).all()  # no cost exceeds that of all stages
    accepted = given.score[1] >= tight[1]
    errors = (accepted & given.error[1]).sum()
    assert certificate.p_risk[0] == pytest.approx(stats.binom.cdf(errors, accepted.sum(), 0.1))
    assert cascade.certify([tight], given, 0.1, 2.0, 0.05).certified == 0  # the risk is kept, the budget is not
    with pytest.raises(ValueError, match="no decision"):
        cascade.certify([], given, 0.1, 2.0, 0.05)


def test_what_is_certified_comes_from_the_other_half(searched: tuple) -> None:
    models, found = searched
    other = split(20_000, range(2), n=1000)
    chosen = cascade_study.certified(found, models, other, COST, 1.5, SETTINGS)
    assert chosen is not None
    given = cascade_study._stages_of(other, COST, chosen.order, SETTINGS)
    assert cascade.certify([(chosen.windows, chosen.threshold)], given, 0.1, 1.5, SETTINGS.delta).certified == 1
    hopeless = [dataclasses.replace(m, logits=-m.logits) for m in other]
    assert cascade_study.certified(found, models, hopeless, COST, 1.5, SETTINGS) is None


def test_a_task_that_cannot_be_met_names_the_cascade() -> None:
    one = candidates(1)[0]
    wrong = one._replace(calibration=[dataclasses.replace(c, logits=-c.logits) for c in one.calibration])
    with pytest.raises(InputError, match="seed 0 → seed 1: no threshold"):
        cascade_study.evaluate([wrong], COST, SETTINGS)


def test_three_stages_are_searched_jointly_of_a_few_models() -> None:
    for models, most in ((3, 3), (cascade_study.JOINT + 1, 2)):
        found = cascade_study.search_orders(
            split(0, range(models), n=40), (1.0,) * models, SETTINGS, thresholds=3, points=2
        )
        assert max(map(len, found.orders)) == most
