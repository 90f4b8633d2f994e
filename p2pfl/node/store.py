"""The store: everything of a node that outlives its process.  With audit_table.py, the only file with SQL.

Theory of operation.  A home folder holds `store.db` (SQLite: write-ahead log, `synchronous=FULL`, because
NORMAL turns a power loss into a rollback of rounds that neighbours have seen) and `snapshots/RUN/` (large
arrays, node/snapshots.py).  `commit` is the commit point of a round:

1. snapshot files are written, flushed, renamed, and their folder is flushed;
2. one transaction names the file and its digest together with the ledger, the rows of the facts, and those of
   the audit log (node/audit_table.py), so that log and ledger always agree;
3. files that no run names any more are removed.

A crash before the end of 2 leaves the old state, after it the new one, and never a mixture.  One process
at a time owns a home, by a lock that the kernel releases when the process dies.
"""

import contextlib
import json
import os
import re
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import sqlite_utils

from p2pfl.errors import LocalError, StoreError
from p2pfl.events import Fact, Snapshot
from p2pfl.ids import PeerId, RunId
from p2pfl.node import accounts, audit_table, locking, snapshots
from p2pfl.node.audit_table import Outbound
from p2pfl.node.plain import plain
from p2pfl.trust.decisions import Row
from p2pfl.trust.privacy import Account, encode

__all__ = ["MAX_EVENTS", "SCHEMA_VERSION", "Store"]

# Rows kept in `events`: at one a second some three hours, a few megabytes; rounds and metrics are kept whole.
MAX_EVENTS = 10_000
# Raised by one with every change of _SCHEMA, so that an older p2pfl refuses what it would misread.
SCHEMA_VERSION = 3
# Milliseconds that SQLite waits for another reader of the file (a person with `sqlite3`).
_BUSY_MS = 5_000
# Fields of "round committed" that have a column of their own, for `p2pfl rounds` and ad hoc SQL.
_ROUND_COLUMNS = ("peers", "seconds", "w", "weight0", "loss", "statement", "bytes_sent", "bytes_received")
_PEER_COLUMNS = ("peer", "round", "state", "seen_at", "sent_w", "absorbed_w", "unresolved")

_SCHEMA = """
CREATE TABLE runs (run TEXT PRIMARY KEY, state TEXT NOT NULL, round INTEGER, at REAL NOT NULL,
  snapshot TEXT, digest TEXT, files TEXT NOT NULL DEFAULT '[]', ledger BLOB) STRICT;
CREATE TABLE rounds (run TEXT NOT NULL, round INTEGER NOT NULL, at REAL NOT NULL, peers INTEGER, seconds REAL,
  w REAL, weight0 REAL, loss REAL, statement TEXT, bytes_sent INTEGER, bytes_received INTEGER,
  fields TEXT NOT NULL, PRIMARY KEY (run, round)) STRICT;
CREATE TABLE metrics (run TEXT NOT NULL, round INTEGER NOT NULL, name TEXT NOT NULL, value REAL,
  at REAL NOT NULL, PRIMARY KEY (run, round, name)) STRICT;
CREATE TABLE events (seq INTEGER PRIMARY KEY AUTOINCREMENT, at REAL NOT NULL, level TEXT NOT NULL,
  event TEXT NOT NULL, fields TEXT NOT NULL) STRICT;
CREATE TABLE peers (run TEXT NOT NULL, peer TEXT NOT NULL, round INTEGER, state TEXT NOT NULL, seen_at REAL,
  sent_w REAL, absorbed_w REAL, unresolved INTEGER, PRIMARY KEY (run, peer)) STRICT;
CREATE TABLE entries (key TEXT PRIMARY KEY, value BLOB NOT NULL) STRICT;
"""


