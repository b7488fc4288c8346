"""The vision transformer against the published counts, a closed form and timm."""

from __future__ import annotations

import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from timm_reference import assert_parity, import_timm

from sc_jax import models
from sc_jax.files import InputError
from sc_jax.models import costs, pretrained

SHAPE = (32, 48, 3)


def closed_form(patches: int, width: int, depth: int, classes: int, patch: int = 16, channels: int = 3) -> int:
    """Parameters by the formula of the docstring."""
    embedding = (patch**2 * channels + 1) * width + width + (patches + 1) * width
    return embedding + depth * (12 * width**2 + 13 * width) + 2 * width + (width + 1) * classes


@pytest.mark.parametrize(
    ("name", "published"),  # timm; Dosovitskiy et al. (2021), Table 1: base 86M
    [("vit_tiny_patch16", 5_717_416), ("vit_small_patch16", 22_050_664), ("vit_base_patch16", 86_567_656)],
)
def test_parameters_are_the_published_number_and_the_closed_form(name: str, published: int) -> None:
    assert closed_form(14 * 14, models.BACKBONES[name][1]["width"], 12, 1000) == published
    assert costs.parameters(models.build(name, input_shape=(224, 224, 3), num_classes=1000)) == published


def test_logits_are_those_of_timm(tmp_path: Path) -> None:
    timm = import_timm()
    options = {"depth": 2, "mlp_ratio": 2}
    reference = timm.models.vision_transformer.VisionTransformer(
        img_size=SHAPE[:2], embed_dim=36, num_heads=3, num_classes=5, **options
    )
    assert_parity("vit_tiny_patch16", reference, SHAPE, 5, tmp_path, width=36, heads=3, **options)


@pytest.fixture(scope="module")
def tiny() -> models.Model:
    return models.build("vit_tiny_patch16", input_shape=SHAPE, num_classes=5, width=24, depth=1, dropout=0.5)


def test_dropout_acts_in_training_only_by_key_and_after_the_features(tiny: models.Model) -> None:
    state = jax.jit(tiny.init)(jax.random.key(0))
    images = jax.random.normal(jax.random.key(1), (4, *SHAPE))

    @jax.jit
    def forward(state: tuple, images: jax.Array, key: jax.Array) -> tuple:
        return tuple(tiny.apply(*state, images, train=train, key=key)[0] for train in (True, False))

    (first, evaluated), (again, _), (other, evaluated_too) = (
        forward(state, images, jax.random.key(seed)) for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first["logits"], again["logits"])
    assert not np.array_equal(first["logits"], other["logits"])
    np.testing.assert_array_equal(first["features"], other["features"])
    np.testing.assert_array_equal(evaluated["logits"], evaluated_too["logits"])


def test_patches_may_be_permuted_with_their_position_embeddings(tiny: models.Model) -> None:
    """Attention knows a patch's place by its embedding alone."""
    params, model_state = jax.jit(tiny.init)(jax.random.key(0))
    images = jax.random.normal(jax.random.key(1), (1, *SHAPE))
    forward = jax.jit(lambda p, x: tiny.apply(p, model_state, x)[0]["logits"])
    before = forward(params, images)
    order = np.array([3, 0, 5, 1, 2, 4])  # of 2 × 3 patches
    patches = images.reshape(1, 2, 16, 3, 16, 3).transpose(0, 1, 3, 2, 4, 5).reshape(1, 6, 16, 16, 3)
    permuted = patches[:, order].reshape(1, 2, 3, 16, 16, 3).transpose(0, 1, 3, 2, 4, 5).reshape(1, *SHAPE)
    moved = forward(params, permuted)
    assert not np.allclose(before, moved, atol=1e-5)
    embeddings = params["pos_embed"][...]
    params["pos_embed"][...] = jnp.concatenate([embeddings[:, :1], embeddings[:, 1:][:, order]], axis=1)
    np.testing.assert_allclose(before, forward(params, permuted), atol=1e-5)


def test_computing_in_bfloat16_keeps_parameters_and_outputs_in_float32() -> None:
    model = models.build(
        "vit_tiny_patch16", input_shape=SHAPE, num_classes=5, width=24, depth=1, dropout=0.5, dtype=jnp.bfloat16
    )
    state = jax.eval_shape(model.init, jax.random.key(0))
    images, key = jax.ShapeDtypeStruct((2, *SHAPE), jnp.float32), jax.random.key(0)
    after = jax.eval_shape(lambda p, s, x: model.apply(p, s, x, train=True, key=key), *state, images)
    assert {leaf.dtype for leaf in jax.tree.leaves((state, after))} == {jnp.dtype("float32")}


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((28, 28, 1), {}, r"model\.patch: 16 does not divide 28×28"),
        (SHAPE, {"heads": 5}, r"model\.heads: 5 do not divide the width of 192"),
    ],
)
def test_patches_and_heads_that_do_not_fit_are_refused(shape: tuple, options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        models.build("vit_tiny_patch16", input_shape=shape, num_classes=10, **options)


def fresh() -> dict[str, np.ndarray]:
    """Tensors of a fresh network of width 96, by timm's names."""
    model = models.build("vit_tiny_patch16", input_shape=SHAPE, num_classes=50, width=96, heads=3, depth=2)
    state = jax.jit(model.init)(jax.random.key(0))
    places, _ = pretrained._places(state)
    return {place.name: np.asarray(leaf) for place, leaf in zip(places, jax.tree.leaves(state), strict=True)}


def test_the_initialisation_is_what_the_docstring_says() -> None:
    """Within 5 standard errors of so many draws: of a standard deviation σ/√(2n), of a share p √(p(1 − p)/n)."""
    for name, tensor in fresh().items():
        n = tensor.size
        if name.startswith("patch_embed"):
            bound = (16 * 16 * 3) ** -0.5
            assert np.abs(tensor).max() <= bound
            assert abs(tensor.std() * 3**0.5 / bound - 1) < 5 / (2 * n) ** 0.5, name  # bound/√3; of the bias too
        elif name.endswith("bias"):
            assert not tensor.any(), name
        elif "norm" in name:
            assert (tensor == 1).all(), name
        else:
            deviation = 1e-6 if name == "cls_token" else 0.02
            assert abs(tensor.std() / deviation - 1) < 5 / (2 * n) ** 0.5, name
            beyond = math.erfc(2 * 2**-0.5)  # of two standard deviations .0455: it is not cut there, nor at 2.3
            assert abs((np.abs(tensor) > 2 * deviation).mean() - beyond) < 5 * (beyond * (1 - beyond) / n) ** 0.5, name
            assert n < 5000 or np.abs(tensor).max() > 3 * deviation, name


def test_the_initialisation_is_timms() -> None:
    """Both are draws, of which the standard deviations differ by at most 5·σ·√(2/(2n))."""
    transformer = import_timm().models.vision_transformer
    import torch

    torch.manual_seed(0)
    reference = transformer.VisionTransformer(img_size=SHAPE[:2], embed_dim=96, num_heads=3, num_classes=50, depth=2)
    theirs = {name: tensor.numpy() for name, tensor in reference.state_dict().items()}
    ours = fresh()
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        if tensor.std() == 0:
            np.testing.assert_array_equal(ours[name], tensor, err_msg=name)
        else:
            assert abs(ours[name].std() / tensor.std() - 1) < 5 / tensor.size**0.5, name
