"""`p2pfl demo` of real nodes that keep a part of what they learn to themselves."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
PROXY = """
[run]
rounds = 3
closing_rounds = 0

[learner]
data = { source = "sklearn:digits#0-600" }
local_steps = 100
model = { kind = "mlp" }
proxy = { kind = "logistic" }
optimizer = { lr = 0.1 }

[gossip]
topology = { kind = "complete" }

[knowledge]
exchange = { kind = "proxy" }
"""


def test_the_verdict_is_on_the_private_models_that_the_nodes_have(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text(PROXY)
    words = [sys.executable, "-m", "p2pfl", "demo", "--run", "run.toml", "--peers", "3", "--json"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    verdict = json.loads(done.stdout.splitlines()[-1])
    # Proxies are mixed; what classifies are three private models, each of its own.
    assert len({row["metrics"]["accuracy"] for row in verdict["per_peer"]}) > 1
    assert verdict["metric"]["min"] > 0.3
    knowledge = verdict["knowledge"]
    assert (knowledge["kind"], knowledge["hub"], knowledge["holders"]) == ("proxy", None, 0)
    assert knowledge["edge"] == pytest.approx(verdict["metric"]["mean"])
