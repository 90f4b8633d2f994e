"""The transport over real libp2p hosts on loopback: connections, frames, gate, lobby, recovery."""

import logging
import os
from functools import partial

import pytest
import trio
from multiaddr import Multiaddr
from transports import LOOPBACK, Community, connect, expect, pair, running

from p2pfl.errors import ConfigError, LocalError, RefusedError, RemoteError, UnreachableError
from p2pfl.net import libp2p_wire as wire
from p2pfl.net.libp2p import Libp2pTransport
from p2pfl.net.libp2p_dial import first_connection
from p2pfl.net.libp2p_host import open_host
from p2pfl.net.limits import Limits
from p2pfl.net.transport import MAX_FRAME_BYTES, Closed, Fault, Frame, Gate, Opened, Standing


async def test_frames_arrive_in_order_both_ways() -> None:
    async with pair() as (left, right):
        frames = [os.urandom(size) for size in (0, 1, 1000, MAX_FRAME_BYTES)] * 10
        for frame in frames:
            await left.send(right.peer_id, frame)
            await right.send(left.peer_id, frame)
        for frame in frames:
            assert await expect(right, Frame) == Frame(peer=left.peer_id, data=frame)
            assert await expect(left, Frame) == Frame(peer=right.peer_id, data=frame)


async def test_a_frame_past_the_limit_is_refused_here() -> None:
    async with pair() as (left, right):
        with pytest.raises(LocalError, match="65537"):
            await left.send(right.peer_id, bytes(MAX_FRAME_BYTES + 1))


async def test_a_frame_to_nobody_is_unreachable() -> None:
    async with pair() as (left, right):
        await left.hang_up(right.peer_id)
        await expect(left, Closed)
        with pytest.raises(UnreachableError):
            await left.send(right.peer_id, b"late")


async def test_what_was_sent_before_hanging_up_arrives() -> None:
    async with pair() as (left, right):
        for number in range(50):
            await left.send(right.peer_id, b"%d" % number)
        await left.hang_up(right.peer_id)
        for number in range(50):
            assert (await expect(right, Frame)).data == b"%d" % number
        assert (await expect(right, Closed)).peer == left.peer_id
        assert await expect(left, Closed) == Closed(peer=right.peer_id, reason="hung up here")
        assert left.peers() == right.peers() == frozenset()


async def test_dialling_a_connected_peer_again_changes_nothing() -> None:
    async with pair() as (left, right):
        await left.dial(right.peer_id, right.addresses())
        await right.dial(left.peer_id, left.addresses())
        await left.send(right.peer_id, b"still")
        await expect(right, Frame)
        assert left.peers() == {right.peer_id}


@pytest.mark.parametrize("smaller_starts", [True, False])
async def test_simultaneous_dials_leave_one_connection(smaller_starts: bool) -> None:
    community = Community()
    one, two = sorted((community.transport(1), community.transport(2)), key=lambda t: t.peer_id)
    if not smaller_starts:
        one, two = two, one
    async with running(one, two):
        for _ in range(5):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(one.dial, two.peer_id, two.addresses())
                nursery.start_soon(two.dial, one.peer_id, one.addresses())
            await expect(one, Opened)
            await expect(two, Opened)
            await one.send(two.peer_id, b"there")
            await two.send(one.peer_id, b"back")
            assert (await expect(two, Frame)).data == b"there"
            assert (await expect(one, Frame)).data == b"back"
            await one.hang_up(two.peer_id)
            await expect(one, Closed)
            await expect(two, Closed)


async def test_the_first_address_that_answers_is_used() -> None:
    community = Community()
    one, two = community.transport(1), community.transport(2)
    async with running(one, two):
        useless = ("nonsense", "/ip4/127.0.0.1/udp/9", "/ip4/127.0.0.1/tcp/9", *one.addresses())
        await one.dial(two.peer_id, (*useless, *two.addresses()))
        assert await expect(one, Opened) == Opened(peer=two.peer_id)


