"""What two transports say to each other on a control stream, below the node's own messages.

Every packet is a big-endian u32 length, a tag byte, and a payload; the length counts the tag and the payload
and is checked before they are read.  Numbers in payloads are big-endian too.

    HELLO    a MessagePack document, see `Hello`
    FRAME    a frame of the node
    INLINE   u32 frame length | frame | body          an offer that carries its body
    OFFER    u64 transfer | u64 size | secret (32) | frame
    RELEASE  u64 transfer                             the receiver has it, or does not want it
    PUSH     u64 transfer | u64 offset | token (32)   dial me and send the rest
    GONE     u64 transfer | u8 reason                 answer to a PUSH that cannot be: see `Gone`
    PING     nothing; answered by PONG, so that a silent peer is told from an idle one
    REFUSED  one word in ASCII; the sender closes
"""

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from p2pfl import encoding
from p2pfl.errors import RemoteError
from p2pfl.net.framing import with_length
from p2pfl.net.transport import MAX_FRAME_BYTES

__all__ = [
    "CONTROL_PROTOCOL",
    "JOIN_PROTOCOL",
    "BODY_PROTOCOL",
    "MAX_PACKET_BYTES",
    "MAX_HELLO_BYTES",
    "Tag",
    "Gone",
    "Hello",
    "pack",
    "unpack",
    "pack_hello",
    "unpack_hello",
    "pack_inline",
    "unpack_inline",
    "pack_offer",
    "unpack_offer",
    "pack_transfer",
    "unpack_transfer",
    "pack_push",
    "unpack_push",
    "pack_gone",
    "unpack_gone",
    "is_host_port",
]

CONTROL_PROTOCOL = "/p2pfl-node/1.0"
JOIN_PROTOCOL = "/p2pfl-node/join/1.0"
BODY_PROTOCOL = "/p2pfl-node/body/1.0"

# The largest frame behind the largest fixed part: an offer's 49 bytes.
MAX_PACKET_BYTES = MAX_FRAME_BYTES + 64
# A certificate of about 400 bytes and a few addresses; before its hello a peer gets no more of our memory.
MAX_HELLO_BYTES = 4096

# Of the transport, beside the version of the node's messages.
_VERSION = 1
# Random names of a process and of a dial.
_ID_BYTES = 16
# A P-256 self-signed certificate has some 400 bytes.
_CERTIFICATE_BYTES = 2048
# More ways to one port than a machine has interfaces in use.
_BULK_ADDRESSES = 8
# A DNS name of 253 characters, a colon, five digits.
_BULK_ADDRESS_BYTES = 260
# A peer has one dial to us under way at a time.
_ABANDONED = 4

_OFFER = struct.Struct(">QQ32s")
_PUSH = struct.Struct(">QQ32s")
_TRANSFER = struct.Struct(">Q")
_GONE = struct.Struct(">QB")
_LENGTH = struct.Struct(">I")


class Tag(IntEnum):
    """What a packet is.  The numbers are on the wire: never reuse one."""

    HELLO = 0
    FRAME = 1
    INLINE = 2
    OFFER = 3
    RELEASE = 4
    PUSH = 5
    GONE = 6
    PING = 7
    PONG = 8
    REFUSED = 9


class Gone(IntEnum):
    """Why a PUSH cannot be answered with the body."""

    UNKNOWN = 0
    UNREACHABLE = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello:
    """First in both directions on a control stream: keys 0 (the version, 1) to 5 in this order.

    boot: 16 random bytes of this process, so that a restart is told from a second dial.
    link: 16 random bytes of this dial; the answer repeats them.
    abandoned: dials of the answering side that this connection makes void.
    certificate: DER, the only one its sender uses on bulk connections.
    addresses: "host:port" of its bulk listener, nearest first; empty: it cannot be dialled.
    """

    boot: bytes
    link: bytes
    abandoned: tuple[bytes, ...] = ()
    certificate: bytes = b""
    addresses: tuple[str, ...] = ()


def pack(tag: Tag, payload: bytes = b"") -> bytes:
    """One packet with its length, as it goes into a stream."""
    return with_length(bytes((tag,)) + payload)


def unpack(packet: bytes) -> tuple[Tag, bytes]:
    """(tag, payload) of a packet without its length.  Raises RemoteError."""
    try:
        return Tag(packet[0]), packet[1:]
    except (IndexError, ValueError) as error:
        raise RemoteError(f"a packet with the unknown tag {packet[:1].hex() or 'nothing'}") from error


