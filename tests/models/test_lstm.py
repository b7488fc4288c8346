"""The text classifier; what all backbones share is in test_models.py."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from sc_jax import models
from sc_jax.models import costs
from sc_jax.models.lstm import Direction

OPTIONS = {"vocabulary_size": 30, "embedding": 6, "hidden": 5, "head": (8, 7)}
LENGTHS = (9, 4, 1, 6)


def texts(tokens: int = 9) -> np.ndarray:
    """Texts of the lengths above, padded at the end by zeros."""
    tokens_ = np.random.default_rng(0).integers(1, 30, (len(LENGTHS), tokens))
    return np.where(np.arange(tokens)[None] < np.asarray(LENGTHS)[:, None], tokens_, 0)


def build(**options: Any) -> tuple[models.Model, Any, Any]:
    model = models.build("lstm", input_shape=(9,), num_classes=2, **{**OPTIONS, **options})
    return model, *model.init(jax.random.key(0))


@pytest.mark.parametrize("bidirectional", [True, False])
def test_padding_changes_nothing(bidirectional: bool) -> None:
    """Behind the text or before it, and however much; a text of nothing but padding has a finite answer."""
    model, params, state = build(bidirectional=bidirectional)

    def logits(tokens: np.ndarray) -> np.ndarray:
        return np.asarray(model.apply(params, state, jnp.asarray(tokens))[0]["logits"])

    text = texts()
    whole = logits(text)
    np.testing.assert_allclose(logits(np.pad(text, ((0, 0), (0, 5)))), whole, atol=1e-6)
    np.testing.assert_allclose(logits(np.pad(text, ((0, 0), (3, 0)))), whole, atol=1e-6)
    np.testing.assert_allclose(logits(text[1:2, :4]), whole[1:2], atol=1e-6)
    assert np.isfinite(logits(0 * text)).all()


def test_order_matters_in_both_directions() -> None:
    model, params, state = build()
    text = jnp.arange(1, 10)[None]
    a, b = (model.apply(params, state, t)[0]["logits"] for t in (text, text[:, ::-1]))
    assert not np.allclose(a, b)


def test_states_equal_those_of_flax() -> None:
    """The recurrence against `nnx.RNN` of `nnx.OptimizedLSTMCell` with the same weights and lengths."""
    _, params, _ = build()
    text = texts()
    embedded = jnp.asarray(params["embedding"]["embedding"][...][text])
    for direction, reverse in enumerate((False, True)):
        ours = params["directions"][direction]
        cell = nnx.OptimizedLSTMCell(6, 5, rngs=nnx.Rngs(0))
        layer = Direction(6, 5, dtype=jnp.float32, rngs=nnx.Rngs(0))
        layer.input.kernel[...], layer.input.bias[...] = ours["input"]["kernel"][...], ours["input"]["bias"][...]
        layer.recurrent.kernel[...] = ours["recurrent"]["kernel"][...]
        cell.dense_i.kernel[...], cell.dense_h.kernel[...] = (
            ours["input"]["kernel"][...],
            ours["recurrent"]["kernel"][...],
        )
        cell.dense_h.bias[...] = ours["input"]["bias"][...]
        rnn = nnx.RNN(cell, return_carry=True, reverse=reverse)
        (_, expected), _ = rnn(embedded, seq_lengths=jnp.asarray(LENGTHS))
        found = layer(embedded, jnp.asarray(text != 0), reverse=reverse)
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_forget_gates_start_open() -> None:
    _, params, _ = build()
    for direction in range(2):
        bias = params["directions"][direction]["input"]["bias"][...]
        np.testing.assert_array_equal(bias, np.repeat([0.0, 1.0, 0.0, 0.0], 5))


def test_one_direction_has_half_the_recurrence() -> None:
    both, one = (costs.parameters(build(bidirectional=b)[0]) for b in (True, False))
    assert both - one == 4 * 5 * (6 + 5 + 1) + 5 * 8


def test_the_cell_is_float32_where_the_rest_is_bfloat16() -> None:
    """A cell that adds σ(−6.25) = .0019 at each of 500 steps comes to .96; in bfloat16 it would stay at ½, whose half unit is .0020."""
    layer = Direction(2, 3, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    layer.input.kernel[...], layer.recurrent.kernel[...] = jnp.zeros((2, 12)), jnp.zeros((3, 12))
    layer.input.bias[...] = jnp.repeat(jnp.array([-6.25, 20.0, 20.0, 20.0]), 3)  # all of them bfloat16 numbers
    h = layer(jnp.zeros((1, 500, 2)), jnp.ones((1, 500), bool), reverse=False)
    assert h.dtype == jnp.bfloat16
    expected = np.tanh(500 / (1 + np.exp(6.25)))
    np.testing.assert_allclose(h.astype(jnp.float32), np.full((1, 3), expected), rtol=2**-8)  # h is rounded to 8 bits