async def test_a_peer_that_is_somebody_else_is_unreachable() -> None:
    community = Community()
    one, two, three = (community.transport(number) for number in (1, 2, 3))
    async with running(one, two):
        address = two.addresses()[0].partition("/p2p/")[0]
        with pytest.raises(UnreachableError):
            await one.dial(three.peer_id, (address,))


async def test_a_stranger_is_refused_by_name_and_the_banned_are_cut() -> None:
    inner, outer = Community(), Community()
    member = inner.transport(1)
    stranger = outer.transport(2)
    outer.members.add(member.peer_id)
    async with running(member, stranger):
        with pytest.raises(RefusedError, match="not-a-member"):
            await stranger.dial(member.peer_id, member.addresses())
        inner.banned.add(stranger.peer_id)
        with pytest.raises(UnreachableError):
            await stranger.dial(member.peer_id, member.addresses())
        with pytest.raises(RefusedError):
            await member.dial(stranger.peer_id, stranger.addresses())


async def test_a_stranger_may_petition_and_then_be_a_member() -> None:
    inner, outer = Community(), Community()
    member, stranger = inner.transport(1), outer.transport(2)
    outer.members.add(member.peer_id)
    async with running(member, stranger):
        assert (
            await stranger.petition(member.peer_id, member.addresses(), b"let me in")
            == b"answer to let me in"
        )
        assert inner.petitions == [(stranger.peer_id, b"let me in")]
        inner.members.add(stranger.peer_id)
        await connect(stranger, member)


async def test_a_petition_past_the_limit_is_refused_here() -> None:
    community = Community()
    one, two = community.transport(1), community.transport(2)
    async with running(one, two):
        with pytest.raises(LocalError, match="4096"):
            await one.petition(two.peer_id, two.addresses(), bytes(4097))


async def test_a_flood_of_strangers_leaves_the_members_alone() -> None:
    community = Community()
    limits = Limits(lobby_places=3, lobby_per_address=2, lobby_s=1.0)
    one, two = community.transport(1, limits=limits), community.transport(2)
    strangers = [Community().transport(10 + number, listen=(), bulk_listen="") for number in range(12)]
    hold = trio.Event()

    async def slow_petition(peer: object, frame: bytes) -> bytes:
        await hold.wait()
        return frame

    one._gate = Gate(standing=community.standing, petition=slow_petition)
    turned_away = 0

    async def flood(stranger: Libp2pTransport) -> None:
        nonlocal turned_away
        try:
            await stranger.petition(one.peer_id, one.addresses(), b"me too")
        except RemoteError:
            turned_away += 1
            if turned_away == len(strangers) - 2:
                hold.set()  # both places are taken; the rest have been turned away

    async with running(one, two, *strangers):
        async with trio.open_nursery() as nursery:
            for stranger in strangers:
                nursery.start_soon(flood, stranger)
            await connect(two, one)
            await two.send(one.peer_id, b"through")
            assert (await expect(one, Frame)).data == b"through"
        assert turned_away == len(strangers) - 2


async def test_a_squatter_loses_its_place_in_the_lobby() -> None:
    inner, outer = Community(), Community()
    member = inner.transport(1, limits=Limits(lobby_places=1, lobby_s=0.3))
    squatter, joiner = outer.transport(2), outer.transport(3)
    outer.members.add(member.peer_id)
    async with running(member, squatter, joiner):
        connection = await first_connection(
            squatter._running(), member.peer_id, member.addresses(), within_s=5
        )
        with pytest.raises(UnreachableError):
            await joiner.petition(member.peer_id, member.addresses(), b"first try")
        with trio.fail_after(3):
            await connection.muxed_conn.event_closed.wait()
        assert await joiner.petition(member.peer_id, member.addresses(), b"again") == b"answer to again"


async def test_a_restarted_peer_replaces_its_half_dead_connection() -> None:
    community = Community()
    here, there = community.transport(1), community.transport(2)
    async with running(here, there):
        await connect(there, here)
        # The old process says nothing any more; its end stays open.
        again = community.transport(2)
        async with running(again):
            await again.dial(here.peer_id, here.addresses())
            assert await expect(here, Closed) == Closed(peer=there.peer_id, reason="the peer restarted")
            assert await expect(here, Opened) == Opened(peer=again.peer_id)
            await here.send(again.peer_id, b"welcome back")
            await expect(again, Opened)
            assert (await expect(again, Frame)).data == b"welcome back"


