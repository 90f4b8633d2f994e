"""The bulk plane between two of itself, and against those who are not."""

import datetime
import hashlib
import math
import os
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from p2pfl.errors import ConfigError, RemoteError, UnreachableError
from p2pfl.ids import peer_id_of
from p2pfl.net.bulk import BulkPlane
from p2pfl.net.limits import Limits
from p2pfl.net.transfers import Outgoing, Reception, attempt_token, ticket

ONE, TWO = peer_id_of(b"1" * 32), peer_id_of(b"2" * 32)
QUICK = Limits(stall_s=0.3, bulk_handshake_s=0.3)


def addresses(plane: BulkPlane) -> tuple[str, ...]:
    return tuple(f"{host}:{port}" for host, port in plane.bound)


def token(out: Outgoing, attempt: int = 1) -> bytes:
    return attempt_token(out.secret, attempt)


@asynccontextmanager
async def planes(limits: Limits | None = None) -> AsyncIterator[tuple[BulkPlane, BulkPlane]]:
    """Those of ONE and TWO, who trust each other."""
    one, two = (BulkPlane(listen="127.0.0.1:0", limits=limits or Limits()) for _ in range(2))
    one.trust(TWO, two.certificate)
    two.trust(ONE, one.certificate)
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            await nursery.start(one.run)
            await nursery.start(two.run)
            yield one, two
            nursery.cancel_scope.cancel()


class Buffer:
    def __init__(self, size: int) -> None:
        self.bytes = bytearray(size)
        self.reception = Reception(memoryview(self.bytes))


@pytest.mark.parametrize("size", [0, 1, 16384, 100_001, 5_000_000])
async def test_a_pulled_body_is_the_same_to_the_byte(size: int) -> None:
    body = os.urandom(size)
    async with planes() as (one, two):
        out, buffer = one.outbox.add(TWO, memoryview(body)), Buffer(size)
        await two.pull(ONE, addresses(one), token(out), buffer.reception)
        assert buffer.bytes == body
        assert await buffer.reception.digest(trio.CapacityLimiter(1)) == hashlib.sha256(body).digest()


async def test_a_pushed_body_is_the_same_to_the_byte() -> None:
    body = os.urandom(3_000_001)
    async with planes() as (one, two):
        out, buffer = one.outbox.add(TWO, memoryview(body)), Buffer(len(body))
        expected = two.expect(ONE, buffer.reception)
        await one.push(addresses(two), out, 0, expected.token)
        await expected.has_ended.wait()
        await two.settle(expected)
        assert buffer.bytes == body


async def test_a_cut_body_resumes_at_odd_offsets_under_one_digest() -> None:
    body = os.urandom(4_000_003)
    async with planes() as (one, two):
        out, buffer = one.outbox.add(TWO, memoryview(body)), Buffer(len(body))
        receive, cutting = buffer.reception.advance, dict[str, Any]()

        def counted(size: int) -> None:
            receive(size)
            if buffer.reception.position >= cutting["stop"]:
                cutting["cut"].cancel()

        buffer.reception.advance = counted  # type: ignore[method-assign]
        for attempt, stop in enumerate((777_777, 1_234_567, 2_999_999), start=1):
            with trio.CancelScope() as cut:
                cutting.update(cut=cut, stop=stop)
                await two.pull(ONE, addresses(one), token(out, attempt), buffer.reception)
            assert cut.cancelled_caught
        cutting.update(stop=math.inf)
        await two.pull(ONE, addresses(one), token(out, 4), buffer.reception)
        assert buffer.bytes == body
        assert await buffer.reception.digest(trio.CapacityLimiter(1)) == hashlib.sha256(body).digest()


async def test_a_used_or_wrong_token_opens_nothing() -> None:
    async with planes() as (one, two):
        out = one.outbox.add(TWO, memoryview(b"body"))
        await two.pull(ONE, addresses(one), token(out), Buffer(4).reception)
        for bad in (token(out), bytes(32), os.urandom(32)):
            buffer = Buffer(4)
            with pytest.raises(RemoteError, match="byte 0"):
                await two.pull(ONE, addresses(one), bad, buffer.reception)
            assert buffer.reception.position == 0


