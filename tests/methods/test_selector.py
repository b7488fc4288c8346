"""A selector says what it promises, decides by it, and is the same after a round trip to disk."""

import dataclasses
import json
import math
from fractions import Fraction

import made_up
import numpy as np
import pytest

from sc_jax import files, ops
from sc_jax.files import InputError
from sc_jax.methods import guarantees, scod
from sc_jax.methods import scores as scores_lib
from sc_jax.methods import selector as selector_lib
from sc_jax.methods.selector import Promise, Selector
from sc_jax.predictions import Examples, known_by, select

MARGINAL = Promise("marginal", "accepted and wrong", 0.1, None)
NOWHERE = Examples("elsewhere.npz", 10, {}, made_up.CLASSES, "logits")


def made(rule="threshold", score="msp", by="all", thresholds=None, state=None):
    return Selector("by hand", MARGINAL, rule, score, state or {}, by, thresholds or {"all": 1.0}, NOWHERE)


def test_a_threshold_accepts_whole_ties():
    test = made_up.predictions(0, digits=1)
    score = ops.msp(test.logits)
    threshold = float(np.sort(score)[20])
    decision = made(thresholds={"all": threshold})(test)
    np.testing.assert_array_equal(decision.accept, score >= threshold)
    np.testing.assert_array_equal(decision.score, score)
    np.testing.assert_array_equal(decision.prediction, test.logits.argmax(axis=1))
    assert not made(thresholds={"all": math.nan})(test).accept.any()
    assert made(thresholds={"all": -math.inf})(test).accept.all()


def test_strata_have_thresholds_of_their_own():
    group = np.arange(made_up.TEST) % 3
    test = made_up.predictions(0, group=group)
    decision = made(by="group", thresholds={"0": -math.inf, "1": math.nan})(test)
    np.testing.assert_array_equal(decision.accept, group == 0)  # one that was never seen is not accepted
    decision = made(by="predicted_class", thresholds={"2": -math.inf})(test)
    np.testing.assert_array_equal(decision.accept, test.logits.argmax(axis=1) == 2)
    with pytest.raises(InputError, match="'group': is missing"):
        made(by="group")(made_up.predictions(0))


def test_singletons_are_sets_of_one():
    test = made_up.predictions(0)
    p = np.exp(ops.log_softmax(test.logits))
    decision = made("singleton", "lac", thresholds={"all": 0.6})(test)
    sets = p >= 0.4
    np.testing.assert_array_equal(decision.accept, sets.sum(axis=1) == 1)
    assert 0 < decision.accept.sum() < len(test)
    own = {str(k): q for k, q in enumerate((0.0, 0.9, 0.9, 0.8, 0.95))}
    decision = made("singleton", "lac", "label", own)(test)
    sets = 1 - p <= np.array(list(own.values()))
    np.testing.assert_array_equal(decision.accept, sets.sum(axis=1) == 1)
    np.testing.assert_array_equal(decision.prediction[decision.accept], sets.argmax(axis=1)[decision.accept])
    assert (decision.prediction != p.argmax(axis=1)).any()  # the one class in the set need not be the likeliest
    missing = made("singleton", "lac", "label", {"0": 0.9})(test)
    assert (missing.prediction[missing.accept] == 0).all()


@pytest.mark.parametrize("name", ["aps", "raps", "saps", "top_k"])
def test_no_set_is_empty_where_u_is_0(name):
    state = {"penalty": 0.1, "free": 1, "weight": 0.2}
    p = np.exp(ops.log_softmax(made_up.predictions(0).logits))
    scores = selector_lib.nonconformity_of(name, state, p)
    assert (scores.min(axis=1) <= (1 if name == "top_k" else 0)).all()
    np.testing.assert_array_equal(scores.argmin(axis=1), p.argmax(axis=1))
    with pytest.raises(InputError, match="there are lac"):
        selector_lib.nonconformity_of("softmax", {}, p)


