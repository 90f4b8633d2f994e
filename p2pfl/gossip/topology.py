"""Plans: who sends to whom in round t, and with what weights; and how fast a topology mixes.

A plan follows from the agreement, the round, the number of peers and the run's seed alone, so every node
makes the same one without a message.  Peers are positions in the roster's PeerId order.
`n` peers.  Receiver form: `W[i, j]` is the weight i puts on j.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from p2pfl.errors import ConfigError
from p2pfl.gossip import graphs
from p2pfl.gossip.graphs import Graph
from p2pfl.gossip.mixing import (
    Floats,
    Kind,
    Mixer,
    MixingMatrix,
    dense,
    metropolis_hastings,
    metropolis_weight,
    spectral_gap,
    uniform_columns,
    uniform_fraction,
)
from p2pfl.gossip.options import TopologyOptions

__all__ = [
    "Plan",
    "plan",
    "period",
    "check",
    "mixing_matrix",
    "matrix",
    "is_strongly_connected",
    "union",
    "mixing_rounds",
    "gap_per_round",
]

# Keeps the draws of graphs apart from every other use of the run's seed: "topo" in ASCII.
_PURPOSE = 0x746F706F
# Draws of a random graph before it is called unconnectable.  At p = 2 ln n / n, 5.5% fail (n = 8), 1.2% (64).
_DRAWS = 100
# Graphs kept: peers simulated together ask for a few rounds at a time; a random one of 1e6 peers is 210 MB.
_GRAPHS_KEPT = 8
# A topology this slow is a mistake: a ring of 50 takes 2,753 rounds to 1e-6, exponential on 1,024 69.
_MOST_ROUNDS = 10_000
# Largest n whose matrices are multiplied out: 2,048 is 32 MiB and .13 s a product.
_DENSE_PEERS = 2048
# Largest n whose eigenvalues are sought: 512 take .3 s.
_EIGEN_PEERS = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Who sends to whom in one round.  Peers are 0..n-1 in PeerId order; lists are ascending."""

    n: int
    round: int
    graph: Graph

    @property
    def kinds(self) -> frozenset[Kind]:
        """The kinds of weights this graph carries: always ROW and COLUMN, DOUBLY if symmetric or regular."""
        return self.graph.kinds

    @property
    def out_edges(self) -> tuple[tuple[int, ...], ...]:
        """For each peer the peers it sends to.  O(n + edges) once a graph; one peer's: `out_neighbours`."""
        return self.graph.out_edges

    @property
    def in_edges(self) -> tuple[tuple[int, ...], ...]:
        """For each peer the peers it hears from.  O(n + edges) once a graph; one peer's: `in_neighbours`."""
        return self.graph.in_edges

    @property
    def offsets(self) -> tuple[int, ...] | None:
        """The offsets o of a graph in which every i sends to (i + o) mod n; None for any other graph."""
        return self.graph.offsets

    def out_neighbours(self, i: int) -> tuple[int, ...]:
        """The peers i sends to."""
        return self.graph.out_neighbours(i)

    def in_neighbours(self, i: int) -> tuple[int, ...]:
        """The peers i hears from."""
        return self.graph.in_neighbours(i)

    def fractions(self, i: int) -> tuple[float, tuple[float, ...]]:
        """How i splits what it holds: the part it keeps, and one part for each of `out_neighbours(i)`.

        The parts are equal and sum to 1: one column of a column-stochastic W (Kempe et al. 2003).
        """
        degree = len(self.out_neighbours(i))
        part = uniform_fraction(degree)
        return part, (part,) * degree

    def row(self, i: int) -> dict[int, float]:
        """The weights i puts on itself and on each of `in_neighbours(i)`, ascending; they sum to 1.

        Metropolis-Hastings weights on in-degrees: one row of a doubly-stochastic W when Kind.DOUBLY is among
        `kinds`, of a row-stochastic one otherwise.
        """
        heard = self.in_neighbours(i)
        weights = {j: metropolis_weight(len(heard), self.graph.in_degree(j)) for j in heard}
        weights[i] = 1.0 - math.fsum(weights.values())
        return dict(sorted(weights.items()))


def plan(options: TopologyOptions, t: int, n: int, seed: int) -> Plan:
    """Who sends to whom in round t among n peers; the same on every node.

    seed: the run's, used by random kinds unless the options have their own.  Graphs are kept between calls,
    so a call for a static kind costs nothing after the first; one for a circulant kind never does.
    One peer has no edges, whatever the kind.
    Raises ConfigError when n < 1 or t < 0, when the options do not fit n, or when no random draw is
    connected.
    """
    if n < 1 or t < 0:
        raise ConfigError(f"a plan for {n} peers in round {t}; expected at least 1 peer and a round from 0")
    phase = t if options.redraw else t % period(options, n)
    return Plan(n=n, round=t, graph=_graph(options, n, seed if options.seed is None else options.seed, phase))


