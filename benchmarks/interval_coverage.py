"""How often the intervals of a contrast hold the truth, with five seeds: a two-way model where the truth is known.

    make bench        # or: python -m benchmarks.interval_coverage

The contrast of seed s on example i is μ + a_s + b_i + c_si, all normal; standard deviations are those of the mean over
200 examples. Linear, so it checks the crossed bootstrap and the t interval as such, not a metric.
"""

from __future__ import annotations

import numpy as np

from benchmarks import machine
from sc_jax.methods import contrasts
from sc_jax.ops import resampling

SEEDS, EXAMPLES, RESAMPLES, STUDIES, LEVEL = 5, 200, 400, 2000, 0.95
SETTINGS = (
    {"seeds": 0.05, "examples": 0.08, "interaction": 0.0},
    {"seeds": 0.05, "examples": 0.08, "interaction": 0.05},
    {"seeds": 0.05, "examples": 0.02, "interaction": 0.02},
    {"seeds": 0.10, "examples": 0.01, "interaction": 0.01},
)


def study(rng: np.random.Generator, seeds: float, examples: float, interaction: float) -> tuple[bool, bool]:
    """Whether each interval of one simulated study holds the truth, 0."""
    root = np.sqrt(EXAMPLES)
    contrast = seeds * rng.normal(size=(SEEDS, 1)) + examples * root * rng.normal(size=EXAMPLES)
    contrast = contrast + interaction * root * rng.normal(size=(SEEDS, EXAMPLES))
    counts = resampling.resample_counts(int(rng.integers(2**31)), EXAMPLES, RESAMPLES).astype(np.float64)
    seed_counts = resampling.resample_counts(int(rng.integers(2**31)), SEEDS, RESAMPLES)
    difference = resampling.crossed(contrast.mean(axis=1), contrast @ counts.T / EXAMPLES, seed_counts)
    intervals = (resampling.percentile_interval(difference.replicates, LEVEL), difference.t_interval(LEVEL))
    return tuple(bool(low <= 0 <= high) for low, high in intervals)


def main() -> None:
    """Simulates and writes `results/interval_coverage.json`."""
    rows = []
    for number, setting in enumerate(SETTINGS):
        rng = np.random.default_rng(number)
        held = np.mean([study(rng, **setting) for _ in range(STUDIES)], axis=0)
        rows.append({**setting, "crossed": held[0], "t": held[1]})
        print(rows[-1])
    machine.write("interval_coverage", {"studies": STUDIES, "n_seeds": SEEDS, "resamples": RESAMPLES, "rows": rows})


if __name__ == "__main__":
    main()
