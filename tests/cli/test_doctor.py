from __future__ import annotations

import json
import socket
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner
from control_target import BETA, FakeTarget, served

from p2pfl.cli.exits import Exit
from p2pfl.cli.main import main


def doctor(home: Path, *words: str) -> tuple[int, dict[str, list[dict[str, str]]]]:
    """The exit code, and the findings by check."""
    result = CliRunner().invoke(main, ["--home", str(home), "doctor", "--json", *words])
    found: dict[str, list[dict[str, str]]] = {}
    for line in result.stdout.splitlines():
        finding = json.loads(line)
        found.setdefault(finding["check"], []).append(finding)
    return result.exit_code, found


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A node whose ports are free."""
    words = ["--listen", "/ip4/127.0.0.1/tcp/0", "--bulk-listen", "127.0.0.1:0"]
    assert CliRunner().invoke(main, ["--home", str(tmp_path), "node", "init", *words]).exit_code == 0
    return tmp_path


@contextmanager
def listener() -> Iterator[int]:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield server.getsockname()[1]


def test_a_healthy_node_passes_every_check(home: Path) -> None:
    code, found = doctor(home, "--offline")
    assert code == 0
    results = {finding["result"] for findings in found.values() for finding in findings}
    assert results <= {"ok", "skipped"}
    assert {
        "python",
        "packages",
        "foreign p2pfl",
        "libgmp",
        "key",
        "node.toml",
        "disk",
        "clock",
        "ports",
    } <= set(found)


def test_without_a_node_the_machine_is_checked_and_the_cure_is_init(tmp_path: Path) -> None:
    code, found = doctor(tmp_path / "none", "--offline")
    assert code == 0
    assert found["home"][0]["result"] == "warning"
    assert "node init" in found["home"][0]["cure"]
    assert not (tmp_path / "none").exists()


def test_a_key_that_others_may_read_is_found_and_fixed(home: Path) -> None:
    (home / "identity.key").chmod(0o644)
    code, found = doctor(home, "--offline")
    assert code == Exit.FAILED
    assert "chmod 600" in found["file modes"][0]["cure"]
    code, found = doctor(home, "--offline", "--fix")
    assert code == 0
    assert stat.S_IMODE((home / "identity.key").stat().st_mode) == 0o600
    assert found["key"][0]["result"] == "ok"


def test_a_stale_socket_is_found_and_removed(home: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(home / "control.sock"))
    (home / "control.sock").chmod(0o600)
    code, found = doctor(home, "--offline")
    assert (code, found["node"][0]["result"]) == (0, "warning")
    doctor(home, "--offline", "--fix")
    assert not (home / "control.sock").exists()


def test_a_running_node_is_known_and_keeps_its_socket(home: Path) -> None:
    with served(home):
        code, found = doctor(home, "--offline", "--fix")
        assert (home / "control.sock").exists()
    assert code == 0
    assert found["node"][0]["cause"] == "running, and answers"
    assert found["ports"][0]["cause"] == "in use by this node"


def test_a_port_that_somebody_else_has_is_named(home: Path) -> None:
    with listener() as port:
        text = (home / "node.toml").read_text()
        (home / "node.toml").write_text(text.replace("127.0.0.1:0", f"127.0.0.1:{port}"))
        code, found = doctor(home, "--offline")
    assert code == Exit.FAILED
    assert any(f"127.0.0.1:{port}" in finding["cause"] for finding in found["ports"])


def test_an_address_without_a_port_is_named(home: Path) -> None:
    text = (home / "node.toml").read_text()
    (home / "node.toml").write_text(text.replace("/ip4/127.0.0.1/tcp/0", "/ip4/127.0.0.1/udp/0"))
    code, found = doctor(home, "--offline")
    assert code == Exit.FAILED
    assert "tcp" in found["ports"][0]["cause"]


def test_a_wrong_key_in_node_toml_is_named(home: Path) -> None:
    (home / "node.toml").write_text("[node]\ncolour = 1\n")
    code, found = doctor(home, "--offline")
    assert code == Exit.FAILED
    assert "colour" in found["node.toml"][0]["cause"]


def join(home: Path, text: str) -> None:
    """Remember an agreement as `run join` does, without its checks."""
    (home / "run.toml").write_text(text)


def founder_of(home: Path) -> str:
    from p2pfl.trust import identity

    return identity.load(home / "identity.key").peer_id


def test_a_joined_run_is_checked_down_to_the_learner(home: Path) -> None:
    trust = f'[trust]\nfounders = ["{founder_of(home)}"]\n'
    join(home, '[learner]\nmodel = {kind = "logistic"}\n' + trust)
    code, found = doctor(home, "--offline")
    assert code == 0
    assert "as founder" in found["run.toml"][0]["cause"]
    assert found["learner"][0]["cause"] == "built in"
    join(home, '[learner]\nmodule = "no_such_module_here:learner"\n' + trust)
    code, found = doctor(home, "--offline")
    assert code == Exit.FAILED
    assert "no_such_module_here" in found["learner"][0]["cause"]


def test_a_run_that_does_not_know_this_key_is_named(home: Path) -> None:
    join(home, f'[learner]\nmodule = "x:y"\n[trust]\nfounders = ["{BETA}"]\n')
    code, found = doctor(home, "--offline")
    assert code == Exit.FAILED
    assert "trust invite" in found["run.toml"][0]["cure"]


def bootstrap(home: Path, *addresses: str) -> None:
    text = (home / "node.toml").read_text()
    (home / "node.toml").write_text(text.replace("bootstrap = []", f"bootstrap = {json.dumps(addresses)}"))


def test_one_bootstrap_member_that_answers_is_enough(home: Path) -> None:
    with listener() as port, socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        gone = closed.getsockname()[1]
        bootstrap(home, f"/ip4/127.0.0.1/tcp/{port}/p2p/{BETA}", f"/ip4/127.0.0.1/tcp/{gone}/p2p/{BETA}")
        code, found = doctor(home)
    assert code == 0
    assert [finding["result"] for finding in found["bootstrap"]] == ["warning", "ok"]


def test_no_bootstrap_member_that_answers_is_a_failure_unless_offline(home: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        bootstrap(home, f"/ip4/127.0.0.1/tcp/{closed.getsockname()[1]}/p2p/{BETA}")
        code, found = doctor(home)
    assert code == Exit.FAILED
    assert found["bootstrap"][-1]["cause"] == "no member answers"
    code, found = doctor(home, "--offline")
    assert (code, found["bootstrap"][0]["result"]) == (0, "skipped")


def test_a_clock_before_the_release_is_named(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("p2pfl.cli.doctor.time.time", lambda: 0.0)
    code, found = doctor(home, "--offline")
    assert code == Exit.FAILED
    assert "1970" in found["clock"][0]["cause"]


def test_for_people_each_cause_has_its_cure_below(home: Path) -> None:
    (home / "identity.key").chmod(0o644)
    result = CliRunner().invoke(main, ["--home", str(home), "doctor", "--offline"])
    assert "cure: chmod 600" in result.stdout
    assert "checks failed" in result.stderr


@pytest.mark.parametrize(
    ("days", "result"), [(30, "ok"), (3, "warning"), (-1, "failed")], ids=["lasts", "ends soon", "expired"]
)
def test_a_running_node_s_certificate_is_looked_at(home: Path, days: float, result: str) -> None:
    target = FakeTarget()
    target.now["expires_at"] = time.time() + days * 86_400
    with served(home, target):
        _, found = doctor(home, "--offline")
    (one,) = found["certificate"]
    assert one["result"] == result
    assert result == "ok" or "trust renew" in one["cure"]
