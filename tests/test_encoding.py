import contextlib
import tracemalloc
from collections.abc import Callable

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pfl import encoding
from p2pfl.errors import LocalError, RemoteError
from p2pfl.ids import PeerId, RunId, peer_id_of


def read(data: bytes, keys: range = range(1, 3), limit: int = 60_000) -> dict[int, object]:
    return encoding.unpack(data, "document", keys=keys, limit=limit)


def test_what_is_packed_is_unpacked_with_keys_in_rising_order() -> None:
    document = {2: [1, -1, 2.5, True, "é", b"\0"], 1: {5: "x"}}
    assert read(encoding.pack(document)) == document
    assert list(read(encoding.pack(document))) == [1, 2]
    assert encoding.pack({1: 1, 2: 2}) == encoding.pack({2: 2, 1: 1}) == bytes.fromhex("8201010202")
    assert encoding.pack({2: b"x", 1: 7}) == bytes.fromhex("82010702c40178")


def test_numpy_integers_travel_as_integers_and_other_objects_do_not_travel() -> None:
    assert encoding.pack({1: np.int64(7)}) == encoding.pack({1: 7})
    for value in (object(), np.float32(1), {1, 2}, 2**64, "\ud800"):
        with pytest.raises(LocalError, match="cannot be sent"):
            encoding.pack({1: value})


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"", "incomplete"),
        (bytes.fromhex("8201010102"), "rising"),  # key 1 twice
        (bytes.fromhex("8202020101"), "rising"),  # falling
        (bytes.fromhex("82a161010202"), "rising"),  # a text key beside an integer
        (bytes.fromhex("82a16101a16202"), "keys"),  # text keys where integers belong
        (bytes.fromhex("82c2010202"), "rising"),  # false is no key
        (bytes.fromhex("82c3010202"), "rising"),  # nor is true, which equals 1
        (bytes.fromhex("82cb3ff0000000000000010202"), "rising"),  # nor 1.0, which does, too
        (bytes.fromhex("8290010202"), "rising"),  # nor an array
        (bytes.fromhex("8201820101010202c0"), "rising"),  # an inner key twice
        (bytes.fromhex("820182a16201a161010202"), "rising"),  # inner texts, falling
        (bytes.fromhex("820181ff010202"), "rising"),  # an inner key below zero
        (bytes.fromhex("810101"), "misses"),
        (bytes.fromhex("83010102020303"), "misses"),
        (bytes.fromhex("8201010202ff"), "extra data"),
        (bytes.fromhex("820101"), "incomplete"),
        (bytes.fromhex("820101029101c0"), "extra data"),
        (bytes.fromhex("8201d4050002c0"), "ext"),
        (bytes.fromhex("8201c7000502c0"), "extension type 5"),
        (bytes.fromhex("8201d6ff0000000002c0"), "ext"),  # a timestamp
        (bytes.fromhex("8201a1ff0202"), "utf-8"),
        (bytes.fromhex("920101"), "not a map"),
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


@pytest.mark.parametrize(
    "padded",
    [
        "8201cc070202",  # 7 in two bytes
        "8201d300000000000000070202",  # 7 as a signed integer of eight
        "8201d0ff0202",  # -1 in two
        "8201ca3f8000000202",  # 1.0 as a float32
        "8201d901780202",  # a text behind a length of one byte
        "8201c50001780202",  # binary behind a length of two
        "8201dc0001010202",  # an array, likewise
        "8201de000101010202",  # a map, likewise
        "de000201010202",  # the document itself
    ],
)
def test_a_second_spelling_of_a_document_is_refused(padded: str) -> None:
    with pytest.raises(RemoteError, match="canonical"):
        read(bytes.fromhex(padded))


def test_maps_inside_have_integers_or_texts_for_keys() -> None:
    document = {1: {"a": 1, "b": 2, "é": 3}, 2: {0: 1, 9: {}}}
    assert read(encoding.pack(document)) == document


def test_four_levels_are_allowed_and_five_are_not() -> None:
    assert read(msgpack.packb({1: [[[1]]], 2: {1: {1: 1}}}))
    with pytest.raises(RemoteError, match="deeper"):
        read(msgpack.packb({1: 1, 2: {1: {1: {1: {}}}}}))


def test_a_document_longer_than_its_limit_is_not_parsed() -> None:
    assert read(encoding.pack({1: b"x" * 10, 2: 0}), limit=20)
    with pytest.raises(RemoteError, match="the limit is 20"):
        read(encoding.pack({1: b"x" * 20, 2: 0}), limit=20)


def test_a_list_longer_than_usual_is_read_where_it_is_expected() -> None:
    data = encoding.pack({1: [0] * (encoding.MAX_ITEMS + 1)})
    with pytest.raises(RemoteError, match="max_array_len"):
        read(data, keys=range(1, 2))
    found = encoding.unpack(data, "document", keys=(1,), limit=999, max_items=encoding.MAX_ITEMS + 1)
    assert len(found[1]) == encoding.MAX_ITEMS + 1


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


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.integers(-3, 9) | st.text(max_size=2), inner),
    max_leaves=8,
)


