"""Sorting, tie blocks, weights, and differences of harmonic numbers."""

import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from brute_force import SCORES, SOFT_LOSSES, reproducible, samples
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import digamma, gammaln

from sc_jax import ops
from sc_jax.ops import ranking
from sc_jax.ops.ranking import harmonic_rest, mean_log_ratio


@given(samples(max_size=20))
@reproducible
def test_blocks_are_those_of_equal_score(sample):
    score, error = sample
    ranking = ops.rank(score, error)
    blocks = [s for s in np.unique(score)[::-1] if error[score == s].any()]  # those without loss are left out
    assert ranking.before.tolist() == [(score > s).sum() for s in blocks]
    assert ranking.weight.tolist() == [(score == s).sum() for s in blocks]
    assert ranking.loss_before.tolist() == [error[score > s].sum() for s in blocks]
    assert ranking.loss.tolist() == ranking.block_loss.tolist() == [error[score == s].sum() for s in blocks]
    assert (ranking.total_weight, ranking.total_loss) == (len(score), error.sum())


@given(samples(max_size=20, min_size=20), st.integers(0, 2**32))
@reproducible
def test_blocks_on_devices_are_those_of_the_host(sample, seed):
    score, error = sample
    weight = np.random.default_rng(seed).integers(0, 4, len(score))
    device = ops.rank(jnp.asarray(score), jnp.asarray(error), jnp.asarray(weight))
    descending = np.argsort(-score, kind="stable")
    above = score > score[descending, None]
    tied = score == score[descending, None]
    np.testing.assert_array_equal(device.before, above @ weight)
    np.testing.assert_array_equal(device.weight, tied @ weight)
    np.testing.assert_array_equal(device.loss_before, above @ (weight * error))
    np.testing.assert_array_equal(device.block_loss, tied @ (weight * error))
    np.testing.assert_array_equal(device.loss, (weight * error)[descending])
    assert (int(device.total_weight), int(device.total_loss)) == (weight.sum(), weight @ error)


METRICS = {
    "aurc": ops.aurc,
    "augrc": ops.augrc,
    "e_aurc": ops.e_aurc,
    "naurc": ops.naurc,
    "failure_auroc": ops.failure_auroc,
    "coverage_at_risk": lambda score, loss, weight=None: ops.coverage_at_risk(score, loss, 0.3, weight=weight),
    "risk_at_coverage": lambda score, loss, weight=None: ops.risk_at_coverage(score, loss, 0.7, weight=weight),
    "optimal_aurc": lambda score, loss, weight=None: ops.optimal_aurc(loss, weight=weight),
}
each_metric = pytest.mark.parametrize("name", METRICS)


def weighted_samples(losses=(0, 1)):
    """(score [n], loss [n], weight [2, 3, n]) with weights 0 among them, but no row of zeros."""
    return samples(losses, max_size=8).flatmap(
        lambda sample: st.lists(
            st.lists(st.integers(0, 5), min_size=len(sample[0]), max_size=len(sample[0])).filter(any),
            min_size=6,
            max_size=6,
        ).map(lambda rows: (*sample, np.array(rows).reshape(2, 3, -1)))
    )


