"""A study of early-exit cascades from predictions: what the ensemble gains, how much of it a cascade keeps, and at which cost.

Windows, thresholds and the threshold of the decision are fitted on the calibration split and frozen. A search over all policies takes
one half of the calibration split (by a hash of the ids), the other half certifies what it can, and everything is reported on the test split.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from sc_jax import ops
from sc_jax.files import InputError
from sc_jax.methods import cascade, contrasts
from sc_jax.methods.cascade import EMPTY, WHOLE, Outcome, Stages, Task
from sc_jax.ops import resampling
from sc_jax.predictions import Predictions, select

KEPT = 0.8
"""The share of the ensemble's gain that a cascade is asked to keep (fixed beforehand; of the paper's own figures it keeps 80 to 90 %)."""

BUDGETS = 7
"""How many mean costs there are within which the best policy is searched."""

SWEEP = tuple(i / 40 for i in range(21))
"""Half-widths of windows, in shares of the calibration split; the share of single thresholds is twice as much."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """How cascades are fitted and reported.

    Attributes:
      task: the decision; score, combine: of the stages; half_width: of every window, in shares of the calibration split.
      coverage: at which the selective risk is reported too; delta: of the certified policies; resamples, level, seed: of the bootstrap.
      budget: of the mean cost, in multiples of the first model's, within which a policy is asked for; None for no such.
    """

    task: Task
    score: str = "msp"
    combine: str = "ensemble"
    half_width: float = 0.1
    coverage: float = 0.8
    delta: float = 0.1
    resamples: int = 1000
    level: float = 0.95
    seed: int = 0
    budget: float | None = None


class Candidates(NamedTuple):
    """The models of one cascade, in the order they are run.

    Attributes:
      names: of the models; calibration, test: their predictions on both splits; shifted: name → their predictions on a shifted set,
        labels kept.
    """

    names: tuple[str, ...]
    calibration: Sequence[Predictions]
    test: Sequence[Predictions]
    shifted: Mapping[str, Sequence[Predictions]] = {}

    @property
    def name(self) -> str:
        """Of the cascade."""
        return " → ".join(self.names)


def disjoint(
    members: Sequence[tuple[str, Predictions, Predictions, Mapping[str, Predictions]]], stages: int
) -> list[Candidates]:
    """Cascades of `stages` consecutive members each, none of which is in two.

    Args:
      members: (name, calibration, test, name of a shifted set → predictions on it) of each; stages: M.

    Returns:
      ⌊members/M⌋ cascades.

    Raises:
      InputError: fewer members than stages.
    """
    if len(members) < stages:
        raise InputError(f"cascade.stages: {stages} stages of {len(members)} members; train more seeds")
    made = []
    for i in range(0, len(members) - stages + 1, stages):
        names, calibration, test, shifted = zip(*members[i : i + stages], strict=True)
        of_sets = {name: [one[name] for one in shifted] for name in shifted[0]}
        made.append(Candidates(names, calibration, test, of_sets))
    return made


def cost_in_sidecar(given: Predictions) -> float:
    """The multiply-accumulates of one example that the sidecar says.

    Raises:
      InputError: it says none.
    """
    if "macs" not in given.provenance:
        raise InputError(f"{given.source}: its sidecar says no 'macs'; predict again, or give --costs")
    return float(given.provenance["macs"])


def evaluate(
    candidates: Sequence[Candidates],
    cost: Sequence[float],
    settings: Settings,
    progress: Callable[[int], None] = lambda done: None,
) -> dict[str, Any]:
    """Everything that the report shows, ready for JSON.

    Args:
      candidates: cascades of as many models each; all test splits hold the same examples, and so do the others.
      cost: [M] of the models, in any unit; settings: how; progress: receives the number of cascades done.

    Returns:
      {"settings", "cost", "policies", "claims", "sweep", "changes", "search", "chosen", "ood", "shifts", "fitted"}; "search" is empty where nothing can be
      searched, "chosen" without a budget that is asked for, "ood" where no example is OOD, "shifts" without shifted sets.

    Raises:
      InputError: as for `cascade.stages`, or the task cannot be met.
    """
    built = [
        tuple(
            cascade.stages(split, cost, score=settings.score, combine=settings.combine)
            for split in (c.calibration, c.test)
        )
        for c in candidates
    ]
    n = cascade.in_distribution(built[0][1]).score.shape[1]
    counts = resampling.resample_counts(settings.seed, n, settings.resamples)
    drawn = resampling.resample_counts(settings.seed + 1, len(built), settings.resamples)
    cells: dict[str, list[dict[str, _Value]]] = {}
    fitted, changes, sweeps, searches, outsides, chosen = [], [], [], [], [], []
    shifts: dict[tuple[str, str], list[dict[str, _Value]]] = {}
    for done, (one, (calibration, test)) in enumerate(zip(candidates, built, strict=True), 1):
        known = cascade.in_distribution(test)
        try:
            policies = _policies(calibration, settings, one.names)
        except ValueError as error:
            raise InputError(f"{one.name}: {error}") from None
        for name, policy in policies.items():
            outcome = cascade.apply(policy, known)
            cells.setdefault(name, []).append(_measured(outcome, policy.threshold, test.cost[0], settings, counts))
        window = policies["window"]
        bound = cascade.oracle(known, window.threshold)
        cells.setdefault("oracle", []).append(_measured(bound, window.threshold, test.cost[0], settings, counts))
        fitted.append({"cascade": one.name, "policies": {name: policy.as_json() for name, policy in policies.items()}})
        changes.append(changed(test, window))
        sweeps.append(_swept(calibration, known, settings))
        if test.is_ood is not None and test.is_ood.any():
            outside = resampling.resample_counts(settings.seed + 2, int(test.is_ood.sum()), settings.resamples)
            outsides.append(_of_ood(policies, test, counts, outside))
        sets = {**({"test split": one.test} if one.shifted else {}), **one.shifted}
        for place, (named, models) in enumerate(sets.items()):
            given = _stages_of(models, cost, range(len(cost)), settings)
            for name, row in _of_shift(policies, given, settings, place).items():
                shifts.setdefault((named, name), []).append(row)
        rows, best = _searched(one, cost, settings, counts)
        searches.append(rows)
        chosen += [best] if best else []
        progress(done)
    covers = "test examples" + (", cascades" if len(built) > 1 else "")
    return {
        "settings": {**dataclasses.asdict(settings), "task": settings.task._asdict()},
        "cost": [float(c) for c in built[0][1].cost],
        "names": [one.name for one in candidates],
        "n": n,
        "level": settings.level,
        "intervals_cover": covers,
        "policies": [
            {
                "policy": name,
                "metrics": {
                    metric: contrasts.describe(_crossed(rows, metric, drawn), settings.level) for metric in rows[0]
                },
            }
            for name, rows in cells.items()
        ],
        "claims": _claims(cells, drawn, settings),
        "sweep": _mean_rows(sweeps),
        "changes": {key: float(np.mean([row[key] for row in changes])) for key in changes[0]},
        "search": _with_bands(searches, drawn, settings.level),
        "chosen": chosen,
        "ood": _with_intervals(outsides, drawn, settings.level) if outsides else [],
        "shifts": [
            {
                "set": named,
                "policy": name,
                "metrics": {
                    metric: contrasts.describe(_crossed(rows, metric, drawn), settings.level) for metric in rows[0]
                },
            }
            for (named, name), rows in shifts.items()
        ],
        "fitted": fitted,
    }


class _Value(NamedTuple):
    value: float
    replicates: np.ndarray


def _policies(calibration: Stages, settings: Settings, names: tuple[str, ...]) -> dict[str, cascade.Policy]:
    between, task = len(calibration.score) - 1, settings.task
    share = min(1.0, 2 * settings.half_width)
    made = {
        "single": cascade.frozen(calibration, task, [EMPTY] * between),
        "ensemble": cascade.frozen(calibration, task, [WHOLE] * between),
        "single_threshold": cascade.fit(calibration, task, share, kind="single_threshold"),
        "window": cascade.fit(calibration, task, settings.half_width),
    }
    return {name: dataclasses.replace(policy, models=names) for name, policy in made.items()}


def _measured(
    outcome: Outcome, threshold: float, unit: float, settings: Settings, counts: np.ndarray
) -> dict[str, _Value]:
    """Metrics of a merged ranking, what the frozen threshold does, and the cost, each with replicates over examples."""
    of = {
        "coverage_at_risk": lambda **how: ops.coverage_at_risk(
            outcome.score, outcome.error, _risk(settings.task), **how
        ),
        "risk_at_coverage": lambda **how: ops.risk_at_coverage(outcome.score, outcome.error, settings.coverage, **how),
        "aurc": lambda **how: ops.aurc(outcome.score, outcome.error, **how),
    }
    parts: dict[str, list[np.ndarray]] = {name: [] for name in of}
    for rows in resampling.chunks(counts):
        for name, metric in of.items():
            parts[name].append(np.asarray(metric(weight=counts[rows])))
    values = {name: _Value(float(metric()), np.concatenate(parts[name])) for name, metric in of.items()}
    return values | _shares({"": (outcome, threshold)}, unit, counts)[""]


def _shares(
    decided: Mapping[str, tuple[Outcome, float]], unit: float, counts: np.ndarray
) -> dict[str, dict[str, _Value]]:
    """What frozen thresholds do, and the cost, each with replicates over examples, of several outcomes of the same examples."""
    columns = np.concatenate(
        [
            np.stack([accept, accept & of.error, of.stage > 0, of.error, of.cost])
            for of, accept in ((of, of.score >= threshold) for of, threshold in decided.values())
        ]
    ).T.astype(np.float64)
    n, shape = len(columns), (-1, len(decided), 5)
    parts = [counts[rows].astype(np.float64) @ columns for rows in resampling.chunks(counts)]
    drawn, whole = np.concatenate(parts).reshape(shape), columns.sum(axis=0).reshape(shape)[0]
    values: dict[str, dict[str, _Value]] = {}
    for i, name in enumerate(decided):
        values[name] = {
            what: _Value(float(share(whole[i])), share(drawn[:, i]))
            for what, share in (
                ("error", lambda s: s[..., 3] / n),
                ("cost", lambda s: s[..., 4] / n),
                ("cost_multiple", lambda s: s[..., 4] / n / unit),
                ("passed_on", lambda s: s[..., 2] / n),
                ("decided_coverage", lambda s: s[..., 0] / n),
                ("decided_risk", lambda s: s[..., 1] / np.maximum(s[..., 0], 1)),
            )
        }
    return values


def _risk(task: Task) -> float:
    """The risk at which coverage is reported: the task's, or 5 %."""
    return task.target if task.kind == "risk" else 0.05


