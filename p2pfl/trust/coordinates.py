"""Rules that look at one coordinate at a time: median, trimmed mean, mean around the median.

`n` rows of `d` parameters.  All three sort each coordinate and average a window of the sorted values; they
differ in which.  A row's share is how much of the result came from it, as the mean over coordinates of
1/(values in the window) where its own value lies in the window; equal values share alike.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from p2pfl.trust.gram import Floats, Rows, Vector, differences

__all__ = ["Window", "Averaged", "middle", "trimmed", "around_median", "average_window"]

# Given the sorted values of each coordinate of a block, (w, n): the windows' means and their ends, (w,) each.
Window: TypeAlias = Callable[[NDArray[Any]], tuple[NDArray[Any], NDArray[Any], NDArray[Any]]]

# Coordinates sorted at a time: 50 rows of them and their transpose stay in the second-level cache.  One
# coordinate's values must lie side by side for numpy to sort them with vector instructions: 1e6 times 50
# take .09 s so, .26 s along the first axis.
_WIDTH = 2**12


@dataclass(frozen=True, slots=True, kw_only=True)
class Averaged:
    """`vector` (d,) float32 and the rows' `shares` (n,), which sum to 1, or are 0 where not asked for."""

    vector: Vector
    shares: Floats


def middle(n: int) -> Window:
    """The median: the middle value, or the mean of the two middle ones."""
    return trimmed(n, (n - 1) // 2)


def trimmed(n: int, f: int) -> Window:
    """The mean without the f smallest and f largest.  n > 2f."""
    divisor = np.float32(n - 2 * f)
    ones = np.ones(n - 2 * f, np.float32)

    def window(ordered: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        kept = ordered[:, f : n - f]
        # A product, because BLAS adds along rows three times as fast as numpy.
        return kept @ ones / divisor, kept[:, 0], kept[:, -1]

    return window


def around_median(n: int, keep: int) -> Window:
    """The mean of the `keep` values nearest the median; of two equally far, the smaller."""

    def window(ordered: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        centre = ordered[:, (n - 1) // 2 : n // 2 + 1].mean(axis=1, dtype=np.float64)[:, None]
        reach = np.maximum(centre - ordered[:, : n - keep + 1], ordered[:, keep - 1 :] - centre)
        first = reach.argmin(axis=1)[:, None]
        kept = np.take_along_axis(ordered, first + np.arange(keep), axis=1)
        return kept.mean(axis=1, dtype=np.float64), kept[:, 0], kept[:, -1]

    return window


def average_window(
    rows: Rows, window: Window, *, mixing: Floats | None = None, wide: bool = False, explain: bool = False
) -> Averaged | None:
    """The window's mean of every coordinate of the rows, or None when a value is not finite.

    mixing: (k, n), rows sum to 1; the window is then of mixing @ rows, and shares are of those k.
    O(nd log n), or O(knd) with a mixing.
    """
    # A product in float32 is as good as its terms are small.
    point = None if mixing is None else rows[0]
    weights = None if mixing is None else mixing.astype(np.float64 if wide else np.float32)
    k, d = len(rows) if mixing is None else len(mixing), len(rows[0])
    vector, shares = np.empty(d, np.float32), np.zeros(k)
    with np.errstate(all="ignore"):
        for columns, block in differences(rows, point, wide=wide, width=_WIDTH):
            values = block if weights is None else weights @ block
            ordered = values.T.copy()
            ordered.sort(axis=1)
            mean, low, high = window(ordered)
            ends = ordered[:, 0] + ordered[:, -1]
            if not (np.isfinite(ends).all() and np.isfinite(mean).all()):
                return None
            vector[columns] = mean if point is None else mean + point[columns]
            if explain:
                inside = (values >= low) & (values <= high)
                shares += (inside / inside.sum(axis=0)).sum(axis=1)
    if explain:
        shares = shares / d if d else np.full(k, 1.0 / k)
    return Averaged(vector=vector, shares=shares)
