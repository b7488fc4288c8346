"""Refusing wrong intents and requests for none: SCOD on CLINC150 with its own out-of-scope requests.

    .venv/bin/python -m sc_jax.data.prepare clinc150 --from DIR      # data_full.json, see docs/data.md
    make run CONFIG=experiments/scod/clinc150.py
    .venv/bin/python experiments/scod/compare.py --workdir=runs/scod_clinc150-default

A perceptron on a bag of words learns 150 intents from 15,000 requests, three seeds. At test 1,000 of 5,500 requests are of no intent. Settings were chosen by the
error on the validation split.

Variants: default, smoke (the made-up small set, one epoch, one seed: every stage, no finding).

Cost and result: README.md in this folder.
"""

from ml_collections import ConfigDict


def get_config(variant: str = "default") -> ConfigDict:
    """The config of `variant`."""
    if variant not in ("default", "smoke"):
        raise ValueError(f"there is no variant {variant!r}; there are default, smoke")
    config = ConfigDict({"study": "scod_clinc150", "variant": variant, "primary": ()})
    config.data = ConfigDict({"name": "clinc150", "small": variant == "smoke"})
    config.model = ConfigDict({"name": "bag_of_words", "hidden": (256,), "dropout": 0.3})
    config.members = ConfigDict({"alphas": (0.0,), "seeds": (0, 1, 2)})
    config.training = ConfigDict({"batch_size": 100, "epochs": 12, "learning_rate": 5e-3, "weight_decay": 1e-2})
    config.training.warmup_epochs, config.training.checkpoints_kept = 1.0, 2
    config.training.log_every = config.training.checkpoint_every = 150  # an epoch
    config.prediction = ConfigDict({"batch_size": 500, "features": True})
    config.prediction.splits = ("train", "validation", "test", "outliers")
    config.evaluation = ConfigDict({"test_split": "test", "calibration_split": "validation"})
    config.evaluation.scores = ("msp", "max_logit", "energy", "mahalanobis", "vim", "react", "gradnorm", "sirc")
    if variant == "smoke":
        config.members.seeds, config.training.epochs, config.training.warmup_epochs = (0,), 1, 0.5
        config.evaluation.resamples = 50
    return config
