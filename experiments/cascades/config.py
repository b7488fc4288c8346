"""Early-exit cascades: how much of an ensemble's gain in selective classification is left at a fraction of its cost.

    make run CONFIG=experiments/cascades/config.py                          # default: 12,000 Fashion-MNIST images, CNNs
    make run CONFIG=experiments/cascades/config.py:efficientnet_b2          # a row of the paper, for accelerators
    make run CONFIG=experiments/cascades/config.py:efficientnet_b2_smoke    # two steps on a made-up small set: tries every stage, no finding
    make run CONFIG=experiments/cascades/config.py:efficientnet_b2_pretrained    # published weights, for `python -m sc_jax.cascade` with others

Variants:
  default  ten CNNs (16-32 at 3·10⁻³, by validation error in the study of label smoothing) on the embedded images: five cascades of two, no network in two. Digits
           are in the test split as OOD, and the test images come again under noise, blur and less contrast at five severities: what a frozen window costs there,
           and a moved one, and what becomes of the risk.
  smoke    four of them for one epoch, 50 resamples: every stage in seconds, no finding.
  efficientnet_b0 … b4, mobilenetv2_100_160, _100_192, _100_224, _130_224, _140_224 (width in hundredths, resolution), each with
  `_smoke`: the paper's networks. Four seeds are its two disjoint cascades of two.
  efficientnet_b0_pretrained … b4, mobilenetv2_100_224_pretrained, _140_224_pretrained: timm's published weights, as weights/<backbone>.safetensors in the
  current folder (another place: `--config.model.weights=FILE`), at their own resolution. They have seen the images that the paper holds out, so that a drawn part
  of the official validation images calibrates and the rest is the test split. One network each: cascades of them, B0 → B2 say, are `python -m sc_jax.cascade`'s.

Rule, written down before the first run: (1) the ensemble of two gains in coverage at 5 % risk over the first network alone; if so, (2) the window cascade,
half-width 10 % of the validation split around the threshold, keeps at least 80 % of that gain: Δ_cascade − 0.8 Δ_ensemble > 0. Both by
the 95 % interval of a bootstrap over test images and cascades; the second is asked only after the first, so that nothing is corrected.

Data of the paper's rows: `python -m sc_jax.data.prepare imagenet --from DIR` first; 50,000 of the official training images are held out for validation (the
paper's own, if docs/data.md's `validation_ids.txt` names them), and the official validation images are the test split.
Cost on two CPU cores and result of the default: README.md. Of the paper's rows: not measured, not run to the end. Published (read off a figure, ±0.2), single
model's Cov@5 %: B0 54.3, B1 57.1, B2 59.0, B3 60.0, B4 62.1; MobileNetV2 43.9, 46.0, 48.5, 51.1, 51.3 in the order above. Bicubic crops, half precision and
MobileNetV2's ReLU6 (theirs is ReLU) are ours. B4 is trained with half the batch and half the rate, as in their config.
Source of recipe and figures: Xia & Bouganis, ICCV 2023 (arXiv 2303.08010), their configs.
"""

from ml_collections import ConfigDict

RESOLUTION = {"b0": 224, "b1": 240, "b2": 260, "b3": 300, "b4": 380}
NETWORKS = {f"efficientnet_{size}": (f"efficientnet_{size}", side) for size, side in RESOLUTION.items()} | {
    f"mobilenetv2_{width}_{side}": (f"mobilenetv2_{width}", side)
    for width, side in ((100, 160), (100, 192), (100, 224), (130, 224), (140, 224))
}
"""Variant → (backbone, resolution)."""

PUBLISHED = [name for name in NETWORKS if name.startswith("efficientnet")]
PUBLISHED += ["mobilenetv2_100_224", "mobilenetv2_140_224"]
"""Variants of whose backbones timm has weights."""


def get_config(variant: str = "default") -> ConfigDict:
    """The config of `variant`."""
    if variant in ("default", "smoke"):
        return _fashion_mnist(variant)
    if variant.removesuffix("_pretrained") in PUBLISHED and variant.endswith("_pretrained"):
        return _pretrained(variant)
    if variant.removesuffix("_smoke") not in NETWORKS:
        raise ValueError(
            f"there is no variant {variant!r}; there are default, smoke, {', '.join(NETWORKS)}, each of these with _smoke"
        )
    return _imagenet(variant)


