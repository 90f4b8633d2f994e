"""Bodies on their way: what is offered, what is coming in, and how fast we send.

An offer has a secret.  Attempt k to fetch it, by whatever way, presents HMAC-SHA256(secret, k), so that each
token works once; a cut connection is resumed at its offset under the next attempt.
"""

import hashlib
import hmac
import secrets
from collections.abc import Awaitable, Callable
from enum import Enum

import trio

from p2pfl.errors import RemoteError
from p2pfl.ids import PeerId

__all__ = [
    "TICKET_BYTES",
    "Route",
    "Outgoing",
    "Outbox",
    "Reception",
    "Pace",
    "attempt_token",
    "ticket",
    "read_ticket",
]

_TOKEN_BYTES = 32
# What whoever opens a connection for a body says first: a token, and an offset in eight big-endian bytes.
TICKET_BYTES = _TOKEN_BYTES + 8
# Attempts that may be lost on the way without the sender noticing before it stops looking for their tokens.
_ATTEMPTS_AHEAD = 8
# Steps of hashing: large enough to cost no thread switches, small enough to be in the cache still.
_HASH_STEP_BYTES = 1 << 20
# Hashed at once, in 0.1 ms, where a worker thread would take as long to start.
_INLINE_HASH_BYTES = 128 * 1024


class Route(Enum):
    """The ways to bring a body from its sender, best first."""

    PULL = "dial the sender's bulk listener"
    PUSH = "have the sender dial ours"
    STREAM = "a stream of the control connection"


def attempt_token(secret: bytes, attempt: int) -> bytes:
    """The token (32 bytes) of the given attempt at an offer with this secret (32 bytes)."""
    return hmac.digest(secret, attempt.to_bytes(4, "big"), "sha256")


def ticket(token: bytes, offset: int) -> bytes:
    """A token and an offset as they are sent."""
    return token + offset.to_bytes(8, "big")


def read_ticket(data: bytes) -> tuple[bytes, int]:
    """(token, offset) of a ticket's 40 bytes."""
    return data[:_TOKEN_BYTES], int.from_bytes(data[_TOKEN_BYTES:], "big")


class Pace:
    """A token bucket without a bucket: what is taken reserves its time on the line, first come first served.

    mbit_s: 10^6 bits a second, 0 for no limit.
    """

    def __init__(self, mbit_s: float) -> None:
        self._bytes_s = mbit_s * 1e6 / 8
        self._free_at = 0.0

    def step(self, wanted: int) -> int:
        """How many of `wanted` bytes to take at once: a tenth of a second's worth, at least 4 KiB."""
        return min(wanted, max(4096, int(self._bytes_s / 10))) if self._bytes_s else wanted

    async def take(self, size: int) -> None:
        """Wait until `size` bytes may go."""
        if self._bytes_s:
            start = max(trio.current_time(), self._free_at)
            self._free_at = start + size / self._bytes_s
            await trio.sleep_until(start)


class Outgoing:
    """A body offered to one peer.  `drop` ends whatever is sending it and lets go of the memory."""

    def __init__(self, peer: PeerId, transfer: int, body: memoryview, expires_at: float) -> None:
        self.peer = peer
        self.transfer = transfer
        self.secret = secrets.token_bytes(_TOKEN_BYTES)
        self.expires_at = expires_at
        self._body = body
        self._attempt = 0
        self._sending: trio.CancelScope | None = None

    @property
    def size(self) -> int:
        """Bytes of the body; 0 once dropped."""
        return len(self._body)

    def admits(self, token: bytes) -> bool:
        """Whether the token is of an attempt not made before; if so, it and earlier ones are used up."""
        for attempt in range(self._attempt + 1, self._attempt + 1 + _ATTEMPTS_AHEAD):
            if hmac.compare_digest(attempt_token(self.secret, attempt), token):
                self._attempt = attempt
                return True
        return False

    async def upload(
        self,
        offset: int,
        send: Callable[[memoryview], Awaitable[None]],
        *,
        step: int,
        pace: Pace,
        stall_s: float,
    ) -> None:
        """Send the body from `offset` on in pieces of at most `step` bytes; an earlier upload of it ends.

        Raises RemoteError when the offset is past the end or a piece takes longer than `stall_s`.
        """
        if offset > len(self._body):
            raise RemoteError(f"asked for byte {offset} of {len(self._body)}", self.peer)
        if self._sending is not None:
            self._sending.cancel()
        with trio.CancelScope() as scope:
            self._sending = scope
            while offset < len(self._body):
                piece = self._body[offset : offset + pace.step(step)]
                await pace.take(len(piece))
                with trio.move_on_after(stall_s) as stall:
                    await send(piece)
                if stall.cancelled_caught:
                    raise RemoteError(f"took no byte of a body for {stall_s:g} s", self.peer)
                offset += len(piece)

    def drop(self) -> None:
        """Forget the body."""
        if self._sending is not None:
            self._sending.cancel()
        self._body = memoryview(b"")


