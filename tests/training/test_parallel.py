"""Batches in and out: every row exactly once."""

from __future__ import annotations

from typing import ClassVar

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sc_jax.files import InputError
from sc_jax.training import parallel


@settings(deadline=None, derandomize=True)
@given(n=st.integers(1, 40), share=st.integers(1, 9), processes=st.integers(1, 4))
def test_every_row_comes_out_once_in_order_whatever_the_split_of_work(n: int, share: int, processes: int) -> None:
    inputs, batch_size = np.arange(n * 2).reshape(n, 2), share * processes
    out = parallel.Rows(2, n)
    for process in range(processes):
        rows = process * share + np.arange(share)
        for i, (batch, number) in enumerate(parallel.in_batches((inputs, np.arange(n)), batch_size, rows)):
            assert len(batch) == len(number) == share, "one shape, one compilation"
            for member in (0, 1):  # each from another device
                found = {"sum": (1 + member) * batch.sum(axis=1)[None], "both": (1 + member) * batch[None]}
                out.add(member, i * batch_size + rows, found)
    whole = out.whole()
    np.testing.assert_array_equal(whole["both"], np.stack([inputs, 2 * inputs]))
    np.testing.assert_array_equal(whole["sum"], np.stack([inputs, 2 * inputs]).sum(axis=2))


def test_a_row_that_is_lost_or_comes_twice_is_found() -> None:
    out = parallel.Rows(2, 5)
    out.add(0, np.arange(5), np.zeros((2, 5)))
    with pytest.raises(RuntimeError, match=r"1 outputs did not come exactly once \(first: member 1, row 3\)"):
        out.add(1, np.array([3]), np.zeros((1, 1)))
    with pytest.raises(RuntimeError, match="first: member 0, row 1"):
        parallel.Rows(1, 3).add(0, np.array([0, 1, 1, 2]), np.zeros((1, 4)))  # twice in one part
    out = parallel.Rows(1, 5)
    out.add(0, np.array([0, 1, 2, 4, 5, 6, 6]), np.zeros((1, 7)))  # 5 and 6 are padding
    with pytest.raises(RuntimeError, match="first: member 0, row 3"):
        out.whole()
    with pytest.raises(RuntimeError):
        parallel.Rows(1, 1).whole()


def test_without_padding_only_all_rows_of_a_batch_are_local() -> None:
    mesh = parallel.data_mesh()
    np.testing.assert_array_equal(parallel.local_rows(6, mesh), np.arange(6))


def test_the_parts_of_one_device_are_the_whole() -> None:
    mesh = parallel.data_mesh()
    mapped = parallel.map_over_devices(lambda scale, x: {"scaled": scale[:, None] * x[None]}, mesh)
    [part] = parallel.parts(mapped(np.arange(3), parallel.divide(np.arange(4), mesh, axis=0)))
    assert (part.member, part.row) == (0, 0)
    np.testing.assert_array_equal(part.outputs["scaled"], np.outer(np.arange(3), np.arange(4)))


def test_on_one_device_everything_lies_alike_and_nothing_compiles_anew() -> None:
    mesh, tree = parallel.data_mesh(), {"kernel": np.ones((2, 64, 32)), "step": np.int32(0)}
    wanted = parallel.replicate(tree, mesh)
    for sharding in ("replicated", "fsdp"):
        placed, said = parallel.place(tree, mesh, sharding), parallel.placed(tree, mesh, sharding)
        kept = jax.jit(lambda tree, sharding=sharding: parallel.keep(tree, mesh, sharding))(placed)
        for name, leaf in wanted.items():
            assert leaf.sharding == placed[name].sharding == said[name].sharding
            assert kept[name].sharding.is_equivalent_to(leaf.sharding, leaf.ndim)


def test_what_is_copied_to_the_host_is_a_copy() -> None:
    array = np.arange(3)
    copy = parallel.to_host({"a": array, "b": jax.numpy.ones(2), "c": 1.5})
    array[0] = 7
    np.testing.assert_array_equal(copy["a"], [0, 1, 2])
    assert isinstance(copy["b"], np.ndarray)
    assert copy["c"] == 1.5


class Mesh:
    """Two rows of eight devices."""

    shape: ClassVar = {"member": 2, "data": 8}


def test_a_batch_that_does_not_divide_is_refused() -> None:
    parallel.require_divisible(64, Mesh(), "training.batch_size")
    with pytest.raises(InputError, match=r"training\.batch_size = 60 does not divide over 8 devices"):
        parallel.require_divisible(60, Mesh(), "training.batch_size")


def test_members_and_devices_that_do_not_divide_are_refused() -> None:
    parallel.require_members(4, Mesh())
    with pytest.raises(InputError, match=r"devices\.member_rows = 2: 5 members do not divide over it"):
        parallel.require_members(5, Mesh())
    with pytest.raises(InputError, match=r"devices\.member_rows = 3 does not divide the 1 devices"):
        parallel.data_mesh(3)
