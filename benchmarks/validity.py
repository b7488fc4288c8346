"""Do methods keep their promise? Calibration sets are drawn from populations whose risk is known.

    python -m benchmarks.validity        # with SC_JAX_EXTRA_DATA also from the outputs of published networks

A population is cells of a score with mass and risk; a calibration set is multinomial counts of examples and binomial counts of errors. A
violation is that the *population* risk of the chosen threshold exceeds the target. A method fails where the one-sided binomial test of
"violated more often than δ" rejects at 0.01, Holm-corrected over all methods and settings. Marginal promises are compared exactly
where the mean over all calibration sets is a sum; decisions and sets that depend on more than the order of a score are in `benchmarks.patterns`.
Deliberately broken variants go through the same test and have to fail.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import special, stats

from benchmarks import machine, patterns
from sc_jax import ops
from sc_jax.methods import guarantees
from sc_jax.ops.targets import as_fraction, floor_of_share

DRAWS, SEED, LEVEL = 10_000, 20_240_517, 0.01


class Population(NamedTuple):
    """Cells of a score, the most confident first: [g] shares of the examples, and risk in each."""

    mass: np.ndarray
    risk: np.ndarray

    @property
    def coverage(self) -> np.ndarray:
        """[g], of accepting through each cell."""
        return np.cumsum(self.mass)

    @property
    def wrong(self) -> np.ndarray:
        """[g], P(accepted and wrong)."""
        return np.cumsum(self.mass * self.risk)

    @property
    def selective_risk(self) -> np.ndarray:
        """[g]."""
        return self.wrong / self.coverage

    def draw(self, rng: np.random.Generator, n: int, draws: int) -> tuple[np.ndarray, np.ndarray]:
        """Examples and errors in each cell, [draws, g], of calibration sets of n."""
        g = len(self.mass)
        if g <= n:
            count = rng.multinomial(n, self.mass / self.mass.sum(), draws)
        else:  # cells of examples rather than counts of cells: the same, and faster
            cell = np.searchsorted(np.cumsum(self.mass)[:-1], rng.random((draws, n)) * self.mass.sum(), side="right")
            count = np.bincount((cell + g * np.arange(draws)[:, None]).ravel(), minlength=g * draws).reshape(draws, g)
        return count, rng.binomial(count, self.risk)


def curve(risk: Callable[[np.ndarray], np.ndarray], cells: int = 200) -> Population:
    """Cells of equal mass; risk as a function of where in the order a cell is, from 0 to 1."""
    return Population(np.full(cells, 1 / cells), risk((np.arange(cells) + 0.5) / cells))


TIED = Population(np.array([0.3, 0.25, 0.2, 0.15, 0.1]), np.array([0.01, 0.04, 0.08, 0.2, 0.4]))
SMOOTH = curve(lambda x: 0.4 * x**2)


class Setting(NamedTuple):
    """A population, the size of a calibration set, r (or α), δ."""

    name: str
    population: Population
    n: int
    risk: float
    delta: float


SETTINGS = (
    Setting("smooth", SMOOTH, 1000, 0.05, 0.05),
    Setting("small n", SMOOTH, 50, 0.1, 0.1),
    Setting("ties", TIED, 300, 0.05, 0.1),
    Setting("risk just above the target", curve(lambda x: np.full(len(x), 0.0505)), 2000, 0.05, 0.05),
    Setting("a step at the target", curve(lambda x: np.where(x < 0.7, 0.049, 0.07)), 2000, 0.05, 0.05),
    Setting("rare errors", curve(lambda x: np.where(x < 0.98, 0.001, 0.3)), 3000, 0.005, 0.05),
    Setting("nothing feasible", curve(lambda x: np.full(len(x), 0.1)), 500, 0.02, 0.05),
    Setting("all feasible", curve(lambda x: 0.02 * x), 1000, 0.05, 0.05),
)

Choose = Callable[[np.ndarray, np.ndarray, Setting], np.ndarray]
"""(examples, errors) [draws, g] and the setting → the last accepted cell [draws]."""


def ladder(setting: Setting, start: float, step: float) -> np.ndarray:
    """Cells whose thresholds are tested: at population coverages from `start` on, fixed before any draw."""
    at = np.append(np.arange(start, 1, step), 1.0)
    found = np.searchsorted(setting.population.coverage, at - 1e-9)
    return np.unique(np.minimum(found, len(setting.population.mass) - 1))


def learn_then_test(
    procedure: str, p_value: str = "binomial", starts: Sequence[float] = (0.5,), test: Callable[..., Any] | None = None
) -> Choose:
    """Learn-then-test on the ladder; `test` in place of the procedure, for variants that are broken."""

    def choose(n: np.ndarray, errors: np.ndarray, s: Setting) -> np.ndarray:
        walk = procedure == "fixed_sequence"
        cells = ladder(s, min(starts) if walk else 0.05, 0.01 if walk else 0.05)
        accepted, wrong = np.cumsum(n, axis=-1)[:, cells], np.cumsum(errors, axis=-1)[:, cells]
        p = guarantees.P_VALUES[p_value](wrong, accepted, s.risk)
        if test is not None:
            last = test(p, wrong, accepted, s)
        else:
            at = sorted({int(np.searchsorted(s.population.coverage[cells], c - 1e-9)) for c in starts})
            last = guarantees.learn_then_test(p, s.delta, procedure, at if walk else (0,))
        return np.where(last >= 0, cells[last], -1)

    return choose


def _last(met: np.ndarray) -> np.ndarray:
    return np.where(met, np.arange(met.shape[-1]), -1).max(axis=-1)


def last_probed(n: np.ndarray, errors: np.ndarray, s: Setting) -> np.ndarray:
    """SGR that returns the threshold it probed last, feasible or not."""
    accepted, wrong = np.cumsum(n, axis=-1), np.cumsum(errors, axis=-1)
    low, high, steps = np.zeros(len(n), int), np.full(len(n), s.n - 1), math.ceil(math.log2(s.n))
    for _ in range(steps):
        middle = (low + high + 1) // 2
        cell = (accepted < (s.n - middle)[:, None]).sum(axis=-1)
        k, size = (np.take_along_axis(c, cell[:, None], axis=-1)[:, 0] for c in (wrong, accepted))
        feasible = ops.clopper_pearson_upper(k, size, s.delta / steps) <= s.risk
        low, high = np.where(feasible, low, middle), np.where(feasible, middle, high)
    return cell


PAC: dict[str, Choose] = {
    "sgr": lambda n, errors, s: guarantees.sgr(n, errors, s.risk, s.delta).last,
    "ltt_fixed_sequence": learn_then_test("fixed_sequence"),
    "ltt_fixed_sequence, three starts": learn_then_test("fixed_sequence", starts=(0.25, 0.5, 0.75)),
    "ltt_fixed_sequence, Hoeffding–Bentkus": learn_then_test("fixed_sequence", "hoeffding_bentkus"),
    "ltt_bonferroni": learn_then_test("bonferroni"),
    "ltt_holm": learn_then_test("holm"),
}

BROKEN_PAC: dict[str, tuple[Choose, str]] = {
    "sgr, last probed": (last_probed, "nothing feasible"),
    "ltt, any p ≤ δ": (
        learn_then_test("holm", test=lambda p, wrong, accepted, s: _last(p <= s.delta)),
        "risk just above the target",
    ),
    "empirical risk ≤ r": (
        learn_then_test("holm", test=lambda p, wrong, accepted, s: _last(wrong <= s.risk * accepted)),
        "smooth",
    ),
}
"""Variants that break the promise, and the setting in which each has to be caught."""


def violations(methods: Mapping[str, Choose], setting: Setting, draws: int, seed: int) -> list[dict[str, Any]]:
    """How often the population risk of each method's choice exceeds r, and what coverage it has; all see the same draws."""
    rng, population = np.random.default_rng(seed), setting.population
    found: dict[str, list[np.ndarray]] = {name: [] for name in methods}
    for some in _chunks(draws, len(population.mass)):
        counts = population.draw(rng, setting.n, some)
        for name, choose in methods.items():
            found[name].append(choose(*counts, setting))
    rows = []
    for name, parts in found.items():
        last = np.concatenate(parts)
        bad = int(((last >= 0) & (population.selective_risk[last] > setting.risk + 1e-12)).sum())
        coverage = float(np.where(last >= 0, population.coverage[last], 0).mean())
        row = {
            **patterns.pac(bad, draws, setting.delta),
            **_tightness(setting, population.selective_risk, coverage, float((last < 0).mean())),
        }
        rows.append({"method": name, "setting": setting.name, "broken": name in BROKEN_PAC, **row})
    return rows