class Store:
    """One node's disk.  Safe to call from any thread; calls wait for each other."""

    def __init__(self, home: Path, database: sqlite_utils.Database, lock: int) -> None:
        self.home = home
        self._database = database
        self._lock = lock
        self._turn = threading.RLock()

    @classmethod
    def open(cls, home: Path) -> Self:
        """The store of `home`, made if there is none, locked against other processes until `close`.

        Raises StoreError: locked (names the process), damaged, written by a newer p2pfl, read-only, full.
        """
        home = home.expanduser().absolute()
        with snapshots.disk_errors(home):
            home.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = locking.acquire(home / "lock")
        try:
            path = home / "store.db"
            with snapshots.disk_errors(path), _sql_errors(path):
                # Made before SQLite does it, so that the file and its log are for the owner only.
                os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
                connection = sqlite3.connect(path, check_same_thread=False)
                try:
                    database = _prepare(connection, path)
                except BaseException:
                    connection.close()
                    raise
        except BaseException:
            os.close(lock)
            raise
        return cls(home, database, lock)

    def close(self) -> None:
        """Give the home back.  Harmless when already closed."""
        with self._turn:
            if self._lock >= 0:
                self._database.close()
                os.close(self._lock)
                self._lock = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- the commit point ----------------------------------------------------------------------------

    def commit(
        self,
        run: RunId,
        snapshot: Snapshot,
        facts: Sequence[Fact],
        at: float,
        peers: Iterable[Mapping[str, Any]] = (),
        *,
        decisions: Iterable[bytes] = (),
        proofs: Iterable[tuple[PeerId, bytes]] = (),
        outbound: Outbound | None = None,
    ) -> None:
        """Make `snapshot` what `load(run)` gives, together with the rows of `facts`; durable on return.

        at: seconds since the epoch.  "round committed" makes a row of `rounds`, "evaluated" rows of
        `metrics`, and every fact a row of `events`.   peers: how the members heard of stand, instead of
        the last commit's: `peer`, `round`, `state` (connected, late, disconnected), `seen_at` (seconds since
        the epoch, None: never), `sent_w`, `absorbed_w`, `unresolved`.   decisions, proofs, outbound: as
        `audit_table.write` takes them.
        On StoreError the last committed state still stands.
        """
        with self._turn:
            folder = self._folder(run)
            written = snapshots.write(folder, snapshot.arrays)
            files = json.dumps(sorted(written.files))
            with self._transaction() as sql:
                sql.execute(
                    "INSERT INTO runs (run, state, at, snapshot, digest, files, ledger)"
                    " VALUES (?, 'running', ?, ?, ?, ?, ?) ON CONFLICT (run) DO UPDATE SET at = excluded.at,"
                    " state = 'running',"
                    " snapshot = excluded.snapshot, digest = excluded.digest, files = excluded.files,"
                    " ledger = excluded.ledger",
                    (run, at, written.name, written.digest, files, snapshot.ledger),
                )
                for fact in facts:
                    _insert(sql, run, fact, at)
                _trim(sql)
                accounts.write(sql, snapshot.account)
                audit_table.write(sql, run, at, decisions, proofs, outbound or {})
                sql.execute("DELETE FROM peers WHERE run = ?", (run,))
                sql.executemany(
                    "INSERT INTO peers VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                    [(run, *(plain(row[name]) for name in _PEER_COLUMNS)) for row in peers],
                )
            snapshots.prune(folder, written.files)

    def load(self, run: RunId) -> Snapshot | None:
        """What the last `commit` of `run` held, verified; None when there was none.  Raises StoreError."""
        with self._turn:
            rows = self._query("SELECT snapshot, digest, ledger FROM runs WHERE run = ?", run)
            if not rows or rows[0]["snapshot"] is None:
                return None
            (row,) = rows
            arrays = snapshots.read(self._folder(run), row["snapshot"], row["digest"])
            return Snapshot(arrays=arrays, ledger=row["ledger"])

    def record(self, facts: Iterable[Fact], at: float, run: RunId | None = None) -> None:
        """Store rows for facts that belong to no commit; those of a run name it."""
        with self._transaction() as sql:
            for fact in facts:
                _insert(sql, run, fact, at)
            _trim(sql)

    def count(self, run: RunId, outbound: Outbound) -> None:
        """Add what was sent since the last commit to the counters."""
        with self._transaction() as sql:
            audit_table.count(sql, run, outbound)

    def mark(self, run: RunId, state: str, at: float) -> None:
        """Note that `run` is now `running`, `paused`, `done`, `left` or `revoked`, as `runs` tells."""
        with self._transaction() as sql:
            sql.execute(
                "INSERT INTO runs (run, state, at) VALUES (?, ?, ?)"
                " ON CONFLICT (run) DO UPDATE SET state = excluded.state, at = excluded.at",
                (run, state, at),
            )

    # --- what people ask ------------------------------------------------------------------------------

    def runs(self) -> list[dict[str, Any]]:
        """Every run known here, the last active first: run, state, round (None before the first), at."""
        return self._query("SELECT run, state, round, at FROM runs ORDER BY at DESC, run")

    def rounds(self, run: RunId, since: int = 0) -> list[dict[str, Any]]:
        """The rows of rounds >= `since`, oldest first; `fields` is the whole fact as a dict."""
        rows = self._query("SELECT * FROM rounds WHERE run = ? AND round >= ? ORDER BY round", run, since)
        return [row | {"fields": json.loads(row["fields"])} for row in rows]

    def metrics(self, run: RunId) -> list[dict[str, Any]]:
        """Every measurement of this site: run, round, name, value, at; by round, then name."""
        return self._query("SELECT * FROM metrics WHERE run = ? ORDER BY round, name", run)

    def peers(self, run: RunId) -> list[dict[str, Any]]:
        """The other members as the last `commit` of `run` knew them, by peer; the keys of its `peers`."""
        return self._query(
            f"SELECT {', '.join(_PEER_COLUMNS)} FROM peers WHERE run = ? ORDER BY peer",  # noqa: S608 - our names
            run,
        )

    def events(self, since: int = 0, limit: int = 1_000) -> list[dict[str, Any]]:
        """At most `limit` events with seq > `since`, oldest first: seq, at, level, event, fields."""
        rows = self._query("SELECT * FROM events WHERE seq > ? ORDER BY seq LIMIT ?", since, limit)
        return [row | {"fields": json.loads(row["fields"])} for row in rows]

    def last_event(self) -> int:
        """The highest seq ever given to an event, 0 before the first."""
        rows = self._query("SELECT seq FROM sqlite_sequence WHERE name = 'events'")
        return int(rows[0]["seq"]) if rows else 0

    def ledger(self, run: RunId) -> bytes | None:
        """The ledger of the last `commit` of `run` without its arrays, None before the first."""
        rows = self._query("SELECT ledger FROM runs WHERE run = ?", run)
        return rows[0]["ledger"] if rows else None

    def decisions(self, run: RunId, since: int = 0, limit: int = 1_000) -> list[Row]:
        """At most `limit` rows of the audit log numbered above `since`, in order."""
        return audit_table.decisions(self._query, run, since, limit)

    def proofs(self, run: RunId) -> list[dict[str, Any]]:
        """The proofs of equivocation held: peer, at, evidence."""
        return audit_table.proofs(self._query, run)

    def outbound(self, run: RunId) -> list[dict[str, Any]]:
        """What this node ever sent: peer, kind of message, messages, bytes."""
        return audit_table.outbound(self._query, run)

    def account(self, data_set: str) -> bytes:
        """What was ever released about `data_set`, as `Snapshot.account`."""
        return self.get(accounts.key(data_set)) or encode(Account(data_set=data_set))

    def accounts(self) -> list[Account]:
        """The privacy account of every data set."""
        return accounts.read(self._query)

    # --- small values ---------------------------------------------------------------------------------

    def put(self, key: str, value: bytes) -> None:
        """Keep a small value (an incarnation, an agreement's text); durable on return."""
        with self._transaction() as sql:
            sql.execute("INSERT OR REPLACE INTO entries (key, value) VALUES (?, ?)", (key, value))

    def get(self, key: str) -> bytes | None:
        """The value last `put` under `key`, None when there is none."""
        rows = self._query("SELECT value FROM entries WHERE key = ?", key)
        return rows[0]["value"] if rows else None

    def copy_to(self, folder: Path) -> None:
        """Put a consistent copy of the database and the snapshots it names into the empty `folder`.

        Snapshot files are linked, so `folder` is on the home's file system, and commits wait only for the
        copy of the database.
        """
        with self._turn, snapshots.disk_errors(folder), _sql_errors(folder / "store.db"):
            self._require_open()
            with contextlib.closing(sqlite3.connect(folder / "store.db")) as copy:
                self._database.conn.backup(copy)
            for row in self._query("SELECT run, files FROM runs"):
                here = folder / "snapshots" / row["run"]
                here.mkdir(parents=True)
                for name in json.loads(row["files"]):
                    os.link(self._folder(row["run"]) / name, here / name)

    # --- within ---------------------------------------------------------------------------------------

    def _folder(self, run: RunId) -> Path:
        return self.home / "snapshots" / run

    def _query(self, sql: str, *parameters: Any) -> list[dict[str, Any]]:
        with self._turn, _sql_errors(self.home / "store.db"):
            self._require_open()
            return list(self._database.query(sql, parameters))

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._turn, _sql_errors(self.home / "store.db"):
            self._require_open()
            with self._database.atomic():
                yield self._database.conn

    def _require_open(self) -> None:
        if self._lock < 0:
            raise LocalError(f"the store of {self.home} is closed; open it again with Store.open")


