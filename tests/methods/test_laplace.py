"""The posterior of the last layer against automatic differentiation, brute-force inverses and its own samples."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from made_up import with_head
from scipy import optimize, stats

from sc_jax import ops
from sc_jax.files import InputError
from sc_jax.methods import ensemble, laplace
from sc_jax.predictions import select

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")
STRUCTURES = ("full", "kronecker")


def trained(seed=0, n=60, k=3, d=4, **changes):
    """Logits of moderate size, and a bias."""
    given = with_head(seed, n, k, d)
    kernel, bias = 0.7 * given.head_kernel, np.linspace(-0.5, 0.5, k)
    fields = {"head_kernel": kernel, "head_bias": bias, "logits": given.features @ kernel + bias, **changes}
    return dataclasses.replace(given, **fields)


def heads(given):
    return np.vstack([given.head_kernel, given.head_bias])


@pytest.mark.parametrize("weighted", [False, True])
def test_hessian_is_that_of_automatic_differentiation(weighted):
    given = trained(n=20)
    u = np.random.default_rng(0).gamma(1.0, size=20) if weighted else np.ones(20)
    phi = np.column_stack([given.features, np.ones(20)])

    def loss(theta):
        log_p = jax.nn.log_softmax(phi @ theta.reshape(5, 3))
        return -jnp.sum(u * log_p[jnp.arange(20), given.label])

    with jax.enable_x64(True):
        expected = jax.hessian(loss)(jnp.asarray(heads(given).ravel()))
    found = laplace.hessian(given.features, given.head_kernel, given.head_bias, u if weighted else None)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-10)
    state = laplace.fit(dataclasses.replace(given, weight=u if weighted else None), 1.0)
    (vectors,) = state.eigenvectors
    np.testing.assert_allclose((vectors * state.eigenvalues) @ vectors.T, expected, atol=1e-9)
    assert (np.abs(state.eigenvalues) < 1e-10 * state.eigenvalues.max()).sum() == 5  # all classes moved alike


def test_a_sure_head_has_a_small_hessian_and_no_zero_one():
    given = trained(n=5)
    hessian = laplace.hessian(given.features, 200 * given.head_kernel, given.head_bias)
    assert np.diag(hessian).max() > 0
    assert (np.diag(hessian) >= 0).all()


def kronecker_by_hand(given, u):
    phi = np.column_stack([given.features, np.ones(len(given))])
    p = np.exp(ops.log_softmax(given.logits))
    a = sum(w * np.outer(x, x) for w, x in zip(u, phi, strict=True))
    b = sum(w * (np.diag(q) - np.outer(q, q)) for w, q in zip(u, p, strict=True))
    return np.kron(a, b) / u.sum()


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("tau", [1e-3, 1.0, 50.0])
def test_the_covariance_is_the_brute_force_inverse(structure, tau):
    u = np.random.default_rng(0).gamma(1.0, size=60)
    given = trained(weight=u)
    state = laplace.fit(given, tau, structure)
    whole = laplace.hessian(given.features, given.head_kernel, given.head_bias, u)
    precision = whole if structure == "full" else kronecker_by_hand(given, u)
    covariance = np.linalg.inv(precision + tau * np.eye(15))
    np.testing.assert_allclose(laplace.posterior_covariance(state), covariance, rtol=1e-8, atol=1e-9 / tau)
    test = trained(1, n=7)
    phi = np.column_stack([test.features, np.ones(7)])
    expected = np.stack([np.kron(x, np.eye(3)) @ covariance @ np.kron(x, np.eye(3)).T for x in phi])
    found = laplace.logit_covariance(state, test)
    np.testing.assert_allclose(found, expected, rtol=1e-7, atol=1e-8 / tau)


def test_kronecker_factors_are_exact_for_one_example():
    given = select(trained(), np.array([3]))
    full, factored = (laplace.posterior_covariance(laplace.fit(given, 0.5, s)) for s in STRUCTURES)
    np.testing.assert_allclose(factored, full, atol=1e-12)


def test_few_parameters_are_kept_whole_and_many_factored():
    assert laplace.fit(trained(), 1.0).structure == "full"
    many = trained(n=40, k=20, d=laplace.FULL_LIMIT // 20)
    assert laplace.fit(many, 1.0).structure == "kronecker"


@pytest.mark.parametrize("structure", STRUCTURES)
def test_samples_have_the_mean_and_covariance_of_the_posterior(structure):
    state = laplace.fit(trained(), 2.0, structure)
    test, m = trained(1, n=4), 40_000
    sampled = laplace.member_logits(state, test, m, seed=0)
    assert sampled.shape == (m, 4, 3)
    covariance = laplace.logit_covariance(state, test)
    for i in range(4):
        sd = np.sqrt(np.diag(covariance[i]))
        assert (np.abs(sampled[:, i].mean(axis=0) - test.logits[i]) < 5 * sd / np.sqrt(m)).all()
        # the standard error of a covariance is at most √2 of the product of deviations, over √m
        assert (np.abs(np.cov(sampled[:, i].T) - covariance[i]) < 5 * np.sqrt(2 / m) * np.outer(sd, sd)).all()
    across = np.cov(sampled[:, 0, 0], sampled[:, 1, 0])[0, 1]  # one head for all examples
    phi = np.column_stack([test.features, np.ones(4)])
    whole = laplace.posterior_covariance(state).reshape(5, 3, 5, 3)[:, 0, :, 0]
    expected = phi[0] @ whole @ phi[1]
    assert across == pytest.approx(
        expected, abs=5 * np.sqrt(2 / m) * np.sqrt(covariance[0, 0, 0] * covariance[1, 0, 0])
    )


@pytest.mark.parametrize("structure", STRUCTURES)
def test_a_strong_prior_leaves_the_head_as_it_is(structure):
    state, test = laplace.fit(trained(), 1e14, structure), trained(1)
    np.testing.assert_allclose(
        laplace.member_logits(state, test, 3, 0), np.broadcast_to(test.logits, (3, 60, 3)), atol=1e-5
    )
    np.testing.assert_allclose(
        laplace.mean_field_log_probabilities(state, test), ops.log_softmax(test.logits), atol=1e-10
    )


def test_more_data_narrow_the_posterior_and_weights_are_repeated_rows():
    given = trained()
    spread = [
        np.trace(laplace.posterior_covariance(laplace.fit(g, 1.0))) for g in (select(given, np.arange(20)), given)
    ]
    assert spread[1] < spread[0]
    weight = np.random.default_rng(0).integers(0, 3, 60)
    rows = np.repeat(np.arange(60), weight)
    repeated = dataclasses.replace(select(given, rows), example_id=np.arange(len(rows)))
    for structure in STRUCTURES:
        a = laplace.fit(dataclasses.replace(given, weight=weight.astype(float)), structure=structure)
        b = laplace.fit(repeated, structure=structure)
        np.testing.assert_allclose(
            laplace.posterior_covariance(a), laplace.posterior_covariance(b), rtol=1e-6, atol=1e-9
        )
        assert a.log_likelihood == pytest.approx(b.log_likelihood)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_the_marginal_likelihood_is_that_of_the_gaussian_and_chosen_at_its_maximum(structure):
    given = trained()
    state = laplace.fit(given, structure=structure)
    assert state.chosen_by == "marginal_likelihood"

    def by_hand(tau):
        whole = laplace.hessian(given.features, given.head_kernel, given.head_bias)
        precision = (whole if structure == "full" else kronecker_by_hand(given, np.ones(60))) + tau * np.eye(15)
        prior = stats.norm.logpdf(heads(given), scale=tau**-0.5).sum()
        likelihood = -ops.log_loss(given.logits, given.label).sum()
        return likelihood + prior + 15 / 2 * np.log(2 * np.pi) - np.linalg.slogdet(precision)[1] / 2

    for tau in (0.01, 1.0, 30.0):
        assert state.log_marginal_likelihood(tau) == pytest.approx(by_hand(tau), rel=1e-9)
    best = optimize.minimize_scalar(
        lambda x: -by_hand(np.exp(x)), bounds=(-10, 10), method="bounded", options={"xatol": 1e-9}
    )
    assert state.prior_precision == pytest.approx(np.exp(best.x), rel=1e-4)
    assert state.log_marginal_likelihood() == pytest.approx(-best.fun, rel=1e-9)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_tuning_takes_the_least_held_out_log_loss(structure):
    sure = trained(n=15)
    sure = dataclasses.replace(
        sure, head_kernel=4 * sure.head_kernel, logits=sure.features @ (4 * sure.head_kernel) + sure.head_bias
    )
    weight = np.random.default_rng(0).gamma(1.0, size=200)
    held_out = trained(5, n=200, weight=weight, is_ood=np.arange(200) < 30)
    state = laplace.fit(sure, 1.0, structure)
    candidates = (1e-9, 0.1, 1.0, 10.0, 1e4)
    known = select(held_out, ~held_out.is_ood)
    of_tau = [laplace.with_prior_precision(state, tau) for tau in candidates]
    closed = [laplace.mean_field_log_probabilities(one, known) for one in of_tau]
    drawn = [ensemble.combine(laplace.member_logits(one, known, 10, 3)) for one in of_tau]
    for outputs, options in ((closed, ()), (drawn, (10, 3))):
        tuned = laplace.tune(state, held_out, *options, candidates=candidates)
        loss = [ops.negative_log_likelihood(logits, known.label, weight=known.weight) for logits in outputs]
        assert tuned.prior_precision == candidates[int(np.argmin(loss))]
        assert len(set(np.round(loss, 6))) == len(candidates)
        assert tuned.chosen_by == "held_out_log_loss"
    assert laplace.tune(state, held_out).prior_precision in laplace.CANDIDATES
    named = dataclasses.replace(held_out, provenance={"split": state.fitted_on})
    with pytest.raises(InputError, match="tune on another split"):
        laplace.tune(state, named)
    with pytest.raises(ValueError, match="candidates must be positive"):
        laplace.tune(state, held_out, candidates=[0.0, 1.0])


@pytest.mark.parametrize("structure", STRUCTURES)
def test_the_closed_form_is_mackays_for_two_classes(structure):
    state, test = laplace.fit(trained(k=2), 0.5, structure), trained(1, k=2)
    difference = test.logits[:, 0] - test.logits[:, 1]
    variance = laplace.logit_covariance(state, test) @ [1, -1] @ [1, -1]
    mackay = 1 / (1 + np.exp(-difference / np.sqrt(1 + np.pi / 8 * variance)))
    np.testing.assert_allclose(np.exp(laplace.mean_field_log_probabilities(state, test))[:, 0], mackay, rtol=1e-9)
    sampled = np.exp(ensemble.combine(laplace.member_logits(state, test, 4000, 0)))
    np.testing.assert_allclose(sampled[:, 0], mackay, atol=0.03)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_the_closed_form_is_nearer_to_the_mean_of_samples_than_the_head(structure):
    given, test = trained(k=5), trained(1, k=5)
    state = laplace.fit(given, 0.5, structure)
    sampled = np.exp(ensemble.combine(laplace.member_logits(state, test, 4000, 0)))
    closed = np.exp(laplace.mean_field_log_probabilities(state, test))
    np.testing.assert_allclose(closed.sum(axis=1), 1, rtol=1e-12)
    head = np.exp(ops.log_softmax(test.logits))
    assert np.abs(closed - sampled).mean() < np.abs(head - sampled).mean() / 2


def test_the_closed_form_does_not_see_a_shift_of_all_logits():
    given, test = trained(), trained(1)
    state = laplace.fit(given, 1.0)
    shifted = state._replace(mean=state.mean + np.arange(5.0)[:, None])
    closed = laplace.mean_field_log_probabilities(state, test)
    np.testing.assert_allclose(laplace.mean_field_log_probabilities(shifted, test), closed, atol=1e-9)
    (vectors,) = state.eigenvectors  # nor how uncertain the shift is
    alike = np.kron(np.eye(5), np.full((3, 3), 1 / 3))
    wide = laplace.posterior_covariance(state) + 100 * alike
    values, vectors = np.linalg.eigh(np.linalg.inv(wide))
    uncertain = state._replace(eigenvalues=values - 1.0, eigenvectors=(vectors,))
    np.testing.assert_allclose(laplace.mean_field_log_probabilities(uncertain, test), closed, atol=1e-7)


def test_members_are_an_ensemble_that_doubts_far_from_the_data():
    state, test = laplace.fit(trained(), 0.1), trained(1)
    far = dataclasses.replace(test, features=20 * test.features)
    near, away = (ops.mutual_information(laplace.member_logits(state, of, 50, 0)) for of in (test, far))
    assert np.median(away) < np.median(near)  # less confident


def test_members_follow_the_seed_and_are_the_same_for_every_split():
    state, test = laplace.fit(trained(), 1.0), trained(1)
    members = laplace.member_logits(state, test, 5, seed=3)
    np.testing.assert_array_equal(laplace.member_logits(state, test, 2, seed=3), members[:2])
    np.testing.assert_allclose(
        laplace.member_logits(state, select(test, np.arange(9)), 5, seed=3), members[:, :9], rtol=1e-12
    )
    assert not np.allclose(laplace.member_logits(state, test, 5, seed=4), members)


def test_what_has_no_posterior_is_refused():
    given = trained()
    for changes, message in (
        ({"features": None}, "field 'features': is missing"),
        ({"head_kernel": None}, "field 'head_kernel': is missing"),
        ({"head_bias": None}, "field 'head_bias': is missing"),
        ({"logits": given.logits[None]}, "give one model"),
        ({"features": np.full_like(given.features, np.nan)}, "NaN or infinite"),
        ({"features": given.features + 1}, "field 'logits': differ from features"),
        ({"is_ood": np.ones(60, bool)}, "all examples are from outside"),
    ):
        with pytest.raises(InputError, match=message):
            laplace.fit(dataclasses.replace(given, **changes))
    for tau in (0.0, -1.0, np.inf, np.nan):
        with pytest.raises(ValueError, match="positive and finite"):
            laplace.fit(given, tau)
    with pytest.raises(ValueError, match="structure must be"):
        laplace.fit(given, 1.0, "diagonal")
    nothing = dataclasses.replace(
        given, head_kernel=0 * given.head_kernel, head_bias=np.zeros(3), logits=0 * given.logits
    )
    with pytest.raises(ValueError, match="no maximum"):
        laplace.fit(nothing)
    state = laplace.fit(given, 1.0)
    with pytest.raises(InputError, match="has 3 columns; the posterior is of 4"):
        laplace.member_logits(state, dataclasses.replace(given, features=given.features[:, :3]), 2, 0)
    with pytest.raises(ValueError, match="at least 1"):
        laplace.member_logits(state, given, 0, 0)


def test_examples_from_outside_and_probabilities_in_place_of_logits():
    given, ood = trained(), np.arange(60) % 3 == 0
    marked = laplace.fit(dataclasses.replace(given, is_ood=ood), 1.0)
    np.testing.assert_array_equal(marked.eigenvalues, laplace.fit(select(given, ~ood), 1.0).eigenvalues)
    probabilities = dataclasses.replace(given, logits=ops.log_softmax(given.logits), log_probabilities=True)
    np.testing.assert_allclose(laplace.fit(probabilities, 1.0).mean, heads(given))
