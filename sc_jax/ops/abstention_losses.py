"""Losses of classifiers that are trained to abstain: beside K logits there is a logit of abstention, or a head that selects.

Each gives a value per example whose mean over the batch is the loss; of those that weigh an example against its batch only that mean has a
meaning. All are computed in at least float32. The confidence that each trains is a logit, which does not saturate:
`sc_jax.ops.abstention_log_odds`, or the logit of selection itself.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from sc_jax.ops.areas import aurc_loss
from sc_jax.ops.losses import _at, _wide, smoothed_cross_entropy, soft_cross_entropy
from sc_jax.ops.scores import msp


def _log_sum(logits: jax.Array, abstain_logit: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """v, a, and ln of the sum of all K + 1 exponentials."""
    v, a = _wide(logits), _wide(abstain_logit)
    return v, a, jnp.logaddexp(jax.nn.logsumexp(v, axis=-1), a)


def gambler_loss(logits: jax.Array, abstain_logit: jax.Array, label: jax.Array, payoff: jax.Array | float) -> jax.Array:
    """Deep Gamblers: L = −ln(q_y + q_{K+1}/o), q the softmax over K classes and abstention.

    The doubling rate, negated, of a gambler who is paid o for the right class and keeps what is not bet, less ln o. With q_{K+1} = 0 it is
    cross-entropy. With o ≤ 1 abstaining from all costs nothing; with o ≥ K an even bet on all classes is at least as good.

    Args:
      logits: [..., K]; abstain_logit: [...], of class K + 1; label: int [...].
      payoff: o in (1, K], scalar or [...]; the authors' default is 2.2.

    Returns:
      [...], in nats.

    Source: Liu et al., "Deep Gamblers: Learning to abstain with portfolio theory", NeurIPS 2019, eq. 9 (numbering from memory).

    >>> v, y = jnp.array([1.0, 0.0, -1.0]), jnp.asarray(0)
    >>> never, plain = gambler_loss(v, jnp.asarray(-1e4), y, 2.2), smoothed_cross_entropy(v, y, 0.0)
    >>> bool(jnp.isclose(never, plain)), round(float(gambler_loss(v, jnp.asarray(50.0), y, 2.2)), 4)  # ln 2.2
    (True, 0.7885)
    """
    v, a, total = _log_sum(logits, abstain_logit)
    return total - jnp.logaddexp(_at(v, label), a - jnp.log(jnp.asarray(payoff, a.dtype)))


def self_adaptive_target(
    target: jax.Array, logits: jax.Array, label: jax.Array, momentum: jax.Array | float
) -> jax.Array:
    """The running target of an example's label after one more visit: t ← m·t + (1 − m)·p_y, p the softmax over the K classes.

    The paper keeps all K targets; the loss reads the label's alone, and no other enters its update.

    Args:
      target: t [...], 1 before the first visit; logits: [..., K]; label: int [...]; momentum: m in [0, 1].

    Returns:
      [...]; no gradient goes through it.

    Source: Huang, Zhang & Zhang, "Self-adaptive training", NeurIPS 2020; p over K classes, not K + 1, as in the authors' code.

    >>> round(float(self_adaptive_target(jnp.asarray(1.0), jnp.zeros(4), jnp.asarray(2), 0.9)), 4)  # 0.9 + 0.1/4
    0.925
    """
    p = jnp.exp(_at(jax.nn.log_softmax(_wide(logits)), label))
    return jax.lax.stop_gradient(momentum * target + (1 - momentum) * p)


def self_adaptive_loss(logits: jax.Array, abstain_logit: jax.Array, label: jax.Array, target: jax.Array) -> jax.Array:
    """Self-adaptive training for selective classification: L = −t·ln q_y − (1 − t)·ln q_{K+1}, q as of `gambler_loss`.

    With t = 1 it is cross-entropy over K + 1 classes. It is least, at fixed t, where q_y = t and q_{K+1} = 1 − t.

    Args:
      logits: [..., K]; abstain_logit: [...]; label: int [...]; target: t in [0, 1], of `self_adaptive_target`, [...].

    Returns:
      [...], in nats.

    Source: Huang, Zhang & Zhang, NeurIPS 2020, eq. 5 (numbering from memory).

    >>> even = self_adaptive_loss(jnp.zeros(3), jnp.asarray(0.0), jnp.asarray(0), jnp.asarray(0.7))
    >>> round(float(even), 4)  # ln 4, whatever t
    1.3863
    """
    v, a, total = _log_sum(logits, abstain_logit)
    return total - target * _at(v, label) - (1 - target) * a


def selective_net_loss(
    logits: jax.Array,
    selection_logit: jax.Array,
    auxiliary_logits: jax.Array,
    label: jax.Array,
    coverage: jax.Array | float,
    *,
    penalty: float = 32.0,
    balance: float = 0.5,
    normalise_by_coverage: bool = True,
) -> jax.Array:
    """SelectiveNet: α·[r̂ + λ·max(0, c − φ̂)²] + (1 − α)·CE(h), of a batch.

    With g = σ(selection), φ̂ = mean_i g_i and ℓ the cross-entropy of f: r̂ = mean_i(g_i ℓ_i)/φ̂, the selective risk. With g = 1 and c ≤ 1
    it is α·CE(f) + (1 − α)·CE(h).

    Args:
      logits: [b, K], of f; selection_logit: [b]; auxiliary_logits: [b, K], of h; label: int [b].
      coverage: c in (0, 1], the least that is accepted on average.
      penalty: λ; balance: α; defaults are the paper's.
      normalise_by_coverage: the paper's r̂. The published code leaves the division by φ̂ out (False); less coverage is then less loss, and c
        alone holds against it.

    Returns:
      [b], whose mean is the loss, in nats.

    Source: Geifman & El-Yaniv, "SelectiveNet", ICML 2019, eq. 2 to 6 (numbering from memory); their code for the flag.

    >>> v, y = jnp.zeros((2, 3)), jnp.array([0, 2])
    >>> sure = selective_net_loss(v, jnp.full(2, 99.0), v, y, 0.8)
    >>> half = selective_net_loss(v, jnp.zeros(2), v, y, 0.8) - sure  # ½·32·(0.8 − 0.5)² more
    >>> round(float(sure.mean() / jnp.log(3.0)), 5), round(float(half.mean()), 5)
    (1.0, 1.44)
    """
    selection = _wide(selection_logit)
    accepted = jnp.mean(jax.nn.sigmoid(selection))
    if normalise_by_coverage:  # g/φ̂ as a softmax over the batch, which is finite where φ̂ rounds to 0
        weight = len(selection) * jax.nn.softmax(jax.nn.log_sigmoid(selection))
    else:
        weight = jax.nn.sigmoid(selection)
    risk = weight * smoothed_cross_entropy(logits, label, 0.0)
    short = jax.nn.relu(coverage - accepted) ** 2
    auxiliary = smoothed_cross_entropy(auxiliary_logits, label, 0.0)
    return balance * (risk + penalty * short) + (1 - balance) * auxiliary


def softmax_entropy(logits: jax.Array) -> jax.Array:
    """H = −Σ_k p_k ln p_k, to be added β times to a loss, so that predictions become surer.

    The opposite sign of `confidence_penalty`. Added to the losses above, with the maximum softmax probability of the K classes as
    confidence in place of what they train, it is the recipe of the source.

    Args:
      logits: [..., K].

    Returns:
      [...], in nats, at most ln K.

    Source: Feng, Ahmed, Hajimirsadeghi & Abdi, "Towards better selective classification", ICLR 2023, β = 0.01 (from memory).

    >>> round(float(softmax_entropy(jnp.zeros(4)) / jnp.log(4.0)), 5)
    1.0
    """
    v = _wide(logits)
    return soft_cross_entropy(v, jax.nn.softmax(v))


def ranked_cross_entropy(
    logits: jax.Array, label: jax.Array, share: jax.Array | float, *, estimator: str = "mean"
) -> jax.Array:
    """(1 − w)·CE + w·AURC of the batch, by MSP, with cross-entropy as the loss: confident examples weigh more.

    Args:
      logits: [b, K]; label: int [b]; share: w in [0, 1], 0 is cross-entropy.
      estimator: of `sc_jax.ops.aurc_loss`, "mean" for AURC or "sele" for SELE. Ranks are hard: gradients reach the losses alone.

    Returns:
      [b], whose mean is the loss, in nats.

    Source: Zhou et al., ICML 2025 (AURC), and Franc, Průša & Voráček, JMLR 2023 (SELE), both from memory; the mixture with cross-entropy is ours.

    >>> of = jax.jit(ranked_cross_entropy)
    >>> round(float(of(jnp.zeros((4, 3)), jnp.zeros(4, int), 0.5).mean() / jnp.log(3.0)), 5)  # all tied: AURC is the mean loss
    1.0
    """
    loss = smoothed_cross_entropy(logits, label, 0.0)
    return (1 - share) * loss + share * aurc_loss(msp(_wide(logits)), loss, estimator)


def true_class_probability_loss(confidence_logit: jax.Array, logits: jax.Array, label: jax.Array) -> jax.Array:
    """ConfidNet: (σ(c) − p_y)², the regression of the probability of the true class by a head on a fixed network.

    Where p_y > ½ the prediction is right, and where p_y < 1/K it is wrong, so that a perfect regression ranks the two apart.

    Args:
      confidence_logit: c [...]; logits: [..., K], of the fixed network; label: int [...].

    Returns:
      [...], in [0, 1].

    Source: Corbière et al., "Addressing failure prediction by learning model confidence", NeurIPS 2019, eq. 4 (numbering from memory).

    >>> float(true_class_probability_loss(jnp.asarray(0.0), jnp.zeros(2), jnp.asarray(1)))
    0.0
    """
    p = jnp.exp(_at(jax.nn.log_softmax(_wide(logits)), label))
    return (jax.nn.sigmoid(_wide(confidence_logit)) - p) ** 2
