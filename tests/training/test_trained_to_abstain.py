"""Members that are trained to abstain: heads, warm-up, running targets, restarts, and what reaches the files."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sc_jax import config as config_lib
from sc_jax import models, ops
from sc_jax.config import Augmentation, Config, Ensemble, MemberGrid
from sc_jax.data.pipelines import Targets, epoch_order, model_inputs, train_transform
from sc_jax.files import InputError
from sc_jax.models.heads import HEADS
from sc_jax.ops import abstention_losses, losses
from sc_jax.ops.sparsemax import entmax_loss
from sc_jax.predict import predict
from sc_jax.predictions import load
from sc_jax.train import train
from sc_jax.training import checkpoints, objectives, parallel, state, step
from sc_jax.training import job as job_lib
from sc_jax.training.objectives import Beside

CONFIG = Path(__file__).parents[2] / "experiments" / "abstention" / "config.py"
N, BATCH, K, SEEDS, STEPS = 40, 8, 3, (5, 11), 9
ALL = (
    *("selective_net=0.7", "selective_net_released=0.7", "deep_gamblers=2", "self_adaptive=0.8"),
    *("selective_net_entropy=0.1", "deep_gamblers_entropy=0.1", "self_adaptive_entropy=0.1"),
    *("entropy_minimisation=0.1", "aurc=0.5", "sele=0.5", "entmax=1.5", "entmax=2"),
)


@pytest.fixture(scope="module")
def examples() -> tuple[jax.Array, jax.Array]:
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.integers(0, 256, (N, 6, 6)), jnp.uint8), jnp.asarray(rng.integers(0, K, N), jnp.int32)


def network(grid: MemberGrid, name: str = "mlp") -> models.Model:
    heads = objectives.heads(objectives.named(grid.objectives, K))
    return models.build(name, input_shape=(6, 6, 1), num_classes=K, hidden=(7, 5), heads=heads)


def fitted(examples: Any, grid: MemberGrid, name: str = "mlp", steps: int = STEPS) -> state.TrainState:
    """The state after some steps of SGD."""
    model, optimizer, mesh = network(grid, name), optax.sgd(0.3), parallel.data_mesh()
    wanted = objectives.named(grid.objectives, K)
    how = {"log_every": 3, "objectives": wanted, "total_steps": STEPS}
    one = step.make_step(model, optimizer, train_transform((0.5,), (0.5,)), mesh, **how)
    advance, members = step.from_memory(one, mesh, BATCH), state.make_members(grid.tags)
    kept = N if objectives.has_targets(wanted) else 0
    current = parallel.replicate(state.initial_state(model, optimizer, members, kept), mesh)
    for s in range(steps):
        order = epoch_order(members.seed_key, s // (N // BATCH), N)
        current, _ = advance(current, members, order, *examples)
    return current


@pytest.fixture(scope="module")
def together(examples: Any) -> tuple[state.TrainState, list[dict[str, Any]]]:
    grid = MemberGrid((0.0,), SEEDS, ALL)
    return fitted(examples, grid), grid.tags


def of_member(tree: Any, m: int) -> list[np.ndarray]:
    return [np.asarray(leaf[m]) for leaf in jax.tree.leaves(tree)]


def test_cross_entropy_is_not_moved_by_heads_beside_it(examples: Any, together: Any) -> None:
    trained, _ = together
    alone = fitted(examples, MemberGrid((0.0,), SEEDS))
    for m in range(len(SEEDS)):
        for part in alone.params:
            for a, b in zip(of_member(alone.params[part], m), of_member(trained.params[part], m), strict=True):
                np.testing.assert_allclose(a, b, atol=2e-5)


def test_every_objective_does_something_of_its_own(together: Any) -> None:
    trained, tags = together
    rows = [m for m, tag in enumerate(tags) if tag["seed"] == SEEDS[0]]
    heads = [np.concatenate([leaf.ravel() for leaf in of_member(trained.params["hidden"], m)]) for m in rows]
    same = np.array([[np.allclose(a, b, atol=1e-7) for b in heads] for a in heads])
    np.testing.assert_array_equal(same, np.eye(len(rows), dtype=bool))


@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_members_equal_runs_of_their_own_written_out(examples: Any, name: str) -> None:
    """Self-adaptive training and SelectiveNet, step by step without the house's objectives."""
    chosen = ("self_adaptive=0.8", "selective_net=0.7")[: 1 if name == "cnn" else 2]  # a CNN takes long to compile
    grid = MemberGrid((0.0,), SEEDS[:1], chosen)
    trained = fitted(examples, grid, name)
    model, members = network(grid, name), state.make_members(grid.tags)
    images, labels = examples
    for m, text in enumerate(chosen, 1):
        params, model_state = model.init(jax.random.fold_in(jax.random.key(SEEDS[0]), 0))
        running = np.ones(N, np.float32)

        @jax.jit
        def gradient(params: Any, x: Any, y: Any, t: Any, text: str = text, model_state: Any = model_state) -> Any:
            def loss(params: Any) -> Any:
                found = model.apply(params, model_state, x, train=True)[0]
                if text.startswith("self"):
                    return jnp.mean(abstention_losses.self_adaptive_loss(found["logits"], found["abstain_logit"], y, t))
                given = (found[key] for key in ("logits", "selection_logit", "auxiliary_logits"))
                return jnp.mean(abstention_losses.selective_net_loss(*given, y, 0.7))

            def plain(params: Any) -> Any:
                logits = model.apply(params, model_state, x, train=True)[0]["logits"]
                return jnp.mean(losses.smoothed_cross_entropy(logits, y, 0.0)), logits

            warm, logits = jax.grad(plain, has_aux=True)(params)
            return jax.grad(loss)(params), warm, logits

        for s in range(STEPS):
            order = epoch_order(members.seed_key, s // (N // BATCH), N)[0]
            rows = np.asarray(order[s % (N // BATCH) * BATCH :][:BATCH])
            x, y = model_inputs(images[rows], (0.5,), (0.5,)), labels[rows]
            warming = text.startswith("self") and s / STEPS < 0.5
            if text.startswith("self") and not warming:
                _, _, logits = gradient(params, x, y, running[rows])
                p = np.asarray(jax.nn.softmax(logits))[np.arange(BATCH), np.asarray(y)]
                running[rows] = 0.8 * running[rows] + 0.2 * p
            after, warm, _ = gradient(params, x, y, running[rows])
            params = jax.tree.map(lambda p, g: p - 0.3 * g, params, warm if warming else after)
        for a, b in zip(jax.tree.leaves(params), of_member(trained.params, m), strict=True):
            np.testing.assert_allclose(a, b, atol=5e-5)
        np.testing.assert_allclose(trained.target[m], running, atol=2e-5)


def test_targets_stay_in_the_warm_up_and_of_members_without(examples: Any, together: Any) -> None:
    trained, tags = together
    adaptive = np.array([str(tag.get("objective", "")).startswith("self_adaptive") for tag in tags])
    np.testing.assert_array_equal(trained.target[~adaptive], 1)
    assert (np.asarray(trained.target)[adaptive].min(axis=1) < 1).all()
    assert ((np.asarray(trained.target) >= 0) & (np.asarray(trained.target) <= 1)).all()
    grid = MemberGrid((0.0,), SEEDS[:1], ("self_adaptive=0.8",))
    np.testing.assert_array_equal(fitted(examples, grid, steps=STEPS // 2).target, 1)
    assert fitted(examples, MemberGrid((0.0,), SEEDS[:1], ("deep_gamblers=2",)), steps=1).target is None


def test_a_warm_up_needs_the_length_of_training() -> None:
    grid = MemberGrid((0.0,), SEEDS, ("deep_gamblers=2",))
    wanted = objectives.named(grid.objectives, K)
    with pytest.raises(ValueError, match="warm-up"):
        step.make_step(
            network(grid),
            optax.sgd(0.1),
            train_transform((0.5,), (0.5,)),
            parallel.data_mesh(),
            log_every=1,
            objectives=wanted,
        )


# Each objective by its definition


@pytest.fixture(scope="module")
def batch() -> tuple[jax.Array, jax.Array, Beside]:
    rng = np.random.default_rng(2)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape, scale=2), jnp.float32)  # noqa: E731
    beside = Beside(draw(BATCH), draw(BATCH), draw(BATCH, K), jnp.asarray(rng.uniform(size=BATCH), jnp.float32), 0.6)
    return draw(BATCH, K), jnp.asarray(rng.integers(0, K, BATCH), jnp.int32), beside


def value(text: str, batch: Any, **changes: Any) -> jax.Array:
    logits, label, beside = batch
    wanted = objectives.named([text], K)
    given = (wanted, jnp.int32(1), logits, Targets(label), jnp.float32(0.7), objectives.NOTHING)
    return objectives.loss(*given, beside._replace(**changes))


DEFINITIONS = {
    "deep_gamblers=2": lambda v, y, b: abstention_losses.gambler_loss(v, b.abstain_logit, y, 2.0),
    "self_adaptive=0.8": lambda v, y, b: abstention_losses.self_adaptive_loss(v, b.abstain_logit, y, b.target),
    "selective_net=0.7": lambda v, y, b: abstention_losses.selective_net_loss(
        v, b.selection_logit, b.auxiliary_logits, y, 0.7
    ),
    "selective_net_released=0.7": lambda v, y, b: abstention_losses.selective_net_loss(
        v, b.selection_logit, b.auxiliary_logits, y, 0.7, normalise_by_coverage=False
    ),
    "deep_gamblers_entropy=0.1": lambda v, y, b: (
        abstention_losses.gambler_loss(v, b.abstain_logit, y, 2.2) + 0.1 * abstention_losses.softmax_entropy(v)
    ),
    "self_adaptive_entropy=0.1": lambda v, y, b: (
        abstention_losses.self_adaptive_loss(v, b.abstain_logit, y, b.target)
        + 0.1 * abstention_losses.softmax_entropy(v)
    ),
    "selective_net_entropy=0.1": lambda v, y, b: (
        abstention_losses.selective_net_loss(v, b.selection_logit, b.auxiliary_logits, y, 0.8)
        + 0.1 * abstention_losses.softmax_entropy(v)
    ),
    "entropy_minimisation=0.1": lambda v, y, b: (
        losses.smoothed_cross_entropy(v, y, 0.0) + 0.1 * abstention_losses.softmax_entropy(v)
    ),
    "aurc=0.5": lambda v, y, b: abstention_losses.ranked_cross_entropy(v, y, 0.5),
    "sele=0.5": lambda v, y, b: abstention_losses.ranked_cross_entropy(v, y, 0.5, estimator="sele"),
    "entmax=1.5": lambda v, y, b: entmax_loss(v, y, 1.5),
    "entmax=2": lambda v, y, b: entmax_loss(v, y, 2.0),
}


@pytest.mark.parametrize("text", DEFINITIONS)
def test_a_loss_of_ops_is_called_with_the_strength(text: str, batch: Any) -> None:
    np.testing.assert_allclose(value(text, batch), DEFINITIONS[text](*batch[:2], batch[2]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("text", "share"), [("deep_gamblers=2", 1 / 3), ("self_adaptive=0.8", 1 / 2)])
def test_in_its_warm_up_it_is_cross_entropy_of_the_classes(text: str, share: float, batch: Any) -> None:
    plain = losses.smoothed_cross_entropy(*batch[:2], 0.0)
    np.testing.assert_allclose(value(text, batch, progress=share - 0.01), plain, rtol=1e-6)
    assert not np.allclose(value(text, batch, progress=share + 0.01), plain)


@pytest.mark.parametrize(
    "text", ["selective_net=1", "selective_net=0", "deep_gamblers=0.9", "self_adaptive=1", "entmax=0.5", "aurc=1"]
)
def test_strengths_outside_their_range_are_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"members\.objectives"):
        objectives.named([text], K)


# Through the doors


def small(**overrides: str) -> Config:
    """Of the smoke variant: 600 examples, 12 steps, with running targets in half of them."""
    given = {
        "model.hidden": "(5,)",
        "data.train_examples": "600",
        "training.batch_size": "50",
        "training.checkpoint_every": "5",
    }
    config = config_lib.load(f"{CONFIG}:smoke", {**given, **overrides})
    chosen = ("self_adaptive=0.9", "deep_gamblers=2.2", "selective_net=0.8")
    return dataclasses.replace(config, members=MemberGrid((0.0,), (0, 1), chosen), primary=())


def test_a_run_taken_up_again_ends_with_the_same_bits(tmp_path: Path) -> None:
    """Stopped within the second half, where targets move, and restored from disk; the targets are in the checkpoint."""
    config = small()
    job, mesh = job_lib.build(config), parallel.data_mesh()
    assert (job.total_steps, job.examples_with_targets) == (12, 600)
    made = job.model, job.optimizer, job.members, job.examples_with_targets
    ends = []
    for stops in ((), (4, 9)):
        current = parallel.replicate(state.initial_state(*made), mesh)
        with checkpoints.Checkpoints(tmp_path / f"{len(stops)}", {}) as saved:
            for first, last in itertools.pairwise((0, *stops, 12)):
                if first:
                    current = saved.restore(first, parallel.placed(state.shape_of_state(*made), mesh))
                with job_lib.stepping(job, mesh, first) as advance:
                    for s in range(first, last):
                        current, _ = advance(current, s)
                saved.save(last, current)
        ends.append(checkpoints.leaf_hashes(current))
    assert ends[0] == ends[1]
    assert any("target" in name for name in ends[0])
    assert np.asarray(current.target).min() < 1


def test_files_hold_the_confidence_that_a_member_trained(tmp_path: Path) -> None:
    config = small()
    train(config, tmp_path)
    predict(config, tmp_path)
    job = job_lib.build(config)
    with job_lib.open_checkpoints(job, tmp_path) as saved:
        made = job.model, job.optimizer, job.members, job.examples_with_targets
        trained = saved.restore(12, parallel.placed(state.shape_of_state(*made), parallel.data_mesh()))
    split = job.dataset.splits["validation"]
    outputs = models.member_outputs(
        job.model, trained.params, trained.model_state, job.evaluation_transform(split.inputs), ("logits", *HEADS[:2])
    )
    for m, (tag, name) in enumerate(zip(job.tags, job.names, strict=True)):
        file = load(tmp_path / "predictions" / name / "validation.npz")
        np.testing.assert_allclose(file.logits, outputs["logits"][m], atol=1e-4)
        if "alpha" in tag:
            assert file.confidence is None
        elif tag["objective"].startswith("selective_net"):
            np.testing.assert_allclose(file.confidence, outputs["selection_logit"][m], atol=1e-4)
        else:
            a = np.asarray(outputs["abstain_logit"][m], np.float64)
            expected = ops.abstention_log_odds(np.asarray(outputs["logits"][m]), a)
            np.testing.assert_allclose(file.confidence, expected, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"augmentation": Augmentation(mixup=0.2)}, "augmentation.mixup: self_adaptive is of examples with one label"),
        ({"ensemble": Ensemble("batch_ensemble", members=2)}, "heads of abstention are of one network"),
    ],
)
def test_what_does_not_go_together_is_refused(changes: dict[str, Any], problem: str) -> None:
    config = dataclasses.replace(small(), **changes)
    config = dataclasses.replace(config, prediction=dataclasses.replace(config.prediction, features=False))
    with pytest.raises(InputError, match=problem):
        job_lib.build(config)


def test_a_network_without_heads_is_refused() -> None:
    config = small(**{"model.name": "lstm", "model.hidden": "()"})
    with pytest.raises(InputError, match=r"model\.name: lstm has no heads .*takes them: mlp, tabular_mlp, cnn"):
        job_lib.build(config)
