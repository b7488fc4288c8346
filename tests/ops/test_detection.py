"""Detection: AUROC, average precision, FPR at a TPR and DeLong's method against their definitions."""

import itertools
import math
from fractions import Fraction
from statistics import NormalDist

import brute_force
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from brute_force import SCORES, orders, reproducible, samples
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from sc_jax import ops
from sc_jax.ops.detection import (
    as_labels,
    auroc,
    average_precision,
    delong,
    delong_interval,
    fpr_at_tpr,
    ood_fpr_at_tpr,
)

TPRS = (0.001, "0.25", Fraction(1, 3), 0.5, 2 / 3, (19, 20), 0.95, 1)
METRICS = {
    "failure_auroc": ops.failure_auroc,
    "auroc": auroc,
    "average_precision": average_precision,
    "average_precision_collapse": lambda *a, **k: average_precision(*a, ties="collapse", **k),
    "fpr_at_tpr": lambda *a, **k: fpr_at_tpr(*a, 0.8, **k),
    "ood_fpr_at_tpr_of_id": lambda *a, **k: ood_fpr_at_tpr(*a, 0.8, **k),
    "ood_fpr_at_tpr_of_ood": lambda *a, **k: ood_fpr_at_tpr(*a, 0.8, "ood", **k),
}
every_metric = pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS)


def every_value(score, label, **options):
    """Name → value of each metric."""
    return {name: metric(score, label, **options) for name, metric in METRICS.items()}


COMPILED = {every_value: jax.jit(every_value), delong: jax.jit(delong), delong_interval: jax.jit(delong_interval)}


def on(xp, function):
    """The function as it is used there: on JAX compiled, all metrics in one program."""
    return COMPILED[function] if xp.__name__ == "jax.numpy" else function


def assert_same(values, expected, rtol=1e-12):
    assert values.keys() == expected.keys()
    for name, value in values.items():
        np.testing.assert_allclose(np.asarray(value), expected[name], rtol=rtol, atol=1e-15, err_msg=name)


@pytest.fixture(params=["jax.numpy", "torch", "array_api_strict"])
def device(request):
    return pytest.importorskip(request.param)


def close(value, exact, rtol=1e-12):
    np.testing.assert_allclose(value, float(exact), rtol=rtol, atol=1e-15)


def random_sample(seed, n=40, levels=7):
    rng = np.random.default_rng(seed)
    return rng.integers(0, levels, n) / 4, rng.random(n) < 0.4


# AUROC


@given(samples(max_size=12))
@reproducible
def test_failure_auroc_counts_pairs(sample):
    np.testing.assert_allclose(ops.failure_auroc(*sample), float(brute_force.failure_auroc(*sample)), rtol=1e-12)


@pytest.mark.parametrize("levels", [3, 20, 10**6])
def test_failure_auroc_equals_scikit_learn(levels):
    rng = np.random.default_rng(levels)
    score, error = rng.integers(0, levels, 2000), rng.random(2000) < 0.2
    expected = roc_auc_score(~error, score)
    np.testing.assert_allclose(ops.failure_auroc(score, error), expected, rtol=1e-12)
    np.testing.assert_allclose(jax.jit(ops.failure_auroc)(jnp.asarray(score), jnp.asarray(error)), expected, rtol=1e-6)


def test_failure_auroc_on_devices_counts_pairs():
    rng = np.random.default_rng(0)
    score, error = rng.choice(np.array(SCORES, np.float32), (40, 6)), rng.integers(0, 2, (40, 6))
    values = jax.jit(jax.vmap(ops.failure_auroc))(jnp.asarray(score), jnp.asarray(error))
    expected = [float(brute_force.failure_auroc(*pair)) for pair in zip(score, error, strict=True)]
    np.testing.assert_allclose(values, expected, rtol=1e-6)


@given(samples(max_size=20))
@reproducible
def test_reversed_scores_have_the_complement(sample):
    score, error = sample
    value = ops.failure_auroc(score, error) + ops.failure_auroc(-score, error)
    assert np.isnan(value) or value == pytest.approx(1)


@given(samples(max_size=20))
@reproducible
def test_auroc_is_failure_auroc_with_the_right_ones_as_positives(sample):
    score, error = sample
    close(auroc(score, error == 0), ops.failure_auroc(score, error))


