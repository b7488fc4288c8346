"""A study's aggregates, contrasts, curves and evidence against brute force over seeds and resamples."""

import dataclasses
import json
import math

import numpy as np
import pytest
from made_up import (
    ALPHAS,
    CLASSES,
    PRIMARY,
    SEEDS,
    SETTINGS,
    TEST,
    best_p,
    errors,
    metrics_of,
    resampled,
    runs,
    score_of,
    study_counts,
)

from sc_jax import files, ops
from sc_jax.config import Contrast
from sc_jax.files import InputError
from sc_jax.methods import contrasts, repair, study
from sc_jax.ops import resampling

B = SETTINGS.resamples
WITHOUT_ROWS = ("aggregates", "contrasts", "curves", "suppression", "max_logit_gap")
SIDES = [(alpha, score) for alpha in ALPHAS for score in SETTINGS.scores]


@pytest.fixture(scope="module")
def document():
    return study.evaluate(runs(), SETTINGS, PRIMARY)


@pytest.fixture(scope="module")
def brute():
    """(α, score) → [(metrics, [metrics of each resample])] by seed: p chosen anew wherever calibration is resampled."""
    counts, calibration_counts, _ = study_counts()
    table = {}
    for run in runs():
        tests = [resampled(run.test, row) for row in counts]
        calibrations = [resampled(run.calibration, row) for row in calibration_counts]
        for score in SETTINGS.scores:
            whole = metrics_of(score, run.test, best_p(score, run.calibration))
            drawn = [metrics_of(score, tests[b], best_p(score, calibrations[b])) for b in range(B)]
            table.setdefault((run.alpha, score), []).append((whole, drawn))
    return table


def brute_replicates(brute, metric, treatment, control=None):
    """[b]: mean over the drawn seeds of metric(treatment) − metric(control) on the drawn examples."""
    values = []
    for b, drawn in enumerate(study_counts()[2]):
        total = 0.0
        for s, times in enumerate(drawn):
            for _ in range(times):
                total += brute[treatment][s][1][b][metric]
                total -= brute[control][s][1][b][metric] if control else 0
        values.append(total / drawn.sum())
    return np.array(values)


def sides(row):
    return tuple((row[side]["alpha"], row[side]["score"]) for side in ("treatment", "control"))


# --- rows -------------------------------------------------------------------------------------------------------------


def test_there_is_a_row_for_every_member_and_score_in_order(document):
    rows = [(row["tags"]["alpha"], row["tags"]["seed"], row["score"]) for row in document["runs"]]
    assert rows == [(a, s, score) for a in ALPHAS for s in SEEDS for score in SETTINGS.scores]
    for row in document["runs"]:
        assert (row["n"], row["split"], row["intervals_cover"]) == (TEST, "test", "test examples")
        assert row["predictions"] == f"alpha={row['tags']['alpha']:g}-seed={row['tags']['seed']}/test.npz"
        assert row["fitted_on"] == (None if row["score"] == "msp" else "validation")
        assert row["intervals"].keys() < row["metrics"].keys()
        without = row["metrics"].keys() - row["intervals"].keys()
        assert without.isdisjoint(document["aggregates"][0]["metrics"])  # what is averaged over seeds has replicates
    assert document["left_out"] == []


def test_the_order_in_which_runs_are_given_does_not_matter(document):
    again = study.evaluate(runs()[::-1], SETTINGS, PRIMARY)
    files_of = [files.fingerprint_json(files._finite(d)) for d in (again, document)]
    assert files_of[0] == files_of[1]


def test_metrics_of_each_run_are_those_of_its_file(document, brute):
    for row in document["runs"]:
        expected = brute[row["tags"]["alpha"], row["score"]][SEEDS.index(row["tags"]["seed"])][0]
        assert expected.keys() <= row["metrics"].keys()
        for metric, value in expected.items():
            np.testing.assert_allclose(row["metrics"][metric], value, rtol=1e-10, err_msg=metric)


