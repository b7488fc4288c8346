"""One program of many members equals each member alone, written out plainly."""

from __future__ import annotations

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sc_jax import models
from sc_jax.data.pipelines import epoch_order, scale
from sc_jax.ops.losses import smoothed_cross_entropy
from sc_jax.training import parallel, state, step

N, BATCH, EPOCHS = 40, 8, 2
ALPHAS, SEEDS = (0.0, 0.3), (5, 11)


@pytest.fixture(scope="module")
def examples() -> tuple[jax.Array, jax.Array]:
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.integers(0, 256, (N, 6, 6)), jnp.uint8), jnp.asarray(rng.integers(0, 3, N), jnp.int32)


def optimizer() -> optax.GradientTransformation:
    return step.make_optimizer(learning_rate=0.01, weight_decay=0.1, warmup_steps=2, total_steps=EPOCHS * N // BATCH)


def train(
    examples: tuple[jax.Array, jax.Array],
    alphas: tuple[float, ...],
    seeds: tuple[int, ...],
    name: str = "mlp",
    **options: Any,
) -> tuple[state.TrainState, list[state.Meters]]:
    model = models.build(name, image_shape=(6, 6, 1), num_classes=3, hidden=(7, 5), **options)
    members, _ = state.make_members(alphas, seeds)
    mesh = parallel.data_mesh()
    advance = step.make_step(model, optimizer(), mesh, batch_size=BATCH, log_every=3)
    current = parallel.replicate(state.initial_state(model, optimizer(), members), mesh)
    meters = []
    for s in range(EPOCHS * N // BATCH):
        order = epoch_order(members.seed_key, s // (N // BATCH), N)
        current, m = advance(current, members, order, *examples)
        meters.append(m)
    return current, meters


def by_hand(examples: tuple[jax.Array, jax.Array], alpha: float, seed: int, name: str, dropout: float) -> Any:
    """One member, one step at a time: no member axis, no donation, no meters."""
    model = models.build(name, image_shape=(6, 6, 1), num_classes=3, hidden=(7, 5), dropout=dropout)
    key = jax.random.key(seed)
    params, model_state = model.init(jax.random.fold_in(key, 0))
    tx = optimizer()
    opt_state = tx.init(params)
    images, labels = examples
    for s in range(EPOCHS * N // BATCH):
        epoch, place = divmod(s, N // BATCH)
        order = jax.random.permutation(jax.random.fold_in(jax.random.fold_in(key, 1), epoch), N)
        index = order[place * BATCH : (place + 1) * BATCH]

        def loss(params: Any, s: int = s, index: jax.Array = index) -> jax.Array:
            dropout_key = jax.random.fold_in(jax.random.fold_in(key, 2), s)
            outputs, _ = model.apply(params, model_state, scale(images[index]), train=True, key=dropout_key)
            return smoothed_cross_entropy(outputs["logits"], labels[index], alpha).mean()

        updates, opt_state = tx.update(jax.grad(loss)(params), opt_state, params)
        params = optax.apply_updates(params, updates)
    return params


@pytest.mark.parametrize(("name", "dropout"), [("mlp", 0.0), ("mlp", 0.2), ("cnn", 0.0), ("cnn", 0.2)])
def test_members_equal_training_by_hand(examples: Any, name: str, dropout: float) -> None:
    trained, _ = train(examples, ALPHAS, SEEDS, name, dropout=dropout)
    for m, (alpha, seed) in enumerate((a, s) for a in ALPHAS for s in SEEDS):
        expected = by_hand(examples, alpha, seed, name, dropout)
        chex.assert_trees_all_close(jax.tree.map(lambda leaf, m=m: leaf[m], trained.params), expected, atol=2e-5)


def test_members_of_a_seed_start_alike_and_members_of_other_seeds_do_not() -> None:
    model = models.build("mlp", image_shape=(6, 6, 1), num_classes=3, hidden=(7,), dropout=0.0)
    members, tags = state.make_members(ALPHAS, SEEDS)
    assert tags == [{"alpha": a, "seed": s} for a in ALPHAS for s in SEEDS]
    kernel = jax.tree.leaves(state.initial_state(model, optimizer(), members).params)[1]
    np.testing.assert_array_equal(kernel[0], kernel[2])
    np.testing.assert_array_equal(kernel[1], kernel[3])
    assert not np.array_equal(kernel[0], kernel[1])


def test_alpha_is_data_and_does_something(examples: Any) -> None:
    trained, _ = train(examples, ALPHAS, SEEDS)
    kernel = jax.tree.leaves(trained.params)[1]
    assert not np.allclose(kernel[0], kernel[2])


def test_vmap_and_unroll_agree(examples: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    first, _ = train(examples, ALPHAS, SEEDS, "mlp")
    monkeypatch.setattr(models.MLP, "member_mapping", "unroll")
    second, _ = train(examples, ALPHAS, SEEDS, "mlp")
    chex.assert_trees_all_close(first.params, second.params, atol=2e-5)


def test_meters_count_since_the_last_line(examples: Any) -> None:
    _, meters = train(examples, ALPHAS, SEEDS)
    assert [int(m.examples) for m in meters[:7]] == [8, 16, 24, 8, 16, 24, 8]
    assert all((np.asarray(m.correct) <= int(m.examples)).all() for m in meters)
    assert all((np.asarray(m.bad_step) == 0).all() for m in meters)
    np.testing.assert_allclose(np.asarray(meters[0].loss) / 8, np.log(3), atol=1.0)


def test_the_first_step_that_is_not_finite_is_kept(examples: Any) -> None:
    """Member 1 gets an infinite α at the start: only it is marked, with step 1, and it stays marked."""
    _, meters = train(examples, (0.0, float("-inf")), (5,))
    assert np.asarray(meters[0].bad_step).tolist() == [0, 1]
    assert np.asarray(meters[-1].bad_step).tolist() == [0, 1]


def test_one_compilation_whatever_the_alphas_and_seeds(examples: Any) -> None:
    model = models.build("mlp", image_shape=(6, 6, 1), num_classes=3, hidden=(7,), dropout=0.1)
    mesh = parallel.data_mesh()
    members = parallel.replicate(state.make_members(ALPHAS, SEEDS)[0], mesh)
    advance = step.make_step(model, optimizer(), mesh, batch_size=BATCH, log_every=3)
    current = parallel.replicate(state.initial_state(model, optimizer(), members), mesh)
    arrays = parallel.replicate(examples, mesh)
    for s in range(7):
        current, _ = advance(current, members, epoch_order(members.seed_key, s // 5, N), *arrays)
    others = parallel.replicate(state.make_members((0.9, 0.1), (3, 4))[0], mesh)
    current, _ = advance(current, others, epoch_order(others.seed_key, 0, N), *arrays)
    assert advance._cache_size() == 1


def test_biases_are_not_decayed() -> None:
    tx = step.make_optimizer(learning_rate=0.1, weight_decay=1.0, warmup_steps=0, total_steps=10)
    params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    zero = jax.tree.map(jnp.zeros_like, params)
    updates, _ = tx.update(zero, tx.init(params), params)
    assert (np.asarray(updates["kernel"]) < 0).all()
    assert (np.asarray(updates["bias"]) == 0).all()


def test_epoch_orders_are_permutations_that_depend_on_seed_and_epoch_only() -> None:
    keys = jax.vmap(jax.random.key)(jnp.asarray([1, 2], jnp.uint32))
    orders = [np.asarray(epoch_order(keys, e, 50)) for e in (0, 1, 0)]
    for order in orders:
        np.testing.assert_array_equal(np.sort(order, axis=1), np.tile(np.arange(50), (2, 1)))
    np.testing.assert_array_equal(orders[0], orders[2])
    assert not np.array_equal(orders[0], orders[1])
    assert not np.array_equal(orders[0][0], orders[0][1])
    np.testing.assert_array_equal(np.asarray(epoch_order(keys[1:], 0, 50))[0], orders[0][1])
