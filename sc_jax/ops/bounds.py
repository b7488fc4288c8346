"""Bounds on an unknown risk from a finite sample: exact for counts of errors, conservative for losses in [0, 1].

Counts, means and sizes broadcast against each other, so that one call bounds the risk at every threshold. All is computed on the
host in float64: a tail probability of 10⁻⁹ is an ordinary value here.

A p-value is for the null hypothesis "the risk is `risk` or more"; a small one certifies that it is below. Losses are independent
draws from one distribution, unless a bound says that it needs less. Costs in [0, B] are divided by B first.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from scipy import special

from sc_jax.ops.ranking import Array

_PRIOR = 0.5, 0.5
"""The Beta mixture of the anytime-valid bounds: Jeffreys'. Any other, fixed before the data, is as valid."""


def binomial_p_value(errors: Array, n: Array, risk: Array) -> np.ndarray:
    """The exact p-value of "risk ≥ r" when `errors` of n independent examples are wrong: P(Bin(n, r) ≤ errors).

    Args:
      errors: [...], whole numbers 0..n; n: [...], whole numbers ≥ 0; risk: [...], r in [0, 1].

    Returns:
      [...], in [0, 1]; 1 where n = 0 or r = 0.

    Raises:
      ValueError: errors are not counts (soft losses have `hoeffding_bentkus_p_value`), or r is outside [0, 1].

    Source: Clopper & Pearson 1934; as a p-value of risk control: Angelopoulos, Bates, Candès, Jordan & Lei, "Learn then test", 2021.

    >>> round(float(binomial_p_value(0, 10, 0.2)), 6)  # 0.8¹⁰
    0.107374
    """
    errors, n = _counts(errors, n)
    return _binomial_cdf(errors, n, _share("risk", risk))


def hoeffding_bentkus_p_value(mean: Array, n: Array, risk: Array) -> np.ndarray:
    """A p-value of "E loss ≥ r" for losses in [0, 1] of which n have this mean.

    p = min(exp(−n h(min(m, r), r)), e · P(Bin(n, r) ≤ ⌈n m⌉), 1), h(a, b) = a ln(a/b) + (1 − a) ln((1 − a)/(1 − b)).

    Args:
      mean: [...], m in [0, 1]; n: [...], whole numbers ≥ 0; risk: [...], r in [0, 1].

    Returns:
      [...], in [0, 1]; 1 where n = 0 (whatever the mean). For 0/1 losses never below `binomial_p_value`.

    Raises:
      ValueError: a mean or r is outside [0, 1].

    Source: Bates, Angelopoulos, Lei, Malik & Jordan, "Distribution-free, risk-controlling prediction sets", JACM 2021.

    >>> round(float(hoeffding_bentkus_p_value(0.0, 100, 0.05)), 6)  # (1 − 0.05)¹⁰⁰
    0.005921
    """
    n, r = _size(n), _share("risk", risk)
    m = _share("mean", np.where(n == 0, 0.0, mean))
    total = n * m
    near = np.round(total)
    total = np.where(np.abs(total - near) <= 1e-9 * np.maximum(near, 1), near, np.ceil(total))  # k/n · n is k
    a = np.minimum(m, r)
    divergence = special.rel_entr(a, r) + special.rel_entr(1 - a, 1 - r)
    hoeffding = np.where(n == 0, 1.0, np.exp(-np.maximum(n, 1) * divergence))
    return np.minimum(np.minimum(hoeffding, math.e * _binomial_cdf(np.minimum(total, n), n, r)), 1.0)


def hoeffding_bentkus_upper(mean: Array, n: Array, delta: Array) -> np.ndarray:
    """The largest r that `hoeffding_bentkus_p_value` does not reject at δ: E loss is at most that with probability ≥ 1 − δ.

    Args:
      mean: [...], in [0, 1]; n: [...], whole numbers ≥ 0; delta: [...], δ in (0, 1).

    Returns:
      [...], in [mean, 1]; 1 where n = 0.

    Raises:
      ValueError: as `hoeffding_bentkus_p_value`; δ is outside (0, 1).

    Source: as `hoeffding_bentkus_p_value`.

    >>> round(float(hoeffding_bentkus_upper(0.0, 100, 0.05)), 6)  # 1 − 0.05^(1/100)
    0.029513
    """
    n, delta = _size(n), _open_share("delta", delta)
    mean, n, delta = np.broadcast_arrays(np.where(n == 0, 0.0, mean), n, delta)
    _share("mean", mean)
    return _last(lambda r: hoeffding_bentkus_p_value(mean, n, r) > delta, mean, np.ones(mean.shape))


