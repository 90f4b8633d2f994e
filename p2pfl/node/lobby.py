"""Joining: a stranger shows its certificate in a member's lobby, and gets the roster or a reason."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace

from p2pfl.consortium import Consortium
from p2pfl.errors import RefusedError
from p2pfl.events import Commanded, Kind, Notice, Roster
from p2pfl.ids import PeerId
from p2pfl.net.bodies import decode_structured, encode_structured
from p2pfl.net.transport import Gate, Standing, Transport
from p2pfl.trust import admission, certificates, membership, successions
from p2pfl.trust.membership import Membership

__all__ = ["Lobby"]

_YES, _NO = b"\x01", b"\x00"
_REASON_CHARACTERS = 200


class Lobby:
    """Both sides of a petition.  `ask` gives the peer a command and waits until it is carried out."""

    def __init__(
        self,
        consortium: Consortium,
        *,
        ticket: bytes,
        ask: Callable[[Commanded], Awaitable[None]],
        now: Callable[[], float],
        count: Callable[[PeerId, str, int], None],
    ) -> None:
        """ticket: this node's own petition, empty for a founder.   now: seconds since 1970.

        count: told of what is sent to whom: kind and bytes.
        """
        self._consortium, self._ticket, self._ask, self._now = consortium, ticket, ask, now
        self._count = count
        self.gate = Gate(standing=self._standing, petition=self._answer)

    def _standing(self, peer: PeerId) -> Standing:
        match self._consortium.standing(peer, self._now()):
            case "member":
                return Standing.MEMBER
            case "banned":
                return Standing.BANNED
            case _:
                # Who was revoked gets no further than the lobby, where it is told so.
                return Standing.STRANGER

    async def _answer(self, peer: PeerId, frame: bytes) -> bytes:
        answer = await self._petition(peer, frame)
        self._count(peer, "answer", len(answer))
        return answer

    async def _petition(self, peer: PeerId, frame: bytes) -> bytes:
        state = self._consortium.membership
        if membership.is_revoked(state, peer):
            record = certificates.encode_revocation(state.revocations[peer])
            return _YES + encode_structured(Kind.ROSTER, Roster(revocations=(record,)))
        if membership.is_replaced(state, peer):
            return _YES + encode_structured(Kind.ROSTER, _end_of(state, peer))
        try:
            after, changed = admission.petition(state, peer, frame, self._now())
        except RefusedError as error:
            return _no(str(error))
        if changed:
            asked = successions.decode_petition(frame)
            certificate = certificates.encode_certificate(asked.certificate)
            await self._ask(Commanded(verb="admit", arguments={"certificate": certificate}))
            for one in asked.successions:
                record = successions.encode_succession(one)
                await self._ask(Commanded(verb="succeed", arguments={"succession": record}))
        if membership.standing(after, peer, self._now()) != "member":
            return _no("fewer founders than a quorum have signed; this node passes on that you ask")
        parts = self._consortium.parts()
        return _YES + encode_structured(Kind.ROSTER, parts[0] if parts else Roster())

    def _own(self) -> bytes:
        """What this node shows: its ticket, with the certificate that replaced the ticket's since."""
        if not self._ticket:
            return _NO
        asked = successions.decode_petition(self._ticket)
        state = self._consortium.membership
        me = successions.subject_of(asked)
        if (held := state.certificates.get(me)) is not None:
            return successions.encode_petition(successions.Petition(certificate=held))
        held = state.certificates.get(asked.certificate.subject, asked.certificate)
        return successions.encode_petition(replace(asked, certificate=held))

    async def apply(self, transport: Transport, peer: PeerId, addresses: tuple[str, ...]) -> None:
        """Show our certificate to a member that does not know us.  Raises RemoteError."""
        petition = self._own()
        self._count(peer, "petition", len(petition))
        answer = await transport.petition(peer, addresses, petition)
        if answer[:1] == _NO:
            notice = decode_structured(Kind.NOTICE, answer[1:])
            assert isinstance(notice, Notice)
            stranger = "it does not know this node, which has no ticket; `p2pfl run join` takes one"
            raise RefusedError(notice.text if self._ticket else stranger, peer)
        roster = decode_structured(Kind.ROSTER, answer[1:])
        await self._ask(Commanded(verb="roster", arguments={"roster": roster}))


def _end_of(state: Membership, peer: PeerId) -> Roster:
    """Why `peer`, whose key is replaced, is no member any more: what it was one by, and what followed."""
    names = (peer, *membership.predecessors(state, peer))
    return Roster(
        certificates=tuple(
            certificates.encode_certificate(state.certificates[name])
            for name in names
            if name in state.certificates
        ),
        successions=tuple(
            successions.encode_succession(one) for name in reversed(names) for one in state.successions[name]
        ),
    )


def _no(text: str) -> bytes:
    notice = Notice(code="not-accepted", text=text[:_REASON_CHARACTERS])
    return _NO + encode_structured(Kind.NOTICE, notice)
