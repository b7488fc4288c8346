"""Devices of one process or many: one mesh, `member` × `data`. The only module that speaks of shardings.

Every program sees arrays of the whole job. A batch is divided over `data`, members over `member` (one row of devices, unless
more are asked for), and what lies on the devices of other processes is never fetched, except by `to_host`.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from sc_jax.files import InputError

_DIVIDED = 1024  # entries of a member's leaf below which dividing it costs more than it saves


def data_mesh(member_rows: int = 1) -> Mesh:
    """All devices of all processes, `member_rows` rows named `member` of columns named `data`.

    Raises:
      InputError: the devices do not divide into so many rows.
    """
    devices = jax.device_count()
    if devices % member_rows:
        raise InputError(
            f"devices.member_rows = {member_rows} does not divide the {devices} devices; make it a divisor of {devices}"
        )
    shape = (member_rows, devices // member_rows)
    return jax.make_mesh(shape, ("member", "data"), axis_types=(AxisType.Auto, AxisType.Auto))


def meet(mesh: Mesh) -> None:
    """Connects the devices: all of them, and those of each row and column of the mesh; all processes have to ask for it.

    On CPUs (gloo) devices that speak together for the first time wait 30 s for each other. Programs can differ by more in how long
    they take to compile; these take a moment.
    """
    if jax.process_count() == 1:
        return
    each = PartitionSpec("member", "data")
    ones = _put(np.ones(mesh.devices.shape, np.float32), NamedSharding(mesh, each))
    for axes in (("member", "data"), "data", "member"):
        summed = jax.shard_map(
            functools.partial(jax.lax.psum, axis_name=axes), mesh=mesh, in_specs=each, out_specs=each
        )
        jax.block_until_ready(jax.jit(summed)(ones))


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Every leaf whole on every device; it has to be the same in all processes."""
    return jax.tree.map(lambda leaf: _put(leaf, NamedSharding(mesh, PartitionSpec())), tree)


def place(tree: Any, mesh: Mesh, sharding: str = "replicated") -> Any:
    """A training state, or another tree whose leaves have a leading member axis or none at all, on the devices.

    Args:
      tree: the same in all processes; mesh: the devices, over whose `member` axis members are divided.
      sharding: "replicated", or "fsdp", which also divides a leaf over `data`: the longest dimension that divides, of those of
        1,024 entries a member or more.
    """
    return jax.tree.map(lambda leaf: _put(leaf, NamedSharding(mesh, _spec(leaf.shape, mesh, sharding))), tree)


def placed(shapes: Any, mesh: Mesh, sharding: str = "replicated") -> Any:
    """The shapes and dtypes of `shapes`, said to lie as `place` puts them; what a checkpoint is restored to."""

    def of(leaf: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, _spec(leaf.shape, mesh, sharding))
        )

    return jax.tree.map(of, shapes)


def keep(tree: Any, mesh: Mesh, sharding: str = "replicated") -> Any:
    """Inside `jit`: every leaf stays as `place` puts it."""
    return jax.tree.map(lambda leaf: _constrain(leaf, mesh, _spec(leaf.shape, mesh, sharding)), tree)


def keep_whole(tree: Any, mesh: Mesh) -> Any:
    """Inside `jit`: every leaf whole on every device (gradients are summed over the devices to get there)."""
    return jax.tree.map(lambda leaf: _constrain(leaf, mesh, PartitionSpec()), tree)


def keep_member(tree: Any, mesh: Mesh, sharding: str) -> Any:
    """Inside the program of one member: every leaf, without the member axis, stays as `place` puts it."""
    return jax.tree.map(lambda leaf: _constrain(leaf, mesh, _of_member(leaf.shape, mesh, sharding)), tree)


def over_members(function: Callable[..., Any], mesh: Mesh) -> Callable[..., Any]:
    """Inside `jit`: `function` of members, each row of devices with its own; `data` is divided as elsewhere.

    Args:
      function: arrays with a leading member axis → arrays with one; it may go through members one by one.
      mesh: the devices; their rows divide the members.
    """
    if mesh.shape["member"] == 1:
        return function
    specs = PartitionSpec("member")
    return jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=specs, axis_names={"member"}, check_vma=False)


def split_batch(batch: jax.Array, mesh: Mesh, axis: int) -> jax.Array:
    """Inside `jit`: asks for `axis` of `batch` to be divided over the devices, and so for the work on it."""
    return _constrain(batch, mesh, PartitionSpec(*[None] * axis, "data"))


def local_rows(batch_size: int, mesh: Mesh) -> np.ndarray:
    """Which rows of a batch the devices of this process work on: int64, increasing. Alone, it is all of them."""
    width = batch_size // mesh.shape["data"]
    return (_columns(mesh)[:, None] * width + np.arange(width)).reshape(-1)


