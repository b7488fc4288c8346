"""Calibration errors against loops over the bins in exact fractions; proper losses against scikit-learn."""

import functools
import math

import brute_calibration as brute
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import scipy.stats
import sklearn.calibration
import sklearn.metrics
from brute_force import reproducible
from hypothesis import given
from hypothesis import strategies as st

from sc_jax import ops
from sc_jax.ops import calibration_error
from sc_jax.ops.calibration_error import (
    BrierDecomposition,
    ReliabilityTable,
    adaptive_calibration_error,
    brier_decomposition,
    brier_score,
    classwise_calibration_error,
    expected_calibration_error,
    losses_and_probabilities,
    negative_log_likelihood,
    reliability_table,
    smooth_ece,
)

SCHEMES = ("width", "mass")
NORMS = (1, 2, 3.5, "max")

edges = st.integers(1, 20).flatmap(lambda bins: st.integers(0, bins).map(lambda k: k / bins))
confidences = st.one_of(edges, st.floats(0, 1), st.floats(0, 1, width=32))
rows = st.lists(st.tuples(confidences, st.booleans(), st.integers(0, 3)), min_size=1, max_size=25)


def mixed(n, seed=0, k=4):
    """Confidences with ties and edges among them, errors, probability vectors with ties, labels."""
    rng = np.random.default_rng(seed)
    confidence = np.where(rng.random(n) < 0.5, rng.integers(0, 31, n) / 30, rng.random(n))
    probabilities = rng.multinomial(12, rng.dirichlet(np.ones(k), n)) / 12
    label = np.array([rng.choice(k, p=p) for p in rng.permutation(probabilities)])
    return confidence, rng.random(n) > confidence**1.5, probabilities, label


def metrics(scheme="width"):
    """Name → function of (confidence, error, probabilities, label, weight=, where=) → array."""

    def of_confidence(metric, **options):
        return lambda c, e, p, y, **data: metric(c, e, **options, **data)

    def of_classes(metric, **options):
        return lambda c, e, p, y, **data: metric(p, y, **options, **data)

    def stacked(metric):
        return lambda *arrays, **data: np.stack([np.asarray(part) for part in metric(*arrays, **data)], axis=-1)

    return {
        "ece": of_confidence(expected_calibration_error, scheme=scheme),
        "ece_2": of_confidence(expected_calibration_error, scheme=scheme, norm=2),
        "mce": of_confidence(expected_calibration_error, scheme=scheme, norm="max"),
        "classwise": of_classes(classwise_calibration_error, scheme=scheme, bins=5),
        "table": stacked(of_confidence(reliability_table, scheme=scheme)),
        "smooth": of_confidence(smooth_ece, grid=256),
        "decomposition": stacked(of_classes(brier_decomposition, scheme=scheme, bins=5)),
        "classwise_decomposition": stacked(of_classes(brier_decomposition, scheme=scheme, bins=5, classwise=True)),
        "nll": lambda c, e, p, y, **data: negative_log_likelihood(np.log(p + 0.01), y, **data),
        "brier": lambda c, e, p, y, **data: brier_score(np.log(p + 0.01), y, **data),
    }


