"""Asynchronous push-sum of a slot's ticks, compiled by numba; see push_gossip.py."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from p2pfl.gossip.mixing import Floats, Vectors
from p2pfl.learn.philox import key_of
from p2pfl.trust.screening import MIN_WEIGHT

from .compiled_fits import OPTIONS, add, learn, scratch
from .kernels import Drill, Rows
from .slots import Batch

__all__ = ["CompiledPushes"]

_LEAST = MIN_WEIGHT


def _push(
    X: Any,
    w: Any,
    shares: Any,
    share_w: Any,
    batch: Any,
    lo: int,
    hi: int,
    rates: Any,
    nominal: Any,
    drill: Drill,
    rows: Rows,
    k0: Any,
    k1: Any,
    losses: Any,
) -> None:
    d = X.shape[1]
    s = scratch(d, drill, rows)
    half = np.float32(0.5)
    for t in range(lo, hi):
        i, steps = batch.peers[t], batch.steps[t]
        x, mine = X[i], w[i]
        loss = np.nan
        if steps > 0:
            scale = np.float32(1 / mine)
            loss = learn(x, scale, i, steps, drill, rows, rates[t], batch.numbers[t], k0, k1, s)
        for e in range(batch.first[t], batch.first[t + 1]):
            place = batch.places[e]
            share = shares[place]
            for j in range(d):
                x[j] += share[j]
            mine += share_w[place]
            share_w[place] = 0.0
        after = x
        if loss == loss:
            after = s.g
            for j in range(d):
                after[j] = x[j]
            gain = np.float32(min(nominal[i], 2.0 * mine))
            if not add(after, gain, i, steps, drill, rows, rates[t], s):
                after, loss = x, np.nan
        if steps > 0:
            losses[t] = loss
        place = batch.out[t]
        if place >= 0 and mine / 2 >= _LEAST:
            mine /= 2
            share = shares[place]
            for j in range(d):
                share[j] = half * after[j]
                x[j] = share[j]
            share_w[place] = mine
        else:
            for j in range(d):
                x[j] = after[j]
            if place >= 0:
                shares[place, :] = np.float32(0)
                share_w[place] = 0.0
        w[i] = mine


_push_c = numba.njit(**OPTIONS)(_push)


class CompiledPushes:
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
        k0, k1 = (np.uint64(word) for word in key_of(seed))
        _push_c(
            X, w, shares, share_w, batch, lo, hi, rates, nominal, drill, rows, k0, k1, losses
        )  # fmt: skip
