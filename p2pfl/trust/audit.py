"""Round statements: each peer's signed chain of what it did, and proofs against who tells two stories.

Theory of operation.  After every Commit a peer states, to all its neighbours in the same bytes, the round,
its weight before and after, its model's digest, one salted commitment for each share it sent, and the head of
its audit log (trust/decisions.py).  Each statement names the hash of the one before.  A recipient gets the
salt of its own edge: it can check what it received against what everyone was told, and learns nothing of the
other edges.

Equivocation.  A statement is committed to disk before it is sent and a resend is the same bytes, so an honest
peer never signs two different statements with one number within one boot session.  Two such are a proof that
anybody can verify offline.  Across boot sessions they prove nothing: an honest node restored from a backup
makes them.  For this a boot session must be drawn at random at every start, and never taken from the disk.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, TypeAlias

from p2pfl import encoding
from p2pfl.encoding import DIGEST_BYTES, MAX_COUNTER, MAX_RANDOM
from p2pfl.errors import LocalError, RemoteError
from p2pfl.ids import PeerId, RunId
from p2pfl.trust.envelope import verify_header
from p2pfl.trust.identity import SIGNATURE_BYTES

__all__ = [
    "MAX_COMMITMENTS",
    "MAX_STATEMENT_BYTES",
    "MAX_EVIDENCE_BYTES",
    "MAX_WITNESSED",
    "MIN_SALT_BYTES",
    "MAX_SALT_BYTES",
    "RoundStatement",
    "Head",
    "Link",
    "commit",
    "open_commitment",
    "link",
    "encode_statement",
    "decode_statement",
    "head_of",
    "read",
    "check_link",
    "Signed",
    "Parse",
    "encode_evidence",
    "verify_evidence",
    "verified",
    "encode_witness",
    "decode_witness",
]

# One per out-edge: a complete graph of 1,024 peers.
MAX_COMMITMENTS = 1024
# MAX_COMMITMENTS of 32 bytes and about 290 of the rest; a body of the protocol may have 56 KiB.
MAX_STATEMENT_BYTES = 34 * 1024
# Two frames of the transport, 64 KiB each.
MAX_EVIDENCE_BYTES = 2 * 64 * 1024 + 1024
# Statements kept in parsed form: those of one round's neighbours, whose words are repeated while an answer is
# missing, and which all peers of a simulation hear.  9 MB of the largest there can be.
_PARSED = 256
# Neighbours whose last statement is kept: eight times a full mesh; a document has room for no more.
MAX_WITNESSED = 256
# 128 bits hide even a share that can be guessed.
MIN_SALT_BYTES = 16
MAX_SALT_BYTES = 32

_COMMITMENT = b"p2pfl-commitment/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundStatement:
    """One link of a peer's chain.

    number: one more each.   prev: SHA-256 of the content before, empty for the first of a chain.
    commitments: sorted, so that their order tells nothing.   model_digest: SHA-256, empty when not stated.
    log_head: of the audit log, empty while that has no row.
    """

    number: int
    prev: bytes
    run: RunId
    sender: PeerId
    incarnation: int
    boot_session: int
    round: int
    commitments: tuple[bytes, ...]
    weight_before: float
    weight_after: float
    model_digest: bytes = b""
    log_head: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """The last statement known of a chain."""

    incarnation: int
    boot_session: int
    number: int
    hash: bytes


Link: TypeAlias = Literal["next", "repeat", "gap", "old", "fork", "equivocation", "new-chain"]


def commit(salt: bytes, recipient: PeerId, edge_seq: int, digest: bytes, weights: Sequence[float]) -> bytes:
    """The commitment to one share: SHA-256 over salt, recipient, number on the edge, body digest, weights.

    Hiding by the salt of 16 to 32 random bytes, binding by the hash.   Raises LocalError on another salt.
    """
    if not MIN_SALT_BYTES <= len(salt) <= MAX_SALT_BYTES:
        raise LocalError(f"a salt has {MIN_SALT_BYTES} to {MAX_SALT_BYTES} bytes, this one has {len(salt)}")
    document = {
        1: salt,
        2: encoding.key_of(recipient),
        3: edge_seq,
        4: digest,
        5: [float(weight) for weight in weights],
    }
    return hashlib.sha256(_COMMITMENT + encoding.pack(document)).digest()


def open_commitment(
    statement: RoundStatement,
    *,
    salt: bytes,
    recipient: PeerId,
    edge_seq: int,
    digest: bytes,
    weights: Sequence[float],
) -> bool:
    """Whether `statement` commits to this share.  Never raises."""
    try:
        return commit(salt, recipient, edge_seq, digest, weights) in statement.commitments
    except LocalError:
        return False


def link(
    *,
    number: int,
    prev: bytes,
    run: RunId,
    sender: PeerId,
    incarnation: int,
    boot_session: int,
    round: int,  # noqa: A002 - the literature's noun
    commitments: Iterable[bytes],
    weight_before: float,
    weight_after: float,
    model_digest: bytes = b"",
    log_head: bytes = b"",
) -> bytes:
    """The content of a new statement, to be committed before it is sent.

    number, prev: of this link; `Head.number + 1` and `Head.hash`, or any number and b"" where a chain begins.
    commitments: of `commit`, in any order.   Raises LocalError when it would be refused.
    """
    statement = RoundStatement(
        number=number,
        prev=prev,
        run=run,
        sender=sender,
        incarnation=incarnation,
        boot_session=boot_session,
        round=round,
        commitments=tuple(sorted(commitments)),
        weight_before=float(weight_before),
        weight_after=float(weight_after),
        model_digest=model_digest,
        log_head=log_head,
    )
    try:
        content = encode_statement(statement)
        decode_statement(content)
    except RemoteError as error:
        raise LocalError(f"this statement would be refused: {error}") from error
    return content


def encode_statement(statement: RoundStatement) -> bytes:
    """The canonical bytes, the `content` of a STATEMENT message.  Raises LocalError."""
    return encoding.pack(
        {
            1: statement.number,
            2: statement.prev,
            3: encoding.hash_of(statement.run),
            4: encoding.key_of(statement.sender),
            5: statement.incarnation,
            6: statement.boot_session,
            7: statement.round,
            8: b"".join(statement.commitments),
            9: statement.weight_before,
            10: statement.weight_after,
            11: statement.model_digest,
            12: statement.log_head,
        }
    )


def decode_statement(content: bytes) -> RoundStatement:
    """The statement in `content`.  Raises RemoteError."""
    document = encoding.unpack(content, "a statement", keys=range(1, 13), limit=MAX_STATEMENT_BYTES)
    commitments = encoding.rows(
        document[8], "a statement's commitments", size_bytes=DIGEST_BYTES, most=MAX_COMMITMENTS
    )
    if commitments != sorted(commitments):
        raise RemoteError("a statement's commitments are not sorted")
    return RoundStatement(
        number=encoding.integer(document[1], "a statement's number", most=MAX_COUNTER),
        prev=encoding.digest(document[2], "a statement's prev", may_be_empty=True),
        run=encoding.run(document[3], "a statement's run"),
        sender=encoding.peer(document[4], "a statement's sender"),
        incarnation=encoding.integer(document[5], "a statement's incarnation", most=MAX_RANDOM),
        boot_session=encoding.integer(document[6], "a statement's boot session", most=MAX_RANDOM),
        round=encoding.integer(document[7], "a statement's round", most=MAX_COUNTER),
        commitments=tuple(commitments),
        weight_before=encoding.number(document[9], "a statement's weight before", least=0.0),
        weight_after=encoding.number(document[10], "a statement's weight after", least=0.0),
        model_digest=encoding.digest(document[11], "a statement's model digest", may_be_empty=True),
        log_head=encoding.digest(document[12], "a statement's log head", may_be_empty=True),
    )


def head_of(content: bytes) -> Head:
    """The head of the chain that ends with the statement in `content`.  Raises RemoteError."""
    return read(content)[1]


def read(
    content: bytes, *, sender: PeerId | None = None, run: RunId | None = None
) -> tuple[RoundStatement, Head]:
    """The statement in `content`, and the head of the chain that ends with it.

    sender, run: whose it must be, and in which run, where given.   Raises RemoteError when it is malformed or
    not theirs.
    """
    statement, head = _parsed(content)
    if sender not in (None, statement.sender) or run not in (None, statement.run):
        raise RemoteError("a round statement is of another peer or run than its header", sender)
    return statement, head


@lru_cache(maxsize=_PARSED)
def _parsed(content: bytes) -> tuple[RoundStatement, Head]:
    statement = decode_statement(content)
    head = Head(
        incarnation=statement.incarnation,
        boot_session=statement.boot_session,
        number=statement.number,
        hash=hashlib.sha256(content).digest(),
    )
    return statement, head


def check_link(known: Head | None, statement: RoundStatement, head: Head) -> Link:
    """How a statement, with its `head` as `read` gives both, continues the chain whose head is `known`.

    "next" follows it; "repeat" is the same again; "gap" is later, with some missed between; "old" is
    earlier; "new-chain" is the first seen of an incarnation.  "fork" contradicts the head across boot
    sessions, which a restored backup does, or does not name it as the one before; "equivocation" contradicts
    it within one boot session, which no honest peer does.  After "next", "gap" and "new-chain" the known head
    is `head`; after a fork it is, too, once the peer has said HELLO with that boot session.
    """
    if known is None or head.incarnation != known.incarnation:
        return "new-chain"
    if head.number == known.number:
        if head.hash == known.hash:
            return "repeat"
        return "equivocation" if head.boot_session == known.boot_session else "fork"
    if head.number < known.number:
        return "old"
    if head.number > known.number + 1:
        return "gap"
    return "next" if statement.prev == known.hash else "fork"


@dataclass(frozen=True, slots=True, kw_only=True)
class Signed:
    """A STATEMENT message as it travelled: header bytes, signature, body bytes."""

    header: bytes
    signature: bytes
    body: bytes


# (sender, incarnation, boot session, body digest) of a header's bytes.  `net.messages` knows the encodings of
# headers and bodies, this package does not.  Raises RemoteError, also for another kind than STATEMENT.
Parse: TypeAlias = Callable[[bytes], tuple[PeerId, int, int, bytes]]


def encode_evidence(first: Signed, second: Signed) -> bytes:
    """Two signed statements as one portable proof, in an order of its own, for `verify_evidence`."""
    rows = sorted([s.header, s.signature, s.body] for s in (first, second))
    return encoding.pack({1: rows[0], 2: rows[1]})


def verify_evidence(data: bytes, *, parse: Parse, content_of: Callable[[bytes], bytes]) -> PeerId:
    """Who is proved to have equivocated by `data`; nothing else is needed, and nobody is asked.

    Raises RemoteError, saying what is missing, when it is not a proof.
    """
    document = encoding.unpack(data, "this evidence", keys=(1, 2), limit=MAX_EVIDENCE_BYTES)
    rows = [_row(document[1]), _row(document[2])]
    contents = [verified(row, parse=parse, content_of=content_of) for row in rows]
    first, second = (decode_statement(content) for content in contents)
    if (first.sender, first.run) != (second.sender, second.run):
        raise RemoteError("no proof: the two statements are of different peers or runs")
    if (first.incarnation, first.boot_session) != (second.incarnation, second.boot_session):
        raise RemoteError("no proof: across boot sessions an honest node may contradict itself")
    if first.number != second.number:
        raise RemoteError("no proof: the two statements have different numbers")
    if contents[0] == contents[1]:
        raise RemoteError("no proof: the two statements are the same")
    return first.sender


def verified(signed: Signed, *, parse: Parse, content_of: Callable[[bytes], bytes]) -> bytes:
    """The content of a signed statement, after its signature, digest and sender are checked.

    Raises RemoteError.
    """
    sender, incarnation, boot_session, digest = parse(signed.header)
    if not verify_header(sender, signed.header, signed.signature):
        raise RemoteError("no proof: a signature does not verify")
    if hashlib.sha256(signed.body).digest() != digest:
        raise RemoteError("no proof: a body is not the one that was signed")
    content = content_of(signed.body)
    stated = decode_statement(content)
    if (stated.sender, stated.incarnation, stated.boot_session) != (sender, incarnation, boot_session):
        raise RemoteError("no proof: a statement and its header name different peers or sessions")
    return content


def encode_witness(messages: Sequence[Signed]) -> bytes:
    """Signed statements as one document, to be handed to whoever compares them.  Raises LocalError."""
    if len(messages) > MAX_WITNESSED:
        raise LocalError(f"a document has at most {MAX_WITNESSED} statements, not {len(messages)}")
    return encoding.pack({1: [[s.header, s.signature, s.body] for s in messages]})


def decode_witness(data: bytes) -> list[Signed]:
    """The statements in what `encode_witness` or `encode_evidence` made, unverified.  Raises RemoteError."""
    # A map of two entries is evidence.
    if data[:1] == b"\x82":
        document = encoding.unpack(data, "this evidence", keys=(1, 2), limit=MAX_EVIDENCE_BYTES)
        return [_row(document[1]), _row(document[2])]
    document = encoding.unpack(data, "this document", keys=(1,), limit=MAX_WITNESSED * MAX_EVIDENCE_BYTES)
    return [_row(row) for row in encoding.items(document[1], "its statements", most=MAX_WITNESSED)]


def _row(value: object) -> Signed:
    header, signature, body = encoding.items(value, "a message of this evidence", least=3, most=3)
    return Signed(
        header=encoding.blob(header, "its header", least_bytes=1, most_bytes=MAX_EVIDENCE_BYTES),
        signature=encoding.exact(signature, "its signature", size_bytes=SIGNATURE_BYTES),
        body=encoding.blob(body, "its body", least_bytes=1, most_bytes=MAX_EVIDENCE_BYTES),
    )