EVERY = [
    (name, scheme)
    for scheme in SCHEMES
    for name in metrics()
    if scheme == "width" or name not in ("nll", "brier", "smooth")
]
every_metric = pytest.mark.parametrize(("name", "scheme"), EVERY)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("scheme", SCHEMES)
@given(rows, st.integers(1, 20))
@reproducible
def test_ece_is_the_loop_over_bins_of_repeated_rows(scheme, norm, rows, bins):
    confidence, error, weight = (np.array(column) for column in zip(*rows, strict=True))
    for count in (np.ones(len(rows), int), weight):
        value = expected_calibration_error(confidence, error, bins=bins, scheme=scheme, norm=norm, weight=count)
        repeated, right = np.repeat(confidence, count), 1 - np.repeat(error, count).astype(int)
        if count.sum() == 0:
            assert math.isnan(value)
        else:
            exact = brute.calibration_error(repeated.tolist(), right.tolist(), bins, scheme, norm)
            np.testing.assert_allclose(value, float(exact), rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("bins", [1, 2, 7, 10, 15, 100])
def test_a_confidence_on_an_edge_belongs_below_it(bins):
    # Two rows that cancel if they share a bin, and do not if they are in different ones.
    for k in range(1, bins + 1):
        edge, below = k / bins, (k - 0.5) / bins
        pair = np.array([edge, below])
        together = abs(1 - (edge + below)) / 2
        assert ops.expected_calibration_error(pair, np.array([0, 1]), bins=bins) == pytest.approx(together)
        if k < bins:
            pair = np.array([edge, np.nextafter(edge, 2)])
            apart = (abs(1 - edge) + edge) / 2
            assert ops.expected_calibration_error(pair, np.array([0, 1]), bins=bins) == pytest.approx(apart)


@pytest.mark.parametrize("xp", [np, jnp])
def test_confidence_one_is_in_the_last_bin_and_zero_in_the_first(xp):
    metric = ops.expected_calibration_error if xp is np else jax.jit(ops.expected_calibration_error)

    def ece(confidence, error):
        return float(metric(xp.asarray(confidence), xp.asarray(error)))

    assert ece([1.0, 0.9375], [0, 1]) == pytest.approx(abs(1 - 1.9375) / 2)  # one bin, where they cancel
    assert ece([0.0, 0.0625], [0, 1]) == pytest.approx(abs(1 - 0.0625) / 2)
    assert ece([1.0], [0]) == 0
    assert ece([1.0], [1]) == 1
    assert ece([0.0], [1]) == 0


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_devices_and_host_agree_on_the_bins_of_numbers_next_to_an_edge(dtype):
    for bins in (10, 15):
        near = np.concatenate([np.nextafter(np.arange(1, bins) / bins, to).astype(dtype) for to in (0, 1)])
        near = np.unique(np.concatenate([near, np.nextafter(near, dtype(0)), np.nextafter(near, dtype(1))]))
        error = np.zeros(len(near), bool)
        host = reliability_table(near, error, bins=bins)
        device = jax.jit(functools.partial(reliability_table, bins=bins))(jnp.asarray(near), jnp.asarray(error))
        np.testing.assert_array_equal(device.weight, host.weight)


@given(st.integers(1, 60), st.integers(1, 20), st.integers(0, 5))
@reproducible
def test_bins_of_equal_mass_differ_by_at_most_one_row_where_there_are_no_ties(n, bins, seed):
    confidence = np.random.default_rng(seed).permutation(np.linspace(0, 1, n))
    table = reliability_table(confidence, np.zeros(n, bool), bins=bins, scheme="mass")
    assert table.weight.sum() == n
    assert set(table.weight) <= {n // bins, math.ceil(n / bins)}


def test_ties_share_a_bin_of_equal_mass():
    confidence = np.array([0.5] * 7 + [0.2, 0.9, 0.95])
    table = reliability_table(confidence, np.zeros(10, bool), bins=5, scheme="mass")
    assert table.weight.tolist() == [8, 0, 0, 0, 2]  # the 2nd, 4th, 6th and 8th of ten are 0.5
    assert table.high.tolist() == [0.5, 0.5, 0.5, 0.5, 1]
    assert np.isnan(table.accuracy).tolist() == [False, True, True, True, False]


def test_edges_of_equal_mass_do_not_depend_on_the_unit_of_the_weights():
    confidence = np.arange(1, 16) / 16
    for bins in (3, 5, 15):
        for xp in (np, jnp):
            table_of = functools.partial(reliability_table, bins=bins, scheme="mass")
            table_of = table_of if xp is np else jax.jit(table_of)
            for unit in (0.1, 1 / 3, 7.7, 1e6):  # 15 · 0.1 is no multiple of 0.1 in floating point
                table = table_of(xp.asarray(confidence), xp.zeros(15, dtype=bool), weight=xp.full(15, unit))
                np.testing.assert_allclose(table.weight, 15 / bins * unit, rtol=1e-6)


def test_the_norms_increase_to_the_maximum():
    confidence, error, *_ = mixed(200)
    for scheme in SCHEMES:
        ece = functools.partial(expected_calibration_error, confidence, error, scheme=scheme)
        values = [float(ece(norm=norm)) for norm in (1, 1.5, 2, 5, 50, 5000, math.inf)]
        assert (np.diff(values) > 0).all()
        assert ece(norm=math.inf) == ece(norm="max") == pytest.approx(values[-2], rel=1e-2)
    for norm in NORMS:  # no power underflows
        tiny = expected_calibration_error(np.array([1e-300]), np.array([1]), norm=norm)
        assert tiny == pytest.approx(1e-300)
        assert expected_calibration_error(np.array([1.0, 0.0]), np.array([0, 1]), norm=norm) == 0


@every_metric
def test_the_order_of_the_examples_plays_no_part(name, scheme):
    metric, arrays = metrics(scheme)[name], mixed(60)
    rng = np.random.default_rng(1)
    for weight in (None, rng.random((2, 60))):
        value = metric(*arrays, weight=weight)
        for _ in range(3):
            order = rng.permutation(60)
            moved = metric(*(array[order] for array in arrays), weight=None if weight is None else weight[..., order])
            np.testing.assert_allclose(moved, value, rtol=1e-12, atol=1e-14)


@every_metric
def test_a_weight_is_repeated_rows(name, scheme):
    metric, arrays = metrics(scheme)[name], mixed(30)
    weight = np.random.default_rng(1).integers(0, 4, (2, 3, 30))
    values = metric(*arrays, weight=weight)
    assert values.shape[:2] == (2, 3)
    for dtype in (np.uint8, np.float32):
        np.testing.assert_array_equal(metric(*arrays, weight=weight.astype(dtype)), values)
    for index in np.ndindex(2, 3):
        repeated = metric(*(np.repeat(array, weight[index], axis=0) for array in arrays))
        np.testing.assert_allclose(values[index], repeated, rtol=1e-11, atol=1e-14)


@every_metric
def test_what_is_masked_plays_no_part(name, scheme):
    metric, arrays = metrics(scheme)[name], mixed(30)
    where = np.random.default_rng(1).random(30) < 0.6
    spoilt = [array.copy() for array in arrays]
    spoilt[0][~where], spoilt[2][~where], spoilt[3][~where] = np.nan, -7, 99
    for weight in (None, np.random.default_rng(2).random((2, 30))):
        kept = metric(*(array[where] for array in arrays), weight=None if weight is None else weight[:, where])
        with np.errstate(invalid="ignore"):  # the logarithm of what is masked
            value = metric(*spoilt, weight=weight, where=where)
        np.testing.assert_allclose(value, kept, rtol=1e-12, atol=1e-14)


@every_metric
def test_nothing_left_is_nan(name, scheme):
    metric, arrays = metrics(scheme)[name], mixed(8)
    value = metric(*arrays, where=np.zeros(8, bool))
    values = metric(*arrays, weight=np.stack([np.ones(8), np.zeros(8)]))
    if name == "table":  # of its columns the edges and the weight are known
        value, values = value[:, 3:], values[..., 3:]
    assert np.isnan(value).all()
    assert np.isnan(values[1]).all()
    assert not np.isnan(values[0]).all()


@pytest.mark.parametrize(
    ("name", "scheme"), [pair for pair in EVERY if pair[0] in ("ece_2", "mce", "classwise", "smooth")]
)
def test_devices_agree_with_the_host(name, scheme):
    metric = metrics(scheme)[name]
    arrays = [array.astype(np.float32) if array.dtype == float else array for array in mixed(50)]
    weight = np.random.default_rng(1).integers(0, 4, (3, 50))
    where = np.arange(50) % 5 != 0
    device = jax.jit(lambda weight, where, *arrays: metric(*arrays, weight=weight, where=where))
    value = device(weight, where, *map(jnp.asarray, arrays))
    np.testing.assert_allclose(value, metric(*arrays, weight=weight, where=where), rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_tables_and_decompositions_on_devices_agree_with_the_host(scheme):
    confidence, error, probabilities, label = mixed(50)
    confidence, probabilities = confidence.astype(np.float32), probabilities.astype(np.float32)
    weight = np.random.default_rng(1).integers(0, 4, (3, 50))

    def all_of_them(confidence, error, probabilities, label, weight):
        return (
            reliability_table(confidence, error, scheme=scheme, weight=weight),
            brier_decomposition(probabilities, label, scheme=scheme, bins=5, weight=weight),
            brier_decomposition(probabilities, label, scheme=scheme, bins=5, classwise=True, weight=weight),
            negative_log_likelihood(probabilities, label, weight=weight),  # any numbers are logits
            brier_score(probabilities, label, weight=weight),
        )

    arrays = confidence, error, probabilities, label, weight
    for device, host in zip(jax.jit(all_of_them)(*map(jnp.asarray, arrays)), all_of_them(*arrays), strict=True):
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-6), device, host)


def test_ece_and_smooth_ece_map_over_streams():
    confidence, error = (np.stack(arrays) for arrays in zip(*(mixed(40, seed)[:2] for seed in range(3)), strict=True))
    confidence = confidence.astype(np.float32)
    for metric in (
        expected_calibration_error,
        functools.partial(expected_calibration_error, scheme="mass"),
        functools.partial(smooth_ece, grid=256),
    ):
        values = jax.jit(jax.vmap(metric))(jnp.asarray(confidence), jnp.asarray(error))
        np.testing.assert_allclose(
            values, [metric(*stream) for stream in zip(confidence, error, strict=True)], rtol=1e-4
        )


@pytest.mark.parametrize(("scheme", "norm"), [("width", 1), ("mass", 2), ("width", "max")])
def test_the_derivative_of_ece_is_that_of_its_gaps(scheme, norm):
    confidence, error, *_ = mixed(40)
    confidence = np.unique(confidence)[::2]  # no ties: a small step changes no bin of equal mass
    confidence = np.where(np.isin(confidence, np.arange(1, 8) / 7), confidence - 1e-3, confidence)
    error = error[: len(confidence)]
    metric = functools.partial(expected_calibration_error, bins=7, scheme=scheme, norm=norm)
    gradient = jax.jit(jax.grad(metric))(jnp.asarray(confidence, jnp.float32), jnp.asarray(error))
    inner = slice(1, -1)  # 0 and 1 have one side only
    for i in range(len(confidence))[inner]:
        step = np.zeros(len(confidence))
        step[i] = 1e-6
        slope = (metric(confidence + step, error) - metric(confidence - step, error)) / 2e-6
        np.testing.assert_allclose(gradient[i], slope, rtol=1e-4, atol=1e-6)
    zero = jax.jit(jax.grad(metric))(jnp.ones(len(error)), jnp.zeros(len(error), bool))
    assert jnp.isfinite(zero).all()


@pytest.mark.parametrize(
    ("dtype", "error_dtype"), [(np.float16, bool), (np.float32, np.int32), (ml_dtypes.bfloat16, np.uint8)]
)
def test_ece_counts_beyond_the_range_of_float16(dtype, error_dtype):
    rng = np.random.default_rng(0)
    confidence = rng.random(100_000).astype(dtype)
    error = (rng.random(100_000) < 0.5).astype(error_dtype)
    for scheme in SCHEMES:
        metric = functools.partial(expected_calibration_error, scheme=scheme)
        exact = metric(confidence.astype(np.float64), error.astype(bool))
        np.testing.assert_allclose(metric(confidence, error), exact, rtol=1e-12)
        device = jax.jit(metric)(jnp.asarray(confidence), jnp.asarray(error))
        assert device.dtype == jnp.float32
        np.testing.assert_allclose(device, exact, rtol=2e-6)


def test_ece_refuses_bad_input():
    ece = ops.expected_calibration_error
    with pytest.raises(ValueError, match=r"both be \[n\]; they are \(2,\) and \(3,\)"):
        ece(np.zeros(2), np.zeros(3))
    with pytest.raises(ValueError, match=r"both be \[n\]"):
        ece(np.zeros((2, 1)), np.zeros((2, 1)))
    for bad in (-1e-9, 1 + 1e-9, np.nan):
        with pytest.raises(ValueError, match=r"confidences must lie in \[0, 1\]"):
            ece(np.array([0.5, bad]), np.array([0, 1]))
    for xp in (np, jnp):
        with pytest.raises(ValueError, match="at least one example"):
            ece(xp.zeros(0), xp.zeros(0, dtype=bool))
        with pytest.raises(ValueError, match=r"0/1 errors, given as bool or integers; .* soft"):
            ece(xp.asarray([0.5, 0.5]), xp.asarray([0.5, 0.0]))
        for shape in ((3,), (2, 3), (), (0, 2)):
            with pytest.raises(ValueError, match="n = 2 entries last"):
                ece(xp.zeros(2), xp.zeros(2, dtype=bool), weight=xp.ones(shape))
        with pytest.raises(ValueError, match=r"where must be \[n\]"):
            ece(xp.zeros(2), xp.zeros(2, dtype=bool), where=xp.ones((2, 2), dtype=bool))
    with pytest.raises(ValueError, match="0/1 errors"):
        ece(np.array([0.5, 0.5]), np.array([0, 2]))
    for bad in (-1.0, np.nan, np.inf):
        with pytest.raises(ValueError, match="finite and ≥ 0"):
            ece(np.array([0.5, 0.5]), np.array([0, 1]), weight=np.array([1, bad]))


@pytest.mark.parametrize(
    "options",
    [{"bins": 0}, {"bins": 2.0}, {"scheme": "equal"}, {"norm": 0.5}, {"norm": "min"}, {"norm": math.nan}],
)
def test_ece_refuses_options_that_are_none(options):
    with pytest.raises(ValueError, match=f"^{next(iter(options))} must be"):
        expected_calibration_error(np.array([0.5]), np.array([0]), **options)


def test_confidences_that_the_host_refuses_make_the_value_nan_on_devices():
    error, every, without = jnp.asarray([0, 1, 1]), jnp.ones(3, bool), jnp.asarray([True, False, True])
    for metric in (expected_calibration_error, functools.partial(smooth_ece, grid=64)):
        metric = jax.jit(metric)
        for bad in (-1e-6, 1.0001, np.nan):
            confidence = jnp.asarray([0.5, bad, 0.25])
            assert jnp.isnan(metric(confidence, error, where=every))
            assert metric(confidence, error, where=without) >= 0
    rest = jax.jit(
        lambda p, y: (classwise_calibration_error(p, y), brier_decomposition(p, y), reliability_table(p[0], y))
    )
    values = rest(jnp.asarray([[0.5, np.nan], [0.5, 0.5]]), jnp.asarray([0, 1]))
    assert all(jnp.isnan(value).all() for value in jax.tree.leaves(values))


def test_classes_are_checked():
    for metric in (classwise_calibration_error, adaptive_calibration_error, brier_decomposition):
        for bad in (-1e-9, 1.1, np.nan):
            with pytest.raises(ValueError, match=r"probabilities must lie in \[0, 1\]"):
                metric(np.array([[0.5, bad]]), np.array([0]))
    for metric in (classwise_calibration_error, brier_decomposition, ops.log_loss, ops.brier_loss, brier_score):
        for label in ([2], [-1], [0.0]):
            with pytest.raises(ValueError, match=r"labels must be integers in \[0, 2\)"):
                metric(np.array([[0.5, 0.5]]), np.array(label))
        for label in ([0, 1], [[0]]):
            with pytest.raises(ValueError, match=r"must be \[n, k\] and label \[n\]"):
                metric(np.array([[0.5, 0.5]]), np.array(label))
    with pytest.raises(ValueError, match="at least one example"):
        negative_log_likelihood(np.zeros((0, 3)), np.zeros(0, int))


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("norm", NORMS)
def test_classwise_ece_is_the_mean_over_classes_of_the_loop_over_bins(scheme, norm):
    *_, probabilities, label = mixed(40)
    label = np.where(label == 3, 0, label)  # a class that never occurs counts as well
    value = classwise_calibration_error(probabilities, label, bins=6, scheme=scheme, norm=norm)
    each = [
        brute.calibration_error(probabilities[:, k].tolist(), (label == k).tolist(), 6, scheme, norm) for k in range(4)
    ]
    np.testing.assert_allclose(value, sum(map(float, each)) / 4, rtol=1e-12)
    if scheme == "mass":
        assert adaptive_calibration_error(probabilities, label, bins=6, norm=norm) == value


def test_adaptive_ece_is_the_mean_over_classes_and_ranges_where_there_are_no_ties():
    rng = np.random.default_rng(0)
    probabilities, label = rng.dirichlet(np.ones(5), 60), rng.integers(0, 5, 60)
    gaps = []
    for k in range(5):
        order = np.argsort(probabilities[:, k])
        for part in np.split(order, 12):
            gaps.append(abs((label[part] == k).mean() - probabilities[part, k].mean()))
    np.testing.assert_allclose(adaptive_calibration_error(probabilities, label, bins=12), np.mean(gaps), rtol=1e-12)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_ece_follows_from_the_table(scheme):
    confidence, error, *_ = mixed(200)
    weight = np.random.default_rng(1).random((2, 200))
    table = reliability_table(confidence, error, scheme=scheme, weight=weight)
    gap, share = np.abs(table.accuracy - table.confidence), table.weight / weight.sum(axis=-1, keepdims=True)
    for norm in (1, 2):
        value = expected_calibration_error(confidence, error, scheme=scheme, norm=norm, weight=weight)
        np.testing.assert_allclose(value, np.nansum(share * gap**norm, axis=-1) ** (1 / norm), rtol=1e-12)
    largest = expected_calibration_error(confidence, error, scheme=scheme, norm="max", weight=weight)
    np.testing.assert_allclose(largest, np.nanmax(gap, axis=-1), rtol=1e-12)
    np.testing.assert_array_equal(table.low[:, 1:], table.high[:, :-1])
    np.testing.assert_array_equal(table.low[:, 0], 0)
    np.testing.assert_array_equal(table.high[:, -1], 1)
    inside = (confidence > table.low[0][:, None]) & (confidence <= table.high[0][:, None])
    inside[0] |= confidence == 0
    np.testing.assert_allclose(table.weight[0], inside @ weight[0], rtol=1e-12)


def test_the_table_is_the_calibration_curve_of_scikit_learn():
    confidence, error, *_ = mixed(300)
    confidence = np.round(confidence * 64) / 64  # half of them on the edges, which both have exactly
    accuracy, mean = sklearn.calibration.calibration_curve(~error, confidence, n_bins=32)
    table = reliability_table(confidence, error, bins=32)
    some = table.weight > 0
    np.testing.assert_allclose(table.accuracy[some], accuracy, rtol=1e-12)
    np.testing.assert_allclose(table.confidence[some], mean, rtol=1e-12)


@pytest.mark.parametrize("level", [0.5, 0.95])
def test_the_intervals_of_the_table_are_wilsons(level):
    confidence, error, *_ = mixed(60)
    error[confidence > 0.9], error[confidence < 0.1] = False, True  # accuracies 1 and 0 as well
    table = reliability_table(confidence, error, bins=10, level=level)
    counts = np.rint(table.accuracy * table.weight)
    for k, n, low, high in zip(counts, table.weight, table.accuracy_low, table.accuracy_high, strict=True):
        interval = scipy.stats.binomtest(int(k), int(n)).proportion_ci(level, method="wilson")
        np.testing.assert_allclose([low, high], interval, rtol=1e-9, atol=1e-12)
    with pytest.raises(ValueError, match="level"):
        reliability_table(confidence, error, level=1.0)


@pytest.mark.parametrize("classwise", [False, True])
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("k", [1, 2, 4])
def test_the_brier_score_decomposes_exactly(classwise, scheme, k):
    *_, probabilities, label = mixed(25, k=k)
    for n, bins in ((25, 1), (25, 4), (25, 15), (1, 3)):
        p, y = probabilities[:n], label[:n]
        exact = brute.brier_decomposition(p, y, bins, scheme, classwise)
        assert exact[0] - exact[1] + exact[2] + exact[3] == exact[4]
        value = brier_decomposition(p, y, bins=bins, scheme=scheme, classwise=classwise)
        np.testing.assert_allclose(value, [float(part) for part in exact], rtol=1e-12, atol=1e-15)
        with np.errstate(divide="ignore"):
            np.testing.assert_allclose(value.total, brier_score(np.log(p), y), rtol=1e-12, atol=1e-15)


def test_nothing_is_within_bins_that_hold_one_vector_each():
    vectors = np.array([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8], [0.0, 1.0, 0.0]])
    rng = np.random.default_rng(0)
    probabilities, label = vectors[rng.integers(0, 3, 50)], rng.integers(0, 3, 50)
    for classwise in (False, True):
        parts = brier_decomposition(probabilities, label, classwise=classwise)
        assert abs(parts.within_bin) < 1e-15
        assert parts.total == pytest.approx(parts.reliability - parts.resolution + parts.uncertainty)


