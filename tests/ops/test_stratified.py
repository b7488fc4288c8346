"""The difference at equal x against one least-squares fit with a line for each bin."""

import numpy as np
import pytest

from sc_jax import ops


def bins_of(x: np.ndarray, bins: int) -> np.ndarray:
    edges = np.quantile(x, np.arange(1, bins) / bins)
    return (x[:, None] > edges).sum(axis=1)


def lines(x: np.ndarray, stratum: np.ndarray) -> np.ndarray:
    """[n, 2·bins]: a constant and a slope for each bin."""
    dummies = (stratum[:, None] == np.unique(stratum)).astype(float)
    return np.hstack([dummies, dummies * x[:, None]])


def fitted(x, value, group, stratum, standardized=False):
    """The coefficient of the group beside the lines, by least squares."""
    design = lines(x, stratum)
    coefficient = np.linalg.lstsq(np.column_stack([group, design]), value, rcond=None)[0][0]
    if not standardized:
        return coefficient
    residual = value - design @ np.linalg.lstsq(design, value, rcond=None)[0]
    return coefficient / np.sqrt((residual**2).mean())


@pytest.fixture(scope="module")
def sample():
    rng = np.random.default_rng(0)
    x = rng.normal(size=400)
    group = rng.random(400) < 1 / (1 + np.exp(-x))
    return x, np.sin(2 * x) + 0.4 * group + rng.normal(size=400), group


@pytest.mark.parametrize("bins", [1, 2, 5, 20])
@pytest.mark.parametrize("standardized", [False, True])
def test_difference_is_the_coefficient_of_least_squares(sample, bins, standardized):
    expected = fitted(*sample, bins_of(sample[0], bins), standardized)
    value = ops.difference_at_equal(*sample, bins=bins, standardized=standardized)
    np.testing.assert_allclose(value, expected, rtol=1e-9)


@pytest.mark.parametrize("standardized", [False, True])
def test_difference_with_ties_in_x(sample, standardized):
    x = np.round(sample[0])  # most bins hold one value of x: there is no slope to fit
    expected = fitted(x, *sample[1:], bins_of(x, 5), standardized)
    value = ops.difference_at_equal(x, *sample[1:], bins=5, standardized=standardized)
    np.testing.assert_allclose(value, expected, rtol=1e-9)


@pytest.mark.parametrize("standardized", [False, True])
def test_weight_is_repeated_rows_in_the_same_bins(sample, standardized):
    weight = np.random.default_rng(1).multinomial(400, np.full(400, 1 / 400), size=(2, 3)).astype(np.uint8)
    stratum = bins_of(sample[0], 5)
    values = ops.difference_at_equal(*sample, bins=5, standardized=standardized, weight=weight)
    assert values.shape == (2, 3)
    for index in np.ndindex(2, 3):
        x, value, group, bin_of_row = (np.repeat(column, weight[index]) for column in (*sample, stratum))
        np.testing.assert_allclose(values[index], fitted(x, value, group, bin_of_row, standardized), rtol=1e-9)


@pytest.mark.parametrize("scale", [1e-9, 1e-4, 1e6])
@pytest.mark.parametrize("shift", [0, 3])
def test_the_unit_of_x_does_not_matter(sample, scale, shift):
    x, value, group = sample
    expected = ops.difference_at_equal(x, value, group, bins=5)
    np.testing.assert_allclose(ops.difference_at_equal(scale * (x + shift), value, group, bins=5), expected, rtol=1e-8)


def test_difference_is_in_the_unit_of_the_value_and_has_its_sign(sample):
    x, value, group = sample
    expected = ops.difference_at_equal(x, value, group)
    np.testing.assert_allclose(ops.difference_at_equal(x, 10 * value + 3 * x + 7, group), 10 * expected, rtol=1e-8)
    np.testing.assert_allclose(ops.difference_at_equal(x, value, ~group), -expected, rtol=1e-9)
    standardized = ops.difference_at_equal(x, value, group, standardized=True)
    np.testing.assert_allclose(
        ops.difference_at_equal(x, 10 * value + 3 * x + 7, group, standardized=True), standardized, rtol=1e-8
    )


def test_bins_without_overlap_carry_no_weight():
    rng = np.random.default_rng(0)
    x = np.arange(40.0)
    group = np.where(x < 20, x % 2 == 0, True)  # above the median all are in the group
    value = rng.normal(size=40)
    low = x < 20
    expected = ops.difference_at_equal(x[low], value[low], group[low], bins=1)
    np.testing.assert_allclose(ops.difference_at_equal(x, value, group, bins=2), expected, rtol=1e-9)


def test_no_overlap_is_nan():
    x, value = np.arange(20.0), np.arange(20.0) ** 2
    for group in (np.zeros(20, bool), np.ones(20, bool), x >= 10):
        assert np.isnan(ops.difference_at_equal(x, value, group, bins=2))
        assert np.isnan(ops.difference_at_equal(x, value, group, bins=2, standardized=True))
    some = np.ones((2, 20), np.uint8)
    some[1] = x % 2 == 0  # of the second resample's rows all are in the group
    values = ops.difference_at_equal(x, value, x % 2 == 0, bins=2, weight=some)
    np.testing.assert_array_equal(np.isnan(values), [False, True])


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match=r"all be \[n\]; they are \(3,\), \(3,\) and \(2,\)"):
        ops.difference_at_equal(np.zeros(3), np.zeros(3), np.zeros(2, bool))
    with pytest.raises(ValueError, match=r"all be \[n\]"):
        ops.difference_at_equal(np.zeros((3, 1)), np.zeros((3, 1)), np.zeros((3, 1), bool))
    for bad in (np.nan, np.inf):
        with pytest.raises(ValueError, match="x must be finite"):
            ops.difference_at_equal(np.array([0.0, bad, 1.0]), np.zeros(3), np.zeros(3, bool))
