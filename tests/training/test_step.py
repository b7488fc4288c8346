"""One program of many members equals each member alone, written out plainly."""

from __future__ import annotations

import dataclasses
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from sc_jax import models
from sc_jax.config import MemberGrid
from sc_jax.data.pipelines import Targets, epoch_order, model_inputs, train_transform
from sc_jax.models import mlp
from sc_jax.models.ensemble_layers import InNetwork
from sc_jax.ops.losses import smoothed_cross_entropy
from sc_jax.training import optimizers, parallel, state, step

N, BATCH, EPOCHS = 40, 8, 2
ALPHAS, SEEDS = (0.0, 0.3), (5, 11)


@pytest.fixture(scope="module")
def examples() -> tuple[jax.Array, jax.Array]:
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.integers(0, 256, (N, 6, 6)), jnp.uint8), jnp.asarray(rng.integers(0, 3, N), jnp.int32)


HALF = ((0.5,), (0.5,))
"""Mean and standard deviation of images."""


def optimizer() -> optax.GradientTransformation:
    steps = EPOCHS * N // BATCH
    return optimizers.make_optimizer(
        optimizer="adamw", learning_rate=0.01, weight_decay=0.1, warmup_steps=2, total_steps=steps
    )


def make_advance(
    model: models.Model, mesh: parallel.Mesh, augmentation: dict[str, Any] | None = None, sam: float = 0.0
) -> Any:
    transform = train_transform(*HALF, **(augmentation or {}))
    return step.from_memory(step.make_step(model, optimizer(), transform, mesh, log_every=3, sam=sam), mesh, BATCH)


