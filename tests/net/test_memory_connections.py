"""Connections of the in-memory network: partitions, cuts, hanging up, dying, and readers that do not read."""

import pytest
import trio
from memory_transports import LARGE, A, B, C, connected, gate, next_offer, running, taken
from trio.testing import MockClock

from p2pfl.errors import LocalError, UnreachableError
from p2pfl.net.limits import Limits
from p2pfl.net.link_model import LinkModel
from p2pfl.net.memory import MemoryNetwork
from p2pfl.net.transport import (
    Closed,
    Frame,
    Opened,
)


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