def clopper_pearson_upper(errors: Array, n: Array, delta: Array) -> np.ndarray:
    """The exact upper bound of a risk: the r with P(Bin(n, r) ≤ errors) = δ, the 1 − δ quantile of Beta(errors + 1, n − errors).

    Args:
      errors: [...], whole numbers 0..n; n: [...], whole numbers ≥ 0; delta: [...], δ in (0, 1).

    Returns:
      [...], in (0, 1]: the risk is at most that with probability ≥ 1 − δ; 1 where errors = n.

    Raises:
      ValueError: errors are not counts; δ is outside (0, 1).

    Source: Clopper & Pearson, Biometrika 1934.

    >>> round(float(clopper_pearson_upper(0, 100, 0.05)), 6)  # 1 − 0.05^(1/100)
    0.029513
    """
    errors, n = _counts(errors, n)
    delta = _open_share("delta", delta)
    with np.errstate(invalid="ignore"):
        bound = special.betainccinv(errors + 1, np.maximum(n - errors, 0.5), delta)
    return np.where(errors == n, 1.0, bound)


def clopper_pearson_lower(errors: Array, n: Array, delta: Array) -> np.ndarray:
    """The exact lower bound of a risk: the r with P(Bin(n, r) ≥ errors) = δ, the δ quantile of Beta(errors, n − errors + 1).

    Args:
      errors: [...], whole numbers 0..n; n: [...], whole numbers ≥ 0; delta: [...], δ in (0, 1).

    Returns:
      [...], in [0, 1): the risk is at least that with probability ≥ 1 − δ; 0 where errors = 0.

    Raises:
      ValueError: errors are not counts; δ is outside (0, 1).

    Source: Clopper & Pearson, Biometrika 1934.
    """
    errors, n = _counts(errors, n)
    bound = special.betaincinv(np.maximum(errors, 0.5), n - errors + 1, _open_share("delta", delta))
    return np.where(errors == 0, 0.0, bound)


def clopper_pearson_interval(errors: Array, n: Array, level: float = 0.95) -> np.ndarray:
    """The exact two-sided interval of a risk: lower and upper bound at (1 − level)/2 each.

    Args:
      errors: [...], whole numbers 0..n; n: [...], whole numbers ≥ 0; level: e.g. 0.95.

    Returns:
      [..., 2], low and high; it covers with probability ≥ level, whatever the risk.

    Raises:
      ValueError: errors are not counts; level is outside (0, 1).

    Source: Clopper & Pearson, Biometrika 1934.

    >>> clopper_pearson_interval(1, 10).round(4)
    array([0.0025, 0.445 ])
    """
    delta = (1 - _open_share("level", level)) / 2
    low, high = clopper_pearson_lower(errors, n, delta), clopper_pearson_upper(errors, n, delta)
    return np.stack(np.broadcast_arrays(low, high), axis=-1)


def wilson_interval(errors: Array, n: Array, level: float = 0.95) -> np.ndarray:
    """Wilson's score interval of a risk: all r with |errors/n − r| ≤ z √(r(1 − r)/n). A description, not a guarantee.

    Args:
      errors: [...], whole numbers 0..n; n: [...], whole numbers ≥ 1; level: e.g. 0.95.

    Returns:
      [..., 2], low and high, within [0, 1]. It covers with probability about `level`: less than it for some risks.

    Raises:
      ValueError: errors are not counts; n = 0; level is outside (0, 1).

    Source: Wilson, JASA 1927.

    >>> wilson_interval(1, 10).round(4)
    array([0.0179, 0.4042])
    """
    errors, n = _counts(errors, n)
    if (n == 0).any():
        raise ValueError("Wilson's interval is not defined for n = 0")
    z2 = special.ndtri(0.5 + _open_share("level", level) / 2) ** 2
    share = errors / n
    middle = share + z2 / (2 * n)
    half = np.sqrt(z2 * (share * (1 - share) + z2 / (4 * n)) / n)
    low = np.where(errors == 0, 0.0, (middle - half) / (1 + z2 / n))
    high = np.where(errors == n, 1.0, (middle + half) / (1 + z2 / n))
    return np.stack([low, high], axis=-1)


