"""Devices: one 1-D mesh named `data`. The only module that speaks of shardings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from sc_jax.files import InputError


def data_mesh() -> Mesh:
    """All devices in one row, named `data`."""
    return jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Every leaf whole on every device."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def replicated(shapes: Any, mesh: Mesh) -> Any:
    """The shapes and dtypes of `shapes`, said to lie whole on every device; what a checkpoint is restored to."""
    whole = NamedSharding(mesh, PartitionSpec())
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=whole), shapes)


def split_batch(batch: jax.Array, mesh: Mesh, axis: int) -> jax.Array:
    """Inside `jit`: asks for `axis` of `batch` to be divided over the devices, and so for the work on it."""
    return jax.lax.with_sharding_constraint(batch, NamedSharding(mesh, PartitionSpec(*[None] * axis, "data")))


def divide(batch: Any, mesh: Mesh, axis: int) -> Any:
    """Every array of `batch` from the host, with `axis` divided over the devices."""
    return jax.device_put(batch, NamedSharding(mesh, PartitionSpec(*[None] * axis, "data")))


def keep_whole(tree: Any, mesh: Mesh) -> Any:
    """Inside `jit`: every leaf whole on every device (gradients are summed over the devices to get there)."""
    return jax.lax.with_sharding_constraint(tree, NamedSharding(mesh, PartitionSpec()))


def require_divisible(batch_size: int, mesh: Mesh, field: str) -> None:
    """Refuses a batch that does not divide over the devices."""
    if batch_size % mesh.size:
        raise InputError(
            f"{field} = {batch_size} does not divide over {mesh.size} devices; make it a multiple of {mesh.size}"
        )


def map_over_devices(function: Callable[[Any, jax.Array], Any], mesh: Mesh) -> Callable[[Any, jax.Array], Any]:
    """`function(state, batch)` on each device's share of the batch, by `shard_map`: what `pmap` is made of.

    Args:
      function: (state, batch [b/devices, …]) → a tree of arrays [members, b/devices, …].
      mesh: the devices; `state` is whole on each.

    Returns:
      A jitted function of (state, batch [b, …]), b a multiple of the devices, giving [members, b, …].
    """
    mapped = jax.shard_map(
        function,
        mesh=mesh,
        in_specs=(PartitionSpec(), PartitionSpec("data")),
        out_specs=PartitionSpec(None, "data"),
        check_vma=False,  # a recurrent network starts its scan from zeros, which the check takes for shared by all devices
    )
    return jax.jit(mapped)


def map_shares(function: Callable[..., Any], mesh: Mesh, divided: Any) -> Callable[..., Any]:
    """`function(*shares)` on each device's share of arrays [n], with collectives over `data` inside.

    Args:
      function: (arrays [n/devices]) → a tree of arrays.
      mesh: the devices; divided: a tree like the result (or a prefix of it) of bools: True where an array is this device's
        share of [n], False where it is the same on every device.

    Returns:
      A jitted function of arrays [n], n a multiple of the devices.
    """
    out_specs = jax.tree.map(lambda share: PartitionSpec("data") if share else PartitionSpec(), divided)
    return jax.jit(jax.shard_map(function, mesh=mesh, in_specs=PartitionSpec("data"), out_specs=out_specs))


def in_batches(function: Callable[[Any], Any], inputs: Any, batch_size: int, axis: int) -> Any:
    """Applies `function` to batches of one fixed size, padding the last and cutting the padding off again.

    Every row of `inputs` (an array [n, …], or a tree of them) comes out exactly once, in order, along `axis` of the result, or of each array in it.
    """
    n = len(jax.tree.leaves(inputs)[0])
    outputs = []
    for start in range(0, n, batch_size):
        real = min(batch_size, n - start)
        rows = np.minimum(np.arange(start, start + batch_size), n - 1)
        batch = jax.tree.map(lambda array, rows=rows: array[rows], inputs)
        out = jax.device_get(function(batch))
        outputs.append(jax.tree.map(lambda array, real=real: np.take(array, np.arange(real), axis=axis), out))
    return jax.tree.map(lambda *arrays: np.concatenate(arrays, axis=axis), *outputs)
