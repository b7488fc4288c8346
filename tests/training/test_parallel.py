"""Batches in and out: every row exactly once."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sc_jax.files import InputError
from sc_jax.training import parallel


@settings(deadline=None, derandomize=True)
@given(n=st.integers(1, 40), batch_size=st.integers(1, 17))
def test_every_row_comes_out_once_in_order(n: int, batch_size: int) -> None:
    inputs = np.arange(n * 2).reshape(n, 2)
    sizes = []

    def double(batch: np.ndarray) -> np.ndarray:
        sizes.append(len(batch))
        return np.stack([batch, 2 * batch])  # a leading axis of two members

    out = parallel.in_batches(double, inputs, batch_size, axis=1)
    np.testing.assert_array_equal(out, np.stack([inputs, 2 * inputs]))
    assert set(sizes) == {batch_size}, "one shape, one compilation"


def test_every_array_of_what_comes_out_is_whole() -> None:
    inputs = np.arange(10).reshape(5, 2)

    def outputs(batch: np.ndarray) -> dict[str, np.ndarray]:
        return {"sum": batch.sum(axis=1)[None], "both": np.stack([batch, -batch])}

    out = parallel.in_batches(outputs, inputs, 3, axis=1)
    np.testing.assert_array_equal(out["sum"], inputs.sum(axis=1)[None])
    np.testing.assert_array_equal(out["both"], np.stack([inputs, -inputs]))


def test_a_batch_that_does_not_divide_is_refused() -> None:
    class Mesh:
        size = 8

    parallel.require_divisible(64, Mesh(), "training.batch_size")
    with pytest.raises(InputError, match=r"training\.batch_size = 60 does not divide over 8 devices"):
        parallel.require_divisible(60, Mesh(), "training.batch_size")