def period(options: TopologyOptions, n: int) -> int:
    """After how many rounds the plans repeat: 1 for a static kind.

    With `redraw` they never do, but each plan is connected by itself: 1 again.
    """
    return max(1, graphs.exponential_degree(n)) if options.kind == "one-peer-exponential" else 1


def check(plan: Plan, mixer: Mixer) -> None:
    """Refuse a plan that the mixer would not converge to the mean on.

    Raises ConfigError when the plan's graph cannot carry the kind of weights the mixer requires.
    """
    missing = sorted(mixer.requires - plan.kinds)
    if missing:
        raise ConfigError(
            f"averaging {mixer.name!r} needs {' and '.join(missing)} weights, which a directed graph of "
            f"uneven degrees does not have; use averaging 'push-sum', or a symmetric or regular topology"
        )


def mixing_matrix(plan: Plan, kind: Kind = Kind.COLUMN) -> MixingMatrix:
    """The plan's weights on its edges: COLUMN as `fractions` gives them, ROW or DOUBLY as `row` does.

    Raises ConfigError for DOUBLY on a graph that carries no such weights.
    """
    if kind not in plan.kinds:
        raise ConfigError(
            f"round {plan.round}'s graph of {plan.n} peers has no {kind} weights; it is directed and uneven"
        )
    senders, receivers = plan.graph.edges()
    make = uniform_columns if kind is Kind.COLUMN else metropolis_hastings
    return make(plan.n, senders, receivers)


def matrix(plan: Plan, kind: Kind = Kind.COLUMN) -> Floats:
    """`mixing_matrix` as an (n, n) float64 array, for analysis: `W[i, j]` is what i takes of j."""
    return dense(mixing_matrix(plan, kind))


def is_strongly_connected(*plans: Plan) -> bool:
    """Whether the union of the plans' edges has a directed path from every peer to every other.

    Give one plan for a static kind, one `period` of plans for a time-varying one.  O(n + edges).
    """
    return union(*plans).is_strongly_connected()


def union(*plans: Plan) -> Graph:
    """The graph of all edges of the plans, at least one.  O(n + edges)."""
    n = plans[0].n
    if all(plan.offsets is not None for plan in plans):
        offsets = {o for plan in plans for o in plan.offsets or ()}
        return Graph(n=n, offsets=tuple(sorted(offsets)))
    lists = (sorted(set().union(*(plan.out_neighbours(i) for plan in plans))) for i in range(n))
    return Graph(n=n, neighbours=tuple(map(tuple, lists)))


def mixing_rounds(options: TopologyOptions, n: int, seed: int, tolerance: float) -> int:
    """Rounds of push-sum, from round 0, until every peer holds every other's start at its share 1/n.

    Precisely: the least T with |n P[i, j]/w_i - 1| <= tolerance for all i, j, where P is the product of the
    first T column-stochastic matrices and w = P 1.  Then |z_i - mean| <= tolerance * mean |x_j(0)|, whatever
    the start; 1e-6 is as good as exact in float32.  The error never grows from one round to the next.
    Circulant kinds cost O(n degree) a round; others O(n^3), up to 2,048 peers.
    Raises ConfigError when the graph is not connected, needs more than 10,000 rounds, or is too large.
    """
    if not 0 < tolerance < 1:
        raise ConfigError(f"a mixing tolerance of {tolerance}, expected a number between 0 and 1")
    first = [plan(options, t, n, seed) for t in range(period(options, n))]
    if not is_strongly_connected(*first):
        raise ConfigError(
            f"{_name(options, n)} is not strongly connected: some peer never hears of some other; add edges"
        )
    if first[0].offsets is not None:
        errors = _circulant_errors(options, n, seed)
    elif n > _DENSE_PEERS:
        raise ConfigError(
            f"{_name(options, n)} is too large to multiply out; ask with at most {_DENSE_PEERS} peers"
        )
    elif options.redraw:
        errors = _redrawn_errors(options, n, seed)
    else:
        return _static_rounds(options, first[0], tolerance)
    for T, error in zip(range(_MOST_ROUNDS + 1), errors, strict=False):
        if error <= tolerance:
            return T
    raise _too_slow(options, n, tolerance)


