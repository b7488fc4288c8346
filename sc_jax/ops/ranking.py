"""The one definition under every ranking metric: losses in order of score, tie block by tie block.

Samples that share a score form a block; within it every order is equally likely, and metrics are expectations over
those orders. All metrics here are sums over the blocks *that carry loss*, so nothing depends on how ties were sorted,
and a bootstrap of 1,000 resamples costs one sort.

A weight w means w repeated rows: copies of a row share its score and are tied with it. Counts are exact; real weights
(survey weights, in units of rows) extend every formula by H_x = ψ(x + 1) + γ. Weights may have leading axes (one row of
weights per resample); then every metric has them too.
"""

from __future__ import annotations

import functools
import inspect
import math
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from array_api_compat import array_namespace, device, is_jax_array, is_numpy_namespace

Array = Any


class Ranking(NamedTuple):
    """Blocks of equal score in decreasing order of score; blocks without loss may be left out.

    Where shapes must not depend on values, and where it is faster, every sample is a row of its own, and the rows of a
    block share all fields but `loss`. Every formula is linear in `loss`, so both forms give the same value.

    Attributes:
      before: [..., g] weight ranked strictly above the block.
      weight: [..., g] weight of the block.
      loss_before: [..., g] total loss ranked strictly above the block.
      loss: [..., g] total loss of the block, or of the row.
      block_loss: [..., g] total loss of the block.
      total_weight, total_loss: [...] over all samples.
    """

    before: Array
    weight: Array
    loss_before: Array
    loss: Array
    block_loss: Array
    total_weight: Array
    total_loss: Array


def rank(score: Array, loss: Array, weight: Array | None = None, where: Array | None = None) -> Ranking:
    """Sorts once and returns what every metric is computed from.

    Args:
      score: [n], higher = more confident; ±inf are allowed.
      loss: [n], non-negative; 0/1 (bool or integer) for errors.
      weight: [..., n] ≥ 0, how many rows each sample stands for: counts (integers or bool) or real weights; 1 by default.
      where: bool [n], which samples there are; all by default. The others may hold anything.

    Returns:
      A `Ranking`; leading axes are those of `weight`.

    Raises:
      ValueError: shapes disagree, n = 0, a score is NaN, a loss or a weight is negative or not finite. (On devices, where
        values are not known when the program is built, a NaN among the scores makes the metrics NaN.)
    """
    xp, score, loss, weight = _checked(score, loss, weight, where)
    if is_numpy_namespace(xp):
        if weight is None and loss.dtype == bool:
            return _rank_errors(score, loss)
        return _rank_on_host(score, loss, weight)
    return _rows(xp, score, loss, weight)[1]


class Blocks(NamedTuple):
    """Every tie block in decreasing order of score: the points of the curve that a threshold can reach.

    On devices every sample is a row, and the rows of a block repeat it.

    Attributes:
      score: [g] of the block: the threshold that accepts it and all above.
      ranking: the `Ranking` of all blocks, with or without loss.
      first: bool [g], whether the row is the first of its block.
    """

    score: Array
    ranking: Ranking
    first: Array

    @property
    def accepted(self) -> Array:
        """[..., g] weight that the threshold accepts."""
        return self.ranking.before + self.ranking.weight

    @property
    def loss(self) -> Array:
        """[..., g] total loss that the threshold accepts."""
        return self.ranking.loss_before + self.ranking.block_loss


def blocks(score: Array, loss: Array, weight: Array | None = None, where: Array | None = None) -> Blocks:
    """The realisable points; arguments and errors as for `rank`."""
    xp, score, loss, weight = _checked(score, loss, weight, where)
    if not is_numpy_namespace(xp):
        return Blocks(*_rows(xp, score, loss, weight))
    score, loss, weight = _sorted(score, loss, weight)
    starts = _starts(score)
    weight = np.ones(len(score), np.int64) if weight is None else weight
    block_weight, block_loss = _sums(weight, starts), _sums(weight * loss, starts)
    through, loss_through = np.cumsum(block_weight, axis=-1), np.cumsum(block_loss, axis=-1)
    ranking = Ranking(
        before=through - block_weight,
        weight=block_weight,
        loss_before=loss_through - block_loss,
        loss=block_loss,
        block_loss=block_loss,
        total_weight=block_weight.sum(axis=-1),
        total_loss=block_loss.sum(axis=-1),
    )
    return Blocks(score[starts], ranking, np.ones(len(starts), bool))


