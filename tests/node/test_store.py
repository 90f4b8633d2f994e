"""The store: one commit point, one owner, and errors that say what to do."""

import hashlib
import math
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from logs import log_entries

from p2pfl.errors import LocalError, StoreError
from p2pfl.events import Fact, Snapshot
from p2pfl.ids import RunId
from p2pfl.node import store as stores
from p2pfl.node.store import Store

RUN = RunId("ab" * 32)
OTHER = RunId("cd" * 32)


def snapshot(number: int) -> Snapshot:
    return Snapshot(arrays={"x": np.full(50, number, np.float32)}, ledger=b"ledger %d" % number)


def round_fact(number: int, **fields: Any) -> Fact:
    return Fact(event="round committed", fields={"round": number, "peers": 3, "seconds": 1.5, **fields})


def state_of(store: Store) -> int | None:
    """The round that arrays and ledger both name; they must agree."""
    loaded = store.load(RUN)
    if loaded is None:
        return None
    number = int(loaded.arrays["x"][0])
    assert loaded.ledger == b"ledger %d" % number
    return number


def test_a_commit_is_what_the_next_process_loads(tmp_path: Path) -> None:
    with Store.open(tmp_path) as store:
        assert store.load(RUN) is None
        store.commit(RUN, snapshot(1), [round_fact(1)], at=10.0)
        store.commit(OTHER, snapshot(9), [], at=11.0)
        store.commit(RUN, snapshot(2), [round_fact(2)], at=12.0)
    with Store.open(tmp_path) as store:
        assert state_of(store) == 2
        assert store.runs() == [
            {"run": RUN, "state": "running", "round": 2, "at": 12.0},
            {"run": OTHER, "state": "running", "round": None, "at": 11.0},
        ]
        assert len(list((tmp_path / "snapshots" / RUN).iterdir())) == 1


def test_facts_become_rows(tmp_path: Path) -> None:
    with Store.open(tmp_path) as store:
        facts = [
            round_fact(4, w=0.5, weight0=1.0, loss=np.float32(0.25), statement=b"\x01" * 32, bytes_sent=7),
            Fact(event="evaluated", fields={"round": 4, "metrics": {"accuracy": 0.9, "note": "x"}}),
            Fact(event="evaluated", fields={"round": 5, "auc": 0.8}),
            Fact(event="weight low", level="warning", fields={"w": math.nan, "x": np.zeros(9)}),
        ]
        store.commit(RUN, snapshot(4), facts, at=1.0)
        (row,) = store.rounds(RUN)
        assert (row["round"], row["peers"], row["w"], row["loss"]) == (4, 3, 0.5, 0.25)
        assert (row["bytes_sent"], row["bytes_received"], row["statement"]) == (7, None, "01" * 32)
        assert row["fields"]["seconds"] == 1.5
        assert store.rounds(RUN, since=5) == []
        assert [(m["round"], m["name"], m["value"]) for m in store.metrics(RUN)] == [
            (4, "accuracy", 0.9),
            (5, "auc", 0.8),
        ]
        events = store.events()
        assert [e["event"] for e in events] == [f.event for f in facts]
        assert events[-1]["level"] == "warning"
        assert events[-1]["fields"] == {"w": None, "x": "(9,) float64"}
        assert store.events(since=events[1]["seq"], limit=1) == [events[2]]
        assert store.last_event() == events[-1]["seq"]


def test_a_field_of_an_unexpected_type_never_stops_a_commit(tmp_path: Path) -> None:
    with Store.open(tmp_path) as store:
        odd = {"peers": ["a", "b"], "seconds": "long", "w": True, "bytes_sent": 1.5, "statement": 4}
        store.commit(RUN, snapshot(1), [round_fact(1, **odd), Fact(event="evaluated")], at=1.0)
        (row,) = store.rounds(RUN)
        assert (row["peers"], row["seconds"], row["bytes_sent"], row["statement"]) == (2, None, 1, None)


