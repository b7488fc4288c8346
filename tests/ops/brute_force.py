"""The metrics by their definitions, in exact fractions, over every order of the tied samples; and cases to try them on."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from typing import Any

import jax
import numpy as np
from hypothesis import settings
from hypothesis import strategies as st

reproducible = settings(deadline=None, derandomize=True, max_examples=60)

_LITTLE = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


def quickly(function: Callable, *arguments: Any) -> Any:
    """`jax.jit(function)(*arguments)`, compiled in half the time: for small arrays."""
    return jax.jit(function).lower(*arguments).compile(compiler_options=_LITTLE)(*arguments)


SCORES = (-math.inf, -2.5, -0.0, 0.0, 0.1, 0.30000000000000004, 7.0, math.inf)
SOFT_LOSSES = (0.0, 0.25, 0.5, 1.0, 2.75)


def samples(losses: Sequence[float] = (0, 1), max_size: int = 6, min_size: int = 1) -> st.SearchStrategy:
    """(score [n], loss [n]) with many ties."""
    rows = st.lists(st.tuples(st.sampled_from(SCORES), st.sampled_from(losses)), min_size=min_size, max_size=max_size)
    return rows.map(lambda pairs: (np.array([s for s, _ in pairs], np.float64), np.array([e for _, e in pairs])))


def orders(score: Sequence[float]) -> Iterator[list[int]]:
    """Every order of the samples in which the score does not increase."""
    descending = sorted(range(len(score)), key=lambda i: -score[i])
    blocks = [list(block) for _, block in itertools.groupby(descending, key=lambda i: score[i])]
    for arrangement in itertools.product(*map(itertools.permutations, blocks)):
        yield [i for block in arrangement for i in block]


def expected(
    definition: Callable[[list[Fraction]], list[Fraction]], score: np.ndarray, loss: np.ndarray
) -> list[Fraction]:
    """The mean of `definition(losses in order)` over all orders of the tied samples."""
    exact = [Fraction(float(value)) for value in loss]
    values = [definition([exact[i] for i in order]) for order in orders(score.tolist())]
    return [sum(column) / len(values) for column in zip(*values, strict=True)]


def selective_risks(loss: list[Fraction]) -> list[Fraction]:
    """r_1 … r_n: mean loss of the k first."""
    return [total / k for k, total in enumerate(itertools.accumulate(loss), 1)]


def generalized_risks(loss: list[Fraction]) -> list[Fraction]:
    """g_1 … g_n: total loss of the k first, over n."""
    return [total / len(loss) for total in itertools.accumulate(loss)]


def aurc(score: np.ndarray, loss: np.ndarray) -> Fraction:
    """Mean of the selective risks."""
    return sum(expected(selective_risks, score, loss)) / len(loss)


def augrc(score: np.ndarray, loss: np.ndarray) -> Fraction:
    """Trapezoids under the generalised risk from (0, 0)."""
    points = [Fraction(0), *expected(generalized_risks, score, loss)]
    return sum((low + high) / 2 for low, high in itertools.pairwise(points)) / len(loss)


def optimal_aurc(loss: np.ndarray) -> Fraction:
    """The smallest AURC over all permutations."""
    exact = [Fraction(float(value)) for value in loss]
    return min(sum(selective_risks(list(order))) for order in itertools.permutations(exact)) / len(loss)


def e_aurc(score: np.ndarray, loss: np.ndarray) -> Fraction:
    """AURC above the smallest."""
    return aurc(score, loss) - optimal_aurc(loss)


def naurc(score: np.ndarray, loss: np.ndarray) -> Fraction | float:
    """E-AURC over the room between random and best; NaN where there is none."""
    room = sum(Fraction(float(value)) for value in loss) / len(loss) - optimal_aurc(loss)
    return e_aurc(score, loss) / room if room else math.nan


def risk_at_coverage(score: np.ndarray, loss: np.ndarray, coverage: Fraction) -> Fraction:
    """Expected risk of the ⌈c n⌉ most confident."""
    return expected(selective_risks, score, loss)[math.ceil(coverage * len(loss)) - 1]


def coverage_at_risk(score: np.ndarray, loss: np.ndarray, risk: Fraction) -> Fraction:
    """The largest share that a threshold accepts with mean loss ≤ risk."""
    best = 0
    for threshold in set(score.tolist()):
        accepted = [Fraction(float(value)) for value in loss[score >= threshold]]
        if sum(accepted) <= risk * len(accepted):
            best = max(best, len(accepted))
    return Fraction(best, len(loss))


def failure_auroc(score: np.ndarray, error: np.ndarray) -> Fraction | float:
    """Over pairs of a right and a wrong sample: the right one is more confident, ties count half."""
    pairs = [(right, wrong) for right in score[error == 0] for wrong in score[error == 1]]
    wins = sum(Fraction(int(right > wrong)) + Fraction(int(right == wrong), 2) for right, wrong in pairs)
    return wins / len(pairs) if pairs else math.nan


def trapezoid_from_zero(loss: list[Fraction]) -> Fraction:
    """Trapezoids through (0, 0) and (k/n, r_k)."""
    points = [Fraction(0), *selective_risks(loss)]
    return sum((low + high) / 2 for low, high in itertools.pairwise(points)) / len(loss)


def torch_uncertainty(loss: list[Fraction]) -> Fraction | float:
    """Trapezoids through (k/n, r_k) from k = 1, over the width 1 − 1/n."""
    n = len(loss)
    points = itertools.pairwise(selective_risks(loss))
    return sum((low + high) / 2 for low, high in points) / n / (1 - Fraction(1, n)) if n > 1 else math.nan


def ln(loss: list[Fraction]) -> float:
    """Mean of ℓ·(−ln(1 − a/(n + 1))), a the rank from the least confident."""
    n = len(loss)
    return math.fsum(float(value) * -math.log1p(-(n - i) / (n + 1)) for i, value in enumerate(loss)) / n


def over_orders(
    definition: Callable[[list[Fraction]], Fraction | float], score: np.ndarray, loss: np.ndarray
) -> Fraction | float:
    """The mean of an estimator over all orders of the tied samples."""
    return expected(lambda order: [definition(order)], score, loss)[0]


def sele(score: np.ndarray, loss: np.ndarray) -> Fraction:
    """(1/n²) Σ_i ℓ_i #{j: s_j ≤ s_i}; another sample with the same score counts ½, the sample itself 1."""
    n, total = len(score), Fraction(0)
    for i, j in itertools.product(range(n), repeat=2):
        below = 1 if i == j else Fraction(int(score[j] < score[i])) + Fraction(int(score[j] == score[i]), 2)
        total += Fraction(float(loss[i])) * below
    return total / n**2