@pytest.mark.parametrize("metric", [auroc, lambda s, p, weight: ops.failure_auroc(s, p == 0, weight=weight)])
def test_auroc_of_real_weights_weighs_pairs(metric):
    score, positive = random_sample(1)
    weight = np.random.default_rng(2).random((3, len(score))) / 50  # each class weighs less than one row
    for row, value in zip(weight, metric(score, positive, weight=weight), strict=True):
        win = (score[:, None] > score) + (score[:, None] == score) / 2
        pairs = np.outer(row * positive, row * ~positive)
        close(value, (win * pairs).sum() / pairs.sum())
        close(value, roc_auc_score(positive, score, sample_weight=row))


# Average precision


def precision_at_positives(positive):
    """Mean over the positives, in order, of the share of positives down to each."""
    found = list(itertools.accumulate(positive))
    return sum(Fraction(found[i], i + 1) for i, hit in enumerate(positive) if hit) / found[-1]


def expected_average_precision(score, positive):
    if not positive.any():
        return math.nan
    values = [precision_at_positives([int(positive[i]) for i in order]) for order in orders(score.tolist())]
    return sum(values) / len(values)


@given(samples(max_size=7))
@reproducible
def test_average_precision_is_the_expectation_over_tie_orders(sample):
    close(average_precision(*sample), expected_average_precision(*sample))


@pytest.mark.parametrize("positives", range(1, 8))
def test_average_precision_of_a_constant_score_is_the_mean_over_all_orders(positives):
    positive = np.arange(7) < positives
    values = [precision_at_positives(order) for order in set(itertools.permutations(positive.astype(int).tolist()))]
    close(average_precision(np.zeros(7), positive), sum(values) / len(values))


@given(samples(max_size=7), st.lists(st.integers(0, 2), min_size=7, max_size=7))
@reproducible
def test_average_precision_of_counts_is_that_of_repeated_rows(sample, counts):
    score, positive = sample
    count = np.array(counts[: len(score)])
    rows = np.repeat(np.arange(len(score)), count)
    for ties in ("expect", "collapse"):
        expected = average_precision(score[rows], positive[rows], ties) if len(rows) else math.nan
        close(average_precision(score, positive, ties, weight=count), expected)
        close(average_precision(score, positive, ties, weight=count.astype(float)), expected)


@pytest.mark.parametrize("levels", [3, 20, 10**6])
def test_collapsed_average_precision_equals_scikit_learn(levels):
    rng = np.random.default_rng(levels)
    score, positive, weight = rng.integers(0, levels, 2000), rng.random(2000) < 0.2, rng.random(2000)
    close(average_precision(score, positive, "collapse"), average_precision_score(positive, score))
    expected = average_precision_score(positive, score, sample_weight=weight)
    close(average_precision(score, positive, "collapse", weight=weight), expected)


def test_without_ties_there_is_one_average_precision():
    rng = np.random.default_rng(0)
    score, positive = rng.permutation(5000), rng.random(5000) < 0.1
    close(average_precision(score, positive), average_precision_score(positive, score))


