"""What `p2pfl run` says of an agreement with noise."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from p2pfl.cli.exits import Exit
from p2pfl.cli.main import main
from p2pfl.run import canonical, load, write_toml
from p2pfl.trust.privacy import Account, epsilon_of, spend


def p2pfl(home: Path, *words: str) -> Result:
    return CliRunner().invoke(main, ["--home", str(home), *words])


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A node without a run."""
    assert p2pfl(tmp_path / "home", "node", "init", "--name", "alpha").exit_code == 0
    return tmp_path / "home"


@pytest.fixture
def agreement(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that this node has founded, with a numpy learner beside it."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "learner", raising=False)
    assert p2pfl(home, "run", "new", "--from", "numpy", str(tmp_path / "ward")).exit_code == 0
    return tmp_path / "ward" / "run.toml"


def with_privacy(agreement: Path, **privacy: object) -> Path:
    """The agreement with another `[trust] privacy`, beside it."""
    table = json.loads(canonical(load(agreement)))
    table["trust"]["privacy"] = privacy
    made = agreement.with_name("private.toml")
    made.write_text(write_toml(table))
    return made


def test_noise_is_said_in_plain_words_and_its_epsilon_reckoned(home: Path, agreement: Path) -> None:
    noise = {"kind": "gaussian", "clip": 0.5, "noise_multiplier": 2.0, "max_epsilon": 60.0}
    made = with_privacy(agreement, **noise)
    epsilon = epsilon_of(spend(Account(), sigma=2.0, steps=load(made).run.rounds), 1e-5)
    found = json.loads(p2pfl(home, "run", "check", str(made), "--json").stdout)
    assert found["epsilon"] == epsilon
    assert (
        f"privacy     epsilon {epsilon:.3g} at delta 1e-05" in p2pfl(home, "run", "check", str(made)).stdout
    )
    shown = p2pfl(home, "run", "join", str(made)).stderr
    assert "a site's whole step of each round is cut to norm 0.5, with noise of 1" in shown
    assert "spent epsilon 60" in shown


def test_a_learner_that_adds_no_noise_is_refused_where_rows_are_to_be_protected(
    home: Path, agreement: Path
) -> None:
    made = with_privacy(agreement, kind="dp-sgd", clip=1.0, noise_multiplier=1.0)
    result = p2pfl(home, "run", "check", str(made))
    assert result.exit_code == Exit.USAGE
    assert "adds none" in result.stderr
    assert "every row's gradient is cut to norm 1" in p2pfl(home, "run", "join", str(made)).stderr