def copies(fitted, other):
    """The examples under other names: in another order, a part, among others, with ids where there were none."""
    order = np.random.default_rng(0).permutation(len(fitted))
    both = {name: np.concatenate([getattr(p, name) for p in (fitted, other)]) for name in ("label", "logits")}
    return {
        "itself": fitted,
        "a copy": dataclasses.replace(fitted, source="copy.npz"),
        "in another order": select(fitted, order),
        "a part": select(fitted, np.arange(len(fitted) // 2)),
        "among others": dataclasses.replace(fitted, **both, example_id=10**6 + np.arange(len(fitted) + len(other))),
        "with other ids": dataclasses.replace(fitted, example_id=10**6 + np.arange(len(fitted)), ids_given=True),
        "in float32": dataclasses.replace(fitted, logits=fitted.logits.astype(np.float32), ids_given=False),
        "without ids": dataclasses.replace(fitted, ids_given=False),
    }


@pytest.mark.parametrize("with_ids", [True, False])
@pytest.mark.parametrize("role", ["fitted_on", "tuned_on"])
def test_what_it_was_fitted_on_is_refused(tmp_path, role, with_ids):
    fitted, other = (
        made_up.predictions(seed, example_id=100 * seed + np.arange(60), ids_given=with_ids) for seed in (3, 4)
    )
    on = known_by(fitted)
    selector_lib.save(tmp_path / "s.json", dataclasses.replace(made(), **{role: on if role == "fitted_on" else (on,)}))
    chosen = selector_lib.load(tmp_path / "s.json")
    chosen(other)
    for same in copies(fitted, other).values():
        with pytest.raises(InputError, match="was fitted on"):
            chosen(same)
    about = {"dataset": "made_up", "split": "validation"}
    on = known_by(dataclasses.replace(fitted, provenance=about))
    with pytest.raises(InputError, match=r"was fitted on .* is of the same split"):
        dataclasses.replace(made(), fitted_on=on)(dataclasses.replace(other, provenance=about))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label": np.zeros(60, int), "logits": np.random.default_rng(0).normal(size=(60, 2))}, "'logits': k = 2"),
        ({"logits": np.random.default_rng(0).normal(size=(60, 10))}, "'logits': k = 10"),
        ({"logits": np.random.default_rng(0).normal(size=(3, 60, 5))}, "holds logits of 3 members"),
        ({"log_probabilities": True}, "holds probabilities"),
        ({"provenance": {"checkpoint": "b"}}, "checkpoint differ"),
        ({"provenance": {"tags": {"seed": 2}}}, "tags differ"),
    ],
    ids=["k = 2", "k = 10", "an ensemble", "probabilities", "checkpoint", "tags"],
)
def test_outputs_of_another_model_are_refused(tmp_path, changes, message):
    provenance = {"checkpoint": "a", "tags": {"seed": 1}}
    fitted, test = (
        made_up.predictions(seed, example_id=100 * seed + np.arange(60), provenance=provenance) for seed in (1, 2)
    )
    selector_lib.save(tmp_path / "s.json", guarantees.fit(fitted, "crc", risk=0.2))
    chosen = selector_lib.load(tmp_path / "s.json")
    chosen(test)
    with pytest.raises(InputError, match=rf"2\.npz.*{message}.*give another split of the same model"):
        chosen(dataclasses.replace(test, **changes))


def test_a_fitted_score_is_its_numbers():
    tuning, test = made_up.predictions(5), made_up.predictions(6)
    assert selector_lib.fit_score("msp", None) == {}
    for name in ("msp_temperature", "msp_pnorm", "max_logit_pnorm", "max_logit_pnorm_or_msp"):
        state = json.loads(json.dumps(selector_lib.fit_score(name, tuning)))
        score = selector_lib.score_of(name, state, test)
        assert score.shape == (60,)
        if name == "msp_temperature":
            np.testing.assert_array_equal(
                score, ops.msp(test.logits / ops.fit_temperature(tuning.logits, tuning.label))
            )
        if name == "max_logit_pnorm":
            np.testing.assert_array_equal(score, ops.max_logit_pnorm(test.logits, state["p"]))
    with pytest.raises(InputError, match="--tuning"):
        selector_lib.fit_score("msp_temperature", None)
    with pytest.raises(InputError, match="needs features"):
        selector_lib.fit_score("mahalanobis", tuning)
    with pytest.raises(InputError, match="did you mean 'msp'"):
        selector_lib.fit_score("mps", None)
    with pytest.raises(InputError, match="needs two members"):
        selector_lib.score_of("disagreement", {}, test)