def train(
    examples: tuple[jax.Array, jax.Array],
    alphas: tuple[float, ...],
    seeds: tuple[int, ...],
    name: str = "mlp",
    augmentation: dict[str, Any] | None = None,
    sam: float = 0.0,
    **options: Any,
) -> tuple[state.TrainState, list[state.Meters]]:
    model = models.build(name, input_shape=(6, 6, 1), num_classes=3, hidden=(7, 5), **options)
    members = state.make_members(MemberGrid(alphas, seeds).tags)
    mesh = parallel.data_mesh()
    advance = make_advance(model, mesh, augmentation, sam)
    current = parallel.replicate(state.initial_state(model, optimizer(), members), mesh)
    meters = []
    for s in range(EPOCHS * N // BATCH):
        order = epoch_order(members.seed_key, s // (N // BATCH), N)
        current, m = advance(current, members, order, *examples)
        meters.append(m)
    return current, meters


def by_hand(examples: tuple[jax.Array, jax.Array], alpha: float, seed: int, name: str, dropout: float) -> Any:
    """One member, one step at a time: no member axis, no donation, no meters."""
    model = models.build(name, input_shape=(6, 6, 1), num_classes=3, hidden=(7, 5), dropout=dropout)
    key = jax.random.key(seed)
    params, model_state = model.init(jax.random.fold_in(key, 0))
    tx = optimizer()
    opt_state = tx.init(params)
    images, labels = examples

    @jax.jit
    def one_step(params: Any, opt_state: Any, s: jax.Array, index: jax.Array) -> tuple[Any, Any]:
        def loss(params: Any) -> jax.Array:
            dropout_key = jax.random.fold_in(jax.random.fold_in(key, 2), s)
            outputs, _ = model.apply(
                params, model_state, model_inputs(images[index], *HALF), train=True, key=dropout_key
            )
            return smoothed_cross_entropy(outputs["logits"], labels[index], alpha).mean()

        updates, opt_state = tx.update(jax.grad(loss)(params), opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    for s in range(EPOCHS * N // BATCH):
        epoch, place = divmod(s, N // BATCH)
        order = jax.random.permutation(jax.random.fold_in(jax.random.fold_in(key, 1), epoch), N)
        params, opt_state = one_step(params, opt_state, s, order[place * BATCH : (place + 1) * BATCH])
    return params


@pytest.mark.parametrize(("name", "dropout"), [("mlp", 0.0), ("mlp", 0.2), ("cnn", 0.0), ("cnn", 0.2)])
def test_members_equal_training_by_hand(examples: Any, name: str, dropout: float) -> None:
    trained, _ = train(examples, ALPHAS, SEEDS, name, dropout=dropout)
    for m, (alpha, seed) in enumerate((a, s) for a in ALPHAS for s in SEEDS):
        expected = by_hand(examples, alpha, seed, name, dropout)
        chex.assert_trees_all_close(jax.tree.map(lambda leaf, m=m: leaf[m], trained.params), expected, atol=2e-5)


def kernel_of(trained: state.TrainState) -> jax.Array:
    return next(leaf for leaf in jax.tree.leaves(trained.params) if leaf.ndim == 3)


@pytest.mark.parametrize(
    "augmentation",
    [
        {"crop_padding": 2, "flip": True},
        {"resized_crop": (0.3, 1.0)},
        {"rand_augment": (1, 9)},
        {"mixup": 0.4, "cutmix": 1.0},
    ],
    ids="+".join,
)
def test_members_of_a_seed_are_augmented_alike_and_members_of_other_seeds_are_not(
    examples: Any, augmentation: dict[str, Any]
) -> None:
    plain, _ = train(examples, (0.1, 0.1), SEEDS)
    trained, _ = train(examples, (0.1, 0.1), SEEDS, augmentation=augmentation)
    kernel = kernel_of(trained)
    np.testing.assert_allclose(kernel[0], kernel[2], atol=1e-6)
    assert not np.allclose(kernel[0], kernel[1], atol=1e-3)
    assert not np.allclose(kernel, kernel_of(plain), atol=1e-5)


def test_two_labels_weigh_as_they_were_mixed() -> None:
    targets = Targets(jnp.asarray([0, 2]), jnp.asarray([1, 2]), jnp.asarray([0.75, 0.5]))
    np.testing.assert_allclose(targets.loss(lambda label: label.astype(jnp.float32) * 4), [1.0, 8.0])
    assert Targets(jnp.asarray([3])).loss(lambda label: label)[0] == 3


def test_mixed_targets_put_the_heavier_label_first() -> None:
    images = jnp.asarray(np.random.default_rng(0).integers(0, 256, (64, 4, 4, 1)), jnp.uint8)
    labels = jnp.arange(64, dtype=jnp.int32)
    mixed, targets = train_transform(*HALF, mixup=1.0)(jax.random.key(0), images, labels)
    assert (np.asarray(targets.weight) >= 0.5).all()
    plain = model_inputs(images, *HALF)
    w = targets.weight[:, None, None, None]
    expected = w * plain[targets.label] + (1 - w) * plain[targets.other]  # labels name the images here
    np.testing.assert_allclose(mixed, expected, atol=1e-5)


def test_sam_moves_against_the_gradient_of_the_worst_point_nearby(examples: Any) -> None:
    flat, _ = train(examples, (0.1,), (5,), sam=0.5)
    plain, _ = train(examples, (0.1,), (5,))
    model = models.build("mlp", input_shape=(6, 6, 1), num_classes=3, hidden=(7, 5))
    key = jax.random.key(5)
    params, model_state = model.init(jax.random.fold_in(key, 0))
    tx = optimizer()
    opt_state = tx.init(params)
    for s in range(EPOCHS * N // BATCH):
        epoch, place = divmod(s, N // BATCH)
        order = jax.random.permutation(jax.random.fold_in(jax.random.fold_in(key, 1), epoch), N)
        index = order[place * BATCH : (place + 1) * BATCH]

        def loss(params: Any, index: jax.Array = index) -> jax.Array:
            outputs, _ = model.apply(params, model_state, model_inputs(examples[0][index], *HALF), train=True)
            return smoothed_cross_entropy(outputs["logits"], examples[1][index], 0.1).mean()

        grads = jax.grad(loss)(params)
        norm = jnp.sqrt(sum(jnp.sum(g**2) for g in jax.tree.leaves(grads)))
        worst = jax.tree.map(lambda p, g, norm=norm: p + 0.5 * g / norm, params, grads)
        updates, opt_state = tx.update(jax.grad(loss)(worst), opt_state, params)
        params = optax.apply_updates(params, updates)
    chex.assert_trees_all_close(jax.tree.map(lambda leaf: leaf[0], flat.params), params, atol=2e-5)
    assert not np.allclose(kernel_of(flat), kernel_of(plain), atol=1e-4)


class Dense(nnx.Module):
    """A class for every pixel, from its colour alone; with `exits`, twice."""

    member_mapping = "vmap"

    def __init__(self, *, input_shape: tuple[int, ...], num_classes: int, exits: bool = False, rngs: nnx.Rngs):
        self.head = nnx.Linear(input_shape[-1], num_classes, rngs=rngs)
        self.exits = exits

    def __call__(self, images: jax.Array, *, train: bool, key: jax.Array | None = None) -> dict[str, jax.Array]:
        logits = self.head(images)
        return {"logits": logits, **({"exit_logits": jnp.stack([2 * logits, logits])} if self.exits else {})}


def one_step(monkeypatch: pytest.MonkeyPatch, labels: jax.Array, **options: Any) -> tuple[Any, state.Meters, jax.Array]:
    monkeypatch.setitem(models.BACKBONES, "dense", (f"{__name__}:Dense", options))
    model = models.build("dense", input_shape=(4, 5, 3), num_classes=3)
    members, mesh = state.make_members(MemberGrid((0.2,), (1,)).tags), parallel.data_mesh()
    images = jnp.asarray(np.random.default_rng(1).integers(0, 256, (1, 2, 4, 5, 3)), jnp.uint8)
    sgd = optax.sgd(1.0)
    advance = step.from_stream(step.make_step(model, sgd, train_transform(*HALF), mesh, log_every=1, ignore_label=255))
    before = state.initial_state(model, sgd, members)
    start = jax.tree.map(jnp.copy, before.params)
    after, meters = advance(before, members, images, labels)
    change = jax.tree.map(lambda a, b: (a - b)[0], start, after.params)  # a step of 1: the gradient
    params = jax.tree.map(lambda leaf: leaf[0], start)

    def loss(params: Any) -> jax.Array:
        logits = model.apply(params, {}, model_inputs(images[0], *HALF))[0]["logits"]
        total = 0.0
        for scale in (2, 1) if options.get("exits") else (1,):
            values = smoothed_cross_entropy(scale * logits, jnp.minimum(labels[0], 2), 0.2)
            total = total + values[labels[0] != 255].mean()
        return total

    value, gradient = jax.value_and_grad(loss)(params)
    chex.assert_trees_all_close(change, gradient, atol=1e-6)
    np.testing.assert_allclose(meters.loss / meters.examples, value[None], rtol=1e-5)
    return model, meters, images


@pytest.mark.parametrize("exits", [False, True])
def test_pixels_without_a_label_count_nowhere_and_every_exit_counts(
    monkeypatch: pytest.MonkeyPatch, exits: bool
) -> None:
    labels = np.random.default_rng(0).integers(0, 3, (1, 2, 4, 5))
    labels[0, 0, :3] = 255
    _, meters, _ = one_step(monkeypatch, jnp.asarray(labels, jnp.int32), exits=exits)
    assert 0 <= float(meters.correct[0]) <= 2


@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_the_loss_of_a_network_of_members_is_the_mean_of_theirs(examples: Any, name: str) -> None:
    """One step of 1 of gradient descent; the meters count what the mean of their probabilities gets right."""
    ensemble = InNetwork("batch_ensemble", 3)
    model = models.build(name, input_shape=(6, 6, 1), num_classes=3, hidden=(7,), ensemble=ensemble)
    members, mesh, sgd = state.make_members(MemberGrid((0.2,), (1,)).tags), parallel.data_mesh(), optax.sgd(1.0)
    advance = step.from_stream(step.make_step(model, sgd, train_transform(*HALF), mesh, log_every=1))
    before = state.initial_state(model, sgd, members)
    start = jax.tree.map(lambda leaf: jnp.copy(leaf[0]), before.params)
    images, labels = examples[0][None, :BATCH], examples[1][None, :BATCH]
    after, meters = advance(before, members, images, labels)

    def loss(params: Any) -> tuple[jax.Array, jax.Array]:
        logits = model.apply(params, {}, model_inputs(images[0], *HALF))[0]["member_logits"]
        each = [smoothed_cross_entropy(one, labels[0], 0.2).mean() for one in logits]
        return sum(each) / 3, jax.nn.softmax(logits).mean(0)

    (value, mean), gradient = jax.value_and_grad(loss, has_aux=True)(start)
    chex.assert_trees_all_close(jax.tree.map(lambda a, b: a - b[0], start, after.params), gradient, atol=1e-5)
    np.testing.assert_allclose(meters.loss / meters.examples, value[None], rtol=1e-5)
    assert float(meters.correct[0]) == np.sum(np.argmax(mean, -1) == np.asarray(labels[0]))


def test_members_of_a_seed_start_alike_and_members_of_other_seeds_do_not() -> None:
    model = models.build("mlp", input_shape=(6, 6, 1), num_classes=3, hidden=(7,), dropout=0.0)
    tags = MemberGrid(ALPHAS, SEEDS).tags
    members = state.make_members(tags)
    assert tags == [{"alpha": a, "seed": s} for a in ALPHAS for s in SEEDS]
    kernel = jax.tree.leaves(state.initial_state(model, optimizer(), members).params)[1]
    np.testing.assert_array_equal(kernel[0], kernel[2])
    np.testing.assert_array_equal(kernel[1], kernel[3])
    assert not np.array_equal(kernel[0], kernel[1])


def test_a_checkpoint_is_restored_to_the_shapes_of_the_initial_state() -> None:
    model = models.build("mlp", input_shape=(6, 6, 1), num_classes=3, hidden=(7, 5))
    members, mesh = state.make_members(MemberGrid(ALPHAS, SEEDS).tags), parallel.data_mesh()
    drawn = parallel.replicate(state.initial_state(model, optimizer(), members), mesh)
    shapes = parallel.placed(state.shape_of_state(model, optimizer(), members), mesh)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype, leaf.sharding), drawn) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype, leaf.sharding), shapes
    )


def test_alpha_is_data_and_does_something(examples: Any) -> None:
    trained, _ = train(examples, ALPHAS, SEEDS)
    kernel = jax.tree.leaves(trained.params)[1]
    assert not np.allclose(kernel[0], kernel[2])


def test_vmap_and_unroll_agree(examples: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    first, _ = train(examples, ALPHAS, SEEDS, "mlp")
    monkeypatch.setattr(mlp.MLP, "member_mapping", "unroll")
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
    model = models.build("mlp", input_shape=(6, 6, 1), num_classes=3, hidden=(7,), dropout=0.1)
    mesh = parallel.data_mesh()
    members = parallel.replicate(state.make_members(MemberGrid(ALPHAS, SEEDS).tags), mesh)
    advance = make_advance(model, mesh)
    current = parallel.replicate(state.initial_state(model, optimizer(), members), mesh)
    arrays = parallel.replicate(examples, mesh)
    for s in range(7):
        current, _ = advance(current, members, epoch_order(members.seed_key, s // 5, N), *arrays)
    others = parallel.replicate(state.make_members(MemberGrid((0.9, 0.1), (3, 4)).tags), mesh)
    current, _ = advance(current, others, epoch_order(others.seed_key, 0, N), *arrays)
    assert advance._cache_size() == 1


def test_several_steps_of_one_program_are_the_same_steps(examples: Any) -> None:
    model, mesh = models.build("mlp", input_shape=(6, 6, 1), num_classes=3, hidden=(8,)), parallel.data_mesh()
    members = state.make_members(MemberGrid(ALPHAS, SEEDS).tags)
    one = step.make_step(model, optimizer(), train_transform(*HALF), mesh, log_every=3)
    marks = (3, N // BATCH, EPOCHS * N // BATCH)
    ways = {at_once: step.from_memory(one, mesh, BATCH, at_once=at_once, marks=marks) for at_once in (1, 2, 100)}
    ends, lines = {}, {}
    for at_once, advance in ways.items():
        current, lines[at_once], taken = (
            parallel.replicate(state.initial_state(model, optimizer(), members), mesh),
            {},
            0,
        )
        while taken < EPOCHS * N // BATCH:
            order = epoch_order(members.seed_key, taken // (N // BATCH), N)
            current, meters = advance(current, members, order, *examples)
            taken += step.steps_ahead(taken, at_once, marks)
            assert int(current.step) == taken
            lines[at_once][taken] = jax.device_get(meters)
        ends[at_once] = jax.device_get(current)
        assert advance._cache_size() == 1
    assert len(lines[100]) < len(lines[2]) < len(lines[1])
    chex.assert_trees_all_close(ends[1], ends[2], rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_equal(ends[2], ends[100])  # one program, whatever the number of its steps
    for taken, meters in lines[100].items():
        chex.assert_trees_all_close(meters, lines[1][taken], rtol=1e-5)


def test_epoch_orders_are_permutations_that_depend_on_seed_and_epoch_only() -> None:
    keys = jax.vmap(jax.random.key)(jnp.asarray([1, 2], jnp.uint32))
    orders = [np.asarray(epoch_order(keys, e, 50)) for e in (0, 1, 0)]
    for order in orders:
        np.testing.assert_array_equal(np.sort(order, axis=1), np.tile(np.arange(50), (2, 1)))
    np.testing.assert_array_equal(orders[0], orders[2])
    assert not np.array_equal(orders[0], orders[1])
    assert not np.array_equal(orders[0][0], orders[0][1])
    np.testing.assert_array_equal(np.asarray(epoch_order(keys[1:], 0, 50))[0], orders[0][1])


@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_mappings_of_members_train_alike(examples: Any, name: str) -> None:
    model = models.build(name, input_shape=(6, 6, 1), num_classes=3, hidden=(7, 5), dropout=0.1)
    mesh, members = parallel.data_mesh(), state.make_members(MemberGrid(ALPHAS, SEEDS).tags)
    ends = []
    for mapping in ("vmap", "unroll", "map"):
        advance = make_advance(dataclasses.replace(model, member_mapping=mapping), mesh)
        current = parallel.replicate(state.initial_state(model, optimizer(), members), mesh)
        for _ in range(3):
            current, meters = advance(current, members, epoch_order(members.seed_key, 0, N), *examples)
        ends.append((current.params, meters))
    for other in ends[1:]:
        chex.assert_trees_all_close(other, ends[0], atol=2e-5)


def test_all_but_the_network_is_float32_where_that_computes_in_bfloat16(examples: Any) -> None:
    """Gradients come in the dtype of the parameters; the optimiser's moments, meters and statistics are no narrower."""
    model = models.build("cnn", input_shape=(6, 6, 1), num_classes=3, hidden=(7, 5), dtype=jnp.bfloat16)
    mesh, members = parallel.data_mesh(), state.make_members(MemberGrid((0.1,), (5,)).tags)
    start = state.initial_state(model, optimizer(), members)
    current, meters = make_advance(model, mesh)(start, members, epoch_order(members.seed_key, 0, N), *examples)
    floats = [leaf.dtype for leaf in jax.tree.leaves((current, meters)) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    assert set(floats) == {jnp.dtype("float32")}
    one = jax.tree.map(lambda leaf: leaf[0], current.params)
    text = str(jax.make_jaxpr(lambda p, x: model.apply(p, {}, x)[0]["logits"])(one, jnp.zeros((2, 6, 6, 1))))
    assert "bf16" in text


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e19, -3e19])
def test_a_gradient_whose_norm_is_not_finite_is_found(value: float) -> None:
    grads = {"kernel": jnp.full((30, 20), 1e6), "bias": jnp.zeros(20)}
    assert step._has_norm(grads)
    grads["bias"] = grads["bias"].at[3].set(value)
    assert not jnp.isfinite(optax.tree.norm(grads))
    assert not step._has_norm(grads)