@pytest.mark.parametrize("n", [1000, 100_000])
def test_average_precision_of_one_large_block_keeps_its_digits_in_float32(n):
    for positives in (1, n // 2, n - 1):
        score, positive = np.zeros(n, np.float32), np.arange(n) < positives
        value = jax.jit(average_precision)(jnp.asarray(score), jnp.asarray(positive))
        assert value.dtype == jnp.float32
        # (1/n) Σ_i (1 + a(i − 1))/i, a = (p − 1)/(n − 1)
        slope, i = (positives - 1) / (n - 1), np.arange(1, n + 1)
        exact = math.fsum((1 + slope * (i - 1)) / i) / n
        close(average_precision(score, positive), exact)
        close(value, exact, rtol=2e-6)


def test_average_precision_refuses_what_it_does_not_define():
    score, positive = np.array([1.0, 1.0]), np.array([1, 0])
    with pytest.raises(ValueError, match="real weights need ties='collapse'"):
        average_precision(score, positive, weight=np.array([0.5, 1]))
    with pytest.raises(ValueError, match="real weights need ties='collapse'"):
        average_precision(jnp.asarray(score), jnp.asarray(positive), weight=jnp.ones(2))
    with pytest.raises(ValueError, match="there are 'expect' and 'collapse'"):
        average_precision(score, positive, "none")
    left_out = np.array([0.5, 1]), np.array([False, True])
    assert math.isnan(average_precision(score, positive, weight=left_out[0], where=left_out[1]))


# FPR at a TPR


def brute_fpr_at_tpr(score, positive, tpr):
    wanted = Fraction(*tpr) if isinstance(tpr, tuple) else Fraction(str(tpr))
    score, positive = score.tolist(), [bool(value) for value in positive]
    m = sum(positive)
    if m in (0, len(positive)):
        return math.nan
    rates = []
    for threshold in set(score):
        taken = [hit for value, hit in zip(score, positive, strict=True) if value >= threshold]
        if Fraction(sum(taken), m) >= wanted:
            rates.append(Fraction(len(taken) - sum(taken), len(positive) - m))
    return float(min(rates))


@pytest.mark.parametrize("tpr", TPRS)
@given(sample=samples(max_size=12))
@reproducible
def test_fpr_at_tpr_by_definition(tpr, sample):
    np.testing.assert_equal(float(fpr_at_tpr(*sample, tpr)), brute_fpr_at_tpr(*sample, tpr))


@pytest.mark.parametrize("tpr", TPRS)
@given(sample=samples(max_size=12))
@reproducible
def test_ood_fpr_at_tpr_by_definition(tpr, sample):
    score, is_ood = sample
    np.testing.assert_equal(float(ood_fpr_at_tpr(score, is_ood, tpr)), brute_fpr_at_tpr(score, is_ood == 0, tpr))
    of_ood = float(ood_fpr_at_tpr(score, is_ood, tpr, positive="ood"))
    np.testing.assert_equal(of_ood, brute_fpr_at_tpr(-score, is_ood, tpr))


@pytest.mark.parametrize("levels", [5, 10**6])
@pytest.mark.parametrize("tpr", [0.8, 0.95])
def test_fpr_at_tpr_is_read_off_the_roc_of_scikit_learn(levels, tpr):
    rng = np.random.default_rng(levels)
    positive = rng.random(3000) < 0.3
    score = np.round((rng.normal(size=3000) + positive) * levels) / levels
    weight = rng.integers(0, 4, 3000)
    fpr, found, _ = roc_curve(positive, score, drop_intermediate=False)
    close(fpr_at_tpr(score, positive, tpr), fpr[found >= tpr].min())
    fpr, found, _ = roc_curve(positive, score, sample_weight=weight, drop_intermediate=False)
    close(fpr_at_tpr(score, positive, tpr, weight=weight), fpr[found >= tpr].min())


@pytest.mark.parametrize("xp", [np, jnp])
def test_every_percentage_of_positives_is_met_exactly(xp):
    score = xp.arange(200)[::-1]
    positive = xp.arange(200) % 2 == 0  # + − + − …: the j-th positive has j − 1 negatives above it
    for percent in range(1, 101) if xp is np else (29, 57):  # many of these err in floats
        assert float(fpr_at_tpr(score, positive, percent / 100)) == pytest.approx((percent - 1) / 100)
        weight = xp.full(200, 0.5)
        assert float(fpr_at_tpr(score, positive, percent / 100, weight=weight)) == pytest.approx((percent - 1) / 100)


def test_real_weights_at_tpr_take_the_first_block_that_reaches_it():
    score, positive = np.array([4, 3, 2, 1]), np.array([1, 0, 1, 0])
    weight = np.array([0.3, 0.2, 0.7, 0.6])
    close(fpr_at_tpr(score, positive, 0.3, weight=weight), 0)
    close(fpr_at_tpr(score, positive, 0.31, weight=weight), 0.25)
    close(ood_fpr_at_tpr(score, positive == 0, 0.75, "ood", weight=weight), 0)
    close(ood_fpr_at_tpr(score, positive == 0, 0.76, "ood", weight=weight), 0.7)


@pytest.mark.parametrize("xp", [np, jnp])
@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int8, np.int32, np.float16, np.float32, ml_dtypes.bfloat16])
def test_any_dtype_of_scores_is_reversed_for_ood_as_positives(xp, dtype):
    values = [0, 1] if dtype is bool else [0, 1, 2, 100]
    if dtype is np.int8:
        values = [-128, -127, 0, 127]
    score = np.tile(np.array(values, dtype), 5)
    is_ood = np.random.default_rng(3).random(len(score)) < 0.5
    value = METRICS["ood_fpr_at_tpr_of_ood"]
    value = float((jax.jit(value) if xp is jnp else value)(xp.asarray(score), xp.asarray(is_ood)))
    assert value == pytest.approx(brute_fpr_at_tpr(-score.astype(float), is_ood, 0.8))


