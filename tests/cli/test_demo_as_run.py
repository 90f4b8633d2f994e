"""`p2pfl demo` as a person runs it: four real nodes, and one of them killed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file


def _p2pfl(*arguments: str, timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "p2pfl", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)


@pytest.mark.slow
def test_four_real_nodes_survive_a_kill_and_end_on_one_model(tmp_path: Path) -> None:
    home = tmp_path / "demo"
    done = _p2pfl(
        "--home", str(home), "demo", "--peers", "4", "--rounds", "12", "--kill", "--json", timeout_s=300
    )
    assert done.returncode == 0, done.stderr
    verdict = json.loads(done.stdout.splitlines()[-1])
    assert verdict["engine"] == "node"
    assert verdict["mass"]["sum"] == pytest.approx(4, abs=1e-9)
    assert [row["starts"] for row in verdict["per_peer"]] == [1, 1, 1, 2]
    assert verdict["metric"]["min"] >= verdict["metric"]["mean"] - 0.02
    assert verdict["metric"]["mean"] > verdict["alone"]["mean"]
    assert all((home / f"site-{i}" / "model.safetensors").exists() for i in range(4))


@pytest.mark.slow
def test_the_demo_reaches_what_the_readme_promises_and_its_nodes_agree(tmp_path: Path) -> None:
    home = tmp_path / "demo"
    done = _p2pfl("--home", str(home), "demo", "--json", timeout_s=300)
    assert done.returncode == 0, done.stderr
    verdict = json.loads(done.stdout.splitlines()[-1])
    metric, alone = verdict["metric"], verdict["alone"]
    assert metric["name"] == "accuracy"
    assert metric["mean"] >= 0.94
    assert metric["min"] >= max(0.92, metric["mean"] - 0.01)
    assert metric["mean"] >= alone["mean"] + 0.10
    assert verdict["pooled"] > alone["max"]
    assert verdict["mass"]["error"] <= 1e-9
    seen, models = [], []
    for i in range(4):
        site, file = home / f"site-{i}", tmp_path / f"model-{i}.safetensors"
        rows = _p2pfl("--home", str(site), "--json", "rounds")
        assert rows.returncode == 0, rows.stderr
        seen.append([(row["run"], row["round"]) for row in map(json.loads, rows.stdout.splitlines())])
        exported = _p2pfl("--home", str(site), "run", "export", "-o", str(file))
        assert exported.returncode == 0, exported.stderr
        models.append(np.concatenate([part.ravel() for _, part in sorted(load_file(file).items())]))
    assert seen[0] == seen[1] == seen[2] == seen[3]
    assert {run for run, _ in seen[0]} == {verdict["run_id"]}
    distance = np.sqrt(((np.array(models) - np.mean(models, axis=0)) ** 2).sum(axis=1).mean())
    assert distance == pytest.approx(verdict["consensus_distance"], rel=1e-3)
    assert distance < 0.01 * np.linalg.norm(models[0])
