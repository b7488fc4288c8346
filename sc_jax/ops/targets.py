"""Targets of risk and coverage, read as decimals and compared with whole counts exactly."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from array_api_compat import array_namespace, is_numpy_namespace

from sc_jax.ops.ranking import Array

Target = float | str | Fraction | tuple[int, int]
"""A share: a number or a string, read as the decimal it is written as, a fraction, or a pair (numerator, denominator)."""


def as_fraction(target: Target) -> Fraction:
    """A target read as the decimal it is written as, so that 1 error in 100 meets 0.01; pairs of integers are fractions.

    >>> as_fraction(0.07), as_fraction((1, 3))
    (Fraction(7, 100), Fraction(1, 3))
    """
    return Fraction(*target) if isinstance(target, tuple) else Fraction(str(target))


def floor_of_share(share: Fraction, count: Array) -> Array:
    """⌊share · count⌋ of whole counts [...], exactly: for counts up to 2⁴⁰ in 64 bits, 2²⁰ in 32; share · count of real ones.

    Up to such a bound the share may give way to the largest fraction below it with a denominator within the bound; then
    the product, in two limbs, does not overflow.
    """
    xp = array_namespace(count)
    if not xp.isdtype(count.dtype, "integral"):
        limit = 2**40 if xp.finfo(count.dtype).bits == 64 else 2**20
        counted = (xp.floor(count) == count) & (count <= limit)  # held as floats
        counts = xp.astype(xp.where(counted, count, xp.zeros_like(count)), xp.int64 if limit > 2**20 else xp.int32)
        return xp.where(counted, xp.astype(floor_of_share(share, counts), count.dtype), float(share) * count)
    if is_numpy_namespace(xp) and abs(share.numerator) * int(np.max(count, initial=0)) < 2**63 > share.denominator:
        return share.numerator * count // share.denominator
    limb = 2**20 if xp.iinfo(count.dtype).bits == 64 else 2**10
    most = int(xp.iinfo(count.dtype).max)
    whole, part = min(share // 1, most), share % 1
    near = part.limit_denominator(limb**2)
    if near > part:  # its left neighbour a/b among these fractions: a · near.denominator = b · near.numerator − 1
        inverse = pow(near.numerator, -1, near.denominator)
        b = limb**2 - (limb**2 - inverse) % near.denominator
        near = Fraction((b * near.numerator - 1) // near.denominator, b)
    a, b = near.numerator, near.denominator
    high, low = count % b // limb, count % b % limb
    floor = whole * count + count // b * a + high * a // b * limb + (high * a % b * limb + low * a) // b
    if whole * limb**2 <= most:
        return floor
    return xp.where(count < most // whole, floor, most)  # more than that compares as the most there is


def within_share(part: Array, share: Fraction, count: Array) -> Array:
    """part ≤ share · count of whole numbers [...], as exactly as `floor_of_share`."""
    if is_numpy_namespace(array_namespace(part, count)) and part.dtype.kind == count.dtype.kind == "i":
        largest = max(1, int(np.max(count, initial=0)), int(np.max(part, initial=0)))
        if max(abs(share.numerator), share.denominator) * largest < 2**63:  # a division would take longer
            return part * share.denominator <= share.numerator * count
    return part <= floor_of_share(share, count)
