"""py-libp2p as it comes dies of each of these; behind the shim it lives.  One test for each fault."""

import contextlib
import struct
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
import trio
from libp2p.io.exceptions import IOException
from libp2p.network.exceptions import SwarmException
from libp2p.network.stream.exceptions import StreamError
from libp2p.protocol_muxer.exceptions import MultiselectClientError
from libp2p.stream_muxer.yamux.yamux import Yamux
from multiaddr import Multiaddr

from p2pfl.errors import RemoteError
from p2pfl.ids import PeerId
from p2pfl.net.libp2p_host import Connection, Host, Stream, StreamHandler, open_host, peer_id_of_seed
from p2pfl.net.limits import Limits
from p2pfl.net.transport import Standing

LOOPBACK = (Multiaddr("/ip4/127.0.0.1/tcp/0"),)
ECHO = "/echo/1.0"
TURNED_AWAY = (StreamError, MultiselectClientError)


@dataclass
class Peer:
    host: Host
    peer_id: PeerId
    address: Multiaddr
    faults: list[tuple[str, Exception]]


@dataclass
class Standings:
    of: dict[PeerId, Standing] = field(default_factory=dict)

    def __call__(self, peer: PeerId) -> Standing:
        return self.of.get(peer, Standing.MEMBER)


async def echo(peer: PeerId, connection: Connection, stream: Stream) -> None:
    await stream.write(await stream.read(1000))


@asynccontextmanager
async def host(
    number: int,
    *,
    handlers: Mapping[str, StreamHandler] | None = None,
    limits: Limits | None = None,
    standings: Standings | None = None,
) -> AsyncIterator[Peer]:
    faults: list[tuple[str, Exception]] = []
    seed = bytes((number,)) * 32
    with trio.fail_after(20):
        async with open_host(
            seed=seed,
            listen=LOOPBACK,
            limits=limits or Limits(),
            standing=standings or Standings(),
            handlers={ECHO: echo, **(handlers or {})},
            fault=lambda where, error: faults.append((where, error)),
        ) as opened:
            yield Peer(opened, peer_id_of_seed(seed), opened.listening()[0], faults)


async def ask(asker: Peer, connection: Connection, protocol: str) -> bytes:
    """What comes back for 32 bytes on a new stream."""
    stream = await asker.host.open_stream(connection, protocol)
    await stream.write(bytes(32))
    return bytes(await stream.read(10_000))


async def says_echo(asker: Peer, victim: Peer) -> None:
    """The victim still serves, to a new connection."""
    connection = await asker.host.dial(victim.peer_id, victim.address)
    stream = await asker.host.open_stream(connection, ECHO)
    await stream.write(b"alive")
    assert await stream.read(1000) == b"alive"
    await asker.host.close(connection)


async def test_fault_1_an_exception_in_a_stream_handler_does_not_end_the_host() -> None:
    async def broken(peer: PeerId, connection: Connection, stream: Stream) -> None:
        raise KeyError("planted")

    async with host(1, handlers={"/broken/1.0": broken}) as victim, host(2) as other:
        connection = await other.host.dial(victim.peer_id, victim.address)
        with pytest.raises(TURNED_AWAY):
            await ask(other, connection, "/broken/1.0")
        assert [(where, type(error)) for where, error in victim.faults] == [("stream", KeyError)]
        await says_echo(other, victim)


async def test_fault_2_a_negotiation_that_is_not_utf8_does_not_end_the_host() -> None:
    async with host(1) as victim, host(2) as other:
        connection = await other.host.dial(victim.peer_id, victim.address)
        stream = await connection.new_stream()
        await stream.write(b"\x13/multistream/1.0.0\n\x04\xff\xfe\xfa\x0a")
        assert await stream.read(100) == b"\x13/multistream/1.0.0\n"
        with pytest.raises(TURNED_AWAY):
            await stream.read(100)
        assert [(where, type(error)) for where, error in victim.faults] == [("stream", UnicodeDecodeError)]
        await says_echo(other, victim)


async def test_fault_3_inbound_slots_are_released_when_a_connection_ends() -> None:
    limits = Limits(max_connections=4)
    async with host(1, limits=limits) as victim, host(2) as other:
        for _ in range(6):
            await says_echo(other, victim)
        limiter = victim.host._network._inbound_limiter
        while limiter.borrowed_tokens:
            await trio.lowlevel.checkpoint()


