from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from control_target import ALPHA, BETA, GAMMA, FakeTarget, served

from p2pfl.cli.exits import Exit
from p2pfl.cli.main import main
from p2pfl.cli.trust import _LEVELS, _TASKS
from p2pfl.ids import PeerId
from p2pfl.run import load, run_id
from p2pfl.trust import identity, relations
from p2pfl.trust.certificates import has_signed
from p2pfl.trust.relations import Level
from p2pfl.trust.tickets import parse_ticket


def p2pfl(home: Path, *words: str) -> Result:
    return CliRunner().invoke(main, ["--home", str(home), *words])


def peer_of(home: Path) -> str:
    return identity.load(home / "identity.key").peer_id


def founders(tmp_path: Path, count: int, quorum: int) -> list[Path]:
    """The homes of `count` founders that have joined one run."""
    homes = [tmp_path / f"founder-{i}" for i in range(count)]
    for home in homes:
        assert p2pfl(home, "node", "init", "--listen", "/ip4/10.0.0.1/tcp/4911").exit_code == 0
    agreement = tmp_path / "run.toml"
    ids = json.dumps([peer_of(home) for home in homes])
    agreement.write_text(f'[learner]\nmodule = "x:y"\n[trust]\nfounders = {ids}\nquorum = {quorum}\n')
    for home in homes:
        assert p2pfl(home, "run", "join", str(agreement), "--yes").exit_code == 0
    return homes


def newcomer(tmp_path: Path) -> Path:
    home = tmp_path / "newcomer"
    assert p2pfl(home, "node", "init").exit_code == 0
    return home


def test_a_founder_invites_a_key_for_a_limited_time(tmp_path: Path) -> None:
    (home,) = founders(tmp_path, 1, 1)
    before = time.time()
    result = p2pfl(home, "trust", "invite", BETA, "--for", "12h", "--name", "beta", "--json")
    said = json.loads(result.stdout)
    certificate = parse_ticket(said["ticket"]).certificate
    assert (certificate.subject, certificate.name) == (BETA, "beta")
    assert certificate.run == run_id(load(home / "run.toml"))
    assert 12 * 3600 - 2 <= certificate.use_by - before <= 12 * 3600 + 60
    assert said["signatures_missing"] == 0


def test_a_ticket_says_where_the_founder_is(tmp_path: Path) -> None:
    (home,) = founders(tmp_path, 1, 1)
    stopped = parse_ticket(p2pfl(home, "trust", "invite", BETA).stdout.strip())
    assert stopped.addresses == (f"/ip4/10.0.0.1/tcp/4911/p2p/{peer_of(home)}",)
    target = FakeTarget()
    target.now["addresses"] = [f"/ip4/127.0.0.1/tcp/1/p2p/{ALPHA}", f"/ip4/10.0.0.9/tcp/1/p2p/{ALPHA}"]
    with served(home, target):
        running = parse_ticket(p2pfl(home, "trust", "invite", BETA).stdout.strip())
    # What another machine can dial comes first.
    assert [a.split("/")[2] for a in running.addresses] == ["10.0.0.9", "127.0.0.1"]
    given = parse_ticket(
        p2pfl(home, "trust", "invite", BETA, "--address", "/dns4/a.example/tcp/1").stdout.strip()
    )
    assert given.addresses == ("/dns4/a.example/tcp/1",)


def test_a_ticket_works_end_to_end_on_the_invited_machine(tmp_path: Path) -> None:
    (home,) = founders(tmp_path, 1, 1)
    guest = newcomer(tmp_path)
    ticket = p2pfl(home, "trust", "invite", peer_of(guest)).stdout.strip()
    result = p2pfl(guest, "run", "join", str(home / "run.toml"), "--ticket", ticket, "--yes")
    assert result.exit_code == 0, result.stderr


@pytest.mark.parametrize("text", ["7", "d", "-1d", "0d", "7y", "1.5d", "9999999d"])
def test_a_duration_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    (home,) = founders(tmp_path, 1, 1)
    assert p2pfl(home, "trust", "invite", BETA, "--for", text).exit_code == Exit.USAGE


def test_only_founders_invite_and_founders_need_no_invitation(tmp_path: Path) -> None:
    home, other = founders(tmp_path, 2, 2)
    guest = newcomer(tmp_path)
    words = ("trust", "invite", BETA, "--run", str(home / "run.toml"))
    refused = p2pfl(guest, *words)
    assert refused.exit_code == Exit.REFUSED
    assert "only founders admit" in refused.stderr
    assert p2pfl(home, "trust", "invite", peer_of(other)).exit_code == Exit.USAGE
    assert p2pfl(home, "trust", "invite", "not-a-peer").exit_code == Exit.USAGE


