"""Learning rate × width of the MLP, by validation error: the grid behind the config's choice.

    python -m sc_jax.sweep --sweep=experiments/label_smoothing/sweep.py --workdir=runs/label_smoothing-sweep --parallel=2

Variants:
  default  4 learning rates × 3 widths of `config.py:few`, 1,000 images; each run trains its α and seeds as one program.
  hundred  100 runs of seconds, learning rate × width × seed; what `python -m benchmarks.sweep` kills.
  four     four of them.

Choose by the column error_on_validation, never by the test metrics beside it. Cost of default on two CPU cores: about a minute a run.
"""

import itertools
from collections.abc import Iterator

LEARNING_RATES = (3e-4, 1e-3, 3e-3, 1e-2)
WIDTHS = (64, 256, 1024)


def get_configs(variant: str = "default") -> Iterator[dict]:
    """Runs of `variant`: each the config it starts from, and the fields that differ from it."""
    if variant == "default":
        for rate, width in itertools.product(LEARNING_RATES, WIDTHS):
            yield {"config": "config.py:few", "training.learning_rate": rate, "model.hidden": (width, width)}
    elif variant in ("hundred", "four"):
        grid = itertools.product((1e-3, 3e-3, 1e-2, 3e-2), (8, 16, 32, 64, 128), range(5))
        for rate, width, seed in itertools.islice(grid, 4 if variant == "four" else None):
            yield {
                "name": f"rate={rate:g},width={width},seed={seed}",
                "config": "config.py:smoke",
                "training.learning_rate": rate,
                "model.hidden": (width,),
                "members.seeds": (seed,),
                **{"data.train_examples": 1000, "training.epochs": 6, "training.checkpoint_every": 7},
                **{"training.statistics_every": 0, "primary": ()},
            }
    else:
        raise ValueError(f"there is no variant {variant!r}; there are default, hundred, four")