def divide(batch: Any, mesh: Mesh, axis: int) -> Any:
    """Every array of `batch` from the host, with `axis` divided over the devices: each process has its `local_rows`."""
    sharding = NamedSharding(mesh, PartitionSpec(*[None] * axis, "data"))
    if jax.process_count() == 1:
        return jax.device_put(batch, sharding)
    columns = _columns(mesh)

    def of(local: np.ndarray) -> jax.Array:
        local = np.asarray(local)
        width = local.shape[axis] // len(columns)
        shape = (*local.shape[:axis], width * mesh.shape["data"], *local.shape[axis + 1 :])

        def rows(index: tuple[slice, ...]) -> np.ndarray:
            place = int(np.searchsorted(columns, (index[axis].start or 0) // width))
            return local[(slice(None),) * axis + (slice(place * width, (place + 1) * width),)]

        return jax.make_array_from_callback(shape, sharding, rows)

    return jax.tree.map(of, batch)


class Part(NamedTuple):
    """What a device of this process holds of outputs [members, rows, …].

    Attributes:
      member, row: the first of each; outputs: a tree of arrays [m, r, …] on the host.
    """

    member: int
    row: int
    outputs: Any


def parts(outputs: Any) -> list[Part]:
    """The parts of outputs [members, rows, …] that this process holds; all processes together hold each once."""
    leaves, structure = jax.tree.flatten(outputs)
    found: dict[tuple[int, int], list[np.ndarray]] = {}
    for leaf in leaves:
        for shard in leaf.addressable_shards:
            if shard.replica_id == 0:
                member, row = (piece.start or 0 for piece in shard.index[:2])
                found.setdefault((member, row), []).append(np.asarray(shard.data))
    return [Part(*first, jax.tree.unflatten(structure, arrays)) for first, arrays in sorted(found.items())]


def to_host(tree: Any) -> Any:
    """A copy of every leaf, whole, in every process; all of them have to ask for it."""

    def of(leaf: Any) -> np.ndarray:
        if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable or leaf.is_fully_replicated:
            return np.array(leaf)
        return np.array(multihost_utils.process_allgather(leaf, tiled=True))

    return jax.tree.map(of, tree)


def require_divisible(batch_size: int, mesh: Mesh, field: str) -> None:
    """Refuses a batch that does not divide over the devices that it is divided over."""
    columns = mesh.shape["data"]
    if batch_size % columns:
        raise InputError(
            f"{field} = {batch_size} does not divide over {columns} devices; make it a multiple of {columns}"
        )


def require_members(members: int, mesh: Mesh) -> None:
    """Refuses members that do not divide over the rows of devices."""
    rows = mesh.shape["member"]
    if members % rows:
        raise InputError(
            f"devices.member_rows = {rows}: {members} members do not divide over it; make it a divisor of {members}"
        )


def on_host() -> contextlib.AbstractContextManager[Any]:
    """Arrays made inside lie in the memory of the host: for what fits no device before it is divided."""
    return jax.default_device(jax.local_devices(backend="cpu")[0])


def map_over_devices(function: Callable[[Any, Any], Any], mesh: Mesh) -> Callable[[Any, Any], Any]:
    """`function(state, batch)` on each device's members and share of the batch, by `shard_map`: what `pmap` is made of.

    Args:
      function: (state, batch [b/columns, …]) → a tree of arrays [members/rows, b/columns, …].
      mesh: the devices; every leaf of `state` has a leading member axis.

    Returns:
      A jitted function of (state, batch [b, …]), b a multiple of the columns, giving [members, b, …].
    """
    mapped = jax.shard_map(
        function,
        mesh=mesh,
        in_specs=(PartitionSpec("member"), PartitionSpec("data")),
        out_specs=PartitionSpec("member", "data"),
        check_vma=False,  # a recurrent network starts its scan from zeros, which the check takes for shared by all devices
    )
    return jax.jit(mapped)


def map_shares(function: Callable[..., Any], mesh: Mesh, divided: Any) -> Callable[..., Any]:
    """`function(*shares)` on each device's share of arrays [n], with collectives over `data` inside.

    Args:
      function: (arrays [n/columns]) → a tree of arrays.
      mesh: the devices; divided: a tree like the result (or a prefix of it) of bools: True where an array is this device's
        share of [n], False where it is the same on every device.

    Returns:
      A jitted function of arrays [n], n a multiple of the columns.
    """
    out_specs = jax.tree.map(lambda share: PartitionSpec("data") if share else PartitionSpec(), divided)
    return jax.jit(jax.shard_map(function, mesh=mesh, in_specs=PartitionSpec("data"), out_specs=out_specs))


def in_batches(inputs: Any, batch_size: int, rows: np.ndarray | None = None) -> Iterator[Any]:
    """Batches of one fixed size, in order; beyond the end stands the last row again.

    Args:
      inputs: an array [n, …], or a tree of them, of which every batch is one; batch_size: of all processes together.
      rows: int [r], which rows of each batch are wanted here, all by default.

    Returns:
      An iterator over the ⌈n/batch_size⌉ batches.
    """
    n = len(jax.tree.leaves(inputs)[0])
    rows = np.arange(batch_size) if rows is None else rows
    for start in range(0, n, batch_size):
        index = np.minimum(start + rows, n - 1)
        yield jax.tree.map(lambda array, index=index: array[index], inputs)


class Rows:
    """Outputs [members, rows, …] put together from parts, by whichever process they come.

    Padding beyond the last row is left out.
    """

    def __init__(self, members: int, rows: int) -> None:
        """Args: how many there are of each."""
        self._count = np.zeros((members, rows), np.uint8)
        self._whole: list[np.ndarray] | None = None
        self._structure: Any = None

    def add(self, member: int, rows: np.ndarray, outputs: Any) -> None:
        """Takes a part.

        Args:
          member: the first of m; rows: int [r], some of them beyond the end; outputs: arrays [m, r, …].

        Raises:
          RuntimeError: one of the rows has come before, or comes twice.
        """
        leaves, structure = jax.tree.flatten(outputs)
        real = rows < self._count.shape[1]
        members = slice(member, member + leaves[0].shape[0])
        np.add.at(self._count, (members, rows[real]), 1)
        self._require(self._count <= 1)
        if self._whole is None:
            self._structure = structure
            self._whole = [np.empty((*self._count.shape, *leaf.shape[2:]), leaf.dtype) for leaf in leaves]
        for whole, leaf in zip(self._whole, leaves, strict=True):
            whole[members, rows[real]] = leaf[:, real]

    def whole(self) -> Any:
        """The arrays.

        Raises:
          RuntimeError: a row did not come.
        """
        self._require(self._count == 1)
        return jax.tree.unflatten(self._structure, self._whole)

    def _require(self, right: np.ndarray) -> None:
        if not right.all():
            (member, row), wrong = np.argwhere(~right)[0], np.count_nonzero(~right)
            raise RuntimeError(f"{wrong} outputs did not come exactly once (first: member {member}, row {row})")


def _columns(mesh: Mesh) -> np.ndarray:
    """The places on the `data` axis that devices of this process have."""
    mine = [d.process_index == jax.process_index() for d in mesh.devices.flat]
    return np.unique(np.argwhere(np.reshape(mine, mesh.devices.shape))[:, 1])


def _spec(shape: Sequence[int], mesh: Mesh, sharding: str) -> PartitionSpec:
    """One row of devices divides no members; then, and without "fsdp", this is the spec of `replicate`."""
    if not shape:
        return PartitionSpec()
    of_member = _of_member(shape[1:], mesh, sharding)
    return PartitionSpec("member", *of_member) if mesh.shape["member"] > 1 else _bare(None, *of_member)


def _of_member(shape: Sequence[int], mesh: Mesh, sharding: str) -> PartitionSpec:
    columns = mesh.shape["data"]
    axes = [axis for axis, length in enumerate(shape) if length % columns == 0]
    if sharding == "replicated" or columns == 1 or math.prod(shape) < _DIVIDED or not axes:
        return PartitionSpec()
    longest = max(axes, key=lambda axis: shape[axis])
    return _bare(*["data" if axis == longest else None for axis in range(len(shape))])


def _bare(*axes: str | None) -> PartitionSpec:
    """Without what divides nothing at the end: specs that mean the same are equal, and compile nothing anew."""
    while axes and axes[-1] is None:
        axes = axes[:-1]
    return PartitionSpec(*axes)


def _constrain(leaf: jax.Array, mesh: Mesh, spec: PartitionSpec) -> jax.Array:
    within = jax.sharding.get_abstract_mesh()  # inside `over_members` it says which axes are taken
    return jax.lax.with_sharding_constraint(leaf, NamedSharding(mesh if within.empty else within, spec))


def _put(leaf: Any, sharding: NamedSharding) -> jax.Array:
    elsewhere = isinstance(leaf, jax.Array) and not leaf.is_fully_addressable
    if sharding.is_fully_addressable or elsewhere:
        return jax.device_put(leaf, sharding)
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        bare = PartitionSpec(*sharding.spec)
        return jax.random.wrap_key_data(_put(jax.random.key_data(leaf), NamedSharding(sharding.mesh, bare)))
    whole = np.asarray(leaf)  # not `device_put`, which compares all of it between the processes
    return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])
