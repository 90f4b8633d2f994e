"""Which function makes the graph that an agreement names."""

import math
from functools import lru_cache

import numpy as np

from p2pfl.errors import ConfigError
from p2pfl.gossip import epidemic, equitopo, finite_time, graphs, random_graphs
from p2pfl.gossip.custom import custom
from p2pfl.gossip.graphs import Graph
from p2pfl.gossip.options import TopologyOptions

__all__ = ["graph_of", "name_of", "rounds_of"]

# Keeps the draws of graphs apart from every other use of the run's seed: "topo" in ASCII.
_PURPOSE = 0x746F706F
# Draws of a random graph before it is called unconnectable.  At p = 2 ln n / n, 5.5% fail (n = 8), 1.2% (64).
_DRAWS = 100
# Graphs kept: peers simulated together ask for a few rounds at a time; a random one of 1e6 peers is 210 MB.
_GRAPHS_KEPT = 8


def name_of(options: TopologyOptions, n: int) -> str:
    """The topology as errors name it."""
    return f"topology {options.kind!r} on {n} peers"


def rounds_of(options: TopologyOptions, n: int) -> int:
    """After how many rounds the graphs repeat: 1 for a kind that stays, or that is another every round."""
    match options.kind:
        case "one-peer-exponential":
            return max(1, graphs.exponential_degree(n))
        case "base":
            return finite_time.base_rounds(n, options.degree or 1)
        case "simple-base":
            return finite_time.simple_base_rounds(n, options.degree or 1)
        case _:
            return 1


@lru_cache(maxsize=_GRAPHS_KEPT)
def graph_of(options: TopologyOptions, n: int, seed: int, phase: int) -> Graph:
    """The graph of n peers in round `phase` of `rounds_of`, or of the run where none comes again.

    Raises ConfigError when the options do not fit n, or when no random draw is connected.
    """
    match options.kind:
        case "complete":
            return graphs.complete(n)
        case "ring":
            return graphs.ring(n, directed=bool(options.directed))
        case "torus":
            return graphs.torus(n, options.rows)
        case "star":
            return graphs.star(n)
        case "exponential":
            return graphs.exponential(n)
        case "one-peer-exponential":
            return graphs.one_peer_exponential(n, phase)
        case "base":
            return finite_time.base(n, options.degree or 1, phase)
        case "simple-base":
            return finite_time.simple_base(n, options.degree or 1, phase)
        case "explicit":
            return graphs.explicit(n, options.edges or (), directed=bool(options.directed))
        case "custom":
            return custom(options.function or "", n, phase, seed)
        case _ if options.is_joined_by_rounds:
            return _draw(options, n, _rng(seed, n, phase, 0))
        case _:
            return _connected_draw(options, n, seed, phase)


def _rng(seed: int, n: int, phase: int, attempt: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64([seed, _PURPOSE, n, phase, attempt]))


def _connected_draw(options: TopologyOptions, n: int, seed: int, phase: int) -> Graph:
    """The first of up to 100 draws that is connected; an unconnected one would never agree."""
    for attempt in range(_DRAWS):
        graph = _draw(options, n, _rng(seed, n, phase, attempt))
        if graph.is_strongly_connected():
            return graph
    raise ConfigError(
        f"{name_of(options, n)}: none of {_DRAWS} random draws is connected; raise its p or degree"
    )


def _draw(options: TopologyOptions, n: int, rng: np.random.Generator) -> Graph:
    degree = 4 if options.degree is None else options.degree
    match options.kind:
        case "random-regular":
            return random_graphs.random_regular(n, degree, rng)
        case "erdos-renyi":
            p = min(1.0, 2 * math.log(n) / n) if options.p is None else options.p
            return random_graphs.erdos_renyi(n, p, rng)
        case "one-way":
            return random_graphs.one_way(n, degree, 0.5 if options.p is None else options.p, rng)
        case "d-equistatic":
            return equitopo.d_equistatic(n, options.degree or equitopo.basis_count(n), rng)
        case "u-equistatic":
            return equitopo.u_equistatic(n, options.degree or equitopo.basis_count(n), rng)
        case "od-equidyn":
            return equitopo.od_equidyn(n, rng)
        case "ou-equidyn":
            return equitopo.ou_equidyn(n, rng)
        case "random-matching":
            return epidemic.random_matching(n, rng)
        case "el-oracle":
            return epidemic.el_oracle(n, degree, rng)
        case "el-local":
            return epidemic.el_local(n, degree, rng)
        case _:
            return random_graphs.watts_strogatz(n, degree, 0.3 if options.p is None else options.p, rng)
