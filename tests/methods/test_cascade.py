"""Cascades: windows and their limits, equality with the recursive definition, search by brute force, execution by batches."""

from __future__ import annotations

import dataclasses
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis import strategies as st

from sc_jax import files, ops
from sc_jax.files import InputError
from sc_jax.methods import cascade
from sc_jax.methods.cascade import EMPTY, WHOLE, Task
from sc_jax.predictions import Predictions

COST = (1.0, 3.0, 5.0)


def model(
    seed: int, n: int = 400, k: int = 4, quality: float = 2.0, members: int = 1, first_id: int = 0
) -> Predictions:
    """Logits of one model; all of a `first_id` are of the same examples."""
    label = np.random.default_rng(first_id + 1).integers(0, k, n)
    logits = np.random.default_rng(1000 + seed + first_id).normal(size=(members, n, k)) + quality * np.eye(k)[label]
    return Predictions(label, logits if members > 1 else logits[0], np.arange(first_id, first_id + n))


def three(combine: str = "ensemble", score: str = "msp", first_id: int = 0, n: int = 400) -> cascade.Stages:
    models = [model(seed, n=n, quality=1.5 + seed / 2, first_id=first_id) for seed in range(3)]
    return cascade.stages(models, COST, score=score, combine=combine)


def two(combine: str = "ensemble", first_id: int = 0, n: int = 400) -> cascade.Stages:
    return cascade.stages(
        [model(0, n=n, first_id=first_id), model(1, n=n, first_id=first_id)], COST[:2], combine=combine
    )


# --- stages ---


def test_stages_are_running_ensembles_or_the_models_alone() -> None:
    models = [model(seed) for seed in range(3)]
    ensemble, alone = (cascade.stages(models, COST, combine=combine) for combine in cascade.COMBINE)
    for j in range(3):
        mean = ops.ensemble_log_probabilities(np.stack([m.logits for m in models[: j + 1]]))
        np.testing.assert_allclose(ensemble.score[j], ops.msp(mean), rtol=1e-9)
        np.testing.assert_array_equal(ensemble.prediction[j], ops.predicted_class(mean))
        np.testing.assert_array_equal(alone.score[j], ops.msp(models[j].logits))
    np.testing.assert_array_equal(ensemble.error, ensemble.prediction != models[0].label)


@pytest.mark.parametrize("score", cascade.MEAN_OF_SCORES)
def test_scores_of_logits_are_means_of_members_scores(score: str) -> None:
    given = three(score=score)
    of = getattr(ops, score)
    each = [of(model(seed, quality=1.5 + seed / 2).logits) for seed in range(3)]
    np.testing.assert_allclose(given.score[2], np.mean(each, axis=0), rtol=1e-12)


def test_a_stage_may_be_a_group_of_members() -> None:
    group = model(1, members=2)
    given = cascade.stages([model(0), group], COST[:2])
    everyone = np.concatenate([model(0).logits[None], group.logits])
    np.testing.assert_allclose(given.score[1], ops.msp(ops.ensemble_log_probabilities(everyone)), rtol=1e-12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: dataclasses.replace(p, example_id=p.example_id[::-1]), "example_id"),
        (lambda p: dataclasses.replace(p, label=(p.label + 1) % 4), "label"),
        (lambda p: dataclasses.replace(p, logits=p.logits[:, :3]), "classes"),
        (lambda p: dataclasses.replace(p, is_ood=np.zeros(len(p), bool)), "is_ood"),
        (lambda p: dataclasses.replace(p, weight=np.ones(len(p))), "weight"),
    ],
)
def test_models_of_other_examples_are_refused_by_name(change: object, message: str) -> None:
    other = dataclasses.replace(change(model(1)), source="other.npz")
    with pytest.raises(InputError, match=f"other.npz.*{message}"):
        cascade.stages([model(0), other], COST[:2])


