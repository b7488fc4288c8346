"""Every variant loads; whatever does not fit the schema dies at once, naming the file, the field and the nearest one."""

import ast
import dataclasses
import json
import re
import tokenize
import types
import typing
from pathlib import Path

import pytest

from sc_jax import config as config_lib
from sc_jax.config import Config
from sc_jax.files import InputError

STUDY = Path(__file__).parents[1] / "experiments" / "label_smoothing" / "config.py"
VARIANTS = ("default", "few", "cnn", "full", "full_cnn", "smoke")


def schema(kind=Config, prefix="", required=False):
    """Dotted name → type of every field that is not itself a group; or of those without a default."""
    fields = {}
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        name, hint = field.name, hints[field.name]
        if required and field.default is not dataclasses.MISSING:
            continue
        if dataclasses.is_dataclass(hint):
            fields |= schema(hint, f"{prefix}{name}.", required)
        else:
            fields[f"{prefix}{name}"] = hint
    return fields


def value_of(config, field):
    for name in field.split("."):
        config = getattr(config, name)
    return config


def refused(reference, overrides=None):
    """The message of the refusal: one line."""
    with pytest.raises(InputError) as caught:
        config_lib.load(str(reference), overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def edited(tmp_path):
    """Copies the study's config, and what it shares with others, with a text replaced in one of them; returns its path."""

    def edit(old, new):
        texts = {name: (STUDY.parent / name).read_text(encoding="utf-8") for name in ("config.py", "recipe.py")}
        assert any(old in text for text in texts.values())
        changed = next(name for name, text in texts.items() if old in text)
        for name, text in texts.items():
            (tmp_path / name).write_text(text.replace(old, new, 1) if name == changed else text, encoding="utf-8")
        return tmp_path / "config.py"

    return edit


# --- the study's own config -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_fits_the_schema_and_survives_json(variant):
    config = config_lib.load(f"{STUDY}:{variant}")
    assert (config.study, config.variant) == ("label_smoothing", variant)
    for field, kind in schema().items():
        kinds = typing.get_args(kind) if isinstance(kind, types.UnionType) else (typing.get_origin(kind) or kind,)
        assert isinstance(value_of(config, field), kinds)
    assert json.loads(json.dumps(config_lib.as_dict(config))) == config_lib.as_dict(config)


def test_default_is_the_variant_without_a_name():
    assert config_lib.load(str(STUDY)) == config_lib.load(f"{STUDY}:default")


def test_default_trains_the_members_of_the_issue():
    members = config_lib.load(str(STUDY)).members
    assert members.alphas == (0.0, 0.1, 0.2, 0.4, 0.6)
    assert len(members.seeds) == 5


def test_every_required_field_is_set_in_the_file_with_a_comment():
    """`config.group.field = …  # what it is`, or a comment right above; and nothing is set that is not in the schema."""
    source = STUDY.read_text(encoding="utf-8")
    with open(STUDY, "rb") as file:
        commented = {t.start[0] for t in tokenize.tokenize(file.readline) if t.type == tokenize.COMMENT}
    set_at = {}
    function = next(node for node in ast.parse(source).body if getattr(node, "name", "") == "get_config")
    for node in function.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Attribute):
            set_at[ast.unparse(node.targets[0]).removeprefix("config.")] = node
    groups = {"data", "model", "members", "training", "prediction", "evaluation"}
    assert set(schema(required=True)) <= set(set_at) - groups <= set(schema())
    for field, node in set_at.items():
        lines = {node.lineno - 1, *range(node.lineno, node.end_lineno + 1)}
        if field not in groups | SELF_EXPLAINING:
            assert lines & commented, f"config.{field} has no comment"


SELF_EXPLAINING = {"variant", "evaluation.scores"}


# --- overrides --------------------------------------------------------------------------------------------------------


def test_overrides_reach_every_kind_of_field():
    config = config_lib.load(
        f"{STUDY}:smoke",
        {
            "training.epochs": "3",
            "training.learning_rate": "1",
            "members.seeds": "(7,)",
            "model.name": "cnn",
            "evaluation.scores": "('msp', 'max_logit_pnorm')",
            "evaluation.p_grid": "[2, 5]",
        },
    )
    assert config.training.epochs == 3
    assert config.training.learning_rate == 1.0
    assert isinstance(config.training.learning_rate, float)
    assert config.members.seeds == (7,)
    assert config.model.name == "cnn"
    assert config.evaluation.scores == ("msp", "max_logit_pnorm")
    assert config.evaluation.p_grid == (2, 5)


