"""One shard of a fused population: rows of neighbouring peers, and room for those of others that they hear.

Theory of operation.  One block of memory has four stretches: padding of `r` rows, A of `m`, halo of `r`, B of
`m`.  A and B hold the shard's rows in turn; kernels read one of them together with the halo, which lies
after A and before B, and write the other.  In a ring of rows it does not matter which comes first (halo.py).
The padding is never touched, so it takes addresses and no memory: rows of A are counted from it on when those
of B are read, because the halo comes first then.
A round is: others' rows are put into the halo, all of them; then one call mixes, fits and steps.
`m` peers, `d` parameters, `r` rows of the largest halo, `h` of the present one.
"""

from __future__ import annotations

import time
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from p2pfl.errors import LocalError
from p2pfl.gossip.mixing import Floats, Indices, Vectors
from p2pfl.learn import partition

from .halo import turned
from .kernels import Drill, Links, Numbers, Rows, aligned, load, no_links
from .matrix import BLOCK, Gang
from .memory import refuse_if_beyond

__all__ = ["Order", "Shard"]

# What a round takes beside the rows: random words, scratch of threads, the interpreter.
_PASSING_BYTES = 2**28
# Rounds by which a worker's speed is judged: the first may compile, and others may be disturbed.
_TRIES = 6


class Order(NamedTuple):
    """What a shard is to hold: numbers and arrays, nothing else, because it travels.

    first, peers: its first one, and how many.   x, y: the rows of data, of all.   table, counts: the numbers
    of each peer's (kernels.Rows), or None, where `drawn`, rows, classes and seed of partition.drawn, tells.
    weights: (m,), what each peer counts with.   theta: (d,), the model of all.   reach: rows of the largest
    halo.   sharers: shards on one machine.
    """

    first: int
    peers: int
    x: Vectors
    y: NDArray[np.int64]
    table: Numbers | None
    counts: Numbers | None
    drawn: tuple[int, int, int]
    weights: Floats
    theta: NDArray[np.float32]
    drill: Drill
    seed: int
    reach: int
    sharers: int