def test_examples_may_be_named_in_bytes_by_one_model_and_in_text_by_another() -> None:
    text = np.array([f"é{i:03}" for i in range(len(model(0)))])
    named = [
        dataclasses.replace(model(seed), example_id=ids)
        for seed, ids in ((0, text), (1, np.char.encode(text, "utf-8")))
    ]
    plain = cascade.stages([model(0), model(1)], COST[:2])
    np.testing.assert_array_equal(cascade.stages(named, COST[:2]).score, plain.score)
    with pytest.raises(InputError, match="'example_id' differs"):
        cascade.stages([named[0], dataclasses.replace(named[1], example_id=named[1].example_id[::-1])], COST[:2])


@pytest.mark.parametrize("cost", [(1.0,), (1.0, 0.0), (1.0, -2.0), (1.0, math.nan), (1.0, math.inf)])
def test_costs_that_are_missing_or_not_positive_are_refused(cost: tuple[float, ...]) -> None:
    with pytest.raises(InputError, match="cost"):
        cascade.stages([model(0), model(1)], cost)


def test_other_mistakes_are_refused() -> None:
    with pytest.raises(InputError, match="a stage at least"):
        cascade.stages([], ())
    with pytest.raises(InputError, match="combine"):
        cascade.stages([model(0), model(1)], COST[:2], combine="mean")
    with pytest.raises(InputError, match="fitted or of members"):
        cascade.stages([model(0), model(1)], COST[:2], score="max_logit_pnorm")
    probabilities = dataclasses.replace(model(0), log_probabilities=True)
    with pytest.raises(InputError, match="needs logits"):
        cascade.stages([probabilities, model(1)], COST[:2], score="energy")


# --- windows ---


def test_the_whole_window_is_the_ensemble_and_the_empty_one_the_single_model() -> None:
    given = three()
    whole, empty = (cascade.follow([window] * 2, given) for window in (WHOLE, EMPTY))
    for outcome, row, cost in ((whole, 2, sum(COST)), (empty, 0, COST[0])):
        np.testing.assert_array_equal(outcome.score, given.score[row])
        np.testing.assert_array_equal(outcome.prediction, given.prediction[row])
        np.testing.assert_array_equal(outcome.error, given.error[row])
        np.testing.assert_array_equal(outcome.cost, np.full(400, cost))


def test_a_wide_window_is_whole_also_beyond_the_calibration_scores() -> None:
    score = np.arange(10.0)
    assert cascade.window_around(score, 4.0, 1) == WHOLE
    assert cascade.window_around(score, 4.0, 0) == EMPTY
    assert cascade.window_around(score, 1.0, 0.2) == (-math.inf, 2.0)  # clipped on one side


@drawn(
    st.lists(st.integers(0, 6), min_size=1, max_size=30),
    st.floats(-1, 7),
    st.sampled_from((0, 0.1, 0.25, 0.5)),
)
@settings(max_examples=100, deadline=None)
def test_a_window_holds_its_share_on_either_side_of_the_threshold(
    scores: list[int], center: float, width: float
) -> None:
    score = np.array(scores, float) + np.arange(len(scores)) * 1e-6  # no ties
    low, high = cascade.window_around(score, center, width)
    inside = (score >= low) & (score <= high)
    assert (inside & (score < center)).sum() <= width * len(score)
    assert (inside & (score >= center)).sum() <= width * len(score)
    wider = cascade.window_around(score, center, width + 0.1)
    assert (((score >= wider[0]) & (score <= wider[1])) | ~inside).all()


def test_ends_of_a_window_are_passed_on() -> None:
    np.testing.assert_array_equal(
        cascade.exit_stage([(1.0, 2.0)], np.array([[0.9, 1.0, 2.0, 2.1], [0, 0, 0, 0]])), [0, 1, 1, 0]
    )


def test_single_thresholds_pass_on_the_least_confident() -> None:
    score = np.random.default_rng(0).normal(size=50)
    low, high = cascade.least_confident(score, 0.2)
    passed = (score >= low) & (score <= high)
    assert passed.sum() == 10
    assert score[passed].max() < score[~passed].min()
    assert cascade.least_confident(score, 0) == EMPTY
    assert cascade.least_confident(score, 1) == WHOLE


