"""The packets of a control stream: what is packed reads back, and any bytes are a value or a RemoteError."""

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from p2pfl import encoding
from p2pfl.errors import RemoteError
from p2pfl.net import libp2p_wire as wire

NAME = st.binary(min_size=16, max_size=16)
HELLOS = st.builds(
    wire.Hello,
    boot=NAME,
    link=NAME,
    abandoned=st.lists(NAME, max_size=4).map(tuple),
    certificate=st.binary(max_size=2048),
    addresses=st.lists(
        st.builds("{}:{}".format, st.sampled_from(["10.0.0.1", "[::1]", "a.example"]), st.integers(1, 65535)),
        max_size=8,
    ).map(tuple),
)
U64 = st.integers(0, 2**64 - 1)


def payload_of(packet: bytes, tag: wire.Tag) -> bytes:
    assert int.from_bytes(packet[:4], "big") == len(packet) - 4
    found, payload = wire.unpack(packet[4:])
    assert found is tag
    return payload


@given(HELLOS)
def test_a_hello_reads_back(hello: wire.Hello) -> None:
    assert wire.unpack_hello(payload_of(wire.pack_hello(hello), wire.Tag.HELLO)) == hello


@given(st.binary(max_size=200), st.binary(max_size=200))
def test_an_inline_offer_reads_back(frame: bytes, body: bytes) -> None:
    packet = wire.pack_inline(frame, memoryview(body))
    assert wire.unpack_inline(payload_of(packet, wire.Tag.INLINE)) == (frame, body)


@given(U64, U64, st.binary(min_size=32, max_size=32), st.binary(max_size=100))
def test_an_offer_and_a_push_read_back(transfer: int, number: int, secret: bytes, frame: bytes) -> None:
    packet = wire.pack_offer(transfer, number, secret, frame)
    assert wire.unpack_offer(payload_of(packet, wire.Tag.OFFER)) == (transfer, number, secret, frame)
    packet = wire.pack_push(transfer, number, secret)
    assert wire.unpack_push(payload_of(packet, wire.Tag.PUSH)) == (transfer, number, secret)
    packet = wire.pack_transfer(wire.Tag.RELEASE, transfer)
    assert wire.unpack_transfer(payload_of(packet, wire.Tag.RELEASE)) == transfer
    packet = wire.pack_gone(transfer, wire.Gone.UNREACHABLE)
    assert wire.unpack_gone(payload_of(packet, wire.Tag.GONE)) == (transfer, wire.Gone.UNREACHABLE)


@pytest.mark.slow
@pytest.mark.parametrize(
    "unpack",
    [
        wire.unpack,
        wire.unpack_hello,
        wire.unpack_inline,
        wire.unpack_offer,
        wire.unpack_transfer,
        wire.unpack_push,
        wire.unpack_gone,
    ],
)
@given(data=st.binary(max_size=300))
@example(data=b"")
@example(data=b"\xc1" * 20)
@example(data=b"\x81" * 299)
def test_any_bytes_are_a_value_or_a_remote_error(unpack: Callable[[bytes], Any], data: bytes) -> None:
    with contextlib.suppress(RemoteError):
        unpack(data)


@given(HELLOS, st.integers(0, 400), st.integers(0, 255))
def test_a_mutated_hello_is_a_value_or_a_remote_error(hello: wire.Hello, place: int, value: int) -> None:
    data = bytearray(payload_of(wire.pack_hello(hello), wire.Tag.HELLO))
    data[place % len(data)] = value
    with contextlib.suppress(RemoteError):
        wire.unpack_hello(bytes(data))


@pytest.mark.parametrize(
    ("key", "value", "complaint"),
    [
        (0, 2, "transport version 2"),
        (1, b"short", "5 bytes, expected 16"),
        (3, [bytes(16)] * 5, "array of at most 4"),
        (4, bytes(2049), "at most 2048"),
        (5, ["no port"], "not host:port"),
        (5, ["host:0"], "not host:port"),
        (5, ["host:99999"], "not host:port"),
        (5, ["two words:1"], "not host:port"),
        (5, ["h:1"] * 9, "array of at most 8"),
    ],
)
def test_a_hello_out_of_bounds_says_what(key: int, value: object, complaint: str) -> None:
    fields: dict[int, object] = {0: 1, 1: bytes(16), 2: bytes(16), 3: [], 4: b"", 5: []}
    with pytest.raises(RemoteError, match=complaint):
        wire.unpack_hello(encoding.pack({**fields, key: value}))
