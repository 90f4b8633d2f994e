"""Real transports on loopback, and what tests ask of them."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, TypeVar

import trio

from p2pfl.ids import PeerId
from p2pfl.net.libp2p import Libp2pTransport
from p2pfl.net.transport import Gate, Offer, Opened, Standing, Transport

T = TypeVar("T")

LOOPBACK = ("/ip4/127.0.0.1/tcp/0",)
BULK_LOOPBACK = "127.0.0.1:0"


class Community:
    """Who is a member, who is banned, and the petitions that came in; everyone else is a stranger."""

    def __init__(self) -> None:
        self.members: set[PeerId] = set()
        self.banned: set[PeerId] = set()
        self.petitions: list[tuple[PeerId, bytes]] = []

    def gate(self) -> Gate:
        async def petition(peer: PeerId, frame: bytes) -> bytes:
            self.petitions.append((peer, frame))
            return b"answer to " + frame

        return Gate(standing=self.standing, petition=petition)

    def standing(self, peer: PeerId) -> Standing:
        if peer in self.banned:
            return Standing.BANNED
        return Standing.MEMBER if peer in self.members else Standing.STRANGER

    def transport(self, number: int, *, is_member: bool = True, **options: Any) -> Libp2pTransport:
        where: dict[str, Any] = {"listen": LOOPBACK, "bulk_listen": BULK_LOOPBACK, **options}
        transport = Libp2pTransport(seed=bytes((number,)) * 32, gate=self.gate(), **where)
        if is_member:
            self.members.add(transport.peer_id)
        return transport


@asynccontextmanager
async def running(*transports: Libp2pTransport, within_s: float = 20.0) -> AsyncIterator[None]:
    """The transports serve meanwhile; the whole must be over in time."""
    with trio.fail_after(within_s):
        async with trio.open_nursery() as nursery:
            for transport in transports:
                await nursery.start(transport.run)
            yield
            nursery.cancel_scope.cancel()


async def expect(transport: Transport, kind: type[T]) -> T:
    """The next event, which must be of this kind."""
    with trio.fail_after(10):
        event = await transport.incoming.receive()
    assert isinstance(event, kind), event
    return event


async def connect(dialler: Transport, other: Transport) -> None:
    """Dial, and take both ends' Opened."""
    await dialler.dial(other.peer_id, other.addresses())
    assert await expect(dialler, Opened) == Opened(peer=other.peer_id)
    assert await expect(other, Opened) == Opened(peer=dialler.peer_id)


@asynccontextmanager
async def pair(**options: Any) -> AsyncIterator[tuple[Libp2pTransport, Libp2pTransport]]:
    """Two connected members; the first dialled."""
    community = Community()
    async with AsyncExitStack() as stack:
        left, right = community.transport(1, **options), community.transport(2, **options)
        await stack.enter_async_context(running(left, right))
        await connect(left, right)
        yield left, right


async def offered(sender: Transport, receiver: Transport, body: bytes) -> Offer:
    """The receiver's view of an offer of `body`."""
    await sender.offer(receiver.peer_id, b"header", memoryview(body))
    offer = await expect(receiver, Offer)
    assert (offer.peer, offer.frame, offer.size) == (sender.peer_id, b"header", len(body))
    return offer
