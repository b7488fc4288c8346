"""SST-2 sentences, bidirectional LSTM: cross-entropy against label smoothing 0.6.

    make run CONFIG=experiments/label_smoothing/sst2.py
    make run CONFIG=experiments/label_smoothing/sst2.py:smoke      # two steps on a made-up small set: tries every stage, no finding

Data: `python -m sc_jax.data.prepare sst2 --from DIR` first; 64 tokens. Two classes: logit
normalisation is not defined. Not in the paper: the recipe is that of its IMDB row, smoothing 0.6 included, with 5 seeds and 4 epochs, for the cost of it on a CPU. Result: README.md.
Source of recipe: Xia, Laurent, Franchi & Bouganis, ICLR 2025 (arXiv 2403.14715), their configs; what differs is said in imdb.py.
"""

from ml_collections import ConfigDict
from recipe import recipe, smoke


def get_config(variant: str = "default") -> ConfigDict:
    """The config of `variant`: default or smoke."""
    config = recipe("label_smoothing_sst2", variant, alpha=0.6, classes=2)
    config.data.name = "sst2"
    config.model.name, config.model.dropout = "lstm", 0.2
    config.training.optimizer, config.training.learning_rate, config.training.weight_decay = "adam", 1e-3, 0.0
    config.training.schedule, config.training.warmup_epochs = "constant", 0.0
    config.training.batch_size, config.training.epochs, config.training.checkpoint_every = 64, 4, 108
    config.prediction.splits, config.prediction.batch_size = ("validation", "test"), 500
    if variant == "smoke":
        smoke(config, batch_size=8)
    return config
