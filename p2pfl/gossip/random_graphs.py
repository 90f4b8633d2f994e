"""Random graphs that every node draws alike, and the raw words they are drawn from.

Only raw 64-bit words are drawn, whose stream numpy promises never to change, and integers compared: every
node builds the same graph, on any numpy and any processor.  A family with a `degree` gives every roster size
a graph: a degree that does not fit becomes the complete graph.
"""

import numpy as np
from numpy.typing import NDArray

from p2pfl.gossip.graphs import Graph, complete, listed, undirected

__all__ = [
    "random_regular",
    "erdos_renyi",
    "watts_strogatz",
    "one_way",
    "raw",
    "shuffled",
]

# Coin flips of an Erdos-Renyi graph made at a time: 8 MiB of raw words.
_FLIPS = 2**20


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
    pairs = stubs[shuffled(len(stubs), rng)].reshape(-1, 2)
    while len(bad := _bad_pairs(n, pairs)):
        good = rng.bit_generator.random_raw(len(bad) + 1) % np.uint64(len(pairs))
        again = np.union1d(bad, good.astype(np.int64))
        loose = pairs[again].ravel()
        pairs[again] = loose[shuffled(len(loose), rng)].reshape(-1, 2)
    return undirected(n, pairs[:, 0], pairs[:, 1])


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
        flips = raw(len(rows) * n, rng).reshape(len(rows), n) < threshold
        i, j = np.nonzero(flips & (np.arange(n) > rows[:, None]))
        first.append(rows[i])
        second.append(j)
    return undirected(n, np.concatenate(first), np.concatenate(second))


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
        coins = raw(n, rng).tolist()
        for i in range(n):
            old = (i + hop) % n
            if coins[i] >= threshold or old not in around[i] or len(around[i]) >= n - 1:
                continue
            new = old
            while new == i or new in around[i]:
                new = int(raw(1, rng)[0]) % n
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
    far = (raw(n * (degree // 2), rng) % np.uint64(n)).astype(np.int64)
    first, second = np.tile(around, degree), np.concatenate([*near, far])
    pairs = np.unique(np.minimum(first, second) * n + np.maximum(first, second))
    low, high = np.divmod(pairs[pairs // n != pairs % n], n)
    # Python's integers compare with 2^64 itself, so that p = 1 drops everything.
    kept = np.array([word >= int(p * 2.0**64) for word in raw(2 * len(low), rng).tolist()], bool)
    senders = np.concatenate([np.concatenate([low, high])[kept], around])
    receivers = np.concatenate([np.concatenate([high, low])[kept], (around + 1) % n])
    apart = senders != receivers
    return Graph(n=n, neighbours=listed(n, senders[apart], receivers[apart]))


def raw(count: int, rng: np.random.Generator) -> NDArray[np.uint64]:
    """The next `count` words of 64 bits, (count,)."""
    words: NDArray[np.uint64] = np.asarray(rng.bit_generator.random_raw(count), np.uint64)
    return words


def shuffled(count: int, rng: np.random.Generator) -> NDArray[np.intp]:
    """0..count - 1 in random order."""
    return np.argsort(raw(count, rng), kind="stable")


def _bad_pairs(n: int, pairs: NDArray[np.int64]) -> NDArray[np.intp]:
    """Positions of pairs that join a peer to itself or repeat an earlier pair."""
    low, high = pairs.min(axis=1), pairs.max(axis=1)
    codes = low * n + high
    order = np.argsort(codes, kind="stable")
    bad = low == high
    bad[order[1:]] |= codes[order[1:]] == codes[order[:-1]]
    return np.flatnonzero(bad)
