from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from control_target import ALPHA, BETA, GAMMA, FakeTarget, Running, served

from p2pfl.cli.client import ControlClient, one_peer
from p2pfl.cli.exits import Exit
from p2pfl.cli.main import main
from p2pfl.cli.rounds import rounds as rounds_command
from p2pfl.cli.status import _statuses
from p2pfl.errors import ConfigError, LocalError, P2PFLError, RefusedError, StoreError, UnreachableError
from p2pfl.events import Fact, Snapshot
from p2pfl.ids import RunId
from p2pfl.node.store import Store


def p2pfl(home: Path, *words: str) -> Result:
    return CliRunner().invoke(main, ["--home", str(home), *words])


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Running]:
    with served(tmp_path) as running:
        yield running


def test_status_says_what_a_person_asks_first(tmp_path: Path, node: Running) -> None:
    result = p2pfl(tmp_path, "status")
    assert result.exit_code == 0
    assert result.stdout.splitlines()[0] == f"alpha  {ALPHA}"
    for part in ("state      running", "round 7 of 50", "1 connected, 3 members", "accuracy 0.91", "w 1.25"):
        assert part in result.stdout


def test_status_as_json_has_the_promised_keys(tmp_path: Path, node: Running) -> None:
    said = json.loads(p2pfl(tmp_path, "status", "--json").stdout)
    assert {
        "v",
        "peer_id",
        "name",
        "addresses",
        "run_id",
        "round",
        "state",
        "peers",
        "metric",
        "mass",
    } <= set(said)
    assert said["metric"] == {"accuracy": 0.91, "loss": None}


def test_status_shows_why_a_node_pauses(tmp_path: Path, node: Running) -> None:
    node.target.now |= {"state": "paused", "reason": "1 of 3 neighbours heard"}
    assert "paused: 1 of 3 neighbours heard" in p2pfl(tmp_path, "status").stdout


def test_status_of_all_nodes_tells_the_stopped_ones_too(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "node.toml").write_text("[node]\n")
    with served(tmp_path / "a"):
        text = p2pfl(tmp_path, "status", "--all").stdout
        lines = [
            json.loads(line) for line in p2pfl(tmp_path, "status", "--all", "--json").stdout.splitlines()
        ]
    assert "alpha" in text
    assert "not running" in text
    assert [line["state"] for line in lines] == ["running", "not running"]


def test_status_of_all_nodes_says_when_there_is_none(tmp_path: Path) -> None:
    assert p2pfl(tmp_path, "status", "--all").exit_code == Exit.USAGE


def test_a_watched_status_ends_with_the_node(tmp_path: Path, node: Running) -> None:
    node.publish("round committed", round=7)
    node.call(node.target.hub.close)
    result = p2pfl(tmp_path, "status", "--watch", "--json")
    assert result.exit_code == 0
    # What happened before is not news.
    assert [json.loads(line)["round"] for line in result.stdout.splitlines()] == [7]


def test_a_watched_status_is_told_again_when_something_happens(tmp_path: Path, node: Running) -> None:
    told = _statuses(tmp_path)
    assert next(told)["round"] == 7
    node.target.now["round"] = 8
    worker = threading.Thread(target=lambda: node.publish("round committed", round=8))
    # The stream must be open before the fact: it is asked for "now".
    node.call(lambda: node.target.hub.publish(Fact(event="evaluated")))
    opened = node.target.hub.subscribe

    def subscribe(since: int) -> Any:
        worker.start()
        return opened(since)

    node.target.hub.subscribe = subscribe  # type: ignore[method-assign, assignment]
    assert next(told)["round"] == 8
    worker.join(timeout=30)
    told.close()


def test_peers_are_listed_in_the_order_asked_for(tmp_path: Path, node: Running) -> None:
    def names(*words: str) -> list[str]:
        return [
            peer["name"] for peer in json.loads(p2pfl(tmp_path, "peers", "--json", *words).stdout)["peers"]
        ]

    assert names() == ["beta", "gamma"]
    assert names("--sort", "round") == ["gamma", "beta"]
    text = p2pfl(tmp_path, "peers").stdout
    assert "…3Lcgrv" in text
    assert "connected" in text
    assert "deny" in text


def test_without_other_members_peers_says_so(tmp_path: Path, node: Running) -> None:
    node.target.members = []
    assert p2pfl(tmp_path, "peers").stdout == "no other members yet\n"


@pytest.mark.parametrize("word", ["beta", BETA, BETA[-6:], f"…{BETA[-6:]}", BETA[:13]])
def test_a_peer_may_be_named_by_id_name_or_a_unique_part(tmp_path: Path, node: Running, word: str) -> None:
    node.target.answer = {"rtt_ms": 12.345}
    result = p2pfl(tmp_path, "ping", word)
    assert result.stdout == f"{BETA} answered in 12.3 ms\n"
    assert node.target.commands == [("ping", {"peer": BETA})]


