"""Gradients of the loss with respect to the logits, in closed form: where label smoothing acts on the max logit.

Derivation ours (checked against autodiff by the tests); it agrees with the abstract of Xia et al., ICLR 2025.
"""

from __future__ import annotations

from array_api_compat import array_namespace

from sc_jax.ops.ranking import Array
from sc_jax.ops.scores import log_softmax, one_hot, predicted_class


def cross_entropy_gradient(logits: Array, label: Array) -> Array:
    """∂L_CE/∂v_k = p_k − 1[k = y].

    Args:
      logits: [..., K]; label: int [...].

    Returns:
      [..., K].
    """
    xp = array_namespace(logits)
    return xp.exp(log_softmax(logits)) - one_hot(label, logits.shape[-1])


def smoothing_gradient(label: Array, alpha: float, num_classes: int) -> Array:
    """What smoothing adds to the gradient of cross-entropy: ∂(L_LS − L_CE)/∂v_k = α(1[k = y] − 1/K).

    It does not depend on the logits, and sums to 0 over the classes.

    Args:
      label: int [...]; alpha: the smoothing; num_classes: K.

    Returns:
      [..., K].
    """
    return alpha * (one_hot(label, num_classes) - 1 / num_classes)


def max_logit_suppression(logits: Array, label: Array, alpha: float) -> Array:
    """The extra gradient on the max logit: α(1 − 1/K) where the prediction is right, −α/K where it is wrong.

    Positive pushes the max logit down under gradient descent.

    Args:
      logits: [..., K]; label: int [...]; alpha: the smoothing.

    Returns:
      [...].
    """
    return alpha * ((predicted_class(logits) == label) - 1 / logits.shape[-1])


def expected_suppression(error_probability: Array, alpha: float, num_classes: int) -> Array:
    """Its conditional mean given x: E[∂(L_LS − L_CE)/∂v_max | x] = α(1 − P_error(x) − 1/K).

    Strong where errors are rare, weak or reversed where they are likely: an identity, not an observation.

    Args:
      error_probability: [...], in [0, 1]; alpha: the smoothing; num_classes: K.

    Returns:
      [...].
    """
    return alpha * (1 - error_probability - 1 / num_classes)
