"""Who plays which role, and what a probe set is called, from the command line."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner, Result

from p2pfl import settings
from p2pfl.cli import sites
from p2pfl.cli.agreement import in_plain_words
from p2pfl.cli.exits import Exit
from p2pfl.cli.main import main
from p2pfl.learn.data import load
from p2pfl.learn.learner import Site
from p2pfl.learn.options import at_role
from p2pfl.learn.probes import digest_of, of_site, read
from p2pfl.run import canonical, exchange_of, parse, write_toml
from p2pfl.run import load as load_run

ROLES = """
[run]
rounds = 2
closing_rounds = 0
[learner]
local_steps = 2
data = { source = "sklearn:digits#0-300", pool = 2 }
[learner.roles.small]
model = { kind = "logistic" }
[learner.roles.large]
model = { kind = "mlp" }
[gossip]
topology = { kind = "complete" }
averaging = { kind = "none" }
[knowledge]
exchange = { kind = "probe" }
"""


def p2pfl(home: Path, *words: str) -> Result:
    return CliRunner().invoke(main, ["--home", str(home), *words])


@pytest.fixture
def agreement(tmp_path: Path) -> Path:
    """An agreement with two roles, still without its probe set."""
    path = tmp_path / "run.toml"
    path.write_text(ROLES)
    return path


@pytest.fixture
def whole(agreement: Path, tmp_path: Path) -> Path:
    """The same, with what `run probe` printed."""
    printed = p2pfl(tmp_path, "run", "probe", "sklearn:digits#300-340", "--run", str(agreement))
    assert printed.exit_code == 0, printed.output
    agreement.write_text(ROLES + printed.stdout)
    return agreement


def test_a_probe_set_is_printed_as_an_agreement_has_it(whole: Path) -> None:
    probe = load_run(whole).knowledge.probe
    assert probe is not None
    assert (probe.source, probe.samples) == ("sklearn:digits#300-340", 40)
    rows = read(probe.source, load_run(whole).learner.data)
    assert rows.shape == (40, 16)
    assert probe.digest == digest_of(rows)


def test_a_probe_set_without_an_agreement_is_read_as_it_lies(tmp_path: Path) -> None:
    found = json.loads(p2pfl(tmp_path, "--json", "run", "probe", "sklearn:digits#0-5").stdout)
    assert found == {
        "v": 1,
        "source": "sklearn:digits#0-5",
        "digest": digest_of(read("sklearn:digits#0-5")),
        "samples": 5,
    }


@pytest.mark.parametrize(
    ("text", "said"),
    [("[learner]\ndata = { pol = 2 }", "pol"), ("learner = 3", "cannot be read"), ("[", "read")],
)
def test_a_probe_set_is_not_read_by_a_broken_agreement(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "run.toml").write_text(text)
    result = p2pfl(tmp_path, "run", "probe", "sklearn:digits", "--run", str(tmp_path / "run.toml"))
    assert result.exit_code == Exit.USAGE
    assert said in result.stderr


def test_a_check_is_of_the_role_that_this_site_plays(whole: Path, tmp_path: Path) -> None:
    sizes = {}
    for role in ("small", "large"):
        result = p2pfl(tmp_path, "--json", "run", "check", str(whole), "--role", role)
        assert result.exit_code == 0, result.output
        sizes[role] = json.loads(result.stdout)["parameters"]
    assert sizes == {"small": 170, "large": 16 * 64 + 64 + 650}
    missing = p2pfl(tmp_path, "run", "check", str(whole))
    assert missing.exit_code == Exit.USAGE
    assert "large, small" in missing.stderr
    home = tmp_path / "home"
    assert p2pfl(home, "node", "init").exit_code == 0
    text = (home / "node.toml").read_text().replace("[node]", '[node]\nrole = "small"')
    (home / "node.toml").write_text(text)
    assert json.loads(p2pfl(home, "--json", "run", "check", str(whole)).stdout)["parameters"] == 170


def test_a_check_refuses_a_learner_that_cannot_do_what_the_exchange_needs(tmp_path: Path) -> None:
    text = ROLES.replace('kind = "probe"', 'kind = "hub", share_features = true')
    (tmp_path / "run.toml").write_text(text)
    result = p2pfl(tmp_path, "run", "check", str(tmp_path / "run.toml"), "--role", "small")
    assert result.exit_code != 0
    assert "SplitLearner" in result.stderr


def test_a_node_does_not_start_in_a_role_that_is_not_there(whole: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    founder = json.loads(p2pfl(home, "--json", "node", "init").stdout)["peer_id"]
    whole.write_text(f'{whole.read_text()}\n[trust]\nfounders = ["{founder}"]\n')
    result = p2pfl(home, "node", "start", "--run", str(whole), "--role", "huge")
    assert result.exit_code != 0
    assert "no role 'huge'" in result.stderr


def test_the_terms_name_every_roles_learner(whole: Path) -> None:
    words = in_plain_words(load_run(whole))
    assert "large: a built-in mlp model; small: a built-in logistic model" in words


def _plan(run_file: Path, **fields: Any) -> sites.Plan:
    given: dict[str, Any] = dict.fromkeys(
        ("peers", "rounds", "data", "label", "target", "model", "partition", "seed", "attack")
    )
    return sites.plan(run_file=run_file, **(given | fields), settings=())


def test_the_demos_nodes_get_their_roles_rows_and_probe_set(whole: Path, tmp_path: Path) -> None:
    whole.write_text(whole.read_text() + '\n[simulation]\nroles = ["large", "small"]\n')
    plan = _plan(whole, peers=3, partition="iid")
    folder = tmp_path / "demo"
    folder.mkdir()
    homes = sites.prepare(folder, plan)
    roles = [settings.load(site.home, environ={}).node.role for site in homes]
    assert roles == ["large", "small", "large"]
    agreed = load_run(folder / "run.toml")
    assert agreed.learner.roles == plan.spec.learner.roles
    options = at_role(agreed.learner, "small")
    rows = load(settings.load(homes[0].home, environ={}).node.data, options.data)
    assert rows.x_train.shape[1] == 16
    # The probe set lies beside, read already, under the digest that was agreed on.
    probe = agreed.knowledge.probe
    assert probe is not None
    assert plan.spec.knowledge.probe is not None
    assert probe.digest == plan.spec.knowledge.probe.digest
    found = of_site(Site(options=options, **exchange_of(agreed)))
    assert found is not None
    assert found.shape == (40, 16)


def test_what_an_agreement_says_of_roles_survives_being_written(whole: Path) -> None:

    spec = load_run(whole)
    again = parse(write_toml(msgspec.to_builtins(spec)))
    assert canonical(again) == canonical(spec)
    assert tomllib.loads(whole.read_text())["learner"]["roles"].keys() == spec.learner.roles.keys()
