"""SCOD: the joint risk by its definition, mixtures as repeated rows, and its two limits."""

import functools
import math
from fractions import Fraction

import brute_force
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from brute_force import SCORES, reproducible
from hypothesis import given
from hypothesis import strategies as st

from sc_jax.ops.areas import augrc, aurc
from sc_jax.ops.detection import auroc, failure_auroc
from sc_jax.ops.risk_coverage import coverage_at_risk, risk_at_coverage, risk_coverage_curve
from sc_jax.ops.scod import mixture_weight, scod_aurc, scod_curve, scod_loss

ROWS = st.tuples(st.sampled_from(SCORES), st.integers(0, 1), st.booleans())


def columns(rows):
    score, error, is_ood = zip(*rows, strict=True)
    return np.array(score, float), np.array(error), np.array(is_ood)


def mixed_samples(max_size=6):
    """(score [n], error [n], is_ood [n]) with many ties."""
    return st.lists(ROWS, min_size=1, max_size=max_size).map(columns)


def random_sample(seed, n=40):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 9, n) / 4, rng.random(n) < 0.3, rng.random(n) < 0.4


@pytest.fixture(params=["jax.numpy", "torch", "array_api_strict"])
def device(request):
    return pytest.importorskip(request.param)


def joint_risk(score, error, is_ood, threshold, c_fn):
    """((1 − c_fn)·#{ID, wrong, accepted} + c_fn·#{OOD, accepted})/#{accepted}, counted."""
    accepted = [i for i in range(len(score)) if score[i] >= threshold]
    wrong = sum(1 for i in accepted if error[i] and not is_ood[i])
    ood = sum(1 for i in accepted if is_ood[i])
    return ((1 - c_fn) * wrong + c_fn * ood) / Fraction(len(accepted))


@pytest.mark.parametrize("c_fn", [Fraction(3, 4), Fraction(1, 2), Fraction(0), Fraction(1)])
@given(sample=mixed_samples(max_size=10))
@reproducible
def test_risks_at_thresholds_are_the_joint_risk(c_fn, sample):
    score, *_ = sample
    curve = scod_curve(*sample, ood_cost=float(c_fn), id_cost=float(1 - c_fn), ties="collapse")
    assert curve.threshold.tolist() == sorted(set(score.tolist()), reverse=True)
    for coverage, risk, threshold in zip(curve.coverage, curve.risk, curve.threshold, strict=True):
        assert risk == pytest.approx(float(joint_risk(*sample, threshold, c_fn)), rel=1e-12)
        assert coverage == (score >= threshold).mean()


@given(mixed_samples())
@reproducible
def test_risks_at_counts_are_expectations_over_tie_orders(sample):
    score, error, is_ood = sample
    loss = [0.75 if ood else 0.25 * wrong for wrong, ood in zip(error.tolist(), is_ood.tolist(), strict=True)]
    curve = scod_curve(*sample, ood_cost=0.75, id_cost=0.25)
    expected = brute_force.expected(brute_force.selective_risks, score, np.array(loss))
    np.testing.assert_allclose(curve.risk, [float(risk) for risk in expected], rtol=1e-12, atol=1e-15)
    area = scod_aurc(*sample, ood_cost=0.75, id_cost=0.25)
    assert area.area == pytest.approx(float(brute_force.aurc(score, np.array(loss))), rel=1e-12, abs=1e-15)
    assert area.ood_share == pytest.approx(is_ood.mean())


@pytest.mark.parametrize("part", [0, "0.1", Fraction(1, 3), 0.5, 1])
def test_a_mixture_weighs_the_two_populations(part):
    score, error, is_ood = random_sample(0)
    share = Fraction(str(part))
    curve = scod_curve(score, error, is_ood, ood_cost=0.6, id_cost=0.4, ood_share=part, ties="collapse")
    for coverage, risk, threshold in zip(curve.coverage, curve.risk, curve.threshold, strict=True):
        accepted = score >= threshold
        of_id, of_ood = (Fraction(int(accepted[kind].sum()), int(kind.sum())) for kind in (~is_ood, is_ood))
        wrong = Fraction(int((accepted & error)[~is_ood].sum()), int((~is_ood).sum()))
        total = (1 - share) * of_id + share * of_ood
        assert coverage == pytest.approx(float(total), rel=1e-12)
        if total == 0:
            assert math.isnan(risk)
        else:
            joint = (Fraction(2, 5) * (1 - share) * wrong + Fraction(3, 5) * share * of_ood) / total
            assert risk == pytest.approx(float(joint), rel=1e-12, abs=1e-15)