def test_a_part_that_fits_several_peers_is_refused_and_names_them(tmp_path: Path, node: Running) -> None:
    result = p2pfl(tmp_path, "ping", "12D3KooW")
    assert result.exit_code == Exit.USAGE
    assert BETA in result.stderr
    assert GAMMA in result.stderr


def test_a_name_nobody_has_is_refused(tmp_path: Path, node: Running) -> None:
    result = p2pfl(tmp_path, "ping", "delta")
    assert result.exit_code == Exit.USAGE
    assert "`p2pfl peers` lists them" in result.stderr


def test_a_name_beats_a_part_of_an_id() -> None:
    peers = [{"peer_id": BETA, "name": "rgrv"}, {"peer_id": GAMMA, "name": BETA[-4:]}]
    assert one_peer(BETA[-4:], peers) == GAMMA
    with pytest.raises(ConfigError, match="no member"):
        one_peer("", peers)


@pytest.mark.parametrize(
    ("error", "exit_"),
    [
        (UnreachableError("beta is not connected"), Exit.UNREACHABLE),
        (RefusedError("no"), Exit.REFUSED),
        (StoreError("full"), Exit.FAILED),
        (ConfigError("bad"), Exit.USAGE),
        (LocalError("hm"), Exit.FAILED),
        (RuntimeError("a fault of the node"), Exit.FAILED),
    ],
)
def test_what_the_node_refuses_ends_with_its_own_exit_code(
    tmp_path: Path, node: Running, error: P2PFLError, exit_: Exit
) -> None:
    node.target.fails = error
    result = p2pfl(tmp_path, "ping", "beta")
    assert result.exit_code == exit_
    assert str(error) in result.stderr


def test_topology_is_for_people_and_for_graphviz(tmp_path: Path, node: Running) -> None:
    text = p2pfl(tmp_path, "topology").stdout
    assert text.startswith("round 7, ring\n")
    assert "alpha  ->  beta" in text
    dot = p2pfl(tmp_path, "topology", "--format", "dot").stdout
    assert '  "alpha" -> "beta" [label="0.5"];' in dot
    assert dot.startswith("digraph")


def test_a_peers_name_cannot_break_out_of_the_graph(tmp_path: Path, node: Running) -> None:
    node.target.members[0]["name"] = 'x"];\nevil -> "y\\'
    dot = p2pfl(tmp_path, "topology", "--format", "dot").stdout
    assert dot.count('"') % 2 == 0
    assert not any(line.startswith("evil") for line in dot.splitlines())


def test_rounds_come_as_table_csv_and_json(tmp_path: Path, node: Running) -> None:
    table = p2pfl(tmp_path, "rounds", "--since", "2").stdout.splitlines()
    assert table[0].split() == ["round", "at", "peers", "seconds", "w", "loss", "sent", "received", "metrics"]
    assert [line.split()[0] for line in table[1:]] == ["2", "3", "4"]
    lines = p2pfl(tmp_path, "rounds", "--format", "csv").stdout.splitlines()
    assert lines[0] == "round,at,peers,seconds,w,loss,bytes_sent,bytes_received,metrics"
    assert lines[1].startswith("0,0.0,2,0.5,1.0,1.0,")
    objects = [json.loads(line) for line in p2pfl(tmp_path, "rounds", "--json").stdout.splitlines()]
    assert [row["round"] for row in objects] == [0, 1, 2, 3, 4]
    assert objects[0]["v"] == 1


def test_rounds_that_come_while_following_are_shown_once(tmp_path: Path, node: Running) -> None:
    for number in (4, 5, 6):
        node.publish("round committed", round=number, w=1.0)
    node.call(node.target.hub.close)
    result = p2pfl(tmp_path, "rounds", "--follow", "--json")
    assert [json.loads(line)["round"] for line in result.stdout.splitlines()] == [0, 1, 2, 3, 4, 5, 6]


def test_the_log_shows_facts_with_their_fields(tmp_path: Path, node: Running) -> None:
    node.publish("round committed", round=7, w=1.23456789, digest=None)
    node.publish("paused", reason="quorum")
    lines = p2pfl(tmp_path, "log").stdout.splitlines()
    assert lines[0].split() == ["1", "info", "round", "committed", "round=7", "w=1.235"]
    assert p2pfl(tmp_path, "log", "--since", "1").stdout.splitlines() == lines[1:]
    assert json.loads(p2pfl(tmp_path, "log", "--json").stdout.splitlines()[1])["fields"] == {
        "reason": "quorum"
    }


