from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import MockClock

from p2pfl.errors import LocalError, RefusedError, UnreachableError
from p2pfl.ids import PeerId, peer_id_of
from p2pfl.net.limits import Limits
from p2pfl.net.link_model import LinkModel
from p2pfl.net.memory import MemoryNetwork, MemoryTransport
from p2pfl.net.transport import (
    INLINE_BODY_BYTES,
    MAX_FRAME_BYTES,
    MAX_PETITION_BYTES,
    Closed,
    Frame,
    Gate,
    Incoming,
    Offer,
    Opened,
    Standing,
    Transport,
)

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


async def test_a_small_body_rides_along_and_a_large_one_is_fetched(autojump_clock: MockClock) -> None:
    async with connected(LinkModel(latency_s=(0.5, 0.5), bandwidth_mbit_s=8.0)) as (_, a, b):
        for size, seconds in ((100, 0.0), (0, 0.0), (1_000_000, 2.0)):
            body = bytearray(size)
            body[:3] = b"abc"[:size]
            await a.offer(B, b"head", memoryview(body))
            offer = await next_offer(b)
            assert (offer.peer, offer.frame, offer.size) == (A, b"head", size)
            into, start = bytearray(size), trio.current_time()
            await b.fetch(offer, memoryview(into), deadline=start + 60)
            assert into == body
            assert trio.current_time() - start == pytest.approx(seconds)


async def test_a_body_is_fetched_once(autojump_clock: MockClock) -> None:
    async with connected() as (_, a, b):
        await a.offer(B, b"head", memoryview(bytes(LARGE)))
        offer, into = await next_offer(b), memoryview(bytearray(LARGE))
        await b.fetch(offer, into, deadline=trio.current_time() + 1)
        with pytest.raises(RefusedError, match="no longer offers"):
            await b.fetch(offer, into, deadline=trio.current_time() + 1)


async def test_a_refused_or_replaced_body_is_gone(autojump_clock: MockClock) -> None:
    async with connected() as (_, a, b):
        for _ in range(5):
            await a.offer(B, b"head", memoryview(bytes(LARGE)))
        offers = [await next_offer(b) for _ in range(5)]
        b.refuse(offers[3])
        b.refuse(offers[3])
        for n, offer in enumerate(offers):
            fetch = b.fetch(offer, memoryview(bytearray(LARGE)), deadline=trio.current_time() + 1)
            if n in (0, 3):
                with pytest.raises(RefusedError):
                    await fetch
            else:
                await fetch


async def test_a_body_goes_only_into_a_buffer_of_its_size(autojump_clock: MockClock) -> None:
    async with connected() as (_, a, b):
        await a.offer(B, b"head", memoryview(bytes(8)))
        with pytest.raises(LocalError, match="buffer of 7"):
            await b.fetch(await next_offer(b), memoryview(bytearray(7)), deadline=1.0)


async def test_a_lost_fetch_says_so_before_its_deadline_and_may_be_tried_again(
    autojump_clock: MockClock,
) -> None:
    async with connected(LinkModel(latency_s=(0.1, 0.1))) as (network, a, b):
        await a.offer(B, b"head", memoryview(bytes(LARGE)))
        offer, into = await next_offer(b), memoryview(bytearray(LARGE))
        network.set_link(A, B, LinkModel(latency_s=(0.1, 0.1), loss=1.0))
        start = trio.current_time()
        with pytest.raises(UnreachableError, match="lost"):
            await b.fetch(offer, into, deadline=start + 60)
        assert trio.current_time() - start < 1
        network.set_link(A, B, LinkModel())
        await b.fetch(offer, into, deadline=start + 60)


async def test_a_fetch_ends_at_its_deadline(autojump_clock: MockClock) -> None:
    async with connected(LinkModel(bandwidth_mbit_s=0.001)) as (_, a, b):
        await a.offer(B, b"head", memoryview(bytes(LARGE)))
        offer = await next_offer(b)
        deadline = trio.current_time() + 7
        with pytest.raises(UnreachableError, match="in time"):
            await b.fetch(offer, memoryview(bytearray(LARGE)), deadline=deadline)
        assert trio.current_time() == pytest.approx(deadline)


