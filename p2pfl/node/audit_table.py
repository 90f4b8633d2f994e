"""The audit log in the store: decisions that are only ever added, proofs, and what was sent to whom.

These are the statements; node/store.py opens the database and gives them its transaction.  Triggers refuse
an UPDATE, and a DELETE of any of the last MAX_DECISIONS rows of a run.  They stop mistakes, not somebody who
owns the file: that is what the chain is for (trust/decisions.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from p2pfl.ids import PeerId, RunId
from p2pfl.trust.decisions import Decision, Row, row_of

if TYPE_CHECKING:
    import sqlite3

__all__ = ["MAX_DECISIONS", "SCHEMA", "Outbound", "write", "count", "decisions", "proofs", "outbound"]

# Rows kept of a run: some 300 MB; 16 in-edges fill them in 60,000 rounds.
MAX_DECISIONS = 1_000_000

# Messages and bytes, by peer and by kind of message.
Outbound = Mapping[tuple[PeerId, str], tuple[int, int]]
Query = Callable[..., list[dict[str, Any]]]

SCHEMA = f"""
CREATE TABLE decisions (run TEXT NOT NULL, i INTEGER NOT NULL, at REAL NOT NULL, round INTEGER NOT NULL,
  type TEXT NOT NULL, peer TEXT NOT NULL, rule TEXT NOT NULL, verdict TEXT NOT NULL, weight REAL NOT NULL,
  distance REAL, seq INTEGER NOT NULL, digest BLOB NOT NULL, prev BLOB NOT NULL, h BLOB NOT NULL,
  PRIMARY KEY (run, i)) STRICT, WITHOUT ROWID;
CREATE TRIGGER decisions_stay_as_they_are BEFORE UPDATE ON decisions
  BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END;
CREATE TRIGGER decisions_stay BEFORE DELETE ON decisions
  WHEN OLD.i > (SELECT max(i) FROM decisions WHERE run = OLD.run) - {MAX_DECISIONS}
  BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END;
CREATE TABLE proofs (run TEXT NOT NULL, peer TEXT NOT NULL, at REAL NOT NULL, evidence BLOB NOT NULL,
  PRIMARY KEY (run, peer)) STRICT;
CREATE TABLE outbound (run TEXT NOT NULL, peer TEXT NOT NULL, kind TEXT NOT NULL, messages INTEGER NOT NULL,
  bytes INTEGER NOT NULL, PRIMARY KEY (run, peer, kind)) STRICT;
"""  # noqa: S608 - our number


def write(
    sql: sqlite3.Connection,
    run: RunId,
    at: float,
    entries: Iterable[bytes],
    proofs: Iterable[tuple[PeerId, bytes]],
    outbound: Outbound,
) -> None:
    """Add what one commit brings.  entries: of the log, as `trust.decisions.extend` made them.

    proofs: of each peer the first is kept; one is enough.   outbound: sent since the last time.
    """
    sql.executemany(
        "INSERT INTO decisions VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        [_columns(run, row_of(entry)) for entry in entries],
    )
    sql.execute(
        "DELETE FROM decisions WHERE run = ?1 AND i <= (SELECT max(i) FROM decisions WHERE run = ?1) - ?2",
        (run, MAX_DECISIONS),
    )
    sql.executemany(
        "INSERT OR IGNORE INTO proofs VALUES (?, ?, ?, ?)",
        [(run, peer, at, evidence) for peer, evidence in proofs],
    )
    count(sql, run, outbound)


def count(sql: sqlite3.Connection, run: RunId, outbound: Outbound) -> None:
    """Add to the counters of what was sent."""
    sql.executemany(
        "INSERT INTO outbound VALUES (?, ?, ?, ?, ?) ON CONFLICT (run, peer, kind) DO UPDATE SET"
        " messages = messages + excluded.messages, bytes = bytes + excluded.bytes",
        [(run, peer, kind, *amount) for (peer, kind), amount in outbound.items()],
    )


def decisions(query: Query, run: RunId, since: int, limit: int) -> list[Row]:
    """At most `limit` rows numbered above `since`, in order."""
    rows: Sequence[Mapping[str, Any]] = query(
        "SELECT * FROM decisions WHERE run = ? AND i > ? ORDER BY i LIMIT ?", run, since, limit
    )
    return [
        Row(
            decision=Decision(**{name: row[name] for name in Decision.__slots__}),
            prev=row["prev"],
            hash=row["h"],
        )
        for row in rows
    ]


def proofs(query: Query, run: RunId) -> list[dict[str, Any]]:
    """Each proof: peer, at, evidence; by peer."""
    return query("SELECT peer, at, evidence FROM proofs WHERE run = ? ORDER BY peer", run)


def outbound(query: Query, run: RunId) -> list[dict[str, Any]]:
    """What was sent: peer, kind, messages, bytes; by peer, then kind."""
    return query("SELECT peer, kind, messages, bytes FROM outbound WHERE run = ? ORDER BY peer, kind", run)


def _columns(run: RunId, row: Row) -> tuple[Any, ...]:
    made = row.decision
    return (run, *(getattr(made, name) for name in Decision.__slots__), row.prev, row.hash)
