"""Costs against XLA's own count, and against closed forms."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from sc_jax import models
from sc_jax.models import costs


def shaped(*shapes: tuple[int, ...]) -> list[jax.ShapeDtypeStruct]:
    return [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]


def counted(function: Callable[..., object], *shapes: tuple[int, ...]) -> int:
    return costs.count(jax.make_jaxpr(function)(*shaped(*shapes)).jaxpr)


def convolve(**options: object) -> Callable[[jax.Array, jax.Array], jax.Array]:
    options = {"window_strides": (1, 1), "padding": "VALID", "dimension_numbers": ("NHWC", "HWIO", "NHWC"), **options}
    return lambda x, kernel: lax.conv_general_dilated(x, kernel, **options)


PROGRAMS = {
    "convolution": (convolve(), (2, 8, 8, 6), (3, 3, 6, 10)),
    "strided": (convolve(window_strides=(2, 2)), (2, 9, 9, 6), (3, 3, 6, 10)),
    "dilated": (convolve(rhs_dilation=(2, 2)), (1, 9, 9, 6), (3, 3, 6, 4)),
    "grouped": (convolve(feature_group_count=3), (1, 8, 8, 6), (3, 3, 2, 12)),
    "depthwise": (convolve(feature_group_count=6), (1, 8, 8, 6), (5, 5, 1, 6)),
    "matrices": (lambda a, b: a @ b, (7, 5), (5, 3)),
    "batched": (lambda a, b: jnp.einsum("bqhd,bkhd->bhqk", a, b), (2, 4, 3, 8), (2, 6, 3, 8)),
    "inner calls": (lambda a, b: jax.checkpoint(jax.jit(jnp.matmul))(a, b), (7, 5), (5, 3)),
}


@pytest.mark.parametrize("program", PROGRAMS)
def test_two_flops_of_xla_are_one_multiply_accumulate(program: str) -> None:
    function, *shapes = PROGRAMS[program]
    analysis = jax.jit(function).lower(*shaped(*shapes)).compile().cost_analysis()
    assert 2 * counted(function, *shapes) == analysis["flops"] > 0


def test_padding_counts() -> None:
    """ "Same" padding: every output costs a whole kernel, though XLA leaves the border's zeros out."""
    assert counted(convolve(padding="SAME"), (1, 4, 4, 3), (3, 3, 3, 5)) == 4 * 4 * 9 * 3 * 5


def test_a_scan_counts_every_step_and_branches_the_dearest() -> None:
    def scan(x: jax.Array, w: jax.Array) -> jax.Array:
        return lax.scan(lambda h, _: (h @ w, None), x, length=11)[0]

    def branch(x: jax.Array, w: jax.Array) -> jax.Array:
        return lax.cond(x[0, 0] > 0, lambda: x @ w, lambda: x @ w @ w)

    assert counted(scan, (2, 3), (3, 3)) == 11 * 2 * 3 * 3
    assert counted(branch, (2, 3), (3, 3)) == 2 * 2 * 3 * 3


def test_a_loop_of_unknown_length_is_refused() -> None:
    def loop(x: jax.Array, w: jax.Array) -> jax.Array:
        return lax.while_loop(lambda h: jnp.sum(h) > 1, lambda h: h @ w, x)

    with pytest.raises(ValueError, match=r"while loop.*lax\.scan"):
        counted(loop, (2, 3), (3, 3))


def test_of_a_model() -> None:
    """784-32-10; the count is of one example, and of its inference."""
    model = models.build("mlp", input_shape=(28, 28, 1), num_classes=10, hidden=(32,), dropout=0.5)
    assert costs.macs(model, (28, 28, 1)) == 784 * 32 + 32 * 10
    assert costs.parameters(model) == 784 * 32 + 32 + 32 * 10 + 10
