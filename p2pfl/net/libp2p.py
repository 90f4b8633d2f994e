"""The Transport over py-libp2p: TCP, Noise and Yamux for control, mutual TLS for bodies.

One link a peer is ever surfaced: `libp2p_greeting` says which, when two come about.  A host that dies is
built again on the same key and ports, after every link has been closed.
"""

import secrets
from collections.abc import Callable
from functools import partial
from typing import Any

import structlog
import trio

from p2pfl.errors import LocalError, NotRunningError, RefusedError, RemoteError, UnreachableError
from p2pfl.ids import PeerId, short
from p2pfl.net import libp2p_bodies as bodies
from p2pfl.net import libp2p_wire as wire
from p2pfl.net.bulk import BulkPlane
from p2pfl.net.libp2p_addresses import bulk_addresses, own_addresses, tcp_multiaddr
from p2pfl.net.libp2p_dial import first_connection
from p2pfl.net.libp2p_greeting import Dial, Greeter
from p2pfl.net.libp2p_host import Connection, Host, Stream, open_host, peer_id_of_seed
from p2pfl.net.libp2p_link import Link, PacketStream
from p2pfl.net.libp2p_lobby import answer_petition, present_petition
from p2pfl.net.libp2p_wire import Hello, Tag
from p2pfl.net.limits import Limits
from p2pfl.net.transfers import Reception
from p2pfl.net.transport import (
    INLINE_BODY_BYTES,
    MAX_FRAME_BYTES,
    Closed,
    Fault,
    Frame,
    Gate,
    Incoming,
    Offer,
    Opened,
    Standing,
)

__all__ = ["Libp2pTransport", "Limits"]

# A host that lived so long was well: its next crash is built again at once.
_WELL_S = 60.0

log = structlog.get_logger()


