"""Calibration errors by their definitions: loops over bins in exact fractions, rows repeated by their weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
from scipy.optimize import brentq
from scipy.stats import norm as gaussian


def bin_of(confidence: Sequence[float], bins: int, scheme: str) -> list[int]:
    """The bin of each confidence: the number of edges below it."""
    if scheme == "width":
        edges = [j / bins for j in range(1, bins)]
    else:
        ascending, n = sorted(confidence), len(confidence)
        edges = [ascending[math.ceil(Fraction(j * n, bins)) - 1] for j in range(1, bins)]
    return [sum(edge < c for edge in edges) for c in confidence]


def bin_members(confidence: Sequence[float], bins: int, scheme: str) -> list[list[int]]:
    """The places of the examples of each bin that is not empty."""
    index = bin_of(confidence, bins, scheme)
    members = [[i for i, b in enumerate(index) if b == which] for which in range(bins)]
    return [inside for inside in members if inside]


def mean(values: Sequence[Fraction]) -> Fraction:
    return sum(values, Fraction(0)) / len(values)


def calibration_error(
    confidence: Sequence[float], right: Sequence[int], bins: int, scheme: str, norm: int | str
) -> Fraction | float:
    """(Σ_b w_b |gap_b|^p)^(1/p), or the largest gap."""
    gaps, shares = [], []
    for inside in bin_members(confidence, bins, scheme):
        gaps.append(abs(mean([Fraction(int(right[i])) - Fraction(float(confidence[i])) for i in inside])))
        shares.append(Fraction(len(inside), len(confidence)))
    if norm == "max":
        return max(gaps)
    total = sum(w * gap**norm for w, gap in zip(shares, gaps, strict=True))
    return total if norm == 1 else float(total) ** (1 / norm)


def brier_decomposition(
    probabilities: np.ndarray, label: np.ndarray, bins: int, scheme: str, classwise: bool
) -> tuple[Fraction, ...]:
    """(reliability, resolution, uncertainty, within-bin variance − 2 covariance, Brier score)."""
    n, k = probabilities.shape
    reliability = resolution = uncertainty = within = total = Fraction(0)
    for c in range(k):
        p = [Fraction(float(value)) for value in probabilities[:, c]]
        y = [Fraction(int(value == c)) for value in label]
        base = mean(y)
        uncertainty += base * (1 - base)
        total += mean([(a - b) ** 2 for a, b in zip(p, y, strict=True)])
        stratified = probabilities[:, c] if classwise else probabilities.max(axis=1)
        for inside in bin_members(stratified.tolist(), bins, scheme):
            share = Fraction(len(inside), n)
            p_mean, y_mean = mean([p[i] for i in inside]), mean([y[i] for i in inside])
            reliability += share * (p_mean - y_mean) ** 2
            resolution += share * (y_mean - base) ** 2
            variance = mean([(p[i] - p_mean) ** 2 for i in inside])
            covariance = mean([(p[i] - p_mean) * (y[i] - y_mean) for i in inside])
            within += share * (variance - 2 * covariance)
    return reliability, resolution, uncertainty, within, total


def smoothed_area(confidence: np.ndarray, right: np.ndarray, sigma: float) -> float:
    """∫₀¹ |Σ_i (right_i − c_i)/n · K_σ(t, c_i)| dt from the roots of the integrand and its antiderivative."""
    shifts = 2 * np.arange(-6, 7)
    images = np.concatenate([(c + shifts, -c + shifts) for c in confidence]).reshape(len(confidence), -1)
    residual = (right - confidence) / len(confidence)

    def density(t: float) -> np.ndarray:
        return residual @ gaussian.pdf(np.subtract.outer(np.asarray(t), images), scale=sigma).sum(axis=-1).T

    def primitive(t: np.ndarray) -> np.ndarray:
        return residual @ gaussian.cdf(np.subtract.outer(t, images), scale=sigma).sum(axis=-1).T

    t = np.linspace(0, 1, 1501)
    value = density(t)
    crossing = np.flatnonzero(value[1:] * value[:-1] < 0)
    roots = [brentq(lambda at: float(density(at)), t[i], t[i + 1], xtol=1e-13) for i in crossing]
    ends = np.array(sorted([0.0, *roots, *t[value == 0], 1.0]))
    return float(np.abs(np.diff(primitive(ends))).sum())


def smooth_ece(confidence: np.ndarray, right: np.ndarray) -> float:
    """The σ that equals its smoothed area."""
    return brentq(lambda sigma: smoothed_area(confidence, right, sigma) - sigma, 1e-3, 1, xtol=1e-9)