@pytest.mark.parametrize("n", [1, 2, 3, 8, 20])
def test_smooth_ece_is_the_bandwidth_that_equals_the_area_of_the_smoothed_residuals(n):
    rng = np.random.default_rng(n)
    for confidence in (rng.random(n), np.round(rng.random(n)), np.round(2 * rng.random(n)) / 2):
        right = rng.random(n) < confidence
        if brute.smoothed_area(confidence, right, 1e-3) < 1e-3:
            assert smooth_ece(confidence, ~right) < 1e-3
            continue
        exact = brute.smooth_ece(confidence, right)
        np.testing.assert_allclose(smooth_ece(confidence, ~right), exact, atol=1e-7)
        for grid in (8, 9, 64, 65, 256):
            value = smooth_ece(confidence, ~right, grid=grid)
            if value >= 2 / grid:
                assert abs(value - exact) <= 0.375 / (grid * value) ** 2 * np.abs(right - confidence).mean() + 1e-9


def test_smooth_ece_of_residuals_of_one_sign_is_their_mean():
    confidence, *_ = mixed(100)
    for xp, metric, rtol in ((np, smooth_ece, 1e-12), (jnp, jax.jit(smooth_ece), 2e-6)):
        c, wrong = xp.asarray(confidence), xp.ones(100, dtype=bool)
        np.testing.assert_allclose(metric(c, wrong), confidence.mean(), rtol=rtol)
        np.testing.assert_allclose(metric(c, ~wrong), 1 - confidence.mean(), rtol=rtol)
        assert metric(xp.ones(100), ~wrong) == 0
        assert metric(xp.zeros(100), wrong) == 0


