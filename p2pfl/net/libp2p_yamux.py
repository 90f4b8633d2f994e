"""The layers between a socket and a stream: lengths bounded, the muxer guarded, large writes packed."""

import logging
import struct
from collections.abc import Awaitable, Callable
from typing import Any

import trio

__all__ = ["bound_reads", "guard", "say_goodbye", "write_packed", "quietly"]

# One read.  py-libp2p repeats a short read 100 times, so no announced length costs more than 25 MiB.
_READ_BYTES = 256 * 1024
# The largest frame that py-libp2p sends, and so what other implementations have met.
_FRAME_BYTES = 64 * 1024 - 12
# The library polls a closed window every 10 ms and gives up after 5 s; this keeps a fast link busy.
_WINDOW_POLL_S = 0.001
# Yamux headers: version, type (data: 0, go away: 3), flags, stream, length.
_HEADER = struct.Struct("!BBHII")
_DATA, _GO_AWAY = 0, 3


def bound_reads(reader: Any, *, instead_of: Any = None) -> None:
    """Replace `reader.read` by one that never asks for more than `_READ_BYTES`.

    instead_of: the layer below, which is past the negotiation in which lengths are believed.
    """
    read = reader.read

    async def bounded(n: int | None = None) -> Any:
        return await read(n if n is None or n < _READ_BYTES else _READ_BYTES)

    _unbound_reads(instead_of)
    reader.read = bounded


def guard(muxed: Any, *, buffer_bytes: int, fault: Callable[[Exception], None]) -> None:
    """Keep a Yamux connection that is about to start from ending its host or filling the memory.

    buffer_bytes: unread on all its streams together; one byte more closes the connection.
    """
    start, read_body = muxed.start, muxed._read_data_body

    async def guarded_start() -> None:
        try:
            await start()
        except Exception as error:
            fault(error)
            await quietly(muxed.close)

    async def bounded_body(length: int) -> Any:
        if length + sum(map(len, muxed.stream_buffers.values())) > buffer_bytes:
            # The one exception on which Yamux closes the connection instead of reading on.
            raise trio.TooSlowError
        return await read_body(length)

    _unbound_reads(muxed.secured_conn)  # from here on, `bounded_body` sees every length
    muxed.start = guarded_start
    muxed._read_data_body = bounded_body


async def say_goodbye(muxed: Any) -> None:
    """Tell the other side that the connection closes in good order."""
    await muxed._write_frame(_HEADER.pack(0, _GO_AWAY, 0, 0, 0))


async def write_packed(stream: Any, data: memoryview) -> None:
    """Write `data` to a libp2p stream, as many frames at once as its window has room for.

    The library's own write makes of each 64 KiB frame two Noise records, of 65,519 bytes and of 17; frames
    written together fill their records.  Cancel it to give up on a peer that does not read.
    """
    muxed = stream.muxed_stream
    while data:
        if muxed.send_closed or muxed.closed:
            raise ConnectionError("the stream was closed by the other side")
        room = min(muxed.send_window, len(data))
        if room <= 0:
            await trio.sleep(_WINDOW_POLL_S)
            continue
        muxed.send_window -= room
        frames = bytearray()
        for start in range(0, room, _FRAME_BYTES):
            frame = data[start : min(start + _FRAME_BYTES, room)]
            frames += _HEADER.pack(0, _DATA, 0, muxed.stream_id, len(frame))
            frames += frame
        await muxed.conn._write_frame(bytes(frames))
        data = data[room:]


async def quietly(close: Callable[[], Awaitable[None]]) -> None:
    """Close something of the library's; whatever that raises is of interest to nobody."""
    try:
        await close()
    except Exception:
        logging.getLogger("libp2p").debug("closing failed", exc_info=True)


def _unbound_reads(reader: Any) -> None:
    if reader is not None:
        vars(reader).pop("read", None)
