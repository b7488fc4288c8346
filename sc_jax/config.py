"""The schema of a study's configuration, and the only way in: a config that does not fit it dies before any work.

A config file (`experiments/<study>/config.py`) defines `get_config(variant) -> ml_collections.ConfigDict`; `load` turns it
into the frozen dataclasses below, checking the name and type of every field.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import difflib
import importlib.util
import math
import os
import sys
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sc_jax.files import InputError


@dataclasses.dataclass(frozen=True)
class Data:
    """What is learned from, and how it comes to the model.

    `name` is known to `sc_jax.data`; `small` is the made-up small set of that name, in the same form on disk. `train_split`
    is trained on, or of data in memory `train_examples` of it, drawn by hash, where that is not 0. Examples of the classes `held_out` are
    in the test split alone, as OOD, and so are the images of the data sets `outliers` (`sc_jax.data.outliers`). Images become (image / 255 − mean) / std, by channel or one for all. What follows is for images that are
    decoded on the way: the side of the crop in training and at test, the share of the shorter side that the crop at test
    covers, how Pillow resamples (random-resized crops of images in memory follow it too), and how many
    threads read. `preprocessing` says whose published weights these images are
    for ("timm", "torchvision", "akamaster": mean, std, test size, crop and interpolation are then theirs), or that the fields
    here are meant ("given", as without it; where weights predict untrained it has to be said).
    """

    name: str
    small: bool = False
    train_split: str = "train"
    train_examples: int = 0
    held_out: tuple[int, ...] = ()
    outliers: tuple[str, ...] = ()
    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.5,)
    train_size: int = 224
    test_size: int = 224
    crop_pct: float = 0.875
    interpolation: str = "bilinear"
    threads: int = 16
    preprocessing: str = ""


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """What is drawn anew at every step of training; nothing by default.

    `crop_padding` pixels of zeros around, then a random crop of the old size; `flip` half of the images left to right;
    `resized_crop` (smallest, largest) share of the area, of Cityscapes scale of the sides; `rand_augment` (layers, magnitude);
    `mixup` and `cutmix` the parameter of their beta distribution (both: one of them at each step, by a fair coin).
    """

    crop_padding: int = 0
    flip: bool = False
    resized_crop: tuple[float, ...] = ()
    rand_augment: tuple[int, ...] = ()
    mixup: float = 0.0
    cutmix: float = 0.0


@dataclasses.dataclass(frozen=True)
class Backbone:
    """The network: a name known to `sc_jax.models`; its widths and its rate of dropout, by default its own; what it computes
    in ("float32", "bfloat16"; parameters stay float32); and a file of weights to start from (`sc_jax.models.pretrained`), of
    which is taken all, or the backbone and not the head."""

    name: str
    hidden: tuple[int, ...] = ()
    dropout: float | None = None
    dtype: str = "float32"
    weights: str = ""
    weights_part: str = "all"


@dataclasses.dataclass(frozen=True)
class MemberGrid:
    """Every α of label smoothing with every seed is a member, and so is every further objective; all of them are one program.

    `objectives` are "name=strength" of `sc_jax.training.objectives`, e.g. "max_suppression=0.2".
    """

    alphas: tuple[float, ...]
    seeds: tuple[int, ...]
    objectives: tuple[str, ...] = ()

    @property
    def tags(self) -> list[dict[str, Any]]:
        """What tells the members apart, {"alpha", "seed"} or {"objective", "seed"}: objectives outermost, α first."""
        treatments: list[dict[str, Any]] = [{"alpha": float(alpha)} for alpha in self.alphas]
        treatments += [{"objective": objective} for objective in self.objectives]
        return [{**treatment, "seed": int(seed)} for treatment in treatments for seed in self.seeds]


def member_name(tag: Mapping[str, Any]) -> str:
    """The name of a member, e.g. `alpha=0.2-seed=3`: of its folder of predictions, and of its lines in the log."""
    treatment = tag.get("objective") or f"alpha={tag['alpha']:g}"
    return f"{treatment}-seed={tag['seed']}"


@dataclasses.dataclass(frozen=True)
class Training:
    """The optimiser and its schedule; `sc_jax.training.optimizers` says what each field does.

    Rates go linearly from `warmup_factor`·`learning_rate` to `learning_rate` in `warmup_epochs`, then by `schedule`: "cosine" to
    0, "cyclic" that way in each of `cycles`, "step" by `decay_factor` at each of `milestones` (epochs), "poly" with `power`, or "constant". `weight_decay` is of
    "kernels" or of "all" parameters. `gradient_clip` (global norm), `ema` (decay of averaged parameters, which predict) and
    `sam` (ρ) are off at 0. With 0 `epochs` the network predicts as its `model.weights` are. With `steps` > 0 training ends
    after so many, whatever `epochs` says. `log_every`, `checkpoint_every` and `statistics_every` count steps. Statistics of the
    logits (`sc_jax.methods.logit_statistics`; none at 0) are of `statistics_examples` examples of the train split, as they are at test, and of
    as many of the calibration split, with the norm ‖v‖_p of p = `statistics_p`. `teacher` is the workdir of an earlier run, for objectives that learn from its predictions.
    Beside the newest `checkpoints_kept` the `checkpoints_best` of highest accuracy on the calibration split stay, the mean over members, for
    `prediction.checkpoint`; it is measured every `checkpoint_every` steps.
    """

    batch_size: int
    epochs: int
    learning_rate: float
    weight_decay: float
    warmup_epochs: float
    log_every: int
    checkpoint_every: int
    checkpoints_kept: int
    optimizer: str = "adamw"
    decay: str = "kernels"
    momentum: float = 0.9
    betas: tuple[float, ...] = (0.9, 0.999)
    schedule: str = "cosine"
    warmup_factor: float = 0.0
    milestones: tuple[float, ...] = ()
    decay_factor: float = 0.1
    power: float = 0.9
    cycles: int = 0
    gradient_clip: float = 0.0
    ema: float = 0.0
    sam: float = 0.0
    steps: int = 0
    statistics_every: int = 0
    statistics_examples: int = 1000
    statistics_p: float = 2.0
    teacher: str = ""
    checkpoints_best: int = 0


@dataclasses.dataclass(frozen=True)
class Ensemble:
    """Several predictions from each member of the run, so that its files hold logits [m, n, k]; none by default.

    `kind` and what it takes, with `members` = m of all but "swa": "mc_dropout", m masks of dropout at test; "snapshot", the
    parameters at the ends of the last m of `training.cycles`; "swa", the mean of the parameters at epoch `start` and `every` so
    many epochs from then on, one network, so that files stay [n, k]; "swag", m draws from a normal distribution around that
    mean, with `rank` deviations. Of "batch_ensemble", "packed" and "masksembles" the network itself has m members
    (`sc_jax.models.ensemble_layers`): packed in `alpha` times its widths, each in `groups`; masks overlap less the larger `scale`.
    """

    kind: str = ""
    members: int = 0
    start: float = 0.0
    every: float = 0.0
    rank: int = 0
    alpha: float = 0.0
    groups: int = 1
    scale: float = 0.0


ENSEMBLES = ("mc_dropout", "snapshot", "swa", "swag", "batch_ensemble", "packed", "masksembles")
"""The kinds of `Ensemble`."""

COLLECTED = ("snapshot", "swa", "swag")
"""Those of them whose parameters are collected in training."""

IN_NETWORK = ("batch_ensemble", "packed", "masksembles")
"""Those of them whose members are in one network."""


@dataclasses.dataclass(frozen=True)
class Prediction:
    """Which named splits are predicted, how many examples at a time on all devices together, and, of segmentation, how many
    labelled pixels of each image are kept with their logits. With `features` the files also hold the input of the last layer,
    d numbers for each example, and that layer where it is linear, for the scores that need them. `checkpoint` is that which predicts:
    "last", or, chosen on the calibration split, "best". Of the images of the test split copies under
    each of the `corruptions` (families of `sc_jax.data.corruptions`) at five severities are predicted too, labels kept, OOD examples left out:
    `<test split>_<family>_<severity>.npz`."""

    splits: tuple[str, ...]
    batch_size: int
    pixels: int = 1000
    features: bool = False
    checkpoint: str = "last"
    corruptions: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What is computed from predictions: scores fitted on `calibration_split`, everything reported on `test_split`.

    With `repair`, the analyses of `sc_jax.methods.repair` too: why and how far logit normalisation repairs label smoothing.
    """

    test_split: str
    calibration_split: str
    scores: tuple[str, ...] = ("msp", "max_logit_pnorm", "max_logit_pnorm_or_msp")
    p_grid: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10)
    ece_bins: int = 15
    resamples: int = 1000
    level: float = 0.95
    seed: int = 0
    repair: bool = False