def _chunks(draws: int, g: int) -> list[int]:
    """Draws at a time: as many as keep counts in some megabytes."""
    most = max(1, min(2000, 2_000_000 // g))
    return [min(most, draws - start) for start in range(0, draws, most)]


def _tightness(setting: Setting, of: np.ndarray, coverage: float, nothing: float) -> dict[str, float]:
    feasible = _last(of <= setting.risk + 1e-12)
    oracle = float(setting.population.coverage[feasible]) if feasible >= 0 else 0.0
    return {"coverage": coverage, "oracle_coverage": oracle, "coverage_lost": oracle - coverage, "abstains": nothing}


# Groups: the rarer, the harder; a promise within each holds for all at once.
GROUPS = (0.6, 0.25, 0.15)
GROUP_RISK = (lambda x: 0.1 * x**2, lambda x: 0.3 * x**2, lambda x: 0.005 + 0.15 * x)
GROUPED = Setting("three groups, 60/25/15 %", SMOOTH, 6000, 0.05, 0.05)


def group_violations(method: str, draws: int, seed: int) -> dict[str, Any]:
    """How often any group's (any class's) population risk exceeds r.

    Args:
      method: "sgr" or "ltt_fixed_sequence" with a threshold per group at δ/3, or "ltt_fixed_sequence, label" with one threshold for all.
    """
    rng, s = np.random.default_rng(seed), GROUPED
    parts = [curve(risk, 50) for risk in GROUP_RISK]
    size = rng.multinomial(s.n, GROUPS, draws)
    counts = [rng.multinomial(size[:, g], part.mass) for g, part in enumerate(parts)]
    errors = [rng.binomial(count, part.risk) for count, part in zip(counts, parts, strict=True)]
    if method.endswith("label"):
        p = [
            ops.binomial_p_value(k.cumsum(axis=-1), n.cumsum(axis=-1), s.risk)
            for n, k in zip(counts, errors, strict=True)
        ]
        one = guarantees.learn_then_test(np.max(p, axis=0)[:, 9:], s.delta)
        lasts = [np.where(one >= 0, one + 9, -1)] * 3
    elif method == "sgr":
        delta, lasts = s.delta / 3, []
        for n, k in zip(counts, errors, strict=True):
            some = n.sum(axis=-1) > 0
            last = np.full(draws, -1)
            last[some] = guarantees.sgr(n[some], k[some], s.risk, delta).last
            lasts.append(last)
    else:
        lasts = []
        for n, k in zip(counts, errors, strict=True):
            p = ops.binomial_p_value(k.cumsum(axis=-1), n.cumsum(axis=-1), s.risk)[:, 24:]
            last = guarantees.learn_then_test(p, s.delta / 3)
            lasts.append(np.where(last >= 0, last + 24, -1))
    bad, coverage = np.zeros(draws, bool), 0.0
    for share, part, last in zip(GROUPS, parts, lasts, strict=True):
        bad |= (last >= 0) & (part.selective_risk[last] > s.risk + 1e-12)
        coverage += share * float(np.where(last >= 0, part.coverage[last], 0).mean())
    oracle = sum(
        share * (part.coverage[last] if (last := int(_last(part.selective_risk <= s.risk))) >= 0 else 0)
        for share, part in zip(GROUPS, parts, strict=True)
    )
    return {
        **patterns.pac(int(bad.sum()), draws, s.delta),
        "coverage": coverage,
        "oracle_coverage": float(oracle),
        "coverage_lost": float(oracle) - coverage,
        "abstains": float(np.mean(np.max(lasts, axis=0) < 0)),
    }


# Marginal promises, exactly.

MARGINAL_SETTINGS = (
    Setting("smooth", SMOOTH, 1000, 0.05, math.nan),
    Setting("small n, (n + 1)(1 − α) whole", SMOOTH, 19, 0.1, math.nan),
    Setting("n = 9", curve(lambda x: 0.5 * x, 30), 9, 0.2, math.nan),
    Setting("ties", Population(np.array([0.5, 0.5]), np.array([0.1, 0.6])), 49, 0.1, math.nan),
    Setting("five ties", TIED, 99, 0.05, math.nan),
    Setting("risk near the target", curve(lambda x: np.full(len(x), 0.055), 60), 499, 0.05, math.nan),
    Setting("rare errors", curve(lambda x: np.where(x < 0.98, 0.001, 0.3), 50), 500, 0.005, math.nan),
    Setting("risk 0.3 throughout", curve(lambda x: np.full(len(x), 0.3)), 99, 0.1, math.nan),
)


def allowed_errors(setting: Setting, correction: int = 1) -> int:
    """The most errors with (errors + correction)/(n + 1) ≤ α."""
    return int(floor_of_share(as_fraction(setting.risk), np.asarray(setting.n + 1))) - correction


def risk_control_exactly(setting: Setting, correction: int = 1, whole_cells: bool = True) -> dict[str, Any]:
    """The mean of P(accepted and wrong) over all calibration sets, of conformal risk control, as a finite sum.

    Let A be the errors allowed, h the cell with error A + 1 (one past the last if there are fewer). Accepted is through g, the last cell before h that has
    examples. Given that the cells between are empty, errors up to g and errors in h are binomial. Without cell g's being attained the
    same sum is taken with g empty, and subtracted.

    Args:
      correction: 1; 0 is broken: without the error that the new example may be.
      whole_cells: without, the threshold is the infimum of those that satisfy the bound, at h itself, and h is accepted whole: broken.
    """
    population, n, most = setting.population, setting.n, allowed_errors(setting, correction)
    mass, error = population.mass, population.mass * population.risk
    g_cells = len(mass)
    mean = reached = covered = 0.0
    if most < 0:
        return {"rate": 0.0, "level": setting.risk, "p": 1.0, **_tightness(setting, population.wrong, 0.0, 1.0)}

    e = np.arange(min(most, n) + 1)
    ways = special.gammaln(n + 1) - special.gammaln(e + 1) - special.gammaln(n - e + 1)

    def chance(a: float, z: float, b: float | None) -> float:
        """P(cells of mass z are empty, at most A errors of mass a, and with those of mass b more than A; no b: at most A)."""
        if z >= 1 - 1e-12:
            return 0.0
        share = min(a / (1 - z), 1.0)
        up_to = np.exp(ways + special.xlogy(e, share) + special.xlog1py(n - e, -share))
        if b is None:
            return float((1 - z) ** n * up_to.sum())
        rest, missing = 1 - z - a, most - e + 1  # so many errors at least in b
        if rest <= 1e-15:
            return 0.0
        more = special.betainc(missing, np.maximum(n - e - missing + 1, 0.5), min(b / rest, 1.0))
        return float((1 - z) ** n * (up_to * np.where(missing > n - e, 0.0, more)).sum())

    total = np.concatenate([[0.0], np.cumsum(error)])
    covers = np.concatenate([[0.0], np.cumsum(mass)])
    for h in range(1, g_cells + 1):  # h = g_cells: never more than A errors
        b = None if h == g_cells else float(error[h])
        for g in range(h - 1, -1, -1):
            between = covers[h] - covers[g + 1]
            if (1 - between) ** n < 1e-18:
                break
            both = chance(total[g + 1], between, b) - chance(total[g], between + mass[g], b)
            accepted = g + 1 if whole_cells or h == g_cells else h + 1
            mean += both * total[accepted]
            covered += both * covers[accepted]
            reached += both
    if not whole_cells:  # h is the first cell with examples, or before it all are empty: the infimum still lies at h
        for h in range(g_cells):
            some = chance(0.0, covers[h], float(error[h]))
            mean, covered, reached = mean + some * total[h + 1], covered + some * covers[h + 1], reached + some
    shown = {"rate": float(mean), "level": setting.risk, "p": 0.0 if mean > setting.risk + 1e-9 else 1.0}
    return {**shown, **_tightness(setting, population.wrong, covered, max(0.0, 1 - reached))}


CONFORMAL_SETTINGS = (
    ("n = 9, α = 0.1", np.full(1000, 1 / 1000), 9, 0.1),
    ("n = 99, α = 0.1", np.full(1000, 1 / 1000), 99, 0.1),
    ("n = 999, α = 0.05", np.full(1000, 1 / 1000), 999, 0.05),
    ("n = 50, α = 0.1", np.full(1000, 1 / 1000), 50, 0.1),
    ("ties, n = 99, α = 0.1", np.array([0.55, 0.25, 0.1, 0.06, 0.04]), 99, 0.1),
)


def coverage_exactly(mass: np.ndarray, n: int, alpha: float, off: int = 0) -> dict[str, Any]:
    """The mean over calibration sets of P(new score > quantile), a finite sum: P(the k-th smallest of n is ≤ s) = P(Bin(n, F(s)) ≥ k).

    Args:
      mass: [g], of the values that scores have, in increasing order; off: 0; −1 is broken: an order statistic too low.
    """
    rank = n + 1 - int(floor_of_share(as_fraction(alpha), np.asarray(n + 1))) + off
    reached = np.minimum(np.cumsum(mass), 1)
    at_most = stats.binom.sf(rank - 1, n, reached) if rank <= n else np.zeros(len(mass))
    missed = float(np.sum(np.diff(at_most, prepend=0) * (1 - reached)))
    return {"rate": missed, "level": alpha, "p": 0.0 if missed > alpha + 1e-12 else 1.0}


def false_alarm_exactly(risk: float, delta: float, steps: int, bound: Callable[..., np.ndarray]) -> dict[str, Any]:
    """P(an alarm within `steps` examples) at the promised risk, by dynamic programming over the number of errors."""
    alive, hit = np.ones(1), 0.0
    for n in range(1, steps + 1):
        alive = np.append(alive * (1 - risk), 0) + np.append(0, alive * risk)
        stop = bound(np.arange(n + 1), n, risk, delta)
        hit += float(alive[stop].sum())
        alive[stop] = 0
    return {"rate": hit, "level": delta, "p": 0.0 if hit > delta + 1e-12 else 1.0}


def _evidence(k: np.ndarray, n: int, risk: float, delta: float) -> np.ndarray:
    return ops.log_evidence(k, n, risk) >= math.log(1 / delta)


def _every_step(k: np.ndarray, n: int, risk: float, delta: float) -> np.ndarray:
    return ops.clopper_pearson_lower(k, n, delta) > risk


MONITORED = ((0.02, 0.05), (0.1, 0.05), (0.1, 0.01))


Row = dict[str, Any]


def pac_rows(settings: Sequence[Setting], draws: int = DRAWS) -> list[Row]:
    """The methods that promise a selective risk, in every setting."""
    return [row for number, s in enumerate(settings) for row in violations(PAC, s, draws, SEED + number)]


def rows(draws: int = DRAWS, monitored: int = 2000) -> list[Row]:
    """Every method in every setting of made-up populations, and the broken variants.

    Args:
      draws: calibration sets; monitored: examples that a monitor sees.
    """
    found = pac_rows(SETTINGS, draws)

    def add(method: str, setting: str, result: Row, broken: bool = False) -> None:
        found.append({"method": method, "setting": setting, "broken": broken, **result})

    for method, (choose, name) in BROKEN_PAC.items():
        number = [s.name for s in SETTINGS].index(name)
        found += violations({method: choose}, SETTINGS[number], draws, SEED + number)
    for method in ("sgr", "ltt_fixed_sequence", "ltt_fixed_sequence, label"):
        add(f"{method}, within groups", GROUPED.name, group_violations(method, draws, SEED))
    for s in MARGINAL_SETTINGS:
        add("crc", s.name, risk_control_exactly(s))
    tied, flat = MARGINAL_SETTINGS[3], MARGINAL_SETTINGS[-1]
    add("crc, infimum under ties", tied.name, risk_control_exactly(tied, whole_cells=False), broken=True)
    add("crc, without + 1", flat.name, risk_control_exactly(flat, correction=0), broken=True)
    for name, mass, n, alpha in CONFORMAL_SETTINGS:
        add("conformal quantile", name, coverage_exactly(mass, n, alpha))
    for name, mass, n, alpha in CONFORMAL_SETTINGS[:3]:
        add("conformal quantile, one too low", name, coverage_exactly(mass, n, alpha, -1), broken=True)
    for risk, delta in MONITORED:
        name = f"risk {risk}, δ = {delta}, {monitored} examples"
        add("monitor", name, false_alarm_exactly(risk, delta, monitored, _evidence))
    add("a test at every step", name, false_alarm_exactly(risk, delta, monitored, _every_step), broken=True)
    return found + patterns.rows(draws, SEED)


def judged(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows with the verdict of Holm's test over all of them."""
    p = np.array([row["p"] for row in found])
    order, fails = np.argsort(p, kind="stable"), np.zeros(len(p), bool)
    for i, j in enumerate(order):
        if p[j] > LEVEL / (len(p) - i):
            break
        fails[j] = True
    return [{**row, "fails": bool(fail)} for row, fail in zip(found, fails, strict=True)]


class Outputs(NamedTuple):
    """A published network's outputs on a test set, which are a population: logits [n, k], label [n]; (n, r) to test with, 0.98 of the error for None."""

    name: str
    logits: np.ndarray
    label: np.ndarray
    targets: Sequence[tuple[int, float | None]]

    @property
    def error(self) -> np.ndarray:
        """bool [n]."""
        return ops.predicted_class(self.logits) != self.label

    def settings(self) -> list[Setting]:
        """With the distinct values of MSP as cells."""
        _, cell, count = np.unique(-ops.msp(self.logits), return_inverse=True, return_counts=True)
        population = Population(count / len(cell), np.bincount(cell, weights=self.error) / count)
        found = [(n, float(np.round(self.error.mean() * 0.98, 4)) if r is None else r) for n, r in self.targets]
        return [Setting(f"{self.name}, n = {n}, r = {r}", population, n, r, 0.05) for n, r in found]


POOLED = {
    "probs_wrn16_4": ((500, 0.05), (2000, 0.02), (2000, None)),
    "probs_vgg16": ((500, 0.05), (2000, 0.02), (2000, None)),
    "probs_lenet5": ((500, 0.4), (2000, 0.35), (2000, None)),
    "logits_jpg_resnet20": ((500, 0.05), (2000, 0.02), (2000, None)),
}
"""Half of LeNet's answers are wrong or nearly: it has targets that half of the examples can meet."""


def pools(folder: Path) -> list[Outputs]:
    """Outputs of published networks.

    Args:
      folder: with `cifar10_test_outputs.npz`.
    """
    found = []
    with np.load(folder / "cifar10_test_outputs.npz") as stored:
        for name, targets in POOLED.items():
            values = np.asarray(stored[name], np.float64)
            with np.errstate(divide="ignore"):
                logits = np.log(values) if name.startswith("probs_") else values
            found.append(Outputs(name, logits, stored["labels"], targets))
    return found


def pool_rows(outputs: Sequence[Outputs], draws: int = DRAWS) -> list[Row]:
    """Every method on outputs of networks, calibration sets drawn from them with replacement.

    Besides the methods that promise a selective risk: conformal risk control at α = r, and sets and singletons by LAC.
    """
    found = []
    for number, o in enumerate(outputs):
        miss, wrong = lac_rates(o)
        own = ops.lac(np.exp(ops.log_softmax(o.logits)))[np.arange(len(o.label)), o.label]
        for s in o.settings():
            population, seed = s.population, SEED + number
            found += violations(PAC, s, draws, seed)
            rng, lasts, limits = np.random.default_rng(seed), [], []
            for some in _chunks(draws, len(population.mass)):
                lasts.append(guarantees.conformal_risk_control(*population.draw(rng, s.n, some), s.risk))
                drawn = own[rng.integers(0, len(own), (some, s.n))]
                limits.append(ops.conformal_quantile(drawn, s.risk))
            last, limit = np.concatenate(lasts), np.concatenate(limits)
            rate = np.where(last >= 0, population.wrong[last], 0.0)
            coverage = float(np.where(last >= 0, population.coverage[last], 0.0).mean())
            tight = _tightness(s, population.wrong, coverage, float((last < 0).mean()))
            for method, rates, more in (
                ("crc", rate, tight),
                ("sets_lac", miss(limit), {}),
                ("singleton_lac", wrong(limit), {}),
            ):
                row = {**patterns.marginal(rates[:, None], s.risk), **more}
                found.append({"method": method, "setting": s.name, "broken": False, **row})
    return found


Rate = Callable[[np.ndarray], np.ndarray]


def lac_rates(outputs: Outputs) -> tuple[Rate, Rate]:
    """(P(the set misses the label), P(the set is one class, and it is wrong)) as functions of the quantile, any shape."""
    nonconformity = ops.lac(np.exp(ops.log_softmax(outputs.logits)))
    n = len(outputs.label)
    own = np.sort(nonconformity[np.arange(n), outputs.label])
    least, second = np.sort(nonconformity, axis=1)[:, :2].T
    wrong = nonconformity.argmin(axis=1) != outputs.label
    enter, leave = np.sort(least[wrong]), np.sort(second[wrong])

    def accepted_and_wrong(q: np.ndarray) -> np.ndarray:
        return (np.searchsorted(enter, q, side="right") - np.searchsorted(leave, q, side="right")) / n

    return lambda q: 1 - np.searchsorted(own, q, side="right") / n, accepted_and_wrong


def main() -> None:
    """Simulates and writes `results/validity.json`."""
    found = rows()
    extra = os.environ.get("SC_JAX_EXTRA_DATA")
    if extra is not None:
        found += pool_rows(pools(Path(extra)))
    found = judged(found)
    for row in found:
        mark = "fails" if row["fails"] else "holds"
        tight = f", coverage {row['coverage']:.3f}" if "coverage" in row else ""
        tight += f" of {row['oracle_coverage']:.3f}" if "oracle_coverage" in row else ""
        tight += f", abstains {row['abstains']:.3f}" if "abstains" in row else ""
        print(
            f"{mark}{' (broken)' if row['broken'] else ''}: {row['method']}, {row['setting']}: {row['rate']:.4f} of {row['level']}{tight}"
        )
    wrong = [row for row in found if row["fails"] != row["broken"]]
    print(f"{len(found)} rows, {len(wrong)} judged other than they should be")
    about = {"draws": DRAWS, "seed": SEED, "level": LEVEL, "published_outputs": extra is not None}
    machine.write("validity", {**about, "rows": found})
    if wrong:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
