"""Objectives beside label smoothing: what each is, that members of one program equal runs of their own, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.special

from sc_jax import models
from sc_jax.config import MemberGrid
from sc_jax.data import augment
from sc_jax.data.pipelines import Targets, epoch_order, train_transform
from sc_jax.files import InputError
from sc_jax.ops import losses
from sc_jax.predictions import Predictions, save
from sc_jax.training import objectives, parallel, state, step
from sc_jax.training.objectives import Known

N, BATCH, K, SEEDS = 40, 8, 3, (5, 11)
ALL = (
    *("max_suppression=0.3", "confidence_penalty=0.2", "focal=2", "logit_norm=0.5", "margin_smoothing=1", "acls=0.1"),
    *("temperature=2", "mixup=0.4", "cutmix=1", "label_noise=0.3", "left_out=1", "distillation=2"),
    *("instance_smoothing=0.3", "inverse_instance_smoothing=0.3", "equal_suppression=0.2", "error_smoothing=0.3"),
    "shuffled_error_smoothing=0.3",
)


@pytest.fixture(scope="module")
def examples() -> tuple[jax.Array, jax.Array]:
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.integers(0, 256, (N, 6, 6)), jnp.uint8), jnp.asarray(rng.integers(0, K, N), jnp.int32)


@pytest.fixture(scope="module")
def known() -> Known:
    rng = np.random.default_rng(1)
    teacher = rng.normal(size=(len(SEEDS), N, K)).astype(np.float32)
    error = rng.uniform(0, 0.6, (len(SEEDS), N)).astype(np.float32)
    shuffled = error[:, rng.permutation(N)]
    return Known(*map(jnp.asarray, (objectives.folds(np.arange(N)), teacher, error, error.mean(axis=1), shuffled)))


def of_batch(known: Known, row: int, index: Any) -> Known:
    mean = jnp.full(len(index), known.mean_error[row])
    of_row = {name: getattr(known, name)[row, index] for name in ("teacher", "error", "shuffled_error")}
    return Known(fold=known.fold[index], mean_error=mean, **of_row)


def train(
    examples: tuple[jax.Array, jax.Array],
    known: Known,
    grid: MemberGrid,
    steps: int = 7,
    name: str = "mlp",
) -> tuple[Any, list[dict[str, Any]]]:
    """Parameters after some steps of SGD, of each member, and the members' tags."""
    model = models.build(name, input_shape=(6, 6, 1), num_classes=K, hidden=(7, 5), dropout=0.0)
    optimizer, mesh = optax.sgd(0.3), parallel.data_mesh()
    wanted = objectives.named(grid.objectives, K)
    one = step.make_step(model, optimizer, train_transform((0.5,), (0.5,)), mesh, log_every=3, objectives=wanted)
    advance, members = step.from_memory(one, mesh, BATCH), state.make_members(grid.tags)
    current = parallel.replicate(state.initial_state(model, optimizer, members), mesh)
    for s in range(steps):
        order = epoch_order(members.seed_key, s // (N // BATCH), N)
        current, _ = advance(current, members, order, *examples, known)
    return current.params, grid.tags


@pytest.fixture(scope="module")
def trained(examples: Any, known: Known) -> tuple[Any, list[dict[str, Any]]]:
    given = tuple(text for text in ALL if text != "cutmix=1")  # mixup goes the same way, and Beta is slow to compile
    return train(examples, known, MemberGrid((0.0, 0.2), SEEDS, given))


def test_members_of_one_program_equal_runs_of_their_own(examples: Any, known: Known, trained: Any) -> None:
    together, tags = trained
    for objective in ("max_suppression=0.3", "label_noise=0.3", "error_smoothing=0.3"):
        alone, _ = train(examples, known, MemberGrid((0.0,), SEEDS, (objective,)))
        for place, seed in enumerate(SEEDS):
            m = tags.index({"objective": objective, "seed": seed})
            row = jax.tree.map(lambda leaf, m=m: leaf[m], together)
            chex.assert_trees_all_close(row, jax.tree.map(lambda leaf, p=place: leaf[2 + p], alone), atol=2e-5)
    plain, _ = train(examples, known, MemberGrid((0.0, 0.2), SEEDS))
    chex.assert_trees_all_close(jax.tree.map(lambda leaf: leaf[:4], together), plain, atol=2e-5)


def test_every_objective_does_something_of_its_own(trained: Any) -> None:
    params, tags = trained
    rows = [m for m, tag in enumerate(tags) if tag["seed"] == SEEDS[0] and tag.get("objective") != "acls=0.1"]
    kernel = np.asarray(jax.tree.leaves(params)[1]).reshape(len(tags), -1)[
        rows
    ]  # no logit is beyond the margin of ACLS
    same = np.array([[np.allclose(a, b, atol=1e-7) for b in kernel] for a in kernel])
    np.testing.assert_array_equal(same, np.eye(len(rows), dtype=bool))


def test_convolutions_too(examples: Any, known: Known) -> None:
    chosen = ("label_noise=0.3", "error_smoothing=0.3")
    known = Known(known.fold, *(field[:1] for field in known[1:]))
    together, tags = train(examples, known, MemberGrid((0.0,), SEEDS[:1], chosen), 3, "cnn")
    assert tags[2]["objective"] == chosen[1]
    alone, _ = train(examples, known, MemberGrid((0.0,), SEEDS[:1], chosen[1:]), 3, "cnn")
    for mine, theirs in zip(jax.tree.leaves(together), jax.tree.leaves(alone), strict=True):
        np.testing.assert_allclose(mine[2], theirs[1], atol=2e-5)


# Each objective by its definition


@pytest.fixture(scope="module")
def batch(known: Known) -> tuple[jax.Array, jax.Array, Known]:
    rng = np.random.default_rng(2)
    index = rng.permutation(N)[:BATCH]
    logits = jnp.asarray(rng.normal(size=(BATCH, K), scale=3), jnp.float32)
    return logits, jnp.asarray(rng.integers(0, K, BATCH), jnp.int32), of_batch(known, 1, index)


def value(text: str, batch: tuple[jax.Array, jax.Array, Known]) -> np.ndarray:
    logits, label, known = batch
    alpha = jnp.float32(0.7)  # of no member with an objective of its own
    return np.asarray(objectives.loss(objectives.named([text], K), jnp.int32(1), logits, Targets(label), alpha, known))


def cross_entropy(logits: Any, target: np.ndarray) -> np.ndarray:
    return -(target * scipy.special.log_softmax(np.asarray(logits, np.float64), axis=-1)).sum(axis=-1)


def smoothed_target(label: Any, alpha: Any) -> np.ndarray:
    return (1 - np.atleast_1d(alpha))[:, None] * np.eye(K)[np.asarray(label)] + np.atleast_1d(alpha)[:, None] / K


@pytest.mark.parametrize(
    ("text", "loss"),
    [
        ("max_suppression=0.3", lambda v, y: losses.max_suppression(v, y, 0.3)),
        ("confidence_penalty=0.2", lambda v, y: losses.confidence_penalty(v, y, 0.2)),
        ("focal=2", lambda v, y: losses.focal_loss(v, y, 2.0)),
        ("logit_norm=0.5", lambda v, y: losses.logit_norm_cross_entropy(v, y, 0.5)),
        ("margin_smoothing=1", lambda v, y: losses.margin_label_smoothing(v, y, 1.0, 0.1 / K)),
        ("acls=0.1", lambda v, y: losses.acls(v, y, 0.1)),
        ("temperature=2", lambda v, y: losses.smoothed_cross_entropy(v / 2, y, 0.0)),
    ],
)
def test_a_loss_of_ops_is_called_with_the_strength(text: str, loss: Any, batch: Any) -> None:
    np.testing.assert_allclose(value(text, batch), loss(*batch[:2]), rtol=1e-6)


def test_distillation_is_cross_entropy_against_the_teacher(batch: Any) -> None:
    target = scipy.special.softmax(np.asarray(batch[2].teacher, np.float64) / 2, axis=-1)
    np.testing.assert_allclose(value("distillation=2", batch), 4 * cross_entropy(batch[0] / 2, target), rtol=1e-5)


@pytest.mark.parametrize("name", ["instance_smoothing", "inverse_instance_smoothing"])
def test_instance_smoothing_takes_from_the_label_by_what_the_teacher_gives_it(batch: Any, name: str) -> None:
    logits, label, known = batch
    rows = np.arange(BATCH)
    given = scipy.special.softmax(np.asarray(known.teacher, np.float64), axis=-1)[rows, np.asarray(label)]
    taken = 0.3 * (given if name == "instance_smoothing" else 1 - given)
    target = np.repeat(taken[:, None] / (K - 1), K, axis=1)
    target[rows, np.asarray(label)] = 1 - taken
    np.testing.assert_allclose(value(f"{name}=0.3", batch), cross_entropy(logits, target), rtol=1e-5)


def test_the_control_is_smoothing_by_the_error_of_another_example(batch: Any) -> None:
    logits, label, known = batch
    swapped = known._replace(error=known.shuffled_error)
    np.testing.assert_array_equal(
        value("shuffled_error_smoothing=0.3", batch), value("error_smoothing=0.3", (logits, label, swapped))
    )


def test_smoothing_by_example(batch: Any) -> None:
    logits, label, known = batch
    error, mean = np.asarray(known.error, np.float64), np.asarray(known.mean_error, np.float64)
    alpha = np.minimum(0.3 * error / mean, 0.8)
    np.testing.assert_allclose(
        value("error_smoothing=0.3", batch), cross_entropy(logits, smoothed_target(label, alpha)), rtol=1e-5
    )
    share = 1 - error - 1 / K
    alpha = np.where(share > 0, np.minimum(0.2 * (1 - 1 / K) / np.where(share > 0, share, 1), 0.8), 0.8)
    np.testing.assert_allclose(
        value("equal_suppression=0.2", batch), cross_entropy(logits, smoothed_target(label, alpha)), rtol=1e-5
    )


def test_equal_suppression_is_the_same_for_all_below_the_bound_and_smoothing_by_error_is_the_reverse_of_smoothing() -> (
    None
):
    error = jnp.linspace(0, 1, 101)
    alpha = np.asarray(objectives.equal_suppression(error, 0.2, 10))
    assert (alpha <= objectives.MOST_SMOOTHING).all()
    free = alpha < objectives.MOST_SMOOTHING
    np.testing.assert_allclose((alpha * (0.9 - np.asarray(error)))[free], 0.2 * 0.9, rtol=1e-5)
    assert free[0]
    assert not free[-1]
    by_error = np.asarray(objectives.error_smoothing(error, jnp.float32(0.5), 0.2))
    np.testing.assert_allclose(by_error.mean(), 0.2, rtol=1e-5)  # the mean error of these is 0.5, and no bound bites
    suppression = by_error * (0.9 - np.asarray(error))
    assert (np.diff(suppression[:46]) > 0).all()  # up to P_err = 0.45
    assert np.argmax(0.2 * (0.9 - np.asarray(error))) == 0  # of label smoothing


def test_a_fold_left_out_is_not_learned_from(batch: Any) -> None:
    logits, label, known = batch
    kept = np.asarray(known.fold) != 1
    assert 0 < kept.sum() < BATCH
    plain = cross_entropy(logits, np.eye(K)[np.asarray(label)])
    found = value("left_out=1", batch)
    np.testing.assert_allclose(found.mean(), plain[kept].mean(), rtol=1e-5)
    assert (found[~kept] == 0).all()


def test_folds_deal_out_every_example_once() -> None:
    for n in (7, 40, 12_003):
        ids = np.random.default_rng(n).permutation(3 * n)[:n]
        found = objectives.folds(ids)
        counts = np.bincount(found, minlength=objectives.FOLDS)
        assert counts.sum() == n
        assert counts.max() - counts.min() <= 1
        order = np.random.default_rng(1).permutation(n)  # an example is in its fold wherever it stands
        np.testing.assert_array_equal(objectives.folds(ids[order]), found[order])


def change(text: str, label: jax.Array, images: jax.Array, seed: int = 3) -> tuple[jax.Array, Targets]:
    """The batch of one seed as the objective has it; beside it stands the batch as it is."""
    wanted = objectives.named(["focal=2", text], K)
    found, targets, place = jax.jit(lambda *given: objectives.changed(wanted, *given))(
        jax.random.key(seed)[None], images[None], Targets(label[None])
    )
    np.testing.assert_array_equal(place, [0, 0, 1])
    np.testing.assert_array_equal(found[0, 0], images)
    np.testing.assert_array_equal(targets.label[0, 0], label)
    np.testing.assert_array_equal(targets.weight[0], 1)
    return found[1, 0], jax.tree.map(lambda leaf: leaf[1, 0], targets)


@pytest.mark.parametrize(("name", "mix", "strength"), [("mixup", augment.mixup, 0.4), ("cutmix", augment.cutmix, 1.0)])
def test_mixing_is_that_of_the_augmentations(examples: Any, name: str, mix: Any, strength: float) -> None:
    label = examples[1]
    images = jnp.asarray(np.random.default_rng(0).normal(size=(N, 4, 4, 1)), jnp.float32)
    mixed = mix(jax.random.key(3), images, label, strength)
    found, targets = change(f"{name}={strength:g}", label, images)
    np.testing.assert_allclose(found, mixed.images, atol=1e-6)
    heavier = mixed.weight >= 0.5
    np.testing.assert_array_equal(targets.label, jnp.where(heavier, mixed.label_a, mixed.label_b))
    np.testing.assert_array_equal(targets.other, jnp.where(heavier, mixed.label_b, mixed.label_a))
    np.testing.assert_allclose(targets.weight, jnp.maximum(mixed.weight, 1 - mixed.weight), atol=1e-6)


def test_label_noise_replaces_the_share_it_says_by_any_class_alike() -> None:
    label = jnp.zeros(60_000, jnp.int32)
    images = jnp.ones((len(label), 1, 1, 1))
    same, targets = change("label_noise=0.3", label, images)
    np.testing.assert_array_equal(same, images)
    share = np.bincount(np.asarray(targets.label), minlength=K) / len(label)
    spread = 5 * np.sqrt(0.25 / len(label))
    np.testing.assert_allclose(share, [1 - 0.3 * 2 / 3, 0.1, 0.1], atol=spread)
    # Its loss is label smoothing's in the mean.
    logits = jnp.broadcast_to(jnp.array([2.0, 0.0, -1.0]), (len(label), K))
    loss = targets.loss(lambda y: losses.smoothed_cross_entropy(logits, y, 0.0))
    smoothed = losses.smoothed_cross_entropy(logits[0], label[0], 0.3)
    np.testing.assert_allclose(loss.mean(), smoothed, atol=5 * float(loss.std()) / np.sqrt(len(label)))


# What an earlier run says


def test_error_probability_is_one_minus_the_top_at_the_temperature_of_least_log_loss() -> None:
    rng = np.random.default_rng(4)
    true_logits = rng.normal(size=(20_000, 4), scale=1.5)
    label = np.array([rng.choice(4, p=p) for p in scipy.special.softmax(true_logits, axis=-1)])
    found = objectives.error_probability(3 * true_logits, label)  # overconfident by a factor of three
    truth = 1 - scipy.special.softmax(true_logits, axis=-1).max(axis=-1)
    np.testing.assert_allclose(found, truth, atol=0.01)
    wrong = true_logits.argmax(axis=-1) != label
    np.testing.assert_allclose(found.mean(), wrong.mean(), atol=0.015)


def write_teacher(folder: Path, label: np.ndarray, ids: np.ndarray, leave_out: str = "") -> dict[str, np.ndarray]:
    rng, written = np.random.default_rng(5), {}
    for seed in SEEDS:
        for member in ("alpha=0", *(f"left_out={f}" for f in range(objectives.FOLDS))):
            name = f"{member}-seed={seed}"
            logits = rng.normal(size=(N, K)).astype(np.float32)
            written[name] = logits
            shuffled = rng.permutation(N)
            given = Predictions(
                label[shuffled], logits[shuffled], ids[shuffled], provenance={"data_fingerprint": "these"}
            )
            if name != leave_out:
                save(folder / "predictions" / name / "train.npz", given)
    return written


def test_known_is_read_by_id_and_out_of_fold(tmp_path: Path) -> None:
    rng = np.random.default_rng(6)
    label, ids = rng.integers(0, K, N), 100 + rng.permutation(N)
    written = write_teacher(tmp_path, label, ids)
    wanted = {"teacher", "error", "mean_error", "shuffled_error"}
    found = objectives.known_of(wanted, str(tmp_path), "train", SEEDS, label, ids, "these")
    np.testing.assert_array_equal(found.teacher, [written[f"alpha=0-seed={s}"] for s in SEEDS])
    for row, seed in enumerate(SEEDS):
        out = np.stack([written[f"left_out={found.fold[i]}-seed={seed}"][i] for i in range(N)])
        np.testing.assert_allclose(found.error[row], objectives.error_probability(out, label), rtol=1e-6)
    np.testing.assert_allclose(found.mean_error, found.error.mean(axis=1))
    np.testing.assert_array_equal(np.sort(found.shuffled_error), np.sort(found.error))
    assert not np.array_equal(found.shuffled_error, found.error)


@pytest.mark.parametrize("damage", ["missing", "labels", "ids", "data", "nowhere", "unnamed"])
def test_a_teacher_that_does_not_fit_is_refused(tmp_path: Path, damage: str) -> None:
    label, ids = np.arange(N) % K, np.arange(N)
    write_teacher(tmp_path, label, ids, f"left_out=3-seed={SEEDS[1]}" if damage == "missing" else "")
    if damage == "labels":
        label = label[::-1].copy()
    if damage == "ids":
        ids = ids + 1
    where = {"nowhere": "no/such/run", "unnamed": ""}.get(damage, str(tmp_path))
    with pytest.raises(InputError, match=r"training\.teacher"):
        objectives.known_of({"error"}, where, "train", SEEDS, label, ids, "others" if damage == "data" else "these")


def test_fields_nobody_asks_for_are_not_read() -> None:
    assert objectives.known_of(set(), "", "train", SEEDS, np.zeros(N), np.arange(N), "these") == Known()
    only_fold = objectives.known_of({"fold"}, "", "train", SEEDS, np.zeros(N), np.arange(N), "these")
    assert only_fold.teacher is None
    np.testing.assert_array_equal(only_fold.fold, objectives.folds(np.arange(N)))


@pytest.mark.parametrize(
    "text",
    [
        *("max_supression=0.2", "focal", "focal=two", "focal=-1", "focal=nan", "temperature=0", "label_noise=1"),
        *("left_out=5", "left_out=0.5", "mixup=inf", "error_smoothing=1", "focal=2.0", "left_out=00"),
    ],
)
def test_objectives_that_are_not_one_are_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"members\.objectives"):
        objectives.named([text], K)
