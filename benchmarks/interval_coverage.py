"""How often intervals hold the truth, where the truth is known.

    make bench        # or: python -m benchmarks.interval_coverage

Contrasts, with five seeds: seed s on example i is μ + a_s + b_i + c_si, all normal; standard deviations are those of the mean
over 200 examples. Linear, so it checks the crossed bootstrap and the t interval as such, not a metric.

One file: score s normal, P(wrong | s) = a Φ(−1.2 s − 0.3), a = 0.3 (about one wrong in eight) or 0.07 (one in thirty-five); the truth is AURC's and AUROC's limit, from 4 million samples.
"""

from __future__ import annotations

import numpy as np
from scipy.stats import norm

from benchmarks import machine
from sc_jax import ops
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


METRICS = {"aurc": ops.aurc, "failure_auroc": ops.failure_auroc}
SIZES, SCALES, FILES = (200, 500, 2000), (0.3, 0.07), 1000


def sample(rng: np.random.Generator, n: int, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Scores and errors of one file."""
    score = rng.normal(size=n)
    return score, rng.random(n) < scale * norm.cdf(-1.2 * score - 0.3)


def one_file(n: int, scale: float, metric: str, truth: float) -> dict[str, float | int | str]:
    """How often percentile and BCa intervals of `FILES` files of n examples hold the truth; an interval that is NaN does not."""
    held = {"percentile": 0, "bca": 0}
    for number in range(FILES):
        score, error = sample(np.random.default_rng((n, number)), n, scale)
        for method in held:
            interval = ops.bootstrap(METRICS[metric], score, error, method=method, seed=number)
            held[method] += interval.low <= truth <= interval.high
    return {"n": n, "scale": scale, "metric": metric, **{method: count / FILES for method, count in held.items()}}


def main() -> None:
    """Simulates and writes `results/interval_coverage.json`."""
    rows = []
    for number, setting in enumerate(SETTINGS):
        rng = np.random.default_rng(number)
        held = np.mean([study(rng, **setting) for _ in range(STUDIES)], axis=0)
        rows.append({**setting, "crossed": held[0], "t": held[1]})
        print(rows[-1])
    files = []
    for scale in SCALES:
        population = sample(np.random.default_rng(0), 4_000_000, scale)
        for n in SIZES:
            for name, metric in METRICS.items():
                row = one_file(n, scale, name, float(metric(*population)))
                files.append({**row, "error": float(population[1].mean())})
                print(files[-1], flush=True)
    figures = {"studies": STUDIES, "n_seeds": SEEDS, "resamples": RESAMPLES, "rows": rows}
    machine.write("interval_coverage", {**figures, "files": FILES, "one_file": files})


if __name__ == "__main__":
    main()
