from __future__ import annotations

import json
import stat
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from control_target import FakeTarget, served

from p2pfl import settings
from p2pfl.cli.exits import Exit
from p2pfl.cli.home import add_bootstrap
from p2pfl.cli.main import main
from p2pfl.cli.service import unit_text
from p2pfl.errors import ConfigError
from p2pfl.events import Fact, Snapshot
from p2pfl.ids import RunId
from p2pfl.node.store import Store
from p2pfl.trust import identity


def p2pfl(home: Path, *words: str) -> Result:
    return CliRunner().invoke(main, ["--home", str(home), *words])


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_init_makes_a_key_and_settings_that_load(tmp_path: Path) -> None:
    home = tmp_path / "deep" / "home"
    result = p2pfl(home, "node", "init", "--name", "st-marys", "--data", "csv:x.csv", "--json")
    said = json.loads(result.stdout)
    assert result.exit_code == 0
    assert said["peer_id"] == identity.load(home / "identity.key").peer_id
    assert (mode(home), mode(home / "identity.key"), mode(home / "node.toml")) == (0o700, 0o600, 0o600)
    loaded = settings.load(home, environ={})
    assert (loaded.node.name, loaded.node.data) == ("st-marys", "csv:x.csv")
    assert loaded == settings.NodeSettings(node=settings.NodeSection(name="st-marys", data="csv:x.csv"))


def test_init_prints_what_to_do_next(tmp_path: Path) -> None:
    text = p2pfl(tmp_path, "node", "init").stdout
    assert f"p2pfl --home {tmp_path} run new" in text
    assert "identity.key" in text