class Outbox:
    """The bodies offered, by peer; each peer's number is bounded and the oldest gives way."""

    def __init__(self, *, per_peer: int, offer_s: float) -> None:
        self._per_peer = per_peer
        self._offer_s = offer_s
        self._of: dict[PeerId, dict[int, Outgoing]] = {}
        self._next = 0

    def add(self, peer: PeerId, body: memoryview) -> Outgoing:
        """Keep a body for `peer`."""
        kept = self._of.setdefault(peer, {})
        while len(kept) >= self._per_peer:
            kept.pop(next(iter(kept))).drop()
        self._next += 1
        out = Outgoing(peer, self._next, body, trio.current_time() + self._offer_s)
        kept[out.transfer] = out
        return out

    def find(self, peer: PeerId, transfer: int) -> Outgoing | None:
        """The body that `peer` was offered under this number, if it is still kept."""
        out = self._of.get(peer, {}).get(transfer)
        if out is not None and out.expires_at < trio.current_time():
            self.release(peer, transfer)
            return None
        return out

    def claim(self, peer: PeerId, token: bytes) -> Outgoing | None:
        """The body that this token of `peer` opens; the token is used up."""
        for transfer in tuple(self._of.get(peer, {})):
            out = self.find(peer, transfer)
            if out is not None and out.admits(token):
                return out
        return None

    def release(self, peer: PeerId, transfer: int) -> None:
        """Forget one body."""
        out = self._of.get(peer, {}).pop(transfer, None)
        if out is not None:
            out.drop()

    def forget(self, peer: PeerId) -> None:
        """Forget every body of a peer that is gone."""
        for out in self._of.pop(peer, {}).values():
            out.drop()


class Reception:
    """A body coming in: the caller's buffer, how far it is filled, and one digest across interruptions.

    into: writable, contiguous bytes of exactly the body's size.
    """

    def __init__(self, into: memoryview) -> None:
        self._into = into
        self._hash = hashlib.sha256()
        self._hashed = 0
        self._grown = trio.Event()
        self.position = 0

    @property
    def done(self) -> bool:
        """Whether the last byte is in."""
        return self.position == len(self._into)

    def space(self) -> memoryview:
        """The part still empty."""
        return self._into[self.position :]

    def advance(self, size: int) -> None:
        """Count `size` bytes written at the start of `space()`."""
        self.position += size
        if self.done or self.position - self._hashed >= _HASH_STEP_BYTES:
            self._grown.set()

    def accept(self, data: bytes) -> None:
        """Write `data`.  Raises RemoteError when it is more than what is missing."""
        space = self.space()
        if len(data) > len(space):
            raise RemoteError(f"sent {len(data)} bytes where {len(space)} were missing")
        space[: len(data)] = data
        self.advance(len(data))

    async def digest(self, limiter: trio.CapacityLimiter) -> bytes:
        """SHA-256 (32 bytes) of the whole body, worked out while it comes in; returns once it is all there.

        In a worker thread, because hashing takes longer than decrypting (0.52 beside 0.33 s/GB here).
        """
        while self._hashed < len(self._into):
            if not self.done and self.position - self._hashed < _HASH_STEP_BYTES:
                self._grown = trio.Event()
                await self._grown.wait()
            end = self.position
            if end - self._hashed <= _INLINE_HASH_BYTES:
                self._hash.update(self._into[self._hashed : end])
            else:
                piece = self._into[self._hashed : end]
                await trio.to_thread.run_sync(self._hash.update, piece, limiter=limiter)
            self._hashed = end
        return self._hash.digest()
