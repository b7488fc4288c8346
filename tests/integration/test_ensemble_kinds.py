"""Every kind of ensemble from data to report, in this process, on a handful of steps."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from conftest import CONFIG

from sc_jax import config as config_lib
from sc_jax import ops, predictions
from sc_jax.config import Backbone, Config, Ensemble, MemberGrid
from sc_jax.evaluate import evaluate_study
from sc_jax.predict import predict
from sc_jax.report import report
from sc_jax.train import train
from sc_jax.training import logs, loop

STEPS = 12
KINDS: dict[str, tuple[Ensemble, dict[str, Any]]] = {
    "mc_dropout": (Ensemble("mc_dropout", 3), {}),
    "snapshot": (Ensemble("snapshot", 3), {"schedule": "cyclic", "cycles": 4}),
    "swa": (Ensemble("swa", start=0.6, every=0.1), {}),
    "batch_ensemble": (Ensemble("batch_ensemble", 3), {}),
    "packed": (Ensemble("packed", 3, alpha=1.5, groups=2), {}),
    "masksembles": (Ensemble("masksembles", 3, scale=2.0), {}),
    "swag": (Ensemble("swag", 3, start=0.3, every=0.1, rank=3), {"schedule": "constant"}),
}


@pytest.fixture(autouse=True)
def flax_broadcasts() -> Any:
    """Flax's normalisations broadcast their scales."""
    with jax.numpy_rank_promotion("allow"):
        yield


def configured(kind: str) -> Config:
    """Two members, 12 steps of 20 images."""
    config = config_lib.load(f"{CONFIG}:smoke")
    ensemble, training = KINDS[kind]
    changed = {
        "batch_size": 20,
        "epochs": 1,
        "steps": STEPS,
        "statistics_every": 0,
        "log_every": 4,
        "checkpoint_every": 5,
    }
    return dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, train_examples=200),
        model=Backbone("mlp", hidden=(12,), dropout=0.2),
        members=MemberGrid((0.0, 0.2), (1,)),
        training=dataclasses.replace(config.training, **{**changed, "epochs": 2, **training}),
        prediction=config_lib.Prediction(("validation", "test"), 1000),
        evaluation=dataclasses.replace(
            config.evaluation, scores=(*config.evaluation.scores, "mutual_information"), resamples=20
        ),
        ensemble=ensemble,
    )


def files_of(workdir: Path) -> list[Path]:
    return sorted((workdir / "predictions").rglob("*.npz"))


@pytest.mark.parametrize("kind", KINDS)
def test_from_data_to_report(kind: str, tmp_path: Path) -> None:
    config, whole = configured(kind), tmp_path
    train(config, whole)
    predict(config, whole)
    shape = (10_000, 10) if kind == "swa" else (3, 10_000, 10)
    tests = [predictions.load(path) for path in files_of(whole) if path.stem == "test"]
    assert [p.logits.shape for p in tests] == [shape, shape]
    for p in tests:
        assert p.provenance["ensemble"] == kind
        if len(shape) == 3:
            assert all(not np.allclose(p.logits[i], p.logits[j], atol=1e-3) for i, j in ((0, 1), (0, 2), (1, 2)))

    evaluate_study(config, whole)
    report(whole)
    document = json.loads((whole / "metrics.json").read_text())
    rows = {(row["tags"]["alpha"], row["score"]): row for row in document["runs"]}
    for p, alpha in zip(tests, (0.0, 0.2), strict=True):
        combined = p.logits if p.logits.ndim == 2 else ops.ensemble_log_probabilities(p.logits)
        error = ops.predicted_class(combined) != p.label
        assert rows[alpha, "msp"]["metrics"]["error"] == pytest.approx(error.mean(), abs=1e-12)
        assert ((alpha, "mutual_information") in rows) == (kind != "swa")
    assert bool(document["max_logit_gap"]) == bool(document["suppression"]) == (kind == "swa")
    text = (whole / "report.md").read_text(encoding="utf-8")
    assert ("## The reason" in text) == (kind == "swa")


@pytest.mark.parametrize("kind", config_lib.COLLECTED)
def test_killed_behind_a_checkpoint_and_gone_on_it_is_the_same(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, whole, killed = configured(kind), tmp_path / "whole", tmp_path / "killed"
    train(config, whole)
    predict(config, whole)

    def interrupted(*arguments: Any, **options: Any) -> Any:
        def stop(step: int, _: Any) -> None:
            if step == 8:
                raise KeyboardInterrupt

        return fit(*arguments, **{**options, "hooks": [stop]})

    fit = loop.fit
    with monkeypatch.context() as patch:
        patch.setattr(loop, "fit", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(config, killed)
    train(config, killed)
    predict(config, killed)
    assert len(files_of(whole)) == 4
    for one, two in zip(files_of(whole), files_of(killed), strict=True):
        assert one.read_bytes() == two.read_bytes()
        assert one.with_suffix(".json").read_bytes() == two.with_suffix(".json").read_bytes()
    assert logs.read_log(whole / "train.jsonl") == logs.read_log(killed / "train.jsonl")
