"""A confidence of α-entmax and sparsemax without the ties that their maximum probability has at 1."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from array_api_compat import is_jax_namespace

from sc_jax.ops.ranking import Array
from sc_jax.ops.scores import _working, msp, rows_of_blocks

HALVINGS = 60
"""Of an interval of length 1 in which a threshold lies; more than the steps that Newton's method needs."""

_AT_ONCE = 1 << 21  # logits on the host


def check_alpha(alpha: float) -> None:
    """Refuses, by ValueError, an α below 1 or infinite."""
    if not 1 <= alpha < math.inf:
        raise ValueError(f"alpha must be ≥ 1 and finite; it is {alpha}")


def entmax_confidence(logits: Array, alpha: float = 2.0) -> Array:
    """The maximum probability of α-entmax as a score without its ties at 1.

    s = 1 − (1 − p_max)^{min(α−1, 1)} where p_max < 1, which is p_max for α ≥ 2; s = (α − 1)(v₁ − v₂) where p_max = 1. The first is below 1 and strictly
    increasing in p_max; the second is at least 1, since p_max = 1 iff the margin v₁ − v₂ is at least 1/(α − 1). Both tend to 1 where they meet, so that s is
    continuous, ranks as p_max does wherever p_max ranks at all, and ranks the rest by the margin. α = 1 is `msp`.

    1 − p_max = Σ_{k≥2} [w + u_k − u₂]₊^{1/(α−1)}, with u = (α − 1)v in decreasing order and w = u₂ − τ: a sum of positive terms, so that
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
    if isinstance(logits, np.ndarray) and logits.ndim and logits.shape[-1] > 1 and logits.size:
        return _on_host(logits, alpha)
    v, xp = _working(logits)
    if v.shape[-1] == 1 or v.size == 0:
        return xp.full_like(v[..., 0], xp.inf)
    return _of_ordered(xp.sort(v, axis=-1), alpha, xp)


def _on_host(logits: np.ndarray, alpha: float) -> np.ndarray:
    """Of the classes that may have a probability alone, u_k > u₂ − 1, which are few: their number is rounded up to a power of two,
    so that a row's sums do not depend on the rows beside it."""
    k = logits.shape[-1]
    rows = logits.reshape(-1, k)
    at_once = max(1, _AT_ONCE // k)
    score = [_of_rows(rows[start : start + at_once], alpha) for start in range(0, len(rows), at_once)]
    return np.concatenate(score).reshape(logits.shape[:-1])


def _of_rows(rows: np.ndarray, alpha: float) -> np.ndarray:
    """Rows of as many classes are worked on together, which takes so many rows as memory allows; classes are chosen in parts that stay in cache."""
    k = rows.shape[-1]
    score, asked, counts, candidates = np.empty(len(rows)), [], [], []
    for at in rows_of_blocks(rows):
        v, _ = _working(rows[at])
        second, first = np.partition(v, k - 2, axis=-1)[:, -2:].T
        score[at] = (alpha - 1) * (first - second)
        row = np.flatnonzero(score[at] < 1)
        may = (alpha - 1) * (v[row] - second[row, None]) > -1
        asked.append(at.start + row)
        counts.append(np.count_nonzero(may, axis=-1))
        candidates.append(v[row][may])
    asked, count, candidates = np.concatenate(asked), np.concatenate(counts), np.concatenate(candidates)
    start = np.cumsum(count) - count
    width = 2 ** np.ceil(np.log2(count)).astype(int)
    for w in np.unique(width):
        of = np.flatnonzero(width == w)
        place = np.arange(w)
        within = place < count[of, None]
        ordered = np.where(within, candidates[np.where(within, start[of, None] + place, 0)], -np.inf)
        score[asked[of]] = _of_ordered(np.sort(ordered, axis=-1), alpha, np)
    return score


def _of_ordered(ordered: Array, alpha: float, xp: Any) -> Array:
    """Of logits in increasing order: sums do not depend on the order of the classes."""
    second = ordered[..., -2:-1]
    margin = (alpha - 1) * (ordered[..., -1] - second[..., 0])
    sure = margin >= 1
    # Rows that are sure are not asked: 0 in their place keeps infinities out.
    u = (alpha - 1) * xp.where(
        sure[..., None], xp.zeros_like(ordered), ordered - xp.where(sure[..., None], 0.0, second)
    )
    low = _convex_threshold(u, alpha, xp) if alpha <= 2 else _halved_threshold(u, alpha, xp)
    others = xp.sum(_probabilities(low, u, alpha, xp)[..., :-1], axis=-1)
    return xp.where(sure, margin, 1 - others ** min(alpha - 1, 1.0))


def _probabilities(t: Array, u: Array, alpha: float, xp: Any) -> Array:
    """[w + u_k]₊^{1/(α−1)} at w = t^{max(1, α−1)}, t being p₂ for α ≥ 2."""
    w = t ** max(1.0, alpha - 1)
    return xp.where(w + u > 0, w + u, xp.zeros_like(u)) ** (1 / (alpha - 1))


def _convex_threshold(u: Array, alpha: float, xp: Any) -> Array:
    """The w at which the probabilities sum to 1, by Newton's method: for α ≤ 2 their sum is convex, so that from where p_max is 1
    the steps go down to it."""
    power = 1 / (alpha - 1)

    def newton(w: Array) -> Array:
        base = xp.where(w + u > 0, w + u, xp.zeros_like(u))
        slope = base ** (power - 1) if power != 1 else xp.astype(w + u > 0, u.dtype)
        excess = xp.sum(slope * base, axis=-1, keepdims=True) - 1
        return w - excess / (power * xp.sum(slope, axis=-1, keepdims=True))

    w = 1 - u[..., -1:]
    if is_jax_namespace(xp):
        import jax

        w = jax.lax.fori_loop(0, HALVINGS, lambda i, w: xp.minimum(w, newton(w)), w)
    else:
        for _ in range(HALVINGS):
            before, w = w, xp.minimum(w, newton(w))
            if not xp.any(w < before):
                break
    return newton(w)  # up again, where rounding has led a step too far down


def _halved_threshold(u: Array, alpha: float, xp: Any) -> Array:
    """The t at which the probabilities sum to 1, by bisection of [0, 1]."""

    def halved(i: int, low: Array) -> Array:
        middle = low + 2.0**-i
        whole = xp.sum(_probabilities(middle, u, alpha, xp), axis=-1, keepdims=True)
        return xp.where(whole <= 1, middle, low)

    low = xp.zeros_like(u[..., :1])
    if is_jax_namespace(xp):
        import jax

        return jax.lax.fori_loop(1, HALVINGS + 1, halved, low)
    for i in range(1, HALVINGS + 1):
        low = halved(i, low)
    return low
