"""Training fetches from the device through one function alone, a step late; it donates its state and compiles once."""

from __future__ import annotations

import contextlib
import dataclasses
import io
from typing import Any

import fetches
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import CONFIG

from sc_jax import config as config_lib
from sc_jax import train
from sc_jax.training import job as job_lib
from sc_jax.training import loop, parallel, state

STEPS, LOG_EVERY, SAVE_EVERY = 12, 3, 6


@pytest.fixture(scope="module")
def job() -> job_lib.Job:
    overrides = {
        "model.hidden": "(8,)",
        "data.train_examples": "1000",
        "training.batch_size": "200",
        "training.log_every": str(LOG_EVERY),
        "training.checkpoint_every": str(SAVE_EVERY),
        "training.statistics_every": "4",
        "training.statistics_examples": "100",
        "training.epochs": "3",
        "training.warmup_epochs": "0.5",
        "training.steps": str(STEPS),
    }
    return job_lib.build(config_lib.load(f"{CONFIG}:smoke", overrides))


def fit(job: job_lib.Job, watch: fetches.Watch, tmp_path: Any, planted: Any = lambda current, meters: None) -> Any:
    """Trains as the door does, with `planted` after every step. The loop has sealed arrays, which only hooks and `fetch` open."""
    mesh = parallel.data_mesh()
    seen: dict[str, Any] = {"programs": set(), "lines": []}
    with watch.open():
        current = parallel.replicate(state.initial_state(job.model, job.optimizer, job.members), mesh)
    get = watch.allowed(lambda tree: jax.device_get(fetches.opened(tree)))
    with (
        job_lib.stepping(job, mesh, 0, job.at_once) as advance,
        train.watching(job, mesh, tmp_path, 0, fetch=get) as (hooks, settle),
    ):

        def one(current: state.TrainState, taken: int) -> Any:
            current = fetches.opened(current)
            old = jax.tree.leaves(current.params)
            # The first step is compiled; the first of an epoch sends its number.
            sends = taken % job.steps_per_epoch == 0
            with contextlib.nullcontext() if sends else jax.transfer_guard_host_to_device("disallow"):
                current, meters = advance(current, taken)
            seen["donated"] = all(leaf.is_deleted() for leaf in old)
            kept = fetches.sealed((current, meters))
            planted(*kept)
            return kept

        loop.fit(
            fetches.sealed(current),
            one,
            first_step=0,
            total_steps=STEPS,
            steps_per_epoch=job.steps_per_epoch,
            log_every=LOG_EVERY,
            save_every=SAVE_EVERY,
            names=job.names,
            log=seen["lines"].append,
            save=lambda step, current: settle(),
            hooks=[lambda step, kept, hook=hook: hook(step, fetches.opened(kept)) for hook in hooks],
            fetch=get,
            steps_at=job.steps_at,
        )
    return seen


def test_the_loop_and_its_hook_fetch_through_one_function_alone(job: job_lib.Job, tmp_path: Any) -> None:
    with fetches.forbidden() as watch:
        seen = fit(job, watch, tmp_path)
    # A line each LOG_EVERY steps, the meters before each checkpoint, and statistics at steps 4, 8 and 12; and before each program of several steps the last.
    starts = [0]
    while (end := starts[-1] + job.steps_at(starts[-1])) < STEPS:
        starts.append(end)
    waits = sum(job.steps_at(start) > 1 for start in starts[1:])
    assert waits
    assert watch.count == STEPS // LOG_EVERY + STEPS // SAVE_EVERY + STEPS // 4 + waits
    assert [line["step"] for line in seen["lines"]] == [3, 6, 9, 12]
    assert seen["donated"]


PLANTED = {
    "float": lambda current, meters: float(meters.loss[0]),
    "int": lambda current, meters: int(meters.examples),
    "bool": lambda current, meters: bool(meters.bad_step[0]),
    "comparison": lambda current, meters: 1 if meters.loss[0] > 1e9 else 0,
    "item": lambda current, meters: meters.loss[0].item(),
    "tolist": lambda current, meters: meters.loss.tolist(),
    "asarray": lambda current, meters: np.asarray(meters.loss),
    "array": lambda current, meters: np.array(meters.loss),
    "stack": lambda current, meters: np.stack([meters.loss, meters.loss]),
    "device_get": lambda current, meters: jax.device_get(meters),
    "print": lambda current, meters: f"{meters.loss[0]:.3f}",
    "repr": lambda current, meters: repr(meters.loss),
    "wait": lambda current, meters: jax.block_until_ready(meters),
    "wait of an array": lambda current, meters: meters.loss.block_until_ready(),
    "iteration": lambda current, meters: max(meters.loss),
}