def empirical_bernstein_upper(mean: Array, variance: Array, n: Array, delta: Array) -> np.ndarray:
    """An upper bound on E loss for losses in [0, 1] that is narrow where they vary little.

    mean + √(2 V ln(2/δ)/n) + 7 ln(2/δ)/(3(n − 1)), V the sample variance with n − 1; at most 1.

    Args:
      mean: [...], in [0, 1]; variance: [...], V ≥ 0; n: [...], whole numbers ≥ 0; delta: [...], δ in (0, 1).

    Returns:
      [...], in [mean, 1]: E loss is at most that with probability ≥ 1 − δ; 1 where n < 2 (whatever mean and variance).

    Raises:
      ValueError: a mean is outside [0, 1]; a variance is negative or NaN; δ is outside (0, 1).

    Source: Maurer & Pontil, "Empirical Bernstein bounds and sample variance penalization", COLT 2009, Theorem 4.
    """
    n, delta = _size(n), _open_share("delta", delta)
    mean, variance = _share("mean", np.where(n < 2, 1.0, mean)), np.where(n < 2, 0.0, variance)
    if not (variance >= 0).all():
        raise ValueError("a variance is negative or NaN")
    log, n = np.log(2 / delta), np.maximum(n, 2)
    return np.minimum(mean + np.sqrt(2 * variance * log / n) + 7 * log / (3 * (n - 1)), 1.0)


def empirical_bernstein_interval(mean: Array, variance: Array, n: Array, level: float = 0.95) -> np.ndarray:
    """A two-sided interval of E loss for losses in [0, 1] that is narrow where they vary little.

    High is `empirical_bernstein_upper` at (1 − level)/2; low is 1 − that of 1 − loss, which has mean 1 − mean and the same variance.

    Args:
      mean: [...], in [0, 1]; variance: [...], V ≥ 0; n: [...], whole numbers ≥ 0; level: e.g. 0.95.

    Returns:
      [..., 2], low ≤ mean ≤ high; it covers with probability ≥ level. 0 and 1 where n < 2 (whatever mean and variance).

    Raises:
      ValueError: as `empirical_bernstein_upper`; level is outside (0, 1).

    Source: Maurer & Pontil, COLT 2009, Theorem 4, on both sides by a union bound.

    >>> empirical_bernstein_interval(0.5, 0.0, 1000).round(4)  # half of it: 7 ln(80)/(3 · 999)
    array([0.4898, 0.5102])
    """
    delta = (1 - _open_share("level", level)) / 2
    high = empirical_bernstein_upper(mean, variance, n, delta)
    low = 1 - empirical_bernstein_upper(1 - np.asarray(mean, np.float64), variance, n, delta)
    return np.stack([low, high], axis=-1)


def betting_upper(losses: Array, delta: float) -> np.ndarray:
    """An upper bound on E loss for losses in [0, 1], by betting against it; the narrowest here for small, varied losses.

    The wealth K_t(m) = Π_{i ≤ t} (1 − λ_i (L_i − m)) of a gambler who bets that losses stay below m grows with m. The bound is the
    least m at which it exceeded 1/δ at some t ≤ n. Stakes are set before each loss is seen: λ_i = min(1, √(2 ln(1/δ)/(n V_{i−1}))),
    V_i = (¼ + Σ_{j ≤ i} (L_j − M_j)²)/(i + 1), M_i = (½ + Σ_{j ≤ i} L_j)/(i + 1).

    Losses are bet on in the order in which they stand, and another order gives another bound. Fix it before looking at the losses
    (as drawn, or shuffled by a seed); never sort them, nor choose among orders. It is enough that each loss has the same mean given
    those before it.

    Args:
      losses: [..., n], in [0, 1], in the order of the bets; delta: δ in (0, 1).

    Returns:
      [...], in (0, 1]: E loss is at most that with probability ≥ 1 − δ; 1 where n = 0.

    Raises:
      ValueError: a loss is outside [0, 1]; δ is outside (0, 1).

    Source: Waudby-Smith & Ramdas, "Estimating means of bounded random variables by betting", JRSS B 2024; the one-sided form for
    risks is that of Bates et al., JACM 2021. The wealth at the true mean is a non-negative martingale, so that Ville's inequality
    gives the bound.
    """
    losses = _share("losses", losses)
    delta = float(_open_share("delta", delta))
    n = losses.shape[-1]
    if n == 0:
        return np.ones(losses.shape[:-1])
    i = np.arange(1, n + 1)
    centre = (0.5 + np.cumsum(losses, axis=-1)) / (i + 1)
    spread = (0.25 + np.cumsum((losses - centre) ** 2, axis=-1)) / (i + 1)
    before = np.concatenate([np.full((*losses.shape[:-1], 1), 0.25), spread[..., :-1]], axis=-1)
    stake = np.minimum(1.0, np.sqrt(2 * math.log(1 / delta) / (n * before)))

    def not_rejected(m: np.ndarray) -> np.ndarray:
        with np.errstate(divide="ignore"):  # all is lost, and stays so
            wealth = np.cumsum(np.log1p(-stake * (losses - m[..., None])), axis=-1)
        return wealth.max(axis=-1) <= math.log(1 / delta)

    shape = losses.shape[:-1]
    return _last(not_rejected, np.zeros(shape), np.ones(shape))


