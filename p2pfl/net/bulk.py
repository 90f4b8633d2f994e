"""The bulk plane: bodies over mutual TLS 1.3 with pinned, throw-away certificates.

Each process makes one self-signed P-256 certificate, and tells it to its peers on the authenticated control
stream.  A bulk connection is accepted only between two certificates told that way, byte for byte; whoever
dials presents a single-use token and an offset (40 bytes), and the body follows, from whichever side has it.

The pump is `ssl.MemoryBIO` under trio: decrypted straight into the receiver's buffer, 256 KiB a system call.
Measured beside it: worker threads with `ssl` sockets lose, because they return one 16 KiB record a call and
retake the GIL each time; trio's SSLStream moves half as much (benchmarks/transport.py).
"""

import datetime
import os
import secrets
import socket
import ssl
import sys
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress

import structlog
import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from p2pfl.errors import ConfigError, RemoteError, UnreachableError
from p2pfl.ids import PeerId
from p2pfl.net.limits import Limits
from p2pfl.net.transfers import TICKET_BYTES, Outbox, Outgoing, Pace, Reception, read_ticket, ticket

__all__ = ["BulkPlane", "Expected"]

# One system call's worth, which stays in the cache: 835 MB/s beside 772 with 1 MiB.
_STEP_BYTES = 256 * 1024
# So near, 4 MiB are more than a line of 10 Gbit/s holds; a sender waits less for a receiver whose cores are
# busy: 870 MB/s beside 720 to 860.  Farther away the kernel's own tuning goes higher.
_NEAR_RTT_US = 2000
_NEAR_BUFFER_BYTES = 4 * 1024 * 1024
# Linux, include/uapi/linux/tcp.h: tcpi_rtt is the sixteenth of the 32-bit fields that follow eight bytes.
_TCP_INFO_RTT = 8 + 15 * 4
# Enough for a handshake; strangers get no more.
_HANDSHAKE_STEP_BYTES = 16 * 1024

log = structlog.get_logger()


class _Identity:
    """A key and its certificate, for as long as this process lives."""

    def __init__(self) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, secrets.token_hex(16))])
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            # Pinned for a process's life: dates add nothing, and clocks differ (RFC 5280, 4.1.2.5).
            .not_valid_before(datetime.datetime(2000, 1, 1))
            .not_valid_after(datetime.datetime(9999, 12, 31, 23, 59, 59))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .sign(key, hashes.SHA256())
        )
        self.certificate = certificate.public_bytes(serialization.Encoding.DER)
        self._pem = certificate.public_bytes(serialization.Encoding.PEM) + key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )

    def context(self, trusted: Iterable[bytes], *, is_server: bool) -> ssl.SSLContext:
        """A TLS context that shows this certificate and accepts only `trusted` (DER)."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if is_server else ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_3
        context.check_hostname = False
        context.verify_mode = ssl.CERT_REQUIRED
        if is_server:
            context.num_tickets = 0
        for certificate in trusted:
            context.load_verify_locations(cadata=certificate)
        # The only door to a key in memory that `ssl` has is a file name.
        descriptor = os.memfd_create("p2pfl-bulk", os.MFD_CLOEXEC)
        try:
            os.write(descriptor, self._pem)
            context.load_cert_chain(f"/proc/self/fd/{descriptor}")
        finally:
            os.close(descriptor)
        return context


class _Pipe:
    """One TLS session over a connected socket; closes it on leaving."""

    def __init__(self, stream: trio.SocketStream, context: ssl.SSLContext, *, is_server: bool) -> None:
        self._stream = stream
        self._coming = ssl.MemoryBIO()
        self._going = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._coming, self._going, server_side=is_server)
        self._buffer = memoryview(bytearray(_HANDSHAKE_STEP_BYTES))

    async def __aenter__(self) -> "_Pipe":
        return self

    async def __aexit__(self, *_: object) -> None:
        await trio.aclose_forcefully(self._stream)

    async def handshake(self) -> bytes:
        """Shake hands; returns the other side's certificate (DER)."""
        while True:
            try:
                self._tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                await self._flush()
                if not await self._refill():
                    raise RemoteError("closed a bulk connection in its handshake") from None
            except ssl.SSLError:
                await self._flush()  # the alert says why
                raise
        await self._flush()
        self._make_room()
        return self._tls.getpeercert(binary_form=True) or b""

    def _make_room(self) -> None:
        """Let a near peer run some MiB ahead; for a far one the kernel finds the size itself."""
        sock = self._stream.socket
        with suppress(OSError):  # the other side is gone: the next step says so
            info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_RTT + 4)
            if int.from_bytes(info[_TCP_INFO_RTT:], sys.byteorder) <= _NEAR_RTT_US:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _NEAR_BUFFER_BYTES)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _NEAR_BUFFER_BYTES)

    async def send(self, data: bytes | memoryview) -> None:
        """Encrypt and send everything."""
        self._tls.write(data)
        await self._flush()

    async def receive_into(self, space: memoryview) -> int:
        """Fill some of `space`, which has room: what has come in, at least a byte; 0 at the end."""
        while True:
            filled = 0
            try:
                while filled < len(space):
                    count = self._tls.read(len(space) - filled, space[filled:])
                    if not count:
                        break
                    filled += int(count)
                return filled
            except ssl.SSLWantReadError:
                if filled:
                    return filled
            except ssl.SSLError:
                if filled:
                    return filled  # the error is met again on the next call
                raise
            await self._flush()
            if not await self._refill():
                return 0

    async def receive_exactly(self, size: int) -> bytes:
        """`size` bytes.  Raises RemoteError when the end comes first."""
        data = bytearray(size)
        filled = 0
        while filled < size:
            count = await self.receive_into(memoryview(data)[filled:])
            if not count:
                raise RemoteError(f"closed a bulk connection after {filled} of {size} bytes")
            filled += count
        return bytes(data)

    def widen(self) -> None:
        """From now on receive by large steps: a body follows."""
        self._buffer = memoryview(bytearray(_STEP_BYTES))

    async def end(self) -> None:
        """Wait for the other side to close, as a receiver does when it has everything."""
        with suppress(OSError):  # closed with our last record unread: closed all the same
            while await self._refill():
                self._coming.read()

    async def _flush(self) -> None:
        if self._going.pending:
            await self._stream.send_all(self._going.read())

    async def _refill(self) -> int:
        count = await self._stream.socket.recv_into(self._buffer)
        if count:
            self._coming.write(self._buffer[:count])
        return count


