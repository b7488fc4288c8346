"""Members in one network: what they cost, the plain network as a limit, and that members are themselves."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import closed_forms
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sc_jax import models, ops
from sc_jax.files import InputError
from sc_jax.models import costs
from sc_jax.models.ensemble_layers import InNetwork, masks

SHAPES = {"mlp": (6, 6, 1), "cnn": (12, 12, 2)}
WIDTHS, CLASSES = (12, 24), 3
KINDS = {
    "batch_ensemble": InNetwork("batch_ensemble", 3),
    "packed": InNetwork("packed", 3, alpha=2.0, groups=2),
    "masksembles": InNetwork("masksembles", 3, scale=2.0),
}


def built(name: str, ensemble: InNetwork | None, **options: Any) -> models.Model:
    return models.build(
        name, input_shape=SHAPES[name], num_classes=CLASSES, **{"hidden": WIDTHS, "ensemble": ensemble, **options}
    )


def inputs_of(name: str, n: int = 4) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).standard_normal((n, *SHAPES[name])), jnp.float32)


def plain_layers(name: str, widths: tuple[int, ...] = WIDTHS) -> list[tuple[int, int, int, int]]:
    """(inputs, outputs, size of the kernel, places of the output) of every layer, the head last."""
    h, w, c = SHAPES[name]
    if name == "mlp":
        return [(a, b, 1, 1) for a, b in pairwise((h * w * c, *widths, CLASSES))]
    found, side = [], h
    for a, b in pairwise((c, *widths)):
        side = -(-side // 2)
        found.append((a, b, 9, side**2))
    return [*found, (side**2 * widths[-1], CLASSES, 1, 1)]


def test_the_plain_layers_here_are_those_of_the_closed_forms() -> None:
    for name, tally in (
        ("mlp", closed_forms.mlp((36, *WIDTHS, CLASSES))),
        ("cnn", closed_forms.cnn(12, (2, *WIDTHS), CLASSES)),
    ):
        found = plain_layers(name)
        assert sum(a * b * size + b for a, b, size, _ in found) == tally.parameters
        assert sum(a * b * size * places for a, b, size, places in found) == tally.macs


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("kind", KINDS)
def test_costs_are_closed_forms(name: str, kind: str) -> None:
    ensemble, found = KINDS[kind], plain_layers(name)
    model, m = built(name, ensemble), ensemble.members
    first, rest = found[0], found[1:]
    cost = [a * b * size * places for a, b, size, places in found]
    if kind == "batch_ensemble":
        parameters = sum(a * b * size + m * (a + 2 * b) for a, b, size, _ in found)
        macs = m * sum(cost)
    elif kind == "masksembles":
        parameters = sum(a * b * size + b for a, b, size, _ in found)
        macs = cost[0] + m * sum(cost[1:])  # until the first mask there is one of them
    else:
        alpha, groups = ensemble.alpha, ensemble.groups
        a, b, size, places = first
        parameters, macs = alpha * (a * b * size + b), alpha * cost[0]
        for a, b, size, places in rest[:-1]:
            parameters += alpha**2 * a * b * size / (m * groups) + alpha * b
            macs += alpha**2 * a * b * size * places / (m * groups)
        parameters += alpha * rest[-1][0] * CLASSES + m * CLASSES
        macs += alpha * rest[-1][0] * CLASSES
    assert costs.parameters(model) == parameters
    assert costs.macs(model, SHAPES[name]) == macs


def member_of(ensemble: InNetwork, params: Any, member: int) -> Any:
    """The parameters of one member as those of a plain network."""

    def layer(part: Any) -> dict[str, np.ndarray]:
        if "shared" in part:  # s ∘ W(r ∘ x) + b
            kernel = np.asarray(part["shared"]["kernel"][...])
            signs = np.outer(part["fast_in"][...][member], part["fast_out"][...][member])
            return {"kernel": kernel * signs, "bias": part["member_bias"][...][member]}
        if "member_bias" not in part:
            return {"kernel": part["kernel"][...], "bias": part["bias"][...]}
        kernel = np.asarray(part["kernel"][...][member])
        if kernel.ndim == 3:  # groups of a dense layer: blocks on the diagonal
            groups, a, b = kernel.shape
            whole = np.zeros((groups * a, groups * b), np.float32)
            for g in range(groups):
                whole[g * a : (g + 1) * a, g * b : (g + 1) * b] = kernel[g]
            return {"kernel": whole, "bias": part["member_bias"][...][member]}
        groups = ensemble.groups if kernel.shape[2] != SHAPES["cnn"][-1] else 1
        a, b = kernel.shape[2], kernel.shape[3] // groups
        whole = np.zeros((*kernel.shape[:2], groups * a, groups * b), np.float32)
        for g in range(groups):
            whole[:, :, g * a : (g + 1) * a, g * b : (g + 1) * b] = kernel[..., g * b : (g + 1) * b]
        return {"kernel": whole, "bias": part["member_bias"][...][member]}

    names = "convolutions" if "convolutions" in params else "hidden"
    return [layer(params[names][i]) for i in range(len(WIDTHS))], layer(params["head"])


def forward(name: str, layers: Any, x: np.ndarray, kept: list[np.ndarray]) -> np.ndarray:
    """The plain network, written out; `kept` multiplies what comes out of each hidden layer."""
    hidden, head = layers
    x = jnp.asarray(x) if name == "cnn" else jnp.asarray(x).reshape(len(x), -1)
    for layer, mask in zip(hidden, kept, strict=True):
        if name == "cnn":
            x = jax.lax.conv_general_dilated(
                x, jnp.asarray(layer["kernel"]), (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
        else:
            x = x @ layer["kernel"]
        bias = jnp.asarray(layer["bias"]).reshape(*[1] * (x.ndim - 1), -1)
        x = jax.nn.relu(x + bias) * mask.reshape(*[1] * (x.ndim - 1), -1)
    return x.reshape(len(x), -1) @ head["kernel"] + jnp.asarray(head["bias"])[None]


def drawn(model: models.Model, seed: int = 0) -> Any:
    """Parameters of which none is at its start, so that nothing hides behind zeros and signs."""
    rng = np.random.default_rng(seed)
    params, _ = model.init(jax.random.key(seed))
    return jax.tree.map(lambda leaf: leaf + 0.2 * rng.standard_normal(leaf.shape).astype(np.float32), params)


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("kind", KINDS)
def test_every_member_is_a_plain_network(name: str, kind: str) -> None:
    ensemble = KINDS[kind]
    model = built(name, ensemble)
    params, x = drawn(model), inputs_of(name)
    outputs, _ = model.apply(params, {}, x)
    assert outputs["member_logits"].shape == (3, 4, CLASSES)
    for i in range(3):
        kept = [masks(w, 3, 2.0)[i] if kind == "masksembles" else np.ones(1) for w in WIDTHS]
        expected = forward(name, member_of(ensemble, params, i), x, kept)
        np.testing.assert_allclose(outputs["member_logits"][i], expected, atol=1e-5)
        if i:
            assert np.abs(outputs["member_logits"][i] - outputs["member_logits"][0]).max() > 1e-2
    np.testing.assert_allclose(
        outputs["logits"], ops.ensemble_log_probabilities(np.asarray(outputs["member_logits"], np.float64)), atol=1e-5
    )
    width = outputs["features"].shape[1] // 3
    assert outputs["features"].shape == (4, 3 * width)


LIMITS = {
    "batch_ensemble": InNetwork("batch_ensemble", 3),
    "packed": InNetwork("packed", 1, alpha=1.0, groups=1),
    "masksembles": InNetwork("masksembles", 3, scale=1.0),
}


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("kind", LIMITS)
def test_in_the_limit_it_is_the_plain_network(name: str, kind: str) -> None:
    """Fast weights of one; one member in the whole width; masks of ones."""
    plain, model, x = built(name, None), built(name, LIMITS[kind]), inputs_of(name)
    whole = drawn(plain)
    params, _ = model.init(jax.random.key(1))
    m = LIMITS[kind].members

    def copied(path: Any, leaf: jax.Array) -> jax.Array:
        keys = [key.key for key in path if hasattr(key, "key")]
        source = whole
        for key in (key for key in keys if key not in ("shared", "fast_in", "fast_out", "member_bias")):
            source = source[key]
        if keys[-1] in ("fast_in", "fast_out"):
            return jnp.ones_like(leaf)
        if keys[-1] == "member_bias":
            return jnp.broadcast_to(source["bias"][...][None], leaf.shape)
        return source[...].reshape(leaf.shape)

    params = jax.tree_util.tree_map_with_path(copied, params)
    expected = plain.apply(whole, {}, x)[0]["logits"]
    outputs, _ = model.apply(params, {}, x)
    for i in range(m):
        np.testing.assert_allclose(outputs["member_logits"][i], expected, atol=1e-5)
    np.testing.assert_allclose(outputs["logits"], jax.nn.log_softmax(expected), atol=1e-5)


@pytest.mark.parametrize("name", SHAPES)
def test_a_packed_network_of_one_member_starts_as_the_plain_one(name: str) -> None:
    (one, _), (plain, _) = (built(name, e).init(jax.random.key(4)) for e in (LIMITS["packed"], None))
    kernels = [[np.ravel(leaf) for leaf in jax.tree.leaves(tree) if np.any(leaf)] for tree in (one, plain)]
    assert len(kernels[0]) == 3
    for a, b in zip(*kernels, strict=True):
        np.testing.assert_allclose(np.std(a), np.std(b), rtol=0.25)  # fan-in alike; other keys


@pytest.mark.parametrize("kind", KINDS)
def test_a_member_does_not_learn_from_the_others(kind: str) -> None:
    """The gradient of member 0's logits with respect to what belongs to another is 0, and to every part of its own it is not."""
    model = built("mlp", KINDS[kind])
    params, x = drawn(model), inputs_of("mlp")
    gradient = jax.grad(lambda p: jnp.sum(jnp.sin(model.apply(p, {}, x)[0]["member_logits"][0])))(params)
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        own = "member_bias" in str(path) or "fast" in str(path) or (kind == "packed")
        if own:
            assert np.abs(leaf[0]).max() > 0, path
            assert not np.any(leaf[1:]), path
        else:
            assert np.abs(leaf).max() > 0, path


