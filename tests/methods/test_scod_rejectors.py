"""Rejectors on samples whose densities are known, and what each fit takes from which split."""

import dataclasses
import math

import numpy as np
import pytest
from made_up import predictions, with_head
from scipy.stats import norm
from sklearn.linear_model import LogisticRegression

from sc_jax import ops
from sc_jax.files import InputError
from sc_jax.methods import scod
from sc_jax.predictions import Predictions, select

COSTS = ops.ScodCosts(0.2, 0.3)
TARGET = scod.JointRisk(1.0, 1.0, 0.5)
MEANS = -1.5, 1.5


def gaussians(seed, n, n_ood=0, centre=5.0):
    """Two Gaussian classes at ±1.5 and outliers at `centre`, all of deviation 1; logits are the true posterior."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 2, n + n_ood)
    is_ood = np.arange(n + n_ood) >= n
    x = np.where(is_ood, centre, np.take(MEANS, label)) + rng.normal(size=n + n_ood)
    log_p = np.stack([norm.logpdf(x, mean) for mean in MEANS], axis=1)
    features = np.stack([x, x**2], axis=1)
    return Predictions(label, log_p, np.arange(n + n_ood), features=features, is_ood=is_ood)


def true_estimates(given, centre=5.0):
    """(ln d, ln r) from the densities."""
    x = given.features[:, 0]
    inlier = np.logaddexp(*(norm.logpdf(x, mean) for mean in MEANS)) - math.log(2)
    worse = np.minimum(*(norm.logpdf(x, mean) for mean in MEANS)) - math.log(2)
    return worse - inlier, norm.logpdf(x, centre) - inlier


def joint_risk_area(score, given, target=TARGET):
    error = given.logits.argmax(axis=1) != given.label
    return float(ops.scod_aurc(score, error, given.is_ood, **target._asdict()).area)


def test_the_doubt_of_msp_is_1_minus_the_softmax():
    given = gaussians(0, 50, 50)
    state = scod.fit_black_box(given, COSTS)
    log_doubt, _ = scod.estimates(state, given)
    np.testing.assert_allclose(log_doubt, true_estimates(given)[0], rtol=1e-10)


def test_apply_is_the_rule_of_the_estimates():
    calibration, test = gaussians(0, 200), gaussians(1, 50, 50)
    for ood, selective in (("energy", "msp"), ("max_logit", "logit_margin"), ("mahalanobis", "negative_entropy")):
        state = scod.fit_black_box(calibration, COSTS, selective=selective, ood=ood)
        d, r = scod.estimates(state, test)
        np.testing.assert_array_equal(scod.apply(state, test), ops.plugin_scod_score(d, r, COSTS))
        joint = ops.joint_scod_score(d, r, **TARGET._asdict())
        np.testing.assert_array_equal(scod.apply(state._replace(rule=TARGET), test), joint)
        # Without a cost of outliers the SC score ranks, with nothing but it the OOD score; whichever they are.
        of = {name: scod.score_of(scod.fit_score(name, calibration), test) for name in (ood, selective)}
        for rule, name in ((ops.ScodCosts(0.3, 0.0), selective), (ops.ScodCosts(0.3, 0.7), ood)):
            value = scod.apply(state._replace(rule=rule), test)
            assert float(ops.auroc(value, of[name] > np.median(of[name]))) == 1


def test_without_outliers_the_ratio_has_mean_1_over_inliers():
    calibration = gaussians(0, 300, 40)
    state = scod.fit_black_box(calibration, COSTS)
    inliers = select(calibration, ~calibration.is_ood)
    _, r = scod.estimates(state, inliers)
    assert np.exp(r).mean() == pytest.approx(1)
    np.testing.assert_allclose(np.corrcoef(r, ops.energy(inliers.logits))[0, 1], -1)
    assert r.std() == pytest.approx(1)


def test_inliers_alone_are_fitted_to():
    calibration = gaussians(0, 300, 40)
    alone = select(calibration, ~calibration.is_ood)
    test = gaussians(1, 20, 20)
    for fit in (
        lambda given: scod.fit_black_box(given, COSTS, ood="mahalanobis", selective="margin"),
        lambda given: scod.fit_loss_based(given, test, COSTS, mixing=0.3),
        scod.fit_sirc,
    ):
        np.testing.assert_array_equal(scod.apply(fit(calibration), test), scod.apply(fit(alone), test))


def test_the_calibrated_doubt_is_a_logistic_regression_with_platts_targets():
    calibration = gaussians(0, 400)
    state = scod.fit_black_box(calibration, COSTS, selective="max_logit").doubt
    score = calibration.logits.max(axis=1)
    right = calibration.logits.argmax(axis=1) == calibration.label
    high, low = (right.sum() + 1) / (right.sum() + 2), 1 / ((~right).sum() + 2)
    target = np.where(right, high, low)
    rows = np.repeat(score[:, None], 2, axis=0)
    fitted = LogisticRegression(C=1e12, tol=1e-10, max_iter=1000).fit(
        rows, np.tile([1, 0], 400), sample_weight=np.stack([target, 1 - target], axis=1).ravel()
    )
    assert state.slope == pytest.approx(fitted.coef_[0, 0], rel=1e-4)
    assert state.intercept == pytest.approx(fitted.intercept_[0], rel=1e-4)


def test_all_right_constant_and_infinite_scores_have_a_doubt():
    right = Predictions(np.zeros(5, int), np.tile([3.0, 1.0, 0.0], (5, 1)) * np.arange(1, 6)[:, None], np.arange(5))
    state = scod.fit_black_box(right, COSTS, selective="logit_margin").doubt
    assert state.slope == pytest.approx(0, abs=1e-4)
    assert 1 / (1 + math.exp(-state.intercept)) == pytest.approx(6 / 7, abs=1e-4)  # five right and Platt's one of each
    flat = dataclasses.replace(right, logits=right.logits[[0] * 5])
    assert np.isfinite(scod.apply(scod.fit_black_box(flat, COSTS, selective="margin"), flat)).all()
    zero = np.where(np.arange(3) == 0, 0.0, -np.inf)
    certain = dataclasses.replace(right, logits=np.tile(zero, (5, 1)), log_probabilities=True)
    for selective in ("msp", "margin"):
        state = scod.fit_black_box(certain, COSTS, selective=selective, ood="negative_entropy")
        assert not np.isnan(scod.apply(state, certain)).any()
    one = dataclasses.replace(right, label=right.label[:1], logits=right.logits[:1], example_id=np.arange(1))
    assert np.isfinite(scod.apply(scod.fit_black_box(one, COSTS, selective="margin"), one)).all()


def test_with_outliers_the_ratio_is_that_of_the_densities():
    """Inliers and outliers of one Gaussian each: the logistic model is right, so that it finds ln r = 2x − 2."""
    rng = np.random.default_rng(0)
    n = 40_000
    x = rng.normal(size=2 * n) + 2 * (np.arange(2 * n) >= n)
    given = Predictions(np.zeros(2 * n, int), np.zeros((2 * n, 2)), np.arange(2 * n), features=x[:, None])
    inliers, outliers = select(given, np.arange(n)), select(given, np.arange(n, 2 * n - n // 2))  # of unequal size
    state = scod.fit_loss_based(inliers, outliers, COSTS, mixing=0.0, ridge=0.0)
    grid = dataclasses.replace(select(given, np.arange(9)), features=np.linspace(-2, 4, 9)[:, None])
    np.testing.assert_allclose(scod.estimates(state, grid)[1], 2 * grid.features[:, 0] - 2, atol=0.1)


def exponential(rate, n, rng):
    """Draws from the density ∝ e^(−rate·x) on [0, 1]."""
    return -np.log1p(-rng.random(n) * -math.expm1(-rate)) / rate


def test_the_mixing_and_the_outlier_ratio_are_found_in_a_wild_mixture():
    """P_in ∝ e^−3x and P_mix ∝ e^−x on [0, 1]: a logistic head is right, and only x = 0 is strictly of inliers."""
    rng = np.random.default_rng(0)
    n = 40_000

    def of(x):
        return Predictions(np.zeros(len(x), int), np.zeros((len(x), 2)), np.arange(len(x)), features=x[:, None])

    inliers, wild, strict = of(exponential(3, n, rng)), of(exponential(1, n, rng)), of(np.full(5, 1e-6))
    inside, mix = (lambda x, a=a: a * np.exp(-a * x) / -math.expm1(-a) for a in (3, 1))
    mixing = mix(0) / inside(0)  # the largest share of inliers that leaves a density for the outliers
    state = scod.fit_loss_based(inliers, wild, COSTS, strict=strict, ridge=0.0)
    assert state.ratio.mixing == pytest.approx(mixing, abs=0.015)
    grid = np.linspace(0.2, 1, 9)
    outside = (mix(grid) - mixing * inside(grid)) / (1 - mixing)
    np.testing.assert_allclose(np.exp(scod.estimates(state, of(grid))[1]), outside / inside(grid), rtol=0.06)
    known = scod.fit_loss_based(inliers, wild, COSTS, mixing=mixing, ridge=0.0)
    np.testing.assert_allclose(np.exp(scod.estimates(known, of(grid))[1]), outside / inside(grid), rtol=0.06)


def test_labels_of_the_wild_are_not_looked_at():
    calibration, wild, test = gaussians(0, 200), gaussians(1, 50, 50), gaussians(2, 20, 20)
    other = dataclasses.replace(wild, label=1 - wild.label, is_ood=~wild.is_ood)
    score = [scod.apply(scod.fit_loss_based(calibration, w, COSTS, mixing=0.5), test) for w in (wild, other)]
    np.testing.assert_array_equal(*score)


def test_the_head_has_no_gradient_left():
    """At the minimum the residuals are orthogonal to the inputs, up to the ridge."""
    inliers, wild = gaussians(0, 300), gaussians(1, 100, 100)
    ratio = scod.fit_loss_based(inliers, wild, COSTS, mixing=0.5, ridge=0.01).ratio
    x = (np.concatenate([inliers.features, wild.features]) - ratio.mean) / ratio.scale
    p = 1 / (1 + np.exp(-(x @ ratio.weight + ratio.intercept)))
    gap = (p - np.repeat([1.0, 0.0], [300, 200])) * np.repeat([1 / 300, 1 / 200], [300, 200])
    np.testing.assert_allclose(gap.sum(), 0, atol=1e-5)
    np.testing.assert_allclose(gap @ x + 0.01 * ratio.weight, 0, atol=1e-5)


def test_plugging_in_beats_either_half_on_gaussians_and_comes_near_the_bayes_rule():
    target = scod.JointRisk(1.0, 1.0, 0.1)
    calibration, outliers = gaussians(0, 4000), select(gaussians(1, 1, 4000), np.arange(1, 4001))
    wild, test = gaussians(2, 2000, 2000), gaussians(3, 10_000, 10_000)
    best = joint_risk_area(ops.joint_scod_score(*true_estimates(test), **target._asdict()), test, target)
    halves = [joint_risk_area(score, test, target) for score in (ops.msp(test.logits), ops.energy(test.logits))]
    states = (
        scod.fit_black_box(calibration, target, outliers=outliers),
        scod.fit_black_box(calibration, target),
        scod.fit_loss_based(calibration, wild, target, mixing=0.5),
    )
    areas = [joint_risk_area(scod.apply(state, test), test, target) for state in states]
    assert best < min(areas)
    assert max(areas) < 0.8 * min(halves)
    assert max(areas) < 1.25 * best


def test_one_score_serves_every_budget():
    """At the multiplier of a budget the plug-in rule with the Lagrangian's costs accepts the same examples."""
    c_fn, id_share = 0.75, 0.6
    calibration, mixture = gaussians(0, 300), gaussians(1, 400, 100)
    state = scod.fit_black_box(calibration, scod.budgeted(c_fn, id_share))
    score = scod.apply(state, mixture)
    weight = ops.mixture_weight(mixture.is_ood, 0.4)
    for budget in (0.0, 0.1, 0.4, 0.5, 0.9):
        found = scod.at_budget(state, mixture, budget)
        accepted = score >= found.threshold
        assert found.rejected == pytest.approx(np.average(~accepted, weights=weight), abs=1e-12)
        assert found.rejected <= budget + 1e-12
        next_one = score > found.threshold
        assert np.average(~next_one, weights=weight) > budget  # rejecting any more would be too much
        assert found.multiplier == pytest.approx(math.exp(-found.threshold))
        above = found.multiplier * (1 + 1e-9)  # so that rounding does not decide about the last one accepted
        if above <= c_fn / (1 - id_share):
            costs = ops.scod_costs_at_multiplier(above, id_share, c_fn)
            plain = scod.apply(state._replace(rule=costs), mixture) >= -math.log(costs.c_in)
            np.testing.assert_array_equal(plain, accepted)


