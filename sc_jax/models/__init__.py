"""Backbones in Flax NNX, all behind one contract: images to `{"logits", "features"}`, by a pure function.

To add one: write the module in a file of its own, and a line in `BACKBONES`.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable
from typing import Any, Literal

import jax
from flax import nnx

from sc_jax.files import InputError
from sc_jax.models.cnn import CNN
from sc_jax.models.mlp import MLP

BACKBONES: dict[str, type[nnx.Module]] = {"mlp": MLP, "cnn": CNN}


@dataclasses.dataclass(frozen=True)
class Model:
    """A backbone as pure functions of explicit state, built by `build`.

    Attributes:
      init: key → (params, model_state): trainable arrays, and the others (batch statistics).
      apply: (params, model_state, images [b, h, w, c], train, key) → ({"logits" [b, k], "features" [b, d]}, model_state).
      member_mapping: how many members run in one program: "vmap", or "unroll" (one after the other in the same program,
        several times faster for convolutions on a CPU).
    """

    init: Callable[[jax.Array], tuple[Any, Any]]
    apply: Callable[..., tuple[dict[str, jax.Array], Any]]
    member_mapping: Literal["vmap", "unroll"]


def build(name: str, *, image_shape: tuple[int, ...], num_classes: int, **options: Any) -> Model:
    """Builds the backbone `name`.

    Args:
      name: a key of `BACKBONES`.
      image_shape: (h, w, c) of one image.
      num_classes: k.
      options: what the backbone's constructor takes besides (widths, dropout …).

    Returns:
      A `Model`.

    Raises:
      InputError: there is no such backbone; the nearest is named.
    """
    if name not in BACKBONES:
        near = difflib.get_close_matches(name, BACKBONES, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(BACKBONES)}"
        raise InputError(f"model.name: there is no backbone {name!r}; {hint}")
    backbone = BACKBONES[name]

    def create(key: jax.Array) -> nnx.Module:
        return backbone(image_shape=image_shape, num_classes=num_classes, rngs=nnx.Rngs(key), **options)

    graphdef, _, _ = nnx.split(nnx.eval_shape(lambda: create(jax.random.key(0))), nnx.Param, ...)

    def init(key: jax.Array) -> tuple[Any, Any]:
        _, params, model_state = nnx.split(create(key), nnx.Param, ...)
        return params, model_state

    def apply(
        params: Any, model_state: Any, images: jax.Array, *, train: bool = False, key: jax.Array | None = None
    ) -> tuple[dict[str, jax.Array], Any]:
        module = nnx.merge(graphdef, params, model_state, copy=True)
        outputs = module(images, train=train, key=key)
        _, _, model_state = nnx.split(module, nnx.Param, ...)
        return outputs, model_state

    return Model(init, apply, backbone.member_mapping)


def map_members(function: Callable[..., Any], mapping: str) -> Callable[..., Any]:
    """`function` of one member → function of all, over a leading member axis of every argument and result."""
    if mapping == "vmap":
        return jax.vmap(function)

    def unrolled(*arguments: Any) -> Any:
        members = jax.tree.leaves(arguments)[0].shape[0]
        each = [function(*jax.tree.map(lambda leaf, m=m: leaf[m], arguments)) for m in range(members)]
        return jax.tree.map(lambda *leaves: jax.numpy.stack(leaves), *each)

    return unrolled
