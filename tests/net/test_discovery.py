import itertools
from dataclasses import replace

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pfl.errors import ConfigError, LocalError, RemoteError, StoreError
from p2pfl.ids import PeerId
from p2pfl.net import discovery
from p2pfl.net.discovery import (
    AddressBook,
    AddressRecord,
    addresses_of,
    book_from_bytes,
    book_to_bytes,
    check_address,
    decode_record,
    encode_record,
    merge,
    parse_bootstrap,
    prune,
    retry_delay_s,
    sign_record,
)
from p2pfl.trust.identity import Identity, verify

NOW = 1_790_000_000.0
PEERS = [Identity(bytes([n]) * 32) for n in range(1, 5)]
MEMBERS = {peer.peer_id for peer in PEERS}


def good(peer: PeerId, data: bytes, signature: bytes) -> bool:
    return verify(peer, b"", data, signature)


def record(peer: Identity, issued_at: float = NOW, port: int = 4911) -> AddressRecord:
    where = (f"/ip4/192.0.2.1/tcp/{port}", f"/dns4/a.example/tcp/{port}/p2p/{peer.peer_id}")
    return sign_record(peer.peer_id, where, issued_at, lambda data: peer.sign(b"", data))


def merged(*records: AddressRecord, members: set[PeerId] = MEMBERS) -> AddressBook:
    return merge(AddressBook(), records, members=members, verify=good, now=NOW)[0]


@pytest.mark.parametrize(
    "text",
    [
        "/ip4/127.0.0.1/tcp/1",
        "/ip6/2001:db8::7/tcp/65535",
        "/dns/localhost/tcp/80",
        "/dns4/st-marys.example/tcp/4911",
        f"/dns6/x.example./tcp/4911/p2p/{PEERS[0].peer_id}",
    ],
)
def test_addresses_that_can_be_dialled(text: str) -> None:
    assert check_address(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "192.0.2.1:80",
        "/ip4/192.0.2.1/tcp/0",
        "/ip4/192.0.2.1/tcp/65536",
        "/ip4/192.0.2.1/tcp/٣",
        "/ip4/192.0.2.256/tcp/1",
        "/ip4/::1/tcp/1",
        "/ip6/127.0.0.1/tcp/1",
        "/ip4/192.0.2.1/udp/1/quic-v1",
        "/ip4/192.0.2.1/tcp/1/p2p/12D3",
        "/ip4/192.0.2.1/tcp/1/p2p/",
        "/ip4/192.0.2.1/tcp/1/",
        "/dns4/-x/tcp/1",
        "/dns4/a b/tcp/1",
        "/dns4/a..b/tcp/1",
        "/ip4/192.0.2.1/tcp/1\n",
        "/dns4/" + "x" * 120 + "/tcp/1",
        "/unix/tmp/x",
    ],
)
def test_addresses_that_cannot_be_dialled_are_config_errors(text: str) -> None:
    with pytest.raises(ConfigError):
        check_address(text)


def test_a_bootstrap_entry_names_its_peer() -> None:
    text = f"/ip4/192.0.2.1/tcp/4911/p2p/{PEERS[0].peer_id}"
    assert parse_bootstrap(f" {text}\n") == (PEERS[0].peer_id, text)
    with pytest.raises(ConfigError, match="add /p2p/"):
        parse_bootstrap("/ip4/192.0.2.1/tcp/4911")


def test_a_record_comes_back_as_it_was_and_verifies() -> None:
    sent = record(PEERS[0])
    got = decode_record(encode_record(sent))
    assert got == sent
    assert good(got.peer, discovery.ADDRESS_DOMAIN + got.content, got.signature)


def test_the_largest_record_fits() -> None:
    host = "x" * 60
    address = f"/dns4/{host[:46]}/tcp/65535/p2p/{PEERS[0].peer_id}"
    assert len(address) <= discovery.MAX_ADDRESS_BYTES
    padded = address.replace(host[:46], "x" * (46 + discovery.MAX_ADDRESS_BYTES - len(address)))
    largest = sign_record(
        PEERS[0].peer_id, (padded,) * discovery.MAX_ADDRESSES, NOW, lambda data: PEERS[0].sign(b"", data)
    )
    assert len(encode_record(largest)) <= discovery.MAX_RECORD_BYTES


def test_records_beyond_the_limits_are_not_signed() -> None:
    def sign(data: bytes) -> bytes:
        return PEERS[0].sign(b"", data)

    me = PEERS[0].peer_id
    with pytest.raises(LocalError, match="at most 8"):
        sign_record(me, ("/ip4/192.0.2.1/tcp/1",) * 9, NOW, sign)
    with pytest.raises(ConfigError):
        sign_record(me, ("/ip4/0.0.0.0/tcp/0",), NOW, sign)
    with pytest.raises(LocalError, match="another peer"):
        sign_record(me, (f"/ip4/192.0.2.1/tcp/1/p2p/{PEERS[1].peer_id}",), NOW, sign)
    with pytest.raises(LocalError):
        sign_record(me, (), float("nan"), sign)