def _insert(sql: sqlite3.Connection, run: RunId | None, fact: Fact, at: float) -> None:
    fields = plain(fact.fields)
    text = json.dumps(fields)
    sql.execute(
        "INSERT INTO events (at, level, event, fields) VALUES (?, ?, ?, ?)",
        (at, fact.level, fact.event, text),
    )
    number = fields.get("round")
    if run is None or not isinstance(number, int):
        return
    if fact.event == "round committed":
        sql.execute(
            "INSERT OR REPLACE INTO rounds VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (run, number, at, *(_column(name, fields.get(name)) for name in _ROUND_COLUMNS), text),
        )
        sql.execute("UPDATE runs SET round = max(coalesce(round, ?1), ?1) WHERE run = ?2", (number, run))
    elif fact.event == "evaluated":
        measured = fields.get("metrics", fields)
        sql.executemany(
            "INSERT OR REPLACE INTO metrics (run, round, name, value, at) VALUES (?, ?, ?, ?, ?)",
            [
                (run, number, name, float(value), at)
                for name, value in measured.items()
                if name != "round" and isinstance(value, int | float)
            ],
        )


def _column(name: str, value: Any) -> Any:
    """`value` in the type of the round column `name`, null when it is not of that type."""
    if name == "statement":
        return value if isinstance(value, str) else None
    if isinstance(value, list | dict):
        return len(value)
    if not isinstance(value, int | float):
        return None
    return int(value) if name in ("peers", "bytes_sent", "bytes_received") else float(value)


