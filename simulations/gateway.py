"""A gateway in the attackers' hands: the transport of an eclipsed node, which reaches nobody else through it.

It models whoever owns the one way from a site to the network, its router or its provider.  They cannot read
or forge what passes, because every connection proves its peer's key; they can cut it.  While the gateway is
shut no connection to anybody but its owners opens in either direction, and those that were open are closed:
the node behind it, and those who look for it, see nothing but peers that do not answer.
"""

from __future__ import annotations

from collections.abc import Callable

import trio

from p2pfl.errors import UnreachableError
from p2pfl.ids import PeerId, short
from p2pfl.net.transport import Gate, Incoming, Offer, Standing, TransportOf

__all__ = ["Gateway"]

# Seconds between two looks at whether it is shut: less than a round of a demo.
_LOOK_S = 0.02


class Gateway:
    """`p2pfl.net.transport.Transport` of one node, as far as the owners of its way out let it."""

    def __init__(
        self,
        own: TransportOf,
        gate: Gate,
        *,
        owners: frozenset[PeerId],
        is_shut: Callable[[], bool],
    ) -> None:
        """own: makes the node's own transport.   owners: whom nothing is cut off from.   is_shut: now."""
        self._gate, self._owners, self._is_shut = gate, owners, is_shut
        self._own = own(Gate(standing=self._standing, petition=gate.petition))

    def _is_cut(self, peer: PeerId) -> bool:
        return peer not in self._owners and self._is_shut()

    def _standing(self, peer: PeerId) -> Standing:
        # Banned is who gets no further than the handshake, and no answer.
        return Standing.BANNED if self._is_cut(peer) else self._gate.standing(peer)

    def _check(self, peer: PeerId) -> None:
        if self._is_cut(peer):
            raise UnreachableError(f"no way to {short(peer)}", peer)

    # --- the interface of a Transport --------------------------------------------------------------------

    @property
    def peer_id(self) -> PeerId:
        """Who this end is."""
        return self._own.peer_id

    @property
    def incoming(self) -> trio.MemoryReceiveChannel[Incoming]:
        """Everything that comes in."""
        return self._own.incoming

    def addresses(self) -> tuple[str, ...]:
        """Where others can dial this end, if they are let through."""
        return self._own.addresses()

    def peers(self) -> frozenset[PeerId]:
        """The members connected now."""
        return self._own.peers()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled, and cut what is open when the gateway shuts."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self._own.run)
            task_status.started()
            while True:
                for peer in filter(self._is_cut, self._own.peers()):
                    await self._own.hang_up(peer)
                await trio.sleep(_LOOK_S)

    async def dial(self, peer: PeerId, addresses: tuple[str, ...]) -> None:
        """Connect to `peer`.  Raises UnreachableError, RefusedError."""
        self._check(peer)
        await self._own.dial(peer, addresses)

    async def petition(self, peer: PeerId, addresses: tuple[str, ...], frame: bytes) -> bytes:
        """Present a frame in `peer`'s lobby and return its answer.  Raises UnreachableError, RefusedError."""
        self._check(peer)
        return await self._own.petition(peer, addresses, frame)

    async def send(self, peer: PeerId, frame: bytes) -> None:
        """Deliver a frame.  Raises UnreachableError."""
        self._check(peer)
        await self._own.send(peer, frame)

    async def offer(self, peer: PeerId, frame: bytes, body: memoryview) -> None:
        """Offer a body.  Raises UnreachableError."""
        self._check(peer)
        await self._own.offer(peer, frame, body)

    async def fetch(self, offer: Offer, into: memoryview, *, deadline: float) -> None:
        """Fill `into` by `deadline`.  Raises RemoteError."""
        self._check(offer.peer)
        await self._own.fetch(offer, into, deadline=deadline)

    def refuse(self, offer: Offer) -> None:
        """Tell the sender that it may forget the body."""
        self._own.refuse(offer)

    async def hang_up(self, peer: PeerId) -> None:
        """Close the connection to `peer`, if there is one."""
        await self._own.hang_up(peer)
