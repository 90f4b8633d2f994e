"""A py-libp2p host made safe to expose: gated, bounded, and alive after what would end it.

py-libp2p 0.8.1 as it comes can be killed and filled up by anyone who connects (upstream #417, #606, #1337,
#1485).  What is wrong, and what is done about it here, from outside and without a fork:

1. An exception in a stream handler ends the host: `SwarmConn._handle_muxed_stream` lets it through.
   The one network-wide handler catches it, reports it and resets the stream.
2. So do bytes that are not UTF-8 in the negotiation of a protocol.  The same handler, the same cure.
3. Inbound slots are given back only when the host ends, so a few hundred connections exhaust them.
   The upgrade of an inbound connection now waits for that connection's end, then raises to release the slot.
4. The muxer runs in the host's nursery, so that an exception in it ends the host.  Its start is guarded.
5. Lengths are believed: a negotiation may announce 2^63 bytes, a Yamux peer may ignore its window.
   Reads are bounded, and a connection whose unread bytes pass a budget is closed.

Who may do what is decided at the end of Noise, before anything is multiplexed: members pass, the banned are
cut, and strangers enter a lobby of few places and seconds, where nothing but the join protocol answers.
"""

import logging
import math
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import trio
from libp2p import new_host
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.x25519 import create_new_key_pair as create_new_x25519_key_pair
from libp2p.custom_types import TProtocol
from libp2p.identity.identify_push.identify_push import ID_PUSH
from libp2p.network.config import ConnectionConfig, RetryConfig
from libp2p.network.connection import swarm_connection
from libp2p.peer.id import ID
from libp2p.protocol_muxer.multiselect_communicator import MultiselectCommunicator
from libp2p.security.exceptions import HandshakeFailure
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE_ID
from libp2p.security.noise.transport import Transport as Noise
from libp2p.transport.tcp.tcp import TCP
from multiaddr import Multiaddr

from p2pfl.errors import ConfigError
from p2pfl.ids import PeerId
from p2pfl.net.libp2p_addresses import refuse_a_taken_port
from p2pfl.net.libp2p_yamux import bound_reads, guard, quietly, say_goodbye
from p2pfl.net.limits import Limits
from p2pfl.net.transport import Standing

__all__ = [
    "Connection",
    "Stream",
    "StreamHandler",
    "Host",
    "open_host",
    "peer_id_of_seed",
]

# py-libp2p is not typed for our purposes; these names say which of its objects is meant.
Connection = Any
Stream = Any
StreamHandler = Callable[[PeerId, Connection, Stream], Awaitable[None]]

# What a connection may leave unread: a member two full Yamux windows (16 MiB each, for frames and for a body)
# and some, a stranger its one frame many times over.
_MEMBER_BUFFER_BYTES = 40 * 1024 * 1024
_STRANGER_BUFFER_BYTES = 64 * 1024
# A peer that reads gets our goodbye in milliseconds; one that does not is cut after this.
_CLOSE_S = 1.0
# Closing a host, all its connections at once.
_HOST_CLOSE_S = 4.0


def _quiet() -> None:
    """Keep py-libp2p from writing to stderr and from installing a handler on the root logger."""
    library = logging.getLogger("libp2p")
    if not library.handlers:
        library.addHandler(logging.NullHandler())
    # `logging.debug(...)`, which this module calls, installs a root handler when there is none.
    swarm_connection.logging = logging.getLogger("libp2p.network.connection")


class _GatedNoise(Noise):  # type: ignore[misc]
    """Noise that asks, once the other side has proved its key, whether it may come in."""

    def __init__(self, *, admit: Callable[[Any, PeerId], None], **keys: Any) -> None:
        super().__init__(**keys)
        self._admit = admit

    async def secure_inbound(self, conn: Any) -> Any:
        session = await super().secure_inbound(conn)
        bound_reads(session, instead_of=conn)
        self._admit(conn, PeerId(str(session.get_remote_peer())))
        return session

    async def secure_outbound(self, conn: Any, peer_id: Any) -> Any:
        session = await super().secure_outbound(conn, peer_id)
        bound_reads(session, instead_of=conn)
        return session


