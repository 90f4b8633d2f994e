"""Whether a graph of trust can reach consensus: who is cut off from whom, and who counts next to nothing.

Push-sum brings every site to one model exactly when a directed path leads from every site to every other.
How fast depends on the spectral gap, and how large a step a site may take on the weight w it ends with, n
times its entry of the Perron vector, the right eigenvector of the column-stochastic W for eigenvalue 1: a
site that sends much and hears little keeps next to none (push_sum.py, `local_step`).
`n` peers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from p2pfl.gossip import push_sum
from p2pfl.gossip.graphs import Graph, reached_from
from p2pfl.gossip.mixing import Floats, gap_over
from p2pfl.gossip.topology import Plan, matrix, union

__all__ = ["Reach", "reach", "in_words", "perron_weights"]

# Largest n whose matrices are multiplied out and solved for: 512 take some .1 s.
_DENSE_PEERS = 512
# Sites named in a sentence; a reader looks at the first few.
_MOST_NAMED = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Reach:
    """What a graph allows.  Sites are positions, ascending.

    unreached: sites that hear nothing of the core, the largest part in which everyone reaches everyone.
    unheard: sites of which the core hears nothing.   smallest_weight: the least w that push-sum leaves a
    site, on average 1.   gap: the spectral gap of a round, 0..1.   Both None when some are cut off, or n is
    above 512.   starved: the sites whose w is below push-sum's alarm.
    """

    unreached: tuple[int, ...]
    unheard: tuple[int, ...]
    smallest_weight: float | None
    starved: tuple[int, ...]
    gap: float | None = None

    @property
    def is_connected(self) -> bool:
        """Whether every site reaches every other."""
        return not (self.unreached or self.unheard)


def reach(*plans: Plan) -> Reach:
    """What the plans, one period of them, allow.

    O(parts (n + edges)); up to 512 peers also O(n^3) for each plan.
    """
    graph, n = union(*plans), plans[0].n
    core = _core(graph)
    unreached, unheard = (
        tuple(i for i, is_there in enumerate(reached_from(peers, core)) if not is_there)
        for peers in (graph.out_edges, graph.in_edges)
    )
    if unreached or unheard or n > _DENSE_PEERS:
        return Reach(unreached=unreached, unheard=unheard, smallest_weight=None, starved=())
    matrices = [matrix(plan) for plan in plans]
    w = perron_weights(matrices)
    starved = tuple(i for i in range(n) if push_sum.alarm(float(w[i]), 1.0))
    smallest = float(w.min())
    return Reach(unreached=(), unheard=(), smallest_weight=smallest, starved=starved, gap=gap_over(matrices))


def in_words(found: Reach, names: Sequence[str]) -> str:
    """What keeps the sites, named by position, from consensus, or slows it; empty when nothing does.

    >>> in_words(Reach(unreached=(1,), unheard=(), smallest_weight=None, starved=()), ["a", "b"])
    'nothing of the others ever reaches b'
    """

    def listed(sites: Sequence[int]) -> str:
        shown = ", ".join(names[i] for i in sites[:_MOST_NAMED])
        return shown if len(sites) <= _MOST_NAMED else f"{shown} and {len(sites) - _MOST_NAMED} more"

    said = []
    if found.unreached:
        said.append(f"nothing of the others ever reaches {listed(found.unreached)}")
    if found.unheard:
        said.append(f"nothing of {listed(found.unheard)} ever reaches the others")
    if found.starved:
        said.append(f"push-sum leaves less than a twentieth of their weight to {listed(found.starved)}")
    return "; ".join(said)


def perron_weights(matrices: list[Floats]) -> Floats:
    """The least weight w of each peer, (n,), in the cycle that push-sum settles into; on average 1.

    matrices: one period, column-stochastic, (n, n), whose union is strongly connected with a positive
    diagonal: only then is there one such cycle.
    """
    n, product = len(matrices[0]), _product(matrices)
    # (P - I) w = 0 and sum w = n: n + 1 equations of rank n.
    equations = np.vstack([product - np.eye(n), np.ones(n)])
    w = np.linalg.lstsq(equations, np.append(np.zeros(n), float(n)))[0]
    least = w
    for W in matrices[:-1]:
        w = W @ w
        least = np.minimum(least, w)
    return np.asarray(np.maximum(least, 0.0))


def _product(matrices: Sequence[Floats]) -> Floats:
    product = np.eye(len(matrices[0]))
    for W in matrices:
        product = W @ product
    return product


def _core(graph: Graph) -> int:
    """A peer of the largest strongly connected part; of equal ones, of that with the smallest number."""
    rest, best = set(range(graph.n)), (0, 0)
    while rest:
        first = min(rest)
        ahead, back = reached_from(graph.out_edges, first), reached_from(graph.in_edges, first)
        part = {i for i in rest if ahead[i] and back[i]}
        best = max(best, (len(part), -first))
        rest -= part
    return -best[1]