def test_events_are_bounded_and_their_numbers_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "MAX_EVENTS", 5)
    with Store.open(tmp_path) as store:
        for number in range(12):
            store.record([Fact(event="tick", fields={"n": number})], at=float(number))
        assert [e["fields"]["n"] for e in store.events()] == [7, 8, 9, 10, 11]
        assert store.last_event() == 12


def test_small_values_and_states_are_kept(tmp_path: Path) -> None:
    with Store.open(tmp_path) as store:
        assert store.get("incarnation") is None
        store.put("incarnation", b"\x00\xff")
        store.mark(RUN, "paused", at=3.0)
    with Store.open(tmp_path) as store:
        assert store.get("incarnation") == b"\x00\xff"
        assert [run["state"] for run in store.runs()] == ["paused"]
        assert store.load(RUN) is None


def peer_row(peer: str, **fields: Any) -> dict[str, Any]:
    known = {"round": 3, "state": "connected", "seen_at": 9.5}
    return {"peer": peer, **known, "sent_w": 0.5, "absorbed_w": 0.25, "unresolved": 1, **fields}


def test_a_commit_replaces_the_peers_of_its_run_and_of_no_other(tmp_path: Path) -> None:
    with Store.open(tmp_path) as store:
        store.commit(OTHER, snapshot(9), [], at=1.0, peers=[peer_row("A", state="late")])
        # What a view holds beside the columns is left out.
        store.commit(RUN, snapshot(1), [], at=2.0, peers=[peer_row("B", accepting=True), peer_row("A")])
        assert store.peers(RUN) == [peer_row("A"), peer_row("B")]
        gone = peer_row("B", state="disconnected", seen_at=None)
        store.commit(RUN, snapshot(2), [], at=3.0, peers=[gone])
    with Store.open(tmp_path) as store:
        assert store.peers(RUN) == [gone]
        assert store.peers(OTHER) == [peer_row("A", state="late")]


def test_a_commit_that_fails_leaves_the_peers_of_the_last_one(tmp_path: Path) -> None:
    with Store.open(tmp_path) as store:
        store.commit(RUN, snapshot(1), [round_fact(1)], at=1.0, peers=[peer_row("A")])
        with pytest.raises(StoreError):
            store.commit(RUN, snapshot(2), [round_fact(2)], at=2.0, peers=[peer_row("B"), peer_row("B")])
        assert store.peers(RUN) == [peer_row("A")]
        assert state_of(store) == 1


def test_a_home_has_one_owner_at_a_time(tmp_path: Path) -> None:
    owner = f"in use by process {os.getpid()}; stop it"
    with Store.open(tmp_path), pytest.raises(StoreError, match=owner):
        Store.open(tmp_path)
    Store.open(tmp_path).close()