class Shard:
    """Rows of some peers, and the threads that work on them.  What it is told and says are plain arrays."""

    def __init__(self, threads: int) -> None:
        """It holds nothing until it occupies rows."""
        self._kernels, self._gang = load(), Gang(threads)
        self._m = self._reach = self._came = 0
        self._is_turned = False

    @property
    def held(self) -> Vectors:
        """The rows as they are now, (m, d)."""
        first = 2 * self._reach + self._m if self._is_turned else self._reach
        return self._all[first : first + self._m]

    def kernels(self) -> str:
        """The name of the kernels at work."""
        return self._kernels.name

    def speed(self, order: Order) -> float:
        """Peers a second of a training round, by the best of a few rounds of these."""
        self.occupy(order)
        one, taken = np.ones(self._m, np.float32), []
        for _ in range(_TRIES):
            began = time.perf_counter()
            self.advance(no_links(), one, one, 0.0, 0, 0)
            taken.append(time.perf_counter() - began)
        return self._m / max(min(taken), 1e-9)

    def occupy(self, order: Order) -> None:
        """Begin with the order's rows.  Raises ConfigError when this machine has not the memory."""
        m, r, d = order.peers, order.reach, len(order.theta)
        ids = np.arange(order.first, order.first + m, dtype=np.int32)
        if order.table is not None and order.counts is not None:
            table, counts = order.table, order.counts
        else:
            rows, classes, seed = order.drawn
            table = partition.drawn(order.y, ids.astype(np.int64), rows, classes, seed).astype(np.int32)
            counts = np.full(m, rows, np.int32)
        needed = order.sharers * (4 * d * (2 * m + r) + 4 * (m + r) * table.shape[1] + _PASSING_BYTES)
        refuse_if_beyond(needed, f"{order.sharers} shards of {m} peers with {d} parameters each")
        self._m, self._reach, self._came, self._is_turned = m, r, 0, False
        self._all = np.empty((2 * (r + m), d), np.float32)
        self._table = np.empty((r + m, table.shape[1]), np.int32)
        self._counts, self._ids = np.zeros(r + m, np.int32), np.zeros(r + m, np.int32)
        self._table[r:], self._counts[r:], self._ids[r:] = table, counts, ids
        # Copies of what came, which may be another process's memory that cannot be written: compiled kernels
        # are made for arrays that can.
        self._x, self._y = aligned(order.x), np.array(order.y)
        self._drill = order.drill._replace(
            layers=np.array(order.drill.layers), places=np.array(order.drill.places)
        )
        self._seed = order.seed
        start, held = order.theta.astype(np.float64), self.held

        def fill(lo: int, hi: int) -> None:
            np.multiply(order.weights[lo:hi, None], start, out=held[lo:hi], casting="same_kind")

        self._gang.each(m, fill)

    # --- what travels --------------------------------------------------------------------------------

    def lend(self, first: int, count: int, rows: Indices | None = None) -> Vectors:
        """`count` rows from `first` on, or those listed."""
        return self.held[first : first + count] if rows is None else self.held[rows]

    def put(self, some: Vectors, at: int, h: int) -> None:
        """Place rows that were lent into the halo of `h`."""
        first = self._reach + self._m + (self._reach - h if self._is_turned else 0) + at
        self._all[first : first + len(some)] = some
        self._came += len(some)

    # --- rounds --------------------------------------------------------------------------------------

    def advance(
        self,
        links: Links,
        scale: NDArray[np.float32],
        gain: NDArray[np.float32],
        rate: float,
        number: int,
        h: int,
    ) -> NDArray[np.float32]:
        """A training round; see kernels.py.   links: on the ring.   scale, gain: (m,).   returns: (m,)."""
        X, Y, shift = self._sides(h)
        links = _own(turned(links, shift, len(X)))
        ahead = np.zeros(shift, np.float32)
        scale, gain = np.concatenate([ahead, scale]), np.concatenate([ahead, gain])
        losses, at = np.zeros(shift + self._m, np.float32), self._reach - shift
        rows = Rows(
            x=self._x, y=self._y, table=self._table[at:], counts=self._counts[at:], ids=self._ids[at:]
        )
        drill, seed = self._drill, self._seed

        def work(lo: int, hi: int) -> None:
            lo, hi = shift + lo, shift + hi
            self._kernels.advance(X, Y, lo, hi, links, scale, gain, drill, rows, rate, seed, number, losses)

        self._gang.each(self._m, work)
        self._is_turned = not self._is_turned
        return losses[shift:]

    def blend(self, links: Links, h: int) -> None:
        """A round that only mixes."""
        X, Y, shift = self._sides(h)
        links = _own(turned(links, shift, len(X)))
        self._gang.each(self._m, lambda lo, hi: self._kernels.blend(X, Y, shift + lo, shift + hi, links))
        self._is_turned = not self._is_turned

    # --- sums ----------------------------------------------------------------------------------------

    def totals(self, scale: NDArray[np.float32]) -> list[Floats]:
        """The sum of the rows, each times its scale, block by block."""
        held, scale = self.held, np.array(scale)
        return self._gang.each(self._m, lambda lo, hi: self._kernels.total(held, lo, hi, scale), block=BLOCK)

    def spreads(self, scale: NDArray[np.float32], mean: Floats) -> list[float]:
        """The sum of their squared distances from `mean`, block by block."""
        held, scale, mean = self.held, np.array(scale), np.array(mean)
        return self._gang.each(
            self._m, lambda lo, hi: self._kernels.spread(held, lo, hi, scale, mean), block=BLOCK
        )

    def _sides(self, h: int) -> tuple[Vectors, Vectors, int]:
        """What is read, with its halo; what is written; and where own rows begin in both."""
        came, self._came = self._came, 0
        if came != h:
            raise LocalError(f"a shard has {came} of the {h} rows that its peers hear; please report this")
        m, r = self._m, self._reach
        if self._is_turned:
            return self._all[2 * r + m - h :], self._all[r - h : r + m], h
        return self._all[r : r + m + h], self._all[2 * r + m :], 0


def _own(links: Links) -> Links:
    return Links(*map(np.array, links))
