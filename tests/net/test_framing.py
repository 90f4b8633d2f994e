import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pfl.errors import LocalError, RemoteError
from p2pfl.net.framing import CHUNK_BYTES, FrameSplitter, Reassembly, check_size, chunks, with_length

BODY = bytes(range(256)) * 4
DIGEST = hashlib.sha256(BODY).digest()


def fill(body: Reassembly, data: bytes) -> None:
    body.space()[: len(data)] = data
    body.advance(len(data))


def test_only_the_size_of_the_local_schema_is_accepted() -> None:
    assert check_size(40, 40) == 40
    for declared in (0, 39, 41, 2**63):
        with pytest.raises(RemoteError, match="expected 40"):
            check_size(declared, 40)


def test_chunks_cover_a_body_without_copying_it() -> None:
    data = bytearray(BODY)
    parts = list(chunks(memoryview(data), 100))
    assert [part.nbytes for part in parts] == [100] * 10 + [24]
    assert b"".join(parts) == BODY
    parts[0][0] = 99
    assert data[0] == 99
    assert list(chunks(memoryview(b""))) == []
    with pytest.raises(LocalError):
        list(chunks(memoryview(data), 0))


@given(st.lists(st.integers(0, 300)))
def test_a_body_arrives_in_any_pieces(steps: list[int]) -> None:
    buffer = bytearray(len(BODY))
    body = Reassembly(len(BODY), DIGEST, into=memoryview(buffer))
    for step in [*steps, len(BODY)]:
        assert body.space().nbytes == len(BODY) - body.filled
        fill(body, BODY[body.filled : body.filled + step])
    assert body.done
    assert body.space().nbytes == 0
    assert bytes(buffer) == bytes(body.buffer) == BODY


def test_a_body_larger_than_a_chunk_is_hashed_whole() -> None:
    data = bytes(CHUNK_BYTES + 1)
    body = Reassembly(len(data), hashlib.sha256(data).digest())
    fill(body, data)
    assert body.done


def test_a_wrong_digest_is_noticed_at_the_last_byte_and_the_body_is_never_done() -> None:
    body = Reassembly(len(BODY), bytes(32))
    fill(body, BODY[:-1])
    with pytest.raises(RemoteError, match="digest"):
        fill(body, BODY[-1:])
    assert not body.done


def test_without_a_digest_nothing_is_checked_but_the_size() -> None:
    body = Reassembly(3)
    fill(body, b"abc")
    assert body.done
    with pytest.raises(RemoteError, match="came with 4"):
        body.advance(1)


def test_an_empty_body_is_done_at_once_if_its_digest_is_that_of_nothing() -> None:
    assert Reassembly(0, hashlib.sha256().digest()).done
    with pytest.raises(RemoteError):
        Reassembly(0, DIGEST)


def test_a_buffer_of_another_size_is_our_own_error() -> None:
    with pytest.raises(LocalError):
        Reassembly(4, into=memoryview(bytearray(5)))
    with pytest.raises(LocalError):
        Reassembly(-1)
    with pytest.raises(LocalError):
        Reassembly(4).advance(-1)


@given(st.lists(st.binary(max_size=40)), st.data())
def test_frames_come_out_of_a_stream_however_it_is_cut(frames: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(map(with_length, frames))
    splitter, out, start = FrameSplitter(40), [], 0
    while start < len(stream):
        step = data.draw(st.integers(1, 20))
        out += splitter.feed(stream[start : start + step])
        start += step
    splitter.finish()
    assert out == frames


def test_a_length_beyond_the_limit_is_an_error_before_the_frame_is_kept() -> None:
    assert FrameSplitter(5).feed(with_length(b"12345")) == [b"12345"]
    splitter = FrameSplitter(5)
    with pytest.raises(RemoteError, match="6 bytes is announced, the limit is 5"):
        splitter.feed(with_length(b"123456"))
    with pytest.raises(RemoteError, match="the limit is 5"):
        FrameSplitter(5).feed(b"\xff\xff\xff\xff")


def test_a_stream_that_ends_inside_a_frame_is_an_error() -> None:
    splitter = FrameSplitter(5)
    assert splitter.feed(with_length(b"123")[:-1]) == []
    with pytest.raises(RemoteError, match="ended inside"):
        splitter.finish()


@given(st.lists(st.binary(max_size=20)))
def test_any_stream_gives_frames_within_the_limit_or_a_remote_error(pieces: list[bytes]) -> None:
    splitter = FrameSplitter(8)
    try:
        for piece in pieces:
            assert all(len(frame) <= 8 for frame in splitter.feed(piece))
        splitter.finish()
    except RemoteError:
        return