def test_an_override_changes_nothing_else():
    plain = config_lib.as_dict(config_lib.load(str(STUDY)))
    changed = config_lib.as_dict(config_lib.load(str(STUDY), {"evaluation.seed": "9"}))
    plain["evaluation"]["seed"] = 9
    assert changed == plain


@pytest.mark.parametrize(
    ("field", "nearest"),
    [
        ("training.epoch", "did you mean training.epochs?"),
        ("training.lerning_rate", "did you mean training.learning_rate?"),
        ("trainig.epochs", "did you mean training?"),
        ("memebers.alphas", "did you mean members?"),
        ("evaluation.ece_bin", "did you mean evaluation.ece_bins?"),
        ("data.zzz", "fields there: name"),
        ("study.name", "fields there: none"),
        ("model.hidden.0", "fields there: none"),
    ],
)
def test_a_misspelt_override_names_itself_and_the_nearest_field(field, nearest):
    message = refused(STUDY, {field: "3"})
    assert f"--config.{field}: there is no field" in message
    assert nearest in message


@pytest.mark.parametrize(
    ("field", "text", "problem"),
    [
        ("training.epochs", "3.0", "3.0 is float, int is needed"),
        ("training.epochs", "True", "True is bool, int is needed"),
        ("training.epochs", "'3'", "'3' is str, int is needed"),
        ("training.epochs", "None", "None is NoneType, int is needed"),
        ("training.epochs", "many", "cannot read 'many' as a number or a tuple"),
        ("training.learning_rate", "False", "False is bool, float is needed"),
        ("training.learning_rate", "(1,)", "is tuple, float is needed"),
        ("members.seeds", "3", "3 (int) is not a tuple"),
        ("members.seeds", "(0, 1.5)", "field members.seeds[1]: 1.5 is float, int is needed"),
        ("members.alphas", "'0.1'", "is not a tuple"),
        ("model.hidden", "{1: 2}", "is not a tuple"),
        ("evaluation.scores", "('msp', 3)", "field evaluation.scores[1]: 3 is int, str is needed"),
        ("data", "3", "field data: 3 is not a group of fields"),
    ],
)
def test_a_wrong_type_names_field_value_and_what_is_needed(field, text, problem):
    message = refused(STUDY, {field: text})
    assert re.search(rf"config\.py.*field {re.escape(field)}", message)
    assert problem in message


@pytest.mark.parametrize(
    ("field", "text"),
    [
        ("model.dropout", "1.0"),
        ("model.dropout", "-0.1"),
        ("model.hidden", "(256, 0)"),
        ("members.alphas", "()"),
        ("members.alphas", "(0.0, 0.2, 1.0)"),
        ("members.alphas", "(0.0, 0.2, -1e999)"),
        ("members.alphas", "(0.0, 0.2, 0.2)"),
        ("members.alphas", "(0.0, 0.2, 0.20000001)"),
        ("members.seeds", "()"),
        ("members.seeds", "(0, 0)"),
        ("members.seeds", "(-1,)"),
        ("members.seeds", "(4294967296,)"),
        ("training.batch_size", "0"),
        ("training.epochs", "0"),
        ("training.log_every", "-1"),
        ("training.checkpoint_every", "0"),
        ("training.checkpoints_kept", "0"),
        ("training.learning_rate", "0"),
        ("training.learning_rate", "1e999"),
        ("training.weight_decay", "-1e-4"),
        ("training.weight_decay", "1e999"),
        ("training.warmup_epochs", "-1"),
        ("training.warmup_epochs", "15"),
        ("prediction.batch_size", "0"),
        ("prediction.splits", "('train', 'test')"),
        ("evaluation.test_split", "tset"),
        ("evaluation.calibration_split", "test"),
        ("evaluation.scores", "()"),
        ("evaluation.p_grid", "()"),
        ("evaluation.p_grid", "(0, 1)"),
        ("evaluation.ece_bins", "0"),
        ("evaluation.resamples", "19"),
        ("evaluation.level", "1.0"),
        ("evaluation.level", "0"),
        ("evaluation.seed", "-1"),
        ("data.mean", "(0.5, 0.5)"),
        ("data.std", "(0.0,)"),
        ("data.interpolation", "nearest"),
        ("data.crop_pct", "0.0"),
        ("data.threads", "0"),
        ("model.dtype", "float16"),
        ("augmentation.crop_padding", "-1"),
        ("augmentation.resized_crop", "(0.5, 0.1)"),
        ("augmentation.rand_augment", "(2,)"),
        ("augmentation.rand_augment", "(0, 9)"),
        ("augmentation.rand_augment", "(2, 31)"),
        ("augmentation.mixup", "-0.1"),
        ("training.optimizer", "adagrad"),
        ("training.schedule", "linear"),
        ("training.schedule", "step"),
        ("training.decay", "some"),
        ("training.momentum", "1.0"),
        ("data.preprocessing", "torch"),
        ("model.weights_part", "head"),
        ("training.betas", "(0.9,)"),
        ("training.milestones", "(2.0, 1.0)"),
        ("training.ema", "1.0"),
        ("training.cycles", "3"),
        ("ensemble.kind", "bagging"),
        ("training.sam", "-1"),
        ("training.statistics_p", "0.5"),
        ("prediction.pixels", "0"),
        ("data.train_examples", "-1"),
    ],
)
def test_a_value_out_of_range_names_the_field(field, text):
    message = refused(STUDY, {field: text})
    blamed = {
        "prediction.splits": "evaluation.calibration_split",
        "evaluation.scores": "primary[0].treatment_score",
        "training.schedule": "training.milestones",
    }
    assert re.search(rf"field ({re.escape(field)}|{re.escape(blamed.get(field, field))})\b.*: ", message)
    assert "it must be" in message


