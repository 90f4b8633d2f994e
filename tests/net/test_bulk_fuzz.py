"""The bulk plane's reader against any bytes, and against a true handshake in which some bytes are others.

The sockets are pipes in memory and the clock jumps, so a connection that hangs costs no time.
"""

import contextlib
import ssl
from dataclasses import dataclass
from typing import Any

import trio
from hypothesis import example, given, settings
from hypothesis import strategies as st
from trio.testing import MockClock, memory_stream_pair

from p2pfl.errors import RemoteError
from p2pfl.ids import peer_id_of
from p2pfl.net.bulk import BulkPlane, _Pipe
from p2pfl.net.limits import Limits
from p2pfl.net.transfers import attempt_token, ticket

PEER = peer_id_of(b"2" * 32)
BODY = bytes(range(200))
# A server and who may fetch from it.  Keys are for a process's life; their making is not what is tested.
SERVER, CLIENT = (BulkPlane(listen="", limits=Limits()) for _ in range(2))
SERVER.trust(PEER, CLIENT.certificate)


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """At byte `place` of what the client sends, `remove` bytes become `insert`."""

    place: int
    remove: int = 0
    insert: bytes = b""


class PipedSocket:
    """A trio.SocketStream in memory, as far as the bulk plane knows one, which changes what it sends."""

    def __init__(self, stream: Any, change: Change | None = None) -> None:
        self._stream = stream
        self._change = change
        self._sent = 0
        self.socket = self

    def getsockopt(self, *_: object) -> bytes:
        raise OSError("no TCP here")

    async def send_all(self, data: bytes) -> None:
        change, start = self._change, self._sent
        self._sent += len(data)
        if change is not None and start <= change.place < self._sent:
            here = change.place - start
            data = data[:here] + change.insert + data[here + change.remove :]
        await self._stream.send_all(data)

    async def recv_into(self, buffer: memoryview) -> int:
        data = await self._stream.receive_some(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def getpeername(self) -> tuple[str, int]:
        return ("10.0.0.1", 4911)

    async def aclose(self) -> None:
        await self._stream.aclose()


async def served(stream: Any) -> float:
    """The seconds that the server spends on a connection, which it takes to its end without an error."""
    began = trio.current_time()
    await SERVER._accept(PipedSocket(stream))  # type: ignore[arg-type]
    assert SERVER._half_open.total() == 0
    return trio.current_time() - began


def run(function: Any, *arguments: Any) -> Any:
    return trio.run(function, *arguments, clock=MockClock(autojump_threshold=0))


# What TLS looks like from outside, and is not.
RECORDS = st.builds(
    lambda kind, minor, length, body: (
        bytes((kind, 3, minor)) + (len(body) if length is None else length).to_bytes(2, "big") + body
    ),
    st.sampled_from([20, 21, 22, 23, 99]),
    st.integers(0, 4),
    st.one_of(st.none(), st.integers(0, 65535)),
    st.binary(max_size=300),
)


@settings(deadline=None, max_examples=150)
@given(st.one_of(st.binary(max_size=400), st.lists(RECORDS, max_size=6).map(b"".join)), st.booleans())
@example(b"\x16\x03\x01\xff\xff" + bytes(70_000), True)
@example(b"", False)
def test_any_bytes_end_a_bulk_connection_within_the_time_of_a_handshake(data: bytes, hangs: bool) -> None:
    async def pour() -> float:
        ours, theirs = memory_stream_pair()
        await ours.send_all(data)
        if not hangs:
            await ours.send_eof()
        return await served(theirs)

    assert run(pour) <= Limits().bulk_handshake_s


async def fetched(change: Change | None) -> bytes | None:
    """What a client gets whose bytes are changed on the way: the body, or None when something ended it."""
    out = SERVER.outbox.add(PEER, memoryview(BODY))
    ours, theirs = memory_stream_pair()
    context = CLIENT._identity.context((SERVER.certificate,), is_server=False)
    got = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(served, theirs)
        pipe = _Pipe(PipedSocket(ours, change), context, is_server=False)  # type: ignore[arg-type]
        # As long as the server may take, and no longer: then the client goes.
        with trio.move_on_after(60), contextlib.suppress(RemoteError, ssl.SSLError, trio.BrokenResourceError):
            async with pipe:
                await pipe.handshake()
                await pipe.send(ticket(attempt_token(out.secret, 1), 0))
                got = await pipe.receive_exactly(len(BODY))
    SERVER.outbox.forget(PEER)
    return got


def test_the_handshake_that_is_changed_is_a_true_one() -> None:
    assert run(fetched, None) == BODY


# A client's handshake and ticket have some 880 bytes.
CHANGES = st.builds(Change, place=st.integers(0, 900), remove=st.integers(0, 3), insert=st.binary(max_size=3))


@settings(deadline=None, max_examples=100)
@given(CHANGES)
@example(Change(place=2, remove=1, insert=b"\x00"))
@example(Change(place=0, remove=5000))
def test_a_changed_handshake_or_ticket_brings_the_whole_body_or_nothing(change: Change) -> None:
    # Some bytes, such as the version of a record, mean nothing; every other is under a digest.
    assert run(fetched, change) in (BODY, None)
    assert SERVER._half_open.total() == 0
