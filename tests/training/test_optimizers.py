"""Optimisers equal PyTorch's, schedules their closed forms, SAM its definition."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sc_jax import models
from sc_jax.files import InputError
from sc_jax.models.ensemble_layers import InNetwork
from sc_jax.training.optimizers import averaged, cycle_ends, make_optimizer, make_schedule, sam_gradient

TARGET = {"kernel": np.array([[1.0, -2.0], [0.5, 3.0]], np.float32), "bias": np.array([0.3, -0.7], np.float32)}
START = {"kernel": np.array([[0.2, 0.1], [-1.0, 0.4]], np.float32), "bias": np.array([1.0, 2.0], np.float32)}
CURVATURE = 1.7


def quadratic(params: Any) -> jax.Array:
    return 0.5 * CURVATURE * sum(jnp.sum((params[name] - TARGET[name]) ** 2) for name in TARGET)


def slope(params: Any) -> Any:
    return jax.grad(quadratic)(params)


def descend(
    tx: optax.GradientTransformation, steps: int, gradient: Callable[[Any], Any] = slope
) -> tuple[list[Any], Any]:
    """The parameters before each step and after the last, and the last state."""
    params = jax.tree.map(jnp.asarray, START)
    state, path = tx.init(params), [params]
    for _ in range(steps):
        updates, state = tx.update(gradient(params), state, params)
        params = optax.apply_updates(params, updates)
        path.append(params)
    return path, state


@pytest.mark.parametrize("decay", ["all", "kernels"])
@pytest.mark.parametrize("name", ["adamw", "adam", "sgd", "nesterov"])
def test_equals_pytorch(name: str, decay: str) -> None:
    torch = pytest.importorskip("torch")
    steps, rate, weight_decay, clip = 5, 0.05, 0.3, 3.0
    params = {key: torch.nn.Parameter(torch.tensor(value)) for key, value in START.items()}
    groups = [
        {"params": [params["kernel"]], "weight_decay": weight_decay},
        {"params": [params["bias"]], "weight_decay": weight_decay if decay == "all" else 0.0},
    ]
    theirs = {
        "adamw": lambda: torch.optim.AdamW(groups, lr=rate, betas=(0.8, 0.95)),
        "adam": lambda: torch.optim.Adam(groups, lr=rate, betas=(0.8, 0.95)),
        "sgd": lambda: torch.optim.SGD(groups, lr=rate, momentum=0.7),
        "nesterov": lambda: torch.optim.SGD(groups, lr=rate, momentum=0.7, nesterov=True),
    }[name]()
    schedule = torch.optim.lr_scheduler.MultiStepLR(theirs, milestones=[2, 4], gamma=0.5)
    expected = []
    for _ in range(steps):
        theirs.zero_grad()
        loss = 0.5 * CURVATURE * sum(((params[k] - torch.tensor(TARGET[k])) ** 2).sum() for k in TARGET)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(list(params.values()), clip)
        theirs.step()
        schedule.step()
        expected.append({key: value.detach().numpy().copy() for key, value in params.items()})
    ours = make_optimizer(
        optimizer=name,
        learning_rate=rate,
        weight_decay=weight_decay,
        total_steps=steps,
        schedule="step",
        milestones=(2, 4),
        decay_factor=0.5,
        momentum=0.7,
        betas=(0.8, 0.95),
        decay=decay,
        gradient_clip=clip,
    )
    for found, wanted in zip(descend(ours, steps)[0][1:], expected, strict=True):
        chex.assert_trees_all_close(found, wanted, atol=1e-6)


def test_adamw_with_cosine_is_optax_to_the_bit() -> None:
    rate, weight_decay, warmup, total = 3e-3, 0.1, 3, 12
    schedule = optax.warmup_cosine_decay_schedule(0.0, rate, warmup, total)
    plain = optax.adamw(schedule, weight_decay=weight_decay, mask=lambda p: jax.tree.map(lambda a: a.ndim > 1, p))
    ours = make_optimizer(
        optimizer="adamw", learning_rate=rate, weight_decay=weight_decay, warmup_steps=warmup, total_steps=total
    )
    for a, b in zip(descend(plain, total)[0], descend(ours, total)[0], strict=True):
        chex.assert_trees_all_equal(a, b)


def rates(count: int, **options: Any) -> np.ndarray:
    return np.asarray(jax.vmap(make_schedule(**options))(jnp.arange(count)))


@pytest.mark.parametrize(
    ("name", "closed_form"),
    [
        ("cosine", lambda u, t: (1 + math.cos(math.pi * u)) / 2),
        ("poly", lambda u, t: (1 - u) ** 0.9),
        ("step", lambda u, t: 0.1 ** ((t >= 9) + (t >= 15))),
        ("constant", lambda u, t: 1.0),
    ],
)
@pytest.mark.parametrize("warmup", [0, 4])
def test_schedules_are_their_closed_forms(name: str, closed_form: Callable[..., float], warmup: int) -> None:
    total, peak, factor = 20, 0.4, 1e-4
    found = rates(
        total + 1,
        schedule=name,
        learning_rate=peak,
        total_steps=total,
        warmup_steps=warmup,
        warmup_factor=factor,
        milestones=(9, 15) if name == "step" else (),
    )
    for t, rate in enumerate(found):
        linear = factor + (1 - factor) * t / max(warmup, 1)
        expected = linear if t < warmup else closed_form((t - warmup) / (total - warmup), t)
        np.testing.assert_allclose(rate, peak * expected, rtol=2e-6, atol=1e-8)


@pytest.mark.parametrize(("total", "warmup", "cycles"), [(12, 0, 3), (20, 4, 4), (11, 1, 3), (5, 0, 5), (6, 0, 1)])
def test_a_cyclic_schedule_is_a_cosine_in_every_cycle(total: int, warmup: int, cycles: int) -> None:
    ends = cycle_ends(total, warmup, cycles)
    assert len(ends) == cycles
    assert ends[-1] == total
    lengths = np.diff((warmup, *ends))
    assert lengths.min() >= 1
    assert lengths.max() - lengths.min() <= 1
    options = {"learning_rate": 0.4, "total_steps": total, "warmup_steps": warmup, "warmup_factor": 0.1}
    found = rates(total, schedule="cyclic", cycles=cycles, **options)
    for a, b in zip((warmup, *ends), ends, strict=False):
        expected = [0.2 * (1 + math.cos(math.pi * i / (b - a))) for i in range(b - a)]
        np.testing.assert_allclose(found[a:b], expected, rtol=2e-6)
    if not warmup and total % cycles == 0:  # Huang et al., eq. 2, of iterations from 1
        length = total // cycles
        paper = [0.2 * (math.cos(math.pi * ((t - 1) % length) / length) + 1) for t in range(1, total + 1)]
        np.testing.assert_allclose(found, paper, rtol=2e-6)
    if cycles == 1:
        np.testing.assert_allclose(found, rates(total, schedule="cosine", **options), rtol=1e-6)


@pytest.mark.parametrize("cycles", [0, -1, 9])
def test_cycles_without_a_step_are_refused(cycles: int) -> None:
    with pytest.raises(InputError, match=r"field cycles: .* at most the 8 steps"):
        rates(1, schedule="cyclic", learning_rate=0.1, total_steps=10, warmup_steps=2, cycles=cycles)


def test_schedules_equal_pytorch() -> None:
    torch = pytest.importorskip("torch")
    total = 12
    for options, make in (
        ({"schedule": "cosine"}, lambda sgd: torch.optim.lr_scheduler.CosineAnnealingLR(sgd, total)),
        ({"schedule": "step", "milestones": (5, 9)}, lambda sgd: torch.optim.lr_scheduler.MultiStepLR(sgd, [5, 9])),
        ({"schedule": "poly"}, lambda sgd: torch.optim.lr_scheduler.PolynomialLR(sgd, total, power=0.9)),
    ):
        sgd = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
        scheduler, expected = make(sgd), []
        for _ in range(total):
            expected.append(scheduler.get_last_lr()[0])
            sgd.step()
            scheduler.step()
        np.testing.assert_allclose(rates(total, learning_rate=0.1, total_steps=total, **options), expected, rtol=1e-5)


def test_average_is_the_exponential_moving_average() -> None:
    options = {"optimizer": "sgd", "learning_rate": 0.1, "weight_decay": 0.01, "total_steps": 6}
    path, state = descend(make_optimizer(**options, ema=0.8), 6)
    plain_path, plain_state = descend(make_optimizer(**options), 6)
    chex.assert_trees_all_equal(path, plain_path)  # the average changes nothing
    expected = jax.tree.map(lambda *p: 0.8**6 * p[0] + sum(0.2 * 0.8 ** (6 - t) * p[t] for t in range(1, 7)), *path)
    chex.assert_trees_all_close(averaged(state), expected, rtol=1e-5)
    assert averaged(plain_state) is None


def test_average_of_members_is_each_members() -> None:
    tx = make_optimizer(optimizer="adamw", learning_rate=0.1, weight_decay=0.0, total_steps=3, ema=0.5)
    members = jax.tree.map(lambda p: jnp.stack([p, 2 * p]), START)
    state = jax.vmap(tx.init)(members)
    chex.assert_trees_all_equal(averaged(state), members)
    _, state = jax.vmap(tx.update)(jax.vmap(slope)(members), state, members)
    for m in range(2):
        params = jax.tree.map(lambda p: p[m], members)  # noqa: B023
        _, alone = tx.update(slope(params), tx.init(params), params)
        chex.assert_trees_all_close(jax.tree.map(lambda p: p[m], averaged(state)), averaged(alone), rtol=1e-6)  # noqa: B023


def test_average_can_be_donated_with_the_parameters() -> None:
    tx = make_optimizer(optimizer="sgd", learning_rate=0.1, weight_decay=0.0, total_steps=3, ema=0.5)
    params = jax.tree.map(jnp.asarray, START)

    def step(params: Any, state: Any) -> Any:
        updates, state = tx.update(slope(params), state, params)
        return optax.apply_updates(params, updates), state

    new, state = jax.jit(step, donate_argnums=(0, 1))(params, tx.init(params))
    expected = jax.tree.map(lambda p, q: 0.5 * p + 0.5 * q, START, new)
    chex.assert_trees_all_close(averaged(state), expected, rtol=1e-6)


def test_clip_scales_the_gradient_to_the_norm_and_no_further() -> None:
    gradient = slope(START)
    norm = float(np.sqrt(sum(np.sum(np.square(g)) for g in gradient.values())))
    for clip, factor in ((norm / 4, 0.25), (norm * 2, 1.0), (0.0, 1.0)):
        tx = make_optimizer(
            optimizer="sgd",
            learning_rate=1.0,
            weight_decay=0.0,
            total_steps=1,
            schedule="constant",
            gradient_clip=clip,
        )
        updates, _ = tx.update(gradient, tx.init(START), START)
        chex.assert_trees_all_close(updates, jax.tree.map(lambda g: -factor * g, gradient), rtol=1e-5)  # noqa: B023


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("optimizer", "adma"),
        ("schedule", "cos"),
        ("decay", "biases"),
        ("gradient_clip", -1.0),
        ("ema", 1.0),
        ("warmup_steps", 10),
        ("milestones", (5, 5)),
        ("milestones", (2, 5)),
    ],
)
def test_bad_fields_are_refused(field: str, value: Any) -> None:
    options = {"optimizer": "sgd", "learning_rate": 0.1, "weight_decay": 0.0, "total_steps": 10, "warmup_steps": 2}
    with pytest.raises(InputError, match=f"field {field}: "):
        make_optimizer(**(options | {field: value}))


@pytest.mark.parametrize("kind", ["batch_ensemble", "packed"])
def test_signs_and_biases_of_members_are_no_kernels(kind: str) -> None:
    """With a gradient of 0 a step takes off what decays, and nothing else."""
    ensemble = InNetwork(kind, 2)
    model = models.build("mlp", input_shape=(4,), num_classes=3, hidden=(6,), ensemble=ensemble)
    params = jax.tree.map(jnp.ones_like, model.init(jax.random.key(0))[0])
    tx = make_optimizer(optimizer="adamw", learning_rate=0.1, weight_decay=0.5, total_steps=1, schedule="constant")
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    for path, leaf in jax.tree_util.tree_leaves_with_path(updates):
        np.testing.assert_allclose(leaf, -0.05 if "'kernel'" in jax.tree_util.keystr(path) else 0.0, err_msg=str(path))


# Sharpness-aware minimisation


def network(params: Any, inputs: jax.Array, key: jax.Array) -> tuple[jax.Array, Any]:
    kept = jax.random.bernoulli(key, 0.5, inputs.shape)
    hidden = jnp.tanh(inputs * kept @ params["kernel"]) + params["bias"][None]
    return jnp.mean(hidden**2), {"kept": kept, "loss": jnp.mean(hidden**2)}


def test_sam_is_the_gradient_at_the_perturbed_point() -> None:
    inputs, key, rho = jax.random.normal(jax.random.key(0), (6, 2)), jax.random.key(1), 0.2
    value_and_grad = jax.value_and_grad(network, has_aux=True)
    params = jax.tree.map(jnp.asarray, START)
    value, gradient = jax.jit(sam_gradient(value_and_grad, rho))(params, inputs, key)
    plain_value, g = value_and_grad(params, inputs, key)
    norm = np.sqrt(np.sum(np.square(g["kernel"])) + np.sum(np.square(g["bias"])))
    worst = {name: params[name] + rho * g[name] / norm for name in params}
    chex.assert_trees_all_close(gradient, value_and_grad(worst, inputs, key)[1], rtol=1e-5)
    chex.assert_trees_all_close(value, plain_value, rtol=1e-6)  # loss and aux of the unperturbed pass
    moved = np.sqrt(sum(np.sum(np.square(worst[name] - params[name])) for name in params))
    np.testing.assert_allclose(moved, rho, rtol=1e-5)
    assert value_and_grad(worst, inputs, key)[0][0] > plain_value[0]  # up the hill


def test_sam_of_a_quadratic_in_closed_form() -> None:
    """∇L(θ) = c(θ − θ*), so that SAM's gradient is ∇L(θ) + c·ρ·∇L(θ)/‖∇L(θ)‖."""
    plain = slope(START)
    _, gradient = sam_gradient(jax.value_and_grad(quadratic), 0.3)(START)
    factor = 1 + CURVATURE * 0.3 / float(optax.tree.norm(plain))
    chex.assert_trees_all_close(gradient, jax.tree.map(lambda g: factor * g, plain), rtol=1e-5)


