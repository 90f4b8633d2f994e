"""What a peer does with what others say: greet, judge, buffer, or refuse.  Nothing here can raise.

Large bodies come in two steps: a verified header is judged first, and only a body that is wanted is fetched.
A judgement that settles a share (refused for good) waits for the next commit like an absorbed one; a
judgement that does not (not now) is only said, and the share is offered again.
"""

from __future__ import annotations

import hashlib

import numpy as np

from p2pfl.errors import RemoteError
from p2pfl.events import (
    Ack,
    Faulted,
    Fetch,
    HangUp,
    Header,
    Hello,
    Kind,
    Notice,
    Offered,
    Received,
    Refuse,
    Roster,
    Statement,
)
from p2pfl.gossip.links import Arrival, Meeting, Place
from p2pfl.ids import PeerId
from p2pfl.mass import body_bytes, unpack
from p2pfl.repeats import resend_shares
from p2pfl.rounds import acknowledge
from p2pfl.run import differing_keys
from p2pfl.state import Phase, State
from p2pfl.trust import audit, screening
from p2pfl.trust.relations import weight_limit

__all__ = ["connected", "disconnected", "failed", "offered", "received", "rebirth"]

# A weight may be at most this multiple of all members' nominal weights: more than the network can hold, with
# room for members that this site has not heard of yet.
_WEIGHT_MARGIN = 4.0
# Sample counts of other sites are not known; beyond this a weight is a lie (10^12 rows).
_MOST_SAMPLES = 1e12


def connected(state: State, peer: PeerId) -> None:
    """A member is connected: HELLO first, nothing else until its own is in."""
    one = state.neighbours[peer]
    one.connected, one.up = True, False
    state.links.discard(peer)
    one.fetching.clear()
    state.greet(peer)


def disconnected(state: State, peer: PeerId) -> None:
    """Whatever was under way is void; the sender keeps it."""
    state.neighbours.lost(peer)
    state.links.discard(peer)


def failed(state: State, event: Faulted) -> None:
    """Bytes that could not be understood, or a fetch that failed; a share will be offered again."""
    if event.header is not None:
        state.neighbours[event.peer].fetching.pop((event.header.kind, event.header.edge_seq), None)
    else:
        state.fault(event.peer, event.reason)


def _stranger(state: State, header: Header, peer: PeerId) -> str | None:
    """Why a message is not listened to at all, or None."""
    if header.sender != peer or header.recipient != state.me:
        return "misaddressed"
    if state.consortium.standing(peer, state.now) != "member":
        return "not-member"
    if header.kind is not Kind.HELLO and (header.run != state.run or header.epoch != 0):
        return "other-run"
    return None


def offered(state: State, event: Offered) -> None:
    """Judge a header: Fetch the body, or Refuse it."""
    peer, header = event.peer, event.header
    if reason := _stranger(state, header, peer) or _unwanted(state, peer, header):
        state.emit(Refuse(peer=peer, header=header, reason=reason))
        return
    state.neighbours[peer].fetching[(header.kind, header.edge_seq)] = header
    state.emit(Fetch(peer=peer, header=header))


def _unwanted(state: State, peer: PeerId, header: Header) -> str | None:
    one = state.neighbours[peer]
    if header.kind not in (Kind.SHARE, Kind.STATE):
        state.fault(peer, "offer")
        return "offer"
    if not one.up or header.incarnation != one.incarnation:
        return "not-linked"
    state.neighbours.heard(peer, header.round + 1, state.now)
    if (header.kind, header.edge_seq) in one.fetching:
        return "have"
    if header.kind is Kind.SHARE:
        one.sent = max(one.sent, header.edge_seq)
        place = state.links.place(peer, header.edge_seq)
        if place is Place.HAVE:
            acknowledge(state, [peer] if header.edge_seq <= state.links.edge_from(peer).absorbed else [])
        if place is not Place.NEW:
            return str(place.value)
    elif one.state is not None and one.state[0] > header.round:
        return "have"
    if state.phase is Phase.LEAVING:
        return _refused(state, peer, header, "not-accepted")
    held = state.neighbours.fetching_bytes() + state.links.held_bytes()
    reason = screening.judge_header(
        header,
        schema_hash=state.schema_hash,
        expected_bytes=body_bytes(len(state.mass.model), state.mass.k),
        is_member=True,
        level=state.consortium.accept_level(peer),
        free_bytes=state.memory_bytes - held,
    )
    if reason == "memory":
        # Not the sender's fault: it offers the share again, and by then there may be room.
        state.fact("memory limit reached", "warning", peer=peer, limit_bytes=state.memory_bytes)
        return reason
    return _refused(state, peer, header, reason) if reason else None


def _refused(state: State, peer: PeerId, header: Header, reason: str) -> str:
    """Refuse for good: a share is settled so at the next commit."""
    if reason != "not-accepted":
        state.fault(peer, reason)
    if header.kind is Kind.SHARE:
        state.links.arrive(peer, Arrival(header=header, body=None, reason=reason))
    return reason


