"""Confidence scores from logits: higher = more confident; none saturates.

A quantity with a bound (a probability, an entropy) is returned as −ln u of its distance u > 0 from the confident bound:
the same order, and exp(−score) gives u back. Every u goes through 1 − p_max = Σ_{k≠ŷ} p_k, as a sum of positive terms
in the log domain, never as a difference from 1, so predictions that round to certainty still rank, in float32 too. At
the other end a score is as fine as its quantity: entropy and Gini are flat at the uniform distribution, where gaps
below 1e-8 (float32: 3e-4) nats are equal to rounding.

On the host, as with torch and CuPy, every score is computed in float64 whatever the dtype of the logits, in JAX in at
least float32. Except in JAX the logits of a row are sorted first, so that reordering the classes changes no bit of a
score of one model; in JAX, and in `mutual_information`, it may change the rounding. Log-probabilities serve as logits,
with −inf for a probability of exactly 0, except where a score says that it needs true logits. Logits that are NaN or
+inf, or rows of nothing but −inf, are refused on the host. One class alone is certain: k = 1 counts as p_max = 1.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from array_api_compat import array_namespace, is_jax_namespace, is_numpy_namespace

from sc_jax.ops.ranking import Array


def _floating(array: Array) -> tuple[Array, Any]:
    xp = array_namespace(array)
    if is_numpy_namespace(xp):
        return np.asarray(array, np.float64), xp
    wide = xp.result_type(array.dtype, xp.float32) if is_jax_namespace(xp) else xp.float64
    return xp.astype(array, wide, copy=False), xp


def _working(logits: Array) -> tuple[Array, Any]:
    v, xp = _floating(logits)
    if v.ndim == 0 or v.shape[-1] == 0:
        raise ValueError(f"logits must be [..., k] with k ≥ 1; they are {list(v.shape)}")
    if is_numpy_namespace(xp):
        usable = np.isfinite(v.max(axis=-1))
        if not usable.all():
            raise ValueError(f"{(~usable).sum()} rows of logits hold NaN or +inf, or nothing but −inf")
    return v, xp


def _members(logits: Array) -> tuple[Array, Any]:
    v, xp = _working(logits)
    if v.ndim < 2 or v.shape[0] == 0:
        raise ValueError(f"the logits of members must be [m, ..., k] with m ≥ 1; they are {list(v.shape)}")
    return v, xp


def _check_positive(name: str, value: Any) -> None:
    """Numbers are checked; a scalar array may be traced, and is not."""
    if isinstance(value, (int, float, np.number)) and not 0 < value < math.inf:
        raise ValueError(f"{name} must be positive and finite; it is {value}")


_BLOCK = 1 << 17
"""Logits that the host works on at a time, so that the work stays in cache and memory does not grow with it."""


def rows_of_blocks(logits: np.ndarray) -> list[slice]:
    """The rows of [n, k] in blocks that stay in cache."""
    rows = max(1, _BLOCK // max(1, logits.shape[-1]))
    return [slice(start, start + rows) for start in range(0, len(logits), rows)]


def by_blocks(function: Callable[..., Any]) -> Callable[..., Any]:
    """On the host, `function` of many rows of logits a block of rows after the other: the same bits, in memory that stays small.

    Args:
      function: (logits [..., k], …) → [..., n], or a list of such; arrays among its other positional arguments are per row.
    """

    @functools.wraps(function)
    def blocked(logits: Array, *others: Any, **options: Any) -> Any:
        if not isinstance(logits, np.ndarray) or logits.ndim < 2 or logits.size <= 2 * _BLOCK:
            return function(logits, *others, **options)
        lead, k = logits.shape[:-1], logits.shape[-1]
        flat = logits.reshape(-1, k)

        def of_rows(at: slice) -> Any:
            return function(flat[at], *(o[at] if getattr(o, "ndim", 0) else o for o in others), **options)

        try:
            parts = [of_rows(at) for at in rows_of_blocks(flat)]
        except ValueError:
            return function(logits, *others, **options)  # which says it of all rows
        if isinstance(parts[0], list):
            return [np.concatenate(part, axis=-1).reshape(lead) for part in zip(*parts, strict=True)]
        value = np.concatenate(parts, axis=-1)
        return value.reshape(*value.shape[:-1], *lead)

    return blocked


class _Rivals(NamedTuple):
    """The classes other than ŷ, by z_k = v_k − v_ŷ ≤ 0: p_k/p_ŷ = e^{z_k} = e^second · ratio_k.

    With S = total and R = rest = e^second · S = Σ_{k≠ŷ} e^{z_k}: p_ŷ = 1/(1 + R) and 1 − p_ŷ = R/(1 + R).
    `second`, `total` and `rest` are 0, 1 and 0 where all rivals have probability exactly 0 (`alone`); `largest` is v_ŷ.
    """

    largest: Array
    z: Array
    second: Array
    ratio: Array
    total: Array
    rest: Array
    alone: Array


def _sorted_rows(logits: Array) -> tuple[Array, Any]:
    """The logits of each row in increasing order, not on JAX; sorted before they are widened, which is twice as fast."""
    if isinstance(logits, np.ndarray) and logits.dtype.kind == "f" and logits.ndim and logits.shape[-1]:
        logits = np.sort(logits, axis=-1)
        return _working(logits)
    v, xp = _working(logits)
    return (v if is_jax_namespace(xp) else xp.sort(v, axis=-1, stable=False)), xp


def _rivals(logits: Array) -> tuple[_Rivals, Any]:
    v, xp = _sorted_rows(logits)
    if is_jax_namespace(xp) or v.shape[-1] == 1:  # XLA sorts short rows on a CPU 20 times slower than it masks
        largest = xp.max(v, axis=-1)
        z = xp.where(one_hot(predicted_class(v), v.shape[-1]), -xp.inf, v - largest[..., None])
        second = xp.max(z, axis=-1)
    else:
        largest = v[..., -1]
        z = v[..., :-1] - v[..., -1:]
        second = z[..., -1]
    alone = xp.isinf(second)
    second = xp.where(alone, 0.0, second)
    ratio = xp.exp(z - second[..., None])
    total = xp.where(alone, 1.0, xp.sum(ratio, axis=-1))
    rest = xp.where(alone, 0.0, xp.exp(second) * total)
    return _Rivals(largest, z, second, ratio, total, rest, alone), xp


def one_hot(index: Array, k: int) -> Array:
    """Whether each class is the one of `index`: int [...] → bool [..., k]."""
    xp = array_namespace(index)
    return xp.reshape(xp.arange(k, device=_device(index, xp)), (1,) * index.ndim + (k,)) == index[..., None]


def _device(array: Array, xp: Any) -> Any:
    """Where new arrays belong; None where the namespace follows its operands by itself."""
    return None if is_numpy_namespace(xp) or is_jax_namespace(xp) else array.device


def predicted_class(logits: Array) -> Array:
    """argmax_k v_k; ties go to the lowest class index.

    Args:
      logits: [..., k].

    Returns:
      int [...].
    """
    return array_namespace(logits).argmax(logits, axis=-1)


def max_probability_as_stored(probabilities: Array) -> Array:
    """max_k p_k in the dtype the probabilities are stored in, with whatever ties their rounding made.

    To reproduce numbers that were computed from a stored softmax; to rank, use `msp`, which does not saturate.

    Args:
      probabilities: [..., k].

    Returns:
      [...], of the same dtype.

    Raises:
      ValueError: no classes, or (host) values outside [0, 1] by more than rounding.

    Source: Hendrycks & Gimpel, ICLR 2017.

    >>> p = np.array([[0.99999999, 1e-8], [0.9999999999, 1e-10]])
    >>> [float(value) for value in max_probability_as_stored(p.astype(np.float32))]
    [1.0, 1.0]
    """
    xp = array_namespace(probabilities)
    if probabilities.ndim == 0 or probabilities.shape[-1] == 0:
        raise ValueError(f"probabilities must be [..., k] with k ≥ 1; they are {list(probabilities.shape)}")
    if is_numpy_namespace(xp) and not ((probabilities >= 0) & (probabilities <= 1.01)).all():
        raise ValueError("probabilities must lie in [0, 1]; for logits there is `msp`")
    return xp.max(probabilities, axis=-1)


@by_blocks
def msp(logits: Array) -> Array:
    """Maximum softmax probability, as its log-odds ln(p_max / (1 − p_max)) = −logsumexp_{k≠ŷ}(v_k − v_ŷ).

    The same ranking as p_max = 1/(1 + exp(−score)), finite where the softmax rounds to 1.

    Args:
      logits: [..., k] or log-probabilities.

    Returns:
      [...], in nats; +inf where all other probabilities are exactly 0.

    Source: Hendrycks & Gimpel, ICLR 2017 (maximum softmax probability); the log-odds form is ours.

    >>> import numpy as np
    >>> p = 1 / (1 + np.exp(-msp(np.log(np.array([0.7, 0.2, 0.1])))))
    >>> round(float(p), 12)
    0.7
    """
    return _msp(*_rivals(logits))


def _msp(rival: _Rivals, xp: Any) -> Array:
    return xp.where(rival.alone, xp.inf, -(rival.second + xp.log(rival.total)))


@by_blocks
def margin(logits: Array) -> Array:
    """Softmax margin p₁ − p₂ of the two most probable classes, as −ln u with u = 1 − (p₁ − p₂) = (1 − p₁) + p₂.

    The margin is 1 − exp(−score).

    Args:
      logits: [..., k] or log-probabilities.

    Returns:
      [...], ≥ 0; 0 where two classes tie at the top, +inf where all other probabilities are exactly 0.

    Source: Scheffer, Decomain & Wrobel, IDA 2001 (from memory); the logarithmic form is ours.

    >>> round(float(1 - np.exp(-margin(np.log(np.array([0.7, 0.2, 0.1]))))), 12)
    0.5
    """
    return _margin(*_rivals(logits))


def _margin(rival: _Rivals, xp: Any) -> Array:
    gap = -xp.expm1(rival.second) / (1 + rival.rest)
    even = gap < 0.5  # there u is near 1, and it is the gap that is known to all digits
    uneven = xp.log1p(rival.rest) - rival.second - xp.log(rival.total + 1)
    value = xp.where(even, -xp.log1p(-xp.where(even, gap, 0.0)), uneven)
    return xp.where(rival.alone, xp.inf, value)


@by_blocks
def logit_margin(logits: Array) -> Array:
    """v₁ − v₂, the gap between the two largest logits; of log-probabilities it is the same, ln(p₁/p₂).

    Args:
      logits: [..., k] or log-probabilities.

    Returns:
      [...], ≥ 0, in nats; +inf where all other probabilities are exactly 0.

    Source: the definition.

    >>> float(logit_margin(np.array([1.0, 4.0, -2.0])))
    3.0
    """
    return _logit_margin(*_rivals(logits))


def _logit_margin(rival: _Rivals, xp: Any) -> Array:
    return xp.where(rival.alone, xp.inf, 0.0 - rival.second)


@by_blocks
def negative_entropy(logits: Array) -> Array:
    """Negative entropy −H, as −ln u with u = H = −Σ_k p_k ln p_k in nats.

    With R = Σ_{k≠ŷ} e^{z_k}, z_k = v_k − v_ŷ ≤ 0: H = ln(1 + R) + Σ_{k≠ŷ} e^{z_k}(−z_k)/(1 + R), all terms positive.
    The entropy is exp(−score).

    Args:
      logits: [..., k] or log-probabilities.

    Returns:
      [...], ≥ −ln ln k; +inf where the entropy is exactly 0.

    Source: the sum of positive terms is derived here.

    >>> round(float(np.exp(-negative_entropy(np.log(np.array([0.5, 0.25, 0.25])))) / np.log(2)), 12)
    1.5
    """
    return _negative_entropy(*_rivals(logits))


def _negative_entropy(rival: _Rivals, xp: Any) -> Array:
    large = rival.rest > xp.finfo(rival.rest.dtype).eps
    safe = xp.where(large, rival.rest, 1.0)
    mean_log1p = xp.where(large, xp.log1p(safe) / safe, 1.0)  # ln(1 + R)/R
    nats = xp.sum(rival.ratio * xp.where(rival.ratio > 0, -rival.z, 0.0), axis=-1)
    value = -(rival.second + xp.log(rival.total * mean_log1p + nats / (1 + rival.rest)))
    return xp.where(rival.alone, xp.inf, value)


def _log_impurity(rival: _Rivals, xp: Any) -> Array:
    """ln of (1 + R)²(1 − Σ p²) = R + Σ_{k≠ŷ} e^{z_k}(1 + R − e^{z_k}), where the factor in brackets is ≥ 1."""
    share = xp.exp(rival.z)
    others = xp.sum(rival.ratio * (1 + (rival.rest[..., None] - share)), axis=-1)
    return rival.second + xp.log(rival.total + others)


@by_blocks
def negative_gini(logits: Array) -> Array:
    """Negative Gini impurity Σ_k p_k² − 1, as −ln u with u = 1 − Σ_k p_k² = Σ_k p_k(1 − p_k).

    With R = Σ_{k≠ŷ} e^{z_k}: u = (R + Σ_{k≠ŷ} e^{z_k}(1 + R − e^{z_k}))/(1 + R)². The impurity is exp(−score).

    Args:
      logits: [..., k] or log-probabilities.

    Returns:
      [...], ≥ −ln(1 − 1/k); +inf where all other probabilities are exactly 0.

    Source: the sum of positive terms is derived here.

    >>> round(float(np.exp(-negative_gini(np.log(np.array([0.5, 0.25, 0.25]))))), 12)
    0.625
    """
    return _negative_gini(*_rivals(logits))


def _negative_gini(rival: _Rivals, xp: Any) -> Array:
    return xp.where(rival.alone, xp.inf, 2 * xp.log1p(rival.rest) - _log_impurity(rival, xp))


@by_blocks
def doctor_alpha(logits: Array) -> Array:
    """DOCTOR D_α, as ln(g/(1 − g)) with g = Σ_k p_k²: the same ranking as `negative_gini`.

    The statistic that is thresholded from above in the paper, (1 − g)/g, is exp(−score).

    Args:
      logits: [..., k] or log-probabilities.

    Returns:
      [...], ≥ −ln(k − 1); +inf where all other probabilities are exactly 0.

    Source: Granese et al., "DOCTOR: a simple method for detecting misclassification errors", NeurIPS 2021, without
    input perturbation.

    >>> round(float(np.exp(-doctor_alpha(np.log(np.array([0.5, 0.25, 0.25]))))), 12)
    1.666666666667
    """
    return _doctor_alpha(*_rivals(logits))


def _doctor_alpha(rival: _Rivals, xp: Any) -> Array:
    squares = xp.sum(xp.exp(2 * rival.z), axis=-1)
    return xp.where(rival.alone, xp.inf, xp.log1p(squares) - _log_impurity(rival, xp))


def doctor_beta(logits: Array) -> Array:
    """DOCTOR D_β, as ln(p_max/(1 − p_max)): without input perturbation it is `msp`.

    The statistic that is thresholded from above in the paper, (1 − p_max)/p_max, is exp(−score).

    Args:
      logits: [..., k] or log-probabilities.

    Returns:
      [...], as `msp`.

    Source: Granese et al., NeurIPS 2021 (from memory).
    """
    return msp(logits)


def max_logit(logits: Array) -> Array:
    """max_k v_k. Needs true logits: log-probabilities have lost the shift it lives on.

    Args:
      logits: [..., k].

    Returns:
      [...], in the unit of the logits.

    Source: Hendrycks et al., "Scaling out-of-distribution detection for real-world settings", ICML 2022.
    """
    v, xp = _working(logits)
    return xp.max(v, axis=-1)


@by_blocks
def energy(logits: Array, temperature: float | Array = 1.0) -> Array:
    """Negative free energy T·logsumexp(v/T). Needs true logits: of log-probabilities it is 0 at T = 1.

    Args:
      logits: [..., k].
      temperature: T > 0, in the unit of the logits.

    Returns:
      [...], in the unit of the logits; in [max v, max v + T ln k].

    Raises:
      ValueError: T is not positive and finite.

    Source: Liu et al., "Energy-based out-of-distribution detection", NeurIPS 2020.

    >>> round(float(energy(np.log(np.array([1.0, 2.0, 5.0])))), 12) == round(float(np.log(8)), 12)
    True
    """
    _check_positive("temperature", temperature)
    v, xp = _working(logits)
    largest = xp.max(v, axis=-1)
    rival, xp = _rivals((v - largest[..., None]) / temperature)
    return largest + temperature * xp.log1p(rival.rest)


_OF_RIVALS: dict[Callable[..., Array], Callable[[_Rivals, Any], Array]] = {
    msp: _msp,
    margin: _margin,
    logit_margin: _logit_margin,
    negative_entropy: _negative_entropy,
    negative_gini: _negative_gini,
    doctor_alpha: _doctor_alpha,
    doctor_beta: _msp,
    max_logit: lambda rival, xp: rival.largest,
    energy: lambda rival, xp: rival.largest + xp.log1p(rival.rest),
}


def shares_rivals(score: Callable[..., Array]) -> bool:
    """Whether a score is one of those that `together` computes from one sort of the classes."""
    return score in _OF_RIVALS


@by_blocks
def together(logits: Array, scores: Sequence[Callable[..., Array]]) -> list[Array]:
    """Several scores of the same logits from one sort of the classes: the values that each has alone.

    Args:
      logits: [..., k] or log-probabilities; scores: functions of this module for which `shares_rivals`.

    Returns:
      [...] for each score.

    >>> logits = np.array([[1.0, 4.0, -2.0]])
    >>> [float(value[0]) for value in together(logits, (max_logit, logit_margin))]
    [4.0, 3.0]
    """
    rival, xp = _rivals(logits)
    return [_OF_RIVALS[score](rival, xp) for score in scores]


@by_blocks
def max_logit_pnorm(logits: Array, p: int | Sequence[int], *, center: bool = True) -> Array:
    """Logit normalisation: max_k v'_k / ‖v'‖_p with v' = v − mean_k v_k (or v' = v without centring).

    Centred, it is invariant to v → a·v + b for a > 0, so temperature plays no part in it.

    Args:
      logits: [..., k], k ≥ 3.
      p: an integer ≥ 1, or a sequence of them.
      center: subtract the mean over classes first.

    Returns:
      [...], or [len(p), ...] for a sequence; 0 where v' is 0: centred, where all logits are equal.

    Raises:
      ValueError: k < 3 (the centred score would be the constant 2^(−1/p)), p is not an integer ≥ 1, or (host) a logit
        is not finite.

    Source: Xia, Laurent, Franchi & Bouganis, ICLR 2025 (logit normalisation); Cattelan & Silva, UAI 2024
    (MaxLogit-pNorm). Centring is explicit here because the published code tunes with it and reports without.
    """
    signed, norm, flat, xp = _unit_logits("max_logit_pnorm", logits, p, center)
    top = xp.max(signed, axis=-1)
    return _each_p(p, {q: xp.where(flat, 0.0, top / norm[q]) for q in norm}, xp)


@by_blocks
def msp_pnorm(
    logits: Array, p: int | Sequence[int], temperature: float | Sequence[float] | Array = 1.0, *, center: bool = True
) -> Array:
    """`msp` of the normalised logits v'/(T ‖v'‖_p), with v' = v − mean_k v_k (or v' = v without centring).

    Centred, it is invariant to v → a·v + b for a > 0; for T → ∞ it orders as `max_logit_pnorm`, for T → 0 as
    the gap (v'_(1) − v'_(2))/‖v'‖_p.

    Args:
      logits: [..., k], k ≥ 3.
      p: an integer ≥ 1, or a sequence of them.
      temperature: T > 0, or a list or tuple of them; normalised logits have no unit.
      center: subtract the mean over classes first.

    Returns:
      [...], or [len(p), ...] for a sequence, or [len(T), …] of either; −ln(k − 1) where v' is 0.

    Raises:
      ValueError: k < 3 (the centred score would be the constant 2^(1 − 1/p)/T; refused without centring too, so that a
        score means the same for every k), p is not an integer ≥ 1, T is not positive, or (host) a logit is not finite.

    Source: Cattelan & Silva, UAI 2024 (MSP-pNorm; from memory).
    """
    each = list(temperature) if isinstance(temperature, (list, tuple)) else [temperature]
    for one in each:
        _check_positive("temperature", one)
    signed, norm, flat, xp = _unit_logits("msp_pnorm", logits, p, center)
    if is_jax_namespace(xp):

        def of(q: int, one: float | Array) -> Array:
            return msp(xp.where(flat[..., None], 0.0, signed / norm[q][..., None]) / one)
    else:  # in order already: no p or T changes that of the classes
        second = signed[..., -2] - signed[..., -1]
        below = signed[..., :-1] - signed[..., -2:-1]
        scale = {q: xp.where(flat, 0.0, 1 / norm[q]) for q in norm}
        scaled = {q: below * scale[q][..., None] for q in norm}

        def of(q: int, one: float | Array) -> Array:
            rate = 1 / one
            z = scaled[q] * (rate[..., None] if getattr(rate, "ndim", 0) else rate)
            z = np.exp(z, out=z) if is_numpy_namespace(xp) else xp.exp(z)
            return -(second * scale[q] * rate + xp.log(xp.sum(z, axis=-1)))

    values = [_each_p(p, {q: of(q, one) for q in norm}, xp) for one in each]
    return xp.stack(values) if isinstance(temperature, (list, tuple)) else values[0]


def _unit_logits(
    name: str, logits: Array, p: int | Sequence[int], center: bool
) -> tuple[Array, dict[int, Array], Array, Any]:
    """v'/max|v'| [..., k], its p-norm for each p (1 where v' is 0), where v' is 0, the namespace."""
    v, xp = _sorted_rows(logits)
    grid = [p] if np.ndim(p) == 0 else list(p)
    if v.shape[-1] < 3:
        raise ValueError(f"{name} is not defined for k = {v.shape[-1]} classes: it needs at least 3")
    if not grid or any(not isinstance(q, (int, np.integer)) or q < 1 for q in grid):
        raise ValueError(f"p must be integers ≥ 1; it is {p}")
    if is_numpy_namespace(xp) and v.size and v.min() == -np.inf:
        raise ValueError(f"{name} needs finite logits; some are −inf")
    if center:
        v = v - xp.max(v, axis=-1, keepdims=True)  # equal logits become 0 exactly
        v = v - xp.mean(v, axis=-1, keepdims=True)
    largest = xp.max(xp.abs(v), axis=-1)
    flat = largest == 0
    signed = v / xp.where(flat, 1.0, largest)[..., None]
    ratio = xp.abs(signed)  # in [0, 1]: no power overflows
    norm, power = {}, xp.ones_like(ratio)
    for q in range(1, max(grid) + 1):
        power = power * ratio
        if q in grid:
            total = xp.sum(power, axis=-1)
            if q == 1 and center:
                # The centred logits sum to 0: ‖v'‖₁ is twice the sum of the positive ones. Where that is the max alone
                # the score is ½, a true tie, which the sum of all magnitudes would break by rounding.
                total = 2 * xp.sum(xp.where(signed > 0, ratio, 0.0), axis=-1)
            total = xp.where(flat, 1.0, total)
            norm[q] = total if q == 1 else total ** (1 / q)
    return signed, norm, flat, xp


def _each_p(p: int | Sequence[int], values: dict[int, Array], xp: Any) -> Array:
    return values[p] if np.ndim(p) == 0 else xp.stack([values[q] for q in p])


_FIRST_SCORES = {
    "msp": lambda logits: _softplus(msp(logits)),  # −ln(1 − p_max) of the log-odds
    "negative_entropy": negative_entropy,
    "negative_gini": negative_gini,
}


def _softplus(x: Array) -> Array:
    """ln(1 + e^x)."""
    xp = array_namespace(x)
    return xp.where(x > 0, x, 0.0) + xp.log1p(xp.exp(-xp.abs(x)))


class SircParameters(NamedTuple):
    """Where and how steeply `sirc` turns from its first score to its second.

    Attributes:
      a: below this the second score counts; b: how steeply, in 1 / (unit of the second score).
    """

    a: Array
    b: Array


def sirc_parameters(second: Array) -> SircParameters:
    """a = μ − 3σ and b = 1/σ, of the second score over in-distribution training data.

    Args:
      second: [n], n ≥ 2; higher = more in-distribution.

    Returns:
      `SircParameters`; σ is the root of the mean squared deviation.

    Raises:
      ValueError: not [n] with n ≥ 2, or (host) a value is not finite or all are equal.

    Source: Xia & Bouganis, "Augmenting softmax information for selective classification with out-of-distribution data",
    ACCV 2022 (from memory).

    >>> [float(value) for value in sirc_parameters(np.array([1.0, 3.0, 1.0, 3.0]))]
    [-1.0, 1.0]
    """
    second, xp = _floating(second)
    if second.ndim != 1 or second.shape[0] < 2:
        raise ValueError(f"the second score must be [n] with n ≥ 2; it is {list(second.shape)}")
    if is_numpy_namespace(xp) and not np.isfinite(second).all():
        raise ValueError("the second score must be finite")
    mean, deviation = xp.mean(second), xp.std(second, correction=0)
    if is_numpy_namespace(xp) and (second == second[0]).all():
        raise ValueError("the second score is constant: it has nothing to add, and no scale")
    return SircParameters(mean - 3 * deviation, 1 / deviation)


def sirc(logits: Array, second: Array, a: float | Array, b: float | Array, *, first: str = "msp") -> Array:
    """Softmax information retaining combination: −(S1_max − S1)(1 + exp(−b(S2 − a))), as −ln of its magnitude.

    score = −ln(S1_max − S1) − ln(1 + exp(−b(S2 − a))); the published value is −exp(−score). S1_max − S1 is 1 − p_max
    for `msp`, H for `negative_entropy`, 1 − Σ p² for `negative_gini`.

    Args:
      logits: [..., k] or log-probabilities.
      second: S2 [...], higher = more in-distribution, such as the L1 norm of the features or `residual`.
      a, b: as `sirc_parameters` fits them; b > 0.
      first: which S1, by the name of its function here.

    Returns:
      [...]; +inf where S1 is at its maximum exactly.

    Raises:
      ValueError: an unknown `first`, shapes that disagree, b is not positive, or (host) `second` is not finite.

    Source: Xia & Bouganis, ACCV 2022, and its code.

    >>> p = np.array([0.7, 0.2, 0.1])
    >>> score = sirc(np.log(p), np.array(2.0), 2.0, 5.0)  # at S2 = a the doubt counts twice
    >>> round(float(-np.exp(-score)), 12)
    -0.6
    """
    if first not in _FIRST_SCORES:
        raise ValueError(f"first must be one of {', '.join(_FIRST_SCORES)}; it is {first!r}")
    _check_positive("b", b)
    second, xp = _floating(second)
    if second.shape != logits.shape[:-1]:
        raise ValueError(f"second must be {list(logits.shape[:-1])}, one per row of logits; it is {list(second.shape)}")
    if is_numpy_namespace(xp) and not np.isfinite(second).all():
        raise ValueError("the second score must be finite")
    return _FIRST_SCORES[first](logits) - _softplus(-b * (second - a))


def ensemble_log_probabilities(logits: Array, member_weight: Array | None = None) -> Array:
    """ln Σ_m w_m softmax(v_m): the log of the mean over members of their probabilities (a deep ensemble's prediction).

    Args:
      logits: [m, n, k].
      member_weight: w [m], ≥ 0 and summing to 1; by default all are 1/m.

    Returns:
      Log-probabilities [n, k].

    Source: Lakshminarayanan, Pritzel & Blundell, NeurIPS 2017.

    >>> p = np.array([[[0.9, 0.1]], [[0.3, 0.7]]])
    >>> [round(float(value), 12) for value in np.exp(ensemble_log_probabilities(np.log(p), np.array([0.75, 0.25])))[0]]
    [0.75, 0.25]
    """
    v, xp = _members(logits)
    own = log_softmax(v)
    if member_weight is None:
        return _logsumexp(own, 0, xp) - math.log(v.shape[0])
    weight = xp.astype(member_weight, own.dtype)
    log_weight = xp.where(weight > 0, xp.log(xp.where(weight > 0, weight, 1.0)), -xp.inf)
    return _logsumexp(own + xp.reshape(log_weight, (-1,) + (1,) * (own.ndim - 1)), 0, xp)


def expected_entropy(logits: Array) -> Array:
    """Mean entropy of the members, as −ln u with u = mean_m H(p_m): the confidence in spite of noise in the data.

    The mean entropy is exp(−score).

    Args:
      logits: [m, n, k] or log-probabilities.

    Returns:
      [n]; +inf where every member's entropy is exactly 0.

    Source: Gal, PhD thesis, Cambridge 2016 (from memory).

    >>> p = np.array([[[0.5, 0.5]], [[1.0, 0.0]]])
    >>> with np.errstate(divide="ignore"):
    ...     print(round(float(np.exp(-expected_entropy(np.log(p))[0]) / np.log(2)), 12))
    0.5
    """
    v, xp = _members(logits)
    return math.log(v.shape[0]) - _logsumexp(-negative_entropy(v), 0, xp)


def mean_max_probability(logits: Array) -> Array:
    """Mean of the members' maximum probabilities, as −ln u with u = mean_m (1 − max_k p_mk).

    The mean maximum probability is 1 − exp(−score). Members may be sure of different classes.

    Args:
      logits: [m, n, k] or log-probabilities.

    Returns:
      [n]; +inf where every member's maximum is exactly 1.

    Source: the definition.

    >>> p = np.array([[[0.9, 0.1]], [[0.3, 0.7]]])
    >>> round(float(1 - np.exp(-mean_max_probability(np.log(p))[0])), 12)
    0.8
    """
    v, xp = _members(logits)
    return math.log(v.shape[0]) - _logsumexp(-_softplus(msp(v)), 0, xp)


def mutual_information(logits: Array) -> Array:
    """Mutual information I of prediction and member, as −ln I: the confidence that members agree.

    I = H(p̄) − mean_m H(p_m) = mean_m KL(p_m ‖ p̄) = mean_m Σ_k p̄_k f(p_mk/p̄_k) with p̄ = mean_m p_m and
    f(t) = t ln t − t + 1 ≥ 0: a sum of non-negative terms. I is exp(−score).

    Args:
      logits: [m, n, k] or log-probabilities.

    Returns:
      [n], ≥ −ln ln m; +inf where the members agree exactly.

    Source: Houlsby et al., 2011 (BALD); Gal, PhD thesis, Cambridge 2016 (both from memory). The form of the sum is
    derived.

    >>> p = np.array([[[0.75, 0.25]], [[0.25, 0.75]]])
    >>> entropy = lambda p: -np.sum(p * np.log(p))
    >>> bool(np.isclose(np.exp(-mutual_information(np.log(p))[0]), entropy(p.mean(axis=0)) - entropy(p) / 2))
    True
    """
    v, xp = _members(logits)
    own = log_softmax(v)
    mean = _logsumexp(own, 0, xp) - math.log(v.shape[0])
    terms = mean[None, ...] + _log_divergence(_log_ratio_to_mean(v, own, mean, xp), xp)
    return math.log(v.shape[0]) - _logsumexp(_logsumexp(terms, -1, xp), 0, xp)


def _log_ratio_to_mean(v: Array, own: Array, mean: Array, xp: Any) -> Array:
    """ln(p_mk/p̄_k) [m, ..., k], small where members nearly agree, with an error that is small against it.

    own − mean has an error of the size of ln p. Of classes whose logits differ little between members, the differences
    d to the first member's logits are known to more digits: there ln(p_mk/p_0k) = d_mk − c_m, where
    e^{c_m}(1 − P_m) = 1 − P_0 + Σ_near p_0k(e^{d_mk} − 1), and P is the probability of the other classes ("far").
    """
    finite = xp.isfinite(v)
    known = finite & finite[:1, ...]
    v = xp.where(finite, v, 0.0)
    change = v - v[:1, ...]
    likely = one_hot(predicted_class(mean), v.shape[-1])[None, ...]
    change = change - xp.sum(xp.where(likely, change, 0.0), axis=-1, keepdims=True)  # without the shift of a member
    near = xp.all(known & (xp.abs(change) <= 1), axis=0, keepdims=True)
    p = xp.exp(own)
    far = xp.sum(xp.where(near, 0.0, p), axis=-1, keepdims=True)
    usable = xp.all(far <= 0.5, axis=0, keepdims=True)
    near = near & usable
    change = xp.where(near, change, 0.0)
    gain = xp.sum(p[:1, ...] * xp.expm1(change), axis=-1, keepdims=True) - far[:1, ...]
    shift = xp.log1p(xp.where(usable, gain, 0.0)) - xp.log1p(-xp.where(usable, far, 0.0))
    to_first = xp.where(near, change - shift, 0.0)
    close = to_first - xp.log1p(xp.mean(xp.expm1(to_first), axis=0, keepdims=True))
    impossible = xp.isinf(own)
    apart = xp.where(impossible, 0.0, own) - xp.where(xp.isinf(mean), 0.0, mean)[None, ...]
    return xp.where(near, close, xp.where(impossible, -1e4, apart))  # f(e^−10⁴) = f(0)


def _log_divergence(x: Array, xp: Any) -> Array:
    """ln f(e^x) for f(t) = t ln t − t + 1: f(e^x) = x e^x − (e^x − 1) = x² Σ_{j≥0} x^j (j + 1)/(j + 2)!."""
    small = xp.abs(x) < 0.25
    s = xp.where(small, x, 0.0)
    series = xp.zeros_like(s)
    for j in reversed(range(13)):
        series = series * s + (j + 1) / math.factorial(j + 2)
    zero = s == 0
    near = 2 * xp.log(xp.abs(xp.where(zero, 1.0, s))) + xp.log(series)
    t = xp.where(small, -1.0, x)
    far = xp.log(t * xp.exp(t) - xp.expm1(t))
    return xp.where(small, xp.where(zero, -xp.inf, near), far)


def _votes(logits: Array) -> tuple[Array, int, Any]:
    """How many members predict each class [..., k], as floating point; m; the namespace."""
    v, xp = _members(logits)
    voted = one_hot(predicted_class(v), v.shape[-1])
    return xp.sum(xp.astype(voted, v.dtype), axis=0), v.shape[0], xp


def variation_ratio(logits: Array) -> Array:
    """−(1 − share of the members that predict the class most of them predict).

    Args:
      logits: [m, n, k] or log-probabilities; a member's ties at the top go to its lowest class.

    Returns:
      [n], in (−1, 0], in steps of 1/m.

    Source: Gal, PhD thesis, Cambridge 2016, after Freeman 1965 (from memory).

    >>> logits = np.array([[[1.0, 0.0, 0.0]], [[1.0, 0.0, 0.0]], [[0.0, 0.0, 1.0]], [[0.0, 1.0, 0.0]]])
    >>> float(variation_ratio(logits)[0])
    -0.5
    """
    votes, m, xp = _votes(logits)
    return (xp.max(votes, axis=-1) - m) / m


def disagreement(logits: Array) -> Array:
    """−(share of the pairs of members that predict different classes) = (Σ_k c_k² − m²)/(m(m − 1)), c_k votes for k.

    Args:
      logits: [m, n, k] or log-probabilities, m ≥ 2; a member's ties at the top go to its lowest class.

    Returns:
      [n], in [−1, 0], in steps of 2/(m(m − 1)).

    Raises:
      ValueError: fewer than two members have no pairs.

    Source: the definition.

    >>> logits = np.array([[[1.0, 0.0, 0.0]], [[1.0, 0.0, 0.0]], [[0.0, 0.0, 1.0]]])
    >>> round(float(disagreement(logits)[0]), 12)
    -0.666666666667
    """
    votes, m, xp = _votes(logits)
    if m < 2:
        raise ValueError("disagreement needs at least two members")
    return (xp.sum(votes * votes, axis=-1) - m * m) / (m * (m - 1))


def _logsumexp(v: Array, axis: int, xp: Any) -> Array:
    largest = xp.max(v, axis=axis, keepdims=True)
    anchor = xp.where(xp.isinf(largest), 0.0, largest)
    total = xp.sum(xp.exp(v - anchor), axis=axis, keepdims=True)
    empty = total == 0
    value = anchor + xp.log(xp.where(empty, 1.0, total))
    return xp.squeeze(xp.where(empty, -xp.inf, value), axis=axis)


def log_softmax(logits: Array) -> Array:
    """ln softmax(v) = v − logsumexp(v) over the last axis, in float64 on the host; [..., k] → [..., k]."""
    v, xp = _working(logits)
    v = v - xp.max(v, axis=-1, keepdims=True)  # first, so that ln p near 0 keeps its digits
    return v - _logsumexp(v, -1, xp)[..., None]


def abstention_log_odds(logits: Array, abstain_logit: Array) -> Array:
    """The log-odds of not abstaining, ln((1 − q_{K+1})/q_{K+1}) = logsumexp_k v_k − v_{K+1}, of a softmax over K classes and abstention.

    The same ranking as −q_{K+1}, the confidence of Deep Gamblers and of self-adaptive training, without ties where that rounds to 0.

    Args:
      logits: [..., k]; abstain_logit: [...], v_{K+1}.

    Returns:
      [...], in nats.

    Source: Liu et al., NeurIPS 2019; Huang, Zhang & Zhang, NeurIPS 2020; the log-odds form is ours.

    >>> float(abstention_log_odds(np.zeros(4), np.array(0.0)).round(4))  # ln(⅘ / ⅕)
    1.3863
    """
    v, xp = _working(logits)
    return _logsumexp(v, -1, xp) - _floating(abstain_logit)[0]
