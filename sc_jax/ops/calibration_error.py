"""How honest the probabilities are: proper losses, and how far stated confidences are from the shares of right answers.

A weight w means w repeated rows, real weights are in units of rows; leading axes of `weight` (one row of weights per
resample) are leading axes of every result. Sums run in float64, on JAX in at least float32. On devices, where values are
not known when the program is built, confidences that the host refuses (NaN, outside [0, 1]) make the value NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import NormalDist
from typing import Any, Literal, NamedTuple

import numpy as np
from array_api_compat import array_namespace, device, is_jax_array, is_numpy_namespace

from sc_jax.ops.ranking import Array, require_errors, share
from sc_jax.ops.scores import by_blocks, log_softmax, one_hot, predicted_class, rows_of_blocks

Scheme = Literal["width", "mass"]
Norm = float | Literal["max"]


class ReliabilityTable(NamedTuple):
    """The bins behind a calibration error, in increasing order of confidence; a bin holds the confidences in (low, high].

    Attributes:
      low, high: [..., bins] its edges; the first bin is closed. Equal for bins of equal mass that ties have emptied.
      weight: [..., bins] its rows.
      confidence, accuracy: [..., bins] their mean confidence and their share of right answers; NaN for an empty bin.
      accuracy_low, accuracy_high: [..., bins] Wilson's interval of the accuracy; NaN for an empty bin.
    """

    low: Array
    high: Array
    weight: Array
    confidence: Array
    accuracy: Array
    accuracy_low: Array
    accuracy_high: Array


class BrierDecomposition(NamedTuple):
    """total = reliability − resolution + uncertainty + within_bin, each [...]; see `brier_decomposition`."""

    reliability: Array
    resolution: Array
    uncertainty: Array
    within_bin: Array
    total: Array


@by_blocks
def log_loss(logits: Array, label: Array) -> Array:
    """−ln p_y of each example; its mean is the negative log-likelihood (NLL), in nats.

    Args:
      logits: [n, k] (or log-probabilities); label: int [n].

    Returns:
      [n]; +inf where the true class has probability 0.

    Raises:
      ValueError: shapes disagree, or labels are no integers in [0, k).
    """
    return _log_loss(log_softmax(logits), _checked_label(logits, label))


def _log_loss(log_p: Array, label: Array) -> Array:
    return -array_namespace(log_p).take_along_axis(log_p, label[:, None], axis=-1)[:, 0]


@by_blocks
def brier_loss(logits: Array, label: Array) -> Array:
    """Σ_k (p_k − 1[k = y])² of each example; its mean is the multiclass Brier score, in [0, 2].

    Args:
      logits: [n, k] (or log-probabilities); label: int [n].

    Returns:
      [n].

    Raises:
      ValueError: shapes disagree, or labels are no integers in [0, k).

    Source: Brier, 1950 (the sum over classes, not its half).
    """
    log_p = log_softmax(logits)
    return _brier_loss(array_namespace(log_p).exp(log_p), _checked_label(logits, label))


def _brier_loss(p: Array, label: Array) -> Array:
    xp = array_namespace(p)
    return xp.sum((p - xp.astype(one_hot(label, p.shape[-1]), p.dtype)) ** 2, axis=-1)


@by_blocks
def max_probability(logits: Array) -> Array:
    """p_ŷ, the probability of the predicted class, [n, k] → [n]. For calibration; to rank, use `scores.msp`."""
    log_p = log_softmax(logits)
    return _max_probability(array_namespace(log_p).exp(log_p), logits)


def _max_probability(p: Array, logits: Array) -> Array:
    return array_namespace(p).take_along_axis(p, predicted_class(logits)[:, None], axis=-1)[:, 0]


class LossesAndProbabilities(NamedTuple):
    """See `losses_and_probabilities`: log_loss, brier_loss, confidence [n]; probabilities [n, k]."""

    log_loss: np.ndarray
    brier_loss: np.ndarray
    confidence: np.ndarray
    probabilities: np.ndarray


def losses_and_probabilities(logits: np.ndarray, label: np.ndarray) -> LossesAndProbabilities:
    """`log_loss`, `brier_loss`, `max_probability` and the softmax, from one pass over the logits: the same bits. Host only.

    Args:
      logits: [n, k] (or log-probabilities); label: int [n].

    Returns:
      `LossesAndProbabilities`, in float64. The probabilities lie a class after the other in memory: what is computed of each class reads
      it in one piece.

    Raises:
      ValueError: as `log_loss`.
    """
    label = _checked_label(logits, label)
    by_class, parts = np.empty(logits.shape[::-1]), []
    for at in rows_of_blocks(logits):
        log_p = log_softmax(logits[at])
        p = np.exp(log_p)
        by_class[:, at] = p.T
        parts.append((_log_loss(log_p, label[at]), _brier_loss(p, label[at]), _max_probability(p, logits[at])))
    return LossesAndProbabilities(*(np.concatenate(part) for part in zip(*parts, strict=True)), by_class.T)


def negative_log_likelihood(
    logits: Array, label: Array, *, weight: Array | None = None, where: Array | None = None
) -> Array:
    """NLL = the mean of −ln p_y, in nats.

    Args:
      logits: [n, k] (or log-probabilities); label: int [n].
      weight: [..., n], 1 for all by default; where: bool [n], which examples there are.

    Returns:
      [...]; +inf where the true class of an example with weight has probability 0, NaN where no weight is left.

    Raises:
      ValueError: shapes disagree, n = 0, labels are no integers in [0, k), or weights are negative or not finite.

    >>> probabilities = np.array([[0.5, 0.5], [0.2, 0.8]])
    >>> bool(np.isclose(negative_log_likelihood(np.log(probabilities), np.array([0, 1])), -np.log(0.5 * 0.8) / 2))
    True
    """
    return _mean_loss(log_loss, logits, label, weight, where)


def brier_score(logits: Array, label: Array, *, weight: Array | None = None, where: Array | None = None) -> Array:
    """The mean of Σ_k (p_k − 1[k = y])², in [0, 2].

    Args:
      logits: [n, k] (or log-probabilities); label: int [n].
      weight: [..., n], 1 for all by default; where: bool [n], which examples there are.

    Returns:
      [...]; NaN where no weight is left.

    Raises:
      ValueError: shapes disagree, n = 0, labels are no integers in [0, k), or weights are negative or not finite.

    Source: Brier, 1950 (the sum over classes, not its half).

    >>> probabilities = np.array([[0.5, 0.5], [0.2, 0.8]])
    >>> round(float(brier_score(np.log(probabilities), np.array([0, 1]))), 12)
    0.29
    """
    return _mean_loss(brier_loss, logits, label, weight, where)


def expected_calibration_error(
    confidence: Array,
    error: Array,
    *,
    bins: int = 15,
    scheme: Scheme = "width",
    norm: Norm = 1,
    weight: Array | None = None,
    where: Array | None = None,
) -> Array:
    """ECE = (Σ_b (w_b/w) |accuracy_b − mean confidence_b|^p)^(1/p) over bins (lo, hi], the first closed.

    - `width`: edges j/bins; 1.0 belongs to the last bin.
    - `mass`: the j-th edge is the smallest confidence that at least the share j/bins of the weight does not exceed. Ties share a
      bin, the order of the examples plays no part, and each row of `weight` has its own edges, as its repeated rows would.
      Where ties cover several edges, the bins between these are empty.

    p = `norm`; `max` is the limit, the largest gap of a bin that is not empty (MCE).

    Args:
      confidence: [n] probabilities in [0, 1]; error: [n], 0/1 as bool or integers.
      bins: how many; scheme: `width` or `mass`; norm: p ≥ 1, or `max`.
      weight: [..., n], 1 for all by default; where: bool [n], which examples there are.

    Returns:
      [...], in [0, 1]; NaN where no weight is left.

    Raises:
      ValueError: shapes disagree, n = 0, the errors are soft, a confidence lies outside [0, 1], a weight is negative or not
        finite, an option is none. (On devices errors must be bool or integers.)

    Source: Naeini, Cooper & Hauskrecht, AAAI 2015 (ECE, MCE); bins of equal width as in Guo et al., ICML 2017; of equal
    mass as in Nguyen & O'Connor, EMNLP 2015; norms as in Kumar, Liang & Ma, NeurIPS 2019.

    >>> confidence, error = np.array([1.0, 0.5, 0.45]), np.array([0, 0, 1])
    >>> round(float(expected_calibration_error(confidence, error)), 12)
    0.316666666667
    >>> round(float(expected_calibration_error(confidence, error, norm="max")), 12)
    0.5
    >>> round(float(expected_calibration_error(confidence, error, bins=2, scheme="mass")), 12)  # {0.45, 0.5}, {1}
    0.016666666667
    """
    _check_options(bins, scheme, norm)
    sample = _checked(confidence, error, weight, where)
    return _nan_if(sample.unknown, _calibration_error(sample, bins, scheme, norm))


def classwise_calibration_error(
    probabilities: Array,
    label: Array,
    *,
    bins: int = 15,
    scheme: Scheme = "width",
    norm: Norm = 1,
    weight: Array | None = None,
    where: Array | None = None,
) -> Array:
    """(1/K) Σ_k ECE(p_k, 1[y = k]): the mean over all classes, also those that never occur, of their own calibration errors.

    Args:
      probabilities: [n, k], each in [0, 1]; label: int [n]; the rest as for `expected_calibration_error`.

    Returns:
      [...], in [0, 1]; NaN where no weight is left.

    Raises:
      ValueError: as `expected_calibration_error`; labels are no integers in [0, k).

    Source: Kull et al., NeurIPS 2019 (classwise ECE); Nixon et al., CVPR workshops 2019 (static calibration error).

    >>> probabilities = np.array([[0.5, 0.5], [0.25, 0.75]])
    >>> float(classwise_calibration_error(probabilities, np.array([0, 1]), bins=2))  # (1/8 + 3/8)/2
    0.25
    """
    _check_options(bins, scheme, norm)
    classes = _checked_classes(probabilities, label, weight, where)
    (value,) = _over_classes(lambda sample: (_calibration_error(sample, bins, scheme, norm),), classes)
    return _nan_if(classes.unknown, array_namespace(value).mean(value, axis=0))


def adaptive_calibration_error(
    probabilities: Array,
    label: Array,
    *,
    bins: int = 15,
    norm: Norm = 1,
    weight: Array | None = None,
    where: Array | None = None,
) -> Array:
    """ACE = (1/(K·bins)) Σ_k Σ_b |accuracy_bk − mean p_bk|: classwise, over bins of equal mass.

    A bin counts by its mass, which is 1/bins but for ties and where bins does not divide n.

    Args:
      probabilities: [n, k], each in [0, 1]; label: int [n]; the rest as for `expected_calibration_error`.

    Returns:
      [...], in [0, 1]; NaN where no weight is left.

    Raises:
      ValueError: as `classwise_calibration_error`.

    Source: Nixon et al., "Measuring calibration in deep learning", CVPR workshops 2019.
    """
    return classwise_calibration_error(
        probabilities, label, bins=bins, scheme="mass", norm=norm, weight=weight, where=where
    )


def reliability_table(
    confidence: Array,
    error: Array,
    *,
    bins: int = 15,
    scheme: Scheme = "width",
    level: float = 0.95,
    weight: Array | None = None,
    where: Array | None = None,
) -> ReliabilityTable:
    """What a reliability diagram draws, and what `expected_calibration_error` is computed from: Σ_b w_b |gap_b| / Σ_b w_b.

    The interval of an accuracy a among w rows is Wilson's, (a + z²/2w ± z √(a(1 − a)/w + z²/4w²)) / (1 + z²/w); it takes
    the edges as given and a weight as rows drawn independently.

    Args:
      confidence: [n] probabilities in [0, 1]; error: [n], 0/1 as bool or integers.
      bins, scheme: as for `expected_calibration_error`; level: of the intervals.
      weight: [..., n], 1 for all by default; where: bool [n], which examples there are.

    Returns:
      A `ReliabilityTable` of [..., bins].

    Raises:
      ValueError: as `expected_calibration_error`; the level is not in (0, 1).

    Source: Murphy & Winkler, 1977 (reliability diagrams); Wilson, JASA 1927.

    >>> table = reliability_table(np.array([1.0, 0.5, 0.45]), np.array([0, 0, 1]), bins=2)
    >>> table.weight.tolist(), table.accuracy.tolist()
    ([2.0, 1.0], [0.5, 1.0])
    """
    _check_options(bins, scheme, 1)
    if not 0 < level < 1:
        raise ValueError(f"level must lie in (0, 1); it is {level}")
    sample = _checked(confidence, error, weight, where)
    xp, confidence, right = array_namespace(sample.confidence), sample.confidence, sample.right
    binning = _binning(confidence, bins, scheme)

    def of_row(weight: Array) -> tuple[Array, ...]:
        edges, index = binning(weight)
        ends = xp.concat([xp.zeros_like(confidence[:1]), edges, xp.ones_like(confidence[:1])])
        return ends[:-1], ends[1:], *_totals(index, [xp.ones_like(right), confidence, right], weight, bins)

    low, high, rows, confidence, right = (_nan_if(sample.unknown, total) for total in _per_row(of_row, sample.weight))
    accuracy = share(right, rows)
    square = NormalDist().inv_cdf((1 + level) / 2) ** 2
    some = xp.where(rows > 0, rows, xp.ones_like(rows))
    spread = xp.sqrt(square * (xp.clip(accuracy * (1 - accuracy), 0, 1) / some + square / (4 * some**2)))
    center, scale = accuracy + square / (2 * some), 1 + square / some
    lower, upper = xp.clip((center - spread) / scale, 0, 1), xp.clip((center + spread) / scale, 0, 1)
    return ReliabilityTable(low, high, rows, share(confidence, rows), accuracy, lower, upper)


def smooth_ece(
    confidence: Array,
    error: Array,
    *,
    grid: int = 2**14,
    weight: Array | None = None,
    where: Array | None = None,
) -> Array:
    """smECE = the σ at which S(σ) = ∫₀¹ |r_σ(t)| dt equals σ, a calibration error without bins.

    r_σ(t) = Σ_i (w_i/w) (right_i − c_i) K_σ(t, c_i) are the residuals smoothed by a Gaussian of standard deviation σ that is
    reflected at 0 and 1, K_σ(t, c) = Σ_m [φ_σ(t − c − 2m) + φ_σ(t + c − 2m)]. S does not increase, so σ is unique.

    Each residual is divided between the two nearest points of a grid of step h = 1/`grid`; these are smoothed exactly (by a
    cosine transform), |r_σ| is integrated by trapezoids, and the equation is solved to rounding. The value v is off by less
    than ⅜ (h/v)² · mean |right − c|, where v ≥ 2h (derived, with ∫|φ_σ''| < 1/σ²: ⅛ each for the division, for the linear
    interpolation of r_σ and for its sign changes).

    Args:
      confidence: [n] probabilities in [0, 1]; error: [n], 0/1 as bool or integers.
      grid: how many steps. weight: [..., n], 1 for all by default; where: bool [n], which examples there are.

    Returns:
      [...], in [0, 1]; NaN where no weight is left. No derivatives.

    Raises:
      ValueError: as `expected_calibration_error`.

    Source: Błasiok & Nakkiran, "Smooth ECE", ICLR 2024.

    >>> round(float(smooth_ece(np.array([0.75, 0.5]), np.array([1, 1]))), 12)  # all residuals of one sign: their mean
    0.625
    """
    if not isinstance(grid, (int, np.integer)) or grid < 2:
        raise ValueError(f"grid must be an integer ≥ 2; it is {grid}")
    sample = _checked(confidence, error, weight, where)
    xp, residual = array_namespace(sample.confidence), sample.right - sample.confidence
    position = sample.confidence * grid
    cell = xp.clip(xp.floor(position), 0, grid - 1)
    upper = residual * (position - cell)
    cell = xp.astype(cell, xp.int32 if is_jax_array(cell) else xp.int64)
    frequency = math.pi * _as(residual, np.arange(grid + 1))

    def of_row(weight: Array) -> tuple[Array]:
        scaled = xp.astype(weight, residual.dtype)
        scaled = share(scaled, xp.sum(scaled, axis=-1))
        below = _scattered(cell, scaled * (residual - upper), grid)
        above = _scattered(cell, scaled * upper, grid)
        nothing = xp.zeros_like(below[:1])
        mass = xp.concat([below, nothing]) + xp.concat([nothing, above])
        # Reflected, the points 0 and 1 meet their own images.
        circle = xp.concat([2 * mass[:1], mass[1:-1], 2 * mass[-1:], xp.flip(mass[1:-1])])
        spectrum = xp.fft.rfft(circle)

        def area(sigma: Array) -> Array:
            value = grid * xp.fft.irfft(spectrum * xp.exp(-0.5 * (sigma * frequency) ** 2), n=2 * grid)[: grid + 1]
            height = xp.abs(value)
            return (xp.sum(height, axis=-1) - (height[0] + height[-1]) / 2) / grid

        return (_where_it_equals(area, xp.abs(xp.sum(mass, axis=-1))),)

    (value,) = _per_row(of_row, sample.weight)
    return _nan_if(sample.unknown, value)


def brier_decomposition(
    probabilities: Array,
    label: Array,
    *,
    bins: int = 15,
    scheme: Scheme = "width",
    classwise: bool = False,
    weight: Array | None = None,
    where: Array | None = None,
) -> BrierDecomposition:
    """The multiclass Brier score as reliability − resolution + uncertainty + within_bin, exactly.

    With w_b the share of bin b, p_bk and y_bk the means in it of p_k and of 1[y = k], y_k the share of class k, sums over k:
    reliability = Σ_b w_b (p_bk − y_bk)², resolution = Σ_b w_b (y_bk − y_k)², uncertainty = y_k (1 − y_k), and within_bin =
    the variance of p_k within the bins minus twice its covariance with 1[y = k] there; 0 where a bin holds one vector only.

    Args:
      probabilities: [n, k], each in [0, 1]; label: int [n].
      bins, scheme: as for `expected_calibration_error`. The bins are those of max_k p_k, shared by all classes; with
        `classwise`, each class has those of its own p_k.
      weight: [..., n], 1 for all by default; where: bool [n], which examples there are.

    Returns:
      A `BrierDecomposition` of [...]; NaN where no weight is left.

    Raises:
      ValueError: as `classwise_calibration_error`.

    Source: Murphy, 1973; the two components within bins are those of Stephenson, Coelho & Jolliffe, Weather and Forecasting
    2008; summed over classes (derived).

    >>> parts = brier_decomposition(np.array([[0.75, 0.25], [0.75, 0.25]]), np.array([0, 1]), bins=4)
    >>> [float(part) for part in parts]  # (0.75 − 0.5)² twice, − 0, + 1/4 twice, + 0
    [0.125, 0.0, 0.5, 0.0, 0.625]
    """
    _check_options(bins, scheme, 1)
    classes = _checked_classes(probabilities, label, weight, where)
    xp = array_namespace(classes.probabilities)
    shared = None if classwise else _binning(xp.max(classes.probabilities, axis=-1), bins, scheme)

    def of_class(sample: _Sample) -> tuple[Array, ...]:
        p, y = sample.confidence, sample.right
        binning = shared or _binning(p, bins, scheme)

        def of_row(weight: Array) -> tuple[Array, ...]:
            index = binning(weight)[1]
            scaled = xp.astype(weight, p.dtype)
            scaled = share(scaled, xp.sum(scaled, axis=-1))
            rows, p_sum, y_sum = _totals(index, [xp.ones_like(p), p, y], scaled, bins)
            some = xp.where(rows > 0, rows, xp.ones_like(rows))
            p_mean, y_mean, base = p_sum / some, y_sum / some, xp.sum(scaled * y)
            p_rest, y_rest = p - xp.take(p_mean, index), y - xp.take(y_mean, index)
            return (
                xp.sum(rows * (p_mean - y_mean) ** 2),
                xp.sum(rows * (y_mean - base) ** 2),
                base * (1 - base),
                xp.sum(scaled * p_rest * (p_rest - 2 * y_rest)),
                xp.sum(scaled * (p - y) ** 2),
            )

        return _per_row(of_row, sample.weight)

    parts = _over_classes(of_class, classes)
    return BrierDecomposition(*(_nan_if(classes.unknown, xp.sum(part, axis=0)) for part in parts))


class _Sample(NamedTuple):
    """confidence, right [n], 0 where masked; weight [..., n]; whether a device holds values that the host refuses."""

    confidence: Array
    right: Array
    weight: Array
    unknown: Array | bool


class _Classes(NamedTuple):
    """probabilities [n, k], label [n], 0 where masked; weight [..., n]; unknown as in `_Sample`."""

    probabilities: Array
    label: Array
    weight: Array
    unknown: Array | bool


def _check_options(bins: int, scheme: str, norm: Norm) -> None:
    if not isinstance(bins, (int, np.integer)) or bins < 1:
        raise ValueError(f"bins must be an integer ≥ 1; it is {bins}")
    if scheme not in ("width", "mass"):
        raise ValueError(f"scheme must be 'width' or 'mass'; it is {scheme!r}")
    if norm != "max" and (isinstance(norm, str) or not norm >= 1):
        raise ValueError(f"norm must be a number ≥ 1 or 'max'; it is {norm!r}")


def _checked(confidence: Array, error: Array, weight: Array | None, where: Array | None) -> _Sample:
    xp = array_namespace(confidence, error)
    if confidence.shape != error.shape or confidence.ndim != 1:
        shapes = f"{tuple(confidence.shape)} and {tuple(error.shape)}"
        raise ValueError(f"confidence and error must both be [n]; they are {shapes}")
    weight, where = _checked_weight(confidence, weight, where)
    if where is not None:
        confidence, error = (xp.where(where, values, xp.zeros_like(values)) for values in (confidence, error))
    require_errors(error, "the calibration error")
    confidence = _working(confidence)
    return _Sample(confidence, 1 - xp.astype(error, confidence.dtype), weight, _outside(confidence, "confidences"))


def _checked_classes(probabilities: Array, label: Array, weight: Array | None, where: Array | None) -> _Classes:
    xp = array_namespace(probabilities, label)
    _check_shapes(probabilities, label)
    weight, where = _checked_weight(probabilities[:, 0], weight, where)
    if where is not None:
        probabilities = xp.where(where[:, None], probabilities, xp.zeros_like(probabilities))
        label = xp.where(where, label, xp.zeros_like(label))
    probabilities = _working(probabilities)
    label = _checked_label(probabilities, label)
    return _Classes(probabilities, label, weight, _outside(probabilities, "probabilities"))


def _check_shapes(logits: Array, label: Array) -> None:
    if logits.ndim != 2 or tuple(label.shape) != tuple(logits.shape[:1]) or logits.shape[1] == 0:
        shapes = f"{tuple(logits.shape)} and {tuple(label.shape)}"
        raise ValueError(f"logits (or probabilities) must be [n, k] and label [n]; they are {shapes}")


def _checked_label(logits: Array, label: Array) -> Array:
    _check_shapes(logits, label)
    xp, k = array_namespace(logits, label), logits.shape[1]
    if not xp.isdtype(label.dtype, "integral"):
        raise ValueError(f"labels must be integers in [0, {k}); they are {label.dtype}")
    if is_jax_array(label):
        return label
    if is_numpy_namespace(xp) and ((label < 0) | (label >= k)).any():
        raise ValueError(f"labels must be integers in [0, {k}); they reach from {label.min()} to {label.max()}")
    return xp.astype(label, xp.int64)


def _checked_weight(like: Array, weight: Array | None, where: Array | None) -> tuple[Array, Array | None]:
    """Weights [..., n], 0 where masked: float64 on the host; on devices integers stay such, which counts edges exactly."""
    xp, n = array_namespace(like), like.shape[0]
    if n == 0:
        raise ValueError("the arrays are empty: a mean needs at least one example")
    host = is_numpy_namespace(xp)
    if weight is None:
        weight = xp.ones_like(like, dtype=xp.float64 if host else xp.int32)
    else:
        weight = xp.asarray(weight)
        if weight.ndim == 0 or weight.shape[-1] != n or 0 in weight.shape:
            raise ValueError(f"weight must have n = {n} entries last; it is {tuple(weight.shape)}")
        if host or xp.isdtype(weight.dtype, "real floating"):
            weight = _working(weight)
        else:
            weight = xp.astype(weight, xp.int32 if weight.dtype == xp.bool else xp.result_type(weight.dtype, xp.int32))
    if where is not None:
        where = xp.asarray(where, dtype=xp.bool)
        if tuple(where.shape) != (n,):
            raise ValueError(f"where must be [n] = [{n}]; it is {tuple(where.shape)}")
        row = xp.reshape(where, (1,) * (weight.ndim - 1) + (n,))
        weight = xp.where(row, weight, xp.zeros_like(weight))
    if host and not (weight.min() >= 0 and weight.max() < math.inf):
        raise ValueError("weights must be finite and ≥ 0: a weight w means w repeated rows")
    return weight, where


def _working(values: Array) -> Array:
    """float64; on JAX the dtype of the values, or float32 if that is less."""
    xp = array_namespace(values)
    dtype = xp.result_type(values.dtype, xp.float32) if is_jax_array(values) else xp.float64
    return xp.astype(values, dtype, copy=False)


def _outside(values: Array, name: str) -> Array | bool:
    """Refuses what is not in [0, 1], or on devices says whether there is any."""
    xp = array_namespace(values)
    if not is_numpy_namespace(xp):
        return ~xp.all((values >= 0) & (values <= 1))
    if not (values.min() >= 0 and values.max() <= 1):
        raise ValueError(f"{name} must lie in [0, 1]")
    return False


def _nan_if(unknown: Array | bool, value: Array) -> Array:
    return value if unknown is False else array_namespace(value).where(unknown, math.nan, value)


def _as(like: Array, values: Any) -> Array:
    """Constants of the dtype of `like`, where it is."""
    xp = array_namespace(like)
    place = {} if is_jax_array(like) else {"device": device(like)}
    return xp.asarray(values, dtype=like.dtype, **place)


def _mean_loss(
    loss: Callable[[Array, Array], Array], logits: Array, label: Array, weight: Array | None, where: Array | None
) -> Array:
    xp = array_namespace(logits, label)
    _check_shapes(logits, label)
    weight, where = _checked_weight(logits[:, 0], weight, where)
    if where is not None:  # before the loss, so that what is masked spoils neither it nor its derivatives
        logits = xp.where(where[:, None], logits, xp.zeros_like(logits))
        label = xp.where(where, label, xp.zeros_like(label))
    value = loss(logits, label)
    infinite = xp.isinf(value)
    finite = xp.where(infinite, xp.zeros_like(value), value)

    def of_row(weight: Array) -> tuple[Array]:
        weight = xp.astype(weight, value.dtype)
        mean = share(xp.sum(weight * finite), xp.sum(weight))
        return (xp.where(xp.any(infinite & (weight > 0)), math.inf, mean),)

    return _per_row(of_row, weight)[0]


def _calibration_error(sample: _Sample, bins: int, scheme: Scheme, norm: Norm) -> Array:
    xp, gap = array_namespace(sample.confidence), sample.right - sample.confidence
    binning = _binning(sample.confidence, bins, scheme)

    def of_row(weight: Array) -> tuple[Array]:
        whole = xp.sum(xp.astype(weight, gap.dtype, copy=False))
        index = binning(weight)[1]
        if norm == 1:
            (gaps,) = _totals(index, [gap], weight, bins)
            return (share(xp.sum(xp.abs(gaps)), whole),)
        gaps, rows = _totals(index, [gap, xp.ones_like(gap)], weight, bins)
        gaps = xp.abs(gaps) / xp.where(rows > 0, rows, xp.ones_like(rows))
        largest = xp.max(gaps)
        if norm in ("max", math.inf):
            return (xp.where(whole > 0, largest, math.nan),)
        # In units of the largest: no power underflows, and the derivative exists where all gaps are 0.
        scale = xp.where(largest > 0, largest, xp.ones_like(largest))
        mean = share(xp.sum(rows * (gaps / scale) ** norm), whole)
        return (xp.where(mean == 0, mean, scale * xp.where(mean == 0, xp.ones_like(mean), mean) ** (1 / norm)),)

    return _per_row(of_row, sample.weight)[0]


def _binning(confidence: Array, bins: int, scheme: Scheme) -> Callable[[Array], tuple[Array, Array]]:
    """weight [n] → the edges [bins − 1] between the bins, and the bin [n] of each example."""
    xp, n = array_namespace(confidence), confidence.shape[0]
    if scheme == "width":
        edges = np.arange(1, bins) / bins
        if is_jax_array(confidence):  # rounded down, so that the bins are those of the host whatever the dtype
            rounded = edges.astype(confidence.dtype)
            edges = np.where(rounded > edges, np.nextafter(rounded, rounded.dtype.type(0)), rounded)
        edges = _as(confidence, edges)
        index = _bin_of(confidence, edges)
        return lambda weight: (edges, index)
    host = is_numpy_namespace(xp)
    ascending = xp.sort(confidence, stable=False)
    order = None if host else xp.argsort(confidence)

    def by_mass(weight: Array) -> tuple[Array, Array]:
        alike = host and bool((weight == weight[0]).all())  # then it does not matter whose weight is where
        placed = weight if alike else xp.take(weight, xp.argsort(confidence) if host else order)
        through = xp.cumulative_sum(placed, dtype=weight.dtype)
        whole, part = through[-1], _as(through, np.arange(1, bins))
        if xp.isdtype(through.dtype, "integral"):
            target = part * (whole // bins) + (part * (whole % bins) + bins - 1) // bins
        else:  # a target that the weights meet exactly is met, however their sum was rounded
            target = whole * (part / bins - n**0.5 * xp.finfo(through.dtype).eps)
        first = xp.clip(xp.searchsorted(through, target, side="left"), 0, n - 1)
        edges = xp.take(ascending, first)
        return edges, _bin_of(confidence, edges)

    return by_mass


def _bin_of(confidence: Array, edges: Array) -> Array:
    """How many of the increasing edges are below each confidence: [n]."""
    xp = array_namespace(confidence)
    if not is_numpy_namespace(xp) or len(edges) > 64:
        return xp.searchsorted(edges, confidence, side="left")
    index = np.zeros(confidence.shape, np.uint8)
    for edge in edges:  # some bytes a pass: on shuffled confidences several times faster than a search
        index += confidence > edge
    return index.astype(np.intp)  # what `bincount` wants


def _totals(index: Array, values: Sequence[Array], weight: Array, bins: int) -> tuple[Array, ...]:
    """Σ w v over each bin, of values v [n]: [bins] each."""
    if is_numpy_namespace(array_namespace(index)):
        return tuple(np.bincount(index, weight * value, bins) for value in values)
    xp = array_namespace(index)
    inside = index[None, :] == _as(index, np.arange(bins))[:, None]
    weight = xp.astype(weight, values[0].dtype)
    products = [(weight * value)[None, :] for value in values]
    return tuple(xp.sum(xp.where(inside, product, xp.zeros_like(product)), axis=-1) for product in products)


def _scattered(index: Array, values: Array, size: int) -> Array:
    """As `_totals`, for many places: [size]."""
    xp = array_namespace(index)
    if is_numpy_namespace(xp):
        return np.bincount(index, values, size)
    order = xp.argsort(index)
    through = xp.cumulative_sum(xp.take(values, order), dtype=values.dtype)
    through = xp.concat([xp.zeros_like(through[:1]), through])
    end = xp.searchsorted(xp.take(index, order), _as(index, np.arange(size)), side="right")
    reached = xp.take(through, end)
    return reached - xp.concat([xp.zeros_like(reached[:1]), reached[:-1]])


def _per_row(of_row: Callable[[Array], tuple[Array, ...]], weight: Array) -> tuple[Array, ...]:
    """`of_row` of every row of weight [..., n], with its leading axes; one after the other, so that memory is that of one."""
    if weight.ndim == 1:
        return of_row(weight)
    xp, lead = array_namespace(weight), tuple(weight.shape[:-1])
    rows = xp.reshape(weight, (-1, weight.shape[-1]))
    return tuple(xp.reshape(value, lead + tuple(value.shape[1:])) for value in _mapped(of_row, rows))


def _over_classes(of_class: Callable[[_Sample], tuple[Array, ...]], classes: _Classes) -> tuple[Array, ...]:
    """`of_class` of (p_k, 1[y = k]) for every class, stacked: [k, ...]."""
    xp, p = array_namespace(classes.probabilities), classes.probabilities

    def one(k: Array, confidence: Array) -> tuple[Array, ...]:
        confidence = xp.asarray(confidence, copy=True)  # a column, in one piece
        right = xp.astype(classes.label == k, confidence.dtype)
        return of_class(_Sample(confidence, right, classes.weight, False))

    return _mapped(one, _as(classes.label, np.arange(p.shape[1])), xp.permute_dims(p, (1, 0)))


def _mapped(function: Callable[..., tuple[Array, ...]], *arguments: Array) -> tuple[Array, ...]:
    """`function` of each of the first axes of the arguments, stacked."""
    if is_jax_array(arguments[0]):
        import jax

        return jax.lax.map(lambda each: function(*each), arguments)
    values = [function(*(argument[i, ...] for argument in arguments)) for i in range(arguments[0].shape[0])]
    return tuple(array_namespace(arguments[0]).stack(value) for value in zip(*values, strict=True))


def _where_it_equals(function: Callable[[Array], Array], start: Array) -> Array:
    """The x with f(x) = x of a function on [0, 1] that does not increase, where f(start) ≥ start.

    The solution lies between x and f(x) for every x, so that a good guess encloses it tightly: secants, every fourth time a
    bisection.
    """
    xp = array_namespace(start)
    accuracy = 8 * xp.finfo(start.dtype).eps
    high = function(start)

    def unfinished(state: tuple[Array, ...]) -> Array:
        step, low, high, *_ = state
        return (step < 100) & (high - low > accuracy)

    def body(state: tuple[Array, ...]) -> tuple[Array, ...]:
        step, low, high, before, excess_before, at, excess = state
        rise = excess - excess_before
        guess = at - excess * (at - before) / xp.where(rise == 0, xp.ones_like(rise), rise)
        trusted = (guess > low) & (guess < high) & (rise != 0) & (step % 4 != 3)
        guess = xp.where(trusted, guess, (low + high) / 2)
        value = function(guess)
        low, high = xp.maximum(low, xp.minimum(guess, value)), xp.minimum(high, xp.maximum(guess, value))
        return step + 1, low, high, at, excess, guess, value - guess

    state = (xp.zeros_like(start), start, high, start, high - start, high, function(high) - high)
    if is_jax_array(start):
        import jax

        state = jax.lax.while_loop(unfinished, body, state)
    else:
        while unfinished(state):
            state = body(state)
    return (state[1] + state[2]) / 2
