"""Combining, weighting, merging, diversity and subsets of stored members, against definitions and brute force."""

import dataclasses
import itertools
import json
import math

import jax.numpy as jnp
import numpy as np
import pytest
from made_up import with_head
from scipy import optimize, special
from sklearn.metrics import cohen_kappa_score, matthews_corrcoef

from sc_jax import ops, predictions
from sc_jax.files import InputError
from sc_jax.methods import ensemble
from sc_jax.ops import resampling
from sc_jax.predictions import Predictions

SPACES = ("probability", "logit")
pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")


def members(seed, m=4, n=80, k=5, signal=1.0):
    """Members of different quality that share part of their noise."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, k, n)
    shared = rng.normal(size=(n, k))
    noise = rng.normal(size=(m, n, k)) * rng.uniform(0.5, 2, (m, 1, 1))
    return Predictions(label, noise + shared + signal * np.eye(k)[label], np.arange(n), source=f"{seed}.npz")


def simplex(seed, m):
    return np.random.default_rng(seed).dirichlet(np.ones(m))


def by_definition(logits, weights, space):
    if space == "logit":
        return sum(w * v for w, v in zip(weights, logits, strict=True))
    return np.log(sum(w * special.softmax(v, axis=-1) for w, v in zip(weights, logits, strict=True)))


def losses(given, weights, space):
    return ops.log_loss(ensemble.combine(given.logits, weights, space), given.label)


# Combining


@pytest.mark.parametrize("space", SPACES)
def test_combine_is_the_weighted_mean(space):
    logits, weights = members(0).logits, simplex(1, 4)
    np.testing.assert_allclose(
        ensemble.combine(logits, weights, space), by_definition(logits, weights, space), rtol=1e-12, atol=1e-14
    )
    np.testing.assert_allclose(
        ensemble.combine(logits, None, space), by_definition(logits, np.full(4, 0.25), space), rtol=1e-12, atol=1e-14
    )
    np.testing.assert_allclose(
        ensemble.combine(logits, np.full(4, 0.25), space), ensemble.combine(logits, None, space), rtol=1e-14, atol=1e-14
    )


@pytest.mark.parametrize("space", SPACES)
def test_one_member_is_itself(space):
    logits = members(0, m=1).logits
    for weights in (None, np.ones(1)):
        itself = ops.log_softmax(logits[0]) if space == "probability" else logits[0]
        np.testing.assert_array_equal(ensemble.combine(logits, weights, space), itself)


@pytest.mark.parametrize("space", SPACES)
def test_order_of_members_and_shifts_of_a_member_change_nothing(space):
    logits, weights, order = members(0).logits, simplex(1, 4), np.array([2, 0, 3, 1])
    combined = ensemble.combine(logits, weights, space)
    np.testing.assert_allclose(ensemble.combine(logits[order], weights[order], space), combined, rtol=1e-12, atol=1e-13)
    shifted = logits + np.array([3.0, -1.0, 0.0, 50.0])[:, None, None]
    np.testing.assert_allclose(
        ops.log_softmax(ensemble.combine(shifted, weights, space)), ops.log_softmax(combined), rtol=1e-11, atol=1e-12
    )


@pytest.mark.parametrize("space", SPACES)
def test_a_member_of_weight_0_plays_no_part(space):
    logits, weights = members(0).logits.copy(), np.array([0.3, 0.0, 0.7, 0.0])
    without = ensemble.combine(logits[[0, 2]], np.array([0.3, 0.7]), space)
    logits[1, :, 0] = -np.inf  # not even where it says that a class is impossible
    np.testing.assert_allclose(ensemble.combine(logits, weights, space), without, rtol=1e-14)


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("library", [np, jnp])
def test_large_logits_in_float32_stay_finite_and_exact(space, library):
    rng = np.random.default_rng(0)
    logits = rng.uniform(-1e4, 1e4, (3, 50, 6)).astype(np.float32)
    for weights in (None, np.array([0.2, 0.5, 0.3], np.float32)):
        given = None if weights is None else library.asarray(weights)
        combined = np.asarray(ensemble.combine(library.asarray(logits), given, space))
        assert np.isfinite(combined).all()
        w = np.full(3, 1 / 3) if weights is None else weights.astype(np.float64)
        wide = logits.astype(np.float64)
        if space == "probability":
            exact = special.logsumexp(special.log_softmax(wide, axis=-1) + np.log(w)[:, None, None], axis=0)
        else:
            exact = np.tensordot(w, wide, 1)
        np.testing.assert_allclose(
            combined, exact, rtol=1e-6 if library is jnp else 1e-12, atol=1e-2 if library is jnp else 1e-9
        )


def test_ways_that_are_none_are_refused():
    logits = members(0).logits
    for weights in (np.array([0.5, 0.5, 0.5, -0.5]), np.full(4, 0.3), np.full(3, 1 / 3), np.array([np.nan, 1, 0, 0])):
        with pytest.raises(ValueError, match="weights must be"):
            ensemble.combine(logits, weights)
    with pytest.raises(ValueError, match="space must be"):
        ensemble.combine(logits, None, "loss")
    with pytest.raises(ValueError, match=r"must be \[m, n, k\]"):
        ensemble.combine(logits[0])
    opposite = np.array([[[0.0, -np.inf]], [[-np.inf, 0.0]]])
    with pytest.raises(ValueError, match="probability 0 for some member"):
        ensemble.combine(opposite, None, "logit")
    np.testing.assert_allclose(np.exp(ensemble.combine(opposite)), [[0.5, 0.5]])


# Weights


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("weighted", [False, True])
def test_fitted_weights_meet_the_conditions_of_a_minimum(space, seed, weighted):
    given = members(seed, m=5)
    u = np.random.default_rng(seed).gamma(1.0, size=len(given)) if weighted else np.ones(len(given))
    state = ensemble.fit_weights(dataclasses.replace(given, weight=u if weighted else None), space)
    w = state.weights
    assert (w >= 0).all()
    assert w.sum() == pytest.approx(1, abs=1e-12)
    assert state.log_loss == pytest.approx(np.average(losses(given, w, space), weights=u), rel=1e-12)
    assert state.equal_log_loss == pytest.approx(np.average(losses(given, None, space), weights=u), rel=1e-12)
    assert 0 <= state.gap < 1e-9

    def loss(x):  # off the simplex too, where it has a gradient
        v = by_definition(given.logits, x, space)
        own = v[np.arange(len(given)), given.label]
        return np.average(-own if space == "probability" else special.logsumexp(v, axis=-1) - own, weights=u)

    gradient = optimize.approx_fprime(w + 1e-7, loss, 1e-6)
    multiplier = gradient[w > 1e-6].mean()
    np.testing.assert_allclose(gradient[w > 1e-6], multiplier, atol=1e-4)
    assert (gradient > multiplier - 1e-4).all()
    for other in np.random.default_rng(9).dirichlet(np.ones(5), 200):
        assert np.average(losses(given, other, space), weights=u) >= state.log_loss - 1e-10


def test_some_of_these_minima_lie_on_the_boundary():
    zeros = [
        (ensemble.fit_weights(members(seed, m=5), space).weights == 0).sum() for seed in range(4) for space in SPACES
    ]
    assert sum(zeros) > 0


@pytest.mark.parametrize("seed", range(3))
def test_expectation_maximisation_ends_at_the_same_weights(seed):
    given = members(seed)
    p = np.exp(np.stack([-ops.log_loss(one, given.label) for one in given.logits], axis=1))
    w = np.full(4, 0.25)
    for _step in range(20_000):
        share = p * w
        w = (share / share.sum(axis=1, keepdims=True)).mean(axis=0)
    np.testing.assert_allclose(ensemble.fit_weights(given).weights, w, atol=1e-5)


@pytest.mark.parametrize("space", SPACES)
def test_another_solver_finds_nothing_better(space):
    given = members(7, m=6, n=200)
    constraint = {"type": "eq", "fun": lambda w: w.sum() - 1}
    found = optimize.minimize(
        lambda w: losses(given, np.clip(w, 0, None) / np.clip(w, 0, None).sum(), space).mean(),
        np.full(6, 1 / 6),
        bounds=[(0, 1)] * 6,
        constraints=constraint,
        method="SLSQP",
        options={"ftol": 1e-13, "maxiter": 500},
    )
    state = ensemble.fit_weights(given, space)
    assert state.log_loss <= found.fun + 1e-10
    np.testing.assert_allclose(state.weights, found.x, atol=1e-3)


def test_the_weights_of_a_simulated_mixture_are_recovered():
    rng, true = np.random.default_rng(0), np.array([0.6, 0.3, 0.1, 0.0])
    n, k = 40_000, 6
    logits = 2 * rng.normal(size=(4, n, k))
    mixture = np.exp(ensemble.combine(logits, true))
    label = (rng.random((n, 1)) > mixture.cumsum(axis=1)).sum(axis=1)
    state = ensemble.fit_weights(Predictions(label, logits, np.arange(n)))
    np.testing.assert_allclose(state.weights, true, atol=0.02)  # standard errors are about 0.005


@pytest.mark.parametrize("space", SPACES)
def test_survey_weights_are_repeated_rows(space):
    given = members(3, n=40)
    weight = np.random.default_rng(0).integers(0, 4, 40)
    rows = np.repeat(np.arange(40), weight)
    repeated = dataclasses.replace(
        given, label=given.label[rows], logits=given.logits[:, rows], example_id=np.arange(len(rows))
    )
    weighted = ensemble.fit_weights(dataclasses.replace(given, weight=weight.astype(float)), space)
    np.testing.assert_allclose(weighted.weights, ensemble.fit_weights(repeated, space).weights, atol=1e-6)


@pytest.mark.parametrize("space", SPACES)
def test_copies_share_a_weight_and_a_good_member_takes_all(space):
    given = members(2, m=2)
    both = dataclasses.replace(given, logits=given.logits[[0, 1, 1]])
    w, pair = ensemble.fit_weights(both, space).weights, ensemble.fit_weights(given, space).weights
    np.testing.assert_allclose([w[0], w[1] + w[2]], pair, atol=1e-5)
    assert w[1] == pytest.approx(w[2], abs=1e-3)
    same = dataclasses.replace(given, logits=given.logits[[0, 0, 0]])
    np.testing.assert_allclose(ensemble.fit_weights(same, space).weights, 1 / 3, atol=1e-6)
    good = np.log(np.eye(5) * 0.9 + 0.02)[given.label]
    bad = np.log(np.eye(5) * 0.9 + 0.02)[(given.label + 1) % 5]
    state = ensemble.fit_weights(dataclasses.replace(given, logits=np.stack([bad, good])), "probability")
    np.testing.assert_allclose(state.weights, [0, 1], atol=1e-12)
    alone = ensemble.fit_weights(dataclasses.replace(given, logits=given.logits[:1]), space)
    assert alone.weights.tolist() == [1.0]


def test_examples_from_outside_and_impossible_ones_do_not_count():
    given = members(4)
    ood = np.arange(len(given)) < 20
    marked = dataclasses.replace(given, is_ood=ood)
    np.testing.assert_array_equal(
        ensemble.fit_weights(marked).weights, ensemble.fit_weights(predictions.select(given, ~ood)).weights
    )
    with pytest.raises(InputError, match="all examples are from outside"):
        ensemble.fit_weights(dataclasses.replace(given, is_ood=np.ones(len(given), bool)))
    log_p = ops.log_softmax(given.logits)
    log_p[:3, 0, given.label[0]] = -np.inf  # the last member alone thinks it possible
    some = dataclasses.replace(given, logits=log_p, log_probabilities=True)
    assert ensemble.fit_weights(some).weights[3] > 0
    with pytest.raises(InputError, match="some probabilities are exactly 0"):
        ensemble.fit_weights(some, "logit")
    log_p[3, 0, given.label[0]] = -np.inf
    with pytest.raises(InputError, match=r"of 1 examples probability 0 \(first 0\)"):
        ensemble.fit_weights(some)
    unweighted = dataclasses.replace(some, weight=(np.arange(len(given)) > 0).astype(float))
    assert np.isfinite(ensemble.fit_weights(unweighted).log_loss)
    with pytest.raises(InputError, match="one model"):
        ensemble.fit_weights(dataclasses.replace(given, logits=given.logits[0]))


@pytest.mark.parametrize("seed", range(30))
def test_saturated_few_and_impossible_examples_have_a_minimum_too(seed):
    rng = np.random.default_rng(seed)
    m, n, k, scale = int(rng.integers(1, 12)), int(rng.choice([1, 2, 5, 50])), 4, 10 ** rng.uniform(-3, 2.5)
    label = rng.integers(0, k, n)
    logits = scale * np.round(rng.normal(size=(m, n, k)), 1)
    for space in SPACES:
        state = ensemble.fit_weights(Predictions(label, logits, np.arange(n)), space)
        assert state.gap < 1e-7 * max(1, scale)
        assert state.log_loss <= state.equal_log_loss + 1e-12
    logits = ops.log_softmax(logits)
    logits[1:][rng.random((m - 1, n, k)) < 0.3] = -np.inf  # all of which the first member thinks possible
    logits[:, np.isneginf(logits).all(axis=-1).any(axis=0)] = 0.0
    given = Predictions(label, ops.log_softmax(logits), np.arange(n), log_probabilities=True)
    assert ensemble.fit_weights(given).gap < 1e-7


@pytest.mark.parametrize("scale", [1e-3, 1.0, 300.0])
@pytest.mark.parametrize("space", SPACES)
def test_weights_of_many_alike_or_very_sure_members(space, scale):
    rng = np.random.default_rng(0)
    k, n, m = 4, 300, 12
    label = rng.integers(0, k, n)
    base = rng.normal(size=(n, k)) + np.eye(k)[label]
    logits = scale * (base + 0.05 * rng.normal(size=(m, n, k)))
    state = ensemble.fit_weights(Predictions(label, logits, np.arange(n)), space)
    assert state.log_loss <= state.equal_log_loss
    assert state.gap < 1e-8 * max(1, scale)


@pytest.mark.parametrize("space", SPACES)
def test_apply_gives_one_classifier_and_says_what_it_is_made_of(space, tmp_path):
    test, calibration = members(1), dataclasses.replace(members(0), provenance={"split": "validation"})
    state = ensemble.fit_weights(calibration, space)
    given = ensemble.apply(state, test)
    np.testing.assert_array_equal(given.logits, ensemble.combine(test.logits, state.weights, space))
    assert given.log_probabilities == (space == "probability")
    assert given.provenance["ensemble"] == {
        "space": space,
        "weights": state.weights.tolist(),
        "members": [0, 1, 2, 3],
        "fitted_on": "validation",
    }
    predictions.save(tmp_path / "a.npz", given)
    read = predictions.load(tmp_path / "a.npz")
    np.testing.assert_allclose(ops.log_softmax(read.logits), ops.log_softmax(given.logits), atol=1e-12)
    with pytest.raises(InputError, match="has 3 members, weights were fitted for 4"):
        ensemble.apply(state, dataclasses.replace(test, logits=test.logits[:3]))
    probabilities = dataclasses.replace(test, logits=ops.log_softmax(test.logits), log_probabilities=True)
    np.testing.assert_allclose(special.logsumexp(ensemble.apply(state, probabilities).logits, axis=-1), 0, atol=1e-12)


def test_apply_refuses_other_members():
    def named(given, order):
        members = [{"tags": {"seed": i}, "source": f"{given.source}/{i}"} for i in order]
        return dataclasses.replace(given, provenance={"members": members})

    state = ensemble.fit_weights(named(members(0), range(4)))
    assert ensemble.apply(state, named(members(1), range(4))).provenance["ensemble"]["members"] == state.members
    with pytest.raises(InputError, match="stack the same members in the same order"):
        ensemble.apply(state, named(members(1), (1, 0, 2, 3)))


# Merging files


def files_of(given):
    """A file per member, rows in an order of its own."""
    rng = np.random.default_rng(0)
    parts = []
    for i, logits in enumerate(given.logits):
        about = {"split": "test", "dataset": "made up", "tags": {"seed": i}}
        one = dataclasses.replace(given, logits=logits, provenance=about, source=f"member-{i}.npz")
        parts.append(predictions.select(one, rng.permutation(len(given))))
    return parts


def test_stack_aligns_members_by_id():
    given = members(0)
    together = ensemble.stack(files_of(given))
    np.testing.assert_array_equal(together.logits, given.logits)
    np.testing.assert_array_equal(together.label, given.label)
    np.testing.assert_array_equal(together.example_id, given.example_id)
    assert not together.log_probabilities
    assert [one["tags"] for one in together.provenance["members"]] == [{"seed": i} for i in range(4)]
    assert {name: together.provenance[name] for name in ("split", "dataset")} == {"split": "test", "dataset": "made up"}
    assert "tags" not in together.provenance  # they differ
    json.dumps(together.provenance)
    predictions.validate(together)
    pairs = [ensemble.stack(files_of(given)[i : i + 2]) for i in (0, 2)]
    again = ensemble.stack(pairs)
    np.testing.assert_array_equal(again.logits, given.logits)
    assert again.provenance["members"] == together.provenance["members"]


def test_stack_makes_probabilities_of_a_mix_or_refuses_it():
    first, second, *_ = files_of(members(0))
    probabilities = dataclasses.replace(second, logits=ops.log_softmax(second.logits), log_probabilities=True)
    for parts in ([first, probabilities], [probabilities, first]):
        together = ensemble.stack(parts)
        assert together.log_probabilities
        np.testing.assert_allclose(special.logsumexp(together.logits, axis=-1), 0, atol=1e-12)
        with pytest.raises(InputError, match="average in probability space"):
            ensemble.stack(parts, "logit")
    assert ensemble.stack([probabilities] * 2, "logit").log_probabilities


def test_stack_refuses_what_does_not_match_by_name():
    first, second, *_ = files_of(members(0))

    def changed(**fields):
        return [first, dataclasses.replace(second, **fields)]

    def column(make):
        return [dataclasses.replace(one, weight=make(i, one)) for i, one in enumerate((first, second))]

    wrong = second.label.copy()
    wrong[5] = (wrong[5] + 1) % 5
    for parts, message in (
        (changed(example_id=second.example_id + 1), "member-1.npz, field 'example_id': 1 ids are missing"),
        (
            changed(example_id=second.example_id.astype(str)),
            "member-1.npz, field 'example_id': numbers against strings",
        ),
        (changed(label=wrong), rf"member-1.npz, field 'label'.*1 examples \(first example_id {second.example_id[5]}\)"),
        (changed(logits=second.logits[:, :4]), "member-1.npz, field 'logits': has k = 4 classes, member-0.npz has 5"),
        (changed(provenance={"split": "validation"}), "member-1.npz, field 'split'"),
        ([first, predictions.select(second, np.arange(70))], "member-1.npz, field 'example_id': 10 ids are missing"),
        (column(lambda i, one: 1.0 + i + one.example_id), "member-1.npz, field 'weight'"),
    ):
        with pytest.raises(InputError, match=message):
            ensemble.stack(parts)
    with pytest.raises(ValueError, match="at least one"):
        ensemble.stack([])


def test_stack_keeps_the_columns_that_a_file_has_and_drops_last_layers():
    parts = [with_head(seed, n=10) for seed in (1, 1)]
    parts[1] = dataclasses.replace(parts[1], weight=np.arange(10.0), group=np.arange(10) % 2)
    together = ensemble.stack(parts)
    np.testing.assert_array_equal(together.weight, np.arange(10.0))
    np.testing.assert_array_equal(together.group, np.arange(10) % 2)
    assert together.features is None
    assert together.head_kernel is None


# Diversity


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("weighted", [False, True])
def test_diversity_is_what_its_definitions_say(space, weighted):
    given = members(1)
    u = np.random.default_rng(0).gamma(1.0, size=len(given)) if weighted else None
    member_weights = simplex(5, 4)
    told = ensemble.diversity(given.logits, given.label, space, member_weights=member_weights, weight=u)
    mean = lambda x: float(np.average(x, weights=u))  # noqa: E731
    predicted = given.logits.argmax(axis=-1)
    right = predicted == given.label
    for i, j in itertools.product(range(4), repeat=2):
        n11, n00 = mean(right[i] & right[j]), mean(~right[i] & ~right[j])
        n10, n01 = mean(right[i] & ~right[j]), mean(~right[i] & right[j])
        assert told.disagreement[i, j] == pytest.approx(mean(predicted[i] != predicted[j]), abs=1e-12)
        assert told.error_disagreement[i, j] == pytest.approx(n10 + n01, abs=1e-12)
        assert told.double_fault[i, j] == pytest.approx(n00, abs=1e-12)
        assert told.q_statistic[i, j] == pytest.approx((n11 * n00 - n01 * n10) / (n11 * n00 + n01 * n10), abs=1e-12)
        correlation = matthews_corrcoef(right[i], right[j], sample_weight=u)
        assert told.error_correlation[i, j] == pytest.approx(correlation, abs=1e-12)
        kappa = cohen_kappa_score(predicted[i], predicted[j], sample_weight=u)
        assert told.kappa[i, j] == pytest.approx(kappa, abs=1e-12)
        pairwise = 2 * (n11 * n00 - n01 * n10) / ((n11 + n10) * (n10 + n00) + (n11 + n01) * (n01 + n00))
        assert told.error_kappa[i, j] == pytest.approx(pairwise, abs=1e-12)
    combined = ensemble.combine(given.logits, member_weights, space)
    nll = np.array([mean(ops.log_loss(v, given.label)) for v in given.logits])
    brier = np.array([mean(ops.brier_loss(v, given.label)) for v in given.logits])
    np.testing.assert_allclose(told.member_nll, nll)
    np.testing.assert_allclose(told.member_brier, brier)
    np.testing.assert_allclose(told.member_error, [mean(~one) for one in right])
    assert told.ensemble_nll == pytest.approx(mean(ops.log_loss(combined, given.label)))
    assert told.ensemble_error == pytest.approx(mean(combined.argmax(axis=-1) != given.label))
    assert told.nll_gap == pytest.approx(member_weights @ nll - told.ensemble_nll, rel=1e-10)
    assert told.brier_gap == pytest.approx(member_weights @ brier - told.ensemble_brier, rel=1e-10)
    means = told.pair_means()
    assert set(means) == set(ensemble.PAIRWISE)
    for name, value in means.items():
        matrix = getattr(told, name)
        np.testing.assert_array_equal(matrix, matrix.T)
        assert value == pytest.approx(np.mean([matrix[i, j] for i in range(4) for j in range(i)]))


def test_the_order_of_members_orders_the_matrices():
    given, order = members(6), np.array([3, 1, 0, 2])
    told, permuted = (ensemble.diversity(logits, given.label) for logits in (given.logits, given.logits[order]))
    for name in ensemble.PAIRWISE:
        np.testing.assert_allclose(getattr(permuted, name), getattr(told, name)[np.ix_(order, order)], rtol=1e-12)
    assert permuted.nll_gap == pytest.approx(told.nll_gap, rel=1e-12)


def test_the_mean_disagreement_of_pairs_is_that_of_the_score():
    given = members(3, m=6)
    told = ensemble.diversity(given.logits, given.label)
    assert told.pair_means()["disagreement"] == pytest.approx(-ops.disagreement(given.logits).mean(), abs=1e-12)


def test_the_log_loss_gap_of_logits_is_a_divergence_without_labels():
    given, w = members(2), simplex(0, 4)
    log_p = ops.log_softmax(given.logits)
    centre = ops.log_softmax(ensemble.combine(given.logits, w, "logit"))
    divergence = w @ (np.exp(centre) * (centre - log_p)).sum(axis=-1).mean(axis=-1)
    for label in (given.label, (given.label + 1) % 5):
        told = ensemble.diversity(given.logits, label, "logit", member_weights=w)
        assert told.nll_gap == pytest.approx(divergence, rel=1e-10)


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("apart", [0.0, 1e-9, 1e-4, 1.0, 1e4])
def test_gaps_are_never_negative(space, apart):
    rng = np.random.default_rng(0)
    logits = 3 * rng.normal(size=(1, 200, 4)) + apart * rng.normal(size=(5, 200, 4))
    told = ensemble.diversity(logits, rng.integers(0, 4, 200), space)
    assert told.nll_gap >= 0
    assert np.isfinite(told.nll_gap)
    if space == "probability":
        assert told.brier_gap >= 0
    if apart == 0:
        assert told.nll_gap == pytest.approx(0, abs=1e-15)


def test_small_gaps_keep_their_digits():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(1, 100, 4)) + 1e-7 * rng.normal(size=(5, 100, 4))
    label = rng.integers(0, 4, 100)
    own = -np.stack([ops.log_loss(v, label) for v in logits])
    second_order = own.var(axis=0).mean() / 2  # of ln mean exp d
    assert ensemble.diversity(logits, label).nll_gap == pytest.approx(second_order, rel=1e-2)


def test_undefined_diversity_is_nan():
    label = np.array([0, 1, 2, 0])
    perfect, other = 5 * np.eye(3)[label], 5 * np.eye(3)[[0, 1, 2, 1]]
    told = ensemble.diversity(np.stack([perfect, other]), label)
    assert math.isnan(told.q_statistic[0, 0])
    assert math.isnan(told.q_statistic[0, 1])  # no example on which both are wrong, nor any that the first gets wrong
    assert math.isnan(told.error_correlation[0, 1])
    assert told.error_correlation[1, 1] == 1
    assert told.double_fault[0, 1] == 0
    assert math.isnan(told.pair_means()["q_statistic"])
    constant = ensemble.diversity(np.zeros((2, 4, 3)), label)
    assert np.isnan(constant.kappa).all()  # both always predict class 0: chance agrees too
    single = ensemble.diversity(perfect[None], label)
    assert math.isnan(single.pair_means()["disagreement"])
    assert single.nll_gap == 0
    one = ensemble.diversity(np.stack([perfect, other])[:, :1], label[:1])
    assert one.disagreement[0, 1] == 0
    with pytest.raises(ValueError, match="not all be 0"):
        ensemble.diversity(perfect[None], label, weight=np.zeros(4))
    impossible = np.log(
        np.array([[[0.0, 1.0]], [[0.5, 0.5]]]), where=[[[False, True]], [[True, True]]], out=np.full((2, 1, 2), -np.inf)
    )
    assert ensemble.diversity(impossible, np.array([0])).nll_gap == math.inf
    assert math.isnan(ensemble.diversity(impossible, np.array([0]), "logit").nll_gap)
    assert math.isnan(ensemble.diversity(impossible[:1], np.array([0])).nll_gap)


# Metrics against the number of members

METRICS = tuple(ensemble.SUBSET_METRICS)


def metric_by_hand(name, logits, label, weight=None, score=ops.msp):
    if name == "nll":
        return float(ops.negative_log_likelihood(logits, label, weight=weight))
    if name == "brier":
        return float(ops.brier_score(logits, label, weight=weight))
    error = logits.argmax(axis=-1) != label
    return float(ops.summarise(score(logits), error, weight=weight)[name])


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("weighted", [False, True])
def test_every_subset_has_the_metrics_of_its_combination(space, weighted):
    given = members(0)
    weight = np.random.default_rng(1).gamma(1.0, size=len(given)) if weighted else None
    score = ops.negative_entropy
    curve = ensemble.subset_curve(given.logits, given.label, METRICS, space=space, score=score, weight=weight)
    assert curve.sizes.tolist() == [1, 2, 3, 4]
    assert curve.complete.all()
    for place, size in enumerate(curve.sizes):
        subsets = list(itertools.combinations(range(4), size))
        assert [tuple(subset) for subset in curve.subsets[place]] == subsets
        for row, name in enumerate(METRICS):
            by_hand = [
                metric_by_hand(name, ensemble.combine(given.logits[list(s)], None, space), given.label, weight, score)
                for s in subsets
            ]
            np.testing.assert_allclose(curve.values[place][row], by_hand, rtol=1e-10, err_msg=name)
            assert curve.mean[row, place] == pytest.approx(np.mean(by_hand))
            if len(subsets) > 1:
                np.testing.assert_allclose(
                    curve.between_subsets[row, place], np.quantile(by_hand, [0.025, 0.975]), rtol=1e-10
                )
    assert np.isnan(curve.between_subsets[:, -1]).all()  # one subset has no spread
    assert np.isnan(curve.over_examples).all()
    assert np.isnan(curve.crossed).all()


@pytest.mark.parametrize("space", SPACES)
def test_the_largest_size_is_the_whole_ensemble_in_any_order_of_members(space):
    given, order = members(5, m=7), np.random.default_rng(0).permutation(7)
    whole = ensemble.combine(given.logits, None, space)
    for logits in (given.logits, given.logits[order]):
        curve = ensemble.subset_curve(logits, given.label, METRICS, [7], space=space)
        np.testing.assert_allclose(
            curve.mean[:, 0], [metric_by_hand(name, whole, given.label) for name in METRICS], rtol=1e-10
        )


def test_drawn_subsets_are_distinct_and_follow_the_seed():
    given = members(0, m=9, n=30)
    curves = [ensemble.subset_curve(given.logits, given.label, ["nll"], most=15, seed=seed) for seed in (1, 1, 2)]
    for size, subsets, complete in zip(curves[0].sizes, curves[0].subsets, curves[0].complete, strict=True):
        assert subsets.shape == (min(15, math.comb(9, size)), size)
        assert len({tuple(subset) for subset in subsets}) == len(subsets)
        assert (np.diff(subsets, axis=1) > 0).all()
        assert complete == (math.comb(9, size) <= 15)
    same = [all(np.array_equal(a, b) for a, b in zip(curves[0].subsets, c.subsets, strict=True)) for c in curves[1:]]
    assert same == [True, False]
    nearly_all = ensemble.member_subsets(6, 3, 19, np.random.default_rng(0))
    assert len(set(nearly_all)) == 19


def test_intervals_are_quantiles_of_what_they_say_they_cover():
    given = members(0, m=3, n=60)
    b, metrics = 40, ("nll", "error", "aurc", "coverage_at_risk_0.05")
    curve = ensemble.subset_curve(given.logits, given.label, metrics, [2, 3], resamples=b, level=0.9, seed=4)
    counts = resampling.resample_counts(5, 60, b)
    for place, size in enumerate((2, 3)):
        for row, name in enumerate(metrics):
            drawn = np.array(
                [
                    [
                        metric_by_hand(name, ensemble.combine(given.logits[list(s)])[rows], given.label[rows])
                        for rows in resamples
                    ]
                    for s in itertools.combinations(range(3), size)
                    for resamples in [[np.repeat(np.arange(60), c) for c in counts]]
                ]
            )
            np.testing.assert_allclose(
                curve.over_examples[row, place], np.quantile(drawn.mean(axis=0), [0.05, 0.95]), rtol=1e-9
            )
            np.testing.assert_allclose(curve.crossed[row, place], np.quantile(drawn, [0.05, 0.95]), rtol=1e-9)


def test_underflow_and_chunks_do_not_show(monkeypatch):
    rng = np.random.default_rng(0)
    logits = rng.uniform(-1e4, 1e4, (4, 300, 5)).astype(np.float32)
    label = rng.integers(0, 5, 300)
    whole = ensemble.subset_curve(logits, label, METRICS)
    for place, subsets in enumerate(whole.subsets):
        exact = [ops.log_loss(ensemble.combine(logits[subset]), label).mean() for subset in subsets]
        np.testing.assert_allclose(whole.values[place][0], exact, rtol=1e-12)
    assert np.isfinite(whole.mean[:3]).all()
    pieces = ensemble.subset_curve(
        np.tile(logits, (1, 300, 1)), np.tile(label, 300), ("nll", "error")
    )  # several chunks
    np.testing.assert_allclose(pieces.mean, whole.mean[[0, 2]], rtol=1e-12)


def test_exact_zeros_and_undefined_metrics():
    label = np.array([0, 1, 0, 1])
    with np.errstate(divide="ignore"):
        logits = np.log(np.array([[[1.0, 0.0]] * 4, [[0.5, 0.5]] * 4, [[0.0, 1.0]] * 4]))
    curve = ensemble.subset_curve(logits, label, ("nll", "error"))
    assert curve.values[0][0].tolist() == [math.inf, pytest.approx(math.log(2)), math.inf]
    assert curve.values[2][0, 0] == pytest.approx(math.log(2))
    right = ensemble.subset_curve(
        5 * np.eye(2)[label][None].repeat(2, 0), label, ("naurc", "failure_auroc", "aurc"), resamples=5
    )
    assert np.isnan(right.mean[:2]).all()
    assert (right.mean[2] == 0).all()
    one = ensemble.subset_curve(logits[:, :1], label[:1], ("error", "aurc"))
    np.testing.assert_array_equal(one.values[0], [[0, 0, 1], [0, 0, 1]])


def test_what_is_no_curve_is_refused():
    given = members(0)
    for options, message in (
        ({"metrics": ["ece"]}, "metrics must be of nll"),
        ({"metrics": []}, "metrics must be of nll"),
        ({"sizes": [0]}, "from 1 to m = 4"),
        ({"sizes": [5]}, "from 1 to m = 4"),
        ({"sizes": [2, 2]}, "distinct"),
        ({"most": 0}, "at least 1"),
        ({"space": "mean"}, "space must be"),
    ):
        with pytest.raises(ValueError, match=message):
            ensemble.subset_curve(given.logits, given.label, **options)