def test_a_quorum_of_two_takes_a_second_founder(tmp_path: Path) -> None:
    first, second, third = founders(tmp_path, 3, 2)
    guest = newcomer(tmp_path)
    invited = p2pfl(first, "trust", "invite", peer_of(guest))
    half = invited.stdout.strip()
    assert "1 more founders must countersign" in invited.stderr
    early = p2pfl(guest, "run", "join", str(first / "run.toml"), "--ticket", half, "--yes")
    assert early.exit_code == Exit.REFUSED
    result = json.loads(p2pfl(second, "trust", "admit", half, "--json").stdout)
    assert (result["signatures_missing"], result["admitted"]) == (0, False)
    certificate = parse_ticket(result["ticket"]).certificate
    assert all(has_signed(certificate, PeerId(peer_of(home))) for home in (first, second))
    joined = p2pfl(guest, "run", "join", str(first / "run.toml"), "--ticket", result["ticket"], "--yes")
    assert joined.exit_code == 0, joined.stderr
    assert p2pfl(third, "trust", "admit", result["ticket"]).exit_code == 0


def test_the_same_founder_twice_is_one_signature(tmp_path: Path) -> None:
    first, _, _ = founders(tmp_path, 3, 2)
    half = p2pfl(first, "trust", "invite", BETA).stdout.strip()
    assert json.loads(p2pfl(first, "trust", "admit", half, "--json").stdout)["signatures_missing"] == 1


def test_a_complete_ticket_is_handed_to_the_running_node(tmp_path: Path) -> None:
    first, second = founders(tmp_path, 2, 2)
    half = p2pfl(first, "trust", "invite", BETA).stdout.strip()
    target = FakeTarget()
    target.answer = {"standing": "member", "signatures": 2, "quorum": 2}
    with served(second, target):
        result = json.loads(p2pfl(second, "trust", "admit", half, "--json").stdout)
    assert result["admitted"]
    assert target.commands == [("admit", {"ticket": result["ticket"]})]


def test_a_half_signed_ticket_is_handed_to_the_running_node_too_so_that_votes_add_up(tmp_path: Path) -> None:
    first, second, third = founders(tmp_path, 3, 2)
    target = FakeTarget()
    with served(first, target):
        half = p2pfl(first, "trust", "invite", BETA).stdout.strip()
    assert target.commands == [("admit", {"ticket": half})]
    # The second founder's node has heard of a third's signature: its own is the last that was missing.
    target = FakeTarget()
    target.answer = {"standing": "member", "signatures": 2, "quorum": 2}
    with served(second, target):
        said = p2pfl(second, "trust", "admit", half)
    assert target.commands[0][0] == "admit"
    assert "must countersign" not in said.stderr
    assert parse_ticket(p2pfl(third, "trust", "invite", BETA).stdout.strip()).certificate.subject == BETA


def test_a_certificate_lasts_as_long_as_it_was_said(tmp_path: Path) -> None:
    (home,) = founders(tmp_path, 1, 1)
    made = p2pfl(home, "trust", "invite", BETA, "--lasts", "2d", "--recovery", GAMMA).stdout.strip()
    certificate = parse_ticket(made).certificate
    assert certificate.expires_at - certificate.issued_at == 2 * 86_400
    assert certificate.use_by == certificate.expires_at
    assert certificate.recovery == GAMMA


def test_a_renewal_names_one_member_or_all(tmp_path: Path) -> None:
    target = FakeTarget()
    one = {"peer_id": BETA, "signatures": 1, "quorum": 2, "expires_at": 1_800_000_000}
    target.answer = {"renewed": [one]}
    with served(tmp_path, target):
        text = p2pfl(tmp_path, "trust", "renew", "beta", "--lasts", "30d").stdout
        assert p2pfl(tmp_path, "trust", "renew", "--all").exit_code == 0
        assert p2pfl(tmp_path, "trust", "renew").exit_code == Exit.USAGE
        assert p2pfl(tmp_path, "trust", "renew", "beta", "--all").exit_code == Exit.USAGE
    assert target.commands == [
        ("renew", {"peer": BETA, "lasts_s": 30 * 86_400.0}),
        ("renew", {"lasts_s": 90 * 86_400.0}),
    ]
    assert "until 2027-01-15, signed by 1 of 2; other founders" in text


def test_a_ticket_of_another_run_is_not_countersigned(tmp_path: Path) -> None:
    (home,) = founders(tmp_path, 1, 1)
    ticket = p2pfl(home, "trust", "invite", BETA).stdout.strip()
    other = tmp_path / "other.toml"
    other.write_text((home / "run.toml").read_text() + "max_norm = 10.0\n")
    assert p2pfl(home, "trust", "admit", ticket, "--run", str(other)).exit_code == Exit.REFUSED


def test_list_shows_standing_and_levels(tmp_path: Path) -> None:
    with served(tmp_path):
        text = p2pfl(tmp_path, "trust", "list").stdout
        said = json.loads(p2pfl(tmp_path, "trust", "list", "--json").stdout)
    assert "this node, founder" in text
    assert "2027-01-15" in text
    assert len(said["trust"]) == 3