def received(state: State, event: Received) -> None:
    """Take in a whole message."""
    peer, message = event.peer, event.message
    header = message.header
    one = state.neighbours[peer]
    wanted = one.fetching.pop((header.kind, header.edge_seq), None)
    if reason := _stranger(state, header, peer):
        state.fault(peer, reason)
        return
    if state.finished == "left" and header.kind in (Kind.HELLO, Kind.STATEMENT):
        # It has not heard.
        state.send(peer, Kind.NOTICE, Notice(code="left"))
        return
    match message.body:
        case Hello() as hello:
            _hello(state, peer, header, hello)
        case Roster() as roster:
            _roster(state, peer, roster)
        case Ack() as ack if one.up and header.incarnation == one.incarnation:
            one.late = False
            for entry in state.links.acknowledged(peer, ack, state.incarnation):
                state.mass.absorb([(entry.w, state.pool.get(entry.header.digest))])
                reason = ack.refused.get(entry.seq, "")
                state.fact("share refused", "warning", peer=peer, seq=entry.seq, reason=reason)
        case Statement() as statement if one.up and header.incarnation == one.incarnation:
            _statement(state, peer, header, statement)
        case Notice() as notice:
            _notice(state, peer, notice)
        case np.ndarray() as body if wanted is not None and one.up and header.incarnation == one.incarnation:
            _vector(state, peer, header, body)
        case _:
            pass  # said before a HELLO, or to an earlier incarnation of mine: it will be said again


def _vector(
    state: State, peer: PeerId, header: Header, body: np.ndarray[tuple[int], np.dtype[np.uint8]]
) -> None:
    k, d = state.mass.k, len(state.mass.model)
    members = max(len(state.members()), 1)
    is_sampled = state.spec.run.weights == "samples"
    most = weight_limit(
        state.consortium.accept_level(peer),
        total=_MOST_SAMPLES if is_sampled else members * state.nominal * _WEIGHT_MARGIN,
        n=members,
    )
    if body.nbytes != body_bytes(d, k) or (header.kind is Kind.SHARE and len(header.weights) != 1):
        reason: str | None = "size"
    else:
        w = header.weights[0] if header.kind is Kind.SHARE else 1.0
        part = unpack(body, w, k)
        reason = screening.judge_vector(
            part.x[0], part.s[0], weight=w, max_norm=state.spec.trust.max_norm, max_weight=most
        )
    if reason:
        _refused(state, peer, header, reason)
    elif header.kind is Kind.SHARE:
        state.links.arrive(peer, Arrival(header=header, body=body))
    else:
        state.neighbours[peer].state = (header.round + 1, body)


def _statement(state: State, peer: PeerId, header: Header, statement: Statement) -> None:
    one = state.neighbours[peer]
    one.sent = max(one.sent, header.edge_seq)
    state.neighbours.heard(peer, header.round + 1, state.now)
    one.begun = True
    one.over = one.over or header.round + 1 >= state.schedule.total
    try:
        link = audit.check_link(one.head, statement.content, sender=peer, run=state.run)
        head = audit.head_of(statement.content)
    except RemoteError:
        state.fault(peer, "statement")
        return
    if (head.incarnation, head.boot_session) != (header.incarnation, header.boot_session):
        state.fault(peer, "statement")
    elif link == "equivocation":
        state.fault(peer, "equivocation")
    elif link != "old":
        one.head = head


def _notice(state: State, peer: PeerId, notice: Notice) -> None:
    one = state.neighbours[peer]
    match notice.code:
        case "accepted" | "not-accepted":
            state.links.edge_to(peer).accepting = notice.code == "accepted"
        case "left":
            if peer not in state.left:
                state.left.add(peer)
                lost = state.links.write_off(peer)
                state.fact("member left", peer=peer, written_off=lost)
                state.commit()
        case "finished":
            one.over = True
        case "greet":
            state.greet(peer)
        case "retired" if not one.up:
            _rolled_back(state, peer)
        case "run-mismatch":
            state.fact("run mismatch", "error", peer=peer, text=notice.text)
        case _:
            state.fault(peer, "notice")


def _roster(state: State, peer: PeerId, roster: Roster) -> None:
    for reason in learn(state, roster, said_by=peer):
        state.fault(peer, reason)


def learn(state: State, roster: Roster, said_by: PeerId | None = None) -> tuple[str, ...]:
    """Take in a roster and pass on what is new in it.  Returns what was wrong with it."""
    outcome = state.consortium.merge(roster, state.now)
    if outcome.changed:
        enforce(state)
        state.fact("roster changed", members=len(state.members()))
        state.commit()
        spread(state, but=said_by)
    return outcome.faults


def spread(state: State, but: PeerId | None = None) -> None:
    """Tell the roster to everyone connected."""
    for other in state.neighbours.connected():
        if other != but:
            for part in state.consortium.parts():
                state.send(other, Kind.ROSTER, part)


