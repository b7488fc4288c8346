"""CIFAR-100, DenseNet-BC-100 (growth 12): cross-entropy against label smoothing 0.2.

    make run CONFIG=experiments/label_smoothing/cifar100.py
    make run CONFIG=experiments/label_smoothing/cifar100.py:smoke      # two steps on a made-up small set: tries every stage, no finding

Data: `python -m sc_jax.data.prepare cifar100` first. Cost: not measured yet. Published: curves over α, no table. Ours: not run to the
end yet.
Source of recipe and figures: Xia, Laurent, Franchi & Bouganis, ICLR 2025 (arXiv 2403.14715), their configs and figure legends.
"""

from ml_collections import ConfigDict
from recipe import one_member, recipe, smoke


def get_config(variant: str = "default") -> ConfigDict:
    """The config of `variant`: default or smoke."""
    config = recipe("label_smoothing_cifar100", variant, alpha=0.2, classes=100)
    config.data.name = "cifar100"
    config.data.mean, config.data.std = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)  # of its training pixels
    config.augmentation.crop_padding, config.augmentation.flip = 4, True
    config.model.name = "densenet_bc_100"
    config.training.optimizer, config.training.momentum = "nesterov", 0.9
    config.training.learning_rate, config.training.weight_decay, config.training.decay = 0.1, 1e-4, "all"
    config.training.schedule, config.training.milestones, config.training.warmup_epochs = "step", (150.0, 225.0), 0.0
    config.training.batch_size, config.training.epochs = 64, 300
    config.training.checkpoint_every = 7030  # 10 epochs
    config.prediction.splits, config.prediction.batch_size = ("validation", "test"), 1000
    if variant == "smoke":
        config.training.milestones = (1.0,)
        smoke(config, batch_size=8)
        one_member(config)
    return config