def test_sam_equals_optax_in_opaque_mode() -> None:
    rate, rho = 0.1, 0.2
    tx = optax.contrib.sam(
        optax.sgd(rate), optax.chain(optax.contrib.normalize(), optax.sgd(rho)), sync_period=2, opaque_mode=True
    )
    params = jax.tree.map(jnp.asarray, START)
    updates, _ = tx.update(slope(params), tx.init(params), params, grad_fn=lambda p, _: slope(p))
    ours = make_optimizer(
        optimizer="sgd", learning_rate=rate, weight_decay=0.0, momentum=0.0, total_steps=1, schedule="constant"
    )
    path, _ = descend(ours, 1, lambda p: sam_gradient(jax.value_and_grad(quadratic), rho)(p)[1])
    chex.assert_trees_all_close(path[1], optax.apply_updates(params, updates), rtol=1e-5)


def test_sam_of_radius_0_or_at_a_stationary_point_is_the_plain_gradient() -> None:
    value_and_grad = jax.value_and_grad(quadratic)
    chex.assert_trees_all_equal(sam_gradient(value_and_grad, 0.0)(START), value_and_grad(START))
    _, gradient = jax.jit(sam_gradient(value_and_grad, 0.2))(jax.tree.map(jnp.asarray, TARGET))
    chex.assert_trees_all_equal(gradient, jax.tree.map(np.zeros_like, TARGET))


def test_clip_comes_after_sam() -> None:
    gradient = sam_gradient(jax.value_and_grad(quadratic), 0.2)
    clip = float(optax.tree.norm(slope(START))) * 1.001  # above the plain norm, below SAM's
    tx = make_optimizer(
        optimizer="sgd", learning_rate=1.0, weight_decay=0.0, total_steps=1, schedule="constant", gradient_clip=clip
    )
    path, _ = descend(tx, 1, lambda p: gradient(p)[1])
    moved = optax.tree.norm(jax.tree.map(lambda a, b: a - b, path[0], path[1]))
    np.testing.assert_allclose(moved, clip, rtol=1e-5)