def test_the_newest_record_of_each_member_is_kept() -> None:
    book = merged(
        record(PEERS[0], NOW, 1), record(PEERS[1]), record(PEERS[0], NOW + 1, 2), record(PEERS[0], NOW - 1, 3)
    )
    assert addresses_of(book, PEERS[0].peer_id)[0] == "/ip4/192.0.2.1/tcp/2"
    assert set(book.records) == {PEERS[0].peer_id, PEERS[1].peer_id}
    assert addresses_of(book, PEERS[2].peer_id) == ()
    again, changed = merge(book, book.records.values(), members=MEMBERS, verify=good, now=NOW)
    assert again is book
    assert not changed


@given(
    st.permutations(
        [record(peer, NOW + age, port) for peer in PEERS[:2] for age in (0, 1) for port in (1, 2)]
    )
)
@settings(max_examples=40)
def test_records_give_the_same_book_in_any_order(records: list[AddressRecord]) -> None:
    reference = merged(*(record(peer, NOW + 1, port) for peer in PEERS[:2] for port in (1, 2)))
    assert merged(*records) == reference


def test_strangers_forgers_and_the_far_future_are_passed_over() -> None:
    stranger = record(PEERS[3])
    forged = replace(record(PEERS[0]), signature=bytes(64))
    moved = replace(record(PEERS[0]), peer=PEERS[1].peer_id)
    future = record(PEERS[2], NOW + discovery.FUTURE_S + 1)
    book = merged(stranger, forged, moved, future, members=MEMBERS - {PEERS[3].peer_id})
    assert book.records == {}


def test_a_forged_record_does_not_displace_a_good_one() -> None:
    forged = replace(record(PEERS[0], NOW + 5, 9), signature=bytes(64))
    assert addresses_of(merged(record(PEERS[0]), forged), PEERS[0].peer_id)[0].endswith("4911")


def test_signatures_of_old_records_are_not_even_checked() -> None:
    def explode(*_: object) -> bool:
        raise AssertionError

    book = merged(record(PEERS[0]))
    merge(book, [record(PEERS[0]), record(PEERS[0], NOW - 1)], members=MEMBERS, verify=explode, now=NOW)


def test_a_full_book_takes_no_further_peers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discovery, "MAX_RECORDS", 2)
    book = merged(*map(record, PEERS))
    assert len(book.records) == 2
    newer = record(PEERS[0], NOW + 1, 7)
    book, changed = merge(book, [newer], members=MEMBERS, verify=good, now=NOW)
    assert changed
    assert book.records[PEERS[0].peer_id] == newer


def test_who_leaves_is_pruned() -> None:
    book = merged(*map(record, PEERS))
    assert prune(book, MEMBERS) is book
    assert set(prune(book, {PEERS[1].peer_id}).records) == {PEERS[1].peer_id}


def test_a_book_survives_the_disk() -> None:
    book = merged(*map(record, PEERS))
    assert book_from_bytes(book_to_bytes(book)) == book
    assert book_from_bytes(b"") == AddressBook()
    for damaged in (book_to_bytes(book)[:-1], b"\0", b"\0\1x"):
        with pytest.raises(StoreError, match="deleted safely"):
            book_from_bytes(damaged)


@given(st.binary(max_size=300))
def test_any_bytes_are_a_record_or_a_remote_error(data: bytes) -> None:
    with pytest.raises(RemoteError):
        decode_record(data)


_JUNK = st.integers(-1, 2**64 - 1) | st.text() | st.binary() | st.lists(st.text(), max_size=9) | st.floats()


@given(_JUNK, _JUNK, _JUNK, st.booleans())
def test_any_fields_are_a_record_or_a_remote_error(
    key: object, where: object, when: object, keyed: bool
) -> None:
    content = msgpack.packb({1: bytes(32) if keyed else key, 2: where, 3: when})
    try:
        decode_record(msgpack.packb({1: content, 2: bytes(64)}))
    except RemoteError:
        return


@given(st.binary(max_size=300))
def test_any_bytes_are_a_book_or_a_store_error(data: bytes) -> None:
    try:
        book_from_bytes(data)
    except StoreError:
        return


@given(st.text())
def test_any_text_is_an_address_or_a_config_error(text: str) -> None:
    with pytest.raises(ConfigError):
        check_address(text)


def test_pauses_double_and_then_stay() -> None:
    rng = np.random.default_rng(1)
    for attempt, longest in [*enumerate((1, 2, 4, 8, 16, 32, 60, 60)), (10**9, 60)]:
        pauses = [retry_delay_s(attempt, rng) for _ in range(50)]
        assert longest / 2 <= min(pauses) <= max(pauses) < longest
    assert len({retry_delay_s(3, rng) for _ in itertools.repeat(None, 9)}) == 9
