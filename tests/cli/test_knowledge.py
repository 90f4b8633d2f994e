"""What a site is told of an exchange before it agrees: what travels, and how much."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from p2pfl.cli.knowledge import knowledge_bytes, knowledge_in_plain_words
from p2pfl.cli.main import main
from p2pfl.knowledge.packets import (
    Coding,
    features_bytes,
    hub_model_bytes,
    probe_bytes,
    prototypes_bytes,
    soft_labels_bytes,
)
from p2pfl.run import RunSpec, decode
from p2pfl.work import Expected

EXPECTED = Expected(classes=10, width=6, model_values=100)
HUB = {"kind": "hub", "share_features": True}
PROBE = {"source": "npz:probe.npz", "digest": "0" * 64, "samples": 50}


def agreed(**exchange: Any) -> RunSpec:
    probe = {"probe": PROBE} if exchange["kind"] == "probe" else {}
    return decode(
        {
            "run": {"rounds": 3},
            "gossip": {"topology": {"kind": "complete"}},
            "knowledge": {"exchange": exchange, **probe},
        },
        "test",
    )


@pytest.mark.parametrize(
    ("exchange", "words"),
    [
        ({"kind": "none"}, ""),
        (HUB, "hidden features and labels of single rows"),
        ({"kind": "probe"}, "the 50 common rows"),
        ({"kind": "proto", "least_count": 7}, "7 rows or more"),
        ({"kind": "proxy"}, "the private model stays here"),
    ],
)
def test_the_terms_say_what_knowledge_travels(exchange: dict[str, Any], words: str) -> None:
    said = knowledge_in_plain_words(agreed(**exchange))
    assert words in said
    assert bool(said) == bool(words)


def test_a_round_of_an_exchange_is_priced_by_the_formulas_of_its_packets() -> None:
    edge = knowledge_bytes(agreed(**HUB), EXPECTED, 200, 3)
    assert edge == features_bytes(200, width=6, classes=10, coding=Coding.INT8)
    most = knowledge_bytes(agreed(**HUB, most_samples=20, coding="float32"), EXPECTED, 200, 3)
    assert most == features_bytes(20, width=6, classes=10, coding=Coding.FLOAT32)
    hub = Expected(classes=10, width=6, model_values=100, capacity=1.0)
    answer = soft_labels_bytes(200, classes=10) + hub_model_bytes(100)
    assert knowledge_bytes(agreed(**HUB), hub, 200, 3) == 3 * answer
    whole = probe_bytes(50, rows=50, classes=10, coding=Coding.INT8)
    assert knowledge_bytes(agreed(kind="probe"), EXPECTED, 200, 3) == 3 * whole
    assert knowledge_bytes(agreed(kind="proto"), EXPECTED, 200, 3) == 3 * prototypes_bytes(10, width=6)
    assert knowledge_bytes(agreed(kind="proxy"), EXPECTED, 200, 3) == 0
    assert knowledge_bytes(agreed(kind="none"), None, 200, 3) == 0


@pytest.mark.slow
def test_check_and_join_tell_of_the_exchange_and_that_no_model_is_shared(tmp_path: Path) -> None:
    def p2pfl(*words: str) -> Any:
        return CliRunner().invoke(main, ["--home", str(tmp_path / "home"), *words])

    made = p2pfl("node", "init", "--json")
    agreement = tmp_path / "run.toml"
    agreement.write_text(
        f"""
[run]
name = "apart"
members_at_start = 3
[learner]
model = {{ kind = "mlp", hidden = [5] }}
data = {{ source = "sklearn:iris" }}
[gossip]
topology = {{ kind = "complete" }}
averaging = {{ kind = "none" }}
[knowledge]
exchange = {{ kind = "proto" }}
[trust]
founders = ["{json.loads(made.stdout)["peer_id"]}"]
"""
    )
    cost = json.loads(p2pfl("run", "check", str(agreement), "--json").stdout)
    assert cost["bytes_sent_per_round"] == 0
    assert cost["knowledge_bytes_per_round"] == 2 * prototypes_bytes(3, width=5)
    shown = p2pfl("run", "check", str(agreement)).stdout
    assert "parameters that stay here" in shown
    assert "knowledge   proto: at most" in shown
    terms = p2pfl("run", "join", str(agreement), "--yes").stderr
    assert "knowledge  the mean embedding" in terms
    assert "shared     no model" in terms