async def test_a_silent_peer_is_closed() -> None:
    community = Community()
    impatient = community.transport(1, limits=Limits(keepalive_s=0.05, silence_s=0.3))
    dumb = community.transport(2)
    async with running(impatient, dumb):
        await connect(impatient, dumb)
        # Its pongs keep the connection for longer than the limit ...
        with trio.move_on_after(0.6):
            pytest.fail(str(await impatient.incoming.receive()))
        # ... until it stops answering, as a stopped process does.
        dumb._links[impatient.peer_id].post = lambda _: None  # type: ignore[method-assign]
        closed = await expect(impatient, Closed)
        assert closed.reason.startswith("silent")


async def test_a_host_that_crashes_is_rebuilt_on_its_port() -> None:
    community = Community()
    one, two = community.transport(1), community.transport(2)
    async with running(one, two):
        await connect(one, two)
        addresses = two.addresses()

        async def bug() -> None:
            raise RuntimeError("planted")

        two._running()._network.get_manager().run_task(bug)
        assert await expect(two, Closed) == Closed(peer=one.peer_id, reason="the host was built again")
        await expect(one, Closed)
        started_at = trio.current_time()
        while True:
            try:
                await one.dial(two.peer_id, addresses)
                break
            except UnreachableError:
                assert trio.current_time() - started_at < 2
                await trio.lowlevel.checkpoint()
        assert two.addresses() == addresses
        await expect(one, Opened)
        await expect(two, Opened)


async def test_a_taken_port_is_a_configuration_error() -> None:
    community = Community()
    one = community.transport(1)
    async with running(one):
        listen = (one.addresses()[0].partition("/p2p/")[0],)
        two = community.transport(2, listen=listen)
        with pytest.raises(ConfigError, match="choose another"):
            await two.run()


@pytest.mark.parametrize("listen", ["nonsense", "/ip4/127.0.0.1/udp/4001", ""])
def test_an_address_that_is_none_is_a_configuration_error(listen: str) -> None:
    with pytest.raises(ConfigError):
        Community().transport(1, listen=(listen,))


async def test_every_address_says_who_it_is_and_can_be_dialled() -> None:
    community = Community()
    one = community.transport(1, listen=("/ip4/0.0.0.0/tcp/0",), announce=("/dns4/site.example/tcp/4001",))
    two = community.transport(2)
    assert one.addresses() == ()
    async with running(one, two):
        addresses = one.addresses()
        assert addresses[0] == f"/dns4/site.example/tcp/4001/p2p/{one.peer_id}"
        assert all(text.endswith(f"/p2p/{one.peer_id}") for text in addresses)
        assert not any("0.0.0.0" in text or "/tcp/0/" in text for text in addresses)
        await two.dial(one.peer_id, addresses[1:])


async def test_nothing_reaches_stderr_or_the_root_logger(capfd: pytest.CaptureFixture[str]) -> None:
    async with pair() as (left, right):
        root = [
            handler for handler in logging.getLogger().handlers if "pytest" not in type(handler).__module__
        ]
        assert root == []
        logging.getLogger("libp2p.network.swarm").warning("a warning of the library")
        await left.hang_up(right.peer_id)
        await expect(right, Closed)
    assert capfd.readouterr().err == ""


# --- peers that break the rules: a bare host with a member's key ---------------------------------------


