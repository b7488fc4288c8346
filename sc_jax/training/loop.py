"""The loop: dispatch a step, or a few as one program, look at the meters of the step before. It knows no metric and no file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from sc_jax.training.state import Meters, TrainState

Hook = Callable[[int, TrainState], None]


class DivergedError(RuntimeError):
    """A member's loss or gradient stopped being finite."""


def fit(
    state: TrainState,
    advance: Callable[[TrainState, int], tuple[TrainState, Meters]],
    *,
    first_step: int,
    total_steps: int,
    steps_per_epoch: int,
    log_every: int,
    save_every: int,
    names: Sequence[str],
    log: Callable[[dict[str, Any]], None],
    save: Callable[[int, TrainState], None],
    progress: Callable[[int, str], None] = lambda done, note: None,
    hooks: Sequence[Hook] = (),
    stop: Callable[[int], bool] = lambda step: False,
    steps_at: Callable[[int], int] = lambda taken: 1,
    fetch: Callable[[Any], Any] = jax.device_get,
) -> TrainState:
    """Trains from `first_step` to `total_steps`, or until it is told to stop.

    Nothing is fetched from the device but through `fetch`, and that one step late, so that dispatch never waits; before
    a checkpoint the meters are fetched too, so no state that is not finite is ever saved.

    Args:
      state: at `first_step`; advance: (state, number of steps taken before) → (state, meters), which finds its own batches.
      first_step, total_steps, steps_per_epoch, log_every, save_every: counts of steps.
      names: of the members, for messages.
      log: receives {"step", "epoch", "loss": [m], "accuracy": [m]}.
      save: receives (step, state) every `save_every` steps, at the end, and where it stops.
      progress: receives (steps done, note); hooks: called as (step, state) after each call of `advance`, injected by a door.
      stop: asked after each call, with the number of its last step, whether to save and return.
      steps_at: steps taken before → how many the next call of `advance` takes; it passes no multiple of `log_every` or `save_every`, and no end.
      fetch: device → host; the one place where the loop waits.

    Returns:
      The state at `total_steps`, or at the step after which it stopped.

    Raises:
      DivergedError: names the step and the members.
    """
    pending: tuple[int, Meters] | None = None

    def settle() -> None:
        nonlocal pending
        if pending is None:
            return
        (step, meters), pending = pending, None
        meters = fetch(meters)
        _require_finite(meters, names)
        log(
            {
                "step": step,
                "epoch": step / steps_per_epoch,
                "loss": (meters.loss / meters.examples).tolist(),
                "accuracy": (meters.correct / meters.examples).tolist(),
            }
        )
        progress(step, f"loss {np.mean(meters.loss / meters.examples):.3f}")

    step, meters = first_step, None
    while step < total_steps:
        before, several = meters, steps_at(step)
        state, meters = advance(state, step)
        step += several
        if several > 1 and before is not None:
            fetch(before)  # or a signal would wait for all that can be dispatched, which is far ahead
        settle()
        last = step == total_steps
        if step % log_every == 0 or last:
            pending = (step, meters)
        for hook in hooks:
            hook(step, state)
        stopping = stop(step)
        if step % save_every == 0 or last or stopping:
            settle()
            _require_finite(fetch(meters), names)
            save(step, state)
        if stopping:
            break
    return state


def _require_finite(meters: Meters, names: Sequence[str]) -> None:
    if not meters.bad_step.any():
        return
    first = int(meters.bad_step[meters.bad_step > 0].min())
    where = [names[m] for m in np.flatnonzero(meters.bad_step == first)]
    raise DivergedError(
        f"step {first}: loss or gradient is not finite in {len(where)} of {len(names)} members: {', '.join(where[:5])}"
        f"{' …' if len(where) > 5 else ''}; lower training.learning_rate or lengthen training.warmup_epochs"
    )