def test_aggregates_have_every_metric_that_has_replicates(document, brute):
    for row in document["aggregates"]:
        assert row["metrics"].keys() == brute[row["alpha"], row["score"]][0][0].keys()


def test_the_share_of_resamples_that_never_meet_a_risk_is_told(document, brute):
    for row in document["runs"]:
        drawn = brute[row["tags"]["alpha"], row["score"]][SEEDS.index(row["tags"]["seed"])][1]
        assert row["resamples_at_coverage_0"].keys() == {f"coverage_at_risk_{r}" for r in ("0.01", "0.02", "0.05")}
        for metric, share in row["resamples_at_coverage_0"].items():
            assert share == pytest.approx(np.mean([d[metric] == 0 for d in drawn]))


def test_everything_can_be_written_as_json(document, tmp_path):
    files.write_json(tmp_path / "metrics.json", document)
    back = files.read_json(tmp_path / "metrics.json")
    assert back.keys() == document.keys()
    assert back["contrasts"][0]["estimate"] == document["contrasts"][0]["estimate"]


# --- aggregates -------------------------------------------------------------------------------------------------------


def test_aggregates_are_means_over_seeds_with_crossed_intervals(document, brute):
    assert [(row["alpha"], row["score"]) for row in document["aggregates"]] == SIDES
    for row in document["aggregates"]:
        side = row["alpha"], row["score"]
        assert row["seeds"] == len(SEEDS)
        for metric, told in row["metrics"].items():
            per_seed = [whole[metric] for whole, _ in brute[side]]
            np.testing.assert_allclose(told["per_seed"], per_seed, rtol=1e-10)
            assert told["estimate"] == pytest.approx(np.mean(per_seed), rel=1e-10)
            expected = np.quantile(brute_replicates(brute, metric, side), [0.05, 0.95])
            np.testing.assert_allclose(told["interval"], expected, rtol=1e-9, atol=1e-12, err_msg=f"{side} {metric}")


def test_aggregates_name_the_p_of_each_seed_and_what_intervals_cover(document):
    for row in document["aggregates"]:
        if row["score"] == "msp":
            assert row["fitted"] is None
            assert "choice of p" not in row["intervals_cover"]
            continue
        calibrations = [run.calibration for run in runs() if run.alpha == row["alpha"]]
        assert row["fitted"] == [best_p(row["score"], calibration) or "msp" for calibration in calibrations]
        assert "choice of p" in row["intervals_cover"]


# --- contrasts --------------------------------------------------------------------------------------------------------


def test_contrasts_are_paired_by_seed_and_by_resample(document, brute):
    assert len(document["contrasts"]) > len(PRIMARY)
    for row in document["contrasts"]:
        (treatment, control), metric = sides(row), row["metric"]
        differences = [a[0][metric] - b[0][metric] for a, b in zip(brute[treatment], brute[control], strict=True)]
        np.testing.assert_allclose(row["per_seed"], differences, atol=1e-12)
        assert row["estimate"] == pytest.approx(np.mean(differences), abs=1e-12)
        replicates = brute_replicates(brute, metric, treatment, control)
        expected = np.quantile(replicates, [0.05, 0.95])
        np.testing.assert_allclose(row["interval"], expected, atol=1e-12, err_msg=f"{sides(row)} {metric}")
        assert row["includes_0"] == (row["interval"][0] <= 0 <= row["interval"][1])
        replicates[np.abs(replicates) < 1e-13] = 0  # equal settings differ by rounding only
        if row.get("expect") == "not_worse_by_margin":
            assert row["p"] == pytest.approx(((replicates >= row["margin"]).sum() + 1) / (B + 1))
        else:
            sided = min((replicates <= 0).sum(), (replicates >= 0).sum()) + 1
            assert row["p"] == pytest.approx(min(1, 2 * sided / (B + 1)))