def realisable(score: np.ndarray, loss: np.ndarray) -> list[tuple[float, int, Fraction]]:
    """(threshold, number accepted, their total loss) of each threshold, in increasing order of coverage."""
    points = []
    for threshold in sorted(set(score.tolist()), reverse=True):
        accepted = [Fraction(float(value)) for value in loss[score >= threshold]]
        points.append((threshold, len(accepted), sum(accepted)))
    return points


def fd_shifts(score: np.ndarray, loss: np.ndarray) -> Fraction:
    """Trapezoids through the realisable points alone; to coverage 0 the risk of the first."""
    points = [(k, total / k) for _, k, total in realisable(score, loss)]
    points = [(0, points[0][1]), *points]
    return sum((b - a) * (low + high) / 2 for (a, low), (b, high) in itertools.pairwise(points)) / len(loss)


ESTIMATORS: dict[str, Callable[[np.ndarray, np.ndarray], Fraction | float]] = {
    "mean": aurc,
    "trapezoid_from_zero": lambda score, loss: over_orders(trapezoid_from_zero, score, loss),
    "torch_uncertainty": lambda score, loss: over_orders(torch_uncertainty, score, loss),
    "fd_shifts": fd_shifts,
    "ln": lambda score, loss: over_orders(ln, score, loss),
    "sele": sele,
}


def partial_aurc(score: np.ndarray, loss: np.ndarray, low: Fraction, high: Fraction) -> Fraction | float:
    """Mean of the r_k with low < k/n ≤ high, low and high rounded down to multiples of 1/n."""
    n = len(loss)
    risks = expected(selective_risks, score, loss)[math.floor(low * n) : math.floor(high * n)]
    return sum(risks) / len(risks) if risks else math.nan


def partial_augrc(score: np.ndarray, loss: np.ndarray, low: Fraction, high: Fraction) -> Fraction:
    """The mean of the generalised risk, linear between coverages 0, 1/n, …, 1, over low … high."""
    n = len(loss)
    joint = [Fraction(0), *expected(generalized_risks, score, loss)]

    def at(coverage: Fraction) -> Fraction:
        k = min(math.floor(coverage * n), n - 1)
        return joint[k] + (coverage * n - k) * (joint[k + 1] - joint[k])

    ends = sorted({low, high, *(Fraction(k, n) for k in range(n + 1) if low < Fraction(k, n) < high)})
    return sum((b - a) * (at(a) + at(b)) / 2 for a, b in itertools.pairwise(ends)) / (high - low)


def achievable_aurc(score: np.ndarray, loss: np.ndarray) -> float:
    """∫ g/c dc under the lowest chord between any two realisable points at every coverage, (0, 0) among them."""
    points = [(0, Fraction(0)), *((k, total) for _, k, total in realisable(score, loss))]

    def lowest(k: int) -> Fraction:
        chords = [y for x, y in points if x == k]
        for (a, low), (b, high) in itertools.combinations(points, 2):
            if a < k < b:
                chords.append(low + (high - low) * Fraction(k - a, b - a))
        return min(chords)

    area = 0.0
    for (a, _), (b, _) in itertools.pairwise(points):  # the hull bends at points alone
        slope = (lowest(b) - lowest(a)) / (b - a)
        rest = float(lowest(a) - slope * a)
        area += float(slope) * (b - a) + (rest * math.log(b / a) if a else 0.0)
    return area / len(loss)


def coverage_at_risk_nearest(score: np.ndarray, loss: np.ndarray, risk: Fraction, min_count: int) -> Fraction | float:
    """Of the thresholds that accept `min_count`, the coverage whose risk is nearest; of equals the smallest."""
    points = [(abs(total / k - risk), k) for _, k, total in realisable(score, loss) if k >= min_count]
    return Fraction(min(points)[1], len(loss)) if points else math.nan


def realisable_coverage(score: np.ndarray, coverage: Fraction) -> Fraction:
    """The coverage of a threshold nearest to the one asked for; of equals the largest."""
    n = len(score)
    return -min((abs(Fraction(k, n) - coverage), -Fraction(k, n)) for _, k, _ in realisable(score, np.zeros(n)))[1]


def threshold_at_coverage(score: np.ndarray, coverage: Fraction) -> float:
    """The largest threshold that accepts ⌈c n⌉."""
    return max(t for t, k, _ in realisable(score, np.zeros(len(score))) if k >= math.ceil(coverage * len(score)))


def threshold_at_risk(score: np.ndarray, loss: np.ndarray, risk: Fraction) -> float:
    """The smallest threshold with risk at or below the target; NaN if there is none."""
    return min((t for t, k, total in realisable(score, loss) if total <= risk * k), default=math.nan)