def _crossed(rows: Sequence[dict[str, _Value]], metric: str, drawn: np.ndarray) -> resampling.Difference:
    values = np.array([row[metric].value for row in rows])
    return resampling.crossed(values, np.stack([row[metric].replicates for row in rows]), drawn)


def _claims(cells: dict[str, list[dict[str, _Value]]], drawn: np.ndarray, settings: Settings) -> list[dict[str, Any]]:
    """Whether the ensemble gains at all, and then whether the cascade keeps its share of that: the second is asked only after the first."""
    rows = []
    for claim, share, treatment in (
        ("the ensemble gains coverage at the risk", 0.0, "ensemble"),
        (f"the window cascade keeps at least {100 * KEPT:g} % of that gain", KEPT, "window"),
        (f"a single threshold keeps at least {100 * KEPT:g} % of that gain", KEPT, "single_threshold"),
    ):
        differences = []
        for single, ensemble, treated in zip(cells["single"], cells["ensemble"], cells[treatment], strict=True):
            base, gain, kept = (row["coverage_at_risk"] for row in (single, ensemble, treated))
            differences.append(
                {
                    "kept": _Value(
                        kept.value - base.value - share * (gain.value - base.value),
                        kept.replicates - base.replicates - share * (gain.replicates - base.replicates),
                    )
                }
            )
        difference = _crossed(differences, "kept", drawn)
        described = contrasts.describe(difference, settings.level)
        p = resampling.two_sided_p(difference.replicates)
        verdict = contrasts.verdict("greater", described["interval"], p, settings.level).partition(" (")[0]
        rows.append({"claim": claim, "policy": treatment, "share": share, **described, "p": p, "verdict": verdict})
    if rows[0]["verdict"] != "confirmed":
        for row in rows[1:]:
            row["verdict"] = "not asked: no gain is shown"
    return rows


