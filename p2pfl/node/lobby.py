"""Joining: a stranger shows its certificate in a member's lobby, and gets the roster or a reason."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from p2pfl.consortium import Consortium
from p2pfl.errors import RefusedError
from p2pfl.events import Commanded, Kind, Notice, Roster
from p2pfl.ids import PeerId
from p2pfl.net.bodies import decode_structured, encode_structured
from p2pfl.net.transport import Gate, Standing, Transport
from p2pfl.trust import certificates, membership

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
    ) -> None:
        """ticket: this node's own certificate, empty for a founder.   now: seconds since 1970."""
        self._consortium, self._ticket, self._ask, self._now = consortium, ticket, ask, now
        self.gate = Gate(standing=self._standing, petition=self._petition)

    def _standing(self, peer: PeerId) -> Standing:
        match self._consortium.standing(peer, self._now()):
            case "member":
                return Standing.MEMBER
            case "banned":
                return Standing.BANNED
            case _:
                # Who was revoked gets no further than the lobby, where it is told so.
                return Standing.STRANGER

    async def _petition(self, peer: PeerId, frame: bytes) -> bytes:
        state = self._consortium.membership
        if membership.is_revoked(state, peer):
            record = certificates.encode_revocation(state.revocations[peer])
            return _YES + encode_structured(Kind.ROSTER, Roster(revocations=(record,)))
        try:
            membership.petition(self._consortium.membership, peer, frame, self._now())
        except RefusedError as error:
            text = str(error)[:_REASON_CHARACTERS]
            return _NO + encode_structured(Kind.NOTICE, Notice(code="not-accepted", text=text))
        await self._ask(Commanded(verb="admit", arguments={"certificate": frame}))
        parts = self._consortium.parts()
        return _YES + encode_structured(Kind.ROSTER, parts[0] if parts else Roster())

    async def apply(self, transport: Transport, peer: PeerId, addresses: tuple[str, ...]) -> None:
        """Show our certificate to a member that does not know us.  Raises RemoteError."""
        answer = await transport.petition(peer, addresses, self._ticket or _NO)
        if answer[:1] == _NO:
            notice = decode_structured(Kind.NOTICE, answer[1:])
            assert isinstance(notice, Notice)
            stranger = "it does not know this node, which has no ticket; `p2pfl run join` takes one"
            raise RefusedError(notice.text if self._ticket else stranger, peer)
        roster = decode_structured(Kind.ROSTER, answer[1:])
        await self._ask(Commanded(verb="roster", arguments={"roster": roster}))