@each_metric
@given(case=weighted_samples())
@reproducible
def test_weight_is_repeated_rows(name, case):
    score, error, weight = case
    values = METRICS[name](score, error, weight=weight)
    assert values.shape == (2, 3)
    for index in np.ndindex(2, 3):
        repeated = METRICS[name](np.repeat(score, weight[index]), np.repeat(error, weight[index]))
        np.testing.assert_allclose(values[index], repeated, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("name", [name for name in METRICS if name != "failure_auroc"])
@given(case=weighted_samples(SOFT_LOSSES))
@reproducible
def test_weight_is_repeated_rows_for_soft_losses(name, case):
    score, loss, weight = case
    values = METRICS[name](score, loss, weight=weight)
    for index in np.ndindex(2, 3):
        repeated = METRICS[name](np.repeat(score, weight[index]), np.repeat(loss, weight[index]))
        np.testing.assert_allclose(values[index], repeated, rtol=1e-11, atol=1e-13)


def every_metric(score, loss, weight=None):
    return {name: metric(score, loss, weight=weight) for name, metric in METRICS.items()}


every_metric_on_devices = jax.jit(every_metric)


def test_weight_is_repeated_rows_on_devices():
    rng = np.random.default_rng(0)
    score, error = rng.integers(0, 6, 30) / 4, rng.integers(0, 2, 30)
    weight = rng.integers(0, 5, (2, 3, 30))
    device = [jnp.asarray(array) for array in (score, error, weight)]
    values = every_metric_on_devices(*device)
    mapped = jax.jit(jax.vmap(jax.vmap(every_metric, (None, None, 0)), (None, None, 0)))(*device)
    for index in np.ndindex(2, 3):
        repeated = every_metric(np.repeat(score, weight[index]), np.repeat(error, weight[index]))
        for name, value in repeated.items():
            np.testing.assert_allclose(values[name][index], value, rtol=2e-6, err_msg=name)
            np.testing.assert_allclose(mapped[name][index], value, rtol=2e-6, err_msg=name)


@pytest.mark.parametrize("function", [every_metric, every_metric_on_devices])
@pytest.mark.parametrize("levels", [1, 3, 600])
def test_sums_of_narrow_counts_do_not_overflow(function, levels):
    xp = np if function is every_metric else jnp
    rng = np.random.default_rng(levels)
    score, error = rng.integers(0, levels, 600).astype(np.float32), rng.random(600) < 0.4
    weight = rng.integers(0, 6, 600).astype(np.uint8)
    values = function(xp.asarray(score), xp.asarray(error), xp.asarray(weight))
    for name, repeated in every_metric(np.repeat(score, weight), np.repeat(error, weight)).items():
        np.testing.assert_allclose(values[name], repeated, rtol=2e-6, err_msg=name)


@each_metric
@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int32, np.int64, np.uint64, np.float32, np.float64])
def test_whole_weights_of_any_dtype_are_counts(name, dtype):
    score, error = np.array([3.0, 2.0, 2.0, 1.0]), np.array([0, 1, 0, 1])
    weight = np.array([[1, 2, 0, 3], [2, 1, 1, 1]])
    expected = METRICS[name](score, error, weight=weight)
    np.testing.assert_array_equal(METRICS[name](score, error, weight=weight.astype(dtype)), expected)