@given(st.binary(max_size=200) | st.builds(lambda a, b: msgpack.packb({1: a, 2: b}), _VALUES, _VALUES))
def test_any_bytes_give_a_document_of_just_these_bytes_or_a_remote_error(data: bytes) -> None:
    try:
        document = read(data)
    except RemoteError:
        return
    assert set(document) == {1, 2}
    assert encoding.pack(document) == data
    assert encoding.pack(encoding.unpack(memoryview(data), "document", keys=(1, 2), limit=200)) == data


@given(_VALUES)
def test_field_checks_give_their_type_or_a_remote_error(value: object) -> None:
    checks: list[tuple[Callable[[], object], type]] = [
        (lambda: encoding.integer(value, "x", most=9), int),
        (lambda: encoding.number(value, "x"), float),
        (lambda: encoding.number(value, "x", least=0.0), float),
        (lambda: encoding.flag(value, "x"), bool),
        (lambda: encoding.text(value, "x", most_bytes=9), str),
        (lambda: encoding.printable(value, "x", most_bytes=9), str),
        (lambda: encoding.word(value, "x", most_bytes=9), str),
        (lambda: encoding.blob(value, "x", most_bytes=9), bytes),
        (lambda: encoding.exact(value, "x", size_bytes=1), bytes),
        (lambda: encoding.digest(value, "x", may_be_empty=True), bytes),
        (lambda: encoding.items(value, "x", most=2), list),
        (lambda: encoding.rows(value, "x", size_bytes=2, most=2), list),
        (lambda: encoding.peer(value, "x"), str),
        (lambda: encoding.run(value, "x"), str),
    ]
    for check, kind in checks:
        with contextlib.suppress(RemoteError):
            assert type(check()) is kind


def test_limits_of_fields_hold_on_both_sides() -> None:
    assert encoding.integer(9, "x", most=9) == 9
    assert encoding.number(0.0, "x", least=0.0) == 0.0
    assert encoding.text("éé", "x", most_bytes=4) == "éé"
    assert encoding.printable("éé", "x", most_bytes=4) == "éé"
    assert encoding.word("not-accepted", "x", most_bytes=12) == "not-accepted"
    assert encoding.blob(b"ab", "x", least_bytes=2, most_bytes=2) == b"ab"
    assert encoding.digest(b"", "x", may_be_empty=True) == b""
    assert encoding.items([1, 2], "x", least=2, most=2) == [1, 2]
    assert encoding.rows(b"abcd", "x", size_bytes=2, most=2) == [b"ab", b"cd"]
    for check in (
        lambda: encoding.integer(10, "x", most=9),
        lambda: encoding.integer(-1, "x", most=9),
        lambda: encoding.integer(True, "x", most=9),
        lambda: encoding.number(1, "x"),
        lambda: encoding.number(float("nan"), "x"),
        lambda: encoding.number(float("inf"), "x", least=0.0),
        lambda: encoding.number(-0.5, "x", least=0.0),
        lambda: encoding.text("ééé", "x", most_bytes=4),
        lambda: encoding.printable("a\x1b[2J", "x", most_bytes=12),
        lambda: encoding.printable("\udcff", "x", most_bytes=12),
        lambda: encoding.word("", "x", most_bytes=12),
        lambda: encoding.word("Line\nbreak", "x", most_bytes=12),
        lambda: encoding.blob(b"a", "x", least_bytes=2, most_bytes=4),
        lambda: encoding.blob(b"abcde", "x", least_bytes=2, most_bytes=4),
        lambda: encoding.exact(b"abc", "x", size_bytes=2),
        lambda: encoding.digest(b"", "x"),
        lambda: encoding.digest(bytes(31), "x", may_be_empty=True),
        lambda: encoding.items([1, 2, 3], "x", most=2),
        lambda: encoding.items([], "x", least=1, most=2),
        lambda: encoding.rows(b"abc", "x", size_bytes=2, most=2),
        lambda: encoding.rows(b"abcdef", "x", size_bytes=2, most=2),
        lambda: encoding.peer(bytes(31), "x"),
        lambda: encoding.run(bytes(33), "x"),
    ):
        with pytest.raises(RemoteError, match=r"^x "):
            check()
    assert np.isnan(encoding.number(float("nan"), "x", is_finite=False))


def test_peers_and_runs_are_named_by_their_bytes() -> None:
    key, digest = bytes(range(32)), bytes(range(32, 64))
    assert encoding.peer(key, "x") == peer_id_of(key)
    assert encoding.key_of(peer_id_of(key)) == key
    assert encoding.run(digest, "x") == digest.hex()
    assert encoding.hash_of(RunId(digest.hex())) == digest
    with pytest.raises(LocalError, match="no peer"):
        encoding.key_of(PeerId("nobody"))
    with pytest.raises(LocalError, match="no run"):
        encoding.hash_of(RunId("no run"))