def betting_interval(losses: Array, level: float = 0.95) -> np.ndarray:
    """A two-sided interval of E loss for losses in [0, 1], by betting against both sides.

    High is `betting_upper` at (1 − level)/2; low is 1 − that of 1 − loss. What is said there of the order of losses holds here.

    Args:
      losses: [..., n], in [0, 1], in the order of the bets; level: e.g. 0.95.

    Returns:
      [..., 2], low and high; it covers with probability ≥ level. 0 and 1 where n = 0.

    Raises:
      ValueError: a loss is outside [0, 1]; level is outside (0, 1).

    Source: Waudby-Smith & Ramdas, JRSS B 2024: two one-sided games, each at half of 1 − level, with the stakes of `betting_upper`.
    """
    delta = float((1 - _open_share("level", level)) / 2)
    losses = _share("losses", losses)
    return np.stack([1 - betting_upper(1 - losses, delta), betting_upper(losses, delta)], axis=-1)


def log_evidence(total: Array, n: Array, risk: Array) -> np.ndarray:
    """Log evidence against "the risk is at most r", to be looked at after every loss: exceeds ln(1/δ) ever with probability ≤ δ.

    E = ∫_r^1 (q/r)^S ((1 − q)/(1 − r))^(n − S) π(q) dq, S the total loss of the first n, π the density of Beta(½, ½) cut to (r, 1):
    ln E = ln B(½ + S, ½ + n − S) + ln(1 − I_r(½ + S, ½ + n − S)) − ln B(½, ½) − ln(1 − I_r(½, ½)) − S ln r − (n − S) ln(1 − r).

    For each q the integrand multiplies by at most 1 in expectation with a loss in [0, 1] whose mean given the past is ≤ r: the
    factor is convex in the loss, and linear between 0 and 1 it has expectation ≤ 1. So E is a supermartingale (derived).

    Args:
      total: [...], S in [0, n]: the sum of losses in [0, 1]; n: [...], whole numbers ≥ 0; risk: [...], r in (0, 1).

    Returns:
      [...], 0 where n = 0; −inf where it is below the smallest float.

    Raises:
      ValueError: a total is outside [0, n]; r is outside (0, 1).

    Source: Robbins, Annals of Mathematical Statistics 1970 (mixtures); Howard, Ramdas, McAuliffe & Sekhon, Annals of Statistics
    2021, for beta-binomial ones. The cut at r is derived.
    """
    total, n = _totals(total, n)
    r = _open_share("risk", risk)
    a, b = _PRIOR
    with np.errstate(divide="ignore"):
        after = special.betaln(a + total, b + n - total) + np.log(special.betaincc(a + total, b + n - total, r))
    before = special.betaln(a, b) + np.log(special.betaincc(a, b, r))
    return np.where(n == 0, 0.0, after - before - special.xlogy(total, r) - special.xlog1py(n - total, -r))