FITTED = [name for name, score in scores_lib.SCORES.items() if score.needs_calibration]


@pytest.mark.parametrize("name", FITTED)
def test_a_fitted_score_decides_the_same_from_disk(tmp_path, name):
    tuning, calibration, test = (made_up.with_head(seed, example_id=100 * seed + np.arange(60)) for seed in (5, 6, 7))
    chosen = guarantees.fit(calibration, "crc", name, risk=0.2, tuning=tuning)
    decision = chosen(test)
    assert 0 < decision.accept.sum() < 60
    score = scores_lib.SCORES[name]
    if not score.tuned:  # the very score of `evaluate`
        np.testing.assert_array_equal(decision.score, score.apply(score.fit(tuning), test))
    selector_lib.save(tmp_path / "selector.json", chosen)
    again = selector_lib.load(tmp_path / "selector.json")
    for before, after in zip(decision, again(test), strict=True):
        np.testing.assert_array_equal(before, after)
    for split in (tuning, calibration):
        with pytest.raises(InputError, match="was fitted on"):
            again(dataclasses.replace(split, source="copy.npz"))


RULES = (scod.JointRisk(0.5, 0.5, 0.2), ops.ScodCosts(0.2, 0.3))


@pytest.mark.parametrize("rule", RULES, ids=["mix", "costs"])
@pytest.mark.parametrize(
    "fit",
    [
        lambda tuning, rule: scod.fit_black_box(tuning, rule, ood="vim"),
        lambda tuning, rule: scod.fit_black_box(tuning, rule, selective="max_logit_pnorm", ood="knn_distance"),
        lambda tuning, rule: scod.fit_loss_based(tuning, made_up.with_head(9), rule, mixing=0.5),
        lambda tuning, rule: scod.fit_sirc(tuning),
        lambda tuning, rule: scod.fit_sirc(tuning, second="residual"),
    ],
    ids=["black-box", "of fitted scores", "loss-based", "SIRC", "SIRC of a fitted score"],
)
def test_a_scod_rejector_gets_a_promise_and_survives_the_disk(tmp_path, fit, rule):
    tuning, calibration, test = (made_up.with_head(seed, example_id=100 * seed + np.arange(60)) for seed in (5, 6, 7))
    rejector = fit(tuning, rule)
    chosen = guarantees.fit(calibration, "crc", rejector, risk=0.2)
    selector_lib.save(tmp_path / "selector.json", chosen)
    again = selector_lib.load(tmp_path / "selector.json")
    decision = again(test)
    np.testing.assert_array_equal(decision.score, scod.apply(rejector, test))
    np.testing.assert_array_equal(decision.accept, chosen(test).accept)
    assert 0 < decision.accept.sum() < 60
    for split in (tuning, calibration):
        with pytest.raises(InputError, match="was fitted on"):
            again(split)
    for on in (tuning, select(dataclasses.replace(tuning, source="part.npz"), np.arange(30))):
        with pytest.raises(InputError, match="the rejector was fitted on"):
            guarantees.fit(on, "crc", rejector, risk=0.2)
    document = files.read_json(tmp_path / "selector.json")  # without its seal
    kept = {name: value for name, value in document["state"].items() if not name.endswith((".name", "first"))}
    (tmp_path / "selector.json").write_text(json.dumps({**document, "state": kept}))
    with pytest.raises(InputError, match="is not a selector"):
        selector_lib.load(tmp_path / "selector.json")