@pytest.mark.parametrize(
    ("field", "text", "where"),
    [
        ("training.momentum", "0.8", "training.optimizer is sgd or nesterov"),
        ("training.betas", "(0.8, 0.9)", "training.optimizer is adamw or adam"),
        ("training.decay", "all", "training.weight_decay is positive"),
        ("training.warmup_factor", "0.1", "training.warmup_epochs is positive"),
        ("training.decay_factor", "0.5", "training.schedule is step"),
        ("training.power", "0.8", "training.schedule is poly"),
        ("training.statistics_p", "3.0", "training.statistics_every is positive"),
        ("model.weights_part", "backbone", "model.weights names a file"),
        ("training.teacher", "runs/earlier", "members.objectives learn from it"),
    ],
)
def test_a_field_that_does_nothing_is_refused_and_named(field, text, where):
    idle = {
        "training.betas": {"training.optimizer": "sgd"},
        "training.decay": {"training.weight_decay": "0.0"},
        "training.warmup_factor": {"training.warmup_epochs": "0.0"},
        "training.statistics_p": {"training.statistics_every": "0"},
    }.get(field, {})
    config_lib.load(str(STUDY), idle)
    message = refused(STUDY, {field: text, **idle})
    assert f"field {field}: " in message
    assert f"does nothing; it acts where {where}" in message


@pytest.mark.parametrize(
    ("field", "text"),
    [
        ("members.objectives", "('focal=2', 'focal=2')"),
        ("augmentation.mixup", "0.2"),
        ("augmentation.cutmix", "1.0"),
        ("training.statistics_every", "10"),
    ],
)
def test_what_objectives_do_not_go_with_is_refused(field, text):
    beside = {"members.objectives": "('focal=2',)", "training.statistics_every": "0"}
    assert config_lib.load(str(STUDY), beside).members.objectives == ("focal=2",)
    assert f"field {field}: " in refused(STUDY, {**beside, field: text})


ENSEMBLES = {
    "mc_dropout": {"ensemble.members": "4", "model.dropout": "0.1"},
    "snapshot": {"ensemble.members": "3", "training.schedule": "cyclic", "training.cycles": "5"},
    "swa": {"ensemble.start": "8", "ensemble.every": "1"},
    "swag": {"ensemble.start": "8", "ensemble.every": "0.5", "ensemble.rank": "5", "ensemble.members": "4"},
    "batch_ensemble": {"ensemble.members": "4", "training.statistics_every": "0"},
    "packed": {
        "ensemble.members": "4",
        "ensemble.alpha": "2",
        "ensemble.groups": "2",
        "training.statistics_every": "0",
    },
    "masksembles": {"ensemble.members": "4", "ensemble.scale": "2", "training.statistics_every": "0"},
}


