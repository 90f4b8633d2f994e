"""HELLO: whether two peers hold the same agreement, and where their two edges stand.

A claim that this node has forgotten something is believed only where it can be true: of a state that came
from a disk, at the first meeting after the start.  Even then it costs this node's mass, so a member that
lies at that moment harms whom it lies to; it can do so once a start, and is named in the log.
"""

from __future__ import annotations

import hashlib

from p2pfl.events import HangUp, Header, Hello, Kind, Notice
from p2pfl.gossip.links import Meeting, OutEdge
from p2pfl.ids import PeerId
from p2pfl.repeats import resend_shares
from p2pfl.run import differing_keys
from p2pfl.state import Phase, State

__all__ = ["fresh_incarnation", "hello", "rebirth", "rolled_back"]


def hello(state: State, peer: PeerId, header: Header, said: Hello) -> None:
    """Take in the HELLO of a member."""
    one = state.neighbours[peer]
    if header.incarnation == 0:
        state.fault(peer, "incarnation")
        return
    if header.run != state.run:
        keys = ", ".join(differing_keys(state.agreement, said.agreement.encode()))
        text = f"our agreements differ in: {keys}"
        state.fact("run mismatch", "error", peer=peer, text=text)
        state.send(peer, Kind.NOTICE, Notice(code="run-mismatch", text=text))
        state.emit(HangUp(peer=peer, reason=text))
        return
    boot_session, number = one.greeting
    if header.boot_session == boot_session and header.edge_seq <= number:
        return
    one.greeting = (header.boot_session, header.edge_seq)
    if said.initial_digest != state.initial_digest:
        state.emit(
            HangUp(peer=peer, reason="its first model differs from ours; do both sites run the same code?")
        )
        state.fact("first model differs", "error", peer=peer)
        return
    written_off = state.links.written_off
    verdict, returned, changed = state.links.meet(peer, header.incarnation, said, state.incarnation)
    if verdict is Meeting.RETIRED:
        state.send(peer, Kind.NOTICE, Notice(code="retired", text="begin anew: the books on you are closed"))
        return
    if verdict is Meeting.I_ROLLED_BACK:
        rolled_back(state, peer)
        return
    if changed:
        state.fact("neighbour began anew", "warning", peer=peer, written_off=state.links.written_off)
        lost = state.links.written_off - written_off
        state.decide("write-off", peer, "began-anew", rule="incarnation", weight=lost)
        one.state, one.head, one.sent = None, None, 0
        state.mass.restart()
    for back in returned:
        state.take_back(back)
    one.incarnation, one.begun, one.met = header.incarnation, said.begun, True
    one.up = verdict is Meeting.UP
    one.counted = said.counted and said.their_incarnation == state.incarnation
    one.sent = max(said.sent, state.links.edge_from(peer).absorbed)
    one.round = min(header.round, state.schedule.total)
    one.over = said.phase in (Phase.DRAINING.value, Phase.JUDGING.value, Phase.FINISHED.value)
    state.neighbours.heard(peer, one.round, state.now)
    if changed or said.their_incarnation != state.incarnation:
        state.greet(peer)
    if one.up:
        resend_shares(state, [peer], older_than=state.now)
    if said.roster_digest != state.consortium.digest():
        for part in state.consortium.parts():
            state.send(peer, Kind.ROSTER, part)


def rolled_back(state: State, peer: PeerId) -> None:
    """`peer` says that it remembers more of this node than its disk does.

    That can be so only of what came from a disk, and comes to light at the first meeting after a start;
    otherwise it is a lie, and costs nothing.
    """
    if state.neighbours[peer].met or not state.is_restored:
        state.fault(peer, "rollback-claim")
        state.emit(HangUp(peer=peer, reason="it claims that this node lost its memory while it ran"))
        return
    state.neighbours[peer].met = True
    rebirth(state, f"{peer} remembers more of this node than its disk does: a restored backup")


def rebirth(state: State, reason: str) -> None:
    """Become a new incarnation: the mass of the old one is the network's to write off."""
    state.rebirths += 1
    state.is_restored = False
    state.incarnation = fresh_incarnation(state)
    state.mass.vanish()
    state.links.out = {p: OutEdge(retired=edge.retired) for p, edge in state.links.out.items()}
    state.links.into = {}
    state.links.entered = state.links.written_off = 0.0
    state.pool.retain(set())
    state.fact("began anew", "warning", reason=reason, incarnation=state.incarnation)
    state.decide(
        "incarnation",
        state.me,
        "began-anew",
        rule="incarnation",
        digest=state.incarnation.to_bytes(8, "big"),
    )
    state.commit()
    for peer in state.neighbours.connected():
        state.neighbours[peer].up = False
        state.links.discard(peer)
        state.greet(peer)


def fresh_incarnation(state: State) -> int:
    """A number no earlier incarnation had: 63 bits of the driver's entropy."""
    seed = state.entropy + state.rebirths.to_bytes(8, "big") + b"incarnation"
    return int.from_bytes(hashlib.sha256(seed).digest()[:8], "big") >> 1
