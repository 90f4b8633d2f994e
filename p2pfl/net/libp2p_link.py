"""One control stream with one member: ordered packets out of a bounded backlog, a reader that always drains.

A link ends in one of three ways: the other side ends it, something is wrong with it (`stop`), or we close it
(`finish`: what is queued goes out first).  Whoever runs it then says `finished`.
"""

from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

import trio
from libp2p.network.stream.exceptions import StreamEOF

from p2pfl.errors import RemoteError, UnreachableError
from p2pfl.ids import PeerId
from p2pfl.net.framing import FrameSplitter
from p2pfl.net.libp2p_wire import MAX_PACKET_BYTES, Gone, Hello, Tag, pack, unpack
from p2pfl.net.limits import Limits
from p2pfl.net.transfers import Route

__all__ = ["PacketStream", "Link"]

# Larger than any packet, so that one read usually brings whole ones.
_READ_BYTES = 256 * 1024
# Small packets that wait together leave together: a write costs a Noise record and a Yamux frame.
_BATCH_BYTES = 256 * 1024
# What we have queued when we hang up, and the other side's end of file, get this long.
_FINISH_S = 1.0


class PacketStream:
    """Packets over a libp2p stream.  Whatever goes wrong below is an UnreachableError."""

    def __init__(self, peer: PeerId, stream: Any) -> None:
        self._peer = peer
        self._stream = stream
        self._splitter = FrameSplitter(MAX_PACKET_BYTES)
        self._ready: deque[bytes] = deque()

    async def receive(self) -> tuple[Tag, bytes]:
        """The next packet.  Raises UnreachableError at the end, RemoteError on what is no packet."""
        while not self._ready:
            try:
                data = await self._stream.read(_READ_BYTES)
            except Exception as error:  # the library raises a dozen types, KeyError among them
                raise UnreachableError(_ending(error), self._peer) from error
            if not data:
                raise UnreachableError("closed by the peer", self._peer)
            self._ready.extend(self._splitter.feed(data))
        return unpack(self._ready.popleft())

    async def send(self, packets: bytes) -> None:
        """Write packets.  Raises UnreachableError."""
        try:
            await self._stream.write(packets)
        except Exception as error:
            raise UnreachableError(_ending(error), self._peer) from error

    async def send_eof(self) -> None:
        """Say that nothing follows.  Never fails."""
        try:
            await self._stream.close_write()
        except Exception:
            return

    async def dismiss(self, word: str) -> None:
        """Refuse in one word, and give the other side a moment to read it and go."""
        with trio.move_on_after(_FINISH_S):
            try:
                await self.send(pack(Tag.REFUSED, word.encode()))
                await self.send_eof()
                while True:
                    await self.receive()
            except RemoteError:
                return


