"""Frames in a byte stream, each behind its length as u32, big-endian.

A length beyond the limit is an error as soon as it is read.
"""

from __future__ import annotations

from p2pfl.errors import RemoteError

__all__ = ["CHUNK_BYTES", "LENGTH_BYTES", "with_length", "FrameSplitter"]

# One read or write of a body: over a libp2p stream writes of 1 MiB carry 1.2 to 2 times as much as writes of
# 64 KiB (benchmarks/transport.py).
CHUNK_BYTES = 1024 * 1024
# The length before each frame of a stream.
LENGTH_BYTES = 4


def with_length(frame: bytes) -> bytes:
    """`frame` as it goes into a stream."""
    return len(frame).to_bytes(LENGTH_BYTES, "big") + frame


class FrameSplitter:
    """Cuts a stream of length-prefixed frames; holds at most one frame and what was fed last."""

    def __init__(self, limit: int) -> None:
        """`limit`: the most bytes a frame may have."""
        self._limit = limit
        self._pending = bytearray()

    def feed(self, data: bytes | bytearray | memoryview) -> list[bytes]:
        """The frames that `data` completes, in order.

        Raises RemoteError at a declared length beyond the limit, before the frame is kept; the stream is then
        of no more use, for nobody knows where its next frame begins.
        """
        frames = []
        self._pending += data
        while len(self._pending) >= LENGTH_BYTES:
            length = int.from_bytes(self._pending[:LENGTH_BYTES], "big")
            if length > self._limit:
                self._pending.clear()
                raise RemoteError(f"a frame of {length} bytes is announced, the limit is {self._limit}")
            end = LENGTH_BYTES + length
            if len(self._pending) < end:
                break
            frames.append(bytes(self._pending[LENGTH_BYTES:end]))
            del self._pending[:end]
        return frames

    def finish(self) -> None:
        """The stream has ended.  Raises RemoteError when it ended inside a frame."""
        if self._pending:
            raise RemoteError(f"the stream ended inside a frame, after {len(self._pending)} bytes of it")