@pytest.mark.parametrize("dtype", [None, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("weight", [[1, -1, 1], [1.0, -1.0, 2.0], [1.0, np.nan, 1.0], [1, np.inf, 1]])
def test_weights_that_are_no_weights_are_refused(weight, dtype):
    with pytest.raises(ValueError, match="weights must be finite and ≥ 0"):
        ops.rank(np.array([3.0, 2.0, 1.0]), np.array([0, 1, 0]), np.array(weight, dtype))


def risks_at_real_weight(score, loss, weight):
    """Ruling: after weight K and loss C, a block of weight w and mean loss e adds e·w + (C − e·K)(H_{K+w} − H_K) to Σ risks."""
    total, above, before = 0.0, 0.0, 0.0
    for s in np.unique(score)[::-1]:
        w = weight[score == s].sum()
        if w > 0:
            e = (weight * loss)[score == s].sum() / w
            total += e * w + (before - e * above) * (digamma(above + w + 1) - digamma(above + 1))
            above, before = above + w, before + e * w
    return total / above


REAL = (0.0, 0.25, 0.5, 1.0, 1.75, 40.0)


@given(
    case=samples(SOFT_LOSSES, max_size=8).flatmap(
        lambda sample: (
            st.lists(st.sampled_from(REAL), min_size=len(sample[0]), max_size=len(sample[0]))
            .filter(any)
            .map(lambda row: (*sample, np.array(row)))
        )
    )
)
@reproducible
def test_real_weights_extend_harmonic_numbers_by_digamma(case):
    score, loss, weight = case
    value = ops.aurc(score, loss, weight=weight)
    np.testing.assert_allclose(value, risks_at_real_weight(score, loss, weight), rtol=1e-11, atol=1e-11)


def test_real_weights_on_devices_extend_harmonic_numbers_by_digamma():
    rng = np.random.default_rng(5)
    score, loss = rng.choice(np.array(SCORES), (40, 8)), rng.choice(np.array(SOFT_LOSSES), (40, 8))
    weight = rng.choice(np.array(REAL), (40, 8))
    weight[:, 0] += weight.sum(axis=1) == 0
    value = jax.jit(jax.vmap(lambda s, e, w: ops.aurc(s, e, weight=w)))(*map(jnp.asarray, (score, loss, weight)))
    exact = [risks_at_real_weight(*case) for case in zip(score, loss, weight, strict=True)]
    np.testing.assert_allclose(value, exact, rtol=2e-5, atol=2e-6)


def test_real_weights_tend_to_counts():
    rng = np.random.default_rng(3)
    score, error, weight = rng.integers(0, 9, 40) / 4, rng.integers(0, 2, 40), rng.integers(0, 4, 40)
    exact = every_metric(score, error, weight)
    near = every_metric(score, error, weight * (1 + 1e-9))
    device = every_metric_on_devices(jnp.asarray(score), jnp.asarray(error), jnp.asarray(weight, float))
    for name in set(exact) - {"coverage_at_risk", "risk_at_coverage"}:  # these may jump
        np.testing.assert_allclose(near[name], exact[name], rtol=1e-6, err_msg=name)
    for name in exact:
        np.testing.assert_allclose(device[name], exact[name], rtol=2e-6, err_msg=name)


def test_weights_too_large_to_count_do_not_wrap_around():
    score, error = np.array([3.0, 2.0, 2.0, 1.0]), np.array([0, 1, 0, 1])
    weight = np.array([1, 2, 0, 3])
    unit = ops.augrc(score, error, weight=weight)  # it does not depend on the unit of the weights
    for scale in (2.0**45, 2.0**70, 1e300):
        np.testing.assert_allclose(ops.augrc(score, error, weight=weight * scale), unit, rtol=1e-12)
    limit = ops.aurc(score, error, weight=weight * 10**9)
    np.testing.assert_allclose(ops.aurc(score, error, weight=weight * 2.0**70), limit, rtol=1e-8)


@pytest.mark.parametrize("xp", [np, jnp])
def test_shapes_are_refused(xp):
    def refused(score, loss, weight=None, where=None):
        weight, where = (None if shape is None else xp.ones(shape) for shape in (weight, where))
        with pytest.raises(ValueError, match=r"must (both be \[|be \[|have n = )") as refusal:
            ops.rank(xp.zeros(score), xp.zeros(loss), weight, where)
        return str(refusal.value)

    assert refused(3, 2) == "score and loss must both be [n]; they are (3,) and (2,)"
    assert "(3, 1)" in refused((3, 1), (3, 1))
    assert "()" in refused((), ())
    assert "n = 3 entries last; it is (2,)" in refused(3, 3, 2)
    assert "n = 3 entries last; it is (3, 2)" in refused(3, 3, (3, 2))
    assert "n = 3 entries last; it is ()" in refused(3, 3, ())
    assert "where must be [n] = (3,); it is (2,)" in refused(3, 3, None, 2)
    assert "where must be [n] = (3,); it is (3, 3)" in refused(3, 3, None, (3, 3))


@pytest.mark.parametrize("xp", [np, jnp])
def test_no_sample_is_refused(xp):
    with pytest.raises(ValueError, match="empty: a risk needs at least one example"):
        ops.rank(xp.zeros(0), xp.zeros(0))


def test_nan_scores_are_refused_with_their_number_and_place():
    with pytest.raises(ValueError, match=r"2 scores are NaN \(first at 1\)"):
        ops.rank(np.array([0.1, np.nan, 0.3, np.nan]), np.zeros(4))


@pytest.mark.parametrize("loss", [[-1, 0], [-0.5, 0.0], [np.nan, 0.0], [np.inf, 0.0]])
def test_losses_that_are_no_losses_are_refused(loss):
    with pytest.raises(ValueError, match="losses must be finite and ≥ 0"):
        ops.rank(np.arange(2.0), np.array(loss))


def test_nan_score_on_devices_makes_metrics_nan():
    score, error = jnp.array([0.3, jnp.nan, 0.2, 0.1, 0.0]), jnp.array([0, 1, 0, 1, 0])
    known = every_metric_on_devices(jnp.where(jnp.isnan(score), 0.5, score), error)
    assert not any(jnp.isnan(value) for value in known.values())
    unknown = every_metric_on_devices(score, error)
    del unknown["optimal_aurc"]  # it does not see the score
    assert all(jnp.isnan(value) for value in unknown.values())


def test_nan_score_on_devices_makes_curve_and_summary_nan():
    score, error = jnp.array([0.3, jnp.nan, 0.2, 0.1, 0.0]), jnp.array([0, 1, 0, 1, 0])
    curve = jax.jit(ops.risk_coverage_curve)(score, error)
    assert jnp.isnan(curve.risk).all()
    assert jnp.isnan(curve.generalized_risk).all()
    assert all(jnp.isnan(value) for value in jax.jit(ops.summarise)(score, error).values())


@pytest.mark.parametrize(
    "dtype", [np.float16, np.float32, ml_dtypes.bfloat16, np.int8, np.uint8, np.int32, np.uint32, bool]
)
@pytest.mark.parametrize("xp", [np, jnp])
def test_scores_of_any_dtype_rank_as_their_values(xp, dtype):
    values = np.array([0, 1]) if dtype is bool else np.array([0, 1, 2, 3, 100])
    score = np.tile(values, 4).astype(dtype)
    error = np.random.default_rng(1).random(len(score)) < 0.5
    value = jax.jit(ops.augrc)(xp.asarray(score), xp.asarray(error)) if xp is jnp else ops.augrc(score, error)
    np.testing.assert_allclose(value, ops.augrc(score.astype(np.float64), error), rtol=1e-6)


@pytest.mark.parametrize("xp", [np, jnp])
@pytest.mark.parametrize("dtype", [np.int32, np.uint32])
def test_integer_scores_are_told_apart_beyond_the_floats(xp, dtype):
    info = np.iinfo(dtype)
    score = np.array([info.min, info.min + 1, 2**24, 2**24 + 1, info.max - 1, info.max], dtype)
    error = np.array([1, 0, 1, 0, 1, 0])
    assert float(ops.failure_auroc(xp.asarray(score), xp.asarray(error))) == pytest.approx(6 / 9)


@pytest.mark.parametrize("xp", [np, jnp])
def test_signed_zeros_tie(xp):
    for score in ([0.0, -0.0], [-0.0, 0.0]):
        np.testing.assert_array_equal(ops.rank(xp.asarray(score), xp.asarray([1, 1])).weight, 2)
    assert -0.0 in SCORES  # so every other test of ties holds them too


@pytest.mark.parametrize("dtype", [bool, np.int8, np.uint8, np.int64, np.float16, np.float32, np.float64])
def test_errors_of_any_dtype_are_counted(dtype):
    score, error = np.arange(300.0) // 2, np.random.default_rng(2).random(300) < 0.9
    assert ops.rank(score, error.astype(dtype)).loss.dtype == np.int64
    assert ops.aurc(score, error.astype(dtype)) == ops.aurc(score, error)


def harmonic(start: int, stop: int) -> float:
    return float(sum((Fraction(1, j) for j in range(start + 1, stop + 1)), Fraction(0)))


@given(st.integers(0, 300), st.integers(0, 60))
@reproducible
def test_harmonic_difference_is_the_sum_of_fractions(start, length):
    value = ops.harmonic_difference(np.asarray(start), np.asarray(start + length))
    np.testing.assert_allclose(value, harmonic(start, start + length), rtol=1e-14)


@pytest.mark.parametrize("start", [62, 63, 64, 65, 10**3, 10**6, 10**9, 10**12])
@pytest.mark.parametrize("length", [1, 2, 7])
def test_harmonic_difference_of_close_large_arguments(start, length):
    value = ops.harmonic_difference(np.asarray(start), np.asarray(start + length))
    np.testing.assert_allclose(value, harmonic(start, start + length), rtol=1e-13)


@given(st.integers(0, 300), st.integers(1, 60))
@reproducible
def test_harmonic_rest_is_the_mean_of_fractions(start, length):
    exact = sum(Fraction(j, start + j) for j in range(1, length + 1)) / length
    np.testing.assert_allclose(harmonic_rest(np.asarray(start), np.asarray(length)), float(exact), rtol=1e-12)


def test_harmonic_rest_of_counts_is_harmonic_rest():
    start, length = (axis.ravel() for axis in np.meshgrid([0, 1, 5, 100, 10**6], np.arange(1, 30)))
    np.testing.assert_allclose(ranking.harmonic_rest_of_counts(start, length), harmonic_rest(start, length), rtol=1e-12)


def test_harmonic_rest_keeps_its_digits_in_float32():
    start = np.concatenate([np.arange(130), 10 ** np.arange(3, 7)])
    for length in (1, 3, 50, 10_000):
        value = harmonic_rest(jnp.asarray(start), jnp.asarray(length).reshape(1))
        assert value.dtype == jnp.float32
        np.testing.assert_allclose(value, harmonic_rest(start, np.asarray([length])), rtol=1e-6)
    exact = sum(Fraction(j, 10**6 + j) for j in range(1, 51)) / 50
    np.testing.assert_allclose(harmonic_rest(np.asarray(10**6), np.asarray(50)), float(exact), rtol=1e-14)


def test_harmonic_difference_is_zero_between_equals_and_additive():
    points = np.array([0, 1, 63, 64, 10_000, 10**7])
    np.testing.assert_array_equal(ops.harmonic_difference(points, points), 0)
    steps = ops.harmonic_difference(points[:-1], points[1:])
    np.testing.assert_allclose(steps.sum(), ops.harmonic_difference(points[0], points[-1]), rtol=1e-14)


def test_harmonic_difference_in_float32():
    start = np.concatenate([np.arange(130), 10 ** np.arange(3, 8)])
    for length in (0, 1, 3, 1000):
        value = ops.harmonic_difference(jnp.asarray(start), jnp.asarray(start + length))
        assert value.dtype == jnp.float32
        np.testing.assert_allclose(value, ops.harmonic_difference(start, start + length), rtol=5e-7)


@given(st.integers(0, 300), st.integers(1, 60), st.integers(0, 50))
@reproducible
def test_mean_log_ratio_is_the_mean_of_logarithms(start, length, rest):
    n = start + length + rest
    exact = math.fsum(math.log1p((n + 1 - k) / k) for k in range(start + 1, start + length + 1)) / length
    for kind in (int, float):
        value = mean_log_ratio(*(np.asarray(kind(count)) for count in (start, length, n)))
        np.testing.assert_allclose(value, exact, rtol=1e-11)
    assert mean_log_ratio(np.asarray(start), np.asarray(0), np.asarray(n)) == 0


def test_mean_log_ratio_of_real_lengths_is_that_of_gamma_functions():
    for start, length, n in ((0.0, 0.3, 2.0), (2.5, 1.75, 7.0), (100.5, 0.25, 200.0), (0.0, 40.25, 40.25)):
        exact = np.log(n + 1) - (gammaln(start + length + 1) - gammaln(start + 1)) / length
        value = mean_log_ratio(*map(np.asarray, (start, length, n)))
        np.testing.assert_allclose(value, exact, rtol=1e-10)


def test_mean_log_ratio_keeps_its_digits_in_float32():
    n = 10**6
    start, length = np.meshgrid(n - 10 ** np.arange(1, 7), [1, 2, 7, 10], indexing="ij")
    host = mean_log_ratio(start, length, np.full(start.shape, n))  # down to 1e-6
    device = mean_log_ratio(jnp.asarray(start), jnp.asarray(length), jnp.full(start.shape, n))
    assert device.dtype == jnp.float32
    np.testing.assert_allclose(device, host, rtol=2e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@given(
    scores=st.lists(
        st.one_of(st.floats(width=32), st.sampled_from(SCORES)).filter(lambda s: s == s), min_size=1, max_size=12
    ),
    seed=st.integers(0, 2**32),
)
@reproducible
def test_packed_keys_sort_as_the_scores_do(dtype, scores, seed):
    score = np.array(scores, dtype)
    error = np.random.default_rng(seed).random(len(score)) < 0.5
    packed, plain = ops.rank(score, error), ops.rank(score.astype(np.longdouble), error)
    for one, other in zip(packed, plain, strict=True):
        np.testing.assert_array_equal(one, other)


def test_packed_keys_are_the_same_in_parts(monkeypatch):
    rng = np.random.default_rng(6)
    score, error = np.round(rng.normal(size=1000), 1), rng.random(1000) < 0.3
    whole = ops.rank(score, error)
    monkeypatch.setattr(ranking, "_IN_CACHE", 7)
    for one, other in zip(ops.rank(score, error), whole, strict=True):
        np.testing.assert_array_equal(one, other)