def test_a_rejector_knows_every_split_behind_it():
    splits = [made_up.with_head(seed, example_id=100 * seed + np.arange(60)) for seed in range(1, 6)]
    mix, (calibration, outliers, wild, strict, reference) = scod.JointRisk(0.5, 0.5, 0.2), splits
    wild = dataclasses.replace(wild, features=wild.features + 3.0)  # so that inliers are told from it
    both = dataclasses.replace(calibration, is_ood=np.arange(60) % 2 == 0)
    for rejector, behind in (
        (
            scod.fit_black_box(calibration, mix, outliers=outliers, reference=reference),
            (calibration, outliers, reference),
        ),
        (
            scod.fit_loss_based(calibration, wild, mix, strict=strict, reference=reference),
            (calibration, wild, strict, reference),
        ),
        (scod.fit_linear(both, target=mix, reference=reference), (calibration, reference)),
        (scod.fit_sirc(calibration, second="residual", reference=reference), (calibration, reference)),
    ):
        for split in behind:
            with pytest.raises(InputError, match="the rejector was fitted on"):
                guarantees.fit(split, "crc", rejector, risk=0.2)
        chosen = guarantees.fit(made_up.with_head(9, example_id=900 + np.arange(60)), "crc", rejector, risk=0.2)
        assert [on.source for on in chosen.tuned_on] == [split.source for split in behind]


def test_arrays_lie_beside_the_selector(tmp_path):
    tuning, calibration, test = (made_up.with_head(seed, example_id=100 * seed + np.arange(60)) for seed in (5, 6, 7))
    path = tmp_path / "selector.json"
    for name in ("vim", "mahalanobis"):
        selector_lib.save(path, guarantees.fit(calibration, "crc", name, risk=0.2, tuning=tuning))
        kept = (tmp_path / "selector.npz").read_bytes()
        assert b"pickle" not in path.read_bytes() + kept
        if name == "vim":
            assert set(np.load(path.with_suffix(".npz"), allow_pickle=False)) == {
                "residual.origin",
                "residual.complement",
                *(f"{on}.{name}" for on in ("fitted_on", "tuned_on.0") for name in ("example_id", "rows")),
            }
            vim = kept
    path.with_suffix(".npz").write_bytes(vim)
    with pytest.raises(InputError, match="holds other arrays"):
        selector_lib.load(path)
    path.with_suffix(".npz").unlink()
    with pytest.raises(InputError, match="keep both"):
        selector_lib.load(path)
    path.with_suffix(".npz").write_bytes(kept)
    document = files.read_json(path)  # without its seal
    path.write_text(json.dumps({**document, "score": "knn_distance"}))  # which needs other arrays
    with pytest.raises(InputError, match="is not a selector"):
        selector_lib.load(path)
    path.write_text(json.dumps(document))
    with pytest.raises(InputError, match="mahalanobis"):
        selector_lib.load(path)(dataclasses.replace(test, features=test.features[:, :3]))
    selector_lib.save(path, guarantees.fit(calibration, "crc", risk=0.2))
    assert selector_lib.load(path)(test).accept.any()  # what lies beside it is another's


def test_an_ensemble_is_one_classifier():
    members = np.stack([made_up.predictions(seed).logits for seed in range(3)])
    test = made_up.predictions(0, logits=members)
    mean = ops.ensemble_log_probabilities(members)
    on = NOWHERE._replace(form="logits of 3 members")
    decision = dataclasses.replace(made(thresholds={"all": 0.5}), fitted_on=on)(test)
    np.testing.assert_array_equal(decision.score, ops.msp(mean))
    np.testing.assert_array_equal(decision.prediction, mean.argmax(axis=1))
    assert dataclasses.replace(made(score="disagreement"), fitted_on=on)(test).score.shape == (60,)


@pytest.mark.parametrize("threshold", [0.1 + 0.2, math.nan, math.inf, -math.inf, 1e-300])
def test_it_survives_the_disk(tmp_path, threshold):
    chosen = made(by="group", thresholds={"a": threshold, "b": 1.5}, state={"p": 3})
    chosen = dataclasses.replace(
        chosen, promise=Promise("pac", "selective risk", 0.02, 0.05, "group"), about={"a": {"n": 3}}
    )
    selector_lib.save(tmp_path / "selector.json", chosen)
    again = selector_lib.load(tmp_path / "selector.json")
    np.testing.assert_array_equal(list(again.thresholds.values()), list(chosen.thresholds.values()))
    assert dataclasses.replace(again, thresholds={}) == dataclasses.replace(chosen, thresholds={})
    assert "0.95" in json.loads((tmp_path / "selector.json").read_text())["says"]