async def test_an_offset_past_the_end_brings_nothing() -> None:
    async with planes() as (one, two):
        out, buffer = one.outbox.add(TWO, memoryview(b"body")), Buffer(9)
        buffer.reception.position = 5
        with pytest.raises(RemoteError):
            await two.pull(ONE, addresses(one), token(out), buffer.reception)


async def test_a_certificate_nobody_told_is_refused_by_both_sides() -> None:
    async with planes() as (one, two):
        out = one.outbox.add(TWO, memoryview(b"body"))
        imposter = BulkPlane(listen="", limits=Limits())
        imposter.trust(ONE, one.certificate)
        with pytest.raises((UnreachableError, RemoteError)):
            await imposter.pull(ONE, addresses(one), token(out), Buffer(4).reception)
        # The other way round: two expects one's certificate and meets its own.
        with pytest.raises(UnreachableError, match="no bulk address answers"):
            await two.pull(ONE, addresses(two), token(out), Buffer(4).reception)
        assert one.outbox.claim(TWO, token(out)) is out  # nobody used it up


async def test_a_certificate_signed_by_a_trusted_one_is_not_it() -> None:
    """Each certificate is its own authority; one that a peer signs for another key must not pass."""
    async with planes() as (one, two):
        two_key = serialization.load_pem_private_key(
            two._identity._pem[two._identity._pem.index(b"-----BEGIN PRIVATE") :], None
        )
        two_certificate = x509.load_der_x509_certificate(two.certificate)
        key = ec.generate_private_key(ec.SECP256R1())
        child = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "child")]))
            .issuer_name(two_certificate.subject)
            .public_key(key.public_key())
            .serial_number(7)
            .not_valid_before(datetime.datetime(2000, 1, 1))
            .not_valid_after(datetime.datetime(9999, 12, 31))
            .sign(two_key, hashes.SHA256())  # type: ignore[arg-type]
        )
        forger = BulkPlane(listen="", limits=Limits())
        forger._identity._pem = child.public_bytes(serialization.Encoding.PEM) + key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        forger.trust(ONE, one.certificate)
        out = one.outbox.add(TWO, memoryview(b"body"))
        with pytest.raises((RemoteError, UnreachableError)):
            await forger.pull(ONE, addresses(one), token(out), Buffer(4).reception)
        assert one.outbox.claim(TWO, token(out)) is out


async def test_a_certificate_told_by_two_peers_belongs_to_who_has_the_token() -> None:
    three = peer_id_of(b"3" * 32)
    async with planes() as (one, two):
        one.forget(TWO)
        one.trust(three, two.certificate)  # a neighbour claims two's certificate first
        one.trust(TWO, two.certificate)
        out, buffer = one.outbox.add(TWO, memoryview(b"body")), Buffer(4)
        await two.pull(ONE, addresses(one), token(out), buffer.reception)
        assert buffer.bytes == b"body"


async def test_a_forgotten_peer_gets_nothing_more() -> None:
    async with planes() as (one, two):
        out = one.outbox.add(TWO, memoryview(b"body"))
        one.forget(TWO)
        with pytest.raises((RemoteError, UnreachableError)):
            await two.pull(ONE, addresses(one), token(out), Buffer(4).reception)


async def test_a_sender_that_stalls_is_cut() -> None:
    async with planes(QUICK) as (one, two):
        out, buffer = one.outbox.add(TWO, memoryview(bytes(1_000_000))), Buffer(1_000_000)

        async def stalling(*_: object, **__: object) -> None:
            await trio.sleep_forever()

        out.upload = stalling  # type: ignore[method-assign]
        with pytest.raises(RemoteError, match="sent no byte"):
            await two.pull(ONE, addresses(one), token(out), buffer.reception)


@pytest.mark.slow
async def test_a_receiver_that_stalls_is_cut() -> None:
    limits = Limits(stall_s=0.3)
    async with planes(limits) as (one, two):
        body = memoryview(bytes(64_000_000))  # more than the kernel's buffers hold
        out = one.outbox.add(TWO, body)
        upload, ended = out.upload, trio.Event()

        async def watched(*args: Any, **options: Any) -> None:
            try:
                await upload(*args, **options)
            finally:
                ended.set()

        out.upload = watched  # type: ignore[method-assign]
        async with await two._dial(ONE, addresses(one)) as pipe:
            await pipe.send(ticket(token(out), 0))
            await ended.wait()


