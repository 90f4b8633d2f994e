"""Push-sum: averages on directed graphs, with nothing lost.

Each peer holds a numerator x and a weight w, and its model is z = x/w.  A round: add the local step to x,
give a part of (x, w) to every out-neighbour, keep the rest, add what arrived.  Sums over peers and shares in
flight never change, so z goes to sum(x)/sum(w) on any strongly connected graph, however late or unevenly
shares arrive.  With w(0) = n_i, the site's sample count, that limit is the sample-weighted mean.

Pure kernels on a leading peer axis: a daemon calls them with n = 1, a population with all its peers at once,
and both get the same bits.  `n` peers, `d` parameters, `k` statistics.
Sources: Kempe, Dobra, Gehrke 2003, "Gossip-based computation of aggregate information", protocol Push-Sum;
Assran, Loizou, Ballas, Rabbat 2019, arXiv:1811.10792, algorithm 1 (SGP).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from p2pfl.errors import AggregationError
from p2pfl.gossip.mixing import Floats, Indices, Kind, Mixer, Vectors, combine

__all__ = [
    "PUSH_SUM",
    "PushSumState",
    "init",
    "debias",
    "local_step",
    "portion",
    "keep",
    "split",
    "merge",
    "mass",
    "statistics",
    "alarm",
]

PUSH_SUM = Mixer(name="push-sum", requires=frozenset({Kind.COLUMN}), delivery="share")

# The local step moves x by at most this many times w * delta, so z by at most 2 delta.  Under 30% loss a cap
# of 2 cost .1 to .2 point of accuracy, 4 cost .2 to .4, no cap 4 to 7; on a hub graph no cap diverged.
_STEP_CAP = 2.0
# Below this share of its starting weight a peer hears too little of what it sends: its graph is lopsided
# (random 3-out digraphs stay above .3), and its own steps hardly count.
_ALARM = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class PushSumState:
    """What a peer holds, or what is on its way to another: x, w and s are split and added alike.

    x: (n, d) float32, numerators.   w: (n,) float64, weights.   s: (n, k) float64, statistics that are sums
    over peers (counts, sums of squares), mixed with the same fractions; k may be 0.
    """

    x: Vectors
    w: Floats
    s: Floats


def init(theta: Vectors, weight: Floats, statistics: Floats) -> PushSumState:
    """The state that stands for models `theta` of weight `weight`: x = w * theta, s as given.

    theta: (n, d) float32.   weight: (n,) float64, 1 or the sample count; 0 for a peer that waits for its
    first share.   statistics: (n, k) float64, already sums, so not multiplied by the weight.
    Raises AggregationError when shapes differ or a weight is negative or not finite.
    """
    if not (np.isfinite(weight).all() and (weight >= 0).all()):
        raise AggregationError(
            "a push-sum weight is negative or not finite; give 1, or the number of samples"
        )
    if statistics.ndim != 2 or len(statistics) != len(theta):
        raise AggregationError(f"statistics of shape {statistics.shape}, expected ({len(theta)}, k)")
    return PushSumState(x=combine([theta], [weight]), w=weight.copy(), s=statistics.astype(np.float64))


def debias(state: PushSumState) -> Vectors:
    """The models z = x/w, (n, d) float32.

    A row of weight 0 has no model yet: x is returned as it is, and the caller does not train from it.
    """
    return combine([state.x], [1.0 / np.where(state.w > 0, state.w, 1.0)])


def local_step(state: PushSumState, delta: Vectors, weight0: Floats) -> PushSumState:
    """The state after training moved the models by `delta`: x += min(weight0, 2 w) * delta.

    delta: (n, d) float32, how far the fit moved z.   weight0: (n,) float64, the weight each peer counts with,
    w(0).  SGP adds weight0 * delta, which moves z by delta * weight0/w: on a graph that leaves some w near 0
    it diverges.  The cap bounds that to 2 delta; w and s do not change.
    """
    return PushSumState(
        x=combine([state.x, delta], [None, np.minimum(weight0, _STEP_CAP * state.w)]), w=state.w, s=state.s
    )


def portion(state: PushSumState, fraction: Floats) -> PushSumState:
    """The part of the state to give away: (c x, c w, c s).

    fraction: (n,) float64 in [0, 1], from `Plan.fractions`.  Take it from what is held now, then `keep`.
    """
    return PushSumState(x=combine([state.x], [fraction]), w=fraction * state.w, s=fraction[:, None] * state.s)


def keep(state: PushSumState, portions: Sequence[PushSumState]) -> PushSumState:
    """What is left after `portions` were taken from `state`: subtracted, so that rounding loses nothing.

    w + its portions equal the old w to one float64 rounding each, and x to one float32 rounding.
    """
    return _sum(state, portions, sign=-1.0)


def split(state: PushSumState, fraction: Floats, count: Indices) -> tuple[PushSumState, PushSumState]:
    """(the portion for each out-neighbour, what is left): `portion` and `keep` where degrees differ.

    fraction: (n,) float64, of each of a peer's portions.   count: (n,) int64, how many it gives away.
    x is reduced in one pass and has the same bits as by `keep`: x and its portion are whole multiples of the
    portion's last bit, and float64 holds every difference of such exactly up to 2**27 portions.
    """
    part = portion(state, fraction)
    x = combine([state.x, part.x], [None, -count.astype(np.float64)])
    w, s = state.w.copy(), state.s.copy()
    for given in range(int(count.max(initial=0))):
        more = count > given
        w[more] -= part.w[more]
        s[more] -= part.s[more]
    return part, PushSumState(x=x, w=w, s=s)


def merge(state: PushSumState, incoming: Sequence[PushSumState]) -> PushSumState:
    """The state after absorbing `incoming`, added in float64 in the given order, then cast to float32.

    Give shares in (PeerId, sequence) order: the order decides the last bit.  O(d) a share; five inputs of
    100 MB take about .1 s on one thread.
    """
    return _sum(state, incoming, sign=1.0)


def mass(states: Sequence[PushSumState]) -> float:
    """The weight in `states`, exactly rounded.  Peers and shares in flight together hold sum w(0), always."""
    return math.fsum(w for state in states for w in state.w.tolist())


def statistics(state: PushSumState, total_weight: float) -> Floats:
    """Each peer's estimate of the sum of all statistics: s/w times the total weight, (n, k) float64.

    total_weight: the sum of w(0) over members.  Rows of weight 0 know nothing yet: they give zeros.
    """
    share = np.where(state.w > 0, state.w, np.inf)
    return state.s / share[:, None] * total_weight


def alarm(w: float, weight0: float) -> bool:
    """Whether a peer's weight is under .05 of the weight it counts with: see `local_step` and its graph."""
    return w < _ALARM * weight0


def _sum(state: PushSumState, others: Sequence[PushSumState], sign: float) -> PushSumState:
    if not others:
        return state
    coefficient = None if sign == 1.0 else np.full(len(state.w), sign)
    x = combine([state.x, *(other.x for other in others)], [None, *(coefficient for _ in others)])
    w, s = state.w.copy(), state.s.copy()
    for other in others:
        if other.w.shape != w.shape or other.s.shape != s.shape:
            raise AggregationError(
                f"a share with weights {other.w.shape} and statistics {other.s.shape}, "
                f"expected {w.shape} and {s.shape}"
            )
        w += sign * other.w
        s += sign * other.s
    return PushSumState(x=x, w=w, s=s)
