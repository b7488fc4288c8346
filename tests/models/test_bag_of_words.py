"""A bag of words is a perceptron on its counts; what all backbones share is in test_models.py."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sc_jax import models

TEXTS = jnp.asarray([[3, 1, 3, 7, 0, 0], [5, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0], [2, 3, 4, 5, 6, 7]], jnp.int32)


@pytest.mark.parametrize("hidden", [(5,), (5, 4)])
def test_it_is_a_perceptron_on_counts_over_the_root_of_their_number(hidden: tuple[int, ...]) -> None:
    model = models.build("bag_of_words", input_shape=(6,), num_classes=3, vocabulary_size=9, hidden=hidden)
    params, state = model.init(jax.random.key(0))
    params["bias"] = jax.tree.map(lambda leaf: leaf + jnp.arange(5.0), params["bias"])
    counts = np.stack([np.bincount(row[row > 0], minlength=9) for row in np.asarray(TEXTS)])
    bag = counts / np.sqrt(np.maximum(counts.sum(axis=1, keepdims=True), 1))
    np.testing.assert_allclose(np.linalg.norm(bag[3]), 1)  # no word comes twice
    x = np.maximum(bag @ np.asarray(params["embedding"]["embedding"][...]) + np.arange(5.0), 0)
    for layer in range(len(hidden) - 1):
        x = np.maximum(x @ params["hidden"][layer]["kernel"][...] + params["hidden"][layer]["bias"][...][None], 0)
    outputs, _ = model.apply(params, state, TEXTS)
    np.testing.assert_allclose(outputs["features"], x, atol=1e-5)
    expected = x @ params["head"]["kernel"][...] + params["head"]["bias"][...][None]
    np.testing.assert_allclose(outputs["logits"], expected, atol=1e-5)


def test_order_and_padding_change_nothing() -> None:
    model = models.build("bag_of_words", input_shape=(6,), num_classes=3, vocabulary_size=9, hidden=(5,))
    params, state = model.init(jax.random.key(0))
    given, _ = model.apply(params, state, TEXTS)
    for other in (TEXTS[:, ::-1], jnp.pad(TEXTS, ((0, 0), (2, 3)))):
        same, _ = model.apply(params, state, other)
        np.testing.assert_allclose(same["logits"], given["logits"], atol=1e-6)


def test_without_a_hidden_layer_it_is_refused() -> None:
    with pytest.raises(ValueError, match="hidden layer"):
        models.build("bag_of_words", input_shape=(6,), num_classes=3, vocabulary_size=9, hidden=())
