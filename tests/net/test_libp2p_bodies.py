"""Bodies between two transports: every way, what happens when one is closed, and when all are."""

import hashlib
import os
from typing import Any

import pytest
import trio
from transports import Community, connect, expect, offered, pair, running

from p2pfl.errors import LocalError, RefusedError, RemoteError, UnreachableError
from p2pfl.net.bulk import BulkPlane
from p2pfl.net.libp2p import Libp2pTransport
from p2pfl.net.limits import Limits
from p2pfl.net.transfers import Route
from p2pfl.net.transport import INLINE_BODY_BYTES, Closed, Offer

SIZE = 3_000_001


async def bring(receiver: Libp2pTransport, offer: Offer, *, within_s: float = 10) -> bytes:
    into = bytearray(offer.size)
    await receiver.fetch(offer, memoryview(into), deadline=trio.current_time() + within_s)
    assert offer.handle.sha256 == hashlib.sha256(into).digest()
    return bytes(into)


@pytest.mark.parametrize("size", [0, 1, INLINE_BODY_BYTES, INLINE_BODY_BYTES + 1, SIZE])
async def test_a_body_arrives_to_the_byte(size: int) -> None:
    body = os.urandom(size)
    async with pair() as (left, right):
        offer = await offered(left, right, body)
        assert (offer.handle.inline is not None) == (size <= INLINE_BODY_BYTES)
        assert await bring(right, offer) == body


async def test_a_sender_without_a_bulk_port_dials_the_receiver() -> None:
    community = Community()
    hidden, open_one = community.transport(1, bulk_listen=""), community.transport(2)
    body = os.urandom(SIZE)
    async with running(hidden, open_one):
        await connect(hidden, open_one)
        offer = await offered(hidden, open_one, body)
        assert await bring(open_one, offer) == body
        assert offer.handle.link.routes[0] is not Route.STREAM
        back = await offered(open_one, hidden, body)
        assert await bring(hidden, back) == body


async def test_without_any_bulk_port_the_control_connection_carries_it() -> None:
    async with pair(bulk_listen="") as (left, right):
        body = os.urandom(SIZE)
        assert await bring(right, await offered(left, right, body)) == body
        assert await bring(left, await offered(right, left, body)) == body


async def test_a_closed_road_is_found_out_once() -> None:
    async with pair() as (left, right):
        link = right._links[left.peer_id]
        link.bulk_addresses = ("127.0.0.1:9",)
        body = os.urandom(SIZE)
        assert await bring(right, await offered(left, right, body)) == body
        assert link.routes == [Route.PUSH, Route.STREAM, Route.PULL]
        left._links[right.peer_id].bulk_addresses = ("127.0.0.1:9",)
        assert await bring(right, await offered(left, right, body)) == body
        assert link.routes[0] is Route.STREAM


async def test_a_cut_transfer_resumes_where_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    body = os.urandom(20_000_000)
    async with pair() as (left, right):
        offer = await offered(left, right, body)
        tickets: list[int] = []
        send = BulkPlane._send

        async def cut_short(self: BulkPlane, pipe: Any, out: Any, offset: int) -> None:
            tickets.append(offset)
            if len(tickets) <= 3:
                await pipe.send(out._body[offset : offset + 1_000_001])
                return  # and the pipe is closed
            await send(self, pipe, out, offset)

        monkeypatch.setattr(BulkPlane, "_send", cut_short)
        assert await bring(right, offer) == body
        assert tickets == [0, 1_000_001, 2_000_002, 3_000_003]


async def test_a_stream_is_cut_and_resumed_too(monkeypatch: pytest.MonkeyPatch) -> None:
    body = os.urandom(SIZE)
    async with pair(bulk_listen="", limits=Limits(stall_s=0.3)) as (left, right):
        offer = await offered(left, right, body)
        out = left._plane.outbox.find(right.peer_id, offer.handle.transfer)
        assert out is not None
        upload, offsets = out.upload, []

        async def stalls_once(offset: int, send: Any, **options: Any) -> None:
            offsets.append(offset)
            if len(offsets) == 1:
                await send(out._body[:1_000_001])
                await trio.sleep_forever()
            await upload(offset, send, **options)

        out.upload = stalls_once  # type: ignore[method-assign]
        assert await bring(right, offer) == body
        assert offsets == [0, 1_000_001]


@pytest.mark.slow
async def test_a_sender_that_never_writes_costs_no_more_than_the_deadline() -> None:
    async with pair() as (left, right):
        offer = await offered(left, right, os.urandom(SIZE))
        out = left._plane.outbox.find(right.peer_id, offer.handle.transfer)

        async def stall(*_: object, **__: object) -> None:
            await trio.sleep_forever()

        out.upload = stall  # type: ignore[union-attr, method-assign]
        started_at = trio.current_time()
        with pytest.raises(UnreachableError, match="0 of 3000001 bytes by the deadline"):
            await bring(right, offer, within_s=0.4)
        assert trio.current_time() - started_at < 1.5


async def test_a_refused_or_replaced_body_is_gone() -> None:
    async with pair(limits=Limits(offers_per_peer=2)) as (left, right):
        offers = [await offered(left, right, os.urandom(SIZE)) for _ in range(3)]
        with pytest.raises(RefusedError, match="no more"):
            await bring(right, offers[0])
        right.refuse(offers[1])
        await right.send(left.peer_id, b"after the refusal")
        await left.incoming.receive()
        with pytest.raises(RefusedError, match="no more"):
            await bring(right, offers[1])
        await bring(right, offers[2])


async def test_a_fetched_body_is_let_go() -> None:
    async with pair() as (left, right):
        offer = await offered(left, right, os.urandom(SIZE))
        await bring(right, offer)
        await right.send(left.peer_id, b"later")
        await left.incoming.receive()
        assert left._plane.outbox.find(right.peer_id, offer.handle.transfer) is None


async def test_offers_end_with_their_connection() -> None:
    async with pair() as (left, right):
        offer = await offered(left, right, os.urandom(SIZE))
        await left.hang_up(right.peer_id)
        await expect(right, Closed)
        with pytest.raises(RemoteError):
            await bring(right, offer)
        right.refuse(offer)


async def test_a_buffer_of_another_size_is_our_own_error() -> None:
    async with pair() as (left, right):
        offer = await offered(left, right, os.urandom(SIZE))
        with pytest.raises(LocalError, match="a buffer of 1 bytes"):
            await right.fetch(offer, memoryview(bytearray(1)), deadline=trio.current_time() + 1)


async def test_bodies_cross_in_both_directions_at_once() -> None:
    async with pair() as (left, right):
        bodies = [os.urandom(2_000_000 + number) for number in range(3)]
        coming = [await offered(left, right, body) for body in bodies]
        going = [await offered(right, left, body) for body in bodies]
        results: dict[int, bytes] = {}

        async def take(number: int, receiver: Libp2pTransport, offer: Offer) -> None:
            results[number] = await bring(receiver, offer)

        async with trio.open_nursery() as nursery:
            for number in range(3):
                nursery.start_soon(take, number, right, coming[number])
                nursery.start_soon(take, number + 3, left, going[number])
        assert [results[number] for number in range(6)] == bodies * 2


@pytest.mark.slow
async def test_an_upload_limit_holds() -> None:
    async with pair(limits=Limits(upload_mbit_s=80)) as (left, right):
        offer = await offered(left, right, os.urandom(5_000_000))
        started_at = trio.current_time()
        await bring(right, offer)
        assert 0.35 < trio.current_time() - started_at < 1.5  # 10 MB/s asked
