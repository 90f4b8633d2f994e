"""Quantiles of the Beta distribution: what reputation is read from, without a statistics library.

I_x(a, b) is the regularised incomplete beta function: the probability that a Beta(a, b) variable is below x.
"""

from __future__ import annotations

import math

__all__ = ["cdf", "quantile"]

# Terms of the continued fraction: it needs O(sqrt(max(a, b))), about 60 for a sum of 1000.
_TERMS = 500
# Newton steps, each kept inside a bracket that shrinks; about six are used.
_STEPS = 100
# Where two successive values are equal for our purposes: an absolute error of a probability.
_TINY = 1e-14


def cdf(x: float, a: float, b: float) -> float:
    """I_x(a, b), for 0 <= x <= 1 and a, b > 0.

    Source: Lentz's method on the continued fraction 26.5.8 of Abramowitz and Stegun 1964, with the symmetry
    26.5.2 where it converges slowly.

    >>> round(cdf(0.5, 2.0, 2.0), 12)
    0.5
    """
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):
        return 1.0 - cdf(1 - x, b, a)
    front = math.exp(a * math.log(x) + b * math.log1p(-x) - _log_beta(a, b)) / a
    d = 1 / _nonzero(1 - (a + b) * x / (a + 1))
    c, value = 1.0, d
    for m in range(1, _TERMS):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        before = value
        for term in (even, odd):
            d = 1 / _nonzero(1 + term * d)
            c = _nonzero(1 + term / c)
            value *= c * d
        if abs(value - before) <= _TINY * abs(value):
            break
    return front * value


def quantile(p: float, a: float, b: float) -> float:
    """The x with I_x(a, b) = p, for 0 < p < 1 and a, b > 0, to about 1e-12.

    Newton's method on I_x - p, whose derivative is the density, held in a bracket by bisection.

    >>> round(quantile(0.1, 2.0, 1.0), 12) == round(0.1**0.5, 12)
    True
    """
    low, high, x = 0.0, 1.0, a / (a + b)
    for _ in range(_STEPS):
        error = cdf(x, a, b) - p
        if error > 0:
            high = x
        else:
            low = x
        density = math.exp((a - 1) * math.log(x) + (b - 1) * math.log1p(-x) - _log_beta(a, b))
        guess = x - error / density if density > 0 else low
        if not low < guess < high:
            guess = (low + high) / 2
        if abs(guess - x) <= _TINY or guess in (0.0, 1.0):
            break
        x = guess
    return x


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)


def _nonzero(value: float) -> float:
    # Lentz's method divides by it.
    return value if abs(value) > 1e-300 else 1e-300