def test_a_mixture_of_whole_weights_is_that_of_repeated_rows():
    rng = np.random.default_rng(1)
    is_ood = np.arange(30) % 3 == 0  # 10 OOD, 20 ID
    score, error = rng.integers(0, 6, 30) / 2, rng.random(30) < 0.4
    weight = mixture_weight(is_ood, 2 / 3) * 2  # 20 of 30 OOD: 2 rows each; 10 of 30 ID: ½ row each
    np.testing.assert_allclose(weight, np.where(is_ood, 4, 1), rtol=1e-15)
    rows = np.repeat(np.arange(30), np.where(is_ood, 4, 1))
    loss = scod_loss(error, is_ood)
    for metric in (aurc, augrc, failure_auroc):
        whole = np.where(is_ood, 4, 1)
        np.testing.assert_allclose(metric(score, loss, weight=whole), metric(score[rows], loss[rows]), rtol=1e-12)
    for metric in (augrc, failure_auroc):  # ratios of weights: what a row is does not matter
        np.testing.assert_allclose(metric(score, loss, weight=weight / 2), metric(score[rows], loss[rows]), rtol=1e-12)
    at = risk_at_coverage(score, loss, 0.5, weight=weight)
    np.testing.assert_allclose(at, risk_at_coverage(score[rows], loss[rows], 0.5), rtol=1e-12)


@given(st.lists(st.booleans(), min_size=1, max_size=12), st.integers(0, 10))
@reproducible
def test_mixture_weights_have_the_share_and_the_total(kinds, tenths):
    is_ood, part = np.array(kinds), tenths / 10
    if (part > 0 and not is_ood.any()) or (part < 1 and is_ood.all()):
        with pytest.raises(ValueError, match=r"there is no (ID|OOD) input"):
            mixture_weight(is_ood, part)
        return
    weight = mixture_weight(is_ood, part)
    assert weight.sum() == pytest.approx(len(kinds))
    assert weight[is_ood].sum() == pytest.approx(part * len(kinds))
    for kind in (is_ood, ~is_ood):
        assert len(set(weight[kind].tolist())) <= 1


def test_the_share_that_there_is_changes_nothing():
    is_ood = np.arange(10) % 5 == 0
    np.testing.assert_array_equal(mixture_weight(is_ood, 0.2), np.ones(10))


def test_resamples_are_set_to_the_share_one_by_one():
    score, error, is_ood = random_sample(2)
    counts = np.random.default_rng(3).multinomial(40, np.full(40, 1 / 40), size=(2, 3))
    weight = mixture_weight(is_ood, 0.25, weight=counts)
    result = scod_aurc(score, error, is_ood, ood_share=0.25, weight=counts)
    assert weight.shape == (2, 3, 40)
    for index in np.ndindex(2, 3):
        rows = np.repeat(np.arange(40), counts[index])
        repeated = mixture_weight(is_ood[rows], 0.25)
        np.testing.assert_allclose(np.repeat(weight[index] / np.maximum(counts[index], 1), counts[index]), repeated)
        augrc_of = augrc(score, scod_loss(error, is_ood), weight=weight[index])
        expected = augrc(score[rows], scod_loss(error[rows], is_ood[rows]), weight=repeated)
        np.testing.assert_allclose(augrc_of, expected, rtol=1e-12)
        single = scod_aurc(score, error, is_ood, ood_share=0.25, weight=counts[index])
        np.testing.assert_allclose(result.area[index], single.area, rtol=1e-12)
        np.testing.assert_allclose(result.ood_share[index], 0.25, rtol=1e-12)


def test_areas_state_their_mix():
    score, error, is_ood = random_sample(4)
    as_it_is = scod_aurc(score, error, is_ood)
    np.testing.assert_allclose(as_it_is.area, aurc(score, error | is_ood), rtol=1e-12)
    np.testing.assert_allclose(as_it_is.ood_share, is_ood.mean())
    half = scod_aurc(score, error, is_ood, "torch_uncertainty", ood_cost=0.75, id_cost=0.25, ood_share=0.5)
    loss = scod_loss(error, is_ood, 0.75, 0.25)
    expected = aurc(score, loss, "torch_uncertainty", weight=mixture_weight(is_ood, 0.5))
    assert half.area == expected
    np.testing.assert_allclose(half.ood_share, 0.5)


