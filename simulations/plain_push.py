"""Asynchronous push-sum in numpy: a slot's ticks in pieces, their fits by learn/descent.py.

`m` ticks of a piece, `d` parameters.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from p2pfl.gossip.mixing import Floats, Vectors
from p2pfl.trust.screening import MIN_WEIGHT

from .kernels import Drill, Rows
from .plain import fit
from .slots import Batch

__all__ = ["PlainPushes"]

# As plain.py.
_TICKS = 256


class PlainPushes:
    """The kernels of push_gossip.py."""

    def push(
        self,
        X: Vectors,
        w: Floats,
        shares: Vectors,
        share_w: Floats,
        batch: Batch,
        lo: int,
        hi: int,
        rates: NDArray[np.float32],
        nominal: Floats,
        drill: Drill,
        rows: Rows,
        seed: int,
        losses: NDArray[np.float32],
    ) -> None:
        """Ticks lo..hi-1."""
        inner = batch.slots[(batch.slots > lo) & (batch.slots < hi)].tolist()
        for start, end in pairwise([lo, *inner, hi]):
            for at in range(start, end, _TICKS):
                ticks = np.arange(at, min(at + _TICKS, end))
                peers = batch.peers[ticks]
                x, moved, losses[ticks] = self._trained(X, w, batch, ticks, rates, drill, rows, seed)
                mine = w[peers]
                _take_in(x, mine, shares, share_w, batch, ticks)
                x += np.minimum(nominal[peers], 2.0 * mine).astype(np.float32)[:, None] * moved
                out = batch.out[ticks]
                gives = (out >= 0) & (mine / 2 >= MIN_WEIGHT)
                x[gives] /= 2
                mine[gives] /= 2
                shares[out[out >= 0]] = np.where(gives[:, None], x, 0)[out >= 0]
                share_w[out[out >= 0]] = np.where(gives, mine, 0)[out >= 0]
                X[peers], w[peers] = x, mine

    def _trained(
        self,
        X: Vectors,
        w: Floats,
        batch: Batch,
        ticks: NDArray[np.int64],
        rates: NDArray[np.float32],
        drill: Drill,
        rows: Rows,
        seed: int,
    ) -> tuple[Vectors, Vectors, NDArray[np.float32]]:
        """What the ticks' peers hold, how far their fits move them, and the losses."""
        peers, steps = batch.peers[ticks].astype(np.int64), batch.steps[ticks]
        x = X[peers]
        z = x * (1 / w[peers]).astype(np.float32)[:, None]
        moved, losses = np.zeros_like(x), np.zeros(len(x), np.float32)
        kinds = np.stack([rows.counts[peers], steps])
        for count, taken in np.unique(kinds[:, steps > 0], axis=1).T.tolist():
            those = np.flatnonzero((kinds[0] == count) & (kinds[1] == taken))
            number = batch.numbers[ticks[those]]
            one = drill._replace(steps=taken)
            rate = float(rates[ticks[0]])
            moved[those], losses[those] = fit(z[those], peers[those], count, one, rows, rate, seed, number)
        return x, moved, losses


def _take_in(
    x: Vectors, w: Floats, shares: Vectors, share_w: Floats, batch: Batch, ticks: NDArray[np.int64]
) -> None:
    """Add to x, (m, d), and w, (m,), the shares of each tick, in their order; they weigh nothing any more."""
    first, end = batch.first[ticks], batch.first[ticks + 1]
    for k in range(int((end - first).max(initial=0))):
        those = np.flatnonzero(first + k < end)
        places = batch.places[first[those] + k]
        x[those] += shares[places]
        w[those] += share_w[places]
    share_w[batch.places[first[0] : end[-1]]] = 0
