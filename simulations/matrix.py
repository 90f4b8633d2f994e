"""The rows of a fused population in one process: two arrays in turn, and the threads that work on them.

`n` peers, `d` parameters.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from p2pfl.gossip.mixing import Floats, Vectors

from .kernels import Drill, Kernels, Links, Rows
from .memory import refuse_if_beyond
from .routes import Route

__all__ = ["BLOCK", "Gang", "Matrix", "Models", "needed_bytes", "own_threads"]

# Peers that a thread takes at a time, when there are many: 10 MB of d = 650.  Sums are taken by such blocks.
BLOCK = 4096
# What a peer's number, counts, weights, scale, gain and loss take while they are worked out.
_BYTES_OF_PEER = 64
# What comes and goes: random words, scratch of threads, models that are judged, the interpreter itself.
_PASSING_BYTES = 2**29

_T = TypeVar("_T")


def own_threads() -> int:
    """Threads to use when nobody says: the processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def needed_bytes(n: int, d: int, width: int) -> int:
    """What n peers with d parameters and `width` rows take at most: two buffers, and numbers of rows."""
    return n * (8 * d + 4 * width + _BYTES_OF_PEER) + _PASSING_BYTES


@dataclass(frozen=True, slots=True)
class Gang:
    """Threads that share the rows of a matrix among them."""

    threads: int

    def each(self, n: int, work: Callable[[int, int], _T], *, block: int = 0) -> list[_T]:
        """`work(lo, hi)` for blocks that cover 0..n-1, its answers in their order.

        block: the size of each, for answers that depend on it; otherwise one that keeps all threads at work.
        """
        size = block or min(BLOCK, max(32, math.ceil(n / (4 * self.threads))))
        starts = range(0, n, size)
        ends = (min(start + size, n) for start in starts)
        if self.threads == 1 or len(starts) == 1:
            return list(map(work, starts, ends))
        with ThreadPoolExecutor(self.threads) as pool:
            return list(pool.map(work, starts, ends))


class Models(Protocol):
    """What all peers hold, wherever the rows lie: a Matrix, or shards of it."""

    @property
    def kernels(self) -> str:
        """The name of the kernels at work."""
        ...

    @property
    def shards(self) -> int:
        """In how many parts the rows lie."""
        ...

    def advance(
        self,
        route: Route | None,
        links: Links,
        scale: NDArray[np.float32],
        gain: NDArray[np.float32],
        rate: float,
        number: int,
    ) -> NDArray[np.float32]:
        """A training round of all: mix, fit, step; see kernels.py.   returns: (n,) losses.

        route: what `links` were made of, None where nobody hears anybody.
        """
        ...

    def blend(self, route: Route | None, links: Links) -> None:
        """A round that only mixes."""
        ...

    def total(self, scale: NDArray[np.float32]) -> Floats:
        """The sum of all rows, each times its scale, (d,)."""
        ...

    def spread(self, scale: NDArray[np.float32], mean: Floats) -> float:
        """The sum of their squared distances from `mean`."""
        ...

    def take(self, peers: NDArray[np.integer]) -> Vectors:
        """Some rows, (m, d)."""
        ...


class Matrix:
    """All rows in this process.  They are allocated once."""

    def __init__(
        self,
        rows: Rows,
        weights: Floats,
        theta: NDArray[np.float32],
        drill: Drill,
        seed: int,
        *,
        kernels: Kernels,
        threads: int = 0,
        available: int | None = None,
    ) -> None:
        """weights: (n,).   theta: (d,), the model that all begin with.   threads: 0 for all processors.
        available: bytes of memory where the kernels work; None is this machine's.

        Raises ConfigError when it would not fit in memory.
        """
        n, d = len(weights), len(theta)
        what = f"{n} peers with {d} parameters each"
        refuse_if_beyond(needed_bytes(n, d, rows.table.shape[1]), what, available)
        self.rows, self.gang = rows, Gang(threads or own_threads())
        # Matrices of the kernels: on a GPU they are no numpy arrays.
        self.held: Any = kernels.make(n, d)
        self._next: Any = kernels.make(n, d)
        self._kernels, self._drill, self._seed = kernels, drill, seed
        start = theta.astype(np.float64)
        self.gang.each(n, lambda lo, hi: kernels.fill(self.held, lo, hi, weights, start))

    @property
    def kernels(self) -> str:
        """The name of the kernels at work."""
        return self._kernels.name

    @property
    def shards(self) -> int:
        """One."""
        return 1

    def advance(
        self,
        route: Route | None,  # noqa: ARG002, a matrix has everybody's rows
        links: Links,
        scale: NDArray[np.float32],
        gain: NDArray[np.float32],
        rate: float,
        number: int,
    ) -> NDArray[np.float32]:
        """A training round of all."""
        X, Y, losses = self.held, self._next, np.zeros(len(self.held), np.float32)
        drill, rows, seed = self._drill, self.rows, self._seed

        def work(lo: int, hi: int) -> None:
            self._kernels.advance(X, Y, lo, hi, links, scale, gain, drill, rows, rate, seed, number, losses)

        self.gang.each(len(X), work)
        self.held, self._next = Y, X
        return losses

    def blend(self, route: Route | None, links: Links) -> None:  # noqa: ARG002, likewise
        """A round that only mixes."""
        X, Y = self.held, self._next
        self.gang.each(len(X), lambda lo, hi: self._kernels.blend(X, Y, lo, hi, links))
        self.held, self._next = Y, X

    def total(self, scale: NDArray[np.float32], rows: Any = None) -> Floats:
        """The sum of all rows, or of those given, each times its scale."""
        held = self.held if rows is None else rows
        # Blocks of one size, so that the sum has the same bits with any number of threads.
        sums = self.gang.each(len(held), lambda lo, hi: self._kernels.total(held, lo, hi, scale), block=BLOCK)
        found: Floats = np.sum(sums, axis=0)
        return found

    def spread(self, scale: NDArray[np.float32], mean: Floats, rows: Any = None) -> float:
        """The sum of their squared distances from `mean`."""
        held = self.held if rows is None else rows
        return math.fsum(
            self.gang.each(
                len(held), lambda lo, hi: self._kernels.spread(held, lo, hi, scale, mean), block=BLOCK
            )
        )

    def take(self, peers: NDArray[np.integer]) -> Vectors:
        """Some rows."""
        return self._kernels.take(self.held, peers)
