"""The kernels of a fused population, compiled by numba; without it they are plain.py's.

What a fit is, and what may differ in the last bit, is said in compiled_fits.py.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from p2pfl.gossip.mixing import Floats, Vectors
from p2pfl.learn.philox import key_of

from .compiled_fits import OPTIONS, add, learn, scratch
from .kernels import Drill, Links, Rows

__all__ = ["Compiled"]


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


_mix_c = numba.njit(**OPTIONS)(_mix)


def _blend(X: Any, Y: Any, lo: int, hi: int, links: Links) -> None:
    for i in range(lo, hi):
        _mix_c(X, i, links, Y[i])


_blend_c = numba.njit(**OPTIONS)(_blend)


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
    s = scratch(X.shape[1], drill, rows)
    for i in range(lo, hi):
        loss = learn(X[i], scale[i], i, drill.steps, drill, rows, rate, number, k0, k1, s)
        out = Y[i]
        _mix_c(X, i, links, out)
        if loss == loss and not add(out, gain[i], i, drill.steps, drill, rows, rate, s):
            _mix_c(X, i, links, out)
            loss = np.nan
        losses[i] = loss


_advance_c = numba.njit(**OPTIONS)(_advance)


def _total(X: Any, lo: int, hi: int, scale: Any) -> Any:
    out = np.zeros(X.shape[1], np.float64)
    for i in range(lo, hi):
        one, factor = X[i], np.float64(scale[i])
        for j in range(len(out)):
            out[j] += factor * one[j]
    return out


_total_c = numba.njit(**OPTIONS)(_total)


def _spread(X: Any, lo: int, hi: int, scale: Any, mean: Any) -> Any:
    found = 0.0
    for i in range(lo, hi):
        one, factor = X[i], np.float64(scale[i])
        for j in range(len(mean)):
            gap = factor * one[j] - mean[j]
            found += gap * gap
    return found


_spread_c = numba.njit(**OPTIONS)(_spread)


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
