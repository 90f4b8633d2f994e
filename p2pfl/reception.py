"""What a peer does with what others say: greet, judge, buffer, or refuse.  Nothing here can raise.

Large bodies come in two steps: a verified header is judged first, and only a body that is wanted is fetched.
A judgement that settles a share (refused for good) waits for the next commit like an absorbed one; a
judgement that does not (not now) is only said, and the share is offered again.
"""

from __future__ import annotations

import hashlib

import numpy as np

from p2pfl import edges, epochs, exchanges, greeting, hubs, validation, witness
from p2pfl import roster as rosters
from p2pfl.errors import RemoteError
from p2pfl.events import (
    Ack,
    Faulted,
    Fetch,
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
from p2pfl.gossip.links import WINDOW, Arrival, Place
from p2pfl.ids import PeerId
from p2pfl.knowing import KINDS
from p2pfl.mass import unpack
from p2pfl.plans import is_apart, is_state
from p2pfl.rounds import acknowledge
from p2pfl.state import Phase, State
from p2pfl.trust import audit, screening
from p2pfl.trust.audit import RoundStatement
from p2pfl.trust.relations import Level, weight_limit

__all__ = ["connected", "disconnected", "failed", "offered", "received"]

# A weight may be at most this multiple of all members' nominal weights: more than the network can hold, with
# room for members that this site has not heard of yet.
_WEIGHT_MARGIN = 4.0
# Sample counts of other sites are not known; beyond this a weight is a lie (10^12 rows).
_MOST_SAMPLES = 1e12
# A share's term may be this much ahead: more than a run loses disks, and so little that no liar reaches the
# end of the whole numbers that a float64 tells apart.
_TERM_LEAD = 2**20


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
    hubs.gone(state, peer)


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
    if header.kind is not Kind.HELLO and header.run != state.run:
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
    if header.kind not in (Kind.SHARE, Kind.STATE, *KINDS):
        state.fault(peer, "offer")
        return "offer"
    if not one.up or header.incarnation != one.incarnation:
        return "not-linked"
    if header.kind in KINDS:
        # It is in this round, and has not committed it.
        state.neighbours.heard(peer, min(header.round, state.schedule.total), state.now)
        return exchanges.verdict(state, peer, header)
    if is_apart(state) or (header.kind is Kind.STATE) != is_state(state):
        # A run has one way of mixing; the other's bodies would enter by a door that nobody watches.
        state.fault(peer, "kind")
        return "kind"
    _heard(state, peer, header)
    if (header.kind, header.edge_seq) in one.fetching:
        return "have"
    if len(one.fetching) >= WINDOW:
        return "rate"
    if header.kind is Kind.SHARE:
        one.sent = max(one.sent, min(header.edge_seq, state.links.edge_from(peer).absorbed + WINDOW))
        one.offer = header
        place = state.links.place(peer, header.edge_seq)
        if place is Place.HAVE:
            acknowledge(state, [peer] if header.edge_seq <= state.links.edge_from(peer).absorbed else [])
        if place is not Place.NEW:
            return str(place.value)
    elif one.state is not None and one.state[0] > header.round:
        return "have"
    if not epochs.is_known(state, header.epoch):
        # It knows an amendment that has not arrived here: a greeting shows it what this side knows.
        state.greet(peer)
        return "epoch"
    if epochs.is_over(state, header.epoch):
        return _refused(state, peer, header, "epoch")
    if state.phase is Phase.LEAVING:
        return _refused(state, peer, header, "not-accepted")
    held = state.neighbours.fetching_bytes() + state.links.held_bytes()
    reason = screening.judge_header(
        header,
        schema_hash=state.schema_hash,
        expected_bytes=state.mass.body_bytes,
        is_member=True,
        level=state.consortium.own_level(peer),
        free_bytes=state.memory_bytes - held,
    )
    if reason == "memory":
        # Not the sender's fault: it offers the share again, and by then there may be room.
        state.fact("memory limit reached", "warning", peer=peer, limit_bytes=state.memory_bytes)
        return reason
    return _refused(state, peer, header, reason) if reason else None


def _heard(state: State, peer: PeerId, header: Header) -> None:
    """It has committed the round of this header."""
    state.neighbours.heard(peer, min(header.round + 1, state.schedule.total), state.now)


def _refused(state: State, peer: PeerId, header: Header, reason: str) -> str:
    """Refuse for good: a share is settled so at the next commit, a model is not mixed."""
    if reason not in ("not-accepted", "epoch", "doubted"):
        state.fault(peer, reason)
    if header.kind is Kind.SHARE:
        state.links.arrive(peer, Arrival(header=header, body=None, reason=reason))
    else:
        state.neighbours[peer].refusal = header, reason
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
            was_up = one.up
            greeting.hello(state, peer, header, hello)
            if one.up and not was_up:
                hubs.announce(state, peer)
        case Roster() as roster:
            _roster(state, peer, roster)
        case Ack() as ack if one.up and header.incarnation == one.incarnation:
            one.late = False
            for back in state.links.acknowledged(peer, ack, state.incarnation):
                state.take_back(back)
                if back.seq in ack.refused:
                    reason = ack.refused[back.seq]
                    state.fact("share refused", "warning", peer=peer, seq=back.seq, reason=reason)
        case Statement() as statement if one.up and header.incarnation == one.incarnation:
            _statement(state, peer, header, statement, event.frame)
        case Notice() as notice:
            _notice(state, peer, notice)
        case np.ndarray() as body if wanted is not None and one.up and header.incarnation == one.incarnation:
            if header.kind in KINDS:
                exchanges.absorb(state, peer, header, body)
            else:
                _vector(state, peer, header, body)
        case _:
            pass  # said before a HELLO, or to an earlier incarnation of mine: it will be said again


def _vector(
    state: State, peer: PeerId, header: Header, body: np.ndarray[tuple[int], np.dtype[np.uint8]]
) -> None:
    # Everybody who ever took part: who left has handed its mass to those who are still here.
    members = max(len(state.members()) + len(state.left), state.spec.run.members_at_start)
    is_sampled = state.spec.run.weights == "samples"
    level = state.consortium.accept_level(peer)
    most = weight_limit(
        max(level, Level.LIMITED),
        total=_MOST_SAMPLES if is_sampled else members * state.nominal * _WEIGHT_MARGIN,
        n=members,
    )
    reason = _unfit(state, header, body, most)
    if reason == "weight" and level < state.consortium.own_level(peer):
        # As much as it may bring to others: that it is less here is no fault of its own.
        reason = "doubted"
    if reason:
        _refused(state, peer, header, reason)
    elif header.kind is Kind.SHARE:
        state.links.arrive(peer, Arrival(header=header, body=body))
    else:
        one = state.neighbours[peer]
        one.state, one.state_header = (header.round + 1, body), header


def _unfit(
    state: State, header: Header, body: np.ndarray[tuple[int], np.dtype[np.uint8]], most: float
) -> str | None:
    """Why a body is not mixed, or None.   most: the largest weight that can be honest."""
    mass, max_norm = state.mass, state.spec.trust.max_norm
    is_share = header.kind is Kind.SHARE
    if body.nbytes != mass.body_bytes or (is_share and len(header.weights) != (2 if mass.is_tracked else 1)):
        return "size"
    w = header.weights[0] if is_share else 1.0
    part = unpack(body, w, mass.k)
    if not mass.is_tracked:
        return screening.judge_vector(part.x[0], part.s[0], weight=w, max_norm=max_norm, max_weight=most)
    # A model, and a tracker that may at most cross the space of models in one step: neither is scaled by w.
    term = header.weights[1]
    if not (0 <= term <= mass.term + _TERM_LEAD and term == int(term)):
        return "weight"
    d = len(mass.model)
    for vector in (part.x[0, :d], part.x[0, d:]):
        if reason := screening.judge_vector(vector, part.s[0], weight=1.0, max_norm=max_norm, max_weight=1.0):
            return reason
    return screening.judge_weight(w, max_weight=most)


def _statement(state: State, peer: PeerId, header: Header, statement: Statement, frame: bytes) -> None:
    one = state.neighbours[peer]
    one.sent = max(one.sent, min(header.edge_seq, state.links.edge_from(peer).absorbed + WINDOW))
    _heard(state, peer, header)
    one.begun = True
    one.over = one.over or header.round + 1 >= state.schedule.total
    try:
        stated, head = audit.read(statement.content, sender=peer, run=state.run)
    except RemoteError:
        state.fault(peer, "statement")
        return
    link = audit.check_link(one.head, stated, head)
    if (head.incarnation, head.boot_session, stated.round) != (
        header.incarnation,
        header.boot_session,
        header.round,
    ):
        state.fault(peer, "statement")
    elif link == "equivocation":
        _equivocated(state, peer, frame)
    elif not _is_as_offered(state, one.offer, stated, statement.salt):
        state.fault(peer, "commitment")
    elif link not in ("old", "repeat"):
        one.head = head
        state.witness(peer, frame)


def _equivocated(state: State, peer: PeerId, frame: bytes) -> None:
    """Two stories under one number, which nobody honest tells: deny `peer`, and keep the proof."""
    state.fault(peer, "equivocation")
    try:
        evidence = witness.prove(state.witnessed.get(peer, b""), frame)
    except RemoteError:
        # Where messages carry no signatures, in a simulation, there is nothing to show to others.
        evidence = b""
    else:
        state.proofs.append((peer, evidence))
    digest = hashlib.sha256(evidence).digest()
    state.fact("equivocation proved", "error", peer=peer, round=state.round, proof=digest.hex())
    state.decide("equivocation", peer, "denied", rule="proof", digest=digest)
    for fact in state.consortium.command("ban", {"peer": peer}, state.now):
        state.fact(fact.event, fact.level, **fact.fields)
    rosters.enforce(state)
    state.commit()


def _is_as_offered(state: State, offer: Header | None, stated: RoundStatement, salt: bytes) -> bool:
    """Whether what was offered here in the stated round is what everyone was told; True when none was."""
    if offer is None or offer.round != stated.round or offer.incarnation != stated.incarnation:
        return True
    return audit.open_commitment(
        stated,
        salt=salt,
        recipient=state.me,
        edge_seq=offer.edge_seq,
        digest=offer.digest,
        weights=offer.weights,
    )


def _notice(state: State, peer: PeerId, notice: Notice) -> None:
    one = state.neighbours[peer]
    match notice.code:
        case "accepted" | "not-accepted":
            state.links.edge_to(peer).accepting = notice.code == "accepted"
        case "left":
            if peer not in state.left:
                state.left.add(peer)
                lost = state.links.write_off(peer)
                state.mass.restart()
                state.fact("member left", peer=peer, written_off=lost)
                state.decide("write-off", peer, "left", rule="notice", weight=lost)
                state.commit()
        case "finished":
            one.over = True
        case "edges":
            edges.heard(state, peer, notice.text)
        case "caution" if validation.is_on(state):
            validation.cautioned(state, peer, notice.text)
        case "hub":
            hubs.announced(state, peer, notice.text)
        case "greet":
            state.greet(peer)
        case "retired" if not one.up:
            greeting.rolled_back(state, peer)
        case "run-mismatch":
            state.fact("run mismatch", "error", peer=peer, text=notice.text)
        case _:
            state.fault(peer, "notice")


def _roster(state: State, peer: PeerId, roster: Roster) -> None:
    for reason in rosters.learn(state, roster, said_by=peer):
        state.fault(peer, reason)
