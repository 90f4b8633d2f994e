"""`p2pfl predict`: what a site gets out of a run."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from p2pfl.cli.exits import Exit
from p2pfl.cli.main import main

PROGRAM = [sys.executable, "-c", "from p2pfl.cli.main import main; main()"]
AGREEMENT = """
[run]
name = "iris"
rounds = 3
members_at_start = 1
[learner]
model = {{ kind = "logistic" }}
data = {{ source = "sklearn:iris" }}
standardise = "federation"
[trust]
founders = ["{founder}"]
"""


def p2pfl(home: Path, *words: str) -> Result:
    return CliRunner().invoke(main, ["--home", str(home), *words])


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A node with a run that it has founded, and a data source."""
    made = p2pfl(tmp_path, "node", "init", "--name", "alpha", "--listen", "/ip4/127.0.0.1/tcp/0", "--json")
    (tmp_path / "run.toml").write_text(AGREEMENT.format(founder=json.loads(made.stdout)["peer_id"]))
    return tmp_path


def test_before_a_run_there_is_nothing_to_predict_with(home: Path) -> None:
    said = p2pfl(home, "predict", "--input", "sklearn:iris", "--run", str(home / "run.toml"))
    assert said.exit_code != Exit.DONE
    assert "holds no state of run 'iris'" in said.stderr


@pytest.mark.slow
def test_rows_are_classified_by_the_model_of_the_last_commit(home: Path) -> None:
    run = str(home / "run.toml")
    words = ["--home", str(home), "node", "start", "--run", run]
    subprocess.run([*PROGRAM, *words], check=True, capture_output=True, timeout=120)
    said = json.loads(p2pfl(home, "predict", "--input", "sklearn:iris#0-50", "--json").stdout)
    assert (said["rows"], said["by"]) == (50, "own")
    # The first fifty flowers are of one kind, and the easiest to tell.
    assert {found["class"] for found in said["predictions"]} == {"0"}
    file = home / "predicted.csv"
    assert p2pfl(home, "predict", "--input", "sklearn:iris", "-o", str(file)).exit_code == Exit.DONE
    with file.open() as lines:
        rows = list(csv.DictReader(lines))
    truth = ["0"] * 50 + ["1"] * 50 + ["2"] * 50
    assert sum(row["class"] == label for row, label in zip(rows, truth, strict=True)) >= 120
    assert sum(float(rows[7][k]) for k in "012") == pytest.approx(1.0, abs=1e-4)
    missing = p2pfl(home, "predict", "--input", "csv:nowhere.csv")
    assert missing.exit_code == Exit.USAGE
    assert "nowhere.csv" in missing.stderr
