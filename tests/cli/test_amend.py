from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from control_target import ALPHA, BETA, FakeTarget, served

from p2pfl.cli.exits import Exit
from p2pfl.cli.main import main

PLAN = {"epoch": 2, "at": 40, "signed_by": [ALPHA], "quorum": 2, "changes": {"trust.max_norm": [None, 50.0]}}


def amend(home: Path, *words: str) -> Result:
    return CliRunner().invoke(main, ["--home", str(home), "run", "amend", *words])


def founder() -> FakeTarget:
    target = FakeTarget()
    target.answer = PLAN
    return target


def test_what_will_change_is_shown_and_signed_only_with_consent(tmp_path: Path) -> None:
    target = founder()
    with served(tmp_path, target):
        declined = amend(tmp_path, "trust.max_norm=50.0")
        # Nobody is there to be asked.
        assert declined.exit_code == Exit.USAGE
        assert [arguments.get("sign", False) for _, arguments in target.commands] == [False]
        signed = amend(tmp_path, "trust.max_norm=50.0", "--at", "40", "--yes")
    assert "none -> 50.0" in signed.stderr
    assert "40, epoch 2" in signed.stderr
    assert "signed by 1 of 2" in signed.stdout
    assert "other founders run the same command" in signed.stdout
    assert target.commands[1:] == [
        ("amend", {"changes": {"trust.max_norm": 50.0}, "at": 40}),
        ("amend", {"changes": {"trust.max_norm": 50.0}, "at": 40, "sign": True}),
    ]


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("run.rounds=300", 300),
        ("trust.max_norm=", None),
        ("trust.aggregator.kind=krum", "krum"),
        ('trust.aggregator={kind="gts", f=2}', {"kind": "gts", "f": 2}),
    ],
)
def test_values_are_toml_words_or_nothing(tmp_path: Path, setting: str, value: Any) -> None:
    target = founder()
    with served(tmp_path, target):
        assert amend(tmp_path, setting, "--yes").exit_code == 0
    assert target.commands[0][1]["changes"] == {setting.partition("=")[0]: value}


def test_what_is_no_setting_is_refused_before_anybody_is_asked(tmp_path: Path) -> None:
    target = founder()
    with served(tmp_path, target):
        assert amend(tmp_path, "trust.max_norm").exit_code == Exit.USAGE
        assert amend(tmp_path, "=3").exit_code == Exit.USAGE
    assert target.commands == []


def test_without_arguments_it_shows_what_was_signed_and_by_whom(tmp_path: Path) -> None:
    class Target(FakeTarget):
        def run(self) -> dict[str, Any]:
            one = {**PLAN, "changes": {"run.rounds": 300}, "signed_by": [ALPHA, BETA]}
            return {"run_id": "ab" * 32, "agreement": {}, "epoch": 1, "amendments": [one]}

    with served(tmp_path, Target()):
        text = amend(tmp_path).stdout
        said = json.loads(amend(tmp_path, "--json").stdout)
    assert "epoch 1" in text
    assert "from round 40: run.rounds = 300" in text
    assert "signed by 2 of 2" in text
    assert said["amendments"][0]["signed_by"] == [ALPHA, BETA]
