"""What is said again, because it may have been lost: greetings, shares, and the last round's words."""

from __future__ import annotations

from p2pfl.events import Kind, Message, Notice, Send
from p2pfl.ids import PeerId
from p2pfl.state import State

__all__ = ["RESENDS_PER_DEADLINE", "resend_shares", "say_again"]

# Unanswered shares and statements are said again this often within a round's deadline: a lost frame then
# costs a quarter of it, not all.
RESENDS_PER_DEADLINE = 4


def say_again(state: State) -> None:
    """Repeat whatever had no answer for one tick; a peer that has it already answers with a few bytes."""
    assert state.tick is not None
    interval = state.spec.run.deadline_s / RESENDS_PER_DEADLINE
    state.tick = state.now + interval
    for peer, one in state.neighbours.items():
        if one.connected and not one.up:
            # Its HELLO or mine was lost, or came too late.
            state.greet(peer)
            state.send(peer, Kind.NOTICE, Notice(code="greet"))
    resend_shares(state, state.neighbours.up(), older_than=state.now - interval)
    for said in state.last_words:
        if state.neighbours[said.peer].up:
            state.emit(said)


def resend_shares(state: State, peers: list[PeerId], older_than: float) -> None:
    """Offer the unresolved shares to `peers` again: the stored bytes, header first."""
    for name, entry in list(state.links.unresolved()):
        peer = PeerId(name)
        if peer in peers and entry.header.issued_at <= older_than:
            body = state.pool.get(entry.header.digest)
            state.emit(Send(peer=peer, message=Message(header=entry.header, body=body)))
