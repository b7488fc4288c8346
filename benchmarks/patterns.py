"""Promises of decisions and sets, tested over discrete populations: a pattern of logits, and how probable each label is given it.

Rates of a decision on such a population are finite sums, so that each draw of a calibration set has its exact rate. A calibration set is
multinomial counts of (pattern, label), and what is fitted to it is computed from the counts, all draws at once; a test holds this equal to
what the library fits to the examples written out. Promises within strata are tested in each, and hold if they hold in all.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from sc_jax import ops
from sc_jax.methods import conformal, guarantees, selector
from sc_jax.ops.targets import as_fraction, floor_of_share
from sc_jax.predictions import Predictions

CHUNK = 1000
"""Calibration sets that are drawn at a time."""

TUNING_SHARE = 0.2
ORIGIN = {"data_fingerprint": "patterns"}
"""Of all examples that are written out: their ids tell them apart, since many have the same logits and label."""


def pac(bad: int, draws: int, delta: float) -> dict[str, Any]:
    """Whether the population's risk was above the target more often than δ: the exact one-sided binomial test."""
    p = float(stats.binomtest(bad, draws, delta, alternative="greater").pvalue)
    return {"violations": bad, "draws": draws, "rate": bad / draws, "level": delta, "p": p}


def marginal(rates: np.ndarray, alpha: float) -> dict[str, Any]:
    """Whether the mean rate is above α: the one-sided z-test in the stratum where it is smallest, by Bonferroni over strata.

    Args:
      rates: [draws, strata], of the population, exact given the draw; alpha: α.
    """
    draws, count = rates.shape
    mean, error = rates.mean(axis=0), rates.std(axis=0, ddof=1) / math.sqrt(draws)
    p = np.where(error > 0, stats.norm.sf((mean - alpha) / np.where(error > 0, error, 1.0)), mean <= alpha + 1e-12)
    return {
        "draws": draws,
        "rate": float(mean.max()),
        "level": alpha,
        "standard_error": float(error[mean.argmax()]),
        "p": min(1.0, count * float(p.min())),
    }


@dataclasses.dataclass(frozen=True)
class Patterns:
    """A population of P patterns and K labels.

    Attributes:
      logits: [P, K]; mass: [P, K], of (pattern, label), of sum 1; group: int [P], 0, 1, ….
    """

    logits: np.ndarray
    mass: np.ndarray
    group: np.ndarray

    @property
    def prediction(self) -> np.ndarray:
        """[P]."""
        return ops.predicted_class(self.logits)

    @property
    def wrong(self) -> np.ndarray:
        """bool [P, K]."""
        return self.prediction[:, None] != np.arange(self.mass.shape[1])

    def strata(self, by: str) -> np.ndarray:
        """Of each (pattern, label), int [P, K]."""
        of = {
            "all": np.zeros((len(self.group), 1), int),
            "group": self.group[:, None],
            "predicted_class": self.prediction[:, None],
            "label": np.arange(self.mass.shape[1])[None, :],
        }
        return np.broadcast_to(of[by], self.mass.shape)

    def nonconformity(self, score: str) -> np.ndarray:
        """[P, K], with u = 0."""
        probabilities = np.exp(ops.log_softmax(self.logits))
        return selector.nonconformity_of(score, conformal.DEFAULTS.get(score, {}), probabilities)

    def draw(self, rng: np.random.Generator, n: int, draws: int) -> np.ndarray:
        """Counts [draws, P, K] of calibration sets of n."""
        return rng.multinomial(n, self.mass.ravel(), draws).reshape(draws, *self.mass.shape)

    def written_out(self, counts: np.ndarray, first: int = 0) -> Predictions:
        """The examples of counts [P, K], with ids from `first` on."""
        pattern, label = (np.repeat(index, counts.ravel()) for index in np.indices(counts.shape).reshape(2, -1))
        ids = first + np.arange(len(label))
        made = {"group": self.group[pattern], "provenance": ORIGIN, "source": f"from {first}"}
        return Predictions(label, self.logits[pattern], ids, **made)


