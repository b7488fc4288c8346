"""The schema of a study's configuration, and the only way in: a config that does not fit it dies before any work.

A config file (`experiments/<study>/config.py`) defines `get_config(variant) -> ml_collections.ConfigDict`; `load` turns it
into the frozen dataclasses below, checking the name and type of every field.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import importlib.util
import math
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sc_jax.files import InputError


@dataclasses.dataclass(frozen=True)
class Data:
    """What is learned from: the name of a data set known to `sc_jax.data`."""

    name: str


@dataclasses.dataclass(frozen=True)
class Backbone:
    """The network: a name known to `sc_jax.models`, its widths, and the rate of dropout before the head."""

    name: str
    hidden: tuple[int, ...]
    dropout: float


@dataclasses.dataclass(frozen=True)
class MemberGrid:
    """Every α with every seed is a member; all of them are one program."""

    alphas: tuple[float, ...]
    seeds: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Training:
    """AdamW with linear warm-up and cosine decay; `log_every` and `checkpoint_every` count steps."""

    batch_size: int
    epochs: int
    learning_rate: float
    weight_decay: float
    warmup_epochs: float
    log_every: int
    checkpoint_every: int
    checkpoints_kept: int


@dataclasses.dataclass(frozen=True)
class Prediction:
    """Which named splits are predicted, and how many examples at a time on all devices together."""

    splits: tuple[str, ...]
    batch_size: int


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What is computed from predictions: scores fitted on `calibration_split`, everything reported on `test_split`."""

    test_split: str
    calibration_split: str
    scores: tuple[str, ...]
    p_grid: tuple[int, ...]
    ece_bins: int
    resamples: int
    level: float
    seed: int


@dataclasses.dataclass(frozen=True)
class Contrast:
    """One primary comparison, fixed beforehand: metric(treatment) − metric(control), averaged over seeds.

    `expect` is "greater", "less", or "not_worse_by_margin" (one-sided, against `margin`).
    """

    claim: str
    metric: str
    treatment_alpha: float
    treatment_score: str
    control_alpha: float
    control_score: str
    expect: str
    margin: float


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
    if not Path(path).is_file():
        raise InputError(f"{path}: no such config file; a study's config is experiments/<study>/config.py[:variant]")
    spec = importlib.util.spec_from_file_location("sc_jax_study_config", path)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        values = module.get_config(variant or "default").to_dict()
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
    for field, text in (overrides or {}).items():
        _override(values, field, text, path)
    return _checked_values(_build(Config, values, path, ""), path)


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
        values = values[name]
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
        missing = [name for name in hints if name not in value]
        if missing:
            raise InputError(f"{path}: field {prefix}{missing[0]} is missing")
        return kind(**{name: _build(hint, value[name], path, f"{prefix}{name}") for name, hint in hints.items()})
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


def _checked_values(config: Config, path: str) -> Config:
    t, e, m = config.training, config.evaluation, config.members

    def require(holds: bool, field: str, value: Any, needed: str) -> None:
        if not holds:
            raise InputError(f"{path}, field {field}: {value!r}; it must be {needed}")

    require(0 <= config.model.dropout < 1, "model.dropout", config.model.dropout, "in [0, 1)")
    require(all(h > 0 for h in config.model.hidden), "model.hidden", config.model.hidden, "positive widths")
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
    for name in ("batch_size", "epochs", "log_every", "checkpoint_every", "checkpoints_kept"):
        require(getattr(t, name) > 0, f"training.{name}", getattr(t, name), "positive")
    require(0 < t.learning_rate < math.inf, "training.learning_rate", t.learning_rate, "positive and finite")
    require(0 <= t.weight_decay < math.inf, "training.weight_decay", t.weight_decay, "≥ 0 and finite")
    require(0 <= t.warmup_epochs < t.epochs, "training.warmup_epochs", t.warmup_epochs, "≥ 0 and below training.epochs")
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
    require(len(config.primary) > 0, "primary", config.primary, "at least one contrast")
    for i, c in enumerate(config.primary):
        for side in ("treatment", "control"):
            alpha, score = getattr(c, f"{side}_alpha"), getattr(c, f"{side}_score")
            require(alpha in m.alphas, f"primary[{i}].{side}_alpha", alpha, f"one of members.alphas {m.alphas}")
            require(score in e.scores, f"primary[{i}].{side}_score", score, f"one of evaluation.scores {e.scores}")
        expectations = ("greater", "less", "not_worse_by_margin")
        require(c.expect in expectations, f"primary[{i}].expect", c.expect, f"one of {expectations}")
        require(0 <= c.margin < math.inf, f"primary[{i}].margin", c.margin, "≥ 0 and finite")
    return config
