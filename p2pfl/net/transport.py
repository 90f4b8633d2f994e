"""The Transport: what a node needs of a network, and nothing of how it is done.

A transport moves two things between peers that it has authenticated: *frames*, small and ordered per
connection, and *bodies*, large, offered by a frame and fetched by the receiver into a buffer that the
receiver sized from its own schema.  Nothing is ever pushed into memory that was not asked for.

Every call has a deadline of its own; none raises anything but P2PFLError and trio.Cancelled.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Protocol, TypeAlias

import trio

from p2pfl.ids import PeerId

__all__ = [
    "MAX_FRAME_BYTES",
    "INLINE_BODY_BYTES",
    "MAX_PETITION_BYTES",
    "Standing",
    "Gate",
    "Opened",
    "Closed",
    "Frame",
    "Offer",
    "Fault",
    "Incoming",
    "Transport",
    "TransportOf",
]

# A control message; transport.send refuses more, and a reader drops the connection at the declared size.
MAX_FRAME_BYTES = 64 * 1024
# A body up to this size rides inside its offer, which saves a round trip and stays within one frame.
INLINE_BODY_BYTES = 48 * 1024
# The one frame that a stranger may send: a certificate has at most 2 KiB, and strangers get little memory.
MAX_PETITION_BYTES = 4 * 1024


class Standing(Enum):
    """What the gate says of a peer that has proved its key."""

    MEMBER = "member"
    STRANGER = "stranger"
    BANNED = "banned"


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """The two questions a transport asks its node.

    `standing(peer)` is asked right after the handshake, and must not block.  `petition(peer, frame)` is asked
    once for a stranger in the lobby, with the only frame it may send; the answer goes back before the
    connection is closed (and the stranger, if it is a member by then, dials again).
    """

    standing: Callable[[PeerId], Standing]
    petition: Callable[[PeerId, bytes], Awaitable[bytes]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A connection to a member is ready; exactly one per peer is ever open."""

    peer: PeerId


@dataclass(frozen=True, slots=True, kw_only=True)
class Closed:
    """That connection is gone; offers made on it are void."""

    peer: PeerId
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """A frame from a member."""

    peer: PeerId
    data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """A member offers a body of `size` bytes, described by `frame`.  `handle` is the transport's own."""

    peer: PeerId
    frame: bytes
    size: int
    handle: Any = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """A member broke the transport's rules (oversized frame, malformed offer); the connection is cut."""

    peer: PeerId
    reason: str


Incoming: TypeAlias = Opened | Closed | Frame | Offer | Fault


class Transport(Protocol):
    """Implemented over libp2p (`net.libp2p`) and in memory (`net.memory`)."""

    @property
    def peer_id(self) -> PeerId:
        """Who this end is."""
        ...

    @property
    def incoming(self) -> trio.MemoryReceiveChannel[Incoming]:
        """Everything that comes in, in order per peer.  Bounded: a full channel stops reading from peers."""
        ...

    def addresses(self) -> tuple[str, ...]:
        """Where others can dial this end, as multiaddrs ending in /p2p/ID; empty before `run` is ready."""
        ...

    def peers(self) -> frozenset[PeerId]:
        """The members connected now."""
        ...

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled; `task_status.started()` once it listens."""
        ...

    async def dial(self, peer: PeerId, addresses: tuple[str, ...]) -> None:
        """Connect to `peer` at the first address that answers.  Raises UnreachableError, RefusedError."""
        ...

    async def petition(self, peer: PeerId, addresses: tuple[str, ...], frame: bytes) -> bytes:
        """As a stranger: present a frame (<= MAX_PETITION_BYTES) in `peer`'s lobby and return its answer."""
        ...

    async def send(self, peer: PeerId, frame: bytes) -> None:
        """Deliver a frame after those sent before it.  Raises UnreachableError."""
        ...

    async def offer(self, peer: PeerId, frame: bytes, body: memoryview) -> None:
        """Offer a body; it is kept until fetched, refused, replaced (OFFERS_PER_PEER) or disconnected."""
        ...

    async def fetch(self, offer: Offer, into: memoryview, *, deadline: float) -> None:
        """Fill `into`, exactly `offer.size` bytes, by `deadline` (trio's clock).  Raises RemoteError."""
        ...

    def refuse(self, offer: Offer) -> None:
        """Tell the sender that it may forget the body.  Never blocks, never fails."""
        ...

    async def hang_up(self, peer: PeerId) -> None:
        """Close the connection to `peer`, if there is one; `Closed` follows."""
        ...


# Makes a node's transport, which asks the gate whom to let in.
TransportOf: TypeAlias = Callable[[Gate], Transport]
