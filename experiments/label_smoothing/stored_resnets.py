"""Four ResNets for CIFAR-10 that others trained (cross-entropy, no smoothing), on JPEG copies of its test images: what p-norm does to them.

    make run CONFIG=experiments/label_smoothing/stored_resnets.py:resnet20      # also resnet32, resnet44, resnet56

Data: `python -m sc_jax.data.prepare cifar10_jpeg --from DIR` first. p is chosen on the test images of even id, everything is reported on those of odd id.
Weights: github.com/akamaster/pytorch_resnet_cifar10 (BSD-style licence), as weights/cifar10_resnet20.safetensors and so on in the current folder; another place:
`--config.model.weights=FILE`. A covariate shift: 91.8 to 93.6 % accuracy on the original images, 81 to 83 % on the copies.
Cost: minutes on two CPU cores. Result: README.md. Not a row of the paper; one network of each kind, so that intervals cover test examples alone.
"""

from ml_collections import ConfigDict
from recipe import recipe

VARIANTS = ("resnet20", "resnet32", "resnet44", "resnet56")


def get_config(variant: str = "resnet20") -> ConfigDict:
    """The config of `variant`: resnet20, resnet32, resnet44 or resnet56."""
    if variant not in VARIANTS:
        raise ValueError(f"there is no variant {variant!r}; there are {', '.join(VARIANTS)}")
    config = recipe("label_smoothing_stored_resnets", "default", alpha=0.2, classes=10)
    config.variant = variant
    config.data.name, config.data.preprocessing = "cifar10_jpeg_halves", "akamaster"
    config.model.name, config.model.weights = f"{variant}_cifar", f"weights/cifar10_{variant}.safetensors"
    config.members.alphas, config.members.seeds, config.primary = (0.0,), (0,), ()
    config.training.epochs = 0  # as the weights are; what follows is asked for and does nothing
    config.training.batch_size = config.training.checkpoint_every = 500
    config.training.learning_rate, config.training.weight_decay, config.training.warmup_epochs = 0.1, 0.0, 0.0
    config.prediction.splits, config.prediction.batch_size = ("validation", "test"), 500
    config.evaluation.scores += ("msp_temperature", "msp_pnorm", "max_logit", "energy", "doctor_alpha")
    return config
