"""Peers that break the rules of the control stream, and strangers who throw bytes at the port."""

import os
from functools import partial

import pytest
import trio
from multiaddr import Multiaddr
from transports import Community, connect, running

from p2pfl.net import libp2p_wire as wire
from p2pfl.net.libp2p_host import open_host
from p2pfl.net.limits import Limits
from p2pfl.net.transport import Closed, Fault, Opened, Standing


async def _misbehave(packets: bytes, *, greets: bool) -> list[object]:
    """What a transport makes of a member, a bare host with its key, that writes these bytes to it."""
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