def test_primary_contrasts_are_those_of_the_config_in_its_order(document):
    primary = [row for row in document["contrasts"] if row["kind"] == "primary"]
    assert document["contrasts"][: len(PRIMARY)] == primary
    for row, contrast in zip(primary, PRIMARY, strict=True):
        for field, value in dataclasses.asdict(contrast).items():
            assert row[field] == value
        assert sides(row) == (
            (contrast.treatment_alpha, contrast.treatment_score),
            (contrast.control_alpha, contrast.control_score),
        )


def test_holm_corrects_over_the_primary_contrasts_alone(document):
    primary = [row for row in document["contrasts"] if row["kind"] == "primary"]
    p = [row["p"] for row in primary]
    for row in primary:
        smaller = sorted(range(len(p)), key=lambda i: p[i])[: sorted(p).index(row["p"]) + 1]
        expected = max(min(1, (len(p) - rank) * p[i]) for rank, i in enumerate(smaller))
        assert row["p_holm"] == pytest.approx(expected)
        assert row["verdict"] == contrasts.verdict(
            row["expect"], row["interval"], row["p_holm"], SETTINGS.level, row["margin"]
        )
    assert all("p_holm" not in row and "verdict" not in row for row in document["contrasts"][len(PRIMARY) :])


def test_a_primary_contrast_is_corrected_for_the_others(document):
    """Alone, its p stays as it is."""
    alone = study.evaluate(runs(), SETTINGS, PRIMARY[:1])["contrasts"]
    assert alone[0]["p_holm"] == alone[0]["p"] == document["contrasts"][0]["p"]
    assert [row["kind"] for row in alone].count("primary") == 1


def test_exploratory_contrasts_repeat_no_other(document):
    named = [(row["metric"], *sides(row)) for row in document["contrasts"]]
    assert len(set(named)) == len(named)
    exploratory = {(r["metric"], *sides(r)) for r in document["contrasts"] if r["kind"] == "exploratory"}
    assert ("naurc", (0.2, "max_logit_pnorm"), (0.0, "msp")) in exploratory
    assert ("naurc", (0.0, "max_logit_pnorm"), (0.0, "msp")) in exploratory
    assert ("ece", (0.2, "msp"), (0.0, "msp")) in exploratory
    assert all(treatment != control for _, treatment, control in exploratory)


def test_without_primary_contrasts_all_are_exploratory():
    rows = study.evaluate(runs(), SETTINGS, ())["contrasts"]
    assert {row["kind"] for row in rows} == {"exploratory"}


def test_one_seed_has_examples_alone_to_speak_for_it():
    members = runs(seeds=(3,))
    row = study.evaluate(members, SETTINGS, PRIMARY)["contrasts"][0]
    counts = resampling.resample_counts(SETTINGS.seed, TEST, B)
    tests = {run.alpha: run.test for run in members}
    values = [
        metrics_of("msp", resampled(tests[0.2], c), 0)["naurc"]
        - metrics_of("msp", resampled(tests[0.0], c), 0)["naurc"]
        for c in counts
    ]
    np.testing.assert_allclose(row["interval"], np.quantile(values, [0.05, 0.95]), rtol=1e-9)
    assert math.isnan(row["se_seeds"])


# --- curves -----------------------------------------------------------------------------------------------------------


def test_curves_are_means_over_seeds_with_crossed_bands(document):
    counts, _, seed_counts = study_counts()
    assert [(row["alpha"], row["score"]) for row in document["curves"]] == SIDES
    for row in document["curves"]:
        members = [run for run in runs() if run.alpha == row["alpha"]]
        chosen = [best_p(row["score"], run.calibration) for run in members]
        for place in (0, 9, 49, 79, 99):
            coverage = f"{place + 1}/100"
            assert row["coverage"][place] == pytest.approx((place + 1) / 100)

            def risk(given, p, score=row["score"], coverage=coverage):
                return float(ops.risk_at_coverage(score_of(score, given, p), errors(given), coverage))

            whole = [risk(run.test, p) for run, p in zip(members, chosen, strict=True)]
            assert row["risk"][place] == pytest.approx(np.mean(whole))
            drawn = np.array(
                [[risk(resampled(run.test, c), p) for run, p in zip(members, chosen, strict=True)] for c in counts]
            )
            band = np.quantile((seed_counts * drawn).sum(axis=1) / len(SEEDS), [0.05, 0.95])
            np.testing.assert_allclose([row["low"][place], row["high"][place]], band, rtol=1e-5, atol=1e-6)