@dataclasses.dataclass(frozen=True)
class Devices:
    """How the job lies on its devices (`sc_jax.training.parallel`); no part of what is trained, and may differ at a restart.

    Devices stand in `member_rows` rows, each with its part of the members; a batch is divided over the devices of a row. What a
    member has of parameters and optimiser state is whole on each of those ("replicated"), or divided over them too ("fsdp").
    `member_mapping` is how the members of a device run in one program, as in `models.map_members`: by default what was chosen for the
    backbone; "map" compiles once for all of them.
    """

    member_rows: int = 1
    sharding: str = "replicated"
    member_mapping: str = ""


@dataclasses.dataclass(frozen=True)
class Cascade:
    """Early-exit cascades of the members (`sc_jax.methods.cascade_study`); none with 0 `stages`.

    Consecutive seeds are the `stages` of a cascade, in the order in which they run; no member is in two. Windows lie around the
    threshold of `score` with selective risk at most `risk`, with `half_width` of the calibration split on either side.
    """

    stages: int = 0
    score: str = "msp"
    risk: float = 0.05
    half_width: float = 0.1


@dataclasses.dataclass(frozen=True)
class Contrast:
    """One primary comparison, fixed beforehand: metric(treatment) − metric(control), averaged over seeds.

    `expect` is "greater", "less", or "not_worse_by_margin" (one-sided, against `margin`). A side is an α, or, where it is named,
    one of `members.objectives`, whatever the α.
    """

    claim: str
    metric: str
    treatment_alpha: float
    treatment_score: str
    control_alpha: float
    control_score: str
    expect: str
    margin: float
    treatment_objective: str = ""
    control_objective: str = ""


