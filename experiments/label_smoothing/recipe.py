"""What the rows of the paper's table share: members, evaluation and the primary contrasts. Each row's file holds its own rest."""

from __future__ import annotations

from ml_collections import ConfigDict

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
"""Channel means and standard deviations that ImageNet networks are trained with."""


def recipe(study: str, variant: str, *, alpha: float, classes: int) -> ConfigDict:
    """A config with everything but data, model, training and prediction.

    Args:
      study: names the workdir, with `variant`; `variant`: "default" or "smoke".
      alpha: the row's label smoothing, compared with 0; classes: k; p-norm is not defined for two.

    Returns:
      The config, unlocked.

    Raises:
      ValueError: there is no such variant.
    """
    if variant not in ("default", "smoke"):
        raise ValueError(f"there is no variant {variant!r}; there are default, smoke")
    config = ConfigDict({"study": study, "variant": variant})
    for group in ("data", "augmentation", "model", "training", "prediction"):
        config[group] = ConfigDict()
    config.members = ConfigDict({"alphas": (0.0, alpha), "seeds": (0, 1, 2, 3, 4)})
    config.evaluation = ConfigDict({"test_split": "test", "calibration_split": "validation"})
    config.evaluation.scores = (
        ("msp", "max_logit_pnorm", "max_logit_pnorm_or_msp") if classes > 2 else ("msp", "margin")
    )
    config.training.log_every, config.training.checkpoints_kept = 100, 2
    config.primary = contrasts(alpha, classes)
    return config


def contrasts(alpha: float, classes: int) -> tuple[dict, ...]:
    """The primary contrasts, fixed before any run: smoothing ranks worse, p-norm repairs it, accuracy is not lost."""
    smooth, plain = (alpha, "msp"), (0.0, "msp")
    rows = [
        _contrast("smoothing ranks errors worse (NAURC)", "naurc", smooth, plain, "greater"),
        _contrast("smoothing raises AURC", "aurc", smooth, plain, "greater"),
    ]
    if classes > 2:
        normed = (alpha, "max_logit_pnorm")
        rows += [
            _contrast("under smoothing, p-norm ranks better than MSP (NAURC)", "naurc", normed, smooth, "less"),
            _contrast("under smoothing, p-norm lowers AURC", "aurc", normed, smooth, "less"),
        ]
    claim = "smoothing costs no accuracy (error, margin 0.5 points)"
    return (*rows, _contrast(claim, "error", smooth, plain, "not_worse_by_margin", margin=0.005))


def smoke(config: ConfigDict, *, batch_size: int) -> ConfigDict:
    """The same network, loader and augmentation on the small made-up set: two steps, then every stage to the report."""
    config.data.small = True
    config.members.seeds = (0,)
    config.training.steps, config.training.batch_size = 2, batch_size
    config.training.log_every = config.training.checkpoint_every = 1
    config.prediction.batch_size = batch_size
    config.evaluation.resamples = 50
    return config


def one_member(config: ConfigDict) -> ConfigDict:
    """Smoothing alone, where two large networks in one program would take long to compile; then there is nothing to contrast."""
    config.members.alphas, config.primary = config.members.alphas[1:], ()
    return config


def _contrast(
    claim: str, metric: str, treatment: tuple[float, str], control: tuple[float, str], expect: str, margin: float = 0.0
) -> dict:
    """metric(treatment) − metric(control), each an (alpha, score)."""
    sides = zip(("treatment", "control"), (treatment, control), strict=True)
    named = {
        f"{side}_{field}": value for side, pair in sides for field, value in zip(("alpha", "score"), pair, strict=True)
    }
    return {"claim": claim, "metric": metric, **named, "expect": expect, "margin": margin}
