"""Layers of which one network has m members: BatchEnsemble, packed ensembles, Masksembles.

Values go through them as [m, b, …], member by member, and every example goes through every member, in training too: BatchEnsemble's
and Masksembles' authors divide a batch of training over the members instead. A network of such layers gives
`member_logits` [m, b, k] beside `logits` [b, k], the log of the mean over members of their probabilities, and its loss is the mean
of the members' losses.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from sc_jax.files import InputError

KINDS = ("batch_ensemble", "packed", "masksembles")


@dataclasses.dataclass(frozen=True)
class InNetwork:
    """How a network holds its members.

    Attributes:
      kind: one of `KINDS`; members: m.
      scale: of "masksembles", s ≥ 1: larger, masks overlap less; at 1 all are ones.
      alpha: of "packed", the widths of all members together as a multiple of the network's; groups: γ, into which each member's
        hidden layers are divided.
    """

    kind: str
    members: int
    scale: float = 1.0
    alpha: float = 1.0
    groups: int = 1


class BatchEnsemble(nnx.Module):
    """A layer that members share, between signs of their own: y_i = s_i ∘ W(r_i ∘ x_i) + b_i.

    With r = s = 1 and equal b it is the plain layer for every member. From a inputs to b outputs it has m(a + 2b) parameters
    beside W's, m(a + b) without a bias.

    Source: Wen, Tran & Ba (2020), "BatchEnsemble", eq. 1 and 5; fast weights start as random signs, the biases are the members' own
    (the latter as in the authors' code, from memory).

    Args:
      shared: `nnx.Linear` or `nnx.Conv` without a bias.
      members: m; bias: whether the members have one.
      rngs: stream "params".
    """

    def __init__(self, shared: nnx.Linear | nnx.Conv, members: int, *, bias: bool = True, rngs: nnx.Rngs):
        self.shared = shared
        inputs, outputs = shared.in_features, shared.out_features
        self.fast_in = nnx.Param(jax.random.rademacher(rngs.params(), (members, inputs), jnp.float32))
        self.fast_out = nnx.Param(jax.random.rademacher(rngs.params(), (members, outputs), jnp.float32))
        self.member_bias = nnx.Param(jnp.zeros((members, outputs))) if bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        """[m, b, …, a] → [m, b, …, b]."""
        y = self.shared(x * _beside(self.fast_in[...], x).astype(x.dtype))
        y = y * _beside(self.fast_out[...], y).astype(y.dtype)
        return y if self.member_bias is None else y + _beside(self.member_bias[...], y).astype(y.dtype)


class PackedLinear(nnx.Module):
    """Every member has a dense layer of its own, divided into γ groups: y_ig = W_ig x_ig + b_ig.

    From a inputs to b outputs of each member: m·a·b/γ + m·b parameters.

    Source: Laurent et al. (2023), "Packed-Ensembles for efficient uncertainty estimation", section 3; one grouped layer there,
    the same sums.

    Args:
      inputs, outputs: a and b, of one member.
      members: m; groups: γ, a divisor of both.
      dtype: of the computation.
      rngs: stream "params".
    """

    def __init__(self, inputs: int, outputs: int, members: int, *, groups: int = 1, dtype: Any, rngs: nnx.Rngs):
        init = nnx.initializers.lecun_normal(in_axis=2, out_axis=3, batch_axis=(0, 1))
        self.dtype = dtype
        self.kernel = nnx.Param(
            init(rngs.params(), (members, groups, inputs // groups, outputs // groups), jnp.float32)
        )
        self.member_bias = nnx.Param(jnp.zeros((members, outputs)))

    def __call__(self, x: jax.Array) -> jax.Array:
        """[m, b, a] → [m, b, b]."""
        kernel = self.kernel[...].astype(self.dtype)
        grouped = x.astype(self.dtype).reshape(*x.shape[:2], kernel.shape[1], -1)
        y = jnp.einsum("mbgi,mgio->mbgo", grouped, kernel).reshape(*x.shape[:2], -1)
        return y + _beside(self.member_bias[...], y).astype(self.dtype)


class PackedConv(nnx.Module):
    """Every member has a convolution of its own, divided into γ groups.

    k×k from a channels to b of each member: m·k²·a·b/γ + m·b parameters, the latter with a bias.

    Source: Laurent et al. (2023), section 3 and eq. 4.

    Args:
      inputs, outputs: channels of one member; size: k; strides: of the places.
      members: m; groups: γ, a divisor of both numbers of channels.
      margin: pixels of padding on every side, None for "same"; bias: whether there is one; init: of the kernels [m, k, k, a/γ, b], by default
        LeCun's.
      dtype: of the computation.
      rngs: stream "params".
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        members: int,
        *,
        size: int,
        strides: int,
        groups: int = 1,
        margin: int | None = None,
        bias: bool = True,
        init: jax.nn.initializers.Initializer | None = None,
        dtype: Any,
        rngs: nnx.Rngs,
    ):
        self.strides, self.groups, self.dtype = strides, groups, dtype
        self.padding = "SAME" if margin is None else ((margin, margin), (margin, margin))
        init = nnx.initializers.lecun_normal(batch_axis=(0,)) if init is None else init
        self.kernel = nnx.Param(init(rngs.params(), (members, size, size, inputs // groups, outputs), jnp.float32))
        self.member_bias = nnx.Param(jnp.zeros((members, outputs))) if bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        """[m, b, h, w, a] → [m, b, h/strides, w/strides, b]."""

        def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
            return jax.lax.conv_general_dilated(
                x,
                kernel,
                (self.strides, self.strides),
                self.padding,
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
                feature_group_count=self.groups,
            )

        y = jax.vmap(convolve)(x.astype(self.dtype), self.kernel[...].astype(self.dtype))
        return y if self.member_bias is None else y + _beside(self.member_bias[...], y).astype(self.dtype)


class MemberNorm(nnx.Module):
    """Every member is normalised by its own statistics: `norm` of all members' channels side by side.

    Args:
      norm: batch normalisation of m·w channels; members: m.
    """

    def __init__(self, norm: nnx.BatchNorm, members: int):
        self.norm, self.members = norm, members

    def __call__(self, x: jax.Array, *, use_running_average: bool) -> jax.Array:
        """[m, b, h, w, c] → the same."""
        beside = jnp.moveaxis(x, 0, -2)
        y = self.norm(beside.reshape(*x.shape[1:-1], -1), use_running_average=use_running_average)
        return jnp.moveaxis(y.reshape(beside.shape), -2, 0)


@functools.cache
def masks(width: int, members: int, scale: float) -> np.ndarray:
    """The masks of Masksembles: which of `width` features each member keeps; every feature is kept by one member at least.

    Each mask has a ones among a·s places, drawn without replacement; places in no mask are dropped, and all is drawn anew until
    `width` are left. The expected number is a·s(1 − (1 − 1/s)^m), from which a follows. Where rounding leaves `width` out of
    reach, one more or less is tried of a and of a·s (the paper's code searches over s).

    Args:
      width: w, of features or channels; members: m; scale: s ≥ 1.

    Returns:
      bool [m, w], the same for the same arguments. All ones at s = 1.

    Raises:
      ValueError: no masks of that kind were found (a width of a few features).

    Source: Durasov et al. (2021), "Masksembles for uncertainty estimation", section 4.1, Algorithm 1 (numbering from memory).

    >>> masks(6, 3, 1.0).sum(1).tolist(), masks(64, 4, 2.0).sum(1).tolist()
    ([6, 6, 6], [34, 34, 34, 34])
    """
    share = scale * (1 - (1 - 1 / scale) ** members)  # of `width` over ones
    nearest = max(1, round(width / share))
    rng = np.random.default_rng(0)
    for ones in (nearest, nearest + 1, max(1, nearest - 1)):
        most = round(ones * scale)
        for places in (most, most + 1, max(ones, most - 1)):
            for _ in range(300):
                drawn = np.zeros((members, places), bool)
                for row in drawn:
                    row[rng.choice(places, ones, replace=False)] = True
                kept = drawn[:, drawn.any(0)]
                if kept.shape[1] == width:
                    return kept
    raise ValueError(f"masks: none of width {width} for {members} members at scale {scale:g}; widen the layer")


def require_hidden(hidden: Sequence[int], ensemble: InNetwork | None) -> None:
    """Refuses Masksembles without a hidden layer, where nothing would be masked and all members the same.

    Raises:
      InputError: there is none.
    """
    if ensemble is not None and ensemble.kind == "masksembles" and not hidden:
        raise InputError("model.hidden: masksembles mask hidden layers, and there is none; give at least one")


def width_of(width: int, ensemble: InNetwork | None) -> int:
    """The width of a hidden layer in each member: α·w/m of a packed ensemble, w itself of all others.

    Raises:
      InputError: a packed ensemble's width does not divide among members and groups.
    """
    if ensemble is None or ensemble.kind != "packed":
        return width
    parts = ensemble.members * ensemble.groups
    whole = ensemble.alpha * width
    if whole % parts:
        raise InputError(
            f"model.hidden: {width}·α with α = {ensemble.alpha:g} is {whole:g}, which {ensemble.members} members of "
            f"{ensemble.groups} groups do not divide: take widths with {parts} as a divisor of α times them"
        )
    return int(whole) // ensemble.members


def linear(
    inputs: int, outputs: int, ensemble: InNetwork | None, *, grouped: bool = False, dtype: Any, rngs: nnx.Rngs
) -> nnx.Module:
    """A dense layer of every member, or the plain one where there is no ensemble.

    Args:
      inputs, outputs: of one member; ensemble: how there are members; grouped: whether a packed ensemble's groups divide it.
      dtype: of the computation; rngs: stream "params".
    """
    if ensemble is None or ensemble.kind == "masksembles":
        return nnx.Linear(inputs, outputs, dtype=dtype, rngs=rngs)
    if ensemble.kind == "batch_ensemble":
        shared = nnx.Linear(inputs, outputs, use_bias=False, dtype=dtype, rngs=rngs)
        return BatchEnsemble(shared, ensemble.members, rngs=rngs)
    groups = ensemble.groups if grouped else 1
    return PackedLinear(inputs, outputs, ensemble.members, groups=groups, dtype=dtype, rngs=rngs)


def convolution(
    inputs: int,
    outputs: int,
    ensemble: InNetwork | None,
    *,
    size: int,
    strides: int,
    grouped: bool = False,
    dtype: Any,
    rngs: nnx.Rngs,
) -> nnx.Module:
    """A convolution with bias and "same" padding of every member, or the plain one where there is no ensemble.

    Args:
      inputs, outputs, ensemble, grouped, dtype, rngs: as of `linear`, of channels; size: side of the kernel; strides: of the places.
    """
    options = {"strides": strides, "dtype": dtype, "rngs": rngs}
    if ensemble is None or ensemble.kind == "masksembles":
        return nnx.Conv(inputs, outputs, (size, size), **options)
    if ensemble.kind == "batch_ensemble":
        shared = nnx.Conv(inputs, outputs, (size, size), use_bias=False, **options)
        return BatchEnsemble(shared, ensemble.members, rngs=rngs)
    groups = ensemble.groups if grouped else 1
    return PackedConv(inputs, outputs, ensemble.members, size=size, groups=groups, **options)


def spread(x: jax.Array, ensemble: InNetwork | None) -> jax.Array:
    """Inputs [b, …] for the members: [m, b, …]; [1, b, …] for Masksembles, whose members part at the first mask."""
    if ensemble is None:
        return x
    members = 1 if ensemble.kind == "masksembles" else ensemble.members
    return jnp.broadcast_to(x[None], (members, *x.shape))


def masked(x: jax.Array, ensemble: InNetwork | None) -> jax.Array:
    """[m or 1, b, …, w] → [m, b, …, w], each member with its mask; nothing where there are none."""
    if ensemble is None or ensemble.kind != "masksembles":
        return x
    kept = masks(x.shape[-1], ensemble.members, ensemble.scale)
    return x * _beside(jnp.asarray(kept, x.dtype), x)


def outputs(logits: jax.Array, features: jax.Array, ensemble: InNetwork | None) -> dict[str, jax.Array]:
    """What a network gives: see the module; features of members [m, b, d] stand side by side, [b, m·d]."""
    if ensemble is None:
        return {"logits": logits, "features": features}
    of_all = jax.nn.logsumexp(jax.nn.log_softmax(logits), axis=0) - np.log(len(logits))
    beside = jnp.moveaxis(features, 0, 1).reshape(features.shape[1], -1)
    return {"logits": of_all, "member_logits": logits, "features": beside}


def _beside(of_members: jax.Array, x: jax.Array) -> jax.Array:
    """[m, w] → [m, 1, …, w], of the rank of x."""
    return of_members.reshape(len(of_members), *[1] * (x.ndim - 2), -1)