# --- the reason -------------------------------------------------------------------------------------------------------


def test_suppression_by_autodiff_is_the_closed_form(document):
    rows = document["suppression"]
    assert [row["alpha"] for row in rows] == [alpha for alpha in ALPHAS if alpha]
    for row in rows:
        np.testing.assert_allclose(row["autodiff"], row["closed_form"], atol=1e-6)
        expected = [row["alpha"] * (1 - error - 1 / CLASSES) for error in row["error"]]
        np.testing.assert_allclose(row["closed_form"], expected, rtol=1e-12)
        assert row["largest_difference_per_example"] < 1e-6
        whole = np.mean([errors(run.test).mean() for run in runs() if run.alpha == row["alpha"]])
        assert np.mean(row["error"]) == pytest.approx(whole)  # bins of equal mass: 120 examples in 10


def test_the_gap_at_equal_msp_is_told_for_every_alpha_and_kind(document):
    counts, _, seed_counts = study_counts()
    rows = document["max_logit_gap"]
    assert [row["alpha"] for row in rows] == list(ALPHAS)

    def gaps(alpha, kind):
        values, replicates = [], []
        for run in (run for run in runs() if run.alpha == alpha):
            logits = run.test.logits.astype(np.float64)
            top = logits.max(axis=1) - (logits.mean(axis=1) if kind == "centred" else 0)
            given = ops.msp(logits), top, ~errors(run.test)
            values.append(float(ops.difference_at_equal(*given, standardized=True)))
            replicates.append([float(ops.difference_at_equal(*given, standardized=True, weight=c)) for c in counts])
        return np.array(values), np.array(replicates)

    for row in rows:
        for kind in ("centred", "raw"):
            values, replicates = gaps(row["alpha"], kind)
            np.testing.assert_allclose(row[kind]["per_seed"], values, rtol=1e-9)
            drawn = (seed_counts.T * replicates).sum(axis=0) / len(SEEDS)
            np.testing.assert_allclose(row[kind]["interval"], np.nanquantile(drawn, [0.05, 0.95]), rtol=1e-9)
            if row["alpha"] == 0:
                assert f"{kind}_minus_alpha_0" not in row
            else:
                difference = row[f"{kind}_minus_alpha_0"]
                np.testing.assert_allclose(difference["per_seed"], values - gaps(0.0, kind)[0], rtol=1e-9)
        assert {len(row["profile"][name]) for name in ("msp", "right", "wrong")} == {10}


def test_of_two_classes_there_is_no_gap_at_equal_msp():
    """MSP's log-odds are twice the centred max logit, so that nothing is left to differ."""
    two = [
        dataclasses.replace(
            run,
            **{
                split: dataclasses.replace(
                    getattr(run, split), logits=getattr(run, split).logits[:, :2], label=getattr(run, split).label % 2
                )
                for split in ("test", "calibration")
            },
        )
        for run in runs()
    ]
    logits = two[0].test.logits.astype(np.float64)
    np.testing.assert_allclose(ops.msp(logits), 2 * (logits.max(axis=1) - logits.mean(axis=1)), rtol=1e-9)
    found = study.evaluate(two, dataclasses.replace(SETTINGS, scores=("msp", "margin")), (PRIMARY[0],))
    assert found["max_logit_gap"] == []
    assert [row["alpha"] for row in found["suppression"]] == [0.2]