@pytest.mark.parametrize(
    "words",
    [
        ["status"],
        ["peers"],
        ["topology"],
        ["ping", "x"],
        ["rounds"],
        ["log"],
        ["trust", "list"],
        ["run", "pause"],
        ["run", "leave", "--yes"],
        ["node", "stop"],
    ],
)
def test_without_a_node_every_question_exits_with_three(tmp_path: Path, words: list[str]) -> None:
    result = p2pfl(tmp_path, *words)
    assert result.exit_code == Exit.NOT_RUNNING
    assert "no node runs in" in result.stderr
    assert not (tmp_path / "store.db").exists()


def test_a_stopped_node_answers_rounds_and_log_from_its_disk(tmp_path: Path) -> None:
    run = RunId("cd" * 32)
    snapshot = Snapshot(arrays={}, ledger=b"")
    with Store.open(tmp_path) as store:
        for number in range(3):
            facts = (
                Fact(event="round committed", fields={"round": number, "peers": 2, "w": 1.0}),
                Fact(event="evaluated", fields={"round": number, "metrics": {"accuracy": 0.5 + number / 10}}),
            )
            store.commit(run, snapshot, facts, 1000.0 + number)
    result = p2pfl(tmp_path, "rounds", "--since", "1")
    assert result.exit_code == 0
    assert [line.split()[0] for line in result.stdout.splitlines()[1:]] == ["1", "2"]
    assert "accuracy 0.7" in result.stdout
    assert "not running" in result.stderr
    facts_said = p2pfl(tmp_path, "log", "--json").stdout.splitlines()
    assert len(facts_said) == 6
    assert p2pfl(tmp_path, "rounds", "--follow").exit_code == Exit.NOT_RUNNING


def test_a_stopped_node_lists_its_peers_as_its_disk_last_knew_them(tmp_path: Path) -> None:
    run = RunId("cd" * 32)
    known = {
        "round": 7,
        "state": "connected",
        "seen_at": 1000.0,
        "sent_w": 2.5,
        "absorbed_w": 1.5,
        "unresolved": 1,
    }
    beta = {"peer": BETA, **known}
    gamma = {"peer": GAMMA, **known, "round": 3, "state": "late", "seen_at": None}
    with Store.open(tmp_path) as store:
        store.commit(RunId("ab" * 32), Snapshot(arrays={}, ledger=b""), (), 1.0, [beta])
        store.commit(run, Snapshot(arrays={}, ledger=b""), (), 2.0, [beta, gamma])
    result = p2pfl(tmp_path, "peers", "--sort", "round")
    assert result.exit_code == 0
    assert "not running" in result.stderr
    lines = [line.split() for line in result.stdout.splitlines()]
    assert [line[0] for line in lines[1:]] == [f"…{GAMMA[-6:]}", f"…{BETA[-6:]}"]
    assert lines[1][2:9] == ["late", "3", "-", "-", "2.5", "1.5", "1"]
    found = json.loads(p2pfl(tmp_path, "peers", "--json").stdout)["peers"]
    assert {peer["peer_id"]: peer["last_seen"] for peer in found} == {BETA: 1000.0, GAMMA: None}


def test_a_stopped_node_that_met_nobody_says_so(tmp_path: Path) -> None:
    Store.open(tmp_path).close()
    assert p2pfl(tmp_path, "peers").stdout == "no other members yet\n"


def test_a_follower_ends_quietly_when_the_node_dies(tmp_path: Path) -> None:
    target = FakeTarget()
    with served(tmp_path, target) as running, ControlClient(tmp_path) as client:
        running.publish("run began")
        stream = client.events()
        assert next(stream)["event"] == "run began"
        running.call(target.stopped.set)
        assert list(stream) == []


def test_the_rounds_command_has_the_documented_formats() -> None:
    formats = next(p for p in rounds_command.params if p.name == "form")
    assert list(getattr(formats.type, "choices", ())) == ["table", "csv", "json"]


@pytest.mark.parametrize(
    ("days", "said"),
    [(30, None), (3, "certificate ends in 3.0 days"), (-1, "certificate has expired"), (None, None)],
)
def test_a_certificate_that_ends_soon_is_mentioned(
    tmp_path: Path, days: float | None, said: str | None
) -> None:
    target = FakeTarget()
    target.now["expires_at"] = None if days is None else time.time() + days * 86_400 + 60
    with served(tmp_path, target):
        text = CliRunner().invoke(main, ["--home", str(tmp_path), "status"]).stdout
    assert (said in text) if said else ("certificate" not in text)