async def _misbehave(packets: bytes, *, greets: bool) -> list[object]:
    """What a transport makes of a member that writes these bytes on its control stream."""
    community = Community()
    victim = community.transport(1)
    bad = community.transport(2)
    async with (
        running(victim),
        open_host(
            seed=bytes((2,)) * 32,
            listen=(),
            limits=Limits(),
            standing=lambda _: Standing.MEMBER,
            handlers={},
            fault=lambda *_: None,
        ) as host,
    ):
        connection = await host.dial(victim.peer_id, Multiaddr(victim.addresses()[0].partition("/p2p/")[0]))
        stream = await host.open_stream(connection, wire.CONTROL_PROTOCOL)
        if greets:
            hello = wire.Hello(boot=bytes(16), link=bytes(16), certificate=bad._plane.certificate)
            await stream.write(wire.pack_hello(hello))
        await stream.write(packets)
        events: list[object] = []
        while not events or not isinstance(events[-1], Closed if greets else Fault):
            with trio.fail_after(5):
                events.append(await victim.incoming.receive())
        with trio.fail_after(5):
            await connection.muxed_conn.event_closed.wait()
        assert victim.addresses()
        assert victim.peers() == frozenset()
        return events


async def test_an_oversized_packet_cuts_the_connection_at_its_declared_length() -> None:
    events = await _misbehave((wire.MAX_PACKET_BYTES + 1).to_bytes(4, "big"), greets=True)
    assert [type(event) for event in events] == [Opened, Fault, Closed]


@pytest.mark.parametrize(
    "packets",
    [
        b"\x00\x00\x00\x00",
        b"\x00\x00\x00\x01\xff",
        b"GET / HTTP/1.1\r\n\r\n",
        wire.pack(wire.Tag.OFFER, b"short"),
        wire.pack(wire.Tag.INLINE, b"\xff\xff\xff\xff"),
        wire.pack(wire.Tag.PUSH, b""),
        wire.pack(wire.Tag.GONE, bytes(8) + b"\x63"),
        wire.pack(wire.Tag.HELLO, b""),
        wire.pack(wire.Tag.REFUSED, b"you"),
    ],
)
async def test_garbage_on_a_control_stream_is_a_fault_and_a_cut(packets: bytes) -> None:
    events = await _misbehave(packets, greets=True)
    assert [type(event) for event in events] == [Opened, Fault, Closed]


@pytest.mark.parametrize(
    "packets",
    [
        wire.pack(wire.Tag.FRAME, b"before hello"),
        wire.pack(wire.Tag.HELLO, b"\xc1"),
        wire.pack(wire.Tag.HELLO, bytes(5000)),
        b"\xff" * 64,
    ],
)
async def test_garbage_instead_of_a_hello_is_a_fault_and_a_cut(packets: bytes) -> None:
    events = await _misbehave(packets, greets=False)
    assert [type(event) for event in events] == [Fault]


async def test_garbage_on_the_raw_port_harms_nobody() -> None:
    community = Community()
    one, two = community.transport(1), community.transport(2)
    async with running(one, two):
        port = int(one.addresses()[0].split("/")[4])

        async def throw(garbage: bytes) -> None:
            stream = await trio.open_tcp_stream("127.0.0.1", port)
            async with stream:
                try:
                    await stream.send_all(garbage)
                    await stream.send_eof()
                    while await stream.receive_some():
                        pass
                except trio.BrokenResourceError:
                    pass

        async with trio.open_nursery() as nursery:
            multistream = b"\x13/multistream/1.0.0\n"
            for garbage in (
                b"",
                b"\x00",
                b"\x04\xff\xfe\xfa\x0a",
                multistream + b"\x04\xff\xfe\xfa\x0a",
                multistream + b"\x07/noise\n" + bytes(200),
                multistream + b"\x07/noise\n" + b"\xff" * 70000,
                b"\xff" * 9 + b"\x01" + bytes(1000),
                b"\x80" * 20,
                os.urandom(5000),
            ):
                nursery.start_soon(partial(throw, garbage))
        await connect(two, one)


def test_limits_are_positive() -> None:
    with pytest.raises(ConfigError, match="lobby_s"):
        Limits(lobby_s=0)
    assert Limits(upload_mbit_s=0).upload_mbit_s == 0


def test_a_seed_has_32_bytes() -> None:
    with pytest.raises(ConfigError, match="32 bytes"):
        Libp2pTransport(seed=b"short", listen=LOOPBACK, bulk_listen="", gate=Community().gate())
