"""`p2pfl simulate --join`: what it takes, what it refuses, and which learner the node then has."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from p2pfl.cli.exits import Exit
from p2pfl.cli.main import main
from p2pfl.node import daemon
from p2pfl.node.inline_learner import InlineLearner
from p2pfl.node.learner_process import LearnerProcess
from p2pfl.run import load, run_id
from p2pfl.trust import identity
from p2pfl.trust.certificates import issue_certificate
from p2pfl.trust.tickets import write_ticket

AGREEMENT = """
[run]
members_at_start = 1
[learner]
model = { kind = "logistic" }
local_steps = 10
data = { source = "sklearn:iris" }
[trust]
founders = ["$FOUNDER"]
"""


@dataclass(frozen=True, kw_only=True)
class Ended:
    """What a stubbed `serve` gives."""

    reason: str = "done"
    round: int = 5
    metrics: Mapping[str, float] = field(default_factory=dict)
    state: Mapping[str, Any] = field(default_factory=dict)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the node is started with, and nothing happens."""
    seen: dict[str, Any] = {}

    async def serve(**given: Any) -> Ended:
        seen.update(given)
        return Ended()

    monkeypatch.setattr(daemon, "serve", serve)
    return seen


def p2pfl(home: Path, *words: str) -> Result:
    return CliRunner().invoke(main, ["--home", str(home), *words])


def node(folder: Path) -> Path:
    words = ["--listen", "/ip4/127.0.0.1/tcp/0", "--bulk-listen", "127.0.0.1:0"]
    assert p2pfl(folder, "node", "init", *words).exit_code == 0
    return folder


@pytest.fixture
def founder(tmp_path: Path) -> Path:
    home = node(tmp_path / "founder")
    text = AGREEMENT.replace("$FOUNDER", identity.load(home / "identity.key").peer_id)
    (tmp_path / "run.toml").write_text(text)
    return home


def ticket(founder: Path, guest: Path, agreement: Path) -> str:
    certificate = issue_certificate(
        identity.load(founder / "identity.key"),
        run=run_id(load(agreement)),
        subject=identity.load(guest / "identity.key").peer_id,
        now=time.time(),
        nonce=bytes(16),
    )
    return write_ticket(
        certificate, ["/ip4/127.0.0.1/tcp/9/p2p/" + identity.load(founder / "identity.key").peer_id]
    )


def test_a_founder_takes_part_without_a_ticket_and_its_learner_is_a_population(
    founder: Path, tmp_path: Path, asked: dict[str, Any]
) -> None:
    result = p2pfl(
        founder, "simulate", str(tmp_path / "run.toml"), "--join", "--peers", "30", "--data", "npz:mine"
    )
    assert result.exit_code == 0, result.stderr
    assert "behind it  30 virtual peers, 2 inner rounds each" in result.stdout
    assert isinstance(asked["learning"], LearnerProcess)
    assert asked["settings"].node.data == "npz:mine"
    settings = founder / "node.toml"
    settings.write_text(settings.read_text().replace("[node]", '[node]\nisolation = "thread"', 1))
    result = p2pfl(
        founder, "simulate", str(tmp_path / "run.toml"), "--join", "--peers", "30", "--inner-rounds", "5"
    )
    assert "30 virtual peers, 5 inner rounds each" in result.stdout
    assert isinstance(asked["learning"], InlineLearner)


def test_a_guest_consents_once_and_the_same_command_starts_it_again(
    founder: Path, tmp_path: Path, asked: dict[str, Any]
) -> None:
    guest, agreement = node(tmp_path / "guest"), tmp_path / "run.toml"
    words = ["simulate", str(agreement), "--join", ticket(founder, guest, agreement), "--peers", "30"]
    result = p2pfl(guest, *words)
    assert result.exit_code == Exit.USAGE
    assert "this needs consent" in result.stderr
    assert not (guest / "run.toml").exists()
    result = p2pfl(guest, *words, "--yes")
    assert result.exit_code == 0, result.stderr
    assert "every site weighs the same" in result.stderr
    assert asked["settings"].node.bootstrap[0].startswith("/ip4/127.0.0.1/tcp/9/p2p/")
    asked.clear()
    result = p2pfl(guest, *words)
    assert result.exit_code == 0, result.stderr
    assert "every site weighs the same" not in result.stderr
    assert asked["learning"] is not None


def test_who_has_no_ticket_is_no_founder_and_did_not_join_is_told_whom_to_ask(
    founder: Path, tmp_path: Path, asked: dict[str, Any]
) -> None:
    guest = node(tmp_path / "guest")
    result = p2pfl(guest, "simulate", str(tmp_path / "run.toml"), "--join", "--peers", "30")
    assert result.exit_code == Exit.REFUSED
    assert "trust invite" in result.stderr
    assert not asked


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (("--join",), "--join needs --peers"),
        (("--join", "--peers", "3", "--rounds", "4"), "everything else is in the agreement"),
        (("--join", "--peers", "3", "--seeds", "0-4"), "everything else is in the agreement"),
        (("--join", "--peers", "3", "--jobs", "2"), "everything else is in the agreement"),
        (("--join", "--peers", "3", "--inner-rounds", "4"), "do not divide learner.local_steps 10"),
        (("--join", "--peers", "3", "--partition", "salami"), "salami"),
        (("--join", "--peers", "2000000"), "1000000"),
        (("--partition", "iid"), "--partition goes with --join"),
        (("--yes",), "--yes goes with --join"),
    ],
)
def test_what_does_not_go_together_is_refused(
    founder: Path, tmp_path: Path, asked: dict[str, Any], words: tuple[str, ...], what: str
) -> None:
    result = p2pfl(founder, "simulate", str(tmp_path / "run.toml"), *words)
    assert result.exit_code == Exit.USAGE
    assert what in result.stderr
    assert not asked


def test_a_scenario_is_no_agreement(founder: Path, tmp_path: Path, asked: dict[str, Any]) -> None:
    result = p2pfl(founder, "simulate", "digits", "--join", "--peers", "3")
    assert result.exit_code == Exit.USAGE
    assert "--join takes the agreement" in result.stderr
