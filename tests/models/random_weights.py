"""Backbones with random weights in every tensor, without the compilation of their initialisers."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx


def abstract(backbone: Callable[..., nnx.Module], **options: object) -> nnx.Module:
    """The module with shapes in place of arrays."""
    return nnx.eval_shape(lambda: backbone(rngs=nnx.Rngs(0), **options))


def filled(backbone: Callable[..., nnx.Module], **options: object) -> nnx.Module:
    """The module with kernels from N(0, 1/fan-in) and all else, batch statistics too, uniform on (½, 3/2)."""
    rng = np.random.default_rng(0)

    def draw(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        if len(leaf.shape) > 1:
            return jnp.asarray(rng.normal(size=leaf.shape) / np.prod(leaf.shape[:-1]) ** 0.5, leaf.dtype)
        return jnp.asarray(rng.uniform(0.5, 1.5, leaf.shape), leaf.dtype)

    graphdef, state = nnx.split(abstract(backbone, **options))
    return nnx.merge(graphdef, jax.tree.map(draw, state))


def shapes(module: nnx.Module) -> dict[str, tuple[int, ...]]:
    """Parameters by their path, joined by dots."""
    return {".".join(map(str, path)): leaf.shape for path, leaf in nnx.to_flat_state(nnx.state(module, nnx.Param))}


def count(module: nnx.Module) -> int:
    """Number of parameters."""
    return sum(int(np.prod(shape)) for shape in shapes(module).values())
