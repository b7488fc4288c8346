"""Every recipe's smoke run, from a small set on disk to the report; all of them with `--recipes=all` (make smoke)."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from conftest import ROOT, run_door

from sc_jax import config as config_lib
from sc_jax import data
from sc_jax.data import small as small_sets
from sc_jax.files import InputError
from sc_jax.predictions import is_scored, load
from sc_jax.training import job

ROWS = [f"label_smoothing/{name}.py" for name in ("bank_marketing", "online_shoppers", "imdb", "cifar10", "cifar100")]
ROWS += [f"label_smoothing/{name}.py" for name in ("adult", "sst2", "trec", "cifar10_jpeg")]
ROWS += [f"label_smoothing/{name}.py" for name in ("imagenet_resnet50", "imagenet_vit_s16", "cityscapes")]
CASCADES = [f"efficientnet_b{size}" for size in range(5)]
CASCADES += [f"mobilenetv2_{name}" for name in ("100_160", "100_192", "100_224", "130_224", "140_224")]
SAMPLE = {"bank_marketing", "trec"}
"""Those that `make test` runs too, for their way through table and text; `make smoke` runs all."""


def recipes() -> list[tuple[str, str]]:
    """(smoke run, the recipe it stands for), of every row and of one network of each family of cascades."""
    rows = [(f"experiments/{row}:smoke", f"experiments/{row}") for row in ROWS]
    networks = [f"experiments/cascades/config.py:{name}" for name in ("efficientnet_b0", "mobilenetv2_100_160")]
    return rows + [(f"{name}_smoke", name) for name in networks]


def name_of(recipe: tuple[str, str]) -> str:
    return recipe[1].rpartition(":" if ".py:" in recipe[1] else "/")[2].removesuffix(".py")


def test_every_config_is_a_row() -> None:
    files = {str(path.relative_to(ROOT / "experiments")) for path in (ROOT / "experiments").glob("*/*.py")}
    own_studies = {
        f"label_smoothing/{name}.py" for name in ("recipe", "config", "objectives", "stored_resnets", "sweep")
    }
    assert files - own_studies == {
        *ROWS,
        "abstention/config.py",
        "cascades/config.py",
        "scod/config.py",
        "scod/clinc150.py",
        "scod/compare.py",
        "scod/shifts.py",
    }


@pytest.mark.parametrize("variant", CASCADES)
def test_every_network_of_the_cascades_has_a_config(variant: str) -> None:
    whole, small = (
        config_lib.load(f"{ROOT}/experiments/cascades/config.py:{v}") for v in (variant, f"{variant}_smoke")
    )
    assert (whole.data.train_size, whole.model) == (small.data.train_size, small.model)


@pytest.mark.parametrize("variant", [*CASCADES[:5], CASCADES[7], CASCADES[9]])
def test_published_weights_of_the_cascades_are_calibrated_on_images_that_they_have_not_seen(
    variant: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Without its file of weights it stops before any work, and names it."""
    config = config_lib.load(
        f"{ROOT}/experiments/cascades/config.py:{variant}_pretrained",
        {"data.small": "True", "prediction.batch_size": "8"},
    )
    assert config.evaluation.calibration_split == "test_tune"
    assert config.training.epochs == 0
    assert config.model.weights == f"weights/{config.model.name}.safetensors"
    if variant == "mobilenetv2_100_224":  # the smallest is built, too
        monkeypatch.setenv("SC_JAX_DATA", str(tmp_path))
        monkeypatch.chdir(tmp_path)
        with pytest.raises(InputError, match=config.model.weights):
            job.build(dataclasses.replace(config, training=dataclasses.replace(config.training, batch_size=8)))


@pytest.mark.parametrize("recipe", recipes(), ids=name_of)
def test_a_smoke_run_swaps_nothing(recipe: tuple[str, str]) -> None:
    """It differs in size alone: same network, same data set and loader, same augmentation, same optimiser."""
    small, whole = (config_lib.load(f"{ROOT}/{reference}") for reference in recipe)
    assert (small.model, small.augmentation) == (whole.model, whole.augmentation)
    crop = {"train_size": whole.data.train_size} if small.data.name == "cityscapes" else {}
    size = {"train_examples": whole.data.train_examples, "small": False}
    assert dataclasses.replace(small.data, **size, **crop) == whole.data
    size = {"batch_size", "steps", "log_every", "checkpoint_every", "warmup_epochs", "warmup_factor", "milestones"}
    of_small, of_whole = (
        {name: value for name, value in dataclasses.asdict(config.training).items() if name not in size}
        for config in (small, whole)
    )
    assert of_small == of_whole
    assert small.training.steps == 2


@pytest.mark.parametrize("recipe", recipes(), ids=name_of)
def test_smoke_runs_to_the_report(
    recipe: tuple[str, str], tmp_path: Path, pytestconfig: pytest.Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name_of(recipe) not in SAMPLE and pytestconfig.getoption("recipes") != "all":
        pytest.skip("make smoke runs it")
    monkeypatch.setenv("SC_JAX_DATA", str(tmp_path / "data"))
    workdir = tmp_path / "run"
    result = run_door("run", f"--config={recipe[0]}", f"--workdir={workdir}")
    assert result.returncode == 0, result.stderr
    config = config_lib.load(f"{ROOT}/{recipe[0]}")
    lines = [json.loads(line) for line in (workdir / "train.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines[1:]] == [1, 2]
    dataset = data.load(config.data.name, small_sets.folder_of(config.data.name))
    for split in config.prediction.splits:
        files = [path for path in workdir.glob(f"predictions/*/{split}.npz") if not is_scored(path)]
        assert len(files) == len(config.members.alphas) * len(config.members.seeds)
        for path in files:
            predicted = load(path)
            assert predicted.num_classes == dataset.num_classes
            if getattr(dataset, "ignore_label", None) is None:
                assert sorted(predicted.example_id) == sorted(dataset.splits[split].example_id)
    metrics = json.loads((workdir / "metrics.json").read_text())
    assert {row["score"] for row in metrics["runs"]} == set(config.evaluation.scores)
    assert (workdir / "report.html").stat().st_size > 10_000


def test_the_study_of_objectives_runs_to_the_report(tmp_path: Path, pytestconfig: pytest.Config) -> None:
    if pytestconfig.getoption("recipes") != "all":
        pytest.skip("make smoke runs it")
    workdir = tmp_path / "run"
    result = run_door("run", "--config=experiments/label_smoothing/objectives.py:smoke", f"--workdir={workdir}")
    assert result.returncode == 0, result.stderr
    config = config_lib.load(f"{ROOT}/experiments/label_smoothing/objectives.py:smoke")
    assert {path.name for path in (workdir / "predictions").iterdir()} == {
        config_lib.member_name(tag) for tag in config.members.tags
    }
    objectives = json.loads((workdir / "metrics.json").read_text())["objectives"]
    assert {row["objective"] for row in objectives["aggregates"]} == set(config.members.objectives)
    assert "## Other objectives" in (workdir / "report.md").read_text()
