"""Targets are read as they are written, and multiplied with counts exactly."""

import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from brute_force import reproducible
from hypothesis import given
from hypothesis import strategies as st

from sc_jax.ops import coverage_at_risk
from sc_jax.ops.targets import as_fraction, floor_of_share

LONG = ("0.3333333333333333", "0.30000000000000004", "0.123456789", "0.999999999999", "1e-9", "2.718281828459045")
SHARES = st.one_of(
    st.fractions(0, 2, max_denominator=200),
    st.floats(0, 2).map(lambda share: Fraction(str(share))),
    st.sampled_from([Fraction(share) for share in LONG]),
)


def exactly(share, counts):
    return [math.floor(share * int(count)) for count in np.asarray(counts)]


@pytest.mark.parametrize(
    ("target", "exact"),
    [
        (0.07, Fraction(7, 100)),
        (np.float32(0.07), Fraction(7, 100)),  # not the 0.07000000029802322 that it is
        (np.float16(0.1), Fraction(1, 10)),
        (jnp.float32(0.07), Fraction(7, 100)),
        (1e-7, Fraction(1, 10**7)),
        ("0.1", Fraction(1, 10)),
        ("2/3", Fraction(2, 3)),
        (1, Fraction(1)),
        (Fraction(1, 7), Fraction(1, 7)),
        ((1, 3), Fraction(1, 3)),
        ((np.int64(2), np.int64(6)), Fraction(1, 3)),
    ],
)
def test_targets_are_read_as_written(target, exact):
    assert as_fraction(target) == exact


@given(st.integers(0, 10**6), st.integers(0, 6))
@reproducible
def test_every_decimal_is_itself(digits, places):
    assert as_fraction(digits / 10**places) == Fraction(digits, 10**places)


@pytest.mark.parametrize("target", ["a lot", math.nan, math.inf, "", None, True])
def test_targets_that_are_no_numbers_are_refused(target):
    with pytest.raises(ValueError, match="Fraction"):
        as_fraction(target)


@pytest.mark.parametrize("dtype", [np.int64, np.float64])
@given(share=SHARES, counts=st.lists(st.integers(0, 2**40), min_size=1, max_size=5))
@reproducible
def test_floors_are_exact_on_the_host(dtype, share, counts):
    near = Fraction(share).limit_denominator(2**20)
    counts = np.array([*counts, near.denominator, 3 * near.denominator, near.denominator - 1], dtype)
    value = floor_of_share(share, counts)
    assert value.dtype == dtype
    if share.denominator <= 2**40:  # beyond, a neighbour may stand in for the share
        np.testing.assert_array_equal(value, exactly(share, counts))
    below = np.array([c for c in counts if c <= 2**20], dtype)
    np.testing.assert_array_equal(floor_of_share(share, below), exactly(share, below))


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_floors_are_exact_on_devices(dtype):
    rng = np.random.default_rng(0)
    shares = [Fraction(share) for share in LONG] + [Fraction(k, 997) for k in (1, 500, 996)] + [Fraction(29, 100)]
    counts = np.concatenate([np.arange(300), rng.integers(0, 2**20, 2000), [2**20]])
    floors = jax.jit(lambda counts: [floor_of_share(share, counts) for share in shares])(jnp.asarray(counts, dtype))
    for share, value in zip(shares, floors, strict=True):
        assert value.dtype == dtype
        np.testing.assert_array_equal(value, exactly(share, counts))


@pytest.mark.parametrize("library", ["torch", "array_api_strict"])
@pytest.mark.parametrize("dtype", ["int64", "float64"])
def test_floors_are_exact_in_other_libraries(library, dtype):
    xp = pytest.importorskip(library)
    counts = np.arange(1000)
    for share in (Fraction(1, 3), Fraction("0.3333333333333333"), Fraction("0.29"), Fraction("1.07")):
        value = floor_of_share(share, xp.asarray(counts, dtype=getattr(xp, dtype)))
        np.testing.assert_array_equal(np.from_dlpack(value), exactly(share, counts))


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_real_counts_are_not_rounded():
    value = floor_of_share(Fraction(3, 10), np.array([0.5, 2.5, 3.0]))
    np.testing.assert_allclose(value, [0.15, 0.75, 0.0], rtol=1e-15)


def test_an_hundredth_of_hundreds():
    # In floats 0.29 · 100 is 28.999999999999996.
    hundreds = np.arange(1, 50) * 100
    assert (np.floor(0.29 * hundreds) != 29 * hundreds // 100).any()
    for percent in range(1, 101):
        np.testing.assert_array_equal(floor_of_share(as_fraction(percent / 100), hundreds), percent * hundreds // 100)


def test_ceilings_of_shares_are_exact_for_every_pair_below_200():
    # In floats ceil(n · (k/n)) is not k for hundreds of them.
    assert sum(math.ceil(n * (k / n)) != k for n in range(1, 200) for k in range(1, n + 1)) > 500
    for n in range(1, 200):
        for k in range(1, n + 1):
            assert n - floor_of_share(1 - Fraction(k, n), np.int64(n)) == k


@pytest.mark.parametrize(("xp", "dtype"), [(np, "int64"), (jnp, "int32")])
def test_large_shares_do_not_wrap_around(xp, dtype):
    most = np.iinfo(dtype).max
    for share in (Fraction(3000), Fraction(2**30), Fraction(2**50) + Fraction(1, 3), Fraction(10**30)):
        counts = np.array([0, 1, 2, 1000, 10**6, 2**20])
        value = np.asarray(floor_of_share(share, xp.asarray(counts, dtype=dtype)))
        for count, floor in zip(counts.tolist(), value.tolist(), strict=True):
            # the largest number stands for more, and from one count early
            assert floor == math.floor(share * count) or (floor == most and share * (count + 2) > most)


@pytest.mark.parametrize("xp", [np, jnp])
def test_any_risk_above_the_losses_is_met(xp):
    score, loss = xp.asarray([3.0, 2.0, 1.0] * 500), xp.asarray([0, 7, 2] * 500)
    for risk in (7, 3000, 2**31, 1e30):
        assert float(coverage_at_risk(score, loss, risk)) == 1
    assert float(coverage_at_risk(score, loss, -3)) == 0


def test_real_counts_beyond_the_integers_are_real():
    np.testing.assert_allclose(floor_of_share(Fraction(1, 3), np.array([2.0**70, 1e300])), [2.0**70 / 3, 1e300 / 3])
    score, error = np.array([3.0, 2.0, 1.0]), np.array([0, 1, 0])
    assert coverage_at_risk(score, error, 0.3, weight=np.array([1, 1, 2]) * 2.0**70) == 1


def test_a_risk_of_any_denominator_is_compared_where_nothing_stands_above():
    for risk in (1e-20, 0.00012345678901234567, "0.33333333333333333333"):
        assert coverage_at_risk(np.ones(5), np.array([1, 0, 0, 0, 1]), risk) == 0
