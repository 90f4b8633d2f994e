"""The roster in motion: what is learned of members is kept, passed on, and enforced."""

from __future__ import annotations

from p2pfl.events import Commanded, Fact, HangUp, Kind, Notice, Roster
from p2pfl.ids import PeerId
from p2pfl.state import State
from p2pfl.trust import membership
from p2pfl.trust.membership import Membership

__all__ = ["command", "enforce", "expire", "learn", "spread", "tick"]

# Address news passed on at once between two ticks, beyond four a member; what is more waits for the next
# tick, so that a member that keeps moving, or says so, costs others no more than that.
_NEWS = 16
# Two weeks for a quorum of founders to sign a renewal; of a certificate that lasts less, its last sixth.
_WARN_S = 14 * 86_400
_WARN_FRACTION = 1 / 6


def learn(state: State, roster: Roster, said_by: PeerId | None = None) -> tuple[str, ...]:
    """Take in a roster and pass on what is new in it.  Returns what was wrong with it.

    Who is a member is made durable at once; where members are goes with the next commit.
    """
    before = state.consortium.membership
    outcome = state.consortium.merge(roster, state.now)
    if state.consortium.membership is not before:
        _decide_members(state, before)
        enforce(state)
        state.fact("roster changed", members=len(state.members()))
        state.commit()
        spread(state, but=said_by)
    elif outcome.changed:
        state.news += 1
        if not _is_flooded(state):
            spread(state, but=said_by)
    return outcome.faults


def _decide_members(state: State, before: Membership) -> None:
    """Put into the audit log who was admitted or revoked since `before`."""
    now = state.consortium.membership
    for peer in sorted(now.certificates.keys() - before.certificates.keys()):
        state.decide("admission", peer, "admitted", rule="quorum")
    for peer in sorted(now.successions.keys() - before.successions.keys()):
        state.decide("admission", peer, "replaced", rule="succession")
    for peer in sorted(now.revocations):
        if membership.is_revoked(now, peer) and not membership.is_revoked(before, peer):
            state.decide("admission", peer, "revoked", rule="quorum")


def command(state: State, event: Commanded) -> None:
    """Carry out a decision of this site's own people, keep it, and tell those whom it is about."""
    before, members = state.consortium.to_bytes(), state.consortium.membership
    accepting = {p: state.consortium.hears(p) for p, _ in state.neighbours.items()}
    for fact in state.consortium.command(event.verb, event.arguments, state.now):
        state.fact(fact.event, fact.level, **fact.fields)
        _decided(state, fact)
    _decide_members(state, members)
    if state.consortium.to_bytes() == before:
        return
    enforce(state)
    state.commit()
    for peer, accepted in accepting.items():
        accepts = state.consortium.hears(peer)
        if accepts != accepted and state.neighbours[peer].up:
            state.send(peer, Kind.NOTICE, Notice(code="accepted" if accepts else "not-accepted"))
    if event.verb != "set":
        spread(state)


def _decided(state: State, fact: Fact) -> None:
    peer = str(fact.fields.get("peer", ""))
    match fact.event:
        case "member banned":
            state.decide("level", peer, "banned", rule="site")
        case "trust forgotten":
            state.decide("level", peer, "default", rule="site")
        case "trust set":
            for way in ("share", "accept"):
                if fact.fields[way] is not None:
                    task = "" if fact.fields["for"] == "weights" else f"-{fact.fields['for']}"
                    state.decide("level", peer, f"{way}{task}-{fact.fields[way]}", rule="site")


def tick(state: State) -> None:
    """What time brings: the ends of certificates, and news that had to wait."""
    expire(state)
    if _is_flooded(state):
        spread(state)
    state.news = 0


def expire(state: State) -> None:
    """Part with members whose certificate has expired.

    Say once of each that it soon will: of one's own, and to founders of all.
    """
    enforce(state)
    held = state.consortium.membership
    is_founder = state.me in held.founders
    for peer in state.members() if is_founder else (state.me,):
        certificate = membership.certificate_of(held, peer)
        if certificate is None or state.warned.get(peer) == certificate.expires_at:
            continue
        lasts_s = certificate.expires_at - certificate.issued_at
        left_s = certificate.expires_at - state.now
        if left_s < min(_WARN_S, lasts_s * _WARN_FRACTION):
            state.warned[peer] = certificate.expires_at
            fields = {"peer": peer, "expires_at": certificate.expires_at, "days": round(left_s / 86_400, 1)}
            state.fact("certificate expires soon", "warning", **fields)


def _is_flooded(state: State) -> bool:
    return state.news > _NEWS + 4 * len(state.members())


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
            state.mass.restart()
            state.fact("member gone", "warning", peer=peer, standing=standing, written_off=lost)
            state.decide("write-off", peer, standing, rule="membership", weight=lost)
        if state.neighbours[peer].connected:
            if standing == "revoked":
                # So that it learns why.
                for part in state.consortium.parts():
                    state.send(peer, Kind.ROSTER, part)
            state.neighbours.lost(peer)
            state.links.discard(peer)
            state.emit(HangUp(peer=peer, reason=f"this peer is {standing} here"))
