"""The structured bodies of messages as MessagePack; docs/protocol.md lists their keys.

SHARE, STATE and the kinds of knowledge have none here: their bodies are raw little-endian bytes that travel
beside the frame.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any, TypeAlias

from p2pfl import encoding
from p2pfl.encoding import MAX_COUNTER, MAX_RANDOM
from p2pfl.errors import LocalError, RemoteError
from p2pfl.events import Ack, Hello, Kind, Notice, Roster, Statement

__all__ = [
    "MAX_BODY_BYTES",
    "MAX_AGREEMENT_BYTES",
    "MAX_REFUSED",
    "MAX_WORD_BYTES",
    "MAX_TEXT_BYTES",
    "MAX_STATEMENT_BYTES",
    "MAX_SIGNED_BYTES",
    "MAX_SALT_BYTES",
    "StructuredBody",
    "encode_structured",
    "decode_structured",
]

# With 4 KiB of header and the signature this stays within one 64 KiB frame of the transport.
MAX_BODY_BYTES = 56 * 1024
# The canonical agreement, whole, so that a site that differs can name the keys; p2pfl.run has the same.
MAX_AGREEMENT_BYTES = 32 * 1024
# Verdicts of one edge.  At most two shares are unresolved, so two would do; 64 lets the window widen.
MAX_REFUSED = 64
# A reason or a phase in one word.
MAX_WORD_BYTES = 32
# A sentence for people; `run-mismatch` names the keys that differ in it.
MAX_TEXT_BYTES = 1024
# A round statement holds a 32-byte commitment an out-edge: room for 1,024 of them, as in trust/audit.py.
MAX_STATEMENT_BYTES = 34 * 1024
# The salt that opens a commitment: as long as the hash.
MAX_SALT_BYTES = 32
# One certificate, revocation or address record; trust/ caps certificates at 2 KiB, the rest is slack.
MAX_SIGNED_BYTES = 4 * 1024

StructuredBody: TypeAlias = Hello | Ack | Statement | Notice | Roster

_TYPES: dict[Kind, type] = {
    Kind.HELLO: Hello,
    Kind.ACK: Ack,
    Kind.STATEMENT: Statement,
    Kind.NOTICE: Notice,
    Kind.ROSTER: Roster,
}


def encode_structured(kind: Kind, body: StructuredBody) -> bytes:
    """`body`, that of a message of `kind`, as MessagePack.

    The text of a Notice is made printable and cut to MAX_TEXT_BYTES.  Raises LocalError on anything else that
    would be refused.
    """
    if not isinstance(body, _TYPES.get(kind, ())):
        raise LocalError(f"a {kind.name} cannot carry a {type(body).__name__}")
    data = encoding.pack(_document(body))
    try:
        decode_structured(kind, data)
    except RemoteError as error:
        raise LocalError(f"this {kind.name} would be refused: {error}") from error
    return data


def decode_structured(kind: Kind, data: bytes | memoryview) -> StructuredBody:
    """The body of a message of `kind`, every field checked.  Raises RemoteError."""
    what = f"{kind.name} body"
    match kind:
        case Kind.HELLO:
            return _hello(
                encoding.unpack(data, what, keys=range(1, 14), optional=(14,), limit=MAX_BODY_BYTES)
            )
        case Kind.ACK:
            document = encoding.unpack(data, what, keys=range(1, 4), optional=(4,), limit=MAX_BODY_BYTES)
            return Ack(
                their_incarnation=encoding.integer(document[1], "their incarnation", most=MAX_RANDOM),
                absorbed=encoding.integer(document[2], "absorbed", most=MAX_COUNTER),
                refused=_verdicts(document[3]),
                taken=_fractions(document, 4),
            )
        case Kind.STATEMENT:
            document = encoding.unpack(data, what, keys=(1, 2), limit=MAX_BODY_BYTES)
            return Statement(
                content=encoding.blob(document[1], "statement content", most_bytes=MAX_STATEMENT_BYTES),
                salt=encoding.blob(document[2], "statement salt", most_bytes=MAX_SALT_BYTES),
            )
        case Kind.NOTICE:
            document = encoding.unpack(data, what, keys=(1, 2), limit=MAX_BODY_BYTES)
            return Notice(
                code=encoding.word(document[1], "notice code", most_bytes=MAX_WORD_BYTES),
                text=encoding.printable(document[2], "notice text", most_bytes=MAX_TEXT_BYTES),
            )
        case Kind.ROSTER:
            document = encoding.unpack(data, what, keys=range(1, 6), limit=MAX_BODY_BYTES)
            return Roster(
                certificates=_signed(document[1], "certificate"),
                revocations=_signed(document[2], "revocation"),
                addresses=_signed(document[3], "address record"),
                successions=_signed(document[4], "succession"),
                amendments=_signed(document[5], "amendment"),
            )
        case _:
            raise RemoteError(f"a {kind.name} has no structured body")


def _document(body: StructuredBody) -> dict[int, Any]:
    match body:
        case Hello():
            return {
                1: body.agreement,
                2: body.begun,
                3: body.phase,
                4: body.initial_digest,
                5: body.their_incarnation,
                6: body.absorbed,
                7: list(body.refused),
                8: body.sent,
                9: body.acked,
                10: body.base,
                11: body.accepts,
                12: body.roster_digest,
                13: body.counted,
            } | _taken(14, body.taken)
        case Ack():
            refused = {seq: body.refused[seq] for seq in sorted(body.refused)}
            return {1: body.their_incarnation, 2: body.absorbed, 3: refused} | _taken(4, body.taken)
        case Statement():
            return {1: body.content, 2: body.salt}
        case Notice():
            return {1: body.code, 2: _sentence(body.text)}
        case Roster():
            return {
                1: list(body.certificates),
                2: list(body.revocations),
                3: list(body.addresses),
                4: list(body.successions),
                5: list(body.amendments),
            }


def _sentence(text: str) -> str:
    # It may quote what a peer said, so it is made to fit: it must not be able to keep a notice from leaving.
    shown = "".join(character if character.isprintable() else "?" for character in text)
    return shown.encode()[:MAX_TEXT_BYTES].decode(errors="ignore")


def _hello(document: dict[int, Any]) -> Hello:
    refused = [
        encoding.integer(seq, "refused sequence", most=MAX_COUNTER)
        for seq in encoding.items(document[7], "refused", most=MAX_REFUSED)
    ]
    if any(left >= right for left, right in pairwise(refused)):
        raise RemoteError("refused sequences of a HELLO must rise")
    return Hello(
        agreement=encoding.text(document[1], "agreement", most_bytes=MAX_AGREEMENT_BYTES),
        begun=encoding.flag(document[2], "begun"),
        phase=encoding.word(document[3], "phase", most_bytes=MAX_WORD_BYTES),
        initial_digest=encoding.digest(document[4], "initial digest", may_be_empty=True),
        their_incarnation=encoding.integer(document[5], "their incarnation", most=MAX_RANDOM),
        absorbed=encoding.integer(document[6], "absorbed", most=MAX_COUNTER),
        refused=tuple(refused),
        sent=encoding.integer(document[8], "sent", most=MAX_COUNTER),
        acked=encoding.integer(document[9], "acked", most=MAX_COUNTER),
        base=encoding.integer(document[10], "base", most=MAX_COUNTER),
        accepts=encoding.flag(document[11], "accepts"),
        roster_digest=encoding.digest(document[12], "roster digest", may_be_empty=True),
        counted=encoding.flag(document[13], "counted"),
        taken=_fractions(document, 14),
    )


def _verdicts(value: object) -> dict[int, str]:
    if type(value) is not dict or len(value) > MAX_REFUSED:
        raise RemoteError(f"refused shares must be a map of at most {MAX_REFUSED}")
    return {
        encoding.integer(seq, "refused sequence", most=MAX_COUNTER): encoding.word(
            reason, "reason", most_bytes=MAX_WORD_BYTES
        )
        for seq, reason in value.items()
    }


def _taken(key: int, taken: Mapping[int, float]) -> dict[int, Any]:
    return {key: {seq: taken[seq] for seq in sorted(taken)}} if taken else {}


def _fractions(document: dict[int, Any], key: int) -> dict[int, float]:
    if key not in document:
        return {}
    value = document[key]
    if type(value) is not dict or not 0 < len(value) <= MAX_REFUSED:
        raise RemoteError(f"shares taken in part must be a map of 1 to {MAX_REFUSED}, or left out")
    taken = {
        encoding.integer(seq, "taken sequence", most=MAX_COUNTER): encoding.number(part, "fraction taken")
        for seq, part in value.items()
    }
    if not all(0 < part < 1 for part in taken.values()):
        raise RemoteError("the fraction taken of a share must be between 0 and 1, and neither")
    return taken


def _signed(value: object, what: str) -> tuple[bytes, ...]:
    return tuple(
        encoding.blob(entry, what, most_bytes=MAX_SIGNED_BYTES)
        for entry in encoding.items(value, f"{what}s", most=encoding.MAX_ITEMS)
    )
