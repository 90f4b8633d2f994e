"""The kernels compiled by numba, the extra `sim`, which compiled_fit.py imports.

One function passes over rows: it fits a row, mixes it and adds the step while the row is in the cache.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from p2pfl.gossip.mixing import Floats, Vectors
from p2pfl.learn.philox import key_of

from .compiled_fit import backward, compiled, shuffle
from .kernels import Drill, Links, Rows

__all__ = ["Compiled"]

_ZERO = np.float32(0)


def _mix(X: Any, i: int, links: Links, out: Any) -> None:
    """What row i keeps and takes, into `out`, (d,)."""
    n, d = X.shape
    me = X[i]
    keep = links.own[i if len(links.own) > 1 else 0]
    if len(links.offsets) == 1:
        part, other = links.weights[0], X[(i - links.offsets[0]) % n]
        for j in range(d):
            out[j] = keep * me[j] + part * other[j]
        return
    for j in range(d):
        out[j] = keep * me[j]
    if len(links.common):
        for j in range(d):
            out[j] += links.common[j]
    for at in range(len(links.offsets)):
        part, other = links.weights[at], X[(i - links.offsets[at]) % n]
        for j in range(d):
            out[j] += part * other[j]
    if len(links.starts):
        for e in range(links.starts[i], links.starts[i + 1]):
            part, other = links.weights[e], X[links.senders[e]]
            for j in range(d):
                out[j] += part * other[j]


_mix_c = compiled(_mix)


def _blend(X: Any, Y: Any, lo: int, hi: int, links: Links) -> None:
    for i in range(lo, hi):
        _mix_c(X, i, links, Y[i])


_blend_c = compiled(_blend)


def _advance(
    X: Any,
    Y: Any,
    lo: int,
    hi: int,
    links: Links,
    scale: Any,
    gain: Any,
    drill: Drill,
    rows: Rows,
    rate: Any,
    k0: Any,
    k1: Any,
    number: int,
    losses: Any,
) -> None:
    d = X.shape[1]
    k, o, most = drill.layers[0], drill.layers[-1], min(drill.batch_size, rows.table.shape[1])
    hidden = drill.layers[1:-1].sum()
    z, theta = np.empty(d, np.float32), np.empty(d, np.float32)
    g, v = np.empty(d, np.float32), np.empty(d, np.float32)
    flat_x, yb, top = np.empty(most * k, np.float32), np.empty(most, np.int64), np.empty(most, np.float32)
    flat_Z, flat_P = np.empty(most * o, np.float32), np.empty(most * o, np.float32)
    bits = np.empty(most * o, np.int32)
    A = np.empty((2, most * (hidden + o)), np.float32)
    order = np.empty(rows.table.shape[1], np.int64)
    for i in range(lo, hi):
        count = rows.counts[i]
        b = min(drill.batch_size, count)
        xb, Z, P = flat_x[: b * k].reshape(b, k), flat_Z[: b * o].reshape(o, b), flat_P[: b * o].reshape(o, b)
        me, factor = X[i], scale[i]
        for j in range(d):
            z[j] = me[j] * factor
            theta[j] = z[j]
        v[:] = _ZERO
        loss, epoch, at = 0.0, 0, count
        for _ in range(drill.steps):
            for r in range(b):
                if at == count:
                    if b < count:
                        shuffle(order[:count], epoch, rows.ids[i], number, k0, k1)
                    else:
                        for j in range(count):
                            order[j] = j
                    epoch += 1
                    at = 0
                row = rows.table[i, order[at]]
                at += 1
                yb[r] = rows.y[row]
                one, mine = rows.x[row], xb[r]
                for f in range(k):
                    mine[f] = one[f]
            loss += backward(theta, g, drill, xb, yb, A, Z, P, bits[: b * o], top)
            for j in range(d):
                v[j] = drill.momentum * v[j] + g[j] + drill.decay * theta[j]
                theta[j] -= rate * v[j]
        # A sum of zeros, unless something is infinite or NaN.
        odd = _ZERO
        for j in range(d):
            odd += theta[j] * _ZERO
        out = Y[i]
        _mix_c(X, i, links, out)
        if odd == _ZERO:
            more = gain[i]
            for j in range(d):
                out[j] += more * (theta[j] - z[j])
            losses[i] = loss / max(drill.steps, 1)
        else:
            losses[i] = np.nan


_advance_c = compiled(_advance)


def _total(X: Any, lo: int, hi: int, scale: Any) -> Any:
    out = np.zeros(X.shape[1], np.float64)
    for i in range(lo, hi):
        one, factor = X[i], np.float64(scale[i])
        for j in range(len(out)):
            out[j] += factor * one[j]
    return out


_total_c = compiled(_total)


def _spread(X: Any, lo: int, hi: int, scale: Any, mean: Any) -> Any:
    found = 0.0
    for i in range(lo, hi):
        one, factor = X[i], np.float64(scale[i])
        for j in range(len(mean)):
            gap = factor * one[j] - mean[j]
            found += gap * gap
    return found


_spread_c = compiled(_spread)


class Compiled:
    """Kernels of kernels.py, compiled when first called and kept on disk for the next process."""

    name = "numba"

    def make(self, n: int, d: int) -> Vectors:
        """A matrix (n, d) with nothing in it yet: the kernel gives its memory when a row is first written."""
        return np.empty((n, d), np.float32)

    def fill(self, X: Vectors, lo: int, hi: int, weight: Floats, theta: Floats) -> None:
        """Let rows lo..hi-1 be their weight times `theta`."""
        np.multiply(weight[lo:hi, None], theta, out=X[lo:hi], casting="same_kind")

    def take(self, X: Vectors, peers: NDArray[np.integer]) -> Vectors:
        """A copy of some rows."""
        found: Vectors = X[peers]
        return found

    def advance(
        self,
        X: Vectors,
        Y: Vectors,
        lo: int,
        hi: int,
        links: Links,
        scale: NDArray[np.float32],
        gain: NDArray[np.float32],
        drill: Drill,
        rows: Rows,
        rate: float,
        seed: int,
        number: int,
        losses: NDArray[np.float32],
    ) -> None:
        """A training round of rows lo..hi-1."""
        k0, k1 = (np.uint64(word) for word in key_of(seed))
        _advance_c(
            X, Y, lo, hi, links, scale, gain, drill, rows, np.float32(rate), k0, k1, number, losses
        )  # fmt: skip

    def blend(self, X: Vectors, Y: Vectors, lo: int, hi: int, links: Links) -> None:
        """A round of rows lo..hi-1 that only mixes."""
        _blend_c(X, Y, lo, hi, links)

    def total(self, X: Vectors, lo: int, hi: int, scale: NDArray[np.float32]) -> Floats:
        """The sum of the models of rows lo..hi-1, (d,)."""
        found: Floats = _total_c(X, lo, hi, scale)
        return found

    def spread(self, X: Vectors, lo: int, hi: int, scale: NDArray[np.float32], mean: Floats) -> float:
        """The sum of their squared distances from `mean`."""
        return float(_spread_c(X, lo, hi, scale, mean))