def gap_per_round(options: TopologyOptions, n: int, seed: int, kind: Kind = Kind.COLUMN) -> float | None:
    """The spectral gap 1 - |lambda_2|: in the long run a round leaves |lambda_2| of the distance to the mean.

    A plan that varies counts by the product P of one period's T matrices: 1 - |lambda_2(P)|^(1/T); one that
    is redrawn by its first draw.   returns: 0..1, 1 for a single peer; None when the graph is not circulant
    and has more than 512 peers.
    The exponential graph of an even n has 2/(1 + ceil(log2 n)): Ying et al. 2021, arXiv:2110.13363.

    >>> round(gap_per_round(TopologyOptions(kind="exponential"), 8, seed=0), 3)
    0.5
    """
    plans = [plan(options, t, n, seed) for t in range(period(options, n))]
    T = len(plans)
    if all(one.offsets is not None for one in plans) and n > 1:
        # A circulant W has the Fourier transform of its first column as eigenvalues, the first of them 1.
        moduli = np.ones(n)
        for one in plans:
            column = np.zeros(n)
            column[[0, *(one.offsets or ())]] = uniform_fraction(len(one.offsets or ()))
            moduli *= np.abs(np.fft.fft(column))
        return float(max(0.0, 1.0 - float(moduli[1:].max()) ** (1 / T)))
    if n > _EIGEN_PEERS:
        return None
    product = np.eye(n)
    for one in plans:
        product = matrix(one, kind) @ product
    return float(1.0 - (1.0 - spectral_gap(product)) ** (1 / T))


def _circulant_errors(options: TopologyOptions, n: int, seed: int) -> Iterator[float]:
    """The error after 0, 1, 2, ... rounds of a circulant topology.

    W is doubly stochastic, so w = 1, and P is circulant, so its first column says all.
    """
    column = np.zeros(n)
    column[0] = 1.0
    for t in range(_MOST_ROUNDS + 1):
        yield float(np.abs(n * column - 1).max())
        offsets = plan(options, t, n, seed).offsets or ()
        column = (column + sum(np.roll(column, o) for o in offsets)) / (1 + len(offsets))


def _redrawn_errors(options: TopologyOptions, n: int, seed: int) -> Iterator[float]:
    product = np.eye(n)
    for t in range(_MOST_ROUNDS + 1):
        yield _error(product)
        product = matrix(plan(options, t, n, seed)) @ product


def _static_rounds(options: TopologyOptions, plan: Plan, tolerance: float) -> int:
    """The least T by doubling W until W^(2^k) is close enough, then halving back: the error never grows."""
    if plan.n == 1:
        return 0
    powers = [matrix(plan)]
    while _error(powers[-1]) > tolerance:
        if 2 ** len(powers) > 2 * _MOST_ROUNDS:
            raise _too_slow(options, plan.n, tolerance)
        powers.append(powers[-1] @ powers[-1])
    T, product = 0, np.eye(plan.n)
    for k in reversed(range(len(powers) - 1)):
        further = powers[k] @ product
        if _error(further) > tolerance:
            T, product = T + 2**k, further
    if T + 1 > _MOST_ROUNDS:
        raise _too_slow(options, plan.n, tolerance)
    return T + 1


def _error(product: Floats) -> float:
    return float(np.abs(len(product) * product / product.sum(axis=1)[:, None] - 1).max())


def _too_slow(options: TopologyOptions, n: int, tolerance: float) -> ConfigError:
    return ConfigError(
        f"{_name(options, n)} does not mix to {tolerance:g} within {_MOST_ROUNDS} rounds; add links"
    )


def _name(options: TopologyOptions, n: int) -> str:
    return f"topology {options.kind!r} on {n} peers"


@lru_cache(maxsize=_GRAPHS_KEPT)
def _graph(options: TopologyOptions, n: int, seed: int, phase: int) -> Graph:
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
        case "explicit":
            return graphs.explicit(n, options.edges or (), directed=bool(options.directed))
        case _:
            return _connected_draw(options, n, seed, phase)


def _connected_draw(options: TopologyOptions, n: int, seed: int, phase: int) -> Graph:
    """The first of up to 100 draws that is connected; an unconnected one would never agree."""
    for attempt in range(_DRAWS):
        rng = np.random.Generator(np.random.PCG64([seed, _PURPOSE, n, phase, attempt]))
        graph = _draw(options, n, rng)
        if graph.is_strongly_connected():
            return graph
    raise ConfigError(
        f"{_name(options, n)}: none of {_DRAWS} random draws is connected; raise its p or degree"
    )


def _draw(options: TopologyOptions, n: int, rng: np.random.Generator) -> Graph:
    match options.kind:
        case "random-regular":
            return graphs.random_regular(n, 4 if options.degree is None else options.degree, rng)
        case "erdos-renyi":
            p = min(1.0, 2 * math.log(n) / n) if options.p is None else options.p
            return graphs.erdos_renyi(n, p, rng)
        case "one-way":
            degree = 4 if options.degree is None else options.degree
            return graphs.one_way(n, degree, 0.5 if options.p is None else options.p, rng)
        case _:
            degree = 4 if options.degree is None else options.degree
            return graphs.watts_strogatz(n, degree, 0.3 if options.p is None else options.p, rng)