def _checked(score: Array, loss: Array, weight: Array | None, where: Array | None) -> tuple[Any, Array, Array, Array]:
    """The namespace, and score, loss, weight with what `where` leaves out taken out (hosts) or weighted 0 (devices)."""
    xp = array_namespace(score, loss)
    score, loss = xp.asarray(score), xp.asarray(loss)
    if score.ndim != 1 or score.shape != loss.shape:
        raise ValueError(f"score and loss must both be [n]; they are {tuple(score.shape)} and {tuple(loss.shape)}")
    if score.shape[0] == 0:
        raise ValueError("score and loss are empty: a risk needs at least one example")
    weight = None if weight is None else beside(score, weight)
    if weight is not None and (weight.ndim == 0 or weight.shape[-1] != score.shape[0]):
        raise ValueError(f"weight must have n = {score.shape[0]} entries last; it is {tuple(weight.shape)}")
    if where is not None and where.shape != score.shape:
        raise ValueError(f"where must be [n] = {tuple(score.shape)}; it is {tuple(where.shape)}")
    if is_numpy_namespace(xp):
        if where is not None:
            where = np.asarray(where, bool)
            score, loss = score[where], loss[where]
            weight = None if weight is None else weight[..., where]
        return xp, _host_score(score), _host_loss(loss), None if weight is None else _host_weight(weight)
    if xp.isdtype(score.dtype, "bool"):
        score = xp.astype(score, xp.int32)
    if where is not None:
        where = beside(score, where, xp.bool)
        lowest = -xp.inf if xp.isdtype(score.dtype, "real floating") else 0
        score = xp.where(where, score, xp.full_like(score, lowest))
        loss = xp.where(where, loss, xp.zeros_like(loss))
        weight = xp.astype(where, xp.int32) if weight is None else xp.where(where, weight, xp.zeros_like(weight))
    return xp, score, loss, weight


def _host_score(score: np.ndarray) -> np.ndarray:
    if score.dtype.kind not in "fiub":
        score = score.astype(np.float32)  # bfloat16 and its kin, exactly
    if score.dtype == np.float16 or score.dtype == bool:
        score = score.astype(np.float32)
    if score.dtype.kind == "f" and np.isnan(score).any():
        raise ValueError(f"{np.isnan(score).sum()} scores are NaN (first at {np.argmax(np.isnan(score))})")
    return score


def _host_loss(loss: np.ndarray) -> np.ndarray:
    """bool for errors, which are counted exactly; float64 for all other losses."""
    if loss.dtype == bool:
        return loss
    if loss.dtype.kind not in "fiu":
        loss = loss.astype(np.float64)
    hard = loss == 1
    if (hard | (loss == 0)).all():
        return hard
    if not (np.isfinite(loss).all() and (loss >= 0).all()):
        raise ValueError("losses must be finite and ≥ 0")
    return loss.astype(np.float64)


def _host_weight(weight: np.ndarray) -> np.ndarray:
    """Counts as integers, real weights as float64."""
    if weight.dtype == bool:
        return weight.view(np.uint8)
    if weight.dtype.kind == "u" and weight.dtype.itemsize < 8:  # uint64 and int64 together would be float64
        return weight
    if weight.dtype.kind != "i":
        weight = weight.astype(np.float64, copy=False)
    if (weight.dtype.kind == "f" and not np.isfinite(weight).all()) or (weight < 0).any():
        raise ValueError("weights must be finite and ≥ 0: a weight w means w repeated rows")
    whole = weight.dtype.kind == "i" or ((weight == np.floor(weight)) & (weight < _LARGEST_COUNT)).all()
    return weight.astype(np.int64 if whole else np.float64, copy=False)


