"""The audit log: what a site decided about others, row by row, in a chain that its neighbours witness.

Theory of operation.  A peer writes one row for each thing it decides: which share or model entered its
aggregate, at what weight and by which rule; what was refused, and why; who was admitted, banned, or given
another level.  Rows are numbered 1, 2, 3, ... within a run.  Each is hashed together with the hash of the row
before it, h = BLAKE2b-256(prev | row), and the first with the run's hash.  Rows leave with the Commit that
they belong to, and only the head, the last h, goes into the next round statement (trust/audit.py), so that
neighbours hold it under this site's signature without learning anything from it.

So the owner of a log may add to it, and nothing else: a row that is edited does not fit its own h, a row that
is removed or put in does not fit its successor's, and a log that was hashed anew from some row on has none of
the heads that neighbours hold from there on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from p2pfl import encoding
from p2pfl.encoding import MAX_COUNTER
from p2pfl.ids import RunId

__all__ = ["HASH_BYTES", "Decision", "LogHead", "Row", "Findings", "extend", "row_of", "seal", "verify"]

# BLAKE2b (RFC 7693) of the length of SHA-256, which everything else here uses.
HASH_BYTES = 32
# A type, rule or verdict; the longest rule has 32 bytes, a PeerId 52.
_MAX_TEXT_BYTES = 64
# Four texts, five numbers and a digest need less than 360 bytes.
_MAX_ROW_BYTES = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """One row of the log.

    at: seconds since 1970 by the site's clock.   type: `share`, `state`, `level`, ...; docs/configuration.md
    has them all, with their verdicts.   peer: whom it is about.   rule: what decided.   weight: with which it
    entered, or that was written off.   distance: from the own model where the rule measures one, else None.
    seq, digest: which share or model was judged; 0 and empty where none was.
    """

    i: int
    at: float
    round: int
    type: str
    peer: str = ""
    rule: str = ""
    verdict: str = ""
    weight: float = 0.0
    distance: float | None = None
    seq: int = 0
    digest: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class LogHead:
    """Where a log ends: how many rows it ever had, and the hash of the last, empty before the first."""

    rows: int = 0
    hash: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A decision as it is stored: with the hash before it and its own."""

    decision: Decision
    prev: bytes
    hash: bytes


def seal(prev: bytes, decision: Decision) -> bytes:
    """The hash of a row: BLAKE2b-256 over `prev` and the canonical bytes of `decision`.

    Raises LocalError on values that cannot be encoded.
    """
    return _hash(prev + _encode(decision))


def extend(run: RunId, head: LogHead, decision: Decision) -> tuple[LogHead, bytes]:
    """The head of the log of `run` after `decision`, and the entry (prev | row) that a Commit carries."""
    entry = (head.hash or encoding.hash_of(run)) + _encode(decision)
    return LogHead(rows=decision.i, hash=_hash(entry)), entry


def row_of(entry: bytes) -> Row:
    """The row in an entry that `extend` made.  Raises RemoteError on other bytes."""
    prev, data = entry[:HASH_BYTES], entry[HASH_BYTES:]
    return Row(decision=_decode(data), prev=prev, hash=_hash(entry))


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """What `verify` found.

    first, last: numbers of the rows read, 0 when there are none.   head: the hash of the last.
    first_round: of the first row.   found: row by wanted hash.   fault: what is wrong with the first bad row,
    empty when the chain is whole.
    """

    first: int = 0
    last: int = 0
    head: bytes = b""
    first_round: int = 0
    found: Mapping[bytes, int] = field(default_factory=dict)
    fault: str = ""


def verify(rows: Iterable[Row], run: RunId, wanted: Collection[bytes] = ()) -> Findings:
    """Follow the chain of `run` through `rows`, in their order, up to the first bad one.

    wanted: heads that somebody holds, to be found among the rows.   A log whose oldest rows are no longer
    kept begins with a later number; its first `prev` is then taken as it is.   O(rows) time, constant memory.
    """
    first = last = first_round = 0
    head = b""
    found: dict[bytes, int] = {}

    def findings(fault: str = "") -> Findings:
        return Findings(first=first, last=last, head=head, first_round=first_round, found=found, fault=fault)

    for row in rows:
        number = row.decision.i
        if not last:
            first, first_round = number, row.decision.round
            head = encoding.hash_of(run) if number == 1 else row.prev
        elif number != last + 1:
            return findings(f"row {last + 1} is missing: row {number} follows row {last}")
        if row.prev != head:
            return findings(
                f"row {number} does not follow the row before it: one of them was put in or changed"
            )
        if row.hash != seal(row.prev, row.decision):
            return findings(f"row {number} was changed: its content does not fit its hash")
        last, head = number, row.hash
        if head in wanted:
            found[head] = number
    return findings()


def _hash(entry: bytes) -> bytes:
    return hashlib.blake2b(entry, digest_size=HASH_BYTES).digest()


def _encode(decision: Decision) -> bytes:
    return encoding.pack(
        {
            1: decision.i,
            2: float(decision.at),
            3: decision.round,
            4: decision.type,
            5: decision.peer,
            6: decision.rule,
            7: decision.verdict,
            # 0.0 + -0.0 is 0.0: a database keeps no sign of zero.
            8: 0.0 + float(decision.weight),
            9: [] if decision.distance is None else [0.0 + float(decision.distance)],
            10: decision.seq,
            11: decision.digest,
        }
    )


def _decode(data: bytes) -> Decision:
    document = encoding.unpack(data, "a decision", keys=range(1, 12), limit=_MAX_ROW_BYTES)
    distances = encoding.items(document[9], "a decision's distance", most=1)
    return Decision(
        i=encoding.integer(document[1], "a decision's number", most=MAX_COUNTER),
        at=encoding.number(document[2], "a decision's time"),
        round=encoding.integer(document[3], "a decision's round", most=MAX_COUNTER),
        type=encoding.word(document[4], "a decision's type", most_bytes=_MAX_TEXT_BYTES),
        peer=encoding.printable(document[5], "a decision's peer", most_bytes=_MAX_TEXT_BYTES),
        rule=encoding.text(document[6], "a decision's rule", most_bytes=_MAX_TEXT_BYTES),
        verdict=encoding.text(document[7], "a decision's verdict", most_bytes=_MAX_TEXT_BYTES),
        weight=encoding.number(document[8], "a decision's weight"),
        distance=encoding.number(distances[0], "a decision's distance") if distances else None,
        seq=encoding.integer(document[10], "a decision's sequence number", most=MAX_COUNTER),
        digest=encoding.blob(document[11], "a decision's digest", most_bytes=encoding.DIGEST_BYTES),
    )