def test_a_shift_of_the_logits_moves_the_raw_gap_alone(document):
    rng = np.random.default_rng(0)
    shift = rng.normal(scale=3, size=(TEST, 1))
    shifted = [
        dataclasses.replace(run, test=dataclasses.replace(run.test, logits=run.test.logits.astype(np.float64) + shift))
        for run in runs()
    ]
    again = study.evaluate(shifted, SETTINGS, PRIMARY)
    for before, after in zip(document["max_logit_gap"], again["max_logit_gap"], strict=True):
        np.testing.assert_allclose(after["centred"]["per_seed"], before["centred"]["per_seed"], rtol=1e-6)
        assert not np.allclose(after["raw"]["per_seed"], before["raw"]["per_seed"], rtol=1e-3)
    for before, after in zip(document["aggregates"], again["aggregates"], strict=True):
        for metric, told in before["metrics"].items():
            assert after["metrics"][metric]["estimate"] == pytest.approx(told["estimate"], rel=1e-6, abs=1e-9)


def test_all_right_predictions_leave_what_is_not_defined_as_nan():
    right = [
        dataclasses.replace(run, test=dataclasses.replace(run.test, label=run.test.logits.argmax(axis=1)))
        for run in runs()
    ]
    document = study.evaluate(right, SETTINGS, PRIMARY)
    assert math.isnan(document["contrasts"][0]["estimate"])  # NAURC
    assert document["contrasts"][0]["verdict"] == "not shown"
    assert document["contrasts"][2]["estimate"] == 0  # error
    assert "NaN" not in json.dumps(files._finite(document))


def test_scores_that_are_fitted_otherwise_are_named_so():
    """Of features, and of two parameters."""
    kernel = np.random.default_rng(0).normal(size=(7, CLASSES))

    def with_features(given, seed):
        features = np.random.default_rng(seed).normal(size=(len(given), 7)) + kernel.T[given.label]
        return dataclasses.replace(given, features=features, head_kernel=kernel, head_bias=np.zeros(CLASSES))

    members = [
        dataclasses.replace(run, test=with_features(run.test, i), calibration=with_features(run.calibration, 100 + i))
        for i, run in enumerate(runs())
    ]
    scores = ("msp", "mahalanobis", "vim", "msp_pnorm")
    document = study.evaluate(members, dataclasses.replace(SETTINGS, scores=scores), ())
    assert [(row["alpha"], row["score"]) for row in document["aggregates"]] == [(a, s) for a in ALPHAS for s in scores]
    for row in document["aggregates"]:
        if row["score"] == "msp":
            assert row["fitted"] is None
        elif row["score"] == "msp_pnorm":
            assert set(row["fitted"]) <= {1, 2, 3, 4, 5, 8}
        else:
            assert row["fitted"] == ["fitted"] * len(SEEDS)
    assert json.loads(json.dumps(files._finite(document)))


# --- names ------------------------------------------------------------------------------------------------------------


def test_known_names_pass():
    study.refuse_unknown(SETTINGS.scores, PRIMARY)
    study.refuse_unknown(("msp",), ())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metric": "narc"}, r"primary\[1\]\.metric: there is no metric 'narc' .*'naurc'"),
        ({"metric": "zzz"}, r"primary\[1\]\.metric: .*there are error, aurc"),
        ({"metric": "nll"}, r"primary\[1\]\.metric: there is no metric 'nll' of these scores"),
    ],
)
def test_a_metric_that_no_evaluation_computes_is_refused(changes, message):
    with pytest.raises(InputError, match=message):
        study.refuse_unknown(SETTINGS.scores, (PRIMARY[0], dataclasses.replace(PRIMARY[1], **changes)))


def test_metrics_of_probabilities_can_be_contrasted_between_msp_and_msp():
    study.refuse_unknown(SETTINGS.scores, (dataclasses.replace(PRIMARY[0], metric="nll"),))


