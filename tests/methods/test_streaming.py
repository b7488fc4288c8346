"""Long files: the same values as of short ones, one score at a time, in memory that does not grow with the scores."""

import dataclasses
import errno
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from made_up import SETTINGS, errors, predictions, resampled, with_head
from sklearn.metrics import roc_auc_score

from sc_jax import ops
from sc_jax import predictions as predictions_lib
from sc_jax.files import InputError
from sc_jax.methods import evaluation, streaming
from sc_jax.methods.scores import SCORES
from sc_jax.ops import resampling
from sc_jax.predictions import Scored, select

N = 60
EVERYTHING = dataclasses.replace(SETTINGS, scores=tuple(SCORES))
JACKKNIFED = ("error", "aurc", "e_aurc", "naurc", "augrc", "e_augrc", "failure_auroc")


def scored(n=N, seed=0, digits=None, soft=False, **changes):
    rng = np.random.default_rng(seed)
    loss = rng.random(n) * 2 if soft else rng.random(n) < 0.3
    score = rng.normal(size=n) - loss
    return Scored(loss, {"a": score if digits is None else score.round(digits)}, **changes)


@pytest.fixture
def long(monkeypatch):
    """Every file is a long one."""
    monkeypatch.setattr(streaming, "MOST_COUNTS", 0)


@pytest.fixture
def small_chunks(monkeypatch):
    """Streams are read 7 rows at a time."""
    chunks = predictions_lib.Stream.chunks
    monkeypatch.setattr(predictions_lib.Stream, "chunks", lambda self, rows=None: chunks(self, rows or 7))


def streamed(path, given, calibration=None, how=EVERYTHING, says=lambda done: None):
    arrays = {k: v for k, v in given.arrays().items() if k != "example_id"}
    np.savez(path / "test.npz", **arrays)
    stream = predictions_lib.open_stream(path / "test.npz")
    (path / "scores").mkdir(exist_ok=True)
    return streaming.score_stream(stream, calibration, how, path / "scores", says)


# --- scores -----------------------------------------------------------------------------------------------------------


def ensemble(seed):
    return dataclasses.replace(with_head(seed), logits=np.stack([with_head(seed + i).logits for i in (0, 10, 20)]))


@pytest.mark.parametrize("kind", [with_head, ensemble, lambda seed: predictions(seed, k=2)])
def test_scores_are_those_of_the_whole_file(tmp_path, small_chunks, kind):
    test, calibration = kind(0), kind(1)
    told = []
    result = streamed(tmp_path, test, calibration, says=told.append)
    counts = resampling.resample_counts(0, N, 5)
    whole, left_out = evaluation.evaluate(test, calibration, EVERYTHING, counts, None)
    assert result.left_out == left_out
    assert list(result.scored.score) == list(whole)
    split, tuning = evaluation.Split.of(test), evaluation.Split.of(calibration)
    for name, column in result.scored.score.items():
        if not SCORES[name].tuned:
            of, _ = evaluation.scorer(SCORES[name], tuning)
            np.testing.assert_allclose(column, of(split), rtol=1e-9, err_msg=name)
        assert result.fitted.get(name) == whole[name].fitted
    np.testing.assert_array_equal(result.scored.loss, ops.predicted_class(split.combined.logits) != test.label)
    for metric, value in result.classifier.items():
        assert value == pytest.approx(whole["msp"].metrics[metric], rel=1e-10), metric
    assert told == [*range(7, N, 7), N]


@pytest.mark.parametrize("row", [0, 30, 59])
def test_a_score_that_one_chunk_does_not_allow_is_left_out_of_all(tmp_path, small_chunks, row):
    """A probability of exactly 0, or a feature that is none, anywhere in the file."""
    test, calibration = with_head(0), with_head(1)
    calibration = dataclasses.replace(calibration, logits=ops.log_softmax(calibration.logits), log_probabilities=True)
    probs = np.exp(ops.log_softmax(test.logits))
    probs[row] = np.eye(5)[2]
    with np.errstate(divide="ignore"):
        test = dataclasses.replace(test, logits=np.log(probs), log_probabilities=True)
    result = streamed(tmp_path, test, calibration)
    needing = {name for name, score in SCORES.items() if "finite" in score.needs}
    assert {name for name, reason in result.left_out.items() if "exactly 0" in reason} == needing
    assert not needing & (result.scored.score.keys() | result.fitted.keys())
    assert {"msp", "mahalanobis"} <= result.scored.score.keys()
    assert result.about["infinite_log_losses"] == (test.label[row] != 2)

    features = with_head(0).features.copy()
    features[row, 1] = np.inf
    result = streamed(tmp_path, with_head(0, features=features), with_head(1))
    needing = {name for name, score in SCORES.items() if "features" in score.needs}
    assert {name for name, reason in result.left_out.items() if "feature is NaN" in reason} == needing