"""Ways that are watched."""

BY_BUFFER = {
    "isfinite": lambda current, meters: np.isfinite(meters.loss),
    "isfinite of the state": lambda current, meters: np.isfinite(current.meters.loss),
    "mean": lambda current, meters: np.mean(meters.loss),
    "add": lambda current, meters: np.add(meters.loss, 1),
    "norm": lambda current, meters: np.linalg.norm(meters.loss),
    "float64": lambda current, meters: np.float64(meters.loss[0]),
    "memoryview": lambda current, meters: memoryview(meters.loss),
    "asanyarray": lambda current, meters: np.asanyarray(meters.loss),
    "assignment": lambda current, meters: np.empty(2).__setitem__(slice(None), meters.loss),
    "frombuffer": lambda current, meters: np.frombuffer(meters.loss, np.float32),
    "vstack": lambda current, meters: np.vstack([meters.loss]),
    "from_dlpack": lambda current, meters: np.from_dlpack(meters.loss),
    "savez": lambda current, meters: np.savez(io.BytesIO(), loss=meters.loss),
    "of what is computed": lambda current, meters: np.mean(meters.loss / meters.examples),
}
"""Ways past the watch, of which some read the memory of the array itself."""


def made_up() -> tuple[Any, state.Meters]:
    loss = jnp.arange(2.0)
    meters = state.Meters(loss, loss, jnp.ones((), jnp.int32), jnp.zeros(2, jnp.int32))
    return state.TrainState(jnp.zeros(()), {}, {}, {}, meters), meters


@pytest.mark.parametrize("plant", [*PLANTED.values(), *BY_BUFFER.values()], ids=[*PLANTED, *BY_BUFFER])
def test_a_sealed_array_cannot_be_read_in_any_of_these_ways(plant: Any) -> None:
    plant(*made_up())
    plant(*fetches.opened(fetches.sealed(made_up())))
    with pytest.raises((fetches.HiddenFetchError, TypeError)):  # a TypeError where there is no buffer
        plant(*fetches.sealed(made_up()))


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_fetch_is_seen(name: str) -> None:
    with fetches.forbidden() as watch, pytest.raises(fetches.HiddenFetchError):
        PLANTED[name](*made_up())
    with fetches.forbidden() as watch, watch.open():
        PLANTED[name](*made_up())


@pytest.mark.parametrize("plant", [PLANTED["float"], BY_BUFFER["isfinite"], BY_BUFFER["memoryview"]])
def test_a_planted_fetch_fails_training(job: job_lib.Job, tmp_path: Any, plant: Any) -> None:
    with (
        fetches.forbidden() as watch,
        pytest.raises((fetches.HiddenFetchError, TypeError), match=r"sealed|buffer|bytes"),
    ):
        fit(job, watch, tmp_path, plant)


@pytest.mark.skipif(jax.default_backend() == "cpu", reason="on a CPU nothing is transferred")
def test_a_transfer_guard_sees_no_other_fetch(job: job_lib.Job, tmp_path: Any) -> None:
    """Explicit transfers, as `jax.device_get`, are let through."""
    with jax.transfer_guard_device_to_host("disallow"):
        with fetches.forbidden() as watch:
            fit(job, watch, tmp_path)
        with pytest.raises(jax.errors.JaxRuntimeError, match="device-to-host"):
            BY_BUFFER["isfinite"](*made_up())


def test_one_program_for_all_steps(job: job_lib.Job, tmp_path: Any) -> None:
    """Steps of one shape compile once, whatever the epoch; another batch size compiles anew."""
    compiled: list[str] = []

    def listen(event: str, _: float, **about: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(str(about.get("fun_name")))

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        mesh = parallel.data_mesh()
        for size, expected in ((200, 1), (100, 1)):
            changed = dataclasses.replace(job.config.training, batch_size=size)
            other = job_lib.build(dataclasses.replace(job.config, training=changed))
            current = parallel.replicate(state.initial_state(other.model, other.optimizer, other.members), mesh)
            with job_lib.stepping(other, mesh, 0) as advance:
                compiled.clear()
                for taken in range(2 * other.steps_per_epoch):
                    current, _ = advance(current, taken)
            assert sum("advance" in name for name in compiled) == expected, compiled
    finally:
        jax.monitoring.clear_event_listeners()