@dataclasses.dataclass(frozen=True)
class Config:
    """A study from data to report."""

    study: str
    variant: str
    data: Data
    model: Backbone
    members: MemberGrid
    training: Training
    prediction: Prediction
    evaluation: Evaluation
    primary: tuple[Contrast, ...]
    augmentation: Augmentation = Augmentation()
    cascade: Cascade = Cascade()
    ensemble: Ensemble = Ensemble()
    devices: Devices = Devices()

    @property
    def corrupted(self) -> dict[str, tuple[str, int]]:
        """The corrupted copies of the test split that are predicted: name of the split → family, severity."""
        families = self.prediction.corruptions
        test = self.evaluation.test_split
        return {f"{test}_{family}_{level}": (family, level) for family in families for level in range(1, 6)}


def as_dict(config: Config) -> dict[str, Any]:
    """The config as JSON values (tuples become lists)."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value

    return plain(dataclasses.asdict(config))


def load(reference: str, overrides: Mapping[str, str] | None = None) -> Config:
    """Reads `path/to/config.py[:variant]` and applies overrides.

    Args:
      reference: the file, and after a colon what its `get_config` is called with (`default` without).
      overrides: dotted field → text, e.g. {"training.epochs": "3"}.

    Returns:
      A checked `Config`.

    Raises:
      InputError: names the file, the field, and the nearest field that exists.
    """
    path, _, variant = reference.partition(":")
    given = called(path, "get_config", variant or "default")
    if not hasattr(given, "to_dict"):
        raise InputError(f"{path}: get_config({variant or 'default'!r}) gives {type(given).__name__}, not a ConfigDict")
    values = given.to_dict()
    for field, text in (overrides or {}).items():
        _override(values, field, text, path)
    return _checked_values(_build(Config, values, path, ""), path)


def called(path: str, name: str, argument: str) -> Any:
    """What the function `name` of the Python file at `path` says of `argument`; the file may import those beside it.

    Raises:
      InputError: there is no such file, or it fails.
    """
    if not Path(path).is_file():
        raise InputError(f"{path}: no such config file; a study's config is experiments/<study>/config.py[:variant]")
    spec = importlib.util.spec_from_file_location("sc_jax_study_config", path)
    module = importlib.util.module_from_spec(spec)
    try:
        with _importing_from(Path(path).resolve().parent):
            spec.loader.exec_module(module)
        return getattr(module, name)(argument)
    except (
        ArithmeticError,
        AttributeError,
        ImportError,
        LookupError,
        NameError,
        SyntaxError,
        TypeError,
        ValueError,
    ) as error:
        text = error.args[0] if error.args and not isinstance(error, SyntaxError) else error
        raise InputError(f"{path}: {text}") from error


@contextlib.contextmanager
def _importing_from(folder: Path) -> Iterator[None]:
    """A config may import the Python files beside it; they are forgotten again, since every study has its own."""
    before = set(sys.modules)
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        for name in set(sys.modules) - before:
            if (getattr(sys.modules[name], "__file__", None) or "").startswith(f"{folder}{os.sep}"):
                del sys.modules[name]


def _override(values: dict[str, Any], field: str, text: str, path: str) -> None:
    *parents, last = field.split(".")
    kind: Any = Config
    prefix = ""
    for name in [*parents, last]:
        hints = typing.get_type_hints(kind) if dataclasses.is_dataclass(kind) else {}
        if name not in hints:
            raise InputError(_unknown(f"--config.{field}", name, hints, prefix))
        kind, prefix = hints[name], f"{prefix}{name}."
    for name in parents:
        values = values.setdefault(name, {})
    values[last] = text if kind is str else _literal(text, field, path)


def _literal(text: str, field: str, path: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        raise InputError(
            f"{path}, field {field}: cannot read {text!r} as a number or a tuple, e.g. 3, 0.1, (0,1)"
        ) from None


def _unknown(where: str, name: str, known: Mapping[str, Any], prefix: str) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean {prefix}{near[0]}?" if near else f"fields there: {', '.join(known) or 'none'}"
    return f"{where}: there is no field {prefix}{name}; {hint}"


def _build(kind: Any, value: Any, path: str, field: str) -> Any:
    """Converts plain values to `kind`, naming the field at fault."""
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, Mapping):
            raise InputError(f"{path}, field {field}: {value!r} is not a group of fields")
        hints = typing.get_type_hints(kind)
        prefix = f"{field}." if field else ""
        for name in value:
            if name not in hints:
                raise InputError(_unknown(path, name, hints, prefix))
        optional = {f.name for f in dataclasses.fields(kind) if f.default is not dataclasses.MISSING}
        missing = [name for name in hints if name not in value and name not in optional]
        if missing:
            raise InputError(f"{path}: field {prefix}{missing[0]} is missing")
        return kind(**{name: _build(hints[name], value[name], path, f"{prefix}{name}") for name in value})
    if isinstance(kind, types.UnionType):  # x | None
        return None if value is None else _build(typing.get_args(kind)[0], value, path, field)
    if isinstance(kind, types.GenericAlias):  # tuple[x, ...]
        if isinstance(value, (str, Mapping)) or not isinstance(value, Sequence):
            raise InputError(f"{path}, field {field}: {value!r} ({type(value).__name__}) is not a tuple; write (…,)")
        item = typing.get_args(kind)[0]
        return tuple(_build(item, one, path, f"{field}[{i}]") for i, one in enumerate(value))
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise InputError(f"{path}, field {field}: {value!r} is {type(value).__name__}, {kind.__name__} is needed")
    return value


def refuse_idle(path: str, group: str, values: Any, field: str, where: str) -> None:
    """Refuses a field that would do nothing and yet is not what it is by default.

    Args:
      path: of the config, for the message; group: the name of `values`, a group of fields; field: one of them.
      where: when it does something.

    Raises:
      InputError: the field differs from its default.
    """
    default = next(f.default for f in dataclasses.fields(values) if f.name == field)
    if getattr(values, field) != default:
        raise InputError(
            f"{path}, field {group}.{field}: {getattr(values, field)!r} does nothing; it acts where {where}: leave it out"
        )


def _checked_values(config: Config, path: str) -> Config:
    t, e, m = config.training, config.evaluation, config.members

    def require(holds: bool, field: str, value: Any, needed: str) -> None:
        if not holds:
            raise InputError(f"{path}, field {field}: {value!r}; it must be {needed}")

    d, a, b = config.data, config.augmentation, config.model
    require(b.dropout is None or 0 <= b.dropout < 1, "model.dropout", b.dropout, "in [0, 1)")
    require(b.dtype in ("float32", "bfloat16"), "model.dtype", b.dtype, "float32 or bfloat16")
    require(all(h > 0 for h in b.hidden), "model.hidden", b.hidden, "positive widths")
    require(
        len(m.alphas) > 0 and all(-math.inf < a < 1 for a in m.alphas),
        "members.alphas",
        m.alphas,
        "at least one number below 1",
    )
    names = {f"{a:g}" for a in m.alphas}  # of folders
    require(len(names) == len(m.alphas), "members.alphas", m.alphas, "without repetition in six digits")
    require(
        len(m.seeds) > 0 and all(0 <= s < 2**32 for s in m.seeds), "members.seeds", m.seeds, "at least one, in 0..2³²−1"
    )
    require(len(set(m.seeds)) == len(m.seeds), "members.seeds", m.seeds, "without repetition")
    o = m.objectives
    require(len(set(o)) == len(o), "members.objectives", o, "without repetition")
    if o:
        for name in ("mixup", "cutmix"):
            require(
                getattr(a, name) == 0,
                f"augmentation.{name}",
                getattr(a, name),
                f"0 beside members.objectives; name {name}=… there",
            )
        require(t.statistics_every == 0, "training.statistics_every", t.statistics_every, "0 beside members.objectives")
        require(t.epochs > 0, "training.epochs", t.epochs, "positive beside members.objectives")
    else:
        refuse_idle(path, "training", t, "teacher", "members.objectives learn from it")
    require(d.name != "", "data.name", d.name, "a data set")
    for name in ("mean", "std"):
        require(
            len(getattr(d, name)) in (1, 3),
            f"data.{name}",
            getattr(d, name),
            "one number, or one for each of 3 channels",
        )
    require(d.train_examples >= 0, "data.train_examples", d.train_examples, "≥ 0")
    require(all(x > 0 for x in d.std), "data.std", d.std, "positive")
    for name in ("train_size", "test_size", "threads"):
        require(getattr(d, name) > 0, f"data.{name}", getattr(d, name), "positive")
    require(b.weights_part in ("all", "backbone"), "model.weights_part", b.weights_part, "all or backbone")
    require(0 < d.crop_pct <= 1, "data.crop_pct", d.crop_pct, "in (0, 1]")
    require(d.interpolation in ("bilinear", "bicubic"), "data.interpolation", d.interpolation, "bilinear or bicubic")
    require(a.crop_padding >= 0, "augmentation.crop_padding", a.crop_padding, "≥ 0")
    area = a.resized_crop
    require(
        area == () or (len(area) == 2 and 0 < area[0] <= area[1]),
        "augmentation.resized_crop",
        area,
        "(), or (smallest, largest)",
    )
    layers = a.rand_augment
    require(
        layers == () or (len(layers) == 2 and layers[0] > 0 and 0 <= layers[1] <= 30),
        "augmentation.rand_augment",
        layers,
        "(), or (layers, magnitude in 0..30)",
    )
    for name in ("mixup", "cutmix"):
        require(0 <= getattr(a, name) < math.inf, f"augmentation.{name}", getattr(a, name), "≥ 0 and finite")
    for name in ("batch_size", "log_every", "checkpoint_every", "checkpoints_kept", "statistics_examples"):
        require(getattr(t, name) > 0, f"training.{name}", getattr(t, name), "positive")
    require(0 < t.learning_rate < math.inf, "training.learning_rate", t.learning_rate, "positive and finite")
    require(1 <= t.statistics_p < math.inf, "training.statistics_p", t.statistics_p, "≥ 1 and finite")
    for name in ("weight_decay", "gradient_clip", "sam", "steps", "statistics_every", "checkpoints_best"):
        require(0 <= getattr(t, name) < math.inf, f"training.{name}", getattr(t, name), "≥ 0 and finite")
    require(
        t.epochs > 0 or (t.epochs == 0 and b.weights != ""),
        "training.epochs",
        t.epochs,
        "positive, or 0 with model.weights",
    )
    sources = ("timm", "torchvision", "akamaster", "given")
    known = d.preprocessing in sources or (d.preprocessing == "" and t.epochs > 0)
    require(known, "data.preprocessing", d.preprocessing, f"one of {sources}")
    if t.epochs == 0:
        require(t.steps == 0, "training.steps", t.steps, "0 where training.epochs is 0")
        require(b.weights_part == "all", "model.weights_part", b.weights_part, "all where training.epochs is 0")
        for name in ("alphas", "seeds"):
            require(len(getattr(m, name)) == 1, f"members.{name}", getattr(m, name), "one where training.epochs is 0")
    below = 0 <= t.warmup_epochs < t.epochs or t.epochs == 0
    require(below, "training.warmup_epochs", t.warmup_epochs, "≥ 0 and below training.epochs")
    optimizers, schedules = (
        ("adamw", "adam", "sgd", "nesterov"),
        (
            "cosine",
            "step",
            "poly",
            "constant",
            "cyclic",
        ),
    )
    require(t.optimizer in optimizers, "training.optimizer", t.optimizer, f"one of {optimizers}")
    require(t.schedule in schedules, "training.schedule", t.schedule, f"one of {schedules}")
    require(t.decay in ("kernels", "all"), "training.decay", t.decay, "kernels or all")
    for name in ("momentum", "ema"):
        require(0 <= getattr(t, name) < 1, f"training.{name}", getattr(t, name), "in [0, 1)")
    require(len(t.betas) == 2 and all(0 <= x < 1 for x in t.betas), "training.betas", t.betas, "two numbers in [0, 1)")
    require(0 <= t.warmup_factor <= 1, "training.warmup_factor", t.warmup_factor, "in [0, 1]")
    ascending = list(t.milestones) == sorted(set(t.milestones)) and all(x > 0 for x in t.milestones)
    require(ascending, "training.milestones", t.milestones, "positive and ascending")
    within = t.epochs == 0 or all(t.warmup_epochs < x < t.epochs for x in t.milestones)
    require(within, "training.milestones", t.milestones, "after training.warmup_epochs and below training.epochs")
    require(
        (t.schedule == "step") == (t.milestones != ()),
        "training.milestones",
        t.milestones,
        "given for the schedule step alone",
    )
    require(
        (t.schedule == "cyclic") == (t.cycles > 0),
        "training.cycles",
        t.cycles,
        "positive for the schedule cyclic alone",
    )
    for name in ("decay_factor", "power"):
        require(0 < getattr(t, name) < math.inf, f"training.{name}", getattr(t, name), "positive and finite")
    for field, acts, where in (
        ("momentum", t.optimizer in ("sgd", "nesterov"), "training.optimizer is sgd or nesterov"),
        ("betas", t.optimizer in ("adamw", "adam"), "training.optimizer is adamw or adam"),
        ("decay", t.weight_decay > 0, "training.weight_decay is positive"),
        ("warmup_factor", t.warmup_epochs > 0, "training.warmup_epochs is positive"),
        ("decay_factor", t.schedule == "step", "training.schedule is step"),
        ("power", t.schedule == "poly", "training.schedule is poly"),
        ("statistics_examples", t.statistics_every > 0, "training.statistics_every is positive"),
        ("statistics_p", t.statistics_every > 0, "training.statistics_every is positive"),
    ):
        if not acts:
            refuse_idle(path, "training", t, field, where)
    if not b.weights:
        refuse_idle(path, "model", b, "weights_part", "model.weights names a file")
    _check_ensemble(config, path, require)
    require(config.devices.member_rows > 0, "devices.member_rows", config.devices.member_rows, "positive")
    shardings = ("replicated", "fsdp")
    require(config.devices.sharding in shardings, "devices.sharding", config.devices.sharding, f"one of {shardings}")
    mappings = ("", "vmap", "unroll", "map")
    mapping = config.devices.member_mapping
    require(mapping in mappings, "devices.member_mapping", mapping, f"one of {mappings}")
    checkpoint, judged = config.prediction.checkpoint, t.checkpoints_best > 0
    require(checkpoint in ("last", "best"), "prediction.checkpoint", checkpoint, "last or best")
    require(judged or checkpoint == "last", "training.checkpoints_best", 0, "positive where the best one predicts")
    require(
        config.ensemble.kind == "" or not judged,
        "training.checkpoints_best",
        t.checkpoints_best,
        "0 beside ensemble.kind",
    )
    require(config.prediction.pixels > 0, "prediction.pixels", config.prediction.pixels, "positive")
    families = config.prediction.corruptions
    require(len(set(families)) == len(families), "prediction.corruptions", families, "without repetition")
    require(config.prediction.batch_size > 0, "prediction.batch_size", config.prediction.batch_size, "positive")
    for name in ("test_split", "calibration_split"):
        require(
            getattr(e, name) in config.prediction.splits, f"evaluation.{name}", getattr(e, name), "in prediction.splits"
        )
    require(
        e.test_split != e.calibration_split,
        "evaluation.calibration_split",
        e.calibration_split,
        "another than test_split",
    )
    require(len(e.p_grid) > 0 and all(p >= 1 for p in e.p_grid), "evaluation.p_grid", e.p_grid, "integers ≥ 1")
    require(e.ece_bins > 0, "evaluation.ece_bins", e.ece_bins, "positive")
    require(e.resamples >= 20, "evaluation.resamples", e.resamples, "at least 20")
    require(0 < e.level < 1, "evaluation.level", e.level, "in (0, 1)")
    require(e.seed >= 0, "evaluation.seed", e.seed, "≥ 0")
    c = config.cascade
    if c.stages == 0:
        for name in ("score", "risk", "half_width"):
            refuse_idle(path, "cascade", c, name, "cascade.stages is positive")
    else:
        require(2 <= c.stages <= len(m.seeds), "cascade.stages", c.stages, "at least 2, and no more than members.seeds")
        require(len(m.alphas) == 1 and not o, "cascade.stages", c.stages, "0 beside several alphas or objectives")
        require(0 < c.risk < 1, "cascade.risk", c.risk, "in (0, 1)")
        require(0 <= c.half_width <= 1, "cascade.half_width", c.half_width, "in [0, 1]")
    for i, c in enumerate(config.primary):
        for side in ("treatment", "control"):
            alpha, score, objective = (getattr(c, f"{side}_{what}") for what in ("alpha", "score", "objective"))
            if objective:
                require(objective in o, f"primary[{i}].{side}_objective", objective, f"one of members.objectives {o}")
                require(alpha == 0, f"primary[{i}].{side}_alpha", alpha, "0 beside an objective")
            else:
                require(alpha in m.alphas, f"primary[{i}].{side}_alpha", alpha, f"one of members.alphas {m.alphas}")
            require(score in e.scores, f"primary[{i}].{side}_score", score, f"one of evaluation.scores {e.scores}")
        expectations = ("greater", "less", "not_worse_by_margin")
        require(c.expect in expectations, f"primary[{i}].expect", c.expect, f"one of {expectations}")
        require(0 <= c.margin < math.inf, f"primary[{i}].margin", c.margin, "≥ 0 and finite")
    return config


def _check_ensemble(config: Config, path: str, require: Callable[[bool, str, Any, str], None]) -> None:
    """What holds of `config.ensemble` alone, and beside the other groups."""
    e, t = config.ensemble, config.training
    require(e.kind in ("", *ENSEMBLES), "ensemble.kind", e.kind, f"one of {ENSEMBLES}, or left out")
    if config.prediction.features:
        require(e.kind in ("", "swa"), "ensemble.kind", e.kind, "one network's beside prediction.features")
    averaged = ("swa", "swag")
    for field, kinds in (
        ("members", tuple(kind for kind in ENSEMBLES if kind != "swa")),
        ("start", averaged),
        ("every", averaged),
        ("rank", ("swag",)),
        ("alpha", ("packed",)),
        ("groups", ("packed",)),
        ("scale", ("masksembles",)),
    ):
        if e.kind not in kinds:
            refuse_idle(path, "ensemble", e, field, f"ensemble.kind is {' or '.join(kinds)}")
    if e.kind == "":
        return
    if e.kind != "swa":
        require(e.members >= 2, "ensemble.members", e.members, "2 or more")
        require(
            not config.evaluation.repair,
            "evaluation.repair",
            True,
            f"off beside ensemble.kind = {e.kind}, whose mean has no logits",
        )
    if e.kind in COLLECTED:
        require(t.epochs > 0, "training.epochs", t.epochs, f"positive where ensemble.kind is {e.kind}")
        require(t.ema == 0, "training.ema", t.ema, f"0 where ensemble.kind is {e.kind}: collected parameters predict")
    if e.kind == "mc_dropout":
        require(
            config.model.dropout != 0,
            "model.dropout",
            config.model.dropout,
            "positive where ensemble.kind is mc_dropout",
        )
    if e.kind == "snapshot":
        require(t.schedule == "cyclic", "training.schedule", t.schedule, "cyclic where ensemble.kind is snapshot")
        require(t.cycles >= e.members, "training.cycles", t.cycles, f"at least ensemble.members = {e.members}")
    if e.kind in averaged:
        require(0 <= e.start < t.epochs, "ensemble.start", e.start, "≥ 0 and below training.epochs")
        require(0 < e.every < math.inf, "ensemble.every", e.every, "positive and finite")
    if e.kind == "swag":
        require(e.rank >= 2, "ensemble.rank", e.rank, "2 or more")
    if e.kind in IN_NETWORK:
        where = f"where ensemble.kind is {e.kind}"
        require(config.model.weights == "", "model.weights", config.model.weights, f"left out {where}")
        require(t.statistics_every == 0, "training.statistics_every", t.statistics_every, f"0 {where}")
    if e.kind == "packed":
        require(0 < e.alpha < math.inf, "ensemble.alpha", e.alpha, "positive and finite")
        require(e.groups > 0, "ensemble.groups", e.groups, "positive")
    if e.kind == "masksembles":
        require(1 <= e.scale < math.inf, "ensemble.scale", e.scale, "≥ 1 and finite")
