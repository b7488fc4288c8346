"""What a backbone costs: parameters, and multiply-accumulates of one example."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr

from sc_jax.models import Model


def parameters(model: Model) -> int:
    """Number of trainable numbers; batch statistics are not among them. Nothing is computed.

    Args:
      model: of `sc_jax.models.build`.

    Returns:
      Σ sizes of the leaves of params.
    """
    params, _ = jax.eval_shape(model.init, jax.random.key(0))
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def macs(model: Model, input_shape: tuple[int, ...], input_dtype: Any = jnp.float32) -> int:
    """Multiply-accumulates of one example's inference, exactly, from the traced program; nothing is compiled or run.

        convolution: |output| · kernel height · kernel width · input channels / groups
        matrix product: |output| · contracted length

    Counted are convolutions and matrix products alone, which is what papers call multiply-adds (and often "FLOPs");
    biases, normalisation, activations, pooling and look-ups are not. Products with the zeros of a padded border count, as they
    do in published figures. A scan counts its body once per step; of branches the dearest counts. XLA's own
    cost analysis counts a multiplication and an addition as two, leaves out the padding and adds elementwise work, so that its
    flops ≈ 2 MACs.

    Args:
      model: of `sc_jax.models.build`.
      input_shape: of one input, without the batch axis.
      input_dtype: of the inputs: float32 images and rows, int32 tokens.

    Returns:
      The number of multiply-accumulates.

    Raises:
      ValueError: the program has a `while` loop that multiplies matrices; its number of steps is not known.
    """
    return count(_traced(model, input_shape, input_dtype))


def convolves(model: Model, input_shape: tuple[int, ...], input_dtype: Any = jnp.float32) -> bool:
    """Whether a network has convolutions; the arguments are those of `macs`."""
    return any(
        equation.primitive.name == "conv_general_dilated"
        for equation in _equations(_traced(model, input_shape, input_dtype))
    )


def _traced(model: Model, input_shape: tuple[int, ...], input_dtype: Any) -> Jaxpr:
    params, model_state = jax.eval_shape(model.init, jax.random.key(0))
    inputs = jax.ShapeDtypeStruct((1, *input_shape), input_dtype)
    return jax.make_jaxpr(lambda p, s, x: model.apply(p, s, x)[0])(params, model_state, inputs).jaxpr


def _equations(jaxpr: Jaxpr) -> Iterator[Any]:
    for equation in jaxpr.eqns:
        yield equation
        for inner in _jaxprs(equation.params.values()):
            yield from _equations(inner)


def count(jaxpr: Jaxpr) -> int:
    """Multiply-accumulates of a traced program, as `macs` defines them.

    Args:
      jaxpr: for example `jax.make_jaxpr(f)(*arguments).jaxpr`.

    Returns:
      The number of multiply-accumulates.

    Raises:
      ValueError: as for `macs`.
    """
    return sum(_count_equation(equation) for equation in jaxpr.eqns)


def _count_equation(equation: Any) -> int:
    name = equation.primitive.name
    if name == "conv_general_dilated":
        kernel = equation.invars[1].aval.shape  # its input channels are those of one group already
        output_channels = kernel[equation.params["dimension_numbers"].rhs_spec[0]]
        return equation.outvars[0].aval.size * prod(kernel) // output_channels
    if name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        return equation.outvars[0].aval.size * prod(equation.invars[0].aval.shape[axis] for axis in contracted)
    inner = [count(jaxpr) for jaxpr in _jaxprs(equation.params.values())]
    if name == "scan":
        return equation.params["length"] * sum(inner)
    if name == "cond":
        return max(inner)
    if name == "while" and sum(inner):
        raise ValueError("macs: a while loop multiplies matrices, and its number of steps is not known; use lax.scan")
    return sum(inner)


def _jaxprs(values: Any) -> Iterator[Jaxpr]:
    """The programs within an equation's parameters: bodies, branches, functions called."""
    for value in values:
        if isinstance(value, ClosedJaxpr):
            yield value.jaxpr
        elif isinstance(value, Jaxpr):
            yield value
        elif isinstance(value, tuple | list):
            yield from _jaxprs(value)
