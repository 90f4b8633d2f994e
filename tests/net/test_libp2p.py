"""The transport over real libp2p hosts on loopback: connections, frames, gate, lobby, recovery."""

import logging
import os

import pytest
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from transports import LOOPBACK, Community, connect, expect, pair, running

from p2pfl.errors import ConfigError, LocalError, RefusedError, RemoteError, UnreachableError
from p2pfl.ids import peer_id_of
from p2pfl.net.libp2p import Libp2pTransport
from p2pfl.net.libp2p_dial import first_connection
from p2pfl.net.libp2p_host import peer_id_of_seed
from p2pfl.net.limits import Limits
from p2pfl.net.transport import MAX_FRAME_BYTES, Closed, Frame, Gate, Opened


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


@pytest.mark.slow
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
        dumb._links[impatient.peer_id]._packets.send = _say_nothing  # type: ignore[method-assign]
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


async def test_incoming_ends_with_the_transport() -> None:
    one = Community().transport(1)
    async with running(one):
        assert one.addresses()
    assert [event async for event in one.incoming] == []
    assert one.addresses() == ()
    assert one.peers() == frozenset()


@pytest.mark.slow
async def test_a_node_that_takes_nothing_holds_its_peers_back_and_loses_no_frame() -> None:
    async with pair(limits=Limits(incoming_events=2, backlog_frames=2)) as (left, right):
        sent = 0
        with trio.move_on_after(1.5):
            while True:
                await left.send(right.peer_id, sent.to_bytes(4) + bytes(60_000))
                sent += 1
        assert sent < 500  # the window of one stream, 16 MiB, and a few frames
        for number in range(sent):
            assert (await expect(right, Frame)).data[:4] == number.to_bytes(4)


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
    before = list(logging.getLogger().handlers)
    async with pair() as (left, right):
        assert logging.getLogger().handlers == before
        logging.getLogger("libp2p.network.swarm").warning("a warning of the library")
        await left.hang_up(right.peer_id)
        await expect(right, Closed)
    assert capfd.readouterr().err == ""


def test_limits_are_positive() -> None:
    with pytest.raises(ConfigError, match="lobby_s"):
        Limits(lobby_s=0)
    assert Limits(upload_mbit_s=0).upload_mbit_s == 0


def test_the_peer_id_is_the_one_that_the_key_names() -> None:
    key = Ed25519PrivateKey.from_private_bytes(b"k" * 32).public_key()
    assert peer_id_of_seed(b"k" * 32) == peer_id_of(key.public_bytes_raw())


def test_a_seed_has_32_bytes() -> None:
    with pytest.raises(ConfigError, match="32 bytes"):
        Libp2pTransport(seed=b"short", listen=LOOPBACK, bulk_listen="", gate=Community().gate())


async def _say_nothing(packets: bytes) -> None:
    await trio.lowlevel.checkpoint()
