"""Eight CPU devices against one, each in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import shared_metrics

from sc_jax import ops

TOLERANCE = 2e-5
"""Sums over a batch are split over the devices and added in another order; after 12 steps of Adam at 0.01 that is all."""


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, np.ndarray]]:
    results = {}
    for devices in (1, 8):
        path = tmp_path_factory.mktemp("devices") / f"{devices}.npz"
        script = Path(__file__).with_name("many_devices.py")
        done = subprocess.run([sys.executable, str(script), str(devices), str(path)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        results[devices] = dict(np.load(path))
    return results


@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_eight_devices_train_as_one(outputs: dict[int, dict[str, np.ndarray]], name: str) -> None:
    one, eight = (outputs[devices][f"{name}_loss"] for devices in (1, 8))
    assert one.shape == (12, 4)
    assert one[0].mean() > one[-1].mean(), "something is learned"
    np.testing.assert_allclose(eight, one, atol=TOLERANCE)


def test_eight_devices_augment_as_one(outputs: dict[int, dict[str, np.ndarray]]) -> None:
    one, eight = (outputs[devices]["augmented_loss"] for devices in (1, 8))
    assert not np.allclose(one, outputs[1]["mlp_loss"], atol=0.01)
    np.testing.assert_allclose(eight, one, atol=TOLERANCE)


def test_eight_devices_learn_to_abstain_as_one(outputs: dict[int, dict[str, np.ndarray]]) -> None:
    """A loss that weighs an example against its batch is of the whole batch, and every example has its running target."""
    for part in ("loss", "logits", "target"):
        one, eight = (outputs[devices][f"abstaining_{part}"] for devices in (1, 8))
        np.testing.assert_allclose(eight, one, atol=10 * TOLERANCE, err_msg=part)
    assert outputs[1]["abstaining_loss"].shape == (12, 4)
    assert outputs[1]["abstaining_target"][1].min() < 1


@pytest.mark.parametrize("name", ["streamed_loss", "streamed_statistics"])
def test_batch_statistics_and_sharpness_are_of_the_whole_streamed_batch(
    outputs: dict[int, dict[str, np.ndarray]], name: str
) -> None:
    """Batch statistics and SAM's ascent over each device's 4 examples of 32 would differ by far."""
    one, eight = (outputs[devices][name] for devices in (1, 8))
    np.testing.assert_allclose(eight, one, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_eight_devices_predict_as_one(outputs: dict[int, dict[str, np.ndarray]], name: str) -> None:
    one, eight = (outputs[devices][f"{name}_logits"] for devices in (1, 8))
    assert one.shape == (4, 203, 4), "203 examples in batches of 32: padded, and cut again"
    np.testing.assert_allclose(eight, one, atol=10 * TOLERANCE)


@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_shard_map_is_pmap(outputs: dict[int, dict[str, np.ndarray]], name: str) -> None:
    np.testing.assert_array_equal(outputs[8][f"{name}_logits"][:, :32], outputs[8][f"{name}_pmap"])


def test_metrics_of_shares_are_those_of_the_whole(outputs: dict[int, dict[str, np.ndarray]]) -> None:
    names = [name for name in outputs[1] if name.startswith("shares_")]
    assert len(names) == 27
    for name in names:
        np.testing.assert_allclose(outputs[8][name], outputs[1][name], rtol=1e-6, err_msg=name)


@pytest.mark.parametrize("devices", [1, 8])
def test_metrics_of_shares_are_those_of_the_host(outputs: dict[int, dict[str, np.ndarray]], devices: int) -> None:
    for name, (score, loss, where) in shared_metrics.samples().items():
        ranking = ops.rank(score, loss, where=where)
        for metric_name, metric in shared_metrics.of(name).items():
            value = outputs[devices][f"shares_{name}_{metric_name}"]
            np.testing.assert_allclose(value, metric(ranking), rtol=2e-6, err_msg=f"{name} {metric_name}")
            if metric_name == "coverage_at_risk" and name in ("untied_error", "tied_error"):
                assert 0.1 < value < 1


@pytest.mark.parametrize("devices", [1, 8])
def test_a_cascade_over_devices_decides_as_its_outputs_say(
    outputs: dict[int, dict[str, np.ndarray]], devices: int
) -> None:
    told = outputs[devices]
    assert 0.3 < told["cascade_stage"].mean() < 0.5
    np.testing.assert_array_equal(told["cascade_stage"], told["decided_stage"])
    np.testing.assert_allclose(told["cascade_score"], told["decided_score"], atol=1e-5)