def test_more_stages_follow_the_definition_from_the_deepest() -> None:
    given = three()
    windows = [(0.5, 2.0), (1.0, 3.0)]
    out = given.score[2]
    for j in (1, 0):
        low, high = windows[j]
        leaves = (given.score[j] > high) | (given.score[j] < low)
        out = np.where(leaves, given.score[j], out)
    np.testing.assert_array_equal(cascade.follow(windows, given).score, out)


def test_cost_is_that_of_the_stages_run_and_grows_with_the_window() -> None:
    given, last = two(), 0.0
    center = float(np.median(given.score[0]))
    for width in (0, 0.05, 0.1, 0.2, 0.4, 1):
        outcome = cascade.follow([cascade.window_around(given.score[0], center, width)], given)
        mean = outcome.cost.mean()
        assert mean == pytest.approx(COST[0] + COST[1] * (outcome.stage == 1).mean())
        assert mean >= last
        last = mean
    assert last == COST[0] + COST[1]


def test_who_is_passed_on_depends_on_the_stages_before_alone() -> None:
    given = three()
    other = given._replace(score=np.stack([*given.score[:2], -given.score[2]]))
    windows = [(0.5, 2.0), (1.0, 3.0)]
    np.testing.assert_array_equal(cascade.follow(windows, given).stage, cascade.follow(windows, other).stage)


def test_nothing_changes_where_the_second_stage_stays_on_the_side_of_the_threshold() -> None:
    given, threshold = two(), 1.0
    beside = np.where(given.score[0] >= threshold, np.maximum(given.score[1], threshold), threshold - 1)
    given = given._replace(score=np.stack([given.score[0], beside]))
    outcome = cascade.follow([(0.0, 2.0)], given)
    assert (outcome.stage == 1).any()
    np.testing.assert_array_equal(outcome.score >= threshold, given.score[0] >= threshold)


# --- fitting ---


@pytest.mark.parametrize("task", [Task("risk", 0.05), Task("coverage", 0.7), Task("tpr", 0.8)])
def test_windows_lie_around_the_threshold_of_each_stage_and_the_decision_is_refitted(task: Task) -> None:
    calibration, test = three(), three(first_id=10_000)
    policy = cascade.fit(calibration, task, (0.1, 0.05))
    for j, width in enumerate((0.1, 0.05)):
        center = task.threshold(calibration.score[j], calibration.error[j], None)
        assert policy.centers[j] == center
        assert policy.windows[j] == cascade.window_around(calibration.score[j], center, width)
    merged = cascade.follow(policy.windows, calibration)
    assert policy.threshold == task.threshold(merged.score, merged.error, None)
    accepted = merged.score >= policy.threshold
    if task.kind == "risk":
        assert merged.error[accepted].mean() <= 0.05
    else:
        assert accepted.sum() == math.ceil(task.target * 400)
    outcome = cascade.apply(policy, test)
    np.testing.assert_array_equal(outcome.stage, cascade.exit_stage(policy.windows, test.score))


def test_a_single_threshold_is_a_window_without_a_lower_end() -> None:
    policy = cascade.fit(two(), Task("coverage", 0.8), 0.2, kind="single_threshold")
    assert policy.windows == (cascade.least_confident(two().score[0], 0.2),)
    assert policy.windows[0][0] == -math.inf
    with pytest.raises(ValueError, match="not adapted"):
        cascade.adapt(policy, two(first_id=10_000))


def test_windows_move_to_where_the_threshold_lies_among_new_examples() -> None:
    calibration, test = two(n=1000), two(first_id=10_000, n=1000)
    shifted = test._replace(score=test.score - 1.0)
    policy = cascade.fit(calibration, Task("coverage", 0.5), 0.1)
    moved = cascade.adapt(policy, shifted)
    passed = (cascade.apply(moved, shifted).stage == 1).mean()
    assert passed == pytest.approx(0.2, abs=2e-3)
    assert moved.centers == policy.centers
    assert moved.threshold == policy.threshold


