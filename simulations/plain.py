"""The kernels of a fused population in numpy, for where numba is not installed: slower, equal to rounding.

Local training is that of learn/stacked.py on pieces of peers with equally large batches; `m` of them at once.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from p2pfl.gossip.mixing import Floats, Indices, Vectors
from p2pfl.learn.descent import descend
from p2pfl.learn.options import OptimizerOptions
from p2pfl.learn.perceptron import Perceptron
from p2pfl.learn.philox import BATCHES, shuffled, words

from .kernels import Drill, Links, Rows

__all__ = ["Plain", "edges_of", "fit", "orders"]

# Peers that train and mix at a time: see crews.py, where some hundred are best.
_PEERS = 256


class Plain:
    """Kernels of kernels.py by numpy's own loops."""

    name = "numpy"

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
        for start in range(lo, hi, _PEERS):
            end = min(start + _PEERS, hi)
            z = X[start:end] * scale[start:end, None]
            moved = np.zeros_like(z)
            for count in np.unique(rows.counts[start:end]).tolist():
                those = np.flatnonzero(rows.counts[start:end] == count)
                moved[those], losses[start + those] = fit(
                    z[those], start + those, count, drill, rows, rate, seed, number
                )
            self.blend(X, Y, start, end, links)
            Y[start:end] += gain[start:end, None] * moved

    def blend(self, X: Vectors, Y: Vectors, lo: int, hi: int, links: Links) -> None:
        """A round of rows lo..hi-1 that only mixes."""
        n = len(X)
        for start in range(lo, hi, _PEERS):
            those = np.arange(start, min(start + _PEERS, hi))
            out = Y[start : those[-1] + 1]
            keep = links.own[those] if len(links.own) > 1 else links.own
            np.multiply(X[those], keep[:, None], out=out)
            if len(links.common):
                out += links.common
            for at, offset in enumerate(links.offsets.tolist()):
                out += links.weights[at] * X[(those - offset) % n]
            for receivers, edges in edges_of(links, those):
                out[receivers] += links.weights[edges, None] * X[links.senders[edges]]

    def total(self, X: Vectors, lo: int, hi: int, scale: NDArray[np.float32]) -> Floats:
        """The sum of the models of rows lo..hi-1, (d,)."""
        found = np.zeros(X.shape[1])
        for start in range(lo, hi, _PEERS):
            end = min(start + _PEERS, hi)
            found += scale[start:end].astype(np.float64) @ X[start:end].astype(np.float64)
        return found

    def spread(self, X: Vectors, lo: int, hi: int, scale: NDArray[np.float32], mean: Floats) -> float:
        """The sum of their squared distances from `mean`."""
        found = 0.0
        for start in range(lo, hi, _PEERS):
            end = min(start + _PEERS, hi)
            gap = X[start:end] * scale[start:end, None].astype(np.float64) - mean
            found += float(np.vdot(gap, gap))
        return found


def orders(
    ids: NDArray[np.integer],
    count: int,
    batch: int,
    steps: int,
    seed: int,
    number: int | NDArray[np.integer],
) -> Indices:
    """Places among a peer's `count` rows of each step's batch, (steps, m, batch).

    Epochs of shuffled rows end to end, as learn/batches.py has them; unshuffled where one batch is all rows.
    """
    m = len(ids)
    if batch == count:
        return np.broadcast_to(np.arange(count), (steps, m, count))
    epochs = -(-steps * batch // count)
    word = words(seed, BATCHES, number, ids, epochs * count).reshape(m, epochs, count)
    order = np.concatenate(
        [shuffled(word[:, e]) for e in range(epochs)] or [np.zeros((m, 0), np.int64)], axis=1
    )
    return order[:, : steps * batch].reshape(m, steps, batch).swapaxes(0, 1)


def fit(
    z: Vectors,
    peers: Indices,
    count: int,
    drill: Drill,
    rows: Rows,
    rate: float,
    seed: int,
    number: int | NDArray[np.integer],
) -> tuple[Vectors, NDArray[np.float64]]:
    """How far the fits move `z`, (m, d), zeros where they diverge; and the mean losses, NaN there.

    count: of rows, the same for all.   number: of the round, or (m,) of each peer's.
    """
    batch = min(drill.batch_size, count)
    net = Perceptron(tuple(drill.layers.tolist()), batch, len(peers))
    net.theta[:] = z
    places = orders(rows.ids[peers], count, batch, drill.steps, seed, number)
    order = rows.table[peers[None, :, None], places].astype(np.int64)
    options = OptimizerOptions(momentum=float(drill.momentum), weight_decay=float(drill.decay))
    losses = descend(net, np.zeros_like(z), options, np.float32(rate), rows.x, rows.y, order, lambda: False)
    mean = np.mean(losses, axis=0) if losses else np.zeros(len(peers))
    lost = ~np.isfinite(net.theta).all(axis=1)
    moved = net.theta - z
    moved[lost], mean[lost] = 0, np.nan
    return moved, mean


def edges_of(links: Links, those: Indices) -> Iterator[tuple[Indices, Indices]]:
    """The first in-edge of each of `those` that has one, then the second, ...: positions and edge numbers."""
    if not len(links.starts):
        return
    first, end = links.starts[those], links.starts[those + 1]
    for k in range(int((end - first).max(initial=0))):
        receivers = np.flatnonzero(first + k < end)
        yield receivers, first[receivers] + k
