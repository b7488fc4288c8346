"""The section on cascades: its sentence follows from the verdicts, and every table and picture is there."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import numpy as np
import pytest

from sc_jax import cascade_pages, files
from sc_jax.methods import cascade_study
from sc_jax.methods.cascade import Task
from sc_jax.predictions import Predictions
from sc_jax.report import report


def split(first_id: int, is_ood: np.ndarray | None = None) -> list[Predictions]:
    n, k = 300, 4
    label = np.random.default_rng(first_id).integers(0, k, n)
    return [
        Predictions(
            label,
            2.5 * np.eye(k)[label] + 1.5 * np.random.default_rng([first_id, seed]).normal(size=(n, k)),
            np.arange(first_id, first_id + n),
            is_ood=is_ood,
            source=f"{seed}.npz",
        )
        for seed in range(2)
    ]


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """As `report` reads it."""
    test = split(10_000, np.arange(300) % 4 == 0)
    flatter = [dataclasses.replace(one, logits=one.logits / 2) for one in test]
    candidates = [cascade_study.Candidates(("a", "b"), split(0), test, {"flatter": flatter})]
    settings = cascade_study.Settings(Task("risk", 0.1), resamples=40, budget=1.5)
    found = cascade_study.evaluate(candidates, (1.0, 2.0), settings)
    path = tmp_path_factory.mktemp("document") / "metrics.json"
    run = {"predictions": "a", "split": "test", "tags": {}, "score": "msp", "n": 225, "metrics": {}, "intervals": {}}
    files.write_json(path, {"schema": 1, "runs": [{**run, "fitted_on": None}], "cascades": {**found, "unit": "MACs"}})
    return files.read_json(path)


@pytest.mark.parametrize(
    ("gain", "kept", "words"),
    [
        ("not shown", "not asked: no gain is shown", "No gain of the ensemble is shown"),
        ("confirmed", "confirmed", "keeps at least 80 %"),
        ("confirmed", "not shown", "is not shown to keep 80 %"),
        ("confirmed", "contradicted", "does not keep 80 %"),
    ],
)
def test_the_sentence_follows_from_the_verdicts(document: dict, gain: str, kept: str, words: str) -> None:
    told = copy.deepcopy(document["cascades"])
    told["claims"][0]["verdict"], told["claims"][1]["verdict"] = gain, kept
    assert words in cascade_pages.claim(told)


def test_tables_have_a_row_for_each_policy_and_budget(document: dict) -> None:
    told = document["cascades"]
    assert [row[0] for row in cascade_pages.policy_table(told).rows] == [
        *("first network alone", "ensemble", "single threshold", "window", "oracle: labels seen")
    ]
    assert len(cascade_pages.claim_table(told).rows) == 3
    table = cascade_pages.search_table(told)
    assert len(table.rows) == cascade_study.BUDGETS + 1
    assert {len(row) for row in table.rows} == {len(table.headings)}
    assert len(cascade_pages.ood_table(told).rows) == 5
    shifts = cascade_pages.shift_table(told)
    assert [row[0] for row in shifts.rows] == ["test split", *[""] * 4, "flatter", *[""] * 4]
    chosen = cascade_pages.chosen_table(told)
    assert [row[2] for row in chosen.rows] == ["best", "certified"]
    best = told["chosen"][0]["best"]
    assert chosen.rows[0][3] == " → ".join(best["models"])
    assert chosen.rows[0][5] == f"{best['threshold']:.4g}"


def test_a_policy_that_was_not_found_is_said_to_be_none(document: dict) -> None:
    told = copy.deepcopy(document["cascades"])
    told["chosen"][0]["certified"] = None
    assert cascade_pages.chosen_table(told).rows[1][3] == "none found"
    told["settings"]["task"] = {"kind": "coverage", "target": 0.8}
    assert len(cascade_pages.chosen_table(told).rows) == 1


def test_the_report_of_files_is_the_section_under_its_finding(document: dict, tmp_path: Path) -> None:
    files.write_json(tmp_path / "metrics.json", document)
    report(tmp_path)
    for name in cascade_pages.PICTURES:
        assert (tmp_path / "figures" / name).stat().st_size > 10_000
    text = (tmp_path / "report.md").read_text()
    assert text.startswith(f"# {cascade_pages.claim(document['cascades'])}")
    for name in cascade_pages.PICTURES:
        assert f"(figures/{name})" in text
    assert "undefined" not in cascade_pages.policy_table(document["cascades"]).markdown()
    page = (tmp_path / "report.html").read_text()
    assert page.count("<svg") == len(cascade_pages.PICTURES)
    assert "h3>" not in page


def test_without_a_search_there_is_no_picture_of_one(document: dict) -> None:
    told = copy.deepcopy(document)
    told["cascades"]["search"], told["cascades"]["settings"]["task"] = [], {"kind": "tpr", "target": 0.9}
    told["cascades"]["chosen"] = told["cascades"]["shifts"] = []
    pictures, _, text = cascade_pages.section(told)
    assert tuple(pictures) == cascade_pages.pictures_of(told["cascades"]) == cascade_pages.PICTURES[:2]
    assert "budget" not in text
