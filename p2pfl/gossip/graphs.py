"""Directed graphs on peers 0..n-1, and the families of them that stay as they are.

Circulant graphs (i sends to i + o for a few offsets o) are kept as their offsets, all others as lists of
neighbours.  An undirected graph has every edge in both directions.  No graph has self-loops.

Most graphs leave the weights on their edges to the rules of mixing.py; those of a family that is defined by
its weights have them.  Random graphs: random_graphs.py, epidemic.py, equitopo.py; Base-(k+1): finite_time.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import compress, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from p2pfl.errors import ConfigError
from p2pfl.gossip.mixing import Floats, Indices, Kind

__all__ = [
    "Graph",
    "complete",
    "ring",
    "torus",
    "star",
    "exponential",
    "one_peer_exponential",
    "exponential_degree",
    "explicit",
    "reached_from",
    "circulant",
    "undirected",
    "weighted",
    "listed",
]

# Sums of a peer's weights out and in that differ by less are equal: k roundings of 1e-16.
_BALANCED = 1e-12


@dataclass(frozen=True, kw_only=True)
class Graph:
    """Who sends to whom.  Exactly one of `offsets` and `neighbours` is set.

    offsets: i sends to (i + o) mod n for each, 0 < o < n, ascending.
    neighbours: for each peer the peers it sends to, ascending.
    offset_weights, neighbour_weights: the part of what a peer holds that goes along each of these, in their
    order, where the family says it; it keeps the rest, which is not negative.
    is_epidemic: receivers take the plain mean of their own and what they hear, which the family makes fair by
    chance (epidemic.py), rather than Metropolis-Hastings weights.
    (No slots: what is worked out once is kept in the instance.)
    """

    n: int
    offsets: tuple[int, ...] | None = None
    neighbours: tuple[tuple[int, ...], ...] | None = None
    offset_weights: tuple[float, ...] | None = None
    neighbour_weights: tuple[tuple[float, ...], ...] | None = None
    is_epidemic: bool = False

    @cached_property
    def out_edges(self) -> tuple[tuple[int, ...], ...]:
        """For each peer the peers it sends to, ascending.  O(n + edges) the first time."""
        if self.neighbours is not None:
            return self.neighbours
        return tuple(self.out_neighbours(i) for i in range(self.n))

    @cached_property
    def in_edges(self) -> tuple[tuple[int, ...], ...]:
        """For each peer the peers it hears from, ascending.  O(n + edges) the first time."""
        if self.offsets is not None:
            return tuple(self.in_neighbours(i) for i in range(self.n))
        senders, receivers = self.edges()
        return listed(self.n, receivers, senders)

    @cached_property
    def kinds(self) -> frozenset[Kind]:
        """What weights this graph carries; doubly-stochastic ones if it is symmetric or regular, or if its
        own weights are.
        """
        if self.is_epidemic:
            return frozenset({Kind.ROW, Kind.COLUMN})
        weights = self.edge_weights()
        if weights is None or self.offsets is not None:
            is_doubly = self.offsets is not None or self.is_symmetric or self._is_regular
        else:
            senders, receivers = self.edges()
            given = np.bincount(senders, weights, minlength=self.n)
            taken = np.bincount(receivers, weights, minlength=self.n)
            is_doubly = bool(np.all(np.abs(given - taken) <= _BALANCED))
        return frozenset(Kind) if is_doubly else frozenset({Kind.ROW, Kind.COLUMN})

    @cached_property
    def is_symmetric(self) -> bool:
        """Whether every edge has its reverse."""
        if self.offsets is not None:
            return set(self.offsets) == {self.n - o for o in self.offsets}
        return self.out_edges == self.in_edges

    @property
    def is_weighted(self) -> bool:
        """Whether the graph says what goes along each edge."""
        return self.offset_weights is not None or self.neighbour_weights is not None

    @cached_property
    def has_unequal_parts(self) -> bool:
        """Whether some peer gives its neighbours unequal parts of what it holds."""
        if self.offset_weights is not None:
            return len(set(self.offset_weights)) > 1
        return any(len(set(parts)) > 1 for parts in self.neighbour_weights or ())

    @property
    def _is_regular(self) -> bool:
        return len({len(peers) for peers in (*self.out_edges, *self.in_edges)}) == 1

    def out_neighbours(self, i: int) -> tuple[int, ...]:
        """The peers i sends to, ascending.  O(degree)."""
        if self.offsets is None:
            return self.out_edges[i]
        return tuple(sorted((i + o) % self.n for o in self.offsets))

    def in_neighbours(self, i: int) -> tuple[int, ...]:
        """The peers i hears from, ascending.  O(degree) once the graph's `in_edges` are known."""
        if self.offsets is None:
            return self.in_edges[i]
        return tuple(sorted((i - o) % self.n for o in self.offsets))

    def in_degree(self, i: int) -> int:
        """How many peers i hears from."""
        return len(self.in_edges[i]) if self.offsets is None else len(self.offsets)

    def out_weights(self, i: int) -> tuple[float, ...]:
        """The parts that i sends to each of `out_neighbours(i)`; empty where the graph does not say."""
        if self.neighbour_weights is not None:
            return self.neighbour_weights[i]
        return self._around(i, 1)

    def in_weights(self, i: int) -> tuple[float, ...]:
        """The parts that each of `in_neighbours(i)` sends to i; empty where the graph does not say."""
        if self.neighbour_weights is not None:
            return self._in_weights[i]
        return self._around(i, -1)

    def edges(self) -> tuple[Indices, Indices]:
        """All edges as (senders, receivers), int64, ordered by sender, then receiver."""
        if self.offsets is not None:
            offsets = np.array(self.offsets, np.int64)
            receivers = np.sort((np.arange(self.n)[:, None] + offsets) % self.n, axis=1)
            return np.repeat(np.arange(self.n), len(offsets)), receivers.ravel()
        degrees = [len(peers) for peers in self.out_edges]
        receivers = np.fromiter((j for peers in self.out_edges for j in peers), np.int64, sum(degrees))
        return np.repeat(np.arange(self.n), degrees), receivers

    def edge_weights(self) -> Floats | None:
        """The part that goes along each of `edges()`, (m,); None where the graph does not say."""
        if not self.is_weighted:
            return None
        return np.fromiter((c for i in range(self.n) for c in self.out_weights(i)), np.float64)

    def only(self, kept: Callable[[int, int], bool]) -> Graph:
        """The graph with the edges i to j that are `kept(i, j)`, at their weights if it has such."""
        there = [[kept(i, j) for j in peers] for i, peers in enumerate(self.out_edges)]
        neighbours = tuple(tuple(compress(self.out_neighbours(i), there[i])) for i in range(self.n))
        weights = tuple(tuple(compress(self.out_weights(i), there[i])) for i in range(self.n))
        return Graph(
            n=self.n,
            neighbours=neighbours,
            neighbour_weights=weights if self.is_weighted else None,
            is_epidemic=self.is_epidemic,
        )

    def is_strongly_connected(self) -> bool:
        """Whether there is a directed path from every peer to every other.  O(n + edges)."""
        if self.offsets is not None:
            return math.gcd(self.n, *self.offsets) == 1
        return all(all(reached_from(peers, 0)) for peers in (self.out_edges, self.in_edges))

    @cached_property
    def _in_weights(self) -> tuple[tuple[float, ...], ...]:
        into: list[list[float]] = [[] for _ in range(self.n)]
        for i, peers in enumerate(self.out_edges):
            for j, c in zip(peers, self.out_weights(i), strict=True):
                into[j].append(c)
        return tuple(map(tuple, into))

    def _around(self, i: int, way: int) -> tuple[float, ...]:
        if self.offsets is None or self.offset_weights is None:
            return ()
        pairs = zip(self.offsets, self.offset_weights, strict=True)
        return tuple(c for _, c in sorted(((i + way * o) % self.n, c) for o, c in pairs))


