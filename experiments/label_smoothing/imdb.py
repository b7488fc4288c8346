"""IMDB reviews, bidirectional LSTM: cross-entropy against label smoothing 0.6.

    make run CONFIG=experiments/label_smoothing/imdb.py
    make run CONFIG=experiments/label_smoothing/imdb.py:smoke      # two steps on a made-up small set: tries every stage, no finding

Data: `python -m sc_jax.data.prepare imdb --from DIR` first; 256 tokens. Two classes: logit normalisation is not defined.
Cost: not measured yet. Published, error % and AURC %: CE/MSP 12.6, 4.10; LS/MSP 12.3, 4.51. Ours: not run to the end yet.
The paper's code differs: an LSTM of one direction on fixed GloVe vectors that reads the last of 256 positions, padding too, with one logit,
and the checkpoint with the best test accuracy; ours learns its embedding of 25,000 words, reads both ways and masks the padding.
Source of recipe and figures: Xia, Laurent, Franchi & Bouganis, ICLR 2025 (arXiv 2403.14715), their configs and figure legends.
"""

from ml_collections import ConfigDict
from recipe import recipe, smoke


def get_config(variant: str = "default") -> ConfigDict:
    """The config of `variant`: default or smoke."""
    config = recipe("label_smoothing_imdb", variant, alpha=0.6, classes=2)
    config.data.name = "imdb"
    config.model.name, config.model.dropout = "lstm", 0.2
    config.training.optimizer, config.training.learning_rate, config.training.weight_decay = "adam", 1e-3, 0.0
    config.training.schedule, config.training.warmup_epochs = "constant", 0.0
    config.training.batch_size, config.training.epochs, config.training.checkpoint_every = 64, 10, 351
    config.prediction.splits, config.prediction.batch_size = ("validation", "test"), 500
    if variant == "smoke":
        smoke(config, batch_size=8)
    return config
