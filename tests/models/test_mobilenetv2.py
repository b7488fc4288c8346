"""MobileNetV2 against the published counts, a closed form and timm."""

from __future__ import annotations

from pathlib import Path

import pytest
from timm_reference import assert_parity, import_timm

from sc_jax import models
from sc_jax.models import costs, mobilenetv2
from sc_jax.models.mobilenetv2 import STAGES


def rounded(channels: float) -> int:
    """To the nearest multiple of 8, the larger of two (no width of ours loses a tenth by it)."""
    return int(channels / 8 + 0.5) * 8


def closed_form(width: float, classes: int) -> int:
    """Parameters, layer by layer; batch normalisation has two for each channel."""
    channels, head = rounded(32 * width), max(1280, rounded(1280 * width))
    total = (27 + 2) * channels
    for expansion, kernel, _, out, repeats in STAGES:
        for _ in range(repeats):
            hidden, out_channels = expansion * channels, rounded(out * width)
            total += (channels + 2) * hidden if expansion > 1 else 0
            total += (kernel**2 + 2) * hidden + (hidden + 2) * out_channels
            channels = out_channels
    return total + (channels + 2) * head + (head + 1) * classes


@pytest.mark.parametrize(
    ("name", "published"),  # Sandler et al. (2018), Table 4: 3.4M and 6.9M (1.4); timm: 3,504,872 and 6,108,776
    [("mobilenetv2_100", 3_504_872), ("mobilenetv2_130", None), ("mobilenetv2_140", 6_108_776)],
)
def test_parameters_are_the_published_number_and_the_closed_form(name: str, published: int | None) -> None:
    count = costs.parameters(models.build(name, input_shape=(224, 224, 3), num_classes=1000))
    assert count == closed_form(models.BACKBONES[name][1]["width"], 1000)
    assert published in (None, count)


@pytest.mark.parametrize("relu6", [True, False])
def test_logits_are_those_of_timm(relu6: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With one block for each stage."""
    timm = import_timm()
    monkeypatch.setattr(mobilenetv2, "STAGES", tuple(stage._replace(repeats=1) for stage in STAGES))
    reference = timm.models.efficientnet._gen_mobilenet_v2(
        "mobilenetv2_100",
        channel_multiplier=0.25,
        depth_multiplier=0.1,
        num_classes=5,
        act_layer="relu6" if relu6 else "relu",
    )
    largest = []
    reference.bn2.register_forward_hook(lambda module, inputs, output: largest.append(float(output.max())))
    assert_parity("mobilenetv2_100", reference, (33, 38, 3), 5, tmp_path, width=0.25, relu6=relu6)
    assert max(largest) == 6 if relu6 else max(largest) > 6  # the two differ here


def test_width_130_is_timms_rule() -> None:
    timm = import_timm()
    reference = timm.models.efficientnet._gen_mobilenet_v2("mobilenetv2_140", channel_multiplier=1.3)
    assert sum(tensor.numel() for tensor in reference.parameters()) == closed_form(1.3, 1000)
