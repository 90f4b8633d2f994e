"""The audit log's tables: append-only, bounded, by run."""

import sqlite3
from pathlib import Path

import numpy as np
import pytest
from logs import log_entries

from p2pfl.events import Snapshot
from p2pfl.ids import PeerId, RunId
from p2pfl.node import audit_table
from p2pfl.node.store import Store
from p2pfl.trust.decisions import row_of, verify

RUN = RunId("ab" * 32)
OTHER = RunId("cd" * 32)


def snapshot(number: int) -> Snapshot:
    return Snapshot(arrays={"x": np.full(5, number, np.float32)}, ledger=b"ledger %d" % number)


def test_the_audit_log_comes_back_to_the_bit_and_by_run(tmp_path: Path) -> None:
    entries, others = log_entries(RUN, 7), log_entries(OTHER, 2)
    with Store.open(tmp_path) as store:
        store.commit(RUN, snapshot(1), [], at=1.0, decisions=entries[:4])
        store.commit(OTHER, snapshot(1), [], at=1.0, decisions=others)
        store.commit(RUN, snapshot(2), [], at=1.0, decisions=entries[4:])
    with Store.open(tmp_path) as store:
        assert store.decisions(RUN) == [row_of(entry) for entry in entries]
        assert store.decisions(OTHER) == [row_of(entry) for entry in others]
        assert store.decisions(RUN, since=2, limit=3) == [row_of(entry) for entry in entries[2:5]]
        found = verify(store.decisions(RUN), RUN)
        assert (found.last, found.fault) == (7, "")


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE decisions SET weight = 0 WHERE i = 3",
        "DELETE FROM decisions WHERE i = 3",
        "DELETE FROM decisions",
    ],
)
def test_the_database_refuses_to_change_the_audit_log(tmp_path: Path, statement: str) -> None:
    with Store.open(tmp_path) as store:
        store.commit(RUN, snapshot(1), [], at=1.0, decisions=log_entries(RUN, 5))
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            store._database.conn.execute(statement)
        assert len(store.decisions(RUN)) == 5


def test_the_oldest_rows_give_way_and_the_rest_is_a_chain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = log_entries(RUN, 9)
    monkeypatch.setattr(audit_table, "SCHEMA", audit_table.SCHEMA.replace("1000000", "5"))
    monkeypatch.setattr(audit_table, "MAX_DECISIONS", 5)
    with Store.open(tmp_path) as store:
        for entry in entries:
            store.commit(RUN, snapshot(1), [], at=1.0, decisions=[entry])
        found = verify(store.decisions(RUN), RUN)
        assert (found.first, found.last, found.fault) == (5, 9, "")


def test_the_first_proof_of_a_peer_is_kept_and_what_was_sent_adds_up(tmp_path: Path) -> None:
    share = {(PeerId("A"), "share"): (1, 100)}
    with Store.open(tmp_path) as store:
        proof = [(PeerId("A"), b"one")]
        store.commit(RUN, snapshot(1), [], at=1.0, proofs=proof, outbound=share)
        more = {**share, (PeerId("A"), "ack"): (2, 30)}
        store.commit(RUN, snapshot(2), [], at=2.0, proofs=[(PeerId("A"), b"two")], outbound=more)
        store.count(RUN, share)
    with Store.open(tmp_path) as store:
        assert store.proofs(RUN) == [{"peer": "A", "at": 1.0, "evidence": b"one"}]
        assert store.outbound(RUN) == [
            {"peer": "A", "kind": "ack", "messages": 2, "bytes": 30},
            {"peer": "A", "kind": "share", "messages": 3, "bytes": 300},
        ]
        assert store.ledger(RUN) == b"ledger 2"
        assert store.ledger(OTHER) is None
