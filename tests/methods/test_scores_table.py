"""The scores known by name: each is what its name says, and says why it cannot be computed where it cannot."""

import dataclasses

import numpy as np
import pytest

from sc_jax import ops
from sc_jax.files import InputError
from sc_jax.methods import scores as scores_lib
from sc_jax.methods.scores import SCORES, obstacle
from sc_jax.predictions import Predictions


def predictions(k=4, n=40, seed=0, **changes):
    rng = np.random.default_rng(seed)
    label = rng.integers(0, k, n)
    logits = rng.normal(size=(n, k)) + 1.5 * (np.arange(k) == label[:, None])
    return dataclasses.replace(Predictions(label, logits, np.arange(n)), **changes)


def as_probabilities(given, zero=False):
    logits = ops.log_softmax(given.logits)
    if zero:
        logits[0, np.argmin(logits[0])] = -np.inf
    return dataclasses.replace(given, logits=logits, log_probabilities=True)


def test_untuned_scores_are_the_functions_of_their_name():
    logits = predictions().logits
    np.testing.assert_array_equal(SCORES["msp"].of(logits), ops.msp(logits))
    np.testing.assert_array_equal(SCORES["max_logit"].of(logits), logits.max(axis=1))
    assert {name for name, score in SCORES.items() if score.tuned} == {"max_logit_pnorm", "max_logit_pnorm_or_msp"}


def test_named_keeps_the_order_asked_for():
    assert list(scores_lib.named(("max_logit", "msp"))) == ["max_logit", "msp"]


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("mps", "did you mean 'msp'"),
        ("max_logits", "did you mean 'max_logit'"),
        ("max_logit_pnorm_msp", "did you mean 'max_logit_pnorm_or_msp'"),
        ("zzz", "there are msp, max_probability_as_stored"),
        ("", "there are msp, max_probability_as_stored"),
    ],
)
def test_an_unknown_score_names_the_nearest(name, hint):
    with pytest.raises(InputError) as caught:
        scores_lib.named(("msp", name))
    assert f"there is no score {name!r}" in str(caught.value)
    assert hint in str(caught.value)


def everything(kind, seed=0):
    """A split from which a score of this kind can be computed."""
    given = predictions(seed=seed)
    rng = np.random.default_rng(seed)
    head = {"features": np.abs(rng.normal(size=(40, 6))), "head_kernel": np.eye(6, 4), "head_bias": np.zeros(4)}
    head |= {"confidence": rng.normal(size=40)}
    if kind == "members":
        return dataclasses.replace(given, logits=np.stack([given.logits, given.logits[::-1]]), **head)
    return as_probabilities(given) if kind == "probabilities" else dataclasses.replace(given, **head)


@pytest.mark.parametrize("name", SCORES)
def test_nothing_stands_in_the_way_of_two_splits_that_have_everything(name):
    kind = "members" if SCORES[name].of_members else "logits"
    kind = "probabilities" if "stored_probabilities" in SCORES[name].needs else kind
    assert obstacle(SCORES[name], everything(kind), everything(kind, 1)) is None


@pytest.mark.parametrize("name", SCORES)
def test_a_score_is_one_kind_of_thing(name):
    score = SCORES[name]
    kinds = [score.of is not None, score.of_members is not None, score.of_features is not None]
    kinds += [score.fit is not None, score.tuned]
    assert sum(kinds) == 1
    assert (score.fit is None) == (score.apply is None)
    assert score.needs_calibration == (score.tuned or score.fit is not None)
    if score.needs_calibration:
        assert "--calibration" in obstacle(score, everything("logits"), None)


def test_names_are_those_of_the_functions():
    """A score that is one function of logits, or of members, has its name."""
    logits = predictions().logits
    for name, score in SCORES.items():
        if score.of is not None and name not in ("max_probability_as_stored", "sparsemax", "entmax15"):
            np.testing.assert_array_equal(score.of(logits), getattr(ops, name)(logits))
        if score.of_members is not None:
            members = np.stack([logits, logits[::-1]])
            np.testing.assert_array_equal(score.of_members(members), getattr(ops, name)(members))


def test_confidences_of_entmax_are_those_of_their_alpha():
    logits = predictions().logits
    for name, alpha in (("sparsemax", 2.0), ("entmax15", 1.5)):
        np.testing.assert_array_equal(SCORES[name].of(logits), ops.entmax_confidence(logits, alpha))


def test_a_confidence_of_the_model_s_own_is_taken_as_it_is():
    score, given = SCORES["model_confidence"], everything("logits")
    np.testing.assert_array_equal(score.of_features(given), given.confidence)
    bare = dataclasses.replace(given, confidence=None)
    assert obstacle(score, bare, None) == "needs a confidence of the model's own; the file has none"
    assert obstacle(score, given, bare) == "needs a confidence of the model's own; the calibration file has none"
    assert obstacle(score, given, None) is None


def test_the_probability_as_stored_is_what_the_file_holds():
    probs = np.float32(np.exp(ops.log_softmax(predictions().logits * 20)))
    score = SCORES["max_probability_as_stored"].of(np.log(probs.astype(np.float64)))
    np.testing.assert_allclose(score, probs.max(axis=1), rtol=1e-15)
    assert len(np.unique(score)) == len(np.unique(probs.max(axis=1))) < len(probs)  # the same ties