def complete(n: int) -> Graph:
    """Every peer sends to every other."""
    return Graph(n=n, offsets=tuple(range(1, n)))


def ring(n: int, *, directed: bool) -> Graph:
    """Peer i sends to i + 1, and unless `directed` to i - 1."""
    return circulant(n, {1} if directed else {1, n - 1})


def torus(n: int, rows: int | None) -> Graph:
    """A grid of rows x columns that wraps around: up, down, left, right.

    rows: None for the most square shape; a prime n has none but 1 x n, the ring.
    Raises ConfigError when `rows` does not divide n.
    """
    if rows is None:
        rows = next(r for r in range(math.isqrt(n), 0, -1) if n % r == 0)
    if n % rows:
        raise ConfigError(
            f"gossip.topology.rows is {rows}, which does not divide {n} peers; choose a divisor or none"
        )
    columns = n // rows
    r, c = np.divmod(np.arange(n), columns)
    around = [
        ((r + dr) % rows) * columns + (c + dc) % columns for dr, dc in ((1, 0), (-1, 0), (0, 1), (0, -1))
    ]
    return undirected(n, np.tile(np.arange(n), 4), np.concatenate(around))


def star(n: int) -> Graph:
    """Peer 0 exchanges with every other."""
    return undirected(n, np.zeros(n - 1, np.int64), np.arange(1, n))