def test_ood_examples_are_not_fitted_to() -> None:
    is_ood = np.arange(400) % 2 == 1
    known = cascade.subset(two(), ~is_ood)
    given = two()._replace(is_ood=is_ood)
    task = Task("tpr", 0.9)
    assert cascade.fit(given, task).windows == cascade.fit(known, task).windows
    policy = cascade.fit(given, task)
    assert policy.threshold == cascade.fit(known, task).threshold


def test_what_it_was_fitted_on_is_not_reported_on() -> None:
    policy = cascade.fit(two(), Task("coverage", 0.8))
    with pytest.raises(InputError, match="fitted on these very examples"):
        cascade.apply(policy, two())
    with pytest.raises(InputError, match="fitted on these very examples"):
        cascade.apply(policy, cascade.subset(two(), np.arange(400)[::-1]))
    with pytest.raises(InputError, match="fitted to msp"):
        cascade.apply(policy, two(first_id=10_000)._replace(score_name="energy"))
    with pytest.raises(InputError, match="2 stages"):
        cascade.apply(policy, three(first_id=10_000))


def test_a_task_that_cannot_be_met_is_refused() -> None:
    given = two()
    with pytest.raises(ValueError, match="outside the calibration scores"):
        cascade.fit(given, Task("threshold", float(given.score.max()) + 1))
    with pytest.raises(ValueError, match="no threshold"):
        cascade.fit(given._replace(error=np.ones_like(given.error)), Task("risk", 0.05))
    with pytest.raises(ValueError, match="there are 'risk'"):
        cascade.fit(given, Task("accuracy", 0.9))
    with pytest.raises(ValueError, match="half_widths"):
        cascade.fit(three(), Task("coverage", 0.8), (0.1,))
    with pytest.raises(ValueError, match="kind"):
        cascade.fit(given, Task("coverage", 0.8), kind="quantile")


@pytest.mark.parametrize("width", [0, 0.1, 1])
def test_a_policy_is_written_and_read(width: float, tmp_path: object) -> None:
    policy = cascade.fit(two(), Task("risk", 0.1), width)
    files.write_json(tmp_path / "policy.json", policy.as_json())
    assert cascade.Policy.from_json(files.read_json(tmp_path / "policy.json")) == policy
    with pytest.raises(InputError, match="not a cascade's policy"):
        cascade.Policy.from_json({"windows": [[0, 1]]})


# --- search ---


@pytest.mark.parametrize("make", [two, three])
def test_a_search_counts_as_following_each_policy_does(make: object) -> None:
    given = make(combine="replace", n=60)
    given = given._replace(score=np.round(given.score, 1))  # ties
    thresholds = np.quantile(given.score[-1], (0.1, 0.5, 0.9))
    windows = [cascade.window_grid(score, 4) for score in given.score[:-1]]
    table = cascade.search(given, thresholds, windows)
    assert len(table.cost) == 3 * math.prod(len(w) for w in windows)
    seen = set()
    for p in range(len(table.cost)):
        outcome = cascade.follow(table.windows[p], given)
        accept = outcome.score >= table.threshold[p]
        assert table.accepted[p] == accept.sum()
        assert table.errors[p] == (accept & outcome.error).sum()
        assert table.cost[p] == pytest.approx(outcome.cost.mean())
        seen.add((table.threshold[p], *map(tuple, table.windows[p])))
    every = itertools.product(thresholds, *([tuple(w) for w in of_stage] for of_stage in windows))
    assert seen == set(every)


def test_windows_of_a_grid() -> None:
    score = np.arange(20.0)
    grid = cascade.window_grid(score, 4)
    assert tuple(grid[0]) == EMPTY
    assert WHOLE in {tuple(w) for w in grid}
    shares = {round(float(((score >= low) & (score <= high)).mean()), 6) for low, high in grid}
    assert shares == {0, 0.25, 0.5, 0.75, 1}
    around = cascade.window_grid(score, 5, around=np.array([10.0]))
    assert {tuple(w) for w in around} == {cascade.window_around(score, 10.0, i / 10) for i in range(11)}


