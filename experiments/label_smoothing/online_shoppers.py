"""Online Shoppers, MLP [4d, 2d]: cross-entropy against label smoothing 0.6.

    make run CONFIG=experiments/label_smoothing/online_shoppers.py
    make run CONFIG=experiments/label_smoothing/online_shoppers.py:smoke      # two steps on a made-up small set: tries every stage, no finding

Data: `python -m sc_jax.data.prepare online_shoppers --from DIR` first. Two classes: logit normalisation is not defined.
As there, 80 % of the rows are the test split; of the rest we train on nine tenths and validate on one, they train on all of it.
Published, error % and AURC %: CE/MSP 11.3, 2.98; LS/MSP 11.5, 3.56.
Cost: 13 s on 2 cores of an AMD EPYC. Ours, 5 seeds, error % and AURC %: CE/MSP 10.86, 3.21; LS/MSP 11.34, 4.06 (intervals and verdicts: README.md).
The paper's network has one logit and a sigmoid; ours two and a softmax.
Source of recipe and figures: Xia, Laurent, Franchi & Bouganis, ICLR 2025 (arXiv 2403.14715), their configs and figure legends.
"""

from ml_collections import ConfigDict
from recipe import recipe, smoke


def get_config(variant: str = "default") -> ConfigDict:
    """The config of `variant`: default or smoke."""
    config = recipe("label_smoothing_online_shoppers", variant, alpha=0.6, classes=2)
    config.data.name = "online_shoppers"
    config.model.name = "tabular_mlp"
    config.training.optimizer, config.training.learning_rate, config.training.weight_decay = "adam", 1e-3, 0.0
    config.training.schedule, config.training.warmup_epochs = "constant", 0.0
    config.training.batch_size, config.training.epochs, config.training.checkpoint_every = 128, 10, 500
    config.prediction.splits, config.prediction.batch_size = ("validation", "test"), 1000
    if variant == "smoke":
        smoke(config, batch_size=8)
    return config
