"""The learners and the agreement of docs/knowledge.md, taken from the page and run."""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from p2pfl.learn.probes import digest_of, read
from p2pfl.simulations.scenario import decode
from p2pfl.simulations.trial import run_trial

pytestmark = pytest.mark.slow
PAGE = (Path(__file__).parents[1] / "docs" / "knowledge.md").read_text(encoding="utf-8")
FEW = {"source": "sklearn:digits#0-150", "test_fraction": 0.4}
PROBE_SOURCE = "sklearn:digits#1000-1040"


@pytest.fixture(autouse=True)
def _module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "learners.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    sys.modules.pop("learners", None)


def agreement(learner: dict[str, Any], knowledge: dict[str, Any], **tables: Any) -> dict[str, Any]:
    return {
        "run": {"rounds": 2, "closing_rounds": 0},
        "learner": {"data": FEW, "local_steps": 6, **learner},
        "gossip": {"topology": {"kind": "complete"}, "averaging": {"kind": "none"}},
        "knowledge": knowledge,
        "simulation": {"peers": 3, "baselines": False},
        **tables,
    }


def verdict_on(table: dict[str, Any]) -> dict[str, Any]:
    verdict = run_trial(decode(table, "docs/knowledge.md", "example"))
    assert {row["finished"] for row in verdict["per_peer"]} == {"done"}
    assert verdict["knowledge"]["bytes"] > 0
    assert verdict["metric"]["min"] > 0.15
    return verdict


def test_two_modules_of_your_own_are_an_edge_and_a_hub() -> None:
    roles = {"large": {"capacity": 1.0}, "small": {}}
    verdict = verdict_on(
        agreement(
            {"module": "learners:edge", "roles": roles},
            {"exchange": {"kind": "hub", "share_features": True}},
            simulation={"peers": 3, "roles": ["large", "small", "small"], "baselines": False},
        )
    )
    assert verdict["knowledge"]["holders"] == 3
    assert verdict["knowledge"]["hub"] > 0.3


def test_prototypes_of_a_module_of_your_own_travel() -> None:
    verdict_on(agreement({"module": "learners:embedder"}, {"exchange": {"kind": "proto"}}))


def test_a_private_model_of_your_own_has_a_proxy() -> None:
    tables = {"gossip": {"topology": {"kind": "complete"}}}
    table = agreement({"module": "learners:pair"}, {"exchange": {"kind": "proxy"}}, **tables)
    table["learner"]["local_steps"] = 20
    # What travels is models, by gossip.
    verdict = run_trial(decode(table, "docs/knowledge.md", "example"))
    assert {row["finished"] for row in verdict["per_peer"]} == {"done"}
    assert verdict["metric"]["min"] > 0.15
    assert verdict["bytes_sent"] > 0


def test_an_estimator_of_scikit_learn_tells_its_predictions() -> None:
    rows = read(PROBE_SOURCE)
    probe = {"source": PROBE_SOURCE, "digest": digest_of(rows), "samples": len(rows)}
    verdict_on(agreement({"module": "learners:linear"}, {"exchange": {"kind": "probe"}, "probe": probe}))


def test_sites_with_three_kinds_of_model_and_few_classes_each_gain_from_each_other() -> None:
    (text,) = (text for text in re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL) if "[simulation]" in text)
    table = tomllib.loads(text)
    # The page's run is longer, and of six sites; there every one of them gains.
    table["run"] |= {"rounds": 8, "evaluate_every": 8}
    table["simulation"] |= {"peers": 3, "expect": []}
    verdict = verdict_on(table)
    assert verdict["consensus_distance"] is None
    assert verdict["gain"]["mean"] > 0.05
    # A byte for each of ten classes, to two neighbours, in each of eight rounds.
    assert min(row["bytes_sent"] for row in verdict["per_peer"]) > 8 * 2 * 10 * 397
