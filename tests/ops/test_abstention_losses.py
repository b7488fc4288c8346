"""Losses of classifiers that abstain: definitions, gradients by differences, limiting cases, extremes."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from sc_jax import ops
from sc_jax.ops import abstention_losses as al
from sc_jax.ops import losses

N, K = 12, 4


@pytest.fixture(scope="module")
def given():
    rng = np.random.default_rng(0)
    logits, auxiliary = rng.normal(size=(2, N, K), scale=2)
    return {
        "logits": logits,
        "auxiliary": auxiliary,
        "a": rng.normal(size=N, scale=2),
        "label": rng.integers(0, K, N),
        "target": rng.uniform(size=N),
    }


def softmax_with(logits, a):
    return scipy.special.softmax(np.concatenate([logits, a[:, None]], axis=1), axis=1)


def at(values, label):
    return values[np.arange(len(label)), label]


def minus_log(logits, label):
    return -at(scipy.special.log_softmax(logits, axis=-1), label)


def selective(g, logits, auxiliary, label, coverage, divided):
    loss = minus_log(logits, label)
    risk = (g * loss).mean() / (g.mean() if divided else 1)
    return 0.5 * (risk + 32 * max(0, coverage - g.mean()) ** 2) + 0.5 * minus_log(auxiliary, label).mean()


def ranked(logits, label, share, estimator):
    """The area by its closed form: errors replaced by cross-entropy, by decreasing log-odds; no two of them tie."""
    loss = minus_log(logits, label)[np.argsort(-ops.msp(logits))]
    i = np.arange(1, N + 1)
    weight = {"mean": [(1 / np.arange(j, N + 1)).sum() / N for j in i], "sele": (N - i + 1) / N**2}[estimator]
    return (1 - share) * loss.mean() + share * np.dot(weight, loss)


# name → (function of the arrays that get gradients, their names, the mean by its formula in NumPy)
LOSSES = {
    **{
        f"gambler o={o}": (
            lambda v, a, o=o, **d: al.gambler_loss(v, a, d["label"], o),
            ("logits", "a"),
            lambda d, o=o: (
                -np.log(
                    at(softmax_with(d["logits"], d["a"]), d["label"]) + softmax_with(d["logits"], d["a"])[:, -1] / o
                )
            ).mean(),
        )
        for o in (1.2, 2.2, 4.0)
    },
    "self-adaptive": (
        lambda v, a, **d: al.self_adaptive_loss(v, a, d["label"], d["target"]),
        ("logits", "a"),
        lambda d: (
            -d["target"] * np.log(at(softmax_with(d["logits"], d["a"]), d["label"]))
            - (1 - d["target"]) * np.log(softmax_with(d["logits"], d["a"])[:, -1])
        ).mean(),
    ),
    **{
        f"selective net c={c} divided={divided}": (
            lambda v, a, h, c=c, divided=divided, **d: al.selective_net_loss(
                v, a, h, d["label"], c, normalise_by_coverage=divided
            ),
            ("logits", "a", "auxiliary"),
            lambda d, c=c, divided=divided: selective(
                scipy.special.expit(d["a"]), d["logits"], d["auxiliary"], d["label"], c, divided
            ),
        )
        for c in (0.2, 0.8)
        for divided in (True, False)
    },
    "entropy": (
        lambda v, **d: al.softmax_entropy(v),
        ("logits",),
        lambda d: scipy.special.entr(scipy.special.softmax(d["logits"], axis=-1)).sum(axis=-1).mean(),
    ),
    **{
        f"ranked {estimator}": (
            lambda v, estimator=estimator, **d: al.ranked_cross_entropy(v, d["label"], 0.6, estimator=estimator),
            ("logits",),
            lambda d, estimator=estimator: ranked(d["logits"], d["label"], 0.6, estimator),
        )
        for estimator in ("mean", "sele")
    },
    "true class probability": (
        lambda a, **d: al.true_class_probability_loss(a, d["logits"], d["label"]),
        ("a",),
        lambda d: (
            (scipy.special.expit(d["a"]) - at(scipy.special.softmax(d["logits"], axis=-1), d["label"])) ** 2
        ).mean(),
    ),
}
each = pytest.mark.parametrize("name", LOSSES)


def mean_of(name, given):
    function, names, _ = LOSSES[name]
    rest = {key: jnp.asarray(value) for key, value in given.items() if key not in names}

    def mean(*arrays):
        values = function(*arrays, **rest)
        assert values.shape == (N,)
        return jnp.mean(values)

    return mean, [jnp.asarray(given[key]) for key in names]


@each
def test_loss_is_its_definition(given, name):
    with jax.enable_x64(True):
        mean, arrays = mean_of(name, given)
        digits = 1e-6 if name.startswith("ranked") else 1e-10  # weights by rank are in float32
        np.testing.assert_allclose(jax.jit(mean)(*arrays), LOSSES[name][2](given), rtol=digits)


@each
def test_gradient_is_that_of_differences(given, name):
    with jax.enable_x64(True):
        mean, arrays = mean_of(name, given)
        gradients = jax.jit(jax.grad(mean, tuple(range(len(arrays)))))(*arrays)
        value = jax.jit(mean)
        for place, gradient in enumerate(gradients):
            for index in np.ndindex(*arrays[place].shape):
                ends = []
                for step in (1e-6, -1e-6):
                    moved = [*arrays]
                    moved[place] = moved[place].at[index].add(step)
                    ends.append(value(*moved))
                np.testing.assert_allclose(gradient[index], (ends[0] - ends[1]) / 2e-6, atol=1e-8)


@each
@pytest.mark.parametrize("dtype", [jnp.bfloat16])
def test_half_precision_is_computed_in_float32(given, name, dtype):
    floats = {
        key: jnp.asarray(value, dtype) if key in ("logits", "auxiliary", "a") else jnp.asarray(value)
        for key, value in given.items()
    }
    wide = {
        key: value.astype(jnp.float32) if jnp.issubdtype(value.dtype, jnp.floating) else value
        for key, value in floats.items()
    }
    values = []
    for arrays in (floats, wide):
        mean, moved = mean_of(name, arrays)
        values.append(jax.jit(mean)(*moved))
    assert values[0].dtype == jnp.float32
    assert values[0] == values[1]


EXTREME = list(itertools.product((1e4, -1e4, 0.0), repeat=3))


@each
def test_losses_and_gradients_of_extreme_logits_are_finite(name):
    function, names, _ = LOSSES[name]

    @jax.jit
    def both(moved, rest):
        mean = lambda *arrays: jnp.mean(function(*arrays, **rest))  # noqa: E731
        return jax.value_and_grad(mean, tuple(range(len(moved))))(*moved)

    v = jnp.asarray(EXTREME, jnp.float32)
    n = len(v)
    for a, label, target in itertools.product((1e4, -1e4, 0.0), range(3), (0.0, 1.0)):
        columns = {"logits": v, "auxiliary": v[::-1], "a": jnp.full(n, a), "label": jnp.full(n, label)}
        columns["target"] = jnp.full(n, target)
        value, gradients = both([columns.pop(key) for key in names], columns)
        assert jnp.isfinite(value), (a, label)
        assert all(jnp.isfinite(gradient).all() for gradient in gradients), (a, label)


# Limiting cases


@pytest.fixture(scope="module")
def single(given):
    return {key: jnp.asarray(value, jnp.float32 if key != "label" else jnp.int32) for key, value in given.items()}


def cross_entropy(v, y):
    return losses.smoothed_cross_entropy(v, y, 0.0)


def test_gamblers_who_never_abstain_have_cross_entropy(single):
    v, y = single["logits"], single["label"]
    for payoff in (1.1, 2.2, 4.0):
        value = al.gambler_loss(v, jnp.full(N, -200.0), y, payoff)
        np.testing.assert_allclose(value, cross_entropy(v, y), rtol=1e-6)
    with_abstention = jnp.concatenate([v, single["a"][:, None]], axis=1)
    np.testing.assert_allclose(  # abstaining pays nothing: cross-entropy over K + 1 classes
        al.gambler_loss(v, single["a"], y, 1e30), cross_entropy(with_abstention, y), rtol=1e-5
    )


def test_gamblers_who_abstain_from_all_lose_the_logarithm_of_the_payoff(single):
    value = al.gambler_loss(single["logits"], jnp.full(N, 200.0), single["label"], 2.2)
    np.testing.assert_allclose(value, np.log(2.2), rtol=1e-5)


def test_the_best_bet_on_a_known_posterior_abstains_exactly_where_p_max_is_small():
    """max_q Σ_k η_k ln(q_k + q_0/o): by its optimality conditions q_0 > 0 is best iff o·η_max < 1 for one class alone in question."""
    from scipy.optimize import minimize

    for eta, abstains in (([0.9, 0.1], False), ([0.3, 0.25, 0.25, 0.2], True)):
        eta, payoff, k = np.array(eta), 2.2, len(eta)

        @jax.jit
        def loss(z, eta=eta, k=k, payoff=payoff):
            v, a = jnp.tile(z[None, :k], (k, 1)), jnp.full(k, z[k])
            return jnp.asarray(eta) @ al.gambler_loss(v, a, jnp.arange(k), payoff)

        with jax.enable_x64(True):
            best = minimize(loss, np.zeros(k + 1), method="BFGS").x
        q = scipy.special.softmax(best)
        assert (q[-1] > 0.5) == abstains


def test_self_adaptive_training_with_targets_of_1_is_cross_entropy_over_all_classes(single):
    v, a, y = single["logits"], single["a"], single["label"]
    whole = cross_entropy(jnp.concatenate([v, a[:, None]], axis=1), y)
    np.testing.assert_allclose(al.self_adaptive_loss(v, a, y, jnp.ones(N)), whole, rtol=1e-5)


def test_self_adaptive_targets_move_towards_the_prediction(single):
    v, y, t = single["logits"], single["label"], single["target"]
    p = jnp.take_along_axis(jax.nn.softmax(v), y[:, None], axis=1)[:, 0]
    np.testing.assert_array_equal(al.self_adaptive_target(t, v, y, 1.0), t)
    np.testing.assert_allclose(al.self_adaptive_target(t, v, y, 0.0), p, rtol=1e-5)
    repeated = jnp.ones(N)
    for _ in range(200):
        repeated = al.self_adaptive_target(repeated, v, y, 0.9)
    np.testing.assert_allclose(repeated, p, rtol=1e-5, atol=1e-6)
    gradient = jax.grad(lambda v: al.self_adaptive_target(t, v, y, 0.5).sum())(v)
    np.testing.assert_array_equal(gradient, 0)


def test_all_k_running_targets_give_the_same_loss(single):
    """The paper's form: vectors t_i, of which the label's entry alone is read."""
    v, y = single["logits"], single["label"]
    vectors, scalar = jax.nn.one_hot(y, K), jnp.ones(N)
    for step in range(4):
        moved = v * (1 + step)
        vectors = 0.9 * vectors + 0.1 * jax.nn.softmax(moved)
        scalar = al.self_adaptive_target(scalar, moved, y, 0.9)
    np.testing.assert_allclose(scalar, jnp.take_along_axis(vectors, y[:, None], axis=1)[:, 0], rtol=1e-5)


def test_self_adaptive_loss_is_least_at_the_target():
    t, logits = 0.7, jnp.log(jnp.array([0.7, 1e-12, 1e-12]))
    of = lambda v: al.self_adaptive_loss(v[:3], v[3], jnp.asarray(0), jnp.asarray(t))  # noqa: E731
    np.testing.assert_allclose(jax.grad(of)(jnp.append(logits, jnp.log(0.3))), 0, atol=1e-6)


def test_selective_net_that_accepts_all_is_two_cross_entropies(single):
    v, h, y = single["logits"], single["auxiliary"], single["label"]
    for coverage, divided, balance in itertools.product((0.5, 1.0), (True, False), (0.0, 0.5, 1.0)):
        value = al.selective_net_loss(
            v, jnp.full(N, 40.0), h, y, coverage, balance=balance, normalise_by_coverage=divided
        ).mean()
        expected = balance * cross_entropy(v, y).mean() + (1 - balance) * cross_entropy(h, y).mean()
        np.testing.assert_allclose(value, expected, rtol=1e-5)


def test_without_the_division_less_coverage_is_less_loss_and_with_it_not(single):
    v, h, y = single["logits"], single["auxiliary"], single["label"]

    def loss(selection, divided):
        return al.selective_net_loss(v, jnp.full(N, selection), h, y, 0.0, normalise_by_coverage=divided).mean()

    np.testing.assert_allclose(loss(0.0, True), loss(3.0, True), rtol=1e-5)
    assert loss(0.0, False) < loss(3.0, False)


def test_coverage_below_the_target_costs_the_square(single):
    v, h, y = single["logits"], single["auxiliary"], single["label"]
    half = jnp.zeros(N)  # g = ½
    costs = [al.selective_net_loss(v, half, h, y, c).mean() for c in (0.5, 0.4, 0.6, 0.8)]
    np.testing.assert_allclose(costs[1], costs[0], rtol=1e-6)  # more than the target costs nothing
    np.testing.assert_allclose(np.subtract(costs[2:], costs[0]), [0.5 * 32 * 0.01, 0.5 * 32 * 0.09], rtol=1e-4)


def test_entropy_is_the_opposite_of_the_confidence_penalty(single):
    v, y = single["logits"], single["label"]
    sum_ = cross_entropy(v, y) + 0.01 * al.softmax_entropy(v)
    np.testing.assert_allclose(sum_, losses.confidence_penalty(v, y, -0.01), rtol=1e-6)


def test_ranked_cross_entropy_without_its_share_is_cross_entropy(single):
    v, y = single["logits"], single["label"]
    of = jax.jit(lambda share: al.ranked_cross_entropy(v, y, share))
    np.testing.assert_allclose(of(0.0), cross_entropy(v, y), rtol=1e-6)
    area = of(1.0)
    np.testing.assert_allclose(
        area, float(ops.aurc(ops.msp(np.asarray(v)), np.asarray(cross_entropy(v, y)))), rtol=1e-5
    )


def test_confident_examples_weigh_more_in_the_area(single):
    v, y = single["logits"], single["label"]
    plain = jax.grad(lambda v: cross_entropy(v, y).mean())(v)
    area = jax.jit(jax.grad(lambda v: al.ranked_cross_entropy(v, y, 1.0).mean()))(v)
    weight = (jnp.abs(area).sum(axis=1) / jnp.abs(plain).sum(axis=1))[jnp.argsort(-ops.msp(v))]
    expected = [(1 / np.arange(i, N + 1)).sum() for i in range(1, N + 1)]
    np.testing.assert_allclose(weight, expected, rtol=1e-4)


def test_a_perfect_regression_of_the_true_class_ranks_wrong_below_right(single):
    v, y = np.asarray(single["logits"], np.float64), np.asarray(single["label"])
    p = at(scipy.special.softmax(v, axis=-1), y)
    logit = np.log(p / (1 - p))
    np.testing.assert_allclose(
        al.true_class_probability_loss(jnp.asarray(logit), jnp.asarray(v), jnp.asarray(y)), 0, atol=1e-10
    )
    right = v.argmax(axis=1) == y
    assert p[~right].max() <= 0.5
    assert (p[right] > 1 / K).all()


def test_the_log_odds_of_answering_rank_as_the_probability_does_and_beyond():
    rng = np.random.default_rng(4)
    v, a = rng.normal(size=(30, K)), rng.normal(size=30)
    q = softmax_with(v, a)[:, -1]
    np.testing.assert_allclose(ops.abstention_log_odds(v, a), np.log((1 - q) / q), rtol=1e-10)
    far = np.array([-800.0, -900.0])
    assert (softmax_with(np.zeros((2, K)), far)[:, -1] == 0).all()
    assert (np.diff(ops.abstention_log_odds(np.zeros((2, K)), far)) > 0).all()
    on_device = ops.abstention_log_odds(jnp.asarray(v, jnp.float32), jnp.asarray(a, jnp.float32))
    np.testing.assert_allclose(on_device, ops.abstention_log_odds(v, a), rtol=1e-4, atol=1e-5)