def test_smooth_ece_of_residuals_that_cancel_where_they_are_is_zero():
    assert smooth_ece(np.array([0.3, 0.5, 0.5, 0.3, 1.0] * 2), np.array([1, 1, 0, 1, 0] * 2)) > 0.1
    assert smooth_ece(np.array([0.5, 0.25, 0.5, 0.25, 0.25, 0.25]), np.array([1, 1, 0, 1, 0, 1])) < 1e-12


def test_smooth_ece_is_the_same_seen_from_the_other_class():
    confidence, error, *_ = mixed(100)
    confidence = np.round(confidence * 512) / 512  # 1 − c is exact
    np.testing.assert_allclose(smooth_ece(1 - confidence, ~error), smooth_ece(confidence, error), rtol=1e-12)


def test_smooth_ece_of_calibrated_predictions_vanishes_as_they_become_many():
    rng = np.random.default_rng(0)
    values = []
    for n in (100, 10_000, 1_000_000):
        confidence = rng.random(n)
        values.append(float(smooth_ece(confidence, rng.random(n) > confidence)))
    assert values[0] > 2 * values[1] > 4 * values[2] > 0


def test_smooth_ece_refuses_a_grid_that_is_none():
    for grid in (1, 8.0):
        with pytest.raises(ValueError, match="grid must be an integer ≥ 2"):
            smooth_ece(np.array([0.5]), np.array([0]), grid=grid)


