"""Many devices, of one process and of several, against one; each in processes of its own."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import shared_metrics

from sc_jax import ops

TOLERANCE = 2e-5
"""Sums over a batch are split over the devices and added in another order; after 12 steps of Adam at 0.01 that is all."""

# (processes, devices of each) → cases of many_devices.py; with --devices=all every case everywhere.
SHORT = {
    (1, 1): ("mlp", "cnn", "augmented", "abstaining", "streamed"),
    (1, 8): ("mlp", "cnn", "divided", "unrolled", "spread_and_divided", "abstaining", "streamed"),
    (2, 2): ("spread_and_divided", "streamed"),
    (4, 2): ("streamed",),
}
ALL = ("mlp", "cnn", "augmented", "divided", "unrolled", "spread_and_divided", "abstaining", "streamed")

# What differs in the layout alone, and is compared with one device that does the same: see `CASES` there.
SAME_AS = {"divided": "augmented", "spread_and_divided": "augmented", "unrolled": "cnn"}

Outputs = dict[tuple[int, int], dict[str, np.ndarray]]


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Outputs:
    """(processes, devices of each) → what `many_devices.py` found."""
    script, results = Path(__file__).with_name("many_devices.py"), {}
    # Less time goes into compiling for each process; all compute by the same rules.
    environment = {**os.environ, "XLA_FLAGS": "--xla_backend_optimization_level=0"}
    for (processes, devices), cases in SHORT.items():
        if pytestconfig.getoption("--devices") == "all":
            cases = ALL
        folder = tmp_path_factory.mktemp("devices")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        told = [(folder / f"{process}.out").open("w+") for process in range(processes)]
        running = [
            subprocess.Popen(
                [sys.executable, script, folder / "out.npz", ",".join(cases), *map(str, (devices, processes, i, port))],
                env=environment,
                stdout=out,
                stderr=subprocess.STDOUT,
            )
            for i, out in enumerate(told)
        ]
        try:
            for process, out in zip(running, told, strict=True):
                status = process.wait(timeout=600)
                out.seek(0)
                assert status == 0, out.read()
        finally:
            for process, out in zip(running, told, strict=True):
                process.kill()
                process.wait()
                out.close()
        results[processes, devices] = dict(np.load(folder / "out.npz"))
    return results


def compared(outputs: Outputs, what: str, *cases: str) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """(where, there, on one device) of each of the cases that ran on many devices."""
    found = []
    for where, told in outputs.items():
        for case in cases:
            if where != (1, 1) and f"{case}_{what}" in told:
                one = outputs[1, 1][f"{SAME_AS.get(case, case)}_{what}"]
                found.append((f"{case} on {where}", told[f"{case}_{what}"], one))
    assert found
    return found


def test_many_devices_train_as_one(outputs: Outputs) -> None:
    for where, many, one in compared(outputs, "loss", *ALL):
        assert len(one) == 12
        tolerance = (10 if where.startswith("abstaining") else 1) * TOLERANCE
        np.testing.assert_allclose(many, one, atol=tolerance, err_msg=where)
    for case in ("mlp", "cnn"):
        assert outputs[1, 1][f"{case}_loss"][0].mean() > outputs[1, 1][f"{case}_loss"][-1].mean(), (
            "something is learned"
        )
    assert not np.allclose(outputs[1, 1]["augmented_loss"], outputs[1, 1]["mlp_loss"], atol=0.01)


def test_batch_statistics_and_sharpness_are_of_the_whole_streamed_batch(outputs: Outputs) -> None:
    """Batch statistics and SAM's ascent over each device's 4 examples of 32 would differ by far."""
    for what in ("loss", "statistics"):
        found = compared(outputs, what, "streamed")
        assert len(found) == 3
        for where, many, one in found:
            np.testing.assert_allclose(many, one, rtol=TOLERANCE, atol=TOLERANCE, err_msg=where)


def test_many_devices_predict_as_one(outputs: Outputs) -> None:
    for where, many, one in compared(outputs, "logits", *ALL):
        assert one.shape[1:] == (203, 4), "203 examples in batches of 32: padded, and cut again"
        np.testing.assert_allclose(many, one, atol=10 * TOLERANCE, err_msg=where)


def test_what_is_divided_is_held_by_parts(outputs: Outputs) -> None:
    """The kernel 64 × 24 of one member is most of its 1,887 parameters, and is divided; the rest is whole."""
    parameters, kernel = 64 * 24 + 24 + 24 * 9 + 9 + 9 * 4 + 4, 64 * 24
    held = {
        case: outputs[where][f"{case}_share_of_parameters"]
        for where, case in (((1, 8), "mlp"), ((1, 8), "divided"), ((1, 8), "unrolled"), ((1, 8), "spread_and_divided"))
    }
    assert held["mlp"] == 1
    assert held["divided"] == pytest.approx(1 - kernel / parameters * 7 / 8)
    assert held["unrolled"] == 1 / 4, "one member of four in each of four rows"
    assert held["spread_and_divided"] == pytest.approx((1 - kernel / parameters * 3 / 4) / 2)


def test_every_example_has_its_running_target_on_many_devices_too(outputs: Outputs) -> None:
    for where, many, one in compared(outputs, "target", "abstaining"):
        assert one[1].min() < 1
        np.testing.assert_allclose(many, one, atol=10 * TOLERANCE, err_msg=where)


@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_shard_map_is_pmap(outputs: Outputs, name: str) -> None:
    np.testing.assert_array_equal(outputs[1, 8][f"{name}_logits"][:, :32], outputs[1, 8][f"{name}_pmap"])


def test_metrics_of_shares_are_those_of_the_whole(outputs: Outputs) -> None:
    for where, told in outputs.items():
        names = [name for name in told if name.startswith("shares_")]
        assert len(names) == (27 if where[0] == 1 else 9)
        for name in names:
            np.testing.assert_allclose(told[name], outputs[1, 1][name], rtol=1e-6, err_msg=f"{name} on {where}")


def test_metrics_of_shares_are_those_of_the_host(outputs: Outputs) -> None:
    for where, told in outputs.items():
        for name, (score, loss, kept) in shared_metrics.samples().items():
            ranking = ops.rank(score, loss, where=kept)
            for metric_name, metric in shared_metrics.of(name).items():
                value = told.get(f"shares_{name}_{metric_name}")
                if value is None:
                    assert where[0] > 1
                    continue
                np.testing.assert_allclose(value, metric(ranking), rtol=2e-6, err_msg=f"{name} {metric_name} {where}")
                if metric_name == "coverage_at_risk" and name in ("untied_error", "tied_error"):
                    assert 0.1 < value < 1


@pytest.mark.parametrize("devices", [1, 8])
def test_a_cascade_over_devices_decides_as_its_outputs_say(outputs: Outputs, devices: int) -> None:
    told = outputs[1, devices]
    assert 0.3 < told["mlp_cascade_stage"].mean() < 0.5
    np.testing.assert_array_equal(told["mlp_cascade_stage"], told["mlp_decided_stage"])
    np.testing.assert_allclose(told["mlp_cascade_score"], told["mlp_decided_score"], atol=1e-5)
