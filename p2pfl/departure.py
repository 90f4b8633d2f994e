"""Leaving a run for good: nothing more is taken in, and what is held goes to one out-neighbour."""

from __future__ import annotations

from p2pfl import plans, rounds, validation
from p2pfl.events import Kind, Notice
from p2pfl.ids import PeerId
from p2pfl.state import Phase, State

__all__ = ["begin", "is_over"]


def begin(state: State) -> None:
    """Take no more in, as soon as an out-neighbour is there to take everything."""
    if rounds.holds_mass(state) and not _heirs(state):
        state.reason = "waiting for an out-neighbour that takes this node's mass"
        return
    rounds.settle_now(state)
    state.phase, state.reason = Phase.LEAVING, "handing the mass over"
    state.deadline = state.settle_until = state.now + state.spec.run.deadline_s
    for peer in state.neighbours.up():
        state.send(peer, Kind.NOTICE, Notice(code="not-accepted", text="this node leaves the run"))


def is_over(state: State) -> bool:
    """Hand over what there is; whether everything is settled, or the time for it is up."""
    rounds.settle_now(state)
    if state.now >= state.settle_until:
        return True
    if any(True for _ in state.links.unresolved()):
        return False
    if rounds.holds_mass(state):
        # Refused by an heir, or offered for the first time.
        if heirs := _heirs(state):
            offer = rounds.surrender(state, heirs[0])
            state.commit()
            state.emit(offer)
        return False
    return all(state.links.has(p, state.neighbours[p].sent) for p in state.neighbours.up())


def _heirs(state: State) -> list[PeerId]:
    out = plans.neighbours_of(state, state.round)[1]
    return [
        p
        for p in state.neighbours.up()
        if p in out
        and state.links.is_free(p)
        and state.links.edge_to(p).accepting
        and state.consortium.may_share(p)
        and not validation.is_quarantined(state, p)
    ]