def _rank_errors(score: np.ndarray, error: np.ndarray) -> Ranking:
    """0/1 losses without weights: only the places of the wrong ones are needed, and no score has to carry its index along."""
    n = len(score)
    keys = _packed(score, error)
    if keys is None:
        every, wrong = np.sort(score), np.sort(score[error])
        first = _starts(wrong)
        start = np.searchsorted(every, wrong[first], side="left")
        end = np.searchsorted(every, wrong[first], side="right")
        block_loss = np.diff(np.append(first, len(wrong)))
    else:
        place = np.flatnonzero((keys & 1).astype(bool))  # within a block the wrong ones come last
        value = keys[place] >> 1
        first = _starts(value)
        block_loss = np.diff(np.append(first, len(place)))
        start = place[first]
        end = start + block_loss
        value = value[first]
        tied = np.flatnonzero((keys[start - 1] >> 1 == value) & (start > 0))
        start[tied] = np.searchsorted(keys, value[tied] << 1, side="left")
    down = slice(None, None, -1)
    before, block_loss = (n - end)[down], block_loss[down]
    return Ranking(
        before=before,
        weight=(end - start)[down],
        loss_before=np.cumsum(block_loss) - block_loss,
        loss=block_loss,
        block_loss=block_loss,
        total_weight=np.int64(n),
        total_loss=block_loss.sum(),
    )


def _packed(score: np.ndarray, error: np.ndarray) -> np.ndarray | None:
    """Sorted integers of the width of the scores, 2·place + error; None where there is no bit for the error.

    The magnitude of a float, read as an integer, has its order; less the smallest that is not 0 it leaves a bit for the sign
    and one for the error, unless the largest is 2¹²⁸ times as large (float64: 2¹⁰²⁴) or infinite. In parts that stay in
    cache: fresh pages cost more than the arithmetic.
    """
    if score.dtype not in (np.float32, np.float64) or len(score) == 0:
        return None
    bits = np.ascontiguousarray(score).view(f"i{score.itemsize}")
    top, width = np.iinfo(bits.dtype).max, 8 * score.itemsize
    parts = [slice(start, start + _IN_CACHE) for start in range(0, len(bits), _IN_CACHE)]
    negative = bool(bits.min() < 0)
    if not negative:
        low, high = int(bits.min()), int(bits.max())
    else:
        low, high = top, 0
        for part in parts:
            magnitude = bits[part] & top
            high = max(high, int(magnitude.max()))
            magnitude -= 1  # 0 becomes −1, as an unsigned number the largest
            low = min(low, int(magnitude.view(f"u{score.itemsize}").min()))
    fits = high - low < 1 << (width - 2)
    if not fits and width == 64:
        return None
    keys = np.empty(len(bits), bits.dtype if fits else np.int64)
    for part in parts:
        place = keys[part]
        if negative:
            np.bitwise_and(bits[part], top, out=place)
            place -= low
            np.maximum(place, 0, out=place)
            sign = bits[part] >> (width - 1)
            place ^= sign
            place -= sign
        else:
            np.subtract(bits[part], low, out=place)
        place <<= 1
        place |= error[part]
    keys.sort()
    return keys


