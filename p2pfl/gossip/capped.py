"""Capped shares: push-sum in which a false weight buys nothing, on graphs where who sends also hears.

Plain push-sum believes the weight that a share brings: three times as much counts three times.  Here a
receiver takes of a share no more than the edge's own books allow: what it gave to that neighbour and did not
get back yet.  Each gives the other the part c = 1/(1 + max(d_i, d_j)) of its weight, which is the part that a
peer keeps where degrees are equal, and takes as much; the rest returns to its sender.  Added up over an
edge's life, what came in never exceeds what went out, so honest peers together never hold more than they
began with.  A larger cap, such as half of w_i, would let in on every edge more than goes out on it, and the
honest weight would grow by that factor each round.

Where all are honest and weigh alike no share is cut: it is push-sum with Metropolis-Hastings weights, and w
stays at its first value.  Where they weigh differently the smaller share flows both ways, so w stays, too.
What a neighbour that takes and never returns can cost is bounded in the same books: two shares, then nothing
more is given to it.

One share is taken on credit, since the answer to the last one given is still on its way.  A liar that takes
credit and then refuses what it was given is a share ahead on each edge, once; those are less than its own
w(0), so that the honest never hold more than all peers began with, whatever anybody says.

The model that a share brings is clipped around the receiver's own, since a tiny weight makes x/w as large as
one likes.  This defends against lies about weights, not against poisoned models.

`n` peers, `k` shares each, `d` parameters; a daemon calls with n = 1.
Source: the clipping is that of He, Karimireddy, Jaggi 2022, arXiv:2202.01545 (ClippedGossip); the caps and
the books are ours.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from p2pfl.errors import AggregationError
from p2pfl.gossip.mixing import Floats, Kind, Mixer, combine
from p2pfl.gossip.push_sum import PushSumState

__all__ = ["CAPPED_SHARE", "fraction_taken", "may_give", "distances", "radii", "absorb"]

CAPPED_SHARE = Mixer(name="capped-share", requires=frozenset({Kind.DOUBLY}), delivery="share")

# Sums of weights round in the last bits; a billionth of a share in the whole life of an edge is no lie.
_SLACK = 1e-9
# Shares that a neighbour may owe: the one under way, and one that comes late.
_MOST_OWED = 2.0
# Clipping radius over the norm of the own model: a model as long as it that points the other way is whole.
_RADIUS = 2.0
# Elements of a difference at a time: a float64 megabyte.
_BLOCK = 2**17


def fraction_taken(w: float, room: float, credit: float) -> float:
    """The part of a share of weight `w` > 0 that is taken, in [0, 1]; slivers are not worth an answer.

    room: what the edge's books allow.   credit: the weight of one share.
    """
    if w <= room + _SLACK * credit:
        return 1.0
    return room / w if room > _SLACK * credit else 0.0


def may_give(w: float, owed: float, credit: float) -> bool:
    """Whether a share of weight `w` may go to a neighbour that owes `owed`: what went less what came."""
    return owed + w <= (_MOST_OWED + _SLACK) * credit


def distances(state: PushSumState, incoming: Sequence[PushSumState]) -> Floats:
    """How far each share's model is from the receiver's own, (n, k): ||x_j/w_j - x_i/w_i||.

    A receiver of weight 0 has no model to measure from: its distances are 0.   O(n k d).
    """
    found = np.zeros((len(state.w), len(incoming)))
    for i, own in enumerate(state.w.tolist()):
        if own > 0:
            for j, share in enumerate(incoming):
                found[i, j] = _distance(share.x[i], float(share.w[i]), state.x[i], own)
    return found


def radii(state: PushSumState, tau: float | None) -> Floats:
    """How far from the own model a share's may be, (n,): tau, or twice the own model's norm.

    A multiple of the median distance, as in trust/robust.py, kept a ring from consensus: where a neighbour
    agrees, the median is 0 and whoever does not is clipped away.  A model of zeros measures nothing: inf.
    """
    if tau is not None:
        return np.full(len(state.w), tau)
    nothing = np.zeros(state.x.shape[1], np.float32)
    norms = [_distance(x, w or 1.0, nothing, 1.0) for x, w in zip(state.x, state.w.tolist(), strict=True)]
    return np.array([_RADIUS * norm if norm > 0 else np.inf for norm in norms])


def absorb(
    state: PushSumState, incoming: Sequence[PushSumState], taken: Floats, reach: Floats, far: Floats
) -> PushSumState:
    """The state after x += a (z + r (z_j - z)), w += a for each share: a = f w_j, r = min(1, reach / far).

    incoming: k shares of n rows.   taken: (n, k), the parts f.   reach: (n,), of `radii`.   far: (n, k), of
    `distances`.   With f = r = 1 these are the bits of `push_sum.merge`.
    Raises AggregationError when shapes differ.
    """
    shape = (len(state.w), len(incoming))
    if taken.shape != shape or far.shape != shape or reach.shape != shape[:1]:
        raise AggregationError(f"parts {taken.shape} and distances {far.shape} of shares {shape}")
    if not incoming:
        return state
    clip = np.where(far > reach[:, None], reach[:, None] / np.where(far > 0, far, 1.0), 1.0)
    own = np.ones(len(state.w))
    w, s = state.w.copy(), state.s.copy()
    for j, share in enumerate(incoming):
        weight = taken[:, j] * share.w
        own += weight * (1.0 - clip[:, j]) / np.where(state.w > 0, state.w, 1.0)
        w += weight
        s += taken[:, j, None] * share.s
    parts = [np.ascontiguousarray(taken[:, j] * clip[:, j]) for j in range(len(incoming))]
    return PushSumState(x=combine([state.x, *(share.x for share in incoming)], [own, *parts]), w=w, s=s)


def _distance(x: NDArray[np.float32], w: float, own: NDArray[np.float32], own_w: float) -> float:
    total = 0.0
    for start in range(0, len(x), _BLOCK):
        block = slice(start, start + _BLOCK)
        gap = x[block].astype(np.float64) / w - own[block].astype(np.float64) / own_w
        total += float(np.square(gap).sum())
    return float(np.sqrt(total))
