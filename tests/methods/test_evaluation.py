"""Replicates against brute force: each is the metric of the resample written out row by row."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up import best_p, errors, metrics_of, predictions, resampled, score_of

from sc_jax import ops
from sc_jax.methods import evaluation
from sc_jax.methods.evaluation import Settings
from sc_jax.ops import resampling

N, K, B = 60, 5, 40
SCORES = ("msp", "max_logit", "max_logit_pnorm", "max_logit_pnorm_or_msp")
SETTINGS = Settings(SCORES, (1, 2, 5), 10, B, 0.9, 0)
RANKING_METRICS = tuple(ops.summarise(np.zeros(2), np.arange(2)))


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
    assert results[name].metrics.keys() - set(evaluation.CLASSIFIER_METRICS) == expected.keys()
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
        assert not set(evaluation.CLASSIFIER_METRICS) & results[name].metrics.keys()


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
    for metric in set(results[name].metrics) - set(RANKING_METRICS):
        expected = np.quantile(results[name].replicates[metric], [0.05, 0.95])
        np.testing.assert_allclose(results[name].intervals[metric], expected, err_msg=metric)


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
        for metric, value in results[name].metrics.items():
            np.testing.assert_allclose(again[name].metrics[metric], value, rtol=1e-12, atol=1e-14, err_msg=metric)
            np.testing.assert_allclose(
                again[name].replicates[metric], results[name].replicates[metric], rtol=1e-12, atol=1e-14
            )
