import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pfl.errors import RemoteError
from p2pfl.net.framing import FrameSplitter, with_length


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