def test_metrics_of_the_classifier_are_of_the_training_distribution_with_weights(tmp_path, small_chunks):
    rng = np.random.default_rng(0)
    is_ood, weight = rng.random(N) < 0.3, rng.integers(0, 3, N)
    is_ood[7:14] = True  # a whole chunk
    test = predictions(0, is_ood=is_ood, weight=weight.astype(float))
    result = streamed(tmp_path, test)
    inside = resampled(dataclasses.replace(test, is_ood=None, weight=None), weight * ~is_ood)
    counts = resampling.resample_counts(0, len(inside), 5)
    alone = evaluation.evaluate(inside, None, SETTINGS, counts, None)[0]["msp"].metrics
    for metric, value in result.classifier.items():
        assert value == pytest.approx(alone[metric], rel=1e-10), metric


# --- metrics ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("digits", [None, 0])
def test_metrics_and_bootstrap_are_those_of_the_definitions(digits):
    given = scored(digits=digits)
    (row,) = streaming.evaluate_scored(given, SETTINGS)
    score, loss = given.score["a"], given.loss
    counts = resampling.resample_counts(SETTINGS.seed, N, SETTINGS.resamples)
    for metric, value in ops.summarise(score, loss).items():
        assert row["metrics"][metric] == pytest.approx(float(value), rel=1e-12, abs=1e-15), metric
        drawn = [ops.summarise(np.repeat(score, c), np.repeat(loss, c))[metric] for c in counts]
        np.testing.assert_allclose(row["intervals"][metric], np.quantile(drawn, [0.05, 0.95]), rtol=1e-9, atol=1e-13)
    expected = [float(ops.risk_at_coverage(score, loss, f"{c}/100")) for c in range(1, 101)]
    np.testing.assert_allclose(row["curve"], expected, rtol=1e-12, atol=1e-15)
    assert row["intervals_by"] == "percentile bootstrap over examples"


@pytest.mark.filterwarnings("ignore:only 12 clusters")
def test_clusters_are_drawn_whole(long):
    cluster = np.arange(N) // 5
    given = scored(cluster=cluster)
    (row,) = streaming.evaluate_scored(given, SETTINGS)
    assert row["intervals_by"].startswith("none: so many examples with weights, clusters")
    assert row["intervals"] == {}
    streaming.MOST_COUNTS = N * SETTINGS.resamples  # undone by the fixture
    (row,) = streaming.evaluate_scored(given, SETTINGS)
    drawn = resampling.resample_counts(SETTINGS.seed, N, SETTINGS.resamples, cluster)
    assert (drawn == np.repeat(drawn[:, ::5], 5, axis=1)).all()
    errors = [np.repeat(given.loss, counts).mean() for counts in drawn]
    np.testing.assert_allclose(row["intervals"]["error"], np.quantile(errors, [0.05, 0.95]))
    assert row["intervals_by"] == "percentile bootstrap over clusters"


@pytest.mark.parametrize("soft", [False, True])
def test_a_weight_is_as_many_rows(soft):
    weight = np.random.default_rng(1).integers(0, 4, N)
    is_ood = np.random.default_rng(2).random(N) < 0.2
    given = scored(soft=soft, is_ood=is_ood)
    (weighted,) = streaming.evaluate_scored(dataclasses.replace(given, weight=weight.astype(float)), SETTINGS)
    (repeated,) = streaming.evaluate_scored(select(given, np.repeat(np.arange(N), weight)), SETTINGS)
    assert weighted["metrics"].keys() == repeated["metrics"].keys()
    for metric, value in repeated["metrics"].items():
        assert weighted["metrics"][metric] == pytest.approx(value, rel=1e-10), metric
    np.testing.assert_allclose(weighted["curve"], repeated["curve"], rtol=1e-10, atol=1e-14)


