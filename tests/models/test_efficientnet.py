"""EfficientNet against the published counts, a closed form and timm."""

from __future__ import annotations

import functools
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from timm_reference import assert_parity, import_timm

from sc_jax import models
from sc_jax.models import costs, efficientnet
from sc_jax.models.efficientnet import STAGES, EfficientNet, InvertedResidual, Stage, divisible

TINY = {"width": 0.25, "depth": 0.1}  # one block per stage, 8 to 80 channels
SHAPE = (32, 32, 3)


def block_parameters(channels: int, out: int, stage: Stage, squeeze: bool) -> int:
    """Parameters of an inverted residual, layer by layer."""
    hidden = channels * stage.expansion
    expansion = channels * hidden + 2 * hidden if stage.expansion > 1 else 0
    depthwise = hidden * stage.kernel**2 + 2 * hidden
    reduced = channels // 4
    excite = hidden * reduced + reduced + reduced * hidden + hidden if squeeze else 0
    return expansion + depthwise + excite + hidden * out + 2 * out


def closed_form(width: float, depth: float, classes: int) -> int:
    """Parameters of the whole network: stem, blocks, last convolution, head."""
    channels, head = divisible(32 * width), divisible(1280 * width)
    total = 27 * channels + 2 * channels
    for stage in STAGES:
        for _ in range(math.ceil(stage.repeats * depth)):
            out = divisible(stage.channels * width)
            total += block_parameters(channels, out, stage, squeeze=True)
            channels = out
    return total + channels * head + 2 * head + head * classes + classes


PUBLISHED = {  # timm's counts; Tan & Le (2019), Table 2: 5.3M, 7.8M, 9.2M, 12M, 19M
    "efficientnet_b0": 5_288_548,
    "efficientnet_b1": 7_794_184,
    "efficientnet_b2": 9_109_994,
    "efficientnet_b3": 12_233_232,
    "efficientnet_b4": 19_341_616,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_closed_form_gives_the_published_parameters(name: str) -> None:
    _, options = models.BACKBONES[name]
    assert closed_form(options["width"], options["depth"], 1000) == PUBLISHED[name]


@pytest.mark.parametrize("name", ["efficientnet_b0", "efficientnet_b2"])
def test_parameters_are_the_published_number(name: str) -> None:
    assert costs.parameters(models.build(name, input_shape=(224, 224, 3), num_classes=1000)) == PUBLISHED[name]


@pytest.mark.parametrize(
    ("channels", "expected"),
    # half of 8 and more go up; 8 is the least; 18 would lose a ninth of itself at 16, and 10.0 → 8 a fifth
    [(32 * 1.4, 48), (16 * 1.1, 16), (24 * 1.1, 24), (3, 8), (18, 24), (10.0, 16), (112 * 1.1, 120)],
)
def test_channels_are_rounded_to_multiples_of_eight(channels: float, expected: int) -> None:
    assert divisible(channels) == expected
    assert divisible(channels) >= 0.9 * channels


def test_logits_are_those_of_timm(tmp_path: Path) -> None:
    timm = import_timm()
    reference = timm.models.efficientnet._gen_efficientnet(
        "efficientnet_b0", channel_multiplier=TINY["width"], depth_multiplier=TINY["depth"], num_classes=5
    )
    assert_parity("efficientnet_b0", reference, (45, 38, 3), 5, tmp_path, **TINY)  # odd sides: padding is symmetric


def test_dropout_acts_in_training_only_by_key_and_after_the_features(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(efficientnet, "STAGES", STAGES[:1])
    model = models.build("efficientnet_b0", input_shape=SHAPE, num_classes=5, dropout=0.5, drop_path=0.0, **TINY)
    rng = np.random.default_rng(0)
    state = jax.tree.map(  # quicker than to compile the initialisation
        lambda leaf: rng.uniform(size=leaf.shape).astype(np.float32), jax.eval_shape(model.init, jax.random.key(0))
    )
    images = jax.random.normal(jax.random.key(1), (4, *SHAPE))

    @jax.jit
    def forward(state: tuple, images: jax.Array, key: jax.Array) -> tuple:
        return tuple(model.apply(*state, images, train=train, key=key)[0] for train in (True, False))

    (first, evaluated), (again, _), (other, evaluated_too) = (
        forward(state, images, jax.random.key(seed)) for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first["logits"], again["logits"])
    assert not np.array_equal(first["logits"], other["logits"])
    np.testing.assert_array_equal(first["features"], other["features"])
    np.testing.assert_array_equal(evaluated["logits"], evaluated_too["logits"])


def test_stochastic_depth_grows_with_the_depth() -> None:
    create = functools.partial(EfficientNet, input_shape=SHAPE, num_classes=5, width=1.0, depth=1.0, drop_path=0.2)
    network = nnx.eval_shape(lambda: create(rngs=nnx.Rngs(0)))
    rates = [block.drop_path.rate for stage in network.blocks for block in stage]
    np.testing.assert_allclose(rates, 0.2 * np.arange(16) / 16)


def test_a_dropped_path_leaves_the_shortcut_and_a_kept_one_is_scaled() -> None:
    """Per example, the block adds 0 or 1 / (1 − rate) times what it adds without dropping; outside training all of it."""
    x = jax.random.normal(jax.random.key(0), (32, 4, 4, 8))
    options = {"activation": jax.nn.silu, "squeeze": True, "dtype": jnp.float32}

    def added(x: jax.Array, rate: float, train: bool, seed: int) -> jax.Array:
        block = InvertedResidual(8, 8, Stage(6, 3, 1, 8, 1), 1, drop_path=rate, rngs=nnx.Rngs(0), **options)
        return (block(x, train=train, rngs=nnx.Rngs(dropout=seed)) - x).reshape(32, -1)

    cases = {
        "whole": (0.0, True, 1),
        "dropped": (0.75, True, 1),
        "again": (0.75, True, 1),
        "other": (0.75, True, 2),
        "evaluated": (0.75, False, 1),
        "expected": (0.0, False, 1),
    }
    result = jax.jit(lambda x: {name: added(x, *case) for name, case in cases.items()})(x)
    kept = np.abs(result["dropped"]).max(1) > 0
    assert 0 < kept.sum() < 32
    np.testing.assert_allclose(result["dropped"][kept], 4 * result["whole"][kept], atol=1e-5)
    np.testing.assert_array_equal(result["dropped"], result["again"])
    assert not np.array_equal(kept, np.abs(result["other"]).max(1) > 0)
    np.testing.assert_array_equal(result["evaluated"], result["expected"])


def test_computing_in_bfloat16_keeps_parameters_and_outputs_in_float32() -> None:
    model = models.build("efficientnet_b0", input_shape=SHAPE, num_classes=5, dtype=jnp.bfloat16, **TINY)
    state = jax.eval_shape(model.init, jax.random.key(0))
    images, key = jax.ShapeDtypeStruct((2, *SHAPE), jnp.float32), jax.random.key(0)
    after = jax.eval_shape(lambda p, s, x: model.apply(p, s, x, train=True, key=key), *state, images)
    assert {leaf.dtype for leaf in jax.tree.leaves((state, after))} == {jnp.dtype("float32")}