@pytest.mark.parametrize(("score", "ensemble"), [("max_logit", True), ("mutual_information", False)])
@pytest.mark.parametrize("side", ["treatment_score", "control_score"])
def test_a_primary_contrast_is_of_scores_that_ensembles_or_single_networks_have(score, ensemble, side):
    contrast = dataclasses.replace(PRIMARY[1], **{side: score})
    study.refuse_unknown(("msp", score), (contrast,), ensemble=not ensemble)
    with pytest.raises(InputError, match=rf"primary\[0\]\.{side}: {score} "):
        study.refuse_unknown(("msp", score), (contrast,), ensemble=ensemble)


def test_members_that_are_ensembles_are_evaluated_as_the_mean_of_their_probabilities():
    """The rows are those of files of its logarithm; what is of one network's logits is left out."""
    rng = np.random.default_rng(0)
    several, single = [], []
    for run in runs():
        spread = [
            dataclasses.replace(p, logits=np.stack([p.logits, p.logits + rng.normal(size=p.logits.shape)]))
            for p in (run.test, run.calibration)
        ]
        several.append(dataclasses.replace(run, test=spread[0], calibration=spread[1]))
        mean = [
            dataclasses.replace(p, logits=ops.ensemble_log_probabilities(p.logits), log_probabilities=True)
            for p in spread
        ]
        single.append(dataclasses.replace(run, test=mean[0], calibration=mean[1]))
    settings = dataclasses.replace(SETTINGS, scores=(*SETTINGS.scores, "mutual_information"))
    found, expected = study.evaluate(several, settings, PRIMARY), study.evaluate(single, SETTINGS, PRIMARY)
    rows = [row for row in found["runs"] if row["score"] != "mutual_information"]
    assert len(found["runs"]) == len(rows) + len(several)
    for name in ("metrics", "intervals", "argmax_ties"):
        np.testing.assert_equal([row[name] for row in rows], [row[name] for row in expected["runs"]])
    of_both = ([row for row in one["contrasts"] if row["kind"] == "primary"] for one in (found, expected))
    np.testing.assert_equal(*of_both)
    assert found["suppression"] == found["max_logit_gap"] == []


def test_weights_enter_the_suppression_and_the_gap():
    """Means of bins are weighted ones, so that together they give the weighted error; a common factor changes nothing."""
    rng = np.random.default_rng(0)
    members = runs(alphas=(0.0, 0.2), seeds=(3,))
    weight = 0.5 + rng.random(len(members[0].test))
    weighed = [dataclasses.replace(r, test=dataclasses.replace(r.test, weight=weight)) for r in members]
    (row,) = study._suppression(weighed)
    test = weighed[1].test
    bins = np.array_split(np.argsort(ops.msp(test.logits), kind="stable"), 10)
    wrong = ops.predicted_class(test.logits) != test.label
    total = np.average(row["error"], weights=[weight[part].sum() for part in bins])
    assert total == pytest.approx(np.average(wrong, weights=weight))
    counts, seeds = np.ones((4, len(weight)), np.uint8), np.ones((4, 1), np.uint8)
    three = [
        dataclasses.replace(r, test=dataclasses.replace(r.test, weight=np.full(len(weight), 3.0))) for r in members
    ]
    plain, same, other = (study._max_logit_gap(given, counts, seeds, 0.9) for given in (members, three, weighed))
    for before, after, changed in zip(plain, same, other, strict=True):
        assert after["centred"]["estimate"] == pytest.approx(before["centred"]["estimate"])
        np.testing.assert_allclose(after["profile"]["right"], before["profile"]["right"])
        assert changed["centred"]["estimate"] != pytest.approx(before["centred"]["estimate"])


# Other objectives than label smoothing

OBJECTIVES = ("max_suppression=0.2", "focal=2")