class Expected:
    """A reception that the sender was asked to push: the token it must show, and how that ended."""

    def __init__(self, peer: PeerId, reception: Reception) -> None:
        self.peer = peer
        self.reception = reception
        self.token = secrets.token_bytes(TICKET_BYTES - 8)
        self.has_come = trio.Event()
        self.has_ended = trio.Event()
        self.scope = trio.CancelScope()


class BulkPlane:
    """The bulk listener of one process, the certificates it trusts, and the bodies it keeps for its peers."""

    def __init__(self, *, listen: str, limits: Limits) -> None:
        """listen: "host:port" (port 0: any), or "" to dial only.  Raises ConfigError when it is neither."""
        self._listen = _parse_listen(listen) if listen else None
        self._limits = limits
        self._identity = _Identity()
        self._pins: dict[PeerId, bytes] = {}
        self._server_context: ssl.SSLContext | None = None
        self._expected: dict[bytes, Expected] = {}
        self._half_open: Counter[str] = Counter()
        self._bound: tuple[tuple[str, int], ...] = ()
        self.pace = Pace(limits.upload_mbit_s)
        self.outbox = Outbox(per_peer=limits.offers_per_peer, offer_s=limits.offer_s)

    @property
    def certificate(self) -> bytes:
        """The certificate (DER) that others must pin to talk to us."""
        return self._identity.certificate

    @property
    def bound(self) -> tuple[tuple[str, int], ...]:
        """(host, port) of each listening socket; empty without one."""
        return self._bound

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Accept bulk connections until cancelled.  Raises ConfigError when the address cannot be had."""
        if self._listen is None:
            task_status.started()
            await trio.sleep_forever()
            return
        host, port = self._listen
        try:
            listeners = await trio.open_tcp_listeners(port, host=host)
        except OSError as error:
            raise ConfigError(
                f"cannot listen for bodies on {host}:{port}: {error}; choose another port"
            ) from error
        try:
            self._bound = tuple(listener.socket.getsockname()[:2] for listener in listeners)
            task_status.started()
            await trio.serve_listeners(self._accept, listeners)
        finally:
            self._bound = ()
            for listener in listeners:
                listener.socket.close()

    def trust(self, peer: PeerId, certificate: bytes) -> None:
        """From now on `peer` is who shows this certificate (DER).  Raises RemoteError when it is none."""
        try:
            self._identity.context((certificate,), is_server=False)
        except (ssl.SSLError, ValueError) as error:
            raise RemoteError("a bulk certificate that cannot be read", peer) from error
        self._pins[peer] = certificate
        self._server_context = None

    def forget(self, peer: PeerId) -> None:
        """Drop the peer's certificate and every body kept for it."""
        if self._pins.pop(peer, None) is not None:
            self._server_context = None
        self.outbox.forget(peer)

    async def pull(
        self, peer: PeerId, addresses: tuple[str, ...], token: bytes, reception: Reception
    ) -> None:
        """Dial `peer` and receive what is missing.  Raises UnreachableError, RemoteError."""
        try:
            async with await self._dial(peer, addresses) as pipe:
                await pipe.send(ticket(token, reception.position))
                await self._receive(pipe, peer, reception)
        except (OSError, ssl.SSLError, trio.BrokenResourceError) as error:
            raise UnreachableError(f"a bulk connection broke: {error}", peer) from error

    async def push(self, addresses: tuple[str, ...], out: Outgoing, offset: int, token: bytes) -> None:
        """Dial the peer of `out` and send it the rest.  Raises UnreachableError, RemoteError."""
        try:
            async with await self._dial(out.peer, addresses) as pipe:
                await pipe.send(ticket(token, offset))
                await self._send(pipe, out, offset)
        except (OSError, ssl.SSLError, trio.BrokenResourceError) as error:
            raise UnreachableError(f"a bulk connection broke: {error}", out.peer) from error

    def expect(self, peer: PeerId, reception: Reception) -> Expected:
        """Let `peer` push the rest of `reception`, once, to whoever holds the token; end with `settle`."""
        expected = Expected(peer, reception)
        self._expected[expected.token] = expected
        return expected

    async def settle(self, expected: Expected) -> None:
        """Expect it no longer; after this nothing writes to its buffer."""
        self._expected.pop(expected.token, None)
        expected.scope.cancel()
        if expected.has_come.is_set():
            with trio.CancelScope(shield=True):
                await expected.has_ended.wait()

    async def _accept(self, stream: trio.SocketStream) -> None:
        address = _address_of(stream)
        limits = self._limits
        if (
            self._half_open.total() >= limits.bulk_half_open
            or self._half_open[address] >= limits.bulk_half_open_per_address
        ):
            await trio.aclose_forcefully(stream)
            return
        try:
            if self._server_context is None:
                self._server_context = self._identity.context(set(self._pins.values()), is_server=True)
            async with _Pipe(stream, self._server_context, is_server=True) as pipe:
                self._half_open[address] += 1
                try:
                    with trio.fail_after(limits.bulk_handshake_s):
                        certificate = await pipe.handshake()
                        token, offset = read_ticket(await pipe.receive_exactly(TICKET_BYTES))
                finally:
                    self._half_open[address] -= 1
                    if not self._half_open[address]:
                        del self._half_open[address]
                await self._serve(pipe, certificate, token, offset)
        except (OSError, ssl.SSLError, trio.BrokenResourceError, trio.TooSlowError, RemoteError) as error:
            log.debug("bulk connection ended", address=address, error=str(error))

    async def _serve(self, pipe: _Pipe, certificate: bytes, token: bytes, offset: int) -> None:
        """Send or receive as the token says.  A certificate told by two peers is of whoever has the token."""
        for peer in [peer for peer, pinned in self._pins.items() if pinned == certificate]:
            out = self.outbox.claim(peer, token)
            if out is not None:
                return await self._send(pipe, out, offset)
            expected = self._expected.get(token)
            if expected is not None and expected.peer == peer and offset == expected.reception.position:
                del self._expected[token]
                expected.has_come.set()
                try:
                    with expected.scope:
                        await self._receive(pipe, peer, expected.reception)
                finally:
                    expected.has_ended.set()
                return None
        raise RemoteError("presented a token that opens nothing")

    async def _send(self, pipe: _Pipe, out: Outgoing, offset: int) -> None:
        stall_s = self._limits.stall_s
        await out.upload(offset, pipe.send, step=_STEP_BYTES, pace=self.pace, stall_s=stall_s)
        with trio.move_on_after(stall_s):
            await pipe.end()

    async def _receive(self, pipe: _Pipe, peer: PeerId, reception: Reception) -> None:
        pipe.widen()
        while not reception.done:
            with trio.move_on_after(self._limits.stall_s) as stall:
                count = await pipe.receive_into(reception.space())
            if stall.cancelled_caught:
                raise RemoteError(f"sent no byte of a body for {self._limits.stall_s:g} s", peer)
            if not count:
                raise RemoteError(f"ended a bulk connection at byte {reception.position}", peer)
            reception.advance(count)

    async def _dial(self, peer: PeerId, addresses: tuple[str, ...]) -> _Pipe:
        """A connection to `peer` that has shown its certificate; closed by whoever enters it."""
        pinned = self._pins.get(peer)
        if pinned is None:
            raise UnreachableError("no bulk certificate of it is known", peer)
        context = self._identity.context((pinned,), is_server=False)
        reasons = []
        for address in addresses:
            host, _, port = address.rpartition(":")
            try:
                with trio.fail_after(self._limits.bulk_dial_s):
                    stream = await trio.open_tcp_stream(host.strip("[]"), int(port))
                pipe = _Pipe(stream, context, is_server=False)
                try:
                    with trio.fail_after(self._limits.bulk_handshake_s):
                        shown = await pipe.handshake()
                    if shown != pinned:
                        raise RemoteError("showed a certificate that only resembles the one it told", peer)
                except BaseException:
                    await trio.aclose_forcefully(stream)
                    raise
                return pipe
            except (OSError, ssl.SSLError, trio.BrokenResourceError, trio.TooSlowError, RemoteError) as error:
                reasons.append(f"{address}: {error or 'no answer in time'}")
        raise UnreachableError("no bulk address answers: " + "; ".join(reasons or ["none is known"]), peer)


def _parse_listen(listen: str) -> tuple[str, int]:
    host, _, port = listen.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise ConfigError(f'bulk_listen is {listen!r}; write "host:port", such as "0.0.0.0:4002", or ""')
    return host.strip("[]"), int(port)


def _address_of(stream: trio.SocketStream) -> str:
    with suppress(OSError):
        return str(stream.socket.getpeername()[0])
    return ""
