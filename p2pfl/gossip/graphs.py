"""Directed graphs on peers 0..n-1: the families an agreement can name.

Circulant graphs (i sends to i + o for a few offsets o) are kept as their offsets, all others as lists of
neighbours.  An undirected graph has every edge in both directions.  No graph has self-loops.

Random graphs draw only raw 64-bit words, whose stream numpy promises never to change, and compare integers:
every node builds the same graph, on any numpy and any processor.  A family with a `degree` gives every roster
size a graph: a degree that does not fit becomes the complete graph.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from p2pfl.errors import ConfigError
from p2pfl.gossip.mixing import Indices, Kind

__all__ = [
    "Graph",
    "complete",
    "ring",
    "torus",
    "star",
    "exponential",
    "one_peer_exponential",
    "exponential_degree",
    "random_regular",
    "erdos_renyi",
    "watts_strogatz",
    "one_way",
    "explicit",
    "reached_from",
]

# Coin flips of an Erdos-Renyi graph made at a time: 8 MiB of raw words.
_FLIPS = 2**20


@dataclass(frozen=True, kw_only=True)
class Graph:
    """Who sends to whom.  Exactly one of `offsets` and `neighbours` is set.

    offsets: i sends to (i + o) mod n for each, 0 < o < n, ascending.
    neighbours: for each peer the peers it sends to, ascending.
    (No slots: what is worked out once is kept in the instance.)
    """

    n: int
    offsets: tuple[int, ...] | None = None
    neighbours: tuple[tuple[int, ...], ...] | None = None

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
        return _lists(self.n, receivers, senders)

    @cached_property
    def kinds(self) -> frozenset[Kind]:
        """What weights this graph carries; doubly-stochastic ones if it is symmetric or regular."""
        if self.offsets is not None or self.is_symmetric or self._is_regular:
            return frozenset(Kind)
        return frozenset({Kind.ROW, Kind.COLUMN})

    @cached_property
    def is_symmetric(self) -> bool:
        """Whether every edge has its reverse."""
        if self.offsets is not None:
            return set(self.offsets) == {self.n - o for o in self.offsets}
        return self.out_edges == self.in_edges

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

    def edges(self) -> tuple[Indices, Indices]:
        """All edges as (senders, receivers), int64, ordered by sender, then receiver."""
        if self.offsets is not None:
            offsets = np.array(self.offsets, np.int64)
            receivers = np.sort((np.arange(self.n)[:, None] + offsets) % self.n, axis=1)
            return np.repeat(np.arange(self.n), len(offsets)), receivers.ravel()
        degrees = [len(peers) for peers in self.out_edges]
        receivers = np.fromiter((j for peers in self.out_edges for j in peers), np.int64, sum(degrees))
        return np.repeat(np.arange(self.n), degrees), receivers

    def is_strongly_connected(self) -> bool:
        """Whether there is a directed path from every peer to every other.  O(n + edges)."""
        if self.offsets is not None:
            return math.gcd(self.n, *self.offsets) == 1
        return all(all(reached_from(peers, 0)) for peers in (self.out_edges, self.in_edges))


def complete(n: int) -> Graph:
    """Every peer sends to every other."""
    return Graph(n=n, offsets=tuple(range(1, n)))


def ring(n: int, *, directed: bool) -> Graph:
    """Peer i sends to i + 1, and unless `directed` to i - 1."""
    return _circulant(n, {1} if directed else {1, n - 1})


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
    return _undirected(n, np.tile(np.arange(n), 4), np.concatenate(around))


def star(n: int) -> Graph:
    """Peer 0 exchanges with every other."""
    return _undirected(n, np.zeros(n - 1, np.int64), np.arange(1, n))


def exponential(n: int) -> Graph:
    """Peer i sends to i + 1, i + 2, i + 4, ...: ceil(log2 n) out-neighbours, directed and regular.

    Source: Ying et al. 2021, arXiv:2110.13363, section 3 (static exponential graph).
    """
    return _circulant(n, {2**k for k in range(exponential_degree(n))})


def one_peer_exponential(n: int, t: int) -> Graph:
    """In round t peer i sends only to i + 2^(t mod ceil(log2 n)).

    With n = 2^tau any tau consecutive rounds average exactly; with any other n none do.
    Source: Ying et al. 2021, arXiv:2110.13363, section 4 and lemma 1.
    """
    return _circulant(n, {2 ** (t % exponential_degree(n))} if n > 1 else set())


def exponential_degree(n: int) -> int:
    """ceil(log2 n): the out-degree of the exponential graph, the period of the one-peer one."""
    return (n - 1).bit_length()


def random_regular(n: int, degree: int, rng: np.random.Generator) -> Graph:
    """An undirected graph in which every peer has `degree` neighbours, close to uniform among all such.

    n * degree is even in every regular graph, so an odd degree on an odd n is raised by one.  degree >= n
    gives the complete graph.  Stubs are paired at random; pairs that repeat or join a peer to itself are
    broken and paired again with as many good ones.  Dense graphs are drawn as the complement of sparse ones.
    Source: Bollobas 1980, "A probabilistic proof of an asymptotic formula for the number of labelled regular
    graphs" (the configuration model); the repair is ours.  O(n degree log) expected.
    """
    degree += n % 2 * (degree % 2)
    if degree >= n - 1:
        return complete(n)
    if 2 * degree > n - 1:
        absent = random_regular(n, n - 1 - degree, rng).out_edges if degree < n - 1 else ()
        everyone = set(range(n))
        return Graph(
            n=n, neighbours=tuple(tuple(sorted(everyone - {i, *peers})) for i, peers in enumerate(absent))
        )
    stubs = np.repeat(np.arange(n), degree)
    pairs = stubs[_shuffled(len(stubs), rng)].reshape(-1, 2)
    while len(bad := _bad_pairs(n, pairs)):
        good = rng.bit_generator.random_raw(len(bad) + 1) % np.uint64(len(pairs))
        again = np.union1d(bad, good.astype(np.int64))
        loose = pairs[again].ravel()
        pairs[again] = loose[_shuffled(len(loose), rng)].reshape(-1, 2)
    return _undirected(n, pairs[:, 0], pairs[:, 1])


def erdos_renyi(n: int, p: float, rng: np.random.Generator) -> Graph:
    """Each pair of peers is joined with probability p.  O(n^2) coin flips, in blocks of 8 MiB.

    Source: Gilbert 1959, "Random graphs".
    """
    if p >= 1:
        return complete(n)
    threshold = np.uint64(int(p * 2.0**64))
    first, second = [], []
    height = max(1, _FLIPS // n)
    for start in range(0, n, height):
        rows = np.arange(start, min(start + height, n))
        flips = _raw(len(rows) * n, rng).reshape(len(rows), n) < threshold
        i, j = np.nonzero(flips & (np.arange(n) > rows[:, None]))
        first.append(rows[i])
        second.append(j)
    return _undirected(n, np.concatenate(first), np.concatenate(second))


def watts_strogatz(n: int, degree: int, p: float, rng: np.random.Generator) -> Graph:
    """A ring in which each peer knows its `degree` nearest, every edge rewired with probability p.

    degree: even.  degree >= n - 1 gives the complete graph.
    Source: Watts, Strogatz 1998, "Collective dynamics of 'small-world' networks", methods.
    """
    if degree >= n - 1:
        return complete(n)
    around: list[set[int]] = [
        {(i + side * hop) % n for hop in range(1, degree // 2 + 1) for side in (1, -1)} for i in range(n)
    ]
    threshold = int(p * 2.0**64)
    for hop in range(1, degree // 2 + 1):
        coins = _raw(n, rng).tolist()
        for i in range(n):
            old = (i + hop) % n
            if coins[i] >= threshold or old not in around[i] or len(around[i]) >= n - 1:
                continue
            new = old
            while new == i or new in around[i]:
                new = int(_raw(1, rng)[0]) % n
            around[i].remove(old)
            around[old].remove(i)
            around[i].add(new)
            around[new].add(i)
    return Graph(n=n, neighbours=tuple(tuple(sorted(peers)) for peers in around))


def one_way(n: int, degree: int, p: float, rng: np.random.Generator) -> Graph:
    """Trust that is often one-sided: most links of a small world lose a direction, or both.

    Every peer is joined to its `degree` nearest on a ring and to degree / 2 random peers; then each direction
    of each link is dropped with probability p, but for the directed ring i to i + 1, so that the graph stays
    strongly connected.   degree: even.   p = 1 leaves the directed ring.
    """
    around = np.arange(n)
    near = [(around + hop) % n for hop in range(1, degree // 2 + 1)]
    far = (_raw(n * (degree // 2), rng) % np.uint64(n)).astype(np.int64)
    first, second = np.tile(around, degree), np.concatenate([*near, far])
    pairs = np.unique(np.minimum(first, second) * n + np.maximum(first, second))
    low, high = np.divmod(pairs[pairs // n != pairs % n], n)
    # Python's integers compare with 2^64 itself, so that p = 1 drops everything.
    kept = np.array([word >= int(p * 2.0**64) for word in _raw(2 * len(low), rng).tolist()], bool)
    senders = np.concatenate([np.concatenate([low, high])[kept], around])
    receivers = np.concatenate([np.concatenate([high, low])[kept], (around + 1) % n])
    apart = senders != receivers
    return Graph(n=n, neighbours=_lists(n, senders[apart], receivers[apart]))


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
        return Graph(n=n, neighbours=_lists(n, ends[:, 0], ends[:, 1]))
    return _undirected(n, ends[:, 0], ends[:, 1])


def _circulant(n: int, offsets: set[int]) -> Graph:
    return Graph(n=n, offsets=tuple(sorted({o % n for o in offsets} - {0})))


def _undirected(n: int, first: NDArray[Any], second: NDArray[Any]) -> Graph:
    kept = first != second
    senders = np.concatenate([first[kept], second[kept]])
    receivers = np.concatenate([second[kept], first[kept]])
    return Graph(n=n, neighbours=_lists(n, senders, receivers))


def _lists(n: int, keys: NDArray[Any], values: NDArray[Any]) -> tuple[tuple[int, ...], ...]:
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


def _raw(count: int, rng: np.random.Generator) -> NDArray[np.uint64]:
    words: NDArray[np.uint64] = np.asarray(rng.bit_generator.random_raw(count), np.uint64)
    return words


def _shuffled(count: int, rng: np.random.Generator) -> NDArray[np.intp]:
    return np.argsort(_raw(count, rng), kind="stable")


def _bad_pairs(n: int, pairs: NDArray[np.int64]) -> NDArray[np.intp]:
    """Positions of pairs that join a peer to itself or repeat an earlier pair."""
    low, high = pairs.min(axis=1), pairs.max(axis=1)
    codes = low * n + high
    order = np.argsort(codes, kind="stable")
    bad = low == high
    bad[order[1:]] |= codes[order[1:]] == codes[order[:-1]]
    return np.flatnonzero(bad)