async def test_a_partition_is_silent_until_it_heals(autojump_clock: MockClock) -> None:
    async with connected() as (network, a, b):
        await a.offer(B, b"head", memoryview(bytes(LARGE)))
        offer = await next_offer(b)
        network.partition(B, A)
        await a.send(B, b"vanishes")
        deadline = trio.current_time() + 5
        with pytest.raises(UnreachableError, match="in time"):
            await b.fetch(offer, memoryview(bytearray(LARGE)), deadline=deadline)
        assert trio.current_time() == pytest.approx(deadline)
        assert (a.peers(), b.peers()) == (frozenset({B}), frozenset({A}))
        network.heal(A, B)
        await a.send(B, b"arrives")
        assert await taken(b) == [Frame(peer=A, data=b"arrives")]


async def test_a_dial_across_a_partition_times_out(autojump_clock: MockClock) -> None:
    network = MemoryNetwork(seed=1)
    a, b = network.attach(A, gate()), network.attach(B, gate())
    async with running(network, a, b):
        network.partition(A, B)
        start = trio.current_time()
        with pytest.raises(UnreachableError, match="within 10 s"):
            await a.dial(B, b.addresses())
        assert trio.current_time() - start == pytest.approx(network.limits.dial_s)
        network.heal(A, B)
        await a.dial(B, b.addresses())


async def test_a_broken_connection_is_closed_on_both_sides_and_what_was_under_way_is_lost(
    autojump_clock: MockClock,
) -> None:
    async with connected(LinkModel(latency_s=(1.0, 1.0))) as (network, a, b):
        await a.offer(B, b"head", memoryview(bytes(LARGE)))
        offer = await next_offer(b)
        await a.send(B, b"under way")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self_cut, network)
            with pytest.raises(UnreachableError, match="broke"):
                await b.fetch(offer, memoryview(bytearray(LARGE)), deadline=trio.current_time() + 60)
        assert await taken(a) == [Closed(peer=B, reason="the connection broke")]
        assert await taken(b) == [Closed(peer=A, reason="the connection broke")]
        with pytest.raises(UnreachableError, match="not connected"):
            await a.send(B, b"")
        await b.dial(A, a.addresses())
        assert await taken(a) == [Opened(peer=B)]
        with pytest.raises(UnreachableError):
            await b.fetch(offer, memoryview(bytearray(LARGE)), deadline=trio.current_time() + 60)


async def self_cut(network: MemoryNetwork) -> None:
    await trio.sleep(0.5)
    network.cut(A, B)


async def test_what_was_sent_before_hanging_up_still_arrives(autojump_clock: MockClock) -> None:
    async with connected(LinkModel(latency_s=(0.1, 3.0))) as (_, a, b):
        await a.send(B, b"left")
        await a.hang_up(B)
        assert await taken(a) == [Closed(peer=B, reason="hung up")]
        assert await taken(b) == [Frame(peer=A, data=b"left"), Closed(peer=A, reason="the peer hung up")]
        await a.hang_up(B)


async def test_dialling_again_right_after_hanging_up_closes_before_it_opens(
    autojump_clock: MockClock,
) -> None:
    async with connected(LinkModel(latency_s=(0.1, 0.1))) as (network, a, b):
        network.set_link(A, B, LinkModel(latency_s=(9.0, 9.0)))
        await a.hang_up(B)
        network.set_link(A, B, LinkModel())
        await a.dial(B, b.addresses())
        await a.send(B, b"new")
        found = await taken(b)
        assert [type(item) for item in found] == [Closed, Opened, Frame]
        assert [type(item) for item in await taken(a)] == [Closed, Opened]
        assert (a.peers(), b.peers()) == (frozenset({B}), frozenset({A}))


async def test_a_killed_peer_is_gone_at_once_and_can_come_back(autojump_clock: MockClock) -> None:
    async with connected() as (network, a, b):
        where = b.addresses()
        network.kill(B)
        assert await taken(a) == [Closed(peer=B, reason="the peer is gone")]
        assert [item async for item in b.incoming] == []
        with pytest.raises(UnreachableError, match="does not answer"):
            await a.dial(B, where)
        with pytest.raises(UnreachableError):
            await b.dial(A, a.addresses())
        reborn = network.attach(B, gate(), where)
        async with running(network, reborn):
            await a.dial(B, where)
            assert await a.incoming.receive() == Opened(peer=B)
            assert await reborn.incoming.receive() == Opened(peer=A)


