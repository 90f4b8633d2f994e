from __future__ import annotations

import json
from pathlib import Path

import pytest
import trio
from click.testing import CliRunner, Result
from control_target import FakeTarget, served

from p2pfl.cli.exits import Exit
from p2pfl.cli.main import main
from p2pfl.ids import PeerId
from p2pfl.node.store import Store
from p2pfl.run import load, run_id
from p2pfl.trust import identity
from p2pfl.trust.successions import is_signed
from p2pfl.trust.tickets import parse_ticket


def p2pfl(home: Path, *words: str) -> Result:
    return CliRunner().invoke(main, ["--home", str(home), *words])


def peer_of(home: Path) -> PeerId:
    return identity.load(home / "identity.key").peer_id


@pytest.fixture
def member(tmp_path: Path) -> Path:
    """The home of a member that joined by a ticket; its recovery key and run.toml lie beside it."""
    founder, home = tmp_path / "founder", tmp_path / "member"
    assert p2pfl(founder, "node", "init", "--listen", "/ip4/10.0.0.1/tcp/4911").exit_code == 0
    assert p2pfl(home, "node", "init", "--recovery", str(tmp_path / "spare.key")).exit_code == 0
    agreement = tmp_path / "run.toml"
    agreement.write_text(f'[learner]\nmodule = "x:y"\n[trust]\nfounders = ["{peer_of(founder)}"]\n')
    assert p2pfl(founder, "run", "join", str(agreement), "--yes").exit_code == 0
    spare = identity.load(tmp_path / "spare.key").peer_id
    ticket = p2pfl(founder, "trust", "invite", peer_of(home), "--recovery", spare).stdout.strip()
    assert p2pfl(home, "run", "join", str(agreement), "--ticket", ticket, "--yes").exit_code == 0
    return home


def test_a_member_gets_a_new_key_and_the_ticket_speaks_of_both(member: Path) -> None:
    old = peer_of(member)
    done = p2pfl(member, "node", "rotate-key", "--yes", "--json")
    assert done.exit_code == 0, done.stderr
    new = peer_of(member)
    assert json.loads(done.stdout) == {"v": 1, "peer_id": new, "old": old}
    ticket = parse_ticket((member / "ticket").read_text())
    (made,) = ticket.successions
    assert (made.old, made.new, made.signer, ticket.subject) == (old, new, old, new)
    assert is_signed(made)
    assert not (member / "identity.next").exists()
    assert (member / "identity.key").stat().st_mode & 0o777 == 0o600
    # And once more: the second follows the first.
    assert p2pfl(member, "node", "rotate-key", "--yes").exit_code == 0
    assert len(parse_ticket((member / "ticket").read_text()).successions) == 2


def test_a_rotation_that_was_cut_short_is_finished_by_the_next_attempt(member: Path) -> None:
    old = (member / "identity.key").read_bytes()
    assert p2pfl(member, "node", "rotate-key", "--yes").exit_code == 0
    new = peer_of(member)
    # As a crash would leave it before the last step.
    (member / "identity.key").rename(member / "identity.next")
    (member / "identity.key").write_bytes(old)
    (member / "identity.key").chmod(0o600)
    assert p2pfl(member, "node", "rotate-key").exit_code == 0
    assert peer_of(member) == new
    assert len(parse_ticket((member / "ticket").read_text()).successions) == 1


def test_weight_that_was_not_handed_over_keeps_its_key(member: Path) -> None:
    run = run_id(load(member / "run.toml"))
    old = peer_of(member)
    with Store.open(member) as store:
        store.mark(run, "running", 1.0)
    refused = p2pfl(member, "node", "rotate-key", "--yes")
    assert refused.exit_code == Exit.USAGE
    assert "would be lost" in refused.stderr
    assert peer_of(member) == old
    with Store.open(member) as store:
        store.mark(run, "left", 2.0)
    assert p2pfl(member, "node", "rotate-key", "--yes").exit_code == 0


@pytest.mark.slow
def test_a_running_node_leaves_first(member: Path) -> None:
    class Leaver(FakeTarget):
        async def command(self, verb: str, arguments: dict[str, object]) -> dict[str, object]:
            answer = await super().command(verb, dict(arguments))
            # It goes when its answer is out.
            trio.lowlevel.spawn_system_task(self.go)
            return answer

        async def go(self) -> None:
            await trio.sleep(0.2)
            self.stopped.set()

    target = Leaver()
    with served(member, target):
        assert p2pfl(member, "node", "rotate-key", "--yes").exit_code == 0
    assert target.commands == [("leave", {})]


def test_a_founder_s_key_stays_and_so_does_anybody_s_without_consent(member: Path, tmp_path: Path) -> None:
    refused = p2pfl(tmp_path / "founder", "node", "rotate-key", "--yes")
    assert refused.exit_code == Exit.REFUSED
    assert "part of the agreement" in refused.stderr
    old = peer_of(member)
    assert p2pfl(member, "node", "rotate-key").exit_code != 0
    assert peer_of(member) == old


def test_with_the_recovery_key_another_node_takes_the_place_of_a_lost_one(
    member: Path, tmp_path: Path
) -> None:
    ticket = (member / "ticket").read_text().strip()
    lost, home = peer_of(member), tmp_path / "again"
    assert p2pfl(home, "node", "init").exit_code == 0
    words = ("run", "join", str(tmp_path / "run.toml"), "--ticket", ticket, "--yes")
    assert p2pfl(home, *words).exit_code == Exit.REFUSED
    wrong = p2pfl(home, *words, "--recovery", str(tmp_path / "founder" / "identity.key"))
    assert wrong.exit_code == Exit.REFUSED
    assert "the ticket names" in wrong.stderr
    joined = p2pfl(home, *words, "--recovery", str(tmp_path / "spare.key"))
    assert joined.exit_code == 0, joined.stderr
    (made,) = parse_ticket((home / "ticket").read_text()).successions
    assert (made.old, made.new) == (lost, peer_of(home))
    assert p2pfl(home, "doctor", "--offline").stdout.count("as ticket") == 1
