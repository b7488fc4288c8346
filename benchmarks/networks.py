"""The networks whose speed is measured, with the same in PyTorch, and how rates are taken."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from benchmarks import machine
from sc_jax import models
from sc_jax.models import costs


class Network(NamedTuple):
    """A backbone at the size of its data: name; key of `models.BACKBONES`; examples in a batch on a CPU; one input; classes."""

    name: str
    backbone: str
    batch: int
    shape: tuple[int, int, int]
    classes: int

    @property
    def streamed(self) -> bool:
        """Whether its images are decoded on the way."""
        return self.shape[0] == 224

    def build(self, **options: Any) -> models.Model:
        """The model."""
        return models.build(self.backbone, input_shape=self.shape, num_classes=self.classes, **options)

    def macs(self) -> int:
        """Multiply-accumulates of one example, forward."""
        return costs.macs(self.build(), self.shape)


NETWORKS = (
    Network("MLP", "mlp", 128, (28, 28, 1), 10),
    Network("CNN", "cnn", 128, (28, 28, 1), 10),
    Network("ResNet-20", "resnet20_cifar", 128, (32, 32, 3), 10),
    Network("ResNet-50", "resnet50", 8, (224, 224, 3), 1000),
    Network("ViT-S/16", "vit_small_patch16", 8, (224, 224, 3), 1000),
    Network("EfficientNet-B0", "efficientnet_b0", 8, (224, 224, 3), 1000),
)


def matmul_flops() -> float:
    """The machine's rate at a 2048³ float32 matrix product, best of 10."""
    a = jnp.ones((2048, 2048))
    product = jax.jit(jnp.matmul)
    product(a, a).block_until_ready()
    best = min(_seconds(lambda: product(a, a).block_until_ready()) for _ in range(10))
    return 2 * 2048**3 / best


def _seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def rounds(ways: Mapping[str, Callable[[], object]], seconds: float = 2.0, count: int = 3) -> dict[str, list[float]]:
    """Seconds of one call of each way, in alternating rounds of about so many seconds each; the first call, which compiles, is left out."""
    calls = {}
    for name, way in ways.items():
        way()
        calls[name] = max(1, round(seconds / max(_seconds(way), 1e-6)))
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(count):
        for name, way in ways.items():
            start = time.perf_counter()
            for _ in range(calls[name]):
                way()
            taken[name].append((time.perf_counter() - start) / calls[name])
    return taken


def median_rates(taken: Mapping[str, list[float]], examples: int) -> dict[str, float]:
    """Examples per second, the median of rounds."""
    return {name: examples / statistics.median(values) for name, values in taken.items()}


def stamp() -> dict[str, Any]:
    """Machine, versions, date and load, for one row."""
    told = machine.describe(("torch", "timm"))
    return {"machine": told, "load": os.getloadavg()[0]}


def others(rows: Sequence[dict[str, Any]], only: Sequence[str]) -> list[dict[str, Any]]:
    """Of the rows of earlier measurements those that stay: of the networks that are not measured now (`only`: backbones, all if empty)."""
    measured = {network.name for network in NETWORKS if not only or network.backbone in only}
    return [row for row in rows if row["network"] not in measured]


def torch_model(network: Network) -> Any:
    """The same network in PyTorch, channels last: timm's, or for the small ones written out here."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    if network.streamed:
        from tests.timm_reference import import_timm

        name = {"vit_small_patch16": "vit_small_patch16_224"}.get(network.backbone, network.backbone)
        return import_timm().create_model(name).to(memory_format=torch.channels_last)

    class Block(nn.Module):
        def __init__(self, a: int, b: int, stride: int) -> None:
            super().__init__()
            self.stride, self.margin = stride, (b - a) // 2
            self.conv1, self.bn1 = nn.Conv2d(a, b, 3, stride, 1, bias=False), nn.BatchNorm2d(b)
            self.conv2, self.bn2 = nn.Conv2d(b, b, 3, 1, 1, bias=False), nn.BatchNorm2d(b)

        def forward(self, x: Any) -> Any:
            y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
            x = nn.functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.margin, self.margin))
            return torch.relu(x + y)

    if network.backbone == "mlp":
        parts = [nn.Flatten(), nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10)]
    elif network.backbone == "cnn":
        parts = [nn.Conv2d(1, 32, 3, 2, 1), nn.ReLU(), nn.Conv2d(32, 64, 3, 2, 1), nn.ReLU()]
        parts += [nn.Flatten(), nn.Linear(64 * 7 * 7, 10)]
    else:
        widths = [(16, 16, 1)] * 3 + [(16, 32, 2)] + [(32, 32, 1)] * 2 + [(32, 64, 2)] + [(64, 64, 1)] * 2
        parts = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(), *(Block(*w) for w in widths)]
        parts += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)]
    return nn.Sequential(*parts).to(memory_format=torch.channels_last)


def torch_input(network: Network, images: Any) -> Any:
    """uint8 [b, h, w, c] → what the model takes, channels last in memory."""
    import torch

    x = torch.from_numpy(images).permute(0, 3, 1, 2).to(torch.float32)
    return (x / 255 - 0.5) / 0.5