async def test_a_peer_whose_run_is_cancelled_is_gone_too(autojump_clock: MockClock) -> None:
    network = MemoryNetwork(seed=1)
    a, b = network.attach(A, gate()), network.attach(B, gate())
    async with running(network, a):
        async with running(network, b):
            await a.dial(B, b.addresses())
        assert [type(item) for item in await taken(a)] == [Opened, Closed]
        with pytest.raises(LocalError, match="runs once"):
            await b.run()


async def test_a_peer_that_does_not_read_is_cut_and_holds_up_nobody_else(autojump_clock: MockClock) -> None:
    limits = Limits(backlog_frames=4, incoming_events=2)
    async with connected(limits=limits) as (network, a, b):
        c = network.attach(C, gate())
        async with running(network, c):
            await a.dial(C, c.addresses())
            # Two fill the channel, one waits at it, three are behind that one.
            for n in range(6):
                await a.send(B, bytes([n]))
            start = trio.current_time()
            with pytest.raises(UnreachableError, match="gone"):
                await a.send(B, b"one more")
            assert trio.current_time() - start == pytest.approx(limits.send_s)
            await a.send(C, b"still")
            assert [type(item) for item in await taken(c)] == [Opened, Frame]
            assert [type(item) for item in await taken(b)] == [Frame, Frame, Frame, Closed]


async def test_a_reader_that_wakes_up_lets_the_sender_go_on(autojump_clock: MockClock) -> None:
    limits = Limits(backlog_frames=2, incoming_events=1)
    async with connected(limits=limits) as (_, a, b), trio.open_nursery() as nursery:

        async def send() -> None:
            for n in range(30):
                await a.send(B, bytes([n]))

        nursery.start_soon(send)
        await trio.sleep(5)
        assert await taken(b) == [Frame(peer=A, data=bytes([n])) for n in range(30)]


@pytest.mark.parametrize(
    ("standing", "seen"), [(Standing.STRANGER, RefusedError), (Standing.BANNED, UnreachableError)]
)
async def test_who_is_not_a_member_is_not_connected_whichever_side_says_so(
    standing: Standing, seen: type[Exception], autojump_clock: MockClock
) -> None:
    network = MemoryNetwork(seed=1)
    a, b = network.attach(A, gate()), network.attach(B, gate(standing))
    async with running(network, a, b):
        with pytest.raises(seen):
            await a.dial(B, b.addresses())
        with pytest.raises(RefusedError):
            await b.dial(A, a.addresses())
        assert await taken(a) == await taken(b) == []


async def test_a_stranger_may_petition_and_gets_one_answer(autojump_clock: MockClock) -> None:
    network = MemoryNetwork(seed=1, link=LinkModel(latency_s=(0.2, 0.2)))
    a, b = network.attach(A, gate()), network.attach(B, gate(Standing.STRANGER))
    async with running(network, a, b):
        assert await a.petition(B, b.addresses(), b"ticket") == b"hello ticket"
        assert a.peers() == b.peers() == frozenset()
        with pytest.raises(LocalError, match="4096"):
            await a.petition(B, b.addresses(), bytes(MAX_PETITION_BYTES + 1))


async def test_the_banned_are_not_heard(autojump_clock: MockClock) -> None:
    network = MemoryNetwork(seed=1)
    a, b = network.attach(A, gate()), network.attach(B, gate(Standing.BANNED))
    async with running(network, a, b):
        with pytest.raises(RefusedError, match="banned"):
            await a.petition(B, b.addresses(), b"ticket")


async def test_the_lobby_has_eight_places_for_five_seconds(autojump_clock: MockClock) -> None:
    async def slow(peer: PeerId, frame: bytes) -> bytes:
        await trio.sleep(3600)
        return b""

    network = MemoryNetwork(seed=1)
    b = network.attach(B, gate(Standing.STRANGER, slow))
    strangers = [network.attach(peer_id_of(bytes([n]) * 32), gate()) for n in range(10, 19)]
    outcomes: list[str] = []

    async def ask(stranger: MemoryTransport) -> None:
        try:
            await stranger.petition(B, b.addresses(), b"")
        except UnreachableError as error:
            outcomes.append(str(error))

    async with running(network, b, *strangers):
        start = trio.current_time()
        async with trio.open_nursery() as nursery:
            for stranger in strangers:
                nursery.start_soon(ask, stranger)
        places = ["no place in its lobby" in text for text in outcomes]
        assert places == [True] + [False] * 8
        assert trio.current_time() - start == pytest.approx(5.0)


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
