"""Selective classification group by group: who is accepted, and at which risk.

The caller says what a group is. With `group=label` it is the true class and the report is class-conditional; with
`group=predicted_class(logits)` it is the predicted class and the report is prediction-conditional; or it is any attribute of
the inputs. One threshold for all rarely treats groups alike: a risk that falls on average may rise in a group.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from array_api_compat import array_namespace, is_jax_array, is_numpy_namespace

from sc_jax.ops.areas import aurc
from sc_jax.ops.detection import failure_auroc
from sc_jax.ops.ranking import Array, nan_if_nan, share
from sc_jax.ops.risk_coverage import risk_at_coverage, threshold_at_coverage
from sc_jax.ops.targets import Target


class GroupReport(NamedTuple):
    """One row for each of g groups; counts are integers, losses too where they are 0/1 errors.

    Attributes:
      group: [g] the labels of the groups.
      n, loss: [g] samples, and their total loss: the number of errors.
      error: [g] loss / n.
      aurc: [g] of the group alone.
      failure_auroc: [g] of the group alone; NaN where all are right or all are wrong, and for soft losses.
      risk_at_coverage: [g] risk of the ⌈c·n⌉ most confident *of the group*, expected over tie orders.
      threshold: [] the global threshold, one for all groups.
      accepted, accepted_loss: [g] samples that it accepts, and their total loss.
      coverage: [g] accepted / n.
      selective_risk: [g] accepted_loss / accepted; NaN where nothing is accepted.
      reference_risk: [g] the selective risk had the same errors and right predictions been accepted without regard to group,
        see `group_report`; NaN for soft losses.
    """

    group: Array
    n: Array
    loss: Array
    error: Array
    aurc: Array
    failure_auroc: Array
    risk_at_coverage: Array
    threshold: Array
    accepted: Array
    accepted_loss: Array
    coverage: Array
    selective_risk: Array
    reference_risk: Array

    def worst(self) -> dict[str, tuple[Array, Array]]:
        """By each quantity the group that fares worst and its value: the largest risk, the smallest coverage or AUROC.

        Groups for which it is NaN are passed over; of equals the first. If it is NaN for all, so is the value, and the label
        means nothing. The worst of many small groups is partly the unluckiest.
        """
        xp = array_namespace(self.error)
        largest = ("error", "aurc", "risk_at_coverage", "selective_risk")
        worst = {}
        for name in (*largest, "failure_auroc", "coverage"):
            value = getattr(self, name)
            badness = value if name in largest else -value
            i = xp.argmax(xp.where(xp.isnan(value), -xp.inf, badness))[None]
            worst[name] = xp.take(self.group, i)[0], xp.take(value, i)[0]
        return worst


def group_report(
    score: Array,
    loss: Array,
    group: Array,
    coverage: Target = 0.9,
    *,
    groups: int | None = None,
    weight: Array | None = None,
    where: Array | None = None,
) -> GroupReport:
    """Error, ranking, coverage and selective risk of each group.

    The global threshold t is the largest whose `score >= t` accepts ⌈c·n⌉ of all samples or more. It accepts a block of tied
    samples whole, as any threshold must, so that what a group gets is what it would get in use, and its counts are integers;
    with ties more than ⌈c·n⌉ may be accepted in all. (There is no expectation over tie orders here: how many of a group
    would be accepted is random then, and the expected risk not the ratio of expectations.)

    `reference_risk` tells what the score does to a group from what its error rate does: if the same numbers of right and
    wrong predictions were accepted, spread over the groups in proportion to theirs, a group with W errors and R right ones would
    have the risk W·I / (W·I + R·C), with I and C the shares of all errors and of all right predictions that are accepted. A
    group above it is served worse by the score than others.

    Args:
      score: [n]; loss: [n], non-negative.
      group: [n], what each sample is counted with: its true class, its predicted class, an attribute. Integers, or on the host
        anything that sorts.
      coverage: c in (0, 1], of all samples for the global threshold, of each group's for `risk_at_coverage`.
      groups: report on groups 0 … groups − 1, whether they occur or not; by default on those that occur. Needed under `jit`.
      weight: [n]; where: bool [n].

    Returns:
      A `GroupReport`; a group without samples has counts of 0, and NaN for the rest.

    Raises:
      ValueError: shapes disagree; a group outside 0 … groups − 1 (on the host); coverage outside (0, 1]; see `rank` for the rest.

    Source: Jones, Sagawa, Koh, Kumar & Liang, "Selective classification can magnify disparities across groups", ICLR 2021
    (groups under one threshold, the group-agnostic reference).

    >>> score, error = np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.4]), np.array([0, 0, 1, 0, 1, 0])
    >>> report = group_report(score, error, np.array(["a", "a", "b", "a", "b", "b"]), coverage=0.5)
    >>> report.accepted.tolist(), report.coverage.round(4).tolist(), report.selective_risk.tolist()
    ([2, 1], [0.6667, 0.3333], [0.0, 1.0])
    >>> [str(report.worst()[name][0]) for name in ("error", "coverage")]
    ['b', 'b']
    """
    xp = array_namespace(score, loss, group)
    if not score.shape == loss.shape == group.shape:
        shapes = ", ".join(str(tuple(array.shape)) for array in (score, loss, group))
        raise ValueError(f"score, loss and group must all be [n]; they are {shapes}")
    if weight is not None and weight.shape != score.shape:
        raise ValueError(f"weight must be [n] = {tuple(score.shape)}; it is {tuple(weight.shape)}")
    threshold = threshold_at_coverage(score, coverage, weight=weight, where=where)
    labels, index = _indexed(xp, group, groups, where)
    hard = _hard(xp, loss, where)
    rows, totals = _each_group(xp, index, labels.shape[0], score, loss, weight, where)

    accept = xp.astype(score, threshold.dtype) >= threshold
    one = _counts(xp, weight, index)
    losses = xp.astype(loss != 0, index.dtype) if hard else _real(loss)
    weighted = losses * one if losses.dtype == one.dtype else _real(losses) * _real(one)
    n, wrong = totals(one), totals(weighted)
    accepted, accepted_wrong = (totals(xp.where(accept, x, xp.zeros_like(x))) for x in (one, weighted))
    nothing = share(0 * _real(n), 0 * _real(n))
    report = GroupReport(
        group=labels,
        n=n,
        loss=wrong,
        error=_share(wrong, n),
        aurc=rows(aurc),
        failure_auroc=rows(failure_auroc) if hard else nothing,
        risk_at_coverage=rows(functools.partial(risk_at_coverage, coverage=coverage)),
        threshold=threshold,
        accepted=accepted,
        accepted_loss=accepted_wrong,
        coverage=_share(accepted, n),
        selective_risk=_share(accepted_wrong, accepted),
        reference_risk=_reference(n, wrong, accepted, accepted_wrong) if hard else nothing,
    )
    by_threshold = ("coverage", "selective_risk", "reference_risk")
    return report._replace(**{name: nan_if_nan(score, getattr(report, name), where) for name in by_threshold})


def _indexed(xp: Any, group: Array, groups: int | None, where: Array | None) -> tuple[Array, Array]:
    """The labels [g], and for each sample the place of its group among them; g or beyond for what `where` leaves out."""
    if groups is None:
        labels = xp.unique_values(group if where is None else group[where])
        return labels, _left_out(xp, xp.searchsorted(labels, group), labels.shape[0], where)
    if is_numpy_namespace(xp):
        counted = group if where is None else group[where]
        if ((counted < 0) | (counted >= groups)).any():
            raise ValueError(f"groups = {groups}: the groups must lie in 0 … {groups - 1}")
    labels = xp.arange(groups)
    return labels, _left_out(xp, group, groups, where)


def _left_out(xp: Any, index: Array, groups: int, where: Array | None) -> Array:
    index = xp.astype(index, xp.int64 if is_numpy_namespace(xp) else xp.int32)
    return index if where is None else xp.where(xp.asarray(where, dtype=xp.bool), index, groups)


def _hard(xp: Any, loss: Array, where: Array | None) -> bool:
    """Whether losses are errors: known by value on the host, by dtype on devices."""
    if not is_numpy_namespace(xp):
        return xp.isdtype(loss.dtype, ("bool", "integral"))
    counted = loss if where is None else loss[where]
    return bool(((counted == 0) | (counted == 1)).all())


def _counts(xp: Any, weight: Array | None, index: Array) -> Array:
    """Weights [n]; on the host whole ones as integers."""
    if weight is None:
        return xp.ones(index.shape, dtype=index.dtype)
    whole = xp.isdtype(weight.dtype, ("bool", "integral"))
    whole = whole or (is_numpy_namespace(xp) and (weight == np.floor(weight)).all())
    return xp.astype(weight, index.dtype) if whole else weight


def _real(x: Array) -> Array:
    """float64; on JAX the dtype of the values, or float32 if that is less."""
    xp = array_namespace(x)
    return xp.astype(x, xp.result_type(x.dtype, xp.float32) if is_jax_array(x) else xp.float64)


def _share(part: Array, whole: Array) -> Array:
    return share(_real(part), _real(whole))


def _reference(n: Array, wrong: Array, accepted: Array, accepted_wrong: Array) -> Array:
    """The risk of each group at the overall rates of acceptance of wrong and of right predictions."""
    xp = array_namespace(n)

    def at_overall_rate(accepted: Array, total: Array) -> Array:
        rate = _share(xp.sum(accepted), xp.sum(total))
        return _real(total) * xp.where(xp.isnan(rate), xp.zeros_like(rate), rate)

    bad = at_overall_rate(accepted_wrong, wrong)
    return share(bad, bad + at_overall_rate(accepted - accepted_wrong, n - wrong))


def _each_group(
    xp: Any, index: Array, groups: int, score: Array, loss: Array, weight: Array | None, where: Array | None
) -> tuple[Callable[[Callable[..., Array]], Array], Callable[[Array], Array]]:
    """What maps a metric to its values for each group, and what maps [n] to the totals of each group.

    On the host a group is a selection of samples; on devices, where shapes must not depend on values, a row of weights.
    """
    if is_numpy_namespace(xp):
        order = np.argsort(index, kind="stable")
        bounds = np.searchsorted(index[order], np.arange(groups + 1))
        members = [order[start:end] for start, end in itertools.pairwise(bounds)]

        def values(metric: Callable[..., Array]) -> Array:
            return np.array(
                [
                    metric(score[rows], loss[rows], weight=None if weight is None else weight[rows])
                    if len(rows)
                    else np.nan
                    for rows in members
                ],
                np.float64,
            )

        def totals(x: Array) -> Array:
            return np.array([x[rows].sum() for rows in members], np.int64 if x.dtype.kind in "iu" else np.float64)

        return values, totals
    mine = index[None, :] == xp.arange(groups, dtype=index.dtype)[:, None]
    one = xp.ones(score.shape, dtype=xp.int32) if weight is None else weight
    each = xp.where(mine, one[None, :], xp.zeros_like(one)[None, :])

    def totals(x: Array) -> Array:
        return xp.sum(xp.where(mine, x[None, :], xp.zeros_like(x)[None, :]), axis=-1)

    return lambda metric: metric(score, loss, weight=each, where=where), totals
