"""Perceptrons; what all backbones share is in test_models.py."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sc_jax import models
from sc_jax.models import costs


@pytest.mark.parametrize(("d", "k"), [(3, 2), (48, 2), (17, 5)])
def test_widths_of_a_table_are_multiples_of_its_columns(d: int, k: int) -> None:
    model = models.build("tabular_mlp", input_shape=(d,), num_classes=k)
    assert costs.parameters(model) == 12 * d**2 + 6 * d + 2 * d * k + k
    params, _ = model.init(jax.random.key(0))
    assert params["hidden"][0]["kernel"].shape == (d, 4 * d)
    assert params["hidden"][1]["kernel"].shape == (4 * d, 2 * d)
    other = models.build("tabular_mlp", input_shape=(d,), num_classes=k, multiples=(1,))
    assert costs.parameters(other) == d**2 + d + d * k + k


def test_forward_is_the_formula() -> None:
    """max(0, max(0, x W₁ + b₁) W₂ + b₂) W + b, in NumPy."""
    model = models.build("tabular_mlp", input_shape=(5,), num_classes=2)
    params, state = model.init(jax.random.key(0))
    rows = np.random.default_rng(0).standard_normal((7, 5)).astype(np.float32)
    x = rows
    for layer in range(2):
        x = np.maximum(x @ params["hidden"][layer]["kernel"][...] + params["hidden"][layer]["bias"][...][None], 0)
    outputs, _ = model.apply(params, state, jnp.asarray(rows))
    np.testing.assert_allclose(outputs["features"], x, atol=1e-6)
    expected = x @ params["head"]["kernel"][...] + params["head"]["bias"][...][None]
    np.testing.assert_allclose(outputs["logits"], expected, atol=1e-6)


def test_features_of_training_are_before_the_last_dropout() -> None:
    model = models.build("mlp", input_shape=(6,), num_classes=2, hidden=(50,), dropout=0.5)
    params, state = model.init(jax.random.key(0))
    rows = jnp.asarray(np.random.default_rng(0).standard_normal((7, 6)), jnp.float32)
    trained, _ = model.apply(params, state, rows, train=True, key=jax.random.key(0))
    np.testing.assert_array_equal(trained["features"], model.apply(params, state, rows)[0]["features"])
