"""What can be shown of a peer: frozen, so that a status page may hold on to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from p2pfl.ids import PeerId
from p2pfl.state import State

__all__ = ["PeerView", "view_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerView:
    """A peer as people and tools see it, frozen."""

    me: PeerId
    run: str
    phase: str
    reason: str
    round: int
    stage: str
    training_round: int
    rounds: int
    members: tuple[PeerId, ...]
    wanted: tuple[PeerId, ...]
    neighbours: Mapping[PeerId, Mapping[str, Any]]
    metrics: Mapping[str, float]
    incarnation: int
    w: float
    nominal: float
    entered: float
    written_off: float
    in_flight: float
    finished: str
    epsilon: float | None
    budget_is_spent: bool
    hub: PeerId | None


def view_of(state: State, wanted: tuple[PeerId, ...]) -> PeerView:
    """`state` as it can be shown.   wanted: the members it keeps a connection to."""
    neighbours = {
        peer: {
            "connected": one.connected,
            "up": one.up,
            "late": one.late,
            "state": "late" if one.late else "connected" if one.up else "disconnected",
            "round": one.round,
            "seen_at": one.seen_at or None,
            "accepting": state.links.edge_to(peer).accepting,
            "sent_w": state.links.edge_to(peer).sent_w,
            "absorbed_w": state.links.edge_from(peer).absorbed_w,
            "unresolved": len(state.links.edge_to(peer).entries),
        }
        for peer, one in state.neighbours.items()
    }
    return PeerView(
        me=state.me,
        run=state.run,
        phase=state.phase.value,
        reason=state.reason,
        round=state.round,
        stage=state.schedule.stage(state.round),
        training_round=min(max(state.round - state.schedule.opening, 0), state.schedule.training),
        rounds=state.schedule.training,
        members=state.members(),
        wanted=wanted,
        neighbours=neighbours,
        metrics=dict(state.metrics),
        incarnation=state.incarnation,
        w=state.mass.w,
        nominal=state.nominal,
        entered=state.links.entered,
        written_off=state.links.written_off,
        in_flight=state.links.in_flight_w(),
        finished=state.finished,
        epsilon=state.epsilon,
        budget_is_spent=state.budget_is_spent,
        hub=state.knowing.hub if state.knowing is not None else None,
    )
