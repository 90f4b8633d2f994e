"""Bringing a body over: three ways, tried until one works, each resuming where the last one was cut.

PULL dials the sender's bulk listener, PUSH has the sender dial ours, STREAM takes the body over the control
connection itself.  What worked for a peer is tried first the next time.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import trio

from p2pfl.errors import RefusedError, RemoteError, UnreachableError
from p2pfl.net.bulk import BulkPlane
from p2pfl.net.framing import CHUNK_BYTES
from p2pfl.net.libp2p_link import Link
from p2pfl.net.libp2p_wire import Gone, Tag, pack_gone, pack_push, pack_transfer
from p2pfl.net.libp2p_yamux import write_packed
from p2pfl.net.limits import Limits
from p2pfl.net.transfers import TICKET_BYTES, Reception, Route, attempt_token, read_ticket, ticket

__all__ = ["OfferHandle", "take", "answer_push", "answer_stream", "release"]

# Rounds of every way in which no byte came; the connection stands, so it is the body that cannot be had.
_FRUITLESS_ROUNDS = 3
# Between such rounds.
_PAUSE_S = 0.5


@dataclass(slots=True, kw_only=True)
class OfferHandle:
    """What `Offer.handle` is here: the body itself when it came with the offer, else how to get it.

    sha256: after a successful fetch, the digest (32 bytes) of what was received; hashed on the way, in the
    cache, so that nobody needs to read the body again for it.
    """

    link: Link
    transfer: int = 0
    secret: bytes = b""
    inline: bytes | None = None
    sha256: bytes = b""
    attempt: int = field(default=0, repr=False)

    def token(self) -> bytes:
        """The token of a new attempt."""
        self.attempt += 1
        return attempt_token(self.secret, self.attempt)


async def take(
    handle: OfferHandle,
    reception: Reception,
    *,
    plane: BulkPlane,
    open_stream: Callable[[], Awaitable[Any]],
    limits: Limits,
    hashing: trio.CapacityLimiter,
) -> None:
    """Fill `reception` and set `handle.sha256`.  Raises RefusedError, UnreachableError.

    open_stream: a new body stream to the sender.   hashing: of the threads that digest.
    """
    failure: RemoteError | None = None
    async with trio.open_nursery() as nursery:

        async def digest() -> None:
            handle.sha256 = await reception.digest(hashing)

        nursery.start_soon(digest)
        try:
            if handle.inline is not None:
                reception.accept(handle.inline)
            else:
                await _bring(handle, reception, plane, open_stream, limits)
        except RemoteError as error:
            failure = error
            nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure


async def _bring(
    handle: OfferHandle,
    reception: Reception,
    plane: BulkPlane,
    open_stream: Callable[[], Awaitable[Any]],
    limits: Limits,
) -> None:
    """By one way or another.  Raises RefusedError when the sender has it no more, else UnreachableError."""
    link = handle.link
    reasons: list[str] = []
    fruitless = 0
    while fruitless < _FRUITLESS_ROUNDS:
        before = reception.position
        for route in tuple(link.routes):
            if not link.is_open:
                raise UnreachableError(
                    f"connection lost at byte {reception.position}: {link.reason}", link.peer
                )
            if (route is Route.PULL and not link.bulk_addresses) or (route is Route.PUSH and not plane.bound):
                continue
            try:
                match route:
                    case Route.PULL:
                        await plane.pull(link.peer, link.bulk_addresses, handle.token(), reception)
                    case Route.PUSH:
                        await _pushed(handle, reception, plane, limits)
                    case Route.STREAM:
                        await _streamed(handle, reception, await open_stream(), limits)
            except RefusedError:
                raise
            except RemoteError as error:
                reasons.append(f"{route.name.lower()}: {error}")
            if reception.done:
                return
            if reception.position > before:
                break  # a cut, not a closed road: resume on it
            link.routes.remove(route)
            link.routes.append(route)
        fruitless = fruitless + 1 if reception.position == before else 0
        await trio.sleep(_PAUSE_S if fruitless else 0)
    raise UnreachableError("; ".join(reasons[-3:]), link.peer)


async def _pushed(handle: OfferHandle, reception: Reception, plane: BulkPlane, limits: Limits) -> None:
    link = handle.link
    expected = plane.expect(link.peer, reception)
    answers: list[Gone] = []

    def gone(reason: Gone) -> None:
        if not expected.has_come.is_set():
            answers.append(reason)
            expected.has_come.set()
            expected.has_ended.set()

    link.gone[handle.transfer] = gone
    try:
        await link.send(pack_push(handle.transfer, reception.position, expected.token))
        # The sender tries a few addresses before it gives up.
        with trio.move_on_after(limits.stall_s):
            await expected.has_come.wait()
        if expected.has_come.is_set():
            await expected.has_ended.wait()
    finally:
        link.gone.pop(handle.transfer, None)
        await plane.settle(expected)
    if Gone.UNKNOWN in answers:
        raise RefusedError("the sender has this body no more", link.peer)
    if not reception.done:
        raise UnreachableError("the sender could not bring it", link.peer)


async def _streamed(handle: OfferHandle, reception: Reception, stream: Any, limits: Limits) -> None:
    peer = handle.link.peer
    try:
        with trio.fail_after(limits.stall_s):
            await stream.write(ticket(handle.token(), reception.position))
        while not reception.done:
            with trio.fail_after(limits.stall_s):
                data = await stream.read(CHUNK_BYTES)
            if not data:
                raise RemoteError(f"ended a body stream at byte {reception.position}", peer)
            reception.accept(data)
    except RemoteError:
        raise
    except trio.TooSlowError as error:
        raise RemoteError(f"sent no byte of a body for {limits.stall_s:g} s", peer) from error
    except Exception as error:  # the library raises a dozen types
        raise UnreachableError(f"a body stream broke: {type(error).__name__}", peer) from error
    finally:
        with trio.move_on_after(1, shield=True):
            await stream.reset()


async def answer_push(link: Link, plane: BulkPlane, transfer: int, offset: int, token: bytes) -> None:
    """The peer asked us to dial it and send the rest of a body; answers GONE when that cannot be."""
    out = plane.outbox.find(link.peer, transfer)
    if out is None:
        link.post(pack_gone(transfer, Gone.UNKNOWN))
        return
    try:
        await plane.push(link.bulk_addresses, out, offset, token)
    except RemoteError:
        link.post(pack_gone(transfer, Gone.UNREACHABLE))


async def answer_stream(link: Link, plane: BulkPlane, stream: Any, limits: Limits) -> None:
    """The peer opened a body stream: send what its ticket names.  Raises RemoteError on a bad ticket."""
    data = b""
    with trio.move_on_after(limits.hello_s):
        while len(data) < TICKET_BYTES:
            data += await stream.read(TICKET_BYTES - len(data))
    token, offset = read_ticket(data)
    out = plane.outbox.claim(link.peer, token) if len(data) == TICKET_BYTES else None
    if out is None:
        raise RemoteError("opened a body stream with a token that opens nothing", link.peer)

    write = partial(write_packed, stream)
    await out.upload(offset, write, step=CHUNK_BYTES, pace=plane.pace, stall_s=limits.stall_s)
    await stream.close_write()
    with trio.move_on_after(limits.stall_s):
        try:
            await stream.read(1)
        except Exception:
            return  # the receiver resets it when it has read everything


def release(handle: OfferHandle) -> None:
    """Tell the sender that it may forget the body."""
    if handle.inline is None:
        handle.link.post(pack_transfer(Tag.RELEASE, handle.transfer))