def test_signs_start_as_signs_and_differ_between_members() -> None:
    params, _ = built("mlp", InNetwork("batch_ensemble", 4)).init(jax.random.key(0))
    for part in (params["hidden"][0], params["head"]):
        for name in ("fast_in", "fast_out"):
            assert set(np.unique(part[name][...])) <= {-1.0, 1.0}
    assert len(np.unique(np.asarray(params["hidden"][0]["fast_in"][...]), axis=0)) == 4


@pytest.mark.parametrize("width", [8, 12, 32, 64, 256])
@pytest.mark.parametrize(("members", "scale"), [(4, 1.0), (4, 1.5), (4, 2.0), (3, 3.0), (8, 2.0), (2, 6.0)])
def test_masks_keep_alike_many_and_leave_no_feature_out(width: int, members: int, scale: float) -> None:
    found = masks(width, members, scale)
    assert found.shape == (members, width)
    assert found.any(0).all()
    (ones,) = set(found.sum(1).tolist())
    expected = width / (scale * (1 - (1 - 1 / scale) ** members))
    assert abs(ones - expected) <= 1.5
    np.testing.assert_array_equal(found, masks.__wrapped__(width, members, scale))


def test_masks_overlap_less_the_larger_the_scale() -> None:
    """Of two masks the shared part of each is 1/s in the mean, before places in no mask are dropped, which none of them touch."""
    overlaps = []
    for scale in (1.0, 1.5, 2.0, 4.0):
        kept = masks(256, 4, scale).astype(float)
        shared = (kept @ kept.T)[np.triu_indices(4, 1)].mean() / kept[0].sum()
        np.testing.assert_allclose(shared, 1 / scale, atol=0.06)
        overlaps.append(shared)
    assert overlaps == sorted(overlaps, reverse=True)