@pytest.fixture(scope="module")
def with_objectives():
    smoothed_better = Contrast("", "naurc", 0.0, "msp", 0.2, "msp", "less", 0.0, treatment_objective=OBJECTIVES[0])
    other = Contrast("", "aurc", 0.0, "msp", 0.0, "max_logit_pnorm", "greater", 0.0, OBJECTIVES[1], OBJECTIVES[0])
    return study.evaluate(runs((*ALPHAS, *OBJECTIVES)), SETTINGS, (*PRIMARY, smoothed_better, other))


def test_other_objectives_leave_what_is_said_of_smoothing_as_it_is(document, with_objectives):
    assert "objectives" not in document
    for name in ("aggregates", "curves", "suppression", "max_logit_gap"):
        assert json.dumps(with_objectives[name], default=str) == json.dumps(document[name], default=str)
    rows = [row for row in with_objectives["contrasts"] if row["kind"] == "exploratory"]
    assert [{**row, "p": 0} for row in rows] == [
        {**row, "p": 0} for row in document["contrasts"] if row["kind"] == "exploratory"
    ]
    tags = [row["tags"] for row in with_objectives["runs"]]
    assert [tag for tag in tags if "alpha" in tag] == [row["tags"] for row in document["runs"]]
    others = [tag for tag in tags if "objective" in tag]
    each = [{"objective": o, "seed": s} for o in OBJECTIVES for s in SEEDS]
    assert others == [tag for tag in each for _ in SETTINGS.scores]


def test_aggregates_of_an_objective_are_those_of_its_runs_as_a_study_of_their_own(with_objectives):
    alone = study.evaluate(
        [dataclasses.replace(run, alpha=0.7) for run in runs((*ALPHAS, *OBJECTIVES))[4:6]], SETTINGS, ()
    )
    rows = [row for row in with_objectives["objectives"]["aggregates"] if row["objective"] == OBJECTIVES[0]]
    assert [row["score"] for row in rows] == list(SETTINGS.scores)
    for mine, theirs in zip(rows, alone["aggregates"], strict=True):
        assert json.dumps(mine["metrics"]) == json.dumps(theirs["metrics"])
    curves = [row for row in with_objectives["objectives"]["curves"] if row["objective"] == OBJECTIVES[0]]
    assert [row["risk"] for row in curves] == [row["risk"] for row in alone["curves"]]


def test_objectives_are_contrasted_by_name_paired_by_seed(with_objectives):
    given = {(run.alpha, run.seed): run.test for run in runs((*ALPHAS, *OBJECTIVES))}

    def naurc(treatment, seed):
        test = given[treatment, seed]
        return ops.naurc(ops.msp(test.logits.astype(np.float64)), errors(test))

    row = with_objectives["contrasts"][len(PRIMARY)]
    expected = [naurc(OBJECTIVES[0], seed) - naurc(0.2, seed) for seed in SEEDS]
    np.testing.assert_allclose(row["per_seed"], expected, rtol=1e-5)
    assert row["treatment"] == {"objective": OBJECTIVES[0], "score": "msp"}
    assert row["control"] == {"alpha": 0.2, "score": "msp"}
    assert with_objectives["contrasts"][len(PRIMARY) + 1]["control"]["objective"] == OBJECTIVES[0]
    exploratory = with_objectives["objectives"]["contrasts"]
    with_plain = [r for r in exploratory if r["control"] == {"alpha": 0.0, "score": "msp"} and r["metric"] == "naurc"]
    assert [(r["treatment"]["objective"], r["treatment"]["score"]) for r in with_plain] == [
        (objective, score) for objective in OBJECTIVES for score in SETTINGS.scores
    ]