def made(seed: int, patterns: int, classes: int, signal: float, digits: int | None = None) -> Patterns:
    """A made-up population: over-confident logits, three groups and classes of unlike difficulty; `digits` rounds logits, which makes ties."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, classes, patterns)
    logits = signal * np.eye(classes)[truth] + rng.normal(size=(patterns, classes))
    group = rng.choice(3, patterns, p=(0.5, 0.3, 0.2))
    tempered = logits * (0.4 + 0.3 * group)[:, None] + np.linspace(0, 1, classes)
    given = np.exp(ops.log_softmax(tempered))
    mass = rng.dirichlet(np.full(patterns, 4.0))[:, None] * given
    return Patterns(logits if digits is None else np.round(logits, digits), mass, group)


SMOOTH, TIED, MANY = made(0, 90, 4, 4.0), made(1, 90, 3, 3.0, 0), made(2, 120, 12, 4.0)
"""MANY has twelve classes, for clusters of them."""

SURE = made(3, 90, 3, 6.0)


# What is fitted to counts, all draws at once.


def quantiles(scores: np.ndarray, counts: np.ndarray, alpha: float) -> np.ndarray:
    """`ops.conformal_quantile` of scores [c] that occur `counts` [draws, c] times: [draws]."""
    order = np.argsort(scores, kind="stable")
    reached = np.cumsum(counts[:, order], axis=1)
    n = reached[:, -1]
    rank = n + 1 - floor_of_share(as_fraction(alpha), n + 1)
    return np.append(scores[order], np.inf)[(reached < rank[:, None]).sum(axis=1)]


def members(population: Patterns, score: str, counts: np.ndarray, alpha: float, index: np.ndarray) -> np.ndarray:
    """Prediction sets, bool [draws, P, K]; `index` int [P, K] says which quantile (pattern, class) is compared with."""
    own = population.nonconformity(score)
    limit = np.empty((len(counts), index.max() + 1))
    for s in range(limit.shape[1]):
        limit[:, s] = quantiles(own[index == s], counts[:, index == s], alpha)
    return own <= limit[:, index]


def singletons(population: Patterns, sets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Whether each pattern is accepted, bool [draws, P], and the one class in its set, int [draws, P]."""
    return sets.sum(axis=-1) == 1, sets.argmax(axis=-1)


class Cells(NamedTuple):
    """Patterns by MSP: the cell of each, [P], the most confident 0, and their number."""

    of: np.ndarray
    count: int


def cells(population: Patterns) -> Cells:
    """Patterns of equal MSP share a cell."""
    value, of = np.unique(ops.msp(population.logits), return_inverse=True)
    return Cells(len(value) - 1 - of, len(value))


