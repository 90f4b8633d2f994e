"""`p2pfl demo --attack`: real nodes, the last of which lie."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from p2pfl import run as runs
from p2pfl import settings
from p2pfl.cli import byzantine, sites
from p2pfl.errors import ConfigError
from p2pfl.learn import data
from p2pfl.learn.options import DataOptions
from p2pfl.simulations.attacks import AttackOptions


def planned(attack: str | None, **flags: Any) -> sites.Plan:
    given: dict[str, Any] = dict.fromkeys(
        ("run_file", "peers", "rounds", "data", "label", "target", "model", "partition", "seed")
    )
    return sites.plan(
        **{**given, "partition": "iid", **flags}, attack=attack, settings=flags.pop("settings", ())
    )


def test_peers_counts_all_nodes_and_rows_are_dealt_to_the_honest() -> None:
    plan = planned("sign-flip:2", peers=5)
    assert (plan.honest, plan.spec.run.members_at_start) == (3, 5)
    assert plan.attack == AttackOptions(kind="sign-flip", byzantine=2)
    clean = planned(None, peers=3)
    assert (clean.honest, clean.attack.byzantine) == (3, 0)
    for one, other in zip(plan.workload.datasets, clean.workload.datasets, strict=True):
        assert one is not None
        assert other is not None
        np.testing.assert_array_equal(one.x_train, other.x_train)
    assert planned("alie").attack.byzantine == 1


@pytest.mark.parametrize("text", ["krum:1", "alie:none", "alie:-1", "alie:5", "alie:4", "sybil:1"])
def test_an_attack_that_makes_no_sense_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="attack"):
        planned(text)


def test_the_robust_rule_of_an_agreement_stays_and_its_founders_do_not(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text(
        '[learner]\ndata = {source = "sklearn:iris"}\n[trust]\nquorum = 1\n'
        'aggregator = {kind = "monna", f = 1}\n'
        'founders = ["12D3KooWEyoppNCUx8Yx66oV9fJnriXwCcXwDDUA2kj6vnc6iDEp"]\n'
    )
    plan = planned("alie:1", run_file=file)
    assert plan.spec.trust.aggregator.kind == "monna"
    assert plan.spec.trust.founders == ()


def test_an_attackers_home_is_a_nodes_home_and_its_rows_are_poisoned_where_the_attack_is(
    tmp_path: Path,
) -> None:
    plan = planned("label-flip:1", peers=4)
    homes = sites.prepare(tmp_path, plan)
    assert len(homes) == 4
    assert {site.peer_id for site in homes} == set(plan.joined.trust.founders)
    rows = [data.load(settings.load(site.home, environ={}).node.data, DataOptions(), 0) for site in homes]
    np.testing.assert_array_equal(rows[3].x_train, rows[0].x_train)
    np.testing.assert_array_equal(rows[3].y_train, 9 - rows[0].y_train)
    program = byzantine.attacker_program(
        plan.attack, [homes[3].peer_id], homes[3].home, tmp_path / "run.toml"
    )
    order = json.loads(program[-1])
    assert msgspec.convert(order["attack"], AttackOptions) == plan.attack
    assert order["attackers"] == [homes[3].peer_id]
    assert runs.run_id(runs.load(Path(order["agreement"]))) == runs.run_id(plan.joined)


def demo(*flags: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "p2pfl", "demo", "--json", "--partition", "iid", *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr
    verdict: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return verdict


@pytest.mark.slow
def test_one_real_liar_among_five_ruins_what_no_rule_defends_and_not_what_one_does() -> None:
    flags = ("--peers", "5", "--rounds", "20", "--attack", "sign-flip:1", "--set", "learner.local_steps=5")
    ruined = demo(*flags)
    assert (ruined["attack"], ruined["byzantine"], ruined["peers"]) == ("sign-flip", 1, 5)
    assert len(ruined["per_peer"]) == 4
    assert ruined["honest"]["mean"] <= 0.3
    # What went to the liar is gone, and what it gave has come: the books of the honest agree.
    assert ruined["mass"]["error"] <= 1e-9
    rule = ("--set", "trust.aggregator={kind='nnm+trimmed-mean', f=1}")
    defended = demo(*flags, *rule)
    assert defended["aggregator"] == "nnm+trimmed-mean"
    assert defended["honest"]["min"] >= 0.75


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bomb", "wrong-shape", "nan", "replay", "equivocation"])
def test_a_real_liar_about_the_protocol_stops_nobody(kind: str) -> None:
    verdict = demo("--peers", "4", "--rounds", "6", "--attack", f"{kind}:1", "--set", "run.deadline_s=4.0")
    assert [row["finished"] for row in verdict["per_peer"]] == ["done"] * 3
    if kind != "equivocation":
        assert verdict["honest"]["min"] > 0.85
