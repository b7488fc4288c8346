"""CIFAR-10, ResNet-20: cross-entropy against label smoothing 0.2.

    make run CONFIG=experiments/label_smoothing/cifar10.py
    make run CONFIG=experiments/label_smoothing/cifar10.py:smoke      # two steps on a made-up small set: tries every stage, no finding

Data: `python -m sc_jax.data.prepare cifar10` first. Our 5,000 validation images are not the paper's, whose choice is not known.
Cost: not measured yet. Published: none in figures for this row. Ours: not run to the end yet.
Half precision is bfloat16 here, float16 there.
Source of recipe and figures: Xia, Laurent, Franchi & Bouganis, ICLR 2025 (arXiv 2403.14715), their configs and figure legends.
"""

from ml_collections import ConfigDict
from recipe import recipe, smoke


def get_config(variant: str = "default") -> ConfigDict:
    """The config of `variant`: default or smoke."""
    config = recipe("label_smoothing_cifar10", variant, alpha=0.2, classes=10)
    config.data.name = "cifar10"
    config.data.mean, config.data.std = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)  # of its training pixels
    config.augmentation.crop_padding, config.augmentation.flip = 4, True
    config.model.name, config.model.dtype = "resnet20_cifar", "bfloat16"
    config.training.optimizer, config.training.momentum = "sgd", 0.9
    config.training.learning_rate, config.training.weight_decay, config.training.decay = 0.1, 5e-4, "all"
    config.training.schedule, config.training.milestones, config.training.warmup_epochs = "step", (25.0, 50.0), 0.0
    config.training.batch_size, config.training.epochs = 128, 75
    config.training.checkpoint_every = 1755  # 5 epochs
    config.prediction.splits, config.prediction.batch_size = ("validation", "test"), 1000
    if variant == "smoke":
        config.training.milestones = (1.0,)
        smoke(config, batch_size=16)
    return config
