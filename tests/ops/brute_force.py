"""The metrics by their definitions, in exact fractions, over every order of the tied samples; and cases to try them on."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st

reproducible = settings(deadline=None, derandomize=True, max_examples=60)

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