def _trim(sql: sqlite3.Connection) -> None:
    sql.execute("DELETE FROM events WHERE seq <= (SELECT max(seq) FROM events) - ?", (MAX_EVENTS,))


def _prepare(connection: sqlite3.Connection, path: Path) -> sqlite_utils.Database:
    connection.execute(f"PRAGMA busy_timeout = {_BUSY_MS}")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    if verdict != "ok":
        raise sqlite3.DatabaseError(verdict)
    database = sqlite_utils.Database(connection, recursive_triggers=False, execute_plugins=False)
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version == 0:
        with database.atomic():
            for statement in re.split(r";\s+(?=CREATE)", _SCHEMA + audit_table.SCHEMA):
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    elif version != SCHEMA_VERSION:
        raise StoreError(
            f"{path} has schema version {version}, this p2pfl knows {SCHEMA_VERSION}; "
            "start it with the p2pfl that wrote it, or a newer one"
        )
    return database


@contextlib.contextmanager
def _sql_errors(path: Path) -> Iterator[None]:
    """Turn what SQLite raises about `path` into a StoreError with the cause and the cure."""
    try:
        yield
    except sqlite3.Error as cause:
        match getattr(cause, "sqlite_errorname", "").split("_")[1:2]:
            case ["FULL"]:
                cure = "the disk is full: free some space, the node goes on from its last round"
            case ["READONLY"] | ["CANTOPEN"] | ["PERM"]:
                cure = "make it writable for the node's user, or choose another --home"
            case ["BUSY"] | ["LOCKED"]:
                cure = "another program holds it open: close that, then try again"
            case ["IOERR"]:
                cure = "check the disk, then start the node again; it goes on from its last round"
            case _:
                cure = (
                    "it is damaged: use `p2pfl node restore` with a backup, or start with an empty --home "
                    "and take the model from a neighbour"
                )
        raise StoreError(f"{path}: {cause}; {cure}") from cause
