"""TREC question types, bidirectional LSTM: cross-entropy against label smoothing 0.2.

    make run CONFIG=experiments/label_smoothing/trec.py
    make run CONFIG=experiments/label_smoothing/trec.py:smoke      # two steps on a made-up small set: tries every stage, no finding

Data: `python -m sc_jax.data.prepare trec --from DIR` first; 40 tokens, six classes, 500 test questions: intervals are wide.
Not in the paper: the recipe is that of its IMDB row, with smoothing 0.2 as for its other sets of many classes, and 5 seeds. Result: README.md.
Source of recipe: Xia, Laurent, Franchi & Bouganis, ICLR 2025 (arXiv 2403.14715), their configs; what differs is said in imdb.py.
"""

from ml_collections import ConfigDict
from recipe import recipe, smoke


def get_config(variant: str = "default") -> ConfigDict:
    """The config of `variant`: default or smoke."""
    config = recipe("label_smoothing_trec", variant, alpha=0.2, classes=6)
    config.data.name = "trec"
    config.model.name, config.model.dropout = "lstm", 0.2
    config.training.optimizer, config.training.learning_rate, config.training.weight_decay = "adam", 1e-3, 0.0
    config.training.schedule, config.training.warmup_epochs = "constant", 0.0
    config.training.batch_size, config.training.epochs, config.training.checkpoint_every = 64, 10, 76
    config.prediction.splits, config.prediction.batch_size = ("validation", "test"), 500
    if variant == "smoke":
        smoke(config, batch_size=8)
    return config