@pytest.mark.parametrize("task", [Task("risk", 0.1), Task("coverage", 0.6)])
def test_best_and_front_by_brute_force(task: Task) -> None:
    given = two(n=80)
    table = cascade.search(
        given, np.quantile(given.score[1], np.linspace(0, 1, 9)), [cascade.window_grid(given.score[0], 5)]
    )
    worth = cascade.value(table, task)
    for row in np.random.default_rng(0).integers(0, len(worth), 50):
        if task.kind == "risk":
            meets = table.accepted[row] > 0 and table.errors[row] <= 0.1 * table.accepted[row]
            assert worth[row] == (table.accepted[row] / 80 if meets else -math.inf)
        else:
            meets = table.accepted[row] >= 48
            assert worth[row] == (-table.errors[row] / table.accepted[row] if meets else -math.inf)
    chosen = cascade.best(table, task, 2.0)
    assert table.cost[chosen] <= 2.0
    assert worth[chosen] == worth[table.cost <= 2.0].max()
    rows = cascade.front(table, task)
    dominated = [any(worth[j] >= worth[i] and table.cost[j] < table.cost[i] for j in range(len(worth))) for i in rows]
    assert not any(dominated)
    for i in np.flatnonzero(worth > -np.inf):  # the front has something as good for no more
        assert any(worth[r] >= worth[i] and table.cost[r] <= table.cost[i] for r in rows)
    assert cascade.best(table, task, 0.5) is None


def test_a_search_of_one_stage_is_that_model_at_every_threshold() -> None:
    given = cascade.stages([model(0, n=50)], COST[:1])
    thresholds = np.quantile(given.score[0], (0.2, 0.8))
    table = cascade.search(given, thresholds, [])
    assert table.windows.shape == (2, 0, 2)
    for row, threshold in enumerate(thresholds):
        accept = given.score[0] >= threshold
        assert (table.accepted[row], table.errors[row]) == (accept.sum(), (accept & given.error[0]).sum())
    np.testing.assert_array_equal(table.cost, COST[0])


@pytest.mark.parametrize("make", [two, three])
def test_ood_examples_are_counted_apart_in_a_search(make: object) -> None:
    given = make(n=90)
    is_ood = np.arange(90) % 3 == 0
    known, outside = cascade.subset(given, ~is_ood), cascade.subset(given, is_ood)
    thresholds = np.quantile(given.score[-1], (0.2, 0.6))
    windows = [cascade.window_grid(score, 3) for score in given.score[:-1]]
    table, alone = (
        cascade.search(given._replace(is_ood=is_ood), thresholds, windows),
        cascade.search(known, thresholds, windows),
    )
    assert (table.n, table.n_ood, alone.n_ood) == (60, 30, 0)
    for field in ("accepted", "errors", "cost", "windows"):
        np.testing.assert_array_equal(getattr(table, field), getattr(alone, field))
    of_outside = [
        (cascade.follow(w, outside).score >= t).sum() for w, t in zip(table.windows, table.threshold, strict=True)
    ]
    np.testing.assert_array_equal(table.accepted_ood, of_outside)
    enough = table.accepted >= 30
    np.testing.assert_allclose(
        cascade.value(table, Task("tpr", 0.5)), np.where(enough, -table.accepted_ood / 30, -np.inf), rtol=1e-12
    )
    lost = (table.errors + table.accepted_ood) / np.maximum(1, table.accepted + table.accepted_ood)
    np.testing.assert_allclose(cascade.value(table, Task("scod", 0.5)), np.where(enough, -lost, -np.inf), rtol=1e-12)
    with pytest.raises(ValueError, match="is OOD"):
        cascade.value(alone, Task("tpr", 0.5))
    with pytest.raises(ValueError, match="a search is for"):
        cascade.value(table, Task("threshold", 0.5))