def pack_hello(hello: Hello) -> bytes:
    """A HELLO packet."""
    document = {
        0: _VERSION,
        1: hello.boot,
        2: hello.link,
        3: list(hello.abandoned),
        4: hello.certificate,
        5: list(hello.addresses),
    }
    return pack(Tag.HELLO, encoding.pack(document))


def unpack_hello(payload: bytes) -> Hello:
    """The hello in a HELLO payload.  Raises RemoteError on anything else."""
    fields = encoding.unpack(payload, "a transport hello", keys=range(6), limit=MAX_HELLO_BYTES)
    version = encoding.integer(fields[0], "the transport version", most=encoding.MAX_RANDOM)
    if version != _VERSION:
        raise RemoteError(f"transport version {version}, expected {_VERSION}; update the older of the two")
    addresses = encoding.items(fields[5], "the bulk addresses", most=_BULK_ADDRESSES)
    for address in addresses:
        if not is_host_port(encoding.text(address, "a bulk address", most_bytes=_BULK_ADDRESS_BYTES)):
            raise RemoteError("a bulk address that is not host:port")
    return Hello(
        boot=_name(fields[1]),
        link=_name(fields[2]),
        abandoned=tuple(
            _name(name) for name in encoding.items(fields[3], "abandoned dials", most=_ABANDONED)
        ),
        certificate=encoding.blob(fields[4], "a certificate", most_bytes=_CERTIFICATE_BYTES),
        addresses=tuple(addresses),
    )


def pack_inline(frame: bytes, body: memoryview) -> bytes:
    """An offer with its body."""
    return pack(Tag.INLINE, _LENGTH.pack(len(frame)) + frame + body)


def unpack_inline(payload: bytes) -> tuple[bytes, bytes]:
    """(frame, body).  Raises RemoteError."""
    _at_least(_LENGTH.size, payload)
    end = _LENGTH.size + _LENGTH.unpack_from(payload)[0]
    _at_least(end, payload)
    return payload[_LENGTH.size : end], payload[end:]


def pack_offer(transfer: int, size: int, secret: bytes, frame: bytes) -> bytes:
    """An offer whose body waits."""
    return pack(Tag.OFFER, _OFFER.pack(transfer, size, secret) + frame)


def unpack_offer(payload: bytes) -> tuple[int, int, bytes, bytes]:
    """(transfer, size, secret, frame).  Raises RemoteError."""
    _at_least(_OFFER.size, payload)
    transfer, size, secret = _OFFER.unpack_from(payload)
    return transfer, size, secret, payload[_OFFER.size :]


def pack_transfer(tag: Tag, transfer: int) -> bytes:
    """A packet that only names a transfer."""
    return pack(tag, _TRANSFER.pack(transfer))


def unpack_transfer(payload: bytes) -> int:
    """The transfer it names.  Raises RemoteError."""
    return int(_exactly(_TRANSFER, payload)[0])


def pack_push(transfer: int, offset: int, token: bytes) -> bytes:
    """Ask for the rest of a body on a connection that the other side dials."""
    return pack(Tag.PUSH, _PUSH.pack(transfer, offset, token))


def unpack_push(payload: bytes) -> tuple[int, int, bytes]:
    """(transfer, offset, token).  Raises RemoteError."""
    transfer, offset, token = _exactly(_PUSH, payload)
    return transfer, offset, token


def pack_gone(transfer: int, reason: Gone) -> bytes:
    """Say that a PUSH cannot be answered."""
    return pack(Tag.GONE, _GONE.pack(transfer, reason))


def unpack_gone(payload: bytes) -> tuple[int, Gone]:
    """(transfer, reason).  Raises RemoteError."""
    transfer, reason = _exactly(_GONE, payload)
    try:
        return transfer, Gone(reason)
    except ValueError as error:
        raise RemoteError(f"an unknown reason {reason} for a body that is gone") from error


def is_host_port(text: str) -> bool:
    """Whether `text` reads as host:port, both sides present and the port in 1..65535."""
    host, _, port = text.rpartition(":")
    return (
        bool(host)
        and text.isascii()
        and text.isprintable()
        and " " not in text
        and port.isdecimal()
        and len(port) <= 5
        and 0 < int(port) < 65536
    )


def _name(value: object) -> bytes:
    return encoding.exact(value, "a name in a hello", size_bytes=_ID_BYTES)


def _at_least(size: int, payload: bytes) -> None:
    if len(payload) < size:
        raise RemoteError(f"a packet of {len(payload)} bytes where {size} belong")


def _exactly(layout: struct.Struct, payload: bytes) -> tuple[Any, ...]:
    if len(payload) != layout.size:
        raise RemoteError(f"a packet of {len(payload)} bytes where {layout.size} belong")
    return layout.unpack(payload)