@given(mixed_samples(max_size=15))
@reproducible
def test_without_errors_it_is_ood_detection(sample):
    score, error, is_ood = sample
    loss = scod_loss(np.zeros_like(error), is_ood)
    np.testing.assert_allclose(failure_auroc(score, loss), auroc(score, ~is_ood), rtol=1e-12)


@given(mixed_samples(max_size=15))
@reproducible
def test_without_ood_inputs_it_is_selective_classification(sample):
    score, error, is_ood = sample
    none = np.zeros_like(is_ood)
    for of_scod, of_errors in zip(
        scod_curve(score, error, none, ood_cost=7), risk_coverage_curve(score, error), strict=True
    ):
        np.testing.assert_array_equal(of_scod, of_errors)


@given(mixed_samples(max_size=15))
@reproducible
def test_the_joint_risk_grows_with_each_cost_in_proportion(sample):
    of_id, of_ood, both = (
        scod_curve(*sample, id_cost=a, ood_cost=b).risk for a, b in ((1.0, 0.0), (0.0, 1.0), (0.3, 2.5))
    )
    np.testing.assert_allclose(both, 0.3 * of_id + 2.5 * of_ood, rtol=1e-12, atol=1e-15)


def test_losses_of_ood_inputs_are_not_looked_at():
    is_ood = np.array([False, True, True])
    np.testing.assert_array_equal(scod_loss(np.array([0.5, np.nan, -1.0]), is_ood, 0.75, 0.5), [0.25, 0.75, 0.75])


@pytest.mark.parametrize("dtype", [bool, np.int8, np.uint8, np.int64])
@pytest.mark.parametrize("xp", [np, jnp])
def test_errors_at_cost_1_stay_errors(xp, dtype):
    loss = scod_loss(xp.asarray(np.array([0, 1, 0]).astype(dtype)), xp.asarray([0, 0, 1]))
    assert loss.dtype == (np.int64 if xp is np else jnp.int32)  # so that metrics of errors take it
    assert loss.tolist() == [0, 1, 1]
    large = scod_loss(xp.asarray(np.array([0, 1, 0]).astype(dtype)), xp.asarray([0, 0, 1]), 1000, 300)
    assert large.tolist() == [0, 300, 1000]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_costs_keep_their_digits_beside_narrow_losses(dtype):
    loss = np.array([0.5, 1, 0], dtype)
    np.testing.assert_array_equal(scod_loss(loss, np.array([0, 0, 1]), 0.1, 0.3), [0.15, 0.3, 0.1])
    assert scod_loss(jnp.asarray(loss), jnp.array([0, 0, 1]), 0.1, 0.3).dtype == jnp.float32


@pytest.mark.parametrize("options", [{}, {"ood_cost": 0.75, "id_cost": 0.25, "ood_share": 0.3}])
def test_devices_agree_with_the_host(device, options):
    area, joint_curve = (functools.partial(function, **options) for function in (scod_aurc, scod_curve))
    if device is jnp:
        area, joint_curve = jax.jit(area), jax.jit(joint_curve)
    for seed in range(2):
        score, error, is_ood = random_sample(seed)
        where = np.random.default_rng(seed).random(40) < 0.8
        arrays = [device.asarray(array) for array in (score.astype(np.float32), error, is_ood)]
        value = area(*arrays, where=device.asarray(where))
        expected = scod_aurc(score, error, is_ood, where=where, **options)
        np.testing.assert_allclose(float(value.area), expected.area, rtol=2e-6)
        np.testing.assert_allclose(float(value.ood_share), expected.ood_share, rtol=1e-6)
        curve, exact = joint_curve(*arrays), scod_curve(score, error, is_ood, **options)
        np.testing.assert_allclose(np.asarray(curve.risk), exact.risk, rtol=2e-5, atol=1e-7)
        np.testing.assert_allclose(np.asarray(curve.coverage), exact.coverage, rtol=2e-6)


def test_areas_are_mapped_and_compiled():
    samples = [np.stack(arrays) for arrays in zip(*map(random_sample, range(3)), strict=True)]
    area = jax.jit(jax.vmap(lambda *sample: scod_aurc(*sample, ood_share=0.25, ood_cost=0.75)))
    values = area(*map(jnp.asarray, samples))
    expected = [scod_aurc(*sample, ood_share=0.25, ood_cost=0.75).area for sample in zip(*samples, strict=True)]
    np.testing.assert_allclose(values.area, expected, rtol=2e-6)


