"""Keeping connections: every wanted member is dialled, with jittered back-off, until it is connected."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import trio

from p2pfl.consortium import Consortium
from p2pfl.errors import P2PFLError, RefusedError
from p2pfl.events import Fact
from p2pfl.ids import PeerId, short
from p2pfl.net.discovery import retry_delay_s
from p2pfl.net.transport import Transport
from p2pfl.node.lobby import Lobby

__all__ = ["Dialer"]

# How often the list of wanted members is looked at; a look costs microseconds, and a joining node waits half
# of it on average.
_LOOK_S = 0.1


class Dialer:
    """Dials what the peer wants and does not have."""

    def __init__(
        self,
        transport: Transport,
        lobby: Lobby,
        *,
        consortium: Consortium,
        bootstrap: Mapping[PeerId, tuple[str, ...]],
        wanted: Callable[[], tuple[PeerId, ...]],
        now: Callable[[], float],
        note: Callable[[Fact], None],
        rng: np.random.Generator,
    ) -> None:
        """wanted: the members to be connected to.   now: seconds since 1970.   rng: jitter."""
        self._transport, self._lobby, self._consortium = transport, lobby, consortium
        self._bootstrap, self._wanted, self._now, self._note = bootstrap, wanted, now, note
        self._rng = rng
        self._attempts: dict[PeerId, int] = {}
        self._not_before: dict[PeerId, float] = {}
        self._under_way: set[PeerId] = set()

    def hurry(self, peer: PeerId) -> None:
        """Dial `peer` at the next look, whatever the back-off says."""
        self._not_before.pop(peer, None)

    def lost(self, peer: PeerId) -> None:
        """A connection broke: begin again, after a moment that differs between nodes."""
        self._attempts[peer] = 0
        self._not_before[peer] = trio.current_time() + retry_delay_s(0, self._rng)

    async def run(self) -> None:
        """Look, dial, and look again, for ever."""
        async with trio.open_nursery() as nursery:
            while True:
                connected = self._transport.peers()
                for peer in self._targets():
                    due = trio.current_time() >= self._not_before.get(peer, -np.inf)
                    addresses = self._addresses(peer)
                    if due and addresses and peer not in connected and peer not in self._under_way:
                        self._under_way.add(peer)
                        nursery.start_soon(self._dial, peer, addresses)
                await trio.sleep(_LOOK_S)

    def _targets(self) -> list[PeerId]:
        # A bootstrap peer may be a member we have not heard of: whoever has a ticket asks there first.
        return sorted({*self._wanted(), *self._bootstrap} - {self._transport.peer_id})

    def _addresses(self, peer: PeerId) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*self._bootstrap.get(peer, ()), *self._consortium.addresses(peer))))

    async def _dial(self, peer: PeerId, addresses: tuple[str, ...]) -> None:
        try:
            if self._is_member(peer):
                try:
                    await self._transport.dial(peer, addresses)
                except RefusedError:
                    # It may not know us yet: show our certificate, and try once more.
                    await self._lobby.apply(self._transport, peer, addresses)
                    await self._transport.dial(peer, addresses)
            else:
                await self._lobby.apply(self._transport, peer, addresses)
                if not self._is_member(peer):
                    raise RefusedError("its roster does not name it a member", peer)
                await self._transport.dial(peer, addresses)
            self._attempts[peer] = 0
        except P2PFLError as error:
            attempt = self._attempts.get(peer, 0)
            self._attempts[peer] = attempt + 1
            self._not_before[peer] = trio.current_time() + retry_delay_s(attempt, self._rng)
            if attempt == 0:
                fields = {"peer": short(peer), "reason": str(error)}
                self._note(Fact(event="dial failed", level="debug", fields=fields))
        finally:
            self._under_way.discard(peer)

    def _is_member(self, peer: PeerId) -> bool:
        return self._consortium.standing(peer, self._now()) == "member"