@pytest.mark.parametrize("library", ["torch", "array_api_strict"])
def test_other_array_libraries_agree_with_the_host(library):
    xp = pytest.importorskip(library)
    arrays = mixed(40)
    weight, real = np.random.default_rng(1).integers(0, 4, (2, 3, 40)), np.random.default_rng(2).random(40)
    confidence, error, probabilities, label = map(xp.asarray, arrays)
    where = np.arange(40) % 5 != 0
    for data in ({}, {"weight": weight}, {"weight": real, "where": where}):
        there = {name: xp.asarray(value) for name, value in data.items()}
        pairs = [
            (negative_log_likelihood(probabilities, label, **there), negative_log_likelihood(*arrays[2:], **data)),
            (brier_score(probabilities, label, **there), brier_score(*arrays[2:], **data)),
            (smooth_ece(confidence, error, **there), smooth_ece(*arrays[:2], **data)),
        ]
        for scheme in SCHEMES:
            for metric, inputs, options in (
                *((expected_calibration_error, "confidence", {"norm": norm}) for norm in NORMS),
                (reliability_table, "confidence", {}),
                (classwise_calibration_error, "classes", {}),
                (brier_decomposition, "classes", {}),
                (brier_decomposition, "classes", {"classwise": True}),
            ):
                mine, theirs = (
                    (arrays[:2], (confidence, error))
                    if inputs == "confidence"
                    else (arrays[2:], (probabilities, label))
                )
                options = options | {"scheme": scheme}
                values = metric(*theirs, **options, **there), metric(*mine, **options, **data)
                pairs += zip(*values, strict=True) if isinstance(values[0], tuple) else [values]
        for there, here in pairs:
            assert there.dtype == xp.float64
            np.testing.assert_allclose(np.asarray(there), here, rtol=1e-10, atol=1e-13)


