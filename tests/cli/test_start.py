from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import trio
from click.testing import CliRunner, Result

from p2pfl.cli import live, start
from p2pfl.cli.exits import Exit
from p2pfl.cli.main import main
from p2pfl.cli.terminal import Terminal
from p2pfl.errors import StoreError
from p2pfl.events import Fact
from p2pfl.node import daemon

PROGRAM = [sys.executable, "-c", "from p2pfl.cli.main import main; main()"]


def p2pfl(home: Path, *words: str) -> Result:
    return CliRunner().invoke(main, ["--home", str(home), *words])


@dataclass(frozen=True, kw_only=True)
class Ended:
    """What a stubbed `serve` gives."""

    reason: str = "done"
    round: int = 5
    metrics: Mapping[str, float] = field(default_factory=lambda: {"loss": 0.25, "accuracy": 0.9})
    state: Mapping[str, Any] = field(
        default_factory=lambda: {"run_id": "ab", "members": 4, "mass": {"w": 1.0, "in_flight": 0.5}}
    )


class Serve:
    """Stands in for the node: plays facts, then ends as told."""

    def __init__(self, outcome: Ended | Exception | None) -> None:
        self.outcome = outcome
        self.asked: dict[str, Any] = {}

    async def __call__(self, *, on_fact: Any, **asked: Any) -> Ended:
        self.asked = asked
        on_fact(Fact(event="listening", fields={"addresses": ["/ip4/127.0.0.1/tcp/1/p2p/X"]}))
        for number in range(5):
            fields = {
                "round": number,
                "training_round": number,
                "peers": 3,
                "seconds": 0.5,
                "w": 1.0,
                "loss": 0.5,
                "bytes_sent": 100,
            }
            on_fact(Fact(event="round committed", fields=fields))
            on_fact(
                Fact(
                    event="evaluated", fields={"round": number, "metrics": {"accuracy": 0.9}, "final": False}
                )
            )
        if isinstance(self.outcome, Exception):
            raise self.outcome
        if self.outcome is None:
            os.kill(os.getpid(), signal.SIGTERM)
            await trio.sleep_forever()
        assert self.outcome is not None
        return self.outcome


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("PYTHONPATH", "")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A node that has founded a run of its own."""
    folder = tmp_path / "home"
    words = ["--name", "alpha", "--listen", "/ip4/127.0.0.1/tcp/0", "--bulk-listen", "127.0.0.1:0"]
    assert p2pfl(folder, "node", "init", *words).exit_code == 0
    words = ["--from", "numpy", "--members", "1", str(tmp_path / "ward")]
    assert p2pfl(folder, "run", "new", *words).exit_code == 0
    return folder


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Serve:
    stub = Serve(Ended())
    monkeypatch.setattr(daemon, "serve", stub)
    return stub


def agreement_of(home: Path) -> Path:
    return home.parent / "ward" / "run.toml"


def test_a_founder_starts_its_own_run_and_it_is_remembered(home: Path, serve: Serve) -> None:
    result = p2pfl(home, "node", "start", "--run", str(agreement_of(home)))
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0].startswith("alpha  12D3KooW")
    assert lines[2] == "listening  /ip4/127.0.0.1/tcp/1/p2p/X"
    assert lines[3] == "round 1/50  3 heard  0.5 s  w 1.000  loss 0.5000"
    assert lines[4].endswith("here accuracy 0.9000")
    assert "done after round 5" in result.stdout
    assert (home / "run.toml").read_text() == agreement_of(home).read_text()
    assert p2pfl(home, "node", "start").exit_code == 0


def test_flags_stand_above_node_toml(home: Path, serve: Serve) -> None:
    words = [
        "--listen",
        "/ip4/127.0.0.1/tcp/7",
        "--bulk-listen",
        "127.0.0.1:8",
        "--data",
        "d",
        "--name",
        "n",
        "--rounds",
        "3",
    ]
    assert p2pfl(home, "node", "start", "--run", str(agreement_of(home)), *words).exit_code == 0
    node = serve.asked["settings"].node
    assert (node.listen, node.bulk_listen, node.data, node.name) == (
        ("/ip4/127.0.0.1/tcp/7",),
        "127.0.0.1:8",
        "d",
        "n",
    )
    assert serve.asked["until_round"] == 3


def test_as_json_every_round_is_a_line_and_the_last_has_every_promised_key(home: Path, serve: Serve) -> None:
    result = p2pfl(home, "node", "start", "--run", str(agreement_of(home)), "--json")
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert all(line["v"] == 1 for line in lines)
    assert [line["round"] for line in lines if line.get("event") == "round committed"] == [0, 1, 2, 3, 4]
    promised = (
        "v engine peers rounds metric pooled alone consensus_distance mass bytes_sent "
        "bytes_per_peer_round wall_s peak_rss_mb seed run_id report per_peer"
    )
    assert set(promised.split()) <= set(lines[-1])
    assert lines[-1]["metric"] == {"name": "accuracy", "mean": 0.9, "min": 0.9, "max": 0.9}
    assert (lines[-1]["bytes_sent"], lines[-1]["bytes_per_peer_round"]) == (500, 100)
    assert lines[-1]["mass"]["sum"] == 1.5


def test_a_term_signal_is_a_clean_stop_with_its_own_code(home: Path, serve: Serve) -> None:
    serve.outcome = None
    result = p2pfl(home, "node", "start", "--run", str(agreement_of(home)))
    assert result.exit_code == Exit.TERMINATED
    assert "stopped by SIGTERM; state saved at round 5" in result.stdout


@pytest.mark.parametrize(
    ("reason", "code"), [("done", 0), ("left", 0), ("stopped", 0), ("revoked", Exit.REFUSED)]
)
def test_every_way_to_end_has_its_sentence_and_its_code(
    home: Path, serve: Serve, reason: str, code: int
) -> None:
    serve.outcome = Ended(reason=reason)
    result = p2pfl(home, "node", "start", "--run", str(agreement_of(home)))
    assert result.exit_code == code
    assert result.stdout.splitlines()[-1]


def test_what_the_node_raises_ends_with_its_code(home: Path, serve: Serve) -> None:
    serve.outcome = StoreError("the home is locked by process 7; stop it")
    result = p2pfl(home, "node", "start", "--run", str(agreement_of(home)))
    assert result.exit_code == Exit.FAILED
    assert "hint: stop it" in result.stderr


def test_a_node_that_joined_nothing_does_not_start(home: Path, serve: Serve) -> None:
    result = p2pfl(home, "node", "start")
    assert result.exit_code == Exit.USAGE
    assert "run join" in result.stderr


def test_another_agreement_is_refused_with_the_keys_that_differ(
    home: Path, serve: Serve, tmp_path: Path
) -> None:
    assert p2pfl(home, "node", "start", "--run", str(agreement_of(home))).exit_code == 0
    other = tmp_path / "other.toml"
    other.write_text(agreement_of(home).read_text().replace("rounds = 50", "rounds = 51"))
    result = p2pfl(home, "node", "start", "--run", str(other))
    assert result.exit_code == Exit.REFUSED
    assert "differs in run.rounds" in result.stderr


def test_a_stranger_does_not_start_a_run(home: Path, serve: Serve, tmp_path: Path) -> None:
    p2pfl(tmp_path / "b", "node", "init")
    result = p2pfl(tmp_path / "b", "node", "start", "--run", str(agreement_of(home)))
    assert result.exit_code == Exit.REFUSED
    assert not (tmp_path / "b" / "run.toml").exists()


def test_the_learner_flag_finds_the_code_and_never_changes_it(
    home: Path, serve: Serve, tmp_path: Path
) -> None:
    code = tmp_path / "elsewhere" / "learner.py"
    code.parent.mkdir()
    code.write_text("def learner(site): ...\ndef other(site): ...\n")
    run = ["node", "start", "--run", str(agreement_of(home)), "--learner"]
    assert p2pfl(home, *run, f"{code}:learner").exit_code == 0
    assert os.environ["PYTHONPATH"] == str(code.parent)
    refused = p2pfl(home, *run, f"{code}:other")
    assert refused.exit_code == Exit.REFUSED
    assert "no flag changes it" in refused.stderr
    assert p2pfl(home, *run, f"{tmp_path}/missing/learner.py:learner").exit_code == Exit.USAGE


def test_the_learner_is_found_where_the_agreement_came_from(home: Path, serve: Serve) -> None:
    assert p2pfl(home, "run", "join", str(agreement_of(home)), "--yes").exit_code == 0
    assert p2pfl(home, "node", "start").exit_code == 0
    assert os.environ["PYTHONPATH"] == str(agreement_of(home).parent)


def test_nothing_is_shown_of_a_quiet_fact(capsys: pytest.CaptureFixture[str]) -> None:
    view = live.LiveRounds(Terminal(), rounds=3)
    view(Fact(event="addresses published", fields={"new": True}))
    view(Fact(event="paused", fields={"reason": "quorum\x1b[2J"}))
    assert capsys.readouterr().out == "paused  quorum?[2J\n"


def test_a_daemon_counts_rounds_and_prints_none(capsys: pytest.CaptureFixture[str]) -> None:
    view = live.LiveRounds(Terminal(), rounds=3, shown=False)
    view(Fact(event="round committed", fields={"round": 6, "training_round": 4, "bytes_sent": 10}))
    assert (view.round, view.bytes_sent) == (5, 10)
    assert capsys.readouterr().out == ""


def test_a_summary_without_mass_or_metrics_has_nulls() -> None:
    view = live.LiveRounds(Terminal(), rounds=3)
    value = live.summary(view, reason="done", metrics={}, state={"mass": None}, seed=1)
    assert value["metric"] == {"name": None, "mean": None, "min": None, "max": None}
    assert value["mass"] == {"sum": None, "expected": None, "error": None}
    json.dumps(value)


def lines_until(process: subprocess.Popen[str], word: str) -> list[str]:
    """The lines of a process up to the first that holds `word`."""
    assert process.stdout is not None
    seen = []
    for line in process.stdout:
        seen.append(line)
        if word in line:
            return seen
    raise AssertionError("".join(seen))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code"),
    [
        pytest.param(signal.SIGINT, Exit.INTERRUPTED, marks=pytest.mark.slow),
        (signal.SIGTERM, Exit.TERMINATED),
    ],
)
def test_a_real_node_stops_at_a_signal_and_goes_on_from_there(
    home: Path, number: signal.Signals, code: Exit
) -> None:
    agreement_of(home).write_text(agreement_of(home).read_text().replace("rounds = 50", "rounds = 100000"))
    words = [*PROGRAM, "--home", str(home), "node", "start", "--run", str(agreement_of(home)), "--json"]
    environment = {**os.environ, "PYTHONPATH": ""}
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        lines_until(process, '"round": 5,')
        process.send_signal(number)
        rest, complaint = process.communicate(timeout=60)
    assert process.returncode == code, complaint
    last = json.loads(rest.splitlines()[-1])
    assert last["signal"] == number.name
    again = subprocess.run(
        [*words, "--rounds", str(last["round"] + 3)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=60,
    )
    assert again.returncode == 0, again.stderr
    rounds = [json.loads(line) for line in again.stdout.splitlines()]
    first = next(line["round"] for line in rounds if line.get("event") == "round committed")
    # The signal may have come between a commit and its line.
    assert last["round"] <= first <= last["round"] + 1


@pytest.mark.slow
def test_a_real_daemon_is_ready_when_the_command_returns(home: Path) -> None:
    agreement_of(home).write_text(agreement_of(home).read_text().replace("rounds = 50", "rounds = 100000"))
    words = [*PROGRAM, "--home", str(home), "--json"]

    def run(*more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*words, *more], capture_output=True, text=True, timeout=60, env={**os.environ, "PYTHONPATH": ""}
        )

    started = run("node", "start", "--run", str(agreement_of(home)), "--detach")
    assert started.returncode == 0, started.stderr
    banner = json.loads(started.stdout)
    try:
        assert banner["addresses"]
        # Its own session, and not its leader: it can never get a terminal.
        assert os.getsid(banner["pid"]) not in (os.getsid(0), banner["pid"])
        assert json.loads(run("status").stdout)["state"] == "running"
        twice = run("node", "start", "--detach")
        assert twice.returncode == Exit.USAGE
        assert "already" in twice.stderr
    finally:
        stopped = run("node", "stop")
    assert stopped.returncode == 0, stopped.stderr
    assert run("status").returncode == Exit.NOT_RUNNING
    assert '"reason": "stopped"' in Path(banner["log"]).read_text()


@pytest.mark.slow
def test_a_daemon_that_cannot_start_says_why_in_front(home: Path) -> None:
    (agreement_of(home).parent / "learner.py").write_text("raise RuntimeError('no such disk')\n")
    words = ["--home", str(home), "node", "start", "--run", str(agreement_of(home)), "--detach"]
    environment = {**os.environ, "PYTHONPATH": ""}
    result = subprocess.run([*PROGRAM, *words], capture_output=True, text=True, timeout=60, env=environment)
    assert result.returncode not in (0, None)
    assert "no such disk" in result.stderr
    assert "no such disk" in (home / "node.log").read_text()
    assert not (home / "control.sock").exists()


def test_the_flags_of_start_are_those_of_the_design() -> None:
    names = {option for parameter in start.start.params for option in parameter.opts}
    assert {"--run", "--learner", "--detach", "--rounds", "--listen", "--bulk-listen", "--bootstrap"} <= names
