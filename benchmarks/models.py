"""What every backbone costs at its published size: parameters and multiply-accumulates, traced, not run.

make bench        # or: python -m benchmarks.models
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from benchmarks import machine
from sc_jax import models
from sc_jax.models import costs

SIDES = {"efficientnet_b1": 240, "efficientnet_b2": 260, "efficientnet_b3": 300, "efficientnet_b4": 380}
CIFAR = {"input_shape": (32, 32, 3), "num_classes": 10}
OTHERS: dict[str, dict[str, Any]] = {
    "mlp": {"input_shape": (28, 28, 1), "num_classes": 10},
    "cnn": {"input_shape": (28, 28, 1), "num_classes": 10},
    "tabular_mlp": {"input_shape": (62,), "num_classes": 2},
    "bag_of_words": {"input_shape": (40,), "num_classes": 150, "vocabulary_size": 2_820},
    "lstm": {"input_shape": (256,), "num_classes": 2, "vocabulary_size": 25_000},
    "densenet_bc_100": CIFAR,
    "msdnet": CIFAR,
    "deeplabv3plus_resnet101": {"input_shape": (1024, 2048, 3), "num_classes": 19},
}
"""Those that are not for 224×224 images of 1,000 classes."""


def size(name: str) -> dict[str, Any]:
    """The arguments of `models.build` at which `name` is published."""
    if name in OTHERS:
        return OTHERS[name]
    if name.endswith("_cifar") or name in ("wide_resnet16_4", "wide_resnet28_10"):
        return CIFAR
    side = SIDES.get(name, 224)
    return {"input_shape": (side, side, 3), "num_classes": 1000}


def main() -> None:
    """Counts and writes `results/models.json`."""
    rows = {}
    for name in models.BACKBONES:
        built = models.build(name, **size(name))
        dtype = jnp.int32 if "vocabulary_size" in size(name) else jnp.float32
        macs = costs.macs(built, size(name)["input_shape"], dtype)
        rows[name] = {**size(name), "parameters": costs.parameters(built), "macs": macs}
        print(f"{name:24} {rows[name]['parameters']:>11,} parameters  {rows[name]['macs']:>15,} MACs", flush=True)
    machine.write("models", {"models": rows})


if __name__ == "__main__":
    main()