def test_a_multiplier_has_no_costs_where_more_than_the_budget_loses_more_than_an_outlier():
    c_fn, id_share = 0.1, 0.5
    outlier = c_fn / (1 - id_share)
    state = scod.fit_black_box(gaussians(0, 300), scod.budgeted(c_fn, id_share))
    mixture = gaussians(1, 400, 400)
    lost = np.exp(-scod.apply(state, mixture))
    seen = set()
    for budget in (0.0, 0.02, 0.05, 0.1, 0.2, 0.4, 0.7):
        found = scod.at_budget(state, mixture, budget)
        too_large = found.multiplier > outlier
        seen.add(too_large)
        assert too_large == ((lost > outlier).mean() > budget)
        if too_large:
            with pytest.raises(ValueError, match="multiplier"):
                ops.scod_costs_at_multiplier(found.multiplier, id_share, c_fn)
    assert seen == {False, True}


def test_a_fitted_score_serves_as_its_name_does():
    calibration, test = gaussians(0, 200), gaussians(1, 50, 50)
    both = gaussians(2, 100, 60)
    ready = scod.fit_score("mahalanobis", calibration)
    options = {"reference": calibration}
    for fit in (
        lambda score: scod.fit_black_box(calibration, TARGET, ood=score),
        lambda score: scod.fit_loss_based(calibration, test, TARGET, on=score, mixing=0.5),
        lambda score: scod.fit_linear(both, target=TARGET, ood=score, **options),
        lambda score: scod.fit_sirc(calibration, second=score),
    ):
        np.testing.assert_array_equal(scod.apply(fit(ready), test), scod.apply(fit("mahalanobis"), test))