@pytest.mark.parametrize("part", [None, 0.3])
def test_what_is_left_out_may_be_anything(part):
    score, error, is_ood = random_sample(5)
    kept = np.random.default_rng(6).random(40) < 0.7
    holes = np.where(kept, score, np.nan), np.where(kept, error, np.nan), np.where(kept, is_ood, np.nan)
    value = scod_aurc(*holes, ood_share=part, where=kept)
    exact = scod_aurc(score[kept], error[kept], is_ood[kept], ood_share=part)
    np.testing.assert_allclose(value, exact, rtol=1e-12)
    curve = scod_curve(*holes, ood_share=part, where=kept, ties="collapse")
    exact = scod_curve(score[kept], error[kept], is_ood[kept], ood_share=part, ties="collapse")
    np.testing.assert_allclose(curve.risk, exact.risk, rtol=1e-12)
    if part:
        weight = mixture_weight(holes[2], part, where=kept)
        np.testing.assert_array_equal(weight[~kept], 0)
        np.testing.assert_allclose(weight[kept], mixture_weight(is_ood[kept], part), rtol=1e-15)


def test_operating_points_follow_from_loss_and_weight():
    score, error, is_ood = random_sample(7)
    loss, weight = scod_loss(error, is_ood), mixture_weight(is_ood, 0.5)
    curve = scod_curve(score, error, is_ood, ood_share=0.5, ties="collapse")
    best = curve.coverage[curve.risk <= 0.5].max(initial=0)
    np.testing.assert_allclose(coverage_at_risk(score, loss, 0.5, weight=weight), best, rtol=1e-12)
    np.testing.assert_allclose(risk_at_coverage(score, loss, 1, weight=weight), curve.risk[-1], rtol=1e-12)


def test_a_missing_kind_on_devices_makes_everything_nan():
    score, error, is_ood = jnp.arange(4.0), jnp.array([0, 1, 0, 1]), jnp.zeros(4, bool)
    assert jnp.isnan(mixture_weight(is_ood, 0.5)).all()
    assert jnp.isnan(mixture_weight(~is_ood, 0.5)).all()
    area, curve = (jax.jit(functools.partial(of, ood_share=0.5)) for of in (scod_aurc, scod_curve))
    assert jnp.isnan(curve(score, error, is_ood).risk).all()
    assert jnp.isnan(area(score, error, is_ood).area)
    np.testing.assert_array_equal(mixture_weight(is_ood, 0), 1)


@pytest.mark.parametrize("cost", [-0.1, math.inf, math.nan])
def test_costs_that_are_no_costs_are_refused(cost):
    with pytest.raises(ValueError, match="ood_cost must be finite and ≥ 0"):
        scod_loss(np.zeros(2), np.zeros(2, bool), cost)
    with pytest.raises(ValueError, match="id_cost must be finite and ≥ 0"):
        scod_curve(np.zeros(2), np.zeros(2), np.zeros(2, bool), id_cost=cost)


@pytest.mark.parametrize("part", [-0.1, 1.5, "2"])
def test_shares_outside_the_unit_interval_are_refused(part):
    with pytest.raises(ValueError, match=r"ood_share must lie in \[0, 1\]"):
        mixture_weight(np.array([True, False]), part)


def test_shapes_and_labels_are_refused():
    with pytest.raises(ValueError, match=r"loss and is_ood must both be \[n\]; they are \(3,\) and \(2,\)"):
        scod_loss(np.zeros(3), np.zeros(2, bool))
    with pytest.raises(ValueError, match="is_ood must be 0/1"):
        scod_loss(np.zeros(2), np.array([0, 0.5]))
    with pytest.raises(ValueError, match="is_ood must be 0/1"):
        mixture_weight(jnp.array([0.0, 1.0]), 0.5)
    with pytest.raises(ValueError, match="weight must have n = 2 entries last"):
        mixture_weight(np.array([0, 1]), 0.5, weight=np.ones(3))
    with pytest.raises(ValueError, match="where must have n = 2 entries last"):
        mixture_weight(np.array([0, 1]), 0.5, where=np.ones((2, 1), bool))