async def test_fault_4_an_exception_in_the_muxer_does_not_end_the_host(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    handle_incoming = Yamux.handle_incoming
    is_planted = False

    async def broken_once(self: Yamux) -> None:
        nonlocal is_planted
        if not self.is_initiator and not is_planted:
            is_planted = True
            raise RuntimeError("planted")
        await handle_incoming(self)

    monkeypatch.setattr(Yamux, "handle_incoming", broken_once)
    async with host(1) as victim, host(2) as other:
        connection = await other.host.dial(victim.peer_id, victim.address)
        await connection.muxed_conn.event_closed.wait()
        (fault,) = victim.faults
        assert fault[0] == "muxer"
        await says_echo(other, victim)


async def test_fault_5_a_peer_that_ignores_its_window_is_cut_before_it_fills_the_memory() -> None:
    async def deaf(peer: PeerId, connection: Connection, stream: Stream) -> None:
        await trio.sleep_forever()

    async with host(1, handlers={"/deaf/1.0": deaf}) as victim, host(2) as other:
        connection = await other.host.dial(victim.peer_id, victim.address)
        stream = await other.host.open_stream(connection, "/deaf/1.0")
        muxed = connection.muxed_conn
        chunk = bytes(1 << 20)
        frame = struct.pack("!BBHII", 0, 0, 0, stream.muxed_stream.stream_id, len(chunk)) + chunk
        sent = 0
        with contextlib.suppress(IOException):  # cut in the middle of a write, or between two
            while not muxed.is_closed and sent < 99:
                await muxed._write_frame(frame)
                sent += 1
        assert sent < 64
        await muxed.event_closed.wait()
        await says_echo(other, victim)


async def test_fault_5_a_negotiation_that_announces_2_to_the_62_bytes_is_cut() -> None:
    async with host(1) as victim, host(2) as other:
        stream = await trio.open_tcp_stream("127.0.0.1", int(victim.address.value_for_protocol("tcp")))
        async with stream:
            try:
                await stream.send_all(b"\xff" * 8 + b"\x3f" + bytes(100_000))
                await stream.send_eof()
                while await stream.receive_some():
                    pass
            except trio.BrokenResourceError:
                pass
        await says_echo(other, victim)


async def test_no_protocol_but_those_for_strangers_answers_a_stranger() -> None:
    standings = Standings()

    async with host(1, standings=standings) as victim, host(2) as stranger:
        standings.of[stranger.peer_id] = Standing.STRANGER
        connection = await stranger.host.dial(victim.peer_id, victim.address)
        for protocol in ("/ipfs/id/1.0.0", "/ipfs/ping/1.0.0"):
            with pytest.raises(TURNED_AWAY):
                await ask(stranger, connection, protocol)


async def test_members_may_ping_and_identify_as_any_libp2p_does() -> None:
    async with host(1) as victim, host(2) as other:
        connection = await other.host.dial(victim.peer_id, victim.address)
        stream = await other.host.open_stream(connection, "/ipfs/ping/1.0.0")
        await stream.write(bytes(range(32)))
        assert await stream.read(32) == bytes(range(32))
        stream = await other.host.open_stream(connection, "/ipfs/id/1.0.0")
        assert ECHO.encode() in await stream.read(10_000)


async def test_one_member_holds_no_more_than_its_connections() -> None:
    async with host(1, limits=Limits(connections_per_peer=2)) as victim, host(2) as other:
        kept = [await other.host.dial(victim.peer_id, victim.address) for _ in range(2)]
        with pytest.raises(SwarmException, match="upgrade mux"):
            await other.host.dial(victim.peer_id, victim.address)
        await other.host.close(kept[0])
        while sum(not one.is_closed for one in victim.host._network.get_connections()) > 1:
            await trio.lowlevel.checkpoint()
        await says_echo(other, victim)


async def test_silent_sockets_from_one_address_take_few_slots_and_not_for_long() -> None:
    limits = Limits(unupgraded_per_address=3, inbound_upgrade_s=0.3)
    async with host(1, limits=limits) as victim, host(2) as other:
        port = int(victim.address.value_for_protocol("tcp"))
        silent = [await trio.open_tcp_stream("127.0.0.1", port) for _ in range(6)]
        with trio.fail_after(3):
            for stream in silent:  # three are closed at once, three at their time
                try:
                    while await stream.receive_some():
                        pass
                except trio.BrokenResourceError:
                    pass
        await says_echo(other, victim)
        for stream in silent:
            await stream.aclose()


async def test_streams_of_one_connection_are_bounded() -> None:
    async def deaf(peer: PeerId, connection: Connection, stream: Stream) -> None:
        await trio.sleep_forever()

    limits = Limits(streams_per_connection=3)
    async with host(1, limits=limits, handlers={"/deaf/1.0": deaf}) as victim, host(2) as other:
        connection = await other.host.dial(victim.peer_id, victim.address)
        for _ in range(3):
            await other.host.open_stream(connection, "/deaf/1.0")
        with pytest.raises(TURNED_AWAY):
            await other.host.open_stream(connection, "/deaf/1.0")
        await says_echo(other, victim)


async def test_a_crash_of_the_library_leaves_no_socket_behind() -> None:
    sockets: list[trio.SocketStream] = []

    async def bug() -> None:
        raise RuntimeError("planted")

    async def live_and_crash() -> None:
        async with host(1) as victim, host(2) as other:
            await other.host.dial(victim.peer_id, victim.address)
            sockets.extend((*victim.host._sockets, *other.host._sockets))
            victim.host._network.get_manager().run_task(bug)
            await victim.host.crashed()

    with pytest.raises(ExceptionGroup) as caught:
        await live_and_crash()
    assert caught.group_contains(RuntimeError, match="planted")
    assert [stream.socket.fileno() for stream in sockets] == [-1, -1]


async def test_errors_of_ours_leave_a_handler_as_quietly_as_others() -> None:
    async def refusing(peer: PeerId, connection: Connection, stream: Stream) -> None:
        raise RemoteError("no", peer)

    async with host(1, handlers={"/no/1.0": refusing}) as victim, host(2) as other:
        connection = await other.host.dial(victim.peer_id, victim.address)
        with pytest.raises(TURNED_AWAY):
            await ask(other, connection, "/no/1.0")
        assert isinstance(victim.faults[0][1], RemoteError)