def test_an_unlabelled_mixture_is_taken_as_it_is():
    state = scod.fit_black_box(gaussians(0, 300), scod.budgeted(0.75, 0.5))
    mixture = dataclasses.replace(gaussians(1, 90, 10), is_ood=None)
    found = scod.at_budget(state, mixture, 0.29)
    assert found.rejected == pytest.approx(0.29)
    with pytest.raises(ValueError, match="no OOD input"):
        scod.at_budget(state, gaussians(1, 90), 0.1)
    with pytest.raises(ValueError, match=r"budget must be in \[0, 1\)"):
        scod.at_budget(state, mixture, 1)
    with pytest.raises(ValueError, match="JointRisk"):
        scod.at_budget(state._replace(rule=COSTS), mixture, 0.1)


def test_the_linear_selector_has_the_least_area_of_its_grid():
    calibration = gaussians(0, 400, 200)
    state = scod.fit_linear(calibration, target=TARGET)
    chosen = joint_risk_area(scod.apply(state, calibration), calibration)
    for c_out in np.linspace(0, 1, 41):
        other = scod.apply(state._replace(rule=ops.ScodCosts(0.0, c_out)), calibration)
        assert chosen <= joint_risk_area(other, calibration) + 2e-4  # the grid of μ is coarse
    assert state.rule.c_in == 0
    assert 0 < state.rule.c_out < 1
    halves = [scod.apply(state._replace(rule=ops.ScodCosts(0.0, c)), calibration) for c in (0.0, 1.0)]
    assert chosen < min(joint_risk_area(score, calibration) for score in halves)