class Host:
    """One life of a host: what `open_host` gives while it runs."""

    def __init__(
        self,
        *,
        seed: bytes,
        limits: Limits,
        standing: Callable[[PeerId], Standing],
        fault: Callable[[str, Exception], None],
    ) -> None:
        _quiet()
        key_pair = create_new_key_pair(seed)
        self._limits = limits
        self._standing = standing
        self._fault = fault
        self._unupgraded: Counter[str] = Counter()
        self._lobby: dict[int, str] = {}  # id of a raw connection -> address
        self._sockets: set[trio.SocketStream] = set()
        self._streams: Counter[int] = Counter()  # id of a muxed connection -> its inbound streams
        noise = _GatedNoise(
            admit=self._admit,
            libp2p_keypair=key_pair,
            noise_privkey=create_new_x25519_key_pair().private_key,
        )
        self._host: Any = new_host(
            key_pair=key_pair,
            sec_opt={NOISE_ID: noise},
            muxer_preference="YAMUX",
            transports=[TCP()],
            connection_config=ConnectionConfig(
                max_connections=limits.max_connections,
                min_connections=0,
                low_watermark=0,
                high_watermark=limits.max_connections,
                # Trimming is ours, by peer and at the handshake; the library's would close what is in use.
                max_connections_per_peer=limits.max_connections,
                inbound_upgrade_timeout=limits.inbound_upgrade_s,
                outbound_upgrade_timeout=limits.inbound_upgrade_s,
                inbound_stream_protocol_negotiation_timeout=limits.hello_s,
                outbound_stream_protocol_negotiation_timeout=limits.hello_s,
            ),
            disable_identify_address_discovery=True,
            negotiate_timeout=max(1, int(limits.hello_s)),
        )
        network = self._network = self._host.get_network()
        network.retry_config = RetryConfig(max_retries=0)
        network.auto_connector.maybe_connect = _do_nothing  # it would dial whom it likes, watermarks or not
        network.set_resource_manager(None)  # our limits are above; its own admit one less than they say
        self._upgrade_inbound = network.upgrade_inbound_raw_conn
        self._upgrade_outbound = network.upgrade_outbound_raw_conn
        self._add_conn = network.add_conn
        self._negotiate = network.common_stream_handler
        network.upgrade_inbound_raw_conn = self._inbound
        network.upgrade_outbound_raw_conn = self._outbound
        network.add_conn = self._guarded_add_conn
        network.set_stream_handler(self._handle)
        # We know our peers by their hellos; asking each for its protocols runs in system tasks, which may not
        # fail, and lets it write into the peerstore.
        self._host._schedule_identify = lambda *_, **__: None
        self._host.multiselect.remove_handler(ID_PUSH)
        for protocol, handler in tuple(self._host.multiselect.handlers.items()):
            self._host.multiselect.add_handler(protocol, self._for_members(handler))

    def serve(self, protocol: str, handler: StreamHandler) -> None:
        """Answer streams of `protocol`; the handler itself asks who the peer is."""

        async def answer(stream: Stream) -> None:
            await handler(_peer_of(stream.muxed_conn), stream.swarm_conn, stream)

        self._host.set_stream_handler(TProtocol(protocol), answer)

    def listening(self) -> tuple[Multiaddr, ...]:
        """The addresses in use, with their true ports."""
        return tuple(self._host.get_transport_addrs())

    async def dial(self, peer: PeerId, address: Multiaddr) -> Connection:
        """A new connection to `peer`, authenticated.  Any exception means that there is none."""
        return await self._network.dial_addr(address, ID.from_string(peer))

    def remote_host(self, connection: Connection) -> str:
        """The IP address at the other end; "" when it is unknown."""
        remote = connection.muxed_conn.get_remote_address()
        return str(remote[0]) if remote else ""

    async def open_stream(self, connection: Connection, protocol: str) -> Stream:
        """A stream on this very connection.  Any exception means that the other side has none."""
        stream = await connection.new_stream()
        try:
            await self._host.multiselect_client.select_one_of(
                [TProtocol(protocol)], MultiselectCommunicator(stream), self._limits.hello_s
            )
        except BaseException:
            with trio.move_on_after(_CLOSE_S, shield=True):
                await stream.reset()
            raise
        return stream

    async def close(self, connection: Connection) -> None:
        """Close a connection: say goodbye if the other side reads, then close the socket.  Never fails.

        The library's own close says the same, and sleeps twice; here its muxer finds the socket closed, and
        tidies up in its own task.
        """
        muxed = connection.muxed_conn
        with trio.CancelScope(shield=True):
            with trio.move_on_after(_CLOSE_S):
                await quietly(partial(say_goodbye, muxed))
            await quietly(muxed.secured_conn.close)
            self._network.remove_conn(connection)

    async def live(
        self,
        listen: tuple[Multiaddr, ...],
        is_over: trio.Event,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Listen and serve until `is_over`, then close everything.

        Shielded, because cancelling the library in the middle of a close leaves sockets and tasks behind.
        """
        with trio.CancelScope(shield=True) as scope:
            try:
                async with self._host.run(list(listen)):
                    if len(self._network.listeners) < len(set(listen)):
                        raise ConfigError(f"cannot listen at {', '.join(map(str, listen))}; choose others")
                    task_status.started()
                    await is_over.wait()
                    scope.deadline = trio.current_time() + _HOST_CLOSE_S
                    async with trio.open_nursery() as nursery:
                        for connection in self._network.get_connections():
                            nursery.start_soon(self.close, connection)
                    await quietly(self._host.close)
            finally:
                await self._sweep()

    async def _sweep(self) -> None:
        """After the end, however it came: what the library left open."""
        with trio.move_on_after(_CLOSE_S, shield=True):
            for listener in tuple(self._network.listeners.values()):
                await quietly(listener.close)
        for stream in self._sockets:
            stream.socket.close()

    async def crashed(self) -> None:
        """Return when the host has ended by itself."""
        await self._network.get_manager().wait_finished()

    def _admit(self, raw: Any, peer: PeerId) -> None:
        """At the end of an inbound Noise handshake: raise, or let the peer in; strangers take a place."""
        standing = self._standing(peer)
        held = sum(not one.is_closed for one in self._network.get_connections(ID.from_string(peer)))
        if standing is Standing.BANNED:
            raise HandshakeFailure("banned")
        if standing is Standing.MEMBER:
            if held >= self._limits.connections_per_peer:
                raise HandshakeFailure("too many connections of one peer")
            return
        address = _address_of(raw)
        from_there = sum(other == address for other in self._lobby.values())
        if (
            held
            or len(self._lobby) >= self._limits.lobby_places
            or from_there >= self._limits.lobby_per_address
        ):
            raise HandshakeFailure("no place in the lobby")
        self._lobby[id(raw)] = address

    async def _inbound(self, raw: Any, address: Any) -> None:
        """Upgrade an accepted socket and hold its slot until it closes; always ends in an exception."""
        source = _address_of(raw)
        if self._unupgraded[source] >= self._limits.unupgraded_per_address:
            await raw.close()
            raise ConnectionError(f"too many handshakes under way from {source}")
        self._take(raw)
        try:
            self._unupgraded[source] += 1
            try:
                muxed = await self._upgrade_inbound(raw, address)
            finally:
                self._unupgraded[source] -= 1
                if not self._unupgraded[source]:
                    del self._unupgraded[source]
            stay_s = self._limits.lobby_s if id(raw) in self._lobby else math.inf
            with trio.move_on_after(stay_s):
                await muxed.event_closed.wait()
            self._lobby.pop(id(raw), None)
            for connection in self._network.get_connections(muxed.peer_id):
                if connection.muxed_conn is muxed:
                    await self.close(connection)
        finally:
            self._lobby.pop(id(raw), None)
        raise ConnectionError("closed")

    async def _outbound(self, raw: Any, peer_id: Any, scope: Any = None) -> Any:
        self._take(raw)
        return await self._upgrade_outbound(raw, peer_id, scope)

    def _take(self, raw: Any) -> None:
        """Remember a new socket, and bound what is read from it at once."""
        self._sockets = {stream for stream in self._sockets if stream.socket.fileno() >= 0}
        self._sockets.add(raw.stream.stream)
        bound_reads(raw)

    async def _guarded_add_conn(self, muxed: Any, direction: str = "unknown") -> Any:
        is_member = self._standing(_peer_of(muxed)) is Standing.MEMBER
        guard(
            muxed,
            buffer_bytes=_MEMBER_BUFFER_BYTES if is_member else _STRANGER_BUFFER_BYTES,
            fault=partial(self._fault, "muxer"),
        )
        return await self._add_conn(muxed, direction)

    async def _handle(self, stream: Stream) -> None:
        """Every inbound stream: negotiate, handle, and survive whatever that raises."""
        key = id(stream.muxed_conn)
        is_member = self._standing(_peer_of(stream.muxed_conn)) is Standing.MEMBER
        if self._streams[key] >= (self._limits.streams_per_connection if is_member else 2):
            await quietly(stream.reset)
            return
        self._streams[key] += 1
        try:
            await self._negotiate(stream)
        except Exception as error:
            self._fault("stream", error)
            await quietly(stream.reset)
        finally:
            self._streams[key] -= 1
            if not self._streams[key]:
                del self._streams[key]

    def _for_members(
        self, handler: Callable[[Stream], Awaitable[None]]
    ) -> Callable[[Stream], Awaitable[None]]:
        async def guarded(stream: Stream) -> None:
            if self._standing(_peer_of(stream.muxed_conn)) is Standing.MEMBER:
                await handler(stream)
            else:
                await stream.reset()

        return guarded


@asynccontextmanager
async def open_host(
    *,
    seed: bytes,
    listen: tuple[Multiaddr, ...],
    limits: Limits,
    standing: Callable[[PeerId], Standing],
    handlers: Mapping[str, StreamHandler],
    fault: Callable[[str, Exception], None],
) -> AsyncIterator[Host]:
    """A running host.  Raises ConfigError when it cannot listen at every address of `listen`.

    When the host ends by itself, the body is cancelled and its error leaves in an exception group.
    """
    for address in listen:
        refuse_a_taken_port(address)
    host = Host(seed=seed, limits=limits, standing=standing, fault=fault)
    for protocol, handler in handlers.items():
        host.serve(protocol, handler)
    is_over = trio.Event()
    async with trio.open_nursery() as nursery:
        await nursery.start(host.live, listen, is_over)
        try:
            yield host
        finally:
            is_over.set()


def peer_id_of_seed(seed: bytes) -> PeerId:
    """The PeerId of an Ed25519 seed (32 bytes).  Raises ConfigError."""
    if len(seed) != 32:
        raise ConfigError(f"the seed of an Ed25519 key has 32 bytes, this one has {len(seed)}")
    return PeerId(str(ID.from_pubkey(create_new_key_pair(seed).public_key)))


def _peer_of(muxed: Any) -> PeerId:
    return PeerId(str(muxed.peer_id))


def _address_of(raw: Any) -> str:
    """The IP address at the other end; IPv6 too, which the library's own accessor leaves out."""
    try:
        return str(raw.stream.stream.socket.getpeername()[0])
    except (AttributeError, OSError):
        return ""


async def _do_nothing() -> None:
    return