def test_objectives_are_contrasted_by_msp_with_every_alpha_and_with_what_the_primary_contrasts_treat():
    given = runs((*ALPHAS, "a=1", "b=1", "c=1"))
    treats = [Contrast("", "naurc", 0.0, "msp", 0.0, "msp", "less", 0.0, name, "c=1") for name in ("a=1", "b=1")]
    document = study.evaluate(given, SETTINGS, treats)
    rows = [row for row in document["objectives"]["contrasts"] if row["treatment"]["score"] == "msp"]

    def pairs(metric):
        sides = [[row[side] for side in ("treatment", "control")] for row in rows if row["metric"] == metric]
        return [tuple(side.get("objective", side.get("alpha")) for side in pair) for pair in sides]

    of_alphas = [(name, alpha) for name in ("a=1", "b=1", "c=1") for alpha in ALPHAS]
    each = {*of_alphas, ("a=1", "b=1"), ("a=1", "c=1"), ("b=1", "c=1")}
    assert sorted(pairs("error"), key=str) == sorted(each, key=str)
    told = {("a=1", "c=1"), ("b=1", "c=1")}  # by the primary contrasts
    assert sorted(pairs("naurc"), key=str) == sorted(each - told, key=str)
    row = next(
        row for row in rows if row["control"] == {"objective": "b=1", "score": "msp"} and row["metric"] == "error"
    )
    members = {(run.alpha, run.seed): errors(run.test).mean() for run in given}
    assert row["per_seed"] == pytest.approx([members["a=1", seed] - members["b=1", seed] for seed in SEEDS])


def test_the_repair_is_of_the_alphas_on_the_resamples_of_the_study():
    given = runs((*ALPHAS, *OBJECTIVES))
    found = study.evaluate(given, SETTINGS, (), with_repair=True)["repair"]
    counts, calibration_counts, seed_counts = study_counts()
    few = slice(0, 200)
    expected = {
        "norms": repair.norms(runs(), SETTINGS.p_grid, counts[few], seed_counts[few], SETTINGS.level),
        "ensembles": repair.ensembles(runs(), SETTINGS.p_grid, counts, calibration_counts, SETTINGS.level),
    }
    for name, rows in expected.items():
        assert json.dumps(found[name]) == json.dumps(rows)
    assert {row["alpha"] for part in found.values() for row in part} == set(ALPHAS)
    assert [row["size"] for row in found["learning_curve"] if row["alpha"] == 0 and row["fallback"]] == [50]


def test_objectives_pair_by_seed_in_whatever_order_seeds_are_given():
    given = runs((*ALPHAS, *OBJECTIVES), seeds=(11, 5))
    for i in (0, 1):  # α = 0 under another name
        given[4 + i] = dataclasses.replace(given[4 + i], test=given[i].test, calibration=given[i].calibration)
    rows = study.evaluate(given, SETTINGS, ())["objectives"]["contrasts"]
    treatment = {"objective": OBJECTIVES[0], "score": "msp"}
    row = next(r for r in rows if r["treatment"] == treatment and r["metric"] == "naurc")
    assert row["per_seed"] == [0, 0]
    assert row["interval"] == [0, 0]


def test_ood_examples_change_no_contrast_and_have_their_own_metrics(document):
    """They enter the OOD metrics of each run; everything else is of the examples from the training distribution."""
    rng = np.random.default_rng(0)

    def with_outliers(given):
        n = len(given)
        return dataclasses.replace(
            given,
            label=np.append(given.label, np.zeros(9, int)),
            logits=np.vstack([given.logits, rng.normal(size=(9, CLASSES))]),
            example_id=np.append(given.example_id, given.example_id.max() + 1 + np.arange(9)),
            is_ood=np.arange(n + 9) >= n,
        )

    given = [dataclasses.replace(run, test=with_outliers(run.test)) for run in runs()]
    other = study.evaluate(given, SETTINGS, PRIMARY)
    for part in WITHOUT_ROWS:
        np.testing.assert_equal(other[part], document[part], err_msg=part)  # which may hold NaN
    for row, plain in zip(other["runs"], document["runs"], strict=True):
        assert row["metrics"]["scod_ood_share"] == pytest.approx(9 / (TEST + 9))
        assert plain["metrics"].items() <= row["metrics"].items()
