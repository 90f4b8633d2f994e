"""What receivers make of what they heard: many at a time by the gossip kernels, or one by one where a robust
rule decides or somebody lies.

`n` peers; `m` receivers, whose rows are `own`; `d` parameters.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from p2pfl.aggregation import mix_robustly
from p2pfl.errors import LocalError
from p2pfl.events import Vector
from p2pfl.gossip import averaging, push_sum
from p2pfl.gossip.mixing import Floats, Indices
from p2pfl.gossip.push_sum import PushSumState
from p2pfl.gossip.topology import Plan
from p2pfl.trust.options import AggregatorOptions
from p2pfl.trust.relations import Level
from p2pfl.trust.screening import MIN_WEIGHT

from .inflow import Inflow, Weights, inflows
from .lies import Lies

__all__ = ["absorb", "absorb_lies", "put", "share_of", "split_unequally", "take", "weigh"]


def take(state: PushSumState, rows: Indices) -> PushSumState:
    """A copy of some rows."""
    return PushSumState(x=state.x[rows], w=state.w[rows], s=state.s[rows])


def put(state: PushSumState, rows: Indices, some: PushSumState) -> None:
    """Write `some` over those rows."""
    state.x[rows], state.w[rows], state.s[rows] = some.x, some.w, some.s


def absorb(own: PushSumState, sent: PushSumState, into: Sequence[Inflow]) -> None:
    """Add shares, or average states, as `into` says; `own`, (m, d), is written.

    sent: (n, d), each peer's state or share; where it gives unequal parts, all of which they are parts.
    """
    for inflow in into:
        some = take(own, inflow.receivers)
        others = [take(sent, senders) for senders in inflow.senders.T]
        if inflow.fractions is not None:
            parts = zip(others, inflow.fractions.T, strict=True)
            others = [push_sum.portion(other, np.ascontiguousarray(part)) for other, part in parts]
        if inflow.weights is None:
            some = push_sum.merge(some, others)
        else:
            x = averaging.mix(some.x, [other.x for other in others], inflow.weights)
            some = PushSumState(x=x, w=some.w, s=_mixed(some.s, others, inflow.weights))
        put(own, inflow.receivers, some)


def absorb_lies(
    own: PushSumState, sent: PushSumState, peers: Indices, plan: Plan, weights: Weights, lies: Lies
) -> None:
    """The same for `peers`, where attackers sent what `lies` holds; `own` is written.

    A share that is refused or never came adds nothing; for such a state the own model stands in.
    """
    for row, i in enumerate(peers.tolist()):
        me, here = np.array([row]), take(own, np.array([row]))
        for inflow in inflows(plan, peers[me], weights, own.x.shape[1]):
            senders = inflow.senders[0].tolist()
            is_share = inflow.weights is None
            told = [_told(share_of(sent, plan, j, i, is_share=is_share), lies, i, j) for j in senders]
            if inflow.weights is None:
                here = push_sum.merge(here, [one for one in told if one is not None])
                continue
            x = averaging.mix(here.x, [None if one is None else one.x for one in told], inflow.weights)
            others = [here if one is None else one for one in told]
            here = PushSumState(x=x, w=here.w, s=_mixed(here.s, others, inflow.weights))
        put(own, me, here)


def weigh(
    own: PushSumState,
    sent: PushSumState,
    peers: Indices,
    plan: Plan,
    options: AggregatorOptions,
    lies: Lies,
    progress: float,
) -> int:
    """Let the robust rule say what each of `peers` makes of what it heard; `own` is written.

    returns: at how many of them the rule's bound was broken.
    """
    broken = 0
    for row, i in enumerate(peers.tolist()):
        heard = plan.in_neighbours(i)
        models = [lies.get((i, j), sent.x[j]) for j in heard]
        came: list[Vector] = [model for model in models if model is not None]
        weighing = mix_robustly(
            options,
            own.x[row],
            came,
            levels=[Level.NORMAL] * len(came),
            edges=len(heard),
            progress=progress,
        )
        own.x[row] = weighing.vector
        broken += weighing.is_bound_broken
    return broken


def share_of(sent: PushSumState, plan: Plan, j: int, i: int, *, is_share: bool = True) -> PushSumState:
    """What peer j sends to peer i, a batch of one; `is_share`: by push-sum."""
    one = take(sent, np.array([j]))
    if not (is_share and plan.graph.has_unequal_parts):
        return one
    part = plan.graph.out_weights(j)[plan.out_neighbours(j).index(i)]
    return push_sum.portion(one, np.array([part]))


def split_unequally(own: PushSumState, peers: Indices, plan: Plan) -> PushSumState:
    """What is left to `peers`, who hold `own`, once each out-neighbour was given its own part.

    Raises LocalError when a part is so small that its receiver would refuse it.
    """
    kept = take(own, np.arange(len(peers)))
    by_degree: dict[int, list[int]] = defaultdict(list)
    for row, i in enumerate(peers.tolist()):
        by_degree[len(plan.out_neighbours(i))].append(row)
    for degree, listed in by_degree.items():
        rows = np.array(listed)
        parts = np.array([plan.graph.out_weights(i) for i in peers[rows].tolist()]).reshape(-1, degree)
        some = take(own, rows)
        if (parts * some.w[:, None] < MIN_WEIGHT).any():
            raise LocalError(f"a weight fell below {MIN_WEIGHT:g}; use --engine world")
        given = [push_sum.portion(some, np.ascontiguousarray(part)) for part in parts.T]
        put(kept, rows, push_sum.keep(some, given))
    return kept


def _told(honest: PushSumState, lies: Lies, i: int, j: int) -> PushSumState | None:
    if (i, j) not in lies:
        return honest
    model = lies[i, j]
    if model is None:
        return None
    # A share carries the model times its weight, a state weighs 1.
    x = (model[None] * honest.w[:, None]).astype(np.float32)
    return PushSumState(x=x, w=honest.w, s=honest.s)


def _mixed(own: Floats, others: Sequence[PushSumState], weights: Floats) -> Floats:
    s = weights[:, :1] * own
    for j, other in enumerate(others, start=1):
        s = s + weights[:, j : j + 1] * other.s
    return s