def exponential(n: int) -> Graph:
    """Peer i sends to i + 1, i + 2, i + 4, ...: ceil(log2 n) out-neighbours, directed and regular.

    Source: Ying et al. 2021, arXiv:2110.13363, section 3 (static exponential graph).
    """
    return circulant(n, {2**k for k in range(exponential_degree(n))})


def one_peer_exponential(n: int, t: int) -> Graph:
    """In round t peer i sends only to i + 2^(t mod ceil(log2 n)).

    With n = 2^tau any tau consecutive rounds average exactly; with any other n none do.
    Source: Ying et al. 2021, arXiv:2110.13363, section 4 and lemma 1.
    """
    return circulant(n, {2 ** (t % exponential_degree(n))} if n > 1 else set())


def exponential_degree(n: int) -> int:
    """ceil(log2 n): the out-degree of the exponential graph, the period of the one-peer one."""
    return (n - 1).bit_length()


def explicit(n: int, edges: Sequence[tuple[int, int]], *, directed: bool) -> Graph:
    """The listed edges, i sends to j, and unless `directed` j to i.  Repeated edges count once.

    Raises ConfigError when an edge names a peer beyond the roster.
    """
    for i, j in edges:
        if max(i, j) >= n:
            raise ConfigError(
                f"gossip.topology.edges has [{i}, {j}], but the roster has {n} peers, numbered from 0"
            )
    ends = np.array(edges, np.int64).reshape(-1, 2)
    if directed:
        return Graph(n=n, neighbours=listed(n, ends[:, 0], ends[:, 1]))
    return undirected(n, ends[:, 0], ends[:, 1])


def circulant(n: int, offsets: set[int]) -> Graph:
    """I sends to i + o for each of `offsets`, modulo n; a multiple of n is no edge."""
    return Graph(n=n, offsets=tuple(sorted({o % n for o in offsets} - {0})))


def undirected(n: int, first: NDArray[Any], second: NDArray[Any]) -> Graph:
    """The edges between `first` and `second`, (m,) peers, both ways; those of a peer with itself left out."""
    kept = first != second
    senders = np.concatenate([first[kept], second[kept]])
    receivers = np.concatenate([second[kept], first[kept]])
    return Graph(n=n, neighbours=listed(n, senders, receivers))


def weighted(n: int, senders: NDArray[Any], receivers: NDArray[Any], weights: NDArray[Any]) -> Graph:
    """The graph in which senders[e] gives receivers[e] the part weights[e] of what it holds, (m,) each.

    No edge is given twice, and none joins a peer to itself.
    """
    order = np.lexsort((receivers, senders))
    ends = np.searchsorted(senders[order], np.arange(n + 1)).tolist()
    to, parts = receivers[order].tolist(), weights[order].tolist()
    return Graph(
        n=n,
        neighbours=tuple(tuple(to[a:b]) for a, b in pairwise(ends)),
        neighbour_weights=tuple(tuple(parts[a:b]) for a, b in pairwise(ends)),
    )


def listed(n: int, keys: NDArray[Any], values: NDArray[Any]) -> tuple[tuple[int, ...], ...]:
    """For each key in 0..n-1 its distinct values, ascending."""
    codes = np.sort(keys.astype(np.int64) * n + values)
    codes = codes[np.diff(codes, prepend=-1) > 0]
    ends = np.searchsorted(codes, np.arange(n + 1) * n).tolist()
    column = (codes % n).tolist()
    return tuple(tuple(column[a:b]) for a, b in pairwise(ends))


def reached_from(peers: Sequence[Sequence[int]], start: int) -> bytearray:
    """For each peer 1 if a path leads to it from `start`, itself included, else 0.

    peers: for each peer those one step further.   O(n + edges).
    """
    seen = bytearray(len(peers))
    seen[start] = 1
    frontier = [start]
    while frontier:
        found = []
        for i in frontier:
            for j in peers[i]:
                if not seen[j]:
                    seen[j] = 1
                    found.append(j)
        frontier = found
    return seen