def changed(test: Stages, policy: cascade.Policy) -> dict[str, float]:
    """What going on did to the decisions of the examples that went on: shares of all examples.

    Compared are the first stage and the stage at which each left, both with the threshold of the policy.

    Args:
      test: M stages; policy: a fitted cascade.

    Returns:
      {"passed_on", "unchanged", "rejected_wrong", "rejected_right", "accepted_right", "accepted_wrong", "corrected", "spoilt"}: of
      what the first stage accepted, wrong or right, now rejected; of what it rejected, right or wrong, now accepted; of what
      both accept, wrong and now right, or right and now wrong.
    """
    known = cascade.in_distribution(test)
    outcome = cascade.follow(policy.windows, known)
    before, after = known.score[0] >= policy.threshold, outcome.score >= policy.threshold
    wrong_before, wrong_after, went = known.error[0], outcome.error, outcome.stage > 0
    both = before & after
    of = {
        "rejected_wrong": before & ~after & wrong_before,
        "rejected_right": before & ~after & ~wrong_before,
        "accepted_right": ~before & after & ~wrong_after,
        "accepted_wrong": ~before & after & wrong_after,
        "corrected": both & wrong_before & ~wrong_after,
        "spoilt": both & ~wrong_before & wrong_after,
    }
    shares = {name: float((went & which).mean()) for name, which in of.items()}
    passed = float(went.mean())
    return {"passed_on": passed, "unchanged": passed - sum(shares.values()), **shares}