def by_cell(cell: Cells, counts: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Counts [draws, P, K] of the (pattern, label) in `where` [P, K], by cell: [draws, g]."""
    into = (where[:, :, None] * np.eye(cell.count)[cell.of][:, None]).reshape(-1, cell.count)
    return np.rint(counts.reshape(len(counts), -1).astype(np.float64) @ into).astype(np.int64)


def learn_then_test(
    procedure: str, tuning: np.ndarray, n: np.ndarray, errors: Sequence[np.ndarray], risk: float, delta: float
) -> np.ndarray:
    """The last accepted cell [draws], −1 for none, where thresholds are those of a sampled tuning split.

    Args:
      procedure: of `guarantees.METHODS` without "ltt_"; tuning: [draws, g], counts; n, errors: lists of [draws, g], counts in each class in
        which the promise is to hold; risk, delta: as for `guarantees.fit`.
    """
    fixed = procedure == "fixed_sequence"
    coverages = np.array([c / 100 for c in range(50, 101)] if fixed else [c / 20 for c in range(1, 21)])
    reached = np.cumsum(tuning, axis=1)
    total = reached[:, -1]
    ladder = np.stack(
        [
            (reached < (total - floor_of_share(1 - as_fraction(float(c)), total))[:, None]).sum(axis=1)
            for c in coverages
        ],
        axis=1,
    )  # rises along the ladder; equal cells are one threshold
    parts = [np.take_along_axis(np.cumsum(part, axis=1), ladder, axis=1) for part in (*n, *errors)]
    p = np.max(
        [guarantees.P_VALUES["binomial"](k, m, risk) for m, k in zip(parts[: len(n)], parts[len(n) :], strict=True)],
        axis=0,
    )
    fresh = np.concatenate([np.ones((len(ladder), 1), bool), np.diff(ladder, axis=1) > 0], axis=1)
    last = np.full(len(ladder), -1)
    for size in np.unique(fresh.sum(axis=1)):
        mine = fresh.sum(axis=1) == size
        once = p[mine][fresh[mine]].reshape(-1, size), ladder[mine][fresh[mine]].reshape(-1, size)
        at = guarantees.learn_then_test(once[0], delta, procedure)
        last[mine] = np.where(at >= 0, np.take_along_axis(once[1], np.maximum(at, 0)[:, None], axis=1)[:, 0], -1)
    return last


def thresholds(
    population: Patterns,
    method: str,
    counts: np.ndarray,
    tuning: np.ndarray,
    risk: float,
    delta: float | None,
    within: str,
) -> np.ndarray:
    """The last accepted cell of every draw and stratum, [draws, strata], as `guarantees.fit` would choose it.

    Raises:
      ValueError: a stratum of a PAC promise is not in a draw, and δ would be divided among the others.
    """
    cell, wrong = cells(population), population.wrong
    index = population.strata("all" if within == "label" else within)
    strata = index.max() + 1
    labels = population.strata("label")
    lasts = []
    for s in range(strata):
        mine = index == s
        classes = [mine & (labels == k) for k in range(labels.shape[1])] if within == "label" else [mine]
        n = [by_cell(cell, counts, c) for c in classes]
        errors = [by_cell(cell, counts, c & wrong) for c in classes]
        if method == "crc":
            lasts.append(
                np.min([guarantees.conformal_risk_control(*pair, risk) for pair in zip(n, errors, strict=True)], axis=0)
            )
            continue
        if (sum(n).sum(axis=1) == 0).any():
            raise ValueError("a stratum is not there in a draw; draw more examples")
        if method == "sgr":
            lasts.append(guarantees.sgr(n[0], errors[0], risk, delta / strata).last)
        else:
            ladder = by_cell(cell, tuning, mine)
            lasts.append(learn_then_test(method.removeprefix("ltt_"), ladder, n, errors, risk, delta / strata))
    return np.stack(lasts, axis=1)


# Rates of the population.


def shares(population: Patterns, what: np.ndarray, within: str) -> np.ndarray:
    """P(what, stratum) [draws, strata] of bool [draws, P, K] (or [1, P, K])."""
    index = population.strata(within)
    into = (population.mass[:, :, None] * np.eye(index.max() + 1)[index]).reshape(what[0].size, -1)
    return what.reshape(len(what), -1).astype(np.float64) @ into


def rates(population: Patterns, accept: np.ndarray, wrong: np.ndarray, within: str) -> tuple[np.ndarray, np.ndarray]:
    """(P(accepted and wrong), P(accepted)) given each stratum, [draws, strata] each.

    Args:
      accept: bool [draws, P]; wrong: bool [draws, P, K] or [P, K].
    """
    accept = accept[:, :, None]
    lost, kept, whole = (
        shares(population, np.broadcast_to(what, (len(what), *population.mass.shape)), within)
        for what in (accept & wrong, accept, np.ones((1, 1, 1), bool))
    )
    return lost / whole, kept / whole


class Case(NamedTuple):
    """A method in a setting: its population, where it promises, the size of a calibration set, r or α, δ."""

    method: str
    within: str
    name: str
    population: Patterns
    n: int
    risk: float
    delta: float | None = None


SINGLETONS = tuple(f"singleton_{score}" for score in selector.NONCONFORMITY)
SETTINGS = (
    ("smooth, n = 200", SMOOTH, 200, 0.1),
    ("(n + 1)(1 − α) whole, n = 19", SMOOTH, 19, 0.1),
    ("ties, n = 99", TIED, 99, 0.05),
    ("few errors, n = 300", SURE, 300, 0.15),
)
STRATIFIED = (("smooth, n = 400", SMOOTH, 400, 0.1), ("ties, n = 99", TIED, 99, 0.1))
CERTIFIED = (
    ("smooth, n = 1000", SMOOTH, 1000, 0.2, 0.1),
    ("ties, n = 400", TIED, 400, 0.3, 0.05),
    ("few errors, n = 100", SURE, 100, 0.15, 0.1),
)

MARGINAL = (
    *(Case(method, "all", *setting) for method in SINGLETONS for setting in SETTINGS),
    *(
        Case(method, within, *STRATIFIED[0])
        for method in ("singleton_lac", "singleton_aps")
        for within in selector.STRATA[1:]
    ),
    *(Case("crc", within, *setting) for within in selector.STRATA for setting in STRATIFIED),
    *(
        Case(f"sets_{score}", within, *setting)
        for score, within, setting in (
            ("lac", "all", SETTINGS[0]),
            ("lac", "group", STRATIFIED[0]),
            ("lac", "label", STRATIFIED[0]),
            ("lac", "label", STRATIFIED[1]),
            ("aps", "label", STRATIFIED[0]),
            ("lac", "predicted_class", STRATIFIED[0]),
            ("raps", "predicted_class", STRATIFIED[1]),
        )
    ),
)
PROMISED = (
    *(
        Case(method, "all", *setting)
        for method in guarantees.METHODS
        if method.startswith("ltt")
        for setting in CERTIFIED
    ),
    *(Case(method, "predicted_class", *CERTIFIED[0]) for method in ("sgr", "ltt_fixed_sequence", "ltt_holm")),
    Case("ltt_fixed_sequence", "group", *CERTIFIED[0]),
    Case("ltt_fixed_sequence", "label", "smooth, n = 1000, r = 0.4", SMOOTH, 1000, 0.4, 0.1),
)


def _chunks(draws: int) -> list[int]:
    return [min(CHUNK, draws - start) for start in range(0, draws, CHUNK)]


def marginal_row(case: Case, draws: int, rng: np.random.Generator) -> dict[str, Any]:
    """The mean rate of a singleton, of conformal risk control or of sets (their misses), in every stratum of the promise."""
    population, found, accepts = case.population, [], []
    kind, _, score = case.method.partition("_")
    for some in _chunks(draws):
        counts = population.draw(rng, case.n, some)
        if kind == "crc":
            last = thresholds(population, "crc", counts, counts, case.risk, None, case.within)
            accept, wrong = accepted(population, last, case.within), population.wrong
        else:
            sets = members(population, score, counts, case.risk, population.strata(case.within))
            if kind == "sets":
                whole = shares(population, np.ones((1, *population.mass.shape), bool), case.within)
                found.append(shares(population, ~sets, case.within) / whole)
                continue
            accept, answer = singletons(population, sets)
            wrong = answer[:, :, None] != np.arange(population.mass.shape[1])
        found.append(rates(population, accept, wrong, case.within)[0])
        accepts.append(accept)
    row = marginal(np.concatenate(found), case.risk)
    return row if kind == "sets" else {**row, **tightness(case, np.concatenate(accepts))}


def tightness(case: Case, accept: np.ndarray) -> dict[str, float]:
    """Coverage of accept [draws, P]; where it is by thresholds, also that of the best ones had the population been known."""
    mass = case.population.mass.sum(axis=1)
    coverage = float((accept @ mass).mean())
    found = {"coverage": coverage, "abstains": float((~accept.any(axis=1)).mean())}
    if case.method in SINGLETONS:
        return found
    count = case.population.strata("all" if case.within == "label" else case.within).max() + 1
    each = np.broadcast_to(np.arange(cells(case.population).count)[:, None], (cells(case.population).count, count))
    lost, kept = rates(
        case.population, accepted(case.population, each, case.within), case.population.wrong, case.within
    )
    fine = lost <= (case.risk if case.method == "crc" else case.risk * kept) + 1e-12
    if case.within == "label":  # one threshold for all of them
        fine = fine.all(axis=1, keepdims=True)
    best = np.where(fine, each, -1).max(axis=0)[None]
    oracle = float((accepted(case.population, best, case.within) @ mass)[0])
    return {**found, "oracle_coverage": oracle, "coverage_lost": oracle - coverage}


def accepted(population: Patterns, last: np.ndarray, within: str) -> np.ndarray:
    """bool [draws, P] of last accepted cells [draws, strata]."""
    index = population.strata("all" if within == "label" else within)[:, 0]
    return cells(population).of <= last[:, index]


def pac_row(case: Case, draws: int, rng: np.random.Generator) -> dict[str, Any]:
    """How often the population's selective risk is above r in any stratum; a share of the calibration set is drawn to tune on."""
    population, bad, accepts = case.population, 0, []
    tuned = int(floor_of_share(as_fraction(TUNING_SHARE), np.asarray(case.n))) if case.method.startswith("ltt") else 0
    for some in _chunks(draws):
        tuning, counts = (population.draw(rng, size, some) for size in (tuned, case.n - tuned))
        last = thresholds(population, case.method, counts, tuning, case.risk, case.delta, case.within)
        accept = accepted(population, last, case.within)
        bad += int(above(population, accept, case.risk, case.within).sum())
        accepts.append(accept)
    return {**pac(bad, draws, case.delta), **tightness(case, np.concatenate(accepts))}


def above(population: Patterns, accept: np.ndarray, risk: float, within: str) -> np.ndarray:
    """bool [draws], whether P(wrong | accepted) is above r in any stratum."""
    lost, kept = rates(population, accept, population.wrong, within)
    return (lost > kept * (risk + 1e-12)).any(axis=1)


CLUSTERED = ("sets_lac by clusters of classes", MANY, 240, 600, 0.1)
TUNINGS = 50


def clustered_row(draws: int, rng: np.random.Generator) -> dict[str, Any]:
    """Misses of conformal sets in the cluster of each class; every one of `TUNINGS` sampled tuning splits has draws of its own."""
    _, population, tuned, n, alpha = CLUSTERED
    found = []
    for number, some in enumerate(np.diff(np.linspace(0, draws, TUNINGS + 1).astype(int))):
        tuning = population.written_out(population.draw(rng, tuned, 1)[0])
        cluster = np.unique(conformal.cluster_classes(tuning, "lac", alpha, 3, seed=number).index, return_inverse=True)[
            1
        ]
        index = np.broadcast_to(cluster[None, :], population.mass.shape)
        sets = members(population, "lac", population.draw(rng, n, int(some)), alpha, index)
        of_class = shares(population, ~sets, "label")
        together = np.eye(cluster.max() + 1)[cluster] @ np.eye(cluster.max() + 1)[cluster].T  # [K, K], of one cluster
        found.append((of_class @ together) / (population.mass.sum(axis=0) @ together))
    return marginal(np.concatenate(found), alpha)


SHIFTED = ("sets_lac under a known shift", SMOOTH, 200, 0.1)


def shift(population: Patterns) -> np.ndarray:
    """w(x) of every pattern [P]: the first group, whose logits are the most over-confident, gets sixteen times as frequent beside the last."""
    return np.array([4.0, 1.0, 0.25])[population.group]


def shifted_limits(population: Patterns, counts: np.ndarray, alpha: float, weight: np.ndarray) -> np.ndarray:
    """The quantile of every pattern [P] under one draw [P, K]: an example that occurs c times is one of c times the weight."""
    own = population.nonconformity("lac")
    return ops.weighted_conformal_quantile(own.ravel(), (counts * weight[:, None]).ravel(), weight, alpha)


def shifted_row(draws: int, rng: np.random.Generator, weighted: bool = True) -> dict[str, Any]:
    """Misses of the shifted population; not `weighted` is broken: sets that do not know of the shift."""
    _, population, n, alpha = SHIFTED
    own, weight = population.nonconformity("lac"), shift(population)
    after = population.mass * weight[:, None]
    after = after / after.sum()
    used = weight if weighted else np.ones_like(weight)
    found = [
        (after * (own > shifted_limits(population, counts, alpha, used)[:, None])).sum()
        for counts in population.draw(rng, n, draws)
    ]
    return marginal(np.array(found)[:, None], alpha)


CHOSEN = ("the best of 40 scores, chosen on the calibration split", 400, 0.1, 0.05)


def chosen_on_calibration(draws: int, rng: np.random.Generator) -> dict[str, Any]:
    """SGR of that one of 40 random scores whose certified coverage is largest: broken, since no score may be fitted to these examples.

    Errors are as frequent everywhere, a little above the target, so that every threshold of every score violates.
    """
    _, n, risk, delta = CHOSEN
    g, scores = 60, np.random.default_rng(0).permuted(np.tile(np.arange(60), (40, 1)), axis=1)
    best = np.full(draws, -1)
    count = rng.multinomial(n, np.full(g, 1 / g), draws)
    errors = rng.binomial(count, risk + 0.005)
    for order in scores:
        best = np.maximum(best, guarantees.sgr(count[:, order], errors[:, order], risk, delta).last)
    return {**pac(int((best >= 0).sum()), draws, delta), "coverage": float((best + 1).mean() / g)}


WITHIN = {
    "all": "",
    "group": ", within groups",
    "predicted_class": ", within predicted classes",
    "label": ", within labels",
}


def rows(draws: int, seed: int) -> list[dict[str, Any]]:
    """Every case, and the variants that are broken."""
    found: list[dict[str, Any]] = []

    def add(method: str, setting: str, of: Callable[..., Mapping[str, Any]], *given: Any, broken: bool = False) -> None:
        rng = np.random.default_rng((seed, len(found)))
        found.append({"method": method, "setting": setting, "broken": broken, **of(*given, draws, rng)})

    for case in MARGINAL:
        add(case.method + WITHIN[case.within], case.name, marginal_row, case)
    for case in PROMISED:
        sampled = ", sampled thresholds" if case.method.startswith("ltt") else ""
        add(case.method + sampled + WITHIN[case.within], case.name, pac_row, case)
    add(CLUSTERED[0], "12 classes, n = 600", clustered_row)
    add(SHIFTED[0], "smooth, n = 200", shifted_row)
    add(
        "sets_lac under a shift that is not known",
        "smooth, n = 200",
        lambda d, rng: shifted_row(d, rng, False),
        broken=True,
    )
    add(f"sgr, {CHOSEN[0]}", "risk just above the target, n = 400", chosen_on_calibration, broken=True)
    return found
