"""Sets by definition, coverage of each stratum, and what acceptance of singletons does and does not promise."""

import dataclasses
import math

import made_up
import numpy as np
import pytest
from scipy import stats

from sc_jax import ops
from sc_jax.files import InputError
from sc_jax.methods import conformal, selector
from sc_jax.predictions import select

EVERY = pytest.mark.parametrize("score", selector.NONCONFORMITY)


def split(seed, n=500, k=5, **changes):
    return made_up.predictions(seed, n, k, example_id=seed * 100_000 + np.arange(n), source=f"{seed}.npz", **changes)


def missed(fitted, test, u=0.0):
    """Whether each set lacks the true class."""
    return ~conformal.sets(fitted, test, u)[np.arange(len(test)), test.label]


@EVERY
def test_sets_take_in_what_conforms(score):
    calibration, test = split(1), split(2)
    fitted = conformal.fit(calibration, score, 0.2)
    p, q = (np.exp(ops.log_softmax(given.logits)) for given in (calibration, test))
    state = conformal.DEFAULTS.get(score, {})
    own = selector.nonconformity_of(score, state, p)[np.arange(500), calibration.label]
    limit = np.sort(own)[math.ceil(501 * 0.8) - 1]
    assert fitted.quantile == {"all": limit}
    np.testing.assert_array_equal(conformal.sets(fitted, test), selector.nonconformity_of(score, state, q) <= limit)


@EVERY
@pytest.mark.parametrize("by", ["all", "group", "predicted_class", "label"])
def test_each_stratum_is_covered(score, by):
    """100 calibration sets of 120 examples, some strata rarer and harder; a stratum is missed in a share of α or less."""
    rng = np.random.default_rng(0)
    pool = split(3, 6000)
    hard = rng.random(6000) < 0.2
    logits = np.where(hard[:, None], rng.normal(size=pool.logits.shape), pool.logits)
    pool = dataclasses.replace(pool, logits=logits, group=hard.astype(int))
    test, rest = select(pool, np.arange(2000)), np.arange(2000, 6000)
    names = selector.strata(test, by, test.logits.argmax(axis=1))
    rates = {name: [] for name in np.unique(names)}
    for _ in range(100):
        u = (rng.random(120), rng.random(2000)) if score in ("aps", "raps", "saps") else (0.0, 0.0)
        fitted = conformal.fit(
            dataclasses.replace(select(pool, rng.choice(rest, 120)), example_id=10**6 + np.arange(120)),
            score,
            0.2,
            by=by,
            u=u[0],
        )
        wrong = missed(fitted, test, u[1])
        for name, found in rates.items():
            found.append(wrong[names == name].mean())
    for name, found in rates.items():  # the noise of the test split itself comes on top of that over calibration sets
        test_error = 0.4 / math.sqrt((names == name).sum())
        assert np.mean(found) <= 0.2 + 3 * (np.std(found) / 10 + test_error), name


def test_without_strata_the_hard_group_is_missed_more():
    rng = np.random.default_rng(0)
    calibration, test = split(1, 3000), split(2, 3000)
    hard = rng.random(3000) < 0.2
    both = [
        dataclasses.replace(
            p, logits=np.where(hard[:, None], rng.normal(size=p.logits.shape), p.logits), group=hard * 1
        )
        for p in (calibration, test)
    ]
    assert missed(conformal.fit(both[0], "lac", 0.2), both[1])[hard].mean() > 0.3
    assert missed(conformal.fit(both[0], "lac", 0.2, by="group"), both[1])[hard].mean() < 0.25


@EVERY
@pytest.mark.parametrize("within", ["all", "predicted_class", "label"])
def test_a_singleton_is_accepted(score, within):
    calibration, test = split(1), split(2)
    chosen = conformal.fit_selector(calibration, score, risk=0.2, within=within)
    decision = chosen(test)
    inside = conformal.sets(conformal.fit(calibration, score, 0.2, by=within), test)
    np.testing.assert_array_equal(decision.accept, inside.sum(axis=1) == 1)
    wrong = decision.accept & (decision.prediction != test.label)
    assert not (wrong & inside[np.arange(500), test.label]).any()  # wrong only where the set misses
    assert chosen.promise.kind == "marginal"
    assert chosen.promise.quantity == "accepted and wrong"
    with pytest.raises(InputError, match="was fitted on"):
        chosen(calibration)


def test_singletons_promise_no_selective_risk():
    """Errors accepted are at most α of all, and here more than 2α of the accepted, because few are accepted."""
    rng = np.random.default_rng(0)
    label = rng.integers(0, 5, 4000)
    sure = rng.random(4000) < 0.15
    named = np.where(rng.random(4000) < 0.5, label, (label + 1) % 5)
    logits = np.where(sure[:, None], 9.0 * np.eye(5)[named], 0.1 * rng.normal(size=(4000, 5)))
    given = split(1, 4000, label=label, logits=logits)
    halves = select(given, np.arange(2000)), dataclasses.replace(select(given, np.arange(2000, 4000)), source="b")
    decision = conformal.fit_selector(halves[0], "lac", risk=0.1)(halves[1])
    wrong = decision.prediction != halves[1].label
    assert (decision.accept & wrong).mean() <= 0.1
    assert wrong[decision.accept].mean() > 0.2


def test_a_rare_class_has_no_quantile_and_is_in_every_set():
    calibration = split(1, 200)
    calibration = select(calibration, calibration.label != 4)
    fitted = conformal.fit(calibration, "lac", 0.1, by="label")
    assert fitted.quantile["4"] == math.inf
    assert conformal.sets(fitted, split(2))[:, 4].all()
    few = conformal.fit(select(calibration, np.arange(3)), "lac", 0.1)
    assert conformal.sets(few, split(2)).all()
    assert not conformal.fit_selector(select(calibration, np.arange(3)), "lac", risk=0.1)(split(2)).accept.any()


