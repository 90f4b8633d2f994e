"""The step that mixes models which travel as states: the neighbours' latest, by the plan or by a rule."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from p2pfl import validation
from p2pfl.aggregation import is_robust, mix_robustly, tolerated
from p2pfl.ids import PeerId
from p2pfl.plans import plan_of
from p2pfl.state import State

__all__ = ["mix_states"]


def mix_states(state: State) -> int:
    """Mix with the neighbours' models of the round before.  Returns how many were there.

    A neighbour that this site does not accept, or whose model has not come, is as if it were not in the plan.
    """
    plan, members = plan_of(state, max(0, state.round - 1))
    if not state.round or state.me not in members:
        return 0
    me = members.index(state.me)
    row = plan.row(me)
    others = [j for j in sorted(row) if j != me]
    bodies = [_fresh(state, members[j]) for j in others]
    if is_robust(state.spec):
        came = [(members[j], body) for j, body in zip(others, bodies, strict=True) if body is not None]
        _aggregate(state, came, edges=len(others))
    else:
        state.mass.mix(bodies, [row[me], *(row[j] for j in others)])
        for j, body in zip(others, bodies, strict=True):
            if body is not None:
                _decide(state, members[j], state.spec.gossip.averaging.kind, row[j])
    for j, body in zip(others, bodies, strict=True):
        one = state.neighbours[members[j]]
        refusal = one.refusal
        if body is None and one.state_header is not None and (why := validation.objection(state, members[j])):
            seq, digest = one.state_header.edge_seq, one.state_header.digest
            state.decide("state", members[j], why, rule="reputation", seq=seq, digest=digest)
        elif body is None and refusal is not None and refusal[0].round + 1 >= state.round:
            header, reason = refusal
            state.decide(
                "state", members[j], reason, rule="screening", seq=header.edge_seq, digest=header.digest
            )
    return sum(body is not None for body in bodies)


def _decide(state: State, peer: PeerId, rule: str, weight: float, distance: float | None = None) -> None:
    """Put into the audit log at what weight the model of `peer` was mixed."""
    header = state.neighbours[peer].state_header
    assert header is not None
    state.decide(
        "state",
        peer,
        "mixed" if weight else "left-out",
        rule=rule,
        weight=weight,
        distance=distance,
        seq=header.edge_seq,
        digest=header.digest,
    )


def _fresh(state: State, peer: PeerId) -> NDArray[np.uint8] | None:
    held = state.neighbours[peer].state
    is_wanted = held is not None and held[0] >= state.round and state.consortium.accepts(peer)
    is_wanted = is_wanted and not validation.objection(state, peer)
    return held[1] if held is not None and is_wanted else None


def _aggregate(state: State, came: Sequence[tuple[PeerId, NDArray[np.uint8]]], edges: int) -> None:
    options = state.spec.trust.aggregator
    own = state.mass.state.x[0]
    weighing = mix_robustly(
        options,
        own,
        [state.mass.model_in(body) for _, body in came],
        levels=[state.consortium.accept_level(peer) for peer, _ in came],
        edges=edges,
        progress=state.schedule.progress(state.round),
    )
    state.mass.replace(weighing.vector)
    for number, (peer, _) in enumerate(came, start=1):
        weight, distance = float(weighing.weights[number]), float(weighing.distances[number])
        _decide(state, peer, options.kind, weight, distance)
    f = tolerated(options, edges)
    state.aggregate = {
        "rule": options.kind,
        "f": f,
        "inputs": 1 + len(came),
        "is_bound_broken": weighing.is_bound_broken,
        "own": float(weighing.weights[0]),
        "weights": {peer: float(a) for (peer, _), a in zip(came, weighing.weights[1:], strict=True)},
    }
    if weighing.is_bound_broken and not state.bound_is_broken:
        state.fact("robust bound broken", "warning", rule=options.kind, f=f, inputs=1 + len(came))
    state.bound_is_broken = weighing.is_bound_broken
