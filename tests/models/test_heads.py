"""Heads beside the classifier: what they give, and that a network with them starts as one without."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from sc_jax import models
from sc_jax.files import InputError
from sc_jax.models.ensemble_layers import InNetwork
from sc_jax.models.heads import HEADS, Heads

SHAPE, K = (8, 8, 1), 4


def build(name: str, **options: Any) -> models.Model:
    return models.build(name, input_shape=SHAPE, num_classes=K, hidden=(5, 6), **options)


@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_a_network_with_heads_starts_as_one_without_and_gives_the_same(name: str) -> None:
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, *SHAPE)), jnp.float32)
    plain, headed = build(name), build(name, heads=HEADS)
    (p, s), (q, t) = plain.init(jax.random.key(1)), headed.init(jax.random.key(1))
    assert set(q) - set(p) == {"heads"}
    for part in p:
        jax.tree.map(np.testing.assert_array_equal, p[part], q[part])
    one, two = plain.apply(p, s, x)[0], headed.apply(q, t, x)[0]
    np.testing.assert_array_equal(one["logits"], two["logits"])
    assert {name: two[name].shape for name in HEADS} == {
        "abstain_logit": (3,),
        "selection_logit": (3,),
        "auxiliary_logits": (3, K),
    }
    features, heads = np.asarray(two["features"], np.float64), q["heads"]

    def linear(part: str, x: np.ndarray) -> np.ndarray:
        return x @ np.asarray(heads[part]["kernel"][...], np.float64) + np.asarray(heads[part]["bias"][...])

    np.testing.assert_allclose(two["abstain_logit"], linear("abstain", features)[:, 0], atol=1e-5)
    np.testing.assert_allclose(two["auxiliary_logits"], linear("auxiliary", features), atol=1e-5)
    hidden = np.maximum(linear("selection_hidden", features), 0)
    np.testing.assert_allclose(two["selection_logit"], linear("selection", hidden)[:, 0], atol=1e-5)


def test_numbers_of_parameters_are_those_stated() -> None:
    count = lambda heads: sum(leaf.size for leaf in jax.tree.leaves(build("mlp", heads=heads).init(jax.random.key(0))))  # noqa: E731
    d = 6
    extra = {"abstain_logit": d + 1, "selection_logit": d * d + 2 * d + 1, "auxiliary_logits": d * K + K}
    for name, expected in extra.items():
        assert count((name,)) - count(()) == expected
    wide = Heads(("selection_logit",), 1000, K, rngs=nnx.Rngs(params=0))
    leaves = jax.tree.leaves(nnx.state(wide, nnx.Param))
    assert sum(leaf.size for leaf in leaves) == 1000 * 512 + 2 * 512 + 1  # no wider than its paper's


def test_only_the_heads_asked_for_are_there() -> None:
    model = build("mlp", heads=("selection_logit",))
    outputs = jax.eval_shape(model.apply, *model.init(jax.random.key(0)), jnp.zeros((2, *SHAPE)))[0]
    assert set(outputs) == {"logits", "features", "selection_logit"}


def test_other_heads_and_heads_of_members_are_refused() -> None:
    with pytest.raises(InputError, match="there is no head 'select'"):
        build("mlp", heads=("select",))
    with pytest.raises(InputError, match=r"leave ensemble\.kind out"):
        build("mlp", heads=HEADS, ensemble=InNetwork("batch_ensemble", 2))
    with pytest.raises(InputError, match="does not take it"):
        models.build("resnet18", input_shape=(32, 32, 3), num_classes=K, heads=HEADS)