def test_what_does_not_divide_or_has_nothing_to_mask_is_refused() -> None:
    with pytest.raises(InputError, match=r"model\.hidden: 10·α with α = 2 is 20, which 3 members of 1 groups"):
        built("mlp", InNetwork("packed", 3, alpha=2.0), hidden=(10,))
    with pytest.raises(InputError, match=r"model\.hidden: masksembles"):
        built("mlp", InNetwork("masksembles", 3, scale=2.0), hidden=())
    with pytest.raises(ValueError, match="none of width 1"):
        masks(1, 8, 50.0)
    with pytest.raises(InputError, match=r"model\.ensemble: lstm does not take it"):
        models.build("lstm", input_shape=(9,), num_classes=2, vocabulary_size=5, ensemble=KINDS["packed"])
    assert models.takes("cnn", "ensemble")
    assert not models.takes("resnet18", "ensemble")


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_leaves_parameters_and_logits_float32(name: str, kind: str) -> None:
    model = built(name, KINDS[kind], dtype=jnp.bfloat16)
    params, x = drawn(model), inputs_of(name)
    outputs, _ = model.apply(params, {}, x)
    exact, _ = built(name, KINDS[kind]).apply(params, {}, x)
    assert {leaf.dtype.name for leaf in jax.tree.leaves((params, outputs))} == {"float32"}
    assert 0 < np.abs(outputs["member_logits"] - exact["member_logits"]).max() < 0.2