def test_soft_losses_have_no_metric_that_needs_errors(long):
    given = scored(soft=True)
    (row,) = streaming.evaluate_scored(given, SETTINGS)
    assert not {"failure_auroc", "e_augrc"} & row["metrics"].keys()
    assert row["metrics"]["error"] == pytest.approx(given.loss.mean())
    assert row["metrics"]["aurc"] == pytest.approx(float(ops.aurc(given.score["a"], given.loss)))
    halved, whole = (
        streaming.evaluate_scored(dataclasses.replace(given, loss=loss), SETTINGS)[0]["metrics"]
        for loss in (given.loss / 2, given.loss)
    )
    for metric in ("aurc", "e_aurc", "augrc", "risk_at_coverage_0.8"):
        assert 2 * halved[metric] == pytest.approx(whole[metric])


@pytest.mark.parametrize("dtype", [bool, np.int8, np.float32])
def test_errors_are_errors_whatever_their_type(dtype):
    given = scored()
    rows = [
        streaming.evaluate_scored(p, SETTINGS)
        for p in (given, dataclasses.replace(given, loss=given.loss.astype(dtype)))
    ]
    assert rows[0][0]["metrics"] == rows[1][0]["metrics"]
    assert rows[0][0]["intervals"] == rows[1][0]["intervals"]


def test_ood_examples_enter_the_metrics_of_ood_detection_alone():
    is_ood = np.random.default_rng(2).random(N) < 0.3
    given = scored(is_ood=is_ood)
    (mixed,) = streaming.evaluate_scored(given, SETTINGS)
    (alone,) = streaming.evaluate_scored(dataclasses.replace(select(given, ~is_ood), is_ood=None), SETTINGS)
    for metric, value in alone["metrics"].items():
        assert mixed["metrics"][metric] == value
    assert (mixed["n"], mixed["intervals"]) == (alone["n"], alone["intervals"])
    assert mixed["metrics"]["ood_auroc"] == pytest.approx(roc_auc_score(~is_ood, given.score["a"]))
    loss = np.where(is_ood, 1, given.loss)
    assert mixed["metrics"]["scod_aurc"] == pytest.approx(float(ops.aurc(given.score["a"], loss)))


# --- intervals of long files ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("digits", [None, 0])
def test_the_jackknife_is_of_the_file_without_each_example(long, digits):
    """estimate ± z √((n − 1)/n Σ (θ_i − mean θ)²), written out."""
    given = scored(digits=digits)
    (row,) = streaming.evaluate_scored(given, SETTINGS)
    score, loss = given.score["a"], given.loss
    without = [ops.summarise(np.delete(score, i), np.delete(loss, i)) for i in range(N)]
    assert row["intervals_by"] == "jackknife over examples"
    assert {"aurc", "naurc", "failure_auroc"} <= row["intervals"].keys() <= set(JACKKNIFED)
    for metric, ends in row["intervals"].items():
        values = np.array([w[metric] for w in without])
        half = 1.6448536269514722 * np.sqrt((N - 1) * values.var())  # z of 90 %
        np.testing.assert_allclose(ends, row["metrics"][metric] + np.array([-half, half]), rtol=1e-8, err_msg=metric)


def test_the_jackknife_is_close_to_the_bootstrap(monkeypatch):
    given, how = scored(n=3000), dataclasses.replace(SETTINGS, resamples=600)
    (bootstrap,) = streaming.evaluate_scored(given, how)
    monkeypatch.setattr(streaming, "MOST_COUNTS", 0)
    (jackknife,) = streaming.evaluate_scored(given, how)
    assert jackknife["metrics"] == bootstrap["metrics"]
    for metric, (low, high) in jackknife["intervals"].items():
        other = bootstrap["intervals"][metric]
        # ends of 600 resamples have a standard error of about 0.075 half widths
        np.testing.assert_allclose([low, high], other, atol=0.35 * (high - low) / 2, err_msg=metric)


def test_what_is_not_resampled_has_no_interval(long):
    for given in (scored(weight=np.ones(N)), scored(soft=True), scored(n=1)):
        (row,) = streaming.evaluate_scored(given, SETTINGS)
        assert row["intervals"] == {}
        assert row["intervals_by"].startswith("none")


