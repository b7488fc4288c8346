"""Replicates against brute force: each is the metric of the resample written out row by row."""

import dataclasses
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up import best_p, errors, metrics_of, predictions, resampled, score_of, with_head
from sklearn.metrics import average_precision_score

from sc_jax import ops
from sc_jax.files import InputError
from sc_jax.methods import evaluation
from sc_jax.methods import scores as scores_lib
from sc_jax.methods.evaluation import Settings
from sc_jax.ops import resampling
from sc_jax.predictions import select

N, K, B = 60, 5, 40
SCORES = ("msp", "max_logit", "max_logit_pnorm", "max_logit_pnorm_or_msp")
SETTINGS = Settings(SCORES, (1, 2, 5), 10, B, 0.9, 0)
RANKING_METRICS = tuple(ops.summarise(np.zeros(2), np.arange(2)))
THRESHOLDS = {f"threshold_at_risk_{r}": ("risk", r) for r in ("0.01", "0.02", "0.05")} | {
    f"threshold_at_coverage_{c}": ("coverage", c) for c in ("0.8", "0.9")
}
AT_THRESHOLDS = {f"{name}_{what}" for name in THRESHOLDS for what in ("coverage", "risk")}
EVERYTHING = dataclasses.replace(SETTINGS, scores=tuple(scores_lib.SCORES), match_error=0.3)


def evaluate(test, calibration, how=SETTINGS):
    counts = resampling.resample_counts(0, len(test), how.resamples)
    if calibration is None:
        return counts, None, *evaluation.evaluate(test, None, how, counts, None)
    calibration_counts = resampling.resample_counts(1, len(calibration), how.resamples)
    return counts, calibration_counts, *evaluation.evaluate(test, calibration, how, counts, calibration_counts)


@pytest.fixture(scope="module", params=[None, 0], ids=["no ties", "ties"])
def evaluated(request):
    test, calibration = predictions(0, digits=request.param), predictions(1, n=50, digits=request.param)
    return test, calibration, *evaluate(test, calibration)


# --- values -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCORES)
def test_metrics_are_those_of_the_score_on_the_test_split(evaluated, name):
    test, calibration, _, _, results, _ = evaluated
    expected = ops.summarise(score_of(name, test, best_p(name, calibration)), errors(test))
    assert expected.keys() <= results[name].metrics.keys()
    for metric, value in expected.items():
        np.testing.assert_allclose(results[name].metrics[metric], value, rtol=1e-12, err_msg=metric)