def _sorted(
    score: np.ndarray, loss: np.ndarray, weight: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """All in decreasing order of score, errors as integers; nothing is moved where that is their order already."""
    loss = loss.astype(np.int64) if loss.dtype == bool else loss
    if not (score[1:] > score[:-1]).any():
        return score, loss, weight
    order = np.argsort(score)[::-1]
    return score[order], loss[order], None if weight is None else np.take(weight, order, axis=-1)


def _starts(score: np.ndarray) -> np.ndarray:
    return np.flatnonzero(np.concatenate([[True], score[1:] != score[:-1]])[: len(score)])


def _sums(values: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Sums from each start to the next, over the last axis."""
    wide = np.float64 if values.dtype.kind == "f" else np.int64
    if len(starts) == values.shape[-1]:
        return values.astype(wide, copy=False)
    return np.add.reduceat(values, starts, axis=-1, dtype=wide)


def _sums_through(weight: np.ndarray, place: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of weights [..., n] the sums up to and with each place [..., g], and of all [...]: int64, or float64 of real weights.

    Small counts are added eight at a time: the bytes of w · 0x0101010101010101 are the sums of the first 1 … 8 bytes of w.
    """
    n = weight.shape[-1]
    if weight.dtype != np.uint8 or n < 64 or sys.byteorder != "little" or weight.max(initial=0) > 255 // 8:
        through = np.cumsum(weight, axis=-1, dtype=np.float64 if weight.dtype.kind == "f" else np.int64)
        return np.take(through, place, axis=-1), through[..., -1]
    lead = weight.shape[:-1]
    padded = np.zeros((*lead, n + -n % 8), np.uint8)
    padded[..., :n] = weight
    within = padded.view(np.uint64)
    within *= np.uint64(0x0101010101010101)
    through = np.cumsum((within >> np.uint64(56)).view(np.int64), axis=-1)
    before = np.concatenate([np.zeros((*lead, 1), np.int64), through[..., :-1]], axis=-1)
    sums = np.take(before, place >> 3, axis=-1)
    sums += np.take(within.view(np.uint8), place, axis=-1)
    return sums, through[..., -1]


def _rank_on_host(score: np.ndarray, loss: np.ndarray, weight: np.ndarray | None) -> Ranking:
    score, loss, weight = _sorted(score, loss, weight)
    if len(score) == 0:
        none = np.zeros((() if weight is None else weight.shape[:-1]) + (0,), np.int64)
        return Ranking(none, none, none, none, none, none.sum(axis=-1), none.sum(axis=-1))
    starts = _starts(score)
    carries = _sums(loss, starts) > 0
    first = starts[carries]
    last = np.append(starts[1:], len(score))[carries] - 1
    if weight is None:
        before, through, total = first, last + 1, np.int64(len(score))
        block_loss = _sums(loss, starts)[carries]
    else:
        wide = np.float64 if weight.dtype.kind == "f" else np.int64
        through, total = _sums_through(weight, last)
        own = np.take(weight, first, axis=-1).astype(wide)
        if len(starts) == len(score):
            before, block_loss = through - own, own * loss[first]
        else:
            before = _sums_through(weight, first)[0] - own
            block_loss = _sums(weight * loss, starts)[..., carries]
    loss_through = np.cumsum(block_loss, axis=-1)
    return Ranking(
        before=before,
        weight=through - before,
        loss_before=loss_through - block_loss,
        loss=block_loss,
        block_loss=block_loss,
        total_weight=total,
        total_loss=block_loss.sum(axis=-1),
    )


def _rows(xp: Any, score: Array, loss: Array, weight: Array | None) -> tuple[Array, Ranking, Array]:
    """Scores in decreasing order, every sample a row of a `Ranking`, and whether a row is the first of its block."""
    n = score.shape[0]
    jax_array = is_jax_array(score)

    def working(values: Array) -> Array:
        if not jax_array:
            return xp.astype(values, xp.float64)  # there an integer plus ½ may be a float32
        counted = xp.isdtype(values.dtype, ("bool", "integral"))
        return values.astype(xp.int32 if counted else xp.result_type(values.dtype, xp.float32))

    loss = working(loss)
    one = xp.ones_like(loss, dtype=xp.int32 if jax_array else xp.float64)
    weight = one if weight is None else working(weight)
    if jax_array:
        import jax

        descending = -score if xp.isdtype(score.dtype, "real floating") else ~score
        key, order = jax.lax.sort((descending, xp.arange(n, dtype=xp.int32)), num_keys=1)
        key = -key if xp.isdtype(score.dtype, "real floating") else ~key
        position = xp.arange(n, dtype=xp.int32)
        new = xp.concat([xp.ones(1, dtype=xp.bool), key[1:] != key[:-1]])
        start = jax.lax.cummax(xp.where(new, position, 0))
        end = jax.lax.cummin(xp.where(xp.concat([new[1:], xp.ones(1, dtype=xp.bool)]), position, n), reverse=True)
    else:
        order = xp.flip(xp.argsort(score))
        key = xp.take(score, order)
        up = xp.flip(key)
        start = n - xp.searchsorted(up, key, side="right")
        end = n - 1 - xp.searchsorted(up, key, side="left")
        new = xp.concat([xp.ones_like(key[:1], dtype=xp.bool), key[1:] != key[:-1]])
    weight = xp.take(weight, order, axis=-1)
    row = (1,) * (weight.ndim - 1) + (n,)
    loss = xp.reshape(xp.take(loss, order), row) * weight
    top, above = xp.reshape(start == 0, row), xp.clip(start - 1, 0, n - 1)

    def through(values: Array) -> tuple[Array, Array, Array]:
        total = xp.cumulative_sum(values, axis=-1, dtype=values.dtype)
        before = xp.where(top, xp.zeros_like(total), xp.take(total, above, axis=-1))
        return before, xp.take(total, end, axis=-1) - before, total[..., -1]

    before, block_weight, total_weight = through(weight)
    loss_before, block_loss, total_loss = through(loss)
    return key, Ranking(before, block_weight, loss_before, loss, block_loss, total_weight, total_loss), new


def rank_over_axis(
    score: Array, loss: Array, axis_name: str, weight: Array | None = None, where: Array | None = None
) -> Ranking:
    """The `Ranking` of samples divided over devices, exactly: for use inside `jax.shard_map` or `jax.pmap` over `axis_name`.

    Each device sorts its share; then the sorted shares go round the ring, and every device looks up its own samples in each
    that visits: no device ever holds more than two shares, and no histogram stands in for a score.

    Args:
      score, loss, weight, where: [n/devices], this device's share; see `rank`.
      axis_name: of the mapped axis.

    Returns:
      A `Ranking` of this device's rows among all samples, with totals over all of them. Sums over rows are to be summed
      over the devices: metrics of the whole, put together from the shares under `jit`, do that by themselves.
    """
    import jax
    import jax.numpy as jnp

    xp, score, loss, weight = _checked(score, loss, weight, where)
    key, rows, _ = _rows(xp, score, loss, weight)
    down = -key if jnp.issubdtype(key.dtype, jnp.floating) else ~key  # ascending, for the look-up
    start = jnp.searchsorted(down, down, side="left")
    own_weight = rows.weight * (start == jnp.arange(len(down)))  # the weight of a block stands in its first row
    own_loss = rows.block_loss * (start == jnp.arange(len(down)))

    def sums(values: Array) -> Array:
        return jnp.concatenate([values[:1] * 0, jnp.cumsum(values, dtype=values.dtype)])

    visitor = (down, sums(own_weight), sums(own_loss))
    devices = jax.lax.axis_size(axis_name)
    ring = [(i, (i + 1) % devices) for i in range(devices)]

    def meet(_: int, carry: tuple[Any, Any]) -> tuple[Any, Any]:
        (theirs, weights, losses), found = carry
        above, through = (jnp.searchsorted(theirs, down, side=side) for side in ("left", "right"))
        seen = (weights[above], weights[through], losses[above], losses[through])
        found = tuple(old + new for old, new in zip(found, seen, strict=True))
        return jax.lax.ppermute((theirs, weights, losses), axis_name, ring), found

    none = (rows.weight * 0, rows.weight * 0, rows.block_loss * 0, rows.block_loss * 0)
    _, (before, through, loss_before, loss_through) = jax.lax.fori_loop(0, devices, meet, (visitor, none))
    return Ranking(
        before=before,
        weight=through - before,
        loss_before=loss_before,
        loss=rows.loss,
        block_loss=loss_through - loss_before,
        total_weight=jax.lax.psum(rows.total_weight, axis_name),
        total_loss=jax.lax.psum(rows.total_loss, axis_name),
    )


def harmonic_difference(start: Array, stop: Array) -> Array:
    """H_stop − H_start for 0 ≤ start ≤ stop; exact to rounding also where they are close.

    H_m = Σ_{j≤m} 1/j for integers, ψ(m + 1) + γ for real m. H_m = ln(m + ½) + γ + c(m), c(m) = 1/(24 x²) − 7/(960 x⁴) + …,
    x = m + ½; where m is small, c(m) is tabulated (integers) or found by H_m = H_{m+16} − Σ_{j≤16} 1/(m + j). One logarithm
    of the ratio, never a difference of two large sums.

    Args:
      start, stop: [...], integers, or real numbers.

    Returns:
      [...].

    >>> round(float(harmonic_difference(np.asarray(1), np.asarray(3))), 12)  # 1/2 + 1/3
    0.833333333333
    """
    xp = array_namespace(start, stop)
    start, stop = xp.asarray(start), xp.asarray(stop)
    return xp.log1p((stop - start) / (start + 0.5)) + _harmonic_remainder(stop, xp) - _harmonic_remainder(start, xp)


def harmonic_rest(start: Array, length: Array) -> Array:
    """1 − (K/w)(H_{K+w} − H_K), the mean of j/(K + j) over j = 1 … w, for K = start ≥ 0, w = length ≥ 0; 1 for w = 0 = K.

    A sum of positive terms, exact to rounding also where w is small against K: with u = w/(K + ½), K/w = 1/u − 1/(2w) and
    the c of `harmonic_difference` it is (1 − ln(1 + u)/u) + ln(1 + u)/(2w) + (K/w)(c(K) − c(K + w)); below u = ½ its first
    term is a series in z = u/(2 + u), since ln(1 + u) = 2(z + z³/3 + z⁵/5 + …).

    >>> round(float(harmonic_rest(np.asarray(1), np.asarray(2))), 12)  # (1/2 + 2/3)/2
    0.583333333333
    """
    xp = array_namespace(start, length)
    w = xp.where(length > 0, length, xp.ones_like(length))
    u = w / (start + 0.5)
    near = _less_log(u, xp) + xp.log1p(u) / (2 * w)
    return near + start / w * (_harmonic_remainder(start, xp) - _harmonic_remainder(start + w, xp))


def _less_log(u: Array, xp: Any) -> Array:
    """1 − ln(1 + u)/u for u > 0."""
    z = u / (2 + u)
    square = z * z
    tail = 0 * z
    for k in range(21, 1, -2):
        tail = square * (1 / k + tail)
    return xp.where(u < 0.5, z - (1 - z) * tail, 1 - xp.log1p(u) / u)


def harmonic_tail(start: np.ndarray, n: np.ndarray) -> np.ndarray:
    """H_n − H_start of counts on the host, [...] ≤ n [...without the last axis]: `harmonic_difference`, in as few passes as can be."""
    if start.ndim == 1 and start.size > _IN_CACHE:
        parts = range(0, start.size, _IN_CACHE)
        return np.concatenate([harmonic_tail(start[part : part + _IN_CACHE], n) for part in parts])
    end = n[..., None]
    x = start + 0.5
    ratio = (end + 0.5) / x
    tail = np.log(ratio)
    near = np.flatnonzero(ratio < 1.1)  # where ln loses digits; elsewhere it is the faster
    tail.flat[near] = np.log1p(((end - start).flat[near]) / x.flat[near])
    np.divide(1, x, out=x)
    np.square(x, out=x)
    x *= 1 / 24 - x * (7 / 960 - x * (31 / 8064))
    small = np.flatnonzero(start < _SMALL)
    x.flat[small] = _REMAINDER[start.flat[small]]
    tail -= x
    tail += _harmonic_remainder(np.asarray(end), np)
    return tail


_LARGEST_COUNT = 2**40  # what is more adds up in floats, which do not wrap around
_IN_CACHE = 1 << 15


def harmonic_rest_of_counts(start: np.ndarray, length: np.ndarray) -> np.ndarray:
    """`harmonic_rest` of counts [m] on the host: term by term up to 8 of them, as in nearly every block of a resample."""
    rest = np.zeros(len(start))
    few = np.flatnonzero(length <= 8)
    left, k, w = few, start[few], length[few]
    for j in range(1, 9):
        rest[left] += j / (k + j)
        more = w > j
        left, k, w = left[more], k[more], w[more]
        if len(left) == 0:
            break
    rest[few] /= length[few]
    many = np.flatnonzero(length > 8)
    rest[many] = harmonic_rest(start[many], length[many])
    return rest


_SMALL = 64
_HARMONIC = np.concatenate([[0.0], np.cumsum(1 / np.arange(1, _SMALL))])
_REMAINDER = _HARMONIC - np.log(np.arange(_SMALL) + 0.5) - np.euler_gamma
_SHIFT = 16


def _harmonic_remainder(m: Array, xp: Any) -> Array:
    """c(m) = H_m − γ − ln(m + ½)."""
    if xp.isdtype(m.dtype, "integral"):
        square = 1 / (m + 0.5) ** 2
        series = square * (1 / 24 - square * (7 / 960 - square * (31 / 8064)))
        small = xp.clip(m, 0, _SMALL - 1)
        table = xp.asarray(_REMAINDER, dtype=series.dtype, device=getattr(m, "device", None))
        tabulated = xp.reshape(xp.take(table, xp.reshape(small, (-1,))), small.shape)
        return xp.where(m < _SMALL, tabulated, series)

    def far(m: Array) -> Array:
        square = 1 / (m + 0.5) ** 2
        return square * (
            1 / 24 - square * (7 / 960 - square * (31 / 8064 - square * (127 / 30720 - square * 511 / 67584)))
        )

    def near(m: Array) -> Array:
        sums = 0 * m
        for j in range(_SHIFT, 0, -1):
            sums = sums + 1 / (m + j)
        return xp.log1p(_SHIFT / (m + 0.5)) + far(m + _SHIFT) - sums

    return _by_size(m, far, near, xp)


def _by_size(x: Array, far: Callable[[Array], Array], near: Callable[[Array], Array], xp: Any) -> Array:
    """far(x) from `_SHIFT` on, near(x) below: on the host for those alone that are below."""
    small = x < _SHIFT
    if not is_numpy_namespace(xp):
        one = xp.ones_like(x)
        return xp.where(small, near(xp.where(small, x, one)), far(xp.where(small, one * _SHIFT, x)))
    value = np.asarray(far(np.maximum(x, 1)))
    below = np.flatnonzero(small)
    if len(below):
        value.flat[below] = near(np.asarray(x).flat[below])
    return value


def mean_log_ratio(start: Array, length: Array, n: Array) -> Array:
    """The mean of ln((n + 1)/k) over k = K + 1 … K + w, for K = start ≥ 0, w = length, K + w ≤ n; 0 for w = 0.

    Σ ln k = ln Γ(K + w + 1) − ln Γ(K + 1); by Binet's formula ln Γ(x) = (x − ½) ln x − x + ½ ln 2π + r(x) the mean is, with
    x = K + 1 and u = w/x, ln((n + 1)/(x + w)) + (1 − ln(1 + u)/u) + ln(1 + u)/(2w) − (r(x + w) − r(x))/w: positive terms and a
    small one, exact to rounding also where all are close to 0. Real w as they come.

    >>> round(float(np.exp(-2 * mean_log_ratio(np.asarray(1.0), np.asarray(2.0), np.asarray(5.0)))), 12)  # 2/6 · 3/6
    0.166666666667
    """
    xp = array_namespace(start, length)
    w = xp.where(length > 0, 1.0 * length, xp.ones_like(1.0 * length))
    x = start + 1.0
    end = xp.log1p((n - start - length) / (x + length))
    tied = _less_log(w / x, xp) + xp.log1p(w / x) / (2 * w) - (_binet(x + w, xp) - _binet(x, xp)) / w
    return xp.where(length > 0, end + tied, 0.0 * x)


def _binet(x: Array, xp: Any) -> Array:
    """r(x) = ln Γ(x) − (x − ½) ln x + x − ½ ln 2π, by r(x) = r(x + 1) + (x + ½) ln(1 + 1/x) − 1 where x is small."""

    def far(x: Array) -> Array:
        square = 1 / x**2
        return (1 / 12 - square * (1 / 360 - square * (1 / 1260 - square * (1 / 1680 - square / 1188)))) / x

    def near(x: Array) -> Array:
        sums = 0 * x
        for j in range(_SHIFT - 1, -1, -1):
            sums = sums + ((x + (j + 0.5)) * xp.log1p(1 / (x + j)) - 1)
        return sums + far(x + _SHIFT)

    return _by_size(x, far, near, xp)


def fits_in_integers(ranking: Ranking) -> bool:
    """Whether sums of a loss times twice a weight are whole and fit into 64 bits; on the host alone."""
    whole = isinstance(ranking.loss, np.ndarray) and ranking.before.dtype.kind == ranking.loss.dtype.kind == "i"
    largest = (int(np.max(field, initial=0)) for field in (ranking.total_weight, ranking.total_loss)) if whole else ()
    return whole and 2 * math.prod(largest) < 2**63


def beside(like: Array, values: Any, dtype: Any = None) -> Array:
    """`values` as an array of the library of `like`, on its device."""
    place = {} if is_jax_array(like) else {"device": device(like)}
    return array_namespace(like).asarray(values, dtype=dtype, **place)


def real(values: Array) -> Array:
    """float64; on JAX the dtype of the values, or float32 if that is less."""
    xp = array_namespace(values)
    return xp.astype(values, xp.result_type(values.dtype, xp.float32) if is_jax_array(values) else xp.float64)


def share(part: Array, whole: Array) -> Array:
    """part / whole, NaN where the whole is 0: a mean over nothing."""
    xp = array_namespace(part, whole)
    some = whole > 0
    return xp.where(some, part / xp.where(some, whole, xp.ones_like(whole)), xp.nan)


def metric_of_ranking(
    definition: Callable[..., Array] | None = None, *, errors_only: bool = False
) -> Callable[..., Array]:
    """Turns a definition on a `Ranking` into a metric of `(score, loss, …, *, weight, where)`, kept as `.of_ranking`.

    Several metrics of one score then share one sort: `r = rank(score, loss); aurc.of_ranking(r), augrc.of_ranking(r)`.
    With `errors_only` the metric refuses losses that are not 0/1.
    """
    if definition is None:
        return functools.partial(metric_of_ranking, errors_only=errors_only)

    @functools.wraps(definition)
    def metric(
        score: Array, loss: Array, *options: Any, weight: Array | None = None, where: Array | None = None, **named: Any
    ) -> Array:
        if errors_only:
            require_errors(loss, definition.__name__, where)
        return nan_if_nan(score, definition(rank(score, loss, weight, where), *options, **named), where)

    score, loss, *_, weight, where, _ = inspect.signature(metric, follow_wrapped=False).parameters.values()
    options = list(inspect.signature(definition).parameters.values())[1:]
    metric.__signature__ = inspect.Signature([score, loss, *options, weight, where])
    metric.of_ranking = definition
    return metric


def require_errors(loss: Array, name: str, where: Array | None = None) -> None:
    """Refuses losses that are not 0/1: on the host any dtype may hold them, on devices only bool and integers can be trusted.

    Raises:
      ValueError: they are soft.
    """
    xp = array_namespace(loss)
    if is_numpy_namespace(xp):
        counted = loss if where is None else loss[np.asarray(where, bool)]
        hard = counted.dtype == bool or ((counted == 0) | (counted == 1)).all()
    else:
        hard = xp.isdtype(loss.dtype, ("bool", "integral"))
    if not hard:
        raise ValueError(f"{name} is defined for 0/1 errors, given as bool or integers; the losses are soft")


def nan_if_nan(score: Array, value: Array, where: Array | None = None) -> Array:
    """`value`, or NaN if a score on a device is NaN: there it cannot be refused."""
    xp = array_namespace(value)
    if is_numpy_namespace(xp) or not xp.isdtype(score.dtype, "real floating"):
        return value
    unknown = xp.isnan(xp.asarray(score))
    if where is not None:
        unknown = unknown & xp.asarray(where, dtype=xp.bool)
    return xp.where(xp.any(unknown), xp.nan, value)