def _fashion_mnist(variant: str) -> ConfigDict:
    """The embedded images: what two CPU cores can carry."""
    config = ConfigDict({"study": "cascades", "variant": variant, "primary": ()})
    config.data = ConfigDict({"name": "fashion_mnist", "outliers": ("sklearn_digits",)})
    config.model = ConfigDict({"name": "cnn", "hidden": (16, 32)})
    config.members = ConfigDict({"alphas": (0.0,), "seeds": tuple(range(10))})
    config.training = ConfigDict({"batch_size": 128, "epochs": 15, "learning_rate": 3e-3, "weight_decay": 1e-4})
    config.training.warmup_epochs, config.training.log_every = 1.0, 31
    config.training.checkpoint_every, config.training.checkpoints_kept = 465, 2
    config.prediction = ConfigDict({"splits": ("validation", "test"), "batch_size": 1000})
    config.prediction.corruptions = ("gaussian_noise", "defocus_blur", "contrast")
    config.evaluation = ConfigDict({"test_split": "test", "calibration_split": "validation"})
    config.evaluation.scores = ("msp", "negative_entropy")
    config.cascade = ConfigDict({"stages": 2, "score": "msp", "risk": 0.05, "half_width": 0.1})
    if variant == "smoke":
        config.members.seeds = (0, 1, 2, 3)
        config.training.epochs, config.training.warmup_epochs, config.training.checkpoint_every = 1, 0.5, 93
        config.evaluation.resamples, config.prediction.corruptions = 50, ("contrast",)
    return config


def _imagenet(network: str) -> ConfigDict:
    """A network of the paper."""
    small = network.endswith("_smoke")
    backbone, side = NETWORKS[network.removesuffix("_smoke")]
    config = ConfigDict({"study": "cascades", "variant": network, "primary": ()})
    config.data = ConfigDict({"name": "imagenet", "train_size": side, "test_size": side, "interpolation": "bicubic"})
    config.data.mean, config.data.std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    config.augmentation = ConfigDict({"resized_crop": (0.08, 1.0), "flip": True})
    config.model = ConfigDict({"name": backbone, "dtype": "bfloat16"})
    config.members = ConfigDict({"alphas": (0.0,), "seeds": (1, 2, 3, 4)})
    config.training = ConfigDict({"optimizer": "sgd", "momentum": 0.9, "learning_rate": 0.2, "schedule": "cosine"})
    half = 2 if backbone == "efficientnet_b4" else 1
    config.training.learning_rate /= half
    config.training.weight_decay, config.training.decay = 4e-5, "all"
    config.training.batch_size, config.training.epochs, config.training.warmup_epochs = 1024 // half, 250, 5.0
    config.training.log_every, config.training.checkpoints_kept = 100, 2
    config.training.checkpoint_every = 1202  # an epoch, of B4 half of one
    config.prediction = ConfigDict({"splits": ("validation", "test"), "batch_size": 512})
    config.evaluation = ConfigDict({"test_split": "test", "calibration_split": "validation"})
    config.evaluation.scores = ("msp", "negative_entropy", "max_logit", "energy")
    config.cascade = ConfigDict({"stages": 2, "score": "msp", "risk": 0.05, "half_width": 0.1})
    if small:
        config.data.small = True
        config.members.seeds, config.cascade = (1,), ConfigDict()  # of two networks compilation alone takes long
        config.training.steps, config.training.warmup_epochs, config.training.batch_size = 2, 0.0, 8
        config.training.log_every = config.training.checkpoint_every = 1
        config.prediction.batch_size = 8
        config.evaluation.resamples = 50
    return config


def _pretrained(variant: str) -> ConfigDict:
    """A network as its published weights are, on two parts of the official validation images."""
    backbone, _ = NETWORKS[variant.removesuffix("_pretrained")]
    config = ConfigDict({"study": "cascades", "variant": variant, "primary": ()})
    config.data = ConfigDict({"name": "imagenet", "preprocessing": "timm"})
    config.augmentation = ConfigDict(
        {"resized_crop": (0.08, 1.0)}
    )  # like what is asked for of training it does nothing
    config.model = ConfigDict({"name": backbone, "weights": f"weights/{backbone}.safetensors"})
    config.members = ConfigDict({"alphas": (0.0,), "seeds": (0,)})
    config.training = ConfigDict({"epochs": 0, "batch_size": 512, "checkpoint_every": 1, "checkpoints_kept": 1})
    config.training.learning_rate, config.training.weight_decay, config.training.warmup_epochs = 0.1, 0.0, 0.0
    config.training.log_every = 1
    config.prediction = ConfigDict({"splits": ("test_tune", "test_report"), "batch_size": 512})
    config.evaluation = ConfigDict({"test_split": "test_report", "calibration_split": "test_tune"})
    config.evaluation.scores = ("msp", "negative_entropy", "max_logit", "energy")
    return config