@pytest.fixture(scope="module")
def outputs():
    rng = np.random.default_rng(0)
    return rng.normal(size=(200, 5), scale=3), rng.integers(0, 5, 200)


def test_log_loss_equals_scikit_learn(outputs):
    logits, label = outputs
    probabilities = np.exp(ops.log_softmax(logits))
    expected = sklearn.metrics.log_loss(label, probabilities, labels=range(5))
    np.testing.assert_allclose(ops.log_loss(logits, label).mean(), expected, rtol=1e-9)
    np.testing.assert_allclose(negative_log_likelihood(np.log(probabilities), label), expected, rtol=1e-9)
    weight = np.random.default_rng(1).random(200)
    expected = sklearn.metrics.log_loss(label, probabilities, labels=range(5), sample_weight=weight)
    np.testing.assert_allclose(negative_log_likelihood(logits, label, weight=weight), expected, rtol=1e-9)


def test_log_loss_of_probability_zero_is_infinite():
    with np.errstate(divide="ignore"):
        log_p = np.log(np.array([[1.0, 0.0], [1.0, 0.0], [0.5, 0.5]]))
    label = np.array([0, 1, 1])
    np.testing.assert_allclose(ops.log_loss(log_p, label), [0, np.inf, np.log(2)])
    np.testing.assert_allclose(ops.log_loss(jnp.asarray(log_p), jnp.asarray(label)), [0, np.inf, np.log(2)], rtol=1e-6)
    np.testing.assert_allclose(ops.brier_loss(log_p, label), [0, 2, 0.5])
    weight = np.array([[1, 1, 1], [1, 0, 1]])
    for xp in (np, jnp):
        mean = negative_log_likelihood(xp.asarray(log_p), xp.asarray(label), weight=xp.asarray(weight))
        np.testing.assert_allclose(mean, [np.inf, np.log(2) / 2], rtol=1e-6)
    np.testing.assert_allclose(brier_score(log_p, label, weight=weight), [2.5 / 3, 0.25])


