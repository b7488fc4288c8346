"""What else does what label smoothing does, and smoothing that spares the ranking: Fashion-MNIST, 12,000 images, MLP.

    make run CONFIG=experiments/label_smoothing/objectives.py:teacher    # first: networks with a fold of the training images left out
    make run CONFIG=experiments/label_smoothing/objectives.py            # two α and 16 other objectives, 5 seeds
    make run CONFIG=experiments/label_smoothing/objectives.py:smoke      # without a teacher, one epoch: tries every stage, no finding

Data, network, batches and schedule are those of config.py; every member of a seed starts alike and sees the same batches.

Hypothesis, written down before the first run. In the mean over fresh labels, label smoothing adds α(1 − P_err − 1/K) to the gradient on the max logit: more
where errors are rare. An α(x) in proportion to the risk of error (`error_smoothing`) turns that dependence round for P_err up to (1 − 1/K)/2; one
that is larger where errors are likely so that the suppression is equal (`equal_suppression`, bounded by 0.8) takes it away, as MaxSup does without
knowing P_err. Hence the primary contrasts, all by MSP: (1, 2) both rank better than label smoothing (NAURC); (3) smoothing by error ranks better than the
same α(x) on other x, so that it is their place that does it; (4) it has fewer errors than cross-entropy, since doing nothing would pass the others; (5, 6) it ranks no
worse than cross-entropy, and no worse than label smoothing after p-norm (NAURC, margin 0.01); (7) it has no more errors than label smoothing (margin
0.5 points). Against MaxSup and the instance-based smoothings the contrasts are exploratory, also those added after the first results: those see the labels they were trained on.
P_err is out of fold: by networks that learned from the example it would be near 0 everywhere, which is plain smoothing again.
Each objective has one strength, which is not tuned: 0.2 where α is meant, else one from its literature.

Result, and cost where a run left it: README.md.
"""

from config import get_config as default_config
from ml_collections import ConfigDict

OBJECTIVES = (
    *("mixup=0.2", "cutmix=1", "label_noise=0.2", "temperature=2", "focal=2", "confidence_penalty=0.1"),
    *("logit_norm=0.04", "max_suppression=0.2", "margin_smoothing=10", "acls=0.1"),
)
"""Of labels and losses alone."""

OF_A_TEACHER = (
    *("distillation=2", "instance_smoothing=0.2", "inverse_instance_smoothing=0.2"),
    *("equal_suppression=0.2", "error_smoothing=0.2", "shuffled_error_smoothing=0.2"),
)


def get_config(variant: str = "default") -> ConfigDict:
    """The config of `variant`: teacher, default or smoke."""
    if variant not in ("teacher", "default", "smoke"):
        raise ValueError(f"there is no variant {variant!r}; there are teacher, default, smoke")
    config = default_config("smoke" if variant == "smoke" else "default")
    config.study, config.variant = "label_smoothing_objectives", variant
    config.training.statistics_every = 0
    config.evaluation.scores = ("msp", "max_logit_pnorm", "max_logit_pnorm_or_msp")
    config.primary = ()
    if variant == "smoke":
        config.members.objectives = OBJECTIVES
        return config
    if variant == "teacher":
        config.members.seeds = tuple(range(10))
        config.members.alphas = (0.0,)
        config.members.objectives = tuple(f"left_out={fold}" for fold in range(5))
        config.evaluation.scores = ("msp",)
        return config
    config.members.alphas = (0.0, 0.2)
    config.members.objectives = (*OBJECTIVES, *OF_A_TEACHER)
    config.training.teacher = "runs/label_smoothing_objectives-teacher"
    config.prediction.splits = ("validation", "test")
    config.primary = _contrasts()
    return config


def _contrasts() -> tuple[dict, ...]:
    by_error, equal, plain, smoothing = "error_smoothing=0.2", "equal_suppression=0.2", (0.0, "msp"), (0.2, "msp")
    normed, shuffled = (0.2, "max_logit_pnorm"), "shuffled_error_smoothing=0.2"
    ranks, after = "smoothing by error ranks", "label smoothing after p-norm"
    return (
        _row(f"{ranks} better than label smoothing", "naurc", by_error, smoothing),
        _row("equal suppression ranks better than label smoothing", "naurc", equal, smoothing),
        _row(f"{ranks} better than the same smoothing of other examples", "naurc", by_error, shuffled),
        _row("smoothing by error has fewer errors than cross-entropy", "error", by_error, plain),
        _row(f"{ranks} no worse than cross-entropy (margin 0.01)", "naurc", by_error, plain, 0.01),
        _row(f"{ranks} no worse than {after} (margin 0.01)", "naurc", by_error, normed, 0.01),
        _row(
            "smoothing by error costs no accuracy against label smoothing (margin 0.5 points)",
            "error",
            by_error,
            smoothing,
            0.005,
        ),
    )


def _row(claim: str, metric: str, treatment: str, control: str | tuple[float, str], margin: float = 0.0) -> dict:
    """metric(treatment by MSP) − metric(control): below 0, or with a margin below that."""
    objective = control if isinstance(control, str) else ""
    alpha, score = (0.0, "msp") if objective else control
    return {
        "claim": claim,
        "metric": metric,
        "treatment_alpha": 0.0,
        "treatment_score": "msp",
        "treatment_objective": treatment,
        "control_alpha": alpha,
        "control_score": score,
        "control_objective": objective,
        "expect": "not_worse_by_margin" if margin else "less",
        "margin": margin,
    }
