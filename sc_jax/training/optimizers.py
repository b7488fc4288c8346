"""Optimisers and schedules of the recipes, chained from optax; sharpness-aware gradients; averaged parameters."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from sc_jax.files import InputError

OPTIMIZERS = ("adamw", "adam", "sgd", "nesterov")
SCHEDULES = ("cosine", "step", "poly", "constant", "cyclic")
DECAYED = ("all", "kernels")


def make_schedule(
    *,
    schedule: str,
    learning_rate: float,
    total_steps: int,
    warmup_steps: int = 0,
    warmup_factor: float = 0.0,
    milestones: tuple[int, ...] = (),
    decay_factor: float = 0.1,
    power: float = 0.9,
    cycles: int = 0,
) -> optax.Schedule:
    """The learning rate at each step: a linear warm-up, then a decay.

    With peak η, warm-up W, total T and t steps done, for t < W: η·(f + (1 − f)·t/W) with f = `warmup_factor`. From W on,
    with u = (t − W)/(T − W): "cosine" η·(1 + cos πu)/2; "poly" η·(1 − u)^power; "step" η·`decay_factor`^(number of
    milestones ≤ t); "constant" η; "cyclic" that of "cosine" in each of `cycles` cycles, with W and T the bounds of the cycle
    (`cycle_ends`).

    Args:
      schedule: one of `SCHEDULES`.
      learning_rate: η, reached at the end of the warm-up.
      total_steps, warmup_steps, milestones: in steps since the start of training.
      warmup_factor: where the warm-up starts, as a share of η.
      decay_factor: of "step"; power: of "poly"; cycles: of "cyclic".

    Returns:
      A function of the number of steps done.

    Raises:
      InputError: an unknown schedule, a warm-up that fills the training, milestones that do not rise after it, or no cycles, or
        more than steps.

    Source: cosine, Loshchilov & Hutter (2017), SGDR, eq. 5, one period; cyclic, Huang et al. (2017), Snapshot ensembles, eq. 2;
    poly, Chen et al. (2018), DeepLab, sec. 4.1.2.
    """
    _require(schedule in SCHEDULES, "schedule", schedule, f"one of {', '.join(SCHEDULES)}")
    _require(0 <= warmup_steps < total_steps, "warmup_steps", warmup_steps, f"≥ 0 and below total_steps {total_steps}")
    knots = (warmup_steps, *milestones)
    rises = all(a < b for a, b in itertools.pairwise(knots))
    _require(rises, "milestones", milestones, f"rising, and after the warm-up of {warmup_steps} steps")
    decay_steps = total_steps - warmup_steps
    if schedule == "cosine":
        decay = optax.cosine_decay_schedule(learning_rate, decay_steps)
    elif schedule == "cyclic":
        ends = cycle_ends(total_steps, warmup_steps, cycles)
        bounds = [end - warmup_steps for end in (warmup_steps, *ends)]
        each = [optax.cosine_decay_schedule(learning_rate, b - a) for a, b in itertools.pairwise(bounds)]
        decay = optax.join_schedules(each, bounds[1:-1])
    elif schedule == "poly":
        decay = optax.polynomial_schedule(learning_rate, 0.0, power, decay_steps)
    elif schedule == "step":
        decay = optax.piecewise_constant_schedule(learning_rate, {m - warmup_steps: decay_factor for m in milestones})
    else:
        decay = optax.constant_schedule(learning_rate)
    warmup = optax.linear_schedule(learning_rate * warmup_factor, learning_rate, warmup_steps)
    return optax.join_schedules([warmup, decay], [warmup_steps])


def cycle_ends(total_steps: int, warmup_steps: int, cycles: int) -> tuple[int, ...]:
    """The last step of each cycle of the schedule "cyclic": W + ⌊i(T − W)/M⌋ for i = 1..M.

    Cycles differ by one step at most. In the paper each has ⌈T/M⌉ steps but the last, which takes what is left; with M a divisor of
    T, and without a warm-up, which the paper has not, that is the same.

    Args:
      total_steps: T; warmup_steps: W; cycles: M.

    Returns:
      M numbers of steps since the start of training.

    Raises:
      InputError: there is no cycle, or one without a step.

    Source: Huang et al. (2017), Snapshot ensembles, eq. 2, with bounds of our own.

    >>> cycle_ends(10, 0, 4)
    (2, 5, 7, 10)
    """
    steps = total_steps - warmup_steps
    _require(0 < cycles <= steps, "cycles", cycles, f"positive, and at most the {steps} steps after the warm-up")
    return tuple(warmup_steps + i * steps // cycles for i in range(1, cycles + 1))


def make_optimizer(
    *,
    optimizer: str,
    learning_rate: float,
    weight_decay: float,
    total_steps: int,
    schedule: str = "cosine",
    warmup_steps: int = 0,
    warmup_factor: float = 0.0,
    milestones: tuple[int, ...] = (),
    decay_factor: float = 0.1,
    power: float = 0.9,
    momentum: float = 0.9,
    betas: tuple[float, float] = (0.9, 0.999),
    decay: str = "kernels",
    cycles: int = 0,
    gradient_clip: float = 0.0,
    ema: float = 0.0,
    collect: optax.GradientTransformation | None = None,
) -> optax.GradientTransformation:
    """The optimiser of a recipe: clip, decay, step, average, in the order PyTorch's recipes have.

    "sgd" and "nesterov" (momentum without dampening) and "adam" add λθ to the clipped gradient before anything else
    (coupled L2 decay); "adamw" adds λθ to the finished direction (decoupled decay, Loshchilov & Hutter 2019), so that a
    step takes off η·λθ. Adam's ε is 1e−8.

    Args:
      optimizer: one of `OPTIMIZERS`.
      learning_rate, schedule, total_steps, warmup_steps, warmup_factor, milestones, decay_factor, power, cycles: of
        `make_schedule`.
      weight_decay: λ.
      momentum: of "sgd" and "nesterov"; betas: of "adam" and "adamw".
      decay: what is decayed, "all" (PyTorch's default: scales and biases too) or "kernels" (arrays of rank above 1,
        but the signs and biases of an ensemble's members).
      gradient_clip: the gradient of all parameters together is scaled down to this norm; 0 leaves it.
      ema: the decay of `average_parameters`; 0 keeps no average.
      collect: of `sc_jax.training.ensembles`, what is kept of the parameters on the way.

    Returns:
      An optax transformation of one member's gradient; its `update` needs the parameters.

    Raises:
      InputError: an unknown name, or a schedule that `make_schedule` refuses.
    """
    _require(optimizer in OPTIMIZERS, "optimizer", optimizer, f"one of {', '.join(OPTIMIZERS)}")
    _require(decay in DECAYED, "decay", decay, f"one of {', '.join(DECAYED)}")
    _require(gradient_clip >= 0, "gradient_clip", gradient_clip, "≥ 0")
    _require(0 <= ema < 1, "ema", ema, "in [0, 1)")
    rate = make_schedule(
        schedule=schedule,
        learning_rate=learning_rate,
        total_steps=total_steps,
        warmup_steps=warmup_steps,
        warmup_factor=warmup_factor,
        milestones=milestones,
        decay_factor=decay_factor,
        power=power,
        cycles=cycles,
    )
    mask = (lambda params: jax.tree_util.tree_map_with_path(_is_kernel, params)) if decay == "kernels" else None
    decayed = optax.add_decayed_weights(weight_decay, mask)
    if optimizer in ("sgd", "nesterov"):
        direction = [decayed, optax.trace(momentum, nesterov=optimizer == "nesterov")]
    else:
        adam = optax.scale_by_adam(*betas, eps=1e-8)
        direction = [adam, decayed] if optimizer == "adamw" else [decayed, adam]
    clip = [optax.clip_by_global_norm(gradient_clip)] if gradient_clip else []
    kept = ([average_parameters(ema)] if ema else []) + ([collect] if collect else [])
    return optax.chain(*clip, *direction, optax.scale_by_learning_rate(rate), *kept)


PER_MEMBER = ("fast_in", "fast_out", "member_bias")
"""Names of arrays [m, w] that are scales and biases of a network's m members (`sc_jax.models.ensemble_layers`), not kernels."""


def _is_kernel(path: Any, parameter: jax.Array) -> bool:
    return parameter.ndim > 1 and not any(getattr(key, "key", None) in PER_MEMBER for key in path)


class AverageState(NamedTuple):
    """The state of `average_parameters`: `average` has the parameters' tree, shapes and types."""

    average: Any


def average_parameters(decay: float) -> optax.GradientTransformation:
    """Keeps an exponential moving average of the parameters; passes updates on as they are.

    θ̄₀ = θ₀, θ̄ₜ = decay·θ̄ₜ₋₁ + (1 − decay)·θₜ, with θₜ the parameters after step t. It has to be the last of a chain, where
    updates are what is added to the parameters. Batch statistics are not averaged: they are averages already.

    Args:
      decay: in [0, 1); about 1/(1 − decay) steps are averaged over.

    Returns:
      An optax transformation; read the average with `averaged`.

    Source: Polyak & Juditsky (1992) for averaging; the exponential form as in Szegedy et al. (2016), sec. 8.
    """

    def init(params: Any) -> AverageState:
        return AverageState(jax.tree.map(jnp.copy, params))  # no shared buffer: a training step donates both

    def update(updates: Any, state: AverageState, params: Any) -> tuple[Any, AverageState]:
        new = optax.apply_updates(params, updates)
        return updates, AverageState(jax.tree.map(lambda a, p: decay * a + (1 - decay) * p, state.average, new))

    return optax.GradientTransformation(init, update)


def averaged(opt_state: Any) -> Any | None:
    """The averaged parameters in the state of an optimiser (of one member or of many), or None if it keeps none."""
    states = jax.tree.leaves(opt_state, is_leaf=lambda node: isinstance(node, AverageState))
    return next((state.average for state in states if isinstance(state, AverageState)), None)


def sam_gradient(value_and_grad: Callable[..., tuple[Any, Any]], rho: float) -> Callable[..., tuple[Any, Any]]:
    """Sharpness-aware minimisation: the gradient at the worst point nearby instead of the gradient here.

    g = ∇L(θ); the result is ∇L(θ + ρ·g/‖g‖₂), the norm over all parameters together. What optimises it (clip, momentum,
    decay) comes after, as with any gradient.

    Args:
      value_and_grad: (params, *args) → (value, gradient), as `jax.value_and_grad` makes it, with or without `aux`.
      rho: ρ, the radius; 0 gives the plain gradient.

    Returns:
      A function of the same arguments. Both passes get the same ones (batch, dropout key, batch statistics); the value,
      and with it `aux`, is that of the first pass. Where the gradient is 0, nothing is perturbed.

    Source: Foret et al. (2021), Sharpness-Aware Minimization, Algorithm 1 and eq. 2 with p = 2.
    """

    def sharpness_aware(params: Any, *args: Any) -> tuple[Any, Any]:
        value, grads = value_and_grad(params, *args)
        norm = optax.tree.norm(grads)
        length = jnp.where(norm > 0, rho / norm, 0.0)
        _, grads = value_and_grad(jax.tree.map(lambda p, g: p + length * g, params, grads), *args)
        return value, grads

    return sharpness_aware


def _require(holds: bool, field: str, value: Any, needed: str) -> None:
    if not holds:
        raise InputError(f"optimiser, field {field}: {value!r}; it must be {needed}")
