"""Distances and combinations of many long vectors, a block of coordinates at a time.

`n` rows of `d` parameters, n far below d.  Krum, the geometric median, clipping and nearest-neighbour mixing
need nothing of the rows but their mutual distances, and return a weighted sum of rows.  So each takes one
pass over the rows for distances, float64 algebra on (n, n), and one pass for the sum, with one block of
scratch.  Models lie close together and far from 0, where the textbook's |x|^2 + |y|^2 - 2xy loses
everything; so each block has a row near the others taken off before anything is multiplied.  A block is
float32, its products are added up in float64; `wide` makes blocks float64, for values whose squares do not
fit in float32.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Floats",
    "Rows",
    "Vector",
    "differences",
    "squares",
    "squares_to",
    "products",
    "mixed_squares",
    "combine",
]

Floats: TypeAlias = NDArray[np.float64]
Vector: TypeAlias = NDArray[np.float32]
# n arrays (d,), or one (n, d), which is faster where nothing is taken off.
Rows: TypeAlias = Sequence[Vector] | NDArray[np.float32]

# Elements of a block: 1 MiB of float32, of a second-level cache of 2.  50 x 1e6 took .080 s so, .086 s with
# half of it, .104 s with a fifth.
_BLOCK = 2**18
# Coordinates in a block at most: a float32 sum of more has errors that show in close distances.
_WIDTH = 2**13
# What is left for the point of a combination where shares sum to 1, but for their rounding to float32.
_ROUNDING = 1e-6
# Passes over the rows until the point taken off lies among them: the first may start at an outlier, the
# second at what an outlier hid, and each brings the offset down a thousandfold.
_PASSES = 3
# Rows of fewer elements in all are worked on in float64: that is within the time of the calls.
_SMALL = 2**14
# How much farther than its neighbours' distance the point taken off may lie: float32 products of vectors
# r long are wrong by 3e-7 r^2, which at r = 30 distances is 3e-4 of a squared distance.
_OFFSET = 30.0


def differences(
    rows: Rows, point: Vector | None, *, wide: bool = False, width: int = _WIDTH
) -> Iterator[tuple[slice, NDArray[Any]]]:
    """Blocks of rows - point, or of rows: a slice of the coordinates, and (n, w) float32, float64 if `wide`.

    The blocks are not to be written to, and share one buffer: use each before the next is asked for.
    Overflow warns as the caller has numpy set.
    """
    n, d = len(rows), len(rows[0])
    width = max(1, min(d, width, _BLOCK // max(1, n)))
    if isinstance(rows, np.ndarray) and point is None and not wide:
        for start in range(0, d, width):
            yield slice(start, min(start + width, d)), rows[:, start : start + width]
        return
    buffer = np.empty((n, width), np.float64 if wide else np.float32)
    for start in range(0, d, width):
        columns = slice(start, min(start + width, d))
        block = buffer[:, : columns.stop - start]
        near = None if point is None else point[columns].astype(buffer.dtype, copy=False)
        for row, out in zip(rows, block, strict=True):
            if near is None:
                out[:] = row[columns]
            else:
                np.subtract(row[columns], near, out=out)
        yield columns, block


def squares_to(rows: Rows, point: Vector, *, wide: bool = False) -> Floats:
    """Squared distances of the rows to `point`, (n,); not finite where a row is not, or float32 too narrow.

    O(nd).
    """
    total = np.zeros(len(rows))
    with np.errstate(all="ignore"):
        for _, block in differences(rows, point, wide=wide):
            total += np.vecdot(block, block)
    return total


def products(rows: Rows, point: Vector, *, wide: bool = False) -> tuple[Floats, Floats]:
    """Inner products of the rows with `point`, and with themselves, (n,) each; not finite as `squares_to`."""
    dots, total = np.zeros(len(rows)), np.zeros(len(rows))
    with np.errstate(all="ignore"):
        for columns, block in differences(rows, None, wide=wide):
            dots += block @ point[columns].astype(block.dtype)
            total += np.vecdot(block, block)
    return dots, total


def squares(rows: Rows, *, start: int = 0, wide: bool = False) -> Floats:
    """Squared distances of the rows to each other, (n, n), symmetric, 0 on the diagonal.

    start: the row taken off at first.  When it turns out to lie far from most, the most central row by the
    distances so found takes its place, and they are found again.   Not finite where a row is not, or
    float32 too narrow; if `start` is such a row, between all others.   O(n^2 d).
    """
    if len(rows) == 1:
        return np.zeros((1, 1))
    wide = wide or len(rows) * len(rows[0]) <= _SMALL
    for _ in range(_PASSES):
        others = np.delete(np.arange(len(rows)), start)
        among = np.zeros((len(others), len(others)))
        products = np.zeros((len(rows), len(rows)))
        with np.errstate(all="ignore"):
            for _, block in differences([rows[int(j)] for j in others], rows[start], wide=wide):
                among += block @ block.T
            products[np.ix_(others, others)] = among
            lengths = np.diagonal(products)
            between = np.maximum(lengths[:, None] + lengths - 2 * products, 0.0)
        between[start], between[:, start] = lengths, lengths
        np.fill_diagonal(between, np.where(np.isfinite(lengths), 0.0, np.nan))
        if not np.isfinite(between).all():
            break
        typical = np.median(between, axis=1)
        central = int(typical.argmin())
        if typical[start] <= _OFFSET**2 * typical[central]:
            break
        start = central
    return between


def mixed_squares(between: Floats, mixing: Floats) -> Floats:
    """Squared distances of the points mixing @ rows, (k, k), from those of the rows.

    mixing: (k, n), rows sum to 1, so that |a - b|^2 = -(a - b)' D (a - b) / 2 for any two of them.
    """
    half = -0.5 * (mixing @ between @ mixing.T)
    lengths = np.diagonal(half)
    mixed: Floats = np.maximum(lengths[:, None] + lengths - 2 * half, 0.0)
    np.fill_diagonal(mixed, 0.0)
    return mixed


def combine(rows: Rows, coefficients: Floats, point: Vector, *, wide: bool = False) -> Vector:
    """The sum of coefficients[j] * (rows[j] - point), plus point: (d,) float32.

    Rows with coefficient 0 have no part in it.   Within a few roundings of float32.   O(nd).
    """
    used = np.flatnonzero(coefficients)
    shares: NDArray[Any] = coefficients.astype(np.float64 if wide else np.float32)
    if used.size == 1 and shares[used[0]] == 1.0:
        return np.array(rows[int(used[0])])
    with np.errstate(all="ignore"):
        if isinstance(rows, np.ndarray) and not wide:
            rest = 1.0 - shares.sum(dtype=np.float64)
            if abs(rest) < _ROUNDING:
                shares[int(shares.argmax())] += np.float32(rest)
                return np.asarray(shares @ rows)
            return np.asarray(shares @ rows + np.float32(rest) * point)
        out = point.copy()
        if used.size:
            for columns, block in differences([rows[int(j)] for j in used], point, wide=wide):
                out[columns] += shares[used] @ block
    return out