def test_no_cascade_is_better_than_the_oracle() -> None:
    given = cascade.stages([model(seed, n=100, quality=1.0) for seed in range(2)], COST[:2])
    threshold = 0.0
    bound = cascade.oracle(given, threshold)
    accept = bound.score >= threshold
    right, wrong = (accept & ~bound.error).sum(), (accept & bound.error).sum()
    table = cascade.search(given, np.array([threshold]), [cascade.window_grid(given.score[0], 20)])
    assert (table.accepted - table.errors <= right).all()
    assert (table.errors >= wrong).all()
    assert (table.accepted - table.errors).max() < right  # a bound that is not attained here


def test_reordering_needs_stages_that_stand_for_themselves() -> None:
    given = three(combine="replace")
    turned = cascade.reordered(given, (2, 0))
    np.testing.assert_array_equal(turned.score, given.score[[2, 0]])
    np.testing.assert_array_equal(turned.cost, [5.0, 1.0])
    with pytest.raises(ValueError, match="order"):
        cascade.reordered(three(), (2, 0))


# --- execution ---


@pytest.mark.parametrize("combine", cascade.COMBINE)
@pytest.mark.parametrize("batch_size", [7, 64, 1000])
def test_running_a_cascade_decides_as_its_outputs_say(combine: str, batch_size: int) -> None:
    models = [model(0), model(1, members=2), model(2)]
    calibration = cascade.stages(
        [model(0, first_id=9000), model(1, members=2, first_id=9000), model(2, first_id=9000)], COST, combine=combine
    )
    policy = cascade.fit(calibration, Task("coverage", 0.7), 0.2)
    shapes: list[set[int]] = [set() for _ in models]
    rows_seen = np.zeros(3, int)

    def lookup(j: int) -> object:
        def outputs(rows: np.ndarray) -> np.ndarray:
            shapes[j].add(len(rows))
            rows_seen[j] += len(rows)
            return models[j].logits[..., rows, :]

        return outputs

    ran = cascade.predict(policy, [lookup(j) for j in range(3)], np.arange(400), COST, batch_size=batch_size)
    wanted = cascade.follow(policy.windows, cascade.stages(models, COST, combine=combine))
    for field in ("score", "prediction", "stage", "cost"):
        np.testing.assert_array_equal(getattr(ran, field), getattr(wanted, field), err_msg=field)
    assert all(shape == {batch_size} for shape in shapes)
    for j in range(3):  # no batch more than it takes
        assert rows_seen[j] == batch_size * math.ceil((wanted.stage >= j).sum() / batch_size)


def test_a_running_cascade_calls_no_stage_that_nothing_reaches() -> None:
    policy = dataclasses.replace(cascade.fit(two(), Task("coverage", 0.7)), windows=(EMPTY,))

    def never(_: np.ndarray) -> np.ndarray:
        raise AssertionError

    ran = cascade.predict(policy, [lambda rows: model(0).logits[rows], never], np.arange(400), COST[:2], batch_size=64)
    assert (ran.stage == 0).all()
    with pytest.raises(InputError, match="2 stages; 1 models"):
        cascade.predict(policy, [never], np.arange(400), COST[:1])
    with pytest.raises(InputError, match="2 stages; 3 models"):
        cascade.predict(policy, [never] * 3, np.arange(400), COST)