def test_a_damaged_file_is_refused(tmp_path):
    path = tmp_path / "selector.json"
    selector_lib.save(path, made())
    document = files.read_json(path)  # without its seal
    for change in ({"schema": 2}, {"promise": {"kind": "pac"}}, {"thresholds": None}):
        path.write_text(json.dumps(document | change))
        with pytest.raises(InputError, match=r"selector\.json"):
            selector_lib.load(path)
    path.write_text(json.dumps({key: value for key, value in document.items() if key != "rule"}))
    with pytest.raises(InputError, match="is not a selector"):
        selector_lib.load(path)
    document["promise"]["delta"] = 0.1  # a marginal promise has none, on disk neither
    path.write_text(json.dumps(document))
    with pytest.raises(InputError, match="no δ"):
        selector_lib.load(path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("marginal", "selective risk", 0.1, 0.05), "has no δ"),
        (("pac", "selective risk", 0.1, None), "delta must lie"),
        (("pac", "selective risk", 0.1, 1.0), "delta must lie"),
        (("time-uniform", "selective risk", 0.1, None), "delta must lie"),
        (("pac", "selective risk", 0.0, 0.05), "risk must lie"),
        (("certain", "selective risk", 0.1, 0.05), "kind 'certain'"),
        (("pac", "accuracy", 0.1, 0.05), "quantity 'accuracy'"),
        (("pac", "selective risk", 0.1, 0.05, "hospital"), "within 'hospital'"),
    ],
)
def test_promises_that_cannot_be_made(arguments, message):
    with pytest.raises(ValueError, match=message):
        Promise(*arguments)


@pytest.mark.parametrize("delta", [0.05, 1e-6, 4e-7, 1e-12, 1e-300, 0.3 / 7])
def test_a_promise_says_no_more_than_it_holds(delta):
    said = str(Promise("pac", "selective risk", 0.0500000004, delta))
    stated = said.partition("with probability ≥ ")[2].partition(" over")[0]
    one, minus, rest = stated.partition(" − ")
    assert (Fraction(one) - Fraction(rest) if minus else Fraction(one)) == 1 - Fraction(str(delta))
    assert "≤ 0.0500000004," in said


@pytest.mark.parametrize(
    ("rule", "by", "message"),
    [
        ("threshold", "label", "cannot depend"),
        ("vote", "all", "there are threshold"),
        ("singleton", "age", "cannot depend"),
    ],
)
def test_rules_that_cannot_be_followed(rule, by, message):
    with pytest.raises(ValueError, match=message):
        made(rule, by=by)


KNOWN = {"source": "a.npz", "n": 3, "about": {}, "num_classes": 5, "form": "logits"}


@pytest.mark.parametrize(
    "change",
    [
        {"score": 3},
        {"score": "no such score"},
        {"score": ["msp"]},
        {"score": "max_logit_pnorm", "state": {}},
        {"score": "max_logit_pnorm", "state": {"p": "3"}},
        {"rule": "singleton", "score": "raps", "state": {"penalty": 0.1}},
        {"thresholds": {"all": 10**400}},
        {"about": None},
        *({"fitted_on": KNOWN | change} for change in ({"source": 1}, {"n": "3"}, {"about": None}, {"form": None})),
        {"fitted_on": KNOWN | {"num_classes": 2.5}},
        {"fitted_on": KNOWN | {"rows": [1, 2]}},
        {"tuned_on": None},
        {"tuned_on": [None]},
    ],
    ids=str,
)
def test_a_file_that_no_fit_writes_is_refused(tmp_path, change):
    path = tmp_path / "selector.json"
    selector_lib.save(path, made())
    files.write_json(path, files.read_json(path) | change)
    with pytest.raises(InputError, match=r"selector\.json: is not a selector"):
        selector_lib.load(path)
