"""Graphs that are drawn anew every round: random matchings and epidemic learning.

A single round need not join all peers; the rounds together do.  `n` peers, `s` neighbours of each.
"""

import numpy as np

from p2pfl.gossip.graphs import Graph, complete, listed, undirected
from p2pfl.gossip.random_graphs import random_regular, raw, shuffled

__all__ = ["el_local", "el_oracle", "random_matching"]


def random_matching(n: int, rng: np.random.Generator) -> Graph:
    """Pairs at random, every matching equally likely; with an odd n one peer is left over.

    Each pair averages, so a round leaves (n - 2)/(2 (n - 1)) of E|x|^2 for any x of mean 0; 1/2 if n is odd.
    Source: Boyd, Ghosh, Prabhakar, Shah 2006, "Randomized gossip algorithms" (there one pair at a time).
    """
    order = shuffled(n, rng)[: n - n % 2].reshape(-1, 2)
    return undirected(n, order[:, 0], order[:, 1])


def el_oracle(n: int, s: int, rng: np.random.Generator) -> Graph:
    """EL-Oracle: a random s-regular graph, s + 1 where n and s are odd; all weights are 1/(s + 1).

    A round leaves (1 - s/(n - 1))/(s + 1) of E|x|^2 for any x of mean 0.
    Source: de Vos, Farhadkhani, Guerraoui, Kermarrec, Pires, Sharma 2023, arXiv:2310.01972, algorithm 1.
    """
    return random_regular(n, s, rng)


def el_local(n: int, s: int, rng: np.random.Generator) -> Graph:
    """EL-Local: everybody sends to s others of its own choice, drawn without replacement.

    Whoever receives takes the plain mean of its own and what came.  This keeps a consensus, and the mean only
    in expectation; a round leaves (1/s)(1 - (1 - s/(n - 1))^n) - 1/(n - 1) of E|x|^2.  s >= n - 1 gives the
    complete graph.   Source: as `el_oracle`; there everybody draws for itself, here all from the run's seed.
    """
    if s >= n - 1:
        return complete(n)
    # Floyd's sampling for all peers at once: the bound of the next draw itself, where the draw came before.
    chosen = np.empty((n, s), np.int64)
    for column, bound in enumerate(range(n - 1 - s, n - 1)):
        drawn = (raw(n, rng) % np.uint64(bound + 1)).astype(np.int64)
        came_before = (chosen[:, :column] == drawn[:, None]).any(axis=1)
        chosen[:, column] = np.where(came_before, bound, drawn)
    # Numbers 0..n-2 are the others, in order.
    receivers = chosen + (chosen >= np.arange(n)[:, None])
    neighbours = listed(n, np.repeat(np.arange(n), s), receivers.ravel())
    return Graph(n=n, neighbours=neighbours, is_epidemic=True)
