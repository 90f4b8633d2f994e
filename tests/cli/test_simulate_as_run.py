"""`p2pfl simulate` as a person runs it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from p2pfl.simulations.scenario import shipped


def _p2pfl(*arguments: str, timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "p2pfl", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)


@pytest.mark.slow
def test_simulate_prints_one_object_and_a_verdict_on_each_expectation(tmp_path: Path) -> None:
    done = _p2pfl("simulate", "digits", "--json", "-o", str(tmp_path))
    assert done.returncode == 0, done.stderr
    [line] = done.stdout.splitlines()
    verdict = json.loads(line)
    assert verdict["v"] == 1
    assert verdict["is_met"]
    assert len(verdict["expectations"]) == 5
    assert json.loads(Path(verdict["file"]).read_text())["seed"] == 0
    assert verdict["report"] == str(tmp_path / "report.html")
    names = {
        "digits-seed-0.json",
        "digits-seed-0.jsonl",
        "report.html",
        "results.sqlite",
        "trials.csv",
        "rounds.csv",
    }
    assert names <= {path.name for path in tmp_path.iterdir()}
    page = (tmp_path / "report.html").read_bytes()
    again = _p2pfl("simulate", "digits", "--json", "-o", str(tmp_path))
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "report.html").read_bytes() == page


@pytest.mark.slow
def test_an_expectation_that_is_not_met_is_exit_code_6() -> None:
    done = _p2pfl(
        "simulate", "digits", "--rounds", "1", "--seeds", "0-1", "--set", "simulation.baselines=false"
    )
    assert done.returncode == 6
    assert "NOT MET" in done.stdout
    assert "seed 1" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", ["hub", "one-way-trust"])
def test_shipped_grids_meet_their_expectations(name: str) -> None:
    done = _p2pfl("simulate", name, timeout_s=900)
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
def test_a_scenario_that_does_not_exist_is_exit_code_2() -> None:
    done = _p2pfl("simulate", "nothing")
    assert done.returncode == 2
    listed = re.search(r"one of ([\w, -]+)", done.stderr)
    assert listed is not None, done.stderr
    assert listed[1].split(", ") == list(shipped())


_GRID = """
[run]
rounds = 2
closing_rounds = 0

[learner]
local_steps = 1
data = { source = "sklearn:wine" }
model = { kind = "logistic" }

[simulation]
peers = 2
baselines = false
seeds = "0-1"
expect = ["metric.mean >= 2 when lr is 0.2", "paired metric.mean[lr=0.2] >= metric.mean[lr=0.1] - 1"]

[simulation.grid]
"learner.optimizer.lr" = [0.1, 0.2]
"gossip.topology.kind" = ["ring", "complete"]
"""


@pytest.mark.slow
def test_a_grid_prints_its_matrix_and_with_json_a_line_a_trial(tmp_path: Path) -> None:
    scenario = tmp_path / "study.toml"
    scenario.write_text(_GRID)
    results = ("-o", str(tmp_path / "results"))
    done = _p2pfl("simulate", str(scenario), "--jobs", "2", *results)
    assert done.returncode == 6, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "accuracy: mean over the seeds (worst seed) worst peer"
    assert [line.split()[0] for line in lines[1:4]] == ["lr", "0.1", "0.2"]
    assert lines[1].split() == ["lr", "ring", "complete"]
    assert "lr 0.2, topology" in next(line for line in lines if line.startswith("NOT MET  metric.mean >= 2"))
    assert done.stderr.splitlines()[7].startswith("8/8  lr 0.2, topology complete, seed 1  accuracy ")
    again = _p2pfl("simulate", str(scenario), "--json", *results)
    assert again.returncode == 6, again.stderr
    *trials, last = map(json.loads, again.stdout.splitlines())
    assert [(trial["cell"]["lr"], trial["cell"]["topology"], trial["seed"]) for trial in trials] == [
        (lr, kind, seed) for lr in ("0.1", "0.2") for kind in ("ring", "complete") for seed in (0, 1)
    ]
    assert last["axes"] == {"lr": ["0.1", "0.2"], "topology": ["ring", "complete"]}
    assert [cell["cell"] for cell in last["cells"]] == [trial["cell"] for trial in trials[::2]]
    assert all(cell["metric"]["min"] <= cell["honest"]["mean"] for cell in last["cells"])
    assert [outcome["is_met"] for outcome in last["expectations"]] == [False, True]
    assert (last["seeds"], last["peers"], last["run_id"]) == ([0, 1], 2, None)
    same = _p2pfl("simulate", "compare", str(tmp_path / "results"), str(tmp_path / "results"), "--json")
    assert same.returncode == 0, same.stderr
    compared = json.loads(same.stdout)
    assert [row["difference"] for row in compared["cells"]] == [0.0] * 4
    assert compared["report"] is None
    folders = (str(tmp_path / "results"), str(tmp_path / "results"))
    drawn = _p2pfl("simulate", "compare", *folders, "-o", str(tmp_path / "drawn"))
    assert drawn.stdout.splitlines()[-1] == f"report  {tmp_path / 'drawn' / 'report.html'}"
    assert "Content-Security-Policy" in (tmp_path / "drawn/report.html").read_text()
    assert _p2pfl("simulate", "compare", str(tmp_path)).returncode == 2
    alone = _p2pfl("simulate", str(scenario), "--seed", "0")
    assert alone.returncode == 2
    assert "two seeds" in alone.stderr


@pytest.mark.slow
def test_a_sweep_that_is_interrupted_ends_its_processes_and_keeps_what_is_done(tmp_path: Path) -> None:
    scenario = tmp_path / "study.toml"
    scenario.write_text(_GRID.replace("rounds = 2", "rounds = 2000", 1))
    command = [sys.executable, "-m", "p2pfl", "simulate", str(scenario), "--jobs", "2", "--seeds", "0-9"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as sweep:
        assert sweep.stderr is not None
        try:
            workers = psutil.Process(sweep.pid).children()
            while len(workers) < 2 and sweep.poll() is None:
                workers = psutil.Process(sweep.pid).children()
            sweep.send_signal(signal.SIGINT)
            assert sweep.wait(30) == 130, sweep.stderr.read()
            gone, alive = psutil.wait_procs(workers, timeout=10)
            assert (len(gone), alive) == (2, [])
            assert "stopped" in sweep.stderr.read()
        finally:
            sweep.kill()


@pytest.mark.slow
def test_who_watches_sees_a_bar_with_the_time_left_and_a_pipe_a_line_a_round() -> None:
    settings = ("--set", "simulation.expect=[]", "--set", "simulation.baselines=false")
    scenario = ("simulate", "digits", "--rounds", "4", "--seeds", "0-1", *settings)
    ours, theirs = os.openpty()
    command = [sys.executable, "-m", "p2pfl", *scenario]
    with subprocess.Popen(command, stderr=theirs, stdout=subprocess.PIPE, text=True) as run:
        os.close(theirs)
        seen = b""
        # A terminal nobody holds any more is an error to read from.
        with contextlib.suppress(OSError):
            while part := os.read(ours, 4096):
                seen += part
        os.close(ours)
        assert run.stdout is not None
        table = run.stdout.read()
        assert run.wait(120) == 0
    assert b"14/14" in seen
    assert b"left" in seen
    assert b"round 1/4" not in seen
    assert "\x1b" not in table
    assert table.count("consensus distance") == 2
    plain = _p2pfl(*scenario)
    assert plain.stderr.count("round 4/4") == 2
    assert "14/14" not in plain.stderr
    assert plain.stdout.count("consensus distance") == 2