def confidence_sequence(total: Array, n: Array, delta: Array) -> np.ndarray:
    """Intervals for a mean of losses in [0, 1] that hold for all n at once: with probability ≥ 1 − δ the mean never leaves them.

    All r with B(½ + S, ½ + n − S)/B(½, ½) · r^(−S) (1 − r)^(−(n − S)) < 1/δ, S the total loss of the first n. One may look after
    every loss, stop when one likes, and intersect the intervals seen so far.

    "The mean" is that of each loss given those before it, which must be the same for all of them. Where it changes, the interval is of no
    one mean, and promises nothing.

    Args:
      total: [...], S in [0, n]: the sum of losses in [0, 1]; n: [...], whole numbers ≥ 0; delta: [...], δ in (0, 1).

    Returns:
      [..., 2], low and high; 0 and 1 where n = 0.

    Raises:
      ValueError: a total is outside [0, n]; δ is outside (0, 1).

    Source: Howard, Ramdas, McAuliffe & Sekhon, "Time-uniform, nonparametric, nonasymptotic confidence sequences", Annals of
    Statistics 2021 (beta-binomial mixture; that fractions are allowed, as in `log_evidence`, is derived).

    >>> confidence_sequence(2, 100, 0.05).round(3)  # at one n alone, Clopper & Pearson have 0.002 to 0.070
    array([0.   , 0.105])
    """
    total, n = _totals(total, n)
    total, n, delta = np.broadcast_arrays(total, n, _open_share("delta", delta))
    a, b = _PRIOR
    mixture = special.betaln(a + total, b + n - total) - special.betaln(a, b)

    def inside(r: np.ndarray) -> np.ndarray:
        return mixture - special.xlogy(total, r) - special.xlog1py(n - total, -r) < -np.log(delta)

    centre = np.where(n == 0, 0.5, total / np.maximum(n, 1))
    high = np.where(total == n, 1.0, _last(inside, centre, np.ones(n.shape)))
    low = np.where(total == 0, 0.0, 1 - _last(lambda r: inside(1 - r), 1 - centre, np.ones(n.shape)))
    return np.stack([low, high], axis=-1)


def _binomial_cdf(errors: np.ndarray, n: np.ndarray, r: np.ndarray) -> np.ndarray:
    tail = special.betaincc(errors + 1, np.maximum(n - errors, 0.5), r)
    return np.where(errors == n, 1.0, tail)


def _last(holds: Callable[[np.ndarray], np.ndarray], low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """The largest number in [low, high] for which it holds, of what holds up to a point; from above, within 2⁻⁵⁰ of the range."""
    low, high = np.array(low, np.float64), np.array(high, np.float64)
    high_holds = holds(high)
    end = high.copy()
    for _ in range(50):
        middle = (low + high) / 2
        inside = holds(middle)
        low, high = np.where(inside, middle, low), np.where(inside, high, middle)
    return np.where(high_holds, end, high)


def _size(n: Array) -> np.ndarray:
    n = np.asarray(n, np.float64)
    if not ((n >= 0) & (n == np.floor(n)) & np.isfinite(n)).all():
        raise ValueError("n must be whole and ≥ 0")
    return n


def _counts(errors: Array, n: Array) -> tuple[np.ndarray, np.ndarray]:
    errors, n = np.broadcast_arrays(np.asarray(errors, np.float64), _size(n))
    if not ((errors >= 0) & (errors <= n) & (errors == np.floor(errors))).all():
        raise ValueError("errors must be whole numbers in 0..n: a count of 0/1 errors, not a mean nor a soft loss")
    return errors, n


def _totals(total: Array, n: Array) -> tuple[np.ndarray, np.ndarray]:
    total, n = np.broadcast_arrays(np.asarray(total, np.float64), _size(n))
    if not ((total >= 0) & (total <= n)).all():
        raise ValueError("a total of n losses in [0, 1] lies in [0, n]")
    return total, n


def _share(name: str, value: Array) -> np.ndarray:
    value = np.asarray(value, np.float64)
    if not ((value >= 0) & (value <= 1)).all():
        raise ValueError(f"{name} must lie in [0, 1]")
    return value


def _open_share(name: str, value: Array) -> np.ndarray:
    value = np.asarray(value, np.float64)
    if not ((value > 0) & (value < 1)).all():
        raise ValueError(f"{name} must lie in (0, 1)")
    return value
