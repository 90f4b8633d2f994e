"""Messages as bytes: one signed header for all, then a body; docs/protocol.md is its prose.

A frame is

    u16 header length | header | signature (64) | body

big-endian, the header and structured bodies in the strict MessagePack of `p2pfl.encoding`.  The Ed25519
signature is over `DOMAIN` followed by the header bytes exactly as sent; the header holds the body's length
and SHA-256, so it covers the body too, and nothing is re-encoded to verify it.  The body of VECTOR_KINDS,
a SHARE for one, is not in the frame: it is raw bytes that `Transport.offer` and `fetch` move.

Opening is total: any bytes give a value or RemoteError.  Sealing checks with the same code what a receiver
will check, so that what we send is never refused for its form: it raises LocalError.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np
from msgspec.structs import replace

from p2pfl import encoding
from p2pfl.encoding import MAX_COUNTER, MAX_RANDOM
from p2pfl.errors import LocalError, RemoteError
from p2pfl.events import Body, Header, Kind, Message
from p2pfl.ids import PeerId
from p2pfl.net.bodies import MAX_WORD_BYTES, decode_structured, encode_structured

__all__ = [
    "VERSION",
    "DOMAIN",
    "MAX_HEADER_BYTES",
    "SIGNATURE_BYTES",
    "MAX_VECTOR_BYTES",
    "MAX_WEIGHTS",
    "VECTOR_KINDS",
    "encode_header",
    "decode_header",
    "seal",
    "split_frame",
    "open_frame",
    "decode_body",
]

# The only version there is; a new one is a new number here and a new protocol id.
VERSION = 1
# Keeps a signature on a header from being taken for one on anything else the same key signs.
DOMAIN = b"p2pfl-node/1"
# A header in use has about 250 bytes; 4 KiB is also what the lobby reads of a stranger.
MAX_HEADER_BYTES = 4 * 1024
# Ed25519, RFC 8032.
SIGNATURE_BYTES = 64
# The largest vector a header may speak of, 1 TiB.  What is allocated is decided by the local schema.
MAX_VECTOR_BYTES = 2**40
# Scalars beside a vector, such as push-sum's w; no mixer sends more than three.
MAX_WEIGHTS = 8
# Kinds whose body travels by offer and fetch.
VECTOR_KINDS = frozenset(
    {
        Kind.SHARE,
        Kind.STATE,
        Kind.FEATURES,
        Kind.SOFT_LABELS,
        Kind.PROBE,
        Kind.PROTOTYPES,
        Kind.HUB_MODEL,
    }
)

_KEYS = range(1, 18)
_LENGTH_BYTES = 2


def encode_header(header: Header) -> bytes:
    """`header` as its signed bytes.  Raises LocalError on a field that a receiver would refuse."""
    document: dict[int, object] = {
        1: header.version,
        2: encoding.hash_of(header.run),
        3: header.epoch,
        4: encoding.key_of(header.sender),
        5: encoding.key_of(header.recipient),
        6: header.incarnation,
        7: header.boot_session,
        8: int(header.kind),
        9: header.round,
        10: header.edge_seq,
        11: header.schema_hash,
        12: header.codec,
        13: header.size,
        14: header.raw_size,
        15: header.digest,
        16: [float(weight) for weight in header.weights],
        17: float(header.issued_at),
    }
    data = encoding.pack(document)
    try:
        decode_header(data)
    except RemoteError as error:
        raise LocalError(f"this header would be refused: {error}") from error
    return data


def decode_header(data: bytes | memoryview) -> Header:
    """The header in `data`, every field checked, its signature not.  Raises RemoteError."""
    document = encoding.unpack(data, "header", keys=_KEYS, limit=MAX_HEADER_BYTES)
    version = document[1]
    if type(version) is not int or version != VERSION:
        raise RemoteError(f"protocol version {version!r:.40}, expected {VERSION}; check both sides' releases")
    kind = encoding.integer(document[8], "kind", most=255)
    if kind not in Kind.__members__.values():
        raise RemoteError(f"message kind {kind} is unknown; check both sides' releases")
    header = Header(
        version=version,
        run=encoding.run(document[2], "run"),
        epoch=encoding.integer(document[3], "epoch", most=MAX_COUNTER),
        sender=encoding.peer(document[4], "sender"),
        recipient=encoding.peer(document[5], "recipient"),
        incarnation=encoding.integer(document[6], "incarnation", most=MAX_RANDOM),
        boot_session=encoding.integer(document[7], "boot session", most=MAX_RANDOM),
        kind=Kind(kind),
        round=encoding.integer(document[9], "round", most=MAX_COUNTER),
        edge_seq=encoding.integer(document[10], "edge sequence", most=MAX_COUNTER),
        schema_hash=encoding.digest(document[11], "schema hash", may_be_empty=True),
        codec=encoding.word(document[12], "codec", most_bytes=MAX_WORD_BYTES),
        size=encoding.integer(document[13], "size", most=MAX_VECTOR_BYTES),
        raw_size=encoding.integer(document[14], "raw size", most=MAX_VECTOR_BYTES),
        digest=encoding.digest(document[15], "digest"),
        weights=tuple(
            encoding.number(weight, "weight", is_finite=False)
            for weight in encoding.items(document[16], "weights", most=MAX_WEIGHTS)
        ),
        issued_at=encoding.number(document[17], "issued at"),
    )
    if header.codec == "none" and header.size != header.raw_size:
        raise RemoteError(
            f"a body sent as it is has size {header.size} and raw size {header.raw_size}", header.sender
        )
    if header.kind in VECTOR_KINDS:
        if header.size == 0:
            raise RemoteError(f"a {header.kind.name} has no body", header.sender)
    elif header.codec != "none":
        raise RemoteError(f"a {header.kind.name} comes with codec {header.codec!r}", header.sender)
    return header


def seal(message: Message, sign: Callable[[bytes], bytes]) -> bytes:
    """The frame of `message`, signed; for a SHARE or STATE without its body, which is to be offered.

    A structured body is encoded here and its size and digest are put into the header; those of a vector are
    in the header already.   sign: the 64-byte Ed25519 signature of exactly the bytes it is given, which begin
    with DOMAIN.   Raises LocalError when the message breaks a limit or its body is not of its kind.
    """
    header, body = message.header, b""
    if header.kind in VECTOR_KINDS:
        vector = message.body
        if not isinstance(vector, np.ndarray):
            raise LocalError(f"a {header.kind.name} carries a vector, not a {type(vector).__name__}")
        if vector.nbytes != header.size:
            raise LocalError(f"a body of {vector.nbytes} bytes under a header that says {header.size}")
    else:
        if isinstance(message.body, np.ndarray):
            raise LocalError(f"a {header.kind.name} carries no vector")
        body = encode_structured(header.kind, message.body)
        header = replace(
            header, size=len(body), raw_size=len(body), codec="none", digest=hashlib.sha256(body).digest()
        )
    head = encode_header(header)
    signature = sign(DOMAIN + head)
    if len(signature) != SIGNATURE_BYTES:
        raise LocalError(f"a signature has {SIGNATURE_BYTES} bytes, the signer gave {len(signature)}")
    return len(head).to_bytes(_LENGTH_BYTES, "big") + head + signature + body


def split_frame(data: bytes) -> tuple[bytes, bytes, bytes]:
    """Header bytes, signature and body bytes of a frame, none of them checked.  Raises RemoteError."""
    length = int.from_bytes(data[:_LENGTH_BYTES], "big")
    if length > MAX_HEADER_BYTES:
        raise RemoteError(f"a header of {length} bytes, the limit is {MAX_HEADER_BYTES}")
    start = _LENGTH_BYTES + length
    end = start + SIGNATURE_BYTES
    if length == 0 or len(data) < end:
        raise RemoteError(f"a frame of {len(data)} bytes is shorter than its header and signature")
    return data[_LENGTH_BYTES:start], data[start:end], data[end:]


def open_frame(data: bytes, verify: Callable[[PeerId, bytes, bytes], bool]) -> tuple[Header, bytes]:
    """The header of a frame and its body's bytes (empty for a SHARE or STATE), all verified.

    verify: whether a signature by a peer over exactly these bytes is good: (peer, signed bytes, signature).
    Raises RemoteError, with the sender once it is known, on an unknown version or kind, a bad signature, a
    wrong size or digest, or a field beyond its limits.
    """
    head, signature, body = split_frame(data)
    header = decode_header(head)
    if not verify(header.sender, DOMAIN + head, signature):
        raise RemoteError("the signature on a header does not verify", header.sender)
    if header.kind in VECTOR_KINDS:
        if body:
            raise RemoteError(f"{len(body)} bytes follow the header of a {header.kind.name}", header.sender)
    else:
        _check_body(header, body)
    return header, body


def decode_body(header: Header, body: bytes | bytearray | memoryview) -> Body:
    """The body that `header` announced.  Raises RemoteError, with the sender.

    body: what `open_frame` gave, or what was fetched.  A vector comes back as uint8 over the same memory,
    nothing copied, after its size and digest are checked: one pass of SHA-256 (1.7 GB/s measured), which for
    large vectors belongs in a worker thread.
    """
    _check_body(header, body)
    if header.kind in VECTOR_KINDS:
        return np.frombuffer(body, dtype=np.uint8)
    try:
        return decode_structured(header.kind, bytes(body))
    except RemoteError as error:
        raise RemoteError(str(error), header.sender) from error


def _check_body(header: Header, body: bytes | bytearray | memoryview) -> None:
    size = memoryview(body).nbytes
    if size != header.size:
        raise RemoteError(
            f"the body of a {header.kind.name} has {size} bytes, its header says {header.size}", header.sender
        )
    if hashlib.sha256(body).digest() != header.digest:
        raise RemoteError(f"the body of a {header.kind.name} does not match its digest", header.sender)