def test_classes_alike_share_a_quantile():
    """Classes 0..5 are easy, 6..11 hard; class 12 has one tuning example."""
    k = 13

    def made(seed, n):
        rng = np.random.default_rng(seed)
        label = rng.choice(k, n, p=np.append(np.full(12, 0.999 / 12), 0.001))
        signal = np.where(label < 6, 6.0, 1.0)[:, None] * np.eye(k)[label]
        return split(seed, n, k, label=label, logits=rng.normal(size=(n, k)) + signal)

    tuning = made(1, 2000)
    found = conformal.cluster_classes(tuning, "lac", 0.1, 2)
    cluster = found.index
    assert len(set(cluster[:6])) == len(set(cluster[6:12])) == 1
    assert cluster[12] == 2
    assert len({cluster[0], cluster[6], cluster[12]}) == 3
    calibration, test = made(2, 2000), made(3, 6000)
    fitted = conformal.fit(calibration, "lac", 0.1, by="label", cluster=found)
    assert len({fitted.quantile[str(c)] for c in range(6)}) == 1
    assert fitted.quantile["0"] < fitted.quantile["6"]
    for mine in (test.label < 6, (test.label >= 6) & (test.label < 12)):
        assert stats.binomtest(int(missed(fitted, test)[mine].sum()), int(mine.sum()), 0.1).pvalue > 1e-4
    assert len(set(conformal.cluster_classes(tuning, "lac", 0.1, 1).index)) == 2
    assert set(conformal.cluster_classes(made(4, 30), "lac", 0.1, 2).index) == {2}  # none has 9 examples
    with pytest.raises(ValueError, match="by='label'"):
        conformal.fit(calibration, "lac", 0.1, cluster=found)
    with pytest.raises(ValueError, match="one is needed for each of 13 classes"):
        conformal.fit(calibration, "lac", 0.1, by="label", cluster=conformal.Clusters(cluster[:12]))
    fixed = conformal.fit(calibration, "lac", 0.1, by="label", cluster=conformal.Clusters(cluster))
    assert fixed.quantile == fitted.quantile
    with pytest.raises(InputError, match="the clustering of classes was fitted on"):
        conformal.fit(tuning, "lac", 0.1, by="label", cluster=found)
    for own in (calibration, tuning):
        with pytest.raises(InputError, match="what these sets are of was fitted on"):
            conformal.sets(fitted, own)


def test_sets_refuse_what_they_were_fitted_on():
    calibration, test = split(1), split(2)
    fitted = conformal.fit(calibration, "lac", 0.2)
    order = np.random.default_rng(0).permutation(500)
    for own in (calibration, select(calibration, order[:100]), dataclasses.replace(calibration, ids_given=False)):
        with pytest.raises(InputError, match="was fitted on"):
            conformal.sets(fitted, own)
        with pytest.raises(InputError):
            conformal.sets_under_shift(calibration, own, "lac", 0.2, np.ones(500), np.ones(len(own)))
    with pytest.raises(InputError, match="k = 4 classes"):
        conformal.sets(fitted, split(3, k=4))
    assert conformal.sets(fitted, test).shape == (500, 5)


def test_weights_repair_a_shift():
    """Hard inputs are three times as common in the test split."""
    rng = np.random.default_rng(0)
    plain, weighted = [], []
    for seed in range(60):
        parts = []
        for part, share in ((0, 0.2), (1, 0.6)):
            given = split(10 + 2 * seed + part, 300)
            hard = rng.random(300) < share
            signal = np.where(hard, 0.5, 4.0)[:, None] * np.eye(5)[given.label]
            parts.append((dataclasses.replace(given, logits=rng.normal(size=(300, 5)) + signal), hard))
        (calibration, hard), (test, hard_test) = parts
        weight, test_weight = (np.where(h, 0.6 / 0.2, 0.4 / 0.8) for h in (hard, hard_test))
        inside = conformal.sets_under_shift(calibration, test, "aps", 0.2, weight, test_weight)
        weighted.append(inside[np.arange(300), test.label].mean())
        plain.append(1 - missed(conformal.fit(calibration, "aps", 0.2), test).mean())
    assert np.mean(plain) < 0.75
    assert np.mean(weighted) > 0.8 - 3 * np.std(weighted) / math.sqrt(60)
    ones = np.ones(300)
    same = conformal.sets_under_shift(calibration, test, "lac", 0.2, ones, ones)
    np.testing.assert_array_equal(same, conformal.sets(conformal.fit(calibration, "lac", 0.2), test))


def test_what_it_cannot_use_is_refused():
    calibration = split(1)
    with pytest.raises(InputError, match="there are lac"):
        conformal.fit_selector(calibration, "msp", risk=0.1)
    with pytest.raises(InputError, match="'group': is missing"):
        conformal.fit(calibration, "lac", 0.1, by="group")
    with pytest.raises(InputError, match="come together"):
        conformal.fit(dataclasses.replace(calibration, cluster=np.zeros(500, int)), "lac", 0.1)
    with pytest.raises(InputError, match="all examples are OOD"):
        conformal.fit_selector(dataclasses.replace(calibration, is_ood=np.ones(500, bool)), "lac", risk=0.1)
    with pytest.raises(ValueError, match="alpha must lie"):
        conformal.fit(calibration, "lac", 1.0)
