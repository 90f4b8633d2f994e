from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pfl import encoding
from p2pfl.errors import LocalError, RemoteError
from p2pfl.ids import RunId
from p2pfl.trust import decisions
from p2pfl.trust.decisions import Decision, LogHead, Row, extend, row_of, seal, verify

RUN = RunId("ab" * 32)
PEER = "12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN"


def decision(i: int, **fields: Any) -> Decision:
    return Decision(**{"i": i, "at": 100.5 + i, "round": i // 2, "type": "share", "peer": PEER, **fields})


def logged(count: int) -> tuple[list[Row], list[LogHead]]:
    """A log of `count` rows, and its head after each."""
    rows, heads, head = [], [], LogHead()
    for i in range(1, count + 1):
        made = decision(i, rule="push-sum", verdict="absorbed", weight=1 / i, seq=i, digest=bytes([i]) * 32)
        head, entry = extend(RUN, head, made)
        rows.append(row_of(entry))
        heads.append(head)
    return rows, heads


def test_a_row_s_hash_is_blake2b_of_the_hash_before_it_and_its_own_bytes() -> None:
    head, entry = extend(RUN, LogHead(), decision(1, weight=0.5))
    document = {
        1: 1, 2: 101.5, 3: 0, 4: "share", 5: PEER, 6: "", 7: "", 8: 0.5, 9: [], 10: 0, 11: b"",
    }  # fmt: skip
    assert entry == bytes.fromhex(RUN) + encoding.pack(document)
    assert head == LogHead(rows=1, hash=hashlib.blake2b(entry, digest_size=32).digest())
    following, entry = extend(RUN, head, decision(2))
    assert entry[:32] == head.hash
    assert (following.rows, following.hash) == (2, seal(head.hash, decision(2)))


def test_what_is_stored_comes_back_and_a_whole_chain_verifies() -> None:
    rows, heads = logged(7)
    assert [row.decision.i for row in rows] == list(range(1, 8))
    assert [row.hash for row in rows] == [head.hash for head in heads]
    found = verify(rows, RUN, {heads[2].hash, heads[6].hash, bytes(32)})
    assert (found.first, found.last, found.head, found.fault) == (1, 7, heads[6].hash, "")
    assert found.found == {heads[2].hash: 3, heads[6].hash: 7}
    assert verify([], RUN) == decisions.Findings()


CHANGES: dict[str, Any] = {
    "at": 7.0, "round": 99, "type": "state", "peer": "", "rule": "krum", "verdict": "norm", "weight": 9.0,
    "distance": 1.0, "seq": 99, "digest": b"x" * 32,
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("i", [1, 4, 7])
def test_a_row_that_was_edited_is_named(name: str, i: int) -> None:
    rows, _ = logged(7)
    edited = replace(rows[i - 1].decision, **{name: CHANGES[name]})
    rows[i - 1] = replace(rows[i - 1], decision=edited)
    found = verify(rows, RUN)
    assert found.fault == f"row {i} was changed: its content does not fit its hash"
    assert found.last == i - 1


def test_a_row_that_was_removed_put_in_or_moved_is_named() -> None:
    rows, _ = logged(7)
    assert "row 4 is missing" in verify(rows[:3] + rows[4:], RUN).fault
    again = replace(rows[3], decision=replace(rows[3].decision, i=5))
    assert "row 5 does not follow" in verify([*rows[:4], again, *rows[4:]], RUN).fault
    swapped = [*rows[:3], rows[4], rows[3], *rows[5:]]
    assert "row 4 is missing" in verify(swapped, RUN).fault
    # Its own hash made to fit, the next row tells.
    edited = replace(rows[3].decision, weight=0.0)
    rows[3] = replace(rows[3], decision=edited, hash=seal(rows[3].prev, edited))
    assert "row 5 does not follow" in verify(rows, RUN).fault


def test_a_log_hashed_anew_has_none_of_the_heads_that_others_hold_from_there_on() -> None:
    _, heads = logged(7)
    wanted = {head.hash for head in heads}
    head, rows = LogHead(), []
    for i in range(1, 8):
        weight = 0.0 if i == 4 else 1 / i
        made = decision(i, rule="push-sum", verdict="absorbed", weight=weight, seq=i, digest=bytes([i]) * 32)
        head, entry = extend(RUN, head, made)
        rows.append(row_of(entry))
    found = verify(rows, RUN, wanted)
    assert found.fault == ""
    assert set(found.found.values()) == {1, 2, 3}


def test_a_log_is_of_one_run() -> None:
    rows, _ = logged(3)
    assert "row 1 does not follow" in verify(rows, RunId("cd" * 32)).fault


def test_a_log_whose_oldest_rows_are_gone_begins_where_it_begins() -> None:
    rows, heads = logged(7)
    found = verify(rows[3:], RUN, {heads[0].hash, heads[5].hash})
    assert (found.first, found.last, found.first_round, found.fault) == (4, 7, 2, "")
    assert found.found == {heads[5].hash: 6}


def test_a_database_s_zero_has_no_sign() -> None:
    assert seal(bytes(32), decision(1, weight=-0.0)) == seal(bytes(32), decision(1, weight=0.0))


def test_a_row_that_cannot_be_encoded_is_refused() -> None:
    with pytest.raises(LocalError):
        seal(bytes(32), decision(1, peer="\ud800"))


@settings(deadline=None, max_examples=100)
@given(st.binary(max_size=200), st.integers(0, 200), st.integers(0, 3))
def test_any_bytes_are_a_row_or_a_remote_error(new: bytes, at: int, cut: int) -> None:
    _, entry = extend(RUN, LogHead(), decision(1, distance=0.5))
    for data in (new, entry[:at] + new[:3] + entry[at + cut :]):
        try:
            row = row_of(data)
        except RemoteError:
            continue
        assert row.hash == seal(row.prev, row.decision) or row.decision.weight == 0
