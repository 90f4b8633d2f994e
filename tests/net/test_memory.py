"""The in-memory network: frames under latency, loss, duplication and reordering, by seed."""

import pytest
import trio
from memory_transports import A, B, C, connected, gate, running, taken
from trio.testing import MockClock

from p2pfl.errors import LocalError, UnreachableError
from p2pfl.net.link_model import LinkModel
from p2pfl.net.memory import MemoryNetwork
from p2pfl.net.transport import (
    MAX_FRAME_BYTES,
    Frame,
    Opened,
    Transport,
)


async def test_it_is_a_transport(autojump_clock: MockClock) -> None:
    network = MemoryNetwork(seed=1)
    transport: Transport = network.attach(A, gate(), ("/ip4/192.0.2.1/tcp/4911",))
    assert transport.addresses() == ()
    async with running(network, transport):  # type: ignore[arg-type]
        assert transport.addresses() == (f"/ip4/192.0.2.1/tcp/4911/p2p/{A}",)
        assert transport.peer_id == A


async def test_frames_arrive_once_in_order_and_after_the_latency(autojump_clock: MockClock) -> None:
    async with connected(LinkModel(latency_s=(0.1, 2.0))) as (_, a, b):
        start = trio.current_time()
        for n in range(50):
            await a.send(B, bytes([n]))
        frames = [await b.incoming.receive() for _ in range(50)]
        assert frames == [Frame(peer=A, data=bytes([n])) for n in range(50)]
        assert 0.1 <= trio.current_time() - start <= 2.0


async def test_both_sides_open_once_however_often_and_from_wherever_they_dial(
    autojump_clock: MockClock,
) -> None:
    network = MemoryNetwork(seed=1, link=LinkModel(latency_s=(0.1, 0.3)))
    a, b = network.attach(A, gate()), network.attach(B, gate())
    async with running(network, a, b) as nursery:
        for _ in range(3):
            nursery.start_soon(a.dial, B, b.addresses())
            nursery.start_soon(b.dial, A, a.addresses())
        assert await taken(a) == [Opened(peer=B)]
        assert await taken(b) == [Opened(peer=A)]
        assert (a.peers(), b.peers()) == (frozenset({B}), frozenset({A}))


async def poured(link: LinkModel, count: int = 200) -> list[int]:
    """The numbers that arrive when 0, 1, ... are sent over `link` while somebody reads."""
    async with connected(link) as (_, a, b), trio.open_nursery() as nursery:

        async def pour() -> None:
            for n in range(count):
                await a.send(B, n.to_bytes(2, "big"))

        nursery.start_soon(pour)
        found = await taken(b)
    return [int.from_bytes(item.data, "big") for item in found if isinstance(item, Frame)]


async def test_a_lossy_link_loses_frames_and_keeps_their_order(autojump_clock: MockClock) -> None:
    numbers = await poured(LinkModel(latency_s=(0.01, 0.02), loss=0.3))
    assert 110 < len(numbers) < 170
    assert numbers == sorted(numbers)


async def test_a_duplicating_link_delivers_some_frames_twice(autojump_clock: MockClock) -> None:
    numbers = await poured(LinkModel(latency_s=(0.01, 0.02), duplication=0.3))
    assert 230 < len(numbers) < 290
    assert set(numbers) == set(range(200))


async def test_a_reordering_link_delivers_everything_in_another_order(autojump_clock: MockClock) -> None:
    numbers = await poured(LinkModel(latency_s=(0.01, 0.02), reorder=0.3))
    assert numbers != sorted(numbers) == list(range(200))


async def test_the_same_seed_gives_the_same_traffic_whatever_else_is_sent(autojump_clock: MockClock) -> None:
    rough = LinkModel(latency_s=(0.01, 0.5), loss=0.2, duplication=0.2, reorder=0.2)

    async def heard(seed: int, others: int) -> list[tuple[float, bytes]]:
        network = MemoryNetwork(seed=seed, link=rough)
        a, b, c = (network.attach(peer, gate()) for peer in (A, B, C))
        async with running(network, a, b, c) as nursery:
            await a.dial(B, b.addresses())
            await c.dial(B, b.addresses())
            start = trio.current_time()

            async def chatter() -> None:
                for _ in range(others):
                    await c.send(B, b"noise")

            nursery.start_soon(chatter)
            for n in range(60):
                await a.send(B, bytes([n]))
            found = []
            with trio.move_on_after(100):
                while True:
                    item = await b.incoming.receive()
                    if isinstance(item, Frame) and item.peer == A:
                        found.append((round(trio.current_time() - start, 6), item.data))
            return found

    first = await heard(1, 0)
    assert first == await heard(1, 0)
    assert first == await heard(1, 40)
    assert first != await heard(2, 0)


async def test_wrong_calls_are_local_errors_and_wrong_places_unreachable(autojump_clock: MockClock) -> None:
    network = MemoryNetwork(seed=1)
    a, b = network.attach(A, gate()), network.attach(B, gate())
    with pytest.raises(LocalError, match="attached already"):
        network.attach(A, gate())
    with pytest.raises(LocalError, match="listens"):
        network.attach(C, gate(), ("/ip4/127.0.0.1/tcp/4001",))
    with pytest.raises(UnreachableError, match="does not run"):
        await a.dial(B, ("/ip4/127.0.0.1/tcp/4002",))
    async with running(network, a):
        with pytest.raises(UnreachableError):
            await a.dial(B, ("/ip4/127.0.0.1/tcp/4002",))
        async with running(network, b):
            with pytest.raises(LocalError, match="itself"):
                await a.dial(A, a.addresses())
            with pytest.raises(UnreachableError):
                await a.dial(C, b.addresses())
            with pytest.raises(UnreachableError):
                await a.dial(B, ("/ip4/127.0.0.1/tcp/9",))
            await a.dial(B, ("/ip4/127.0.0.1/tcp/9", *b.addresses()))
            with pytest.raises(LocalError, match="limit is 65536"):
                await a.send(B, bytes(MAX_FRAME_BYTES + 1))
            await a.send(B, bytes(MAX_FRAME_BYTES))
        with pytest.raises(UnreachableError):
            await a.send(C, b"")