def enforce(state: State) -> None:
    """Cut every connection to a peer that this site does not talk to any more.

    Who was revoked is out of the run, and the books on it are closed.  Who is banned by this site alone lives
    on for the others: what is in flight to it stays in the outbox, so that nothing is lost or counted twice.
    """
    state.revoked = state.consortium.standing(state.me, state.now) == "revoked"
    for peer in sorted({*(p for p, _ in state.neighbours.items()), *map(PeerId, state.links.out)}):
        standing = state.consortium.standing(peer, state.now)
        if standing == "member":
            continue
        if standing != "banned" and state.links.is_open(peer):
            lost = state.links.write_off(peer)
            state.fact("member gone", "warning", peer=peer, standing=standing, written_off=lost)
        if state.neighbours[peer].connected:
            if standing == "revoked":
                # So that it learns why.
                for part in state.consortium.parts():
                    state.send(peer, Kind.ROSTER, part)
            state.neighbours.lost(peer)
            state.links.discard(peer)
            state.emit(HangUp(peer=peer, reason=f"this peer is {standing} here", ban=True))


def _hello(state: State, peer: PeerId, header: Header, hello: Hello) -> None:
    one = state.neighbours[peer]
    if header.run != state.run:
        keys = ", ".join(differing_keys(state.agreement, hello.agreement.encode()))
        text = f"our agreements differ in: {keys}"
        state.fact("run mismatch", "error", peer=peer, text=text)
        state.send(peer, Kind.NOTICE, Notice(code="run-mismatch", text=text))
        state.emit(HangUp(peer=peer, reason=text))
        return
    boot_session, number = one.greeting
    if header.boot_session == boot_session and header.edge_seq <= number:
        return
    one.greeting = (header.boot_session, header.edge_seq)
    if hello.initial_digest != state.initial_digest:
        state.emit(
            HangUp(peer=peer, reason="its first model differs from ours; do both sites run the same code?")
        )
        state.fact("first model differs", "error", peer=peer)
        return
    verdict, refused, changed = state.links.meet(peer, header.incarnation, hello, state.incarnation)
    if verdict is Meeting.RETIRED:
        state.send(peer, Kind.NOTICE, Notice(code="retired", text="begin anew: the books on you are closed"))
        return
    if verdict is Meeting.I_ROLLED_BACK:
        _rolled_back(state, peer)
        return
    if changed:
        state.fact("neighbour began anew", "warning", peer=peer, written_off=state.links.written_off)
        one.state, one.head, one.sent = None, None, 0
    for entry in refused:
        state.mass.absorb([(entry.w, state.pool.get(entry.header.digest))])
    one.incarnation, one.begun, one.met = header.incarnation, hello.begun, True
    one.up = verdict is Meeting.UP
    one.counted = hello.counted and hello.their_incarnation == state.incarnation
    one.sent = max(hello.sent, state.links.edge_from(peer).absorbed)
    one.round = header.round
    one.over = hello.phase in (Phase.DRAINING.value, Phase.JUDGING.value, Phase.FINISHED.value)
    state.neighbours.heard(peer, header.round, state.now)
    if changed or hello.their_incarnation != state.incarnation:
        state.greet(peer)
    if one.up:
        resend_shares(state, [peer], older_than=state.now)
    if hello.roster_digest != state.consortium.digest():
        for part in state.consortium.parts():
            state.send(peer, Kind.ROSTER, part)


def _rolled_back(state: State, peer: PeerId) -> None:
    """`peer` remembers more of this node than its disk does.

    That can only come to light at a first meeting after a start; later it is a lie, and costs nothing.
    """
    if state.neighbours[peer].met:
        state.fault(peer, "rollback-claim")
        state.emit(HangUp(peer=peer, reason="it claims that this node lost its memory while it ran"))
        return
    state.neighbours[peer].met = True
    rebirth(state, f"{peer} remembers more of this node than its disk does: a restored backup")


def rebirth(state: State, reason: str) -> None:
    """Become a new incarnation: the mass of the old one is the network's to write off."""
    state.rebirths += 1
    state.incarnation = fresh_incarnation(state)
    state.mass.vanish()
    state.links.out, state.links.into = {}, {}
    state.links.entered = state.links.written_off = 0.0
    state.pool.retain(set())
    state.fact("began anew", "warning", reason=reason, incarnation=state.incarnation)
    state.commit()
    for peer in state.neighbours.connected():
        state.neighbours[peer].up = False
        state.links.discard(peer)
        state.greet(peer)


def fresh_incarnation(state: State) -> int:
    """A number no earlier incarnation had: 63 bits of the driver's entropy."""
    seed = state.entropy + state.rebirths.to_bytes(8, "big") + b"incarnation"
    return int.from_bytes(hashlib.sha256(seed).digest()[:8], "big") >> 1
