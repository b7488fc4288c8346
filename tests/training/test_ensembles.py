"""What is collected equals what a list of parameter copies gives; what SWAG draws has the covariance of its formula."""

from __future__ import annotations

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sc_jax.training import ensembles
from sc_jax.training.optimizers import averaged, make_optimizer

STEPS = 11
START = {"kernel": np.linspace(-1, 1, 6).reshape(3, 2).astype(np.float32), "bias": np.float32([0.3, -2.0])}


def trained(collect: Any, steps: int = STEPS, members: int | None = None) -> tuple[list[Any], Any]:
    """The parameters after each step (of the first member), and the optimiser's state, of noisy steps under `jit` with donation."""
    tx = make_optimizer(
        optimizer="adamw", learning_rate=0.1, weight_decay=0.01, total_steps=STEPS, schedule="constant", collect=collect
    )
    rng = np.random.default_rng(0)
    gradients = [jax.tree.map(lambda p: rng.standard_normal(p.shape).astype(np.float32), START) for _ in range(steps)]
    params = jax.tree.map(jnp.asarray, START)

    def one(params: Any, opt_state: Any, gradient: Any) -> tuple[Any, Any]:
        updates, opt_state = tx.update(gradient, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    init = tx.init
    if members:
        one, init = jax.vmap(one, in_axes=(0, 0, None)), jax.vmap(init)
        params = jax.tree.map(lambda p: jnp.stack([p + m for m in range(members)]), params)
    step, opt_state, path = jax.jit(one, donate_argnums=(0, 1)), jax.jit(init)(params), []
    for gradient in gradients:
        params, opt_state = step(params, opt_state, gradient)
        path.append(jax.tree.map(lambda p: np.array(p[0] if members else p), params))
    return path, opt_state


def stacked(path: list[Any]) -> Any:
    return jax.tree.map(lambda *leaves: np.stack(leaves).astype(np.float64), *path)


def test_collecting_does_not_change_what_is_learned() -> None:
    plain, _ = trained(None)
    for collect in (ensembles.keep_snapshots((4,)), ensembles.keep_mean(3, 2), ensembles.keep_gaussian(3, 2, 2)):
        chex.assert_trees_all_equal(plain, trained(collect)[0])


def test_snapshots_are_the_parameters_after_their_steps() -> None:
    path, opt_state = trained(ensembles.keep_snapshots((1, 4, STEPS)))
    kept = ensembles.collected(opt_state, ensembles.Snapshots)
    chex.assert_trees_all_equal(kept.params, jax.tree.map(np.float32, stacked([path[0], path[3], path[10]])))
    assert kept.count == STEPS


def test_a_snapshot_that_has_not_come_is_zero() -> None:
    _, opt_state = trained(ensembles.keep_snapshots((2, 9)), steps=8)
    kept = ensembles.collected(opt_state, ensembles.Snapshots).params
    assert np.abs(kept["kernel"][0]).min() > 0
    assert not np.any(kept["kernel"][1])


CASES = [(3, 2, [3, 5, 7, 9, 11]), (0, 4, [4, 8]), (11, 5, [11]), (1, 1, list(range(1, 12))), (12, 1, [])]


@pytest.mark.parametrize(("start", "every", "steps"), CASES)
def test_the_mean_is_that_of_copies(start: int, every: int, steps: list[int]) -> None:
    path, opt_state = trained(ensembles.keep_mean(start, every))
    kept = ensembles.collected(opt_state, ensembles.Mean)
    assert kept.taken == len(steps) == ensembles.collections(start, every, STEPS)
    if steps:
        expected = jax.tree.map(lambda leaf: leaf.mean(0), stacked([path[s - 1] for s in steps]))
        chex.assert_trees_all_close(kept.mean, jax.tree.map(np.float32, expected), atol=1e-6)


@pytest.mark.parametrize("members", [None, 2])
@pytest.mark.parametrize(("start", "every", "steps"), CASES[:1] + CASES[3:4])
def test_the_gaussian_is_that_of_copies(start: int, every: int, steps: list[int], members: int | None) -> None:
    rank = 3
    path, opt_state = trained(ensembles.keep_gaussian(start, every, rank), members=members)
    kept = ensembles.collected(opt_state, ensembles.Gaussian)
    kept = jax.tree.map(lambda leaf: leaf[0], kept) if members else kept
    copies = stacked([path[s - 1] for s in steps])
    assert kept.taken == len(steps)
    for name, leaf in copies.items():
        np.testing.assert_allclose(kept.mean[name], leaf.mean(0), atol=1e-6)
        np.testing.assert_allclose(kept.squares[name] / len(steps), (leaf**2).mean(0) - leaf.mean(0) ** 2, atol=1e-6)
        means = np.cumsum(leaf, 0) / np.arange(1, len(leaf) + 1).reshape(-1, *[1] * (leaf.ndim - 1))
        last = (leaf - means)[-rank:]
        found = np.asarray(kept.deviations[name]).reshape(rank, -1)
        order = [(len(steps) - rank + i) % rank for i in range(rank)]
        np.testing.assert_allclose(found[order], last.reshape(rank, -1), atol=1e-6)


def test_squares_survive_parameters_that_hardly_move() -> None:
    """A spread of 1e-4 around 1: the mean of squares less the square of the mean would keep no digit of it in float32."""
    tx = ensembles.keep_gaussian(1, 1, 2)
    rng = np.random.default_rng(0)
    values = (1 + 1e-4 * rng.standard_normal(50)).astype(np.float32)
    params, opt_state = {"w": jnp.zeros(1)}, tx.init({"w": jnp.zeros(1)})
    for value in values:
        _, opt_state = tx.update({"w": value - params["w"]}, opt_state, params)
        params = {"w": jnp.full(1, value)}
    found = opt_state.squares["w"][0] / opt_state.taken
    np.testing.assert_allclose(found, values.astype(np.float64).var(), rtol=1e-2)


def test_draws_have_the_covariance_of_the_formula() -> None:
    """½(Σ_diag + D Dᵀ/(r − 1)) over all parameters together, within five standard errors of 20,000 draws."""
    rng = np.random.default_rng(1)
    shapes, rank, n, draws = {"a": (2,), "b": (1, 2)}, 3, 7, 20_000
    mean, squares = ({k: rng.standard_normal(s).astype(np.float32) for k, s in shapes.items()} for _ in range(2))
    squares = {k: n * v**2 for k, v in squares.items()}
    deviations = {k: rng.standard_normal((rank, *s)).astype(np.float32) for k, s in shapes.items()}
    gaussian = ensembles.Gaussian(jnp.asarray(20), jnp.asarray(n), mean, squares, deviations)
    drawn = jax.vmap(lambda key: ensembles.draw(gaussian, key))(jax.random.split(jax.random.key(0), draws))
    rows = np.concatenate([np.asarray(drawn[k], np.float64).reshape(draws, -1) for k in shapes], 1)
    diagonal = np.concatenate([squares[k].ravel() / n for k in shapes])
    low_rank = np.concatenate([deviations[k].reshape(rank, -1) for k in shapes], 1).T
    expected = 0.5 * (np.diag(diagonal) + low_rank @ low_rank.T / (rank - 1))
    centre = np.concatenate([mean[k].ravel() for k in shapes])
    deviation = np.sqrt(np.diag(expected))
    assert (np.abs(rows.mean(0) - centre) < 5 * deviation / np.sqrt(draws)).all()
    # Of normal samples the variance of a sample covariance is (σ_ij² + σ_ii σ_jj)/n.
    error = np.sqrt((expected**2 + np.outer(deviation, deviation) ** 2) / draws)
    assert (np.abs(np.cov(rows.T) - expected) < 5 * error).all()


def test_a_gaussian_without_spread_gives_its_mean() -> None:
    tx = ensembles.keep_gaussian(1, 1, 2)
    params = {"w": jnp.float32([1.5, -3.0])}
    opt_state = tx.init(params)
    for _ in range(4):
        _, opt_state = tx.update({"w": jnp.zeros(2)}, opt_state, params)
    np.testing.assert_array_equal(ensembles.draw(opt_state, jax.random.key(0))["w"], params["w"])


def test_what_was_not_collected_is_an_error_and_an_average_may_stand_beside() -> None:
    _, opt_state = trained(ensembles.keep_mean(1, 1))
    assert averaged(opt_state) is None
    with pytest.raises(ValueError, match="no Snapshots"):
        ensembles.collected(opt_state, ensembles.Snapshots)