def _swept(calibration: Stages, test: Stages, settings: Settings) -> list[dict[str, Any]]:
    """Coverage at the risk, risk at the coverage and AURC against cost, for windows and single thresholds of every width."""
    rows = []
    for kind in ("window", "single_threshold"):
        for width in SWEEP:
            wide = width if kind == "window" else min(1.0, 2 * width)
            policy = cascade.fit(calibration, settings.task, wide, kind=kind)
            outcome = cascade.apply(policy, test)
            rows.append(
                {
                    "kind": kind,
                    "half_width": width,
                    "cost_multiple": float(outcome.cost.mean() / test.cost[0]),
                    "passed_on": float((outcome.stage > 0).mean()),
                    "coverage_at_risk": float(ops.coverage_at_risk(outcome.score, outcome.error, _risk(settings.task))),
                    "risk_at_coverage": float(ops.risk_at_coverage(outcome.score, outcome.error, settings.coverage)),
                    "aurc": float(ops.aurc(outcome.score, outcome.error)),
                }
            )
    return rows


MOVED = "window, moved"
"""The window re-centred on the examples at hand, labels unseen."""


def _of_shift(
    policies: Mapping[str, cascade.Policy], given: Stages, settings: Settings, place: int
) -> dict[str, dict[str, _Value]]:
    """What every policy and the window moved to these examples do on a set, OOD examples left out; `place` of the set, for the resamples."""
    known = cascade.in_distribution(given)
    counts = resampling.resample_counts(settings.seed + 3 + place, known.score.shape[1], settings.resamples)
    every = {**policies, MOVED: cascade.adapt(policies["window"], known)}
    decided = {name: (cascade.follow(policy.windows, known), policy.threshold) for name, policy in every.items()}
    return _shares(decided, known.cost[0], counts)


