"""A node's side of the transport: messages to frames and back, bodies fetched and checked, pings.

One sender task and one bounded queue a connection; whatever comes in becomes an Event, bad bytes included.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import structlog
import trio
from numpy.typing import NDArray

from p2pfl.errors import P2PFLError, RemoteError, UnreachableError
from p2pfl.events import (
    Connected,
    Disconnected,
    Event,
    Faulted,
    Header,
    Kind,
    Message,
    Notice,
    Offered,
    Received,
)
from p2pfl.ids import PeerId
from p2pfl.net import messages
from p2pfl.net.transport import Closed, Fault, Frame, Offer, Opened, Transport
from p2pfl.trust import envelope
from p2pfl.trust.identity import Identity

__all__ = ["Wires"]

log = structlog.get_logger()

# Messages that wait for one slow connection; beyond it the connection is given up and resynchronised.
_OUTBOX_MESSAGES = 64
# What a member may do wrong on one connection before it is cut.
_FAULTS_PER_CONNECTION = 16
# A ping carries a token of this many characters at most.
_TOKEN_CHARACTERS = 64


@dataclass(slots=True)
class _Line:
    """One connection's outgoing queue, and what came wrong on it."""

    send: trio.MemorySendChannel[Message]
    faults: int = 0


class Wires:
    """All connections of one node.  `run` pumps until cancelled; events go to `tell`, in order per peer."""

    def __init__(
        self,
        transport: Transport,
        identity: Identity,
        *,
        tell: Callable[[Event], Awaitable[None]],
        notice: Callable[[PeerId, str, str], Message],
        lost: Callable[[PeerId], None],
        run_sync: Callable[..., Awaitable[Any]],
    ) -> None:
        """notice: makes a NOTICE to a peer (code, text).   lost: told of every connection that is gone."""
        self.transport = transport
        self._sign = envelope.signer_of(identity)
        self._tell, self._notice, self._lost, self._run_sync = tell, notice, lost, run_sync
        self._lines: dict[PeerId, _Line] = {}
        self._offers: dict[tuple[PeerId, int, int], deque[Offer]] = {}
        self._pongs: dict[str, trio.Event] = {}
        self._bytes_sent = self._bytes_received = 0
        self._outbound: dict[tuple[PeerId, str], tuple[int, int]] = {}
        self._nursery: trio.Nursery | None = None

    async def run(self) -> None:
        """Turn what the transport brings into events."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            async for incoming in self.transport.incoming:
                match incoming:
                    case Opened(peer=peer):
                        send, receive = trio.open_memory_channel[Message](_OUTBOX_MESSAGES)
                        self._lines[peer] = _Line(send)
                        nursery.start_soon(self._send_all, peer, receive)
                        await self._tell(Connected(peer=peer))
                    case Closed(peer=peer):
                        self._forget(peer)
                        await self._tell(Disconnected(peer=peer))
                    case Frame(peer=peer, data=data):
                        self._bytes_received += len(data)
                        await self._read(peer, data, None)
                    case Offer(peer=peer, frame=frame) as offer:
                        self._bytes_received += len(frame)
                        await self._read(peer, frame, offer)
                    case Fault(peer=peer, reason=reason):
                        await self._tell(Faulted(peer=peer, reason=reason))

    def counted(self) -> tuple[int, int]:
        """Bytes sent and received since the last call: frames, and bodies offered or fetched."""
        counts = self._bytes_sent, self._bytes_received
        self._bytes_sent = self._bytes_received = 0
        return counts

    def count(self, peer: PeerId, kind: str, size: int) -> None:
        """Remember that `peer` was sent a message of `kind` and `size` bytes."""
        messages, total = self._outbound.get((peer, kind), (0, 0))
        self._outbound[(peer, kind)] = (messages + 1, total + size)

    def outbound(self) -> Mapping[tuple[PeerId, str], tuple[int, int]]:
        """Messages and bytes sent since the last call, by peer and kind; a body counts when it is offered."""
        sent, self._outbound = self._outbound, {}
        return sent

    # --- out ---------------------------------------------------------------------------------------------

    def queue(self, peer: PeerId, message: Message) -> None:
        """Send after what was queued before; dropped without a connection, as HELLO makes up for it."""
        line = self._lines.get(peer)
        if line is None:
            return
        try:
            line.send.send_nowait(message)
        except trio.WouldBlock:
            self.hang_up(peer)

    def hang_up(self, peer: PeerId) -> None:
        """Close the connection to `peer`, soon."""
        assert self._nursery is not None
        self._nursery.start_soon(self.transport.hang_up, peer)

    def penalise(self, peer: PeerId) -> None:
        """Count a fault; a connection with too many is cut."""
        if (line := self._lines.get(peer)) is not None:
            line.faults += 1
            if line.faults >= _FAULTS_PER_CONNECTION:
                self.hang_up(peer)

    def waiting(self) -> int:
        """Messages not yet handed to the transport."""
        return sum(line.send.statistics().current_buffer_used for line in self._lines.values())

    async def _send_all(self, peer: PeerId, queue: trio.MemoryReceiveChannel[Message]) -> None:
        line = self._lines.get(peer)
        try:
            async for message in queue:
                if self._lines.get(peer) is not line:
                    # The connection went; what was queued for it must not come before the next one's HELLO.
                    return
                frame = messages.seal(message, self._sign)
                body, size = message.body, len(frame)
                # Before it goes: what may have been sent is counted.
                if isinstance(body, np.ndarray):
                    size += body.nbytes
                    self.count(peer, message.header.kind.name.lower(), size)
                    await self.transport.offer(peer, frame, body.data)
                else:
                    self.count(peer, message.header.kind.name.lower(), size)
                    await self.transport.send(peer, frame)
                self._bytes_sent += size
        except P2PFLError as error:
            log.debug("connection given up", peer=peer, reason=str(error))
            if self._lines.get(peer) is line:
                await self.transport.hang_up(peer)

    # --- in ----------------------------------------------------------------------------------------------

    def _forget(self, peer: PeerId) -> None:
        if (line := self._lines.pop(peer, None)) is not None:
            line.send.close()
        for key in [key for key in self._offers if key[0] == peer]:
            del self._offers[key]
        self._lost(peer)

    async def _read(self, peer: PeerId, data: bytes, offer: Offer | None) -> None:
        try:
            header, body = messages.open_frame(data, envelope.verify_signed)
            if header.sender != peer:
                raise RemoteError("a message of somebody else", peer)
            if (offer is None) == (header.kind in messages.VECTOR_KINDS):
                raise RemoteError("a body where none belongs, or none where one does", peer)
            if offer is not None:
                if offer.size != header.size:
                    raise RemoteError("an offer of another size than its header says", peer)
                self._offers.setdefault(_key(peer, header), deque()).append(offer)
                await self._tell(Offered(peer=peer, header=header))
                return
            message = Message(header=header, body=messages.decode_body(header, body))
        except RemoteError as error:
            if offer is not None:
                self.transport.refuse(offer)
            await self._tell(Faulted(peer=peer, reason=str(error)))
            return
        if isinstance(message.body, Notice) and message.body.code in ("ping", "pong"):
            self._pinged(peer, message.body)
        else:
            frame = data if header.kind is Kind.STATEMENT else b""
            await self._tell(Received(peer=peer, message=message, frame=frame))

    def _offer_of(self, peer: PeerId, header: Header) -> Offer | None:
        queue = self._offers.get(_key(peer, header))
        offer = queue.popleft() if queue else None
        if not queue:
            self._offers.pop(_key(peer, header), None)
        return offer

    def refuse(self, peer: PeerId, header: Header) -> None:
        """Let the sender forget the body of an offered header."""
        if (offer := self._offer_of(peer, header)) is not None:
            self.transport.refuse(offer)

    def fetch(self, peer: PeerId, header: Header, deadline: float) -> None:
        """Bring an offered body by `deadline` (trio's clock); `Received` or `Faulted` follows."""
        assert self._nursery is not None
        if (offer := self._offer_of(peer, header)) is not None:
            self._nursery.start_soon(self._fetch, header, offer, deadline)

    async def _fetch(self, header: Header, offer: Offer, deadline: float) -> None:
        body = np.empty(header.size, np.uint8)
        try:
            await self.transport.fetch(offer, body.data, deadline=deadline)
            # A transport that hashes while it receives leaves the digest with the offer's handle.
            digest = getattr(offer.handle, "sha256", b"") or await self._run_sync(_digest, body)
            if digest != header.digest:
                raise RemoteError("a body that is not the one that was signed", offer.peer)
        except RemoteError as error:
            await self._tell(Faulted(peer=offer.peer, reason=str(error), header=header))
            return
        self._bytes_received += header.size
        await self._tell(Received(peer=offer.peer, message=Message(header=header, body=body)))

    # --- pings -------------------------------------------------------------------------------------------

    def _pinged(self, peer: PeerId, notice: Notice) -> None:
        if notice.code == "pong":
            if (waiting := self._pongs.pop(notice.text, None)) is not None:
                waiting.set()
        else:
            self.queue(peer, self._notice(peer, "pong", notice.text[:_TOKEN_CHARACTERS]))

    async def ping(self, peer: PeerId, timeout_s: float = 10.0) -> float:
        """Round-trip time to a connected member, in seconds.  Raises UnreachableError."""
        if peer not in self._lines:
            raise UnreachableError(f"{peer} is not connected; `p2pfl peers` lists who is", peer)
        began = trio.current_time()
        token = f"{began:.9f}"
        self._pongs[token] = answered = trio.Event()
        self.queue(peer, self._notice(peer, "ping", token))
        with trio.move_on_after(timeout_s):
            await answered.wait()
            return trio.current_time() - began
        self._pongs.pop(token, None)
        raise UnreachableError(f"{peer} did not answer within {timeout_s:g} s", peer)


def _key(peer: PeerId, header: Header) -> tuple[PeerId, int, int]:
    return peer, int(header.kind), header.edge_seq


def _digest(body: NDArray[np.uint8]) -> bytes:
    return hashlib.sha256(body.data).digest()