def test_the_derivative_of_nll_is_the_mean_of_p_minus_y_without_what_is_masked(outputs):
    logits, label = outputs
    logits, label = jnp.asarray(logits, jnp.float32).at[3].set(jnp.nan), jnp.asarray(label)
    where = jnp.arange(200) % 4 != 3
    gradient = jax.jit(jax.grad(lambda logits: negative_log_likelihood(logits, label, where=where)))(logits)
    expected = (jax.nn.softmax(logits) - jax.nn.one_hot(label, 5)) / 150
    np.testing.assert_allclose(gradient, jnp.where(where[:, None], expected, 0), atol=1e-7)


def test_log_loss_of_tiny_probabilities_is_not():
    assert ops.log_loss(np.array([[0.0, 5000.0]]), np.array([0])) == 5000


def test_brier_loss_is_the_sum_over_classes(outputs):
    logits, label = outputs
    p = np.exp(ops.log_softmax(logits))
    one_hot = np.eye(5)[label]
    np.testing.assert_allclose(ops.brier_loss(logits, label), ((p - one_hot) ** 2).sum(axis=1), rtol=1e-12)
    two = np.stack([logits[:, 0], logits[:, 1]], axis=1)
    positive = np.exp(ops.log_softmax(two))[:, 1]
    half = sklearn.metrics.brier_score_loss(label % 2, positive, pos_label=1)
    np.testing.assert_allclose(brier_score(two, label % 2), 2 * half, rtol=1e-12)


