"""`p2pfl trust audit` on the homes of nodes that ran, stopped and served."""

from __future__ import annotations

import json
import shutil
import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
import trio.testing
from click.testing import CliRunner, Result
from control_target import FakeTarget, served
from memory_nodes import Sites, agreement, keys

from p2pfl import ledger, witness
from p2pfl.cli.exits import Exit
from p2pfl.cli.main import main
from p2pfl.events import Header, Kind, Message, Statement
from p2pfl.ids import PeerId, RunId
from p2pfl.net.messages import seal
from p2pfl.node.store import Store
from p2pfl.trust import audit, identity
from p2pfl.trust.decisions import LogHead, extend, row_of
from p2pfl.trust.envelope import signer_of
from p2pfl.trust.privacy import Account, epsilon_of, spend

RUN = RunId("5e" * 32)
LIAR, *NEIGHBOURS = keys(3)


def p2pfl(home: Path, *words: str) -> Result:
    return CliRunner().invoke(main, ["--home", str(home), "trust", "audit", *words])


def said(home: Path, *words: str) -> dict[str, Any]:
    return dict(json.loads(p2pfl(home, *words, "--json").stdout))


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The homes of three nodes, site0 to site2, that ended their run."""
    folder = tmp_path_factory.mktemp("network")
    made = sorted(((identity.create(folder / f"key{i}"), i) for i in range(3)), key=lambda k: k[0].peer_id)
    sites = [key for key, _ in made]

    async def live() -> None:
        nodes = Sites(folder, agreement(sites), sites)
        with trio.fail_after(10_000):
            async with trio.open_nursery() as nursery:
                for i in range(3):
                    nursery.start_soon(nodes.live, i)

    trio.run(live, clock=trio.testing.MockClock(autojump_threshold=0))
    for i, (_, number) in enumerate(made):
        (folder / f"key{number}").rename(folder / f"site{i}" / "identity.key")
    return folder


@pytest.fixture
def homes(network: Path, tmp_path: Path) -> list[Path]:
    """Copies of the three homes, to be spoilt."""
    return [Path(shutil.copytree(network / f"site{i}", tmp_path / f"site{i}")) for i in range(3)]


def name(home: Path) -> PeerId:
    return identity.load(home / "identity.key").peer_id


def run_of(store: Store) -> RunId:
    return RunId(store.runs()[0]["run"])


def edit(home: Path, statement: str, *values: Any) -> None:
    """What somebody with the file and no scruples does."""
    connection = sqlite3.connect(home / "store.db")
    for trigger in ("decisions_stay_as_they_are", "decisions_stay"):
        connection.execute(f"DROP TRIGGER {trigger}")
    assert connection.execute(statement, values).rowcount == 1
    connection.commit()
    connection.close()


def test_show_lists_every_share_and_chooses_by_row_peer_and_round(homes: list[Path]) -> None:
    other = name(homes[1])
    rows = [json.loads(line) for line in p2pfl(homes[0], "show", "--json").stdout.splitlines()]
    assert [row["i"] for row in rows] == list(range(1, len(rows) + 1))
    assert {row["type"] for row in rows} == {"share"}
    assert {row["verdict"] for row in rows} == {"absorbed"}
    assert len(p2pfl(homes[0], "show", "--since", "4").stdout.splitlines()) == len(rows) - 4 + 1
    chosen = p2pfl(homes[0], "show", "--peer", other[-8:], "--round", "2", "--json").stdout.splitlines()
    assert [(json.loads(line)["peer"], json.loads(line)["round"]) for line in chosen] == [(other, 2)]
    assert "absorbed" in p2pfl(homes[0], "show").stdout


def test_a_log_as_it_was_written_is_intact(homes: list[Path]) -> None:
    found = said(homes[0], "verify")
    assert (found["intact"], found["first"], found["problems"]) == (True, 1, [])
    assert found["held_against"] == 1
    result = p2pfl(homes[0], "verify")
    assert result.exit_code == 0
    assert f"intact: rows 1 to {found['last']}, head {found['head'][:16]}" in result.stdout


def test_neighbours_hold_heads_of_an_intact_log(homes: list[Path], tmp_path: Path) -> None:
    files = [tmp_path / f"{i}.witness" for i in (1, 2)]
    for home, file in zip(homes[1:], files, strict=True):
        assert "statements of 2 members" in p2pfl(home, "witness", "-o", str(file)).stdout
    found = said(homes[0], "verify", "--against", str(files[0]), "--against", str(files[1]))
    assert (found["intact"], found["held_against"]) == (True, 1)
    # None of its own statements is in what it holds itself.
    own = tmp_path / "own.witness"
    p2pfl(homes[0], "witness", "-o", str(own))
    assert p2pfl(homes[0], "verify", "--against", str(own)).exit_code == Exit.USAGE


def test_one_edited_row_is_found_and_named(homes: list[Path]) -> None:
    edit(homes[0], "UPDATE decisions SET weight = 0 WHERE i = 5")
    result = p2pfl(homes[0], "verify")
    assert result.exit_code == Exit.FAILED
    assert result.stdout == "not intact: row 5 was changed: its content does not fit its hash\n"
    assert not said(homes[0], "verify")["intact"]


def test_removed_rows_are_found_at_either_end_and_in_the_middle(homes: list[Path]) -> None:
    last = said(homes[0], "verify")["last"]
    edit(homes[0], "DELETE FROM decisions WHERE i = 5")
    assert "row 5 is missing" in p2pfl(homes[0], "verify").stdout
    edit(homes[1], "DELETE FROM decisions WHERE i = 1")
    assert "the rows before 2 are gone" in p2pfl(homes[1], "verify").stdout
    edit(homes[2], "DELETE FROM decisions WHERE i = ?", last)
    assert (
        f"the log ends with row {last - 1}, the last commit with row {last}"
        in p2pfl(homes[2], "verify").stdout
    )


def test_a_log_that_was_hashed_anew_to_its_end_has_a_head_that_no_neighbour_holds(
    homes: list[Path], tmp_path: Path
) -> None:
    forge(homes[0])
    # The forger's own disk agrees with itself.
    assert p2pfl(homes[0], "verify").exit_code == 0
    file = tmp_path / "1.witness"
    p2pfl(homes[1], "witness", "-o", str(file))
    result = p2pfl(homes[0], "verify", "--against", str(file))
    assert result.exit_code == Exit.FAILED
    assert f"no row has the head in {file}, round 6" in result.stdout


def forge(home: Path) -> None:
    """Take the weight out of row 5, hash all that follows anew, and make ledger and statement fit."""
    with Store.open(home) as store:
        run = run_of(store)
        rows, data = store.decisions(run), store.ledger(run)
    assert data is not None
    head, forged = LogHead(), []
    for row in rows:
        made = replace(row.decision, weight=0.0) if row.decision.i == 5 else row.decision
        head, entry = extend(run, head, made)
        forged.append(row_of(entry))
    known = ledger.decode(data)
    stated = audit.decode_statement(known.statement)
    content = audit.encode_statement(replace(stated, log_head=head.hash))
    known.statement, known.head, known.log = content, audit.head_of(content), head
    connection = sqlite3.connect(home / "store.db")
    connection.execute("DROP TRIGGER decisions_stay_as_they_are")
    connection.executemany(
        "UPDATE decisions SET weight = ?, prev = ?, h = ? WHERE i = ?",
        [(row.decision.weight, row.prev, row.hash, row.decision.i) for row in forged],
    )
    connection.execute("UPDATE runs SET ledger = ?", (msgspec.msgpack.encode(known),))
    connection.commit()
    connection.close()


def test_outbound_says_what_went_to_whom(homes: list[Path]) -> None:
    found = said(homes[0], "outbound")["outbound"]
    assert {row["peer"] for row in found} == {name(homes[1]), name(homes[2])}
    assert {row["kind"] for row in found} >= {"hello", "share", "statement", "ack", "roster"}
    shares = [row for row in found if row["kind"] == "share"]
    assert all(row["messages"] >= 6 and row["bytes"] > 300 * row["messages"] for row in shares)
    assert "statement" in p2pfl(homes[0], "outbound").stdout


def two_stories(tmp_path: Path) -> list[Path]:
    """What each of two neighbours of a two-faced member would write down."""
    files = []
    for neighbour, w in zip(NEIGHBOURS, (1.0, 2.0), strict=True):
        content = audit.link(
            number=4, prev=b"", run=RUN, sender=LIAR.peer_id, incarnation=1, boot_session=2, round=4,
            commitments=(), weight_before=1.0, weight_after=w,
        )  # fmt: skip
        header = Header(
            run=RUN, sender=LIAR.peer_id, recipient=neighbour.peer_id, incarnation=1, boot_session=2,
            kind=Kind.STATEMENT, round=4, issued_at=0.0,
        )  # fmt: skip
        frame = seal(Message(header=header, body=Statement(content=content)), signer_of(LIAR))
        files.append(tmp_path / f"{neighbour.peer_id[-4:]}.witness")
        files[-1].write_bytes(audit.encode_witness([witness.signed_in(frame)]))
    return files


def test_two_neighbours_witnesses_make_a_proof_that_verifies_where_no_node_is(tmp_path: Path) -> None:
    files = two_stories(tmp_path)
    nowhere, proof = tmp_path / "nowhere", tmp_path / "liar.proof"
    result = p2pfl(nowhere, "check", *map(str, files), "-o", str(proof))
    assert result.exit_code == 0, result.output
    assert said(nowhere, "check", str(proof)) == {"v": 1, "equivocated": [LIAR.peer_id]}
    assert not nowhere.exists()
    one = p2pfl(nowhere, "check", str(files[0]))
    assert one.exit_code == Exit.FAILED
    assert "nothing is proved" in one.stderr


def test_a_proof_with_one_bit_changed_proves_nothing(tmp_path: Path) -> None:
    files = two_stories(tmp_path)
    proof = tmp_path / "liar.proof"
    p2pfl(tmp_path, "check", *map(str, files), "-o", str(proof))
    data = proof.read_bytes()
    signature = data.index(audit.decode_witness(data)[0].signature)
    for at in (5, signature, len(data) - 2):
        proof.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        assert p2pfl(tmp_path, "check", str(proof)).exit_code == Exit.FAILED


def test_a_file_that_is_no_witness_is_named_with_what_to_do(tmp_path: Path) -> None:
    other = tmp_path / "other.txt"
    other.write_text("not a witness")
    result = p2pfl(tmp_path, "check", str(other))
    assert result.exit_code == Exit.FAILED
    assert str(other) in result.stderr.replace("\n", "")
    assert "ask its sender again" in result.stderr.replace("\n", " ")


def test_proofs_are_listed_and_written(homes: list[Path], tmp_path: Path) -> None:
    assert p2pfl(homes[1], "proofs").stdout == "no proofs\n"
    frames = [audit.decode_witness(path.read_bytes())[0] for path in two_stories(tmp_path)]
    evidence = audit.encode_evidence(*frames)
    with Store.open(homes[1]) as store:
        run = run_of(store)
        loaded = store.load(run)
        assert loaded is not None
        store.commit(run, loaded, [], at=9.0, proofs=[(LIAR.peer_id, evidence)])
    assert LIAR.peer_id in p2pfl(homes[1], "proofs").stdout
    file = tmp_path / "a.proof"
    assert p2pfl(homes[1], "proofs", "-o", str(file)).exit_code == 0
    assert p2pfl(tmp_path, "check", str(file)).exit_code == 0
    assert p2pfl(homes[1], "proofs", "--peer", "nobody", "-o", str(file)).exit_code == Exit.USAGE


def test_a_running_node_is_asked(tmp_path: Path) -> None:
    target = FakeTarget()
    target.answer = {"outbound": [{"peer": LIAR.peer_id, "kind": "share", "messages": 2, "bytes": 9}]}
    with served(tmp_path, target):
        assert said(tmp_path, "outbound")["outbound"][0]["bytes"] == 9
        target.answer = {"proofs": []}
        assert p2pfl(tmp_path, "proofs").stdout == "no proofs\n"


def test_a_home_without_a_run_says_so(tmp_path: Path) -> None:
    assert p2pfl(tmp_path, "verify").exit_code == Exit.NOT_RUNNING
    Store.open(tmp_path).close()
    assert "holds no run yet" in p2pfl(tmp_path, "verify").stderr


def test_privacy_says_what_each_data_set_has_spent(homes: list[Path], tmp_path: Path) -> None:
    assert p2pfl(homes[0], "privacy").stdout == "nothing was released under an agreement with noise\n"
    account = spend(spend(Account(data_set="rows ab"), sigma=1.1, q=0.01, steps=1000), sigma=4.0)
    target = FakeTarget()
    target.answer = {"accounts": [msgspec.to_builtins(account)]}
    with served(tmp_path, target):
        (found,) = said(tmp_path, "privacy", "--delta", "1e-6")["accounts"]
        assert found["epsilon"] == epsilon_of(account, 1e-6)
        assert [entry["steps"] for entry in found["spent"]] == [1000, 1]
        assert f"{epsilon_of(account, 1e-5):.4g}" in p2pfl(tmp_path, "privacy").stdout
