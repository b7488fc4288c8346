"""Cityscapes, DeepLabV3+ with ResNet-101: selective classification of pixels, cross-entropy against label smoothing 0.2.

    make run CONFIG=experiments/label_smoothing/cityscapes.py
    make run CONFIG=experiments/label_smoothing/cityscapes.py:smoke      # two steps on a made-up small set: tries every stage, no finding

Data: `python -m sc_jax.data.prepare cityscapes --from DIR` first. Pixels labelled 255 count nowhere. The official validation images are the test
split; our validation split is whole cities of the official training images. Images are tested whole, 1024 × 2048.
The range of scales before the crop of 512 is from memory. To start from a ResNet-101 trained on ImageNet, add
`--config.model.weights=resnet101.safetensors --config.model.weights_part=backbone`; without, training starts from nothing.
Curves and the choice of p rest on 1,000 labelled pixels of each image (theirs: 5,000 of each batch), AURC of all pixels on all.
Cost: not measured yet; the paper used 2 GPUs × 8. Published, error % and AURC %: CE/MSP 4.7, 0.38; LS/MSP 4.9, 0.67; with p = 8,
not tuned: CE 4.7, 0.44; LS 4.9, 0.54. Ours: not run to the end yet.
Source of recipe and figures: Xia, Laurent, Franchi & Bouganis, ICLR 2025 (arXiv 2403.14715), their configs and figure legends.
"""

from ml_collections import ConfigDict
from recipe import IMAGENET, one_member, recipe, smoke


def get_config(variant: str = "default") -> ConfigDict:
    """The config of `variant`: default or smoke."""
    config = recipe("label_smoothing_cityscapes", variant, alpha=0.2, classes=19)
    config.data.name = "cityscapes"
    config.data.update(IMAGENET)
    config.data.train_size = 512
    config.augmentation.resized_crop, config.augmentation.flip = (0.5, 2.0), True
    config.model.name, config.model.dtype = "deeplabv3plus_resnet101", "bfloat16"
    config.members.seeds = (0,)
    config.training.optimizer, config.training.momentum = "sgd", 0.9
    config.training.learning_rate, config.training.weight_decay, config.training.decay = 1e-2, 1e-4, "all"
    config.training.schedule, config.training.power, config.training.warmup_epochs = "poly", 0.9, 0.0
    config.training.batch_size, config.training.epochs, config.training.steps = 16, 200, 30_000
    config.training.checkpoint_every = 1000
    config.prediction.splits, config.prediction.batch_size = ("validation", "test"), 2
    if variant == "smoke":
        smoke(config, batch_size=2)
        one_member(config)
        config.data.train_size, config.prediction.batch_size, config.evaluation.resamples = 256, 1, 20
    return config