@pytest.mark.parametrize("kind", config_lib.ENSEMBLES)
def test_every_kind_of_ensemble_has_a_config_and_refuses_what_it_does_not_use(kind):
    fields = {"ensemble.kind": kind, **ENSEMBLES[kind]}
    assert config_lib.load(str(STUDY), fields).ensemble.kind == kind
    for field in dataclasses.fields(config_lib.Ensemble):
        name = f"ensemble.{field.name}"
        if name not in fields:
            message = refused(STUDY, {**fields, name: "3.5" if field.type == "float" else "3"})
            assert re.search(rf"field {re.escape(name)}: .* does nothing; it acts where ensemble\.kind is ", message)
        elif name not in ("ensemble.kind", "ensemble.start", "ensemble.groups"):  # the latter two may be left out
            without = {key: value for key, value in fields.items() if key != name}
            assert f"field {name}: " in refused(STUDY, without)


@pytest.mark.parametrize(
    ("kind", "field", "text"),
    [
        ("mc_dropout", "model.dropout", "0.0"),
        ("mc_dropout", "ensemble.members", "1"),
        ("mc_dropout", "evaluation.repair", "True"),
        ("snapshot", "training.schedule", "cosine"),
        ("snapshot", "ensemble.members", "6"),
        ("snapshot", "training.ema", "0.9"),
        ("swa", "ensemble.start", "15"),
        ("swa", "ensemble.start", "-1"),
        ("swa", "ensemble.every", "0"),
        ("swa", "training.ema", "0.9"),
        ("packed", "ensemble.alpha", "0"),
        ("packed", "ensemble.groups", "0"),
        ("packed", "model.weights", "resnet.safetensors"),
        ("masksembles", "ensemble.scale", "0.5"),
        ("batch_ensemble", "training.statistics_every", "10"),
        ("batch_ensemble", "evaluation.repair", "True"),
        ("swag", "ensemble.rank", "1"),
        ("swag", "ensemble.members", "1"),
    ],
)
def test_what_an_ensemble_does_not_go_with_is_refused(kind, field, text):
    message = refused(STUDY, {"ensemble.kind": kind, **ENSEMBLES[kind], field: text})
    blamed = {"training.schedule": "training.cycles", "ensemble.members": "(ensemble.members|training.cycles)"}
    assert re.search(rf"field {blamed.get(field, re.escape(field))}: .*; it must be ", message)


def test_swa_alone_may_stand_beside_the_repair():
    fields = {"ensemble.kind": "swa", **ENSEMBLES["swa"], "evaluation.repair": "True"}
    assert config_lib.load(str(STUDY), fields).evaluation.repair


def test_members_are_every_alpha_and_objective_with_every_seed():
    grid = config_lib.MemberGrid((0.0, 0.25), (3, 1), ("focal=2",))
    assert [config_lib.member_name(tag) for tag in grid.tags] == [
        *(
            "alpha=0-seed=3",
            "alpha=0-seed=1",
            "alpha=0.25-seed=3",
            "alpha=0.25-seed=1",
            "focal=2-seed=3",
            "focal=2-seed=1",
        ),
    ]


def test_a_primary_contrast_of_an_objective_names_one_that_is_trained():
    study = STUDY.parent / "objectives.py"
    assert config_lib.load(str(study)).primary[0].treatment_objective == "error_smoothing=0.2"
    message = refused(study, {"members.objectives": "('focal=2',)"})
    assert (
        "field primary[0].treatment_objective: 'error_smoothing=0.2'; it must be one of members.objectives" in message
    )


def test_a_contrast_of_an_objective_has_no_alpha(tmp_path):
    for name in ("config.py", "recipe.py"):
        (tmp_path / name).write_text((STUDY.parent / name).read_text())
    text = (STUDY.parent / "objectives.py").read_text()
    (tmp_path / "objectives.py").write_text(text.replace('"treatment_alpha": 0.0', '"treatment_alpha": 0.2'))
    assert "field primary[0].treatment_alpha: 0.2; it must be 0 beside" in refused(tmp_path / "objectives.py")