@pytest.mark.parametrize("tpr", [0, -0.1, 1.01, "2"])
def test_rates_outside_the_unit_interval_are_refused(tpr):
    with pytest.raises(ValueError, match=r"tpr must lie in \(0, 1\]"):
        fpr_at_tpr(np.arange(2), np.array([0, 1]), tpr)


def test_unknown_orientations_are_refused():
    with pytest.raises(ValueError, match="there are 'id' and 'ood'"):
        ood_fpr_at_tpr(np.arange(2), np.array([0, 1]), positive="in")


# All of them


def test_devices_agree_with_the_host(device):
    for seed in range(3):
        score, label = random_sample(seed)
        where = np.random.default_rng(seed).random(len(score)) < 0.8
        weight = np.random.default_rng(seed).integers(0, 3, len(score))
        values = on(device, every_value)
        arrays = [device.asarray(array) for array in (score.astype(np.float32), label)]
        assert_same(values(*arrays), every_value(score, label), rtol=1e-6)
        options = {"weight": device.asarray(weight), "where": device.asarray(where)}
        assert_same(values(*arrays, **options), every_value(score, label, weight=weight, where=where), rtol=1e-6)


def test_metrics_are_mapped():
    score, label = (np.stack(arrays) for arrays in zip(*map(random_sample, range(4)), strict=True))
    values = jax.jit(jax.vmap(every_value))(jnp.asarray(score), jnp.asarray(label))
    for i in range(4):
        assert_same({name: value[i] for name, value in values.items()}, every_value(score[i], label[i]), rtol=1e-6)


@pytest.mark.parametrize("xp", [np, jnp])
def test_rows_of_weights_are_resamples(xp):
    score, label = random_sample(5)
    counts = np.random.default_rng(6).multinomial(len(score), np.full(len(score), 1 / len(score)), size=(2, 3))
    values = on(xp, every_value)(xp.asarray(score), xp.asarray(label), weight=xp.asarray(counts))
    for index in np.ndindex(2, 3):
        rows = np.repeat(np.arange(len(score)), counts[index])
        resample = {name: value[index] for name, value in values.items()}
        assert_same(resample, every_value(score[rows], label[rows]), rtol=1e-12 if xp is np else 1e-6)


@pytest.mark.parametrize("xp", [np, jnp])
def test_what_is_left_out_may_be_anything(xp):
    score, label = random_sample(7)
    kept = np.random.default_rng(8).random(len(score)) < 0.7
    holes = xp.asarray(np.where(kept, score, np.nan))
    values = on(xp, every_value)(holes, xp.asarray(label), where=xp.asarray(kept))
    assert_same(values, every_value(score[kept], label[kept]), rtol=1e-12 if xp is np else 1e-6)
    nothing = on(xp, every_value)(holes, xp.asarray(label), where=xp.zeros(len(score), bool))
    assert all(np.isnan(value) for value in nothing.values())


def test_labels_left_out_may_be_anything_on_the_host():
    score, label = random_sample(7)
    kept = np.arange(len(score)) % 5 != 0
    values = every_value(score, np.where(kept, label, np.nan), where=kept)
    assert_same(values, every_value(score[kept], label[kept]))


@every_metric
@given(samples(max_size=20), st.randoms())
@reproducible
def test_the_order_of_the_samples_does_not_matter(metric, sample, random):
    order = random.sample(range(len(sample[0])), len(sample[0]))
    np.testing.assert_array_equal(metric(*sample), metric(sample[0][order], sample[1][order]))