def test_classifier_metrics_stand_beside_msp_alone(evaluated):
    test, _, _, _, results, _ = evaluated
    p = np.exp(test.logits - test.logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    metrics = results["msp"].metrics
    np.testing.assert_allclose(metrics["nll"], -np.log(p[np.arange(N), test.label]).mean(), rtol=1e-10)
    np.testing.assert_allclose(metrics["brier"], ((p - np.eye(K)[test.label]) ** 2).sum(axis=1).mean(), rtol=1e-10)
    confidence, right = p.max(axis=1), ~errors(test)
    bins = np.clip(np.ceil(confidence * SETTINGS.ece_bins) - 1, 0, SETTINGS.ece_bins - 1)
    ece = sum(abs((right[bins == b] - confidence[bins == b]).sum()) for b in range(SETTINGS.ece_bins)) / N
    np.testing.assert_allclose(metrics["ece"], ece, rtol=1e-10)
    for name in SCORES[1:]:
        assert not {m for m in results[name].metrics if "ece" in m or "brier" in m or m == "nll"}


@pytest.mark.parametrize("name", SCORES)
def test_the_curve_is_the_risk_at_each_coverage(evaluated, name):
    test, calibration, _, _, results, _ = evaluated
    score = score_of(name, test, best_p(name, calibration))
    expected = [float(ops.risk_at_coverage(score, errors(test), f"{c}/100")) for c in range(1, 101)]
    np.testing.assert_allclose(results[name].curve, expected, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(evaluation.COVERAGES, [c / 100 for c in range(1, 101)])
    assert results[name].curve[-1] == pytest.approx(errors(test).mean())


@pytest.mark.parametrize("name", SCORES)
def test_what_was_fitted_is_told(evaluated, name):
    _, calibration, _, _, results, _ = evaluated
    fitted = results[name].fitted
    if name in ("msp", "max_logit"):
        assert fitted is None
        return
    p = best_p(name, calibration)
    assert fitted["p"] == (p or None)
    assert fitted["uses"] == ("msp" if p == 0 else "max_logit_pnorm")
    assert fitted["on"] == "1.npz"
    assert min(fitted["aurc"], key=fitted["aurc"].get) == ("msp" if p == 0 else f"p={p}")


def test_the_split_that_was_fitted_on_is_named_by_its_sidecar():
    calibration = predictions(1, provenance={"split": "validation"})
    results = evaluate(predictions(0), calibration)[2]
    assert results["max_logit_pnorm"].fitted["on"] == "validation"


def test_msp_is_kept_where_nothing_beats_it():
    """All right on the calibration split: every AURC is 0, so MSP stays, and p-norm takes the first p."""
    calibration = predictions(1)
    calibration = dataclasses.replace(calibration, label=calibration.logits.argmax(axis=1))
    test = predictions(0)
    _, _, results, _ = evaluate(test, calibration)
    assert results["max_logit_pnorm"].fitted["p"] == 1
    assert results["max_logit_pnorm_or_msp"].fitted["p"] is None
    for metric in RANKING_METRICS:
        assert results["max_logit_pnorm_or_msp"].metrics[metric] == results["msp"].metrics[metric]
        np.testing.assert_array_equal(
            results["max_logit_pnorm_or_msp"].replicates[metric], results["msp"].replicates[metric]
        )


# --- replicates -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCORES)
def test_replicates_are_metrics_of_the_resample_with_p_chosen_anew(evaluated, name):
    """Brute force: resample calibration, choose p there, score the resampled test split with it."""
    test, calibration, counts, calibration_counts, results, _ = evaluated
    chosen = set()
    for b in range(B):
        p = best_p(name, resampled(calibration, calibration_counts[b]))
        chosen.add(p)
        expected = metrics_of(name, resampled(test, counts[b]), p)
        assert results[name].replicates.keys() == expected.keys()
        for metric, value in expected.items():
            np.testing.assert_allclose(
                results[name].replicates[metric][b], value, rtol=1e-10, atol=1e-13, err_msg=f"{metric}, resample {b}"
            )
    if name == "max_logit_pnorm":
        assert len(chosen) > 1, "the choice never changed, so nothing was tested"


@pytest.mark.parametrize("name", SCORES)
def test_replicates_of_the_curve_hold_p_fixed(evaluated, name):
    test, calibration, counts, _, results, _ = evaluated
    p = best_p(name, calibration)
    for b in range(0, B, 8):
        sample = resampled(test, counts[b])
        score = score_of(name, sample, p)
        expected = [float(ops.risk_at_coverage(score, errors(sample), f"{c}/100")) for c in range(1, 101)]
        np.testing.assert_allclose(results[name].curve_replicates[b], expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", SCORES)
def test_intervals_are_quantiles_with_p_held_fixed(evaluated, name):
    test, calibration, counts, _, results, _ = evaluated
    p = best_p(name, calibration)
    samples = [resampled(test, counts[b]) for b in range(B)]
    values = [ops.summarise(score_of(name, sample, p), errors(sample)) for sample in samples]
    for metric in RANKING_METRICS:
        expected = np.quantile([value[metric] for value in values], [0.05, 0.95])
        np.testing.assert_allclose(results[name].intervals[metric], expected, rtol=1e-10, atol=1e-13, err_msg=metric)
    for metric in set(results[name].replicates) - set(RANKING_METRICS):
        expected = np.quantile(results[name].replicates[metric], [0.05, 0.95])
        np.testing.assert_allclose(results[name].intervals[metric], expected, err_msg=metric)
    assert results[name].intervals.keys() == results[name].replicates.keys() | AT_THRESHOLDS


def test_chunks_of_resamples_change_nothing(monkeypatch):
    test, calibration = predictions(0), predictions(1)
    whole = evaluate(test, calibration)[2]
    chunks = resampling.chunks
    monkeypatch.setattr(resampling, "chunks", lambda counts: chunks(counts, entries=7 * counts.shape[1]))
    parts = evaluate(test, calibration)[2]
    for name in SCORES:
        for metric in whole[name].replicates:
            np.testing.assert_allclose(
                parts[name].replicates[metric], whole[name].replicates[metric], rtol=1e-12, atol=1e-15
            )
        np.testing.assert_array_equal(parts[name].curve_replicates, whole[name].curve_replicates)


# --- what cannot be computed ------------------------------------------------------------------------------------------


def test_scores_that_cannot_be_computed_are_left_out_with_the_reason():
    results, left_out = evaluate(predictions(0), None)[2:]
    assert list(results) == ["msp", "max_logit"]
    assert set(left_out) == {"max_logit_pnorm", "max_logit_pnorm_or_msp"}
    assert all("--calibration" in reason for reason in left_out.values())

    results, left_out = evaluate(predictions(0, k=2), predictions(1, k=2))[2:]
    assert list(results) == ["msp", "max_logit"]
    assert all("k = 2" in reason for reason in left_out.values())


def test_an_unlikely_class_of_probability_zero_makes_nll_infinite_where_it_is_drawn():
    test = predictions(0)
    logits = ops.log_softmax(test.logits)
    logits[3, test.label[3]] = -np.inf
    test = dataclasses.replace(test, logits=logits, log_probabilities=True)
    counts, _, results, _ = evaluate(test, None)
    assert results["msp"].metrics["nll"] == np.inf
    np.testing.assert_array_equal(results["msp"].replicates["nll"] == np.inf, counts[:, 3] > 0)
    drawn = np.flatnonzero(counts[:, 3] == 0)[0]
    finite = np.delete(np.arange(N), 3)
    loss = ops.log_loss(logits[finite], test.label[finite])
    np.testing.assert_allclose(results["msp"].replicates["nll"][drawn], counts[drawn, finite] @ loss / N)
    assert np.isfinite(list(results["msp"].metrics[m] for m in ("error", "aurc", "brier", "ece"))).all()


def test_all_right_and_all_wrong_predictions_have_no_ranking():
    test = predictions(0)
    for right in (True, False):
        label = test.logits.argmax(axis=1) if right else test.logits.argmin(axis=1)
        results = evaluate(dataclasses.replace(test, label=label), predictions(1))[2]
        for name in SCORES:
            assert results[name].metrics["error"] == (0 if right else 1)
            assert results[name].metrics["aurc"] == pytest.approx(0 if right else 1)
            assert np.isnan(results[name].metrics["naurc"])
            assert np.isnan(results[name].metrics["failure_auroc"])
            assert np.isnan(results[name].intervals["naurc"]).all()


# --- ensembles --------------------------------------------------------------------------------------------------------


def test_an_ensemble_is_the_classifier_of_its_mean_probabilities():
    members = np.stack([predictions(seed).logits for seed in (0, 1, 2)])
    given = dataclasses.replace(predictions(0), logits=members)
    one = evaluation.combined(given)
    np.testing.assert_allclose(one.logits, np.log(np.exp(ops.log_softmax(members)).mean(axis=0)), rtol=1e-10)
    assert one.log_probabilities
    single = predictions(0)
    assert evaluation.combined(single) is single


# --- invariance -------------------------------------------------------------------------------------------------------


@settings(max_examples=15, deadline=None)
@given(st.permutations(range(20)))
def test_metrics_do_not_depend_on_the_order_of_rows(order):
    test, calibration = predictions(0, n=20, digits=0), predictions(1, n=20, digits=0)
    order = np.array(order)
    how = dataclasses.replace(SETTINGS, resamples=5)
    counts, calibration_counts, results, _ = evaluate(test, calibration, how)
    mixed = [
        dataclasses.replace(p, label=p.label[order], logits=p.logits[order], example_id=p.example_id[order])
        for p in (test, calibration)
    ]
    again, _ = evaluation.evaluate(*mixed, how, counts[:, order], calibration_counts[:, order])
    for name in SCORES:
        assert again[name].metrics.keys() == results[name].metrics.keys()
        for metric, value in results[name].metrics.items():
            np.testing.assert_allclose(again[name].metrics[metric], value, rtol=1e-12, atol=1e-14, err_msg=metric)
        for metric, value in results[name].replicates.items():
            np.testing.assert_allclose(again[name].replicates[metric], value, rtol=1e-12, atol=1e-14, err_msg=metric)
        for metric, value in results[name].intervals.items():
            np.testing.assert_allclose(again[name].intervals[metric], value, rtol=1e-12, atol=1e-14, err_msg=metric)


# --- thresholds of the calibration split ------------------------------------------------------------------------------


def brute_threshold(score, error, kind, target):
    """The lowest score that accepts no more risk than asked for; the highest that accepts no less coverage. NaN: none does."""
    target, best = Fraction(target), float("nan")
    for t in sorted(set(score.tolist()), reverse=True):
        accepted = score >= t
        if kind == "risk" and Fraction(int(error[accepted].sum()), int(accepted.sum())) <= target:
            best = t
        if kind == "coverage" and Fraction(int(accepted.sum()), len(score)) >= target:
            return t
    return best


def coverage_and_risk(score, error, threshold):
    accepted = score >= threshold
    return accepted.mean(), error[accepted].mean() if accepted.any() else float("nan")


@pytest.mark.parametrize("name", SCORES)
def test_thresholds_are_fitted_on_the_calibration_split_and_applied_to_the_test_split(evaluated, name):
    test, calibration, counts, _, results, _ = evaluated
    p = best_p(name, calibration)
    score, error = score_of(name, test, p), errors(test)
    for metric, (kind, target) in THRESHOLDS.items():
        t = brute_threshold(score_of(name, calibration, p), errors(calibration), kind, target)
        told = [results[name].metrics[f"{metric}_{what}"] for what in ("coverage", "risk")]
        np.testing.assert_allclose(told, coverage_and_risk(score, error, t), rtol=1e-13, err_msg=metric)
        drawn = np.array([coverage_and_risk(np.repeat(score, c), np.repeat(error, c), t) for c in counts])
        for i, what in enumerate(("coverage", "risk")):
            enough = np.isfinite(drawn[:, i]).mean() >= 0.5
            expected = np.nanquantile(drawn[:, i], [0.05, 0.95]) if enough else [np.nan, np.nan]
            np.testing.assert_allclose(results[name].intervals[f"{metric}_{what}"], expected, rtol=1e-12)


def test_the_test_split_moves_no_threshold():
    """Another half of the test file: what is accepted of the first half stays the same."""
    test, calibration = predictions(0), predictions(1)
    half = evaluate(select(test, np.arange(30)), calibration)[2]
    other = evaluate(select(test, np.arange(30, 60)), calibration)[2]
    whole = evaluate(test, calibration)[2]
    for name in SCORES:
        for metric in THRESHOLDS:
            both = [results[name].metrics[f"{metric}_coverage"] for results in (half, other)]
            assert whole[name].metrics[f"{metric}_coverage"] == pytest.approx(np.mean(both), abs=1e-15)


def test_without_calibration_there_are_no_such_thresholds(evaluated):
    assert evaluated[4]["msp"].metrics.keys() >= AT_THRESHOLDS
    assert not AT_THRESHOLDS & evaluate(predictions(0), None)[2]["msp"].metrics.keys()


# --- metrics without intervals ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCORES)
def test_other_conventions_are_those_of_ops(evaluated, name):
    test, calibration, _, _, results, _ = evaluated
    score, error, metrics = score_of(name, test, best_p(name, calibration)), errors(test), results[name].metrics
    for estimator in ("trapezoid_from_zero", "torch_uncertainty", "fd_shifts", "ln", "sele"):
        assert metrics[f"aurc_{estimator}"] == pytest.approx(float(ops.aurc(score, error, estimator)), rel=1e-12)
    of_class = {y: error * (test.label == y) * N / (K * (test.label == y).sum()) for y in range(K)}
    balanced = sum(of_class.values())
    assert balanced.mean() == pytest.approx(np.mean([error[test.label == y].mean() for y in range(K)]))
    for area in ("aurc", "augrc"):
        assert metrics[f"{area}_class_balanced"] == pytest.approx(float(getattr(ops, area)(score, balanced)), rel=1e-12)
    risk = np.array([error[score >= t].mean() for t in score])
    assert metrics["achievable_aurc"] <= metrics["aurc"] + 1e-12
    assert metrics["achievable_aurc"] >= metrics["aurc"] - metrics["e_aurc"] - 1e-12
    for c in (0.8, 0.9):
        realisable = np.array([(score >= t).mean() for t in score])
        assert abs(metrics[f"realisable_coverage_{c}"] - c) == pytest.approx(abs(realisable - c).min())
    assert metrics["aurc"] <= risk.max() + 1e-12


def test_calibration_errors_by_their_definition(evaluated):
    test, _, _, _, results, _ = evaluated
    p = np.exp(ops.log_softmax(test.logits))
    confidence, right, bins = p.max(axis=1), ~errors(test), SETTINGS.ece_bins
    place = np.clip(np.ceil(confidence * bins) - 1, 0, bins - 1)
    gaps = [
        (np.mean(place == b), abs((right - confidence)[place == b].mean())) for b in range(bins) if (place == b).any()
    ]
    metrics = results["msp"].metrics
    assert metrics["ece"] == pytest.approx(sum(w * gap for w, gap in gaps))
    assert metrics["ece_root_mean_square"] == pytest.approx(sum(w * gap**2 for w, gap in gaps) ** 0.5)
    assert metrics["maximum_calibration_error"] == pytest.approx(max(gap for _, gap in gaps))
    parts = [metrics[f"brier_{part}"] for part in ("reliability", "resolution", "uncertainty", "within_bin")]
    assert metrics["brier"] == pytest.approx(parts[0] - parts[1] + parts[2] + parts[3], rel=1e-12)
    table = evaluation.reliability(test, bins)
    np.testing.assert_allclose(table["weight"], [(place == b).sum() for b in range(bins)])
    accuracy = [right[place == b].mean() if (place == b).any() else np.nan for b in range(bins)]
    np.testing.assert_allclose(table["accuracy"], accuracy)


def test_aurc_at_a_matched_error_is_of_classes_reweighted_to_it():
    """Right and wrong predictions weighted so that the error rate is 1/2: as many copies of each."""
    test = predictions(0)
    score, error = ops.msp(test.logits), errors(test)
    right, wrong = int((~error).sum()), int(error.sum())
    copies = np.where(error, right, wrong)  # now right·wrong of each
    how = dataclasses.replace(SETTINGS, match_error=0.5)
    results = evaluate(test, None, how)[2]
    expected = float(ops.aurc(np.repeat(score, copies), np.repeat(error, copies)))
    assert results["msp"].metrics["aurc_at_matched_error"] == pytest.approx(expected, rel=2e-2)
    assert "aurc_at_matched_error" in results["msp"].intervals
    assert "aurc_at_matched_error" not in evaluate(test, None)[2]["msp"].metrics


def test_matching_the_error_it_has_changes_nothing():
    test = predictions(0)
    how = dataclasses.replace(SETTINGS, match_error=float(errors(test).mean()))
    metrics = evaluate(test, None, how)[2]["msp"].metrics
    assert metrics["aurc_at_matched_error"] == pytest.approx(metrics["aurc"], rel=1e-9)


# --- weights ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("digits", [None, 0])
def test_a_weight_is_as_many_rows_in_everything_but_the_bootstrap(digits):
    rng = np.random.default_rng(0)
    groups = rng.integers(0, 3, N)
    test = predictions(0, digits=digits, group=groups, is_ood=rng.random(N) < 0.2)
    calibration = predictions(1, digits=digits)
    weight = rng.integers(0, 4, N)
    results = []
    scores = ("msp", "max_logit", "energy", "doctor_alpha", "logit_margin")
    how = dataclasses.replace(SETTINGS, scores=scores, match_error=0.3)
    calibration_weight = rng.integers(0, 3, N)
    for t, c in (
        [
            dataclasses.replace(p, weight=w.astype(float))
            for p, w in ((test, weight), (calibration, calibration_weight))
        ],
        [resampled(test, weight), resampled(calibration, calibration_weight)],
    ):
        counts = resampling.resample_counts(0, int((~t.is_ood).sum()), B)
        results.append(evaluation.evaluate(t, c, how, counts, None)[0])
    for name in scores:
        weighted, repeated = results[0][name], results[1][name]
        assert weighted.metrics.keys() == repeated.metrics.keys()
        for metric, value in repeated.metrics.items():
            np.testing.assert_allclose(weighted.metrics[metric], value, rtol=1e-10, atol=1e-13, err_msg=metric)
        np.testing.assert_allclose(weighted.curve, repeated.curve, rtol=1e-10, atol=1e-13)
        assert len(weighted.groups) == len(repeated.groups) == 3
        for a, b in zip(weighted.groups, repeated.groups, strict=True):
            assert a.pop("group") == b.pop("group")
            np.testing.assert_allclose(list(a.values()), list(b.values()), rtol=1e-10, atol=1e-13)


def test_replicates_of_a_weighted_file_draw_examples_with_their_weight():
    rng = np.random.default_rng(0)
    weight = rng.random(N) * 2
    test = predictions(0, weight=weight)
    counts, _, results, _ = evaluate(test, None)
    score, error = ops.msp(test.logits), errors(test)
    loss = ops.log_loss(test.logits, test.label)
    for b in range(0, B, 5):
        rows = np.repeat(np.arange(N), counts[b])
        drawn = ops.summarise(score[rows], error[rows], weight=weight[rows])
        for metric, value in drawn.items():
            np.testing.assert_allclose(results["msp"].replicates[metric][b], value, rtol=1e-9, err_msg=metric)
        assert results["msp"].replicates["nll"][b] == pytest.approx(np.average(loss[rows], weights=weight[rows]))
        expected = [
            float(ops.risk_at_coverage(score[rows], error[rows], f"{c}/100", weight=weight[rows])) for c in (20, 80)
        ]
        np.testing.assert_allclose(results["msp"].curve_replicates[b][[19, 79]], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("total", [1, 7, 60, 101, np.array([3, 60])])
def test_what_is_accepted_at_each_coverage_is_the_ceiling_of_whole_totals(total):
    expected = [[math.ceil(Fraction(c, 100) * int(t)) for c in range(1, 101)] for t in np.atleast_1d(total)]
    np.testing.assert_array_equal(np.atleast_2d(evaluation.accepted_at_coverages(total)), expected)
    np.testing.assert_array_equal(np.atleast_2d(evaluation.accepted_at_coverages(total * 1.0)), expected)
    np.testing.assert_allclose(evaluation.accepted_at_coverages(7.5), np.arange(1, 101) / 100 * 7.5, rtol=1e-14)


# --- inputs from outside the training distribution --------------------------------------------------------------------


def test_ood_examples_stay_out_of_the_metrics_of_the_classifier():
    rng = np.random.default_rng(3)
    is_ood = rng.random(N) < 0.3
    test, calibration = predictions(0, is_ood=is_ood, group=rng.integers(0, 2, N)), predictions(1)
    known = dataclasses.replace(select(test, ~is_ood), is_ood=None)
    counts = resampling.resample_counts(0, len(known), B)
    mixed, alone = (evaluation.evaluate(t, calibration, SETTINGS, counts, None)[0] for t in (test, known))
    for name in SCORES:
        ood = mixed[name].metrics.keys() - alone[name].metrics.keys()
        assert ood == {
            "ood_auroc",
            "ood_average_precision",
            "ood_fpr_at_tpr_0.95",
            "scod_aurc",
            "scod_augrc",
            "scod_ood_share",
        }
        for metric, value in alone[name].metrics.items():
            np.testing.assert_equal(mixed[name].metrics[metric], value)
        assert mixed[name].intervals.keys() == alone[name].intervals.keys()
        for metric, ends in alone[name].intervals.items():
            np.testing.assert_equal(mixed[name].intervals[metric], ends)
        np.testing.assert_equal(mixed[name].groups, alone[name].groups)


def test_ood_examples_of_the_calibration_file_fit_nothing():
    is_ood = np.arange(N) % 3 == 0
    calibration = predictions(1, is_ood=is_ood)
    known = dataclasses.replace(select(calibration, ~is_ood), is_ood=None)
    counts = resampling.resample_counts(0, N, B)
    mixed, alone = (evaluation.evaluate(predictions(0), c, SETTINGS, counts, None)[0] for c in (calibration, known))
    for name in SCORES:
        np.testing.assert_equal(mixed[name].metrics, alone[name].metrics)
        np.testing.assert_equal(mixed[name].fitted, alone[name].fitted)


@pytest.mark.parametrize("digits", [None, 0])
def test_ood_metrics_by_brute_force(digits):
    rng = np.random.default_rng(3)
    is_ood = rng.random(N) < 0.3
    test = predictions(0, digits=digits, is_ood=is_ood)
    counts = resampling.resample_counts(0, int((~is_ood).sum()), B)
    metrics = evaluation.evaluate(test, None, SETTINGS, counts, None)[0]["max_logit"].metrics
    score, error = test.logits.max(axis=1), errors(test)
    known, other = score[~is_ood][:, None], score[is_ood][None]
    assert metrics["ood_auroc"] == pytest.approx(((known > other) + (known == other) / 2).mean())
    assert metrics["ood_average_precision"] == pytest.approx(average_precision_score(is_ood, -score))
    accepted = [(score >= t) for t in score if (score[~is_ood] >= t).mean() >= 0.95]
    assert metrics["ood_fpr_at_tpr_0.95"] == pytest.approx(min(a[is_ood].mean() for a in accepted))
    loss = np.where(is_ood, 1, error)
    assert metrics["scod_aurc"] == pytest.approx(float(ops.aurc(score, loss)))
    assert metrics["scod_augrc"] == pytest.approx(float(ops.augrc(score, loss)))
    assert metrics["scod_ood_share"] == pytest.approx(is_ood.mean())


# --- groups -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("digits", [None, 0])
def test_rows_of_groups_by_brute_force(digits):
    group = np.random.default_rng(5).choice(["a<b", "b|c", "z"], N, p=[0.6, 0.35, 0.05])
    test = predictions(0, digits=digits, group=group)
    rows = evaluate(test, None)[2]["max_logit"].groups
    score, error = test.logits.max(axis=1), errors(test)
    t = brute_threshold(score, error, "coverage", "0.9")
    accept = score >= t
    assert [row["group"] for row in rows] == sorted(set(group))
    for row in rows:
        mine = group == row["group"]
        assert (row["n"], row["accepted"]) == (mine.sum(), (mine & accept).sum())
        assert row["error"] == pytest.approx(error[mine].mean())
        assert row["coverage"] == pytest.approx(accept[mine].mean())
        assert row["selective_risk"] == pytest.approx(error[mine & accept].mean())
        assert row["aurc"] == pytest.approx(float(ops.aurc(score[mine], error[mine])))
        wrong, right = error[mine].sum() * accept[error].mean(), (~error)[mine].sum() * accept[~error].mean()
        assert row["reference_risk"] == pytest.approx(wrong / (wrong + right))


# --- ensembles and features -------------------------------------------------------------------------------------------


def ensemble(seed, **changes):
    members = np.stack([predictions(seed + i).logits for i in (0, 10, 20)])
    return dataclasses.replace(predictions(seed), logits=members, **changes)


def test_scores_of_an_ensemble_are_of_its_members_and_its_errors_of_their_mean():
    test, calibration = ensemble(0), ensemble(1)
    counts, _, results, left_out = evaluate(test, calibration, EVERYTHING)
    mean = np.exp(ops.log_softmax(test.logits)).mean(axis=0)
    error = mean.argmax(axis=1) != test.label
    vote = np.array([np.bincount(row, minlength=K).max() for row in test.logits.argmax(axis=2).T])
    p = np.exp(ops.log_softmax(test.logits))
    by_hand = {
        "variation_ratio": vote / 3 - 1,
        "expected_entropy": (p * np.log(p)).sum(axis=2).mean(axis=0),
        "mean_max_probability": p.max(axis=2).mean(axis=0),
        "mutual_information": (mean * np.log(mean)).sum(axis=1) - (p * np.log(p)).sum(axis=2).mean(axis=0),
        "msp": np.log(mean.max(axis=1) / (1 - mean.max(axis=1))),
    }
    for name, score in by_hand.items():
        expected = ops.summarise(score.round(12), error)
        for metric in ("error", "aurc", "failure_auroc", "coverage_at_risk_0.05"):
            assert results[name].metrics[metric] == pytest.approx(float(expected[metric]), rel=1e-9), (name, metric)
        drawn = ops.aurc(score.round(12), error, weight=counts)
        np.testing.assert_allclose(results[name].replicates["aurc"], drawn, rtol=1e-9)
    assert {"max_logit", "energy", "max_probability_as_stored"} < set(left_out)
    assert "whose mean is one of probabilities" in left_out["energy"]


def test_ood_examples_leave_members_with_them():
    is_ood = np.arange(N) % 4 == 0
    known = dataclasses.replace(select(ensemble(0), ~is_ood))
    counts = resampling.resample_counts(0, len(known), B)
    mixed, alone = (
        evaluation.evaluate(t, None, EVERYTHING, counts, None)[0] for t in (ensemble(0, is_ood=is_ood), known)
    )
    for name, result in alone.items():
        for metric, value in result.metrics.items():
            np.testing.assert_equal(mixed[name].metrics[metric], value)


FITTED = ("confidnet", "mahalanobis", "knn_distance", "residual", "vim", "sirc", "msp_pnorm", "max_logit_pnorm")


@pytest.fixture(scope="module")
def of_features():
    test, calibration = with_head(0), with_head(1, n=50)
    return test, calibration, *evaluate(test, calibration, EVERYTHING)


def test_every_score_that_is_fitted_says_on_what(of_features):
    _, calibration, _, _, results, left_out = of_features
    assert set(FITTED) <= set(results)
    assert all(results[name].fitted["on"] == calibration.source for name in FITTED)
    of_members = {name for name, score in scores_lib.SCORES.items() if score.of_members}
    assert set(left_out) == of_members | {"max_probability_as_stored", "model_confidence"}


@pytest.mark.parametrize("name", [name for name in FITTED if not scores_lib.SCORES[name].tuned])
def test_what_is_fitted_is_fitted_on_the_calibration_split_alone(of_features, name):
    """One test example by itself gets the score that it has among the others."""
    test, calibration, *_ = of_features
    score, tuning = scores_lib.SCORES[name], evaluation.Split.of(calibration)
    of, _ = evaluation.scorer(score, tuning)
    whole = of(evaluation.Split.of(test))
    for rows in ([7], [3, 7, 50]):
        alone = of(evaluation.Split.of(select(test, np.array(rows))))
        np.testing.assert_allclose(alone, whole[rows], rtol=1e-9)


@pytest.mark.parametrize("name", FITTED)
def test_calibration_moves_what_is_fitted_and_labels_of_the_test_split_do_not(of_features, name):
    test, calibration, _, _, results, _ = of_features
    tuning = evaluation.Split.of(calibration)
    relabelled = dataclasses.replace(test, label=test.label[::-1].copy())
    again = evaluate(relabelled, calibration, EVERYTHING)[2]
    assert again[name].fitted == results[name].fitted
    for metric in THRESHOLDS:
        coverage = f"{metric}_coverage"  # of thresholds and scores alone
        assert again[name].metrics[coverage] == results[name].metrics[coverage]
    assert tuning.combined is calibration


def test_features_that_do_not_allow_a_fit_leave_the_score_out():
    flat = with_head(1, n=50, features=np.ones((50, 8)))
    results, left_out = evaluate(with_head(0), flat, EVERYTHING)[2:]
    assert "covariance is 0" in left_out["mahalanobis"]
    assert "msp" in results


# --- small samples ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 5])
def test_a_few_examples_are_evaluated(n):
    test, calibration = with_head(0, n=n), with_head(1)
    how = dataclasses.replace(EVERYTHING, resamples=5)
    _, _, results, _ = evaluate(test, calibration, how)
    assert len(results) == 26
    for result in results.values():
        assert 0 <= result.metrics["aurc"] <= 1
        assert result.curve[-1] == pytest.approx(errors(test).mean())


@pytest.mark.filterwarnings("ignore:only 12 clusters")
def test_examples_of_a_cluster_are_drawn_together():
    given = predictions(0, cluster=np.repeat(np.arange(12), 5))
    counts = evaluation.resampled(given, SETTINGS, 0)
    assert counts.shape == (SETTINGS.resamples, len(given))
    np.testing.assert_array_equal(counts, np.repeat(counts[:, ::5], 5, axis=1))
    assert (counts.sum(axis=1) == len(given)).all()
    alone = dataclasses.replace(given, cluster=None)
    np.testing.assert_array_equal(
        evaluation.resampled(alone, SETTINGS, 3), resampling.resample_counts(3, 60, SETTINGS.resamples)
    )
    assert evaluation.covered(given.cluster) == "12 clusters of test examples"
    assert evaluation.covered(None) == "test examples"
    with pytest.raises(InputError, match="field 'cluster': all examples are of one cluster"):
        evaluation.resampled(dataclasses.replace(given, cluster=np.zeros(60, int)), SETTINGS, 0)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_infinite_log_losses_are_counted_by_their_definition(dtype):
    given = predictions(0)
    logits = given.logits.astype(dtype)
    rows = np.arange(len(logits))
    logits[rows[:5], given.label[:5]] = -np.inf
    # A gap that is finite between float32, and beyond the range of float64 between those.
    logits[5, given.label[5]], logits[5, given.label[5] - 1] = np.finfo(dtype).min, np.finfo(dtype).max
    given = dataclasses.replace(given, logits=logits, weight=(rows != 0) * 1.0)
    with np.errstate(over="ignore"):
        infinite = np.isinf(ops.log_loss(logits, given.label))
        assert evaluation.infinite_log_losses(given) == infinite[1:].sum() == 4 + (dtype == np.float64)
