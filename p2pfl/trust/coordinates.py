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

__all__ = ["Window", "middle", "trimmed", "around_median", "average_window"]

# Given the sorted values of a block, (n, w): the mean of each window, (w,) float64, and its ends, (w,) each.
Window: TypeAlias = Callable[[NDArray[Any]], tuple[Floats, NDArray[Any], NDArray[Any]]]

# Coordinates sorted at a time: 50 rows of them stay in the second-level cache.
_WIDTH = 4096


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

    def window(values: NDArray[Any]) -> tuple[Floats, NDArray[Any], NDArray[Any]]:
        kept = values[f : n - f]
        return kept.mean(axis=0, dtype=np.float64), kept[0], kept[-1]

    return window


def around_median(n: int, keep: int) -> Window:
    """The mean of the `keep` values nearest the median; of two equally far, the smaller."""

    def window(values: NDArray[Any]) -> tuple[Floats, NDArray[Any], NDArray[Any]]:
        values = values.astype(np.float64)
        centre = values[(n - 1) // 2 : n // 2 + 1].mean(axis=0)
        reach = np.maximum(centre - values[: n - keep + 1], values[keep - 1 :] - centre)
        first = reach.argmin(axis=0)
        kept = np.take_along_axis(values, first + np.arange(keep)[:, None], axis=0)
        return kept.mean(axis=0), kept[0], kept[-1]

    return window


def average_window(
    rows: Rows, window: Window, *, mixing: Floats | None = None, wide: bool = False, explain: bool = False
) -> Averaged | None:
    """The window's mean of every coordinate of the rows, or None when a value is not finite.

    mixing: (k, n), rows sum to 1; the window is then of mixing @ rows, and shares are of those k.
    """
    point = rows[0] if mixing is not None else np.zeros_like(rows[0])
    weights = None if mixing is None else mixing.astype(np.float64 if wide else np.float32)
    vector = np.empty(len(point), np.float32)
    shares = np.zeros(len(rows) if mixing is None else len(mixing))
    with np.errstate(all="ignore"):
        for columns, block in differences(rows, point, wide=wide, width=_WIDTH):
            values = block if weights is None else weights @ block
            ordered = np.sort(values, axis=0)
            if not np.isfinite(ordered[[0, -1]]).all():
                return None
            mean, low, high = window(ordered)
            vector[columns] = mean + point[columns]
            if explain:
                inside = (values >= low) & (values <= high)
                shares += (inside / inside.sum(axis=0)).sum(axis=1)
    if explain:
        shares = shares / len(point) if len(point) else np.full(len(shares), 1.0 / len(shares))
    return Averaged(vector=vector, shares=shares)
