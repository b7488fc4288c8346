"""A confidence of α-entmax and sparsemax without the ties that their maximum probability has at 1."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from array_api_compat import is_jax_namespace, is_numpy_namespace

from sc_jax.ops.ranking import Array
from sc_jax.ops.scores import _working, msp

HALVINGS = 60
"""Of an interval of length 1 in which a threshold lies."""

_BLOCK = 1 << 18  # logits at a time on the host


def check_alpha(alpha: float) -> None:
    """Refuses, by ValueError, an α below 1 or infinite."""
    if not 1 <= alpha < math.inf:
        raise ValueError(f"alpha must be ≥ 1 and finite; it is {alpha}")


def entmax_confidence(logits: Array, alpha: float = 2.0) -> Array:
    """The maximum probability of α-entmax as a score without its ties at 1.

    s = 1 − (1 − p_max)^{min(α−1, 1)} where p_max < 1, which is p_max for α ≥ 2; s = (α − 1)(v₁ − v₂) where p_max = 1. The first is below 1 and strictly
    increasing in p_max; the second is at least 1, since p_max = 1 iff the margin v₁ − v₂ is at least 1/(α − 1). Both tend to 1 where they meet, so that s is
    continuous, ranks as p_max does wherever p_max ranks at all, and ranks the rest by the margin. α = 1 is `msp`.

    1 − p_max = Σ_{k≥2} [w + u_k − u₂]₊^{1/(α−1)}, with u = (α − 1)v in decreasing order and w = u₂ − τ found by bisection: a sum of positive terms, so that
    nothing ties where p_max rounds to 1.

    Args:
      logits: [..., k]; alpha: ≥ 1, the one of training.

    Returns:
      [...]; +inf where all other logits are −inf.

    Raises:
      ValueError: alpha below 1.

    Source: p_max as confidence: Martins & Astudillo, ICML 2016 (α = 2), Peters, Niculae & Martins, ACL 2019; the extension is ours.

    >>> import numpy as np
    >>> entmax_confidence(np.array([[0.5, 0.0], [1.0, 0.0], [7.0, 0.0]])).tolist()  # p_max is 0.75, 1 and 1
    [0.75, 1.0, 7.0]
    """
    check_alpha(alpha)
    if alpha == 1:
        return msp(logits)
    v, xp = _working(logits)
    if v.shape[-1] == 1:
        return xp.full_like(v[..., 0], xp.inf)
    return _on_host(v, alpha) if is_numpy_namespace(xp) else _of_ordered(xp.sort(v, axis=-1), alpha, xp)


def _on_host(v: np.ndarray, alpha: float) -> np.ndarray:
    """Of the classes that may have a probability alone, u_k > u₂ − 1, which are few: their number is rounded up to a power of two,
    so that a row's sums do not depend on the rows beside it."""
    k = v.shape[-1]
    rows = v.reshape(-1, k)
    score = np.empty(len(rows), v.dtype)
    for start in range(0, len(rows), step := max(1, _BLOCK // k)):
        part, found = rows[start : start + step], score[start : start + step]
        second, first = np.partition(part, k - 2, axis=-1)[:, -2:].T
        found[:] = (alpha - 1) * (first - second)
        asked = np.flatnonzero(found < 1)
        part = part[asked]
        count = np.count_nonzero((alpha - 1) * (part - second[asked, None]) > -1, axis=-1)
        width = np.minimum(k, 2 ** np.ceil(np.log2(count)).astype(int))
        for w in np.unique(width):
            of = width == w
            ordered = np.sort(np.partition(part[of], k - w, axis=-1)[:, k - w :], axis=-1)
            found[asked[of]] = _of_ordered(ordered, alpha, np)
    return score.reshape(v.shape[:-1])


def _of_ordered(ordered: Array, alpha: float, xp: Any) -> Array:
    """Of logits in increasing order: sums do not depend on the order of the classes."""
    second = ordered[..., -2:-1]
    margin = (alpha - 1) * (ordered[..., -1] - second[..., 0])
    sure = margin >= 1
    # Rows that are sure are not asked: 0 in their place keeps infinities out.
    u = (alpha - 1) * xp.where(
        sure[..., None], xp.zeros_like(ordered), ordered - xp.where(sure[..., None], 0.0, second)
    )
    power, scale = 1 / (alpha - 1), max(1.0, alpha - 1)

    def others(t: Array) -> tuple[Array, Array]:
        """The probabilities at w = t^{max(1, α−1)}, which is p₂ for α ≥ 2: summed, and summed without the first."""
        w = t**scale
        p = xp.where(w + u > 0, w + u, xp.zeros_like(u)) ** power
        return xp.sum(p, axis=-1, keepdims=True), xp.sum(p[..., :-1], axis=-1)

    def halved(i: int, low: Array) -> Array:
        middle = low + 2.0**-i
        return xp.where(others(middle)[0] <= 1, middle, low)

    low = xp.zeros_like(u[..., :1])
    if is_jax_namespace(xp):
        import jax

        low = jax.lax.fori_loop(1, HALVINGS + 1, halved, low)
    else:
        for i in range(1, HALVINGS + 1):
            low = halved(i, low)
    return xp.where(sure, margin, 1 - others(low)[1] ** min(alpha - 1, 1.0))
