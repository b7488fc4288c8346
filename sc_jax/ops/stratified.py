"""A difference between two groups at equal value of a third quantity."""

from __future__ import annotations

import numpy as np


def difference_at_equal(
    x: np.ndarray,
    value: np.ndarray,
    group: np.ndarray,
    *,
    bins: int = 20,
    standardized: bool = False,
    weight: np.ndarray | None = None,
) -> np.ndarray:
    """Mean of `value` in the group minus out of it, at equal x: a fit with a line in x of its own for each bin of x.

    In each bin of x (equal mass, edges from the unweighted sample) value and group are both adjusted for a line in x, since
    within a bin the two groups still differ in x; then β = Σ_b S_gv / Σ_b S_gg over the adjusted group g and value v.
    Bins in which the groups do not overlap have S_gg = 0 and carry no weight.

    Args:
      x: [n], finite; value: [n]; group: bool [n].
      bins: number of bins of x.
      standardized: divide by the standard deviation of `value` around the lines, √(Σ_b S_vv / Σ w).
      weight: [..., n], 1 for all by default.

    Returns:
      [...], in the unit of `value` (or of its spread at equal x); NaN if the groups overlap nowhere.

    Raises:
      ValueError: shapes disagree, or x is not finite.

    Source: partial regression (Frisch & Waugh, 1933; Lovell, 1963) with bins as strata.

    >>> x = np.linspace(0, 1, 1000)
    >>> group = np.arange(1000) % 3 == 0
    >>> round(float(difference_at_equal(x, 5 * x + 2 * group, group)), 9)
    2.0
    """
    if not (x.ndim == 1 and x.shape == value.shape == group.shape):
        raise ValueError(f"x, value and group must all be [n]; they are {x.shape}, {value.shape} and {group.shape}")
    if not np.isfinite(x).all():
        raise ValueError("x must be finite")
    stratum = np.searchsorted(np.quantile(x, np.arange(1, bins) / bins), x)
    weight = np.ones(len(x)) if weight is None else weight
    with_value = with_group = spread = total = 0.0
    for b in range(bins):
        members = np.flatnonzero(stratum == b)
        if len(members) == 0:
            continue
        columns = [column[members].astype(np.float64) for column in (x, value, group)]
        centred = [column - column.mean() for column in columns]
        centred[0] /= (
            np.abs(centred[0]).max() or 1.0
        )  # the fit does not depend on the unit of x; its tolerance must not
        products = [np.ones(len(members)), *centred]
        products += [centred[i] * centred[j] for i, j in ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2))]
        sums = weight[..., members].astype(np.float64) @ np.stack(products, axis=-1)
        w, x1, v1, g1, xx, xv, xg, vv, vg, gg = np.moveaxis(sums, -1, 0)
        total = total + w
        w = np.maximum(w, 1e-300)
        xx, xv, xg, vg, gg = xx - x1 * x1 / w, xv - x1 * v1 / w, xg - x1 * g1 / w, vg - v1 * g1 / w, gg - g1 * g1 / w
        vv = vv - v1 * v1 / w
        varies = np.where(xx > 1e-12, xx, np.inf)
        slope = xg / varies
        with_value = with_value + vg - slope * xv
        with_group = with_group + gg - slope * xg
        spread = spread + vv - xv * xv / varies
    overlap = np.where(with_group > 1e-9, with_group, np.nan)
    unit = np.sqrt(np.maximum(spread, 0) / total) if standardized else 1.0
    return with_value / overlap / np.where(unit > 0, unit, np.nan)