def test_max_probability_is_that_of_the_predicted_class(outputs):
    logits, _ = outputs
    p = ops.max_probability(logits)
    np.testing.assert_allclose(p, np.exp(ops.log_softmax(logits)).max(axis=1), rtol=1e-15)
    np.testing.assert_allclose(p, 1 / (1 + np.exp(-ops.msp(logits))), rtol=1e-12)
    assert ops.max_probability(np.array([[900.0, 0.0, -900.0]])) == 1
    many = np.random.default_rng(0).normal(size=(20_000, 3), scale=40)
    assert ops.max_probability(many).max() <= 1  # never refused as a confidence


def test_losses_on_devices_agree_with_the_host(outputs):
    logits, label = outputs
    device = jnp.asarray(logits, jnp.float32), jnp.asarray(label)
    for loss in (ops.log_loss, ops.brier_loss):
        np.testing.assert_allclose(jax.jit(loss)(*device), loss(logits, label), rtol=2e-5, atol=1e-6)
    np.testing.assert_allclose(jax.jit(ops.max_probability)(device[0]), ops.max_probability(logits), rtol=1e-5)


def test_what_a_classifier_is_measured_by_is_the_same_from_one_pass():
    rng = np.random.default_rng(0)
    logits, label = rng.normal(size=(70, 3000), scale=9).astype(np.float32), rng.integers(0, 3000, 70)  # blocks of rows
    logits[0], logits[1, label[1]] = 2, -np.inf
    logits[2] = np.where(np.arange(3000) == label[2], 0, -np.inf)
    found = losses_and_probabilities(logits, label)
    np.testing.assert_array_equal(found.log_loss, ops.log_loss(logits, label))
    np.testing.assert_array_equal(found.brier_loss, ops.brier_loss(logits, label))
    np.testing.assert_array_equal(found.confidence, ops.max_probability(logits))
    np.testing.assert_array_equal(found.probabilities, np.exp(ops.log_softmax(logits)))
    with pytest.raises(ValueError, match="labels must be integers in"):
        losses_and_probabilities(logits, label + 3000)


@pytest.mark.parametrize("bins", [1, 15, 65, 300])  # few edges are compared, many searched
@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_way_to_the_bins_plays_no_part(bins, scheme):
    rng = np.random.default_rng(bins)
    confidence, error = np.round(rng.random(2000), 3), rng.integers(0, 2, 2000)
    edges, index = calibration_error._binning(confidence, bins, scheme)(np.ones(2000))
    np.testing.assert_array_equal(index, (confidence[:, None] > edges[None, :]).sum(axis=1))
    value = expected_calibration_error(confidence, error, bins=bins, scheme=scheme)
    exact = brute.calibration_error(confidence.tolist(), (1 - error).tolist(), bins, scheme, 1)
    np.testing.assert_allclose(value, float(exact), rtol=1e-10)


def test_results_have_names():
    confidence, error, probabilities, label = mixed(9)
    assert isinstance(reliability_table(confidence, error), ReliabilityTable)
    assert isinstance(brier_decomposition(probabilities, label), BrierDecomposition)
