"""Statistics of logits while training: against a loop, in any order, and in the file that training leaves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sc_jax import config as config_lib
from sc_jax import ops, predictions
from sc_jax.methods import logit_statistics
from sc_jax.ops.losses import smoothed_cross_entropy
from sc_jax.predict import predict
from sc_jax.train import train
from sc_jax.training.logs import Lines, read_log

M, N, K, P = 2, 60, 4, 3.0
ALPHA = np.array([0.0, 0.3], np.float32)
RECIPES = Path(__file__).parents[2] / "experiments" / "label_smoothing"


@pytest.fixture
def batch() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 3, (M, N, K)).astype(np.float32)
    return logits, rng.integers(0, K, N).astype(np.int32), rng.random(N) < 0.8


def by_hand(logits: np.ndarray, label: np.ndarray, where: np.ndarray) -> dict[tuple[int, bool, int], list[list[float]]]:
    """(member, wrong, bin) → a row of values for each example; the gradients by autodiff."""
    cells: dict[tuple[int, bool, int], list[list[float]]] = {}
    for m in range(M):
        for v, y in zip(logits[m][where].astype(np.float64), label[where], strict=True):
            top = int(np.argmax(v))
            share = np.exp(v - v.max()) / np.exp(v - v.max()).sum()
            odds = np.log(share[top] / (share.sum() - share[top]))
            place = sum(odds > edge for edge in logit_statistics.EDGES)
            whole, plain = (
                np.asarray(jax.grad(smoothed_cross_entropy)(jnp.asarray(v, jnp.float32), y, a)) for a in (ALPHA[m], 0.0)
            )
            row = [v[top], v[top] - v.mean(), share[top], whole[top] - plain[top], whole[top]]
            cells.setdefault((m, bool(top != y), place), []).append([*row, (np.abs(v) ** P).sum() ** (1 / P)])
    return cells


def test_sums_are_those_of_a_loop(batch: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    logits, label, where = batch
    sums = jax.jit(logit_statistics.measure, static_argnames="p")(logits, label, ALPHA, where, p=P)
    cells = by_hand(logits, label, where)
    assert len(cells) > 12
    assert sums.count.shape == (M, 2, logit_statistics.BINS)
    for (m, wrong, place), rows in cells.items():
        found = [float(column[m, int(wrong), place]) for column in sums]
        np.testing.assert_allclose(found, [len(rows), *np.sum(rows, axis=0)], rtol=1e-4, atol=1e-5)
    assert float(sums.count.sum()) == M * where.sum()


def test_parts_merge_to_the_whole(batch: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    logits, label, where = batch
    whole = logit_statistics.measure(logits, label, ALPHA, where)
    parts = [
        logit_statistics.measure(logits[:, part], label[part], ALPHA, where[part])
        for part in (slice(0, 7), slice(7, 40), slice(40, N))
    ]
    for order in ((0, 1, 2), (2, 0, 1)):
        a, b, c = (parts[i] for i in order)
        for merged in (
            logit_statistics.merge(logit_statistics.merge(a, b), c),
            logit_statistics.merge(a, logit_statistics.merge(b, c)),
        ):
            jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5), merged, whole)


def test_means_leave_empty_bins_out(
    batch: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> None:
    logits, label, where = batch
    told = logit_statistics.means(jax.device_get(logit_statistics.measure(logits, label, ALPHA, where)))
    assert json.loads(json.dumps(told)) == told
    empty = np.array(told["count"]) == 0
    assert empty.any()
    assert all(told["msp"][m][w][i] is None for m, w, i in np.argwhere(empty))


def test_ranking_is_that_of_the_metrics() -> None:
    rng = np.random.default_rng(1)
    score, wrong = rng.normal(size=(3, 40)).round(1), rng.random((3, 40)) < [[0.1], [0.4], [0.0]]
    told = logit_statistics.ranking(score, wrong)
    assert json.loads(json.dumps(told)) == told
    for m in range(2):
        order = np.argsort(-score[m], kind="stable")
        keep = np.concatenate([np.flatnonzero(np.diff(score[m][order])), [39]])  # ends of blocks of ties
        cumulated = np.cumsum(wrong[m][order])[keep]
        realised = (keep + 1)[cumulated <= 0.05 * (keep + 1)]
        assert told["coverage_at_risk_0.05"][m] == (realised.max() / 40 if len(realised) else 0)
        assert told["aurc"][m] == pytest.approx(float(ops.aurc(score[m], wrong[m])))
        assert 0 < told["naurc"][m] < 2
    assert [value[2] for value in told.values()] == [0.0, 0.0, None, 1.0, 0.0], "no errors: naurc is not defined"


def test_members_of_an_alpha_together_are_one_member_with_all_their_examples() -> None:
    rng = np.random.default_rng(3)
    logits, label = rng.normal(size=(3, 50, 4)) * 3, rng.integers(0, 4, 50)
    alphas = np.array([0.2, 0.0, 0.2])
    everywhere = np.ones(50, bool)
    told = logit_statistics.means(jax.device_get(logit_statistics.measure(logits, label, alphas, everywhere)))
    rows = logit_statistics.by_alpha({**told, "ranking": {}}, alphas.tolist())
    assert [row["alpha"] for row in rows] == [0.0, 0.2]
    for row, members in zip(rows, ([1], [0, 2]), strict=True):
        n = len(members)
        one = np.concatenate(logits[members])[None], np.tile(label, n), alphas[members[:1]], np.ones(50 * n, bool)
        expected = logit_statistics.means(jax.device_get(logit_statistics.measure(*one)))
        assert row.keys() == {"alpha", *expected}
        for name, (values,) in expected.items():
            np.testing.assert_allclose(np.array(row[name], float), np.array(values, float), rtol=1e-5, err_msg=name)


def test_training_leaves_what_the_predictions_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SC_JAX_DATA", str(tmp_path / "data"))
    more = {"training.statistics_every": "2", "training.statistics_examples": "17", "training.steps": "3"}
    more["training.statistics_p"] = "3"
    config = config_lib.load(f"{RECIPES}/bank_marketing.py:smoke", more)
    train(config, tmp_path)
    predict(config, tmp_path)
    path = tmp_path / "logit_statistics.jsonl"
    header = json.loads(path.read_text().splitlines()[0])
    lines = read_log(path)
    assert [line["step"] for line in lines] == [2, 3], "every second step, and the last"
    assert header["splits"] == ["train", "validation"]
    assert header["p"] == 3
    logits, label = [], None
    for name in header["members"]:
        predicted = predictions.load(tmp_path / "predictions" / name / "validation.npz")
        logits.append(predicted.logits[:17])
        label = predicted.label[:17]
    alpha = np.array(config.members.alphas, np.float32)
    told = logit_statistics.means(
        jax.device_get(logit_statistics.measure(np.stack(logits), label, alpha, np.ones(17, bool), p=3.0))
    )
    for name, values in told.items():
        found = np.array(lines[-1]["validation"][name], float)
        np.testing.assert_allclose(found, np.array(values, float), rtol=1e-4, atol=1e-5)
    score, wrong = ops.msp(np.stack(logits)), np.stack(logits).argmax(-1) != label
    for name, values in logit_statistics.ranking(score, wrong).items():
        np.testing.assert_allclose(
            np.array(lines[-1]["validation"]["ranking"][name], float), np.array(values, float), rtol=1e-4
        )
    assert np.sum(lines[-1]["train"]["count"], axis=(1, 2)).tolist() == [17] * len(header["members"])
    whole = path.read_bytes()
    config = config_lib.load(f"{RECIPES}/bank_marketing.py:smoke", more)
    train(config, tmp_path)  # done: nothing is written again
    assert path.read_bytes() == whole


def test_training_taken_up_again_leaves_the_same_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SC_JAX_DATA", str(tmp_path / "data"))
    more = {"training.statistics_every": "1", "training.steps": "4", "training.checkpoint_every": "2"}
    config = config_lib.load(f"{RECIPES}/bank_marketing.py:smoke", more)
    train(config, tmp_path / "whole")

    class Killed(Exception):
        pass

    write = Lines.write

    def killed(self: Lines, line: dict[str, Any]) -> None:
        if line["step"] == 3 and self.path.name.startswith("logit"):
            raise Killed
        write(self, line)

    with monkeypatch.context() as patch:
        patch.setattr("sc_jax.training.logs.Lines.write", killed)
        with pytest.raises(Killed):
            train(config, tmp_path / "killed")
    assert [line["step"] for line in read_log(tmp_path / "killed/logit_statistics.jsonl")] == [1, 2]
    train(config, tmp_path / "killed")
    files = [(tmp_path / name / "logit_statistics.jsonl").read_bytes() for name in ("whole", "killed")]
    assert files[0] == files[1]
