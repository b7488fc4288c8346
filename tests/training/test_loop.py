"""The loop: what it fetches and when, what it logs and saves, and when it stops."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sc_jax.training.loop import DivergedError, fit
from sc_jax.training.state import Meters
from sc_jax.training.step import steps_ahead


class Recorder:
    """Stands for the device: a step is a counter, and every call is written down in order."""

    def __init__(self, bad: dict[int, int] | None = None):
        self.events: list[tuple[str, Any]] = []
        self.lines: list[dict[str, Any]] = []
        self.bad = bad or {}  # member → first step that is not finite
        self.step = 0

    def advance(self, state: int, taken: int) -> tuple[int, Meters]:
        self.events.append(("step", (state + 1, taken)))
        bad = np.array([self.bad[m] if m in self.bad and self.bad[m] <= state + 1 else 0 for m in range(3)])
        return state + 1, Meters(np.full(3, 6.0), np.array([1.0, 2.0, 3.0]), np.int32(4), bad)

    def fetch(self, meters: Meters) -> Meters:
        self.events.append(("fetch", None))
        return meters

    def run(self, first: int = 0, total: int = 12, **changed: Any) -> int:
        options: dict[str, Any] = {
            "steps_per_epoch": 4,
            "log_every": 3,
            "save_every": 6,
            "names": ["a", "b", "c"],
            "log": self.lines.append,
            "save": lambda step, state: self.events.append(("save", (step, state))),
            "fetch": self.fetch,
        }
        return fit(first, self.advance, first_step=first, total_steps=total, **(options | changed))


def test_takes_every_step_once_and_says_how_many_were_taken() -> None:
    recorder = Recorder()
    assert recorder.run() == 12
    assert [value for name, value in recorder.events if name == "step"] == [(s, s - 1) for s in range(1, 13)]


def test_resumes_in_the_middle_of_an_epoch() -> None:
    recorder = Recorder()
    assert recorder.run(first=6) == 12
    assert [value for name, value in recorder.events if name == "step"] == [(s, s - 1) for s in range(7, 13)]


def test_a_call_may_take_several_steps_and_everything_happens_where_it_would() -> None:
    marks = (3, 4, 6, 12)

    class Several(Recorder):
        def advance(self, state: int, taken: int) -> tuple[int, Meters]:
            self.events.append(("step", taken))
            return state + steps_ahead(taken, 5, marks), super().advance(state, taken)[1]

    one, several = Recorder(), Several()
    assert several.run(steps_at=lambda taken: steps_ahead(taken, 5, marks)) == one.run() == 12
    assert several.lines == one.lines
    assert [event for event in several.events if event[0] == "save"] == [e for e in one.events if e[0] == "save"]
    assert [value for name, value in several.events if name == "step" and isinstance(value, int)] == [0, 3, 4, 6, 8, 9]


def test_fetches_a_step_late_and_no_more_than_needed() -> None:
    recorder = Recorder()
    recorder.run(save_every=1000)
    names = [name if name != "step" else value[0] for name, value in recorder.events]
    for logged in (3, 6, 9):  # dispatch of the next step comes first
        assert names[names.index(logged) + 1] == logged + 1
        assert names[names.index(logged) + 2] == "fetch"
    # One fetch for each of the four lines, and one before the only checkpoint, at the end.
    assert names.count("fetch") == 4 + 1


def test_logs_means_over_examples() -> None:
    recorder = Recorder()
    recorder.run()
    assert [line["step"] for line in recorder.lines] == [3, 6, 9, 12]
    assert recorder.lines[1] == {"step": 6, "epoch": 1.5, "loss": [1.5] * 3, "accuracy": [0.25, 0.5, 0.75]}


def test_the_lines_up_to_a_checkpoint_are_written_before_it() -> None:
    recorder = Recorder()
    seen: list[tuple[int, int]] = []
    recorder.run(save=lambda step, state: seen.append((step, recorder.lines[-1]["step"])))
    assert seen == [(6, 6), (12, 12)]


def test_saves_at_the_end_too() -> None:
    recorder = Recorder()
    recorder.run(total=10)
    assert [value for name, value in recorder.events if name == "save"] == [(6, 6), (10, 10)]


def test_divergence_names_step_and_members_and_saves_nothing_after() -> None:
    recorder = Recorder(bad={1: 7, 2: 7})
    with pytest.raises(DivergedError, match=r"step 7: .* in 2 of 3 members: b, c"):
        recorder.run()
    assert [value for name, value in recorder.events if name == "save"] == [(6, 6)]


def test_divergence_right_before_a_checkpoint_is_seen() -> None:
    recorder = Recorder(bad={0: 6})
    with pytest.raises(DivergedError, match=r"step 6: .*members: a;"):
        recorder.run(log_every=100)
    assert not [value for name, value in recorder.events if name == "save"]


def test_hooks_see_every_step() -> None:
    recorder, seen = Recorder(), []
    recorder.run(hooks=[lambda step, state: seen.append((step, state))])
    assert seen == [(s, s) for s in range(1, 13)]


def test_nothing_to_do() -> None:
    recorder = Recorder()
    assert recorder.run(first=12) == 12
    assert recorder.events == []


@pytest.mark.parametrize("at", [4, 6, 12])
def test_told_to_stop_it_saves_what_it_has_and_returns(at: int) -> None:
    """Between checkpoints, at one, and at the end: one checkpoint of the step, and its lines before it."""
    recorder = Recorder()
    assert recorder.run(stop=lambda step: step == at) == at
    saves = [value for name, value in recorder.events if name == "save"]
    assert saves == [(s, s) for s in (6, 12) if s < at] + [(at, at)]
    assert [line["step"] for line in recorder.lines] == [s for s in (3, 6, 9, 12) if s <= at]


def test_a_state_that_is_not_finite_is_not_saved_where_it_stops() -> None:
    recorder = Recorder(bad={1: 4})
    with pytest.raises(DivergedError, match="step 4"):
        recorder.run(stop=lambda step: step == 5)
    assert not [name for name, _ in recorder.events if name == "save"]
