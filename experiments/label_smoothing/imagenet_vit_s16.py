"""ImageNet, ViT-S/16 with SAM: cross-entropy against label smoothing 0.2.

    make run CONFIG=experiments/label_smoothing/imagenet_vit_s16.py
    make run CONFIG=experiments/label_smoothing/imagenet_vit_s16.py:smoke      # two steps on a made-up small set: tries every stage, no finding

Data and splits as in imagenet_resnet50.py. Adam's rate, decay, clipping and ρ are the paper's; clipping follows SAM's gradient. The
normalisation and the crop at test are ours.
Cost: not measured yet; the paper used 4 GPUs × 512. One α alone:
`python -m sc_jax.run --config=experiments/label_smoothing/imagenet_vit_s16.py '--config.members.alphas=(0.2,)' '--config.primary=()'`.
Published, error % and AURC %: CE/MSP 25.8, 7.43; LS/MSP 24.9, 7.86. Ours: not run to the end yet.
Source of recipe and figures: Xia, Laurent, Franchi & Bouganis, ICLR 2025 (arXiv 2403.14715), their configs and figure legends.
"""

from ml_collections import ConfigDict
from recipe import IMAGENET, one_member, recipe, smoke


def get_config(variant: str = "default") -> ConfigDict:
    """The config of `variant`: default or smoke."""
    config = recipe("label_smoothing_imagenet_vit_s16", variant, alpha=0.2, classes=1000)
    config.data.name, config.data.train_split = "imagenet", "train_full"
    config.data.update(IMAGENET)
    config.data.interpolation = "bicubic"
    config.augmentation.resized_crop, config.augmentation.flip = (0.08, 1.0), True
    config.model.name, config.model.dropout = "vit_small_patch16", 0.1
    config.members.seeds = (0,)
    config.training.optimizer, config.training.betas, config.training.sam = "adamw", (0.9, 0.999), 0.2
    config.training.learning_rate, config.training.weight_decay, config.training.decay = 3e-3, 0.3, "all"
    config.training.schedule, config.training.warmup_epochs, config.training.gradient_clip = "cosine", 15.0, 1.0
    config.training.batch_size, config.training.epochs = 2048, 300
    config.training.checkpoint_every = 3125  # 5 epochs
    config.prediction.splits, config.prediction.batch_size = ("test_tune", "test_report"), 512
    config.evaluation.calibration_split, config.evaluation.test_split = "test_tune", "test_report"
    if variant == "smoke":
        config.training.warmup_epochs = 0.0
        smoke(config, batch_size=8)
        one_member(config)
    return config