@pytest.mark.parametrize("milestones", ["(15.0,)", "(2.0, 16.0)", "(1.0, 2.0)"])
def test_milestones_lie_between_the_warm_up_and_the_end(milestones):
    steps = {"training.schedule": "step", "training.milestones": "(1.5, 14.0)"}
    assert config_lib.load(str(STUDY), steps).training.milestones == (1.5, 14.0)
    message = refused(STUDY, {**steps, "training.milestones": milestones})
    assert "field training.milestones: " in message
    assert "after training.warmup_epochs and below training.epochs" in message


UNTRAINED = {
    "training.epochs": "0",
    "model.weights": "a.safetensors",
    "data.preprocessing": "given",
    "members.alphas": "(0.0,)",
    "members.seeds": "(0,)",
    "primary": "()",
}
"""What it takes for weights to predict as they are."""


@pytest.mark.parametrize(
    ("field", "text"),
    [
        ("model.weights", ""),
        ("model.weights_part", "backbone"),
        ("data.preprocessing", ""),
        ("members.alphas", "(0.0, 0.2)"),
        ("members.seeds", "(0, 1)"),
        ("training.steps", "3"),
    ],
)
def test_weights_predict_as_they_are_once_and_with_their_own_preprocessing(field, text):
    assert config_lib.load(str(STUDY), UNTRAINED).training.epochs == 0
    message = refused(STUDY, {**UNTRAINED, field: text})
    assert f"field {'training.epochs' if field == 'model.weights' else field}: " in message


# --- config files -----------------------------------------------------------------------------------------------------


def test_an_edited_copy_is_as_good_as_the_original(edited):
    path = edited("config.training.epochs = 15", "config.training.epochs = 16")
    assert config_lib.load(str(path)).training.epochs == 16


@pytest.mark.parametrize(
    ("old", "new", "parts"),
    [
        ("config.training.epochs =", "config.training.epoch =", ["no field training.epoch;", "training.epochs?"]),
        ("config.training.epochs = 15", "config.trainig.epochs = 15", ["trainig"]),
        ("config.data = ConfigDict()", "config.data = ConfigDict()\n    config.notes = 'x'", ["no field notes"]),
        ('"claim": claim', '"clame": claim', ["no field primary[0].clame", "primary[0].claim?"]),
        ("config.training.epochs = 15", "config.training.epochs = '15'", ["field training.epochs", "int is needed"]),
        ("config.training.epochs = 15", "config.training.epochs = True", ["field training.epochs", "bool"]),
        ("config.training.epochs = 15", "pass", ["field training.epochs is missing"]),
        ("config.training.learning_rate = 1e-3", "config.training.learning_rate = float('nan')", ["learning_rate"]),
        ("config.model = ConfigDict()", "config.model = 3", ["config.py"]),
        ("contrasts(0.2, classes=10)", "contrasts(0.3, classes=10)",
         ["primary[0].treatment_alpha", "0.3", "members.alphas"]),
        ("smooth, plain = (alpha, \"msp\")", "smooth, plain = (alpha, \"mps\")",
         ["primary[0].treatment_score", "mps", "evaluation.scores"]),
        ("smooth, plain, \"greater\"", "smooth, plain, \"bigger\"",
         ["primary[0].expect", "bigger", "greater"]),
        ("margin=0.005", "margin=float('nan')", ["primary[4].margin"]),
        ("margin=0.005", "margin=-0.005", ["primary[4].margin"]),
        ("def get_config(", "def get_configuration(", ["get_config"]),
        ("    return config\n", "    return 3\n", ["config.py"]),
        ("config.data = ConfigDict()", "config.data = = ConfigDict()", ["invalid syntax", "line "]),
        ("config.data = ConfigDict()", "config.data = missing_name", ["missing_name"]),
        ("config.data = ConfigDict()", "import missing_module", ["missing_module"]),
        ("config.data = ConfigDict()", "1 / 0", ["division by zero"]),
    ],
)  # fmt: skip
def test_a_config_file_that_does_not_fit_is_refused(edited, old, new, parts):
    path = edited(old, new)
    message = refused(path)
    assert message.startswith(str(path))
    for part in parts:
        assert part in message


def test_an_unknown_variant_names_the_known_ones():
    message = refused(f"{STUDY}:smok")
    for variant in VARIANTS:
        assert variant in message
    assert "'smok'" in message


@pytest.mark.parametrize("where", ["no/such/config.py", "", "."])
def test_a_config_that_is_not_there_is_refused(where):
    assert "no such config file" in refused(where)