def test_msp_pnorm_has_the_smallest_aurc_of_its_grid_on_the_calibration_split():
    calibration = predictions(seed=3)
    state = SCORES["msp_pnorm"].fit(calibration)
    error = calibration.logits.argmax(axis=1) != calibration.label
    grid = [(p, t) for t in (0.02, 0.05, 0.1, 0.3, 1.0) for p in (1, 2, 3, 4, 5, 8)]
    aurc = {at: float(ops.aurc(ops.msp_pnorm(calibration.logits, *at), error)) for at in grid}
    assert (state.p, state.temperature) == min(aurc, key=aurc.get)
    assert state.aurc == pytest.approx(min(aurc.values()))
    other = predictions(seed=4)
    expected = ops.msp_pnorm(other.logits, state.p, state.temperature)
    np.testing.assert_array_equal(SCORES["msp_pnorm"].apply(state, other), expected)


def test_msp_pnorm_is_fitted_to_weights_as_to_repeated_rows():
    calibration = predictions(seed=5)
    weight = np.random.default_rng(0).integers(0, 4, 40).astype(float)
    rows = np.repeat(np.arange(40), weight.astype(int))
    repeated = dataclasses.replace(calibration, label=calibration.label[rows], logits=calibration.logits[rows])
    fitted = [SCORES["msp_pnorm"].fit(c) for c in (dataclasses.replace(calibration, weight=weight), repeated)]
    assert fitted[0][:2] == fitted[1][:2]
    assert fitted[0].aurc == pytest.approx(fitted[1].aurc, rel=1e-12) != SCORES["msp_pnorm"].fit(calibration).aurc


@pytest.mark.parametrize("name", ["mahalanobis", "knn_distance", "residual", "vim", "sirc", "react"])
def test_scores_of_features_say_what_is_missing(name):
    score, good, other = SCORES[name], everything("logits"), everything("logits", 1)
    missing = {"features": None}
    assert obstacle(score, dataclasses.replace(good, **missing), other) == "needs features; the file has none"
    assert "the calibration file has none" in obstacle(score, good, dataclasses.replace(other, **missing))
    narrow = dataclasses.replace(other, features=other.features[:, :5])
    assert obstacle(score, good, narrow) == "needs the same features; there are 6, of the calibration file 5"
    holed = other.features.copy()
    holed[3, 2] = np.nan
    assert "a feature is NaN" in obstacle(score, dataclasses.replace(good, features=holed), other)
    assert "feature of the calibration file is NaN" in obstacle(score, good, dataclasses.replace(other, features=holed))
    if "head" in score.needs:
        for missing in ("head_kernel", "head_bias"):
            headless = dataclasses.replace(good, **{missing: None})
            assert "needs head_kernel and head_bias" in obstacle(score, headless, other)


def test_scores_of_features_without_fitting_are_the_functions_of_their_name():
    given = everything("logits")
    head = given.features, given.head_kernel, given.head_bias
    for shaping, percentile in (("prune", 60), ("binarise", 65), ("scale", 90)):
        score = SCORES[f"ash_{shaping}"]
        np.testing.assert_array_equal(score.of_features(given), ops.ash(*head, percentile, shaping))
        assert obstacle(score, dataclasses.replace(given, features=None), None) == "needs features; the file has none"
        assert "needs head_kernel" in obstacle(score, dataclasses.replace(given, head_bias=None), None)
        refused = obstacle(score, dataclasses.replace(given, features=given.features - 1), None)
        assert refused is None if shaping == "prune" else "not negative" in refused
    np.testing.assert_array_equal(SCORES["gradnorm"].of_features(given), ops.gradnorm(given.features, given.logits))
    state = SCORES["react"].fit(given)
    np.testing.assert_array_equal(state.threshold, ops.fit_react(given.features, 90).threshold)
    other = everything("logits", 1)
    np.testing.assert_array_equal(SCORES["react"].apply(state, other), ops.react(other.features, *head[1:], state))


def test_scores_of_members_need_two_of_them():
    one = dataclasses.replace(everything("members"), logits=everything("members").logits[:1])
    for name, score in SCORES.items():
        if score.of_members is not None:
            for given in (one, predictions()):
                assert "two members" in obstacle(score, given, None), name


def test_what_stands_in_the_way_is_said():
    good, other = predictions(), predictions(seed=1)
    tuned = SCORES["max_logit_pnorm"]
    assert "--calibration" in obstacle(tuned, good, None)
    assert "k = 2" in obstacle(tuned, predictions(k=2), predictions(k=2, seed=1))
    assert "probability is exactly 0" in obstacle(tuned, as_probabilities(good, zero=True), other)
    assert "calibration file" in obstacle(tuned, good, as_probabilities(other, zero=True))
    assert obstacle(tuned, as_probabilities(good), as_probabilities(other)) is None
    assert "true logits" in obstacle(SCORES["max_logit"], as_probabilities(good), None)
    assert obstacle(SCORES["msp"], as_probabilities(good, zero=True), None) is None
    assert obstacle(SCORES["msp"], predictions(k=2), None) is None