class Libp2pTransport:
    """`p2pfl.net.transport.Transport` over py-libp2p; see there for what each call promises."""

    def __init__(
        self,
        *,
        seed: bytes,
        listen: tuple[str, ...],
        bulk_listen: str,
        announce: tuple[str, ...] = (),
        gate: Gate,
        limits: Limits | None = None,
    ) -> None:
        """seed: of the Ed25519 key, 32 bytes.   listen, announce: multiaddrs; port 0 is any free one.

        bulk_listen: "host:port" for bodies, or "": this end then dials for them, or does without.
        announce: where else others can dial this end, such as a forwarded port or a DNS name.
        Raises ConfigError when an address cannot be read.
        """
        self._limits = limits or Limits()
        self._seed = seed
        self._listen = tuple(tcp_multiaddr(text) for text in listen)
        self._announce = tuple(tcp_multiaddr(text) for text in announce)
        self._gate = gate
        self._peer_id = peer_id_of_seed(seed)
        self._boot = secrets.token_bytes(16)
        self._plane = BulkPlane(listen=bulk_listen, limits=self._limits)
        # Two bodies' digests at once keep up with the event loop that decrypts them.
        self._hashing = trio.CapacityLimiter(2)
        self._events, self._incoming = trio.open_memory_channel[Incoming](self._limits.incoming_events)
        self._host: Host | None = None
        self._life: trio.Nursery | None = None
        self._addresses: tuple[str, ...] = ()
        self._greeter = Greeter(peer_id=self._peer_id, own_hello=self._hello, limits=self._limits)
        self._links: dict[PeerId, Link] = {}  # surfaced by Opened

    @property
    def peer_id(self) -> PeerId:
        """Who this end is."""
        return self._peer_id

    @property
    def incoming(self) -> trio.MemoryReceiveChannel[Incoming]:
        """Everything that comes in.  A node that takes nothing for some 5 s loses its connections."""
        return self._incoming

    def addresses(self) -> tuple[str, ...]:
        """Where others can dial this end, announced addresses first; empty while it does not run."""
        return self._addresses if self._host is not None else ()

    def peers(self) -> frozenset[PeerId]:
        """The members connected now."""
        return frozenset(peer for peer, link in self._links.items() if link.is_open)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled.  Raises ConfigError when an address cannot be had at the start."""
        try:
            async with trio.open_nursery() as nursery:
                await nursery.start(self._plane.run)
                await self._supervise(task_status)
        except ExceptionGroup as group:
            raise _innermost(group) from None
        finally:
            self._links.clear()
            self._events.close()

    async def dial(self, peer: PeerId, addresses: tuple[str, ...]) -> None:
        """Connect to `peer`; at once when it is connected already.  Raises UnreachableError, RefusedError."""
        if peer in self.peers():
            return
        if peer == self._peer_id or self._gate.standing(peer) is not Standing.MEMBER:
            raise RefusedError(f"{short(peer)} is not a member to dial", peer)
        patience_s = self._limits.dial_s + 2 * self._limits.hello_s
        dial = self._greeter.dials.get(peer)
        if dial is not None:
            with trio.move_on_after(patience_s):
                await dial.ended.wait()
        else:
            with self._greeter.dialling(peer) as dial:
                with dial.scope:
                    try:
                        await self._connect(peer, addresses, dial)
                    except UnreachableError:
                        if peer not in self._greeter.newest:
                            raise
                # Ours may have been given up for one of theirs, which is about to open.
                with trio.move_on_after(self._limits.hello_s):
                    await dial.opened.wait()
        if not dial.opened.is_set():
            raise UnreachableError(f"no connection to {short(peer)} came about", peer)

    async def petition(self, peer: PeerId, addresses: tuple[str, ...], frame: bytes) -> bytes:
        """Present one frame in `peer`'s lobby and return its answer.  Raises UnreachableError, RefusedError.

        A full lobby looks like an unreachable peer: try again later, with jitter.
        """
        host = self._running()
        connection = await first_connection(host, peer, addresses, within_s=self._limits.dial_s)
        try:
            return await present_petition(host, connection, peer, frame, self._limits)
        finally:
            self._let_go(host, connection)

    async def send(self, peer: PeerId, frame: bytes) -> None:
        """Queue a frame after those sent before it.  Raises UnreachableError; LocalError on one too large."""
        if len(frame) > MAX_FRAME_BYTES:
            raise LocalError(f"a frame of {len(frame)} bytes; the largest is {MAX_FRAME_BYTES}: offer a body")
        await self._link(peer).send(wire.pack(Tag.FRAME, frame))

    async def offer(self, peer: PeerId, frame: bytes, body: memoryview) -> None:
        """Offer a body; it is read, not copied, until it is let go, so do not write to it meanwhile."""
        link = self._link(peer)
        flat = body.cast("B")
        if len(flat) <= INLINE_BODY_BYTES and len(frame) + len(flat) <= MAX_FRAME_BYTES:
            await link.send(wire.pack_inline(frame, flat))
            return
        if len(frame) > MAX_FRAME_BYTES:
            raise LocalError(f"an offer's frame of {len(frame)} bytes; the largest is {MAX_FRAME_BYTES}")
        out = self._plane.outbox.add(peer, flat)
        await link.send(wire.pack_offer(out.transfer, out.size, out.secret, frame))

    async def fetch(self, offer: Offer, into: memoryview, *, deadline: float) -> None:
        """Fill `into` by `deadline`; `offer.handle.sha256` then holds the digest of what came (32 bytes).

        Raises RefusedError when the sender has the body no more, UnreachableError when no way to it works or
        the deadline passes, LocalError when `into` has another size.
        """
        handle: bodies.OfferHandle = offer.handle
        flat = into.cast("B")
        if len(flat) != offer.size:
            raise LocalError(f"a buffer of {len(flat)} bytes for a body of {offer.size}")
        reception = Reception(flat)
        with trio.move_on_at(deadline) as patience:
            await bodies.take(
                handle,
                reception,
                plane=self._plane,
                open_stream=partial(self._open_body_stream, handle.link),
                limits=self._limits,
                hashing=self._hashing,
            )
        if patience.cancelled_caught:
            raise UnreachableError(f"{reception.position} of {offer.size} bytes by the deadline", offer.peer)
        bodies.release(handle)

    def refuse(self, offer: Offer) -> None:
        """Tell the sender that it may forget the body."""
        bodies.release(offer.handle)

    async def hang_up(self, peer: PeerId) -> None:
        """Close the connection to `peer`, what was sent going out first if it can; `Closed` follows."""
        link = self._links.get(peer)
        if link is not None:
            link.finish("hung up here")

    async def _supervise(self, task_status: trio.TaskStatus[None]) -> None:
        listen, pause_s, is_ready = self._listen, self._limits.rebuild_first_s, False
        while True:
            born_at = trio.current_time()
            try:
                async with open_host(
                    seed=self._seed,
                    listen=listen,
                    limits=self._limits,
                    standing=self._gate.standing,
                    handlers={
                        wire.CONTROL_PROTOCOL: self._on_control,
                        wire.JOIN_PROTOCOL: self._on_join,
                        wire.BODY_PROTOCOL: self._on_body,
                    },
                    fault=_report,
                ) as host:
                    listen = host.listening()  # the next life listens where this one does
                    self._addresses = own_addresses(self._peer_id, listen, self._announce)
                    async with trio.open_nursery() as life:
                        self._host, self._life = host, life
                        if not is_ready:
                            is_ready = True
                            task_status.started()
                        try:
                            await host.crashed()
                        finally:
                            self._host = self._life = None
                        raise NotRunningError("the libp2p host ended by itself")
            except Exception as error:
                reason = _innermost(error)
                if not is_ready:
                    raise reason from None
                log.error("libp2p host ended, building it again", error=repr(reason), pause_s=pause_s)
            await self._close_all("the host was built again")
            if trio.current_time() - born_at > _WELL_S:
                pause_s = self._limits.rebuild_first_s
            await trio.sleep(pause_s)
            pause_s = min(2 * pause_s, self._limits.rebuild_last_s)

    async def _close_all(self, reason: str) -> None:
        self._greeter.newest.clear()
        for peer, link in self._links.items():
            link.stop(reason)
            self._plane.forget(peer)
            await self._emit(Closed(peer=peer, reason=reason))
            link.finished.set()
        self._links.clear()

    def _hello(self, link: bytes, abandoned: tuple[bytes, ...]) -> Hello:
        return Hello(
            boot=self._boot,
            link=link,
            abandoned=abandoned,
            certificate=self._plane.certificate,
            addresses=bulk_addresses(self._plane.bound, self._announce),
        )

    def _running(self) -> Host:
        if self._host is None:
            raise UnreachableError("the transport is not running, or its host is being built again")
        return self._host

    def _link(self, peer: PeerId) -> Link:
        link = self._links.get(peer)
        if link is None or not link.is_open:
            raise UnreachableError(f"{short(peer)} is not connected", peer)
        return link

    async def _emit(self, event: Incoming) -> None:
        try:
            await self._events.send(event)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return  # nobody listens any more, so nobody misses it

    async def _connect(self, peer: PeerId, addresses: tuple[str, ...], dial: Dial) -> None:
        """Dial and say hello; returns with the link on its way to `_links`, or given up for one of theirs."""
        host = self._running()
        connection = await first_connection(host, peer, addresses, within_s=self._limits.dial_s)
        try:
            with trio.move_on_after(self._limits.hello_s) as patience:
                link = await self._greeter.call(host, connection, peer, dial)
            if patience.cancelled_caught:
                raise UnreachableError(f"no hello within {self._limits.hello_s:g} s", peer)
            if link is not None and self._life is not None:
                self._life.start_soon(self._serve, host, link)
                return
        except BaseException:
            self._let_go(host, connection)
            raise
        self._let_go(host, connection)

    async def _on_control(self, peer: PeerId, connection: Connection, stream: Stream) -> None:
        host = self._running()
        packets = PacketStream(peer, stream)
        try:
            if self._gate.standing(peer) is not Standing.MEMBER:
                await packets.dismiss("not-a-member")
                return
            try:
                link = await self._greeter.answer(host, connection, peer, packets)
            except UnreachableError:
                return
            except RemoteError as error:
                await self._emit(Fault(peer=peer, reason=str(error)))
                return
            if link is not None:
                await self._serve(host, link)
        finally:
            self._let_go(host, connection)

    async def _serve(self, host: Host, link: Link) -> None:
        """Surface a link, run it to its end, and say so; an older link of the peer goes first."""
        peer = link.peer
        while (older := self._links.get(peer)) is not None:
            is_restart = older.hello.boot != link.hello.boot
            older.stop("the peer restarted" if is_restart else "the peer connected anew")
            await older.finished.wait()
        if self._greeter.newest.get(peer) is link:
            self._links[peer] = link
            try:
                self._plane.trust(peer, link.hello.certificate)
            except RemoteError as error:
                link.stop(str(error), fault=True)
            if peer in self._greeter.dials:
                self._greeter.dials[peer].opened.set()
            await self._emit(Opened(peer=peer))
            await link.run(self._on_packet)
            self._greeter.retire(link)
            self._plane.forget(peer)
            if link.fault:
                await self._emit(Fault(peer=peer, reason=link.fault))
            await self._emit(Closed(peer=peer, reason=link.reason))
            del self._links[peer]
            link.finished.set()
        self._let_go(host, link.connection)

    def _let_go(self, host: Host, connection: Connection) -> None:
        """Close a connection without waiting for it."""
        if self._life is not None:
            self._life.start_soon(host.close, connection)

    async def _on_packet(self, link: Link, tag: Tag, payload: bytes) -> None:
        peer = link.peer
        match tag:
            case Tag.FRAME:
                await self._emit(Frame(peer=peer, data=payload))
            case Tag.INLINE:
                frame, body = wire.unpack_inline(payload)
                handle = bodies.OfferHandle(link=link, inline=body)
                await self._emit(Offer(peer=peer, frame=frame, size=len(body), handle=handle))
            case Tag.OFFER:
                transfer, size, secret, frame = wire.unpack_offer(payload)
                handle = bodies.OfferHandle(link=link, transfer=transfer, secret=secret)
                await self._emit(Offer(peer=peer, frame=frame, size=size, handle=handle))
            case Tag.RELEASE:
                self._plane.outbox.release(peer, wire.unpack_transfer(payload))
            case Tag.PUSH:
                transfer, offset, token = wire.unpack_push(payload)
                link.serve(partial(bodies.answer_push, link, self._plane, transfer, offset, token))
            case Tag.GONE:
                transfer, reason = wire.unpack_gone(payload)
                waiting = link.gone.get(transfer)
                if waiting is not None:
                    waiting(reason)
            case _:
                raise RemoteError(f"sent {tag.name} in the middle of a connection", peer)

    async def _on_join(self, peer: PeerId, connection: Connection, stream: Stream) -> None:
        try:
            await answer_petition(peer, stream, self._gate, self._limits)
        finally:
            self._let_go(self._running(), connection)

    async def _on_body(self, peer: PeerId, _connection: Connection, stream: Stream) -> None:
        await bodies.answer_stream(self._link(peer), self._plane, stream, self._limits)

    async def _open_body_stream(self, link: Link) -> Any:
        try:
            with trio.fail_after(self._limits.hello_s):
                return await self._running().open_stream(link.connection, wire.BODY_PROTOCOL)
        except RemoteError:
            raise
        except Exception as error:  # the library raises a dozen types
            raise UnreachableError(f"no body stream: {type(error).__name__}", link.peer) from error


def _report(where: str, error: Exception) -> None:
    level: Callable[..., Any] = log.debug if isinstance(error, RemoteError) else log.warning
    level("contained a fault", where=where, error=repr(error))


def _innermost(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
