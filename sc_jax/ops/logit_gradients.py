"""Gradients of training losses with respect to the logits, in closed form: what each does to the max logit.

For every loss of `sc_jax.ops.losses` there is `<loss>_gradient`, ∂L/∂v [..., K], for NumPy, PyTorch and CuPy (computed in
float64) and JAX (in at least float32). Parameters are scalars or [...]. A loss of v/T has 1/T times the gradient at v/T.
What a loss does beyond cross-entropy is seen at the max logit: `extra_gradient_on_max`, and
`expected_extra_gradient_on_max` given x. At ties "max" is the lowest class, as for `predicted_class`.

Derivations ours (checked against autodiff by the tests); those of smoothing agree with Xia et al., ICLR 2025.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from array_api_compat import array_namespace, is_jax_namespace

from sc_jax.ops.ranking import Array
from sc_jax.ops.scores import (
    _floating,
    _softplus,
    _unit_logits,
    _working,
    log_softmax,
    max_logit,
    one_hot,
    predicted_class,
)


def _number(condition: Array) -> Array:
    """1 where it holds and 0 elsewhere."""
    xp = array_namespace(condition)
    return 1.0 * condition if is_jax_namespace(xp) else xp.astype(condition, xp.float64)


def _per_class(parameter: Any) -> Any:
    """A parameter [...] as it meets [..., K]."""
    return parameter[..., None] if getattr(parameter, "ndim", 0) else parameter


def cross_entropy_gradient(logits: Array, label: Array) -> Array:
    """∂L_CE/∂v_k = p_k − 1[k = y].

    Args:
      logits: [..., K]; label: int [...].

    Returns:
      [..., K].
    """
    return soft_cross_entropy_gradient(logits, _number(one_hot(label, logits.shape[-1])))


def soft_cross_entropy_gradient(logits: Array, target: Array) -> Array:
    """∂L/∂v_k = p_k − t_k: the gradient of cross-entropy against any distribution.

    Args:
      logits, target: [..., K]; each target sums to 1.

    Returns:
      [..., K].

    Source: the definition of `losses.soft_cross_entropy`.
    """
    return array_namespace(logits).exp(log_softmax(logits)) - target


def mixed_cross_entropy_gradient(logits: Array, label: Array, other: Array, weight: Array | float) -> Array:
    """∂L/∂v_k = p_k − w·1[k = y] − (1 − w)·1[k = y′]: the gradient after mixup or CutMix.

    Args:
      logits: [..., K]; label, other: int [...], y and y′; weight: w of `label`, scalar or [...].

    Returns:
      [..., K].

    Source: Zhang et al., "mixup: Beyond empirical risk minimization", ICLR 2018; Yun et al., "CutMix", ICCV 2019.
    """
    k, w = logits.shape[-1], _per_class(weight)
    return soft_cross_entropy_gradient(logits, w * _number(one_hot(label, k)) + (1 - w) * _number(one_hot(other, k)))


def smoothing_gradient(label: Array, alpha: float | Array, num_classes: int) -> Array:
    """What smoothing adds to the gradient of cross-entropy: ∂(L_LS − L_CE)/∂v_k = α(1[k = y] − 1/K).

    It does not depend on the logits, and sums to 0 over the classes.

    Args:
      label: int [...]; alpha: the smoothing, scalar or [...]; num_classes: K.

    Returns:
      [..., K].
    """
    return _per_class(alpha) * (_number(one_hot(label, num_classes)) - 1 / num_classes)


def smoothed_cross_entropy_gradient(logits: Array, label: Array, alpha: float | Array) -> Array:
    """∂L_LS/∂v_k = p_k − (1 − α)·1[k = y] − α/K.

    Args:
      logits: [..., K]; label: int [...]; alpha: the smoothing, scalar or [...].

    Returns:
      [..., K].
    """
    return cross_entropy_gradient(logits, label) + smoothing_gradient(label, alpha, logits.shape[-1])


def smoothed_binary_cross_entropy_gradient(logit: Array, label: Array, alpha: float | Array) -> Array:
    """∂L/∂z = σ(z) − (1 − α)y − α/2, of one logit z: what `smoothed_cross_entropy_gradient` has for class 1 of (0, z).

    Smoothing adds α(y − ½) to it, and α(1[right] − ½) to the derivative by the confidence |z|: as for two classes.

    Args:
      logit: [...], of class 1; label: int [...], 0 or 1; alpha: the smoothing, scalar or [...].

    Returns:
      [...].
    """
    z, xp = _floating(logit)
    return xp.exp(-_softplus(-z)) - ((1 - alpha) * xp.astype(label, z.dtype) + alpha / 2)


def focal_loss_gradient(logits: Array, label: Array, gamma: float | Array) -> Array:
    """∂L/∂v_k = F(p_y)(p_k − 1[k = y]), with F(p) = (1 − p)^γ − γ p (1 − p)^(γ−1) ln p: cross-entropy's, scaled.

    For γ > 0, F is above 1 where p_y is small and tends to 0 where it is near 1: likely labels are pushed up less. Computed by
    the log-odds of y (see `losses.focal_loss`), of which the loss is a function, so that nothing is divided by 1 − p_y.

    Args:
      logits: [..., K], K ≥ 2; label: int [...]; gamma: γ ≥ 0, scalar or [...].

    Returns:
      [..., K].

    Source: Lin et al., "Focal loss for dense object detection", ICCV 2017.
    """
    v, xp = _working(logits)
    is_label = one_hot(label, v.shape[-1])
    rivals = xp.where(is_label, -xp.inf, v)
    second = xp.max(rivals, axis=-1, keepdims=True)
    share = xp.exp(rivals - second)
    total = xp.sum(share, axis=-1, keepdims=True)
    own = xp.sum(xp.where(is_label, v, 0.0), axis=-1, keepdims=True)
    log_odds = own - second - xp.log(total)
    odd, even = _softplus(log_odds), _softplus(-log_odds)  # −ln(1 − p_y), −ln p_y
    g = _per_class(gamma)
    slope = xp.exp(-g * odd) * (g * xp.exp(-even) * even + xp.exp(-odd))
    return slope * xp.where(is_label, -1.0, share / total)


def logit_norm_cross_entropy_gradient(
    logits: Array, label: Array, temperature: float | Array, *, epsilon: float = 1e-7
) -> Array:
    """∂L/∂v = (g − (v·g) v/(‖v‖n))/(τn), with n = ‖v‖₂ + ε and g the gradient of cross-entropy at v/(τn).

    At right angles to v but for ε, and falling as 1/‖v‖; its sum over the classes is 0 only where v·g or Σ_k v_k is.

    Args:
      logits: [..., K]; label: int [...]; temperature: τ > 0, scalar or [...]; epsilon: ε.

    Returns:
      [..., K].

    Source: Wei et al., ICML 2022 (the loss).
    """
    v, xp = _working(logits)
    norm = xp.sqrt(xp.sum(v * v, axis=-1, keepdims=True))
    n, tau = norm + epsilon, _per_class(temperature)
    g = cross_entropy_gradient(v / (tau * n), label)
    along = xp.sum(v * g, axis=-1, keepdims=True) / (xp.where(norm > 0, norm, 1.0) * n)
    return (g - along * v) / (tau * n)


def confidence_penalty_gradient(logits: Array, label: Array, beta: float | Array) -> Array:
    """∂L/∂v_k = p_k − 1[k = y] + β p_k (ln p_k + H(p)): the penalty acts whatever the label is.

    Args:
      logits: [..., K]; label: int [...]; beta: scalar or [...].

    Returns:
      [..., K].

    Source: Pereyra et al., ICLR 2017 workshop (the loss).
    """
    log_p = log_softmax(logits)
    xp = array_namespace(log_p)
    p = xp.exp(log_p)
    surprise = log_p - xp.sum(p * log_p, axis=-1, keepdims=True)
    return cross_entropy_gradient(logits, label) + _per_class(beta) * p * surprise


def max_suppression_gradient(logits: Array, label: Array, alpha: float | Array) -> Array:
    """∂L/∂v_k = p_k − 1[k = y] + α(1[k = ŷ] − 1/K): that of label smoothing with ŷ in y's place.

    Args:
      logits: [..., K]; label: int [...]; alpha: scalar or [...].

    Returns:
      [..., K].

    Source: Zhou et al., NeurIPS 2025 (the loss).
    """
    return cross_entropy_gradient(logits, label) + smoothing_gradient(predicted_class(logits), alpha, logits.shape[-1])


def margin_label_smoothing_gradient(logits: Array, label: Array, margin: float | Array, weight: float | Array) -> Array:
    """∂L/∂v_k = p_k − 1[k = y] + λ(|A|·1[k = ŷ] − 1[k ∈ A]), A the classes with v_max − v_k > m.

    Args:
      logits: [..., K]; label: int [...]; margin: m ≥ 0, scalar or [...]; weight: λ, scalar or [...].

    Returns:
      [..., K].

    Source: Liu et al., CVPR 2022 (the loss).
    """
    v, xp = _working(logits)
    beyond = _number(xp.max(v, axis=-1, keepdims=True) - v > _per_class(margin))
    top = _number(one_hot(predicted_class(v), v.shape[-1]))
    penalty = xp.sum(beyond, axis=-1, keepdims=True) * top - beyond
    return cross_entropy_gradient(v, label) + _per_class(weight) * penalty


def acls_gradient(
    logits: Array, label: Array, weight: float | Array, *, margin: float | Array = 10.0, others: float | Array = 0.1
) -> Array:
    """∂L/∂v_k = p_k − 1[k = y] + 2w·max(0, v_ŷ − m) at ŷ, and − 2wλ/(K − 1)·max(0, v_ŷ − v_k − m) at the others.

    Args:
      logits: [..., K]; label: int [...]; weight, margin, others: w, m and λ, scalars or [...].

    Returns:
      [..., K]; its sum over the classes is not 0.

    Source: Park et al., ICCV 2023 (the loss).
    """
    v, xp = _working(logits)
    v_max = xp.max(v, axis=-1, keepdims=True)
    top = _number(one_hot(predicted_class(v), v.shape[-1]))
    m, share = _per_class(margin), _per_class(others) / (v.shape[-1] - 1)
    down = xp.where(v_max > m, v_max - m, 0.0)
    up = xp.where(v_max - v > m, v_max - v - m, 0.0)
    penalty = 2 * (top * down - share * (1 - top) * up)
    return cross_entropy_gradient(v, label) + _per_class(weight) * penalty


def max_logit_suppression(logits: Array, label: Array, alpha: float | Array) -> Array:
    """Smoothing's extra gradient on the max logit: α(1 − 1/K) where the prediction is right, −α/K where it is wrong.

    Positive pushes the max logit down under gradient descent.

    Args:
      logits: [..., K]; label: int [...]; alpha: the smoothing, scalar or [...].

    Returns:
      [...].
    """
    return alpha * (_number(predicted_class(logits) == label) - 1 / logits.shape[-1])


def expected_suppression(error_probability: Array, alpha: float, num_classes: int) -> Array:
    """Its conditional mean given x: E[∂(L_LS − L_CE)/∂v_max | x] = α(1 − P_error(x) − 1/K).

    Strong where errors are rare, weak or reversed where they are likely: an identity, not an observation.

    Args:
      error_probability: [...], in [0, 1]; alpha: the smoothing; num_classes: K.

    Returns:
      [...].
    """
    return alpha * (1 - error_probability - 1 / num_classes)


def extra_gradient_on_max(gradient: Array, logits: Array, label: Array) -> Array:
    """What a loss adds to the gradient of cross-entropy on the max logit: ∂(L − L_CE)/∂v_ŷ.

    Positive pushes the max logit down under gradient descent. Of label smoothing it is `max_logit_suppression`.

    Args:
      gradient: [..., K], ∂L/∂v of any loss; logits: [..., K]; label: int [...].

    Returns:
      [...].

    Source: Xia et al., ICLR 2025, Section 4 (the argument, for label smoothing).

    >>> import numpy as np
    >>> logits, label = np.array([[3.0, 1.0, 0.0], [3.0, 1.0, 0.0]]), np.array([0, 1])  # right, wrong
    >>> extra_gradient_on_max(smoothed_cross_entropy_gradient(logits, label, 0.3), logits, label).round(12)
    array([ 0.2, -0.1])
    >>> extra_gradient_on_max(max_suppression_gradient(logits, label, 0.3), logits, label).round(12)
    array([0.2, 0.2])
    """
    xp = array_namespace(logits)
    at_max = _number(one_hot(predicted_class(logits), logits.shape[-1]))
    return xp.sum(at_max * (gradient - cross_entropy_gradient(logits, label)), axis=-1)


def expected_extra_gradient_on_max(
    gradient: Callable[[Array, Array], Array], logits: Array, distribution: Array
) -> Array:
    """Its conditional mean given x: E[∂(L − L_CE)/∂v_ŷ | x] = Σ_y η_y(x) ∂(L(y) − L_CE(y))/∂v_ŷ, by summation.

    Where it falls with P_error = 1 − η_ŷ, the max logits of predictions that are likely right are held down more than
    those of the others. In closed form it is

    - label smoothing: α(1 − P_error − 1/K), `expected_suppression`; of one logit z, by |z|, α(1 − P_error − ½);
    - mixing: (1 − w)(1 − P_error − π_ŷ), π the distribution of y′ given x: the class prior where x tells nothing of y′. With
      a uniform π it is label smoothing with α = 1 − w;
    - a teacher's target t: 1 − P_error − t_ŷ;
    - focal loss, with F of `focal_loss_gradient`: p_ŷ Σ_y η_y (F(p_y) − 1) − η_ŷ(F(p_ŷ) − 1);
    - whatever η is, MaxSup: α(1 − 1/K); the confidence penalty: β p_ŷ(ln p_ŷ + H(p)); MbLS: λ|A|.

    Args:
      gradient: (logits [..., K], label int [...]) → ∂L/∂v [..., K], such as `functools.partial(focal_loss_gradient, gamma=2)`,
        or for mixing `soft_cross_entropy_gradient` of w·onehot(label) + (1 − w)π.
      logits: [..., K].
      distribution: [..., K], η: P(y | x), or the frequencies of labels among alike examples.

    Returns:
      [...].

    Source: Xia et al., ICLR 2025, Section 4 (for label smoothing); the others are derived here.

    >>> import functools
    >>> import numpy as np
    >>> logits, eta = np.array([3.0, 1.0, 0.0]), np.array([0.75, 0.25, 0.0])
    >>> smoothed = functools.partial(smoothed_cross_entropy_gradient, alpha=0.3)
    >>> round(float(expected_extra_gradient_on_max(smoothed, logits, eta)), 12), expected_suppression(0.25, 0.3, 3)
    (0.125, 0.125)
    """
    xp = array_namespace(logits)
    predicted = predicted_class(logits)

    def given_label(y: int) -> Array:
        label = xp.full_like(predicted, y)
        return distribution[..., y] * extra_gradient_on_max(gradient(logits, label), logits, label)

    return sum(given_label(y) for y in range(logits.shape[-1]))


def log_score_shift_derivative(logits: Array, p: int | Sequence[int]) -> Array:
    """How uncentred logit normalisation moves with a shift of the logits: d ln(max_k(v_k + c)/‖v + c‖_p)/dc at c = 0.

    1/v_max − Σ_k |v_k|^{p−1} sgn v_k / Σ_k |v_k|^p = Σ_k |v_k|^{p−1}(|v_k| − v_max sgn v_k) / (v_max Σ_k |v_k|^p). The softmax
    does not see c, so this is how far two predictions of the same probabilities may differ in
    `max_logit_pnorm(…, center=False)`; with centring the derivative is 0.

    Args:
      logits: [..., K], K ≥ 3, v_max > 0; p: an integer ≥ 1, or a sequence of them.

    Returns:
      [...], or [len(p), ...] for a sequence, in 1/(unit of the logits); NaN where v_max ≤ 0, where the score has no
      logarithm. For p = 1 a v_k of 0 counts with the mean of its one-sided derivatives.

    Raises:
      ValueError: as `max_logit_pnorm`.

    Source: derived here, for the logit normalisation of Xia et al., ICLR 2025, Section 5.

    >>> import numpy as np
    >>> v = np.array([3.0, 1.0, -1.0, -3.0])
    >>> float(log_score_shift_derivative(v, 2))  # 1/3 − 0/20
    0.3333333333333333
    """
    if np.ndim(p):
        return array_namespace(logits).stack([log_score_shift_derivative(logits, q) for q in p])
    unit, _, _, xp = _unit_logits("log_score_shift_derivative", logits, p, center=False)
    size, top, v_max = xp.abs(unit), xp.max(unit, axis=-1, keepdims=True), max_logit(logits)
    defined = v_max > 0
    moment = xp.sum(size ** (int(p) - 1) * (size - top * xp.sign(unit)), axis=-1)
    total = xp.where(defined, v_max * xp.sum(size ** int(p), axis=-1), 1.0)
    return xp.where(defined, moment / total, xp.nan)
