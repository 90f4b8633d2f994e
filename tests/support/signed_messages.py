"""Peers with keys, and one message of every kind, for the tests of the wire."""

import hashlib

import numpy as np

from p2pfl.events import Ack, Body, Header, Hello, Kind, Message, Notice, Roster, Statement
from p2pfl.ids import RunId
from p2pfl.trust.identity import Identity

__all__ = ["ALICE", "BOB", "RUN", "header", "vector_message", "messages"]

ALICE = Identity(b"a" * 32)
BOB = Identity(b"b" * 32)
RUN = RunId("5e" * 32)


def header(kind: Kind, **changed: object) -> Header:
    """A header from Alice to Bob."""
    fields: dict[str, object] = {
        "run": RUN,
        "epoch": 1,
        "sender": ALICE.peer_id,
        "recipient": BOB.peer_id,
        "incarnation": 2**64 - 1,
        "boot_session": 7,
        "kind": kind,
        "round": 3,
        "issued_at": 1_790_000_000.25,
    }
    return Header(**(fields | changed))  # type: ignore[arg-type]


def vector_message(kind: Kind = Kind.SHARE, size: int = 40) -> Message:
    """A SHARE or STATE with a body of `size` bytes and a header that fits it."""
    body = np.arange(size, dtype=np.uint8)
    head = header(
        kind,
        edge_seq=9,
        schema_hash=hashlib.sha256(b"schema").digest(),
        size=size,
        raw_size=size,
        digest=hashlib.sha256(body.tobytes()).digest(),
        weights=(0.5, float("inf")),
    )
    return Message(header=head, body=body)


def messages() -> list[Message]:
    """One message of every structured kind."""
    hello = Hello(
        agreement="{}",
        begun=True,
        phase="running",
        initial_digest=bytes(32),
        their_incarnation=0,
        absorbed=4,
        refused=(2,),
        taken={3: 0.25, 4: 0.5},
        sent=6,
        acked=5,
        base=1,
        accepts=False,
        roster_digest=b"",
    )
    bodies: dict[Kind, Body] = {
        Kind.HELLO: hello,
        Kind.ACK: Ack(their_incarnation=2**64 - 1, absorbed=4, refused={3: "norm", 4: "not-accepted"}),
        Kind.STATEMENT: Statement(content=b"round three", salt=bytes(32)),
        Kind.NOTICE: Notice(code="run-mismatch", text="gossip.topology differs: ring, exponential"),
        Kind.ROSTER: Roster(certificates=(b"one", b"two"), revocations=(), addresses=(b"record",)),
    }
    return [Message(header=header(kind), body=body) for kind, body in bodies.items()]