def test_a_closed_store_says_so(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    store.close()
    store.close()
    with pytest.raises(LocalError, match="closed"):
        store.get("x")


def test_the_home_is_for_its_owner_only(tmp_path: Path) -> None:
    home = tmp_path / "new" / "home"
    with Store.open(home) as store:
        store.commit(RUN, snapshot(1), [], at=1.0)
        assert home.stat().st_mode & 0o077 == 0
        for path in home.rglob("*"):
            assert path.stat().st_mode & 0o077 == 0, path


def test_the_store_is_used_from_several_threads(tmp_path: Path) -> None:
    with Store.open(tmp_path) as store:
        threads = [
            threading.Thread(target=lambda n=n: store.commit(RUN, snapshot(n), [round_fact(n)], at=float(n)))
            for n in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(store.rounds(RUN)) == 8
        assert state_of(store) is not None


# --- a crash between any two steps ---------------------------------------------------------------------


class Crash(BaseException):
    """The process dies here."""


# What a child says of a commit that died, and of one that did not.
DIED, LIVED = 9, 0


def dying(call: Callable[..., Any], countdown: list[int], after: bool) -> Callable[..., Any]:
    """`call`, but the process ends at the k-th use, before or after it takes effect; nothing tidies up."""

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        countdown[0] -= 1
        if countdown[0] == 0 and not after:
            os._exit(DIED)
        result = call(*args, **kwargs)
        if countdown[0] == 0:
            os._exit(DIED)
        return result

    return wrapped


def commit_and_die(home: Path, new: Snapshot, k: int, after: bool) -> int:
    """Commit `new` in a process that dies at the k-th system call of the commit; how that ended."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            store = Store.open(home)
            countdown = [k]
            for owner, call in ((os, "fsync"), (os, "replace"), (os, "open"), (Path, "unlink")):
                setattr(owner, call, dying(getattr(owner, call), countdown, after))
            store.commit(RUN, new, [round_fact(2)], at=2.0)
            status = LIVED
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.slow
@pytest.mark.parametrize("after", [False, True])
def test_a_crash_at_any_system_call_leaves_the_old_or_the_new_state(tmp_path: Path, after: bool) -> None:
    body = np.arange(100, dtype=np.uint8)
    name = "payload:" + hashlib.sha256(body.tobytes()).hexdigest()
    new = Snapshot(arrays={**snapshot(2).arrays, name: body}, ledger=b"ledger 2")
    outcomes: list[int] = []
    for k in range(1, 30):
        home = tmp_path / str(k)
        with Store.open(home) as store:
            store.commit(RUN, snapshot(1), [round_fact(1)], at=1.0)
        ended = commit_and_die(home, new, k, after)
        assert ended in (DIED, LIVED)
        with Store.open(home) as store:
            found = state_of(store)
            assert found is not None
            outcomes.append(found)
            assert found in ((1, 2) if ended == DIED else (2,))
            assert [row["round"] for row in store.rounds(RUN)] == list(range(1, found + 1))
            store.commit(RUN, snapshot(3), [round_fact(3)], at=3.0)
            assert state_of(store) == 3
            assert len(list((home / "snapshots" / RUN).iterdir())) == 1
        if ended == LIVED:
            break
    assert ended == LIVED
    # The old state up to one call, the new one from there on; and both were met.
    assert outcomes == sorted(outcomes)
    assert set(outcomes[:-1]) == {1, 2}


@pytest.mark.parametrize(
    "statement", ["INSERT INTO runs", "INSERT INTO events", "INSERT INTO decisions", "COMMIT"]
)
def test_a_crash_within_the_transaction_leaves_the_old_state(tmp_path: Path, statement: str) -> None:
    store = Store.open(tmp_path)
    store.commit(RUN, snapshot(1), [round_fact(1)], at=1.0)
    real = store._database.conn

    class Dying:
        """A connection that dies before `statement`."""

        def execute(self, sql: str, *args: Any) -> Any:
            if sql.startswith(statement):
                raise Crash
            return real.execute(sql, *args)

        def executemany(self, sql: str, *args: Any) -> Any:
            if sql.startswith(statement):
                raise Crash
            return real.executemany(sql, *args)

        def __getattr__(self, name: str) -> Any:
            return getattr(real, name)

    store._database.conn = Dying()
    with pytest.raises(Crash):
        store.commit(RUN, snapshot(2), [round_fact(2)], at=2.0, decisions=log_entries(RUN, 3))
    store._database.conn = real
    store.close()
    with Store.open(tmp_path) as again:
        assert state_of(again) == 1
        assert again.decisions(RUN) == []
        assert [row["round"] for row in again.rounds(RUN)] == [1]


_COMMITTER = """
import sys
from pathlib import Path
import numpy as np
from p2pfl.events import Fact, Snapshot
from p2pfl.node.store import Store
store = Store.open(Path(sys.argv[1]))
number = int(sys.argv[2])
while True:
    number += 1
    arrays = {"x": np.full(200_000, number, np.float32)}
    fact = Fact(event="round committed", fields={"round": number})
    store.commit(sys.argv[3], Snapshot(arrays=arrays, ledger=b"ledger %d" % number), [fact], float(number))
    print(number, flush=True)
"""


@pytest.mark.slow
def test_a_killed_process_leaves_a_whole_state_that_is_not_older_than_it_said(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    said = 0
    for _ in range(4):
        process = subprocess.Popen(
            [sys.executable, "-c", _COMMITTER, str(tmp_path), str(said), RUN],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        for _ in range(int(rng.integers(2, 6))):
            said = int(process.stdout.readline())
        # Somewhere in the middle of the commit after that one.
        process.send_signal(signal.SIGKILL)
        rest = process.stdout.read().split()
        process.stdout.close()
        assert process.wait() == -signal.SIGKILL
        said = int(rest[-1]) if rest else said
        with Store.open(tmp_path) as store:
            found = state_of(store)
            assert found in (said, said + 1)
            assert [row["round"] for row in store.rounds(RUN)][-1] == found
            said = found or 0


# --- a disk that is not as it should be -----------------------------------------------------------------


def test_a_file_that_is_no_database_is_called_damaged(tmp_path: Path) -> None:
    (tmp_path / "store.db").write_bytes(b"this is not a database" * 100)
    with pytest.raises(StoreError, match=r"store\.db: .*damaged.*p2pfl node restore"):
        Store.open(tmp_path)
    (tmp_path / "store.db").unlink()
    Store.open(tmp_path).close()


def test_a_database_with_overwritten_pages_is_called_damaged(tmp_path: Path) -> None:
    with Store.open(tmp_path) as store:
        for number in range(300):
            store.record([Fact(event="filler", fields={"text": "x" * 200, "n": number})], at=1.0)
    path = tmp_path / "store.db"
    data = bytearray(path.read_bytes())
    data[8192:40000] = b"\xa5" * (40000 - 8192)
    path.write_bytes(data)
    with pytest.raises(StoreError, match="damaged"):
        Store.open(tmp_path)


def test_a_newer_schema_is_refused_rather_than_misread(tmp_path: Path) -> None:
    Store.open(tmp_path).close()
    connection = sqlite3.connect(tmp_path / "store.db")
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(StoreError, match="schema version 99"):
        Store.open(tmp_path)


def test_a_full_database_is_a_store_error_and_the_last_state_stands(tmp_path: Path) -> None:
    with Store.open(tmp_path) as store:
        store.commit(RUN, snapshot(1), [round_fact(1)], at=1.0)
        pages = store._database.conn.execute("PRAGMA page_count").fetchone()[0]
        store._database.conn.execute(f"PRAGMA max_page_count = {pages}")
        big = Snapshot(arrays=snapshot(2).arrays, ledger=b"ledger 2" + bytes(1 << 16))
        with pytest.raises(StoreError, match="full: free some space"):
            store.commit(RUN, big, [round_fact(2)], at=2.0)
        assert state_of(store) == 1
        store._database.conn.execute("PRAGMA max_page_count = 1000000")
        store.commit(RUN, snapshot(2), [round_fact(2)], at=2.0)
        assert state_of(store) == 2


def test_a_read_only_database_is_a_store_error_with_its_cure(tmp_path: Path) -> None:
    with Store.open(tmp_path) as store:
        store._database.conn.execute("PRAGMA query_only = ON")
        with pytest.raises(StoreError, match=r"readonly.*make it writable"):
            store.put("key", b"value")


def test_a_missing_snapshot_is_a_store_error_that_names_the_restore(tmp_path: Path) -> None:
    with Store.open(tmp_path) as store:
        store.commit(RUN, snapshot(1), [], at=1.0)
        (file,) = (tmp_path / "snapshots" / RUN).iterdir()
        file.unlink()
        with pytest.raises(StoreError, match="p2pfl node restore"):
            store.load(RUN)