def test_sirc_is_its_formula_with_parameters_of_the_inliers():
    calibration, test = with_head(0), with_head(1)
    norms = [np.abs(given.features).sum(axis=1) for given in (calibration, test)]
    expected = ops.sirc(test.logits, norms[1], *ops.sirc_parameters(norms[0]), first="negative_entropy")
    value = scod.apply(scod.fit_sirc(calibration, first="negative_entropy"), test)
    np.testing.assert_array_equal(value, expected)
    state = scod.fit_sirc(calibration, second="vim")
    vim = [scod.score_of(state.second, given) for given in (calibration, test)]
    np.testing.assert_array_equal(scod.apply(state, test), ops.sirc(test.logits, vim[1], *ops.sirc_parameters(vim[0])))


def test_scores_are_fitted_on_the_reference():
    reference, calibration, test = with_head(0), with_head(1), with_head(2)
    for fit in (
        lambda **options: scod.fit_black_box(calibration, COSTS, ood="mahalanobis", **options),
        lambda **options: scod.fit_loss_based(calibration, test, COSTS, on="mahalanobis", mixing=0.5, **options),
    ):
        state = fit(reference=reference)
        np.testing.assert_array_equal(state.ratio.score.state.mean, scod.fit_score("mahalanobis", reference).state.mean)
        z = ops.mahalanobis(calibration.features, state.ratio.score.state)
        if state.ratio.mixing == 0:
            assert state.ratio.mean[0] == pytest.approx(z.mean())


