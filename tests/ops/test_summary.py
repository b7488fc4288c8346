"""The summary is each metric by its own name."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sc_jax import ops

EACH = {
    "error": lambda score, error, **kw: ops.risk_at_coverage(score, error, 1, **kw),
    "aurc": ops.aurc,
    "e_aurc": ops.e_aurc,
    "naurc": ops.naurc,
    "augrc": ops.augrc,
    "e_augrc": ops.e_augrc,
    "failure_auroc": ops.failure_auroc,
    "coverage_at_risk_0.01": lambda score, error, **kw: ops.coverage_at_risk(score, error, 0.01, **kw),
    "coverage_at_risk_0.02": lambda score, error, **kw: ops.coverage_at_risk(score, error, 0.02, **kw),
    "coverage_at_risk_0.05": lambda score, error, **kw: ops.coverage_at_risk(score, error, 0.05, **kw),
    "risk_at_coverage_0.8": lambda score, error, **kw: ops.risk_at_coverage(score, error, 0.8, **kw),
    "risk_at_coverage_0.9": lambda score, error, **kw: ops.risk_at_coverage(score, error, 0.9, **kw),
    **{
        f"aurc_{name}": lambda score, error, name=name, **kw: ops.aurc(score, error, name, **kw)
        for name in ("trapezoid_from_zero", "torch_uncertainty", "ln", "sele")
    },
}


@pytest.fixture(scope="module")
def sample():
    rng = np.random.default_rng(0)
    score = rng.integers(0, 60, 400) / 8
    error = rng.random(400) < np.exp(-score)
    return score, error, rng.multinomial(400, np.full(400, 1 / 400), size=5).astype(np.uint8)


@pytest.mark.parametrize("weighted", [False, True])
def test_summary_is_each_metric(sample, weighted):
    score, error, counts = sample
    weight = counts if weighted else None
    summary = ops.summarise(score, error, weight=weight)
    assert list(summary) == list(EACH)
    for name, metric in EACH.items():
        expected = metric(score, error, weight=weight)
        np.testing.assert_allclose(summary[name], expected, rtol=1e-13, atol=1e-15, err_msg=name)


def test_summary_of_a_batch_on_devices(sample):
    score, error, counts = sample
    scores = np.stack([score, -score, score % 1])
    batch = jax.jit(jax.vmap(lambda s: ops.summarise(s, jnp.asarray(error), weight=jnp.asarray(counts))))(
        jnp.asarray(scores)
    )
    for i in range(3):
        host = ops.summarise(scores[i], error, weight=counts)
        for name, value in host.items():
            np.testing.assert_allclose(batch[name][i], value, rtol=2e-6, atol=1e-7, err_msg=name)


def test_soft_losses_are_refused():
    with pytest.raises(ValueError, match="losses are soft"):
        ops.summarise(np.arange(2.0), np.array([0.5, 0.0]))


def test_the_auroc_of_a_perfect_ranking_is_1_and_of_the_worst_is_0():
    for n, wrong in ((10, 9), (100, 93), (50_000, 49_999)):
        error = np.arange(n) < wrong
        score = np.where(error, 0.0, 1.0) + np.linspace(0, 0.5, n)
        assert ops.summarise(score, error)["failure_auroc"] == 1
        assert ops.summarise(-score, error)["failure_auroc"] == 0
