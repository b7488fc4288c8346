"""Training losses: one example's logits to a scalar; `vmap` makes batches.

All are computed in at least float32, and they and their gradients are finite for logits of ±1e4 in float32. Parameters
are data, scalars or [...], so that examples or members may differ in them. Closed forms of the gradients stand beside
them in `sc_jax.ops.logit_gradients`.

Two losses need no function of their own. A temperature in training is any of these of v/T, with 1/T times its gradient
there. Mixup and CutMix are w·L(y) + (1 − w)·L(y′), which `sc_jax.data.pipelines.Targets.loss` makes of any of these.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def _wide(logits: jax.Array) -> jax.Array:
    return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))


def _at(values: jax.Array, label: jax.Array) -> jax.Array:
    return jnp.take_along_axis(values, label[..., None], axis=-1)[..., 0]


def smoothed_cross_entropy(logits: jax.Array, label: jax.Array, alpha: jax.Array | float) -> jax.Array:
    """Cross-entropy against the smoothed target (1 − α)·onehot(y) + α/K.

    L = (1 − α)·(−ln p_y) + α·mean_k(−ln p_k) = −ln p_y + α(v_y − mean_k v_k); α = 0 is plain cross-entropy, and α may be
    negative.

    Args:
      logits: [..., K]; label: int [...]; alpha: scalar or [...] (data, not code: members may differ in it).

    Returns:
      [...], in nats.

    Source: Szegedy et al., CVPR 2016; the form of Xia et al., ICLR 2025.

    >>> float(smoothed_cross_entropy(jnp.zeros(4), jnp.asarray(1), 0.3))  # ln 4, whatever α
    1.3862943649291992
    """
    log_p = jax.nn.log_softmax(_wide(logits))
    return -(1 - alpha) * _at(log_p, label) - alpha * jnp.mean(log_p, axis=-1)


def smoothed_binary_cross_entropy(logit: jax.Array, label: jax.Array, alpha: jax.Array | float) -> jax.Array:
    """Binary cross-entropy of one logit z against the smoothed target t = (1 − α)y + α/2.

    L = −t ln σ(z) − (1 − t) ln σ(−z): that is `smoothed_cross_entropy` of the logits (0, z). Of two free logits (v_0, v_1)
    it is the same function of v_1 − v_0, but there gradient descent moves both, and so their difference twice as fast.

    Args:
      logit: [...], of class 1; label: 0 or 1, [...]; alpha: scalar or [...].

    Returns:
      [...], in nats.

    Source: Xia et al., ICLR 2025 (their code for binary tasks).

    >>> z, y = jnp.asarray(2.0), jnp.asarray(0)
    >>> of_two_logits = smoothed_cross_entropy(jnp.array([0.0, 2.0]), y, 0.2)
    >>> bool(jnp.isclose(smoothed_binary_cross_entropy(z, y, 0.2), of_two_logits))
    True
    """
    z = _wide(logit)
    target = (1 - alpha) * label + alpha / 2
    return target * jax.nn.softplus(-z) + (1 - target) * jax.nn.softplus(z)


def soft_cross_entropy(logits: jax.Array, target: jax.Array) -> jax.Array:
    """Cross-entropy against any distribution: L = −Σ_k t_k ln p_k.

    Smoothing and mixing are of this kind. So is distillation: t = softmax(u/T) of a teacher's logits u against v/T, often
    times T², so that its gradients keep their size as T grows.

    Args:
      logits, target: [..., K]; each target sums to 1.

    Returns:
      [...], in nats.

    Source: Hinton, Vinyals & Dean, "Distilling the knowledge in a neural network", 2015 (distillation).

    >>> float(soft_cross_entropy(jnp.zeros(4), jnp.array([0.5, 0.5, 0.0, 0.0])))  # ln 4, whatever the target
    1.3862943649291992
    """
    return -jnp.sum(target * jax.nn.log_softmax(_wide(logits)), axis=-1)


def focal_loss(logits: jax.Array, label: jax.Array, gamma: jax.Array | float) -> jax.Array:
    """Cross-entropy that counts less where the label is already likely: L = −(1 − p_y)^γ ln p_y.

    With the log-odds s = v_y − logsumexp_{k≠y} v_k it is exp(−γ·softplus(s))·softplus(−s), which has all its digits where
    p_y rounds to 1, and no power of 0 in its gradient.

    Args:
      logits: [..., K], K ≥ 2; label: int [...]; gamma: γ ≥ 0, scalar or [...]; 0 is plain cross-entropy.

    Returns:
      [...], in nats.

    Source: Lin et al., "Focal loss for dense object detection", ICCV 2017, of K classes and without class weights.

    >>> float(focal_loss(jnp.zeros(4), jnp.asarray(1), 2.0) / jnp.log(4.0))  # (1 − 1/4)²
    0.5625
    """
    v = _wide(logits)
    is_label = jax.nn.one_hot(label, v.shape[-1], dtype=bool)
    log_odds = _at(v, label) - jax.nn.logsumexp(jnp.where(is_label, -jnp.inf, v), axis=-1)
    return jnp.exp(-gamma * jax.nn.softplus(log_odds)) * jax.nn.softplus(-log_odds)


def logit_norm_cross_entropy(
    logits: jax.Array, label: jax.Array, temperature: jax.Array | float, *, epsilon: float = 1e-7
) -> jax.Array:
    """Cross-entropy of the logits on a sphere, u = v/(τ(‖v‖₂ + ε)): their direction alone is trained.

    Its gradient is at right angles to v, but for ε, so that more of ‖v‖ makes no loss smaller.

    Args:
      logits: [..., K]; label: int [...].
      temperature: τ > 0, scalar or [...]; the loss lies between ln(1 + (K − 1)e^(−√2/τ)) and ln(1 + (K − 1)e^(√2/τ)).
      epsilon: ε; at v = 0 the loss is ln K, and its gradient is finite, of the order of 1/(τε).

    Returns:
      [...], in nats.

    Source: Wei et al., "Mitigating neural network overconfidence with logit normalization", ICML 2022; ε is their code's.

    >>> v = jnp.array([3.0, 4.0])
    >>> [round(float(logit_norm_cross_entropy(scale * v, jnp.asarray(1), 1.0)), 5) for scale in (1.0, 100.0)]
    [0.59814, 0.59814]
    """
    v = _wide(logits)
    squares = jnp.sum(v * v, axis=-1)
    norm = jnp.where(squares > 0, jnp.sqrt(jnp.where(squares > 0, squares, 1)), 0)  # the root has no derivative at 0
    return smoothed_cross_entropy(v / (temperature * (norm + epsilon))[..., None], label, 0.0)


def confidence_penalty(logits: jax.Array, label: jax.Array, beta: jax.Array | float) -> jax.Array:
    """Cross-entropy that rewards entropy: L = −ln p_y − β·H(p), H = −Σ_k p_k ln p_k.

    Args:
      logits: [..., K]; label: int [...]; beta: scalar or [...]; 0 is plain cross-entropy.

    Returns:
      [...], in nats; for β ≥ 0 at least −β ln K.

    Source: Pereyra et al., "Regularizing neural networks by penalizing confident output distributions", ICLR 2017
    workshop.

    >>> round(float(confidence_penalty(jnp.zeros(4), jnp.asarray(1), 0.25) / jnp.log(4.0)), 6)  # 1 − β
    0.75
    """
    log_p = jax.nn.log_softmax(_wide(logits))
    return beta * jnp.sum(jnp.exp(log_p) * log_p, axis=-1) - _at(log_p, label)


def max_suppression(logits: jax.Array, label: jax.Array, alpha: jax.Array | float) -> jax.Array:
    """MaxSup: cross-entropy and a penalty on the max logit, L = −ln p_y + α(max_k v_k − mean_k v_k).

    Label smoothing is −ln p_y + α(v_y − mean_k v_k): the same where the prediction is right; where it is wrong smoothing
    favours the max logit, and MaxSup penalises it all the same.

    Args:
      logits: [..., K]; label: int [...]; alpha: scalar or [...]; the authors' code raises it from 0.1 to 0.2 in training.

    Returns:
      [...], in nats. Where logits tie at the top the derivative of max is shared between them.

    Source: Zhou et al., "MaxSup: Overcoming representation collapse in label smoothing", NeurIPS 2025.

    >>> v = jnp.array([2.0, 0.0, 1.0])
    >>> added = [loss(v, jnp.asarray(1), 0.3) - loss(v, jnp.asarray(1), 0.0) for loss in (smoothed_cross_entropy, max_suppression)]
    >>> [round(float(value), 6) for value in added]  # α(v_y − mean v), α(v_max − mean v)
    [-0.3, 0.3]
    """
    v = _wide(logits)
    return smoothed_cross_entropy(v, label, 0.0) + alpha * (jnp.max(v, axis=-1) - jnp.mean(v, axis=-1))


def margin_label_smoothing(
    logits: jax.Array, label: jax.Array, margin: jax.Array | float, weight: jax.Array | float
) -> jax.Array:
    """MbLS: cross-entropy and a penalty on logits that lie too far below the max, −ln p_y + λ Σ_k max(0, v_max − v_k − m).

    With m = 0 it is `max_suppression` with α = λK.

    Args:
      logits: [..., K]; label: int [...].
      margin: m ≥ 0, scalar or [...], in the unit of the logits.
      weight: λ, scalar or [...]. The authors' code takes the mean over classes: its weight (0.1, with m = 10) is λK.

    Returns:
      [...], in nats. Where v_max − v_k = m, the derivative is that of no penalty; where logits tie at the top, that of max
      is shared between them.

    Source: Liu et al., "The devil is in the margin: margin-based label smoothing for network calibration", CVPR 2022.

    >>> v, y = jnp.array([5.0, 4.0, 0.0]), jnp.asarray(0)
    >>> round(float(margin_label_smoothing(v, y, 3.0, 0.1) - margin_label_smoothing(v, y, 3.0, 0.0)), 6)  # 0.1·(5 − 0 − 3)
    0.2
    """
    v = _wide(logits)
    top = jnp.max(v, axis=-1, keepdims=True)
    beyond = jax.nn.relu(top - v - jnp.broadcast_to(margin, top.shape[:-1])[..., None])
    return smoothed_cross_entropy(v, label, 0.0) + weight * jnp.sum(beyond, axis=-1)


def acls(
    logits: jax.Array,
    label: jax.Array,
    weight: jax.Array | float,
    *,
    margin: jax.Array | float = 10.0,
    others: jax.Array | float = 0.1,
) -> jax.Array:
    """ACLS: cross-entropy and squared penalties on a max logit beyond a margin, and on logits too far below it.

    L = −ln p_y + w·[max(0, v_max − m)² + λ/(K − 1)·Σ_{k≠ŷ} max(0, v̄_max − v_k − m)²], v̄_max a constant: its gradient is not
    followed. The first penalty sees a shift of all logits.

    Args:
      logits: [..., K]; label: int [...]; weight: w, scalar or [...].
      margin: m, in the unit of the logits; others: λ; scalars or [...]. With w = 0.1, the defaults are those of the authors' code.

    Returns:
      [...], in nats. At ties ŷ is the lowest class.

    Source: Park et al., "ACLS: Adaptive and conditional label smoothing for network calibration", ICCV 2023 (their code).

    >>> v, y = jnp.array([5.0, 4.0, 0.0]), jnp.asarray(0)
    >>> round(float(acls(v, y, 1.0, margin=3.0, others=0.5) - acls(v, y, 0.0)), 5)  # (5 − 3)² + 0.5/2·(5 − 0 − 3)²
    5.0
    """
    v = _wide(logits)
    k = v.shape[-1]
    at_top = jax.nn.one_hot(jnp.argmax(v, axis=-1), k, dtype=v.dtype)
    top = jnp.sum(at_top * v, axis=-1)
    threshold = jax.lax.stop_gradient(top) - margin
    below = jax.nn.relu(threshold[..., None] - v)
    penalty = jax.nn.relu(top - margin) ** 2 + others / (k - 1) * jnp.sum((1 - at_top) * below**2, axis=-1)
    return smoothed_cross_entropy(v, label, 0.0) + weight * penalty
