"""Adult, MLP [4d, 2d]: cross-entropy against label smoothing 0.6.

    make run CONFIG=experiments/label_smoothing/adult.py
    make run CONFIG=experiments/label_smoothing/adult.py:smoke      # two steps on a made-up small set: tries every stage, no finding

Data: `python -m sc_jax.data.prepare adult --from DIR` first. Two classes: logit normalisation is not defined. Results are given by sex and race too.
Not in the paper: the recipe is that of its tables, with 10 seeds. Result: README.md.
Source of recipe: Xia, Laurent, Franchi & Bouganis, ICLR 2025 (arXiv 2403.14715), their configs.
"""

from ml_collections import ConfigDict
from recipe import recipe, smoke


def get_config(variant: str = "default") -> ConfigDict:
    """The config of `variant`: default or smoke."""
    config = recipe("label_smoothing_adult", variant, alpha=0.6, classes=2)
    config.data.name = "adult"
    config.model.name = "tabular_mlp"
    config.members.seeds = tuple(range(10))
    config.training.optimizer, config.training.learning_rate, config.training.weight_decay = "adam", 1e-3, 0.0
    config.training.schedule, config.training.warmup_epochs = "constant", 0.0
    config.training.batch_size, config.training.epochs, config.training.checkpoint_every = 128, 10, 500
    config.prediction.splits, config.prediction.batch_size = ("validation", "test"), 1000
    if variant == "smoke":
        smoke(config, batch_size=8)
    return config