def _of_ood(
    policies: Mapping[str, cascade.Policy], test: Stages, counts: np.ndarray, outside: np.ndarray
) -> list[dict[str, Any]]:
    """Cost and pass-on shares of either kind of example, how OOD ones are told, and the risk where an accepted OOD example counts as an error.

    The window is also moved to these very examples, labels unseen. `counts` [b, in-distribution examples] and `outside` [b, OOD
    examples] are resamples, for "replicates" of the costs and shares, which keep the mix.
    """
    rows, ood = [], test.is_ood
    every = {**policies, MOVED: cascade.adapt(policies["window"], test)}
    outcomes = {name: cascade.follow(policy.windows, test) for name, policy in every.items()}
    shares = []
    for which, resamples in ((~ood, counts), (ood, outside)):
        decided = {
            name: (Outcome(*(field[which] for field in outcome)), every[name].threshold)
            for name, outcome in outcomes.items()
        }
        shares.append(_shares(decided, test.cost[0], resamples))
    mix = ood.mean()
    for name, outcome in outcomes.items():
        accept = outcome.score >= every[name].threshold
        loss = outcome.error | ood
        known, other = (part[name] for part in shares)
        values = {
            f"{what}{of}": value
            for what in ("cost_multiple", "passed_on")
            for of, value in (
                ("", known[what]),
                ("_ood", other[what]),
                ("_all", _Value(*((1 - mix) * a + mix * b for a, b in zip(known[what], other[what], strict=True)))),
            )
        }
        rows.append(
            {
                "policy": name,
                **{what: value.value for what, value in values.items()},
                "accepted_ood": float(accept[ood].mean()),
                "ood_auroc": float(ops.auroc(outcome.score, ~ood)),
                "ood_fpr_at_tpr_0.95": float(ops.ood_fpr_at_tpr(outcome.score, ood, 0.95, "id")),
                "scod_risk": float((accept & loss).sum() / max(1, accept.sum())),
                "scod_aurc": float(ops.aurc(outcome.score, loss)),
                "replicates": {what: value.replicates for what, value in values.items()},
            }
        )
    return rows


def _with_intervals(outsides: Sequence[list[dict[str, Any]]], drawn: np.ndarray, level: float) -> list[dict[str, Any]]:
    """Means over cascades, with the intervals of costs and shares over examples and cascades."""
    replicates = [[row.pop("replicates") for row in rows] for rows in outsides]
    means = _mean_rows(outsides)
    for i, row in enumerate(means):
        for what in replicates[0][i]:
            values = np.array([rows[i][what] for rows in outsides])
            difference = resampling.crossed(values, np.stack([one[i][what] for one in replicates]), drawn)
            ends = resampling.percentile_interval(difference.replicates, level)
            row[f"{what}_interval"] = [float(end) for end in ends]
    return means


# --- search -----------------------------------------------------------------------------------------------------------


