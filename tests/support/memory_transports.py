"""Members of an in-memory network, and what comes in at them."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import trio

from p2pfl.ids import PeerId, peer_id_of
from p2pfl.net.limits import Limits
from p2pfl.net.link_model import LinkModel
from p2pfl.net.memory import MemoryNetwork, MemoryTransport
from p2pfl.net.transport import INLINE_BODY_BYTES, Gate, Incoming, Offer, Opened, Standing

__all__ = ["A", "B", "C", "LARGE", "answer", "gate", "running", "connected", "taken", "next_offer"]

A, B, C = (peer_id_of(bytes([n]) * 32) for n in (1, 2, 3))
LARGE = INLINE_BODY_BYTES + 1


async def answer(peer: PeerId, frame: bytes) -> bytes:
    return b"hello " + frame


def gate(
    standing: Standing = Standing.MEMBER, petition: Callable[[PeerId, bytes], Awaitable[bytes]] = answer
) -> Gate:
    return Gate(standing=lambda _: standing, petition=petition)


@asynccontextmanager
async def running(network: MemoryNetwork, *transports: MemoryTransport) -> AsyncIterator[trio.Nursery]:
    async with trio.open_nursery() as nursery:
        for transport in transports:
            await nursery.start(transport.run)
        yield nursery
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def connected(
    link: LinkModel | None = None, limits: Limits | None = None, seed: int = 1
) -> AsyncIterator[tuple[MemoryNetwork, MemoryTransport, MemoryTransport]]:
    """Two members, connected, with `Opened` taken on both sides."""
    network = MemoryNetwork(seed=seed, link=link or LinkModel(), limits=limits)
    a, b = network.attach(A, gate()), network.attach(B, gate())
    async with running(network, a, b):
        await a.dial(B, b.addresses())
        assert await a.incoming.receive() == Opened(peer=B)
        assert await b.incoming.receive() == Opened(peer=A)
        yield network, a, b


async def taken(transport: MemoryTransport) -> list[Incoming]:
    """Everything that comes in until nothing has for an hour."""
    found = []
    while True:
        with trio.move_on_after(3600) as patience:
            found.append(await transport.incoming.receive())
        if patience.cancelled_caught:
            return found


async def next_offer(transport: MemoryTransport) -> Offer:
    offer = await transport.incoming.receive()
    assert isinstance(offer, Offer)
    return offer
