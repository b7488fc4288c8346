"""ResNet for CIFAR with members: every member is a plain ResNet, with its own batch statistics where it has its own channels."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sc_jax import models, ops
from sc_jax.models import costs
from sc_jax.models.ensemble_layers import InNetwork, masks

SHAPE, CLASSES, MEMBERS = (9, 9, 2), 3, 2  # an odd side: padding of even ones hides where it lies
WIDTHS = {"batch_ensemble": (4, 8, 12), "packed": (8, 16, 24), "masksembles": (8, 8, 8)}
KINDS = {
    "batch_ensemble": InNetwork("batch_ensemble", MEMBERS),
    "packed": InNetwork("packed", MEMBERS, alpha=1.0, groups=2),
    "masksembles": InNetwork("masksembles", MEMBERS, scale=2.0),
}


def built(widths: tuple[int, ...], ensemble: InNetwork | None, **options: Any) -> models.Model:
    return models.build(
        "resnet20_cifar", input_shape=SHAPE, num_classes=CLASSES, depth=8, hidden=widths, ensemble=ensemble, **options
    )


def images(n: int = 4) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).standard_normal((n, *SHAPE)), jnp.float32)


def drawn(model: models.Model) -> tuple[Any, Any]:
    """Parameters and statistics of which none is at its start."""
    rng = np.random.default_rng(1)
    params, state = model.init(jax.random.key(0))

    def moved(leaf: jax.Array) -> jax.Array:
        return leaf + 0.2 * np.abs(rng.standard_normal(leaf.shape)).astype(np.float32)

    return jax.tree.map(moved, params), jax.tree.map(moved, state)


def whole(kernel: np.ndarray, groups: int) -> np.ndarray:
    """A grouped kernel as a whole one: [.., a/γ, b] → [.., a, b], zeros between groups."""
    a, b = kernel.shape[-2], kernel.shape[-1] // groups
    found = np.zeros((*kernel.shape[:-2], groups * a, groups * b), np.float32)
    for g in range(groups):
        found[..., g * a : (g + 1) * a, g * b : (g + 1) * b] = kernel[..., g * b : (g + 1) * b]
    return found


def taken(tree: Any, path: tuple[str | int, ...]) -> Any:
    for key in path:
        tree = tree[key]
    return tree


def of_member(kind: str, params: Any, state: Any, plain: Any, plain_state: Any, i: int) -> tuple[Any, Any]:
    """The parameters and statistics of one member, in the place of those of a plain network."""
    kept = masks(WIDTHS[kind][0], MEMBERS, 2.0)[i] if kind == "masksembles" else None

    def fill(path: Any, leaf: jax.Array, source: Any) -> np.ndarray:
        keys = [key.key for key in path if hasattr(key, "key")]
        layer, name = taken(source, tuple(keys[:-1])), keys[-1]
        if keys[-2].startswith("bn"):
            if kind == "masksembles":  # what is masked is 0 behind its ReLU
                return np.asarray(layer[name][...]) * (kept if name in ("scale", "bias") else 1)
            return np.asarray(layer["norm"][name][...]).reshape(MEMBERS, -1)[i]
        if kind == "masksembles":
            return np.asarray(layer[name][...])
        if name == "bias":
            return np.asarray(layer["member_bias"][...][i])
        if kind == "batch_ensemble":
            signs = np.outer(layer["fast_in"][...][i], layer["fast_out"][...][i])
            return np.asarray(layer["shared"]["kernel"][...]) * signs
        kernel = np.asarray(layer["kernel"][...][i])
        if keys[-2] == "linear":
            return kernel[0]
        return whole(kernel, leaf.shape[-2] // kernel.shape[-2])

    filled = jax.tree_util.tree_map_with_path(lambda p, leaf: fill(p, leaf, params), plain)
    return filled, jax.tree_util.tree_map_with_path(lambda p, leaf: fill(p, leaf, state), plain_state)


@pytest.mark.parametrize("kind", KINDS)
def test_every_member_is_a_plain_network(kind: str) -> None:
    widths, ensemble, x = WIDTHS[kind], KINDS[kind], images()
    model = built(widths, ensemble)
    params, state = drawn(model)
    of_one = tuple(w // MEMBERS for w in widths) if kind == "packed" else widths
    plain = built(of_one, None)
    outputs, _ = model.apply(params, state, x)
    assert outputs["member_logits"].shape == (MEMBERS, 4, CLASSES)
    assert outputs["features"].shape == (4, MEMBERS * of_one[-1])
    for i in range(MEMBERS):
        own = of_member(kind, params, state, *plain.init(jax.random.key(0)), i)
        expected, _ = plain.apply(*own, x)
        np.testing.assert_allclose(outputs["member_logits"][i], expected["logits"], rtol=1e-4, atol=1e-4)
    assert np.abs(outputs["member_logits"][0] - outputs["member_logits"][1]).max() > 1e-2
    mean = ops.ensemble_log_probabilities(np.asarray(outputs["member_logits"], np.float64))
    np.testing.assert_allclose(outputs["logits"], mean, atol=1e-5)


@pytest.mark.parametrize("kind", ["batch_ensemble", "packed"])
def test_members_are_normalised_by_their_own_batch_in_training(kind: str) -> None:
    widths, x = WIDTHS[kind], images()
    model = built(widths, KINDS[kind])
    params, state = drawn(model)
    plain = built(tuple(w // MEMBERS for w in widths) if kind == "packed" else widths, None)
    outputs, after = model.apply(params, state, x, train=True, key=jax.random.key(0))
    for i in range(MEMBERS):
        own = of_member(kind, params, state, *plain.init(jax.random.key(0)), i)
        expected, moved = plain.apply(*own, x, train=True, key=jax.random.key(0))
        np.testing.assert_allclose(outputs["member_logits"][i], expected["logits"], rtol=1e-3, atol=1e-3)
        found = np.asarray(after["layer3"][0]["bn2"]["norm"]["mean"][...]).reshape(MEMBERS, -1)[i]
        np.testing.assert_allclose(found, moved["layer3"][0]["bn2"]["mean"][...], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", ["batch_ensemble", "packed"])
def test_a_member_does_not_learn_from_the_others(kind: str) -> None:
    model = built(WIDTHS[kind], KINDS[kind])
    params, state = drawn(model)

    def first(p: Any) -> jax.Array:
        return jnp.sum(
            jnp.sin(model.apply(p, state, images(), train=True, key=jax.random.key(0))[0]["member_logits"][0])
        )

    for path, leaf in jax.tree_util.tree_leaves_with_path(jax.grad(first)(params)):
        if "shared" in str(path):
            continue
        of_members = leaf.reshape(MEMBERS, -1)
        assert not np.any(of_members[1]), path
        assert np.any(of_members[0]) or "conv" in str(path), path


@pytest.mark.parametrize("kind", KINDS)
def test_costs_follow_from_those_of_the_plain_network(kind: str) -> None:
    """All convolutions and the head, m times or on m parts of the width; of Masksembles the stem once."""
    widths = WIDTHS[kind]
    plain, model = built(widths, None), built(widths, KINDS[kind])
    stem = 9 * 9 * 9 * SHAPE[-1] * widths[0]
    macs = costs.macs(plain, SHAPE)
    if kind == "batch_ensemble":
        assert costs.macs(model, SHAPE) == MEMBERS * macs
    elif kind == "masksembles":
        assert costs.macs(model, SHAPE) == stem + MEMBERS * (macs - stem)
        assert costs.parameters(model) == costs.parameters(plain)
    else:
        head = widths[-1] * CLASSES
        assert costs.macs(model, SHAPE) == stem + head + (macs - stem - head) // (MEMBERS * KINDS[kind].groups)


def test_in_half_precision_parameters_and_logits_stay_float32() -> None:
    for kind, ensemble in KINDS.items():
        params, state = drawn(built(WIDTHS[kind], ensemble))
        outputs, _ = built(WIDTHS[kind], ensemble, dtype=jnp.bfloat16).apply(params, state, images())
        assert {leaf.dtype.name for leaf in jax.tree.leaves((params, outputs))} == {"float32"}