def halves(example_id: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Two halves of a split, by the SHA-256 of the id: the rows whose first bit is 0, and the others.

    Args:
      example_id: [n].

    Returns:
      Two arrays of rows.
    """
    first = np.array([hashlib.sha256(f"cascade/{i}".encode()).digest()[0] < 128 for i in example_id])
    return np.flatnonzero(first), np.flatnonzero(~first)


class Found(NamedTuple):
    """Every policy of every order of some models: which models each order runs, and its `cascade.Table`."""

    orders: list[tuple[int, ...]]
    tables: list[cascade.Table]


def budgets(cost: Sequence[float]) -> list[float]:
    """Mean costs in units of the first model's, evenly spaced on a log scale up to that of all models together.

    Args:
      cost: [M].

    Returns:
      `BUDGETS` numbers, in two digits after the point.

    >>> budgets((1.0, 1.0))
    [1.1, 1.22, 1.35, 1.49, 1.64, 1.81, 2.0]
    """
    total = sum(cost) / cost[0]
    return [round(total ** (i / BUDGETS), 2) for i in range(1, BUDGETS + 1)]


JOINT = 5
"""Models of which three stages are searched jointly."""


def search_orders(
    models: Sequence[Predictions],
    cost: Sequence[float],
    settings: Settings,
    *,
    most: int | None = None,
    thresholds: int = 120,
    points: int = 40,
) -> Found:
    """Every order of every subset of the models with every window and threshold of a grid.

    Args:
      models, cost: as for `cascade.stages`, on the split to search; settings: of which score and combine; most: stages at most; by default three,
        and two of more than `JOINT` models, of which there are too many orders.
      thresholds: τ at so many quantiles of the scores of the last stage; points: see `cascade.window_grid`; of three stages and more the
        grid is coarser, so that there are about as many combinations of windows.

    Returns:
      `Found`; of one model alone there are no windows.
    """
    orders, tables = [], []
    most = (3 if len(models) <= JOINT else 2) if most is None else most
    shares = (np.arange(thresholds) + 0.5) / thresholds
    for size in range(1, min(most, len(models)) + 1):
        for order in itertools.permutations(range(len(models)), size):
            given = _stages_of(models, cost, order, settings)
            known = cascade.in_distribution(given).score
            coarse = max(2, round(points ** (1 / max(1, size - 1))))
            windows = [cascade.window_grid(score, coarse) for score in known[:-1]]
            orders.append(order)
            tables.append(cascade.search(given, np.quantile(known[-1], shares, method="lower"), windows))
    return Found(orders, tables)


class Chosen(NamedTuple):
    """A decision: which models run in which order, the windows between them, and τ."""

    order: tuple[int, ...]
    windows: tuple[tuple[float, float], ...]
    threshold: float


def best_of(found: Found, task: Task, budget: float) -> Chosen | None:
    """The best policy within a budget over all orders, of equally good ones the cheapest; None if none meets the target."""
    chosen = []
    for order, table in zip(found.orders, found.tables, strict=True):
        row = cascade.best(table, task, budget)
        if row is not None:
            windows = tuple((float(low), float(high)) for low, high in table.windows[row])
            last = windows.index(EMPTY) if EMPTY in windows else len(windows)  # nothing reaches what follows
            one = Chosen(order[: last + 1], windows[:last], float(table.threshold[row]))
            chosen.append((-cascade.value(table, task)[row], table.cost[row], one))
    return min(chosen)[2] if chosen else None


def _stages_of(
    models: Sequence[Predictions], cost: Sequence[float], order: Sequence[int], settings: Settings
) -> Stages:
    """The models of an order as stages."""
    chosen = [models[i] for i in order], [cost[i] for i in order]
    return cascade.stages(*chosen, score=settings.score, combine=settings.combine)


def policy_of(
    chosen: Chosen, calibration: Sequence[Predictions], names: Sequence[str], settings: Settings
) -> cascade.Policy:
    """A decision as a policy that can be written, read and run.

    Args:
      chosen: of `best_of` or `certified`; calibration: the models on the split whose parts it was chosen and tested on; names: of the
        models; settings: with the task, score and combination.

    Returns:
      A `Policy`, whose `models` are those that run, in order.
    """
    split = cascade.fingerprint(calibration[0].example_id)
    models = tuple(names[i] for i in chosen.order)
    return cascade.Policy(
        chosen.windows, (), (), chosen.threshold, settings.task, settings.score, settings.combine, split, models
    )


STRICTER = tuple(0.3 + 0.05 * i for i in range(15))
"""Shares of the risk for which decisions are searched, to be certified."""


def certified(
    found: Found,
    searched: Sequence[Predictions],
    models: Sequence[Predictions],
    cost: Sequence[float],
    budget: float,
    settings: Settings,
) -> Chosen | None:
    """The decision that is certified to keep the risk and the budget, and accepts the most on the split that was searched; None if none is.

    Tested are the best decisions for the risk and for stricter ones, in the order of their p-values on the split that was searched: the strictest
    accepts so few that it is not the safest.

    Args:
      found: of one split; searched: the models on it; models: the same models on another; cost: of each; budget: of the mean
        cost; settings: with a task "risk".

    Returns:
      A `Chosen`: with probability ≥ 1 − δ over the second split its selective risk and its mean cost keep their bounds.
    """
    target = settings.task.target
    best = [best_of(found, Task("risk", round(share * target, 12)), budget) for share in STRICTER]
    candidates = list(dict.fromkeys(one for one in best if one is not None))

    def test(one: Chosen, split: Sequence[Predictions]) -> cascade.Certificate:
        given = _stages_of(split, cost, one.order, settings)
        return cascade.certify([(one.windows, one.threshold)], given, target, budget, settings.delta)

    def order(one: Chosen) -> tuple[float, int]:
        seen = test(one, searched)
        return float(max(seen.p_risk[0], seen.p_cost[0])), -int(seen.accepted[0])

    in_order = sorted(candidates, key=order)
    holds = list(itertools.takewhile(lambda one: test(one, models).certified, in_order))
    return max(holds, key=lambda one: test(one, searched).accepted[0]) if holds else None


def _searched(
    one: Candidates, cost: Sequence[float], settings: Settings, counts: np.ndarray
) -> tuple[list[dict[str, Any]], dict[str, Any] | None]:
    """The best policy of each budget on one half of the calibration split, and what it does on the other half and on the test split; and
    the policies of the budget that is asked for.

    Of a task "risk" also the one that the other half certifies, on the test split.
    """
    first, second = halves(one.calibration[0].example_id)
    if settings.task.kind not in TASKS or min(len(first), len(second)) == 0:
        return [], None
    of_half = [[select(model, rows) for model in one.calibration] for rows in (first, second)]
    outside = of_half[0][0].is_ood
    if settings.task.kind in ("tpr", "scod") and (outside is None or not outside.any()):
        return [], None
    found = search_orders(of_half[0], cost, settings)
    asked = [] if settings.budget is None else [settings.budget]
    rows, wanted = [], None
    for budget in sorted({*budgets(cost), *asked}):
        row: dict[str, Any] = {"budget": budget, "policies": float(sum(len(table.cost) for table in found.tables))}
        chosen = best_of(found, settings.task, budget * cost[0])
        for split, models in (("search", of_half[0]), ("certify", of_half[1]), ("test", one.test)):
            row |= _done(split, chosen, models, cost, settings, counts if split == "test" else None)
        promised = None
        if settings.task.kind == "risk":
            promised = certified(found, *of_half, cost, budget * cost[0], settings)
            row |= {"certified_share": float(promised is not None)} | _done(
                "certified", promised, one.test, cost, settings
            )
        rows.append(row)
        if budget == settings.budget:
            wanted = {"cascade": one.name, "budget": budget}
            for name, which in (("best", chosen), ("certified", promised)):
                policy = which and policy_of(which, one.calibration, one.names, settings)
                wanted[name] = policy and policy.as_json()
    return rows, wanted


TASKS = ("risk", "coverage", "tpr", "scod")
"""Kinds of tasks for which policies are searched; of the last two where the calibration split has OOD examples."""


def _done(
    name: str,
    chosen: Chosen | None,
    models: Sequence[Predictions],
    cost: Sequence[float],
    settings: Settings,
    counts: np.ndarray | None = None,
) -> dict[str, Any]:
    """Coverage, risk and cost of a decision on a split; where there is none, nothing is accepted and the risk is not defined.

    With `counts` [b, n] also replicates over the examples, under "<name>_replicates": [b] of each.
    """
    if chosen is None:
        nothing = {"coverage": 0.0, "risk": math.nan, "cost_multiple": math.nan}
        nothing |= {"accepted_ood": math.nan, "scod_risk": math.nan}
        told: dict[str, Any] = {f"{name}_{what}": value for what, value in nothing.items()}
        if counts is not None:
            told[f"{name}_replicates"] = {what: np.full(len(counts), nothing[what]) for what in BANDED}
        return told
    everything = _stages_of(models, cost, chosen.order, settings)
    given = cascade.in_distribution(everything)
    outcome = cascade.follow(chosen.windows, given)
    accept = outcome.score >= chosen.threshold
    columns = np.stack([accept, accept & outcome.error, outcome.cost / cost[0]], axis=1).astype(np.float64)

    def shares(weight: np.ndarray) -> dict[str, np.ndarray]:
        accepted, wrong, spent = np.moveaxis(weight @ columns, -1, 0)
        n = weight.sum(axis=-1)
        return {"coverage": accepted / n, "risk": wrong / np.maximum(accepted, 1), "cost_multiple": spent / n}

    told = {f"{name}_{what}": float(value) for what, value in shares(np.ones(len(accept))).items()}
    told |= _outside(name, chosen, everything)
    if counts is not None:
        parts = [shares(counts[rows].astype(np.float64)) for rows in resampling.chunks(counts)]
        told[f"{name}_replicates"] = {what: np.concatenate([part[what] for part in parts]) for what in parts[0]}
    return told


def _outside(name: str, chosen: Chosen, given: Stages) -> dict[str, float]:
    """The share of the OOD examples that is accepted, and of all accepted those that are errors or OOD; NaN where there are none."""
    if given.is_ood is None or not given.is_ood.any():
        return {f"{name}_accepted_ood": math.nan, f"{name}_scod_risk": math.nan}
    outcome = cascade.follow(chosen.windows, given)
    accept = outcome.score >= chosen.threshold
    lost = accept & (outcome.error | given.is_ood)
    return {
        f"{name}_accepted_ood": float(accept[given.is_ood].mean()),
        f"{name}_scod_risk": float(lost.sum() / max(1, accept.sum())),
    }


BANDED = ("coverage", "risk", "cost_multiple")
"""What has bands over budgets."""


def _with_bands(searches: Sequence[list[dict[str, Any]]], drawn: np.ndarray, level: float) -> list[dict[str, Any]]:
    """Means over cascades, with bands that hold for all budgets at once.

    The policies were chosen on other examples, so that their estimates on the test split are not those of the best of many. What
    is left is that there are several: estimate ± q · se, q the quantile of max_budgets |replicate − estimate|/se.
    """
    replicates = [[row.pop("test_replicates") for row in rows] for rows in searches]
    means = _mean_rows(searches)
    for what in BANDED if means else ():
        rows = []
        for i in range(len(means)):
            values = np.array([search[i][f"test_{what}"] for search in searches])
            rows.append(resampling.crossed(values, np.stack([one[i][what] for one in replicates]), drawn))
        estimate, error = (
            np.array(column) for column in zip(*((d.estimate, np.std(d.replicates)) for d in rows), strict=True)
        )
        away = np.abs(np.stack([d.replicates for d in rows]) - estimate[:, None])
        scaled = np.divide(away, error[:, None], out=np.zeros_like(away), where=error[:, None] > 0)
        q = np.quantile(np.nanmax(scaled, axis=0), level) if np.isfinite(scaled).any() else math.nan
        for row, centre, se in zip(means, estimate, error, strict=True):
            row[f"test_{what}_band"] = [float(centre - q * se), float(centre + q * se)]
    return means


def _mean_rows(rows_of_each: Sequence[Sequence[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Row by row the mean over cascades for which there is a number; what is no number is that of the first."""
    return [
        {key: _mean([row[key] for row in rows]) if isinstance(rows[0][key], float) else rows[0][key] for key in rows[0]}
        for rows in zip(*rows_of_each, strict=True)
    ]


def _mean(values: Sequence[float]) -> float:
    there = [value for value in values if not math.isnan(value)]
    return float(np.mean(there)) if there else math.nan