@pytest.mark.parametrize("name", ["node.toml", "identity.key"])
def test_init_never_overwrites(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    result = p2pfl(tmp_path, "node", "init")
    assert result.exit_code == Exit.USAGE
    assert (tmp_path / name).read_text() == "mine"
    assert len(list(tmp_path.iterdir())) == 1


def test_init_keeps_names_that_toml_would_misread(tmp_path: Path) -> None:
    assert (
        p2pfl(tmp_path, "node", "init", "--name", 'a"b\\c # d', "--listen", "/ip4/127.0.0.1/tcp/1").exit_code
        == 0
    )
    loaded = settings.load(tmp_path, environ={})
    assert loaded.node.name == 'a"b\\c # d'
    assert loaded.node.listen == ("/ip4/127.0.0.1/tcp/1",)


def test_init_refuses_a_name_that_does_not_fit_and_leaves_nothing(tmp_path: Path) -> None:
    result = p2pfl(tmp_path / "home", "node", "init", "--name", "x" * 65)
    assert result.exit_code == Exit.USAGE
    assert not (tmp_path / "home").exists()


def test_the_wan_preset_limits_the_upload(tmp_path: Path) -> None:
    p2pfl(tmp_path, "node", "init", "--preset", "wan")
    assert settings.load(tmp_path, environ={}).limits.upload_mbit_s == 100


def test_a_node_below_the_home_is_named_after_the_flag(tmp_path: Path) -> None:
    p2pfl(tmp_path, "--node", "b", "node", "init")
    assert settings.load(tmp_path / "b", environ={}).node.name == "b"


def test_stop_waits_until_the_node_has_gone(tmp_path: Path) -> None:
    target = FakeTarget()
    with served(tmp_path, target):
        result = p2pfl(tmp_path, "node", "stop", "--json")
    assert json.loads(result.stdout) == {"v": 1, "stopped": True, "round": 7, "run_id": "ab" * 32}
    assert target.stops == [False]
    assert not (tmp_path / "control.sock").exists()


def test_stop_after_the_round_gives_up_waiting_at_its_time_limit(tmp_path: Path) -> None:
    target = FakeTarget()
    with served(tmp_path, target):
        result = p2pfl(tmp_path, "node", "stop", "--after-round", "--timeout", "0")
    assert result.exit_code == 0
    assert target.stops == [True, False]


def test_a_backup_is_written_by_the_running_node(tmp_path: Path) -> None:
    home = tmp_path / "home"
    p2pfl(home, "node", "init")
    target = FakeTarget()
    with served(home, target):
        result = p2pfl(home, "node", "backup", "-o", str(tmp_path / "b.tar"))
    assert result.exit_code == 0
    assert target.commands == [("backup", {"path": str(tmp_path / "b.tar")})]


def test_a_backup_of_a_stopped_node_restores_to_the_same_node(tmp_path: Path) -> None:
    home, other, file = tmp_path / "home", tmp_path / "other", tmp_path / "b.tar"
    p2pfl(home, "node", "init", "--name", "alpha")
    run = RunId("cd" * 32)
    with Store.open(home) as store:
        store.commit(run, Snapshot(arrays={}, ledger=b"x"), (Fact(event="run began"),), 1.0)
    assert p2pfl(home, "node", "backup", "-o", str(file)).exit_code == 0
    assert mode(file) == 0o600
    assert p2pfl(home, "node", "backup", "-o", str(file)).exit_code == Exit.FAILED
    result = p2pfl(other, "node", "restore", str(file), "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["peer_id"] == identity.load(home / "identity.key").peer_id
    assert (other / "node.toml").read_text() == (home / "node.toml").read_text()
    with Store.open(other) as store:
        assert store.runs()[0]["run"] == run


def test_restore_does_not_touch_a_home_that_is_in_use(tmp_path: Path) -> None:
    p2pfl(tmp_path / "a", "node", "init")
    p2pfl(tmp_path / "a", "node", "backup", "-o", str(tmp_path / "a.tar"))
    p2pfl(tmp_path / "b", "node", "init")
    key = (tmp_path / "b" / "identity.key").read_text()
    assert p2pfl(tmp_path / "b", "node", "restore", str(tmp_path / "a.tar")).exit_code == Exit.FAILED
    assert (tmp_path / "b" / "identity.key").read_text() == key


def test_a_backup_needs_a_node(tmp_path: Path) -> None:
    result = p2pfl(tmp_path, "node", "backup", "-o", str(tmp_path / "b.tar"))
    assert result.exit_code == Exit.USAGE
    assert "node init" in result.stderr


def test_the_service_unit_runs_this_home_and_quotes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    home = tmp_path / "my home"
    p2pfl(home, "node", "init")
    text = p2pfl(home, "node", "service").stdout
    assert f'--home "{home}" node start' in text
    assert "WantedBy=default.target" in text
    assert "User=" not in text
    system = p2pfl(home, "node", "service", "--system").stdout
    assert "User=" in system
    assert "WantedBy=multi-user.target" in system
    assert p2pfl(home, "node", "service", "--install").exit_code == 0
    assert (tmp_path / "config" / "systemd" / "user" / "p2pfl-node.service").read_text().startswith("[Unit]")


def test_the_service_does_not_retry_what_needs_a_person(tmp_path: Path) -> None:
    text = unit_text(tmp_path / "100%$x", system=False, user="me")
    assert f"RestartPreventExitStatus={int(Exit.USAGE)} {int(Exit.REFUSED)}" in text
    assert f"SuccessExitStatus={int(Exit.INTERRUPTED)} {int(Exit.TERMINATED)}" in text
    assert "100%%$$x" in text


def test_bootstrap_addresses_are_added_once_and_comments_stay(tmp_path: Path) -> None:
    p2pfl(tmp_path, "node", "init")
    before = (tmp_path / "node.toml").read_text()
    add_bootstrap(tmp_path, ["/ip4/10.0.0.1/tcp/1/p2p/A", "/ip4/10.0.0.2/tcp/1/p2p/B"])
    add_bootstrap(tmp_path, ["/ip4/10.0.0.1/tcp/1/p2p/A"])
    after = (tmp_path / "node.toml").read_text()
    assert tomllib.loads(after)["node"]["bootstrap"] == [
        "/ip4/10.0.0.1/tcp/1/p2p/A",
        "/ip4/10.0.0.2/tcp/1/p2p/B",
    ]
    assert [line for line in before.splitlines() if "#" in line] == [
        line for line in after.splitlines() if "#" in line
    ]


@pytest.mark.parametrize(
    "text",
    [
        "[node]\nname = 'x'\n",
        "[node]\nbootstrap = [\n  '/old', # first\n]\n",
        "[control]\n[node]\nbootstrap=[]\n",
    ],
)
def test_bootstrap_is_added_however_the_file_is_laid_out(tmp_path: Path, text: str) -> None:
    (tmp_path / "node.toml").write_text(text)
    add_bootstrap(tmp_path, ["/new"])
    assert tomllib.loads((tmp_path / "node.toml").read_text())["node"]["bootstrap"][-1] == "/new"


def test_a_layout_that_cannot_be_edited_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "node.toml").write_text("node.name = 'x'\n")
    with pytest.raises(ConfigError, match="by hand"):
        add_bootstrap(tmp_path, ["/new"])
    assert (tmp_path / "node.toml").read_text() == "node.name = 'x'\n"


def test_a_recovery_key_is_made_beside_the_node_s_own_and_named(tmp_path: Path) -> None:
    spare, home = tmp_path / "spare.key", tmp_path / "home"
    made = CliRunner().invoke(main, ["--home", str(home), "--json", "node", "init", "--recovery", str(spare)])
    said = json.loads(made.stdout)
    assert said["recovery"] == identity.load(spare).peer_id
    assert said["peer_id"] == identity.load(home / "identity.key").peer_id != said["recovery"]
    assert spare.stat().st_mode & 0o777 == 0o600
    again = CliRunner().invoke(
        main, ["--home", str(tmp_path / "other"), "node", "init", "--recovery", str(spare)]
    )
    assert again.exit_code != 0
    assert not (tmp_path / "other" / "identity.key").exists()
