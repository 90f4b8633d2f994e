"""Student's t: how far the mean of a few seeds may be off."""

from __future__ import annotations

import math
from collections.abc import Sequence

from p2pfl.errors import LocalError

__all__ = ["cdf", "interval", "quantile"]

# Halvings of an interval of float64 between 0 and 1e17 until its ends are neighbours.
_BISECTIONS = 120


def cdf(t: float, freedom: int) -> float:
    """The probability that Student's t with `freedom` degrees, an integer >= 1, is at most `t`.

    Exact, by the finite sums for integer degrees.  O(freedom).  Source: Abramowitz & Stegun 1964, 26.7.3 and
    26.7.4, with theta = arctan(t / sqrt(freedom)).

    >>> round(cdf(1.0, 1), 12)
    0.75
    """
    if freedom < 1:
        raise LocalError(f"Student's t has {freedom} degrees of freedom; it takes at least two values")
    theta = math.atan2(t, math.sqrt(freedom))
    sine, cosine_2 = math.sin(theta), math.cos(theta) ** 2
    odd = freedom % 2
    term = math.cos(theta) if odd else 1.0
    terms = []
    for k in range(1 + odd, freedom, 2):
        terms.append(term)
        term *= k / (k + 1) * cosine_2
    inside = (2 / math.pi) * (theta + sine * math.fsum(terms)) if odd else sine * math.fsum(terms)
    return (1 + inside) / 2


def quantile(p: float, freedom: int) -> float:
    """The t that Student's t with `freedom` degrees stays below with probability `p`, 0.5 <= p < 1.

    By bisection of `cdf`.

    >>> round(quantile(0.975, 4), 3)
    2.776
    """
    if not 0.5 <= p < 1:
        raise LocalError(f"the probability {p} is not 0.5 or more and below 1")
    low, high = 0.0, 1.0
    while cdf(high, freedom) < p and high < 1e17:
        low, high = high, 2 * high
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if cdf(middle, freedom) < p else (low, middle)
    return (low + high) / 2


def interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """The interval in which the mean behind two or more normal `values` lies with `confidence`."""
    n = len(values)
    mean = math.fsum(values) / n
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / max(1, n - 1))
    half = quantile((1 + confidence) / 2, n - 1) * deviation / math.sqrt(n)
    return mean - half, mean + half
