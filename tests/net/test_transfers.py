"""Offers, tokens, receptions and pacing, without a network."""

import hashlib
import os
from functools import partial

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from p2pfl.errors import RemoteError
from p2pfl.ids import peer_id_of
from p2pfl.net.transfers import Outbox, Pace, Reception, attempt_token, read_ticket, ticket

ONE, TWO = peer_id_of(b"1" * 32), peer_id_of(b"2" * 32)


async def test_a_token_opens_its_body_once_and_only_for_its_peer(
    autojump_clock: trio.testing.MockClock,
) -> None:
    outbox = Outbox(per_peer=4, offer_s=60)
    out, other = outbox.add(ONE, memoryview(b"body")), outbox.add(ONE, memoryview(b"other"))
    token = attempt_token(out.secret, 1)
    assert outbox.claim(TWO, token) is None
    assert outbox.claim(ONE, token) is out
    assert outbox.claim(ONE, token) is None
    assert outbox.claim(ONE, attempt_token(other.secret, 1)) is other
    assert outbox.claim(ONE, bytes(32)) is None


async def test_attempts_may_be_skipped_but_not_without_end(autojump_clock: trio.testing.MockClock) -> None:
    outbox = Outbox(per_peer=4, offer_s=60)
    out = outbox.add(ONE, memoryview(b"body"))
    assert outbox.claim(ONE, attempt_token(out.secret, 9)) is None
    assert outbox.claim(ONE, attempt_token(out.secret, 8)) is out
    assert outbox.claim(ONE, attempt_token(out.secret, 3)) is None
    assert outbox.claim(ONE, attempt_token(out.secret, 9)) is out


async def test_the_oldest_body_gives_way_and_the_late_are_gone(
    autojump_clock: trio.testing.MockClock,
) -> None:
    outbox = Outbox(per_peer=2, offer_s=60)
    first, second, third = (outbox.add(ONE, memoryview(bytes(3))) for _ in range(3))
    assert (first.size, second.size, third.size) == (0, 3, 3)
    assert outbox.find(ONE, first.transfer) is None
    assert outbox.find(ONE, second.transfer) is second
    outbox.release(ONE, second.transfer)
    outbox.release(ONE, 999)
    assert outbox.find(ONE, second.transfer) is None
    await trio.sleep(61)
    assert outbox.find(ONE, third.transfer) is None
    outbox.forget(ONE)
    outbox.forget(TWO)


async def test_sending_is_paced_to_the_limit(autojump_clock: trio.testing.MockClock) -> None:
    pace = Pace(8.0)  # a million bytes a second
    out = Outbox(per_peer=1, offer_s=600).add(ONE, memoryview(bytes(3_000_000)))
    sent: list[int] = []

    async def send(piece: memoryview) -> None:
        sent.append(len(piece))

    started_at = trio.current_time()
    await out.upload(0, send, step=1 << 20, pace=pace, stall_s=5)
    assert sum(sent) == 3_000_000
    assert max(sent) <= 100_000
    assert trio.current_time() - started_at == pytest.approx(3.0, rel=0.05)


async def test_two_uploads_share_the_limit(autojump_clock: trio.testing.MockClock) -> None:
    pace = Pace(8.0)
    outbox = Outbox(per_peer=1, offer_s=600)

    async def send(piece: memoryview) -> None:
        await trio.lowlevel.checkpoint()

    started_at = trio.current_time()
    async with trio.open_nursery() as nursery:
        for peer in (ONE, TWO):
            out = outbox.add(peer, memoryview(bytes(1_000_000)))
            nursery.start_soon(partial(out.upload, 0, send, step=1 << 20, pace=pace, stall_s=5))
    assert trio.current_time() - started_at == pytest.approx(2.0, rel=0.1)


async def test_a_receiver_that_takes_nothing_is_given_up(autojump_clock: trio.testing.MockClock) -> None:
    out = Outbox(per_peer=1, offer_s=600).add(ONE, memoryview(bytes(10)))

    async def send(piece: memoryview) -> None:
        await trio.sleep_forever()

    with pytest.raises(RemoteError, match="took no byte"):
        await out.upload(0, send, step=4, pace=Pace(0), stall_s=5)
    with pytest.raises(RemoteError, match="byte 11"):
        await out.upload(11, send, step=4, pace=Pace(0), stall_s=5)


async def test_a_dropped_body_stops_being_sent(autojump_clock: trio.testing.MockClock) -> None:
    out = Outbox(per_peer=1, offer_s=600).add(ONE, memoryview(bytes(10)))

    async def send(piece: memoryview) -> None:
        await trio.sleep(100)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(out.upload, 0, send, step=4, pace=Pace(0), stall_s=1000))
        await trio.testing.wait_all_tasks_blocked()
        out.drop()
    assert trio.current_time() < 50


@given(st.binary(max_size=5000), st.lists(st.integers(1, 2000), max_size=10))
def test_a_reception_fills_its_buffer_whatever_the_pieces(body: bytes, cuts: list[int]) -> None:
    into = bytearray(len(body))
    reception = Reception(memoryview(into))
    position = 0
    for cut in [*cuts, len(body)]:
        reception.accept(body[position : position + cut])
        position = min(len(body), position + cut)
    assert reception.done
    assert bytes(into) == body


@pytest.mark.parametrize("size", [0, 1, 131_072, 131_073, 5_000_001])
async def test_a_reception_digests_what_comes_beside_its_coming_in(size: int) -> None:
    body = os.urandom(size)
    reception = Reception(memoryview(bytearray(size)))
    digests: list[bytes] = []

    async def digest() -> None:
        digests.append(await reception.digest(trio.CapacityLimiter(1)))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(digest)
        for start in range(0, size, 300_007):
            assert not digests
            reception.accept(body[start : start + 300_007])
            await trio.lowlevel.checkpoint()
    assert digests == [hashlib.sha256(body).digest()]


def test_a_reception_takes_no_byte_too_many() -> None:
    reception = Reception(memoryview(bytearray(3)))
    with pytest.raises(RemoteError, match="4 bytes where 3"):
        reception.accept(b"four")


@given(st.binary(min_size=32, max_size=32), st.integers(0, 2**64 - 1))
def test_a_ticket_reads_back(token: bytes, offset: int) -> None:
    assert read_ticket(ticket(token, offset)) == (token, offset)
