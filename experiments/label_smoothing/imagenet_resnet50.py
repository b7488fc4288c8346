"""ImageNet, ResNet-50: cross-entropy against label smoothing 0.2.

    make run CONFIG=experiments/label_smoothing/imagenet_resnet50.py
    make run CONFIG=experiments/label_smoothing/imagenet_resnet50.py:smoke      # two steps on a made-up small set: tries every stage, no finding

Data: `python -m sc_jax.data.prepare imagenet --from DIR` first. As in the paper all official training images are trained on; p is chosen on
10,000 images of the official validation set and everything is reported on the other 40,000 (ours are not the paper's 10,000).
Cost: not measured yet; the paper used 4 GPUs × 256. One α alone:
`python -m sc_jax.run --config=experiments/label_smoothing/imagenet_resnet50.py '--config.members.alphas=(0.2,)' '--config.primary=()'`.
Published, error % and AURC %: CE/MSP 23.0, 6.53; LS/MSP 22.5, 7.55; on the 40,000: CE/p-norm 23.0, 6.56; LS/p-norm 22.6, 6.22.
Ours: not run to the end yet.
Source of recipe and figures: Xia, Laurent, Franchi & Bouganis, ICLR 2025 (arXiv 2403.14715), their configs and figure legends.
"""

from ml_collections import ConfigDict
from recipe import IMAGENET, one_member, recipe, smoke


def get_config(variant: str = "default") -> ConfigDict:
    """The config of `variant`: default or smoke."""
    config = recipe("label_smoothing_imagenet_resnet50", variant, alpha=0.2, classes=1000)
    config.data.name, config.data.train_split = "imagenet", "train_full"
    config.data.update(IMAGENET)
    config.data.interpolation = "bicubic"
    config.augmentation.resized_crop, config.augmentation.flip = (0.08, 1.0), True
    config.model.name, config.model.dtype = "resnet50", "bfloat16"
    config.members.seeds = (0,)
    config.training.optimizer, config.training.momentum = "sgd", 0.9
    config.training.learning_rate, config.training.weight_decay, config.training.decay = 0.4, 1e-4, "all"
    config.training.schedule, config.training.warmup_epochs, config.training.warmup_factor = "cosine", 5.0, 1e-4
    config.training.batch_size, config.training.epochs = 1024, 120
    config.training.checkpoint_every = 1251  # an epoch
    config.prediction.splits, config.prediction.batch_size = ("test_tune", "test_report"), 512
    config.evaluation.calibration_split, config.evaluation.test_split = "test_tune", "test_report"
    if variant == "smoke":
        config.training.warmup_epochs = config.training.warmup_factor = 0.0
        smoke(config, batch_size=8)
        one_member(config)
    return config