@pytest.mark.parametrize("combine", cascade.COMBINE)
def test_one_function_does_the_same_where_there_is_room(combine: str) -> None:
    models = [model(seed, n=50, quality=1.5 + seed / 2) for seed in range(3)]
    given = cascade.stages(models, COST, combine=combine)
    policy = cascade.fit(three(combine, first_id=9000), Task("coverage", 0.7), 0.2)
    tables = [jnp.asarray(m.logits, jnp.float32) for m in models]
    applies = [lambda rows, table=table: table[rows] for table in tables]
    wanted = cascade.follow(policy.windows, given)
    run = cascade.as_function(policy, applies, (50, 50))
    score, prediction, stage, overflow = run(jnp.arange(50))
    np.testing.assert_array_equal(stage, wanted.stage)
    np.testing.assert_array_equal(prediction, wanted.prediction)
    np.testing.assert_allclose(score, wanted.score, rtol=1e-4, atol=1e-5)
    assert overflow == 0
    # Without room, the first in the batch go on and the others stay; all are counted.
    _, _, stage, overflow = cascade.as_function(policy, applies, (3, 2))(jnp.arange(50))
    reached = np.flatnonzero(wanted.stage >= 1)
    assert len(reached) > 3
    assert set(np.flatnonzero(np.asarray(stage) >= 1)) == set(reached[:3])
    further = np.flatnonzero(np.isin(np.arange(50), reached[:3]) & (wanted.stage == 2))
    assert overflow == len(reached) - 3 + max(0, len(further) - 2)


def test_one_function_is_compiled_once() -> None:
    policy = cascade.fit(two(), Task("coverage", 0.7), 0.2)
    tables = [jnp.asarray(model(seed).logits, jnp.float32) for seed in range(2)]
    run = cascade.as_function(policy, [lambda rows, t=t: t[rows] for t in tables], (20,))
    with jax.log_compiles(False):
        run(jnp.arange(64))
        run(jnp.arange(64, 128))
    assert run._cache_size() == 1


def test_running_compiles_each_model_once_whatever_is_passed_on() -> None:
    """Also for a last batch that is not full, and for another number of inputs with another share that goes on."""
    tables = [jnp.asarray(model(seed).logits, jnp.float32) for seed in range(2)]
    traced = [0, 0]

    def network(j: int) -> object:
        def of(rows: jax.Array) -> jax.Array:
            traced[j] += 1
            return tables[j][rows]

        return jax.jit(of)

    networks = [network(0), network(1)]
    for width, rows in ((0.05, np.arange(400)), (0.3, np.arange(333))):
        policy = cascade.fit(two(first_id=9000), Task("coverage", 0.7), width)
        ran = cascade.predict(policy, networks, rows, COST[:2], batch_size=32)
        assert 0 < (ran.stage == 1).sum() < len(rows)
    assert traced == [1, 1]


def test_a_cascade_of_one_model_runs_as_that_model() -> None:
    policy = dataclasses.replace(cascade.fit(two(), Task("coverage", 0.7)), windows=(), models=("a",))
    assert cascade.Policy.from_json(policy.as_json()) == policy
    ran = cascade.predict(policy, [lambda rows: model(0).logits[rows]], np.arange(400), COST[:1], batch_size=64)
    wanted = cascade.apply(dataclasses.replace(policy, fitted_on=""), cascade.stages([model(0)], COST[:1]))
    for field in ("score", "prediction", "stage", "cost"):
        np.testing.assert_array_equal(getattr(ran, field), getattr(wanted, field), err_msg=field)


def test_times_are_of_each_model_and_of_the_cascade() -> None:
    policy, calls = cascade.fit(two(first_id=9000), Task("coverage", 0.7), 0.2), [[], []]

    def network(j: int) -> object:
        def of(rows: np.ndarray) -> np.ndarray:
            calls[j].append(len(rows))
            return model(j).logits[rows]

        return of

    told = cascade.timed(policy, [network(0), network(1)], np.arange(100), batch_size=32, rounds=1, single=5)
    given = cascade.subset(two(), np.arange(100))
    assert told.passed_on == (cascade.follow(policy.windows, given).stage > 0).mean()
    assert told.models_batched.shape == told.models_single.shape == (2,)
    assert min(*told.models_batched, *told.models_single, told.batched, told.single) > 0
    assert set(calls[0]) == set(calls[1]) == {32, 1}
    assert calls[0].count(1) == 2 * (5 + 5)  # two rounds, alone and in the cascade
