"""Push-pull and Push-DIGing: gradient tracking, which ends on the exact optimum of any directed graph.

Each peer holds its model x, a tracker y, and g, the gradient it put into the tracker last.  A round: put the
new gradient in the place of the old, y += g+ - g; step along the tracker, x -= y; give a part of y to every
out-neighbour and keep the rest; average x with the models that arrived.  The sum of y, with what is in
flight, is the sum of g always, so that every y becomes a part of the *sum* of gradients and x stands still
only where that sum is zero; push-sum with unlike sites and a constant step ends beside it.

Push-pull (AB) averages x with row-stochastic weights, so no model is ever divided by a weight: on a graph
that starves some peers of weight, where push-sum's steps have to be capped and Push-DIGing's diverge, it
loses nothing.  Push-DIGing mixes x like y, by push-sum; it needs no row-stochastic weights.

y is conserved exactly as push-sum's numerators are, and travels with a weight w and statistics s that are
split alike, so `push_sum.portion`, `keep` and `merge` move it; a model that is lost costs nothing, a tracker
that is lost moves the point where x stands still.  Gradients come multiplied by the learning rate; a fit of
one step moves x by exactly that.
`n` peers on the leading axis (a daemon: one), `d` parameters, `k` statistics.
Sources: Xin, Khan 2018, arXiv:1803.02503, equations 2 (AB); Pu, Shi, Xu, Nedic 2021, arXiv:1810.06653,
algorithm 1 (Push-Pull); Nedic, Olshevsky, Shi 2017, arXiv:1607.03218, algorithm 2 (Push-DIGing).  There
gradients are taken after a round's exchange; here before or after, as the caller has it, and y takes them in
before it is split, so that one message carries the newest of both.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from p2pfl.errors import AggregationError
from p2pfl.gossip import push_sum
from p2pfl.gossip.mixing import Floats, Kind, Mixer, Vectors, combine
from p2pfl.gossip.push_sum import PushSumState

__all__ = [
    "PUSH_PULL",
    "PushPullState",
    "init",
    "step",
    "pull",
    "restart",
    "diging_init",
    "diging_models",
    "diging_step",
]

PUSH_PULL = Mixer(name="push-pull", requires=frozenset({Kind.ROW, Kind.COLUMN}), delivery="share")


@dataclass(frozen=True, slots=True, kw_only=True)
class PushPullState:
    """What a peer holds.

    x: (n, d) float32, models.   g: (n, d) float32, the gradients put into the tracker last.
    pushed: what is split and conserved; its numerators `pushed.x` are the tracker y.
    """

    x: Vectors
    g: Vectors
    pushed: PushSumState


def init(theta: Vectors, weight: Floats, statistics: Floats) -> PushPullState:
    """Models `theta`, (n, d), that have not taken a gradient: y = g = 0.

    weight, statistics: as in `push_sum.init`; raises AggregationError as that does.
    """
    zeros = np.zeros_like(theta)
    return PushPullState(x=theta, g=zeros, pushed=push_sum.init(zeros, weight, statistics))


def step(state: PushPullState, gradient: Vectors) -> PushPullState:
    """The state after `gradient`, (n, d) float32, took the place of the last: y += gradient - g, x -= y.

    The first gradient of all makes y = g, as the method starts.
    """
    pushed = _tracked(state.pushed, state.g, gradient)
    return PushPullState(x=combine([state.x, pushed.x], [None, _minus(state.x)]), g=gradient, pushed=pushed)


def pull(x: Vectors, arrived: Sequence[Vectors], is_blank: NDArray[np.bool_]) -> Vectors:
    """The plain mean of each peer's model and those that arrived, x+ = R x with uniform rows, (n, d) float32.

    arrived: one (n, d) float32 array for each of the models that every peer heard, in PeerId order; one that
    did not come is left out, and the rest weigh more.   is_blank: (n,), whether a peer has no model of its
    own yet: it takes the others'.   O(n d (1 + models)).
    """
    if not arrived:
        return x
    own = np.where(is_blank, 0.0, 1.0)
    part = 1.0 / (own + len(arrived))
    return combine([x, *arrived], [own * part, *[part] * len(arrived)])


def restart(state: PushPullState) -> PushPullState:
    """The state with y = g.  When all do, and forget what is in flight, the sum of y is the sum of g again.

    For when part of the tracker is lost for good, with the disk of a peer: the sums have parted by an amount
    that nobody knows.
    """
    return replace(state, pushed=replace(state.pushed, x=state.g))


def diging_init(theta: Vectors, weight: Floats, statistics: Floats) -> PushSumState:
    """Push-DIGing's state: numerators [w theta | y] side by side, (n, 2d), with y = 0."""
    started = push_sum.init(theta, weight, statistics)
    return replace(started, x=np.concatenate([started.x, np.zeros_like(theta)], axis=1))


def diging_models(state: PushSumState) -> Vectors:
    """The models u/w of a Push-DIGing state, (n, d) float32."""
    return np.ascontiguousarray(push_sum.debias(state)[:, : state.x.shape[1] // 2])


def diging_step(state: PushSumState, g: Vectors, gradient: Vectors) -> PushSumState:
    """The state after y += gradient - g, u -= y.   g: the gradients of the step before, zero at first."""
    d = state.x.shape[1] // 2
    y = _tracked(replace(state, x=np.ascontiguousarray(state.x[:, d:])), g, gradient).x
    u = combine([np.ascontiguousarray(state.x[:, :d]), y], [None, _minus(y)])
    return replace(state, x=np.concatenate([u, y], axis=1))


def _tracked(pushed: PushSumState, g: Vectors, gradient: Vectors) -> PushSumState:
    if gradient.shape != pushed.x.shape:
        raise AggregationError(f"gradients of shape {gradient.shape}, expected {pushed.x.shape}")
    return replace(pushed, x=combine([pushed.x, gradient, g], [None, None, _minus(g)]))


def _minus(x: Vectors) -> Floats:
    return np.full(len(x), -1.0)
