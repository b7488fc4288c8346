"""Small made-up predictions and a study of them, with resamples written out row by row."""

import dataclasses

import numpy as np

from sc_jax import ops
from sc_jax.config import Contrast, member_name
from sc_jax.methods import study
from sc_jax.methods.evaluation import Settings
from sc_jax.ops import resampling
from sc_jax.predictions import Predictions, select

ALPHAS, SEEDS = (0.0, 0.2), (3, 7)
TEST, CALIBRATION, CLASSES = 60, 50, 5
SETTINGS = Settings(("msp", "max_logit_pnorm", "max_logit_pnorm_or_msp"), (1, 2, 5), 10, 40, 0.9, 0)

PRIMARY = (
    Contrast("ranks worse", "naurc", 0.2, "msp", 0.0, "msp", "greater", 0.0),
    Contrast("p-norm lowers AURC", "aurc", 0.2, "max_logit_pnorm", 0.2, "msp", "less", 0.0),
    Contrast("costs no accuracy", "error", 0.2, "msp", 0.0, "msp", "not_worse_by_margin", 0.05),
)


def predictions(seed, n=TEST, k=CLASSES, signal=1.5, digits=None, **changes):
    """Logits of very different scales, so that scores rank differently; `digits` rounds them, which makes ties."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, k, n)
    scale = rng.lognormal(sigma=1.0, size=(n, 1))
    logits = scale * (rng.normal(size=(n, k)) + signal * (np.arange(k) == label[:, None]))
    if digits is not None:
        logits = np.round(logits, digits)
    return dataclasses.replace(Predictions(label, logits, np.arange(n), source=f"{seed}.npz"), **changes)


def tag_of(alpha, seed):
    """The tag of a member: of an α, or of another objective."""
    return {"objective" if isinstance(alpha, str) else "alpha": alpha, "seed": seed}


def runs(alphas=ALPHAS, seeds=SEEDS):
    """One run per α and seed; all share labels and ids of each split, as the members of a study do."""

    def split(name, n, first):
        label = predictions(first, n).label
        made = {}
        for i, alpha in enumerate(alphas):
            for j, seed in enumerate(seeds):
                rng = np.random.default_rng([first, i, j])
                logits = rng.lognormal(size=(n, 1)) * (rng.normal(size=(n, CLASSES)) + 1.5 * np.eye(CLASSES)[label])
                made[alpha, seed] = Predictions(
                    label,
                    logits.astype(np.float32),
                    first + np.arange(n),
                    provenance={"split": name, "tags": tag_of(alpha, seed)},
                    source=f"{member_name(tag_of(alpha, seed))}/{name}.npz",
                )
        return made

    test, calibration = split("test", TEST, 1000), split("validation", CALIBRATION, 5000)
    return [study.Run(*member, test[member], calibration[member]) for member in test]


def errors(given):
    """Whether each prediction is wrong."""
    return given.logits.argmax(axis=-1) != given.label


def with_head(seed, n=TEST, k=CLASSES, d=8, **changes):
    """Predictions of a last layer, the same for every seed, on rectified features that cluster by class."""
    kernel = np.random.default_rng(99).normal(size=(d, k))
    given = predictions(seed, n, k)
    features = np.maximum(np.random.default_rng(seed).normal(size=(n, d)) + 0.7 * kernel.T[given.label], 0)
    head = {"features": features, "head_kernel": kernel, "head_bias": np.zeros(k)}
    return dataclasses.replace(given, logits=features @ kernel, **{**head, **changes})


def resampled(given, counts):
    """The resample itself: every example as often as it was drawn."""
    rows = np.repeat(np.arange(len(given)), counts)
    return dataclasses.replace(select(given, rows), example_id=np.arange(len(rows)))


def score_of(name, given, p):
    """The score by its definition; p = 0 is MSP."""
    if name == "max_logit":
        return given.logits.max(axis=-1)
    return ops.msp(given.logits) if p == 0 else ops.max_logit_pnorm(given.logits, p)


def best_p(name, calibration, grid=SETTINGS.p_grid):
    """The p of smallest AURC on `calibration`; ties go to the first, MSP (0) before all where it is a candidate."""
    if name in ("msp", "max_logit"):
        return 0
    candidates = (0, *grid) if name.endswith("or_msp") else grid
    aurc = [float(ops.aurc(score_of(name, calibration, p), errors(calibration))) for p in candidates]
    return candidates[int(np.argmin(np.round(aurc, 12)))]  # a tie is one up to rounding


def metrics_of(name, given, p):
    """Every metric of the score on `given` that has replicates; NLL, Brier and ECE beside MSP."""
    metrics = {m: float(v) for m, v in ops.summarise(score_of(name, given, p), errors(given)).items()}
    if name == "msp":
        metrics["nll"] = float(ops.log_loss(given.logits, given.label).mean())
        metrics["brier"] = float(ops.brier_loss(given.logits, given.label).mean())
        confidence = ops.max_probability(given.logits)
        metrics["ece"] = float(ops.expected_calibration_error(confidence, errors(given), bins=SETTINGS.ece_bins))
    return metrics


def study_counts(how=SETTINGS, seeds=SEEDS):
    """The resamples of test examples, calibration examples and seeds that a study draws."""
    return (
        resampling.resample_counts(how.seed, TEST, how.resamples),
        resampling.resample_counts(how.seed + 1, CALIBRATION, how.resamples),
        resampling.resample_counts(how.seed + 2, len(seeds), how.resamples),
    )
