import contextlib
import tracemalloc
from collections.abc import Callable

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pfl.errors import LocalError, RemoteError
from p2pfl.net import wire


def read(data: bytes, keys: range = range(1, 3), limit: int = 60_000) -> dict[int, object]:
    return wire.unpack(data, "document", keys=keys, limit=limit)


def test_what_is_packed_is_unpacked_with_keys_in_rising_order() -> None:
    data = wire.pack({2: [1, -1, 2.5, True, "é", b"\0"], 1: {5: "x"}})
    assert read(data) == {1: {5: "x"}, 2: [1, -1, 2.5, True, "é", b"\0"]}
    assert wire.pack({1: 1, 2: 2}) == wire.pack({2: 2, 1: 1}) == bytes.fromhex("8201010202")


def test_numpy_integers_travel_as_integers_and_other_objects_do_not_travel() -> None:
    assert wire.pack({1: np.int64(7)}) == wire.pack({1: 7})
    for value in (object(), np.float32(1), {1, 2}, 2**64):
        with pytest.raises(LocalError, match="cannot be sent"):
            wire.pack({1: value})


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"", "incomplete"),
        (bytes.fromhex("8201010102"), "rising"),  # key 1 twice
        (bytes.fromhex("8202020101"), "rising"),  # falling
        (bytes.fromhex("82a1610102 02".replace(" ", "")), "rising"),  # a text key
        (bytes.fromhex("82c20102 02".replace(" ", "")), "rising"),  # false is no key
        (bytes.fromhex("810101"), "misses"),
        (bytes.fromhex("83010102020303"), "misses"),
        (bytes.fromhex("8201010202ff"), "extra data"),
        (bytes.fromhex("820101"), "incomplete"),
        (bytes.fromhex("8201d4050002c0"), "ext"),
        (bytes.fromhex("8201c7000502c0"), "extension type 5"),
        (bytes.fromhex("8201d6ff0000000002c0"), "ext"),  # a timestamp
        (bytes.fromhex("8201a1ff0202"), "utf-8"),
        (bytes.fromhex("92 0101".replace(" ", "")), "not a map"),
        (bytes.fromhex("8201ddffffffff02c0"), "max_array_len"),
        (bytes.fromhex("dfffffffff"), "max_map_len"),
        (bytes.fromhex("8201c6ffffffff"), "incomplete"),
        (b"\x91" * 5000, "not MessagePack"),
        (msgpack.packb({1: [[[[1]]]], 2: 0}), "deeper"),
    ],
)
def test_what_is_outside_the_subset_is_a_remote_error(data: bytes, complaint: str) -> None:
    with pytest.raises(RemoteError, match=complaint):
        read(data)


def test_four_levels_are_allowed_and_five_are_not() -> None:
    assert read(msgpack.packb({1: [[[1]]], 2: {1: {1: 1}}}))
    with pytest.raises(RemoteError, match="deeper"):
        read(msgpack.packb({1: 1, 2: {1: {1: {1: {}}}}}))


def test_a_document_longer_than_its_limit_is_not_parsed() -> None:
    assert read(wire.pack({1: b"x" * 10, 2: 0}), limit=20)
    with pytest.raises(RemoteError, match="the limit is 20"):
        read(wire.pack({1: b"x" * 20, 2: 0}), limit=20)


@pytest.mark.parametrize("declared", [b"\xdd\x00\x00\xff\xff", b"\xdc\x01\x00", b"\xdf\x00\x00\x01\x00"])
def test_a_nesting_bomb_takes_no_more_than_a_few_megabytes(declared: bytes) -> None:
    bomb = declared * (60_000 // len(declared))
    tracemalloc.start()
    try:
        with pytest.raises(RemoteError):
            read(bomb)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 4 * 1024 * 1024


@given(st.binary(max_size=200))
def test_any_bytes_give_a_document_or_a_remote_error(data: bytes) -> None:
    try:
        document = read(data)
    except RemoteError:
        return
    assert set(document) == {1, 2}


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.integers(-3, 9) | st.text(max_size=2), inner),
    max_leaves=8,
)


@given(_VALUES)
def test_field_checks_give_their_type_or_a_remote_error(value: object) -> None:
    checks: list[tuple[Callable[[], object], type]] = [
        (lambda: wire.integer(value, "x", most=9), int),
        (lambda: wire.number(value, "x"), float),
        (lambda: wire.flag(value, "x"), bool),
        (lambda: wire.text(value, "x", most_bytes=9), str),
        (lambda: wire.word(value, "x", most_bytes=9), str),
        (lambda: wire.blob(value, "x", most_bytes=9), bytes),
        (lambda: wire.digest(value, "x"), bytes),
        (lambda: wire.items(value, "x", most=2), list),
    ]
    for check, kind in checks:
        with contextlib.suppress(RemoteError):
            assert type(check()) is kind


def test_limits_of_fields_hold_on_both_sides() -> None:
    assert wire.integer(9, "x", most=9) == 9
    assert wire.text("éé", "x", most_bytes=4) == "éé"
    assert wire.word("not-accepted", "x", most_bytes=12) == "not-accepted"
    for check in (
        lambda: wire.integer(10, "x", most=9),
        lambda: wire.integer(-1, "x", most=9),
        lambda: wire.integer(True, "x", most=9),
        lambda: wire.text("ééé", "x", most_bytes=4),
        lambda: wire.word("", "x", most_bytes=12),
        lambda: wire.word("Line\nbreak", "x", most_bytes=12),
        lambda: wire.number(1, "x"),
        lambda: wire.number(float("nan"), "x"),
        lambda: wire.digest(b"", "x", may_be_empty=False),
        lambda: wire.digest(bytes(31), "x"),
        lambda: wire.items([1, 2, 3], "x", most=2),
    ):
        with pytest.raises(RemoteError):
            check()
    assert np.isnan(wire.number(float("nan"), "x", is_finite=False))