async def test_nothing_is_written_once_a_push_is_settled() -> None:
    async with planes() as (one, two):
        out, buffer = one.outbox.add(TWO, memoryview(b"x" * 50_000_000)), Buffer(50_000_000)
        expected = two.expect(ONE, buffer.reception)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_push_and_fail, one, two, out, expected.token)
            while not buffer.reception.position:
                await trio.lowlevel.checkpoint()
            await two.settle(expected)
            position = buffer.reception.position
            assert position < 50_000_000
        assert buffer.reception.position == position


async def _push_and_fail(one: BulkPlane, two: BulkPlane, out: Outgoing, token: bytes) -> None:
    with pytest.raises((RemoteError, UnreachableError)):
        await one.push(addresses(two), out, 0, token)


@pytest.mark.slow
@pytest.mark.parametrize(
    "garbage",
    [b"", b"\x00", b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x40\x00" + bytes(2000), os.urandom(9000)],
)
async def test_garbage_on_the_bulk_port_is_cut_and_harms_nobody(garbage: bytes) -> None:
    async with planes(QUICK) as (one, two):
        stream = await trio.open_tcp_stream(*one.bound[0])
        async with stream:
            try:
                await stream.send_all(garbage)
                while await stream.receive_some():
                    pass
            except trio.BrokenResourceError:
                pass
        out, buffer = one.outbox.add(TWO, memoryview(b"body")), Buffer(4)
        await two.pull(ONE, addresses(one), token(out), buffer.reception)


async def test_handshakes_under_way_are_bounded_by_address() -> None:
    async with planes(Limits(bulk_half_open_per_address=2)) as (one, two):
        silent = [await trio.open_tcp_stream(*one.bound[0]) for _ in range(2)]
        while one._half_open.total() < 2:
            await trio.lowlevel.checkpoint()
        third = await trio.open_tcp_stream(*one.bound[0])
        assert await third.receive_some() == b""
        for stream in (*silent, third):
            await stream.aclose()
        while one._half_open.total():
            await trio.lowlevel.checkpoint()
        out, buffer = one.outbox.add(TWO, memoryview(b"body")), Buffer(4)
        await two.pull(ONE, addresses(one), token(out), buffer.reception)


async def test_an_older_tls_is_not_spoken() -> None:
    async with planes() as (one, two):
        context = two._identity.context((one.certificate,), is_server=False)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        stream = trio.SSLStream(await trio.open_tcp_stream(*one.bound[0]), context)
        with pytest.raises(trio.BrokenResourceError):
            await stream.do_handshake()
        await trio.aclose_forcefully(stream)


async def test_a_large_body_leaves_the_event_loop_to_others() -> None:
    body = memoryview(os.urandom(30_000_000))
    async with planes() as (one, two):
        out, buffer = one.outbox.add(TWO, body), Buffer(len(body))
        turns = 0

        async def spin(nursery: trio.Nursery) -> None:
            nonlocal turns
            while True:
                await trio.lowlevel.checkpoint()
                turns += 1

        async with trio.open_nursery() as nursery:
            nursery.start_soon(spin, nursery)
            await two.pull(ONE, addresses(one), token(out), buffer.reception)
            nursery.cancel_scope.cancel()
        # Steps are of at most 1 MiB, so that others get a turn at least as often.
        assert turns >= len(body) // (1024 * 1024)


def test_what_is_no_certificate_is_refused() -> None:
    plane = BulkPlane(listen="", limits=Limits())
    for bad in (b"", b"nonsense", plane.certificate[:-9], os.urandom(500)):
        with pytest.raises(RemoteError, match="certificate"):
            plane.trust(ONE, bad)


@pytest.mark.parametrize("listen", ["4002", ":4002", "host:", "host:port", "host:70000"])
def test_a_bulk_address_that_is_none_is_a_configuration_error(listen: str) -> None:
    with pytest.raises(ConfigError, match="host:port"):
        BulkPlane(listen=listen, limits=Limits())


async def test_a_taken_bulk_port_is_a_configuration_error() -> None:
    async with planes() as (one, _):
        host, port = one.bound[0]
        with pytest.raises(ConfigError, match="another port"):
            await BulkPlane(listen=f"{host}:{port}", limits=Limits()).run()
