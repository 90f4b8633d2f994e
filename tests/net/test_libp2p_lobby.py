"""The lobby's two readers, on streams that bring any bytes in any pieces: one frame, or an error."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import trio
from hypothesis import example, given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from p2pfl.errors import LocalError, RefusedError, RemoteError, UnreachableError
from p2pfl.ids import PeerId, peer_id_of
from p2pfl.net.framing import LENGTH_BYTES, with_length
from p2pfl.net.libp2p_lobby import answer_petition, present_petition
from p2pfl.net.limits import Limits
from p2pfl.net.transport import MAX_FRAME_BYTES, MAX_PETITION_BYTES, Gate, Standing

STRANGER = peer_id_of(b"9" * 32)
LIMITS = Limits()


class Pieces:
    """A libp2p stream that brings `pieces`, then ends or is silent for ever; it keeps what is written."""

    def __init__(self, pieces: Sequence[bytes], *, ends: bool = True) -> None:
        self._pieces: Iterator[bytes] = iter([piece for piece in pieces if piece])
        self._ends = ends
        self.read_bytes = 0
        self.written = b""
        self.is_closed = False
        self.muxed_conn = self
        self.event_closed = trio.Event()

    async def read(self, most: int) -> bytes:
        await trio.lowlevel.checkpoint()
        piece = next(self._pieces, None)
        if piece is None:
            if not self._ends:
                await trio.sleep_forever()
            return b""
        assert len(piece) <= most
        self.read_bytes += len(piece)
        return piece

    async def write(self, data: bytes) -> None:
        assert not self.is_closed
        self.written += data

    async def close_write(self) -> None:
        self.is_closed = True


class OneStream:
    """A host whose only stream is `stream`."""

    def __init__(self, stream: Pieces) -> None:
        self._stream = stream

    async def open_stream(self, connection: Any, protocol: str) -> Pieces:
        return self._stream


def first_frame(data: bytes, limit: int) -> bytes | None:
    """The first frame of `data`, as the protocol says; None when it is too large or not whole."""
    end = LENGTH_BYTES + int.from_bytes(data[:LENGTH_BYTES], "big")
    if not len(data) >= LENGTH_BYTES or end > LENGTH_BYTES + limit or len(data) < end:
        return None
    return data[LENGTH_BYTES:end]


def cut(data: bytes, places: list[int]) -> list[bytes]:
    ends = sorted({place % (len(data) + 1) for place in places} | {0, len(data)})
    return [data[a:b] for a, b in itertools.pairwise(ends)]


def answered(pieces: Sequence[bytes], *, ends: bool = True) -> tuple[Pieces, list[bytes], str]:
    """The stream, the petitions that the gate saw, and the error, after the lobby had this stream."""
    petitions: list[bytes] = []

    async def petition(peer: PeerId, frame: bytes) -> bytes:
        assert peer == STRANGER
        petitions.append(frame)
        return b"heard " + frame[:9]

    async def answer() -> tuple[Pieces, str]:
        stream = Pieces(pieces, ends=ends)
        try:
            await answer_petition(
                STRANGER, stream, Gate(standing=lambda _: Standing.STRANGER, petition=petition), LIMITS
            )
        except RemoteError as error:
            return stream, str(error)
        return stream, ""

    stream, error = trio.run(answer, clock=MockClock(autojump_threshold=0))
    return stream, petitions, error


# Lengths near the limit, honest and not, before what may be less than they announce.
STREAMS = st.one_of(
    st.binary(max_size=300),
    st.builds(
        lambda length, body: length.to_bytes(LENGTH_BYTES, "big") + body,
        st.one_of(st.integers(0, 40), st.integers(MAX_PETITION_BYTES - 2, MAX_PETITION_BYTES + 2)),
        st.binary(max_size=60).map(lambda some: some * 80),
    ),
)


@settings(deadline=None, max_examples=200)
@given(STREAMS, st.lists(st.integers(0, 5000), max_size=5))
@example(with_length(bytes(MAX_PETITION_BYTES)), [])
@example(with_length(bytes(MAX_PETITION_BYTES + 1)), [3])
@example(b"\xff" * 4, [])
def test_any_bytes_are_one_petition_or_a_remote_error(data: bytes, places: list[int]) -> None:
    stream, petitions, error = answered(cut(data, places))
    if error:
        assert petitions == []
        assert stream.written == b""
        frame = first_frame(data, MAX_PETITION_BYTES)
        assert frame is None or data != with_length(frame)
    else:
        assert petitions == [first_frame(data, MAX_PETITION_BYTES)]
        assert stream.written == with_length(b"heard " + petitions[0][:9])
        assert stream.is_closed


@given(st.integers(MAX_PETITION_BYTES + 1, 2**32 - 1))
@settings(deadline=None, max_examples=50)
def test_a_length_beyond_the_limit_is_refused_before_anything_behind_it_is_read(length: int) -> None:
    head = length.to_bytes(LENGTH_BYTES, "big")
    stream, petitions, error = answered([head, *[bytes(1000)] * 50])
    assert (petitions, stream.read_bytes) == ([], LENGTH_BYTES)
    assert "the limit is 4096" in error


def test_a_stranger_that_falls_silent_is_told_to_go() -> None:
    for said in (b"", b"\0\0", with_length(b"petition")[:-1]):
        _, petitions, error = answered([said], ends=False)
        assert petitions == []
        assert "did not petition within 5 s" in error


@settings(deadline=None, max_examples=150)
@given(STREAMS, st.lists(st.integers(0, 5000), max_size=5), st.booleans())
def test_any_answer_is_bytes_or_an_error_that_names_the_peer(
    data: bytes, places: list[int], ends: bool
) -> None:
    async def present() -> bytes | PeerId | None:
        host: Any = OneStream(Pieces(cut(data, places), ends=ends))
        try:
            return await present_petition(host, None, STRANGER, b"ticket", LIMITS)
        except (RefusedError, UnreachableError) as error:
            return error.peer

    found = trio.run(present, clock=MockClock(autojump_threshold=0))
    frame = first_frame(data, MAX_FRAME_BYTES)
    # What comes behind the one frame that belongs here may spoil it, or come too late to.
    assert found in (frame, STRANGER)
    if frame is None or data == with_length(frame):
        assert found == (STRANGER if frame is None else frame)


async def test_a_petition_too_large_is_never_sent() -> None:
    stream = Pieces([])
    host: Any = OneStream(stream)
    with pytest.raises(LocalError, match="4097 bytes"):
        await present_petition(host, None, STRANGER, bytes(MAX_PETITION_BYTES + 1), LIMITS)
    assert stream.written == b""
