"""A sample of the chaos; `make chaos` runs it at length."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos import damage, kills, limits
from tests.chaos.run import BAD
from tests.chaos.runs import STAGES, Place


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    place = Place(tmp_path_factory.mktemp("chaos") / "place")
    place.undisturbed()
    damage.keep_the_middle(place)
    yield place
    place.begin("end")


@pytest.fixture(scope="module")
def examples(place: Place) -> Path:
    damage.write_examples(place, place.folder / "examples")
    return place.folder / "examples"


def test_the_whole_is_the_whole(place: Place) -> None:
    """Run again, and from the middle: what the comparisons rest on."""
    for stage in ("end", "middle"):
        place.begin(stage)
        assert place.run("run").status == 0
        assert place.differences() == []
    (place.workdir / "metrics.json").write_text("")
    assert place.differences() == ["metrics.json"]


@pytest.mark.parametrize(
    ("stage", "how"), [("train", "checkpoint"), ("predict", "write"), ("evaluate", "moment"), ("report", "write")]
)
def test_a_killed_run_ends_with_the_same_bits(place: Place, stage: str, how: str) -> None:
    row = kills.trial(place, 0, stage, how, writes=30)
    assert row["outcome"] == "recovered", row
    if how != "moment":
        assert row["inside_a_write"], "another seed is needed: this one does not land inside a write"


def test_sigterm_ends_training_with_a_checkpoint(place: Place) -> None:
    row = limits.terminate(place, 1, "train")
    assert row["outcome"] == "recovered", row
    assert row["status"] == 143


@pytest.mark.parametrize("kind", ["checkpoint: arrays", "predictions", "metrics.json", "report.html", "train.jsonl"])
def test_damage_is_repaired_or_refused(place: Place, kind: str) -> None:
    row = damage.trial(place, 3, kind)
    assert row["outcome"] not in BAD, row


@pytest.mark.parametrize("kind", damage.READ)
def test_damaged_files_are_refused_or_read_the_same(examples: Path, kind: str) -> None:
    rows = [damage.read_trial(examples, seed, kind) for seed in range(12)]
    assert [row for row in rows if row["outcome"] in BAD] == []
    assert any(row["outcome"] == "refused" for row in rows)


def test_a_full_disk_is_said_and_loses_nothing(place: Place) -> None:
    """Files cannot grow beyond 40,000 bytes, which checkpoints do."""
    row = limits.limit(place, STAGES[0], 40_000)
    assert row["outcome"] == "refused", row


def test_the_second_run_in_a_workdir_is_refused(place: Place) -> None:
    row = limits.collide(place, 0, "predict")
    assert row["outcome"] == "refused", row