def test_tuned_scores_and_those_of_members_serve_too():
    calibration, test = predictions(0), predictions(1)
    state = scod.fit_black_box(calibration, COSTS, selective="max_logit_pnorm", ood="max_logit")
    expected = ops.max_logit_pnorm(test.logits, state.doubt.score.state.p)
    np.testing.assert_array_equal(scod.score_of(state.doubt.score, test), expected)
    members = [dataclasses.replace(p, logits=np.stack([p.logits, p.logits[::-1]])) for p in (calibration, test)]
    state = scod.fit_black_box(members[0], COSTS, ood="mutual_information")
    value = scod.score_of(state.ratio.score, members[1])
    np.testing.assert_array_equal(value, ops.mutual_information(members[1].logits))
    d, _ = scod.estimates(state, members[1])
    p = np.exp(ops.ensemble_log_probabilities(members[1].logits)).max(axis=1)
    np.testing.assert_allclose(np.exp(d), 1 - p, rtol=1e-9)


def test_weights_are_repeated_rows():
    calibration, wild, test = gaussians(0, 60), gaussians(1, 30, 30), gaussians(2, 20, 20)
    weight = np.random.default_rng(0).integers(0, 3, 60)
    weighted = [dataclasses.replace(given, weight=weight.astype(float)) for given in (calibration, wild)]
    rows = np.repeat(np.arange(60), weight)
    repeated = [
        dataclasses.replace(select(given, rows), example_id=np.arange(len(rows))) for given in (calibration, wild)
    ]
    scores = [
        (
            scod.apply(scod.fit_black_box(given[0], COSTS, ood="max_logit"), test),
            scod.apply(scod.fit_linear(given[1], target=TARGET, reference=calibration), test),
        )
        for given in (weighted, repeated)
    ]
    np.testing.assert_allclose(scores[0][0], scores[1][0], rtol=1e-9)
    assert np.corrcoef(scores[0][1], scores[1][1])[0, 1] > 0.999  # the ridge sees other deviations


def test_what_cannot_be_fitted_is_refused():
    given, ood = gaussians(0, 30), gaussians(0, 0, 30)
    bare = dataclasses.replace(given, features=None)
    refused = [
        (lambda: scod.fit_black_box(ood, COSTS), "all examples are OOD"),
        (lambda: scod.fit_black_box(given, COSTS, ood="energie"), "did you mean 'energy'"),
        (lambda: scod.fit_black_box(bare, COSTS, ood="mahalanobis"), "needs features"),
        (lambda: scod.fit_black_box(given, COSTS, ood="vim"), "needs head_kernel"),
        (lambda: scod.fit_loss_based(bare, given, COSTS, mixing=0.5), "field 'features'"),
        (lambda: scod.fit_loss_based(given, with_head(0), COSTS, mixing=0.5), "8 features are of no use"),
        (lambda: scod.apply(scod.fit_loss_based(given, ood, COSTS, mixing=0.5), with_head(0)), "field 'features'"),
        (lambda: scod.fit_linear(given, target=TARGET), "both kinds"),
        (lambda: scod.fit_linear(dataclasses.replace(given, is_ood=None), target=TARGET), "both kinds"),
        (
            lambda: scod.fit_black_box(dataclasses.replace(gaussians(0, 3, 3), weight=np.eye(6)[5]), COSTS),
            "weigh nothing",
        ),
    ]
    for call, message in refused:
        with pytest.raises(InputError, match=message):
            call()
    for options in ({}, {"mixing": 0.5, "strict": given}, {"mixing": 1.0}, {"mixing": -0.1}, {"strict": ood}):
        with pytest.raises(ValueError, match=r"strict|share of inliers"):
            scod.fit_loss_based(given, ood, COSTS, **options)
    for c_fn, id_share in ((1.5, 0.5), (0.5, 0.0), (0.5, 1.0)):
        with pytest.raises(ValueError, match="c_fn"):
            scod.budgeted(c_fn, id_share)
