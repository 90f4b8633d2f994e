"""Bodies on the in-memory network: offered, fetched once, refused, lost, late."""

import pytest
import trio
from memory_transports import LARGE, A, B, connected, next_offer
from trio.testing import MockClock

from p2pfl.errors import LocalError, RefusedError, UnreachableError
from p2pfl.net.link_model import LinkModel


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
        # One more than are kept for one peer.
        for _ in range(9):
            await a.offer(B, b"head", memoryview(bytes(LARGE)))
        offers = [await next_offer(b) for _ in range(9)]
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