@pytest.mark.parametrize("most", [0, 10**9])
@pytest.mark.parametrize("kind", ["right", "wrong", "constant", "infinite", "one"])
def test_degenerate_files(monkeypatch, kind, most):
    monkeypatch.setattr(streaming, "MOST_COUNTS", most)
    given = scored(n=1 if kind == "one" else N)
    loss = {"right": given.loss & False, "wrong": given.loss | True}.get(kind, given.loss)
    score = given.score["a"]
    score = {"constant": score * 0, "infinite": np.where(score > 0, np.inf, -np.inf)}.get(kind, score)
    (row,) = streaming.evaluate_scored(dataclasses.replace(given, loss=loss, score={"a": score}), SETTINGS)
    if kind in ("right", "wrong", "constant"):
        assert row["metrics"]["aurc"] == pytest.approx(loss.mean())
    if kind in ("right", "wrong"):
        assert np.isnan([row["metrics"]["naurc"], row["metrics"]["failure_auroc"]]).all()
    if kind == "infinite":
        assert (
            row["metrics"]
            == streaming.evaluate_scored(dataclasses.replace(given, score={"a": np.sign(score)}), SETTINGS)[0][
                "metrics"
            ]
        )


@pytest.mark.parametrize(("n", "long"), [(199, False), (200, False), (201, True)])
def test_a_file_is_long_where_its_counts_are_too_many(monkeypatch, n, long):
    monkeypatch.setattr(streaming, "MOST_COUNTS", 200 * SETTINGS.resamples)
    assert streaming.is_long(n, SETTINGS) == long
    (row,) = streaming.evaluate_scored(scored(n=n), SETTINGS)
    assert row["intervals_by"].startswith("jackknife" if long else "percentile bootstrap")


# --- memory -----------------------------------------------------------------------------------------------------------

LARGE = """
import sys, tracemalloc
import numpy as np
from sc_jax import evaluate

folder, scores, n, k = sys.argv[1], sys.argv[2], 300_000, 200
logits = np.random.default_rng(0).standard_normal((n, k), np.float32)
np.savez(f"{folder}/big.npz", label=np.argmax(logits[:, :100], axis=1), logits=logits)
del logits
tracemalloc.start()
evaluate.main([f"--predictions={folder}/big.npz", f"--scores={scores}", f"--workdir={folder}/out"])
print(tracemalloc.get_traced_memory()[1], file=sys.stderr)
"""


def test_a_file_of_300_000_examples_takes_less_memory_than_its_logits(tmp_path):
    """240 MB of logits; a chunk of them and what is computed of it take half of that, however many there are."""
    scores = "msp,max_logit"
    done = subprocess.run([sys.executable, "-c", LARGE, tmp_path, scores], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert int(done.stderr.splitlines()[-1]) < 160e6
    rows = json.loads((tmp_path / "out" / "metrics.json").read_text())["runs"]
    assert [row["score"] for row in rows] == scores.split(",")
    whole = np.load(tmp_path / "big.npz")
    logits, label = whole["logits"], whole["label"]
    error = np.argmax(logits, axis=1) != label
    assert rows[1]["n"] == 300_000
    assert rows[1]["metrics"]["error"] == pytest.approx(error.mean(), rel=1e-12)
    assert rows[1]["metrics"]["aurc"] == pytest.approx(float(ops.aurc(np.max(logits, axis=1), error)), rel=1e-10)
    assert rows[0]["intervals_by"] == "jackknife over examples"


def test_the_errors_of_a_stream_are_those_of_the_file(tmp_path, small_chunks):
    result = streamed(tmp_path, predictions(0))
    np.testing.assert_array_equal(result.scored.loss, errors(predictions(0)))
    assert result.about == {"argmax_ties": 0, "infinite_log_losses": 0}
    rounded = predictions(0, digits=0)
    tops = (rounded.logits == rounded.logits.max(axis=1, keepdims=True)).sum(axis=1)
    assert streamed(tmp_path, rounded).about["argmax_ties"] == (tops > 1).sum() > 0


def test_scores_have_their_room_on_disk_before_they_are_written(tmp_path):
    """Else a full disk is SIGBUS, which ends the process without a word."""
    n = 1_000_000
    made = streaming._column(tmp_path / "msp.npy", np.float64, n)
    about = (tmp_path / "msp.npy").stat()
    assert about.st_size > 8 * n
    assert 512 * about.st_blocks >= about.st_size
    assert made.shape == (n,)


def test_no_room_for_scores_is_one_line(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(InputError, match=r"the scores of 1,000 examples there \(No space left on device\); .*TMPDIR"):
        streaming._column(tmp_path / "msp.npy", np.float64, 1000)
