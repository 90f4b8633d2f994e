"""Where members can be dialled: signed address records, what is kept of them, and when to try again.

A node signs one record of its own addresses, and members pass records on (peer exchange).  Of each member the
newest record is kept, and nothing is kept of anybody else; so a stranger cannot fill the book, and nobody can
move another's address.  A bootstrap entry of node.toml or of a ticket is an address that names its peer.

Source: the record is libp2p's signed peer record (RFC 0003) with a time in place of its sequence number, so
that a node restored from a backup still supersedes itself.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np

from p2pfl import encoding
from p2pfl.errors import ConfigError, LocalError, RemoteError, StoreError
from p2pfl.ids import PeerId, parse_peer_id

__all__ = [
    "ADDRESS_DOMAIN",
    "MAX_ADDRESSES",
    "MAX_ADDRESS_BYTES",
    "MAX_RECORD_BYTES",
    "MAX_RECORDS",
    "FUTURE_S",
    "FIRST_RETRY_S",
    "LAST_RETRY_S",
    "check_address",
    "parse_bootstrap",
    "AddressRecord",
    "sign_record",
    "encode_record",
    "decode_record",
    "AddressBook",
    "merge",
    "prune",
    "addresses_of",
    "book_to_bytes",
    "book_from_bytes",
    "retry_delay_s",
]

# What a record is signed under; no other domain begins like it.
ADDRESS_DOMAIN = b"p2pfl-address/1"
# A site has a few interfaces and a public name; dialling more would take longer than a round.
MAX_ADDRESSES = 8
# /dns4/ with a name of 60 characters, a port and /p2p/ID has 128.
MAX_ADDRESS_BYTES = 128
# Eight addresses, a key, a time and a signature have 1,160.
MAX_RECORD_BYTES = 1280
# As many as a run may have members (trust/).
MAX_RECORDS = 4096
# A record from further ahead than a wrong time zone can explain is refused: its owner could not supersede it.
FUTURE_S = 86_400.0
# The first pause before dialling again, and the longest: a restarted node is back within seconds, and one
# dial a minute to a site that is down for a week costs nothing (libp2p's autorelay pauses likewise).
FIRST_RETRY_S = 1.0
LAST_RETRY_S = 60.0

_ADDRESS = re.compile(r"/(ip4|ip6|dns|dns4|dns6)/([^/]+)/tcp/([0-9]{1,5})(?:/p2p/([^/]+))?", re.ASCII)
_NAME = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)(\.(?!-)[A-Za-z0-9_-]{1,63}(?<!-))*\.?", re.ASCII)
_LENGTH_BYTES = 2
# Ed25519, RFC 8032.
_SIGNATURE_BYTES = 64


def check_address(text: str) -> str:
    """`text`, when it is /ip4|ip6|dns|dns4|dns6/HOST/tcp/PORT with or without /p2p/ID.  Raises ConfigError.

    Nothing is looked up.   PORT: 1..65535.

    >>> check_address("/dns4/st-marys.example/tcp/4911")
    '/dns4/st-marys.example/tcp/4911'
    """
    if len(text.encode(errors="replace")) > MAX_ADDRESS_BYTES:
        raise ConfigError(
            f"an address of {len(text.encode(errors='replace'))} bytes, the limit is {MAX_ADDRESS_BYTES}"
        )
    match = _ADDRESS.fullmatch(text)
    if match is None:
        raise ConfigError(
            f"not an address: {text!r}; it looks like /ip4/192.0.2.7/tcp/4911 or /dns4/NAME/tcp/4911"
        )
    kind, host, port, peer = match.groups()
    if not 0 < int(port) < 65536:
        raise ConfigError(f"port {port} of {text!r} is not in 1..65535")
    if kind.startswith("dns"):
        if not _NAME.fullmatch(host):
            raise ConfigError(f"{host!r} in {text!r} is not a host name")
    else:
        try:
            (ipaddress.IPv4Address if kind == "ip4" else ipaddress.IPv6Address)(host)
        except ValueError as error:
            raise ConfigError(f"{host!r} in {text!r} is not an {kind} address") from error
    if peer is not None:
        parse_peer_id(peer)
    return text


def parse_bootstrap(text: str) -> tuple[PeerId, str]:
    """(peer, address) of a bootstrap entry, an address that ends in /p2p/ID.  Raises ConfigError."""
    address = check_address(text.strip())
    _, separator, peer = address.rpartition("/p2p/")
    if not separator:
        raise ConfigError(f"{address!r} does not say whom to expect there; add /p2p/ and the peer's id")
    return parse_peer_id(peer), address


@dataclass(frozen=True, slots=True, kw_only=True)
class AddressRecord:
    """Where `peer` says that it can be dialled, and the bytes it signed to say so.

    issued_at: seconds since 1970 by its own clock.   Whether the signature holds is `merge`'s question.
    """

    peer: PeerId
    addresses: tuple[str, ...]
    issued_at: float
    content: bytes = field(repr=False)
    signature: bytes = field(repr=False)


def sign_record(
    peer: PeerId, addresses: tuple[str, ...], issued_at: float, sign: Callable[[bytes], bytes]
) -> AddressRecord:
    """A record of our own addresses.   sign: the signature of exactly the bytes it is given.

    Raises LocalError or ConfigError when there are too many addresses or one cannot be dialled.
    """
    if len(addresses) > MAX_ADDRESSES:
        raise LocalError(f"{len(addresses)} addresses, a record has at most {MAX_ADDRESSES}")
    for address in addresses:
        check_address(address)
    content = encoding.pack({1: encoding.key_of(peer), 2: list(addresses), 3: float(issued_at)})
    try:
        return _record(content, sign(ADDRESS_DOMAIN + content))
    except RemoteError as error:
        raise LocalError(f"this address record would be refused: {error}") from error


def encode_record(record: AddressRecord) -> bytes:
    """`record` as it travels."""
    return encoding.pack({1: record.content, 2: record.signature})


def decode_record(data: bytes) -> AddressRecord:
    """The record in `data`, every field checked, its signature not.  Raises RemoteError."""
    document = encoding.unpack(data, "address record", keys=(1, 2), limit=MAX_RECORD_BYTES)
    content = encoding.blob(document[1], "address record content", most_bytes=MAX_RECORD_BYTES)
    return _record(content, document[2])


@dataclass(frozen=True, slots=True, kw_only=True)
class AddressBook:
    """The newest verified record of each member."""

    records: Mapping[PeerId, AddressRecord] = field(default_factory=lambda: MappingProxyType({}))


def merge(
    book: AddressBook,
    records: Iterable[AddressRecord],
    *,
    members: Collection[PeerId],
    verify: Callable[[PeerId, bytes, bytes], bool],
    now: float,
) -> tuple[AddressBook, bool]:
    """(`book` with what is new in `records`, whether anything was): any order gives the same book.

    verify: whether a signature by a peer over exactly these bytes is good.   now: seconds since 1970.
    Records of peers that are not members, from more than FUTURE_S ahead, or badly signed are passed over, as
    are those beyond MAX_RECORDS peers.  Signatures are checked last, and only of records that would be kept.
    """
    kept = dict(book.records)
    changed = False
    for record in records:
        known = kept.get(record.peer)
        is_wanted = (
            record.peer in members
            and record.issued_at <= now + FUTURE_S
            and (known is None or _age(known) < _age(record))
            and (known is not None or len(kept) < MAX_RECORDS)
        )
        if is_wanted and verify(record.peer, ADDRESS_DOMAIN + record.content, record.signature):
            kept[record.peer] = record
            changed = True
    return (AddressBook(records=MappingProxyType(kept)), True) if changed else (book, False)


def prune(book: AddressBook, members: Collection[PeerId]) -> AddressBook:
    """`book` without the records of those who are no longer members."""
    if all(peer in members for peer in book.records):
        return book
    kept = {peer: record for peer, record in book.records.items() if peer in members}
    return AddressBook(records=MappingProxyType(kept))


def addresses_of(book: AddressBook, peer: PeerId) -> tuple[str, ...]:
    """Where `peer` can be dialled, in its own order of preference; empty when that is not known."""
    record = book.records.get(peer)
    return record.addresses if record else ()


def book_to_bytes(book: AddressBook) -> bytes:
    """`book` for the disk: its records in PeerId order, each behind its length (u16, big-endian)."""
    encoded = (encode_record(book.records[peer]) for peer in sorted(book.records))
    return b"".join(len(data).to_bytes(_LENGTH_BYTES, "big") + data for data in encoded)


def book_from_bytes(data: bytes) -> AddressBook:
    """The book in `data`, from our own disk, so its signatures were checked.  Raises StoreError."""
    records: dict[PeerId, AddressRecord] = {}
    start = 0
    while start < len(data):
        begin = start + _LENGTH_BYTES
        end = begin + int.from_bytes(data[start:begin], "big")
        if end > len(data) or len(records) >= MAX_RECORDS:
            raise StoreError("the address book on disk is cut short or too long; it can be deleted safely")
        try:
            record = decode_record(data[begin:end])
        except RemoteError as error:
            raise StoreError(
                f"the address book on disk is damaged: {error}; it can be deleted safely"
            ) from error
        records[record.peer] = record
        start = end
    return AddressBook(records=MappingProxyType(records))


def retry_delay_s(attempt: int, rng: np.random.Generator) -> float:
    """Seconds to wait after the dial numbered `attempt` (0, 1, ...) failed: doubling, then level.

    Half of it is random, so that nodes that lost the same peer at once do not all come back at once.
    Source: "equal jitter", Brooker 2015, Exponential Backoff and Jitter (AWS Architecture Blog).
    """
    longest = min(LAST_RETRY_S, FIRST_RETRY_S * 2.0 ** min(max(attempt, 0), 32))
    return float(longest * (0.5 + 0.5 * rng.random()))


def _record(content: bytes, signature: object) -> AddressRecord:
    document = encoding.unpack(content, "address record", keys=(1, 2, 3), limit=MAX_RECORD_BYTES)
    peer = encoding.peer(document[1], "the peer of an address record")
    signed = encoding.exact(signature, "the signature of an address record", size_bytes=_SIGNATURE_BYTES)
    addresses = []
    for entry in encoding.items(document[2], "addresses", most=MAX_ADDRESSES):
        address = encoding.text(entry, "address", most_bytes=MAX_ADDRESS_BYTES)
        try:
            check_address(address)
        except ConfigError as error:
            raise RemoteError(str(error), peer) from error
        if "/p2p/" in address and not address.endswith(f"/p2p/{peer}"):
            raise RemoteError(f"a record names another peer than its own in {address!r}", peer)
        addresses.append(address)
    issued_at = encoding.number(document[3], "issued at")
    return AddressRecord(
        peer=peer, addresses=tuple(addresses), issued_at=issued_at, content=content, signature=signed
    )


def _age(record: AddressRecord) -> tuple[float, bytes]:
    """Orders records of one peer, oldest first; equal times by content, so that all keep the same one."""
    return record.issued_at, record.content