def test_a_ban_says_how_far_it_reaches(tmp_path: Path) -> None:
    target = FakeTarget()
    with served(tmp_path, target):
        target.answer = {"votes": 1, "quorum": 2, "revoked": False}
        text = p2pfl(tmp_path, "trust", "ban", "beta", "--reason", "poison").stdout
        target.answer = {"votes": 2, "quorum": 2, "revoked": True}
        final = p2pfl(tmp_path, "trust", "ban", BETA).stdout
    assert target.commands[0] == ("ban", {"peer": BETA, "reason": "poison"})
    assert "1 of 2 founders have voted" in text
    assert "is revoked" in final


def test_share_and_accept_are_set_apart(tmp_path: Path) -> None:
    target = FakeTarget()
    with served(tmp_path, target):
        assert p2pfl(tmp_path, "trust", "set", "beta", "--share", "deny").exit_code == 0
        assert (
            p2pfl(tmp_path, "trust", "set", "beta", "--accept", "pinned", "--for", "features").exit_code == 0
        )
        assert p2pfl(tmp_path, "trust", "set", "beta").exit_code == Exit.USAGE
        assert p2pfl(tmp_path, "trust", "set", "beta", "--share", "much").exit_code == Exit.USAGE
    assert target.commands == [
        ("set", {"peer": BETA, "for": "weights", "share": "deny"}),
        ("set", {"peer": BETA, "for": "features", "accept": "pinned"}),
    ]


def test_the_levels_of_the_flags_are_those_of_the_trust_layer() -> None:
    assert tuple(level.name.lower() for level in sorted(Level)) == _LEVELS
    assert relations.TASKS == _TASKS


# --- reputation --------------------------------------------------------------------------------------


def scored(**last: Any) -> dict[str, Any]:
    sample = {"round": 4, "distance": 5.0, "cosine": -0.8, "loss": 9.0, "own_loss": 0.3, "doubt": "angle"}
    bounds = {"most_distance": 4.0, "least_cosine": -0.2, "most_loss": 32.5}
    return {
        "score": 0.377,
        "level": "quarantine",
        "rule": "score 0.377 is below 0.43",
        "a": 10.0,
        "b": 9.42,
        "rounds": 4,
        "by_angle": 3,
        "by_distance": 1,
        "by_loss": 0,
        "faults": {"norm": 2},
        "reports": {GAMMA: 19},
        "last": {**sample, **bounds, **last},
    }


def test_every_number_behind_a_level_is_shown(tmp_path: Path) -> None:
    target = FakeTarget()
    target.members[0] |= {"level": "quarantine", "accept": "normal", "reputation": scored()}
    with served(tmp_path, target):
        listed = p2pfl(tmp_path, "trust", "list").stdout
        assert "quarantine by reputation" in listed
        shown = p2pfl(tmp_path, "trust", "list", "--why", "beta").stdout
        as_json = json.loads(p2pfl(tmp_path, "trust", "list", "--why", BETA, "--json").stdout)
        silent = p2pfl(tmp_path, "trust", "list", "--why", "gamma").stdout
        nobody = p2pfl(tmp_path, "trust", "list", "--why", "delta")
    for words in (
        BETA,
        "accepted as quarantine; this site's own level: normal",
        "score 0.377 is below 0.43",
        "Beta(10.00, 9.42)",
        "4 rounds scored",
        "doubted by angle 3, by distance 1, by loss 0",
        "faults: norm 2",
        "cautions of others that count: 1",
        "round 4, doubted by angle:",
        "loss 9 (at most 32.5)",
        "cosine -0.8 (at least -0.2)",
        "own model on the same rows 0.3",
    ):
        assert words in shown
    assert as_json["reputation"]["last"]["cosine"] == -0.8
    assert "nothing of it was scored" in silent
    assert nobody.exit_code == Exit.USAGE


def test_what_was_not_measured_is_not_shown(tmp_path: Path) -> None:
    target = FakeTarget()
    few = scored(loss=None, own_loss=None, most_loss=None, most_distance=None, least_cosine=None, doubt="")
    target.members[0] |= {"level": "normal", "accept": "normal", "reputation": few}
    with served(tmp_path, target):
        shown = p2pfl(tmp_path, "trust", "list", "--why", "beta").stdout
    assert "round 4, approved:" in shown
    assert "distance 5 (nothing to compare)" in shown
    assert "loss 9" not in shown


def test_a_peer_is_forgotten_by_name(tmp_path: Path) -> None:
    with served(tmp_path) as node:
        result = p2pfl(tmp_path, "trust", "forget", "beta")
    assert result.exit_code == 0
    assert node.target.commands == [("forget", {"peer": BETA})]
    assert f"{BETA}: forgotten" in result.stdout
