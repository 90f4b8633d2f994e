"""EquiTopo: circulant graphs whose consensus rate does not depend on the number of peers.

The basis graph A(u), u = 1..n-1: i gives i + u the part (n-1)/n of what it holds and keeps 1/n.  The mean of
all n - 1 of them is J = 11'/n, so a few drawn at random are close to it: E|W x|^2 = (1 - 2/n)/M |x|^2 for the
mean W of M drawn ones and any x of mean 0.
`n` peers, `M` basis graphs.
Source: Song, Li, Jin, Shi, Yan, Yin, Yuan 2022, arXiv:2210.07881: D-EquiStatic and U-EquiStatic (section 3),
OD-EquiDyn and OU-EquiDyn (section 4; there the basis may be a few graphs drawn once, here it is all of them).
"""

import math
from collections import Counter

import numpy as np

from p2pfl.gossip.graphs import Graph, weighted
from p2pfl.gossip.random_graphs import raw

__all__ = ["basis_count", "d_equistatic", "od_equidyn", "ou_equidyn", "u_equistatic"]

# The share of a basis graph in a round of the one-peer graphs, the rest being kept (the paper's eta): a round
# leaves (n - 1)/(2n) of E|x|^2 on OD-EquiDyn, the least there is.
_ETA = 0.5


def basis_count(n: int) -> int:
    """M unless the agreement says otherwise: 2 ceil(ln n), which leaves .6 of |x| or so at any n."""
    return max(1, 2 * math.ceil(math.log(n)))


def d_equistatic(n: int, M: int, rng: np.random.Generator) -> Graph:
    """The mean of M basis graphs, drawn with replacement: directed, at most M neighbours."""
    return _mean(n, _drawn(n, M, rng))


def u_equistatic(n: int, M: int, rng: np.random.Generator) -> Graph:
    """The mean of M basis graphs and their reverses: undirected, at most 2 M neighbours."""
    offsets = _drawn(n, M, rng)
    return _mean(n, [*offsets, *(n - u for u in offsets)])


def od_equidyn(n: int, rng: np.random.Generator) -> Graph:
    """One basis graph, mixed with what was held: W = (1 - eta) I + eta A(u), eta = 1/2; one neighbour each.

    To be drawn anew every round: E|W x|^2 = (n - 1)/(2n) |x|^2 for any x of mean 0.
    """
    [u] = _drawn(n, 1, rng) or [0]
    return Graph(n=n, offsets=(u,), offset_weights=(_ETA * (n - 1) / n,)) if u else Graph(n=n, offsets=())


def ou_equidyn(n: int, rng: np.random.Generator) -> Graph:
    """Undirected: from a random peer on, i is paired with i + u where both are still free; one neighbour at
    most, to whom goes eta (n - 1)/n, eta = 1/2.  To be drawn anew every round.
    """
    if n == 1:
        return Graph(n=1, offsets=())
    u, start = (1 + int(raw(1, rng)[0]) % (n - 1)), int(raw(1, rng)[0]) % n
    is_paired, pairs = bytearray(n), []
    for i in (*range(start, n), *range(start)):
        j = (i + u) % n
        if not (is_paired[i] or is_paired[j]):
            is_paired[i] = is_paired[j] = 1
            pairs += [(i, j), (j, i)]
    ends = np.array(pairs, np.int64)
    return weighted(n, ends[:, 0], ends[:, 1], np.full(len(ends), _ETA * (n - 1) / n))


def _drawn(n: int, M: int, rng: np.random.Generator) -> list[int]:
    """M numbers from 1 to n - 1, with replacement; none for a single peer."""
    return [1 + word % (n - 1) for word in raw(M, rng).tolist()] if n > 1 else []


def _mean(n: int, offsets: list[int]) -> Graph:
    counts = sorted(Counter(offsets).items())
    weights = tuple(count / len(offsets) * (n - 1) / n for _, count in counts)
    return Graph(n=n, offsets=tuple(u for u, _ in counts), offset_weights=weights)