class Link:
    """An open control stream.  `run` reads until it ends; `send` queues; both hellos are already in."""

    def __init__(
        self,
        *,
        peer: PeerId,
        connection: Any,
        remote_host: str,
        packets: PacketStream,
        hello: Hello,
        limits: Limits,
    ) -> None:
        """remote_host: the IP address at the other end, "" when unknown."""
        self.peer = peer
        self.connection = connection
        self.hello = hello
        # The address that works for the connection comes first; then what the peer says of itself.
        self.bulk_addresses = hello.addresses
        if hello.addresses and remote_host:
            port = hello.addresses[0].rpartition(":")[2]
            host = f"[{remote_host}]" if ":" in remote_host else remote_host
            self.bulk_addresses = tuple(dict.fromkeys((f"{host}:{port}", *hello.addresses)))
        # Ways to bring a body here, most promising first; a way that fails goes to the end.
        self.routes: list[Route] = list(Route)
        # Bodies we asked the peer to push: the answer when it cannot.
        self.gone: dict[int, Callable[[Gone], None]] = {}
        self.finished = trio.Event()
        self.reason = ""
        self.fault = ""
        self.is_open = True
        self._packets = packets
        self._limits = limits
        self._scope = trio.CancelScope()
        self._queue, self._queued = trio.open_memory_channel[bytes](limits.backlog_frames)
        self._heard_at = trio.current_time()
        self._is_handling = False
        self._nursery: trio.Nursery | None = None
        self._served = 0

    async def send(self, packet: bytes) -> None:
        """Queue a packet after those sent before it.  Raises UnreachableError, at the latest in `send_s`."""
        with trio.move_on_after(self._limits.send_s) as patience:
            try:
                await self._queue.send(packet)
            except (trio.ClosedResourceError, trio.BrokenResourceError) as error:
                raise UnreachableError("the connection is closing", self.peer) from error
        if patience.cancelled_caught:
            self.stop(f"took nothing for {self._limits.send_s:g} s")
            raise UnreachableError(self.reason, self.peer)

    def post(self, packet: bytes) -> None:
        """Queue a packet if there is room, else do without."""
        try:
            self._queue.send_nowait(packet)
        except (trio.WouldBlock, trio.ClosedResourceError, trio.BrokenResourceError):
            return

    def stop(self, reason: str, *, fault: bool = False) -> None:
        """End now.  The first reason given is the one that stands."""
        if self.is_open:
            self.is_open = False
            self.reason = reason
            self.fault = reason if fault else ""
            self._scope.cancel()

    def finish(self, reason: str) -> None:
        """End when what is queued has gone out, or in a second."""
        if self.is_open:
            self.reason = self.reason or reason
            self._queue.close()
            self._scope.deadline = trio.current_time() + _FINISH_S

    def serve(self, task: Callable[[], Awaitable[None]]) -> None:
        """Run `task` beside the reader while the link lasts; beyond `offers_per_peer` at once, do not."""

        async def counted() -> None:
            self._served += 1
            try:
                await task()
            finally:
                self._served -= 1

        if self._nursery is not None and self._served < self._limits.offers_per_peer:
            self._nursery.start_soon(counted)

    async def run(self, handle: Callable[["Link", Tag, bytes], Awaitable[None]]) -> None:
        """Read and handle packets until the link ends, however it ends; then `reason` says why."""
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    self._nursery = nursery
                    nursery.start_soon(self._write)
                    nursery.start_soon(self._keep_alive)
                    await self._read(handle)
        except Exception as error:  # whatever is wrong with us, the node must hear that the link is gone
            self.stop(f"our own error: {error!r}")
        self.is_open = False
        self._nursery = None
        self._queue.close()
        self._queued.close()

    async def _read(self, handle: Callable[["Link", Tag, bytes], Awaitable[None]]) -> None:
        try:
            while True:
                tag, payload = await self._packets.receive()
                self._heard_at = trio.current_time()
                if tag is Tag.PING:
                    self.post(pack(Tag.PONG))
                elif tag is not Tag.PONG:
                    self._is_handling = True
                    await handle(self, tag, payload)
                    self._is_handling = False
        except UnreachableError as error:
            self.stop(self.reason or str(error))
        except RemoteError as error:
            self.stop(str(error), fault=True)

    async def _write(self) -> None:
        try:
            async for packet in self._queued:
                batch = bytearray(packet)
                while len(batch) < _BATCH_BYTES:
                    try:
                        batch += self._queued.receive_nowait()
                    except (trio.WouldBlock, trio.EndOfChannel):
                        break
                with trio.fail_after(self._limits.send_s):
                    await self._packets.send(bytes(batch))
        except trio.TooSlowError:
            self.stop(f"took nothing for {self._limits.send_s:g} s")
        except UnreachableError as error:
            self.stop(str(error))
        else:
            # Unread packets are lost with the connection, so the other side closes it, having read them.
            await self._packets.send_eof()

    async def _keep_alive(self) -> None:
        while True:
            await trio.sleep(self._limits.keepalive_s)
            silence_s = trio.current_time() - self._heard_at
            if self._is_handling:
                continue  # it is we who do not listen
            if silence_s >= self._limits.silence_s:
                self.stop(f"silent for {silence_s:.0f} s")
            elif silence_s >= self._limits.keepalive_s:
                self.post(pack(Tag.PING))


def _ending(error: Exception) -> str:
    return "closed by the peer" if isinstance(error, StreamEOF) else f"broken: {type(error).__name__}"
