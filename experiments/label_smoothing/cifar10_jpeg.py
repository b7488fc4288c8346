"""CIFAR-10 as JPEG, a ResNet-20 with a quarter of the channels: cross-entropy against label smoothing 0.2.

    make run CONFIG=experiments/label_smoothing/cifar10_jpeg.py
    make run CONFIG=experiments/label_smoothing/cifar10_jpeg.py:whole      # the row of the paper on these images, for an accelerator
    make run CONFIG=experiments/label_smoothing/cifar10_jpeg.py:smoke      # two steps on a made-up small set: tries every stage, no finding

Data: `python -m sc_jax.data.prepare cifar10_jpeg --from DIR` first: JPEG copies of CIFAR-10, trained and tested on alike.
Not the paper's row, which is cifar10.py: channels 4, 8, 16 instead of 16, 32, 64, 12,000 of its training images, 5 epochs instead of 75
with the rate divided at 3 and 4, float32; the rest is that recipe. A CPU does narrow convolutions slowly; this was fixed before the first run. `whole` is all of it, 5 seeds, in bfloat16.
Result, and cost where a run left it: README.md. Published: none in figures for this row.
Source of recipe: Xia, Laurent, Franchi & Bouganis, ICLR 2025 (arXiv 2403.14715), their configs.
"""

from cifar10 import get_config as cifar10_config
from ml_collections import ConfigDict


def get_config(variant: str = "default") -> ConfigDict:
    """The config of `variant`: default, whole or smoke."""
    if variant not in ("default", "whole", "smoke"):
        raise ValueError(f"there is no variant {variant!r}; there are default, whole, smoke")
    config = cifar10_config("smoke" if variant == "smoke" else "default")
    config.study, config.variant, config.data.name = "label_smoothing_cifar10_jpeg", variant, "cifar10_jpeg"
    if variant != "whole":
        config.model.hidden, config.model.dtype, config.training.epochs = (4, 8, 16), "float32", 5
    if variant == "default":
        config.data.train_examples = 12_000
        config.training.milestones = (3.0, 4.0)
        config.training.checkpoint_every = 93  # an epoch
    return config
