"""Large bodies as chunks, and frames in a byte stream.

A body is received into memory that the receiver sized from its own schema, so its declared size is compared
with the expected one first (`check_size`), and nothing else is ever allocated for it.  A stream carries each
frame behind its length as u32, big-endian; a length beyond the limit is an error as soon as it is read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from p2pfl.errors import LocalError, RemoteError

__all__ = [
    "CHUNK_BYTES",
    "LENGTH_BYTES",
    "check_size",
    "chunks",
    "Reassembly",
    "with_length",
    "FrameSplitter",
]

# One write, and one step of a running digest: over a libp2p stream writes of 1 MiB carry 1.2 to 2 times as
# much as writes of 64 KiB (benchmarks/transport.py), and a megabyte is hashed in .6 ms.
CHUNK_BYTES = 1024 * 1024
# The length before each frame of a stream.
LENGTH_BYTES = 4


def check_size(declared: int, expected: int) -> int:
    """`declared`, if it is exactly what the local schema expects, both in bytes.  Raises RemoteError."""
    if declared != expected:
        raise RemoteError(
            f"a body of {declared} bytes is offered, expected {expected}; check both sites run the same model"
        )
    return declared


def chunks(body: memoryview, chunk_bytes: int = CHUNK_BYTES) -> Iterator[memoryview]:
    """Consecutive views of `body`, each of `chunk_bytes` but the last; nothing is copied."""
    if chunk_bytes < 1:
        raise LocalError(f"a chunk has at least one byte, not {chunk_bytes}")
    flat = body.cast("B")
    for start in range(0, flat.nbytes, chunk_bytes):
        yield flat[start : start + chunk_bytes]


class Reassembly:
    """A body on its way into a buffer of its final size.

    The caller writes into `space()`, then says with `advance(n)` how much it wrote; the digest runs along, so
    that the end costs nothing.  States: filling -> done, or failed for good when more bytes come than there
    is space for or the digest differs.

    >>> body = Reassembly(3, hashlib.sha256(b"abc").digest())
    >>> body.space()[:3] = b"abc"
    >>> body.advance(3)
    >>> bytes(body.buffer), body.done
    (b'abc', True)
    """

    def __init__(self, size: int, digest: bytes = b"", *, into: memoryview | None = None) -> None:
        """`size`: bytes, checked by the caller (`check_size`).   digest: SHA-256, or empty for no check.

        into: the buffer to fill, of exactly `size` bytes; allocated here when there is none.
        Raises LocalError when the buffer does not fit, RemoteError when an empty body has another digest.
        """
        if size < 0:
            raise LocalError(f"a body has at least no bytes, not {size}")
        self._buffer = memoryview(bytearray(size)) if into is None else into.cast("B")
        if self._buffer.nbytes != size:
            raise LocalError(f"a body of {size} bytes into a buffer of {self._buffer.nbytes}")
        self._expected = digest
        self._running = hashlib.sha256()
        self._filled = 0
        if size == 0:
            self._check_digest()

    @property
    def buffer(self) -> memoryview:
        """The whole buffer; meaningful once `done`."""
        return self._buffer

    @property
    def filled(self) -> int:
        """Bytes received: the offset from which an interrupted transfer resumes."""
        return self._filled

    @property
    def done(self) -> bool:
        """Whether every byte is in and the digest holds."""
        return self._filled == self._buffer.nbytes

    def space(self) -> memoryview:
        """Where the next bytes go; empty once everything is in."""
        return self._buffer[self._filled :]

    def advance(self, count: int) -> None:
        """`count` bytes were written at the start of `space()`.  Raises RemoteError when they are wrong."""
        if count < 0:
            raise LocalError(f"a body does not shrink by {-count} bytes")
        end = self._filled + count
        if end > self._buffer.nbytes:
            raise RemoteError(f"a body of {self._buffer.nbytes} bytes came with {end}")
        if self._expected:
            for chunk in chunks(self._buffer[self._filled : end]):
                self._running.update(chunk)
        if end == self._buffer.nbytes:
            self._check_digest()
        self._filled = end

    def _check_digest(self) -> None:
        if self._expected and self._running.digest() != self._expected:
            raise RemoteError(f"a body of {self._buffer.nbytes} bytes does not match its digest")


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
