"""The lobby: how a stranger presents one frame, and gets one answer.

On a stream of the join protocol: a frame behind its length (u32, big-endian), at most 4 KiB; the answer in
the same way, at most 64 KiB; then the stranger closes, and is closed if it does not.
"""

from typing import Any

import trio

from p2pfl.errors import LocalError, RefusedError, RemoteError, UnreachableError
from p2pfl.ids import PeerId
from p2pfl.net.framing import FrameSplitter, with_length
from p2pfl.net.libp2p_host import Connection, Host, Stream
from p2pfl.net.libp2p_wire import JOIN_PROTOCOL
from p2pfl.net.limits import Limits
from p2pfl.net.transport import MAX_FRAME_BYTES, MAX_PETITION_BYTES, Gate

__all__ = ["present_petition", "answer_petition"]

# One read: more than this never comes at once.
_READ_BYTES = 64 * 1024
# The stranger closes as soon as it has its answer.
_FAREWELL_S = 1.0


async def present_petition(
    host: Host, connection: Connection, peer: PeerId, frame: bytes, limits: Limits
) -> bytes:
    """The answer of `peer`, at the other end of `connection`, to `frame`.

    Raises LocalError when the frame is too large, RefusedError when the peer does not answer such frames,
    UnreachableError when it does not answer in time.
    """
    if len(frame) > MAX_PETITION_BYTES:
        raise LocalError(f"a petition of {len(frame)} bytes; the largest is {MAX_PETITION_BYTES}")
    with trio.move_on_after(limits.lobby_s):
        try:
            stream = await host.open_stream(connection, JOIN_PROTOCOL)
            await stream.write(with_length(frame))
            return await _one_frame(stream, MAX_FRAME_BYTES)
        except RemoteError as error:
            raise RefusedError(f"a petition was answered wrongly: {error}", peer) from error
        except Exception as error:  # the library raises a dozen types
            raise RefusedError(f"a petition was turned away: {type(error).__name__}", peer) from error
    raise UnreachableError(f"no answer to a petition within {limits.lobby_s:g} s", peer)


async def answer_petition(peer: PeerId, stream: Stream, gate: Gate, limits: Limits) -> None:
    """Read the one frame of a stranger and answer it.  Raises RemoteError on a frame too large or cut off."""
    with trio.move_on_after(limits.lobby_s) as patience:
        frame = await _one_frame(stream, MAX_PETITION_BYTES)
        await stream.write(with_length(await gate.petition(peer, frame)))
        await stream.close_write()
    if patience.cancelled_caught:
        raise RemoteError(f"did not petition within {limits.lobby_s:g} s", peer)
    with trio.move_on_after(_FAREWELL_S):
        await stream.muxed_conn.event_closed.wait()


async def _one_frame(stream: Any, limit: int) -> bytes:
    splitter = FrameSplitter(limit)
    while True:
        data = await stream.read(_READ_BYTES)
        if not data:
            raise RemoteError("ended before its frame was whole")
        frames = splitter.feed(data)
        if frames:
            return frames[0]
