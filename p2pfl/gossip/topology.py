"""Plans: who sends to whom in round t, and with what weights.

A plan follows from the agreement, the round, the number of peers and the run's seed alone, so every node
makes the same one without a message.  Peers are positions in the roster's PeerId order.
`n` peers.  Receiver form: `W[i, j]` is the weight i puts on j.
"""

import math
from dataclasses import dataclass

import numpy as np

from p2pfl.errors import ConfigError
from p2pfl.gossip.families import graph_of, name_of, rounds_of
from p2pfl.gossip.graphs import Graph
from p2pfl.gossip.mixing import (
    Floats,
    Kind,
    Mixer,
    MixingMatrix,
    dense,
    metropolis_hastings,
    metropolis_weight,
    uniform_columns,
    uniform_fraction,
)
from p2pfl.gossip.options import TopologyOptions

__all__ = [
    "Plan",
    "plan",
    "period",
    "horizon",
    "check",
    "mixing_matrix",
    "matrix",
    "is_strongly_connected",
    "sweep",
    "union",
]

# Rounds of a topology drawn anew every round that are looked at together: their product tells its pace to
# some per cent, and is still far from exact.
_HORIZON = 16
# Rounds after which a topology that is joined by its rounds is called unconnectable.  Random pairs joined 64
# peers after 2 or 3 rounds, 2,000 after 3 (20 seeds each).
_MOST_SWEPT = 200


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

        One column of a column-stochastic W: the graph's own weights, or else equal parts (Kempe et al. 2003).
        """
        if self.graph.is_weighted:
            parts = self.graph.out_weights(i)
            return _rest(parts), parts
        degree = len(self.out_neighbours(i))
        part = uniform_fraction(degree)
        return part, (part,) * degree

    def row(self, i: int) -> dict[int, float]:
        """The weights i puts on itself and on each of `in_neighbours(i)`, ascending; they sum to 1.

        One row of a doubly-stochastic W when Kind.DOUBLY is among `kinds`, of a row-stochastic one otherwise:
        the graph's own weights if those are doubly stochastic, the plain mean if it is epidemic, and else
        Metropolis-Hastings weights on in-degrees.
        """
        heard, graph = self.in_neighbours(i), self.graph
        if graph.is_weighted and Kind.DOUBLY in graph.kinds:
            weights = dict(zip(heard, graph.in_weights(i), strict=True))
        elif graph.is_epidemic:
            weights = dict.fromkeys(heard, uniform_fraction(len(heard)))
        else:
            weights = {j: metropolis_weight(len(heard), graph.in_degree(j)) for j in heard}
        weights[i] = _rest(tuple(weights.values()))
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
    phase = t if options.is_redrawn else t % period(options, n)
    drawn_by = seed if options.seed is None else options.seed
    return Plan(n=n, round=t, graph=graph_of(options, n, drawn_by, phase))


def period(options: TopologyOptions, n: int) -> int:
    """After how many rounds the plans repeat: 1 for a static kind; 1, too, for one that is drawn anew every
    round, whose plans never do: see `sweep`.
    """
    return rounds_of(options, n)


def horizon(options: TopologyOptions, n: int) -> int:
    """How many rounds say what a topology can do: a period, or 16 of one that is drawn anew every round."""
    return _HORIZON if options.is_redrawn else period(options, n)


def sweep(options: TopologyOptions, n: int, seed: int) -> tuple[Plan, ...]:
    """The first plans of a topology, as many as `horizon`, and more until their union is strongly connected
    where a round's graph need not be.   Raises ConfigError when it is not after 200, and as `plan` does.
    """
    plans = [plan(options, t, n, seed) for t in range(horizon(options, n))]
    while options.is_joined_by_rounds and not is_strongly_connected(*plans):
        if len(plans) >= _MOST_SWEPT:
            raise ConfigError(
                f"{name_of(options, n)}: {_MOST_SWEPT} rounds together do not join all; add links"
            )
        plans.append(plan(options, len(plans), n, seed))
    return tuple(plans)


def check(plan: Plan, mixer: Mixer) -> None:
    """Refuse a plan that the mixer would not converge to the mean on.

    An epidemic graph passes for doubly stochastic, which it is in expectation.
    Raises ConfigError when the plan's graph cannot carry the kind of weights the mixer requires.
    """
    carried = plan.kinds | ({Kind.DOUBLY} if plan.graph.is_epidemic else set())
    missing = sorted(mixer.requires - carried)
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
    weights = plan.graph.edge_weights()
    if kind is not Kind.COLUMN and plan.graph.is_epidemic:
        heard = np.bincount(receivers, minlength=plan.n)
        weights = 1.0 / (1 + heard[receivers])
    if weights is None or (kind is Kind.ROW and Kind.DOUBLY not in plan.kinds and not plan.graph.is_epidemic):
        make = uniform_columns if kind is Kind.COLUMN else metropolis_hastings
        return make(plan.n, senders, receivers)
    ends = senders if kind is Kind.COLUMN else receivers
    own: Floats = 1.0 - np.bincount(ends, weights=weights, minlength=plan.n).astype(np.float64)
    return MixingMatrix(n=plan.n, senders=senders, receivers=receivers, weights=weights, own=own)


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


def _rest(parts: tuple[float, ...]) -> float:
    """What is left of 1; a sum of parts may be over by a rounding."""
    return max(0.0, 1.0 - math.fsum(parts))