@pytest.mark.parametrize("xp", [np, jnp])
@pytest.mark.parametrize("label", [0, 1])
def test_one_kind_alone_is_not_known_but_for_its_precision(xp, label):
    for name, value in on(xp, every_value)(xp.asarray([0.5, 0.1, 0.5]), xp.full(3, label)).items():
        known = label == 1 and name.startswith("average_precision")
        np.testing.assert_equal(float(value), 1.0 if known else math.nan)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_narrow_scores_count_beyond_their_range(dtype):
    n = 70_000  # more than float16 can count
    score, label = np.tile(np.array([0.0, 0.5, 1.0, 2.0], dtype), n // 4), np.arange(n) % 3 == 0
    expected = every_value(score.astype(np.float64), label)
    assert_same(every_value(score, label), expected)
    if dtype is np.float16:
        assert_same(on(jnp, every_value)(jnp.asarray(score), jnp.asarray(label)), expected, rtol=1e-6)


def test_nan_scores_on_devices_make_metrics_nan():
    score, label = jnp.array([0.3, jnp.nan, 0.2, 0.1]), jnp.array([1, 0, 0, 1])
    assert not any(jnp.isnan(value) for value in on(jnp, every_value)(jnp.nan_to_num(score), label).values())
    assert all(jnp.isnan(value) for value in on(jnp, every_value)(score, label).values())


@pytest.mark.parametrize("loss", [[0.0, 0.5, 1.0], [0, 2, 1], [0, 0, 2], [0.0, 2.0, 0.0], [0.0, np.nan, 1.0]])
@every_metric
def test_labels_other_than_0_and_1_are_refused(metric, loss):
    with pytest.raises(ValueError, match="0/1"):
        metric(np.zeros(3), np.array(loss))


@every_metric
def test_labels_as_floats_on_devices_are_refused(metric):
    with pytest.raises(ValueError, match="bool or integers"):
        metric(jnp.zeros(2), jnp.array([0.0, 1.0]))


def test_errors_as_floats_are_errors_on_the_host():
    assert ops.failure_auroc(np.array([2.0, 1.0, 1.0]), np.array([0.0, 0.0, 1.0])) == 0.75


@pytest.mark.parametrize("dtype", [bool, np.int8, np.uint8, np.int64, np.float16, np.float64])
def test_labels_of_any_dtype_are_the_same_labels(dtype):
    label = as_labels(np.array([0, 1, 1]).astype(dtype), "positive")
    assert label.dtype == bool
    np.testing.assert_array_equal(label, [False, True, True])


# DeLong


def placements(score, positive):
    """Of each positive and of each negative, in exact fractions, by all pairs."""

    def win(x, y):
        return Fraction(int(x > y)) + Fraction(int(x == y), 2)

    of_kind = score[positive].tolist(), score[~positive].tolist()
    return (
        [sum(win(x, y) for y in of_kind[1]) / len(of_kind[1]) for x in of_kind[0]],
        [sum(win(x, y) for x in of_kind[0]) / len(of_kind[0]) for y in of_kind[1]],
    )


def covariance(x, y):
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    return sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / (len(x) - 1)


def brute_delong(score_a, score_b, positive):
    """AUROCs and the 2 × 2 covariance S₁₀/m + S₀₁/n of the paper."""
    kinds = list(zip(placements(score_a, positive), placements(score_b, positive), strict=True))
    s = [[sum(covariance(kind[i], kind[j]) / len(kind[i]) for kind in kinds) for j in range(2)] for i in range(2)]
    return [sum(values) / len(values) for values in kinds[0]], s


def two_scores(seed, n=30, levels=9):
    rng = np.random.default_rng(seed)
    positive = np.arange(n) % 3 == 0
    quality = rng.normal(size=n) + positive
    a, b = (np.round((quality + rng.normal(size=n)) * levels / 4) for _ in range(2))
    a[0], b[1] = np.inf, -np.inf
    return a, b, positive


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("levels", [2, 9, 10**6])
def test_delong_is_the_covariance_of_placements(seed, levels):
    a, b, positive = two_scores(seed, levels=levels)
    (auc_a, auc_b), s = brute_delong(a, b, positive)
    result = delong(a, b, positive, 0.9)
    close(result.auroc_a, auc_a)
    close(result.auroc_b, auc_b)
    close(result.difference, auc_a - auc_b)
    error = math.sqrt(s[0][0] + s[1][1] - 2 * s[0][1])
    close(result.standard_error, error)
    z = NormalDist().inv_cdf(0.95)
    np.testing.assert_allclose(result.interval, float(auc_a - auc_b) + np.array([-z, z]) * error, rtol=1e-10)
    close(result.p, 2 * NormalDist().cdf(-abs(float(auc_a - auc_b)) / error), rtol=1e-9)

    single = delong_interval(a, positive, 0.9)
    close(single.auroc, auc_a)
    close(single.standard_error, math.sqrt(s[0][0]))
    bounds = float(auc_a) + np.array([-z, z]) * math.sqrt(s[0][0])
    np.testing.assert_allclose(single.interval, np.clip(bounds, 0, 1), rtol=1e-10)


@pytest.mark.parametrize("seed", range(4))
def test_delong_on_devices_agrees_with_the_host(seed, device):
    a, b, positive = two_scores(seed)
    for where in (None, np.arange(len(a)) % 5 != 1):
        arrays = [device.asarray(array) for array in (a.astype(np.float32), b.astype(np.float32), positive)]
        mask = None if where is None else device.asarray(where)
        expected = delong(a, b, positive, where=where)
        for value, exact in zip(on(device, delong)(*arrays, where=mask), expected, strict=True):
            np.testing.assert_allclose(np.asarray(value), exact, rtol=2e-5, atol=1e-7)
        for value, exact in zip(
            on(device, delong_interval)(arrays[0], arrays[2], where=mask),
            delong_interval(a, positive, where=where),
            strict=True,
        ):
            np.testing.assert_allclose(np.asarray(value), exact, rtol=2e-5)


def test_delong_is_mapped_and_compiled():
    a, b, positive = (np.stack(arrays) for arrays in zip(*map(two_scores, range(4)), strict=True))
    values = jax.jit(jax.vmap(delong))(jnp.asarray(a), jnp.asarray(b), jnp.asarray(positive))
    for i in range(4):
        for value, exact in zip(values, delong(a[i], b[i], positive[i]), strict=True):
            np.testing.assert_allclose(value[i], exact, rtol=2e-5, atol=1e-7)


def test_what_delong_leaves_out_may_be_anything():
    a, b, positive = two_scores(3)
    kept = np.arange(len(a)) % 5 != 1
    for value, exact in zip(
        delong(np.where(kept, a, np.nan), np.where(kept, b, np.nan), positive, where=kept),
        delong(a[kept], b[kept], positive[kept]),
        strict=True,
    ):
        np.testing.assert_allclose(value, exact, rtol=1e-12)
    nothing = np.zeros(len(a), bool)
    assert all(np.isnan(value).all() for value in delong(a, b, positive, where=nothing))


def test_delong_exchanges_its_scores_with_the_sign():
    a, b, positive = two_scores(1)
    result, swapped = delong(a, b, positive), delong(b, a, positive)
    assert result.difference == pytest.approx(-swapped.difference)
    assert result.standard_error == pytest.approx(swapped.standard_error)
    assert result.p == pytest.approx(swapped.p)
    np.testing.assert_allclose(result.interval, -swapped.interval[::-1])


def test_delong_knows_ranks_only_and_kinds_are_exchangeable():
    a, b, positive = two_scores(2)
    result = delong(a, b, positive)
    for other in (delong(np.arctan(a), b * 3 - 1, positive), delong(-a, -b, ~positive)):
        np.testing.assert_allclose(result.p, other.p, rtol=1e-12)
        np.testing.assert_allclose(result.interval, other.interval, rtol=1e-12)


def test_auroc_of_delong_is_auroc():
    a, b, positive = two_scores(4)
    result = delong(a, b, positive)
    close(result.auroc_a, auroc(a, positive))
    close(result.auroc_b, auroc(b, positive))
    close(delong_interval(b, positive).auroc, auroc(b, positive))


@pytest.mark.parametrize("xp", [np, jnp])
def test_a_difference_to_itself_is_nothing(xp):
    a, _, positive = two_scores(5)
    result = on(xp, delong)(xp.asarray(a), xp.asarray(np.arctan(a)), xp.asarray(positive))
    assert (float(result.difference), float(result.standard_error), float(result.p)) == (0, 0, 1)
    assert np.isnan(result.interval).all()


@pytest.mark.parametrize("xp", [np, jnp])
def test_no_variance_is_no_certainty(xp):
    score, positive = xp.arange(10), xp.arange(10) >= 5
    for perfect, area in ((score, 1), (-score, 0), (0 * score, 0.5)):
        result = on(xp, delong_interval)(perfect, positive)
        assert (float(result.auroc), float(result.standard_error)) == (area, 0)
        assert np.isnan(result.interval).all()
    result = on(xp, delong)(score, -score, positive)
    assert (float(result.difference), float(result.standard_error)) == (1, 0)
    assert np.isnan(result.p)
    assert np.isnan(result.interval).all()


@pytest.mark.parametrize("xp", [np, jnp])
def test_equal_differences_have_no_variance_whatever_their_value(xp):
    # + − + − …, and every positive moved below the next negative: each placement falls by a fifth, which no float holds
    score, positive = 2 * xp.arange(10)[::-1], xp.arange(10) % 2 == 0
    result = on(xp, delong)(score, score - 3 * positive, positive)
    close(result.difference, 1 / 5, rtol=1e-6)
    assert float(result.standard_error) == 0
    assert np.isnan(result.p)


@pytest.mark.parametrize("xp", [np, jnp])
def test_one_sample_of_a_kind_has_an_auroc_and_no_error(xp):
    score, positive = xp.asarray([8, 1, 2, 3, 4, 5, 6, 7, 9, 10]), xp.arange(10) == 0  # 7 of 9 below
    result = on(xp, delong_interval)(score, positive)
    close(result.auroc, 7 / 9, rtol=1e-6)
    assert np.isnan(result.standard_error)
    assert np.isnan(result.interval).all()
    result = on(xp, delong)(score, xp.arange(10), positive)
    close(result.difference, 7 / 9, rtol=1e-6)
    assert np.isnan(result.p)
    alone = on(xp, delong_interval)(score, positive | True)
    assert all(np.isnan(value).all() for value in alone)


@pytest.mark.parametrize("xp", [np, jnp])
def test_signed_zeros_tie_in_delong(xp):
    a, _, positive = two_scores(0)
    whole = np.round(a / 4)
    signed = np.where((whole == 0) & (np.arange(len(a)) % 2 == 0), -0.0, whole)
    assert np.signbit(signed[whole == 0]).any()
    result = on(xp, delong_interval)(xp.asarray(signed), xp.asarray(positive))
    exact = delong_interval(whole + 0.0, positive)
    close(result.auroc, exact.auroc, rtol=1e-6)
    close(result.standard_error, exact.standard_error, rtol=1e-6)


def test_nan_of_either_score_makes_the_comparison_nan_on_devices():
    a, b, positive = (jnp.asarray(array) for array in two_scores(0))
    assert not any(jnp.isnan(value).any() for value in on(jnp, delong)(a, b, positive))
    for pair in ((a.at[3].set(jnp.nan), b), (a, b.at[3].set(jnp.nan))):
        assert all(jnp.isnan(value).all() for value in on(jnp, delong)(*pair, positive))
    with pytest.raises(ValueError, match="1 scores are NaN"):
        delong(np.array([1.0, np.nan]), np.array([1.0, 2.0]), np.array([0, 1]))


@pytest.mark.parametrize("level", [0, 1, 95, -0.5])
def test_levels_outside_the_unit_interval_are_refused(level):
    with pytest.raises(ValueError, match=r"level must lie in \(0, 1\)"):
        delong_interval(np.arange(4), np.array([0, 1, 0, 1]), level)
    with pytest.raises(ValueError, match=r"level must lie in \(0, 1\)"):
        delong(np.arange(4), np.arange(4), np.array([0, 1, 0, 1]), level)


def test_shapes_are_refused():
    with pytest.raises(ValueError, match="where must have n = 3 entries"):
        auroc(np.zeros(3), np.zeros(3, bool), where=np.ones(2, bool))
    with pytest.raises(ValueError, match="must both be"):
        auroc(np.zeros(3), np.zeros(2, bool))
    with pytest.raises(ValueError, match="must both be"):
        delong(np.zeros(3), np.zeros(2), np.zeros(3, bool))
    with pytest.raises(ValueError, match="empty"):
        fpr_at_tpr(np.zeros(0), np.zeros(0, bool))
